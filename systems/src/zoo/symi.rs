//! Symi (2025): the optimizer state of experts is cut into shards that stay, and the weights of copies are laid anew in every
//! update, so that placing experts moves nothing that the update does not move anyhow.
//!
//! *Online*: in every iteration, slots go to experts in proportion to the loads of the last iteration ([`crate::balance::eplb`]).
//! Entries are split evenly between copies. Gradients of all copies go to the shards of the optimizer, and new weights from
//! there to whatever slots the next placement has: 2 bytes a parameter each. *Offline*: all pools under this policy; the shards
//! lie over all ranks of a stage.

use workloads::model::Moe;

use crate::balance::eplb::{self, Shape};
use crate::plan::search;
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    Storage, System,
};

/// Symi.
pub struct Symi;

/// Slots of a rank beyond those that its plan has anyhow: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

impl System for Symi {
    fn about(&self) -> About {
        About {
            name: "symi",
            title: "Symi",
            summary: "Optimizer state in fixed shards, slots laid anew in every update by the loads of the last iteration, 2 extra slots a rank (Symi 2025)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, 1, |_| true)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, _job: &Job, plan: &Plan) -> Box<dyn Policy> {
        Box::new(Relaying { expert_dp: plan.expert_dp })
    }
}

struct Relaying {
    expert_dp: usize,
}

impl Policy for Relaying {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let extra = if ranks > 1 { EXTRA_SLOTS } else { 0 };
        let shape = Shape { ranks, slots: moe.experts * self.expert_dp / ranks + extra, nodes: 1 };
        let slots = eplb::global(&vec![1; moe.experts], shape);
        Placement::of_slots(slots, moe.experts, ranks).expect("every expert has a copy")
    }

    fn joins_replicas(&self) -> bool {
        true
    }

    fn storage(&self) -> Storage {
        Storage::OptimizerShards
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        0.0
    }

    fn placement_due(&self, iteration: usize) -> bool {
        iteration > 0
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, 1, now.experts());
        let next = eplb::global(&loads, Shape { ranks: now.ranks(), slots: now.slots_per_rank(), nodes: 1 });
        if next == now.experts_in_slots() {
            return Decision::Stay;
        }
        Decision::Move(Placement::of_slots(next, now.experts(), now.ranks()).expect("every expert has a copy"))
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// The least that the most loaded copy can have where `slots` slots go to experts, at least one to each: of all ways to deal them.
    fn least_share(loads: &[u64], slots: usize) -> u64 {
        let Some((&load, rest)) = loads.split_last() else { return 0 };
        let with = |copies: usize| eplb::share(load, copies as u32).max(least_share(rest, slots - copies));
        let most = if rest.is_empty() { slots..=slots } else { 1..=slots - rest.len() };
        most.map(with).min().expect("there are as many slots as experts")
    }

    /// Whatever the slots were and whatever came before the last iteration, none of the ways to deal all slots is closer to the loads.
    #[test]
    fn slots_are_in_proportion_to_the_loads_of_the_last_iteration() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for (experts, ranks, expert_dp) in [(2, 2, 1), (4, 2, 1), (3, 3, 2), (4, 4, 2)] {
            let mut policy = Relaying { expert_dp };
            let mut now = policy.first_placement(0, &Moe::plain(1, 1, 1, experts), ranks);
            let mut past = LoadHistory::default();
            for iteration in 1..30 {
                past.push(vec![(0..experts).map(|_| u64::from(random.next_u32() % 1000)).collect()]);
                if let Decision::Move(next) = policy.place(iteration, 0, &past, &now) {
                    now = next;
                }
                let loads = past.recent(0, 1).next().unwrap();
                let share = |expert| eplb::share(loads[expert], now.slots_of(expert).len() as u32);
                assert!(now.experts_in_slots().iter().all(Option::is_some));
                let least = least_share(loads, now.experts_in_slots().len());
                assert_eq!((0..experts).map(share).max(), Some(least), "{loads:?}");
            }
        }
    }

    #[test]
    fn slots_follow_the_last_iteration() {
        let mut policy = Relaying { expert_dp: 2 };
        let start = policy.first_placement(0, &Moe::plain(1, 1, 1, 8), 8);
        assert_eq!((start.slots_per_rank(), start.slots_of(3).len()), (4, 4));
        let mut past = LoadHistory::default();
        past.push(vec![vec![700, 10, 10, 10, 10, 10, 10, 10]]);
        let Decision::Move(next) = policy.place(1, 0, &past, &start) else { panic!("it must lay slots anew") };
        assert!(next.slots_of(0).len() > 20);
        assert_eq!(policy.place(2, 0, &past, &next), Decision::Stay);
    }
}
