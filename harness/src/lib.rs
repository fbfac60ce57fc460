//! The `moebench` harness: it prepares jobs, runs engines over them, stores every sample, and derives all that is shown.
//!
//! The life of a run: [`prepare`] turns a suite into jobs and routings, [`simulate`] runs one job under one system ([`simulate_layer`] one layer of it),
//! [`runner`] runs all and hands each finished case to [`store`], [`summary`] derives medians and speedups from the
//! stored frames, [`figures`], [`report`], [`html`] and [`latex`] show them; [`timeline`] shows one iteration rank by rank.

pub mod calibrate;
pub mod chart;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod figures;
pub mod html;
pub mod latex;
pub mod model_error;
pub mod output;
pub mod page;
pub mod prepare;
pub mod provenance;
pub mod records;
pub mod report;
pub mod runner;
pub mod simulate;
pub mod simulate_layer;
pub mod statistics;
pub mod store;
pub mod summary;
pub mod timeline;
pub mod traces;
#[cfg(feature = "train")]
pub mod train;
pub mod validate;
