//! Attention: its projections, how many keys a query meets, and what it costs per token.

use serde::Deserialize;

use super::HALF;

/// Attention of one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// From a token to queries, keys and values.
    pub projections: Projections,
    /// Keys that a query is multiplied with, on average: the whole sequence where masked products are computed like the
    /// others, what [`seen_keys`] says where a fused kernel skips them, the window of a Swin block.
    pub attended: f64,
    /// Keys that a query may see at most, itself included; none for all before it.
    pub window: Option<usize>,
    /// Whether scores stay inside one kernel (FlashAttention, Dao et al. 2022). Otherwise they are stored.
    pub fused: bool,
    /// Biases of the projections to queries, keys and values.
    pub qkv_bias: bool,
    /// Bias of the projection back.
    pub output_bias: bool,
    /// Normalisation of queries and keys.
    pub qk_norm: QkNorm,
    /// Whether each head has a learned score that takes part in the softmax and has no value (gpt-oss).
    pub sinks: bool,
    /// Rotary positions; none where positions are learned.
    pub rotary: Option<Rotary>,
}

/// The projections of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projections {
    /// Keys and values of `kv_heads` heads, each for `heads / kv_heads` heads of queries: multi-head, grouped-query and
    /// multi-query attention.
    Grouped {
        /// Heads of keys and values.
        kv_heads: usize,
        /// Width of a head.
        head_width: usize,
    },
    /// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).
    Latent(Latent),
}

/// Widths of multi-head latent attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Width that a token is compressed to before its queries; none where queries come from the token itself.
    pub q_rank: Option<usize>,
    /// Width that a token is compressed to before keys and values.
    pub kv_rank: usize,
    /// Part of a head's query and key without a position.
    pub nope: usize,
    /// Part with a rotary position; of the keys, all heads share one.
    pub rope: usize,
    /// Width of a head's value.
    pub value: usize,
}

/// Normalisation of queries and keys, by their root mean square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum QkNorm {
    /// None.
    #[default]
    None,
    /// Each head on its own, with one weight for all (Qwen3).
    Head,
    /// All heads together (OLMoE).
    Full,
}

/// Rotary positions (Su et al. 2021). Scaling beyond the trained length (YaRN) changes no amount and is left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Base of the wavelengths.
    pub theta: f64,
    /// Part of a head's width that is turned.
    pub share: f64,
}

/// Keys that a query sees on average, of a sequence of `tokens`: itself and those before it, in a window if there is one.
pub fn seen_keys(tokens: usize, window: Option<usize>) -> f64 {
    let (t, w) = (tokens as f64, window.unwrap_or(tokens).min(tokens) as f64);
    // The first queries see fewer: 1, 2, .., w.
    w - w * (w - 1.0) / (2.0 * t.max(1.0))
}

impl Attention {
    /// Multi-head attention of GPT-2's kind: biases, no positions, scores of all `attended` keys stored.
    pub fn plain(heads: usize, hidden: usize, attended: usize) -> Self {
        Self {
            heads,
            projections: Projections::Grouped { kv_heads: heads, head_width: hidden / heads.max(1) },
            attended: attended as f64,
            window: None,
            fused: false,
            qkv_bias: true,
            output_bias: true,
            qk_norm: QkNorm::None,
            sinks: false,
            rotary: None,
        }
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        match self.projections {
            Projections::Grouped { kv_heads, .. } => kv_heads,
            Projections::Latent(_) => self.heads,
        }
    }

    /// What all heads start from, for tokens of width `hidden`: its width, the token's own or compressed, and the weights that
    /// normalise queries and keys. Ranks that have a part of the heads each sum the gradients of these.
    pub fn shared_by_heads(&self, hidden: usize) -> [usize; 2] {
        match self.projections {
            Projections::Latent(latent) => [latent.q_rank.unwrap_or(hidden) + latent.kv_rank + latent.rope, 0],
            Projections::Grouped { .. } => [hidden, self.norm_weights()],
        }
    }

    /// Widths of all heads together: queries, keys, values.
    fn widths(&self) -> [usize; 3] {
        match self.projections {
            Projections::Grouped { kv_heads, head_width } => {
                [self.heads * head_width, kv_heads * head_width, kv_heads * head_width]
            }
            Projections::Latent(latent) => {
                let key = latent.nope + latent.rope;
                [self.heads * key, self.heads * key, self.heads * latent.value]
            }
        }
    }

    /// Width of the heads' outputs together.
    pub fn output_width(&self) -> usize {
        match self.projections {
            Projections::Grouped { head_width, .. } => self.heads * head_width,
            Projections::Latent(latent) => self.heads * latent.value,
        }
    }

    /// Weights of the matrices that start from a compressed token.
    fn latent_matrices(&self) -> usize {
        match self.projections {
            Projections::Grouped { .. } => 0,
            Projections::Latent(latent) => {
                let queries = latent.q_rank.unwrap_or(0) * self.heads * (latent.nope + latent.rope);
                queries + latent.kv_rank * self.heads * (latent.nope + latent.value)
            }
        }
    }

    /// Weights of all matrices, for tokens of width `hidden`.
    fn matrices(&self, hidden: usize) -> usize {
        let [queries, keys, values] = self.widths();
        let from_token = match self.projections {
            Projections::Grouped { .. } => queries + keys + values,
            Projections::Latent(latent) => latent.q_rank.unwrap_or(queries) + latent.kv_rank + latent.rope,
        };
        hidden * (from_token + self.output_width()) + self.latent_matrices()
    }

    /// Parameters, for tokens of width `hidden`.
    pub fn parameters(&self, hidden: usize) -> u64 {
        let [queries, keys, values] = self.widths();
        let biases = if self.qkv_bias { queries + keys + values } else { 0 };
        let output_bias = if self.output_bias { hidden } else { 0 };
        let sinks = if self.sinks { self.heads } else { 0 };
        (self.matrices(hidden) + biases + output_bias + self.norm_weights() + sinks) as u64
    }

    /// Weights of the normalisations between projections.
    fn norm_weights(&self) -> usize {
        let [queries, keys, _] = self.widths();
        match (self.projections, self.qk_norm) {
            (Projections::Latent(latent), _) => latent.q_rank.unwrap_or(0) + latent.kv_rank,
            (_, QkNorm::None) => 0,
            (Projections::Grouped { head_width, .. }, QkNorm::Head) => 2 * head_width,
            (_, QkNorm::Full) => queries + keys,
        }
    }

    /// Forward arithmetic of a token, of width `hidden`.
    pub fn flops(&self, hidden: usize) -> f64 {
        2.0 * self.matrices(hidden) as f64 + self.score_flops()
    }

    /// Of that, scores and their products with the values.
    fn score_flops(&self) -> f64 {
        let [queries, ..] = self.widths();
        2.0 * self.attended * (queries + self.output_width()) as f64
    }

    /// Bytes stored for the backward pass for each token, of width `hidden`: the input, queries, keys, values, the heads'
    /// output, with its mask under dropout, and what the kernel keeps of the scores.
    pub fn stored(&self, hidden: usize, dropout: bool) -> f64 {
        let [queries, keys, values] = self.widths();
        let before = match (self.projections, self.qk_norm) {
            (Projections::Latent(latent), _) => 2 * (latent.q_rank.unwrap_or(0) + latent.kv_rank) + latent.rope,
            (_, QkNorm::None) => 0,
            (_, QkNorm::Head | QkNorm::Full) => queries + keys,
        };
        let vectors = hidden + before + queries + keys + values + self.output_width();
        let mask = if dropout { hidden } else { 0 };
        vectors as f64 * HALF + mask as f64 + self.stored_scores(dropout)
    }

    /// Of that, the scores: after the softmax, its dropout mask, and after that; or, of a fused kernel, each query's
    /// normaliser in single precision.
    fn stored_scores(&self, dropout: bool) -> f64 {
        let scores = match (self.fused, dropout) {
            (true, _) => 4.0,
            (false, true) => 5.0 * self.attended,
            (false, false) => HALF * self.attended,
        };
        self.heads as f64 * scores
    }

    /// Of what is stored, what selective recomputation gives up: the normalised input; the scores of an unfused kernel;
    /// whatever follows from a compressed token or a normalisation of queries and keys.
    pub fn recomputable(&self, hidden: usize, dropout: bool) -> f64 {
        let [queries, keys, values] = self.widths();
        let after = match (self.projections, self.qk_norm) {
            (Projections::Latent(latent), _) => {
                let of_compressed = latent.q_rank.map_or(0, |rank| rank + queries);
                of_compressed + latent.kv_rank + keys + values
            }
            (_, QkNorm::None) => 0,
            (_, QkNorm::Head | QkNorm::Full) => queries + keys,
        };
        let scores = if self.fused { 0.0 } else { self.stored_scores(dropout) };
        (hidden + after) as f64 * HALF + scores
    }

    /// Forward arithmetic of a token to get that back.
    pub fn recomputed_flops(&self) -> f64 {
        let scores = if self.fused { 0.0 } else { self.score_flops() };
        scores + 2.0 * self.latent_matrices() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queries that come from the token itself follow from no compressed token: they stay stored.
    #[test]
    fn selective_recomputation_keeps_what_it_cannot_recompute() {
        let latent = |q_rank| Latent { q_rank, kv_rank: 16, nope: 16, rope: 8, value: 16 };
        let of = |q_rank| Attention {
            projections: Projections::Latent(latent(q_rank)),
            fused: true,
            ..Attention::plain(4, 64, 32)
        };
        let queries = 4.0 * 24.0 * HALF;
        let [direct, compressed] = [of(None), of(Some(24))].map(|of| of.recomputable(64, false));
        assert_eq!(compressed - direct, queries + 24.0 * HALF);
    }

    #[test]
    fn queries_see_what_is_before_them() {
        let plainly = |tokens: usize, window: usize| {
            (0..tokens).map(|query| (query + 1).min(window)).sum::<usize>() as f64 / tokens as f64
        };
        for (tokens, window) in [(1, 1), (8, 8), (8, 3), (5, 1), (4096, 128)] {
            assert!((seen_keys(tokens, Some(window)) - plainly(tokens, window)).abs() < 1e-9, "{tokens} {window}");
        }
        assert_eq!(seen_keys(8, None), plainly(8, 8));
        assert_eq!(seen_keys(8, Some(99)), plainly(8, 8));
    }

    /// Korthikanti et al. 2022, equation 1: 11 h + 5 a s bytes a token, of which 5 a s are the attention core's.
    #[test]
    fn stored_bytes_are_the_papers() {
        let (h, a, s) = (64, 4, 32);
        let plain = Attention::plain(a, h, s);
        assert_eq!(plain.stored(h, true), (11 * h + 5 * a * s) as f64);
        let fused = Attention { fused: true, ..plain };
        assert_eq!(fused.stored(h, true), (11 * h + 4 * a) as f64);
        assert_eq!(plain.recomputable(h, true), (2 * h + 5 * a * s) as f64);
    }
}
