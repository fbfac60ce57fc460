//! The plan that Alpa (Zheng et al., OSDI'22) gives MoE models, as SmartMoE's artifact ran it: inside SmartMoE's own stack.
//!
//! Routing data play no part in it: a pipeline stage per node, and inside the node every GPU is a data-parallel replica
//! and holds an equal part of the experts. What Alpa's compiler does besides is left out.

use crate::plan::search::{self, PerformanceModel};
use crate::{About, Candidate, CostModel, Job, Plain, Plan, Policy, System};

/// Alpa's plan.
pub struct Alpa;

impl System for Alpa {
    fn about(&self) -> About {
        About {
            name: "alpa",
            title: "Alpa (plan)",
            summary: "A pipeline stage per node, expert parallelism inside it, whatever the routing: the plan of Alpa (Zheng et al., OSDI'22) in SmartMoE's stack",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let performance = PerformanceModel { job, costs, profile: &job.uniform_profile() };
        plans(job)
            .map(|plan| Candidate { plan, outcome: performance.estimate(&plan, &Plain, &plan.experts_in_order(job)) })
            .collect()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Plain)
    }
}

/// One plan per micro-batch, the largest first.
fn plans(job: &Job) -> impl Iterator<Item = Plan> {
    let dp = job.gpus.min(job.cluster.gpus_per_node);
    let mut sizes = search::micro_batches(job, dp);
    sizes.reverse();
    let pp = job.gpus / dp;
    sizes.into_iter().map(move |micro_batch| Plan { pp, dp, ep: dp, micro_batch, ..Plan::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::{Cluster, Gate, Model};

    /// The plans in the artifact's logs.
    #[test]
    fn a_stage_per_node() {
        let check = |model, gpus, pp, global_batch| {
            let (model, cluster) = (Model::named("test", model).unwrap(), Cluster::named("test", "inky").unwrap());
            let job = Job::new(model, cluster, gpus, Gate::NoDrop, global_batch).with_micro_batch(4);
            let plan = plans(&job).next().unwrap();
            assert_eq!((plan.pp, plan.dp, plan.ep, plan.expert_dp), (pp, 8, 8, 1));
            plan.check(&job).unwrap();
        };
        check("gpt-l16-h2560-e16", 16, 2, 256);
        check("gpt-l16-h2560-e32", 32, 4, 512);
    }
}
