//! The collectives that keep replicas of model state one: gradients are reduced, and weights that are sharded are gathered.
//!
//! Without ZeRO, gradients are all-reduced once an iteration. Stage 1 reduces them to the rank that updates them and gathers the
//! new weights: as many bytes. Stage 2 reduces the gradients of every micro-batch, stage 3 also gathers the weights of every
//! pass.
//!
//! Overlap is one rule ([`exposed`]): a transfer that accompanies a pass is cut into one part a block, runs beside the pass's
//! computation and not beside its exchanges, which use the same links; one part has no block to hide behind. What accompanies
//! every micro-batch always overlaps, because every implementation prefetches; what is done once an iteration overlaps where
//! the cluster's training program or, where that says nothing, the system does so ([`crate::Overlap`]). Where a system has its transfers in line with the exchanges ([`crate::Overlap::queued`]), they go block by block
//! ([`OfBlock`]): the weights of a block are asked for when the block before begins, its gradients are reduced behind its backward pass, exchanges wait for what was
//! asked for before them, and so all replicas go through a block together.

use std::ops::Range;

use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::iteration::moved::Collective;
use crate::iteration::timeline::Gradients;
use crate::plan::job::Job;
use crate::plan::memory::StageParameters;
use crate::plan::{Plan, Zero};
use crate::price::cost::CostModel;
use crate::price::network::Group;
use crate::program::Direction;

/// What of a transfer shows that is cut into `parts` and runs beside `computation`.
pub fn exposed(transfer: Seconds, computation: Seconds, parts: usize) -> Seconds {
    (transfer - computation).max(transfer * (1.0 / parts.max(1) as f64))
}

/// What accompanies a micro-batch's pass through a block, all blocks of a chunk alike.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OfBlock {
    /// Weights are gathered, in either pass.
    pub gathered: Seconds,
    /// Gradients are reduced, behind the backward pass.
    pub reduced: Seconds,
}

/// A collective of one kind of parameters, over the ranks of a stage that hold the same of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OfKind {
    pub(super) kind: Gradients,
    pub(super) collective: Collective,
    /// Between such ranks.
    pub(super) stride: usize,
    /// The whole of it on a rank, as ring collectives are priced.
    pub(super) bytes: Bytes,
}

impl OfKind {
    /// That much of it.
    pub(super) fn part(self, part: f64) -> Self {
        Self { bytes: self.bytes * part, ..self }
    }
}

/// How gradients of replicas become one: a sum on all of them, or of each part where it is updated.
pub(super) fn reduction(plan: &Plan) -> Collective {
    match plan.zero {
        Zero::Off => Collective::AllReduce,
        _ => Collective::ReduceScatter,
    }
}

/// What a ring collective takes.
pub(super) fn time(costs: &CostModel, collective: Collective, group: &Group, bytes: Bytes) -> Seconds {
    match collective {
        Collective::AllReduce => costs.all_reduce(group, bytes),
        // The two halves of an all-reduce.
        _ => costs.all_gather(group, bytes),
    }
}

/// The collectives of parameters that the ranks of a stage hold.
pub struct StateTraffic<'a> {
    pub(super) costs: &'a CostModel,
    pub(super) plan: &'a Plan,
    /// All ranks of the stage.
    pub(super) ranks: Range<usize>,
    pub(super) parameters: StageParameters,
}

impl<'a> StateTraffic<'a> {
    /// Of what the ranks of a chunk's stage hold of that chunk, an equal part of the experts each.
    pub fn of_chunk(job: &Job, plan: &'a Plan, costs: &'a CostModel, chunk: usize) -> Self {
        let first = chunk % plan.pp * plan.stage_ranks();
        let parameters = StageParameters::of_chunk(job, plan, chunk);
        Self { costs, plan, ranks: first..first + plan.stage_ranks(), parameters }
    }

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

    fn of_kinds(&self, collective: Collective, number_bytes: f64) -> [OfKind; 4] {
        let of = |(kind, stride, count)| OfKind { kind, collective, stride, bytes: Bytes(count * number_bytes) };
        self.kinds().map(of)
    }

    /// The collectives that reduce all gradients of an iteration or a micro-batch.
    pub(super) fn reduced(&self) -> [OfKind; 4] {
        self.of_kinds(reduction(self.plan), self.costs.gradient_bytes())
    }

    /// The collectives that gather all weights.
    pub(super) fn gathered(&self) -> [OfKind; 4] {
        self.of_kinds(Collective::AllGather, HALF)
    }

    fn time(&self, of: OfKind) -> (Gradients, Seconds) {
        let group = self.costs.group(self.ranks.clone(), of.stride);
        (of.kind, time(self.costs, of.collective, &group, of.bytes))
    }

    /// Reduces all gradients of an iteration or a micro-batch.
    pub(super) fn reductions(&self) -> impl Iterator<Item = (Gradients, Seconds)> {
        self.reduced().into_iter().map(|of| self.time(of))
    }

    /// Gathers all weights.
    pub(super) fn gathers(&self) -> impl Iterator<Item = (Gradients, Seconds)> {
        self.gathered().into_iter().map(|of| self.time(of))
    }

    /// Whether weights are gathered, and gradients reduced, with every pass of a micro-batch.
    fn accompany(&self, direction: Direction) -> [bool; 2] {
        [self.plan.zero == Zero::Weights, self.plan.zero >= Zero::Gradients && direction == Direction::Backward]
    }

    /// The collectives that accompany every pass of a micro-batch, in order.
    pub(super) fn accompanying(&self, direction: Direction) -> Vec<OfKind> {
        let [gathers, reduces] = self.accompany(direction);
        let (gathered, reduced) = (gathers.then(|| self.gathered()), reduces.then(|| self.reduced()));
        gathered.into_iter().chain(reduced).flatten().collect()
    }

    /// A block's part of what accompanies a micro-batch through `blocks` of them.
    pub fn of_block(&self, blocks: usize) -> OfBlock {
        let gathered = self.of_pass(Direction::Forward);
        let part = 1.0 / blocks.max(1) as f64;
        OfBlock { gathered: gathered * part, reduced: (self.of_pass(Direction::Backward) - gathered) * part }
    }

    /// What accompanies every pass of a micro-batch.
    pub fn of_pass(&self, direction: Direction) -> Seconds {
        let [gathers, reduces] = self.accompany(direction);
        let gathered = if gathers { self.gathers().map(|(_, time)| time).sum() } else { Seconds::ZERO };
        if reduces { gathered + self.reductions().map(|(_, time)| time).sum::<Seconds>() } else { gathered }
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
