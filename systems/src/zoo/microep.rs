//! MicroEP (MicroMoE, also FineMoE, 2025): the replicas of expert-data parallelism stand on different ranks each, and a linear
//! program per micro-batch splits every expert's entries over them. No weights move for it.
//!
//! The `ep * expert_dp` ranks of a stage exchange rows as one group. *Symmetric*: `expert_dp` copies of every expert, such that two
//! experts share at most one rank; never placed anew. *Asymmetric*: copies in proportion to load, the best of some random
//! placements, at most every 50 iterations. Both in [`crate::balance::microep`]. *Offline*: all pools with several replicas under
//! this policy.

use workloads::model::Moe;

use crate::balance::eplb::{self, Shape};
use crate::balance::microep;
use crate::plan::{self, search};
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    System,
};

/// MicroEP with one of its two placements.
pub struct MicroEp {
    about: About,
    /// Iterations between placements in plans that the search picks; 0 for the symmetric one, which stays.
    every: usize,
}

/// With the symmetric placement.
pub static MICROEP: MicroEp = MicroEp {
    about: About {
        name: "microep",
        title: "MicroEP",
        summary: "Replicas of expert-data parallelism on different ranks each, entries split between them by a linear program per micro-batch (MicroMoE 2025)",
    },
    every: 0,
};

/// With the asymmetric one.
pub static ASYMMETRIC: MicroEp = MicroEp {
    about: About {
        name: "microep-asymmetric",
        title: "MicroEP (asymmetric)",
        summary: "MicroEP whose experts have copies in proportion to load, placed anew every 50 iterations (MicroMoE 2025)",
    },
    every: 50,
};

/// Iterations whose loads a placement looks at.
const HISTORY: usize = 10;

/// Random placements that an asymmetric one is the best of.
const TRIES: usize = 16;

impl System for MicroEp {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, self.every, |plan| plan.expert_dp > 1)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, _job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let every = if self.every == 0 { 0 } else { plan.placement_every };
        Box::new(Splitting { expert_dp: plan.expert_dp, every })
    }
}

struct Splitting {
    expert_dp: usize,
    every: usize,
}

impl Policy for Splitting {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let slots = microep::symmetric(moe.experts, ranks, moe.experts * self.expert_dp / ranks);
        Placement::of_slots(slots, moe.experts, ranks).expect("every expert has its copies")
    }

    fn joins_replicas(&self) -> bool {
        true
    }

    fn placement_due(&self, iteration: usize) -> bool {
        plan::is_due(self.every, iteration)
    }

    fn place(&mut self, iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, HISTORY, now.experts());
        let shape = Shape { ranks: now.ranks(), slots: now.slots_per_rank(), nodes: 1 };
        let next = microep::asymmetric(&loads, shape, TRIES, (iteration + layer) as u64);
        let most = |slots: &[Option<usize>]| microep::split(&loads, slots, now.ranks()).most;
        if most(&next) >= most(now.experts_in_slots()) {
            return Decision::Stay;
        }
        let next = eplb::keep(now.experts_in_slots(), &next, now.ranks());
        Decision::Move(Placement::of_slots(next, now.experts(), now.ranks()).expect("every expert has a copy"))
    }

    fn program(&self, _layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let slots = placement.experts_in_slots();
        let split = microep::split(&counts.loads(), slots, placement.ranks());
        let quota = split.quota.into_iter().map(|entries| entries as u32).collect();
        let steps = if placement.has_copies() { microep::steps(slots.len(), placement.ranks()) } else { 0 };
        LayerProgram::split(Split::Quota(quota), Vec::new(), Weights::Stand, steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight experts with two copies on eight ranks; one has half of the entries.
    #[test]
    fn a_hot_experts_entries_go_to_both_of_its_copies() {
        let policy = Splitting { expert_dp: 2, every: 0 };
        let placement = policy.first_placement(0, &Moe::plain(1, 1, 1, 8), 8);
        assert_eq!(placement.slots_per_rank(), 2);
        let counts = RoutingCounts::new(8, [70, 10, 10, 10, 10, 10, 10, 10].repeat(8));
        let program = policy.program(0, &counts, &placement);
        let Split::Quota(quota) = program.split else { panic!("it has quotas") };
        assert_eq!(placement.slots_of(0).iter().map(|&slot| quota[slot]).collect::<Vec<_>>(), [280, 280]);
        assert_eq!(quota.iter().sum::<u32>(), 8 * 140);
        assert!(program.copies.is_empty());
    }
}
