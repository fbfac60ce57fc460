//! `moebench validate moe-layer`: single MoE layers, forward and backward.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::{Common, ErrorRow};
use crate::failure::{Failure, OrFail};
use runs::{prepare, traces};
use studies::figures::performance_model;
use studies::measurements::layer::LayerShape;
use studies::measurements::layers::{self, Hundreds, LayerErrors};
use studies::moe_layer::{LayerOutcome, LayerTest};
use studies::tables::{constants_table, settings_table};

/// `moebench validate moe-layer`.
#[derive(Args)]
pub struct MoeLayerArgs {
    #[command(flatten)]
    common: Common,
    /// Cluster, by name or path
    #[arg(long, default_value = "nico")]
    cluster: String,
    /// Fit the layer's constants to this file first; the cluster's own are used otherwise
    #[arg(long, value_name = "FILE.csv")]
    fit: Option<PathBuf>,
    /// Rows that are fitted to, by the parity of (iteration - 1) / 100
    #[arg(long, value_enum, default_value = "all")]
    fit_rows: Hundreds,
    /// Rows that are tested on
    #[arg(long, value_enum, default_value = "all")]
    test_rows: Hundreds,
    /// The trace's micro-batches that the layer is predicted on, separated by commas; their mean counts
    #[arg(long, value_delimiter = ',', default_value = "0")]
    trace_micro_batches: Vec<usize>,
    #[command(flatten)]
    shape: LayerShape,
}

/// Runs the command.
///
/// # Errors
/// Bad input, a fit that fails, or what cannot be written.
pub fn run(args: &MoeLayerArgs) -> Result<(), Failure> {
    let cluster = &prepare::cluster("--cluster", &args.cluster).or_input()?;
    let trace = &traces::load(Some(&args.common.trace)).or_input()?;
    let read = |path: &Path, rows| layers::read(path, rows, trace, args.shape, &args.trace_micro_batches);
    let tested = read(&args.common.measured, args.test_rows).or_input()?;
    let fitted_to = args.fit.as_deref().map_or(Ok(Vec::new()), |path| read(path, args.fit_rows)).or_input()?;
    let outcome = LayerTest { trace, cluster, fitted_to, tested }.run().or_run()?;
    let figure = performance_model::moe_layer("performance_model", &outcome.settings);
    args.common.save(&figure, outcome.settings.iter().flat_map(error_rows)).or_run()?;
    args.common.show(&outcome.settings, || text(&outcome)).or_run()
}

fn error_rows(setting: &LayerErrors) -> impl Iterator<Item = ErrorRow> {
    let name = format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch);
    setting.pairs.iter().map(move |pair| ErrorRow::new(name.clone(), *pair))
}

fn text(outcome: &LayerOutcome) -> String {
    let settings = settings_table(&outcome.settings);
    if outcome.fitted.is_empty() {
        return settings.to_string();
    }
    format!("{}\n\n{settings}", constants_table(&outcome.fitted))
}
