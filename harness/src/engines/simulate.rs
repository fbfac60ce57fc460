//! The simulating engine: a system's plan, policy and programs, priced on the described cluster, iteration by iteration.

use anyhow::Result;
use systems::iteration::run::{Failure, Run};
use systems::{CostModel, Plan};
use workloads::EngineKind;

use crate::engines::{Engine, Extent};
use crate::runs::prepare::PreparedRun;
use crate::runs::records::{Outcome, RunFailure, Status};

pub struct Simulator;

impl Engine for Simulator {
    fn kind(&self) -> EngineKind {
        EngineKind::Simulated
    }

    fn inputs(&self) -> String {
        self.kind().name().to_owned()
    }

    fn run(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        let costs = CostModel::new(&run.job.cluster);
        let mut simulation = Run::new(&run.job, &costs, run.system, plan);
        let mut outcome = Outcome::default();
        for t in 0..extent.iterations {
            tick();
            let batch = run.routing.iteration(t);
            let mut done = match extent.timelines && t + 1 == extent.iterations {
                true => {
                    let (done, spans) = simulation.observe(&batch);
                    outcome.timelines = vec![(self.kind(), spans)];
                    done
                }
                false => simulation.step(&batch),
            };
            if let Some(failure) = done.failure.take() {
                outcome.failure = Some(RunFailure { status: status(&failure), reason: failure.to_string() });
                break;
            }
            outcome.iterations.push(done);
        }
        Ok(outcome)
    }
}

fn status(failure: &Failure) -> Status {
    match failure {
        Failure::Memory(_) => Status::Oom,
        Failure::Placement(_) => Status::Crash,
    }
}
