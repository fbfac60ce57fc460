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
pub mod hugging_face;
mod presets;
pub mod saved;
pub mod shapes;
mod swin;

use std::ops::RangeInclusive;

use serde::Deserialize;

use self::gpt::Gpt;
use self::presets::MODELS;
use self::swin::Swin;
use crate::cluster::Constant;
use crate::error::{self, ConfigError};
use crate::fields;
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
    /// How much flatter its gates chose than a recorded trace, where they have no balance loss: shares `q` become
    /// `q^(1 - u)`, normalised. 0 where nothing is known: then a trace is taken as it is.
    pub flattening: f64,
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
            flattening: 0.0,
        }
    }

    /// Reads a model's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        let spec: ModelSpec = fields::parse(&fields::MODEL, file, text)?;
        let model = match (spec.gpt, spec.swin) {
            (Some(gpt), None) => gpt.build(file, spec.name, spec.source),
            (None, Some(swin)) => swin.build(file, spec.name, spec.source),
            _ => {
                Err(ConfigError::value(file, "gpt, swin", "none or both", "exactly one of the tables [gpt] and [swin]"))
            }
        }?;
        let flattening = spec.routing.map_or(Ok(0.0), |routing| routing.checked(file))?;
        Ok(Self { flattening, ..model })
    }

    /// A model that comes with moebench.
    pub fn named(context: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse(name, Self::text(context, name)?)
    }

    /// The TOML of a model that comes with moebench.
    pub fn text(context: &str, name: &str) -> Result<&'static str, ConfigError> {
        error::find("model", context, name, MODELS)
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

    /// Forward and backward arithmetic per sample, active experts only, nothing recomputed.
    pub fn training_flops(&self) -> Flops {
        self.training_flops_of(self.top_k)
    }

    /// The same where a gate takes `top_k` choices a token instead of the model's: what MFU divides by.
    pub fn training_flops_of(&self, top_k: usize) -> Flops {
        let blocks: Flops = self
            .blocks
            .iter()
            .map(|block| {
                let moe = block
                    .moe()
                    .map_or(Flops::ZERO, |moe| moe.gate_flops() + moe.entry_flops() * (moe.tokens * top_k) as f64);
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
    #[serde(default = "unstated")]
    source: String,
    gpt: Option<Gpt>,
    swin: Option<Swin>,
    routing: Option<RoutingSpec>,
}

fn unstated() -> String {
    "not stated".to_owned()
}

/// The names of the fields of a model's tables, by the table's path.
#[cfg(test)]
pub(crate) fn table_fields() -> [(&'static str, &'static [&'static str]); 5] {
    use crate::change::fields;
    [
        ("", fields::<ModelSpec>()),
        ("gpt", fields::<Gpt>()),
        ("gpt.router", fields::<gpt::RouterSpec>()),
        ("swin", fields::<Swin>()),
        ("routing", fields::<RoutingSpec>()),
    ]
}

/// What is known of a model's own routing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutingSpec {
    /// See [`Model::flattening`].
    flattening: Constant,
}

impl RoutingSpec {
    fn checked(&self, file: &str) -> Result<f64, ConfigError> {
        self.flattening.check(file, "routing.flattening")?;
        let value = self.flattening.value;
        if value > 1.0 {
            return Err(ConfigError::value(file, "routing.flattening.value", value, "a number from 0 to 1"));
        }
        Ok(value)
    }
}

/// An extent that has a meaning, and no product of extents that is beyond 64 bits.
fn check_extent(file: &str, field: &str, value: usize, allowed: RangeInclusive<usize>) -> Result<(), ConfigError> {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(ConfigError::value(file, field, value, format!("{} to {}", allowed.start(), allowed.end())))
}

fn top_k_within(file: &str, field: &str, top_k: usize, experts: usize) -> Result<(), ConfigError> {
    if top_k == 0 || top_k > experts {
        return Err(ConfigError::value(file, field, top_k, format!("1 to {experts}, the number of experts")));
    }
    Ok(())
}

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

    /// The fields that are absent mean what they meant before there were such fields.
    #[test]
    fn absent_fields_are_gpt_2() {
        let plain =
            "name='x'\nsource='s'\n[gpt]\nlayers=3\nhidden=8\nheads=2\nseq_len=4\nvocabulary=9\nexperts=4\ntop_k=2\n";
        let read = |more: &str| Model::parse("m.toml", &format!("{plain}{more}")).unwrap();
        let spelled = read(
            "expert_inner=16\nexpert_gated=false\ndense_gated=false\nactivation='gelu'\ndense_inner=32\nshared_experts=0\n\
             moe_every=2\nfirst_dense=0\nkv_heads=2\nhead_dim=4\nqk_norm='none'\nfused_attention=false\nbias=true\n\
             norm='layer'\nnorm_epsilon=1e-5\npositions='learned'\ntied=true\ndropout=true\nmtp_layers=0\n[gpt.router]\n\
             score='softmax'\nbias='logit'\nrenormalise=true\nscale=1.0\nauxiliary_loss=0.0\n",
        );
        assert_eq!(read("expert_ratio=2\nmoe_every=2\n"), spelled);
        assert_eq!(spelled.moe_blocks(), [1]);
        assert_eq!(read("expert_ratio=0.5\n").moe_layers().next().unwrap().expert.inner, 4);
        assert_eq!(read("expert_inner=5\nfirst_dense=1\n").moe_blocks(), [1, 2]);
        assert_eq!(read("expert_inner=5\ndense_layers=[1]\n").moe_blocks(), [0, 2]);
    }

    /// MTP of DeepSeek-V3: one block more, a projection of two vectors to one, three norms: 11.61e9 parameters.
    #[test]
    fn multi_token_prediction_is_a_block_more() {
        let text = error::find("model", "test", "deepseek-v3", MODELS).unwrap();
        let with = Model::parse("v3", &text.replace("[gpt]\n", "[gpt]\nmtp_layers = 1\n")).unwrap();
        let without = model("deepseek-v3");
        let more = with.parameters() - without.parameters();
        assert!((more as f64 / 11.61e9 - 1.0).abs() < 0.005, "{more}");
        let per_token = with.training_flops().0 / 4096.0 / 1e9;
        assert!((per_token / 260.7 - 1.0).abs() < 0.005, "{per_token}");
    }

    /// What recomputation keeps: less the more is recomputed, and for attention that stores its scores what the paper says.
    #[test]
    fn recomputation_keeps_less() {
        for name in Model::names() {
            for block in model(name).blocks {
                let kept = [Recompute::None, Recompute::Selective, Recompute::Full].map(|what| block.kept(what).0);
                assert!(kept[0] > kept[1] && kept[1] > kept[2] && kept[2] > 0.0, "{name}: {kept:?}");
                assert_eq!(block.recomputed_flops(Recompute::None), Flops::ZERO);
                assert!(block.recomputed_flops(Recompute::Selective) < block.recomputed_flops(Recompute::Full));
            }
        }
        // 5 a s of scores, two normalised inputs and GELU's result a token.
        let block = Block { ffn: Ffn::Dense(Mlp::plain(256)), ..model("gpt-micro").blocks[0] };
        let dropped = block.kept(Recompute::None) - block.kept(Recompute::Selective);
        assert_eq!(dropped.0, 32.0 * (5.0 * 4.0 * 32.0 + 2.0 * 2.0 * 64.0 + 2.0 * 256.0));
        assert_eq!(block.recomputed_flops(Recompute::Selective).0, 32.0 * 4.0 * 32.0 * 64.0);
    }

    #[test]
    fn bad_models_name_the_field() {
        let check = |text: &str, expected: &str| {
            let message = Model::parse("m.toml", text).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("source = 'x'", "missing field `name`");
        check("name = 'x'\nsource = 's'", "exactly one of the tables [gpt] and [swin]");
        let gpt = "name='x'\nsource='s'\n[gpt]\nlayers=1\nhidden=8\nheads=2\nseq_len=4\nvocabulary=9\nexpert_ratio=2\nexperts=4\nmoe_every=1\n";
        check(&format!("{gpt}top_k=5"), "gpt.top_k = 5: expected 1 to 4, the number of experts");
        check(&format!("{gpt}top_k=2\ntop=3"), "unknown field `top`, expected one of");
        let check = |more: &str, expected: &str| check(&format!("{gpt}top_k=2\n{more}"), expected);
        check("expert_inner=8", "gpt.expert_inner, gpt.expert_ratio = both: expected exactly one of the two");
        check("kv_heads=3", "gpt.kv_heads = 3: expected a divisor of 2, the number of heads");
        check("kv_heads=0", "gpt.kv_heads = 0: expected 1 to 4096");
        check("first_dense=2", "gpt.first_dense = 2: expected at most 1, the number of layers");
        check("dense_layers=[1]", "gpt.dense_layers = 1: expected layers below 1, counted from 0");
        check("windowed_layers=[0]", "gpt.windowed_layers = given: expected gpt.window beside it");
        check("rope_theta=1e4", "gpt.positions = learned: expected \"rotary\" beside rope_theta");
        check("norm_epsilon=nan", "gpt.norm_epsilon = NaN: expected a number above 0");
        check("shared_experts=18446744073709551615", "gpt.shared_experts = 18446744073709551615: expected 0 to 1024");
        check("kv_heads=1\nlatent={kv_rank=4,nope=2,rope=2,value=2}", "gpt.kv_heads = given: expected nothing of that");
        check("[gpt.router]\ngroups=3\nkept_groups=1", "gpt.router.groups = 3: expected a divisor of 4");
        check(
            "[gpt.router]\ngroups=4\nkept_groups=1",
            "gpt.router.kept_groups = 1: expected 2 to 4: room for 2 choices",
        );
        let swin = error::find("model", "test", "swin-moe-b-e16", MODELS).unwrap();
        let of_swin = |from: &str, to: &str, expected: &str| {
            assert!(swin.contains(from), "{from}");
            let message = Model::parse("m.toml", &swin.replace(from, to)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        of_swin("17], [1]]", "18], [1]]", "swin.moe_blocks[2] = 18: expected blocks below 18, counted from 0");
        of_swin(
            "merged_tokens = 4",
            "merged_tokens = 5",
            "swin.merged_tokens = 5: expected a divisor of 144, the tokens",
        );
        check("[gpt.router]\nscale=inf", "gpt.router.scale = inf: expected a number above 0");
        check("[gpt.router]\nscore='tanh'", "unknown variant `tanh`, expected `softmax` or `sigmoid`");
        assert!(Model::named("--model", "gpt-5").unwrap_err().to_string().contains("known: gpt-l16-h2560-e16"));
    }
}
