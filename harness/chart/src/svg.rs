//! The SVG document of a figure: in points, with two decimals at most.

use std::fmt::Write as _;

use plotters_backend::BackendCoord;

use crate::canvas::{Align, Element, Paint, Path, Pen, Rgb, TextRun, decimal, is_closed, points};
use crate::font::{FAMILY, Weight};

/// The document of a picture of width x height points.
pub(crate) fn document((width, height): (f64, f64), elements: &[Element]) -> String {
    let (width, height) = (decimal(width), decimal(height));
    let text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}pt\" height=\"{height}pt\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FAMILY}\" stroke-linejoin=\"round\">\n"
    );
    let mut document = SvgDocument { text };
    for element in elements {
        match element {
            Element::Stroke(paths, pen) => document.stroke(paths, *pen),
            Element::Fill(corners, color) => document.fill(corners, *color),
            Element::Circle(center, radius, paint) => document.circle(*center, *radius, *paint),
            Element::Text(run) => document.text(run),
        }
    }
    document.text + "</svg>\n"
}

struct SvgDocument {
    text: String,
}

impl SvgDocument {
    fn stroke(&mut self, paths: &[Path], pen: Pen) {
        let data: String = paths.iter().map(|path| path_data(path)).collect();
        self.element(format!("<path d=\"{data}\" fill=\"none\" {}/>", stroke(pen)));
    }

    fn fill(&mut self, corners: &[BackendCoord], color: Rgb) {
        self.element(format!("<path d=\"{}Z\" fill=\"{}\"/>", path_data(corners), hex(color)));
    }

    fn circle(&mut self, center: BackendCoord, radius: u32, paint: Paint) {
        let ((x, y), radius) = (at(center), points(f64::from(radius)));
        let paint = match paint {
            Paint::Fill(color) => format!("fill=\"{}\"", hex(color)),
            Paint::Stroke(pen) => format!("fill=\"none\" {}", stroke(pen)),
        };
        self.element(format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" {paint}/>"));
    }

    /// Offsets are baked into `y`: viewers disagree on `dominant-baseline`.
    fn text(&mut self, run: &TextRun) {
        let (x, y) = at(run.at);
        let place = match run.upright {
            true => format!("transform=\"translate({x} {y}) rotate(-90)\" y=\"{}\"", points(run.drop)),
            false => format!("x=\"{x}\" y=\"{}\"", points(f64::from(run.at.1) + run.drop)),
        };
        let anchor = match run.align {
            Align::Left => "",
            Align::Center => " text-anchor=\"middle\"",
            Align::Right => " text-anchor=\"end\"",
        };
        let weight = if run.weight == Weight::Bold { " font-weight=\"bold\"" } else { "" };
        self.element(format!(
            "<text {place} font-size=\"{}\" fill=\"{}\"{anchor}{weight}>{}</text>",
            points(run.size),
            hex(run.color),
            escape_xml(&run.text)
        ));
    }

    fn element(&mut self, element: String) {
        self.text.push_str(&element);
        self.text.push('\n');
    }
}

fn path_data(path: &[BackendCoord]) -> String {
    let closed = is_closed(path);
    let open = if closed { &path[..path.len() - 1] } else { path };
    let mut data = String::new();
    for (i, point) in open.iter().enumerate() {
        let (x, y) = at(*point);
        // Writing into a String cannot fail.
        let _ = write!(data, "{}{x} {y}", if i == 0 { 'M' } else { 'L' });
    }
    if closed {
        data.push('Z');
    }
    data
}

fn stroke(pen: Pen) -> String {
    format!("stroke=\"{}\" stroke-width=\"{}\"", hex(pen.color), points(f64::from(pen.width)))
}

fn at((x, y): BackendCoord) -> (String, String) {
    (points(f64::from(x)), points(f64::from(y)))
}

fn hex((r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as it may stand in an element or an attribute of XML and HTML; what XML 1.0 has no place for is left out.
pub fn escape_xml(text: &str) -> String {
    let allowed = |c: &char| !c.is_control() && !matches!(c, '\u{FFFE}' | '\u{FFFF}');
    text.chars().filter(allowed).fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape_xml("a<b & \"c\"\u{7}\u{FFFF}"), "a&lt;b &amp; &quot;c&quot;");
    }
}
