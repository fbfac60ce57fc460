//! What a rank's memory holds: weights, gradients and optimizer state of its stage, activations of the micro-batches in
//! flight under the rows that really arrived, and exchange buffers.
//!
//! Mixed precision with Adam, no sharding of optimizer state. A rank is fullest at the height of its pipeline or, when its
//! parameters are many and its activations few, while the optimizer steps.

use std::ops::Range;

use workloads::Bytes;
use workloads::model::{HALF, Moe};

use crate::plan::Plan;
use crate::plan::job::Job;
use crate::program::Layout;

/// Half-precision weight and gradient, single-precision master weight and two Adam moments.
pub const STATE_BYTES_PER_PARAMETER: f64 = 2.0 + 2.0 + 4.0 + 8.0;

/// While the optimizer steps, every gradient is held in single precision, too; activations are gone by then (Megatron-LM's
/// mixed-precision optimizer).
pub const UPDATE_BYTES_PER_PARAMETER: f64 = STATE_BYTES_PER_PARAMETER + 4.0;

/// What must move with an expert for training to go on unchanged: all of the above but the gradient.
pub const MIGRATED_BYTES_PER_PARAMETER: f64 = 2.0 + 4.0 + 8.0;

/// The half-precision gradient becomes a single-precision one (6), is unscaled and checked (8), Adam reads gradient, master
/// weight and moments and writes the last three (28), and the weight is written back in half precision (6).
pub const OPTIMIZER_TRAFFIC_PER_PARAMETER: f64 = 6.0 + 8.0 + 28.0 + 6.0;

/// Parameters of one stage on one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StageParameters {
    /// Synchronised over the data-parallel group.
    pub dense: f64,
    /// Gates, synchronised over the whole stage.
    pub gate: f64,
    /// Local experts, synchronised over their replicas.
    pub experts: f64,
    /// Shared by the first and the last stage.
    pub tied: f64,
}

impl StageParameters {
    /// The parameters of `stage` on each of its ranks.
    pub fn new(job: &Job, plan: &Plan, stage: usize) -> Self {
        let model = &job.model;
        let mut sum = Self::default();
        for block in &model.blocks[plan.stage_blocks(job, stage)] {
            sum.dense += block.dense_parameters() as f64;
            if let Some(moe) = block.moe() {
                sum.gate += moe.gate_parameters() as f64;
                sum.experts += (moe.experts / plan.ep) as f64 * moe.expert_parameters() as f64;
            }
        }
        let (first, last) = (stage == 0, stage + 1 == plan.pp);
        if first {
            sum.dense += model.input.parameters as f64;
        }
        if last {
            sum.dense += model.output.parameters as f64;
        }
        if first || last {
            sum.tied = model.tied_parameters as f64;
        }
        sum.dense /= plan.tp as f64;
        sum.tied /= plan.tp as f64;
        sum
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.dense + self.gate + self.experts + self.tied
    }
}

/// What the MoE layers of a stage make one of its ranks hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertMemory {
    /// Activations, summed over layers and micro-batches.
    stored: Bytes,
    /// Activations of the layer and micro-batch that has most.
    largest: Bytes,
    /// Exchange buffers of the layer and micro-batch that has most.
    buffers: Bytes,
}

/// What a rank holds of one layer and micro-batch.
#[derive(Clone, Copy, Debug)]
pub struct HeldRows {
    /// Tokens that it brings.
    pub tokens: usize,
    /// How its entries become rows.
    pub layout: Layout,
    /// Rows that it sends.
    pub sent: u64,
    /// Rows that it receives.
    pub received: u64,
    /// Experts of other ranks whose weights it has for this micro-batch.
    pub copies: usize,
}

impl ExpertMemory {
    /// Adds one layer and micro-batch.
    pub fn add(&mut self, moe: &Moe, held: &HeldRows) {
        let &HeldRows { tokens, layout, sent, received, copies } = held;
        let mut stored = moe.entry_activations() * received as f64;
        let mut buffers = exchange_buffers(moe, sent as f64, received as f64);
        // Weights stay until the backward pass, which makes gradients of as many bytes to send home.
        let copied = Bytes(copies as f64 * moe.expert_parameters() as f64 * HALF);
        stored += copied;
        buffers += copied;
        if let Layout::OneHot { rows } = layout {
            stored += one_hot_stored(moe, tokens, rows);
            buffers += one_hot_buffers(moe, tokens, rows);
        }
        self.stored += stored;
        self.largest = self.largest.max(stored);
        self.buffers = self.buffers.max(buffers);
    }
}

/// What all ranks of a stage hold alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageMemory {
    /// Parameters of a rank.
    parameters: f64,
    /// Activations without the experts' rows.
    dense: Bytes,
    /// Micro-batches in flight.
    held: f64,
    recomputes: bool,
}

impl StageMemory {
    /// Of `stage` at its fullest; `recomputes` as for [`crate::Policy::recomputes`].
    pub fn new(job: &Job, plan: &Plan, stage: usize, recomputes: bool) -> Self {
        let held = in_flight(plan.pp, stage, plan.micro_batches(job)) as f64;
        let dense = if recomputes {
            block_inputs(job, plan, stage) * held + largest_block(job, plan, stage)
        } else {
            dense_activations(job, plan, stage) * held
        };
        Self { parameters: StageParameters::new(job, plan, stage).total(), dense, held, recomputes }
    }

    /// The peak of a rank whose MoE layers made it hold `experts` in `micro_batches` of them.
    pub fn peak(&self, experts: &ExpertMemory, micro_batches: usize) -> Bytes {
        let rows = if self.recomputes { experts.largest } else { experts.stored * (self.held / micro_batches as f64) };
        let training = Bytes(self.parameters * STATE_BYTES_PER_PARAMETER) + self.dense + rows + experts.buffers;
        training.max(Bytes(self.parameters * UPDATE_BYTES_PER_PARAMETER))
    }
}

/// Stored activations of one micro-batch on a rank of `stage`, without the experts' rows.
pub fn dense_activations(job: &Job, plan: &Plan, stage: usize) -> Bytes {
    let blocks: Range<usize> = plan.stage_blocks(job, stage);
    let mut sum: Bytes = job.model.blocks[blocks].iter().map(|block| block.dense_activations()).sum();
    if stage == 0 {
        sum += job.model.input.activations;
    }
    if stage + 1 == plan.pp {
        sum += job.model.output.activations;
    }
    sum * (plan.micro_batch as f64 / plan.tp as f64)
}

/// Inputs of the blocks of `stage` for one micro-batch: what a rank stores when it recomputes the rest. The output edge
/// is not recomputed.
pub fn block_inputs(job: &Job, plan: &Plan, stage: usize) -> Bytes {
    let blocks = plan.stage_blocks(job, stage);
    let mut sum: Bytes = job.model.blocks[blocks].iter().map(|block| block.boundary_bytes()).sum();
    if stage + 1 == plan.pp {
        sum += job.model.output.activations;
    }
    sum * (plan.micro_batch as f64 / plan.tp as f64)
}

/// Activations of the largest block of `stage` for one micro-batch, without the experts' rows: what a rank that
/// recomputes holds besides.
pub fn largest_block(job: &Job, plan: &Plan, stage: usize) -> Bytes {
    let blocks = plan.stage_blocks(job, stage);
    let largest = job.model.blocks[blocks].iter().map(|block| block.dense_activations()).fold(Bytes::ZERO, Bytes::max);
    largest * (plan.micro_batch as f64 / plan.tp as f64)
}

/// What a one-hot layout of `rows` stores for the backward pass: mask and weights in half precision, `[S, E, rows]` each.
pub fn one_hot_stored(moe: &Moe, tokens: usize, rows: u32) -> Bytes {
    Bytes(tokens as f64 * moe.experts as f64 * f64::from(rows) * 2.0 * HALF)
}

/// What it holds besides while the layer runs forward: the weights in single precision, the mask in bytes.
pub fn one_hot_buffers(moe: &Moe, tokens: usize, rows: u32) -> Bytes {
    Bytes(tokens as f64 * moe.experts as f64 * f64::from(rows) * (4.0 + 1.0))
}

/// Send and receive buffers of one MoE layer on a rank that sends `sent` rows and receives `received`.
pub fn exchange_buffers(moe: &Moe, sent: f64, received: f64) -> Bytes {
    Bytes(2.0 * (sent + received) * moe.width as f64 * HALF)
}

/// Micro-batches whose activations a stage holds at its fullest under 1F1B.
pub fn in_flight(pp: usize, stage: usize, micro_batches: usize) -> usize {
    (pp - stage).min(micro_batches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_activations_are_less_than_the_update_takes() {
        let moe = Moe::plain(1, 10, 20, 1);
        let mut experts = ExpertMemory::default();
        experts.add(&moe, &HeldRows { tokens: 1, layout: Layout::Ragged, sent: 5, received: 3, copies: 2 });
        // Two copies of 430 parameters, and their gradients.
        let rows = moe.entry_activations().0 * 3.0 + exchange_buffers(&moe, 5.0, 3.0).0 + 2.0 * 2.0 * 430.0 * 2.0;
        let peak = |parameters| {
            let stage = StageMemory { parameters, dense: Bytes(7.0), held: 1.0, recomputes: false };
            stage.peak(&experts, 1).0
        };
        assert_eq!(peak(1.0), 16.0 + 7.0 + rows);
        assert_eq!(peak(1e6), 20e6);
    }
}
