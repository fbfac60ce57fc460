//! `moebench run`: a suite from its file to its figure.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use polars::prelude::{CsvWriter, SerWriter};
use systems::CostModel;
use workloads::Suite;
use workloads::suite::repeated;
use workloads::trace::RoutingTrace;

use crate::cli::{Failure, OrFail, RunArgs};
use crate::figures;
use crate::prepare::{self, Prepared};
use crate::provenance::{self, Inputs, Provenance};
use crate::runner::Extent;
use crate::store::{self, Frames, Store};
use crate::summary::Summary;
use crate::{report, runner, traces};

/// Runs the command.
///
/// # Errors
/// Bad input before anything runs; after that, what cannot be written.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let suite = adjusted(args).or_input()?;
    let trace = traces::load(args.trace.as_deref()).or_input()?;
    let seeds = suite.seeds.clone();
    let prepared: Vec<(u64, Vec<Prepared>)> = seeds
        .iter()
        .map(|&seed| Ok((seed, prepare::cases(&args.suite, &suite, &trace, seed)?)))
        .collect::<Result<_>>()
        .or_input()?;
    if args.dry_run {
        dry_run(&prepared);
        return Ok(());
    }
    let root = args.out.clone().unwrap_or_else(|| PathBuf::from("results").join(&suite.name));
    let inputs = inputs(&suite, &trace, &prepared);
    let store = Store::open(&root, &Provenance::new(runner::SIMULATED, inputs), args.overwrite).or_input()?;
    execute(args, &suite, &prepared, &store).or_run()
}

/// The suite with the command line's changes.
fn adjusted(args: &RunArgs) -> Result<Suite> {
    let mut suite = prepare::suite(&args.suite)?;
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

fn dry_run(prepared: &[(u64, Vec<Prepared>)]) {
    let mut table = report::table(&["case", "seed", "system", "plan"], &[]);
    for (seed, cases) in prepared {
        for case in cases {
            let costs = CostModel::new(&case.job.cluster);
            for &(system, forced) in &case.systems {
                let plan = match runner::choose(case, system, forced, &costs) {
                    Ok(plan) if forced.is_some() => format!("{plan} (given)"),
                    Ok(plan) => plan.to_string(),
                    Err(error) => error.to_string(),
                };
                table.add_row([case.case.id(), seed.to_string(), system.name().to_owned(), plan]);
            }
        }
    }
    println!("{table}");
    if let Some((_, cases)) = prepared.first() {
        report::differences(cases.iter().map(|case| &case.case)).iter().for_each(|line| println!("{line}"));
    }
}

fn inputs(suite: &Suite, trace: &RoutingTrace, prepared: &[(u64, Vec<Prepared>)]) -> Inputs {
    let mut hashes = BTreeMap::new();
    let mut hash = |name: String, value: String| hashes.insert(name, provenance::sha256(value.as_bytes()));
    hash(format!("suite {}", suite.name), format!("{suite:?}"));
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

fn execute(args: &RunArgs, suite: &Suite, prepared: &[(u64, Vec<Prepared>)], store: &Store) -> Result<()> {
    let timelines = || ids(prepared).iter().all(|id| store.has_timelines(id));
    let frames = match store.finished()? {
        Some(frames) if !args.timeline || timelines() => frames,
        _ => simulate(args, suite, prepared, store)?,
    };
    let summary = Summary::new(&frames.iterations, &suite.baseline, suite.warmup as u32)?;
    let mut frame = summary.frame()?;
    store::write_atomically(&store.path("summary.csv"), |file| {
        CsvWriter::new(&mut *file).finish(&mut frame)?;
        Ok(file.flush()?)
    })?;
    store.save_figure("end_to_end", &figures::end_to_end::draw(suite, &summary)?)?;
    show(args, suite, &summary, store)
}

/// Runs what is missing and joins all cases.
fn simulate(args: &RunArgs, suite: &Suite, prepared: &[(u64, Vec<Prepared>)], store: &Store) -> Result<Frames> {
    let cases: usize = prepared.iter().map(|(_, cases)| cases.len()).sum();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0)).build()?;
    let progress = progress_bar((cases * suite.iterations) as u64);
    let extent = Extent { iterations: suite.iterations, timelines: args.timeline };
    pool.install(|| {
        prepared.iter().try_for_each(|(seed, cases)| runner::run_all(cases, *seed, extent, store, &progress))
    })?;
    progress.finish_and_clear();
    store.join(&ids(prepared))
}

/// Every case of every seed, as the store names it.
fn ids(prepared: &[(u64, Vec<Prepared>)]) -> Vec<String> {
    prepared.iter().flat_map(|(seed, cases)| cases.iter().map(|case| runner::case_id(case, *seed))).collect()
}

fn show(args: &RunArgs, suite: &Suite, summary: &Summary, store: &Store) -> Result<()> {
    let other = suite.systems.iter().find(|name| name.starts_with("fastermoe") && **name != suite.baseline);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", report::summary(summary, other.map(String::as_str))).context("standard output")?;
    for line in report::differences(&suite.cases).iter().chain(&report::failures(summary)) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "\nsamples  {}", store.path("iterations.parquet").display())?;
    writeln!(out, "summary  {}", store.path("summary.csv").display())?;
    writeln!(out, "figure   {}", store.path("figures/end_to_end.svg").display())?;
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
