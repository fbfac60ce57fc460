//! A recorded figure as SVG text, in points, with two decimals at most.

use std::fmt::Write as _;

use plotters_backend::BackendCoord;

use super::Figure;
use super::canvas::{Align, Rgb, Shape, TextRun, UNITS};
use super::font::{FAMILY, Weight};

pub(super) fn write(figure: &Figure) -> String {
    let (width, height) = (decimal(figure.width), decimal(figure.height));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}pt\" height=\"{height}pt\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"{FAMILY}\" stroke-linejoin=\"round\">\n"
    );
    for shape in &figure.shapes {
        out.push_str(&element(shape));
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

fn element(shape: &Shape) -> String {
    match shape {
        Shape::Stroke { paths, color, width } => format!(
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"/>",
            paths.iter().map(|p| path_data(p)).collect::<String>(),
            hex(*color),
            points(f64::from(*width)),
        ),
        Shape::Fill { corners, color } => format!("<path d=\"{}Z\" fill=\"{}\"/>", path_data(corners), hex(*color)),
        Shape::Circle { center, radius, color, ring } => {
            let paint = match ring {
                None => format!("fill=\"{}\"", hex(*color)),
                Some(w) => {
                    format!("fill=\"none\" stroke=\"{}\" stroke-width=\"{}\"", hex(*color), points(f64::from(*w)))
                }
            };
            let (x, y) = at(*center);
            format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{}\" {paint}/>", points(f64::from(*radius)))
        }
        Shape::Text(run) => text(run),
    }
}

/// Offsets are baked into `y`: viewers disagree on `dominant-baseline`.
fn text(run: &TextRun) -> String {
    let (x, y) = at(run.at);
    let place = if run.upright {
        format!("transform=\"translate({x} {y}) rotate(-90)\" y=\"{}\"", points(run.drop))
    } else {
        format!("x=\"{x}\" y=\"{}\"", points(f64::from(run.at.1) + run.drop))
    };
    let anchor = match run.align {
        Align::Start => "",
        Align::Middle => " text-anchor=\"middle\"",
        Align::End => " text-anchor=\"end\"",
    };
    let weight = if run.weight == Weight::Bold { " font-weight=\"bold\"" } else { "" };
    format!(
        "<text {place} font-size=\"{}\" fill=\"{}\"{anchor}{weight}>{}</text>",
        points(run.size),
        hex(run.color),
        escape(&run.text)
    )
}

fn path_data(path: &[BackendCoord]) -> String {
    let closed = path.len() > 2 && path.first() == path.last();
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

fn at((x, y): BackendCoord) -> (String, String) {
    (points(f64::from(x)), points(f64::from(y)))
}

fn points(units: f64) -> String {
    decimal(units / UNITS)
}

fn decimal(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

fn hex((r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escape(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).fold(String::new(), |mut out, c| {
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
    fn numbers_are_short_and_text_is_escaped() {
        let check = |value, expected: &str| assert_eq!(decimal(value), expected);
        check(1.0, "1");
        check(1.5, "1.5");
        check(100.0, "100");
        check(-0.001, "0");
        assert_eq!(escape("a<b & \"c\"\u{7}"), "a&lt;b &amp; &quot;c&quot;");
    }
}
