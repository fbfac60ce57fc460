//! How models are trained, as the command line says it; `train::options` makes sense of it.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Parser, ValueEnum};
use workloads::EngineKind;

/// How models are trained; for the training engine alone.
#[derive(Args, Clone, Debug)]
pub struct TrainingArgs {
    /// `wall`: times are measured; `virtual`: ranks share the device, communication takes what the cluster's cost model says
    #[arg(long, value_enum, default_value = "wall", help_heading = "Training", hide_short_help = true)]
    pub clock: Clock,
    /// Where tensors are: `cpu` or `cuda`
    #[arg(long, default_value = "cpu", value_name = "DEVICE", help_heading = "Training", hide_short_help = true)]
    pub device: String,
    /// File of token ids [default: a synthetic language]
    #[arg(long, value_name = "FILE", help_heading = "Training", hide_short_help = true)]
    pub data: Option<PathBuf>,
    /// Kind of those ids: `uint16` or `int32`
    #[arg(long, default_value = "uint16", value_name = "KIND", help_heading = "Training", hide_short_help = true)]
    pub data_type: String,
    /// The routing trace drives the gate
    #[arg(long, help_heading = "Training", hide_short_help = true)]
    pub replay: bool,
    /// Write the gate's choices as a routing trace
    #[arg(long, value_name = "FILE.parquet", help_heading = "Training", hide_short_help = true)]
    pub record_trace: Option<PathBuf>,
    /// Iterations from one that is recorded to the next
    #[arg(
        long,
        default_value_t = 1,
        value_name = "N",
        requires = "record_trace",
        help_heading = "Training",
        hide_short_help = true
    )]
    pub record_every: usize,
    /// Source ranks that each rank is recorded as: equal parts of its micro-batches
    #[arg(
        long,
        default_value_t = 1,
        value_name = "N",
        requires = "record_trace",
        help_heading = "Training",
        hide_short_help = true
    )]
    pub record_parts: usize,
    /// Write checkpoints here, and go on from those that are there
    #[arg(long, value_name = "DIR", help_heading = "Training", hide_short_help = true)]
    pub checkpoint: Option<PathBuf>,
    /// Iterations between checkpoints
    #[arg(long, default_value_t = 100, value_name = "N", help_heading = "Training", hide_short_help = true)]
    pub checkpoint_every: usize,
    /// Seconds that a rank waits for another
    #[arg(long, default_value_t = 60.0, value_name = "SECONDS", help_heading = "Training", hide_short_help = true)]
    pub timeout: f64,
    /// Ranks are threads, or processes that torchrun, srun or mpirun started [default: `threads`; under a launcher `nccl` on GPUs and `tcp` on CPUs]
    #[arg(long, value_enum, help_heading = "Processes", hide_short_help = true)]
    pub backend: Option<Backend>,
    /// This process among all; the launcher's variables otherwise
    #[arg(long, value_name = "N", help_heading = "Processes", hide_short_help = true)]
    pub rank: Option<usize>,
    /// Processes in all
    #[arg(long, value_name = "N", help_heading = "Processes", hide_short_help = true)]
    pub world_size: Option<usize>,
    /// This process among those of its machine
    #[arg(long, value_name = "N", help_heading = "Processes", hide_short_help = true)]
    pub local_rank: Option<usize>,
    /// Machine of rank 0
    #[arg(long, value_name = "HOST", help_heading = "Processes", hide_short_help = true)]
    pub master_addr: Option<String>,
    /// Port where rank 0 listens
    #[arg(long, value_name = "PORT", help_heading = "Processes", hide_short_help = true)]
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

/// How the ranks of the training engine reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Threads of one process, on one device.
    Threads,
    /// A process per rank, messages over TCP; on CPUs.
    Tcp,
    /// A process per rank with a GPU of its own, NCCL.
    Nccl,
}

/// A command line on which nothing is said of training.
#[derive(Parser)]
struct Nothing {
    #[command(flatten)]
    args: TrainingArgs,
}

impl TrainingArgs {
    /// What holds where nothing is said.
    fn unsaid() -> Self {
        Nothing::parse_from([""]).args
    }

    /// What of it decides how models are trained, as text.
    pub fn what_is_trained(&self) -> String {
        let Self { clock, device, data, data_type, replay, .. } = self;
        format!("{clock:?} {device} {data:?} {data_type} {replay}")
    }

    /// Whether models are trained as they are where nothing is said.
    pub fn is_default(&self) -> bool {
        self.what_is_trained() == Self::unsaid().what_is_trained()
    }

    /// Refuses options of training where a suite, or all suites of a collection, are simulated, which heed none of them.
    ///
    /// # Errors
    /// The first of them.
    pub fn check(&self, suite: &str, engine: EngineKind) -> Result<()> {
        let unsaid = Self::unsaid();
        let given = [
            ("--clock", self.clock != unsaid.clock),
            ("--device", self.device != unsaid.device),
            ("--data", self.data != unsaid.data),
            ("--data-type", self.data_type != unsaid.data_type),
            ("--replay", self.replay != unsaid.replay),
            ("--record-trace", self.record_trace != unsaid.record_trace),
            ("--checkpoint", self.checkpoint != unsaid.checkpoint),
            ("--checkpoint-every", self.checkpoint_every != unsaid.checkpoint_every),
            ("--timeout", self.timeout != unsaid.timeout),
            ("--backend", self.backend != unsaid.backend),
            ("--rank", self.rank != unsaid.rank),
            ("--world-size", self.world_size != unsaid.world_size),
            ("--local-rank", self.local_rank != unsaid.local_rank),
            ("--master-addr", self.master_addr != unsaid.master_addr),
            ("--master-port", self.master_port != unsaid.master_port),
        ];
        match given.iter().find(|(_, is)| *is && !engine.trains()) {
            Some((option, _)) => bail!("{option}: {suite} is simulated: expected --engine train with it"),
            None => Ok(()),
        }
    }

    /// The engine under the clock that was asked for.
    pub fn under_clock(&self, engine: EngineKind) -> EngineKind {
        match (engine, self.clock) {
            (EngineKind::Measured, Clock::Virtual) => EngineKind::Emulated,
            (engine, _) => engine,
        }
    }
}
