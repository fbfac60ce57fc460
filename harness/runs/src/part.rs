//! Which part of a suite's cases is meant: those whose ids a pattern fits.

use std::convert::Infallible;
use std::str::FromStr;

use workloads::{Case, Suite};

/// A pattern of ids: a part of one, or all of one where `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl FromStr for Pattern {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    pub fn fits(&self, id: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(last) = pieces.next_back() else { return id.contains(first) };
        let Some(mut rest) = id.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else { return false };
        // The earliest place of each piece leaves most for the others.
        pieces.all(|piece| match rest.split_once(piece) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

/// Keeps the cases that one of the patterns fits, all where there is no pattern; their ids stay what they are in the whole suite.
pub fn keep(suite: &mut Suite, patterns: &[Pattern]) {
    let fits = |case: &Case| patterns.iter().any(|pattern| pattern.fits(&case.id()));
    suite.cases.retain(|case| patterns.is_empty() || fits(case));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_part_or_a_whole_with_stars() {
        let id = "gpt-tiny.inky.16.no-drop";
        let fits = |pattern: &str| pattern.parse::<Pattern>().unwrap().fits(id);
        for pattern in ["inky", "16.no", id, "gpt-tiny*", "*no-drop", "*inky*", "gpt*.16.*", "*", "g**p"] {
            assert!(fits(pattern), "{pattern}");
        }
        for pattern in ["pinky", "inky*", "*inky", "gpt*inky", "*16*inky*", "gpt-tiny.inky.16.no-drop*no-drop"] {
            assert!(!fits(pattern), "{pattern}");
        }
    }
}
