//! SmartMoE (Zhai et al., USENIX ATC'23).
//!
//! *Offline* (section 4): plans that differ in anything but placement form pools; the pool is chosen by a performance
//! model that is fed with the routing that a short profiling run saw, passed through the gate: for a capacity gate the
//! load that the capacity admits, for a no-drop gate the load itself. Memory bounds the candidates.
//! *Online* (section 5): every few iterations, each layer's experts are placed greedily by the loads of the last
//! iterations; a placement is taken when its fullest rank is less full than now, as in the artifact, whatever the move costs
//! (`smartmoe-migration-aware` weighs it). Every ten iterations: the paper's adaptive experiment has no other rule for its
//! interval. A decision looks at ten iterations, so that one odd iteration moves nothing; the artifact's adaptive experiment
//! looked at one (`smartmoe-artifact-window`). Weights and optimizer state move; the replicas of an expert-parallel group are
//! placed alike.

use std::borrow::Cow;
use std::cmp::Reverse;

use workloads::trace::BatchCounts;

use crate::plan::moves::{Moves, moves};
use crate::plan::search::{self, Estimate, PerformanceModel, Pool};
use crate::plan::{self, memory};
use crate::program::routing::sum_of_loads;
use crate::{
    About, Candidate, CostModel, Decision, Job, LoadHistory, Placement, Plain, Plan, PlanError, Policy, System,
};

/// SmartMoE with its parts to switch.
pub struct SmartMoe {
    about: About,
    /// Whether the offline search sees the routing, or assumes a uniform one.
    data_sensitive: bool,
    /// Whether the search prices plans as the paper's model does, by rates alone.
    paper_estimate: bool,
    /// Whether a placement must win back what it takes to move to it, or only be better.
    weighs_migration: bool,
    /// Iterations between placements in plans that the search picks; 0 for none.
    placement_every: usize,
    /// Iterations whose loads a placement decision looks at, up to the one before it: it lags by one iteration, and by up to
    /// `placement_every` more until the next decision.
    history: usize,
    migrated_bytes_per_parameter: f64,
}

/// Offline and online.
pub static SMARTMOE: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe",
        title: "SmartMoE",
        summary: "Offline choice of a pool by a data-sensitive model, online greedy placement every 10 iterations (Zhai et al., ATC'23)",
    },
    data_sensitive: true,
    paper_estimate: false,
    weighs_migration: false,
    placement_every: 10,
    history: 10,
    migrated_bytes_per_parameter: memory::MIGRATED_BYTES_PER_PARAMETER,
};

/// The offline plan alone.
pub static OFFLINE_ONLY: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-offline",
        title: "SmartMoE (offline only)",
        summary: "SmartMoE's offline plan with experts left in order: an ablation",
    },
    placement_every: 0,
    ..SMARTMOE
};

/// With the estimate that does not look at data.
pub static UNIFORM_ESTIMATE: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-uniform",
        title: "SmartMoE (uniform estimate)",
        summary: "SmartMoE whose offline search assumes a uniform routing: the data-insensitive ablation of figure 10",
    },
    data_sensitive: false,
    placement_every: 0,
    ..SMARTMOE
};

/// With the paper's own estimate.
pub static PAPER_ESTIMATE: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-paper-estimate",
        title: "SmartMoE (paper's estimate)",
        summary: "SmartMoE whose offline search knows rates alone, so that a layer is a straight line in its busiest rank's entries, as in the paper's model",
    },
    paper_estimate: true,
    ..SMARTMOE
};

/// With moves that must pay.
pub static MIGRATION_AWARE: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-migration-aware",
        title: "SmartMoE (moves that pay)",
        summary: "SmartMoE that moves experts only where the model expects to win back the migration before the next decision",
    },
    weighs_migration: true,
    ..SMARTMOE
};

/// With decisions as the artifact's adaptive experiment takes them.
pub static LAST_ITERATION: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-artifact-window",
        title: "SmartMoE (last iteration's loads)",
        summary: "SmartMoE that places experts by the loads of the last iteration alone, as its artifact's adaptive experiment does by one iteration's",
    },
    history: 1,
    ..SMARTMOE
};

/// With migration that costs nothing.
pub static FREE_MIGRATION: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-free-migration",
        title: "SmartMoE (free migration)",
        summary: "SmartMoE whose experts move at no cost: an upper bound, not a system",
    },
    migrated_bytes_per_parameter: 0.0,
    ..SMARTMOE
};

/// As the artifact migrates.
pub static WEIGHTS_ONLY_MIGRATION: SmartMoe = SmartMoe {
    about: About {
        name: "smartmoe-weights-only",
        title: "SmartMoE (weights-only migration)",
        summary: "SmartMoE that moves half-precision weights and leaves optimizer state behind, as its artifact does: this changes what is trained",
    },
    migrated_bytes_per_parameter: 2.0,
    ..SMARTMOE
};

impl System for SmartMoe {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let profile = self.profile(job);
        let believed = self.paper_estimate.then(|| rates_alone(job));
        let performance = PerformanceModel { job, costs: believed.as_ref().unwrap_or(costs), profile: &profile };
        let rate = |pool: Pool| {
            let in_order = pool.plan(0);
            // A rank alone with all experts has nothing to place.
            let plan = if in_order.ep > 1 { pool.plan(self.placement_every) } else { in_order };
            Candidate { plan, outcome: estimate(&performance, &plan) }
        };
        search::over_pools(&performance, |_| false, |_| true, rate)
    }

    fn searches(&self) -> bool {
        true
    }

    fn is_bound(&self) -> bool {
        self.migrated_bytes_per_parameter == 0.0
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let moves = self.weighs_migration.then(|| {
            let costs = CostModel::new(&job.cluster, job.gpus);
            (moves(job, plan, &costs, self.migrated_bytes_per_parameter), costs)
        });
        Box::new(OnlinePlacement { moves, ..self.placement(plan.placement_every) })
    }
}

impl SmartMoe {
    /// The online part alone, which decides every so many iterations and moves whatever it costs.
    pub fn online(&self, every: usize) -> Box<dyn Policy> {
        Box::new(self.placement(every))
    }

    fn placement(&self, every: usize) -> OnlinePlacement {
        let Self { history, migrated_bytes_per_parameter, .. } = *self;
        OnlinePlacement { every, history, migrated_bytes_per_parameter, moves: None }
    }

    /// What the offline search makes of one plan, be it its own or not.
    ///
    /// # Errors
    /// As for [`PerformanceModel::estimate`].
    pub fn estimate(&self, job: &Job, plan: &Plan, costs: &CostModel) -> Result<Estimate, PlanError> {
        estimate(&PerformanceModel { job, costs, profile: &self.profile(job) }, plan)
    }

    /// The routing that the search believes in.
    fn profile<'a>(&self, job: &'a Job) -> Cow<'a, [BatchCounts]> {
        if self.data_sensitive { Cow::Borrowed(&job.profile) } else { Cow::Owned(job.uniform_profile()) }
    }
}

/// A plan with its experts where the online part would put them under the profile's loads; in order where it never places.
fn estimate(performance: &PerformanceModel, plan: &Plan) -> Result<Estimate, PlanError> {
    plan.check(performance.job)?;
    let mut placements = plan.experts_in_order(performance.job);
    if plan.placement_every > 0 {
        for (layer, placement) in placements.iter_mut().enumerate() {
            let loads = sum_of_loads(placement.experts(), performance.profile.iter().map(|batch| batch.loads(layer)));
            if let Some(better) = better_placement(&loads, placement) {
                *placement = better;
            }
        }
    }
    performance.estimate(plan, &Plain, &placements)
}

/// The prices of the job's cluster without what the paper's model does not know: start-ups, waits and device memory. What is
/// left of a layer is the busiest rank's arithmetic and the busiest link's rows, both at a rate.
fn rates_alone(job: &Job) -> CostModel {
    let mut cluster = job.cluster.clone();
    for (path, constant) in cluster.constants_mut() {
        if path.ends_with("_start") || path.starts_with("host.") {
            constant.value = 0.0;
        }
    }
    cluster.gpu.memory_bandwidth.value = f64::INFINITY;
    cluster.gpu.scatter_bandwidth.value = f64::INFINITY;
    CostModel::new(&cluster, job.gpus)
}

struct OnlinePlacement {
    every: usize,
    history: usize,
    migrated_bytes_per_parameter: f64,
    /// `[moe layer]`, and their prices, where moves must pay.
    moves: Option<(Vec<Moves>, CostModel)>,
}

impl Policy for OnlinePlacement {
    fn placement_due(&self, iteration: usize) -> bool {
        plan::is_due(self.every, iteration)
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, self.history, now.experts());
        let better = better_placement(&loads, now);
        let pays = |next: &Placement| {
            let seen = past.len().min(self.history);
            let pay = |(moves, costs): &(Vec<Moves>, CostModel)| {
                moves[layer].pay(costs, &loads, [now, next], seen, self.every)
            };
            self.moves.as_ref().is_none_or(pay)
        };
        better.filter(pays).map_or(Decision::Stay, Decision::Move)
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        self.migrated_bytes_per_parameter
    }
}

/// The placement of [`place_experts`], if its fullest rank is less full than that of the present one.
pub fn better_placement(loads: &[u64], now: &Placement) -> Option<Placement> {
    let next = place_experts(loads, now);
    (now.max_rank_load(loads) > next.max_rank_load(loads)).then_some(next)
}

/// Algorithm 1 (section 5): where the experts of one layer go, by their loads. `loads`: `[expert]` entries. Ties are broken as
/// in the authors' public code.
pub fn place_experts(loads: &[u64], now: &Placement) -> Placement {
    let (ranks, slots) = (now.ranks(), now.slots_per_rank());
    // Step 1: sort the experts by descending load.
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_unstable_by_key(|&expert| (Reverse(loads[expert]), expert));
    let mut load = vec![0; ranks];
    let mut taken = vec![0; ranks];
    let mut slot_of = vec![0; loads.len()];
    for expert in order {
        // Step 2: give each to the least loaded rank with a free slot; on ties to the one that holds it, then to the lowest.
        let holder = now.rank_of(expert);
        let free = (0..ranks).filter(|&rank| taken[rank] < slots);
        // Half an entry more for whoever does not hold it. (A pair as the key takes three times as long.)
        let twice = |&rank: &usize| 2 * load[rank] + u64::from(rank != holder);
        let rank = free.min_by_key(twice).expect("there are as many slots as experts");
        // Step 3: it takes the rank's next slot.
        slot_of[expert] = rank * slots + taken[rank];
        taken[rank] += 1;
        load[rank] += loads[expert];
    }
    Placement::new(slot_of, ranks).expect("every expert took a free slot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_spreads_the_hot_experts() {
        let now = Placement::identity(4, 2);
        let next = place_experts(&[10, 9, 1, 2], &now);
        // 10 stays on rank 0, 9 goes to rank 1, 2 to rank 1 (9 < 10), 1 to rank 0.
        assert_eq!(next.experts_of(0), [Some(0), Some(2)]);
        assert_eq!(next.experts_of(1), [Some(1), Some(3)]);
    }

    #[test]
    fn ties_keep_experts_where_they_are() {
        let now = Placement::new(vec![3, 1, 2, 0], 2).unwrap();
        let next = place_experts(&[5, 5, 5, 5], &now);
        assert!(now.moves_to(&next).is_empty());
    }

    #[test]
    fn only_a_lower_maximum_is_accepted() {
        let now = Placement::identity(4, 2);
        assert!(better_placement(&[5, 1, 4, 2], &now).is_none());
        assert!(better_placement(&[5, 4, 1, 2], &now).is_some());
    }

    /// Nine iterations are even, the tenth is not.
    #[test]
    fn one_odd_iteration_moves_experts_where_it_is_all_that_is_seen() {
        let mut past = LoadHistory::default();
        (0..9).for_each(|_| past.push(vec![vec![300, 0, 100, 200]]));
        past.push(vec![vec![300, 250, 50, 0]]);
        let now = Placement::identity(4, 2);
        let last = place_experts(&[300, 250, 50, 0], &now);
        let decided = |system: &SmartMoe| system.online(10).place(10, 0, &past, &now);
        assert_eq!(decided(&LAST_ITERATION), Decision::Move(last));
        assert_eq!(decided(&SMARTMOE), Decision::Stay);
    }

    /// Against every placement of tiny cases: at most 4/3 of the best (Graham 1969, with slots for machines).
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
            let greedy = place_experts(&loads, &now).max_rank_load(&loads);
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
