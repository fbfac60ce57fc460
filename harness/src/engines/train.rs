//! A case, trained under all of its systems, one after the other: the training half of [`crate::runs::runner`].

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use systems::iteration::timeline::Span;
use systems::{CostModel, Plan, System};
use tch::Device;
use workloads::Training;

use crate::engines::replay::Replay;
use crate::engines::{Backend, Engine};
use crate::runs::prepare::Prepared;
use crate::runs::records::{RunRecord, Status};
use crate::runs::runner::{self, Extent, Ran, Shown};
use systems::iteration::run::Iteration;
use trainer::TrainError;
use trainer::checkpoint;
use trainer::comm::launch::Launch;
use trainer::comm::{CommError, CommFailure};
use trainer::data::{Entropy, Language, Samples, TokenFile, TokenKind};
use trainer::processes::Processes;
use trainer::rank::Report;
use trainer::record;
use trainer::setup::{self, Setup};
use trainer::world::{self, Threads};

/// How the cases of a suite are trained.
#[derive(Clone, Debug)]
pub struct Options {
    /// Optimizer and loss.
    pub training: Training,
    /// How ranks reach each other.
    pub backend: Backend,
    /// How many processes there are, where each is a rank.
    pub processes: Option<usize>,
    /// Where the tensors of this process are.
    pub device: Device,
    /// Whether ranks share the device under a virtual clock.
    pub virtual_clock: bool,
    /// How long a rank waits for another.
    pub timeout: Duration,
    /// A file of tokens; the synthetic language when absent.
    pub data: Option<(PathBuf, TokenKind)>,
    /// Whether the routing trace drives the gate.
    pub replay: bool,
    /// Where the gate's choices are written as a routing trace.
    pub record_trace: Option<PathBuf>,
    /// Where checkpoints are, and after how many iterations each is written.
    pub checkpoint: Option<(PathBuf, usize)>,
}

impl Options {
    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        if self.virtual_clock { Engine::Emulate } else { Engine::Train }
    }

    /// All that the numbers depend on, the same in every process, as text.
    pub fn describe(&self) -> String {
        let device = if self.device.is_cuda() { Device::Cuda(0) } else { self.device };
        format!("{:?}", Self { device, ..self.clone() })
    }

    /// What the model of a case reads.
    ///
    /// # Errors
    /// A file that cannot be read or holds ids past the vocabulary.
    fn samples(&self, vocabulary: usize, seq_len: usize, seed: u64) -> Result<Box<dyn Samples>> {
        Ok(match &self.data {
            Some((path, kind)) => Box::new(TokenFile::open(path, *kind, vocabulary, seq_len, seed)?),
            // A larger vocabulary keeps its size; the language uses its first words.
            None => Box::new(Language::new(vocabulary.min(Language::LARGEST), seq_len, seed)?),
        })
    }
}

/// Whether every case can be trained under all of its systems: models, plans, memory, data, checkpoints. Does no work.
///
/// # Errors
/// What is wrong with the first that cannot.
pub fn check(cases: &[Prepared], seed: u64, extent: Extent, options: &Options) -> Result<()> {
    for prepared in cases {
        if let Some(size) = options.processes {
            let (gpus, id) = (prepared.job.gpus, prepared.case.id());
            ensure!(
                gpus == size,
                "{id}: {gpus} ranks, and {size} processes (WORLD_SIZE): expected one process per rank"
            );
        }
        let costs = CostModel::new(&prepared.job.cluster);
        for &(system, forced) in &prepared.systems {
            let own = prepared.as_run_by(system.name());
            let context = || format!("{} {}", prepared.case.id(), system.name());
            ensure!(own.case.layer.is_none(), "{}: one layer alone is simulated only", context());
            setup::vocabulary(&own.job).with_context(context)?;
            let Ok(chosen) = runner::choose(prepared, system, forced, &costs) else { continue };
            let kind = setup::kind_on(options.device);
            let available = memory(options.device)?;
            setup::gpt(&own.job, &chosen.plan).with_context(context)?;
            let together = if options.processes.is_some() { 1 } else { own.job.gpus };
            setup::fits(&own.job, &chosen.plan, kind, together, available).with_context(context)?;
            let plan = chosen.plan;
            let run = OneRun { prepared, system, plan, seed, costs: &costs, options, processes: None, extent };
            run.with_setup(|setup| Ok(checkpoint::found(setup)?)).with_context(context)?;
        }
    }
    Ok(())
}

/// The entropies that losses of a case can be held against.
///
/// # Errors
/// As for [`check`].
pub fn entropy(prepared: &Prepared, seed: u64, options: &Options) -> Result<Option<Entropy>> {
    let model = &prepared.job.model;
    let Some(vocabulary) = model.vocabulary else { return Ok(None) };
    Ok(options.samples(vocabulary, model.blocks[0].tokens, seed)?.entropy())
}

/// Bytes that ranks on a device can have together.
///
/// # Errors
/// What the GPU's driver says.
pub fn memory(device: Device) -> Result<f64> {
    if let Device::Cuda(ordinal) = device {
        let memory = trainer::cuda::Gpu::open(ordinal)?.memory().context("the GPU's memory")?;
        return Ok((memory.total - memory.used) as f64);
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    // Where the system does not tell, nothing is refused.
    Ok(kilobytes.map_or(f64::INFINITY, |kilobytes| kilobytes * 1024.0))
}

/// Trains one case under all of its systems; returns what [`runner`] returns of a simulated one.
pub fn run_case(
    prepared: &Prepared,
    seed: u64,
    extent: Extent,
    options: &Options,
    processes: Option<&Processes>,
    progress: &ProgressBar,
) -> Result<Ran> {
    let costs = CostModel::new(&prepared.job.cluster);
    let (mut records, mut last) = (Vec::new(), Vec::new());
    for &(system, forced) in &prepared.systems {
        let chosen = runner::choose(prepared, system, forced, &costs);
        let plan = chosen.as_ref().ok().map(|chosen| chosen.plan);
        let mut record = runner::record(prepared, system, chosen, seed, options.engine());
        let mut shown = Shown::new();
        if let Some(plan) = plan {
            let run = OneRun { prepared, system, plan, seed, costs: &costs, options, processes, extent };
            shown = run.train(&mut record, progress)?;
        }
        records.push(record);
        last.push(shown);
    }
    Ok((records, last))
}

struct OneRun<'a> {
    prepared: &'a Prepared<'a>,
    system: &'static dyn System,
    plan: Plan,
    seed: u64,
    costs: &'a CostModel,
    options: &'a Options,
    /// Where each process is one rank.
    processes: Option<&'a Processes>,
    extent: Extent,
}

impl OneRun<'_> {
    /// Describes the run to `then`.
    fn with_setup<T>(&self, then: impl FnOnce(&Setup) -> Result<T>) -> Result<T> {
        let own = self.prepared.as_run_by(self.system.name());
        let gpt = setup::gpt(&own.job, &self.plan)?;
        let samples = self.options.samples(gpt.vocabulary, gpt.seq_len, self.seed)?;
        let folder =
            |path: &Path| path.join(format!("{}.{}", runner::case_id(self.prepared, self.seed), self.system.name()));
        then(&Setup {
            job: &own.job,
            plan: self.plan,
            system: self.system,
            costs: self.costs,
            training: self.options.training,
            samples: &*samples,
            seed: self.seed,
            iterations: self.extent.iterations,
            replay: self.options.replay.then_some(&own.routing),
            record_choices: self.options.record_trace.is_some() || self.options.virtual_clock,
            record_spans: self.extent.timelines,
            checkpoint: self.options.checkpoint.as_ref().map(|(path, every)| (folder(path), *every)),
            kind: setup::kind_on(self.options.device),
            gpt,
        })
    }

    /// Trains; iterations and the way it ended go into `record`, what is shown of the last iteration is returned.
    fn train(&self, record: &mut RunRecord, progress: &ProgressBar) -> Result<Shown> {
        self.with_setup(|setup| self.train_as(setup, record, progress))
    }

    fn train_as(&self, setup: &Setup, record: &mut RunRecord, progress: &ProgressBar) -> Result<Shown> {
        let threads = Threads {
            device: self.options.device,
            virtual_clock: self.options.virtual_clock,
            timeout: self.options.timeout,
        };
        let collected = Mutex::new(Collected::default());
        // The simulator follows an emulated run: same cluster, same routing.
        let mut replay = self.options.virtual_clock.then(|| Replay::new(setup, self.costs));
        let mut sink = |_: usize, reports: Vec<Report>| {
            progress.inc(1);
            let mut collected = collected.lock().unwrap_or_else(PoisonError::into_inner);
            collected.add(setup, reports, replay.as_mut());
            Ok(())
        };
        let ended = match self.processes {
            Some(processes) => world::run_process(setup, processes, &mut sink, |_| ()),
            None => world::run(setup, threads, &mut sink, |_| ()).map(drop),
        };
        let collected = collected.into_inner().unwrap_or_else(PoisonError::into_inner);
        record.iterations = collected.iterations;
        record.failure = ended.err().map(|error| (status(&error), error.to_string()));
        // Of a run without an iteration there is no trace; in a process that is not rank 0, all are.
        if let (Some(path), false) = (&self.options.record_trace, record.iterations.is_empty()) {
            let trace = record::trace(&record.key.id, setup, 1, &collected.reports)?;
            crate::traces::write_parquet(&trace, &trace_path(path, self.prepared, self.system))?;
        }
        let engines = [(self.options.engine(), collected.spans), (Engine::Simulate, collected.simulated)];
        Ok(engines.into_iter().filter(|(_, spans)| self.extent.timelines && !spans.is_empty()).collect())
    }
}

/// What is kept of the reports of all ranks.
#[derive(Default)]
struct Collected {
    iterations: Vec<Iteration>,
    /// Of the last iteration.
    spans: Vec<Span>,
    /// The simulator's, of the same.
    simulated: Vec<Span>,
    /// With choices, where they are recorded.
    reports: Vec<Vec<Report>>,
}

impl Collected {
    fn add(&mut self, setup: &Setup, mut reports: Vec<Report>, replay: Option<&mut Replay>) {
        let mut iteration = world::iteration(setup, &reports);
        if let Some(replay) = replay {
            let (simulated, spans) = replay.step(&reports);
            iteration.predicted = Some(simulated.timing.step);
            self.simulated = spans;
        }
        self.iterations.push(iteration);
        self.spans = reports.iter_mut().flat_map(|report| std::mem::take(&mut report.spans)).collect();
        if setup.record_choices {
            self.reports.push(reports);
        }
    }
}

/// Where the recorded trace of a run goes: the path itself, or beside it where several runs are recorded.
fn trace_path(path: &Path, prepared: &Prepared, system: &dyn System) -> PathBuf {
    match prepared.systems.len() {
        1 => path.to_owned(),
        _ => path.with_extension(format!("{}.parquet", system.name())),
    }
}

/// How a run ended. Of what a rank says last, others have the text alone.
pub fn status(error: &TrainError) -> Status {
    match error {
        TrainError::Comm(CommError { reason: CommFailure::Late { .. }, .. }) => Status::Timeout,
        TrainError::Comm(CommError { reason: CommFailure::Died { how, .. }, .. }) => status_of_last_words(how),
        TrainError::Comm(_) | TrainError::Meeting(_) | TrainError::Check(_) => Status::CommError,
        TrainError::Panic { message, .. } => status_of_last_words(message),
        _ => Status::Crash,
    }
}

fn status_of_last_words(words: &str) -> Status {
    match words {
        words if words.contains("out of memory") => Status::Oom,
        words if words.contains("did not arrive within") => Status::Timeout,
        _ => Status::Crash,
    }
}

/// The device of a name on the command line, in a process that a launcher may have started beside others.
///
/// # Errors
/// A device that is not there.
pub fn device(name: &str, launch: Option<&Launch>) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" => {
            trainer::cuda::load().context("--device cuda")?;
            let own = launch.map(|launch| launch.device(trainer::cuda::device_names().len())).transpose()?;
            Ok(Device::Cuda(own.unwrap_or(0)))
        }
        other => bail!("--device {other}: expected `cpu` or `cuda`"),
    }
}
