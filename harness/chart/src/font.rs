//! The compiled-in DejaVu Sans: widths of text for the layout, glyphs for the PDF.

use ttf_parser::Face;

use super::FigureError;

/// What an SVG viewer may use, best first. Verdana is as wide as DejaVu Sans and is what other systems have.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, sans-serif";

/// Height of capitals and digits, as a share of the type size.
pub(super) const CAP_HEIGHT: f64 = 0.729;

/// The two weights in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    Regular,
    Bold,
}

impl Weight {
    pub(super) const ALL: [Self; 2] = [Self::Regular, Self::Bold];

    pub(super) fn postscript_name(self) -> &'static str {
        match self {
            Self::Regular => "DejaVuSans",
            Self::Bold => "DejaVuSans-Bold",
        }
    }

    pub(super) fn bytes(self) -> &'static [u8] {
        match self {
            Self::Regular => dejavu::sans::regular(),
            Self::Bold => dejavu::sans::bold(),
        }
    }

    pub(super) fn face(self) -> Result<Face<'static>, FigureError> {
        Face::parse(self.bytes(), 0)
            .map_err(|e| FigureError::Font { font: self.postscript_name(), reason: e.to_string() })
    }
}

/// Both faces, parsed once per figure.
pub(super) struct Fonts {
    regular: Face<'static>,
    bold: Face<'static>,
}

impl Fonts {
    pub(super) fn load() -> Result<Self, FigureError> {
        Ok(Self { regular: Weight::Regular.face()?, bold: Weight::Bold.face()? })
    }

    /// Width of `text` in the unit of `size`, without kerning (so never too narrow by more than a hair).
    pub(super) fn width(&self, text: &str, size: f64, weight: Weight) -> f64 {
        let face = match weight {
            Weight::Regular => &self.regular,
            Weight::Bold => &self.bold,
        };
        text.chars().map(|c| advance(face, c)).sum::<f64>() * size
    }
}

/// Advance of one character as a share of the type size; a character that the font lacks is as wide as its box.
pub(super) fn advance(face: &Face<'_>, character: char) -> f64 {
    let glyph = face.glyph_index(character).unwrap_or_default();
    f64::from(face.glyph_hor_advance(glyph).unwrap_or(0)) / f64::from(face.units_per_em())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_have_one_width_and_bold_is_wider() -> Result<(), FigureError> {
        let fonts = Fonts::load()?;
        let width = |text, weight| fonts.width(text, 10.0, weight);
        assert_eq!(width("1111", Weight::Regular), width("8888", Weight::Regular));
        assert!(width("FastMoE", Weight::Bold) > width("FastMoE", Weight::Regular));
        assert!((width("0", Weight::Regular) - 6.36).abs() < 0.01);
        Ok(())
    }
}
