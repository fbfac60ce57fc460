//! The figures of a stored run, each derived from its folder alone and drawn by [`chart`]: a run writes what `moebench plot`
//! draws again.

pub mod adaptive;
pub mod balancing;
pub mod end_to_end;
pub mod files;
pub mod labels;
pub mod layers;
pub mod loss;
pub mod map;
pub mod performance_model;
pub mod phases;
pub mod skew;

use chart::AnyChart;
use systems::plan::routing::JobRouting;
use workloads::EngineKind;
use workloads::suite::FigureKind;
use workloads::trace::Balance;

use crate::looks;
pub use crate::looks::title;
use crate::records::Row;
use crate::report;
use crate::stored::StoredRun;
use crate::summary::{ModelError, Summary, SummaryRow};
use crate::traces::{CaseTraces, each_once};

/// A figure, and what stands beside it.
pub struct PaperFigure {
    /// Its name, and that of its files.
    pub name: String,
    pub chart: AnyChart,
    /// What it shows, how the numbers were obtained and on which routing: text of a paper, not of the picture.
    pub caption: String,
}

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

/// Panels that a figure of lines has room for on a page.
const MOST_SERIES: usize = 6;

/// All figures that a run has data for; the suite's own is the first.
pub fn all(run: &StoredRun) -> Vec<PaperFigure> {
    let (kind, cases) = (run.facts.drawn.figure, labels::cases(run));
    let of_layers = cases.iter().all(|key| key.layer.is_some());
    let own = match kind {
        FigureKind::Map if map::is_there(run) => map::figure(run),
        FigureKind::Speedups | FigureKind::Map => end_to_end::figure(run),
        FigureKind::PerformanceModel => performance_model::figure(run),
        FigureKind::Layers => layers::figure(run),
        FigureKind::Series => adaptive::figure(run),
    };
    let others = |row: &SummaryRow| row.key.system != run.summary.baseline;
    let compares = run.summary.rows.iter().any(others) && run.summary.rows.iter().any(|row| row.step.is_some());
    // Bars over the baseline say nothing of a system alone, or where none has a time.
    let mut figures = Vec::from_iter((compares || own.name != "end_to_end").then_some(own));
    let mut also = |there: bool, figure: fn(&StoredRun) -> PaperFigure| {
        if there {
            let figure = figure(run);
            figures.extend(figures.iter().all(|own| own.name != figure.name).then_some(figure));
        }
    };
    also(skew::is_there(run), skew::figure);
    also(balancing::is_there(run), balancing::figure);
    also(!of_layers && compares, end_to_end::figure);
    also(of_layers, layers::figure);
    also(of_layers && cases.len() <= MOST_SERIES, adaptive::figure);
    also(!of_layers && performance_model::is_there(run), performance_model::figure);
    also(run.summary.rows.iter().any(|row| row.loss.is_some()), loss::figure);
    also(!of_layers && run.phases.is_there(), phases::figure);
    figures
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

/// A trace's name without its folders; what a drawn routing states behind its name (`max/mean 4`) is none.
pub fn trace_name(trace: &str) -> &str {
    let path = trace.split(", ").next().unwrap_or(trace);
    &trace[path.rfind('/').map_or(0, |at| at + 1)..]
}

/// How the numbers of a figure were obtained, in a word.
fn engine_note(run: &StoredRun) -> &'static str {
    run.provenance.engine.name()
}

/// Which systems look the same, for a caption.
fn look_notes(run: &StoredRun) -> String {
    let alike = looks::alike(labels::systems(run));
    alike.map_or(String::new(), |alike| format!("; {alike}"))
}

/// What speedups and their spreads are, for a caption; `drawn`: what each of the two is shown as.
pub(crate) fn statistic_note(run: &StoredRun, [value, spread]: [&str; 2]) -> String {
    let over = match run.summary.spread_over() {
        iterations if iterations == "iterations" => "spread over iterations (block bootstrap)".to_owned(),
        seeds => format!("smallest and largest of {seeds}"),
    };
    format!(
        "{value}: ratios of total times over whole placement periods after {} iterations of warm-up; {spread}: {over}",
        run.facts.warmup
    )
}

/// What bars, whiskers and lines across bars are, for a caption.
fn bars_note(run: &StoredRun) -> String {
    let published = run.summary.rows.iter().any(|row| row.published.speedup_by_medians.is_some());
    let medians = if published { "; published: by medians" } else { "" };
    format!("{}{medians}{}", statistic_note(run, ["bars", "whiskers"]), unreached_periods(&run.summary))
}

/// What stands behind the names of systems that did not train what their cases say, for a caption.
pub(crate) fn otherwise_note(run: &StoredRun) -> &'static str {
    if run.facts.drawn.otherwise.is_empty() { "" } else { "; †: ran with another model, gate or micro-batch" }
}

/// What a line is drawn of: seeds one after the other would go back. Rows of a seed stand together.
fn first_seed<'s, 'r>(rows: &'s [&'r Row]) -> &'s [&'r Row] {
    rows.chunk_by(|a, b| a.key.seed == b.key.seed).next().unwrap_or_default()
}

/// Which seed that is, where there are several.
fn seed_note(run: &StoredRun) -> String {
    match run.provenance.inputs.seeds.as_slice() {
        [first, _, ..] => format!(" under seed {first}"),
        _ => String::new(),
    }
}

/// Which runs were shorter than a placement period, for a caption.
pub(crate) fn unreached_periods(summary: &Summary) -> String {
    report::unreached_periods(summary).iter().map(|note| format!("; {note}")).collect()
}

/// What stands beside bars, for a caption, and how far a cluster's simulation was off where nothing does.
fn error_notes(summary: &Summary) -> String {
    let beside = if simulated(summary).any(|row| row.speedup_error.is_some()) {
        "; (+n%): simulated over published speedup by medians, under the plans that ran"
    } else {
        ""
    };
    format!("{beside}{}", model_notes(summary))
}

fn simulated(summary: &Summary) -> impl Iterator<Item = &SummaryRow> {
    summary.rows.iter().filter(|row| row.step.is_some() && !row.key.engine.trains())
}

/// What is extrapolated and how far clusters' simulations were off, for a caption.
pub(crate) fn model_notes(summary: &Summary) -> String {
    notes_of_model(summary).iter().map(|note| format!("; {note}")).collect()
}

/// The same, one line each.
pub fn notes_of_model(summary: &Summary) -> Vec<String> {
    let (mut notes, mut unmeasured): (Vec<String>, Vec<String>) = Default::default();
    if simulated(summary).any(|row| row.extrapolated.is_some()) {
        notes.push(
            "*: extrapolated, no expert parallelism or memory within 10% of the limit: unlike all that was measured"
                .to_owned(),
        );
    }
    for row in simulated(summary) {
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
                let unknown = format!("{} on {} {} GPUs", row.key.model, row.key.gpus, row.key.cluster);
                unmeasured.extend((!unmeasured.contains(&unknown)).then_some(unknown));
                continue;
            }
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    if !unmeasured.is_empty() {
        notes.push(format!("nothing measured, so error unknown: {}", unmeasured.join(", ")));
    }
    notes
}
