//! Tiny cases against arithmetic done by hand, and against every possible placement.

use systems::iteration::{Charge, Coverage, Evaluation, Timing};
use systems::price::Setting;
use systems::price::ledger::Phase;
use systems::program::Op;
use systems::zoo::expert_only::ExpertOnly;
use systems::zoo::smartmoe::place_experts;
use systems::{CostModel, Job, LayerProgram, Placement, Plain, Plan, RoutingCounts};
use workloads::model::{Attention, Edge, Ffn, Mlp, Moe};
use workloads::trace::BatchCounts;
use workloads::{Bytes, Cluster, Flops};

use crate::support::{batch, close, cluster, draws, job, model, plan, simulate};

fn evaluate(job: &Job, plan: &Plan, batch: &BatchCounts, placements: &[Placement]) -> Timing {
    let costs = CostModel::new(&job.cluster, job.gpus);
    let charges = vec![Charge::default(); plan.pp];
    let coverage = Coverage::Full;
    Evaluation { job, plan, costs: &costs, policy: &Plain, placements, batch, charges: &charges, coverage }.run()
}

/// One layer, two ranks of a node, an expert on each: 100 tokens of width 10, of which rank 0 sends 30 away and rank 1 50.
#[test]
fn one_layer_on_two_ranks() {
    const F: f64 = 1e9; // FLOP/s
    const M: f64 = 1e7; // B/s, device memory
    const S: f64 = 1e6; // B/s, scattered rows
    const W: f64 = 1e5; // B/s, links
    const CALL: f64 = 0.25; // s
    const EXPERT: f64 = 0.125; // s
    const BLOCK: f64 = 0.0625; // s
    const SYNC: f64 = 0.5; // s
    const HOST: f64 = 2.0; // s
    let cluster = cluster(
        2,
        &[
            ("gemm_rate", F),
            ("memory_bandwidth", M),
            ("scatter_bandwidth", S),
            ("intra_bandwidth", W),
            // Nothing leaves the node: what the network costs must not matter.
            ("inter_bandwidth", 1.0),
            ("port_bandwidth", 1.0),
            ("rooted_bandwidth", 1.0),
            ("peer_start", 1e3),
            ("send_start", 1e3),
            ("call_start", CALL),
            ("expert_start", EXPERT),
            ("block", BLOCK),
            ("synchronisation", SYNC),
            ("iteration", HOST),
        ],
    );
    let batch = batch(1, 2, |rank| if rank == 0 { vec![70, 30] } else { vec![50, 50] });
    let mut model = model(1, 100, 10, 2);
    model.input = Edge { parameters: 30, flops: Flops(5e3), activations: Bytes(700.0) };
    model.output = Edge { parameters: 20, flops: Flops(9e3), activations: Bytes(300.0) };
    model.tied_parameters = 40;
    let job = job(model, cluster, 2, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let done = &simulate(&job, &costs, &ExpertOnly, plan(1, 2, 2), &batch, 1)[0];

    // Attention: 4 h^2 + 8 h weights, 8 h^2 + 4 t h FLOP a token; t (18 h + 5 t + 4 E) bytes stored.
    let weights = 4.0 * 100.0 + 8.0 * 10.0;
    let stored = 100.0 * (18.0 * 10.0 + 5.0 * 100.0 + 4.0 * 2.0);
    let attention = 100.0 * (8.0 * 100.0 + 4.0 * 100.0 * 10.0) / F + (2.0 * stored + 2.0 * weights) / M;
    let dense = (attention + BLOCK) + (2.0 * attention + 2.0 * 2.0 * weights / M + BLOCK);
    // Before the first block and after the last, once forward and twice backward.
    let edges = 3.0 * ((5e3 + 9e3) / F + 2.0 * (700.0 + 300.0) / M);
    // The gate's product, and six passes over 100 entries of 20 bytes; twice that backward.
    let gate = 3.0 * (2.0 * 100.0 * 10.0 * 2.0 / F + 6.0 * 100.0 * 20.0 / S);
    // 8 bytes an expert, once.
    let counts = CALL + 8.0 * 2.0 / W;
    // 50 entries on the busiest direction, four times, and the host waits for each.
    let exchanges = 4.0 * (CALL + 50.0 * 20.0 / W + SYNC);
    // 120 rows on the busiest rank: 4 * 10 * 20 FLOP a row, 120 bytes stored a row, written and read; 430 weights.
    let expert = 120.0 * 800.0 / F + (2.0 * 120.0 * 120.0 + 2.0 * 430.0) / M + EXPERT;
    let experts = expert + (2.0 * expert + 4.0 * 430.0 / M);
    // Two bytes a gradient around a ring of two, in three rings: what every rank has, the gate, and what the edges share.
    // Experts are not replicated.
    let (dense_weights, gate_weights, tied) = (weights + 30.0 + 20.0, 2.0 * (10.0 + 1.0), 40.0);
    let reduced = 2.0 * (dense_weights + gate_weights + tied) / W + 3.0 * CALL;
    let parameters = dense_weights + gate_weights + tied + 430.0;
    let optimizer = 48.0 * parameters / M;
    close(done.timing.step.0, dense + edges + gate + counts + exchanges + experts + reduced + optimizer + HOST);

    // 16 bytes a parameter; attention, edges and 120 rows stored; buffers for 100 rows sent and 120 received, both ways.
    let stored = stored + 700.0 + 300.0 + 120.0 * 120.0;
    close(done.timing.peak.bytes.0, 16.0 * parameters + stored + 2.0 * (100.0 + 120.0) * 20.0);
    assert_eq!(done.timing.peak.rank, 0);
    // Phases are means over the ranks: rank 1 has 80 rows and waits for the rest, there and back.
    let smaller = 80.0 * 800.0 / F + (2.0 * 80.0 * 120.0 + 2.0 * 430.0) / M + EXPERT;
    close(done.timing.phases[0].of(Phase::Wait).0, 3.0 * (expert - smaller) / 2.0);
    close(done.timing.phases[0].total().0, done.timing.step.0);
}

/// The dispatch of a layer on 4 ranks, two on each node.
fn dispatch(cluster: &Cluster, experts: usize, counts: &[u32]) -> f64 {
    let costs = CostModel::new(cluster, 4);
    let moe = Moe::plain(100, 50, 100, experts);
    let counts = RoutingCounts::new(experts, counts.to_vec());
    let placement = Placement::identity(experts, 4);
    let program = LayerProgram::expert_parallel();
    let place = costs.group(0..4, 1);
    let priced = Setting { moe: &moe, tokens: 100, place: &place, costs: &costs }.price(&program, &counts, &placement);
    let of = |op| {
        let task = program.forward.iter().position(|task| task.op == op).unwrap();
        priced.forward[4 * task..4 * task + 4].to_vec()
    };
    let all = of(Op::Dispatch { step: 0 });
    assert!(all.iter().all(|rank| *rank == all[0]), "an exchange takes all ranks the same time");
    assert_eq!(all, of(Op::Combine { step: 0 }), "the way back is as long");
    all[0].0
}

/// 100 bytes an entry. Busiest in the node: rank 0 with 10 to rank 1. Busiest outside: rank 2 with 20 + 30 received.
/// Busiest node: the first with 20 + 1 + 30 + 4 = 55 sent (it receives 8 + 3 + 0 + 40 = 51).
#[test]
fn an_exchange_is_as_slow_as_its_busiest_port() {
    let counts = [
        [5, 10, 20, 1], //
        [2, 7, 30, 4],
        [8, 3, 9, 6],
        [0, 40, 2, 5],
    ];
    let check = |intra: f64, port: f64, inter: f64, expected: f64| {
        let bandwidths = [("intra_bandwidth", intra), ("port_bandwidth", port), ("inter_bandwidth", inter)];
        close(dispatch(&cluster(2, &bandwidths), 4, counts.as_flattened()), expected);
        // Two peers on the other node.
        let starts = [&bandwidths[..], &[("call_start", 3.0), ("peer_start", 0.5)]].concat();
        close(dispatch(&cluster(2, &starts), 4, counts.as_flattened()), expected + 3.0 + 2.0 * 0.5);
    };
    check(1e2, 1e6, 1e6, 10.0);
    check(1e6, 1e2, 1e6, 50.0);
    check(1e6, 1e6, 1e2, 55.0);
}

/// Two experts a rank are two calls, one after the other, each with its own busiest port.
#[test]
fn an_exchange_makes_a_call_per_slot() {
    let counts = [
        [0, 0, 10, 0, 0, 0, 0, 1], // slot 0: 10 to rank 1; slot 1: 1 to rank 3
        [0, 0, 0, 0, 0, 20, 0, 0], // slot 1: 20 to rank 2
        [0, 0, 0, 0, 0, 0, 7, 0],  // slot 0: 7 to rank 3
        [4, 0, 0, 0, 0, 0, 0, 9],  // slot 0: 4 to rank 0; 9 stay
    ];
    let check = |intra: f64, inter: f64, expected: f64| {
        let constants =
            [("intra_bandwidth", intra), ("inter_bandwidth", inter), ("port_bandwidth", 1e9), ("call_start", 3.0)];
        close(dispatch(&cluster(2, &constants), 8, counts.as_flattened()), expected + 2.0 * 3.0);
    };
    check(1e2, 1e12, 10.0 + 100.0 * 20.0 / 1e9);
    check(1e12, 1e2, 4.0 + 21.0);
}

#[test]
fn a_ring_moves_all_but_a_part_twice() {
    let network = [("intra_bandwidth", 1e3), ("inter_bandwidth", 4e2), ("call_start", 10.0)];
    let costs = CostModel::new(&cluster(4, &network), 8);
    let check = |ranks, stride, expected| {
        close(costs.all_reduce(&costs.group(0..ranks, stride), Bytes(8e3)).0, expected);
    };
    assert_eq!(costs.all_reduce(&costs.group(0..1, 1), Bytes(8e3)).0, 0.0);
    // n ranks: 2 (n - 1) / n of the bytes over the slowest link, and one start-up.
    check(4, 1, 1.5 * 8e3 / 1e3 + 10.0);
    check(8, 1, 1.75 * 8e3 / 4e2 + 10.0);
    // One rank on each of two nodes has a quarter of the nodes' network.
    check(8, 4, 1.0 * 8e3 / 1e2 + 10.0);
}

/// Megatron-LM's two all-reduces of a block's output a pass; around experts, an all-gather instead of the second.
#[test]
fn tensor_parallel_ranks_reduce_attention_and_gather_experts() {
    let check = |experts: bool, reduced: f64| {
        let starts = [("intra_bandwidth", 1e3), ("call_start", 10.0)];
        let batch = batch(1, 1, |_| vec![50, 50]);
        let mut model = model(1, 100, 10, 2);
        model.blocks[0].attention = Attention::plain(2, 10, 100);
        if !experts {
            model.blocks[0].ffn = Ffn::Dense(Mlp::plain(20));
        }
        let job = job(model, cluster(8, &starts), 2, &batch);
        let placements = if experts { vec![Placement::identity(2, 2)] } else { Vec::new() };
        let plan = Plan { tp: 2, ep: 2, ..plan(1, 1, 1) };
        // 100 tokens of 20 bytes around a ring of two: each rank sends all of them in an all-reduce, half in an all-gather;
        // four collectives.
        let found = evaluate(&job, &plan, &batch, &placements).phases[0].of(Phase::TensorParallel).0;
        close(found, reduced * 100.0 * 20.0 / 1e3 + 4.0 * 10.0);
    };
    check(false, 4.0);
    check(true, 3.0);
}

#[test]
fn a_pipeline_of_equal_stages_idles_as_the_textbook_says() {
    let check = |pp: usize, micro_batches: usize| {
        let free = [("intra_bandwidth", 1e30), ("memory_bandwidth", 1e30)];
        let batch = batch(1, micro_batches, |_| vec![64]);
        let mut model = model(8, 64, 32, 1);
        model.blocks.iter_mut().for_each(|block| block.ffn = Ffn::Dense(Mlp::plain(64)));
        let job = job(model, cluster(8, &free), pp, &batch);
        let timing = evaluate(&job, &plan(pp, 1, 1), &batch, &[]);
        let idle = (pp - 1) as f64 / (micro_batches + pp - 1) as f64;
        for stage in &timing.phases {
            close(stage.of(Phase::Bubble).0 / timing.step.0, idle);
        }
    };
    check(2, 1);
    check(2, 4);
    check(4, 2);
    check(4, 16);
    check(8, 8);
}

/// Stage `s` of `pp` holds `pp - s` micro-batches, so the first is the fullest.
#[test]
fn the_first_stage_holds_the_most_micro_batches() {
    let check = |pp: usize, micro_batches: usize, held: f64| {
        let batch = batch(4, micro_batches, |_| vec![100]);
        let job = job(model(4, 100, 10, 1), cluster(8, &[]), pp, &batch);
        let placements = vec![Placement::identity(1, 1); 4];
        let peak = evaluate(&job, &plan(pp, 1, 1), &batch, &placements).peak;
        // A block: 480 parameters of attention, 11 of the gate, 430 of the expert; all 100 rows at the one expert.
        let (state, attention, rows) = (16.0 * 921.0, 100.0 * (18.0 * 10.0 + 5.0 * 100.0 + 4.0), 100.0 * 120.0);
        let blocks = 4.0 / pp as f64;
        close(peak.bytes.0, blocks * (state + held * (attention + rows)) + 2.0 * 200.0 * 20.0);
        assert_eq!(peak.rank, 0);
    };
    check(1, 4, 1.0);
    check(2, 4, 2.0);
    check(4, 4, 4.0);
    check(4, 2, 2.0);
}

/// Every way to deal `slots.len()` experts to ranks, as the slot of each expert; slots of a rank in order.
fn placements(experts: usize, ranks: usize) -> Vec<Placement> {
    let slots = experts / ranks;
    let mut open = vec![Vec::new()];
    for _ in 0..experts {
        open = open
            .into_iter()
            .flat_map(|ranks_so_far: Vec<usize>| {
                let count = |rank| ranks_so_far.iter().filter(|&&r| r == rank).count();
                let free: Vec<usize> = (0..ranks).filter(|&rank| count(rank) < slots).collect();
                free.into_iter().map(move |rank| [&ranks_so_far[..], &[rank]].concat())
            })
            .collect();
    }
    let slot = |dealt: &[usize], e: usize| dealt[e] * slots + dealt[..e].iter().filter(|&&r| r == dealt[e]).count();
    open.iter().map(|dealt| Placement::new((0..experts).map(|e| slot(dealt, e)).collect(), ranks).unwrap()).collect()
}

/// Where arithmetic alone costs time, the fastest of all placements is one with the least maximal load, and the greedy
/// one is within Graham's 4/3 - 1/(3 ranks) of it.
#[test]
fn the_fastest_placement_has_the_least_maximal_load() {
    let check = |experts: usize, ranks: usize, count: usize| {
        let all = placements(experts, ranks);
        assert_eq!(all.len(), count);
        let free = ["memory_bandwidth", "scatter_bandwidth", "intra_bandwidth"].map(|field| (field, 1e30));
        for seed in 0..4 {
            let mut draw = draws(seed, 100);
            let row: Vec<u32> = (0..experts).map(|_| draw().pow(3) as u32 / 100).collect();
            let batch = batch(1, ranks, |_| row.clone());
            let tokens = row.iter().sum::<u32>() as usize;
            let job = job(model(1, tokens, 16, experts), cluster(8, &free), ranks, &batch);
            let loads = batch.loads(0);
            let time = |placement: &Placement| {
                evaluate(&job, &plan(1, ranks, ranks), &batch, std::slice::from_ref(placement)).step.0
            };
            let times: Vec<f64> = all.iter().map(time).collect();
            let (fastest, placement) = times.iter().zip(&all).min_by(|a, b| a.0.total_cmp(b.0)).unwrap();
            let least = all.iter().map(|placement| placement.max_rank_load(&loads)).min().unwrap();
            assert_eq!(placement.max_rank_load(&loads), least);
            let greedy = place_experts(&loads, &Placement::identity(experts, ranks));
            let bound = 4.0 / 3.0 - 1.0 / (3.0 * ranks as f64);
            assert!(greedy.max_rank_load(&loads) as f64 <= bound * least as f64, "{loads:?}");
            assert!(time(&greedy) <= bound * fastest, "{loads:?}");
        }
    };
    check(6, 2, 20);
    check(6, 3, 90);
    check(8, 2, 70);
    check(8, 4, 2520);
}
