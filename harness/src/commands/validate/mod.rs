//! `moebench validate`: published measurements beside predictions, and how far apart they are.

pub mod all;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use workloads::gate::GateStatistics;

use crate::calibrate;
use crate::failure::{Failure, OrFail};
use crate::figures::{adaptive as adaptive_figure, performance_model};
use crate::studies::adaptive::{self, Study};
use crate::studies::layer::LayerShape;
use crate::studies::moe_layer::{self, Rows};
use crate::studies::plans::{self, PLANS_ITERATIONS};
use crate::studies::tables::{adaptive_text, constants_table, end_to_end_text, plans_text, settings_table};
use crate::studies::{end_to_end, errors};
use crate::{output, runs::prepare, runs::store, traces};
use chart::Figure;

/// `moebench validate`.
#[derive(Subcommand)]
pub enum ValidateCommand {
    /// Whole iterations of training runs, each with the plan that was measured
    EndToEnd(EndToEndArgs),
    /// Single MoE layers, forward and backward
    MoeLayer(MoeLayerArgs),
    /// One MoE layer over time, experts in order and experts placed online
    Adaptive(AdaptiveArgs),
    /// SmartMoE's own pick of a plan beside the plan that its authors ran
    Plans(PlansArgs),
    /// Every study of a folder of measurements, and a page that shows what the simulator is worth
    All(all::AllArgs),
}

/// What every study needs.
#[derive(Args)]
pub struct Common {
    /// The measurements
    #[arg(long, value_name = "FILE.csv")]
    pub measured: PathBuf,
    /// Routing trace that they were taken on, as for `run`
    #[arg(long, value_name = "PATH")]
    pub trace: PathBuf,
    /// Print one JSON document instead of tables
    #[arg(long)]
    pub json: bool,
    /// Folder for figures and errors.csv
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

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
    fit_rows: Rows,
    /// Rows that are tested on
    #[arg(long, value_enum, default_value = "all")]
    test_rows: Rows,
    /// The trace's micro-batches that the layer is predicted on, separated by commas; their mean counts
    #[arg(long, value_delimiter = ',', default_value = "0")]
    trace_micro_batches: Vec<usize>,
    #[command(flatten)]
    shape: LayerShape,
}

/// `moebench validate adaptive`.
#[derive(Args)]
pub struct AdaptiveArgs {
    #[command(flatten)]
    common: Common,
    /// Cluster, by name or path
    #[arg(long, default_value = "nico")]
    cluster: String,
    #[command(flatten)]
    study: Study,
    #[command(flatten)]
    shape: LayerShape,
}

/// `moebench validate plans`.
#[derive(Args)]
pub struct PlansArgs {
    /// Suite whose cases state plans for SmartMoE, by name or path
    #[arg(long, default_value = "paper-gpt-authors")]
    suite: String,
    /// Cases of that cluster alone
    #[arg(long)]
    cluster: Option<String>,
    /// Routing trace, as for `run`
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Simulated iterations after the suite's warm-up
    #[arg(long, default_value_t = PLANS_ITERATIONS)]
    iterations: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(command: &ValidateCommand) -> Result<(), Failure> {
    match command {
        ValidateCommand::EndToEnd(args) => end_to_end(args),
        ValidateCommand::MoeLayer(args) => moe_layer(args),
        ValidateCommand::Adaptive(args) => adaptive(args),
        ValidateCommand::Plans(args) => compare_plans(args),
        ValidateCommand::All(args) => all::run(args),
    }
}

fn end_to_end(args: &EndToEndArgs) -> Result<(), Failure> {
    if args.iterations == Some(0) {
        return Err(Failure::Input(anyhow::anyhow!("--iterations 0: expected at least 1")));
    }
    let cluster = |file: &str| match &args.cluster {
        Some(name) => prepare::cluster("--cluster", name),
        None if file.is_empty() => anyhow::bail!("no cluster: expected a column `cluster`, or --cluster"),
        None => prepare::cluster("cluster", file),
    };
    let configurations = end_to_end::read(&args.common.measured, &cluster).or_input()?;
    let trace = traces::load(Some(&args.common.trace)).or_input()?;
    let statistics = gate_statistics(args).or_input()?;
    let report = end_to_end::predict(&configurations, &trace, &statistics, args.iterations).or_input()?;
    let figure = performance_model::end_to_end(&report).draw().or_run()?;
    let rows = report.lines.iter().filter(|line| line.error.is_some()).map(|line| ErrorRow {
        setting: format!("{}/{}/{}", line.gpus, line.gate, line.system),
        measured: line.measured.unwrap_or(f64::NAN),
        predicted: line.predicted.unwrap_or(f64::NAN),
    });
    save(&args.common, "performance_model", &figure, rows).or_run()?;
    show(&args.common, &report, || end_to_end_text(&report)).or_run()
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
        anyhow::ensure!((0.0..=1.0).contains(&value), "{option} {value}: expected 0 to 1");
    }
    Ok(statistics)
}

fn moe_layer(args: &MoeLayerArgs) -> Result<(), Failure> {
    let mut cluster = prepare::cluster("--cluster", &args.cluster).or_input()?;
    let trace = traces::load(Some(&args.common.trace)).or_input()?;
    let read = |path: &Path, rows| moe_layer::read(path, rows, &trace, args.shape, &args.trace_micro_batches);
    let samples = read(&args.common.measured, args.test_rows).or_input()?;
    let mut fitted = Vec::new();
    if let Some(path) = &args.fit {
        let layers = read(path, args.fit_rows).or_input()?;
        (cluster, fitted) = calibrate::fit_layers(&cluster, &trace, layers).or_run()?;
    }
    let settings = moe_layer::predict(&samples, &cluster);
    let figure = performance_model::moe_layer(&settings).draw().or_run()?;
    let rows = settings.iter().flat_map(|setting| {
        setting.pairs.iter().map(|pair| ErrorRow {
            setting: format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch),
            measured: pair.measured,
            predicted: pair.predicted,
        })
    });
    save(&args.common, "performance_model", &figure, rows).or_run()?;
    show(&args.common, &settings, || {
        let fit = if fitted.is_empty() { String::new() } else { format!("{}\n\n", constants_table(&fitted)) };
        format!("{fit}{}", settings_table(&settings))
    })
    .or_run()
}

fn adaptive(args: &AdaptiveArgs) -> Result<(), Failure> {
    let cluster = prepare::cluster("--cluster", &args.cluster).or_input()?;
    let trace = traces::load(Some(&args.common.trace)).or_input()?;
    let series = adaptive::read(&args.common.measured, &trace, args.shape, args.study).or_input()?;
    let steps = series.predict(&cluster);
    let report = adaptive::Report::new(&series.samples, &steps).context("no iterations").or_input()?;
    let figure = adaptive_figure::draw(&series.samples, &steps).or_run()?;
    let rows = series.samples.iter().zip(&steps).flat_map(|(sample, step)| {
        [("static", sample.measured_static, step.in_order), ("online", sample.measured_online, step.online)].map(
            |(placement, measured, predicted)| ErrorRow {
                setting: format!("iteration {}, {placement}", sample.iteration),
                measured,
                predicted,
            },
        )
    });
    save(&args.common, "adaptive", &figure, rows).or_run()?;
    show(&args.common, &report, || adaptive_text(&report)).or_run()
}

fn compare_plans(args: &PlansArgs) -> Result<(), Failure> {
    if args.iterations == 0 {
        return Err(Failure::Input(anyhow::anyhow!("--iterations 0: expected at least 1")));
    }
    let suite = prepare::suite(&args.suite).or_input()?;
    let trace = traces::load(args.trace.as_deref()).or_input()?;
    let compared = plans::compare(&args.suite, suite, args.cluster.as_deref(), &trace, args.iterations).or_input()?;
    let text = if args.json {
        format!("{:#}", serde_json::json!({ "trace": trace.name(), "comparisons": compared }))
    } else {
        plans_text(&compared, args.iterations)
    };
    output::print(text).or_run()
}

struct ErrorRow {
    setting: String,
    measured: f64,
    predicted: f64,
}

fn save(common: &Common, name: &str, figure: &Figure, rows: impl Iterator<Item = ErrorRow>) -> Result<()> {
    let Some(folder) = &common.out else { return Ok(()) };
    store::write_figure(&folder.join("figures").join(name), figure)?;
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["setting", "measured_s", "predicted_s", "error"])?;
    for row in rows {
        let error = errors::Pair { predicted: row.predicted, measured: row.measured }.error();
        let numbers = [row.measured, row.predicted, error].map(|value| format!("{value:.6}"));
        writer.write_record(std::iter::once(row.setting).chain(numbers))?;
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    store::write_atomically(&folder.join("errors.csv"), |file| Ok(file.write_all(&bytes)?))
}

/// Everything on standard output: the JSON document, or the text.
fn show(common: &Common, report: &impl Serialize, text: impl Fn() -> String) -> Result<()> {
    let mut out = output::stdout();
    if common.json {
        let mut document = serde_json::to_value(report)?;
        if let Some(fields) = document.as_object_mut() {
            fields.insert("measured_file".into(), common.measured.display().to_string().into());
        }
        writeln!(out, "{document:#}").context("standard output")
    } else {
        writeln!(out, "{}", text()).context("standard output")?;
        if let Some(folder) = &common.out {
            writeln!(out, "\nfigures and errors.csv  {}", folder.display())?;
        }
        Ok(())
    }
}
