//! What a system decides changes the time of training, never training itself: a few optimizer steps under every plan and
//! policy end with the same losses and weights as on one rank.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use runs::records::Status;
use systems::iteration::run::Iteration;
use systems::plan::routing::JobRouting;
use systems::program::split::Split;
use systems::program::{Exchange, Layout, Op, Pass};
use systems::zoo::tutel;
use systems::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, Recompute,
    RoutingCounts, Storage, System, Zero,
};
use tch::{Device, Kind, Tensor};
use trainer::TrainError;
use trainer::data::{Language, Samples};
use trainer::model::dense::Cut;
use trainer::setup::{self, Setup};
use trainer::world::{self, Threads};
use workloads::model::Moe;
use workloads::suite::TraceUse;
use workloads::trace::RoutingTrace;
use workloads::training::Gradients;
use workloads::{Cluster, Gate, Model, Training};

use crate::support::Folder;

const MODEL: &str = r#"
name = "test"
source = "tests"

[gpt]
layers = 4
hidden = 32
heads = 4
seq_len = 16
vocabulary = 64
expert_ratio = 2
experts = 8
moe_every = 2
top_k = 2
"#;

/// `pp, dp, tp, ep, expert_dp`, micro-batches of one sample.
pub(crate) fn plan([pp, dp, tp, ep, expert_dp]: [usize; 5]) -> Plan {
    Plan { pp, dp, tp, ep, expert_dp, placement_every: 1, ..Plan::default() }
}

fn job(model: &Model, plan: &Plan, gate: Gate, gpus_per_node: usize) -> Job {
    let mut cluster = Cluster::named("test", "inky").unwrap();
    // Slow products and fast links: FasterMoE shadows as soon as one expert has more than the others.
    cluster.gpu.gemm_rate.value = 1e9;
    cluster.gpus_per_node = gpus_per_node;
    Job::new(model.clone(), cluster, plan.pp * plan.dp * plan.tp, gate, 8).with_micro_batch(1)
}

#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) losses: Vec<f64>,
    pub(crate) weights: BTreeMap<String, Vec<f32>>,
    pub(crate) shadowed: u64,
    pub(crate) moved: u64,
}

fn train(system: &'static dyn System, plan: Plan, gate: Gate) -> Trained {
    Asked { gate, ..asked(system, plan) }.train().unwrap()
}

pub(crate) fn asked(system: &'static dyn System, plan: Plan) -> Asked {
    let model = Model::parse("test", MODEL).unwrap();
    Asked {
        model,
        system,
        plan,
        gate: Gate::NoDrop,
        gpus_per_node: 3,
        iterations: 5,
        seed: 3,
        trace: None,
        checkpoint: None,
        timeout: 60.0,
        gradients: Gradients::Single,
    }
}

/// A run, as a test asks for it.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) model: Model,
    pub(crate) system: &'static dyn System,
    pub(crate) plan: Plan,
    pub(crate) gate: Gate,
    pub(crate) gpus_per_node: usize,
    pub(crate) iterations: usize,
    pub(crate) seed: u64,
    /// Drives the gate.
    pub(crate) trace: Option<&'static RoutingTrace>,
    pub(crate) checkpoint: Option<(PathBuf, usize)>,
    /// Seconds.
    pub(crate) timeout: f64,
    pub(crate) gradients: Gradients,
}

impl Asked {
    pub(crate) fn train(&self) -> Result<Trained, TrainError> {
        let mut iterations = Vec::new();
        let ranks = self.observe(&mut iterations)?;
        Ok(Trained {
            losses: iterations.iter().map(|iteration| iteration.loss.unwrap()).collect(),
            weights: join(ranks, &self.plan),
            shadowed: iterations.iter().map(|iteration| iteration.timing.copied).sum(),
            moved: iterations.iter().map(|iteration| iteration.moved as u64).sum(),
        })
    }

    /// Trains; the iterations that end are there also when the run does not end well.
    fn observe(&self, iterations: &mut Vec<Iteration>) -> Result<Vec<Weights>, TrainError> {
        let plan = self.plan;
        let mut job = job(&self.model, &plan, self.gate, self.gpus_per_node);
        if let Some(trace) = self.trace {
            let routing = JobRouting::new(&job, TraceUse::default(), trace, 0).unwrap();
            job.profile = (0..2).map(|iteration| routing.iteration(iteration)).collect();
        }
        let costs = CostModel::new(&job.cluster, job.gpus);
        let samples = Language::new(self.model.vocabulary.unwrap(), self.model.blocks[0].tokens, 7).unwrap();
        let replay = self.trace.map(|trace| JobRouting::new(&job, TraceUse::default(), trace, 0).unwrap());
        let setup = Setup {
            job: &job,
            plan,
            system: self.system,
            costs: &costs,
            // Gradients that are nothing but rounding must not become whole steps.
            training: Training { learning_rate: 1e-2, epsilon: 1e-4, gradients: self.gradients, ..Training::default() },
            samples: &samples,
            seed: self.seed,
            iterations: self.iterations,
            replay: replay.as_ref(),
            record: None,
            record_spans: false,
            checkpoint: self.checkpoint.clone(),
            kind: Kind::Float,
            gpt: setup::gpt(&job, &plan).unwrap(),
        };
        let mut sink = |number: usize, of: Vec<_>| {
            assert_eq!(number, iterations.len());
            iterations.push(world::iteration(&setup, &of));
        };
        let timeout = Duration::from_secs_f64(self.timeout);
        let threads = Threads { device: Device::Cpu, virtual_clock: None, timeout };
        world::run(&setup, threads, &mut sink, |rank| rank.weights().unwrap())
    }
}

/// A rank's weights by name, and how they are cut.
type Weights = Vec<(String, Tensor, Option<Cut>)>;

/// Whole parameters by name, from every rank's parts.
fn join(ranks: Vec<Weights>, plan: &Plan) -> BTreeMap<String, Vec<f32>> {
    let mut parts: BTreeMap<String, (Option<Cut>, BTreeMap<usize, Tensor>)> = BTreeMap::new();
    for (rank, weights) in ranks.into_iter().enumerate() {
        for (name, tensor, cut) in weights {
            let slot = if cut.is_some() { rank % plan.tp } else { 0 };
            let of_name = parts.entry(name.clone()).or_insert((cut, BTreeMap::new()));
            if let Some(other) = of_name.1.insert(slot, tensor.shallow_clone()) {
                assert!(tensor.equal(&other), "{name}: ranks that hold the same differ");
            }
        }
    }
    let whole = |(cut, parts): (Option<Cut>, BTreeMap<usize, Tensor>)| match cut {
        None => parts.into_values().next().unwrap(),
        Some(Cut { dim, pieces }) => {
            let pieces: Vec<Tensor> = (0..pieces)
                .map(|piece| {
                    let of: Vec<Tensor> =
                        parts.values().map(|part| part.chunk(pieces, dim).remove(piece as usize)).collect();
                    Tensor::cat(&of, dim)
                })
                .collect();
            Tensor::cat(&pieces, dim)
        }
    };
    let flat = |tensor: Tensor| Vec::try_from(tensor.reshape([-1])).unwrap();
    parts.into_iter().map(|(name, of)| (name, flat(whole(of)))).collect()
}

/// Trained on one rank, without anything that a system could decide: what all others must end with.
static REFERENCE: LazyLock<Trained> =
    LazyLock::new(|| train(&systems::zoo::expert_only::ExpertOnly, plan([1, 1, 1, 1, 1]), Gate::NoDrop));

/// The largest relative difference of losses and of weights, `|a - b| / |b|` per parameter.
pub(crate) fn difference(found: &Trained, expected: &Trained) -> f64 {
    let mut largest = 0.0f64;
    assert_eq!(found.losses.len(), expected.losses.len());
    for (found, expected) in found.losses.iter().zip(&expected.losses) {
        largest = largest.max((found / expected - 1.0).abs());
    }
    assert!(found.weights.keys().eq(expected.weights.keys()), "{:?}", found.weights.keys());
    for (name, expected) in &expected.weights {
        let found = &found.weights[name];
        assert_eq!(found.len(), expected.len(), "{name}");
        let apart = norm(found.iter().zip(expected).map(|(found, expected)| found - expected));
        let relative = apart / norm(expected.iter().copied()).max(1e-3);
        assert!(relative.is_finite(), "{name}");
        largest = largest.max(relative);
    }
    largest
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

fn check(system: &'static dyn System, degrees: [usize; 5]) -> Trained {
    let found = train(system, plan(degrees), Gate::NoDrop);
    let apart = difference(&found, &REFERENCE);
    assert!(apart < 1e-4, "{} {degrees:?}: {apart:e}", system.name());
    found
}

#[test]
fn training_learns_something() {
    let trained = &*REFERENCE;
    let entropy = Language::new(64, 16, 7).unwrap().entropy().unwrap();
    assert!(trained.losses[0] > entropy.unigram && trained.losses[4] < trained.losses[0], "{:?}", trained.losses);
}

#[test]
fn expert_parallelism_trains_the_same_model() {
    check(&systems::zoo::expert_only::ExpertOnly, [1, 4, 1, 4, 1]);
    check(&systems::zoo::expert_only::ExpertOnly, [1, 4, 1, 2, 2]);
}

/// ZeRO stage 3: dense state in parts over `dp`, gates over the stage, experts over `expert_dp`.
#[test]
fn fully_sharded_data_parallelism_trains_the_same_model() {
    use systems::zoo::{expert_only::ExpertOnly, fsdp_ep};
    let systems: [(&'static dyn System, [usize; 5]); 7] = [
        (&fsdp_ep::FSDP_EP, [1, 4, 1, 4, 1]),
        (&fsdp_ep::FSDP_EP, [1, 4, 1, 2, 2]),
        (&fsdp_ep::FSDP_EP, [1, 8, 1, 1, 8]),
        (&fsdp_ep::QUEUED, [1, 4, 1, 2, 2]),
        (&ExpertOnly, [2, 4, 1, 2, 2]),
        (&ExpertOnly, [1, 4, 2, 4, 2]),
        (&ExpertOnly, [4, 2, 1, 1, 2]),
    ];
    for (system, degrees) in systems {
        for recompute in [Recompute::None, Recompute::Full] {
            let plan = Plan { zero: Zero::Weights, recompute, ..plan(degrees) };
            let apart = difference(&train(system, plan, Gate::NoDrop), &REFERENCE);
            assert!(apart < 1e-4, "{} {plan}: {apart:e}", system.name());
        }
    }
}

#[test]
fn a_pipeline_trains_the_same_model() {
    check(&systems::zoo::expert_only::ExpertOnly, [2, 1, 1, 1, 1]);
    check(&systems::zoo::expert_only::ExpertOnly, [4, 2, 1, 2, 1]);
}

/// Half precision keeps eight bits: a sum of gradients is off by up to a 256th, and so are losses at the most, whoever sums what.
#[test]
fn gradients_in_half_precision_train_nearly_the_same_model() {
    use systems::zoo::{eplb, expert_only, fastermoe, fsdp_ep, laer, quota, symi};
    let systems: [(&'static dyn System, [usize; 5]); 7] = [
        (&expert_only::ExpertOnly, [1, 1, 1, 1, 1]),
        (&expert_only::ExpertOnly, [2, 2, 2, 2, 2]),
        (&fastermoe::GROUPS_OF_FOUR, [1, 8, 1, 8, 1]),
        (&eplb::Eplb, [1, 4, 1, 2, 2]),
        (&quota::ULTRAEP, [1, 4, 1, 4, 1]),
        (&laer::Laer, [1, 4, 1, 4, 1]),
        (&symi::Symi, [1, 4, 1, 4, 1]),
    ];
    let sharded = Plan { zero: Zero::Weights, ..plan([1, 4, 1, 2, 2]) };
    let plans = systems.into_iter().map(|(system, degrees)| (system, plan(degrees)));
    for (system, plan) in plans.chain([(&fsdp_ep::FSDP_EP as &'static dyn System, sharded)]) {
        let found = Asked { gradients: Gradients::Half, ..asked(system, plan) }.train().unwrap();
        let apart = found.losses.iter().zip(&REFERENCE.losses).map(|(found, expected)| (found / expected - 1.0).abs());
        let apart = apart.fold(0.0, f64::max);
        assert!(apart < 1.0 / 256.0, "{} {plan}: {apart:e}", system.name());
        assert!(difference(&found, &REFERENCE) > 1e-5, "{}: nothing is rounded", system.name());
    }
}

#[test]
fn tensor_parallelism_trains_the_same_model() {
    check(&systems::zoo::expert_only::ExpertOnly, [1, 1, 2, 2, 1]);
}

#[test]
fn all_degrees_together_train_the_same_model() {
    check(&systems::zoo::expert_only::ExpertOnly, [2, 2, 2, 2, 2]);
}

#[test]
fn shadowing_and_the_smart_schedule_train_the_same_model() {
    let schedule = check(&systems::zoo::fastermoe::UNSHADOWED, [1, 8, 1, 8, 1]);
    assert_eq!(schedule.shadowed, 0);
    let all = check(&systems::zoo::fastermoe::GROUPS_OF_FOUR, [1, 8, 1, 8, 1]);
    assert!(all.shadowed > 5, "{}", all.shadowed);
    check(&systems::zoo::fastermoe::UNPIPELINED, [1, 4, 1, 4, 1]);
}

#[test]
fn padding_trains_the_same_model() {
    check(&systems::zoo::deepspeed::DEEPSPEED, [1, 4, 1, 4, 1]);
    // Keeps the inputs of blocks alone and runs them again.
    check(&systems::zoo::deepspeed::ARTIFACT, [1, 4, 1, 4, 1]);
    check(&tutel::TUTEL, [1, 4, 1, 4, 1]);
    check(&IN_STEPS, [1, 4, 1, 4, 1]);
}

/// Two ranks share each expert: Tutel's programs one by one, whatever is cheapest.
#[test]
fn experts_in_parts_train_the_same_model() {
    let [cut, whole, moved] = &IN_PARTS;
    for system in [cut, whole, moved] {
        check(system, [1, 4, 1, 2, 2]);
        check(system, [2, 4, 1, 2, 2]);
    }
    check(cut, [1, 8, 1, 2, 4]);
    check(whole, [1, 2, 2, 2, 2]);
    check(&tutel::SHARDED, [1, 4, 1, 2, 2]);
    check_resume(asked(cut, plan([1, 4, 1, 2, 2])));
}

/// The slots of a stage's layers have memory for the restored weights of two: what the passes of others need is not in it.
#[test]
fn experts_of_many_layers_are_restored_in_the_memory_of_two() {
    use systems::zoo::{expert_only::ExpertOnly, laer::Laer};
    let model = Model::parse("test", &MODEL.replace("moe_every = 2", "moe_every = 1")).unwrap();
    let of = |system, degrees| Asked { model: model.clone(), ..asked(system, plan(degrees)) }.train().unwrap();
    let reference = of(&ExpertOnly, [1, 1, 1, 1, 1]);
    let [cut, whole, moved] = &IN_PARTS;
    let systems: [&'static dyn System; 4] = [cut, whole, moved, &Laer];
    for (number, system) in systems.into_iter().enumerate() {
        let apart = difference(&of(system, [1, 4, 1, 2, 2]), &reference);
        assert!(apart < 1e-4, "{} {number}: {apart:e}", system.name());
    }
}

/// Tutel's experts in parts, under one of its programs.
struct InParts(fn(&LayerProgram) -> bool);

static IN_PARTS: [InParts; 3] = [
    InParts(|program| program.split == Split::Parts && program.steps > 1),
    InParts(|program| program.split == Split::BySource && program.steps > 1),
    InParts(|program| !program.shadowed.is_empty()),
];

impl System for InParts {
    fn about(&self) -> About {
        About { name: "in-parts", title: "In parts", summary: "One of Tutel's programs for experts in parts" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        Box::new(InPartsPolicy { tutel: tutel::SHARDED.policy(job, plan), wanted: self.0 })
    }
}

struct InPartsPolicy {
    tutel: Box<dyn Policy>,
    wanted: fn(&LayerProgram) -> bool,
}

impl Policy for InPartsPolicy {
    fn first_placement(&self, layer: usize, moe: &Moe, ranks: usize) -> Placement {
        self.tutel.first_placement(layer, moe, ranks)
    }

    fn joins_replicas(&self) -> bool {
        self.tutel.joins_replicas()
    }

    fn storage(&self) -> Storage {
        self.tutel.storage()
    }

    fn program(&self, _layer: usize, counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        let programs = tutel::in_parts(Layout::Padded { rows: counts.largest() }, true, counts);
        programs.into_iter().find(self.wanted).expect("Tutel has one")
    }
}

#[test]
fn weights_that_are_gathered_at_once_train_the_same_model() {
    let done = check(&GATHERED, [1, 4, 1, 4, 1]);
    assert!(done.shadowed > 0);
}

/// Runs one program, whatever the cluster.
struct Fixed(fn(&RoutingCounts) -> LayerProgram);

static IN_STEPS: Fixed = Fixed(in_steps);
static GATHERED: Fixed = Fixed(gathered);

impl System for Fixed {
    fn about(&self) -> About {
        About { name: "fixed", title: "Fixed", summary: "Runs one program" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Self(self.0))
    }
}

impl Policy for Fixed {
    fn program(&self, _layer: usize, counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        (self.0)(counts)
    }
}

/// Padded rows in four steps, as Tutel cuts them where that is fastest.
fn in_steps(counts: &RoutingCounts) -> LayerProgram {
    LayerProgram::pipelined(4, Layout::Padded { rows: counts.largest() }, Exchange::Whole, true)
}

/// All experts' weights to all ranks in one collective, and their gradients back in another, as in Tutel's `r = 0`.
fn gathered(counts: &RoutingCounts) -> LayerProgram {
    let mut program = in_steps(counts);
    let (mut forward, mut backward) = (Pass::default(), Pass::default());
    forward.gate(true);
    let there = forward.start(Op::GatherShadows);
    program.shadowed = (0..counts.experts()).collect();
    for &expert in &program.shadowed {
        forward.then(Op::Shadow { expert }, there);
    }
    let last = program.shadowed.iter().map(|&expert| backward.start(Op::Shadow { expert })).last().unwrap();
    backward.then(Op::ScatterGrads, last);
    backward.start(Op::Gate);
    LayerProgram { steps: 1, forward: forward.finish(), backward: backward.finish(), ..program }
}

#[test]
fn online_placement_trains_the_same_model() {
    let trained = check(&systems::zoo::smartmoe::SMARTMOE, [1, 8, 1, 4, 2]);
    assert!(trained.moved > 0);
}

/// Moves every expert by one slot before every iteration.
struct Rotating {
    bytes: f64,
}

static ROTATING: Rotating = Rotating { bytes: systems::plan::memory::MIGRATED_BYTES_PER_PARAMETER };
static WEIGHTS_ONLY: Rotating = Rotating { bytes: 2.0 };

impl System for Rotating {
    fn about(&self) -> About {
        About { name: "rotating", title: "Rotating", summary: "Moves every expert before every iteration" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Self { bytes: self.bytes })
    }
}

impl Policy for Rotating {
    fn placement_due(&self, _iteration: usize) -> bool {
        true
    }

    fn place(&mut self, iteration: usize, _layer: usize, _past: &LoadHistory, now: &Placement) -> Decision {
        let experts = now.experts();
        // Three slots on: with two a rank, every expert changes rank, and some a slot.
        let slots = (0..experts).map(|expert| (expert + 3 * (iteration + 1)) % experts).collect();
        Decision::Move(Placement::new(slots, now.ranks()).unwrap())
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::expert_parallel()
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        self.bytes
    }
}

#[test]
fn a_migration_at_every_step_trains_the_same_model() {
    let trained = check(&ROTATING, [1, 4, 1, 4, 1]);
    assert!(trained.moved >= 5 * 2 * 6, "{}", trained.moved);
    check(&ROTATING, [2, 4, 1, 2, 2]);
}

/// As the artifact migrates: what the optimizer knows of an expert stays behind.
#[test]
fn a_migration_without_optimizer_state_does_not() {
    let trained = train(&WEIGHTS_ONLY, plan([1, 4, 1, 4, 1]), Gate::NoDrop);
    let apart = difference(&trained, &REFERENCE);
    assert!(apart > 1e-2, "{apart:e}");
}

/// Six iterations at once, and three and three with a checkpoint between them: the same bits.
pub(crate) fn check_resume(asked: Asked) {
    let folder = Folder::new();
    let asked = Asked { iterations: 6, ..asked };
    let whole = asked.train().unwrap();
    let kept = Asked { checkpoint: Some((folder.join("kept"), 2)), ..asked.clone() };
    let begun = Asked { iterations: 3, ..kept.clone() }.train().unwrap();
    assert_eq!(begun.losses, whole.losses[..3]);
    let left: Vec<String> = folder.files().into_iter().filter(|name| name.ends_with("checkpoint.json")).collect();
    assert_eq!(left, ["kept/iteration-3/checkpoint.json"], "the last alone is kept");
    // What a run leaves that was cut off while it wrote.
    folder.write("kept/iteration-5/rank-0.safetensors", "half");
    std::fs::write(folder.join("kept/reports.jsonl"), folder.text("kept/reports.jsonl") + "[{\"st").unwrap();
    let resumed = kept.train().unwrap();
    assert_eq!(resumed.losses, whole.losses);
    assert_eq!((resumed.moved, resumed.shadowed), (whole.moved, whole.shadowed));
    for (name, expected) in &whole.weights {
        assert_eq!(resumed.weights[name], *expected, "{name}");
    }
    // Nothing is left to do.
    assert_eq!(kept.train().unwrap().losses, whole.losses);
}

#[test]
fn a_checkpoint_resumes_to_the_same_bits() {
    check_resume(asked(&ROTATING, plan([2, 2, 1, 2, 1])));
    check_resume(asked(&systems::zoo::smartmoe::SMARTMOE, plan([2, 4, 1, 2, 2])));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = Folder::new();
    let asked = Asked {
        iterations: 2,
        checkpoint: Some((folder.join("kept"), 1)),
        ..asked(&systems::zoo::expert_only::ExpertOnly, plan([1, 2, 1, 2, 1]))
    };
    asked.train().unwrap();
    let refused = |asked: Asked, expected: &str| {
        let error = asked.train().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(Asked { seed: 4, ..asked.clone() }, "seed = 3, and this run has seed = 4");
    refused(Asked { plan: plan([1, 2, 1, 1, 2]), ..asked.clone() }, "a checkpoint with plan = ");
    refused(Asked { system: &tutel::TUTEL, ..asked.clone() }, "system = expert-only");
    refused(Asked { iterations: 1, ..asked.clone() }, "a checkpoint after 2 iterations, and this run has 1");
    std::fs::remove_file(folder.join("kept/iteration-2/rank-1.safetensors")).unwrap();
    refused(Asked { iterations: 3, ..asked }, "rank-1.safetensors");
}

/// A file that says something else than its mark, or than the run's slots, is refused before anything follows from it.
#[test]
fn a_damaged_checkpoint_is_refused() {
    let folder = Folder::new();
    let asked = Asked {
        iterations: 2,
        checkpoint: Some((folder.join("kept"), 1)),
        ..asked(&systems::zoo::smartmoe::SMARTMOE, plan([1, 2, 1, 2, 1]))
    };
    asked.train().unwrap();
    let path = folder.join("kept/iteration-2/rank-1.safetensors");
    let whole = Tensor::read_safetensors(&path).unwrap();
    let refused = |name: &str, numbers: &[i64], expected: &str| {
        let damaged = |(of, tensor): &(String, Tensor)| {
            let tensor = if of == name { Tensor::from_slice(numbers) } else { tensor.shallow_clone() };
            (of.clone(), tensor)
        };
        let damaged: Vec<(String, Tensor)> = whole.iter().map(damaged).collect();
        Tensor::write_safetensors(&damaged, &path).unwrap();
        let error = Asked { iterations: 3, ..asked.clone() }.train().unwrap_err().to_string();
        assert!(error.contains("rank-1.safetensors") && error.contains(expected), "{error}");
    };
    refused("rank, iterations", &[0, 2], "`rank, iterations` is [0, 2]: expected [1, 2]");
    refused("rank, iterations", &[1, 1], "`rank, iterations` is [1, 1]: expected [1, 2]");
    refused("iterations gathered", &[-1], "`iterations gathered` is -1: expected 0 to 2");
    refused("iterations gathered", &[3], "`iterations gathered` is 3: expected 0 to 2");
    refused("iterations gathered", &[i64::MAX], "expected 0 to 2");
    refused("iterations gathered", &[1, 1], "`iterations gathered` has 2 numbers: expected 1");
    let slots = [0, 1, 2, 3, 4, 5, 6, 7, -1, -1];
    refused("placement of layer 0", &slots, "`placement of layer 0` has 10 numbers: expected 8");
    refused("loads of layer 1", &[1], "`loads of layer 1` has 1 numbers");
}

/// What one of the ranks does in its second iteration.
struct Faulty {
    fault: fn(),
    policies: AtomicUsize,
}

impl System for Faulty {
    fn about(&self) -> About {
        About { name: "faulty", title: "Faulty", summary: "One of its ranks goes wrong" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        let goes_wrong = self.policies.fetch_add(1, Ordering::Relaxed) == 1;
        Box::new(OneFaulty { fault: goes_wrong.then_some(self.fault) })
    }
}

struct OneFaulty {
    fault: Option<fn()>,
}

impl Policy for OneFaulty {
    fn placement_due(&self, _iteration: usize) -> bool {
        true
    }

    fn place(&mut self, iteration: usize, _layer: usize, _past: &LoadHistory, _now: &Placement) -> Decision {
        if let (2, Some(fault)) = (iteration, self.fault) {
            fault();
        }
        Decision::Stay
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::expert_parallel()
    }
}

/// Four ranks, one of which goes wrong in the third iteration: how the run ends, and how its record does.
fn check_failure(system: &'static Faulty, timeout: f64, status: Status, fragments: &[&str]) {
    let asked = Asked { timeout, ..asked(system, plan([2, 2, 1, 2, 1])) };
    let started = Instant::now();
    let mut iterations = Vec::new();
    let error = asked.observe(&mut iterations).map(drop).unwrap_err();
    // A fault ends the others at once: their timeout has no part in it, unless it is what is tested.
    let took = started.elapsed().as_secs_f64();
    assert!(status == Status::Timeout || took < timeout, "ended by the timeout alone");
    assert_eq!(iterations.len(), 2, "{error}");
    let text = error.to_string();
    for fragment in fragments {
        assert!(text.contains(fragment), "{text}");
    }
    assert!(!text.contains('\n') && !text.contains("Exception raised"), "{text}");
    assert_eq!(runs::engines::train::status(&error), status, "{text}");
}

#[test]
fn a_rank_that_panics_ends_the_run() {
    static PANICS: Faulty = Faulty { fault: || panic!("on purpose"), policies: AtomicUsize::new(0) };
    let fragments = [" of ", "died: panicked: on purpose (", "tests/training.rs:"];
    check_failure(&PANICS, 60.0, Status::Crash, &fragments);
}

#[test]
fn a_rank_that_does_not_arrive_ends_the_run() {
    static SLEEPS: Faulty =
        Faulty { fault: || std::thread::sleep(Duration::from_secs(6)), policies: AtomicUsize::new(0) };
    // A busy machine may keep a rank waiting for a while; not for half of that sleep.
    check_failure(&SLEEPS, 3.0, Status::Timeout, &[" of ", "did not arrive within 3s"]);
}

#[test]
fn what_libtorch_says_is_told_in_a_line() {
    static MISUSES: Faulty = Faulty {
        fault: || {
            drop(
                Tensor::zeros([2, 3], (Kind::Float, Device::Cpu))
                    .matmul(&Tensor::zeros([2], (Kind::Float, Device::Cpu))),
            )
        },
        policies: AtomicUsize::new(0),
    };
    check_failure(&MISUSES, 60.0, Status::Crash, &["died: panicked: ", "size mismatch"]);
}

/// Pads every pair and exchanges in two calls.
struct TwoCalls;

impl System for TwoCalls {
    fn about(&self) -> About {
        About { name: "two-calls", title: "Two calls", summary: "Hierarchical exchanges whatever they take" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Self)
    }
}

impl Policy for TwoCalls {
    fn program(&self, _layer: usize, counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        let layout = Layout::Padded { rows: counts.largest() };
        LayerProgram::padded(layout, Exchange::Hierarchical, true)
    }
}

/// Eight ranks on nodes of three: the last node has two.
#[test]
fn a_hierarchical_exchange_trains_the_same_model() {
    check(&TwoCalls, [1, 8, 1, 8, 1]);
    check(&TwoCalls, [1, 8, 1, 4, 2]);
}

/// A model of today under `cases` of system and degrees, with whole and with sharded state, against one rank.
fn check_model(model: Model, cases: &[(&'static dyn System, [usize; 5])]) {
    let train = |system, plan| Asked { model: model.clone(), ..asked(system, plan) }.train().unwrap();
    let expected = train(&systems::zoo::expert_only::ExpertOnly, plan([1, 1, 1, 1, 1]));
    assert!(expected.losses[4] < expected.losses[0], "{}: {:?}", model.name, expected.losses);
    let parameters: usize = expected.weights.values().map(Vec::len).sum();
    assert_eq!(parameters as u64, model.parameters(), "{}", model.name);
    for (&(system, degrees), zero) in cases.iter().flat_map(|case| [(case, Zero::Off), (case, Zero::Weights)]) {
        let plan = Plan { zero, ..plan(degrees) };
        let apart = difference(&train(system, plan), &expected);
        assert!(apart < 1e-4, "{}, {} {plan}: {apart:e}", model.name, system.name());
    }
}

const EXPERT_PARALLEL: [(&dyn System, [usize; 5]); 4] = [
    (&systems::zoo::expert_only::ExpertOnly, [1, 4, 1, 2, 2]),
    (&systems::zoo::expert_only::ExpertOnly, [2, 2, 1, 2, 1]),
    (&systems::zoo::fastermoe::FASTERMOE, [1, 8, 1, 8, 1]),
    (&ROTATING, [1, 4, 1, 4, 1]),
];

/// The balance loss of a tensor-parallel rank is that of its own tokens: another loss than that of all.
const TENSOR_PARALLEL: [(&dyn System, [usize; 5]); 2] = [
    (&systems::zoo::expert_only::ExpertOnly, [1, 1, 2, 2, 1]),
    (&systems::zoo::expert_only::ExpertOnly, [2, 2, 2, 2, 2]),
];

fn check_twin(name: &str) {
    let mut model = Model::named("test", name).unwrap();
    check_model(model.clone(), &EXPERT_PARALLEL);
    model.router.auxiliary_loss = 0.0;
    check_model(model, &TENSOR_PARALLEL);
}

/// Grouped-query attention, rotary positions, RMSNorm, gated experts, an untied head.
#[test]
fn a_small_mixtral_trains_the_same_under_every_plan() {
    check_twin("mixtral-micro");
}

/// Normalised queries and keys besides, and four choices a token.
#[test]
fn a_small_qwen3_trains_the_same_under_every_plan() {
    check_twin("qwen3-micro");
}

/// Latent attention, a dense first layer, a shared expert, group-limited sigmoid gates that loads balance.
#[test]
fn a_small_deepseek_trains_the_same_under_every_plan() {
    check_twin("deepseek-micro");
}

/// What the three above have not: windows, biases of queries, a gate on the shared expert, weights that are not renormalised, a
/// part of each head turned; then queries and keys normalised over all heads, and LayerNorm without biases.
#[test]
fn the_other_kinds_train_the_same_under_every_plan() {
    let text = r#"
        name = "kinds"
        source = "tests"
        [gpt]
        layers = 2
        hidden = 32
        heads = 4
        kv_heads = 2
        head_dim = 12
        seq_len = 16
        vocabulary = 64
        experts = 4
        top_k = 2
        expert_inner = 20
        expert_gated = true
        activation = "silu"
        bias = false
        qkv_bias = true
        norm = "rms"
        positions = "rotary"
        rope_theta = 1e4
        rope_share = 0.5
        window = 5
        tied = false
        shared_experts = 1
        shared_gate = true
        [gpt.router]
        renormalise = false
        bias = "none"
    "#;
    check_model(Model::parse("kinds", text).unwrap(), &[EXPERT_PARALLEL[0], EXPERT_PARALLEL[1], TENSOR_PARALLEL[0]]);
    let other = text.replace("norm = \"rms\"", "norm = \"layer-no-bias\"\nqk_norm = \"full\"");
    check_model(Model::parse("kinds", &other).unwrap(), &EXPERT_PARALLEL[0..2]);
}
