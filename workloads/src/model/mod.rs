//! Transformers with Mixture-of-Experts layers, and what they cost: parameters, arithmetic, activations.
//!
//! A model is a list of blocks (attention and a feed-forward network, dense or MoE) between an input and an output
//! edge. Counts are exact for parameters and for the arithmetic of matrix products (one multiply-add is two FLOP;
//! softmax, normalisation and activation functions are not counted, as is usual for model FLOP/s). Stored activations
//! follow Korthikanti et al. 2022 (MLSys 2023), equation 1, with the feed-forward part counted per expert entry.
//!
//! Left out: dropout masks of the embedding, and anything a framework keeps for its own bookkeeping.

pub mod attention;
pub mod block;
pub mod feed_forward;
mod gpt;
mod swin;

use serde::Deserialize;

use self::gpt::Gpt;
use self::swin::Swin;
use crate::error::{self, ConfigError};
use crate::gate::Router;
use crate::units::{Bytes, Flops};

pub use self::attention::Attention;
pub use self::block::{Block, Norm, NormKind, Recompute};
pub use self::feed_forward::{Activation, Ffn, Mlp, Moe, Shared};

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
    /// How its gates score and weigh experts.
    pub router: Router,
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

impl Model {
    /// One MoE layer with nothing around it: no attention, no edges.
    pub fn of_layer(moe: Moe, top_k: usize) -> Self {
        let block = Block {
            tokens: 0,
            hidden: 0,
            attention: Attention::plain(0, 0, 0),
            norm: Norm::default(),
            dropout: false,
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
            router: Router::default(),
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
        self.parameters_with(|_| local_experts as u64)
    }

    fn parameters_with(&self, experts: impl Fn(&Moe) -> u64) -> u64 {
        let of_moe = |moe: &Moe| moe.gate_parameters() + experts(moe) * moe.expert_parameters();
        let of_block = |block: &Block| block.dense_parameters() + block.moe().map_or(0, of_moe);
        let blocks: u64 = self.blocks.iter().map(of_block).sum();
        blocks + self.input.parameters + self.output.parameters + self.tied_parameters
    }

    /// All parameters.
    pub fn parameters(&self) -> u64 {
        self.parameters_with(|moe| moe.experts as u64)
    }

    /// Parameters that a token meets: `top_k` experts of each layer, all of everything else.
    pub fn active_parameters(&self) -> u64 {
        self.parameters_with(|_| self.top_k as u64)
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

/// An extent that has a meaning, and no product of extents that is beyond 64 bits.
fn check_extent(file: &str, field: &str, value: usize, largest: usize) -> Result<(), ConfigError> {
    if (1..=largest).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(file, field, value, format!("1 to {largest}")))
}

fn top_k_within(file: &str, field: &str, top_k: usize, experts: usize) -> Result<(), ConfigError> {
    if top_k == 0 || top_k > experts {
        return Err(ConfigError::value(file, field, top_k, format!("1 to {experts}, the number of experts")));
    }
    Ok(())
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../models/", $name, ".toml")))),*] };
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
        assert_eq!((moe[0].width, moe[0].expert.inner), (2048, 4096));
        assert_eq!((moe[9].width, moe[9].expert.inner), (4096, 8192));
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
