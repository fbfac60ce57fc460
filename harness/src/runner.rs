//! Runs every case of a suite under every system, cases side by side, and hands each finished case to the store.
//!
//! All systems of a case see the same routing, iteration by iteration, unless the case says that one trains another model
//! or gate. Cases do not depend on each other, so neither the
//! number of threads nor the order in which they end changes a record.

use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use systems::{CostModel, Plan, PlanError, System};
use workloads::Seconds;
use workloads::trace::BatchCounts;

use crate::prepare::Prepared;
use crate::records::{self, RunKey, RunRecord, Status};
use crate::simulate::{Iteration, Run};
use crate::simulate_layer::LayerRun;
use crate::store::{Frames, Store};

/// The simulator's name in records.
pub const SIMULATED: &str = "simulated";

/// Runs what the store does not hold yet.
///
/// # Errors
/// When a finished case cannot be stored. A run that fails is a row, not an error.
pub fn run_all(cases: &[Prepared], seed: u64, iterations: usize, store: &Store, progress: &ProgressBar) -> Result<()> {
    cases.par_iter().try_for_each(|prepared| {
        let id = case_id(prepared, seed);
        if !store.has_case(&id) {
            let runs = run_case(prepared, seed, iterations, progress);
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

/// What a case asks to be run: whole iterations, or one layer of them.
enum Running<'a> {
    Training(Run<'a>),
    Layer(LayerRun<'a>),
}

impl<'a> Running<'a> {
    fn new(prepared: &'a Prepared, system: &dyn System, plan: Plan, costs: &'a CostModel) -> Option<Self> {
        let job = &prepared.as_run_by(system.name()).job;
        match prepared.case.layer {
            Some(layer) => LayerRun::new(job, costs, system, plan, layer).map(Self::Layer),
            None => Some(Self::Training(Run::new(job, costs, system, plan))),
        }
    }

    fn step(&mut self, batch: &BatchCounts) -> Iteration {
        match self {
            Self::Training(run) => run.step(batch),
            Self::Layer(run) => run.step(batch),
        }
    }
}

/// Runs one case under all of its systems.
fn run_case(prepared: &Prepared, seed: u64, iterations: usize, progress: &ProgressBar) -> Vec<RunRecord> {
    let costs = CostModel::new(&prepared.job.cluster);
    let (mut runs, mut records) = (Vec::new(), Vec::new());
    for &(system, forced) in &prepared.systems {
        let chosen = choose(prepared, system, forced, &costs);
        runs.push(chosen.as_ref().ok().and_then(|chosen| Running::new(prepared, system, chosen.plan, &costs)));
        records.push(record(prepared, system, chosen, seed));
    }
    for t in 0..iterations {
        progress.inc(1);
        if runs.iter().all(Option::is_none) {
            continue;
        }
        let batch = prepared.routing.iteration(t);
        for (run, record) in runs.iter_mut().zip(&mut records) {
            let Some(running) = run else { continue };
            let done = match prepared.different.get(record.key.system) {
                Some(own) => running.step(&own.routing.iteration(t)),
                None => running.step(&batch),
            };
            match done.failure {
                None => record.iterations.push(done),
                Some(reason) => {
                    record.failure = Some((Status::Oom, reason));
                    *run = None;
                }
            }
        }
    }
    records
}

/// The record of a run before its first iteration.
fn record(prepared: &Prepared, system: &dyn System, chosen: Result<Chosen, PlanError>, seed: u64) -> RunRecord {
    let plan = chosen.as_ref().ok().map(|chosen| chosen.plan);
    RunRecord {
        key: RunKey {
            id: prepared.case.id(),
            case: prepared.as_run_by(system.name()).case.clone(),
            system: system.name(),
            seed,
            engine: SIMULATED,
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
