//! The `moebench` harness: it prepares jobs, runs engines over them, stores every sample, and derives all that is shown.
//!
//! The life of a run: [`prepare`] turns a suite into jobs and routings, [`simulate`] runs one job under one system ([`simulate_layer`] one layer of it),
//! [`runner`] runs all and hands each finished case to [`store`], [`summary`] derives medians and speedups from the
//! stored frames, [`figures`], [`report`], [`html`] and [`latex`] show them; [`timeline`] shows one iteration rank by rank.

pub mod calibrate;
pub mod cli;
pub mod commands;
pub mod engines;
pub mod failure;
pub mod figures;
pub mod output;
pub mod report;
pub mod runs;
pub mod studies;
pub mod summary;
pub mod traces;
