//! Checkpoints: a run that was cut off goes on from the last one and ends with the same losses and records.
//!
//! A run's folder holds `reports.jsonl` (what all ranks told of each finished iteration, a line each, so that the records of
//! a resumed run are complete) and `iteration-N/`: a file of tensors per rank (master weights and both moments of every
//! bucket, the placement of every layer and its loads in all iterations so far) and `checkpoint.json`, which says what is
//! trained. Each file is written under another name and renamed, `checkpoint.json` after all others: without it, a
//! checkpoint is not there. Older ones go only then, so there is always a whole one.
//!
//! Samples, drops and initial values follow from the seed and the iteration, so nothing of them is kept. A policy is
//! asked anew: it must follow from the loads that it is shown.
//!
//! Ranks on several machines need one folder that all of them see.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use systems::Placement;
use tch::{Device, Kind, Tensor};
use workloads::Training;

use crate::TrainError;
use crate::files::write_atomically;
use crate::model::parameters::Bucket;
use crate::rank::{Part, Rank, Report};
use crate::setup::Setup;
use sha2::Digest;

/// Version of the files; raised whenever what is in them changes its meaning.
const SCHEMA_VERSION: u32 = 1;
/// What marks a checkpoint as whole.
const MARK: &str = "checkpoint.json";
const REPORTS: &str = "reports.jsonl";

/// Why a checkpoint is not gone on from, or not written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is of another run.
    #[error(
        "{path}: a checkpoint with {field} = {found}, and this run has {field} = {expected}: choose another --checkpoint"
    )]
    Other {
        /// The checkpoint.
        path: PathBuf,
        /// In what it differs.
        field: String,
        /// Its value.
        found: String,
        /// The run's.
        expected: String,
    },
    /// It is further than the run is to go.
    #[error(
        "{path}: a checkpoint after {found} iterations, and this run has {asked}: ask for more, or choose another --checkpoint"
    )]
    Beyond {
        /// The checkpoint.
        path: PathBuf,
        /// Its iterations.
        found: usize,
        /// The run's.
        asked: usize,
    },
    /// Ranks see different folders.
    #[error(
        "rank {rank} finds a checkpoint after {own} iterations, rank {other} one after {found} (0: none): --checkpoint must be one folder that all machines share"
    )]
    Disagreement {
        /// The rank that tells.
        rank: usize,
        /// What it finds.
        own: usize,
        /// Another rank.
        other: usize,
        /// What that one finds.
        found: usize,
    },
    /// A file that cannot be read or written, or is not as it was written.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The content of `checkpoint.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    schema_version: u32,
    /// Iterations that have run.
    iteration: usize,
    /// What is trained, field by field: all that later iterations follow from.
    trained: BTreeMap<String, String>,
}

/// The checkpoints of a run, as one rank sees them.
pub struct Checkpoints<'a> {
    setup: &'a Setup<'a>,
    folder: &'a Path,
    every: usize,
    /// Reports that are in no file yet; at rank 0.
    reports: Vec<Vec<Report>>,
}

/// How many iterations the last checkpoint of a run holds; 0 without one. Reads its mark alone.
///
/// # Errors
/// One of another run, or one that this run cannot go on from.
pub fn found(setup: &Setup) -> Result<usize, CheckpointError> {
    let Some((folder, _)) = &setup.checkpoint else { return Ok(0) };
    let Some(last) = last(folder)? else { return Ok(0) };
    let path = last.join(MARK);
    let mark: Mark = read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| file(&path, e)))?;
    let other = |field: &str, found: &str, expected: &str| {
        let (field, found, expected) = (field.to_owned(), found.to_owned(), expected.to_owned());
        CheckpointError::Other { path: path.clone(), field, found, expected }
    };
    if mark.schema_version != SCHEMA_VERSION {
        return Err(other("schema_version", &mark.schema_version.to_string(), &SCHEMA_VERSION.to_string()));
    }
    let nothing = String::new();
    for (field, expected) in &trained(setup) {
        let found = mark.trained.get(field).unwrap_or(&nothing);
        if found != expected {
            return Err(other(field, found, expected));
        }
    }
    if mark.iteration > setup.iterations {
        return Err(CheckpointError::Beyond { path, found: mark.iteration, asked: setup.iterations });
    }
    Ok(mark.iteration)
}

impl<'a> Checkpoints<'a> {
    /// Those of a run, if it keeps any.
    pub fn of(setup: &'a Setup<'a>) -> Option<Self> {
        let (folder, every) = setup.checkpoint.as_ref()?;
        Some(Self { setup, folder, every: *every, reports: Vec::new() })
    }

    /// Puts a new rank where the last checkpoint, of `iteration` iterations, was written.
    ///
    /// # Errors
    /// A file that is lacking or does not fit.
    pub fn resume(&self, rank: &mut Rank, iteration: usize) -> Result<(), TrainError> {
        let path = self.of_rank(iteration, rank.groups.world.rank());
        let tensors = Tensor::read_safetensors(&path).map_err(|error| file(&path, error))?;
        let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
        let mut take = |name: String| tensors.remove(&name).ok_or_else(|| file(&path, format!("no tensor `{name}`")));
        for (name, bucket) in named(&rank.model) {
            for (what, of) in parts(bucket) {
                let found = take(format!("{name}: {what}"))?;
                if found.size() != of.size() {
                    let reason = format!("`{name}: {what}` has {:?} numbers: expected {:?}", found.size(), of.size());
                    return Err(file(&path, reason).into());
                }
                of.shallow_clone().copy_(&found);
            }
            bucket.weights.shallow_clone().copy_(&bucket.master);
        }
        let moe = self.setup.job.model.moe_layers();
        let mut loads: Vec<Vec<Vec<u64>>> = vec![moe.map(|moe| vec![0; moe.experts]).collect(); iteration];
        for layer in rank.model.layers_mut() {
            let expert_in = numbers(&take(placement_of(layer.number))?);
            layer.placement = placement(&expert_in, layer.placement.ranks()).map_err(|reason| file(&path, reason))?;
            let past = numbers(&take(loads_of(layer.number))?);
            for (loads, past) in loads.iter_mut().zip(past.chunks_exact(layer.experts.moe().experts)) {
                loads[layer.number] = past.iter().map(|&load| load as u64).collect();
            }
        }
        loads.into_iter().for_each(|loads| rank.online.remember(loads));
        rank.iteration = iteration;
        Ok(())
    }

    /// What all ranks told of the iterations of the last checkpoint. Reports of later ones, which a run that was cut off
    /// has left, are forgotten.
    ///
    /// # Errors
    /// A file that is lacking or too short.
    pub fn reports(&self, iteration: usize) -> Result<Vec<Vec<Report>>, CheckpointError> {
        let path = self.folder.join(REPORTS);
        if iteration == 0 && !path.exists() {
            return Ok(Vec::new());
        }
        let text = String::from_utf8(read(&path)?).map_err(|error| file(&path, error))?;
        let kept: Vec<&str> = text.split_inclusive('\n').take(iteration).collect();
        if kept.len() < iteration {
            return Err(file(&path, format!("{} iterations: expected {iteration}", kept.len())));
        }
        let reports = kept.iter().map(|line| serde_json::from_str(line).map_err(|error| file(&path, error)));
        let reports = reports.collect::<Result<_, _>>()?;
        let cut = |out: &mut File| Ok(out.write_all(kept.concat().as_bytes())?);
        write_atomically(&path, cut).map_err(|error| file(&path, format!("{error:#}")))?;
        Ok(reports)
    }

    /// Rank 0 keeps what was reported; every `every` iterations and at the end, all ranks write a checkpoint.
    ///
    /// # Errors
    /// What cannot be written; a rank that died.
    pub fn after(&mut self, rank: &Rank, reports: &[Report]) -> Result<(), TrainError> {
        let first = rank.groups.world.rank() == 0;
        if first {
            self.reports.push(reports.to_vec());
        }
        if !rank.iteration.is_multiple_of(self.every) && rank.iteration < self.setup.iterations {
            return Ok(());
        }
        self.write_rank(rank)?;
        // Once all have written.
        rank.groups.world.barrier()?;
        if first {
            self.append_reports()?;
            self.write_mark(rank.iteration)?;
            self.remove_older(rank.iteration)?;
        }
        Ok(())
    }

    fn write_rank(&self, rank: &Rank) -> Result<(), CheckpointError> {
        let path = self.of_rank(rank.iteration, rank.groups.world.rank());
        let on_cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).contiguous();
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (name, bucket) in named(&rank.model) {
            tensors.extend(parts(bucket).map(|(what, of)| (format!("{name}: {what}"), on_cpu(of))));
        }
        for layer in rank.model.layers() {
            let expert_in: Vec<i64> = layer.placement.experts_in_slots().iter().map(|&expert| expert as i64).collect();
            tensors.push((placement_of(layer.number), Tensor::from_slice(&expert_in)));
            let past = rank.online.history().recent(layer.number, rank.iteration).flatten().map(|&load| load as i64);
            tensors.push((loads_of(layer.number), Tensor::from_slice(&past.collect::<Vec<_>>())));
        }
        let temporary = path.with_extension("tmp");
        let write = || -> anyhow::Result<()> {
            fs::create_dir_all(self.path(rank.iteration))?;
            Tensor::write_safetensors(&tensors, &temporary)?;
            File::open(&temporary)?.sync_all()?;
            Ok(fs::rename(&temporary, &path)?)
        };
        write().map_err(|error| file(&path, format!("{error:#}")))
    }

    fn append_reports(&mut self) -> Result<(), CheckpointError> {
        let path = self.folder.join(REPORTS);
        let mut lines = Vec::new();
        for reports in self.reports.drain(..) {
            serde_json::to_writer(&mut lines, &reports).map_err(|error| file(&path, error))?;
            lines.push(b'\n');
        }
        let append = || {
            let mut out = File::options().create(true).append(true).open(&path)?;
            out.write_all(&lines)?;
            out.sync_all()
        };
        append().map_err(|error| file(&path, error))
    }

    fn write_mark(&self, iteration: usize) -> Result<(), CheckpointError> {
        let path = self.path(iteration).join(MARK);
        let mark = Mark { schema_version: SCHEMA_VERSION, iteration, trained: trained(self.setup) };
        let write = |out: &mut File| Ok(serde_json::to_writer_pretty(out, &mark)?);
        write_atomically(&path, write).map_err(|error| file(&path, format!("{error:#}")))
    }

    fn remove_older(&self, iteration: usize) -> Result<(), CheckpointError> {
        for (number, path) in all(self.folder)? {
            if number != iteration {
                fs::remove_dir_all(&path).map_err(|error| file(&path, error))?;
            }
        }
        Ok(())
    }

    fn path(&self, iteration: usize) -> PathBuf {
        self.folder.join(format!("iteration-{iteration}"))
    }

    fn of_rank(&self, iteration: usize, rank: usize) -> PathBuf {
        self.path(iteration).join(format!("rank-{rank}.safetensors"))
    }
}

/// Everything that the next iterations follow from, except how many there are.
fn trained(setup: &Setup) -> BTreeMap<String, String> {
    let job = setup.job;
    let short = |text: String| {
        let digest = sha2::Sha256::digest(text.as_bytes());
        digest[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let mut fields: BTreeMap<String, String> = [
        ("system", setup.system.name().to_owned()),
        ("plan", setup.plan.to_string()),
        ("seed", setup.seed.to_string()),
        ("model", job.model.name.clone()),
        ("model (hash)", short(format!("{:?}", job.model))),
        ("gate", format!("{:?}", job.gate)),
        ("global_batch", job.global_batch.to_string()),
        ("kind of weights", format!("{:?}", setup.kind)),
        ("data (hash of the first sample)", short(format!("{:?}", setup.samples.sample(0, 0)))),
        (
            "replay (hash of the first iteration)",
            match setup.replay {
                Some(routing) => short(format!("{:?}", routing.iteration(0))),
                None => "none".to_owned(),
            },
        ),
    ]
    .map(|(field, value)| (field.to_owned(), value))
    .into();
    let Training { learning_rate, beta1, beta2, epsilon, weight_decay, clip_norm, balance_loss } = setup.training;
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

/// All buckets of a rank that hold anything, by name.
fn named(model: &Part) -> Vec<(String, &Bucket)> {
    let dense = [("dense, sharded", &model.dense.sharded), ("dense, replicated", &model.dense.replicated)];
    let shared = dense.into_iter().chain([("gates", &model.gates)]).chain(model.words.iter().map(|of| ("words", of)));
    let mut all: Vec<(String, &Bucket)> = shared.map(|(name, bucket)| (name.to_owned(), bucket)).collect();
    all.extend(model.layers().map(|layer| (format!("experts of layer {}", layer.number), &layer.experts.bucket)));
    all.retain(|(_, bucket)| !bucket.is_empty());
    all
}

/// What of a bucket is kept: weights follow from master weights, and gradients are zero between iterations.
fn parts(bucket: &Bucket) -> impl Iterator<Item = (&'static str, &Tensor)> {
    [("master", &bucket.master), ("first moment", &bucket.first), ("second moment", &bucket.second)].into_iter()
}

fn placement_of(layer: usize) -> String {
    format!("placement of layer {layer}")
}

fn loads_of(layer: usize) -> String {
    format!("loads of layer {layer}")
}

fn numbers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.to_kind(Kind::Int64)).unwrap_or_default()
}

/// From the expert in each slot.
fn placement(expert_in: &[i64], ranks: usize) -> Result<Placement, String> {
    let mut slot_of = vec![usize::MAX; expert_in.len()];
    for (slot, &expert) in expert_in.iter().enumerate() {
        let place = slot_of.get_mut(expert as usize).ok_or_else(|| format!("there is no expert {expert}"))?;
        *place = slot;
    }
    Placement::new(slot_of, ranks).map_err(|error| error.to_string())
}

/// The last whole checkpoint in a folder.
fn last(folder: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    let whole = all(folder)?.into_iter().filter(|(_, path)| path.join(MARK).exists());
    Ok(whole.max_by_key(|(number, _)| *number).map(|(_, path)| path))
}

/// Every checkpoint in a folder, whole or not, with its iteration.
fn all(folder: &Path) -> Result<Vec<(usize, PathBuf)>, CheckpointError> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| file(folder, error))? {
        let path = entry.map_err(|error| file(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(number) = name.strip_prefix("iteration-").and_then(|number| number.parse().ok()) {
            all.push((number, path));
        }
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|error| file(path, error))
}

fn file(path: &Path, reason: impl Display) -> CheckpointError {
    CheckpointError::File { path: path.to_owned(), reason: reason.to_string() }
}
