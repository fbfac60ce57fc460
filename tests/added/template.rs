//! What the system does, as who describes it (paper, section), and what is left out.

use systems::plan::search;
use systems::{About, Candidate, CostModel, Decision, Job, LoadHistory, Placement, Plan, Policy, System};

/// Iterations between placements.
const EVERY: usize = 5;

/// Expert parallelism that swaps a layer's busiest expert with its idlest.
pub(crate) struct MySystem;

impl System for MySystem {
    fn about(&self) -> About {
        About {
            name: "my-system",
            title: "MySystem",
            summary: "A template: expert parallelism that swaps a layer's busiest expert with its idlest every 5 iterations",
        }
    }

    /// Offline: the plans that the system considers, best first. `search` has rules to choose from; `plans.my-system` in a suite
    /// goes before all of them.
    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    /// Online: what decides and runs the layers during one run.
    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(SwapHottest)
    }
}

struct SwapHottest;

impl Policy for SwapHottest {
    /// Iterations count from 0.
    fn placement_due(&self, iteration: usize) -> bool {
        iteration > 0 && iteration.is_multiple_of(EVERY)
    }

    /// `past` holds the loads of iterations before this one, summed over ranks; what is decided and moved is charged.
    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, EVERY, now.experts());
        let busiest = (0..loads.len()).max_by_key(|&expert| loads[expert]);
        let idlest = (0..loads.len()).min_by_key(|&expert| loads[expert]);
        let (Some(busiest), Some(idlest)) = (busiest, idlest) else { return Decision::Stay };
        let next = now.swapped(busiest, idlest);
        if next.max_rank_load(&loads) < now.max_rank_load(&loads) { Decision::Move(next) } else { Decision::Stay }
    }

    // What else a policy may decide (the layer program of each micro-batch, copies of experts, where their state is) stands in
    // the trait `Policy`; `fastermoe.rs`, `eplb.rs` and `quota.rs` are examples.
}
