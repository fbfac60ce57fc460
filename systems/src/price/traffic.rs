//! What a step of an exchange puts on each port: how many rows arrive where, and what the busiest GPU and the busiest uplink
//! send or receive in each grouped call.

use std::ops::Range;

use crate::price::network::Group;
use crate::program::{Exchange, LayerProgram, Rows};

/// What one grouped call of an exchange puts on the busiest ports, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Sent to, or received from, its own node by the busiest GPU.
    pub intra: u64,
    /// Sent to and received from its own node, together, by the GPU with most of both.
    pub both: u64,
    /// Sent to, or received from, other nodes by the busiest GPU.
    pub inter: u64,
    /// Sent to, or received from, other units by the busiest node or larger unit, as many as would take a node's whole network
    /// as long as they take the group's part of the unit's uplink.
    pub uplink: f64,
    /// Peers on other nodes of the GPU that has most of them.
    pub peers: usize,
}

impl Traffic {
    /// One row in all from every rank of `group`, spread evenly over the ranks.
    pub fn one_each(group: &Group) -> Self {
        let ranks = group.size();
        let mut uplink = 0.0f64;
        for (units, weights) in group.tiers() {
            for unit in units.chunk_by(|a, b| a == b) {
                let leaving = unit.len() as f64 * (ranks - unit.len()) as f64 / ranks as f64;
                uplink = uplink.max(leaving * weights[unit[0]]);
            }
        }
        let on_a_node = group.nodes().chunk_by(|a, b| a == b).map(<[usize]>::len);
        let peers = ranks - on_a_node.min().unwrap_or(ranks);
        Self { intra: 1, both: 2, inter: u64::from(!group.one_node()), uplink, peers }
    }
}

impl Traffic {
    /// One row from every rank of `group` to every other.
    pub fn all_to_all(group: &Group) -> Self {
        let ranks = group.size();
        let on_a_node = || group.nodes().chunk_by(|a, b| a == b).map(<[usize]>::len);
        let most = on_a_node().max().unwrap_or(1) as u64;
        let one = Self::one_each(group);
        let (intra, inter) = (most - 1, one.peers as u64);
        Self { intra, both: 2 * intra, inter, uplink: one.uplink * ranks as f64, peers: one.peers }
    }
}

/// Rows and traffic of a program's steps, in physical order. A table can be filled again, which needs no new memory.
#[derive(Default)]
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
    ports: Ports,
    /// `[owner][slot]`: the rows of one source.
    row: Vec<u32>,
}

/// Rows of every GPU in every grouped call: `[sent, received]`, `[rank][call]` each. A group's rows of one micro-batch fit 32
/// bits.
#[derive(Default)]
struct Ports {
    calls: usize,
    /// To or from its own node.
    intra: [Vec<u32>; 2],
    /// `[tier]`: to or from other nodes, then other units of each larger tier.
    outside: Vec<[Vec<u32>; 2]>,
    /// The maxima of each call over GPUs, and the sums of one unit.
    most: Vec<u32>,
    /// `[call]`: the maxima over uplinks.
    uplinks: Vec<f64>,
}

impl Table {
    /// The traffic of `program` between the ranks of `group`, in place of what the table held.
    pub fn fill(&mut self, program: &LayerProgram, rows: &Rows, group: &Group) {
        match program.exchange {
            Exchange::PerExpert => self.direct(program.steps, rows.slots_per_rank(), rows, group),
            Exchange::Hierarchical if !group.one_node() => self.hierarchical(rows, group),
            Exchange::Whole | Exchange::Hierarchical => self.direct(program.steps, 1, rows, group),
            Exchange::OncePerNode { top_k } => self.once_per_node(top_k, rows, group),
        }
    }

    /// One call in which so much goes between each of some pairs of ranks, `(from, to, amount)`, in place of what the table held.
    pub fn between(&mut self, pairs: impl Iterator<Item = (usize, usize, u32)>, group: &Group) -> Traffic {
        let ranks = group.size();
        self.ports.clear(ranks, 1, group);
        let pairs = pairs.filter(|(from, to, _)| from != to);
        let mut peers = vec![0; ranks];
        for (from, to, amount) in pairs {
            let crossed = group.crossed(from, to);
            self.ports.add(from, to, crossed, &[amount]);
            peers[from] += usize::from(crossed > 0);
        }
        let peers = peers.into_iter().max().unwrap_or(0);
        self.traffic.clear();
        self.ports.busiest(0..ranks, group, peers, &mut self.traffic);
        self.traffic[0]
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
    fn direct(&mut self, steps: usize, calls: usize, rows: &Rows, place: &Group) {
        let (ranks, slots) = (rows.ranks(), rows.slots_per_rank());
        let group = ranks / steps;
        (self.ranks, self.slots, self.calls, self.reordered) = (ranks, slots, calls, 0);
        clear(&mut self.arrived, steps * ranks * slots);
        clear(&mut self.row, ranks * slots);
        self.ports.clear(steps * ranks, calls, place);
        for source in 0..ranks {
            rows.to_slots(source, &mut self.row);
            for (owners, sent) in self.row.chunks_exact(group * slots).enumerate() {
                let step = (owners + steps - source / group) % steps;
                for (owner, sent) in (owners * group..).zip(sent.chunks_exact(slots)) {
                    let to = step * ranks + owner;
                    add(&mut self.arrived[to * slots..(to + 1) * slots], sent);
                    if owner != source {
                        self.ports.add(step * ranks + source, to, place.crossed(source, owner), sent);
                    }
                }
            }
        }
        self.traffic.clear();
        for step in 0..steps {
            let peers = most_peers(step, steps, place.nodes());
            self.ports.busiest(step * ranks..(step + 1) * ranks, place, peers, &mut self.traffic);
        }
    }

    /// A token goes to the rank of the source's local number on each other node once, and from there to each rank once; both
    /// hops run at the same time. One step.
    fn once_per_node(&mut self, top_k: u32, rows: &Rows, place: &Group) {
        let (ranks, nodes) = (rows.ranks(), place.nodes());
        self.direct(1, 1, rows, place);
        self.ports.clear(ranks, 1, place);
        let mut entries = vec![0; ranks];
        for source in 0..ranks {
            for (owner, sum) in entries.iter_mut().enumerate() {
                *sum = (0..rows.slots_per_rank()).map(|slot| rows.sent(source, owner, slot)).sum();
            }
            let all = entries.iter().sum();
            let mut first = 0;
            for node in nodes.chunk_by(|a, b| a == b) {
                let members = first..first + node.len();
                first = members.end;
                let via = if node[0] == nodes[source] { source } else { counterpart(source, members.clone(), nodes) };
                if via != source {
                    let tokens = distinct(entries[members.clone()].iter().sum(), all, top_k);
                    self.ports.add(source, via, place.crossed(source, via), &[tokens]);
                }
                for owner in members.filter(|&owner| owner != via) {
                    self.ports.add(via, owner, 0, &[distinct(entries[owner], all, top_k)]);
                }
            }
        }
        self.traffic.clear();
        self.ports.busiest(0..ranks, place, nodes[ranks - 1], &mut self.traffic);
    }

    /// Rows for another node go to the rank of the own node with the owner's local number first. One step.
    fn hierarchical(&mut self, rows: &Rows, place: &Group) {
        let (ranks, nodes) = (rows.ranks(), place.nodes());
        self.direct(1, 1, rows, place);
        // `[call][rank]`.
        self.ports.clear(2 * ranks, 1, place);
        for source in 0..ranks {
            let mut reordered = 0;
            for owner in (0..ranks).filter(|&owner| owner != source) {
                let entries: u32 = (0..rows.slots_per_rank()).map(|slot| rows.sent(source, owner, slot)).sum();
                let relay = relay(source, owner, nodes);
                reordered += u64::from(entries);
                for (call, from, to) in [(0, source, relay), (ranks, relay, owner)] {
                    if from != to {
                        self.ports.add(call + from, call + to, place.crossed(from, to), &[entries]);
                    }
                }
            }
            self.reordered = self.reordered.max(reordered);
        }
        // Nodes are counted from the group's first.
        let other_nodes = nodes[ranks - 1];
        self.calls = 2;
        self.traffic.clear();
        self.ports.busiest(0..ranks, place, 0, &mut self.traffic);
        self.ports.busiest(ranks..2 * ranks, place, other_nodes, &mut self.traffic);
    }
}

impl Ports {
    fn clear(&mut self, ranks: usize, calls: usize, group: &Group) {
        self.calls = calls;
        self.outside.resize_with(group.tiers().count(), Default::default);
        self.intra.iter_mut().chain(self.outside.iter_mut().flatten()).for_each(|rows| clear(rows, ranks * calls));
    }

    /// Rows `[slot]` from one rank to another, each in the call of its slot, or all in one; they cross that many tiers.
    #[inline(always)]
    fn add(&mut self, from: usize, to: usize, crossed: usize, rows: &[u32]) {
        let calls = self.calls;
        let book = |[sent, received]: &mut [Vec<u32>; 2]| {
            add(&mut sent[from * calls..(from + 1) * calls], rows);
            add(&mut received[to * calls..(to + 1) * calls], rows);
        };
        match crossed {
            0 => book(&mut self.intra),
            crossed => self.outside[..crossed].iter_mut().for_each(book),
        }
    }

    /// Appends the traffic of each call between `ranks`, which are those of `group`.
    fn busiest(&mut self, ranks: Range<usize>, group: &Group, peers: usize, traffic: &mut Vec<Traffic>) {
        let calls = self.calls;
        clear(&mut self.most, 4 * calls);
        self.uplinks.clear();
        self.uplinks.resize(calls, 0.0);
        let (intra, rest) = self.most.split_at_mut(calls);
        let (both, rest) = rest.split_at_mut(calls);
        let (inter, on_unit) = rest.split_at_mut(calls);
        let own = ranks.start * calls..ranks.end * calls;
        for rows in self.intra.iter().flat_map(|of_intra| of_intra[own.clone()].chunks_exact(calls)) {
            raise(intra, rows);
        }
        let [sent, received] = self.intra.each_ref().map(|rows| rows[own.clone()].chunks_exact(calls));
        for (sent, received) in sent.zip(received) {
            raise_both(both, sent, received);
        }
        for (tier, ((units, weights), directions)) in group.tiers().zip(&self.outside).enumerate() {
            for of_ranks in directions.iter().map(|rows| &rows[own.clone()]) {
                if tier == 0 {
                    of_ranks.chunks_exact(calls).for_each(|rows| raise(inter, rows));
                }
                // Ranks of a unit follow each other.
                let mut first = 0;
                for unit in units.chunk_by(|a, b| a == b) {
                    let end = first + unit.len();
                    on_unit.fill(0);
                    of_ranks[first * calls..end * calls].chunks_exact(calls).for_each(|rows| add(on_unit, rows));
                    for (most, &rows) in self.uplinks.iter_mut().zip(on_unit.iter()) {
                        *most = most.max(f64::from(rows) * weights[unit[0]]);
                    }
                    first = end;
                }
            }
        }
        let most = intra.iter().zip(both.iter()).zip(inter.iter()).zip(&self.uplinks);
        traffic.extend(most.map(|(((&intra, &both), &inter), &uplink)| Traffic {
            intra: intra.into(),
            both: both.into(),
            inter: inter.into(),
            uplink,
            peers,
        }));
    }
}

fn clear(rows: &mut Vec<u32>, length: usize) {
    rows.clear();
    rows.resize(length, 0);
}

/// Adds rows one by one, or all to one sum.
#[inline]
fn add(sums: &mut [u32], rows: &[u32]) {
    match sums {
        [sum] => *sum += rows.iter().sum::<u32>(),
        _ => sums.iter_mut().zip(rows).for_each(|(sum, &rows)| *sum += rows),
    }
}

/// Raises each value to the other, where that is greater.
#[inline]
fn raise(most: &mut [u32], values: &[u32]) {
    most.iter_mut().zip(values).for_each(|(most, &value)| *most = value.max(*most));
}

/// Raises each value to the sum of the two others, where that is greater.
#[inline]
fn raise_both(most: &mut [u32], sent: &[u32], received: &[u32]) {
    let sums = sent.iter().zip(received).map(|(sent, received)| sent + received);
    most.iter_mut().zip(sums).for_each(|(most, sum)| *most = sum.max(*most));
}

/// Most peers on other nodes that any rank sends to in a step.
fn most_peers(step: usize, steps: usize, nodes: &[usize]) -> usize {
    if nodes.first() == nodes.last() {
        return 0;
    }
    let group = nodes.len() / steps;
    let (mut first, mut most) = (0, 0);
    for here in nodes.chunk_by(|a, b| a == b) {
        let end = first + here.len();
        for source in first..end {
            let owners = (source / group + step) % steps * group;
            let near = (owners + group).min(end).saturating_sub(owners.max(first));
            most = most.max(group - near);
        }
        first = end;
    }
    most
}

/// Tokens of a source of which at least one of `top_k` choices is among `entries` of its `all` entries, choices taken as
/// independent.
fn distinct(entries: u32, all: u32, top_k: u32) -> u32 {
    if all == 0 {
        return 0;
    }
    let elsewhere = 1.0 - f64::from(entries) / f64::from(all);
    let tokens = f64::from(all) / f64::from(top_k);
    (tokens * (1.0 - elsewhere.powi(top_k as i32))).round() as u32
}

/// The rank of another node's `members` with the local number of `source`; the node's last, where it has fewer ranks.
fn counterpart(source: usize, members: Range<usize>, nodes: &[usize]) -> usize {
    let local = source - nodes.partition_point(|&node| node < nodes[source]);
    members.start + local.min(members.len() - 1)
}

/// The rank that passes on what `source` sends to `owner`: that of `source`'s node with `owner`'s local number (the node's last, where it has fewer ranks).
pub fn relay(source: usize, owner: usize, nodes: &[usize]) -> usize {
    let first_of = |node| nodes.partition_point(|&n| n < node);
    let here = first_of(nodes[source]);
    let size = first_of(nodes[source] + 1) - here;
    here + (owner - first_of(nodes[owner])).min(size - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::placement::Placement;
    use crate::price::network::Network;
    use crate::program::Layout;
    use crate::program::routing::RoutingCounts;

    fn filled(program: &LayerProgram, rows: &Rows, group: &Group) -> Table {
        let mut table = Table::default();
        table.fill(program, rows, group);
        table
    }

    /// Two nodes of two ranks, an expert each, one row for every pair.
    fn table(exchange: Exchange) -> Table {
        let counts = RoutingCounts::new(4, vec![0; 16]);
        let placement = Placement::identity(4, 4);
        let program = LayerProgram::padded(Layout::Padded { rows: 1 }, exchange, false);
        let group = Network::of_tiers(4, &[(2, 1.0)]).group(0..4, 1);
        filled(&program, &Rows::new(&program, &counts, &placement), &group)
    }

    /// A group inside a job: `ranks` from `first` on, of `gpus`, over tiers of `(ranks, slowness)`.
    struct Inside {
        first: usize,
        ranks: usize,
        gpus: usize,
        tiers: [(usize, f64); 2],
    }

    impl Inside {
        /// Row by row, as the words say it: what every call puts on every rank, `[step][call]`.
        fn plain(&self, program: &LayerProgram, rows: &Rows, calls: usize) -> Vec<Traffic> {
            let ranks = self.ranks;
            let unit = |size: usize, rank: usize| (self.first + rank) / size;
            let of_call = |(step, call): (usize, usize)| {
                let sum = |chosen: &dyn Fn(usize, usize) -> bool| -> u64 {
                    let pairs = (0..ranks).flat_map(|source| (0..ranks).map(move |owner| (source, owner)));
                    let pairs = pairs.filter(|&(s, o)| s != o && rows.step(s, o) == step && chosen(s, o));
                    let slots = || (0..rows.slots_per_rank()).filter(|slot| slot % calls == call);
                    pairs.flat_map(|(s, o)| slots().map(move |slot| u64::from(rows.sent(s, o, slot)))).sum()
                };
                let most = |of: &dyn Fn(usize) -> u64| (0..ranks).map(of).max().unwrap();
                let same = |size: usize, a: usize, b: usize| unit(size, a) == unit(size, b);
                let both = |on: &dyn Fn(usize) -> bool, size: usize, inside: bool| {
                    let sent = sum(&|s, o| on(s) && same(size, s, o) == inside);
                    sent.max(sum(&|s, o| on(o) && same(size, s, o) == inside))
                };
                let node = self.tiers[0].0;
                let uplinks = self.tiers.iter().flat_map(|&(size, slowness)| {
                    (0..ranks).map(move |rank| {
                        let here = |r: &usize| *r / size == unit(size, rank);
                        let own = (self.first..self.first + ranks).filter(here).count();
                        let job = (0..self.gpus).filter(here).count();
                        both(&|r| same(size, r, rank), size, false) as f64 * (slowness * (job as f64 / own as f64))
                    })
                });
                let peers = |s: usize| (0..ranks).filter(|&o| rows.step(s, o) == step && !same(node, s, o)).count();
                let within = |r: usize| sum(&|s, o| (s == r || o == r) && same(node, s, o));
                Traffic {
                    intra: most(&|rank| both(&|r| r == rank, node, true)),
                    both: most(&within),
                    inter: most(&|rank| both(&|r| r == rank, node, false)),
                    uplink: uplinks.fold(0.0, f64::max),
                    peers: (0..ranks).map(peers).max().unwrap(),
                }
            };
            (0..program.steps).flat_map(|step| (0..calls).map(move |call| (step, call))).map(of_call).collect()
        }
    }

    #[test]
    fn the_table_is_the_plain_sum() {
        let mut state = 7u64;
        let mut draw = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        for (ranks, slots, steps) in [(4, 16, 1), (8, 1, 1), (8, 2, 2), (6, 3, 3), (12, 1, 3), (2, 5, 1), (1, 4, 1)] {
            for per_node in [1, 2, 3, 4, 8, 16] {
                for exchange in [Exchange::PerExpert, Exchange::Whole] {
                    for layout in [Layout::Ragged, Layout::Padded { rows: 9 }] {
                        let experts = ranks * slots;
                        let counts = (0..ranks * experts).map(|_| draw(100) as u32).collect();
                        let counts = RoutingCounts::new(experts, counts);
                        let mut slot_of: Vec<usize> = (0..experts).collect();
                        (1..experts).rev().for_each(|i| slot_of.swap(i, draw(i as u64 + 1) as usize));
                        let placement = Placement::new(slot_of, ranks).unwrap();
                        let shadowed = (0..draw(3) as usize).collect();
                        let program =
                            LayerProgram { steps, shadowed, layout, exchange, ..LayerProgram::expert_parallel() };
                        let rows = Rows::new(&program, &counts, &placement);
                        let first = draw(9) as usize;
                        let gpus = first + ranks + draw(5) as usize;
                        let tiers = [(per_node, 1.0), (2 * per_node, 1.0 + draw(3) as f64)];
                        let group = Network::of_tiers(gpus, &tiers).group(first..first + ranks, 1);
                        let table = filled(&program, &rows, &group);
                        let calls = if exchange == Exchange::Whole { 1 } else { slots };
                        let inside = Inside { first, ranks, gpus, tiers };
                        assert_eq!(table.traffic, inside.plain(&program, &rows, calls));
                        for step in 0..steps {
                            for (owner, arrived) in table.arrived(step).enumerate() {
                                for (slot, &arrived) in arrived.iter().enumerate() {
                                    let sources = (0..ranks).filter(|&source| rows.step(source, owner) == step);
                                    assert_eq!(arrived, sources.map(|s| rows.sent(s, owner, slot)).sum::<u32>());
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn padding_arrives_whatever_the_counts() {
        assert_eq!(table(Exchange::Whole).arrived, [4; 4]);
        assert_eq!(table(Exchange::Hierarchical).arrived, [4; 4]);
    }

    #[test]
    fn a_direct_exchange_has_more_peers_than_a_hierarchical_one() {
        let direct = table(Exchange::Whole);
        assert_eq!(direct.traffic, [Traffic { intra: 1, both: 2, inter: 2, uplink: 4.0, peers: 2 }]);
        assert_eq!(direct.reordered, 0);
        // First, two rows to the neighbour: its own and those that it passes on; then two rows to one peer.
        let hierarchical = table(Exchange::Hierarchical);
        let within = Traffic { intra: 2, both: 4, inter: 0, uplink: 0.0, peers: 0 };
        assert_eq!(hierarchical.traffic, [within, Traffic { intra: 0, both: 0, inter: 2, uplink: 4.0, peers: 1 }]);
        assert_eq!(hierarchical.reordered, 3);
    }

    /// Two nodes of two ranks, an expert a rank, 8 tokens of two choices a rank, all experts alike: 4 entries to each. Of 8
    /// tokens, 6 have a choice on the other node (1 - 1/4), and 3.5 at one given expert (1 - 9/16).
    #[test]
    fn a_token_crosses_to_a_node_once() {
        let counts = RoutingCounts::new(4, vec![4; 16]);
        let placement = Placement::identity(4, 4);
        let of = |exchange| {
            let program = LayerProgram { exchange, ..LayerProgram::expert_parallel() };
            let group = Network::of_tiers(4, &[(2, 1.0)]).group(0..4, 1);
            filled(&program, &Rows::new(&program, &counts, &placement), &group)
        };
        let once = of(Exchange::OncePerNode { top_k: 2 });
        // To the neighbour: 4 of its own tokens, and 4 of those that it passes on.
        assert_eq!(once.traffic, [Traffic { intra: 8, both: 16, inter: 6, uplink: 12.0, peers: 1 }]);
        let whole = of(Exchange::Whole);
        assert_eq!(whole.traffic, [Traffic { intra: 4, both: 8, inter: 8, uplink: 16.0, peers: 2 }]);
        assert_eq!(once.arrived, whole.arrived);
    }

    /// Sampled tokens, whose choices are counted one by one, are as many as the closed form says.
    #[test]
    fn distinct_tokens_are_counted() {
        let mut state = 3u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % 100
        };
        for (top_k, share) in [(1, 30), (2, 50), (8, 12)] {
            let (mut entries, mut tokens, all) = (0, 0, 20_000);
            for _ in 0..all {
                let here = (0..top_k).filter(|_| draw() < share).count() as u32;
                entries += here;
                tokens += u32::from(here > 0);
            }
            let found = f64::from(distinct(entries, all * top_k, top_k));
            assert!((found / f64::from(tokens) - 1.0).abs() < 0.03, "{top_k} {share}: {found} {tokens}");
        }
        assert_eq!((distinct(0, 10, 2), distinct(10, 10, 2), distinct(0, 0, 2)), (0, 5, 0));
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
