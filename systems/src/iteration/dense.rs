//! What the parts of a model outside its experts take: blocks, embedding and head, and the collectives that tensor parallelism
//! adds.

use workloads::model::{Block, Edge, HALF, Recompute};
use workloads::{Bytes, Flops, Seconds};

use crate::Plan;
use crate::iteration::moved::{Collective, tensor_parallel};
use crate::plan::job::{Job, Scope};
use crate::price::cost::CostModel;
use crate::price::hosts::Issue;
use crate::price::network::Group;
use crate::program::Direction;

/// The prices of one micro-batch on a rank under a plan.
pub(super) struct Dense<'a> {
    job: &'a Job,
    plan: &'a Plan,
    costs: &'a CostModel,
    /// The tensor-parallel ranks that the rank is one of.
    tensor: Group,
}

impl<'a> Dense<'a> {
    /// On the global rank `rank`.
    pub(super) fn new(job: &'a Job, plan: &'a Plan, costs: &'a CostModel, rank: usize) -> Self {
        let first = rank / plan.tp * plan.tp;
        Self { job, plan, costs, tensor: costs.group(first..first + plan.tp, 1) }
    }

    /// A micro-batch's part of what is stated per sample.
    fn part(&self) -> f64 {
        self.plan.micro_batch as f64 / self.plan.tp as f64
    }

    /// Everything of a block but its MoE layer: launches and gradients of weights; and what grows with the batch.
    pub(super) fn block(&self, block: &Block, direction: Direction) -> [Seconds; 2] {
        let costs = self.costs;
        if self.job.scope == Scope::Layer {
            return [Seconds::ZERO; 2];
        }
        let part = self.part();
        if let Some(measured) = costs.measured_block(block, part, direction) {
            return measured;
        }
        let weights = Bytes(block.dense_parameters() as f64 * HALF / self.plan.tp as f64);
        let time = costs.matrix(block.dense_flops() * part)
            + costs.elementwise(block.dense_activations() * (costs.block_traffic() * part) + weights);
        // Weights are read forward; backward they are read again, and their gradients read, added to and written.
        let gradients = match direction {
            Direction::Forward => Seconds::ZERO,
            Direction::Backward => costs.elementwise(weights * 2.0),
        };
        [gradients + costs.block(), time * direction.products()]
    }

    /// What that takes the host.
    pub(super) fn block_issue(&self, block: &Block, direction: Direction) -> Issue {
        self.costs.block_issue(block, self.part(), direction)
    }

    /// What a recomputation that keeps the rest of a block does again of it.
    pub(super) fn again(&self, block: &Block, recompute: Recompute) -> Seconds {
        let [again, all] = [block.dense_activations() - block.kept(recompute), block.dense_activations()];
        let priced = self.at_rates(block.recomputed_flops(recompute), again);
        match self.costs.measured_block(block, self.part(), Direction::Forward) {
            // What was measured is the whole block: of it, the part that this is of the whole at the cluster's rates.
            Some([_, measured]) => measured * (priced / self.at_rates(block.dense_flops(), all)),
            None => priced,
        }
    }

    /// What operations and the traffic of activations take at the cluster's rates.
    fn at_rates(&self, flops: Flops, activations: Bytes) -> Seconds {
        self.costs.matrix(flops * self.part())
            + self.costs.elementwise(activations * (self.costs.block_traffic() * self.part()))
    }

    /// The collectives of a block's pass.
    pub(super) fn collectives(&self, block: &Block, direction: Direction) -> Seconds {
        if self.plan.tp == 1 || self.job.scope == Scope::Layer {
            return Seconds::ZERO;
        }
        let mut times = tensor_parallel(block, self.plan, direction).map(|(collective, bytes)| match collective {
            Collective::AllGather => self.costs.all_gather(&self.tensor, bytes),
            _ => self.costs.all_reduce(&self.tensor, bytes),
        });
        let attention = times.next().unwrap_or(Seconds::ZERO);
        attention + times.sum()
    }

    /// Embedding before the first block (`first`), head and loss after the last one (`last`).
    pub(super) fn edges(&self, [first, last]: [bool; 2], direction: Direction) -> Seconds {
        let (costs, model, part) = (self.costs, &self.job.model, self.part());
        if let (true, true, Some(time)) = (first, last, costs.measured_edges(model, part, direction)) {
            return time;
        }
        let edge = |edge: &Edge| costs.matrix(edge.flops * part) + costs.elementwise(edge.activations * (2.0 * part));
        let mut time = Seconds::ZERO;
        if first {
            time += edge(&model.input);
        }
        if last {
            time += edge(&model.output);
        }
        time * direction.products()
    }

    /// What they take the host, where they were measured: both together.
    pub(super) fn edges_issue(&self, ends: [bool; 2], direction: Direction) -> Issue {
        match ends {
            [true, true] => self.costs.edges_issue(&self.job.model, self.part(), direction),
            _ => Issue::default(),
        }
    }

    /// Their collectives. Words are cut over tensor-parallel ranks: the embedding's rows are summed forward, the gradient of
    /// the head's input backward.
    pub(super) fn edge_collectives(&self, [first, last]: [bool; 2], direction: Direction) -> Seconds {
        let sums = match direction {
            Direction::Forward => first,
            Direction::Backward => last,
        };
        if self.plan.tp == 1 || !sums || self.job.model.vocabulary.is_none() {
            return Seconds::ZERO;
        }
        let bytes = self.job.model.blocks[0].boundary_bytes() * self.plan.micro_batch as f64;
        self.costs.all_reduce(&self.tensor, bytes)
    }
}
