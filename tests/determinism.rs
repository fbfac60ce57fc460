//! The same bytes whatever the threads, the order of cases or an interruption.

use std::time::{Duration, Instant};

use polars::prelude::DataFrame;

use crate::support::{Folder, small_trace, suite_toml};

const CASES: [(usize, &str); 4] = [(4, "no-drop"), (8, "no-drop"), (16, "capacity 1.2"), (16, "no-drop")];
const RUN: &str = "run ./suite.toml --trace trace.parquet";
const SAMPLES: [&str; 2] = ["iterations.parquet", "spans.parquet"];
const DETAILS: &str = "details.json";

fn prepared(cases: &[(usize, &str)]) -> Folder {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(cases));
    folder
}

fn samples(folder: &Folder, out: &str) -> [Vec<u8>; 2] {
    SAMPLES.map(|name| folder.bytes(&format!("{out}/{name}")))
}

#[test]
fn neither_repetition_nor_threads_change_a_byte() {
    let folder = prepared(&CASES);
    for (out, threads) in [("first", ""), ("again", ""), ("one", "--threads 1"), ("two", "--threads 2")] {
        folder.succeed(&format!("{RUN} --out {out} {threads}"));
        assert!(samples(&folder, "first") == samples(&folder, out), "{out}");
        assert!(folder.bytes(&format!("first/{DETAILS}")) == folder.bytes(&format!("{out}/{DETAILS}")), "{out}");
    }
    // The comparison can fail: another seed begins at another row of the trace.
    folder.succeed(&format!("{RUN} --out seed --seed 2"));
    assert!(samples(&folder, "first") != samples(&folder, "seed"));
}

#[test]
fn the_order_of_cases_changes_no_row() {
    let folder = prepared(&CASES);
    folder.succeed(&format!("{RUN} --out first"));
    let mut shuffled = CASES;
    shuffled.rotate_left(1);
    shuffled.swap(0, 2);
    folder.write("suite.toml", &suite_toml(&shuffled));
    folder.succeed(&format!("{RUN} --out other"));
    for name in SAMPLES {
        let frame = |out: &str| folder.frame(&format!("{out}/{name}"));
        let (first, other) = (frame("first"), frame("other"));
        assert!(!first.equals_missing(&other));
        assert_eq!(cases(&first).len(), CASES.len());
        for (case, rows) in cases(&first) {
            let (_, found) = cases(&other).into_iter().find(|(id, _)| *id == case).unwrap();
            assert!(rows.equals_missing(&found), "{name}: {case}");
        }
    }
}

/// The rows of each case, which stand together.
fn cases(frame: &DataFrame) -> Vec<(String, DataFrame)> {
    let ids: Vec<&str> = frame.column("case").unwrap().str().unwrap().iter().flatten().collect();
    let mut first = 0;
    let rows = ids.chunk_by(|a, b| a == b).map(|same| {
        let rows = frame.slice(first as i64, same.len());
        first += same.len();
        (same[0].to_owned(), rows)
    });
    rows.collect()
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let folder = prepared(&CASES);
    // Long enough to be stopped half-way.
    let run = format!("{RUN} --iterations 400 --threads 1");
    folder.succeed(&format!("{run} --out whole"));
    let mut child = folder.command(&format!("{run} --out part")).spawn().unwrap();
    let started = Instant::now();
    let finished = || {
        folder.files().iter().filter(|name| name.starts_with("part/cases/") && name.ends_with(".spans.parquet")).count()
    };
    while finished() == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no case was finished");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let kept = finished();
    assert!((1..CASES.len()).contains(&kept), "stopped after {kept} cases");
    assert!(!folder.join("part/iterations.parquet").exists());
    folder.succeed(&format!("{run} --out part"));
    assert!(samples(&folder, "whole") == samples(&folder, "part"));
    let derived = |out: &str| {
        ["summary.csv", "figures/end_to_end.svg", "figures/end_to_end.pdf", DETAILS]
            .map(|name| folder.bytes(&format!("{out}/{name}")))
    };
    assert!(derived("whole") == derived("part"));
    assert!(folder.files().iter().all(|name| !name.ends_with(".tmp")));
}

/// What an interruption leaves is used: a finished case is not run again.
#[test]
fn a_resumed_run_keeps_its_finished_cases() {
    let folder = prepared(&CASES[..2]);
    folder.succeed(&format!("{RUN} --out whole"));
    // The state after the first case, but with that case's times doubled: a mark that running again would wipe out.
    folder.write("part/run.json", &folder.text("whole/run.json"));
    let marked = |name: &str, column: &str| {
        let (id, mut rows) = cases(&folder.frame(&format!("whole/{name}.parquet"))).swap_remove(0);
        let doubled = rows.column(column).unwrap() * 2.0;
        rows.with_column(doubled).unwrap();
        let path = folder.join(&format!("part/cases/{id}.seed1.{name}.parquet"));
        runs::store::write_atomically(&path, |file| {
            polars::prelude::ParquetWriter::new(file).finish(&mut rows)?;
            Ok(())
        })
        .unwrap();
        rows
    };
    let expected = [marked("iterations", "step_s"), marked("spans", "seconds")];
    let (id, _) = cases(&folder.frame("whole/iterations.parquet")).swap_remove(0);
    let mut details = runs::store::read_details(&folder.join(&format!("whole/{DETAILS}"))).unwrap();
    details.retain(|run| run.case == id);
    folder.write(&format!("part/cases/{id}.seed1.{DETAILS}"), &runs::details::to_json(details).unwrap());
    folder.succeed(&format!("{RUN} --out part"));
    for (name, expected) in SAMPLES.iter().zip(&expected) {
        let (part, whole) =
            (cases(&folder.frame(&format!("part/{name}"))), cases(&folder.frame(&format!("whole/{name}"))));
        assert!(part[0].1.equals_missing(expected), "{name}: the first case was run again");
        assert!(part[1].1.equals_missing(&whole[1].1), "{name}: the second case");
    }
}
