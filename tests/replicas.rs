//! Training with copies of experts: whatever stands where, and whoever serves an entry, losses and weights are those of one rank,
//! while the hot expert, and so the copies, change in every iteration.

use std::sync::{Arc, LazyLock, Mutex};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use systems::iteration::run::{Failure, Run};
use systems::plan::search;
use systems::program::split::Split;
use systems::program::{Copied, Weights};
use systems::zoo::expert_only::ExpertOnly;
use systems::zoo::{cobalance, eplb, flexmoe, laer, microep, quota, smartmoe, symi};
use systems::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, PlanError, Policy,
    Recompute, RoutingCounts, Storage, System, Zero,
};
use trainer::TrainError;
use trainer::setup::SetupError;
use workloads::model::Moe;
use workloads::trace::{RoutingTrace, TraceShape};

use crate::support::{batch, cluster, job, model};
use crate::training::{Asked, Trained, asked, check_resume, difference, plan};

/// Iterations that a test trains at the most, and samples of each.
const ITERATIONS: u32 = 6;
const SAMPLES: usize = 8;
/// Of the test's model.
const LAYERS: usize = 2;
const EXPERTS: usize = 8;

/// What the gate of the test's model chooses: one expert for every token, and most often its neighbour, on the same rank under
/// every plan, as the second; others in every iteration and layer.
static ROTATING_HOT_SPOT: LazyLock<RoutingTrace> = LazyLock::new(|| {
    let (layers, experts, tokens) = (LAYERS, EXPERTS, 16);
    let shape = TraceShape { layers, micro_batches: 1, ranks: SAMPLES, experts, entries: 2 * tokens, top_k: 2 };
    let row = |hot: usize, sample: usize| {
        let mut row = vec![0; experts];
        (row[hot], row[hot + 1]) = (tokens, 9 + (sample % 3) as u32);
        for entry in 0..(tokens - row[hot + 1]) as usize {
            row[(hot + 2 + (entry + sample) % (experts - 2)) % experts] += 1;
        }
        row
    };
    let rows = |(iteration, layer): (usize, usize)| {
        (0..SAMPLES).flat_map(move |sample| row(2 * (iteration + layer) % experts, sample))
    };
    let all = (0..ITERATIONS as usize).flat_map(|iteration| (0..layers).map(move |layer| (iteration, layer)));
    RoutingTrace::new("rotating", shape, (1..=ITERATIONS).collect(), all.flat_map(rows).collect()).unwrap()
});

/// One rank under that trace: what all others must end with.
static REFERENCE: LazyLock<Trained> = LazyLock::new(|| driven(&ExpertOnly, [1, 1, 1, 1, 1]).train().unwrap());

/// A run whose gate the trace drives.
fn driven(system: &'static dyn System, degrees: [usize; 5]) -> Asked {
    Asked { trace: Some(&ROTATING_HOT_SPOT), ..asked(system, plan(degrees)) }
}

/// What is in the slots of a group, copies for one micro-batch included, and how entries are split between copies.
type Seen = (Vec<Option<usize>>, Split);

/// A system whose policies tell where experts were in every forward pass.
struct Watched {
    inner: &'static dyn System,
    /// `[policy][program]`.
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
}

struct WatchedPolicy {
    inner: Box<dyn Policy>,
    number: usize,
    seen: Arc<Mutex<Vec<Vec<Seen>>>>,
}

impl System for Watched {
    fn about(&self) -> About {
        self.inner.about()
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        self.inner.candidates(job, costs)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let mut seen = self.seen.lock().unwrap();
        seen.push(Vec::new());
        let number = seen.len() - 1;
        Box::new(WatchedPolicy { inner: self.inner.policy(job, plan), number, seen: Arc::clone(&self.seen) })
    }
}

impl Policy for WatchedPolicy {
    fn placement_due(&self, iteration: usize) -> bool {
        self.inner.placement_due(iteration)
    }

    /// By the loads of the last iteration alone: then experts move as often as the hot spot does.
    fn place(&mut self, iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let mut last = LoadHistory::default();
        last.push((0..LAYERS).flat_map(|layer| past.recent(layer, 1)).map(<[u64]>::to_vec).collect());
        self.inner.place(iteration, layer, &last, now)
    }

    fn first_placement(&self, layer: usize, moe: &Moe, ranks: usize) -> Placement {
        self.inner.first_placement(layer, moe, ranks)
    }

    fn joins_replicas(&self) -> bool {
        self.inner.joins_replicas()
    }

    fn storage(&self) -> Storage {
        self.inner.storage()
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let program = self.inner.program(layer, counts, placement);
        let mut slots = placement.experts_in_slots().to_vec();
        for copy in &program.copies {
            assert_eq!(slots[copy.slot], None, "a copy takes an empty slot");
            slots[copy.slot] = Some(copy.expert);
        }
        self.seen.lock().unwrap()[self.number].push((slots, program.split.clone()));
        program
    }

    fn recompute(&self, plan: &Plan) -> Recompute {
        self.inner.recompute(plan)
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        self.inner.migrated_bytes_per_parameter()
    }
}

/// What must be another in every iteration.
#[derive(Clone, Copy, PartialEq)]
enum Changes {
    /// Which experts have copies, of which there always are some, but where training begins.
    Copies,
    /// Where experts are, with copies or without.
    Places,
    /// How entries are split between copies that stay.
    Split,
    /// Nothing: experts move and are copied where that pays.
    Nothing,
}

/// In how many iterations some experts had copies, and how often experts were in other slots than in the iteration before.
#[derive(Clone, Copy, Default)]
struct Found {
    with_copies: usize,
    moves: usize,
}

fn check_all(system: &'static dyn System, changes: Changes) -> Found {
    DEGREES.into_iter().map(|degrees| check(system, degrees, changes)).fold(Found::default(), |all, found| Found {
        with_copies: all.with_copies + found.with_copies,
        moves: all.moves + found.moves,
    })
}

/// Trains under the trace, where experts must be as the system says.
fn check(system: &'static dyn System, degrees: [usize; 5], changes: Changes) -> Found {
    check_asked(driven(system, degrees), changes)
}

fn check_asked(asked: Asked, changes: Changes) -> Found {
    let watched = Watched { inner: asked.system, seen: Arc::default() };
    let seen = Arc::clone(&watched.seen);
    let name = format!("{} {}", asked.system.name(), asked.plan);
    let found = Asked { system: Box::leak(Box::new(watched)), ..asked }.train().unwrap();
    let apart = difference(&found, &REFERENCE);
    assert!(apart < 1e-4, "{name}: {apart:e}");
    let mut all = Found::default();
    for programs in seen.lock().unwrap().iter().filter(|programs| !programs.is_empty()) {
        let iterations: Vec<&[Seen]> = programs.chunks(programs.len() / found.losses.len()).collect();
        assert_eq!(iterations.len(), found.losses.len());
        let slots = |of: &[Seen]| of.iter().map(|(slots, _)| slots.clone()).collect::<Vec<_>>();
        let copied = |of: &&[Seen]| of.iter().any(|(slots, _)| slots.iter().flatten().count() > EXPERTS);
        for (number, pair) in iterations.windows(2).enumerate() {
            match changes {
                Changes::Nothing => continue,
                Changes::Split => assert_ne!(pair[0], pair[1], "{name}: iteration {number}"),
                _ => assert_ne!(slots(pair[0]), slots(pair[1]), "{name}: iteration {number}"),
            }
            assert!(changes == Changes::Places || copied(&pair[1]), "{name}: no copy in iteration {}", number + 1);
        }
        all.with_copies += iterations.iter().filter(|of| copied(of)).count();
        all.moves += iterations.windows(2).filter(|pair| slots(pair[0]) != slots(pair[1])).count();
    }
    all
}

/// The last: expert parallelism, its replicas, and a pipeline together.
const DEGREES: [[usize; 5]; 3] = [[1, 4, 1, 4, 1], [1, 4, 1, 2, 2], [2, 4, 1, 2, 2]];

#[test]
fn copies_from_history_train_the_same_model() {
    for degrees in DEGREES {
        check(&eplb::Eplb, degrees, Changes::Copies);
    }
    // On two ranks, no expert has more than the mean: FlexMoE exchanges them.
    let found = check_all(&flexmoe::FLEXMOE, Changes::Places);
    assert!(found.with_copies > 0, "FlexMoE copies nothing");
}

#[test]
fn copies_for_a_micro_batch_train_the_same_model() {
    for degrees in DEGREES {
        for system in [&quota::ULTRAEP, &quota::MOONEP, &quota::LEAST_LOADED] {
            let asked = driven(system, degrees);
            // Copies within a node are made where every set of two ranks is in one.
            let gpus_per_node = if asked.plan.ep == 2 { 4 } else { asked.gpus_per_node };
            check_asked(Asked { gpus_per_node, ..asked }, Changes::Copies);
        }
    }
}

#[test]
fn entries_split_between_standing_replicas_train_the_same_model() {
    for degrees in &DEGREES[1..] {
        check(&microep::MICROEP, *degrees, Changes::Split);
        check(&microep::ASYMMETRIC, *degrees, Changes::Split);
    }
}

#[test]
fn balancers_by_layer_train_the_same_model() {
    let found = check_all(&cobalance::CoBalance, Changes::Nothing);
    assert!(found.with_copies > 0, "CoBalance copies nothing");
    assert!(found.moves > 0, "CoBalance leaves everything where it is");
}

#[test]
fn experts_in_shards_train_the_same_model() {
    for degrees in DEGREES {
        check(&laer::Laer, degrees, Changes::Copies);
    }
    // In a node of one rank there are too few slots for a change.
    let mut with_copies = 0;
    for degrees in DEGREES {
        let asked = Asked { gpus_per_node: 4, ..driven(&flexmoe::ON_SHARDS, degrees) };
        with_copies += check_asked(asked, Changes::Places).with_copies;
        check(&flexmoe::ON_SHARDS, degrees, Changes::Nothing);
    }
    assert!(with_copies > 0, "FlexMoE copies nothing");
}

/// Replicas keep parts of slots, of experts that move, and of copies that stand or come for a micro-batch; or of dense state alone.
#[test]
fn experts_anywhere_train_the_same_model_fully_sharded() {
    for degrees in DEGREES.into_iter().chain([[2, 2, 2, 2, 2]]) {
        let plan = Plan { zero: Zero::Weights, ..plan(degrees) };
        let asked = |system| Asked { plan, ..driven(system, degrees) };
        for system in [&IN_SLOTS, &IN_SHARDS, &OPTIMIZER_IN_SHARDS] {
            check_asked(asked(system), Changes::Copies);
        }
        let found = check_asked(asked(&smartmoe::SMARTMOE), Changes::Nothing);
        assert!(found.moves > 0, "SmartMoE leaves everything where it is under {plan}");
        check_resume(asked(&IN_SLOTS));
    }
}

#[test]
fn optimizer_state_in_shards_trains_the_same_model() {
    for degrees in DEGREES {
        check(&symi::Symi, degrees, Changes::Copies);
    }
}

/// Experts in any slots, some in several, of one rank, too, and some slots empty; copies for a micro-batch in some of these, of
/// experts with standing copies, too; any quotas. Other ones in every iteration and micro-batch.
struct Shuffling(Storage);

static IN_SLOTS: Shuffling = Shuffling(Storage::Slots);
static IN_SHARDS: Shuffling = Shuffling(Storage::Shards);
static OPTIMIZER_IN_SHARDS: Shuffling = Shuffling(Storage::OptimizerShards);

impl System for Shuffling {
    fn about(&self) -> About {
        About { name: "shuffling", title: "Shuffling", summary: "Experts anywhere" }
    }

    fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
        Vec::new()
    }

    fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
        Box::new(Anywhere { storage: self.0, decisions: 0 })
    }
}

struct Anywhere {
    storage: Storage,
    /// What a checkpoint does not hold.
    decisions: u64,
}

impl Anywhere {
    /// Every expert somewhere, then any or none in every other slot.
    fn anywhere(ranks: usize, seed: u64) -> Placement {
        let mut below = below(seed);
        let slots = ranks * (EXPERTS / ranks + 3);
        let mut expert_in: Vec<Option<usize>> =
            (0..slots).map(|slot| if slot < EXPERTS { slot } else { below(2 * EXPERTS) }).map(Some).collect();
        expert_in.iter_mut().for_each(|expert| *expert = expert.filter(|&expert| expert < EXPERTS));
        (1..slots).for_each(|slot| expert_in.swap(slot, below(slot + 1)));
        Placement::of_slots(expert_in, EXPERTS, ranks).unwrap()
    }
}

impl Policy for Anywhere {
    fn first_placement(&self, layer: usize, _moe: &Moe, ranks: usize) -> Placement {
        Self::anywhere(ranks, layer as u64)
    }

    fn joins_replicas(&self) -> bool {
        self.storage != Storage::Slots
    }

    fn storage(&self) -> Storage {
        self.storage
    }

    fn placement_due(&self, _iteration: usize) -> bool {
        true
    }

    fn place(&mut self, _iteration: usize, _layer: usize, _past: &LoadHistory, now: &Placement) -> Decision {
        self.decisions += 1;
        Decision::Move(Self::anywhere(now.ranks(), 100 + self.decisions))
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let loads = counts.loads();
        let mut below = below(loads.iter().fold(layer as u64, |seed, &load| 31 * seed + load));
        let mut slots = placement.experts_in_slots().to_vec();
        let mut copies = Vec::new();
        for (slot, holds) in slots.iter_mut().enumerate().filter(|(_, holds)| holds.is_none()) {
            if self.storage == Storage::Slots && below(2) == 0 {
                let expert = below(EXPERTS);
                *holds = Some(expert);
                copies.push(Copied { expert, slot });
            }
        }
        let mut quota = vec![0; slots.len()];
        for (expert, &load) in loads.iter().enumerate() {
            let own: Vec<usize> = (0..slots.len()).filter(|&slot| slots[slot] == Some(expert)).collect();
            (0..load).for_each(|_| quota[own[below(own.len())]] += 1);
        }
        let weights = if self.storage == Storage::Shards { Weights::Sharded } else { Weights::Copied };
        LayerProgram::split(Split::Quota(quota), copies, weights, 1)
    }
}

/// Numbers below limits.
fn below(seed: u64) -> impl FnMut(usize) -> usize {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    move |limit| (random.next_u64() % limit as u64) as usize
}

#[test]
fn experts_anywhere_train_the_same_model() {
    for degrees in DEGREES.into_iter().chain([[2, 2, 2, 2, 2]]) {
        for system in [&IN_SLOTS, &IN_SHARDS, &OPTIMIZER_IN_SHARDS] {
            check(system, degrees, Changes::Copies);
        }
    }
    check_resume(driven(&IN_SLOTS, [2, 4, 1, 2, 2]));
}

/// Shards of one set of experts know nothing of the other's gradients: such a run is refused.
#[test]
fn shards_of_replicas_apart_are_refused() {
    struct Apart(Storage);
    struct InShards(Storage);
    impl System for Apart {
        fn about(&self) -> About {
            About { name: "apart", title: "Apart", summary: "Shards in every replica" }
        }

        fn candidates(&self, _job: &Job, _costs: &CostModel) -> Vec<Candidate> {
            Vec::new()
        }

        fn policy(&self, _job: &Job, _plan: &Plan) -> Box<dyn Policy> {
            Box::new(InShards(self.0))
        }
    }
    impl Policy for InShards {
        fn storage(&self) -> Storage {
            self.0
        }
    }
    static SHARDS: Apart = Apart(Storage::Shards);
    static OPTIMIZER: Apart = Apart(Storage::OptimizerShards);
    for system in [&SHARDS, &OPTIMIZER] {
        let Err(error) = driven(system, [1, 4, 1, 2, 2]).train() else { panic!("{:?} is trained", system.0) };
        let text = error.to_string();
        let named = text.contains("edp2") && text.contains(&format!("{:?}", system.0));
        let apart = matches!(error, TrainError::Setup(SetupError::Plan(PlanError::ReplicasApart { .. })));
        assert!(apart && named, "{text}");
        // The simulator, too.
        let batch = batch(1, 4, |_| vec![16; 4]);
        let job = job(model(1, 64, 16, 4), cluster(4, &[]), 4, &batch);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let chosen = Plan { dp: 4, ep: 2, expert_dp: 2, ..Plan::default() };
        let refused = Run::new(&job, &costs, system, chosen).step(&batch).failure;
        assert!(matches!(refused, Some(Failure::Plan(PlanError::ReplicasApart { .. }))), "{refused:?}");
        // So does a search.
        let profiled = job.clone().with_profile(vec![batch.clone()]);
        let outcome = |plan| search::rated(system, &profiled, &costs, plan).outcome;
        assert!(matches!(outcome(chosen), Err(PlanError::ReplicasApart { .. })), "{:?}", outcome(chosen));
        let together = Plan { ep: 4, expert_dp: 1, ..chosen };
        assert_eq!(Run::new(&job, &costs, system, together).step(&batch).failure, None);
        assert!(outcome(together).is_ok(), "{:?}", outcome(together));
    }
}

/// Blocks run again before their backward pass, which finds the copies that they have made.
#[test]
fn copies_are_made_again_where_blocks_are_recomputed() {
    for system in [&quota::MOONEP as &'static dyn System, &quota::ULTRAEP, &laer::Laer] {
        let asked = driven(system, [1, 4, 1, 4, 1]);
        let plan = Plan { recompute: Recompute::Full, ..asked.plan };
        let apart = difference(&Asked { plan, ..asked }.train().unwrap(), &REFERENCE);
        assert!(apart < 1e-4, "{}: {apart:e}", system.name());
    }
}

#[test]
fn a_checkpoint_with_copies_resumes_to_the_same_bits() {
    check_resume(driven(&eplb::Eplb, [2, 4, 1, 2, 2]));
    check_resume(driven(&quota::MOONEP, [1, 4, 1, 4, 1]));
    check_resume(driven(&microep::ASYMMETRIC, [1, 4, 1, 2, 2]));
    check_resume(driven(&laer::Laer, [1, 4, 1, 2, 2]));
    check_resume(driven(&symi::Symi, [1, 4, 1, 2, 2]));
    check_resume(driven(&cobalance::CoBalance, [1, 4, 1, 4, 1]));
}
