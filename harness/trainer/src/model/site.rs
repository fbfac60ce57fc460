//! Where a dense part runs one micro-batch: parameters, tensor-parallel group, clock.

use systems::iteration::timeline::Activity;
use systems::price::cost::CostModel;
use systems::price::network::Group;
use tch::{Kind, Tensor};
use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::clock::timer::Timer;
use crate::comm::Communicator;
use crate::error::TrainError;
use crate::model::dense::Dense;
use crate::model::parameters::Bucket;

/// Where a dense part runs.
pub struct Site<'a> {
    pub dense: &'a Dense,
    /// The tied embedding's only parameter, `[vocabulary / tp, hidden]`; no parameter on stages without it.
    pub embedding_weight: &'a Bucket,
    /// The tensor-parallel group.
    pub group: &'a dyn Communicator,
    /// Where the ranks of the group are.
    pub place: Group,
    /// Prices of collectives under a virtual clock.
    pub costs: &'a CostModel,
    pub timer: &'a Timer,
}

impl Site<'_> {
    /// The sum over tensor-parallel ranks.
    ///
    /// # Errors
    /// A peer that died.
    pub fn all_reduce(&self, tensor: Tensor) -> Result<Tensor, TrainError> {
        if self.group.size() == 1 {
            return Ok(tensor);
        }
        let sum = self.timer.wait(Activity::TensorParallel, || self.group.all_reduce(&tensor)?.wait())?;
        self.charge(self.costs.all_reduce(&self.place, bytes(&tensor)))?;
        Ok(sum)
    }

    /// An operation in two parts. The first returns what is summed over tensor-parallel ranks and what is handed on unchanged; the second gets
    /// both. Where there is nothing to sum, they are one segment: the host issues the second while the first runs, and so it is measured.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn summed_between<T, U>(
        &self,
        activity: Activity,
        first: impl FnOnce() -> (Vec<Tensor>, T),
        second: impl FnOnce(Vec<Tensor>, T) -> U,
    ) -> Result<U, TrainError> {
        if self.group.size() == 1 {
            return Ok(self.timer.compute(activity, || {
                let (tensors, rest) = first();
                second(tensors, rest)
            }));
        }
        let (tensors, rest) = self.timer.compute(activity, first);
        let sums = self.all_reduce_together(tensors)?;
        Ok(self.timer.compute(activity, || second(sums, rest)))
    }

    /// The sums over tensor-parallel ranks, in one call.
    ///
    /// # Errors
    /// A peer that died.
    fn all_reduce_together(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, TrainError> {
        if self.group.size() == 1 || tensors.len() == 1 {
            return tensors.into_iter().map(|tensor| self.all_reduce(tensor)).collect();
        }
        let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.reshape([-1])).collect();
        let sizes: Vec<i64> = flat.iter().map(|tensor| tensor.numel() as i64).collect();
        let sums = self.all_reduce(Tensor::cat(&flat, 0))?.split_with_sizes(sizes, 0);
        Ok(sums.iter().zip(&tensors).map(|(sum, tensor)| sum.view_as(tensor)).collect())
    }

    /// This rank's part of the tokens, `[tokens / tp, hidden]`.
    pub fn part(&self, tokens: &Tensor) -> Tensor {
        let (size, rank) = (self.group.size() as i64, self.group.rank() as i64);
        let length = tokens.size()[0] / size;
        tokens.narrow(0, rank * length, length)
    }

    /// All ranks' parts, `[tokens, hidden]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn whole(&self, part: Tensor) -> Result<Tensor, TrainError> {
        if self.group.size() == 1 {
            return Ok(part);
        }
        let all = self.timer.wait(Activity::TensorParallel, || self.group.all_gather(&part)?.wait())?;
        self.charge(self.costs.all_gather(&self.place, bytes(&all)))?;
        Ok(all.view([-1, part.size()[1]]))
    }

    fn charge(&self, price: Seconds) -> Result<(), TrainError> {
        self.timer.collective(Activity::TensorParallel, self.group, price)
    }

    /// Token ids as this rank numbers its part of the vocabulary, -1 for those of other ranks.
    pub(super) fn local_targets(&self, vocabulary: i64, ids: &Tensor) -> Tensor {
        if self.group.size() == 1 {
            return ids.shallow_clone();
        }
        let (local, own) = self.local_ids(vocabulary, ids);
        local - own.logical_not().to_kind(Kind::Int64)
    }

    /// Token ids as this rank numbers its part of the vocabulary, 0 for those of other ranks; and which are its own.
    pub(super) fn local_ids(&self, vocabulary: i64, ids: &Tensor) -> (Tensor, Tensor) {
        let share = vocabulary / self.group.size() as i64;
        let local = ids - share * self.group.rank() as i64;
        let own = local.ge(0).logical_and(&local.lt(share));
        (local * own.to_kind(Kind::Int64), own)
    }
}

/// What a tensor takes in half precision, which prices are of.
fn bytes(tensor: &Tensor) -> Bytes {
    Bytes(tensor.numel() as f64 * HALF)
}
