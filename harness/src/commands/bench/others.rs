//! What other programs took, as lines of JSON: `{"H", "D", "E", "T", "skew", NAME: {"fb_ms"}, ...}` for a layer (width, inner
//! width, experts, tokens), `{"world", "experts", "micro_batch", "step_ms"}` for a step.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

/// Lines of other programs.
pub(super) struct Others(Vec<Value>);

/// A program and its time in milliseconds.
pub(super) type Other = (String, f64);

impl Others {
    /// Lines that hold no object are text around them.
    ///
    /// # Errors
    /// A file that cannot be read, an object that is none.
    pub(super) fn read(files: &[PathBuf]) -> Result<Self> {
        let mut all = Vec::new();
        for path in files {
            let text = fs::read_to_string(path).with_context(|| format!("--compare {}", path.display()))?;
            for (number, line) in text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with('{')) {
                let value = serde_json::from_str(line);
                all.push(value.with_context(|| format!("--compare {}, line {}", path.display(), number + 1))?);
            }
        }
        Ok(Self(all))
    }

    /// Of the layer whose line holds these numbers: every program with a number `fb_ms`.
    pub(super) fn of_layer(&self, keys: &[(&str, f64)]) -> Vec<Other> {
        let programs = self.with(keys).filter_map(Value::as_object).flatten();
        programs.filter_map(|(name, of)| Some((name.clone(), number(of, "fb_ms")?))).collect()
    }

    /// Of the step whose line holds these numbers. A line that holds `"compile": true` is another program's.
    pub(super) fn of_step(&self, keys: &[(&str, f64)]) -> Vec<Other> {
        let name = |line: &Value| match line.get("compile").and_then(Value::as_bool) {
            Some(true) => "PyTorch, compiled attention",
            _ => "eager PyTorch",
        };
        self.with(keys).filter_map(|line| Some((name(line).to_owned(), number(line, "step_ms")?))).collect()
    }

    fn with<'a>(&'a self, keys: &[(&str, f64)]) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |line| keys.iter().all(|&(key, wanted)| number(line, key) == Some(wanted)))
    }
}

fn number(value: &Value, key: &str) -> Option<f64> {
    value.get(key).and_then(Value::as_f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_those_of_the_same_shape() {
        let lines = [
            r#"{"H": 8, "E": 4, "skew": 0.0, "loop": {"fb_ms": 3.5, "err": "0"}, "grouped": {"fb_ms": 2}, "bad": "oom"}"#,
            r#"{"H": 8, "E": 2, "skew": 0.0, "loop": {"fb_ms": 9}}"#,
            r#"{"world": 1, "experts": 4, "micro_batch": 2, "step_ms": 7.5}"#,
            r#"{"world": 1, "experts": 4, "micro_batch": 2, "step_ms": 6, "compile": true}"#,
        ];
        let others = Others(lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect());
        let layer = others.of_layer(&[("H", 8.0), ("E", 4.0), ("skew", 0.0)]);
        assert_eq!(layer, [("grouped".to_owned(), 2.0), ("loop".to_owned(), 3.5)]);
        let step = others.of_step(&[("world", 1.0), ("experts", 4.0), ("micro_batch", 2.0)]);
        let names = ["eager PyTorch", "PyTorch, compiled attention"].map(str::to_owned);
        assert_eq!(step.iter().map(|other| &other.0).collect::<Vec<_>>(), names.iter().collect::<Vec<_>>());
        assert!(others.of_step(&[("world", 2.0)]).is_empty());
    }
}
