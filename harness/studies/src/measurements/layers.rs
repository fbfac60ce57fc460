//! Single MoE layers, forward and backward, on the routing of a trace's iterations and layers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use systems::{Placement, RoutingCounts};
use workloads::Cluster;
use workloads::csv_file::{Count, Positive};
use workloads::trace::RoutingTrace;

use super::layer::{LayerReader, LayerShape, TraceIndex};
use crate::measurements;
use runs::summary::errors::{Errors, Pair};

/// A row of the file; without a time, the run died there. The paper's estimates are those of its model of performance, on
/// the routing and on a uniform one.
#[derive(Deserialize)]
struct Row {
    gpus: Count,
    micro_batch: Count,
    iteration: usize,
    layer: usize,
    measured_ms: Option<Positive>,
    paper_estimate_ms: Option<Positive>,
    paper_uniform_estimate_ms: Option<Positive>,
}

/// Which rows of a file are used, by the parity of `(iteration - 1) / 100`, so that one file serves to fit and to test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Hundreds {
    /// Every row
    #[default]
    All,
    /// Rows whose number of hundreds is even
    Even,
    /// Rows whose number of hundreds is odd
    Odd,
}

impl Hundreds {
    fn takes(self, iteration: usize) -> bool {
        let even = (iteration.saturating_sub(1) / 100).is_multiple_of(2);
        match self {
            Hundreds::All => true,
            Hundreds::Even => even,
            Hundreds::Odd => !even,
        }
    }
}

pub struct MeasuredLayer<'a> {
    reader: LayerReader<'a>,
    /// One per micro-batch of the trace that is used; the prediction is their mean.
    counts: Vec<RoutingCounts>,
    placement: Placement,
    /// s.
    pub measured: f64,
    /// The paper's estimate, s, where the file has it.
    pub paper: Option<f64>,
    /// The paper's estimate on uniform routing, s.
    pub uniform: Option<f64>,
}

impl MeasuredLayer<'_> {
    /// Time on `cluster`, s.
    pub fn predict(&self, cluster: &Cluster) -> f64 {
        let times = self.counts.iter().map(|counts| self.reader.time(counts, &self.placement, cluster).0);
        times.sum::<f64>() / self.counts.len() as f64
    }

    /// Expert-parallel ranks.
    pub fn ranks(&self) -> usize {
        self.reader.ranks
    }

    fn setting(&self) -> (usize, usize) {
        (self.reader.ranks, self.reader.micro_batch)
    }
}

/// Reads a file's rows.
///
/// # Errors
/// What is wrong with the file, or rows that the trace does not have.
pub fn read<'a>(
    path: &Path,
    rows: Hundreds,
    trace: &'a RoutingTrace,
    shape: LayerShape,
    micro_batches: &[usize],
) -> Result<Vec<MeasuredLayer<'a>>> {
    if let Some(wrong) = micro_batches.iter().find(|m| **m >= trace.shape().micro_batches) {
        bail!("--trace-micro-batches {wrong}: the trace {} has {}", trace.name(), trace.shape().micro_batches);
    }
    let file = measurements::open(path)?;
    let mut layers = Vec::new();
    for row in file.rows() {
        let cells: Row = row.read()?;
        if !rows.takes(cells.iteration) {
            continue;
        }
        let reader = LayerReader { trace, ranks: cells.gpus.0, micro_batch: cells.micro_batch.0, shape };
        reader.check(&row.place())?;
        let index = TraceIndex::of(&row, trace, cells.iteration, cells.layer)?;
        let seconds = |time: Option<Positive>| time.map(|ms| ms.0 * 1e-3);
        let Some(measured) = seconds(cells.measured_ms) else { continue };
        layers.push(MeasuredLayer {
            reader,
            counts: micro_batches.iter().map(|&m| reader.counts(index, m)).collect(),
            placement: Placement::identity(trace.shape().experts, reader.ranks),
            measured,
            paper: seconds(cells.paper_estimate_ms),
            uniform: seconds(cells.paper_uniform_estimate_ms),
        });
    }
    if layers.is_empty() {
        bail!("{}: none of the chosen rows ({rows:?}) has a time", file.name());
    }
    Ok(layers)
}

/// Errors of one setting.
#[derive(Clone, Debug, Serialize)]
pub struct LayerErrors {
    pub gpus: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Of the simulator.
    pub errors: Errors,
    /// Of the paper's model, where the file has its estimates.
    pub paper: Option<Errors>,
    /// Of the paper's model on uniform routing.
    pub uniform: Option<Errors>,
    /// Predicted and measured, s.
    #[serde(skip)]
    pub pairs: Vec<Pair>,
}

/// Predicts every layer on `cluster`; a setting per GPUs and micro-batch, in their order.
pub fn predict(layers: &[MeasuredLayer], cluster: &Cluster) -> Vec<LayerErrors> {
    let mut settings: BTreeMap<(usize, usize), Vec<&MeasuredLayer>> = BTreeMap::new();
    for layer in layers {
        settings.entry(layer.setting()).or_default().push(layer);
    }
    settings.into_iter().filter_map(|(setting, layers)| errors_of(setting, &layers, cluster)).collect()
}

fn errors_of(setting: (usize, usize), layers: &[&MeasuredLayer], cluster: &Cluster) -> Option<LayerErrors> {
    let pair = |predicted: f64, layer: &MeasuredLayer| Pair { predicted, measured: layer.measured };
    let pairs: Vec<Pair> = layers.iter().map(|layer| pair(layer.predict(cluster), layer)).collect();
    let estimates = |estimate: fn(&MeasuredLayer) -> Option<f64>| {
        let pairs = layers.iter().map(|layer| Some(pair(estimate(layer)?, layer))).collect::<Option<Vec<_>>>()?;
        Errors::new(&pairs)
    };
    Some(LayerErrors {
        gpus: setting.0,
        micro_batch: setting.1,
        errors: Errors::new(&pairs)?,
        paper: estimates(|layer| layer.paper),
        uniform: estimates(|layer| layer.uniform),
        pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_split_by_hundreds() {
        assert!(Hundreds::Even.takes(1) && Hundreds::Even.takes(201) && !Hundreds::Even.takes(101));
        assert!(Hundreds::Odd.takes(101) && Hundreds::Odd.takes(200) && Hundreds::All.takes(7));
    }
}
