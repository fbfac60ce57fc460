//! A run: prepared, run case by case, stored.

pub mod prepare;
pub mod provenance;
pub mod records;
pub mod runner;
pub mod store;
