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
    /// A case's id, where `*` stands for any characters: of a case that is gone, no other is meant by a part of its id.
    pub case: String,
    /// The system.
    pub system: String,
    /// Mean time of an iteration after warm-up, s.
    pub mean_step_s: Option<[f64; 2]>,
    /// Speedup over the suite's baseline by total times.
    pub speedup: Option<[f64; 2]>,
}

impl Bands {
    /// Of numbers, a band of `part` of each to either side, its ends outward to five digits.
    pub fn around(number: f64, part: f64) -> [f64; 2] {
        let outward = |end: f64, side: f64| {
            let half = 10_f64.powf(end.abs().max(f64::MIN_POSITIVE).log10().floor() - 4.0) / 2.0;
            format!("{:.4e}", end + side * half).parse().unwrap_or(end)
        };
        let reach = number.abs() * part;
        [outward(number - reach, -1.0), outward(number + reach, 1.0)]
    }

    /// The TOML that [`Self::parse`] reads, behind lines of comment.
    pub fn to_toml(&self, comment: &str) -> String {
        let mut text: String = comment.lines().map(|line| format!("# {line}\n")).collect();
        for Band { case, system, mean_step_s, speedup } in &self.bands {
            text += &format!("\n[[bands]]\ncase = {case:?}\nsystem = {system:?}\n");
            for (name, range) in [("mean_step_s", mean_step_s), ("speedup", speedup)] {
                text += &range.map_or_else(String::new, |[low, high]| format!("{name} = [{low}, {high}]\n"));
            }
        }
        text
    }

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
    fn bands_are_read_as_they_were_written() {
        let around = |number| Bands::around(number, 0.001);
        assert_eq!(around(0.141_855), [0.14171, 0.142]);
        assert_eq!(Bands::around(1.0 / 3.0, 0.0), [0.33333, 0.33334]);
        for number in [1e-7, 0.099_999_9, 1.0, 3.2, 2e9] {
            let ([low, high], [least, most]) = (Bands::around(number, 0.0), around(number));
            assert!(low <= number && number <= high && high - low <= number * 2.1e-4, "{number}: {low} {high}");
            assert!(least <= number * 0.999 && number * 1.001 <= most && most - least <= number * 2.3e-3, "{number}");
        }
        let band = |system: &str, mean_step_s, speedup| {
            let (case, system) = (r#"a."b\".8"#.to_owned(), system.to_owned());
            Band { case, system, mean_step_s, speedup }
        };
        let all = vec![band("one", Some(around(1e-7)), None), band("two", Some(around(2e9)), Some(around(1.5)))];
        let bands = Bands { bands: all };
        let text = bands.to_toml("First.\nSecond.");
        assert!(text.starts_with("# First.\n# Second.\n\n[[bands]]\n"), "{text}");
        assert_eq!(Bands::parse("b", &text).unwrap(), bands);
    }

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
