//! Models and clusters by files: what they are called, where their files are looked for; and a suite's routing.

use crate::support::{Folder, cluster_toml, small_trace, suite_toml};

/// The tiny model under another name, with another number of experts.
fn model_toml(name: &str, experts: usize) -> String {
    format!(
        "name = \"{name}\"\nsource = \"a test\"\n[gpt]\nlayers = 2\nhidden = 64\nheads = 4\nseq_len = 32\nvocabulary = 128\n\
         expert_ratio = 2\nexperts = {experts}\nmoe_every = 1\ntop_k = 2\n"
    )
}

fn cases(folder: &Folder, out: &str) -> Vec<String> {
    let frame = folder.frame(&format!("{out}/iterations.parquet"));
    let mut cases: Vec<String> =
        frame.column("case").unwrap().str().unwrap().iter().flatten().map(str::to_owned).collect();
    cases.dedup();
    cases
}

/// However long the path, and wherever the program is started: paths are relative to the suite.
#[test]
fn a_file_is_called_by_its_name_and_found_beside_its_suite() {
    let folder = Folder::new();
    small_trace(&folder);
    let deep = format!("{}/{}", "a".repeat(120), "b".repeat(120));
    folder.write(&format!("{deep}/models/m.toml"), &model_toml("own model/1", 8));
    folder.write(&format!("{deep}/c.toml"), &cluster_toml(8, &[]));
    let suite = suite_toml(&[(4, "no-drop")]).replace("\"gpt-tiny\"", "\"models/m.toml\"");
    folder.write(&format!("{deep}/suite.toml"), &suite.replace("\"inky\"", "\"./c.toml\""));
    let shown = folder.succeed(&format!("run {deep}/suite.toml --trace trace.parquet --out out"));
    assert_eq!(cases(&folder, "out"), ["own-model-1.test.4.no-drop"]);
    for (name, holds) in [("out/summary.csv", "own model/1,test"), ("out/report.html", "own-model-1.test.4.no-drop")] {
        let text = folder.text(name);
        assert!(text.contains(holds), "no {holds} in {name}: {text}");
        assert!(!text.contains("bbbb") || name.ends_with("html"), "a path in {name}: {text}");
    }
    assert!(!shown.contains(".toml"), "{shown}");
    assert!(!folder.text("out/figures/end_to_end.svg").contains(".toml"));
    folder.write(&format!("{deep}/lost.toml"), &suite);
    folder.write(&format!("{deep}/lost.toml"), &suite.replace("models/m.toml", "./none.toml"));
    folder.refuse(&format!("run {deep}/lost.toml"), &["cases[0].model", "bbb/./none.toml: cannot be read"]);
}

#[test]
fn names_that_no_file_can_have_are_refused_before_work() {
    let folder = Folder::new();
    small_trace(&folder);
    let refuse = |name: &str, expected: &[&str]| {
        folder.write("m.toml", &model_toml(name, 8));
        folder.write("s.toml", &suite_toml(&[(4, "no-drop")]).replace("\"gpt-tiny\"", "\"m.toml\""));
        folder.refuse("run s.toml --trace trace.parquet --out out", expected);
        folder.refuse("plan --model ./m.toml --cluster inky --gpus 4 --global-batch-size 8", expected);
    };
    refuse(&"x".repeat(101), &["model: name = ", "expected 1 to 100 bytes"]);
    refuse("a\\nb", &["model: name = \"a\\nb\"", "expected 1 to 100 bytes without line breaks"]);
    refuse("", &["model: name = \"\""]);
    let long = "y".repeat(100);
    folder.write("m.toml", &model_toml(&long, 8));
    let suite = suite_toml(&[(4, "no-drop")]).replace("\"gpt-tiny\"", &format!("\"m.toml\"\nname = \"{long}\""));
    folder.write("s.toml", &suite);
    folder
        .refuse("run s.toml --trace trace.parquet --out out", &["cases[0]", "expected at most 180", "shorter `name`"]);
    assert!(!folder.join("out").exists());
}

/// Two models of one name, and one with the name of a model that comes with moebench.
#[test]
fn equal_names_of_unlike_models_are_told_apart() {
    let folder = Folder::new();
    small_trace(&folder);
    for (file, name, experts) in [("a/m.toml", "mine", 8), ("b/m.toml", "mine", 16), ("c/m.toml", "gpt-tiny", 4)] {
        folder.write(file, &model_toml(name, experts));
    }
    let one = suite_toml(&[(4, "no-drop"), (4, "no-drop"), (4, "no-drop"), (4, "no-drop")]);
    let mut files = ["a/m.toml", "b/m.toml", "c/m.toml", "gpt-tiny"].into_iter();
    let suite = one.split("\"gpt-tiny\"").collect::<Vec<_>>();
    let suite =
        suite[1..].iter().fold(suite[0].to_owned(), |text, part| format!("{text}\"{}\"{part}", files.next().unwrap()));
    folder.write("s.toml", &suite);
    folder.succeed("run s.toml --trace trace.parquet --out out");
    let cases = cases(&folder, "out");
    assert_eq!(cases.len(), 4, "{cases:?}");
    assert_eq!((cases[0].as_str(), cases[3].as_str()), ("mine.inky.4.no-drop", "gpt-tiny.inky.4.no-drop"));
    let hashed = |case: &str, name: &str| {
        let hash = case.strip_prefix(name).and_then(|rest| rest.strip_suffix(".inky.4.no-drop")).unwrap_or_default();
        hash.len() == 9 && hash.starts_with('-')
    };
    assert!(hashed(&cases[1], "mine") && hashed(&cases[2], "gpt-tiny"), "{cases:?}");
}

/// Skew as the axis of a suite: each routing is a case with the imbalance that it states, for the experts of its own model.
#[test]
fn routing_is_an_axis() {
    let folder = Folder::new();
    folder.write("m.toml", &model_toml("wide", 32));
    let axis = "routing = [{ max_over_mean = 1.5 }, { max_over_mean = 3.0, half_life = 50 }, { workload = \"W0\" }]\n";
    let suite = suite_toml(&[(4, "no-drop"), (8, "no-drop")]).replacen("\"gpt-tiny\"", "\"m.toml\"", 1);
    let suite = suite.replacen("\n\n[[cases]]", &format!("\n\n[[cases]]\n{axis}"), 1).replacen(
        "[[cases]]\nm",
        &format!("[[cases]]\n{axis}m"),
        2,
    );
    folder.write("s.toml", &suite);
    let shown = folder.succeed("run s.toml --iterations 3 --out out");
    let cases = cases(&folder, "out");
    let expected = ["max1.5", "max3-half50", "W0"];
    let of = |model: &str, gpus| expected.map(|routing| format!("{model}.inky.{gpus}.no-drop.{routing}"));
    assert_eq!(cases, [of("wide", 4), of("gpt-tiny", 8)].concat());
    // The figure's caption and the text say what was run: from balance to the strongest skew.
    for said in [shown, folder.text("out/figures/end_to_end.caption.txt")] {
        assert!(
            said.contains("expert load max/mean 1.0 to 3.") || said.contains("expert load max/mean 1.0 to 2.9"),
            "{said}"
        );
    }
    let svg = folder.text("out/figures/end_to_end.svg");
    assert!(svg.contains("max1.5") && svg.contains("W0"), "a group says its routing");
    folder.write("far.toml", &suite.replace("max_over_mean = 1.5", "max_over_mean = 99"));
    folder.refuse("run far.toml --out x", &["far.toml: cases[0].routing", "max_over_mean is 99"]);
    // A case is called by its place in its file, whichever of them are run.
    let last = "run far.toml --case gpt-tiny.*max99 --out x";
    folder.refuse(last, &["far.toml: cases[3].routing", "max_over_mean is 99"]);
    folder.refuse(&format!("{last} --shard 1/1"), &["far.toml: cases[3].routing"]);
    folder.write("both.toml", &suite.replace("{ workload = \"W0\" }", "{ workload = \"W0\", gini = 0.1 }"));
    folder.refuse("run both.toml --out x", &["both.toml: cases[2].routing", "one of them"]);
}

/// A suite is whole: its trace lies beside it, wherever the suite is run from, or comes with moebench.
#[test]
fn a_suite_names_its_trace() {
    let folder = Folder::new();
    folder.write("sub/note", "");
    folder.succeed("trace synth sub/loads.parquet --max-over-mean 3 --iterations 4");
    let plain = suite_toml(&[(8, "no-drop")]);
    let routed = |routing: &str| plain.replacen("[[cases]]", &format!("[routing]\n{routing}\n\n[[cases]]"), 1);
    folder.write("plain.toml", &plain);
    folder.write("sub/s.toml", &routed("trace = \"loads.parquet\""));
    folder.write("sub/named.toml", &routed("trace = \"gpt-routing\""));
    let steps = |arguments: &str, out: &str| {
        folder.succeed(&format!("run {arguments} --iterations 3 --out {out}"));
        let frame = folder.frame(&format!("{out}/iterations.parquet"));
        frame.column("step_s").unwrap().f64().unwrap().iter().flatten().collect::<Vec<_>>()
    };
    let own = steps("sub/s.toml", "own");
    assert_eq!(own, steps("plain.toml --trace sub/loads.parquet", "told"));
    let recorded = steps("sub/named.toml", "named");
    assert_eq!(recorded, steps("sub/s.toml --trace gpt-routing", "instead"), "the command line goes before");
    assert_ne!(own, recorded);
    assert!(folder.text("own/run.json").contains("\"trace\": \"loads\""), "called the same from everywhere");
    // On the command line a file is that of the current folder.
    folder.succeed("trace synth loads.parquet --max-over-mean 1 --iterations 4");
    let even = steps("plain.toml --trace loads.parquet", "even");
    assert_eq!(even, steps("sub/s.toml --set routing.trace=loads.parquet", "set"));
    assert_ne!(even, own);
    assert_eq!(recorded, steps("sub/s.toml --set routing.trace=gpt-routing", "set-named"));

    // A name is what comes with moebench, whatever lies about; two files of one name are two traces.
    folder.succeed("trace synth synthetic --max-over-mean 3 --iterations 4");
    folder.succeed("trace synth other/loads.parquet --max-over-mean 2 --iterations 4");
    assert_eq!(steps("plain.toml", "drawn"), steps("plain.toml --trace synthetic", "drawn-named"));
    assert_ne!(steps("plain.toml", "drawn"), steps("plain.toml --trace ./synthetic", "file"));
    let axis = |traces: &str| plain.replacen("[[cases]]\n", &format!("[[cases]]\nrouting = [{traces}]\n"), 1);
    folder.write("sub/axis.toml", &axis("{ trace = \"loads.parquet\" }, { trace = \"gpt-routing\" }"));
    assert_eq!(steps("sub/axis.toml", "axis"), [&own[..], &recorded].concat());
    assert_eq!(
        cases(&folder, "axis"),
        ["loads", "gpt-routing"].map(|trace| format!("gpt-tiny.inky.8.no-drop.{trace}"))
    );
    folder.write("sub/two.toml", &axis("{ trace = \"loads.parquet\" }, { trace = \"../other/loads.parquet\" }"));
    steps("sub/two.toml", "two");
    let two = cases(&folder, "two");
    assert!(two[0].ends_with(".loads") && two[1].contains(".loads-") && two.len() == 2, "{two:?}");

    for (name, routing, said) in [
        ("none", "trace = \"none.parquet\"", "sub/none.parquet: cannot be opened"),
        ("far", "trace = \"gpt-rooting\"", "did you mean `gpt-routing`?"),
        ("empty", "trace = \"\"", "routing.trace = \"\": expected a path, or one of synthetic, gpt-routing"),
        ("both", "trace = \"loads.parquet\"\ngini = 0.5", "one of them"),
        ("line", "trace = \"a\\nb.parquet\"", "without line breaks"),
    ] {
        folder.write(&format!("sub/{name}.toml"), &routed(routing));
        folder.refuse(&format!("run sub/{name}.toml --out x"), &[&format!("sub/{name}.toml"), "routing", said]);
    }
    folder.refuse("run sub/axis.toml --trace gpt-rooting --out x", &["gpt-rooting", "did you mean"]);
    folder.refuse("run sub/axis.toml --engine train --out x", &["cases[0].routing = loads: expected --replay"]);
}

#[test]
fn a_trace_begins_where_it_is_told_to() {
    let folder = Folder::new();
    small_trace(&folder);
    let plan = "plan --model gpt-tiny --cluster inky --gpus 8 --global-batch-size 64 --trace trace.parquet";
    folder.succeed(plan);
    folder.succeed(&format!("{plan} --trace-start 21"));
    for command in [plan.to_owned(), "run smoke --trace trace.parquet --out x".to_owned()] {
        folder.refuse(&format!("{command} --trace-start 5000"), &["start is 5000: expected 1 to 111"]);
    }
}

/// A copy of a model that comes with moebench is that model, whatever its source says.
#[test]
fn a_copy_has_the_name_of_its_original() {
    let folder = Folder::new();
    small_trace(&folder);
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../workloads/models/gpt-tiny.toml")).unwrap();
    let source = text.lines().find(|line| line.starts_with("source")).unwrap();
    folder.write("copy.toml", &text.replace(source, "source = \"copied\""));
    folder.write("s.toml", &suite_toml(&[(4, "no-drop")]).replace("\"gpt-tiny\"", "\"copy.toml\""));
    let shown = folder.succeed("run s.toml --trace trace.parquet --dry-run");
    assert!(shown.contains(" gpt-tiny.inky.4.no-drop "), "{shown}");
}
