//! Runs every case of a suite under every system, cases side by side, and hands each finished case to the store.
//!
//! All systems of a case see the same routing, iteration by iteration, unless the case says that one trains another model
//! or gate. Cases do not depend on each other, so neither the
//! number of threads nor the order in which they end changes a record.

use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use systems::iteration::timeline::Span;
use systems::{CostModel, Plan, PlanError, System};
use workloads::Seconds;

use crate::engines::Engine;
use crate::report::timeline::Timeline;
use crate::runs::prepare::Prepared;
use crate::runs::records::{self, RunKey, RunRecord, Status};
use crate::runs::store::{Frames, Store};
use systems::iteration::run::{Failure, Run};

/// What of a suite is run.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Training iterations.
    pub iterations: usize,
    /// Whether the last one is also kept as a timeline.
    pub timelines: bool,
}

/// Runs what the store does not hold yet.
///
/// # Errors
/// When a finished case cannot be stored. A run that fails is a row, not an error.
pub fn run_all(cases: &[Prepared], seed: u64, extent: Extent, store: &Store, progress: &ProgressBar) -> Result<()> {
    cases.par_iter().try_for_each(|prepared| {
        run_one(prepared, seed, extent, store, progress, || Ok(run_case(prepared, seed, extent, progress)))
    })
}

/// Every system's record of a case and, where asked for, the spans of its last iteration.
pub type Ran = (Vec<RunRecord>, Vec<Shown>);

/// The spans of one iteration, by each engine that ran it.
pub type Shown = Vec<(Engine, Vec<Span>)>;

/// Runs a case by `run` if the store does not hold it yet, and stores it.
///
/// # Errors
/// What `run` says; a case that cannot be stored.
pub fn run_one(
    prepared: &Prepared,
    seed: u64,
    extent: Extent,
    store: &Store,
    progress: &ProgressBar,
    run: impl FnOnce() -> Result<Ran>,
) -> Result<()> {
    let id = case_id(prepared, seed);
    if store.has_case(&id) && (!extent.timelines || store.has_timelines(&id)) {
        return Ok(());
    }
    let (runs, last) = run()?;
    if extent.timelines {
        // Before the frames, which mark a case as finished.
        write_timelines(&id, &runs, &last, store)?;
    }
    let mut frames = Frames { iterations: records::iterations_frame(&runs)?, spans: records::spans_frame(&runs)? };
    store.write_case(&id, &mut frames)?;
    if progress.is_hidden() {
        eprintln!("{id}: done");
    }
    Ok(())
}

/// The name of a case's files in the store.
pub fn case_id(prepared: &Prepared, seed: u64) -> String {
    format!("{}.seed{seed}", prepared.case.id())
}

fn write_timelines(id: &str, runs: &[RunRecord], last: &[Shown], store: &Store) -> Result<()> {
    let reached = runs.iter().zip(last).filter(|(_, shown)| !shown.is_empty());
    let timelines = reached.map(|(run, shown)| {
        let timelines = shown.iter().map(|(engine, spans)| Timeline { engine: engine.name(), spans });
        (run.key.system, timelines.collect())
    });
    store.write_timelines(id, timelines)
}

/// Runs one case under all of its systems; returns the record of each and, where asked for and reached, the spans of its
/// last iteration.
fn run_case(prepared: &Prepared, seed: u64, extent: Extent, progress: &ProgressBar) -> Ran {
    let costs = CostModel::new(&prepared.job.cluster);
    let (mut runs, mut records) = (Vec::new(), Vec::new());
    for &(system, forced) in &prepared.systems {
        let chosen = choose(prepared, system, forced, &costs);
        let job = &prepared.as_run_by(system.name()).job;
        runs.push(chosen.as_ref().ok().map(|chosen| Run::new(job, &costs, system, chosen.plan)));
        records.push(record(prepared, system, chosen, seed, Engine::Simulate));
    }
    let mut last: Vec<Vec<Span>> = vec![Vec::new(); records.len()];
    for t in 0..extent.iterations {
        progress.inc(1);
        if runs.iter().all(Option::is_none) {
            continue;
        }
        let batch = prepared.routing.iteration(t);
        let observed = extent.timelines && t + 1 == extent.iterations;
        for ((run, record), spans) in runs.iter_mut().zip(&mut records).zip(&mut last) {
            let Some(running) = run else { continue };
            let own = prepared.different.get(record.key.system).map(|own| own.routing.iteration(t));
            let batch = own.as_ref().unwrap_or(&batch);
            let done = if observed {
                let (done, seen) = running.observe(batch);
                *spans = seen;
                done
            } else {
                running.step(batch)
            };
            match done.failure {
                None => record.iterations.push(done),
                Some(failure) => {
                    let status = match failure {
                        Failure::Memory(_) => Status::Oom,
                        Failure::Placement(_) => Status::Crash,
                    };
                    record.failure = Some((status, failure.to_string()));
                    *run = None;
                }
            }
        }
    }
    let shown = |spans: Vec<Span>| if spans.is_empty() { Vec::new() } else { vec![(Engine::Simulate, spans)] };
    (records, last.into_iter().map(shown).collect())
}

/// The record of a run before its first iteration.
pub fn record(
    prepared: &Prepared,
    system: &dyn System,
    chosen: Result<Chosen, PlanError>,
    seed: u64,
    engine: Engine,
) -> RunRecord {
    let plan = chosen.as_ref().ok().map(|chosen| chosen.plan);
    RunRecord {
        key: RunKey {
            id: prepared.case.id(),
            case: prepared.as_run_by(system.name()).case.clone(),
            system: system.name(),
            seed,
            engine,
            plan,
            expected: chosen.as_ref().ok().and_then(|chosen| chosen.expected),
        },
        iterations: Vec::new(),
        failure: chosen.err().map(|error| (status_of(&error), error.to_string())),
    }
}

/// The plan of a run.
pub struct Chosen {
    /// The plan.
    pub plan: Plan,
    /// What the system's offline search expects an iteration to take; nothing where the plan was given.
    pub expected: Option<Seconds>,
}

/// The forced plan, or the system's own choice.
///
/// # Errors
/// When no plan fits.
pub fn choose(
    prepared: &Prepared,
    system: &dyn System,
    forced: Option<Plan>,
    costs: &CostModel,
) -> Result<Chosen, PlanError> {
    match forced {
        Some(plan) => Ok(Chosen { plan, expected: None }),
        None => {
            let (plan, estimate) = system.best(&prepared.as_run_by(system.name()).job, costs)?;
            Ok(Chosen { plan, expected: Some(estimate.step) })
        }
    }
}

fn status_of(error: &PlanError) -> Status {
    match error {
        PlanError::Memory { .. } => Status::Oom,
        _ => Status::Skipped,
    }
}
