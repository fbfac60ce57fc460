//! What both benches show: statistics of repeats, other programs beside them, a figure.

use anyhow::Result;
use chart::{Bar, Figure, Frame, Group, GroupedBars, Panel, Series};
use tch::Device;
use trainer::bench;
use workloads::Seconds;

use super::others::Other;
use runs::summary::errors::quantile;

/// Of repeats, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    /// The middle 95% of the repeats.
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Spread {
    /// None of no repeats.
    pub(super) fn of(times: &[Seconds]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.0 * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share| quantile(&sorted, share);
        Some(Self { median: at(0.5)?, low: at(0.025)?, high: at(0.975)? })
    }

    pub(super) fn interval(&self) -> String {
        format!("{:.3} to {:.3}", self.low, self.high)
    }
}

/// `NAME MS (OURS / THEIRS)`, one after the other.
pub(super) fn beside(own: f64, others: &[Other]) -> String {
    let one = |(name, ms): &Other| format!("{name} {ms:.2} ({:.2})", own / ms);
    others.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// How the peak was obtained.
pub(super) fn peak_note(device: Device, peak: f64) -> String {
    let size = bench::peak_size(device);
    format!("{:.3} TFLOP/s, the median product of two {size} x {size} matrices on this device, now", peak / 1e12)
}

/// Bars of one shape: ours, and other programs'.
pub(super) struct Bars {
    pub(super) panel: String,
    pub(super) label: String,
    pub(super) own: Spread,
    pub(super) others: Vec<Other>,
}

/// A panel for each run of equal panel names, a group for each shape, a bar for each program.
///
/// # Errors
/// When the font or the drawing library fails.
pub(super) fn figure(bars: &[Bars], x_label: &str, y_label: &str) -> Result<Figure> {
    let mut names: Vec<&str> = bars.iter().flat_map(|of| &of.others).map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let group = |of: &Bars| {
        let own = Bar {
            label: Some(format!("{:.1}", of.own.median)),
            ..Bar::interval(of.own.median, of.own.low, of.own.high)
        };
        let other = |name: &&str| {
            let found = of.others.iter().find(|(other, _)| other == name);
            found.map_or_else(Bar::default, |&(_, ms)| Bar { label: Some(format!("{ms:.1}")), ..Bar::value(ms) })
        };
        Group {
            label: of.label.clone(),
            bars: std::iter::once(own).chain(names.iter().map(other)).collect(),
            over: Vec::new(),
        }
    };
    let panels = bars.chunk_by(|one, next| one.panel == next.panel);
    let panels = panels.map(|of| Panel { title: of[0].panel.clone(), groups: of.iter().map(group).collect() });
    let chart = GroupedBars {
        frame: Frame::default(),
        y_label: y_label.to_owned(),
        x_label: x_label.to_owned(),
        panels: panels.collect(),
        series: Series::numbered(std::iter::once("moebench").chain(names.iter().copied())),
        reference: None,
        second_label: String::new(),
    };
    Ok(chart.draw()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_have_a_median_and_a_middle() {
        let times: Vec<Seconds> = (0..=40).rev().map(|ms| Seconds(f64::from(ms) * 1e-3)).collect();
        let spread = Spread::of(&times).unwrap();
        assert!((spread.median - 20.0).abs() < 1e-9 && (spread.low - 1.0).abs() < 1e-9, "{spread:?}");
        assert_eq!(spread.interval(), "1.000 to 39.000");
        assert!(Spread::of(&[]).is_none());
    }

    #[test]
    fn others_stand_with_ratios() {
        let others = [("loop".to_owned(), 4.0), ("grouped".to_owned(), 1.6)];
        assert_eq!(beside(2.0, &others), "loop 4.00 (0.50), grouped 1.60 (1.25)");
    }

    #[test]
    fn a_program_without_a_time_leaves_a_gap() {
        let own = Spread { median: 2.0, low: 1.5, high: 2.5 };
        let bars = |panel: &str, others: &[&str]| Bars {
            panel: panel.to_owned(),
            label: "shape".to_owned(),
            own,
            others: others.iter().map(|name| ((*name).to_owned(), 3.0)).collect(),
        };
        let all = [bars("skew 0", &["a", "b"]), bars("skew 1", &["a"])];
        let svg = figure(&all, "layer", "ms").unwrap().svg;
        assert!(svg.contains("skew 0") && svg.contains("skew 1") && svg.contains("n/a"));
    }
}
