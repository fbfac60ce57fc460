//! Engines: what turns a prepared run into samples. All take the same plans, policies and programs, and none knows a system
//! by name.
//!
//! [`simulate`] prices layer programs on a described cluster. [`train`] executes them with real ranks: under the wall clock
//! its numbers are measured, under a virtual clock emulated. [`recorded`] takes what another program measured from its log.

pub mod args;
pub mod recorded;
pub mod simulate;
#[cfg(feature = "train")]
pub mod train;
#[cfg(not(feature = "train"))]
#[path = "without_train.rs"]
pub mod train;

use std::collections::BTreeMap;

use anyhow::Result;
use systems::Plan;
use workloads::{EngineKind, Suite};

use crate::engines::args::TrainingArgs;
use crate::engines::simulate::Simulator;
use crate::prepare::{PreparedCase, PreparedRun};
use crate::records::Outcome;

/// What of a suite is run.
#[derive(Clone, Copy)]
pub struct Extent {
    pub iterations: usize,
    /// Whether the last one is also kept rank by rank.
    pub timelines: bool,
}

/// What runs one system on one case.
pub trait Engine: Sync {
    /// How its numbers are obtained.
    fn kind(&self) -> EngineKind;

    /// Whether a run can be done; does no work.
    ///
    /// # Errors
    /// What is wrong with the input.
    fn check(&self, _run: &PreparedRun, _extent: Extent) -> Result<()> {
        Ok(())
    }

    /// SHA-256 of all that its numbers depend on besides suite and trace, the same in every process and for every shard.
    fn hash(&self) -> String;

    /// Runs all iterations under `plan`; `tick` counts them.
    ///
    /// # Errors
    /// Files that cannot be written. A run that ends early is an outcome.
    fn run(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome>;

    /// Runs a case under several systems: one after the other, unless runs can share work without changing a result.
    ///
    /// # Errors
    /// As for [`Self::run`].
    fn run_side_by_side(
        &self,
        runs: &[(&PreparedRun, Plan)],
        extent: Extent,
        tick: &(dyn Fn() + Sync),
    ) -> Result<Vec<Outcome>> {
        runs.iter().map(|(run, plan)| self.run(run, *plan, extent, tick)).collect()
    }

    /// Before the first run: an engine of several processes brings them together, and compares what they were asked for by
    /// its hash.
    ///
    /// # Errors
    /// Who did not come, or was asked for something else.
    fn begin(&self, _asked: &str) -> Result<()> {
        Ok(())
    }

    /// After the last run: an engine of several processes tells the others to exit with this status.
    fn end(&self, _status: u8) {}

    /// What it measures on; none where its times are those of a described cluster, or somebody else's.
    fn place(&self) -> Option<String> {
        None
    }

    /// Name and cores of what ran; none where that is this machine.
    fn host(&self) -> Option<(String, usize)> {
        None
    }

    /// Versions of the libraries and the driver that it trains with, by name.
    fn libraries(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Whether what it gives as iterations are lines of a log that may be means of several, or begin later.
    fn gives_lines(&self) -> bool {
        false
    }

    /// How its numbers were obtained, where that is neither by this program nor by its ranks.
    fn origin(&self) -> Option<String> {
        None
    }

    /// Floor and unigram entropy of what the model of a run reads, nats per token, where they are known.
    fn entropy(&self, _run: &PreparedRun) -> Option<[f64; 2]> {
        None
    }
}

/// An engine in a process that is a rank other than 0.
pub trait Follower: Engine {
    /// Runs what rank 0 calls until it ends; returns the exit status that it says.
    ///
    /// # Errors
    /// That a process is gone, rank 0 for one.
    fn serve(&self, cases: &[PreparedCase], extent: Extent) -> Result<u8>;
}

/// The part of this process in a command. Where each rank is a process of its own, rank 0 leads: it alone opens the store,
/// writes and prints.
pub enum Session {
    Leader(Box<dyn Engine>),
    Follower(Box<dyn Follower>),
}

impl Session {
    /// Opens the engine of that kind.
    ///
    /// # Errors
    /// Options that make no sense, or an engine that this program was built without.
    pub fn open(kind: EngineKind, args: &TrainingArgs, suite: &Suite) -> Result<Self> {
        match args.under_clock(kind) {
            EngineKind::Simulated => Ok(Self::Leader(Box::new(Simulator))),
            trained => train::open(trained, args, suite),
        }
    }

    pub fn engine(&self) -> &dyn Engine {
        match self {
            Self::Leader(engine) => &**engine,
            Self::Follower(follower) => &**follower,
        }
    }
}
