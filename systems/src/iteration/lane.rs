//! One expert-parallel group's pipeline, stage by stage under 1F1B, interleaved or not: when each rank's passes run, what they are made of, and
//! what its memory holds at the most.

use std::ops::Range;

use workloads::model::{Block, Moe};
use workloads::{Bytes, Seconds};

use crate::iteration::dense::Dense;
use crate::iteration::schedule::{Position, Turn, Work};
use crate::iteration::state::{OfBlock, StateTraffic, exposed};
use crate::iteration::timeline::{Activity, Recorder, Span, Watch};
use crate::iteration::{Evaluation, Peak};
use crate::plan::job::{Job, Scope};
use crate::plan::memory::{ExpertMemory, HeldRows, StageMemory, StageParameters};
use crate::plan::placement::Placement;
use crate::plan::{Recompute, Zero};
use crate::price::hosts::{Hosts, Issue};
use crate::price::ledger::{Ledger, Phase};
use crate::price::network::Group;
use crate::price::streams::{Links, Streams, TimedPass};
use crate::price::{LayerPrice, Moved, Scratch, Setting};
use crate::program::routing::RoutingCounts;
use crate::program::{Direction, LayerProgram, Op, Stream, Task};

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
#[derive(Default)]
pub(super) struct Routed {
    pub(super) entries: u64,
    pub(super) dropped: u64,
    pub(super) copied: u64,
    /// Sum of the fullest rank's rows over the mean, and of how many passes of a layer.
    pub(super) fullest: (f64, u64),
    /// `[moe layer][expert]` entries.
    pub(super) loads: Vec<Vec<u64>>,
}

/// What a stage of a lane came to.
pub(super) struct StageResult<'l> {
    /// `[rank]`: when it is done.
    pub(super) clock: &'l [Seconds],
    /// `[rank]`: when its host is.
    pub(super) hosts: &'l [Seconds],
    /// What its ranks' time went to.
    pub(super) ledger: &'l Ledger,
    /// `[direction]`: what a rank computes in one micro-batch.
    pub(super) computation: [Seconds; 2],
    /// Blocks of the stage.
    pub(super) blocks: usize,
    /// Experts on their way, time of one rank.
    pub(super) moved: Moved,
    /// When its last rank came to each of the gathers of weights that all replicas take part in, in order.
    pub(super) met: &'l [Seconds],
}

/// Consecutive blocks that a micro-batch passes on a stage.
struct Chunk {
    /// Among the chunks of all stages.
    number: usize,
    blocks: Range<usize>,
    /// MoE layers of the chunks before.
    first_layer: usize,
    /// `[direction]`: what accompanies a pass where gradients or weights are sharded, out of the exchanges' way.
    state: [Seconds; 2],
    /// What accompanies every pass through a block in line with exchanges.
    queued: OfBlock,
}

/// One stage of a lane while it runs. A pass is one micro-batch in one chunk: number `chunk * micro-batches + micro-batch`.
struct StageRun<'a> {
    evaluation: &'a Evaluation<'a>,
    group: usize,
    micro_batches: usize,
    chunks: Vec<Chunk>,
    ranks: Range<usize>,
    dense: Dense<'a>,
    place: Group,
    order: Vec<Turn>,
    next: usize,
    /// The pass that it is in, and the block.
    turn: Option<Turn>,
    block: Option<usize>,
    recompute: Recompute,
    /// Whether exchanges of one pass run beside the computation of another.
    hides_exchanges: bool,
    /// `[rank]`.
    clock: Vec<Seconds>,
    hosts: Hosts,
    links: Links,
    /// `[rank]`: when the weights of the next block are there; nothing where they have not been asked for.
    asked: Vec<Seconds>,
    /// When its last rank came to each of the gathers of weights, in order.
    met: Vec<Seconds>,
    ledger: Ledger,
    /// `[direction]`: what the ranks have computed, summed over them.
    computed: [Seconds; 2],
    moved: Moved,
    /// `[pass][rank]`: when the input is there.
    inputs: Vec<Option<Vec<Seconds>>>,
    /// `[pass][rank]`: when the gradient of the output is there.
    gradients: Vec<Option<Vec<Seconds>>>,
    /// `[pass][moe layer of the chunk]`: kept from the forward pass for the backward pass.
    layers: Vec<Vec<(LayerProgram, LayerPrice)>>,
    memory: StageMemory,
    /// What all ranks keep alike of the passes in flight.
    kept: Bytes,
    /// `[rank]`.
    experts: Vec<ExpertMemory>,
    recorder: Recorder,
}

impl Workspace {
    pub(super) fn new(job: &Job) -> Self {
        let loads = job.model.moe_layers().map(|moe| vec![0; moe.experts]).collect();
        Self {
            routed: Routed { loads, ..Routed::default() },
            counts: RoutingCounts::new(1, Vec::new()),
            scratch: Scratch::default(),
            streams: Streams::default(),
        }
    }
}

impl<'a> Lane<'a> {
    pub(super) fn new(evaluation: &'a Evaluation<'a>, group: usize, micro_batches: usize, watch: &Watch) -> Self {
        let stage = |stage| StageRun::new(evaluation, stage, group, micro_batches, Recorder::new(watch.clone()));
        Self { evaluation, micro_batches, stages: (0..evaluation.plan.pp).map(stage).collect() }
    }

    /// Runs every stage's work as soon as what it needs is there, until all is done or the lane is `beyond` what is of interest; whether all was
    /// done.
    pub(super) fn run(&mut self, workspace: &mut Workspace, beyond: impl Fn(&Self) -> bool) -> bool {
        let mut left: usize = self.stages.iter().map(|stage| stage.order.len()).sum();
        while left > 0 {
            for index in 0..self.stages.len() {
                while self.stages[index].can_run() {
                    if beyond(self) {
                        return false;
                    }
                    self.step(index, workspace);
                    left -= 1;
                }
            }
        }
        for stage in &mut self.stages {
            stage.links.drain(&mut stage.clock, &mut stage.ledger);
        }
        true
    }

    /// What the fullest rank has held so far; nothing where memory is not followed.
    pub(super) fn held(&self) -> Peak {
        let mut peak = Peak::default();
        if self.evaluation.job.scope == Scope::Iteration {
            self.raise(|_, _| {}, &mut peak);
        }
        peak
    }

    /// Runs a stage's next pass and hands its result to the stage that waits for it.
    fn step(&mut self, index: usize, workspace: &mut Workspace) {
        let pp = self.stages.len();
        let stage = &mut self.stages[index];
        let Turn { chunk, work, .. } = stage.start_next();
        let number = stage.chunks[chunk].number;
        match work {
            Work::Forward(m) => {
                stage.forward(chunk, m, workspace);
                let next = number + 1;
                if next == self.evaluation.plan.chunks() {
                    let pass = stage.pass_of(chunk, m);
                    stage.gradients[pass] = Some(stage.clock.clone());
                } else {
                    let arrivals = stage.send_to(chunk, next);
                    let pass = self.stages[next % pp].pass_of(next / pp, m);
                    self.stages[next % pp].inputs[pass] = Some(arrivals);
                }
            }
            Work::Backward(m) => {
                stage.backward(chunk, m, workspace);
                if let Some(before) = number.checked_sub(1) {
                    let arrivals = stage.send_to(chunk, before);
                    let pass = self.stages[before % pp].pass_of(before / pp, m);
                    self.stages[before % pp].gradients[pass] = Some(arrivals);
                }
            }
        }
    }

    /// What each stage came to.
    pub(super) fn stages(&self) -> impl Iterator<Item = StageResult<'_>> {
        self.stages.iter().map(|stage| {
            let passes = (stage.ranks.len() * self.micro_batches) as f64;
            StageResult {
                clock: &stage.clock,
                hosts: stage.hosts.clock(),
                ledger: &stage.ledger,
                computation: stage.computed.map(|time| time / passes),
                blocks: stage.chunks.iter().map(|chunk| chunk.blocks.len()).sum(),
                met: &stage.met,
                moved: stage.moved,
            }
        })
    }

    /// Time between micro-batches: that of the stage which is busy longest.
    pub(super) fn pace(&self) -> Seconds {
        let runs = (self.evaluation.plan.ep * self.micro_batches) as f64;
        let busy = self.stages.iter().map(|stage| stage.ledger.total() - stage.ledger.of(Phase::Bubble));
        busy.fold(Seconds::ZERO, Seconds::max) / runs
    }

    /// Enters the peak of each of the lane's ranks, `(global rank, peak)`, and raises `peak` to that of the fullest.
    pub(super) fn raise(&self, mut enter: impl FnMut(usize, Bytes), peak: &mut Peak) {
        for stage in &self.stages {
            for (rank, experts) in stage.ranks.clone().zip(&stage.experts) {
                let bytes = stage.memory.peak(experts);
                enter(rank, bytes);
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

impl Evaluation<'_> {
    /// What the block of MoE layer `layer` takes both ways, in the first micro-batch of the first expert-parallel group of its stage,
    /// transfers of weights that end behind it included.
    pub fn layer(&self, layer: usize) -> Seconds {
        let b = self.job.model.moe_blocks()[layer];
        let block = &self.job.model.blocks[b];
        let mut run = StageRun::new(self, self.plan.stage_of(self.job, b), 0, 1, Recorder::new(Watch::Nobody));
        let mut workspace = Workspace::new(self.job);
        run.dense_block(block, Direction::Forward);
        run.moe_forward(0, 0, block, layer, &mut workspace);
        run.block_backward(0, b, layer, &mut workspace);
        run.links.drain(&mut run.clock, &mut run.ledger);
        run.clock.iter().copied().fold(Seconds::ZERO, Seconds::max)
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
        let Evaluation { job, plan, costs, policy, .. } = *evaluation;
        let ranks = plan.expert_group(stage, group);
        let charge = evaluation.charges[stage];
        let gathered = recorder.together(ranks.clone(), Activity::Gathering, Seconds::ZERO, charge.gathering);
        let decided = recorder.together(ranks.clone(), Activity::Decision, gathered, charge.decision);
        let migrated = recorder.together(ranks.clone(), Activity::Migration, decided, charge.migration);
        let passes = plan.vp * micro_batches;
        let mut inputs = vec![None; passes];
        if stage == 0 {
            inputs[..micro_batches].fill(Some(vec![Seconds::ZERO; plan.ep]));
        }
        let hides_exchanges = policy.overlap().exchanges;
        let recompute = policy.recompute(plan);
        let mut memory = StageMemory::new(job, plan, stage, recompute);
        if let Some(slots) = evaluation.slots(stage) {
            memory = memory.with_slots(plan, StageParameters::new(job, plan, stage).experts, &slots);
        }
        let position = Position { pp: plan.pp, vp: plan.vp, stage };
        Self {
            evaluation,
            group,
            micro_batches,
            chunks: plan.chunks_of(stage).map(|number| Chunk::new(evaluation, number)).collect(),
            dense: Dense::new(job, plan, costs, ranks.start),
            place: costs.group(ranks.clone(), 1),
            ranks,
            order: position.turns(micro_batches, usize::from(hides_exchanges)),
            next: 0,
            turn: None,
            block: None,
            recompute,
            hides_exchanges,
            clock: vec![migrated; plan.ep],
            hosts: Hosts::new(&vec![migrated; plan.ep]),
            links: Links::new(&vec![migrated; plan.ep]).beside(costs.beside()),
            asked: Vec::new(),
            met: Vec::new(),
            ledger: Ledger::default(),
            computed: [Seconds::ZERO; 2],
            moved: Moved::default(),
            inputs,
            gradients: vec![None; passes],
            layers: vec![Vec::new(); passes],
            memory,
            kept: Bytes::ZERO,
            experts: vec![ExpertMemory::default(); plan.ep],
            recorder,
        }
    }

    /// The number of a pass.
    fn pass_of(&self, chunk: usize, m: usize) -> usize {
        chunk * self.micro_batches + m
    }

    /// When the ranks have what a pass starts from, if they have it.
    fn ready(&mut self, turn: Turn) -> &mut Option<Vec<Seconds>> {
        match turn.work {
            Work::Forward(m) => {
                let pass = self.pass_of(turn.chunk, m);
                &mut self.inputs[pass]
            }
            Work::Backward(m) => {
                let pass = self.pass_of(turn.chunk, m);
                &mut self.gradients[pass]
            }
        }
    }

    fn can_run(&mut self) -> bool {
        self.order.get(self.next).copied().is_some_and(|turn| self.ready(turn).is_some())
    }

    /// Moves on to the next pass, and the clocks to when its ranks have what it starts from.
    fn start_next(&mut self) -> Turn {
        let turn = self.order[self.next];
        self.next += 1;
        self.turn = Some(turn);
        let ready = self.ready(turn).take().expect("a pass is started once it can run");
        for (clock, ready) in self.clock.iter_mut().zip(ready) {
            if ready > *clock {
                self.ledger.add(Phase::Bubble, ready - *clock);
                *clock = ready;
            }
        }
        turn
    }

    /// Sends what each rank has of a chunk now to its peer that has another one next; returns when it is there. Sends block.
    fn send_to(&mut self, chunk: usize, number: usize) -> Vec<Seconds> {
        let Evaluation { job, plan, costs, .. } = *self.evaluation;
        let boundary = plan.chunk_blocks(job, self.chunks[chunk].number.max(number)).start;
        let bytes = job.model.blocks[boundary].boundary_bytes() * (plan.micro_batch as f64 / plan.tp as f64);
        let peers = self.ranks.clone().zip(plan.expert_group(number % plan.pp, self.group));
        let slowest = peers.map(|(from, to)| costs.send(from, to, bytes)).fold(Seconds::ZERO, Seconds::max);
        self.advance(Activity::Boundary, [slowest]);
        self.clock.clone()
    }

    fn forward(&mut self, chunk: usize, m: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let (before, beside) = (self.computation(), self.is_beside());
        if beside {
            let dense = self.kept + self.memory.block();
            self.experts.iter_mut().for_each(|rank| rank.mark_beside(dense));
        }
        let mut layer = self.chunks[chunk].first_layer;
        for b in self.chunks[chunk].blocks.clone() {
            let block = &e.job.model.blocks[b];
            self.block = Some(b);
            self.gathered(chunk, b + 1 < self.chunks[chunk].blocks.end);
            self.dense_block(block, Direction::Forward);
            if block.moe().is_some() {
                self.moe_forward(self.pass_of(chunk, m), m, block, layer, workspace);
                layer += 1;
            }
        }
        self.block = None;
        self.edges(chunk, Direction::Forward);
        self.kept += self.memory.kept(chunk);
        // Beside a backward pass, that one's activations have gone before all of these are there.
        if !beside {
            self.experts.iter_mut().for_each(|rank| rank.mark(self.kept));
        }
        self.finish_pass(chunk, Direction::Forward, before);
    }

    /// Whether the turn's pass runs beside another micro-batch's in the other direction, block by block.
    fn is_beside(&self) -> bool {
        self.hides_exchanges && self.turn.is_some_and(|turn| turn.paired)
    }

    /// What the ranks have computed, summed over them.
    fn computation(&self) -> Seconds {
        [Phase::Dense, Phase::Gate, Phase::Experts].map(|phase| self.ledger.of(phase)).into_iter().sum()
    }

    /// Counts what a pass computed, and shows what of the transfers beside it sticks out.
    fn finish_pass(&mut self, chunk: usize, direction: Direction, before: Seconds) {
        let computed = self.computation() - before;
        self.computed[direction as usize] += computed;
        let Evaluation { plan, policy, .. } = *self.evaluation;
        if plan.zero < Zero::Gradients {
            return;
        }
        if !policy.overlap().queued {
            let Chunk { state, blocks, .. } = &self.chunks[chunk];
            let computed = computed / self.ranks.len() as f64;
            let shown = exposed(state[direction as usize], computed, blocks.len());
            self.advance(Activity::ShardedState, [shown]);
        } else if direction == Direction::Backward {
            self.wait_for_links();
        }
    }

    /// Waits for the block's weights, which were asked for when the block before began, and asks for those of the block that is next,
    /// if there is one. The first block's are asked for only now.
    fn gathered(&mut self, chunk: usize, next: bool) {
        let gather = self.chunks[chunk].queued.gathered;
        if gather == Seconds::ZERO {
            return;
        }
        self.met.push(self.clock.iter().copied().fold(Seconds::ZERO, Seconds::max));
        if self.asked.is_empty() {
            self.asked = self.links.issue(&self.clock, gather);
        }
        let there = std::mem::take(&mut self.asked);
        self.wait(&there);
        if next {
            self.asked = self.links.issue(&self.clock, gather);
        }
    }

    fn wait_for_links(&mut self) {
        let there = self.links.issue(&self.clock, Seconds::ZERO);
        self.wait(&there);
    }

    /// `[rank]`: until then.
    fn wait(&mut self, there: &[Seconds]) {
        let (block, work) = (self.block, self.turn.map(|turn| turn.work));
        for ((rank, clock), &there) in self.ranks.clone().zip(&mut self.clock).zip(there) {
            if there > *clock {
                let activity = Activity::ShardedState;
                self.ledger.add(activity.phase(), there - *clock);
                self.recorder.record(Span { rank, activity, block, work, start: *clock, end: there });
                *clock = there;
            }
        }
    }

    fn moe_forward(&mut self, pass: usize, m: usize, block: &Block, layer: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let Some(moe) = block.moe() else { return };
        let Workspace { routed, counts, scratch, streams } = workspace;
        e.count([self.group, m], layer, moe, self.place.nodes(), counts);
        let placement = &e.placements[layer];
        let program = e.policy.program(layer, counts, placement);
        let setting = Setting { moe, tokens: e.plan.tokens(moe), place: &self.place, costs: e.costs };
        let priced = setting.price_in(scratch, &program, counts, placement);
        counts.add_loads(&mut routed.loads[layer]);
        let chosen = (setting.tokens * e.job.top_k() * counts.ranks()) as u64;
        routed.entries += priced.entries;
        routed.dropped += chosen.saturating_sub(priced.entries);
        routed.copied += (program.shadowed.len() + program.copies.len()) as u64;
        self.moved += priced.moved[0];
        let rows: u64 = priced.computed_rows.iter().sum();
        if let Some(most) = priced.computed_rows.iter().max().filter(|_| rows > 0) {
            routed.fullest.0 += (most * counts.ranks() as u64) as f64 / rows as f64;
            routed.fullest.1 += 1;
        }
        for (rank, experts) in self.experts.iter_mut().enumerate() {
            experts.forward(moe, &held_rows(setting.tokens, &program, &priced, placement, rank), self.recompute);
        }
        let shown = self.exchanges_shown(block, &program, &priced, Direction::Forward);
        self.pass(&with_durations(priced.pass(&program, Direction::Forward), &shown), streams);
        self.layers[pass].push((program, priced));
    }

    /// In a pair of passes, a layer's exchanges run beside what the other pass computes in a block like this one: they take
    /// what that leaves of them. Durations of the pass's tasks, `[task][rank]`; none where nothing hides.
    fn exchanges_shown(
        &self,
        block: &Block,
        program: &LayerProgram,
        priced: &LayerPrice,
        direction: Direction,
    ) -> Option<Vec<Seconds>> {
        if !self.is_beside() {
            return None;
        }
        let (other, tasks, durations, beside) = match direction {
            Direction::Forward => (Direction::Backward, &program.forward, &priced.forward, &priced.backward),
            Direction::Backward => (Direction::Forward, &program.backward, &priced.backward, &priced.forward),
        };
        let others = match other {
            Direction::Forward => &program.forward,
            Direction::Backward => &program.backward,
        };
        let ranks = self.ranks.len();
        let computes = |task: &Task| task.op.stream() == Stream::Compute && task.op != Op::Sync;
        let total = |tasks: &[Task], durations: &[Seconds], wanted: &dyn Fn(&Task) -> bool| {
            let of_task = tasks.iter().zip(durations.chunks_exact(ranks)).filter(|(task, _)| wanted(task));
            of_task.flat_map(|(_, durations)| durations).copied().sum::<Seconds>() / ranks as f64
        };
        let exchanges = |task: &Task| task.op.stream() == Stream::Communication;
        let exchanged = total(tasks, durations, &exchanges);
        let [start, products] = self.dense.block(block, other);
        let computed = total(others, beside, &computes) + start + products;
        let left = 1.0 - (computed / exchanged).min(1.0);
        let mut shown = durations.clone();
        for (_, durations) in tasks.iter().zip(shown.chunks_exact_mut(ranks)).filter(|(task, _)| exchanges(task)) {
            durations.iter_mut().for_each(|time| *time = *time * left);
        }
        Some(shown)
    }

    fn backward(&mut self, chunk: usize, m: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let before = self.computation();
        let pass = self.pass_of(chunk, m);
        self.edges(chunk, Direction::Backward);
        let mut layer = self.chunks[chunk].first_layer + self.layers[pass].len();
        for b in self.chunks[chunk].blocks.clone().rev() {
            layer -= usize::from(e.job.model.blocks[b].moe().is_some());
            self.block = Some(b);
            self.gathered(chunk, b > self.chunks[chunk].blocks.start);
            self.block_backward(pass, b, layer, workspace);
            let reduced = self.chunks[chunk].queued.reduced;
            if reduced > Seconds::ZERO {
                self.links.issue(&self.clock, reduced);
            }
        }
        self.block = None;
        self.kept = self.kept - self.memory.kept(chunk);
        if self.is_beside() {
            self.experts.iter_mut().for_each(|rank| rank.mark(self.kept));
        }
        self.finish_pass(chunk, Direction::Backward, before);
    }

    /// One block's backward pass; `layer`: the number of its MoE layer, if it has one.
    fn block_backward(&mut self, pass: usize, b: usize, layer: usize, workspace: &mut Workspace) {
        let e = self.evaluation;
        let block = &e.job.model.blocks[b];
        self.block = Some(b);
        let mut priced = block.moe().map(|moe| (moe, self.layers[pass].pop().expect("the forward pass has priced it")));
        if self.recompute == Recompute::Full {
            self.dense_block(block, Direction::Forward);
            if let Some((_, (program, priced))) = &mut priced {
                self.pass(&priced.pass(program, Direction::Forward), &mut workspace.streams);
                self.moved += priced.moved[0];
                priced.after_recomputation(program);
            }
        } else if self.recompute == Recompute::Selective {
            self.advance(Activity::Block, [self.dense.again(block, self.recompute)]);
            if let Some((moe, (_, priced))) = &priced {
                self.experts_again(moe, priced);
            }
        }
        if let Some((moe, (program, priced))) = priced {
            let shown = self.exchanges_shown(block, &program, &priced, Direction::Backward);
            self.pass(&with_durations(priced.pass(&program, Direction::Backward), &shown), &mut workspace.streams);
            let (tokens, placement) = (e.plan.tokens(moe), &e.placements[layer]);
            for (rank, experts) in self.experts.iter_mut().enumerate() {
                let held = held_rows(tokens, &program, &priced, placement, rank);
                experts.backward(moe, &held, self.recompute);
            }
            self.moved += priced.moved[1];
            workspace.scratch.reuse(priced);
        }
        self.dense_block(block, Direction::Backward);
    }

    /// All ranks do the same, in parts one after the other; no host is needed.
    fn advance<const PARTS: usize>(&mut self, activity: Activity, parts: [Seconds; PARTS]) {
        self.issue(activity, Issue::default(), parts);
    }

    /// All ranks do the same, in parts one after the other, that their hosts issue.
    fn issue<const PARTS: usize>(&mut self, activity: Activity, issue: Issue, parts: [Seconds; PARTS]) {
        let (block, work) = (self.block, self.turn.map(|turn| turn.work));
        let mut starved = Seconds::ZERO;
        for (position, (rank, clock)) in self.ranks.clone().zip(&mut self.clock).enumerate() {
            let start = *clock;
            let [_, from] = self.hosts.issue(position, issue, start);
            let end = |from| parts.iter().fold(from, |end, &part| end + part);
            let alone = end(Seconds::ZERO);
            // To the bit what it is alone where nothing is beside it.
            let until =
                if self.links.are_shared() { self.links.kernels(position, from, alone, |_, _| ()) } else { end(from) };
            *clock = until.max(self.hosts.clock()[position]);
            starved += *clock - end(start);
            self.recorder.record(Span { rank, activity, block, work, start, end: *clock });
        }
        for part in parts {
            self.ledger.add(activity.phase(), part * self.clock.len() as f64);
        }
        self.ledger.add(activity.phase(), starved);
    }

    /// One pass of a layer program.
    fn pass(&mut self, pass: &TimedPass, streams: &mut Streams) {
        let Self { ranks, block, turn, clock, hosts, links, ledger, recorder, .. } = self;
        let (first, block, work) = (ranks.start, *block, turn.map(|turn| turn.work));
        streams.run(pass, clock, hosts, links, ledger, |op, starts, ends| {
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

    /// What a selective recomputation does again of a block's experts: results of activation functions.
    fn experts_again(&mut self, moe: &Moe, priced: &LayerPrice) {
        let part = moe.cut(priced.parts);
        let again = part.entry_activations() - part.entry_kept(self.recompute);
        let (block, work, costs) = (self.block, self.turn.map(|turn| turn.work), self.evaluation.costs);
        for ((rank, clock), &rows) in self.ranks.clone().zip(&mut self.clock).zip(&priced.computed_rows) {
            let (start, time) = (*clock, costs.elementwise(again * (2.0 * rows as f64)));
            *clock += time;
            self.ledger.add(Phase::Experts, time);
            self.recorder.record(Span { rank, activity: Activity::Block, block, work, start, end: *clock });
        }
    }

    /// Everything of a block but its MoE layer.
    fn dense_block(&mut self, block: &Block, direction: Direction) {
        if self.evaluation.job.scope == Scope::Layer {
            return;
        }
        let issue = self.dense.block_issue(block, direction);
        self.issue(Activity::Block, issue, self.dense.block(block, direction));
        if self.evaluation.plan.tp > 1 {
            self.advance(Activity::TensorParallel, [self.dense.collectives(block, direction)]);
        }
    }

    /// Embedding before the first chunk, head and loss after the last.
    fn edges(&mut self, chunk: usize, direction: Direction) {
        let blocks = &self.chunks[chunk].blocks;
        let ends = [blocks.start == 0, blocks.end == self.evaluation.job.model.blocks.len()];
        if self.evaluation.job.scope == Scope::Layer {
            return;
        }
        let issue = self.dense.edges_issue(ends, direction);
        self.issue(Activity::Edge, issue, [self.dense.edges(ends, direction)]);
        if self.evaluation.plan.tp > 1 {
            self.advance(Activity::TensorParallel, [self.dense.edge_collectives(ends, direction)]);
        }
    }
}

impl Chunk {
    fn new(evaluation: &Evaluation, number: usize) -> Self {
        let Evaluation { job, plan, costs, policy, .. } = *evaluation;
        let blocks = plan.chunk_blocks(job, number);
        let first_layer = job.model.blocks[..blocks.start].iter().filter_map(Block::moe).count();
        let (mut state, mut queued) = ([Seconds::ZERO; 2], OfBlock::default());
        if plan.zero >= Zero::Gradients {
            let traffic = StateTraffic::of_chunk(job, plan, costs, number);
            match policy.overlap().queued {
                true => queued = traffic.of_block(blocks.len()),
                false => state = [Direction::Forward, Direction::Backward].map(|direction| traffic.of_pass(direction)),
            }
        }
        Self { number, blocks, first_layer, state, queued }
    }
}

/// What a rank holds of a priced layer.
fn held_rows(
    tokens: usize,
    program: &LayerProgram,
    priced: &LayerPrice,
    placement: &Placement,
    rank: usize,
) -> HeldRows {
    let (sent, received) = (priced.laid_out_rows[rank], priced.computed_rows[rank]);
    let copies = program.shadowed.iter().filter(|&&expert| placement.rank_of(expert) != rank).count();
    HeldRows { tokens, layout: program.layout, sent, received, copies, parts: priced.parts }
}

impl Evaluation<'_> {
    /// Entries of micro-batch `m` in expert-parallel group `group`, whose ranks are on `nodes`, after the gate's capacity and the
    /// system's restriction. A batch with fewer chunks than the job has samples is gone through again.
    pub(super) fn count(
        &self,
        [group, m]: [usize; 2],
        layer: usize,
        moe: &Moe,
        nodes: &[usize],
        counts: &mut RoutingCounts,
    ) {
        let Evaluation { job, plan, policy, batch, .. } = *self;
        let tokens = plan.tokens(moe);
        counts.clear(plan.ep, moe.experts);
        for rank in 0..plan.ep {
            let position = group * plan.ep + rank;
            let row = counts.row_mut(rank);
            for sample in plan.samples(job, position, m) {
                for (sum, &count) in row.iter_mut().zip(batch.chunk(layer, sample % batch.chunks())) {
                    *sum += count;
                }
            }
            if plan.tp > 1 {
                slice_for(row, position % plan.tp, plan.tp);
            }
            job.gate.admit(row, tokens, job.top_k(), &job.gate_statistics);
        }
        policy.restrict(counts, nodes);
    }
}

/// The pass with other durations, if there are any.
fn with_durations<'a>(pass: TimedPass<'a>, durations: &'a Option<Vec<Seconds>>) -> TimedPass<'a> {
    TimedPass { durations: durations.as_deref().unwrap_or(pass.durations), ..pass }
}

/// The part of a row of counts that falls to tensor-parallel rank `index` of `tp`; the parts add up to the row.
fn slice_for(row: &mut [u32], index: usize, tp: usize) {
    let (index, tp) = (index as u32, tp as u32);
    for count in row {
        *count = *count * (index + 1) / tp - *count * index / tp;
    }
}
