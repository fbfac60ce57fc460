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
pub mod mlp;
pub mod optimizer;
pub mod parameters;
pub mod site;
pub mod tape;

use workloads::model::{Block, Ffn};

/// The shape of a GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// Number of blocks.
    pub depth: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens of a sample.
    pub seq_len: usize,
    pub vocabulary: usize,
}

/// The inner width of a block's dense MLP; none for an MoE block.
pub fn inner(block: &Block) -> Option<usize> {
    match block.ffn {
        Ffn::Dense(mlp) => Some(mlp.inner),
        Ffn::Moe(_) => None,
    }
}
