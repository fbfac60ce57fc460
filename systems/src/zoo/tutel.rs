//! Tutel (Hwang et al., MLSys'23): padded expert parallelism that adapts how it is done to the layer.
//!
//! Every (source rank, expert) pair carries `C` rows: `C = k floor(f ceil(S / E))` with a capacity factor `f`, the largest
//! count of any pair of the group (Tutel's `f = 0`) without dropping. Rows are gathered and scattered by index.
//! For each layer and micro-batch the fastest of three programs by the cost model is run: *adaptive parallelism* `r = 1`
//! (rows go to experts), by a linear or a 2-D hierarchical all-to-all, or `r = 0` (experts come to rows: all ranks get all
//! weights, gradients are summed at the owner). The choice needs `C` alone, since every rank computes `E C` rows anyhow.
//!
//! Left out: `r = W / E` (tensor-parallel experts), which needs fewer experts than ranks in a group, and adaptive
//! pipelining. Weights are brought by broadcasts, the layer program's op, where Tutel gathers them at once.

use workloads::Seconds;
use workloads::model::Moe;

use crate::plan::search;
use crate::price::Setting;
use crate::price::network::Group;
use crate::program::split::Split;
use crate::program::{Exchange, Layout, Op, Pass, Products};
use crate::{About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, RoutingCounts, System};

/// Tutel.
pub struct Tutel;

impl System for Tutel {
    fn about(&self) -> About {
        About {
            name: "tutel",
            title: "Tutel",
            summary: "Rows padded to the capacity; per layer, the faster of moving rows (linear or hierarchical) and moving weights (Hwang et al., MLSys'23)",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let costs = CostModel::new(&job.cluster, job.gpus);
        let place = costs.group(plan.expert_group(0, 0), 1);
        let factor = job.gate.capacity_factor();
        let layer = |moe: &Moe| {
            let tokens = plan.tokens(moe);
            Layer { moe: *moe, tokens, capacity: factor.map(|f| capacity(f, tokens, job.top_k(), moe.experts)) }
        };
        let layers = job.model.moe_layers().map(layer).collect();
        Box::new(Adaptive { costs, place, layers })
    }
}

/// `C = k floor(f ceil(S / E))`. No expert gets a token twice, so that more than `S` rows are never laid out.
fn capacity(factor: f64, tokens: usize, top_k: usize, experts: usize) -> u32 {
    let rows = ((factor * tokens.div_ceil(experts) as f64) as usize).saturating_mul(top_k);
    rows.min(tokens).try_into().unwrap_or(u32::MAX)
}

struct Adaptive {
    costs: CostModel,
    place: Group,
    /// `[moe layer]`.
    layers: Vec<Layer>,
}

struct Layer {
    moe: Moe,
    tokens: usize,
    /// None without dropping.
    capacity: Option<u32>,
}

impl Policy for Adaptive {
    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let layer = &self.layers[layer];
        // Where gate and Tutel round the same limit differently, what the gate let through is kept.
        let layout = Layout::Padded { rows: layer.capacity.unwrap_or(0).max(counts.largest()) };
        let agree = layer.capacity.is_none();
        let mut best = LayerProgram::padded(layout, Exchange::Whole, agree);
        let mut least = self.predict(&best, layer, counts, placement);
        let others = [LayerProgram::padded(layout, Exchange::Hierarchical, agree), weights_move(layout, agree, counts)];
        for other in others {
            let time = self.predict(&other, layer, counts, placement);
            if time < least {
                (best, least) = (other, time);
            }
        }
        best
    }
}

impl Adaptive {
    /// Forward and backward, one op after the other.
    fn predict(&self, program: &LayerProgram, layer: &Layer, counts: &RoutingCounts, placement: &Placement) -> Seconds {
        let setting = Setting { moe: &layer.moe, tokens: layer.tokens, place: &self.place, costs: &self.costs };
        let priced = setting.price(program, counts, placement);
        let slowest = |ranks: &[Seconds]| ranks.iter().copied().fold(Seconds::ZERO, Seconds::max);
        let pass = |durations: &[Seconds]| durations.chunks_exact(counts.ranks()).map(slowest).sum::<Seconds>();
        pass(&priced.forward) + pass(&priced.backward)
    }
}

/// `r = 0`: every rank gets every expert and computes its own rows.
fn weights_move(layout: Layout, agree: bool, counts: &RoutingCounts) -> LayerProgram {
    let experts: Vec<usize> = (0..counts.experts()).collect();
    let mut forward = Pass::default();
    forward.gate(agree);
    let there: Vec<usize> = experts.iter().map(|&expert| forward.start(Op::Broadcast { expert })).collect();
    for (&expert, &there) in experts.iter().zip(&there) {
        forward.then(Op::Shadow { expert }, there);
    }
    let mut backward = Pass::default();
    for &expert in &experts {
        let shadow = backward.start(Op::Shadow { expert });
        backward.then(Op::ReduceGrad { expert }, shadow);
    }
    backward.start(Op::Gate);
    LayerProgram {
        steps: 1,
        shadowed: experts,
        copies: Vec::new(),
        split: Split::Even,
        layout,
        exchange: Exchange::Whole,
        products: Products::PerExpert,
        forward: forward.finish(),
        backward: backward.finish(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::Cluster;

    #[test]
    fn capacity_is_the_formula() {
        assert_eq!(capacity(1.2, 4096, 2, 16), 614);
        assert_eq!(capacity(4.8, 576, 2, 32), 2 * 86);
        assert_eq!(capacity(1e30, 576, 2, 32), 576);
    }

    /// The program for one expert a rank of inky and `rows` entries of every rank at every expert.
    fn chosen(ranks: usize, inner: usize, rows: u32) -> LayerProgram {
        let cluster = Cluster::named("test", "inky").unwrap();
        let costs = CostModel::new(&cluster, ranks);
        let moe = Moe::plain(1024, 1024, inner, ranks);
        let place = costs.group(0..ranks, 1);
        let layers = vec![Layer { moe, tokens: 1024, capacity: None }];
        let counts = RoutingCounts::new(ranks, vec![rows; ranks * ranks]);
        Adaptive { costs, place, layers }.program(0, &counts, &Placement::identity(ranks, ranks))
    }

    #[test]
    fn rows_move_to_large_experts_and_small_experts_to_many_rows() {
        assert!(chosen(8, 4096, 64).shadowed.is_empty());
        assert_eq!(chosen(8, 16, 65536).shadowed.len(), 8);
    }

    #[test]
    fn few_rows_across_nodes_go_in_two_calls() {
        assert_eq!(chosen(32, 4096, 8).exchange, Exchange::Hierarchical);
        assert_eq!(chosen(8, 4096, 64).exchange, Exchange::Whole);
    }
}
