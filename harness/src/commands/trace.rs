//! `moebench trace`: import, synthesise, rescale and examine routing traces.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chart::{AnyChart, LineChart, LinePanel, LineSeries, Width};
use clap::{Args, Subcommand};
use workloads::trace::import::{Axis, ColumnNames, ImportOptions};
use workloads::trace::{
    Choices, ImbalanceSpec, LayerStats, Routing, RoutingSpec, RoutingTrace, Skew, SkewSpec, SynthSpec, TimeStats,
    TraceError, TraceStats, Workload,
};

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::figures::files::{self, Format};
use runs::figures::{self, PaperFigure};
use runs::{report, store, traces};

/// `moebench trace`.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Convert recorded expert loads to Parquet
    Import(ImportArgs),
    /// Generate a synthetic trace
    Synth(SynthArgs),
    /// Rescale a trace to other numbers of layers, experts, ranks and entries, keeping its skew
    Rescale(RescaleArgs),
    /// Print how imbalanced a trace is, per layer and over time
    Stats {
        /// The trace, by path or name; `synthetic` when absent
        trace: Option<PathBuf>,
        /// A second trace to compare with
        #[arg(long, value_name = "PATH")]
        against: Option<PathBuf>,
        /// Ranks that share the experts, for the load per rank [default: 8, or the most below that share them equally]
        #[arg(long)]
        expert_parallel: Option<usize>,
        /// Also write the numbers of every layer and every sample, per_layer.csv and over_time.csv, and a figure of the imbalance over
        /// time into this folder
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

/// `moebench trace import`.
#[derive(Args)]
pub struct ImportArgs {
    /// CSV, TSV, JSON, JSON lines, NPY, NPZ, Parquet or table_iter*_rank*.log, plain or in gz, xz, tar or zip; or a folder
    pub from: PathBuf,
    /// The .parquet to write
    pub to: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Column of iterations [default: a common name; 0 where absent, or the number in a path such as iter_0100]
    #[arg(long, value_name = "NAME")]
    pub iteration_column: Option<String>,
    /// Column of source ranks [default: likewise]
    #[arg(long, value_name = "NAME")]
    pub rank_column: Option<String>,
    /// Column of layers [default: likewise]
    #[arg(long, value_name = "NAME")]
    pub layer_column: Option<String>,
    /// Column of micro-batches [default: likewise]
    #[arg(long, value_name = "NAME")]
    pub micro_batch_column: Option<String>,
    /// Column of experts: the one that a count is of, or those that a token chose
    #[arg(long, value_name = "NAME")]
    pub expert_column: Option<String>,
    /// Column of counts, of one expert or a list of all
    #[arg(long, value_name = "NAME")]
    pub counts_column: Option<String>,
    /// Axes of arrays, outermost first: iteration, layer, micro-batch, rank, expert (of counts), token, choice (of experts)
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub axes: Option<Vec<Axis>>,
    /// Experts that a token chooses [default: what the file states or lists]
    #[arg(long)]
    pub top_k: Option<u32>,
    /// Number of experts [default: one more than the highest]
    #[arg(long)]
    pub experts: Option<usize>,
    /// Entries per rank, layer and micro-batch, which all rows are scaled to [default: those of the fullest]
    #[arg(long)]
    pub entries: Option<u32>,
    /// Tokens that make a micro-batch, where the file lists tokens
    #[arg(long, value_name = "N")]
    pub tokens_per_micro_batch: Option<usize>,
    /// Counts run since start-up: an iteration is the increase over the one before
    #[arg(long)]
    pub cumulative: bool,
    /// The gates that chose are trained with a balance loss: none flattens their choices again
    #[arg(long)]
    pub balanced: bool,
}

/// `moebench trace synth`.
#[derive(Args)]
pub struct SynthArgs {
    /// The .parquet to write
    pub to: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Number of layers
    #[arg(long)]
    pub layers: Option<usize>,
    /// Number of experts
    #[arg(long)]
    pub experts: Option<usize>,
    /// Number of ranks
    #[arg(long)]
    pub ranks: Option<usize>,
    /// Micro-batches per iteration
    #[arg(long)]
    pub micro_batches: Option<usize>,
    /// Entries per rank, layer and micro-batch
    #[arg(long)]
    pub entries: Option<u32>,
    /// Experts that a token chooses
    #[arg(long)]
    pub top_k: Option<u32>,
    /// Number of iterations
    #[arg(long)]
    pub iterations: Option<usize>,
    /// Seed of the generator
    #[arg(long)]
    pub seed: Option<u64>,
    /// An imbalance workload, W0 to W7, instead of the likeness of a training run
    #[arg(long, conflicts_with_all = ["max_over_mean", "gini", "half_life"])]
    pub workload: Option<Workload>,
    /// Load of the busiest expert over the mean, instead of the likeness of a training run; 1 is balance
    #[arg(long, value_name = "RATIO")]
    pub max_over_mean: Option<f64>,
    /// Gini coefficient of the experts' loads, likewise; 0 is balance
    #[arg(long, value_name = "G")]
    pub gini: Option<f64>,
    /// Iterations until the hottest quarter of the experts is half another, likewise [default: it stays]
    #[arg(long, value_name = "ITERATIONS")]
    pub half_life: Option<f64>,
}

/// `moebench trace rescale`.
#[derive(Args)]
pub struct RescaleArgs {
    /// The trace to rescale
    pub from: PathBuf,
    /// The .parquet to write
    pub to: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    pub overwrite: bool,
    /// Number of layers [default: the trace's]
    #[arg(long)]
    pub layers: Option<usize>,
    /// Number of experts [default: the trace's]
    #[arg(long)]
    pub experts: Option<usize>,
    /// Number of ranks [default: the trace's]
    #[arg(long)]
    pub ranks: Option<usize>,
    /// Entries per rank, layer and micro-batch [default: the trace's]
    #[arg(long)]
    pub entries: Option<u32>,
}

/// # Errors
/// Bad input, or a file that cannot be written.
pub fn run(command: &TraceCommand) -> Result<(), Failure> {
    match command {
        TraceCommand::Import(args) => {
            output::refuse_to_replace(&args.to, args.overwrite).or_input()?;
            let trace = traces::import(&args.from, args.options()).or_input()?;
            let trace = if args.balanced { trace.chosen_by(Choices::Balanced) } else { trace };
            write(&trace, &args.to)
        }
        TraceCommand::Synth(args) => {
            output::refuse_to_replace(&args.to, args.overwrite).or_input()?;
            let trace = synth(args).or_input()?;
            write(&trace, &args.to)
        }
        TraceCommand::Rescale(args) => {
            output::refuse_to_replace(&args.to, args.overwrite).or_input()?;
            let trace = rescale(args).or_input()?;
            write(&trace, &args.to)
        }
        TraceCommand::Stats { trace, against, expert_parallel, out } => {
            let first = traces::load(trace.as_deref()).or_input()?;
            let mut all = vec![first];
            if let Some(path) = against {
                all.push(traces::load(Some(path)).or_input()?);
            }
            let of = |trace: &RoutingTrace| {
                let ranks = expert_parallel.unwrap_or_else(|| sharing(trace.shape().experts));
                Ok((ranks, TraceStats::new(trace, ranks).context("--expert-parallel")?))
            };
            let stats = all.iter().map(of).collect::<Result<Vec<_>>>();
            let stats = stats.or_input()?;
            show(&all, &stats).or_run()?;
            out.as_ref().map_or(Ok(()), |folder| write_stats(folder, &all, &stats)).or_run()
        }
    }
}

fn write(trace: &RoutingTrace, to: &Path) -> Result<(), Failure> {
    traces::parquet::write(trace, to).or_run()?;
    output::print(format!("{}: {}", to.display(), describe(trace))).or_run()?;
    let balance = TraceStats::new(trace, 1).or_run()?.balance;
    balance.map_or(Ok(()), |balance| output::print(format!("experts: {balance}"))).or_run()?;
    trace.notes().iter().try_for_each(|note| output::print(format!("note: {note}"))).or_run()
}

fn describe(trace: &RoutingTrace) -> String {
    let shape = trace.shape();
    format!(
        "{} iterations, {} layers, {} micro-batches, {} ranks, {} experts, {} entries a row, top-{}{}",
        trace.iterations().len(),
        shape.layers,
        shape.micro_batches,
        shape.ranks,
        shape.experts,
        shape.entries,
        shape.top_k,
        match trace.choices() {
            Choices::Recorded => "",
            Choices::Balanced => ", chosen with a balance loss",
            Choices::Stated { .. } => ", as stated",
        }
    )
}

impl ImportArgs {
    fn options(&self) -> ImportOptions {
        let columns = ColumnNames {
            iteration: self.iteration_column.clone(),
            layer: self.layer_column.clone(),
            micro_batch: self.micro_batch_column.clone(),
            rank: self.rank_column.clone(),
            expert: self.expert_column.clone(),
            counts: self.counts_column.clone(),
        };
        ImportOptions {
            columns,
            axes: self.axes.clone(),
            top_k: self.top_k,
            experts: self.experts,
            entries: self.entries,
            tokens_per_micro_batch: self.tokens_per_micro_batch,
            cumulative: self.cumulative,
        }
    }
}

fn synth(args: &SynthArgs) -> Result<RoutingTrace> {
    let skew = Skew { max_over_mean: args.max_over_mean, gini: args.gini, half_life: args.half_life };
    let trace = match args.workload {
        Some(workload) => workload_trace(args, workload),
        None if skew != Skew::default() => {
            let SynthSpec { samples, step, seed, .. } = training_run(args);
            SkewSpec { shape: training_run(args).shape(), samples, step, seed, skew }.generate()
        }
        None => training_run(args).generate(),
    };
    trace.context("moebench trace synth")
}

fn training_run(args: &SynthArgs) -> SynthSpec {
    let default = SynthSpec::default();
    SynthSpec {
        layers: args.layers.unwrap_or(default.layers),
        experts: args.experts.unwrap_or(default.experts),
        ranks: args.ranks.unwrap_or(default.ranks),
        micro_batches: args.micro_batches.unwrap_or(default.micro_batches),
        entries: args.entries.unwrap_or(default.entries),
        top_k: args.top_k.unwrap_or(default.top_k),
        samples: args.iterations.unwrap_or(default.samples),
        seed: args.seed.unwrap_or(default.seed),
        ..default
    }
}

/// A workload; what is not said is as in the original, but for enough steps to see W6 move and W7 burst.
fn workload_trace(args: &SynthArgs, workload: Workload) -> Result<RoutingTrace, TraceError> {
    let top_k = args.top_k.unwrap_or(2);
    let entries = args.entries.unwrap_or(128_u32.saturating_mul(top_k));
    if top_k == 0 || !entries.is_multiple_of(top_k) {
        let (field, value) = ("entries", entries.to_string());
        return Err(TraceError::Field { field, value, expected: format!("a multiple of top_k ({top_k})") });
    }
    let spec = ImbalanceSpec {
        workload,
        experts: args.experts.unwrap_or(8),
        top_k: top_k as usize,
        tokens: (entries / top_k) as usize,
        seed: args.seed.unwrap_or(1234),
    };
    let of = |number: Option<usize>| number.unwrap_or(1);
    spec.trace(args.iterations.unwrap_or(12), of(args.layers), of(args.micro_batches), of(args.ranks))
}

fn rescale(args: &RescaleArgs) -> Result<RoutingTrace> {
    let trace = traces::load(Some(&args.from))?;
    let shape = *trace.shape();
    let ranks = args.ranks.unwrap_or(shape.ranks);
    let spec = RoutingSpec {
        layers: args.layers.unwrap_or(shape.layers),
        experts: args.experts.unwrap_or(shape.experts),
        chunks: ranks * shape.micro_batches,
        entries_per_chunk: args.entries.unwrap_or(shape.entries),
        top_k: shape.top_k,
        start: trace.iterations()[0],
        stride: 1,
        seed: 0,
    };
    let routing = Routing::new(&trace, spec).context("moebench trace rescale")?;
    let rescaled = routing.to_trace(format!("{} rescaled", trace.name()), ranks, shape.micro_batches)?;
    // A note such as a checksum is of the trace that was rescaled.
    let notes = trace.notes().iter().map(|note| format!("before rescaling: {note}")).collect();
    Ok(rescaled.with_notes(notes).chosen_by(trace.choices()))
}

/// The most ranks, up to a node of eight, that share so many experts equally.
fn sharing(experts: usize) -> usize {
    (1..=8).rev().find(|&ranks| experts.is_multiple_of(ranks)).unwrap_or(1)
}

/// `stats`: ranks that share the experts, and what was found, of each trace.
fn show(traces: &[RoutingTrace], stats: &[(usize, TraceStats)]) -> Result<()> {
    let mut out = output::stdout();
    for (index, (trace, (ranks, stats))) in traces.iter().zip(stats).enumerate() {
        let mark = if traces.len() > 1 { format!("[{}] ", index + 1) } else { String::new() };
        writeln!(out, "{mark}{}: {}", trace.name(), describe(trace)).context("standard output")?;
        trace.notes().iter().try_for_each(|note| writeln!(out, "{mark}note: {note}"))?;
        writeln!(out, "\n{mark}per layer, means over iterations ({ranks} ranks share the experts)")?;
        writeln!(out, "{}", per_layer(&stats.per_layer))?;
        stats.balance.map_or(Ok(()), |balance| writeln!(out, "{mark}experts: {balance}"))?;
        writeln!(out, "\n{mark}over time, means over layers")?;
        writeln!(out, "{}\n", over_time(&stats.over_time))?;
    }
    writeln!(out, "max/mean: load of the fullest expert (or rank) over the mean; maxvio is that less 1.")?;
    writeln!(out, "Gini: 0 even, 1 all on one expert.")?;
    writeln!(
        out,
        "row spread: how much micro-batches and ranks differ. hot kept: share of the four hottest experts that"
    )?;
    writeln!(
        out,
        "are still among the four hottest 1, 10 and 100 samples later; half-life: iterations until half of that is lost."
    )?;
    Ok(())
}

/// The numbers that [`show`] rounds and thins out, and their figure.
fn write_stats(folder: &Path, traces: &[RoutingTrace], stats: &[(usize, TraceStats)]) -> Result<()> {
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let mut layers =
        "trace,layer,max_over_mean,rank_max_over_mean,gini,row_spread,hot_kept_1,hot_kept_10,hot_kept_100,hot_half_life\n".to_owned();
    let mut times = "trace,iteration,max_over_mean,least,most,rank_max_over_mean,gini,row_spread,hot_kept\n".to_owned();
    for (trace, (_, stats)) in (1..).zip(stats) {
        for of in &stats.per_layer {
            let LayerStats { layer, max_over_mean, rank_max_over_mean, gini, row_spread, .. } = of;
            let [one, ten, hundred] = of.hot_overlap.map(number);
            let half_life = of.hot_half_life.map_or(String::new(), |iterations| iterations.to_string());
            layers += &format!(
                "{trace},{layer},{max_over_mean},{rank_max_over_mean},{gini},{row_spread},{one},{ten},{hundred},{half_life}\n"
            );
        }
        for of in &stats.over_time {
            let TimeStats { iteration, max_over_mean, rank_max_over_mean, gini, row_spread, .. } = of;
            let ([least, most], kept) = ([of.max_over_mean_low, of.max_over_mean_high], number(of.hot_overlap));
            times += &format!(
                "{trace},{iteration},{max_over_mean},{least},{most},{rank_max_over_mean},{gini},{row_spread},{kept}\n"
            );
        }
    }
    store::write_text(&folder.join("per_layer.csv"), &layers)?;
    store::write_text(&folder.join("over_time.csv"), &times)?;
    let drawn = files::write(folder, &imbalance(traces, stats), Width::Page, &[Format::Svg, Format::Pdf])?;
    output::print(format!("figure   {}", drawn.first().map_or(folder, PathBuf::as_path).display()))
}

/// A panel for each trace: the busiest expert of the layers over time.
fn imbalance(traces: &[RoutingTrace], stats: &[(usize, TraceStats)]) -> PaperFigure {
    let panel = |(trace, (_, stats)): (&RoutingTrace, &(usize, TraceStats))| {
        let line = |ink, name: &str, value: fn(&TimeStats) -> f64| LineSeries {
            name: name.to_owned(),
            ink,
            points: stats.over_time.iter().map(|of| (f64::from(of.iteration), value(of))).collect(),
            marks: Vec::new(),
        };
        LinePanel {
            title: figures::trace_name(trace.name()).to_owned(),
            y_label: "Load over mean".to_owned(),
            series: vec![
                line(0, "mean of layers", |of| of.max_over_mean),
                line(1, "least of any layer", |of| of.max_over_mean_low),
                line(2, "most of any layer", |of| of.max_over_mean_high),
            ],
            from_zero: false,
        }
    };
    let panels = traces.iter().zip(stats).map(panel).collect();
    PaperFigure {
        name: "imbalance".to_owned(),
        caption: "Load of the busiest expert over the mean load, as the gate chose before any capacity.".to_owned(),
        chart: AnyChart::Lines(LineChart { x_label: "Iteration".to_owned(), panels, ..LineChart::default() }),
    }
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.0}%", share * 100.0))
}

fn per_layer(layers: &[LayerStats]) -> comfy_table::Table {
    let header =
        ["layer", "max/mean", "maxvio", "rank max/mean", "Gini", "row spread", "hot kept 1", "10", "100", "half-life"];
    let mut table = report::table(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for layer in layers {
        let [one, ten, hundred] = layer.hot_overlap.map(percent);
        table.add_row([
            layer.layer.to_string(),
            format!("{:.2}", layer.max_over_mean),
            format!("{:.2}", layer.max_over_mean - 1.0),
            format!("{:.2}", layer.rank_max_over_mean),
            format!("{:.3}", layer.gini),
            format!("{:.3}", layer.row_spread),
            one,
            ten,
            hundred,
            layer.hot_half_life.map_or("longer".into(), |iterations| iterations.to_string()),
        ]);
    }
    table
}

/// At most this many rows, evenly spread.
const ROWS: usize = 16;

fn over_time(times: &[TimeStats]) -> comfy_table::Table {
    let header = ["iteration", "max/mean", "least", "most", "rank max/mean", "Gini", "row spread", "hot kept"];
    let mut table = report::table(&header, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let rows = times.len().min(ROWS);
    for row in 0..rows {
        let time = &times[row * (times.len() - 1) / (rows - 1).max(1)];
        table.add_row([
            time.iteration.to_string(),
            format!("{:.2}", time.max_over_mean),
            format!("{:.2}", time.max_over_mean_low),
            format!("{:.2}", time.max_over_mean_high),
            format!("{:.2}", time.rank_max_over_mean),
            format!("{:.3}", time.gini),
            format!("{:.3}", time.row_spread),
            percent(time.hot_overlap),
        ]);
    }
    table
}
