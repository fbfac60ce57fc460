//! The `moebench` binary: its commands, and [`pipeline`], the way of a run from a command's request to its figures.
//!
//! What commands ask for is done by two crates beside this one: [`runs`] prepares, runs, stores and shows comparisons,
//! [`studies`] holds the simulator against published measurements and fits a cluster's constants to them.

pub mod cli;
pub mod commands;
pub mod failure;
pub mod output;
pub mod pipeline;
mod progress;
