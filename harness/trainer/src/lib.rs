//! The training engine: a real transformer with Mixture-of-Experts layers, trained by real ranks under a system's plan,
//! policy and layer programs.
//!
//! What a system decides changes the time of training, never its result: every plan, placement and program computes the same
//! gradients, up to the order of sums.
//!
//! | to find | look in |
//! |---|---|
//! | a run and the checks before it | [`setup`], [`data`], [`comm::launch`] |
//! | all ranks of this process, or this process among others | [`world`], [`processes`] |
//! | one rank's iteration | [`rank`] |
//! | an MoE layer | [`layer`] |
//! | everything else of the model | [`model`] |
//! | time, measured or virtual | [`clock`] |
//! | messages between ranks | [`comm`] |
//! | GPUs beyond what libtorch's bindings reach | [`cuda`] |
//! | kernels of our own for GPUs | [`kernels`] |
//! | an MoE layer or a step, timed alone | [`bench`] |
//! | the gate's choices as a trace | [`record`] |
//! | a run that goes on where it was interrupted | [`checkpoint`] |
//!
//! libtorch's calls panic when they fail. Whatever a user can get wrong is refused before the first call; what is left
//! (memory that runs out, a defect) ends the rank's thread, and [`world`] reports the panic's message.

pub mod bench;
pub mod checkpoint;
pub mod clock;
pub mod comm;
pub mod cuda;
pub mod data;
mod error;
pub mod exit;
mod files;
mod hash;
mod host;
pub mod kernels;
pub mod layer;
pub mod model;
#[cfg(test)]
mod pairs;
pub mod processes;
pub mod rank;
pub mod record;
pub mod setup;
pub mod world;

pub use error::TrainError;
