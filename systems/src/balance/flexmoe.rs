//! FlexMoE (Nie et al., SIGMOD'23): copies of experts expand, shrink and migrate, a few at a time, for as long as the balance of the
//! ranks' loads is above a threshold and gets better.
//!
//! Entries of an expert are split evenly between its copies.

use std::cmp::Reverse;

use crate::balance::eplb::share;
use crate::balance::fullest;

/// One change of a placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A copy of `expert` appears in `slot`, in place of a copy of `instead`, if there was one.
    Expand {
        /// The expert that gains a copy.
        expert: usize,
        /// Where.
        slot: usize,
        /// The expert that loses one (FlexMoE's shrink).
        instead: Option<usize>,
    },
    /// Two copies change places.
    Migrate {
        /// The one slot.
        one: usize,
        /// The other.
        other: usize,
    },
}

/// When and how far a placement is adjusted.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Nothing is done while the fullest rank has at most this much of the mean, in percent.
    pub threshold: u64,
    /// Most changes at once.
    pub changes: usize,
}

/// Adjusts `slots`, every expert of which keeps a copy, to `loads`, `[expert]` entries; says how.
pub fn adjust(loads: &[u64], slots: &mut [Option<usize>], ranks: usize, rule: Rule) -> Vec<Change> {
    let mut changes = Vec::new();
    let mean = share(loads.iter().sum(), ranks as u32);
    while changes.len() < rule.changes {
        let now = fullest(loads, slots, ranks);
        // Step 1: the balance ratio.
        if now * 100 <= mean * rule.threshold {
            break;
        }
        // Step 2: a copy more for the most loaded; step 3: two copies exchanged. The one that brings more is taken, if any does.
        let tried = [expand(loads, slots, ranks), migrate(loads, slots, ranks)];
        let best = tried.into_iter().flatten().min_by_key(|(fullest, _)| *fullest);
        let Some((_, change)) = best.filter(|(fullest, _)| *fullest < now) else { break };
        apply(slots, change);
        changes.push(change);
    }
    changes
}

fn apply(slots: &mut [Option<usize>], change: Change) {
    match change {
        Change::Expand { expert, slot, .. } => slots[slot] = Some(expert),
        Change::Migrate { one, other } => slots.swap(one, other),
    }
}

/// The load of the fullest rank after a change.
fn after(loads: &[u64], slots: &mut [Option<usize>], ranks: usize, change: Change) -> u64 {
    let before = match change {
        Change::Expand { slot, .. } => (slot, slots[slot]),
        Change::Migrate { one, .. } => (one, slots[one]),
    };
    apply(slots, change);
    let least = fullest(loads, slots, ranks);
    match change {
        Change::Expand { .. } => slots[before.0] = before.1,
        Change::Migrate { .. } => apply(slots, change),
    }
    least
}

/// Of the fullest rank, the expert with the most loaded copies that does not stand everywhere gets one more, in the slot where that
/// helps most: an empty one, or that of an expert with several copies.
fn expand(loads: &[u64], slots: &mut [Option<usize>], ranks: usize) -> Option<(u64, Change)> {
    let (copies, per_rank) = (copies(loads, slots), slots.len() / ranks);
    let lacks = |expert: usize, slot: usize| !of_rank(slots, ranks, slot / per_rank).contains(&Some(expert));
    let gives = |slot: usize| slots[slot].is_none_or(|expert| copies[expert] > 1);
    let open = |expert: usize| (0..slots.len()).filter(move |&slot| lacks(expert, slot) && gives(slot));
    let own = of_rank(slots, ranks, fullest_rank(loads, slots, ranks)).iter().flatten().copied();
    let can = own.filter(|&expert| open(expert).next().is_some());
    let expert = can.max_by_key(|&expert| (share(loads[expert], copies[expert]), Reverse(expert)))?;
    let changes = open(expert).map(|slot| Change::Expand { expert, slot, instead: slots[slot] }).collect();
    best(loads, slots, ranks, changes)
}

/// A copy of the fullest rank changes places with the copy of another rank with which that helps most.
fn migrate(loads: &[u64], slots: &mut [Option<usize>], ranks: usize) -> Option<(u64, Change)> {
    let (copies, per_rank) = (copies(loads, slots), slots.len() / ranks);
    let weight = |slot: usize| slots[slot].map_or(0, |expert| share(loads[expert], copies[expert]));
    let full = fullest_rank(loads, slots, ranks);
    let mut changes = Vec::new();
    for one in full * per_rank..(full + 1) * per_rank {
        for other in (0..slots.len()).filter(|slot| slot / per_rank != full && weight(*slot) < weight(one)) {
            let there = of_rank(slots, ranks, other / per_rank).contains(&slots[one]);
            let here = slots[other].is_some() && of_rank(slots, ranks, full).contains(&slots[other]);
            if !there && !here {
                changes.push(Change::Migrate { one, other });
            }
        }
    }
    best(loads, slots, ranks, changes)
}

/// The change that leaves the fullest rank with least, and what it leaves it with.
fn best(loads: &[u64], slots: &mut [Option<usize>], ranks: usize, changes: Vec<Change>) -> Option<(u64, Change)> {
    let tried = changes.into_iter().map(|change| (after(loads, slots, ranks, change), change));
    tried.min_by_key(|(fullest, _)| *fullest)
}

/// `[expert]`: its copies.
fn copies(loads: &[u64], slots: &[Option<usize>]) -> Vec<u32> {
    let mut copies = vec![0; loads.len()];
    slots.iter().flatten().for_each(|&expert| copies[expert] += 1);
    copies
}

fn of_rank(slots: &[Option<usize>], ranks: usize, rank: usize) -> &[Option<usize>] {
    let per_rank = slots.len() / ranks;
    &slots[rank * per_rank..(rank + 1) * per_rank]
}

fn fullest_rank(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> usize {
    let copies = copies(loads, slots);
    let load = |rank| of_rank(slots, ranks, rank).iter().flatten().map(|&e| share(loads[e], copies[e])).sum::<u64>();
    (0..ranks).max_by_key(|&rank| (load(rank), Reverse(rank))).expect("a group has a rank")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Slots;
    use crate::balance::eplb::SHARE;
    use crate::balance::tests::{loads, random};

    const RULE: Rule = Rule { threshold: 105, changes: 64 };

    /// Experts in order, the last slot of each rank empty.
    fn start(experts: usize, ranks: usize) -> Slots {
        let own = experts / ranks;
        (0..ranks * (own + 1)).map(|s| (s % (own + 1) < own).then_some(s / (own + 1) * own + s % (own + 1))).collect()
    }

    #[test]
    fn adjusting_never_loses_an_expert_and_never_makes_it_worse() {
        let mut random = random(12);
        for (experts, ranks) in [(8, 4), (16, 8), (32, 16)] {
            let mut slots = start(experts, ranks);
            for _ in 0..20 {
                let loads = loads(&mut random, experts);
                let before = fullest(&loads, &slots, ranks);
                let changes = adjust(&loads, &mut slots, ranks, RULE);
                assert!(changes.len() <= RULE.changes);
                let now = fullest(&loads, &slots, ranks);
                assert!(if changes.is_empty() { now == before } else { now < before });
                assert!((0..experts).all(|expert| slots.contains(&Some(expert))));
                for own in slots.chunks_exact(experts / ranks + 1) {
                    assert!(
                        own.iter().flatten().all(|e| own.iter().flatten().filter(|other| *other == e).count() == 1)
                    );
                }
            }
        }
    }

    /// `[rank]`: its load, of loads that copies divide.
    fn rank_loads(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> Vec<u64> {
        let copies = |expert| slots.iter().filter(|slot| **slot == Some(expert)).count() as u64;
        let of_rank = |own: &[Option<usize>]| own.iter().flatten().map(|&e| loads[e] / copies(e)).sum();
        slots.chunks(slots.len() / ranks).map(of_rank).collect()
    }

    /// Plainly: while the balance ratio `max / mean` is above the threshold, of all slots that one expansion, with the copy that it shrinks,
    /// or one migration gives, those of the least ratio; as long as it falls.
    fn reference(loads: &[u64], mut slots: Slots, ranks: usize, rule: Rule) -> Slots {
        let (per_rank, mean) = (slots.len() / ranks, loads.iter().sum::<u64>() as f64 / ranks as f64);
        let most = |slots: &Slots| rank_loads(loads, slots, ranks).into_iter().max().unwrap();
        for _ in 0..rule.changes {
            if most(&slots) as f64 / mean <= rule.threshold as f64 / 100.0 {
                break;
            }
            let of_ranks = rank_loads(loads, &slots, ranks);
            let full = (0..ranks).find(|&rank| of_ranks[rank] == most(&slots)).unwrap();
            let copies = |expert: usize| slots.iter().filter(|slot| **slot == Some(expert)).count() as u64;
            let has = |rank: usize, expert| slots[rank * per_rank..(rank + 1) * per_rank].contains(&expert);
            // An expert expands where it is not, into an empty slot or that of a copy that is not the only one.
            let expanded = |expert: usize| {
                let free = |slot: &usize| slots[*slot].is_none_or(|other| copies(other) > 1);
                let open = (0..slots.len()).filter(|slot| !has(slot / per_rank, Some(expert))).filter(free);
                let with = |slot: usize| {
                    let mut next = slots.clone();
                    next[slot] = Some(expert);
                    next
                };
                open.map(with).collect::<Vec<Slots>>()
            };
            let mut own: Vec<usize> = (0..loads.len()).filter(|&expert| has(full, Some(expert))).collect();
            own.sort_by_key(|&expert| Reverse(loads[expert] / copies(expert)));
            let mut all = own.into_iter().map(expanded).find(|next| !next.is_empty()).unwrap_or_default();
            // A copy of the fullest rank and one of another rank change places, unless a rank would have an expert twice.
            for (one, other) in (0..slots.len()).flat_map(|a| (0..slots.len()).map(move |b| (a, b))) {
                let apart = slots[one].is_some() && one / per_rank == full && other / per_rank != full;
                let twice = slots[other].is_some() && has(full, slots[other]) || has(other / per_rank, slots[one]);
                if apart && !twice {
                    let mut next = slots.clone();
                    next.swap(one, other);
                    all.push(next);
                }
            }
            let Some(best) = all.into_iter().min_by_key(most).filter(|best| most(best) < most(&slots)) else { break };
            slots = best;
        }
        slots
    }

    #[test]
    fn changes_are_those_of_the_plain_reference() {
        let mut random = random(15);
        for (experts, ranks) in [(4, 2), (6, 3), (8, 4), (12, 6)] {
            let mut slots = start(experts, ranks);
            for round in 0..30 {
                // Up to six copies divide them.
                let loads: Vec<u64> = loads(&mut random, experts).iter().map(|load| 60 * load).collect();
                let rule = Rule { threshold: 110, changes: 1 + round % 4 };
                let expected = reference(&loads, slots.clone(), ranks, rule);
                adjust(&loads, &mut slots, ranks, rule);
                assert_eq!(slots, expected, "{loads:?}");
            }
        }
    }

    #[test]
    fn hot_experts_expand_and_cold_copies_shrink() {
        let mut slots = vec![Some(0), None, Some(1), None];
        let changes = adjust(&[100, 20], &mut slots, 2, RULE);
        assert_eq!(
            changes,
            [
                Change::Expand { expert: 0, slot: 3, instead: None },
                Change::Expand { expert: 1, slot: 1, instead: None }
            ]
        );
        assert_eq!(fullest(&[100, 20], &slots, 2), 60 * SHARE);
        // Three experts on two ranks: now the third is hot, and takes the slot of a second copy of the first.
        let mut slots = vec![Some(0), Some(1), Some(0), Some(2)];
        let changes = adjust(&[10, 10, 100], &mut slots, 2, RULE);
        assert_eq!(changes, [Change::Expand { expert: 2, slot: 0, instead: Some(0) }]);
    }

    #[test]
    fn full_ranks_exchange_copies() {
        let mut slots = vec![Some(0), Some(1), Some(2), Some(3)];
        let changes = adjust(&[50, 50, 1, 1], &mut slots, 2, RULE);
        assert_eq!(changes, [Change::Migrate { one: 0, other: 2 }]);
        assert_eq!(fullest(&[50, 50, 1, 1], &slots, 2), 51 * SHARE);
    }

    #[test]
    fn balanced_ranks_are_left_alone() {
        let mut slots = start(8, 4);
        assert!(adjust(&[100, 102, 101, 100, 99, 100, 103, 100], &mut slots, 4, RULE).is_empty());
    }
}
