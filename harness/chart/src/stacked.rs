//! Stacked bars: where an iteration's time goes, one bar a system.

use crate::axis::{Axis, Spacing, Tick, extent};
use crate::canvas::Drawn;
use crate::columns::{Column, ColumnLayout, Columns, MOST_HEIGHT, Panel, bars};
use crate::frame::{self, Chart, Frame};
use crate::legend::{self, Swatch};
use crate::page::{Area, Page};
use crate::palette::{AXIS, Series, ink};
use crate::plot::Plot;
use crate::text::{FINE, Notation, Type, number};
use crate::{Figure, FigureError, marks};

#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackedBars {
    pub frame: Frame,
    /// Name and unit of the values.
    pub y_label: String,
    /// Name of what the group labels say.
    pub x_label: String,
    /// What the bars are made of, from the bottom up.
    pub parts: Vec<Series>,
    /// Side by side, on one y axis.
    pub panels: Vec<Panel<StackedBar>>,
    /// Show each part as its share of the bar, in percent, instead of its value.
    pub shares: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct StackedBar {
    /// Printed below, such as the system's name.
    pub label: String,
    /// One value for each part, in order; none of them below zero. What is not finite or below zero is left out.
    pub values: Vec<f64>,
    /// Printed above, such as the total.
    pub note: String,
}

impl StackedBar {
    fn drawn(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let values = self.values.iter().copied().enumerate();
        values.filter(|(_, v)| Spacing::Linear.accepts(*v) && *v > 0.0)
    }

    fn total(&self) -> f64 {
        self.drawn().map(|(_, v)| v).sum()
    }
}

impl Column for StackedBar {
    fn name(&self) -> &str {
        &self.label
    }

    fn is_blank(&self) -> bool {
        self.total() <= 0.0
    }
}

impl StackedBars {
    /// Lays the chart out and draws it.
    ///
    /// # Errors
    /// [`FigureError`] when the compiled-in font or the drawing library fails; never because of the data.
    pub fn draw(&self) -> Result<Figure, FigureError> {
        frame::draw(self)
    }

    fn columns(&self) -> Columns<'_, StackedBar> {
        let (x_label, y_label) = (self.x_label.as_str(), self.y_label.as_str());
        Columns { panels: &self.panels, series: 0, x_label, y_label }
    }

    fn range(&self, headroom: f64) -> (f64, f64) {
        if self.shares {
            return (0.0, headroom);
        }
        let highest = extent(bars(&self.panels).map(StackedBar::total), Spacing::Linear).map_or(0.0, |(_, high)| high);
        (0.0, if highest > 0.0 { highest * headroom } else { 1.0 })
    }

    fn axis(&self, headroom: f64, ticks: usize) -> Axis {
        let (low, high) = self.range(headroom);
        let axis = Axis::new((low, high), Spacing::Linear);
        if !self.shares {
            return axis.ticked(ticks);
        }
        let percent = Axis::new((0.0, (high * 100.0).min(100.0)), Spacing::Linear).ticked(ticks);
        let tick = |t: &Tick| Tick { value: t.value / 100.0, label: format!("{} %", t.label) };
        axis.with_ticks(percent.ticks().iter().map(tick).collect())
    }

    /// Room for notes above the highest bar.
    fn headroom(&self, height: f64, notes: &Notes) -> f64 {
        match notes.reach > 0.0 {
            true => height / (height - notes.reach - 2.0 * NOTE_GAP),
            false if self.shares => 1.0,
            false => 1.04,
        }
    }

    /// Notes of all bars, flat where the widest fits above its bar.
    fn notes(&self, slot: f64, height: f64) -> Notes {
        let kind = Type::of(FINE);
        let widest = kind.widest(bars(&self.panels).map(|bar| bar.note.as_str()));
        let upright = widest > slot - 1.0;
        let longest = if upright { height * 0.4 } else { slot };
        let reach = if upright { widest.min(longest) } else { widest.min(FINE) };
        Notes { kind: if upright { kind.upright() } else { kind }, longest, reach }
    }

    fn draw_bar(&self, plot: &Plot<'_>, bar: &StackedBar, notes: &Notes, (left, right): (f64, f64)) -> Drawn {
        let total = bar.total();
        let unit = if self.shares { total } else { 1.0 };
        let inset = (right - left) * 0.08;
        let mut below = 0.0;
        for (i, value) in bar.drawn() {
            let part = [(left + inset, below / unit), (right - inset, (below + value) / unit)];
            let ink = ink(self.parts.get(i).map_or(i, |p| p.ink));
            plot.draw(&marks::filled(part, ink))?;
            if self.shares {
                let share = number(value / total * 100.0, Notation::Fixed(0));
                plot.draw(&marks::label_inside(part, &share, FINE, ink))?;
            }
            below += value;
        }
        let top = ((left + right) / 2.0, below / unit);
        let note = notes.kind.shortened(&bar.note, notes.longest);
        plot.draw(&marks::label_above(top, (top, 0.0), NOTE_GAP, &note, notes.kind.color(AXIS)))
    }
}

/// How notes stand above bars.
struct Notes {
    kind: Type,
    /// What is longer is cut, in points.
    longest: f64,
    /// Points that they take upwards.
    reach: f64,
}

/// Between a bar and its note, in points.
const NOTE_GAP: f64 = 2.5;
/// Height of a row's panels, in points.
const PLOT: f64 = 118.0;
/// Width of a bar's place below which the names of bars cannot be read.
const LEAST_SLOT: f64 = 8.0;

impl Chart for StackedBars {
    fn frame(&self) -> &Frame {
        &self.frame
    }

    fn legend(&self) -> Vec<legend::Entry> {
        legend::entries(self.parts.iter().map(|p| (Swatch::Fill(p.ink), p.name.as_str())))
    }

    fn height(&self, width: f64) -> f64 {
        let inner = Area { left: 0.0, right: width, top: 0.0, bottom: MOST_HEIGHT };
        self.columns().lay_out(inner, &self.axis(1.2, 5), LEAST_SLOT).wanted_height(PLOT)
    }

    fn draw_panels(&self, page: &Page<'_>, inner: Area) -> Drawn {
        let columns = self.columns();
        let drawn = |layout: &ColumnLayout| {
            let notes = self.notes(layout.slot, layout.height);
            let y = self.axis(self.headroom(layout.height, &notes), (layout.height / 15.0) as usize);
            (notes, y)
        };
        // Numbers may be wider than those of the first guess.
        let (_, guess) = drawn(&columns.lay_out(inner, &self.axis(1.2, 5), LEAST_SLOT));
        let layout = columns.lay_out(inner, &guess, LEAST_SLOT);
        let (notes, y) = drawn(&layout);
        columns.draw(
            page,
            &layout,
            &y,
            |_, _| Ok(()),
            |plot, _, bar, edges| match bar.is_blank() {
                true => Ok(()),
                false => self.draw_bar(plot, bar, &notes, edges),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Group;

    fn sample(shares: bool) -> StackedBars {
        let bar = |label: &str, values: Vec<f64>| StackedBar { label: label.into(), values, note: String::new() };
        let bars = vec![bar("FastMoE", vec![30.0, 70.0]), bar("Tutel", vec![f64::NAN, 50.0]), bar("none", vec![])];
        let groups = vec![Group { label: "32 GPUs".into(), bars, ..Group::default() }];
        StackedBars {
            y_label: "Time".into(),
            parts: Series::numbered(["Experts", "All-to-all"]),
            panels: vec![Panel { title: "inky".into(), groups }],
            shares,
            ..StackedBars::default()
        }
    }

    #[test]
    fn every_label_is_in_the_picture() -> Result<(), FigureError> {
        let svg = sample(true).draw()?.svg;
        for label in ["Experts", "All-to-all", "FastMoE", "Tutel", "32 GPUs", "inky", "100 %", "70"] {
            assert!(svg.contains(&format!(">{label}<")), "{label} is not in the picture");
        }
        assert!(!svg.contains("NaN"));
        assert_eq!(svg, sample(true).draw()?.svg);
        Ok(())
    }

    #[test]
    fn no_note_hides_nothing() -> Result<(), FigureError> {
        let mut chart = sample(false);
        let grounds = |chart: &StackedBars| Ok::<_, FigureError>(chart.draw()?.svg.matches("fill=\"#ffffff\"").count());
        assert_eq!(grounds(&chart)?, 1, "the page");
        chart.panels[0].groups[0].bars[0].note = "OOM".to_owned();
        assert_eq!(grounds(&chart)?, 2, "and below the note");
        Ok(())
    }

    #[test]
    fn values_reach_the_highest_total() {
        assert_eq!(sample(false).range(1.0), (0.0, 100.0));
        assert_eq!(StackedBars::default().range(1.0), (0.0, 1.0));
    }

    #[test]
    fn nothing_to_draw_is_said() -> Result<(), FigureError> {
        assert!(StackedBars::default().draw()?.svg.contains(">no data<"));
        Ok(())
    }
}
