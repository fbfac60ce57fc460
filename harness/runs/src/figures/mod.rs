//! The study's figures, each derived from summaries or records and drawn by [`chart`].

pub mod adaptive;
pub mod end_to_end;
pub mod layers;
pub mod loss;
pub mod map;
pub mod performance_model;
pub mod skew;

use chart::{Figure, FigureError};
use systems::plan::routing::JobRouting;
use workloads::suite::FigureKind;
use workloads::trace::Balance;
use workloads::{EngineKind, Suite};

use crate::records::RowsByRun;
use crate::report;
use crate::summary::{ModelError, Summary};
use crate::traces::{CaseTraces, each_once};

/// The name of a suite's figure, and of its files.
pub fn name(kind: FigureKind) -> &'static str {
    match kind {
        FigureKind::Speedups => "end_to_end",
        FigureKind::PerformanceModel => "performance_model",
        FigureKind::Layers => "layers",
        FigureKind::Series => "adaptive",
        FigureKind::Map => "map",
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
        FigureKind::Series => adaptive::draw(suite, summary, rows, origin),
        FigureKind::Map => map::draw(suite, summary, origin),
    }
}

/// How the numbers were obtained, and on which routing: its name, how imbalanced it was in the cases that were run, and what
/// its makers note. Without an imbalance, a trained gate routed.
pub fn origin(engine: EngineKind, traces: &CaseTraces, imbalance: Option<&str>) -> String {
    let engine = engine.label();
    let Some(imbalance) = imbalance else {
        return format!("{engine}, routing by the trained gate, whose imbalance is kept by --record-trace alone");
    };
    let names = each_once(traces.all().map(|trace| trace_name(trace.name()))).join("; ");
    let notes = each_once(traces.all().flat_map(|trace| trace.notes()).map(String::as_str));
    let notes: String = notes.iter().map(|note| format!("; {note}")).collect();
    format!("{engine}, routing: {names}, {imbalance}{notes}")
}

/// Imbalance of what the gates of all cases choose, before any capacity: medians over layers and three iterations.
pub fn imbalance<'a>(cases: impl Iterator<Item = &'a JobRouting<'a>>, iterations: usize) -> String {
    let of_case = |routing: &JobRouting| {
        let loads = [0, iterations / 2, iterations.saturating_sub(1)].map(|t| {
            let batch = routing.iteration(t);
            (0..batch.layers()).map(|layer| batch.loads(layer)).collect::<Vec<_>>()
        });
        Balance::of_loads(loads.into_iter().flatten())
    };
    let all: Vec<Balance> = cases.filter_map(of_case).collect();
    let range = |field: fn(&Balance) -> f64| {
        all.iter().map(field).fold((f64::INFINITY, 0.0_f64), |(low, high), x| (low.min(x), high.max(x)))
    };
    let text = |(low, high): (f64, f64), digits: usize| match format!("{low:.digits$}") {
        low if low == format!("{high:.digits$}") => low,
        low => format!("{low} to {high:.digits$}"),
    };
    let (most, gini) = (range(|balance| balance.max_over_mean[0]), range(|balance| balance.gini[0]));
    format!("expert load max/mean {}, Gini {}", text(most, 1), text(gini, 2))
}

/// A trace's name without its folders.
pub fn trace_name(trace: &str) -> &str {
    trace.rsplit('/').next().unwrap_or(trace)
}

/// A system's name in figures.
pub(crate) fn title(name: &str) -> String {
    systems::by_name(name).map_or(name, |system| system.title()).to_owned()
}

/// What bars, whiskers and lines across bars are, for a footnote.
fn statistic_note(suite: &Suite, summary: &Summary) -> String {
    let spread = match summary.spread_over() {
        iterations if iterations == "iterations" => "spread over iterations (block bootstrap)".to_owned(),
        seeds => format!("smallest and largest of {seeds}"),
    };
    let medians = if summary.rows.iter().any(|row| row.published.speedup_by_medians.is_some()) {
        "; published: by medians"
    } else {
        ""
    };
    format!(
        "bars: ratios of total times over whole placement periods after {} iterations of warm-up; whiskers: {spread}{medians}{}",
        suite.warmup,
        unreached_periods(summary)
    )
}

/// Which runs were shorter than a placement period, for a footnote.
fn unreached_periods(summary: &Summary) -> String {
    report::unreached_periods(summary).iter().map(|note| format!("; {note}")).collect()
}

/// What stands beside bars, for a footnote, and how far a cluster's simulation was off where nothing does.
fn error_notes(summary: &Summary) -> String {
    let simulated = || summary.rows.iter().filter(|row| row.step.is_some() && !row.key.engine.trains());
    let mut notes: Vec<String> = Vec::new();
    if simulated().any(|row| row.speedup_error.is_some()) {
        notes.push("(+n%): simulated over published speedup by medians, under the plans that ran".to_owned());
    }
    if simulated().any(|row| row.extrapolated.is_some()) {
        notes.push(
            "*: extrapolated, no expert parallelism or memory within 10% of the limit: unlike all that was measured"
                .to_owned(),
        );
    }
    for row in simulated() {
        let note = match &row.model_error {
            Some(ModelError::Run(_)) => continue,
            Some(ModelError::Cluster(e)) => format!(
                "{}: {} {} {} were {:.0}% off at the median, {:.0}% at the 90th percentile, {:.0}% at most",
                e.cluster,
                e.measurements,
                e.part.plural(),
                e.measured.clause(),
                e.median * 100.0,
                e.p90 * 100.0,
                e.max * 100.0
            ),
            None => {
                format!(
                    "{}, {}, {} GPUs: nothing measured, error unknown",
                    row.key.cluster, row.key.model, row.key.gpus
                )
            }
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    notes.iter().map(|note| format!("; {note}")).collect()
}
