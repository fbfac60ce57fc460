//! Which engine runs a suite, from the command line and the suite.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use workloads::Suite;
use workloads::suite::EngineKind;

#[cfg(feature = "train")]
use crate::engines::train::Options;
use crate::engines::{Backend, Engine};
use crate::runs::prepare::Prepared;
use crate::runs::runner::{self, Extent};
use crate::runs::store::Store;
#[cfg(feature = "train")]
use trainer::{
    comm::launch::Launch,
    processes::{Call, Processes},
};

/// How models are trained; for the training engine alone.
#[derive(Args, Clone, Debug)]
pub struct TrainingArgs {
    /// `wall`: times are measured; `virtual`: ranks share the device, communication takes what the cluster's cost model says
    #[arg(long, value_enum, default_value = "wall", help_heading = "Training")]
    pub clock: Clock,
    /// Where tensors are: `cpu` or `cuda`
    #[arg(long, default_value = "cpu", value_name = "DEVICE", help_heading = "Training")]
    pub device: String,
    /// File of token ids [default: a synthetic language]
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    pub data: Option<PathBuf>,
    /// Kind of those ids: `uint16` or `int32`
    #[arg(long, default_value = "uint16", value_name = "KIND", help_heading = "Training")]
    pub data_type: String,
    /// The routing trace drives the gate
    #[arg(long, help_heading = "Training")]
    pub replay: bool,
    /// Write the gate's choices as a routing trace
    #[arg(long, value_name = "FILE.parquet", help_heading = "Training")]
    pub record_trace: Option<PathBuf>,
    /// Write checkpoints here, and go on from those that are there
    #[arg(long, value_name = "DIR", help_heading = "Training")]
    pub checkpoint: Option<PathBuf>,
    /// Iterations between checkpoints
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "Training")]
    pub checkpoint_every: usize,
    /// Seconds that a rank waits for another
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", help_heading = "Training")]
    pub timeout: f64,
    /// Ranks are threads, or processes that torchrun, srun or mpirun started [default: `threads`; under a launcher `nccl` on GPUs and `tcp` on CPUs]
    #[arg(long, value_enum, help_heading = "Processes")]
    pub backend: Option<Backend>,
    /// This process among all; the launcher's variables otherwise
    #[arg(long, value_name = "N", help_heading = "Processes")]
    pub rank: Option<usize>,
    /// Processes in all
    #[arg(long, value_name = "N", help_heading = "Processes")]
    pub world_size: Option<usize>,
    /// This process among those of its machine
    #[arg(long, value_name = "N", help_heading = "Processes")]
    pub local_rank: Option<usize>,
    /// Machine of rank 0
    #[arg(long, value_name = "HOST", help_heading = "Processes")]
    pub master_addr: Option<String>,
    /// Port where rank 0 listens
    #[arg(long, value_name = "PORT", help_heading = "Processes")]
    pub master_port: Option<u16>,
}

/// Clocks of the training engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// Times are measured.
    Wall,
    /// Computation is measured, communication priced.
    Virtual,
}

/// What runs the cases of a suite.
pub enum Runs {
    /// The simulator.
    Simulated,
    /// The trainer.
    #[cfg(feature = "train")]
    Trained(Box<Trained>),
}

/// What the trainer is to do, and with whom.
#[cfg(feature = "train")]
pub struct Trained {
    options: Options,
    /// Who this process is, where each process is a rank.
    launch: Option<Launch>,
    /// The others, once they have met.
    processes: Option<Processes>,
}

impl Runs {
    /// The engine that the command line or, without it, the suite asks for.
    ///
    /// # Errors
    /// An engine that this program was built without; options that make no sense.
    pub fn new(asked: Option<Engine>, args: &TrainingArgs, suite: &Suite) -> Result<Self> {
        let of_suite = match suite.engine {
            EngineKind::Simulate => Engine::Simulate,
            EngineKind::Train => Engine::Train,
        };
        match asked.unwrap_or(of_suite) {
            Engine::Simulate => Ok(Self::Simulated),
            Engine::Train | Engine::Emulate => Self::trained(args, suite),
        }
    }

    #[cfg(feature = "train")]
    fn trained(args: &TrainingArgs, suite: &Suite) -> Result<Self> {
        use crate::engines::train as run;
        use trainer::data::TokenKind;
        let launch = launch(args)?;
        let backend = backend(args, launch.as_ref())?;
        let device = run::device(&args.device, launch.as_ref())?;
        ensure!(args.timeout > 0.0, "--timeout {}: expected more than 0", args.timeout);
        ensure!(args.checkpoint_every > 0, "--checkpoint-every 0: expected at least 1");
        let kind = TokenKind::named(&args.data_type);
        let Some(kind) = kind else { anyhow::bail!("--data-type {}: expected `uint16` or `int32`", args.data_type) };
        let options = Options {
            training: suite.training,
            backend,
            processes: launch.as_ref().map(|launch| launch.size),
            device,
            virtual_clock: args.clock == Clock::Virtual,
            timeout: std::time::Duration::from_secs_f64(args.timeout),
            data: args.data.clone().map(|path| (path, kind)),
            replay: args.replay,
            record_trace: args.record_trace.clone(),
            checkpoint: args.checkpoint.clone().map(|path| (path, args.checkpoint_every)),
        };
        Ok(Self::Trained(Box::new(Trained { options, launch, processes: None })))
    }

    #[cfg(not(feature = "train"))]
    fn trained(_args: &TrainingArgs, _suite: &Suite) -> Result<Self> {
        anyhow::bail!(
            "this moebench was built without the training engine: run scripts/libtorch once and build with \
             `cargo build --features train`"
        )
    }

    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Simulated => Engine::Simulate,
            #[cfg(feature = "train")]
            Self::Trained(trained) => trained.options.engine(),
        }
    }

    /// All that the numbers depend on besides the suite, as text.
    pub fn describe(&self) -> String {
        match self {
            Self::Simulated => Engine::Simulate.name().to_owned(),
            #[cfg(feature = "train")]
            Self::Trained(trained) => trained.options.describe(),
        }
    }

    /// Whether the cases can run.
    ///
    /// # Errors
    /// What is wrong with the first that cannot.
    pub fn check(&self, cases: &[Prepared], seed: u64, extent: Extent) -> Result<()> {
        match self {
            Self::Simulated => {
                let _ = (seed, extent);
                ensure!(!cases.is_empty(), "a run without cases");
                Ok(())
            }
            #[cfg(feature = "train")]
            Self::Trained(trained) => crate::engines::train::check(cases, seed, extent, &trained.options),
        }
    }

    /// Meets the other processes, where each is a rank. `asked`: a hash of all that must be the same in every one.
    ///
    /// # Errors
    /// Who did not come, is not reached, or was asked for another run.
    pub fn meet(&mut self, asked: &str) -> Result<()> {
        match self {
            Self::Simulated => {
                let _ = asked;
            }
            #[cfg(feature = "train")]
            Self::Trained(trained) => {
                if let Some(launch) = trained.launch.clone() {
                    let Options { device, timeout, .. } = trained.options;
                    trained.processes = Some(Processes::meet(launch, device, timeout, asked)?);
                }
            }
        }
        Ok(())
    }

    /// In a process that is a rank other than 0: runs what rank 0 calls, to the end; returns the exit status.
    ///
    /// # Errors
    /// That a process is gone, rank 0 for one.
    pub fn follow(&self, prepared: &[(u64, Vec<Prepared>)], extent: Extent) -> Result<Option<u8>> {
        match self {
            Self::Simulated => {
                let _ = (prepared, extent);
                Ok(None)
            }
            #[cfg(feature = "train")]
            Self::Trained(trained) => match &trained.processes {
                Some(processes) if processes.rank() > 0 => trained.follow(processes, prepared, extent).map(Some),
                _ => Ok(None),
            },
        }
    }

    /// Tells the other processes to exit with this status; once is enough.
    pub fn dismiss(&self, status: u8) {
        match self {
            Self::Simulated => {
                let _ = status;
            }
            #[cfg(feature = "train")]
            Self::Trained(trained) => trained.processes.iter().for_each(|processes| processes.dismiss(status)),
        }
    }

    /// Runs what the store does not hold yet: simulations side by side, trained cases one after the other.
    ///
    /// # Errors
    /// When a finished case cannot be stored.
    pub fn run_all(
        &self,
        cases: &[Prepared],
        seed: u64,
        extent: Extent,
        store: &Store,
        progress: &ProgressBar,
    ) -> Result<()> {
        match self {
            Self::Simulated => runner::run_all(cases, seed, extent, store, progress),
            #[cfg(feature = "train")]
            Self::Trained(trained) => cases.iter().enumerate().try_for_each(|(index, prepared)| {
                let run = || {
                    trained.processes.iter().for_each(|processes| processes.call(seed, index));
                    trained.run_case(prepared, seed, extent, progress)
                };
                runner::run_one(prepared, seed, extent, store, progress, run)
            }),
        }
    }

    /// Floor and unigram entropy of what a case's model reads, nats per token, where they are known.
    pub fn entropy(&self, prepared: &Prepared, seed: u64) -> Option<[f64; 2]> {
        match self {
            Self::Simulated => {
                let _ = (prepared, seed);
                None
            }
            #[cfg(feature = "train")]
            Self::Trained(trained) => {
                let entropy = crate::engines::train::entropy(prepared, seed, &trained.options).ok().flatten()?;
                Some([entropy.floor, entropy.unigram])
            }
        }
    }

    /// How many iterations are counted: a simulated case's systems advance together.
    pub fn length(&self, cases: &[Prepared], iterations: usize) -> usize {
        match self {
            Self::Simulated => cases.len() * iterations,
            #[cfg(feature = "train")]
            Self::Trained(_) => cases.iter().map(|case| case.systems.len() * iterations).sum(),
        }
    }
}

#[cfg(feature = "train")]
impl Trained {
    fn run_case(&self, prepared: &Prepared, seed: u64, extent: Extent, progress: &ProgressBar) -> Result<runner::Ran> {
        crate::engines::train::run_case(prepared, seed, extent, &self.options, self.processes.as_ref(), progress)
    }

    fn follow(&self, processes: &Processes, prepared: &[(u64, Vec<Prepared>)], extent: Extent) -> Result<u8> {
        let mut last = None;
        loop {
            let (seed, index) = match processes.next() {
                Ok(Call::Case { seed, index }) => (seed, index),
                Ok(Call::End(status)) => return Ok(status),
                // What this rank was doing when a process went says more than that it is gone.
                Err(error) => anyhow::bail!(last.unwrap_or_else(|| error.to_string())),
            };
            let cases = prepared.iter().find(|(of, _)| *of == seed).map(|(_, cases)| cases);
            let Some(case) = cases.and_then(|cases| cases.get(index)) else {
                anyhow::bail!("rank 0 calls case {index} of seed {seed}, which this process was not asked for");
            };
            let (records, _) = self.run_case(case, seed, extent, &ProgressBar::hidden())?;
            let failed = records.into_iter().find_map(|record| record.failure);
            last = failed.map(|(status, reason)| format!("{}: {reason}", status.name()));
        }
    }
}

/// Who this process is, by flags and environment.
#[cfg(feature = "train")]
fn launch(args: &TrainingArgs) -> Result<Option<Launch>> {
    let flags = trainer::comm::launch::Flags {
        rank: args.rank,
        world_size: args.world_size,
        local_rank: args.local_rank,
        master_address: args.master_addr.clone(),
        master_port: args.master_port,
    };
    // Who asks for threads runs alone, whatever a launcher further out has left in the environment.
    if args.backend == Some(Backend::Threads) {
        let none = trainer::comm::launch::Flags::default();
        ensure!(flags == none, "--backend threads: ranks are threads of this process: expected no --rank or the like");
        return Ok(None);
    }
    Ok(Launch::from(&flags, &|variable| std::env::var(variable).ok())?)
}

/// How ranks reach each other.
#[cfg(feature = "train")]
fn backend(args: &TrainingArgs, launch: Option<&Launch>) -> Result<Backend> {
    let (name, backend, device) = match (args.backend, launch) {
        (Some(Backend::Threads), _) | (None, None) => return Ok(Backend::Threads),
        (Some(Backend::Nccl), _) => ("nccl", Backend::Nccl, "cuda"),
        (Some(Backend::Tcp), _) => ("tcp", Backend::Tcp, "cpu"),
        (None, Some(_)) if args.device == "cuda" => ("nccl", Backend::Nccl, "cuda"),
        (None, Some(_)) => ("tcp", Backend::Tcp, "cpu"),
    };
    ensure!(
        launch.is_some(),
        "--backend {name}: a process per rank: start them with torchrun, srun or mpirun, or set RANK and WORLD_SIZE"
    );
    ensure!(args.device == device, "--backend {name}: expected --device {device}, found {}", args.device);
    ensure!(
        args.clock == Clock::Wall,
        "--clock virtual: ranks take turns on one device as threads of one process: expected --backend threads, found {name}"
    );
    Ok(backend)
}
