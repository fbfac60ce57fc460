//! Whole iterations once more: constants are fitted to the configurations of one number of GPUs alone, and tested on the
//! others.

use anyhow::{Context, Result};
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use super::end_to_end::configurations;
use super::page::Section;
use super::tables::{percent, share};
use super::{Inputs, Study, claims};
use crate::calibrate;
use crate::calibrate::constants::{END_TO_END_CONSTANTS, Point};
use crate::calibrate::targets::Targets;
use crate::measurements::iterations::Configuration;
use runs::summary::errors::{Errors, Pair};
use runs::{prepare, report};

/// Iterations simulated per configuration.
const SIMULATED: usize = 6;

pub struct HeldOut<'a> {
    /// Those that ended and that something simulates.
    configurations: Vec<Configuration>,
    trace: &'a RoutingTrace,
}

/// A fit to one number of GPUs of a cluster.
#[derive(Clone, Debug)]
pub struct GpusFit {
    pub cluster: String,
    pub gpus: usize,
    /// Errors on the configurations that were fitted to.
    pub same: Errors,
    /// Errors on the cluster's other configurations.
    pub others: Errors,
}

impl<'a> Study<'a> for HeldOut<'a> {
    type Outcome = Vec<GpusFit>;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let Some(mut configurations) = configurations(inputs)? else { return Ok(None) };
        configurations.retain(|configuration| configuration.missing().is_none() && configuration.measured().is_some());
        Ok(Some(Self { configurations, trace: &inputs.trace }))
    }

    fn predict(&self) -> Result<Vec<GpusFit>> {
        let mut groups: Vec<(&str, usize)> = self.configurations.iter().map(|c| (c.cluster.as_str(), c.gpus)).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.into_iter().filter_map(|(cluster, gpus)| self.fit(cluster, gpus).transpose()).collect()
    }

    fn section(&self, outcome: &Vec<GpusFit>) -> Result<Section> {
        let mut section = Section::new("Fitted to one number of GPUs, tested on the others");
        let constants = END_TO_END_CONSTANTS.map(|name| format!("`{name}`")).join(", ");
        section.add(format!(include_str!("prose/held_out.md"), constants = constants));
        section.table(table(outcome));
        section.claims.extend(outcome.iter().map(|fit| claims::other_gpus(fit.gpus, &fit.others)));
        Ok(section)
    }
}

impl HeldOut<'_> {
    /// None where there are too few configurations to fit to, or no others.
    fn fit(&self, cluster: &str, gpus: usize) -> Result<Option<GpusFit>> {
        let of_cluster = self.configurations.iter().filter(|c| c.cluster == cluster);
        let (same, others): (Vec<_>, Vec<_>) = of_cluster.partition(|c| c.gpus == gpus);
        if others.is_empty() || same.len() < END_TO_END_CONSTANTS.len() {
            return Ok(None);
        }
        let start = Point { cluster: prepare::cluster("cluster", cluster)?, gate: GateStatistics::default() };
        let sampled = same.iter().map(|&c| (c, c.iterations(Some(SIMULATED)))).collect();
        let targets = Targets { end_to_end: sampled, ..Targets::none(self.trace) };
        let (point, _) = calibrate::fit(&start, &END_TO_END_CONSTANTS.map(str::to_owned), &targets)?;
        let (same, others) = (self.errors(&same, &point)?, self.errors(&others, &point)?);
        Ok(Some(GpusFit { cluster: cluster.to_owned(), gpus, same, others }))
    }

    fn errors(&self, configurations: &[&Configuration], point: &Point) -> Result<Errors> {
        let mut pairs = Vec::new();
        for configuration in configurations {
            let iterations = configuration.iterations(Some(SIMULATED));
            let prediction = configuration.predict(self.trace, Some(&point.cluster), &point.gate, &iterations)?;
            let both = prediction.and_then(|p| p.median()).zip(configuration.measured());
            pairs.extend(both.map(|(predicted, measured)| Pair { predicted, measured }));
        }
        Errors::new(&pairs).context("no configuration was predicted")
    }
}

fn table(outcome: &[GpusFit]) -> comfy_table::Table {
    let mut table = report::table(&["fitted to", "tested on", "n", "median", "p90", "max", "bias"], &[2, 3, 4, 5, 6]);
    for GpusFit { cluster, gpus, same, others } in outcome {
        for (tested, errors) in [("the same", same), ("the others", others)] {
            let [median, p90, max] = [errors.median, errors.p90, errors.max].map(share);
            let (fitted, count, bias) = (format!("{cluster}, {gpus} GPUs"), errors.count, percent(errors.bias));
            table.add_row([fitted, tested.to_owned(), count.to_string(), median, p90, max, bias]);
        }
    }
    table
}
