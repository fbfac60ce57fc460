//! Experts whose state is cut into equal shards over the ranks of a group: restored in slots, and their gradients summed into the
//! shards.

use systems::Placement;
use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, Communicator, Pending};
use crate::layer::experts::Experts;
use crate::model::parameters::Bucket;

/// A rank's shard of every expert of a layer.
pub struct Shards {
    /// Weights, gradients and optimizer state, `[experts * shard]`, an expert's shard a parameter.
    pub bucket: Bucket,
    ranks: usize,
    /// Numbers of a shard; the last ones are padded with zeros.
    size: i64,
}

impl Shards {
    /// The shards of rank `rank` of `ranks`. `experts`: the flat parameters of each.
    pub fn new(
        experts: impl Iterator<Item = Tensor>,
        (rank, ranks): (usize, usize),
        kind: Kind,
        device: Device,
    ) -> Self {
        let shard = |flat: Tensor| cut(&flat.unsqueeze(0), ranks).get(rank as i64).squeeze_dim(0).copy();
        let shards: Vec<Tensor> = experts.map(shard).collect();
        let size = shards.first().map_or(0, Tensor::numel) as i64;
        Self { bucket: Bucket::new(&shards, kind, device), ranks, size }
    }

    /// Starts to gather `of`, one of the bucket's tensors, for the slots of every rank: what [`Self::whole`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub fn gather(&self, of: &Tensor, placement: &Placement, group: &dyn Communicator) -> Result<Pending, CommError> {
        let rows = of.view([-1, self.size]).index_select(0, &in_slots(placement, of.device()));
        let mine = filled(placement, group.rank()).len();
        group.all_to_all(&rows, &numbers(placement), &vec![mine; self.ranks])
    }

    /// `[filled slots of the rank, parameters of an expert]`, from the shards that arrived.
    pub fn whole(&self, rows: &Tensor, parameters: usize) -> Tensor {
        let ranks = self.ranks as i64;
        let slots = rows.size()[0] / ranks;
        let by_slot = rows.view([ranks, slots, self.size]).transpose(0, 1);
        by_slot.reshape([slots, ranks * self.size]).narrow(1, 0, parameters as i64)
    }

    /// Puts the weights that arrived into their slots.
    pub fn restore(&self, experts: &Experts, placement: &Placement, rank: usize, rows: &Tensor) {
        experts.put(&filled(placement, rank), &self.whole(rows, experts.moe().expert_parameters() as usize));
    }

    /// Starts to send the gradients of a rank's slots to their shards, and clears them: what [`Self::add`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub fn scatter(
        &self,
        experts: &Experts,
        placement: &Placement,
        group: &dyn Communicator,
    ) -> Result<Pending, CommError> {
        let slots = filled(placement, group.rank());
        let rows = cut(&experts.stack(experts.bucket.gradients(), &slots), self.ranks);
        let rows = rows.reshape([(self.ranks * slots.len()) as i64, self.size]);
        experts.bucket.clear();
        group.all_to_all(&rows, &vec![slots.len(); self.ranks], &numbers(placement))
    }

    /// Adds the gradients that arrived.
    pub fn add(&self, placement: &Placement, rows: &Tensor) {
        let mut gradients = self.bucket.gradients().view([-1, self.size]);
        let _ = gradients.index_add_(0, &in_slots(placement, rows.device()), rows);
    }
}

/// `[ranks, rows, shard]`, from `[rows, parameters]`.
fn cut(rows: &Tensor, ranks: usize) -> Tensor {
    let (number, parameters, ranks) = (rows.size()[0], rows.size()[1], ranks as i64);
    let shard = (parameters + ranks - 1) / ranks;
    rows.constant_pad_nd([0, ranks * shard - parameters]).view([number, ranks, shard]).transpose(0, 1)
}

/// The slots of a rank that hold an expert.
fn filled(placement: &Placement, rank: usize) -> Vec<usize> {
    let slots = placement.experts_of(rank).iter().enumerate();
    slots.filter_map(|(slot, expert)| expert.map(|_| slot)).collect()
}

/// `[rank]`: its filled slots.
fn numbers(placement: &Placement) -> Vec<usize> {
    (0..placement.ranks()).map(|rank| filled(placement, rank).len()).collect()
}

/// The experts in the filled slots of all ranks, in their order.
fn in_slots(placement: &Placement, device: Device) -> Tensor {
    let experts: Vec<i64> = placement.experts_in_slots().iter().flatten().map(|&expert| expert as i64).collect();
    Tensor::from_slice(&experts).to_device(device)
}
