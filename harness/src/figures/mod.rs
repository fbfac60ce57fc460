//! The study's figures, each derived from summaries or records and drawn by [`crate::chart`].

pub mod adaptive;
pub mod end_to_end;
pub mod performance_model;
