//! `moebench validate published`: training runs of modern models that others published.

use std::path::PathBuf;

use chart::Width;
use clap::Args;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::figures::files::{self, Format};
use runs::traces;
use studies::Study;
use studies::published::{PublishedErrors, PublishedRuns};
use studies::tables::constants_table;

/// `moebench validate published`.
#[derive(Args)]
pub struct PublishedArgs {
    /// Routing trace for runs whose gate was free, as for `run`; balanced but for chance when absent
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Folder for the figure
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &PublishedArgs) -> Result<(), Failure> {
    let trace = args.trace.as_deref().map(|path| traces::load(Some(path))).transpose().or_input()?;
    let found = PublishedRuns::new(trace.as_ref()).and_then(|runs| runs.predict()).or_input()?;
    if let Some(folder) = &args.out {
        files::write(folder, &found.figure(), Width::Page, &[Format::Svg, Format::Pdf]).or_run()?;
    }
    let text = if args.json { format!("{:#}", serde_json::json!(found)) } else { text(&found) };
    output::print(text).or_run()
}

fn text(found: &PublishedErrors) -> String {
    let (pairs, wrong) = found.wrong_orders();
    let wrong: String = wrong.iter().map(|wrong| format!("  wrong: {wrong}\n")).collect();
    let right = pairs - wrong.lines().count();
    format!(
        "{}\n\n{}\n\nconstants of {} fitted to half of its runs:\n{}\n\norder of plans of one model on as many GPUs \
         with one routing and batch, nothing fitted: {right} of {pairs} right\n{wrong}beyond the card's memory: {}\n\nnot simulated, with what is not \
         modelled:\n{}\n\npublished, blind, fitted: tokens per second and GPU",
        found.table(),
        found.statistics(),
        studies::published::CHIP,
        constants_table(&found.constants),
        found.beyond_memory().len(),
        found.outside()
    )
}
