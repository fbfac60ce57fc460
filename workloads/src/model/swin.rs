//! The table `[swin]`: a Swin transformer with MoE in chosen blocks.

use serde::Deserialize;

use super::attention::Attention;
use super::block::{Block, Norm};
use super::feed_forward::{Ffn, Mlp, Moe};
use super::{Edge, HALF, Model, check_extent, top_k_within};
use crate::error::ConfigError;
use crate::gate::Router;
use crate::units::{Bytes, Flops};

/// The table's fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Swin {
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
    pub(super) fn build(self, file: &str, name: String, source: String) -> Result<Model, ConfigError> {
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
            router: Router::default(),
            flattening: 0.0,
        })
    }

    fn check(&self, file: &str) -> Result<(), ConfigError> {
        for (field, value, allowed) in [
            ("image", self.image, 1..=1 << 14),
            ("patch", self.patch, 1..=1 << 10),
            ("window", self.window, 1..=1 << 10),
            ("width", self.width, 1..=1 << 12),
            ("classes", self.classes, 1..=1 << 24),
            ("experts", self.experts, 1..=1 << 14),
            ("merged_tokens", self.merged_tokens, 1..=1 << 6),
            ("expert_ratio", self.expert_ratio, 1..=1 << 6),
            ("depths (its length)", self.depths.len(), 1..=1 << 3),
        ] {
            check_extent(file, &format!("swin.{field}"), value, allowed)?;
        }
        for (stage, &depth) in self.depths.iter().enumerate() {
            check_extent(file, &format!("swin.depths[{stage}]"), depth, 1..=1 << 10)?;
        }
        let widest = self.width << (self.depths.len() - 1);
        for (field, value) in [
            ("width (last stage, merged)", widest * self.merged_tokens),
            ("width (an expert's)", widest * self.expert_ratio),
        ] {
            check_extent(file, &format!("swin.{field}"), value, 1..=1 << 18)?;
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
        for (stage, blocks) in self.moe_blocks.iter().enumerate() {
            self.check_moe(file, stage, blocks)?;
        }
        for (stage, &heads) in self.heads.iter().enumerate() {
            let hidden = self.width << stage;
            if heads == 0 || !hidden.is_multiple_of(heads) {
                let expected = format!("a divisor of {hidden}, the stage's width");
                return Err(ConfigError::value(file, format!("swin.heads[{stage}]"), heads, expected));
            }
        }
        if (self.image / self.patch) >> (self.depths.len() - 1) == 0 {
            let expected = "at least one patch a side in the last stage";
            return Err(ConfigError::value(file, "swin.image", self.image, expected));
        }
        Ok(())
    }

    /// Whether a stage's MoE blocks are blocks of it, and joined tokens take all of its tokens.
    fn check_moe(&self, file: &str, stage: usize, blocks: &[usize]) -> Result<(), ConfigError> {
        let depth = self.depths[stage];
        if let Some(block) = blocks.iter().find(|&&block| block >= depth) {
            let expected = format!("blocks below {depth}, counted from 0");
            return Err(ConfigError::value(file, format!("swin.moe_blocks[{stage}]"), block, expected));
        }
        let side = (self.image / self.patch) >> stage;
        let (tokens, merged) = (side * side, self.merged_tokens);
        if !blocks.is_empty() && !tokens.is_multiple_of(merged) {
            let expected = format!("a divisor of {tokens}, the tokens of stage {stage}, which has MoE blocks");
            return Err(ConfigError::value(file, "swin.merged_tokens", merged, expected));
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
            let tokens = tokens / self.merged_tokens;
            Ffn::Moe(Moe::plain(tokens, width, self.expert_ratio * width, self.experts))
        } else {
            Ffn::Dense(Mlp::plain(4 * hidden))
        };
        Block {
            tokens,
            hidden,
            attention: Attention::plain(heads, hidden, window * window),
            norm: Norm::default(),
            dropout: true,
            extra_parameters: (heads * (2 * window - 1) * (2 * window - 1) + merge_parameters) as u64,
            extra_flops: Flops(merge_flops as f64),
            ffn,
        }
    }
}
