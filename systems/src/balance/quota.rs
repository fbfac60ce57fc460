//! Quota replication: for one micro-batch whose loads are known, experts of too full ranks get copies on ranks with room,
//! and each copy a quota of entries.
//!
//! [`replicate`] is UltraEP's (2026): the least bound `T` on every rank's load for which giving away what lies above it
//! succeeds. With copies of any size and `experts / ranks` copies a rank it is MoonEP's, which finds `T` at the mean.
//! [`least_loaded`] is that of least-loaded expert parallelism: experts in turn, what does not fit at home to the rank with
//! the least to do. Copies stay inside the home's domain, the ranks that a fast link joins.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// A copy of an expert for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The logical expert.
    pub expert: usize,
    /// The rank that gets it.
    pub rank: usize,
    /// The entries that it takes; the home keeps what its copies do not take.
    pub quota: u64,
}

/// Where experts live.
#[derive(Clone, Copy, Debug)]
pub struct Homes<'a> {
    /// `[expert]`: its rank.
    pub rank_of: &'a [usize],
    /// `[rank]`: its domain; ranks of a domain follow each other.
    pub domain_of: &'a [usize],
}

/// What copies may be made.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Copies that a rank has room for.
    pub room: usize,
    /// Fewest entries that a copy is made for, unless fewer are all that is left to give away.
    pub least: u64,
    /// What a rank may have above the mean, in percent.
    pub slack: u64,
}

/// `T` is found to this part of the mean load.
const PRECISION: u64 = 256;

/// Bounds that the bisection of [`replicate`] tries, about.
pub const BOUNDS: u64 = 10;

/// Elementary steps of finding copies: experts are sorted; each of `bounds` handles every rank and copy in a heap.
pub fn steps(experts: usize, ranks: usize, copies: usize, bounds: u64) -> u64 {
    let log = |number: usize| u64::from(number.max(2).ilog2());
    experts as u64 * log(experts) + bounds * (ranks + copies) as u64 * log(ranks)
}

/// The copies with which no rank has more than `T` entries, for the least `T` that a bisection between the mean with its slack and the
/// fullest rank finds. `loads`: `[expert]` entries.
pub fn replicate(loads: &[u64], homes: Homes, limits: Limits) -> Vec<Copy> {
    let mut search = Search::new(loads, homes, limits);
    let lowest = (search.mean() * (100 + limits.slack)).div_ceil(100);
    let (mut fails, mut holds) = (lowest, search.base.iter().copied().max().unwrap_or(0));
    if search.give_away(fails) {
        return search.copies;
    }
    let precision = (fails / PRECISION).max(1);
    let mut best = Vec::new();
    while holds.saturating_sub(fails) > precision {
        let middle = fails.midpoint(holds);
        if search.give_away(middle) {
            holds = middle;
            std::mem::swap(&mut best, &mut search.copies);
        } else {
            fails = middle;
        }
    }
    best
}

/// Memory of one search, used again for every `T`.
struct Search<'a> {
    loads: &'a [u64],
    homes: Homes<'a>,
    limits: Limits,
    /// `[rank]`: the load of its own experts.
    base: Vec<u64>,
    /// Ranks by falling base.
    ranks: Vec<usize>,
    /// Experts by falling load, a rank's one after the other.
    experts: Vec<usize>,
    /// `[rank]`: where its experts start.
    first: Vec<usize>,
    /// `[domain]`: room below `T` and its rank, the most on top.
    slack: Vec<BinaryHeap<(u64, Reverse<usize>)>>,
    /// `[rank]`: copies that it can still take.
    room: Vec<usize>,
    copies: Vec<Copy>,
}

impl<'a> Search<'a> {
    fn new(loads: &'a [u64], homes: Homes<'a>, limits: Limits) -> Self {
        let count = homes.domain_of.len();
        let mut base = vec![0; count];
        let mut first = vec![0; count + 1];
        for (&rank, &load) in homes.rank_of.iter().zip(loads) {
            base[rank] += load;
            first[rank + 1] += 1;
        }
        (0..count).for_each(|rank| first[rank + 1] += first[rank]);
        let mut experts: Vec<usize> = (0..loads.len()).collect();
        experts.sort_unstable_by_key(|&e| (homes.rank_of[e], Reverse(loads[e]), e));
        let mut ranks: Vec<usize> = (0..count).collect();
        ranks.sort_unstable_by_key(|&rank| (Reverse(base[rank]), rank));
        let domains = homes.domain_of.last().map_or(0, |last| last + 1);
        let slack = vec![BinaryHeap::with_capacity(count); domains];
        Self { loads, homes, limits, base, ranks, experts, first, slack, room: vec![0; count], copies: Vec::new() }
    }

    /// The mean load of the domain that has most: no `T` below it can hold.
    fn mean(&self) -> u64 {
        let ranks = 0..self.base.len();
        let domain = |domain| ranks.clone().filter(move |&rank| self.homes.domain_of[rank] == domain);
        let mean = |d| domain(d).map(|rank| self.base[rank]).sum::<u64>().div_ceil(domain(d).count().max(1) as u64);
        (0..self.slack.len()).map(mean).max().unwrap_or(0)
    }

    /// Gives away what lies above `bound` on every rank; whether all of it found a place.
    fn give_away(&mut self, bound: u64) -> bool {
        self.copies.clear();
        self.room.fill(self.limits.room);
        self.slack.iter_mut().for_each(BinaryHeap::clear);
        if self.limits.room > 0 {
            for (rank, &base) in self.base.iter().enumerate().filter(|(_, base)| **base < bound) {
                self.slack[self.homes.domain_of[rank]].push((bound - base, Reverse(rank)));
            }
        }
        // Step 1: ranks by falling base.
        for index in 0..self.ranks.len() {
            let rank = self.ranks[index];
            if self.base[rank] <= bound {
                break;
            }
            if !self.relieve(rank, self.base[rank] - bound) {
                return false;
            }
        }
        true
    }

    /// Gives `need` entries of a rank's experts away; whether all of them found a place.
    fn relieve(&mut self, rank: usize, mut need: u64) -> bool {
        let slack = &mut self.slack[self.homes.domain_of[rank]];
        // Step 2: its experts by falling load.
        for &expert in &self.experts[self.first[rank]..self.first[rank + 1]] {
            let mut left = self.loads[expert];
            // Step 3: to the rank with the most room. It does not have the expert yet: a rank that got a copy has no room
            // left, or all of the expert has been given.
            while need > 0 && left > 0 {
                let Some(mut top) = slack.peek_mut() else { return false };
                let (open, Reverse(to)) = *top;
                let quota = need.min(open).min(left);
                if quota < self.limits.least && quota < need {
                    break;
                }
                self.copies.push(Copy { expert, rank: to, quota });
                (need, left) = (need - quota, left - quota);
                self.room[to] -= 1;
                if open == quota || self.room[to] == 0 {
                    PeekMut::pop(top);
                } else {
                    top.0 -= quota;
                }
            }
        }
        need == 0
    }
}

/// What least-loaded expert parallelism is set to.
#[derive(Clone, Copy, Debug)]
pub struct LeastLoaded {
    /// Most entries of a rank, in percent of the mean.
    pub cap: u64,
    /// Fewest entries that go to another rank at once, unless fewer are left.
    pub chunk: u64,
    /// Below this load of the fullest rank, in percent of the mean, nothing is done.
    pub threshold: u64,
    /// Copies that a rank has room for.
    pub room: usize,
}

/// Experts by falling load: the home takes what stays below the cap, the rest goes to the rank with the least to do.
pub fn least_loaded(loads: &[u64], homes: Homes, rule: LeastLoaded) -> Vec<Copy> {
    let ranks = homes.domain_of.len() as u64;
    let total: u64 = loads.iter().sum();
    // What each rank has to do: entries assigned to it, and its own experts' that are not assigned yet.
    let mut load = vec![0; homes.domain_of.len()];
    homes.rank_of.iter().zip(loads).for_each(|(&rank, &of_expert)| load[rank] += of_expert);
    let mut copies: Vec<Copy> = Vec::new();
    if load.iter().max().is_none_or(|most| most * ranks * 100 < total * rule.threshold) {
        return copies;
    }
    let cap = (total * rule.cap).div_ceil(ranks * 100);
    let mut room = vec![rule.room; load.len()];
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_unstable_by_key(|&expert| (Reverse(loads[expert]), expert));
    for expert in order {
        let home = homes.rank_of[expert];
        // Step 1: what the home keeps.
        let mut rest = load[home].saturating_sub(cap).min(loads[expert]);
        let first = copies.len();
        while rest > 0 {
            // Step 2: the rank of the domain with the least to do, where it is less than the home's.
            let has = |rank| copies[first..].iter().position(|copy: &Copy| copy.rank == rank);
            let open = |&rank: &usize| homes.domain_of[rank] == homes.domain_of[home] && load[rank] < load[home];
            let may = |rank: &usize| open(rank) && (room[*rank] > 0 || has(*rank).is_some());
            let Some(to) = (0..load.len()).filter(may).min_by_key(|&rank| load[rank]) else { break };
            // Step 3: what fits below its cap, and at least a chunk; never so much that it has more to do than the home had.
            let fits = cap.saturating_sub(load[to]).max(rule.chunk).min(load[home] - load[to]);
            let quota = rest.min(fits);
            match has(to) {
                Some(index) => copies[first + index].quota += quota,
                None => {
                    room[to] -= 1;
                    copies.push(Copy { expert, rank: to, quota });
                }
            }
            (load[to], load[home], rest) = (load[to] + quota, load[home] - quota, rest - quota);
        }
    }
    copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::microep;
    use crate::balance::tests::{below, loads, random};

    const ULTRA: Limits = Limits { room: 2, least: 64, slack: 0 };

    fn in_order(experts: usize, ranks: usize) -> Vec<usize> {
        (0..experts).map(|expert| expert * ranks / experts).collect()
    }

    /// `[rank]` entries once the copies have taken theirs.
    fn rank_loads(loads: &[u64], homes: Homes, copies: &[Copy]) -> Vec<u64> {
        let mut of_rank = vec![0; homes.domain_of.len()];
        homes.rank_of.iter().zip(loads).for_each(|(&rank, load)| of_rank[rank] += load);
        for copy in copies {
            of_rank[homes.rank_of[copy.expert]] -= copy.quota;
            of_rank[copy.rank] += copy.quota;
        }
        of_rank
    }

    /// No entry is served twice or not at all, and every copy is one that may be made.
    fn check(loads: &[u64], homes: Homes, room: usize, copies: &[Copy]) {
        for (expert, &load) in loads.iter().enumerate() {
            assert!(copies.iter().filter(|c| c.expert == expert).map(|c| c.quota).sum::<u64>() <= load);
        }
        for (index, copy) in copies.iter().enumerate() {
            let home = homes.rank_of[copy.expert];
            assert!(copy.quota > 0 && copy.rank != home);
            assert_eq!(homes.domain_of[copy.rank], homes.domain_of[home], "a copy stays in its domain");
            assert!(!copies[..index].iter().any(|other| (other.expert, other.rank) == (copy.expert, copy.rank)));
            assert!(copies.iter().filter(|other| other.rank == copy.rank).count() <= room);
        }
    }

    #[test]
    fn no_rank_has_more_than_before_and_every_copy_may_be_made() {
        let mut random = random(3);
        for (experts, ranks, domain) in [(8, 4, 4), (16, 16, 8), (64, 16, 4), (256, 64, 64), (256, 64, 8)] {
            for _ in 0..40 {
                let loads = loads(&mut random, experts);
                let rank_of = in_order(experts, ranks);
                let domain_of: Vec<usize> = (0..ranks).map(|rank| rank / domain).collect();
                let homes = Homes { rank_of: &rank_of, domain_of: &domain_of };
                let before = rank_loads(&loads, homes, &[]).into_iter().max().unwrap();
                for limits in [
                    ULTRA,
                    Limits { room: experts / ranks, least: 1, slack: 10 },
                    Limits { room: 0, least: 1, slack: 0 },
                ] {
                    let copies = replicate(&loads, homes, limits);
                    check(&loads, homes, limits.room, &copies);
                    assert!(rank_loads(&loads, homes, &copies).into_iter().max().unwrap() <= before);
                }
                let rule = LeastLoaded { cap: 110, chunk: 64, threshold: 130, room: 3 };
                let copies = least_loaded(&loads, homes, rule);
                check(&loads, homes, rule.room, &copies);
                assert!(rank_loads(&loads, homes, &copies).into_iter().max().unwrap() <= before);
            }
        }
    }

    /// Least-loaded expert parallelism as its formulas state it, on ranks of one domain with room for any copies: `[expert][rank]` entries.
    fn least_loaded_reference(loads: &[u64], rank_of: &[usize], ranks: usize, rule: LeastLoaded) -> Vec<Vec<u64>> {
        let own = |rank: usize| (0..loads.len()).filter(move |&expert| rank_of[expert] == rank);
        let mut taken = vec![vec![0; ranks]; loads.len()];
        let total: u64 = loads.iter().sum();
        let most = (0..ranks).map(|rank| own(rank).map(|expert| loads[expert]).sum::<u64>()).max().unwrap();
        if 100 * most * (ranks as u64) < rule.threshold * total {
            (0..loads.len()).for_each(|expert| taken[expert][rank_of[expert]] = loads[expert]);
            return taken;
        }
        let cap = (rule.cap * total).div_ceil(100 * ranks as u64);
        let mut pending: Vec<usize> = (0..loads.len()).collect();
        pending.sort_by_key(|&expert| Reverse(loads[expert]));
        while !pending.is_empty() {
            let expert = pending.remove(0);
            let load = |taken: &Vec<Vec<u64>>, rank: usize| {
                let assigned: u64 = taken.iter().map(|of_rank| of_rank[rank]).sum();
                assigned + own(rank).filter(|other| pending.contains(other)).map(|other| loads[other]).sum::<u64>()
            };
            let home = rank_of[expert];
            taken[expert][home] = cap.saturating_sub(load(&taken, home)).min(loads[expert]);
            let mut rest = loads[expert] - taken[expert][home];
            while rest > 0 {
                let others = (0..ranks).filter(|&rank| rank != home);
                let to = others.min_by_key(|&rank| load(&taken, rank)).unwrap();
                let chunk = cap.saturating_sub(load(&taken, to)).max(rule.chunk).min(rest);
                taken[expert][to] += chunk;
                rest -= chunk;
            }
        }
        taken
    }

    #[test]
    fn least_loaded_is_its_plain_reference() {
        let mut random = random(16);
        let mut copied = 0;
        for (experts, ranks) in [(4, 2), (8, 4), (16, 8), (32, 8)] {
            for _ in 0..50 {
                let (loads, rank_of) = (loads(&mut random, experts), in_order(experts, ranks));
                let homes = Homes { rank_of: &rank_of, domain_of: &vec![0; ranks] };
                let chunk = [1, 64, 1024][below(&mut random, 3) as usize];
                let rule = LeastLoaded { cap: 100 + below(&mut random, 11), chunk, threshold: 130, room: experts };
                let copies = least_loaded(&loads, homes, rule);
                let mut taken = vec![vec![0; ranks]; experts];
                (0..experts).for_each(|expert| taken[expert][rank_of[expert]] = loads[expert]);
                for copy in &copies {
                    taken[copy.expert][rank_of[copy.expert]] -= copy.quota;
                    taken[copy.expert][copy.rank] += copy.quota;
                }
                assert_eq!(taken, least_loaded_reference(&loads, &rank_of, ranks, rule), "{loads:?} {rule:?}");
                copied += copies.len();
            }
        }
        assert!(copied > 500, "{copied} copies");
    }

    #[test]
    fn with_room_for_copies_of_any_size_all_ranks_have_the_mean() {
        let mut random = random(4);
        for _ in 0..100 {
            let loads = loads(&mut random, 16);
            let rank_of = in_order(16, 8);
            let homes = Homes { rank_of: &rank_of, domain_of: &[0; 8] };
            let copies = replicate(&loads, homes, Limits { room: 16, least: 1, slack: 0 });
            let most = rank_loads(&loads, homes, &copies).into_iter().max().unwrap();
            assert_eq!(most, loads.iter().sum::<u64>().div_ceil(8));
        }
    }

    /// Every set of copies of four experts on four ranks that the room allows, each split as well as can be. Ranks that
    /// give never take, so the bisection is above the best of all, by less than a third.
    #[test]
    fn the_bound_is_close_to_the_best_of_all_sets_of_copies() {
        let mut random = random(5);
        let pairs: Vec<(usize, usize)> =
            (0..4).flat_map(|e| (0..4).map(move |r| (e, r))).filter(|(e, r)| e != r).collect();
        for room in [1, 2] {
            for _ in 0..30 {
                let loads: Vec<u64> = (0..4).map(|_| below(&mut random, 1000) * below(&mut random, 3)).collect();
                let homes = Homes { rank_of: &[0, 1, 2, 3], domain_of: &[0; 4] };
                let best = (0..1u32 << pairs.len())
                    .filter_map(|set| {
                        let mut slots: Vec<Vec<usize>> = (0..4).map(|rank| vec![rank]).collect();
                        let chosen = pairs.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
                        chosen.for_each(|(_, &(expert, rank))| slots[rank].push(expert));
                        let fits = slots.iter().all(|own| own.len() <= 1 + room);
                        fits.then(|| {
                            let padded = slots.iter().flat_map(|own| (0..=room).map(|slot| own.get(slot).copied()));
                            microep::least_maximum(&loads, &padded.collect::<Vec<_>>(), 4)
                        })
                    })
                    .min()
                    .unwrap();
                let copies = replicate(&loads, homes, Limits { room, least: 1, slack: 0 });
                let most = rank_loads(&loads, homes, &copies).into_iter().max().unwrap();
                assert!(most >= best);
                assert!(most * 10 <= best * 13, "{loads:?}: {most} against {best}");
            }
        }
    }

    #[test]
    fn small_copies_are_not_made() {
        let homes = Homes { rank_of: &[0, 1], domain_of: &[0; 2] };
        let limits = |least| Limits { room: 1, least, slack: 0 };
        assert_eq!(replicate(&[110, 90], homes, limits(1)), [Copy { expert: 0, rank: 1, quota: 10 }]);
        // Ten entries are all that is to be given away: the bound holds whatever a copy is worth.
        assert_eq!(replicate(&[110, 90], homes, limits(64)).len(), 1);
        // Three experts of 40 on rank 0: 60 of the 120 go, 40 of one, and 20 of another are all that is left.
        let homes = Homes { rank_of: &[0, 0, 0], domain_of: &[0; 2] };
        let copies = replicate(&[40, 40, 40], homes, Limits { room: 2, least: 30, slack: 0 });
        assert_eq!(copies, [Copy { expert: 0, rank: 1, quota: 40 }, Copy { expert: 1, rank: 1, quota: 20 }]);
    }

    #[test]
    fn even_ranks_are_left_alone() {
        let homes = Homes { rank_of: &[0, 1], domain_of: &[0; 2] };
        let rule = LeastLoaded { cap: 100, chunk: 1, threshold: 130, room: 1 };
        assert!(least_loaded(&[120, 100], homes, rule).is_empty());
        assert_eq!(least_loaded(&[300, 100], homes, rule), [Copy { expert: 0, rank: 1, quota: 100 }]);
    }
}
