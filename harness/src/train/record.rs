//! The choices of a run as a routing trace: what the simulator, or a later run, can replay.

use systems::Plan;
use workloads::trace::{RoutingTrace, TraceError, TraceShape};

use super::rank::Report;
use super::setup::Setup;

/// Collects choices, iteration by iteration.
pub struct Recorder {
    plan: Plan,
    shape: TraceShape,
    iterations: Vec<u32>,
    counts: Vec<u32>,
}

impl Recorder {
    /// For a run whose ranks report their choices.
    pub fn new(setup: &Setup) -> Self {
        let (job, plan) = (setup.job, setup.plan);
        let moe = job.model.blocks.iter().find_map(|block| block.moe());
        let tokens = moe.map_or(0, |moe| plan.tokens(moe));
        Self {
            plan,
            shape: TraceShape {
                layers: job.model.moe_blocks().len(),
                micro_batches: plan.micro_batches(job),
                ranks: plan.stage_ranks(),
                experts: moe.map_or(0, |moe| moe.experts),
                entries: (tokens * job.top_k()) as u32,
                top_k: job.top_k() as u32,
            },
            iterations: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Adds an iteration (from 0) from the reports of all ranks; nothing where choices were not reported.
    pub fn push(&mut self, iteration: usize, reports: &[Report]) {
        if reports.iter().all(|report| report.chosen.is_empty()) {
            return;
        }
        self.iterations.push(iteration as u32 + 1);
        for stage in reports.chunks(self.plan.stage_ranks()) {
            for layer in 0..stage[0].chosen.len() {
                for m in 0..self.shape.micro_batches {
                    stage.iter().for_each(|report| self.counts.extend(&report.chosen[layer][m]));
                }
            }
        }
    }

    /// The trace: source ranks are those of a stage.
    ///
    /// # Errors
    /// A run without an iteration.
    pub fn finish(self, name: &str) -> Result<RoutingTrace, TraceError> {
        RoutingTrace::new(name, self.shape, self.iterations, self.counts)
    }
}
