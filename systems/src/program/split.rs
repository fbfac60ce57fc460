//! How the entries of an expert with several copies are split between them.

use crate::balance::quota::Copy;
use crate::plan::placement::Placement;
use crate::program::routing::RoutingCounts;
use crate::program::{Copied, Layout};

/// How entries are split between the copies of their expert.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Split {
    /// As many entries to every copy, local ones first as for [`Split::Quota`].
    #[default]
    Even,
    /// So many entries to every slot, `[slot]`; an expert's slots take all of its entries. Entries go to a copy on their own rank
    /// first, as far as its quota reaches; the rest of each source is dealt in proportion to what is left of the quotas.
    Quota(Vec<u32>),
    /// So many entries from each source to every slot, `[source][slot]`, flat; those of an expert's slots add up to its count.
    Rows(Vec<u32>),
    /// All entries of a source to one copy, as many sources to each: source `s` of copies that are `c` takes copy `s` modulo `c`. Copies are
    /// those of [`Storage::Parts`](crate::Storage::Parts), whole while the layer runs.
    BySource,
    /// All entries to every copy, each of which computes its part of the expert; the source sums what comes back. Copies are those of
    /// [`Storage::Parts`](crate::Storage::Parts).
    Parts,
}

impl Split {
    /// Whether the copies of an expert keep a part of it each.
    pub fn of_parts(&self) -> bool {
        matches!(self, Split::BySource | Split::Parts)
    }

    /// Rows from each source to every slot, `[source][slot]`, flat. `slots_of(expert)`: its slots, ascending.
    pub(super) fn rows<'s>(
        &self,
        counts: &RoutingCounts,
        layout: Layout,
        slots: usize,
        slots_of: impl Fn(usize) -> &'s [usize],
    ) -> Vec<u32> {
        let ranks = counts.ranks();
        if let Split::Rows(rows) = self {
            debug_assert_eq!(rows.len(), ranks * slots);
            return rows.clone();
        }
        let mut rows = vec![0; ranks * slots];
        if self.of_parts() {
            for (source, row) in rows.chunks_exact_mut(slots).enumerate() {
                for expert in 0..counts.experts() {
                    let number = layout.rows().unwrap_or(counts.row(source)[expert]);
                    let copies = slots_of(expert);
                    let takes = |copy: usize| *self == Split::Parts || copy == source % copies.len();
                    (0..copies.len()).filter(|&copy| takes(copy)).for_each(|copy| row[copies[copy]] = number);
                }
            }
            return rows;
        }
        let mut quota = Vec::new();
        for expert in 0..counts.experts() {
            let copies = slots_of(expert);
            if let [only] = copies {
                (0..ranks).for_each(|source| rows[source * slots + only] = counts.row(source)[expert]);
                continue;
            }
            quota.clear();
            match self {
                Split::Quota(of_slots) => quota.extend(copies.iter().map(|&slot| of_slots[slot])),
                _ => quota.extend(even((0..ranks).map(|source| counts.row(source)[expert]).sum(), copies.len())),
            }
            deal(counts, expert, copies, &mut quota, slots, &mut rows);
        }
        rows
    }
}

/// As many for each; the first get what is left over.
fn even(entries: u32, copies: usize) -> impl Iterator<Item = u32> {
    let copies = copies as u32;
    (0..copies).map(move |copy| entries / copies + u32::from(copy < entries % copies))
}

/// Deals one expert's entries to its copies, whose quotas add up to them.
fn deal(counts: &RoutingCounts, expert: usize, copies: &[usize], quota: &mut [u32], slots: usize, rows: &mut [u32]) {
    let per_rank = slots / counts.ranks();
    // Step 1: each source's entries to the copies on its own rank.
    for (quota, &slot) in quota.iter_mut().zip(copies) {
        let source = slot / per_rank;
        let taken: u32 = copies.iter().filter(|&&s| s / per_rank == source).map(|&s| rows[source * slots + s]).sum();
        let local = (counts.row(source)[expert] - taken).min(*quota);
        rows[source * slots + slot] = local;
        *quota -= local;
    }
    // Step 2: the rest of each source in proportion to what is left of the quotas.
    let mut open: u64 = quota.iter().map(|&quota| u64::from(quota)).sum();
    for source in 0..counts.ranks() {
        let row = &mut rows[source * slots..(source + 1) * slots];
        let rest = u64::from(counts.row(source)[expert] - copies.iter().map(|&slot| row[slot]).sum::<u32>());
        if rest == 0 {
            continue;
        }
        let mut before = 0;
        for (quota, &slot) in quota.iter_mut().zip(copies) {
            let after = before + u64::from(*quota);
            // Cumulative rounding: parts add up to the rest, and none is above what is left of its quota.
            let part = (after * rest / open - before * rest / open) as u32;
            before = after;
            row[slot] += part;
            *quota -= part;
        }
        open -= rest;
    }
}

/// Copies in the empty slots of their ranks, and the quota of every slot: the home keeps what copies do not take. `loads`:
/// `[expert]` entries.
///
/// # Panics
/// When a rank gets more copies than it has empty slots.
pub fn in_slots(loads: &[u64], copies: &[Copy], placement: &Placement) -> (Vec<Copied>, Split) {
    let per_rank = placement.slots_per_rank();
    let mut quota = vec![0; placement.experts_in_slots().len()];
    for (expert, &load) in loads.iter().enumerate() {
        quota[placement.slots_of(expert)[0]] = load as u32;
    }
    let mut next = vec![0; placement.ranks()];
    let mut copied = Vec::with_capacity(copies.len());
    for copy in copies {
        let empty = |&slot: &usize| placement.experts_of(copy.rank)[slot].is_none();
        let slot = (next[copy.rank]..per_rank).find(empty).expect("a rank gets no more copies than it has room for");
        next[copy.rank] = slot + 1;
        let slot = copy.rank * per_rank + slot;
        quota[slot] = copy.quota as u32;
        quota[placement.slots_of(copy.expert)[0]] -= copy.quota as u32;
        copied.push(Copied { expert: copy.expert, slot });
    }
    (copied, Split::Quota(quota))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    struct Case {
        counts: RoutingCounts,
        slots: usize,
        /// `[expert]`.
        slots_of: Vec<Vec<usize>>,
        quota: Vec<u32>,
    }

    /// Any copies, two of them on one rank at times, and any quotas that add up.
    fn case(random: &mut ChaCha8Rng) -> Case {
        let mut below = |limit: u32| random.next_u32() % limit;
        let (ranks, per_rank) = (1 + below(6) as usize, 1 + below(4) as usize);
        let slots = ranks * per_rank;
        let experts = 1 + below(slots as u32) as usize;
        let mut slots_of = vec![Vec::new(); experts];
        for slot in 0..slots {
            let expert = if slot < experts { Some(slot) } else { Some(below(2 * experts as u32) as usize) };
            expert.filter(|&expert| expert < experts).into_iter().for_each(|expert| slots_of[expert].push(slot));
        }
        let counts = (0..ranks * experts).map(|_| if below(3) == 0 { 0 } else { below(50) }).collect();
        let counts = RoutingCounts::new(experts, counts);
        let mut quota = vec![0; slots];
        for (copies, load) in slots_of.iter().zip(counts.loads()) {
            for _ in 0..load {
                quota[copies[below(copies.len() as u32) as usize]] += 1;
            }
        }
        Case { counts, slots, slots_of, quota }
    }

    #[test]
    fn every_entry_is_served_once_and_quotas_are_met() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..500 {
            let Case { counts, slots, slots_of, quota } = case(&mut random);
            for split in [Split::Even, Split::Quota(quota.clone())] {
                let rows = split.rows(&counts, Layout::Ragged, slots, |expert| slots_of[expert].as_slice());
                for (source, row) in rows.chunks_exact(slots).enumerate() {
                    for (copies, &count) in slots_of.iter().zip(counts.row(source)) {
                        assert_eq!(copies.iter().map(|&slot| row[slot]).sum::<u32>(), count);
                    }
                }
                let got: Vec<u32> = (0..slots).map(|slot| rows.iter().skip(slot).step_by(slots).sum()).collect();
                match split {
                    Split::Quota(_) => assert_eq!(got, quota),
                    _ => {
                        for copies in &slots_of {
                            let (most, least) =
                                (copies.iter().map(|&s| got[s]).max(), copies.iter().map(|&s| got[s]).min());
                            assert!(most.unwrap() - least.unwrap() <= 1);
                        }
                    }
                }
            }
        }
    }

    /// Where a copy stays below its quota of local entries, all entries of its rank are local; where a rank sends entries away, its
    /// copies are full of its own.
    #[test]
    fn local_entries_come_first() {
        let mut random = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..500 {
            let Case { counts, slots, slots_of, quota } = case(&mut random);
            let per_rank = slots / counts.ranks();
            let rows =
                Split::Quota(quota.clone()).rows(&counts, Layout::Ragged, slots, |expert| slots_of[expert].as_slice());
            for (source, row) in rows.chunks_exact(slots).enumerate() {
                for (copies, &count) in slots_of.iter().zip(counts.row(source)) {
                    let own = || copies.iter().filter(|&&slot| slot / per_rank == source);
                    let local: u32 = own().map(|&slot| row[slot]).sum();
                    let room: u32 = own().map(|&slot| quota[slot]).sum();
                    assert_eq!(local, count.min(room));
                }
            }
        }
    }

    #[test]
    fn the_rest_is_in_proportion() {
        // Expert 0 in slots 0, 1 and 2 of three ranks; source 0 has 12 entries, 4 stay, 8 go 3 : 1.
        let counts = RoutingCounts::new(1, vec![12, 0, 0]);
        let rows = Split::Quota(vec![4, 6, 2]).rows(&counts, Layout::Ragged, 3, |_| &[0, 1, 2]);
        assert_eq!(rows[..3], [4, 6, 2]);
    }
}
