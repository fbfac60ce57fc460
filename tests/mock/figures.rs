//! What figures show of a run of known times.

use runs::figures::{draw, loss, origin};
use runs::records::{RowsByRun, Status};
use runs::summary::Summary;
use runs::summary::model_error::{ClusterError, Measured, Part};
use workloads::suite::FigureKind;
use workloads::trace::{RoutingTrace, TraceShape};
use workloads::{EngineKind, Published};

use super::engine::{MockEngine, suite};

fn svg(engine: &MockEngine, figure: FigureKind) -> String {
    let mut suite = suite();
    suite.figure = figure;
    let rows = engine.rows(&suite);
    let rows = RowsByRun::new(&rows);
    let summary = Summary::new(&rows, &suite.baseline, suite.warmup);
    let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 1, experts: 1, entries: 1, top_k: 1 };
    let trace = RoutingTrace::new("traces/a.parquet", shape, vec![1], vec![1]).unwrap();
    let trace = trace.with_notes(vec!["made up".to_owned()]);
    draw(
        &suite,
        &summary,
        &rows,
        &origin(summary.engine().unwrap(), &trace.into(), (!summary.is_trained()).then_some("max/mean 2")),
    )
    .unwrap()
    .svg
}

#[test]
fn bars_show_speedups_failures_and_where_numbers_come_from() {
    let shown = svg(&MockEngine::failing("fastermoe", Status::Timeout), FigureKind::Speedups);
    for text in [
        "4.00",
        "TIMEOUT",
        "by medians",
        "spread over iterations",
        "simulated, routing: a.parquet, max/mean 2; made up",
        "Speedup over Expert-only",
    ] {
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

#[test]
fn a_map_has_the_fastest_systems_gain_in_a_cell() {
    let shown = svg(&MockEngine::default(), FigureKind::Map);
    for text in ["Network between nodes", ">×1<", ">trace<", "least mean iteration"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
}

/// How far a cluster's simulation was off says whether constants were fitted to what it was held against.
#[test]
fn an_error_of_a_cluster_says_whether_a_fit_saw_it() {
    let (suite, engine) = (suite(), MockEngine::default());
    let rows = engine.rows(&suite);
    let rows = RowsByRun::new(&rows);
    let text = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n\
                8,gpt-tiny,inky,8,capacity 2,deepspeed,pp1 dp8 tp1 ep8 edp1 mb1,median_step_s,1,a test\n";
    let shown = |measured| {
        let (cluster, part) = ("inky".to_owned(), Part::Iteration);
        let error = ClusterError { cluster, part, measurements: 5, median: 0.02, p90: 0.08, max: 0.09, measured };
        let mut summary = Summary::new(&rows, &suite.baseline, suite.warmup);
        summary.hold_against(&Published::parse("test", text).unwrap(), &[error]);
        draw(&suite, &summary, &rows, "a test").unwrap().svg
    };
    let words = |svg: String| {
        let texts = svg.split('<').filter_map(|tag| tag.split_once('>')).map(|(_, text)| text.trim());
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" ")
    };
    for (measured, said) in [(Measured::Unseen, "that no fit saw"), (Measured::Fitted, "that constants were fitted to")]
    {
        let words = words(shown(measured));
        assert!(words.contains(&format!("inky: 5 runs {said} were 2% off at the median")), "{words}");
    }
}
