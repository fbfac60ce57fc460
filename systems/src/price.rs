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

/// Entries that one GPU sends in one grouped call.
#[derive(Clone, Copy, Default)]
struct Sent {
    /// To its own node.
    intra: u64,
    /// To other nodes.
    inter: u64,
}

impl Table {
    fn new(steps: usize, rows: &Rows, slots: usize, nodes: &[usize]) -> Self {
        let ranks = rows.ranks();
        let group = ranks / steps;
        let node_count = nodes.iter().max().map_or(0, |last| last + 1);
        let mut arrived = vec![0; steps * ranks * slots];
        let mut traffic = vec![Traffic::default(); steps * slots];
        let mut sent = vec![Sent::default(); steps * slots * ranks];
        let mut into_node = vec![0u64; steps * slots * node_count];
        for owner in 0..ranks {
            for (slot, &expert) in rows.experts_of(owner).iter().enumerate() {
                for first in (0..ranks).step_by(group) {
                    let step = rows.step(first, owner);
                    let call = step * slots + slot;
                    let froms = &mut sent[call * ranks + first..call * ranks + first + group];
                    let (mut own, mut intra, mut inter) = (0, 0, 0);
                    for (source, (from, &node)) in (first..).zip(froms.iter_mut().zip(&nodes[first..])) {
                        let entries = rows.sent(source, expert);
                        if source == owner {
                            own = entries;
                        } else if node == nodes[owner] {
                            intra += entries;
                            from.intra += u64::from(entries);
                        } else {
                            inter += entries;
                            from.inter += u64::from(entries);
                        }
                    }
                    arrived[(step * ranks + owner) * slots + slot] = own + intra + inter;
                    into_node[call * node_count + nodes[owner]] += u64::from(inter);
                    traffic[call].intra = traffic[call].intra.max(u64::from(intra));
                    traffic[call].inter = traffic[call].inter.max(u64::from(inter));
                }
            }
        }
        let peers = most_peers(steps, nodes);
        for (call, traffic) in traffic.iter_mut().enumerate() {
            let sent = &sent[call * ranks..(call + 1) * ranks];
            traffic.send(sent, nodes, &mut into_node[call * node_count..(call + 1) * node_count]);
            traffic.peers = peers[call / slots];
        }
        Self { slots, arrived, traffic }
    }
}

impl Traffic {
    /// Takes what is sent into account, besides what is received; `node` holds what each node receives.
    fn send(&mut self, sent: &[Sent], nodes: &[usize], node: &mut [u64]) {
        self.node = node.iter().copied().max().unwrap_or(0);
        node.fill(0);
        for (from, &on) in sent.iter().zip(nodes) {
            self.intra = self.intra.max(from.intra);
            self.inter = self.inter.max(from.inter);
            node[on] += from.inter;
            self.node = self.node.max(node[on]);
        }
    }
}

/// `[step]`: most peers on other nodes that any rank sends to.
fn most_peers(steps: usize, nodes: &[usize]) -> Vec<usize> {
    let group = nodes.len() / steps;
    let peers = |source: usize, step: usize| {
        let owners = (source / group + step) % steps * group;
        nodes[owners..owners + group].iter().filter(|&&node| node != nodes[source]).count()
    };
    let most = |step| (0..nodes.len()).map(|source| peers(source, step)).max();
    (0..steps).map(|step| most(step).unwrap_or(0)).collect()
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
        let expert = if backward { self.costs.expert_backward(self.moe) } else { self.costs.expert_forward(self.moe) };
        let mut durations = Vec::with_capacity(tasks.len() * self.ranks);
        for task in tasks {
            match task.op {
                Op::Experts { step } => {
                    let size = self.ranks * self.table.slots;
                    let arrived = self.table.arrived[step * size..(step + 1) * size].chunks_exact(self.table.slots);
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
