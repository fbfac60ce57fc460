//! One panel: a plotters chart with its grid, axes and numbers, on which data are drawn by their values.
//!
//! plotters maps values to places, draws grid, tick marks and numbers, and keeps points inside the panel. Where a panel
//! lies and what is written around it is computed here and by the charts: plotters' own layout lets labels overlap.

use plotters::chart::{ChartBuilder, ChartContext, LabelAreaPosition};
use plotters::coord::cartesian::Cartesian2d;
use plotters::element::{Drawable, PathElement, PointCollection};

use crate::axis::{Axis, Tick};
use crate::canvas::{Canvas, DrawingError, Drawn, units};
use crate::marks;
use crate::page::{Area, Page};
use crate::palette::{AXIS_WIDTH, GRID, Ink, MUTED, axis_line, stroke};
use crate::text::{BASE, SMALL, Type, wrapped};

/// Length of a tick mark in points; plotters sets numbers twice as far from the axis.
const TICK: f64 = 2.0;
/// Points beside an axis that plotters may draw tick marks in.
const TICK_ROOM: f64 = 10.0;

/// The axes of a panel. An x axis with ticks has its numbers below the panel.
pub(crate) struct Axes {
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    /// Lines behind the data at the ticks of the y axis.
    pub(crate) grid: bool,
    /// Numbers left of the panel.
    pub(crate) y_numbers: bool,
}

/// A panel whose axes are drawn and whose data are drawn next.
pub(crate) struct Plot<'d> {
    chart: ChartContext<'d, Canvas<'d>, Cartesian2d<Axis, Axis>>,
    area: Area,
    /// Sides on which plotters has drawn numbers, and therefore a line.
    left: bool,
    below: bool,
}

impl<'d> Plot<'d> {
    pub(crate) fn new(page: &Page<'d>, area: Area, axes: Axes) -> Result<Self, DrawingError> {
        let (left, below) = (axes.y_numbers, !axes.x.ticks().is_empty());
        let room = |numbered| if numbered { TICK_ROOM } else { 0.0 };
        let with_ticks = page.part(Area { left: area.left - room(left), bottom: area.bottom + room(below), ..area });
        let mut chart = ChartBuilder::on(&with_ticks)
            .set_label_area_size(LabelAreaPosition::Left, units(room(left)))
            .set_label_area_size(LabelAreaPosition::Bottom, units(room(below)))
            .build_cartesian_2d(axes.x.legible(area.width(), Type::of(SMALL)), axes.y)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().bold_line_style(stroke(GRID, 0.4));
        if !axes.grid {
            mesh.disable_y_mesh();
        }
        mesh.axis_style(axis_line()).label_style(Type::of(SMALL).style()).set_all_tick_mark_size(units(TICK)).draw()?;
        Ok(Self { chart, area, left, below })
    }

    /// The rest of the box around the data, over them.
    pub(crate) fn draw_box(&self, page: &Page<'_>) -> Drawn {
        let Area { left, right, top, bottom } = self.area;
        // Half a line further, so that the corners are filled.
        let end = AXIS_WIDTH / 2.0;
        let sides = [
            (true, [(left - end, top), (right + end, top)]),
            (true, [(right, top - end), (right, bottom + end)]),
            (!self.below, [(left - end, bottom), (right + end, bottom)]),
            (!self.left, [(left, top - end), (left, bottom + end)]),
        ];
        sides.iter().filter(|(open, _)| *open).try_for_each(|(_, side)| page.path(side, axis_line()))
    }

    /// The box, and in it that it is empty.
    pub(crate) fn draw_no_data(&self, page: &Page<'_>) -> Drawn {
        self.draw_box(page)?;
        say_no_data(page, self.area)
    }

    /// Draws an element whose points are values.
    pub(crate) fn draw<'e, E>(&self, element: &'e E) -> Drawn
    where
        &'e E: PointCollection<'e, (f64, f64)>,
        E: Drawable<Canvas<'d>>,
    {
        self.chart.plotting_area().draw(element)
    }

    /// A line in a series' colour and dash.
    pub(crate) fn line(&self, points: &[(f64, f64)], ink: Ink) -> Drawn {
        let style = stroke(ink.color, 1.1);
        match ink.dash {
            None => self.draw(&PathElement::new(points, style)),
            Some(dash) => self.draw(&marks::dashed(points, dash, style)),
        }
    }
}

/// Room left of a panel: the axis' name, its numbers, its tick marks.
pub(crate) fn y_axis_room(name: &str, ticks: &[Tick]) -> f64 {
    let numbers = Type::of(SMALL).widest(ticks.iter().map(|t| t.label.as_str()));
    numbers + 2.0 * TICK + 1.0 + y_name_room(name)
}

/// Width of a y axis' name; none where it has none.
pub(crate) fn y_name_room(name: &str) -> f64 {
    let lines = y_name_lines(name).len();
    if lines == 0 { 0.0 } else { lines as f64 * LINE + 1.0 }
}

/// From one line of an axis' name or a title to the next.
const LINE: f64 = BASE + 2.0;
/// Length of a line of a y axis' name: little more than most panels are high.
const NAME_LENGTH: f64 = 108.0;

fn y_name_lines(name: &str) -> Vec<String> {
    wrapped(name, Type::of(BASE), NAME_LENGTH)
}

/// Room below a panel: tick marks, numbers, the axis' name.
pub(crate) fn x_axis_room(name: &str) -> f64 {
    2.0 * TICK + SMALL + 0.5 + if name.is_empty() { 0.0 } else { BASE + 4.0 }
}

/// The y axis' name, reading upwards at `left`, centred on the panel.
pub(crate) fn draw_y_name(page: &Page<'_>, name: &str, left: f64, area: Area) -> Drawn {
    let kind = Type::of(BASE).upright().centered().hanging();
    let lines = y_name_lines(name);
    lines
        .iter()
        .enumerate()
        .try_for_each(|(line, text)| page.text(text, (left + 1.0 + line as f64 * LINE, area.center().1), kind))
}

/// The x axis' name, its capitals hanging from `top`.
pub(crate) fn draw_x_name(page: &Page<'_>, name: &str, top: f64, area: Area) -> Drawn {
    page.text_within(name, (area.center().0, top), Type::of(BASE).centered().hanging(), area.width() + 30.0)
}

/// Height of a row of panel titles, each with the width of its panel; none where no panel has one.
pub(crate) fn title_room<'t>(titles: impl Iterator<Item = (&'t str, f64)>) -> f64 {
    let lines = titles.map(|(title, width)| title_lines(title, width).len()).max().unwrap_or(0);
    if lines == 0 { 0.0 } else { lines as f64 * LINE + 2.0 }
}

fn title_lines(title: &str, width: f64) -> Vec<String> {
    wrapped(title, Type::of(BASE).bold(), width + 3.0)
}

/// Names a panel above its box.
pub(crate) fn draw_title(page: &Page<'_>, title: &str, area: Area) -> Drawn {
    let lines = title_lines(title, area.width());
    let kind = Type::of(BASE).bold().centered();
    lines
        .iter()
        .rev()
        .enumerate()
        .try_for_each(|(line, text)| page.text(text, (area.center().0, area.top - 3.5 - line as f64 * LINE), kind))
}

/// An empty box that says so, in place of a plot.
pub(crate) fn draw_no_data(page: &Page<'_>, area: Area) -> Drawn {
    page.outline(area, axis_line())?;
    say_no_data(page, area)
}

fn say_no_data(page: &Page<'_>, area: Area) -> Drawn {
    page.text_within("no data", area.center(), Type::of(BASE).color(MUTED).centered().middle(), area.width())
}
