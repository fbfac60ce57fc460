//! `moebench validate runs`: a measured run of a suite beside a predicted one.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::failure::{Failure, OrFail};
use crate::output;
use ::runs::report::beside as shown;
use ::runs::summary::beside;
use ::runs::{prepare, store};
use workloads::Cluster;

/// `moebench validate runs`.
#[derive(Args)]
pub struct RunsArgs {
    /// Folders of runs that were measured, of a seed each
    #[arg(long, value_name = "DIR", num_args = 1.., required = true)]
    measured: Vec<PathBuf>,
    /// Folders of runs of the same suite that were simulated
    #[arg(long, value_name = "DIR", num_args = 1.., required = true)]
    predicted: Vec<PathBuf>,
    /// System that speedups are over
    #[arg(long, default_value = "expert-only")]
    baseline: String,
    /// First iterations of both whose times are left out; memory is the most of all
    #[arg(long, default_value_t = 10)]
    warmup: u32,
    /// Cluster, by name or path, whose reserved memory is added to what is predicted; what is measured is all that a GPU has in use
    #[arg(long)]
    cluster: Option<String>,
    /// A CSV to write, a line for every quantity
    #[arg(long, value_name = "FILE.csv")]
    out: Option<PathBuf>,
    /// A folder to write timelines of both to, rank by rank in one file, where both runs have them
    #[arg(long, value_name = "DIR")]
    timelines: Option<PathBuf>,
}

/// Reads both, shows and writes.
///
/// # Errors
/// Folders that do not hold a run, or what cannot be written.
pub fn run(args: &RunsArgs) -> Result<(), Failure> {
    let reserved = |name: &String| -> Result<f64> {
        let text = prepare::cluster_text("--cluster", name)?;
        Ok(Cluster::parse(name, &text)?.gpu.memory_reserved.value)
    };
    let reserved = args.cluster.as_ref().map(reserved).transpose().or_input()?.unwrap_or(0.0);
    let all = beside::compare(&args.measured, &args.predicted, &args.baseline, (args.warmup, reserved)).or_input()?;
    if let Some(path) = &args.out {
        store::write_text(path, &shown::csv(&all).or_run()?).or_run()?;
    }
    output::print(format!("{}\n\n{}", shown::table(&all), shown::totals(&all))).or_run()?;
    let Some(folder) = &args.timelines else { return Ok(()) };
    let number = beside::timelines(&args.measured, &args.predicted, folder).or_input()?;
    output::print(format!("timelines: {number} in {}", folder.display())).or_run()
}
