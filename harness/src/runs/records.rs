//! Records: the rows of a run and their Polars frames.
//!
//! One row of `iterations` per (case, system, seed, iteration); one row of `spans` per (case, system, seed, iteration,
//! stage, phase). Every row states how it was obtained (`engine`) and whether it is valid (`status`).

use polars::prelude::{Column, DataFrame, PolarsResult};
use systems::Plan;
use systems::iteration::Peak;
use systems::price::ledger::Phase;
use workloads::{Bytes, Case, Seconds};

use crate::engines::Engine;
use systems::iteration::run::Iteration;

/// Version of the columns below; raised whenever one is added or changes its meaning.
pub const SCHEMA_VERSION: u32 = 2;

/// How an iteration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It ran.
    Ok,
    /// A rank's memory was too small.
    Oom,
    /// It never began: no plan fits the case.
    Skipped,
    /// A rank did not arrive in time.
    Timeout,
    /// An exchange between ranks failed.
    CommError,
    /// A rank died.
    Crash,
}

impl Status {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Oom => "oom",
            Status::Skipped => "skipped",
            Status::Timeout => "timeout",
            Status::CommError => "comm_error",
            Status::Crash => "crash",
        }
    }
}

/// What a run's rows have in common.
#[derive(Clone, Debug)]
pub struct RunKey {
    /// Name of the suite's case.
    pub id: String,
    /// The case as the system ran it.
    pub case: Case,
    /// The system's name.
    pub system: &'static str,
    /// Seed of the routing.
    pub seed: u64,
    /// How the numbers were obtained.
    pub engine: Engine,
    /// The plan, if one was found.
    pub plan: Option<Plan>,
    /// What the system's offline search expects an iteration to take, if it chose the plan.
    pub expected: Option<Seconds>,
}

/// One run's rows.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// What the rows have in common.
    pub key: RunKey,
    /// The iterations, in order; the last one may have failed.
    pub iterations: Vec<Iteration>,
    /// Status and reason when not every iteration ran.
    pub failure: Option<(Status, String)>,
}

impl RunRecord {
    /// Rows of the iterations frame: every iteration, and one more for a failure.
    fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        let ok = self.iterations.iter().enumerate().map(|(index, iteration)| Row {
            key: &self.key,
            number: index as u32 + 1,
            iteration: Some(iteration),
            status: Status::Ok,
            reason: "",
        });
        let failed = self.failure.iter().map(|(status, reason)| Row {
            key: &self.key,
            number: self.iterations.len() as u32 + 1,
            iteration: None,
            status: *status,
            reason,
        });
        ok.chain(failed)
    }
}

struct Row<'a> {
    key: &'a RunKey,
    number: u32,
    iteration: Option<&'a Iteration>,
    status: Status,
    reason: &'a str,
}

/// The fullest rank, where memory was followed.
fn memory(iteration: &Iteration) -> Option<Peak> {
    Some(iteration.timing.peak).filter(|peak| peak.bytes > Bytes::ZERO)
}

/// Columns of rows, each from an expression of the row.
macro_rules! columns {
    ($rows:expr; $($name:literal = |$row:ident| $value:expr),* $(,)?) => {
        vec![$(Column::new($name.into(), $rows.iter().map(|$row| $value).collect::<Vec<_>>())),*]
    };
}

/// The `iterations` frame of some runs. Times in seconds, memory in bytes.
///
/// # Errors
/// Whatever Polars says.
pub fn iterations_frame(runs: &[RunRecord]) -> PolarsResult<DataFrame> {
    let rows: Vec<Row> = runs.iter().flat_map(RunRecord::rows).collect();
    let mut all = columns![rows;
        "case" = |row| row.key.id.as_str(),
        "model" = |row| row.key.case.model.as_str(),
        "cluster" = |row| row.key.case.cluster.as_str(),
        "gpus" = |row| row.key.case.gpus as u32,
        "gate" = |row| row.key.case.gate.kind(),
        "capacity_factor" = |row| row.key.case.gate.capacity_factor(),
        "layer" = |row| row.key.case.layer.map(|layer| layer as u32),
        "system" = |row| row.key.system,
        "seed" = |row| row.key.seed,
        "engine" = |row| row.key.engine.name(),
        "plan" = |row| row.key.plan.map(|plan| plan.to_string()),
        "pp" = |row| row.key.plan.map(|plan| plan.pp as u32),
        "dp" = |row| row.key.plan.map(|plan| plan.dp as u32),
        "tp" = |row| row.key.plan.map(|plan| plan.tp as u32),
        "ep" = |row| row.key.plan.map(|plan| plan.ep as u32),
        "expert_dp" = |row| row.key.plan.map(|plan| plan.expert_dp as u32),
        "micro_batch" = |row| row.key.plan.map(|plan| plan.micro_batch as u32),
        "placement_every" = |row| row.key.plan.map(|plan| plan.placement_every as u32),
        "expected_step_s" = |row| row.key.expected.map(|time| time.0),
    ];
    all.extend(columns![rows;
        "iteration" = |row| row.number,
        "status" = |row| row.status.name(),
        "reason" = |row| row.reason,
        "step_s" = |row| row.iteration.map(|i| i.timing.step.0),
        "loss" = |row| row.iteration.and_then(|i| i.loss),
        "predicted_step_s" = |row| row.iteration.and_then(|i| i.predicted.map(|time| time.0)),
        "decision_s" = |row| row.iteration.map(|i| i.decision.0),
        "migration_s" = |row| row.iteration.map(|i| i.migration.0),
        "moved_experts" = |row| row.iteration.map(|i| i.moved as u32),
        "shadowed_experts" = |row| row.iteration.map(|i| i.timing.shadowed),
        "entries" = |row| row.iteration.map(|i| i.timing.entries),
        "dropped" = |row| row.iteration.map(|i| i.timing.dropped),
        "peak_rank" = |row| row.iteration.and_then(memory).map(|peak| peak.rank as u32),
        "peak_bytes" = |row| row.iteration.and_then(memory).map(|peak| peak.bytes.0),
    ]);
    DataFrame::new(rows.len(), all)
}

/// The `spans` frame of some runs: the mean time of a stage's ranks in each phase that took any.
///
/// # Errors
/// Whatever Polars says.
pub fn spans_frame(runs: &[RunRecord]) -> PolarsResult<DataFrame> {
    let mut rows = Vec::new();
    for run in runs {
        for (number, iteration) in run.iterations.iter().enumerate() {
            for (stage, ledger) in iteration.timing.phases.iter().enumerate() {
                for phase in Phase::ALL {
                    let time = ledger.of(phase).0;
                    if time > 0.0 {
                        rows.push((&run.key, number as u32 + 1, stage as u32, phase, time));
                    }
                }
            }
        }
    }
    let all = columns![rows;
        "case" = |row| row.0.id.as_str(),
        "system" = |row| row.0.system,
        "seed" = |row| row.0.seed,
        "engine" = |row| row.0.engine.name(),
        "iteration" = |row| row.1,
        "stage" = |row| row.2,
        "phase" = |row| row.3.name(),
        "seconds" = |row| row.4,
    ];
    DataFrame::new(rows.len(), all)
}
