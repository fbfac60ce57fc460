//! The plotters elements that plotters does not have: hatched bars, markers with a rim, intervals, labels on a ground.
//!
//! plotters places an element's points, be they values of a plot or points of the page; what is drawn around them is
//! measured in points of the page.

use std::convert::Infallible;

use plotters::element::{DashedPathElement, Drawable, PointCollection};
use plotters::style::{Color as _, RGBColor, ShapeStyle};
use plotters_backend::{BackendCoord, DrawingErrorKind};

use crate::canvas::{Canvas, Paint, Path, Pen, TextRun, UNITS, units};
use crate::palette::{BLACK, Hatch, Ink, PAPER, Shape, pen};
use crate::text::Type;

/// An element: its points in the plot's or the page's coordinates, and how it is drawn once they are placed.
pub(crate) struct Mark<C, const N: usize, F> {
    points: [C; N],
    draw: F,
}

impl<'m, C: 'm, const N: usize, F> PointCollection<'m, C> for &'m Mark<C, N, F> {
    type Point = &'m C;
    type IntoIter = &'m [C; N];

    fn point_iter(self) -> Self::IntoIter {
        &self.points
    }
}

impl<'d, C, const N: usize, F> Drawable<Canvas<'d>> for Mark<C, N, F>
where
    F: Fn([BackendCoord; N], &mut Canvas<'d>),
{
    fn draw<I: Iterator<Item = BackendCoord>>(
        &self,
        mut placed: I,
        canvas: &mut Canvas<'d>,
        _: (u32, u32),
    ) -> Result<(), DrawingErrorKind<Infallible>> {
        let points = std::array::from_fn(|_| placed.next().expect("plotters places every point of an element"));
        (self.draw)(points, canvas);
        Ok(())
    }
}

/// A dashed line; stroke and gap are in points.
pub(crate) fn dashed<C: Copy>(
    points: &[C],
    (dash, gap): (f64, f64),
    style: ShapeStyle,
) -> DashedPathElement<impl Iterator<Item = C> + Clone, i32> {
    DashedPathElement::new(points.iter().copied(), units(dash), units(gap), style)
}

/// The rectangle between two corners in a series' colour and hatch, with a thin outline.
pub(crate) fn filled<C>(points: [C; 2], ink: Ink) -> Mark<C, 2, impl Fn([BackendCoord; 2], &mut Canvas<'_>)> {
    let draw = move |corners: [BackendCoord; 2], canvas: &mut Canvas<'_>| {
        let corners = sorted(corners);
        let line = pen(ink.dark(), 0.45);
        let outline = rectangle(corners);
        canvas.fill(&outline[..4], ink.color.rgb());
        hatched(canvas, corners, ink.hatch, line);
        canvas.line(outline, line);
    };
    Mark { points, draw }
}

/// A series' marker, `radius` points to each side, with a white rim that keeps neighbours apart; a hollow one with a rim of
/// its colour.
pub(crate) fn marker<C>(at: C, ink: Ink, radius: f64) -> Mark<C, 1, impl Fn([BackendCoord; 1], &mut Canvas<'_>)> {
    let draw = move |[at]: [BackendCoord; 1], canvas: &mut Canvas<'_>| {
        let (inside, rim) = match ink.marker.hollow {
            true => (PAPER, pen(ink.color, 0.8)),
            false => (ink.color, pen(PAPER, 0.35)),
        };
        let corners: &[(f64, f64)] = match ink.marker.shape {
            Shape::Circle => {
                let radius = units(radius).unsigned_abs();
                canvas.circle(at, radius, Paint::Fill(inside.rgb()));
                return canvas.circle(at, radius, Paint::Stroke(rim));
            }
            Shape::Triangle => &[(0.0, -1.1), (1.0, 0.75), (-1.0, 0.75)],
            Shape::Down => &[(0.0, 1.1), (1.0, -0.75), (-1.0, -0.75)],
            Shape::Diamond => &[(0.0, -1.15), (1.0, 0.0), (0.0, 1.15), (-1.0, 0.0)],
            Shape::Square => &[(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
        };
        polygon(canvas, at, corners.iter().copied(), radius * 1.12, (inside, rim));
    };
    Mark { points: [at], draw }
}

/// A five-pointed star, for events on a line.
pub(crate) fn star<C>(at: C, color: RGBColor, radius: f64) -> Mark<C, 1, impl Fn([BackendCoord; 1], &mut Canvas<'_>)> {
    let draw = move |[at]: [BackendCoord; 1], canvas: &mut Canvas<'_>| {
        let corners = (0..10).map(|i| {
            let reach = if i % 2 == 0 { 1.0 } else { 0.42 };
            let angle = f64::from(i) * std::f64::consts::PI / 5.0;
            (reach * angle.sin(), -reach * angle.cos())
        });
        polygon(canvas, at, corners, radius, (color, pen(PAPER, 0.4)));
    };
    Mark { points: [at], draw }
}

/// A published value: a hollow diamond, which neither a fill nor an interval's cap is mistaken for.
pub(crate) fn published<C>(
    at: C,
    reach: f64,
    color: RGBColor,
) -> Mark<C, 1, impl Fn([BackendCoord; 1], &mut Canvas<'_>)> {
    let draw = move |[at]: [BackendCoord; 1], canvas: &mut Canvas<'_>| {
        let corners = [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)];
        polygon(canvas, at, corners.into_iter(), reach, (PAPER, pen(color, 0.7)));
    };
    Mark { points: [at], draw }
}

/// A line across a bar: a second statistic, wider than an interval's caps.
pub(crate) fn rule<C>(ends: [C; 2]) -> Mark<C, 2, impl Fn([BackendCoord; 2], &mut Canvas<'_>)> {
    let draw = |ends: [BackendCoord; 2], canvas: &mut Canvas<'_>| canvas.line(ends.to_vec(), pen(BLACK, 0.9));
    Mark { points: ends, draw }
}

/// A cross `rise` points above a place, in the place of a bar that is not there.
pub(crate) fn cross<C>(
    at: C,
    rise: f64,
    reach: f64,
    color: RGBColor,
) -> Mark<C, 1, impl Fn([BackendCoord; 1], &mut Canvas<'_>)> {
    let draw = move |[(x, y)]: [BackendCoord; 1], canvas: &mut Canvas<'_>| {
        let (y, reach) = (y - units(rise), units(reach));
        for slope in [-1, 1] {
            canvas.line(vec![(x - reach, y - slope * reach), (x + reach, y + slope * reach)], pen(color, 0.7));
        }
    };
    Mark { points: [at], draw }
}

/// A vertical interval between its two ends, with caps that reach `cap` points to each side.
pub(crate) fn interval<C>(ends: [C; 2], cap: f64) -> Mark<C, 2, impl Fn([BackendCoord; 2], &mut Canvas<'_>)> {
    let draw = move |ends: [BackendCoord; 2], canvas: &mut Canvas<'_>| {
        let line = pen(BLACK, 0.6);
        canvas.line(ends.to_vec(), line);
        for (x, y) in ends {
            canvas.line(vec![(x - units(cap), y), (x + units(cap), y)], line);
        }
    };
    Mark { points: ends, draw }
}

/// A line of text `rise` points above a place.
pub(crate) fn label<C>(
    at: C,
    rise: f64,
    text: &str,
    kind: Type,
) -> Mark<C, 1, impl Fn([BackendCoord; 1], &mut Canvas<'_>)> {
    let draw = move |[(x, y)]: [BackendCoord; 1], canvas: &mut Canvas<'_>| {
        write(canvas, text, kind, (x, y - units(rise)));
    };
    Mark { points: [at], draw }
}

/// A line of text `rise` points above a place, and above a mark that reaches so many points above its own place: centred,
/// or upright from there. On white, so that no line crosses it.
pub(crate) fn label_above<C>(
    at: C,
    (mark, reach): (C, f64),
    rise: f64,
    text: &str,
    kind: Type,
) -> Mark<C, 2, impl Fn([BackendCoord; 2], &mut Canvas<'_>)> {
    let kind = if kind.upright { kind.middle() } else { kind.centered() };
    let draw = move |[(x, y), (_, mark)]: [BackendCoord; 2], canvas: &mut Canvas<'_>| {
        if text.is_empty() {
            return;
        }
        let y = y.min(mark - units(reach)) - units(rise);
        let (half, height) = match kind.upright {
            true => (kind.size * 0.4, kind.width(text)),
            false => (kind.width(text) / 2.0 + 0.8, kind.size * 0.76),
        };
        let ground = [(x - units(half), y - units(height)), (x + units(half), y + units(0.4))];
        canvas.fill(&rectangle(ground)[..4], PAPER.rgb());
        write(canvas, text, kind, (x, y));
    };
    Mark { points: [at, mark], draw }
}

/// Text in the middle of a series' rectangle where it fits, on plain colour so that no hatch cuts through it.
pub(crate) fn label_inside<C>(
    points: [C; 2],
    text: &str,
    size: f64,
    ink: Ink,
) -> Mark<C, 2, impl Fn([BackendCoord; 2], &mut Canvas<'_>)> {
    let kind = Type::of(size).color(ink.on_top()).centered().middle();
    let draw = move |corners: [BackendCoord; 2], canvas: &mut Canvas<'_>| {
        let [(left, top), (right, bottom)] = sorted(corners);
        let width = kind.width(text);
        if bottom - top < units(size + 2.0) || right - left < units(width + 2.0) {
            return;
        }
        let (x, y) = ((left + right) / 2, (top + bottom) / 2);
        let (half_width, half_height) = (units(width / 2.0 + 1.0), units(size / 2.0));
        let ground = [(x - half_width, y - half_height), (x + half_width, y + half_height)];
        canvas.fill(&rectangle(ground)[..4], ink.color.rgb());
        write(canvas, text, kind, (x, y));
    };
    Mark { points, draw }
}

fn write(canvas: &mut Canvas<'_>, text: &str, kind: Type, at: BackendCoord) {
    if !text.is_empty() {
        canvas.text(TextRun::new(text, &kind.style(), at));
    }
}

/// The upper left corner and the lower right one.
fn sorted([(a, b), (c, d)]: [BackendCoord; 2]) -> [BackendCoord; 2] {
    [(a.min(c), b.min(d)), (a.max(c), b.max(d))]
}

/// The closed outline between two corners.
fn rectangle([a, b]: [BackendCoord; 2]) -> Path {
    vec![a, (b.0, a.1), b, (a.0, b.1), a]
}

/// A filled polygon of corners `reach` points around a place, with a rim.
fn polygon(
    canvas: &mut Canvas<'_>,
    at: BackendCoord,
    corners: impl Iterator<Item = (f64, f64)>,
    reach: f64,
    (color, rim): (RGBColor, Pen),
) {
    let mut outline: Path = corners.map(|(x, y)| (at.0 + units(x * reach), at.1 + units(y * reach))).collect();
    canvas.fill(&outline, color.rgb());
    outline.extend(outline.first().copied());
    canvas.line(outline, rim);
}

/// From one line of a hatch to the next, in canvas units.
const STEP: f64 = 3.2 * UNITS;

/// The lines or dots across a rectangle.
fn hatched(canvas: &mut Canvas<'_>, corners: [BackendCoord; 2], hatch: Hatch, line: Pen) {
    let [(left, top), (right, bottom)] = corners;
    if matches!(hatch, Hatch::Rising | Hatch::Crossed) {
        slanted(canvas, corners, line, |point| point);
    }
    if matches!(hatch, Hatch::Falling | Hatch::Crossed) {
        slanted(canvas, corners, line, |(x, y)| (left + right - x, y));
    }
    // Anchored to the lower left corner, so that every bar starts alike.
    let steps = |length: i32, first: f64| {
        (0..).map(move |n| (STEP * (f64::from(n) + first)).round() as i32).take_while(move |at| *at < length)
    };
    if matches!(hatch, Hatch::Level | Hatch::Grid) {
        steps(bottom - top, 0.75).for_each(|up| canvas.line(vec![(left, bottom - up), (right, bottom - up)], line));
    }
    if matches!(hatch, Hatch::Upright | Hatch::Grid) {
        steps(right - left, 0.5).for_each(|over| canvas.line(vec![(left + over, top), (left + over, bottom)], line));
    }
    if hatch == Hatch::Dotted {
        let radius = units(0.55);
        for (over, up) in steps(right - left, 0.5).flat_map(|over| steps(bottom - top, 0.5).map(move |up| (over, up))) {
            if over + radius < right - left && up + radius < bottom - top {
                canvas.circle((left + over, bottom - up), radius.unsigned_abs(), Paint::Fill(line.color));
            }
        }
    }
}

/// Lines of slope 1 across a rectangle, anchored to its lower left corner so that every bar starts alike.
fn slanted(
    canvas: &mut Canvas<'_>,
    [(left, top), (right, bottom)]: [BackendCoord; 2],
    line: Pen,
    turned: impl Fn(BackendCoord) -> BackendCoord,
) {
    let (width, height) = (f64::from(right - left), f64::from(bottom - top));
    let mut offset = STEP - height;
    // A line from (offset, 0) up and to the right, in coordinates from the lower left corner.
    while offset < width {
        let (from, to) = (offset.max(0.0), (offset + height).min(width));
        if to - from > 0.05 * UNITS {
            let at = |x: f64| turned((left + x.round() as i32, bottom - (x - offset).round() as i32));
            canvas.line(vec![at(from), at(to)], line);
        }
        offset += STEP;
    }
}
