//! Random jobs on random clusters: results move the right way when a bandwidth, a start-up, a capacity or a skew does.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use systems::zoo::{alpa, eplb, expert_only, fastermoe, laer, quota, smartmoe};
use systems::{CostModel, Job, Plan, System};
use workloads::cluster::Constant;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Gate};

use crate::support::{batch, cluster_toml, job, model, plan, simulate, total};

const TOKENS: usize = 512;
const CASES: u64 = 60;

/// A job of a few nodes, not all of them full, with a plan and what its gate chooses.
struct Case {
    cluster: String,
    job: Job,
    plan: Plan,
    batch: BatchCounts,
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        u64::from(self.0.next_u32()) % limit
    }

    fn of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// From a tenth to ten times `middle`.
    fn around(&mut self, middle: f64) -> f64 {
        middle * 10f64.powf(self.below(2001) as f64 / 1000.0 - 1.0)
    }
}

const BANDWIDTHS: [(&str, f64); 7] = [
    ("gemm_rate", 1e14),
    ("memory_bandwidth", 1e12),
    ("scatter_bandwidth", 1e12),
    ("intra_bandwidth", 1e11),
    ("inter_bandwidth", 2e10),
    ("port_bandwidth", 2e10),
    ("rooted_bandwidth", 1e10),
];

const START_UPS: [(&str, f64); 6] = [
    ("call_start", 1e-5),
    ("peer_start", 1e-5),
    ("send_start", 1e-5),
    ("expert_start", 1e-5),
    ("block", 1e-5),
    ("synchronisation", 1e-5),
];

/// A cluster's TOML with two larger tiers: pods of two nodes, rows of four.
fn tiered(gpus_per_node: usize, constants: &[(&str, f64)], oversubscription: [f64; 2]) -> String {
    let mut text = cluster_toml(gpus_per_node, constants);
    for ((name, nodes), factor) in [("pod", 2), ("row", 4)].into_iter().zip(oversubscription) {
        text += &format!(
            "\n[[network.tiers]]\nname = \"{name}\"\nnodes = {nodes}\n\
             bandwidth = {{ value = {:e}, source = \"a test\" }}\n\
             oversubscription = {{ value = {factor:e}, source = \"a test\" }}\n",
            2e10 * f64::from(nodes)
        );
    }
    text
}

/// Case `seed`, with the constants and tiers that `change` makes of it.
fn case(seed: u64, change: impl FnOnce(&mut Vec<(&'static str, f64)>, &mut [f64; 2], &mut Draw)) -> Case {
    let mut draw = Draw(ChaCha8Rng::seed_from_u64(seed));
    let gpus_per_node = draw.of(&[2, 4, 8]);
    let (pp, groups, ep) = (draw.of(&[1, 2]), draw.of(&[1, 2, 3]), draw.of(&[1, 2, 4, 6]));
    let (experts, micro_batches) = (12 * (1 + draw.below(2) as usize), 1 + draw.below(3) as usize);
    let plan = Plan { placement_every: draw.of(&[0, 2]), ..plan(pp, groups * ep, ep) };
    let mut constants: Vec<_> =
        BANDWIDTHS.iter().chain(&START_UPS).map(|&(name, of)| (name, draw.around(of))).collect();
    let mut oversubscription = [draw.of(&[1.0, 2.0, 8.0]), draw.of(&[1.0, 3.0])];
    let hot = 1 + draw.below(4);
    let batch = batch(4, groups * ep * micro_batches, |chunk| {
        let mut of = Draw(ChaCha8Rng::seed_from_u64(seed * 1000 + chunk as u64));
        let mut row = vec![0; experts];
        for _ in 0..TOKENS {
            let expert = if of.below(2) == 0 { of.below(hot) } else { of.below(experts as u64) };
            row[expert as usize] += 1;
        }
        row
    });
    change(&mut constants, &mut oversubscription, &mut draw);
    let cluster = tiered(gpus_per_node, &constants, oversubscription);
    let parsed = Cluster::parse("test.toml", &cluster).unwrap();
    let job = job(model(4, TOKENS, 128, experts), parsed, pp * groups * ep, &batch);
    Case { cluster, job, plan, batch }
}

impl Case {
    /// Time of four iterations.
    fn time(&self, system: &dyn System) -> f64 {
        total(&simulate(
            &self.job,
            &CostModel::new(&self.job.cluster, self.job.gpus),
            system,
            self.plan,
            &self.batch,
            4,
        ))
    }
}

/// Whose programs depend on routing alone, not on what they believe of a cluster.
const UNADAPTIVE: [&dyn System; 4] =
    [&expert_only::ExpertOnly, &fastermoe::UNPIPELINED, &alpa::Alpa, &smartmoe::SMARTMOE];

/// Systems that leave experts where they are, and rows to their experts.
const UNPLACED: [&dyn System; 3] = [&expert_only::ExpertOnly, &alpa::Alpa, &smartmoe::SMARTMOE];

#[test]
fn a_higher_bandwidth_is_never_slower_and_a_longer_start_up_never_faster() {
    for seed in 0..CASES {
        let before = case(seed, |_, _, _| ());
        let mut name = "";
        let faster = case(seed, |constants, _, draw| {
            let (of, factor) = (draw.below(BANDWIDTHS.len() as u64) as usize, 1.1 + draw.below(50) as f64 / 10.0);
            name = constants[of].0;
            constants[of].1 *= factor;
        });
        let slower = case(seed, |constants, _, draw| {
            let of = BANDWIDTHS.len() + draw.below(START_UPS.len() as u64) as usize;
            constants[of].1 *= 1.1 + draw.below(50) as f64 / 10.0;
        });
        for system in UNADAPTIVE {
            let (time, with, without) = (before.time(system), faster.time(system), slower.time(system));
            let cluster = &before.cluster;
            assert!(
                with <= time * (1.0 + 1e-12),
                "seed {seed}, {name}, {}: {with} after {time}\n{cluster}",
                system.name()
            );
            assert!(without >= time * (1.0 - 1e-12), "seed {seed}, {}: {without} after {time}", system.name());
        }
    }
}

#[test]
fn a_more_oversubscribed_tier_is_never_faster() {
    let mut slower = 0;
    for seed in 0..CASES {
        let before = case(seed, |_, _, _| ());
        let after = case(seed, |_, oversubscription, draw| oversubscription[draw.below(2) as usize] *= 16.0);
        let (time, then) = (before.time(&expert_only::ExpertOnly), after.time(&expert_only::ExpertOnly));
        assert!(then >= time * (1.0 - 1e-12), "seed {seed}: {then} after {time}\n{}", before.cluster);
        slower += usize::from(then > 1.01 * time);
    }
    assert!(slower > 5, "tiers that matter: {slower}");
}

/// What kernels and transfers take of each other makes no iteration shorter, and those of systems longer whose weights travel.
#[test]
fn kernels_and_transfers_that_share_a_gpu_are_never_faster() {
    let mut slower = 0;
    for seed in 0..CASES {
        let time = |system: &dyn System, [kernels, transfers]: [f64; 2]| {
            let mut case = case(seed, |_, _, _| ());
            let share = |value| Some(Constant { value, uncertainty: None, peak: None, source: "a test".to_owned() });
            let network = &mut case.job.cluster.network;
            (network.slows_kernels, network.slowed_by_kernels) = (share(kernels), share(transfers));
            case.time(system)
        };
        for system in [&laer::Laer as &dyn System, &quota::ULTRAEP, &eplb::Eplb, &expert_only::ExpertOnly] {
            let times = [[0.0, 0.0], [0.3, 0.0], [0.3, 0.5], [0.6, 1.0]].map(|shares| time(system, shares));
            assert!(times.is_sorted_by(|a, b| *a <= b * (1.0 + 1e-9)), "seed {seed}, {}: {times:?}", system.name());
            slower += usize::from(times[3] > 1.01 * times[0]);
        }
    }
    assert!(slower > 5, "runs that take longer: {slower}");
}

/// What a gate lets through grows with its capacity, and so does the time.
#[test]
fn a_larger_capacity_is_never_faster() {
    for seed in 0..CASES {
        let Case { job, plan, batch, .. } = case(seed, |_, _, _| ());
        let costs = CostModel::new(&job.cluster, job.gpus);
        for system in UNPLACED {
            let times = [0.5, 1.0, 2.0, 8.0].map(|factor| {
                let job = Job { gate: Gate::Capacity { factor }, ..job.clone() };
                total(&simulate(&job, &costs, system, Plan { placement_every: 0, ..plan }, &batch, 1))
            });
            let name = system.name();
            assert!(times.is_sorted_by(|a, b| *a <= b * (1.0 + 1e-12)), "seed {seed}, {name}: {times:?}");
        }
    }
}

/// Entries of every chunk that go to one expert instead of their own make an iteration no faster.
#[test]
fn a_greater_skew_is_never_faster() {
    for seed in 0..CASES {
        let Case { job, plan, batch: before, .. } = case(seed, |_, _, _| ());
        let costs = CostModel::new(&job.cluster, job.gpus);
        let experts = before.chunk(0, 0).len();
        let even = TOKENS as u32 / experts as u32;
        for system in UNPLACED {
            let times = [0, 1, 2, 3].map(|quarters| {
                let moved = even * quarters / 4;
                let row = |_: usize| {
                    let mut row = vec![even - moved; experts];
                    row[0] = TOKENS as u32 - (experts as u32 - 1) * (even - moved);
                    row
                };
                let batch = batch(4, before.chunks(), row);
                total(&simulate(&job, &costs, system, Plan { placement_every: 0, ..plan }, &batch, 1))
            });
            let name = system.name();
            assert!(times.is_sorted_by(|a, b| *a <= b * (1.0 + 1e-12)), "seed {seed}, {name}: {times:?}");
        }
    }
}
