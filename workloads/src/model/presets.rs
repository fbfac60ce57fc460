//! The models that come with moebench.

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../models/", $name, ".toml")))),*] };
}

/// Every model in `workloads/models/`.
pub(super) const MODELS: &[(&str, &str)] = embedded![
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
    "mixtral-8x7b",
    "mixtral-8x22b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "olmoe-1b-7b",
    "qwen1.5-moe-a2.7b",
    "dbrx",
    "glm-4.5-air",
    "kimi-k2",
    "mixtral-micro",
    "deepseek-micro",
    "qwen3-micro",
];

#[cfg(test)]
mod tests {
    use crate::model::Model;

    fn model(name: &str) -> Model {
        Model::named("test", name).unwrap()
    }

    /// Counts by the closed form `2 V h + h + L (A + 2 h) + dense 3 h f + MoE (E 3 h f + h E + shared + ..)` from the configs, and the
    /// totals that their makers print, in units of 1e9.
    #[test]
    fn parameters_are_the_published_ones() {
        for (name, exact, published, active) in [
            ("mixtral-8x7b", 46_702_792_704, 46.7, 12.88),
            ("mixtral-8x22b", 140_620_634_112, 141.0, 39.15),
            ("deepseek-v2-lite", 15_706_484_224, 15.7, 2.66),
            ("deepseek-v3", 671_026_419_200, 671.0, 37.55),
            ("qwen3-30b-a3b", 30_532_122_624, 30.5, 3.35),
            ("qwen3-235b-a22b", 235_093_634_560, 235.0, 22.19),
            ("gpt-oss-20b", 20_914_757_184, 20.91, 4.19),
            ("gpt-oss-120b", 116_829_156_672, 116.83, 5.71),
            ("olmoe-1b-7b", 6_919_161_856, 6.9, 1.282),
            ("qwen1.5-moe-a2.7b", 14_315_784_192, 14.3, 2.69),
            ("dbrx", 131_596_523_520, 132.0, 36.47),
            ("glm-4.5-air", 106_852_251_264, 106.0, 13.42),
            ("kimi-k2", 1_026_408_232_448, 1000.0, 32.86),
        ] {
            let model = model(name);
            assert_eq!(model.parameters(), exact, "{name}");
            // GLM prints 106 and Kimi "1T", without the digits that half a percent needs.
            let tolerance = if published == 106.0 || published == 1000.0 { 0.03 } else { 0.005 };
            assert!((exact as f64 / 1e9 / published - 1.0).abs() < tolerance, "{name}");
            let found = model.active_parameters() as f64 / 1e9;
            assert!((found / active - 1.0).abs() < 0.005, "{name}: {found} active");
        }
    }

    /// GFLOP per token at 4096 tokens, forward and backward: reported TFLOP/s over reported tokens/s (NVIDIA's Megatron-Bridge and
    /// NeMo AutoModel), or the closed form `6 (active - V h) + 3 s a (d_qk + d_v) L` where nobody reports both.
    #[test]
    fn arithmetic_is_the_published_one() {
        for (name, published) in [
            ("deepseek-v3", 249.6),
            ("kimi-k2", 204.5),
            ("qwen3-235b-a22b", 147.8),
            ("qwen3-30b-a3b", 23.0),
            ("gpt-oss-120b", 32.6),
            ("gpt-oss-20b", 22.9),
            ("mixtral-8x7b", 79.7),
            ("mixtral-8x22b", 242.2),
            ("olmoe-1b-7b", 7.9),
            ("deepseek-v2-lite", 16.4),
        ] {
            let found = model(name).training_flops().0 / 4096.0 / 1e9;
            assert!((found / published - 1.0).abs() < 0.006, "{name}: {found}");
        }
    }

    #[test]
    fn every_model_is_called_what_its_file_is() {
        for name in Model::names() {
            assert_eq!(model(name).name, name);
        }
    }
}
