//! Runs as MLPerf's log lines, read back.

use serde_json::Value;

use crate::support::{Folder, small_trace, suite_toml};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line.strip_prefix(":::MLLOG ").unwrap()).unwrap()).collect()
}

fn of<'l>(lines: &'l [Value], key: &str) -> Vec<&'l Value> {
    lines.iter().filter(|line| line["key"] == key).collect()
}

#[test]
fn mllog_lines_are_those_of_the_samples() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop")]));
    folder.succeed("run suite.toml --trace trace.parquet --out out");
    folder.succeed("report out");
    assert!(folder.files().iter().all(|name| !name.contains("mllog")), "on request alone");
    folder.succeed("report out --mllog");
    let name = "out/mllog/gpt-tiny.inky.8.no-drop.smartmoe.seed1.log";
    let first = folder.text(name);
    let lines = lines(&first);
    assert!(lines.windows(2).all(|pair| pair[0]["time_ms"].as_u64() <= pair[1]["time_ms"].as_u64()));
    for key in ["submission_org", "submission_benchmark", "init_stop", "run_start", "run_stop", "train_samples"] {
        assert_eq!(of(&lines, key).len(), 1, "{key}");
    }
    assert_eq!(of(&lines, "train_samples")[0]["value"], 64 * 12);
    assert_eq!(of(&lines, "block_stop").len(), 12);
    assert_eq!(of(&lines, "block_stop")[11]["metadata"]["samples_count"], 64 * 12);
    assert_eq!(of(&lines, "run_stop")[0]["metadata"]["status"], "success");
    let frame = folder.frame("out/iterations.parquet");
    let (systems, steps) =
        (frame.column("system").unwrap().str().unwrap(), frame.column("step_s").unwrap().f64().unwrap());
    let sum: f64 = systems
        .iter()
        .zip(steps.iter())
        .filter(|(system, _)| *system == Some("smartmoe"))
        .filter_map(|row| row.1)
        .sum();
    let score = of(&lines, "run_stop")[0]["time_ms"].as_u64().unwrap()
        - of(&lines, "run_start")[0]["time_ms"].as_u64().unwrap();
    assert!((score as f64 - sum * 1e3).abs() <= 0.5);
    folder.succeed("report out --mllog");
    assert_eq!(folder.text(name), first, "rebuilt with the same bytes");
    // They are the run's: they go with it.
    folder.succeed("run suite.toml --trace trace.parquet --out out --overwrite");
    assert!(!folder.join("out/mllog").exists());
}
