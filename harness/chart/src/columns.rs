//! Panels of groups side by side on one y axis, and labels that fit below them: what bars and stacked bars share.

use super::FigureError;
use super::axis::{Scale, Tick};
use super::font::{Fonts, Weight};
use super::frame::{self, BASE, SMALL};
use super::sheet::{Area, Pen, Point, Sheet, Type};

const PANEL_GAP: f64 = 7.0;
const LONGEST_LABEL: f64 = 70.0;

/// Where one panel lies and where its groups are, as (left, right).
pub(super) struct Place {
    pub(super) plot: Area,
    pub(super) groups: Vec<(f64, f64)>,
}

/// Splits the area among panels so that every group of every panel is equally wide. An empty panel counts as one group.
pub(super) fn places(area: Area, groups_per_panel: &[usize]) -> Vec<Place> {
    let width = group_width(area.width(), groups_per_panel);
    let mut left = area.left;
    let place = |&groups: &usize| {
        let right = left + width * groups.max(1) as f64;
        let edges = (0..groups).map(|i| (left + width * i as f64, left + width * (i + 1) as f64)).collect();
        let plot = Area { left, right, ..area };
        left = right + PANEL_GAP;
        Place { plot, groups: edges }
    };
    groups_per_panel.iter().map(place).collect()
}

/// Width of a group when the panels share `room`.
pub(super) fn group_width(room: f64, groups_per_panel: &[usize]) -> f64 {
    let groups: usize = groups_per_panel.iter().map(|g| (*g).max(1)).sum();
    (room - PANEL_GAP * groups_per_panel.len().saturating_sub(1) as f64) / groups.max(1) as f64
}

/// Left edges and width of `count` bars centred in a group; few bars stay slim.
pub(super) fn slots((left, right): (f64, f64), count: usize) -> (Vec<f64>, f64) {
    let count = count.max(1) as f64;
    let slot = ((right - left) * 0.84 / count).min(22.0);
    let first = (left + right - slot * count) / 2.0;
    ((0..count as usize).map(|i| first + slot * i as f64).collect(), slot)
}

/// How labels fit below their slots: flat, smaller, upright, and at last only every so many.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LabelFit {
    size: f64,
    upright: bool,
    every: usize,
    /// Height of the row of labels.
    pub(super) height: f64,
}

impl LabelFit {
    pub(super) fn choose<'l>(fonts: &Fonts, labels: impl Iterator<Item = &'l str>, room: f64) -> Self {
        let widest = labels.map(|l| fonts.width(l, 1.0, Weight::Regular)).fold(0.0, f64::max);
        if widest == 0.0 {
            return Self { size: SMALL, upright: false, every: 1, height: 0.0 };
        }
        if let Some(size) = [SMALL, 7.0, 6.5, 6.0].into_iter().find(|s| widest * s <= room - 3.0) {
            return Self { size, upright: false, every: 1, height: size };
        }
        let size = (room * 0.95).clamp(5.5, 7.0);
        let every = (size / (room * 0.95)).ceil().max(1.0) as usize;
        Self { size, upright: true, every, height: (widest * size).min(LONGEST_LABEL) }
    }

    /// Draws the `index`-th label, hanging from `top` and centred on `x`.
    pub(super) fn draw(
        &self,
        sheet: &Sheet<'_>,
        index: usize,
        label: &str,
        (x, top): Point,
    ) -> Result<(), FigureError> {
        if !index.is_multiple_of(self.every) {
            return Ok(());
        }
        let kind = Type::of(self.size);
        if self.upright {
            let label = sheet.shortened(label, kind, LONGEST_LABEL);
            return sheet.text(&label, (x, top), kind.upright().right().middle());
        }
        sheet.text(label, (x, top), kind.centered().hanging())
    }
}

/// Height of the row of panel titles; none where no panel has one.
pub(super) fn title_room<'l>(mut titles: impl Iterator<Item = &'l str>) -> f64 {
    if titles.any(|t| !t.is_empty()) { BASE + 4.0 } else { 0.0 }
}

/// Names a panel above its box.
pub(super) fn draw_title(sheet: &Sheet<'_>, title: &str, plot: Area) -> Result<(), FigureError> {
    let anchor = (plot.center().0, plot.top - 3.5);
    sheet.text_within(title, anchor, Type::of(BASE).bold().centered(), plot.width() + PANEL_GAP - 4.0)
}

/// Grid and box of every panel; numbers at the first.
pub(super) fn draw_axes(sheet: &Sheet<'_>, places: &[Place], scale: &Scale, ticks: &[Tick]) -> Result<(), FigureError> {
    for (i, place) in places.iter().enumerate() {
        frame::draw_y_grid(sheet, place.plot, scale, ticks)?;
        if i == 0 {
            frame::draw_y_ticks(sheet, place.plot, scale, ticks)?;
        }
    }
    Ok(())
}

/// Short marks between groups, which tie labels to their bars.
pub(super) fn draw_dividers(sheet: &Sheet<'_>, place: &Place, length: f64) -> Result<(), FigureError> {
    let pen = Pen { width: 0.4, ..frame::AXIS_PEN };
    for (left, _) in place.groups.iter().skip(1) {
        sheet.path(&[(*left, place.plot.bottom), (*left, place.plot.bottom + length)], pen)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_turn_and_thin_out_as_room_shrinks() -> Result<(), FigureError> {
        let fonts = Fonts::load()?;
        let check = |room, upright, every| {
            let fit = LabelFit::choose(&fonts, ["16/1.2", "16/inf"].into_iter(), room);
            assert_eq!((fit.upright, fit.every), (upright, every), "with {room} points");
        };
        check(40.0, false, 1);
        check(8.0, true, 1);
        check(3.0, true, 2);
        Ok(())
    }

    #[test]
    fn panels_share_the_width_by_their_groups() {
        let area = Area { left: 0.0, right: 107.0, top: 0.0, bottom: 50.0 };
        let found: Vec<_> = places(area, &[3, 1]).iter().map(|p| (p.plot.left, p.plot.right)).collect();
        assert_eq!(found, [(0.0, 75.0), (82.0, 107.0)]);
        let (lefts, slot) = slots((0.0, 300.0), 2);
        assert_eq!((lefts, slot), (vec![128.0, 150.0], 22.0));
    }
}
