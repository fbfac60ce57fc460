//! One MoE layer over the iterations of a trace: experts left in order, and experts placed again every so often.
//!
//! The study decided on the counts of the very iteration that it then timed (no lag); a trainer cannot, and `lag` counts
//! the trace's samples between what a decision sees and where it takes effect.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Serialize;
use systems::iteration::online::Online;
use systems::zoo::smartmoe;
use systems::{Decision, LoadHistory, Placement, Policy, RoutingCounts};
use workloads::Cluster;
use workloads::trace::RoutingTrace;

use super::errors::{Errors, Pair, correlation};
use super::layer::{LayerReader, LayerShape, Spot};
use super::sheet::Sheet;

/// `placement_changed` may be missing.
const COLUMNS: [&str; 3] = ["iteration", "static_ms", "dynamic_ms"];

/// What the study's file leaves unsaid.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Study {
    /// Ranks that share the experts
    #[arg(long, default_value_t = 16)]
    pub gpus: usize,
    /// Layer of the trace
    #[arg(long, default_value_t = 6)]
    pub layer: usize,
    /// Samples per rank and micro-batch
    #[arg(long, default_value_t = 8)]
    pub micro_batch: usize,
    /// Iterations between placements
    #[arg(long, default_value_t = 100)]
    pub every: usize,
    /// Samples of the trace between what a decision sees and where it takes effect; the study had none
    #[arg(long, default_value_t = 0)]
    pub lag: usize,
}

/// One measured iteration.
pub struct Sample {
    /// Its label.
    pub iteration: usize,
    counts: RoutingCounts,
    /// Experts in order, s.
    pub measured_static: f64,
    /// Experts placed online, s.
    pub measured_online: f64,
    /// Whether the study moved experts before it, where the file says so.
    pub measured_move: Option<bool>,
}

/// The study's iterations, in order.
pub struct Series<'a> {
    reader: LayerReader<'a>,
    study: Study,
    /// The samples.
    pub samples: Vec<Sample>,
}

/// One iteration, predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Experts in order, s.
    pub in_order: f64,
    /// Experts placed online, s.
    pub online: f64,
    /// Whether experts moved before it.
    pub moved: bool,
}

/// Reads the study's file.
///
/// # Errors
/// What is wrong with the file, or iterations that the trace does not have.
pub fn read<'a>(path: &Path, trace: &'a RoutingTrace, shape: LayerShape, study: Study) -> Result<Series<'a>> {
    ensure!(study.every > 0, "--every 0: expected at least 1");
    ensure!(study.gpus > 0 && study.micro_batch > 0, "--gpus, --micro-batch: expected at least 1");
    let reader = LayerReader { trace, ranks: study.gpus, micro_batch: study.micro_batch, shape };
    reader.check("--gpus")?;
    let sheet = Sheet::read(path, &COLUMNS)?;
    let mut samples = Vec::new();
    for row in sheet.rows() {
        let iteration = row.whole("iteration", 0)?;
        let spot = Spot::find(&row, trace, iteration, study.layer)?;
        let moved = match row.text("placement_changed") {
            "" => None,
            "0" => Some(false),
            "1" => Some(true),
            _ => bail!(row.wrong("placement_changed", "0 or 1")),
        };
        let (Some(in_order), Some(online)) = (row.time_if_any("static_ms")?, row.time_if_any("dynamic_ms")?) else {
            // One half died: there is nothing to compare.
            continue;
        };
        samples.push(Sample {
            iteration,
            counts: reader.counts(spot, 0),
            measured_static: in_order * 1e-3,
            measured_online: online * 1e-3,
            measured_move: moved,
        });
    }
    ensure!(!samples.is_empty(), "{}: no row has both times", sheet.file());
    if let Some(pair) = samples.windows(2).find(|pair| pair[0].iteration >= pair[1].iteration) {
        let (before, after) = (pair[0].iteration, pair[1].iteration);
        bail!("{}: iteration {after} after {before}: expected increasing iterations", sheet.file());
    }
    Ok(Series { reader, study, samples })
}

impl Series<'_> {
    /// The series with experts in order, s.
    pub fn predict_static(&self, cluster: &Cluster) -> Vec<f64> {
        let placement = self.identity();
        self.samples.iter().map(|s| self.reader.time(&s.counts, &placement, cluster).0).collect()
    }

    /// Both series. Placement is decided every so often, by Algorithm 1 on the loads of one sample.
    pub fn predict(&self, cluster: &Cluster) -> Vec<Step> {
        let mut placement = self.identity();
        let moe = self.reader.shape.moe(placement.experts());
        let mut online = Online::new(Box::new(OfLastLoads));
        let in_order = self.predict_static(cluster);
        let mut steps = Vec::with_capacity(self.samples.len());
        for (index, (sample, in_order)) in self.samples.iter().zip(in_order).enumerate() {
            let due = (sample.iteration.saturating_sub(1)).is_multiple_of(self.study.every);
            let mut moved = false;
            if let Some(seen) = index.checked_sub(self.study.lag).filter(|_| due) {
                online.remember(vec![self.samples[seen].counts.loads()]);
                let decided = online.decide(0, &moe, &placement).expect("Algorithm 1 places the layer's own experts");
                if let Some(migration) = decided.and_then(|decided| decided.migration) {
                    (placement, moved) = (migration.placement, true);
                }
            }
            steps.push(Step { in_order, online: self.reader.time(&sample.counts, &placement, cluster).0, moved });
        }
        steps
    }

    fn identity(&self) -> Placement {
        Placement::identity(self.reader.trace.shape().experts, self.reader.ranks)
    }
}

/// Decides whenever it is asked, on the last loads alone.
struct OfLastLoads;

impl Policy for OfLastLoads {
    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let better = past.recent(layer, 1).next().and_then(|loads| smartmoe::better_placement(loads, now));
        better.map_or(Decision::Stay, Decision::Move)
    }
}

/// How well the series are predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
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
    /// The same, predicted.
    pub predicted_gain: f64,
    /// Placements that the study took, where the file says so.
    pub measured_moves: Option<usize>,
    /// Placements that we took.
    pub predicted_moves: usize,
    /// Placements that both took at the same iteration.
    pub common_moves: usize,
}

impl Report {
    /// Of a series and its prediction, or none of no iterations.
    pub fn new(samples: &[Sample], steps: &[Step]) -> Option<Self> {
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
