//! The collectives that keep replicas of model state one: gradients are reduced, and weights that are sharded are gathered.
//!
//! Without ZeRO, gradients are all-reduced once an iteration. Stage 1 reduces them to the rank that updates them and gathers the
//! new weights: as many bytes. Stage 2 reduces the gradients of every micro-batch, stage 3 also gathers the weights of every
//! pass.
//!
//! Overlap is one rule ([`exposed`]): a transfer that accompanies a pass is cut into one part a block, runs beside the pass's
//! computation and not beside its exchanges, which use the same links; one part has no block to hide behind. What accompanies
//! every micro-batch always overlaps, because every implementation prefetches; what is done once an iteration overlaps where
//! the system says so ([`crate::Overlap`]). Where a system has its transfers in line with the exchanges ([`crate::Overlap::queued`]), they go block by block
//! ([`OfBlock`]): the weights of a block are asked for when the block before begins, its gradients are reduced behind its backward pass, exchanges wait for what was
//! asked for before them, and so all replicas go through a block together.

use std::ops::Range;

use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::iteration::timeline::Gradients;
use crate::plan::memory::StageParameters;
use crate::plan::{Plan, Zero};
use crate::price::cost::CostModel;
use crate::program::Direction;

/// What of a transfer shows that is cut into `parts` and runs beside `computation`.
pub(super) fn exposed(transfer: Seconds, computation: Seconds, parts: usize) -> Seconds {
    (transfer - computation).max(transfer * (1.0 / parts.max(1) as f64))
}

/// What accompanies a micro-batch's pass through a block, all blocks of a chunk alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct OfBlock {
    /// Weights are gathered, in either pass.
    pub(super) gathered: Seconds,
    /// Gradients are reduced, behind the backward pass.
    pub(super) reduced: Seconds,
}

/// The collectives of parameters that the ranks of a stage hold.
pub(super) struct StateTraffic<'a> {
    pub(super) costs: &'a CostModel,
    pub(super) plan: &'a Plan,
    /// All ranks of the stage.
    pub(super) ranks: Range<usize>,
    pub(super) parameters: StageParameters,
}

impl StateTraffic<'_> {
    /// The kinds of parameters, the distance between ranks that hold the same of them, and how many a rank holds.
    fn kinds(&self) -> [(Gradients, usize, f64); 4] {
        let StageParameters { dense, gate, experts, tied } = self.parameters;
        let plan = self.plan;
        [
            (Gradients::Dense, plan.tp, dense),
            (Gradients::Gate, 1, gate),
            (Gradients::Experts, plan.ep, experts),
            (Gradients::Tied, plan.tp, tied),
        ]
    }

    /// Reduces all gradients of an iteration or a micro-batch.
    pub(super) fn reductions(&self) -> impl Iterator<Item = (Gradients, Seconds)> {
        self.kinds().into_iter().map(|(kind, stride, count)| {
            let (group, bytes) =
                (self.costs.group(self.ranks.clone(), stride), Bytes(count * self.costs.gradient_bytes()));
            let time = match self.plan.zero {
                Zero::Off => self.costs.all_reduce(&group, bytes),
                _ => self.costs.reduce_scatter(&group, bytes),
            };
            (kind, time)
        })
    }

    /// Gathers all weights.
    pub(super) fn gathers(&self) -> impl Iterator<Item = (Gradients, Seconds)> {
        self.kinds().into_iter().map(|(kind, stride, count)| {
            let group = self.costs.group(self.ranks.clone(), stride);
            (kind, self.costs.all_gather(&group, Bytes(count * HALF)))
        })
    }

    /// A block's part of what accompanies a micro-batch through `blocks` of them.
    pub(super) fn of_block(&self, blocks: usize) -> OfBlock {
        let gathered = self.of_pass(Direction::Forward);
        let part = 1.0 / blocks.max(1) as f64;
        OfBlock { gathered: gathered * part, reduced: (self.of_pass(Direction::Backward) - gathered) * part }
    }

    /// What accompanies every pass of a micro-batch.
    pub(super) fn of_pass(&self, direction: Direction) -> Seconds {
        let gathered = match self.plan.zero {
            Zero::Weights => self.gathers().map(|(_, time)| time).sum(),
            _ => Seconds::ZERO,
        };
        match direction {
            Direction::Backward if self.plan.zero >= Zero::Gradients => {
                gathered + self.reductions().map(|(_, time)| time).sum::<Seconds>()
            }
            _ => gathered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_hides_behind_computation_but_for_a_block() {
        assert_eq!(exposed(Seconds(8.0), Seconds(3.0), 4), Seconds(5.0));
        assert_eq!(exposed(Seconds(8.0), Seconds(100.0), 4), Seconds(2.0));
        assert_eq!(exposed(Seconds(8.0), Seconds::ZERO, 4), Seconds(8.0));
        assert_eq!(exposed(Seconds::ZERO, Seconds(1.0), 4), Seconds::ZERO);
    }
}
