//! Why a run cannot write a checkpoint or go on from one.

use std::fmt::Display;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It belongs to another run.
    #[error(
        "{path}: a checkpoint with {field} = {found}, and this run has {field} = {expected}: choose another --checkpoint"
    )]
    Other { path: PathBuf, field: String, found: String, expected: String },
    /// It has more iterations than the run.
    #[error(
        "{path}: a checkpoint after {found} iterations, and this run has {asked}: ask for more, or choose another --checkpoint"
    )]
    Beyond { path: PathBuf, found: usize, asked: usize },
    /// It lacks choices of the gate that this run records.
    #[error(
        "{path}: iteration {iteration} was not recorded with --record-parts {parts}, as this run is: go on with the --record-trace, --record-every, --record-parts and --clock of the run that wrote it, or choose another --checkpoint"
    )]
    NotRecorded { path: PathBuf, iteration: usize, parts: usize },
    /// Ranks see different folders.
    #[error(
        "rank {rank} finds a checkpoint after {own} iterations, rank {other} one after {found} (0: none): --checkpoint must be one folder that all machines share"
    )]
    Disagreement { rank: usize, own: usize, other: usize, found: usize },
    /// A file cannot be read or written, or is damaged.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
}

impl CheckpointError {
    pub(super) fn file(path: &Path, reason: impl Display) -> Self {
        Self::File { path: path.to_owned(), reason: reason.to_string() }
    }
}
