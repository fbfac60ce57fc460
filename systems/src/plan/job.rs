//! What is to be trained: the input of every offline decision.

use workloads::gate::GateStatistics;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Gate, Model};

/// One training job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The model.
    pub model: Model,
    /// The cluster; ranks fill its nodes one after the other.
    pub cluster: Cluster,
    /// Number of ranks.
    pub gpus: usize,
    /// The gate.
    pub gate: Gate,
    /// What it does that no trace says.
    pub gate_statistics: GateStatistics,
    /// Samples per iteration over all ranks.
    pub global_batch: usize,
    /// Samples per rank and micro-batch, when the job fixes it.
    pub micro_batch: Option<usize>,
    /// What a short profiling run saw the gate choose (before any capacity limit), one element an iteration.
    pub profile: Vec<BatchCounts>,
}

impl Job {
    /// Choices per token.
    pub fn top_k(&self) -> usize {
        self.gate.top_k(self.model.top_k)
    }

    /// The node of each of `ranks`.
    pub fn nodes(&self, ranks: std::ops::Range<usize>) -> Vec<usize> {
        ranks.map(|rank| rank / self.cluster.gpus_per_node).collect()
    }
}
