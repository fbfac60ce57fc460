//! Single MoE layers, forward and backward, on the routing of a trace's iterations and layers.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use systems::{Placement, RoutingCounts};
use workloads::Cluster;
use workloads::trace::RoutingTrace;

use super::errors::{Errors, Pair};
use super::layer::{LayerReader, LayerShape, Spot};
use super::sheet::Sheet;

const COLUMNS: [&str; 5] = ["gpus", "micro_batch", "iteration", "layer", "measured_ms"];

/// Which rows of a file are used: by the parity of `(iteration - 1) / 100`, so that one file serves to fit and to test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Rows {
    /// Every row.
    #[default]
    All,
    /// Rows whose number of hundreds is even.
    Even,
    /// The others.
    Odd,
}

impl Rows {
    fn takes(self, iteration: usize) -> bool {
        let even = (iteration.saturating_sub(1) / 100).is_multiple_of(2);
        match self {
            Rows::All => true,
            Rows::Even => even,
            Rows::Odd => !even,
        }
    }
}

/// One measured layer.
pub struct Sample<'a> {
    reader: LayerReader<'a>,
    /// One per micro-batch of the trace that is used; the prediction is their mean.
    counts: Vec<RoutingCounts>,
    placement: Placement,
    /// Seconds.
    pub measured: f64,
    /// The file's own estimates, s: of the paper's model, and of the same on uniform routing.
    pub published: [Option<f64>; 2],
}

impl Sample<'_> {
    /// Time on `cluster`, s.
    pub fn predict(&self, cluster: &Cluster) -> f64 {
        let times = self.counts.iter().map(|counts| self.reader.time(counts, &self.placement, cluster).0);
        times.sum::<f64>() / self.counts.len() as f64
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
    rows: Rows,
    trace: &'a RoutingTrace,
    shape: LayerShape,
    micro_batches: &[usize],
) -> Result<Vec<Sample<'a>>> {
    if let Some(wrong) = micro_batches.iter().find(|m| **m >= trace.shape().micro_batches) {
        bail!("--trace-micro-batches {wrong}: the trace {} has {}", trace.name(), trace.shape().micro_batches);
    }
    let sheet = Sheet::read(path, &COLUMNS)?;
    let mut samples = Vec::new();
    for row in sheet.rows() {
        let label = row.whole("iteration", 0)?;
        if !rows.takes(label) {
            continue;
        }
        let reader =
            LayerReader { trace, ranks: row.whole("gpus", 1)?, micro_batch: row.whole("micro_batch", 1)?, shape };
        reader.check(&row.place())?;
        let spot = Spot::find(&row, trace, label, row.whole("layer", 0)?)?;
        let Some(measured) = row.time_if_any("measured_ms")? else {
            // The run died there.
            continue;
        };
        let seconds = |time: Option<f64>| time.map(|ms| ms * 1e-3);
        samples.push(Sample {
            reader,
            counts: micro_batches.iter().map(|&m| reader.counts(spot, m)).collect(),
            placement: Placement::identity(trace.shape().experts, reader.ranks),
            measured: measured * 1e-3,
            published: [
                seconds(row.time_if_any("paper_estimate_ms")?),
                seconds(row.time_if_any("paper_uniform_estimate_ms")?),
            ],
        });
    }
    if samples.is_empty() {
        bail!("{}: none of the chosen rows ({rows:?}) has a time", sheet.file());
    }
    Ok(samples)
}

/// Errors of one setting.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Ranks.
    pub gpus: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Ours.
    pub errors: Errors,
    /// The paper's model, where the file has its estimates.
    pub paper: Option<Errors>,
    /// The paper's model on uniform routing.
    pub uniform: Option<Errors>,
    /// Predicted and measured, s.
    #[serde(skip)]
    pub pairs: Vec<Pair>,
}

/// Predicts every sample on `cluster`; a setting per GPUs and micro-batch, in their order.
pub fn predict(samples: &[Sample], cluster: &Cluster) -> Vec<Setting> {
    let mut keys: Vec<(usize, usize)> = samples.iter().map(Sample::setting).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter_map(|key| {
            let of_key: Vec<&Sample> = samples.iter().filter(|sample| sample.setting() == key).collect();
            let pairs: Vec<Pair> = of_key
                .iter()
                .map(|sample| Pair { predicted: sample.predict(cluster), measured: sample.measured })
                .collect();
            let published = |which: usize| {
                let pairs: Option<Vec<Pair>> = of_key
                    .iter()
                    .map(|s| s.published[which].map(|predicted| Pair { predicted, measured: s.measured }))
                    .collect();
                pairs.and_then(|pairs| Errors::new(&pairs))
            };
            Some(Setting {
                gpus: key.0,
                micro_batch: key.1,
                errors: Errors::new(&pairs)?,
                paper: published(0),
                uniform: published(1),
                pairs,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_split_by_hundreds() {
        assert!(Rows::Even.takes(1) && Rows::Even.takes(201) && !Rows::Even.takes(101));
        assert!(Rows::Odd.takes(101) && Rows::Odd.takes(200) && Rows::All.takes(7));
    }
}
