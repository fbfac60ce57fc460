//! One file per command: what it asks of the rest, and what it prints.

pub mod bench;
pub mod calibrate;
pub mod claims;
pub mod compare;
pub mod doctor;
pub mod import_log;
pub mod import_model;
pub mod list;
pub mod merge;
pub mod new;
pub mod plan;
pub mod plot;
pub mod report;
pub mod run;
pub mod shell;
pub mod show;
pub mod table;
pub mod trace;
pub mod train;
pub mod validate;

use std::path::Path;

use clap::ValueEnum;
use runs::part::Pattern;
use workloads::error::MOST_EXTENT;
use workloads::{EngineKind, Suite};

use crate::output;

/// Whose plans a system runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PlanRule {
    /// Its own.
    Own,
    /// Those that SmartMoE's search finds for its programs.
    Searched,
}

/// Says that an emulated time and the simulated one beside it are of two machines, where the cluster is one that comes with moebench.
fn note_emulation(engine: EngineKind, suite: &Suite) {
    let others = suite.cases.iter().find(|case| engine == EngineKind::Emulated && case.cluster.file.is_none());
    if let Some(case) = others {
        output::say(format_args!(
            "emulated: computation is this machine's, the simulated times beside it have that of {}: \
             `moebench calibrate measure` makes a cluster of this machine",
            case.cluster
        ));
    }
}

/// Refuses to write of some cases where `moebench report` reads what is of all.
///
/// # Errors
/// Some cases, and no folder for them.
fn check_part(case: &[Pattern], out: Option<&Path>) -> anyhow::Result<()> {
    let message = "--case: expected --out, another folder: figures and tables in the run's own are of all its cases";
    anyhow::ensure!(case.is_empty() || out.is_some(), message);
    Ok(())
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
