//! The command line: what can be asked, and how an error ends the program.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::commands::engine::TrainingArgs;
use crate::commands::train::TrainArgs;
use crate::commands::{self, calibrate::CalibrateCommand, validate::ValidateCommand};
use crate::engines::Engine;

/// Compares training systems for Mixture-of-Experts models on defined workloads.
#[derive(Parser)]
#[command(name = "moebench", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a suite: every system on every case; store samples, summary and figure
    Run(RunArgs),
    /// Train one model under one system, for real
    Train(Box<TrainArgs>),
    /// Show the offline search of one case: every plan, ranked, or why it was rejected
    Plan(PlanArgs),
    /// Make, convert and examine routing traces
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Hold predictions against published measurements
    #[command(subcommand)]
    Validate(ValidateCommand),
    /// Find a cluster's constants
    #[command(subcommand)]
    Calibrate(CalibrateCommand),
    /// List suites, systems, models or clusters
    List(ListArgs),
    /// Say what this machine has and lacks: libtorch, GPUs, NCCL, launcher
    Doctor,
}

/// `moebench run`.
#[derive(Args)]
pub struct RunArgs {
    /// A suite by name (see `moebench list`), or the path of a suite's TOML
    pub suite: String,
    /// What runs it instead of the suite's engine
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// Systems to run instead of the suite's, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub systems: Option<Vec<String>>,
    /// Routing trace: a folder or .tar.xz of table_iter*_rank*.log, or a .parquet; a synthetic one by default
    #[arg(long, value_name = "PATH")]
    pub trace: Option<PathBuf>,
    /// One seed instead of the suite's
    #[arg(long)]
    pub seed: Option<u64>,
    /// Training iterations instead of the suite's
    #[arg(long)]
    pub iterations: Option<usize>,
    /// Folder for the results [default: results/SUITE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    pub overwrite: bool,
    /// Worker threads; the results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Also write the last iteration of every case and system as a timeline for Perfetto or Chrome: timelines/CASE/SYSTEM.json
    #[arg(long)]
    pub timeline: bool,
    /// List cases and the plans that would run, and stop
    #[arg(long)]
    pub dry_run: bool,
    /// How models are trained
    #[command(flatten)]
    pub training: TrainingArgs,
}

/// `moebench plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// Model, by name or path
    #[arg(long)]
    pub model: String,
    /// Cluster, by name or path
    #[arg(long)]
    pub cluster: String,
    /// Number of GPUs
    #[arg(long)]
    pub gpus: usize,
    /// Gate: `no-drop`, `no-drop balanced`, `capacity FACTOR` or `switch FACTOR`
    #[arg(long, default_value = "no-drop")]
    pub gate: workloads::Gate,
    /// Samples per iteration over all GPUs
    #[arg(long, value_name = "SAMPLES")]
    pub global_batch_size: usize,
    /// Samples per rank and micro-batch; searched for when absent
    #[arg(long, value_name = "SAMPLES")]
    pub micro_batch_size: Option<usize>,
    /// System whose search is shown
    #[arg(long, default_value = "smartmoe")]
    pub system: String,
    /// Routing trace, as for `run`
    #[arg(long, value_name = "PATH")]
    pub trace: Option<PathBuf>,
    /// Rows shown
    #[arg(long, default_value_t = 20)]
    pub top: usize,
}

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

/// `moebench list`.
#[derive(Args)]
pub struct ListArgs {
    /// What to list; everything when absent
    pub kind: Option<ListKind>,
}

/// What `moebench list` knows.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum ListKind {
    /// Suites and their cases
    Suites,
    /// Systems and what they do
    Systems,
    /// Models and their sizes
    Models,
    /// Clusters and where their constants come from
    Clusters,
}

/// How a command failed.
pub enum Failure {
    /// The user's input: exit status 2, nothing was run.
    Input(anyhow::Error),
    /// Anything later: exit status 1.
    Run(anyhow::Error),
    /// What rank 0 tells, in another process, with its exit status.
    Told(u8),
}

impl Failure {
    /// The exit status.
    pub fn status(&self) -> u8 {
        match self {
            Self::Input(_) => 2,
            Self::Run(_) => 1,
            Self::Told(status) => *status,
        }
    }
}

/// Marks errors by when they happened.
pub trait OrFail<T> {
    /// An error in what the user gave.
    fn or_input(self) -> Result<T, Failure>;
    /// An error while running.
    fn or_run(self) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrFail<T> for Result<T, E> {
    fn or_input(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Input(error.into()))
    }

    fn or_run(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::Run(error.into()))
    }
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => commands::run::run(&args),
        Command::Train(args) => commands::train::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Trace(command) => commands::trace::run(&command),
        Command::Validate(command) => commands::validate::run(&command),
        Command::Calibrate(command) => commands::calibrate::run(&command),
        Command::List(args) => commands::list::run(args.kind),
        Command::Doctor => commands::doctor::run(),
    };
    let Err(failure) = result else { return ExitCode::SUCCESS };
    match &failure {
        Failure::Input(error) | Failure::Run(error) => eprintln!("error: {error:#}"),
        Failure::Told(_) => {}
    }
    ExitCode::from(failure.status())
}
