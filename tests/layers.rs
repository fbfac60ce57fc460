//! Suites of single layers, and collections of suites.

use std::collections::BTreeMap;

use crate::support::{Folder, check_rising, small_trace};

/// One layer of the tiny model on four ranks, placed online every two iterations.
const SUITE: &str = r#"
name = "layers"
description = "for tests"
baseline = "expert-only"
systems = ["expert-only", "smartmoe"]
iterations = 12
warmup = 2
seeds = [0]
figure = "FIGURE"

[[cases]]
model = "gpt-tiny"
cluster = "nico"
gpus = 4
gate = "no-drop"
global_batch = 8
micro_batch = 2
layers = [0, 1]
plans.smartmoe = { pp = 1, dp = 4, tp = 1, ep = 4, expert_dp = 1, micro_batch = 2, placement_every = 2 }
"#;

#[test]
fn layers_are_recorded_as_iterations_are() {
    let folder = Folder::new();
    small_trace(&folder);
    for (figure, file) in [("layers", "layers"), ("series", "adaptive")] {
        folder.write("suite.toml", &SUITE.replace("FIGURE", figure));
        let shown = folder.succeed("run ./suite.toml --trace trace.parquet --out out --overwrite");
        assert!(shown.contains(&format!("out/figures/{file}.svg")), "{shown}");
        assert!(folder.text(&format!("out/figures/{file}.caption.txt")).contains("routing: trace.parquet"));
    }
    let frame = folder.frame("out/iterations.parquet");
    assert_eq!(frame.height(), 2 * 2 * 12);
    let number = |name: &str| -> Vec<f64> {
        let column = frame.column(name).unwrap().cast(&polars::prelude::DataType::Float64).unwrap();
        column.f64().unwrap().iter().map(|value| value.unwrap_or(-1.0)).collect()
    };
    let (layer, moved, decision) = (number("layer"), number("moved_experts"), number("decision_s"));
    assert!(layer[..24].iter().all(|l| *l == 0.0) && layer[24..].iter().all(|l| *l == 1.0));
    // The baseline's rows come first, then SmartMoE's, which decides before its third iteration and every second after.
    assert!(moved[..12].iter().all(|m| *m == 0.0) && moved[12..24].iter().sum::<f64>() > 0.0);
    let decided: Vec<usize> = (0..12).filter(|t| decision[12 + t] > 0.0).collect();
    assert_eq!(decided, [2, 4, 6, 8, 10]);
    assert!(number("peak_bytes").iter().all(|bytes| *bytes == -1.0), "memory is not followed");
}

/// Seeds one after the other would go back.
#[test]
fn a_line_is_of_one_seed() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &SUITE.replace("FIGURE", "series").replace("[0]\nfigure", "[3, 4]\nfigure"));
    folder.succeed("run ./suite.toml --trace trace.parquet --out out");
    assert!(
        folder
            .text("out/figures/adaptive.caption.txt")
            .starts_with("Time of a MoE layer over the iterations under seed 3")
    );
    check_rising(&folder.text("out/figures/adaptive.csv"));
}

#[test]
fn phases_of_a_layer_add_up_to_its_time() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &SUITE.replace("FIGURE", "series"));
    folder.succeed("run ./suite.toml --trace trace.parquet --out out");
    let key = |frame: &polars::prelude::DataFrame, row: usize| {
        let text = |name| frame.column(name).unwrap().str().unwrap().get(row).unwrap().to_owned();
        let iteration = frame.column("iteration").unwrap().u32().unwrap().get(row).unwrap();
        (text("case"), text("system"), iteration)
    };
    let spans = folder.frame("out/spans.parquet");
    let mut sums: BTreeMap<_, f64> = BTreeMap::new();
    for row in 0..spans.height() {
        *sums.entry(key(&spans, row)).or_default() += spans.column("seconds").unwrap().f64().unwrap().get(row).unwrap();
    }
    let iterations = folder.frame("out/iterations.parquet");
    for row in 0..iterations.height() {
        let step = iterations.column("step_s").unwrap().f64().unwrap().get(row).unwrap();
        let sum = sums[&key(&iterations, row)];
        assert!((sum - step).abs() < 1e-9, "{:?}: {sum}, expected {step}", key(&iterations, row));
    }
}

#[test]
fn bad_layers_name_the_field() {
    let folder = Folder::new();
    small_trace(&folder);
    let good = SUITE.replace("FIGURE", "layers");
    let check = |from: &str, to: &str, fragments: &[&str]| {
        assert!(good.contains(from));
        folder.write("suite.toml", &good.replace(from, to));
        folder.refuse("run ./suite.toml --trace trace.parquet --out out", fragments);
    };
    check("[0, 1]", "[99]", &["suite.toml: cases[0].layers = 99", "MoE layers, counted from 0"]);
    check("global_batch = 8", "global_batch = 16", &["cases[0].global_batch = 16", "gpus * micro_batch"]);
    check("layers = [0, 1]\n", "", &["cases[0].layers = none: expected layers to run alone"]);
    check("pp = 1, dp = 4", "pp = 2, dp = 2", &["cases[0].plans.smartmoe", "pp"]);
    check("\"layers\"\n\n", "\"pie\"\n\n", &["suite.toml", "unknown variant `pie`", "performance-model"]);
}

#[test]
fn a_collection_runs_every_suite_into_a_folder_of_its_own() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("all.toml", "name = \"all\"\ndescription = \"for tests\"\nsuites = [\"smoke\", \"paper-adaptive\"]\n");
    let run = "run ./all.toml --trace trace.parquet --iterations 3 --out out";
    folder.succeed(run);
    let page = folder.text("out/README.md");
    for (suite, figure) in [("smoke", "end_to_end"), ("paper-adaptive", "adaptive")] {
        assert!(page.contains(&format!("({suite}/figures/{figure}.svg)")), "{page}");
        assert!(folder.text(&format!("out/{suite}/summary.csv")).starts_with("case,"));
    }
    folder.refuse(&format!("{run} --systems smartmoe"), &["--systems", "all is a collection"]);
    folder.write("all.toml", "name = \"all\"\ndescription = \"for tests\"\nsuites = [\"smok\"]\n");
    folder.refuse(run, &["all", "unknown suite `smok`"]);
    folder.write("all.toml", "name = \"all\"\ndescription = \"for tests\"\nsuites = []\n");
    folder.refuse(run, &["all.toml: suites = an empty list"]);
}
