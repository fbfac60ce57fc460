//! What a switched-off feature and a changed constant do to simulated times.

use systems::iteration::run::{Iteration, Run};
use systems::plan::search;
use systems::price::ledger::Phase;
use systems::program::{Layout, Products};
use systems::zoo::expert_only::ExpertOnly;
use systems::{
    About, Candidate, CostModel, Job, Overlap, Placement, Plan, Policy, RoutingCounts, System, zoo::fastermoe,
    zoo::smartmoe,
};
use workloads::Cluster;
use workloads::cluster::Program;
use workloads::trace::BatchCounts;

use crate::support::{batch, close, cluster, draws, job, model, plan, simulate, total};

const TOKENS: usize = 2048;

/// `hot` experts share nine tenths of every chunk's entries, the others the rest; chunks differ a little.
fn skewed(layers: usize, chunks: usize, experts: usize, hot: &[usize]) -> BatchCounts {
    batch(layers, chunks, |chunk| {
        let mut row = vec![0; experts];
        let mut draw = draws(chunk as u64, experts as u64);
        for token in 0..TOKENS {
            let expert = if token % 10 > 0 { hot[token % hot.len()] } else { draw() as usize };
            row[expert] += 1;
        }
        row
    })
}

/// Fails unless the two agree to a percent.
#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 0.01, "{found}, expected {expected}");
}

/// Simulated time of ten iterations on a cluster, s.
fn seconds(job: &Job, system: &dyn System, plan: Plan, batch: &BatchCounts) -> f64 {
    total(&simulate(job, &CostModel::new(&job.cluster, job.gpus), system, plan, batch, 10))
}

/// Eight ranks on two nodes, an expert on each, expert 0 hot.
fn eight_ranks() -> (Job, BatchCounts) {
    let batch = skewed(2, 16, 8, &[0, 0, 0, 3]);
    (job(model(2, TOKENS, 512, 8), cluster(4, &[]), 8, &batch), batch)
}

#[test]
fn shadowing_helps_where_experts_are_hot() {
    let (skewed_job, skewed_batch) = eight_ranks();
    let even = skewed_batch.uniform();
    let with = |batch| {
        simulate(
            &skewed_job,
            &CostModel::new(&skewed_job.cluster, skewed_job.gpus),
            &fastermoe::FASTERMOE,
            plan(1, 8, 8),
            batch,
            10,
        )
    };
    let without = |batch| seconds(&skewed_job, &fastermoe::UNSHADOWED, plan(1, 8, 8), batch);
    assert!(with(&skewed_batch)[0].timing.copied > 0);
    near(without(&skewed_batch) / total(&with(&skewed_batch)), 1.362);
    // Nothing is shadowed where nothing is hot: what is left is the schedule, known the same way.
    let job = Job { profile: vec![even.clone()], ..skewed_job.clone() };
    let costs = CostModel::new(&job.cluster, job.gpus);
    let shadowing = simulate(&job, &costs, &fastermoe::FASTERMOE, plan(1, 8, 8), &even, 10);
    assert_eq!(shadowing[0].timing.copied, 0);
    close(total(&shadowing), seconds(&job, &fastermoe::UNSHADOWED, plan(1, 8, 8), &even));
}

#[test]
fn the_schedule_hides_exchanges_behind_experts() {
    let (job, batch) = eight_ranks();
    let even = batch.uniform();
    let job = Job { profile: vec![even.clone()], ..job };
    // Without start-ups and waits of the host, expert parallelism is the schedule in one step.
    let free = |system: &dyn System| seconds(&job, system, plan(1, 8, 8), &even);
    near(free(&ExpertOnly) / free(&fastermoe::UNSHADOWED), 1.123);
    // Where each call takes long to start, nothing is cut, and shadowing has nothing to do.
    let slow = Job { cluster: cluster(4, &[("call_start", 1e-2)]), ..job.clone() };
    let slow_seconds = |system: &dyn System| seconds(&slow, system, plan(1, 8, 8), &even);
    close(slow_seconds(&fastermoe::FASTERMOE), slow_seconds(&ExpertOnly));
    near(slow_seconds(&fastermoe::GROUPS_OF_FOUR) / slow_seconds(&fastermoe::FASTERMOE), 1.700);
}

/// Its own rule has no pipeline; the search, for its own programs, is no slower on what it was shown.
#[test]
fn a_searched_plan_is_no_slower_than_a_systems_own() {
    let batch = skewed(4, 16, 16, &[0, 1, 6]);
    let job = job(model(4, TOKENS, 512, 16), cluster(4, &[("send_start", 1e-4), ("call_start", 1e-4)]), 8, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    for &system in systems::ALL {
        let (own, expected) = system.best(&job, &costs).unwrap();
        let (searched, found) = search::first_usable(search::searched(system, &job, &costs)).unwrap();
        // Rules may know what the search does not: virtual stages, sharded state.
        let known = search::pools(&job).iter().any(|pool| pool.plan(own.placement_every) == own);
        assert!(!known || found.step <= expected.step, "{}: {own}, {searched}", system.name());
        if !system.searches() {
            close(seconds(&job, system, searched, &batch) / 10.0, found.step.0);
        }
    }
}

#[test]
fn the_topology_gate_keeps_entries_on_their_node() {
    let (job, batch) = eight_ranks();
    let even = batch.uniform();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let run = |system: &dyn System| simulate(&job, &costs, system, plan(1, 8, 8), &even, 1).swap_remove(0).timing;
    let (with, without) = (run(&fastermoe::TOPOLOGY_GATE), run(&fastermoe::FASTERMOE));
    assert_eq!(with.entries, without.entries, "entries move, none is dropped");
    near(without.step / with.step, 1.477);
}

#[test]
fn placement_parts_hot_experts_that_share_a_rank() {
    let check = |batch: BatchCounts, gain: Option<f64>| {
        let job = job(model(2, TOKENS, 512, 16), cluster(4, &[]), 8, &batch);
        let placed = Plan { placement_every: 2, ..plan(1, 8, 8) };
        let costs = CostModel::new(&job.cluster, job.gpus);
        let run = |plan| simulate(&job, &costs, &smartmoe::SMARTMOE, plan, &batch, 10);
        let (with, without) = (run(placed), run(plan(1, 8, 8)));
        assert_eq!(with.iter().map(|done| done.moved).sum::<usize>() > 0, gain.is_some());
        assert_eq!(with[..2], without[..2], "no decision before there is a history");
        match gain {
            Some(gain) => near(without[9].timing.step / with[9].timing.step, gain),
            None => {
                let decided: f64 = with.iter().map(|done| done.decision.0).sum();
                close(total(&with) - decided, total(&without));
            }
        }
    };
    check(skewed(2, 16, 16, &[0, 1]), Some(1.197));
    check(skewed(2, 16, 16, &[4, 5, 6, 7]), Some(1.115));
    check(skewed(2, 16, 16, &[0]).uniform(), None);
}

#[test]
fn migration_takes_what_its_bytes_take() {
    let batch = skewed(1, 8, 16, &[0, 1]);
    let job = job(model(1, TOKENS, 512, 16), cluster(8, &[("decision_step", 1e-6)]), 8, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let plan = Plan { placement_every: 2, ..plan(1, 8, 8) };
    let run = |system: &dyn System| simulate(&job, &costs, system, plan, &batch, 10);
    let (charged, weights_only, free) =
        (run(&smartmoe::SMARTMOE), run(&smartmoe::WEIGHTS_ONLY_MIGRATION), run(&smartmoe::FREE_MIGRATION));
    let migration = |run: &[systems::iteration::run::Iteration]| run.iter().map(|done| done.migration.0).sum::<f64>();
    assert!(migration(&charged) > 0.0);
    close(total(&charged) - migration(&charged), total(&free));
    close(total(&weights_only) - migration(&weights_only), total(&free));
    // 14 bytes a parameter against 2, over the same links.
    close(migration(&charged), 7.0 * migration(&weights_only));
    // A decision holds every expert against every rank, once the loads of two iterations are summed around the ring of
    // eight; iterations 2, 4, 6 and 8 decide.
    let gathered = 8.0 * 16.0 * 2.0 * (2.0 * 7.0 / 8.0) / 1e11;
    close(free.iter().map(|done| done.decision.0).sum(), 4.0 * (16.0 * 8.0 * 1e-6 + gathered));
}

/// The plan that an offline search picks from what it knows, simulated on the routing that comes.
#[test]
fn a_data_sensitive_estimate_picks_plans_that_are_no_slower() {
    let mut strictly = 0;
    for (gpus, experts, hot) in [
        (8, 8, &[0][..]),
        (8, 16, &[0, 1]),
        (8, 16, &[0, 5]),
        (16, 16, &[0, 1, 2, 3]),
        (16, 32, &[0, 1]),
        (16, 16, &[0, 3, 7, 11, 15]),
    ] {
        let batch = skewed(4, 2 * gpus, experts, hot);
        let job = job(model(4, TOKENS, 1024, experts), cluster(4, &[("call_start", 2e-5)]), gpus, &batch);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let picked = |system: &dyn System| {
            let plan = system.plan(&job, &costs).unwrap();
            (plan, seconds(&job, &smartmoe::OFFLINE_ONLY, plan, &batch))
        };
        let (sensitive, uniform) = (picked(&smartmoe::OFFLINE_ONLY), picked(&smartmoe::UNIFORM_ESTIMATE));
        assert!(sensitive.1 <= uniform.1, "{gpus} GPUs, {experts} experts, {hot:?} hot: {sensitive:?}, {uniform:?}");
        strictly += usize::from(1.05 * sensitive.1 < uniform.1);
    }
    assert!(strictly >= 3, "{strictly}");
}

/// Four groups of two ranks, of which only the last one's tokens crowd on one rank.
#[test]
fn an_estimate_sees_the_slowest_of_small_groups() {
    let quarter = (TOKENS / 4) as u32;
    let batch = batch(2, 64, |chunk| if chunk < 48 { vec![quarter; 4] } else { vec![4 * quarter, 0, 0, 0] });
    let job = job(model(2, TOKENS, 512, 4), cluster(8, &[]), 8, &batch);
    let (plan, costs) = (plan(1, 8, 2), CostModel::new(&job.cluster, job.gpus));
    let estimate = smartmoe::OFFLINE_ONLY.estimate(&job, &plan, &costs).unwrap().step.0;
    close(estimate, total(&simulate(&job, &costs, &smartmoe::OFFLINE_ONLY, plan, &batch, 1)));
    let even = job.profile[0].uniform();
    near(estimate / total(&simulate(&job, &costs, &smartmoe::OFFLINE_ONLY, plan, &even, 1)), 1.242);
}

/// Time of one dispatch of 12 ranks with an expert each, whose tokens spread evenly, in groups of `ep`; 2048 rows of 1024 bytes
/// a rank.
fn dispatch(gpus_per_node: usize, ep: usize) -> f64 {
    let batch = batch(1, 12, |_| (0..12).map(|e| if e < 8 { 171 } else { 170 }).collect());
    let network = [("port_bandwidth", 1e12), ("intra_bandwidth", 1e12)];
    let job = job(model(1, TOKENS, 512, 12), cluster(gpus_per_node, &network), 12, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let done = simulate(&job, &costs, &ExpertOnly, plan(1, 12, ep), &batch, 1);
    // Forward and backward.
    done[0].timing.phases[0].of(Phase::Dispatch).0 / 2.0
}

#[test]
fn the_busiest_node_decides_an_exchange() {
    const ROW: f64 = 1024.0 / 2e10;
    let take = |found: f64, rows: f64| assert!((found / (rows * ROW) - 1.0).abs() < 2e-3, "{found}: {rows} rows");
    let rows = TOKENS as f64;
    // A node of eight and one of four, and three of four: the fullest sends 8 x 4/12 or 4 x 8/12 of its rows away.
    take(dispatch(8, 12), 8.0 * rows * 4.0 / 12.0);
    take(dispatch(4, 12), 4.0 * rows * 8.0 / 12.0);
    assert!(dispatch(8, 12) <= 1.002 * dispatch(4, 12));
    // Two groups of six on three nodes of four: both cross into the second node, which carries the rows of both.
    take(dispatch(4, 6), 2.0 * (2.0 * rows * 4.0 / 6.0));
    // Groups of four have a node each: three quarters of a rank's rows go over its links, of 50 times the rate, and none leave.
    take(dispatch(4, 4), rows * 3.0 / 4.0 / 50.0);
}

/// One expert-parallel rank alone: nothing to exchange, to wait for, to shadow or to decide about.
#[test]
fn the_same_work_takes_the_same_time_under_every_name() {
    let batch = skewed(2, 14, 8, &[0, 0, 3]);
    let host = [("synchronisation", 1e-4), ("decision_step", 1e-6), ("call_start", 1e-4)];
    let mut job = job(model(2, TOKENS, 512, 8), cluster(8, &host), 7, &batch);
    let alone = plan(1, 7, 1);
    let mut same = [0; 2];
    // Each as it is, and all in a training program that multiplies all experts of a rank at once and reduces gradients beside passes.
    for (one_program, same) in [false, true].into_iter().zip(&mut same) {
        if one_program {
            job.cluster.program =
                Program { grouped_products: Some(true), overlap_state: Some(true), ..Program::default() };
        }
        let costs = CostModel::new(&job.cluster, job.gpus);
        let expected = simulate(&job, &costs, &ExpertOnly, alone, &batch, 2);
        for system in systems::ALL {
            let policy = system.policy(&job, &alone);
            let program = policy.program(0, &RoutingCounts::new(8, vec![9; 8]), &Placement::identity(8, 1));
            // Others pad, force the gate, or have replicas exchange rows as one group, so that no rank is alone.
            let alike = program.layout == Layout::Ragged && !restricts(policy.as_ref()) && !policy.joins_replicas();
            let by_itself = (program.products, policy.overlap()) == (Products::PerExpert, Overlap::default());
            if alike && (by_itself || one_program && !policy.overlap().exchanges && !policy.overlap().queued) {
                assert_eq!(simulate(&job, &costs, *system, alone, &batch, 2), expected, "{}", system.name());
                *same += 1;
            }
        }
    }
    let [apart, in_one] = same;
    assert!(apart >= 10 && in_one > apart, "systems that do the same work: {apart}, in one program {in_one}");
}

/// Whether choices of a rank alone are changed.
fn restricts(policy: &dyn Policy) -> bool {
    let chosen = RoutingCounts::new(8, (1..9).collect());
    let mut left = chosen.clone();
    policy.restrict(&mut left, &[0]);
    left != chosen
}

/// A decision waits for the loads of the iterations since the last one, summed over the stage.
#[test]
fn gathering_loads_takes_what_its_bytes_take() {
    let batch = skewed(2, 8, 16, &[0]).uniform();
    let network = [("intra_bandwidth", 1e3), ("call_start", 0.5), ("decision_step", 1e-6)];
    let job = job(model(2, TOKENS, 512, 16), cluster(8, &network), 8, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let done = simulate(&job, &costs, &smartmoe::SMARTMOE, Plan { placement_every: 3, ..plan(1, 8, 8) }, &batch, 7);
    // Two layers of 16 experts in three iterations, around a ring of eight; each layer is then decided about.
    let gathered = 8.0 * 2.0 * 16.0 * 3.0 * (2.0 * 7.0 / 8.0) / 1e3 + 0.5;
    let decided = gathered + 2.0 * 16.0 * 8.0 * 1e-6;
    for (t, iteration) in done.iter().enumerate() {
        close(iteration.decision.0, if t > 0 && t % 3 == 0 { decided } else { 0.0 });
    }
}

/// What a change of the cluster adds to the time of a job whose every part takes a share of it.
#[test]
fn a_worse_cluster_is_slower_by_what_it_is_worse() {
    let starts = [
        ("call_start", 1e-4),
        ("peer_start", 1e-4),
        ("send_start", 1e-4),
        ("expert_start", 1e-4),
        ("block", 1e-4),
        ("synchronisation", 1e-4),
        ("iteration", 1e-2),
    ];
    let batch = skewed(4, 64, 8, &[0, 5]);
    let run = |cluster: Cluster, plan: Plan| {
        let job = Job { micro_batch: None, ..job(model(4, TOKENS, 512, 8), cluster, 16, &batch) };
        seconds(&job, &ExpertOnly, plan, &batch)
    };
    let plan = plan(2, 8, 8);
    let reference = run(cluster(4, &starts), plan);
    let changed = |change: &[(&str, f64)]| {
        let changes: Vec<_> = change.iter().chain(&starts).copied().collect();
        run(cluster(4, &changes), plan)
    };
    // Of an iteration.
    let added = |change: &[(&str, f64)]| (changed(change) - reference) / 10.0;
    near(reference / 10.0, 0.1207);
    let halved = added(&[("inter_bandwidth", 1e10), ("port_bandwidth", 1e10)]);
    near(halved, 2.076e-2);
    near(added(&[("inter_bandwidth", 4e10), ("port_bandwidth", 4e10)]), -halved / 2.0);
    near(added(&[("gemm_rate", 5e13)]), 1.649e-2);
    near(added(&[("memory_bandwidth", 5e11), ("scatter_bandwidth", 5e11)]), 1.115e-2);
    // Eight micro-batches go through two stages in nine slots; a slot takes two layers forward and backward, that is 18 layers.
    let layers = 18.0;
    let counts = [
        // Counts and four exchanges a layer; twice, gradients are summed.
        ("call_start", 5.0 * layers + 2.0),
        // The four ranks of the other node.
        ("peer_start", 4.0 * 5.0 * layers),
        // One a slot.
        ("send_start", 9.0),
        // One expert a rank; its products backward are twice those forward.
        ("expert_start", 3.0 * layers),
        // Forward and backward.
        ("block", 2.0 * layers),
        ("synchronisation", 4.0 * layers),
        ("iteration", 1.0),
    ];
    let doubled = starts.map(|(field, value)| (field, 2.0 * value));
    for ((field, start), (counted, count)) in starts.into_iter().zip(counts) {
        assert_eq!(field, counted);
        near(added(&[(field, 2.0 * start)]), count * start);
    }
    near(added(&doubled), counts.iter().zip(starts).map(|((_, count), (_, start))| count * start).sum());
    // Everything at once is everything.
    let slower = [
        ("intra_bandwidth", 5e10),
        ("inter_bandwidth", 1e10),
        ("port_bandwidth", 1e10),
        ("gemm_rate", 5e13),
        ("memory_bandwidth", 5e11),
        ("scatter_bandwidth", 5e11),
    ];
    close(changed(&[&slower[..], &doubled].concat()), 2.0 * reference);
    // The same samples in twice as many micro-batches: less idle stages, but more start-ups and half-filled experts.
    let free_pipeline = |micro_batch| run(cluster(4, &starts), Plan { micro_batch, ..plan1() });
    near(free_pipeline(1) / free_pipeline(2), 1.345);
    // Twice the samples in twice as many micro-batches of the same size: 17 slots instead of nine, and once what an iteration has
    // once.
    let twice = skewed(4, 128, 8, &[0, 5]);
    let job = job(model(4, TOKENS, 512, 8), cluster(4, &starts), 16, &twice);
    near(seconds(&job, &ExpertOnly, plan, &twice) / reference, 1.810);
}

fn plan1() -> Plan {
    plan(1, 16, 8)
}

/// A system under another name.
struct Renamed(&'static dyn System);

impl System for Renamed {
    fn about(&self) -> About {
        About { name: "expert-only", title: "Another", summary: "A test" }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        self.0.candidates(job, costs)
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        self.0.policy(job, plan)
    }
}

#[test]
fn a_name_changes_nothing() {
    let batch = skewed(2, 32, 16, &[0, 1, 6]);
    let job = job(model(2, TOKENS, 512, 16), cluster(4, &[("send_start", 1e-4)]), 8, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    for &system in systems::ALL {
        let renamed = Renamed(system);
        let plan = system.plan(&job, &costs).unwrap();
        assert_eq!(renamed.plan(&job, &costs).unwrap(), plan);
        let run = |system: &dyn System| simulate(&job, &costs, system, plan, &batch, 12);
        assert_eq!(run(system), run(&renamed), "{}", system.name());
    }
}

/// Two futures with one past: what a system decides, and what it pays for deciding, before the first iteration that differs.
#[test]
fn the_future_changes_no_past_iteration() {
    let past = skewed(2, 16, 16, &[0, 0, 1, 3]);
    let futures = [past.clone(), skewed(2, 16, 16, &[8, 9, 10])];
    let job = job(model(2, TOKENS, 512, 16), cluster(4, &[]), 8, &past);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut moved = 0;
    for system in systems::ALL {
        let placed = Plan { placement_every: 4, ..plan(1, 8, 8) };
        let [one, other] = futures.each_ref().map(|future| {
            let mut run = Run::new(&job, &costs, *system, placed);
            let past: Vec<Iteration> = (0..4).map(|_| run.step(&past)).collect();
            (past, run.step(future))
        });
        assert_eq!(one.0, other.0, "{}", system.name());
        let online = |iteration: &Iteration| (iteration.moved, iteration.decision, iteration.migration);
        assert_eq!(online(&one.1), online(&other.1), "{}", system.name());
        // Under a forced gate all futures are the same.
        let forced = restricts(system.policy(&job, &placed).as_ref());
        assert_eq!(one.1.timing.step == other.1.timing.step, forced, "{}", system.name());
        moved += one.1.moved;
    }
    assert!(moved > 0, "no system moved an expert in the iteration that is held here");
}
