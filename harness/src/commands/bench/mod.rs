//! `moebench bench`: what training consists of, timed on this machine, and beside other programs.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[cfg(feature = "train")]
mod layer;
#[cfg(feature = "train")]
mod others;
#[cfg(feature = "train")]
mod show;
#[cfg(feature = "train")]
mod step;

use crate::failure::Failure;

/// `moebench bench`.
#[derive(Subcommand)]
pub enum BenchCommand {
    /// One MoE layer, forward and backward, for shapes and skews
    Layer(LayerArgs),
    /// A training step on one rank, for models and micro-batches
    Step(StepArgs),
}

/// `moebench bench layer`.
#[derive(Args)]
pub struct LayerArgs {
    /// Shapes, separated by commas: width, inner width, experts, tokens [default: one for a CPU, four for a GPU]
    #[arg(long, value_delimiter = ',', value_name = "WIDTHxINNERxEXPERTSxTOKENS")]
    pub shapes: Vec<String>,
    /// Standard deviations of the experts' biases in the gate, where that of a token's scores is 1
    #[arg(long, value_delimiter = ',', default_values_t = [0.0, 1.5], value_name = "NUMBERS")]
    pub skews: Vec<f64>,
    /// Experts of a token
    #[arg(long, default_value_t = 2, value_name = "K")]
    pub top_k: usize,
    #[command(flatten)]
    pub bench: BenchArgs,
}

/// `moebench bench step`.
#[derive(Args)]
pub struct StepArgs {
    /// Models, by name or path, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "gpt-micro", value_name = "MODELS")]
    pub model: Vec<String>,
    /// Samples of a step
    #[arg(long, default_value_t = 16, value_name = "SAMPLES")]
    pub global_batch_size: usize,
    /// Samples of a micro-batch, separated by commas [default: all of a step]
    #[arg(long, value_delimiter = ',', value_name = "SAMPLES")]
    pub micro_batch_size: Vec<usize>,
    /// Training system
    #[arg(long, default_value = "expert-only")]
    pub system: String,
    /// Iterations in single precision whose losses are compared with; 0 for none
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub exact: usize,
    #[command(flatten)]
    pub bench: BenchArgs,
}

#[derive(Args)]
pub struct BenchArgs {
    /// Where tensors are: `cpu` or `cuda` (the first GPU)
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    pub device: String,
    /// Repeats that count
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub repeats: usize,
    /// Repeats before them
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub warmup: usize,
    /// Times of other programs, a JSON object a line: results/README.md says which
    #[arg(long, value_name = "FILE.jsonl")]
    pub compare: Vec<PathBuf>,
    /// Folder for every repeat (CSV), the table and the figure
    #[arg(long, default_value = "results/bench", value_name = "DIR")]
    pub out: PathBuf,
}

/// # Errors
/// Bad input, or a device that cannot be used.
#[cfg(feature = "train")]
pub fn run(command: &BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Layer(args) => layer::run(args),
        BenchCommand::Step(args) => step::run(args),
    }
}

/// Says how to build a program that can measure.
///
/// # Errors
/// Always.
#[cfg(not(feature = "train"))]
pub fn run(_command: &BenchCommand) -> Result<(), Failure> {
    Err(Failure::Input(anyhow::anyhow!(
        "bench: this program was built without libtorch: run scripts/libtorch, then build with \
         `cargo build --features train`"
    )))
}
