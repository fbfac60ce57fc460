//! EPLB, the expert-parallel load balancer (DeepSeek-AI 2025, public code): hot experts get copies, copies are packed onto
//! ranks so that all are equally full.
//!
//! Entries of an expert are taken to be split evenly between its copies. A rank may get two copies of one expert, as in the
//! public code: it then takes two parts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::balance::Slots;

/// Parts that an entry is divided into, so that even splits are whole numbers.
pub const SHARE: u64 = 1 << 16;

/// What a copy of an expert of `load` entries takes, in parts of an entry.
#[inline]
pub fn share(load: u64, copies: u32) -> u64 {
    load * SHARE / u64::from(copies.max(1))
}

/// The ranks to pack onto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Ranks.
    pub ranks: usize,
    /// Slots of a rank.
    pub slots: usize,
    /// Nodes that the ranks are on, in order and equally many on each.
    pub nodes: usize,
}

/// Replicates experts and packs the copies, over all ranks alike. `loads`: `[expert]` entries, of at most as many experts as
/// slots.
pub fn global(loads: &[u64], shape: Shape) -> Slots {
    let experts: Vec<usize> = (0..loads.len()).collect();
    place(loads, &experts, shape.ranks, shape.slots)
}

/// As [`global`], with `groups` of consecutive experts kept on one node each: for gates that limit the nodes of a token. Where
/// groups cannot be dealt evenly to nodes, this is [`global`], as in the public code.
pub fn hierarchical(loads: &[u64], shape: Shape, groups: usize) -> Slots {
    let Shape { ranks, slots, nodes } = shape;
    let even = groups > 0 && groups.is_multiple_of(nodes) && loads.len().is_multiple_of(groups);
    if !even || !ranks.is_multiple_of(nodes) {
        return global(loads, shape);
    }
    // Step 1: pack groups of experts onto nodes.
    let size = loads.len() / groups;
    let of_groups: Vec<u64> = loads.chunks_exact(size).map(|group| group.iter().sum()).collect();
    let node_of = pack(&of_groups, nodes);
    // Steps 2 and 3 within each node.
    let within = |node| {
        let here = (0..loads.len()).filter(|expert| node_of[expert / size] == node);
        let (experts, own): (Vec<usize>, Vec<u64>) = here.map(|expert| (expert, loads[expert])).unzip();
        place(&own, &experts, ranks / nodes, slots)
    };
    (0..nodes).flat_map(within).collect()
}

/// Step 2: replicate; step 3: pack the copies onto ranks. `loads` are those of `experts`.
fn place(loads: &[u64], experts: &[usize], ranks: usize, slots: usize) -> Slots {
    let copies = replicate(loads, ranks * slots, usize::MAX);
    let of_expert = |i: usize| std::iter::repeat_n((experts[i], share(loads[i], copies[i])), copies[i] as usize);
    let (owner, shares): (Vec<usize>, Vec<u64>) = (0..experts.len()).flat_map(of_expert).unzip();
    let mut placed = vec![None; ranks * slots];
    let mut taken = vec![0; ranks];
    for (expert, rank) in owner.into_iter().zip(pack(&shares, ranks)) {
        placed[rank * slots + taken[rank]] = Some(expert);
        taken[rank] += 1;
    }
    placed
}

/// One slot for each expert, packed by loads; what slots are left stay empty.
pub fn once(loads: &[u64], shape: Shape) -> Slots {
    let mut slots = vec![None; shape.ranks * shape.slots];
    let mut taken = vec![0; shape.ranks];
    for (expert, rank) in pack(loads, shape.ranks).into_iter().enumerate() {
        slots[rank * shape.slots + taken[rank]] = Some(expert);
        taken[rank] += 1;
    }
    slots
}

/// The same slots with ranks, and experts on them, in the order in which the fewest copies come to another place: each rank of `next`, those that
/// share most first, goes to the rank of `now` that it shares most experts with. The public code leaves this out, since it moves weights without
/// optimizer state.
pub fn keep(now: &[Option<usize>], next: &[Option<usize>], ranks: usize) -> Slots {
    let per_rank = next.len() / ranks;
    let of = |slots: &[Option<usize>], rank: usize| slots[rank * per_rank..(rank + 1) * per_rank].to_vec();
    let shared =
        |a: &[Option<usize>], b: &[Option<usize>]| a.iter().flatten().filter(|e| b.contains(&Some(**e))).count();
    let mut pairs: Vec<(Reverse<usize>, usize, usize)> = Vec::with_capacity(ranks * ranks);
    for old in 0..ranks {
        let here = of(now, old);
        pairs.extend((0..ranks).map(|new| (Reverse(shared(&here, &of(next, new))), old, new)));
    }
    pairs.sort_unstable();
    let (mut kept, mut placed) = (vec![None; next.len()], vec![false; ranks]);
    let mut filled = vec![false; ranks];
    for (_, old, new) in pairs {
        if !placed[new] && !filled[old] {
            (placed[new], filled[old]) = (true, true);
            kept[old * per_rank..(old + 1) * per_rank].copy_from_slice(&in_place(&of(now, old), of(next, new)));
        }
    }
    kept
}

/// One rank's `next` experts, those that it has in the slots where they are.
fn in_place(now: &[Option<usize>], mut next: Slots) -> Slots {
    let mut kept = vec![None; next.len()];
    for (slot, expert) in now.iter().enumerate().filter(|(_, expert)| expert.is_some()) {
        if let Some(at) = next.iter().position(|other| other == expert) {
            kept[slot] = next.swap_remove(at);
        }
    }
    let mut rest = next.into_iter().flatten();
    kept.into_iter().map(|expert| expert.or_else(|| rest.next())).collect()
}

/// How many copies each expert gets so that `slots` are filled, of no expert more than `most`: every slot that is left goes to
/// the expert whose copies are the most loaded. `[expert]`.
pub fn replicate(loads: &[u64], slots: usize, most: usize) -> Vec<u32> {
    let mut copies = vec![1; loads.len()];
    let by_share = |expert: usize, copies: u32| (share(loads[expert], copies), Reverse(expert));
    let mut heap: BinaryHeap<_> = (0..loads.len()).map(|expert| by_share(expert, 1)).collect();
    for _ in loads.len()..slots {
        let Some(mut top) = heap.peek_mut().filter(|_| most > 1) else { break };
        let Reverse(expert) = top.1;
        copies[expert] += 1;
        if (copies[expert] as usize) < most {
            *top = by_share(expert, copies[expert]);
        } else {
            PeekMut::pop(top);
        }
    }
    copies
}

/// Items to packs of equally many: by falling weight, each to the lightest pack that is not full. Returns each item's pack.
pub fn pack(weights: &[u64], packs: usize) -> Vec<usize> {
    const FULL: u64 = u64::MAX;
    let room = weights.len().div_ceil(packs);
    let mut order: Vec<(Reverse<u64>, usize)> =
        weights.iter().enumerate().map(|(item, &weight)| (Reverse(weight), item)).collect();
    order.sort_unstable();
    let (mut load, mut taken, mut pack_of) = (vec![0; packs], vec![0; packs], vec![0; weights.len()]);
    for (Reverse(weight), item) in order {
        let pack = least(&load);
        pack_of[item] = pack;
        taken[pack] += 1;
        load[pack] = if taken[pack] == room { FULL } else { load[pack] + weight };
    }
    pack_of
}

/// The first of the least values.
fn least(values: &[u64]) -> usize {
    let mut first = 0;
    for (index, &value) in values.iter().enumerate() {
        if value < values[first] {
            first = index;
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::fullest;
    use crate::balance::tests::{loads, random};

    /// The public code's steps, read plainly: the most loaded copy gets another, `slots - experts` times; then copies by
    /// falling load to the lightest rank with room, be it one that has the expert or not. `[rank]`: what it gets.
    fn reference(loads: &[u64], ranks: usize, slots: usize) -> Vec<u64> {
        let mut copies = vec![1u32; loads.len()];
        for _ in loads.len()..ranks * slots {
            let hottest = (0..loads.len()).max_by_key(|&e| (share(loads[e], copies[e]), Reverse(e))).unwrap();
            copies[hottest] += 1;
        }
        let all: Vec<u64> =
            (0..loads.len()).flat_map(|e| vec![share(loads[e], copies[e]); copies[e] as usize]).collect();
        dealt(&all, ranks, slots).iter().map(|own| own.iter().map(|&copy| all[copy]).sum()).collect()
    }

    /// Items by falling weight, each to the lightest pack with room: `[pack]`, the items in it.
    fn dealt(weights: &[u64], packs: usize, room: usize) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by_key(|&item| Reverse(weights[item]));
        let mut items = vec![Vec::new(); packs];
        for item in order {
            let open = items.iter_mut().filter(|own| own.len() < room);
            open.min_by_key(|own| own.iter().map(|&i: &usize| weights[i]).sum::<u64>()).unwrap().push(item);
        }
        items
    }

    /// The same within each node, for the groups of experts that are dealt to it.
    fn hierarchical_reference(loads: &[u64], shape: Shape, groups: usize) -> Vec<u64> {
        let of_groups: Vec<&[u64]> = loads.chunks(loads.len() / groups).collect();
        let weights: Vec<u64> = of_groups.iter().map(|group| group.iter().sum()).collect();
        let mut of_rank = Vec::new();
        for mut here in dealt(&weights, shape.nodes, groups / shape.nodes) {
            here.sort();
            let own: Vec<u64> = here.iter().flat_map(|&group| of_groups[group]).copied().collect();
            of_rank.extend(reference(&own, shape.ranks / shape.nodes, shape.slots));
        }
        of_rank
    }

    /// `[rank]`: what it gets where the copies of an expert share alike.
    fn rank_loads(loads: &[u64], placed: &Slots, ranks: usize) -> Vec<u64> {
        let copies = |expert| placed.iter().filter(|slot| **slot == Some(expert)).count() as u32;
        let of_rank = |own: &[Option<usize>]| own.iter().flatten().map(|&e| share(loads[e], copies(e))).sum();
        placed.chunks(placed.len() / ranks).map(of_rank).collect()
    }

    #[test]
    fn loads_are_the_public_codes() {
        let mut random = random(1);
        for (experts, ranks, slots) in [(8, 4, 3), (32, 16, 3), (64, 8, 9), (256, 64, 5), (60, 12, 6)] {
            for _ in 0..20 {
                let loads = loads(&mut random, experts);
                let placed = global(&loads, Shape { ranks, slots, nodes: 1 });
                assert_eq!(rank_loads(&loads, &placed, ranks), reference(&loads, ranks, slots), "{loads:?}");
            }
        }
    }

    #[test]
    fn hierarchical_loads_are_the_public_codes() {
        let mut random = random(14);
        for (experts, ranks, slots, nodes, groups) in
            [(8, 4, 3, 2, 2), (16, 4, 6, 2, 8), (32, 16, 3, 4, 8), (256, 64, 5, 8, 8), (24, 6, 5, 3, 6)]
        {
            for _ in 0..20 {
                let (loads, shape) = (loads(&mut random, experts), Shape { ranks, slots, nodes });
                let placed = hierarchical(&loads, shape, groups);
                let public = hierarchical_reference(&loads, shape, groups);
                assert_eq!(rank_loads(&loads, &placed, ranks), public, "{loads:?}");
            }
        }
    }

    #[test]
    fn every_expert_stands_and_every_slot_is_filled() {
        let mut random = random(2);
        for (experts, ranks, slots, nodes, groups) in [
            (8, 4, 3, 2, 4),
            (32, 16, 3, 2, 8),
            (256, 64, 5, 8, 8),
            (6, 3, 2, 1, 1),
            (5, 5, 3, 1, 1),
            (64, 16, 5, 4, 3),
        ] {
            for _ in 0..20 {
                let loads = loads(&mut random, experts);
                let shape = Shape { ranks, slots, nodes };
                for placed in [global(&loads, shape), hierarchical(&loads, shape, groups)] {
                    assert_eq!(placed.len(), ranks * slots);
                    assert!(placed.iter().all(Option::is_some));
                    assert!((0..experts).all(|expert| placed.contains(&Some(expert))));
                }
            }
        }
    }

    #[test]
    fn groups_stay_on_their_node() {
        let loads: Vec<u64> = (0..16).map(|e| 100 + 37 * e % 50).collect();
        let placed = hierarchical(&loads, Shape { ranks: 8, slots: 3, nodes: 2 }, 4);
        for group in 0..4 {
            let nodes: Vec<usize> =
                (0..24).filter(|&s| placed[s].is_some_and(|e| e / 4 == group)).map(|s| s / 12).collect();
            assert!(nodes.iter().all(|node| *node == nodes[0]), "group {group} is on {nodes:?}");
        }
    }

    #[test]
    fn what_can_stay_stays() {
        let mut random = random(13);
        for (experts, ranks, slots) in [(8, 4, 3), (32, 16, 3), (64, 8, 9)] {
            let shape = Shape { ranks, slots, nodes: 1 };
            let now = global(&loads(&mut random, experts), shape);
            // Ranks in another order, and each one's slots.
            let turned: Slots = now.chunks_exact(slots).rev().flat_map(|own| own.iter().rev().copied()).collect();
            assert_eq!(keep(&now, &turned, ranks), now);
            let next = global(&loads(&mut random, experts), shape);
            let kept = keep(&now, &next, ranks);
            let count = |slots: &Slots| {
                (0..experts).map(|e| slots.iter().filter(|s| **s == Some(e)).count()).collect::<Vec<_>>()
            };
            assert_eq!(count(&kept), count(&next));
            let stays = |slots: &Slots| slots.iter().zip(&now).filter(|(a, b)| a == b).count();
            assert!(stays(&kept) >= stays(&next));
        }
    }

    /// The hottest expert of two ranks with two slots each and 100, 10, 10 entries: two copies of 50, then 10 each.
    #[test]
    fn the_hottest_expert_is_split() {
        let placed = global(&[100, 10, 10], Shape { ranks: 2, slots: 2, nodes: 1 });
        assert_eq!(placed, [Some(0), Some(1), Some(0), Some(2)]);
        assert_eq!(fullest(&[100, 10, 10], &placed, 2), 60 * SHARE);
    }
}
