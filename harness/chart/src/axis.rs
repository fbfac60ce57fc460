//! Axes as plotters' coordinates: a range, how values lie along it, and 1-2-5 ticks with their numbers.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::canvas::units;
use crate::text::{Notation, Type, number};

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spacing {
    Linear,
    /// Decades; for positive values.
    Log,
}

/// Points between the numbers of an axis.
const NUMBER_GAP: f64 = 2.5;

/// Values are drawn up to this magnitude, and on a logarithmic axis down to its inverse: ratios and margins stay finite.
const LARGEST: f64 = 1e100;

impl Spacing {
    /// Whether a value has a place on such an axis.
    pub(crate) fn accepts(self, value: f64) -> bool {
        match self {
            Self::Linear => value.abs() <= LARGEST,
            Self::Log => (1.0 / LARGEST..=LARGEST).contains(&value),
        }
    }
}

/// A value with the text beside it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tick {
    pub(crate) value: f64,
    pub(crate) label: String,
}

#[derive(Debug, Clone)]
pub(crate) struct Axis {
    low: f64,
    high: f64,
    spacing: Spacing,
    /// Points between the ends of the range and those of the axis.
    inset: f64,
    ticks: Vec<Tick>,
}

impl Axis {
    /// An axis without ticks. The range is not empty, and both ends have a place on it.
    pub(crate) fn new((low, high): (f64, f64), spacing: Spacing) -> Self {
        Self { low, high, spacing, inset: 0.0, ticks: Vec::new() }
    }

    /// About `count` round values inside the range.
    pub(crate) fn ticked(self, count: usize) -> Self {
        let ticks = match self.spacing {
            Spacing::Linear => linear_ticks(self.low, self.high, count),
            Spacing::Log => log_ticks(self.low, self.high, count),
        };
        Self { ticks, ..self }
    }

    pub(crate) fn with_ticks(self, ticks: Vec<Tick>) -> Self {
        Self { ticks, ..self }
    }

    /// The ticks, without the numbers that would run into others along `length` points; a decade's number stays before
    /// others'.
    pub(crate) fn legible(mut self, length: f64, kind: Type) -> Self {
        let mut order: Vec<usize> = (0..self.ticks.len()).collect();
        order.sort_by_key(|i| !is_decade(self.ticks[*i].value));
        let mut taken: Vec<(f64, f64)> = Vec::new();
        for i in order {
            let (middle, half) = (self.share(self.ticks[i].value) * length, kind.width(&self.ticks[i].label) / 2.0);
            let (start, end) = (middle - half - NUMBER_GAP, middle + half);
            if taken.iter().any(|(from, to)| start < *to && end > *from - NUMBER_GAP) {
                self.ticks[i].label.clear();
            } else {
                taken.push((middle - half, end));
            }
        }
        self
    }

    pub(crate) fn inset(self, inset: f64) -> Self {
        Self { inset, ..self }
    }

    pub(crate) fn ticks(&self) -> &[Tick] {
        &self.ticks
    }

    pub(crate) fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    pub(crate) fn share(&self, value: f64) -> f64 {
        match self.spacing {
            Spacing::Linear => (value - self.low) / (self.high - self.low),
            Spacing::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let inset = units(self.inset) * (to - from).signum();
        let length = f64::from(to - from - 2 * inset);
        // Far outside is as good as outside; it keeps plotters' whole numbers in range.
        from + inset + (self.share(*value).clamp(-1.0, 2.0) * length).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // A grid of its own between the ticks would be noise.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.iter().map(|t| t.value).collect() }
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks.iter().find(|t| t.value == *value).map_or(String::new(), |t| t.label.clone())
    }
}

/// The least and greatest of what has a place on the axis; None without any.
pub(crate) fn extent(values: impl IntoIterator<Item = f64>, spacing: Spacing) -> Option<(f64, f64)> {
    values.into_iter().filter(|v| spacing.accepts(*v)).fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((low.min(v), high.max(v)))
    })
}

/// A range with a margin of `share` on both sides; a single value gets room around it.
pub(crate) fn widened((low, high): (f64, f64), share: f64) -> (f64, f64) {
    // Below this share of the values, their differences are rounding.
    if high - low > 1e-9 * high.abs().max(low.abs()) {
        let margin = (high - low) * share;
        return (low - margin, high + margin);
    }
    let margin = if low.abs() < 1.0 / LARGEST { 1.0 } else { low.abs() * 0.1 };
    (low - margin, high + margin)
}

fn is_decade(value: f64) -> bool {
    let exponent = value.abs().log10();
    (exponent - exponent.round()).abs() < 1e-9
}

fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let step = round_step((high - low) / count.max(1) as f64);
    if !step.is_normal() {
        return Vec::new();
    }
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let notation = notation(low.abs().max(high.abs()), step);
    let tick = |i| Tick { value: i as f64 * step, label: number(i as f64 * step, notation) };
    (first..=last).map(tick).collect()
}

/// The least of 1, 2, 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn log_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |every: usize, factors: &[f64]| -> Vec<f64> {
        let powers = (first..=last).filter(|p| p.rem_euclid(every as i32) == 0);
        let all = powers.flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p)));
        all.filter(|v| *v >= low * (1.0 - 1e-9) && *v <= high * (1.0 + 1e-9)).collect()
    };
    let most = count.max(3) + 2;
    let dense = within(1, &[1.0, 2.0, 5.0]);
    let decades = within(1, &[1.0]).len();
    let values = if dense.len() <= most { dense } else { within(decades.div_ceil(most).max(1), &[1.0]) };
    if values.len() < 2 {
        return linear_ticks(low, high, count);
    }
    let large_or_small = high >= FIXED_BELOW || low < FIXED_FROM;
    let label = |value: f64| match large_or_small {
        true => number(value, Notation::Scientific(0)),
        false => number(value, Notation::Fixed(decimals_of(value))),
    };
    values.into_iter().map(|value| Tick { value, label: label(value) }).collect()
}

/// Numbers from here on are written with powers of ten.
const FIXED_BELOW: f64 = 1e6;
/// So are logarithmic axes that start below this, and steps that need more decimals.
const FIXED_FROM: f64 = 1e-4;

/// One notation for all numbers of an axis: decimals, or powers of ten where these would be long.
fn notation(largest: f64, step: f64) -> Notation {
    // Up to the step after the largest number, which may round up to its bound.
    if largest < FIXED_BELOW * 10.0 && step >= FIXED_FROM * (1.0 - 1e-9) {
        return Notation::Fixed(decimals_of(step));
    }
    let digits = (largest.log10() + 1e-9).floor() - (step.log10() + 1e-9).floor();
    Notation::Scientific(digits.clamp(0.0, 9.0) as usize)
}

/// Digits after the point that tell multiples of `step` apart.
fn decimals_of(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: Vec<Tick>) -> Vec<String> {
        ticks.into_iter().map(|t| t.label).collect()
    }

    #[test]
    fn linear_ticks_are_round() {
        let check = |low, high, count, expected: &[&str]| assert_eq!(labels(linear_ticks(low, high, count)), expected);
        check(0.0, 2.7, 6, &["0.0", "0.5", "1.0", "1.5", "2.0", "2.5"]);
        check(0.0, 30_000.0, 3, &["0", "10,000", "20,000", "30,000"]);
        check(-1.0, 1.0, 2, &["−1", "0", "1"]);
        check(0.0, 0.02, 2, &["0.00", "0.01", "0.02"]);
        check(0.0, 3e9, 3, &["0", "10⁹", "2×10⁹", "3×10⁹"]);
        check(0.0, f64::INFINITY, 2, &[]);
    }

    #[test]
    fn log_ticks_are_decades_where_there_are_many() {
        assert_eq!(labels(log_ticks(0.1, 1000.0, 5)), ["0.1", "1", "10", "100", "1,000"]);
        assert_eq!(labels(log_ticks(8.0, 60.0, 5)), ["10", "20", "50"]);
        assert_eq!(labels(log_ticks(1e-3, 1e3, 3)), ["0.01", "1", "100"]);
        assert_eq!(labels(log_ticks(64.0, 2e6, 3)), ["10²", "10³", "10⁴", "10⁵", "10⁶"]);
    }

    #[test]
    fn numbers_keep_their_distance() {
        let of =
            |length| labels(Axis::new((900.0, 11_000.0), Spacing::Log).ticked(5).legible(length, Type::of(8.0)).ticks);
        assert_eq!(of(200.0), ["1,000", "2,000", "5,000", "10,000"]);
        assert_eq!(of(95.0), ["1,000", "2,000", "", "10,000"]);
        assert_eq!(of(60.0), ["1,000", "", "", "10,000"]);
    }

    #[test]
    fn extent_skips_what_is_not_a_number() {
        assert_eq!(extent([f64::NAN, 2.0, 1.0, f64::INFINITY], Spacing::Linear), Some((1.0, 2.0)));
        assert_eq!(extent([0.0, -1.0, 3.0], Spacing::Log), Some((3.0, 3.0)));
        assert_eq!(extent([f64::NAN], Spacing::Linear), None);
        assert_eq!(widened((3.0, 3.0), 0.1), (2.7, 3.3));
    }

    #[test]
    fn values_run_from_one_inset_end_to_the_other() {
        let axis = Axis::new((1.0, 100.0), Spacing::Log).inset(5.0);
        assert_eq!([1.0, 10.0, 100.0].map(|v| axis.map(&v, (0, 11_000))), [500, 5_500, 10_500]);
        assert_eq!([1.0, 100.0].map(|v| axis.map(&v, (11_000, 0))), [10_500, 500]);
    }
}
