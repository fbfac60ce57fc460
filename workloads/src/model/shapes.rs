//! What tells an operation of one model from that of another whose times differ, in words: [`crate::measured`] is known by it.

use super::{Block, Model, Moe};

/// The shape of a block without gate and experts.
pub fn of_block(block: &Block) -> String {
    format!(
        "{} wide, {} tokens, {} parameters, {:.4e} FLOP a sample",
        block.hidden,
        block.tokens,
        block.dense_parameters(),
        block.dense_flops().0
    )
}

/// The shape of a gate.
pub fn of_gate(moe: &Moe) -> String {
    let bias = if moe.gate_bias { ", biased" } else { "" };
    format!("{} wide, {} experts{bias}", moe.width, moe.experts)
}

/// The shape of an expert.
pub fn of_expert(moe: &Moe) -> String {
    let gated = if moe.expert.gated { ", gated" } else { "" };
    format!("{} wide, {} inside{gated}, {} parameters", moe.width, moe.expert.inner, moe.expert_parameters())
}

/// The shape of a model's edges.
pub fn of_edges(model: &Model) -> String {
    let (words, first) = (model.vocabulary.unwrap_or(0), model.blocks.first());
    let [width, tokens] = first.map_or([0; 2], |block| [block.hidden, block.tokens]);
    let parameters = model.input.parameters + model.output.parameters + model.tied_parameters;
    format!("{width} wide, {tokens} tokens, {words} words, {parameters} parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_tell_what_differs_apart() {
        let model = |name| Model::named("test", name).unwrap();
        let (gpt, mixtral) = (model("gpt-micro"), model("mixtral-micro"));
        let moe = |model: &Model| *model.moe_layers().next().unwrap();
        assert_ne!(of_expert(&moe(&gpt)), of_expert(&moe(&mixtral)));
        assert_ne!(of_block(&gpt.blocks[0]), of_block(&mixtral.blocks[0]));
        assert_ne!(of_edges(&gpt), of_edges(&mixtral));
        assert_eq!(of_gate(&moe(&gpt)), "64 wide, 8 experts, biased");
    }
}
