//! DeepSpeed-MoE (Rajbhandari et al., ICML'22), as its public code trains: GShard's dense formulation.
//!
//! Every (source rank, expert) pair carries `C` rows whatever the routing, so an expert computes `ep * C` rows and the
//! exchange is an equal all-to-all. With a capacity factor `f`, `C = max(4, ceil(S k f / E))` for `S` tokens a rank, `k`
//! choices and `E` experts; without dropping, `C` is the largest count of any pair of the group, agreed on in every layer.
//! Entries are laid out and combined by products with an `[S, E, C]` tensor in single precision: the arithmetic of a
//! skewed no-drop gate grows with `C`, and so does its memory.
//!
//! Optimizer state and gradients are sharded (ZeRO stages 1 and 2) where a rank's memory asks for it; as the artifact ran it, never.
//! No pipeline, no placement.

use crate::plan::search;
use crate::program::{Exchange, Layout};
use crate::{
    About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, Recompute, RoutingCounts, System, Zero,
};

/// DeepSpeed-MoE, with or without recomputation.
pub struct DeepSpeed {
    about: About,
    recompute: bool,
    /// Stages of ZeRO that may be used, the first that fits first.
    stages: &'static [Zero],
}

/// On the model that the other systems train.
pub static DEEPSPEED: DeepSpeed = DeepSpeed {
    about: About {
        name: "deepspeed",
        title: "DeepSpeed-MoE",
        summary: "Rows padded to the capacity, laid out by one-hot products (DeepSpeed-MoE, Rajbhandari et al., ICML'22)",
    },
    recompute: false,
    stages: &[Zero::Off, Zero::Optimizer, Zero::Gradients],
};

/// As SmartMoE's artifact ran it. That activations were recomputed is inferred from its times.
pub static ARTIFACT: DeepSpeed = DeepSpeed {
    about: About {
        name: "deepspeed-artifact",
        title: "DeepSpeed-MoE (as published)",
        summary: "DeepSpeed-MoE with recomputed activations (inferred), as SmartMoE's artifact ran it: on another model, which the case states",
    },
    recompute: true,
    stages: &[Zero::Off],
};

impl System for DeepSpeed {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel_with(self, job, costs, self.stages)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let moes = job.model.moe_layers();
        let capacity = |factor| moes.map(|moe| capacity(factor, plan.tokens(moe), job.top_k(), moe.experts)).collect();
        Box::new(Dense { capacities: job.gate.capacity_factor().map(capacity), recompute: self.recompute })
    }
}

/// `C = max(4, ceil(S k f / E))`. No expert gets a token twice, so that more than `S` rows are never laid out.
fn capacity(factor: f64, tokens: usize, top_k: usize, experts: usize) -> u32 {
    const LEAST: f64 = 4.0;
    let rows = ((tokens * top_k) as f64 / experts as f64 * factor).ceil();
    rows.min(tokens as f64).max(LEAST) as u32
}

struct Dense {
    /// `[moe layer]`, unless the gate drops nothing.
    capacities: Option<Vec<u32>>,
    recompute: bool,
}

impl Policy for Dense {
    fn program(&self, layer: usize, counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        // Where gate and DeepSpeed round the same limit differently, what the gate let through is kept.
        let rows = self.capacities.as_ref().map_or(0, |of| of[layer]).max(counts.largest());
        LayerProgram::padded(Layout::OneHot { rows }, Exchange::Whole, self.capacities.is_none())
    }

    fn recompute(&self, plan: &Plan) -> Recompute {
        if self.recompute { Recompute::Full } else { plan.recompute }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Estimate;
    use workloads::trace::{Routing, RoutingSpec, SynthSpec};
    use workloads::{Cluster, Gate, Model};

    #[test]
    fn capacity_is_the_formula() {
        assert_eq!(capacity(1.2, 4096, 2, 16), 615);
        assert_eq!(capacity(1.2, 2048, 1, 32), 77);
        assert_eq!(capacity(1.0, 8, 1, 64), 4);
        assert_eq!(capacity(1e30, 2048, 1, 32), 2048);
    }

    #[test]
    fn dropped_entries_leave_their_padding() {
        let policy = Dense { capacities: Some(vec![10]), recompute: false };
        let placement = Placement::identity(2, 2);
        let program = policy.program(0, &RoutingCounts::new(2, vec![1, 0, 3, 2]), &placement);
        assert_eq!(program.layout, Layout::OneHot { rows: 10 });
    }

    fn estimated(system: &DeepSpeed, gate: Gate) -> Estimate {
        let job = job(gate);
        system.candidates(&job, &CostModel::new(&job.cluster, job.gpus)).remove(0).outcome.unwrap()
    }

    fn job(gate: Gate) -> Job {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let trace = SynthSpec { layers: 4, experts: 8, samples: 1, ..SynthSpec::default() }.generate().unwrap();
        let moe = *model.blocks[0].moe().unwrap();
        let entries_per_chunk = (moe.tokens * model.top_k) as u32;
        let spec = RoutingSpec {
            layers: 4,
            experts: 8,
            chunks: 16,
            entries_per_chunk,
            top_k: 2,
            start: 1,
            stride: 1,
            seed: 0,
        };
        Job::new(model, Cluster::named("test", "inky").unwrap(), 8, gate, 16)
            .with_micro_batch(1)
            .with_profile(vec![Routing::new(&trace, spec).unwrap().iteration(0)])
    }

    /// Between what optimizer state takes whole and sharded over the gate's replicas lies a GPU that needs stage 1.
    #[test]
    fn state_is_sharded_where_memory_asks_for_it() {
        let mut job = job(Gate::Capacity { factor: 1.2 });
        let peaks = |job: &Job| -> Vec<(Zero, f64)> {
            let all = DEEPSPEED.candidates(job, &CostModel::new(&job.cluster, job.gpus));
            all.into_iter().map(|of| (of.plan.zero, of.outcome.unwrap().peak.bytes.0)).collect()
        };
        let peaks = peaks(&job);
        assert_eq!(peaks.iter().map(|of| of.0).collect::<Vec<_>>(), DEEPSPEED.stages);
        assert!(peaks[1].1 < peaks[0].1);
        job.cluster.gpu.memory_reserved.value = 0.0;
        for (memory, zero) in [(peaks[0].1, Zero::Off), ((peaks[0].1 + peaks[1].1) / 2.0, Zero::Optimizer)] {
            job.cluster.gpu.memory.value = memory;
            assert_eq!(DEEPSPEED.plan(&job, &CostModel::new(&job.cluster, job.gpus)).unwrap().zero, zero);
        }
    }

    #[test]
    fn recomputation_saves_memory_and_costs_time() {
        let gate = Gate::Capacity { factor: 1.2 };
        let (kept, recomputed) = (estimated(&DEEPSPEED, gate), estimated(&ARTIFACT, gate));
        assert!(recomputed.step > kept.step);
        assert!(recomputed.peak.bytes < kept.peak.bytes);
    }

    #[test]
    fn a_larger_capacity_costs_time_and_memory() {
        let [small, large] = [1.2, 4.8].map(|factor| estimated(&DEEPSPEED, Gate::Capacity { factor }));
        assert!(large.step > small.step && large.peak.bytes > small.peak.bytes);
    }

    #[test]
    fn without_dropping_the_fullest_pair_sets_every_row() {
        let policy = Dense { capacities: None, recompute: false };
        let placement = Placement::identity(2, 2);
        let program = policy.program(0, &RoutingCounts::new(2, vec![1, 0, 30, 2]), &placement);
        assert_eq!(program.layout, Layout::OneHot { rows: 30 });
    }
}
