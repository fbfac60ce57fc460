//! Tables and the page of a run of known times; tables for papers are held to golden files.

use std::sync::Arc;

use chart::Width;
use runs::compare::{self, What};
use runs::engines::{Engine, Extent};
use runs::prepare::{self, PreparedRun};
use runs::provenance::{Inputs, Provenance, SuiteFacts};
use runs::records::{RunKey, RunRecord, Status};
use runs::report::html;
use runs::report::paper::{self, TableFormat};
use runs::report::values::SUMMARY;
use runs::store::Store;
use runs::stored::StoredRun;
use workloads::{EngineKind, Published};

use super::engine::{MockEngine, check_golden, suite, trace};
use crate::support::Folder;

fn failing() -> MockEngine {
    MockEngine::failing("smartmoe", Status::CommError)
}

/// Lines of at most so many characters, whatever does not fit side by side.
#[test]
fn a_terminals_table_keeps_within_its_lines() {
    let folder = Folder::new();
    let mut run = stored(&folder, &failing(), "fastermoe");
    let (wide, narrow) = (paper::terminal(&run, 100), paper::terminal(&run, 40));
    for (text, most) in [(&wide, 100), (&narrow, 40)] {
        assert!(text.lines().all(|line| line.chars().count() <= most), "{text}");
        assert!(text.contains("COMM_ERROR") && text.contains("\n  fastermoe "), "{text}");
    }
    assert!(narrow.lines().count() > wide.lines().count());
    assert!(wide.contains(&run.rows[0].key.case) && !wide.contains("over fastermoe"), "{wide}");
    run.facts.drawn.compare = vec!["fastermoe".to_owned()];
    let compared = paper::terminal(&run, 200);
    assert!(compared.contains("over") && !compared.contains("Tokens"), "{compared}");
    // What was measured stands under no cluster's name.
    run.facts.drawn.measured_on = Some("one core".to_owned());
    let measured = paper::terminal(&run, 100);
    let key = &run.rows[0].key;
    assert!(measured.contains("one core") && !measured.contains(&key.cluster), "{measured}");
    let page = html::page(&[run]).unwrap();
    assert!(page.contains("\"cluster\":\"one core\"") && !page.contains("\"cluster\":\"inky\""), "{page}");
}

#[test]
fn the_tables_of_a_paper_are_the_golden_ones() {
    let folder = Folder::new();
    let run = stored(&folder, &failing(), "fastermoe");
    let formats = [TableFormat::Latex, TableFormat::Markdown, TableFormat::Csv];
    for path in paper::write(&folder.join("tables"), &run, SUMMARY, Width::Page, &formats).unwrap() {
        check_golden(path.file_name().unwrap().to_str().unwrap(), &std::fs::read_to_string(&path).unwrap());
    }
}

/// A stored run of the mock engine; `name`: what FasterMoE is called in its records.
fn stored(folder: &Folder, engine: &MockEngine, name: &str) -> StoredRun {
    let inputs = Inputs {
        program: "0.0.0 <hash>".to_owned(),
        suite: "a&b".to_owned(),
        seeds: vec![1],
        iterations: 12,
        ..Inputs::default()
    };
    let facts = SuiteFacts {
        description: suite().description,
        baseline: "expert-only".to_owned(),
        warmup: 2,
        origin: "by hand".to_owned(),
        differences: vec!["<case> ran with \"other\"".to_owned()],
        ..SuiteFacts::default()
    };
    let provenance = Provenance { suite: Some(facts), ..Provenance::new(engine.kind, inputs) };
    let store = Store::open(folder.path(), &provenance, true).unwrap();
    let trace = trace();
    let cases = prepare::cases("test", &suite(), |_| &trace).unwrap();
    let extent = Extent { iterations: 12, timelines: false };
    for case in &cases {
        let record = |run: &PreparedRun| {
            let outcome = engine.run(run, run.plan().unwrap().plan, extent, &|| ()).unwrap();
            let mut record = RunRecord::new(run, engine.kind, outcome);
            if record.key.system == "fastermoe" {
                record.key = Arc::new(RunKey { system: name.to_owned(), ..(*record.key).clone() });
            }
            record
        };
        store.write_runs(&case.id(), &case.runs.iter().map(record).collect::<Vec<_>>()).unwrap();
    }
    store.join(&cases).unwrap();
    StoredRun::open(folder.path()).unwrap()
}

/// FasterMoE takes half of the time of expert parallelism, all of it in dense layers; SmartMoE does not end.
#[test]
fn a_page_answers_in_words() {
    let folder = Folder::new();
    let page = html::page(&[stored(&folder, &failing(), "fastermoe")]).unwrap();
    for words in [
        "<title>moebench: a&amp;b</title>",
        "For tests: 100% &amp; known.",
        "<li>FasterMoE is fastest in all 2 cases.</li>",
        "<li>Speed over Expert-only, by total time after warm-up: FasterMoE 2.00x.</li>",
        "saves most of Expert-only's time: attention and dense layers in 2 cases (50 to 50% of the iteration).",
        "every lead over the next system is larger than its spread",
        "<li>Runs without a time: 2 comm_error of 6.</li>",
        "2.00x (2.00 to 2.00)</td>",
        "attention and dense layers: 2.00 s less, 50% of its iteration</td>",
        "comm_error: on purpose</li>",
        "&lt;case&gt; ran with &quot;other&quot;</li>",
        "0.0.0 &lt;hash&gt;</code>",
    ] {
        assert!(page.contains(words), "no {words} in {}", &page[..page.find("<script").unwrap()]);
    }
}

/// Ratios over the system that a suite compares with were once left out of the page.
#[test]
fn a_page_holds_ratios_over_what_the_suite_compares_with() {
    let mut text = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n".to_owned();
    for (system, time) in [("expert-only", 4), ("fastermoe", 2), ("smartmoe", 3)] {
        text += &format!("8,gpt-tiny,inky,8,no-drop,{system},pp1 dp8 tp1 ep8 edp1 mb2,median_step_s,{time},a test\n");
    }
    let folder = Folder::new();
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    run.summary.hold_against(&Published::parse("test", &text).unwrap(), &[]);
    let ratio = "SmartMoE over FasterMoE, by medians";
    assert!(!html::page(std::slice::from_ref(&run)).unwrap().contains(ratio));
    run.facts.drawn.compare = suite().compare;
    let page = html::page(&[run]).unwrap();
    for cell in [ratio, ">0.67x<", ">not reproduced<"] {
        assert!(page.contains(cell), "no {cell} in {}", &page[..page.find("<script").unwrap()]);
    }
}

#[test]
fn a_page_tells_a_system_that_ran_alone_from_one_that_alone_has_a_time() {
    let folder = Folder::new();
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    run.summary.rows.iter_mut().filter(|row| row.key.system != "smartmoe").for_each(|row| row.step = None);
    assert!(html::page(&[run]).unwrap().contains("<li>No case has times of two systems: SmartMoE.</li>"));
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    run.summary.rows.retain(|row| row.key.system == "smartmoe");
    assert!(html::page(&[run]).unwrap().contains("<li>One system ran in each case: SmartMoE.</li>"));
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    let case = run.summary.rows[0].key.case.clone();
    run.summary.rows.retain(|row| (row.key.system == "smartmoe") == (row.key.case == case));
    run.summary.rows.retain(|row| row.key.system != "fastermoe");
    assert!(
        html::page(&[run]).unwrap().contains("<li>One system ran in each case: SmartMoE in 1, Expert-only in 1.</li>")
    );
}

/// The name of one case may begin with that of another.
#[test]
fn a_difference_stands_beside_its_own_case() {
    let folder = Folder::new();
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    let case = run.summary.rows[0].key.case.clone();
    run.facts.differences = vec![format!("{case}.gb128 fastermoe: ran with another gate")];
    assert!(!html::page(&[run]).unwrap().contains("not all systems trained the same"));
    let mut run = stored(&folder, &MockEngine::default(), "fastermoe");
    run.facts.differences = vec![format!("{case} fastermoe: ran with another gate")];
    assert_eq!(html::page(&[run]).unwrap().matches("not all systems trained the same").count(), 1);
}

/// The first system stops after four of twelve iterations.
#[test]
fn a_case_shows_the_routing_of_the_run_that_went_furthest() {
    let folder = Folder::new();
    let engine = MockEngine::failing("expert-only", Status::Oom);
    let page = html::page(&[stored(&folder, &engine, "fastermoe")]).unwrap();
    let data = page.split("id=\"data\">").nth(1).unwrap();
    let data: serde_json::Value = serde_json::from_str(data.split("</script>").next().unwrap()).unwrap();
    for case in data["runs"][0]["cases"].as_array().unwrap() {
        assert_eq!(case["imbalance"]["from"].as_array().unwrap().len(), 12);
    }
}

/// A name is a name: no text of a run becomes an element, closes the data, or may run.
#[test]
fn names_are_harmless() {
    let folder = Folder::new();
    let name = "<script>alert(1)</script><!--";
    let page = html::page(&[stored(&folder, &MockEngine::default(), name)]).unwrap();
    assert!(!page.contains("<script>alert") && !page.contains("<!--"));
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "the table names it");
    assert!(page.contains("\\u003cscript>alert(1)\\u003c/script>"), "so do the data");
    assert_eq!(page.matches("<script").count(), 2, "the data and the page's own script");
    assert!(page.contains("default-src 'none'; script-src 'sha256-"));
}

#[test]
fn several_runs_stand_beside_each_other() {
    let folders = [Folder::new(), Folder::new()];
    let engines = [MockEngine::default(), MockEngine::of(EngineKind::Emulated)];
    let runs: Vec<StoredRun> =
        folders.iter().zip(&engines).map(|(folder, engine)| stored(folder, engine, "fastermoe")).collect();
    let page = html::page(&runs).unwrap();
    for words in [
        "<title>moebench: a&amp;b (simulated), a&amp;b (emulated)</title>",
        "<h2>Runs beside each other</h2>",
        "mean, emulated</th>",
        "over simulated</th>",
        ">+0.0%</td>",
        "What was run: a&amp;b (emulated)",
        "a machine of ",
    ] {
        assert!(page.contains(words), "no {words}");
    }
    // Two of the same engine are told apart by their folders.
    let twice = [stored(&folders[0], &engines[0], "fastermoe"), stored(&folders[1], &engines[0], "fastermoe")];
    let page = html::page(&twice).unwrap();
    let name = folders[1].path().file_name().unwrap().to_str().unwrap();
    assert!(page.contains(&format!("a&amp;b (simulated, {name})")));
}

/// Whose gate learns goes another way than a trace.
#[test]
fn a_trained_run_is_not_paired_with_a_simulated_one() {
    let folders = [Folder::new(), Folder::new()];
    let of = |kind, folder| stored(folder, &MockEngine::of(kind), "fastermoe");
    let [simulated, trained] = [of(EngineKind::Simulated, &folders[0]), of(EngineKind::Measured, &folders[1])];
    let paired = |before, now| {
        let changes = compare::changes(before, now);
        let intervals = changes.iter().map(|change| matches!(change.what, What::Times { interval: Some(_), .. }));
        intervals.collect::<Vec<_>>()
    };
    assert_eq!(paired(&simulated, &trained), [false; 6]);
    assert_eq!(paired(&simulated, &simulated), [true; 6]);
    assert_eq!(paired(&trained, &trained), [true; 6]);
}

#[test]
fn trained_runs_show_what_was_trained() {
    let folder = Folder::new();
    let table = paper::terminal(&stored(&folder, &MockEngine::of(EngineKind::Measured), "fastermoe"), 200);
    let (header, row) =
        (table.lines().next().unwrap(), table.lines().find(|line| line.contains("expert-only")).unwrap());
    assert!(["Memory", "Tokens/s", "Loss"].iter().all(|name| header.contains(name)), "{table}");
    // 64 samples of 256 tokens in 4 s; the fullest rank; the last loss.
    assert!(["2.0", "4096", "2.375"].iter().all(|value| row.split_whitespace().any(|word| word == *value)), "{table}");
}
