//! CSV files with a header: the `csv` crate reads cells, serde makes rows of them by the names of columns.
//!
//! An error names file, line, column and cell. That is why rows are not typed by the `csv` crate itself: what a type's own
//! rule refuses (`TryFrom`), it reports without the column. A cell is empty or a value; only an `Option` may be empty, or its
//! column absent. Columns that a row's type does not name are left alone unless it denies them.
//!
//! Cells end at commas, semicolons or tabs, whichever the header has most of. Where commas are not needed for that, numbers may
//! have a decimal comma.

use std::fmt::Display;

use csv::{ReaderBuilder, StringRecord, Trim};
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, Expected, IntoDeserializer, MapAccess, Unexpected, Visitor};
use serde::forward_to_deserialize_any;

use crate::error::{ConfigError, MOST_EXTENT};

/// A CSV file, read but not yet typed.
#[derive(Debug)]
pub struct CsvFile {
    name: String,
    columns: StringRecord,
    rows: Vec<StringRecord>,
    /// Whether a comma in a number stands for a point.
    decimal_comma: bool,
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
        // A reader that stands between the two bytes of a line's end counts a line too few.
        let kept = |&(at, &byte): &(usize, &u8)| byte != b'\r' || bytes.get(at + 1) != Some(&b'\n');
        let bytes: Vec<u8> = bytes.iter().enumerate().filter(kept).map(|(_, &byte)| byte).collect();
        let bytes = &bytes[..];
        let delimiter = delimiter(bytes);
        let mut reader = ReaderBuilder::new().trim(Trim::All).delimiter(delimiter).from_reader(bytes);
        let columns = reader.headers().map_err(broken)?.clone();
        if columns.iter().all(str::is_empty) {
            return Err(ConfigError::Row { file: name.to_owned(), line: 1, reason: "expected a header".to_owned() });
        }
        let rows = reader.records().collect::<Result<_, _>>().map_err(broken)?;
        Ok(Self { name: name.to_owned(), columns, rows, decimal_comma: delimiter != b',' })
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

/// What separates the cells of the first line that is no comment: a tab, a semicolon or a comma, whichever it has most of.
pub(crate) fn delimiter(head: &[u8]) -> u8 {
    let line = head.split(|&byte| byte == b'\n').find(|line| !line.is_empty() && line[0] != b'#').unwrap_or_default();
    let times = |delimiter: u8| line.iter().filter(|&&byte| byte == delimiter).count();
    [b'\t', b';', b',']
        .into_iter()
        .reduce(|best, other| if times(other) > times(best) { other } else { best })
        .filter(|&best| times(best) > 0)
        .unwrap_or(b',')
}

/// A whole number from 1 to [`MOST_EXTENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "usize")]
pub struct Count(
    /// The number.
    pub usize,
);

impl TryFrom<usize> for Count {
    type Error = &'static str;

    fn try_from(value: usize) -> Result<Self, Self::Error> {
        match value {
            0 => Err("expected a whole number of at least 1"),
            1..=MOST_EXTENT => Ok(Self(value)),
            _ => Err("expected a whole number of at most 2^20"),
        }
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
        let cell = Cell { text: cell, decimal_comma: self.row.file.decimal_comma };
        seed.deserialize(cell).map_err(|refusal| Refusal::Cell(format!("{column} = {found}: {refusal}")))
    }
}

/// One cell, read as whatever its column's type asks for.
struct Cell<'a> {
    text: &'a str,
    decimal_comma: bool,
}

impl Cell<'_> {
    fn parsed<T: std::str::FromStr>(text: &str, expected: &str) -> Result<T, Refusal> {
        text.parse().map_err(|_| Refusal::Cell(format!("expected {expected}")))
    }
}

impl<'de> Deserializer<'de> for Cell<'de> {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.text {
            "" => Err(Refusal::Cell("expected a value".to_owned())),
            text => visitor.visit_borrowed_str(text),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_u64(Self::parsed(self.text, "a whole number from 0 to 2^64 - 1")?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        let number = match self.text.split_once(',') {
            Some((whole, part)) if self.decimal_comma => Self::parsed(&format!("{whole}.{part}"), "a number"),
            _ => Self::parsed(self.text, "a number"),
        };
        visitor.visit_f64(number?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        if self.text.is_empty() { visitor.visit_none() } else { visitor.visit_some(self) }
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
        visitor.visit_enum(self.text.into_deserializer())
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

    /// As spreadsheets write where a comma is the decimal point; and tabs.
    #[test]
    fn cells_end_as_the_header_says() {
        let expected = read("layer,gpus,gate,ms\n0,8,capacity 1.2,1234.5\n").unwrap();
        assert_eq!(read("layer;gpus;gate;ms\r\n0;8;capacity 1.2;1234,5\r\n").unwrap(), expected);
        assert_eq!(read("\u{feff}layer\tgpus\tgate\tms\n0\t8\tcapacity 1.2\t1234.5\n").unwrap(), expected);
        let error = read("layer;gpus;gate;ms\n0;8;no-drop;1,234,5\n").unwrap_err();
        assert_eq!(error, "m.csv: line 2: ms = 1,234,5: expected a number");
    }

    #[test]
    fn lines_are_counted_whatever_ends_them() {
        for text in ["gpus,ms\r\n1,2\r\n1,soon\r\n", "gpus,ms\n1,2\n1,soon\n"] {
            let file = CsvFile::parse("m.csv", text.as_bytes()).unwrap();
            assert_eq!(file.rows().map(|row| row.line()).collect::<Vec<_>>(), [2, 3], "{text:?}");
        }
    }

    #[test]
    fn errors_name_file_line_column_and_cell() {
        let check = |row: &str, expected: &str| {
            assert_eq!(read(&format!("layer,gpus,gate,pass,ms\n0,1,no-drop,,\n{row}\n")).unwrap_err(), expected);
        };
        check("-1,1,no-drop,,", "m.csv: line 3: layer = -1: expected a whole number from 0 to 2^64 - 1");
        check("0,0,no-drop,,", "m.csv: line 3: gpus = 0: expected a whole number of at least 1");
        check("0,1048577,no-drop,,", "m.csv: line 3: gpus = 1048577: expected a whole number of at most 2^20");
        check(
            "99999999999999999999,1,no-drop,,",
            "m.csv: line 3: layer = 99999999999999999999: expected a whole number from 0 to 2^64 - 1",
        );
        check("0,,no-drop,,", "m.csv: line 3: gpus = nothing: expected a whole number from 0 to 2^64 - 1");
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
