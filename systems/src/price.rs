//! Prices a layer program: how long each of its tasks takes on each rank of an expert-parallel group.
//!
//! An exchange step is issued as one or more grouped calls, one after the other ([`crate::program::Exchange`]), so a step
//! costs the sum over calls of each call's busiest port.

use workloads::model::Moe;
use workloads::{Bytes, Flops, Seconds};

use crate::cost::{CostModel, Group};
use crate::placement::Placement;
use crate::program::{LayerProgram, Layout, Op, Rows, Task};
use crate::routing::RoutingCounts;
use crate::traffic::{Table, Traffic};

/// Where a group's ranks are.
#[derive(Clone, Debug)]
pub struct GroupPlace {
    /// How the network sees them.
    pub group: Group,
    /// The node of each rank, counted from the group's first.
    pub nodes: Vec<usize>,
}

/// Durations of a program's tasks on each rank.
#[derive(Clone, Debug)]
pub struct LayerPrice {
    /// `[task][rank]`, forward, flat.
    pub forward: Vec<Seconds>,
    /// `[task][rank]`, backward, flat.
    pub backward: Vec<Seconds>,
    /// Rows that each rank's experts compute, shadowed ones included: `[rank]`.
    pub computed_rows: Vec<u64>,
}

/// Prices `program` for one micro-batch of `tokens` tokens on each rank.
pub fn price(
    program: &LayerProgram,
    counts: &RoutingCounts,
    placement: &Placement,
    moe: &Moe,
    tokens: usize,
    place: &GroupPlace,
    costs: &CostModel,
) -> LayerPrice {
    let rows = Rows::new(program, counts, placement);
    let table = Table::new(program, &rows, placement.slots_per_rank(), &place.nodes);
    let entries = counts.total();
    let layout = program.layout;
    let pricer = Pricer { ranks: rows.ranks(), rows: &rows, table: &table, moe, tokens, entries, layout, place, costs };
    LayerPrice {
        forward: pricer.pass(&program.forward, false),
        backward: pricer.pass(&program.backward, true),
        computed_rows: pricer.computed_rows(program),
    }
}

struct Pricer<'a> {
    ranks: usize,
    rows: &'a Rows<'a>,
    table: &'a Table,
    moe: &'a Moe,
    tokens: usize,
    entries: u64,
    layout: Layout,
    place: &'a GroupPlace,
    costs: &'a CostModel,
}

impl Pricer<'_> {
    fn pass(&self, tasks: &[Task], backward: bool) -> Vec<Seconds> {
        let expert = if backward { self.costs.expert_backward(self.moe) } else { self.costs.expert_forward(self.moe) };
        let mut durations = Vec::with_capacity(tasks.len() * self.ranks);
        for task in tasks {
            match task.op {
                Op::Experts { step } => {
                    let arrived = self.table.arrived(step);
                    durations.extend(arrived.map(|slots| slots.iter().map(|&rows| expert.of(rows)).sum::<Seconds>()));
                }
                Op::Shadow { expert: shadowed } => {
                    durations.extend((0..self.ranks).map(|rank| expert.of(self.rows.shadowed(rank, shadowed))));
                }
                op => {
                    let same = self.uniform(op, backward);
                    durations.extend(std::iter::repeat_n(same, self.ranks));
                }
            }
        }
        durations
    }

    /// Ops that take every rank the same time.
    fn uniform(&self, op: Op, backward: bool) -> Seconds {
        match op {
            Op::Gate => self.gate(backward),
            Op::Counts => {
                let bytes = Bytes(8.0 * self.moe.experts as f64);
                let own_node = self.place.group.size.div_ceil(self.place.group.nodes);
                let outside = u64::from(self.place.group.nodes > 1);
                let one = Traffic { intra: 1, inter: outside, node: outside, peers: self.ranks - own_node };
                self.costs.exchange(&self.place.group, &one, bytes)
            }
            Op::Sync => self.costs.synchronisation(),
            Op::Decide { steps } => self.costs.decision(steps),
            Op::Dispatch { step } | Op::Combine { step } => self.exchange(step),
            Op::Broadcast { .. } | Op::ReduceGrad { .. } => {
                let bytes = Bytes(self.moe.expert_parameters() as f64 * workloads::model::HALF);
                self.costs.broadcast(&self.place.group, bytes)
            }
            Op::Experts { .. } | Op::Shadow { .. } => Seconds::ZERO,
        }
    }

    /// Scores and choice: one product, twice that backward; and the rows of all entries put into the order of the exchange
    /// and back.
    fn gate(&self, backward: bool) -> Seconds {
        let factor = if backward { 2.0 } else { 1.0 };
        let flops = Flops(2.0 * self.tokens as f64 * (self.moe.width * self.moe.experts) as f64);
        let moved = self.moe.entry_bytes() * (6.0 * self.entries as f64 / self.ranks as f64);
        match self.layout {
            Layout::Ragged => (self.costs.matrix(flops) + self.costs.scatter(moved)) * factor,
            Layout::Padded { rows } => {
                // The rows to send are cleared before entries are written into them.
                let cleared = self.moe.entry_bytes() * (self.moe.experts as f64 * f64::from(rows));
                (self.costs.matrix(flops) + self.costs.scatter(moved) + self.costs.elementwise(cleared)) * factor
            }
            Layout::OneHot { rows } => {
                let scores = self.costs.matrix(flops) * factor;
                scores + self.costs.one_hot(self.moe, self.tokens, rows, backward)
            }
        }
    }

    fn exchange(&self, step: usize) -> Seconds {
        let sent: Seconds = self
            .table
            .calls(step)
            .iter()
            .map(|traffic| self.costs.exchange(&self.place.group, traffic, self.moe.entry_bytes()))
            .sum();
        // Before either call of a hierarchical exchange, rows are read and written in its order.
        let reordered = self.moe.entry_bytes() * (4.0 * self.table.reordered(step) as f64);
        sent + self.costs.elementwise(reordered)
    }

    fn computed_rows(&self, program: &LayerProgram) -> Vec<u64> {
        let own = |rank: usize| {
            program.shadowed.iter().map(move |&expert| u64::from(self.rows.shadowed(rank, expert))).sum::<u64>()
        };
        let mut computed: Vec<u64> = (0..self.ranks).map(own).collect();
        for step in 0..program.steps {
            for (sum, slots) in computed.iter_mut().zip(self.table.arrived(step)) {
                *sum += slots.iter().map(|&rows| u64::from(rows)).sum::<u64>();
            }
        }
        computed
    }
}
