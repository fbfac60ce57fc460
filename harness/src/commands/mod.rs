//! One file per command: what it asks of the rest, and what it prints.

pub mod bench;
pub mod calibrate;
pub mod claims;
pub mod doctor;
pub mod import_model;
pub mod list;
pub mod new;
pub mod plan;
pub mod report;
pub mod run;
pub mod show;
pub mod trace;
pub mod train;
pub mod validate;

use clap::ValueEnum;
use workloads::error::MOST_EXTENT;

/// Whose plans a system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanRule {
    /// Its own.
    Own,
    /// Those that SmartMoE's search finds for its programs.
    Searched,
}

/// Refuses a count of none, and one that nothing has so many of.
///
/// # Errors
/// A value of 0, or above the bound of descriptions.
fn check_extent(flag: &str, value: usize) -> anyhow::Result<()> {
    anyhow::ensure!(value > 0, "{flag} 0: expected at least 1");
    anyhow::ensure!(value <= MOST_EXTENT, "{flag} {value}: expected 1 to {MOST_EXTENT}");
    Ok(())
}
