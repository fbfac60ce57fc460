//! Medians and speedups of known times.

use harness::runs::records::{RowsByRun, Status};
use harness::summary::Summary;
use harness::summary::model_error::{ClusterError, Part};
use workloads::{EngineKind, Published};

use super::engine::{MockEngine, suite};

const CASE: &str = "gpt-tiny.inky.8.no-drop";

fn summary(engine: &MockEngine, warmup: usize) -> Summary {
    Summary::new(&RowsByRun::new(&engine.rows(&suite())), "expert-only", warmup)
}

#[test]
fn speedups_are_those_of_the_known_times() {
    let summary = summary(&MockEngine::default(), 2);
    assert_eq!(summary.rows.len(), 6);
    for (system, expected) in [("expert-only", 1.0), ("fastermoe", 2.0), ("smartmoe", 4.0)] {
        let row = summary.row(CASE, system).unwrap();
        let speedup = row.speedup.unwrap();
        assert_eq!([speedup.low, speedup.value, speedup.high], [expected; 3], "{system}");
        // Two iterations of ten times, and ten.
        assert_eq!((row.step.unwrap().value, row.sum), (4.0 / expected, 30.0 * 4.0 / expected), "{system}");
        assert_eq!(row.speedup_by_sums, Some(expected));
        assert_eq!(row.peak_bytes, Some(2e9));
    }
    assert_eq!(summary.row(CASE, "smartmoe").unwrap().online_share, 12.0 * 0.125 / 30.0);
    assert!(!summary.is_trained() && summary.rows.iter().all(|row| row.loss.is_none()));
}

/// Two of twelve iterations are slow: the median is a fast one, but its interval reaches the slow ones.
#[test]
fn warm_up_is_left_out_of_medians() {
    let row = summary(&MockEngine::default(), 0).row(CASE, "smartmoe").unwrap().clone();
    let step = row.step.unwrap();
    assert_eq!((step.low, step.value, step.high, row.sum), (1.0, 1.0, 10.0, 30.0));
}

#[test]
fn a_failed_run_has_a_reason_and_no_speedup() {
    let summary = summary(&MockEngine::failing("fastermoe", Status::Crash), 2);
    let row = summary.row(CASE, "fastermoe").unwrap();
    assert_eq!((row.status(), row.step, row.speedup), (Status::Crash, None, None));
    assert_eq!(row.failure.as_ref().unwrap().to_string(), "crash: on purpose");
    assert!(summary.row(CASE, "smartmoe").unwrap().speedup.is_some());
    let frame = summary.frame().unwrap();
    assert_eq!(frame.column("median_step_s").unwrap().f64().unwrap().iter().flatten().count(), 4);
    assert_eq!(frame.column("status").unwrap().str().unwrap().get(1), Some("crash"));
}

/// A trained run without a single loss is a trained run.
#[test]
fn the_engine_says_whether_a_model_was_trained() {
    let trained = summary(&MockEngine::of(EngineKind::Measured), 2);
    // The last tenth of twelve losses: the last two, 2.5 and 2.25.
    assert!(trained.is_trained() && trained.rows.iter().all(|row| row.loss == Some(2.375)));
    let mut rows = MockEngine::of(EngineKind::Emulated).rows(&suite());
    rows.iter_mut().for_each(|row| row.sample.as_mut().unwrap().loss = None);
    assert!(Summary::new(&RowsByRun::new(&rows), "expert-only", 2).is_trained());
}

/// SmartMoE's published times on this case do not exist; a cluster's error does.
#[test]
fn errors_of_the_cluster_stand_beside_simulated_rows_alone() {
    let cluster = ClusterError {
        cluster: "inky".to_owned(),
        part: Part::Iteration,
        measurements: 36,
        median: 0.04,
        p90: 0.1,
        max: 0.2,
        measured: "runs".to_owned(),
    };
    let published = Published { rows: Vec::new() };
    let mut simulated = summary(&MockEngine::default(), 2);
    simulated.hold_against(&published, std::slice::from_ref(&cluster));
    assert!(simulated.rows.iter().all(|row| row.model_error.as_ref().unwrap().label() == "±4%"));
    let mut measured = summary(&MockEngine::of(EngineKind::Measured), 2);
    measured.hold_against(&published, &[cluster]);
    assert!(measured.rows.iter().all(|row| row.model_error.is_none()));
}
