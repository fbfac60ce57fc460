//! Tables of stored runs: written again to the byte, within their width, with the numbers of the summary.

use runs::report::paper::{self, TableFormat};
use runs::report::values::{SUMMARY, Value};
use runs::stored::StoredRun;

use chart::Width;
use clap::ValueEnum;

use crate::support::{Folder, latex_compiles, latex_paper, small_trace};

const RUN: &str = "run smoke --trace trace.parquet --iterations 12 --set warmup=2 --out out";

#[test]
fn tables_are_written_again_to_the_byte_from_the_folder_alone() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    let before = folder.bytes("out/tables/summary.tex");
    std::fs::remove_dir_all(folder.join("out/tables")).unwrap();
    let shown = folder.succeed("table out");
    assert_eq!(shown, "table    out/tables/summary.tex\n");
    assert!(folder.bytes("out/tables/summary.tex") == before);
    for out in ["a", "b"] {
        folder.succeed(&format!("table out --values speedup --format latex,markdown,csv --columns 1 --out {out}"));
    }
    let written = folder.same_files("a/", "b/");
    assert_eq!(written, ["a/speedup-column.md", "a/speedup-column.tex", "a/speedup.caption.txt", "a/speedup.csv"]);
}

#[test]
fn values_and_cases_are_asked_for_by_name() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    folder.refuse("table out --case 64.no-drop", &["--case: no case of the run", "gpt-tiny.inky.8.no-drop"]);
    for part in ["table out --case 8.no-drop", "plot out --case 8.no-drop"] {
        folder.refuse(part, &["--case: expected --out", "of all its cases"]);
    }
    folder.refuse("plot out --case 64.no-drop", &["--case: no case of the run", "gpt-tiny.inky.8.no-drop"]);
    folder.refuse("table out --values speed", &["invalid value 'speed'", "speedup"]);
    folder.succeed("table out --values speedup,memory --case 8.no-drop --format markdown,csv --out out/tables");
    assert_eq!(folder.text("out/tables/speedup-memory.csv").lines().count(), 1 + 3);
    let page = folder.text("out/tables/speedup-memory.md");
    assert!(page.starts_with("| System ") && page.contains(" Speedup | Memory (GB) |"), "{page}");
    // A single case is named by what it has in common with itself, in the caption.
    assert!(page.contains("(gpt-tiny, inky, 8 GPUs, no drop);"), "{page}");
}

/// Every number of a table is the summary's, and what is shown of it is that number rounded.
#[test]
fn numbers_are_those_of_the_summary() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(RUN);
    folder.succeed("table out --values iteration,speedup,medians,ideal,memory,gpu-hours --format csv,markdown");
    let name = "out/tables/iteration-speedup-medians-ideal-memory-gpu-hours";
    let table = folder.text(&format!("{name}.csv"));
    let read = |text: &str| -> Vec<Vec<String>> {
        let mut lines = csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
        lines.records().map(|line| line.unwrap().iter().map(str::to_owned).collect()).collect()
    };
    let [table, summary] = [read(&table), read(&folder.text("out/summary.csv"))];
    let column = |of: &[Vec<String>], name: &str| of[0].iter().position(|column| column == name).unwrap();
    let pairs = [
        ("iteration", "mean_step_s", 1e3),
        ("speedup", "speedup_by_totals", 1.0),
        ("medians", "speedup_by_medians", 1.0),
        ("ideal", "share_of_ideal", 100.0),
        ("memory", "peak_bytes", 1e-9),
        ("gpu-hours", "gpu_hours_per_1000_iterations", 1.0),
    ];
    let mut compared = 0;
    for (of, in_summary, factor) in pairs {
        for (row, expected) in table.iter().zip(&summary).skip(1) {
            assert_eq!(
                row[..2],
                [expected[column(&summary, "case")].clone(), expected[column(&summary, "system")].clone()]
            );
            let [found, expected] = [&row[column(&table, of)], &expected[column(&summary, in_summary)]]
                .map(|text| text.parse::<f64>().unwrap());
            crate::support::close(found, expected * factor);
            compared += 1;
        }
    }
    assert_eq!(compared, 6 * (table.len() - 1));
    let page = folder.text(&format!("{name}.md"));
    for row in table.iter().skip(1) {
        let rounded = |name: &str| row[column(&table, name)].parse::<f64>().unwrap();
        let cells = format!("{:.2}", rounded("medians"));
        let memory = format!("{:.1} |", rounded("memory"));
        assert!(
            page.lines().any(|line| line.contains(&cells) && line.contains(&memory)),
            "{cells}, {memory} in {page}"
        );
    }
}

/// Every choice of one value, the summary, and all at once.
fn choices() -> Vec<Vec<Value>> {
    let one = Value::value_variants().iter().map(|value| vec![*value]);
    one.chain([SUMMARY.to_vec(), Value::value_variants().to_vec()]).collect()
}

/// Markdown of a run is no wider than it is said to be; a plan alone beside the longest names may be.
pub(crate) fn check_markdown(suite: &str, run: &StoredRun) {
    let folder = Folder::new();
    for (width, most) in [(Width::Column, 80), (Width::Page, 160)] {
        for values in choices() {
            let paths = paper::write(folder.path(), run, &values, width, &[TableFormat::Markdown]).unwrap();
            let text = std::fs::read_to_string(&paths[0]).unwrap();
            for line in text.lines().filter(|line| line.starts_with('|')) {
                let alone = values.contains(&Value::Plan) && line.matches('|').count() == 3;
                assert!(alone || line.chars().count() <= most, "{suite}, {values:?}: {line} of {most}: {text}");
            }
        }
    }
}

#[test]
#[ignore = "needs pdflatex"]
fn latex_sets_tables_without_running_over() {
    let folder = Folder::new();
    for suite in ["smoke", "paper-gpt", "modern", "balance"] {
        folder.succeed(&format!("run {suite} --iterations 12 --set warmup=2 --out {suite}"));
        let run = StoredRun::open(&folder.join(suite)).unwrap();
        let mut inputs = String::new();
        for width in [Width::Column, Width::Page] {
            for (at, values) in choices().iter().enumerate() {
                let tables = format!("tables{at}");
                let path = &paper::write(&folder.join(&tables), &run, values, width, &[TableFormat::Latex]).unwrap()[0];
                let name = path.file_name().unwrap().to_str().unwrap();
                inputs += &format!("\\input{{{tables}/{name}}}\\clearpage\n");
            }
        }
        folder.write("paper.tex", &latex_paper("\\usepackage{booktabs}", &inputs));
        assert!(latex_compiles(&folder, "paper.tex"), "no pdflatex");
    }
}
