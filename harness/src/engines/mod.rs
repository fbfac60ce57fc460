//! Engines: how the numbers of a run are obtained.

#[cfg(feature = "train")]
pub mod replay;
#[cfg(feature = "train")]
pub mod train;

use clap::ValueEnum;

/// What runs a suite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Prices programs on a described cluster.
    #[default]
    Simulate,
    /// Trains a real model with real ranks, under the wall clock.
    Train,
    /// Trains a real model whose ranks share a device, under a virtual clock with priced communication.
    #[value(skip)]
    Emulate,
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

impl Engine {
    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simulate => "simulated",
            Self::Train => "train",
            Self::Emulate => "emulated",
        }
    }

    /// What its numbers are, wherever they are shown.
    pub fn label(self) -> &'static str {
        label(self.name())
    }
}

/// What the numbers of an engine, named as in records, are.
pub fn label(name: &str) -> &'static str {
    match name {
        "train" => "measured",
        "emulated" => "emulated (computation measured, communication priced)",
        _ => "simulated",
    }
}
