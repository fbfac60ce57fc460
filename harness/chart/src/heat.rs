//! Maps of winners: a grid of cells in the colour and hatch of whoever is best there, and a number in each.

use crate::canvas::Drawn;
use crate::frame::{self, Chart, Frame};
use crate::legend::{self, Swatch};
use crate::page::{Area, Page};
use crate::palette::{AXIS, MUTED, Series, axis_line, ink};
use crate::plot;
use crate::text::{BASE, FINE, Type, wrapped};
use crate::{Figure, FigureError, marks};

/// A map of winners, one panel beside the other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatMap {
    pub frame: Frame,
    /// Name of what columns differ in.
    pub x_label: String,
    /// Name of what rows differ in.
    pub y_label: String,
    /// Who may win.
    pub series: Vec<Series>,
    pub panels: Vec<HeatPanel>,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeatPanel {
    /// Printed above.
    pub title: String,
    /// Printed below, from left to right.
    pub columns: Vec<String>,
    /// Printed on the left, from the bottom up.
    pub rows: Vec<String>,
    /// `[row][column]`; what is absent is left white.
    pub cells: Vec<Vec<Option<HeatCell>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeatCell {
    /// Index of the winner's look.
    pub ink: usize,
    /// Its name, for the data.
    pub winner: String,
    /// Printed inside, such as the gain.
    pub label: String,
}

/// Height of a cell.
const CELL: f64 = 19.0;
/// Width that a number in a cell needs.
const LEAST_CELL: f64 = 20.0;
/// Left free beside a column's label.
const ROUND_LABEL: f64 = 2.0;
/// Height of a line of a column's label.
const LABEL_LINE: f64 = FINE + 1.5;
/// Rows that a panel is at least as high as.
const FEWEST: usize = 5;
/// Between neighbouring panels.
const GAP: f64 = 10.0;
/// Between a label and what it names.
const NEAR: f64 = 3.0;

impl HeatMap {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        frame::draw(self)
    }

    /// For the height, which the y axis' name needs, too.
    fn most_rows(&self) -> usize {
        self.panels.iter().map(|panel| panel.rows.len()).max().unwrap_or(0).max(FEWEST)
    }

    /// Width of the labels of rows.
    fn labels(&self) -> f64 {
        Type::of(FINE).widest(self.panels.iter().flat_map(|panel| &panel.rows).map(String::as_str)) + NEAR
    }

    /// As many panels beside each other as leave room for numbers in their cells and for words below them, the others below.
    fn grid(&self, width: f64) -> Grid {
        let room = width - plot::y_name_room(&self.y_label);
        let (count, labels) = (self.panels.len().max(1), self.labels());
        let columns = self.panels.iter().map(|panel| panel.columns.len()).max().unwrap_or(0).max(1) as f64;
        let panel = |beside: usize| (room - GAP * (beside - 1) as f64) / beside as f64;
        let words = self.panels.iter().flat_map(|of| &of.columns).flat_map(|label| label.split_whitespace());
        let least = Type::of(FINE).widest(words).max(LEAST_CELL - ROUND_LABEL) + ROUND_LABEL;
        let legible = |beside: &usize| (panel(*beside) - labels) / columns >= least;
        let beside = (1..=count).rev().find(legible).unwrap_or(1);
        let lines = self.panels.iter().map(|panel_of| panel_of.label_lines(panel(beside) - labels));
        Grid {
            beside,
            lines: count.div_ceil(beside),
            panel: panel(beside),
            labels,
            titles: plot::title_room(self.panels.iter().map(|of| (of.title.as_str(), panel(beside) - labels))),
            below: NEAR + lines.max().unwrap_or(1) as f64 * LABEL_LINE,
        }
    }

    /// The cells of each panel.
    fn areas(&self, inner: Area) -> Vec<Area> {
        let grid = self.grid(inner.width());
        let height = (inner.height() - NAME - GAP * (grid.lines - 1) as f64) / grid.lines as f64;
        let area = |at: usize| {
            let left = inner.left + plot::y_name_room(&self.y_label) + (grid.panel + GAP) * (at % grid.beside) as f64;
            let top = inner.top + (height + GAP) * (at / grid.beside) as f64;
            let (right, bottom) = (left + grid.panel, top + height - grid.below);
            Area { left: left + grid.labels, right, top: top + grid.titles, bottom }
        };
        (0..self.panels.len()).map(area).collect()
    }
}

/// How panels are laid out.
struct Grid {
    /// Panels beside each other.
    beside: usize,
    /// Of so many panels each.
    lines: usize,
    /// Width of a panel with its labels of rows.
    panel: f64,
    labels: f64,
    /// Height of titles, and of column labels.
    titles: f64,
    below: f64,
}

/// Height of the x axis' name.
const NAME: f64 = BASE + 2.0 * NEAR;

impl Chart for HeatMap {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn legend(&self) -> Vec<legend::Entry> {
        let wins = |series: &&Series| {
            let mut cells = self.panels.iter().flat_map(|panel| panel.cells.iter().flatten().flatten());
            cells.any(|cell| cell.ink == series.ink)
        };
        legend::entries(self.series.iter().filter(wins).map(|s| (Swatch::Fill(s.ink), s.name.as_str())))
    }

    fn height(&self, width: f64) -> f64 {
        let grid = self.grid(width);
        let lines = grid.lines as f64;
        lines * (self.most_rows() as f64 * CELL + grid.titles + grid.below + GAP) - GAP + NAME
    }

    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn {
        if self.panels.is_empty() {
            return plot::draw_no_data(page, inner);
        }
        let areas = self.areas(inner);
        for (panel, area) in self.panels.iter().zip(&areas) {
            panel.draw(page, *area)?;
        }
        let bottom = areas[areas.len() - 1].bottom;
        let all = Area { left: areas[0].left, top: areas[0].top, right: inner.right, bottom };
        plot::draw_x_name(page, &self.x_label, inner.bottom - BASE, inner)?;
        plot::draw_y_name(page, &self.y_label, inner.left, all)
    }
}

impl HeatPanel {
    fn cell(&self, area: Area, row: usize, column: usize) -> Area {
        let width = area.width() / self.columns.len().max(1) as f64;
        let height = area.height() / self.rows.len().max(1) as f64;
        let (left, bottom) = (area.left + width * column as f64, area.bottom - height * row as f64);
        Area { left, right: left + width, top: bottom - height, bottom }
    }

    /// Lines of the longest column label where the cells together are so wide.
    fn label_lines(&self, width: f64) -> usize {
        let own = width / self.columns.len().max(1) as f64;
        self.columns.iter().map(|label| wrapped(label, Type::of(FINE), own - ROUND_LABEL).len()).max().unwrap_or(1)
    }

    fn draw(&self, page: &Page<'_>, area: Area) -> Drawn {
        plot::draw_title(page, &self.title, area)?;
        for (row, cells) in self.cells.iter().enumerate().take(self.rows.len()) {
            for (column, cell) in cells.iter().enumerate().take(self.columns.len()) {
                let place = self.cell(area, row, column);
                let Some(cell) = cell else {
                    page.text("–", place.center(), Type::of(FINE).centered().middle().color(MUTED))?;
                    continue;
                };
                page.draw(&marks::filled(place.corners(), ink(cell.ink)))?;
                page.draw(&marks::label_inside(place.corners(), &cell.label, FINE, ink(cell.ink)))?;
            }
        }
        self.draw_labels(page, area)?;
        page.outline(area, axis_line())
    }

    fn draw_labels(&self, page: &Page<'_>, area: Area) -> Drawn {
        for (row, label) in self.rows.iter().enumerate() {
            let y = self.cell(area, row, 0).center().1;
            page.text(label, (area.left - NEAR, y), Type::of(FINE).right().middle().color(AXIS))?;
        }
        for (column, label) in self.columns.iter().enumerate() {
            let place = self.cell(area, 0, column);
            let kind = Type::of(FINE).centered().hanging().color(AXIS);
            for (line, text) in wrapped(label, kind, place.width() - ROUND_LABEL).iter().enumerate() {
                let y = area.bottom + NEAR + line as f64 * LABEL_LINE;
                page.text_within(text, (place.center().0, y), kind, place.width())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HeatMap {
        let cell = |ink, label: &str| Some(HeatCell { ink, label: label.into(), ..HeatCell::default() });
        HeatMap {
            x_label: "max/mean".into(),
            y_label: "Network".into(),
            series: Series::numbered(["EP", "Quota", "Nobody"]),
            panels: vec![HeatPanel {
                title: "Mixtral".into(),
                columns: vec!["1".into(), "4".into()],
                rows: vec!["×0.5".into(), "×1".into()],
                cells: vec![vec![cell(0, "1.0"), cell(1, "2.5")], vec![None, cell(1, "2.0")]],
            }],
            ..HeatMap::default()
        }
    }

    #[test]
    fn cells_rows_and_winners_are_in_the_picture() -> Result<(), FigureError> {
        let svg = sample().draw()?.svg;
        for label in ["max/mean", "Network", "EP", "Quota", "Mixtral", "1", "4", "×0.5", "×1", "1.0", "2.5", "2.0", "–"]
        {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains(">Nobody<"), "who wins nowhere needs no legend");
        assert!(HeatMap::default().draw()?.svg.contains(">no data<"));
        Ok(())
    }

    /// The name of an axis in two lines once lay over the labels of rows.
    #[test]
    fn names_of_any_length_are_beside_the_labels_of_rows() -> Result<(), FigureError> {
        for y_label in ["", "Network", "Network between nodes of the cluster (simulated)"] {
            let texts = HeatMap { y_label: y_label.to_owned(), ..sample() }.draw()?.texts();
            let rows = || texts.iter().filter(|text| text.text.starts_with('×'));
            let name = |text: &&crate::TextBox| {
                y_label.contains(&text.text) && text.right - text.left < text.bottom - text.top
            };
            assert!(rows().count() == 2 && (y_label.is_empty() || texts.iter().any(|text| name(&text))), "{texts:?}");
            let end = texts.iter().filter(name).map(|text| text.right).fold(0.0, f64::max);
            assert!(rows().all(|row| row.left >= end), "{y_label}: {texts:?}");
        }
        Ok(())
    }

    #[test]
    fn rows_go_from_the_bottom_up() {
        let map = sample();
        let area = Area { left: 0.0, right: 20.0, top: 0.0, bottom: 10.0 };
        let lower = map.panels[0].cell(area, 0, 0);
        let upper = map.panels[0].cell(area, 1, 1);
        assert_eq!((lower.top, lower.bottom, lower.right), (5.0, 10.0, 10.0));
        assert_eq!((upper.top, upper.bottom, upper.left), (0.0, 5.0, 10.0));
    }
}
