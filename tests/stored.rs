//! Stored runs: two compared, one held against bands, the shards of one joined, and the folders that they go to.

use std::fs;

use crate::support::{Folder, small_trace, suite_toml};

const RUN: &str = "run smoke --trace trace.parquet --iterations 12 --set warmup=2";

/// A cluster that is slower than inky by its matrix products alone.
fn slower(folder: &Folder) {
    let inky = workloads::Cluster::text("test", "inky").unwrap();
    let line = inky.lines().find(|line| line.starts_with("gemm_rate")).unwrap();
    folder.write("inky.toml", &inky.replace(line, "gemm_rate = { value = 1e12, source = \"a test\" }"));
}

#[test]
fn a_slower_run_is_told_and_fails_the_gate() {
    let folder = Folder::new();
    small_trace(&folder);
    slower(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop"), (16, "no-drop")]).replace("warmup = 1", "warmup = 2"));
    folder.write("slow.toml", &folder.text("suite.toml").replace("\"inky\"", "\"inky.toml\""));
    let run = |suite: &str, out: &str| folder.succeed(&format!("run {suite} --trace trace.parquet --out {out}"));
    run("suite.toml", "before");
    run("suite.toml", "again");
    let shown = folder.succeed("compare before again --fail-above 0%");
    assert!(shown.starts_with("inputs are equal\n"), "{shown}");
    assert_eq!(shown.matches("1.000 to 1.000").count(), 6, "{shown}");
    // The cluster is called inky-HASH: cases of one name are compared, so the id's cluster must be the same.
    let text = folder.text("inky.toml").replace("name = \"inky\"", "name = \"own\"");
    folder.write("inky.toml", &text);
    folder.write("own.toml", &text.replace("value = 1e12", "value = 1.816e14"));
    folder.write("fast.toml", &folder.text("suite.toml").replace("\"inky\"", "\"own.toml\""));
    run("fast.toml", "fast");
    run("slow.toml", "slow");
    let shown = folder.succeed("compare fast slow");
    assert!(shown.contains("cluster own says something else"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&folder.succeed("compare fast slow --json")).unwrap();
    for row in json["rows"].as_array().unwrap() {
        let number = |name: &str| row[name].as_f64().unwrap();
        let ratio = number("now_s") / number("before_s");
        assert!((number("ratio") / ratio - 1.0).abs() < 1e-9 && ratio > 1.2, "{row}");
        assert!(row["interval"][0].as_f64().unwrap() > 1.0, "{row}");
    }
    let ran = folder.moebench("compare fast slow --fail-above 5%");
    assert_eq!((ran.status, ran.stderr.matches("of its time (").count()), (Some(1), 6), "{}", ran.stderr);
    folder.succeed("compare slow fast --fail-above 5%");
    folder.succeed("compare fast slow --fail-above 1000000%");
    folder.refuse("compare fast", &["a second RUN, or --bands"]);
    folder.write("bands.toml", "[[bands]]\ncase = \"*\"\nsystem = \"smartmoe\"\nspeedup = [0, 1000]\n");
    folder.refuse("compare fast --bands bands.toml --fail-above 5%", &["--fail-above: ", "expected a second RUN"]);
    folder.refuse("compare fast --bands bands.toml --json", &["--json: ", "expected a second RUN"]);
    folder.refuse("compare fast nowhere", &["nowhere/run.json"]);
}

#[test]
fn what_is_gone_or_breaks_is_worse_than_slow() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(&format!("{RUN} --out whole"));
    folder.succeed(&format!("{RUN} --case 16 --seed 2 --out part"));
    let ran = folder.moebench("compare whole part --fail-above 50%");
    assert_eq!(ran.status, Some(1));
    assert!(ran.stderr.contains("gpt-tiny.inky.8.no-drop smartmoe: is gone"), "{}", ran.stderr);
    assert!(ran.stdout.contains("seeds = [1], now [2]"), "{}", ran.stdout);
    // Another seed draws other routing from the trace: nothing to pair.
    assert!(ran.stdout.contains("not paired"), "{}", ran.stdout);
    assert!(folder.succeed("compare part whole --fail-above 50%").contains("is new"));
    // Runs that share some seeds alone are of other iterations, though of as many.
    for (seeds, out) in [("[1,2]", "two"), ("[2,3]", "others")] {
        folder.succeed(&format!("{RUN} --set seeds={seeds} --out {out}"));
    }
    let shown = folder.succeed("compare two others");
    assert!(shown.contains("not paired") && !shown.contains(" to "), "{shown}");
    // One iteration after warm-up is paired, and has no spread.
    folder.succeed(&format!("{} --out short", RUN.replace("12", "3")));
    let shown = folder.succeed("compare short short");
    assert!(shown.contains("too short") && !shown.contains("not paired"), "{shown}");
    // So does another way through the trace.
    folder.succeed(&format!("{RUN} --set trace.stride=2 --out strides"));
    let shown = folder.succeed("compare whole strides");
    assert!(shown.contains("trace use says something else") && shown.contains("not paired"), "{shown}");
    assert!(!shown.contains(" to "), "{shown}");
    // A trace of another name does not.
    fs::copy(folder.join("trace.parquet"), folder.join("zzz.parquet")).unwrap();
    folder.succeed(&format!("{} --out renamed", RUN.replace("trace.parquet", "zzz.parquet")));
    assert!(!folder.succeed("compare whole renamed").contains("not paired"));
}

#[test]
fn numbers_outside_their_bands_fail() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(&format!("{RUN} --out run"));
    let band =
        |speedup: &str| format!("[[bands]]\ncase = \"gpt-tiny*no-drop\"\nsystem = \"smartmoe\"\nspeedup = {speedup}\n");
    folder.write("bands.toml", &band("[0.1, 1000]"));
    let ran = folder.moebench("compare run --bands bands.toml");
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("2 of 2 numbers are inside their bands"), "{}", ran.stderr);
    folder.write("bands.toml", &(band("[0.1, 1000]") + &band("[900, 1000]")));
    let ran = folder.moebench("compare run --bands bands.toml");
    assert_eq!(ran.status, Some(1));
    assert!(
        ran.stderr.contains("2 of 4")
            && ran.stderr.contains("smartmoe: speedup = ")
            && ran.stderr.contains("expected 900 to 1000"),
        "{}",
        ran.stderr
    );
    // A whole id is one case, though it begins the id of another.
    folder.write("gates.toml", &suite_toml(&[(8, "capacity 2"), (8, "capacity 2.4")]));
    folder.succeed("run gates.toml --trace trace.parquet --out gates");
    for (case, held) in [("gpt-tiny.inky.8.capacity-2", "1 of 1 numbers"), ("*capacity-2*", "2 of 2 numbers")] {
        folder.write("bands.toml", &band("[0.1, 1000]").replace("gpt-tiny*no-drop", case));
        let ran = folder.moebench("compare gates --bands bands.toml");
        assert!(ran.stderr.contains(held), "{case}: {}", ran.stderr);
    }
    // Of a case that is gone, no other is held in its place.
    folder.write("bands.toml", &band("[0.1, 1000]").replace("gpt-tiny*no-drop", "gpt-tiny.inky.8.capacity-2."));
    let expected =
        &["no case of the run is gpt-tiny.inky.8.capacity-2. under", "one of gpt-tiny.inky.8.capacity-2, gpt", "`*`"];
    folder.refuse("compare gates --bands bands.toml", expected);
    folder.write("bands.toml", &band("[0, 1]").replace("smartmoe", "alpa"));
    let expected =
        &["bands[0]: no case of the run is gpt-tiny*no-drop under alpa: expected one of the systems expert-only, "];
    folder.refuse("compare run --bands bands.toml", expected);
}

/// What a run writes of itself holds, until a number is another one.
#[test]
fn a_run_writes_the_bands_that_it_is_held_against() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed(&format!("{RUN} --out run"));
    folder.refuse("compare run run --write-bands b.toml", &["--write-bands", "expected no second RUN"]);
    folder.succeed("compare run --write-bands b.toml --within 0.1%");
    let text = folder.text("b.toml");
    assert!(
        text.starts_with("# What the suite ") && text.contains("over expert-only by totals, 0.1% to either side"),
        "{text}"
    );
    let ran = folder.moebench("compare run --bands b.toml");
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    let (bands, speedups) = (text.matches("[[bands]]").count(), text.matches("speedup =").count());
    assert!(ran.stderr.contains(&format!("{0} of {0} numbers", bands + speedups)) && speedups < bands, "{text}");
    folder.refuse("compare run --write-bands b.toml", &["b.toml: is there already", "--overwrite"]);
    folder.succeed("compare run --write-bands b.toml --within 0% --overwrite");
    assert_eq!(folder.moebench("compare run --bands b.toml").status, Some(0));
    // Other times are outside.
    let line = |line: &str| if line.starts_with("mean_step_s") { "mean_step_s = [9, 9]" } else { line }.to_owned();
    let other: Vec<String> = folder.text("b.toml").lines().map(line).collect();
    folder.write("b.toml", &other.join("\n"));
    assert_eq!(folder.moebench("compare run --bands b.toml").status, Some(1));
}

/// Over two and three shards, in whatever order they are given: every file but those that say who ran it when.
#[test]
fn shards_join_to_the_bytes_of_the_whole() {
    let folder = Folder::new();
    small_trace(&folder);
    let run = format!("{RUN} --set seeds=[1,2] --timeline");
    folder.succeed(&format!("{run} --out whole"));
    let wholly: Vec<String> = folder.files().into_iter().filter(|name| name.starts_with("whole/")).collect();
    assert!(wholly.len() > 10, "{wholly:?}");
    for of in [2, 3] {
        let outs: Vec<String> = (1..=of).map(|number| format!("{of}-{number}")).collect();
        for (number, out) in outs.iter().enumerate() {
            folder.succeed(&format!("{run} --shard {}/{of} --out={out}", number + 1));
        }
        let reversed = outs.iter().rev().cloned().collect::<Vec<_>>().join(" ");
        let ran = folder.moebench(&format!("merge joined{of} {reversed}"));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        for name in wholly.iter().filter(|name| !name.ends_with("run.json") && !name.ends_with("report.html")) {
            let joined = name.replacen("whole", &format!("joined{of}"), 1);
            assert!(folder.bytes(name) == folder.bytes(&joined), "{joined} is another than {name}");
        }
        folder.succeed(&format!("compare whole joined{of} --fail-above 0%"));
    }
    folder.refuse("merge x 2-1", &["shard 2/2 is missing"]);
    folder.refuse("merge x 2-1 2-2 2-1", &["shard 1/2 is there several times: 2-1, 2-1"]);
    folder.refuse("merge x 2-1 3-2", &["2-1: shard 1/2, but 3-2: shard 2/3"]);
    folder.refuse("merge x whole", &["whole: is a run of a whole suite"]);
    let shard = folder.bytes("2-2/iterations.parquet");
    for out in ["2-2", "./2-1/../2-2"] {
        folder.refuse(
            &format!("merge --overwrite {out} 2-1 2-2"),
            &[&format!("{out}: is the folder of shard 2/2: expected another")],
        );
    }
    assert_eq!(folder.bytes("2-2/iterations.parquet"), shard);
    folder.succeed(&format!("{} --shard 2/2 --out other", run.replace("12", "11")));
    folder.refuse("merge x 2-1 other", &["other: is not shard 2/2 of what 2-1 ran", "iterations = 11, now 12"]);
    folder.refuse(&format!("{run} --shard 4/4"), &["--shard 4/4: there are 3 cases"]);
    folder.refuse("run paper --shard 1/2", &["paper is a collection"]);
    folder.refuse("run smoke --shard slurm", &["SLURM_ARRAY_TASK_ID"]);
    assert!(!folder.join("x").exists());
}

#[test]
fn a_folder_says_what_it_holds_and_another_run_finds_its_own() {
    let folder = Folder::new();
    small_trace(&folder);
    let run = "run smoke --trace trace.parquet --iterations 3";
    folder.succeed(&format!("{run} --out out"));
    folder.refuse(
        &run.replace('3', "4 --seed 2 --out out"),
        &["out: holds another run (iterations = 3, now 4; seeds = [1], now [2]): choose"],
    );
    let of = |more: &str| {
        folder.succeed(&format!("{run}{more}"));
        fs::read_link(folder.join("results/latest")).unwrap().display().to_string()
    };
    let names = [of(""), of(" --seed 2"), of(" --case 16"), of(" --systems smartmoe")];
    assert!(names.iter().all(|name| name.starts_with("smoke-") && name.len() == "smoke-".len() + 8), "{names:?}");
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{names:?}");
    assert_eq!(of(" --seed 2"), names[1], "the same again");
    assert_eq!(folder.text("results/latest/summary.csv"), folder.text(&format!("results/{}/summary.csv", names[1])));
    folder.succeed("run smoke --timeline");
    assert!(folder.join("results/smoke/summary.csv").exists(), "the suite as it is has its name");
}
