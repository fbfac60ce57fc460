//! The simulating engine: a system's plan, policy and programs, priced on the described cluster, iteration by iteration.

use std::sync::Arc;

use anyhow::Result;
use systems::iteration::run::{Failure, Run};
use systems::plan::routing::JobRouting;
use systems::{CostModel, Plan};
use workloads::trace::BatchCounts;
use workloads::{EngineKind, Seconds};

use crate::engines::{Engine, Extent};
use crate::prepare::PreparedRun;
use crate::records::{Outcome, RunFailure, Status};

pub struct Simulator;

impl Engine for Simulator {
    fn kind(&self) -> EngineKind {
        EngineKind::Simulated
    }

    fn inputs(&self) -> String {
        self.kind().name().to_owned()
    }

    fn run(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let mut outcomes = self.run_side_by_side(&[(run, plan)], extent, tick)?;
        Ok(outcomes.remove(0))
    }

    /// Iteration by iteration, so that what the gate chooses is rescaled once for all runs that see the same.
    fn run_side_by_side(
        &self,
        runs: &[(&PreparedRun, Plan)],
        extent: Extent,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Vec<Outcome>> {
        let costs: Vec<CostModel> =
            runs.iter().map(|(run, _)| CostModel::new(&run.job.cluster, run.job.gpus)).collect();
        let mut simulations: Vec<Simulation> =
            runs.iter().zip(&costs).map(|((run, plan), costs)| Simulation::new(run, *plan, costs)).collect();
        for t in 0..extent.iterations {
            let observed = extent.timelines && t + 1 == extent.iterations;
            let mut chosen: Vec<(*const JobRouting, BatchCounts)> = Vec::new();
            for simulation in simulations.iter_mut().filter(|simulation| simulation.outcome.failure.is_none()) {
                tick();
                let routing = Arc::as_ptr(simulation.routing);
                let known = chosen.iter().position(|(of, _)| *of == routing);
                let index = known.unwrap_or_else(|| {
                    chosen.push((routing, simulation.routing.iteration(t)));
                    chosen.len() - 1
                });
                simulation.step(&chosen[index].1, observed);
            }
        }
        let mut outcomes: Vec<Outcome> = simulations.into_iter().map(|simulation| simulation.outcome).collect();
        for (outcome, ((run, plan), costs)) in outcomes.iter_mut().zip(runs.iter().zip(&costs)) {
            outcome.balanced = balanced(run, *plan, costs);
        }
        Ok(outcomes)
    }
}

/// The first iteration with every chunk's entries spread evenly over the experts; none where it does not end.
fn balanced(run: &PreparedRun, plan: Plan, costs: &CostModel) -> Option<Seconds> {
    let done = Run::new(&run.job, costs, run.system, plan).step(&run.routing.iteration(0).uniform());
    done.failure.is_none().then_some(done.timing.step)
}

struct Simulation<'a> {
    run: Run<'a>,
    routing: &'a Arc<JobRouting<'a>>,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    fn new(run: &'a PreparedRun, plan: Plan, costs: &'a CostModel) -> Self {
        Self { run: Run::new(&run.job, costs, run.system, plan), routing: &run.routing, outcome: Outcome::default() }
    }

    fn step(&mut self, batch: &BatchCounts, observed: bool) {
        let mut done = if observed {
            let (done, spans) = self.run.observe(batch);
            self.outcome.timelines = vec![(EngineKind::Simulated, spans)];
            done
        } else {
            self.run.step(batch)
        };
        match done.failure.take() {
            None => self.outcome.iterations.push(done),
            Some(failure) => {
                self.outcome.failure = Some(RunFailure { status: status(&failure), reason: failure.to_string() });
            }
        }
    }
}

fn status(failure: &Failure) -> Status {
    match failure {
        Failure::Memory(_) => Status::Oom,
        Failure::Placement(_) => Status::Crash,
    }
}
