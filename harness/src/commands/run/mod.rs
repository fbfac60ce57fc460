//! `moebench run`: a suite, or a collection of them, from its file to its figures.

mod dry;
pub(crate) mod folder;
pub(crate) mod joined;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, Parser};
use workloads::suite::{Collection, SuiteFile, repeated};
use workloads::trace::RoutingTrace;
use workloads::{Case, Change, EngineKind, Suite};

use crate::commands::run::joined::Joined;
use crate::commands::{PlanRule, check_extent, note_emulation};
use crate::failure::{Failure, OrFail};
use crate::output;
use crate::pipeline::{self, RunRequest};
use runs::engines::Session;
use runs::engines::args::TrainingArgs;
use runs::part::{self, Pattern, Shard};
use runs::provenance::Inputs;
use runs::report::page;
use runs::store::Store;
use runs::traces::CaseTraces;
use runs::{prepare, store, traces};

const EXAMPLES: &str = "\
Examples:
  moebench run paper-gpt --dry-run                             its cases and plans, and how long it would take
  moebench run mine.toml --case 'gpt*.16.*' --seed 2           some of a suite's cases, under another seed
  moebench run smoke --set model=mine.toml --set iterations=50
  moebench run mine.toml --shard 2/4 --out part2               a quarter; then: moebench merge whole part1 part2 part3 part4";

/// `moebench run`.
#[derive(Args, Clone)]
#[command(after_help = EXAMPLES)]
pub struct RunArgs {
    /// A suite by name (see `moebench list`), or the path of a suite's TOML
    suite: String,
    /// Run one case alone by its id, or those whose id has this in it, or is like it where it has a `*`; again for more
    #[arg(long, value_name = "PATTERN")]
    case: Vec<Pattern>,
    /// Change a field of the suite, or else of every case, before anything else: `gpus=[16, 32]`, `plans.smartmoe=3` (the third
    /// plan of `moebench plan`); again for more
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<Change>,
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
    /// Routing trace, of any kind that `trace import` reads, `gpt-routing`, which this program has recorded, or `synthetic` [default: the suite's routing, or `synthetic`]
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
    /// Run one of N equal parts of the cases alone, for `moebench merge` to join; `slurm/N` takes I from the task of a job array, `slurm` N as well
    #[arg(long, value_name = "I/N", value_parser = shard)]
    shard: Option<Shard>,
    /// Folder for the results [default: results/SUITE, with a hash where anything is asked for otherwise than the suite has it;
    /// results/latest leads to the last one]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Worker threads; the results do not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Also write the last iteration of every case and system as a timeline for Perfetto or Chrome, timelines/CASE.seedN/SYSTEM.json, and as Chakra execution traces, SYSTEM.RANK.et
    #[arg(long)]
    pub(crate) timeline: bool,
    /// List cases and the plans that would run, say about how long it would take, and stop
    #[arg(long)]
    dry_run: bool,
    /// How models are trained
    #[command(flatten)]
    training: TrainingArgs,
}

/// # Errors
/// Bad input before anything runs; after that, what cannot be written.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let file = prepare::suite_file(&args.suite, &changes(args)).or_input()?;
    let out = |name: &str| args.out.clone().unwrap_or_else(|| folder::default(name, &args.otherwise()));
    let (out, ended) = match file {
        SuiteFile::Suite(suite) => {
            let out = out(&suite.name);
            args.training.check(&args.suite, args.engine.unwrap_or(suite.engine)).or_input()?;
            let (suite, traces) = asked(args, *suite).or_input()?;
            (out.clone(), run_suite(args, &args.suite, suite, &traces, out))
        }
        SuiteFile::Collection(collection) => {
            let out = out(&collection.name);
            (out.clone(), run_collection(args, &collection, out))
        }
    };
    if args.out.is_none() && !args.dry_run {
        folder::link_latest(&out, &ended);
    }
    ended
}

/// The suite with the command line's changes, and its routing.
fn asked(args: &RunArgs, suite: Suite) -> Result<(Suite, CaseTraces)> {
    let mut suite = adjusted(args, suite)?;
    some_cases(args, std::slice::from_mut(&mut suite))?;
    if let Some(shard) = args.shard {
        let cases = suite.cases.len();
        shard.keep(&mut suite);
        ensure!(!suite.cases.is_empty(), "--shard {shard}: there are {cases} cases: expected at most as many shards");
    }
    let traces = prepare::case_traces(&args.suite, &suite, args.trace.is_some(), &load(args))?;
    Ok((suite, traces))
}

/// `I/N`, `slurm/N` or `slurm`.
fn shard(text: &str) -> Result<Shard, String> {
    if text.starts_with("slurm") { Shard::of_array(text, |name| std::env::var(name).ok()) } else { text.parse() }
}

/// A command line of `moebench run` that was written down.
#[derive(Parser)]
struct Rerun {
    #[command(flatten)]
    args: RunArgs,
}

impl RunArgs {
    /// What a run's command asked for, of the whole suite and without a folder.
    ///
    /// # Errors
    /// Another command.
    pub(crate) fn of_command(command: &[String]) -> Result<Self> {
        let mut words = command.iter().skip(1).map(String::as_str);
        ensure!(words.next() == Some("run"), "run.json: command {command:?}: expected one of moebench run");
        let mut kept = vec!["moebench run"];
        while let Some(word) = words.next() {
            match word {
                "--shard" | "--out" => drop(words.next()),
                "--overwrite" => {}
                _ if word.starts_with("--shard=") || word.starts_with("--out=") => {}
                _ => kept.push(word),
            }
        }
        Ok(Rerun::try_parse_from(kept).context("run.json: command")?.args)
    }

    /// What is asked for otherwise than the suite has it, as text; empty where nothing is.
    fn otherwise(&self) -> String {
        let training = &self.training;
        let mut said = Vec::new();
        let mut say = |is: bool, what: String| said.extend(is.then_some(what));
        say(!self.case.is_empty(), format!("case {:?}", self.case));
        say(!self.set.is_empty(), format!("set {:?}", self.set));
        say(self.engine.is_some(), format!("engine {:?}", self.engine));
        say(self.systems.is_some(), format!("systems {:?}", self.systems));
        say(self.plan.is_some(), format!("plan {:?}", self.plan));
        say(self.trace.is_some(), format!("trace {:?}", self.trace));
        say(self.trace_start.is_some(), format!("start {:?}", self.trace_start));
        say(self.seed.is_some(), format!("seed {:?}", self.seed));
        say(self.iterations.is_some(), format!("iterations {:?}", self.iterations));
        say(self.shard.is_some(), format!("shard {:?}", self.shard));
        say(!training.is_default(), training.what_is_trained());
        said.join("; ")
    }
}

/// The suite that the arguments name, for one shard or whole; its routing.
fn of_shard(args: &RunArgs, shard: Option<Shard>) -> Result<(RunArgs, Suite, CaseTraces)> {
    let args = RunArgs { shard, ..args.clone() };
    let SuiteFile::Suite(suite) = prepare::suite_file(&args.suite, &changes(&args))? else {
        bail!("{}: a collection of suites: expected a suite", args.suite);
    };
    let (suite, traces) = asked(&args, *suite)?;
    Ok((args, suite, traces))
}

/// The inputs of a shard's run.
pub(crate) fn inputs(args: &RunArgs, joined: Option<&Joined>, shard: Option<Shard>) -> Result<Inputs, Failure> {
    let (args, suite, traces) = of_shard(args, shard).or_input()?;
    let (file, out) = (args.suite.clone(), PathBuf::new());
    let session = session(&args, &suite, joined).or_input()?;
    pipeline::inputs(&request(&args, &file, suite, &traces, out, session))
}

/// What was trained by shards is trained by nobody now.
fn session(args: &RunArgs, suite: &Suite, joined: Option<&Joined>) -> Result<Session> {
    match joined {
        Some(joined) => Ok(Session::Leader(Box::new(joined.clone()))),
        None => Session::open(args.engine.unwrap_or(suite.engine), &args.training, suite),
    }
}

/// The cases of a shard of the request's suite: id of the files, case, seed.
pub(crate) fn cases_of(request: &RunRequest, shard: Shard) -> Vec<(String, String, u64)> {
    let mut suite = request.suite.clone();
    shard.keep(&mut suite);
    let of_seed = |&seed: &u64| {
        let named = |case: &Case| (prepare::case_id(&case.id(), seed), case.id(), seed);
        suite.cases.iter().map(named).collect::<Vec<_>>()
    };
    suite.seeds.iter().flat_map(of_seed).collect()
}

/// Runs the whole suite where `fill` has put cases that need not be run.
pub(crate) fn whole(
    args: &RunArgs,
    joined: Option<&Joined>,
    out: &Path,
    fill: impl Fn(&Store, &RunRequest) -> Result<()>,
) -> Result<(), Failure> {
    let (args, suite, traces) = of_shard(args, None).or_input()?;
    let session = session(&args, &suite, joined).or_input()?;
    let mut request = request(&args, &args.suite, suite, &traces, out.to_owned(), session);
    pipeline::fill(&request, &fill)?;
    // It is open now, and what was filled in stays.
    request.overwrite = false;
    pipeline::execute(&request)
}

/// Every suite of a collection in a folder of its own, and a page that shows them all.
fn run_collection(args: &RunArgs, collection: &Collection, out: PathBuf) -> Result<(), Failure> {
    let name = &collection.name;
    if let Some(shard) = args.shard {
        return Err(Failure::Input(anyhow!("--shard {shard}: {name} is a collection: expected one of its suites")));
    }
    if args.systems.is_some() {
        return Err(Failure::Input(anyhow!("--systems: {name} is a collection: its suites have systems of their own")));
    }
    let changes = changes(args);
    let suites =
        collection.suites.iter().map(|name| adjusted(args, prepare::changed(&collection.name, name, &changes)?));
    let mut suites: Vec<Suite> = suites.collect::<Result<_>>().or_input()?;
    let trained = suites.iter().map(|suite| args.engine.unwrap_or(suite.engine)).find(|engine| engine.trains());
    args.training.check(name, trained.unwrap_or_default()).or_input()?;
    some_cases(args, &mut suites).or_input()?;
    suites.retain(|suite| !suite.cases.is_empty());
    let page = out.join("README.md");
    if page.exists() && !args.overwrite && !suites.iter().any(|suite| out.join(&suite.name).join("run.json").exists()) {
        return Err(Failure::Input(anyhow!("{}: is there already, of no run: choose another --out", page.display())));
    }
    // Loaded once for all suites.
    let load = load(args);
    let mut names: Vec<String> = Vec::new();
    for suite in &suites {
        output::say(format_args!("{}: {}", suite.name, suite.description));
        let traces = prepare::case_traces(&suite.name, suite, args.trace.is_some(), &load).or_input()?;
        names.extend((!names.contains(&traces.name())).then(|| traces.name()));
        run_suite(args, &suite.name, suite.clone(), &traces, out.join(&suite.name))?;
    }
    if !args.dry_run {
        store::write_text(&page, &page::of_collection(collection, &suites, &names.join("; "))).or_run()?;
        output::print(format!("\nall figures  {}", page.display())).or_run()?;
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

/// `file` is what errors call the suite.
fn run_suite(args: &RunArgs, file: &str, suite: Suite, traces: &CaseTraces, out: PathBuf) -> Result<(), Failure> {
    let engine = args.engine.unwrap_or(suite.engine);
    if args.dry_run {
        return dry::show(file, &suite, traces, args.training.under_clock(engine), args.threads);
    }
    check_replay(args, engine, file, &suite).or_input()?;
    note_emulation(args.training.under_clock(engine), &suite);
    let session = session(args, &suite, None).or_input()?;
    pipeline::execute(&request(args, file, suite, traces, out, session))
}

/// A gate that is trained chooses for itself: cases that a routing of their own tells apart would be one.
fn check_replay(args: &RunArgs, engine: EngineKind, file: &str, suite: &Suite) -> Result<()> {
    let of_case = suite.cases.iter().find(|case| engine.trains() && !case.routing.is_empty());
    match of_case {
        Some(case) if !args.training.replay => {
            let (number, routing) = (case.number, case.routing[0].label());
            bail!(
                "{file}: cases[{number}].routing = {routing}: expected --replay, because a trained gate chooses for itself"
            )
        }
        _ => Ok(()),
    }
}

fn request<'t>(
    args: &RunArgs,
    file: &str,
    suite: Suite,
    traces: &'t CaseTraces,
    out: PathBuf,
    session: Session,
) -> RunRequest<'t> {
    RunRequest {
        suite,
        file: file.to_owned(),
        shard: args.shard,
        traces,
        replay: args.training.replay,
        session,
        out,
        overwrite: args.overwrite,
        threads: args.threads,
        timelines: args.timeline,
    }
}

/// The changed fields; files of models, clusters and traces are relative to the current folder, not to the suite's.
fn changes(args: &RunArgs) -> Vec<Change> {
    let absolute = |path: &str| std::path::absolute(path).map_or(path.to_owned(), |path| path.display().to_string());
    args.set.iter().map(|change| change.clone().with_files(&absolute)).collect()
}

/// Keeps the cases that the patterns mean; refuses patterns that leave none.
fn some_cases(args: &RunArgs, suites: &mut [Suite]) -> Result<()> {
    part::keep(suites, &args.case);
    if suites.iter().any(|suite| !suite.cases.is_empty()) {
        return Ok(());
    }
    let all = match prepare::suite_file(&args.suite, &changes(args))? {
        SuiteFile::Suite(suite) => suite.cases.iter().map(Case::id).collect(),
        SuiteFile::Collection(collection) => collection.suites,
    };
    bail!("--case: no case of {} is like that; it has {}", args.suite, all.join(", "))
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
            case.ranked.retain(|name, _| systems.contains(name));
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
        let warmup = suite.warmup.min(iterations.saturating_sub(1));
        if warmup < suite.warmup {
            let (name, stated) = (&suite.name, suite.warmup);
            output::say(format_args!(
                "{name}: --iterations {iterations}: a warm-up of {warmup} instead of {stated}: {} counts",
                iterations - warmup
            ));
        }
        (suite.iterations, suite.warmup) = (iterations, warmup);
    }
    check_extent("--iterations", suite.iterations)?;
    ensure!(args.threads != Some(0), "--threads 0: expected at least 1");
    Ok(suite)
}
