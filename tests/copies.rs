//! Systems that keep or make copies of experts: every entry is served once, what copies cost is what their bytes take, and
//! copies bring what they promise.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use systems::iteration::run::Balancing;
use systems::iteration::{Charge, Coverage, Evaluation, Start};
use systems::plan::search::PerformanceModel;
use systems::price::Setting;
use systems::price::ledger::Phase;
use systems::program::split::Split;
use systems::program::{Copied, Layout, Op, Rows, Weights};
use systems::zoo::expert_only::ExpertOnly;
use systems::zoo::{eplb, flexmoe, laer, microep, quota, symi};
use systems::{
    CostModel, Decision, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts, Storage, System,
};
use workloads::model::Moe;
use workloads::{Bytes, Seconds};

use crate::support::{batch, close, cluster, job, model, plan, simulate, total};

/// Random counts, a few experts of which are hot.
fn counts(random: &mut ChaCha8Rng, ranks: usize, experts: usize) -> RoutingCounts {
    let hot: Vec<u32> =
        (0..experts).map(|_| [1, 40, 6000][(random.next_u32() % 8).saturating_sub(5) as usize]).collect();
    let row = (0..ranks).flat_map(|_| hot.iter().map(|&hot| random.next_u32() % (hot + 1)).collect::<Vec<_>>());
    RoutingCounts::new(experts, row.collect())
}

/// Every system's programs on random counts, where training starts and where its decisions put experts. Those that have slots beyond
/// one for each expert use them.
#[test]
fn every_entry_is_served_once_under_every_system() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut split = BTreeMap::new();
    for (gpus, ep, experts) in [(8, 8, 16), (8, 4, 8), (16, 8, 8), (6, 3, 12), (4, 1, 4)] {
        let uniform = batch(1, gpus, |_| vec![16; experts]);
        let job = job(model(1, 16 * experts, 64, experts), cluster(4, &[]), gpus, &uniform);
        let plan = Plan { placement_every: 1, ..plan(1, gpus, ep) };
        for system in systems::ALL {
            let mut policy = system.policy(&job, &plan);
            let Start { plan, mut placements } = Start::new(&job, &plan, policy.as_ref());
            for round in 1..12 {
                let counts = counts(&mut random, plan.ep, experts);
                let program = policy.program(0, &counts, &placements[0]);
                let has_copies = placements[0].has_copies() || !program.copies.is_empty();
                if program.layout == Layout::Ragged {
                    served_once(&program, &counts, &placements[0], system.name());
                } else {
                    // Of padded rows, there are no copies but parts of experts.
                    assert!(!has_copies || program.split.of_parts(), "{}", system.name());
                }
                if placements[0].experts_in_slots().len() > experts && !program.split.of_parts() {
                    *split.entry(system.name()).or_insert(0) += usize::from(has_copies);
                }
                let mut past = LoadHistory::default();
                past.push(vec![counts.loads()]);
                if policy.placement_due(round)
                    && let Decision::Move(next) = policy.place(round, 0, &past, &placements[0])
                {
                    placements[0] = next;
                }
            }
        }
    }
    assert!(split.len() > 8 && split.values().all(|&programs| programs > 10), "programs with copies: {split:?}");
}

fn served_once(program: &LayerProgram, counts: &RoutingCounts, placement: &Placement, system: &str) {
    let rows = Rows::new(program, counts, placement);
    for source in 0..counts.ranks() {
        let mut served = vec![0; counts.experts()];
        for owner in 0..counts.ranks() {
            for (slot, expert) in rows.experts_of(owner).iter().enumerate() {
                match expert {
                    Some(expert) => served[*expert] += rows.sent(source, owner, slot),
                    None => assert_eq!(rows.sent(source, owner, slot), 0, "{system}: an empty slot gets rows"),
                }
            }
        }
        program.shadowed.iter().for_each(|&expert| served[expert] += rows.shadowed(source, expert));
        assert_eq!(served, counts.row(source), "{system}");
    }
}

/// Four ranks on two nodes, an expert and an empty slot each, 430 parameters an expert; expert 0 goes to ranks 1 and 3, expert 2 to
/// rank 0.
#[test]
fn copies_take_what_their_bytes_take_on_the_busiest_port() {
    let check = |intra: f64, port: f64, inter: f64, parameters: f64, bandwidth: f64| {
        let constants =
            [("intra_bandwidth", intra), ("port_bandwidth", port), ("inter_bandwidth", inter), ("call_start", 3.0)];
        let costs = CostModel::new(&cluster(2, &constants), 4);
        let moe = Moe::plain(100, 10, 20, 4);
        assert_eq!(moe.expert_parameters(), 430);
        let placement = Placement::in_order(4, 4, 2).unwrap();
        let copies = [(0, 3), (0, 7), (2, 1)].map(|(expert, slot)| Copied { expert, slot }).to_vec();
        let program = LayerProgram::split(Split::Even, copies, Weights::Copied, 7);
        let place = costs.group(0..4, 1);
        let counts = RoutingCounts::new(4, vec![10; 16]);
        let setting = Setting { moe: &moe, tokens: 100, place: &place, costs: &costs };
        let priced = setting.price(&program, &counts, &placement);
        for (op, pass, durations, bytes) in [
            (Op::CopyWeights, &program.forward, &priced.forward, 2.0),
            (Op::CopyWeights, &program.backward, &priced.backward, 2.0),
            (Op::ReturnGrad, &program.backward, &priced.backward, 4.0),
        ] {
            let task = pass.iter().position(|task| task.op == op).unwrap();
            for rank in &durations[4 * task..4 * task + 4] {
                close(rank.0, 2.0 * 3.0 + parameters * bytes / bandwidth);
            }
        }
        // Weights of three copies both ways, and their gradients.
        let bytes = |each: f64| Bytes(3.0 * 430.0 * each);
        assert_eq!(priced.moved.map(|moved| moved.bytes), [bytes(2.0), bytes(2.0 + 4.0)]);
        close(priced.moved[1].time.0, 4.0 * 3.0 + parameters * (2.0 + 4.0) / bandwidth);
        // 40 entries an expert: those of expert 0 over three ranks, of expert 2 over two.
        assert_eq!(priced.computed_rows, [14 + 20, 40 + 13, 20, 40 + 13]);
        // Behind a forward pass that is run again, weights are with the copies, and gradients alone return.
        let mut again = priced.clone();
        again.after_recomputation(&program);
        let task = program.backward.iter().position(|task| task.op == Op::CopyWeights).unwrap();
        for (index, (found, before)) in again.backward.iter().zip(&priced.backward).enumerate() {
            assert_eq!(*found, if index / 4 == task { Seconds::ZERO } else { *before });
        }
        assert_eq!((again.forward, again.moved[0]), (priced.forward, priced.moved[0]));
        assert_eq!(again.moved[1].bytes, bytes(4.0));
    };
    // First, rank 0 sends halves of expert 0 to ranks 1, inside its node, and 3, and rank 2 sends expert 2 to rank 0, so that its node gets one
    // expert and sends a half. Then ranks 1 and 3 send each other their halves. Gradients return the same way.
    check(1e2, 1e15, 1e15, 0.5 * 430.0, 1e2);
    check(1e15, 1e2, 1e15, 1.5 * 430.0, 1e2);
    check(1e15, 1e15, 1e2, 1.5 * 430.0, 1e2);
}

/// Eight ranks of a node hold four experts in two slots each: every rank gets seven eighths of two experts from the others.
#[test]
fn restoring_shards_takes_what_others_hold() {
    let costs = CostModel::new(&cluster(8, &[("intra_bandwidth", 1e3), ("call_start", 1.0)]), 8);
    let moe = Moe::plain(100, 10, 20, 4);
    let slots = (0..16).map(|slot| Some(slot % 4)).collect();
    let placement = Placement::of_slots(slots, 4, 8).unwrap();
    let program = LayerProgram::split(Split::Even, Vec::new(), Weights::Sharded, 0);
    let place = costs.group(0..8, 1);
    let setting = Setting { moe: &moe, tokens: 100, place: &place, costs: &costs };
    let priced = setting.price(&program, &RoutingCounts::new(4, vec![8; 32]), &placement);
    assert_eq!((program.forward[0].op, program.backward[0].op), (Op::Unshard, Op::Unshard));
    let restored = 2.0 * 430.0 * 7.0 / 8.0;
    close(priced.forward[0].0, 1.0 + restored * 2.0 / 1e3);
    let reshard = program.backward.iter().position(|task| task.op == Op::Reshard).unwrap();
    close(priced.backward[8 * reshard].0, 1.0 + restored * 4.0 / 1e3);
    // Eight ranks do, there and back.
    assert_eq!(priced.moved.map(|moved| moved.bytes), [2.0, 6.0].map(|each| Bytes(8.0 * restored * each)));
    close(priced.moved[1].time.0, 2.0 + restored * 6.0 / 1e3);
}

/// A policy that only says where experts are.
struct Told {
    placement: Placement,
    storage: Storage,
}

impl Policy for Told {
    fn first_placement(&self, _layer: usize, _moe: &Moe, _ranks: usize) -> Placement {
        self.placement.clone()
    }

    fn storage(&self) -> Storage {
        self.storage
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

/// Four ranks of a node; expert 0 stands on ranks 0, 1 and 3, expert 1 on ranks 1 and 2.
#[test]
fn gradients_are_summed_over_the_ranks_that_hold_an_expert() {
    let network = [("intra_bandwidth", 1e3), ("call_start", 10.0)];
    let batch = batch(1, 4, |_| vec![25; 4]);
    let job = job(model(1, 100, 10, 4), cluster(4, &network), 4, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let slots = vec![Some(0), None, Some(1), Some(0), Some(2), Some(1), Some(3), Some(0)];
    let copied = Placement::of_slots(slots, 4, 4).unwrap();
    let synchronised = |placement: &Placement, storage| {
        let (plan, placements) = (plan(1, 4, 4), vec![placement.clone()]);
        let policy = Told { placement: placement.clone(), storage };
        let (charges, coverage) = ([Charge::default()], Coverage::Full);
        let evaluation = Evaluation {
            job: &job,
            plan: &plan,
            costs: &costs,
            policy: &policy,
            placements: &placements,
            batch: &batch,
            charges: &charges,
            coverage,
        };
        evaluation.run().phases[0].of(Phase::GradientSync).0
    };
    let alone = synchronised(&Placement::identity(4, 4), Storage::Slots);
    // Rank 1 is in both rings: 860 bytes, of three ranks and of two.
    let rings = 860.0 * (2.0 * 2.0 / 3.0) / 1e3 + 860.0 * (2.0 * 1.0 / 2.0) / 1e3 + 2.0 * 10.0;
    close(synchronised(&copied, Storage::Slots) - alone, rings);
    // Two experts on the fullest rank: three quarters of their gradients go to the other shards, and of their weights come back.
    let shards = 2.0 * (2.0 * 860.0 * 3.0 / 4.0 / 1e3 + 10.0);
    close(synchronised(&copied, Storage::OptimizerShards) - alone, shards);
    close(synchronised(&copied, Storage::Shards), alone);
}

/// One layer on a node of eight whose first expert has half of the entries, on links that cost next to nothing: every balancer comes
/// close to even ranks, and expert parallelism does not.
#[test]
fn balancers_bring_a_hot_expert_close_to_the_mean() {
    let hot = batch(1, 32, |_| (0..16).map(|expert| if expert == 0 { 3400 } else { 200 }).collect());
    let network = [("intra_bandwidth", 1e14), ("memory_bandwidth", 1e16), ("scatter_bandwidth", 1e16)];
    let tokens = 6400;
    let job = job(model(1, tokens, 1024, 16), cluster(8, &network), 8, &hot).layer_alone(0).unwrap();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let steady = |system: &dyn System, every: usize, expert_dp: usize| {
        let plan = Plan { placement_every: every, ..plan(1, 8, 8 / expert_dp) };
        // Past the first decisions.
        let run = simulate(&job, &costs, system, plan, &hot, 60);
        (total(&run[52..]), run[59].balancing.unwrap())
    };
    let even = total(&simulate(&job, &costs, &ExpertOnly, plan(1, 8, 8), &hot.uniform(), 60)[52..]);
    let (plain, nothing) = steady(&ExpertOnly, 0, 1);
    assert!(plain > 2.0 * even, "{plain} against {even}");
    // The first rank has two of 16 experts, and 3400 + 200 of 6400 entries; the mean is an eighth.
    assert_eq!(nothing, Balancing { max_over_mean: 8.0 * 3600.0 / 6400.0, ..Balancing::default() });
    let balancers: [(&dyn System, usize, usize, f64, usize); 8] = [
        (&eplb::Eplb, 10, 1, 1.35, 2),
        (&flexmoe::FLEXMOE, 1, 1, 1.35, 2),
        (&quota::ULTRAEP, 0, 1, 1.25, 2),
        (&quota::MOONEP, 0, 1, 1.25, 2),
        (&quota::LEAST_LOADED, 0, 1, 1.35, 2),
        (&microep::ASYMMETRIC, 50, 2, 1.25, 0),
        (&laer::Laer, 1, 1, 1.35, 1),
        (&symi::Symi, 1, 1, 1.35, 2),
    ];
    for (system, every, expert_dp, bound, redundant_slots) in balancers {
        let (took, balancing) = steady(system, every, expert_dp);
        let took = took / even;
        assert_eq!(balancing.redundant_slots, redundant_slots, "{}", system.name());
        assert!(balancing.max_over_mean < bound, "{}: {balancing:?}", system.name());
        assert!(balancing.planning <= balancing.cost, "{}: {balancing:?}", system.name());
        // Replicas that stand apart send what replicas send anyhow.
        let moves = expert_dp == 1;
        assert_eq!(balancing.moved > Bytes::ZERO, moves, "{}: {balancing:?}", system.name());
        assert!(took < bound, "{}: {took} of even", system.name());
        assert!(took > 0.9, "{}: {took} of even", system.name());
    }
    // Two copies of an expert with half of the entries of eight ranks.
    let symmetric = steady(&microep::MICROEP, 0, 2).0 / even;
    assert!(symmetric > 1.5 && symmetric < 2.5, "{symmetric}");
}

/// Under each system's own search: a plan is found, and its estimate is near the run that follows.
#[test]
fn searches_find_plans_for_systems_with_copies() {
    let hot = batch(2, 32, |_| (0..16).map(|e| if e < 2 { 700 } else { 50 }).collect());
    let job = job(model(2, 2100, 256, 16), cluster(8, &[]), 8, &hot);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let room = |system: &&&dyn System| {
        let plan = plan(1, 8, 4);
        Start::new(&job, &plan, system.policy(&job, &plan).as_ref()).placements[0].experts_in_slots().len() > 16
    };
    let with_copies: Vec<&&dyn System> = systems::ALL.iter().filter(|system| system.searches()).filter(room).collect();
    assert!(with_copies.len() > 8);
    for system in with_copies {
        let name = system.name();
        let (plan, estimate) = system.best(&job, &costs).unwrap();
        let run = simulate(&job, &costs, *system, plan, &hot, 54);
        let last = run.last().unwrap();
        assert_eq!(last.failure, None, "{name}");
        let ratio = last.timing.step / estimate.step;
        assert!((0.8..1.25).contains(&ratio), "{name}: {ratio} of the estimate under {plan}");
        let mut policy = system.policy(&job, &plan);
        let performance = PerformanceModel { job: &job, costs: &costs, profile: &job.profile };
        assert_eq!(performance.placed(&plan, policy.as_mut()).len(), 2);
    }
}

/// Under its own plan each: the search over plans and balancers is close to the best of what it chooses from, and says what it chose.
#[test]
fn the_search_over_balancers_is_never_far_from_the_best_of_them() {
    for (gpus_per_node, skew) in [(8, 1), (8, 4), (4, 30), (4, 1)] {
        let row =
            |chunk: usize| (0..16).map(|e| if (e + chunk / 16).is_multiple_of(8) { 40 * skew } else { 40 }).collect();
        let batch = batch(2, 32, row);
        let job = job(model(2, 14 * 40 + 2 * 40 * skew as usize, 512, 16), cluster(gpus_per_node, &[]), 8, &batch);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let time = |name: &str| {
            let system = systems::by_name(name).unwrap();
            let (plan, _) = system.best(&job, &costs).unwrap();
            total(&simulate(&job, &costs, system, plan, &batch, 32)[21..])
        };
        let own = time("cobalance");
        for other in ["expert-only", "ultraep", "moonep", "least-loaded", "microep", "laer", "eplb"] {
            let other_time = time(other);
            assert!(own <= 1.02 * other_time, "skew {skew}: {own} against {other_time} of {other}");
        }
        let system = systems::by_name("cobalance").unwrap();
        let reasons = system.explain(&job, &system.plan(&job, &costs).unwrap()).unwrap();
        assert!(reasons.contains("layers 0 to") && reasons.contains("none "), "{reasons}");
    }
}
