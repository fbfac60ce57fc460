//! Prices a layer program: how long each of its tasks takes on each rank of an expert-parallel group.
//!
//! An exchange step is issued as one or more grouped calls, one after the other ([`crate::program::Exchange`]), so a step
//! costs the sum over calls of each call's busiest port.

pub mod cost;
pub mod hosts;
pub mod ledger;
pub mod network;
pub mod streams;
pub mod traffic;

use std::ops::AddAssign;

use workloads::model::Moe;
use workloads::{Bytes, Flops, Seconds};

use crate::plan::placement::Placement;
use crate::price::cost::CostModel;
use crate::price::hosts::Issue;
use crate::price::network::Group;
use crate::price::streams::TimedPass;
use crate::price::traffic::{Table, Traffic};
use crate::program::copies::Transfer;
use crate::program::routing::RoutingCounts;
use crate::program::{Direction, Exchange, LayerProgram, Layout, Op, Rows, Stream, Task};

/// Bytes of a number in the gradient of a copied or sharded expert: it is summed in single precision on its way (UltraEP 2026).
pub(crate) const RETURNED_GRADIENT: f64 = 4.0;

/// Durations of a program's tasks on each rank.
#[derive(Clone, Debug, Default)]
pub struct LayerPrice {
    /// `[task][rank]`, forward, flat.
    pub forward: Vec<Seconds>,
    /// `[task][rank]`, backward, flat.
    pub backward: Vec<Seconds>,
    /// `[direction]`, `[task][rank]`, flat: what tasks take hosts; nothing where hosts are not followed.
    issue: [Vec<Issue>; 2],
    /// Entries of all ranks.
    pub entries: u64,
    /// Rows that each rank lays out for the exchange, shadowed experts' included: `[rank]`.
    pub laid_out_rows: Vec<u64>,
    /// Rows that each rank's experts compute, shadowed ones included: `[rank]`.
    pub computed_rows: Vec<u64>,
    /// Ranks over which each expert's inner width is cut.
    pub parts: usize,
    /// `[direction]`.
    pub moved: [Moved; 2],
}

/// Weights and gradients of shadowed, copied and restored experts on their way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// What all ranks together send.
    pub bytes: Bytes,
    /// What that takes, be it hidden behind kernels or not.
    pub time: Seconds,
}

impl AddAssign for Moved {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.time += other.time;
    }
}

impl LayerPrice {
    /// One pass of the program that was priced.
    pub fn pass<'a>(&'a self, program: &'a LayerProgram, direction: Direction) -> TimedPass<'a> {
        let (steps, issue) = (program.steps, &self.issue[direction as usize]);
        match direction {
            Direction::Forward => TimedPass { tasks: &program.forward, durations: &self.forward, issue, steps },
            Direction::Backward => TimedPass { tasks: &program.backward, durations: &self.backward, issue, steps },
        }
    }

    /// Where the program's forward pass is run again right before its backward pass: this one finds weights in their slots.
    pub fn after_recomputation(&mut self, program: &LayerProgram) {
        let ranks = self.computed_rows.len();
        if program.fills_slots() {
            let [_, issue] = &mut self.issue;
            for (index, _) in program.backward.iter().enumerate().filter(|(_, task)| task.op.fills_slots()) {
                let of_task = index * ranks..(index + 1) * ranks;
                self.backward[of_task.clone()].fill(Seconds::ZERO);
                issue.get_mut(of_task).into_iter().for_each(|issue| issue.fill(Issue::default()));
            }
            // As much as the forward pass brings.
            let [forward, backward] = &mut self.moved;
            backward.bytes = backward.bytes - forward.bytes;
            backward.time = backward.time - forward.time;
        }
    }
}

/// What a layer's prices depend on besides its program and routing.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The layer.
    pub moe: &'a Moe,
    /// Tokens of each rank.
    pub tokens: usize,
    /// The ranks.
    pub place: &'a Group,
    /// The cluster.
    pub costs: &'a CostModel,
}

/// Memory to price in, kept from layer to layer.
#[derive(Default)]
pub struct Scratch {
    table: Table,
    /// `[step]`.
    exchanges: Vec<Seconds>,
    /// Of the weights of the program's copies, `[round]`; an expert is [`EXPERT`].
    copies: Vec<Traffic>,
    /// Of their gradients, where anything moves in it.
    returned: [Option<Traffic>; 2],
    /// Of experts that are restored from parts, a part a unit.
    parts: Option<Traffic>,
    /// How a rank calls for weights of copies, and for gradients.
    copying: [Calls; 2],
    /// Prices that nobody needs any more.
    spare: Vec<LayerPrice>,
}

/// Grouped calls of an exchange or a transfer, and what a rank sends and receives in each of them: ranks or parts, both counted.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    calls: usize,
    parts: usize,
}

impl Scratch {
    /// Takes back a price, to fill it again.
    pub fn reuse(&mut self, price: LayerPrice) {
        self.spare.push(price);
    }
}

impl Setting<'_> {
    /// Prices `program` for one micro-batch.
    pub fn price(&self, program: &LayerProgram, counts: &RoutingCounts, placement: &Placement) -> LayerPrice {
        self.price_in(&mut Scratch::default(), program, counts, placement)
    }

    /// Prices `program` for one micro-batch, without new memory where `scratch` has some.
    pub fn price_in(
        &self,
        scratch: &mut Scratch,
        program: &LayerProgram,
        counts: &RoutingCounts,
        placement: &Placement,
    ) -> LayerPrice {
        let mut priced = scratch.spare.pop().unwrap_or_default();
        let rows = Rows::new(program, counts, placement);
        if !program.copies.is_empty() {
            let rounds = program.transfers(placement, self.moe.expert_parameters() as usize);
            let (returns, slots) = (program.returns(placement), placement.slots_per_rank());
            let mut traffic =
                |of: &[Transfer]| scratch.table.between(of.iter().map(|of| amount(of, slots)), self.place);
            scratch.copies.clear();
            scratch.copies.extend(rounds.iter().map(|of| traffic(of)));
            scratch.returned = returns.each_ref().map(|of| (!of.is_empty()).then(|| traffic(of)));
            scratch.copying = [&rounds[..], &returns].map(|rounds| calls_of(rounds, slots));
        }
        if program.split.of_parts() && program.fills_slots() {
            let pairs = holders(placement).into_iter().map(|(from, to)| (from, to, 1));
            scratch.parts = Some(scratch.table.between(pairs, self.place));
        } else {
            scratch.parts = None;
        }
        scratch.table.fill(program, &rows, self.place);
        scratch.exchanges.clear();
        scratch.exchanges.extend((0..program.steps).map(|step| self.exchange(&scratch.table, step)));
        let entries_of = |rank| counts.row(rank).iter().map(|&count| u64::from(count)).sum::<u64>();
        priced.laid_out_rows.clear();
        priced.laid_out_rows.extend((0..counts.ranks()).map(entries_of));
        priced.entries = priced.laid_out_rows.iter().sum();
        if let Some(same) = program.layout.rows() {
            priced.laid_out_rows.fill(u64::from(same) * self.moe.experts as u64);
        }
        priced.parts = program.parts(placement);
        priced.laid_out_rows.iter_mut().for_each(|rows| *rows *= priced.parts as u64);
        let pricer =
            Pricer { setting: self, rows: &rows, scratch, entries: priced.entries, program, parts: priced.parts };
        pricer.pass(&program.forward, Direction::Forward, &mut priced.forward);
        pricer.pass(&program.backward, Direction::Backward, &mut priced.backward);
        let [forward, backward] = &mut priced.issue;
        pricer.issue(&program.forward, Direction::Forward, forward);
        pricer.issue(&program.backward, Direction::Backward, backward);
        pricer.computed_rows(program, &mut priced.computed_rows);
        let passes = [(&program.forward, &priced.forward), (&program.backward, &priced.backward)];
        priced.moved = passes.map(|(tasks, durations)| pricer.moved(tasks, durations));
        priced
    }

    /// One step of an exchange: the same there and back, forward and backward.
    fn exchange(&self, table: &Table, step: usize) -> Seconds {
        let calls = table.calls(step).iter();
        let sent: Seconds = calls.map(|traffic| self.costs.exchange(self.place, traffic, self.moe.entry_bytes())).sum();
        // Before either call of a hierarchical exchange, rows are read and written in its order.
        let reordered = self.moe.entry_bytes() * (4.0 * table.reordered(step) as f64);
        sent + self.costs.elementwise(reordered)
    }
}

/// The pairs of ranks that hold parts of one expert, an expert after the other.
fn holders(placement: &Placement) -> Vec<(usize, usize)> {
    let ranks_of = |expert| placement.ranks_of(expert);
    let pairs = |expert| ranks_of(expert).flat_map(move |from| ranks_of(expert).map(move |to| (from, to)));
    (0..placement.experts()).flat_map(pairs).collect()
}

/// An expert, of which traffic counts parts: every number of copies up to 12 divides it.
const EXPERT: u32 = 27720;

/// Between which ranks how much moves.
fn amount(of: &Transfer, slots_per_rank: usize) -> (usize, usize, u32) {
    let (from, to) = of.ranks(slots_per_rank);
    (from, to, of.numbers(EXPERT as usize).len() as u32)
}

/// The calls for transfers, one a round: in each, a rank has as many to send or to receive as the one that has most of all.
fn calls_of(rounds: &[Vec<Transfer>], slots_per_rank: usize) -> Calls {
    let calls = rounds.iter().filter(|of| !of.is_empty()).count();
    let mut of_rank = Vec::new();
    for (from, to) in rounds.iter().flatten().map(|of| of.ranks(slots_per_rank)) {
        of_rank.resize(of_rank.len().max(from + 1).max(to + 1), 0usize);
        of_rank[from] += 1;
        of_rank[to] += 1;
    }
    let most = of_rank.into_iter().max().unwrap_or(0);
    Calls { calls, parts: most.div_ceil(calls.max(1)) }
}

struct Pricer<'a> {
    setting: &'a Setting<'a>,
    rows: &'a Rows<'a>,
    scratch: &'a Scratch,
    entries: u64,
    program: &'a LayerProgram,
    parts: usize,
}

impl Pricer<'_> {
    fn pass(&self, tasks: &[Task], direction: Direction, durations: &mut Vec<Seconds>) {
        let Setting { moe, costs, .. } = self.setting;
        let expert = costs.expert(&moe.cut(self.parts), direction);
        let ranks = self.rows.ranks();
        durations.clear();
        durations.reserve_exact(tasks.len() * ranks);
        for task in tasks {
            match task.op {
                Op::Experts { step } => {
                    let arrived = self.scratch.table.arrived(step);
                    durations.extend(arrived.map(|slots| expert.of_all(slots, self.program.products)));
                }
                Op::Shadow { expert: shadowed } => {
                    durations.extend((0..ranks).map(|rank| expert.of(self.rows.shadowed(rank, shadowed))));
                }
                op => {
                    let of_counts = |other: usize| op == Op::Sync && tasks[other].op == Op::Counts;
                    let is_read = costs.reads_counts() && task.after.is_some_and(of_counts);
                    let same = if is_read { Seconds::ZERO } else { self.uniform(op, direction) };
                    durations.extend(std::iter::repeat_n(same, ranks));
                }
            }
        }
    }

    /// What the tasks of a pass take hosts, if they are followed.
    fn issue(&self, tasks: &[Task], direction: Direction, times: &mut Vec<Issue>) {
        let &Setting { moe, costs, .. } = self.setting;
        times.clear();
        if !costs.follows_hosts() {
            return;
        }
        let (ranks, expert) = (self.rows.ranks(), costs.expert_issue(&moe.cut(self.parts), direction));
        for task in tasks {
            match task.op {
                Op::Experts { step } => {
                    times.extend(self.scratch.table.arrived(step).map(|slots| expert.of_experts(slots)));
                }
                Op::Shadow { expert: shadowed } => {
                    times.extend((0..ranks).map(|rank| expert.of_experts(&[self.rows.shadowed(rank, shadowed)])));
                }
                op => times.extend(std::iter::repeat_n(self.uniform_issue(op, direction), ranks)),
            }
        }
    }

    /// Ops that take every host the same time. A rank alone exchanges nothing.
    fn uniform_issue(&self, op: Op, direction: Direction) -> Issue {
        let &Setting { moe, tokens, costs, .. } = self.setting;
        let alone = self.rows.ranks() == 1;
        match op {
            Op::Gate if self.program.layout == Layout::Ragged => {
                let gate = costs.gate_issue(moe, tokens, direction);
                let permute = costs.permute_issue(moe, tokens);
                match self.permutes_in_gate(direction) {
                    // The host issues the rest while the GPU scores.
                    true => Issue { host: gate.host + permute.host, lead: gate.lead.max(permute.lead) },
                    false => gate,
                }
            }
            Op::Permute if self.program.layout == Layout::Ragged => costs.permute_issue(moe, tokens),
            op if op.stream() == Stream::Compute || alone => Issue::default(),
            Op::Counts => costs.counts_issue(),
            op => {
                let Calls { calls, parts } = self.calls(op);
                costs.exchange_issue(calls, parts)
            }
        }
    }

    /// What a rank calls for an exchange or a transfer.
    fn calls(&self, op: Op) -> Calls {
        let (ranks, shadowed) = (self.rows.ranks(), self.rows.shadowed_experts());
        match op {
            Op::Dispatch { step } | Op::Combine { step } => {
                let calls = self.scratch.table.calls(step).len();
                match self.program.exchange {
                    Exchange::PerExpert | Exchange::Whole => {
                        Calls { calls, parts: 2 * (ranks / self.program.steps - usize::from(step == 0)) }
                    }
                    // The ranks of the node and one of each other node, in one call or one after the other.
                    Exchange::Hierarchical | Exchange::OncePerNode { .. } => {
                        let on_a_node = || self.setting.place.nodes().chunk_by(|a, b| a == b).map(<[usize]>::len);
                        let others = on_a_node().max().unwrap_or(1) - 1 + on_a_node().count() - 1;
                        Calls { calls, parts: 2 * others / calls }
                    }
                }
            }
            Op::CopyWeights => self.scratch.copying[0],
            Op::ReturnGrad => self.scratch.copying[1],
            Op::Unshard | Op::Reshard if self.scratch.parts.is_some() => {
                Calls { calls: 1, parts: 2 * (self.rows.copies_of(0) - 1) }
            }
            // A shard to every slot, and one from every rank for each of its own.
            Op::Unshard | Op::Reshard => {
                let filled = |rank| self.rows.experts_of(rank).iter().flatten().count();
                let most = (0..ranks).map(filled).max().unwrap_or(0);
                Calls { calls: 1, parts: (0..ranks).map(filled).sum::<usize>() + most * ranks }
            }
            Op::GatherShadows | Op::ScatterGrads => Calls { calls: shadowed, parts: 0 },
            _ => Calls { calls: 1, parts: 0 },
        }
    }

    /// Ops that take every rank the same time.
    fn uniform(&self, op: Op, direction: Direction) -> Seconds {
        let Setting { moe, tokens, place, costs } = self.setting;
        match op {
            Op::Gate => self.gate(direction),
            Op::Permute if self.program.layout == Layout::Ragged => costs.measured_permute(moe, *tokens),
            Op::Counts => costs.counts(place, Bytes(8.0 * moe.experts as f64)),
            // A rank alone exchanges nothing that it could wait for.
            Op::Sync if self.rows.ranks() == 1 => Seconds::ZERO,
            Op::Sync => costs.synchronisation(),
            Op::Decide { steps } => costs.decision(steps),
            Op::Dispatch { step } | Op::Combine { step } => self.scratch.exchanges[step],
            Op::Broadcast { .. } => costs.broadcast(place, self.weights(workloads::model::HALF)),
            Op::ReduceGrad { .. } => costs.broadcast(place, self.weights(costs.gradient_bytes())),
            Op::GatherShadows | Op::ScatterGrads => {
                let bytes = if op == Op::ScatterGrads { costs.gradient_bytes() } else { workloads::model::HALF };
                costs.all_gather(place, self.weights(bytes) * self.rows.shadowed_experts() as f64)
            }
            Op::CopyWeights => {
                let part = self.weights(workloads::model::HALF) / f64::from(EXPERT);
                self.scratch.copies.iter().map(|traffic| costs.exchange(place, traffic, part)).sum()
            }
            Op::ReturnGrad => {
                let part = self.weights(RETURNED_GRADIENT) / f64::from(EXPERT);
                self.scratch.returned.iter().flatten().map(|traffic| costs.exchange(place, traffic, part)).sum()
            }
            Op::Unshard => self.restored(workloads::model::HALF),
            Op::Reshard => self.restored(RETURNED_GRADIENT),
            Op::Permute | Op::Experts { .. } | Op::Shadow { .. } | Op::Await => Seconds::ZERO,
        }
    }

    /// Weights and gradients of experts that move in a pass, in which every rank takes as long for them.
    fn moved(&self, tasks: &[Task], durations: &[Seconds]) -> Moved {
        let (ranks, half) = (self.rows.ranks(), workloads::model::HALF);
        let summed = self.setting.costs.gradient_bytes();
        let restored = || {
            let holders = if self.scratch.parts.is_some() { self.rows.copies_of(0) } else { ranks };
            let filled = (0..ranks).map(|rank| self.rows.experts_of(rank).iter().flatten().count());
            filled.sum::<usize>() as f64 * (1.0 - 1.0 / holders as f64)
        };
        let (to_others, copied) = ((ranks - 1) as f64, self.program.copies.len() as f64);
        let mut moved = Moved::default();
        for (task, durations) in tasks.iter().zip(durations.chunks_exact(ranks)) {
            let (experts, bytes) = match task.op {
                Op::Broadcast { .. } => (to_others, half),
                Op::ReduceGrad { .. } => (to_others, summed),
                Op::GatherShadows => (to_others * self.rows.shadowed_experts() as f64, half),
                Op::ScatterGrads => (to_others * self.rows.shadowed_experts() as f64, summed),
                Op::CopyWeights => (copied, half),
                Op::ReturnGrad => (copied, RETURNED_GRADIENT),
                Op::Unshard => (restored(), half),
                Op::Reshard => (restored(), RETURNED_GRADIENT),
                _ => continue,
            };
            moved += Moved { bytes: self.weights(bytes) * experts, time: durations[0] };
        }
        moved
    }

    /// An expert's weights or gradients, in numbers of so many bytes.
    fn weights(&self, bytes: f64) -> Bytes {
        Bytes(self.setting.moe.expert_parameters() as f64 * bytes)
    }

    /// Every rank receives from all the shards of the experts in its slots, in numbers of so many bytes, and sends as much: as many as
    /// the rank with most. Parts of experts come from the ranks that have the other parts.
    fn restored(&self, bytes: f64) -> Seconds {
        let Setting { place, costs, .. } = self.setting;
        if let Some(traffic) = &self.scratch.parts {
            return costs.exchange(place, traffic, self.weights(bytes) / self.rows.copies_of(0) as f64);
        }
        let filled = |rank| self.rows.experts_of(rank).iter().flatten().count();
        let most = (0..self.rows.ranks()).map(filled).max().unwrap_or(0);
        let shard = self.weights(bytes) * (most as f64 / self.rows.ranks() as f64);
        costs.exchange(place, &Traffic::all_to_all(place), shard)
    }

    /// Scores and choice: one product, twice that backward; and the rows of all entries put into the order of the exchange
    /// and back; where putting them into order was measured apart, only in programs without a task for it.
    fn gate(&self, direction: Direction) -> Seconds {
        let &Setting { moe, tokens, costs, .. } = self.setting;
        let factor = direction.products();
        let flops = Flops(2.0 * tokens as f64 * (moe.width * moe.experts) as f64);
        let parts = self.parts as f64;
        let moved = moe.entry_bytes() * (6.0 * parts * self.entries as f64 / self.rows.ranks() as f64);
        if let (Layout::Ragged, Some(time)) = (self.program.layout, costs.measured_gate(moe, tokens, direction)) {
            let in_gate = self.permutes_in_gate(direction);
            return if in_gate { time + costs.measured_permute(moe, tokens) } else { time };
        }
        match self.program.layout {
            Layout::Ragged => (costs.matrix(flops) + costs.scatter(moved)) * factor,
            Layout::Padded { rows } => {
                // The rows to send are cleared before entries are written into them.
                let cleared = moe.entry_bytes() * (parts * moe.experts as f64 * f64::from(rows));
                (costs.matrix(flops) + costs.scatter(moved) + costs.elementwise(cleared)) * factor
            }
            Layout::OneHot { rows } => {
                let scores = costs.matrix(flops) * factor;
                scores + costs.one_hot(moe, tokens, rows, direction)
            }
        }
    }

    /// Whether rows are put into order with the gate, as in programs without a task for it.
    fn permutes_in_gate(&self, direction: Direction) -> bool {
        direction == Direction::Forward && !self.program.permutes()
    }

    fn computed_rows(&self, program: &LayerProgram, computed: &mut Vec<u64>) {
        let own = |rank: usize| {
            program.shadowed.iter().map(move |&expert| u64::from(self.rows.shadowed(rank, expert))).sum::<u64>()
        };
        computed.clear();
        computed.extend((0..self.rows.ranks()).map(own));
        for step in 0..program.steps {
            for (sum, slots) in computed.iter_mut().zip(self.scratch.table.arrived(step)) {
                *sum += slots.iter().map(|&rows| u64::from(rows)).sum::<u64>();
            }
        }
    }
}
