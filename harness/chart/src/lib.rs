//! Publication figures from plain values: grouped bars, stacked bars, lines, scatter plots and maps of winners, as SVG, PDF, PNG
//! and TikZ.
//!
//! ```
//! use chart::{Bar, Group, GroupedBars, Panel, Series};
//!
//! let bars = vec![Bar::value(1.0), Bar { label: Some("1.88×".into()), ..Bar::interval(1.88, 1.80, 1.95) }];
//! let chart = GroupedBars {
//!     y_label: "Speedup over FastMoE".into(),
//!     series: Series::numbered(["FastMoE", "SmartMoE"]),
//!     panels: vec![Panel { title: "inky".into(), groups: vec![Group { label: "16 GPUs".into(), bars, over: vec![] }] }],
//!     reference: Some(1.0),
//!     ..GroupedBars::default()
//! };
//! let figure = chart.draw()?;
//! assert!(figure.svg.contains("1.88×"));
//! assert!(figure.pdf.starts_with(b"%PDF-"));
//! # Ok::<(), chart::FigureError>(())
//! ```
//!
//! `plotters` draws: a panel is one of its charts, an axis is one of its coordinates, and bars, markers and labels are
//! elements that it places. This crate adds the layout of the page (plotters lets labels overlap), the legend in rows above
//! the panels, and the backend that keeps what is drawn, from which every format is written (plotters' SVG backend rounds to
//! whole pixels, and it has none for PDF).
//!
//! Text is measured with the DejaVu Sans that is compiled in, and that font is embedded (as a subset) in the PDF, so the
//! bytes depend on the data alone: no installed fonts, no clock, no hash order.
//!
//! Nothing here computes a statistic or writes a file. Means, intervals, errors and labels arrive as values; NaN, infinite
//! values and those beyond 1e100 are drawn as missing.

mod any;
mod axis;
mod bars;
mod canvas;
mod columns;
mod font;
mod frame;
mod heat;
mod legend;
mod lines;
mod marks;
mod page;
mod palette;
mod pdf;
mod plot;
mod png;
mod scatter;
mod stacked;
mod svg;
mod table;
mod text;
mod tikz;

pub use any::AnyChart;
pub use bars::{Bar, BarValue, GroupedBars};
pub use columns::{Group, Panel};
pub use frame::{Frame, Width};
pub use heat::{HeatCell, HeatMap, HeatPanel};
pub use lines::{LineChart, LinePanel, LineSeries};
pub use palette::{Hatch, LOOKS, Look, Series, look};
pub use scatter::{Scatter, ScatterPanel, ScatterSeries};
pub use stacked::{StackedBar, StackedBars};
pub use svg::escape_xml;
pub use table::{PaperTable, Room, RowGroup};
pub use tikz::escape_latex;

use canvas::Element;

/// Why a figure could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    #[error("the embedded font {font} cannot be cut down to the glyphs in use: {reason}")]
    Font { font: &'static str, reason: String },
    #[error("drawing the figure: {reason}")]
    Draw { reason: String },
}

/// A drawn figure; all documents hold the same picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Self-contained; may also be placed inline in HTML.
    pub svg: String,
    /// One page with its fonts embedded.
    pub pdf: Vec<u8>,
    /// Width and height in points.
    size: (f64, f64),
    elements: Vec<Element>,
}

/// Where a line of text stands, in points from the upper left corner: around its capitals, from its start to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct TextBox {
    pub text: String,
    /// Type size.
    pub size: f64,
    pub left: f64,
    pub right: f64,
    pub top: f64,
    pub bottom: f64,
}

impl Figure {
    fn new(size: (f64, f64), elements: Vec<Element>) -> Result<Self, FigureError> {
        Ok(Self { svg: svg::document(size, &elements), pdf: pdf::document(size, &elements)?, size, elements })
    }

    /// The SVG with a title, which browsers show and readers of screens read.
    pub fn titled_svg(&self, title: &str) -> String {
        let titled = format!(" role=\"img\">\n<title>{}</title>\n", escape_xml(title));
        self.svg.replacen(">\n", &titled, 1)
    }

    /// Width and height in points.
    pub fn size(&self) -> (f64, f64) {
        self.size
    }

    /// The picture in pixels.
    pub fn png(&self, dots_per_inch: f64) -> Vec<u8> {
        png::document(self.size, &self.elements, dots_per_inch)
    }

    /// A LaTeX document that draws the picture, with the document's font.
    pub fn tikz(&self) -> String {
        tikz::document(self.size, &self.elements)
    }

    /// All lines of text, in the order of drawing.
    pub fn texts(&self) -> Vec<TextBox> {
        let texts = self.elements.iter().filter_map(|element| match element {
            Element::Text(run) => Some(run.text_box()),
            _ => None,
        });
        texts.collect()
    }
}
