//! Parquet, as far as tables of loads need it: columns of numbers, of text, or of lists of numbers.
//!
//! A reader of our own, and no data-frame library's, because files come from anywhere: a damaged one must be refused, and such
//! libraries believe the lengths that a page claims. Here nothing is taken that is not there: runs are read value by value,
//! one page of a column is unpacked at a time, and the pages of all columns together have a bound.
//!
//! Left out, and refused by name where such a column is needed: fields of fields, lists of lists, decimal numbers, encrypted
//! files, levels in the encoding of 2013, texts by differences.

mod column;
mod encoding;
mod footer;
mod thrift;

use super::super::Choices;
use super::table::Cell;
use super::{ImportError, Importer};
use column::{Budget, ColumnReader};
use footer::{Column, Footer, RowGroup};

/// Keys of what moebench's own files note: choices per token, where the counts come from, a line each, and, if the gate that chose is trained
/// with a balance loss, that it is.
pub const TOP_K: &str = "moebench.top_k";
/// See [`TOP_K`].
pub const NOTES: &str = "moebench.notes";
/// See [`TOP_K`].
pub const CHOICES: &str = "moebench.balanced";

/// What is wrong with a file.
type Fault = String;

/// Hands the rows of a whole file to an importer.
pub(super) fn read(importer: &mut Importer, path: &str, file: &[u8]) -> Result<(), ImportError> {
    let footer = Footer::read(file).map_err(|found| ImportError::file(path, found, WHOLE))?;
    for (key, value) in &footer.notes {
        match key.as_str() {
            TOP_K => importer.tally.stated_top_k = importer.tally.stated_top_k.or(value.parse().ok()),
            NOTES => importer.tally.stated_notes.extend(value.lines().map(str::to_owned)),
            CHOICES => importer.tally.stated_choices = Choices::of_text(value).unwrap_or_default(),
            _ => {}
        }
    }
    let names: Vec<&str> = footer.columns.iter().map(|column| column.name.as_str()).collect();
    let mut table = importer.table(path, &names)?;
    let used: Vec<usize> = (0..names.len()).filter(|&column| table.uses(column)).collect();
    let mut done = 0_u64;
    for group in &footer.groups {
        let mut budget = Budget::new();
        let mut readers = open(path, file, &footer.columns, group, &used)?;
        for row in done..done.saturating_add(group.rows) {
            let mut cells = vec![Cell::Missing; names.len()];
            for (reader, &column) in readers.iter_mut().zip(&used) {
                reader.advance(&mut budget).map_err(|found| damaged(path, names[column], &found))?;
            }
            for (reader, &column) in readers.iter().zip(&used) {
                cells[column] = reader.cell().map_err(|found| damaged(path, names[column], &found))?;
            }
            table.row(&|| format!("row {row}"), &cells)?;
        }
        done = done.saturating_add(group.rows);
        readers.into_iter().for_each(|reader| reader.close(&mut budget));
    }
    Ok(())
}

const WHOLE: &str = "whole Parquet";

fn damaged(path: &str, column: &str, found: &str) -> ImportError {
    ImportError::file(path, format!("{found} in column `{column}`"), WHOLE)
}

fn open<'f>(
    path: &str,
    file: &'f [u8],
    columns: &[Column],
    group: &RowGroup,
    used: &[usize],
) -> Result<Vec<ColumnReader<'f>>, ImportError> {
    let open = |&column: &usize| {
        let Column { name, leaf } = &columns[column];
        let leaf = leaf.as_ref().map_err(|found| {
            let expected = "numbers, text or lists of numbers";
            ImportError::file(path, format!("{found} in column `{name}`"), expected)
        })?;
        ColumnReader::new(file, *leaf, &group.chunks[leaf.index]).map_err(|found| damaged(path, name, &found))
    };
    used.iter().map(open).collect()
}
