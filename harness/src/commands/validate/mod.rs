//! `moebench validate`: published measurements beside predictions, and how far apart they are.

pub mod adaptive;
pub mod all;
pub mod end_to_end;
pub mod laer;
pub mod moe_layer;
pub mod plans;
pub mod published;
pub mod runs;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use chart::Width;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::failure::Failure;
use crate::output;
use ::runs::figures::PaperFigure;
use ::runs::figures::files::{self, Format};
use ::runs::store;
use ::runs::summary::errors::Pair;

/// `moebench validate`.
#[derive(Subcommand)]
pub enum ValidateCommand {
    /// Whole iterations of training runs, each with the plan that was measured
    EndToEnd(end_to_end::EndToEndArgs),
    /// Single MoE layers, forward and backward
    MoeLayer(moe_layer::MoeLayerArgs),
    /// One MoE layer over time, experts in order and experts placed online
    Adaptive(adaptive::AdaptiveArgs),
    /// SmartMoE's own pick of a plan beside the plan that its authors ran
    Plans(plans::PlansArgs),
    /// Published training runs of modern models, with the chips' constants and with a few fitted
    Published(published::PublishedArgs),
    /// LAER-MoE's four systems on 32 A100s, with the constants that it states and with a few fitted
    Laer(laer::LaerArgs),
    /// A measured run of a suite beside a simulated one: iterations, phases, memory
    Runs(runs::RunsArgs),
    /// Every study of a folder of measurements, and a page that shows what the simulator is worth
    All(all::AllArgs),
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(command: &ValidateCommand) -> Result<(), Failure> {
    match command {
        ValidateCommand::EndToEnd(args) => end_to_end::run(args),
        ValidateCommand::MoeLayer(args) => moe_layer::run(args),
        ValidateCommand::Adaptive(args) => adaptive::run(args),
        ValidateCommand::Plans(args) => plans::run(args),
        ValidateCommand::Published(args) => published::run(args),
        ValidateCommand::Laer(args) => laer::run(args),
        ValidateCommand::Runs(args) => runs::run(args),
        ValidateCommand::All(args) => all::run(args),
    }
}

/// What every study of one file needs.
#[derive(Args)]
struct Common {
    /// The measurements
    #[arg(long, value_name = "FILE.csv")]
    measured: PathBuf,
    /// Routing trace that they were taken on, as for `run`
    #[arg(long, value_name = "PATH")]
    trace: PathBuf,
    /// Print one JSON document instead of tables
    #[arg(long)]
    json: bool,
    /// Folder for figures and errors.csv
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// A row of errors.csv.
#[derive(Serialize)]
struct ErrorRow {
    setting: String,
    measured_s: String,
    predicted_s: String,
    error: String,
}

impl ErrorRow {
    fn new(setting: String, pair: Pair) -> Self {
        let [measured_s, predicted_s, error] =
            [pair.measured, pair.predicted, pair.error()].map(|value| format!("{value:.6}"));
        Self { setting, measured_s, predicted_s, error }
    }
}

impl Common {
    /// Saves the figure and errors.csv, if a folder was given.
    fn save(&self, figure: &PaperFigure, rows: impl Iterator<Item = ErrorRow>) -> Result<()> {
        let Some(folder) = &self.out else { return Ok(()) };
        files::write(&folder.join("figures"), figure, Width::Page, &[Format::Svg, Format::Pdf])?;
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in rows {
            writer.serialize(row)?;
        }
        let text = String::from_utf8(writer.into_inner().map_err(|error| error.into_error())?)?;
        store::write_text(&folder.join("errors.csv"), &text)
    }

    /// Everything on standard output: the JSON document, or the text.
    fn show(&self, outcome: &impl Serialize, text: impl Fn() -> String) -> Result<()> {
        let mut out = output::stdout();
        if self.json {
            let mut document = serde_json::to_value(outcome)?;
            if let Some(fields) = document.as_object_mut() {
                fields.insert("measured_file".into(), self.measured.display().to_string().into());
            }
            return writeln!(out, "{document:#}").context("standard output");
        }
        writeln!(out, "{}", text()).context("standard output")?;
        if let Some(folder) = &self.out {
            writeln!(out, "\nfigures and errors.csv  {}", folder.display())?;
        }
        Ok(())
    }
}
