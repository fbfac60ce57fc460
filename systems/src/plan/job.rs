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
    /// Dropped second choices and the flattening by a balance loss, which no trace states.
    pub gate_statistics: GateStatistics,
    /// Samples per iteration over all ranks.
    pub global_batch: usize,
    /// Samples per rank and micro-batch, when the job fixes it.
    pub micro_batch: Option<usize>,
    /// What a short profiling run saw the gate choose (before any capacity limit), one element an iteration.
    pub profile: Vec<BatchCounts>,
}

impl Job {
    /// A job whose micro-batch is free, without a profile.
    pub fn new(model: Model, cluster: Cluster, gpus: usize, gate: Gate, global_batch: usize) -> Self {
        Self {
            model,
            cluster,
            gpus,
            gate,
            gate_statistics: GateStatistics::default(),
            global_batch,
            micro_batch: None,
            profile: Vec::new(),
        }
    }

    /// Fixes the samples per rank and micro-batch.
    #[must_use]
    pub fn with_micro_batch(self, samples: usize) -> Self {
        Self { micro_batch: Some(samples), ..self }
    }

    /// Gives it a profile of the gate's choices, one element an iteration.
    #[must_use]
    pub fn with_profile(self, profile: Vec<BatchCounts>) -> Self {
        Self { profile, ..self }
    }

    /// The profile's first iteration with its entries spread evenly: all that a search which does not look at data knows.
    pub fn uniform_profile(&self) -> Vec<BatchCounts> {
        self.profile.iter().take(1).map(BatchCounts::uniform).collect()
    }

    /// Choices per token.
    pub fn top_k(&self) -> usize {
        self.gate.top_k(self.model.top_k)
    }

    /// The node of each of `ranks`.
    pub fn nodes(&self, ranks: std::ops::Range<usize>) -> Vec<usize> {
        ranks.map(|rank| rank / self.cluster.gpus_per_node).collect()
    }
}
