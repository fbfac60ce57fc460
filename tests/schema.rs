//! The columns of stored runs: what results/SCHEMA.md says of them, their version, and readers that are not ours.

use std::fs;
use std::path::Path;
use std::process::Command;

use polars::prelude::{DataFrame, DataType, KeyValueMetadata, ParquetWriter};
use runs::records::{SCHEMA_KEY, SCHEMA_VERSION};

use crate::support::{Folder, small_trace, suite_toml};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn run() -> Folder {
    let folder = Folder::new();
    small_trace(&folder);
    let plan = "plans.smartmoe = \"pp2 dp4 tp1 ep4 edp1 mb2 every5\"\n";
    folder.write("suite.toml", &(suite_toml(&[(16, "capacity 1.2"), (8, "no-drop")]) + plan));
    folder.succeed("run suite.toml --trace trace.parquet --out out");
    folder
}

/// Name and type of the rows of the table below a heading.
fn documented(page: &str, file: &str) -> Vec<(String, String)> {
    let section = page.split(&format!("## `{file}`")).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
    })
    .collect()
}

fn columns(frame: &DataFrame) -> Vec<(String, String)> {
    let word = |data: &DataType| match data {
        DataType::String => "str".to_owned(),
        DataType::UInt32 => "u32".to_owned(),
        DataType::UInt64 => "u64".to_owned(),
        DataType::Float64 => "f64".to_owned(),
        other => panic!("{other}: which word?"),
    };
    frame.columns().iter().map(|column| (column.name().to_string(), word(column.dtype()))).collect()
}

#[test]
fn the_page_of_the_columns_is_true() {
    let page = fs::read_to_string(Path::new(ROOT).join("results/SCHEMA.md")).unwrap();
    assert!(page.contains(&format!("Version {SCHEMA_VERSION}.")) && page.contains(SCHEMA_KEY));
    let script = fs::read_to_string(Path::new(ROOT).join("scripts/read_run.py")).unwrap();
    assert!(script.contains(&format!("\nKNOWN = {SCHEMA_VERSION}\n")), "scripts/read_run.py knows other columns");
    let folder = run();
    for file in ["iterations.parquet", "spans.parquet"] {
        assert_eq!(columns(&folder.frame(&format!("out/{file}"))), documented(&page, file), "{file}");
    }
}

#[test]
fn columns_of_a_later_version_are_refused() {
    let folder = run();
    let name = "out/iterations.parquet";
    let mut frame = folder.frame(name);
    let mut write = |version: &str| {
        let metadata = KeyValueMetadata::from_static(vec![(SCHEMA_KEY.to_owned(), version.to_owned())]);
        let file = fs::File::create(folder.join(name)).unwrap();
        ParquetWriter::new(file).with_key_value_metadata(Some(metadata)).finish(&mut frame).unwrap();
    };
    write("99");
    let reads = format!("reads up to {SCHEMA_VERSION}");
    folder.refuse("report out", &[name, "columns of version 99", &reads]);
    folder.refuse("compare out out", &[name, "columns of version 99"]);
    write("new");
    folder.refuse("report out", &[name, SCHEMA_KEY, "\"new\"", "expected a whole number"]);
    write("3");
    folder.succeed("report out");
}

#[test]
fn gpu_hours_and_their_price_follow_from_the_mean() {
    let folder = Folder::new();
    small_trace(&folder);
    let cluster = folder.succeed("show cluster inky");
    let gpu = "hour_price = { value = 2.5, source = \"a bill, USD\" }\n\n[network]";
    assert!(cluster.contains("\n[network]"), "{cluster}");
    folder.write("priced.toml", &cluster.replacen("[network]", gpu, 1));
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop")]));
    folder.succeed("run suite.toml --trace trace.parquet --out free");
    folder.succeed("run suite.toml --trace trace.parquet --out priced --set cluster=priced.toml");
    let cells = |out: &str| {
        let text = folder.text(&format!("{out}/summary.csv"));
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let header = lines.next().unwrap();
        let at = move |name: &str| header.iter().position(|column| column == name).unwrap();
        let [hours, cost, mean] = ["gpu_hours_per_1000_iterations", "cost_per_1000_iterations", "mean_step_s"].map(at);
        lines.map(move |row| [hours, cost, mean].map(|column| row[column].parse::<f64>().ok())).collect::<Vec<_>>()
    };
    let (free, priced) = (cells("free"), cells("priced"));
    assert_eq!(free.len(), 3);
    for (free, priced) in free.iter().zip(&priced) {
        let (hours, mean) = (free[0].unwrap(), free[2].unwrap());
        assert!((hours - 8.0 * mean / 3.6).abs() < 1e-9 * hours);
        assert_eq!((free[1], priced[0], priced[1].unwrap()), (None, free[0], hours * 2.5));
    }
    // No time depends on the price; cases are named after their clusters. The page is rebuilt with it.
    let seconds = |out: &str| folder.frame(&format!("{out}/spans.parquet")).column("seconds").unwrap().clone();
    assert!(seconds("free").equals(&seconds("priced")));
    let page = folder.bytes("priced/report.html");
    folder.succeed("report priced");
    assert!(folder.bytes("priced/report.html") == page);
    assert!(folder.text("priced/report.html").contains("cost per 1000 iterations"));
    assert!(!folder.text("free/report.html").contains("cost per 1000 iterations"));
}

#[test]
#[ignore = "needs python3 with polars, pandas and pyarrow, as `python3` or in MOEBENCH_PYTHON"]
fn python_reads_a_run_with_polars_and_with_pandas() {
    let folder = run();
    let program = std::env::var("MOEBENCH_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(ROOT).join("scripts/read_run.py");
    let output = Command::new(program).arg(script).arg(folder.join("out")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for name in ["polars", "pandas"] {
        assert!(text.contains(&format!("{name}: 6 means agree with summary.csv")), "{text}");
    }
}
