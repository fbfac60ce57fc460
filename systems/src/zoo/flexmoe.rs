//! FlexMoE (Nie et al., SIGMOD'23): copies of experts expand, shrink and migrate while training goes on.
//!
//! *Online*: when the fullest rank has more than a threshold above the mean, a few changes are made, each the one that leaves
//! the fullest rank with least ([`crate::balance::flexmoe`]). Entries are split evenly between copies. A copy's weights and
//! optimizer state move to it, and copies stay one by an all-reduce of their gradients. *Offline*: all pools under this policy.
//!
//! Left out: that changes are made beside the training steps. Here training waits for them.

use workloads::model::Moe;

use crate::balance::flexmoe::{self, Rule};
use crate::plan::{self, search};
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    System,
};

/// FlexMoE.
pub struct FlexMoe;

/// Slots of a rank beyond those that hold every expert once: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

/// Iterations between decisions in plans that the search picks, and iterations whose loads a decision looks at.
const EVERY: usize = 10;

/// Not stated in the facts at hand: 10% above the mean, and at most four changes of a layer at once.
const RULE: Rule = Rule { threshold: 110, changes: 4 };

impl System for FlexMoe {
    fn about(&self) -> About {
        About {
            name: "flexmoe",
            title: "FlexMoE",
            summary: "Copies of experts expand, shrink and migrate in 2 extra slots a rank, up to 4 changes of a layer every 10 iterations (Nie et al., SIGMOD'23)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, EVERY, |_| true)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, _job: &Job, plan: &Plan) -> Box<dyn Policy> {
        Box::new(Adjusting { every: plan.placement_every })
    }
}

struct Adjusting {
    every: usize,
}

impl Policy for Adjusting {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::with_room(moe.experts, ranks, EXTRA_SLOTS)
    }

    fn placement_due(&self, iteration: usize) -> bool {
        plan::is_due(self.every, iteration)
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, EVERY, now.experts());
        let mut slots = now.experts_in_slots().to_vec();
        if flexmoe::adjust(&loads, &mut slots, now.ranks(), RULE).is_empty() {
            return Decision::Stay;
        }
        let next = Placement::of_slots(slots, now.experts(), now.ranks());
        Decision::Move(next.expect("changes leave every expert a copy"))
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_copies_at_a_time() {
        let mut policy = Adjusting { every: 10 };
        let now = policy.first_placement(0, &Moe::plain(64, 8, 16, 8), 4);
        let mut past = LoadHistory::default();
        past.push(vec![vec![100, 90, 80, 70, 1, 1, 1, 1]]);
        let Decision::Move(next) = policy.place(10, 0, &past, &now) else { panic!("it must move") };
        assert!(now.moves_to(&next).len() <= 2 * RULE.changes);
        assert!(next.max_rank_load(&[100, 90, 80, 70, 1, 1, 1, 1]) < 190);
        assert!(!policy.placement_due(0) && !policy.placement_due(9) && policy.placement_due(10));
    }
}
