//! How skewed a trace is, how long its skew lasts, and how evenly ranks and micro-batches share it.
//!
//! Definitions, for the loads of one layer in one iteration, summed over micro-batches and ranks:
//! - *max/mean*: the busiest expert's load over the mean; `experts / top_k` at most. Over ranks: the same for the sums
//!   of `experts / ep` neighbouring experts, that is, identity placement.
//! - *maxvio*: max/mean - 1, how far the busiest expert is above balance.
//! - *Gini*: mean absolute difference between two experts over twice the mean load; 0 is balance, 1 - 1/n one expert.
//! - *hot set*: the quarter of the experts with the most load (at least one; lowest expert first among equals). The
//!   *overlap* at a lag is the share of the hot set that is hot again so many samples later, averaged over the trace;
//!   sets drawn at random overlap by about a quarter. The *half-life* is the lag, in training iterations, where
//!   the overlap has fallen half way from 1 to that quarter.
//! - *row spread*: standard deviation over the rows (micro-batch, rank), summed over experts, over the mean row's sum;
//!   a coefficient of variation in which experts weigh by load.

use std::fmt;

use super::{RoutingTrace, TraceError};

/// Lags, in samples, at which the overlap of hot sets is stated.
pub const LAGS: [usize; 3] = [1, 10, 100];

/// Imbalance of several layers: median and 95th percentile over them, linearly interpolated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// Of max/mean.
    pub max_over_mean: [f64; 2],
    /// Of the Gini coefficient.
    pub gini: [f64; 2],
}

impl Balance {
    /// From the loads of layers, `[expert]` each; nothing of no layers.
    pub fn of_loads(layers: impl IntoIterator<Item = Vec<u64>>) -> Option<Self> {
        let both: Vec<(f64, f64)> =
            layers.into_iter().map(|loads| (self::max_over_mean(&loads), self::gini(&loads))).collect();
        Self::of_layers(&both)
    }

    /// From (max/mean, Gini) of layers.
    pub fn of_layers(layers: &[(f64, f64)]) -> Option<Self> {
        let percentiles = |field: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = layers.iter().map(field).collect();
            values.sort_by(f64::total_cmp);
            Some([percentile(&values, 0.5)?, percentile(&values, 0.95)?])
        };
        Some(Self { max_over_mean: percentiles(|layer| layer.0)?, gini: percentiles(|layer| layer.1)? })
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([low, high], [gini_low, gini_high]) = (self.max_over_mean, self.gini);
        write!(f, "max/mean {low:.2} to {high:.2} (maxvio {:.2} to {:.2}), ", low - 1.0, high - 1.0)?;
        write!(f, "Gini {gini_low:.3} to {gini_high:.3}, p50 to p95 over layers")
    }
}

/// Linearly interpolated at `(n - 1) * part` of ascending values; nothing of none.
fn percentile(sorted: &[f64], part: f64) -> Option<f64> {
    let place = (sorted.len().checked_sub(1)?) as f64 * part;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(below + (above - below) * place.fract())
}

/// Statistics of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceStats {
    /// Over the layers, of their means over all samples.
    pub balance: Option<Balance>,
    /// One per layer, over all samples.
    pub per_layer: Vec<LayerStats>,
    /// One per sample, over all layers.
    pub over_time: Vec<TimeStats>,
}

/// One layer: means over the samples.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerStats {
    /// Layer, from 0.
    pub layer: usize,
    /// Busiest expert's load over the mean.
    pub max_over_mean: f64,
    /// Busiest rank's load over the mean, identity placement.
    pub rank_max_over_mean: f64,
    /// Gini coefficient of the experts' loads.
    pub gini: f64,
    /// Coefficient of variation across rows, experts weighted by load.
    pub row_spread: f64,
    /// Overlap of hot sets at [`LAGS`]; None where the trace has too few samples.
    pub hot_overlap: [Option<f64>; LAGS.len()],
    /// Training iterations until the overlap is half way to chance; None if the trace ends first.
    pub hot_half_life: Option<u32>,
}

/// One sample: means over the layers, with the extremes of the skew.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeStats {
    /// Label of the iteration.
    pub iteration: u32,
    /// Busiest expert's load over the mean.
    pub max_over_mean: f64,
    /// Least of any layer.
    pub max_over_mean_low: f64,
    /// Greatest of any layer.
    pub max_over_mean_high: f64,
    /// Busiest rank's load over the mean, identity placement.
    pub rank_max_over_mean: f64,
    /// Gini coefficient of the experts' loads.
    pub gini: f64,
    /// Coefficient of variation across rows, experts weighted by load.
    pub row_spread: f64,
    /// Overlap with the hot set of the sample before; None for the first.
    pub hot_overlap: Option<f64>,
}

impl TraceStats {
    /// Statistics of `trace`, with experts on `ep` ranks in the order of their numbers.
    ///
    /// # Errors
    /// `ep` that is zero or does not divide the number of experts.
    pub fn new(trace: &RoutingTrace, ep: usize) -> Result<Self, TraceError> {
        let experts = trace.shape().experts;
        if ep == 0 || !experts.is_multiple_of(ep) {
            return Err(TraceError::field("ep", ep, format!("a divisor of {experts}, the number of experts")));
        }
        let layers = (0..trace.shape().layers).map(|layer| LayerSeries::new(trace, layer, ep)).collect::<Vec<_>>();
        let per_layer: Vec<LayerStats> =
            layers.iter().enumerate().map(|(layer, series)| series.over_samples(layer, trace.iterations())).collect();
        let skews: Vec<(f64, f64)> = per_layer.iter().map(|layer| (layer.max_over_mean, layer.gini)).collect();
        Ok(Self {
            balance: Balance::of_layers(&skews),
            per_layer,
            over_time: (0..trace.iterations().len())
                .map(|index| over_layers(&layers, index, trace.iterations()[index]))
                .collect(),
        })
    }
}

/// Largest load over the mean load; 1 is balance. 1 where nothing is loaded.
pub fn max_over_mean(loads: &[u64]) -> f64 {
    let sum = loads.iter().sum::<u64>();
    match loads.iter().max() {
        Some(&max) if sum > 0 => max as f64 * loads.len() as f64 / sum as f64,
        _ => 1.0,
    }
}

/// Gini coefficient of the loads, from 0 (balance) to 1 - 1/n. 0 where nothing is loaded.
pub fn gini(loads: &[u64]) -> f64 {
    let mut sorted = loads.to_vec();
    sorted.sort_unstable();
    let (count, sum) = (sorted.len() as f64, sorted.iter().sum::<u64>() as f64);
    if sum == 0.0 {
        return 0.0;
    }
    let ranked = sorted.iter().enumerate().map(|(rank, &load)| (rank + 1) as f64 * load as f64).sum::<f64>();
    2.0 * ranked / (count * sum) - (count + 1.0) / count
}

/// What one layer shows in every sample.
struct LayerSeries {
    samples: Vec<Sample>,
}

struct Sample {
    max_over_mean: f64,
    rank_max_over_mean: f64,
    gini: f64,
    row_spread: f64,
    hot: Vec<bool>,
}

impl LayerSeries {
    fn new(trace: &RoutingTrace, layer: usize, ep: usize) -> Self {
        let per_rank = trace.shape().experts / ep;
        let sample = |index| {
            let loads = trace.loads(index, layer);
            let ranks = loads.chunks_exact(per_rank).map(|own| own.iter().sum()).collect::<Vec<_>>();
            Sample {
                max_over_mean: max_over_mean(&loads),
                rank_max_over_mean: max_over_mean(&ranks),
                gini: gini(&loads),
                row_spread: row_spread(trace, index, layer, &loads),
                hot: hot_set(&loads),
            }
        };
        Self { samples: (0..trace.iterations().len()).map(sample).collect() }
    }

    fn over_samples(&self, layer: usize, iterations: &[u32]) -> LayerStats {
        let mean_of = |field: fn(&Sample) -> f64| mean(self.samples.iter().map(field)).unwrap_or(0.0);
        LayerStats {
            layer,
            max_over_mean: mean_of(|sample| sample.max_over_mean),
            rank_max_over_mean: mean_of(|sample| sample.rank_max_over_mean),
            gini: mean_of(|sample| sample.gini),
            row_spread: mean_of(|sample| sample.row_spread),
            hot_overlap: LAGS.map(|lag| self.overlap(lag)),
            hot_half_life: self.half_life(iterations),
        }
    }

    /// Mean overlap of the hot sets `lag` samples apart.
    fn overlap(&self, lag: usize) -> Option<f64> {
        let later = self.samples.iter().skip(lag);
        mean(self.samples.iter().zip(later).map(|(sample, later)| common(&sample.hot, &later.hot)))
    }

    /// The lag in labels: the median over all pairs of samples so far apart, as some may be missing. Lags grow by an eighth, so the
    /// answer is that exact.
    fn half_life(&self, iterations: &[u32]) -> Option<u32> {
        let hot = &self.samples.first()?.hot;
        let chance = hot.iter().filter(|&&hot| hot).count() as f64 / hot.len() as f64;
        let mut lag = 1;
        while let Some(overlap) = self.overlap(lag) {
            if overlap <= (1.0 + chance) / 2.0 {
                let mut apart: Vec<u32> = iterations.iter().zip(&iterations[lag..]).map(|(a, b)| b - a).collect();
                apart.sort_unstable();
                return Some(apart[apart.len() / 2]);
            }
            lag += 1 + lag / 8;
        }
        None
    }
}

fn over_layers(layers: &[LayerSeries], index: usize, iteration: u32) -> TimeStats {
    let values = |field: fn(&Sample) -> f64| layers.iter().map(move |layer| field(&layer.samples[index]));
    let mean_of = |field: fn(&Sample) -> f64| mean(values(field)).unwrap_or(0.0);
    let before = index.checked_sub(1);
    TimeStats {
        iteration,
        max_over_mean: mean_of(|sample| sample.max_over_mean),
        max_over_mean_low: values(|sample| sample.max_over_mean).fold(f64::INFINITY, f64::min),
        max_over_mean_high: values(|sample| sample.max_over_mean).fold(0.0, f64::max),
        rank_max_over_mean: mean_of(|sample| sample.rank_max_over_mean),
        gini: mean_of(|sample| sample.gini),
        row_spread: mean_of(|sample| sample.row_spread),
        hot_overlap: before.and_then(|before| {
            mean(layers.iter().map(|layer| common(&layer.samples[before].hot, &layer.samples[index].hot)))
        }),
    }
}

fn row_spread(trace: &RoutingTrace, index: usize, layer: usize, loads: &[u64]) -> f64 {
    let rows = trace.shape().rows() as f64;
    let mut squares = vec![0_u64; loads.len()];
    for row in trace.layer_rows(index, layer) {
        for (square, &count) in squares.iter_mut().zip(row) {
            *square += u64::from(count) * u64::from(count);
        }
    }
    let deviation = |(&load, &square): (&u64, &u64)| {
        let mean = load as f64 / rows;
        (square as f64 / rows - mean * mean).max(0.0).sqrt()
    };
    loads.iter().zip(&squares).map(deviation).sum::<f64>() / f64::from(trace.shape().entries)
}

fn hot_set(loads: &[u64]) -> Vec<bool> {
    let mut order = (0..loads.len()).collect::<Vec<_>>();
    order.sort_by_key(|&expert| std::cmp::Reverse(loads[expert]));
    let mut hot = vec![false; loads.len()];
    order.iter().take((loads.len() / 4).max(1)).for_each(|&expert| hot[expert] = true);
    hot
}

/// Share of one hot set that is in another of the same size.
fn common(one: &[bool], other: &[bool]) -> f64 {
    let both = one.iter().zip(other).filter(|&(&one, &other)| one && other).count();
    both as f64 / one.iter().filter(|&&hot| hot).count() as f64
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::super::TraceShape;
    use super::*;

    fn check_skew(loads: &[u64], expected: (f64, f64)) {
        let found = (max_over_mean(loads), gini(loads));
        assert!(
            (found.0 - expected.0).abs() < 1e-12 && (found.1 - expected.1).abs() < 1e-12,
            "{loads:?}: {found:?}, expected {expected:?}"
        );
    }

    #[test]
    fn skew_of_known_loads() {
        check_skew(&[5, 5, 5, 5], (1.0, 0.0));
        check_skew(&[0, 0, 8, 0], (4.0, 0.75));
        check_skew(&[1, 2, 3, 4], (1.6, 0.25));
        check_skew(&[0, 0], (1.0, 0.0));
    }

    #[test]
    fn percentiles_over_layers() {
        assert_eq!(Balance::of_layers(&[]), None);
        let layers = [[5, 5, 5, 5], [0, 0, 8, 0], [1, 2, 3, 4]].map(Vec::from);
        let balance = Balance::of_loads(layers).unwrap();
        assert_eq!(balance.max_over_mean[0], 1.6);
        assert!((balance.max_over_mean[1] - (1.6 + 0.9 * 2.4)).abs() < 1e-12);
        let text = "max/mean 1.60 to 3.76 (maxvio 0.60 to 2.76), Gini 0.250 to 0.700, p50 to p95 over layers";
        assert_eq!(balance.to_string(), text);
    }

    /// Two rows of four experts per sample; the hot expert moves to another place after three samples of six.
    fn moving() -> RoutingTrace {
        let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 2, experts: 4, entries: 8, top_k: 2 };
        let (early, late) = ([4, 2, 1, 1, 4, 2, 1, 1], [1, 1, 3, 3, 1, 1, 4, 2]);
        let counts = [early, early, early, late, late, late].concat();
        RoutingTrace::new("moving", shape, vec![0, 5, 10, 15, 20, 25], counts).unwrap()
    }

    #[test]
    fn follows_a_hot_expert() {
        let stats = TraceStats::new(&moving(), 2).unwrap();
        let layer = &stats.per_layer[0];
        assert!((layer.max_over_mean - (2.0 + 1.75) / 2.0).abs() < 1e-12);
        assert!((layer.rank_max_over_mean - 1.5).abs() < 1e-12);
        assert_eq!(layer.hot_overlap, [Some(0.8), None, None]);
        assert_eq!(layer.hot_half_life, Some(10));
        assert_eq!(stats.over_time[3].hot_overlap, Some(0.0));
        assert_eq!(stats.over_time[0].row_spread, 0.0);
        assert!((stats.over_time[5].row_spread - (0.5 + 0.5) / 8.0).abs() < 1e-12);
    }

    /// Samples from 1000 on are one apart, whatever the first was.
    #[test]
    fn a_half_life_is_that_of_most_samples() {
        let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 1, experts: 4, entries: 4, top_k: 1 };
        let hot = |expert: usize| (0..4).map(move |e| if e == expert { 4 } else { 0 });
        let counts = [0, 1, 2, 3, 0].into_iter().flat_map(hot).collect();
        let trace = RoutingTrace::new("uneven", shape, vec![0, 1000, 1001, 1002, 1003], counts).unwrap();
        assert_eq!(TraceStats::new(&trace, 1).unwrap().per_layer[0].hot_half_life, Some(1));
    }

    #[test]
    fn refuses_uneven_ranks() {
        let error = TraceStats::new(&moving(), 3).expect_err("4 experts on 3 ranks");
        assert_eq!(error.to_string(), "ep is 3: expected a divisor of 4, the number of experts");
    }
}
