//! Typed rows and their round trip to a frame.

use std::sync::Arc;

use anyhow::Result;
use polars::prelude::Column;
use runs::records::{Row, RowsByRun, RunFailure, RunKey, Status, from_frame, to_frame};
use workloads::{EngineKind, Seconds};

use super::engine::{MockEngine, suite};

fn rows() -> Vec<Row> {
    let mut rows = MockEngine::failing("smartmoe", Status::Oom).rows(&suite());
    let trained = MockEngine::of(EngineKind::Measured);
    rows.extend(trained.rows(&suite()));
    let key = RunKey { plan: None, layer: Some(3), expected: Some(Seconds(0.25)), ..RunKey::clone(&rows[0].key) };
    let failure = RunFailure { status: Status::Skipped, reason: "no plan fits".to_owned() };
    rows.push(Row { key: Arc::new(key), iteration: 1, sample: Err(failure) });
    rows
}

#[test]
fn rows_survive_the_frame() {
    let rows = rows();
    assert_eq!(from_frame(&to_frame(&rows).unwrap()).unwrap(), rows);
}

/// The frame of [`rows`] with another word in every row of a column.
fn with_word(name: &str, word: &str) -> Result<Vec<Row>> {
    let mut frame = to_frame(&rows())?;
    let words = vec![word; frame.height()];
    frame.with_column(Column::new(name.into(), words))?;
    from_frame(&frame)
}

#[test]
fn older_records_say_nothing_of_balanced_gates() {
    let frame = to_frame(&rows()).unwrap().drop("balanced_step_s").unwrap();
    assert!(from_frame(&frame).unwrap().iter().all(|row| row.key.balanced.is_none()));
}

#[test]
fn older_records_say_train_of_what_was_measured() {
    let read = with_word("engine", "train").unwrap();
    assert!(read.iter().all(|row| row.key.engine == EngineKind::Measured));
}

#[test]
fn unknown_words_are_errors() {
    let check = |column: &str, expected: &str| {
        let error = format!("{:#}", with_word(column, "guess").unwrap_err());
        assert!(error.starts_with("row 0 of the iterations: ") && error.contains(expected), "{error}");
    };
    check("engine", "unknown engine `guess`");
    check("status", "unknown status `guess`");
    check("gate", "gate `guess`");
    let lacking = to_frame(&rows()).unwrap().drop("step_s").unwrap();
    assert!(format!("{:#}", from_frame(&lacking).unwrap_err()).contains("step_s"));
}

#[test]
fn rows_of_a_run_stand_together_whatever_their_seed() {
    let mut two_seeds = suite();
    two_seeds.seeds = vec![1, 2];
    let rows = MockEngine::default().rows(&two_seeds);
    let by_run = RowsByRun::new(&rows);
    assert_eq!(by_run.iter().map(<[_]>::len).collect::<Vec<_>>(), [24; 6]);
    assert!(by_run.of("gpt-tiny.inky.8.no-drop", "alpa").is_empty());
}
