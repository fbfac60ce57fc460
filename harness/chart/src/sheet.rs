//! The page to draw on: `plotters` elements, in points from the upper left corner.

use std::fmt::Debug;

use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, DashedPathElement, PathElement, Polygon, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, ShapeStyle, TextStyle};

use super::canvas::{Canvas, Rgb, Shape, UNITS};
use super::font::{FAMILY, Fonts, Weight};
use super::{Figure, FigureError, ink};

/// A place on the page, in points.
pub(super) type Point = (f64, f64);

/// A rectangle on the page, in points; `top` is less than `bottom`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) right: f64,
    pub(super) top: f64,
    pub(super) bottom: f64,
}

impl Area {
    pub(super) fn center(&self) -> Point {
        ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0)
    }

    pub(super) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(super) fn height(&self) -> f64 {
        self.bottom - self.top
    }
}

/// Colour and width (points) of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pen {
    pub(super) color: Rgb,
    pub(super) width: f64,
}

/// How a line of text looks and which of its edges lies at its anchor. The top is that of capitals; the bottom is the
/// baseline.
#[derive(Clone, Copy)]
pub(super) struct Type {
    pub(super) size: f64,
    pub(super) weight: Weight,
    color: Rgb,
    horizontal: HPos,
    vertical: VPos,
    upright: bool,
}

impl Type {
    /// Left-aligned on its baseline.
    pub(super) fn of(size: f64) -> Self {
        let (horizontal, vertical) = (HPos::Left, VPos::Bottom);
        Self { size, weight: Weight::Regular, color: ink::TEXT, horizontal, vertical, upright: false }
    }

    pub(super) fn bold(self) -> Self {
        Self { weight: Weight::Bold, ..self }
    }

    pub(super) fn color(self, color: Rgb) -> Self {
        Self { color, ..self }
    }

    pub(super) fn centered(self) -> Self {
        Self { horizontal: HPos::Center, ..self }
    }

    pub(super) fn right(self) -> Self {
        Self { horizontal: HPos::Right, ..self }
    }

    pub(super) fn hanging(self) -> Self {
        Self { vertical: VPos::Top, ..self }
    }

    pub(super) fn middle(self) -> Self {
        Self { vertical: VPos::Center, ..self }
    }

    /// Reads upwards; horizontal and vertical alignment turn with the text.
    pub(super) fn upright(self) -> Self {
        Self { upright: true, ..self }
    }
}

/// A page that is being drawn.
pub(super) struct Sheet<'a> {
    area: DrawingArea<Canvas<'a>, Shift>,
    fonts: &'a Fonts,
}

/// Draws a page of `width` x `height` points and returns it.
pub(super) fn on_page(
    (width, height): (f64, f64),
    fonts: &Fonts,
    draw: impl FnOnce(&Sheet<'_>) -> Result<(), FigureError>,
) -> Result<Figure, FigureError> {
    let mut shapes: Vec<Shape> = Vec::new();
    let size = (units(width).unsigned_abs(), units(height).unsigned_abs());
    let sheet = Sheet { area: Canvas::new(&mut shapes, size).into_drawing_area(), fonts };
    sheet.fill(Area { left: 0.0, right: width, top: 0.0, bottom: height }, ink::PAPER)?;
    draw(&sheet)?;
    drop(sheet);
    Ok(Figure { width, height, shapes })
}

impl Sheet<'_> {
    pub(super) fn path(&self, points: &[Point], pen: Pen) -> Result<(), FigureError> {
        drawn(self.area.draw(&PathElement::new(all(points), stroke(pen))))
    }

    pub(super) fn dashed(&self, points: &[Point], dash: f64, gap: f64, pen: Pen) -> Result<(), FigureError> {
        drawn(self.area.draw(&DashedPathElement::new(all(points), units(dash), units(gap), stroke(pen))))
    }

    pub(super) fn loop_around(&self, corners: &[Point], pen: Pen) -> Result<(), FigureError> {
        let closed: Vec<Point> = corners.iter().chain(corners.first()).copied().collect();
        self.path(&closed, pen)
    }

    pub(super) fn polygon(&self, corners: &[Point], color: Rgb) -> Result<(), FigureError> {
        drawn(self.area.draw(&Polygon::new(all(corners), paint(color))))
    }

    pub(super) fn fill(&self, area: Area, color: Rgb) -> Result<(), FigureError> {
        drawn(self.area.draw(&Rectangle::new(corners(area), paint(color))))
    }

    pub(super) fn outline(&self, area: Area, pen: Pen) -> Result<(), FigureError> {
        drawn(self.area.draw(&Rectangle::new(corners(area), stroke(pen))))
    }

    pub(super) fn disc(&self, center: Point, radius: f64, color: Rgb) -> Result<(), FigureError> {
        drawn(self.area.draw(&Circle::new(at(center), units(radius), paint(color))))
    }

    pub(super) fn ring(&self, center: Point, radius: f64, pen: Pen) -> Result<(), FigureError> {
        drawn(self.area.draw(&Circle::new(at(center), units(radius), stroke(pen))))
    }

    pub(super) fn text(&self, text: &str, anchor: Point, kind: Type) -> Result<(), FigureError> {
        if text.is_empty() {
            return Ok(());
        }
        let weight = if kind.weight == Weight::Bold { FontStyle::Bold } else { FontStyle::Normal };
        let turn = if kind.upright { FontTransform::Rotate270 } else { FontTransform::None };
        let style = TextStyle {
            font: FontDesc::new(FontFamily::Name(FAMILY), kind.size * UNITS, weight).transform(turn),
            color: plotters::style::Color::to_backend_color(&rgb(kind.color)),
            pos: Pos::new(kind.horizontal, kind.vertical),
        };
        drawn(self.area.draw(&Text::new(text, at(anchor), style)))
    }

    /// Width of a line of text, in points.
    pub(super) fn width_of(&self, text: &str, kind: Type) -> f64 {
        self.fonts.width(text, kind.size, kind.weight)
    }

    /// The text, cut with an ellipsis where it is wider than `room`.
    pub(super) fn shortened(&self, text: &str, kind: Type, room: f64) -> String {
        if self.width_of(text, kind) <= room {
            return text.to_owned();
        }
        let mut kept = text.to_owned();
        while kept.pop().is_some() {
            let cut = format!("{}…", kept.trim_end());
            if self.width_of(&cut, kind) <= room {
                return cut;
            }
        }
        String::new()
    }

    /// The type reduced, to `least` points at the lowest, until the text fits into `room`.
    pub(super) fn reduced(&self, text: &str, kind: Type, room: f64, least: f64) -> Type {
        let share = room / self.width_of(text, kind).max(f64::MIN_POSITIVE);
        Type { size: (kind.size * share.min(1.0)).max(least.min(kind.size)), ..kind }
    }

    /// A line of text that keeps within `room`: reduced first, then cut.
    pub(super) fn text_within(&self, text: &str, anchor: Point, kind: Type, room: f64) -> Result<(), FigureError> {
        let fitted = self.reduced(text, kind, room, kind.size * 0.8);
        self.text(&self.shortened(text, fitted, room), anchor, fitted)
    }
}

/// Words set into lines of at most `room` points.
pub(super) fn wrapped(fonts: &Fonts, text: &str, size: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) if fonts.width(&longer, size, Weight::Regular) <= room => *line = longer,
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn drawn<E: Debug>(result: Result<(), E>) -> Result<(), FigureError> {
    result.map_err(|e| FigureError::Draw { reason: format!("{e:?}") })
}

fn units(points: f64) -> i32 {
    (points * UNITS).round() as i32
}

fn at((x, y): Point) -> (i32, i32) {
    (units(x), units(y))
}

fn all(points: &[Point]) -> Vec<(i32, i32)> {
    points.iter().map(|&p| at(p)).collect()
}

fn corners(area: Area) -> [(i32, i32); 2] {
    [at((area.left, area.top)), at((area.right, area.bottom))]
}

fn rgb((r, g, b): Rgb) -> RGBColor {
    RGBColor(r, g, b)
}

fn paint(color: Rgb) -> ShapeStyle {
    ShapeStyle::from(rgb(color)).filled()
}

fn stroke(pen: Pen) -> ShapeStyle {
    ShapeStyle::from(rgb(pen.color)).stroke_width(units(pen.width).unsigned_abs())
}
