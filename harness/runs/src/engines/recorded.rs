//! The engine of a log: what another program measured, as its iterations. It runs nothing.

use anyhow::Result;
use formats::logs::TrainingLog;
use systems::Plan;
use workloads::EngineKind;

use crate::engines::{Engine, Extent};
use crate::prepare::PreparedRun;
use crate::provenance::sha256;
use crate::records::{Outcome, RunFailure, Status};

/// A log of one case under one system.
pub struct Recorded {
    pub log: TrainingLog,
    /// Names of its files, without folders.
    names: String,
    hash: String,
}

impl Recorded {
    /// `bytes`: of the files, one after the other.
    pub fn new(log: TrainingLog, names: String, bytes: &[u8]) -> Self {
        Self { log, names, hash: sha256(bytes) }
    }
}

impl Engine for Recorded {
    fn kind(&self) -> EngineKind {
        EngineKind::Measured
    }

    fn hash(&self) -> String {
        sha256(format!("{} {} {}", self.log.program.name(), self.names, self.hash).as_bytes())
    }

    fn run(&self, run: &PreparedRun, _plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let tokens = run.job.model.blocks.first().map_or(0, |block| block.tokens) * run.job.global_batch;
        let mut iterations = self.log.iterations(run.job.gpus, tokens as f64);
        iterations.truncate(extent.iterations);
        iterations.iter().for_each(|_| tick());
        let failure = self.log.diverged().map(|iteration| RunFailure {
            status: Status::Diverged,
            reason: format!("the loss of iteration {iteration} is no number"),
        });
        Ok(Outcome { iterations, failure, ..Outcome::default() })
    }

    fn gives_lines(&self) -> bool {
        self.log.steps.iter().zip(1..).any(|(step, number)| (step.iteration, step.covers) != (number, 1))
    }

    fn origin(&self) -> Option<String> {
        let TrainingLog { program, steps, left_out, .. } = &self.log;
        let each = match self.log.interval() {
            1 => String::new(),
            interval => format!(", of which each is the mean of {interval} iterations"),
        };
        let without: String = left_out.iter().map(|what| format!("; without {what}")).collect();
        let (engine, program, lines) = (self.kind().label(), program.name(), steps.len());
        Some(format!("{engine} by {program}, {lines} lines of {}{each}{without}", self.names))
    }
}
