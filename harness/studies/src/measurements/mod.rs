//! Published measurements, each beside the simulator's prediction of the very same.
//!
//! Three kinds, a CSV of one row per measurement each: whole iterations ([`iterations`]), single MoE layers ([`layers`]), and
//! one layer over time, experts in order and placed online ([`series`]). All are predicted with the systems, the cost model
//! and the evaluator that `moebench run` uses; nothing here has a formula of its own. Calibration fits constants to them,
//! the studies of this crate say how far predictions are off.

pub mod iterations;
pub mod layer;
pub mod layers;
pub mod order;
pub mod rank_loads;
pub mod series;
pub mod steps;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use workloads::CsvFile;
use workloads::trace::import;

use runs::provenance;

/// Reads a file of measurements, plain or as gz.
///
/// # Errors
/// A file that cannot be read, is no CSV or has no rows.
pub fn open(path: &Path) -> Result<CsvFile> {
    let name = path.display().to_string();
    let bytes = std::fs::read(path).with_context(|| format!("{name}: cannot be read"))?;
    let file = CsvFile::parse(&name, &import::unpacked(&name, bytes)?)?;
    ensure!(file.rows().next().is_some(), "{name}: no rows below the header");
    Ok(file)
}

/// A file's name, and the first twelve digits of its SHA-256.
///
/// # Errors
/// A file that cannot be read.
pub fn named(path: &Path) -> Result<(String, String)> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let name = path.file_name().map_or(path.display().to_string(), |name| name.to_string_lossy().into_owned());
    Ok((name, provenance::sha256(&bytes).chars().take(12).collect()))
}
