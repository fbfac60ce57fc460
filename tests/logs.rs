//! Logs of other programs as stored runs, beside simulated ones.

use crate::support::{Folder, small_trace, suite_toml};

/// Megatron-LM's lines, each the mean of `every` iterations.
fn log(every: u64, times: impl Iterator<Item = f64>) -> String {
    let line = |(number, time): (u64, f64)| {
        format!(
            " [2026-08-22 10:11:12.123456] iteration {:>8}/     500 | consumed samples: 64 | elapsed time per iteration (ms): {time:.1} | learning rate: 1.0E-04 | global batch size:    64 | lm loss: 8.1234E+00 | grad norm: 2.1 |\n",
            number * every
        )
    };
    (1..).zip(times).map(line).collect()
}

const PLAN: &str = "--plan 'pp1 dp8 tp1 ep8 edp1 mb2'";

#[test]
fn a_log_stands_beside_a_simulation() {
    let folder = Folder::new();
    small_trace(&folder);
    let suite = suite_toml(&[(8, "no-drop")]);
    assert!(suite.contains("global_batch = 64"), "{suite}");
    folder.write("suite.toml", &suite);
    folder.succeed("run suite.toml --trace trace.parquet --out simulated");
    folder.write("train.log", &log(1, (0..30).map(|t| if t < 3 { 9000.0 } else { 40.0 + f64::from(t % 5) })));
    let import =
        format!("import-log train.log --suite suite.toml --system expert-only {PLAN} --warmup 3 --out measured");
    let said = folder.succeed(&import);
    assert!(said.contains("measured by Megatron-LM, 30 lines of train.log"), "{said}");
    // Both have the case by one name.
    let table = folder.succeed("compare simulated measured");
    assert!(table.contains("42.1 ms"), "mean of the lines after warm-up: {table}");
    let beside = folder.succeed("validate runs --measured measured --predicted simulated --warmup 3");
    let all = "validate runs --measured measured --predicted simulated --warmup 900";
    folder.refuse(all, &["measured: no iteration after a warm-up of 900"]);
    assert!(beside.contains("expert-only"), "{beside}");
    folder.refuse(
        "validate runs --measured measured --predicted simulated --warmup 3 --timelines both",
        &["no timeline is in both", "--timeline"],
    );
    folder.succeed("report simulated measured --out both.html");
    assert!(folder.text("both.html").contains("measured by Megatron-LM, 30 lines of train.log"));
    // Rebuilt from its folder alone, and the same run when it is imported again.
    let page = folder.bytes("measured/report.html");
    std::fs::remove_file(folder.join("measured/report.html")).unwrap();
    folder.succeed("report measured");
    assert!(folder.bytes("measured/report.html") == page);
    folder.succeed(&import);
    folder.write("train.log", &log(1, (0..30).map(|_| 50.0)));
    folder.refuse(&import, &["measured", "another run", "engine says something else"]);
}

#[test]
fn rows_are_what_was_logged() {
    let folder = Folder::new();
    folder.write("train.log", &log(10, [900.0, 40.0, 41.0, 42.0].into_iter()));
    folder.succeed(&format!(
        "import-log train.log --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --system megatron {PLAN} --out out"
    ));
    let frame = folder.frame("out/iterations.parquet");
    let steps: Vec<f64> = frame.column("step_s").unwrap().f64().unwrap().iter().flatten().collect();
    assert_eq!(steps, [0.9, 0.04, 0.041, 0.042]);
    let engine = frame.column("engine").unwrap().str().unwrap().get(0).map(str::to_owned);
    assert_eq!(engine.as_deref(), Some("measured"));
    let stated = folder.text("out/run.json");
    assert!(stated.contains("each is the mean of 10 iterations") && stated.contains("\"warmup\": 1"), "{stated}");
    assert_eq!(folder.frame("out/spans.parquet").height(), 0, "a log says nothing of phases");
    // Four lines are forty iterations: what adds up rows is left out, and lines are called so.
    let summary = folder.text("out/summary.csv");
    let mut lines = csv::Reader::from_reader(summary.as_bytes());
    let sum = lines.headers().unwrap().iter().position(|name| name == "sum_with_warmup_s").unwrap();
    assert_eq!(&lines.records().next().unwrap().unwrap()[sum], "");
    assert!(folder.text("out/figures/loss.caption.txt").starts_with("Loss of every line of the log"));
    let ran = folder.moebench("report out --mllog");
    assert!(ran.stderr.contains("out: no mllog: its rows are lines of a log"), "{}", ran.stderr);
    assert!(!folder.join("out/mllog").exists());
}

/// A job that saved and ended goes on in the next file, whose first line holds its start-up.
#[test]
fn the_first_line_of_each_file_but_the_first_does_not_count() {
    let folder = Folder::new();
    folder.write("one.log", &log(10, [40.0; 4].into_iter()));
    let later = log(1, [40.0; 70].into_iter());
    let later =
        later.lines().filter(|line| ["      41/", "      50/", "      60/"].iter().any(|end| line.contains(end)));
    let later: String = later.map(|line| line.to_owned() + "\n").collect();
    folder.write("two.log", &later.replacen("40.0", "9000.0", 1));
    let said = folder.succeed(&format!(
        "import-log one.log two.log --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --system megatron \
         {PLAN} --warmup 1 --out out"
    ));
    assert!(
        said.contains("megatron       40.0") && said.contains("without the first line after each of 1 restarts"),
        "{said}"
    );
    assert_eq!(folder.frame("out/iterations.parquet").height(), 6);
}

#[test]
fn a_log_that_contradicts_its_case_is_refused() {
    let folder = Folder::new();
    let world = "using world size: 16, data-parallel size: 16, tensor-model-parallel size: 1\n";
    folder.write("train.log", &(world.to_owned() + &log(1, [40.0; 9].into_iter())));
    folder.write("noise.log", "Traceback (most recent call last):\n");
    folder.write("batch.log", &log(1, [40.0; 9].into_iter()).replace("size:    64", "size:    32"));
    let import = |file: &str, rest: &str| {
        format!(
            "import-log {file} --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --system megatron --out out {rest}"
        )
    };
    folder.refuse(&import("train.log", PLAN), &["train.log: world size: 16: expected the GPUs of the case, 8"]);
    folder.refuse(&import("batch.log", PLAN), &["batch.log: global batch size: 32: expected that of the case, 64"]);
    folder.refuse(&import("noise.log", PLAN), &["noise.log: no line of an iteration", "Megatron-LM", "torchtitan"]);
    folder.refuse(&import("gone.log", PLAN), &["gone.log: cannot be read"]);
    folder.refuse(&import("train.log", ""), &["--plan", "expected that of the training"]);
    folder.write("good.log", &log(1, [40.0; 9].into_iter()));
    folder.refuse(&import("good.log", "--plan 'pp1 dp4 tp1 ep8 edp1 mb2'"), &["plan pp1 dp4", "must be equal"]);
    assert!(!folder.join("out").exists(), "nothing is written");
}
