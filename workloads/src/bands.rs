//! Bands in which a suite's numbers are expected: what a run is held against, for example in continuous integration.

use serde::Deserialize;

use crate::error::{self, ConfigError};

/// A file of bands.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bands {
    /// All of them hold.
    pub bands: Vec<Band>,
}

/// Where numbers of some cases under one system are expected: from the first to the second, both included.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// A case's id, a part of several, or a whole id with `*` for any characters.
    pub case: String,
    /// The system.
    pub system: String,
    /// Mean time of an iteration after warm-up, s.
    pub mean_step_s: Option<[f64; 2]>,
    /// Speedup over the suite's baseline by total times.
    pub speedup: Option<[f64; 2]>,
}

impl Bands {
    /// Reads a file's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let read: Self = error::parse(file, text)?;
        if read.bands.is_empty() {
            return Err(ConfigError::value(file, "bands", "an empty list", "at least one [[bands]]"));
        }
        for (index, band) in read.bands.iter().enumerate() {
            let ranges = [("mean_step_s", band.mean_step_s), ("speedup", band.speedup)];
            if ranges.iter().all(|(_, range)| range.is_none()) {
                return Err(ConfigError::value(file, format!("bands[{index}]"), "no number", "mean_step_s or speedup"));
            }
            for (field, [low, high]) in ranges.into_iter().filter_map(|(field, range)| Some((field, range?))) {
                if !(low.is_finite() && low <= high) {
                    let found = format!("[{low}, {high}]");
                    let expected = "two numbers, the smaller one first";
                    return Err(ConfigError::value(file, format!("bands[{index}].{field}"), found, expected));
                }
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_bands_name_the_field() {
        let good = "[[bands]]\ncase = \"a\"\nsystem = \"tutel\"\nspeedup = [1, 1.5]\n";
        assert_eq!(Bands::parse("b", good).unwrap().bands[0].speedup, Some([1.0, 1.5]));
        let check = |text: &str, expected: &str| {
            let error = Bands::parse("b.toml", text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("bands = []", "b.toml: bands = an empty list");
        check(
            &good.replace("[1, 1.5]", "[2, 1]"),
            "bands[0].speedup = [2, 1]: expected two numbers, the smaller one first",
        );
        check(&good.replace("1.5", "nan"), "bands[0].speedup = [1, NaN]");
        check(&good.replace("speedup = [1, 1.5]", ""), "bands[0] = no number: expected mean_step_s or speedup");
        check(&good.replace("speedup", "speedups"), "unknown field `speedups`");
    }
}
