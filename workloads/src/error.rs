//! Why a TOML description was refused: which file, which field, what would be right.

use thiserror::Error;

/// A model, cluster or suite that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not TOML, an unknown field, a missing field or a wrong type. The source names line, field and what is allowed.
    #[error("{file}: {source}")]
    Syntax {
        /// The file, or the name of an embedded description.
        file: String,
        /// What the TOML reader says, with the line.
        source: toml::de::Error,
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
        known: table.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", "),
    })
}

/// Parses TOML, naming the file in the error.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Syntax { file: file.to_owned(), source })
}
