//! Expert loads that other tools recorded, as a routing trace.
//!
//! [`Importer`] takes files as bytes, in any number, and tells their format from their content: delimited text, JSON (a
//! document or one value a line), NPY and NPZ, Parquet, the artifact's logs; plain, as gz, xz, tar or zip.
//!
//! Tables name their columns ([`ColumnNames`]; common names are known). A row is one count, the counts of all experts as a
//! list or as a column each, or the experts that one token chose. Arrays have axes ([`Axis`]). What a file lacks is 0, or
//! comes from the numbers in its path (`iter_0100/layer_03`). Files add up; members of one archive may not say the same twice.
//! [`tally`] turns the sum of all that into a trace, and says what it had to change.
//!
//! Left out: pickled objects (`.pt`, `.pkl`), which cannot be read without running them.

mod archive;
mod array;
mod json;
mod npy;
pub mod parquet;
mod table;
mod tally;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, BufRead, BufReader, Read};

use thiserror::Error;

pub use array::Axis;
pub use table::ColumnNames;

use super::artifact::{self, ArtifactReader};
use super::{BOM, RoutingTrace, TraceError};
use crate::error;
use table::Table;
use tally::Tally;

/// Layers, experts, ranks and micro-batches have numbers below this.
pub const MOST_EXTENT: u64 = error::MOST_EXTENT as u64;

/// Counts above this are refused: up to it, a float is exact.
pub const MOST_COUNT: u64 = 1 << 53;

/// How files are to be understood; the default asks the files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImportOptions {
    /// Columns of tables, members of JSON objects.
    pub columns: ColumnNames,
    /// Axes of arrays, outermost first; by their number when absent, see [`Axis`].
    pub axes: Option<Vec<Axis>>,
    /// Choices per token; when absent, what the files state or hold.
    pub top_k: Option<u32>,
    /// Experts per layer; when absent, one more than the highest number.
    pub experts: Option<usize>,
    /// Entries per row of the trace; when absent, those of the fullest row.
    pub entries: Option<u32>,
    /// Tokens that make a micro-batch, where files list tokens; all of a row's when absent.
    pub tokens_per_micro_batch: Option<usize>,
    /// Counts run since start-up: an iteration is the increase over the one before.
    pub cumulative: bool,
}

impl ImportOptions {
    /// Whether a trace that says of itself how many experts and entries it has has those that are asked for.
    fn check(&self, trace: &RoutingTrace) -> Result<(), ImportError> {
        let (shape, entries) = (trace.shape(), self.entries.map(|entries| entries as usize));
        for (what, asked, found) in
            [("experts", self.experts, shape.experts), ("entries a row", entries, shape.entries as usize)]
        {
            if let Some(asked) = asked.filter(|&asked| asked != found) {
                return Err(ImportError::file(
                    trace.name(),
                    format!("{found} {what}"),
                    format!("{asked}, as asked for"),
                ));
            }
        }
        Ok(())
    }
}

/// Collects files.
pub struct Importer {
    name: String,
    options: ImportOptions,
    logs: Option<ArtifactReader>,
    tally: Tally,
}

impl Importer {
    /// No files yet; `name` is the name of the trace to be.
    pub fn new(name: impl Into<String>, options: ImportOptions) -> Self {
        Self { name: name.into(), options, logs: None, tally: Tally::default() }
    }

    /// Adds one file; `path` tells what columns do not, and names it in errors.
    ///
    /// # Errors
    /// What cannot be read or understood: file, place, field, what was found and what was expected.
    pub fn add(&mut self, path: &str, input: &mut dyn Read) -> Result<(), ImportError> {
        self.add_nested(path, input, 0)
    }

    /// A table whose rows the caller hands in; `header` holds the names of its columns.
    ///
    /// # Errors
    /// Columns that are named in the options and not there, or none that could hold loads.
    fn table(&mut self, path: &str, header: &[&str]) -> Result<Table<'_>, ImportError> {
        self.tally.begin(path);
        Table::new(&mut self.tally, &self.options, path, header)
    }

    /// The trace of all files.
    ///
    /// # Errors
    /// No entries, loads that no `top_k` different choices a token can give, more counts than a trace holds.
    pub fn finish(self) -> Result<RoutingTrace, ImportError> {
        match self.logs {
            None => self.tally.finish(self.name, &self.options),
            Some(logs) if self.tally.is_empty() => {
                let trace = logs.finish()?;
                self.options.check(&trace)?;
                Ok(trace)
            }
            Some(_) => Err(ImportError::file(&self.name, "logs of the artifact beside other files", "one of them")),
        }
    }

    fn add_nested(&mut self, path: &str, input: &mut dyn Read, depth: usize) -> Result<(), ImportError> {
        if depth > 3 {
            return Err(ImportError::file(path, "archives in archives in archives", "fewer"));
        }
        let mut input = BufReader::with_capacity(1 << 16, input);
        // One call may bring few bytes; formats are told by the first of them.
        let head = input.fill_buf().map_err(|source| ImportError::read(path, source))?;
        let format = Format::of(path, head);
        if matches!(format, Format::Npy | Format::Json | Format::Text) {
            self.tally.begin(path);
        }
        match format {
            Format::Gzip => self.add_nested(path, &mut archive::gunzip(input), depth + 1),
            Format::Xz => {
                let mut content = archive::unxz(input).map_err(|source| ImportError::read(path, source))?;
                self.add_nested(path, &mut content, depth + 1)
            }
            Format::Zip => self.add_zip(path, &mut input, depth),
            Format::Tar => self.add_tar(path, &mut input, depth),
            Format::Parquet => {
                let bytes = read_all(path, &mut input)?;
                parquet::read(self, path, &bytes)
            }
            Format::Log => {
                let bytes = read_all(path, &mut input)?;
                let reader = || ArtifactReader::new(self.name.clone()).with_top_k(self.options.top_k);
                let logs = self.logs.get_or_insert_with(reader);
                Ok(logs.add_bytes(path, &bytes)?)
            }
            Format::Npy => npy::read(&mut self.tally, &self.options, path, &mut input),
            Format::Json => json::read(self, path, &mut input),
            Format::Text => text::read(self, path, &mut input),
            Format::Unreadable { found } => Err(ImportError::file(path, found, READABLE)),
        }
    }

    fn add_zip(&mut self, path: &str, input: &mut dyn Read, depth: usize) -> Result<(), ImportError> {
        let bytes = read_all(path, input)?;
        let members = archive::members(path, &bytes)?;
        if members.iter().any(|member| member.name.ends_with("data.pkl")) {
            return Err(ImportError::file(path, "a PyTorch file", READABLE));
        }
        let logs = members.iter().any(|member| artifact::parse_name(&member.name).is_some());
        let outer = self.tally.enter_archive();
        for member in members {
            if logs && artifact::parse_name(&member.name).is_none() {
                continue;
            }
            // The archive's own name is in the path of errors, its numbers are not in that of what it holds.
            let result = self.add_nested(&member.name, &mut member.open(&bytes), depth + 1);
            result.map_err(|error| error.within(path))?;
        }
        self.tally.leave_archive(outer);
        Ok(())
    }

    fn add_tar(&mut self, path: &str, input: &mut dyn Read, depth: usize) -> Result<(), ImportError> {
        let failed = |source| ImportError::read(path, source);
        let mut archive = tar::Archive::new(input);
        let outer = self.tally.enter_archive();
        for entry in archive.entries().map_err(failed)? {
            let mut entry = entry.map_err(failed)?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            self.add_nested(&name, &mut entry, depth + 1).map_err(|error| error.within(path))?;
        }
        self.tally.leave_archive(outer);
        Ok(())
    }
}

/// What can be imported, for messages.
const READABLE: &str =
    "CSV, TSV, JSON, JSON lines, NPY, NPZ, Parquet or table_iter*_rank*.log, plain or in gz, xz, tar or zip";

enum Format {
    Gzip,
    Xz,
    Zip,
    Tar,
    Parquet,
    Log,
    Npy,
    Json,
    Text,
    Unreadable { found: &'static str },
}

impl Format {
    /// By the first bytes; the artifact's logs have none of their own, and damaged Parquet should be called that.
    fn of(path: &str, head: &[u8]) -> Self {
        let magic = [
            (&b"\x1f\x8b"[..], Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"PK\x03\x04", Self::Zip),
            (b"PK\x05\x06", Self::Zip),
            (b"PAR1", Self::Parquet),
            (b"\x93NUMPY", Self::Npy),
            (b"\xff\xfe", Self::Unreadable { found: "text in UTF-16" }),
            (b"\xfe\xff", Self::Unreadable { found: "text in UTF-16" }),
            (b"\x89HDF", Self::Unreadable { found: "an HDF5 file" }),
            (b"\x80\x02", Self::Unreadable { found: "pickled objects" }),
            (b"\x80\x03", Self::Unreadable { found: "pickled objects" }),
            (b"\x80\x04", Self::Unreadable { found: "pickled objects" }),
            (b"\x80\x05", Self::Unreadable { found: "pickled objects" }),
        ];
        if let Some((_, format)) = magic.into_iter().find(|(magic, _)| head.starts_with(magic)) {
            return format;
        }
        if head.get(257..262) == Some(b"ustar") {
            return Self::Tar;
        }
        if artifact::parse_name(path).is_some() {
            return Self::Log;
        }
        if path.ends_with(".parquet") {
            return Self::Parquet;
        }
        let text = head.strip_prefix(BOM).unwrap_or(head);
        match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'{' | b'[') => Self::Json,
            _ if text.contains(&0) => Self::Unreadable { found: "binary data" },
            _ => Self::Text,
        }
    }
}

fn skip_bom(path: &str, input: &mut dyn BufRead) -> Result<(), ImportError> {
    let head = input.fill_buf().map_err(|source| ImportError::read(path, source))?;
    let skip = if head.starts_with(BOM) { BOM.len() } else { 0 };
    input.consume(skip);
    Ok(())
}

fn read_all(path: &str, input: &mut dyn Read) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    input.read_to_end(&mut bytes).map_err(|source| ImportError::read(path, source))?;
    Ok(bytes)
}

/// What a gz holds; other bytes as they are. `path` names them in errors.
///
/// # Errors
/// A gz that is damaged, or grows beyond what recorded loads do.
pub fn unpacked(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, ImportError> {
    match Format::of(path, &bytes) {
        Format::Gzip => read_all(path, &mut archive::gunzip(bytes.as_slice())),
        _ => Ok(bytes),
    }
}

/// Why files are no trace.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A file that is something else.
    #[error("{file}: found {found}: expected {expected}")]
    File {
        /// File as given.
        file: String,
        /// What it is or holds.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A value that cannot be used.
    #[error("{file}, {at}: {field} is {found}: expected {expected}")]
    Value {
        /// File as given.
        file: String,
        /// Line, row or index in it.
        at: String,
        /// Column, member or axis.
        field: String,
        /// What stands there.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A file that cannot be read.
    #[error("{file}: cannot be read")]
    Read {
        /// File as given.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// What was read is no trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl ImportError {
    /// A file that is something else.
    pub fn file(file: &str, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::File { file: file.into(), found: found.into(), expected: expected.into() }
    }

    fn read(file: &str, source: io::Error) -> Self {
        Self::Read { file: file.into(), source }
    }

    /// The same, of a file in an archive.
    fn within(mut self, archive: &str) -> Self {
        if let Self::File { file, .. } | Self::Value { file, .. } | Self::Read { file, .. } = &mut self {
            *file = format!("{archive}/{file}");
        }
        self
    }
}
