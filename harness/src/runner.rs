//! Runs every case of a suite under every system, cases side by side, and hands each finished case to the store.
//!
//! All systems of a case see the same routing, iteration by iteration, unless the case says that one trains another model
//! or gate. Cases do not depend on each other, so neither the
//! number of threads nor the order in which they end changes a record.

use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use systems::timeline::Span;
use systems::{CostModel, Plan, PlanError, System};

use crate::prepare::Prepared;
use crate::records::{self, RunKey, RunRecord, Status};
use crate::simulate::Run;
use crate::store::{Frames, Store};
use crate::timeline::Timeline;

/// The simulator's name in records.
pub const SIMULATED: &str = "simulated";

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
        let id = case_id(prepared, seed);
        if !store.has_case(&id) || (extent.timelines && !store.has_timelines(&id)) {
            let (runs, last) = run_case(prepared, seed, extent, progress);
            if extent.timelines {
                // Before the frames, which mark a case as finished.
                write_timelines(&id, &runs, &last, store)?;
            }
            let mut frames =
                Frames { iterations: records::iterations_frame(&runs)?, spans: records::spans_frame(&runs)? };
            store.write_case(&id, &mut frames)?;
            if progress.is_hidden() {
                eprintln!("{id}: done");
            }
        }
        Ok(())
    })
}

/// The name of a case's files in the store.
pub fn case_id(prepared: &Prepared, seed: u64) -> String {
    format!("{}.seed{seed}", prepared.case.id())
}

fn write_timelines(id: &str, runs: &[RunRecord], last: &[Vec<Span>], store: &Store) -> Result<()> {
    let reached = runs.iter().zip(last).filter(|(_, spans)| !spans.is_empty());
    let timelines = reached.map(|(run, spans)| (run.key.system, Timeline { engine: SIMULATED, spans }));
    store.write_timelines(id, timelines)
}

/// Runs one case under all of its systems; returns the record of each and, where asked for and reached, the spans of its
/// last iteration.
fn run_case(
    prepared: &Prepared,
    seed: u64,
    extent: Extent,
    progress: &ProgressBar,
) -> (Vec<RunRecord>, Vec<Vec<Span>>) {
    let costs = CostModel::new(&prepared.job.cluster);
    let plans: Vec<Result<Plan, PlanError>> =
        prepared.systems.iter().map(|&(system, forced)| choose(prepared, system, forced, &costs)).collect();
    let mut runs: Vec<Option<Run>> = prepared
        .systems
        .iter()
        .zip(&plans)
        .map(|(&(system, _), plan)| {
            let job = &prepared.as_run_by(system.name()).job;
            plan.as_ref().ok().map(|plan| Run::new(job, &costs, system, *plan))
        })
        .collect();
    let mut records: Vec<RunRecord> = prepared
        .systems
        .iter()
        .zip(&plans)
        .map(|(&(system, _), plan)| RunRecord {
            key: RunKey {
                id: prepared.case.id(),
                case: prepared.as_run_by(system.name()).case.clone(),
                system: system.name(),
                seed,
                engine: SIMULATED,
                plan: plan.as_ref().ok().copied(),
            },
            iterations: Vec::with_capacity(extent.iterations),
            failure: plan.as_ref().err().map(|error| (status_of(error), error.to_string())),
        })
        .collect();
    let mut last = vec![Vec::new(); records.len()];
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
            let done = if observed { running.observe(batch, spans) } else { running.step(batch) };
            match done.failure {
                None => record.iterations.push(done),
                Some(reason) => {
                    record.failure = Some((Status::Oom, reason));
                    *run = None;
                }
            }
        }
    }
    (records, last)
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
) -> Result<Plan, PlanError> {
    match forced {
        Some(plan) => Ok(plan),
        None => system.plan(&prepared.as_run_by(system.name()).job, costs),
    }
}

fn status_of(error: &PlanError) -> Status {
    match error {
        PlanError::Memory { .. } => Status::Oom,
        _ => Status::Skipped,
    }
}
