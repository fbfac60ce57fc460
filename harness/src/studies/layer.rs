//! One MoE layer on rows of a trace, as layer studies measured it.

use anyhow::{Result, bail};
use systems::price::GroupPlace;
use systems::{CostModel, LayerProgram, Placement, RoutingCounts, iteration::layer};
use workloads::model::Moe;
use workloads::trace::RoutingTrace;
use workloads::{Cluster, Seconds};

use super::sheet::Row;

/// What the layer studies leave unsaid about the layer.
///
/// 1024 is inferred: it goes with the 24 layers of the model that was traced, and it is the width at which both studies
/// on V100s are explained by one set of constants below the datasheet's. A script beside the studies' says 1536, where
/// products would have to run at 1.3 times their peak.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct LayerShape {
    /// Width of a token; an expert's inner width is twice that
    #[arg(long, default_value_t = 1024)]
    pub hidden: usize,
    /// Tokens per sample
    #[arg(long, default_value_t = 1024)]
    pub seq_len: usize,
}

impl LayerShape {
    /// The layer with that many experts.
    pub fn moe(&self, experts: usize) -> Moe {
        Moe { tokens: self.seq_len, width: self.hidden, inner: 2 * self.hidden, experts }
    }
}

/// Where a row of a file stands in the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Index of the sample.
    pub sample: usize,
    /// Layer.
    pub layer: usize,
}

impl Spot {
    /// The place of iteration `label` and `layer`.
    ///
    /// # Errors
    /// When the trace has neither, with file, line and column.
    pub fn find(row: &Row, trace: &RoutingTrace, label: usize, layer: usize) -> Result<Self> {
        if layer >= trace.shape().layers {
            bail!("{}: layer = {layer}: the trace {} has {} layers", row.place(), trace.name(), trace.shape().layers);
        }
        let found = u32::try_from(label).ok().and_then(|label| trace.iterations().binary_search(&label).ok());
        match found {
            Some(sample) => Ok(Self { sample, layer }),
            None => bail!("{}: iteration = {label}: the trace {} has no such iteration", row.place(), trace.name()),
        }
    }
}

/// Reads counts out of a trace as `ranks` ranks with micro-batches of `micro_batch` samples see them.
#[derive(Clone, Copy)]
pub struct LayerReader<'a> {
    /// The trace.
    pub trace: &'a RoutingTrace,
    /// Expert-parallel ranks; the trace's first, and beyond them those of its next micro-batches.
    pub ranks: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Width and tokens.
    pub shape: LayerShape,
}

impl LayerReader<'_> {
    /// Whether the trace has rows for that many ranks, and experts that they can share.
    ///
    /// # Errors
    /// When it has not.
    pub fn check(&self, place: &str) -> Result<()> {
        let shape = self.trace.shape();
        if self.ranks > shape.ranks * shape.micro_batches || !shape.experts.is_multiple_of(self.ranks) {
            bail!(
                "{place}: {} GPUs: the trace {} has {} ranks with {} micro-batches each, and {} experts, which the GPUs share",
                self.ranks,
                self.trace.name(),
                shape.ranks,
                shape.micro_batches,
                shape.experts
            );
        }
        Ok(())
    }

    /// Counts of one of the trace's micro-batches, scaled to the tokens of ours.
    pub fn counts(&self, spot: Spot, micro_batch: usize) -> RoutingCounts {
        let shape = self.trace.shape();
        let scale = self.entries() / f64::from(shape.entries);
        let rows = (0..self.ranks).flat_map(|rank| {
            let micro_batch = (micro_batch + rank / shape.ranks) % shape.micro_batches;
            self.trace.row(spot.sample, spot.layer, micro_batch, rank % shape.ranks)
        });
        RoutingCounts::new(shape.experts, rows.map(|&count| (f64::from(count) * scale).round() as u32).collect())
    }

    /// Time of the layer, forward and backward.
    pub fn time(&self, counts: &RoutingCounts, placement: &Placement, cluster: &Cluster) -> Seconds {
        let costs = CostModel::new(cluster);
        let nodes = (0..self.ranks).map(|rank| rank / cluster.gpus_per_node).collect();
        let place = GroupPlace { group: costs.group(0..self.ranks, 1), nodes };
        let moe = self.shape.moe(counts.experts());
        let tokens = self.micro_batch * self.shape.seq_len;
        layer::time(&LayerProgram::expert_parallel(), counts, placement, &moe, tokens, &place, &costs)
    }

    fn entries(&self) -> f64 {
        (self.micro_batch * self.shape.seq_len) as f64 * f64::from(self.trace.shape().top_k)
    }
}
