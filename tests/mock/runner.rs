//! Cases that fail, that are finished, and that run side by side or alone.

use std::fs;
use std::sync::atomic::Ordering;

use harness::pipeline::{self, RunRequest};
use indicatif::ProgressBar;
use runs::engines::{Extent, Session};
use runs::prepare::{self, PreparedCase};
use runs::provenance::{Inputs, Provenance};
use runs::records::{Row, RowsByRun, Status};
use runs::runner::Runner;
use runs::store::Store;
use runs::traces::CaseTraces;
use workloads::EngineKind;

use super::engine::{MockEngine, suite, trace, with_cases};
use crate::support::Folder;

fn store(folder: &Folder) -> Store {
    let provenance = Provenance::new(EngineKind::Simulated, Inputs::default());
    Store::open(folder.path(), &provenance, false).unwrap()
}

fn run(engine: &MockEngine, cases: &[PreparedCase], store: &Store) {
    let extent = Extent { iterations: suite().iterations, timelines: false };
    Runner { engine, extent, store, progress: &ProgressBar::hidden() }.run(cases).unwrap();
}

fn join(cases: &[PreparedCase], store: &Store) -> Vec<Row> {
    store.join(cases).unwrap()
}

#[test]
fn a_run_that_fails_is_a_row_and_the_others_go_on() {
    let (folder, engine) = (Folder::new(), MockEngine::failing("fastermoe", Status::Oom));
    let rows = with_cases(|cases| {
        let store = store(&folder);
        run(&engine, cases, &store);
        join(cases, &store)
    });
    let by_run = RowsByRun::new(&rows);
    let lengths: Vec<usize> = by_run.iter().map(<[_]>::len).collect();
    assert_eq!(lengths, [12, 5, 12, 12, 5, 12]);
    let failed = by_run.of("gpt-tiny.inky.8.no-drop", "fastermoe")[4].sample.as_ref().unwrap_err();
    assert_eq!(failed.to_string(), "oom: on purpose");
    assert!(by_run.of("gpt-tiny.inky.8.no-drop", "smartmoe").iter().all(|row| row.sample.is_ok()));
}

#[test]
fn a_finished_case_is_not_run_again() {
    let (folder, engine) = (Folder::new(), MockEngine::default());
    with_cases(|cases| {
        let store = store(&folder);
        run(&engine, &cases[1..], &store);
        assert_eq!(engine.runs.load(Ordering::Relaxed), 3);
        run(&engine, cases, &store);
        assert_eq!(engine.runs.load(Ordering::Relaxed), 6);
        assert_eq!(join(cases, &store).len(), 6 * 12);
    });
}

/// What is simulated side by side is stored together; what is timed, as soon as it ends.
#[test]
fn a_timed_run_is_not_run_again_in_a_case_that_was_not_finished() {
    for (kind, expected) in [(EngineKind::Measured, 3 + 5), (EngineKind::Simulated, 3 + 6)] {
        let (folder, engine) = (Folder::new(), MockEngine::of(kind));
        with_cases(|cases| {
            let store = store(&folder);
            run(&engine, &cases[..1], &store);
            // As a kill after the first of three runs leaves it.
            let first = format!("{}.", cases[0].runs[0].id());
            for entry in fs::read_dir(store.path("cases")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if !name.starts_with(&first) {
                    fs::remove_file(path).unwrap();
                }
            }
            run(&engine, cases, &store);
            assert_eq!(engine.runs.load(Ordering::Relaxed), expected, "{kind:?}");
            assert_eq!(join(cases, &store), MockEngine::of(kind).rows(&suite()));
        });
    }
}

#[test]
fn neither_threads_nor_the_order_of_cases_change_a_byte() {
    let bytes = |threads: usize, reversed: bool| {
        let folder = Folder::new();
        let store = store(&folder);
        let trace = trace();
        let mut cases = prepare::cases("test", &suite(), |_| &trace).unwrap();
        if reversed {
            cases.reverse();
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&MockEngine::default(), &cases, &store));
        if reversed {
            cases.reverse();
        }
        store.join(&cases).unwrap();
        ["iterations.parquet", "spans.parquet"].map(|name| fs::read(store.path(name)).unwrap())
    };
    assert_eq!(bytes(1, false), bytes(3, false));
    assert_eq!(bytes(1, false), bytes(2, true));
}

#[test]
fn what_is_timed_runs_alone() {
    let (folder, engine) = (Folder::new(), MockEngine::of(EngineKind::Measured));
    with_cases(|cases| {
        run(&engine, cases, &store(&folder));
        assert_eq!(engine.at_once.load(Ordering::Relaxed), 1);
        assert!(join(cases, &store(&folder)).iter().all(|row| row.key.engine == EngineKind::Measured));
    });
}

/// Who says what a run took must know that it did not take it.
#[test]
fn a_finished_run_is_said_to_be_read_back() {
    let (folder, traces) = (Folder::new(), CaseTraces::from(trace()));
    let request = || RunRequest {
        suite: suite(),
        file: "test".to_owned(),
        shard: None,
        traces: &traces,
        replay: false,
        session: Session::Leader(Box::new(MockEngine::default())),
        out: folder.join("out"),
        overwrite: false,
        threads: None,
        timelines: false,
    };
    // Each lets go of the folder before the next.
    let [first, second] = [(); 2].map(|()| {
        let sampled = pipeline::sample(&request()).unwrap_or_else(|_| panic!("the run fails"));
        (sampled.read_back, sampled.summary)
    });
    assert_eq!([first.0, second.0], [false, true]);
    assert_eq!(first.1, second.1);
}
