//! The page: a plotters drawing area whose coordinates are points from the upper left corner.

use plotters::coord::{CoordTranslate, Shift};
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Drawable, PathElement, PointCollection, Rectangle};
use plotters::style::{Color, RGBColor, ShapeStyle};
use plotters_backend::BackendCoord;

use crate::canvas::{Canvas, Drawn, Picture, units};
use crate::palette::PAPER;
use crate::text::{LEAST, Type};
use crate::{Figure, FigureError, marks};

/// A place on the page, in points.
pub(crate) type Point = (f64, f64);

/// A rectangle on the page, in points; `top` is less than `bottom`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

impl Area {
    pub(crate) fn center(&self) -> Point {
        ((self.left + self.right) / 2.0, (self.top + self.bottom) / 2.0)
    }

    pub(crate) fn width(&self) -> f64 {
        self.right - self.left
    }

    pub(crate) fn height(&self) -> f64 {
        self.bottom - self.top
    }

    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.left < other.right && other.left < self.right && self.top < other.bottom && other.top < self.bottom
    }

    pub(crate) fn corners(&self) -> [Point; 2] {
        [(self.left, self.top), (self.right, self.bottom)]
    }
}

/// Points to canvas units.
struct Points;

impl CoordTranslate for Points {
    type From = Point;

    fn translate(&self, (x, y): &Point) -> BackendCoord {
        (units(*x), units(*y))
    }
}

/// A page that is being drawn.
pub(crate) struct Page<'d> {
    area: DrawingArea<Canvas<'d>, Points>,
}

/// Draws a white page of width x height points.
pub(crate) fn on_page(size: (f64, f64), draw: impl FnOnce(&Page<'_>) -> Drawn) -> Result<Figure, FigureError> {
    let mut picture = Picture::new(size);
    let root = Canvas(&mut picture).into_drawing_area();
    let page = Page { area: root.apply_coord_spec(Points) };
    let whole = Area { left: 0.0, right: size.0, top: 0.0, bottom: size.1 };
    page.fill(whole, PAPER)
        .and_then(|()| draw(&page))
        .map_err(|error| FigureError::Draw { reason: error.to_string() })?;
    drop((page, root));
    Figure::new(size, picture.into_elements())
}

impl<'d> Page<'d> {
    pub(crate) fn draw<'e, E>(&self, element: &'e E) -> Drawn
    where
        &'e E: PointCollection<'e, Point>,
        E: Drawable<Canvas<'d>>,
    {
        self.area.draw(element)
    }

    /// Part of the page, for plotters to lay a chart out in.
    pub(crate) fn part(&self, area: Area) -> DrawingArea<Canvas<'d>, Shift> {
        // plotters takes the last unit of a chart for its edge.
        let size = (units(area.width()) + 1, units(area.height()) + 1);
        self.area.strip_coord_spec().shrink((units(area.left), units(area.top)), size)
    }

    pub(crate) fn path(&self, points: &[Point], style: ShapeStyle) -> Drawn {
        self.draw(&PathElement::new(points, style))
    }

    pub(crate) fn fill(&self, area: Area, color: RGBColor) -> Drawn {
        self.draw(&Rectangle::new(area.corners(), color.filled()))
    }

    pub(crate) fn outline(&self, area: Area, style: ShapeStyle) -> Drawn {
        self.draw(&Rectangle::new(area.corners(), style))
    }

    pub(crate) fn text(&self, text: &str, anchor: Point, kind: Type) -> Drawn {
        self.draw(&marks::label(anchor, 0.0, text, kind))
    }

    /// A line of text that keeps within `room`: reduced first, then cut.
    pub(crate) fn text_within(&self, text: &str, anchor: Point, kind: Type, room: f64) -> Drawn {
        let fitted = kind.reduced(text, room, LEAST);
        self.text(&fitted.shortened(text, room), anchor, fitted)
    }
}
