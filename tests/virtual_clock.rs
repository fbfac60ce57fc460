//! A virtual clock: what it adds up, and how near the simulator comes to it once this machine was measured.

use std::path::PathBuf;
use std::time::Duration;

use runs::engines::train::Replay;
use runs::summary::statistics::median;
use runs::timeline::{self, Timeline};
use studies::calibrate::device::Measurement;
use studies::calibrate::segments;
use systems::iteration::run::Iteration;
use systems::iteration::timeline::{Activity, Gradients, Span};
use systems::plan::routing::JobRouting;
use systems::program::{Op, Stream};
use systems::zoo::{eplb, expert_only, fastermoe, flexmoe, fsdp_ep, laer, microep, quota, smartmoe, symi};
use systems::{CostModel, Job, Plan, Recompute, System, Zero};
use tch::{Device, Kind};
use trainer::clock::timer::ALONE;
use trainer::data::Language;
use trainer::rank::report::Report;
use trainer::record;
use trainer::setup::{self, Recording, Setup};
use trainer::world::{self, Threads};
use workloads::cluster::{Constant, Program};
use workloads::suite::TraceUse;
use workloads::trace::{BatchCounts, RoutingTrace};
use workloads::{Cluster, EngineKind, Gate, Model, Training};

use crate::support::Folder;

const WORDS: usize = 512;
/// What README states of predicted against emulated iterations. Twelve runs of the three cases were off by 0 to 14%.
const SHIPPED: f64 = 0.15;

/// Wide enough that kernels take most of the time.
fn model(hidden: usize, layers: usize) -> Model {
    let text = format!(
        "name = \"clock\"\nsource = \"tests\"\n[gpt]\nlayers = {layers}\nhidden = {hidden}\nheads = 4\nseq_len = 128\n\
         vocabulary = {WORDS}\nexpert_ratio = 2\nexperts = 8\nmoe_every = 1\ntop_k = 2\n"
    );
    Model::parse("test", &text).unwrap()
}

fn job(model: Model, cluster: Cluster, global_batch: usize) -> Job {
    Job::new(model, cluster, 8, Gate::NoDrop, global_batch).with_micro_batch(1)
}

fn plan([pp, dp, tp, ep, expert_dp]: [usize; 5], placement_every: usize) -> Plan {
    Plan { pp, dp, tp, ep, expert_dp, placement_every, ..Plan::default() }
}

/// Reports of every rank, what the gate chose, and the simulator beside it, iteration by iteration.
struct Trained {
    reports: Vec<Vec<Report>>,
    iterations: Vec<Iteration>,
    batches: Vec<BatchCounts>,
    trace: RoutingTrace,
    simulated: Vec<Iteration>,
    /// Simulated, of the last iteration.
    spans: Vec<Span>,
}

fn train(job: &Job, system: &'static dyn System, plan: Plan, iterations: usize, virtual_clock: bool) -> Trained {
    train_with(job, system, plan, iterations, virtual_clock, None)
}

fn train_with(
    job: &Job,
    system: &'static dyn System,
    plan: Plan,
    iterations: usize,
    virtual_clock: bool,
    checkpoint: Option<(PathBuf, usize)>,
) -> Trained {
    let costs = CostModel::new(&job.cluster, job.gpus);
    let gpt = setup::gpt(job, &plan).unwrap();
    let samples = Language::new(gpt.vocabulary, gpt.seq_len, 7).unwrap();
    let setup = Setup {
        job,
        plan,
        system,
        costs: &costs,
        training: Training::default(),
        samples: &samples,
        seed: 3,
        iterations,
        replay: None,
        record: Some(Recording::ALL),
        record_spans: true,
        checkpoint,
        kind: Kind::Float,
        gpt,
    };
    let mut replay = Replay::new(&setup, &costs);
    let (mut reports, mut simulated, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    let mut sink = |_: usize, of: Vec<Report>| {
        let (iteration, seen) = replay.step(&of);
        simulated.push(iteration);
        spans = seen;
        reports.push(of);
    };
    let virtual_clock = virtual_clock.then_some(ALONE);
    let threads = Threads { device: Device::Cpu, virtual_clock, timeout: Duration::from_secs(120) };
    world::run(&setup, threads, &mut sink, |_| ()).unwrap();
    Trained {
        iterations: reports.iter().map(|of| world::iteration(&setup, of)).collect(),
        batches: reports.iter().map(|of| record::batch(&setup, of)).collect(),
        trace: record::trace("recorded", &setup, &reports.iter().cloned().enumerate().collect::<Vec<_>>()).unwrap(),
        reports,
        simulated,
        spans,
    }
}

/// Every moment of a rank's iteration is in its ledger once, and spans of a stream do not overlap.
#[test]
fn parts_of_an_iteration_add_up() {
    let cluster = Cluster::named("test", "inky").unwrap();
    let plans = [
        (plan([2, 2, 2, 2, 2], 1), &smartmoe::SMARTMOE as &'static dyn System),
        (plan([1, 8, 1, 8, 1], 0), &fastermoe::FASTERMOE),
        (plan([1, 8, 1, 8, 1], 0), &quota::MOONEP),
        (plan([2, 4, 1, 2, 2], 1), &laer::Laer),
        (Plan { zero: Zero::Weights, ..plan([2, 4, 1, 2, 2], 0) }, &fsdp_ep::FSDP_EP),
        (Plan { zero: Zero::Weights, ..plan([1, 8, 1, 4, 2], 0) }, &fsdp_ep::QUEUED),
    ];
    for (plan, system) in plans {
        for virtual_clock in [false, true] {
            let job = job(model(32, 4), cluster.clone(), 8);
            let run = train(&job, system, plan, 2, virtual_clock);
            for report in run.reports.iter().flatten() {
                let (step, total) = (report.step.0, report.ledger.total().0);
                assert!((total / step - 1.0).abs() < 1e-9, "{} {virtual_clock}: {total} of {step}", system.name());
                check_spans(report, virtual_clock);
            }
            for (iteration, reports) in run.iterations.iter().zip(&run.reports) {
                let step = reports.iter().map(|report| report.step.0).fold(0.0, f64::max);
                assert_eq!(iteration.timing.step.0, step);
                assert!(iteration.timing.phases.iter().all(|ledger| (ledger.total().0 / step - 1.0).abs() < 1e-9));
            }
        }
    }
}

fn check_spans(report: &Report, virtual_clock: bool) {
    for stream in [Stream::Compute, Stream::Communication] {
        let own: Vec<&Span> = report.spans.iter().filter(|span| span.activity.stream() == stream).collect();
        assert!(!own.is_empty());
        for pair in own.windows(2) {
            assert!(pair[0].end.0 <= pair[1].start.0 + 1e-12, "{virtual_clock} {pair:?}");
        }
        assert!(own.iter().all(|span| span.start.0 >= 0.0 && span.end.0 <= report.step.0 + 1e-12));
    }
}

/// Both engines price the collectives of tensor parallelism and the sums of loads alike.
#[test]
fn collectives_take_the_same_in_both_engines() {
    check_collectives(model(32, 4), &[Activity::TensorParallel, Activity::Gathering]);
    // Queries and keys normalised; then latent attention, a shared expert and gates that loads balance.
    check_collectives(Model::named("test", "qwen3-micro").unwrap(), &[Activity::TensorParallel]);
    let all = [Activity::TensorParallel, Activity::Gathering, Activity::SelectionLoads];
    check_collectives(Model::named("test", "deepseek-micro").unwrap(), &all);
}

/// Replicas, copies that stand, copies for a micro-batch, and shards: what comes and goes takes the same in both engines, where
/// gradients are in half precision and where a cluster's program has them in single precision.
#[test]
fn copies_take_the_same_in_both_engines() {
    let half = Cluster::named("test", "inky").unwrap();
    let gradient = Constant { value: 4.0, ..half.gpu.memory.clone() };
    let single = Cluster { program: Program { gradient: Some(gradient), ..Program::default() }, ..half.clone() };
    [half, single].into_iter().for_each(check_copies);
}

fn check_copies(cluster: Cluster) {
    let job = job(model(32, 2), cluster, 8);
    let synchronised = Activity::GradientSync(Gradients::Experts);
    let cases: [(&'static dyn System, Plan, &[Activity]); 7] = [
        (&expert_only::ExpertOnly, plan([1, 8, 1, 4, 2], 0), &[synchronised]),
        (&eplb::Eplb, plan([1, 8, 1, 4, 2], 1), &[synchronised, Activity::Gathering]),
        (&flexmoe::FLEXMOE, plan([2, 4, 1, 2, 2], 1), &[synchronised]),
        (&quota::MOONEP, plan([1, 8, 1, 8, 1], 0), &[Activity::Op(Op::CopyWeights), Activity::Op(Op::ReturnGrad)]),
        (&microep::ASYMMETRIC, plan([1, 8, 1, 4, 2], 1), &[synchronised]),
        (&laer::Laer, plan([2, 4, 1, 2, 2], 1), &[Activity::Op(Op::Unshard), Activity::Op(Op::Reshard)]),
        (&symi::Symi, plan([1, 8, 1, 4, 2], 1), &[synchronised, Activity::WeightGather(Gradients::Experts)]),
    ];
    for (system, plan, activities) in cases {
        let run = train(&job, system, plan, 3, true);
        same_times(&run, activities, system.name());
        let moved = |of: &[Iteration]| of.iter().map(|iteration| iteration.moved).collect::<Vec<_>>();
        assert_eq!(moved(&run.iterations), moved(&run.simulated), "{}", system.name());
        assert!(plan.placement_every == 0 || moved(&run.iterations).iter().any(|&moved| moved > 0));
        for (reports, simulated) in run.reports.iter().zip(&run.simulated) {
            let of_rank = |of: &Report| time_of(Activity::Migration, &of.spans, of.spans[0].rank);
            let (emulated, simulated) = (reports.iter().map(of_rank).fold(0.0, f64::max), simulated.migration.0);
            assert!((emulated - simulated).abs() <= 1e-9 * simulated, "{}: {emulated} {simulated}", system.name());
        }
    }
}

/// Experts in shards are restored for a forward pass, and for its backward pass unless the forward pass is run again right before.
/// On a network that starts slowly, what of it hides behind measured or priced computation is next to nothing.
#[test]
fn experts_are_restored_as_often_in_both_engines() {
    let mut cluster = Cluster::named("test", "inky").unwrap();
    cluster.network.call_start.value = 10.0;
    let job = job(model(32, 2), cluster, 8);
    for recompute in [Recompute::None, Recompute::Full] {
        let run = train(&job, &laer::Laer, Plan { recompute, ..plan([2, 4, 1, 2, 2], 1) }, 2, true);
        for report in run.reports.last().unwrap() {
            let restored = |spans| time_of(Activity::Op(Op::Unshard), spans, report.spans[0].rank);
            let (simulated, emulated) = (restored(&run.spans), restored(&report.spans));
            // One layer, two micro-batches, two passes that restore.
            assert!((simulated / 40.0 - 1.0).abs() < 0.02, "{recompute:?}: {simulated}");
            assert!((emulated / 40.0 - 1.0).abs() < 0.02, "{recompute:?}: {emulated}");
        }
    }
}

/// Gathers and reductions of sharded state, of a network that is so slow that next to nothing hides behind measured or priced computation.
#[test]
fn sharded_state_takes_the_same_in_both_engines() {
    let mut cluster = Cluster::named("test", "inky").unwrap();
    cluster.network.call_start.value = 10.0;
    let job = job(model(32, 4), cluster, 8);
    let systems: [&'static dyn System; 2] = [&fsdp_ep::FSDP_EP, &fsdp_ep::QUEUED];
    for (system, degrees) in
        systems.into_iter().flat_map(|system| [(system, [1, 8, 1, 4, 2]), (system, [2, 4, 1, 2, 2])])
    {
        let plan = Plan { zero: Zero::Weights, ..plan(degrees, 0) };
        let run = train(&job, system, plan, 1, true);
        let between_stages: &[Activity] =
            if plan.pp > 1 { &[Activity::GradientSync(Gradients::TiedStages)] } else { &[] };
        same_times(&run, between_stages, system.name());
        for report in run.reports.last().unwrap() {
            let shown = |spans| time_of(Activity::ShardedState, spans, report.spans[0].rank);
            let (simulated, emulated) = (shown(&run.spans), shown(&report.spans));
            assert!(simulated > 10.0, "{} {plan}: {simulated}", system.name());
            assert!((emulated / simulated - 1.0).abs() < 1e-3, "{} {plan}: {emulated} {simulated}", system.name());
        }
    }
}

fn check_collectives(model: Model, activities: &[Activity]) {
    let name = model.name.clone();
    let job = job(model, Cluster::named("test", "inky").unwrap(), 8);
    same_times(&train(&job, &smartmoe::SMARTMOE, plan([2, 2, 2, 2, 2], 2), 3, true), activities, &name);
}

/// Both engines' times of activities in the last iteration, on every rank.
fn same_times(run: &Trained, activities: &[Activity], name: &str) {
    for &activity in activities {
        let mut most = 0.0f64;
        for report in run.reports.last().unwrap() {
            let rank = report.spans[0].rank;
            let [simulated, emulated] = [&run.spans, &report.spans].map(|spans| time_of(activity, spans, rank));
            let apart = (simulated - emulated).abs();
            assert!(apart <= 1e-9 * emulated, "{name}: {activity:?}: {simulated} {emulated}");
            most = most.max(emulated);
        }
        // A stage of dense blocks has no loads.
        assert!(most > 0.0, "{name}: {activity:?}");
    }
}

/// Seconds of a rank's spans of an activity.
fn time_of(activity: Activity, spans: &[Span], rank: usize) -> f64 {
    let own = spans.iter().filter(|span| span.rank == rank && span.activity == activity);
    own.map(|span| (span.end - span.start).0).fold(0.0, |sum, time| sum + time)
}

/// Loads that a checkpoint finds waiting to be gathered wait on, and are gathered and paid for when a decision asks.
#[test]
fn a_checkpoint_changes_no_price() {
    let job = job(model(32, 4), Cluster::named("test", "inky").unwrap(), 8);
    let folder = Folder::new();
    let run = |iterations, checkpoint| {
        train_with(&job, &smartmoe::SMARTMOE, plan([2, 4, 1, 2, 2], 3), iterations, true, checkpoint)
    };
    let kept = Some((folder.join("kept"), 1));
    run(2, kept.clone());
    let (whole, resumed) = (run(4, None), run(4, kept));
    for (whole, resumed) in whole.reports.iter().zip(&resumed.reports) {
        for (whole, resumed) in whole.iter().zip(resumed) {
            let rank = whole.spans[0].rank;
            let [expected, found] = [whole, resumed].map(|of| time_of(Activity::Gathering, &of.spans, rank));
            assert!((found - expected).abs() <= 1e-9 * expected, "{found} {expected}");
        }
    }
    assert!(whole.reports[3].iter().all(|of| time_of(Activity::Gathering, &of.spans, of.spans[0].rank) > 0.0));
}

/// A trace of a run holds its choices; the counts of an iteration give every rank its own.
#[test]
fn what_was_chosen_is_recorded() {
    let job = job(model(32, 4), Cluster::named("test", "inky").unwrap(), 16);
    let plan = plan([2, 4, 1, 2, 2], 0);
    let run = train(&job, &expert_only::ExpertOnly, plan, 2, true);
    assert_eq!(run.trace.iterations(), [1, 2]);
    for (index, reports) in run.reports.iter().enumerate() {
        for layer in 0..4 {
            for position in 0..4 {
                for m in 0..4 {
                    let own = &reports[layer / 2 * 4 + position].chosen[layer % 2][m];
                    assert_eq!(run.trace.row(index, layer, m, position), own.as_slice());
                    let sample = plan.samples(&job, position, m).start;
                    assert_eq!(run.batches[index].chunk(layer, sample), own.as_slice());
                }
            }
        }
    }
}

/// The cluster of this machine's CPU on the base's network.
fn measured(base: &Cluster, model: &Model) -> Cluster {
    let measurement = Measurement {
        model,
        cluster: base,
        gate: Gate::NoDrop,
        micro_batch: 1,
        ranks: 8,
        processes: None,
        device: Device::Cpu,
    };
    let (mut cluster, _) = segments::fit(base, &measurement.runs().unwrap()).unwrap();
    cluster.host.synchronisation.value = 0.0;
    cluster
}

/// With one micro-batch, a recorded trace replays what every rank chose; with several, its rows are dealt out anew.
#[test]
fn a_recorded_trace_replays_what_was_chosen() {
    let job = job(model(32, 2), Cluster::named("test", "inky").unwrap(), 8);
    let run = train(&job, &expert_only::ExpertOnly, plan([1, 8, 1, 8, 1], 0), 3, true);
    let routing = JobRouting::new(&job, TraceUse::default(), &run.trace, 0).unwrap();
    for (t, batch) in run.batches.iter().enumerate() {
        assert_eq!(routing.iteration(t), *batch);
    }
}

/// Measures this machine, then emulates 8 ranks under three systems and simulates the same. Emulation and simulation
/// share prices of exchanges, so what differs is what measured segments take against their formulas. Other programs
/// disturb what is measured, tests beside it first of all: it runs alone, and what is too far off may be measured again. A machine
/// that does not repeat itself within the error decides nothing, and is said not to.
#[test]
#[ignore = "needs the machine to itself: scripts/test runs it last"]
fn the_simulator_predicts_emulated_iterations() {
    let (base, model) = (Cluster::named("test", "inky").unwrap(), model(256, 4));
    let cases: [(&'static dyn System, Plan); 4] = [
        (&expert_only::ExpertOnly, plan([1, 8, 1, 8, 1], 0)),
        (&fastermoe::FASTERMOE, plan([1, 8, 1, 8, 1], 0)),
        (&smartmoe::SMARTMOE, plan([2, 4, 1, 2, 2], 3)),
        (&expert_only::ExpertOnly, plan([1, 4, 2, 8, 1], 0)),
    ];
    let mut attempts: Vec<[[f64; 2]; 4]> = Vec::new();
    for _ in 0..3 {
        let job = job(model.clone(), measured(&base, &model), 16);
        let times = cases.map(|(system, plan)| times_of_a_run(&job, system, plan));
        if times.iter().all(|[emulated, simulated]| (simulated / emulated - 1.0).abs() < SHIPPED) {
            return;
        }
        attempts.push(times);
    }
    let of = |case: usize, which: usize| attempts.iter().map(move |times| times[case][which]);
    let range = |case, which| of(case, which).fold(0.0, f64::max) / of(case, which).fold(f64::INFINITY, f64::min);
    let apart = (0..4).flat_map(|case| [range(case, 0), range(case, 1)]).fold(1.0, f64::max);
    assert!(apart > 1.0 + SHIPPED, "predicted iterations are off by more than {SHIPPED} three times over");
    let error = |[emulated, simulated]: [f64; 2]| (simulated / emulated - 1.0).abs();
    let nearest = |case: usize| attempts.iter().map(|times| error(times[case])).fold(f64::INFINITY, f64::min);
    let off = (0..4).map(nearest).fold(0.0, f64::max);
    assert!(off < apart - 1.0, "predictions are off by {off:.2} at least, the machine's times {apart:.2} times apart");
    println!("nothing is decided: the machine's own times are {apart:.2} times apart over three attempts");
}

/// Emulates and simulates one run: what an iteration takes, and what is predicted, by medians.
fn times_of_a_run(job: &Job, system: &'static dyn System, plan: Plan) -> [f64; 2] {
    let run = train(job, system, plan, 7, true);
    let steps = |of: &[Iteration]| of[1..].iter().map(|iteration| iteration.timing.step.0).collect::<Vec<_>>();
    let [emulated, simulated] = [&run.iterations, &run.simulated].map(|of| median(&steps(of)).unwrap());
    let (name, percent) = (system.name(), (simulated / emulated - 1.0) * 100.0);
    println!("{name}: emulated {:.1} ms, simulated {:.1} ms: {percent:+.1}%", emulated * 1e3, simulated * 1e3);
    for (emulated, simulated) in run.iterations.iter().zip(&run.simulated) {
        let did = |of: &Iteration| (of.timing.copied, of.timing.entries, of.timing.dropped, of.moved);
        assert_eq!(did(emulated), did(simulated));
    }
    let (reports, spans) = (run.reports.last().unwrap(), &run.spans);
    // The simulator halves the counts of a sample where tensor-parallel ranks halve its tokens.
    if plan.tp == 1 {
        same_exchanges(spans, reports);
    }
    timelines_stand_side_by_side(reports, spans);
    [emulated, simulated]
}

/// A process per rank and engine, in one file.
fn timelines_stand_side_by_side(reports: &[Report], simulated: &[Span]) {
    let emulated: Vec<Span> = reports.iter().flat_map(|report| report.spans.iter().copied()).collect();
    let timelines = [(EngineKind::Emulated, &emulated[..]), (EngineKind::Simulated, simulated)];
    let mut text = Vec::new();
    timeline::write(&timelines.map(|(engine, spans)| Timeline { engine, spans }), &mut text).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let events = document["traceEvents"].as_array().unwrap();
    let processes = events.iter().filter(|event| event["name"] == "process_name");
    let names: Vec<&str> = processes.map(|event| event["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2 * reports.len());
    assert!(names.contains(&"rank 7 (emulated)") && names.contains(&"rank 7 (simulated)"));
}

/// Both engines show the same exchanges at the same prices, on every rank in the same order; migrations and tensor-parallel
/// collectives, which one shows one by one and the other together, aside.
fn same_exchanges(simulated: &[Span], reports: &[Report]) {
    for report in reports {
        let rank = report.spans[0].rank;
        let exchanges = |spans: &[Span]| {
            let own = spans.iter().filter(|span| span.rank == rank && span.activity.stream() == Stream::Communication);
            let apart = [Activity::Migration, Activity::TensorParallel];
            let own = own.filter(|span| !apart.contains(&span.activity));
            own.map(|span| (span.activity, span.block, span.work, (span.end - span.start).0)).collect::<Vec<_>>()
        };
        let (simulated, emulated) = (exchanges(simulated), exchanges(&report.spans));
        assert_eq!(simulated.len(), emulated.len());
        for (simulated, emulated) in simulated.iter().zip(&emulated) {
            assert_eq!((simulated.0, simulated.1, simulated.2), (emulated.0, emulated.1, emulated.2));
            assert!((simulated.3 - emulated.3).abs() < 1e-9, "rank {rank}: {simulated:?} {emulated:?}");
        }
    }
}
