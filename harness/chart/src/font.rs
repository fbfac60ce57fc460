//! The compiled-in DejaVu Sans: widths of text for the layout, glyphs for the PDF.

use std::sync::LazyLock;

use ttf_parser::Face;

/// What an SVG viewer may use, best first. Verdana is as wide as DejaVu Sans and is what other systems have.
pub(crate) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// Height of capitals and digits, as a share of the type size.
pub(crate) const CAP_HEIGHT: f64 = 0.729;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weight {
    Regular,
    Bold,
}

static REGULAR: LazyLock<Face<'static>> = LazyLock::new(|| parsed(dejavu::sans::regular()));
static BOLD: LazyLock<Face<'static>> = LazyLock::new(|| parsed(dejavu::sans::bold()));

fn parsed(bytes: &'static [u8]) -> Face<'static> {
    Face::parse(bytes, 0).expect("the compiled-in font parses on every machine or on none, and a test measures with it")
}

impl Weight {
    pub(crate) fn postscript_name(self) -> &'static str {
        match self {
            Self::Regular => "DejaVuSans",
            Self::Bold => "DejaVuSans-Bold",
        }
    }

    pub(crate) fn bytes(self) -> &'static [u8] {
        match self {
            Self::Regular => dejavu::sans::regular(),
            Self::Bold => dejavu::sans::bold(),
        }
    }

    pub(crate) fn face(self) -> &'static Face<'static> {
        match self {
            Self::Regular => &REGULAR,
            Self::Bold => &BOLD,
        }
    }

    /// Width of a line of text in the unit of `size`. Without kerning, which in DejaVu Sans only narrows.
    pub(crate) fn width(self, text: &str, size: f64) -> f64 {
        text.chars().map(|c| self.advance(c)).sum::<f64>() * size
    }

    /// Advance of one character as a share of the type size; a character that the font lacks is as wide as its box.
    fn advance(self, character: char) -> f64 {
        let face = self.face();
        let glyph = face.glyph_index(character).unwrap_or_default();
        f64::from(face.glyph_hor_advance(glyph).unwrap_or(0)) / f64::from(face.units_per_em())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_have_one_width_and_bold_is_wider() {
        assert_eq!(Weight::Regular.width("1111", 10.0), Weight::Regular.width("8888", 10.0));
        assert!(Weight::Bold.width("FastMoE", 10.0) > Weight::Regular.width("FastMoE", 10.0));
        assert!((Weight::Regular.width("0", 10.0) - 6.36).abs() < 0.01);
    }
}
