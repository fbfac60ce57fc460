//! Expert parallelism that turns the order of experts round before the second iteration.

use systems::plan::search;
use systems::{About, Candidate, CostModel, Decision, Job, LoadHistory, Placement, Plan, Policy, System};

pub(crate) struct Reversed;

impl System for Reversed {
    fn about(&self) -> About {
        About { name: "reversed", title: "Reversed", summary: "A test" }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Once)
    }
}

struct Once;

impl Policy for Once {
    fn placement_due(&self, iteration: usize) -> bool {
        iteration == 1
    }

    fn place(&mut self, _iteration: usize, _layer: usize, _past: &LoadHistory, now: &Placement) -> Decision {
        let reversed = (0..now.experts()).rev().collect();
        Decision::Move(Placement::new(reversed, now.ranks()).unwrap())
    }
}
