//! Runs: prepared from a suite, run by an engine case by case, recorded and stored.

pub mod prepare;
pub mod provenance;
pub mod records;
pub mod runner;
pub mod store;
pub mod timeline;
