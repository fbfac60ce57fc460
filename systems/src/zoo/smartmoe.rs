//! SmartMoE (Zhai et al., USENIX ATC'23).
//!
//! *Offline* (section 4): plans that differ in anything but placement form pools; the pool is chosen by a performance
//! model that is fed with the routing that a short profiling run saw, passed through the gate: for a capacity gate the
//! load that the capacity admits, for a no-drop gate the load itself. Memory bounds the candidates.
//! *Online* (section 5): every few iterations, each layer's experts are placed greedily by the loads of the last
//! iterations; a placement is taken when its fullest rank is less full than now. Weights and optimizer state move.

use std::borrow::Cow;

use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::plan::search::{self, Candidate, Estimate};
use crate::plan::{Plan, PlanError};
use crate::price::cost::CostModel;
use crate::program::LayerProgram;
use crate::program::routing::{LoadHistory, RoutingCounts};
use crate::zoo::expert_only::{Plain, experts_of};
use crate::{Card, Decision, Policy, System, plan::memory};
use workloads::trace::BatchCounts;

/// SmartMoE with its parts to switch.
pub struct SmartMoe {
    card: Card,
    /// Whether the offline search sees the routing, or assumes a uniform one.
    data_sensitive: bool,
    /// Iterations between placements in plans that the search picks; 0 for none.
    placement_every: usize,
    migrated_bytes_per_parameter: f64,
}

/// Offline and online.
pub static SMARTMOE: SmartMoe = SmartMoe {
    card: Card {
        name: "smartmoe",
        title: "SmartMoE",
        about: "Offline choice of a pool by a data-sensitive model, online greedy placement every 10 iterations (Zhai et al., ATC'23)",
    },
    data_sensitive: true,
    placement_every: 10,
    migrated_bytes_per_parameter: memory::MIGRATED_BYTES_PER_PARAMETER,
};

/// The offline plan alone.
pub static OFFLINE_ONLY: SmartMoe = SmartMoe {
    card: Card {
        name: "smartmoe-offline",
        title: "SmartMoE (offline only)",
        about: "SmartMoE's offline plan with experts left in order: an ablation",
    },
    placement_every: 0,
    ..SMARTMOE
};

/// With the estimate that does not look at data.
pub static UNIFORM_ESTIMATE: SmartMoe = SmartMoe {
    card: Card {
        name: "smartmoe-uniform",
        title: "SmartMoE (uniform estimate)",
        about: "SmartMoE whose offline search assumes a uniform routing: the data-insensitive ablation of figure 10",
    },
    data_sensitive: false,
    placement_every: 0,
    ..SMARTMOE
};

/// With migration that costs nothing.
pub static FREE_MIGRATION: SmartMoe = SmartMoe {
    card: Card {
        name: "smartmoe-free-migration",
        title: "SmartMoE (free migration)",
        about: "SmartMoE whose experts move at no cost: an upper bound, not a system",
    },
    migrated_bytes_per_parameter: 0.0,
    ..SMARTMOE
};

/// As the artifact migrates.
pub static WEIGHTS_ONLY_MIGRATION: SmartMoe = SmartMoe {
    card: Card {
        name: "smartmoe-weights-only",
        title: "SmartMoE (weights-only migration)",
        about: "SmartMoE that moves half-precision weights and leaves optimizer state behind, as its artifact does: this changes what is trained",
    },
    migrated_bytes_per_parameter: 2.0,
    ..SMARTMOE
};

/// Iterations whose loads a placement decision looks at, up to the one before it: the history lags by one iteration, and by
/// up to `placement_every` more until the next decision.
const HISTORY: usize = 10;

impl System for SmartMoe {
    fn card(&self) -> Card {
        self.card
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let profile = self.profile(job);
        let estimated = search::enumerate(job, self.placement_every)
            .into_iter()
            .map(|plan| Candidate { plan, outcome: estimate_on(job, &plan, costs, &profile) })
            .collect();
        search::rank(estimated)
    }

    fn policy(&self, _job: &Job, plan: &Plan) -> Box<dyn Policy> {
        Box::new(Online {
            every: plan.placement_every,
            migrated_bytes_per_parameter: self.migrated_bytes_per_parameter,
        })
    }
}

impl SmartMoe {
    /// What the offline search makes of one plan, be it its own or not.
    ///
    /// # Errors
    /// As for [`search::estimate`].
    pub fn estimate(&self, job: &Job, plan: &Plan, costs: &CostModel) -> Result<Estimate, PlanError> {
        estimate_on(job, plan, costs, &self.profile(job))
    }

    /// The routing that the search believes in.
    fn profile<'a>(&self, job: &'a Job) -> Cow<'a, [BatchCounts]> {
        if self.data_sensitive {
            return Cow::Borrowed(&job.profile);
        }
        job.profile.first().map(BatchCounts::uniform).into_iter().collect()
    }
}

/// A plan with its experts where the online part would put them under the profile's loads; in order where it never places.
fn estimate_on(job: &Job, plan: &Plan, costs: &CostModel, profile: &[BatchCounts]) -> Result<Estimate, PlanError> {
    search::estimate(job, plan, costs, &Plain, profile, &|layer| {
        let experts = experts_of(job, layer);
        let now = Placement::identity(experts, plan.ep);
        if plan.placement_every == 0 {
            return now;
        }
        let mut loads = vec![0; experts];
        for batch in profile {
            for (sum, load) in loads.iter_mut().zip(batch.loads(layer)) {
                *sum += load;
            }
        }
        accepted(&loads, &now).unwrap_or(now)
    })
}

struct Online {
    every: usize,
    migrated_bytes_per_parameter: f64,
}

impl Policy for Online {
    fn place(&mut self, iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        if self.every == 0 || iteration == 0 || !iteration.is_multiple_of(self.every) {
            return Decision::NotDue;
        }
        // A sum orders experts as a mean does.
        let mut loads = vec![0; now.experts()];
        for seen in past.recent(layer, HISTORY) {
            for (sum, load) in loads.iter_mut().zip(seen) {
                *sum += load;
            }
        }
        match accepted(&loads, now) {
            Some(next) => Decision::Move(next),
            None => Decision::Stay,
        }
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::expert_parallel()
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        self.migrated_bytes_per_parameter
    }
}

/// The greedy placement, if its fullest rank is less full than now.
pub fn accepted(loads: &[u64], now: &Placement) -> Option<Placement> {
    let next = greedy(loads, now);
    (now.max_rank_load(loads) > next.max_rank_load(loads)).then_some(next)
}

/// Experts by descending load, each to the rank with a free slot and the least load (the lowest on ties, but its present
/// rank when that is one of them); slots in order of arrival.
///
/// `loads`: `[expert]` entries.
pub fn greedy(loads: &[u64], now: &Placement) -> Placement {
    let (ranks, slots) = (now.ranks(), now.slots_per_rank());
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_unstable_by_key(|&expert| (std::cmp::Reverse(loads[expert]), expert));
    let mut load = vec![0u64; ranks];
    let mut taken = vec![0usize; ranks];
    let mut slot_of = vec![0; loads.len()];
    for expert in order {
        let present = now.rank_of(expert);
        let mut best = usize::MAX;
        let mut least = u64::MAX;
        for rank in 0..ranks {
            if load[rank] < least && taken[rank] < slots {
                (best, least) = (rank, load[rank]);
            }
        }
        if taken[present] < slots && load[present] == least {
            best = present;
        }
        slot_of[expert] = best * slots + taken[best];
        taken[best] += 1;
        load[best] += loads[expert];
    }
    Placement::new(slot_of, ranks).unwrap_or_else(|_| now.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_spreads_the_hot_experts() {
        let now = Placement::identity(4, 2);
        let next = greedy(&[10, 9, 1, 2], &now);
        // 10 stays on rank 0, 9 goes to rank 1, 2 to rank 1 (9 < 10), 1 to rank 0.
        assert_eq!(next.experts_of(0), [0, 2]);
        assert_eq!(next.experts_of(1), [1, 3]);
    }

    #[test]
    fn ties_keep_experts_where_they_are() {
        let now = Placement::new(vec![3, 1, 2, 0], 2).unwrap();
        let next = greedy(&[5, 5, 5, 5], &now);
        assert!(now.moves_to(&next).is_empty());
    }

    #[test]
    fn only_a_lower_maximum_is_accepted() {
        let now = Placement::identity(4, 2);
        assert!(accepted(&[5, 1, 4, 2], &now).is_none());
        assert!(accepted(&[5, 4, 1, 2], &now).is_some());
    }

    /// Against every placement of tiny cases: greedy is at most 4/3 of the best (Graham 1969, with slots for machines),
    /// and never worse than staying once the accept rule has spoken.
    #[test]
    fn greedy_is_close_to_the_brute_force_optimum() {
        let mut state = 1u64;
        for _ in 0..200 {
            let loads: Vec<u64> = (0..6)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state >> 33) % 100
                })
                .collect();
            let now = Placement::identity(6, 3);
            let best = best_of_all(&loads);
            let greedy = accepted(&loads, &now).unwrap_or(now).max_rank_load(&loads);
            assert!(greedy >= best);
            assert!(3 * greedy <= 4 * best, "{loads:?}: {greedy} against {best}");
        }
    }

    /// Least possible maximum for 6 experts on 3 ranks of 2 slots.
    fn best_of_all(loads: &[u64]) -> u64 {
        let total: u64 = loads.iter().sum();
        let mut best = u64::MAX;
        for a in 1..6 {
            let first = loads[0] + loads[a];
            let rest: Vec<usize> = (1..6).filter(|&e| e != a).collect();
            for &b in &rest[1..] {
                let second = loads[rest[0]] + loads[b];
                best = best.min(first.max(second).max(total - first - second));
            }
        }
        best
    }
}
