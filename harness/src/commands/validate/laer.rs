//! `moebench validate laer`: LAER-MoE's four systems on 32 A100s.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::store;
use studies::Study;
use studies::laer::{CLUSTER, LaerErrors, LaerStudy};
use studies::page::Section;
use studies::tables::constants_table;

/// `moebench validate laer`.
#[derive(Args)]
pub struct LaerArgs {
    /// Mean iterations by dataset, method, model_name and aux_loss; other models by columns (layers, hidden, heads, experts, ..)
    #[arg(long, value_name = "FILE.csv")]
    measured: PathBuf,
    /// Folder with the measured loads, rank_loads*.csv or .csv.gz
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Cluster, by name or path: one with fitted constants tells what they are worth on rows that the fit did not see
    #[arg(long, default_value = CLUSTER)]
    cluster: String,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Folder for laer.md, its figure laer.svg, and the cluster with the fitted constants
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &LaerArgs) -> Result<(), Failure> {
    let study = LaerStudy::new(&args.measured, &args.data, &args.cluster).or_input()?;
    let found = study.predict().or_input()?;
    if let Some(folder) = &args.out {
        let section = study.section(&found).or_run()?;
        let fitted = study.fitted_cluster(&args.cluster, &args.measured, &found.constants).or_run()?;
        save(folder, &section, fitted).or_run()?;
    }
    let text = if args.json { format!("{:#}", serde_json::json!(found)) } else { text(&found) };
    output::print(text).or_run()
}

fn save(folder: &std::path::Path, section: &Section, fitted: Option<String>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    section.save_figures(folder)?;
    if let Some(text) = fitted {
        store::write_text(&folder.join("laer_fitted.toml"), &text)?;
    }
    let page = format!("# {}\n\n{}\n\n{}", section.title, section.text.trim_end(), section.table_of_claims());
    store::write_text(&folder.join("laer.md"), &page)
}

fn text(found: &LaerErrors) -> String {
    let constants = match found.constants.is_empty() {
        true => "no fit: fewer rows than constants".to_owned(),
        false => format!("constants of {} fitted to all rows:\n{}", found.cluster, constants_table(&found.constants)),
    };
    format!(
        "{}\n\n{}\n\n{}\n\n{}\n{constants}\n\nmeasured, blind, fitted: seconds an iteration; other models, other systems: errors by \
         constants fitted to those",
        found.table(),
        found.statistics(),
        found.orders(),
        found.wrong()
    )
}
