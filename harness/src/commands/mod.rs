//! One file per command: what it asks of the rest, and what it prints.

pub mod calibrate;
pub mod doctor;
pub mod list;
pub mod plan;
pub mod run;
pub mod trace;
pub mod train;
pub mod validate;

/// Refuses a count of none.
///
/// # Errors
/// A value of 0.
fn at_least_one(flag: &str, value: usize) -> anyhow::Result<()> {
    anyhow::ensure!(value > 0, "{flag} 0: expected at least 1");
    Ok(())
}
