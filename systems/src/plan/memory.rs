//! What a rank's memory holds: weights, gradients and optimizer state of its stage, activations of the passes in flight under
//! the rows that really arrived, and exchange buffers.
//!
//! Mixed precision with Adam. What is sharded over replicas follows the plan's ZeRO stage. A rank is fullest at the height of
//! its pipeline or, when its parameters are many and its activations few, while the optimizer steps.

use std::ops::Range;

use workloads::cluster::Activations;
use workloads::model::saved::Runs;
use workloads::model::{Block, HALF, Moe};
use workloads::{Bytes, Cluster};

use crate::plan::job::Job;
use crate::plan::slots::SlotState;
use crate::plan::{Plan, Recompute, Zero};
use crate::program::Layout;

/// A weight in half precision.
const WEIGHT_BYTES: f64 = 2.0;

/// A gradient in half precision, as in the programs of the studies.
const GRADIENT_BYTES: f64 = HALF;

/// Master weight and two Adam moments in single precision.
pub const OPTIMIZER_BYTES: f64 = 4.0 + 8.0;

/// Half-precision weight and gradient, single-precision master weight and two Adam moments.
pub const STATE_BYTES_PER_PARAMETER: f64 = WEIGHT_BYTES + GRADIENT_BYTES + OPTIMIZER_BYTES;

/// While the optimizer steps, every gradient that it reads is held in single precision, too; activations are gone by then
/// (Megatron-LM's mixed-precision optimizer).
const UPDATE_BYTES: f64 = 4.0;

/// What must move with an expert for training to go on unchanged: all of the above but the gradient.
pub const MIGRATED_BYTES_PER_PARAMETER: f64 = WEIGHT_BYTES + OPTIMIZER_BYTES;

/// What a rank sends of a parameter of an expert that moves, where that takes `bytes` in all: weights first, then optimizer state, of both what replicas
/// leave it.
pub fn migrated(plan: &Plan, bytes: f64) -> f64 {
    let weights = bytes.min(WEIGHT_BYTES);
    weights / plan.expert_shares(Zero::Weights) + (bytes - weights) / plan.expert_shares(Zero::Optimizer)
}

/// The half-precision gradient becomes a single-precision one (6), is unscaled and checked (8), Adam reads gradient, master
/// weight and moments and writes the last three (28), and the weight is written back in half precision (6).
pub const OPTIMIZER_TRAFFIC_PER_PARAMETER: f64 = 6.0 + 8.0 + 28.0 + 6.0;

/// Bytes of a parameter's gradient as it is held and summed over replicas: in half precision unless the cluster states another size.
pub fn gradient_bytes(cluster: &Cluster) -> f64 {
    cluster.gradient_bytes().unwrap_or(GRADIENT_BYTES)
}

/// What the optimizer's step adds for a gradient of so many bytes: one that is in single precision need not become it.
fn converted(gradient: f64) -> f64 {
    if gradient < UPDATE_BYTES { UPDATE_BYTES } else { 0.0 }
}

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
        let mut sum = Self::default();
        for chunk in plan.chunks_of(stage) {
            let of_chunk = Self::of_chunk(job, plan, chunk);
            sum.dense += of_chunk.dense;
            sum.gate += of_chunk.gate;
            sum.experts += of_chunk.experts;
            // With one stage and several chunks, there would be one copy; such plans do not exist.
            sum.tied += of_chunk.tied;
        }
        sum
    }

    /// The parameters of a chunk on each rank of its stage.
    pub fn of_chunk(job: &Job, plan: &Plan, chunk: usize) -> Self {
        let model = &job.model;
        let mut sum = Self::default();
        for block in &model.blocks[plan.chunk_blocks(job, chunk)] {
            sum.add(plan, block);
        }
        let (first, last) = (chunk == 0, chunk + 1 == plan.chunks());
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

    /// Adds a block, before tensor parallelism cuts dense parameters.
    fn add(&mut self, plan: &Plan, block: &Block) {
        self.dense += block.dense_parameters() as f64;
        if let Some(moe) = block.moe() {
            self.gate += moe.gate_parameters() as f64;
            self.experts += (moe.experts / plan.ep) as f64 * moe.expert_parameters() as f64;
        }
    }

    /// What each of the ranks that hold the same parameters keeps of what they shard.
    #[must_use]
    pub fn share(&self, plan: &Plan) -> Self {
        Self {
            dense: self.dense / plan.dp as f64,
            gate: self.gate / plan.stage_ranks() as f64,
            experts: self.experts / plan.expert_dp as f64,
            tied: self.tied / plan.dp as f64,
        }
    }

    /// What a rank's optimizer updates.
    #[must_use]
    pub fn updated(&self, plan: &Plan) -> Self {
        if plan.zero >= Zero::Optimizer { self.share(plan) } else { *self }
    }

    /// All of them.
    pub fn total(&self) -> f64 {
        self.dense + self.gate + self.experts + self.tied
    }
}

/// Weights, gradients and optimizer state of a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
struct StateMemory {
    /// While micro-batches run.
    training: Bytes,
    /// While the optimizer steps.
    update: Bytes,
}

impl StateMemory {
    fn new(job: &Job, plan: &Plan, stage: usize) -> Self {
        let parameters = StageParameters::new(job, plan, stage);
        let gradient = gradient_bytes(&job.cluster);
        let held = |from| if plan.zero >= from { parameters.share(plan) } else { parameters }.total();
        let mut training = held(Zero::Weights) * WEIGHT_BYTES
            + held(Zero::Gradients) * gradient
            + held(Zero::Optimizer) * OPTIMIZER_BYTES;
        let (block, words) = (largest_block_parameters(job, plan, stage), words(job, plan, stage));
        if plan.zero >= Zero::Gradients {
            // The gradient of a block is whole until it is reduced, that of words until all of a pass are.
            training += (block + words) * gradient;
        }
        if plan.zero >= Zero::Weights {
            // The block that runs, and the next one, whose weights are gathered meanwhile; words through the pass.
            training += (2.0 * block + words) * WEIGHT_BYTES;
        }
        let update = training + held(Zero::Optimizer) * converted(gradient);
        Self { training: Bytes(training), update: Bytes(update) }
    }
}

/// Parameters of the block of a stage of which a rank has the most.
pub fn largest_block_parameters(job: &Job, plan: &Plan, stage: usize) -> f64 {
    let of_block = |block: &Block| {
        let mut one = StageParameters::default();
        one.add(plan, block);
        one.dense / plan.tp as f64 + one.gate + one.experts
    };
    plan.stage_blocks(job, stage).map(of_block).fold(0.0, f64::max)
}

/// Parameters of the words of a stage on each of its ranks: at the first, and where the head shares them at the last.
fn words(job: &Job, plan: &Plan, stage: usize) -> f64 {
    let (model, chunks) = (&job.model, || plan.chunks_of(stage));
    let tied = model.tied_parameters as f64;
    let words = match tied > 0.0 {
        true if chunks().any(|chunk| chunk == 0 || chunk + 1 == plan.chunks()) => tied,
        false if chunks().any(|chunk| chunk == 0) => model.input.parameters as f64,
        _ => 0.0,
    };
    words / plan.tp as f64
}

/// What the passes in flight make one rank of a stage hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertMemory {
    /// Experts' activations that are kept now.
    kept: Bytes,
    /// The most that was kept at once, with what all ranks of the stage keep alike.
    most: Bytes,
    /// Experts' activations of the layer and micro-batch that has most.
    largest: Bytes,
    /// What is kept of them.
    largest_kept: Bytes,
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
    /// Ranks over which each expert's inner width is cut.
    pub parts: usize,
}

impl HeldRows {
    /// Activations for the layer's backward pass.
    fn activations(&self, moe: &Moe, recompute: Recompute) -> Bytes {
        let rows = moe.cut(self.parts).entry_kept(recompute) * self.received as f64;
        match self.layout {
            // Done again, copies are fetched again, too.
            _ if recompute == Recompute::Full => rows,
            Layout::OneHot { rows: each } => rows + one_hot_stored(moe, self.tokens, each) + self.copied(moe),
            _ => rows + self.copied(moe),
        }
    }

    /// Weights of copies, which stay until the backward pass makes gradients of as many bytes to send home.
    fn copied(&self, moe: &Moe) -> Bytes {
        Bytes(self.copies as f64 * moe.expert_parameters() as f64 * HALF)
    }

    /// What the layer needs besides while it runs.
    fn buffers(&self, moe: &Moe) -> Bytes {
        let exchanged = exchange_buffers(moe, self.sent as f64, self.received as f64) + self.copied(moe);
        match self.layout {
            Layout::OneHot { rows } => exchanged + one_hot_buffers(moe, self.tokens, rows),
            _ => exchanged,
        }
    }
}

impl ExpertMemory {
    /// A layer's forward pass; what of its activations is not recomputed stays.
    pub fn forward(&mut self, moe: &Moe, held: &HeldRows, recompute: Recompute) {
        let kept = held.activations(moe, recompute);
        self.kept += kept;
        self.largest_kept = self.largest_kept.max(kept);
        self.largest = self.largest.max(held.activations(moe, Recompute::None));
        self.buffers = self.buffers.max(held.buffers(moe));
    }

    /// A layer's backward pass frees what its forward pass kept.
    pub fn backward(&mut self, moe: &Moe, held: &HeldRows, recompute: Recompute) {
        self.kept = self.kept - held.activations(moe, recompute);
    }

    /// After a chunk's forward pass, when all ranks of the stage keep `dense` besides.
    pub fn mark(&mut self, dense: Bytes) {
        self.most = self.most.max(self.kept + dense);
    }

    /// Before a chunk's forward pass that goes block by block beside another micro-batch's backward pass, whose blocks make room
    /// for its own: one block more is kept, `dense` being with it.
    pub fn mark_beside(&mut self, dense: Bytes) {
        self.most = self.most.max(self.kept + self.largest_kept + dense);
    }
}

/// What all ranks of a stage hold alike.
#[derive(Clone, Debug, PartialEq)]
pub struct StageMemory {
    state: StateMemory,
    /// `[chunk of the stage]`: activations of one micro-batch without the experts' rows.
    kept: Vec<Bytes>,
    /// The same of the block that keeps most.
    block: Bytes,
    /// What the backward pass of one block computes again.
    recomputed: Bytes,
    recompute: Recompute,
}

impl StageMemory {
    /// Of `stage`.
    pub fn new(job: &Job, plan: &Plan, stage: usize, recompute: Recompute) -> Self {
        let kept = |chunk| kept_activations(job, plan, chunk, recompute);
        let again = |block: &Block| {
            let all = of_block(job, plan, block, Recompute::None);
            if recompute == Recompute::Full { all } else { all - of_block(job, plan, block, recompute) }
        };
        let part = samples(job, plan);
        let most =
            |of: &dyn Fn(&Block) -> Bytes| plan.stage_blocks(job, stage).map(of).fold(Bytes::ZERO, Bytes::max) * part;
        let (recomputed, block) = (most(&again), most(&|block| of_block(job, plan, block, recompute)));
        let state = StateMemory::new(job, plan, stage);
        Self { state, kept: plan.chunks_of(stage).map(kept).collect(), block, recomputed, recompute }
    }

    /// With experts' slots as they are, instead of an equal part of the experts, `equal` parameters, on every rank.
    #[must_use]
    pub fn with_slots(mut self, plan: &Plan, equal: f64, slots: &SlotState) -> Self {
        let more = |from| (slots.parameters - equal) / plan.expert_shares(from);
        let state = more(Zero::Weights) * WEIGHT_BYTES
            + more(Zero::Gradients) * slots.gradient
            + more(Zero::Optimizer) * OPTIMIZER_BYTES;
        self.state.training += Bytes(state) + slots.bytes;
        self.state.update += Bytes(state + more(Zero::Optimizer) * converted(slots.gradient)) + slots.bytes;
        self
    }

    /// Activations of one micro-batch in a chunk of the stage, without the experts' rows.
    pub fn kept(&self, chunk: usize) -> Bytes {
        self.kept[chunk]
    }

    /// What one more block of a micro-batch keeps, without the experts' rows.
    pub fn block(&self) -> Bytes {
        self.block
    }

    /// The peak of a rank that the passes in flight made hold `experts`.
    pub fn peak(&self, experts: &ExpertMemory) -> Bytes {
        let rows = if self.recompute == Recompute::Full { experts.largest } else { Bytes::ZERO };
        let training = self.state.training + experts.most + self.recomputed + rows + experts.buffers;
        training.max(self.state.update)
    }

    /// What the fullest rank of a stage holds at least with `passes` of a chunk in flight, whatever the routing: where nothing
    /// is dropped, somebody has as many rows as the mean.
    pub fn least(job: &Job, plan: &Plan, stage: usize, passes: usize) -> Bytes {
        let memory = Self::new(job, plan, stage, plan.recompute);
        let rows = |moe: &Moe| match job.gate.capacity_factor() {
            None => moe.entry_kept(plan.recompute) * (plan.tokens(moe) * job.top_k()) as f64,
            Some(_) => Bytes::ZERO,
        };
        let of_chunk = |(&dense, chunk): (&Bytes, usize)| {
            let moes = job.model.blocks[plan.chunk_blocks(job, chunk)].iter().filter_map(Block::moe);
            dense + moes.map(rows).sum()
        };
        let chunks = memory.kept.iter().zip(plan.chunks_of(stage)).map(of_chunk);
        let smallest = chunks.reduce(Bytes::min).unwrap_or(Bytes::ZERO);
        (memory.state.training + smallest * passes as f64 + memory.recomputed).max(memory.state.update)
    }
}

/// What the backward pass of a chunk finds of one micro-batch, without the experts' rows. The output edge is never recomputed,
/// the input edge with the first block.
fn kept_activations(job: &Job, plan: &Plan, chunk: usize, recompute: Recompute) -> Bytes {
    let blocks: Range<usize> = plan.chunk_blocks(job, chunk);
    let mut sum: Bytes = job.model.blocks[blocks].iter().map(|block| of_block(job, plan, block, recompute)).sum();
    let [input, output] = at_edges(job, plan, recompute);
    if chunk == 0 {
        sum += input;
    }
    if chunk + 1 == plan.chunks() {
        sum += output;
    }
    sum * samples(job, plan)
}

/// The same before the first block and behind the last.
fn at_edges(job: &Job, plan: &Plan, recompute: Recompute) -> [Bytes; 2] {
    let model = &job.model;
    let tokens = model.blocks.first().map_or(0, |block| block.tokens) as f64;
    match (job.cluster.program.activations, recompute) {
        (Activations::Counted, _) => {
            [model.saved_by_embedding(), model.saved_by_head(trainer(plan))].map(|saved| saved.bytes() * tokens)
        }
        (_, Recompute::Full) => [Bytes::ZERO, model.output.activations],
        _ => [model.input.activations, model.output.activations],
    }
}

/// Samples of a micro-batch whose activations a rank keeps: tensor parallelism cuts all that is published, and of what is counted some.
fn samples(job: &Job, plan: &Plan) -> f64 {
    match job.cluster.program.activations {
        Activations::Published => plan.micro_batch as f64 / plan.tp as f64,
        Activations::Counted => plan.micro_batch as f64,
    }
}

/// What the backward pass finds of a block and a sample, without the experts' rows.
fn of_block(job: &Job, plan: &Plan, block: &Block, recompute: Recompute) -> Bytes {
    match (job.cluster.program.activations, recompute) {
        (Activations::Counted, Recompute::None) => {
            job.model.saved_in(block, trainer(plan)).bytes() * block.tokens as f64
        }
        (Activations::Counted, Recompute::Full) => block.boundary_bytes(),
        // The trainer recomputes nothing selectively: as published, all of which tensor parallelism cuts.
        (Activations::Counted, Recompute::Selective) => block.kept(recompute) / plan.tp as f64,
        (Activations::Published, _) => block.kept(recompute),
    }
}

fn trainer(plan: &Plan) -> Runs {
    Runs { kernels: true, tp: plan.tp }
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

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::{Gate, Model};

    #[test]
    fn few_activations_are_less_than_the_update_takes() {
        let moe = Moe::plain(1, 10, 20, 1);
        let mut experts = ExpertMemory::default();
        let held = HeldRows { tokens: 1, layout: Layout::Ragged, sent: 5, received: 3, copies: 2, parts: 1 };
        experts.forward(&moe, &held, Recompute::None);
        experts.mark(Bytes(7.0));
        // Two copies of 430 parameters, and their gradients.
        let rows = moe.entry_activations().0 * 3.0 + exchange_buffers(&moe, 5.0, 3.0).0 + 2.0 * 2.0 * 430.0 * 2.0;
        let peak = |parameters: f64| {
            let state = StateMemory { training: Bytes(16.0 * parameters), update: Bytes(20.0 * parameters) };
            let recompute = Recompute::None;
            StageMemory { state, kept: vec![Bytes(7.0)], block: Bytes::ZERO, recomputed: Bytes::ZERO, recompute }
                .peak(&experts)
                .0
        };
        assert_eq!(peak(1.0), 16.0 + 7.0 + rows);
        assert_eq!(peak(1e6), 20e6);
    }

    /// The worst window counts: two full micro-batches in a row hold more than twice the mean of a full and an empty one.
    #[test]
    fn what_is_freed_is_not_held() {
        let moe = Moe::plain(1, 10, 20, 1);
        let rows = |received| HeldRows { tokens: 1, layout: Layout::Ragged, sent: 0, received, copies: 0, parts: 1 };
        let mut experts = ExpertMemory::default();
        for (full, empty) in [(rows(8), rows(0)), (rows(1), rows(2))] {
            experts.forward(&moe, &full, Recompute::None);
            experts.mark(Bytes::ZERO);
            experts.forward(&moe, &empty, Recompute::None);
            experts.mark(Bytes::ZERO);
            experts.backward(&moe, &full, Recompute::None);
            experts.backward(&moe, &empty, Recompute::None);
        }
        assert_eq!(experts.most, moe.entry_activations() * 8.0);
        assert_eq!(experts.kept, Bytes::ZERO);
    }

    /// Rajbhandari et al. 2020, figure 1: 16 bytes a parameter become 4 + 12 / N, 2 + 14 / N and 16 / N; here with the blocks and the words
    /// in use.
    #[test]
    fn zero_shards_state_over_replicas() {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 8, Gate::NoDrop, 16);
        let plan = Plan { dp: 8, expert_dp: 8, ..Plan::default() };
        let p = StageParameters::new(&job, &plan, 0).total();
        let (block, words) = (largest_block_parameters(&job, &plan, 0), job.model.tied_parameters as f64);
        assert!(words > 0.0);
        let bytes = |zero| StateMemory::new(&job, &Plan { zero, ..plan }, 0);
        assert_eq!(bytes(Zero::Off).training, Bytes(16.0 * p));
        assert_eq!(bytes(Zero::Off).update, Bytes(20.0 * p));
        let close = |zero, expected: f64| assert!((bytes(zero).training.0 / expected - 1.0).abs() < 1e-12);
        close(Zero::Optimizer, p * (4.0 + 12.0 / 8.0));
        close(Zero::Gradients, p * (2.0 + 14.0 / 8.0) + 2.0 * (block + words));
        close(Zero::Weights, p * 16.0 / 8.0 + 6.0 * block + 4.0 * words);
    }

    /// A slot more on every rank is an expert more, whatever a gradient takes; where replicas keep a part each, a part of one.
    #[test]
    fn slots_hold_gradients_as_all_parameters_do() {
        for (gradient, training, update) in [(2.0, 16.0, 20.0), (4.0, 18.0, 18.0)] {
            let state = StateMemory { training: Bytes(training * 100.0), update: Bytes(update * 100.0) };
            let memory = StageMemory {
                state,
                kept: Vec::new(),
                block: Bytes::ZERO,
                recomputed: Bytes::ZERO,
                recompute: Recompute::None,
            };
            let slots = SlotState { parameters: 15.0, gradient, bytes: Bytes(7.0) };
            // How many parameters more there are of weights, of gradients and of what only the optimizer has.
            for (zero, [weights, gradients, optimizer]) in [
                (Zero::Off, [5.0, 5.0, 5.0]),
                (Zero::Optimizer, [5.0, 5.0, 1.0]),
                (Zero::Gradients, [5.0, 1.0, 1.0]),
                (Zero::Weights, [1.0, 1.0, 1.0]),
            ] {
                let plan = Plan { expert_dp: 5, zero, ..Plan::default() };
                let found = memory.clone().with_slots(&plan, 10.0, &slots).state;
                let more = weights * 2.0 + gradients * gradient + optimizer * 12.0;
                let converted = optimizer * (update - training);
                let expected = StateMemory {
                    training: Bytes(training * 100.0 + more + 7.0),
                    update: Bytes(update * 100.0 + more + converted + 7.0),
                };
                assert_eq!(found, expected, "{zero:?}");
            }
        }
    }

    #[test]
    fn recomputation_keeps_inputs_alone() {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 8, Gate::NoDrop, 16);
        let plan = Plan { dp: 8, expert_dp: 8, ..Plan::default() };
        let kept = |recompute| StageMemory::new(&job, &plan, 0, recompute).kept(0);
        let all: Bytes = job.model.blocks.iter().map(Block::dense_activations).sum();
        let inputs: Bytes = job.model.blocks.iter().map(Block::boundary_bytes).sum();
        let edges = job.model.input.activations + job.model.output.activations;
        assert_eq!(kept(Recompute::None), all + edges);
        assert!(kept(Recompute::Selective) < all + edges);
        assert_eq!(kept(Recompute::Full), inputs + job.model.output.activations);
    }
}
