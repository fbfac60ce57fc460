//! `moebench import-model`: a Hugging Face `config.json` as a model of moebench.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use workloads::error::MOST_EXTENT;
use workloads::model::hugging_face::{self, ImportedAs};

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::store;

/// No config is larger; what is, is another file.
const MOST_BYTES: u64 = 1 << 24;

/// `moebench import-model`.
#[derive(Args)]
pub struct ImportModelArgs {
    /// The config.json of a checkpoint: Mixtral, DeepSeek-V2 and V3, Kimi-K2, Qwen2 and Qwen3 MoE, gpt-oss, OLMoE, DBRX, GLM-4.5
    pub config: PathBuf,
    /// The TOML to write; printed when absent
    #[arg(long, value_name = "PATH")]
    pub out: Option<PathBuf>,
    /// Replace a file that is there
    #[arg(long, requires = "out")]
    pub overwrite: bool,
    /// The model's name; that of the checkpoint, or its family's, when absent
    #[arg(long)]
    pub name: Option<String>,
    /// Tokens of a sample; 4096, or the longest sequence if that is shorter, when absent
    #[arg(long, value_name = "TOKENS")]
    pub sequence_length: Option<usize>,
}

/// Writes or prints the TOML.
///
/// # Errors
/// A config that cannot be read or does not describe a model; a file that cannot be written.
pub fn run(args: &ImportModelArgs) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    let how = ImportedAs { name: args.name.clone(), seq_len: args.sequence_length };
    let json = read(&args.config).or_input()?;
    if let Some(tokens) = how.seq_len.filter(|tokens| !(1..=MOST_EXTENT).contains(tokens)) {
        let error = anyhow::anyhow!("--sequence-length {tokens}: expected 1 to {MOST_EXTENT}");
        return Err(Failure::Input(error));
    }
    let (model, toml) = hugging_face::model(&file, &json, &how).or_input()?;
    let Some(out) = &args.out else { return output::print(toml.trim_end()).or_run() };
    output::refuse_to_replace(out, args.overwrite).or_input()?;
    store::write_text(out, &toml).or_run()?;
    let tokens = model.blocks.first().map_or(1, |block| block.tokens) as f64;
    let line = format!(
        "{}: {}: {:.2}e9 parameters, {:.2}e9 of them active, {:.1} GFLOP per token of {tokens}",
        out.display(),
        model.name,
        model.parameters() as f64 / 1e9,
        model.active_parameters() as f64 / 1e9,
        model.training_flops().0 / tokens / 1e9
    );
    output::print(line).or_run()
}

fn read(path: &Path) -> Result<String> {
    let (mut text, cannot) = (String::new(), || format!("{}: cannot be read", path.display()));
    File::open(path).with_context(cannot)?.take(MOST_BYTES + 1).read_to_string(&mut text).with_context(cannot)?;
    ensure!(text.len() as u64 <= MOST_BYTES, "{}: more than {MOST_BYTES} bytes: no config.json", path.display());
    Ok(text)
}
