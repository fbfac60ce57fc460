//! The study's figures, each derived from summaries or records and drawn by [`chart`].

pub mod adaptive;
pub mod end_to_end;
pub mod layers;
pub mod loss;
pub mod performance_model;

use chart::{Figure, FigureError};
use workloads::suite::FigureKind;
use workloads::{EngineKind, Suite};

use crate::runs::records::RowsByRun;
use crate::summary::{ModelError, Summary};

/// The name of a suite's figure, and of its files.
pub fn name(kind: FigureKind) -> &'static str {
    match kind {
        FigureKind::Speedups => "end_to_end",
        FigureKind::PerformanceModel => "performance_model",
        FigureKind::Layers => "layers",
        FigureKind::Series => "adaptive",
    }
}

/// A suite's figure; its footnote says how the numbers were obtained and on which routing.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, rows: &RowsByRun, origin: &str) -> Result<Figure, FigureError> {
    match suite.figure {
        FigureKind::Speedups => end_to_end::draw(suite, summary, origin),
        FigureKind::PerformanceModel => performance_model::searches(suite, summary, origin).draw(),
        FigureKind::Layers => layers::draw(suite, summary, origin),
        FigureKind::Series => adaptive::of_run(suite, summary, rows, origin),
    }
}

/// How the numbers were obtained, and on which routing.
pub fn origin(summary: &Summary, trace: &str) -> String {
    let engine = summary.engine().map_or("", EngineKind::label);
    match summary.is_trained() {
        true => format!("{engine}, routing by the trained gate"),
        false => format!("{engine}, routing: {}", trace_name(trace)),
    }
}

/// A trace's name without its folders.
pub fn trace_name(trace: &str) -> &str {
    trace.rsplit('/').next().unwrap_or(trace)
}

/// A system's name in figures.
fn title(name: &str) -> String {
    systems::by_name(name).map_or(name, |system| system.title()).to_owned()
}

/// What the errors beside bars are, for a footnote: one sentence for the runs' own, one for each cluster's.
fn error_notes(summary: &Summary) -> String {
    let mut notes: Vec<String> = Vec::new();
    let mut unknown: Vec<&str> = Vec::new();
    for row in summary.rows.iter().filter(|row| row.step.is_some() && !row.key.engine.trains()) {
        let note = match &row.model_error {
            Some(ModelError::Run(_)) => "+n%: simulated over published time of this very run".to_owned(),
            Some(ModelError::Cluster(e)) => {
                let share = e.median * 100.0;
                format!(
                    "±{share:.1}%: median error of {} measured {} on {}",
                    e.measurements,
                    e.part.plural(),
                    e.cluster
                )
            }
            None if unknown.contains(&row.key.cluster.as_str()) => continue,
            None => {
                unknown.push(&row.key.cluster);
                continue;
            }
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes.extend(unknown.iter().map(|cluster| format!("{cluster}: no such measurement held, model error unknown")));
    notes.iter().map(|note| format!("; {note}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::mock::{MockEngine, suite};
    use crate::runs::records::Status;

    fn svg(engine: &MockEngine, figure: FigureKind) -> String {
        let mut suite = suite();
        suite.figure = figure;
        let rows = engine.rows(&suite);
        let rows = RowsByRun::new(&rows);
        let summary = Summary::new(&rows, &suite.baseline, suite.warmup);
        draw(&suite, &summary, &rows, &origin(&summary, "traces/a.parquet")).unwrap().svg
    }

    #[test]
    fn bars_show_speedups_failures_and_where_numbers_come_from() {
        let shown = svg(&MockEngine::failing("fastermoe", Status::Timeout), FigureKind::Speedups);
        for text in ["4.00", "TIMEOUT", "simulated, routing: a.parquet", "Speedup over Expert-only"] {
            assert!(shown.contains(text), "no {text} in {shown}");
        }
        assert!(!shown.contains("2.00"), "a failed run has no bar");
        let trained = svg(&MockEngine::of(EngineKind::Emulated), FigureKind::Speedups);
        assert!(trained.contains("emulated") && trained.contains("routing by the trained gate"));
    }

    #[test]
    fn losses_are_drawn_between_entropies() {
        let engine = MockEngine::of(EngineKind::Measured);
        let (suite, rows) = (suite(), engine.rows(&suite()));
        let rows = RowsByRun::new(&rows);
        let drawn = |entropies: [Option<[f64; 2]>; 2]| loss::draw(&suite, &rows, &entropies, "measured").unwrap().svg;
        let with = drawn([Some([1.0, 3.0]), None]);
        assert!(with.contains("unigram entropy") && with.contains("Loss (nats per token)"));
        assert!(!drawn([None, None]).contains("unigram entropy"));
    }

    #[test]
    fn a_series_leaves_out_decisions_and_marks_moves() {
        let shown = svg(&MockEngine::default(), FigureKind::Series);
        assert!(shown.contains("experts moved") && shown.contains("Layer time (ms)"), "{shown}");
    }
}
