//! Tokens without any order, for where only their number matters.

use rand::Rng;

use super::{Entropy, Purpose, Samples, stream};

/// Tokens that are drawn evenly from the whole vocabulary, of any size.
#[derive(Clone, Copy, Debug)]
pub struct Uniform {
    pub vocabulary: usize,
    /// Tokens of a sample that are inputs.
    pub sequence: usize,
    pub seed: u64,
}

impl Samples for Uniform {
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64> {
        let mut draws = stream(self.seed, Purpose::Sample, iteration, index);
        // Bias from the remainder is below 2^-32 of the vocabulary.
        (0..=self.sequence).map(|_| (draws.next_u64() % self.vocabulary as u64) as i64).collect()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn entropy(&self) -> Option<Entropy> {
        let all = (self.vocabulary as f64).ln();
        Some(Entropy { floor: all, unigram: all })
    }
}
