//! Predicted against measured: square panels with equal axes, the diagonal and a band around it.

use super::axis::{Scale, Spacing, extent, widened};
use super::columns;
use super::font::Fonts;
use super::frame::{self, AXIS_PEN, BASE, FINE, Frame, Key, Surround};
use super::ink::{PAPER, ink};
use super::sheet::{Area, Pen, Point, Sheet, Type, on_page};
use super::{Figure, FigureError};

const BAND: (u8, u8, u8) = (234, 234, 234);

/// A chart of points, one square panel beside the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scatter {
    /// Size, title and footnote.
    pub frame: Frame,
    /// Name and unit of the x values.
    pub x_label: String,
    /// Name and unit of the y values.
    pub y_label: String,
    /// From left to right, then in further rows.
    pub panels: Vec<ScatterPanel>,
    /// Half width of the band around y = x, as a share: 0.1 is within 10 %. None leaves line and band out.
    pub band: Option<f64>,
    /// Logarithmic axes; values that are not positive are left out.
    pub log: bool,
}

/// One square of points.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScatterPanel {
    /// Printed above.
    pub title: String,
    /// The points, by series.
    pub series: Vec<ScatterSeries>,
    /// Printed in the upper left corner, such as "MAPE 5.8 %" and "R² 0.98".
    pub notes: Vec<String>,
}

/// Points with one look.
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
        let fonts = Fonts::load()?;
        let grid = self.grid(&fonts);
        let wanted = grid.rows as f64 * (grid.side + grid.over) + grid.below;
        let surround = self.frame.surround(&fonts, self.legend(), wanted);
        let plots = self.plots(&grid, &surround);
        on_page(surround.size(), &fonts, |sheet| {
            surround.draw(sheet, &self.frame)?;
            if self.panels.is_empty() {
                return plots.iter().try_for_each(|plot| frame::draw_no_data(sheet, *plot));
            }
            for (panel, plot) in self.panels.iter().zip(&plots) {
                self.draw_panel(sheet, panel, *plot)?;
            }
            self.draw_labels(sheet, &plots, &surround)
        })
    }

    fn legend(&self) -> Vec<frame::Entry> {
        let mut entries: Vec<frame::Entry> = Vec::new();
        for series in self.panels.iter().flat_map(|p| &p.series) {
            if !series.name.is_empty() && !entries.iter().any(|(_, name)| *name == series.name) {
                entries.push((Key::Point(series.ink), series.name.clone()));
            }
        }
        entries
    }

    fn usable(&self, (x, y): (f64, f64)) -> bool {
        let least = if self.log { f64::MIN_POSITIVE } else { f64::MIN };
        x.is_finite() && y.is_finite() && x >= least && y >= least
    }

    /// One range for both axes, from zero where all values are positive and the axis is linear.
    fn range(&self, panel: &ScatterPanel) -> Option<(f64, f64)> {
        let points = panel.series.iter().flat_map(|s| &s.points).filter(|p| self.usable(**p));
        let (low, high) = extent(points.flat_map(|(x, y)| [*x, *y]))?;
        if self.log {
            let margin = (high / low).powf(0.05).max(1.05);
            return Some((low / margin, high * margin));
        }
        Some(if low >= 0.0 && high > 0.0 { (0.0, high * 1.06) } else { widened((low, high), 0.06) })
    }

    fn scales(&self, range: (f64, f64), plot: Area) -> (Scale, Scale) {
        let spacing = if self.log { Spacing::Log } else { Spacing::Linear };
        let scale = |from, to| Scale { spacing, ..Scale::linear(range, from, to) };
        (scale(plot.left, plot.right), scale(plot.bottom, plot.top))
    }

    /// As many squares in a row as stay legible.
    fn grid(&self, fonts: &Fonts) -> Grid {
        let count = self.panels.len().max(1);
        let width = self.frame.width.points() - 8.0;
        let most = (width / 110.0) as usize;
        let rows = count.div_ceil(most.max(1));
        let columns = count.div_ceil(rows);
        let ticks = |panel| {
            let range = self.range(panel)?;
            let (_, y) = self.scales(range, Area { left: 0.0, right: 1.0, top: 0.0, bottom: 1.0 });
            Some(frame::y_axis_room(fonts, "", &y.ticks(5)))
        };
        let numbers = self.panels.iter().filter_map(ticks).fold(12.0, f64::max) + 5.0;
        let label = BASE + 3.0;
        let side = ((width - label) / columns as f64 - numbers).min(if rows > 1 { 118.0 } else { 150.0 });
        let over = 3.0 + columns::title_room(self.panels.iter().map(|p| p.title.as_str())) + frame::x_axis_room("");
        Grid { rows, columns, side, numbers, over, below: frame::x_axis_room(&self.x_label) - frame::x_axis_room("") }
    }

    fn plots(&self, grid: &Grid, surround: &Surround) -> Vec<Area> {
        let inner = surround.inner;
        let side = grid.side.min((inner.height() - grid.below) / grid.rows as f64 - grid.over);
        let used = (side + grid.numbers) * grid.columns as f64 + BASE + 3.0;
        let start = inner.left + (inner.width() - used).max(0.0) / 2.0 + BASE + 3.0;
        let titles = grid.over - frame::x_axis_room("");
        (0..self.panels.len().max(1))
            .map(|i| {
                let (row, column) = (i / grid.columns, i % grid.columns);
                let left = start + (side + grid.numbers) * column as f64 + grid.numbers - 5.0;
                let top = inner.top + (side + grid.over) * row as f64 + titles;
                Area { left, right: left + side, top, bottom: top + side }
            })
            .collect()
    }

    fn draw_panel(&self, sheet: &Sheet<'_>, panel: &ScatterPanel, plot: Area) -> Result<(), FigureError> {
        columns::draw_title(sheet, &panel.title, plot)?;
        let Some(range) = self.range(panel) else { return frame::draw_no_data(sheet, plot) };
        let (x, y) = self.scales(range, plot);
        if let Some(band) = self.band {
            draw_band(sheet, plot, range, band, &|v: Point| (x.at(v.0), y.at(v.1)))?;
        }
        for series in &panel.series {
            for point in series.points.iter().filter(|p| self.usable(**p)) {
                ink(series.ink).point(sheet, (x.at(point.0), y.at(point.1)), 1.9)?;
            }
        }
        frame::draw_box(sheet, plot)?;
        let count = (plot.width() / 32.0).max(2.0) as usize;
        frame::draw_x_ticks(sheet, plot, &x, &x.ticks(count))?;
        frame::draw_y_ticks(sheet, plot, &y, &y.ticks(count))?;
        draw_notes(sheet, &panel.notes, plot)
    }

    /// One name for each axis, centred on all panels.
    fn draw_labels(&self, sheet: &Sheet<'_>, plots: &[Area], surround: &Surround) -> Result<(), FigureError> {
        let ends = |edge: fn(&Area) -> f64| extent(plots.iter().map(edge)).unwrap_or((0.0, 0.0));
        let (left, right) = (ends(|p| p.left).0, ends(|p| p.right).1);
        let whole = Area { left, right, top: ends(|p| p.top).0, bottom: ends(|p| p.bottom).1 };
        let numbers = (BASE + 3.0) + self.number_room(sheet, plots);
        frame::draw_y_label(sheet, &self.y_label, (left - numbers).max(surround.inner.left), whole)?;
        frame::draw_x_label(sheet, &self.x_label, whole.bottom + frame::x_axis_room("") + 2.0, whole)
    }

    fn number_room(&self, sheet: &Sheet<'_>, plots: &[Area]) -> f64 {
        // Only the panels at the left margin stand between the axis' name and the data.
        let left = plots.first().map_or(0.0, |p| p.left);
        let first_column = self.panels.iter().zip(plots).filter(|(_, plot)| plot.left == left);
        let widths = first_column.filter_map(|(panel, plot)| {
            let (_, y) = self.scales(self.range(panel)?, *plot);
            let ticks = y.ticks((plot.width() / 32.0).max(2.0) as usize);
            Some(ticks.iter().map(|t| sheet.width_of(&t.label, Type::of(frame::SMALL))).fold(0.0, f64::max))
        });
        widths.fold(0.0, f64::max) + 5.0
    }
}

struct Grid {
    rows: usize,
    columns: usize,
    side: f64,
    /// Width of the numbers left of a square, with a gap.
    numbers: f64,
    /// Height of a row beyond its square.
    over: f64,
    /// Height of the x axis' name.
    below: f64,
}

/// The band first, clipped to the square, then y = x.
fn draw_band(
    sheet: &Sheet<'_>,
    plot: Area,
    (low, high): (f64, f64),
    share: f64,
    place: &dyn Fn(Point) -> Point,
) -> Result<(), FigureError> {
    let (up, down) = (1.0 + share, (1.0 - share).max(f64::MIN_POSITIVE));
    // Edges y = up x and y = down x, cut where they leave the square. Below zero the two swap, which keeps the outline.
    let start = if low > 0.0 { vec![(low, low), (low, low * up)] } else { vec![(low, low * up)] };
    let end = vec![(high / up, high), (high, high), (high, high * down)];
    let back = if low > 0.0 { vec![(low / down, low)] } else { vec![(low, low * down)] };
    let outline: Vec<Point> = start.into_iter().chain(end).chain(back).map(place).collect();
    let within = |(x, y): Point| (x.clamp(plot.left, plot.right), y.clamp(plot.top, plot.bottom));
    let outline: Vec<Point> = outline.into_iter().map(within).collect();
    sheet.polygon(&outline, BAND)?;
    let diagonal = [place((low, low)), place((high, high))];
    sheet.dashed(&diagonal, 3.0, 2.0, AXIS_PEN)
}

fn draw_notes(sheet: &Sheet<'_>, notes: &[String], plot: Area) -> Result<(), FigureError> {
    if notes.is_empty() {
        return Ok(());
    }
    let kind = Type::of(FINE).hanging();
    let widest = notes.iter().map(|n| sheet.width_of(n, kind)).fold(0.0, f64::max).min(plot.width() - 10.0);
    let (left, top) = (plot.left + 3.5, plot.top + 3.5);
    let row = FINE + 2.0;
    let bottom = top + row * notes.len() as f64 + 2.5;
    let ground = Area { left, right: left + widest + 5.0, top, bottom };
    sheet.fill(ground, PAPER)?;
    sheet.outline(ground, Pen { width: 0.35, ..AXIS_PEN })?;
    for (i, note) in notes.iter().enumerate() {
        sheet.text_within(note, (left + 2.5, top + 2.5 + row * i as f64), kind, widest + 0.1)?;
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
        let svg = sample().draw()?.to_svg();
        for label in ["Measured (ms)", "Predicted (ms)", "GEMM", "A100", "V100", "MAPE 5.8 %", "R² 0.98", "no data"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample().draw()?.to_svg());
        Ok(())
    }

    #[test]
    fn log_axes_leave_zero_out() {
        let chart = Scatter { log: true, ..sample() };
        let range = chart.panels.first().and_then(|p| chart.range(p));
        assert!(range.is_some_and(|(low, high)| low > 0.9 && high < 5.0));
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(Scatter::default().draw()?.to_svg().contains(">no data<"));
        Ok(())
    }
}
