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
        let filled: Vec<Filled> = filled(placement).collect();
        let shard = |of: &Filled| Part { member: of.rank, start: of.expert * length, length };
        let sent: Vec<Part> = filled.iter().map(shard).collect();
        group.transfer(of, &sent, slots, &self.cut.of_slots(&filled, group.rank()))
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
        let (gradients, me) = (slots.gradients(), group.rank());
        let length = self.cut.length(me);
        let (sums, fresh) = self.bucket.open(0..placement.experts());
        // Sums that hold nothing yet begin with what the first slot of each expert has.
        let begin = fresh && sums.kind() == gradients.kind();
        if fresh && !begin {
            let _ = sums.shallow_clone().zero_();
        }
        let (first, others): (Vec<Filled>, Vec<Filled>) = filled(placement).partition(|of| begin && of.first);
        let mut under_way = Vec::new();
        if begin {
            let sum = |of: &Filled| Part { member: of.rank, start: of.expert * length, length };
            let received: Vec<Part> = first.iter().map(sum).collect();
            under_way.push(group.transfer(gradients, &self.cut.of_slots(&first, me), sums, &received)?);
        }
        let rows = [others.len(), length].map(|extent| extent as i64);
        let rows = Tensor::empty(rows, (gradients.kind(), gradients.device()));
        let row = |(row, of): (usize, &Filled)| Part { member: of.rank, start: row * length, length };
        let received: Vec<Part> = others.iter().enumerate().map(row).collect();
        under_way.push(group.transfer(gradients, &self.cut.of_slots(&others, me), &rows, &received)?);
        slots.clear();
        let sums = sums.view([placement.experts() as i64, length as i64]);
        *self.returning.borrow_mut() = Some(Pending::new(move || {
            under_way.into_iter().try_for_each(|arriving| arriving.wait().map(drop))?;
            for (row, of) in others.iter().enumerate() {
                let _ = sums.get(of.expert as i64).g_add_(&rows.get(row as i64).to_kind(sums.kind()));
            }
            Ok(sums)
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

    /// The shards of all ranks in those of the slots that are of `me`.
    fn of_slots(self, slots: &[Filled], me: usize) -> Vec<Part> {
        let shard = |slot, member| Part {
            member,
            start: slot * self.parameters + self.start(member),
            length: self.length(member),
        };
        let own = slots.iter().filter(|of| of.rank == me);
        own.flat_map(|of| (0..self.ranks).map(move |member| shard(of.slot, member))).collect()
    }
}

/// A slot that holds an expert.
struct Filled {
    rank: usize,
    /// On its rank.
    slot: usize,
    expert: usize,
    /// Whether it is the expert's first.
    first: bool,
}

/// All slots that hold an expert, in their order.
fn filled(placement: &Placement) -> impl Iterator<Item = Filled> + '_ {
    let slots = placement.slots_per_rank();
    placement.experts_in_slots().iter().enumerate().filter_map(move |(at, expert)| {
        let expert = (*expert)?;
        Some(Filled { rank: at / slots, slot: at % slots, expert, first: placement.slots_of(expert)[0] == at })
    })
}
