//! The training engine: a real transformer with Mixture-of-Experts layers, trained by real ranks under a system's plan,
//! policy and layer programs.
//!
//! What a system decides changes the time of training, never training itself: every plan, placement and program computes
//! the same gradients, up to the order of sums.

pub mod comm;

pub mod cuda;
pub mod data;
pub mod launch;
