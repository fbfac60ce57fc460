//! Expert parallelism only, as FastMoE (He et al. 2021) runs it: every rank is a data-parallel replica and owns an equal part
//! of the experts; nothing is placed, cut or shadowed. The baseline of speedups.

use crate::plan::search;
use crate::{About, Candidate, CostModel, Job, Plain, Plan, Policy, System};

/// Expert parallelism over the whole world.
pub struct ExpertOnly;

impl System for ExpertOnly {
    fn about(&self) -> About {
        About {
            name: "expert-only",
            title: "Expert-only",
            summary: "Expert parallelism over all ranks, experts in order, one exchange each way (FastMoE, He et al. 2021)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Plain)
    }
}
