//! The systems: one file, one paper.

pub mod alpa;
pub mod deepspeed;
pub mod expert_only;
pub mod fastermoe;
pub mod smartmoe;
pub mod tutel;
