//! One file per command: what it asks of the rest, and what it prints.

pub mod calibrate;
pub mod doctor;
pub mod list;
pub mod plan;
pub mod run;
pub mod trace;
pub mod train;
pub mod validate;
