//! Lines over a common x axis, panels stacked: step times, imbalance and bandwidth over iterations.

use super::axis::{Scale, Spacing, Tick, extent, widened};
use super::columns::{draw_title, title_room};
use super::font::Fonts;
use super::frame::{self, Frame, Key, Surround};
use super::ink::{self, ink};
use super::sheet::{Area, Point, Sheet, on_page};
use super::{Figure, FigureError};

/// Lines with at most so many points show the points.
const MARKED_POINTS: usize = 24;
const PANEL_HEIGHT: f64 = 92.0;
const PANEL_GAP: f64 = 6.0;

/// A chart of lines.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LineChart {
    /// Size, title and footnote.
    pub frame: Frame,
    /// Name and unit of the x values.
    pub x_label: String,
    /// Stacked from the top, over one x axis.
    pub panels: Vec<LinePanel>,
    /// What the marks are, for the legend, such as "placement changed".
    pub mark_label: String,
    /// Logarithmic x axis (message sizes, GPU counts); values that are not positive are left out.
    pub log_x: bool,
}

/// One y axis and its lines.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LinePanel {
    /// Printed above.
    pub title: String,
    /// Name and unit of the y values.
    pub y_label: String,
    /// The lines.
    pub series: Vec<LineSeries>,
    /// Start the y axis at zero rather than near the least value.
    pub from_zero: bool,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LineSeries {
    /// As shown in the legend; the same name in several panels is shown once.
    pub name: String,
    /// Index of its look.
    pub ink: usize,
    /// (x, y) in the order of drawing; a value that is not finite interrupts the line.
    pub points: Vec<(f64, f64)>,
    /// Stars on the line.
    pub marks: Vec<(f64, f64)>,
}

impl LinePanel {
    fn title_room(&self) -> f64 {
        title_room(std::iter::once(self.title.as_str()))
    }
}

impl LineSeries {
    fn is_marked(&self) -> bool {
        self.points.len() <= MARKED_POINTS
    }
}

impl LineChart {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        let fonts = Fonts::load()?;
        let panels = self.panels.len().max(1) as f64;
        let titles: f64 = self.panels.iter().map(LinePanel::title_room).sum();
        let wanted = panels * (PANEL_HEIGHT + PANEL_GAP) + titles + frame::x_axis_room(&self.x_label);
        let surround = self.frame.surround(&fonts, self.legend(), wanted);
        let x_range = self.x_range();
        let plots = self.plots(&fonts, &surround);
        on_page(surround.size(), &fonts, |sheet| {
            surround.draw(sheet, &self.frame)?;
            if self.panels.is_empty() || x_range.is_none() {
                return plots.iter().try_for_each(|plot| frame::draw_no_data(sheet, *plot));
            }
            for (panel, plot) in self.panels.iter().zip(&plots) {
                draw_title(sheet, &panel.title, *plot)?;
                self.draw_panel(sheet, panel, *plot, x_range)?;
                frame::draw_y_label(sheet, &panel.y_label, surround.inner.left, *plot)?;
            }
            self.draw_x_axis(sheet, &plots, x_range)
        })
    }

    fn all_series(&self) -> impl Iterator<Item = &LineSeries> {
        self.panels.iter().flat_map(|p| &p.series)
    }

    fn legend(&self) -> Vec<frame::Entry> {
        let mut entries: Vec<frame::Entry> = Vec::new();
        for series in self.all_series() {
            let key = if series.is_marked() { Key::LineWithPoints(series.ink) } else { Key::Line(series.ink) };
            if !series.name.is_empty() && !entries.iter().any(|(_, name)| *name == series.name) {
                entries.push((key, series.name.clone()));
            }
        }
        if !self.mark_label.is_empty() && self.all_series().any(|s| !s.marks.is_empty()) {
            entries.push((Key::Star, self.mark_label.clone()));
        }
        entries
    }

    fn usable(&self, (x, y): (f64, f64)) -> bool {
        x.is_finite() && y.is_finite() && (!self.log_x || x > 0.0)
    }

    fn x_range(&self) -> Option<(f64, f64)> {
        let points = self.all_series().flat_map(|s| s.points.iter().chain(&s.marks));
        let range = extent(points.filter(|p| self.usable(**p)).map(|(x, _)| *x))?;
        Some(if range.0 == range.1 || !self.log_x { widened(range, 0.0) } else { range })
    }

    /// Panels from zero that show the same quantity share their axis, so that they can be compared.
    fn y_range(&self, panel: &LinePanel) -> Option<(f64, f64)> {
        self.extent_of(&[panel])?;
        let alike = |other: &&LinePanel| other.from_zero && other.y_label == panel.y_label;
        let shown: Vec<&LinePanel> = match panel.from_zero {
            true => self.panels.iter().filter(alike).collect(),
            false => vec![panel],
        };
        let (low, high) = self.extent_of(&shown)?;
        if panel.from_zero && low >= 0.0 {
            return Some((0.0, if high > 0.0 { high * 1.08 } else { 1.0 }));
        }
        Some(widened((low, high), 0.08))
    }

    /// Least and greatest of what panels show.
    fn extent_of(&self, panels: &[&LinePanel]) -> Option<(f64, f64)> {
        let points = panels.iter().flat_map(|panel| &panel.series).flat_map(|s| s.points.iter().chain(&s.marks));
        extent(points.filter(|p| self.usable(**p)).map(|(_, y)| *y))
    }

    fn x_scale(&self, range: (f64, f64), plot: Area) -> Scale {
        let spacing = if self.log_x { Spacing::Log } else { Spacing::Linear };
        let inset = 5.0;
        Scale { spacing, ..Scale::linear(range, plot.left + inset, plot.right - inset) }
    }

    fn plots(&self, fonts: &Fonts, surround: &Surround) -> Vec<Area> {
        let rooms = self.panels.iter().map(|panel| {
            let ticks = self.y_range(panel).map(|r| Scale::linear(r, 0.0, 1.0).ticks(5)).unwrap_or_default();
            frame::y_axis_room(fonts, &panel.y_label, &ticks)
        });
        let inner = surround.inner;
        let left = inner.left + rooms.fold(0.0, f64::max);
        let count = self.panels.len().max(1);
        let titles = |some: &[LinePanel]| some.iter().map(LinePanel::title_room).sum::<f64>();
        let room = inner.height() - 3.0 - frame::x_axis_room(&self.x_label) - titles(&self.panels);
        let height = (room - PANEL_GAP * (count - 1) as f64) / count as f64;
        (0..count)
            .map(|i| {
                let above = titles(self.panels.get(..=i).unwrap_or_default());
                let top = inner.top + 3.0 + (height + PANEL_GAP) * i as f64 + above;
                Area { left, right: inner.right - 4.0, top, bottom: top + height }
            })
            .collect()
    }

    fn draw_panel(
        &self,
        sheet: &Sheet<'_>,
        panel: &LinePanel,
        plot: Area,
        x_range: Option<(f64, f64)>,
    ) -> Result<(), FigureError> {
        let (Some(x_range), Some(y_range)) = (x_range, self.y_range(panel)) else {
            return frame::draw_no_data(sheet, plot);
        };
        let (x, y) = (self.x_scale(x_range, plot), Scale::linear(y_range, plot.bottom, plot.top));
        let ticks = y.ticks((plot.height() / 18.0).max(2.0) as usize);
        frame::draw_y_grid(sheet, plot, &y, &ticks)?;
        for series in &panel.series {
            self.draw_series(sheet, series, &|p| (x.at(p.0), y.at(p.1)))?;
        }
        frame::draw_box(sheet, plot)?;
        frame::draw_y_ticks(sheet, plot, &y, &ticks)
    }

    fn draw_series(
        &self,
        sheet: &Sheet<'_>,
        series: &LineSeries,
        place: &dyn Fn((f64, f64)) -> Point,
    ) -> Result<(), FigureError> {
        let look = ink(series.ink);
        for stretch in series.points.split(|p| !self.usable(*p)) {
            let points: Vec<Point> = stretch.iter().map(|p| place(*p)).collect();
            look.line(sheet, &points)?;
            if series.is_marked() || points.len() == 1 {
                points.iter().try_for_each(|p| look.point(sheet, *p, 2.2))?;
            }
        }
        let marks = series.marks.iter().filter(|p| self.usable(**p));
        marks.map(|p| place(*p)).try_for_each(|p| ink::star(sheet, p, 3.6, look.dark()))
    }

    fn draw_x_axis(&self, sheet: &Sheet<'_>, plots: &[Area], range: Option<(f64, f64)>) -> Result<(), FigureError> {
        let (Some(range), Some(last)) = (range, plots.last()) else { return Ok(()) };
        let scale = self.x_scale(range, *last);
        let ticks: Vec<Tick> = scale.ticks((last.width() / 48.0) as usize);
        frame::draw_x_ticks(sheet, *last, &scale, &ticks)?;
        frame::draw_x_label(sheet, &self.x_label, last.bottom + frame::x_axis_room("") + 2.0, *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> LineChart {
        let points = vec![(0.0, 120.0), (1.0, f64::NAN), (2.0, 90.0), (3.0, 80.0)];
        let series = LineSeries { name: "SmartMoE".into(), ink: 2, points, marks: vec![(2.0, 90.0)] };
        let empty = LinePanel { title: "idle".into(), ..LinePanel::default() };
        LineChart {
            x_label: "Iteration".into(),
            panels: vec![
                LinePanel { y_label: "Time (ms)".into(), series: vec![series], ..LinePanel::default() },
                empty,
            ],
            mark_label: "placement changed".into(),
            ..LineChart::default()
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample().draw()?.to_svg();
        for label in ["Iteration", "Time (ms)", "SmartMoE", "placement changed", "no data"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample().draw()?.to_svg());
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(LineChart::default().draw()?.to_svg().contains(">no data<"));
        let mut chart = sample();
        chart.panels.iter_mut().for_each(|p| p.series.clear());
        assert!(chart.draw()?.to_svg().contains(">no data<"));
        Ok(())
    }

    #[test]
    fn panels_of_one_quantity_share_their_axis() {
        let mut chart = sample();
        chart.panels[0].from_zero = true;
        let mut higher = chart.panels[0].clone();
        higher.series[0].points[0].1 = 200.0;
        chart.panels.push(higher);
        assert_eq!(chart.y_range(&chart.panels[0]), Some((0.0, 200.0 * 1.08)));
        assert_eq!(chart.y_range(&chart.panels[1]), None);
    }

    #[test]
    fn a_log_axis_skips_zero() {
        let chart = LineChart { log_x: true, ..sample() };
        assert_eq!(chart.x_range(), Some((2.0, 3.0)));
    }
}
