//! The command line: one command per line of a table, and how an error ends the program.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    bench, calibrate, claims, compare, doctor, import_log, import_model, list, merge, new, plan, plot, report, run,
    shell, show, table, trace, train, validate,
};
use crate::failure::Failure;
use crate::output;

/// Compares training systems for Mixture-of-Experts models on defined workloads.
#[derive(Parser)]
#[command(name = "moebench", version, about, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  moebench run smoke                         a first run, a second long
  moebench new suite mine                    a suite of your own, with comments, that runs as it is
  moebench run mine.toml --set gpus='[8, 16]' --dry-run
  moebench compare results/mine results/latest --fail-above 5%
  moebench report results/latest             its page again, from the stored files alone";

#[derive(Subcommand)]
enum Command {
    /// Run a suite: every system on every case; store samples, summary and figure
    Run(run::RunArgs),
    /// Train one model under one system, for real
    Train(Box<train::TrainArgs>),
    /// Write the page of stored runs, side by side, from their folders alone
    Report(report::ReportArgs),
    /// Draw the figures of a stored run for a paper: one or two columns wide, SVG, PDF, PNG or TikZ
    Plot(plot::PlotArgs),
    /// Write tables of a stored run for a paper: LaTeX or Markdown that fits one or two columns, or CSV
    Table(table::TableArgs),
    /// Compare two stored runs, case by case and system by system, and fail where one is slower; or hold one against bands
    Compare(compare::CompareArgs),
    /// Join runs of a suite's shards to the run of the whole suite
    Merge(merge::MergeArgs),
    /// Show the offline search of one case: every plan, ranked, or why it was rejected
    Plan(plan::PlanArgs),
    /// Make, convert and examine routing traces
    #[command(subcommand)]
    Trace(trace::TraceCommand),
    /// Hold predictions against published measurements
    #[command(subcommand)]
    Validate(validate::ValidateCommand),
    /// Hold the paper's claims against simulated runs: one row each, whatever the outcome
    Claims(claims::ClaimsArgs),
    /// Find a cluster's constants
    #[command(subcommand)]
    Calibrate(calibrate::CalibrateCommand),
    /// Make a stored run of a log of Megatron-LM or torchtitan, to stand beside a simulated one
    ImportLog(import_log::ImportLogArgs),
    /// Make a model of a Hugging Face config.json
    ImportModel(import_model::ImportModelArgs),
    /// Time a layer or a step of training on this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// List suites, systems, models or clusters
    List(list::ListArgs),
    /// Show one suite, model, cluster or system, all fields of their files, or a schema for editors
    #[command(subcommand)]
    Show(show::ShowCommand),
    /// Write a suite, model, cluster or system to begin from
    #[command(subcommand)]
    New(new::NewCommand),
    /// Print what a shell needs to complete commands: source <(moebench completions bash)
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write one for every command
    Man(shell::ManArgs),
    /// Say what this machine has and lacks: libtorch, GPUs, NCCL, launcher
    Doctor,
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Table(args) => table::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Trace(command) => trace::run(&command),
        Command::Validate(command) => validate::run(&command),
        Command::Claims(args) => claims::run(&args),
        Command::Calibrate(command) => calibrate::run(&command),
        Command::ImportLog(args) => import_log::run(&args),
        Command::ImportModel(args) => import_model::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::List(args) => list::run(&args),
        Command::Show(command) => show::run(&command),
        Command::New(command) => new::run(&command),
        Command::Completions(args) => shell::completions(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::Doctor => doctor::run(),
    };
    if let Err(Failure::Input(error) | Failure::Run(error)) = &result {
        output::say(format_args!("error: {error:#}"));
    }
    let status = result.map_or_else(|failure| failure.status(), |()| 0);
    #[cfg(feature = "train")]
    let code = trainer::exit::end(status);
    #[cfg(not(feature = "train"))]
    let code = ExitCode::from(status);
    code
}
