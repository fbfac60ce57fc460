//! Published throughputs of training runs, to hold the simulator against.
//!
//! `published/training.csv` holds facts, a run a row: model, cluster, plan, batch, what was reported in which unit, and where it
//! stands. What a run had that no plan says (another precision, another schedule) makes it a row that is listed and not
//! simulated.

use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;
use crate::csv_file::{Count, CsvFile, CsvRow, Positive};
use crate::error::ConfigError;
use crate::model::Model;
use crate::plan::ForcedPlan;
use crate::units::Seconds;

/// One published run.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishedTraining {
    /// Its number, by which a page names it.
    pub row: String,
    /// The model as it was trained.
    pub model: Model,
    /// The cluster.
    pub cluster: Cluster,
    /// Number of GPUs.
    pub gpus: usize,
    /// The system by its name here.
    pub system: String,
    /// The plan.
    pub plan: ForcedPlan,
    /// Samples per iteration.
    pub global_batch: usize,
    /// Where its choices of experts came from.
    pub routing: TrainingRouting,
    /// What it had that is not modelled; such a run is not simulated.
    pub outside: Option<String>,
    /// What else to know.
    pub note: Option<String>,
    /// Where it is published.
    pub source: String,
    /// What it took.
    pub step: Seconds,
    /// Tokens per second and GPU.
    pub tokens_per_second: f64,
}

/// Where a run's choices of experts came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainingRouting {
    /// The gate was made to choose all experts alike.
    Balanced,
    /// A gate under a balance loss.
    Learned,
}

/// What was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Unit {
    /// Time of an iteration, s.
    #[serde(rename = "step_s")]
    Step,
    /// Tokens per second and GPU.
    #[serde(rename = "tokens_per_s")]
    Tokens,
    /// Model TFLOP/s per GPU, of scores those that are not masked.
    #[serde(rename = "tflops")]
    Tflops,
    /// Model TFLOP/s per GPU, masked scores counted like the others.
    #[serde(rename = "tflops, full")]
    TflopsFull,
    /// The latter as a percentage of the chip's peak.
    #[serde(rename = "mfu, full")]
    MfuFull,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    row: String,
    model: String,
    changes: Option<String>,
    cluster: String,
    gpus: Count,
    gpus_per_node: Option<Count>,
    system: String,
    plan: String,
    global_batch: Count,
    routing: TrainingRouting,
    /// Number format of its products, for readers of the file: what is not bf16 stands in `outside`, too.
    #[serde(rename = "precision")]
    _precision: String,
    reported: Positive,
    unit: Unit,
    outside: Option<String>,
    note: Option<String>,
    source: String,
}

const FILE: (&str, &str) = ("published/training.csv", include_str!("../published/training.csv"));

impl PublishedTraining {
    /// The runs that come with moebench.
    ///
    /// # Errors
    /// A defect of the file.
    pub fn all() -> Result<Vec<Self>, ConfigError> {
        Self::parse(FILE.0, FILE.1)
    }

    /// Reads a file; `file` names it in errors.
    ///
    /// # Errors
    /// A cell that cannot be, with file, line and column, and a row that stands twice.
    pub fn parse(file: &str, text: &str) -> Result<Vec<Self>, ConfigError> {
        let mut runs: Vec<Self> = Vec::new();
        for row in CsvFile::parse(file, text.as_bytes())?.rows() {
            let run = Self::new(&row)?;
            if runs.iter().any(|other| other.row == run.row) {
                return Err(row.wrong(format!("row = {}: expected every run once", run.row)));
            }
            runs.push(run);
        }
        Ok(runs)
    }

    fn new(row: &CsvRow) -> Result<Self, ConfigError> {
        let read: Row = row.read()?;
        let changes = changes(read.changes.as_deref().unwrap_or_default());
        let changes = changes.ok_or_else(|| row.wrong("changes: expected `field=value; field=value`"))?;
        let mut model = Model::parse(&row.place(), &changed(Model::text(&row.place(), &read.model)?, &changes))?;
        if let Some(changes) = &read.changes {
            model.name = format!("{}, {changes}", model.name);
        }
        let mut cluster = Cluster::named(&row.place(), &read.cluster)?;
        if let Some(gpus) = read.gpus_per_node {
            cluster.gpus_per_node = gpus.0;
        }
        let plan = read.plan.parse().map_err(|reason| row.wrong(format!("plan = {}: {reason}", read.plan)))?;
        let Some(tokens) = model.blocks.first().map(|block| block.tokens) else {
            return Err(row.wrong(format!("model = {}: expected a model with a block", read.model)));
        };
        let flops = match read.unit {
            Unit::TflopsFull | Unit::MfuFull => {
                let unfused = [&changes[..], &[("fused_attention", "false")]].concat();
                Model::parse(&row.place(), &changed(Model::text(&row.place(), &read.model)?, &unfused))?
                    .training_flops()
            }
            _ => model.training_flops(),
        };
        let (value, share) = (read.reported.0, read.global_batch.0 as f64 / read.gpus.0 as f64);
        let peak = cluster.gpu.gemm_rate.peak;
        let step = match read.unit {
            Unit::Step => value,
            Unit::Tokens => share * tokens as f64 / value,
            Unit::Tflops | Unit::TflopsFull => share * flops.0 / (value * 1e12),
            Unit::MfuFull => {
                let peak =
                    peak.ok_or_else(|| row.wrong(format!("cluster = {}: no peak of gemm_rate", read.cluster)))?;
                share * flops.0 / (value / 100.0 * peak)
            }
        };
        Ok(Self {
            row: read.row,
            model,
            cluster,
            gpus: read.gpus.0,
            system: read.system,
            plan,
            global_batch: read.global_batch.0,
            routing: read.routing,
            outside: read.outside,
            note: read.note,
            source: read.source,
            step: Seconds(step),
            tokens_per_second: share * tokens as f64 / step,
        })
    }
}

/// `field=value; field=value` as pairs.
fn changes(text: &str) -> Option<Vec<(&str, &str)>> {
    let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').map(|(field, value)| (field.trim(), value.trim()))).collect()
}

/// A model's TOML with fields of its table `[gpt]` that have other values.
fn changed(toml: &str, changes: &[(&str, &str)]) -> String {
    let field = |line: &str| line.split_once('=').map(|(field, _)| field.trim().to_owned());
    let (mut text, mut inside) = (String::new(), false);
    for line in toml.lines() {
        inside = if line.starts_with('[') { line == "[gpt]" } else { inside };
        if inside && field(line).is_some_and(|field| changes.iter().any(|(changed, _)| *changed == field)) {
            continue;
        }
        text += line;
        text.push('\n');
        if line == "[gpt]" {
            text.extend(changes.iter().map(|(field, value)| format!("{field} = {value}\n")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(row: &str) -> PublishedTraining {
        PublishedTraining::all().unwrap().into_iter().find(|run| run.row == row).unwrap()
    }

    /// Reported in one unit, the others follow: what pages and papers print of the same run.
    #[test]
    fn units_agree() {
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.006, "{found} {expected}");
        close(run("1").tokens_per_second, 5650.0);
        close(run("2").tokens_per_second, 1945.0);
        close(run("7a").tokens_per_second, 0.522 * 989e12 / 250.7e9);
        close(run("15a").tokens_per_second, 865.0);
        close(run("15b").tokens_per_second, 1002.0);
        close(run("17b").tokens_per_second, 1862.0);
        close(run("23a").tokens_per_second, 10_607.0);
        // 295 TFLOP/s at 16384 tokens.
        close(run("22a").tokens_per_second * run("22a").model.training_flops().0 / 16384.0, 295e12);
        // 3139 tokens/s are reported beside 782 TFLOP/s, with the layer for multi-token prediction.
        close(run("34").step.0, 4096.0 * 4096.0 / 256.0 / 3139.0);
    }

    #[test]
    fn models_are_as_they_were_trained() {
        let fine = run("10").model;
        let moe = fine.moe_layers().next().unwrap();
        assert_eq!((moe.experts, fine.top_k, moe.expert.inner, moe.width), (64, 8, 2048, 6144));
        // The same arithmetic and parameters as with 8 experts, but for the gate.
        let coarse = run("2").model;
        assert!((fine.parameters() as f64 / coarse.parameters() as f64 - 1.0).abs() < 1e-3);
        assert_eq!(fine.name, "mixtral-8x22b, experts=64; top_k=8; expert_inner=2048");
        assert_eq!(run("34").cluster.gpus_per_node, 64);
    }

    #[test]
    fn errors_name_file_line_and_column() {
        let header = FILE.1.lines().next().unwrap();
        let check = |row: &str, expected: &str| {
            let message = PublishedTraining::parse("t.csv", &format!("{header}\n{row}\n")).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        let plan = "pp1 dp8 tp1 ep8 edp1 mb1";
        check(&format!("1,m,,h100x8,8,,s,{plan},8,balanced,bf16,1,step_s,,,x"), "t.csv: line 2: unknown model `m`");
        check(&format!("1,gpt-micro,z,h100x8,8,,s,{plan},8,balanced,bf16,1,step_s,,,x"), "changes: expected");
        check(&format!("1,gpt-micro,x=1,h100x8,8,,s,{plan},8,balanced,bf16,1,step_s,,,x"), "unknown field `x`");
        check("1,gpt-micro,,h100x8,8,,s,pp1,8,balanced,bf16,1,step_s,,,x", "t.csv: line 2: plan = pp1");
        check(&format!("1,gpt-micro,,h100x8,8,,s,{plan},8,even,bf16,1,step_s,,,x"), "routing = even");
        let row = format!("1,gpt-micro,,h100x8,8,,s,{plan},8,balanced,bf16,1,step_s,,,x");
        check(&format!("{row}\n{row}"), "t.csv: line 3: row = 1: expected every run once");
    }
}
