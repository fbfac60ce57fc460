//! The constants that can be fitted, and the bounds that physics and data sheets put on them.

use anyhow::{Result, bail};
use serde::Serialize;
use workloads::Cluster;
use workloads::gate::GateStatistics;

use super::levenberg::Solution;

/// Everything that a prediction depends on and a fit can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub cluster: Cluster,
    pub gate: GateStatistics,
}

/// A constant's value after a fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitted {
    /// As on the command line.
    pub name: String,
    /// In SI units.
    pub value: f64,
    /// Standard error, in the same unit; infinite when the measurements do not depend on it.
    pub uncertainty: f64,
    /// Whether the fit pushes it against one of its bounds.
    pub at_bound: bool,
}

impl Fitted {
    /// Whether the measurements say anything of it; one at its bound was pushed there by them.
    pub fn determined(&self) -> bool {
        self.uncertainty.is_finite() || self.at_bound
    }
}

/// Name and bounds of every constant that can be fitted: wide enough for any GPU cluster of the last ten years. Where a cluster
/// states a constant's peak, that is its upper bound.
const BOUNDS: [(&str, f64, f64); 17] = [
    ("gpu.memory_bandwidth", 1e11, 8e12),
    ("gpu.scatter_bandwidth", 1e10, 8e12),
    ("gpu.gemm_rate", 1e12, 2e15),
    ("gpu.expert_start", 1e-6, 5e-3),
    ("gpu.block_traffic", 1.0, 200.0),
    ("network.intra_bandwidth", 1e9, 9e11),
    ("network.inter_bandwidth", 1e8, 1e12),
    ("network.port_bandwidth", 1e8, 4e11),
    ("network.rooted_bandwidth", 1e8, 4e11),
    ("network.call_start", 1e-6, 5e-3),
    ("network.peer_start", 1e-7, 5e-3),
    ("network.send_start", 1e-6, 1e-2),
    ("host.iteration", 1e-4, 1.0),
    ("host.block", 1e-6, 1e-2),
    ("host.synchronisation", 1e-6, 1e-2),
    ("gate.second_choice_kept", 0.05, 1.0),
    ("gate.balance_loss_flattening", 0.05, 0.99),
];

/// The constants that single layers determine.
pub const LAYER_CONSTANTS: [&str; 5] =
    ["gpu.gemm_rate", "gpu.expert_start", "gpu.scatter_bandwidth", "network.intra_bandwidth", "host.synchronisation"];

/// The constants that single layers across nodes determine besides.
pub const NETWORK_LAYER_CONSTANTS: [&str; 2] = ["network.port_bandwidth", "network.peer_start"];

/// The constants that iteration times determine. An expert's start-up is not among them: plans with many experts a rank
/// also issue many calls, whether the experts get rows or not, and the times tell that it is the calls that cost.
pub const END_TO_END_CONSTANTS: [&str; 7] = [
    "gpu.gemm_rate",
    "network.inter_bandwidth",
    "network.rooted_bandwidth",
    "network.call_start",
    "network.peer_start",
    "gate.second_choice_kept",
    "gate.balance_loss_flattening",
];

/// The constant that a layer's exchange between nodes determines.
pub const ADAPTIVE_CONSTANTS: [&str; 1] = ["network.port_bandwidth"];

impl Point {
    fn get(&mut self, name: &str) -> Option<&mut f64> {
        match name {
            "gate.second_choice_kept" => Some(&mut self.gate.second_choice_kept),
            "gate.balance_loss_flattening" => Some(&mut self.gate.balance_loss_flattening),
            _ => {
                let found = self.cluster.constants_mut().into_iter().find(|(path, _)| *path == name);
                found.map(|(_, constant)| &mut constant.value)
            }
        }
    }

    /// The datasheet's bound, where the cluster states one.
    fn peak(&self, name: &str) -> Option<f64> {
        self.cluster.constants().into_iter().find(|(path, ..)| *path == name).and_then(|(_, constant, _)| constant.peak)
    }
}

/// The chosen constants as unbounded parameters: `ln v = ln low + (ln high - ln low) / (1 + e^-x)`.
pub struct Space {
    axes: Vec<Axis>,
}

struct Axis {
    name: &'static str,
    low: f64,
    high: f64,
    start: f64,
}

impl Axis {
    fn value(&self, x: f64) -> f64 {
        (self.low.ln() + (self.high / self.low).ln() / (1.0 + (-x * self.scale()).exp())).exp()
    }

    /// A change of `x` by 1 is about a change of `ln v` by 1 where the bounds are far.
    fn scale(&self) -> f64 {
        4.0 / (self.high / self.low).ln()
    }

    fn parameter(&self, value: f64) -> f64 {
        let share = ((value / self.low).ln() / (self.high / self.low).ln()).clamp(1e-3, 1.0 - 1e-3);
        (share / (1.0 - share)).ln() / self.scale()
    }

    /// `d ln v / d x`.
    fn slope(&self, x: f64) -> f64 {
        let share = 1.0 / (1.0 + (-x * self.scale()).exp());
        4.0 * share * (1.0 - share)
    }
}

impl Space {
    /// The space of `names`, starting at `start`.
    ///
    /// # Errors
    /// A name that cannot be fitted, or one given twice.
    pub fn new(start: &Point, names: &[String]) -> Result<Self> {
        let mut axes: Vec<Axis> = Vec::new();
        for name in names {
            let Some(&(name, low, high)) = BOUNDS.iter().find(|(known, ..)| known == name) else {
                let known: Vec<&str> = BOUNDS.iter().map(|(known, ..)| *known).collect();
                bail!("--constants: unknown constant `{name}`; known: {}", known.join(", "));
            };
            if axes.iter().any(|axis| axis.name == name) {
                bail!("--constants: `{name}` is given twice");
            }
            let Some(value) = start.clone().get(name).map(|value| *value) else {
                bail!("--constants: `{name}`: expected a constant that cluster {} states", start.cluster.name);
            };
            let high = start.peak(name).unwrap_or(if value < high { high } else { 2.0 * value });
            let low = if value > low || value == 0.0 { low } else { value / 2.0 };
            axes.push(Axis { name, low, high, start: value });
        }
        Ok(Self { axes })
    }

    /// A space of constants that are known to exist, each within bounds of its own.
    pub fn within(start: &Point, bounds: &[(&'static str, f64, f64)]) -> Self {
        let value = |name: &str, low: f64| start.clone().get(name).map_or(low, |value| *value);
        let axes = bounds.iter().map(|&(name, low, high)| Axis { name, low, high, start: value(name, low) });
        Self { axes: axes.collect() }
    }

    /// Parameters of the start.
    pub fn start(&self) -> Vec<f64> {
        self.axes.iter().map(|axis| axis.parameter(axis.start)).collect()
    }

    /// `base` with the chosen constants at `x`.
    ///
    /// # Errors
    /// A name, given to [`Self::within`], that is no constant's.
    pub fn point(&self, base: &Point, x: &[f64]) -> Result<Point> {
        let mut point = base.clone();
        for (axis, &x) in self.axes.iter().zip(x) {
            match point.get(axis.name) {
                Some(value) => *value = axis.value(x),
                None => bail!("unknown constant `{}`", axis.name),
            }
        }
        Ok(point)
    }

    /// Values and standard errors of a solution: `sd(v) = v (d ln v / dx) sd(x)`.
    pub fn fitted(&self, solution: &Solution) -> Vec<Fitted> {
        let size = self.axes.len();
        self.axes
            .iter()
            .enumerate()
            .map(|(i, axis)| {
                let x = solution.x[i];
                let value = axis.value(x);
                let close = |bound: f64| (value / bound).ln().abs() < 0.01;
                Fitted {
                    name: axis.name.to_owned(),
                    value,
                    uncertainty: value * axis.slope(x) * solution.covariance[i * size + i].max(0.0).sqrt(),
                    at_bound: close(axis.low) || close(axis.high),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Point {
        Point { cluster: Cluster::named("test", "inky").unwrap(), gate: GateStatistics::default() }
    }

    #[test]
    fn every_constant_is_its_own_parameter() {
        for cluster in Cluster::names() {
            let start = || Point { cluster: Cluster::named("test", cluster).unwrap(), ..start() };
            // Not every cluster states how often a block's results go through memory.
            let stated = BOUNDS.iter().filter(|(name, ..)| start().get(name).is_some());
            let names: Vec<String> = stated.map(|(name, ..)| (*name).to_owned()).collect();
            assert!(names.len() >= BOUNDS.len() - 1);
            let space = Space::new(&start(), &names).unwrap();
            let mut same = space.point(&start(), &space.start()).unwrap();
            for name in &names {
                let (before, after) = (*start().get(name).unwrap(), *same.get(name).unwrap());
                assert!((after / before - 1.0).abs() < 1e-9, "{cluster}, {name}: {before} {after}");
            }
        }
    }

    #[test]
    fn a_start_beyond_the_table_stays() {
        let name = "network.rooted_bandwidth";
        for value in [5e12, 1e3] {
            let mut far = start();
            *far.get(name).unwrap() = value;
            let space = Space::new(&far, &[name.to_owned()]).unwrap();
            let after = *space.point(&far, &space.start()).unwrap().get(name).unwrap();
            assert!((after / value - 1.0).abs() < 1e-9, "{value} {after}");
        }
    }

    #[test]
    fn no_fit_goes_beyond_a_peak() {
        let names = ["gpu.gemm_rate".to_owned()];
        let far = Space::new(&start(), &names).unwrap().point(&start(), &[1e3]).unwrap();
        assert_eq!(far.cluster.gpu.gemm_rate.peak, Some(312e12));
        assert!((far.cluster.gpu.gemm_rate.value / 312e12 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn unknown_and_double_names_are_refused() {
        let check = |names: &[&str], expected: &str| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let message = Space::new(&start(), &names).err().map_or(String::new(), |e| e.to_string());
            assert!(message.contains(expected), "{message}");
        };
        check(&["gpu.memory"], "unknown constant `gpu.memory`; known: gpu.memory_bandwidth");
        check(&["host.block", "host.block"], "`host.block` is given twice");
        check(&["gpu.block_traffic"], "`gpu.block_traffic`: expected a constant that cluster inky states");
    }
}
