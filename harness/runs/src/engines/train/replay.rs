//! The simulator on what a real run recorded: the same plan, policy and routing, iteration by iteration, beside it.

use systems::CostModel;
use systems::iteration::run::{Iteration, Run};
use systems::iteration::timeline::Span;
use trainer::rank::report::Report;
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
