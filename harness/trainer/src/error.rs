//! Why training stops.

use systems::iteration::online::WrongPlacement;
use tch::Kind;

use crate::checkpoint::error::CheckpointError;
use crate::comm::{CheckError, CommError, CommFailure, RendezvousError};
use crate::cuda::CudaError;
use crate::setup::SetupError;

/// Why a rank stopped training.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// What is asked for cannot be trained.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A peer died, or a collective failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// The processes did not find each other.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The processes were started with different arguments, files or programs.
    #[error(
        "rank {other} was asked for another run than rank {rank}: expected the same arguments, files and program in every process"
    )]
    OtherRun { rank: usize, other: usize },
    /// A collective of the check before training failed or gave wrong values.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// A GPU cannot be used.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// A system's layer program cannot be executed.
    #[error("the layer program has {0}")]
    Program(String),
    /// A tensor is not what its reader expects: a defect of the trainer.
    #[error("a tensor {shape:?} of {found:?}: expected {expected}")]
    Tensor { shape: Vec<i64>, found: Kind, expected: String },
    /// A policy's placement does not fit its layer.
    #[error(transparent)]
    Placement(#[from] WrongPlacement),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The loss of an iteration, counted from 1, is infinite or no number.
    #[error("the loss of iteration {iteration} is {loss}: training goes nowhere from there")]
    Diverged { iteration: usize, loss: f64 },
    /// A report cannot be encoded or decoded.
    #[error("a rank's report: {0}")]
    Report(#[from] serde_json::Error),
    /// The thread of a rank panicked, in libtorch or because of a defect.
    #[error("rank {rank} panicked: {message}")]
    Panic { rank: usize, message: String },
}

impl TrainError {
    /// The rank whose death this error reports; it is then a consequence of that death.
    pub(crate) fn dead_peer(&self) -> Option<usize> {
        match self {
            Self::Comm(CommError { reason: CommFailure::Died { rank, .. }, .. }) => Some(*rank),
            _ => None,
        }
    }

    /// The ranks that did not arrive before a timeout.
    pub(crate) fn late_peers(&self) -> &[usize] {
        match self {
            Self::Comm(CommError { reason: CommFailure::Late { ranks, .. }, .. }) => ranks,
            _ => &[],
        }
    }
}
