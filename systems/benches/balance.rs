//! Balancing algorithms at the size of a large model: 256 experts on 64 ranks.
//!
//! They run between the gate and the dispatch of a layer, or between two iterations, so their time is training's time. To stay
//! below: quotas 50 us, the linear program 300 us, EPLB for 58 layers and 320 slots 2 ms.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use systems::balance::{eplb, flexmoe, laer, microep, quota};
use systems::program::routing::RoutingCounts;

const EXPERTS: usize = 256;
const RANKS: usize = 64;

/// `[layer][expert]` entries: a layer's experts follow a power law, in random order, 32768 entries a rank.
fn loads(layers: usize) -> Vec<Vec<u64>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let layer = |_| {
        let mut loads: Vec<u64> = (1..=EXPERTS as u64).map(|rank| 32768 * RANKS as u64 / (6 * rank)).collect();
        (1..EXPERTS).rev().for_each(|i| loads.swap(i, (random.next_u64() % (i as u64 + 1)) as usize));
        loads
    };
    (0..layers).map(layer).collect()
}

fn balance(c: &mut Criterion) {
    let mut group = c.benchmark_group("balance");
    let layers = loads(58);
    let mut next = layers.iter().cycle();
    let shape = eplb::Shape { ranks: RANKS, slots: 5, nodes: 8 };
    group.bench_function("EPLB: 58 layers, 256 experts, 320 slots, 64 ranks", |b| {
        b.iter(|| black_box(&layers).iter().map(|loads| eplb::global(loads, shape)).collect::<Vec<_>>());
    });
    group.bench_function("EPLB hierarchical: 58 layers, 256 experts, 320 slots, 64 ranks", |b| {
        b.iter(|| black_box(&layers).iter().map(|loads| eplb::hierarchical(loads, shape, 8)).collect::<Vec<_>>());
    });

    let rank_of: Vec<usize> = (0..EXPERTS).map(|expert| expert * RANKS / EXPERTS).collect();
    for (domain, name) in [(RANKS, "one domain"), (8, "domains of 8")] {
        let domain_of: Vec<usize> = (0..RANKS).map(|rank| rank / domain).collect();
        let homes = quota::Homes { rank_of: &rank_of, domain_of: &domain_of };
        let limits = quota::Limits { room: 2, least: 1024, slack: 0 };
        group.bench_function(format!("quota: 256 experts, 64 ranks, {name}"), |b| {
            b.iter(|| quota::replicate(black_box(next.next().unwrap()), homes, limits));
        });
        let rule = quota::LeastLoaded { cap: 110, chunk: 1024, threshold: 130, room: 4 };
        group.bench_function(format!("least loaded: 256 experts, 64 ranks, {name}"), |b| {
            b.iter(|| quota::least_loaded(black_box(next.next().unwrap()), homes, rule));
        });
    }

    let symmetric = microep::symmetric(EXPERTS, RANKS, 8);
    group.bench_function("linear program: 256 experts, 64 ranks, two copies each", |b| {
        b.iter(|| microep::split(black_box(next.next().unwrap()), &symmetric, RANKS));
    });
    let by_load = microep::asymmetric(&layers[0], eplb::Shape { slots: 8, ..shape }, 8, 1);
    group.bench_function("linear program: 256 experts, 64 ranks, copies by another load", |b| {
        b.iter(|| microep::split(black_box(next.next().unwrap()), &by_load, RANKS));
    });
    let eight = microep::symmetric(32, 8, 8);
    group.bench_function("linear program: 32 experts, 8 ranks, closed form", |b| {
        b.iter(|| microep::split(black_box(&next.next().unwrap()[..32]), &eight, 8));
    });

    group.bench_function("FlexMoE: 256 experts, 64 ranks, one change", |b| {
        let start = eplb::global(&layers[0], shape);
        let rule = flexmoe::Rule { threshold: 105, changes: 1 };
        b.iter(|| flexmoe::adjust(black_box(next.next().unwrap()), &mut start.clone(), RANKS, rule));
    });
    let nodes: Vec<usize> = (0..RANKS).map(|rank| rank / 8).collect();
    group.bench_function("LAER layout: 256 experts, 64 ranks, 5 a rank", |b| {
        let row: Vec<u32> = layers[0].iter().map(|&load| (load / RANKS as u64) as u32).collect();
        let counts = RoutingCounts::new(EXPERTS, row.repeat(RANKS));
        let prices = laer::Prices { near: 1.0, far: 8.0, row: 4.0, recomputes: false };
        b.iter(|| laer::plan(black_box(&counts), laer::Shape { nodes: &nodes, capacity: 5 }, prices));
    });
    group.finish();
}

criterion_group!(benches, balance);
criterion_main!(benches);
