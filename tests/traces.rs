//! Recordings of other tools, workloads and skews as traces, through the program.

use std::fs::File;
use std::path::Path;

use polars::prelude::{Column, DataFrame, IntoSeries, NamedFrom, ParquetWriter, Series};
use workloads::trace::{Choices, RoutingTrace};

use crate::support::{Folder, suite_toml};

/// `iteration, rank, layer, micro_batch, expert, entries`, under other names if given.
fn parquet(path: &Path, names: [&str; 6], rows: &[[i64; 6]]) {
    let column = |(index, name): (usize, &&str)| {
        Column::new((*name).into(), rows.iter().map(|row| row[index]).collect::<Vec<_>>())
    };
    let mut frame = DataFrame::new(rows.len(), names.iter().enumerate().map(column).collect()).unwrap();
    ParquetWriter::new(File::create(path).unwrap()).finish(&mut frame).unwrap();
}

const NAMES: [&str; 6] = ["iteration", "rank", "layer", "micro_batch", "expert", "entries"];

/// Rows of all experts for every iteration, rank and layer.
fn dense(iterations: &[(i64, &[i64])], ranks: i64, layers: std::ops::Range<i64>) -> Vec<[i64; 6]> {
    let mut rows = Vec::new();
    for &(iteration, counts) in iterations {
        for rank in 0..ranks {
            for layer in layers.clone() {
                let row = |(expert, &count): (usize, &i64)| [iteration, rank, layer, 0, expert as i64, count];
                rows.extend(counts.iter().enumerate().map(row));
            }
        }
    }
    rows
}

/// Imports rows, through the program; returns the trace and what was said.
fn import(rows: &[[i64; 6]], options: &str) -> (RoutingTrace, String) {
    let folder = Folder::new();
    parquet(&folder.join("in.parquet"), NAMES, rows);
    let said = folder.succeed(&format!("trace import in.parquet out.parquet {options}"));
    folder.succeed("trace stats out.parquet");
    (runs::traces::load(Some(&folder.join("out.parquet"))).unwrap(), said)
}

fn refuse(rows: &[[i64; 6]], expected: &[&str]) {
    let folder = Folder::new();
    parquet(&folder.join("in.parquet"), NAMES, rows);
    folder.refuse("trace import in.parquet out/t.parquet", expected);
    folder.refuse("trace stats in.parquet", expected);
    assert!(!folder.join("out").exists());
}

#[test]
fn a_top_1_gate_can_be_read() {
    for counts in [[60, 2, 1, 1], [20, 10, 10, 5]] {
        let (trace, said) = import(&dense(&[(1, &counts), (11, &counts)], 2, 0..2), "");
        assert_eq!((trace.shape().top_k, trace.row(1, 1, 0, 1)), (1, &counts.map(|count| count as u32)[..]));
        assert!(said.contains("note: choices per token are not stated, taken as 1"), "{said}");
    }
}

/// What a file states of its gate holds, and comes through every conversion.
#[test]
fn the_gate_stands_in_the_file() {
    let folder = Folder::new();
    for top_k in [1, 2, 6] {
        folder.succeed(&format!(
            "trace synth a.parquet --layers 2 --experts 12 --ranks 2 --iterations 3 --entries 72 --top-k {top_k} --overwrite"
        ));
        folder.succeed("trace import a.parquet b.parquet --overwrite");
        assert_eq!(folder.bytes("a.parquet"), folder.bytes("b.parquet"));
        let trace = runs::traces::load(Some(&folder.join("b.parquet"))).unwrap();
        assert_eq!(trace.shape().top_k, top_k);
        folder.succeed("trace rescale b.parquet c.parquet --experts 6 --overwrite");
        let rescaled = runs::traces::load(Some(&folder.join("c.parquet"))).unwrap();
        assert!(rescaled.counts().iter().all(|&count| count <= 72 / top_k), "top-{top_k}");
    }
    folder.succeed("trace import a.parquet d.parquet --balanced");
    folder.succeed("trace rescale d.parquet e.parquet --experts 6");
    folder.succeed("trace import e.parquet f.parquet");
    let choices = |name: &str| runs::traces::load(Some(&folder.join(name))).unwrap().choices();
    assert_eq!(
        ["a", "d", "e", "f"].map(|name| choices(&format!("{name}.parquet"))),
        [Choices::Recorded, Choices::Balanced, Choices::Balanced, Choices::Balanced]
    );
}

#[test]
fn totals_past_32_bits() {
    for count in [3_000_000_000, 6_000_000_000] {
        let (trace, said) = import(&dense(&[(1, &[count, count, 0, 0])], 1, 0..1), "");
        assert_eq!(trace.counts(), [1 << 29, 1 << 29, 0, 0]);
        assert!(said.contains("scaled to 1073741824 each"), "{said}");
    }
}

#[test]
fn huge_numbers_are_refused() {
    let most = i64::from(u32::MAX);
    refuse(
        &[[1, most, most, most, 0, 4], [1, 0, 0, 0, 1, 4]],
        &["in.parquet, row 0: layer is 4294967295", "0 to 1048575"],
    );
    refuse(&[[1, 0, 0, 0, 1_000_000_000_000, 4]], &["expert is 1000000000000", "0 to 1048575"]);
}

/// The labels of a trace from the middle of training: a plan begins at the first.
#[test]
fn a_trace_may_begin_late() {
    let folder = Folder::new();
    parquet(&folder.join("t.parquet"), NAMES, &dense(&[(5000, &[4; 4]), (5100, &[4; 4])], 1, 0..2));
    let arguments = "--model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --trace t.parquet";
    folder.succeed(&format!("plan {arguments}"));
    let suite = suite_toml(&[(8, "no-drop")]);
    folder.write("s.toml", &suite);
    folder.succeed("run s.toml --trace t.parquet --iterations 1 --dry-run");
}

#[test]
fn layers_from_3() {
    let (trace, said) = import(&dense(&[(1, &[4; 4])], 2, 3..6), "");
    assert_eq!((trace.shape().layers, trace.shape().ranks, trace.shape().entries), (3, 2, 16));
    assert!(said.contains("note: numbered from 0: layers 3, 4, 5"), "{said}");
}

#[test]
fn absent_zeros() {
    let rows = [[1, 0, 0, 0, 0, 4], [1, 0, 0, 0, 1, 4], [1, 0, 1, 0, 0, 4], [1, 0, 1, 0, 3, 4]];
    let (trace, _) = import(&rows, "");
    assert_eq!(trace.counts(), [4, 4, 0, 0, 4, 0, 0, 4]);
}

#[test]
fn steps_of_other_sizes() {
    let rows = dense(&[(1, &[5, 5, 4, 4]), (11, &[15, 15, 4, 4]), (21, &[25, 25, 4, 4])], 2, 0..2);
    let (trace, said) = import(&rows, "");
    assert_eq!((trace.shape().entries, trace.row(0, 0, 0, 0)), (58, &[16, 16, 13, 13][..]));
    assert!(said.contains("note: rows hold 18 to 58 entries and are scaled to 58 each"), "{said}");
    let (trace, _) = import(&rows, "--entries 100 --top-k 2");
    assert_eq!(trace.shape().entries, 100);
}

#[test]
fn nothing_but_zeros() {
    refuse(&dense(&[(1, &[0; 4]), (11, &[0; 4])], 2, 0..2), &["8 rows", "all of them 0"]);
    refuse(&[], &["no counts"]);
    let (trace, said) = import(&dense(&[(1, &[0; 4]), (11, &[2; 4])], 2, 0..2), "");
    assert_eq!(trace.iterations(), [11]);
    assert!(said.contains("without entries and left out: iteration 1"), "{said}");
}

#[test]
fn columns_of_other_names() {
    let folder = Folder::new();
    let rows = dense(&[(1, &[4, 4, 0, 0])], 1, 0..1);
    parquet(&folder.join("a.parquet"), ["step", "rank", "layer_id", "micro_batch", "expert_id", "count"], &rows);
    folder.succeed("trace import a.parquet out.parquet");
    parquet(&folder.join("b.parquet"), ["zeit", "r", "schicht", "m", "wer", "wieviel"], &rows);
    folder.refuse("trace import b.parquet other.parquet", &["b.parquet", "columns zeit, r, schicht, m, wer, wieviel"]);
    folder.succeed(
        "trace import b.parquet named.parquet --iteration-column zeit --rank-column r --layer-column schicht \
         --micro-batch-column m --expert-column wer --counts-column wieviel",
    );
    assert_eq!(folder.bytes("out.parquet"), folder.bytes("named.parquet"));
    folder.refuse(
        "trace import a.parquet x.parquet --layer-column tiefe",
        &["no column `tiefe` for the layer", "layer_id"],
    );
}

/// A row a token, a file a layer, a folder an iteration; scores beside the experts.
#[test]
fn tokens_in_folders() {
    let folder = Folder::new();
    for (path, tokens) in [
        ("actives/iter_0100/layer_02.parquet", [[0, 1], [0, 2], [0, 3], [1, 2]]),
        ("actives/iter_0100/layer_03.parquet", [[3, 2], [3, 1], [3, 0], [2, 1]]),
        ("actives/iter_0200/layer_02.parquet", [[1, 0], [1, 2], [1, 3], [0, 2]]),
        ("actives/iter_0200/layer_03.parquet", [[2, 3], [2, 1], [2, 0], [3, 1]]),
    ] {
        folder.write(path, "");
        let lists = tokens.map(|token| Series::new("".into(), token.map(|expert: i32| expert)));
        let indices = Series::new("indices".into(), lists.to_vec());
        let scores = Series::new("scores".into(), vec![Series::new("".into(), [0.7_f32, 0.3]); 4]);
        let columns = [scores, indices].map(|series| series.into_series().into()).to_vec();
        let mut frame = DataFrame::new(4, columns).unwrap();
        ParquetWriter::new(File::create(folder.join(path)).unwrap()).finish(&mut frame).unwrap();
    }
    let said = folder.succeed("trace import actives out.parquet --tokens-per-micro-batch 2");
    assert!(said.contains("numbered from 0: layers 2, 3"), "{said}");
    let trace = runs::traces::load(Some(&folder.join("out.parquet"))).unwrap();
    assert_eq!((trace.iterations(), trace.shape().top_k, trace.shape().micro_batches), (&[100, 200][..], 2, 2));
    assert_eq!((trace.row(0, 0, 0, 0), trace.row(1, 1, 1, 0)), (&[2, 1, 1, 0][..], &[1, 1, 1, 1][..]));
}

#[test]
fn lists_of_counts() {
    let folder = Folder::new();
    let entries = Series::new("entries".into(), vec![Series::new("".into(), [1_i64, 2, 3])]);
    let columns = vec![Column::new("layer".into(), [0_i64]), entries.into()];
    let mut frame = DataFrame::new(1, columns).unwrap();
    ParquetWriter::new(File::create(folder.join("a.parquet")).unwrap()).finish(&mut frame).unwrap();
    folder.succeed("trace import a.parquet out.parquet");
    assert_eq!(runs::traces::load(Some(&folder.join("out.parquet"))).unwrap().counts(), [1, 2, 3]);
}

/// Text with a byte-order mark, in the artifact's logs.
#[test]
fn logs_with_a_mark() {
    let folder = Folder::new();
    for (iteration, rank) in [(1, 0), (1, 1), (11, 0), (11, 1)] {
        let text =
            "\u{feff}0:[[1.0, 3.0, 4.0, 0.0], [4.0, 4.0, 0.0, 0.0]]\n1:[[4.0, 0.0, 4.0, 0.0], [2.0, 2.0, 4.0, 0.0]]\n";
        folder.write(&format!("logs/table_iter{iteration}_rank{rank}.log"), text);
    }
    let said = folder.succeed("trace import logs out.parquet");
    assert!(
        said.contains("2 iterations, 2 layers, 2 micro-batches, 2 ranks, 4 experts, 8 entries a row, top-2"),
        "{said}"
    );
}

#[test]
fn any_file_drives_a_run() {
    let folder = Folder::new();
    folder.write("loads.csv", "layer_id,expert_id,count\n3,0,120\n3,1,40\n3,2,96\n4,0,64\n4,2,192\n");
    folder.write("s.toml", &suite_toml(&[(8, "no-drop")]));
    assert!(folder.succeed("trace stats loads.csv").contains("3 ranks share the experts"));
    folder.refuse("trace stats loads.csv --expert-parallel 2", &["--expert-parallel", "a divisor of 3"]);
    folder.succeed("run s.toml --trace loads.csv --iterations 1 --out out");
    let page = folder.text("out/report.html");
    assert!(page.contains("routing: loads.csv, expert load max/mean") && page.contains("numbered from 0: layers 3, 4"));
}

#[test]
fn workloads_and_skews() {
    let folder = Folder::new();
    let said = folder.succeed("trace synth w1.parquet --workload W1 --iterations 1");
    assert!(
        said.contains("1 iterations, 1 layers, 1 micro-batches, 1 ranks, 8 experts, 256 entries a row, top-2"),
        "{said}"
    );
    assert!(said.contains("max/mean 3.31 to 3.31 (maxvio 2.31 to 2.31)"), "{said}");
    assert!(said.contains("workload W1_hot_expert_set, seed 1234, checksum"), "{said}");
    let shown = folder.succeed("trace stats w1.parquet --expert-parallel 4");
    assert!(shown.contains("maxvio") && shown.contains("note: workload W1_hot_expert_set"), "{shown}");
    let said =
        folder.succeed("trace synth m.parquet --max-over-mean 4 --gini 0.5 --half-life 50 --iterations 20 --layers 2");
    assert!(said.contains("experts: max/mean 4.0") || said.contains("experts: max/mean 3.9"), "{said}");
    // What is there already stays.
    let bytes = folder.bytes("m.parquet");
    for command in ["synth m.parquet", "import w1.parquet m.parquet", "rescale w1.parquet m.parquet"] {
        folder.refuse(&format!("trace {command}"), &["m.parquet: is there already", "--overwrite"]);
    }
    assert_eq!(folder.bytes("m.parquet"), bytes);
    // Every number, and a picture.
    let shown = folder.succeed("trace stats m.parquet --against w1.parquet --out stats");
    assert!(shown.contains("stats/imbalance.svg"), "{shown}");
    assert_eq!(folder.text("stats/per_layer.csv").lines().count(), 1 + 2 + 1);
    let times = folder.text("stats/over_time.csv");
    let fullest: Vec<f64> =
        times.lines().skip(1).map(|line| line.split(',').nth(2).unwrap().parse().unwrap()).collect();
    assert_eq!(fullest.len(), 20 + 1);
    assert!(
        fullest[..20].iter().all(|ratio| (3.5..4.5).contains(ratio)) && (fullest[20] - 3.3125).abs() < 1e-9,
        "{times}"
    );
    assert!(folder.text("stats/imbalance.svg").contains("most of any layer"));
    folder.succeed("trace synth m.parquet --workload W0 --iterations 1 --overwrite");
    folder.refuse("trace synth x.parquet --workload W9", &["W9", "W0 to W7"]);
    folder.refuse("trace synth x.parquet --max-over-mean 17", &["max_over_mean is 17", "1 to 16"]);
    folder.refuse("trace synth x.parquet --workload W1 --gini 0.5", &["--workload", "--gini"]);
}

/// A suite states its routing; its figure says what was run.
#[test]
fn a_suite_of_stated_skew() {
    let folder = Folder::new();
    let routed = |routing: &str| {
        suite_toml(&[(8, "no-drop")]).replacen("[[cases]]", &format!("[routing]\n{routing}\n\n[[cases]]"), 1)
    };
    folder.write("even.toml", &routed("max_over_mean = 1.0"));
    folder.write("skewed.toml", &routed("max_over_mean = 3.0\nhalf_life = 100.0"));
    folder.write("hot.toml", &routed("workload = \"W1\"\nseed = 1234"));
    for (suite, expected) in [("even", "max/mean 1.0,"), ("skewed", "max/mean 3.0,"), ("hot", "W1_hot_expert_set")] {
        folder.succeed(&format!("run {suite}.toml --iterations 2 --out {suite}"));
        assert!(folder.text(&format!("{suite}/report.html")).contains(expected), "{suite}");
    }
    folder.write("both.toml", &routed("workload = \"W1\"\ngini = 0.5"));
    folder.refuse("run both.toml --out x", &["both.toml", "routing", "one of them"]);
    folder.write("far.toml", &routed("gini = 0.99"));
    folder.refuse("run far.toml --out x", &["far.toml: routing", "gini is 0.99"]);
}

/// Samples of one rank that are recorded in parts are those of as many ranks, and only every so many iterations are.
#[cfg(feature = "train")]
#[test]
fn parts_of_a_rank_are_recorded_as_ranks() {
    let folder = Folder::new();
    let recorded = |name: &str, arguments: &str| {
        folder.succeed(&format!(
            "train --model gpt-micro --system expert-only --global-batch-size 4 --iterations 4 --record-trace {name}.parquet --out {name} {arguments}"
        ));
        runs::traces::load(Some(&folder.join(&format!("{name}.parquet")))).unwrap()
    };
    let two = recorded("two", "--gpus 2 --micro-batch-size 2");
    let one = recorded("one", "--gpus 1 --micro-batch-size 4 --record-parts 2 --record-every 3");
    assert_eq!((one.shape(), one.iterations()), (two.shape(), &[1, 4][..]));
    assert_eq!(two.iterations(), [1, 2, 3, 4]);
    // Before the first update, both have the same weights.
    let first = one.shape().counts_per_iteration();
    assert_eq!(one.counts()[..first], two.counts()[..first]);
    let thirds =
        "train --model gpt-micro --gpus 1 --global-batch-size 4 --micro-batch-size 4 --record-trace t --record-parts 3";
    folder.refuse(thirds, &["--record-parts 3 of micro-batches of 4 samples", "a divisor"]);
}

/// A run that goes on from a checkpoint records what the whole run does, under the numbers of its iterations, or does not begin.
#[cfg(feature = "train")]
#[test]
fn a_resumed_run_records_what_it_is_asked_for_or_is_refused() {
    let folder = Folder::new();
    let train = |iterations: usize, out: &str, rest: &str| {
        format!(
            "train --model gpt-micro --system expert-only --gpus 1 --global-batch-size 2 --micro-batch-size 2 --iterations {iterations} --out {out} {rest}"
        )
    };
    let load = |name: &str| runs::traces::load(Some(&folder.join(name))).unwrap();
    folder.succeed(&train(4, "whole", "--record-trace whole.parquet --record-every 2"));
    folder.succeed(&train(2, "begun", "--checkpoint all --record-trace begun.parquet"));
    folder.succeed(&train(4, "resumed", "--checkpoint all --record-trace resumed.parquet --record-every 2"));
    let [whole, resumed] = ["whole.parquet", "resumed.parquet"].map(load);
    assert_eq!(resumed.iterations(), [1, 3]);
    assert_eq!((resumed.iterations(), resumed.counts()), (whole.iterations(), whole.counts()));
    // The fourth iteration is in that checkpoint without its choices.
    let refused = |checkpoint: &str, recorded: &str, missing: &str| {
        let rest = format!("--checkpoint {checkpoint} {recorded}");
        folder.refuse(&train(5, "refused", &rest), &["reports.jsonl", missing, "choose another --checkpoint"]);
    };
    refused("all", "--record-trace t.parquet", "iteration 4 was not recorded with --record-parts 1");
    refused("all", "--record-trace t.parquet --record-parts 2", "iteration 1 was not recorded with --record-parts 2");
    folder.succeed(&train(1, "unrecorded", "--checkpoint none"));
    refused("none", "--record-trace t.parquet", "iteration 1 was not recorded with --record-parts 1");
    refused("none", "--clock virtual", "iteration 1 was not recorded with --record-parts 1");
}

/// What the trainer records of any gate can be read, and says that its tokens were random.
#[cfg(feature = "train")]
#[test]
fn a_recorded_trace_is_read_whatever_the_gate() {
    for gate in ["no-drop", "no-drop balanced", "switch 1.25"] {
        let folder = Folder::new();
        folder.succeed(&format!(
            "train --model gpt-micro --gate '{gate}' --gpus 2 --global-batch-size 4 --iterations 2 --record-trace t.parquet --out out"
        ));
        let run = folder.text("out/run.json");
        assert!(run.contains("\"libtorch\": \"2."), "{run}");
        let shown = folder.succeed("trace stats t.parquet --expert-parallel 2");
        assert!(shown.contains("random token ids, which overstates the skew"), "{shown}");
        assert!(shown.contains(if gate == "switch 1.25" { "top-1" } else { "top-2" }), "{shown}");
        assert_eq!(shown.contains("chosen with a balance loss"), gate != "no-drop", "{shown}");
    }
}
