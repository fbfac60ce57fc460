//! The plotters backend of this crate. Whatever plotters draws becomes a list of elements, from which every format is
//! written, so all files hold the same picture, point for point.
//!
//! plotters counts in whole units; a unit here is 1/100 pt, so nothing is rounded visibly. Colours are opaque, which
//! prints alike everywhere and needs no graphics state in the PDF.

use std::convert::Infallible;

use plotters::drawing::DrawingAreaErrorKind;
use plotters::style::FontStyle;
use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind, FontTransform,
};

use crate::TextBox;
use crate::font::{CAP_HEIGHT, Weight};

/// Canvas units per point.
pub(crate) const UNITS: f64 = 100.0;

pub(crate) fn units(points: f64) -> i32 {
    (points * UNITS).round() as i32
}

/// Canvas units as points in text, with two decimals at most.
pub(crate) fn points(units: f64) -> String {
    decimal(units / UNITS)
}

/// With two decimals at most.
pub(crate) fn decimal(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// Red, green, blue.
pub(crate) type Rgb = (u8, u8, u8);

/// Corners in canvas units, y downwards. A path is closed where its last point repeats its first.
pub(crate) type Path = Vec<BackendCoord>;

/// plotters can fail in principle; the canvas takes whatever it is given.
pub(crate) type DrawingError = DrawingAreaErrorKind<Infallible>;
pub(crate) type Drawn = Result<(), DrawingError>;

/// Colour and width (canvas units) of a line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pen {
    pub(crate) color: Rgb,
    pub(crate) width: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Paint {
    Fill(Rgb),
    Stroke(Pen),
}

/// What a picture is made of, in the order of drawing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Element {
    Stroke(Vec<Path>, Pen),
    /// Corners, the first not repeated.
    Fill(Path, Rgb),
    /// Center, radius in canvas units.
    Circle(BackendCoord, u32, Paint),
    Text(TextRun),
}

/// Which part of a line of text lies at its anchor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Align {
    Left,
    Center,
    Right,
}

/// One line of text, anchored at a point.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TextRun {
    pub(crate) text: String,
    pub(crate) at: BackendCoord,
    /// Type size in canvas units.
    pub(crate) size: f64,
    pub(crate) weight: Weight,
    pub(crate) color: Rgb,
    pub(crate) align: Align,
    /// From the anchor down to the baseline, before turning.
    pub(crate) drop: f64,
    /// Reads upwards.
    pub(crate) upright: bool,
}

impl TextRun {
    pub(crate) fn new(text: &str, style: &impl BackendTextStyle, at: BackendCoord) -> Self {
        let cap = style.size() * CAP_HEIGHT;
        Self {
            text: text.to_owned(),
            at,
            size: style.size(),
            weight: if matches!(style.style(), FontStyle::Bold) { Weight::Bold } else { Weight::Regular },
            color: style.color().rgb,
            align: match style.anchor().h_pos {
                HPos::Left => Align::Left,
                HPos::Center => Align::Center,
                HPos::Right => Align::Right,
            },
            drop: match style.anchor().v_pos {
                VPos::Top => cap,
                VPos::Center => cap / 2.0,
                VPos::Bottom => 0.0,
            },
            upright: matches!(style.transform(), FontTransform::Rotate270),
        }
    }

    /// From the anchor to where the line starts, along it, in canvas units.
    pub(crate) fn start(&self) -> f64 {
        let width = self.weight.width(&self.text, self.size);
        match self.align {
            Align::Left => 0.0,
            Align::Center => -width / 2.0,
            Align::Right => -width,
        }
    }

    pub(crate) fn text_box(&self) -> TextBox {
        let (x, y, start) = (f64::from(self.at.0), f64::from(self.at.1), self.start());
        let (end, cap) = (start + self.weight.width(&self.text, self.size), self.size * CAP_HEIGHT);
        let [left, right, top, bottom] = match self.upright {
            true => [x + self.drop - cap, x + self.drop, y - end, y - start],
            false => [x + start, x + end, y + self.drop - cap, y + self.drop],
        }
        .map(|units| units / UNITS);
        TextBox { text: self.text.clone(), size: self.size / UNITS, left, right, top, bottom }
    }
}

/// A picture while it is drawn.
pub(crate) struct Picture {
    /// Width and height in points.
    size: (f64, f64),
    elements: Vec<Element>,
}

impl Picture {
    /// An empty page of width x height points.
    pub(crate) fn new(size: (f64, f64)) -> Self {
        Self { size, elements: Vec::new() }
    }

    pub(crate) fn into_elements(self) -> Vec<Element> {
        self.elements
    }
}

/// The picture as plotters draws on it.
pub(crate) struct Canvas<'d>(pub(crate) &'d mut Picture);

impl Canvas<'_> {
    /// Neighbours in one pen become one element: a hatched bar is not twenty.
    pub(crate) fn line(&mut self, mut path: Path, pen: Pen) {
        let closed = is_closed(&path);
        path.dedup();
        if path.len() < 2 && !closed {
            return;
        }
        match self.0.elements.last_mut() {
            Some(Element::Stroke(paths, drawn_with)) if *drawn_with == pen => paths.push(path),
            _ => self.0.elements.push(Element::Stroke(vec![path], pen)),
        }
    }

    pub(crate) fn fill(&mut self, corners: &[BackendCoord], color: Rgb) {
        self.0.elements.push(Element::Fill(corners.to_vec(), color));
    }

    pub(crate) fn circle(&mut self, center: BackendCoord, radius: u32, paint: Paint) {
        self.0.elements.push(Element::Circle(center, radius, paint));
    }

    pub(crate) fn text(&mut self, run: TextRun) {
        self.0.elements.push(Element::Text(run));
    }
}

pub(crate) fn is_closed(path: &[BackendCoord]) -> bool {
    path.len() > 2 && path.first() == path.last()
}

type Done = Result<(), DrawingErrorKind<Infallible>>;

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        let (width, height) = self.0.size;
        (units(width).unsigned_abs(), units(height).unsigned_abs())
    }

    fn ensure_prepared(&mut self) -> Done {
        Ok(())
    }

    fn present(&mut self) -> Done {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Done {
        self.fill(&[(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)], color.rgb);
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Done {
        self.line(vec![from, to], pen(style));
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(&mut self, a: BackendCoord, b: BackendCoord, style: &S, fill: bool) -> Done {
        let mut corners = vec![a, (b.0, a.1), b, (a.0, b.1)];
        if fill {
            self.fill(&corners, style.color().rgb);
        } else {
            corners.push(a);
            self.line(corners, pen(style));
        }
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Done {
        self.line(path.into_iter().collect(), pen(style));
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Done {
        self.fill(&Path::from_iter(path), style.color().rgb);
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, center: BackendCoord, radius: u32, style: &S, fill: bool) -> Done {
        let paint = if fill { Paint::Fill(style.color().rgb) } else { Paint::Stroke(pen(style)) };
        self.circle(center, radius, paint);
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Done {
        self.text(TextRun::new(text, style, at));
        Ok(())
    }
}

fn pen(style: &impl BackendStyle) -> Pen {
    Pen { color: style.color().rgb, width: style.stroke_width() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_are_short() {
        let check = |value, expected: &str| assert_eq!(decimal(value), expected);
        check(1.0, "1");
        check(1.5, "1.5");
        check(100.0, "100");
        check(-0.001, "0");
    }
}
