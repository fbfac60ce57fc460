//! Colours, pens, and how series are told apart: colour, lightness, hatch, dash and marker together.
//!
//! The colours of series are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell
//! apart, each lightened or darkened until no two print as the same grey: a hatch goes with every colour.

use plotters::style::{Color, RGBColor, ShapeStyle};

use crate::canvas::{Pen, units};

/// Lines of axes and frames.
pub(crate) const AXIS: RGBColor = RGBColor(60, 60, 60);
pub(crate) const TEXT: RGBColor = RGBColor(20, 20, 20);
pub(crate) const GRID: RGBColor = RGBColor(222, 222, 222);
/// What stands in for absent data.
pub(crate) const MUTED: RGBColor = RGBColor(118, 118, 118);
pub(crate) const PAPER: RGBColor = RGBColor(255, 255, 255);
/// Reference lines, intervals and published values.
pub(crate) const BLACK: RGBColor = RGBColor(0, 0, 0);
/// Around the diagonal of a scatter plot.
pub(crate) const BAND: RGBColor = RGBColor(234, 234, 234);

/// A line's style for plotters' own elements; the width is in points.
pub(crate) fn stroke(color: RGBColor, width: f64) -> ShapeStyle {
    ShapeStyle::from(color).stroke_width(units(width).unsigned_abs())
}

/// Width of the lines around a panel, in points.
pub(crate) const AXIS_WIDTH: f64 = 0.5;

/// The line around a panel and of its tick marks.
pub(crate) fn axis_line() -> ShapeStyle {
    stroke(AXIS, AXIS_WIDTH)
}

/// A line's style for marks that draw themselves.
pub(crate) fn pen(color: RGBColor, width: f64) -> Pen {
    Pen { color: color.rgb(), width: units(width).unsigned_abs() }
}

/// A named series. `ink` picks its look, so that one system keeps it in every figure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// As shown in the legend.
    pub name: String,
    /// Index of its look, below [`LOOKS`]; further ones start over.
    pub ink: usize,
}

impl Series {
    pub fn new(name: impl Into<String>, ink: usize) -> Self {
        Self { name: name.into(), ink }
    }

    /// Series with the looks 0, 1, 2, ...
    pub fn numbered<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Vec<Self> {
        names.into_iter().enumerate().map(|(ink, name)| Self::new(name, ink)).collect()
    }
}

/// Lines across a filled area, or dots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hatch {
    None,
    Rising,
    Falling,
    Crossed,
    Level,
    Upright,
    Grid,
    Dotted,
}

impl Hatch {
    const ALL: [Self; 8] =
        [Self::None, Self::Rising, Self::Falling, Self::Crossed, Self::Level, Self::Upright, Self::Grid, Self::Dotted];

    /// The one that many further, round and round.
    fn next(self, further: usize) -> Self {
        Self::ALL[(self as usize + further) % Self::ALL.len()]
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Rising => "rising",
            Self::Falling => "falling",
            Self::Crossed => "crossed",
            Self::Level => "level",
            Self::Upright => "upright",
            Self::Grid => "grid",
            Self::Dotted => "dotted",
        }
    }
}

/// What others need to know of an ink to draw with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Red, green and blue.
    pub color: [u8; 3],
    pub hatch: Hatch,
}

/// The look of an ink.
pub fn look(ink: usize) -> Look {
    let Ink { color: RGBColor(red, green, blue), hatch, .. } = self::ink(ink);
    Look { color: [red, green, blue], hatch }
}

/// Shape of a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
    Down,
}

/// A point: its shape, filled or an outline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) shape: Shape,
    pub(crate) hollow: bool,
}

/// The look of one series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ink {
    pub(crate) color: RGBColor,
    pub(crate) hatch: Hatch,
    /// Stroke and gap in points; None is a solid line.
    pub(crate) dash: Option<(f64, f64)>,
    pub(crate) marker: Marker,
}

/// Colours with the hatch, the dash and the shape that each begins with.
const COLORS: [(RGBColor, Hatch, usize, usize); 8] = [
    (RGBColor(146, 199, 238), Hatch::None, 0, 0),
    (RGBColor(230, 159, 0), Hatch::Rising, 1, 1),
    (RGBColor(0, 84, 142), Hatch::None, 0, 2),
    (RGBColor(0, 153, 111), Hatch::Falling, 2, 3),
    (RGBColor(192, 84, 0), Hatch::None, 3, 4),
    (RGBColor(206, 128, 171), Hatch::Crossed, 4, 1),
    (RGBColor(99, 99, 99), Hatch::Rising, 0, 2),
    (RGBColor(235, 221, 60), Hatch::None, 5, 3),
];

const DASHES: [Option<(f64, f64)>; 8] = [
    None,
    Some((4.5, 1.6)),
    Some((1.4, 1.4)),
    Some((7.0, 2.0)),
    Some((2.6, 1.2)),
    Some((3.5, 3.0)),
    Some((9.0, 1.2)),
    Some((1.0, 2.6)),
];

const SHAPES: [Shape; 5] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Diamond, Shape::Down];

/// How many looks differ. The first eight have a colour each, every further eight the same colours with another hatch, dash
/// and marker.
pub const LOOKS: usize = COLORS.len() * Hatch::ALL.len();

pub(crate) fn ink(index: usize) -> Ink {
    let (color, hatch, dash, shape) = COLORS[index % COLORS.len()];
    let turn = index % LOOKS / COLORS.len();
    let marker = shape + turn;
    Ink {
        color,
        hatch: hatch.next(turn),
        dash: DASHES[(dash + turn) % DASHES.len()],
        marker: Marker { shape: SHAPES[marker % SHAPES.len()], hollow: marker / SHAPES.len() % 2 == 1 },
    }
}

impl Ink {
    /// The same hue, dark enough for text and outlines.
    pub(crate) fn dark(self) -> RGBColor {
        let shade = |channel: u8| (f64::from(channel) * 0.55) as u8;
        RGBColor(shade(self.color.0), shade(self.color.1), shade(self.color.2))
    }

    /// Black or white, whichever reads better on the colour.
    pub(crate) fn on_top(self) -> RGBColor {
        let RGBColor(r, g, b) = self.color;
        if 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b) > 120.0 { BLACK } else { PAPER }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red, green and blue without gamma, of 1 at most.
    fn linear(color: RGBColor) -> [f64; 3] {
        [color.0, color.1, color.2].map(|channel| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        })
    }

    fn product(matrix: [[f64; 3]; 3], vector: [f64; 3]) -> [f64; 3] {
        matrix.map(|row| (0..3).map(|at| row[at] * vector[at]).sum::<f64>().clamp(0.0, 1.0))
    }

    /// CIE L*a*b* under daylight (D65).
    fn lab(linear: [f64; 3]) -> [f64; 3] {
        let to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]];
        let [x, y, z] = product(to_xyz, linear);
        let [x, y, z] = [x / 0.9505, y, z / 1.089]
            .map(|part: f64| if part > 0.008856 { part.cbrt() } else { 7.787 * part + 16.0 / 116.0 });
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }

    /// Under one hatch all colours occur: they differ in grey print, and to readers without one kind of cones (matrices of Machado,
    /// Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency", 2009, severity 1).
    #[test]
    fn colors_differ_in_grey_and_to_color_blind_readers() {
        let grey = [[0.2126, 0.7152, 0.0722]; 3];
        let deuteranopia =
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]];
        let protanopia =
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]];
        for (seen, least) in [(grey, 6.5), (deuteranopia, 14.0), (protanopia, 20.0)] {
            let as_seen: Vec<[f64; 3]> = COLORS.iter().map(|(color, ..)| lab(product(seen, linear(*color)))).collect();
            for (index, one) in as_seen.iter().enumerate() {
                for other in &as_seen[..index] {
                    let apart = (0..3).map(|at| (one[at] - other[at]).powi(2)).sum::<f64>().sqrt();
                    assert!(apart >= least, "{one:?} and {other:?}: {apart} of {least}");
                }
            }
        }
    }

    #[test]
    fn no_two_looks_are_the_same() {
        let inks: Vec<Ink> = (0..LOOKS).map(ink).collect();
        for (index, one) in inks.iter().enumerate() {
            for other in &inks[..index] {
                assert!((one.color, one.hatch) != (other.color, other.hatch), "{one:?} and {other:?} as bars");
                assert!((one.color, one.dash) != (other.color, other.dash), "{one:?} and {other:?} as lines");
                assert!((one.color, one.marker) != (other.color, other.marker), "{one:?} and {other:?} as points");
            }
        }
        assert_eq!(ink(LOOKS), ink(0));
    }
}
