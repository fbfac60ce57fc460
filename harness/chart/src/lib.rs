//! Publication figures: grouped bars, stacked bars, lines and scatter plots, as SVG and PDF.
//!
//! A chart is a plain value; [`GroupedBars::draw`] and its siblings lay it out through `plotters` elements on a
//! recording [`canvas`], and the recorded [`Figure`] is written as SVG and as PDF. Both files therefore hold the same
//! picture, point for point. The layout is our own: plotters' mesh lets labels overlap and its SVG backend knows whole
//! pixels only.
//!
//! Text is measured with the DejaVu Sans that is compiled in, and that font is embedded (as a subset) in the PDF, so the
//! bytes depend on the data alone: no installed fonts, no clock, no hash order.
//!
//! Nothing here computes a statistic. Means, intervals, errors and labels arrive as values; NaN and infinite values are
//! drawn as missing.

mod axis;
mod bars;
mod canvas;
mod columns;
mod font;
mod frame;
mod ink;
mod lines;
mod pdf;
mod scatter;
mod sheet;
mod stacked;
mod svg;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use canvas::Shape;

pub use bars::{Bar, BarValue, Group, GroupedBars, Panel};
pub use frame::{Frame, Width};
pub use ink::Series;
pub use lines::{LineChart, LinePanel, LineSeries};
pub use scatter::{Scatter, ScatterPanel, ScatterSeries};
pub use stacked::{StackGroup, StackPanel, StackedBar, StackedBars};

/// Why a figure could not be drawn or written.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    /// The compiled-in font does not parse, or cannot be cut down to the glyphs in use.
    #[error("the embedded font {font}: {reason}")]
    Font {
        /// PostScript name of the font.
        font: &'static str,
        /// What the font library said.
        reason: String,
    },
    /// The drawing library refused an element.
    #[error("drawing the figure: {reason}")]
    Draw {
        /// What the drawing library said.
        reason: String,
    },
    /// A file of the figure could not be written.
    #[error("writing {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// A drawn figure: a size in points (1/72 in) and the shapes on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
}

impl Figure {
    /// The figure as a self-contained SVG document; it may also be placed inline in HTML.
    pub fn to_svg(&self) -> String {
        svg::write(self)
    }

    /// The figure as a one-page PDF with its fonts embedded.
    ///
    /// # Errors
    /// [`FigureError::Font`] when the font cannot be cut down to the glyphs in use.
    pub fn to_pdf(&self) -> Result<Vec<u8>, FigureError> {
        pdf::write(self)
    }

    /// Writes `STEM.svg` and `STEM.pdf`, each by temporary file and rename. Dots in the stem are kept.
    ///
    /// # Errors
    /// [`FigureError::Write`] names the file; a failed write leaves an older file as it was.
    pub fn save(&self, stem: &Path) -> Result<(), FigureError> {
        replace_file(&with_suffix(stem, ".svg"), self.to_svg().as_bytes())?;
        replace_file(&with_suffix(stem, ".pdf"), &self.to_pdf()?)
    }
}

/// `Path::set_extension` would cut `speedup-1.2` at its dot.
fn with_suffix(stem: &Path, suffix: &str) -> PathBuf {
    let mut name = stem.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), FigureError> {
    let temporary = with_suffix(path, &format!(".{}.tmp", std::process::id()));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|source| {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        FigureError::Write { path: path.to_owned(), source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn save_keeps_dots_in_the_stem_and_leaves_no_temporary_file() -> Result<(), Box<dyn std::error::Error>> {
        let folder = std::env::temp_dir().join(format!("moebench-figures-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        GroupedBars::default().draw()?.save(&folder.join("capacity-1.2"))?;
        let mut names: Vec<_> =
            fs::read_dir(&folder)?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
        names.sort();
        fs::remove_dir_all(&folder)?;
        assert_eq!(names, ["capacity-1.2.pdf", "capacity-1.2.svg"]);
        Ok(())
    }

    #[test]
    fn save_names_the_file_that_it_could_not_write() -> Result<(), FigureError> {
        let figure = GroupedBars::default().draw()?;
        let error = figure.save(Path::new("no-such-folder/figure")).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("writing no-such-folder/figure.svg"));
        Ok(())
    }
}
