//! The layer program: what one MoE layer does with one micro-batch, as a small graph of ops over two streams.
//!
//! Every rank of an expert-parallel group runs the same program. An op says what moves or what is computed; *which* rows
//! follows from the program, the counts and the placement through [`Rows`], the one place that both engines ask: the
//! simulator prices those rows, a trainer sends and multiplies them.
//!
//! Exchanges are cut into steps. The group's ranks form `steps` schedule groups of equal, contiguous size; in step `s`
//! schedule group `i` sends to group `i + s` and receives from group `i - s`, modulo `steps`. One step is the plain
//! all-to-all.
//!
//! Where an expert has several copies, the program also says how its entries are split between them, and which copies are made
//! for this micro-batch alone.

pub mod copies;
pub mod routing;
pub mod split;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::plan::placement::Placement;
use crate::program::routing::RoutingCounts;
use crate::program::split::Split;

/// One op. Read "gradients of" before the nouns for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Scores every token against every expert and chooses; and, once results are back, adds them to their tokens. Of a pass without
    /// [`Op::Permute`], what that does, too.
    Gate,
    /// Rows are put into the order of the exchange, once every rank knows the counts: forward alone.
    Permute,
    /// Every rank tells every other how many entries it will send to each of its experts.
    Counts,
    /// The host waits for the rank's device, because it needs to know that an exchange is over.
    Sync,
    /// The host decides something about this micro-batch, in that many elementary steps.
    Decide {
        /// Elementary steps.
        steps: u64,
    },
    /// Entries travel from the ranks of their tokens to the ranks of their experts.
    Dispatch {
        /// The step.
        step: usize,
    },
    /// Every rank runs its experts on the entries that arrived in a step.
    Experts {
        /// The step.
        step: usize,
    },
    /// The results of a step travel back.
    Combine {
        /// The step.
        step: usize,
    },
    /// The owner sends an expert's weights to the whole group.
    Broadcast {
        /// The logical expert.
        expert: usize,
    },
    /// Every rank runs a shadowed expert on its own entries.
    Shadow {
        /// The logical expert.
        expert: usize,
    },
    /// The gradients of a shadowed expert's weights are summed at its owner.
    ReduceGrad {
        /// The logical expert.
        expert: usize,
    },
    /// The weights of all shadowed experts go from their owners to the whole group in one all-gather.
    GatherShadows,
    /// The gradients of all shadowed experts' weights are summed at their owners in one reduce-scatter.
    ScatterGrads,
    /// The weights of the program's copies go from the experts' ranks to the copies' slots ([`copies`]).
    CopyWeights,
    /// The gradients of the copies' weights return, summed on their way, and are added at the experts' ranks ([`copies`]).
    ReturnGrad,
    /// Experts are stored in equal shards on all ranks: every rank gathers the weights of its slots, by the placement alone, so that it waits
    /// for no task of its pass. Where ranks that have copies keep a part of the expert each, they restore it from these, behind the
    /// task that the program names.
    Unshard,
    /// The gradients of the slots' weights are summed into the shards.
    Reshard,
    /// Kernels wait for a transfer of weights.
    Await,
}

/// Where an op runs on each rank. Ops of one stream run in the order of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Exchanges between ranks; they start when the last participant has arrived.
    Communication,
    /// Transfers of weights and their gradients by copy engines. A transfer that waits for no task of its pass may run ahead of it, as
    /// soon as the layer before is done; [`Op::Unshard`] already while the rows of the layer before are with their experts, because
    /// shards have memory for two layers' slots. One that no task waits for may end after its pass. It uses the same links as
    /// exchanges, so that of the two streams' tasks only one runs at a time, in the order of the program.
    ///
    /// What depends on a micro-batch's counts (copies made for it) waits for the gate in both engines, because its task says so.
    Copy,
}

/// Which way a pass goes through a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From input to output.
    Forward,
    /// From the loss back: gradients of inputs and of weights.
    Backward,
}

impl Direction {
    /// Matrix products of a pass, as a multiple of the forward pass's.
    pub fn products(self) -> f64 {
        match self {
            Direction::Forward => 1.0,
            Direction::Backward => 2.0,
        }
    }
}

/// An op and what it waits for on every rank, besides the op before it on its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// What is done.
    pub op: Op,
    /// An earlier task of the same pass, by index.
    pub after: Option<usize>,
}

/// How the entries of a micro-batch become the rows of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As many rows as there are entries, gathered and scattered by index.
    Ragged,
    /// `rows` for every (source rank, expert) pair, filled up with zeros, gathered and scattered by index. No pair may
    /// have more entries.
    Padded {
        /// Rows of a pair.
        rows: u32,
    },
    /// The same rows, made and combined by products with a `[tokens, experts, rows]` tensor that is zero but for one
    /// weight an entry (GShard, Lepikhin et al. 2020, algorithm 2).
    OneHot {
        /// Rows of a pair.
        rows: u32,
    },
}

impl Layout {
    /// Rows of every (source rank, expert) pair, where they are all as many.
    pub fn rows(self) -> Option<u32> {
        match self {
            Layout::Ragged => None,
            Layout::Padded { rows } | Layout::OneHot { rows } => Some(rows),
        }
    }
}

/// How the ranks of a group exchange rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// One grouped call per local expert, one after the other.
    PerExpert,
    /// One call for all local experts.
    Whole,
    /// Two calls: inside the node, to the rank with the owner's local number; then across nodes, between ranks of equal
    /// local number. Rows are put into the order of each call before it. Inside one node this is [`Exchange::Whole`].
    Hierarchical,
    /// One call in which a token crosses to each other node once, whatever its choices there, and goes on from there to each rank
    /// once; results are summed on the way back likewise (DeepEP, as in DeepSeek-V3, arXiv 2412.19437, section 3.2.2). What is
    /// computed is that of [`Exchange::Whole`].
    OncePerNode {
        /// Choices per token, of which several may be on one node.
        top_k: u32,
    },
}

/// A copy of an expert for one micro-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The logical expert.
    pub expert: usize,
    /// A slot of the group that the placement leaves empty.
    pub slot: usize,
}

/// How a rank multiplies the rows of its experts, unless the cluster's training program says otherwise. Results are the same, and a trainer uses what its
/// device has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// One expert after the other, each with its own start.
    #[default]
    PerExpert,
    /// All local experts in one grouped product.
    Grouped,
}

/// What one MoE layer does with one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgram {
    /// Steps that an exchange is cut into; divides the number of ranks.
    pub steps: usize,
    /// Experts that every rank computes for itself this time.
    pub shadowed: Vec<usize>,
    /// Copies that are made for this micro-batch.
    pub copies: Vec<Copied>,
    /// How the entries of an expert with several copies are split. Such an expert's rows are not padded, unless its copies are parts of it.
    pub split: Split,
    /// How entries are laid out for the exchange.
    pub layout: Layout,
    /// How a step of the exchange is issued.
    pub exchange: Exchange,
    /// How local experts are multiplied.
    pub products: Products,
    /// Forward pass.
    pub forward: Vec<Task>,
    /// Backward pass.
    pub backward: Vec<Task>,
}

impl Op {
    /// The stream that the op runs on.
    pub fn stream(&self) -> Stream {
        match self {
            Op::Gate
            | Op::Permute
            | Op::Sync
            | Op::Decide { .. }
            | Op::Experts { .. }
            | Op::Shadow { .. }
            | Op::Await => Stream::Compute,
            Op::Counts
            | Op::Dispatch { .. }
            | Op::Combine { .. }
            | Op::Broadcast { .. }
            | Op::ReduceGrad { .. }
            | Op::GatherShadows
            | Op::ScatterGrads => Stream::Communication,
            Op::CopyWeights | Op::ReturnGrad | Op::Unshard | Op::Reshard => Stream::Copy,
        }
    }

    /// Whether weights come to slots by it.
    pub fn fills_slots(&self) -> bool {
        matches!(self, Op::Unshard | Op::CopyWeights)
    }

    /// Its name in a timeline.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Gate => "gate",
            Op::Permute => "permute",
            Op::Counts => "counts",
            Op::Sync => "sync",
            Op::Decide { .. } => "decide",
            Op::Dispatch { .. } => "dispatch",
            Op::Experts { .. } => "experts",
            Op::Combine { .. } => "combine",
            Op::Broadcast { .. } => "broadcast",
            Op::Shadow { .. } => "shadow",
            Op::ReduceGrad { .. } => "reduce gradient",
            Op::GatherShadows => "gather experts",
            Op::ScatterGrads => "scatter gradients",
            Op::CopyWeights => "copy weights",
            Op::ReturnGrad => "return gradients",
            Op::Unshard => "unshard",
            Op::Reshard => "reshard",
            Op::Await => "await weights",
        }
    }
}

/// A pass under construction: ops are appended, with what they wait for.
pub struct Pass(Vec<Task>);

impl Default for Pass {
    /// With room for the usual pass: one is built for every layer and micro-batch.
    fn default() -> Self {
        Self(Vec::with_capacity(8))
    }
}

impl Pass {
    /// Appends an op that waits for nothing but its stream; returns its index.
    pub fn start(&mut self, op: Op) -> usize {
        self.push(op, None)
    }

    /// Appends an op that waits for an earlier one, too; returns its index.
    pub fn then(&mut self, op: Op, after: usize) -> usize {
        self.push(op, Some(after))
    }

    fn push(&mut self, op: Op, after: Option<usize>) -> usize {
        self.0.push(Task { op, after });
        self.0.len() - 1
    }

    /// Appends the gate; and, if the ranks must agree on a number of rows, the exchange of counts, the host's wait, and rows put into order.
    pub fn gate(&mut self, agree: bool) -> usize {
        if !agree {
            return self.start(Op::Gate);
        }
        let counted = self.counted();
        self.then(Op::Permute, counted)
    }

    /// Appends the gate, the exchange of counts and the host's wait.
    fn counted(&mut self) -> usize {
        let gate = self.start(Op::Gate);
        let counts = self.then(Op::Counts, gate);
        self.then(Op::Sync, counts)
    }

    /// The tasks.
    pub fn finish(self) -> Vec<Task> {
        self.0
    }
}

impl LayerProgram {
    /// Ranks over which each expert's inner width is cut: all that have a copy, where they compute with their parts.
    pub fn parts(&self, placement: &Placement) -> usize {
        if self.split == Split::Parts { placement.slots_of(0).len() } else { 1 }
    }

    /// The same with whole experts restored from parts in each pass, behind the rows on their way to them, and their gradients summed into
    /// the parts behind the backward pass.
    #[must_use]
    pub fn restoring(mut self) -> Self {
        self.split = Split::BySource;
        self.forward = restored(self.forward).finish();
        let mut backward = restored(self.backward);
        let last = backward.0.iter().rposition(|task| matches!(task.op, Op::Experts { .. }));
        backward.push(Op::Reshard, last);
        self.backward = backward.finish();
        self
    }

    /// Whether the forward pass restores experts from shards or brings weights to copies. A backward pass that follows at once, as behind a full
    /// recomputation, finds them in their slots and brings nothing.
    pub fn fills_slots(&self) -> bool {
        self.forward.iter().any(|task| task.op.fills_slots())
    }

    /// Whether a task of the forward pass puts rows into order; otherwise that is done with the gate.
    pub fn permutes(&self) -> bool {
        self.forward.iter().any(|task| task.op == Op::Permute)
    }

    /// Plain expert parallelism: gate, counts, rows in order, one dispatch, the local experts, one combine; the host waits for every
    /// exchange.
    pub fn expert_parallel() -> Self {
        let mut forward = Pass::default();
        let gate = forward.start(Op::Gate);
        let counts = forward.then(Op::Counts, gate);
        let permuted = forward.then(Op::Permute, counts);
        let dispatch = forward.then(Op::Dispatch { step: 0 }, permuted);
        synchronised(&mut forward, dispatch);
        let mut backward = Pass::default();
        let dispatch = backward.start(Op::Dispatch { step: 0 });
        let combined = synchronised(&mut backward, dispatch);
        backward.then(Op::Gate, combined);
        Self {
            steps: 1,
            shadowed: Vec::new(),
            copies: Vec::new(),
            split: Split::Even,
            layout: Layout::Ragged,
            exchange: Exchange::PerExpert,
            products: Products::PerExpert,
            forward: forward.finish(),
            backward: backward.finish(),
        }
    }

    /// Expert parallelism with one exchange each way and one grouped product. The host waits once, for the counts: it
    /// must know how many rows to expect.
    pub fn grouped() -> Self {
        let mut forward = Pass::default();
        let ready = forward.gate(true);
        let dispatch = forward.then(Op::Dispatch { step: 0 }, ready);
        unsynchronised(&mut forward, dispatch);
        let mut backward = Pass::default();
        let dispatch = backward.start(Op::Dispatch { step: 0 });
        let combined = unsynchronised(&mut backward, dispatch);
        backward.then(Op::Gate, combined);
        let (forward, backward) = (forward.finish(), backward.finish());
        let (exchange, products) = (Exchange::Whole, Products::Grouped);
        Self { exchange, products, forward, backward, ..Self::expert_parallel() }
    }

    /// Expert parallelism on equally many rows for every pair: gate, one dispatch, the local experts, one combine. No
    /// counts are exchanged, because rows do not depend on them; unless the number of rows does (`agree`), which the
    /// ranks then agree on and the host waits for.
    pub fn padded(layout: Layout, exchange: Exchange, agree: bool) -> Self {
        Self::pipelined(1, layout, exchange, agree)
    }

    /// The same with exchanges in that many steps, which overlap with experts: those of one step run while the rows of the next
    /// travel.
    pub fn pipelined(steps: usize, layout: Layout, exchange: Exchange, agree: bool) -> Self {
        let mut forward = Pass::default();
        let ready = forward.gate(agree);
        let dispatched = (0..steps).map(|step| forward.then(Op::Dispatch { step }, ready)).collect();
        in_steps(&mut forward, dispatched);
        let mut backward = Pass::default();
        let dispatched = (0..steps).map(|step| backward.start(Op::Dispatch { step })).collect();
        let combined = in_steps(&mut backward, dispatched);
        backward.then(Op::Gate, combined);
        Self {
            steps,
            shadowed: Vec::new(),
            copies: Vec::new(),
            split: Split::Even,
            layout,
            exchange,
            products: Products::PerExpert,
            forward: forward.finish(),
            backward: backward.finish(),
        }
    }
}

/// How the weights of a program's copies come to their slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// They stand there.
    Stand,
    /// Those of the program's copies are copied: forward, once the decision is made; backward, ahead of the pass. Their gradients
    /// return behind it.
    Copied,
    /// All are gathered from shards ahead of each pass, and all gradients are summed into shards behind the backward pass.
    Sharded,
}

impl LayerProgram {
    /// Expert parallelism with copies of experts: gate, counts, the decision how entries are split (`steps` elementary ones), rows in order, one
    /// dispatch in one call, the experts, one combine. The host waits for the counts alone.
    pub fn split(split: Split, copies: Vec<Copied>, weights: Weights, steps: u64) -> Self {
        let mut forward = Pass::default();
        let unsharded = (weights == Weights::Sharded).then(|| forward.start(Op::Unshard));
        let counted = forward.counted();
        let ready = if steps > 0 { forward.then(Op::Decide { steps }, counted) } else { counted };
        let copying = weights == Weights::Copied && !copies.is_empty();
        let copied = copying.then(|| forward.then(Op::CopyWeights, ready));
        let permuted = forward.then(Op::Permute, ready);
        let dispatch = forward.then(Op::Dispatch { step: 0 }, permuted);
        if let Some(transfer) = unsharded.or(copied) {
            forward.then(Op::Await, transfer);
        }
        unsynchronised(&mut forward, dispatch);

        let mut backward = Pass::default();
        let ahead = match weights {
            Weights::Sharded => Some((Op::Unshard, Op::Reshard)),
            _ => copying.then_some((Op::CopyWeights, Op::ReturnGrad)),
        };
        let transfer = ahead.map(|(there, _)| backward.start(there));
        let dispatch = backward.start(Op::Dispatch { step: 0 });
        if let Some(transfer) = transfer {
            backward.then(Op::Await, transfer);
        }
        let combined = unsynchronised(&mut backward, dispatch);
        if let Some((_, back)) = ahead {
            backward.then(back, combined);
        }
        backward.then(Op::Gate, combined);
        let mut program = Self::padded(Layout::Ragged, Exchange::Whole, false);
        (program.split, program.copies) = (split, copies);
        (program.forward, program.backward) = (forward.finish(), backward.finish());
        program
    }
}

/// The tasks with whole experts restored once all rows are sent to them.
fn restored(tasks: Vec<Task>) -> Pass {
    let mut pass = Pass::default();
    let first = tasks.iter().position(|task| matches!(task.op, Op::Experts { .. })).unwrap_or(tasks.len());
    let moved = |index: usize| if index < first { index } else { index + 2 };
    for (index, task) in tasks.into_iter().enumerate() {
        if index == first {
            let there = pass.push(Op::Unshard, index.checked_sub(1));
            pass.then(Op::Await, there);
        }
        pass.push(task.op, task.after.map(moved));
    }
    pass
}

/// Each step's experts once its rows are there, and its way back once they are done; returns the last combine.
fn in_steps(pass: &mut Pass, dispatched: Vec<usize>) -> usize {
    let computed = dispatched.into_iter().enumerate().map(|(step, there)| pass.then(Op::Experts { step }, there));
    let computed: Vec<usize> = computed.collect();
    let combined = computed.into_iter().enumerate().map(|(step, done)| pass.then(Op::Combine { step }, done));
    combined.last().expect("an exchange has a step")
}

fn unsynchronised(pass: &mut Pass, dispatch: usize) -> usize {
    let experts = pass.then(Op::Experts { step: 0 }, dispatch);
    pass.then(Op::Combine { step: 0 }, experts)
}

fn synchronised(pass: &mut Pass, dispatch: usize) -> usize {
    let there = pass.then(Op::Sync, dispatch);
    let experts = pass.then(Op::Experts { step: 0 }, there);
    let combine = pass.then(Op::Combine { step: 0 }, experts);
    pass.then(Op::Sync, combine)
}

/// Which rows the ops of a program concern.
pub struct Rows<'a> {
    counts: &'a RoutingCounts,
    /// The program's copies included.
    placement: Cow<'a, Placement>,
    steps: usize,
    layout: Layout,
    /// `[expert]`, or nothing where no expert is.
    shadowed: Vec<bool>,
    /// `[source][slot]` entries, or nothing where no expert has several copies.
    split: Vec<u32>,
}

impl<'a> Rows<'a> {
    /// The rows of `program` on these counts.
    pub fn new(program: &LayerProgram, counts: &'a RoutingCounts, placement: &'a Placement) -> Self {
        let experts = if program.shadowed.is_empty() { 0 } else { counts.experts() };
        let mut shadowed = vec![false; experts];
        for &expert in &program.shadowed {
            shadowed[expert] = true;
        }
        let placement = match program.copies.as_slice() {
            [] => Cow::Borrowed(placement),
            copies => Cow::Owned(placement.with(copies.iter().map(|copy| (copy.expert, copy.slot)))),
        };
        let split = if placement.has_copies() {
            let slots = placement.experts_in_slots().len();
            program.split.rows(counts, program.layout, slots, |expert| placement.slots_of(expert))
        } else {
            Vec::new()
        };
        Self { counts, placement, steps: program.steps, layout: program.layout, shadowed, split }
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.counts.ranks()
    }

    /// The step in which `source` sends to `owner`.
    pub fn step(&self, source: usize, owner: usize) -> usize {
        let size = self.ranks() / self.steps;
        (owner / size + self.steps - source / size) % self.steps
    }

    /// Rows that `source` sends to a slot of `owner`.
    #[inline]
    pub fn sent(&self, source: usize, owner: usize, slot: usize) -> u32 {
        let Some(expert) = self.placement.experts_of(owner)[slot] else { return 0 };
        if !self.shadowed.is_empty() && self.shadowed[expert] {
            return 0;
        }
        if self.split.is_empty() {
            return self.layout.rows().unwrap_or(self.counts.row(source)[expert]);
        }
        let slots = self.placement.experts_in_slots().len();
        self.split[source * slots + owner * self.slots_per_rank() + slot]
    }

    /// Rows that `source` sends, in physical order: `[owner][slot]`.
    pub fn to_slots(&self, source: usize, rows: &mut [u32]) {
        let experts = self.placement.experts_in_slots();
        match self.layout.rows() {
            _ if !self.split.is_empty() => rows.copy_from_slice(&self.split[source * rows.len()..][..rows.len()]),
            Some(same) => {
                rows.iter_mut().zip(experts).for_each(|(rows, expert)| *rows = if expert.is_some() { same } else { 0 });
            }
            None => {
                let row = self.counts.row(source);
                rows.iter_mut().zip(experts).for_each(|(rows, expert)| *rows = expert.map_or(0, |expert| row[expert]));
            }
        }
        if !self.shadowed.is_empty() {
            let shadowed = |expert: &Option<usize>| expert.is_some_and(|expert| self.shadowed[expert]);
            rows.iter_mut().zip(experts).filter(|(_, expert)| shadowed(expert)).for_each(|(rows, _)| *rows = 0);
        }
    }

    /// Number of shadowed experts.
    pub fn shadowed_experts(&self) -> usize {
        self.shadowed.iter().filter(|&&shadowed| shadowed).count()
    }

    /// Rows of a shadowed expert that `rank` computes for itself.
    pub fn shadowed(&self, rank: usize, expert: usize) -> u32 {
        self.layout.rows().unwrap_or(self.counts.row(rank)[expert])
    }

    /// Copies of an expert.
    pub fn copies_of(&self, expert: usize) -> usize {
        self.placement.slots_of(expert).len()
    }

    /// Slots of each rank.
    pub fn slots_per_rank(&self) -> usize {
        self.placement.slots_per_rank()
    }

    /// What the slots of `owner` hold, copies for this micro-batch included.
    pub fn experts_of(&self, owner: usize) -> &[Option<usize>] {
        self.placement.experts_of(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_ranks_meets_in_one_step() {
        let counts = RoutingCounts::new(6, vec![1; 36]);
        let placement = Placement::identity(6, 6);
        let program = LayerProgram { steps: 3, ..LayerProgram::expert_parallel() };
        let rows = Rows::new(&program, &counts, &placement);
        // Schedule groups {0,1} {2,3} {4,5}: 0 -> 2 and 5 -> 1 are one group ahead, 4 -> 2 is two ahead.
        assert_eq!(rows.step(0, 1), 0);
        assert_eq!(rows.step(0, 2), 1);
        assert_eq!(rows.step(5, 1), 1);
        assert_eq!(rows.step(4, 2), 2);
    }

    #[test]
    fn tasks_wait_only_for_earlier_ones() {
        let padded = LayerProgram::padded(Layout::Padded { rows: 4 }, Exchange::Whole, true);
        let restoring = LayerProgram::pipelined(4, Layout::Padded { rows: 4 }, Exchange::Whole, true).restoring();
        let position = |of: &dyn Fn(Op) -> bool| restoring.forward.iter().position(|task| of(task.op)).unwrap();
        let there = position(&|op| op == Op::Await);
        assert_eq!(restoring.forward[there].after, Some(position(&|op| op == Op::Unshard)));
        assert!(there < position(&|op| op == Op::Experts { step: 0 }));
        assert_eq!(restoring.backward.last().unwrap().op, Op::Reshard);
        for program in [LayerProgram::expert_parallel(), LayerProgram::grouped(), padded, restoring] {
            for pass in [&program.forward, &program.backward] {
                for (index, task) in pass.iter().enumerate() {
                    assert!(task.after.is_none_or(|other| other < index));
                }
            }
        }
    }

    #[test]
    fn padding_replaces_counts() {
        let counts = RoutingCounts::new(2, vec![3, 0, 1, 2]);
        let placement = Placement::identity(2, 2);
        let program = LayerProgram::padded(Layout::Padded { rows: 4 }, Exchange::Whole, false);
        let rows = Rows::new(&program, &counts, &placement);
        assert_eq!([rows.sent(0, 0, 0), rows.sent(0, 1, 0), rows.sent(1, 1, 0)], [4, 4, 4]);
    }
}
