//! LAER (ASPLOS'26): experts are stored in shards over all ranks (FSEP), so every rank can restore any experts for a layer,
//! and a layout is planned anew without anything that migrates.

use std::cmp::Reverse;

use crate::balance::{Slots, eplb};
use crate::program::routing::RoutingCounts;

/// The ranks that restore experts.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// `[rank]`: its node, counted from the first.
    pub nodes: &'a [usize],
    /// Experts that a rank restores.
    pub capacity: usize,
}

/// What the planner's cost is made of, seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prices {
    /// One row to or from another rank of the node.
    pub near: f64,
    /// One row to or from another node.
    pub far: f64,
    /// One row through an expert, forward.
    pub row: f64,
    /// Whether a layer's forward pass is run again in the backward pass.
    pub recomputes: bool,
}

/// The layout of least cost among two candidates: as many copies of every expert, and copies in proportion to load.
pub fn plan(counts: &RoutingCounts, shape: Shape, prices: Prices) -> Slots {
    let loads = counts.loads();
    let slots = shape.nodes.len() * shape.capacity;
    // Step 1: candidates for the number of copies.
    let candidates = [even(&loads, slots), eplb::replicate(&loads, slots, shape.nodes.len())];
    // Step 2: relocation, routing and cost of each.
    let layouts = candidates.map(|copies| relocate(&loads, &copies, shape));
    let time = |layout: &Slots| cost(counts, layout, &route(counts, layout, shape.nodes), shape, prices);
    // Step 3: the least.
    let [even, by_load] = layouts;
    if time(&by_load) < time(&even) { by_load } else { even }
}

/// As many copies of every expert; what is left over goes to the most loaded.
pub fn even(loads: &[u64], slots: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_unstable_by_key(|&expert| (Reverse(loads[expert]), expert));
    let mut copies = vec![(slots / loads.len()) as u32; loads.len()];
    order.iter().take(slots % loads.len()).for_each(|&expert| copies[expert] += 1);
    copies
}

/// Copies by falling load: among the ranks that have room and not the expert, on those nodes that hold fewest copies of it, the least
/// loaded.
pub fn relocate(loads: &[u64], copies: &[u32], shape: Shape) -> Slots {
    let &Shape { nodes, capacity } = &shape;
    let ranks = nodes.len();
    let mut order: Vec<(u64, usize)> = (0..loads.len()).map(|e| (eplb::share(loads[e], copies[e]), e)).collect();
    order.sort_unstable_by_key(|&(share, expert)| (Reverse(share), expert));
    let mut placed = vec![None; ranks * capacity];
    let (mut load, mut taken) = (vec![0; ranks], vec![0; ranks]);
    let mut on_node = vec![0; nodes.last().map_or(0, |last| last + 1)];
    let mut holds = vec![false; ranks];
    for (share, expert) in order {
        on_node.fill(0);
        holds.fill(false);
        for _ in 0..copies[expert] {
            let open = (0..ranks).filter(|&rank| taken[rank] < capacity && !holds[rank]);
            let Some(rank) = open.min_by_key(|&rank| (on_node[nodes[rank]], load[rank])) else { break };
            placed[rank * capacity + taken[rank]] = Some(expert);
            taken[rank] += 1;
            load[rank] += share;
            on_node[nodes[rank]] += 1;
            holds[rank] = true;
        }
    }
    placed
}

/// Rows that each source sends to each slot, `[source][slot]`, flat: evenly to the copies on its own node, or evenly to all where its node
/// has none. What does not divide goes on from copy to copy, starting at another one for each source. Rows of an expert in no slot go nowhere.
pub fn route(counts: &RoutingCounts, slots: &[Option<usize>], nodes: &[usize]) -> Vec<u32> {
    let ranks = counts.ranks();
    let per_rank = slots.len() / ranks;
    let mut holders = vec![Vec::new(); counts.experts()];
    for (slot, expert) in slots.iter().enumerate() {
        expert.iter().for_each(|&expert| holders[expert].push(slot));
    }
    let mut rows = vec![0; ranks * slots.len()];
    for (source, rows) in rows.chunks_exact_mut(slots.len()).enumerate() {
        for (&count, all) in counts.row(source).iter().zip(&holders) {
            // Slots, and so nodes, ascend.
            let node = |slot: &usize| nodes[slot / per_rank];
            let first = all.partition_point(|slot| node(slot) < nodes[source]);
            let last = all.partition_point(|slot| node(slot) <= nodes[source]);
            let near = if first < last { &all[first..last] } else { all.as_slice() };
            if near.is_empty() {
                continue;
            }
            let copies = near.len() as u32;
            let (each, rest) = (count / copies, count % copies);
            let turns = (0..copies).cycle().skip(source % near.len());
            near.iter().zip(turns).for_each(|(&slot, turn)| rows[slot] = each + u32::from(turn < rest));
        }
    }
    rows
}

/// `T = 4 sum_i comm_i + (3 + recompute) max_i comp_i`: what the ranks receive, there and back in both passes, and what the fullest
/// rank computes. The sum is taken as its mean over the ranks, which all receive at once.
pub fn cost(counts: &RoutingCounts, slots: &[Option<usize>], rows: &[u32], shape: Shape, prices: Prices) -> f64 {
    let ranks = counts.ranks();
    let per_rank = slots.len() / ranks;
    let mut computed = vec![0u64; ranks];
    let (mut near, mut far) = (0, 0);
    for (source, rows) in rows.chunks_exact(slots.len()).enumerate() {
        for (owner, own) in rows.chunks_exact(per_rank).enumerate() {
            let sent: u64 = own.iter().map(|&rows| u64::from(rows)).sum();
            computed[owner] += sent;
            match (source == owner, shape.nodes[source] == shape.nodes[owner]) {
                (true, _) => (),
                (false, true) => near += sent,
                (false, false) => far += sent,
            }
        }
    }
    let exchanged = (prices.near * near as f64 + prices.far * far as f64) / ranks as f64;
    let passes = if prices.recomputes { 4.0 } else { 3.0 };
    4.0 * exchanged + passes * prices.row * computed.into_iter().max().unwrap_or(0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::{counts, loads, random};

    const PRICES: Prices = Prices { near: 1.0, far: 8.0, row: 4.0, recomputes: false };

    #[test]
    fn every_expert_is_restored_and_every_entry_sent_once() {
        let mut random = random(10);
        for (experts, per_node, nodes, capacity) in [(8, 4, 2, 2), (8, 8, 4, 2), (16, 2, 4, 3), (5, 3, 2, 2)] {
            let nodes: Vec<usize> = (0..per_node * nodes).map(|rank| rank / per_node).collect();
            let shape = Shape { nodes: &nodes, capacity };
            for _ in 0..20 {
                let counts = counts(&mut random, nodes.len(), experts);
                let slots = plan(&counts, shape, PRICES);
                assert!((0..experts).all(|expert| slots.contains(&Some(expert))));
                let rows = route(&counts, &slots, &nodes);
                for (source, rows) in rows.chunks_exact(slots.len()).enumerate() {
                    let mut sent = vec![0; experts];
                    rows.iter().zip(&slots).for_each(|(rows, expert)| expert.iter().for_each(|&e| sent[e] += rows));
                    assert_eq!(sent, counts.row(source));
                    // Nothing leaves a node that holds the expert.
                    for (slot, _) in rows.iter().enumerate().filter(|(_, rows)| **rows > 0) {
                        let at_home = nodes[slot / capacity] == nodes[source];
                        let near = slots
                            .iter()
                            .enumerate()
                            .any(|(s, e)| *e == slots[slot] && nodes[s / capacity] == nodes[source]);
                        assert!(at_home || !near);
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_an_expert_in_no_slot_go_nowhere() {
        let counts = RoutingCounts::new(3, vec![4, 7, 5, 2, 9, 1]);
        assert_eq!(route(&counts, &[Some(0), Some(2)], &[0, 1]), [4, 5, 2, 1]);
    }

    #[test]
    fn copies_of_an_expert_spread_over_nodes() {
        let mut random = random(11);
        for _ in 0..20 {
            let loads = loads(&mut random, 8);
            let nodes = [0, 0, 0, 0, 1, 1, 1, 1];
            let slots = relocate(&loads, &even(&loads, 16), Shape { nodes: &nodes, capacity: 2 });
            for expert in 0..8 {
                let on: Vec<usize> = (0..16).filter(|&s| slots[s] == Some(expert)).map(|s| nodes[s / 2]).collect();
                assert_eq!(on, [0, 1]);
            }
        }
    }

    /// Two ranks of a node, an expert each; 30 rows go from the first to the second, which computes 50.
    #[test]
    fn the_cost_is_the_formula() {
        let counts = RoutingCounts::new(2, vec![10, 30, 0, 20]);
        let slots = [Some(0), Some(1)];
        let time = |nodes: &[usize], recomputes| {
            let shape = Shape { nodes, capacity: 1 };
            cost(&counts, &slots, &route(&counts, &slots, nodes), shape, Prices { recomputes, ..PRICES })
        };
        assert_eq!(time(&[0, 0], false), 4.0 * 30.0 / 2.0 + 3.0 * 4.0 * 50.0);
        assert_eq!(time(&[0, 1], true), 4.0 * 8.0 * 30.0 / 2.0 + 4.0 * 4.0 * 50.0);
    }
}
