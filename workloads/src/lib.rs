//! What is trained and on what: models, clusters, gates, routing traces and suites.
//!
//! Values in, values out: nothing here opens a file, reads a clock or the environment. TOML data lies beside the code
//! and is embedded at build time; text and bytes of other files are handed in by the caller.

pub mod bands;
pub mod change;
pub mod cluster;
pub mod csv_file;
pub mod engine;
pub mod error;
pub mod fields;
pub mod gate;
pub mod measured;
pub mod model;
pub mod plan;
pub mod published;
#[cfg(test)]
#[path = "../../tests/shared_data.rs"]
mod shared_data;
pub mod suite;
mod sweep;
pub mod throughput;
pub mod trace;
pub mod training;
pub mod units;

pub use change::Change;
pub use cluster::Cluster;
pub use csv_file::CsvFile;
pub use engine::EngineKind;
pub use error::ConfigError;
pub use gate::Gate;
pub use model::Model;
pub use published::Published;
pub use suite::{Case, Suite};
pub use training::Training;
pub use units::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, Seconds};
