//! The dense parts of a GPT on one rank, and what all parameters have in common.
//!
//! Tensor parallelism is Megatron's (Shoeybi et al. 2019): the first matrix of a pair is cut by columns, the second by rows,
//! the embedding by vocabulary. An all-reduce follows the second product in the forward pass and precedes the input gradient of
//! the first in the backward pass. Activations `[tokens, hidden]` are whole on every tensor-parallel rank; so are biases
//! after a cut product and normalisations, which get the same gradient everywhere.

pub mod attention;
pub mod dense;
pub mod embedding;
mod fused;
pub mod head;
mod heads;
pub mod mlp;
mod norm;
pub mod optimizer;
pub mod parameters;
pub mod share;
pub mod site;
pub mod tape;

use workloads::model::Norm;

/// What a language model has beside its blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpt {
    /// Number of blocks.
    pub depth: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Tokens of a sample.
    pub seq_len: usize,
    pub vocabulary: usize,
    /// The normalisation before the head.
    pub norm: Norm,
    /// Whether each position has an embedding of its own; otherwise positions are rotary.
    pub learned_positions: bool,
    /// Whether head and embedding share their words.
    pub tied: bool,
}
