//! What is to be trained, checked before any work.

use std::path::PathBuf;

use systems::iteration::Start;
use systems::plan::PlanError;
use systems::plan::memory::{StageParameters, largest_block_parameters};
use systems::plan::routing::JobRouting;
use systems::plan::slots::{SlotState, layers_of};
use systems::{CostModel, Job, Placement, Plan, Recompute, Storage, System, Zero};
use tch::{Device, Kind};
use workloads::model::attention::QkNorm;
use workloads::model::{Ffn, Moe};
use workloads::training::Gradients;
use workloads::{Model, Training};

use crate::data::Samples;
use crate::model::Gpt;

/// One training run, the same on every rank.
pub struct Setup<'a> {
    pub job: &'a Job,
    pub plan: Plan,
    pub system: &'static dyn System,
    /// Prices of the described cluster, for a virtual clock.
    pub costs: &'a CostModel,
    pub training: Training,
    pub samples: &'a dyn Samples,
    /// Seed of initial values and of the gate's random drops.
    pub seed: u64,
    /// Including those of a checkpoint.
    pub iterations: usize,
    /// The routing that drives the gate instead of its scores.
    pub replay: Option<&'a JobRouting<'a>>,
    /// Which of the gate's choices reports hold.
    pub record: Option<Recording>,
    /// Whether reports hold spans.
    pub record_spans: bool,
    /// Where checkpoints are written, and after how many iterations each.
    pub checkpoint: Option<(PathBuf, usize)>,
    /// Kind of weights and activations.
    pub kind: Kind,
    pub gpt: Gpt,
}

/// Which of the gate's choices reports hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Iterations from one that is recorded to the next, beginning with the first.
    pub every: usize,
    /// Equal parts of a rank's micro-batch that are counted apart, as if each were a rank's.
    pub parts: usize,
}

impl Recording {
    /// Every iteration, of the ranks that there are.
    pub const ALL: Self = Self { every: 1, parts: 1 };
}

impl Setup<'_> {
    /// The kind in which gradients are held and summed.
    pub fn gradients(&self) -> Kind {
        match self.training.gradients {
            Gradients::Single => Kind::Float,
            Gradients::Half => Kind::BFloat16,
        }
    }

    /// The parts whose choices are recorded in an iteration, from 0; none where they are not.
    pub fn recorded_parts(&self, iteration: usize) -> Option<usize> {
        self.record.filter(|record| iteration.is_multiple_of(record.every)).map(|record| record.parts)
    }
}

/// Why a job cannot be trained.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("model {model}: not a language model: only models with a table [gpt] can be trained")]
    NotALanguageModel { model: String },
    #[error("model {model}: {field}: the trainer has {expected} alone; simulations know the rest")]
    NotTrained { model: String, field: &'static str, expected: &'static str },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("plan {plan}: {field} = {value} is simulated only: expected {expected}")]
    NotExecuted { plan: Box<Plan>, field: &'static str, value: String, expected: &'static str },
    #[error("model {model}, plan {plan}: {what} = {whole} is not a multiple of {part}")]
    NotAMultiple { model: String, plan: Box<Plan>, what: &'static str, whole: usize, part: usize },
    #[error(
        "model {model}, plan {plan}: weights, gradients and optimizer state of {ranks} need {:.1} GB of {:.1} GB available",
        .need / 1e9,
        .available / 1e9
    )]
    Memory { model: String, plan: Box<Plan>, ranks: String, need: f64, available: f64 },
}

/// The shape of the job's model.
///
/// # Errors
/// A model that is no GPT, or that the trainer cannot cut as the plan says.
pub fn gpt(job: &Job, plan: &Plan) -> Result<Gpt, SetupError> {
    let model = &job.model;
    let vocabulary = vocabulary(job)?;
    trained(model, plan.tp)?;
    plan.check(job)?;
    executed(plan)?;
    let block = &model.blocks[0];
    let gpt = Gpt {
        depth: model.blocks.len(),
        hidden: block.hidden,
        seq_len: block.tokens,
        vocabulary,
        norm: block.norm,
        learned_positions: block.attention.rotary.is_none(),
        tied: model.tied_parameters > 0,
    };
    let multiple = |what: &'static str, whole: usize, part: usize| {
        if whole.is_multiple_of(part) {
            return Ok(());
        }
        Err(SetupError::NotAMultiple { model: model.name.clone(), plan: Box::new(*plan), what, whole, part })
    };
    multiple("vocabulary (tp)", gpt.vocabulary, plan.tp)?;
    multiple("tokens of a micro-batch (tp)", gpt.seq_len * plan.micro_batch, plan.tp)?;
    for block in &model.blocks {
        multiple("kv_heads (tp)", block.attention.kv_heads(), plan.tp)?;
        let cut = match block.ffn {
            Ffn::Dense(mlp) => Some(mlp),
            Ffn::Moe(moe) => moe.shared.map(|shared| shared.mlp),
        };
        multiple("inner width (tp)", cut.map_or(plan.tp, |mlp| mlp.inner), plan.tp)?;
    }
    Ok(gpt)
}

/// Whether the trainer executes everything that the plan says.
fn executed(plan: &Plan) -> Result<(), SetupError> {
    let require = |holds: bool, field, value: String, expected| {
        if holds { Ok(()) } else { Err(SetupError::NotExecuted { plan: Box::new(*plan), field, value, expected }) }
    };
    require(plan.vp == 1, "vp", plan.vp.to_string(), "1")?;
    let whole = matches!(plan.zero, Zero::Off | Zero::Weights);
    require(whole, "zero", (plan.zero as u8).to_string(), "0 or 3")?;
    let recompute = plan.recompute;
    require(recompute != Recompute::Selective, "recompute", recompute.name().to_owned(), "none or full")?;
    require(plan.ep.is_multiple_of(plan.tp), "ep", plan.ep.to_string(), "a multiple of tp")
}

/// Whether the trainer knows everything that the model has.
fn trained(model: &Model, tp: usize) -> Result<(), SetupError> {
    let require = |holds: bool, field, expected| {
        if holds { Ok(()) } else { Err(SetupError::NotTrained { model: model.name.clone(), field, expected }) }
    };
    for block in &model.blocks {
        require(!block.attention.sinks, "gpt.sinks", "softmax over keys")?;
        require(block.extra_parameters == 0, "gpt.mtp_layers", "the next token's loss")?;
        // A part of the heads does not know the mean square of all.
        let heads_apart = block.attention.qk_norm != QkNorm::Full || tp == 1;
        require(heads_apart, "gpt.qk_norm = \"full\"", "it without tensor parallelism")?;
    }
    Ok(())
}

/// The size of the vocabulary of the job's model.
///
/// # Errors
/// A model that is no language model.
pub fn vocabulary(job: &Job) -> Result<usize, SetupError> {
    let model = &job.model;
    model.vocabulary.ok_or_else(|| SetupError::NotALanguageModel { model: model.name.clone() })
}

/// Whether `ranks` ranks that share a device of `available` bytes fit, by weights, gradients and optimizer state alone. Every slot of an expert
/// has room for the first two, those up to the last that holds an expert for the third, too.
///
/// # Errors
/// The bytes needed and those available.
pub fn fits(
    job: &Job,
    system: &dyn System,
    plan: &Plan,
    kind: Kind,
    ranks: usize,
    available: f64,
) -> Result<(), SetupError> {
    // Weights and gradients; master weights and two moments, all in single precision, are kept beside half-precision weights.
    let (copy, state) = if kind == Kind::Float { (8.0, 16.0) } else { (6.0, 18.0) };
    let policy = system.policy(job, plan);
    let start = Start::new(job, plan, policy.as_ref());
    let bytes = |stage| {
        let layers = layers_of(job, plan, stage, &start.placements);
        let of_slots =
            |(moe, placement): (&Moe, &Placement)| moe.expert_parameters() * placement.slots_per_rank() as u64;
        let of_filled = |(moe, placement): (&Moe, &Placement)| {
            let filled = (0..placement.ranks()).map(|rank| placement.filled(rank)).max();
            moe.expert_parameters() * filled.unwrap_or(0) as u64
        };
        let slots = layers.clone().map(of_slots).sum::<u64>() as f64;
        let held = layers.clone().map(of_filled).sum::<u64>() as f64;
        let most = layers.clone().map(of_slots).max().unwrap_or(0) as f64;
        let parameters = StageParameters::new(job, plan, stage);
        let storage = policy.storage();
        let with = |experts| {
            let (all, plan) = (StageParameters { experts, ..parameters }, &start.plan);
            if plan.zero != Zero::Weights {
                return state * all.total();
            }
            // Weights and gradients of a block are whole, and as many are on their way; so are the words of the embedding, for good.
            let whole = 2.0 * largest_block_parameters(job, plan, stage) + parameters.tied;
            state * all.share(plan).total() + copy * whole
        };
        let share = || SlotState::new(storage, plan, &job.cluster, layers.clone()).parameters;
        match storage {
            Storage::Slots if plan.zero == Zero::Weights => with(slots),
            Storage::Slots => with(held) + copy * (slots - held),
            Storage::OptimizerShards => with(share()) + copy * slots,
            // The layers of a stage share room for the weights of two and the gradients of one.
            Storage::Shards | Storage::Parts => with(share()) + (2.0 * copy - 4.0) * most,
        }
    };
    let largest = (0..plan.pp).map(bytes).fold(0.0, f64::max);
    let sum: f64 = (0..plan.pp).map(bytes).sum::<f64>() * plan.stage_ranks() as f64;
    let need = if ranks > 1 { sum } else { largest };
    if need <= available {
        return Ok(());
    }
    let ranks = if ranks > 1 { format!("{ranks} ranks on one device") } else { "a rank".to_owned() };
    Err(SetupError::Memory { model: job.model.name.clone(), plan: Box::new(*plan), ranks, need, available })
}

/// The kind of weights and activations on a device: half precision where there is hardware for it.
pub fn kind_on(device: Device) -> Kind {
    if device.is_cuda() { Kind::BFloat16 } else { Kind::Float }
}
