//! Why a TOML description or a CSV was refused: which file, which field, what would be right.

use thiserror::Error;

/// No extent that a description states (layers, widths, GPUs, samples, iterations) may be larger, unless its own table says otherwise: products of three fit 64
/// bits, and nothing is made for more of them than memory holds.
pub const MOST_EXTENT: usize = 1 << 20;

/// A description or a table that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not TOML, an unknown field, a missing field or a wrong type. The reason names line, field and what is allowed.
    #[error("{file}: {reason}")]
    Syntax {
        /// The file, or the name of an embedded description.
        file: String,
        /// What the TOML reader says, with the line. No `source`: whoever prints the chain would print it twice.
        reason: toml::de::Error,
    },
    /// Not CSV, or rows of different lengths.
    #[error("{file}: {reason}")]
    Csv {
        /// The file.
        file: String,
        /// What the CSV reader says, with the line.
        reason: csv::Error,
    },
    /// A row of a CSV that cannot be.
    #[error("{file}: line {line}: {reason}")]
    Row {
        /// The file.
        file: String,
        /// The row's line, or the header's.
        line: u64,
        /// Column and cell, and what would be right.
        reason: String,
    },
    /// A field whose value cannot be.
    #[error("{file}: {field} = {value}: expected {expected}")]
    Value {
        /// The file, or the name of an embedded description.
        file: String,
        /// Path of the field, for example `cases[3].gpus`.
        field: String,
        /// The value found.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// Fields that must be there, where several are not.
    #[error("{file}: missing fields {fields} (`moebench show fields` says what they are)")]
    Missing {
        /// The file, or the name of an embedded description.
        file: String,
        /// Their paths.
        fields: String,
    },
    /// A field that was changed from outside its file, to what it cannot be.
    #[error("--set {change}: {reason}")]
    Change {
        /// `KEY=VALUE`.
        change: String,
        /// What the TOML reader says.
        reason: String,
    },
    /// A name that is not in a table.
    #[error("{context}: unknown {kind} `{name}`; known: {known}")]
    Unknown {
        /// Where the name stands: a file and field, or a command-line option.
        context: String,
        /// What kind of thing was named.
        kind: &'static str,
        /// The name.
        name: String,
        /// All names that would do.
        known: String,
    },
}

impl ConfigError {
    /// A [`ConfigError::Value`] from displayable parts.
    pub fn value(file: &str, field: impl Into<String>, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Value { file: file.to_owned(), field: field.into(), value: value.to_string(), expected: expected.into() }
    }

    /// Whether an extent is from 1 to [`MOST_EXTENT`].
    pub(crate) fn check_extent(file: &str, field: &str, value: usize) -> Result<(), Self> {
        if (1..=MOST_EXTENT).contains(&value) {
            return Ok(());
        }
        let least = if value == 0 { "at least 1".to_owned() } else { format!("1 to {MOST_EXTENT}") };
        Err(Self::value(file, field, value, least))
    }
}

/// Finds `name` among embedded `(name, text)` descriptions.
pub(crate) fn find<'a>(
    kind: &'static str,
    context: &str,
    name: &str,
    table: &'a [(&'a str, &'a str)],
) -> Result<&'a str, ConfigError> {
    table.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| ConfigError::Unknown {
        context: context.to_owned(),
        kind,
        name: name.to_owned(),
        known: known(name, &table.iter().map(|(known, _)| *known).collect::<Vec<_>>()),
    })
}

/// All names that would do, and which one was perhaps meant.
pub fn known(name: &str, all: &[&str]) -> String {
    let close =
        all.iter().map(|other| (distance(name, other), other)).min().filter(|(far, _)| *far <= name.len().div_ceil(3));
    let meant = close.map_or(String::new(), |(_, other)| format!("; did you mean `{other}`?"));
    all.join(", ") + &meant
}

/// Letters to add, drop or change to come from one word to another.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Parses TOML, naming the file in the error.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|reason| ConfigError::Syntax { file: file.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;
    use crate::Cluster;

    #[test]
    fn the_nearest_name_is_offered() {
        for (from, to, far) in
            [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("smok", "smoke", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!((distance(from, to), distance(to, from)), (far, far), "{from} {to}");
        }
        assert_eq!(known("smartmo", &["alpa", "smartmoe"]), "alpa, smartmoe; did you mean `smartmoe`?");
        assert_eq!(known("deepep", &["alpa", "smartmoe"]), "alpa, smartmoe");
        let told = crate::Model::named("--model", "mixtral-8x7").unwrap_err().to_string();
        assert!(told.ends_with("did you mean `mixtral-8x7b`?"), "{told}");
    }

    /// Who prints an error prints the chain of its sources: what the TOML reader says must stand in it once.
    #[test]
    fn a_syntax_error_is_printed_once() {
        let error = Cluster::parse("c.toml", "name = \"c\"\nnodes = 2\n").unwrap_err();
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            chain += &format!(": {error}");
            source = error.source();
        }
        for part in ["c.toml", "line 2", "unknown field `nodes`"] {
            assert_eq!(chain.matches(part).count(), 1, "{part} in {chain}");
        }
    }
}
