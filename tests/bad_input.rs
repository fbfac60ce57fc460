//! Wrong input: exit status 2, one line that names file, field and what is allowed, and nothing is written.

use polars::prelude::{ParquetReader, ParquetWriter, SerReader};
use std::fs::File;

use crate::support::{Folder, cluster_toml, small_trace, suite_toml};

/// Runs the program among `files`, which it must refuse in one error line with every one of `expected`, writing nothing.
fn check(arguments: &str, files: &[(&str, &str)], expected: &[&str]) {
    let folder = Folder::new();
    small_trace(&folder);
    for (name, text) in files {
        folder.write(name, text);
    }
    check_in(&folder, arguments, expected);
}

fn check_in(folder: &Folder, arguments: &str, expected: &[&str]) {
    let before = folder.files();
    folder.refuse(arguments, expected);
    assert_eq!(folder.files(), before, "moebench {arguments}: nothing is written");
    assert!(!folder.join("out").exists(), "moebench {arguments}: no folder is made");
}

const LOG: &str = "logs/table_iter1_rank0.log";
const RUN_LOGS: &str = "run smoke --trace logs --out out";

#[test]
fn traces_with_bad_text() {
    let check_log = |text: &str, expected: &[&str]| {
        let expected = [&["table_iter1_rank0.log", "line 2"], expected].concat();
        check(RUN_LOGS, &[(LOG, &format!("0:[[4.0, 4.0], [2.0, 6.0]]\n{text}"))], &expected);
        check("trace import logs out/t.parquet", &[(LOG, &format!("0:[[4.0, 4.0], [2.0, 6.0]]\n{text}"))], &expected);
    };
    check_log("1:[[4.0, 4.0], [4.0, 4", &["column 23", "found the end of the line"]);
    check_log("1:[[4.0, nan], [4.0, 4.0]]\n", &["micro-batch 0, expert 1 is nan", "whole number"]);
    check_log("1:[[4.0, 4.0], [inf, 4.0]]\n", &["micro-batch 1, expert 0 is inf", "whole number"]);
    check_log("1:[[9.0, -1.0], [4.0, 4.0]]\n", &["micro-batch 0, expert 1 is -1", "whole number"]);
    check_log("1:[[4.5, 3.5], [4.0, 4.0]]\n", &["micro-batch 0, expert 0 is 4.5", "whole number"]);
    check_log("1:[[8.0], [4.0, 4.0]]\n", &["1 experts, expected 2"]);
    check_log("1:[[4.0, 4.0]]\n", &["1 micro-batches, expected 2"]);
    check_log("1:[[4.0, 3.0], [4.0, 4.0]]\n", &["micro-batch 0 sums to 7, expected 8"]);
    check_log("2:[[4.0, 4.0], [4.0, 4.0]]\n", &["found layer 2, layer 1 is missing"]);
}

#[test]
fn traces_with_missing_parts() {
    let good = "0:[[4.0, 4.0]]\n";
    check(RUN_LOGS, &[("logs/notes.txt", "")], &["logs", "table_iter<N>_rank<R>.log"]);
    check(RUN_LOGS, &[(LOG, "")], &["table_iter1_rank0.log", "layer 0"]);
    check(RUN_LOGS, &[(LOG, good), ("logs/table_iter1_rank2.log", good)], &["logs", "iteration 1 has no rank 1"]);
    check(
        RUN_LOGS,
        &[1, 11, 31].map(|n| format!("logs/table_iter{n}_rank0.log")).each_ref().map(|name| (name.as_str(), good)),
        &["logs", "iteration 21 is missing", "every 10 iterations from 1 to 31"],
    );
    check("run smoke --trace nowhere.parquet --out out", &[], &["nowhere.parquet: cannot be opened"]);
    check("run smoke --trace t.csv --out out", &[("t.csv", "")], &["t.csv: found no lines", "NPY", "Parquet"]);
    check(
        "run smoke --trace t.parquet --out out",
        &[("t.parquet", "PAR")],
        &["t.parquet: found", "expected whole Parquet"],
    );
    check("run smoke --trace t.tar.xz --out out", &[("t.tar.xz", "no archive")], &["t.tar.xz", "archive"]);
    check(
        "trace stats nowhere",
        &[],
        &["nowhere: no such file or folder, nor a trace of that name; known: synthetic, gpt-routing"],
    );
}

#[test]
fn parquet_traces_with_bad_columns() {
    let spoilt = |spoil: &dyn Fn(polars::prelude::DataFrame) -> polars::prelude::DataFrame, expected: &[&str]| {
        let folder = Folder::new();
        small_trace(&folder);
        let path = folder.join("trace.parquet");
        let mut frame = spoil(ParquetReader::new(File::open(&path).unwrap()).finish().unwrap());
        ParquetWriter::new(File::create(&path).unwrap()).finish(&mut frame).unwrap();
        let expected = [&["trace.parquet"], expected].concat();
        check_in(&folder, "run smoke --trace trace.parquet --out out", &expected);
    };
    let replaced = |name: &'static str, factor: f64| {
        move |mut frame: polars::prelude::DataFrame| {
            let changed = frame.column(name).unwrap().cast(&polars::prelude::DataType::Float64).unwrap() * factor;
            frame.with_column(changed).unwrap();
            frame
        }
    };
    spoilt(
        &|frame| frame.drop("entries").unwrap(),
        &["counts in one of entries", "iteration, rank, layer, micro_batch"],
    );
    spoilt(&|frame| frame.slice(0, 0), &["no counts"]);
    spoilt(&replaced("entries", f64::NAN), &["row 0: entries is nothing", "whole number"]);
    spoilt(&replaced("entries", 0.0), &["all of them 0"]);
    spoilt(&replaced("rank", -1.0), &["rank is -1", "whole number"]);
    spoilt(&replaced("rank", 0.5), &["rank is 0.5", "whole number"]);
    spoilt(&replaced("layer", 0.0), &["given a second time"]);
    spoilt(&replaced("rank", 4294967295.0), &["rank is 4294967295", "from 0 to 1048575"]);
}

#[test]
fn unknown_names() {
    check("run smok --out out", &[], &["unknown suite `smok`", "smoke, paper"]);
    check("run nowhere.toml --out out", &[], &["nowhere.toml: cannot be read"]);
    check(
        "run smoke --systems smartmoe,fastmoe --out out",
        &[],
        &["--systems", "unknown system `fastmoe`", "expert-only"],
    );
    check("run smoke --systems smartmoe,smartmoe --out out", &[], &["--systems", "`smartmoe` is given twice"]);
    let plan = "--gpus 8 --global-batch-size 64 --trace trace.parquet";
    check(&format!("plan --model gpt --cluster inky {plan}"), &[], &["unknown model `gpt`", "gpt-tiny"]);
    check(&format!("plan --model gpt-tiny --cluster inkl {plan}"), &[], &["unknown cluster `inkl`", "inky, pinky"]);
    check(&format!("plan --model gpt-tiny --cluster inky {plan} --system x"), &[], &["--system", "`x`", "smartmoe"]);
    check("run", &[], &["required", "SUITE"]);
    check("list planets", &[], &["'planets'", "suites"]);
}

#[test]
fn bad_numbers_on_the_command_line() {
    check("run smoke --iterations 0 --out out", &[], &["--iterations 0", "at least 1"]);
    check("run smoke --threads 0 --out out", &[], &["--threads 0", "at least 1"]);
    check("run smoke --seed -1 --out out", &[], &["-1"]);
    let check_plan = |change: &str, to: &str, expected: &[&str]| {
        let good = "plan --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --gate no-drop";
        assert!(good.contains(change));
        check(&good.replace(change, to), &[], expected);
    };
    check_plan("--gpus 8", "--gpus 0", &["--gpus 0", "at least 1"]);
    check_plan("--gpus 8", "--gpus eight", &["'eight'", "--gpus"]);
    check_plan("size 64", "size 0", &["--global-batch-size 0", "at least 1"]);
    check_plan("no-drop", "'capacity 0'", &["--gate", "`capacity FACTOR`", "factor above 0"]);
    check_plan("no-drop", "'capacity nan'", &["--gate", "`capacity FACTOR`", "factor above 0"]);
    check_plan("no-drop", "gshard", &["--gate", "`no-drop`, `capacity FACTOR` or `switch FACTOR`"]);
    for (option, expected) in [
        ("--ranks 0", "ranks is 0"),
        ("--experts 1", "top_k is 2: expected 1 to 1"),
        ("--entries 7", "entries is 7"),
        ("--iterations 0", "samples is 0"),
    ] {
        check(&format!("trace synth out/t.parquet {option}"), &[], &["moebench trace synth", expected]);
    }
}

#[test]
fn bad_suites() {
    let good = suite_toml(&[(8, "no-drop")]);
    let check_suite = |change: &str, to: &str, expected: &[&str]| {
        assert!(good.contains(change), "{change}");
        let expected = [&["s.toml"], expected].concat();
        check("run s.toml --trace trace.parquet --out out", &[("s.toml", &good.replace(change, to))], &expected);
        check("run s.toml --trace trace.parquet --dry-run", &[("s.toml", &good.replace(change, to))], &expected);
    };
    check_suite("warmup", "warm_up", &["line 5", "unknown field `warm_up`", "`warmup`"]);
    check_suite("warmup = 1", "warmup = 12", &["warmup = 12", "fewer than iterations = 12"]);
    check_suite("\"fastermoe\"", "\"smartmoe\"", &["systems = smartmoe", "every system once"]);
    check_suite("warmup = 1", "warmup = 1\nseeds = [3, 3]", &["seeds = 3", "every seed once"]);
    check_suite("iterations = 12\n", "", &["missing field `iterations`"]);
    check_suite("gpus = 8", "gpus = 0", &["cases[0].gpus = 0", "at least 1"]);
    check_suite("gpus = 8", "gpus = -8", &["gpus"]);
    check_suite("no-drop", "capacity", &["gate `capacity`", "`capacity FACTOR`"]);
    check_suite("no-drop", "capacity -1", &["gate `capacity -1`", "factor above 0"]);
    check_suite("\"gpt-tiny\"", "\"gpt\"", &["cases[0].model", "unknown model `gpt`", "gpt-tiny"]);
    check_suite("\"inky\"", "\"blinky\"", &["cases[0].cluster", "unknown cluster `blinky`", "inky"]);
    check_suite("\"fastermoe\"", "\"fastmoe\"", &["systems", "unknown system `fastmoe`", "fastermoe"]);
    check_suite("baseline = \"expert-only\"", "baseline = \"x\"", &["baseline = x", "one of systems"]);
}

#[test]
fn bad_plans() {
    let check_plan = |plan: &str, expected: &[&str]| {
        let suite = suite_toml(&[(8, "no-drop")]) + &format!("plans.smartmoe = {{ {plan} }}\n");
        check("run s.toml --trace trace.parquet --out out", &[("s.toml", &suite)], &[&["s.toml"], expected].concat());
    };
    let field = "cases[0].plans.smartmoe";
    let product = "pp = 2, dp = 8, tp = 1, ep = 8, expert_dp = 1, micro_batch = 1";
    check_plan(product, &[field, "pp * dp * tp = 16", "gpus = 8"]);
    let replicas = "pp = 1, dp = 8, tp = 1, ep = 4, expert_dp = 1, micro_batch = 1";
    check_plan(replicas, &[field, "ep * expert_dp = 4", "dp * tp = 8"]);
    let batch = "pp = 1, dp = 8, tp = 1, ep = 8, expert_dp = 1, micro_batch = 3";
    check_plan(batch, &[field, "global batch = 64 is not a multiple of dp * micro_batch = 24"]);
    let zero = "pp = 1, dp = 8, tp = 1, ep = 8, expert_dp = 1, micro_batch = 0";
    check_plan(zero, &[field, "not a multiple of dp * micro_batch = 0"]);
    let stages = "pp = 8, dp = 1, tp = 1, ep = 1, expert_dp = 1, micro_batch = 1";
    check_plan(stages, &[field, "8 pipeline stages", "4 blocks"]);
    check_plan("pp = 1, dp = 8", &["missing field `tp`"]);
}

#[test]
fn bad_clusters() {
    let check_cluster = |text: &str, expected: &[&str]| {
        let suite = suite_toml(&[(8, "no-drop")]).replace("\"inky\"", "\"c.toml\"");
        check(
            "run s.toml --trace trace.parquet --out out",
            &[("s.toml", &suite), ("c.toml", text)],
            &[&["c.toml"], expected].concat(),
        );
    };
    check_cluster(&cluster_toml(0, &[]), &["gpus_per_node = 0", "at least 1"]);
    check_cluster(&cluster_toml(8, &[("gemm_rate", 0.0)]), &["gpu.gemm_rate.value = 0", "above 0"]);
    check_cluster(&cluster_toml(8, &[("call_start", -1.0)]), &["network.call_start.value = -1", "at least 0"]);
    check_cluster(
        &cluster_toml(8, &[("memory", 80.0), ("memory_reserved", 4e9)]),
        &["gpu.memory_reserved.value = 4e9"],
    );
    check_cluster(&cluster_toml(8, &[]).replace("gemm_rate", "gem_rate"), &["line 11", "unknown field `gem_rate`"]);
    check_cluster(&cluster_toml(8, &[]).replace("a test", ""), &["gpu.memory.source", "where the value comes from"]);
}

#[test]
fn folders_of_others() {
    let arguments = "run smoke --trace trace.parquet --iterations 1 --out .";
    for name in ["iterations.parquet", "spans.parquet", "cases/x.parquet"] {
        check(arguments, &[(name, "not ours")], &["holds another run", "choose another --out, or --overwrite"]);
    }
    check(arguments, &[("run.json", "{}")], &["holds another run", "no run.json states what"]);
    // What no run has written is nobody's to remove, whatever is asked for.
    for name in ["figures/mine.pdf", "tables/mine.tex", "timelines/mine.json", "summary.csv"] {
        for arguments in [arguments, &format!("{arguments} --overwrite")] {
            check(arguments, &[(name, "mine")], &["of no run", "choose another --out"]);
        }
    }
    check("run paper --trace trace.parquet --out .", &[("README.md", "mine")], &["README.md: is there already"]);
    check("run smoke --trace trace.parquet --out trace.parquet", &[], &["trace.parquet/run.json: cannot be written"]);
}

#[test]
fn a_cluster_that_is_there_is_not_replaced() {
    let expected = ["m.toml: is there already: --overwrite"];
    check("calibrate network --cluster h100x8 --nccl-tests t.txt --out m.toml", &[("m.toml", "mine")], &expected);
}

#[test]
fn a_collective_that_no_constant_follows_from_is_named_with_those_that_do() {
    let text = "# Collective test starting: all_gather_perf\n#  Rank  0 on a device\n#  Rank  1 on a device\n\
                # size count type redop root time algbw busbw #wrong time algbw busbw #wrong\n\
                8388608 1048576 float none -1 60.0 139.8 69.9 0 59.0 142.2 71.1 0\n\
                33554432 4194304 float none -1 180.0 186.4 93.2 0 179.0 187.5 93.7 0\n";
    let expected = ["they are of all_gather: expected one of alltoall, all_reduce, sendrecv"];
    check("calibrate network --cluster h100x8 --nccl-tests t.txt --out m.toml", &[("t.txt", text)], &expected);
}

#[test]
fn parts_are_no_whole_numbers() {
    check("compare a b --fail-above 5", &[], &["--fail-above", "5% or 0.05"]);
    check("compare a --write-bands b.toml --within 200%", &[], &["--within", "less than 100%"]);
}

/// Without libtorch, what needs it says how to get it.
#[cfg(not(feature = "train"))]
#[test]
fn measuring_needs_libtorch() {
    let folder = Folder::new();
    let arguments = "calibrate measure --cluster inky --model gpt-tiny --out measured.toml";
    folder.refuse(arguments, &["calibrate measure", "built without libtorch", "scripts/libtorch", "--features train"]);
}

#[cfg(feature = "train")]
#[test]
fn only_what_can_be_trained_is_measured() {
    let folder = Folder::new();
    let check = |arguments: &str, fragments: &[&str]| {
        folder.refuse(&format!("calibrate measure --cluster inky --out measured.toml {arguments}"), fragments);
        assert!(folder.files().is_empty());
    };
    check("--model swin-moe-b-e16", &["swin-moe-b-e16: not a language model"]);
    check("--model gpt-tiny --ranks 0", &["--ranks 0: expected at least 1"]);
    check("--model gpt-tiny --ranks 65536", &["gpt-tiny", "65536 ranks on one device need"]);
}

/// What cannot be trained is refused before any work.
#[cfg(feature = "train")]
mod training {
    use super::*;

    const TRAIN: &str = "train --gpus 8 --global-batch-size 16 --micro-batch-size 1 --system expert-only --out run";

    fn refused(folder: &Folder, arguments: &str, fragments: &[&str]) {
        folder.refuse(&format!("{TRAIN} {arguments}"), fragments);
        assert!(!folder.join("run").exists(), "{arguments}");
    }

    #[test]
    fn plans_that_do_not_fit_the_ranks() {
        let folder = Folder::new();
        refused(&folder, "--model gpt-micro --pipeline-model-parallel-size 3", &["--gpus 8", "multiple of 3"]);
        refused(&folder, "--model gpt-micro --expert-model-parallel-size 3", &["parallel-size 3", "divisor of the 8"]);
        refused(&folder, "--model gpt-micro --pipeline-model-parallel-size 8", &["8 pipeline stages", "2 blocks"]);
        refused(&folder, "--model gpt-micro --tensor-model-parallel-size 8", &["heads = 4", "multiple of tp = 8"]);
        let overlapping = "--model gpt-micro --tensor-model-parallel-size 4 --expert-model-parallel-size 2";
        refused(&folder, overlapping, &["ep = 2 is simulated only", "a multiple of tp"]);
        let selective = "--model gpt-micro --recompute-granularity selective";
        refused(&folder, selective, &["recompute = selective is simulated only", "none or full"]);
        refused(&folder, "--model gpt-micro --zero-stage 2", &["zero = 2 is simulated only", "expected 0 or 3"]);
        refused(&folder, "--model gpt-micro --zero-stage 4", &["--zero-stage", "a stage from 0 to 3"]);
        refused(&folder, "--model gpt-micro --zero-stage all", &["--zero-stage", "a stage from 0 to 3"]);
    }

    #[test]
    fn models_that_cannot_be_trained() {
        let folder = Folder::new();
        refused(&folder, "--model swin-moe-b-e32 --cluster pinky", &["swin-moe-b-e32", "not a language model"]);
        let large = "--model gpt-l16-h2560-e32 --expert-model-parallel-size 1";
        refused(&folder, large, &["gpt-l16-h2560-e32", "8 ranks on one device need", "GB available"]);
    }

    #[test]
    fn token_files_that_do_not_fit_the_model() {
        let folder = Folder::new();
        let ids: Vec<u8> = (0..200u16).flat_map(u16::to_le_bytes).collect();
        std::fs::write(folder.join("tokens.bin"), ids).unwrap();
        refused(
            &folder,
            "--model gpt-micro --data tokens.bin",
            &["tokens.bin", "token 128", "expected 0 to 127", "vocabulary"],
        );
        refused(&folder, "--model gpt-micro --data missing.bin", &["missing.bin"]);
        refused(&folder, "--model gpt-micro --data tokens.bin --data-type uint8", &["--data-type uint8", "`int32`"]);
    }
}

#[test]
fn options_of_training_in_simulated_runs() {
    for option in
        ["--replay", "--data d.bin", "--data-type int32", "--record-trace r.parquet", "--checkpoint c", "--device cuda"]
    {
        let name = option.split(' ').next().unwrap();
        check(&format!("run smoke {option} --out out"), &[], &[name, "smoke is simulated", "--engine train"]);
        check(&format!("run smoke {option} --dry-run"), &[], &[name, "smoke is simulated"]);
        check(&format!("run paper {option} --dry-run"), &[], &[name, "paper is simulated"]);
    }
    for option in ["--clock virtual", "--timeout 5", "--rank 0", "--backend threads"] {
        check(
            &format!("run smoke {option} --dry-run"),
            &[],
            &[option.split(' ').next().unwrap(), "smoke is simulated"],
        );
    }
}

#[test]
fn links_that_carry_less_both_ways_than_one_way() {
    let text = cluster_toml(8, &[]);
    let one_way = text.lines().find(|line| line.starts_with("intra_bandwidth")).unwrap();
    for (both, expected) in [("1e9", "1e9"), ("9e13", "9e13")] {
        let stated = format!("{one_way}\nintra_both = {{ value = {both}, source = \"a test\" }}");
        let files = [("c.toml", &*text.replace(one_way, &stated))];
        let expected = &["c.toml", "network.intra_both.value", expected, "from intra_bandwidth to twice that"];
        check("run smoke --set cluster=c.toml --out out", &files, expected);
    }
}
