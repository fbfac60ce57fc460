//! Stacked bars: where an iteration's time goes, one bar a system.

use super::axis::{Scale, Tick, extent};
use super::columns::{self, LabelFit, Place};
use super::font::Fonts;
use super::frame::{self, BASE, FINE, Frame, Key, Surround};
use super::ink::{AXIS, ink};
use super::sheet::{Area, Sheet, Type, on_page};
use super::{Figure, FigureError, Series};

/// A chart of stacked bars.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackedBars {
    /// Size, title and footnote.
    pub frame: Frame,
    /// Name and unit of the values.
    pub y_label: String,
    /// Name of what the group labels say.
    pub x_label: String,
    /// What the bars are made of, from the bottom up.
    pub parts: Vec<Series>,
    /// Side by side, on one y axis.
    pub panels: Vec<StackPanel>,
    /// Show each part as its share of the bar, in percent, instead of its value.
    pub shares: bool,
}

/// A named set of groups.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackPanel {
    /// Printed above.
    pub title: String,
    /// From left to right.
    pub groups: Vec<StackGroup>,
}

/// Bars that are compared with each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackGroup {
    /// Printed below the bars' own labels.
    pub label: String,
    /// From left to right.
    pub bars: Vec<StackedBar>,
}

/// One bar.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackedBar {
    /// Printed below, such as the system's name.
    pub label: String,
    /// One value for each part, in order; none of them below zero. What is not finite or below zero is left out.
    pub values: Vec<f64>,
    /// Printed above, such as the total.
    pub note: String,
}

impl StackedBar {
    fn usable(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.values.iter().copied().enumerate().filter(|(_, v)| v.is_finite() && *v > 0.0)
    }

    fn total(&self) -> f64 {
        self.usable().map(|(_, v)| v).sum()
    }
}

impl StackedBars {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        let fonts = Fonts::load()?;
        let surround = self.frame.surround(&fonts, frame::entries(&self.parts, Key::Fill), 178.0);
        let layout = self.lay_out(&fonts, &surround);
        on_page(surround.size(), &fonts, |sheet| {
            surround.draw(sheet, &self.frame)?;
            self.draw_frame(sheet, &surround, &layout)?;
            for (panel, place) in self.panels.iter().zip(&layout.places) {
                self.draw_panel(sheet, panel, place, &layout)?;
            }
            Ok(())
        })
    }

    fn groups(&self) -> impl Iterator<Item = &StackGroup> {
        self.panels.iter().flat_map(|p| &p.groups)
    }

    fn lay_out(&self, fonts: &Fonts, surround: &Surround) -> Layout {
        let groups: Vec<usize> = self.panels.iter().map(|p| p.groups.len()).collect();
        let bars = || self.groups().flat_map(|g| &g.bars);
        let noted = bars().any(|b| !b.note.is_empty());
        let left = surround.inner.left + frame::y_axis_room(fonts, &self.y_label, &self.ticks(self.range(1.2), 5));
        let right = surround.inner.right - 2.0;
        let group_width = columns::group_width(right - left, &groups);
        let bars_per_group = self.groups().map(|g| g.bars.len()).max().unwrap_or(0);
        let (_, slot) = columns::slots((0.0, group_width), bars_per_group);
        let names = LabelFit::choose(fonts, bars().map(|b| b.label.as_str()), slot);
        let group_names = LabelFit::choose(fonts, self.groups().map(|g| g.label.as_str()), group_width);
        let x_label = if self.x_label.is_empty() { 2.0 } else { BASE + 5.0 };
        let area = Area {
            left,
            right,
            top: surround.inner.top + 3.0 + columns::title_room(self.panels.iter().map(|p| p.title.as_str())),
            bottom: surround.inner.bottom - names.height - group_names.height - 9.0 - x_label,
        };
        let headroom = if noted {
            1.04 + 8.0 / area.height().max(20.0)
        } else if self.shares {
            1.0
        } else {
            1.04
        };
        let scale = Scale::linear(self.range(headroom), area.bottom, area.top);
        Layout { places: columns::places(area, &groups), area, scale, bars_per_group, names, group_names }
    }

    fn range(&self, headroom: f64) -> (f64, f64) {
        if self.shares {
            return (0.0, headroom);
        }
        let totals = self.groups().flat_map(|g| &g.bars).map(StackedBar::total);
        let highest = extent(totals).map_or(0.0, |(_, high)| high);
        (0.0, if highest > 0.0 { highest * headroom } else { 1.0 })
    }

    fn ticks(&self, (low, high): (f64, f64), count: usize) -> Vec<Tick> {
        if !self.shares {
            return Scale::linear((low, high), 0.0, 1.0).ticks(count);
        }
        let percent = Scale::linear((low, (high * 100.0).min(100.0)), 0.0, 1.0).ticks(count);
        percent.into_iter().map(|t| Tick { value: t.value / 100.0, label: format!("{} %", t.label) }).collect()
    }

    fn draw_frame(&self, sheet: &Sheet<'_>, surround: &Surround, layout: &Layout) -> Result<(), FigureError> {
        let below = layout.area.bottom + layout.names.height + layout.group_names.height + 14.0;
        frame::draw_y_label(sheet, &self.y_label, surround.inner.left, layout.area)?;
        frame::draw_x_label(sheet, &self.x_label, below, layout.area)?;
        if self.panels.is_empty() {
            return frame::draw_no_data(sheet, layout.area);
        }
        let ticks = self.ticks((layout.scale.low, layout.scale.high), (layout.area.height() / 15.0) as usize);
        columns::draw_axes(sheet, &layout.places, &layout.scale, &ticks)
    }

    fn draw_panel(
        &self,
        sheet: &Sheet<'_>,
        panel: &StackPanel,
        place: &Place,
        layout: &Layout,
    ) -> Result<(), FigureError> {
        columns::draw_title(sheet, &panel.title, place.plot)?;
        columns::draw_dividers(sheet, place, layout.names.height + layout.group_names.height + 9.0)?;
        for (i, (group, edges)) in panel.groups.iter().zip(&place.groups).enumerate() {
            let top = place.plot.bottom + layout.names.height + 8.5;
            layout.group_names.draw(sheet, i, &group.label, ((edges.0 + edges.1) / 2.0, top))?;
            let (lefts, slot) = columns::slots(*edges, layout.bars_per_group);
            for (k, (bar, left)) in group.bars.iter().zip(lefts).enumerate() {
                layout.names.draw(sheet, k, &bar.label, (left + slot / 2.0, place.plot.bottom + 4.0))?;
                self.draw_bar(sheet, bar, (left, left + slot), &layout.scale)?;
            }
        }
        if panel.groups.iter().flat_map(|g| &g.bars).all(|b| b.total() <= 0.0) {
            return frame::draw_no_data(sheet, place.plot);
        }
        frame::draw_box(sheet, place.plot)
    }

    fn draw_bar(
        &self,
        sheet: &Sheet<'_>,
        bar: &StackedBar,
        (left, right): (f64, f64),
        scale: &Scale,
    ) -> Result<(), FigureError> {
        let total = bar.total();
        if total <= 0.0 {
            return Ok(());
        }
        let unit = if self.shares { total } else { 1.0 };
        let inset = (right - left) * 0.08;
        let mut below = 0.0;
        for (i, value) in bar.usable() {
            let (bottom, top) = (scale.at(below / unit), scale.at((below + value) / unit));
            let part = Area { left: left + inset, right: right - inset, top, bottom };
            let index = self.parts.get(i).map_or(i, |p| p.ink);
            ink(index).fill(sheet, part)?;
            if self.shares {
                draw_share(sheet, part, value / total, index)?;
            }
            below += value;
        }
        let kind = Type::of(FINE).color(AXIS).centered();
        let anchor = ((left + right) / 2.0, scale.at(below / unit) - 2.5);
        sheet.text(&bar.note, anchor, sheet.reduced(&bar.note, kind, right - left + 1.0, 4.5))
    }
}

/// The percentage inside a part, where it fits, on a plain ground so that a hatch does not cut through it.
fn draw_share(sheet: &Sheet<'_>, part: Area, share: f64, index: usize) -> Result<(), FigureError> {
    let text = format!("{:.0}", share * 100.0);
    let kind = Type::of(FINE).color(ink(index).on_top()).centered().middle();
    let width = sheet.width_of(&text, kind);
    if part.height() < FINE + 2.0 || part.width() < width + 2.0 {
        return Ok(());
    }
    let (x, y) = part.center();
    let (half_width, half_height) = (width / 2.0 + 1.0, FINE * 0.5);
    let ground = Area { left: x - half_width, right: x + half_width, top: y - half_height, bottom: y + half_height };
    sheet.fill(ground, ink(index).color)?;
    sheet.text(&text, (x, y), kind)
}

struct Layout {
    places: Vec<Place>,
    area: Area,
    scale: Scale,
    bars_per_group: usize,
    names: LabelFit,
    group_names: LabelFit,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(shares: bool) -> StackedBars {
        let bar = |label: &str, values: Vec<f64>| StackedBar { label: label.into(), values, note: String::new() };
        let bars = vec![bar("FastMoE", vec![30.0, 70.0]), bar("Tutel", vec![f64::NAN, 50.0]), bar("none", vec![])];
        let groups = vec![StackGroup { label: "32 GPUs".into(), bars }];
        StackedBars {
            y_label: "Time".into(),
            parts: Series::numbered(["Experts", "All-to-all"]),
            panels: vec![StackPanel { title: "inky".into(), groups }],
            shares,
            ..StackedBars::default()
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample(true).draw()?.to_svg();
        for label in ["Experts", "All-to-all", "FastMoE", "Tutel", "32 GPUs", "inky", "100 %", "70"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample(true).draw()?.to_svg());
        Ok(())
    }

    #[test]
    fn values_reach_the_highest_total() {
        assert_eq!(sample(false).range(1.0), (0.0, 100.0));
        assert_eq!(StackedBars::default().range(1.0), (0.0, 1.0));
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(StackedBars::default().draw()?.to_svg().contains(">no data<"));
        Ok(())
    }
}
