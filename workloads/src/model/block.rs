//! One transformer block: attention and a feed-forward network, each behind a normalisation.

use serde::{Deserialize, Serialize};

use super::HALF;
use super::attention::Attention;
use super::feed_forward::{Ffn, Moe};
use crate::units::{Bytes, Flops};

/// One transformer block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Tokens per sample.
    pub tokens: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Attention.
    pub attention: Attention,
    /// The normalisations before attention and before the feed-forward network.
    pub norm: Norm,
    /// Whether outputs of attention and network, and attention's scores, pass dropout, whose masks are stored.
    pub dropout: bool,
    /// Parameters beside attention, normalisations and network: position biases, patch merging.
    pub extra_parameters: u64,
    /// Forward arithmetic per sample of those.
    pub extra_flops: Flops,
    /// The feed-forward network.
    pub ffn: Ffn,
}

/// A normalisation over a token's width.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which.
    pub kind: NormKind,
    /// Added to what is divided by.
    pub epsilon: f64,
}

/// Kinds of normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// LayerNorm: weight and bias.
    #[default]
    Layer,
    /// LayerNorm with a weight alone.
    LayerNoBias,
    /// RMSNorm: a weight.
    Rms,
}

impl Default for Norm {
    fn default() -> Self {
        Self { kind: NormKind::default(), epsilon: 1e-5 }
    }
}

impl Norm {
    /// Parameters, for a width of `width`.
    pub fn parameters(&self, width: usize) -> u64 {
        match self.kind {
            NormKind::Layer => 2 * width as u64,
            NormKind::LayerNoBias | NormKind::Rms => width as u64,
        }
    }
}

/// What is computed again in the backward pass, so that it need not be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// What is large and takes little arithmetic: results of normalisations and activation functions, the projections from
    /// MLA's compressed tokens (DeepSeek-V3, arXiv 2412.19437, section 3.2.3), and the scores of an attention that is not
    /// fused (Korthikanti et al. 2022).
    Selective,
    /// Whole blocks, from their inputs.
    Full,
}

impl Block {
    /// The block's MoE layer, if it has one.
    pub fn moe(&self) -> Option<&Moe> {
        match &self.ffn {
            Ffn::Moe(moe) => Some(moe),
            Ffn::Dense(_) => None,
        }
    }

    /// Parameters that every data-parallel rank holds: attention, normalisations, extras and what of the network all
    /// tokens pass, dense or shared. The gate and its experts are counted by [`Moe`].
    pub fn dense_parameters(&self) -> u64 {
        let ffn = match &self.ffn {
            Ffn::Dense(mlp) => mlp.parameters(self.hidden),
            Ffn::Moe(moe) => moe.shared.map_or(0, |shared| shared.parameters(moe.width)),
        };
        self.attention.parameters(self.hidden) + 2 * self.norm.parameters(self.hidden) + self.extra_parameters + ffn
    }

    /// Forward arithmetic per sample of everything outside gate and experts.
    pub fn dense_flops(&self) -> Flops {
        let tokens = self.tokens as f64;
        let ffn = match &self.ffn {
            Ffn::Dense(mlp) => tokens * mlp.flops(self.hidden),
            Ffn::Moe(moe) => moe.shared.map_or(0.0, |shared| moe.tokens as f64 * shared.flops(moe.width)),
        };
        Flops(tokens * self.attention.flops(self.hidden) + ffn) + self.extra_flops
    }

    /// Stored per sample for the backward pass, outside gate and experts, with nothing recomputed.
    pub fn dense_activations(&self) -> Bytes {
        let hidden = self.hidden as f64;
        let mask = if self.dropout { hidden } else { 0.0 };
        let ffn = match &self.ffn {
            Ffn::Dense(mlp) => HALF * hidden + mask + mlp.stored_inner(),
            // Input and dropout mask of the layer, the gate's scores in single precision.
            Ffn::Moe(moe) => {
                let shared = moe.shared.map_or(0.0, |shared| shared.stored(moe.width));
                HALF * hidden + mask + 4.0 * moe.experts as f64 + shared
            }
        };
        let norms = 2.0 * HALF * hidden;
        Bytes(self.tokens as f64 * (norms + self.attention.stored(self.hidden, self.dropout) + ffn))
    }

    /// What stays stored per sample, outside gate and experts, when the rest is recomputed.
    pub fn kept(&self, recompute: Recompute) -> Bytes {
        match recompute {
            Recompute::None => self.dense_activations(),
            Recompute::Full => self.boundary_bytes(),
            Recompute::Selective => {
                let inner = match &self.ffn {
                    Ffn::Dense(mlp) => mlp.recomputable(),
                    Ffn::Moe(moe) => moe.shared.map_or(0.0, |shared| shared.mlp.recomputable()),
                };
                let attention = self.attention.recomputable(self.hidden, self.dropout);
                self.dense_activations() - Bytes(self.tokens as f64 * (attention + HALF * self.hidden as f64 + inner))
            }
        }
    }

    /// Arithmetic per sample that is done again, outside gate and experts.
    pub fn recomputed_flops(&self, recompute: Recompute) -> Flops {
        match recompute {
            Recompute::None => Flops::ZERO,
            Recompute::Selective => Flops(self.tokens as f64 * self.attention.recomputed_flops()),
            Recompute::Full => self.dense_flops(),
        }
    }

    /// Bytes of the block's output for one sample, in half precision: what a pipeline boundary sends.
    pub fn boundary_bytes(&self) -> Bytes {
        Bytes((self.tokens * self.hidden) as f64 * HALF)
    }
}

impl Moe {
    /// What stays stored of an entry when the rest is recomputed; under full recomputation nothing but what its token's
    /// block keeps.
    pub fn entry_kept(&self, recompute: Recompute) -> Bytes {
        match recompute {
            Recompute::None => self.entry_activations(),
            Recompute::Selective => self.entry_activations() - Bytes(self.expert.recomputable()),
            Recompute::Full => Bytes::ZERO,
        }
    }
}
