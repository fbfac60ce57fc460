//! How models are trained, checked: from the words of the command line and the launcher's variables to values.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tch::Device;
use trainer::comm::launch::{Flags, Launch};
use trainer::data::{Language, Samples, TokenFile, TokenKind};
use trainer::setup::Recording;
use workloads::{Case, EngineKind, Suite, Training};

use crate::engines::args::{Backend, Clock, TrainingArgs};
use crate::prepare::{PreparedRun, run_id};

#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) kind: EngineKind,
    /// Optimizer and loss.
    pub(super) training: Training,
    /// How many processes there are, where each is a rank.
    pub(super) processes: Option<usize>,
    /// Where the tensors of this process are.
    pub(super) device: Device,
    /// How long a rank waits for another.
    pub(super) timeout: Duration,
    /// A file of tokens; the synthetic language when absent.
    pub(super) data: Option<(PathBuf, TokenKind)>,
    /// Whether the routing trace drives the gate.
    pub(super) replay: bool,
    /// Where the gate's choices are written as a routing trace.
    pub(super) record_trace: Option<PathBuf>,
    /// Which of them.
    pub(super) recording: Recording,
    /// Whether the suite has several systems, and several cases or seeds: so many traces are recorded.
    several: [bool; 2],
    /// Where checkpoints are, and after how many iterations each is written.
    pub(super) checkpoint: Option<(PathBuf, usize)>,
    /// The names of all runs that are asked for, which checkpoints are kept under.
    pub(super) run_ids: Vec<String>,
}

/// The longest timeout, s: a year.
const LONGEST: f64 = 365.0 * 86400.0;

impl Options {
    pub(super) fn new(kind: EngineKind, args: &TrainingArgs, launch: Option<&Launch>, suite: &Suite) -> Result<Self> {
        check_backend(kind, args, launch)?;
        let device = device(&args.device, launch)?;
        let seconds = args.timeout;
        ensure!(seconds > 0.0 && seconds <= LONGEST, "--timeout {seconds}: expected more than 0 and at most {LONGEST}");
        ensure!(args.checkpoint_every > 0, "--checkpoint-every 0: expected at least 1");
        let tokens = TokenKind::named(&args.data_type)
            .with_context(|| format!("--data-type {}: expected `uint16` or `int32`", args.data_type))?;
        Ok(Self {
            kind,
            training: suite.training,
            processes: launch.map(|launch| launch.size),
            device,
            timeout: Duration::from_secs_f64(seconds),
            data: args.data.clone().map(|path| (path, tokens)),
            replay: args.replay,
            record_trace: args.record_trace.clone(),
            recording: recording(args)?,
            several: [suite.systems.len() > 1, suite.cases.len() * suite.seeds.len() > 1],
            checkpoint: args.checkpoint.clone().map(|path| (path, args.checkpoint_every)),
            run_ids: run_ids(suite),
        })
    }

    /// All that the numbers depend on besides the suite, the same in every process and for every shard.
    pub(super) fn describe(&self) -> String {
        let device = if self.device.is_cuda() { Device::Cuda(0) } else { self.device };
        format!("{:?}", Self { device, several: [false; 2], run_ids: Vec::new(), ..self.clone() })
    }

    /// Whether ranks share the device under a virtual clock.
    pub(super) fn virtual_clock(&self) -> bool {
        self.kind == EngineKind::Emulated
    }

    /// What a model reads.
    ///
    /// # Errors
    /// A file that cannot be read or holds ids past the vocabulary.
    pub(super) fn samples(&self, vocabulary: usize, seq_len: usize, seed: u64) -> Result<Box<dyn Samples>> {
        Ok(match &self.data {
            Some((path, kind)) => Box::new(TokenFile::open(path, *kind, vocabulary, seq_len, seed)?),
            // A larger vocabulary keeps its size; the language uses its first words.
            None => Box::new(Language::new(vocabulary.min(Language::LARGEST), seq_len, seed)?),
        })
    }

    /// Where the trace of a run is recorded: the path itself, or files beside it where several runs are recorded.
    pub(super) fn trace_path(&self, run: &PreparedRun) -> Option<PathBuf> {
        let path = self.record_trace.as_ref()?;
        Some(match self.several {
            [false, false] => path.clone(),
            [true, false] => path.with_extension(format!("{}.parquet", run.system.name())),
            [_, true] => path.with_extension(format!("{}.parquet", run.id())),
        })
    }
}

fn recording(args: &TrainingArgs) -> Result<Recording> {
    let &TrainingArgs { record_every: every, record_parts: parts, .. } = args;
    ensure!(every > 0 && parts > 0, "--record-every {every}, --record-parts {parts}: expected 1 or more of both");
    let all = (every, parts) == (1, 1);
    ensure!(
        all || args.clock == Clock::Wall,
        "--record-every {every}, --record-parts {parts} under --clock virtual: expected 1 of both, for the simulator follows every iteration"
    );
    Ok(Recording { every, parts })
}

fn run_ids(suite: &Suite) -> Vec<String> {
    let of_case = |case: &Case| {
        let all = suite.seeds.iter().flat_map(|&seed| suite.systems.iter().map(move |system| (seed, system)));
        let id = case.id();
        all.map(|(seed, system)| run_id(&id, seed, system)).collect::<Vec<_>>()
    };
    suite.cases.iter().flat_map(of_case).collect()
}

/// Who this process is, by flags and environment.
pub(super) fn launch(args: &TrainingArgs) -> Result<Option<Launch>> {
    let flags = Flags {
        rank: args.rank,
        world_size: args.world_size,
        local_rank: args.local_rank,
        master_address: args.master_addr.clone(),
        master_port: args.master_port,
    };
    // Who asks for threads runs alone, whatever a launcher further out has left in the environment.
    if args.backend == Some(Backend::Threads) {
        let expected = "--backend threads: ranks are threads of this process: expected no --rank or the like";
        ensure!(flags == Flags::default(), expected);
        return Ok(None);
    }
    Ok(Launch::from(&flags, &|variable| std::env::var(variable).ok())?)
}

/// Whether ranks can reach each other as asked. How they do follows from launcher and device.
fn check_backend(kind: EngineKind, args: &TrainingArgs, launch: Option<&Launch>) -> Result<()> {
    let (name, device) = match (args.backend, launch) {
        (Some(Backend::Threads), _) | (None, None) => return Ok(()),
        (Some(Backend::Nccl), _) => ("nccl", "cuda"),
        (Some(Backend::Tcp), _) => ("tcp", "cpu"),
        (None, Some(_)) if args.device == "cuda" => ("nccl", "cuda"),
        (None, Some(_)) => ("tcp", "cpu"),
    };
    ensure!(
        launch.is_some(),
        "--backend {name}: a process per rank: start them with torchrun, srun or mpirun, or set RANK and WORLD_SIZE; --backend threads runs all ranks in this process"
    );
    ensure!(args.device == device, "--backend {name}: expected --device {device}, found {}", args.device);
    ensure!(
        kind == EngineKind::Measured,
        "--clock virtual: ranks take turns on one device as threads of one process: expected --backend threads, found {name}"
    );
    Ok(())
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
