//! What figures show of a run of known times.

use std::collections::BTreeMap;

use chart::Width;
use runs::figures::{PaperFigure, all, origin, trace_name};
use runs::provenance::{DrawnFacts, Inputs, MapPlace, Provenance, SuiteFacts};
use runs::records::{MeanPhases, RowsByRun, Status};
use runs::stored::StoredRun;
use runs::summary::Summary;
use runs::summary::model_error::{ClusterError, Measured, Part};
use workloads::suite::FigureKind;
use workloads::trace::{RoutingTrace, TraceShape};
use workloads::{EngineKind, Published};

use super::engine::{MockEngine, suite};

/// A run as its folder would give it.
fn stored(engine: &MockEngine, figure: FigureKind) -> StoredRun {
    let suite = suite();
    let rows = engine.rows(&suite);
    let summary = Summary::new(&RowsByRun::new(&rows), &suite.baseline, suite.warmup);
    let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 1, experts: 1, entries: 1, top_k: 1 };
    let trace = RoutingTrace::new("traces/a.parquet", shape, vec![1], vec![1]).unwrap();
    let trace = trace.with_notes(vec!["made up".to_owned()]);
    let imbalance = (!summary.is_trained()).then_some("max/mean 2");
    let facts = SuiteFacts {
        baseline: suite.baseline.clone(),
        warmup: suite.warmup,
        origin: origin(summary.engine().unwrap(), &trace.into(), imbalance),
        drawn: DrawnFacts { figure, ..DrawnFacts::new(&suite) },
        ..SuiteFacts::default()
    };
    let inputs = Inputs { iterations: suite.iterations, ..Inputs::default() };
    StoredRun {
        folder: String::new(),
        provenance: Provenance { suite: Some(facts.clone()), ..Provenance::new(engine.kind, inputs) },
        facts,
        rows,
        phases: MeanPhases::default(),
        details: Vec::new(),
        figures: Vec::new(),
        summary,
        missing: Vec::new(),
    }
}

fn figure(run: &StoredRun, name: &str) -> PaperFigure {
    all(run).into_iter().find(|figure| figure.name == name).unwrap()
}

fn svg(run: &StoredRun, name: &str) -> String {
    figure(run, name).chart.draw(Width::Page).unwrap().svg
}

#[test]
fn bars_show_speedups_failures_and_where_numbers_come_from() {
    let run = stored(&MockEngine::failing("fastermoe", Status::Timeout), FigureKind::Speedups);
    let shown = svg(&run, "end_to_end");
    for text in ["4.00", "TIMEOUT", "by medians", "Speedup over Expert-only", "(simulated)"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
    assert!(!shown.contains("2.00"), "a failed run has no bar");
    let caption = figure(&run, "end_to_end").caption;
    for text in ["spread over iterations", "simulated, routing: a.parquet, max/mean 2; made up"] {
        assert!(caption.contains(text), "no {text} in {caption}");
        assert!(!shown.contains(text), "a caption stands beside the figure, not in it");
    }
    let trained = stored(&MockEngine::of(EngineKind::Emulated), FigureKind::Speedups);
    assert!(svg(&trained, "end_to_end").contains("emulated"));
    assert!(figure(&trained, "end_to_end").caption.contains("routing by the trained gate"));
}

/// Cases in the order inky, pinky, inky once drew two panels of inky with all its groups each.
#[test]
fn a_cluster_has_one_panel_and_groups_are_called_by_what_differs() {
    let mut run = stored(&MockEngine::default(), FigureKind::Speedups);
    let rows = run.summary.rows.clone();
    for (case, cluster, gpus) in [("b", "pinky", 8), ("c", "inky", 64)] {
        let own = rows.iter().filter(|row| row.key.case == rows[0].key.case).cloned().map(|mut row| {
            let key = std::sync::Arc::make_mut(&mut row.key);
            (key.case, key.cluster, key.gpus) = (case.to_owned(), cluster.to_owned(), gpus);
            row
        });
        run.summary.rows.extend(own.collect::<Vec<_>>());
    }
    let shown = svg(&run, "end_to_end");
    assert_eq!((shown.matches(">inky<").count(), shown.matches(">pinky<").count()), (1, 1));
    assert!(shown.contains(">64 GPUs<"), "{shown}");
    let model = &rows[0].key.model;
    assert!(!shown.contains(model.as_str()), "the model is the same in all cases");
    assert!(figure(&run, "end_to_end").caption.contains(model.as_str()));
}

#[test]
fn losses_are_drawn_between_entropies() {
    let mut run = stored(&MockEngine::of(EngineKind::Measured), FigureKind::Speedups);
    assert!(!svg(&run, "loss").contains("unigram entropy"));
    let case = run.summary.rows[0].key.case.clone();
    run.facts.drawn.entropies.insert(case, [1.0, 3.0]);
    let with = svg(&run, "loss");
    assert!(with.contains("unigram entropy") && with.contains("Loss (nats per token)"));
}

#[test]
fn a_series_leaves_out_decisions_and_marks_moves() {
    let shown = svg(&stored(&MockEngine::default(), FigureKind::Series), "adaptive");
    assert!(
        shown.contains("experts moved") && shown.contains(">Layer time (ms,<") && shown.contains(">simulated)<"),
        "{shown}"
    );
}

/// What a drawn routing states has a stroke in it, which is no folder's.
#[test]
fn a_trace_is_called_by_its_name_without_folders() {
    let check = |trace, expected: &str| assert_eq!(trace_name(trace), expected);
    check("traces/a.parquet", "a.parquet");
    check("synthetic, max/mean 4, half-life 50", "synthetic, max/mean 4, half-life 50");
}

#[test]
fn a_series_without_a_baseline_states_no_gain() {
    let mut run = stored(&MockEngine::default(), FigureKind::Series);
    assert!(figure(&run, "adaptive").caption.contains("; gain over Expert-only: "));
    run.summary.rows.iter_mut().for_each(|row| row.speedup = None);
    let caption = figure(&run, "adaptive").caption;
    assert!(!caption.contains("gain over") && caption.contains("); simulated, routing"), "{caption}");
}

#[test]
fn a_map_has_the_fastest_systems_gain_in_a_cell() {
    let mut run = stored(&MockEngine::default(), FigureKind::Map);
    run.facts.drawn.places = places(&run, |at| (vec![], 1.0, at));
    let shown = svg(&run, "map");
    for text in ["Network between nodes", ">×1<", ">trace<", ">2.00<", ">SmartMoE<"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
    assert!(
        !shown.contains("FasterMoE") && !shown.contains("Expert-only"),
        "who wins nowhere is in no legend: {shown}"
    );
    let figure = figure(&run, "map");
    assert!(figure.caption.contains("least mean iteration") && !shown.contains("least mean iteration"));
    assert!(figure.chart.csv().contains(",×1,trace,SmartMoE,2.00\n"), "{}", figure.chart.csv());
    // An older version did not store where cases stand.
    run.facts.drawn.places.clear();
    assert_eq!(all(&run)[0].name, "end_to_end");
}

/// Where the cases of a run stand: `of` gives routing, network and max/mean by number of the case.
fn places(run: &StoredRun, of: fn(usize) -> (Vec<&'static str>, f64, usize)) -> BTreeMap<String, MapPlace> {
    let mut places = BTreeMap::new();
    for key in run.summary.rows.iter().map(|row| &row.key) {
        let (routing, network, skew) = of(places.len());
        let max_over_mean = (!routing.is_empty()).then_some(skew as f64);
        let routing = routing.into_iter().map(str::to_owned).collect();
        let setting = key.case.clone();
        places.entry(key.case.clone()).or_insert(MapPlace { setting, network, routing, max_over_mean });
    }
    places
}

#[test]
fn a_map_says_how_what_it_compares_with_ended() {
    let mut run = stored(&MockEngine::failing("fastermoe", Status::Timeout), FigureKind::Map);
    run.facts.drawn.places = places(&run, |at| (vec![], 1.0, at));
    let figure = figure(&run, "map");
    assert!(figure.chart.csv().contains(",trace,SmartMoE,TIMEOUT\n"), "{}", figure.chart.csv());
    assert!(figure.caption.contains("or how FasterMoE ended"), "{}", figure.caption);
}

/// The cases differ in GPUs and gate; one with another batch was once left out, its cell that of the first.
#[test]
fn what_is_on_no_axis_has_a_panel_of_its_own() {
    let mut run = stored(&MockEngine::default(), FigureKind::Map);
    let first = run.summary.rows[0].key.case.clone();
    let more = run.summary.rows.iter().filter(|row| row.key.case == first).cloned().map(|mut row| {
        std::sync::Arc::make_mut(&mut row.key).case = format!("{first}.batch256");
        row
    });
    let more: Vec<_> = more.collect();
    run.summary.rows.extend(more);
    run.facts.drawn.places = places(&run, |_| (vec!["max/mean 2"], 1.0, 2));
    for figure in [figure(&run, "map"), figure(&run, "skew")] {
        let data = figure.chart.csv();
        for panel in ["\n\"8 GPUs, no drop\",", "\n\"8 GPUs, no drop, batch256\",", "\n\"16 GPUs, capacity 1.2\","] {
            assert!(data.contains(panel), "{}: no {panel} in {data}", figure.name);
        }
        assert!(figure.caption.contains("(gpt-tiny, inky)"), "{}", figure.caption);
    }
    // As skewed, but another routing.
    let drifts = |at| if at < 2 { (vec!["max/mean 2"], 1.0, 2) } else { (vec!["max/mean 2", "half-life 50"], 1.0, 2) };
    run.facts.drawn.places = places(&run, drifts);
    run.facts.drawn.places.get_mut(&format!("{first}.batch256")).unwrap().setting = first.clone();
    let data = figure(&run, "skew").chart.csv();
    for panel in ["\n\"8 GPUs, no drop\",SmartMoE,2,1,", "\n\"8 GPUs, no drop, half-life 50\",SmartMoE,2,1,"] {
        assert_eq!(data.matches(panel).count(), 1, "{panel} in {data}");
    }
}

#[test]
fn columns_of_a_map_are_called_in_words_by_what_differs() {
    let mut run = stored(&MockEngine::default(), FigureKind::Map);
    run.facts.drawn.places = places(&run, |at| match at {
        0 => (vec!["max/mean 1", "half-life 50"], 1.0, 1),
        _ => (vec!["max/mean 4", "half-life 50"], 1.0, 4),
    });
    let shown = svg(&run, "map");
    for text in [">1<", ">4<", "(half-life 50)"] {
        assert!(shown.contains(text), "no {text} in {shown}");
    }
    run.facts.drawn.places = places(&run, |at| match at {
        0 => (vec!["max/mean 4"], 1.0, 4),
        _ => (vec!["max/mean 4", "half-life 50"], 1.0, 4),
    });
    let columns = figure(&run, "map").chart.csv();
    assert!(columns.contains(",×1,4,") && columns.contains(",×1,half-life 50,"), "{columns}");
}

#[test]
fn skew_is_drawn_on_the_network_as_it_is() {
    let mut run = stored(&MockEngine::default(), FigureKind::Map);
    run.facts.drawn.places = places(&run, |at| (vec!["max/mean"], if at == 0 { 1.0 } else { 0.5 }, at + 2));
    let figure = figure(&run, "skew");
    let data = figure.chart.csv();
    assert!(data.contains(",SmartMoE,2,1,\n"), "{data}");
    assert!(!data.contains(",3,"), "a case on another network: {data}");
    let shown = svg(&run, "skew");
    assert!(figure.caption.contains("all costs charged") && !shown.contains("all costs charged"));
}

/// How far a cluster's simulation was off says whether constants were fitted to what it was held against.
#[test]
fn an_error_of_a_cluster_says_whether_a_fit_saw_it() {
    let text = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n\
                8,gpt-tiny,inky,8,capacity 2,deepspeed,pp1 dp8 tp1 ep8 edp1 mb1,median_step_s,1,a test\n";
    for (measured, said) in [(Measured::Unseen, "that no fit saw"), (Measured::Fitted, "that constants were fitted to")]
    {
        let (cluster, part) = ("inky".to_owned(), Part::Iteration);
        let error = ClusterError { cluster, part, measurements: 5, median: 0.02, p90: 0.08, max: 0.09, measured };
        let mut run = stored(&MockEngine::default(), FigureKind::Speedups);
        run.summary.hold_against(&Published::parse("test", text).unwrap(), &[error]);
        let caption = figure(&run, "end_to_end").caption;
        assert!(caption.contains(&format!("inky: 5 runs {said} were 2% off at the median")), "{caption}");
    }
}
