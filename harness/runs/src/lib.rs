//! Comparisons of training systems: prepared from a suite, run by an engine case by case, stored, and shown.
//!
//! [`prepare`] turns a suite into runs, an [`engines::Engine`] runs them, [`runner`] goes from case to case, [`store`] keeps
//! the samples, [`summary`], [`figures`] and [`report`] show them. [`traces`] opens the routing that runs read.

pub mod compare;
pub mod details;
pub mod engines;
pub mod figures;
pub mod looks;
pub mod machine;
pub mod named;
pub mod part;
pub mod prepare;
pub mod provenance;
pub mod records;
pub mod report;
pub mod runner;
pub mod store;
pub mod stored;
pub mod summary;
pub mod timeline;
pub mod traces;

use std::fmt::Display;
use std::io::{self, Write};

/// Says something on standard error, if that can be written: what cannot be said ends nothing.
pub fn say(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
