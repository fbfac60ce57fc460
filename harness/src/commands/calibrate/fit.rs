//! `moebench calibrate fit`: constants of a cluster from measurements.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use workloads::Cluster;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::summary::errors::quantile;
use runs::{prepare, store, traces};
use studies::calibrate::constants::{ADAPTIVE_CONSTANTS, END_TO_END_CONSTANTS, Fitted, Point};
use studies::calibrate::targets::Targets;
use studies::calibrate::{self, write};
use studies::measurements;
use studies::measurements::iterations::{self, Configuration};
use studies::measurements::layer::LayerShape;
use studies::measurements::layers::{self, Hundreds, MeasuredLayer};
use studies::measurements::series::{self, Series, SeriesSetup};
use studies::tables::constants_table;

/// `moebench calibrate fit`.
#[derive(Args)]
pub struct FitArgs {
    /// Cluster, by name or path, that the fit starts from; constants that are not fitted stay
    #[arg(long)]
    cluster: String,
    /// Whole iterations, as for `validate end-to-end`
    #[arg(long, value_name = "FILE.csv")]
    measured_end_to_end: Option<PathBuf>,
    /// Single layers, as for `validate moe-layer`; several files are fitted to at once
    #[arg(long, value_name = "FILE.csv", num_args = 1..)]
    measured_layer: Vec<PathBuf>,
    /// A layer over time, as for `validate adaptive`; fitted to its static half
    #[arg(long, value_name = "FILE.csv")]
    measured_adaptive: Option<PathBuf>,
    /// Routing trace that all were taken on
    #[arg(long, value_name = "PATH")]
    trace: PathBuf,
    /// The TOML to write
    #[arg(long, value_name = "FILE.toml")]
    out: PathBuf,
    /// Constants to fit, separated by commas [default: those that the kinds of measurement determine]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    constants: Option<Vec<String>>,
    /// Whole iterations: fit to runs on that many GPUs alone, and report the errors of the others
    #[arg(long, value_name = "GPUS")]
    only_gpus: Option<usize>,
    /// Whole iterations simulated per configuration, spread over the measured ones
    #[arg(long, default_value_t = 6)]
    iterations: usize,
    /// Single layers: rows that are fitted to, by the parity of (iteration - 1) / 100
    #[arg(long, value_enum, default_value = "all")]
    fit_rows: Hundreds,
    #[command(flatten)]
    shape: LayerShape,
    #[command(flatten, next_help_heading = "The layer over time")]
    setup: SeriesSetup,
}

/// Runs the command.
///
/// # Errors
/// Bad input, a fit that fails, or a file that cannot be written.
pub fn run(args: &FitArgs) -> Result<(), Failure> {
    let text = prepare::cluster_text("--cluster", &args.cluster).or_input()?;
    let cluster = Cluster::parse(&args.cluster, &text).or_input()?;
    let trace = &traces::load(Some(&args.trace)).or_input()?;
    let measured = Measured::read(args, &cluster, trace).or_input()?;
    let names = args.constants.clone().unwrap_or_else(|| default_constants(args, &cluster, &measured.layers));
    let start = Point { cluster, gate: GateStatistics::default() };
    calibrate::constants::Space::new(&start, &names).or_input()?;
    let targets = measured.targets(args, trace);
    let source = source(args, targets.end_to_end.len()).or_input()?;
    let (point, fitted) = calibrate::fit(&start, &names, &targets).or_run()?;
    write_cluster(args, &text, &start.cluster, &fitted, &source).or_run()?;
    show(args, &point, &fitted, &targets, &measured.held_out(args, trace)).or_run()
}

/// Measurements of all kinds that were given.
struct Measured<'a> {
    configurations: Vec<Configuration>,
    layers: Vec<MeasuredLayer<'a>>,
    series: Option<Series<'a>>,
}

impl<'a> Measured<'a> {
    fn read(args: &FitArgs, cluster: &Cluster, trace: &'a RoutingTrace) -> Result<Self> {
        ensure!(
            args.measured_end_to_end.is_some() || !args.measured_layer.is_empty() || args.measured_adaptive.is_some(),
            "nothing to fit to: expected --measured-end-to-end, --measured-layer or --measured-adaptive"
        );
        let mut layers = Vec::new();
        for path in &args.measured_layer {
            layers.extend(layers::read(path, args.fit_rows, trace, args.shape, &[0])?);
        }
        let series = |path: &PathBuf| series::read(path, trace, args.shape, args.setup);
        Ok(Self {
            configurations: configurations(args, cluster)?,
            layers,
            series: args.measured_adaptive.as_ref().map(series).transpose()?,
        })
    }

    /// What is fitted to.
    fn targets(&'a self, args: &FitArgs, trace: &'a RoutingTrace) -> Targets<'a> {
        let (end_to_end, layers) = (self.sampled(args, true), self.layers.iter().collect());
        Targets { trace, end_to_end, layers, series: self.series.as_ref() }
    }

    /// Configurations on other numbers of GPUs than those that are fitted to.
    fn held_out(&'a self, args: &FitArgs, trace: &'a RoutingTrace) -> Targets<'a> {
        Targets { end_to_end: self.sampled(args, false), ..Targets::none(trace) }
    }

    /// Configurations that are fitted to or not, with the iterations to simulate.
    fn sampled(&self, args: &FitArgs, fitted: bool) -> Vec<(&Configuration, Vec<usize>)> {
        let chosen = self.configurations.iter().filter(|configuration| args.fits(configuration) == fitted);
        chosen.map(|configuration| (configuration, configuration.iterations(Some(args.iterations)))).collect()
    }
}

impl FitArgs {
    fn fits(&self, configuration: &Configuration) -> bool {
        self.only_gpus.is_none_or(|gpus| configuration.gpus == gpus)
    }
}

fn configurations(args: &FitArgs, cluster: &Cluster) -> Result<Vec<Configuration>> {
    check_extent("--iterations", args.iterations)?;
    let Some(path) = &args.measured_end_to_end else { return Ok(Vec::new()) };
    let mut all = iterations::read(path, &|_| Ok(cluster.clone()))?;
    all.retain(|configuration| configuration.missing().is_none() && configuration.measured().is_some());
    ensure!(all.iter().any(|configuration| args.fits(configuration)), "{}: no configuration to fit to", path.display());
    Ok(all)
}

fn default_constants(args: &FitArgs, cluster: &Cluster, layers: &[MeasuredLayer]) -> Vec<String> {
    let owned = |given: bool, names: &[&str]| -> Vec<String> {
        names.iter().filter(|_| given).map(|&name| name.to_owned()).collect()
    };
    let of_layers = if layers.is_empty() { Vec::new() } else { calibrate::layer_constants(cluster, layers) };
    let kinds = [
        owned(args.measured_end_to_end.is_some(), &END_TO_END_CONSTANTS),
        of_layers,
        owned(args.measured_adaptive.is_some(), &ADAPTIVE_CONSTANTS),
    ];
    let mut names: Vec<String> = Vec::new();
    for name in kinds.into_iter().flatten() {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Where the fitted values come from: the files and their hashes, and what of them was used.
fn source(args: &FitArgs, configurations: usize) -> Result<String> {
    let files = args.measured_end_to_end.iter().chain(&args.measured_layer).chain(&args.measured_adaptive);
    let named: Vec<String> = files.map(|path| hashed(path)).collect::<Result<_>>()?;
    let subset = args.only_gpus.map_or(String::new(), |gpus| format!(", {gpus} GPUs alone"));
    let layers = !args.measured_layer.is_empty() || args.measured_adaptive.is_some();
    let width = if layers { format!(", width {}", args.shape.hidden) } else { String::new() };
    let SeriesSetup { gpus, layer, micro_batch } = args.setup;
    let series = format!(", layer {layer} over time on {gpus} GPUs at micro-batch {micro_batch}");
    let series = args.measured_adaptive.as_ref().map_or(String::new(), |_| series);
    let count = if configurations > 0 { format!(", {configurations} configurations") } else { String::new() };
    let rows = if args.fit_rows == Hundreds::All { String::new() } else { format!(", {:?} rows", args.fit_rows) };
    Ok(format!("fitted to {}{count}{subset}{rows}{width}{series}", named.join(" and ")))
}

fn hashed(path: &Path) -> Result<String> {
    let (name, hash) = measurements::named(path)?;
    Ok(format!("{name} (sha256 {hash})"))
}

fn write_cluster(args: &FitArgs, text: &str, start: &Cluster, fitted: &[Fitted], source: &str) -> Result<()> {
    let mut cluster = start.clone();
    write::apply(&mut cluster, fitted, source);
    let text = write::updated(text, start, &cluster)?;
    store::write_text(&args.out, &text)
}

fn show(args: &FitArgs, point: &Point, fitted: &[Fitted], targets: &Targets, held_out: &Targets) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{}\n", constants_table(fitted)).context("standard output")?;
    writeln!(out, "fitted:   {}", errors_line(point, targets)?)?;
    if !held_out.is_empty() {
        writeln!(out, "held out: {}", errors_line(point, held_out)?)?;
    }
    if fitted.iter().any(|constant| constant.name.starts_with("gate.")) {
        writeln!(
            out,
            "gate constants are no part of a cluster: `validate end-to-end` takes them as --second-choice-kept and \
             --balance-loss-flattening; those used otherwise stand in workloads/src/gate.rs"
        )?;
    }
    writeln!(out, "cluster   {}", args.out.display())?;
    Ok(())
}

/// Absolute relative errors in a line.
fn errors_line(point: &Point, targets: &Targets) -> Result<String> {
    let mut errors: Vec<f64> = targets.residuals(point)?.into_iter().map(|r| r.exp_m1().abs()).collect();
    errors.sort_by(f64::total_cmp);
    let share = |q| quantile(&errors, q).map_or("-".into(), |error| format!("{:.1}%", error * 100.0));
    Ok(format!(
        "{} measurements, absolute error {} at the median, {} at the 90th percentile, {} at most",
        errors.len(),
        share(0.5),
        share(0.9),
        share(1.0)
    ))
}
