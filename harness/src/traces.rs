//! Routing traces as files: the artifact's folder or archive, and the native Parquet (`iteration, rank, layer, micro_batch,
//! expert, entries`, one row per count).

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail};
use polars::prelude::{Column, DataFrame, DataType, ParquetReader, ParquetWriter, SerReader};
use workloads::trace::{self, ArtifactReader, RoutingTrace, SynthSpec, TraceShape};

use crate::runs::store;

/// The trace at `path`, or the synthetic default.
///
/// # Errors
/// What is wrong with the files, where.
pub fn load(path: Option<&Path>) -> Result<RoutingTrace> {
    let Some(path) = path else {
        return Ok(SynthSpec::default().generate()?);
    };
    let name = path.display().to_string();
    if path.is_dir() {
        return read_folder(&name, path);
    }
    let file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
    if name.ends_with(".tar.xz") {
        return Ok(trace::read_tar_xz(&name, file)?);
    }
    if name.ends_with(".parquet") {
        return read_parquet(&name, file);
    }
    bail!("{name}: not a trace: expected a folder or .tar.xz of table_iter*_rank*.log, or a .parquet")
}

fn read_folder(name: &str, path: &Path) -> Result<RoutingTrace> {
    let mut files: Vec<_> = fs::read_dir(path)
        .with_context(|| format!("{name}: cannot be listed"))?
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("{name}: cannot be listed"))?;
    files.sort_by_key(fs::DirEntry::file_name);
    let mut reader = ArtifactReader::new(name);
    for file in files {
        let file_name = file.file_name().to_string_lossy().into_owned();
        if !file_name.starts_with("table_iter") {
            continue;
        }
        let text = fs::read_to_string(file.path()).with_context(|| format!("{name}/{file_name}: cannot be read"))?;
        reader.add(&file_name, &text)?;
    }
    Ok(reader.finish()?)
}

const COLUMNS: [&str; 6] = ["iteration", "rank", "layer", "micro_batch", "expert", "entries"];

/// Writes a trace as Parquet, through a temporary file.
///
/// # Errors
/// When the file cannot be written.
pub fn write_parquet(trace: &RoutingTrace, path: &Path) -> Result<()> {
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
    store::write_atomically(path, |file| {
        ParquetWriter::new(file).finish(&mut frame)?;
        Ok(())
    })
}

fn read_parquet(name: &str, file: File) -> Result<RoutingTrace> {
    let frame = ParquetReader::new(file).finish().with_context(|| format!("{name}: not readable as Parquet"))?;
    let mut columns = Vec::new();
    for column in COLUMNS {
        columns.push(whole_numbers(name, &frame, column)?);
    }
    let mut labels = columns[0].clone();
    labels.sort_unstable();
    labels.dedup();
    let extent = |index: usize| columns[index].iter().max().map_or(0, |last| *last as usize + 1);
    let (ranks, layers, micro_batches, experts) = (extent(1), extent(2), extent(3), extent(4));
    let size = [labels.len(), layers, micro_batches, ranks, experts].iter().product::<usize>();
    if frame.height() != size || size == 0 {
        bail!(
            "{name}: {} rows: expected {size}, one for each of {} iterations, {layers} layers, {micro_batches} micro-batches, {ranks} ranks and {experts} experts",
            frame.height(),
            labels.len()
        );
    }
    let mut counts = vec![None; size];
    let at = |row: usize| std::array::from_fn(|column| columns[column][row] as usize);
    for row in 0..size {
        let [iteration, rank, layer, micro_batch, expert, entries] = at(row);
        let index = labels.partition_point(|&label| (label as usize) < iteration);
        let place = (((index * layers + layer) * micro_batches + micro_batch) * ranks + rank) * experts + expert;
        if counts[place].replace(entries as u32).is_some() {
            bail!(
                "{name}: row {row}: iteration {iteration}, rank {rank}, layer {layer}, micro-batch {micro_batch}, expert {expert} stands twice"
            );
        }
    }
    let counts: Vec<u32> = counts.into_iter().flatten().collect();
    let entries = counts[..experts].iter().sum();
    // The native format does not state how many experts a token chooses; two is what every trace so far has.
    let shape = TraceShape { layers, micro_batches, ranks, experts, entries, top_k: 2.min(experts as u32) };
    RoutingTrace::new(name, shape, labels, counts).with_context(|| name.to_owned())
}

/// A column as whole numbers of at least 0.
fn whole_numbers(name: &str, frame: &DataFrame, column: &str) -> Result<Vec<u32>> {
    let values = frame
        .column(column)
        .map_err(|_| anyhow::anyhow!("{name}: no column `{column}`; expected {}", COLUMNS.join(", ")))?
        .cast(&DataType::Float64)?;
    let values = values.f64()?;
    let mut numbers = Vec::with_capacity(values.len());
    for (row, value) in values.iter().enumerate() {
        match value {
            Some(value) if value >= 0.0 && value.fract() == 0.0 && value <= f64::from(u32::MAX) => {
                numbers.push(value as u32);
            }
            other => {
                let found = other.map_or("nothing".to_owned(), |value| value.to_string());
                bail!("{name}: row {row}: {column} = {found}: expected a whole number of at least 0");
            }
        }
    }
    Ok(numbers)
}
