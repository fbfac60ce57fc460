//! The picture as TikZ, for papers whose figures are set in the paper's own font: a document that compiles alone, and whose
//! `tikzpicture` may be taken out of it. Lines and areas are drawn as they stand; text is LaTeX's, in the sizes of the picture.

use std::fmt::Write as _;

use plotters_backend::BackendCoord;

use crate::canvas::{Align, Element, Paint, Path, Pen, Rgb, TextRun, decimal, is_closed, points};
use crate::font::Weight;

const HEAD: &str = "\
\\documentclass[border=0pt]{standalone}
\\usepackage[T1]{fontenc}
\\usepackage[utf8]{inputenc}
\\usepackage{tikz}
% Narrow enough for the places that were measured for it; any font of its width or less fits.
\\renewcommand{\\familydefault}{\\sfdefault}
\\begin{document}
";

/// The document of a picture of width x height points.
pub(crate) fn document((width, height): (f64, f64), elements: &[Element]) -> String {
    let mut text = HEAD.to_owned();
    text += "\\begin{tikzpicture}[x=1bp,y=-1bp,line join=round,inner sep=0pt,outer sep=0pt]\n";
    let _ = writeln!(text, "\\useasboundingbox (0,0) rectangle ({},{});", decimal(width), decimal(height));
    for element in elements {
        text += &match element {
            Element::Stroke(paths, pen) => {
                let paths: String = paths.iter().map(path_of).collect();
                format!("\\draw[{}]{paths};\n", stroke(*pen))
            }
            Element::Fill(corners, color) => format!("\\fill[{}]{} -- cycle;\n", fill(*color), path_of(corners)),
            Element::Circle(center, radius, paint) => {
                let (command, style) = match paint {
                    Paint::Fill(color) => ("fill", fill(*color)),
                    Paint::Stroke(pen) => ("draw", stroke(*pen)),
                };
                format!("\\{command}[{style}] {} circle[radius={}bp];\n", at(*center), points(f64::from(*radius)))
            }
            Element::Text(run) => node(run),
        };
    }
    text + "\\end{tikzpicture}\n\\end{document}\n"
}

fn path_of(path: &Path) -> String {
    let closed = is_closed(path);
    let open = if closed { &path[..path.len() - 1] } else { path };
    let corners: Vec<String> = open.iter().map(|corner| at(*corner)).collect();
    format!(" {}{}", corners.join(" -- "), if closed { " -- cycle" } else { "" })
}

/// Anchored on its baseline, which every font has.
fn node(run: &TextRun) -> String {
    let (x, y) = (f64::from(run.at.0), f64::from(run.at.1));
    let (x, y) = if run.upright { (x + run.drop, y) } else { (x, y + run.drop) };
    let anchor = match run.align {
        Align::Left => "base west",
        Align::Center => "base",
        Align::Right => "base east",
    };
    let turned = if run.upright { ",rotate=90" } else { "" };
    let bold = if run.weight == Weight::Bold { "\\bfseries" } else { "" };
    let (size, leading) = (points(run.size), points(run.size * 1.2));
    format!(
        "\\node[anchor={anchor}{turned},text={{{}}},font={{\\fontsize{{{size}bp}}{{{leading}bp}}\\selectfont{bold}}}] at ({},{}) {{{}}};\n",
        color_of(run.color),
        points(x),
        points(y),
        escape_latex(&run.text)
    )
}

fn stroke(pen: Pen) -> String {
    format!("draw={{{}}},line width={}bp", color_of(pen.color), points(f64::from(pen.width)))
}

fn fill(color: Rgb) -> String {
    format!("fill={{{}}}", color_of(color))
}

fn color_of((red, green, blue): Rgb) -> String {
    format!("rgb,255:red,{red};green,{green};blue,{blue}")
}

fn at((x, y): BackendCoord) -> String {
    format!("({},{})", points(f64::from(x)), points(f64::from(y)))
}

/// Text as LaTeX takes it; what pdfLaTeX has no glyph for in its own fonts stands in mathematics.
pub fn escape_latex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars().filter(|c| !c.is_control()) {
        match character {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', character]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '<' => out.push_str("\\textless{}"),
            '>' => out.push_str("\\textgreater{}"),
            '"' => out.push_str("\\char34{}"),
            // Two in a row would be a dash.
            '-' if out.ends_with('-') => out.push_str("{}-"),
            '±' => out.push_str("$\\pm$"),
            '×' => out.push_str("$\\times$"),
            '∞' => out.push_str("$\\infty$"),
            '−' => out.push_str("$-$"),
            '≤' => out.push_str("$\\le$"),
            '≥' => out.push_str("$\\ge$"),
            '†' => out.push_str("\\textdagger{}"),
            '‡' => out.push_str("\\textdaggerdbl{}"),
            '…' => out.push_str("\\dots{}"),
            other => match "⁰¹²³⁴⁵⁶⁷⁸⁹⁻".chars().position(|raised| raised == other) {
                Some(10) => out.push_str("$^{-}$"),
                Some(digit) => {
                    let _ = write!(out, "$^{{{digit}}}$");
                }
                None => out.push(other),
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape_latex("a_b & 5%"), "a\\_b \\& 5\\%");
        assert_eq!(escape_latex("a-b --out ---"), "a-b -{}-out -{}-{}-");
        // In every encoding of fonts, which \textquotedbl is not.
        assert_eq!(escape_latex("\"x\""), "\\char34{}x\\char34{}");
        assert_eq!(
            escape_latex("2×10⁻³ † <x>"),
            "2$\\times$10$^{-}$$^{3}$ \\textdagger{} \\textless{}x\\textgreater{}"
        );
    }

    #[test]
    fn every_element_is_a_line() {
        let square = vec![(0, 0), (100, 0), (100, 150), (0, 0)];
        let pen = Pen { color: (1, 2, 3), width: 50 };
        let all = [
            Element::Stroke(vec![square.clone(), vec![(0, 0), (5, 5)]], pen),
            Element::Fill(square[..3].to_vec(), (9, 9, 9)),
            Element::Circle((100, 200), 30, Paint::Stroke(pen)),
        ];
        let text = document((10.0, 20.5), &all);
        assert!(text.contains("\\useasboundingbox (0,0) rectangle (10,20.5);"));
        assert!(text.contains("line width=0.5bp] (0,0) -- (1,0) -- (1,1.5) -- cycle (0,0) -- (0.05,0.05);"));
        assert!(text.contains("\\fill[fill={rgb,255:red,9;green,9;blue,9}] (0,0) -- (1,0) -- (1,1.5) -- cycle;"));
        assert!(text.contains("(1,2) circle[radius=0.3bp];"));
        assert_eq!(text.matches("\\begin").count(), text.matches("\\end{").count());
    }
}
