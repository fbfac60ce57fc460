//! Prices a layer program: how long each of its tasks takes on each rank of an expert-parallel group.
//!
//! An exchange step is issued as one or more grouped calls, one after the other ([`Exchange`]), so a step costs the sum over
//! calls of each call's busiest port.

use workloads::model::Moe;
use workloads::{Bytes, Flops, Seconds};

use crate::cost::{CostModel, Group, Traffic};
use crate::placement::Placement;
use crate::program::{Exchange, LayerProgram, Layout, Op, Rows, Task};
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
    let table = Table::new(program, &rows, placement.slots_per_rank(), &place.nodes);
    let entries = counts.total();
    let layout = program.layout;
    let pricer = Pricer { ranks: rows.ranks(), rows: &rows, table: &table, moe, tokens, entries, layout, place, costs };
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
    /// Grouped calls of a step.
    calls: usize,
    /// `[step][call]`.
    traffic: Vec<Traffic>,
    /// `[step]`: rows that the busiest rank puts into another order between calls; none in a direct exchange.
    reordered: Vec<u64>,
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
    fn new(program: &LayerProgram, rows: &Rows, slots: usize, nodes: &[usize]) -> Self {
        let (ranks, steps) = (rows.ranks(), program.steps);
        let node_count = nodes.iter().max().map_or(0, |last| last + 1);
        let (exchange, call_count) = match program.exchange {
            Exchange::PerExpert => (Exchange::PerExpert, slots),
            Exchange::Hierarchical if node_count > 1 => (Exchange::Hierarchical, 2),
            Exchange::Whole | Exchange::Hierarchical => (Exchange::Whole, 1),
        };
        let ports = Ports { rank: vec![[0; 4]; ranks], node: vec![[0; 2]; node_count] };
        let mut calls = vec![ports; steps * call_count];
        let mut peers = vec![0; steps * ranks];
        let mut sent_by = vec![0; steps * ranks];
        let mut arrived = vec![0; steps * ranks * slots];
        for source in 0..ranks {
            for owner in 0..ranks {
                let step = rows.step(source, owner);
                let first = (step * ranks + owner) * slots;
                peers[step * ranks + source] += usize::from(nodes[source] != nodes[owner]);
                for (slot, &expert) in rows.experts_of(owner).iter().enumerate() {
                    let sent = rows.sent(source, expert);
                    arrived[first + slot] += sent;
                    let sent = if source == owner { 0 } else { u64::from(sent) };
                    match exchange {
                        Exchange::PerExpert => calls[step * slots + slot].add(source, owner, nodes, sent),
                        Exchange::Whole => calls[step].add(source, owner, nodes, sent),
                        Exchange::Hierarchical => {
                            let relay = relay(source, owner, nodes);
                            calls[step * 2].add(source, relay, nodes, sent);
                            calls[step * 2 + 1].add(relay, owner, nodes, sent);
                            sent_by[step * ranks + source] += sent;
                        }
                    }
                }
            }
        }
        let most: Vec<usize> = peers.chunks_exact(ranks).map(|step| step.iter().copied().max().unwrap_or(0)).collect();
        let traffic = calls.iter().enumerate().map(|(call, ports)| {
            ports.busiest(match exchange {
                Exchange::Hierarchical if call % 2 == 0 => 0,
                Exchange::Hierarchical => node_count - 1,
                _ => most[call / call_count],
            })
        });
        let reordered = sent_by.chunks_exact(ranks).map(|step| step.iter().copied().max().unwrap_or(0)).collect();
        Self { slots, arrived, calls: call_count, traffic: traffic.collect(), reordered }
    }
}

/// The rank of `source`'s node with `owner`'s local number (the node's last, where it has fewer ranks).
fn relay(source: usize, owner: usize, nodes: &[usize]) -> usize {
    let first_of = |node| nodes.partition_point(|&n| n < node);
    let here = first_of(nodes[source]);
    let size = first_of(nodes[source] + 1) - here;
    here + (owner - first_of(nodes[owner])).min(size - 1)
}

impl Ports {
    fn add(&mut self, source: usize, owner: usize, nodes: &[usize], sent: u64) {
        if source == owner {
            return;
        }
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
    layout: Layout,
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
                let one = Traffic { intra: 1, inter: 1, node: 1, peers: self.ranks - own_node };
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
        let calls = self.table.calls;
        let sent: Seconds = self.table.traffic[step * calls..(step + 1) * calls]
            .iter()
            .map(|traffic| self.costs.exchange(&self.place.group, traffic, self.moe.entry_bytes()))
            .sum();
        // Before either call of a hierarchical exchange, rows are read and written in its order.
        let reordered = self.moe.entry_bytes() * (4.0 * self.table.reordered[step] as f64);
        sent + self.costs.elementwise(reordered)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two ranks, an expert each, one row for every pair.
    fn table(exchange: Exchange) -> Table {
        let counts = RoutingCounts::new(4, vec![0; 16]);
        let placement = Placement::identity(4, 4);
        let program = LayerProgram::padded(Layout::Padded { rows: 1 }, exchange, false);
        Table::new(&program, &Rows::new(&program, &counts, &placement), 1, &[0, 0, 1, 1])
    }

    #[test]
    fn padding_arrives_whatever_the_counts() {
        assert_eq!(table(Exchange::Whole).arrived, [4; 4]);
        assert_eq!(table(Exchange::Hierarchical).arrived, [4; 4]);
    }

    #[test]
    fn a_direct_exchange_has_more_peers_than_a_hierarchical_one() {
        let direct = table(Exchange::Whole);
        assert_eq!(direct.traffic, [Traffic { intra: 1, inter: 2, node: 4, peers: 2 }]);
        assert_eq!(direct.reordered, [0]);
        // First, two rows to the neighbour: its own and those that it passes on; then two rows to one peer.
        let hierarchical = table(Exchange::Hierarchical);
        let within = Traffic { intra: 2, inter: 0, node: 0, peers: 0 };
        assert_eq!(hierarchical.traffic, [within, Traffic { intra: 0, inter: 2, node: 4, peers: 1 }]);
        assert_eq!(hierarchical.reordered, [3]);
    }

    #[test]
    fn rows_are_passed_to_the_owners_local_number() {
        let nodes = [0, 0, 0, 1, 1];
        assert_eq!(relay(0, 4, &nodes), 1);
        assert_eq!(relay(4, 1, &nodes), 4);
        // The second node has no third rank.
        assert_eq!(relay(3, 2, &nodes), 4);
    }
}
