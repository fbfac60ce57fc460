//! Chakra execution traces, read back by a decoder of their own: messages, dependencies, groups, and amounts against the simulator's.

use std::collections::{BTreeMap, BTreeSet};

use formats::chakra;
use systems::iteration::run::{Iteration, Run};
use systems::plan::memory::StageParameters;
use systems::{CostModel, Decision, Job, LoadHistory, Placement, Plan, System, Zero};
use workloads::EngineKind;
use workloads::model::Attention;
use workloads::trace::BatchCounts;

use crate::support::{Folder, batch, close, cluster, job, model, plan, small_trace, suite_toml};

/// A field of a message: its number, and a number or bytes.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a varint ends");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

fn taken<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = varint(bytes) as usize;
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut message)),
            2 => Field::Bytes(taken(&mut message)),
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, field));
    }
    all
}

#[derive(Default, Debug)]
struct Node {
    id: u64,
    name: String,
    kind: u64,
    depends: Vec<u64>,
    start: u64,
    duration: u64,
    numbers: BTreeMap<String, i64>,
    texts: BTreeMap<String, String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn node(message: &[u8]) -> Node {
    let mut node = Node::default();
    for (tag, field) in fields(message) {
        match (tag, field) {
            (1, Field::Number(id)) => node.id = id,
            (2, Field::Bytes(name)) => node.name = text(name),
            (3, Field::Number(kind)) => node.kind = kind,
            (5, Field::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    node.depends.push(varint(&mut packed));
                }
            }
            (6, Field::Number(start)) => node.start = start,
            (7, Field::Number(duration)) => node.duration = duration,
            (10, Field::Bytes(attribute)) => {
                let of = fields(attribute);
                let [(1, Field::Bytes(name)), (kind, value)] = of.as_slice() else {
                    panic!("an attribute is two fields")
                };
                match (kind, value) {
                    (7 | 9 | 27, Field::Number(value)) => drop(node.numbers.insert(text(name), *value as i64)),
                    (29, Field::Bytes(value)) => drop(node.texts.insert(text(name), text(value))),
                    _ => panic!("attribute of kind {kind}"),
                }
            }
            (tag, _) => panic!("field {tag} of a node"),
        }
    }
    node
}

fn nodes(mut file: &[u8]) -> Vec<Node> {
    let metadata = fields(taken(&mut file));
    assert!(matches!(&metadata[0], (1, Field::Bytes(version)) if *version == b"0.0.4"));
    let mut all = Vec::new();
    while !file.is_empty() {
        all.push(node(taken(&mut file)));
    }
    all
}

/// What the nodes are called that do not communicate.
const COMPUTATION: [&str; 12] = [
    "block",
    "edge",
    "gate",
    "permute",
    "sync",
    "decide",
    "experts",
    "shadow",
    "await weights",
    "optimizer",
    "decision",
    "host",
];

/// What holds of every trace; returns the nodes of each rank.
fn hold(files: &[Vec<u8>], groups: &str) -> Vec<Vec<Node>> {
    let groups: BTreeMap<String, Vec<usize>> = serde_json::from_str(groups).unwrap();
    let ranks: Vec<Vec<Node>> = files.iter().map(|file| nodes(file)).collect();
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    let mut collectives = BTreeMap::<&str, Vec<Vec<[i64; 2]>>>::new();
    for (rank, nodes) in ranks.iter().enumerate() {
        let ids: BTreeSet<u64> = nodes.iter().map(|node| node.id).collect();
        assert_eq!(ids.len(), nodes.len(), "every id once");
        let by_id: BTreeMap<u64, &Node> = nodes.iter().map(|node| (node.id, node)).collect();
        let mut of_groups = BTreeMap::<&str, Vec<[i64; 2]>>::new();
        for node in nodes {
            // What it waits for was over when it began, so there is no circle either.
            for before in &node.depends {
                let before = by_id[before];
                assert!(before.start + before.duration <= node.start, "{node:?} waits for {before:?}");
            }
            assert_eq!(node.numbers["is_cpu_op"], 0);
            let number = |name: &str| node.numbers[name];
            let message = || [number("comm_src"), number("comm_dst"), number("comm_size"), number("comm_tag")];
            match node.kind {
                4 => {
                    assert_eq!(node.numbers.len(), 1, "{node:?}");
                    let what = node.name.split(',').next().unwrap();
                    assert!(COMPUTATION.contains(&what), "{what} communicates");
                }
                5 => {
                    assert_eq!(number("comm_src"), rank as i64);
                    sends.push(message());
                }
                6 => {
                    assert_eq!((number("comm_dst"), node.duration), (rank as i64, 0));
                    assert!(nodes.iter().any(|other| other.depends.contains(&node.id)), "nobody waits for {node:?}");
                    receives.push(message());
                }
                7 => {
                    let group = node.texts["pg_name"].as_str();
                    assert!(groups[group].contains(&rank) && number("comm_size") > 0, "{node:?}");
                    assert!(number("comm_size") >= node.numbers.get("moebench_sent_bytes").copied().unwrap_or(0));
                    of_groups.entry(group).or_default().push([number("comm_type"), number("comm_size")]);
                }
                other => panic!("type {other}"),
            }
        }
        of_groups.into_iter().for_each(|(group, of_rank)| collectives.entry(group).or_default().push(of_rank));
    }
    sends.sort_unstable();
    receives.sort_unstable();
    assert_eq!(sends, receives, "what is sent is received, with one tag each");
    assert_eq!(sends.iter().map(|send| send[3]).collect::<BTreeSet<_>>().len(), sends.len());
    for (group, all) in collectives {
        assert_eq!(all.len(), groups[group].len(), "group {group}: all its ranks take part");
        assert!(all.iter().all(|of_rank| *of_rank == all[0]), "group {group}: in one order, with one size");
    }
    ranks
}

/// The last of some simulated iterations, read back from its traces.
struct Traced {
    job: Job,
    plan: Plan,
    iteration: Iteration,
    ranks: Vec<Vec<Node>>,
    groups: BTreeMap<String, Vec<usize>>,
}

impl Traced {
    /// `[rank]`: that number of each of its nodes of that name.
    fn of(&self, name: &str, number: &str) -> Vec<Vec<i64>> {
        let named = |node: &&Node| node.name.split(',').next() == Some(name);
        self.ranks.iter().map(|of| of.iter().filter(named).map(|node| node.numbers[number]).collect()).collect()
    }

    /// Fails unless all nodes of that name are that type of collective, of that size.
    #[track_caller]
    fn sizes(&self, name: &str, comm_type: i64, comm_size: f64) {
        let (types, sizes) = (self.of(name, "comm_type").concat(), self.of(name, "comm_size").concat());
        assert!(!types.is_empty() && types.iter().all(|&of| of == comm_type), "{name}: {types:?}");
        assert!(sizes.iter().all(|&of| of == comm_size.round() as i64), "{name}: {sizes:?}, expected {comm_size}");
    }

    /// `[rank]`: what it sends in nodes of that name, the most of which is the size on every rank.
    #[track_caller]
    fn sent(&self, name: &str) -> Vec<i64> {
        let (own, sizes) = (self.of(name, "moebench_sent_bytes"), self.of(name, "comm_size"));
        assert!(!sizes[0].is_empty(), "{name}");
        for (at, size) in sizes[0].iter().enumerate() {
            assert_eq!(own.iter().map(|of| of[at]).max(), Some(*size), "{name}");
        }
        own.iter().map(|of| of.iter().sum()).collect()
    }
}

/// A trace of the last of some iterations, and what all its dispatches and combines sent, held against the traffic matrix.
fn traced(system: &dyn System, plan: Plan, batch: &BatchCounts, iterations: usize) -> Traced {
    let gpus = plan.pp * plan.dp * plan.tp;
    let mut model = model(4, 64, 32, 8);
    model.blocks.iter_mut().for_each(|block| block.attention = Attention::plain(2, 32, 64));
    let job = job(model, cluster(4, &[]), gpus, batch);
    plan.check(&job).unwrap();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut run = Run::new(&job, &costs, system, plan);
    (1..iterations).for_each(|_| drop(run.step(batch)));
    let (iteration, spans) = run.observe(batch);
    let (communications, exchanged) = (run.communications(batch), run.exchanged(batch));
    let traces = chakra::traces(EngineKind::Simulated, &spans, &communications.messages(&job, &spans));
    let ranks = hold(&traces.ranks, &traces.groups);
    assert_eq!(ranks.len(), gpus);
    for (rank, nodes) in ranks.iter().enumerate() {
        let rows = nodes.iter().filter(|node| node.name.starts_with("dispatch") || node.name.starts_with("combine"));
        let sent: i64 = rows.map(|node| node.numbers.get("moebench_sent_bytes").copied().unwrap_or(0)).sum();
        let expected: f64 = exchanged[rank].iter().map(|bytes| bytes.0).sum();
        // Every node is rounded to a byte.
        assert!((sent as f64 - expected).abs() <= nodes.len() as f64, "rank {rank}: {sent}, expected {expected}");
    }
    Traced { job, plan, iteration, ranks, groups: serde_json::from_str(&traces.groups).unwrap() }
}

/// `[moe layer]`: where a policy has the experts in the last of some iterations with the same loads.
fn placements(of: &Traced, system: &dyn System, batch: &BatchCounts, iterations: usize) -> Vec<Placement> {
    let mut policy = system.policy(&of.job, &of.plan);
    let layers = of.job.model.moe_layers().enumerate();
    let mut all: Vec<Placement> = layers.map(|(layer, moe)| policy.first_placement(layer, moe, of.plan.ep)).collect();
    let mut past = LoadHistory::default();
    for t in 0..iterations {
        let due = policy.placement_due(t);
        for (layer, now) in all.iter_mut().enumerate().filter(|_| due) {
            if let Decision::Move(next) = policy.place(t, layer, &past, now) {
                *now = next;
            }
        }
        past.push((0..all.len()).map(|layer| batch.loads(layer)).collect());
    }
    all
}

fn skewed(chunks: usize) -> BatchCounts {
    batch(4, chunks, |chunk| (0..8).map(|expert| if expert == chunk as u32 % 3 { 36 } else { 4 }).collect())
}

#[test]
fn traces_say_who_sends_how_much_to_whom() {
    let cases = [
        ("expert-only", plan(1, 4, 4)),
        ("expert-only", plan(2, 4, 2)),
        ("fastermoe", plan(1, 4, 4)),
        ("megatron", Plan { tp: 2, dp: 2, ep: 4, expert_dp: 1, ..plan(1, 4, 4) }),
        ("smartmoe", Plan { placement_every: 2, ..plan(2, 4, 4) }),
        ("deepspeed", Plan { vp: 2, ..plan(2, 2, 2) }),
        ("eplb", Plan { placement_every: 1, ..plan(1, 8, 4) }),
        ("eplb", Plan { placement_every: 1, zero: Zero::Gradients, ..plan(1, 8, 4) }),
        ("symi", plan(2, 4, 4)),
        ("laer", plan(1, 4, 4)),
        ("moonep", plan(1, 4, 4)),
        ("fsdp-ep", Plan { zero: Zero::Weights, ..plan(1, 4, 2) }),
        ("fsdp-ep-queued", Plan { zero: Zero::Weights, ..plan(1, 4, 2) }),
    ];
    for (name, plan) in cases {
        let Traced { ranks, .. } = traced(systems::by_name(name).unwrap(), plan, &skewed(16), 3);
        let kinds = |kind: u64| ranks.iter().flatten().filter(|node| node.kind == kind).count();
        assert!(kinds(4) > 0 && kinds(7) > 0, "{name} {plan}");
        // A send for every micro-batch, boundary and direction of every rank of a stage.
        let sends = 2 * (plan.pp * plan.vp - 1) * (16 / plan.dp) * plan.dp * plan.tp;
        assert_eq!((kinds(5), kinds(6)), (sends, sends), "{name} {plan}");
    }
}

#[test]
fn a_collective_has_the_size_of_what_a_rank_puts_in() {
    let of = |name: &str, plan| traced(systems::by_name(name).unwrap(), plan, &skewed(16), 3);
    let (width, experts) = (32.0, 8.0);
    let (expert, boundary) = (2.0 * 32.0 * 64.0 + 32.0 + 64.0, 64.0 * width * 2.0);
    let whole = of("expert-only", plan(1, 4, 4));
    let gradient = CostModel::new(&whole.job.cluster, 4).gradient_bytes();
    let StageParameters { dense, gate, .. } = StageParameters::new(&whole.job, &whole.plan, 0);
    whole.sizes("all-reduce dense", 0, dense * gradient);
    whole.sizes("all-reduce gate", 0, gate * gradient);
    whole.sizes("counts", 6, 8.0 * experts * 3.0);
    whole.sent("dispatch");
    whole.sent("combine");
    // Two replicas of four experts.
    let sharded = of("expert-only", Plan { zero: Zero::Optimizer, ..plan(1, 4, 2) });
    sharded.sizes("all-reduce experts", 7, 4.0 * 4.0 * expert * gradient);
    sharded.sizes("all-gather dense", 2, dense * 2.0 / 4.0);
    sharded.sizes("all-gather experts", 2, 4.0 * 4.0 * expert * 2.0 / 2.0);
    let hot = batch(4, 4, |_| vec![5000, 1, 1, 1, 1, 1, 1, 1]);
    let shadowed = traced(systems::by_name("fastermoe").unwrap(), plan(1, 4, 4), &hot, 1);
    shadowed.sizes("broadcast", 5, expert * 2.0);
    shadowed.sizes("reduce gradient", 1, expert * 2.0);
    let tensor = of("megatron", Plan { tp: 2, dp: 2, ep: 4, expert_dp: 1, ..plan(1, 4, 4) });
    let (types, sizes) =
        (tensor.of("tensor-parallel collectives", "comm_type"), tensor.of("tensor-parallel collectives", "comm_size"));
    let kinds: BTreeSet<(i64, i64)> = types.concat().into_iter().zip(sizes.concat()).collect();
    let gathered: Vec<&(i64, i64)> = kinds.iter().filter(|(kind, _)| *kind == 2).collect();
    assert_eq!(gathered, [&(2, (boundary / 2.0) as i64)]);
    assert!(kinds.contains(&(0, boundary as i64)), "{kinds:?}");
    // Each of four micro-batches gathers weights twice and reduces gradients once.
    let passes = of("fsdp-ep", Plan { zero: Zero::Weights, ..plan(1, 4, 2) });
    let (types, sizes) = (passes.of("sharded state", "comm_type"), passes.of("sharded state", "comm_size"));
    let reduced: i64 = types[0].iter().zip(&sizes[0]).filter(|(kind, _)| **kind == 7).map(|(_, size)| size).sum();
    let gathered: i64 = types[0].iter().zip(&sizes[0]).filter(|(kind, _)| **kind == 2).map(|(_, size)| size).sum();
    let (shared, replicated) = (dense + gate, 4.0 * 4.0 * expert);
    close(reduced as f64, 4.0 * (shared + replicated) * gradient);
    close(gathered as f64, 8.0 * (shared * 2.0 / 4.0 + replicated * 2.0 / 2.0));
}

#[test]
fn gradients_of_copies_go_to_who_holds_them() {
    let (batch, expert) = (skewed(16), 2.0 * 32.0 * 64.0 + 32.0 + 64.0);
    // Holders of an expert share nothing of its state: each needs the whole sum.
    let comm_type = 0;
    for zero in [Zero::Off, Zero::Optimizer, Zero::Gradients] {
        let eplb = systems::by_name("eplb").unwrap();
        let of = traced(eplb, Plan { placement_every: 1, zero, ..plan(1, 8, 4) }, &batch, 3);
        let gradient = CostModel::new(&of.job.cluster, 8).gradient_bytes();
        let mut expected = vec![Vec::new(); 8];
        for placement in &placements(&of, eplb, &batch, 3) {
            assert!(placement.has_copies());
            for e in 0..8 {
                let holders: Vec<usize> =
                    [0, 4].iter().flat_map(|at| placement.ranks_of(e).map(move |rank| at + rank)).collect();
                holders
                    .iter()
                    .for_each(|&rank| expected[rank].push((holders.clone(), comm_type, (expert * gradient) as i64)));
            }
        }
        let of_node = |node: &Node| {
            let ranks = of.groups[&node.texts["pg_name"]].clone();
            (ranks, node.numbers["comm_type"], node.numbers["comm_size"])
        };
        let summed = |node: &&Node| node.name == "all-reduce experts";
        let found: Vec<Vec<_>> =
            of.ranks.iter().map(|nodes| nodes.iter().filter(summed).map(of_node).collect()).collect();
        assert_eq!(found, expected, "{zero:?}");
    }
    // All to the shards of the optimizer, and weights back, in each of two layers of a stage.
    let symi = systems::by_name("symi").unwrap();
    let of = traced(symi, plan(2, 4, 4), &batch, 3);
    let gradient = CostModel::new(&of.job.cluster, 8).gradient_bytes();
    let slots = placements(&of, symi, &batch, 3)[0].slots_per_rank() as f64;
    let [gradients, weights] = [gradient, 2.0].map(|bytes| (slots * expert * bytes / 4.0 * 3.0) as i64);
    assert_eq!(of.of("all-reduce experts", "comm_size"), vec![vec![gradients, weights, gradients, weights]; 8]);
    assert!(of.of("all-reduce experts", "comm_type").concat().iter().all(|&kind| kind == 6));
}

#[test]
fn every_rank_says_what_it_sends_itself() {
    let expert = 2.0 * 32.0 * 64.0 + 32.0 + 64.0;
    let of = traced(systems::by_name("moonep").unwrap(), plan(1, 4, 4), &skewed(16), 3);
    let (copied, returned) = (of.sent("copy weights"), of.sent("return gradients"));
    let sum = |of: &[i64]| of.iter().sum::<i64>() as f64;
    // Weights of 2 bytes there, in both passes, and gradients of 4 bytes back.
    close(sum(&returned), sum(&copied));
    // Where experts stand, no gradients are sent.
    assert!(copied.iter().zip(&returned).any(|(sent, back)| *sent > 0 && *back == 0), "{copied:?} {returned:?}");
    let of =
        traced(systems::by_name("smartmoe").unwrap(), Plan { placement_every: 2, ..plan(1, 4, 4) }, &skewed(16), 3);
    assert!(of.iteration.moved > 0);
    let moved = of.sent("migration");
    close(sum(&moved), of.iteration.moved as f64 * expert * 14.0);
    assert!(moved.iter().min() < moved.iter().max(), "{moved:?}");
}

#[test]
fn a_timeline_comes_with_the_traces_of_its_ranks() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop")]));
    folder.succeed("run suite.toml --trace trace.parquet --timeline --out out");
    let prefix = "out/timelines/gpt-tiny.inky.8.no-drop.seed1";
    for system in ["expert-only", "fastermoe", "smartmoe"] {
        let files: Vec<Vec<u8>> = (0..8).map(|rank| folder.bytes(&format!("{prefix}/{system}.{rank}.et"))).collect();
        let ranks = hold(&files, &folder.text(&format!("{prefix}/{system}.groups.json")));
        // As long as the timeline, to the microsecond.
        let timeline: serde_json::Value =
            serde_json::from_str(&folder.text(&format!("{prefix}/{system}.json"))).unwrap();
        let events = timeline["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
        let end =
            events.map(|event| event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap()).fold(0.0, f64::max);
        let last = ranks.iter().flatten().map(|node| node.start + node.duration).max().unwrap();
        assert!((last as f64 - end).abs() <= 1.0, "{last} {end}");
    }
}

/// By what a node is called and its type of collective: `[rank]` bytes.
#[cfg(feature = "train")]
type Sent = BTreeMap<(String, i64), Vec<i64>>;

/// What emulated ranks do beside exchanges, in no span of its own.
#[cfg(feature = "train")]
const BESIDE: [&str; 4] = ["unshard", "reshard", "copy weights", "return gradients"];

/// What has a price of its own: neither that nor the gathering of losses that a vocabulary's parts have.
#[cfg(feature = "train")]
fn priced(sent: &Sent) -> Sent {
    let losses = ("tensor-parallel collectives".to_owned(), 2);
    sent.clone().into_iter().filter(|(of, _)| *of != losses && !BESIDE.contains(&of.0.as_str())).collect()
}

/// What the ranks of a trained run sent.
#[cfg(feature = "train")]
fn sent(ranks: &[Vec<Node>]) -> Sent {
    let mut all = Sent::new();
    for (rank, nodes) in ranks.iter().enumerate() {
        for node in nodes.iter().filter(|node| node.numbers.contains_key("comm_size") && node.kind != 6) {
            let what = node.name.split(',').next().unwrap().to_owned();
            let own = node.numbers.get("moebench_sent_bytes").unwrap_or(&node.numbers["comm_size"]);
            let kind = node.numbers.get("comm_type").copied().unwrap_or(-1);
            all.entry((what, kind)).or_insert_with(|| vec![0; ranks.len()])[rank] += own;
        }
    }
    all
}

/// What ranks say that they moved, under either clock: the same training moves the same.
#[cfg(feature = "train")]
#[test]
fn ranks_that_run_say_what_they_moved() {
    let folder = Folder::new();
    let model = "train --model gpt-micro --gpus 4 --global-batch-size 8 --micro-batch-size 1 --iterations 3 --timeline";
    for plan in [
        "--system expert-only",
        "--system expert-only --pipeline-model-parallel-size 2 --expert-model-parallel-size 2",
        "--system megatron --tensor-model-parallel-size 2 --expert-model-parallel-size 4",
        "--system fastermoe",
        "--system smartmoe --expert-model-parallel-size 4 --placement-every 1",
        "--system eplb --expert-model-parallel-size 2 --placement-every 1",
        "--system laer --expert-model-parallel-size 4",
        "--system moonep --expert-model-parallel-size 4",
    ] {
        let [wall, emulated] = ["wall", "virtual --cluster inky"].map(|clock| {
            let out = clock.split(' ').next().unwrap();
            folder.succeed(&format!("{model} {plan} --clock {clock} --out {out} --overwrite"));
            let files = folder.files();
            let find = |end: &str| files.iter().find(|name| name.starts_with(out) && name.ends_with(end)).unwrap();
            let prefix = find(".groups.json").strip_suffix(".groups.json").unwrap();
            let traces: Vec<Vec<u8>> = (0..4).map(|rank| folder.bytes(&format!("{prefix}.{rank}.et"))).collect();
            sent(&hold(&traces, &folder.text(&format!("{prefix}.groups.json"))))
        });
        assert_eq!(priced(&wall), priced(&emulated), "{plan}");
        let weights = |of: &Sent| BESIDE.iter().any(|what| of.contains_key(&((*what).to_owned(), 6)));
        let moves = plan.contains("laer") || plan.contains("moonep");
        assert_eq!((weights(&wall), weights(&emulated)), (moves, false), "{plan}: {wall:?}");
        // All rows come back, in either direction.
        let total = |what: &str| wall[&(what.to_owned(), 6)].iter().sum::<i64>();
        assert!(total("dispatch") > 0 && total("dispatch") == total("combine"), "{plan}: {wall:?}");
        let pipeline = plan.contains("pipeline");
        assert_eq!(wall.contains_key(&("send".to_owned(), -1)), pipeline, "{plan}: {wall:?}");
        assert_eq!(
            wall.contains_key(&("tensor-parallel collectives".to_owned(), 0)),
            plan.contains("tensor"),
            "{plan}"
        );
    }
}
