//! What is to be trained: the input of every offline decision.

use workloads::gate::GateStatistics;
use workloads::suite::SearchSpace;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Gate, Model};

/// What of a training iteration takes place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All of it: every block, then gradient synchronisation, the optimizer and the host's work.
    #[default]
    Iteration,
    /// The passes of one MoE layer alone, as layer studies time them: nothing stands around the layer or follows its backward
    /// pass, and memory is not followed, because most of it belongs to what is not there.
    Layer,
}

/// One training job, or one MoE layer of it.
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
    /// What searches for plans may choose.
    pub search: SearchSpace,
    /// What a short profiling run saw the gate choose (before any capacity limit), one element an iteration.
    pub profile: Vec<BatchCounts>,
    /// Whole iterations, or one layer alone.
    pub scope: Scope,
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
            search: SearchSpace::default(),
            profile: Vec::new(),
            scope: Scope::Iteration,
        }
    }

    /// The job of MoE layer `layer` alone, if the model has one of that number. It keeps no profile.
    pub fn layer_alone(&self, layer: usize) -> Option<Self> {
        let moe = *self.model.moe_layers().nth(layer)?;
        let Model { flattening, router, top_k, .. } = self.model;
        let model = Model { flattening, router, ..Model::of_layer(moe, top_k) };
        Some(Self { model, profile: Vec::new(), scope: Scope::Layer, ..self.clone() })
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

    /// How much flatter its gate chooses than the trace's did: by its balance loss, or as the model is known to.
    pub fn flattening(&self) -> f64 {
        if self.gate.is_balanced() { self.gate_statistics.balance_loss_flattening } else { self.model.flattening }
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
