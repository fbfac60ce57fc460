//! What is to be trained, checked before any work.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use systems::{CostModel, Job, Plan, System};
use tch::{Device, Kind};
use workloads::Training;

use crate::data::Samples;
use crate::model::Gpt;
use systems::plan::routing::JobRouting;

/// One training run, the same on every rank.
pub struct Setup<'a> {
    /// Model, cluster, gate and batch.
    pub job: &'a Job,
    /// Degrees of parallelism.
    pub plan: Plan,
    /// Who places experts and writes programs.
    pub system: &'static dyn System,
    /// Prices of the described cluster: for a virtual clock alone.
    pub costs: &'a CostModel,
    /// Optimizer and loss.
    pub training: Training,
    /// What the model reads.
    pub samples: &'a dyn Samples,
    /// Seed of initial values and of the gate's random drops.
    pub seed: u64,
    /// Iterations in all, those of a checkpoint included.
    pub iterations: usize,
    /// What drives the gate instead of its scores.
    pub replay: Option<&'a JobRouting<'a>>,
    /// Whether the choices of every iteration are reported.
    pub record_choices: bool,
    /// Whether the spans of every iteration are reported.
    pub record_spans: bool,
    /// Where checkpoints are written, and after how many iterations each.
    pub checkpoint: Option<(PathBuf, usize)>,
    /// Kind of weights and activations.
    pub kind: Kind,
    /// The model's shape.
    pub gpt: Gpt,
}

/// The shape of the job's model.
///
/// # Errors
/// A model that is no GPT, or that the trainer cannot cut as the plan says.
pub fn gpt(job: &Job, plan: &Plan) -> Result<Gpt> {
    let model = &job.model;
    let vocabulary = vocabulary(job)?;
    plan.check(job)?;
    let block = &model.blocks[0];
    let gpt =
        Gpt { depth: model.blocks.len(), hidden: block.hidden, heads: block.heads, seq_len: block.tokens, vocabulary };
    let multiple = |what: &str, whole: usize, part: usize| {
        ensure!(
            whole.is_multiple_of(part),
            "model {}, plan {plan}: {what} = {whole} is not a multiple of {part}",
            model.name
        );
        Ok(())
    };
    multiple("hidden (heads of equal width)", gpt.hidden, gpt.heads)?;
    multiple("vocabulary (tp)", gpt.vocabulary, plan.tp)?;
    multiple("tokens of a micro-batch (tp)", gpt.seq_len * plan.micro_batch, plan.tp)?;
    for inner in model.blocks.iter().filter_map(crate::model::inner) {
        multiple("inner width (tp)", inner, plan.tp)?;
    }
    Ok(gpt)
}

/// Words of the job's model.
///
/// # Errors
/// A model that is no language model.
pub fn vocabulary(job: &Job) -> Result<usize> {
    let Some(vocabulary) = job.model.vocabulary else {
        bail!("model {}: not a language model: only models with a table [gpt] can be trained", job.model.name);
    };
    Ok(vocabulary)
}

/// Whether the ranks that share a device of `available` bytes fit, by weights, gradients and optimizer state alone.
///
/// # Errors
/// The bytes needed and those that there are.
pub fn fits(job: &Job, plan: &Plan, kind: Kind, ranks: usize, available: f64) -> Result<()> {
    // Master weights are the weights themselves in single precision.
    let bytes = if kind == Kind::Float { 16.0 } else { systems::plan::memory::STATE_BYTES_PER_PARAMETER };
    let parameters = |stage| systems::plan::memory::StageParameters::new(job, plan, stage).total();
    let largest = (0..plan.pp).map(parameters).fold(0.0, f64::max);
    let sum: f64 = (0..plan.pp).map(parameters).sum::<f64>() * plan.stage_ranks() as f64;
    let need = bytes * if ranks > 1 { sum } else { largest };
    ensure!(
        need <= available,
        "model {}, plan {plan}: weights, gradients and optimizer state of {} need {:.1} GB of {:.1} GB available",
        job.model.name,
        if ranks > 1 { format!("{ranks} ranks on one device") } else { "a rank".to_owned() },
        need / 1e9,
        available / 1e9
    );
    Ok(())
}

/// Device and kind of products that go together: half precision where there is hardware for it.
pub fn kind_on(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}
