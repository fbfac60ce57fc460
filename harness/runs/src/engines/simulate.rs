//! The simulating engine: a system's plan, policy and programs, priced on the described cluster, iteration by iteration.

use std::sync::Arc;

use anyhow::Result;
use systems::iteration::run::{Failure, Run};
use systems::iteration::timeline::Watch;
use systems::plan::routing::JobRouting;
use systems::{CostModel, Job, Plan, PlanError};
use workloads::trace::BatchCounts;
use workloads::trace::stats::max_over_mean;
use workloads::{EngineKind, Seconds};

use crate::details;
use crate::engines::{Engine, Extent};
use crate::prepare::PreparedRun;
use crate::provenance::sha256;
use crate::records::{Outcome, RunFailure, Status};

pub struct Simulator;

impl Engine for Simulator {
    fn kind(&self) -> EngineKind {
        EngineKind::Simulated
    }

    fn hash(&self) -> String {
        sha256(self.kind().name().as_bytes())
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
            let last = t + 1 == extent.iterations;
            let mut chosen: Vec<(*const JobRouting, Chosen)> = Vec::new();
            for simulation in simulations.iter_mut().filter(|simulation| simulation.outcome.failure.is_none()) {
                tick();
                let routing = Arc::as_ptr(simulation.routing);
                let known = chosen.iter().position(|(of, _)| *of == routing);
                let index = known.unwrap_or_else(|| {
                    chosen.push((routing, Chosen::new(simulation.routing.iteration(t))));
                    chosen.len() - 1
                });
                let watch = if last { of_last(extent, simulation.job.gpus) } else { Watch::Nobody };
                simulation.step(&chosen[index].1, watch);
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

/// Whom the last iteration is watched of.
fn of_last(extent: Extent, world: usize) -> Watch {
    if extent.timelines { Watch::Everybody } else { Watch::Ranks(details::watched(world)) }
}

/// What a gate chooses in an iteration.
struct Chosen {
    batch: BatchCounts,
    /// `[moe layer]`: load of the busiest expert over the mean load.
    imbalance: Vec<f64>,
}

impl Chosen {
    fn new(batch: BatchCounts) -> Self {
        let imbalance = (0..batch.layers()).map(|layer| max_over_mean(&batch.loads(layer))).collect();
        Self { batch, imbalance }
    }
}

struct Simulation<'a> {
    run: Run<'a>,
    job: &'a Job,
    routing: &'a Arc<JobRouting<'a>>,
    outcome: Outcome,
}

impl<'a> Simulation<'a> {
    fn new(run: &'a PreparedRun, plan: Plan, costs: &'a CostModel) -> Self {
        let (job, outcome) = (&run.job, Outcome::default());
        Self { run: Run::new(job, costs, run.system, plan), job, routing: &run.routing, outcome }
    }

    fn step(&mut self, Chosen { batch, imbalance }: &Chosen, watch: Watch) {
        let (watched, everybody) = (watch != Watch::Nobody, watch == Watch::Everybody);
        let (mut done, spans) = self.run.watch(batch, watch);
        self.outcome.imbalance.push(imbalance.clone());
        match done.failure.take() {
            None => {
                self.outcome.moved.push(self.run.moved().to_vec());
                self.outcome.iterations.push(done);
                if watched {
                    self.outcome.exchanged = self.run.exchanged(batch);
                    if everybody {
                        self.outcome.messages = self.run.communications(batch).messages(self.job, &spans);
                    }
                    self.outcome.timelines = vec![(EngineKind::Simulated, spans)];
                }
            }
            Some(failure) => {
                self.outcome.memory_at_failure = done.timing.memory;
                self.outcome.failure = Some(RunFailure { status: status(&failure), reason: failure.to_string() });
            }
        }
    }
}

fn status(failure: &Failure) -> Status {
    match failure {
        Failure::Plan(PlanError::Memory { .. }) => Status::Oom,
        Failure::Plan(_) => Status::Skipped,
        Failure::Placement(_) => Status::Crash,
    }
}
