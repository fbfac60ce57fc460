//! Runs every case of a suite under every system, and hands each finished case to the store.
//!
//! All systems of a case see the same routing, iteration by iteration, unless the case says that one trains another model
//! or gate. Cases do not depend on each other, so neither the number of threads nor the order in which they end changes a
//! record. A run that fails is a row with a reason; the others go on.

use anyhow::Result;
use indicatif::ProgressBar;
use rayon::prelude::*;
use systems::PlanError;
use workloads::EngineKind;

use crate::engines::{Engine, Extent};
use crate::runs::prepare::{PreparedCase, PreparedRun};
use crate::runs::records::{Outcome, RunRecord, Status};
use crate::runs::store::Store;

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
        let id = case.id();
        if self.store.has_case(&id) && (!self.extent.timelines || self.store.has_timelines(&id)) {
            return Ok(());
        }
        let records = case.runs.iter().map(|run| self.record(run)).collect::<Result<Vec<_>>>()?;
        if self.extent.timelines {
            // Before the frames, which mark a case as finished.
            self.store.write_timelines(&id, &records)?;
        }
        self.store.write_case(&id, &records)?;
        if self.progress.is_hidden() {
            eprintln!("{id}: done");
        }
        Ok(())
    }

    fn record(&self, run: &PreparedRun) -> Result<RunRecord> {
        let outcome = match run.plan() {
            Ok(chosen) => self.engine.run(run, chosen.plan, self.extent, &|| self.progress.inc(1))?,
            Err(error) => Outcome::failed(status_of(error), error.to_string()),
        };
        Ok(RunRecord::new(run, self.engine.kind(), outcome))
    }
}

fn status_of(error: &PlanError) -> Status {
    match error {
        PlanError::Memory { .. } => Status::Oom,
        _ => Status::Skipped,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::engines::mock::{Folder, MockEngine, suite, trace, with_cases};
    use crate::runs::prepare;
    use crate::runs::provenance::{Inputs, Provenance};
    use crate::runs::records::{Row, RowsByRun};

    fn store(folder: &Folder) -> Store {
        let provenance = Provenance::new(EngineKind::Simulated, Inputs::default());
        Store::open(folder.path(), &provenance, false).unwrap()
    }

    fn run(engine: &MockEngine, cases: &[PreparedCase], store: &Store) {
        let extent = Extent { iterations: suite().iterations, timelines: false };
        Runner { engine, extent, store, progress: &ProgressBar::hidden() }.run(cases).unwrap();
    }

    fn join(cases: &[PreparedCase], store: &Store) -> Vec<Row> {
        store.join(&cases.iter().map(PreparedCase::id).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_run_that_fails_is_a_row_and_the_others_go_on() {
        let (folder, engine) = (Folder::new(), MockEngine::failing("fastermoe", Status::Oom));
        let rows = with_cases(|cases| {
            let store = store(&folder);
            run(&engine, cases, &store);
            join(cases, &store)
        });
        let by_run = RowsByRun::new(&rows);
        let lengths: Vec<usize> = by_run.iter().map(<[_]>::len).collect();
        assert_eq!(lengths, [12, 5, 12, 12, 5, 12]);
        let failed = by_run.of("gpt-tiny.inky.8.no-drop", "fastermoe")[4].sample.as_ref().unwrap_err();
        assert_eq!(failed.to_string(), "oom: on purpose");
        assert!(by_run.of("gpt-tiny.inky.8.no-drop", "smartmoe").iter().all(|row| row.sample.is_ok()));
    }

    #[test]
    fn a_finished_case_is_not_run_again() {
        let (folder, engine) = (Folder::new(), MockEngine::default());
        with_cases(|cases| {
            let store = store(&folder);
            run(&engine, &cases[1..], &store);
            assert_eq!(engine.runs.load(Ordering::Relaxed), 3);
            run(&engine, cases, &store);
            assert_eq!(engine.runs.load(Ordering::Relaxed), 6);
            assert_eq!(join(cases, &store).len(), 6 * 12);
        });
    }

    #[test]
    fn neither_threads_nor_the_order_of_cases_change_a_byte() {
        let bytes = |threads: usize, reversed: bool| {
            let folder = Folder::new();
            let store = store(&folder);
            let trace = trace();
            let mut cases = prepare::cases("test", &suite(), &trace).unwrap();
            let ids: Vec<String> = cases.iter().map(PreparedCase::id).collect();
            if reversed {
                cases.reverse();
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(&MockEngine::default(), &cases, &store));
            store.join(&ids).unwrap();
            ["iterations.parquet", "spans.parquet"].map(|name| fs::read(store.path(name)).unwrap())
        };
        assert_eq!(bytes(1, false), bytes(3, false));
        assert_eq!(bytes(1, false), bytes(2, true));
    }

    #[test]
    fn what_is_timed_runs_alone() {
        let (folder, engine) = (Folder::new(), MockEngine::of(EngineKind::Measured));
        with_cases(|cases| {
            run(&engine, cases, &store(&folder));
            assert_eq!(engine.at_once.load(Ordering::Relaxed), 1);
            assert!(join(cases, &store(&folder)).iter().all(|row| row.key.engine == EngineKind::Measured));
        });
    }
}
