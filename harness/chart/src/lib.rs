//! Publication figures from plain values: grouped bars, stacked bars, lines, scatter plots and maps of winners, as SVG and PDF.
//!
//! ```
//! use chart::{Bar, Group, GroupedBars, Panel, Series};
//!
//! let bars = vec![Bar::value(1.0), Bar { label: Some("1.88×".into()), ..Bar::interval(1.88, 1.80, 1.95) }];
//! let chart = GroupedBars {
//!     y_label: "Speedup over FastMoE".into(),
//!     series: Series::numbered(["FastMoE", "SmartMoE"]),
//!     panels: vec![Panel { title: "inky".into(), groups: vec![Group { label: "16 GPUs".into(), bars }] }],
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
//! the panels, and the backend that writes both documents at once (plotters' SVG backend rounds to whole pixels, and it has
//! none for PDF).
//!
//! Text is measured with the DejaVu Sans that is compiled in, and that font is embedded (as a subset) in the PDF, so the
//! bytes depend on the data alone: no installed fonts, no clock, no hash order.
//!
//! Nothing here computes a statistic or writes a file. Means, intervals, errors and labels arrive as values; NaN, infinite
//! values and those beyond 1e100 are drawn as missing.

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
mod scatter;
mod stacked;
mod svg;
mod text;

pub use bars::{Bar, BarValue, GroupedBars};
pub use columns::{Group, Panel};
pub use frame::{Frame, Width};
pub use heat::{HeatCell, HeatMap, HeatPanel};
pub use lines::{LineChart, LinePanel, LineSeries};
pub use palette::{Hatch, Look, Series, look};
pub use scatter::{Scatter, ScatterPanel, ScatterSeries};
pub use stacked::{StackedBar, StackedBars};
pub use svg::escape_xml;

/// Why a figure could not be drawn.
#[derive(Debug, thiserror::Error)]
pub enum FigureError {
    #[error("the embedded font {font} cannot be cut down to the glyphs in use: {reason}")]
    Font { font: &'static str, reason: String },
    #[error("drawing the figure: {reason}")]
    Draw { reason: String },
}

/// A drawn figure; both documents hold the same picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// Self-contained; may also be placed inline in HTML.
    pub svg: String,
    /// One page with its fonts embedded.
    pub pdf: Vec<u8>,
}
