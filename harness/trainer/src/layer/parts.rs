//! Experts whose copies keep a part of the inner width each: ranks compute with their parts, or whole experts are restored in slots for
//! a pass and their gradients summed into the parts.

use systems::Placement;
use tch::{Device, Kind, Tensor};
use workloads::model::Moe;

use crate::comm::{CommError, Communicator, Pending};
use crate::layer::experts::{Experts, Views};
use crate::model::parameters::Bucket;

/// A rank's part of the expert in each of its slots. The ranks that hold the other parts have the same experts in their slots.
pub struct Parts {
    /// Weights, gradients and optimizer state, `[slots * numbers of a part]`, a part a parameter.
    pub bucket: Bucket,
    /// Number of this rank's part, and of how many.
    number: usize,
    parts: usize,
    /// Of the layer whose experts the parts are.
    moe: Moe,
    /// `[parts * numbers of a part]`: where each number of all parts is in a whole expert, and behind its end where in none.
    of_parts: Tensor,
    /// `[parameters]`: where each number of a whole expert is in its parts.
    of_whole: Tensor,
}

impl Parts {
    /// Part `number` of `parts`, weights and gradients of these kinds. `experts`: the flat parameters of the expert in each slot. Of the last matrix's bias, which does not have
    /// the inner width, the first part has all, and the others have zeros.
    pub fn new(
        experts: impl Iterator<Item = Tensor>,
        (number, parts): (usize, usize),
        moe: &Moe,
        [kind, gradients]: [Kind; 2],
        device: Device,
    ) -> Self {
        let whole = moe.expert_parameters() as i64;
        let places = |length: i64| Tensor::arange(length, (Kind::Int64, device));
        let (all, views) = (places(whole), |flat: &Tensor| Views::new(flat, moe));
        let of_part = |part: usize| {
            let bias = |bias: &Tensor| if part == 0 { bias.shallow_clone() } else { bias.full_like(whole) };
            views(&all).part(part, parts).flat(&bias)
        };
        let of_parts = Tensor::cat(&(0..parts).map(of_part).collect::<Vec<_>>(), 0);
        let of_whole = Tensor::zeros([whole + 1], (Kind::Int64, device));
        let of_whole = of_whole.index_copy(0, &of_parts, &places(of_parts.numel() as i64)).narrow(0, 0, whole);
        let own: Vec<Tensor> = experts.map(|flat| cut(&flat, &of_parts, parts).get(number as i64)).collect();
        let bucket = Bucket::new(&own, kind, device).with_gradients(gradients);
        Self { bucket, number, parts, moe: moe.cut(parts), of_parts, of_whole }
    }

    /// Weights of the part of the expert in a slot, and their gradients, to be added to.
    pub(super) fn of_slot(&self, slot: usize) -> (Views, Views) {
        let length = self.length();
        let part = |of: &Tensor| {
            let views = Views::new(&of.narrow(0, slot as i64 * length, length), &self.moe);
            if self.number == 0 { views } else { views.without_last_bias() }
        };
        (part(&self.bucket.weights), part(self.bucket.gradients_of(slot)))
    }

    /// Starts to gather `of`, one of the bucket's tensors, for the slots of this rank: what [`Self::whole`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub fn gather(&self, of: &Tensor, placement: &Placement, group: &dyn Communicator) -> Result<Pending, CommError> {
        let numbers = self.numbers(placement, group.rank());
        group.all_to_all(&of.view([-1, self.length()]).repeat([self.parts as i64, 1]), &numbers, &numbers)
    }

    /// `[slots, parameters of an expert]`, from the parts that arrived.
    pub fn whole(&self, rows: &Tensor) -> Tensor {
        let by_slot = rows.view([self.parts as i64, -1, self.length()]).transpose(0, 1);
        by_slot.reshape([-1, self.of_parts.numel() as i64]).index_select(1, &self.of_whole)
    }

    /// Starts to send the gradients of whole experts to their parts, and clears them: what [`Self::add`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub fn scatter(
        &self,
        experts: &Experts,
        placement: &Placement,
        group: &dyn Communicator,
    ) -> Result<Pending, CommError> {
        let flat = experts.bucket.gradients().view([-1, self.of_whole.numel() as i64]);
        let rows = cut(&flat, &self.of_parts, self.parts).transpose(0, 1).reshape([-1, self.length()]);
        experts.bucket.clear();
        let numbers = self.numbers(placement, group.rank());
        group.all_to_all(&rows, &numbers, &numbers)
    }

    /// Adds the gradients that arrived.
    pub fn add(&self, rows: &Tensor) {
        let sums = rows.view([self.parts as i64, -1]).sum_dim_intlist([0i64].as_slice(), false, rows.kind());
        let mut gradients = self.bucket.gradients().shallow_clone();
        let _ = gradients.g_add_(&sums.to_kind(gradients.kind()));
    }

    /// `[rank]`: slots whose parts this rank exchanges with it.
    fn numbers(&self, placement: &Placement, me: usize) -> Vec<usize> {
        let own = placement.experts_of(me);
        let shares = |rank: usize| if placement.experts_of(rank) == own { own.len() } else { 0 };
        (0..placement.ranks()).map(shares).collect()
    }

    /// Numbers of a part.
    fn length(&self) -> i64 {
        self.moe.expert_parameters() as i64
    }
}

/// `[.., parts, numbers of a part]`, from `[.., parameters]`.
fn cut(flat: &Tensor, of_parts: &Tensor, parts: usize) -> Tensor {
    let size = flat.size();
    let shape = [&size[..size.len() - 1], &[parts as i64, -1]].concat();
    flat.constant_pad_nd([0, 1]).index_select(-1, of_parts).view(shape.as_slice())
}
