//! The plotters backend of this crate. Whatever plotters draws goes into an SVG document and a PDF document at once, so
//! both files hold the same picture, point for point.
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

use crate::font::{CAP_HEIGHT, Weight};
use crate::pdf::PdfDocument;
use crate::svg::SvgDocument;
use crate::{Figure, FigureError};

/// Canvas units per point.
pub(crate) const UNITS: f64 = 100.0;

pub(crate) fn units(points: f64) -> i32 {
    (points * UNITS).round() as i32
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

#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    Fill(Rgb),
    Stroke(Pen),
}

/// One line of text, anchored at a point.
pub(crate) struct TextRun<'t> {
    pub(crate) text: &'t str,
    pub(crate) at: BackendCoord,
    /// Type size in canvas units.
    pub(crate) size: f64,
    pub(crate) weight: Weight,
    pub(crate) color: Rgb,
    pub(crate) align: HPos,
    /// From the anchor down to the baseline, before turning.
    pub(crate) drop: f64,
    /// Reads upwards.
    pub(crate) upright: bool,
}

impl<'t> TextRun<'t> {
    pub(crate) fn new(text: &'t str, style: &impl BackendTextStyle, at: BackendCoord) -> Self {
        let cap = style.size() * CAP_HEIGHT;
        Self {
            text,
            at,
            size: style.size(),
            weight: if matches!(style.style(), FontStyle::Bold) { Weight::Bold } else { Weight::Regular },
            color: style.color().rgb,
            align: style.anchor().h_pos,
            drop: match style.anchor().v_pos {
                VPos::Top => cap,
                VPos::Center => cap / 2.0,
                VPos::Bottom => 0.0,
            },
            upright: matches!(style.transform(), FontTransform::Rotate270),
        }
    }
}

/// The two documents of a figure while it is drawn.
pub(crate) struct Documents {
    size: (f64, f64),
    svg: SvgDocument,
    pdf: PdfDocument,
    /// Lines that are not written yet, because neighbours in one pen become one element: a hatched bar is not twenty.
    lines: Option<(Pen, Vec<Path>)>,
}

impl Documents {
    /// Empty pages of width x height points.
    pub(crate) fn new((width, height): (f64, f64)) -> Self {
        Self {
            size: (width, height),
            svg: SvgDocument::new(width, height),
            pdf: PdfDocument::new(width, height),
            lines: None,
        }
    }

    pub(crate) fn finish(mut self) -> Result<Figure, FigureError> {
        self.write_lines();
        Ok(Figure { svg: self.svg.finish(), pdf: self.pdf.finish()? })
    }

    fn write_lines(&mut self) {
        if let Some((pen, paths)) = self.lines.take() {
            self.svg.stroke(&paths, pen);
            self.pdf.stroke(&paths, pen);
        }
    }
}

/// The documents as plotters draws on them.
pub(crate) struct Canvas<'d>(pub(crate) &'d mut Documents);

impl Canvas<'_> {
    pub(crate) fn line(&mut self, mut path: Path, pen: Pen) {
        let closed = is_closed(&path);
        path.dedup();
        if path.len() < 2 && !closed {
            return;
        }
        match &mut self.0.lines {
            Some((drawn_with, paths)) if *drawn_with == pen => paths.push(path),
            _ => {
                self.0.write_lines();
                self.0.lines = Some((pen, vec![path]));
            }
        }
    }

    pub(crate) fn fill(&mut self, corners: &[BackendCoord], color: Rgb) {
        self.0.write_lines();
        self.0.svg.fill(corners, color);
        self.0.pdf.fill(corners, color);
    }

    pub(crate) fn circle(&mut self, center: BackendCoord, radius: u32, paint: Paint) {
        self.0.write_lines();
        self.0.svg.circle(center, radius, paint);
        self.0.pdf.circle(center, radius, paint);
    }

    pub(crate) fn text(&mut self, run: &TextRun<'_>) {
        self.0.write_lines();
        self.0.svg.text(run);
        self.0.pdf.text(run);
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
        self.text(&TextRun::new(text, style, at));
        Ok(())
    }
}

fn pen(style: &impl BackendStyle) -> Pen {
    Pen { color: style.color().rgb, width: style.stroke_width() }
}
