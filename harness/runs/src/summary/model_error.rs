//! How far the simulator is from measurements, for every simulated number that is shown.
//!
//! Where a measurement of the executed plan is held ([`workloads::published`]: same model, cluster, GPUs, gate, stack and
//! plan), the error is that of this run. Elsewhere, for a model that was measured on as many GPUs of the cluster, it is the
//! error of the cluster's runs, or of its single layers, as `moebench validate all` found it, of those that no fit saw where
//! there are such: that command writes `results/validation/model_errors.csv`, which is compiled in. Beyond that it is unknown.

use anyhow::Result;
use serde::{Deserialize, Serialize, Serializer};
use workloads::CsvFile;

use crate::summary::errors::Errors;

/// The file that `moebench validate all` writes.
pub const FILE: &str = "model_errors.csv";
const TEXT: &str = include_str!("../../../../results/validation/model_errors.csv");

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Whole iterations.
    Iteration,
    /// Single MoE layers.
    Layer,
}

impl Part {
    /// What there are several of.
    pub fn plural(self) -> &'static str {
        match self {
            Part::Iteration => "runs",
            Part::Layer => "layers",
        }
    }
}

/// Whether constants were fitted to what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// They were fitted to other measurements, or to none.
    Unseen,
    /// They may have been.
    Fitted,
}

impl Measured {
    /// As an adjective.
    pub fn name(self) -> &'static str {
        match self {
            Measured::Unseen => "unseen",
            Measured::Fitted => "fitted",
        }
    }

    /// What it says of runs or layers, behind them.
    pub fn clause(self) -> &'static str {
        match self {
            Measured::Unseen => "that no fit saw",
            Measured::Fitted => "that constants were fitted to",
        }
    }
}

/// Absolute relative errors of a cluster's simulation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterError {
    pub cluster: String,
    /// Of whole iterations or single layers.
    pub part: Part,
    pub measurements: usize,
    #[serde(serialize_with = "four_digits")]
    pub median: f64,
    #[serde(serialize_with = "four_digits")]
    pub p90: f64,
    #[serde(serialize_with = "four_digits")]
    pub max: f64,
    pub measured: Measured,
}

fn four_digits<S: Serializer>(share: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{share:.4}"))
}

impl ClusterError {
    /// From errors of predictions.
    pub fn new(cluster: &str, part: Part, errors: &Errors, measured: Measured) -> Self {
        Self {
            cluster: cluster.to_owned(),
            part,
            measurements: errors.count,
            median: errors.median,
            p90: errors.p90,
            max: errors.max,
            measured,
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
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Ok(CsvFile::parse(FILE, text.as_bytes())?.read()?)
}

/// The file's text; empty without errors.
///
/// # Errors
/// A cell that cannot be written.
pub fn csv(errors: &[ClusterError]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    errors.iter().try_for_each(|error| writer.serialize(error))?;
    Ok(String::from_utf8(writer.into_inner().map_err(|error| error.into_error())?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let errors = Errors { count: 3, mean: 0.1, median: 0.125, p90: 0.25, max: 0.5, bias: 0.0, r_squared: None };
        let written = vec![ClusterError::new("inky", Part::Iteration, &errors, Measured::Fitted)];
        let text = csv(&written).unwrap();
        assert_eq!(text.lines().next(), Some("cluster,part,measurements,median,p90,max,measured"));
        assert_eq!(parse(&text).unwrap(), written);
        assert_eq!(parse("").unwrap(), []);
        let wrong = parse(&text.replace("iteration,", "step,")).unwrap_err().to_string();
        assert!(wrong.contains("line 2: part = step: expected iteration or layer"), "{wrong}");
        let wrong = parse(&text.replace(",fitted", ",both")).unwrap_err().to_string();
        assert!(wrong.contains("line 2: measured = both: expected unseen or fitted"), "{wrong}");
        of_clusters().unwrap();
    }
}
