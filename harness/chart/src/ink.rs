//! How series are told apart: colour, lightness, hatch, dash and marker together.
//!
//! Colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart,
//! ordered so that neighbours differ in lightness too; a hatch or a dash separates them in greyscale print.

use super::FigureError;
use super::canvas::Rgb;
use super::sheet::{Area, Pen, Point, Sheet};

/// Lines of axes and frames.
pub(super) const AXIS: Rgb = (60, 60, 60);
/// Text.
pub(super) const TEXT: Rgb = (20, 20, 20);
/// Grid lines behind the data.
pub(super) const GRID: Rgb = (222, 222, 222);
/// Footnotes and what stands in for absent data.
pub(super) const MUTED: Rgb = (118, 118, 118);
/// The page.
pub(super) const PAPER: Rgb = (255, 255, 255);

/// A named series. `ink` picks its look, so that one system keeps its colour in every figure of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// As shown in the legend.
    pub name: String,
    /// Index of its look; eight exist, and further ones start over.
    pub ink: usize,
}

impl Series {
    /// A series with a chosen look.
    pub fn new(name: impl Into<String>, ink: usize) -> Self {
        Self { name: name.into(), ink }
    }

    /// Series with the looks 0, 1, 2, ...
    pub fn numbered<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Vec<Self> {
        names.into_iter().enumerate().map(|(ink, name)| Self::new(name, ink)).collect()
    }
}

/// Lines across a filled area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hatch {
    None,
    Rising,
    Falling,
    Crossed,
}

/// Shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
}

/// The look of one series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ink {
    pub(super) color: Rgb,
    hatch: Hatch,
    /// Stroke and gap in points; None is a solid line.
    dash: Option<(f64, f64)>,
    marker: Marker,
}

const INKS: [Ink; 8] = [
    Ink { color: (86, 180, 233), hatch: Hatch::None, dash: None, marker: Marker::Circle },
    Ink { color: (230, 159, 0), hatch: Hatch::Rising, dash: Some((4.5, 1.6)), marker: Marker::Square },
    Ink { color: (0, 94, 158), hatch: Hatch::None, dash: None, marker: Marker::Triangle },
    Ink { color: (0, 158, 115), hatch: Hatch::Falling, dash: Some((1.4, 1.4)), marker: Marker::Diamond },
    Ink { color: (213, 94, 0), hatch: Hatch::None, dash: Some((7.0, 2.0)), marker: Marker::Down },
    Ink { color: (204, 121, 167), hatch: Hatch::Crossed, dash: Some((2.6, 1.2)), marker: Marker::Square },
    Ink { color: (110, 110, 110), hatch: Hatch::Rising, dash: None, marker: Marker::Triangle },
    Ink { color: (236, 222, 60), hatch: Hatch::None, dash: Some((3.5, 3.0)), marker: Marker::Diamond },
];

pub(super) fn ink(index: usize) -> Ink {
    INKS[index % INKS.len()]
}

impl Ink {
    /// The same hue, dark enough for text and outlines.
    pub(super) fn dark(&self) -> Rgb {
        let shade = |channel: u8| (f64::from(channel) * 0.55) as u8;
        (shade(self.color.0), shade(self.color.1), shade(self.color.2))
    }

    /// Black or white, whichever reads better on the colour.
    pub(super) fn on_top(&self) -> Rgb {
        let (r, g, b) = (f64::from(self.color.0), f64::from(self.color.1), f64::from(self.color.2));
        if 0.299 * r + 0.587 * g + 0.114 * b > 120.0 { (0, 0, 0) } else { PAPER }
    }

    /// Fills an area: colour, hatch, thin outline.
    pub(super) fn fill(&self, sheet: &Sheet<'_>, area: Area) -> Result<(), FigureError> {
        sheet.fill(area, self.color)?;
        let pen = Pen { color: self.dark(), width: 0.45 };
        if matches!(self.hatch, Hatch::Rising | Hatch::Crossed) {
            hatch(sheet, area, pen, |p| p)?;
        }
        if matches!(self.hatch, Hatch::Falling | Hatch::Crossed) {
            let mirror = |(x, y): Point| (area.left + area.right - x, y);
            hatch(sheet, area, pen, mirror)?;
        }
        sheet.outline(area, pen)
    }

    /// A line through points.
    pub(super) fn line(&self, sheet: &Sheet<'_>, points: &[Point]) -> Result<(), FigureError> {
        let pen = Pen { color: self.color, width: 1.1 };
        match self.dash {
            None => sheet.path(points, pen),
            Some((stroke, gap)) => sheet.dashed(points, stroke, gap, pen),
        }
    }

    /// A point, `radius` wide to each side, with a white rim that keeps neighbours apart.
    pub(super) fn point(&self, sheet: &Sheet<'_>, at: Point, radius: f64) -> Result<(), FigureError> {
        let rim = Pen { color: PAPER, width: 0.35 };
        if self.marker == Marker::Circle {
            sheet.disc(at, radius, self.color)?;
            return sheet.ring(at, radius, rim);
        }
        let reach = radius * 1.12;
        let corners: &[Point] = match self.marker {
            Marker::Triangle => &[(0.0, -1.1), (1.0, 0.75), (-1.0, 0.75)],
            Marker::Down => &[(0.0, 1.1), (1.0, -0.75), (-1.0, -0.75)],
            Marker::Diamond => &[(0.0, -1.15), (1.0, 0.0), (0.0, 1.15), (-1.0, 0.0)],
            Marker::Circle | Marker::Square => &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        };
        let corners: Vec<Point> = corners.iter().map(|(x, y)| (at.0 + x * reach, at.1 + y * reach)).collect();
        sheet.polygon(&corners, self.color)?;
        sheet.loop_around(&corners, rim)
    }
}

/// A five-pointed star, for events on a line.
pub(super) fn star(sheet: &Sheet<'_>, at: Point, radius: f64, color: Rgb) -> Result<(), FigureError> {
    let corners: Vec<Point> = (0..10)
        .map(|i| {
            let reach = if i % 2 == 0 { radius } else { radius * 0.42 };
            let angle = f64::from(i) * std::f64::consts::PI / 5.0;
            (at.0 + reach * angle.sin(), at.1 - reach * angle.cos())
        })
        .collect();
    sheet.polygon(&corners, color)?;
    sheet.loop_around(&corners, Pen { color: PAPER, width: 0.4 })
}

/// Lines of slope 1 clipped to the area, anchored to its lower left corner so that every bar starts alike.
fn hatch(sheet: &Sheet<'_>, area: Area, pen: Pen, place: impl Fn(Point) -> Point) -> Result<(), FigureError> {
    const STEP: f64 = 3.2;
    let (width, height) = (area.right - area.left, area.bottom - area.top);
    let mut offset = STEP - height;
    // A line from (offset, 0) up and to the right, in coordinates from the lower left corner.
    while offset < width {
        let (from, to) = (offset.max(0.0), (offset + height).min(width));
        if to - from > 0.05 {
            let at = |x: f64| place((area.left + x, area.bottom - (x - offset)));
            sheet.path(&[at(from), at(to)], pen)?;
        }
        offset += STEP;
    }
    Ok(())
}
