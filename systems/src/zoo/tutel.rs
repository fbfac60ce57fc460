//! Tutel (Hwang et al., MLSys'23): padded expert parallelism that adapts how it is done to the layer.
//!
//! Every (source rank, expert) pair carries `C` rows: `C = k floor(f ceil(S / E))` with a capacity factor `f`, the largest
//! count of any pair of the group (Tutel's `f = 0`) without dropping. Rows are gathered and scattered by index.
//! For each layer and micro-batch the fastest of these programs by the cost model is run. *Adaptive parallelism*: `r = 1` (rows go to
//! experts), or `r = 0` (experts come to rows: all ranks get all weights, gradients are summed at the owner; in one collective, or
//! expert by expert, so that the first computes while others travel). *Adaptive pipelining*: with `r = 1`, a linear all-to-all in 1,
//! 2, 4 or 8 steps, or a 2-D hierarchical one. The choice needs `C` alone, since every rank computes `E C` rows anyhow.
//!
//! Steps are cut between groups of ranks, the layer program's way, where Tutel cuts the rows of every pair: the same overlap with fewer
//! messages. Left out: `r = W / E` (tensor-parallel experts), for fewer experts than ranks in a group, which no plan has here.

use workloads::Seconds;
use workloads::model::Moe;

use crate::plan::search;
use crate::price::Setting;
use crate::price::hosts::Hosts;
use crate::price::ledger::Ledger;
use crate::price::network::Group;
use crate::price::streams::{Links, Streams};
use crate::program::{Direction, Exchange, Layout, Op, Pass};
use crate::{About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, RoutingCounts, System};

/// Tutel.
pub struct Tutel;

impl System for Tutel {
    fn about(&self) -> About {
        About {
            name: "tutel",
            title: "Tutel",
            summary: "Rows padded to the capacity; per layer, the fastest of moving rows (pipelined or hierarchical) and moving weights (Hwang et al., MLSys'23)",
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

/// Steps that Tutel cuts an exchange into, where they divide the ranks.
const STEPS: [usize; 4] = [1, 2, 4, 8];

impl Policy for Adaptive {
    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let layer = &self.layers[layer];
        // Where gate and Tutel round the same limit differently, what the gate let through is kept.
        let layout = Layout::Padded { rows: layer.capacity.unwrap_or(0).max(counts.largest()) };
        let agree = layer.capacity.is_none();
        let steps = STEPS.into_iter().filter(|steps| counts.ranks().is_multiple_of(*steps));
        let linear = steps.map(|steps| LayerProgram::pipelined(steps, layout, Exchange::Whole, agree));
        let hierarchical = LayerProgram::padded(layout, Exchange::Hierarchical, agree);
        let moved = [true, false].map(|together| weights_move(layout, agree, counts, together));
        let all = linear.chain([hierarchical]).chain(moved);
        let timed = all.map(|program| (self.predict(&program, layer, counts, placement), program));
        let fastest = timed.reduce(|a, b| if b.0 < a.0 { b } else { a });
        fastest.expect("one step is always possible").1
    }
}

impl Adaptive {
    /// Forward and backward.
    fn predict(&self, program: &LayerProgram, layer: &Layer, counts: &RoutingCounts, placement: &Placement) -> Seconds {
        let setting = Setting { moe: &layer.moe, tokens: layer.tokens, place: &self.place, costs: &self.costs };
        let priced = setting.price(program, counts, placement);
        let mut clock = vec![Seconds::ZERO; counts.ranks()];
        let (mut streams, mut ledger) = (Streams::default(), Ledger::default());
        let (mut hosts, mut links) = (Hosts::default(), Links::default());
        for direction in [Direction::Forward, Direction::Backward] {
            let pass = priced.pass(program, direction);
            streams.run(&pass, &mut clock, &mut hosts, &mut links, &mut ledger, |_, _, _| ());
        }
        clock.into_iter().fold(Seconds::ZERO, Seconds::max)
    }
}

/// `r = 0`: every rank gets every expert and computes its own rows; all weights and all gradients `together`, or one expert's after
/// the other's.
fn weights_move(layout: Layout, agree: bool, counts: &RoutingCounts, together: bool) -> LayerProgram {
    let experts: Vec<usize> = (0..counts.experts()).collect();
    let mut forward = Pass::default();
    forward.gate(agree);
    let there: Vec<usize> = match together {
        true => vec![forward.start(Op::GatherShadows); experts.len()],
        false => experts.iter().map(|&expert| forward.start(Op::Broadcast { expert })).collect(),
    };
    for (&expert, &there) in experts.iter().zip(&there) {
        forward.then(Op::Shadow { expert }, there);
    }
    let mut backward = Pass::default();
    let mut last = 0;
    for &expert in &experts {
        last = backward.start(Op::Shadow { expert });
        if !together {
            backward.then(Op::ReduceGrad { expert }, last);
        }
    }
    if together {
        backward.then(Op::ScatterGrads, last);
    }
    backward.start(Op::Gate);
    let mut program = LayerProgram::padded(layout, Exchange::Whole, agree);
    program.shadowed = experts;
    (program.forward, program.backward) = (forward.finish(), backward.finish());
    program
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
        chosen_on(Cluster::named("test", "inky").unwrap(), ranks, inner, rows)
    }

    fn chosen_on(cluster: Cluster, ranks: usize, inner: usize, rows: u32) -> LayerProgram {
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
    fn exchanges_are_cut_where_start_ups_are_short() {
        let started = |start: f64| {
            let mut cluster = Cluster::named("test", "inky").unwrap();
            cluster.network.call_start.value = start;
            cluster.network.peer_start.value = 0.0;
            cluster.gpu.expert_start.value = 0.0;
            chosen_on(cluster, 16, 4096, 1024).steps
        };
        assert!(started(0.0) > 1);
        assert_eq!(started(1.0), 1);
    }

    /// Weights of small experts, where a call takes long to start: two calls instead of four, or of sixteen.
    #[test]
    fn weights_of_small_experts_come_at_once() {
        let mut cluster = Cluster::named("test", "inky").unwrap();
        cluster.network.call_start.value = 1e-2;
        let program = chosen_on(cluster, 8, 16, 8192);
        assert!(program.forward.iter().any(|task| task.op == Op::GatherShadows));
        assert!(program.backward.iter().any(|task| task.op == Op::ScatterGrads));
    }

    #[test]
    fn few_rows_across_nodes_go_in_two_calls() {
        assert_eq!(chosen(32, 4096, 8).exchange, Exchange::Hierarchical);
        assert_eq!(chosen(8, 4096, 64).exchange, Exchange::Whole);
    }
}
