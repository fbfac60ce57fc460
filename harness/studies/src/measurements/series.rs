//! One MoE layer over the iterations of a trace: experts left in order, and experts placed again every so often.
//!
//! The study decided on the counts of the very iteration that it then timed (no lag); a trainer cannot, and `lag` counts
//! the trace's samples between what a decision sees and where it takes effect.
//!
//! The study's micro-batch of 8 samples was all four of the trace's micro-batches of 2, which its files do not say. Its
//! static times follow that sum from one iteration to the next (by 1.06 of what the sum predicts, standard error 0.08), and
//! not what tells the first micro-batch from the sum (0.23, standard error 0.18: it would be 1, had that one run).

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use systems::iteration::online::Online;
use systems::zoo::smartmoe;
use systems::{Placement, Plan, RoutingCounts};
use workloads::Cluster;
use workloads::csv_file::Positive;
use workloads::trace::RoutingTrace;

use super::layer::{LayerReader, LayerShape, TraceIndex, extent};
use crate::measurements;
use runs::summary::errors::{Errors, Pair, correlation};

/// A row of the file. Where one half died there is no time, and nothing to compare.
#[derive(Deserialize)]
struct Row {
    iteration: usize,
    static_ms: Option<Positive>,
    dynamic_ms: Option<Positive>,
    placement_changed: Option<Flag>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
enum Flag {
    #[serde(rename = "0")]
    No,
    #[serde(rename = "1")]
    Yes,
}

/// What a series' file leaves unsaid; SmartMoE's authors' study where nothing else is.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct SeriesSetup {
    /// Ranks that share the experts
    #[arg(long, default_value_t = Self::default().gpus)]
    pub gpus: usize,
    /// Layer of the trace
    #[arg(long, default_value_t = Self::default().layer)]
    pub layer: usize,
    /// Samples per rank and micro-batch
    #[arg(long, default_value_t = Self::default().micro_batch, value_parser = extent)]
    pub micro_batch: usize,
}

impl Default for SeriesSetup {
    fn default() -> Self {
        Self { gpus: 16, layer: 6, micro_batch: 8 }
    }
}

/// When experts are placed.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Rhythm {
    /// Iterations between placements
    #[arg(long, default_value_t = 100)]
    pub every: usize,
    /// Samples of the trace between what a decision sees and where it takes effect; the study had none
    #[arg(long, default_value_t = 0)]
    pub lag: usize,
}

pub struct MeasuredStep {
    pub iteration: usize,
    counts: RoutingCounts,
    /// Experts in order, s.
    pub measured_static: f64,
    /// Experts placed online, s.
    pub measured_online: f64,
    /// Whether the study moved experts before it, where the file says so.
    pub measured_move: Option<bool>,
}

/// The iterations of a file, in order.
pub struct Series<'a> {
    reader: LayerReader<'a>,
    pub samples: Vec<MeasuredStep>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PredictedStep {
    /// Experts in order, s.
    pub in_order: f64,
    /// Experts placed online, s.
    pub online: f64,
    /// Whether experts moved before it.
    pub moved: bool,
}

/// Reads a series' file.
///
/// # Errors
/// What is wrong with the file, or iterations that the trace does not have.
pub fn read<'a>(path: &Path, trace: &'a RoutingTrace, shape: LayerShape, setup: SeriesSetup) -> Result<Series<'a>> {
    ensure!(setup.gpus > 0 && setup.micro_batch > 0, "--gpus, --micro-batch: expected at least 1");
    let reader = LayerReader { trace, ranks: setup.gpus, micro_batch: setup.micro_batch, shape };
    reader.check("--gpus")?;
    let file = measurements::open(path)?;
    let mut samples: Vec<MeasuredStep> = Vec::new();
    for row in file.rows() {
        let Row { iteration, static_ms, dynamic_ms, placement_changed } = row.read()?;
        let index = TraceIndex::of(&row, trace, iteration, setup.layer)?;
        let (Some(Positive(in_order)), Some(Positive(online))) = (static_ms, dynamic_ms) else { continue };
        if let Some(before) = samples.last().filter(|before| before.iteration >= iteration) {
            let before = before.iteration;
            bail!("{}: iteration {iteration} after {before}: expected increasing iterations", row.place());
        }
        samples.push(MeasuredStep {
            iteration,
            counts: reader.merged(index),
            measured_static: in_order * 1e-3,
            measured_online: online * 1e-3,
            measured_move: placement_changed.map(|flag| flag == Flag::Yes),
        });
    }
    ensure!(!samples.is_empty(), "{}: no row has both times", file.name());
    Ok(Series { reader, samples })
}

impl Series<'_> {
    /// The series with experts in order, s.
    pub fn predict_static(&self, cluster: &Cluster) -> Vec<f64> {
        let placement = self.identity();
        self.samples.iter().map(|s| self.reader.time(&s.counts, &placement, cluster).0).collect()
    }

    /// Both series. Placement is decided every so often, by Algorithm 1 on the loads of one sample.
    pub fn predict(&self, cluster: &Cluster, rhythm: Rhythm) -> Vec<PredictedStep> {
        let mut placement = self.identity();
        let moe = self.reader.shape.moe(placement.experts());
        let mut online = Online::new(smartmoe::LAST_ITERATION.online(rhythm.every), Plan::default());
        let in_order = self.predict_static(cluster);
        let mut steps = Vec::with_capacity(self.samples.len());
        for (index, (sample, in_order)) in self.samples.iter().zip(in_order).enumerate() {
            let due = (sample.iteration.saturating_sub(1)).is_multiple_of(rhythm.every);
            let mut moved = false;
            if let Some(seen) = index.checked_sub(rhythm.lag).filter(|_| due) {
                online.remember(vec![self.samples[seen].counts.loads()]);
                let decided = online.decide(0, &moe, &placement).expect("Algorithm 1 places the layer's own experts");
                if let Some(migration) = decided.migration {
                    (placement, moved) = (migration.placement, true);
                }
            }
            steps.push(PredictedStep {
                in_order,
                online: self.reader.time(&sample.counts, &placement, cluster).0,
                moved,
            });
        }
        steps
    }

    fn identity(&self) -> Placement {
        Placement::identity(self.reader.trace.shape().experts, self.reader.ranks)
    }
}

/// How well both series are predicted.
#[derive(Clone, Debug, Serialize)]
pub struct SeriesErrors {
    /// Errors of the static series.
    pub in_order: Errors,
    /// Errors of the online series.
    pub online: Errors,
    /// Correlation of the static series.
    pub static_correlation: Option<f64>,
    /// Correlation of the online series.
    pub online_correlation: Option<f64>,
    /// Mean static over mean online time, measured.
    pub measured_gain: f64,
    /// Mean static over mean online time, predicted.
    pub predicted_gain: f64,
    /// Placements that the study took, where the file says so.
    pub measured_moves: Option<usize>,
    /// Placements that the simulator took.
    pub predicted_moves: usize,
    /// Placements that both took at the same iteration.
    pub common_moves: usize,
}

impl SeriesErrors {
    /// Of a series and its prediction, or none of no iterations.
    pub fn new(samples: &[MeasuredStep], steps: &[PredictedStep]) -> Option<Self> {
        let both = || samples.iter().zip(steps);
        let in_order: Vec<Pair> =
            both().map(|(s, step)| Pair { predicted: step.in_order, measured: s.measured_static }).collect();
        let online: Vec<Pair> =
            both().map(|(s, step)| Pair { predicted: step.online, measured: s.measured_online }).collect();
        let sum = |pairs: &[Pair], of: fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>();
        Some(Self {
            in_order: Errors::new(&in_order)?,
            online: Errors::new(&online)?,
            static_correlation: correlation(&in_order),
            online_correlation: correlation(&online),
            measured_gain: sum(&in_order, |p| p.measured) / sum(&online, |p| p.measured),
            predicted_gain: sum(&in_order, |p| p.predicted) / sum(&online, |p| p.predicted),
            measured_moves: samples
                .iter()
                .map(|s| s.measured_move)
                .collect::<Option<Vec<bool>>>()
                .map(|moves| moves.into_iter().filter(|moved| *moved).count()),
            predicted_moves: steps.iter().filter(|s| s.moved).count(),
            common_moves: both().filter(|(s, step)| s.measured_move == Some(true) && step.moved).count(),
        })
    }
}
