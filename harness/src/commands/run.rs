//! `moebench run`: a suite, or a collection of them, from its file to its figures.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use polars::prelude::{CsvWriter, SerWriter};
use systems::CostModel;
use workloads::suite::{Collection, Described, repeated};
use workloads::trace::RoutingTrace;
use workloads::{Published, Suite};

use crate::commands::engine::{Runs, TrainingArgs};
use crate::engines::Engine;
use crate::failure::{Failure, OrFail};
use crate::figures;
use crate::report::Words;
use crate::runs::prepare::{self, Prepared};
use crate::runs::provenance::{self, Inputs, Provenance};
use crate::runs::runner::Extent;
use crate::runs::store::{self, Frames, Store};
use crate::summary::{Summary, Table};
use crate::{output, report, report::html, report::latex, report::page, runs::runner, summary::model_error, traces};

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

/// Runs the command.
///
/// # Errors
/// Bad input before anything runs; after that, what cannot be written.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let described = prepare::described(&args.suite).or_input()?;
    let trace = traces::load(args.trace.as_deref()).or_input()?;
    match described {
        Described::Suite(suite) => {
            let root = args.out.clone().unwrap_or_else(|| PathBuf::from("results").join(&suite.name));
            run_suite(args, &args.suite, suite, &trace, &root)
        }
        Described::Collection(collection) => run_collection(args, &collection, &trace),
    }
}

/// Every suite of a collection in a folder of its own, and a page that shows them all.
fn run_collection(args: &RunArgs, collection: &Collection, trace: &RoutingTrace) -> Result<(), Failure> {
    if args.systems.is_some() {
        let reason = format!("--systems: {} is a collection: its suites have systems of their own", collection.name);
        return Err(Failure::Input(anyhow::anyhow!(reason)));
    }
    let root = args.out.clone().unwrap_or_else(|| PathBuf::from("results").join(&collection.name));
    let suites: Vec<Suite> = collection
        .suites
        .iter()
        .map(|name| Ok(Suite::named(&collection.name, name)?))
        .collect::<Result<_>>()
        .or_input()?;
    for suite in &suites {
        eprintln!("{}: {}", suite.name, suite.description);
        run_suite(args, &suite.name, suite.clone(), trace, &root.join(&suite.name))?;
    }
    if !args.dry_run {
        let page = page::of_collection(collection, &suites, trace.name());
        let path = root.join("README.md");
        store::write_atomically(&path, |file| Ok(file.write_all(page.as_bytes())?)).or_run()?;
        output::print(format!("\nall figures  {}", path.display())).or_run()?;
    }
    Ok(())
}

/// Runs a suite that is not in a file.
///
/// # Errors
/// As for [`run`].
pub fn run_described(args: &RunArgs, suite: Suite) -> Result<(), Failure> {
    let trace = traces::load(args.trace.as_deref()).or_input()?;
    let root = args.out.clone().unwrap_or_else(|| PathBuf::from("results").join(&suite.name));
    run_suite(args, &args.suite, suite, &trace, &root)
}

/// `file` is what the suite is called in errors.
fn run_suite(args: &RunArgs, file: &str, suite: Suite, trace: &RoutingTrace, root: &Path) -> Result<(), Failure> {
    let suite = adjusted(args, suite).or_input()?;
    let prepared: Vec<(u64, Vec<Prepared>)> = suite
        .seeds
        .iter()
        .map(|&seed| Ok((seed, prepare::cases(file, &suite, trace, seed)?)))
        .collect::<Result<_>>()
        .or_input()?;
    if args.dry_run {
        return dry_run(&prepared).or_run();
    }
    let mut runs = Runs::new(args.engine, &args.training, &suite).or_input()?;
    let extent = Extent { iterations: suite.iterations, timelines: args.timeline };
    prepared.iter().try_for_each(|(seed, cases)| runs.check(cases, *seed, extent)).or_input()?;
    let inputs = inputs(&suite, trace, &prepared, &runs);
    runs.meet(&provenance::sha256(format!("{inputs:?} {}", args.timeline).as_bytes())).or_run()?;
    if let Some(status) = runs.follow(&prepared, extent).or_run()? {
        return if status == 0 { Ok(()) } else { Err(Failure::Reported(status)) };
    }
    let provenance = Provenance::new(runs.engine().name(), inputs);
    let ended = Store::open(root, &provenance, args.overwrite)
        .or_input()
        .and_then(|store| execute(args, &suite, &prepared, &provenance, &store, &runs).or_run());
    runs.dismiss(ended.as_ref().map_or_else(Failure::status, |()| 0));
    ended
}

/// The suite with the command line's changes.
fn adjusted(args: &RunArgs, mut suite: Suite) -> Result<Suite> {
    if let Some(systems) = &args.systems {
        for name in systems {
            prepare::system("--systems", name)?;
        }
        if let Some(system) = repeated(systems) {
            anyhow::bail!("--systems: `{system}` stands twice: expected every system once");
        }
        suite.systems = systems.clone();
        if !systems.contains(&suite.baseline) {
            suite.baseline = systems[0].clone();
        }
        for case in &mut suite.cases {
            case.plans.retain(|name, _| systems.contains(name));
            case.differs.retain(|name, _| systems.contains(name));
        }
    }
    if let Some(seed) = args.seed {
        suite.seeds = vec![seed];
    }
    if let Some(iterations) = args.iterations {
        suite.iterations = iterations;
        suite.warmup = suite.warmup.min(iterations.saturating_sub(1));
    }
    anyhow::ensure!(suite.iterations > 0, "--iterations 0: expected at least 1");
    anyhow::ensure!(args.threads != Some(0), "--threads 0: expected at least 1");
    Ok(suite)
}

fn dry_run(prepared: &[(u64, Vec<Prepared>)]) -> Result<()> {
    let mut table = report::table(&["case", "seed", "system", "plan"], &[]);
    for (seed, cases) in prepared {
        for case in cases {
            let costs = CostModel::new(&case.job.cluster);
            for &(system, forced) in &case.systems {
                let plan = match runner::choose(case, system, forced, &costs) {
                    Ok(chosen) if forced.is_some() => format!("{} (given)", chosen.plan),
                    Ok(chosen) => chosen.plan.to_string(),
                    Err(error) => error.to_string(),
                };
                table.add_row([case.case.id(), seed.to_string(), system.name().to_owned(), plan]);
            }
        }
    }
    output::print(table)?;
    let cases = prepared.first().map_or(&[][..], |(_, cases)| cases);
    report::differences(cases.iter().map(|case| &case.case)).iter().try_for_each(output::print)
}

fn inputs(suite: &Suite, trace: &RoutingTrace, prepared: &[(u64, Vec<Prepared>)], runs: &Runs) -> Inputs {
    let mut hashes = BTreeMap::new();
    let mut hash = |name: String, value: String| hashes.insert(name, provenance::sha256(value.as_bytes()));
    hash(format!("suite {}", suite.name), format!("{suite:?}"));
    hash("engine".to_owned(), runs.describe());
    let cases = prepared.iter().flat_map(|(_, cases)| cases);
    for case in cases.flat_map(|case| std::iter::once(case).chain(case.different.values())) {
        hash(format!("model {}", case.case.model), format!("{:?}", case.job.model));
        hash(format!("cluster {}", case.case.cluster), format!("{:?}", case.job.cluster));
    }
    hashes.insert(format!("trace {}", trace.name()), provenance::trace_hash(trace));
    Inputs {
        program: provenance::program(),
        suite: suite.name.clone(),
        systems: suite.systems.clone(),
        iterations: suite.iterations,
        seeds: suite.seeds.clone(),
        trace: trace.name().to_owned(),
        hashes,
    }
}

fn execute(
    args: &RunArgs,
    suite: &Suite,
    prepared: &[(u64, Vec<Prepared>)],
    provenance: &Provenance,
    store: &Store,
    runs: &Runs,
) -> Result<()> {
    let timelines = || ids(prepared).iter().all(|id| store.has_timelines(id));
    let frames = match store.finished()? {
        Some(frames) if !args.timeline || timelines() => frames,
        _ => run_missing(args, suite, prepared, store, runs)?,
    };
    let mut summary = Summary::new(&frames.iterations, &suite.baseline, suite.warmup as u32)?;
    summary.hold_against(&Published::all()?, &model_error::of_clusters()?);
    let mut frame = summary.frame()?;
    store::write_atomically(&store.path("summary.csv"), |file| {
        CsvWriter::new(&mut *file).finish(&mut frame)?;
        Ok(file.flush()?)
    })?;
    let figure = figures::draw(suite, &summary, &frames.iterations, &provenance.inputs.trace)?;
    store.save_figure(figures::name(suite.figure), &figure)?;
    let origin = figures::origin(&summary, &provenance.inputs.trace);
    if summary.rows.iter().any(|row| row.loss.is_some()) {
        let (seed, cases) = &prepared[0];
        let entropies: Vec<_> = cases.iter().map(|case| runs.entropy(case, *seed)).collect();
        let losses = figures::loss::draw(suite, &Table::new(&frames.iterations)?, &entropies, &origin)?;
        store.save_figure("loss", &losses)?;
    }
    let other = suite.systems.iter().find(|name| name.starts_with("fastermoe") && **name != suite.baseline);
    let words = Words::new(&summary, other.map(String::as_str));
    store.write_text("report.html", &html::run(suite, &summary, &words, &figure, provenance))?;
    store.write_text("tables/summary.tex", &latex::table(&words))?;
    show(args, suite, &summary, (&words, &origin), store)?;
    let broken = summary.rows.iter().find(|row| ["crash", "comm_error", "timeout"].contains(&row.status.as_str()));
    match broken {
        Some(row) => bail!("{} {}: {}: {}", row.case, row.system, row.status, row.reason),
        None => Ok(()),
    }
}

/// Runs what is missing and joins all cases.
fn run_missing(
    args: &RunArgs,
    suite: &Suite,
    prepared: &[(u64, Vec<Prepared>)],
    store: &Store,
    runs: &Runs,
) -> Result<Frames> {
    let length: usize = prepared.iter().map(|(_, cases)| runs.length(cases, suite.iterations)).sum();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build()?;
    let progress = progress_bar(length as u64);
    let extent = Extent { iterations: suite.iterations, timelines: args.timeline };
    pool.install(|| {
        prepared.iter().try_for_each(|(seed, cases)| runs.run_all(cases, *seed, extent, store, &progress))
    })?;
    progress.finish_and_clear();
    store.join(&ids(prepared))
}

/// Every case of every seed, as the store names it.
fn ids(prepared: &[(u64, Vec<Prepared>)]) -> Vec<String> {
    prepared.iter().flat_map(|(seed, cases)| cases.iter().map(|case| runner::case_id(case, *seed))).collect()
}

fn show(
    args: &RunArgs,
    suite: &Suite,
    summary: &Summary,
    (words, origin): (&Words, &str),
    store: &Store,
) -> Result<()> {
    let mut out = output::stdout();
    writeln!(out, "{}", words.to_table()).context("standard output")?;
    for line in report::differences(&suite.cases).iter().chain(&report::failures(summary)) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "\ntimes    {origin}")?;
    writeln!(out, "samples  {}", store.path("iterations.parquet").display())?;
    writeln!(out, "summary  {}", store.path("summary.csv").display())?;
    let figure = format!("figures/{}.svg", figures::name(suite.figure));
    writeln!(out, "figure   {}", store.path(&figure).display())?;
    writeln!(out, "report   {}", store.path("report.html").display())?;
    if summary.rows.iter().any(|row| row.loss.is_some()) {
        writeln!(out, "losses   {}", store.path("figures/loss.svg").display())?;
    }
    if args.timeline {
        writeln!(out, "timelines {}", store.path("timelines").display())?;
    }
    Ok(())
}

/// A bar on a terminal; elsewhere it is hidden, and the runner writes a line per finished case instead.
fn progress_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr_with_hz(4));
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} iterations  {elapsed} of ~{duration}") {
        bar.set_style(style);
    }
    bar
}
