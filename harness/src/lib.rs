//! The `moebench` harness: it prepares runs, has engines run them, stores every sample, and derives all that is shown.
//!
//! [`pipeline`] is the way of a run from a command's request to its figures: [`runs::prepare`] turns a suite into runs, an
//! [`engines::Engine`] runs them, [`runs::store`] keeps the samples, [`summary`], [`figures`] and [`report`] show them.
//! [`measurements`] are what the simulator is held against: [`studies`] say how far it is off, [`calibrate`] fits a cluster's
//! constants to them.

pub mod calibrate;
pub mod cli;
pub mod commands;
pub mod engines;
pub mod failure;
pub mod figures;
pub mod machine;
pub mod measurements;
pub mod output;
pub mod pipeline;
pub mod report;
pub mod runs;
pub mod studies;
pub mod summary;
pub mod traces;
