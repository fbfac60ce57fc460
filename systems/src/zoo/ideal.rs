//! What perfect balance would bring: a bound that stands beside the systems, and none of them.
//!
//! 1. *Offline*: expert parallelism over all ranks, as the baseline of speedups has it; with a searched plan, the fastest plan there
//!    is under balance.
//! 2. *Gate*: forced. Every rank's entries are spread evenly over all experts, those that a capacity dropped stay dropped: the
//!    same work, evenly divided. Benchmarks of Megatron-Core do so by `--moe-router-force-load-balancing`.
//! 3. *Online*: nothing is left to decide, and nothing is charged.

use crate::plan::search;
use crate::{About, Candidate, CostModel, Job, Plan, Policy, RoutingCounts, System};

/// Expert parallelism under a gate that is forced to balance.
pub struct Ideal;

impl System for Ideal {
    fn about(&self) -> About {
        About {
            name: "ideal",
            title: "Ideal (balanced gate)",
            summary: "Expert parallelism under a gate that is forced to give every expert as many entries: what balancing can bring at most, a bound and not a system",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Forced)
    }

    fn is_bound(&self) -> bool {
        true
    }
}

struct Forced;

impl Policy for Forced {
    /// The entries that do not divide go to other experts on every rank.
    fn restrict(&self, counts: &mut RoutingCounts, _nodes: &[usize]) {
        let (ranks, experts) = (counts.ranks(), counts.experts());
        for rank in 0..ranks {
            let row = counts.row_mut(rank);
            let total: usize = row.iter().map(|&count| count as usize).sum();
            for (index, expert) in (rank * experts / ranks..).take(experts).enumerate() {
                row[expert % experts] = (total * (index + 1) / experts - total * index / experts) as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn entries_are_kept_and_even() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut below = |bound: u32| random.next_u32() % bound;
        for _ in 0..200 {
            let (ranks, experts) = (1 + below(8) as usize, 1 + below(40) as usize);
            let chosen = (0..ranks * experts).map(|_| below(50)).collect();
            let mut forced = RoutingCounts::new(experts, chosen);
            let totals: Vec<u32> = (0..ranks).map(|rank| forced.row(rank).iter().sum()).collect();
            Forced.restrict(&mut forced, &[]);
            for (rank, total) in totals.into_iter().enumerate() {
                let even = total / experts as u32..=total.div_ceil(experts as u32);
                assert_eq!(forced.row(rank).iter().sum::<u32>(), total);
                assert!(forced.row(rank).iter().all(|count| even.contains(count)), "{:?}", forced.row(rank));
            }
        }
    }
}
