//! Widths of the letters that LaTeX sets a table in.

/// Of the letters from space to tilde in hundredths of a point, rounded up: Computer Modern Roman at 8 pt (Knuth, cmr8.tfm, as
/// LaTeX reports the boxes of single letters). Times and Libertine, in which other classes set text, are narrower.
#[rustfmt::skip]
const WIDTHS: [u16; 95] = [
    294, 237, 425, 709, 426, 709, 662, 237, 331, 331, 426, 662, 237, 284, 237, 426,
    426, 426, 426, 426, 426, 426, 426, 426, 426, 426, 237, 237, 662, 662, 662, 402,
    662, 637, 602, 614, 649, 579, 555, 667, 637, 307, 437, 661, 531, 779, 637, 662,
    579, 662, 626, 473, 614, 637, 637, 873, 637, 637, 520, 237, 426, 237, 426, 491,
    237, 426, 473, 378, 473, 378, 260, 426, 473, 237, 260, 449, 237, 709, 473, 426,
    473, 449, 332, 336, 331, 473, 449, 614, 449, 449, 378, 426, 851, 426, 426,
];

/// The widest letter, which what is no letter of English is taken for: mathematics and accents are narrower.
const WIDEST: u16 = 873;

/// In points. Kerning, which narrows more than it widens, is left out.
pub(super) fn width(letter: char) -> f64 {
    let at = (letter as usize).checked_sub(usize::from(b' '));
    f64::from(at.and_then(|at| WIDTHS.get(at)).copied().unwrap_or(WIDEST)) / 100.0
}
