//! EPLB, the balancer of DeepSeek's expert parallelism (DeepSeek-AI 2025, public code), in training.
//!
//! *Online*: from the loads of past iterations, hot experts get copies in extra slots and all copies are packed onto ranks
//! ([`crate::balance::eplb`]); hierarchically where the gate limits the groups of a token. Entries are split evenly between
//! copies. A copy is an expert like any other: its weights and optimizer state move to it, and copies stay one by an all-reduce
//! of their gradients. *Offline*: all pools under this policy.

use workloads::model::Moe;

use crate::balance::eplb::{self, Shape};
use crate::plan::{self, search};
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    System,
};

/// EPLB.
pub struct Eplb;

/// Slots of a rank beyond those that hold every expert once: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

/// Iterations between placements in plans that the search picks, and iterations whose loads a decision looks at.
const EVERY: usize = 10;

impl System for Eplb {
    fn about(&self) -> About {
        About {
            name: "eplb",
            title: "EPLB",
            summary: "Hot experts copied to 2 extra slots a rank and packed by the loads of the last 10 iterations, every 10 iterations (DeepSeek-AI 2025)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, EVERY, |_| true)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let nodes = job.nodes(plan.expert_group(0, 0));
        let several = nodes.last().zip(nodes.first()).map_or(1, |(last, first)| last - first + 1);
        let groups = job.model.router.groups.map_or(0, |groups| groups.number);
        Box::new(Replicated { every: plan.placement_every, nodes: several, groups })
    }
}

struct Replicated {
    every: usize,
    /// Nodes of a group.
    nodes: usize,
    /// Groups of experts that the gate keeps a token to; 0 for none.
    groups: usize,
}

impl Policy for Replicated {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::with_room(moe.experts, ranks, EXTRA_SLOTS)
    }

    fn placement_due(&self, iteration: usize) -> bool {
        plan::is_due(self.every, iteration)
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, EVERY, now.experts());
        let shape = Shape { ranks: now.ranks(), slots: now.slots_per_rank(), nodes: self.nodes };
        let next = eplb::hierarchical(&loads, shape, self.groups);
        let next = eplb::keep(now.experts_in_slots(), &next, now.ranks());
        let next = Placement::of_slots(next, now.experts(), now.ranks()).expect("every expert has a copy");
        if next.max_rank_load(&loads) < now.max_rank_load(&loads) { Decision::Move(next) } else { Decision::Stay }
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_expert_is_copied_once_and_stays() {
        let mut policy = Replicated { every: 10, nodes: 1, groups: 0 };
        let moe = Moe::plain(64, 8, 16, 8);
        let start = policy.first_placement(0, &moe, 4);
        assert_eq!((start.slots_per_rank(), start.max_rank_load(&[70, 10, 10, 10, 10, 10, 10, 10])), (4, 80));
        let mut past = LoadHistory::default();
        past.push(vec![vec![70, 10, 10, 10, 10, 10, 10, 10]]);
        let Decision::Move(next) = policy.place(10, 0, &past, &start) else { panic!("it must move") };
        // The mean is 35; parts are rounded up.
        assert!(next.max_rank_load(&[70, 10, 10, 10, 10, 10, 10, 10]) <= 37);
        assert_eq!(policy.place(20, 0, &past, &next), Decision::Stay);
    }
}
