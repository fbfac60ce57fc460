//! `moebench run`: a suite, or a collection of them, from its file to its figures.

use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Args;
use workloads::suite::{Collection, SuiteFile, repeated};
use workloads::trace::RoutingTrace;
use workloads::{EngineKind, Suite};

use crate::commands::{PlanRule, check_extent};
use crate::failure::{Failure, OrFail};
use crate::output;
use crate::pipeline::{self, RunRequest};
use runs::engines::Session;
use runs::engines::args::TrainingArgs;
use runs::report::{self, page};
use runs::traces::CaseTraces;
use runs::{prepare, store, traces};

/// `moebench run`.
#[derive(Args)]
pub struct RunArgs {
    /// A suite by name (see `moebench list`), or the path of a suite's TOML
    suite: String,
    /// What runs it instead of the suite's engine: `simulate`, `train` or `emulate`
    #[arg(long)]
    engine: Option<EngineKind>,
    /// Systems to run instead of the suite's, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    systems: Option<Vec<String>>,
    /// Whose plans run: those of each system's own rule, or those that SmartMoE's search finds for every system [default: the
    /// suite's]
    #[arg(long, value_name = "WHOSE")]
    plan: Option<PlanRule>,
    /// Routing trace, of any kind that `trace import` reads [default: the suite's routing, or a synthetic one]
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Iteration of the trace that training begins at, instead of the suite's
    #[arg(long, value_name = "LABEL")]
    trace_start: Option<u32>,
    /// One seed instead of the suite's
    #[arg(long)]
    seed: Option<u64>,
    /// Training iterations instead of the suite's
    #[arg(long)]
    iterations: Option<usize>,
    /// Folder for the results [default: results/SUITE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    overwrite: bool,
    /// Worker threads; the results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Also write the last iteration of every case and system as a timeline for Perfetto or Chrome: timelines/CASE/SYSTEM.json
    #[arg(long)]
    timeline: bool,
    /// List cases and the plans that would run, and stop
    #[arg(long)]
    dry_run: bool,
    /// How models are trained
    #[command(flatten)]
    training: TrainingArgs,
}

/// # Errors
/// Bad input before anything runs; after that, what cannot be written.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let file = prepare::suite_file(&args.suite).or_input()?;
    let out = |name: &str| args.out.clone().unwrap_or_else(|| PathBuf::from("results").join(name));
    match file {
        SuiteFile::Suite(suite) => {
            let (out, suite) = (out(&suite.name), adjusted(args, *suite).or_input()?);
            let traces = case_traces(args, &args.suite, &suite, &load(args)).or_input()?;
            run_suite(args, &args.suite, suite, &traces, out)
        }
        SuiteFile::Collection(collection) => run_collection(args, &collection, out(&collection.name)),
    }
}

/// Every suite of a collection in a folder of its own, and a page that shows them all.
fn run_collection(args: &RunArgs, collection: &Collection, out: PathBuf) -> Result<(), Failure> {
    if args.systems.is_some() {
        let name = &collection.name;
        return Err(Failure::Input(anyhow!("--systems: {name} is a collection: its suites have systems of their own")));
    }
    let suites = collection.suites.iter().map(|name| Suite::named(&collection.name, name));
    let suites: Vec<Suite> = suites.map(|suite| adjusted(args, suite?)).collect::<Result<_>>().or_input()?;
    // Loaded once for all suites.
    let load = load(args);
    let mut names: Vec<String> = Vec::new();
    for suite in &suites {
        eprintln!("{}: {}", suite.name, suite.description);
        let traces = case_traces(args, &suite.name, suite, &load).or_input()?;
        names.extend((!names.contains(&traces.name())).then(|| traces.name()));
        run_suite(args, &suite.name, suite.clone(), &traces, out.join(&suite.name))?;
    }
    if !args.dry_run {
        let path = out.join("README.md");
        store::write_text(&path, &page::of_collection(collection, &suites, &names.join("; "))).or_run()?;
        output::print(format!("\nall figures  {}", path.display())).or_run()?;
    }
    Ok(())
}

/// Loads the trace of the command line, or the default, once.
fn load(args: &RunArgs) -> impl Fn() -> Result<Arc<RoutingTrace>> {
    let loaded = OnceCell::new();
    let path = args.trace.clone();
    move || {
        if let Some(trace) = loaded.get() {
            return Ok(Arc::clone(trace));
        }
        let trace = Arc::new(traces::load(path.as_deref())?);
        Ok(Arc::clone(loaded.get_or_init(|| trace)))
    }
}

/// The routing of every case: a trace that the command line names goes before what suite and cases state.
fn case_traces(
    args: &RunArgs,
    file: &str,
    suite: &Suite,
    load: &dyn Fn() -> Result<Arc<RoutingTrace>>,
) -> Result<CaseTraces> {
    if args.trace.is_some() { Ok(load()?.into()) } else { prepare::stated_routing(file, suite, load) }
}

/// `file` is what errors call the suite.
fn run_suite(args: &RunArgs, file: &str, suite: Suite, traces: &CaseTraces, out: PathBuf) -> Result<(), Failure> {
    if args.dry_run {
        return dry_run(file, &suite, traces);
    }
    let session = Session::open(args.engine.unwrap_or(suite.engine), &args.training, &suite).or_input()?;
    pipeline::execute(&RunRequest {
        suite,
        file: file.to_owned(),
        traces,
        replay: args.training.replay,
        session,
        out,
        overwrite: args.overwrite,
        threads: args.threads,
        timelines: args.timeline,
    })
}

/// The suite with the command line's changes.
fn adjusted(args: &RunArgs, mut suite: Suite) -> Result<Suite> {
    if let Some(systems) = &args.systems {
        for name in systems {
            prepare::system("--systems", name)?;
        }
        if let Some(system) = repeated(systems) {
            bail!("--systems: `{system}` is given twice: expected every system once");
        }
        suite.systems = systems.clone();
        if !systems.contains(&suite.baseline) {
            suite.baseline = systems[0].clone();
        }
        for case in &mut suite.cases {
            case.plans.retain(|name, _| systems.contains(name));
            case.differs.retain(|name, _| systems.contains(name));
        }
        suite.compare.retain(|name| systems.contains(name) && *name != suite.baseline);
        suite.searched.retain(|name| systems.contains(name));
    }
    match args.plan {
        Some(PlanRule::Searched) => suite.searched = suite.systems.clone(),
        Some(PlanRule::Own) => suite.searched.clear(),
        None => {}
    }
    if let Some(seed) = args.seed {
        suite.seeds = vec![seed];
    }
    suite.trace.start = args.trace_start.or(suite.trace.start);
    if let Some(iterations) = args.iterations {
        suite.iterations = iterations;
        suite.warmup = suite.warmup.min(iterations.saturating_sub(1));
    }
    check_extent("--iterations", suite.iterations)?;
    ensure!(args.threads != Some(0), "--threads 0: expected at least 1");
    Ok(suite)
}

/// Shows the plans that would run.
fn dry_run(file: &str, suite: &Suite, traces: &CaseTraces) -> Result<(), Failure> {
    let mut table = report::table(&["case", "seed", "system", "plan"], &[]);
    for case in prepare::cases(file, suite, |case| traces.of(case)).or_input()? {
        for run in &case.runs {
            let plan = match run.plan() {
                Ok(chosen) if chosen.expected.is_none() => format!("{} (given)", chosen.plan),
                Ok(chosen) => chosen.plan.to_string(),
                Err(error) => error.to_string(),
            };
            table.add_row([case.case.id(), case.seed.to_string(), run.system.name().to_owned(), plan]);
        }
    }
    output::print(table).or_run()?;
    report::differences(&suite.cases).iter().try_for_each(output::print).or_run()
}
