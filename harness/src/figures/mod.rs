//! The study's figures, each derived from summaries or records and drawn by [`crate::chart`].

pub mod end_to_end;
