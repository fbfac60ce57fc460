//! Traces as Parquet: the native format (`iteration, rank, layer, micro_batch, expert, entries`, one row per count; choices per
//! token and notes in its metadata), and the rows of any other file for an [`Importer`].

use std::io::Cursor;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use anyhow::Result;
use polars::prelude::{
    Column, DataFrame, DataType, KeyValueMetadata, ParquetReader, ParquetWriter, PolarsError, PolarsResult, SerReader,
    Series,
};
use polars_parquet::parquet::metadata::SchemaDescriptor;
use polars_parquet::parquet::schema::types::{IntegerType, ParquetType, PrimitiveConvertedType, PrimitiveLogicalType};
use workloads::trace::RoutingTrace;
use workloads::trace::import::{Cell, ImportError, Importer};

use crate::store;

const COLUMNS: [&str; 6] = ["iteration", "rank", "layer", "micro_batch", "expert", "entries"];

/// Keys of the native format's metadata.
const TOP_K: &str = "moebench.top_k";
const NOTES: &str = "moebench.notes";

/// Writes a trace as Parquet, through a temporary file.
///
/// # Errors
/// When the file cannot be written.
pub fn write(trace: &RoutingTrace, path: &Path) -> Result<()> {
    let shape = trace.shape();
    let mut columns: [Vec<u32>; 6] = std::array::from_fn(|_| Vec::with_capacity(trace.counts().len()));
    for (index, &iteration) in trace.iterations().iter().enumerate() {
        for layer in 0..shape.layers {
            for micro_batch in 0..shape.micro_batches {
                for rank in 0..shape.ranks {
                    for (expert, &entries) in trace.row(index, layer, micro_batch, rank).iter().enumerate() {
                        let values = [iteration, rank as u32, layer as u32, micro_batch as u32, expert as u32, entries];
                        for (column, value) in columns.iter_mut().zip(values) {
                            column.push(value);
                        }
                    }
                }
            }
        }
    }
    let height = trace.counts().len();
    let columns = COLUMNS.iter().zip(columns).map(|(name, values)| Column::new((*name).into(), values));
    let mut frame = DataFrame::new(height, columns.collect())?;
    let metadata = [(TOP_K, shape.top_k.to_string()), (NOTES, trace.notes().join("\n"))];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    store::write_atomically(path, |file| {
        let metadata = KeyValueMetadata::from_static(metadata);
        ParquetWriter::new(file).with_key_value_metadata(Some(metadata)).finish(&mut frame)?;
        Ok(())
    })
}

/// Rows that are held at once.
const ROWS: usize = 1 << 20;

/// Hands a Parquet file's rows to an importer. Where a file is damaged, Polars may panic; that is the file's fault, not the
/// program's.
pub(super) fn read(importer: &mut Importer, path: &str, bytes: Vec<u8>) -> Result<(), ImportError> {
    static QUIET: AtomicBool = AtomicBool::new(false);
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let shown = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !QUIET.load(Ordering::Relaxed) {
                shown(panic)
            }
        }));
    });
    QUIET.store(true, Ordering::Relaxed);
    let read = panic::catch_unwind(AssertUnwindSafe(|| read_rows(importer, path, bytes)));
    QUIET.store(false, Ordering::Relaxed);
    read.unwrap_or_else(|_| Err(ImportError::file(path, "a damaged file", "whole Parquet")))
}

fn read_rows(importer: &mut Importer, path: &str, bytes: Vec<u8>) -> Result<(), ImportError> {
    let unreadable = |error: PolarsError| {
        let error = error.to_string();
        ImportError::file(path, error.lines().next().unwrap_or_default(), "whole Parquet")
    };
    let bytes: Arc<[u8]> = bytes.into();
    let open = || ParquetReader::new(Cursor::new(bytes.clone()));
    let mut metadata = open().get_metadata().map_err(unreadable)?.as_ref().clone();
    for pair in metadata.key_value_metadata.take().into_iter().flatten() {
        let value = pair.value.unwrap_or_default();
        match pair.key.as_str() {
            TOP_K => importer.state(value.parse().ok(), Vec::new()),
            NOTES => importer.state(None, value.lines().map(str::to_owned).collect()),
            // Among the rest is Arrow's schema: without it, columns have Parquet's own few types.
            _ => {}
        }
    }
    let fields = metadata.schema_descr.fields().iter().map(widened).collect();
    metadata.schema_descr = SchemaDescriptor::new(metadata.schema_descr.name().into(), fields);
    let metadata = Arc::new(metadata);
    let open = || {
        let mut reader = open();
        reader.set_metadata(metadata.clone());
        reader
    };
    let schema = open().schema().map_err(unreadable)?;
    let header: Vec<String> = schema.iter_names().map(|name| name.to_string()).collect();
    let names: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = importer.table(path, &names)?;
    let used: Vec<usize> = (0..header.len()).filter(|&column| table.uses(column)).collect();
    for start in (0..metadata.num_rows).step_by(ROWS) {
        let wanted = used.iter().map(|&column| header[column].clone()).collect();
        let frame = open().with_columns(Some(wanted)).with_slice(Some((start, ROWS))).finish().map_err(unreadable)?;
        let mut columns: Vec<Option<Values>> = header.iter().map(|_| None).collect();
        for &column in &used {
            let series = frame.column(&header[column]).map_err(unreadable)?.as_materialized_series();
            columns[column] = Some(Values::new(series).map_err(unreadable)?);
        }
        let mut room = Vec::new();
        for row in 0..frame.height() {
            let lengths = columns.iter().map(|values| values.as_ref().map_or(0, |values| values.length(row)));
            room.clear();
            room.extend(lengths);
            let cells = columns.iter().zip(room.chunks(1));
            let cells: Vec<Cell> =
                cells.map(|(values, shape)| values.as_ref().map_or(Cell::Missing, |v| v.cell(row, shape))).collect();
            table.row(&|| format!("row {}", start + row), &cells)?;
        }
    }
    Ok(())
}

/// The type without its small integers, which Parquet stores in 32 bits: as those, Polars reads them without types of their
/// width being compiled in.
fn widened(field: &ParquetType) -> ParquetType {
    use IntegerType::{Int8, Int16, UInt8, UInt16};
    let mut field = field.clone();
    match &mut field {
        ParquetType::PrimitiveType(primitive) => {
            let smalls = [Int8, Int16, UInt8, UInt16].map(|kind| Some(PrimitiveLogicalType::Integer(kind)));
            let converted = matches!(
                primitive.converted_type,
                Some(
                    PrimitiveConvertedType::Int8
                        | PrimitiveConvertedType::Int16
                        | PrimitiveConvertedType::Uint8
                        | PrimitiveConvertedType::Uint16
                )
            );
            if converted || smalls.contains(&primitive.logical_type) {
                (primitive.logical_type, primitive.converted_type) = (None, None);
            }
        }
        ParquetType::GroupType { fields, .. } => fields.iter_mut().for_each(|field| *field = widened(field)),
    }
    field
}

/// A column's values.
enum Values {
    /// Not a number where there is none.
    Numbers(Vec<f64>),
    /// Lists, and where each ends.
    Lists {
        values: Vec<f64>,
        ends: Vec<usize>,
    },
    Texts(Vec<String>),
}

impl Values {
    fn new(series: &Series) -> PolarsResult<Self> {
        match series.dtype() {
            DataType::List(_) => {
                let lists = series.list()?;
                let (mut values, mut ends) = (Vec::new(), Vec::with_capacity(lists.len()));
                for list in lists.amortized_iter() {
                    if let Some(list) = list {
                        values.extend(numbers(list.as_ref())?);
                    }
                    ends.push(values.len());
                }
                Ok(Self::Lists { values, ends })
            }
            DataType::String => {
                let texts = series.str()?;
                Ok(Self::Texts(texts.iter().map(|text| text.unwrap_or_default().to_owned()).collect()))
            }
            _ => Ok(Self::Numbers(numbers(series)?)),
        }
    }

    fn start(&self, row: usize) -> usize {
        match self {
            Self::Lists { ends, .. } => row.checked_sub(1).map_or(0, |before| ends[before]),
            _ => 0,
        }
    }

    fn length(&self, row: usize) -> usize {
        match self {
            Self::Lists { ends, .. } => ends[row] - self.start(row),
            _ => 1,
        }
    }

    fn cell<'a>(&'a self, row: usize, shape: &'a [usize]) -> Cell<'a> {
        match self {
            Self::Numbers(values) if values[row].is_nan() => Cell::Missing,
            Self::Numbers(values) => Cell::Number(values[row]),
            Self::Lists { values, ends } => Cell::List { shape, values: &values[self.start(row)..ends[row]] },
            Self::Texts(texts) => Cell::Text(&texts[row]),
        }
    }
}

/// Numbers of any type as floats: whole ones are exact up to 2^53, past which no count is taken.
fn numbers(series: &Series) -> PolarsResult<Vec<f64>> {
    let floats = series.cast(&DataType::Float64)?;
    Ok(floats.f64()?.iter().map(|value| value.unwrap_or(f64::NAN)).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use workloads::trace::SynthSpec;
    use workloads::trace::import::ImportOptions;

    use super::*;

    /// A number from 0 to `below`, by a linear congruence.
    fn draw(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) as usize % below
    }

    /// A file that moebench writes, cut off or with a few bytes of its footer changed: read or refused. Pages are left alone:
    /// Polars believes the lengths of runs in them, and a damaged one can ask for more memory than there is.
    #[test]
    fn damaged_parquet_is_read_or_refused() {
        let spec = SynthSpec { layers: 2, samples: 2, ranks: 1, experts: 4, entries: 16, ..SynthSpec::default() };
        let folder = std::env::temp_dir().join(format!("moebench-mutated-{}", std::process::id()));
        let path = folder.join("t.parquet");
        write(&spec.generate().unwrap(), &path).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let import = |bytes: &[u8]| {
            let mut importer = Importer::new("t", ImportOptions::default(), read);
            importer.add("t.parquet", &mut &bytes[..])?;
            importer.finish()
        };
        assert_eq!(import(&whole).unwrap().shape().layers, 2);
        let (mut state, mut read, mut refused) = (10, 0, 0);
        let length = u32::from_le_bytes(whole[whole.len() - 8..whole.len() - 4].try_into().unwrap());
        let footer = whole.len() - 8 - length as usize;
        for round in 0..1000 {
            let mut bytes = whole.clone();
            match round % 10 {
                0 => bytes.truncate(draw(&mut state, whole.len())),
                _ => {
                    let at = footer + draw(&mut state, length as usize);
                    bytes[at] ^= 1 << draw(&mut state, 8);
                }
            }
            match import(&bytes) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
        assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
    }
}
