//! `moebench validate all`: every study of a folder of measurements, as one page with figures.
//!
//! The page states what the command measured and nothing else; what people know about a configuration is in
//! `explanations.csv` beside the page and is shown with the configurations that are far off.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::store;
use runs::summary::model_error;
use studies::page::{self, Section};
use studies::{Inputs, Unsaid};

/// `moebench validate all`.
#[derive(Args)]
pub struct AllArgs {
    /// Folder with any of end_to_end*.csv, moe_layer*.csv and adaptive_everyN.csv
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Routing trace that they were taken on, as for `run` [default: moe_trace.tar.xz in that folder]
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Folder for the page and its figures
    #[arg(long, value_name = "DIR", default_value = "results/validation")]
    out: PathBuf,
    #[command(flatten)]
    unsaid: Unsaid,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &AllArgs) -> Result<(), Failure> {
    let explanations = args.out.join("explanations.csv");
    let inputs = Inputs::read(&args.data, args.trace.as_deref(), args.unsaid.clone(), &explanations).or_input()?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string()).or_run()?;
    let mut sections = studies::sections(&inputs).or_input()?;
    sections.extend(speed(&args.out));
    save(&args.out, &page::markdown(&inputs, &sections).or_input()?, &sections).or_run()
}

/// What the benches wrote beside the page.
fn speed(out: &Path) -> Option<Section> {
    if !out.join("benchmarks.md").exists() {
        return None;
    }
    let mut section = Section::new("Speed");
    section.add("One placement decision, one pool search, one simulated iteration: [benchmarks](benchmarks.md).");
    Some(section)
}

fn save(out: &Path, page: &str, sections: &[Section]) -> Result<()> {
    sections.iter().try_for_each(|section| section.save_figures(out))?;
    let errors = studies::errors(sections);
    store::write_text(&out.join(model_error::FILE), &model_error::csv(&errors)?)?;
    store::write_text(&out.join("README.md"), page)?;
    output::print(format!("page  {}", out.join("README.md").display()))
}
