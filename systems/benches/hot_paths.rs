//! The hot paths: one placement decision, one pool search, one simulated iteration at growing scale.
//!
//! `cargo bench -p systems` prints them; `results/validation` keeps a table of one machine's medians.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use systems::evaluate::{Charge, Evaluation, Extent};
use systems::expert_only::Plain;
use systems::{CostModel, Job, Placement, Plan, System, smartmoe};
use workloads::trace::{BatchCounts, Routing, RoutingSpec, RoutingTrace, SynthSpec};
use workloads::{Cluster, Gate, Model};

fn trace() -> RoutingTrace {
    SynthSpec { samples: 4, ..SynthSpec::default() }.generate().expect("the default synthetic trace")
}

/// The paper's largest model, with eight samples a GPU, on as many GPUs as asked for.
fn job(trace: &RoutingTrace, gpus: usize) -> (Job, BatchCounts) {
    let model = Model::named("bench", "gpt-l16-h1536-e64").expect("a known model");
    let spec = RoutingSpec {
        layers: 16,
        experts: 64,
        chunks: 8 * gpus,
        entries_per_chunk: 2048,
        top_k: 2,
        start: 1,
        stride: 1,
        seed: 0,
    };
    let routing = Routing::new(trace, spec).expect("a trace that fits");
    let job = Job {
        model,
        cluster: Cluster::named("bench", "pinky").expect("a known cluster"),
        gpus,
        gate: Gate::NoDrop,
        gate_statistics: Default::default(),
        global_batch: 8 * gpus,
        micro_batch: Some(1),
        profile: (20..23).map(|t| routing.iteration(t)).collect(),
    };
    (job, routing.iteration(23))
}

fn placement_decision(c: &mut Criterion) {
    let mut group = c.benchmark_group("placement_decision");
    for (experts, ranks) in [(32, 16), (64, 8), (256, 64)] {
        let loads: Vec<u64> = (0..experts as u64).map(|e| (e * 2_654_435_761) % 4096 * (e % 7 + 1)).collect();
        let now = Placement::identity(experts, ranks);
        group.bench_function(format!("{experts} experts on {ranks} ranks"), |b| {
            b.iter(|| smartmoe::greedy(black_box(&loads), black_box(&now)));
        });
    }
    group.finish();
}

fn pool_search(c: &mut Criterion) {
    let mut group = c.benchmark_group("pool_search");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    let trace = trace();
    for gpus in [16, 64, 256, 1024] {
        let (job, _) = job(&trace, gpus);
        let costs = CostModel::new(&job.cluster);
        group.bench_function(BenchmarkId::from_parameter(gpus), |b| {
            b.iter(|| smartmoe::SMARTMOE.candidates(black_box(&job), &costs));
        });
    }
    group.finish();
}

fn simulated_iteration(c: &mut Criterion) {
    let mut group = c.benchmark_group("simulated_iteration");
    group.sample_size(20);
    let trace = trace();
    for gpus in [16, 64, 256, 1024] {
        let (job, batch) = job(&trace, gpus);
        let costs = CostModel::new(&job.cluster);
        let plan = Plan { pp: 4, dp: gpus / 4, tp: 1, ep: 4, expert_dp: gpus / 16, micro_batch: 1, placement_every: 0 };
        let placements = vec![Placement::identity(64, plan.ep); 16];
        let charges = vec![Charge::default(); plan.pp];
        // Ranks x layers of a stage x micro-batches of a rank.
        group.throughput(Throughput::Elements((gpus * 4 * plan.micro_batches(&job)) as u64));
        group.bench_function(BenchmarkId::from_parameter(gpus), |b| {
            b.iter(|| {
                Evaluation {
                    job: &job,
                    plan: &plan,
                    costs: &costs,
                    policy: &Plain,
                    placements: &placements,
                    batch: black_box(&batch),
                    charges: &charges,
                    extent: Extent::Full,
                }
                .run()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, placement_decision, pool_search, simulated_iteration);
criterion_main!(benches);
