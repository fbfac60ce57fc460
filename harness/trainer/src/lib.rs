//! The training engine: a real transformer with Mixture-of-Experts layers, trained by real ranks under a system's plan,
//! policy and layer programs.
//!
//! What a system decides changes the time of training, never training itself: every plan, placement and program computes
//! the same gradients, up to the order of sums.
//!
//! | to find | look in |
//! |---|---|
//! | what is trained, and the checks before any work | [`setup`], [`data`], [`launch`] |
//! | one rank's iteration | [`rank`], [`groups`], [`optimizer`], [`migrate`] |
//! | an MoE layer: the gate, rows, the layer program executed | [`moe`], [`gate`], [`shipping`], [`relay`], [`rows`], [`execute`], [`passes`], [`experts`] |
//! | everything else of the model | [`dense`], [`parameters`], [`tape`] |
//! | time, measured or virtual | [`timer`], [`marks`] |
//! | what the gate chose, as a trace; the simulator beside a run | [`record`], [`replay`] |
//! | compute segments to calibrate with | [`measure`] |
//! | a run that goes on where it was cut off | [`checkpoint`] |
//! | messages between ranks | [`comm`] |
//! | all ranks of this process, or this process among all; a case under all its systems | [`world`], [`processes`], [`run`], [`record`] |
//!
//! libtorch's calls panic when they fail. Everything a user can get wrong is refused before the first one; what is left
//! (memory that runs out) ends the rank's thread, and [`world`] tells the panic's message.

pub mod checkpoint;
pub mod clock;
pub mod comm;
pub mod cuda;
pub mod data;
pub mod files;
pub mod layer;
pub mod model;
pub mod processes;
pub mod rank;
pub mod record;
pub mod setup;
pub mod world;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Another rank is gone, or an exchange failed.
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    /// Processes did not meet.
    #[error(transparent)]
    Meeting(#[from] comm::RendezvousError),
    /// They meet, and do not reach each other.
    #[error(transparent)]
    Check(#[from] comm::CheckError),
    /// A GPU cannot be used.
    #[error(transparent)]
    Cuda(#[from] cuda::CudaError),
    /// A system's layer program cannot be executed.
    #[error("the layer program has {0}")]
    Program(String),
    /// A policy's placement cannot be.
    #[error(transparent)]
    Placement(#[from] systems::iteration::online::WrongPlacement),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// A rank's thread ended, for a reason that libtorch gave or that is a defect.
    #[error("rank {rank} panicked: {message}")]
    Panic {
        /// The rank.
        rank: usize,
        /// Its last words.
        message: String,
    },
    /// What ranks reported cannot be kept.
    #[error("{0}")]
    Sink(String),
}
