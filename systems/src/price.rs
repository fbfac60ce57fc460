//! Prices a layer program: how long each of its tasks takes on each rank of an expert-parallel group.
//!
//! An exchange step is issued as one grouped call per local expert slot, one after the other (as FastMoE does), so a step
//! costs the sum over slots of each call's busiest port.

use workloads::model::Moe;
use workloads::{Bytes, Flops, Seconds};

use crate::cost::{CostModel, Group, Traffic};
use crate::placement::Placement;
use crate::program::{LayerProgram, Op, Rows, Task};
use crate::routing::RoutingCounts;

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
    let table = Table::new(program.steps, &rows, placement.slots_per_rank(), &place.nodes);
    let pricer =
        Pricer { ranks: rows.ranks(), rows: &rows, table: &table, moe, tokens, entries: counts.total(), place, costs };
    LayerPrice {
        forward: pricer.pass(&program.forward, false),
        backward: pricer.pass(&program.backward, true),
        computed_rows: pricer.computed_rows(&program.shadowed),
    }
}

/// Rows and traffic per step, in physical order.
struct Table {
    slots: usize,
    /// `[step][rank][slot]` rows that arrive.
    arrived: Vec<u32>,
    /// `[step][slot]`.
    traffic: Vec<Traffic>,
}

/// Entries on each port in one grouped call.
#[derive(Clone, Default)]
struct Ports {
    /// `[rank]`: sent to and received from the own node, sent to and received from others.
    rank: Vec<[u64; 4]>,
    /// `[node]`: sent to and received from other nodes.
    node: Vec<[u64; 2]>,
}

impl Table {
    fn new(steps: usize, rows: &Rows, slots: usize, nodes: &[usize]) -> Self {
        let ranks = rows.ranks();
        let node_count = nodes.iter().max().map_or(0, |last| last + 1);
        let ports = Ports { rank: vec![[0; 4]; ranks], node: vec![[0; 2]; node_count] };
        let mut calls = vec![ports; steps * slots];
        let mut peers = vec![0; steps * ranks];
        let mut arrived = vec![0; steps * ranks * slots];
        for source in 0..ranks {
            for owner in 0..ranks {
                let step = rows.step(source, owner);
                let first = (step * ranks + owner) * slots;
                peers[step * ranks + source] += usize::from(nodes[source] != nodes[owner]);
                for (slot, &expert) in rows.experts_of(owner).iter().enumerate() {
                    let sent = rows.sent(source, expert);
                    arrived[first + slot] += sent;
                    if source != owner && sent > 0 {
                        calls[step * slots + slot].add(source, owner, nodes, u64::from(sent));
                    }
                }
            }
        }
        let most: Vec<usize> = peers.chunks_exact(ranks).map(|step| step.iter().copied().max().unwrap_or(0)).collect();
        let traffic = calls.iter().enumerate().map(|(call, ports)| ports.busiest(most[call / slots])).collect();
        Self { slots, arrived, traffic }
    }
}

impl Ports {
    fn add(&mut self, source: usize, owner: usize, nodes: &[usize], sent: u64) {
        let (from, to) = (nodes[source], nodes[owner]);
        let direction = if from == to { 0 } else { 2 };
        self.rank[source][direction] += sent;
        self.rank[owner][direction + 1] += sent;
        if from != to {
            self.node[from][0] += sent;
            self.node[to][1] += sent;
        }
    }

    fn busiest(&self, peers: usize) -> Traffic {
        let mut traffic = Traffic { peers, ..Traffic::default() };
        for port in &self.rank {
            traffic.intra = traffic.intra.max(port[0]).max(port[1]);
            traffic.inter = traffic.inter.max(port[2]).max(port[3]);
        }
        for port in &self.node {
            traffic.node = traffic.node.max(port[0]).max(port[1]);
        }
        traffic
    }
}

struct Pricer<'a> {
    ranks: usize,
    rows: &'a Rows<'a>,
    table: &'a Table,
    moe: &'a Moe,
    tokens: usize,
    entries: u64,
    place: &'a GroupPlace,
    costs: &'a CostModel,
}

impl Pricer<'_> {
    fn pass(&self, tasks: &[Task], backward: bool) -> Vec<Seconds> {
        let mut durations = Vec::with_capacity(tasks.len() * self.ranks);
        for task in tasks {
            match task.op {
                Op::Experts { step } => {
                    durations.extend((0..self.ranks).map(|r| self.experts(step, r, backward)));
                }
                Op::Shadow { expert } => durations
                    .extend((0..self.ranks).map(|rank| self.expert(self.rows.shadowed(rank, expert), backward))),
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

    /// Scores and choice: one product; and the rows of all entries put into the order of the exchange and back. Backward
    /// twice that.
    fn gate(&self, backward: bool) -> Seconds {
        let flops = Flops(2.0 * self.tokens as f64 * (self.moe.width * self.moe.experts) as f64);
        let moved = self.moe.entry_bytes() * (6.0 * self.entries as f64 / self.ranks as f64);
        let forward = self.costs.matrix(flops) + self.costs.scatter(moved);
        if backward { forward * 2.0 } else { forward }
    }

    fn exchange(&self, step: usize) -> Seconds {
        let slots = self.table.slots;
        self.table.traffic[step * slots..(step + 1) * slots]
            .iter()
            .map(|traffic| self.costs.exchange(&self.place.group, traffic, self.moe.entry_bytes()))
            .sum()
    }

    fn experts(&self, step: usize, rank: usize, backward: bool) -> Seconds {
        let first = (step * self.ranks + rank) * self.table.slots;
        self.table.arrived[first..first + self.table.slots].iter().map(|&rows| self.expert(rows, backward)).sum()
    }

    fn expert(&self, rows: u32, backward: bool) -> Seconds {
        if backward { self.costs.expert_backward(self.moe, rows) } else { self.costs.expert_forward(self.moe, rows) }
    }

    fn computed_rows(&self, shadowed: &[usize]) -> Vec<u64> {
        let slots = self.table.slots;
        (0..self.ranks)
            .map(|rank| {
                let arrived: u64 = self
                    .table
                    .arrived
                    .chunks_exact(self.ranks * slots)
                    .flat_map(|step| &step[rank * slots..(rank + 1) * slots])
                    .map(|&rows| u64::from(rows))
                    .sum();
                let own: u64 = shadowed.iter().map(|&expert| u64::from(self.rows.shadowed(rank, expert))).sum();
                arrived + own
            })
            .collect()
    }
}
