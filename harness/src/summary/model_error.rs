//! How far the simulator is from measurements, for every simulated number that is shown.
//!
//! Where a measurement of the very run is held ([`workloads::published`]: same model, cluster, GPUs, gate, system and
//! plan), the error is that of this run. Elsewhere it is the median error of the cluster's runs, or of its single layers, as
//! `moebench validate all` found it: that command writes `results/validation/model_errors.csv`, which is compiled in.

use anyhow::Result;

use crate::studies::errors::Errors;
use crate::studies::sheet::Sheet;

/// The file that `moebench validate all` writes.
pub const FILE: &str = "model_errors.csv";
const TEXT: &str = include_str!("../../../results/validation/model_errors.csv");
const COLUMNS: [&str; 7] = ["cluster", "part", "measurements", "median", "p90", "max", "measured"];

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Whole iterations.
    Iteration,
    /// Single MoE layers.
    Layer,
}

impl Part {
    /// Its name in the file.
    pub fn name(self) -> &'static str {
        match self {
            Part::Iteration => "iteration",
            Part::Layer => "layer",
        }
    }

    /// What there are several of.
    pub fn plural(self) -> &'static str {
        match self {
            Part::Iteration => "runs",
            Part::Layer => "layers",
        }
    }
}

/// Absolute relative errors of a cluster's simulation.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterError {
    /// The cluster.
    pub cluster: String,
    /// Of whole iterations or single layers.
    pub part: Part,
    /// How many measurements.
    pub measurements: usize,
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// Largest.
    pub max: f64,
    /// What was measured, and what of it was fitted to.
    pub measured: String,
}

impl ClusterError {
    /// From errors of predictions.
    pub fn new(cluster: &str, part: Part, errors: &Errors, measured: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            part,
            measurements: errors.count,
            median: errors.median,
            p90: errors.p90,
            max: errors.max,
            measured: measured.to_owned(),
        }
    }
}

/// The errors that were found when this program's page of validation was written.
///
/// # Errors
/// A defect of the file.
pub fn of_clusters() -> Result<Vec<ClusterError>> {
    parse(TEXT)
}

fn parse(text: &str) -> Result<Vec<ClusterError>> {
    if text.lines().count() < 2 {
        return Ok(Vec::new());
    }
    let sheet = Sheet::parse(FILE, text.as_bytes(), &COLUMNS)?;
    let errors = sheet.rows().map(|row| {
        let share = |column| row.positive(column, "a share above 0");
        Ok(ClusterError {
            cluster: row.text("cluster").to_owned(),
            part: match row.text("part") {
                "iteration" => Part::Iteration,
                "layer" => Part::Layer,
                _ => return Err(row.wrong("part", "iteration or layer")),
            },
            measurements: row.whole("measurements", 1)?,
            median: share("median")?,
            p90: share("p90")?,
            max: share("max")?,
            measured: row.text("measured").to_owned(),
        })
    });
    errors.collect()
}

/// The file's text.
pub fn text(errors: &[ClusterError]) -> String {
    let mut text = COLUMNS.join(",") + "\n";
    for e in errors {
        let (part, measured) = (e.part.name(), e.measured.replace(',', ";"));
        text +=
            &format!("{},{part},{},{:.4},{:.4},{:.4},{measured}\n", e.cluster, e.measurements, e.median, e.p90, e.max);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let errors = Errors { count: 3, mean: 0.1, median: 0.125, p90: 0.25, max: 0.5, bias: 0.0, r_squared: None };
        let written = vec![ClusterError::new("inky", Part::Iteration, &errors, "36 runs; all fitted to")];
        assert_eq!(parse(&text(&written)).unwrap(), written);
        assert_eq!(parse(&text(&[])).unwrap(), []);
        let wrong = parse(&text(&written).replace("iteration,", "step,")).unwrap_err().to_string();
        assert!(wrong.contains("line 2: part = step: expected iteration or layer"), "{wrong}");
        of_clusters().unwrap();
    }
}
