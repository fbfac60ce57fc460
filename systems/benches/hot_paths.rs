//! The hot paths: one placement decision, one pool search, one simulated iteration at growing scale.
//!
//! `scripts/benchmarks` runs them and writes `results/validation/benchmarks.md`, a table of one machine's medians.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use systems::iteration::{Charge, Coverage, Evaluation};
use systems::{
    CostModel, Job, Placement, Plain, Plan, System,
    zoo::{cobalance, smartmoe},
};
use workloads::trace::{BatchCounts, Routing, RoutingSpec, RoutingTrace, SynthSpec};
use workloads::{Cluster, Gate, Model};

fn trace() -> RoutingTrace {
    SynthSpec { samples: 4, ..SynthSpec::default() }.generate().expect("the default synthetic trace")
}

/// The paper's largest model with `16 * deeper` layers, on as many GPUs and samples a GPU as asked for.
fn job(trace: &RoutingTrace, gpus: usize, samples: usize, deeper: usize) -> (Job, BatchCounts) {
    let mut model = Model::named("bench", "gpt-l16-h1536-e64").expect("a known model");
    model.blocks = model.blocks.repeat(deeper);
    let spec = RoutingSpec {
        layers: model.blocks.len(),
        experts: 64,
        chunks: samples * gpus,
        entries_per_chunk: 2048,
        top_k: 2,
        start: 1,
        stride: 1,
        seed: 0,
    };
    let routing = Routing::new(trace, spec).expect("a trace that fits");
    let cluster = Cluster::named("bench", "pinky").expect("a known cluster");
    let job = Job::new(model, cluster, gpus, Gate::NoDrop, samples * gpus)
        .with_micro_batch(1)
        .with_profile((20..23).map(|t| routing.iteration(t)).collect());
    (job, routing.iteration(23))
}

fn placement_decision(c: &mut Criterion) {
    let mut group = c.benchmark_group("placement_decision");
    for (experts, ranks) in [(32, 16), (64, 8), (256, 64)] {
        let loads: Vec<u64> = (0..experts as u64).map(|e| (e * 2_654_435_761) % 4096 * (e % 7 + 1)).collect();
        let now = Placement::identity(experts, ranks);
        group.bench_function(format!("{experts} experts on {ranks} ranks"), |b| {
            b.iter(|| smartmoe::place_experts(black_box(&loads), black_box(&now)));
        });
    }
    group.finish();
}

fn pool_search(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool_search");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    let trace = trace();
    for gpus in [16, 64, 256, 1024] {
        let (job, _) = job(&trace, gpus, 8, 1);
        let costs = CostModel::new(&job.cluster, job.gpus);
        group.bench_function(BenchmarkId::from_parameter(gpus), |b| {
            b.iter(|| smartmoe::SMARTMOE.candidates(black_box(&job), &costs));
        });
    }
    let (job, _) = job(&trace, 64, 8, 1);
    let costs = CostModel::new(&job.cluster, job.gpus);
    group.bench_function("64, with all balancers", |b| {
        b.iter(|| cobalance::CoBalance.candidates(black_box(&job), &costs));
    });
    group.finish();
}

fn simulated_iteration(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulated_iteration");
    group.sample_size(20);
    let trace = trace();
    for gpus in [16, 64, 256, 1024] {
        iteration(&mut group, &format!("{gpus}"), job(&trace, gpus, 8, 1));
    }
    for deeper in [2, 4] {
        iteration(&mut group, &format!("64: {deeper} x the layers"), job(&trace, 64, 8, deeper));
    }
    for longer in [2, 4] {
        iteration(&mut group, &format!("64: {longer} x the micro-batches"), job(&trace, 64, 8 * longer, 1));
    }
    group.finish();
}

/// Four stages, groups of four ranks with 16 experts each: many small groups are the slowest shape to simulate.
fn iteration(group: &mut BenchmarkGroup<WallTime>, name: &str, (job, batch): (Job, BatchCounts)) {
    let costs = CostModel::new(&job.cluster, job.gpus);
    let (pp, ep) = (4, 4);
    let dp = job.gpus / pp;
    let plan = Plan { pp, dp, ep, expert_dp: dp / ep, ..Plan::default() };
    let placements = vec![Placement::identity(64, ep); job.model.blocks.len()];
    let charges = vec![Charge::default(); pp];
    // Ranks x layers of a stage x micro-batches of a rank.
    let elements = job.gpus * (job.model.blocks.len() / pp) * plan.micro_batches(&job);
    group.throughput(Throughput::Elements(elements as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            Evaluation {
                job: &job,
                plan: &plan,
                costs: &costs,
                policy: &Plain,
                placements: &placements,
                batch: black_box(&batch),
                charges: &charges,
                coverage: Coverage::Full,
            }
            .run()
        });
    });
}

criterion_group!(benches, placement_decision, pool_search, simulated_iteration);
criterion_main!(benches);
