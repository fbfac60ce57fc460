//! The table `[gpt]`: a decoder-only transformer.
//!
//! With the fields that must be there it is Megatron's GPT, as the models of SmartMoE's study are: LayerNorm, learned
//! positions, biases, a tied head, ungated experts, attention whose scores are stored. Every other field changes one of these.

use serde::Deserialize;

use super::attention::{Attention, Latent, Projections, QkNorm, Rotary, seen_keys};
use super::block::{Block, Norm, NormKind};
use super::feed_forward::{Activation, Ffn, Mlp, Moe, Shared};
use super::{Edge, HALF, Model, check_extent, top_k_within};
use crate::error::ConfigError;
use crate::gate::{Groups, Router, RouterBias, Score};
use crate::units::{Bytes, Flops};

/// The table's fields.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gpt {
    layers: usize,
    hidden: usize,
    heads: usize,
    seq_len: usize,
    vocabulary: usize,
    experts: usize,
    top_k: usize,

    /// Inner width of an expert, or that as a multiple of `hidden`: one of the two.
    expert_inner: Option<usize>,
    expert_ratio: Option<f64>,
    /// Whether experts have a third matrix that gates (SwiGLU, GeGLU); dense networks likewise, unless they say otherwise.
    #[serde(default)]
    expert_gated: bool,
    dense_gated: Option<bool>,
    #[serde(default)]
    activation: Activation,
    /// Inner width of the dense networks; 4 times `hidden` when absent.
    dense_inner: Option<usize>,
    /// Experts that every token passes, and the inner width of one; that of the others when absent.
    #[serde(default)]
    shared_experts: usize,
    shared_inner: Option<usize>,
    /// Whether a learned number multiplies the shared experts' output.
    #[serde(default)]
    shared_gate: bool,

    /// Every how manieth layer is MoE, counted from the first: 2 is the second, the fourth, ..
    #[serde(default = "one")]
    moe_every: usize,
    /// Layers at the start that are dense in any case, and others, counted from 0.
    #[serde(default)]
    first_dense: usize,
    #[serde(default)]
    dense_layers: Vec<usize>,

    /// Heads of keys and values; as many as `heads` when absent.
    kv_heads: Option<usize>,
    /// Width of a head; `hidden / heads` when absent.
    head_dim: Option<usize>,
    /// Multi-head latent attention instead.
    latent: Option<Latent>,
    #[serde(default)]
    qk_norm: QkNorm,
    #[serde(default)]
    sinks: bool,
    /// Keys that a query sees at most, and the layers where that is so, counted from 0; all when absent.
    window: Option<usize>,
    windowed_layers: Option<Vec<usize>>,
    /// Whether attention is one kernel that stores no scores and skips what is masked.
    #[serde(default)]
    fused_attention: bool,

    /// Biases of all linear maps but the head, and of some of them.
    #[serde(default = "yes")]
    bias: bool,
    qkv_bias: Option<bool>,
    output_bias: Option<bool>,
    mlp_bias: Option<bool>,

    #[serde(default)]
    norm: NormKind,
    #[serde(default = "norm_epsilon")]
    norm_epsilon: f64,
    #[serde(default)]
    positions: Positions,
    /// Base of rotary positions and the part of a head that they turn.
    rope_theta: Option<f64>,
    rope_share: Option<f64>,
    /// Whether the head's weights are the embedding's.
    #[serde(default = "yes")]
    tied: bool,
    #[serde(default = "yes")]
    dropout: bool,
    /// Further blocks behind the last, each of which predicts one token more (multi-token prediction, DeepSeek-V3).
    #[serde(default)]
    mtp_layers: usize,

    #[serde(default)]
    router: RouterSpec,
}

/// Where positions enter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Positions {
    /// A learned vector for each, added to the embedding.
    #[default]
    Learned,
    /// Turned queries and keys.
    Rotary,
}

/// The table `[gpt.router]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouterSpec {
    #[serde(default)]
    score: Score,
    /// `none`, `logit` or `selection`; what `gpt.bias` says when absent.
    bias: Option<RouterBias>,
    renormalise: Option<bool>,
    groups: Option<usize>,
    kept_groups: Option<usize>,
    group_best: Option<usize>,
    scale: Option<f64>,
    #[serde(default)]
    auxiliary_loss: f64,
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn norm_epsilon() -> f64 {
    1e-5
}

impl Gpt {
    pub(super) fn build(self, file: &str, name: String, source: String) -> Result<Model, ConfigError> {
        self.check(file)?;
        let router = self.router(file)?;
        let expert = self.mlp(self.expert_inner(file)?, self.expert_gated);
        let attention = self.attention(file)?;
        let layers: Vec<Block> = (0..self.layers + self.mtp_layers)
            .map(|index| self.block(index, attention, expert, router.bias != RouterBias::None))
            .collect();
        let (h, t, v) = (self.hidden, self.seq_len, self.vocabulary);
        let words = (v * h) as u64;
        let (positions, own_words) =
            (if self.positions == Positions::Learned { t * h } else { 0 }, if self.tied { 0 } else { words });
        // Every block of multi-token prediction goes through the head, too.
        let heads = (1 + self.mtp_layers) as f64;
        Ok(Model {
            name,
            source,
            flattening: 0.0,
            blocks: layers,
            input: Edge {
                parameters: positions as u64 + own_words,
                flops: Flops::ZERO,
                activations: Bytes((t * h) as f64 * HALF),
            },
            output: Edge {
                parameters: self.norm().parameters(h) + own_words,
                flops: Flops(2.0 * (t * h) as f64 * v as f64 * heads),
                // Normalised input in half precision; logits in half and, for the cross-entropy, in single.
                activations: Bytes(((t * h) as f64 * HALF + (t * v) as f64 * 6.0) * heads),
            },
            tied_parameters: if self.tied { words } else { 0 },
            top_k: self.top_k,
            vocabulary: Some(v),
            router,
        })
    }

    fn check(&self, file: &str) -> Result<(), ConfigError> {
        for (field, value, allowed) in [
            ("layers", self.layers, 1..=1 << 11),
            ("hidden", self.hidden, 1..=1 << 18),
            ("heads", self.heads, 1..=1 << 12),
            ("seq_len", self.seq_len, 1..=1 << 24),
            ("vocabulary", self.vocabulary, 1..=1 << 24),
            ("experts", self.experts, 1..=1 << 14),
            ("moe_every", self.moe_every, 1..=1 << 11),
            ("dense_inner", self.dense_inner.unwrap_or(1), 1..=1 << 20),
            ("shared_inner", self.shared_inner.unwrap_or(1), 1..=1 << 20),
            ("kv_heads", self.kv_heads.unwrap_or(1), 1..=1 << 12),
            ("head_dim", self.head_dim.unwrap_or(1), 1..=1 << 12),
            ("window", self.window.unwrap_or(1), 1..=1 << 24),
            ("shared_experts", self.shared_experts, 0..=1 << 10),
            ("mtp_layers", self.mtp_layers, 0..=1 << 5),
        ] {
            check_extent(file, &format!("gpt.{field}"), value, allowed)?;
        }
        top_k_within(file, "gpt.top_k", self.top_k, self.experts)?;
        self.check_layers(file)?;
        let wrong = |field: &str, value: f64, expected: &str| ConfigError::value(file, field, value, expected);
        if !(self.norm_epsilon.is_finite() && self.norm_epsilon > 0.0) {
            return Err(wrong("gpt.norm_epsilon", self.norm_epsilon, "a number above 0"));
        }
        if let Some(theta) = self.rope_theta.filter(|theta| !(theta.is_finite() && *theta > 1.0)) {
            return Err(wrong("gpt.rope_theta", theta, "a number above 1"));
        }
        if let Some(share) = self.rope_share.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            return Err(wrong("gpt.rope_share", share, "above 0 to 1"));
        }
        if self.positions == Positions::Learned && (self.rope_theta.is_some() || self.rope_share.is_some()) {
            return Err(ConfigError::value(
                file,
                "gpt.positions",
                "learned",
                "\"rotary\" beside rope_theta, rope_share",
            ));
        }
        Ok(())
    }

    /// Lists of layers that say nothing, or of layers that are not there.
    fn check_layers(&self, file: &str) -> Result<(), ConfigError> {
        let windowed = self.windowed_layers.iter().flatten().map(|layer| ("windowed_layers", layer));
        let dense = self.dense_layers.iter().map(|layer| ("dense_layers", layer));
        for (field, &layer) in windowed.chain(dense) {
            if layer >= self.layers {
                let expected = format!("layers below {}, counted from 0", self.layers);
                return Err(ConfigError::value(file, format!("gpt.{field}"), layer, expected));
            }
        }
        if self.windowed_layers.is_some() && self.window.is_none() {
            return Err(ConfigError::value(file, "gpt.windowed_layers", "given", "gpt.window beside it"));
        }
        if self.first_dense > self.layers {
            let expected = format!("at most {}, the number of layers", self.layers);
            return Err(ConfigError::value(file, "gpt.first_dense", self.first_dense, expected));
        }
        Ok(())
    }

    fn expert_inner(&self, file: &str) -> Result<usize, ConfigError> {
        let largest = 1 << 18;
        match (self.expert_inner, self.expert_ratio) {
            (Some(inner), None) => check_extent(file, "gpt.expert_inner", inner, 1..=largest).map(|()| inner),
            (None, Some(ratio)) => {
                let inner = ratio * self.hidden as f64;
                if inner.fract() == 0.0 && inner >= 1.0 && inner <= largest as f64 {
                    return Ok(inner as usize);
                }
                let expected = format!("a number whose product with hidden is a whole number from 1 to {largest}");
                Err(ConfigError::value(file, "gpt.expert_ratio", ratio, expected))
            }
            (inner, _) => {
                let found = if inner.is_some() { "both" } else { "none" };
                Err(ConfigError::value(file, "gpt.expert_inner, gpt.expert_ratio", found, "exactly one of the two"))
            }
        }
    }

    fn router(&self, file: &str) -> Result<Router, ConfigError> {
        let spec = &self.router;
        let with_bias = if self.bias { RouterBias::Logit } else { RouterBias::None };
        let router = Router {
            score: spec.score,
            bias: spec.bias.unwrap_or(with_bias),
            renormalise: spec.renormalise.unwrap_or(true),
            groups: self.groups(file)?,
            scale: spec.scale.unwrap_or(1.0),
            auxiliary_loss: spec.auxiliary_loss,
        };
        router.check(file, "gpt.router", self.experts, self.top_k)?;
        Ok(router)
    }

    fn groups(&self, file: &str) -> Result<Option<Groups>, ConfigError> {
        let RouterSpec { groups, kept_groups, group_best, .. } = self.router;
        match (groups, kept_groups) {
            (Some(number), Some(kept)) => Ok(Some(Groups { number, kept, best: group_best.unwrap_or(2) })),
            (None, None) if group_best.is_none() => Ok(None),
            _ => {
                let fields = "gpt.router.groups, gpt.router.kept_groups";
                Err(ConfigError::value(file, fields, "not both given", "both, or no groups"))
            }
        }
    }

    fn norm(&self) -> Norm {
        Norm { kind: self.norm, epsilon: self.norm_epsilon }
    }

    fn mlp(&self, inner: usize, gated: bool) -> Mlp {
        Mlp { inner, gated, biases: self.mlp_bias.unwrap_or(self.bias), activation: self.activation }
    }

    fn attention(&self, file: &str) -> Result<Attention, ConfigError> {
        Ok(Attention {
            heads: self.heads,
            projections: self.projections(file)?,
            attended: self.seq_len as f64,
            window: None,
            fused: self.fused_attention,
            qkv_bias: self.qkv_bias.unwrap_or(self.bias),
            output_bias: self.output_bias.unwrap_or(self.bias),
            qk_norm: self.qk_norm,
            sinks: self.sinks,
            rotary: (self.positions == Positions::Rotary)
                .then(|| Rotary { theta: self.rope_theta.unwrap_or(1e4), share: self.rope_share.unwrap_or(1.0) }),
        })
    }

    fn projections(&self, file: &str) -> Result<Projections, ConfigError> {
        if let Some(latent) = self.latent {
            for (field, value) in [
                ("q_rank", latent.q_rank.unwrap_or(1)),
                ("kv_rank", latent.kv_rank),
                ("nope", latent.nope),
                ("rope", latent.rope),
                ("value", latent.value),
            ] {
                check_extent(file, &format!("gpt.latent.{field}"), value, 1..=1 << 18)?;
            }
            let others = [
                ("kv_heads", self.kv_heads.is_some()),
                ("head_dim", self.head_dim.is_some()),
                ("qk_norm", self.qk_norm != QkNorm::None),
            ];
            if let Some((field, _)) = others.into_iter().find(|(_, given)| *given) {
                let expected = "nothing of that beside gpt.latent, which has its own widths and norms";
                return Err(ConfigError::value(file, format!("gpt.{field}"), "given", expected));
            }
            return Ok(Projections::Latent(latent));
        }
        let kv_heads = self.kv_heads.unwrap_or(self.heads);
        if !self.heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of {}, the number of heads", self.heads);
            return Err(ConfigError::value(file, "gpt.kv_heads", kv_heads, expected));
        }
        let head_width = match self.head_dim {
            Some(width) => width,
            None if self.hidden.is_multiple_of(self.heads) => self.hidden / self.heads,
            None => {
                let expected = format!("a multiple of gpt.heads ({}), or gpt.head_dim given", self.heads);
                return Err(ConfigError::value(file, "gpt.hidden", self.hidden, expected));
            }
        };
        Ok(Projections::Grouped { kv_heads, head_width })
    }

    /// Block `index`, counted from 0; those behind the layers predict further tokens.
    fn block(&self, index: usize, attention: Attention, expert: Mlp, gate_bias: bool) -> Block {
        let (h, t) = (self.hidden, self.seq_len);
        let windowed = self.windowed_layers.as_ref().is_none_or(|layers| layers.contains(&index));
        let window = self.window.filter(|_| windowed);
        let attended = if self.fused_attention { seen_keys(t, window) } else { t as f64 };
        // Beside a block of its own, a map from two normalised vectors to one, and a normalisation before the head.
        let predicts = index >= self.layers;
        let extra = if predicts { 2 * h * h + 3 * self.norm().parameters(h) as usize } else { 0 };
        Block {
            tokens: t,
            hidden: h,
            attention: Attention { window, attended, ..attention },
            norm: self.norm(),
            dropout: self.dropout,
            extra_parameters: extra as u64,
            extra_flops: Flops(if predicts { 4.0 * (t * h) as f64 * h as f64 } else { 0.0 }),
            ffn: if self.is_moe(index) {
                let shared = (self.shared_experts > 0).then(|| Shared {
                    mlp: self.mlp(self.shared_experts * self.shared_inner.unwrap_or(expert.inner), expert.gated),
                    gated: self.shared_gate,
                });
                Ffn::Moe(Moe { tokens: t, width: h, experts: self.experts, expert, gate_bias, shared })
            } else {
                let gated = self.dense_gated.unwrap_or(self.expert_gated);
                Ffn::Dense(self.mlp(self.dense_inner.unwrap_or(4 * h), gated))
            },
        }
    }

    fn is_moe(&self, index: usize) -> bool {
        index >= self.layers
            || index >= self.first_dense
                && (index + 1).is_multiple_of(self.moe_every)
                && !self.dense_layers.contains(&index)
    }
}
