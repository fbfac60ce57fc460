//! Figures of predictions beside measurements, drawn by [`chart`].

pub mod adaptive;
pub mod performance_model;
