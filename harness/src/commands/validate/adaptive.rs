//! `moebench validate adaptive`: one MoE layer over time, experts in order and experts placed online.

use anyhow::{Context, Result};
use clap::Args;

use super::{Common, ErrorRow};
use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use runs::summary::errors::Pair;
use runs::{prepare, traces};
use studies::figures::adaptive as figure;
use studies::measurements::layer::LayerShape;
use studies::measurements::series::{self, MeasuredStep, PredictedStep, Rhythm, SeriesErrors, SeriesSetup};
use studies::tables::{percent, series_table};

/// `moebench validate adaptive`.
#[derive(Args)]
pub struct AdaptiveArgs {
    #[command(flatten)]
    common: Common,
    /// Cluster, by name or path
    #[arg(long, default_value = studies::PLACEMENT_CLUSTER)]
    cluster: String,
    #[command(flatten)]
    setup: SeriesSetup,
    #[command(flatten)]
    rhythm: Rhythm,
    #[command(flatten)]
    shape: LayerShape,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &AdaptiveArgs) -> Result<(), Failure> {
    check_extent("--every", args.rhythm.every).or_input()?;
    let cluster = prepare::cluster("--cluster", &args.cluster).or_input()?;
    let trace = traces::load(Some(&args.common.trace)).or_input()?;
    let series = series::read(&args.common.measured, &trace, args.shape, args.setup).or_input()?;
    let steps = series.predict(&cluster, args.rhythm);
    let errors = SeriesErrors::new(&series.samples, &steps).context("no iterations").or_input()?;
    let figure = figure::figure("adaptive", &series.samples, &steps);
    args.common.save(&figure, series.samples.iter().zip(&steps).flat_map(error_rows)).or_run()?;
    args.common.show(&errors, || text(&errors)).or_run()
}

fn error_rows((sample, step): (&MeasuredStep, &PredictedStep)) -> [ErrorRow; 2] {
    [("static", sample.measured_static, step.in_order), ("online", sample.measured_online, step.online)].map(
        |(placement, measured, predicted)| {
            ErrorRow::new(format!("iteration {}, {placement}", sample.iteration), Pair { predicted, measured })
        },
    )
}

fn text(errors: &SeriesErrors) -> String {
    let r = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    format!(
        "{}\n\ncorrelation: {} in order, {} placed online\nmean gain of placement: {:.4} measured, {:.4} predicted ({})\n\
         placements taken: {} measured, {} predicted, {} at the same iterations",
        series_table(errors),
        r(errors.static_correlation),
        r(errors.online_correlation),
        errors.measured_gain,
        errors.predicted_gain,
        percent(errors.predicted_gain / errors.measured_gain - 1.0),
        errors.measured_moves.map_or("unknown".to_owned(), |moves| moves.to_string()),
        errors.predicted_moves,
        errors.common_moves,
    )
}
