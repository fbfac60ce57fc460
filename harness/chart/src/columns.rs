//! Panels of groups of bars in rows on one y axis, with labels that fit below: what bars and stacked bars share.
//!
//! A row holds as many panels as leave every bar a legible width; a panel with more groups goes on in the next row. Groups
//! may have labels of several levels: neighbours whose outer labels are the same share one.

use std::ops::Range;

use crate::Bar;
use crate::axis::{Axis, Spacing};
use crate::canvas::Drawn;
use crate::page::{Area, Page, Point};
use crate::palette::{AXIS, stroke};
use crate::plot::{self, Axes, Plot};
use crate::text::{BASE, LEAST, SMALL, Type, wrapped};

const PANEL_GAP: f64 = 7.0;
const ROW_GAP: f64 = 7.0;
const LONGEST_LABEL: f64 = 94.0;
/// Height of panels with their labels that fits on a page beside a legend and a caption.
pub(crate) const MOST_HEIGHT: f64 = 560.0;
/// Lowest panel that is drawn where many rows have to share that.
const LEAST_PLOT: f64 = 56.0;
const LEAST_HEIGHT: f64 = 20.0;
/// Part of a group's width that its bars take.
const FILLED: f64 = 0.84;
/// Between a level of labels and the next.
const LEVEL_GAP: f64 = 3.5;

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
    /// Printed below, such as "1.2".
    pub label: String,
    /// Below that, from level to level, such as "16 GPUs". All groups of a chart have as many levels.
    pub over: Vec<String>,
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
    /// Height of each row of panels.
    pub(crate) height: f64,
    /// Width of the narrowest bar's place.
    pub(crate) slot: f64,
    bars_per_group: usize,
    rows: Vec<Vec<Segment>>,
    names: LabelFit,
    groups: LabelFit,
    /// Height of each outer level of labels.
    levels: Vec<f64>,
    /// Height of a row's titles.
    titles: f64,
    x_name: f64,
    /// Where the y axis' name stands.
    left: f64,
}

impl ColumnLayout {
    /// From the bars down to their groups' labels.
    fn group_drop(&self) -> f64 {
        if self.names.height > 0.0 { self.names.height + 9.0 } else { 4.0 }
    }

    /// From the bars down to below the labels of groups.
    fn inner_depth(&self) -> f64 {
        self.group_drop() + self.groups.height
    }

    /// From the bars down to below all labels.
    fn depth(&self) -> f64 {
        self.inner_depth() + self.levels.iter().map(|height| height + LEVEL_GAP).sum::<f64>()
    }

    /// Points that everything but the panels' boxes takes.
    fn around(&self) -> f64 {
        let rows = self.rows.len() as f64;
        3.0 + self.x_name + rows * (self.titles + self.depth()) + (rows - 1.0) * ROW_GAP
    }

    /// Height of the whole, with panels `plot` points high, or lower where the rows would not fit on a page.
    pub(crate) fn wanted_height(&self, plot: f64) -> f64 {
        let rows = self.rows.len().max(1) as f64;
        self.around() + rows * ((MOST_HEIGHT - self.around()) / rows).clamp(LEAST_PLOT, plot)
    }

    /// Whether the numbers of an axis fit left of the panels.
    pub(crate) fn has_room_for(&self, axis: &Axis, name: &str) -> bool {
        plot::y_axis_room(name, axis.ticks()) <= self.area.left - self.left + 0.01
    }
}

/// Groups of a panel that stand in one row, and where.
struct Segment {
    panel: usize,
    groups: Range<usize>,
    area: Area,
    /// (left, right) of each group.
    edges: Vec<(f64, f64)>,
}

impl<B: Column> Columns<'_, B> {
    /// `rough` is an axis with numbers as wide as those that will be drawn; panels whose bars' places would be narrower than
    /// `least_slot` go into further rows.
    pub(crate) fn lay_out(&self, inner: Area, rough: &Axis, least_slot: f64) -> ColumnLayout {
        let left = inner.left + plot::y_axis_room(self.y_label, rough.ticks());
        let area = Area { left, right: inner.right - 2.0, ..inner };
        let fullest = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.bars.len()).max();
        let bars_per_group = fullest.unwrap_or(0).max(self.series);
        let rows = self.segments(area, bars_per_group, least_slot);
        let segments = || rows.iter().flatten();
        let width = |segment: &Segment| segment.area.width() / segment.groups.len().max(1) as f64;
        let group_width = segments().map(width).fold(f64::INFINITY, f64::min);
        let (_, slot) = slots((0.0, group_width), bars_per_group);
        let group_labels = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.label.as_str());
        let titled = segments().map(|segment| (self.panels[segment.panel].title.as_str(), segment.area.width()));
        let mut layout = ColumnLayout {
            area,
            height: 0.0,
            slot,
            bars_per_group,
            names: LabelFit::choose(bars(self.panels).map(B::name), slot),
            groups: LabelFit::choose(group_labels, group_width),
            levels: self.levels(&rows),
            titles: plot::title_room(titled),
            x_name: if self.x_label.is_empty() { 2.0 } else { BASE + 5.0 },
            left: inner.left,
            rows: Vec::new(),
        };
        layout.rows = rows;
        layout.stack(inner);
        layout
    }

    /// The groups of all panels in rows, without their heights.
    fn segments(&self, area: Area, bars_per_group: usize, least_slot: f64) -> Vec<Vec<Segment>> {
        let most = area.width() * FILLED / (bars_per_group.max(1) as f64 * least_slot);
        let capacity = (most as usize).max(1);
        let mut rows: Vec<Vec<(usize, Range<usize>)>> = Vec::new();
        let mut used = capacity;
        for (panel, groups) in self.panels.iter().map(|panel| panel.groups.len()).enumerate() {
            let parts = groups.div_ceil(capacity).max(1);
            for part in 0..parts {
                let range = groups * part / parts..groups * (part + 1) / parts;
                let taken = range.len().max(1);
                match rows.last_mut() {
                    Some(row) if part == 0 && used + taken <= capacity => {
                        used += taken;
                        row.push((panel, range));
                    }
                    _ => {
                        used = taken;
                        rows.push(vec![(panel, range)]);
                    }
                }
            }
        }
        rows.into_iter().map(|row| places(area, row)).collect()
    }

    /// Height of each outer level; none where it has no label.
    fn levels(&self, rows: &[Vec<Segment>]) -> Vec<f64> {
        let count = self.panels.iter().flat_map(|p| &p.groups).map(|g| g.over.len()).max().unwrap_or(0);
        let lines = |level: usize| {
            let spans = rows.iter().flatten().flat_map(|segment| self.spans(segment, level));
            spans
                .map(|(label, (left, right))| wrapped(label, Type::of(SMALL), right - left - 3.0).len())
                .max()
                .unwrap_or(0)
        };
        (0..count).map(|level| lines(level).saturating_sub(1) as f64 * SMALL * LEADING + SMALL).collect()
    }

    /// Labels of an outer level, each once for neighbours that have it and all further ones in common.
    fn spans<'s>(&'s self, segment: &'s Segment, level: usize) -> Vec<(&'s str, (f64, f64))> {
        let groups = &self.panels[segment.panel].groups[segment.groups.clone()];
        let mut spans: Vec<(&[String], (f64, f64))> = Vec::new();
        for (group, (left, right)) in groups.iter().zip(&segment.edges) {
            let Some(labels) = group.over.get(level..).filter(|labels| !labels.is_empty()) else { continue };
            match spans.last_mut() {
                Some((last, edges)) if *last == labels => edges.1 = *right,
                _ => spans.push((labels, (*left, *right))),
            }
        }
        spans.into_iter().map(|(labels, edges)| (labels[0].as_str(), edges)).collect()
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
        for (i, segment) in layout.rows.iter().flat_map(|row| row.iter().enumerate()) {
            let (panel, area) = (&self.panels[segment.panel], segment.area);
            let x = Axis::new((area.left, area.right), Spacing::Linear);
            let plot = Plot::new(page, area, Axes { x, y: y.clone(), grid: true, y_numbers: i == 0 })?;
            behind(&plot, area)?;
            self.draw_labels(page, layout, panel, segment)?;
            if panel.groups.iter().flat_map(|g| &g.bars).all(B::is_blank) {
                plot.draw_no_data(page)?;
                continue;
            }
            for (group, edges) in panel.groups[segment.groups.clone()].iter().zip(&segment.edges) {
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
    fn draw_labels(&self, page: &Page<'_>, layout: &ColumnLayout, panel: &Panel<B>, segment: &Segment) -> Drawn {
        plot::draw_title(page, &panel.title, segment.area)?;
        let bottom = segment.area.bottom;
        let named = layout.names.height > 0.0;
        // Between groups, short marks that tie labels to bars; long ones where bars have names of their own.
        let length = if named { layout.inner_depth() } else { 2.5 };
        for (left, _) in segment.edges.iter().skip(1) {
            page.path(&[(*left, bottom), (*left, bottom + length)], stroke(AXIS, 0.4))?;
        }
        for (i, (group, edges)) in panel.groups[segment.groups.clone()].iter().zip(&segment.edges).enumerate() {
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
        self.draw_levels(page, layout, segment)
    }

    /// Outer labels, each below a line as wide as what it holds for.
    fn draw_levels(&self, page: &Page<'_>, layout: &ColumnLayout, segment: &Segment) -> Drawn {
        let mut top = segment.area.bottom + layout.inner_depth();
        for (level, height) in layout.levels.iter().enumerate() {
            for (label, (left, right)) in self.spans(segment, level) {
                let line = top + 1.2;
                page.path(&[(left + 1.5, line), (right - 1.5, line)], stroke(AXIS, 0.4))?;
                let kind = Type::of(SMALL).centered().hanging();
                for (row, text) in wrapped(label, Type::of(SMALL), right - left - 3.0).iter().enumerate() {
                    page.text(text, ((left + right) / 2.0, top + LEVEL_GAP + row as f64 * SMALL * LEADING), kind)?;
                }
            }
            top += height + LEVEL_GAP;
        }
        Ok(())
    }
}

impl ColumnLayout {
    /// Gives the rows equal heights, one below the other.
    fn stack(&mut self, inner: Area) {
        let rows = self.rows.len().max(1) as f64;
        self.height = ((inner.height() - self.around()) / rows).max(LEAST_HEIGHT);
        let mut top = inner.top + 3.0;
        let depth = self.depth();
        for row in &mut self.rows {
            top += self.titles;
            for segment in row {
                (segment.area.top, segment.area.bottom) = (top, top + self.height);
            }
            top += self.height + depth + ROW_GAP;
        }
        let ends = |edge: fn(&Area) -> f64| self.rows.iter().flatten().map(move |segment| edge(&segment.area));
        self.area.top = ends(|area| area.top).fold(f64::INFINITY, f64::min).min(inner.bottom);
        self.area.bottom = ends(|area| area.bottom).fold(self.area.top + LEAST_HEIGHT, f64::max);
        if self.rows.is_empty() {
            (self.area.top, self.area.bottom) =
                (inner.top + 3.0, (inner.bottom - self.x_name).max(inner.top + LEAST_HEIGHT));
        }
    }
}

/// Splits a row among the groups of its panels, all equally wide. A panel without groups counts as one.
fn places(area: Area, row: Vec<(usize, Range<usize>)>) -> Vec<Segment> {
    let gap = PANEL_GAP.min(area.width() * 0.25 / row.len().max(1) as f64);
    let groups: usize = row.iter().map(|(_, groups)| groups.len().max(1)).sum();
    let width = (area.width() - gap * row.len().saturating_sub(1) as f64) / groups.max(1) as f64;
    let mut left = area.left;
    let place = |(panel, groups): (usize, Range<usize>)| {
        let right = left + width * groups.len().max(1) as f64;
        let edges = (0..groups.len()).map(|i| (left + width * i as f64, left + width * (i + 1) as f64)).collect();
        let area = Area { left, right, ..area };
        left = right + gap;
        Segment { panel, groups, area, edges }
    };
    row.into_iter().map(place).collect()
}

/// Left edges and width of `count` bars centred in a group; few bars stay slim.
fn slots((left, right): (f64, f64), count: usize) -> (Vec<f64>, f64) {
    let count = count.max(1) as f64;
    let slot = ((right - left) * FILLED / count).min(22.0);
    let first = (left + right - slot * count) / 2.0;
    ((0..count as usize).map(|i| first + slot * i as f64).collect(), slot)
}

/// How labels fit below their slots: flat, smaller, in lines, upright, and at last only every so many.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LabelFit {
    size: f64,
    /// Length of a label's lines.
    room: f64,
    upright: bool,
    every: usize,
    /// Lines that fit beside each other where labels are upright.
    lines: usize,
    /// Height of the rows of labels; 0 where none has text.
    height: f64,
}

/// Sizes of flat labels, from the one that is liked best.
const FLAT: [f64; 2] = [SMALL, LEAST];
/// From one line of a label to the next, over its size.
const LEADING: f64 = 1.2;
/// Lines of a flat label, at most.
const MOST_LINES: usize = 3;

impl LabelFit {
    fn choose<'l>(labels: impl Iterator<Item = &'l str>, slot: f64) -> Self {
        let labels: Vec<&str> = labels.collect();
        let widest = Type::of(1.0).widest(labels.iter().copied());
        let flat = Self { size: SMALL, room: slot - 3.0, upright: false, every: 1, lines: 1, height: 0.0 };
        if widest == 0.0 {
            return flat;
        }
        if let Some(size) = FLAT.into_iter().find(|size| widest * size <= flat.room) {
            return Self { size, height: size, ..flat };
        }
        let in_lines = |size: f64| Some((size, all_in_lines(&labels, size, flat.room)?));
        if let Some((size, lines)) = FLAT.into_iter().find_map(in_lines) {
            return Self { size, lines, height: size * (1.0 + LEADING * (lines - 1) as f64), ..flat };
        }
        let size = LEAST;
        let lines = ((slot - 1.0) / (size * LEADING)).max(1.0) as usize;
        let every = (size * 0.8 / slot).ceil().max(1.0) as usize;
        let kind = Type::of(size);
        let broken = labels.iter().flat_map(|label| upright_lines(label, kind, lines));
        let height = broken.map(|line| kind.width(&line)).fold(0.0, f64::max);
        Self { size, room: LONGEST_LABEL, upright: true, every, lines, height }
    }

    /// Draws the `index`-th label, hanging from `top` and centred on `x`.
    fn draw(&self, page: &Page<'_>, index: usize, label: &str, (x, top): Point) -> Drawn {
        if !index.is_multiple_of(self.every) {
            return Ok(());
        }
        let (kind, leading) = (Type::of(self.size), self.size * LEADING);
        let texts = match self.upright {
            true => upright_lines(label, kind, self.lines),
            false => wrapped(label, kind, self.room),
        };
        let first = x - leading * (texts.len().saturating_sub(1)) as f64 / 2.0;
        texts.iter().enumerate().try_for_each(|(line, text)| match self.upright {
            true => page.text(text, (first + line as f64 * leading, top), kind.upright().right().middle()),
            false => page.text(text, (x, top + line as f64 * leading), kind.centered().hanging()),
        })
    }
}

/// A label in at most so many upright lines; what does not fit is cut.
fn upright_lines(label: &str, kind: Type, most: usize) -> Vec<String> {
    let lines = wrapped(label, kind, LONGEST_LABEL);
    match lines.len() <= most {
        true => lines,
        false if most == 1 => vec![kind.shortened(label, LONGEST_LABEL)],
        false => {
            let last = lines[most - 1..].join(" ");
            lines[..most - 1].iter().cloned().chain([kind.shortened(&last, LONGEST_LABEL)]).collect()
        }
    }
}

/// The most lines that one of the labels takes, where all fit without a word being cut.
fn all_in_lines(labels: &[&str], size: f64, room: f64) -> Option<usize> {
    let kind = Type::of(size);
    let lines = labels.iter().map(|label| {
        let count = wrapped(label, kind, room).len();
        (count <= MOST_LINES && kind.widest(label.split_whitespace()) <= room).then_some(count)
    });
    lines.collect::<Option<Vec<usize>>>()?.into_iter().max()
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
    fn a_label_of_several_words_takes_lines_before_it_turns() {
        let label = "2560x10240x16, 8192";
        let whole = Type::of(LEAST).width(label);
        let fit = |room| LabelFit::choose([label].into_iter(), room);
        assert!(!fit(whole + 4.0).upright && fit(whole + 4.0).height <= SMALL);
        assert!(!fit(whole * 0.8 + 3.0).upright && fit(whole * 0.8 + 3.0).height > LEAST * 2.0);
        assert!(fit(whole * 0.5).upright, "the first word does not fit");
        assert_eq!(upright_lines("one two", Type::of(LEAST), 1), ["one two"]);
    }

    struct Blank;

    impl Column for Blank {
        fn is_blank(&self) -> bool {
            false
        }
    }

    /// (panel, first group, left, right) of each segment, row by row.
    fn rows(groups: &[usize], least_slot: f64) -> Vec<Vec<(usize, usize, f64, f64)>> {
        let group = || Group { label: String::new(), over: Vec::new(), bars: vec![Blank, Blank] };
        let panel = |count: &usize| Panel { title: String::new(), groups: (0..*count).map(|_| group()).collect() };
        let panels: Vec<Panel<Blank>> = groups.iter().map(panel).collect();
        let columns = Columns { panels: &panels, series: 0, x_label: "", y_label: "" };
        let area = Area { left: 0.0, right: 107.0, top: 0.0, bottom: 50.0 };
        let place = |s: &Segment| (s.panel, s.groups.start, s.area.left, s.area.right);
        columns.segments(area, 2, least_slot).iter().map(|row| row.iter().map(place).collect()).collect()
    }

    #[test]
    fn panels_share_a_row_by_their_groups() {
        assert_eq!(rows(&[3, 1], 2.0), [[(0, 0, 0.0, 75.0), (1, 0, 82.0, 107.0)]]);
        let (lefts, slot) = slots((0.0, 300.0), 2);
        assert_eq!((lefts, slot), (vec![128.0, 150.0], 22.0));
    }

    #[test]
    fn what_would_be_too_narrow_goes_into_further_rows() {
        // Bars of 15 points: three groups of two in a row of 107.
        let found = rows(&[1, 2, 4], 14.0);
        let panels: Vec<Vec<(usize, usize)>> =
            found.iter().map(|row| row.iter().map(|(panel, first, ..)| (*panel, *first)).collect()).collect();
        assert_eq!(panels, [vec![(0, 0), (1, 0)], vec![(2, 0)], vec![(2, 2)]]);
        assert!(found.iter().all(|row| row.last().is_some_and(|(.., right)| (right - 107.0).abs() < 1e-9)));
    }
}
