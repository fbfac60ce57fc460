//! Traces as Parquet, the native format: `iteration, rank, layer, micro_batch, expert, entries`, one row per count; choices per
//! token and notes in its metadata.

use std::path::Path;

use anyhow::Result;
use polars::prelude::{Column, DataFrame, KeyValueMetadata, ParquetWriter};
use workloads::trace::RoutingTrace;
use workloads::trace::import::parquet::{CHOICES, NOTES, TOP_K};

use crate::store;

const COLUMNS: [&str; 6] = ["iteration", "rank", "layer", "micro_batch", "expert", "entries"];

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
    let choices = trace.choices().text();
    let metadata = [(TOP_K, shape.top_k.to_string()), (NOTES, trace.notes().join("\n")), (CHOICES, choices)];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value)).into();
    store::write_atomically(path, |file| {
        let metadata = KeyValueMetadata::from_static(metadata);
        ParquetWriter::new(file).with_key_value_metadata(Some(metadata)).finish(&mut frame)?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use polars::prelude::ParquetCompression;
    use workloads::trace::import::{ImportOptions, Importer};
    use workloads::trace::{Choices, SynthSpec};

    use super::*;

    /// A number from 0 to `below`, by a linear congruence.
    fn draw(state: &mut u64, below: usize) -> usize {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) as usize % below
    }

    fn import(bytes: &[u8]) -> Result<RoutingTrace> {
        let mut importer = Importer::new("t", ImportOptions::default());
        importer.add("t.parquet", &mut &bytes[..])?;
        Ok(importer.finish()?)
    }

    fn trace() -> RoutingTrace {
        let spec = SynthSpec { layers: 2, samples: 2, ranks: 1, experts: 4, entries: 16, ..SynthSpec::default() };
        spec.generate().unwrap().with_notes(vec!["of a test".to_owned()]).chosen_by(Choices::Stated { within: Some(7) })
    }

    fn written() -> Vec<u8> {
        let folder = std::env::temp_dir().join(format!("moebench-written-{}-{:p}", std::process::id(), &COLUMNS));
        let path = folder.join(format!("{:?}.parquet", std::thread::current().id()));
        write(&trace(), &path).unwrap();
        let whole = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        whole
    }

    /// Polars' writer against our reader, in every packing and with several groups of rows and pages.
    #[test]
    fn what_polars_writes_is_read() {
        let trace = trace();
        let read = import(&written()).unwrap();
        assert_eq!((read.shape(), read.counts(), read.notes()), (trace.shape(), trace.counts(), trace.notes()));
        assert_eq!(read.choices(), trace.choices());
        let rows: Vec<[u32; 5]> = (0..3)
            .flat_map(|layer| (0..50).flat_map(move |iteration| (0..4).map(move |expert| [iteration, layer, expert])))
            .map(|[iteration, layer, expert]| [iteration, layer, expert, 8 + (iteration + expert) % 4, 0])
            .collect();
        for compression in [
            ParquetCompression::Uncompressed,
            ParquetCompression::Snappy,
            ParquetCompression::Gzip(None),
            ParquetCompression::Brotli(None),
            ParquetCompression::Zstd(None),
            ParquetCompression::Lz4Raw,
        ] {
            let names = ["step", "layer_id", "expert_id", "count", "unused"];
            let column = |(index, name): (usize, &&str)| {
                Column::new((*name).into(), rows.iter().map(|row| i64::from(row[index])).collect::<Vec<_>>())
            };
            let columns = names.iter().enumerate().map(column).collect();
            let mut frame = DataFrame::new(rows.len(), columns).unwrap();
            let mut bytes = Vec::new();
            let writer = ParquetWriter::new(&mut bytes).with_compression(compression);
            writer.with_row_group_size(Some(70)).with_data_page_size(Some(64)).finish(&mut frame).unwrap();
            let read = import(&bytes).unwrap_or_else(|error| panic!("{compression:?}: {error}"));
            assert_eq!((read.iterations().len(), read.shape().layers, read.shape().experts), (50, 3, 4));
            for row in &rows {
                assert_eq!(
                    read.row(row[0] as usize, row[1] as usize, 0, 0)[row[2] as usize],
                    row[3],
                    "{compression:?}"
                );
            }
        }
    }

    /// A file that moebench writes, cut off or with a few bits changed anywhere: read or refused.
    #[test]
    fn damaged_parquet_is_read_or_refused() {
        let whole = written();
        let (mut state, mut read, mut refused) = (10, 0, 0);
        for round in 0..20_000 {
            let mut bytes = whole.clone();
            match round % 10 {
                0 => bytes.truncate(draw(&mut state, whole.len())),
                changes => (0..changes).for_each(|_| {
                    let at = draw(&mut state, whole.len());
                    bytes[at] ^= 1 << draw(&mut state, 8);
                }),
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
