//! Delimited text: commas, semicolons or tabs, told by the first line; with a header, or a bare matrix of counts, layer
//! by expert. Numbers of experts above such a matrix, as a data frame without names of its own has them, are a header.

use std::io::{BufRead, BufReader, Read};

use super::table::{Cell, Table, parse};
use super::{ImportError, Importer};
use crate::csv_file::delimiter;

pub(super) fn read<R: Read>(importer: &mut Importer, path: &str, input: &mut BufReader<R>) -> Result<(), ImportError> {
    super::skip_bom(path, input)?;
    let delimiter = delimiter(input.fill_buf().map_err(|source| ImportError::read(path, source))?);
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .comment(Some(b'#'))
        .from_reader(input);
    let mut record = csv::ByteRecord::new();
    if !next(&mut reader, path, &mut record)? {
        return Err(ImportError::file(path, "no lines", super::READABLE));
    }
    let header: Vec<String> = record.iter().map(|field| String::from_utf8_lossy(field).trim().to_owned()).collect();
    if header.iter().all(|field| parse(field).is_some()) {
        return matrix(importer, path, reader, record, &header);
    }
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = importer.table(path, &header)?;
    while next(&mut reader, path, &mut record)? {
        let line = line(&record);
        check_width(path, line, record.len(), header.len())?;
        let fields = fields(path, line, &record)?;
        table.row(&|| format!("line {line}"), &fields)?;
    }
    Ok(())
}

fn matrix<R: Read>(
    importer: &mut Importer,
    path: &str,
    mut reader: csv::Reader<R>,
    mut record: csv::ByteRecord,
    first: &[String],
) -> Result<(), ImportError> {
    let width = record.len();
    let numbered = width > 1 && first.iter().enumerate().all(|(expert, field)| *field == expert.to_string());
    let mut second = csv::ByteRecord::new();
    if numbered && next(&mut reader, path, &mut second)? {
        let last = width - 1;
        importer.tally.stated_notes.push(format!("a first line of 0 to {last} is taken as the numbers of the experts"));
        record = second;
    }
    let mut table = Table::matrix(&mut importer.tally, &importer.options, path, width)?;
    for layer in 0.. {
        let line = line(&record);
        check_width(path, line, record.len(), width)?;
        table.matrix_row(&|| format!("line {line}"), layer, &fields(path, line, &record)?)?;
        if !next(&mut reader, path, &mut record)? {
            break;
        }
    }
    Ok(())
}

fn next<R: Read>(reader: &mut csv::Reader<R>, path: &str, record: &mut csv::ByteRecord) -> Result<bool, ImportError> {
    reader.read_byte_record(record).map_err(|error| match error.into_kind() {
        csv::ErrorKind::Io(source) => ImportError::read(path, source),
        kind => ImportError::file(path, format!("{kind:?}"), "delimited text"),
    })
}

fn line(record: &csv::ByteRecord) -> u64 {
    record.position().map_or(0, csv::Position::line)
}

fn fields<'r>(path: &str, line: u64, record: &'r csv::ByteRecord) -> Result<Vec<Cell<'r>>, ImportError> {
    let text = |field: &'r [u8]| {
        let text = std::str::from_utf8(field).map(Cell::Text);
        text.map_err(|_| ImportError::file(path, format!("bytes that are no UTF-8 in line {line}"), "text in UTF-8"))
    };
    record.iter().map(text).collect()
}

fn check_width(path: &str, line: u64, found: usize, expected: usize) -> Result<(), ImportError> {
    if found == expected {
        return Ok(());
    }
    Err(ImportError::file(path, format!("{found} fields in line {line}"), format!("{expected}, as in the first line")))
}
