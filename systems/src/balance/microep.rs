//! MicroEP (MicroMoE, also FineMoE, 2025): the copies of experts stand on different sets of ranks, and for every micro-batch
//! a linear program splits each expert's entries over its copies so that the fullest rank has least. No weights move.
//!
//! The program is `min m, sum_g x_eg = l_e, sum_e x_eg <= m`. Its value is `max over sets S of ranks of
//! (entries of the experts whose copies all lie in S) / |S|`: up to eight ranks all sets are tried, beyond that `m` starts at
//! a bound from below and a maximal flow either reaches it or shows the set that does not fit, whose mean is the next `m`.
//! Entries are whole, so `m` is rounded up, and the flow of whole numbers exists.

use std::cmp::Reverse;

use crate::balance::{Slots, eplb};

/// Most ranks whose sets are all tried.
const ALL_SETS: usize = 8;

/// The entries that each copy takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Entries of the fullest rank.
    pub most: u64,
    /// `[slot]` entries; none in an empty slot.
    pub quota: Vec<u64>,
}

/// The value of the program by its closed form, in `2^ranks` steps. Every expert that has entries has a copy.
pub fn least_maximum(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> u64 {
    let per_rank = slots.len() / ranks;
    let mut held_by = vec![0usize; loads.len()];
    for (slot, expert) in slots.iter().enumerate().filter_map(|(slot, expert)| Some((slot, (*expert)?))) {
        held_by[expert] |= 1 << (slot / per_rank);
    }
    // Step 1: entries by the set of ranks that have a copy.
    let mut inside = vec![0; 1 << ranks];
    held_by.iter().zip(loads).for_each(|(&set, load)| inside[set] += load);
    // Step 2: sums over all subsets of each set.
    for bit in (0..ranks).map(|rank| 1 << rank) {
        for set in (0..inside.len()).filter(|set| set & bit != 0) {
            inside[set] += inside[set ^ bit];
        }
    }
    // Step 3: the set with the highest mean.
    let mean = |(set, load): (usize, u64)| load.div_ceil(u64::from(set.count_ones().max(1)));
    inside.into_iter().enumerate().skip(1).map(mean).max().unwrap_or(0)
}

/// Solves the program. Every expert that has entries has a copy.
pub fn split(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> Split {
    let mut flow = Flow::new(loads, slots, ranks);
    flow.pour(loads);
    let mut most = if ranks <= ALL_SETS {
        least_maximum(loads, slots, ranks)
    } else {
        loads.iter().sum::<u64>().div_ceil(ranks as u64)
    };
    for rank in 0..ranks {
        while flow.load[rank] > most {
            if !flow.relieve(rank, most) {
                // No copy can take more: these ranks share their entries among themselves.
                let shared: u64 = flow.reached.iter().map(|&rank| flow.load[rank]).sum();
                most = most.max(shared.div_ceil(flow.reached.len() as u64));
            }
        }
    }
    Split { most, quota: flow.quota }
}

/// A split on its way to the optimum.
struct Flow<'a> {
    slots: &'a [Option<usize>],
    per_rank: usize,
    /// Slots that hold an expert, one expert's after the other.
    copies: Vec<usize>,
    /// `[expert]`: where its copies start.
    first: Vec<usize>,
    /// `[slot]` entries.
    quota: Vec<u64>,
    /// `[rank]` entries.
    load: Vec<u64>,
    /// The ranks of a search, in the order in which it reached them.
    reached: Vec<usize>,
    /// `[rank]`: the slots from which and to which the search came there; none where it did not come.
    came: Vec<Option<(usize, usize)>>,
}

impl<'a> Flow<'a> {
    fn new(loads: &[u64], slots: &'a [Option<usize>], ranks: usize) -> Self {
        let mut first = vec![0; loads.len() + 1];
        slots.iter().flatten().for_each(|&expert| first[expert + 1] += 1);
        (0..loads.len()).for_each(|expert| first[expert + 1] += first[expert]);
        let mut next = first.clone();
        let mut copies = vec![0; first[loads.len()]];
        for (slot, expert) in slots.iter().enumerate().filter_map(|(slot, expert)| Some((slot, (*expert)?))) {
            copies[next[expert]] = slot;
            next[expert] += 1;
        }
        Self {
            slots,
            per_rank: slots.len() / ranks,
            copies,
            first,
            quota: vec![0; slots.len()],
            load: vec![0; ranks],
            reached: Vec::with_capacity(ranks),
            came: vec![None; ranks],
        }
    }

    /// A good start: experts by rising number of copies and falling load, each poured over its ranks like water.
    fn pour(&mut self, loads: &[u64]) {
        let copies = |expert: usize| self.first[expert + 1] - self.first[expert];
        let mut order: Vec<(usize, Reverse<u64>, usize)> =
            loads.iter().enumerate().map(|(expert, &load)| (copies(expert), Reverse(load), expert)).collect();
        order.sort_unstable();
        let mut own = Vec::new();
        for (copies, Reverse(load), expert) in order {
            own.clear();
            own.extend_from_slice(&self.copies[self.first[expert]..self.first[expert] + copies]);
            own.sort_unstable_by_key(|&slot| (self.load[slot / self.per_rank], slot));
            let mut left = load;
            // The ranks of `own[..=index]` are filled to the level of the next.
            for index in 0..own.len() {
                let level = self.load[own[index] / self.per_rank];
                let next = own.get(index + 1).map_or(u64::MAX, |&slot| self.load[slot / self.per_rank]);
                let wide = index as u64 + 1;
                let pour = left.min((next - level).saturating_mul(wide));
                for (position, &slot) in own[..=index].iter().enumerate() {
                    let part = pour / wide + u64::from((position as u64) < pour % wide);
                    self.quota[slot] += part;
                    self.load[slot / self.per_rank] += part;
                }
                left -= pour;
                if left == 0 {
                    break;
                }
            }
        }
    }

    /// Moves entries of `from` along the shortest way to a rank with fewer than `most`; false where there is none.
    fn relieve(&mut self, from: usize, most: u64) -> bool {
        self.came.fill(None);
        self.reached.clear();
        self.reached.push(from);
        let mut at = 0;
        while at < self.reached.len() {
            let rank = self.reached[at];
            at += 1;
            for slot in rank * self.per_rank..(rank + 1) * self.per_rank {
                let Some(expert) = self.slots[slot].filter(|_| self.quota[slot] > 0) else { continue };
                for &other in &self.copies[self.first[expert]..self.first[expert + 1]] {
                    let to = other / self.per_rank;
                    if to == from || self.came[to].is_some() {
                        continue;
                    }
                    self.came[to] = Some((slot, other));
                    self.reached.push(to);
                    if self.load[to] < most {
                        self.shift(from, to, most);
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Moves as many entries as the way found from `from` to `to` allows.
    fn shift(&mut self, from: usize, to: usize, most: u64) {
        let mut amount = (self.load[from] - most).min(most - self.load[to]);
        let mut rank = to;
        while let Some((source, _)) = self.came[rank] {
            amount = amount.min(self.quota[source]);
            rank = source / self.per_rank;
        }
        rank = to;
        while let Some((source, target)) = self.came[rank] {
            self.quota[source] -= amount;
            self.quota[target] += amount;
            rank = source / self.per_rank;
        }
        self.load[from] -= amount;
        self.load[to] += amount;
    }
}

/// Equally many copies of every expert (or one fewer), such that two experts share at most one rank as far as that can be: the best of
/// some tries.
pub fn symmetric(experts: usize, ranks: usize, slots: usize) -> Slots {
    const TRIES: u64 = 32;
    let mut random = SplitMix(experts as u64);
    let tried = (0..TRIES).map(|_| meet_once(experts, ranks, slots, &mut random));
    // The first without a pair that meets twice, or the one with the fewest.
    let mut best: Option<(u32, Slots)> = None;
    for (again, placed) in tried {
        if best.as_ref().is_none_or(|(least, _)| again < *least) {
            best = Some((again, placed));
        }
        if again == 0 {
            break;
        }
    }
    best.expect("there was a try").1
}

/// Every copy goes to a rank with the fewest copies, among those to one that has met the expert's other ranks least, at random among these.
/// (With the lowest instead, ranks form sets that keep to themselves and cannot hand entries on.) Returns how often pairs of
/// ranks meet more than once, and the placement.
fn meet_once(experts: usize, ranks: usize, slots: usize, random: &mut SplitMix) -> (u32, Slots) {
    let mut placed = vec![None; ranks * slots];
    let mut taken = vec![0; ranks];
    // `[rank][rank]`: experts that stand on both, above the diagonal.
    let mut met = vec![0u32; ranks * ranks];
    let mut meets = vec![0u32; ranks];
    let pair = |a: usize, b: usize| a.min(b) * ranks + a.max(b);
    for expert in 0..experts {
        let copies = (ranks * slots / experts + usize::from(expert < ranks * slots % experts)).min(ranks);
        let mut own: Vec<usize> = Vec::with_capacity(copies);
        // `[rank]`: how often it has met the expert's ranks so far.
        meets.fill(0);
        for _ in 0..copies {
            let open = (0..ranks).filter(|rank| taken[*rank] < slots && !own.contains(rank));
            let order = open.map(|rank| (taken[rank], meets[rank], random.next(), rank));
            let Some((.., rank)) = order.min() else { break };
            meets.iter_mut().enumerate().for_each(|(other, meets)| *meets += met[pair(rank, other)]);
            placed[rank * slots + taken[rank]] = Some(expert);
            taken[rank] += 1;
            own.iter().for_each(|&other| met[pair(rank, other)] += 1);
            own.push(rank);
        }
    }
    (met.into_iter().map(|times| times.saturating_sub(1)).sum(), placed)
}

/// Copies in proportion to load, on ranks at random: the best of `tries` such placements, and of the one that packs copies by
/// load, under the loads given. The same `seed` gives the same placement.
pub fn asymmetric(loads: &[u64], shape: eplb::Shape, tries: usize, seed: u64) -> Slots {
    let mut best = eplb::global(loads, shape);
    let mut least = split(loads, &best, shape.ranks).most;
    let copies = eplb::replicate(loads, shape.ranks * shape.slots, shape.ranks);
    let mut random = SplitMix(seed);
    for _ in 0..tries {
        let placed = scatter(&copies, shape, &mut random);
        let most = split(loads, &placed, shape.ranks).most;
        if most < least {
            (best, least) = (placed, most);
        }
    }
    best
}

/// Experts by falling number of copies, each on those ranks that have most slots left, at random among equal ones.
fn scatter(copies: &[u32], shape: eplb::Shape, random: &mut SplitMix) -> Slots {
    let eplb::Shape { ranks, slots, .. } = shape;
    let mut placed = vec![None; ranks * slots];
    let mut taken = vec![0; ranks];
    let mut order: Vec<(Reverse<u32>, u64, usize)> =
        copies.iter().enumerate().map(|(expert, &copies)| (Reverse(copies), random.next(), expert)).collect();
    order.sort_unstable();
    for (Reverse(copies), _, expert) in order {
        let mut open: Vec<(usize, u64, usize)> =
            (0..ranks).filter(|&rank| taken[rank] < slots).map(|rank| (taken[rank], random.next(), rank)).collect();
        open.sort_unstable();
        for (_, _, rank) in open.into_iter().take(copies as usize) {
            placed[rank * slots + taken[rank]] = Some(expert);
            taken[rank] += 1;
        }
    }
    placed
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA'14): a stream of numbers from a seed.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Elementary steps of a split: a start over all copies and a few ways between ranks for each; up to eight ranks, all their sets.
pub fn steps(slots: usize, ranks: usize) -> u64 {
    let sets = if ranks <= 8 { ranks << ranks } else { 0 };
    (8 * slots + sets) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::tests::{below, loads, random};

    /// The split serves every entry once, and its fullest rank is what it says.
    fn check(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> u64 {
        let split = split(loads, slots, ranks);
        let mut served = vec![0; loads.len()];
        for (expert, quota) in slots.iter().zip(&split.quota) {
            match expert {
                Some(expert) => served[*expert] += quota,
                None => assert_eq!(*quota, 0),
            }
        }
        assert_eq!(served, loads);
        let of_rank = split.quota.chunks_exact(slots.len() / ranks).map(|own| own.iter().sum::<u64>());
        assert_eq!(of_rank.max().unwrap(), split.most);
        split.most
    }

    /// Placements with empty slots, experts with one copy and with many.
    fn placed(random: &mut rand_chacha::ChaCha8Rng, experts: usize, ranks: usize, slots: usize) -> Slots {
        let mut placed: Slots = (0..ranks * slots).map(|slot| (slot < experts).then_some(slot)).collect();
        for slot in &mut placed[experts..] {
            *slot = (below(random, 4) > 0).then(|| below(random, experts as u64) as usize);
        }
        (1..placed.len()).rev().for_each(|i| placed.swap(i, below(random, i as u64 + 1) as usize));
        placed
    }

    #[test]
    fn the_flow_reaches_the_closed_form() {
        let mut random = random(6);
        for (experts, ranks, slots) in [(4, 2, 3), (8, 4, 4), (12, 6, 3), (16, 8, 4), (20, 10, 3), (24, 12, 3)] {
            for _ in 0..40 {
                let loads = loads(&mut random, experts);
                let slots = placed(&mut random, experts, ranks, slots);
                assert_eq!(check(&loads, &slots, ranks), least_maximum(&loads, &slots, ranks), "{loads:?} {slots:?}");
            }
        }
    }

    /// Every way to split a few entries of three experts over three ranks.
    #[test]
    fn nothing_is_better_than_the_closed_form() {
        let mut random = random(7);
        for _ in 0..50 {
            let loads: Vec<u64> = (0..3).map(|_| below(&mut random, 6)).collect();
            let slots = placed(&mut random, 3, 3, 2);
            let mut splits = vec![vec![0u64; 3]];
            for (expert, &load) in loads.iter().enumerate() {
                let holders: Vec<usize> =
                    (0..6).filter(|&slot| slots[slot] == Some(expert)).map(|slot| slot / 2).collect();
                for _ in 0..load {
                    let one_more = |split: &Vec<u64>, rank: usize| {
                        let mut next = split.clone();
                        next[rank] += 1;
                        next
                    };
                    splits =
                        splits.iter().flat_map(|split| holders.iter().map(|&rank| one_more(split, rank))).collect();
                    splits.sort();
                    splits.dedup();
                }
            }
            let best = splits.iter().map(|split| *split.iter().max().unwrap()).min().unwrap();
            assert_eq!(check(&loads, &slots, 3), best);
        }
    }

    #[test]
    fn many_ranks_are_split_evenly_over_symmetric_copies() {
        let mut random = random(8);
        for _ in 0..20 {
            let loads: Vec<u64> = (0..256).map(|_| below(&mut random, 1000)).collect();
            let slots = symmetric(256, 64, 8);
            let most = check(&loads, &slots, 64);
            // In order, the fullest of 64 ranks has about 1.5 times the mean.
            let mean = loads.iter().sum::<u64>().div_ceil(64);
            assert!(most <= mean + mean / 100, "{most} against {mean}");
        }
    }

    #[test]
    fn symmetric_copies_share_at_most_one_rank() {
        for (experts, ranks, slots) in [(8, 16, 1), (16, 8, 4), (32, 16, 4), (64, 32, 4), (256, 64, 8)] {
            let placed = symmetric(experts, ranks, slots);
            let holds = |expert: usize, rank: usize| placed[rank * slots..(rank + 1) * slots].contains(&Some(expert));
            let ranks_of = |expert| (0..ranks).filter(|&rank| holds(expert, rank)).collect();
            let sets: Vec<Vec<usize>> = (0..experts).map(ranks_of).collect();
            for (index, one) in sets.iter().enumerate() {
                assert_eq!(one.len(), ranks * slots / experts);
                for other in &sets[..index] {
                    assert!(one.iter().filter(|rank| other.contains(rank)).count() <= 1, "{one:?} {other:?}");
                }
            }
        }
    }

    #[test]
    fn copies_in_proportion_to_load_are_no_worse() {
        let mut random = random(9);
        for _ in 0..20 {
            let loads = loads(&mut random, 32);
            let shape = eplb::Shape { ranks: 16, slots: 4, nodes: 1 };
            let placed = asymmetric(&loads, shape, 8, 1);
            assert!((0..32).all(|expert| placed.contains(&Some(expert))));
            assert_eq!(placed, asymmetric(&loads, shape, 8, 1));
            let packed = split(&loads, &eplb::global(&loads, shape), 16).most;
            assert!(check(&loads, &placed, 16) <= packed);
        }
    }
}
