//! Grouped bars in named panels: one panel a cluster, one group a case, one bar a system.
//!
//! After Figure 8 of the SmartMoE paper (USENIX ATC'23), with what it leaves out: confidence intervals, the published
//! value beside ours, and why a bar is absent.

use super::axis::{Scale, extent};
use super::canvas::Rgb;
use super::columns::{self, LabelFit, Place};
use super::font::{Fonts, Weight};
use super::frame::{self, BASE, FINE, Frame, Key, Surround};
use super::ink::{AXIS, MUTED, PAPER, ink};
use super::sheet::{Area, Pen, Point, Sheet, Type, on_page};
use super::{Figure, FigureError, Series};

/// A chart of grouped bars.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GroupedBars {
    /// Size, title and footnote.
    pub frame: Frame,
    /// Name and unit of the values.
    pub y_label: String,
    /// Name of what the group labels say.
    pub x_label: String,
    /// One entry for each bar of a group, in order.
    pub series: Vec<Series>,
    /// Side by side, on one y axis.
    pub panels: Vec<Panel>,
    /// A dashed line across all panels, such as 1.0 for speedups.
    pub reference: Option<f64>,
}

/// A named set of groups.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Panel {
    /// Printed above, such as "inky (A100)".
    pub title: String,
    /// From left to right.
    pub groups: Vec<Group>,
}

/// Bars that are compared with each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Group {
    /// Printed below, such as "16/1.2".
    pub label: String,
    /// One for each series, in the same order.
    pub bars: Vec<Bar>,
}

/// One bar, and what is printed with it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bar {
    /// Its height, or why it has none.
    pub value: BarValue,
    /// The value that the paper reports, drawn as a hollow diamond.
    pub published: Option<f64>,
    /// Printed above the bar, such as "1.88×".
    pub label: Option<String>,
    /// Printed beyond the label in grey, such as "(+6%)".
    pub aside: Option<String>,
}

/// The height of a bar, or why it has none.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum BarValue {
    /// A value with its interval; set `low` and `high` to `y` where there is none.
    Value {
        /// Height.
        y: f64,
        /// Lower end of the interval.
        low: f64,
        /// Upper end of the interval.
        high: f64,
    },
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
    /// A bar with an interval.
    pub fn interval(y: f64, low: f64, high: f64) -> Self {
        Self { value: BarValue::Value { y, low, high }, ..Self::default() }
    }

    /// A bar without an interval.
    pub fn value(y: f64) -> Self {
        Self::interval(y, y, y)
    }

    /// A case that failed.
    pub fn failed(label: impl Into<String>) -> Self {
        Self { value: BarValue::Failed { label: label.into() }, ..Self::default() }
    }

    /// (y, low, high) where y is finite; an end that is not finite falls back to y.
    fn finite(&self) -> Option<(f64, f64, f64)> {
        match self.value {
            BarValue::Value { y, low, high } if y.is_finite() => {
                let or_y = |end: f64| if end.is_finite() { end } else { y };
                Some((y, or_y(low), or_y(high)))
            }
            _ => None,
        }
    }

    fn published(&self) -> Option<f64> {
        self.published.filter(|p| p.is_finite())
    }

    fn is_blank(&self) -> bool {
        self.finite().is_none() && self.published().is_none() && !matches!(self.value, BarValue::Failed { .. })
    }

    /// The highest thing drawn for this bar; labels go above it.
    fn peak(&self) -> Option<f64> {
        let drawn = self.finite().map(|(y, _, high)| y.max(high).max(0.0));
        extent(drawn.into_iter().chain(self.published())).map(|(_, high)| high)
    }
}

impl GroupedBars {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        let fonts = Fonts::load()?;
        let surround = self.frame.surround(&fonts, self.legend(), HEIGHT);
        let layout = self.lay_out(&fonts, &surround);
        on_page(surround.size(), &fonts, |sheet| {
            surround.draw(sheet, &self.frame)?;
            self.draw_frame(sheet, &surround, &layout)?;
            self.draw_reference(sheet, &layout)?;
            for (panel, place) in self.panels.iter().zip(&layout.places) {
                self.draw_panel(sheet, panel, place, &layout)?;
            }
            Ok(())
        })
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.panels.iter().flat_map(|p| &p.groups).flat_map(|g| &g.bars)
    }

    fn legend(&self) -> Vec<frame::Entry> {
        let mut entries = frame::entries(&self.series, Key::Fill);
        if self.bars().any(|b| b.published().is_some()) {
            entries.push((Key::Published, "published".to_owned()));
        }
        entries
    }

    fn bars_per_group(&self) -> usize {
        let fullest = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.bars.len()).max();
        fullest.unwrap_or(0).max(self.series.len())
    }

    fn lay_out(&self, fonts: &Fonts, surround: &Surround) -> Layout {
        let groups: Vec<usize> = self.panels.iter().map(|p| p.groups.len()).collect();
        let rough = Scale::linear(self.range(1.3), 1.0, 0.0).ticks(5);
        let left = surround.inner.left + frame::y_axis_room(fonts, &self.y_label, &rough);
        let right = surround.inner.right - 2.0;
        let group_width = columns::group_width(right - left, &groups);
        let names = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.label.as_str());
        let below = LabelFit::choose(fonts, names, group_width);
        let x_label = if self.x_label.is_empty() { 2.0 } else { BASE + 5.0 };
        let area = Area {
            left,
            right,
            top: surround.inner.top + 3.0 + columns::title_room(self.panels.iter().map(|p| p.title.as_str())),
            bottom: surround.inner.bottom - below.height - 4.0 - x_label,
        };
        let (_, slot) = columns::slots((0.0, group_width), self.bars_per_group());
        let above = ValueLabels::choose(fonts, self.bars(), slot);
        let scale = Scale::linear(self.range_with_room(area.height(), &above), area.bottom, area.top);
        Layout { places: columns::places(area, &groups), area, scale, below, above }
    }

    /// From zero, or below it, to the highest bar times `headroom`.
    fn range(&self, headroom: f64) -> (f64, f64) {
        let drawn = self.bars().filter_map(Bar::finite).flat_map(|(y, low, high)| [y, low, high]);
        let published = self.bars().filter_map(Bar::published);
        let (low, high) = extent(drawn.chain(published).chain(self.reference)).unwrap_or((0.0, 1.0));
        let low = if low < 0.0 { low * 1.08 } else { 0.0 };
        (low, if high > low { low + (high - low) * headroom } else { low + 1.0 })
    }

    /// The range in which every label fits above its bar.
    fn range_with_room(&self, height: f64, labels: &ValueLabels) -> (f64, f64) {
        let (low, high) = self.range(1.04);
        let needed = self.bars().filter_map(|bar| {
            let text = labels.length(bar) + 5.0 + bar.published().map_or(0.0, |_| MARK_REACH);
            bar.peak().map(|peak| low + (peak - low) * height / (height - text).max(height * 0.2))
        });
        (low, needed.fold(high, f64::max))
    }

    fn draw_frame(&self, sheet: &Sheet<'_>, surround: &Surround, layout: &Layout) -> Result<(), FigureError> {
        let below = layout.area.bottom + 4.0 + layout.below.height + 5.0;
        frame::draw_y_label(sheet, &self.y_label, surround.inner.left, layout.area)?;
        frame::draw_x_label(sheet, &self.x_label, below, layout.area)?;
        if self.panels.is_empty() {
            return frame::draw_no_data(sheet, layout.area);
        }
        let ticks = layout.scale.ticks((layout.area.height() / 15.0) as usize);
        columns::draw_axes(sheet, &layout.places, &layout.scale, &ticks)
    }

    fn draw_panel(&self, sheet: &Sheet<'_>, panel: &Panel, place: &Place, layout: &Layout) -> Result<(), FigureError> {
        columns::draw_title(sheet, &panel.title, place.plot)?;
        columns::draw_dividers(sheet, place, 2.5)?;
        for (i, (group, edges)) in panel.groups.iter().zip(&place.groups).enumerate() {
            let middle = (edges.0 + edges.1) / 2.0;
            layout.below.draw(sheet, i, &group.label, (middle, place.plot.bottom + 4.0))?;
        }
        if panel.groups.iter().flat_map(|g| &g.bars).all(Bar::is_blank) {
            return frame::draw_no_data(sheet, place.plot);
        }
        for (group, edges) in panel.groups.iter().zip(&place.groups) {
            let (lefts, slot) = columns::slots(*edges, self.bars_per_group());
            for (i, (bar, left)) in group.bars.iter().zip(lefts).enumerate() {
                let index = self.series.get(i).map_or(i, |s| s.ink);
                layout.draw_bar(sheet, bar, index, (left, left + slot))?;
            }
        }
        frame::draw_box(sheet, place.plot)
    }

    fn draw_reference(&self, sheet: &Sheet<'_>, layout: &Layout) -> Result<(), FigureError> {
        let Some(value) = self.reference.filter(|v| layout.scale.holds(*v)) else { return Ok(()) };
        let y = layout.scale.at(value);
        for place in &layout.places {
            let line = [(place.plot.left, y), (place.plot.right, y)];
            sheet.dashed(&line, 2.5, 1.8, Pen { color: (0, 0, 0), width: 0.6 })?;
        }
        Ok(())
    }
}

/// Of the data and what stands below it, in points; labels that stand upright take a third of it.
const HEIGHT: f64 = 140.0;
/// Below this many points, labels above bars are left out.
const LEAST_READABLE: f64 = 5.2;
/// Half the height of the mark of a published value, at most.
const MARK_REACH: f64 = 2.5;

struct Layout {
    places: Vec<Place>,
    area: Area,
    scale: Scale,
    below: LabelFit,
    above: ValueLabels,
}

impl Layout {
    fn draw_bar(&self, sheet: &Sheet<'_>, bar: &Bar, index: usize, edges: (f64, f64)) -> Result<(), FigureError> {
        let (left, right) = edges;
        let (middle, slot) = ((left + right) / 2.0, right - left);
        let base = self.scale.at(0.0);
        match (&bar.value, bar.finite()) {
            (_, Some((y, low, high))) => {
                let end = self.scale.at(y);
                let inset = (slot * 0.06).min(0.8);
                let body = Area { left: left + inset, right: right - inset, top: end.min(base), bottom: end.max(base) };
                ink(index).fill(sheet, body)?;
                self.draw_interval(sheet, middle, (low, high), (slot * 0.22).min(2.4))?;
            }
            (BarValue::Failed { label }, None) => {
                let kind = Type::of((slot * 0.95).clamp(4.5, FINE)).color(ink(index).dark());
                let label = sheet.shortened(label, kind, self.area.height() - 5.0);
                sheet.text(&label, (middle, base - 2.5), kind.upright().middle())?;
            }
            _ => {
                let kind = Type::of((slot * 0.95).clamp(4.5, FINE)).color(MUTED);
                sheet.text("n/a", (middle, base - 2.5), kind.upright().middle())?;
            }
        }
        let mut peak = bar.peak().map_or(base, |peak| self.scale.at(peak));
        if let Some(published) = bar.published() {
            let (y, reach) = (self.scale.at(published), (slot * 0.3).clamp(1.2, MARK_REACH));
            frame::published_mark(sheet, (middle, y), reach)?;
            peak = peak.min(y - reach);
        }
        self.above.draw(sheet, bar, (middle, peak - 2.5))
    }

    fn draw_interval(&self, sheet: &Sheet<'_>, x: f64, (low, high): (f64, f64), cap: f64) -> Result<(), FigureError> {
        if high <= low {
            return Ok(());
        }
        let pen = Pen { color: (0, 0, 0), width: 0.6 };
        let (bottom, top) = (self.scale.at(low), self.scale.at(high));
        sheet.path(&[(x, bottom), (x, top)], pen)?;
        sheet.path(&[(x - cap, bottom), (x + cap, bottom)], pen)?;
        sheet.path(&[(x - cap, top), (x + cap, top)], pen)
    }
}

/// How the labels above bars fit: flat over wide bars, upright over narrow ones, left out where unreadable.
struct ValueLabels {
    size: f64,
    upright: bool,
    /// Of each label and aside, per point of type size.
    relative: Vec<(String, f64)>,
}

/// Between a label and what stands beyond it, in points.
const ASIDE_GAP: f64 = 2.0;

impl ValueLabels {
    fn choose<'b>(fonts: &Fonts, bars: impl Iterator<Item = &'b Bar>, slot: f64) -> Self {
        let texts = bars.filter(|b| b.label.is_some()).flat_map(|b| b.label.iter().chain(&b.aside));
        let mut relative: Vec<_> = texts.map(|l| (l.clone(), fonts.width(l, 1.0, Weight::Regular))).collect();
        relative.sort_by(|a, b| a.0.cmp(&b.0));
        relative.dedup_by(|a, b| a.0 == b.0);
        let widest = relative.iter().map(|(_, width)| *width).fold(0.0, f64::max);
        let upright = widest * FINE > slot;
        let size = if upright { (slot * 1.25).min(FINE) } else { FINE };
        Self { size: if size < LEAST_READABLE { 0.0 } else { size }, upright, relative }
    }

    /// Points that one text takes upwards.
    fn reach(&self, text: &str) -> f64 {
        if !self.upright {
            return self.size;
        }
        let found = self.relative.binary_search_by(|(known, _)| known.as_str().cmp(text));
        found.ok().and_then(|i| self.relative.get(i)).map_or(0.0, |(_, width)| width * self.size)
    }

    /// Points that the bar's label and aside take upwards.
    fn length(&self, bar: &Bar) -> f64 {
        let Some(label) = &bar.label else { return 0.0 };
        self.reach(label) + bar.aside.as_ref().map_or(0.0, |aside| ASIDE_GAP + self.reach(aside))
    }

    fn draw(&self, sheet: &Sheet<'_>, bar: &Bar, (x, y): Point) -> Result<(), FigureError> {
        let (Some(label), true) = (&bar.label, self.size > 0.0 && bar.peak().is_some()) else { return Ok(()) };
        self.draw_text(sheet, label, AXIS, (x, y))?;
        match &bar.aside {
            Some(aside) => self.draw_text(sheet, aside, MUTED, (x, y - self.reach(label) - ASIDE_GAP)),
            None => Ok(()),
        }
    }

    fn draw_text(&self, sheet: &Sheet<'_>, text: &str, color: Rgb, (x, y): Point) -> Result<(), FigureError> {
        let kind = Type::of(self.size).color(color);
        let kind = if self.upright { kind.upright().middle() } else { kind.centered() };
        // White behind the text, so that no line crosses it.
        let (half, height) = match self.upright {
            true => (self.size * 0.4, self.reach(text)),
            false => (sheet.width_of(text, kind) / 2.0 + 0.8, self.size * 0.76),
        };
        sheet.fill(Area { left: x - half, right: x + half, top: y - height, bottom: y + 0.4 }, PAPER)?;
        sheet.text(text, (x, y), kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GroupedBars {
        let group = |label: &str, bars: Vec<Bar>| Group { label: label.into(), bars };
        let labelled = Bar {
            label: Some("1.88×".into()),
            aside: Some("(+6%)".into()),
            published: Some(1.7),
            ..Bar::interval(1.88, 1.8, 1.95)
        };
        GroupedBars {
            frame: Frame { footnote: "simulated; model error 6 % median".into(), ..Frame::default() },
            y_label: "Speedup <over> FastMoE".into(),
            x_label: "GPUs / capacity factor".into(),
            series: Series::numbered(["FastMoE", "SmartMoE"]),
            panels: vec![
                Panel {
                    title: "inky (A100)".into(),
                    groups: vec![
                        group("16/1.2", vec![Bar::value(1.0), labelled]),
                        group("16/inf", vec![Bar::failed("OOM"), Bar::value(f64::NAN)]),
                    ],
                },
                Panel { title: "pinky (V100)".into(), groups: vec![] },
            ],
            reference: Some(1.0),
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample().draw()?.to_svg();
        for label in
            ["FastMoE", "SmartMoE", "published", "inky (A100)", "pinky (V100)", "16/1.2", "16/inf", "1.88×", "(+6%)"]
        {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(svg.contains("Speedup &lt;over&gt; FastMoE") && svg.contains("simulated; model error 6 % median"));
        assert!(svg.contains(">OOM<") && svg.contains(">no data<") && !svg.contains("NaN"));
        Ok(())
    }

    #[test]
    fn same_input_same_bytes() -> Result<(), FigureError> {
        let (first, second) = (sample().draw()?, sample().draw()?);
        assert_eq!(first.to_svg(), second.to_svg());
        assert_eq!(first.to_pdf()?, second.to_pdf()?);
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(GroupedBars::default().draw()?.to_svg().contains(">no data<"));
        Ok(())
    }

    #[test]
    fn labels_fit_below_the_upper_edge() {
        let chart = sample();
        let labels =
            ValueLabels { size: 6.5, upright: true, relative: vec![("(+6%)".into(), 2.0), ("1.88×".into(), 2.0)] };
        let (low, high) = chart.range_with_room(100.0, &labels);
        assert_eq!(low, 0.0);
        assert!(1.95 / high * 100.0 + 26.0 <= 100.0);
    }

    #[test]
    fn negative_values_hang_below_zero() {
        let bars = vec![Bar::value(-2.0), Bar::value(1.0)];
        let panel = Panel { groups: vec![Group { bars, ..Group::default() }], ..Panel::default() };
        let (low, high) = GroupedBars { panels: vec![panel], ..GroupedBars::default() }.range(1.0);
        assert!(low < -2.0 && high == 1.0);
    }
}
