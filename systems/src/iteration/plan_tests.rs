//! What interleaving, ZeRO, recomputation and overlap do to an iteration: closed forms, and which way results move over random
//! plans.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use workloads::measured::{Line, MeasuredOperation, Operation};
use workloads::model::{Edge, shapes};
use workloads::suite::SearchSpace;
use workloads::trace::{BatchCounts, Routing, RoutingSpec, SynthSpec};
use workloads::{Cluster, Gate, Model, Seconds};

use crate::iteration::dense::Dense;
use crate::iteration::outline::Outline;
use crate::iteration::schedule::Work;
use crate::iteration::timeline::{Activity, Span};
use crate::iteration::{Charge, Coverage, Evaluation, Timing};
use crate::plan::memory::StageMemory;
use crate::plan::search::{self, Candidate, PerformanceModel};
use crate::price::ledger::Phase;
use crate::program::split::Split;
use crate::program::{Op, Weights};
use crate::zoo::smartmoe::OFFLINE_ONLY;
use crate::{CostModel, Job, LayerProgram, Overlap, Placement, Plain, Plan, PlanError, Policy, Recompute};
use crate::{RoutingCounts, Storage, System, Zero};

/// The tiny GPT, eight blocks deep, on two nodes of inky.
fn job(skewed: bool) -> (Job, BatchCounts) {
    let mut model = Model::named("test", "gpt-tiny").unwrap();
    model.blocks = model.blocks.repeat(8 / model.blocks.len());
    let moe = *model.moe_layers().next().unwrap();
    let layers = model.moe_layers().count();
    let trace = SynthSpec { layers, experts: moe.experts, samples: 1, ..SynthSpec::default() }.generate().unwrap();
    let entries_per_chunk = (moe.tokens * model.top_k) as u32;
    let top_k = model.top_k as u32;
    let spec = RoutingSpec {
        layers,
        experts: moe.experts,
        chunks: 64,
        entries_per_chunk,
        top_k,
        start: 1,
        stride: 1,
        seed: 0,
    };
    let batch = Routing::new(&trace, spec).unwrap().iteration(0);
    let batch = if skewed { batch } else { batch.uniform() };
    let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 16, Gate::NoDrop, 64);
    (job.with_profile(vec![batch.clone()]), batch)
}

fn run(job: &Job, plan: &Plan, policy: &dyn Policy, batch: &BatchCounts) -> Timing {
    evaluate(job, plan, policy, batch, |of| of.run())
}

fn evaluate<T>(
    job: &Job,
    plan: &Plan,
    policy: &dyn Policy,
    batch: &BatchCounts,
    of: impl FnOnce(&Evaluation) -> T,
) -> T {
    plan.check(job).unwrap();
    of(&Evaluation {
        job,
        plan,
        costs: &CostModel::new(&job.cluster, job.gpus),
        policy,
        placements: &plan.experts_in_order(job),
        batch,
        charges: &vec![Charge::default(); plan.pp],
        coverage: Coverage::Full,
    })
}

/// A job without anything but equal blocks: no edges, no communication that takes time.
fn blocks_alone() -> (Job, BatchCounts) {
    let (mut job, batch) = job(false);
    (job.model.input, job.model.output, job.model.tied_parameters) = (Edge::default(), Edge::default(), 0);
    for (path, constant) in job.cluster.constants_mut() {
        if path.ends_with("_start") && path.starts_with("network.") {
            constant.value = 0.0;
        } else if path.ends_with("_bandwidth") && path.starts_with("network.") {
            constant.value = f64::INFINITY;
        }
    }
    (job, batch)
}

/// Narayanan et al., SC'21: the pipeline waits (pp - 1) / vp passes of a micro-batch through a stage.
#[test]
fn virtual_stages_divide_the_bubble() {
    let (job, batch) = blocks_alone();
    for (pp, vp, micro_batches) in [(4, 1, 16), (4, 2, 16), (2, 1, 8), (2, 2, 8), (2, 4, 8), (1, 1, 4)] {
        let dp = 16 / pp;
        let micro_batch = 64 / dp / micro_batches;
        let plan = Plan { pp, dp, ep: 4, expert_dp: dp / 4, micro_batch, vp, ..Plan::default() };
        let timing = run(&job, &plan, &Plain, &batch);
        let first = &timing.phases[0];
        let busy = first.total() - first.of(Phase::Bubble);
        let update = [Phase::GradientSync, Phase::Optimizer, Phase::Host].map(|phase| first.of(phase));
        let of_micro_batch = (busy - update.into_iter().sum()) / micro_batches as f64;
        let bubble = of_micro_batch * ((pp - 1) as f64 / vp as f64);
        let error = (first.of(Phase::Bubble) - bubble).0.abs();
        assert!(error <= 2e-3 * busy.0, "{plan}: {} for {}", first.of(Phase::Bubble).0, bubble.0);
    }
}

#[test]
fn an_outline_is_the_iteration_where_nothing_is_uneven() {
    let (job, batch) = blocks_alone();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let outline = Outline::new(&job, &costs, &job.profile);
    for text in [
        "pp1 dp16 tp1 ep8 edp2 mb1",
        "pp4 dp4 tp1 ep4 edp1 mb1 zero1",
        "pp2 dp8 tp1 ep4 edp2 mb2 vp2 zero1 full",
        "pp2 dp4 tp2 ep8 edp1 mb1 selective",
    ] {
        let plan: Plan = text.parse().unwrap();
        let (about, step) =
            (outline.step(&plan, || plan.experts_in_order(&job)), run(&job, &plan, &Plain, &batch).step);
        assert!((about.0 / step.0 - 1.0).abs() < 0.02, "{plan}: {} in outline, {}", about.0, step.0);
    }
}

/// A job whose collectives have no start-up: stage 1 has two for the one of an all-reduce.
fn without_starts() -> (Job, BatchCounts) {
    let (mut job, batch) = job(true);
    job.cluster.network.call_start.value = 0.0;
    (job, batch)
}

/// Stage 1 moves as many bytes as an all-reduce, and each rank updates its part.
#[test]
fn sharding_the_optimizer_divides_its_time_alone() {
    let (job, batch) = without_starts();
    let plan = Plan { dp: 16, ep: 8, expert_dp: 2, ..Plan::default() };
    let [off, sharded] = [Zero::Off, Zero::Optimizer].map(|zero| run(&job, &Plan { zero, ..plan }, &Plain, &batch));
    let of = |timing: &Timing, phase| timing.phases[0].of(phase).0;
    let (sync, reduced) = (of(&off, Phase::GradientSync), of(&sharded, Phase::GradientSync));
    assert!((reduced / sync - 1.0).abs() < 1e-9, "{reduced} for {sync}");
    // Dense state over 16 ranks, experts over 2.
    let (whole, part) = (of(&off, Phase::Optimizer), of(&sharded, Phase::Optimizer));
    assert!(part > whole / 16.0 && part < whole / 2.0);
    let rest = |timing: &Timing| timing.step.0 - of(timing, Phase::GradientSync) - of(timing, Phase::Optimizer);
    assert!((rest(&off) / rest(&sharded) - 1.0).abs() < 1e-9);
}

/// As [`Plain`], with what runs beside computation.
struct Overlapping(Overlap);

impl Policy for Overlapping {
    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::grouped()
    }

    fn overlap(&self) -> Overlap {
        self.0
    }
}

#[test]
fn overlap_hides_what_computation_has_room_for() {
    let (job, batch) = job(true);
    let plan = Plan { pp: 2, dp: 8, ep: 8, zero: Zero::Optimizer, ..Plan::default() };
    let under = |state, exchanges| run(&job, &plan, &Overlapping(Overlap { state, exchanges, queued: false }), &batch);
    let [none, state, exchanges] = [(false, false), (true, false), (false, true)].map(|(s, e)| under(s, e));
    let of = |timing: &Timing, phase| timing.phases[0].of(phase).0;
    assert!(of(&state, Phase::GradientSync) < of(&none, Phase::GradientSync));
    assert_eq!(of(&state, Phase::Dispatch), of(&none, Phase::Dispatch));
    assert!(of(&exchanges, Phase::Dispatch) < of(&none, Phase::Dispatch));
    assert!(exchanges.step < none.step && state.step < none.step);
    assert_eq!(state.peak.bytes, none.peak.bytes);
}

/// Every expert has a copy on another rank of its set; or optimizer state is in shards, from which new weights come.
struct Copying(Storage);

impl Policy for Copying {
    fn storage(&self) -> Storage {
        self.0
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

/// Sums over all that hold an expert are whole on each: under the first stage of ZeRO replicas gather nothing besides. What is summed is hidden behind
/// the backward pass, and what comes from shards of the optimizer behind the forward pass.
#[test]
fn copies_are_summed_once_and_hidden_as_replicas_are() {
    let (mut job, batch) = job(false);
    let experts = job.model.moe_layers().next().unwrap().experts;
    let slots = (0..4).flat_map(|rank| {
        let own = rank * experts / 4..(rank + 1) * experts / 4;
        own.map(Some).chain([Some((rank + 1) % 4 * experts / 4)])
    });
    let placed = Placement::of_slots(slots.collect(), experts, 4).unwrap();
    let placements = vec![placed; job.model.moe_layers().count()];
    let mut time = |storage, zero, overlap| {
        job.cluster.program.overlap_state = Some(overlap);
        let plan = Plan { pp: 1, dp: 16, ep: 4, expert_dp: 4, zero, ..Plan::default() };
        let with = |of: &Evaluation| Evaluation { placements: &placements, ..*of }.run();
        evaluate(&job, &plan, &Copying(storage), &batch, with).phases[0].of(Phase::GradientSync).0
    };
    for overlap in [false, true] {
        let [off, sharded] = [Zero::Off, Zero::Optimizer].map(|zero| time(Storage::Slots, zero, overlap));
        // A dense gather starts by itself.
        assert!(sharded < off * 1.1 && sharded > off * 0.3, "{sharded} for {off}");
    }
    for (storage, zero) in [(Storage::Slots, Zero::Gradients), (Storage::OptimizerShards, Zero::Off)] {
        let [shown, hidden] = [false, true].map(|overlap| time(storage, zero, overlap));
        assert!(hidden < shown, "{storage:?}: {hidden} for {shown}");
    }
}

/// A sample of the micro-batches makes a step, and no longer bubble than there is.
#[test]
fn phases_of_a_sample_add_up_to_its_step() {
    let (job, batch) = job(false);
    let plan = Plan { pp: 4, dp: 4, ep: 4, ..Plan::default() };
    let [full, sample] = [Coverage::Full, Coverage::Sample]
        .map(|coverage| evaluate(&job, &plan, &Plain, &batch, |of| Evaluation { coverage, ..*of }.run()));
    let bubble = |timing: &Timing| timing.phases.iter().map(|of| of.of(Phase::Bubble).0).sum::<f64>();
    for timing in [&full, &sample] {
        for phases in &timing.phases {
            assert!((phases.total() / timing.step - 1.0).abs() < 0.01, "{:?} of {:?}", phases.total(), timing.step);
        }
    }
    assert!((bubble(&sample) / bubble(&full) - 1.0).abs() < 0.1, "{} for {}", bubble(&sample), bubble(&full));
}

/// As many passes are in flight as without; where two meet, one block of the second is there before the first has made room.
#[test]
fn a_pass_beside_another_keeps_one_block_more() {
    let (job, batch) = job(false);
    let plan = Plan { pp: 2, dp: 8, ep: 8, ..Plan::default() };
    let peak = |exchanges| {
        let overlap = Overlap { state: false, exchanges, queued: false };
        run(&job, &plan, &Overlapping(overlap), &batch).peak.bytes.0
    };
    let moe = job.model.moe_layers().next().unwrap();
    let rows = moe.entry_kept(Recompute::None) * (plan.tokens(moe) * job.top_k()) as f64;
    let block = StageMemory::new(&job, &plan, 0, Recompute::None).block() + rows;
    let more = peak(true) - peak(false);
    assert!((more / block.0 - 1.0).abs() < 0.02, "{more} for {}", block.0);
}

/// Experts in shards, restored for each pass, with what runs beside computation.
struct Resharding(Overlap);

impl Policy for Resharding {
    fn storage(&self) -> Storage {
        Storage::Shards
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Sharded, 0)
    }

    fn overlap(&self) -> Overlap {
        self.0
    }
}

/// A forward pass that is run again restores experts for the backward pass, too, whose exchanges hide as they do without.
#[test]
fn recomputation_restores_experts_once_and_shows_no_hidden_exchange() {
    let (job, batch) = job(true);
    let time = |recompute, exchanges, op| {
        let plan = Plan { pp: 2, dp: 8, ep: 8, recompute, ..Plan::default() };
        let policy = Resharding(Overlap { exchanges, ..Overlap::default() });
        let (_, spans) = evaluate(&job, &plan, &policy, &batch, |of| of.observe());
        let backward = |span: &&Span| matches!(span.work, Some(Work::Backward(_))) && span.activity == Activity::Op(op);
        spans.iter().filter(backward).map(|span| (span.end - span.start).0).sum::<f64>()
    };
    let same = |a: f64, b: f64| assert!(a > 0.0 && (a / b - 1.0).abs() < 1e-9, "{a} {b}");
    let [none, full] = [Recompute::None, Recompute::Full];
    same(time(none, false, Op::Unshard), time(full, false, Op::Unshard));
    let dispatch = Op::Dispatch { step: 0 };
    let hidden = |recompute| time(recompute, false, dispatch) - time(recompute, true, dispatch);
    same(hidden(none), hidden(full));
}

/// A random plan of 16 ranks that the job allows.
fn random_plan(job: &Job, draw: &mut ChaCha8Rng) -> Plan {
    loop {
        let mut power = |most: u32| 1usize << (draw.next_u32() % (most + 1));
        let (pp, tp) = (power(2), power(1));
        let dp = 16 / pp / tp;
        let (ep, micro_batch, vp) = (power(3), power(1), power(1));
        let expert_dp = dp * tp / ep;
        let plan = Plan { pp, dp, tp, ep, expert_dp, micro_batch, vp, ..Plan::default() };
        if plan.check(job).is_ok() {
            return plan;
        }
    }
}

#[test]
fn sharding_and_recomputing_save_memory_and_nothing_else() {
    let (job, batch) = without_starts();
    let mut draw = ChaCha8Rng::seed_from_u64(10);
    for _ in 0..40 {
        let plan = random_plan(&job, &mut draw);
        let of = |zero, recompute| run(&job, &Plan { zero, recompute, ..plan }, &Plain, &batch);
        let zero: Vec<Timing> = Zero::ALL.map(|zero| of(zero, Recompute::None)).into();
        assert!(zero[1].step <= zero[0].step * (1.0 + 1e-9), "{plan}");
        // Stages 2 and 3 reduce gradients in every micro-batch, but beside its backward pass.
        assert!(zero[3].step >= zero[2].step * (1.0 - 1e-9), "{plan}");
        // Stages 2 and 3 hold whole gradients and weights of a block or two, which can be more than few blocks' shards save.
        assert!(zero[1].peak.bytes <= zero[0].peak.bytes, "{plan}");
        let again: Vec<Timing> = Recompute::ALL.map(|recompute| of(Zero::Off, recompute)).into();
        for pair in again.windows(2) {
            assert!(pair[1].step > pair[0].step && pair[1].peak.bytes <= pair[0].peak.bytes, "{plan}");
        }
    }
}

/// A block that takes three times what it is priced at, where it was measured, takes three times as long to compute in part again.
#[test]
fn a_selective_recomputation_is_a_part_of_the_measured_block() {
    let (mut job, _) = job(true);
    let plan = Plan { dp: 16, ep: 8, expert_dp: 2, ..Plan::default() };
    let block = job.model.blocks[0];
    let again = |job: &Job| {
        let costs = CostModel::new(&job.cluster, job.gpus);
        Dense::new(job, &plan, &costs, 0).again(&block, Recompute::Selective).0
    };
    let (costs, priced) = (CostModel::new(&job.cluster, job.gpus), again(&job));
    let whole = costs.matrix(block.dense_flops()) + costs.elementwise(block.dense_activations() * 2.0);
    let line = Line { start: 1.0, unit: 3.0 * whole.0, ..Line::default() };
    let (operation, shape, source) = (Operation::Block, shapes::of_block(&block), "a test".to_owned());
    let (backward, queued, issue) = (Some(line), None, None);
    job.cluster.gpu.measured.push(MeasuredOperation {
        operation,
        shape,
        forward: line,
        backward,
        queued,
        issue,
        source,
    });
    assert!(priced > 0.0 && (again(&job) / priced - 3.0).abs() < 1e-9, "{} for {priced}", again(&job));
}

#[test]
fn more_bandwidth_is_never_slower() {
    let (job, batch) = job(true);
    let mut draw = ChaCha8Rng::seed_from_u64(11);
    for _ in 0..20 {
        let plan = Plan { zero: Zero::ALL[draw.next_u32() as usize % 4], ..random_plan(&job, &mut draw) };
        for name in ["intra_bandwidth", "inter_bandwidth", "port_bandwidth", "gemm_rate", "memory_bandwidth"] {
            let mut faster = job.clone();
            for (path, constant) in faster.cluster.constants_mut() {
                if path.ends_with(name) {
                    constant.value *= 2.0;
                }
            }
            let [before, after] = [&job, &faster].map(|job| run(job, &plan, &Plain, &batch).step);
            assert!(after <= before * (1.0 + 1e-9), "{plan}, twice the {name}: {} for {}", after.0, before.0);
        }
    }
}

/// All plans of a small job, evaluated one by one, have none that is faster than the pruned search's.
#[test]
fn pruning_loses_no_plan_of_a_small_job() {
    let (mut job, _) = job(true);
    (job.gpus, job.global_batch, job.micro_batch) = (4, 16, Some(1));
    // Tight enough that some plans must save memory.
    job.cluster.gpu.memory_reserved.value = 0.0;
    for memory in [80e9, 2.5e8, 1.5e8] {
        job.cluster.gpu.memory.value = memory;
        job.search = SearchSpace::All;
        let costs = CostModel::new(&job.cluster, job.gpus);
        let found = OFFLINE_ONLY.candidates(&job, &costs);
        let performance = PerformanceModel { job: &job, costs: &costs, profile: &job.profile };
        let estimated = search::all_plans(&job).into_iter().map(|plan| {
            let outcome = performance.estimate(&plan, &Plain, &plan.experts_in_order(&job));
            Candidate { plan, outcome }
        });
        let best = search::rank(estimated.collect()).swap_remove(0);
        let step = |candidate: &Candidate| candidate.outcome.as_ref().map_or(Seconds::ZERO, |estimate| estimate.step);
        assert_eq!(step(&found[0]), step(&best), "{} for {}", found[0].plan, best.plan);
        for pruned in &found {
            let known = |error: &PlanError| matches!(error, PlanError::Memory { .. } | PlanError::Outlined { .. });
            assert!(pruned.outcome.as_ref().err().is_none_or(known), "{:?}", pruned.outcome);
        }
    }
}
