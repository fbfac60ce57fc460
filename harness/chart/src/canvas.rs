//! The `plotters` backend that records shapes instead of writing them.
//!
//! plotters draws in whole units; a unit here is 1/100 pt, so nothing is rounded visibly. Colours are opaque: a
//! transparent one is mixed with the white page, which prints the same everywhere and needs no PDF graphics state.

use std::convert::Infallible;

use plotters::style::text_anchor::{HPos, VPos};
use plotters::style::{FontStyle, FontTransform};
use plotters_backend::{BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind};

use super::font::{CAP_HEIGHT, Weight};

/// Canvas units per point.
pub(super) const UNITS: f64 = 100.0;

/// Red, green, blue.
pub(super) type Rgb = (u8, u8, u8);

/// One drawn thing, in canvas units, y downwards.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Shape {
    /// Open paths, or closed ones where the last point repeats the first.
    Stroke { paths: Vec<Vec<BackendCoord>>, color: Rgb, width: u32 },
    /// A filled polygon.
    Fill { corners: Vec<BackendCoord>, color: Rgb },
    /// A circle: filled, or a ring where it has a stroke width.
    Circle { center: BackendCoord, radius: u32, color: Rgb, ring: Option<u32> },
    /// One line of text.
    Text(TextRun),
}

/// One line of text, anchored at a point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TextRun {
    pub(super) text: String,
    pub(super) at: BackendCoord,
    pub(super) size: f64,
    pub(super) weight: Weight,
    pub(super) color: Rgb,
    pub(super) align: Align,
    /// From the anchor down to the baseline, before turning.
    pub(super) drop: f64,
    /// Reads upwards.
    pub(super) upright: bool,
}

/// Which end of the text lies at the anchor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Start,
    Middle,
    End,
}

/// Records what is drawn into a list of shapes.
pub(super) struct Canvas<'a> {
    shapes: &'a mut Vec<Shape>,
    size: (u32, u32),
}

impl<'a> Canvas<'a> {
    pub(super) fn new(shapes: &'a mut Vec<Shape>, size: (u32, u32)) -> Self {
        Self { shapes, size }
    }

    /// Neighbours in one pen become one shape: a hatched bar is one element, not twenty.
    fn stroke(&mut self, path: Vec<BackendCoord>, color: Rgb, width: u32) {
        match self.shapes.last_mut() {
            Some(Shape::Stroke { paths, color: c, width: w }) if *c == color && *w == width => paths.push(path),
            _ => self.shapes.push(Shape::Stroke { paths: vec![path], color, width }),
        }
    }
}

type Drawn = Result<(), DrawingErrorKind<Infallible>>;

impl DrawingBackend for Canvas<'_> {
    type ErrorType = Infallible;

    fn get_size(&self) -> (u32, u32) {
        self.size
    }

    fn ensure_prepared(&mut self) -> Drawn {
        Ok(())
    }

    fn present(&mut self) -> Drawn {
        Ok(())
    }

    fn draw_pixel(&mut self, (x, y): BackendCoord, color: BackendColor) -> Drawn {
        let corners = vec![(x, y), (x + 1, y), (x + 1, y + 1), (x, y + 1)];
        self.shapes.push(Shape::Fill { corners, color: on_white(color) });
        Ok(())
    }

    fn draw_line<S: BackendStyle>(&mut self, from: BackendCoord, to: BackendCoord, style: &S) -> Drawn {
        self.stroke(vec![from, to], on_white(style.color()), style.stroke_width());
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(&mut self, a: BackendCoord, b: BackendCoord, style: &S, fill: bool) -> Drawn {
        let mut corners = vec![a, (b.0, a.1), b, (a.0, b.1)];
        if fill {
            self.shapes.push(Shape::Fill { corners, color: on_white(style.color()) });
        } else {
            corners.push(a);
            self.stroke(corners, on_white(style.color()), style.stroke_width());
        }
        Ok(())
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        let mut points: Vec<_> = path.into_iter().collect();
        let closed = points.len() > 2 && points.first() == points.last();
        points.dedup();
        if points.len() > 1 || closed {
            self.stroke(points, on_white(style.color()), style.stroke_width());
        }
        Ok(())
    }

    fn fill_polygon<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(&mut self, path: I, style: &S) -> Drawn {
        self.shapes.push(Shape::Fill { corners: path.into_iter().collect(), color: on_white(style.color()) });
        Ok(())
    }

    fn draw_circle<S: BackendStyle>(&mut self, center: BackendCoord, radius: u32, style: &S, fill: bool) -> Drawn {
        let ring = (!fill).then(|| style.stroke_width());
        self.shapes.push(Shape::Circle { center, radius, color: on_white(style.color()), ring });
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: BackendCoord) -> Drawn {
        let cap = style.size() * CAP_HEIGHT;
        self.shapes.push(Shape::Text(TextRun {
            text: text.to_owned(),
            at,
            size: style.size(),
            weight: if matches!(style.style(), FontStyle::Bold) { Weight::Bold } else { Weight::Regular },
            color: on_white(style.color()),
            align: match style.anchor().h_pos {
                HPos::Left => Align::Start,
                HPos::Center => Align::Middle,
                HPos::Right => Align::End,
            },
            drop: match style.anchor().v_pos {
                VPos::Top => cap,
                VPos::Center => cap / 2.0,
                VPos::Bottom => 0.0,
            },
            upright: matches!(style.transform(), FontTransform::Rotate270),
        }));
        Ok(())
    }
}

fn on_white(color: BackendColor) -> Rgb {
    let mix = |channel: u8| (255.0 - (255.0 - f64::from(channel)) * color.alpha).round() as u8;
    (mix(color.rgb.0), mix(color.rgb.1), mix(color.rgb.2))
}
