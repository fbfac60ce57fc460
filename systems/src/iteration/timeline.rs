//! What every rank does when: the spans of one iteration, as whoever runs it sees them.
//!
//! The evaluator tells an [`Observer`] of each span that it prices, a trainer of each that it times: both use the same
//! words, so that two timelines of one run can be laid side by side. Waiting is no span: it is where a stream has none.

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
    /// An all-reduce of these gradients.
    GradientSync(Gradients),
    /// The optimizer step.
    Optimizer,
    /// Online decisions of an iteration.
    Decision,
    /// Experts changing ranks.
    Migration,
    /// Per-iteration work of the host.
    Host,
}

/// Gradients that are reduced together.
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
            Activity::GradientSync(_) => Phase::GradientSync,
            Activity::Optimizer => Phase::Optimizer,
            Activity::Decision => Phase::Decision,
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
            Activity::TensorParallel | Activity::Boundary | Activity::GradientSync(_) | Activity::Migration => {
                Stream::Communication
            }
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
            Activity::Optimizer => "optimizer",
            Activity::Decision => "decision",
            Activity::Migration => "migration",
            Activity::Host => "host",
        }
    }
}

/// Whoever wants to see the spans of an iteration. Spans of one rank's stream come in order.
pub trait Observer {
    /// Sees a span; those that take no time are not shown.
    fn span(&mut self, span: Span);
}

/// Keeps all spans.
impl Observer for Vec<Span> {
    fn span(&mut self, span: Span) {
        self.push(span);
    }
}

/// Looks away: the compiler leaves out what nobody sees.
pub struct Unobserved;

impl Observer for Unobserved {
    #[inline]
    fn span(&mut self, _span: Span) {}
}
