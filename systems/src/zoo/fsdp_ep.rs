//! Fully sharded data parallelism with expert parallelism, as PyTorch's own stack trains MoE models (torchtitan; a baseline of
//! LAER, ASPLOS'26).
//!
//! Weights, gradients and optimizer state are sharded over replicas (ZeRO 3): dense state over all ranks, experts over the ranks
//! that hold the same ones. A block's weights are gathered while the block before it runs, in every pass, and gradients are
//! reduced behind the backward pass ([`crate::iteration`] states the rule). Experts stay, spread over as many ranks of the fast
//! domain as they divide among, and are one grouped product. No pipeline, no tensor parallelism; micro-batch and recomputation
//! are what a tuning run under even routing finds.
//!
//! `fsdp-ep-queued` is the stack that LAER's authors measured beside theirs: its gathers and reductions are in line with the exchanges of rows, which wait for
//! them. Published runs of other stacks (Megatron-FSDP on H100s, `moebench validate published`) do without.

use crate::plan::search;
use crate::program::LayerProgram;
use crate::{
    About, Candidate, CostModel, Job, Overlap, Placement, Plan, Policy, Recompute, RoutingCounts, System, Zero,
};

/// FSDP and expert parallelism.
pub struct FsdpEp {
    about: About,
    queued: bool,
}

/// With transfers of state out of the exchanges' way.
pub static FSDP_EP: FsdpEp = FsdpEp {
    about: About {
        name: "fsdp-ep",
        title: "FSDP+EP",
        summary: "Static experts in the fast domain, all state sharded over replicas and gathered ahead of each block (ZeRO 3, PyTorch's FSDP)",
    },
    queued: false,
};

/// With transfers of state in line with exchanges.
pub static QUEUED: FsdpEp = FsdpEp {
    about: About {
        name: "fsdp-ep-queued",
        title: "FSDP+EP (queued)",
        summary: "FSDP+EP whose gathers and reductions are in line with the exchanges of rows (a baseline of LAER, ASPLOS'26)",
    },
    queued: true,
};

impl System for FsdpEp {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let (dp, ep) = (job.gpus, search::experts_in_domain(job, job.gpus));
        let zero = if dp > 1 { Zero::Weights } else { Zero::Off };
        let shape = Plan { dp, ep, expert_dp: dp / ep, zero, ..Plan::default() };
        let of_size = |micro_batch| Recompute::ALL.map(|recompute| Plan { micro_batch, recompute, ..shape });
        let plans = search::micro_batches(job, dp).into_iter().flat_map(of_size);
        search::tuned(self, job, costs, plans.filter(|plan| plan.check(job).is_ok()).collect())
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Grouped { queued: self.queued })
    }
}

struct Grouped {
    queued: bool,
}

impl Policy for Grouped {
    fn overlap(&self) -> Overlap {
        Overlap { queued: self.queued, ..Overlap::default() }
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::grouped()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::search::PerformanceModel;
    use crate::program::Rows;
    use workloads::trace::{Routing, RoutingSpec, SynthSpec};
    use workloads::{Cluster, Gate, Model};

    /// Four blocks of eight experts on GPUs with a part of the memory that a plan of micro-batches of one sample needs.
    fn job(gpus: usize, memory: f64) -> Job {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let trace = SynthSpec { layers: 4, experts: 8, samples: 1, ..SynthSpec::default() }.generate().unwrap();
        let entries_per_chunk = (model.blocks[0].moe().unwrap().tokens * model.top_k) as u32;
        let (layers, experts, chunks) = (4, 8, 64);
        let spec = RoutingSpec { layers, experts, chunks, entries_per_chunk, top_k: 2, start: 1, stride: 1, seed: 0 };
        let mut cluster = Cluster::named("test", "inky").unwrap();
        cluster.gpu.memory.value = cluster.gpu.memory_reserved.value + memory;
        Job::new(model, cluster, gpus, Gate::NoDrop, 64)
            .with_profile(vec![Routing::new(&trace, spec).unwrap().iteration(0)])
    }

    /// Every micro-batch and recomputation, each evaluated: the one that takes least of those that fit, at every size the one that
    /// computes least again.
    #[test]
    fn the_plan_is_the_best_of_all() {
        let mut seen = std::collections::BTreeSet::new();
        for gpus in [1, 4, 8, 16, 32] {
            for memory in [30e9, 3e9, 1.5e9, 1e9, 0.7e9, 0.1e9] {
                let job = job(gpus, memory);
                let costs = CostModel::new(&job.cluster, gpus);
                // Eight GPUs are a node, and eight experts a layer.
                let ep = gpus.min(8);
                let zero = if gpus > 1 { Zero::Weights } else { Zero::Off };
                let even = job.uniform_profile();
                let step = |plan: &Plan, profile| {
                    let performance = PerformanceModel { job: &job, costs: &costs, profile };
                    let estimate = performance.estimate(plan, &Grouped { queued: false }, &plan.experts_in_order(&job));
                    estimate.ok().map(|estimate| estimate.step)
                };
                let mut best: Option<(workloads::Seconds, Plan)> = None;
                for micro_batch in [1, 2, 4, 8, 16, 32, 64].into_iter().filter(|m| m * gpus <= 64) {
                    let plans = Recompute::ALL.map(|recompute| Plan {
                        dp: gpus,
                        ep,
                        expert_dp: gpus / ep,
                        zero,
                        micro_batch,
                        recompute,
                        ..Plan::default()
                    });
                    // The least recomputation that fits under even routing; whether the profile's fits decides afterwards.
                    let fits = plans.iter().find_map(|plan| Some((step(plan, &even)?, *plan)));
                    let usable = fits.filter(|(_, plan)| step(plan, &job.profile).is_some());
                    best = [best, usable].into_iter().flatten().min_by(|a, b| a.0.0.total_cmp(&b.0.0));
                }
                let plan = FSDP_EP.plan(&job, &costs).ok();
                assert_eq!(plan, best.map(|(_, plan)| plan), "{gpus} GPUs of {memory} B");
                seen.insert(plan.map(|plan| (plan.micro_batch, plan.recompute)));
            }
        }
        assert!(seen.len() > 4 && seen.contains(&None), "{seen:?}");
    }

    /// Experts stay in order, as many on every rank, and every entry goes to the one rank of its expert.
    #[test]
    fn entries_go_to_static_experts() {
        let policy = Grouped { queued: false };
        let placement = policy.first_placement(0, &workloads::model::Moe::plain(1, 1, 1, 6), 3);
        let counts = RoutingCounts::new(6, (0..18).collect());
        let program = policy.program(0, &counts, &placement);
        let rows = Rows::new(&program, &counts, &placement);
        for (source, expert) in (0..3).flat_map(|source| (0..6).map(move |expert| (source, expert))) {
            assert_eq!(rows.sent(source, expert / 2, expert % 2), (6 * source + expert) as u32);
        }
        assert!(!policy.placement_due(1) && !placement.has_copies() && program.copies.is_empty());
    }
}
