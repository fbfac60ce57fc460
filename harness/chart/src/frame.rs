//! What surrounds the data in every chart: size, title, legend, axes and the footnote.

use super::axis::{Scale, Tick};
use super::font::{Fonts, Weight};
use super::ink::{self, AXIS, GRID, MUTED, PAPER, TEXT, ink};
use super::sheet::{Area, Pen, Point, Sheet, Type, wrapped};
use super::{FigureError, Series};

/// Type size of axis labels, legend and panel titles, in points.
pub(super) const BASE: f64 = 8.0;
/// Type size of tick labels.
pub(super) const SMALL: f64 = 7.5;
/// Type size of footnotes and labels beside data.
pub(super) const FINE: f64 = 6.5;

const MARGIN: f64 = 3.0;
const TICK: f64 = 2.5;
const LEGEND_ROW: f64 = 11.0;
const FOOT_ROW: f64 = 8.5;

/// Width of a figure in a two-column paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// Across both columns, 7 in.
    #[default]
    Page,
    /// One column, 3.33 in.
    Column,
}

impl Width {
    /// In points.
    pub(super) fn points(self) -> f64 {
        match self {
            Self::Page => 504.0,
            Self::Column => 240.0,
        }
    }
}

/// What every chart has around its data.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frame {
    /// How wide the figure is.
    pub width: Width,
    /// Height of the whole figure in points; None lets the chart choose, and what is too low to read is raised.
    pub height: Option<f64>,
    /// Printed inside, above the legend. Papers put it in the caption, so it is empty by default.
    pub title: String,
    /// How the numbers were obtained, in small grey type; wrapped where it is long.
    pub footnote: String,
}

/// A sample in the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Fill(usize),
    Line(usize),
    LineWithPoints(usize),
    Point(usize),
    Star,
    Published,
}

/// A line of the legend: sample and name.
pub(super) type Entry = (Key, String);

pub(super) fn entries(series: &[Series], key: impl Fn(usize) -> Key) -> Vec<Entry> {
    series.iter().map(|s| (key(s.ink), s.name.clone())).collect()
}

/// What is left for axes and data, between legend and footnote.
pub(super) struct Surround {
    pub(super) inner: Area,
    legend: Vec<Vec<Entry>>,
    foot: Vec<String>,
    width: f64,
    height: f64,
}

impl Frame {
    /// Lays out title, legend and footnote. `inner_height` is what the chart wants if no height is set; a set height
    /// that leaves less than 60 % of it is raised.
    pub(super) fn surround(&self, fonts: &Fonts, legend: Vec<Entry>, inner_height: f64) -> Surround {
        let width = self.width.points();
        let room = width - 2.0 * MARGIN;
        let legend = legend_rows(fonts, legend, room);
        let foot = wrapped(fonts, &self.footnote, FINE, room);
        let title = if self.title.is_empty() { 0.0 } else { BASE + 5.0 };
        let top = MARGIN + title + legend.len() as f64 * LEGEND_ROW;
        let below = MARGIN + if foot.is_empty() { 0.0 } else { foot.len() as f64 * FOOT_ROW + 1.5 };
        let height = self.height.unwrap_or(top + inner_height + below).max(top + below + inner_height * 0.6);
        let inner = Area { left: MARGIN, right: width - MARGIN, top, bottom: height - below };
        Surround { inner, legend, foot, width, height }
    }
}

impl Surround {
    pub(super) fn size(&self) -> (f64, f64) {
        (self.width, self.height)
    }

    /// Title, legend and footnote.
    pub(super) fn draw(&self, sheet: &Sheet<'_>, frame: &Frame) -> Result<(), FigureError> {
        let room = self.width - 2.0 * MARGIN;
        let middle = self.width / 2.0;
        sheet.text_within(&frame.title, (middle, MARGIN), Type::of(BASE).bold().centered().hanging(), room)?;
        let first = self.inner.top - self.legend.len() as f64 * LEGEND_ROW + LEGEND_ROW / 2.0 - 1.0;
        for (i, row) in self.legend.iter().enumerate() {
            draw_legend_row(sheet, row, (middle, first + i as f64 * LEGEND_ROW), room)?;
        }
        for (i, line) in self.foot.iter().enumerate() {
            let y = self.inner.bottom + 1.5 + (i as f64 + 1.0) * FOOT_ROW - 2.0;
            sheet.text(&sheet.shortened(line, Type::of(FINE), room), (MARGIN, y), Type::of(FINE).color(MUTED))?;
        }
        Ok(())
    }
}

const SAMPLE: f64 = 13.0;
const SAMPLE_GAP: f64 = 3.5;
const ENTRY_GAP: f64 = 13.0;

fn entry_width(fonts: &Fonts, entry: &Entry) -> f64 {
    SAMPLE + SAMPLE_GAP + fonts.width(&entry.1, BASE, Weight::Regular)
}

/// One row where it fits; names that do not fit beside each other go into further rows.
fn legend_rows(fonts: &Fonts, legend: Vec<Entry>, room: f64) -> Vec<Vec<Entry>> {
    let mut rows: Vec<Vec<Entry>> = Vec::new();
    let mut used = 0.0;
    for entry in legend {
        let width = entry_width(fonts, &entry);
        match rows.last_mut() {
            Some(row) if used + ENTRY_GAP + width <= room => {
                used += ENTRY_GAP + width;
                row.push(entry);
            }
            _ => {
                used = width;
                rows.push(vec![entry]);
            }
        }
    }
    rows
}

fn draw_legend_row(sheet: &Sheet<'_>, row: &[Entry], (middle, y): Point, room: f64) -> Result<(), FigureError> {
    let kind = Type::of(BASE).middle();
    let name_room = room - SAMPLE - SAMPLE_GAP;
    let names: Vec<String> = row.iter().map(|(_, name)| sheet.shortened(name, kind, name_room)).collect();
    let widths: Vec<f64> = names.iter().map(|n| SAMPLE + SAMPLE_GAP + sheet.width_of(n, kind)).collect();
    let gaps = ENTRY_GAP * row.len().saturating_sub(1) as f64;
    let mut x = middle - (widths.iter().sum::<f64>() + gaps) / 2.0;
    for (((key, _), name), width) in row.iter().zip(&names).zip(&widths) {
        draw_sample(sheet, *key, Area { left: x, right: x + SAMPLE, top: y - 3.2, bottom: y + 3.2 })?;
        sheet.text(name, (x + SAMPLE + SAMPLE_GAP, y), kind)?;
        x += width + ENTRY_GAP;
    }
    Ok(())
}

fn draw_sample(sheet: &Sheet<'_>, key: Key, area: Area) -> Result<(), FigureError> {
    let middle = area.center();
    let line = [(area.left - 1.0, middle.1), (area.right + 1.0, middle.1)];
    match key {
        Key::Fill(index) => ink(index).fill(sheet, area),
        Key::Line(index) => ink(index).line(sheet, &line),
        Key::LineWithPoints(index) => {
            ink(index).line(sheet, &line)?;
            ink(index).point(sheet, middle, 2.2)
        }
        Key::Point(index) => ink(index).point(sheet, middle, 2.4),
        Key::Star => ink::star(sheet, middle, 3.8, TEXT),
        Key::Published => published_mark(sheet, middle, 2.7),
    }
}

/// A published value: a hollow diamond, which neither a fill nor an interval's cap is mistaken for.
pub(super) fn published_mark(sheet: &Sheet<'_>, (x, y): Point, reach: f64) -> Result<(), FigureError> {
    let corners = [(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)];
    sheet.polygon(&corners, PAPER)?;
    sheet.loop_around(&corners, Pen { color: (0, 0, 0), width: 0.7 })
}

pub(super) const AXIS_PEN: Pen = Pen { color: AXIS, width: 0.5 };
const GRID_PEN: Pen = Pen { color: GRID, width: 0.4 };

/// Room that a y axis takes left of the data: its label, its numbers, its tick marks.
pub(super) fn y_axis_room(fonts: &Fonts, label: &str, ticks: &[Tick]) -> f64 {
    let widest = ticks.iter().map(|t| fonts.width(&t.label, SMALL, Weight::Regular)).fold(0.0, f64::max);
    widest + TICK + 2.5 + if label.is_empty() { 0.0 } else { BASE + 3.0 }
}

/// Room that an x axis takes below the data: tick marks, numbers, label.
pub(super) fn x_axis_room(label: &str) -> f64 {
    TICK + SMALL + 2.0 + if label.is_empty() { 0.0 } else { BASE + 4.0 }
}

/// Horizontal grid lines behind the data.
pub(super) fn draw_y_grid(sheet: &Sheet<'_>, plot: Area, scale: &Scale, ticks: &[Tick]) -> Result<(), FigureError> {
    for tick in ticks {
        let y = scale.at(tick.value);
        sheet.path(&[(plot.left, y), (plot.right, y)], GRID_PEN)?;
    }
    Ok(())
}

/// Marks and numbers left of the data, where the axis has numbers of its own.
pub(super) fn draw_y_ticks(sheet: &Sheet<'_>, plot: Area, scale: &Scale, ticks: &[Tick]) -> Result<(), FigureError> {
    for tick in ticks {
        let y = scale.at(tick.value);
        sheet.path(&[(plot.left - TICK, y), (plot.left, y)], AXIS_PEN)?;
        sheet.text(&tick.label, (plot.left - TICK - 1.5, y), Type::of(SMALL).right().middle())?;
    }
    Ok(())
}

/// Marks and numbers below the data.
pub(super) fn draw_x_ticks(sheet: &Sheet<'_>, plot: Area, scale: &Scale, ticks: &[Tick]) -> Result<(), FigureError> {
    for tick in ticks {
        let x = scale.at(tick.value);
        sheet.path(&[(x, plot.bottom), (x, plot.bottom + TICK)], AXIS_PEN)?;
        sheet.text(&tick.label, (x, plot.bottom + TICK + 2.0), Type::of(SMALL).centered().hanging())?;
    }
    Ok(())
}

/// The y axis' name, reading upwards at `left`, centred on the data.
pub(super) fn draw_y_label(sheet: &Sheet<'_>, label: &str, left: f64, plot: Area) -> Result<(), FigureError> {
    let kind = Type::of(BASE).upright().centered().hanging();
    sheet.text_within(label, (left + 1.0, plot.center().1), kind, plot.height() + 16.0)
}

/// The x axis' name, its capitals hanging from `top`.
pub(super) fn draw_x_label(sheet: &Sheet<'_>, label: &str, top: f64, plot: Area) -> Result<(), FigureError> {
    sheet.text_within(label, (plot.center().0, top), Type::of(BASE).centered().hanging(), plot.width() + 30.0)
}

/// The box around the data.
pub(super) fn draw_box(sheet: &Sheet<'_>, plot: Area) -> Result<(), FigureError> {
    sheet.outline(plot, AXIS_PEN)
}

/// An empty frame that says so.
pub(super) fn draw_no_data(sheet: &Sheet<'_>, plot: Area) -> Result<(), FigureError> {
    draw_box(sheet, plot)?;
    sheet.text_within("no data", plot.center(), Type::of(BASE).color(MUTED).centered().middle(), plot.width())
}
