//! Data.

/// Samples.
pub trait Samples: Sync {
    /// seq_len + 1 tokens.
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64>;
}
