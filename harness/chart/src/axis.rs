//! Scales, 1-2-5 ticks and number formats.

/// How values lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Linear,
    /// Decades; for positive values.
    Log,
}

/// Maps values in `low..high` to points between `from` and `to`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) spacing: Spacing,
}

/// A value with the text beside it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    pub(super) label: String,
}

impl Scale {
    pub(super) fn linear(range: (f64, f64), from: f64, to: f64) -> Self {
        Self { low: range.0, high: range.1, from, to, spacing: Spacing::Linear }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        let share = match self.spacing {
            Spacing::Linear => (value - self.low) / (self.high - self.low),
            Spacing::Log => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        // Far outside is as good as outside; it keeps the drawing library's whole numbers in range.
        self.from + share.clamp(-2.0, 3.0) * (self.to - self.from)
    }

    pub(super) fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// About `count` round values inside the range.
    pub(super) fn ticks(&self, count: usize) -> Vec<Tick> {
        match self.spacing {
            Spacing::Linear => linear_ticks(self.low, self.high, count),
            Spacing::Log => log_ticks(self.low, self.high, count),
        }
    }
}

/// The finite values' least and greatest; None without any.
pub(super) fn extent(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().filter(|v| v.is_finite()).fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((low.min(v), high.max(v)))
    })
}

/// A range with a margin of `share` on both sides; a single value gets room around it.
pub(super) fn widened((low, high): (f64, f64), share: f64) -> (f64, f64) {
    if high - low > f64::EPSILON * high.abs().max(low.abs()) {
        let margin = (high - low) * share;
        return (low - margin, high + margin);
    }
    let margin = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    (low - margin, high + margin)
}

fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let step = round_step((high - low) / count.max(1) as f64);
    if !step.is_normal() {
        return Vec::new();
    }
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let decimals = decimals_of(step);
    (first..=last).map(|i| i as f64 * step).map(|value| Tick { value, label: grouped(value, decimals) }).collect()
}

/// The least of 1, 2, 5 times a power of ten that is not below `raw`.
fn round_step(raw: f64) -> f64 {
    let power = 10f64.powf(raw.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= raw * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn log_ticks(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let within = |factors: &[f64]| -> Vec<f64> {
        let all = (first..=last).flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p)));
        all.filter(|v| *v >= low * (1.0 - 1e-9) && *v <= high * (1.0 + 1e-9)).collect()
    };
    let dense = within(&[1.0, 2.0, 5.0]);
    let values = if dense.len() <= count.max(3) + 2 { dense } else { within(&[1.0]) };
    if values.len() < 2 {
        return linear_ticks(low, high, count);
    }
    values
        .into_iter()
        .map(|value| Tick { value, label: grouped(value, (-(value.log10() + 1e-9).floor()).max(0.0) as usize) })
        .collect()
}

fn decimals_of(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 12.0) as usize
}

/// Fixed decimals with a comma between thousands, and a true minus sign.
fn grouped(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    if value < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        out.push('−');
    }
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
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
        check(0.0, f64::INFINITY, 2, &[]);
    }

    #[test]
    fn log_ticks_are_decades_where_there_are_many() {
        assert_eq!(labels(log_ticks(0.1, 1000.0, 5)), ["0.1", "1", "10", "100", "1,000"]);
        assert_eq!(labels(log_ticks(8.0, 60.0, 5)), ["10", "20", "50"]);
    }

    #[test]
    fn extent_skips_what_is_not_a_number() {
        assert_eq!(extent([f64::NAN, 2.0, 1.0, f64::INFINITY]), Some((1.0, 2.0)));
        assert_eq!(extent([f64::NAN]), None);
        assert_eq!(widened((3.0, 3.0), 0.1), (2.7, 3.3));
    }
}
