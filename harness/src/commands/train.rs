//! `moebench train`: one model, one system, really trained.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use workloads::model::Recompute;
use workloads::plan::Zero;
use workloads::suite::{ForcedPlan, TraceUse};
use workloads::{Case, EngineKind, Suite, Training};

use crate::commands::run::folder;
use crate::commands::{check_extent, note_emulation};
use crate::failure::{Failure, OrFail};
use crate::pipeline::{self, RunRequest};
use runs::engines::Session;
use runs::engines::args::TrainingArgs;
use runs::traces::CaseTraces;
use runs::{named, prepare, traces};

/// `moebench train`.
#[derive(Args)]
pub struct TrainArgs {
    /// Model, by name or path
    #[arg(long)]
    model: String,
    /// Cluster that plans and, under a virtual clock, communication are for; by name or path
    #[arg(long, default_value = "inky")]
    cluster: String,
    /// Number of ranks
    #[arg(long)]
    gpus: usize,
    /// Gate: `no-drop`, `no-drop balanced`, `capacity FACTOR` or `switch FACTOR`
    #[arg(long, default_value = "no-drop")]
    gate: workloads::Gate,
    /// Samples per iteration over all ranks
    #[arg(long, value_name = "SAMPLES")]
    global_batch_size: usize,
    /// Samples per rank and micro-batch; the system's choice when absent
    #[arg(long, value_name = "SAMPLES")]
    micro_batch_size: Option<usize>,
    /// Training system
    #[arg(long, default_value = "smartmoe")]
    system: String,
    /// Pipeline stages; with this or one of the next five, the plan is yours instead of the system's
    #[arg(long, value_name = "N", help_heading = "Plan")]
    pipeline_model_parallel_size: Option<usize>,
    /// Ranks that share dense parameters
    #[arg(long, value_name = "N", help_heading = "Plan")]
    tensor_model_parallel_size: Option<usize>,
    /// Ranks that share one set of experts
    #[arg(long, value_name = "N", help_heading = "Plan")]
    expert_model_parallel_size: Option<usize>,
    /// What the backward pass computes again: `none` or `full`
    #[arg(long, value_name = "KIND", default_value = "none", help_heading = "Plan")]
    recompute_granularity: Recompute,
    /// What replicas keep parts of: `0` for nothing, `3` for weights, gradients and optimizer state (ZeRO stage 3, FSDP)
    #[arg(long, value_name = "STAGE", value_parser = zero_stage, help_heading = "Plan")]
    zero_stage: Option<Zero>,
    /// Iterations between online placements
    #[arg(long, value_name = "N", help_heading = "Plan")]
    placement_every: Option<usize>,
    /// Training iterations
    #[arg(long, default_value_t = 100)]
    iterations: usize,
    /// First iterations that means and medians leave out
    #[arg(long, default_value_t = 5)]
    warmup: usize,
    /// Seed of initial values and data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Step size of Adam
    #[arg(long, default_value_t = Training::default().learning_rate)]
    learning_rate: f64,
    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, default_value_t = Training::default().clip_norm)]
    clip_norm: f64,
    /// Routing trace that offline searches see, and that drives the gate with --replay
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Iteration of the trace that training begins at [default: its first]
    #[arg(long, value_name = "LABEL")]
    trace_start: Option<u32>,
    /// Folder for the results [default: results/train-HASH, of all that is asked for; results/latest leads to the last one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    overwrite: bool,
    /// Keep the last iteration as a timeline
    #[arg(long)]
    timeline: bool,
    #[command(flatten)]
    training: TrainingArgs,
}

/// # Errors
/// Bad input before anything runs; after that, a run that did not end well, or what cannot be written.
pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let suite = suite(args).or_input()?;
    note_emulation(args.training.under_clock(suite.engine), &suite);
    let session = Session::open(suite.engine, &args.training, &suite).or_input()?;
    let traces = CaseTraces::from(traces::load(args.trace.as_deref()).or_input()?);
    let otherwise = format!("{suite:?} {:?} {}", args.trace, args.training.what_is_trained());
    let out = args.out.clone().unwrap_or_else(|| folder::default(&suite.name, &otherwise));
    let ended = pipeline::execute(&RunRequest {
        file: suite.name.clone(),
        shard: None,
        suite,
        traces: &traces,
        replay: args.training.replay,
        session,
        out: out.clone(),
        overwrite: args.overwrite,
        threads: None,
        timelines: args.timeline,
    });
    if args.out.is_none() {
        folder::link_latest(&out, &ended);
    }
    ended
}

/// The command line as a suite of one case.
fn suite(args: &TrainArgs) -> Result<Suite> {
    prepare::system("--system", &args.system)?;
    for (flag, value) in [
        ("--gpus", args.gpus),
        ("--global-batch-size", args.global_batch_size),
        ("--micro-batch-size", args.micro_batch_size.unwrap_or(1)),
        ("--iterations", args.iterations),
    ] {
        check_extent(flag, value)?;
    }
    for (flag, value) in [("--learning-rate", args.learning_rate), ("--clip-norm", args.clip_norm)] {
        ensure!(value.is_finite() && value >= 0.0, "{flag} {value}: expected a finite number of at least 0");
    }
    let mut case = Case::new(&args.model, &args.cluster, args.gpus, args.gate, args.global_batch_size);
    case.micro_batch = args.micro_batch_size;
    case.plans.extend(plan(args)?.map(|plan| (args.system.clone(), plan)));
    let mut suite = Suite {
        name: "train".to_owned(),
        description: String::new(),
        systems: vec![args.system.clone()],
        baseline: args.system.clone(),
        compare: Vec::new(),
        searched: Vec::new(),
        iterations: args.iterations,
        warmup: args.warmup.min(args.iterations - 1),
        seeds: vec![args.seed],
        routing: None,
        trace: TraceUse { start: args.trace_start, ..TraceUse::default() },
        engine: EngineKind::Measured,
        training: Training { learning_rate: args.learning_rate, clip_norm: args.clip_norm, ..Training::default() },
        figure: Default::default(),
        cases: vec![case],
    };
    named::suite("moebench train", &mut suite, Path::new(""))?;
    suite.description = format!("{} under {}", suite.cases[0].model, args.system);
    Ok(suite)
}

fn zero_stage(text: &str) -> Result<Zero, String> {
    let stage: u8 = text.parse().map_err(|_| "expected a stage from 0 to 3".to_owned())?;
    stage.try_into()
}

/// The plan of the flags, if there is one.
fn plan(args: &TrainArgs) -> Result<Option<ForcedPlan>> {
    let degrees = [args.pipeline_model_parallel_size, args.tensor_model_parallel_size, args.expert_model_parallel_size];
    let more = [args.placement_every.is_some(), args.zero_stage.is_some()];
    let searched = degrees.iter().all(Option::is_none) && more == [false; 2];
    if searched && args.recompute_granularity == Recompute::None {
        return Ok(None);
    }
    let [pp, tp, ep] = degrees;
    let (pp, tp) = (pp.unwrap_or(1), tp.unwrap_or(1));
    let together = pp.saturating_mul(tp);
    ensure!(
        together > 0 && args.gpus.is_multiple_of(together),
        "--gpus {}: expected a multiple of {together} = pipeline {pp} x tensor {tp}",
        args.gpus
    );
    let stage = args.gpus / pp;
    let ep = ep.unwrap_or(stage);
    ensure!(
        ep > 0 && stage.is_multiple_of(ep),
        "--expert-model-parallel-size {ep}: expected a divisor of the {stage} ranks of a stage"
    );
    Ok(Some(ForcedPlan {
        pp,
        dp: stage / tp,
        tp,
        ep,
        expert_dp: stage / ep,
        micro_batch: args.micro_batch_size.unwrap_or(1),
        vp: 1,
        zero: args.zero_stage.unwrap_or_default(),
        recompute: args.recompute_granularity,
        placement_every: args.placement_every.unwrap_or(0),
    }))
}
