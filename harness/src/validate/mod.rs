//! Predictions held against published measurements: what a simulated number is worth.
//!
//! Three studies, each read from a CSV of one row per measurement ([`sheet`]): whole iterations ([`end_to_end`]), single
//! MoE layers ([`moe_layer`]), and one layer over time under two placements ([`adaptive`]). All are predicted with the
//! systems, the cost model and the evaluator that `moebench run` uses; nothing here has a formula of its own.

pub mod adaptive;
pub mod end_to_end;
pub mod errors;
pub mod layer;
pub mod moe_layer;
pub mod sheet;
