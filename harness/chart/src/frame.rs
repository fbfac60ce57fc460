//! What surrounds the panels of every chart: size, title and legend.

use crate::canvas::Drawn;
use crate::legend::{Entry, Legend};
use crate::page::{Area, Page, on_page};
use crate::text::{BASE, Type};
use crate::{Figure, FigureError};

/// Width of a figure in a two-column paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Width {
    /// Across both columns, 7 in.
    #[default]
    Page,
    /// One column, 3.33 in.
    Column,
}

impl Width {
    pub(crate) fn points(self) -> f64 {
        match self {
            Self::Page => 504.0,
            Self::Column => 240.0,
        }
    }
}

/// What every chart has around its panels.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frame {
    pub width: Width,
    /// Height of the whole figure in points; None lets the chart choose, and what is too low to read is raised.
    pub height: Option<f64>,
    /// Printed inside, above the legend. Papers put it in the caption, so it is empty by default.
    pub title: String,
}

/// A kind of chart: panels inside a [`Frame`].
pub(crate) trait Chart {
    fn frame(&self) -> &Frame;
    fn legend(&self) -> Vec<Entry>;
    /// Points that the panels with their axes want, so many points wide.
    fn height(&self, width: f64) -> f64;
    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn;
}

/// Lays a chart out and draws it.
pub(crate) fn draw(chart: &impl Chart) -> Result<Figure, FigureError> {
    let frame = chart.frame();
    let wanted = chart.height(frame.width.points() - 2.0 * MARGIN);
    let layout = PageLayout::new(frame, chart.legend(), wanted);
    on_page((frame.width.points(), layout.height), |page| {
        layout.draw(page, frame)?;
        chart.draw_panels(page, layout.inner)
    })
}

const MARGIN: f64 = 3.0;

struct PageLayout {
    legend: Legend,
    /// Below the legend.
    inner: Area,
    height: f64,
}

impl PageLayout {
    /// `wanted` is the height of the panels if the frame sets none; a set height that leaves less than 60 % of it is raised.
    fn new(frame: &Frame, legend: Vec<Entry>, wanted: f64) -> Self {
        let width = frame.width.points();
        let legend = Legend::new(legend, width - 2.0 * MARGIN);
        let title = if frame.title.is_empty() { 0.0 } else { BASE + 5.0 };
        let top = MARGIN + title + legend.height();
        let set = frame.height.filter(|height| height.is_finite());
        let height = set.unwrap_or(top + wanted + MARGIN).max(top + MARGIN + wanted * 0.6);
        let inner = Area { left: MARGIN, right: width - MARGIN, top, bottom: height - MARGIN };
        Self { legend, inner, height }
    }

    fn draw(&self, page: &Page<'_>, frame: &Frame) -> Drawn {
        let middle = frame.width.points() / 2.0;
        let title = Type::of(BASE).bold().centered().hanging();
        page.text_within(&frame.title, (middle, MARGIN), title, self.inner.width())?;
        self.legend.draw(page, (middle, self.inner.top - self.legend.height()))
    }
}
