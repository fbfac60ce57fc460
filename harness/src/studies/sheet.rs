//! Measurements as CSV: columns by name, cells checked, errors with file, line and column.
//!
//! Read by the `csv` crate, which keeps line numbers; Polars' reader does not, and turns what it cannot parse into nulls.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// A CSV file with a header.
#[derive(Debug)]
pub struct Sheet {
    file: String,
    header: Vec<String>,
    /// Line in the file and cells.
    rows: Vec<(u64, csv::StringRecord)>,
}

/// One row.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    sheet: &'a Sheet,
    line: u64,
    cells: &'a csv::StringRecord,
}

impl Sheet {
    /// Reads a file that must have `columns`.
    ///
    /// # Errors
    /// A file that cannot be read, has no rows, lacks a column, or has rows of different lengths.
    pub fn read(path: &Path, columns: &[&str]) -> Result<Self> {
        let file = path.display().to_string();
        let text = std::fs::read(path).with_context(|| format!("{file}: cannot be read"))?;
        Self::parse(&file, &text, columns)
    }

    /// The same of a text; `file` names it in errors.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn parse(file: &str, text: &[u8], columns: &[&str]) -> Result<Self> {
        let mut reader = csv::Reader::from_reader(text);
        let header: Vec<String> =
            reader.headers().with_context(|| file.to_owned())?.iter().map(|name| name.trim().to_owned()).collect();
        if header.iter().all(String::is_empty) {
            bail!("{file}: is empty: expected a header with the columns {}", columns.join(", "));
        }
        if let Some(missing) = columns.iter().find(|name| !header.iter().any(|have| have == *name)) {
            bail!("{file}: line 1: no column `{missing}`: expected the columns {}", columns.join(", "));
        }
        let mut rows = Vec::new();
        for record in reader.records() {
            let record = record.with_context(|| file.to_owned())?;
            rows.push((record.position().map_or(0, csv::Position::line), record));
        }
        if rows.is_empty() {
            bail!("{file}: no rows below the header");
        }
        Ok(Self { file: file.to_owned(), header, rows })
    }

    /// Its name.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Its rows.
    pub fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|(line, cells)| Row { sheet: self, line: *line, cells })
    }

    /// Whether it has that column.
    pub fn has(&self, column: &str) -> bool {
        self.header.iter().any(|name| name == column)
    }
}

impl Row<'_> {
    /// A cell's text; empty where the file has no such column.
    pub fn text(&self, column: &str) -> &str {
        let index = self.sheet.header.iter().position(|name| name == column);
        index.and_then(|index| self.cells.get(index)).map_or("", str::trim)
    }

    /// A whole number of at least `least`.
    ///
    /// # Errors
    /// Anything else, with file, line and column.
    pub fn whole(&self, column: &str, least: usize) -> Result<usize> {
        match self.text(column).parse::<usize>() {
            Ok(value) if value >= least => Ok(value),
            _ => Err(self.wrong(column, &format!("a whole number of at least {least}"))),
        }
    }

    /// The same, or `default` where the column is absent or the cell empty.
    ///
    /// # Errors
    /// Anything else, with file, line and column.
    pub fn whole_or(&self, column: &str, least: usize, default: usize) -> Result<usize> {
        if self.text(column).is_empty() { Ok(default) } else { self.whole(column, least) }
    }

    /// A time above 0, in the file's unit.
    ///
    /// # Errors
    /// Anything else, with file, line and column.
    pub fn time(&self, column: &str) -> Result<f64> {
        self.positive(column, "a time above 0, in ms")
    }

    /// A number above 0.
    ///
    /// # Errors
    /// Anything else, with file, line and column, and what was expected.
    pub fn positive(&self, column: &str, expected: &str) -> Result<f64> {
        match self.text(column).parse::<f64>() {
            Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
            _ => Err(self.wrong(column, expected)),
        }
    }

    /// A time above 0, or nothing.
    ///
    /// # Errors
    /// Anything else, with file, line and column.
    pub fn time_if_any(&self, column: &str) -> Result<Option<f64>> {
        if self.text(column).is_empty() { Ok(None) } else { self.time(column).map(Some) }
    }

    /// A value read by its type's own rule.
    ///
    /// # Errors
    /// What that rule says, with file, line and column.
    pub fn parsed<T: FromStr<Err = String>>(&self, column: &str, text: &str) -> Result<T> {
        text.parse().map_err(|reason: String| anyhow!("{}: {column}: {reason}", self.place()))
    }

    /// File and line.
    pub fn place(&self) -> String {
        format!("{}: line {}", self.sheet.file, self.line)
    }

    /// An error about one cell.
    pub fn wrong(&self, column: &str, expected: &str) -> anyhow::Error {
        let text = self.text(column);
        let found = if text.is_empty() { "nothing" } else { text };
        anyhow!("{}: {column} = {found}: expected {expected}", self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, ask: impl Fn(&Row) -> Result<()>) -> String {
        let columns = ["layer", "ms"];
        match Sheet::parse("m.csv", text.as_bytes(), &columns) {
            Err(error) => format!("{error:#}"),
            Ok(sheet) => sheet.rows().find_map(|row| ask(&row).err()).map_or(String::new(), |e| format!("{e:#}")),
        }
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let check = |text: &str, expected: &str| {
            let message = error(text, |row| row.whole("layer", 0).and_then(|_| row.time("ms")).map(drop));
            assert!(message.contains(expected), "{message}");
        };
        check("", "m.csv: is empty: expected a header with the columns layer, ms");
        check("layer,ms\n", "m.csv: no rows below the header");
        check("layer,time\n1,2\n", "m.csv: line 1: no column `ms`");
        check("layer,ms\n0,1.5\n1,NaN\n", "m.csv: line 3: ms = NaN: expected a time above 0");
        check("layer,ms\n0,-1.5\n", "m.csv: line 2: ms = -1.5: expected a time above 0");
        check("layer,ms\n0,\n", "m.csv: line 2: ms = nothing: expected a time above 0");
        check("layer,ms\n-1,2\n", "m.csv: line 2: layer = -1: expected a whole number of at least 0");
        check("layer,ms\n0,1,2\n", "m.csv");
    }
}
