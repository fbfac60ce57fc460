//! The plan that Alpa (Zheng et al., OSDI'22) gives MoE models, as SmartMoE's artifact ran it: inside SmartMoE's own stack.
//!
//! Routing data play no part in it: a pipeline stage per node, and inside the node every GPU is a data-parallel replica
//! and holds an equal part of the experts. Where blocks, experts or GPUs do not divide so, the nearest plan that they allow
//! stands in for it. What Alpa's compiler does besides is left out.

use std::cmp::Reverse;

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
        let rate = |&plan: &Plan| {
            let outcome = performance.estimate(&plan, &Plain, &plan.experts_in_order(job));
            Candidate { plan, outcome }
        };
        let plans = plans(job);
        let of_ep = plans.chunk_by(|a, b| a.ep == b.ep);
        of_ep.flat_map(|sizes| search::rank(sizes.iter().map(rate).collect())).collect()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Plain)
    }
}

/// The plans whose number of stages is nearest to that of nodes, by how near their expert parallelism is to a stage's ranks.
fn plans(job: &Job) -> Vec<Plan> {
    let nodes = job.gpus.div_ceil(job.cluster.gpus_per_node);
    let mut plans: Vec<Plan> = search::divisors(job.gpus).flat_map(|pp| of_stages(job, pp)).collect();
    let times_off = |a: usize, b: usize| a.max(b) * 1000 / a.min(b);
    plans.sort_by_key(|plan| (times_off(plan.pp, nodes), plan.pp, Reverse(plan.ep)));
    let nearest = plans.first().map(|plan| plan.pp);
    plans.retain(|plan| Some(plan.pp) == nearest);
    plans
}

/// The plans of `pp` stages without tensor parallelism that the job allows.
fn of_stages(job: &Job, pp: usize) -> Vec<Plan> {
    let dp = job.gpus / pp;
    let sizes = search::micro_batches(job, dp);
    let of_ep = |ep| {
        let plan = move |micro_batch| Plan { pp, dp, ep, expert_dp: dp / ep, micro_batch, ..Plan::default() };
        sizes.iter().copied().map(plan)
    };
    search::divisors(dp).flat_map(of_ep).filter(|plan| plan.check(job).is_ok()).collect()
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
            let plan = plans(&job)[0];
            assert_eq!((plan.pp, plan.dp, plan.ep, plan.expert_dp), (pp, 8, 8, 1));
            plan.check(&job).unwrap();
        };
        check("gpt-l16-h2560-e16", 16, 2, 256);
        check("gpt-l16-h2560-e32", 32, 4, 512);
    }

    /// A node and a half; three nodes that 16 blocks do not divide among; experts that a node's GPUs do not divide.
    #[test]
    fn where_degrees_do_not_fit_the_nearest_plan_stands_in() {
        let check = |gpus, experts, expected| {
            let mut model = Model::named("test", "gpt-l16-h2560-e16").unwrap();
            for block in &mut model.blocks {
                if let workloads::model::Ffn::Moe(moe) = &mut block.ffn {
                    moe.experts = experts;
                }
            }
            let cluster = Cluster::named("test", "inky").unwrap();
            let job = Job::new(model, cluster, gpus, Gate::NoDrop, 48 * 16).with_micro_batch(4);
            let plan = plans(&job)[0];
            plan.check(&job).unwrap();
            assert_eq!((plan.pp, plan.dp, plan.ep, plan.expert_dp), expected, "{gpus} GPUs, {experts} experts");
        };
        check(12, 16, (2, 6, 2, 3));
        check(12, 12, (2, 6, 6, 1));
        check(24, 16, (3, 8, 8, 1));
        check(16, 12, (2, 8, 4, 2));
    }
}
