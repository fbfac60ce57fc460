//! Models that people train: from a config or a TOML to a simulated run, and what the trainer says to them.

use crate::support::{Folder, cluster_toml, small_trace};

/// A checkpoint in miniature, with keys of Mixtral's family.
const CONFIG: &str = r#"{"model_type": "mixtral", "_name_or_path": "someone/Mini-8x1M", "num_hidden_layers": 2, "hidden_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 112, "num_local_experts": 8,
    "num_experts_per_tok": 2, "vocab_size": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
    "max_position_embeddings": 32, "router_aux_loss_coef": 0.02}"#;

#[test]
fn a_config_becomes_a_model_that_runs() {
    let folder = Folder::new();
    folder.write("config.json", CONFIG);
    let printed = folder.succeed("import-model config.json");
    assert!(printed.starts_with("name = \"mini-8x1m\""), "{printed}");
    let said = folder.succeed("import-model config.json --out m.toml --name mini --sequence-length 16");
    let again = "import-model config.json --out m.toml --name other --sequence-length 16";
    folder.refuse(again, &["m.toml: is there already: --overwrite"]);
    assert!(said.contains("m.toml: mini: 0.00e9 parameters") && said.contains("per token of 16"), "{said}");
    folder.write("c.toml", &cluster_toml(8, &[]));
    small_trace(&folder);
    let shown = folder
        .succeed("plan --model ./m.toml --cluster ./c.toml --gpus 8 --global-batch-size 16 --trace trace.parquet");
    assert!(shown.contains("ep8"), "{shown}");
}

#[test]
fn a_config_that_is_none_is_refused_by_its_key() {
    let folder = Folder::new();
    folder.write("llama.json", &CONFIG.replace("\"mixtral\"", "\"llama\""));
    folder.refuse("import-model llama.json", &["llama.json: model_type = llama: expected one of mixtral, deepseek_v2"]);
    folder.write("short.json", &CONFIG.replace("\"vocab_size\": 128,", ""));
    folder.refuse("import-model short.json", &["short.json: vocab_size = missing"]);
    folder.write("many.json", &CONFIG.replace("\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 9"));
    folder.refuse("import-model many.json", &["many.json: num_experts_per_tok = 9: expected 1 to 8"]);
    folder.refuse("import-model none.json", &["none.json: cannot be read"]);
    folder.write("config.json", CONFIG);
    folder.refuse("import-model config.json --sequence-length 0", &["--sequence-length 0: expected 1 to"]);
}

/// Experts of any width, gated experts, grouped heads, a dense start, shared experts, fused attention: as a user writes them.
#[test]
fn a_field_of_a_modern_model_is_enough() {
    let folder = Folder::new();
    folder.write("c.toml", &cluster_toml(8, &[]));
    small_trace(&folder);
    let gpt = "name = 'm'\nsource = 'a test'\n[gpt]\nlayers = 4\nhidden = 64\nheads = 8\nseq_len = 32\nvocabulary = 128\n\
               experts = 8\nmoe_every = 1\ntop_k = 2\n";
    for fields in [
        "expert_ratio = 3.5",
        "expert_ratio = 0.375",
        "expert_inner = 56\nexpert_gated = true\nkv_heads = 2",
        "expert_inner = 56\nfirst_dense = 2\ndense_inner = 144\nshared_experts = 1",
        "expert_ratio = 1\nfused_attention = true",
    ] {
        folder.write("m.toml", &format!("{gpt}{fields}"));
        let case = "--model ./m.toml --cluster ./c.toml --gpus 8 --global-batch-size 8 --trace trace.parquet";
        let shown = folder.succeed(&format!("plan {case} --system expert-only"));
        assert!(shown.contains("ep8"), "{fields}\n{shown}");
    }
}

#[cfg(feature = "train")]
#[test]
fn the_trainer_refuses_by_field_what_it_has_not_learned() {
    let folder = Folder::new();
    let small = "name = 'm'\nsource = 'a test'\n[gpt]\nlayers = 2\nhidden = 64\nheads = 4\nseq_len = 32\nvocabulary = 128\n\
                 experts = 8\nexpert_inner = 64\ntop_k = 2\n";
    for (field, named) in [("sinks = true", "gpt.sinks"), ("mtp_layers = 1", "gpt.mtp_layers")] {
        folder.write("m.toml", &format!("{small}{field}"));
        folder.refuse(
            "train --model ./m.toml --gpus 2 --global-batch-size 4 --micro-batch-size 1 --iterations 1",
            &[&format!("model m: {named}")],
        );
    }
}
