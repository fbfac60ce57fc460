//! How far predictions are from measurements.
//!
//! Relative errors are `predicted / measured - 1`. `R^2 = 1 - sum (measured - predicted)^2 / sum (measured - mean)^2`: of
//! the predictions themselves, not of a line through them. Quantiles are interpolated between order statistics.

use serde::Serialize;

/// A prediction beside its measurement, in the same unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    pub predicted: f64,
    /// What was measured, above 0.
    pub measured: f64,
}

impl Pair {
    pub fn error(&self) -> f64 {
        self.predicted / self.measured - 1.0
    }
}

/// Relative errors of a set of predictions: all but the bias without their sign.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Errors {
    pub count: usize,
    pub mean: f64,
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    pub max: f64,
    /// Mean with the sign.
    pub bias: f64,
    /// R^2; none where all measurements are the same.
    pub r_squared: Option<f64>,
}

impl Errors {
    /// Errors of `pairs`, or none of no pairs.
    pub fn new(pairs: &[Pair]) -> Option<Self> {
        let mut absolute: Vec<f64> = pairs.iter().map(|pair| pair.error().abs()).collect();
        absolute.sort_by(f64::total_cmp);
        Some(Self {
            count: pairs.len(),
            mean: mean(&absolute)?,
            median: quantile(&absolute, 0.5)?,
            p90: quantile(&absolute, 0.9)?,
            max: *absolute.last()?,
            bias: pairs.iter().map(Pair::error).sum::<f64>() / pairs.len() as f64,
            r_squared: r_squared(pairs),
        })
    }
}

/// The mean, or none of no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A quantile of sorted values, interpolated.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = share * sorted.len().checked_sub(1)? as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * place.fract())
}

fn r_squared(pairs: &[Pair]) -> Option<f64> {
    let mean = pairs.iter().map(|pair| pair.measured).sum::<f64>() / pairs.len() as f64;
    let total: f64 = pairs.iter().map(|pair| (pair.measured - mean).powi(2)).sum();
    let left: f64 = pairs.iter().map(|pair| (pair.measured - pair.predicted).powi(2)).sum();
    (total > 0.0).then(|| 1.0 - left / total)
}

/// Pearson's correlation of predictions with measurements; none where either does not vary.
pub fn correlation(pairs: &[Pair]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean = |of: fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (p, m) = (mean(|pair| pair.predicted), mean(|pair| pair.measured));
    let sum = |of: &dyn Fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>();
    let product = sum(&|pair| (pair.predicted - p) * (pair.measured - m));
    let spread = sum(&|pair| (pair.predicted - p).powi(2)) * sum(&|pair| (pair.measured - m).powi(2));
    (spread > 0.0).then(|| product / spread.sqrt())
}
