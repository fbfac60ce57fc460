//! Expert parallelism only, as FastMoE runs it: every rank is a data-parallel replica and owns an equal part of the
//! experts; nothing is placed, cut or shadowed. The baseline of speedups.

use crate::plan::Plan;
use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::plan::search::{self, Candidate};
use crate::price::cost::CostModel;
use crate::program::LayerProgram;
use crate::program::routing::RoutingCounts;
use crate::{Card, Policy, System};

/// Expert parallelism over the whole world.
pub struct ExpertOnly;

impl System for ExpertOnly {
    fn card(&self) -> Card {
        Card {
            name: "expert-only",
            title: "Expert-only",
            about: "Expert parallelism over all ranks, experts in order, one exchange each way (FastMoE, He et al. 2021)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        candidates(self, job, costs)
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Plain)
    }
}

/// One dispatch, the local experts, one combine.
pub struct Plain;

impl Policy for Plain {
    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::expert_parallel()
    }
}

/// The plans of expert parallelism alone, largest micro-batch first: no pipeline, no tensor parallelism, and as many ranks
/// per set of experts as divide both. Whether they fit is asked of the system's own policy.
pub fn candidates(system: &dyn System, job: &Job, costs: &CostModel) -> Vec<Candidate> {
    let experts = job.model.blocks.iter().filter_map(|block| block.moe());
    let fewest = experts.map(|moe| moe.experts).min().unwrap_or(1);
    let ep = (1..=fewest).rev().find(|ep| fewest.is_multiple_of(*ep) && job.gpus.is_multiple_of(*ep)).unwrap_or(1);
    let mut sizes = search::micro_batches(job, job.gpus);
    sizes.reverse();
    let plans = sizes.into_iter().map(|micro_batch| Plan {
        pp: 1,
        dp: job.gpus,
        tp: 1,
        ep,
        expert_dp: job.gpus / ep,
        micro_batch,
        placement_every: 0,
    });
    let place = |layer| Placement::identity(experts_of(job, layer), ep);
    plans
        .map(|plan| {
            let policy = system.policy(job, &plan);
            let outcome = search::estimate(job, &plan, costs, policy.as_ref(), &job.profile, &place);
            Candidate { plan, outcome }
        })
        .collect()
}

/// Number of experts of an MoE layer.
pub fn experts_of(job: &Job, layer: usize) -> usize {
    let block = job.model.moe_blocks()[layer];
    job.model.blocks[block].moe().map_or(0, |moe| moe.experts)
}
