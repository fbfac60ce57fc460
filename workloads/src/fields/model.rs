//! Fields of a model.

use super::Kind::{Constant, Flag, List, Number, Table as Inner, Text, Whole, Words};
use super::{Table, may, must};

/// A model's file.
pub static MODEL: Table = Table {
    about: "A model: one of the tables `[gpt]` and `[swin]`. `moebench import-model` makes one of a Hugging Face config.json",
    fields: &[
        must("name", Text, "\"mine\"", "Its name in records, figures and ids"),
        may("source", Text, "\"where its shape comes from\"", "Where its shape comes from"),
        may("gpt", Inner(&GPT), "{}", "A decoder-only transformer"),
        may("swin", Inner(&SWIN), "{}", "A Swin transformer"),
        may("routing", Inner(&ROUTING), "{}", "What is known of the model's own routing"),
    ],
};

/// The table `[gpt]`.
pub(super) static GPT: Table = Table {
    about: "A decoder-only transformer; with the fields that must be there Megatron's GPT, every other field changes one thing of it",
    fields: &[
        must("layers", Whole, "4", "Transformer blocks"),
        must("hidden", Whole, "512", "Width of a token"),
        must("heads", Whole, "8", "Attention heads"),
        must("seq_len", Whole, "256", "Tokens of a sample"),
        must("vocabulary", Whole, "8192", "Words of the vocabulary"),
        must("experts", Whole, "8", "Experts of an MoE layer"),
        must("top_k", Whole, "2", "Experts per token"),
        may("expert_inner", Whole, "1024", "Inner width of an expert; this or `expert_ratio`"),
        may("expert_ratio", Number, "2", "The same as a multiple of `hidden`"),
        may(
            "expert_gated",
            Flag,
            "true",
            "Whether experts have a third matrix that gates (SwiGLU, GeGLU); false when absent",
        ),
        may("dense_gated", Flag, "true", "The same of dense networks; as experts when absent"),
        may(
            "activation",
            Words(&["gelu", "silu", "clamped-silu"]),
            "\"silu\"",
            "Activation function; `gelu` when absent",
        ),
        may("dense_inner", Whole, "2048", "Inner width of dense networks; 4 times `hidden` when absent"),
        may("shared_experts", Whole, "1", "Experts that every token passes; 0 when absent"),
        may("shared_inner", Whole, "1024", "Inner width of a shared expert; that of the others when absent"),
        may(
            "shared_gate",
            Flag,
            "true",
            "Whether a learned number multiplies the shared experts' output; false when absent",
        ),
        may("moe_every", Whole, "1", "Every how manieth layer is MoE, counted from the first; 1 when absent"),
        may("first_dense", Whole, "1", "Layers at the start that are dense in any case; 0 when absent"),
        may("dense_layers", List(&Whole), "[0]", "Others that are, counted from 0"),
        may("kv_heads", Whole, "4", "Heads of keys and values; as many as `heads` when absent"),
        may("head_dim", Whole, "64", "Width of a head; `hidden / heads` when absent"),
        may(
            "latent",
            Inner(&LATENT),
            "{ kv_rank = 128, nope = 64, rope = 32, value = 64 }",
            "Multi-head latent attention instead",
        ),
        may(
            "qk_norm",
            Words(&["none", "head", "full"]),
            "\"head\"",
            "Normalisation of queries and keys; `none` when absent",
        ),
        may("sinks", Flag, "true", "Whether heads have a learned attention sink; false when absent"),
        may("window", Whole, "128", "Keys that a query sees at most; all when absent"),
        may("windowed_layers", List(&Whole), "[0, 2]", "The layers where that is so, counted from 0; all when absent"),
        may(
            "fused_attention",
            Flag,
            "true",
            "Whether attention is one kernel that stores no scores and skips what is masked; false when absent",
        ),
        may("bias", Flag, "false", "Biases of all linear maps but the head; true when absent"),
        may("qkv_bias", Flag, "false", "Of queries, keys and values; as `bias` when absent"),
        may("output_bias", Flag, "false", "Of attention's output; as `bias` when absent"),
        may("mlp_bias", Flag, "false", "Of feed-forward networks; as `bias` when absent"),
        may("norm", Words(&["layer", "layer-no-bias", "rms"]), "\"rms\"", "Normalisation; `layer` when absent"),
        may("norm_epsilon", Number, "1e-5", "Its epsilon; 1e-5 when absent"),
        may("positions", Words(&["learned", "rotary"]), "\"rotary\"", "Where positions enter; `learned` when absent"),
        may("rope_theta", Number, "1e4", "Base of rotary positions; 1e4 when absent"),
        may("rope_share", Number, "1.0", "The part of a head that they turn; 1 when absent"),
        may("tied", Flag, "false", "Whether the head's weights are the embedding's; true when absent"),
        may("dropout", Flag, "false", "Whether there is dropout; true when absent"),
        may(
            "mtp_layers",
            Whole,
            "1",
            "Further blocks that each predict one token more (multi-token prediction); 0 when absent",
        ),
        may("router", Inner(&ROUTER), "{ score = \"sigmoid\" }", "How the gate scores and weighs experts"),
    ],
};

pub(super) static LATENT: Table = Table {
    about: "Widths of multi-head latent attention",
    fields: &[
        may(
            "q_rank",
            Whole,
            "192",
            "Width that a token is compressed to before its queries; not compressed when absent",
        ),
        must("kv_rank", Whole, "128", "Width that a token is compressed to before keys and values"),
        must("nope", Whole, "64", "Part of a head's query and key without a position"),
        must("rope", Whole, "32", "Part with a rotary position"),
        must("value", Whole, "64", "Width of a head's value"),
    ],
};

pub(super) static ROUTER: Table = Table {
    about: "How the gate scores and weighs experts",
    fields: &[
        may("score", Words(&["softmax", "sigmoid"]), "\"sigmoid\"", "From logits to scores; `softmax` when absent"),
        may(
            "bias",
            Words(&["none", "logit", "selection"]),
            "\"selection\"",
            "A number per expert: none, added to the logit, or moved against the load; what `gpt.bias` says when absent",
        ),
        may(
            "renormalise",
            Flag,
            "true",
            "Whether the weights of a token's choices are divided by their sum; true when absent",
        ),
        may("groups", Whole, "4", "Equal groups of experts, of which a token keeps some; none when absent"),
        may("kept_groups", Whole, "2", "Of these, those that a token chooses from"),
        may("group_best", Whole, "2", "Scores of a group that are summed; 2 when absent"),
        may("scale", Number, "1.0", "Factor of the weights; 1 when absent"),
        may("auxiliary_loss", Number, "0.01", "Factor of the balance loss in the whole loss; 0 when absent"),
    ],
};

/// The table `[swin]`.
pub(super) static SWIN: Table = Table {
    about: "A Swin transformer with MoE in chosen blocks",
    fields: &[
        must("image", Whole, "224", "Side of an image, pixels"),
        must("patch", Whole, "4", "Side of a patch, pixels"),
        must("window", Whole, "7", "Side of an attention window, tokens"),
        must("width", Whole, "128", "Width of a token of the first stage"),
        must("depths", List(&Whole), "[2, 2, 18, 2]", "Blocks of each stage"),
        must("heads", List(&Whole), "[4, 8, 16, 32]", "Attention heads of each stage"),
        must("classes", Whole, "1000", "Classes of the classifier"),
        must("moe_blocks", List(&List(&Whole)), "[[], [], [1, 3], [1]]", "Blocks with an MoE layer, per stage"),
        must("experts", Whole, "16", "Experts of an MoE layer"),
        must("merged_tokens", Whole, "1", "Tokens joined into one before the gate"),
        must("expert_ratio", Whole, "4", "Inner width of an expert as a multiple of the joined token's width"),
        must("top_k", Whole, "2", "Experts per token"),
    ],
};

pub(super) static ROUTING: Table = Table {
    about: "What is known of a model's own routing",
    fields: &[must(
        "flattening",
        Constant("1"),
        "{ value = 0.1, source = \"where it comes from\" }",
        "How much flatter its gates chose than a recorded trace: shares q become q^(1 - u), 0 to 1",
    )],
};
