//! LAER over FSEP (ASPLOS'26): experts are stored in shards over all ranks of a stage, so any rank can restore any of them for a
//! layer; which ones is planned anew in every iteration, and nothing migrates.
//!
//! *Online* ([`crate::balance::laer`]): from the loads of the last iteration, taken to come evenly from all ranks, two candidates
//! for the number of copies, relocation, routing, and the candidate of least cost. Each rank restores its experts by an
//! all-to-all one layer ahead, in the forward pass and again in the backward pass; gradients return to their shards behind the layer.
//! *Offline*: all pools, of those that differ in `ep` alone the one with the largest, since shards lie over the whole stage anyhow.

use workloads::model::Moe;

use crate::balance::laer::{self, Prices, Shape};
use crate::plan::{balancers, search};
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    Storage, System,
};

/// LAER.
pub struct Laer;

/// Experts that a rank restores beyond those that all ranks need to hold every expert once: two in all on models of fewer experts than
/// ranks, as in LAER's experiments.
const EXTRA_SLOTS: usize = 1;

impl System for Laer {
    fn about(&self) -> About {
        About {
            name: "laer",
            title: "LAER",
            summary: "Experts sharded over all ranks, restored where a layout planned in every iteration wants them (FSEP and LAER, ASPLOS'26)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, 1, |plan| !has_larger_set(job, plan))
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let costs = CostModel::new(&job.cluster, job.gpus);
        let nodes = costs.nodes_of_groups(plan.stage_ranks());
        let sets = if has_larger_set(job, plan) { plan.ep } else { plan.stage_ranks() };
        Box::new(Restoring { nodes, sets, prices: balancers::shard_prices(job, plan, &costs) })
    }
}

/// Whether the same stage could have a larger expert-parallel group.
fn has_larger_set(job: &Job, plan: &Plan) -> bool {
    let ranks = plan.stage_ranks();
    let larger = (plan.ep + 1..=ranks).filter(|ep| ranks.is_multiple_of(*ep));
    larger.map(|ep| Plan { ep, expert_dp: ranks / ep, ..*plan }).any(|plan| plan.check(job).is_ok())
}

struct Restoring {
    /// `[rank]` of a stage.
    nodes: Vec<usize>,
    /// A rank restores at least the experts that it would hold, were they spread over so many ranks: the plan's `ep`, where someone chose
    /// less than there could be, as LAER's authors did.
    sets: usize,
    prices: Option<Prices>,
}

impl Restoring {
    fn shape(&self, capacity: usize) -> Shape<'_> {
        Shape { nodes: &self.nodes, capacity }
    }
}

impl Policy for Restoring {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let capacity = (moe.experts.div_ceil(ranks) + EXTRA_SLOTS).max(moe.experts.div_ceil(self.sets));
        let capacity = if ranks > 1 { capacity } else { moe.experts };
        let (loads, shape) = (vec![1; moe.experts], self.shape(capacity));
        let slots = laer::relocate(&loads, &laer::even(&loads, ranks * capacity), shape);
        Placement::of_slots(slots, moe.experts, ranks).expect("every expert is restored somewhere")
    }

    fn joins_replicas(&self) -> bool {
        true
    }

    fn storage(&self) -> Storage {
        Storage::Shards
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        0.0
    }

    fn placement_due(&self, iteration: usize) -> bool {
        iteration > 0
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, 1, now.experts());
        let Some(prices) = self.prices else { return Decision::Stay };
        let counts = RoutingCounts::evenly(&loads, now.ranks());
        let slots = laer::plan(&counts, self.shape(now.slots_per_rank()), prices);
        if slots == now.experts_in_slots() {
            return Decision::Stay;
        }
        Decision::Move(Placement::of_slots(slots, now.experts(), now.ranks()).expect("every expert is restored"))
    }

    fn program(&self, _layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let rows = laer::route(counts, placement.experts_in_slots(), &self.nodes);
        LayerProgram::split(Split::Rows(rows), Vec::new(), Weights::Sharded, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::{Cluster, Gate, Model};

    #[test]
    fn a_layout_follows_the_last_iteration() {
        let job = Job::new(
            Model::named("test", "gpt-tiny").unwrap(),
            Cluster::named("test", "inky").unwrap(),
            8,
            Gate::NoDrop,
            16,
        );
        let plan =
            Plan { pp: 1, dp: 8, tp: 1, ep: 8, expert_dp: 1, micro_batch: 1, placement_every: 1, ..Plan::default() };
        let mut policy = Laer.policy(&job, &plan);
        let moe = job.model.moe_layers().next().unwrap();
        let start = policy.first_placement(0, moe, 8);
        assert!((0..8).all(|expert| start.slots_of(expert).len() == 2));
        let mut past = LoadHistory::default();
        past.push(vec![vec![9000, 10, 10, 10, 10, 10, 10, 10]]);
        let Decision::Move(next) = policy.place(1, 0, &past, &start) else { panic!("it must plan anew") };
        assert_eq!(next.slots_of(0).len(), 8, "a copy on every rank");
    }

    /// A plan with fewer sets than there could be says how many experts a rank restores, as LAER's authors did: four of sixteen.
    #[test]
    fn a_rank_restores_what_the_plan_says() {
        let model = Model::named("test", "gpt-l16-h2560-e16").unwrap();
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 16, Gate::NoDrop, 64);
        let moe = job.model.moe_layers().next().unwrap();
        let slots = |ep| {
            let plan = Plan { dp: 16, ep, expert_dp: 16 / ep, ..Plan::default() };
            Laer.policy(&job, &plan).first_placement(0, moe, 16).slots_per_rank()
        };
        assert_eq!([slots(16), slots(8), slots(4)], [2, 2, 4]);
    }
}
