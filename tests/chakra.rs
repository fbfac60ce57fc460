//! Chakra execution traces, read back by a decoder of their own: messages, dependencies, groups, and amounts against the simulator's.

use std::collections::{BTreeMap, BTreeSet};

use runs::chakra;
use systems::iteration::run::Run;
use systems::{CostModel, Plan, System};
use workloads::model::Attention;
use workloads::trace::BatchCounts;

use crate::support::{Folder, batch, cluster, job, model, plan, small_trace, suite_toml};

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
                4 => assert_eq!(node.numbers.len(), 1, "{node:?}"),
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

/// A trace of the last of some iterations, and what all its dispatches and combines sent, held against the traffic matrix.
fn traced(system: &dyn System, plan: Plan, batch: &BatchCounts, iterations: usize) -> Vec<Vec<Node>> {
    let gpus = plan.pp * plan.dp * plan.tp;
    let mut model = model(4, 64, 32, 8);
    model.blocks.iter_mut().for_each(|block| block.attention = Attention::plain(2, 32, 64));
    let job = job(model, cluster(4, &[]), gpus, batch);
    plan.check(&job).unwrap();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut run = Run::new(&job, &costs, system, plan);
    (1..iterations).for_each(|_| drop(run.step(batch)));
    let (_, spans) = run.observe(batch);
    let (communications, exchanged) = (run.communications(batch), run.exchanged(batch));
    let traces = chakra::traces(&job, &communications, &spans, "a test");
    let ranks = hold(&traces.ranks, &traces.groups);
    assert_eq!(ranks.len(), gpus);
    for (rank, nodes) in ranks.iter().enumerate() {
        let rows = nodes.iter().filter(|node| node.name.starts_with("dispatch") || node.name.starts_with("combine"));
        let sent: i64 = rows.map(|node| node.numbers.get("moebench_sent_bytes").copied().unwrap_or(0)).sum();
        let expected: f64 = exchanged[rank].iter().map(|bytes| bytes.0).sum();
        // Every node is rounded to a byte.
        assert!((sent as f64 - expected).abs() <= nodes.len() as f64, "rank {rank}: {sent}, expected {expected}");
    }
    ranks
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
    ];
    for (name, plan) in cases {
        let ranks = traced(systems::by_name(name).unwrap(), plan, &skewed(16), 3);
        let kinds = |kind: u64| ranks.iter().flatten().filter(|node| node.kind == kind).count();
        assert!(kinds(4) > 0 && kinds(7) > 0, "{name} {plan}");
        // A send for every micro-batch, boundary and direction of every rank of a stage.
        let sends = 2 * (plan.pp * plan.vp - 1) * (16 / plan.dp) * plan.dp * plan.tp;
        assert_eq!((kinds(5), kinds(6)), (sends, sends), "{name} {plan}");
    }
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
