//! CSV files with a header: the `csv` crate reads cells, serde makes rows of them by the names of columns.
//!
//! An error names file, line, column and cell. That is why rows are not typed by the `csv` crate itself: what a type's own
//! rule refuses (`TryFrom`), it reports without the column. A cell is empty or a value; only an `Option` may be empty, or its
//! column absent. Columns that a row's type does not name are left alone unless it denies them.

use std::fmt::Display;

use csv::{ReaderBuilder, StringRecord, Trim};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::error::ConfigError;

/// A CSV file, read but not yet typed.
#[derive(Debug)]
pub struct CsvFile {
    name: String,
    columns: StringRecord,
    rows: Vec<StringRecord>,
}

/// One row of a file.
#[derive(Clone, Copy, Debug)]
pub struct CsvRow<'a> {
    file: &'a CsvFile,
    cells: &'a StringRecord,
}

impl CsvFile {
    /// Splits a file into cells; `name` is what errors call it.
    ///
    /// # Errors
    /// No header, or a row with more or fewer cells than the header.
    pub fn parse(name: &str, bytes: &[u8]) -> Result<Self, ConfigError> {
        let broken = |reason| ConfigError::Csv { file: name.to_owned(), reason };
        let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(bytes);
        let columns = reader.headers().map_err(broken)?.clone();
        if columns.iter().all(str::is_empty) {
            return Err(ConfigError::Row { file: name.to_owned(), line: 1, reason: "expected a header".to_owned() });
        }
        let rows = reader.records().collect::<Result<_, _>>().map_err(broken)?;
        Ok(Self { name: name.to_owned(), columns, rows })
    }

    /// What errors call the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rows below the header.
    pub fn rows(&self) -> impl Iterator<Item = CsvRow<'_>> {
        self.rows.iter().map(|cells| CsvRow { file: self, cells })
    }

    /// Every row as a `T`.
    ///
    /// # Errors
    /// The first cell that is none of `T`'s.
    pub fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<Vec<T>, ConfigError> {
        self.rows().map(|row| row.read()).collect()
    }
}

impl<'a> CsvRow<'a> {
    /// The row as a `T`, whose fields are columns.
    ///
    /// # Errors
    /// A cell that is none of `T`'s, or a column that `T` needs and the file lacks.
    pub fn read<T: Deserialize<'a>>(&self) -> Result<T, ConfigError> {
        let cells = Cells { row: *self, next: 0 };
        T::deserialize(MapAccessDeserializer::new(cells)).map_err(|refusal| match refusal {
            Refusal::Cell(reason) => self.wrong(reason),
            Refusal::NoColumn(column) => {
                let reason = format!("no column `{column}`");
                ConfigError::Row { file: self.file.name.clone(), line: 1, reason }
            }
        })
    }

    /// File and line, as in errors.
    pub fn place(&self) -> String {
        format!("{}: line {}", self.file.name, self.line())
    }

    /// An error about this row.
    pub fn wrong(&self, reason: impl Into<String>) -> ConfigError {
        ConfigError::Row { file: self.file.name.clone(), line: self.line(), reason: reason.into() }
    }

    fn line(&self) -> u64 {
        self.cells.position().map_or(0, csv::Position::line)
    }
}

/// A whole number of at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "usize")]
pub struct Count(
    /// The number.
    pub usize,
);

impl TryFrom<usize> for Count {
    type Error = &'static str;

    fn try_from(value: usize) -> Result<Self, Self::Error> {
        if value > 0 { Ok(Self(value)) } else { Err("expected a whole number of at least 1") }
    }
}

/// A finite number above 0.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Positive(
    /// The number.
    pub f64,
);

impl TryFrom<f64> for Positive {
    type Error = &'static str;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        if value.is_finite() && value > 0.0 { Ok(Self(value)) } else { Err("expected a number above 0") }
    }
}

/// Why a row is none of its type's.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Cell(String),
    #[error("no column `{0}`")]
    NoColumn(&'static str),
}

impl de::Error for Refusal {
    fn custom<T: Display>(reason: T) -> Self {
        Self::Cell(reason.to_string())
    }

    fn missing_field(field: &'static str) -> Self {
        Self::NoColumn(field)
    }

    fn invalid_type(_: Unexpected, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("expected {}", expected.join(" or ")))
    }
}

/// The cells of a row, one after the other.
struct Cells<'a> {
    row: CsvRow<'a>,
    next: usize,
}

impl<'de> MapAccess<'de> for Cells<'de> {
    type Error = Refusal;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refusal> {
        let Some(column) = self.row.file.columns.get(self.next) else { return Ok(None) };
        seed.deserialize(column.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refusal> {
        let (column, cell) = (&self.row.file.columns[self.next], &self.row.cells[self.next]);
        self.next += 1;
        let found = if cell.is_empty() { "nothing" } else { cell };
        seed.deserialize(Cell(cell)).map_err(|refusal| Refusal::Cell(format!("{column} = {found}: {refusal}")))
    }
}

/// One cell, read as whatever its column's type asks for.
struct Cell<'a>(&'a str);

impl Cell<'_> {
    fn parsed<T: std::str::FromStr>(&self, expected: &str) -> Result<T, Refusal> {
        self.0.parse().map_err(|_| Refusal::Cell(format!("expected {expected}")))
    }
}

impl<'de> Deserializer<'de> for Cell<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            "" => Err(Refusal::Cell("expected a value".to_owned())),
            text => visitor.visit_borrowed_str(text),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_u64(self.parsed("a whole number of at least 0")?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_f64(self.parsed("a number")?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.0.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_enum(self.0.into_deserializer())
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gate;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Pass {
        Forward,
        Backward,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Layer {
        layer: usize,
        gpus: Count,
        gate: Gate,
        pass: Option<Pass>,
        ms: Option<Positive>,
        note: Option<String>,
    }

    fn read(text: &str) -> Result<Vec<Layer>, String> {
        CsvFile::parse("m.csv", text.as_bytes()).and_then(|file| file.read()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_are_typed_by_their_columns() {
        let rows =
            read("gpus, layer,pass,other,gate,ms\n8,0,backward,,no-drop,1.5\n4, 3,,x,\"capacity 1.2\",\n").unwrap();
        let (gate, note) = (Gate::NoDrop, None);
        let ms = Some(Positive(1.5));
        assert_eq!(rows[0], Layer { layer: 0, gpus: Count(8), gate, pass: Some(Pass::Backward), ms, note });
        let gate = Gate::Capacity { factor: 1.2 };
        assert_eq!(rows[1], Layer { layer: 3, gpus: Count(4), gate, pass: None, ms: None, note: None });
    }

    #[test]
    fn errors_name_file_line_column_and_cell() {
        let check = |row: &str, expected: &str| {
            assert_eq!(read(&format!("layer,gpus,gate,pass,ms\n0,1,no-drop,,\n{row}\n")).unwrap_err(), expected);
        };
        check("-1,1,no-drop,,", "m.csv: line 3: layer = -1: expected a whole number of at least 0");
        check("0,0,no-drop,,", "m.csv: line 3: gpus = 0: expected a whole number of at least 1");
        check("0,,no-drop,,", "m.csv: line 3: gpus = nothing: expected a whole number of at least 0");
        check("0,1,,,", "m.csv: line 3: gate = nothing: expected a value");
        check("0,1,no-drop,up,", "m.csv: line 3: pass = up: expected forward or backward");
        check("0,1,no-drop,,NaN", "m.csv: line 3: ms = NaN: expected a number above 0");
        check("0,1,no-drop,,soon", "m.csv: line 3: ms = soon: expected a number");
        let gate = read("layer,gpus,gate\n0,1,dense\n").unwrap_err();
        assert!(gate.starts_with("m.csv: line 2: gate = dense: gate `dense`: expected `no-drop`"), "{gate}");
    }

    #[test]
    fn files_that_are_no_tables() {
        assert_eq!(read("").unwrap_err(), "m.csv: line 1: expected a header");
        assert_eq!(read("layer,gate\n0,no-drop\n").unwrap_err(), "m.csv: line 1: no column `gpus`");
        let uneven = read("layer,gpus,gate\n0,1\n").unwrap_err();
        assert!(uneven.starts_with("m.csv: CSV error: record 1 (line: 2"), "{uneven}");
    }
}
