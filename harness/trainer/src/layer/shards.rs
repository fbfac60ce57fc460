//! Experts whose state is cut into equal shards over the ranks of a group: restored in slots, and their gradients summed into the
//! shards.
//!
//! What arrives goes where it is needed, and nothing is put together or cut apart on the way. Slots begin to be filled a layer ahead,
//! and gradients go to their shards while the layers before run ([`systems::program::Stream::Copy`]); so the slots of a stage's layers
//! have [`Room`] for the weights of two of them and the gradients of one.

use std::cell::RefCell;
use std::rc::Rc;

use systems::Placement;
use tch::{Device, Kind, Tensor};
use workloads::model::Moe;

use crate::comm::{CommError, Communicator, Part, Pending};
use crate::host::to_device;
use crate::model::parameters::Bucket;

/// A rank's shard of every expert of a layer.
pub struct Shards {
    /// Weights, gradients and optimizer state, `[experts * shard]`, an expert's shard a parameter.
    pub bucket: Bucket,
    cut: Cut,
    /// The layer's slots, while they are being filled and nobody waits for them yet.
    restoring: RefCell<Option<Pending>>,
    returning: Returning,
}

/// Gradients on their way from slots to shards, of all layers whose slots share memory for them.
type Returning = Rc<RefCell<Option<Pending>>>;

/// Memory of a layer's slots, `[slots * parameters of an expert]`.
pub struct Slots {
    pub(super) bucket: Bucket,
    returning: Returning,
}

/// Memory that the slots of a stage's layers share: for weights of two, because those of the next are restored while one runs, and
/// for gradients of one, in single precision, in which they travel.
pub struct Room {
    weights: [Tensor; 2],
    gradients: Tensor,
    returning: Returning,
}

impl Room {
    /// For the layer with the most numbers in its slots.
    pub fn new(most: i64, kind: Kind, device: Device) -> Self {
        let weights = || Tensor::zeros([most], (kind, device));
        let gradients = Tensor::zeros([most], (Kind::Float, device));
        Self { weights: [weights(), weights()], gradients, returning: Returning::default() }
    }

    /// That many slots of the stage's MoE layer `layer`; those of the layers before and after it have other memory for weights.
    pub fn slots(&self, layer: usize, slots: usize, moe: &Moe) -> Slots {
        let memory = [&self.weights[layer % 2], &self.gradients];
        let bucket = Bucket::in_memory(memory, slots, moe.expert_parameters() as i64);
        Slots { bucket, returning: self.returning.clone() }
    }
}

impl Slots {
    /// That many slots with memory of their own, for weights and gradients of these kinds.
    pub fn new(slots: usize, moe: &Moe, [kind, gradients]: [Kind; 2], device: Device) -> Self {
        let memory = |kind| Tensor::zeros([slots as i64 * moe.expert_parameters() as i64], (kind, device));
        let bucket = Bucket::in_memory([&memory(kind), &memory(gradients)], slots, moe.expert_parameters() as i64);
        Self { bucket, returning: Returning::default() }
    }

    pub(super) fn device(&self) -> Device {
        self.bucket.weights.device()
    }
}

impl Shards {
    /// The shards of rank `rank` of `ranks`, which hold `gradients` of that kind, and the layer's slots. `experts`: the flat parameters of each.
    pub fn new(
        experts: impl Iterator<Item = Tensor>,
        (rank, ranks): (usize, usize),
        moe: &Moe,
        slots: Slots,
        gradients: Kind,
    ) -> (Self, Bucket) {
        let cut = Cut { parameters: moe.expert_parameters() as usize, ranks };
        let (kind, device) = (slots.bucket.weights.kind(), slots.device());
        let shards: Vec<Tensor> = experts.map(|flat| cut.of(&flat, rank).copy()).collect();
        let bucket = Bucket::new(&shards, kind, device).with_gradients(gradients);
        (Self { bucket, cut, restoring: RefCell::default(), returning: slots.returning }, slots.bucket)
    }

    /// Starts to bring `of`, one of the bucket's tensors, into slots, `[slots of the rank * parameters of an expert]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn gather(
        &self,
        of: &Tensor,
        slots: &Tensor,
        placement: &Placement,
        group: &dyn Communicator,
    ) -> Result<Pending, CommError> {
        let length = self.cut.length(group.rank());
        let shard = |(member, _, expert)| Part { member, start: expert * length, length };
        let sent: Vec<Part> = filled(placement).map(shard).collect();
        group.transfer(of, &sent, slots, &self.cut.of_slots(placement, group.rank()))
    }

    /// Starts to restore the layer's experts in its slots, if that is not under way.
    ///
    /// # Errors
    /// A peer that died.
    pub fn restore(&self, slots: &Bucket, placement: &Placement, group: &dyn Communicator) -> Result<(), CommError> {
        let mut restoring = self.restoring.borrow_mut();
        if restoring.is_none() {
            *restoring = Some(self.gather(&self.bucket.weights, &slots.weights, placement, group)?);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_restoring(&self) -> bool {
        self.restoring.borrow().is_some()
    }

    /// What must be over before the layer's experts run: slots are filled, and gradients of another layer are out of their memory.
    pub fn under_way(&self) -> Vec<Pending> {
        [self.restoring.take(), self.returning.take()].into_iter().flatten().collect()
    }

    /// Starts to sum the gradients of the layer's slots into the shards, and clears them. It is over with what is [`Self::under_way`] next.
    ///
    /// # Errors
    /// A peer that died.
    pub fn scatter(&self, slots: &Bucket, placement: &Placement, group: &dyn Communicator) -> Result<(), CommError> {
        self.settle()?;
        let (gradients, length) = (slots.gradients(), self.cut.length(group.rank()));
        let experts: Vec<i64> = filled(placement).map(|(.., expert)| expert as i64).collect();
        let shape = [experts.len() as i64, length as i64];
        let rows = Tensor::empty(shape, (gradients.kind(), gradients.device()));
        let row = |(row, (member, ..)): (usize, (usize, usize, usize))| Part { member, start: row * length, length };
        let received: Vec<Part> = filled(placement).enumerate().map(row).collect();
        let arriving = group.transfer(gradients, &self.cut.of_slots(placement, group.rank()), &rows, &received)?;
        slots.clear();
        let mut sums = self.bucket.gradients().view([placement.experts() as i64, length as i64]);
        let experts = to_device(&Tensor::from_slice(&experts), rows.device());
        *self.returning.borrow_mut() = Some(Pending::new(move || {
            drop(arriving.wait()?);
            Ok(sums.index_add_(0, &experts, &rows.to_kind(sums.kind())))
        }));
        Ok(())
    }

    /// Waits for gradients on their way.
    ///
    /// # Errors
    /// A peer that died.
    pub fn settle(&self) -> Result<(), CommError> {
        self.returning.take().map_or(Ok(()), |pending| pending.wait().map(drop))
    }
}

/// How the parameters of an expert are cut over ranks: as evenly as whole numbers allow.
#[derive(Clone, Copy)]
struct Cut {
    parameters: usize,
    ranks: usize,
}

impl Cut {
    fn start(self, rank: usize) -> usize {
        self.parameters * rank / self.ranks
    }

    /// Parameters in the shard of a rank.
    fn length(self, rank: usize) -> usize {
        self.start(rank + 1) - self.start(rank)
    }

    /// The shard of a rank of an expert's flat parameters.
    fn of(self, flat: &Tensor, rank: usize) -> Tensor {
        flat.narrow(0, self.start(rank) as i64, self.length(rank) as i64)
    }

    /// The shards of all ranks in the slots of `me` that hold an expert.
    fn of_slots(self, placement: &Placement, me: usize) -> Vec<Part> {
        let own = filled(placement).filter(|(rank, ..)| *rank == me);
        let shard = |slot, member| Part {
            member,
            start: slot * self.parameters + self.start(member),
            length: self.length(member),
        };
        own.flat_map(|(_, slot, _)| (0..self.ranks).map(move |member| shard(slot, member))).collect()
    }
}

/// Of all slots that hold an expert, in their order: the rank, the slot on it, the expert.
fn filled(placement: &Placement) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
    let of_rank = |rank| placement.experts_of(rank).iter().enumerate().map(move |(slot, expert)| (rank, slot, *expert));
    let all = (0..placement.ranks()).flat_map(of_rank);
    all.filter_map(|(rank, slot, expert)| expert.map(|expert| (rank, slot, expert)))
}
