//! Points in square panels: predicted against measured on equal axes, with the diagonal and a band around it, or any two values.

use plotters::element::Polygon;
use plotters::style::Color;

use crate::axis::{Axis, Spacing, extent, widened};
use crate::canvas::Drawn;
use crate::frame::{self, Chart, Frame};
use crate::legend::{self, Swatch};
use crate::page::{Area, Page, Point};
use crate::palette::{AXIS, BAND, PAPER, axis_line, ink, stroke};
use crate::plot::{self, Axes, Plot, x_axis_room};
use crate::text::{BASE, FINE, Type};
use crate::{Figure, FigureError, marks};

/// A chart of points, one square panel beside the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scatter {
    pub frame: Frame,
    /// Name and unit of the x values.
    pub x_label: String,
    /// Name and unit of the y values.
    pub y_label: String,
    /// From left to right, then in further rows.
    pub panels: Vec<ScatterPanel>,
    /// Half width of the band around y = x, as a share: 0.1 is within 10 %. None leaves line and band out: the
    /// axes have ranges of their own, the y axis from zero, and the name of each series stands beside its points, too, where there is room.
    pub band: Option<f64>,
    /// Logarithmic axes; values that are not positive are left out.
    pub log: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScatterPanel {
    /// Printed above.
    pub title: String,
    /// The points, by series.
    pub series: Vec<ScatterSeries>,
    /// Printed in the upper left corner, such as "MAPE 5.8 %" and "R² 0.98".
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScatterSeries {
    /// As shown in the legend; the same name in several panels is shown once.
    pub name: String,
    /// Index of its look.
    pub ink: usize,
    /// (x, y); values that are not finite are left out.
    pub points: Vec<(f64, f64)>,
}

impl Scatter {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        frame::draw(self)
    }

    fn spacing(&self) -> Spacing {
        if self.log { Spacing::Log } else { Spacing::Linear }
    }

    fn holds(&self, (x, y): (f64, f64)) -> bool {
        self.spacing().accepts(x) && self.spacing().accepts(y)
    }

    /// Of the x and the y axis: one for both where there is a band.
    fn ranges(&self, panel: &ScatterPanel) -> Option<[(f64, f64); 2]> {
        let points = || panel.series.iter().flat_map(|s| &s.points).filter(|p| self.holds(**p));
        if self.band.is_some() {
            let both = self.range(points().flat_map(|(x, y)| [*x, *y]))?;
            return Some([both, both]);
        }
        let across = widened(extent(points().map(|(x, _)| *x), self.spacing())?, 0.08);
        Some([across, self.range(points().map(|(_, y)| *y))?])
    }

    /// From zero where all values are positive and the axis is linear.
    fn range(&self, values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
        let (low, high) = extent(values, self.spacing())?;
        if self.log {
            let margin = (high / low).powf(0.05).max(1.05);
            return Some((low / margin, high * margin));
        }
        Some(if low >= 0.0 && high > 0.0 { (0.0, high * 1.06) } else { widened((low, high), 0.06) })
    }

    /// As many squares in a row as stay legible.
    fn grid(&self) -> Grid {
        let count = self.panels.len().max(1);
        let width = self.frame.width.points() - 8.0;
        let named = self.band.is_none();
        let most = (width / if named { 200.0 } else { 110.0 }) as usize;
        let rows = count.div_ceil(most.max(1));
        let columns = count.div_ceil(rows);
        let numbers = self.panels.iter().filter_map(|p| self.numbers(p, 5)).fold(12.0, f64::max) + 5.0;
        let largest = match (named, rows) {
            (true, _) => 200.0,
            (false, 1) => 150.0,
            (false, _) => 118.0,
        };
        let side = ((width - NAME) / columns as f64 - numbers).min(largest);
        let titles = 3.0 + plot::title_room(self.panels.iter().map(|p| (p.title.as_str(), side)));
        let below = x_axis_room(&self.x_label) - x_axis_room("");
        let over = titles + x_axis_room("");
        let side = if named { side.min(TALLEST / rows as f64 - over) } else { side };
        Grid { rows, columns, side, numbers, titles, over, below }
    }

    /// Room for a panel's y numbers.
    fn numbers(&self, panel: &ScatterPanel, ticks: usize) -> Option<f64> {
        let axis = Axis::new(self.ranges(panel)?[1], self.spacing()).ticked(ticks);
        Some(plot::y_axis_room("", axis.ticks()))
    }

    fn draw_panel(&self, page: &Page<'_>, panel: &ScatterPanel, area: Area) -> Drawn {
        plot::draw_title(page, &panel.title, area)?;
        let Some(ranges) = self.ranges(panel) else { return plot::draw_no_data(page, area) };
        let [x, y] = ranges.map(|range| Axis::new(range, self.spacing()).ticked(ticks(area)));
        let place = |(at_x, at_y): &Point| {
            (area.left + x.share(*at_x) * area.width(), area.bottom - y.share(*at_y) * area.height())
        };
        let named = panel.series.iter().flat_map(|s| s.points.iter().map(move |point| (s.name.as_str(), point)));
        let points: Vec<(&str, Point)> =
            named.filter(|(_, point)| self.holds(**point)).map(|(name, point)| (name, place(point))).collect();
        let axes = Axes { x, y, grid: false, y_numbers: true };
        let plot = Plot::new(page, area, axes)?;
        if let Some(band) = self.band {
            draw_band(&plot, ranges[0], band)?;
        }
        for series in &panel.series {
            for point in series.points.iter().filter(|p| self.holds(**p)) {
                plot.draw(&marks::marker(*point, ink(series.ink), RADIUS))?;
            }
        }
        plot.draw_box(page)?;
        if self.band.is_none() {
            draw_names_beside(page, area, &points)?;
        }
        draw_notes(page, &panel.notes, area, &points)
    }

    /// One name for each axis, centred on all panels.
    fn draw_names(&self, page: &Page<'_>, areas: &[Area], inner: Area) -> Drawn {
        let ends = |edge: fn(&Area) -> f64| extent(areas.iter().map(edge), Spacing::Linear).unwrap_or((0.0, 0.0));
        let (left, right) = (ends(|a| a.left).0, ends(|a| a.right).1);
        let whole = Area { left, right, top: ends(|a| a.top).0, bottom: ends(|a| a.bottom).1 };
        // Only the panels at the left margin stand between the axis' name and the data.
        let first_column = self.panels.iter().zip(areas).filter(|(_, area)| area.left == left);
        let numbers = first_column.filter_map(|(panel, area)| self.numbers(panel, ticks(*area))).fold(0.0, f64::max);
        plot::draw_y_name(page, &self.y_label, (left - NAME - numbers).max(inner.left), whole)?;
        plot::draw_x_name(page, &self.x_label, whole.bottom + x_axis_room("") + 2.0, whole)
    }
}

impl Chart for Scatter {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn legend(&self) -> Vec<legend::Entry> {
        let series = self.panels.iter().flat_map(|p| &p.series);
        legend::entries(series.map(|s| (Swatch::Point(s.ink), s.name.as_str())))
    }

    fn height(&self, _: f64) -> f64 {
        let grid = self.grid();
        grid.rows as f64 * (grid.side + grid.over) + grid.below
    }

    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn {
        let areas = self.grid().areas(inner, self.panels.len().max(1));
        if self.panels.is_empty() {
            return areas.iter().try_for_each(|area| plot::draw_no_data(page, *area));
        }
        for (panel, area) in self.panels.iter().zip(&areas) {
            self.draw_panel(page, panel, *area)?;
        }
        self.draw_names(page, &areas, inner)
    }
}

/// How far from a point its name may stand, in points, and in which directions, clockwise from above in degrees.
const REACH: [f64; 5] = [4.0, 10.0, 18.0, 28.0, 40.0];
const TURNS: [f64; 8] = [90.0, 270.0, 45.0, 0.0, 135.0, 315.0, 180.0, 225.0];

/// All rows of squares with names keep within a page, below a legend of some rows, in points.
const TALLEST: f64 = 550.0;

/// Of a point, in points of the page.
const RADIUS: f64 = 1.9;

/// Width of the y axis' name, with a gap.
const NAME: f64 = BASE + 3.0;

fn ticks(area: Area) -> usize {
    (area.width() / 32.0).max(2.0) as usize
}

struct Grid {
    rows: usize,
    columns: usize,
    side: f64,
    /// Width of the numbers left of a square, with a gap.
    numbers: f64,
    /// Height of a row's titles, with a gap.
    titles: f64,
    /// Height of a row beyond its square.
    over: f64,
    /// Height of the x axis' name.
    below: f64,
}

impl Grid {
    /// Squares from left to right, then in further rows, in the middle of the page.
    fn areas(&self, inner: Area, count: usize) -> Vec<Area> {
        let side = self.side.min((inner.height() - self.below) / self.rows as f64 - self.over);
        let used = (side + self.numbers) * self.columns as f64 + NAME;
        let start = inner.left + (inner.width() - used).max(0.0) / 2.0 + NAME;
        let area = |i: usize| {
            let (row, column) = (i / self.columns, i % self.columns);
            let left = start + (side + self.numbers) * column as f64 + self.numbers - 5.0;
            let top = inner.top + (side + self.over) * row as f64 + self.titles;
            Area { left, right: left + side, top, bottom: top + side }
        };
        (0..count).map(area).collect()
    }
}

/// The band first, then y = x. What leaves the square is cut by the plot.
fn draw_band(plot: &Plot<'_>, (low, high): (f64, f64), share: f64) -> Drawn {
    let (up, down) = (1.0 + share, (1.0 - share).max(f64::MIN_POSITIVE));
    // Edges y = up x and y = down x, cut where they leave the square. Below zero the two swap, which keeps the outline.
    let start = if low > 0.0 { vec![(low, low), (low, low * up)] } else { vec![(low, low * up)] };
    let end = vec![(high / up, high), (high, high), (high, high * down)];
    let back = if low > 0.0 { vec![(low / down, low)] } else { vec![(low, low * down)] };
    let outline: Vec<(f64, f64)> = start.into_iter().chain(end).chain(back).collect();
    plot.draw(&Polygon::new(outline, BAND.filled()))?;
    plot.draw(&marks::dashed(&[(low, low), (high, high)], (3.0, 2.0), axis_line()))
}

/// The name of each series beside its points: at the nearest place that is free, with a line to it from further away. `points`: with
/// those names, on the page.
fn draw_names_beside(page: &Page<'_>, area: Area, points: &[(&str, Point)]) -> Drawn {
    let around = |(x, y): Point| Area { left: x - 3.0, right: x + 3.0, top: y - 3.0, bottom: y + 3.0 };
    let mut taken: Vec<Area> = points.iter().map(|(_, point)| around(*point)).collect();
    let kind = Type::of(FINE).middle();
    for &(name, at) in points {
        let (width, half) = (kind.width(name), FINE / 2.0);
        let beside = |(distance, turn): (f64, f64)| {
            let (across, up) = turn.to_radians().sin_cos();
            let middle = (at.0 + across * (distance + width / 2.0), at.1 - up * (distance + half));
            let (left, right) = (middle.0 - width / 2.0, middle.0 + width / 2.0);
            Area { left, right, top: middle.1 - half, bottom: middle.1 + half }
        };
        let inside = |of: &Area| {
            of.left > area.left + 1.0 && of.right < area.right - 1.0 && of.top > area.top && of.bottom < area.bottom
        };
        let free = |of: &Area| inside(of) && !taken.iter().any(|other| of.meets(other));
        let places = REACH.into_iter().flat_map(|distance| TURNS.map(|turn| (distance, turn)));
        let Some((distance, spot)) = places.map(|place| (place.0, beside(place))).find(|(_, of)| free(of)) else {
            continue;
        };
        if distance > REACH[0] {
            let end = (at.0.clamp(spot.left, spot.right), at.1.clamp(spot.top, spot.bottom));
            page.path(&[at, end], stroke(AXIS, 0.35))?;
        }
        page.text(name, (spot.left, spot.center().1), kind)?;
        taken.push(spot);
    }
    Ok(())
}

/// In the corner off y = x that has fewer of the points, which are places on the page: the upper left, if both have as many.
fn draw_notes(page: &Page<'_>, notes: &[String], area: Area, points: &[(&str, Point)]) -> Drawn {
    if notes.is_empty() {
        return Ok(());
    }
    let kind = Type::of(FINE).hanging();
    let widest = kind.widest(notes.iter().map(String::as_str)).min(area.width() - 10.0);
    let row = FINE + 2.0;
    let (width, height) = (widest + 5.0, row * notes.len() as f64 + 2.5);
    let corner = |left: f64, top: f64| Area { left, right: left + width, top, bottom: top + height };
    let corners =
        [corner(area.left + 3.5, area.top + 3.5), corner(area.right - 3.5 - width, area.bottom - 3.5 - height)];
    let hidden = |ground: &Area| {
        let (wide, high) = (ground.left - RADIUS..ground.right + RADIUS, ground.top - RADIUS..ground.bottom + RADIUS);
        points.iter().filter(|(_, (x, y))| wide.contains(x) && high.contains(y)).count()
    };
    let [upper, lower] = corners;
    let ground = if hidden(&lower) < hidden(&upper) { lower } else { upper };
    let (left, top) = (ground.left, ground.top);
    page.fill(ground, PAPER)?;
    page.outline(ground, stroke(AXIS, 0.35))?;
    for (i, note) in notes.iter().enumerate() {
        page.text_within(note, (left + 2.5, top + 2.5 + row * i as f64), kind, widest + 0.1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Scatter {
        let points = vec![(1.0, 1.1), (f64::NAN, 2.0), (4.0, 3.8), (0.0, -0.0)];
        let series = ScatterSeries { name: "GEMM".into(), ink: 1, points };
        let notes = vec!["MAPE 5.8 %".into(), "R² 0.98".into()];
        Scatter {
            x_label: "Measured (ms)".into(),
            y_label: "Predicted (ms)".into(),
            panels: vec![
                ScatterPanel { title: "A100".into(), series: vec![series], notes },
                ScatterPanel { title: "V100".into(), ..ScatterPanel::default() },
            ],
            band: Some(0.1),
            ..Scatter::default()
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample().draw()?.svg;
        for label in ["Measured (ms)", "Predicted (ms)", "GEMM", "A100", "V100", "MAPE 5.8 %", "R² 0.98", "no data"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample().draw()?.svg);
        Ok(())
    }

    /// Where the points stand above y = x, what is noted of them stands below.
    #[test]
    fn notes_keep_off_points() -> Result<(), FigureError> {
        let note = |points: Vec<(f64, f64)>| -> Result<_, FigureError> {
            let mut chart = sample();
            chart.panels[0].series[0].points = points;
            let text = chart.draw()?.texts().into_iter().find(|text| text.text.starts_with("MAPE"));
            Ok(text.expect("it is in the picture"))
        };
        let below = note(vec![(0.5, 3.8), (4.0, 4.0)])?;
        let above = note(vec![(3.8, 0.5), (4.0, 4.0)])?;
        assert!(below.left > above.left && below.top > above.top, "{below:?} {above:?}");
        Ok(())
    }

    #[test]
    fn log_axes_leave_zero_out() {
        let chart = Scatter { log: true, ..sample() };
        let range = chart.panels.first().and_then(|p| chart.ranges(p)).map(|[x, _]| x);
        assert!(range.is_some_and(|(low, high)| low > 0.9 && high < 5.0));
    }

    #[test]
    fn names_stand_beside_points_on_axes_of_their_own() -> Result<(), FigureError> {
        let mut chart = Scatter { band: None, ..sample() };
        chart.panels.truncate(1);
        chart.panels[0].series[0].points = vec![(1.0, 40.0)];
        let other = ScatterSeries { name: "Other".into(), ink: 2, points: vec![(1.01, 40.5), (3.0, 0.0)] };
        chart.panels[0].series.push(other);
        let svg = chart.draw()?.svg;
        // In the legend and beside each point, though two points all but meet.
        assert_eq!([">GEMM<", ">Other<"].map(|name| svg.matches(name).count()), [2, 3]);
        let [x, y] = chart.ranges(&chart.panels[0]).unwrap_or_default();
        assert!(x.0 > 0.8 && x.1 < 3.2 && y.0 == 0.0 && y.1 > 40.5, "{x:?} {y:?}");
        Ok(())
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(Scatter::default().draw()?.svg.contains(">no data<"));
        Ok(())
    }
}
