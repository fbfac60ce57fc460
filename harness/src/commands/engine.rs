//! Which engine runs a suite, from the command line and the suite.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use workloads::Suite;
use workloads::suite::EngineKind;

use crate::engine::Engine;
use crate::prepare::Prepared;
use crate::runner::{self, Extent};
use crate::store::Store;
#[cfg(feature = "train")]
use crate::train::run::Options;

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
    Trained(Box<Options>),
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
        use crate::train::{data::TokenKind, run};
        ensure!(args.timeout > 0.0, "--timeout {}: expected more than 0", args.timeout);
        ensure!(args.checkpoint_every > 0, "--checkpoint-every 0: expected at least 1");
        let kind = TokenKind::named(&args.data_type);
        let Some(kind) = kind else { anyhow::bail!("--data-type {}: expected `uint16` or `int32`", args.data_type) };
        Ok(Self::Trained(Box::new(Options {
            training: suite.training,
            device: run::device(&args.device)?,
            virtual_clock: args.clock == Clock::Virtual,
            timeout: std::time::Duration::from_secs_f64(args.timeout),
            data: args.data.clone().map(|path| (path, kind)),
            replay: args.replay,
            record_trace: args.record_trace.clone(),
            checkpoint: args.checkpoint.clone().map(|path| (path, args.checkpoint_every)),
        })))
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
            Self::Trained(options) => options.engine(),
        }
    }

    /// All that the numbers depend on besides the suite, as text.
    pub fn describe(&self) -> String {
        match self {
            Self::Simulated => Engine::Simulate.name().to_owned(),
            #[cfg(feature = "train")]
            Self::Trained(options) => format!("{options:?}"),
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
            Self::Trained(options) => crate::train::run::check(cases, seed, extent, options),
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
            Self::Trained(options) => cases.iter().try_for_each(|prepared| {
                let run = || crate::train::run::run_case(prepared, seed, extent, options, progress);
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
            Self::Trained(options) => {
                let entropy = crate::train::run::entropy(prepared, seed, options).ok().flatten()?;
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
