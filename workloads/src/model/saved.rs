//! What this program's own trainer keeps of a forward pass until the backward pass, counted tensor by tensor from its code.
//!
//! Other programs are taken to keep what the studies' formulas say ([`Block::dense_activations`]). A test of the trainer holds this count
//! against the memory that a forward pass really leaves in use on the CPU; what kernels of a GPU keep otherwise ([`Runs::kernels`]) is
//! counted alone. Rows of experts are as [`Moe::entry_activations`] says in both.

use super::attention::{Attention, Projections, QkNorm};
use super::block::{Block, Norm, NormKind};
use super::feed_forward::{Activation, Ffn, Mlp, Moe, Shared};
use super::{HALF, Model};
use crate::gate::{Router, Score};
use crate::units::Bytes;

/// Numbers of a token that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Saved {
    /// In the kind that products use, half precision on a GPU.
    pub half: f64,
    /// In single precision, or 32-bit whole numbers.
    pub single: f64,
}

/// What runs a trainer's passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Whether kernels of a GPU do what they know; libtorch's operations under autograd do everything else.
    pub kernels: bool,
    /// Ranks that have a part of the heads and of the networks' inner width each.
    pub tp: usize,
}

impl Saved {
    fn new(half: usize, single: usize) -> Self {
        Self { half: half as f64, single: single as f64 }
    }

    /// On a GPU.
    pub fn bytes(self) -> Bytes {
        Bytes(self.half * HALF + self.single * 4.0)
    }
}

impl std::ops::Add for Saved {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { half: self.half + other.half, single: self.single + other.single }
    }
}

impl Model {
    /// Of a token in a block, outside the rows of experts.
    pub fn saved_in(&self, block: &Block, runs: Runs) -> Saved {
        let h = block.hidden;
        // The stream before and after attention, and its normalisations.
        let norms = block.norm.saved() + block.norm.saved() + Saved::new(4 * h, 0);
        let fused = runs.kernels && block.is_known_to_kernels();
        let partial = if fused { 0 } else { h };
        let network = match &block.ffn {
            Ffn::Dense(mlp) => mlp.saved(h, runs.tp),
            Ffn::Moe(moe) => {
                let shared = moe.shared.map_or(Saved::default(), |shared| shared.saved(moe.width, runs.tp));
                let gate = self.router.saved(moe, self.top_k, runs.kernels);
                shared + Saved { half: gate.half / runs.tp as f64, single: gate.single / runs.tp as f64 }
            }
        };
        norms + Saved::new(partial, 0) + block.attention.saved(runs.tp) + network
    }

    /// Of a token before the first block, whose input is counted there: the words, where positions are added to them.
    pub fn saved_by_embedding(&self) -> Saved {
        let first = self.blocks.first().filter(|block| block.attention.rotary.is_none());
        Saved::new(first.map_or(0, |block| block.hidden), 0)
    }

    /// Of a token behind the last block: the stream, its normalisation, and the gradient of the logits, which takes their place.
    pub fn saved_by_head(&self, runs: Runs) -> Saved {
        let Some((last, words)) = self.blocks.last().zip(self.vocabulary) else { return Saved::default() };
        last.norm.saved() + Saved::new(2 * last.hidden + words / runs.tp, 0)
    }
}

impl Norm {
    /// Of a token's statistics.
    fn saved(&self) -> Saved {
        Saved::new(0, if self.kind == NormKind::Rms { 1 } else { 2 })
    }
}

impl Block {
    /// Whether the trainer's kernels do its attention and the normalisations around it.
    fn is_known_to_kernels(&self) -> bool {
        let of = &self.attention;
        let plain = of.qkv_bias && of.output_bias && of.qk_norm == QkNorm::None;
        let joint = matches!(of.projections, Projections::Grouped { kv_heads, .. } if kv_heads == of.heads);
        self.norm == Norm::default() && plain && joint && of.rotary.is_none() && of.window.is_none()
    }
}

impl Attention {
    /// Between the normalised stream and the product back, on one of `tp` ranks. Keys and values of grouped queries are repeated for all heads.
    fn saved(&self, tp: usize) -> Saved {
        let heads = self.heads / tp;
        let (cut, whole) = match self.projections {
            Projections::Latent(latent) => {
                let key = latent.nope + latent.rope;
                // Values lie in the memory of their product with the keys' parts.
                let kernel = heads * (2 * key + (latent.nope + latent.value) + latent.value);
                let compressed = 2 * latent.q_rank.unwrap_or(0) + 2 * (latent.kv_rank + latent.rope);
                (kernel, compressed)
            }
            Projections::Grouped { kv_heads, head_width } => {
                let changed = self.rotary.is_some() || self.qk_norm != QkNorm::None;
                let [queries, keys] = [self.heads, kv_heads].map(|heads| heads / tp * head_width);
                let before = match (kv_heads == self.heads, self.qk_norm) {
                    // What queries, keys and values were cut from.
                    (true, _) if changed => 2 * queries,
                    (true, _) | (false, QkNorm::None) => 0,
                    (false, QkNorm::Head | QkNorm::Full) => queries + keys,
                };
                (4 * queries + before, 0)
            }
        };
        Saved::new(cut + whole, heads)
    }
}

impl Mlp {
    /// Of a network that tokens of `width` pass, its input aside: between its matrices, and its output.
    fn saved(&self, width: usize, tp: usize) -> Saved {
        let tensors = match (self.activation, self.gated) {
            (Activation::Gelu | Activation::Silu, false) => 2,
            (Activation::Gelu | Activation::Silu, true) | (Activation::ClampedSilu, false) => 4,
            (Activation::ClampedSilu, true) => 7,
        };
        Saved::new(tensors * self.inner / tp + width, 0)
    }
}

impl Shared {
    /// Its input aside; with a gate, the share and the product are kept, too.
    fn saved(&self, width: usize, tp: usize) -> Saved {
        let gated = if self.gated { Saved::new(width + 1, 1) } else { Saved::default() };
        self.mlp.saved(width, tp) + gated
    }
}

impl Router {
    /// The gate's tokens aside.
    fn saved(&self, moe: &Moe, top_k: usize, kernels: bool) -> Saved {
        if kernels {
            // Choices, their weights, rows of choices, choices by expert; scores, where more than those of choices have a gradient.
            return Saved::new(0, 4 * top_k + if *self == Self::default() { 0 } else { moe.experts });
        }
        // The scores of all experts for the weights, and again for the balance loss.
        let for_weights = usize::from(self.score == Score::Sigmoid || !self.renormalise);
        let for_balance = usize::from(self.auxiliary_loss > 0.0);
        // Tokens in single precision; 64-bit choices, rows of choices, and tokens of rows; weights.
        Saved::new(0, moe.width + (for_weights + for_balance) * moe.experts + 7 * top_k)
    }
}
