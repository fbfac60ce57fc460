//! What every rank does when: the spans of one iteration, as whoever runs it sees them.
//!
//! The evaluator records each span that it prices, a trainer each that it times: both use the same words, so that two
//! timelines of one run can be laid side by side. Waiting is no span: it is where a stream has none.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use workloads::Seconds;

use crate::iteration::schedule::Work;
use crate::price::ledger::Phase;
use crate::program::{Op, Stream};

/// What a rank does in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// An op of a layer program.
    Op(Op),
    /// A block without its MoE layer.
    Block,
    /// Embedding, or head and loss.
    Edge,
    /// The collectives of a tensor-parallel block.
    TensorParallel,
    /// Activations to the next stage, or their gradients to the one before.
    Boundary,
    /// A reduction of these gradients.
    GradientSync(Gradients),
    /// The loads of an iteration, summed over a stage, where the biases of its gates for the choice move against them.
    SelectionLoads,
    /// The gathering of these parameters' weights.
    WeightGather(Gradients),
    /// What accompanies a pass where gradients or weights are sharded, as far as it shows.
    ShardedState,
    /// The optimizer step.
    Optimizer,
    /// The loads that online decisions look at, summed over a stage.
    Gathering,
    /// Online decisions of an iteration.
    Decision,
    /// Experts changing ranks.
    Migration,
    /// Per-iteration work of the host.
    Host,
}

/// Gradients, or their parameters, that are reduced or gathered together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gradients {
    /// Of everything that data-parallel ranks share.
    Dense,
    /// Of the gates.
    Gate,
    /// Of experts, over their replicas.
    Experts,
    /// Of the tied embedding, over the ranks of a stage.
    Tied,
    /// Of the tied embedding, between the first and the last stage.
    TiedStages,
}

/// One activity of one rank on one of its streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Global rank.
    pub rank: usize,
    /// What it does.
    pub activity: Activity,
    /// The block of the model, where the activity is one block's.
    pub block: Option<usize>,
    /// The pass and its micro-batch, where the activity is part of one.
    pub work: Option<Work>,
    /// From the iteration's start.
    pub start: Seconds,
    /// From the iteration's start.
    pub end: Seconds,
}

impl Activity {
    /// What its time counts as.
    pub fn phase(self) -> Phase {
        match self {
            Activity::Op(op) => Phase::of(op),
            Activity::Block | Activity::Edge => Phase::Dense,
            Activity::TensorParallel => Phase::TensorParallel,
            Activity::Boundary => Phase::Boundary,
            Activity::GradientSync(_)
            | Activity::SelectionLoads
            | Activity::WeightGather(_)
            | Activity::ShardedState => Phase::GradientSync,
            Activity::Optimizer => Phase::Optimizer,
            Activity::Gathering | Activity::Decision => Phase::Decision,
            Activity::Migration => Phase::Migration,
            Activity::Host => Phase::Host,
        }
    }

    /// The op of a layer program that it is, if it is one.
    pub fn op(self) -> Option<Op> {
        match self {
            Activity::Op(op) => Some(op),
            _ => None,
        }
    }

    /// The stream that it occupies.
    pub fn stream(self) -> Stream {
        match self {
            Activity::Op(op) => op.stream(),
            Activity::Block | Activity::Edge | Activity::Optimizer | Activity::Decision | Activity::Host => {
                Stream::Compute
            }
            Activity::TensorParallel
            | Activity::Boundary
            | Activity::GradientSync(_)
            | Activity::SelectionLoads
            | Activity::Gathering
            | Activity::WeightGather(_)
            | Activity::ShardedState
            | Activity::Migration => Stream::Communication,
        }
    }

    /// Its name in a timeline.
    pub fn name(self) -> &'static str {
        match self {
            Activity::Op(op) => op.name(),
            Activity::Block => "block",
            Activity::Edge => "edge",
            Activity::TensorParallel => "tensor-parallel collectives",
            Activity::Boundary => "send",
            Activity::GradientSync(Gradients::Dense) => "all-reduce dense",
            Activity::GradientSync(Gradients::Gate) => "all-reduce gate",
            Activity::GradientSync(Gradients::Experts) => "all-reduce experts",
            Activity::GradientSync(Gradients::Tied) => "all-reduce tied",
            Activity::GradientSync(Gradients::TiedStages) => "all-reduce tied between stages",
            Activity::SelectionLoads => "all-reduce loads",
            Activity::WeightGather(Gradients::Dense) => "all-gather dense",
            Activity::WeightGather(Gradients::Gate) => "all-gather gate",
            Activity::WeightGather(Gradients::Experts) => "all-gather experts",
            Activity::WeightGather(Gradients::Tied | Gradients::TiedStages) => "all-gather tied",
            Activity::ShardedState => "sharded state",
            Activity::Optimizer => "optimizer",
            Activity::Gathering => "gather loads",
            Activity::Decision => "decision",
            Activity::Migration => "migration",
            Activity::Host => "host",
        }
    }
}

/// Whose spans are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Watch {
    /// Nobody's.
    #[default]
    Nobody,
    /// Those of these global ranks.
    Ranks(Vec<usize>),
    /// Those of all.
    Everybody,
}

impl Watch {
    #[inline]
    fn sees(&self, rank: usize) -> bool {
        match self {
            Watch::Nobody => false,
            Watch::Ranks(ranks) => ranks.contains(&rank),
            Watch::Everybody => true,
        }
    }
}

/// Spans that somebody wants to see. Spans of one rank's stream come in order.
pub(super) struct Recorder {
    watch: Watch,
    spans: Vec<Span>,
}

impl Recorder {
    /// Keeps spans of whom `watch` sees.
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, spans: Vec::new() }
    }

    /// Keeps a span, unless it takes no time.
    #[inline]
    pub(super) fn record(&mut self, span: Span) {
        if self.watch.sees(span.rank) && span.end > span.start {
            self.spans.push(span);
        }
    }

    /// Keeps what `ranks` do together, outside of any pass; returns when it ends.
    pub(super) fn together(
        &mut self,
        ranks: Range<usize>,
        activity: Activity,
        start: Seconds,
        time: Seconds,
    ) -> Seconds {
        let end = start + time;
        for rank in ranks {
            self.record(Span { rank, activity, block: None, work: None, start, end });
        }
        end
    }

    /// Takes the spans of another.
    pub(super) fn append(&mut self, other: Self) {
        self.spans.extend(other.spans);
    }

    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    pub(super) fn is_on(&self) -> bool {
        self.watch != Watch::Nobody
    }

    pub(super) fn into_spans(self) -> Vec<Span> {
        self.spans
    }
}
