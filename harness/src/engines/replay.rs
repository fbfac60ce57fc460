//! The simulator on what a real run recorded: the same plan, policy and routing, iteration by iteration, beside it.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use systems::CostModel;
use systems::iteration::timeline::Span;

use crate::report::timeline::{self, Timeline};
use crate::runs::store;
use systems::iteration::run::{Iteration, Run};
use trainer::rank::Report;
use trainer::record;
use trainer::setup::Setup;

/// A simulated run that follows a real one. Its setup must record choices; policies see the cluster of the setup's job.
pub struct Replay<'a> {
    setup: &'a Setup<'a>,
    run: Run<'a>,
}

impl<'a> Replay<'a> {
    /// At the start of training, at the prices `costs`.
    pub fn new(setup: &'a Setup<'a>, costs: &'a CostModel) -> Self {
        Self { setup, run: Run::new(setup.job, costs, setup.system, setup.plan) }
    }

    /// Simulates the iteration that all ranks have just reported, and says what every rank does when.
    pub fn step(&mut self, reports: &[Report]) -> (Iteration, Vec<Span>) {
        self.run.observe(&record::batch(self.setup, reports))
    }
}

/// Writes the simulated and the real timeline of one iteration into one file, rank by rank beside each other. `engine` is
/// the real one's name in records, `emulated` or `measured`; its reports must hold spans.
///
/// # Errors
/// When the file cannot be written.
pub fn write_timelines(path: &Path, engine: &str, reports: &[Report], simulated: &[Span]) -> Result<()> {
    let real: Vec<Span> = reports.iter().flat_map(|report| report.spans.iter().copied()).collect();
    let timelines = [Timeline { engine, spans: &real }, Timeline { engine: "simulated", spans: simulated }];
    store::write_atomically(path, |file| {
        timeline::write(&timelines, &mut *file)?;
        Ok(file.flush()?)
    })
}
