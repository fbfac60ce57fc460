//! Where time goes: the phases of an iteration, and a ledger of time per phase.

use serde::{Deserialize, Serialize};
use workloads::Seconds;

use crate::program::Op;

/// What a rank's time goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Attention, dense networks, embedding and head.
    Dense,
    /// The gate's scores.
    Gate,
    /// The exchange of counts, and the host's waits for exchanges.
    Counts,
    /// Entries to their experts.
    Dispatch,
    /// Experts, shadowed ones included.
    Experts,
    /// Results back.
    Combine,
    /// Weights of shadowed, copied and sharded experts, and their gradients, as far as kernels wait for them.
    ShadowTransfer,
    /// Collectives of tensor parallelism.
    TensorParallel,
    /// Activations and their gradients between pipeline stages.
    Boundary,
    /// Waiting for other ranks inside a layer.
    Wait,
    /// Waiting for other stages.
    Bubble,
    /// Gradient synchronisation, and gathering of sharded weights.
    GradientSync,
    /// Optimizer step.
    Optimizer,
    /// Online decisions, and gathering the loads for them.
    Decision,
    /// Experts changing ranks.
    Migration,
    /// Per-iteration work of the host.
    Host,
}

impl Phase {
    /// Every phase, in the order of a breakdown.
    pub const ALL: [Phase; 16] = [
        Phase::Dense,
        Phase::Gate,
        Phase::Counts,
        Phase::Dispatch,
        Phase::Experts,
        Phase::Combine,
        Phase::ShadowTransfer,
        Phase::TensorParallel,
        Phase::Boundary,
        Phase::Wait,
        Phase::Bubble,
        Phase::GradientSync,
        Phase::Optimizer,
        Phase::Decision,
        Phase::Migration,
        Phase::Host,
    ];

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Dense => "dense",
            Phase::Gate => "gate",
            Phase::Counts => "counts",
            Phase::Dispatch => "dispatch",
            Phase::Experts => "experts",
            Phase::Combine => "combine",
            Phase::ShadowTransfer => "shadow_transfer",
            Phase::TensorParallel => "tensor_parallel",
            Phase::Boundary => "boundary",
            Phase::Wait => "wait",
            Phase::Bubble => "bubble",
            Phase::GradientSync => "gradient_sync",
            Phase::Optimizer => "optimizer",
            Phase::Decision => "decision",
            Phase::Migration => "migration",
            Phase::Host => "host",
        }
    }

    /// The phase of an op.
    pub fn of(op: Op) -> Self {
        match op {
            Op::Gate | Op::Permute => Phase::Gate,
            Op::Counts | Op::Sync => Phase::Counts,
            Op::Decide { .. } => Phase::Decision,
            Op::Dispatch { .. } => Phase::Dispatch,
            Op::Experts { .. } | Op::Shadow { .. } => Phase::Experts,
            Op::Combine { .. } => Phase::Combine,
            Op::Broadcast { .. }
            | Op::ReduceGrad { .. }
            | Op::GatherShadows
            | Op::ScatterGrads
            | Op::CopyWeights
            | Op::ReturnGrad
            | Op::Unshard
            | Op::Reshard
            | Op::Await => Phase::ShadowTransfer,
        }
    }
}

/// Time per phase, indexed by `Phase as usize`. The phases of a rank add up to the iteration: a transfer hidden behind
/// kernels counts only for the part that sticks out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger([Seconds; Phase::ALL.len()]);

impl Ledger {
    /// Time of one phase.
    pub fn of(&self, phase: Phase) -> Seconds {
        self.0[phase as usize]
    }

    /// All phases together.
    pub fn total(&self) -> Seconds {
        self.0.iter().copied().sum()
    }

    /// Adds a time to a phase.
    #[inline]
    pub fn add(&mut self, phase: Phase, time: Seconds) {
        self.0[phase as usize] += time;
    }

    /// Adds another's times, each multiplied by `factor`.
    pub fn merge(&mut self, other: &Self, factor: f64) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs * factor;
        }
    }
}
