//! `moebench validate end-to-end`: whole iterations of training runs.

use anyhow::{Result, bail, ensure};
use clap::Args;
use workloads::gate::GateStatistics;

use super::{Common, ErrorRow};
use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use runs::{prepare, traces};
use studies::Study;
use studies::end_to_end::EndToEnd;
use studies::figures::performance_model;
use studies::measurements::iterations;
use studies::measurements::order::{IterationErrors, ORDER_TOLERANCE};
use studies::tables::{lines_table, statistics_table};

/// `moebench validate end-to-end`.
#[derive(Args)]
pub struct EndToEndArgs {
    #[command(flatten)]
    common: Common,
    /// Cluster, by name or path, instead of the one that the file names
    #[arg(long)]
    cluster: Option<String>,
    /// Share of second choices that a capacity gate keeps, instead of the fitted one
    #[arg(long, value_name = "SHARE")]
    second_choice_kept: Option<f64>,
    /// How much a balance loss flattens the choices, instead of the fitted exponent
    #[arg(long, value_name = "EXPONENT")]
    balance_loss_flattening: Option<f64>,
    /// Simulate that many of the iterations after the warm-up instead of all
    #[arg(long)]
    iterations: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &EndToEndArgs) -> Result<(), Failure> {
    args.iterations.map_or(Ok(()), |number| check_extent("--iterations", number)).or_input()?;
    let cluster = |file: &str| match &args.cluster {
        Some(name) => prepare::cluster("--cluster", name),
        None if file.is_empty() => bail!("no cluster: expected a column `cluster`, or --cluster"),
        None => prepare::cluster("cluster", file),
    };
    let configurations = iterations::read(&args.common.measured, &cluster).or_input()?;
    let trace = &traces::load(Some(&args.common.trace)).or_input()?;
    let statistics = gate_statistics(args).or_input()?;
    let study = EndToEnd { configurations, trace, statistics, most: args.iterations, explanations: &[] };
    let outcome = study.predict().or_input()?;
    let figure = performance_model::end_to_end("performance_model", &outcome);
    let rows = outcome
        .lines
        .iter()
        .filter_map(|line| Some(ErrorRow::new(format!("{}/{}/{}", line.gpus, line.gate, line.system), line.pair()?)));
    args.common.save(&figure, rows).or_run()?;
    args.common.show(&outcome, || text(&outcome)).or_run()
}

fn gate_statistics(args: &EndToEndArgs) -> Result<GateStatistics> {
    let fitted = GateStatistics::default();
    let statistics = GateStatistics {
        second_choice_kept: args.second_choice_kept.unwrap_or(fitted.second_choice_kept),
        balance_loss_flattening: args.balance_loss_flattening.unwrap_or(fitted.balance_loss_flattening),
    };
    for (option, value) in [
        ("--second-choice-kept", statistics.second_choice_kept),
        ("--balance-loss-flattening", statistics.balance_loss_flattening),
    ] {
        ensure!((0.0..=1.0).contains(&value), "{option} {value}: expected 0 to 1");
    }
    Ok(statistics)
}

fn text(outcome: &IterationErrors) -> String {
    let sums = [("medians".to_owned(), outcome.errors), ("sums, start-up included".to_owned(), outcome.sum_errors)];
    let errors = statistics_table(&sums, "relative errors of");
    let mut text = format!("{}\n\n{errors}\n", lines_table(&outcome.lines));
    text += &order(outcome);
    text += &ends(outcome);
    for ((cluster, gpus), speedup) in outcome.headlines() {
        text += &format!(
            "smartmoe over fastermoe, {gpus} GPUs of {cluster}, no-drop, by sums: {:.2} measured, {:.2} predicted\n",
            speedup.measured, speedup.predicted
        );
    }
    text + "predicted: simulated; medians leave out the first 10 iterations"
}

fn order(outcome: &IterationErrors) -> String {
    let apart = ORDER_TOLERANCE * 100.0;
    let (right, pairs) = (outcome.ordered_right, outcome.ordered_pairs);
    let wrong: String = outcome.ordered_wrong.iter().map(|wrong| format!("  wrong: {wrong}\n")).collect();
    format!("\norder of systems, for pairs measured more than {apart:.0}% apart: {right} of {pairs} right\n{wrong}")
}

/// Whether runs end as predicted, and what was not simulated.
fn ends(outcome: &IterationErrors) -> String {
    let ends: Vec<bool> = outcome.lines.iter().filter_map(|line| line.status_agrees).collect();
    let right = ends.iter().filter(|agrees| **agrees).count();
    let mut text = format!("runs that end as predicted (ok or out of memory): {right} of {}\n", ends.len());
    let unknown: Vec<&str> =
        outcome.lines.iter().filter(|line| line.status_agrees.is_none()).map(|line| line.status.as_str()).collect();
    if let Some(first) = unknown.first() {
        let known = iterations::known_systems().join(", ");
        text += &format!("{} configurations not simulated: {first}; known: {known}\n", unknown.len());
    }
    text
}
