//! The fields of suites, models and clusters, for people and editors: what each is, in which unit, whether it must be there.
//!
//! The readers (serde) decide what a file may hold. What is written here is held against them field by field by tests, and
//! serves where a reader alone cannot: all missing fields in one error, `moebench show` and `new`, the page of fields and the
//! JSON schemas.

mod cluster;
mod model;
mod shown;
mod suite;

use serde::de::DeserializeOwned;
use toml::Value;

use crate::error::{self, ConfigError};

pub use self::cluster::CLUSTER;
pub use self::model::MODEL;
pub use self::shown::{commented, page, with_choices};
pub use self::suite::SUITE;

/// A table of a TOML file.
#[derive(Debug)]
pub struct Table {
    /// What it describes, in a few words.
    pub about: &'static str,
    /// In the order in which they are best read.
    pub fields: &'static [Field],
}

/// A field of a table.
#[derive(Debug)]
pub struct Field {
    /// Its key.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// Whether a file without it is refused.
    pub must: bool,
    /// A value, as TOML.
    pub example: &'static str,
    /// What it is, with its unit, and what holds when it is absent.
    pub about: &'static str,
}

/// What a field may hold.
#[derive(Debug)]
pub enum Kind {
    /// Any text.
    Text,
    /// A whole number of at least 0.
    Whole,
    /// A number.
    Number,
    /// `true` or `false`.
    Flag,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A number in this unit with its source: `{ value, uncertainty, peak, source }`.
    Constant(&'static str),
    /// A table of its own.
    Table(&'static Table),
    /// A list of values.
    List(&'static Kind),
    /// A value, or a list of values that multiply out to cases.
    Axis(&'static Kind),
    /// A value for each system, by its name.
    BySystem(&'static Kind),
    /// Any of these.
    Either(&'static [Kind]),
}

const fn must(name: &'static str, kind: Kind, example: &'static str, about: &'static str) -> Field {
    Field { name, kind, must: true, example, about }
}

const fn may(name: &'static str, kind: Kind, example: &'static str, about: &'static str) -> Field {
    Field { name, kind, must: false, example, about }
}

impl Table {
    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The table below a dotted path, which may lead through lists of tables.
    fn at(&'static self, path: &str) -> Option<&'static Table> {
        path.split('.').try_fold(self, |table, name| table.field(name)?.kind.table())
    }
}

impl Kind {
    /// The table that it is, or is a list of.
    fn table(&self) -> Option<&'static Table> {
        match self {
            Self::Table(table) => Some(table),
            Self::List(of) => of.table(),
            _ => None,
        }
    }
}

/// Reads a TOML; where fields are missing, the error names all that are.
pub(crate) fn parse<T: DeserializeOwned>(table: &Table, file: &str, text: &str) -> Result<T, ConfigError> {
    let read = error::parse(file, text);
    let Err(ConfigError::Syntax { reason, .. }) = &read else { return read };
    let mut missing = Vec::new();
    if reason.message().starts_with("missing field")
        && let Ok(found) = error::parse(file, text)
    {
        find_missing(table, Some(&found), "", &mut missing);
    }
    if missing.len() < 2 {
        return read;
    }
    Err(ConfigError::Missing { file: file.to_owned(), fields: missing.join(", ") })
}

/// Paths of the fields that must be there and are not.
fn find_missing(table: &Table, found: Option<&toml::Table>, path: &str, missing: &mut Vec<String>) {
    for field in table.fields {
        let path = format!("{path}{}", field.name);
        match (found.and_then(|found| found.get(field.name)), &field.kind) {
            (None, Kind::Table(inner)) if field.must => find_missing(inner, None, &format!("{path}."), missing),
            (None, _) if field.must => missing.push(path),
            (Some(Value::Table(found)), Kind::Table(inner)) => {
                find_missing(inner, Some(found), &format!("{path}."), missing);
            }
            (Some(Value::Array(all)), Kind::List(Kind::Table(inner))) => {
                for (index, found) in all.iter().enumerate() {
                    find_missing(inner, found.as_table(), &format!("{path}[{index}]."), missing);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
