//! Runs every case of a suite under every system, and hands what is finished to the store: each simulated case, each run that was timed.
//!
//! All systems of a case see the same routing, iteration by iteration, unless the case says that one trains another model
//! or gate. Cases do not depend on each other, so neither the number of threads nor the order in which they end changes a
//! record. A run that fails is a row with a reason; the others go on.

use std::slice;

use anyhow::{Result, ensure};
use formats::chakra;
use indicatif::ProgressBar;
use rayon::prelude::*;
use systems::{Plan, PlanError};
use workloads::EngineKind;

use crate::engines::{Engine, Extent};
use crate::prepare::{PreparedCase, PreparedRun};
use crate::records::{Outcome, RunRecord, Status};
use crate::store::Store;

/// What runs, how long, and where it goes.
pub struct Runner<'a> {
    pub engine: &'a dyn Engine,
    pub extent: Extent,
    pub store: &'a Store,
    pub progress: &'a ProgressBar,
}

impl Runner<'_> {
    /// Runs what the store does not hold yet: simulations side by side, and alone what is timed.
    ///
    /// # Errors
    /// A finished case that cannot be stored, or what the engine cannot write.
    pub fn run(&self, cases: &[PreparedCase]) -> Result<()> {
        match self.engine.kind() {
            EngineKind::Simulated => cases.par_iter().try_for_each(|case| self.case(case)),
            EngineKind::Measured | EngineKind::Emulated => cases.iter().try_for_each(|case| self.case(case)),
        }
    }

    fn case(&self, case: &PreparedCase) -> Result<()> {
        if self.holds(&case.id())? {
            return Ok(());
        }
        match self.engine.kind() {
            EngineKind::Simulated => self.finish(&case.id(), case, &case.runs),
            // One after the other: what was trained is kept whatever becomes of the next.
            EngineKind::Measured | EngineKind::Emulated => case.runs.iter().try_for_each(|run| {
                let id = run.id();
                if self.holds(&id)? { Ok(()) } else { self.finish(&id, case, slice::from_ref(run)) }
            }),
        }
    }

    /// Whether the store has all that is asked for of a case, or of one run of it. What was trained is not trained again for a timeline.
    fn holds(&self, id: &str) -> Result<bool> {
        let Extent { timelines, iterations } = self.extent;
        let has_runs = self.store.has_runs(id);
        let all = has_runs && (!timelines || self.store.has_timelines(&self.store.rows(id)?, iterations));
        let again = has_runs && !all && self.engine.kind().trains();
        ensure!(!again, "--timeline: {id}: was trained without: --overwrite trains all again");
        Ok(all)
    }

    /// Runs some of a case, and stores them under a name.
    fn finish(&self, id: &str, case: &PreparedCase, runs: &[PreparedRun]) -> Result<()> {
        let records = self.records(runs)?;
        if self.extent.timelines {
            // Before the frames, which mark runs as finished.
            self.store.write_timelines(&case.id(), &records)?;
            records.iter().try_for_each(|record| self.write_chakra(&case.id(), record))?;
        }
        self.store.write_runs(id, &records)
    }

    /// What the ranks of a timeline do, as execution traces.
    fn write_chakra(&self, id: &str, RunRecord { key, outcome, .. }: &RunRecord) -> Result<()> {
        match outcome.timelines.first() {
            Some((engine, spans)) if !outcome.messages.is_empty() => {
                self.store.write_chakra(id, &key.system, &chakra::traces(*engine, spans, &outcome.messages))
            }
            _ => Ok(()),
        }
    }

    /// A record of every run; one without a plan is not run.
    fn records(&self, runs: &[PreparedRun]) -> Result<Vec<RunRecord>> {
        let planned: Vec<(&PreparedRun, Plan)> =
            runs.iter().filter_map(|run| Some((run, run.plan().ok()?.plan))).collect();
        let mut outcomes = self.engine.run_side_by_side(&planned, self.extent, &|| self.progress.inc(1))?.into_iter();
        let outcome = |run: &PreparedRun| match run.plan() {
            Ok(_) => outcomes.next().expect("an engine gives an outcome for every run"),
            Err(error) => Outcome::failed(status_of(error), error.to_string()),
        };
        let outcomes: Vec<Outcome> = runs.iter().map(outcome).collect();
        let record = |(run, outcome)| RunRecord::new(run, self.engine.kind(), outcome);
        Ok(runs.iter().zip(outcomes).map(record).collect())
    }
}

fn status_of(error: &PlanError) -> Status {
    match error {
        PlanError::Memory { .. } => Status::Oom,
        _ => Status::Skipped,
    }
}
