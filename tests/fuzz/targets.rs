//! What is fuzzed: every reader of a file that a user hands in. A target takes any bytes; it must come back, without a panic, in
//! bounded memory. `fuzz_targets` hands these to libFuzzer, `tests/fuzzed.rs` to a mutator of its own on any compiler.

use std::path::Path;

use formats::{logs, nccl_tests};
use serde::Deserialize;
use workloads::csv_file::{Count, Positive};
use workloads::model::hugging_face::{self, ImportedAs};
use workloads::suite::{Case, SuiteFile};
use workloads::trace::import::{Axis, ImportOptions, Importer};
use workloads::{Cluster, CsvFile, Gate, Model, Published};

/// A name, and what takes the bytes.
type Target = (&'static str, fn(&[u8]));

/// All targets.
pub(crate) const TARGETS: [Target; 13] = [
    ("archive", archive),
    ("cluster", cluster),
    ("csv", csv),
    ("hugging_face", hugging_face),
    ("json", json),
    ("log", log),
    ("measurements", measurements),
    ("model", model),
    ("nccl_tests", nccl),
    ("npy", npy),
    ("parquet", parquet),
    ("suite", suite),
    ("training_log", training_log),
];

/// Reads files as one trace; the first byte says how, so that options are fuzzed, too.
fn import(names: &[&str], data: &[u8]) {
    let (how, data) = data.split_first().map_or((0, data), |(&how, data)| (how, data));
    let axes = |names: &[Axis]| Some(names.to_vec());
    let options = ImportOptions {
        axes: match how % 8 {
            1 => axes(&[Axis::Layer, Axis::Expert]),
            2 => axes(&[Axis::Iteration, Axis::Layer, Axis::Token, Axis::Choice]),
            3 => axes(&[Axis::Token, Axis::Choice]),
            4 => axes(&[Axis::Iteration, Axis::Layer, Axis::MicroBatch, Axis::Rank, Axis::Expert]),
            _ => None,
        },
        top_k: (how & 8 > 0).then_some(u32::from(how >> 5)),
        cumulative: how & 16 > 0,
        tokens_per_micro_batch: (how & 32 > 0).then_some(usize::from(how >> 6)),
        entries: (how & 64 > 0).then_some(64),
        experts: (how & 128 > 0).then_some(300),
        ..ImportOptions::default()
    };
    let mut importer = Importer::new("fuzzed", options);
    // Several files are parts of the data, between bytes that no text has.
    let parts = data.split(|&byte| byte == 0xfe && names.len() > 1);
    let added = names.iter().zip(parts).try_for_each(|(name, mut part)| importer.add(name, &mut part));
    match added.and_then(|()| importer.finish()) {
        Ok(trace) => {
            let (shape, counts) = (*trace.shape(), trace.counts());
            assert_eq!(counts.len(), trace.iterations().len() * shape.counts_per_iteration());
            let whole = |row: &[u32]| row.iter().map(|&count| u64::from(count)).sum::<u64>();
            assert!(counts.chunks_exact(shape.experts).all(|row| whole(row) == u64::from(shape.entries)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// The artifact's logs, of up to three ranks and iterations.
pub(crate) fn log(data: &[u8]) {
    import(&["table_iter1_rank0.log", "table_iter11_rank0.log", "table_iter1_rank1.log"], data);
}

/// Delimited text, with a header or without.
pub(crate) fn csv(data: &[u8]) {
    import(&["loads.csv", "step_2/rank_1.tsv"], data);
}

/// JSON, as a document or a value a line.
pub(crate) fn json(data: &[u8]) {
    import(&["loads.json", "layer_3.jsonl"], data);
}

/// NumPy's arrays.
pub(crate) fn npy(data: &[u8]) {
    import(&["loads.npy"], data);
}

/// Zip (and so NPZ), gz, xz and tar.
pub(crate) fn archive(data: &[u8]) {
    import(&["loads.zip"], data);
}

/// Parquet.
pub(crate) fn parquet(data: &[u8]) {
    import(&["loads.parquet"], data);
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// A model's TOML, and every amount that follows from it.
pub(crate) fn model(data: &[u8]) {
    let Some(model) = text(data).and_then(|text| Model::parse("fuzzed.toml", text).ok()) else { return };
    amounts(&model);
}

fn amounts(model: &Model) {
    assert!(model.active_parameters() <= model.parameters());
    assert!(model.parameters_per_rank(1) <= model.parameters());
    assert!(model.training_flops().0.is_finite());
    for block in &model.blocks {
        assert!(block.dense_flops().0 >= 0.0 && block.dense_activations().0 >= 0.0 && block.boundary_bytes().0 >= 0.0);
    }
    for moe in model.moe_layers() {
        let amounts = [moe.gate_flops().0, moe.entry_flops().0, moe.entry_activations().0, moe.entry_bytes().0];
        assert!(amounts.iter().all(|amount| amount.is_finite() && *amount >= 0.0), "{amounts:?}");
    }
}

/// A config.json of Hugging Face: what becomes of it is a model.
pub(crate) fn hugging_face(data: &[u8]) {
    let Some(json) = text(data) else { return };
    if let Ok(toml) = hugging_face::import("config.json", json, &ImportedAs::default()) {
        // Extents beyond any model are refused by whoever reads the TOML.
        if let Ok(model) = Model::parse("imported.toml", &toml) {
            amounts(&model);
        }
    }
}

/// A suite's or a collection's TOML.
pub(crate) fn suite(data: &[u8]) {
    let Some(Ok(SuiteFile::Suite(suite))) = text(data).map(|text| SuiteFile::parse("fuzzed.toml", text)) else {
        return;
    };
    let mut ids: Vec<String> = suite.cases.iter().map(Case::id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), suite.cases.len(), "two cases of one id");
    assert!(ids.iter().all(|id| !id.contains('/')), "{ids:?}");
    for case in &suite.cases {
        suite.systems.iter().for_each(|system| drop(case.as_run_by(system)));
        let generate = |routing: &workloads::suite::SuiteRouting| drop(routing.generate(1, 8, 2, 2));
        case.routing.iter().chain(&suite.routing).for_each(generate);
    }
}

/// A cluster's TOML.
pub(crate) fn cluster(data: &[u8]) {
    let Some(cluster) = text(data).and_then(|text| Cluster::parse("fuzzed.toml", text).ok()) else { return };
    assert!(cluster.constants().iter().all(|(_, constant, _)| constant.value.is_finite()));
}

/// A row with a column of every kind that measurements have.
#[derive(Deserialize)]
struct Measurement {
    gpus: Count,
    gate: Gate,
    micro_batch: Option<Count>,
    layer: Option<usize>,
    capacity_factor: Option<f64>,
    elapsed_ms: Option<Positive>,
    system: Option<String>,
}

/// Measurements, and published numbers.
pub(crate) fn measurements(data: &[u8]) {
    if let Ok(file) = CsvFile::parse("fuzzed.csv", data) {
        for row in file.rows() {
            let Ok(row) = row.read::<Measurement>() else { continue };
            let Measurement { gpus, gate, micro_batch, layer, capacity_factor, elapsed_ms, system } = row;
            assert!(gpus.0 > 0 && micro_batch.is_none_or(|size| size.0 > 0));
            assert!(elapsed_ms.is_none_or(|ms| ms.0.is_finite()));
            drop((gate.capacity(4096, 2, 16), layer, capacity_factor, system));
        }
    }
    if let Some(text) = text(data) {
        drop(Published::parse("fuzzed.csv", text));
    }
}

/// What a program of nccl-tests printed, or wrote as JSON.
pub(crate) fn nccl(data: &[u8]) {
    let Some(text) = text(data) else { return };
    for file in ["all_reduce_perf.txt", "x.json"] {
        match nccl_tests::read(Path::new(file), text) {
            Ok(all) => assert!(all.iter().all(|of| of.ranks > 0 && of.bytes > 0.0 && of.times[0] > 0.0)),
            Err(error) => assert!(!format!("{error:#}").is_empty()),
        }
    }
}

/// A log of Megatron-LM or torchtitan, and the iterations that it is taken for.
pub(crate) fn training_log(data: &[u8]) {
    match logs::TrainingLog::read("fuzzed.log", &[data]) {
        Ok(mut log) => {
            assert!(log.steps.windows(2).all(|pair| pair[0].iteration < pair[1].iteration));
            assert!(log.steps.iter().all(|step| 0 < step.covers && step.covers <= step.iteration));
            assert!(log.warmup(10) <= log.steps.len() && log.interval() > 0);
            assert!(log.iterations(8, 4096.0).len() <= log.steps.len());
            drop((log.diverged(), log.keep_batch("fuzzed.log", 256)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
