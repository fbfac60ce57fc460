//! DeepSpeed-MoE (Rajbhandari et al., ICML'22), as its public code trains: GShard's dense formulation.
//!
//! Every (source rank, expert) pair carries `C` rows whatever the routing, so an expert computes `ep * C` rows and the
//! exchange is an equal all-to-all. With a capacity factor `f`, `C = max(4, ceil(S k f / E))` for `S` tokens a rank, `k`
//! choices and `E` experts; without dropping, `C` is the largest count of any pair of the group, agreed on in every layer.
//! Entries are laid out and combined by products with an `[S, E, C]` tensor in single precision: the arithmetic of a
//! skewed no-drop gate grows with `C`, and so does its memory.
//!
//! ZeRO stage 0: optimizer state is not sharded. No pipeline, no placement.

use crate::plan::search;
use crate::program::{Exchange, Layout};
use crate::{
    About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, Recompute, RoutingCounts, System,
};

/// DeepSpeed-MoE, with or without recomputation.
pub struct DeepSpeed {
    about: About,
    recompute: bool,
}

/// On the model that the other systems train.
pub static DEEPSPEED: DeepSpeed = DeepSpeed {
    about: About {
        name: "deepspeed",
        title: "DeepSpeed-MoE",
        summary: "Rows padded to the capacity, laid out by one-hot products (DeepSpeed-MoE, Rajbhandari et al., ICML'22)",
    },
    recompute: false,
};

/// As SmartMoE's artifact ran it. That activations were recomputed is inferred from its times.
pub static ARTIFACT: DeepSpeed = DeepSpeed {
    about: About {
        name: "deepspeed-artifact",
        title: "DeepSpeed-MoE (as published)",
        summary: "DeepSpeed-MoE with recomputed activations (inferred), as SmartMoE's artifact ran it: on another model, which the case states",
    },
    recompute: true,
};

impl System for DeepSpeed {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
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
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 8, gate, 16)
            .with_micro_batch(1)
            .with_profile(vec![Routing::new(&trace, spec).unwrap().iteration(0)]);
        system.candidates(&job, &CostModel::new(&job.cluster, job.gpus)).remove(0).outcome.unwrap()
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
