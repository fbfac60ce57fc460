//! Tables and the page of a run of known times; LaTeX and HTML are held to golden files.

use runs::provenance::{Inputs, Provenance};
use runs::records::{RowsByRun, Status};
use runs::report::{TextTable, html, latex};
use runs::summary::Summary;
use workloads::EngineKind;

use super::engine::{MockEngine, check_golden, suite};

fn summary(engine: &MockEngine) -> Summary {
    Summary::new(&RowsByRun::new(&engine.rows(&suite())), "expert-only", 2)
}

fn failing() -> MockEngine {
    MockEngine::failing("smartmoe", Status::CommError)
}

#[test]
fn a_suite_picks_the_columns_of_comparison() {
    let summary = summary(&MockEngine::default());
    let header = |compare: &[String]| TextTable::new(&summary, compare).header.join("|");
    let first = "case|system|plan|mean|median|totals over expert-only|spread over iterations|medians over expert-only";
    assert_eq!(header(&[]), format!("{first}|of ideal|online|peak|published medians|model error"));
    let table = TextTable::new(&summary, &suite().compare);
    assert_eq!(table.header[8], "totals over fastermoe");
    assert_eq!(table.rows[2][3..9], ["1000 ms", "1000 ms", "4.00x", "4.00 to 4.00", "4.00x", "2.00x"]);
}

#[test]
fn the_latex_table_is_the_golden_one() {
    check_golden("summary.tex", &latex::render(&TextTable::new(&summary(&failing()), &suite().compare)));
}

#[test]
fn the_html_page_is_the_golden_one() {
    let (suite, summary) = (suite(), summary(&failing()));
    let table = TextTable::new(&summary, &suite.compare);
    let inputs = Inputs { program: "0.0.0 <hash>".to_owned(), seeds: vec![1], iterations: 12, ..Inputs::default() };
    let mut provenance = Provenance::new(EngineKind::Simulated, inputs);
    (provenance.commit, provenance.dirty) = (Some("abc".to_owned()), Some(true));
    let page = html::Page { suite: &suite, summary: &summary, table: &table, provenance: &provenance };
    check_golden("report.html", &page.render("<svg></svg>"));
}

#[test]
fn trained_runs_show_losses() {
    let summary = summary(&MockEngine::of(EngineKind::Measured));
    let table = TextTable::new(&summary, &[]);
    assert_eq!(table.header[8..], ["online", "peak", "loss", "simulated"]);
    assert_eq!(table.rows[0][8..], ["0.00%", "2.0 GB", "2.375", ""]);
}

#[test]
fn cells_are_escaped_and_cases_set_apart() {
    let cells = |row: [&str; 2]| row.map(str::to_owned).to_vec();
    let table = TextTable {
        header: cells(["case", "± 5%"]),
        rows: vec![cells(["a_1", "2%"]), cells(["", "±4%"]), cells(["b&c", "x"])],
        text_columns: 1,
    };
    let text = latex::render(&table);
    assert!(text.contains("\\begin{tabular}{lr}\n\\toprule\ncase & $\\pm$ 5\\% \\\\\n\\midrule\n"), "{text}");
    assert!(text.contains("a\\_1 & 2\\% \\\\\n & $\\pm$4\\% \\\\\n\\addlinespace\nb\\&c & x \\\\\n\\bottomrule"));
}
