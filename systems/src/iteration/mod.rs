//! One training iteration, evaluated: a 1F1B pipeline of micro-batches over stages, then gradient synchronisation, then
//! the optimizer. The simulator runs it on every iteration; an offline search runs it on a sample of one.
//!
//! Expert-parallel groups do not talk to each other before the gradients do, so each group's pipeline (a *lane*: the
//! group with the same number on every stage) is run on its own. Every rank has a clock; a collective starts when the last
//! participant has arrived. What the evaluator leaves out: overlap of gradient synchronisation with the backward pass
//! (the systems studied have none), and jitter.

pub mod layer;
pub mod run;
pub mod schedule;
pub mod timeline;

use std::ops::Range;

use workloads::model::{Block, HALF, Moe};
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::Policy;
use crate::iteration::schedule::{Work, one_forward_one_backward};
use crate::iteration::timeline::{Activity, Gradients, Observer, Span, Unobserved};
use crate::plan::Plan;
use crate::plan::job::Job;
use crate::plan::memory::{ExpertMemory, StageMemory, StageParameters};
use crate::plan::placement::Placement;
use crate::price::cost::CostModel;
use crate::price::ledger::{Ledger, Phase};
use crate::price::streams::Streams;
use crate::price::{GroupPlace, LayerPrice, Room, Setting};
use crate::program::routing::RoutingCounts;
use crate::program::{LayerProgram, Task};

/// How much of an iteration is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every lane and micro-batch.
    Full,
    /// A few lanes and enough micro-batches to fill the pipeline; the rest of each lane is extrapolated at the pace of its
    /// slowest stage. For offline searches.
    Sample,
}

/// Ranks of a stage that a sample looks at: several lanes where lanes are small, which differ most and cost least, one
/// where they are large.
const SAMPLED_RANKS: usize = 16;

/// Time charged to a stage before its first micro-batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Charge {
    /// Online decisions.
    pub decision: Seconds,
    /// Experts changing ranks.
    pub migration: Seconds,
}

/// Everything that one iteration depends on.
pub struct Evaluation<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// Under which plan.
    pub plan: &'a Plan,
    /// At which prices.
    pub costs: &'a CostModel,
    /// With which programs.
    pub policy: &'a dyn Policy,
    /// `[moe layer]`.
    pub placements: &'a [Placement],
    /// What the gate chooses in this iteration, a chunk per sample of the global batch.
    pub batch: &'a BatchCounts,
    /// `[stage]`.
    pub charges: &'a [Charge],
    /// How much of it.
    pub extent: Extent,
}

/// The fullest rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peak {
    /// Global rank.
    pub rank: usize,
    /// Its peak.
    pub bytes: Bytes,
}

/// What an iteration took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timing {
    /// From its start to the end of the slowest rank.
    pub step: Seconds,
    /// `[stage]`: time per phase, mean over the stage's ranks.
    pub phases: Vec<Ledger>,
    /// Memory of the fullest rank.
    pub peak: Peak,
    /// Entries that the gate let through.
    pub entries: u64,
    /// Choices that became no entry.
    pub dropped: u64,
    /// Shadowed experts, summed over layers, micro-batches and groups.
    pub shadowed: u64,
    /// `[moe layer][expert]` entries, for the history of loads.
    pub loads: Vec<Vec<u64>>,
}

impl Timing {
    /// The stage that waits least for others.
    pub fn slowest_stage(&self) -> Ledger {
        let bubble = |ledger: &&Ledger| ledger.of(Phase::Bubble).0;
        self.phases.iter().min_by(|a, b| bubble(a).total_cmp(&bubble(b))).copied().unwrap_or_default()
    }
}

impl Evaluation<'_> {
    /// Evaluates the iteration.
    pub fn run(&self) -> Timing {
        self.observe(&mut Unobserved)
    }

    /// Evaluates the iteration and tells `observer` what every rank does when. Of a sample, it sees what is evaluated.
    pub fn observe(&self, observer: &mut impl Observer) -> Timing {
        let (lanes, micro_batches) = self.extent();
        let moe_blocks = self.job.model.moe_blocks();
        let mut timing = Timing {
            loads: self.job.model.moe_layers().map(|moe| vec![0; moe.experts]).collect(),
            ..Timing::default()
        };
        let mut stages = vec![StageSum::default(); self.plan.pp];
        let left = self.plan.micro_batches(self.job) - micro_batches;
        for sampled in 0..lanes {
            let group = sampled * self.plan.expert_dp / lanes;
            let mut lane = Lane::new(self, group, micro_batches, &moe_blocks, observer);
            lane.run(&mut timing);
            let rest = lane.pace() * left as f64;
            for (sum, stage) in stages.iter_mut().zip(&lane.stages) {
                sum.add(stage, rest);
            }
            lane.record_peak(&mut timing.peak);
        }
        self.finish(&stages, lanes * self.plan.ep, micro_batches, &mut timing, observer);
        timing
    }

    /// How many lanes and micro-batches are evaluated.
    fn extent(&self) -> (usize, usize) {
        let (lanes, all) = (self.plan.expert_dp, self.plan.micro_batches(self.job));
        match self.extent {
            Extent::Full => (lanes, all),
            Extent::Sample => ((SAMPLED_RANKS / self.plan.ep).clamp(1, lanes), all.min(self.plan.pp + 3)),
        }
    }

    /// Gradient synchronisation, optimizer and host, after the lanes.
    fn finish(&self, stages: &[StageSum], ranks: usize, run: usize, timing: &mut Timing, observer: &mut impl Observer) {
        let all = self.plan.micro_batches(self.job);
        let scale = all as f64 / run as f64;
        let tied_start = stages[0].end.max(stages[self.plan.pp - 1].end);
        for (index, stage) in stages.iter().enumerate() {
            let end = stage.end;
            let mut ledger = Ledger::default();
            ledger.merge(&stage.ledger, scale / ranks as f64);
            let charge = self.charges[index];
            ledger.add(Phase::Decision, charge.decision);
            ledger.add(Phase::Migration, charge.migration);
            let parameters = StageParameters::new(self.job, self.plan, index);
            let mut tail = Together { ranks: self.stage_ranks(index), observer: &mut *observer };
            let synchronised = self.synchronise(index, &parameters, end, tied_start, &mut tail);
            let optimizer = self.costs.optimizer(parameters.total());
            tail.span(Activity::Optimizer, synchronised, optimizer);
            tail.span(Activity::Host, synchronised + optimizer, self.costs.iteration());
            ledger.add(Phase::GradientSync, synchronised - end);
            ledger.add(Phase::Optimizer, optimizer);
            ledger.add(Phase::Host, self.costs.iteration());
            timing.step = timing.step.max(synchronised + optimizer + self.costs.iteration());
            timing.phases.push(ledger);
        }
        // What is left of the iteration on stages that are done early is waiting for others.
        for ledger in &mut timing.phases {
            let rest = timing.step - ledger.total();
            ledger.add(Phase::Bubble, rest.max(Seconds::ZERO));
        }
    }

    fn stage_ranks(&self, stage: usize) -> Range<usize> {
        let first = stage * self.plan.stage_ranks();
        first..first + self.plan.stage_ranks()
    }

    /// When the gradients of a stage that ends at `end` are synchronised.
    fn synchronise(
        &self,
        stage: usize,
        parameters: &StageParameters,
        end: Seconds,
        tied_start: Seconds,
        tail: &mut Together<impl Observer>,
    ) -> Seconds {
        let plan = self.plan;
        let all_reduce = |stride, count: f64| {
            let group = self.costs.group(self.stage_ranks(stage), stride);
            self.costs.all_reduce(&group, Bytes(count * HALF))
        };
        let mut done = end;
        for (gradients, stride, count) in [
            (Gradients::Dense, plan.tp, parameters.dense),
            (Gradients::Gate, 1, parameters.gate),
            (Gradients::Experts, plan.ep, parameters.experts),
        ] {
            done = tail.span(Activity::GradientSync(gradients), done, all_reduce(stride, count));
        }
        if parameters.tied > 0.0 {
            let tied = all_reduce(plan.tp, parameters.tied);
            done = tail.span(Activity::GradientSync(Gradients::Tied), done, tied);
            if plan.pp > 1 {
                // The two copies of the embedding are summed between the first and the last stage.
                let span = plan.stage_ranks() * (plan.pp - 1) + 1;
                let group = self.costs.group(0..span, span - 1);
                let between = self.costs.all_reduce(&group, Bytes(parameters.tied * HALF));
                done = tail.span(Activity::GradientSync(Gradients::TiedStages), done.max(tied_start + tied), between);
            }
        }
        done
    }

    /// Entries of one micro-batch in one group, after the gate's capacity and the system's restriction.
    fn count(&self, moe: &Moe, layer: usize, group: usize, m: usize, nodes: &[usize], counts: &mut RoutingCounts) {
        let plan = self.plan;
        let tokens = plan.tokens(moe);
        counts.clear(plan.ep, moe.experts);
        for rank in 0..plan.ep {
            let position = group * plan.ep + rank;
            let row = counts.row_mut(rank);
            for sample in plan.samples(self.job, position, m) {
                for (sum, &count) in row.iter_mut().zip(self.batch.chunk(layer, sample)) {
                    *sum += count;
                }
            }
            if plan.tp > 1 {
                slice_for(row, position % plan.tp, plan.tp);
            }
            self.job.gate.admit(row, tokens, self.job.top_k(), &self.job.gate_statistics);
        }
        self.policy.restrict(counts, nodes);
    }
}

/// The part of a row of counts that falls to tensor-parallel rank `index` of `tp`; the parts add up to the row.
fn slice_for(row: &mut [u32], index: usize, tp: usize) {
    let (index, tp) = (index as u32, tp as u32);
    for count in row {
        *count = *count * (index + 1) / tp - *count * index / tp;
    }
}

/// Ranks that do the same at the same time: at the start and at the end of an iteration.
struct Together<'a, O> {
    ranks: Range<usize>,
    observer: &'a mut O,
}

impl<O: Observer> Together<'_, O> {
    /// Shows an activity and returns when it ends.
    fn span(&mut self, activity: Activity, start: Seconds, time: Seconds) -> Seconds {
        let end = start + time;
        if end > start {
            for rank in self.ranks.clone() {
                self.observer.span(Span { rank, activity, block: None, work: None, start, end });
            }
        }
        end
    }
}

/// What the lanes of a stage add up to.
#[derive(Clone, Debug, Default)]
struct StageSum {
    ledger: Ledger,
    end: Seconds,
}

impl StageSum {
    /// Adds a lane, whose micro-batches that are not evaluated take `rest`.
    fn add(&mut self, stage: &StageRun, rest: Seconds) {
        self.ledger.merge(&stage.ledger, 1.0);
        self.end = stage.clock.iter().map(|&clock| clock + rest).fold(self.end, Seconds::max);
    }
}

/// One expert-parallel group's pipeline.
struct Lane<'a, O> {
    evaluation: &'a Evaluation<'a>,
    group: usize,
    micro_batches: usize,
    stages: Vec<StageRun>,
    moe_blocks: &'a [usize],
    /// The micro-batch at hand.
    counts: RoutingCounts,
    /// Memory that is used again from layer to layer.
    room: Room,
    streams: Streams,
    spare: Vec<LayerPrice>,
    observer: &'a mut O,
}

/// One stage of a lane while it runs.
struct StageRun {
    blocks: Range<usize>,
    ranks: Range<usize>,
    place: GroupPlace,
    order: Vec<Work>,
    next: usize,
    /// The pass that it is in, and the block.
    work: Option<Work>,
    block: Option<usize>,
    /// `[rank]`.
    clock: Vec<Seconds>,
    ledger: Ledger,
    /// `[micro-batch][rank]`: when the input, or the gradient of the output, is there.
    forward_ready: Vec<Option<Vec<Seconds>>>,
    backward_ready: Vec<Option<Vec<Seconds>>>,
    /// `[micro-batch][moe layer of the stage]`: kept from the forward pass for the backward pass.
    layers: Vec<Vec<(LayerProgram, LayerPrice)>>,
    /// `[rank]`.
    experts: Vec<ExpertMemory>,
}

impl<'a, O: Observer> Lane<'a, O> {
    fn new(
        evaluation: &'a Evaluation<'a>,
        group: usize,
        micro_batches: usize,
        moe_blocks: &'a [usize],
        observer: &'a mut O,
    ) -> Self {
        let stages = (0..evaluation.plan.pp)
            .map(|stage| StageRun::new(evaluation, stage, group, micro_batches, observer))
            .collect();
        Self {
            evaluation,
            group,
            micro_batches,
            stages,
            moe_blocks,
            counts: RoutingCounts::new(1, Vec::new()),
            room: Room::default(),
            streams: Streams::default(),
            spare: Vec::new(),
            observer,
        }
    }

    /// Runs every stage's work as soon as what it needs is there.
    fn run(&mut self, timing: &mut Timing) {
        let mut left: usize = self.stages.iter().map(|stage| stage.order.len()).sum();
        while left > 0 {
            for index in 0..self.stages.len() {
                while self.stages[index].can_run() {
                    self.step(index, timing);
                    left -= 1;
                }
            }
        }
    }

    fn step(&mut self, index: usize, timing: &mut Timing) {
        let work = self.stages[index].order[self.stages[index].next];
        self.stages[index].next += 1;
        self.stages[index].work = Some(work);
        match work {
            Work::Forward(m) => {
                let ready = self.stages[index].forward_ready[m].take();
                self.stages[index].wait_for(ready);
                self.forward(index, m, timing);
                if index + 1 < self.stages.len() {
                    let arrival = self.arrivals(index, index + 1);
                    self.stages[index + 1].forward_ready[m] = Some(arrival);
                } else {
                    let now = self.stages[index].clock.clone();
                    self.stages[index].backward_ready[m] = Some(now);
                }
            }
            Work::Backward(m) => {
                let ready = self.stages[index].backward_ready[m].take();
                self.stages[index].wait_for(ready);
                self.backward(index, m);
                if index > 0 {
                    let arrival = self.arrivals(index, index - 1);
                    self.stages[index - 1].backward_ready[m] = Some(arrival);
                }
            }
        }
    }

    /// Sends what each rank of stage `from` has now to its peer on stage `to`; returns when it is there. Sends block.
    fn arrivals(&mut self, from: usize, to: usize) -> Vec<Seconds> {
        let e = self.evaluation;
        let boundary = self.stages[from.max(to)].blocks.start;
        let bytes = e.job.model.blocks[boundary].boundary_bytes() * (e.plan.micro_batch as f64 / e.plan.tp as f64);
        let (sender, receiver) = (self.stages[from].ranks.start, self.stages[to].ranks.start);
        let slowest = (0..e.plan.ep)
            .map(|rank| e.costs.send(sender + rank, receiver + rank, bytes))
            .fold(Seconds::ZERO, Seconds::max);
        self.stages[from].advance(Activity::Boundary, [slowest], self.observer);
        self.stages[from].clock.clone()
    }

    fn forward(&mut self, index: usize, m: usize, timing: &mut Timing) {
        let e = self.evaluation;
        for b in self.stages[index].blocks.clone() {
            let block = &e.job.model.blocks[b];
            self.stages[index].block = Some(b);
            self.stages[index].dense(e, block, 1.0, self.observer);
            if let (Some(moe), Ok(layer)) = (block.moe(), self.moe_blocks.binary_search(&b)) {
                self.moe_forward(index, m, moe, layer, timing);
            }
        }
        self.stages[index].block = None;
        self.stages[index].edges(e, 1.0, self.observer);
    }

    fn moe_forward(&mut self, index: usize, m: usize, moe: &Moe, layer: usize, timing: &mut Timing) {
        let e = self.evaluation;
        let stage = &mut self.stages[index];
        e.count(moe, layer, self.group, m, &stage.place.nodes, &mut self.counts);
        let counts = &self.counts;
        let placement = &e.placements[layer];
        let program = e.policy.program(layer, counts, placement);
        let tokens = e.plan.tokens(moe);
        let mut priced = self.spare.pop().unwrap_or_default();
        let setting = Setting { moe, tokens, place: &stage.place, costs: e.costs };
        setting.price(&program, counts, placement, &mut self.room, &mut priced);
        counts.add_loads(&mut timing.loads[layer]);
        let chosen = (tokens * e.job.top_k() * counts.ranks()) as u64;
        timing.entries += priced.entries;
        timing.dropped += chosen.saturating_sub(priced.entries);
        timing.shadowed += program.shadowed.len() as u64;
        let rows = priced.laid_out_rows.iter().zip(&priced.computed_rows);
        for (experts, (&sent, &received)) in stage.experts.iter_mut().zip(rows) {
            experts.add(moe, tokens, program.layout, sent, received);
        }
        stage.pass(&mut self.streams, &program.forward, &priced.forward, program.steps, self.observer);
        stage.layers[m].push((program, priced));
    }

    fn backward(&mut self, index: usize, m: usize) {
        let e = self.evaluation;
        let stage = &mut self.stages[index];
        stage.edges(e, 2.0, self.observer);
        for b in stage.blocks.clone().rev() {
            let block = &e.job.model.blocks[b];
            stage.block = Some(b);
            let layer = if block.moe().is_some() { stage.layers[m].pop() } else { None };
            if e.policy.recomputes() {
                stage.dense(e, block, 1.0, self.observer);
                if let Some((program, priced)) = &layer {
                    stage.pass(&mut self.streams, &program.forward, &priced.forward, program.steps, self.observer);
                }
            }
            if let Some((program, priced)) = layer {
                stage.pass(&mut self.streams, &program.backward, &priced.backward, program.steps, self.observer);
                self.spare.push(priced);
            }
            stage.dense(e, block, 2.0, self.observer);
        }
        stage.block = None;
    }

    /// Time between micro-batches: that of the stage which is busy longest.
    fn pace(&self) -> Seconds {
        let runs = (self.evaluation.plan.ep * self.micro_batches) as f64;
        let busy = self.stages.iter().map(|stage| stage.ledger.total() - stage.ledger.of(Phase::Bubble));
        busy.fold(Seconds::ZERO, Seconds::max) / runs
    }

    fn record_peak(&self, peak: &mut Peak) {
        let e = self.evaluation;
        for (index, stage) in self.stages.iter().enumerate() {
            let memory = StageMemory::new(e.job, e.plan, index, e.policy.recomputes());
            for (rank, experts) in stage.ranks.clone().zip(&stage.experts) {
                let bytes = memory.peak(experts, self.micro_batches);
                if bytes > peak.bytes {
                    *peak = Peak { rank, bytes };
                }
            }
        }
    }
}

impl StageRun {
    fn new(e: &Evaluation, stage: usize, group: usize, micro_batches: usize, observer: &mut impl Observer) -> Self {
        let ranks = e.plan.expert_group(stage, group);
        let global_nodes = e.job.nodes(ranks.clone());
        let nodes = global_nodes.iter().map(|node| node - global_nodes[0]).collect();
        let charge = e.charges[stage];
        let mut head = Together { ranks: ranks.clone(), observer };
        let decided = head.span(Activity::Decision, Seconds::ZERO, charge.decision);
        let migrated = head.span(Activity::Migration, decided, charge.migration);
        let mut forward_ready = vec![None; micro_batches];
        if stage == 0 {
            forward_ready.fill(Some(vec![Seconds::ZERO; e.plan.ep]));
        }
        Self {
            blocks: e.plan.stage_blocks(e.job, stage),
            place: GroupPlace { group: e.costs.group(ranks.clone(), 1), nodes },
            ranks,
            order: one_forward_one_backward(e.plan.pp, stage, micro_batches),
            next: 0,
            work: None,
            block: None,
            clock: vec![migrated; e.plan.ep],
            ledger: Ledger::default(),
            forward_ready,
            backward_ready: vec![None; micro_batches],
            layers: vec![Vec::new(); micro_batches],
            experts: vec![ExpertMemory::default(); e.plan.ep],
        }
    }

    fn can_run(&self) -> bool {
        match self.order.get(self.next) {
            Some(Work::Forward(m)) => self.forward_ready[*m].is_some(),
            Some(Work::Backward(m)) => self.backward_ready[*m].is_some(),
            None => false,
        }
    }

    fn wait_for(&mut self, ready: Option<Vec<Seconds>>) {
        for (clock, ready) in self.clock.iter_mut().zip(ready.into_iter().flatten()) {
            if ready > *clock {
                self.ledger.add(Phase::Bubble, ready - *clock);
                *clock = ready;
            }
        }
    }

    /// All ranks do the same, in parts one after the other.
    fn advance<const PARTS: usize>(
        &mut self,
        activity: Activity,
        parts: [Seconds; PARTS],
        observer: &mut impl Observer,
    ) {
        let (block, work) = (self.block, self.work);
        for (rank, clock) in self.ranks.clone().zip(&mut self.clock) {
            let start = *clock;
            parts.iter().for_each(|&part| *clock += part);
            if *clock > start {
                observer.span(Span { rank, activity, block, work, start, end: *clock });
            }
        }
        for part in parts {
            self.ledger.add(activity.phase(), part * self.clock.len() as f64);
        }
    }

    /// One pass of a layer program.
    fn pass(
        &mut self,
        streams: &mut Streams,
        tasks: &[Task],
        durations: &[Seconds],
        steps: usize,
        observer: &mut impl Observer,
    ) {
        let (first, block, work) = (self.ranks.start, self.block, self.work);
        streams.run(tasks, durations, steps, &mut self.clock, &mut self.ledger, |op, starts, ends| {
            for (position, (&start, &end)) in starts.iter().zip(ends).enumerate() {
                if end > start {
                    let rank = first + position;
                    observer.span(Span { rank, activity: Activity::Op(op), block, work, start, end });
                }
            }
        });
    }

    /// Everything of a block but its MoE layer; `factor` is 1 forward and 2 backward.
    fn dense(&mut self, e: &Evaluation, block: &Block, factor: f64, observer: &mut impl Observer) {
        let part = e.plan.micro_batch as f64 / e.plan.tp as f64;
        // Weights are read forward; backward they are read again, and their gradients read, added to and written.
        let weights = Bytes(block.dense_parameters() as f64 * HALF / e.plan.tp as f64);
        let extra = if factor > 1.0 { e.costs.elementwise(weights * 2.0) } else { Seconds::ZERO };
        let time = e.costs.matrix(block.dense_flops() * part)
            + e.costs.elementwise(block.dense_activations() * (2.0 * part) + weights);
        self.advance(Activity::Block, [extra + e.costs.block(), time * factor], observer);
        if e.plan.tp > 1 {
            let group = e.costs.group(self.ranks.start..self.ranks.start + e.plan.tp, 1);
            let bytes = block.boundary_bytes() * e.plan.micro_batch as f64;
            // One all-reduce a pass for attention (of its output, or of its input's gradient) and one for a dense network
            // (Shoeybi et al. 2019). Around experts each rank takes its slice of the tokens instead: their outputs are
            // gathered in the forward pass, the slices' gradients in the backward pass (as in FastMoE).
            let reduced = e.costs.all_reduce(&group, bytes);
            let network = if block.moe().is_some() { e.costs.all_gather(&group, bytes) } else { reduced };
            let time = reduced + network;
            self.advance(Activity::TensorParallel, [time], observer);
        }
    }

    /// Embedding on the first stage, head and loss on the last.
    fn edges(&mut self, e: &Evaluation, factor: f64, observer: &mut impl Observer) {
        let model = &e.job.model;
        let part = e.plan.micro_batch as f64 / e.plan.tp as f64;
        let mut time = Seconds::ZERO;
        if self.blocks.start == 0 {
            time +=
                e.costs.matrix(model.input.flops * part) + e.costs.elementwise(model.input.activations * (2.0 * part));
        }
        if self.blocks.end == model.blocks.len() {
            time += e.costs.matrix(model.output.flops * part)
                + e.costs.elementwise(model.output.activations * (2.0 * part));
        }
        self.advance(Activity::Edge, [time * factor], observer);
        // Words are cut over tensor-parallel ranks: the embedding's rows are summed forward, the gradient of the head's
        // input backward.
        let backward = factor > 1.0;
        let sums = if backward { self.blocks.end == model.blocks.len() } else { self.blocks.start == 0 };
        if e.plan.tp > 1 && sums && model.vocabulary.is_some() {
            let group = e.costs.group(self.ranks.start..self.ranks.start + e.plan.tp, 1);
            let bytes = model.blocks[0].boundary_bytes() * e.plan.micro_batch as f64;
            self.advance(Activity::TensorParallel, [e.costs.all_reduce(&group, bytes)], observer);
        }
    }
}
