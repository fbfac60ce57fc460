//! Checkpoints: an interrupted run goes on from the last one and ends with the same losses and records.
//!
//! A run's folder holds `reports.jsonl` (the reports of all ranks, one line for each finished iteration, so that the records
//! of a resumed run are complete) and `iteration-N/`: a file of tensors per rank (master weights and both moments of every
//! bucket, the placement of every layer, its loads in the iterations whose loads are gathered, and the rank's own in those since)
//! and `checkpoint.json`, which says what is
//! trained. Each file is written under another name and renamed, `checkpoint.json` last: without it, a checkpoint does not
//! exist. Older checkpoints are removed only then, so one is always whole.
//!
//! Samples, drops and initial values follow from the seed and the iteration, so they are not saved. Neither is the policy: it
//! decides again about all loads that it saw, and so comes to know what it knew.
//!
//! Ranks on several machines need one folder that all of them see.

pub mod error;
mod mark;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use systems::Placement;
use systems::iteration::online::WrongPlacement;
use tch::{Device, Tensor};

use crate::checkpoint::error::CheckpointError;
use crate::error::TrainError;
use crate::files::write_atomically;
use crate::host::to_host;
use crate::model::parameters::Bucket;
use crate::rank::Rank;
use crate::rank::report::Report;
use crate::rank::stage::Stage;
use crate::record::is_complete;
use crate::setup::Setup;

pub use mark::{found, refuse_others};

const REPORTS: &str = "reports.jsonl";
/// The tensor that says whose file it is: a rank, after so many iterations.
const OF: &str = "rank, iterations";
/// The tensor that says of how many iterations the loads are gathered.
const GATHERED: &str = "iterations gathered";

/// The checkpoints of a run, as one rank sees them.
pub struct Checkpoints<'a> {
    setup: &'a Setup<'a>,
    folder: &'a Path,
    every: usize,
    /// Reports that are not written yet; on rank 0.
    reports: Vec<Vec<Report>>,
}

impl<'a> Checkpoints<'a> {
    /// The checkpoints of a run, if it writes any.
    pub fn of(setup: &'a Setup<'a>) -> Option<Self> {
        let (folder, every) = setup.checkpoint.as_ref()?;
        Some(Self { setup, folder, every: *every, reports: Vec::new() })
    }

    /// Restores a new rank from the last checkpoint, of `iteration` iterations.
    ///
    /// # Errors
    /// A file that is missing or does not fit.
    pub fn resume(&self, rank: &mut Rank, iteration: usize) -> Result<(), TrainError> {
        let number = rank.groups.world.rank();
        let path = self.of_rank(iteration, number);
        let mut saved = Saved::read(&path)?;
        let (found, expected) = (saved.numbers(OF.to_owned(), 2)?, [number, iteration].map(|number| number as i64));
        if found != expected {
            let reason = format!("`{OF}` is {found:?}: expected {expected:?}");
            return Err(CheckpointError::file(&path, reason).into());
        }
        let first: Vec<Placement> = rank.stage.layers().map(|layer| layer.placement.clone()).collect();
        for layer in rank.stage.layers_mut() {
            let (experts, ranks) = (layer.experts.moe().experts, layer.placement.ranks());
            // The slots have room from the start, and stay as many.
            let slots = layer.placement.experts_in_slots().len();
            let expert_in = saved.numbers(placement_of(layer.number), slots)?;
            let expert_in = expert_in.iter().map(|&expert| usize::try_from(expert).ok()).collect();
            layer.placement =
                Placement::of_slots(expert_in, experts, ranks).map_err(|error| CheckpointError::file(&path, error))?;
            layer.experts.hold(layer.placement.filled(rank.groups.experts.rank()));
        }
        for (name, bucket) in named(&rank.stage) {
            for (what, of) in parts(bucket) {
                let found = saved.take(&format!("{name}: {what}"))?;
                if found.size() != of.size() {
                    let reason = format!("`{name}: {what}` has {:?} numbers: expected {:?}", found.size(), of.size());
                    return Err(CheckpointError::file(&path, reason).into());
                }
                of.shallow_clone().copy_(&found);
            }
            bucket.weights.narrow(0, 0, bucket.master.numel() as i64).copy_(&bucket.master);
        }
        let moe = self.setup.job.model.moe_layers();
        let gathered = saved.numbers(GATHERED.to_owned(), 1)?[0];
        let gathered = usize::try_from(gathered).ok().filter(|&gathered| gathered <= iteration).ok_or_else(|| {
            CheckpointError::file(&path, format!("`{GATHERED}` is {gathered}: expected 0 to {iteration}"))
        })?;
        let since = iteration - gathered;
        let mut loads: Vec<Vec<Vec<u64>>> = vec![moe.map(|moe| vec![0; moe.experts]).collect(); gathered];
        let mut own: Vec<Vec<Vec<i64>>> = vec![Vec::new(); since];
        for layer in rank.stage.layers_mut() {
            let experts = layer.experts.moe().experts;
            let past = saved.numbers(loads_of(layer.number), gathered * experts)?;
            for (loads, past) in loads.iter_mut().zip(past.chunks_exact(experts)) {
                loads[layer.number] = past.iter().map(|&load| load as u64).collect();
            }
            let of_rank = saved.numbers(own_loads_of(layer.number), since * experts)?;
            own.iter_mut().zip(of_rank.chunks_exact(experts)).for_each(|(own, of_rank)| own.push(of_rank.to_vec()));
        }
        decide_again(rank, &first, loads).map_err(|error| CheckpointError::file(&path, error))?;
        rank.own_loads = own;
        rank.iteration = iteration;
        Ok(())
    }

    /// The reports of all ranks up to the last checkpoint. Removes those of later iterations, which an interrupted run left.
    ///
    /// # Errors
    /// A file that is missing or too short, or lacks what the run records.
    pub fn reports(&self, iteration: usize) -> Result<Vec<Vec<Report>>, CheckpointError> {
        let path = self.folder.join(REPORTS);
        if iteration == 0 && !path.exists() {
            return Ok(Vec::new());
        }
        let (reports, text) = finished(self.setup, &path, iteration)?;
        write_atomically(&path, |temporary| fs::write(temporary, text))
            .map_err(|error| CheckpointError::file(&path, error))?;
        Ok(reports)
    }

    /// Called after every iteration. Rank 0 collects the reports; every `every` iterations and at the end, all ranks write a
    /// checkpoint.
    ///
    /// # Errors
    /// A file that cannot be written; a peer that died.
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
            mark::write(self.setup, &self.path(rank.iteration), rank.iteration)?;
            self.remove_older(rank.iteration)?;
        }
        Ok(())
    }

    fn write_rank(&self, rank: &Rank) -> Result<(), CheckpointError> {
        let number = rank.groups.world.rank();
        let path = self.of_rank(rank.iteration, number);
        let on_cpu = |tensor: &Tensor| tensor.to_device(Device::Cpu).contiguous();
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        for (name, bucket) in named(&rank.stage) {
            tensors.extend(parts(bucket).map(|(what, of)| (format!("{name}: {what}"), on_cpu(of))));
        }
        let gathered = rank.online.history().len();
        tensors.push((OF.to_owned(), Tensor::from_slice(&[number, rank.iteration].map(|number| number as i64))));
        tensors.push((GATHERED.to_owned(), Tensor::from_slice(&[gathered as i64])));
        for (index, layer) in rank.stage.layers().enumerate() {
            // -1 where a slot is empty.
            let expert_in = |expert: &Option<usize>| expert.map_or(-1, |expert| expert as i64);
            let expert_in: Vec<i64> = layer.placement.experts_in_slots().iter().map(expert_in).collect();
            tensors.push((placement_of(layer.number), Tensor::from_slice(&expert_in)));
            let past = rank.online.history().recent(layer.number, gathered).flatten().map(|&load| load as i64);
            tensors.push((loads_of(layer.number), Tensor::from_slice(&past.collect::<Vec<_>>())));
            let own: Vec<i64> = rank.own_loads.iter().flat_map(|layers| &layers[index]).copied().collect();
            tensors.push((own_loads_of(layer.number), Tensor::from_slice(&own)));
        }
        let write = |temporary: &Path| Tensor::write_safetensors(&tensors, temporary).map_err(io::Error::other);
        write_atomically(&path, write).map_err(|error| CheckpointError::file(&path, error))
    }

    fn append_reports(&mut self) -> Result<(), CheckpointError> {
        let path = self.folder.join(REPORTS);
        let mut lines = Vec::new();
        for reports in self.reports.drain(..) {
            serde_json::to_writer(&mut lines, &reports).map_err(|error| CheckpointError::file(&path, error))?;
            lines.push(b'\n');
        }
        let append = || {
            let mut out = File::options().create(true).append(true).open(&path)?;
            out.write_all(&lines)?;
            out.sync_all()
        };
        append().map_err(|error| CheckpointError::file(&path, error))
    }

    fn remove_older(&self, iteration: usize) -> Result<(), CheckpointError> {
        for (number, path) in mark::all(self.folder)? {
            if number != iteration {
                fs::remove_dir_all(&path).map_err(|error| CheckpointError::file(&path, error))?;
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

/// Refuses a checkpoint of `iteration` iterations that lacks choices of the gate which the run records: it would have no whole trace, and
/// the simulator could not follow it.
///
/// # Errors
/// The first iteration without them; a file that is missing or too short.
pub fn check_recorded(setup: &Setup, iteration: usize) -> Result<(), CheckpointError> {
    match (&setup.checkpoint, &setup.record) {
        (Some((folder, _)), Some(_)) if iteration > 0 => finished(setup, &folder.join(REPORTS), iteration).map(drop),
        _ => Ok(()),
    }
}

/// The reports of all ranks in the first `iterations`, and their text.
fn finished(setup: &Setup, path: &Path, iterations: usize) -> Result<(Vec<Vec<Report>>, String), CheckpointError> {
    let text = fs::read_to_string(path).map_err(|error| CheckpointError::file(path, error))?;
    let kept: Vec<&str> = text.split_inclusive('\n').take(iterations).collect();
    if kept.len() < iterations {
        return Err(CheckpointError::file(path, format!("{} iterations: expected {iterations}", kept.len())));
    }
    let parse = |line: &&str| serde_json::from_str(line).map_err(|error| CheckpointError::file(path, error));
    let reports: Vec<Vec<Report>> = kept.iter().map(parse).collect::<Result<_, _>>()?;
    for (iteration, reports) in reports.iter().enumerate() {
        if let (Some(parts), false) = (setup.recorded_parts(iteration), is_complete(setup, iteration, reports)) {
            return Err(CheckpointError::NotRecorded { path: path.to_owned(), iteration: iteration + 1, parts });
        }
    }
    Ok((reports, kept.concat()))
}

/// Lets the policy decide about `loads`, `[iteration][layer][expert]`, as it did while they came, from the `first` placements of
/// the stage's layers on. What it answers is done: the checkpoint has the placements.
fn decide_again(rank: &mut Rank, first: &[Placement], loads: Vec<Vec<Vec<u64>>>) -> Result<(), WrongPlacement> {
    let mut placements = first.to_vec();
    let mut loads = loads.into_iter();
    // Loads are gathered for a decision: the last one saw all of them.
    for iteration in 0..=loads.len() {
        if rank.online.policy().placement_due(iteration) {
            for (layer, placement) in rank.stage.layers().zip(&mut placements) {
                let decided = rank.online.decide(layer.number, layer.experts.moe(), placement)?;
                decided.migration.into_iter().for_each(|migration| *placement = migration.placement);
            }
        }
        loads.next().into_iter().for_each(|loads| rank.online.remember(loads));
    }
    Ok(())
}

/// The tensors of a rank's file.
struct Saved<'a> {
    path: &'a Path,
    tensors: BTreeMap<String, Tensor>,
}

impl<'a> Saved<'a> {
    fn read(path: &'a Path) -> Result<Self, CheckpointError> {
        let tensors = Tensor::read_safetensors(path).map_err(|error| CheckpointError::file(path, error))?;
        Ok(Self { path, tensors: tensors.into_iter().collect() })
    }

    fn take(&mut self, name: &str) -> Result<Tensor, CheckpointError> {
        let missing = || CheckpointError::file(self.path, format!("no tensor `{name}`"));
        self.tensors.remove(name).ok_or_else(missing)
    }

    /// Whole numbers, of which so many are expected.
    fn numbers(&mut self, name: String, expected: usize) -> Result<Vec<i64>, TrainError> {
        let read = to_host(&self.take(&name)?);
        let found: Vec<i64> = read.map_err(|error| CheckpointError::file(self.path, format!("`{name}`: {error}")))?;
        if found.len() != expected {
            let reason = format!("`{name}` has {} numbers: expected {expected}", found.len());
            return Err(CheckpointError::file(self.path, reason).into());
        }
        Ok(found)
    }
}

/// All buckets of a rank that are not empty, by name.
fn named(stage: &Stage) -> Vec<(String, &Bucket)> {
    let shared = [
        ("dense, sharded", &stage.dense.sharded),
        ("dense, replicated", &stage.dense.replicated),
        ("gates", &stage.gates.scores),
        ("selection", &stage.gates.selection),
        ("embedding", &stage.embedding_weight),
    ];
    let mut all: Vec<(String, &Bucket)> = shared.map(|(name, bucket)| (name.to_owned(), bucket.state())).into();
    all.extend(stage.layers().map(|layer| (format!("experts of layer {}", layer.number), layer.experts.state())));
    all.retain(|(_, bucket)| !bucket.is_empty());
    all
}

/// The tensors of a bucket that are saved: weights follow from master weights, and gradients are 0 between iterations.
fn parts(bucket: &Bucket) -> impl Iterator<Item = (&'static str, &Tensor)> {
    [("master", &bucket.master), ("first moment", &bucket.first), ("second moment", &bucket.second)].into_iter()
}

fn placement_of(layer: usize) -> String {
    format!("placement of layer {layer}")
}

fn loads_of(layer: usize) -> String {
    format!("loads of layer {layer}")
}

fn own_loads_of(layer: usize) -> String {
    format!("own loads of layer {layer}")
}
