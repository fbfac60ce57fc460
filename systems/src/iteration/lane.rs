//! One expert-parallel group's pipeline, stage by stage under 1F1B: when each rank's passes run, what they are made of, and
//! what its memory holds at the most.

use std::ops::Range;

use workloads::model::{Block, Edge, HALF, Moe};
use workloads::{Bytes, Seconds};

use crate::iteration::schedule::{Work, one_forward_one_backward};
use crate::iteration::timeline::{Activity, Recorder, Span};
use crate::iteration::{Evaluation, Peak};
use crate::plan::job::{Job, Scope};
use crate::plan::memory::{ExpertMemory, HeldRows, StageMemory};
use crate::price::ledger::{Ledger, Phase};
use crate::price::network::Group;
use crate::price::streams::{Streams, TimedPass};
use crate::price::{LayerPrice, Scratch, Setting};
use crate::program::routing::RoutingCounts;
use crate::program::{Direction, LayerProgram};

/// One lane: the group with the same number on every stage.
pub(super) struct Lane<'a> {
    evaluation: &'a Evaluation<'a>,
    micro_batches: usize,
    stages: Vec<StageRun<'a>>,
}

/// What all lanes of an evaluation add to, and memory that they use one after the other.
pub(super) struct Workspace {
    pub(super) routed: Routed,
    /// The micro-batch at hand.
    counts: RoutingCounts,
    scratch: Scratch,
    streams: Streams,
}

/// What became of the gate's choices.
pub(super) struct Routed {
    pub(super) entries: u64,
    pub(super) dropped: u64,
    pub(super) shadowed: u64,
    /// `[moe layer][expert]` entries.
    pub(super) loads: Vec<Vec<u64>>,
}

/// One stage of a lane while it runs.
struct StageRun<'a> {
    evaluation: &'a Evaluation<'a>,
    stage: usize,
    group: usize,
    blocks: Range<usize>,
    /// MoE layers of the stages before.
    first_layer: usize,
    ranks: Range<usize>,
    place: Group,
    order: Vec<Work>,
    next: usize,
    /// The pass that it is in, and the block.
    work: Option<Work>,
    block: Option<usize>,
    /// `[rank]`.
    clock: Vec<Seconds>,
    ledger: Ledger,
    /// `[micro-batch][rank]`: when the input is there.
    inputs: Vec<Option<Vec<Seconds>>>,
    /// `[micro-batch][rank]`: when the gradient of the output is there.
    gradients: Vec<Option<Vec<Seconds>>>,
    /// `[micro-batch][moe layer of the stage]`: kept from the forward pass for the backward pass.
    layers: Vec<Vec<(LayerProgram, LayerPrice)>>,
    /// `[rank]`.
    experts: Vec<ExpertMemory>,
    recorder: Recorder,
}

impl Workspace {
    pub(super) fn new(job: &Job) -> Self {
        let loads = job.model.moe_layers().map(|moe| vec![0; moe.experts]).collect();
        Self {
            routed: Routed { entries: 0, dropped: 0, shadowed: 0, loads },
            counts: RoutingCounts::new(1, Vec::new()),
            scratch: Scratch::default(),
            streams: Streams::default(),
        }
    }
}

impl<'a> Lane<'a> {
    pub(super) fn new(evaluation: &'a Evaluation<'a>, group: usize, micro_batches: usize, record: bool) -> Self {
        let stage = |stage| StageRun::new(evaluation, stage, group, micro_batches, Recorder::new(record));
        Self { evaluation, micro_batches, stages: (0..evaluation.plan.pp).map(stage).collect() }
    }

    /// Runs every stage's work as soon as what it needs is there.
    pub(super) fn run(&mut self, workspace: &mut Workspace) {
        let mut left: usize = self.stages.iter().map(|stage| stage.order.len()).sum();
        while left > 0 {
            for index in 0..self.stages.len() {
                while self.stages[index].can_run() {
                    self.step(index, workspace);
                    left -= 1;
                }
            }
        }
    }

    /// Runs a stage's next pass and hands its result to the stage that waits for it.
    fn step(&mut self, index: usize, workspace: &mut Workspace) {
        let last = index + 1 == self.stages.len();
        let stage = &mut self.stages[index];
        match stage.start_next() {
            Work::Forward(m) if last => {
                stage.forward(m, workspace);
                stage.gradients[m] = Some(stage.clock.clone());
            }
            Work::Forward(m) => {
                stage.forward(m, workspace);
                let arrivals = stage.send_to(index + 1);
                self.stages[index + 1].inputs[m] = Some(arrivals);
            }
            Work::Backward(m) => {
                stage.backward(m, workspace);
                if index > 0 {
                    let arrivals = stage.send_to(index - 1);
                    self.stages[index - 1].gradients[m] = Some(arrivals);
                }
            }
        }
    }

    /// Each stage's clocks, `[rank]`, and what its ranks' time went to.
    pub(super) fn stages(&self) -> impl Iterator<Item = (&[Seconds], &Ledger)> {
        self.stages.iter().map(|stage| (stage.clock.as_slice(), &stage.ledger))
    }

    /// Time between micro-batches: that of the stage which is busy longest.
    pub(super) fn pace(&self) -> Seconds {
        let runs = (self.evaluation.plan.ep * self.micro_batches) as f64;
        let busy = self.stages.iter().map(|stage| stage.ledger.total() - stage.ledger.of(Phase::Bubble));
        busy.fold(Seconds::ZERO, Seconds::max) / runs
    }

    /// Raises `peak` to that of the lane's fullest rank.
    pub(super) fn raise(&self, peak: &mut Peak) {
        let e = self.evaluation;
        for stage in &self.stages {
            let memory = StageMemory::new(e.job, e.plan, stage.stage, e.policy.recomputes());
            for (rank, experts) in stage.ranks.clone().zip(&stage.experts) {
                let bytes = memory.peak(experts, self.micro_batches);
                if bytes > peak.bytes {
                    *peak = Peak { rank, bytes };
                }
            }
        }
    }

    /// What each stage has shown.
    pub(super) fn into_recorders(self) -> impl Iterator<Item = Recorder> {
        self.stages.into_iter().map(|stage| stage.recorder)
    }
}

impl<'a> StageRun<'a> {
    fn new(
        evaluation: &'a Evaluation<'a>,
        stage: usize,
        group: usize,
        micro_batches: usize,
        mut recorder: Recorder,
    ) -> Self {
        let Evaluation { job, plan, costs, .. } = *evaluation;
        let ranks = plan.expert_group(stage, group);
        let charge = evaluation.charges[stage];
        let gathered = recorder.together(ranks.clone(), Activity::Gathering, Seconds::ZERO, charge.gathering);
        let decided = recorder.together(ranks.clone(), Activity::Decision, gathered, charge.decision);
        let migrated = recorder.together(ranks.clone(), Activity::Migration, decided, charge.migration);
        let mut inputs = vec![None; micro_batches];
        if stage == 0 {
            inputs.fill(Some(vec![Seconds::ZERO; plan.ep]));
        }
        let blocks = plan.stage_blocks(job, stage);
        Self {
            evaluation,
            stage,
            group,
            first_layer: job.model.blocks[..blocks.start].iter().filter_map(Block::moe).count(),
            blocks,
            place: costs.group(ranks.clone(), 1),
            ranks,
            order: one_forward_one_backward(plan.pp, stage, micro_batches),
            next: 0,
            work: None,
            block: None,
            clock: vec![migrated; plan.ep],
            ledger: Ledger::default(),
            inputs,
            gradients: vec![None; micro_batches],
            layers: vec![Vec::new(); micro_batches],
            experts: vec![ExpertMemory::default(); plan.ep],
            recorder,
        }
    }

    /// When the ranks have what a pass starts from, if they have it.
    fn ready(&mut self, work: Work) -> &mut Option<Vec<Seconds>> {
        match work {
            Work::Forward(m) => &mut self.inputs[m],
            Work::Backward(m) => &mut self.gradients[m],
        }
    }

    fn can_run(&mut self) -> bool {
        self.order.get(self.next).copied().is_some_and(|work| self.ready(work).is_some())
    }

    /// Moves on to the next pass, and the clocks to when its ranks have what it starts from.
    fn start_next(&mut self) -> Work {
        let work = self.order[self.next];
        self.next += 1;
        self.work = Some(work);
        let ready = self.ready(work).take().expect("a pass is started once it can run");
        for (clock, ready) in self.clock.iter_mut().zip(ready) {
            if ready > *clock {
                self.ledger.add(Phase::Bubble, ready - *clock);
                *clock = ready;
            }
        }
        work
    }

    /// Sends what each rank has now to its peer on another stage; returns when it is there. Sends block.
    fn send_to(&mut self, stage: usize) -> Vec<Seconds> {
        let Evaluation { job, plan, costs, .. } = *self.evaluation;
        let boundary = plan.stage_blocks(job, self.stage.max(stage)).start;
        let bytes = job.model.blocks[boundary].boundary_bytes() * (plan.micro_batch as f64 / plan.tp as f64);
        let peers = self.ranks.clone().zip(plan.expert_group(stage, self.group));
        let slowest = peers.map(|(from, to)| costs.send(from, to, bytes)).fold(Seconds::ZERO, Seconds::max);
        self.advance(Activity::Boundary, [slowest]);
        self.clock.clone()
    }

    fn forward(&mut self, m: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let mut layer = self.first_layer;
        for b in self.blocks.clone() {
            let block = &e.job.model.blocks[b];
            self.block = Some(b);
            self.dense(block, Direction::Forward);
            if let Some(moe) = block.moe() {
                self.moe_forward(m, moe, layer, workspace);
                layer += 1;
            }
        }
        self.block = None;
        self.edges(Direction::Forward);
    }

    fn moe_forward(&mut self, m: usize, moe: &Moe, layer: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let Workspace { routed, counts, scratch, streams } = workspace;
        self.count(m, moe, layer, counts);
        let placement = &e.placements[layer];
        let program = e.policy.program(layer, counts, placement);
        let setting = Setting { moe, tokens: e.plan.tokens(moe), place: &self.place, costs: e.costs };
        let priced = setting.price_in(scratch, &program, counts, placement);
        counts.add_loads(&mut routed.loads[layer]);
        let chosen = (setting.tokens * e.job.top_k() * counts.ranks()) as u64;
        routed.entries += priced.entries;
        routed.dropped += chosen.saturating_sub(priced.entries);
        routed.shadowed += program.shadowed.len() as u64;
        let rows = priced.laid_out_rows.iter().zip(&priced.computed_rows);
        for (rank, (experts, (&sent, &received))) in self.experts.iter_mut().zip(rows).enumerate() {
            let copies = program.shadowed.iter().filter(|&&expert| placement.rank_of(expert) != rank).count();
            experts.add(moe, &HeldRows { tokens: setting.tokens, layout: program.layout, sent, received, copies });
        }
        self.pass(&priced.pass(&program, Direction::Forward), streams);
        self.layers[m].push((program, priced));
    }

    /// Entries of one micro-batch, after the gate's capacity and the system's restriction.
    fn count(&self, m: usize, moe: &Moe, layer: usize, counts: &mut RoutingCounts) {
        let Evaluation { job, plan, policy, batch, .. } = *self.evaluation;
        let tokens = plan.tokens(moe);
        counts.clear(plan.ep, moe.experts);
        for rank in 0..plan.ep {
            let position = self.group * plan.ep + rank;
            let row = counts.row_mut(rank);
            for sample in plan.samples(job, position, m) {
                for (sum, &count) in row.iter_mut().zip(batch.chunk(layer, sample)) {
                    *sum += count;
                }
            }
            if plan.tp > 1 {
                slice_for(row, position % plan.tp, plan.tp);
            }
            job.gate.admit(row, tokens, job.top_k(), &job.gate_statistics);
        }
        policy.restrict(counts, self.place.nodes());
    }

    fn backward(&mut self, m: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        self.edges(Direction::Backward);
        for b in self.blocks.clone().rev() {
            let block = &e.job.model.blocks[b];
            self.block = Some(b);
            let layer = block.moe().map(|_| self.layers[m].pop().expect("the forward pass has priced it"));
            if e.policy.recomputes() {
                self.dense(block, Direction::Forward);
                if let Some((program, priced)) = &layer {
                    self.pass(&priced.pass(program, Direction::Forward), &mut workspace.streams);
                }
            }
            if let Some((program, priced)) = layer {
                self.pass(&priced.pass(&program, Direction::Backward), &mut workspace.streams);
                workspace.scratch.reuse(priced);
            }
            self.dense(block, Direction::Backward);
        }
        self.block = None;
    }

    /// All ranks do the same, in parts one after the other.
    fn advance<const PARTS: usize>(&mut self, activity: Activity, parts: [Seconds; PARTS]) {
        let (block, work) = (self.block, self.work);
        for (rank, clock) in self.ranks.clone().zip(&mut self.clock) {
            let start = *clock;
            parts.iter().for_each(|&part| *clock += part);
            self.recorder.record(Span { rank, activity, block, work, start, end: *clock });
        }
        for part in parts {
            self.ledger.add(activity.phase(), part * self.clock.len() as f64);
        }
    }

    /// One pass of a layer program.
    fn pass(&mut self, pass: &TimedPass, streams: &mut Streams) {
        let Self { ranks, block, work, clock, ledger, recorder, .. } = self;
        let (first, block, work) = (ranks.start, *block, *work);
        streams.run(pass, clock, ledger, |op, starts, ends| {
            if recorder.is_on() {
                for (position, (&start, &end)) in starts.iter().zip(ends).enumerate() {
                    recorder.record(Span {
                        rank: first + position,
                        activity: Activity::Op(op),
                        block,
                        work,
                        start,
                        end,
                    });
                }
            }
        });
    }

    /// Everything of a block but its MoE layer.
    fn dense(&mut self, block: &Block, direction: Direction) {
        let Evaluation { job, plan, costs, .. } = *self.evaluation;
        if job.scope == Scope::Layer {
            return;
        }
        let part = plan.micro_batch as f64 / plan.tp as f64;
        let weights = Bytes(block.dense_parameters() as f64 * HALF / plan.tp as f64);
        let time = costs.matrix(block.dense_flops() * part)
            + costs.elementwise(block.dense_activations() * (2.0 * part) + weights);
        // Weights are read forward; backward they are read again, and their gradients read, added to and written.
        let gradients = match direction {
            Direction::Forward => Seconds::ZERO,
            Direction::Backward => costs.elementwise(weights * 2.0),
        };
        self.advance(Activity::Block, [gradients + costs.block(), time * direction.products()]);
        if plan.tp > 1 {
            let group = costs.group(self.ranks.start..self.ranks.start + plan.tp, 1);
            let bytes = block.boundary_bytes() * plan.micro_batch as f64;
            // One all-reduce a pass for attention (of its output, or of its input's gradient) and one for a dense network
            // (Shoeybi et al. 2019). Around experts each rank takes its slice of the tokens instead: their outputs are
            // gathered in the forward pass, the slices' gradients in the backward pass (as in FastMoE).
            let reduced = costs.all_reduce(&group, bytes);
            let network = if block.moe().is_some() { costs.all_gather(&group, bytes) } else { reduced };
            self.advance(Activity::TensorParallel, [reduced + network]);
        }
    }

    /// Embedding on the first stage, head and loss on the last.
    fn edges(&mut self, direction: Direction) {
        let Evaluation { job, plan, costs, .. } = *self.evaluation;
        let model = &job.model;
        let part = plan.micro_batch as f64 / plan.tp as f64;
        let edge = |edge: &Edge| costs.matrix(edge.flops * part) + costs.elementwise(edge.activations * (2.0 * part));
        let (first, last) = (self.blocks.start == 0, self.blocks.end == model.blocks.len());
        let mut time = Seconds::ZERO;
        if first {
            time += edge(&model.input);
        }
        if last {
            time += edge(&model.output);
        }
        self.advance(Activity::Edge, [time * direction.products()]);
        // Words are cut over tensor-parallel ranks: the embedding's rows are summed forward, the gradient of the head's
        // input backward.
        let sums = match direction {
            Direction::Forward => first,
            Direction::Backward => last,
        };
        if plan.tp > 1 && sums && model.vocabulary.is_some() {
            let group = costs.group(self.ranks.start..self.ranks.start + plan.tp, 1);
            let bytes = model.blocks[0].boundary_bytes() * plan.micro_batch as f64;
            self.advance(Activity::TensorParallel, [costs.all_reduce(&group, bytes)]);
        }
    }
}

/// The part of a row of counts that falls to tensor-parallel rank `index` of `tp`; the parts add up to the row.
fn slice_for(row: &mut [u32], index: usize, tp: usize) {
    let (index, tp) = (index as u32, tp as u32);
    for count in row {
        *count = *count * (index + 1) / tp - *count * index / tp;
    }
}
