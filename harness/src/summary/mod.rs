//! Summaries: medians and speedups per case and system, derived from the stored iterations alone, and beside them what was
//! published and how far the model is from measurements.

pub mod model_error;
pub mod statistics;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use polars::prelude::{Column, DataFrame, DataType};
use workloads::Published;
use workloads::published::{PublishedRun, Quantity};

use crate::engines::Engine;
use crate::summary::model_error::{ClusterError, Part};
use crate::summary::statistics::Median;

/// One case under one system.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The case's name.
    pub case: String,
    /// Model, cluster, GPUs and gate of the case.
    pub model: String,
    /// The cluster.
    pub cluster: String,
    /// GPUs.
    pub gpus: u32,
    /// Kind of gate.
    pub gate: String,
    /// Its capacity factor.
    pub capacity_factor: Option<f64>,
    /// The MoE layer that ran alone, if one did.
    pub layer: Option<u32>,
    /// The system.
    pub system: String,
    /// How the numbers were obtained.
    pub engine: String,
    /// The plan, if there is one.
    pub plan: Option<String>,
    /// `ok`, or how the run ended.
    pub status: String,
    /// Why it ended so.
    pub reason: String,
    /// What the system's offline search expected an iteration to take, s.
    pub expected: Option<f64>,
    /// Time of an iteration after warm-up, s.
    pub step: Option<Median>,
    /// Sum over all iterations, warm-up included, s: the published convention.
    pub sum: f64,
    /// Ratio of the baseline's median to this one.
    pub speedup: Option<Median>,
    /// Ratio of the baseline's sum to this one.
    pub speedup_by_sums: Option<f64>,
    /// Part of the time that online decisions and migrations took.
    pub online_share: f64,
    /// Mean loss of the last tenth of the iterations, nats per token, where a model was really trained.
    pub loss: Option<f64>,
    /// Median after warm-up of what the simulator says of the same iterations, s, where it followed an emulated run.
    pub predicted: Option<f64>,
    /// Largest peak of any rank, B; nothing where memory was not followed.
    pub peak_bytes: Option<f64>,
    /// What was published for this system on this case.
    pub published: PublishedRow,
    /// How far the model is from measurements here.
    pub model_error: Option<ModelError>,
}

/// What was published; nothing where no number is held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PublishedRow {
    /// Median time of an iteration, s.
    pub step: Option<f64>,
    /// Sum over all iterations, s.
    pub sum: Option<f64>,
    /// Ratio of the baseline's median to this one.
    pub speedup: Option<f64>,
    /// Ratio of the baseline's sum to this one.
    pub speedup_by_sums: Option<f64>,
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
                format!("median of {} {} {} on {}, absolute", e.measurements, e.measured, e.part.plural(), e.cluster)
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

/// The rows of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// System that speedups are over.
    pub baseline: String,
    /// In the order of the records.
    pub rows: Vec<Row>,
}

impl Summary {
    /// The row of a case and system.
    pub fn row(&self, case: &str, system: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.case == case && row.system == system)
    }

    /// Derives the summary of an `iterations` frame, leaving `warmup` iterations out of medians.
    ///
    /// # Errors
    /// When the frame lacks a column.
    pub fn new(iterations: &DataFrame, baseline: &str, warmup: u32) -> Result<Self> {
        let table = Table::new(iterations)?;
        let mut order: Vec<(String, String)> = Vec::new();
        let mut members: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        for row in 0..iterations.height() {
            let key = (table.text("case", row)?, table.text("system", row)?);
            let rows = members.entry(key.clone()).or_default();
            if rows.is_empty() {
                order.push(key);
            }
            rows.push(row);
        }
        let mut rows = Vec::new();
        for key in &order {
            rows.push(summarise(&table, key, &members[key], warmup)?);
        }
        for index in 0..rows.len() {
            let reference = rows.iter().find(|other| other.case == rows[index].case && other.system == baseline);
            let reference = reference.and_then(|other| Some((other.step?, other.sum)));
            if let (Some((median, sum)), Some(own)) = (reference, rows[index].step) {
                rows[index].speedup = Some(statistics::speedup(&median, &own));
                rows[index].speedup_by_sums = Some(sum / rows[index].sum);
            }
        }
        Ok(Self { baseline: baseline.to_owned(), rows })
    }

    /// Adds what was published, and the model's error: against the measurement of the same run under the same plan where one
    /// is held, else that of the cluster.
    pub fn hold_against(&mut self, published: &Published, clusters: &[ClusterError]) {
        for index in 0..self.rows.len() {
            let row = &self.rows[index];
            if row.engine != Engine::Simulate.name() {
                continue;
            }
            let baseline = self.rows.iter().find(|other| other.case == row.case && other.system == self.baseline);
            let of = |row: &Row, quantity| row.published_run().and_then(|run| published.of(&run, quantity));
            let value = |row: &Row, quantity| of(row, quantity).map(|number| number.value);
            let under_same_plan = |quantity| of(row, quantity).filter(|n| row.plan.as_ref() == Some(&n.plan));
            let ratio = |quantity| Some(value(baseline?, quantity)? / value(row, quantity)?);
            let held = PublishedRow {
                step: value(row, Quantity::MedianStep),
                sum: value(row, Quantity::Sum),
                speedup: ratio(Quantity::MedianStep),
                speedup_by_sums: ratio(Quantity::Sum).or(under_same_plan(Quantity::SpeedupBySums).map(|n| n.value)),
            };
            let measured = under_same_plan(Quantity::MedianStep);
            let of_run = measured.zip(row.step).map(|(number, step)| ModelError::Run(step.value / number.value - 1.0));
            let part = if row.layer.is_some() { Part::Layer } else { Part::Iteration };
            let of_cluster = clusters.iter().find(|e| e.cluster == row.cluster && e.part == part);
            let error = of_run.or(of_cluster.cloned().filter(|_| row.step.is_some()).map(ModelError::Cluster));
            self.rows[index].published = held;
            self.rows[index].model_error = error;
        }
    }

    /// The summary as a frame, for `summary.csv`.
    ///
    /// # Errors
    /// Whatever Polars says.
    pub fn frame(&self) -> Result<DataFrame> {
        macro_rules! columns {
            ($($name:literal = |$row:ident| $value:expr),* $(,)?) => {
                vec![$(Column::new($name.into(), self.rows.iter().map(|$row| $value).collect::<Vec<_>>())),*]
            };
        }
        let columns = columns![
            "case" = |row| row.case.as_str(),
            "model" = |row| row.model.as_str(),
            "cluster" = |row| row.cluster.as_str(),
            "gpus" = |row| row.gpus,
            "gate" = |row| row.gate.as_str(),
            "capacity_factor" = |row| row.capacity_factor,
            "layer" = |row| row.layer,
            "system" = |row| row.system.as_str(),
            "engine" = |row| row.engine.as_str(),
            "plan" = |row| row.plan.as_deref(),
            "status" = |row| row.status.as_str(),
            "reason" = |row| row.reason.as_str(),
            "expected_step_s" = |row| row.expected,
            "median_step_s" = |row| row.step.map(|m| m.value),
            "median_step_low_s" = |row| row.step.map(|m| m.low),
            "median_step_high_s" = |row| row.step.map(|m| m.high),
            "sum_s" = |row| row.step.map(|_| row.sum),
            "speedup" = |row| row.speedup.map(|m| m.value),
            "speedup_low" = |row| row.speedup.map(|m| m.low),
            "speedup_high" = |row| row.speedup.map(|m| m.high),
            "speedup_by_sums" = |row| row.speedup_by_sums,
            "speedup_over" = |_row| self.baseline.as_str(),
            "online_share" = |row| row.step.map(|_| row.online_share),
            "final_loss" = |row| row.loss,
            "predicted_step_s" = |row| row.predicted,
            "peak_bytes" = |row| row.peak_bytes.filter(|_| row.step.is_some()),
            "published_step_s" = |row| row.published.step,
            "published_sum_s" = |row| row.published.sum,
            "published_speedup" = |row| row.published.speedup,
            "published_speedup_by_sums" = |row| row.published.speedup_by_sums,
            "model_error" = |row| row.model_error.as_ref().map(ModelError::value),
            "model_error_of" = |row| row.model_error.as_ref().map(ModelError::of),
        ];
        Ok(DataFrame::new(self.rows.len(), columns)?)
    }
}

fn summarise(table: &Table, key: &(String, String), rows: &[usize], warmup: u32) -> Result<Row> {
    let first = rows[0];
    let mut predicted = Vec::new();
    let (mut steps, mut losses, mut sum, mut online, mut peak) = (Vec::new(), Vec::new(), 0.0, 0.0, None);
    let mut ended = ("ok".to_owned(), String::new());
    for &row in rows {
        let Some(step) = table.number("step_s", row)? else {
            ended = (table.text("status", row)?, table.text("reason", row)?);
            continue;
        };
        sum += step;
        losses.extend(table.number("loss", row)?);
        online += table.number("decision_s", row)?.unwrap_or(0.0) + table.number("migration_s", row)?.unwrap_or(0.0);
        peak = table.number("peak_bytes", row)?.into_iter().chain(peak).reduce(f64::max);
        if table.number("iteration", row)?.unwrap_or(0.0) as u32 > warmup {
            steps.push(step);
            predicted.extend(table.number("predicted_step_s", row)?);
        }
    }
    let ran = ended.0 == "ok";
    Ok(Row {
        case: key.0.clone(),
        model: table.text("model", first)?,
        cluster: table.text("cluster", first)?,
        gpus: table.number("gpus", first)?.unwrap_or(0.0) as u32,
        gate: table.text("gate", first)?,
        capacity_factor: table.number("capacity_factor", first)?,
        layer: table.number("layer", first)?.map(|layer| layer as u32),
        system: key.1.clone(),
        engine: table.text("engine", first)?,
        plan: table.optional_text("plan", first)?,
        status: ended.0,
        reason: ended.1,
        expected: table.number("expected_step_s", first)?,
        step: if ran { statistics::median(&steps) } else { None },
        sum,
        speedup: None,
        speedup_by_sums: None,
        online_share: if sum > 0.0 { online / sum } else { 0.0 },
        loss: final_loss(&losses),
        predicted: statistics::median(&predicted).map(|median| median.value),
        peak_bytes: peak,
        published: PublishedRow::default(),
        model_error: None,
    })
}

/// The mean of the last tenth, at least one.
fn final_loss(losses: &[f64]) -> Option<f64> {
    let last = &losses[losses.len() - losses.len().div_ceil(10)..];
    (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64)
}

impl Row {
    /// The run as published numbers know it.
    fn published_run(&self) -> Option<PublishedRun> {
        let factor = self.capacity_factor.map_or(String::new(), |factor| format!(" {factor}"));
        Some(PublishedRun {
            model: self.model.clone(),
            cluster: self.cluster.clone(),
            gpus: self.gpus as usize,
            gate: format!("{}{factor}", self.gate).parse().ok()?,
            system: self.system.clone(),
        })
    }
}

/// The columns that summaries and figures need, by name.
pub struct Table {
    height: usize,
    numbers: BTreeMap<&'static str, Vec<Option<f64>>>,
    texts: BTreeMap<&'static str, Vec<Option<String>>>,
}

const NUMBERS: [&str; 12] = [
    "gpus",
    "capacity_factor",
    "layer",
    "expected_step_s",
    "iteration",
    "step_s",
    "loss",
    "predicted_step_s",
    "decision_s",
    "migration_s",
    "moved_experts",
    "peak_bytes",
];
const TEXTS: [&str; 9] = ["case", "model", "cluster", "gate", "system", "engine", "plan", "status", "reason"];

impl Table {
    /// Reads an `iterations` frame.
    ///
    /// # Errors
    /// When it lacks a column.
    pub fn new(frame: &DataFrame) -> Result<Self> {
        let mut table = Self { height: frame.height(), numbers: BTreeMap::new(), texts: BTreeMap::new() };
        for name in NUMBERS {
            let column = frame.column(name)?.cast(&DataType::Float64)?;
            table.numbers.insert(name, column.f64()?.iter().collect());
        }
        for name in TEXTS {
            let column = frame.column(name)?.str()?;
            table.texts.insert(name, column.iter().map(|text| text.map(str::to_owned)).collect());
        }
        Ok(table)
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// A number.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn number(&self, column: &str, row: usize) -> Result<Option<f64>> {
        Ok(self.numbers.get(column).with_context(|| format!("no column `{column}`"))?[row])
    }

    /// `(x, y)` of the rows of a case and system that have both.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn points(&self, case: &str, system: &str, x: &str, y: &str) -> Result<Vec<(f64, f64)>> {
        let mut points = Vec::new();
        for row in 0..self.height {
            if self.text("case", row)? == case && self.text("system", row)? == system {
                points.extend(self.number(x, row)?.zip(self.number(y, row)?));
            }
        }
        Ok(points)
    }

    fn optional_text(&self, column: &str, row: usize) -> Result<Option<String>> {
        Ok(self.texts.get(column).with_context(|| format!("no column `{column}`"))?[row].clone())
    }

    /// A text; empty where there is none.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn text(&self, column: &str, row: usize) -> Result<String> {
        Ok(self.optional_text(column, row)?.unwrap_or_default())
    }
}
