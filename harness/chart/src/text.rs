//! Lines of text: their size, weight and anchor, what fits into a room, and how numbers are written.

use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, FontDesc, FontFamily, FontStyle, FontTransform, RGBColor, TextStyle};

use crate::canvas::UNITS;
use crate::font::{FAMILY, Weight};
use crate::palette::TEXT;

/// Type size of axis labels, legend and panel titles, in points.
pub(crate) const BASE: f64 = 8.0;
/// Type size of tick labels.
pub(crate) const SMALL: f64 = 7.5;
/// Type size of labels beside data.
pub(crate) const FINE: f64 = LEAST;
/// No text is smaller: it could not be read in print.
pub(crate) const LEAST: f64 = 7.0;

/// How a line of text looks and which of its edges lies at its anchor. The top is that of capitals; the bottom is the
/// baseline. Alignment turns with upright text.
#[derive(Clone, Copy)]
pub(crate) struct Type {
    /// In points.
    pub(crate) size: f64,
    weight: Weight,
    color: RGBColor,
    horizontal: HPos,
    vertical: VPos,
    /// Reads upwards.
    pub(crate) upright: bool,
}

impl Type {
    /// Left-aligned on its baseline.
    pub(crate) fn of(size: f64) -> Self {
        let (horizontal, vertical) = (HPos::Left, VPos::Bottom);
        Self { size, weight: Weight::Regular, color: TEXT, horizontal, vertical, upright: false }
    }

    pub(crate) fn bold(self) -> Self {
        Self { weight: Weight::Bold, ..self }
    }

    pub(crate) fn color(self, color: RGBColor) -> Self {
        Self { color, ..self }
    }

    pub(crate) fn centered(self) -> Self {
        Self { horizontal: HPos::Center, ..self }
    }

    pub(crate) fn right(self) -> Self {
        Self { horizontal: HPos::Right, ..self }
    }

    pub(crate) fn hanging(self) -> Self {
        Self { vertical: VPos::Top, ..self }
    }

    pub(crate) fn middle(self) -> Self {
        Self { vertical: VPos::Center, ..self }
    }

    pub(crate) fn upright(self) -> Self {
        Self { upright: true, ..self }
    }

    /// As plotters knows it.
    pub(crate) fn style(self) -> TextStyle<'static> {
        let weight = if self.weight == Weight::Bold { FontStyle::Bold } else { FontStyle::Normal };
        let turn = if self.upright { FontTransform::Rotate270 } else { FontTransform::None };
        TextStyle {
            font: FontDesc::new(FontFamily::Name(FAMILY), self.size * UNITS, weight).transform(turn),
            color: self.color.to_backend_color(),
            pos: Pos::new(self.horizontal, self.vertical),
        }
    }

    /// Width of a line of text, in points.
    pub(crate) fn width(self, text: &str) -> f64 {
        self.weight.width(text, self.size)
    }

    /// Width of the widest line, in points.
    pub(crate) fn widest<'t>(self, texts: impl IntoIterator<Item = &'t str>) -> f64 {
        texts.into_iter().map(|text| self.width(text)).fold(0.0, f64::max)
    }

    /// The text, cut with an ellipsis where it is wider than `room`.
    pub(crate) fn shortened(self, text: &str, room: f64) -> String {
        if self.width(text) <= room {
            return text.to_owned();
        }
        let room = room - self.width("…");
        if room < 0.0 {
            return String::new();
        }
        let mut used = 0.0;
        let fits = |c: &char| {
            used += self.width(c.encode_utf8(&mut [0; 4]));
            used <= room
        };
        let kept: String = text.chars().take_while(fits).collect();
        format!("{}…", kept.trim_end())
    }

    /// The type reduced, to `least` points at the lowest, until the text fits into `room`.
    pub(crate) fn reduced(self, text: &str, room: f64, least: f64) -> Self {
        let share = room.max(0.0) / self.width(text).max(f64::MIN_POSITIVE);
        Self { size: (self.size * share.min(1.0)).max(least.min(self.size)), ..self }
    }
}

/// Words set into lines of at most `room` points; a longer word is cut.
pub(crate) fn wrapped(text: &str, kind: Type, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}"));
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) if kind.width(&longer) <= room => *line = longer,
            _ => lines.push(kind.shortened(word, room)),
        }
    }
    lines
}

/// How a number is written, with so many digits after the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notation {
    /// 1,234.5
    Fixed(usize),
    /// 1.2×10³
    Scientific(usize),
}

/// Every number in a picture: with a true minus sign, and a comma between thousands.
pub(crate) fn number(value: f64, notation: Notation) -> String {
    let text = match notation {
        Notation::Fixed(decimals) => grouped(&format!("{:.decimals$}", value.abs())),
        Notation::Scientific(_) if value == 0.0 => "0".to_owned(),
        Notation::Scientific(decimals) => power_of_ten(&format!("{:.decimals$e}", value.abs())),
    };
    let is_zero = !text.bytes().any(|b| (b'1'..=b'9').contains(&b));
    if value < 0.0 && !is_zero { format!("−{text}") } else { text }
}

/// A comma between the thousands of `1234.5`.
fn grouped(text: &str) -> String {
    let whole = text.split_once('.').map_or(text, |(whole, _)| whole).len();
    let mut out = String::with_capacity(text.len() + whole / 3);
    for (i, c) in text.chars().enumerate() {
        if i > 0 && i < whole && (whole - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `1.5e6` as 1.5×10⁶, and `1e6` as 10⁶.
fn power_of_ten(text: &str) -> String {
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let raised = |c: char| match c.to_digit(10) {
        Some(digit) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][digit as usize],
        None => '⁻',
    };
    let factor = if mantissa == "1" { String::new() } else { format!("{mantissa}×") };
    format!("{factor}10{}", exponent.chars().map(raised).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_like_print() {
        let check = |value, notation, expected: &str| assert_eq!(number(value, notation), expected);
        check(1234567.0, Notation::Fixed(0), "1,234,567");
        check(-1234.5, Notation::Fixed(1), "−1,234.5");
        check(999.0, Notation::Fixed(2), "999.00");
        check(-0.001, Notation::Fixed(1), "0.0");
        check(1e6, Notation::Scientific(0), "10⁶");
        check(-2.5e-7, Notation::Scientific(1), "−2.5×10⁻⁷");
        check(0.0, Notation::Scientific(1), "0");
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let kind = Type::of(BASE);
        let cut = kind.shortened("DeepSpeed-MoE", 30.0);
        assert!(cut.ends_with('…') && kind.width(&cut) <= 30.0, "{cut}");
        assert_eq!(kind.shortened("DeepSpeed-MoE", -1.0), "");
        let lines = wrapped("one two three", kind, kind.width("one two"));
        assert_eq!(lines, ["one two", "three"]);
    }
}
