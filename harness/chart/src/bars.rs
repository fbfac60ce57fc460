//! Grouped bars in named panels: one panel a cluster, one group a case, one bar a system.
//!
//! After Figure 8 of the SmartMoE paper (USENIX ATC'23), with what it leaves out: intervals, a second statistic, the published
//! value beside ours, and why a bar is absent.

use crate::axis::{Axis, Spacing, extent};
use crate::canvas::Drawn;
use crate::columns::{Column, ColumnLayout, Columns, MOST_HEIGHT, Panel, bars};
use crate::font::CAP_HEIGHT;
use crate::frame::{self, Chart, Frame};
use crate::legend::{self, Swatch};
use crate::marks;
use crate::page::{Area, Page};
use crate::palette::{AXIS, BLACK, Ink, MUTED, Series, ink, stroke};
use crate::plot::Plot;
use crate::text::{FINE, Type};
use crate::{Figure, FigureError};

#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupedBars {
    pub frame: Frame,
    /// Name and unit of the values.
    pub y_label: String,
    /// Name of what the group labels say.
    pub x_label: String,
    /// One for each bar of a group, in order.
    pub series: Vec<Series>,
    /// Side by side, on one y axis.
    pub panels: Vec<Panel>,
    /// A dashed line across all panels, such as 1.0 for speedups.
    pub reference: Option<f64>,
    /// What the legend calls the lines across bars.
    pub second_label: String,
}

/// One bar, and what is printed with it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bar {
    /// Its height, or why it has none.
    pub value: BarValue,
    /// Another statistic of the same samples, drawn as a line across the bar.
    pub second: Option<f64>,
    /// The value that the paper reports, drawn as a hollow diamond.
    pub published: Option<f64>,
    /// Whether that value is of another plan than the bar: its diamond is grey.
    pub published_of_other: bool,
    /// Printed above the bar, such as "1.88×".
    pub label: Option<String>,
    /// Printed beyond the label in grey, such as "(+6%)".
    pub aside: Option<String>,
}

/// The height of a bar, or why it has none.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum BarValue {
    /// A value with its interval; set `low` and `high` to `y` where there is none.
    Value { y: f64, low: f64, high: f64 },
    /// The case ran and failed; the label says how, such as "OOM".
    Failed {
        /// Printed upright in the bar's place.
        label: String,
    },
    /// There is no result; "n/a" stands in its place.
    #[default]
    Missing,
}

impl Bar {
    pub fn interval(y: f64, low: f64, high: f64) -> Self {
        Self { value: BarValue::Value { y, low, high }, ..Self::default() }
    }

    pub fn value(y: f64) -> Self {
        Self::interval(y, y, y)
    }

    pub fn failed(label: impl Into<String>) -> Self {
        Self { value: BarValue::Failed { label: label.into() }, ..Self::default() }
    }

    /// (y, low, high) where y can be drawn; an end that cannot falls back to y.
    fn drawn(&self) -> Option<(f64, f64, f64)> {
        match self.value {
            BarValue::Value { y, low, high } if Spacing::Linear.accepts(y) => {
                let or_y = |end: f64| if Spacing::Linear.accepts(end) { end } else { y };
                Some((y, or_y(low), or_y(high)))
            }
            _ => None,
        }
    }

    fn published(&self) -> Option<f64> {
        self.published.filter(|p| Spacing::Linear.accepts(*p))
    }

    fn second(&self) -> Option<f64> {
        self.second.filter(|s| Spacing::Linear.accepts(*s))
    }

    /// The highest thing drawn for this bar, on which its texts stand; zero for a text alone.
    fn peak(&self) -> f64 {
        let highest = self.drawn().map_or(0.0, |(y, _, high)| y.max(high).max(0.0));
        self.published().into_iter().chain(self.second()).fold(highest, f64::max)
    }
}

impl Column for Bar {
    fn is_blank(&self) -> bool {
        self.drawn().is_none() && self.published().is_none() && !matches!(self.value, BarValue::Failed { .. })
    }
}

impl GroupedBars {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        frame::draw(self)
    }

    fn columns(&self) -> Columns<'_, Bar> {
        let (x_label, y_label) = (self.x_label.as_str(), self.y_label.as_str());
        Columns { panels: &self.panels, series: self.series.len(), x_label, y_label }
    }

    /// Panels in as many rows as labels need; where these would not fit on a page, bars without labels.
    fn lay_out(&self, inner: Area, numbers: &Axis) -> ColumnLayout {
        let legible = self.columns().lay_out(inner, numbers, LEGIBLE_SLOT);
        match legible.wanted_height(PLOT) <= MOST_HEIGHT {
            true => legible,
            false => self.columns().lay_out(inner, numbers, LEAST_SLOT),
        }
    }

    /// The layout, its texts and its axis: the room left of an axis depends on its numbers, these on the room for texts, and
    /// this on the width that is left.
    fn settled(&self, inner: Area) -> (ColumnLayout, BarTexts, Axis) {
        let mut numbers = Axis::new(self.range(1.3), Spacing::Linear).ticked(5);
        for _ in 0..2 {
            let layout = self.lay_out(inner, &numbers);
            let height = layout.height;
            let texts = BarTexts::choose(bars(&self.panels), layout.slot, height);
            let y = Axis::new(self.range_with_room(height, &texts), Spacing::Linear).ticked((height / 15.0) as usize);
            if layout.has_room_for(&y, &self.y_label) {
                return (layout, texts, y);
            }
            numbers = y;
        }
        let layout = self.lay_out(inner, &numbers);
        let texts = BarTexts::choose(bars(&self.panels), layout.slot, layout.height);
        (layout, texts, numbers)
    }

    /// From zero, or below it, to the highest bar times `headroom`.
    fn range(&self, headroom: f64) -> (f64, f64) {
        let drawn = bars(&self.panels).filter_map(Bar::drawn).flat_map(|(y, low, high)| [y, low, high]);
        let marks = bars(&self.panels).flat_map(|bar| bar.published().into_iter().chain(bar.second()));
        let all = drawn.chain(marks).chain(self.reference).chain([0.0]);
        let (low, high) = extent(all, Spacing::Linear).unwrap_or((0.0, 1.0));
        let low = low * 1.08;
        (low, if high > low { low + (high - low) * headroom } else { low + 1.0 })
    }

    /// The range in which the texts of every bar fit above it.
    fn range_with_room(&self, height: f64, texts: &BarTexts) -> (f64, f64) {
        let (low, high) = self.range(1.04);
        let needed = bars(&self.panels).map(|bar| {
            let text = texts.length(bar) + bar.published().map_or(0.0, |_| mark_reach(texts.slot)) + 2.0 * LABEL_GAP;
            low + (bar.peak() - low) * height / (height - text).max(height * 0.2)
        });
        (low, needed.fold(high, f64::max))
    }

    fn draw_bar(&self, plot: &Plot<'_>, bar: &Bar, ink: Ink, (left, right): (f64, f64)) -> Drawn {
        let (middle, slot) = ((left + right) / 2.0, right - left);
        if let Some((y, low, high)) = bar.drawn() {
            let inset = (slot * 0.06).min(0.8);
            plot.draw(&marks::filled([(left + inset, 0.0), (right - inset, y)], ink))?;
            if high > low {
                plot.draw(&marks::interval([(middle, low), (middle, high)], (slot * 0.22).min(2.4)))?;
            }
        }
        if let Some(second) = bar.second() {
            plot.draw(&marks::rule([(left, second), (right, second)]))?;
        }
        match bar.published() {
            Some(published) => {
                let color = if bar.published_of_other { MUTED } else { BLACK };
                plot.draw(&marks::published((middle, published), mark_reach(slot), color))
            }
            None => Ok(()),
        }
    }
}

impl Chart for GroupedBars {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn legend(&self) -> Vec<legend::Entry> {
        let series = self.series.iter().map(|s| (Swatch::Fill(s.ink), s.name.as_str()));
        let second = bars(&self.panels).any(|b| b.second().is_some());
        let published =
            |of_other| bars(&self.panels).any(|b| b.published().is_some() && b.published_of_other == of_other);
        let second = second.then_some((Swatch::Rule, self.second_label.as_str()));
        let same = published(false).then_some((Swatch::Published, "published"));
        let other = published(true).then_some((Swatch::PublishedOther, "published, other plan"));
        legend::entries(series.chain(second).chain(same).chain(other))
    }

    fn height(&self, width: f64) -> f64 {
        // The axis has to be drawn for such a panel before it is known how wide its numbers are.
        let (layout, ..) = self.settled(Area { left: 0.0, right: width, top: 0.0, bottom: MOST_HEIGHT });
        layout.wanted_height(PLOT)
    }

    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn {
        let (layout, texts, y) = self.settled(inner);
        let reference = |plot: &Plot<'_>, area: Area| match self.reference.filter(|v| y.holds(*v)) {
            Some(value) => {
                let ends = [(area.left, value), (area.right, value)];
                plot.draw(&marks::dashed(&ends, (2.5, 1.8), stroke(BLACK, 0.6)))
            }
            None => Ok(()),
        };
        self.columns().draw(page, &layout, &y, reference, |plot, n, bar, edges| {
            let ink = ink(self.series.get(n).map_or(n, |s| s.ink));
            self.draw_bar(plot, bar, ink, edges)?;
            texts.draw(plot, bar, ink, (edges.0 + edges.1) / 2.0)
        })
    }
}

/// Height of a row's panels, in points, where a page has room for it.
const PLOT: f64 = 96.0;
/// Width of a bar's place in which an upright label can be read.
const LEGIBLE_SLOT: f64 = 6.0;
/// Width of a bar's place without one.
const LEAST_SLOT: f64 = 2.4;

/// Between a bar and its label, and between a label and what stands beyond it, in points.
const LABEL_GAP: f64 = 2.5;
const ASIDE_GAP: f64 = 2.0;
/// Half the height of the cross in the place of a bar that is not there.
const CROSS: f64 = 1.8;

/// Half the height of the mark of a published value, in points.
fn mark_reach(slot: f64) -> f64 {
    (slot * 0.3).clamp(1.2, 2.5)
}

/// How texts fit above bars: labels flat over wide bars, upright over narrow ones, left out where there is no room; why there
/// is no bar, always upright, or a cross.
struct BarTexts {
    /// Width of a bar's place.
    slot: f64,
    /// None where there is no room.
    label: Option<Type>,
    status: Option<Type>,
    /// The longest text that is not cut, in points.
    longest: f64,
}

impl BarTexts {
    fn choose<'b>(bars: impl Iterator<Item = &'b Bar>, slot: f64, height: f64) -> Self {
        let labelled = bars.filter(|b| b.label.is_some());
        let widest = Type::of(FINE).widest(labelled.flat_map(|b| b.label.iter().chain(&b.aside)).map(String::as_str));
        // Digits and capitals are as high as this part of their size.
        let upright = (FINE * CAP_HEIGHT < slot).then(|| Type::of(FINE).upright());
        let label = if widest + 1.0 > slot { upright } else { Some(Type::of(FINE)) };
        Self { slot, label, status: upright, longest: height * 0.4 }
    }

    /// Points that one label takes upwards.
    fn reach(&self, label: &str) -> f64 {
        match self.label {
            Some(kind) if kind.upright => kind.width(label).min(self.longest),
            Some(kind) => kind.size,
            None => 0.0,
        }
    }

    /// Points that the bar's texts take upwards.
    fn length(&self, bar: &Bar) -> f64 {
        match (&bar.value, &bar.label) {
            (BarValue::Failed { label }, _) => {
                self.status.map_or(2.0 * CROSS, |status| status.width(label).min(self.longest))
            }
            (_, Some(label)) => {
                self.reach(label) + bar.aside.as_ref().map_or(0.0, |aside| ASIDE_GAP + self.reach(aside))
            }
            _ => 0.0,
        }
    }

    fn draw(&self, plot: &Plot<'_>, bar: &Bar, ink: Ink, x: f64) -> Drawn {
        let peak = (x, bar.peak());
        let mark = bar.published().map_or((peak, 0.0), |published| ((x, published), mark_reach(self.slot)));
        let write = |rise, text: &str, kind: Type| {
            let text = kind.shortened(text, self.longest);
            plot.draw(&marks::label_above(peak, mark, rise, &text, kind))
        };
        let status = |text: &str, color| match self.status {
            Some(kind) => write(LABEL_GAP, text, kind.color(color)),
            None => plot.draw(&marks::cross(peak, LABEL_GAP + CROSS, CROSS.min(self.slot * 0.4), color)),
        };
        match (&bar.value, &bar.label, self.label) {
            (BarValue::Failed { label }, ..) => status(label, ink.dark()),
            _ if bar.drawn().is_none() => status("n/a", MUTED),
            (_, Some(label), Some(kind)) => {
                write(LABEL_GAP, label, kind.color(AXIS))?;
                let Some(aside) = &bar.aside else { return Ok(()) };
                write(LABEL_GAP + self.reach(label) + ASIDE_GAP, aside, kind.color(MUTED))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Group;

    fn sample() -> GroupedBars {
        let group = |label: &str, bars: Vec<Bar>| Group { label: label.into(), bars, ..Group::default() };
        let labelled = Bar {
            label: Some("1.88×".into()),
            aside: Some("(+6%)".into()),
            published: Some(1.7),
            second: Some(1.97),
            ..Bar::interval(1.88, 1.8, 1.95)
        };
        GroupedBars {
            frame: Frame::default(),
            y_label: "Speedup <over> FastMoE".into(),
            x_label: "GPUs / capacity factor".into(),
            series: Series::numbered(["FastMoE", "SmartMoE"]),
            panels: vec![
                Panel {
                    title: "inky (A100)".into(),
                    groups: vec![
                        group("16/1.2", vec![Bar::value(1.0), labelled]),
                        group("16/inf", vec![Bar::failed("OOM"), Bar::value(f64::NAN)]),
                        group(
                            "32/1.2",
                            vec![Bar { published: Some(1.2), published_of_other: true, ..Bar::value(1.1) }],
                        ),
                    ],
                },
                Panel { title: "pinky (V100)".into(), groups: vec![] },
            ],
            reference: Some(1.0),
            second_label: "by medians".into(),
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample().draw()?.svg;
        for label in [
            "FastMoE",
            "SmartMoE",
            "published",
            "published, other plan",
            "by medians",
            "inky (A100)",
            "pinky (V100)",
            "16/1.2",
            "16/inf",
            "1.88×",
            "(+6%)",
        ] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(svg.contains("Speedup &lt;over&gt; FastMoE"));
        assert!(svg.contains(">OOM<") && svg.contains(">no data<") && !svg.contains("NaN"));
        Ok(())
    }

    #[test]
    fn same_input_same_bytes() -> Result<(), FigureError> {
        assert_eq!(sample().draw()?, sample().draw()?);
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(GroupedBars::default().draw()?.svg.contains(">no data<"));
        Ok(())
    }

    #[test]
    fn labels_fit_below_the_upper_edge() {
        let chart = sample();
        let texts = BarTexts::choose(bars(&chart.panels), 8.0, 100.0);
        let kind = texts.label.filter(|kind| kind.upright).unwrap();
        let needed = kind.width("1.88×") + kind.width("(+6%)");
        let (low, high) = chart.range_with_room(100.0, &texts);
        assert_eq!(low, 0.0);
        assert!(1.97 / high * 100.0 + needed + LABEL_GAP + ASIDE_GAP <= 100.0);
    }

    #[test]
    fn negative_values_hang_below_zero() {
        let bars = vec![Bar::value(-2.0), Bar::value(1.0)];
        let panel = Panel { groups: vec![Group { bars, ..Group::default() }], ..Panel::default() };
        let (low, high) = GroupedBars { panels: vec![panel], ..GroupedBars::default() }.range(1.0);
        assert!(low < -2.0 && high == 1.0);
    }
}
