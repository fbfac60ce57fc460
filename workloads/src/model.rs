//! Transformers with Mixture-of-Experts layers, and what they cost: parameters, arithmetic, activations.
//!
//! A model is a list of blocks (attention and a feed-forward network, dense or MoE) between an input and an output
//! edge. Counts are exact for parameters and for the arithmetic of matrix products (one multiply-add is two FLOP;
//! softmax, normalisation and activation functions are not counted, as is usual for model FLOP/s). Stored activations
//! follow Korthikanti et al. 2022 (MLSys 2023), equation 1, with the feed-forward part counted per expert entry.
//!
//! Left out: dropout masks of the embedding, and anything a framework keeps for its own bookkeeping.

use serde::Deserialize;

use crate::error::{self, ConfigError};
use crate::units::{Bytes, Flops};

/// Bytes of one activation or weight in half precision.
pub const HALF: f64 = 2.0;

/// A model to train.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name on the command line.
    pub name: String,
    /// Where its shape comes from.
    pub source: String,
    /// Attention and feed-forward, from input to output.
    pub blocks: Vec<Block>,
    /// Embedding of tokens or patches, before the first block.
    pub input: Edge,
    /// Final normalisation and classifier, after the last block.
    pub output: Edge,
    /// Parameters that input and output share, held twice when they are on different pipeline stages.
    pub tied_parameters: u64,
    /// Experts per token.
    pub top_k: usize,
    /// Words of a language model; none for a model of images.
    pub vocabulary: Option<usize>,
}

/// What stands before the first block or after the last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Edge {
    /// Parameters, without those shared with the other edge.
    pub parameters: u64,
    /// Forward arithmetic per sample.
    pub flops: Flops,
    /// Activations stored for the backward pass, per sample.
    pub activations: Bytes,
}

/// One transformer block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// Tokens per sample.
    pub tokens: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Keys that a query sees: the sequence, or a window.
    pub attended: usize,
    /// Parameters beside the four projections and two normalisations: position biases, patch merging.
    pub extra_parameters: u64,
    /// Forward arithmetic per sample of those.
    pub extra_flops: Flops,
    /// The feed-forward network.
    pub ffn: Ffn,
}

/// A block's feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ffn {
    /// Two matrices on every token.
    Dense {
        /// Width between the two.
        inner: usize,
    },
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
    /// Width between an expert's two matrices.
    pub inner: usize,
    /// Number of experts.
    pub experts: usize,
}

impl Moe {
    /// Parameters of one expert: two matrices and two biases.
    #[inline]
    pub fn expert_parameters(&self) -> u64 {
        (2 * self.width * self.inner + self.inner + self.width) as u64
    }

    /// Parameters of the gate: one linear map with bias.
    pub fn gate_parameters(&self) -> u64 {
        (self.experts * (self.width + 1)) as u64
    }

    /// Forward arithmetic of one entry (a token at one expert); the backward pass is twice that.
    pub fn entry_flops(&self) -> Flops {
        Flops((4 * self.width * self.inner) as f64)
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
        Bytes((2 * self.width + 2 * self.inner) as f64 * HALF)
    }
}

impl Block {
    /// The block's MoE layer, if it has one.
    pub fn moe(&self) -> Option<&Moe> {
        match &self.ffn {
            Ffn::Moe(moe) => Some(moe),
            Ffn::Dense { .. } => None,
        }
    }

    /// Parameters that every data-parallel rank holds: projections, normalisations, extras and a dense network.
    /// The gate and the experts are counted by [`Moe`].
    pub fn dense_parameters(&self) -> u64 {
        let h = self.hidden as u64;
        let ffn = match self.ffn {
            Ffn::Dense { inner } => 2 * h * inner as u64 + inner as u64 + h,
            Ffn::Moe(_) => 0,
        };
        4 * h * h + 8 * h + self.extra_parameters + ffn
    }

    /// Forward arithmetic per sample of everything outside gate and experts.
    pub fn dense_flops(&self) -> Flops {
        let (t, h) = (self.tokens as f64, self.hidden as f64);
        let ffn = match self.ffn {
            Ffn::Dense { inner } => 4.0 * h * inner as f64,
            Ffn::Moe(_) => 0.0,
        };
        Flops(t * (8.0 * h * h + 4.0 * self.attended as f64 * h + ffn)) + self.extra_flops
    }

    /// Stored per sample for the backward pass, outside gate and experts.
    pub fn dense_activations(&self) -> Bytes {
        let (t, h) = (self.tokens as f64, self.hidden as f64);
        let ffn = match self.ffn {
            Ffn::Dense { inner } => 3.0 * h + 4.0 * inner as f64,
            // Residual and dropout mask around the layer, the gate's scores in single precision.
            Ffn::Moe(moe) => 3.0 * h + 4.0 * moe.experts as f64,
        };
        Bytes(t * (11.0 * h + 4.0 * h + 5.0 * (self.heads * self.attended) as f64 + ffn))
    }

    /// Bytes of the block's output for one sample, in half precision: what a pipeline boundary sends.
    pub fn boundary_bytes(&self) -> Bytes {
        Bytes((self.tokens * self.hidden) as f64 * HALF)
    }
}

impl Model {
    /// One MoE layer with nothing around it: no attention, no edges.
    pub fn of_layer(moe: Moe, top_k: usize) -> Self {
        let block = Block {
            tokens: 0,
            hidden: 0,
            heads: 0,
            attended: 0,
            extra_parameters: 0,
            extra_flops: Flops::ZERO,
            ffn: Ffn::Moe(moe),
        };
        Self {
            name: "layer".to_owned(),
            source: "one MoE layer of another model".to_owned(),
            blocks: vec![block],
            input: Edge::default(),
            output: Edge::default(),
            tied_parameters: 0,
            top_k,
            vocabulary: None,
        }
    }

    /// Reads a model's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let spec: ModelSpec = error::parse(file, text)?;
        match (spec.gpt, spec.swin) {
            (Some(gpt), None) => gpt.build(file, spec.name, spec.source),
            (None, Some(swin)) => swin.build(file, spec.name, spec.source),
            _ => {
                Err(ConfigError::value(file, "gpt, swin", "none or both", "exactly one of the tables [gpt] and [swin]"))
            }
        }
    }

    /// A model that comes with moebench.
    pub fn named(context: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse(name, error::find("model", context, name, MODELS)?)
    }

    /// The names of all models that come with moebench.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MODELS.iter().map(|(name, _)| *name)
    }

    /// Indices of the blocks that hold an MoE layer, first to last. An MoE layer is known by its place in this list.
    pub fn moe_blocks(&self) -> Vec<usize> {
        (0..self.blocks.len()).filter(|&b| self.blocks[b].moe().is_some()).collect()
    }

    /// The MoE layers, first to last.
    pub fn moe_layers(&self) -> impl Iterator<Item = &Moe> + Clone {
        self.blocks.iter().filter_map(Block::moe)
    }

    /// Parameters on one rank with a single pipeline stage and `local_experts` experts per MoE layer.
    pub fn parameters_per_rank(&self, local_experts: usize) -> u64 {
        let blocks: u64 = self
            .blocks
            .iter()
            .map(|block| {
                block.dense_parameters()
                    + block
                        .moe()
                        .map_or(0, |moe| moe.gate_parameters() + local_experts as u64 * moe.expert_parameters())
            })
            .sum();
        blocks + self.input.parameters + self.output.parameters + self.tied_parameters
    }

    /// Forward and backward arithmetic per sample, active experts only, nothing recomputed: what MFU divides by.
    pub fn training_flops(&self) -> Flops {
        let blocks: Flops = self
            .blocks
            .iter()
            .map(|block| {
                let moe = block
                    .moe()
                    .map_or(Flops::ZERO, |moe| moe.gate_flops() + moe.entry_flops() * (moe.tokens * self.top_k) as f64);
                block.dense_flops() + moe
            })
            .sum();
        (blocks + self.input.flops + self.output.flops) * 3.0
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelSpec {
    name: String,
    source: String,
    gpt: Option<Gpt>,
    swin: Option<Swin>,
}

/// A GPT whose every `moe_every`-th block is MoE, Megatron's shape.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gpt {
    layers: usize,
    hidden: usize,
    heads: usize,
    seq_len: usize,
    vocabulary: usize,
    /// Inner width of an expert as a multiple of `hidden`.
    expert_ratio: usize,
    experts: usize,
    moe_every: usize,
    top_k: usize,
}

impl Gpt {
    fn build(self, file: &str, name: String, source: String) -> Result<Model, ConfigError> {
        for (field, value) in [
            ("layers", self.layers),
            ("hidden", self.hidden),
            ("heads", self.heads),
            ("seq_len", self.seq_len),
            ("vocabulary", self.vocabulary),
            ("expert_ratio", self.expert_ratio),
            ("experts", self.experts),
            ("moe_every", self.moe_every),
        ] {
            at_least_one(file, &format!("gpt.{field}"), value)?;
        }
        top_k_within(file, "gpt.top_k", self.top_k, self.experts)?;
        let (h, t) = (self.hidden, self.seq_len);
        let block = |index: usize| Block {
            tokens: t,
            hidden: h,
            heads: self.heads,
            attended: t,
            extra_parameters: 0,
            extra_flops: Flops::ZERO,
            ffn: if (index + 1).is_multiple_of(self.moe_every) {
                Ffn::Moe(Moe { tokens: t, width: h, inner: self.expert_ratio * h, experts: self.experts })
            } else {
                Ffn::Dense { inner: 4 * h }
            },
        };
        Ok(Model {
            name,
            source,
            blocks: (0..self.layers).map(block).collect(),
            input: Edge { parameters: (t * h) as u64, flops: Flops::ZERO, activations: Bytes((t * h) as f64 * HALF) },
            output: Edge {
                parameters: 2 * h as u64,
                flops: Flops((2 * t * h * self.vocabulary) as f64),
                // Normalised input in half precision; logits in half and, for the cross-entropy, in single.
                activations: Bytes((t * h) as f64 * HALF + (t * self.vocabulary) as f64 * 6.0),
            },
            tied_parameters: (self.vocabulary * h) as u64,
            top_k: self.top_k,
            vocabulary: Some(self.vocabulary),
        })
    }
}

/// A Swin transformer with MoE in chosen blocks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Swin {
    image: usize,
    patch: usize,
    window: usize,
    width: usize,
    depths: Vec<usize>,
    heads: Vec<usize>,
    classes: usize,
    /// Blocks with an MoE layer, per stage.
    moe_blocks: Vec<Vec<usize>>,
    experts: usize,
    /// Tokens joined into one before the gate.
    merged_tokens: usize,
    /// Inner width of an expert as a multiple of the joined token's width.
    expert_ratio: usize,
    top_k: usize,
}

impl Swin {
    fn build(self, file: &str, name: String, source: String) -> Result<Model, ConfigError> {
        self.check(file)?;
        let mut blocks = Vec::new();
        for (stage, &depth) in self.depths.iter().enumerate() {
            for index in 0..depth {
                blocks.push(self.block(stage, index));
            }
        }
        let side = self.image / self.patch;
        let last = self.width << (self.depths.len() - 1);
        let patch_inputs = 3 * self.patch * self.patch;
        Ok(Model {
            name,
            source,
            blocks,
            input: Edge {
                parameters: (patch_inputs * self.width + 3 * self.width) as u64,
                flops: Flops((2 * side * side * patch_inputs * self.width) as f64),
                activations: Bytes((side * side * (patch_inputs + self.width)) as f64 * HALF),
            },
            output: Edge {
                parameters: (2 * last + last * self.classes + self.classes) as u64,
                flops: Flops((2 * last * self.classes) as f64),
                activations: Bytes((last + 3 * self.classes) as f64 * HALF),
            },
            tied_parameters: 0,
            top_k: self.top_k,
            vocabulary: None,
        })
    }

    fn check(&self, file: &str) -> Result<(), ConfigError> {
        for (field, value) in [
            ("image", self.image),
            ("patch", self.patch),
            ("window", self.window),
            ("width", self.width),
            ("experts", self.experts),
            ("merged_tokens", self.merged_tokens),
            ("expert_ratio", self.expert_ratio),
            ("depths (its length)", self.depths.len()),
        ] {
            at_least_one(file, &format!("swin.{field}"), value)?;
        }
        top_k_within(file, "swin.top_k", self.top_k, self.experts)?;
        for (field, length) in [("heads", self.heads.len()), ("moe_blocks", self.moe_blocks.len())] {
            if length != self.depths.len() {
                return Err(ConfigError::value(
                    file,
                    format!("swin.{field}"),
                    format!("{length} stages"),
                    format!("one value per stage in depths: {}", self.depths.len()),
                ));
            }
        }
        Ok(())
    }

    fn block(&self, stage: usize, index: usize) -> Block {
        let side = (self.image / self.patch) >> stage;
        let (tokens, hidden) = (side * side, self.width << stage);
        let window = self.window.min(side);
        let heads = self.heads[stage];
        // Patch merging opens every stage but the first: four neighbours are normalised and mapped to half their width.
        let merge = stage > 0 && index == 0;
        let half = hidden / 2;
        let merge_parameters = if merge { 8 * half * half + 8 * half } else { 0 };
        let merge_flops = if merge { tokens * 2 * (4 * half) * (2 * half) } else { 0 };
        let ffn = if self.moe_blocks[stage].contains(&index) {
            let width = hidden * self.merged_tokens;
            Ffn::Moe(Moe {
                tokens: (tokens / self.merged_tokens).max(1),
                width,
                inner: self.expert_ratio * width,
                experts: self.experts,
            })
        } else {
            Ffn::Dense { inner: 4 * hidden }
        };
        Block {
            tokens,
            hidden,
            heads,
            attended: window * window,
            extra_parameters: (heads * (2 * window - 1) * (2 * window - 1) + merge_parameters) as u64,
            extra_flops: Flops(merge_flops as f64),
            ffn,
        }
    }
}

fn at_least_one(file: &str, field: &str, value: usize) -> Result<(), ConfigError> {
    if value == 0 {
        return Err(ConfigError::value(file, field, value, "at least 1"));
    }
    Ok(())
}

fn top_k_within(file: &str, field: &str, top_k: usize, experts: usize) -> Result<(), ConfigError> {
    if top_k == 0 || top_k > experts {
        return Err(ConfigError::value(file, field, top_k, format!("1 to {experts}, the number of experts")));
    }
    Ok(())
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../models/", $name, ".toml")))),*] };
}

/// Every model in `workloads/models/`.
const MODELS: &[(&str, &str)] = embedded![
    "gpt-l16-h2560-e16",
    "gpt-l16-h2560-e32",
    "gpt-l24-h1024-e32",
    "gpt-l8-h2048-e32",
    "gpt-l16-h1536-e64",
    "gpt-deepspeed-l16-h2560-e16",
    "gpt-deepspeed-l16-h2560-e32",
    "gpt-tiny",
    "gpt-micro",
    "swin-moe-b-e16",
    "swin-moe-b-e32",
    "swin-moe-b-tutel-e16",
    "swin-moe-b-tutel-e32",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> Model {
        Model::named("test", name).unwrap()
    }

    /// The parameter counts in the artifact's logs.
    #[test]
    fn gpt_parameters_are_exact() {
        let check = |name, local_experts, expected| {
            assert_eq!(model(name).parameters_per_rank(local_experts), expected, "{name}");
        };
        check("gpt-l16-h2560-e16", 1, 971_371_776);
        check("gpt-l8-h2048-e32", 1, 374_264_064);
        check("gpt-l16-h1536-e64", 1, 382_676_992);
    }

    /// L[4H^2 + 8H + n(2aH^2 + (a+1)H) + E(H+1)] + 50304H + 1024H + 2H for every GPT and several n.
    #[test]
    fn gpt_parameters_follow_the_formula() {
        for (name, l, h, e) in [
            ("gpt-l16-h2560-e16", 16u64, 2560u64, 16u64),
            ("gpt-l16-h2560-e32", 16, 2560, 32),
            ("gpt-l8-h2048-e32", 8, 2048, 32),
            ("gpt-l16-h1536-e64", 16, 1536, 64),
        ] {
            for n in [1, 2, 8] {
                let expected = l * (4 * h * h + 8 * h + n * (4 * h * h + 3 * h) + e * (h + 1)) + (50304 + 1024 + 2) * h;
                assert_eq!(model(name).parameters_per_rank(n as usize), expected, "{name} n={n}");
            }
        }
    }

    /// Swin-B without experts has 87,768,224 parameters (Liu et al. 2021, 224 px, window 7, 1000 classes).
    #[test]
    fn swin_without_experts_is_swin_b() {
        let text = r#"
            name = "swin-b"
            source = "test"
            [swin]
            image = 224
            patch = 4
            window = 7
            width = 128
            depths = [2, 2, 18, 2]
            heads = [4, 8, 16, 32]
            classes = 1000
            moe_blocks = [[], [], [], []]
            experts = 1
            merged_tokens = 1
            expert_ratio = 2
            top_k = 1
        "#;
        let swin = Model::parse("swin-b", text).unwrap();
        assert_eq!(swin.parameters_per_rank(0), 87_768_224);
        // 15.4 GFLOP counted as multiply-adds in the paper (table 1a): 30.8e9 here, three times for training.
        let forward = swin.training_flops().0 / 3.0;
        assert!((forward / 30.8e9 - 1.0).abs() < 0.02, "{forward:e}");
    }

    #[test]
    fn swin_moe_layers_stand_where_the_paper_has_them() {
        let swin = model("swin-moe-b-e16");
        let moe: Vec<Moe> = swin.blocks.iter().filter_map(|b| b.moe().copied()).collect();
        assert_eq!(moe.len(), 10);
        assert_eq!((moe[0].width, moe[0].inner), (2048, 4096));
        assert_eq!((moe[9].width, moe[9].inner), (4096, 8192));
    }

    /// 2 FLOP per active parameter and token forward, 6 with the backward pass, plus the attention scores.
    #[test]
    fn gpt_flops_follow_active_parameters() {
        let gpt = model("gpt-l16-h2560-e16");
        let (l, h, t) = (16.0, 2560.0, 1024.0);
        let matrices = l * (4.0 * h * h + 2.0 * 4.0 * h * h + 16.0 * h) + 50304.0 * h;
        let scores = l * 2.0 * t * h;
        let expected = 6.0 * t * (matrices + scores);
        assert!((gpt.training_flops().0 / expected - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bad_models_name_the_field() {
        let check = |text: &str, expected: &str| {
            let message = Model::parse("m.toml", text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("name = 'x'", "missing field `source`");
        check("name = 'x'\nsource = 's'", "exactly one of the tables [gpt] and [swin]");
        let gpt = "name='x'\nsource='s'\n[gpt]\nlayers=1\nhidden=8\nheads=2\nseq_len=4\nvocabulary=9\nexpert_ratio=2\nexperts=4\nmoe_every=1\n";
        check(&format!("{gpt}top_k=5"), "gpt.top_k = 5: expected 1 to 4, the number of experts");
        check(&format!("{gpt}top_k=2\ntop=3"), "unknown field `top`, expected one of");
        assert!(Model::named("--model", "gpt-5").unwrap_err().to_string().contains("known: gpt-l16-h2560-e16"));
    }
}
