//! Tutel (Hwang et al., MLSys'23): padded expert parallelism that adapts how it is done to the layer.
//!
//! Every (source rank, expert) pair carries `C` rows: `C = k floor(f ceil(S / E))` with a capacity factor `f`, the largest
//! count of any pair of the group (Tutel's `f = 0`) without dropping. Rows are gathered and scattered by index.
//! For each layer and micro-batch the fastest of these programs by the cost model is run. *Adaptive parallelism*: `r = 1` (rows go to
//! experts), or `r = 0` (experts come to rows: all ranks get all weights, gradients are summed at the owner; in one collective, or
//! expert by expert, so that the first computes while others travel). *Adaptive pipelining*: unless `r = 0`, a linear all-to-all in 1,
//! 2, 4 or 8 steps, or a 2-D hierarchical one. The choice needs `C` alone, since every rank computes as many rows anyhow.
//!
//! Where a plan has several replicas of the set of experts, `tutel` reduces their gradients once an iteration. In `tutel-sharded` the
//! `W / E` ranks that share an expert keep a part of its inner width each ([`Storage::Parts`]), whatever `r` is, so that changing it
//! moves no state. `r = 1`: they restore the whole expert for each pass, and each takes the rows of its share of the sources. `r = W / E`
//! (tensor-parallel experts): all of them get all rows and compute with their part, and what they return is summed. Fewer weights
//! travel, or fewer rows. Tutel has all numbers between, too; these are left out.
//!
//! Steps are cut between groups of ranks, the layer program's way, where Tutel cuts the rows of every pair: the same overlap with fewer
//! messages. Weights that `r = 1` restores are restored again for the backward pass, which Tutel keeps them for.

use workloads::Seconds;
use workloads::model::Moe;

use crate::plan::search;
use crate::price::Setting;
use crate::price::hosts::Hosts;
use crate::price::ledger::Ledger;
use crate::price::network::Group;
use crate::price::streams::{Links, Streams};
use crate::program::split::Split;
use crate::program::{Direction, Exchange, Layout, Op, Pass};
use crate::{About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, RoutingCounts, Storage, System};

/// Tutel with one of its ways to share an expert.
pub struct Tutel {
    about: About,
    /// Whether ranks that share an expert keep a part of it each.
    sharded: bool,
}

/// With whole experts on each rank.
pub static TUTEL: Tutel = Tutel {
    about: About {
        name: "tutel",
        title: "Tutel",
        summary: "Rows padded to the capacity; per layer, the fastest of moving rows (pipelined or hierarchical) and moving weights (Hwang et al., MLSys'23)",
    },
    sharded: false,
};

/// With parts of them.
pub static SHARDED: Tutel = Tutel {
    about: About {
        name: "tutel-sharded",
        title: "Tutel (sharded)",
        summary: "Tutel whose replicas keep a part of each expert: per layer, the fastest of restoring whole experts and of sending rows to all parts (r = W / E)",
    },
    sharded: true,
};

impl System for Tutel {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::expert_parallel(self, job, costs)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let costs = CostModel::new(&job.cluster, job.gpus);
        let parts = if self.sharded { parts(job, plan) } else { 1 };
        let ranks = if parts > 1 { 0..plan.stage_ranks() } else { plan.expert_group(0, 0) };
        let place = costs.group(ranks, 1);
        let factor = job.gate.capacity_factor();
        let layer = |moe: &Moe| {
            let tokens = plan.tokens(moe);
            Layer { moe: *moe, tokens, capacity: factor.map(|f| capacity(f, tokens, job.top_k(), moe.experts)) }
        };
        let layers = job.model.moe_layers().map(layer).collect();
        Box::new(Adaptive { costs, place, parts, layers })
    }
}

/// Ranks that keep a part of the same experts each: the replicas of the set, where all inner widths can be cut so.
fn parts(job: &Job, plan: &Plan) -> usize {
    let cuts = job.model.moe_layers().all(|moe| moe.expert.inner.is_multiple_of(plan.expert_dp));
    if cuts { plan.expert_dp } else { 1 }
}

/// `C = k floor(f ceil(S / E))`. No expert gets a token twice, so that more than `S` rows are never laid out.
fn capacity(factor: f64, tokens: usize, top_k: usize, experts: usize) -> u32 {
    let rows = ((factor * tokens.div_ceil(experts) as f64) as usize).saturating_mul(top_k);
    rows.min(tokens).try_into().unwrap_or(u32::MAX)
}

struct Adaptive {
    costs: CostModel,
    place: Group,
    /// Ranks that share an expert.
    parts: usize,
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
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::in_parts(moe.experts, ranks, self.parts)
    }

    fn joins_replicas(&self) -> bool {
        self.parts > 1
    }

    fn storage(&self) -> Storage {
        if self.parts > 1 { Storage::Parts } else { Storage::Slots }
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let layer = &self.layers[layer];
        // Where gate and Tutel round the same limit differently, what the gate let through is kept.
        let layout = Layout::Padded { rows: layer.capacity.unwrap_or(0).max(counts.largest()) };
        let agree = layer.capacity.is_none();
        let all = match self.parts {
            1 => {
                let moved =
                    [Travel::Together, Travel::Singly].map(|travel| weights_move(layout, agree, counts, travel));
                rows_move(layout, agree, counts.ranks()).chain(moved).collect()
            }
            _ => in_parts(layout, agree, counts),
        };
        let timed = all.into_iter().map(|program| (self.predict(&program, layer, counts, placement), program));
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

/// Rows go to experts, by a linear all-to-all in several numbers of steps or a hierarchical one.
fn rows_move(layout: Layout, agree: bool, ranks: usize) -> impl Iterator<Item = LayerProgram> {
    let steps = STEPS.into_iter().filter(move |steps| ranks.is_multiple_of(*steps));
    let linear = steps.map(move |steps| LayerProgram::pipelined(steps, layout, Exchange::Whole, agree));
    linear.chain([LayerProgram::padded(layout, Exchange::Hierarchical, agree)])
}

/// The programs of experts in parts: `r = 1`, `r = W / E` and `r = 0`, for which the owners restore their experts first.
pub fn in_parts(layout: Layout, agree: bool, counts: &RoutingCounts) -> Vec<LayerProgram> {
    let rows_move = || rows_move(layout, agree, counts.ranks());
    let whole = rows_move().map(LayerProgram::restoring);
    let cut = rows_move().map(|program| LayerProgram { split: Split::Parts, ..program });
    let mut moved = weights_move(layout, agree, counts, Travel::FromParts);
    moved.split = Split::BySource;
    whole.chain(cut).chain([moved]).collect()
}

/// How all weights come to all ranks, and all gradients back.
#[derive(Clone, Copy, PartialEq)]
enum Travel {
    /// One expert's after the other's.
    Singly,
    /// In one collective.
    Together,
    /// In one collective, from owners that restore their experts from parts first.
    FromParts,
}

/// `r = 0`: every rank gets every expert and computes its own rows.
fn weights_move(layout: Layout, agree: bool, counts: &RoutingCounts, travel: Travel) -> LayerProgram {
    let experts: Vec<usize> = (0..counts.experts()).collect();
    let mut forward = Pass::default();
    let gate = forward.gate(agree);
    let restored = (travel == Travel::FromParts).then(|| forward.then(Op::Unshard, gate));
    let there: Vec<usize> = match (travel, restored) {
        (Travel::Singly, _) => experts.iter().map(|&expert| forward.start(Op::Broadcast { expert })).collect(),
        (_, None) => vec![forward.start(Op::GatherShadows); experts.len()],
        (_, Some(restored)) => {
            let restored = forward.then(Op::Await, restored);
            vec![forward.then(Op::GatherShadows, restored); experts.len()]
        }
    };
    for (&expert, &there) in experts.iter().zip(&there) {
        forward.then(Op::Shadow { expert }, there);
    }
    let mut backward = Pass::default();
    let mut last = 0;
    for &expert in &experts {
        last = backward.start(Op::Shadow { expert });
        if travel == Travel::Singly {
            backward.then(Op::ReduceGrad { expert }, last);
        }
    }
    if travel != Travel::Singly {
        last = backward.then(Op::ScatterGrads, last);
    }
    if travel == Travel::FromParts {
        last = backward.then(Op::Await, last);
        backward.then(Op::Reshard, last);
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
    use crate::program::Rows;
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
        Adaptive { costs, place, parts: 1, layers }.program(0, &counts, &Placement::identity(ranks, ranks))
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

    /// Four experts on eight ranks of one node: `[rows moved, weights restored]` of what is cheapest.
    #[test]
    fn parts_compute_where_weights_are_more_than_rows() {
        let costs = CostModel::new(&Cluster::named("test", "inky").unwrap(), 8);
        let chosen = |inner: usize, rows: u32| {
            let (moe, place) = (Moe::plain(1024, 1024, inner, 4), costs.group(0..8, 1));
            let layers = vec![Layer { moe, tokens: 1024, capacity: None }];
            let counts = RoutingCounts::new(4, vec![rows; 4 * 8]);
            let policy = Adaptive { costs: costs.clone(), place, parts: 2, layers };
            policy.program(0, &counts, &policy.first_placement(0, &moe, 8))
        };
        let cut = chosen(8192, 16);
        assert!(cut.split == Split::Parts && !cut.fills_slots() && cut.shadowed.is_empty());
        let whole = chosen(1024, 4096);
        assert!(whole.split == Split::BySource && whole.fills_slots());
    }

    /// Entries of a rank go to one copy of each expert, or to all of them.
    #[test]
    fn every_source_has_a_copy_of_each_expert_or_all() {
        let (layout, counts) = (Layout::Padded { rows: 3 }, RoutingCounts::new(4, vec![2; 4 * 8]));
        let placement = Placement::in_parts(4, 8, 2);
        assert_eq!(placement.experts_in_slots(), [0, 0, 1, 1, 2, 2, 3, 3].map(Some));
        let programs = in_parts(layout, true, &counts);
        for program in programs.iter().filter(|program| program.shadowed.is_empty()) {
            let rows = Rows::new(program, &counts, &placement);
            let to = |source| (0..8).map(|owner| rows.sent(source, owner, 0)).collect::<Vec<_>>();
            let expected = match program.split {
                Split::Parts => [[3; 8], [3; 8]],
                _ => [[3, 0, 3, 0, 3, 0, 3, 0], [0, 3, 0, 3, 0, 3, 0, 3]],
            };
            assert_eq!([to(4), to(5)], expected);
        }
    }

    #[test]
    fn few_rows_across_nodes_go_in_two_calls() {
        assert_eq!(chosen(32, 4096, 8).exchange, Exchange::Hierarchical);
        assert_eq!(chosen(8, 4096, 64).exchange, Exchange::Whole);
    }
}
