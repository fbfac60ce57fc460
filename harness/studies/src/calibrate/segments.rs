//! From a device's own compute segments to a cluster's constants.
//!
//! The trainer runs small models under a virtual clock, which times every compute segment alone. The simulator
//! runs the same plan on the very routing that was recorded, and the constants are those under which its spans
//! come nearest: the least squares of `ln(predicted / measured)`. So every constant has one meaning in fit and use, and
//! what the formulas cannot represent shows as the error of a segment. Constants of the network are not measured.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use systems::iteration::schedule::Work;
use systems::iteration::timeline::{Activity, Span};
use systems::program::Op;
use systems::{CostModel, Job, Plan, System};
use workloads::gate::GateStatistics;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Seconds};

use super::constants::{Fitted, Point, Space};
use super::levenberg;
use systems::iteration::run::Run;

/// What is fitted, within bounds that hold for one core of a CPU as for any GPU.
const CONSTANTS: [(&str, f64, f64); 7] = [
    ("gpu.memory_bandwidth", 1e8, 1e14),
    ("gpu.scatter_bandwidth", 1e7, 1e14),
    ("gpu.gemm_rate", 1e8, 1e17),
    ("gpu.expert_start", 1e-7, 1e-1),
    ("host.iteration", 1e-7, 1e1),
    ("host.block", 1e-7, 1e-1),
    ("host.decision_step", 1e-11, 1e-5),
];

/// Kinds of compute segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    /// A block without its MoE layer.
    Block,
    /// Scores and choice, and results back at their tokens.
    Gate,
    /// Rows put into the order of the exchange.
    Permute,
    /// The experts of a rank, shadowed ones included.
    Experts,
    /// Embedding, head and loss.
    Edge,
    /// The optimizer step.
    Optimizer,
    /// Reading data.
    Host,
    /// Decisions about a micro-batch.
    Decide,
    /// Decisions of an iteration.
    Decision,
}

impl Segment {
    pub const ALL: [Self; 9] = [
        Self::Block,
        Self::Gate,
        Self::Permute,
        Self::Experts,
        Self::Edge,
        Self::Optimizer,
        Self::Host,
        Self::Decide,
        Self::Decision,
    ];

    /// The kind of an activity, if it computes and its time is measured where ranks share a device.
    pub fn of(activity: Activity) -> Option<Self> {
        match activity {
            Activity::Block => Some(Self::Block),
            Activity::Op(Op::Gate) => Some(Self::Gate),
            Activity::Op(Op::Permute) => Some(Self::Permute),
            Activity::Op(Op::Experts { .. } | Op::Shadow { .. }) => Some(Self::Experts),
            Activity::Edge => Some(Self::Edge),
            Activity::Optimizer => Some(Self::Optimizer),
            Activity::Host => Some(Self::Host),
            Activity::Op(Op::Decide { .. }) => Some(Self::Decide),
            Activity::Decision => Some(Self::Decision),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Gate => "gate",
            Self::Permute => "permute",
            Self::Experts => "experts",
            Self::Edge => "embedding and head",
            Self::Optimizer => "optimizer",
            Self::Host => "data",
            Self::Decide => "decision, micro-batch",
            Self::Decision => "decision, iteration",
        }
    }
}

/// Where a segment stands in an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentPlace {
    /// Its kind.
    pub segment: Segment,
    /// Whether it is part of a backward pass.
    pub backward: bool,
    /// The block, where the segment is one block's.
    pub block: Option<usize>,
    /// The rank.
    pub rank: usize,
}

/// Segments of an iteration.
pub type Times = BTreeMap<SegmentPlace, Seconds>;

/// What operations take where the host runs ahead of its device; a segment that is missing took no time.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// Behind other work, all issued before they begin.
    pub queued: Times,
    /// Until the host has issued them.
    pub issued: Times,
}

/// Time per place, from the spans of an iteration of either engine.
pub fn segments(spans: &[Span]) -> Times {
    let mut times = BTreeMap::new();
    for span in spans {
        let Some(segment) = Segment::of(span.activity) else { continue };
        let place = SegmentPlace {
            segment,
            backward: matches!(span.work, Some(Work::Backward(_))),
            // The simulator charges a stage for all its layers' decisions together.
            block: span.block.filter(|_| segment != Segment::Decision),
            rank: span.rank,
        };
        *times.entry(place).or_insert(Seconds::ZERO) += span.end - span.start;
    }
    times
}

/// The same with rows put into order as a part of the gate, as formulas price both.
pub fn without_permute(times: Times) -> Times {
    let mut merged = Times::new();
    for (place, time) in times {
        let segment = if place.segment == Segment::Permute { Segment::Gate } else { place.segment };
        *merged.entry(SegmentPlace { segment, ..place }).or_insert(Seconds::ZERO) += time;
    }
    merged
}

/// One measured run: what was trained, and what its segments took.
#[derive(Clone)]
pub struct MeasuredRun {
    /// What sets it apart, for people.
    pub name: String,
    /// What was trained.
    pub job: Job,
    /// Under which plan.
    pub plan: Plan,
    /// By which system.
    pub system: &'static dyn System,
    /// What the gate chose, the same in every iteration.
    pub batch: BatchCounts,
    /// Iterations before the measured ones.
    pub warmup: usize,
    /// Of the measured iterations, each segment from an idle device until that is idle again, means; of ranks with a GPU each, medians of
    /// iterations whose hosts wait around every exchange, and nothing where there is none.
    pub measured: Times,
    /// The same where the host runs ahead, if that was measured.
    pub ahead: Option<Ahead>,
}

impl MeasuredRun {
    /// What the simulator says of the same run on `cluster`. Policies see the cluster of the measured run.
    pub fn predict(&self, cluster: &Cluster) -> Times {
        let costs = CostModel::new(cluster, self.job.gpus);
        let mut run = Run::new(&self.job, &costs, self.system, self.plan);
        for _ in 0..self.warmup {
            run.step(&self.batch);
        }
        segments(&run.observe(&self.batch).1)
    }

    /// `ln(predicted / measured)` of every segment that both know; each kind and pass weighs as much as its share of `all`
    /// measured time (the mean over ranks), whatever the number of ranks and blocks.
    fn residuals(&self, cluster: &Cluster, all: Seconds) -> Vec<f64> {
        let (predicted, measured) = (self.predict(cluster), &self.measured);
        let mut kinds: BTreeMap<(Segment, bool), (f64, f64)> = BTreeMap::new();
        for (place, time) in measured {
            let (number, sum) = kinds.entry((place.segment, place.backward)).or_default();
            *number += 1.0;
            *sum += time.0;
        }
        let all = all.0 * self.job.gpus as f64;
        let residual = |(place, measured): (&SegmentPlace, &Seconds)| {
            let (number, sum) = kinds[&(place.segment, place.backward)];
            let error = (predicted.get(place)?.0 / measured.0).ln();
            Some(super::soft(error) * ((sum / all).max(LEAST_SHARE) / number).sqrt())
        };
        measured.iter().filter_map(residual).collect()
    }
}

/// Small shares count this much, so that constants that stand in them alone are found.
const LEAST_SHARE: f64 = 0.003;

/// The cluster with the constants of `base` but for those that the runs determine; and these, with their uncertainty.
///
/// # Errors
/// No measurements.
pub fn fit(base: &Cluster, runs: &[MeasuredRun]) -> Result<(Cluster, Vec<Fitted>)> {
    let number: usize = runs.iter().map(|run| run.measured.len()).sum();
    ensure!(number >= CONSTANTS.len(), "{} constants cannot be fitted to {number} segments", CONSTANTS.len());
    let mean = |run: &MeasuredRun| run.measured.values().copied().sum::<Seconds>() * (1.0 / run.job.gpus as f64);
    let all = runs.iter().map(mean).sum();
    let start = Point { cluster: base.clone(), gate: GateStatistics::default() };
    let space = Space::within(&start, &CONSTANTS);
    let residuals = |x: &[f64]| -> Result<Vec<f64>> {
        let point = space.point(&start, x)?;
        Ok(runs.iter().flat_map(|run| run.residuals(&point.cluster, all)).collect())
    };
    // From the middle of the bounds: a base may be three orders of magnitude away.
    let solution = levenberg::minimise(&residuals, vec![0.0; CONSTANTS.len()])?;
    Ok((space.point(&start, &solution.x)?.cluster, space.fitted(&solution)))
}

/// One line of predicted against measured: all segments of one kind and pass of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentTimes {
    pub run: String,
    /// The kind and the pass.
    pub segment: String,
    /// Mean over ranks.
    pub predicted: Seconds,
    /// Mean over ranks.
    pub measured: Seconds,
}

/// Predicted time against those `times` that were measured, a line for each run that has them, kind and pass.
pub fn lines(
    cluster: &Cluster,
    runs: &[MeasuredRun],
    times: impl Fn(&MeasuredRun) -> Option<&Times>,
) -> Vec<SegmentTimes> {
    let mut lines = Vec::new();
    for (run, times) in runs.iter().filter_map(|run| Some((run, times(run)?))) {
        let predicted = run.predict(cluster);
        let mut sums: BTreeMap<(Segment, bool), (Seconds, Seconds)> = BTreeMap::new();
        for (place, &measured) in times {
            let sum = sums.entry((place.segment, place.backward)).or_default();
            sum.0 += predicted.get(place).copied().unwrap_or(Seconds::ZERO);
            sum.1 += measured;
        }
        let share = 1.0 / run.job.gpus as f64;
        lines.extend(sums.into_iter().map(|((segment, backward), (predicted, measured))| SegmentTimes {
            run: run.name.clone(),
            segment: format!("{}{}", segment.name(), if backward { ", backward" } else { "" }),
            predicted: predicted * share,
            measured: measured * share,
        }));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::{zoo::expert_only, zoo::fastermoe};
    use workloads::{Gate, Model};

    fn inky() -> Cluster {
        Cluster::named("test", "inky").unwrap()
    }

    /// A run on `there`, whose segments take what the simulator says.
    fn run_on(there: &Cluster, micro_batch: usize, system: &'static dyn System) -> MeasuredRun {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let plan = Plan { dp: 4, ep: 4, micro_batch, ..Plan::default() };
        let (layers, experts, chunks) = (4, 8, 4 * micro_batch);
        // 256 tokens of two choices; the first experts get more.
        let chunk = [200, 100, 80, 60, 40, 20, 10, 2];
        let counts = std::iter::repeat_n(chunk, layers * chunks).flatten().collect();
        let job = Job::new(model, inky(), 4, Gate::NoDrop, chunks).with_micro_batch(micro_batch);
        let batch = BatchCounts::new(layers, chunks, experts, counts);
        let (name, measured) = (String::new(), Times::new());
        let mut run = MeasuredRun { name, job, plan, system, batch, warmup: 0, measured, ahead: None };
        run.measured = run.predict(there);
        run
    }

    #[test]
    fn segments_give_their_constants_back() {
        let mut there = inky();
        there.gpu.gemm_rate.value = 9e10;
        there.gpu.memory_bandwidth.value = 1.2e10;
        there.gpu.scatter_bandwidth.value = 3e9;
        there.gpu.expert_start.value = 4e-5;
        there.host.block.value = 2e-4;
        there.host.iteration.value = 8e-5;
        there.host.decision_step.value = 7e-8;
        let runs = [
            run_on(&there, 1, &expert_only::ExpertOnly),
            run_on(&there, 3, &expert_only::ExpertOnly),
            run_on(&there, 1, &fastermoe::FASTERMOE),
        ];
        let (found, fitted) = fit(&inky(), &runs).unwrap();
        assert_eq!(fitted.len(), CONSTANTS.len());
        for ((path, found, _), (_, there, _)) in found.constants().into_iter().zip(there.constants()) {
            assert!((found.value / there.value - 1.0).abs() < 0.02, "{path}: {} not {}", found.value, there.value);
        }
        assert!(
            lines(&found, &runs, |run| Some(&run.measured))
                .iter()
                .all(|line| (line.predicted.0 / line.measured.0 - 1.0).abs() < 0.02)
        );
    }

    #[test]
    fn nothing_is_fitted_to_nothing() {
        assert!(fit(&inky(), &[]).unwrap_err().to_string().contains("7 constants cannot be fitted to 0 segments"));
    }
}
