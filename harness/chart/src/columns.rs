//! Panels of groups of bars side by side on one y axis, with labels that fit below: what bars and stacked bars share.

use crate::Bar;
use crate::axis::{Axis, Spacing};
use crate::canvas::Drawn;
use crate::page::{Area, Page, Point};
use crate::palette::{AXIS, stroke};
use crate::plot::{self, Axes, Plot};
use crate::text::{BASE, SMALL, Type, wrapped};

const PANEL_GAP: f64 = 7.0;
const LONGEST_LABEL: f64 = 70.0;
const LEAST_HEIGHT: f64 = 20.0;

/// A named set of groups.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Panel<B = Bar> {
    /// Printed above, such as "inky (A100)".
    pub title: String,
    /// From left to right.
    pub groups: Vec<Group<B>>,
}

/// Bars that are compared with each other.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Group<B = Bar> {
    /// Printed below, such as "16/1.2".
    pub label: String,
    /// From left to right.
    pub bars: Vec<B>,
}

pub(crate) fn bars<B>(panels: &[Panel<B>]) -> impl Iterator<Item = &B> {
    panels.iter().flat_map(|p| &p.groups).flat_map(|g| &g.bars)
}

/// A bar of a group.
pub(crate) trait Column {
    /// Printed below the bar.
    fn name(&self) -> &str {
        ""
    }

    /// Whether nothing is drawn for it.
    fn is_blank(&self) -> bool;
}

/// Bars in groups in panels, and the names of their axes.
pub(crate) struct Columns<'c, B> {
    pub(crate) panels: &'c [Panel<B>],
    /// Bars that every group has room for, at least.
    pub(crate) series: usize,
    pub(crate) x_label: &'c str,
    pub(crate) y_label: &'c str,
}

/// Where the panels lie, and what fits below them.
pub(crate) struct ColumnLayout {
    /// All panels.
    pub(crate) area: Area,
    /// Width of a bar's place.
    pub(crate) slot: f64,
    bars_per_group: usize,
    places: Vec<PanelPlace>,
    names: LabelFit,
    groups: LabelFit,
    /// Where the y axis' name stands.
    left: f64,
}

impl ColumnLayout {
    /// From the bars down to their groups' labels.
    fn group_drop(&self) -> f64 {
        if self.names.height > 0.0 { self.names.height + 9.0 } else { 4.0 }
    }

    /// From the bars down to below all labels.
    fn depth(&self) -> f64 {
        self.group_drop() + self.groups.height
    }
}

impl<B: Column> Columns<'_, B> {
    /// `rough` is an axis with numbers as wide as those that will be drawn.
    pub(crate) fn lay_out(&self, inner: Area, rough: &Axis) -> ColumnLayout {
        let groups: Vec<usize> = self.panels.iter().map(|p| p.groups.len()).collect();
        let (left, right) = (inner.left + plot::y_axis_room(self.y_label, rough.ticks()), inner.right - 2.0);
        let group_width = group_width(right - left, &groups);
        let fullest = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.bars.len()).max();
        let bars_per_group = fullest.unwrap_or(0).max(self.series);
        let (_, slot) = slots((0.0, group_width), bars_per_group);
        let group_labels = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.label.as_str());
        let titles = plot::title_room(self.panels.iter().map(|p| p.title.as_str()));
        let mut layout = ColumnLayout {
            area: Area { left, right, top: inner.top + 3.0 + titles, bottom: inner.bottom },
            slot,
            bars_per_group,
            places: Vec::new(),
            names: LabelFit::choose(bars(self.panels).map(B::name), slot),
            groups: LabelFit::choose(group_labels, group_width),
            left: inner.left,
        };
        let x_label = if self.x_label.is_empty() { 2.0 } else { BASE + 5.0 };
        let bottom = inner.bottom - layout.depth() - x_label;
        layout.area.bottom = bottom.max(layout.area.top + LEAST_HEIGHT);
        layout.places = places(layout.area, &groups);
        layout
    }

    /// Draws every panel on one y axis: `behind` first, across the whole panel; then `bar`, the n-th of its group between
    /// two edges. Their x values are points of the page.
    pub(crate) fn draw<'d>(
        &self,
        page: &Page<'d>,
        layout: &ColumnLayout,
        y: &Axis,
        behind: impl Fn(&Plot<'d>, Area) -> Drawn,
        bar: impl Fn(&Plot<'d>, usize, &B, (f64, f64)) -> Drawn,
    ) -> Drawn {
        plot::draw_y_name(page, self.y_label, layout.left, layout.area)?;
        plot::draw_x_name(page, self.x_label, layout.area.bottom + layout.depth() + 5.0, layout.area)?;
        if self.panels.is_empty() {
            return plot::draw_no_data(page, layout.area);
        }
        for (i, (panel, place)) in self.panels.iter().zip(&layout.places).enumerate() {
            let area = place.area;
            let x = Axis::new((area.left, area.right), Spacing::Linear);
            let plot = Plot::new(page, area, Axes { x, y: y.clone(), grid: true, y_numbers: i == 0 })?;
            behind(&plot, area)?;
            self.draw_labels(page, layout, panel, place)?;
            if panel.groups.iter().flat_map(|g| &g.bars).all(B::is_blank) {
                plot.draw_no_data(page)?;
                continue;
            }
            for (group, edges) in panel.groups.iter().zip(&place.groups) {
                let (lefts, slot) = slots(*edges, layout.bars_per_group);
                for (n, (one, left)) in group.bars.iter().zip(lefts).enumerate() {
                    bar(&plot, n, one, (left, left + slot))?;
                }
            }
            plot.draw_box(page)?;
        }
        Ok(())
    }

    /// Title, and below the panel the names of its bars and groups.
    fn draw_labels(&self, page: &Page<'_>, layout: &ColumnLayout, panel: &Panel<B>, place: &PanelPlace) -> Drawn {
        plot::draw_title(page, &panel.title, place.area)?;
        let bottom = place.area.bottom;
        let named = layout.names.height > 0.0;
        // Between groups, short marks that tie labels to bars; long ones where bars have names of their own.
        let length = if named { layout.depth() } else { 2.5 };
        for (left, _) in place.groups.iter().skip(1) {
            page.path(&[(*left, bottom), (*left, bottom + length)], stroke(AXIS, 0.4))?;
        }
        for (i, (group, edges)) in panel.groups.iter().zip(&place.groups).enumerate() {
            let middle = (edges.0 + edges.1) / 2.0;
            layout.groups.draw(page, i, &group.label, (middle, bottom + layout.group_drop()))?;
            if !named {
                continue;
            }
            let (lefts, slot) = slots(*edges, layout.bars_per_group);
            for (n, (bar, left)) in group.bars.iter().zip(lefts).enumerate() {
                layout.names.draw(page, n, bar.name(), (left + slot / 2.0, bottom + 4.0))?;
            }
        }
        Ok(())
    }
}

/// Where one panel lies and where its groups are, as (left, right).
struct PanelPlace {
    area: Area,
    groups: Vec<(f64, f64)>,
}

/// Splits the area among panels so that every group of every panel is equally wide. An empty panel counts as one group.
fn places(area: Area, groups_per_panel: &[usize]) -> Vec<PanelPlace> {
    let width = group_width(area.width(), groups_per_panel);
    let gap = panel_gap(area.width(), groups_per_panel.len());
    let mut left = area.left;
    let place = |&groups: &usize| {
        let right = left + width * groups.max(1) as f64;
        let edges = (0..groups).map(|i| (left + width * i as f64, left + width * (i + 1) as f64)).collect();
        let area = Area { left, right, ..area };
        left = right + gap;
        PanelPlace { area, groups: edges }
    };
    groups_per_panel.iter().map(place).collect()
}

/// Between panels; at most a quarter of `room` in all.
fn panel_gap(room: f64, panels: usize) -> f64 {
    PANEL_GAP.min(room * 0.25 / panels.max(1) as f64)
}

/// Width of a group when the panels share `room`.
fn group_width(room: f64, groups_per_panel: &[usize]) -> f64 {
    let groups: usize = groups_per_panel.iter().map(|g| (*g).max(1)).sum();
    let gaps = groups_per_panel.len().saturating_sub(1) as f64;
    (room - panel_gap(room, groups_per_panel.len()) * gaps) / groups.max(1) as f64
}

/// Left edges and width of `count` bars centred in a group; few bars stay slim.
fn slots((left, right): (f64, f64), count: usize) -> (Vec<f64>, f64) {
    let count = count.max(1) as f64;
    let slot = ((right - left) * 0.84 / count).min(22.0);
    let first = (left + right - slot * count) / 2.0;
    ((0..count as usize).map(|i| first + slot * i as f64).collect(), slot)
}

/// How labels fit below their slots: flat, smaller, in two lines, upright, and at last only every so many.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LabelFit {
    size: f64,
    /// Width of a flat label's lines.
    room: f64,
    upright: bool,
    every: usize,
    /// Height of the rows of labels; 0 where none has text.
    height: f64,
}

/// Sizes of flat labels, from the one that is liked best.
const FLAT: [f64; 4] = [SMALL, 7.0, 6.5, 6.0];
/// From one line of a label to the next, over its size.
const LEADING: f64 = 1.2;

impl LabelFit {
    fn choose<'l>(labels: impl Iterator<Item = &'l str>, slot: f64) -> Self {
        let labels: Vec<&str> = labels.collect();
        let widest = Type::of(1.0).widest(labels.iter().copied());
        let flat = Self { size: SMALL, room: slot - 3.0, upright: false, every: 1, height: 0.0 };
        if widest == 0.0 {
            return flat;
        }
        if let Some(size) = FLAT.into_iter().find(|size| widest * size <= flat.room) {
            return Self { size, height: size, ..flat };
        }
        if let Some(size) = FLAT.into_iter().find(|size| labels.iter().all(|l| in_two_lines(l, *size, flat.room))) {
            return Self { size, height: size * (1.0 + LEADING), ..flat };
        }
        let size = (slot * 0.95).clamp(5.5, 7.0);
        let every = (size / (slot * 0.95)).ceil().max(1.0) as usize;
        Self { size, upright: true, every, height: (widest * size).min(LONGEST_LABEL), ..flat }
    }

    /// Draws the `index`-th label, hanging from `top` and centred on `x`.
    fn draw(&self, page: &Page<'_>, index: usize, label: &str, (x, top): Point) -> Drawn {
        if !index.is_multiple_of(self.every) {
            return Ok(());
        }
        let kind = Type::of(self.size);
        match self.upright {
            true => page.text(&kind.shortened(label, LONGEST_LABEL), (x, top), kind.upright().right().middle()),
            false => wrapped(label, kind, self.room).iter().enumerate().try_for_each(|(row, line)| {
                page.text(line, (x, top + row as f64 * self.size * LEADING), kind.centered().hanging())
            }),
        }
    }
}

fn in_two_lines(label: &str, size: f64, room: f64) -> bool {
    let kind = Type::of(size);
    kind.widest(label.split_whitespace()) <= room && wrapped(label, kind, room).len() <= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_turn_and_thin_out_as_room_shrinks() {
        let check = |room, upright, every| {
            let fit = LabelFit::choose(["16/1.2", "16/inf"].into_iter(), room);
            assert_eq!((fit.upright, fit.every), (upright, every), "with {room} points");
        };
        check(40.0, false, 1);
        check(8.0, true, 1);
        check(3.0, true, 2);
    }

    #[test]
    fn a_label_of_several_words_takes_two_lines_before_it_turns() {
        let label = "2560x10240x16, 8192";
        let whole = Type::of(6.0).width(label);
        let fit = |room| LabelFit::choose([label].into_iter(), room);
        assert!(!fit(whole + 4.0).upright && fit(whole + 4.0).height <= SMALL);
        assert!(!fit(whole * 0.8 + 3.0).upright && fit(whole * 0.8 + 3.0).height > 6.0 * 2.0);
        assert!(fit(whole * 0.5).upright, "the first word does not fit");
    }

    #[test]
    fn panels_share_the_width_by_their_groups() {
        let area = Area { left: 0.0, right: 107.0, top: 0.0, bottom: 50.0 };
        let found: Vec<_> = places(area, &[3, 1]).iter().map(|p| (p.area.left, p.area.right)).collect();
        assert_eq!(found, [(0.0, 75.0), (82.0, 107.0)]);
        let (lefts, slot) = slots((0.0, 300.0), 2);
        assert_eq!((lefts, slot), (vec![128.0, 150.0], 22.0));
    }
}
