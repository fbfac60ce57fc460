//! A figure's files: pictures, the data that they show, the caption, and what puts both into a paper.

use std::path::{Path, PathBuf};

use anyhow::Result;
use chart::{Width, escape_latex};
use clap::ValueEnum;

use super::PaperFigure;
use crate::store::{write_bytes, write_text};

/// A file format of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For pages
    Svg,
    /// For papers, with its fonts embedded
    Pdf,
    /// Pixels, 300 to the inch
    Png,
    /// TikZ, for papers whose figures are set in the paper's font: a LaTeX document that compiles alone
    Tikz,
}

const DOTS_PER_INCH: f64 = 300.0;

/// Writes a figure's pictures into a folder, and beside them `NAME.csv`, `NAME.caption.txt` and, where there is a PDF,
/// `NAME.figure.tex`, which puts it into a LaTeX document; returns the paths of the pictures. The names of pictures as wide as
/// one column end in `-column`.
///
/// # Errors
/// When the font or the drawing library fails, or a file cannot be written.
pub fn write(folder: &Path, figure: &PaperFigure, width: Width, formats: &[Format]) -> Result<Vec<PathBuf>> {
    let name = &figure.name;
    let picture = match width {
        Width::Page => name.clone(),
        Width::Column => format!("{name}-column"),
    };
    let drawn = figure.chart.draw(width)?;
    let mut paths = Vec::new();
    for format in formats {
        let (suffix, bytes) = match format {
            Format::Svg => ("svg", drawn.titled_svg(&figure.caption).into_bytes()),
            Format::Pdf => ("pdf", drawn.pdf.clone()),
            Format::Png => ("png", drawn.png(DOTS_PER_INCH)),
            Format::Tikz => ("tex", drawn.tikz().into_bytes()),
        };
        let path = folder.join(format!("{picture}.{suffix}"));
        write_bytes(&path, &bytes)?;
        paths.push(path);
    }
    write_text(&folder.join(format!("{name}.csv")), &figure.chart.csv())?;
    write_text(&folder.join(format!("{name}.caption.txt")), &format!("{}\n", figure.caption))?;
    if formats.contains(&Format::Pdf) {
        write_text(&folder.join(format!("{picture}.figure.tex")), &latex(figure, &picture, width))?;
    }
    Ok(paths)
}

/// For a document of two columns; the picture has its printed size.
fn latex(figure: &PaperFigure, picture: &str, width: Width) -> String {
    let environment = match width {
        Width::Page => "figure*",
        Width::Column => "figure",
    };
    format!(
        "% Needs \\usepackage{{graphicx}}.\n\\begin{{{environment}}}\n\\centering\n\\includegraphics{{{picture}.pdf}}\n\
         \\caption{{{}}}\n\\label{{fig:{picture}}}\n\\end{{{environment}}}\n",
        escape_latex(&figure.caption)
    )
}
