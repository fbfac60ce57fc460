//! Feed-forward networks: dense, as experts, and as experts that every token shares.

use serde::Deserialize;

use super::HALF;
use crate::units::{Bytes, Flops};

/// Two matrices with an activation function between them, or three where a gate's product joins in (GLU, Shazeer 2020).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mlp {
    /// Width between the matrices.
    pub inner: usize,
    /// Whether a third matrix gates the inner width: GeGLU, SwiGLU.
    pub gated: bool,
    /// Whether the matrices have biases.
    pub biases: bool,
    /// The activation function.
    pub activation: Activation,
}

/// An activation function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x Φ(x)`.
    #[default]
    Gelu,
    /// `x σ(x)`.
    Silu,
    /// gpt-oss: the gate clamped above at 7, the other factor to -7..7 and raised by 1; `x σ(1.702 x)`.
    ClampedSilu,
}

impl Mlp {
    /// GPT-2's kind: two matrices with biases, GELU between them.
    pub const fn plain(inner: usize) -> Self {
        Self { inner, gated: false, biases: true, activation: Activation::Gelu }
    }

    /// Number of matrices.
    pub fn matrices(&self) -> usize {
        if self.gated { 3 } else { 2 }
    }

    /// Parameters, for rows of `width`.
    #[inline]
    pub fn parameters(&self, width: usize) -> u64 {
        let biases = if self.biases { (self.matrices() - 1) * self.inner + width } else { 0 };
        (self.matrices() * width * self.inner + biases) as u64
    }

    /// Forward arithmetic of a row; the backward pass is twice that.
    pub fn flops(&self, width: usize) -> f64 {
        (2 * self.matrices() * width * self.inner) as f64
    }

    /// Bytes stored of a row between the first matrix and the last: before the activation function, and after it.
    #[inline]
    pub fn stored_inner(&self) -> f64 {
        (self.matrices() * self.inner) as f64 * HALF
    }

    /// Of that, what selective recomputation gives up: the activation function's result.
    pub fn recomputable(&self) -> f64 {
        self.inner as f64 * HALF
    }
}

/// A block's feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ffn {
    /// One network for every token.
    Dense(Mlp),
    /// A gate and experts.
    Moe(Moe),
}

/// A Mixture-of-Experts layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moe {
    /// Tokens per sample that the gate sees.
    pub tokens: usize,
    /// Width of such a token.
    pub width: usize,
    /// Number of experts that the gate chooses from.
    pub experts: usize,
    /// One of them.
    pub expert: Mlp,
    /// Whether the gate has a number per expert beside its weights: a bias of its scores, or one for the choice alone.
    pub gate_bias: bool,
    /// Experts that every token passes, on its own rank.
    pub shared: Option<Shared>,
}

/// Experts that every token passes: as one network, with the sum of their inner widths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shared {
    /// That network.
    pub mlp: Mlp,
    /// Whether a learned number between 0 and 1 multiplies its output (Qwen1.5-MoE).
    pub gated: bool,
}

impl Moe {
    /// A layer of GPT-2's networks, with biases everywhere and nothing shared.
    pub const fn plain(tokens: usize, width: usize, inner: usize, experts: usize) -> Self {
        Self { tokens, width, experts, expert: Mlp::plain(inner), gate_bias: true, shared: None }
    }

    /// The same with an equal part of every expert's inner width, `parts` being a divisor of it.
    #[must_use]
    pub fn cut(&self, parts: usize) -> Self {
        Self { expert: Mlp { inner: self.expert.inner / parts, ..self.expert }, ..*self }
    }

    /// Parameters of one expert.
    #[inline]
    pub fn expert_parameters(&self) -> u64 {
        self.expert.parameters(self.width)
    }

    /// Parameters of the gate: one linear map.
    pub fn gate_parameters(&self) -> u64 {
        (self.experts * (self.width + usize::from(self.gate_bias))) as u64
    }

    /// Forward arithmetic of one entry (a token at one expert); the backward pass is twice that.
    pub fn entry_flops(&self) -> Flops {
        Flops(self.expert.flops(self.width))
    }

    /// Bytes of one entry on the wire, in half precision.
    #[inline]
    pub fn entry_bytes(&self) -> Bytes {
        Bytes(self.width as f64 * HALF)
    }

    /// Forward arithmetic of the gate, per sample.
    pub fn gate_flops(&self) -> Flops {
        Flops((2 * self.width * self.experts * self.tokens) as f64)
    }

    /// Stored per entry for the backward pass: the expert's input, its inner width before and after the activation
    /// function, and its output (for the gradient of the combining weight).
    #[inline]
    pub fn entry_activations(&self) -> Bytes {
        Bytes((2 * self.width) as f64 * HALF + self.expert.stored_inner())
    }
}

impl Shared {
    /// Parameters, for tokens of `width`.
    pub fn parameters(&self, width: usize) -> u64 {
        self.mlp.parameters(width) + if self.gated { width as u64 } else { 0 }
    }

    /// Forward arithmetic of a token.
    pub fn flops(&self, width: usize) -> f64 {
        self.mlp.flops(width) + if self.gated { (2 * width) as f64 } else { 0.0 }
    }

    /// Bytes stored of a token, whose input the gate stores already; the output is kept for its gate's gradient alone.
    pub fn stored(&self, width: usize) -> f64 {
        self.mlp.stored_inner() + if self.gated { width as f64 * HALF } else { 0.0 }
    }
}
