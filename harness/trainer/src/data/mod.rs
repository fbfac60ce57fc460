//! Training data: a file of token ids, a synthetic language of known entropy, or tokens without any order.
//!
//! A sample depends on the seed, the iteration and its place in the global batch alone, never on the plan: every system and
//! every split over ranks trains on the same tokens.

mod language;
mod tokens;
mod uniform;

use std::io;
use std::path::PathBuf;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

pub use language::Language;
pub use tokens::{TokenFile, TokenKind};
pub use uniform::Uniform;

/// Samples of a fixed length.
pub trait Samples: Send + Sync {
    /// The tokens of one sample, one more than the sequence length: inputs and, shifted by one, targets.
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64>;

    /// Token ids are below this.
    fn vocabulary(&self) -> usize;

    /// What losses can be compared with, if it is known.
    fn entropy(&self) -> Option<Entropy>;
}

/// Entropies of a language, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entropy {
    /// Of the next token when all before it are known: no model's expected loss is lower.
    pub floor: f64,
    /// Of tokens on their own: the loss of a model that knows their frequencies alone.
    pub unigram: f64,
}

/// Why data cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {bytes} bytes are no whole number of {kind} ids")]
    Size { path: PathBuf, bytes: usize, kind: TokenKind },
    #[error("{path}: {tokens} tokens: expected at least {needed}, one more than the sequence length")]
    Short { path: PathBuf, tokens: usize, needed: usize },
    #[error(
        "{path}: token {position} (counted from 0) is {id}: expected 0 to {last}, the model's vocabulary; or the file does not hold {kind} ids"
    )]
    Id { path: PathBuf, position: usize, id: i64, last: usize, kind: TokenKind },
    #[error(
        "{path}: every second of its first {looked_at} {kind} ids is {most} or less, as in a file of wider ids: expected {kind} ids; {advice}"
    )]
    Wider { path: PathBuf, kind: TokenKind, looked_at: usize, most: i64, advice: &'static str },
    #[error("synthetic language: {field} = {value}: expected {expected}")]
    Language { field: &'static str, value: usize, expected: &'static str },
}

/// What a stream of draws is for.
#[derive(Clone, Copy)]
enum Purpose {
    Successors = 0,
    Sample = 1,
}

/// An independent stream for each purpose, iteration and index.
fn stream(seed: u64, purpose: Purpose, iteration: usize, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((purpose as u64) << 62) | ((iteration as u64 & 0x3fff_ffff) << 32) | (index as u64 & 0xffff_ffff));
    rng
}
