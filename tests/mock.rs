//! An engine of known times: runner, records, store, summary, figures and tables without a simulation.

mod beside;
mod engine;
mod figures;
mod records;
mod report;
mod runner;
mod store;
mod summary;
