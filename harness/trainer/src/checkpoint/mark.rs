//! What makes a checkpoint whole and ties it to a run: `checkpoint.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::Digest;
use workloads::Training;

use crate::checkpoint::error::CheckpointError;
use crate::files::write_atomically;
use crate::setup::Setup;

/// Version of the files; raised whenever their content changes its meaning.
const SCHEMA_VERSION: u32 = 6;
/// The file without which a checkpoint does not exist.
const MARK: &str = "checkpoint.json";

/// The content of `checkpoint.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    schema_version: u32,
    /// Iterations that have run.
    iteration: usize,
    /// What is trained, by field: all that later iterations follow from.
    trained: BTreeMap<String, String>,
}

/// How many iterations the last checkpoint of a run has; 0 if there is none. Reads only its mark.
///
/// # Errors
/// A checkpoint of another run, or one that this run cannot go on from.
pub fn found(setup: &Setup) -> Result<usize, CheckpointError> {
    let Some((folder, _)) = &setup.checkpoint else { return Ok(0) };
    let Some(last) = last(folder)? else { return Ok(0) };
    let path = last.join(MARK);
    let mark = Mark::read(&path)?;
    if let Some(error) = mark.difference(&path, setup) {
        return Err(error);
    }
    if mark.iteration > setup.iterations {
        return Err(CheckpointError::Beyond { path, found: mark.iteration, asked: setup.iterations });
    }
    Ok(mark.iteration)
}

/// Refuses to begin a run anew in a folder of other runs' checkpoints: whoever asks for that means to go on from one of them.
/// `own` are the names of the runs that were asked for together.
///
/// # Errors
/// A checkpoint of none of them, with the first field in which it differs.
pub fn refuse_others(setup: &Setup, own: &[String]) -> Result<(), CheckpointError> {
    let Some((folder, _)) = &setup.checkpoint else { return Ok(()) };
    let Some(all) = folder.parent().filter(|all| all.exists() && !folder.exists()) else { return Ok(()) };
    let failed = |error| CheckpointError::file(all, error);
    let mut others: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(all).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !own.contains(&entry.file_name().to_string_lossy().into_owned()) && entry.path().is_dir() {
            others.push(entry.path());
        }
    }
    others.sort();
    for other in others {
        let Some(last) = last(&other)? else { continue };
        let path = last.join(MARK);
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (found, expected) = (name(&other), name(folder));
        let by_name = CheckpointError::Other { path: path.clone(), field: "run".to_owned(), found, expected };
        return Err(Mark::read(&path)?.difference(&path, setup).unwrap_or(by_name));
    }
    Ok(())
}

impl Mark {
    fn read(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = fs::read(path).map_err(|error| CheckpointError::file(path, error))?;
        serde_json::from_slice(&bytes).map_err(|error| CheckpointError::file(path, error))
    }

    /// The first field in which what was trained is not what is to be trained.
    fn difference(&self, path: &Path, setup: &Setup) -> Option<CheckpointError> {
        let other = |field: &str, found: &str, expected: &str| {
            let (field, found, expected) = (field.to_owned(), found.to_owned(), expected.to_owned());
            CheckpointError::Other { path: path.to_owned(), field, found, expected }
        };
        if self.schema_version != SCHEMA_VERSION {
            return Some(other("schema_version", &self.schema_version.to_string(), &SCHEMA_VERSION.to_string()));
        }
        trained(setup).iter().find_map(|(field, expected)| {
            let found = self.trained.get(field).map_or("", String::as_str);
            (found != expected).then(|| other(field, found, expected))
        })
    }
}

/// Makes the checkpoint in `folder` whole.
pub(super) fn write(setup: &Setup, folder: &Path, iteration: usize) -> Result<(), CheckpointError> {
    let path = folder.join(MARK);
    let mark = Mark { schema_version: SCHEMA_VERSION, iteration, trained: trained(setup) };
    let text = serde_json::to_vec_pretty(&mark).map_err(|error| CheckpointError::file(&path, error))?;
    write_atomically(&path, |temporary| fs::write(temporary, &text))
        .map_err(|error| CheckpointError::file(&path, error))
}

/// All that the next iterations follow from, except how many there are.
fn trained(setup: &Setup) -> BTreeMap<String, String> {
    let job = setup.job;
    let short = |text: String| {
        let digest = sha2::Sha256::digest(text.as_bytes());
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    // Of some iterations, near and far: another file is told from this one, and nothing is read whole.
    let of_some = |of: &dyn Fn(usize) -> String| {
        short(std::iter::once(0).chain((0..14).map(|power| 1 << power)).map(of).collect())
    };
    let mut fields: BTreeMap<String, String> = [
        ("system", setup.system.name().to_owned()),
        ("gpus", job.gpus.to_string()),
        ("plan", setup.plan.to_string()),
        ("seed", setup.seed.to_string()),
        ("model", job.model.name.clone()),
        ("model (hash)", short(format!("{:?}", job.model))),
        ("gate", format!("{:?}", job.gate)),
        ("global_batch", job.global_batch.to_string()),
        ("kind of weights", format!("{:?}", setup.kind)),
        ("gradients", format!("{:?}", setup.training.gradients)),
        ("cluster (hash)", short(format!("{:?}", job.cluster))),
        ("data (hash of samples)", of_some(&|t| format!("{:?}", setup.samples.sample(t, t % job.global_batch)))),
        (
            "replay (hash of iterations)",
            setup
                .replay
                .map_or_else(|| "none".to_owned(), |routing| of_some(&|t| format!("{:?}", routing.iteration(t)))),
        ),
    ]
    .map(|(field, value)| (field.to_owned(), value))
    .into();
    let Training { learning_rate, beta1, beta2, epsilon, weight_decay, clip_norm, balance_loss, gradients: _ } =
        setup.training;
    let constants = [
        ("learning_rate", learning_rate),
        ("beta1", beta1),
        ("beta2", beta2),
        ("epsilon", epsilon),
        ("weight_decay", weight_decay),
        ("clip_norm", clip_norm),
        ("balance_loss", balance_loss),
    ];
    fields.extend(constants.map(|(field, value)| (format!("training.{field}"), value.to_string())));
    fields
}

/// The last whole checkpoint in a folder.
fn last(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let whole = all(folder)?.into_iter().filter(|(_, path)| path.join(MARK).exists());
    Ok(whole.max_by_key(|(number, _)| *number).map(|(_, path)| path))
}

/// Every checkpoint in a folder, whole or not, with its iteration.
pub(super) fn all(folder: &Path) -> Result<Vec<(usize, PathBuf)>, CheckpointError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| CheckpointError::file(folder, error))? {
        let path = entry.map_err(|error| CheckpointError::file(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let number = name.as_deref().and_then(|name| name.strip_prefix("iteration-")?.parse().ok());
        if let Some(number) = number {
            all.push((number, path));
        }
    }
    Ok(all)
}
