//! Whole iterations, predicted and measured: errors of medians and of sums, and whether the systems of a case come out in the
//! measured order.

use std::collections::BTreeMap;

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use super::iterations::{Configuration, Prediction};
use runs::summary::errors::{Errors, Pair};

/// Measurements closer than this have no order.
pub const ORDER_TOLERANCE: f64 = 0.05;

/// One configuration, measured and predicted.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// As the file names it.
    pub cluster: String,
    pub gpus: usize,
    pub gate: String,
    /// As the file names it.
    pub system: String,
    /// Other names under which the file has the very same series.
    pub also: Vec<String>,
    pub plan: String,
    /// Median, s; none when the run died.
    pub measured: Option<f64>,
    /// Median, s; none when the run is predicted to die or no system of that name is known.
    pub predicted: Option<f64>,
    /// Predicted over measured, less 1.
    pub error: Option<f64>,
    /// Sum over all iterations, start-up included, s.
    pub measured_sum: f64,
    /// Sum over all iterations, s; none unless all were simulated.
    pub predicted_sum: Option<f64>,
    /// `ok`, `oom` or why nothing simulates it.
    pub status: String,
    /// Whether the measured run ended in the way that was predicted; none where nothing was.
    pub status_agrees: Option<bool>,
}

/// All configurations of a file.
#[derive(Clone, Debug, Serialize)]
pub struct IterationErrors {
    /// In the order of the file.
    pub lines: Vec<Compared>,
    pub errors: Option<Errors>,
    /// Errors of sums over all iterations, as published.
    pub sum_errors: Option<Errors>,
    /// Pairs of systems in a case whose measurements differ by more than [`ORDER_TOLERANCE`].
    pub ordered_pairs: usize,
    /// Those that are predicted in that order.
    pub ordered_right: usize,
    /// The others, `slower > faster`, for people.
    pub ordered_wrong: Vec<String>,
}

/// Simulates every configuration.
///
/// # Errors
/// A trace that cannot stand for a job.
pub fn predict(
    configurations: &[Configuration],
    trace: &RoutingTrace,
    statistics: &GateStatistics,
    most: Option<usize>,
) -> Result<IterationErrors> {
    let lines: Vec<Compared> = configurations
        .par_iter()
        .map(|configuration| {
            let iterations = configuration.iterations(most);
            let prediction = configuration.predict(trace, None, statistics, &iterations)?;
            Ok(compared(configuration, prediction))
        })
        .collect::<Result<_>>()?;
    Ok(summarise(lines))
}

fn compared(configuration: &Configuration, prediction: Option<Prediction>) -> Compared {
    let measured = configuration.measured().filter(|_| !configuration.died());
    let whole = prediction.as_ref().filter(|p| p.failure.is_none() && p.times.len() == configuration.times.len());
    let predicted = prediction.as_ref().filter(|p| p.failure.is_none()).and_then(Prediction::median);
    let failed = prediction.as_ref().map(|prediction| prediction.failure.is_some());
    let status = match (configuration.missing(), failed) {
        (Some(reason), _) => reason,
        _ if configuration.unfinished => "unfinished",
        (None, Some(true)) => "oom",
        (None, _) => "ok",
    };
    Compared {
        cluster: configuration.cluster.clone(),
        gpus: configuration.gpus,
        gate: configuration.gate.clone(),
        system: configuration.published.clone(),
        also: configuration.also.clone(),
        plan: configuration.plan.to_string(),
        measured,
        predicted,
        error: measured.zip(predicted).map(|(measured, predicted)| predicted / measured - 1.0),
        measured_sum: configuration.measured_times().map(|(_, time)| time).sum(),
        predicted_sum: whole.map(|p| p.times.iter().map(|(_, time)| time).sum()),
        status: status.to_owned(),
        status_agrees: failed.map(|failed| failed == configuration.died()),
    }
}

fn summarise(lines: Vec<Compared>) -> IterationErrors {
    let medians: Vec<Pair> = lines.iter().filter_map(Compared::pair).collect();
    let sums: Vec<Pair> = lines
        .iter()
        .filter(|line| line.measured.is_some())
        .filter_map(|line| line.predicted_sum.map(|predicted| Pair { predicted, measured: line.measured_sum }))
        .collect();
    let mut cases: Vec<(&str, usize, &str)> = Vec::new();
    for line in &lines {
        if !cases.contains(&line.case()) {
            cases.push(line.case());
        }
    }
    let (mut right, mut wrong) = (0, Vec::new());
    for case in cases {
        let of_case = lines.iter().filter(|line| line.case() == case);
        let (agree, disagree) =
            order_of_case(of_case.filter_map(|line| line.pair().map(|pair| (line, pair))).collect());
        right += agree;
        wrong.extend(disagree);
    }
    IterationErrors {
        errors: Errors::new(&medians),
        sum_errors: Errors::new(&sums),
        ordered_pairs: right + wrong.len(),
        ordered_right: right,
        ordered_wrong: wrong,
        lines,
    }
}

/// How many pairs of a case's systems are in the measured order, and the others in words.
fn order_of_case(lines: Vec<(&Compared, Pair)>) -> (usize, Vec<String>) {
    let pairs: Vec<Pair> = lines.iter().map(|(_, pair)| *pair).collect();
    let order = order(&pairs, ORDER_TOLERANCE);
    let words = order.wrong.into_iter().map(|(slow, fast)| {
        let ratio = |of: fn(&Pair) -> f64| of(&pairs[slow]) / of(&pairs[fast]);
        let (measured, predicted) = (ratio(|p| p.measured), ratio(|p| p.predicted));
        let (slow, fast) = (lines[slow].0, lines[fast].0);
        format!(
            "{} GPUs, {}: {} over {} {measured:.2} measured, {predicted:.2} predicted",
            slow.gpus, slow.gate, slow.system, fast.system
        )
    });
    (order.right.len(), words.collect())
}

impl Compared {
    /// Both medians, where there are both.
    pub fn pair(&self) -> Option<Pair> {
        self.measured.zip(self.predicted).map(|(measured, predicted)| Pair { predicted, measured })
    }

    fn case(&self) -> (&str, usize, &str) {
        (&self.cluster, self.gpus, &self.gate)
    }
}

impl IterationErrors {
    /// SmartMoE's speedup over FasterMoE without a capacity limit, by sums over all iterations as published, for every
    /// cluster and number of GPUs of which all iterations were simulated.
    pub fn headlines(&self) -> BTreeMap<(&str, usize), Pair> {
        let find = |case: (&str, usize, &str), name: &str| {
            self.lines.iter().find(|line| line.case() == case && line.system == name)
        };
        let headline = |cluster, gpus| {
            let case = (cluster, gpus, "no-drop");
            let (slow, fast) = (find(case, "fastermoe")?, find(case, "smartmoe")?);
            let predicted = slow.predicted_sum? / fast.predicted_sum?;
            Some(((cluster, gpus), Pair { predicted, measured: slow.measured_sum / fast.measured_sum }))
        };
        self.lines.iter().filter_map(|line| headline(line.cluster.as_str(), line.gpus)).collect()
    }
}

/// Whether two predictions are in the order of their measurements; none where those are closer than `tolerance` (relative to
/// the lesser) and have no order.
pub fn in_order(one: &Pair, other: &Pair, tolerance: f64) -> Option<bool> {
    let (slow, fast) = if one.measured > other.measured { (one, other) } else { (other, one) };
    (slow.measured > fast.measured * (1.0 + tolerance)).then_some(slow.predicted > fast.predicted)
}

/// Two predictions as indices: the one measured slower, and the other.
type Ordered = (usize, usize);

/// Pairs of a case's systems whose measurements differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Order {
    /// Those that are predicted in the measured order.
    right: Vec<Ordered>,
    /// The others.
    wrong: Vec<Ordered>,
}

/// Whether predictions order a case's systems as measurements do, for the pairs whose measurements differ by more than
/// `tolerance` (relative to the lesser).
fn order(pairs: &[Pair], tolerance: f64) -> Order {
    let mut order = Order::default();
    for (i, slow) in pairs.iter().enumerate() {
        for (j, fast) in pairs.iter().enumerate().filter(|(_, fast)| fast.measured < slow.measured) {
            match in_order(slow, fast, tolerance) {
                Some(true) => order.right.push((i, j)),
                Some(false) => order.wrong.push((i, j)),
                None => {}
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FasterMoE of one cluster is none of another's.
    #[test]
    fn a_headline_is_of_one_cluster() {
        let line = |cluster: &str, system: &str, sum: f64| Compared {
            cluster: cluster.to_owned(),
            gpus: 32,
            gate: "no-drop".to_owned(),
            system: system.to_owned(),
            also: Vec::new(),
            plan: String::new(),
            measured: None,
            predicted: None,
            error: None,
            measured_sum: sum,
            predicted_sum: Some(2.0 * sum),
            status: "ok".to_owned(),
            status_agrees: None,
        };
        let (a, b) = (["fastermoe", "smartmoe"], [3.0, 2.0]);
        let both = a.iter().zip(b).map(|(system, sum)| line("inky", system, sum));
        let found = summarise([line("pinky", "smartmoe", 1.0)].into_iter().chain(both).collect());
        let headlines: Vec<_> = found.headlines().into_iter().collect();
        assert_eq!(headlines, [(("inky", 32), Pair { predicted: 1.5, measured: 1.5 })]);
    }

    #[test]
    fn close_measurements_have_no_order() {
        let pairs = [(3.0, 1.0), (2.0, 1.04), (1.0, 2.0)].map(|(predicted, measured)| Pair { predicted, measured });
        let order = order(&pairs, 0.05);
        assert!(order.right.is_empty());
        assert_eq!(order.wrong, [(2, 0), (2, 1)]);
    }
}
