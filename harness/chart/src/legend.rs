//! The legend above the panels: a swatch and a name for each series, in as many rows as they need.

use crate::canvas::Drawn;
use crate::marks;
use crate::page::{Area, Page, Point};
use crate::palette::{BLACK, Ink, MUTED, TEXT, ink, stroke};
use crate::text::{BASE, Type};

/// How the legend shows a series; numbers are indices of looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swatch {
    Fill(usize),
    Line(usize),
    LineWithPoints(usize),
    Point(usize),
    Star,
    Rule,
    Published,
    /// Of another plan than the bar.
    PublishedOther,
}

pub(crate) type Entry = (Swatch, String);

/// The entries of named series. A name that several panels share stands once.
pub(crate) fn entries<'s>(series: impl IntoIterator<Item = (Swatch, &'s str)>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (swatch, name) in series {
        if !name.is_empty() && !entries.iter().any(|(_, known)| known == name) {
            entries.push((swatch, name.to_owned()));
        }
    }
    entries
}

const ROW: f64 = 11.0;
const SWATCH: f64 = 13.0;
const SWATCH_GAP: f64 = 3.5;
const ENTRY_GAP: f64 = 13.0;

/// Entries set into rows, with the width of each.
pub(crate) struct Legend {
    rows: Vec<Vec<(Entry, f64)>>,
}

impl Legend {
    /// One row where it fits; names that do not fit beside each other go into further rows, and a longer one is cut.
    pub(crate) fn new(entries: Vec<Entry>, room: f64) -> Self {
        let mut rows: Vec<Vec<(Entry, f64)>> = Vec::new();
        let mut used = 0.0;
        for (swatch, name) in entries {
            let name = Type::of(BASE).shortened(&name, room - SWATCH - SWATCH_GAP);
            let width = SWATCH + SWATCH_GAP + Type::of(BASE).width(&name);
            match rows.last_mut() {
                Some(row) if used + ENTRY_GAP + width <= room => {
                    used += ENTRY_GAP + width;
                    row.push(((swatch, name), width));
                }
                _ => {
                    used = width;
                    rows.push(vec![((swatch, name), width)]);
                }
            }
        }
        Self { rows }
    }

    pub(crate) fn height(&self) -> f64 {
        self.rows.len() as f64 * ROW
    }

    /// Rows centred on `middle`, downwards from `top`.
    pub(crate) fn draw(&self, page: &Page<'_>, (middle, top): Point) -> Drawn {
        for (i, row) in self.rows.iter().enumerate() {
            let gaps = ENTRY_GAP * row.len().saturating_sub(1) as f64;
            let mut x = middle - (row.iter().map(|(_, width)| width).sum::<f64>() + gaps) / 2.0;
            let y = top + ROW / 2.0 - 1.0 + i as f64 * ROW;
            for ((swatch, name), width) in row {
                swatch.draw(page, Area { left: x, right: x + SWATCH, top: y - 3.2, bottom: y + 3.2 })?;
                page.text(name, (x + SWATCH + SWATCH_GAP, y), Type::of(BASE).middle())?;
                x += width + ENTRY_GAP;
            }
        }
        Ok(())
    }
}

impl Swatch {
    fn draw(self, page: &Page<'_>, area: Area) -> Drawn {
        let middle = area.center();
        match self {
            Self::Fill(index) => page.draw(&marks::filled(area.corners(), ink(index))),
            Self::Line(index) => line(page, area, ink(index)),
            Self::LineWithPoints(index) => {
                line(page, area, ink(index))?;
                page.draw(&marks::marker(middle, ink(index), 2.2))
            }
            Self::Point(index) => page.draw(&marks::marker(middle, ink(index), 2.4)),
            Self::Star => page.draw(&marks::star(middle, TEXT, 3.8)),
            Self::Rule => page.draw(&marks::rule([(area.left, middle.1), (area.right, middle.1)])),
            Self::Published => page.draw(&marks::published(middle, 2.7, BLACK)),
            Self::PublishedOther => page.draw(&marks::published(middle, 2.7, MUTED)),
        }
    }
}

fn line(page: &Page<'_>, area: Area, ink: Ink) -> Drawn {
    let y = area.center().1;
    let (points, style) = ([(area.left - 1.0, y), (area.right + 1.0, y)], stroke(ink.color, 1.1));
    match ink.dash {
        None => page.path(&points, style),
        Some(dash) => page.draw(&marks::dashed(&points, dash, style)),
    }
}
