//! Algorithms that spread the load of experts over ranks: values in, values out, an algorithm a file, its steps numbered as
//! in its paper.
//!
//! They know loads, ranks and slots, and nothing of models, prices or programs; the systems that use them are in
//! [`crate::zoo`]. All of them reckon in whole entries, and break ties by the lowest index: equal loads give equal answers
//! everywhere.
//!
//! | algorithm | decides | moves |
//! |---|---|---|
//! | [`eplb`] | how many copies an expert has, and where | weights, now and then |
//! | [`flexmoe`] | which copies are added, dropped and exchanged | weights, now and then |
//! | [`quota`] | which experts get copies for one micro-batch, and the entries that each takes | weights, every micro-batch |
//! | [`microep`] | how the entries of standing copies are split; where copies stand so that splitting helps | rows alone |
//! | [`laer`] | where experts that are stored in shards are restored | shards, every iteration |

pub mod eplb;
pub mod flexmoe;
pub mod laer;
pub mod microep;
pub mod quota;

/// The expert in each slot, none where a slot is empty: `[slot]`, rank by rank.
pub type Slots = Vec<Option<usize>>;

/// The load of the fullest rank when every expert's entries are split evenly between its copies, in units of
/// `1 / `[`eplb::SHARE`] entries. `loads`: `[expert]` entries.
pub fn fullest(loads: &[u64], slots: &[Option<usize>], ranks: usize) -> u64 {
    let mut copies = vec![0; loads.len()];
    slots.iter().flatten().for_each(|&expert| copies[expert] += 1);
    let of_rank = |own: &[Option<usize>]| own.iter().flatten().map(|&e| eplb::share(loads[e], copies[e])).sum();
    slots.chunks_exact(slots.len() / ranks).map(of_rank).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand::Rng;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use crate::program::routing::RoutingCounts;

    pub(super) fn random(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    /// A number below `limit`.
    pub(super) fn below(random: &mut ChaCha8Rng, limit: u64) -> u64 {
        random.next_u64() % limit
    }

    /// Loads of experts, a few of them far above the rest, some of them zero.
    pub(super) fn loads(random: &mut ChaCha8Rng, experts: usize) -> Vec<u64> {
        (0..experts)
            .map(|_| match below(random, 8) {
                0 => 0,
                1 => 1000 + below(random, 9000),
                _ => below(random, 1000),
            })
            .collect()
    }

    /// Counts of `ranks` sources whose experts are as unequal as [`loads`].
    pub(super) fn counts(random: &mut ChaCha8Rng, ranks: usize, experts: usize) -> RoutingCounts {
        let hot = loads(random, experts);
        let row = (0..ranks).flat_map(|_| hot.iter().map(|&h| below(random, h + 1) as u32).collect::<Vec<_>>());
        RoutingCounts::new(experts, row.collect())
    }
}
