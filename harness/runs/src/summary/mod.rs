//! Summaries: times and speedups per case and system, derived from the rows of a run alone, and beside them what was
//! published and how far the model is from measurements.

pub mod beside;
pub mod claims;
pub mod errors;
pub mod model_error;
pub mod speedup;
pub mod statistics;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use polars::prelude::DataFrame;
use systems::iteration::run::Balancing;
use workloads::cluster::Gpu;
use workloads::published::{PublishedRun, Quantity};
use workloads::{Bytes, EngineKind, Published};

use crate::records::{BALANCING, Row, RowsByRun, RunFailure, RunKey, Sample, Status, case_columns, column};
use crate::summary::errors::mean;
use crate::summary::model_error::{ClusterError, Part};
use crate::summary::speedup::{Series, Speedup};

/// No run with more than this part of a rank's usable memory was calibrated.
const NEAR_THE_LIMIT: f64 = 0.9;

/// One case under one system.
#[derive(Clone, Debug, PartialEq)]
pub struct SummaryRow {
    /// Of the first seed.
    pub key: Arc<RunKey>,
    /// Why it ended before its last iteration.
    pub failure: Option<RunFailure>,
    /// Iterations after warm-up, seed by seed.
    pub series: Vec<Series>,
    /// Time of an iteration after warm-up; absent where a run failed.
    pub step: Option<StepTime>,
    /// Sum over all iterations, warm-up included, s: the published convention.
    pub sum: f64,
    /// Over the baseline.
    pub speedup: Option<Speedup>,
    /// Ratio of the baseline's sum to this one, warm-up included.
    pub speedup_with_warmup: Option<f64>,
    /// What the same plan takes under a force-balanced gate, over the mean time: 1 where imbalance costs nothing. Above 1 where a
    /// capacity drops entries that a balanced gate would keep.
    pub share_of_ideal: Option<f64>,
    /// Part of the time of these samples that online decisions and migrations took.
    pub online_share: f64,
    /// Of the iterations that the mean time is of; none where a run failed.
    pub samples: Vec<Sample>,
    /// Mean loss of the last tenth of each seed's iterations, nats per token, where a model was really trained.
    pub loss: Option<f64>,
    /// Median after warm-up of what the simulator says of the same iterations, s, where it followed an emulated run.
    pub predicted: Option<f64>,
    /// Largest peak of any rank, B; nothing where memory was not followed.
    pub peak_bytes: Option<f64>,
    /// What an hour of a GPU costs, where the cluster says so.
    pub hour_price: Option<f64>,
    /// What was published for this system on this case.
    pub published: PublishedRow,
    /// How far the model is from measurements here.
    pub model_error: Option<ModelError>,
    /// Simulated over published speedup by medians, less 1, where both runs were measured under the plans that ran here.
    pub speedup_error: Option<f64>,
    /// Why the simulated time is an extrapolation, if it is one.
    pub extrapolated: Option<&'static str>,
}

/// What a summary needs to know of a cluster's GPUs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuFacts {
    /// Memory that a job can use.
    pub usable: Bytes,
    /// What an hour of one costs, where the cluster says so.
    pub hour_price: Option<f64>,
}

impl GpuFacts {
    pub fn new(gpu: &Gpu) -> Self {
        Self { usable: gpu.usable(), hour_price: gpu.hour_price.as_ref().map(|price| price.value) }
    }
}

/// Time of an iteration, s.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// Over whole placement periods; over all iterations where there is no whole period.
    pub mean: f64,
    /// Of all iterations.
    pub median: f64,
    /// How many iterations the mean is of, over all seeds.
    pub counted: usize,
}

impl StepTime {
    fn new(series: &[Series]) -> Option<Self> {
        let counted: Vec<f64> = series.iter().flat_map(Series::counted).copied().collect();
        let all: Vec<f64> = series.iter().flat_map(|series| &series.steps).copied().collect();
        Some(Self { mean: mean(&counted)?, median: statistics::median(&all)?, counted: counted.len() })
    }
}

/// What was published; nothing where no number is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishedRow {
    /// Median time of an iteration, s.
    pub step: Option<f64>,
    /// Sum over all iterations, s.
    pub sum: Option<f64>,
    /// Ratio of the baseline's median to this one.
    pub speedup_by_medians: Option<f64>,
    /// Ratio of the baseline's sum to this one, warm-up included.
    pub speedup_by_sums: Option<f64>,
    /// Whether the median time is of another plan than the one that ran here.
    pub other_plan: bool,
    /// Whether that or the baseline's is: the speedup is a ratio of both.
    pub speedup_of_other_plan: bool,
}

/// How far a simulated time is from measurements.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelError {
    /// Of this very run: simulated over measured, less 1.
    Run(f64),
    /// Of the cluster's other runs or layers.
    Cluster(ClusterError),
}

impl ModelError {
    /// The error: signed for a run, the absolute median for a cluster.
    pub fn value(&self) -> f64 {
        match self {
            Self::Run(error) => *error,
            Self::Cluster(error) => error.median,
        }
    }

    /// Of what it is the error, for records.
    pub fn of(&self) -> String {
        match self {
            Self::Run(_) => "this run, signed".to_owned(),
            Self::Cluster(e) => {
                let (measured, plural) = (e.measured.name(), e.part.plural());
                format!("median of {} {measured} {plural} on {}, absolute", e.measurements, e.cluster)
            }
        }
    }

    /// `+6%` of a run, `±4%` of a cluster.
    pub fn label(&self) -> String {
        match self {
            Self::Run(error) if error.abs() < 0.005 => "0%".to_owned(),
            Self::Run(error) => format!("{:+.0}%", error * 100.0),
            Self::Cluster(error) => format!("±{:.0}%", error.median * 100.0),
        }
    }
}

/// A run, case by case and system by system.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// System that speedups are over.
    pub baseline: String,
    /// In the order of the records.
    pub rows: Vec<SummaryRow>,
    /// Cases whose network or routing is their own: no measurement of their cluster is held against them.
    pub own_conditions: Vec<String>,
    /// Whether an iteration is a line of another program's log, which may be the mean of several: a sum over all is of no run.
    pub of_lines: bool,
    /// What was measured on, in place of the clusters that the cases name.
    pub measured_on: Option<String>,
}

impl Summary {
    /// Leaves the first `warmup` iterations out of all but sums.
    pub fn new(rows: &RowsByRun, baseline: &str, warmup: usize) -> Self {
        let mut rows: Vec<SummaryRow> = rows.iter().filter_map(|of_run| SummaryRow::new(of_run, warmup)).collect();
        for index in 0..rows.len() {
            let case = &rows[index].key.case;
            let reference = rows.iter().find(|other| other.key.case == *case && other.key.system == baseline);
            let Some(reference) = reference else { continue };
            let (speedup, sum) = (rows[index].over(reference), reference.sum);
            rows[index].speedup_with_warmup = speedup.as_ref().map(|_| sum / rows[index].sum);
            rows[index].speedup = speedup;
        }
        Self { baseline: baseline.to_owned(), rows, own_conditions: Vec::new(), of_lines: false, measured_on: None }
    }

    /// Of rows, held against all that was published but for cases of their own conditions, with extrapolations marked and GPU hours
    /// priced. `gpus`: by cluster.
    ///
    /// # Errors
    /// None that is known of: what comes with moebench can be read.
    pub fn with_errors(
        rows: &RowsByRun,
        baseline: &str,
        warmup: usize,
        own_conditions: &[String],
        gpus: &BTreeMap<String, GpuFacts>,
    ) -> Result<Self> {
        let mut summary = Self { own_conditions: own_conditions.to_vec(), ..Self::new(rows, baseline, warmup) };
        summary.hold_against(&Published::all()?, &model_error::of_clusters()?);
        summary.mark_extrapolations(&gpus.iter().map(|(cluster, gpu)| (cluster.clone(), gpu.usable)).collect());
        for row in &mut summary.rows {
            row.hour_price = gpus.get(&row.key.cluster).and_then(|gpu| gpu.hour_price);
        }
        Ok(summary)
    }

    /// The row of a case and system.
    pub fn row(&self, case: &str, system: &str) -> Option<&SummaryRow> {
        self.rows.iter().find(|row| row.key.case == case && row.key.system == system)
    }

    /// Over what the spread of speedups is.
    pub fn spread_over(&self) -> String {
        match self.rows.iter().map(|row| row.series.len()).max() {
            Some(seeds) if seeds > 1 => format!("{seeds} seeds"),
            _ => "iterations".to_owned(),
        }
    }

    /// How the numbers were obtained: one engine runs a suite.
    pub fn engine(&self) -> Option<EngineKind> {
        self.rows.first().map(|row| row.key.engine)
    }

    /// Whether the rows are of models that were really trained.
    pub fn is_trained(&self) -> bool {
        self.engine().is_some_and(EngineKind::trains)
    }

    /// Adds what was published, and the model's error: against the measurement of the plan that was executed where one is
    /// held, under any name; else that of the cluster, where the model was measured on as many GPUs; else none.
    pub fn hold_against(&mut self, published: &Published, clusters: &[ClusterError]) {
        let held: Vec<_> = self.rows.iter().map(|row| self.held_against(row, published, clusters)).collect();
        for (row, (published, error)) in self.rows.iter_mut().zip(held) {
            row.published = published;
            row.model_error = error;
        }
        let errors: Vec<_> = self.rows.iter().map(|row| self.speedup_error(row)).collect();
        self.rows.iter_mut().zip(errors).for_each(|(row, error)| row.speedup_error = error);
    }

    /// Marks simulated times of plans unlike those that were calibrated: without expert parallelism, or close to the limit of
    /// a rank's memory. `usable`: of it, by cluster.
    pub fn mark_extrapolations(&mut self, usable: &BTreeMap<String, Bytes>) {
        for row in &mut self.rows {
            row.extrapolated = row.extrapolation(usable.get(&row.key.cluster).copied());
        }
    }

    fn speedup_error(&self, row: &SummaryRow) -> Option<f64> {
        let baseline = self.row(&row.key.case, &self.baseline)?;
        let measured = |row: &SummaryRow| row.published.step.is_some() && !row.published.other_plan;
        let both = row.key.system != self.baseline && measured(row) && measured(baseline);
        let published = row.published.speedup_by_medians.filter(|_| both)?;
        Some(row.speedup.as_ref()?.by_medians / published - 1.0)
    }

    fn held_against(
        &self,
        row: &SummaryRow,
        published: &Published,
        clusters: &[ClusterError],
    ) -> (PublishedRow, Option<ModelError>) {
        if row.key.engine.trains() || self.own_conditions.contains(&row.key.case) {
            return (PublishedRow::default(), None);
        }
        let executed = |row: &SummaryRow, quantity| {
            row.key.plan.and_then(|plan| published.of_plan(&row.published_run(), quantity, &plan.to_string()))
        };
        let of = |row: &SummaryRow, quantity| executed(row, quantity).or(published.of(&row.published_run(), quantity));
        let value = |row: &SummaryRow, quantity| of(row, quantity).map(|number| number.value);
        let baseline = self.row(&row.key.case, &self.baseline);
        let ratio = |quantity| Some(value(baseline?, quantity)? / value(row, quantity)?);
        let of_other_plan = |row: &SummaryRow| {
            executed(row, Quantity::MedianStep).is_none() && value(row, Quantity::MedianStep).is_some()
        };
        let other_plan = of_other_plan(row);
        let held = PublishedRow {
            step: value(row, Quantity::MedianStep),
            sum: value(row, Quantity::Sum),
            speedup_by_medians: ratio(Quantity::MedianStep),
            speedup_by_sums: ratio(Quantity::Sum).or(executed(row, Quantity::SpeedupBySums).map(|n| n.value)),
            other_plan,
            speedup_of_other_plan: other_plan || baseline.is_some_and(of_other_plan),
        };
        let measured = executed(row, Quantity::MedianStep);
        let of_run = measured.zip(row.step).map(|(number, step)| ModelError::Run(step.median / number.value - 1.0));
        let part = if row.key.layer.is_some() { Part::Layer } else { Part::Iteration };
        let of_cluster = clusters.iter().find(|error| error.cluster == row.key.cluster && error.part == part);
        let covered = published.covers(&row.published_run());
        let of_cluster = of_cluster.filter(|_| covered && row.step.is_some()).cloned().map(ModelError::Cluster);
        (held, of_run.or(of_cluster))
    }

    /// The frame of `summary.csv`.
    ///
    /// # Errors
    /// What Polars says.
    pub fn frame(&self) -> Result<DataFrame> {
        let (rows, spread_over) = (&self.rows, self.spread_over());
        let speedup = |row: &SummaryRow, of: fn(&Speedup) -> Option<f64>| row.speedup.as_ref().and_then(of);
        let mut columns = case_columns(rows, |row| &row.key);
        columns.extend([
            column("engine", rows, |row| row.key.engine.name()),
            column("plan", rows, |row| row.key.plan.map(|plan| plan.to_string())),
            column("status", rows, |row| row.status().name()),
            column("reason", rows, |row| row.failure.as_ref().map_or("", |failure| failure.reason.as_str())),
            column("expected_step_s", rows, |row| row.key.expected.map(|time| time.0)),
            column("mean_step_s", rows, |row| row.step.map(|step| step.mean)),
            column("counted_iterations", rows, |row| row.step.map(|step| step.counted as u32)),
            column("median_step_s", rows, |row| row.step.map(|step| step.median)),
            column("sum_with_warmup_s", rows, |row| row.step.filter(|_| !self.of_lines).map(|_| row.sum)),
            column("speedup_by_totals", rows, |row| speedup(row, |s| Some(s.by_totals))),
            column("speedup_by_totals_low", rows, |row| speedup(row, |s| Some(s.spread?[0]))),
            column("speedup_by_totals_high", rows, |row| speedup(row, |s| Some(s.spread?[1]))),
            column("spread_over", rows, |_| spread_over.as_str()),
            column("speedup_by_medians", rows, |row| speedup(row, |s| Some(s.by_medians))),
            column("speedup_with_warmup", rows, |row| row.speedup_with_warmup.filter(|_| !self.of_lines)),
            column("speedup_over", rows, |_| self.baseline.as_str()),
            column("balanced_step_s", rows, |row| row.key.balanced.map(|time| time.0)),
            column("share_of_ideal", rows, |row| row.share_of_ideal),
            column("online_share", rows, |row| row.step.map(|_| row.online_share)),
            column("decision_s", rows, |row| row.mean(|of| Some(of.decision.0))),
            column("migration_s", rows, |row| row.mean(|of| Some(of.migration.0))),
            column("moved_experts", rows, |row| row.mean(|of| Some(f64::from(of.moved)))),
            column("copied_experts", rows, |row| row.mean(|of| Some(of.copied as f64))),
            column("final_loss", rows, |row| row.loss),
            column("predicted_step_s", rows, |row| row.predicted),
            column("peak_bytes", rows, |row| row.peak_bytes.filter(|_| row.step.is_some())),
            column("gpu_hours_per_1000_iterations", rows, SummaryRow::gpu_hours),
            column("cost_per_1000_iterations", rows, SummaryRow::cost),
            column("published_step_s", rows, |row| row.published.step),
            column("published_sum_s", rows, |row| row.published.sum),
            column("published_speedup_by_medians", rows, |row| row.published.speedup_by_medians),
            column("published_speedup_by_sums", rows, |row| row.published.speedup_by_sums),
            column("model_error", rows, |row| row.model_error.as_ref().map(ModelError::value)),
            column("speedup_error", rows, |row| row.speedup_error),
            column("extrapolated", rows, |row| row.extrapolated.unwrap_or_default()),
            column("published_of_other_plan", rows, |row| {
                row.published.step.map(|_| row.published.speedup_of_other_plan)
            }),
            column("model_error_of", rows, |row| row.model_error.as_ref().map(ModelError::of)),
            column("measured_on", rows, |_| self.measured_on.as_deref()),
        ]);
        columns.extend(BALANCING.map(|(name, of)| column(name, rows, |row| row.balancing(of))));
        Ok(DataFrame::new(rows.len(), columns)?)
    }
}

impl SummaryRow {
    /// Whether it is of a bound, which wins nothing.
    pub fn is_bound(&self) -> bool {
        systems::by_name(&self.key.system).is_ok_and(|system| system.is_bound())
    }

    /// Of the rows of one case and system; none of no rows.
    fn new(rows: &[&Row], warmup: usize) -> Option<Self> {
        let samples: Vec<(u32, &Sample)> =
            rows.iter().filter_map(|row| Some((row.iteration, row.sample.as_ref().ok()?))).collect();
        let warm = samples.iter().filter(|(iteration, _)| *iteration as usize > warmup);
        let warm: Vec<&Sample> = warm.map(|(_, sample)| *sample).collect();
        let failure = rows.iter().rev().find_map(|row| row.sample.as_ref().err()).cloned();
        let series = series(rows, warmup);
        let predicted: Vec<f64> = warm.iter().filter_map(|sample| Some(sample.predicted?.0)).collect();
        let sum = samples.iter().map(|(_, sample)| sample.step.0).sum();
        let key = rows.first()?.key.clone();
        let step = StepTime::new(&series).filter(|_| failure.is_none());
        let counted = if step.is_some() { counted(&warm, &series) } else { Vec::new() };
        Some(Self {
            share_of_ideal: key.balanced.zip(step).map(|(balanced, step)| balanced.0 / step.mean),
            online_share: online_share(&counted),
            samples: counted,
            key,
            step,
            series,
            failure,
            sum,
            speedup: None,
            speedup_with_warmup: None,
            loss: final_loss(rows),
            predicted: statistics::median(&predicted),
            peak_bytes: samples.iter().filter_map(|(_, sample)| Some(sample.peak?.bytes.0)).reduce(f64::max),
            hour_price: None,
            published: PublishedRow::default(),
            model_error: None,
            speedup_error: None,
            extrapolated: None,
        })
    }

    /// The mean over the iterations that the mean time is of; none of none.
    fn mean(&self, of: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        mean(&self.samples.iter().filter_map(of).collect::<Vec<_>>())
    }

    /// The same of what balancing cost and brought, where that was followed.
    pub fn balancing(&self, of: fn(&Balancing) -> f64) -> Option<f64> {
        self.mean(|sample| sample.balancing.as_ref().map(of))
    }

    pub fn status(&self) -> Status {
        self.failure.as_ref().map_or(Status::Ok, |failure| failure.status)
    }

    /// GPU hours of 1000 iterations: GPUs x mean time of an iteration in seconds x 1000 / 3600.
    pub fn gpu_hours(&self) -> Option<f64> {
        self.step.map(|step| f64::from(self.key.gpus) * step.mean * 1000.0 / 3600.0)
    }

    /// What these cost, where the cluster says what an hour of a GPU does.
    pub fn cost(&self) -> Option<f64> {
        Some(self.gpu_hours()? * self.hour_price?)
    }

    /// How much faster than `reference`; none where either failed.
    pub fn over(&self, reference: &SummaryRow) -> Option<Speedup> {
        (self.step.is_some() && reference.step.is_some()).then(|| Speedup::new(&reference.series, &self.series))?
    }

    fn extrapolation(&self, usable: Option<Bytes>) -> Option<&'static str> {
        let measured = matches!(self.model_error, Some(ModelError::Run(_)));
        if self.key.engine.trains() || self.step.is_none() || measured {
            return None;
        }
        let full = self.peak_bytes.zip(usable).is_some_and(|(peak, usable)| peak >= NEAR_THE_LIMIT * usable.0);
        match self.key.plan {
            Some(plan) if plan.ep == 1 && self.key.gpus > 1 => Some("no expert parallelism"),
            _ if full => Some("memory within 10% of the limit"),
            _ => None,
        }
    }

    /// The run as published numbers know it.
    fn published_run(&self) -> PublishedRun {
        PublishedRun {
            model: self.key.model.clone(),
            cluster: self.key.cluster.clone(),
            gpus: self.key.gpus as usize,
            gate: self.key.gate,
            system: self.key.system.clone(),
        }
    }
}

/// The iterations after warm-up; rows of a seed stand together.
fn series(rows: &[&Row], warmup: usize) -> Vec<Series> {
    let of_seed = |rows: &[&Row]| {
        let warm = rows.iter().filter(|row| row.iteration as usize > warmup);
        let steps = warm.filter_map(|row| Some(row.sample.as_ref().ok()?.step.0)).collect();
        let key = &rows[0].key;
        Series { seed: key.seed, period: key.plan.map_or(1, |plan| plan.placement_every.max(1)), steps }
    };
    rows.chunk_by(|a, b| a.key.seed == b.key.seed).map(of_seed).collect()
}

/// Of the samples after warm-up, seed by seed, those that each series counts.
fn counted(mut warm: &[&Sample], series: &[Series]) -> Vec<Sample> {
    let mut counted = Vec::new();
    for one in series {
        let (of_seed, rest) = warm.split_at(one.steps.len());
        counted.extend(of_seed[..one.counted().len()].iter().map(|&sample| sample.clone()));
        warm = rest;
    }
    counted
}

fn online_share(samples: &[Sample]) -> f64 {
    let sum = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>();
    let time = sum(|sample| sample.step.0);
    if time > 0.0 { sum(|sample| sample.decision.0 + sample.migration.0) / time } else { 0.0 }
}

/// The mean of the last tenth, at least one, of each seed; then of the seeds. Rows of a seed stand together.
fn final_loss(rows: &[&Row]) -> Option<f64> {
    let of_seed = |rows: &[&Row]| {
        let losses: Vec<f64> = rows.iter().filter_map(|row| row.sample.as_ref().ok()?.loss).collect();
        mean(&losses[losses.len() - losses.len().div_ceil(10)..])
    };
    mean(&rows.chunk_by(|a, b| a.key.seed == b.key.seed).filter_map(of_seed).collect::<Vec<_>>())
}
