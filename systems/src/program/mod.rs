//! The layer program: what one MoE layer does with one micro-batch, as a small graph of ops over two streams.
//!
//! Every rank of an expert-parallel group runs the same program. An op says what moves or what is computed; *which* rows
//! follows from the program, the counts and the placement through [`Rows`], the one place that both engines ask: the
//! simulator prices those rows, a trainer sends and multiplies them.
//!
//! Exchanges are cut into steps. The group's ranks form `steps` schedule groups of equal, contiguous size; in step `s`
//! schedule group `i` sends to group `i + s` and receives from group `i - s`, modulo `steps`. One step is the plain
//! all-to-all.

pub mod routing;

use serde::{Deserialize, Serialize};

use crate::plan::placement::Placement;
use crate::program::routing::RoutingCounts;

/// One op. Read "gradients of" before the nouns for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Scores every token against every expert and chooses.
    Gate,
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
}

/// Where an op runs on each rank. Ops of one stream run in the order of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Exchanges between ranks; they start when the last participant has arrived.
    Communication,
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
}

/// What one MoE layer does with one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgram {
    /// Steps that an exchange is cut into; divides the number of ranks.
    pub steps: usize,
    /// Experts that every rank computes for itself this time.
    pub shadowed: Vec<usize>,
    /// How entries are laid out for the exchange.
    pub layout: Layout,
    /// How a step of the exchange is issued.
    pub exchange: Exchange,
    /// Forward pass.
    pub forward: Vec<Task>,
    /// Backward pass.
    pub backward: Vec<Task>,
}

impl Op {
    /// The stream that the op runs on.
    pub fn stream(&self) -> Stream {
        match self {
            Op::Gate | Op::Sync | Op::Decide { .. } | Op::Experts { .. } | Op::Shadow { .. } => Stream::Compute,
            Op::Counts | Op::Dispatch { .. } | Op::Combine { .. } | Op::Broadcast { .. } | Op::ReduceGrad { .. } => {
                Stream::Communication
            }
        }
    }

    /// Its name in a timeline.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Gate => "gate",
            Op::Counts => "counts",
            Op::Sync => "sync",
            Op::Decide { .. } => "decide",
            Op::Dispatch { .. } => "dispatch",
            Op::Experts { .. } => "experts",
            Op::Combine { .. } => "combine",
            Op::Broadcast { .. } => "broadcast",
            Op::Shadow { .. } => "shadow",
            Op::ReduceGrad { .. } => "reduce gradient",
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

    /// Appends the gate; and, if the ranks must agree on a number of rows, the exchange of counts and the host's wait.
    pub fn gate(&mut self, agree: bool) -> usize {
        let gate = self.start(Op::Gate);
        if !agree {
            return gate;
        }
        let counts = self.then(Op::Counts, gate);
        self.then(Op::Sync, counts)
    }

    /// The tasks.
    pub fn finish(self) -> Vec<Task> {
        self.0
    }
}

impl LayerProgram {
    /// Plain expert parallelism: gate, counts, one dispatch, the local experts, one combine; the host waits for every
    /// exchange.
    pub fn expert_parallel() -> Self {
        let mut forward = Pass::default();
        let gate = forward.start(Op::Gate);
        let counts = forward.then(Op::Counts, gate);
        let dispatch = forward.then(Op::Dispatch { step: 0 }, counts);
        synchronised(&mut forward, dispatch);
        let mut backward = Pass::default();
        let dispatch = backward.start(Op::Dispatch { step: 0 });
        let combined = synchronised(&mut backward, dispatch);
        backward.then(Op::Gate, combined);
        Self {
            steps: 1,
            shadowed: Vec::new(),
            layout: Layout::Ragged,
            exchange: Exchange::PerExpert,
            forward: forward.finish(),
            backward: backward.finish(),
        }
    }

    /// Expert parallelism on equally many rows for every pair: gate, one dispatch, the local experts, one combine. No
    /// counts are exchanged, because rows do not depend on them; unless the number of rows does (`agree`), which the
    /// ranks then agree on and the host waits for.
    pub fn padded(layout: Layout, exchange: Exchange, agree: bool) -> Self {
        let mut forward = Pass::default();
        let ready = forward.gate(agree);
        let dispatch = forward.then(Op::Dispatch { step: 0 }, ready);
        unsynchronised(&mut forward, dispatch);
        let mut backward = Pass::default();
        let dispatch = backward.start(Op::Dispatch { step: 0 });
        let combined = unsynchronised(&mut backward, dispatch);
        backward.then(Op::Gate, combined);
        Self {
            steps: 1,
            shadowed: Vec::new(),
            layout,
            exchange,
            forward: forward.finish(),
            backward: backward.finish(),
        }
    }
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
    placement: &'a Placement,
    steps: usize,
    layout: Layout,
    /// `[expert]`, or nothing where no expert is.
    shadowed: Vec<bool>,
}

impl<'a> Rows<'a> {
    /// The rows of `program` on these counts.
    pub fn new(program: &LayerProgram, counts: &'a RoutingCounts, placement: &'a Placement) -> Self {
        let experts = if program.shadowed.is_empty() { 0 } else { counts.experts() };
        let mut shadowed = vec![false; experts];
        for &expert in &program.shadowed {
            shadowed[expert] = true;
        }
        Self { counts, placement, steps: program.steps, layout: program.layout, shadowed }
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

    /// Rows that `source` sends for `expert`; none when the expert is shadowed.
    #[inline]
    pub fn sent(&self, source: usize, expert: usize) -> u32 {
        if !self.shadowed.is_empty() && self.shadowed[expert] {
            return 0;
        }
        self.layout.rows().unwrap_or(self.counts.row(source)[expert])
    }

    /// Rows that `source` sends, in physical order: `[owner][slot]`.
    pub fn to_slots(&self, source: usize, rows: &mut [u32]) {
        let experts = self.placement.experts_in_slots();
        match self.layout.rows() {
            Some(same) => rows.fill(same),
            None => {
                let row = self.counts.row(source);
                rows.iter_mut().zip(experts).for_each(|(rows, &expert)| *rows = row[expert]);
            }
        }
        if !self.shadowed.is_empty() {
            rows.iter_mut().zip(experts).filter(|(_, expert)| self.shadowed[**expert]).for_each(|(rows, _)| *rows = 0);
        }
    }

    /// Rows of a shadowed expert that `rank` computes for itself.
    pub fn shadowed(&self, rank: usize, expert: usize) -> u32 {
        self.layout.rows().unwrap_or(self.counts.row(rank)[expert])
    }

    /// Experts of each rank.
    pub fn slots_per_rank(&self) -> usize {
        self.placement.slots_per_rank()
    }

    /// The experts that live on `owner`.
    pub fn experts_of(&self, owner: usize) -> &[usize] {
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
        for program in [LayerProgram::expert_parallel(), padded] {
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
        assert_eq!([rows.sent(0, 0), rows.sent(0, 1), rows.sent(1, 1)], [4, 4, 4]);
    }
}
