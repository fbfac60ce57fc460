//! Summaries: medians and speedups per case and system, derived from the stored iterations alone.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use polars::prelude::{Column, DataFrame, DataType};

use crate::statistics::{self, Median};

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
    /// Largest peak of any rank, B.
    pub peak_bytes: f64,
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
            "system" = |row| row.system.as_str(),
            "engine" = |row| row.engine.as_str(),
            "plan" = |row| row.plan.as_deref(),
            "status" = |row| row.status.as_str(),
            "reason" = |row| row.reason.as_str(),
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
            "peak_bytes" = |row| row.step.map(|_| row.peak_bytes),
        ];
        Ok(DataFrame::new(self.rows.len(), columns)?)
    }
}

fn summarise(table: &Table, key: &(String, String), rows: &[usize], warmup: u32) -> Result<Row> {
    let first = rows[0];
    let (mut steps, mut sum, mut online, mut peak) = (Vec::new(), 0.0, 0.0, 0.0f64);
    let mut ended = ("ok".to_owned(), String::new());
    for &row in rows {
        let Some(step) = table.number("step_s", row)? else {
            ended = (table.text("status", row)?, table.text("reason", row)?);
            continue;
        };
        sum += step;
        online += table.number("decision_s", row)?.unwrap_or(0.0) + table.number("migration_s", row)?.unwrap_or(0.0);
        peak = peak.max(table.number("peak_bytes", row)?.unwrap_or(0.0));
        if table.number("iteration", row)?.unwrap_or(0.0) as u32 > warmup {
            steps.push(step);
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
        system: key.1.clone(),
        engine: table.text("engine", first)?,
        plan: table.optional_text("plan", first)?,
        status: ended.0,
        reason: ended.1,
        step: if ran { statistics::median(&steps) } else { None },
        sum,
        speedup: None,
        speedup_by_sums: None,
        online_share: if sum > 0.0 { online / sum } else { 0.0 },
        peak_bytes: peak,
    })
}

/// The columns that a summary needs, by name.
struct Table {
    numbers: BTreeMap<&'static str, Vec<Option<f64>>>,
    texts: BTreeMap<&'static str, Vec<Option<String>>>,
}

const NUMBERS: [&str; 7] =
    ["gpus", "capacity_factor", "iteration", "step_s", "decision_s", "migration_s", "peak_bytes"];
const TEXTS: [&str; 9] = ["case", "model", "cluster", "gate", "system", "engine", "plan", "status", "reason"];

impl Table {
    fn new(frame: &DataFrame) -> Result<Self> {
        let mut table = Self { numbers: BTreeMap::new(), texts: BTreeMap::new() };
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

    fn number(&self, column: &str, row: usize) -> Result<Option<f64>> {
        Ok(self.numbers.get(column).with_context(|| format!("no column `{column}`"))?[row])
    }

    fn optional_text(&self, column: &str, row: usize) -> Result<Option<String>> {
        Ok(self.texts.get(column).with_context(|| format!("no column `{column}`"))?[row].clone())
    }

    fn text(&self, column: &str, row: usize) -> Result<String> {
        Ok(self.optional_text(column, row)?.unwrap_or_default())
    }
}
