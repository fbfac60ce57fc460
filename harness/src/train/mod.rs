//! The training engine: a real transformer with Mixture-of-Experts layers, trained by real ranks under a system's plan,
//! policy and layer programs.
//!
//! What a system decides changes the time of training, never training itself: every plan, placement and program computes
//! the same gradients, up to the order of sums.

pub mod comm;
pub mod experts;
pub mod gate;
pub mod moe;
pub mod parameters;
pub mod rows;
pub mod schedule;
pub mod shipping;
pub mod tape;
pub mod timer;

/// Why training stopped.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Another rank is gone, or an exchange failed.
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    /// A system's layer program cannot be executed.
    #[error("the layer program has {0}")]
    Program(String),
}
pub mod data;
pub mod dense;
pub mod groups;
pub mod migrate;
pub mod optimizer;
pub mod rank;
pub mod setup;
