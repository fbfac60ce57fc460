//! What a system decides changes the time of training, never training itself: a few optimizer steps under every plan and
//! policy end with the same losses and weights as on one rank.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use harness::train::data::{Language, Samples};
use harness::train::dense::Cut;
use harness::train::setup::{self, Setup};
use harness::train::world::{self, Threads};
use systems::program::{Exchange, Layout};
use systems::{
    Candidate, Card, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    System,
};
use tch::{Device, Kind, Tensor};
use workloads::{Cluster, Gate, Model, Training};

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
fn plan([pp, dp, tp, ep, expert_dp]: [usize; 5]) -> Plan {
    Plan { pp, dp, tp, ep, expert_dp, micro_batch: 1, placement_every: 1 }
}

fn job(plan: &Plan, gate: Gate) -> Job {
    let mut cluster = Cluster::named("test", "inky").unwrap();
    // Slow products and fast links: FasterMoE shadows as soon as one expert has more than the others.
    cluster.gpu.gemm_rate.value = 1e9;
    cluster.gpus_per_node = 3;
    Job {
        model: Model::parse("test", MODEL).unwrap(),
        cluster,
        gpus: plan.pp * plan.dp * plan.tp,
        gate,
        gate_statistics: Default::default(),
        global_batch: 8,
        micro_batch: Some(1),
        profile: Vec::new(),
    }
}

#[derive(Debug)]
struct Trained {
    losses: Vec<f64>,
    weights: BTreeMap<String, Tensor>,
    shadowed: u64,
    moved: u64,
}

fn train(system: &'static dyn System, plan: Plan, gate: Gate) -> Trained {
    let job = job(&plan, gate);
    let costs = CostModel::new(&job.cluster);
    let samples = Language::new(64, 16, 7).unwrap();
    let gpt = setup::gpt(&job, &plan).unwrap();
    let setup = Setup {
        job: &job,
        plan,
        system,
        costs: &costs,
        // Gradients that are nothing but rounding must not become whole steps.
        training: Training { learning_rate: 1e-2, epsilon: 1e-4, ..Training::default() },
        samples: &samples,
        seed: 3,
        iterations: 5,
        replay: None,
        record_choices: false,
        record_spans: false,
        checkpoint: None,
        kind: Kind::Float,
        gpt,
    };
    let reports = Mutex::new(Vec::new());
    let mut sink = |_: usize, of: Vec<_>| {
        reports.lock().unwrap().push(world::iteration(&setup, &of));
        Ok(())
    };
    let threads = Threads { device: Device::Cpu, virtual_clock: false, timeout: Duration::from_secs(60) };
    let ranks = world::run(&setup, threads, &mut sink, |rank| rank.weights()).unwrap();
    let reports = reports.into_inner().unwrap();
    Trained {
        losses: reports.iter().map(|iteration| iteration.loss.unwrap()).collect(),
        weights: join(ranks, &plan),
        shadowed: reports.iter().map(|iteration| iteration.timing.shadowed).sum(),
        moved: reports.iter().map(|iteration| iteration.moved as u64).sum(),
    }
}

/// Whole parameters by name, from every rank's parts.
fn join(ranks: Vec<Vec<(String, Tensor, Option<Cut>)>>, plan: &Plan) -> BTreeMap<String, Tensor> {
    let mut parts: BTreeMap<String, (Option<Cut>, BTreeMap<usize, Tensor>)> = BTreeMap::new();
    for (rank, weights) in ranks.into_iter().enumerate() {
        for (name, tensor, cut) in weights {
            let slot = if cut.is_some() { rank % plan.tp } else { 0 };
            parts.entry(name).or_insert((cut, BTreeMap::new())).1.insert(slot, tensor);
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
    parts.into_iter().map(|(name, of)| (name, whole(of))).collect()
}

fn one_rank() -> Trained {
    train(&systems::expert_only::ExpertOnly, plan([1, 1, 1, 1, 1]), Gate::NoDrop)
}

/// The largest relative difference of losses and of weights, `|a - b| / |b|` per parameter.
fn difference(found: &Trained, expected: &Trained) -> f64 {
    let mut largest = 0.0f64;
    assert_eq!(found.losses.len(), expected.losses.len());
    for (found, expected) in found.losses.iter().zip(&expected.losses) {
        largest = largest.max((found / expected - 1.0).abs());
    }
    assert!(found.weights.keys().eq(expected.weights.keys()), "{:?}", found.weights.keys());
    for (name, expected) in &expected.weights {
        let norm = |tensor: &Tensor| f64::try_from(tensor.norm()).unwrap();
        let relative = norm(&(&found.weights[name] - expected)) / norm(expected).max(1e-3);
        assert!(relative.is_finite(), "{name}");
        largest = largest.max(relative);
    }
    largest
}

fn check(system: &'static dyn System, degrees: [usize; 5]) -> Trained {
    let found = train(system, plan(degrees), Gate::NoDrop);
    let apart = difference(&found, &one_rank());
    assert!(apart < 1e-4, "{} {degrees:?}: {apart:e}", system.name());
    found
}

#[test]
fn training_learns_something() {
    let trained = one_rank();
    let entropy = Language::new(64, 16, 7).unwrap().entropy().unwrap();
    assert!(trained.losses[0] > entropy.unigram && trained.losses[4] < trained.losses[0], "{:?}", trained.losses);
}

#[test]
fn expert_parallelism_trains_the_same_model() {
    check(&systems::expert_only::ExpertOnly, [1, 4, 1, 4, 1]);
    check(&systems::expert_only::ExpertOnly, [1, 4, 1, 2, 2]);
}

#[test]
fn a_pipeline_trains_the_same_model() {
    check(&systems::expert_only::ExpertOnly, [2, 1, 1, 1, 1]);
    check(&systems::expert_only::ExpertOnly, [4, 2, 1, 2, 1]);
}

#[test]
fn tensor_parallelism_trains_the_same_model() {
    check(&systems::expert_only::ExpertOnly, [1, 1, 2, 2, 1]);
}

#[test]
fn all_degrees_together_train_the_same_model() {
    check(&systems::expert_only::ExpertOnly, [2, 2, 2, 2, 2]);
}

#[test]
fn shadowing_and_the_smart_schedule_train_the_same_model() {
    let schedule = check(&systems::fastermoe::UNSHADOWED, [1, 8, 1, 8, 1]);
    assert_eq!(schedule.shadowed, 0);
    let all = check(&systems::fastermoe::FASTERMOE, [1, 8, 1, 8, 1]);
    assert!(all.shadowed > 5, "{}", all.shadowed);
    check(&systems::fastermoe::UNPIPELINED, [1, 4, 1, 4, 1]);
}

#[test]
fn padding_trains_the_same_model() {
    check(&systems::deepspeed::DEEPSPEED, [1, 4, 1, 4, 1]);
    check(&systems::tutel::Tutel, [1, 4, 1, 4, 1]);
}

#[test]
fn online_placement_trains_the_same_model() {
    let trained = check(&systems::smartmoe::SMARTMOE, [1, 8, 1, 4, 2]);
    assert!(trained.moved > 0);
}

/// Moves every expert by one slot before every iteration.
struct Rotating {
    bytes: f64,
}

static ROTATING: Rotating = Rotating { bytes: systems::memory::MIGRATED_BYTES_PER_PARAMETER };
static WEIGHTS_ONLY: Rotating = Rotating { bytes: 2.0 };

impl System for Rotating {
    fn card(&self) -> Card {
        Card { name: "rotating", title: "Rotating", about: "Moves every expert before every iteration" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Self { bytes: self.bytes })
    }
}

impl Policy for Rotating {
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
    let apart = difference(&trained, &one_rank());
    assert!(apart > 1e-2, "{apart:e}");
}

/// Pads every pair and exchanges in two calls.
struct TwoCalls;

impl System for TwoCalls {
    fn card(&self) -> Card {
        Card { name: "two-calls", title: "Two calls", about: "Hierarchical exchanges whatever they take" }
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
