//! `moebench import-log`: what another program measured, as a stored run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use formats::logs::TrainingLog;
use workloads::suite::{ForcedPlan, TraceUse};
use workloads::{Case, EngineKind, Suite, Training};

use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use crate::pipeline::{self, RunRequest};
use runs::engines::Session;
use runs::engines::recorded::Recorded;
use runs::part::{self, Pattern};
use runs::traces::CaseTraces;
use runs::{named, prepare, traces};

const EXAMPLES: &str = "\
Examples:
  moebench import-log train.log --suite mine.toml --case 16.no-drop --system megatron --out measured
  moebench import-log train.log --model mixtral-8x7b --cluster h100x8 --gpus 64 --global-batch-size 256 \\
      --system megatron --plan 'pp4 dp16 tp1 ep8 edp2 mb1' --out measured
  moebench report results/mine measured --out both.html        beside what was simulated
  moebench validate runs --measured measured --predicted results/mine --baseline megatron";

/// `moebench import-log`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportLogArgs {
    /// What Megatron-LM or torchtitan printed; files of one run in their order, each of a program that began again: its first line holds
    /// the start-up and does not count. Ranks are told apart by prefixes such as `[rank3]:`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A suite, by name or path, one of whose cases was trained instead of one by model, cluster and GPUs
    #[arg(long, conflicts_with_all = ["model", "cluster", "gpus", "gate", "global_batch_size"])]
    suite: Option<String>,
    /// The case: a part of its id, or all of it with `*` for any characters
    #[arg(long, value_name = "PATTERN", requires = "suite")]
    case: Option<Pattern>,
    /// Model, by name or path
    #[arg(long, required_unless_present = "suite")]
    model: Option<String>,
    /// Cluster, by name or path
    #[arg(long, required_unless_present = "suite")]
    cluster: Option<String>,
    /// Number of GPUs
    #[arg(long, required_unless_present = "suite")]
    gpus: Option<usize>,
    /// Gate: `no-drop`, `no-drop balanced`, `capacity FACTOR` or `switch FACTOR`
    #[arg(long, default_value = "no-drop")]
    gate: workloads::Gate,
    /// Samples per iteration over all GPUs
    #[arg(long, value_name = "SAMPLES", required_unless_present = "suite")]
    global_batch_size: Option<usize>,
    /// The system that the run stands beside
    #[arg(long)]
    system: String,
    /// The plan that it was trained with, for example \"pp4 dp16 tp1 ep8 edp2 mb1\" [default: what the suite gives the system]
    #[arg(long, value_name = "PLAN")]
    plan: Option<ForcedPlan>,
    /// First iterations that means and medians leave out
    #[arg(long, default_value_t = 10)]
    warmup: u64,
    /// Folder for the run
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    overwrite: bool,
}

/// # Errors
/// A log without iterations, or one that contradicts the case; after that, what cannot be written.
pub fn run(args: &ImportLogArgs) -> Result<(), Failure> {
    let mut suite = suite(args).or_input()?;
    let recorded = recorded(args, &suite.cases[0]).or_input()?;
    suite.iterations = recorded.log.steps.len();
    suite.warmup = recorded.log.warmup(args.warmup).min(suite.iterations - 1);
    let traces = CaseTraces::from(traces::load(None).or_input()?);
    pipeline::execute(&RunRequest {
        file: suite.name.clone(),
        shard: None,
        suite,
        traces: &traces,
        replay: false,
        session: Session::Leader(Box::new(recorded)),
        out: args.out.clone(),
        overwrite: args.overwrite,
        threads: None,
        timelines: false,
    })
}

/// The log, held against the case.
fn recorded(args: &ImportLogArgs, case: &Case) -> Result<Recorded> {
    let read = |path: &PathBuf| fs::read(path).with_context(|| format!("{}: cannot be read", path.display()));
    let files: Vec<Vec<u8>> = args.files.iter().map(read).collect::<Result<_>>()?;
    let file = args.files[0].display().to_string();
    let mut log = TrainingLog::read(&file, &files.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    if let Some(world) = log.world {
        ensure!(world == case.gpus, "{file}: world size: {world}: expected the GPUs of the case, {}", case.gpus);
    }
    log.keep_batch(&file, case.global_batch)?;
    let names = args.files.iter().filter_map(|path| path.file_name()).map(|name| name.display().to_string());
    Ok(Recorded::new(log, names.collect::<Vec<_>>().join(", "), &files.join(&b'\n')))
}

/// A suite of the one case under the one system.
fn suite(args: &ImportLogArgs) -> Result<Suite> {
    prepare::system("--system", &args.system)?;
    let mut suite = match &args.suite {
        Some(name) => of_suite(args, name)?,
        None => described(args)?,
    };
    let system = &args.system;
    suite.cases[0].plans.extend(args.plan.map(|plan| (system.clone(), plan)));
    suite.cases[0].ranked.retain(|name, _| args.plan.is_none() || name != system);
    let case = &suite.cases[0];
    ensure!(case.layer.is_none(), "{}: one layer alone: expected whole iterations", case.id());
    let Some(plan) = case.plans.get(system) else {
        bail!(
            "--plan: the suite gives {system} no plan: expected that of the training, such as \"pp1 dp8 tp1 ep8 edp1 mb1\""
        );
    };
    // A case may fix a micro-batch for all systems, which the training did not know of.
    suite.cases[0].micro_batch = Some(plan.micro_batch);
    Ok(suite)
}

fn of_suite(args: &ImportLogArgs, name: &str) -> Result<Suite> {
    let mut suite = prepare::suite(name)?;
    part::keep_one(name, &mut suite, args.case.as_ref())?;
    suite.seeds.truncate(1);
    let system = vec![args.system.clone()];
    Ok(Suite { engine: EngineKind::Measured, baseline: system[0].clone(), systems: system, ..without_others(suite) })
}

/// Nothing of the suite's that is of other systems.
fn without_others(suite: Suite) -> Suite {
    Suite { compare: Vec::new(), searched: Vec::new(), figure: Default::default(), ..suite }
}

fn described(args: &ImportLogArgs) -> Result<Suite> {
    let (Some(model), Some(cluster), Some(gpus), Some(batch)) =
        (&args.model, &args.cluster, args.gpus, args.global_batch_size)
    else {
        bail!("--model, --cluster, --gpus and --global-batch-size: expected all four, or --suite");
    };
    check_extent("--gpus", gpus)?;
    check_extent("--global-batch-size", batch)?;
    let mut suite = Suite {
        name: "log".to_owned(),
        description: String::new(),
        systems: vec![args.system.clone()],
        baseline: args.system.clone(),
        compare: Vec::new(),
        searched: Vec::new(),
        iterations: 1,
        warmup: 0,
        seeds: vec![1],
        routing: None,
        trace: TraceUse::default(),
        engine: EngineKind::Measured,
        training: Training::default(),
        figure: Default::default(),
        cases: vec![Case::new(model, cluster, gpus, args.gate, batch)],
    };
    named::suite("moebench import-log", &mut suite, Path::new(""))?;
    suite.description = format!("{} under {}, from a log", suite.cases[0].model, args.system);
    Ok(suite)
}
