//! What a step of an exchange puts on each port: how many rows arrive where, and what the busiest GPU and node send or
//! receive in each grouped call.

use crate::program::{Exchange, LayerProgram, Rows};

/// What one grouped call of an exchange puts on the busiest ports, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Sent to, or received from, its own node by the busiest GPU.
    pub intra: u64,
    /// Sent to, or received from, other nodes by the busiest GPU.
    pub inter: u64,
    /// Sent to, or received from, other nodes by the busiest node.
    pub node: u64,
    /// Peers on other nodes of the GPU that has most of them.
    pub peers: usize,
}

/// Rows and traffic of a program's steps, in physical order.
pub struct Table {
    ranks: usize,
    slots: usize,
    /// `[step][rank][slot]`.
    arrived: Vec<u32>,
    /// Grouped calls of a step.
    calls: usize,
    /// `[step][call]`.
    traffic: Vec<Traffic>,
    /// Rows that the busiest rank puts into another order between the two calls of a hierarchical exchange.
    reordered: u64,
}

/// Rows of one GPU in one grouped call, to or from its own node and others.
#[derive(Clone, Copy, Default)]
struct Port {
    intra: u64,
    inter: u64,
}

impl Port {
    #[inline]
    fn add(&mut self, same_node: bool, rows: u32) {
        if same_node {
            self.intra += u64::from(rows);
        } else {
            self.inter += u64::from(rows);
        }
    }
}

impl Table {
    /// The traffic of `program` between ranks on `nodes`, which ascend.
    pub fn new(program: &LayerProgram, rows: &Rows, slots: usize, nodes: &[usize]) -> Self {
        let one_node = nodes.first() == nodes.last();
        match program.exchange {
            Exchange::PerExpert => Self::direct(program.steps, slots, slots, rows, nodes),
            Exchange::Hierarchical if !one_node => Self::hierarchical(slots, rows, nodes),
            Exchange::Whole | Exchange::Hierarchical => Self::direct(program.steps, 1, slots, rows, nodes),
        }
    }

    /// `[rank]`: the rows of each of its slots that arrive in a step.
    pub fn arrived(&self, step: usize) -> impl Iterator<Item = &[u32]> {
        let size = self.ranks * self.slots;
        self.arrived[step * size..(step + 1) * size].chunks_exact(self.slots)
    }

    /// The grouped calls of a step.
    pub fn calls(&self, step: usize) -> &[Traffic] {
        &self.traffic[step * self.calls..(step + 1) * self.calls]
    }

    /// Rows that the busiest rank of a step puts into another order; none in a direct exchange.
    pub fn reordered(&self, step: usize) -> u64 {
        if step == 0 { self.reordered } else { 0 }
    }

    /// Every row goes from its source straight to its owner, in `calls` grouped calls: one per slot, or one for all.
    fn direct(steps: usize, calls: usize, slots: usize, rows: &Rows, nodes: &[usize]) -> Self {
        let ranks = rows.ranks();
        let group = ranks / steps;
        let mut arrived = vec![0; steps * ranks * slots];
        // `[step][call][rank]`.
        let mut sent = vec![Port::default(); steps * calls * ranks];
        let mut received = sent.clone();
        for owner in 0..ranks {
            for (slot, &expert) in rows.experts_of(owner).iter().enumerate() {
                for first in (0..ranks).step_by(group) {
                    let step = rows.step(first, owner);
                    let call = (step * calls + slot % calls) * ranks;
                    let froms = &mut sent[call + first..call + first + group];
                    let (mut own, mut port) = (0, Port::default());
                    for (source, (from, &node)) in (first..).zip(froms.iter_mut().zip(&nodes[first..])) {
                        let entries = rows.sent(source, expert);
                        if source == owner {
                            own = entries;
                        } else {
                            let same_node = node == nodes[owner];
                            port.add(same_node, entries);
                            from.add(same_node, entries);
                        }
                    }
                    arrived[(step * ranks + owner) * slots + slot] = own + (port.intra + port.inter) as u32;
                    received[call + owner].intra += port.intra;
                    received[call + owner].inter += port.inter;
                }
            }
        }
        let peers = most_peers(steps, nodes);
        let ports = sent.chunks_exact(ranks).zip(received.chunks_exact(ranks)).enumerate();
        let traffic = ports.map(|(call, (sent, received))| busiest(sent, received, nodes, peers[call / calls]));
        Self { ranks, slots, arrived, calls, traffic: traffic.collect(), reordered: 0 }
    }

    /// Rows for another node go to the rank of the own node with the owner's local number first. One step.
    fn hierarchical(slots: usize, rows: &Rows, nodes: &[usize]) -> Self {
        let ranks = rows.ranks();
        let mut table = Self::direct(1, 1, slots, rows, nodes);
        let mut sent = vec![Port::default(); 2 * ranks];
        let mut received = sent.clone();
        let mut reordered = vec![0; ranks];
        for (source, reordered) in reordered.iter_mut().enumerate() {
            for owner in (0..ranks).filter(|&owner| owner != source) {
                let entries: u32 = rows.experts_of(owner).iter().map(|&expert| rows.sent(source, expert)).sum();
                let relay = relay(source, owner, nodes);
                *reordered += u64::from(entries);
                for (call, from, to) in [(0, source, relay), (ranks, relay, owner)] {
                    if from != to {
                        let same_node = nodes[from] == nodes[to];
                        sent[call + from].add(same_node, entries);
                        received[call + to].add(same_node, entries);
                    }
                }
            }
        }
        let other_nodes = nodes.last().map_or(0, |last| *last);
        let (within, across) = (busiest(&sent[..ranks], &received[..ranks], nodes, 0), ranks..2 * ranks);
        let across = busiest(&sent[across.clone()], &received[across], nodes, other_nodes);
        table.calls = 2;
        table.traffic = vec![within, across];
        table.reordered = reordered.into_iter().max().unwrap_or(0);
        table
    }
}

fn busiest(sent: &[Port], received: &[Port], nodes: &[usize], peers: usize) -> Traffic {
    let mut traffic = Traffic { peers, ..Traffic::default() };
    for ports in [sent, received] {
        // Ranks of a node follow each other.
        let (mut node, mut on_node) = (usize::MAX, 0);
        for (port, &on) in ports.iter().zip(nodes) {
            on_node = if on == node { on_node + port.inter } else { port.inter };
            node = on;
            traffic.intra = traffic.intra.max(port.intra);
            traffic.inter = traffic.inter.max(port.inter);
            traffic.node = traffic.node.max(on_node);
        }
    }
    traffic
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

/// The rank of `source`'s node with `owner`'s local number (the node's last, where it has fewer ranks).
fn relay(source: usize, owner: usize, nodes: &[usize]) -> usize {
    let first_of = |node| nodes.partition_point(|&n| n < node);
    let here = first_of(nodes[source]);
    let size = first_of(nodes[source] + 1) - here;
    here + (owner - first_of(nodes[owner])).min(size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Placement;
    use crate::program::Layout;
    use crate::routing::RoutingCounts;

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
        assert_eq!(direct.reordered, 0);
        // First, two rows to the neighbour: its own and those that it passes on; then two rows to one peer.
        let hierarchical = table(Exchange::Hierarchical);
        let within = Traffic { intra: 2, inter: 0, node: 0, peers: 0 };
        assert_eq!(hierarchical.traffic, [within, Traffic { intra: 0, inter: 2, node: 4, peers: 1 }]);
        assert_eq!(hierarchical.reordered, 3);
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
