//! `moebench calibrate`: a cluster's constants, fitted to measurements or measured on this machine.

pub mod fit;
pub mod measure;
pub mod network;

use clap::Subcommand;

use crate::failure::Failure;

/// `moebench calibrate`.
#[derive(Subcommand)]
pub enum CalibrateCommand {
    /// Fit a cluster's constants to measurements and write its TOML
    Fit(fit::FitArgs),
    /// Measure this machine's device and write a cluster's TOML with what was found
    Measure(measure::MeasureArgs),
    /// Take the network's constants from what nccl-tests measured, and write a cluster's TOML
    Network(network::NetworkArgs),
}

/// Runs the command.
///
/// # Errors
/// Bad input, a fit that fails, or a file that cannot be written.
pub fn run(command: &CalibrateCommand) -> Result<(), Failure> {
    match command {
        CalibrateCommand::Fit(args) => fit::run(args),
        CalibrateCommand::Measure(args) => measure::run(args),
        CalibrateCommand::Network(args) => network::run(args),
    }
}
