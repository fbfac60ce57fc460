//! Lines over a common x axis, panels stacked: step times, imbalance and bandwidth over iterations.

use crate::axis::{Axis, Spacing, extent, widened};
use crate::canvas::Drawn;
use crate::frame::{self, Chart, Frame};
use crate::legend::{self, Swatch};
use crate::page::{Area, Page};
use crate::palette::ink;
use crate::plot::{self, Axes, Plot, title_room, x_axis_room};
use crate::{Figure, FigureError, marks};

/// Lines with at most so many points show the points.
const MARKED_POINTS: usize = 24;
const PANEL_HEIGHT: f64 = 92.0;
const PANEL_GAP: f64 = 6.0;

#[derive(Debug, Clone, PartialEq, Default)]
pub struct LineChart {
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
    pub series: Vec<LineSeries>,
    /// Start the y axis at zero rather than near the least value.
    pub from_zero: bool,
}

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
    fn title_room(&self, width: f64) -> f64 {
        title_room(std::iter::once((self.title.as_str(), width)))
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
        frame::draw(self)
    }

    fn all_series(&self) -> impl Iterator<Item = &LineSeries> {
        self.panels.iter().flat_map(|p| &p.series)
    }

    fn x_spacing(&self) -> Spacing {
        if self.log_x { Spacing::Log } else { Spacing::Linear }
    }

    fn holds(&self, (x, y): (f64, f64)) -> bool {
        self.x_spacing().accepts(x) && Spacing::Linear.accepts(y)
    }

    fn x_range(&self) -> Option<(f64, f64)> {
        let points = self.all_series().flat_map(|s| s.points.iter().chain(&s.marks));
        let range = extent(points.filter(|p| self.holds(**p)).map(|(x, _)| *x), self.x_spacing())?;
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
        extent(points.filter(|p| self.holds(**p)).map(|(_, y)| *y), Spacing::Linear)
    }

    /// Room left of the panels.
    fn left_room(&self) -> f64 {
        let rooms = self.panels.iter().map(|panel| {
            let axis = self.y_range(panel).map(|range| Axis::new(range, Spacing::Linear).ticked(5));
            plot::y_axis_room(&panel.y_label, axis.as_ref().map_or(&[], Axis::ticks))
        });
        rooms.fold(0.0, f64::max)
    }

    fn areas(&self, inner: Area) -> Vec<Area> {
        let left = inner.left + self.left_room();
        let count = self.panels.len().max(1);
        let right = inner.right - 4.0;
        let titles = |some: &[LinePanel]| some.iter().map(|panel| panel.title_room(right - left)).sum::<f64>();
        let room = inner.height() - 3.0 - x_axis_room(&self.x_label) - titles(&self.panels);
        let height = (room - PANEL_GAP * (count - 1) as f64) / count as f64;
        let area = |i: usize| {
            let above = titles(self.panels.get(..=i).unwrap_or_default());
            let top = inner.top + 3.0 + (height + PANEL_GAP) * i as f64 + above;
            Area { left, right, top, bottom: top + height }
        };
        (0..count).map(area).collect()
    }

    fn draw_panel(&self, page: &Page<'_>, panel: &LinePanel, area: Area, x: Axis) -> Drawn {
        let Some(y_range) = self.y_range(panel) else {
            // The x axis below it may be that of the panels above.
            let y = Axis::new((0.0, 1.0), Spacing::Linear);
            return Plot::new(page, area, Axes { x, y, grid: false, y_numbers: false })?.draw_no_data(page);
        };
        let y = Axis::new(y_range, Spacing::Linear).ticked((area.height() / 18.0).max(2.0) as usize);
        let plot = Plot::new(page, area, Axes { x, y, grid: true, y_numbers: true })?;
        for series in &panel.series {
            self.draw_series(&plot, series)?;
        }
        plot.draw_box(page)
    }

    fn draw_series(&self, plot: &Plot<'_>, series: &LineSeries) -> Drawn {
        let look = ink(series.ink);
        for stretch in series.points.split(|p| !self.holds(*p)) {
            plot.line(stretch, look)?;
            if series.is_marked() || stretch.len() == 1 {
                stretch.iter().try_for_each(|p| plot.draw(&marks::marker(*p, look, 2.2)))?;
            }
        }
        let mut marks = series.marks.iter().filter(|p| self.holds(**p));
        marks.try_for_each(|p| plot.draw(&marks::star(*p, look.dark(), 3.6)))
    }
}

impl Chart for LineChart {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn legend(&self) -> Vec<legend::Entry> {
        let swatch = |s: &LineSeries| if s.is_marked() { Swatch::LineWithPoints(s.ink) } else { Swatch::Line(s.ink) };
        let marked = self.all_series().any(|s| !s.marks.is_empty());
        let series = self.all_series().map(|s| (swatch(s), s.name.as_str()));
        legend::entries(series.chain(marked.then_some((Swatch::Star, self.mark_label.as_str()))))
    }

    fn height(&self, width: f64) -> f64 {
        let panels = self.panels.len().max(1) as f64;
        let titles: f64 = self.panels.iter().map(|panel| panel.title_room(width - self.left_room() - 4.0)).sum();
        panels * (PANEL_HEIGHT + PANEL_GAP) + titles + x_axis_room(&self.x_label)
    }

    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn {
        let areas = self.areas(inner);
        let (Some(x_range), Some(last)) = (self.x_range(), areas.last()) else {
            return areas.iter().try_for_each(|area| plot::draw_no_data(page, *area));
        };
        for (panel, area) in self.panels.iter().zip(&areas) {
            let x = Axis::new(x_range, self.x_spacing()).inset(5.0);
            let x = if area == last { x.ticked((area.width() / 48.0) as usize) } else { x };
            plot::draw_title(page, &panel.title, *area)?;
            self.draw_panel(page, panel, *area, x)?;
            plot::draw_y_name(page, &panel.y_label, inner.left, *area)?;
        }
        plot::draw_x_name(page, &self.x_label, last.bottom + x_axis_room("") + 2.0, *last)
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
        let svg = sample().draw()?.svg;
        for label in ["Iteration", "Time (ms)", "SmartMoE", "placement changed", "no data"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample().draw()?.svg);
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(LineChart::default().draw()?.svg.contains(">no data<"));
        let mut chart = sample();
        chart.panels.iter_mut().for_each(|p| p.series.clear());
        assert!(chart.draw()?.svg.contains(">no data<"));
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
