//! A Hugging Face `config.json` as a model's TOML.
//!
//! Every family names the same things differently, leaves out what its code takes for granted, and states what its code never
//! reads; [`FAMILIES`] and the functions below it say which. What a value would be by a class's default is never assumed where
//! checkpoints differ from it. Keys of transformers 4 and 5 are read alike. What has no amount is left out, and the TOML says so:
//! scaling of rotary positions, quantisation, clipping, layers that only predict further tokens.

use std::fmt::Write;

use serde_json::{Map, Value};

use super::Model;
use crate::error::{ConfigError, MOST_EXTENT};

/// Families by `model_type`, and how each states its experts.
const FAMILIES: &[(&str, Family)] = &[
    ("mixtral", Family::Mixtral),
    ("deepseek_v2", Family::DeepSeekV2),
    ("deepseek_v3", Family::DeepSeekV3),
    ("kimi_k2", Family::DeepSeekV3),
    ("qwen3_moe", Family::Qwen3),
    ("qwen2_moe", Family::Qwen2),
    ("gpt_oss", Family::GptOss),
    ("olmoe", Family::Olmoe),
    ("dbrx", Family::Dbrx),
    ("glm4_moe", Family::Glm4),
];

/// Whose code reads the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Mixtral,
    DeepSeekV2,
    DeepSeekV3,
    Qwen3,
    Qwen2,
    GptOss,
    Olmoe,
    Dbrx,
    Glm4,
}

/// What the file does not say.
#[derive(Clone, Debug, Default)]
pub struct ImportedAs {
    /// The model's name; that of the checkpoint, or its family's, when absent.
    pub name: Option<String>,
    /// Tokens of a sample; 4096, or the longest sequence if that is shorter, when absent.
    pub seq_len: Option<usize>,
}

/// The model that `json` describes, and its TOML; errors name the keys of `json`.
///
/// # Errors
/// As for [`import`], or values that no model has.
pub fn model(file: &str, json: &str, how: &ImportedAs) -> Result<(Model, String), ConfigError> {
    let toml = import(file, json, how)?;
    let model = Model::parse(file, &toml).map_err(|error| by_key(json, error))?;
    Ok((model, toml))
}

/// Fields of the TOML, and the keys that they are read from.
const KEYS: [(&str, &[&str]); 24] = [
    ("gpt.layers", &["num_hidden_layers", "n_layers"]),
    ("gpt.hidden", &["hidden_size", "d_model"]),
    ("gpt.heads", &["num_attention_heads", "n_heads"]),
    ("gpt.vocabulary", &["vocab_size"]),
    ("gpt.norm_epsilon", &["rms_norm_eps"]),
    ("gpt.rope_theta", &["rope_theta", "rope_parameters.rope_theta", "attn_config.rope_theta"]),
    ("gpt.rope_share", &["partial_rotary_factor", "rope_parameters.partial_rotary_factor"]),
    ("gpt.kv_heads", &["num_key_value_heads", "attn_config.kv_n_heads"]),
    ("gpt.head_dim", &["head_dim"]),
    ("gpt.windowed_layers", &["layer_types"]),
    ("gpt.window", &["sliding_window"]),
    ("gpt.experts", &["n_routed_experts", "num_experts", "num_local_experts", "ffn_config.moe_num_experts"]),
    ("gpt.top_k", &["num_experts_per_tok", "experts_per_token", "ffn_config.moe_top_k"]),
    ("gpt.expert_inner", &["moe_intermediate_size", "intermediate_size", "ffn_config.ffn_hidden_size"]),
    ("gpt.dense_inner", &["intermediate_size"]),
    ("gpt.shared_experts", &["n_shared_experts"]),
    ("gpt.shared_inner", &["shared_expert_intermediate_size"]),
    ("gpt.latent.q_rank", &["q_lora_rank"]),
    ("gpt.latent.kv_rank", &["kv_lora_rank"]),
    ("gpt.latent.value", &["v_head_dim"]),
    ("gpt.router.groups", &["n_group"]),
    ("gpt.router.kept_groups", &["topk_group"]),
    ("gpt.router.scale", &["routed_scaling_factor"]),
    ("gpt.router.auxiliary_loss", &["router_aux_loss_coef", "aux_loss_alpha", "ffn_config.moe_loss_weight"]),
];

/// An error about a field of the TOML as one about the key that it was read from.
fn by_key(json: &str, error: ConfigError) -> ConfigError {
    let ConfigError::Value { file, field, value, expected } = error else { return error };
    let values: Value = serde_json::from_str(json.trim_start_matches('\u{feff}')).unwrap_or_default();
    let found = |keys: &[&'static str]| {
        keys.iter().find_map(|&key| Some((key, values.pointer(&format!("/{}", key.replace('.', "/")))?)))
    };
    let read = KEYS.iter().find(|(name, _)| *name == field).and_then(|(_, keys)| found(keys));
    let (field, value) = read.map_or((field, value), |(key, value)| (key.to_owned(), value.to_string()));
    let key = |keys: &[&'static str]| found(keys).map_or(keys[0], |(key, _)| key);
    let expected = KEYS.iter().fold(expected, |text, (name, keys)| text.replace(name, key(keys)));
    ConfigError::Value { file, field, value, expected }
}

/// The TOML of the model that `json` describes; `file` names it in errors.
///
/// # Errors
/// Not JSON, a family that is not known, or a key that is missing or has a value that cannot be.
pub fn import(file: &str, json: &str, how: &ImportedAs) -> Result<String, ConfigError> {
    let values: Value = serde_json::from_str(json.trim_start_matches('\u{feff}'))
        .map_err(|error| ConfigError::value(file, "JSON", error, "a Hugging Face config.json"))?;
    let Value::Object(values) = &values else {
        return Err(ConfigError::value(file, "JSON", "no object", "a Hugging Face config.json"));
    };
    let config = Config { file, path: String::new(), values: Some(values) };
    let kind = config.word("model_type")?;
    let known = || FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let Some(&(_, family)) = FAMILIES.iter().find(|(name, _)| Some(*name) == kind) else {
        return Err(ConfigError::value(file, "model_type", kind.unwrap_or("missing"), format!("one of {}", known())));
    };
    let mut toml = Toml::default();
    shape(&config, family, how, &mut toml)?;
    attention(&config, family, &mut toml)?;
    feed_forward(&config, family, &mut toml)?;
    latent(&config, family, &mut toml)?;
    router(&config, family, &mut toml)?;
    let checkpoint =
        config.word("_name_or_path")?.and_then(|path| path.rsplit('/').next()).filter(|name| !name.is_empty());
    let name = how.name.clone().unwrap_or_else(|| checkpoint.or(kind).unwrap_or_default().to_lowercase());
    let left_out = left_out(&config)?;
    Ok(format!(
        "name = {}\nsource = \"config.json of {}\"\n{left_out}\n[gpt]\n{}",
        quoted(&name),
        kind.unwrap_or_default(),
        toml.0
    ))
}

/// A text as TOML writes it.
fn quoted(text: &str) -> String {
    let character = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\u{:04X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(character).collect::<String>())
}

/// Lines of a TOML table.
#[derive(Default)]
struct Toml(String);

impl Toml {
    fn put(&mut self, field: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{field} = {value}");
    }

    fn text(&mut self, field: &str, value: &str) {
        self.put(field, quoted(value));
    }

    fn number(&mut self, field: &str, value: f64) {
        self.put(field, format!("{value:?}"));
    }

    fn table(&mut self, name: &str) {
        let _ = writeln!(self.0, "\n[{name}]");
    }
}

/// An object of the file.
struct Config<'a> {
    file: &'a str,
    /// Of the object in the file, with a dot behind it.
    path: String,
    /// None where it is absent, which is as good as empty.
    values: Option<&'a Map<String, Value>>,
}

impl<'a> Config<'a> {
    /// The first of `keys` that is there; null is as good as absent.
    fn get<'k>(&self, keys: &[&'k str]) -> Option<(&'k str, &'a Value)> {
        keys.iter().find_map(|&key| self.values?.get(key).filter(|value| !value.is_null()).map(|value| (key, value)))
    }

    fn wrong(&self, key: &str, value: impl ToString, expected: impl Into<String>) -> ConfigError {
        ConfigError::value(self.file, format!("{}{key}", self.path), value, expected)
    }

    fn missing(&self, keys: &[&str]) -> ConfigError {
        self.wrong(&keys.join(&format!(" or {}", self.path)), "missing", "a value, which no default replaces")
    }

    /// A whole number from `least`.
    fn count(&self, keys: &[&str], least: u64) -> Result<Option<usize>, ConfigError> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) if count as u64 >= least && count <= MOST_EXTENT => Ok(Some(count)),
            _ => Err(self.wrong(key, value, format!("a whole number from {least} to {MOST_EXTENT}"))),
        }
    }

    fn required(&self, keys: &[&str]) -> Result<usize, ConfigError> {
        self.count(keys, 1)?.ok_or_else(|| self.missing(keys))
    }

    fn number(&self, keys: &[&str]) -> Result<Option<f64>, ConfigError> {
        let Some((key, value)) = self.get(keys) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(key, value, "a number"))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some((key, value)) = self.get(&[key]) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    fn word(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some((key, value)) = self.get(&[key]) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, value, "a word"))
    }

    fn list(&self, key: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        let Some((key, value)) = self.get(&[key]) else { return Ok(None) };
        value.as_array().map(|list| Some(list.as_slice())).ok_or_else(|| self.wrong(key, value, "a list"))
    }

    /// An object inside.
    fn object(&self, key: &str) -> Result<Config<'a>, ConfigError> {
        let inside =
            |(key, value): (&str, &'a Value)| value.as_object().ok_or_else(|| self.wrong(key, value, "an object"));
        let values = self.get(&[key]).map(inside).transpose()?;
        Ok(Config { file: self.file, path: format!("{}{key}.", self.path), values })
    }

    fn layers(&self) -> Result<usize, ConfigError> {
        self.required(&["num_hidden_layers", "n_layers"])
    }
}

fn shape(config: &Config, family: Family, how: &ImportedAs, toml: &mut Toml) -> Result<(), ConfigError> {
    let longest = config.count(&["max_position_embeddings", "max_seq_len"], 1)?;
    toml.put("layers", config.layers()?);
    toml.put("hidden", config.required(&["hidden_size", "d_model"])?);
    toml.put("heads", config.required(&["num_attention_heads", "n_heads"])?);
    toml.put("seq_len", how.seq_len.unwrap_or(longest.unwrap_or(4096).min(4096)));
    toml.put("vocabulary", config.required(&["vocab_size"])?);
    toml.put("dropout", false);
    // DBRX repeats the word inside ffn_config, where nothing reads it.
    toml.put("tied", config.flag("tie_word_embeddings")?.unwrap_or(false));
    toml.text("norm", if family == Family::Dbrx { "layer-no-bias" } else { "rms" });
    let epsilon = match family {
        Family::Dbrx => 1e-5,
        _ => config.number(&["rms_norm_eps"])?.ok_or_else(|| config.missing(&["rms_norm_eps"]))?,
    };
    toml.number("norm_epsilon", epsilon);
    positions(config, toml)
}

/// transformers 5 has `rope_parameters`; DBRX an `attn_config`.
fn positions(config: &Config, toml: &mut Toml) -> Result<(), ConfigError> {
    let (inside, of_attention) = (config.object("rope_parameters")?, config.object("attn_config")?);
    let all = [config, &inside, &of_attention];
    let first = |key: &str| {
        all.iter().map(|config| config.number(&[key])).find(|found| !matches!(found, Ok(None))).unwrap_or(Ok(None))
    };
    toml.text("positions", "rotary");
    toml.number("rope_theta", first("rope_theta")?.ok_or_else(|| config.missing(&["rope_theta"]))?);
    if let Some(share) = first("partial_rotary_factor")? {
        toml.number("rope_share", share);
    }
    Ok(())
}

fn attention(config: &Config, family: Family, toml: &mut Toml) -> Result<(), ConfigError> {
    toml.put("fused_attention", true);
    let biased = config.flag("attention_bias")?.unwrap_or(false);
    let (qkv, output) = match family {
        Family::Mixtral | Family::Dbrx => (false, false),
        // The code has biases of queries, keys and values; files of later versions can say otherwise.
        Family::Qwen2 => (config.flag("qkv_bias")?.unwrap_or(true), false),
        Family::Glm4 => (biased, false),
        Family::DeepSeekV2 | Family::DeepSeekV3 if biased => {
            return Err(config.wrong("attention_bias", true, "false beside latent attention"));
        }
        _ => (biased, biased),
    };
    toml.put("bias", family == Family::GptOss);
    toml.put("qkv_bias", qkv);
    toml.put("output_bias", output);
    windows(config, family, toml)?;
    if matches!(family, Family::DeepSeekV2 | Family::DeepSeekV3) {
        return Ok(());
    }
    let of_attention = config.object("attn_config")?;
    let kv_heads = match of_attention.count(&["kv_n_heads"], 1)? {
        None => config.count(&["num_key_value_heads"], 1)?,
        found => found,
    };
    if let Some(kv_heads) = kv_heads {
        toml.put("kv_heads", kv_heads);
    }
    match config.count(&["head_dim"], 1)? {
        Some(width) => toml.put("head_dim", width),
        // Their code has a width of its own, whatever the model's is.
        None if matches!(family, Family::GptOss | Family::Qwen3 | Family::Glm4) => {
            return Err(config.missing(&["head_dim"]));
        }
        None => {}
    }
    match family {
        Family::Qwen3 => toml.text("qk_norm", "head"),
        Family::Glm4 if config.flag("use_qk_norm")?.unwrap_or(false) => toml.text("qk_norm", "head"),
        Family::Olmoe => toml.text("qk_norm", "full"),
        Family::GptOss => toml.put("sinks", true),
        _ => {}
    }
    Ok(())
}

/// A window holds in the layers that `layer_types` calls `sliding_attention`; in files without it, in those that the family's code
/// says.
fn windows(config: &Config, family: Family, toml: &mut Toml) -> Result<(), ConfigError> {
    let used = config.flag("use_sliding_window")?;
    let Some(window) = config.count(&["sliding_window"], 1)?.filter(|_| used != Some(false)) else { return Ok(()) };
    let layers = config.layers()?;
    let windowed: Vec<usize> = match (config.list("layer_types")?, family) {
        (Some(types), _) => of_layers(config, "layer_types", types, ["sliding_attention", "full_attention"])?,
        (None, Family::Mixtral) => (0..layers).collect(),
        (None, Family::GptOss) => (0..layers).step_by(2).collect(),
        (None, Family::Qwen2 | Family::Qwen3) if used == Some(true) => {
            let first = config.count(&["max_window_layers"], 0)?;
            (first.ok_or_else(|| config.missing(&["max_window_layers"]))?..layers).collect()
        }
        _ => Vec::new(),
    };
    if !windowed.is_empty() {
        toml.put("window", window);
        toml.put("windowed_layers", format!("{windowed:?}"));
    }
    Ok(())
}

/// The layers that a list, one word a layer, calls by the first of two words.
fn of_layers(config: &Config, key: &str, types: &[Value], words: [&str; 2]) -> Result<Vec<usize>, ConfigError> {
    let layers = config.layers()?;
    if types.len() != layers {
        return Err(config.wrong(key, format!("{} layers", types.len()), format!("{layers}, the number of layers")));
    }
    if let Some((layer, other)) = types.iter().enumerate().find(|(_, word)| !words.iter().any(|known| *word == known)) {
        return Err(config.wrong(&format!("{key}[{layer}]"), other, words.join(" or ")));
    }
    Ok((0..layers).filter(|&layer| types[layer] == words[0]).collect())
}

/// Keys of the choices of a token.
const TOP_K: [&str; 2] = ["num_experts_per_tok", "experts_per_token"];

fn feed_forward(config: &Config, family: Family, toml: &mut Toml) -> Result<(), ConfigError> {
    let of_network = config.object("ffn_config")?;
    let (width, count, choices) = match family {
        Family::Dbrx => (
            of_network.required(&["ffn_hidden_size"])?,
            of_network.required(&["moe_num_experts"])?,
            of_network.required(&["moe_top_k"])?,
        ),
        _ => (
            config.required(&[expert_width(family)])?,
            config.required(&["n_routed_experts", "num_experts", "num_local_experts"])?,
            config.required(&TOP_K)?,
        ),
    };
    toml.put("experts", count);
    toml.put("top_k", choices);
    toml.put("expert_inner", width);
    toml.put("expert_gated", true);
    toml.text("activation", activation(config, family)?);
    let dense = dense_layers(config, family)?;
    if !dense.is_empty() {
        toml.put("dense_inner", config.required(&["intermediate_size"])?);
        toml.put("dense_layers", format!("{dense:?}"));
    }
    match family {
        Family::DeepSeekV2 | Family::DeepSeekV3 | Family::Glm4 => {
            toml.put("shared_experts", config.count(&["n_shared_experts"], 0)?.unwrap_or(0));
        }
        Family::Qwen2 => {
            toml.put("shared_experts", 1);
            toml.put("shared_inner", config.required(&["shared_expert_intermediate_size"])?);
            toml.put("shared_gate", true);
        }
        _ => {}
    }
    Ok(())
}

/// The key of an expert's inner width. `intermediate_size` is that of dense layers where both are there.
fn expert_width(family: Family) -> &'static str {
    match family {
        Family::Mixtral | Family::GptOss | Family::Olmoe => "intermediate_size",
        _ => "moe_intermediate_size",
    }
}

fn activation(config: &Config, family: Family) -> Result<&'static str, ConfigError> {
    let inside = config.object("ffn_config")?.object("ffn_act_fn")?;
    let (config, key) = if family == Family::Dbrx { (&inside, "name") } else { (config, "hidden_act") };
    match config.word(key)? {
        _ if family == Family::GptOss => {
            if let Some(limit) = config.number(&["swiglu_limit"])?.filter(|&limit| limit != 7.0) {
                return Err(config.wrong("swiglu_limit", limit, "7"));
            }
            Ok("clamped-silu")
        }
        None | Some("silu" | "swish") => Ok("silu"),
        Some("gelu") => Ok("gelu"),
        Some(other) => Err(config.wrong(key, other, "silu or gelu")),
    }
}

fn dense_layers(config: &Config, family: Family) -> Result<Vec<usize>, ConfigError> {
    let layers = config.layers()?;
    if let Some(types) = config.list("mlp_layer_types")? {
        return of_layers(config, "mlp_layer_types", types, ["dense", "sparse"]);
    }
    match family {
        Family::DeepSeekV2 | Family::DeepSeekV3 | Family::Glm4 => {
            let first = config.count(&["first_k_dense_replace"], 0)?;
            let first = first.ok_or_else(|| config.missing(&["first_k_dense_replace"]))?;
            let every = config.count(&["moe_layer_freq"], 1)?.unwrap_or(1);
            Ok((0..layers).filter(|&layer| layer < first || !layer.is_multiple_of(every)).collect())
        }
        Family::Qwen2 | Family::Qwen3 => {
            let every = config.count(&["decoder_sparse_step"], 1)?.unwrap_or(1);
            let others = config.list("mlp_only_layers")?.unwrap_or_default();
            if let Some(other) = others.iter().find(|layer| layer.as_u64().is_none_or(|layer| layer >= layers as u64)) {
                return Err(config.wrong("mlp_only_layers", other, format!("layers below {layers}, counted from 0")));
            }
            let dense = |layer: &usize| !(layer + 1).is_multiple_of(every) || others.contains(&Value::from(*layer));
            Ok((0..layers).filter(dense).collect())
        }
        _ => Ok(Vec::new()),
    }
}

fn latent(config: &Config, family: Family, toml: &mut Toml) -> Result<(), ConfigError> {
    if !matches!(family, Family::DeepSeekV2 | Family::DeepSeekV3) {
        return Ok(());
    }
    toml.table("gpt.latent");
    if let Some(rank) = config.count(&["q_lora_rank"], 1)? {
        toml.put("q_rank", rank);
    }
    for (field, key) in [
        ("kv_rank", "kv_lora_rank"),
        ("nope", "qk_nope_head_dim"),
        ("rope", "qk_rope_head_dim"),
        ("value", "v_head_dim"),
    ] {
        toml.put(field, config.required(&[key])?);
    }
    Ok(())
}

fn router(config: &Config, family: Family, toml: &mut Toml) -> Result<(), ConfigError> {
    toml.table("gpt.router");
    let of_network = config.object("ffn_config")?;
    toml.put("renormalise", renormalises(config, &of_network, family)?);
    match family {
        Family::DeepSeekV2 => deepseek_router(config, "softmax", "greedy", toml)?,
        Family::DeepSeekV3 | Family::Glm4 => deepseek_router(config, "sigmoid", "noaux_tc", toml)?,
        Family::GptOss => toml.text("bias", "logit"),
        _ => {}
    }
    toml.number("auxiliary_loss", auxiliary_loss(config, &of_network)?);
    Ok(())
}

/// Factor of a balance loss that is 1 when loads are even. `router_aux_loss_coef` is that of a sum over a token's choices
/// (`load_balancing_loss_func` of Hugging Face's Mixtral, which the other families share), top-k when loads are even.
fn auxiliary_loss(config: &Config, of_network: &Config) -> Result<f64, ConfigError> {
    if let Some(of_sum) = config.number(&["router_aux_loss_coef"])? {
        return Ok(of_sum * config.required(&TOP_K)? as f64);
    }
    let of_mean = match config.number(&["aux_loss_alpha"])? {
        None => of_network.number(&["moe_loss_weight"])?,
        found => found,
    };
    Ok(of_mean.unwrap_or(0.0))
}

/// Whether the weights of a token's choices are divided by their sum. The defaults of classes are not those of checkpoints.
fn renormalises(config: &Config, of_network: &Config, family: Family) -> Result<bool, ConfigError> {
    match family {
        Family::Mixtral | Family::GptOss => Ok(true),
        // The p of a norm; null for none.
        Family::Dbrx => match of_network.number(&["moe_normalize_expert_weights"])? {
            None => Ok(false),
            Some(1.0) => Ok(true),
            Some(p) => Err(of_network.wrong("moe_normalize_expert_weights", p, "1 or null")),
        },
        _ => config.flag("norm_topk_prob")?.ok_or_else(|| config.missing(&["norm_topk_prob"])),
    }
}

/// `score` and `method` where the file leaves them to the family's code.
fn deepseek_router(config: &Config, score: &str, method: &str, toml: &mut Toml) -> Result<(), ConfigError> {
    match config.word("scoring_func")?.unwrap_or(score) {
        known @ ("softmax" | "sigmoid") => toml.text("score", known),
        other => return Err(config.wrong("scoring_func", other, "softmax or sigmoid")),
    }
    let best = match config.word("topk_method")?.unwrap_or(method) {
        "greedy" => None,
        "group_limited_greedy" => Some(1),
        "noaux_tc" => {
            toml.text("bias", "selection");
            Some(2)
        }
        other => return Err(config.wrong("topk_method", other, "greedy, group_limited_greedy or noaux_tc")),
    };
    let groups = config.count(&["n_group"], 1)?.filter(|&groups| groups > 1);
    if let (Some(best), Some(groups)) = (best, groups) {
        toml.put("groups", groups);
        toml.put("kept_groups", config.required(&["topk_group"])?);
        toml.put("group_best", best);
    }
    toml.number("scale", config.number(&["routed_scaling_factor"])?.unwrap_or(1.0));
    Ok(())
}

/// Comments on what the file says and the TOML does not.
fn left_out(config: &Config) -> Result<String, ConfigError> {
    let scaled =
        config.object("rope_parameters")?.get(&["factor"]).is_some() || config.get(&["rope_scaling"]).is_some();
    let clipped = config.get(&["clip_qkv"]).is_some() || config.object("attn_config")?.get(&["clip_qkv"]).is_some();
    let predicts = config.count(&["num_nextn_predict_layers"], 0)?.filter(|&layers| layers > 0);
    let notes = [
        scaled.then(|| "scaling of rotary positions beyond the trained length".to_owned()),
        config.get(&["quantization_config"]).map(|_| "quantisation".to_owned()),
        clipped.then(|| "clipping of queries, keys and values".to_owned()),
        predicts.map(|layers| format!("layers that predict further tokens (mtp_layers = {layers} would have them)")),
    ];
    Ok(notes.into_iter().flatten().map(|note| format!("# Left out: {note}.\n")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the presets' configs say, with what their readers must not fall for.
    const CONFIGS: [(&str, &str); 12] = [
        (
            "mixtral-8x7b",
            r#"{"model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
                "num_key_value_heads": 8, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2,
                "vocab_size": 32000, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "max_position_embeddings": 32768,
                "sliding_window": null, "tie_word_embeddings": false, "hidden_act": "silu", "router_aux_loss_coef": 0.02,
                "output_router_logits": false, "torch_dtype": "bfloat16"}"#,
        ),
        (
            "mixtral-8x22b",
            r#"{"model_type": "mixtral", "num_hidden_layers": 56, "hidden_size": 6144, "num_attention_heads": 48, "head_dim": 128,
                "num_key_value_heads": 8, "intermediate_size": 16384, "num_experts": 8, "num_experts_per_tok": 2,
                "vocab_size": 32000, "rms_norm_eps": 1e-05, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
                "max_position_embeddings": 65536, "tie_word_embeddings": false, "router_aux_loss_coef": 0.02}"#,
        ),
        (
            "deepseek-v2-lite",
            r#"{"model_type": "deepseek_v2", "num_hidden_layers": 27, "hidden_size": 2048, "num_attention_heads": 16,
                "num_key_value_heads": 16, "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 10944, "moe_intermediate_size": 1408,
                "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
                "moe_layer_freq": 1, "norm_topk_prob": false, "scoring_func": "softmax", "topk_method": "greedy",
                "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "aux_loss_alpha": 0.001, "seq_aux": true,
                "vocab_size": 102400, "rms_norm_eps": 1e-06, "rope_theta": 10000, "attention_bias": false,
                "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 0.707},
                "max_position_embeddings": 163840, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
        (
            "deepseek-v3",
            r#"{"model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
                "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
                "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
                "moe_layer_freq": 1, "norm_topk_prob": true, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
                "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "aux_loss_alpha": 0.0001, "seq_aux": true,
                "vocab_size": 129280, "rms_norm_eps": 1e-06, "rope_theta": 10000, "attention_bias": false,
                "max_position_embeddings": 163840, "tie_word_embeddings": false, "hidden_act": "silu", "ep_size": 1,
                "num_nextn_predict_layers": 1, "quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}"#,
        ),
        (
            "kimi-k2",
            r#"{"model_type": "kimi_k2", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 64,
                "num_key_value_heads": 64, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 18432, "moe_intermediate_size": 2048,
                "n_routed_experts": 384, "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1,
                "norm_topk_prob": true, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
                "aux_loss_alpha": 0.001, "vocab_size": 163840, "rms_norm_eps": 1e-06, "rope_theta": 50000.0,
                "max_position_embeddings": 131072, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
        (
            "qwen3-30b-a3b",
            r#"{"model_type": "qwen3_moe", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 32,
                "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144, "moe_intermediate_size": 768,
                "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "norm_topk_prob": true, "router_aux_loss_coef": 0.001, "vocab_size": 151936, "rms_norm_eps": 1e-06,
                "rope_theta": 1000000.0, "rope_scaling": null, "attention_bias": false, "use_sliding_window": false,
                "sliding_window": null, "max_window_layers": 48, "max_position_embeddings": 40960,
                "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
        (
            "qwen3-235b-a22b",
            r#"{"model_type": "qwen3_moe", "num_hidden_layers": 94, "hidden_size": 4096, "num_attention_heads": 64,
                "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 12288, "moe_intermediate_size": 1536,
                "num_local_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1, "mlp_only_layers": [],
                "norm_topk_prob": true, "router_aux_loss_coef": 0.001, "vocab_size": 151936, "rms_norm_eps": 1e-06,
                "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}, "attention_bias": false,
                "use_sliding_window": false, "sliding_window": 4096, "max_position_embeddings": 40960}"#,
        ),
        (
            "qwen1.5-moe-a2.7b",
            r#"{"model_type": "qwen2_moe", "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 16,
                "num_key_value_heads": 16, "intermediate_size": 5632, "moe_intermediate_size": 1408,
                "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4,
                "decoder_sparse_step": 1, "norm_topk_prob": false, "router_aux_loss_coef": 0.001, "vocab_size": 151936,
                "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "use_sliding_window": false, "sliding_window": 32768,
                "max_window_layers": 21, "max_position_embeddings": 8192, "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
        (
            "gpt-oss-20b",
            r#"{"model_type": "gpt_oss", "num_hidden_layers": 24, "num_local_experts": 32, "hidden_size": 2880,
                "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880,
                "experts_per_token": 4, "num_experts_per_tok": 4, "vocab_size": 201088, "rms_norm_eps": 1e-05,
                "rope_theta": 150000, "rope_scaling": {"rope_type": "yarn", "factor": 32.0}, "attention_bias": true,
                "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention", "sliding_attention",
                "full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention",
                "sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention",
                "full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention",
                "sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention",
                "full_attention"], "swiglu_limit": 7.0, "initial_context_length": 4096, "max_position_embeddings": 131072,
                "router_aux_loss_coef": 0.9, "hidden_act": "silu", "tie_word_embeddings": false,
                "quantization_config": {"quant_method": "mxfp4"}}"#,
        ),
        (
            "olmoe-1b-7b",
            r#"{"model_type": "olmoe", "num_hidden_layers": 16, "hidden_size": 2048, "num_attention_heads": 16,
                "num_key_value_heads": 16, "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8,
                "norm_topk_prob": false, "router_aux_loss_coef": 0.01, "vocab_size": 50304, "rms_norm_eps": 1e-05,
                "rope_theta": 10000.0, "attention_bias": false, "clip_qkv": null, "max_position_embeddings": 4096,
                "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
        (
            "dbrx",
            r#"{"model_type": "dbrx", "n_layers": 40, "d_model": 6144, "n_heads": 48, "vocab_size": 100352, "max_seq_len": 32768,
                "attn_config": {"kv_n_heads": 8, "rope_theta": 500000, "clip_qkv": 8},
                "ffn_config": {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4, "moe_loss_weight": 0.05,
                "moe_jitter_eps": 0.01, "moe_normalize_expert_weights": 1, "ffn_act_fn": {"name": "silu"},
                "tie_word_embeddings": true}, "tie_word_embeddings": false}"#,
        ),
        (
            "glm-4.5-air",
            r#"{"model_type": "glm4_moe", "num_hidden_layers": 46, "hidden_size": 4096, "num_attention_heads": 96,
                "num_key_value_heads": 8, "head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": true,
                "use_qk_norm": false, "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 128,
                "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
                "norm_topk_prob": true, "routed_scaling_factor": 1.0, "vocab_size": 151552, "rms_norm_eps": 1e-05,
                "rope_theta": 1000000, "max_position_embeddings": 131072, "num_nextn_predict_layers": 1,
                "tie_word_embeddings": false, "hidden_act": "silu"}"#,
        ),
    ];

    fn imported(json: &str) -> Model {
        let toml = import("config.json", json, &ImportedAs::default()).unwrap();
        Model::parse("config.json", &toml).unwrap_or_else(|error| panic!("{error}\n{toml}"))
    }

    #[test]
    fn configs_are_the_presets() {
        for (name, json) in CONFIGS {
            let preset = Model::named("test", name).unwrap();
            let read = imported(json);
            assert_eq!(Model { name: preset.name.clone(), source: preset.source.clone(), ..read }, preset, "{name}");
        }
    }

    #[test]
    fn what_is_left_out_is_said() {
        let toml = |name: &str| {
            let (_, json) = CONFIGS.iter().find(|(known, _)| *known == name).unwrap();
            import("config.json", json, &ImportedAs { name: Some("x".into()), seq_len: Some(77) }).unwrap()
        };
        assert!(
            toml("deepseek-v3").contains("# Left out: quantisation.\n# Left out: layers that predict further tokens")
        );
        assert!(toml("dbrx").contains("# Left out: clipping"));
        assert!(
            toml("mixtral-8x7b").starts_with("name = \"x\"\nsource = \"config.json of mixtral\"\n\n[gpt]\nlayers = 32")
        );
        assert_eq!(Model::parse("x", &toml("olmoe-1b-7b")).unwrap().blocks[0].tokens, 77);
    }

    /// Layers by the families' rules where the file has no list.
    #[test]
    fn layers_follow_the_rules_of_their_family() {
        let change = |name: &str, from: &str, to: &str| {
            let (_, json) = CONFIGS.iter().find(|(known, _)| *known == name).unwrap();
            assert!(json.contains(from), "{from}");
            imported(&json.replacen(from, to, 1))
        };
        let steps = change("qwen3-30b-a3b", "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 3");
        assert_eq!(steps.moe_blocks()[..3], [2, 5, 8]);
        let only = change("qwen3-30b-a3b", "\"mlp_only_layers\": []", "\"mlp_only_layers\": [0, 5]");
        assert_eq!(only.moe_blocks()[..5], [1, 2, 3, 4, 6]);
        let frequency = change("deepseek-v2-lite", "\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2");
        assert_eq!(frequency.moe_blocks()[..3], [2, 4, 6]);
        let types = change("gpt-oss-20b", "\"layer_types\"", "\"unread\"");
        assert_eq!(types.blocks, Model::named("test", "gpt-oss-20b").unwrap().blocks);
        let windows = change("qwen1.5-moe-a2.7b", "\"use_sliding_window\": false", "\"use_sliding_window\": true");
        let windowed = windows.blocks.iter().filter(|block| block.attention.window == Some(32768)).count();
        assert_eq!(windowed, 3);
    }

    /// What the model's TOML cannot be is said of the key, with the value that stands there.
    #[test]
    fn values_that_no_model_has_name_the_key() {
        let check = |name: &str, from: &str, to: &str, expected: &str| {
            let (_, json) = CONFIGS.iter().find(|(known, _)| *known == name).unwrap();
            assert!(json.contains(from), "{from}");
            let error = model("c.json", &json.replacen(from, to, 1), &ImportedAs::default()).unwrap_err();
            assert_eq!(error.to_string(), format!("c.json: {expected}"));
        };
        let (top_k, of_8) = ("\"num_experts_per_tok\": 2", "expected 1 to 8, the number of experts");
        check("mixtral-8x7b", top_k, "\"num_experts_per_tok\": 9", &format!("num_experts_per_tok = 9: {of_8}"));
        check(
            "dbrx",
            "\"moe_top_k\": 4",
            "\"moe_top_k\": 17",
            "ffn_config.moe_top_k = 17: expected 1 to 16, the number of experts",
        );
        check(
            "glm-4.5-air",
            "\"partial_rotary_factor\": 0.5",
            "\"partial_rotary_factor\": 1.5",
            "partial_rotary_factor = 1.5: expected above 0 to 1",
        );
        let heads = ("\"num_attention_heads\": 32", "\"num_attention_heads\": 24");
        let expected = "hidden_size = 4096: expected a multiple of num_attention_heads (24), or head_dim given";
        check("mixtral-8x7b", heads.0, heads.1, expected);
        for (name, json) in CONFIGS {
            assert!(model("c.json", json, &ImportedAs::default()).is_ok(), "{name}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        let check = |name: &str, from: &str, to: &str, expected: &str| {
            let (_, json) = CONFIGS.iter().find(|(known, _)| *known == name).unwrap();
            assert!(json.contains(from), "{from}");
            let error = import("config.json", &json.replacen(from, to, 1), &ImportedAs::default()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        };
        check(
            "mixtral-8x7b",
            "\"mixtral\"",
            "\"llama\"",
            "config.json: model_type = llama: expected one of mixtral, deepseek_v2",
        );
        check(
            "mixtral-8x7b",
            "\"model_type\"",
            "\"type\"",
            "config.json: model_type = missing: expected one of mixtral",
        );
        check(
            "mixtral-8x7b",
            "\"num_hidden_layers\": 32",
            "\"x\": 1",
            "num_hidden_layers or n_layers = missing: expected a value",
        );
        check(
            "mixtral-8x7b",
            "32000",
            "1000000000000",
            "vocab_size = 1000000000000: expected a whole number from 1 to 1048576",
        );
        check(
            "mixtral-8x7b",
            "\"hidden_act\": \"silu\"",
            "\"hidden_act\": \"relu\"",
            "hidden_act = relu: expected silu or gelu",
        );
        check("qwen3-30b-a3b", "\"norm_topk_prob\": true, ", "", "norm_topk_prob = missing");
        for name in ["gpt-oss-20b", "qwen3-30b-a3b", "glm-4.5-air"] {
            check(name, "\"head_dim\":", "\"x\":", "head_dim = missing: expected a value, which no default replaces");
        }
        check(
            "qwen3-30b-a3b",
            "\"mlp_only_layers\": []",
            "\"mlp_only_layers\": [48]",
            "mlp_only_layers = 48: expected layers below 48",
        );
        check(
            "deepseek-v3",
            "noaux_tc",
            "hash",
            "topk_method = hash: expected greedy, group_limited_greedy or noaux_tc",
        );
        check(
            "deepseek-v3",
            "\"attention_bias\": false",
            "\"attention_bias\": true",
            "attention_bias = true: expected false",
        );
        check("dbrx", "\"moe_top_k\": 4, ", "", "ffn_config.moe_top_k = missing");
        check("dbrx", "\"attn_config\": {", "\"attn_config\": 3, \"x\": {", "attn_config = 3: expected an object");
        check("gpt-oss-20b", "[\"sliding_attention\", ", "[", "layer_types = 23 layers: expected 24");
        check("mixtral-8x7b", "{\"model", "[{\"model", "JSON = ");
    }
}
