//! Spans of an iteration against its ledgers, and the files that show them.

use std::collections::BTreeMap;

use runs::timeline::{Timeline, write};
use systems::iteration::run::Run;
use systems::iteration::schedule::Work;
use systems::iteration::timeline::{Activity, Span, Watch};
use systems::price::ledger::Phase;
use systems::program::{Op, Stream};
use systems::{CostModel, Job, Plan, System, zoo::expert_only::ExpertOnly, zoo::fastermoe, zoo::smartmoe};
use workloads::model::{Attention, Edge};
use workloads::{Bytes, EngineKind, Flops, Seconds};

use crate::support::{Folder, batch, close, cluster, job, model, plan, small_trace, suite_toml};

/// Two nodes, four blocks, everything that can take time does.
fn busy_job() -> Job {
    let starts = ["call_start", "peer_start", "send_start", "expert_start", "block", "synchronisation", "iteration"];
    let changes: Vec<(&str, f64)> = starts.iter().map(|&name| (name, 1e-6)).chain([("decision_step", 1e-9)]).collect();
    let batch = batch(4, 16, |chunk| if chunk % 2 == 0 { vec![70, 20, 7, 3] } else { vec![60, 30, 5, 5] });
    let mut model = model(4, 100, 64, 4);
    model.input = Edge { parameters: 300, flops: Flops(5e5), activations: Bytes(700.0) };
    model.output = Edge { parameters: 200, flops: Flops(9e5), activations: Bytes(300.0) };
    model.tied_parameters = 400;
    model.blocks.iter_mut().for_each(|block| block.attention = Attention::plain(2, 64, 100));
    job(model, cluster(4, &changes), 8, &batch)
}

/// The last of three iterations: spans, and what the ledgers say.
fn last_iteration(system: &dyn System, plan: Plan) -> (Job, Vec<Span>, systems::iteration::run::Iteration) {
    let job = busy_job();
    plan.check(&job).unwrap();
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut run = Run::new(&job, &costs, system, plan);
    let seen = &job.profile[0];
    for _ in 0..2 {
        run.step(seen);
    }
    let (done, spans) = run.observe(seen);
    (job, spans, done)
}

/// Two ranks with an expert each; two rows of rank 0 and one of rank 1 cross, there and back in both passes, 16 B each.
#[test]
fn traffic_counts_rows_there_and_back() {
    let batch = batch(1, 2, |chunk| if chunk == 0 { vec![4, 2] } else { vec![1, 5] });
    let job = job(model(1, 6, 8, 2), cluster(2, &[]), 2, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let run = Run::new(&job, &costs, &ExpertOnly, plan(1, 2, 2));
    let crossing = Bytes(2.0 * 16.0 * (2.0 + 1.0));
    assert_eq!(run.exchanged(&batch), [[Bytes::ZERO, crossing], [crossing, Bytes::ZERO]]);
    let alone = Run::new(&job, &costs, &ExpertOnly, plan(1, 2, 1));
    assert_eq!(alone.exchanged(&batch), [[Bytes::ZERO; 2]; 2]);
}

#[test]
fn some_ranks_are_seen_as_all_are() {
    let plan = Plan { placement_every: 2, ..plan(2, 4, 2) };
    let (job, all, done) = last_iteration(&smartmoe::SMARTMOE, plan);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut run = Run::new(&job, &costs, &smartmoe::SMARTMOE, plan);
    let seen = &job.profile[0];
    (0..2).for_each(|_| drop(run.step(seen)));
    let (same, some) = run.watch(seen, Watch::Ranks(vec![1, 6]));
    assert_eq!(same, done);
    let expected: Vec<Span> = all.into_iter().filter(|span| [1, 6].contains(&span.rank)).collect();
    assert!(!expected.is_empty() && some == expected);
    // The fullest rank is the fullest of all.
    let memory = &done.timing.memory;
    assert_eq!(memory.len(), job.gpus);
    assert_eq!(memory[done.timing.peak.rank], done.timing.peak.bytes);
    assert!(memory.iter().all(|&bytes| bytes > Bytes::ZERO && bytes <= done.timing.peak.bytes));
}

fn check_spans(system: &dyn System, plan: Plan, overlaps: bool) {
    let (job, spans, done) = last_iteration(system, plan);
    let step = done.timing.step.0;
    let mut streams: BTreeMap<(usize, bool), Vec<&Span>> = BTreeMap::new();
    for span in &spans {
        assert!(span.start.0 >= 0.0 && span.start < span.end && span.end.0 <= step * (1.0 + 1e-12), "{span:?}");
        streams.entry((span.rank, span.activity.stream() == Stream::Compute)).or_default().push(span);
    }
    assert_eq!(streams.len(), 2 * job.gpus, "every rank shows both streams");
    for spans in streams.values() {
        assert!(
            spans.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "a stream does one thing at a time, in order"
        );
    }
    close(spans.iter().map(|span| span.end.0).fold(0.0, f64::max), step);

    for (stage, ledger) in done.timing.phases.iter().enumerate() {
        let ranks = stage * plan.stage_ranks()..(stage + 1) * plan.stage_ranks();
        let of_stage: Vec<&Span> = spans.iter().filter(|span| ranks.contains(&span.rank)).collect();
        // What no span covers is waiting, of either kind; the wait for another stage's gradients is booked as theirs.
        let idle = ranks.clone().map(|rank| step - covered(&of_stage, rank)).sum::<f64>() / ranks.len() as f64;
        let synchronised = of_stage.iter().filter(|span| span.activity.phase() == Phase::GradientSync);
        let synchronised = synchronised.map(|span| (span.end - span.start).0).sum::<f64>() / ranks.len() as f64;
        let waited = ledger.of(Phase::GradientSync).0 - synchronised;
        close(1.0 + idle / step, 1.0 + ((ledger.of(Phase::Wait) + ledger.of(Phase::Bubble)).0 + waited) / step);
        for phase in Phase::ALL.into_iter().filter(|phase| !matches!(phase, Phase::Wait | Phase::Bubble)) {
            let shown = of_stage.iter().filter(|span| span.activity.phase() == phase);
            let shown = shown.map(|span| (span.end - span.start).0).sum::<f64>() / ranks.len() as f64;
            let booked = ledger.of(phase).0;
            if phase == Phase::GradientSync {
                assert!(shown <= booked * (1.0 + 1e-9));
            } else if overlaps {
                assert!(shown >= booked * (1.0 - 1e-9), "{phase:?}: hidden transfers are shown, but not booked");
            } else {
                close(1.0 + shown / step, 1.0 + booked / step);
            }
        }
    }
}

/// Time in which a rank does anything.
fn covered(spans: &[&Span], rank: usize) -> f64 {
    let mut own: Vec<(f64, f64)> =
        spans.iter().filter(|span| span.rank == rank).map(|span| (span.start.0, span.end.0)).collect();
    own.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut sum, mut until) = (0.0, 0.0f64);
    for (start, end) in own {
        sum += (end - until.max(start)).max(0.0);
        until = until.max(end);
    }
    sum
}

#[test]
fn spans_are_the_iteration() {
    let moving = Plan { placement_every: 2, ..plan(2, 4, 2) };
    check_spans(&smartmoe::SMARTMOE, moving, false);
    check_spans(&smartmoe::SMARTMOE, Plan { tp: 2, dp: 2, expert_dp: 2, ..plan(2, 4, 2) }, false);
    check_spans(&fastermoe::UNSHADOWED, Plan { expert_dp: 2, ..plan(1, 8, 4) }, true);
}

#[test]
fn every_activity_is_told() {
    let moving = Plan { placement_every: 2, ..plan(2, 4, 2) };
    let (_, spans, done) = last_iteration(&smartmoe::SMARTMOE, moving);
    assert!(done.moved > 0);
    for name in ["block", "edge", "gate", "counts", "dispatch", "sync", "experts", "combine", "send", "decision"] {
        assert!(spans.iter().any(|span| span.activity.name() == name), "{name}");
    }
    for name in ["migration", "optimizer", "host", "all-reduce dense", "all-reduce tied between stages"] {
        assert!(spans.iter().any(|span| span.activity.name() == name), "{name}");
    }
    // Two blocks a stage; every micro-batch dispatches there and back in each, on each rank.
    let dispatches = spans.iter().filter(|span| span.activity.name() == "dispatch" && span.block == Some(3)).count();
    assert_eq!(dispatches, 2 * 4 * 4);
}

#[test]
fn a_run_writes_a_timeline_of_every_system_and_the_same_records() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(4, "no-drop")]));
    let run = "run ./suite.toml --trace trace.parquet";
    folder.succeed(&format!("{run} --out without"));
    folder.succeed(&format!("{run} --out with --timeline"));
    for name in ["iterations.parquet", "spans.parquet"] {
        assert!(folder.bytes(&format!("with/{name}")) == folder.bytes(&format!("without/{name}")), "{name}");
    }
    // A finished run is simulated again for its timelines, and comes to the same.
    folder.succeed(&format!("{run} --out without --timeline"));
    let timelines = |out: &str| -> Vec<String> {
        let files = folder.files().into_iter().filter(|name| name.starts_with(&format!("{out}/timelines/")));
        let files = files.filter(|name| name.ends_with(".json") && !name.ends_with(".groups.json"));
        files.map(|name| name[out.len()..].to_owned()).collect()
    };
    assert_eq!(timelines("with").len(), 3);
    assert_eq!(timelines("with"), timelines("without"));
    let said = folder.succeed("validate runs --measured with --predicted without --warmup 0 --timelines both");
    assert!(said.contains("timelines: 3 in both"), "{said}");
    for name in timelines("with") {
        let text = folder.text(&format!("with{name}"));
        assert_eq!(text, folder.text(&format!("without{name}")));
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let events = document["traceEvents"].as_array().unwrap();
        let last = events.iter().filter_map(|event| Some(event["ts"].as_f64()? + event["dur"].as_f64()?));
        let system = name.rsplit('/').next().unwrap().trim_end_matches(".json");
        close(last.fold(0.0, f64::max).round(), last_step(&folder, system));
    }
}

/// The last iteration of a system in `with`, whole microseconds.
fn last_step(folder: &Folder, system: &str) -> f64 {
    let frame = folder.frame("with/iterations.parquet");
    let systems = frame.column("system").unwrap().str().unwrap();
    let steps = frame.column("step_s").unwrap().f64().unwrap();
    let mut own = systems.iter().zip(steps.iter()).filter(|(name, _)| *name == Some(system));
    (own.next_back().unwrap().1.unwrap() * 1e6).round()
}

fn span(rank: usize, activity: Activity, start: f64, end: f64) -> Span {
    let work = Some(Work::Backward(3));
    Span { rank, activity, block: Some(5), work, start: Seconds(start), end: Seconds(end) }
}

#[test]
fn two_engines_stand_side_by_side() {
    let simulated = [span(1, Activity::Op(Op::Dispatch { step: 2 }), 0.5, 0.75)];
    let measured = [span(0, Activity::Block, 0.0, 1.0), span(1, Activity::Block, 0.0, 0.5)];
    let timelines = [(EngineKind::Simulated, &simulated[..]), (EngineKind::Measured, &measured[..])]
        .map(|(engine, spans)| Timeline { engine, spans });
    let mut text = Vec::new();
    write(&timelines, &mut text).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let events = document["traceEvents"].as_array().unwrap();
    let names: Vec<(u64, &str)> = events
        .iter()
        .filter(|event| event["name"] == "process_name")
        .map(|event| (event["pid"].as_u64().unwrap(), event["args"]["name"].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [(0, "rank 0 (simulated)"), (2, "rank 1 (simulated)"), (1, "rank 0 (measured)"), (3, "rank 1 (measured)")]
    );
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(complete.len(), 3);
    let expected = serde_json::json!({
        "ph": "X", "pid": 2, "tid": 2, "name": "dispatch", "cat": "dispatch", "ts": 500000.0, "dur": 250000.0,
        "args": {"pass": "backward", "micro_batch": 3, "layer": 5, "step": 2}
    });
    assert_eq!(*complete[0], expected);
}
