//! Megatron-Core's MoE (Liu et al., arXiv 2504.14960; Yan et al., arXiv 2603.07685), what people compare with.
//!
//! *Parallel folding*: experts are spread over a stage's `tp * dp` ranks whatever attention's tensor parallelism is, inside the
//! fast domain. Each rank runs its experts as one grouped product; optimizer state is sharded (the distributed optimizer, ZeRO
//! 1), and reducing gradients and gathering weights overlap with passes; stages are interleaved.
//!
//! The plan follows the public guidelines (Megatron-LM, `moe/README.md`), which know nothing of the routing: (1) as little model
//! parallelism as memory allows; (2) `ep` and `tp` inside the fast domain, `ep` as large as it takes; (3) pipeline stages before
//! tensor parallelism, interleaved; (4) selective recomputation before more model parallelism, full recomputation only where
//! none suffices. Micro-batch, virtual stages and recomputation are what a tuning run under even routing finds; memory is that
//! of the real one, which shows when a run starts.
//!
//! `megatron-overlap` also runs the exchanges of one micro-batch beside the computation of another. `megatron-deepep` and
//! `megatron-deepep-overlap` exchange by the flexible dispatcher's libraries (DeepEP, HybridEP), which send a token to another node
//! once. Left out: context parallelism, tensor-parallel experts, fp8, captured graphs.

use crate::plan::search;
use crate::program::{Exchange, LayerProgram};
use crate::{
    About, Candidate, CostModel, Job, Overlap, Placement, Plan, Policy, Recompute, RoutingCounts, System, Zero,
};

/// Megatron-Core, with or without overlapped exchanges.
pub struct Megatron {
    about: About,
    overlaps_exchanges: bool,
    once_per_node: bool,
}

/// With what is on by default.
pub static MEGATRON: Megatron = Megatron {
    about: About {
        name: "megatron",
        title: "Megatron-Core",
        summary: "Folded expert parallelism in the fast domain, grouped products, ZeRO 1, interleaved stages, the plan of its guidelines (Megatron-Core, Liu et al. 2025)",
    },
    overlaps_exchanges: false,
    once_per_node: false,
};

/// With exchanges beside the other micro-batch's computation.
pub static OVERLAPPED: Megatron = Megatron {
    about: About {
        name: "megatron-overlap",
        title: "Megatron-Core (overlap)",
        summary: "Megatron-Core whose 1F1B runs the exchanges of one micro-batch beside the computation of another",
    },
    overlaps_exchanges: true,
    once_per_node: false,
};

/// With exchanges that send a token to another node once.
pub static DEEPEP: Megatron = Megatron {
    about: About {
        name: "megatron-deepep",
        title: "Megatron-Core (DeepEP)",
        summary: "Megatron-Core whose exchanges send a token to another node once (DeepEP, HybridEP)",
    },
    overlaps_exchanges: false,
    once_per_node: true,
};

/// With both.
pub static DEEPEP_OVERLAPPED: Megatron = Megatron {
    about: About {
        name: "megatron-deepep-overlap",
        title: "Megatron-Core (DeepEP, overlap)",
        summary: "Megatron-Core with exchanges that send a token to another node once, beside the computation of another micro-batch",
    },
    overlaps_exchanges: true,
    once_per_node: true,
};

impl System for Megatron {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        let mut rejected = Vec::new();
        for recomputes in [&[Recompute::None, Recompute::Selective][..], &[Recompute::Full]] {
            for (pp, tp) in model_parallelism(job) {
                let candidates = search::tuned(self, job, costs, plans(job, pp, tp, recomputes));
                if candidates.iter().any(|candidate| candidate.outcome.is_ok()) {
                    return candidates.into_iter().chain(rejected).collect();
                }
                rejected.extend(candidates);
            }
        }
        rejected
    }

    fn policy(&self, job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        let exchange = match self.once_per_node {
            true => Exchange::OncePerNode { top_k: job.top_k() as u32 },
            false => Exchange::Whole,
        };
        Box::new(Grouped {
            overlap: Overlap { state: true, exchanges: self.overlaps_exchanges, ..Overlap::default() },
            exchange,
        })
    }
}

/// Pipeline and tensor parallelism, least first, and of equal products most stages first.
fn model_parallelism(job: &Job) -> Vec<(usize, usize)> {
    let of_pp =
        |pp| search::divisors(job.gpus / pp).filter(|&tp| tp <= job.cluster.gpus_per_node).map(move |tp| (pp, tp));
    let mut all: Vec<_> = search::divisors(job.gpus).flat_map(of_pp).collect();
    all.sort_by_key(|&(pp, tp)| (pp * tp, tp));
    all
}

/// The plans with that model parallelism: each micro-batch, even number of virtual stages and one of `recomputes`.
fn plans(job: &Job, pp: usize, tp: usize, recomputes: &[Recompute]) -> Vec<Plan> {
    let dp = job.gpus / pp / tp;
    let ep = search::experts_in_domain(job, dp * tp);
    let zero = if dp > 1 { Zero::Optimizer } else { Zero::Off };
    let shape = Plan { pp, dp, tp, ep, expert_dp: dp * tp / ep, zero, ..Plan::default() };
    let mut plans = Vec::new();
    for micro_batch in search::micro_batches(job, dp) {
        for vp in search::virtual_stages(job, pp) {
            for &recompute in recomputes {
                plans.push(Plan { micro_batch, vp, recompute, ..shape });
            }
        }
    }
    plans.retain(|plan| plan.check(job).is_ok());
    plans
}

struct Grouped {
    overlap: Overlap,
    exchange: Exchange,
}

impl Policy for Grouped {
    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram { exchange: self.exchange, ..LayerProgram::grouped() }
    }

    fn overlap(&self) -> Overlap {
        self.overlap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::routing::JobRouting;
    use crate::plan::search::PerformanceModel;
    use workloads::suite::TraceUse;
    use workloads::trace::SynthSpec;
    use workloads::{Cluster, Gate, Model};

    fn job(model: &str, cluster: &str, gpus: usize, global_batch: usize) -> Job {
        let model = Model::named("test", model).unwrap();
        let job = Job::new(model, Cluster::named("test", cluster).unwrap(), gpus, Gate::NoDrop, global_batch);
        let trace = SynthSpec { samples: 2, ..SynthSpec::default() }.generate().unwrap();
        let profile = vec![JobRouting::new(&job, TraceUse::default(), &trace, 1).unwrap().iteration(0)];
        job.with_profile(profile)
    }

    #[test]
    fn a_model_that_fits_is_not_cut() {
        let job = job("gpt-tiny", "inky", 16, 32);
        let plan = MEGATRON.plan(&job, &CostModel::new(&job.cluster, 16)).unwrap();
        assert_eq!((plan.pp, plan.tp, plan.dp, plan.ep, plan.expert_dp), (1, 1, 16, 8, 2));
        assert_eq!((plan.zero, plan.recompute), (Zero::Optimizer, Recompute::None));
    }

    /// Model parallelism grows until memory suffices, and stages go first.
    #[test]
    fn a_large_model_gets_stages() {
        assert_eq!(model_parallelism(&job("gpt-tiny", "inky", 16, 32))[..4], [(1, 1), (2, 1), (1, 2), (4, 1)]);
        let mut job = job("gpt-l16-h2560-e16", "inky", 16, 64);
        let mut planned = |memory: f64| {
            job.cluster.gpu.memory.value = memory;
            MEGATRON.plan(&job, &CostModel::new(&job.cluster, 16))
        };
        let whole = |plan: &Plan| (plan.pp, plan.tp) == (1, 1);
        let mut plans = (0..40).map(|step| planned(80e9 * 0.93f64.powi(step)));
        let cut = plans.find(|plan| !plan.as_ref().is_ok_and(whole)).unwrap().unwrap();
        assert!(cut.pp > 1 && cut.recompute != Recompute::Full, "{cut}: stages before full recomputation");
        assert!(planned(8e9).is_err());
    }

    #[test]
    fn overlapped_exchanges_are_never_slower_and_hold_more() {
        let job = job("gpt-l8-h2048-e32", "inky", 16, 64);
        let costs = CostModel::new(&job.cluster, 16);
        let plan = Plan { micro_batch: 1, ..MEGATRON.plan(&job, &costs).unwrap() };
        let under = |system: &Megatron| {
            let performance = PerformanceModel { job: &job, costs: &costs, profile: &job.profile };
            performance.estimate(&plan, system.policy(&job, &plan).as_ref(), &plan.experts_in_order(&job)).unwrap()
        };
        let (plain, overlapped) = (under(&MEGATRON), under(&OVERLAPPED));
        assert!(overlapped.step < plain.step);
        assert!(overlapped.peak.bytes >= plain.peak.bytes);
    }
}
