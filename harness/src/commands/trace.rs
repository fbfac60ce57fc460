//! `moebench trace`: import, synthesise, rescale and examine routing traces.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use workloads::trace::{LayerStats, Routing, RoutingSpec, RoutingTrace, SynthSpec, TimeStats, TraceStats};

use crate::failure::{Failure, OrFail};
use crate::{output, report, traces};

/// `moebench trace`.
#[derive(Subcommand)]
pub enum TraceCommand {
    /// Convert a trace to Parquet
    Import {
        /// A folder or .tar.xz of table_iter*_rank*.log, or a .parquet
        from: PathBuf,
        /// The .parquet to write
        to: PathBuf,
    },
    /// Generate a synthetic trace
    Synth(SynthArgs),
    /// Rescale a trace to other numbers of layers, experts, ranks and entries, keeping its skew
    Rescale(RescaleArgs),
    /// Print how imbalanced a trace is, per layer and over time
    Stats {
        /// The trace; the built-in synthetic one when absent
        trace: Option<PathBuf>,
        /// A second trace to compare with
        #[arg(long, value_name = "PATH")]
        against: Option<PathBuf>,
        /// Ranks that share the experts, for the load per rank
        #[arg(long, default_value_t = 8)]
        expert_parallel: usize,
    },
}

/// `moebench trace synth`.
#[derive(Args)]
pub struct SynthArgs {
    /// The .parquet to write
    pub to: PathBuf,
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
    /// Number of iterations
    #[arg(long)]
    pub iterations: Option<usize>,
    /// Seed of the generator
    #[arg(long)]
    pub seed: Option<u64>,
}

/// `moebench trace rescale`.
#[derive(Args)]
pub struct RescaleArgs {
    /// The trace to rescale
    pub from: PathBuf,
    /// The .parquet to write
    pub to: PathBuf,
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
        TraceCommand::Import { from, to } => {
            let trace = traces::load(Some(from)).or_input()?;
            write(&trace, to)
        }
        TraceCommand::Synth(args) => {
            let trace = synth(args).or_input()?;
            write(&trace, &args.to)
        }
        TraceCommand::Rescale(args) => {
            let trace = rescale(args).or_input()?;
            write(&trace, &args.to)
        }
        TraceCommand::Stats { trace, against, expert_parallel } => {
            let first = traces::load(trace.as_deref()).or_input()?;
            let mut all = vec![first];
            if let Some(path) = against {
                all.push(traces::load(Some(path)).or_input()?);
            }
            let stats = all.iter().map(|trace| TraceStats::new(trace, *expert_parallel)).collect::<Result<Vec<_>, _>>();
            show(&all, &stats.or_input()?, *expert_parallel).or_run()
        }
    }
}

fn write(trace: &RoutingTrace, to: &Path) -> Result<(), Failure> {
    traces::write_parquet(trace, to).or_run()?;
    output::print(format!("{}: {}", to.display(), describe(trace))).or_run()
}

fn describe(trace: &RoutingTrace) -> String {
    let shape = trace.shape();
    format!(
        "{} iterations, {} layers, {} micro-batches, {} ranks, {} experts, {} entries a row",
        trace.iterations().len(),
        shape.layers,
        shape.micro_batches,
        shape.ranks,
        shape.experts,
        shape.entries
    )
}

fn synth(args: &SynthArgs) -> Result<RoutingTrace> {
    let default = SynthSpec::default();
    let spec = SynthSpec {
        layers: args.layers.unwrap_or(default.layers),
        experts: args.experts.unwrap_or(default.experts),
        ranks: args.ranks.unwrap_or(default.ranks),
        micro_batches: args.micro_batches.unwrap_or(default.micro_batches),
        entries: args.entries.unwrap_or(default.entries),
        samples: args.iterations.unwrap_or(default.samples),
        seed: args.seed.unwrap_or(default.seed),
        ..default
    };
    spec.generate().context("moebench trace synth")
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
    Ok(routing.to_trace(format!("{} rescaled", trace.name()), ranks, shape.micro_batches)?)
}

fn show(traces: &[RoutingTrace], stats: &[TraceStats], expert_parallel: usize) -> Result<()> {
    let mut out = output::stdout();
    for (index, (trace, stats)) in traces.iter().zip(stats).enumerate() {
        let mark = if traces.len() > 1 { format!("[{}] ", index + 1) } else { String::new() };
        writeln!(out, "{mark}{}: {}", trace.name(), describe(trace)).context("standard output")?;
        writeln!(out, "\n{mark}per layer, means over iterations ({expert_parallel} ranks share the experts)")?;
        writeln!(out, "{}", per_layer(&stats.per_layer))?;
        writeln!(out, "\n{mark}over time, means over layers")?;
        writeln!(out, "{}\n", over_time(&stats.over_time))?;
    }
    writeln!(out, "max/mean: load of the fullest expert (or rank) over the mean. Gini: 0 even, 1 all on one expert.")?;
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

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.0}%", share * 100.0))
}

fn per_layer(layers: &[LayerStats]) -> comfy_table::Table {
    let header = ["layer", "max/mean", "rank max/mean", "Gini", "row spread", "hot kept 1", "10", "100", "half-life"];
    let mut table = report::table(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
    for layer in layers {
        let [one, ten, hundred] = layer.hot_overlap.map(percent);
        table.add_row([
            layer.layer.to_string(),
            format!("{:.2}", layer.max_over_mean),
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
