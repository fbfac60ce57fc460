//! Cases of one's own: sweeps, changed fields, some of a suite's cases, and plans by their rank.

use runs::stored::StoredRun;

use crate::support::{Folder, small_trace, suite_toml};

fn column(folder: &Folder, out: &str, name: &str) -> Vec<String> {
    let frame = folder.frame(&format!("{out}/iterations.parquet"));
    let mut values: Vec<String> =
        frame.column(name).unwrap().str().unwrap().iter().map(|value| value.unwrap_or("none").to_owned()).collect();
    values.dedup();
    values
}

#[test]
fn a_sweep_is_counted_estimated_and_run() {
    let folder = Folder::new();
    small_trace(&folder);
    let swept = suite_toml(&[(8, "no-drop")]).replace("gpus = 8", "gpus = [4, 8]").replace("= 64", "= [32, 64]");
    folder.write("sweep.toml", &swept);
    let shown = folder.succeed("run sweep.toml --trace trace.parquet --dry-run");
    assert!(shown.contains("\n12 runs of 12 iterations (cases 4, systems 3, seeds 1); about "), "{shown}");
    assert!(shown.contains(" s on ") && shown.contains("by 2 iterations of each run"), "{shown}");
    folder.succeed("run sweep.toml --trace trace.parquet --out out");
    let ids =
        [(4, 32), (4, 64), (8, 32), (8, 64)].map(|(gpus, batch)| format!("gpt-tiny.inky.{gpus}.no-drop.batch{batch}"));
    assert_eq!(column(&folder, "out", "case"), ids);
    // A case is the same whether a list made it or not.
    folder.write("one.toml", &suite_toml(&[(8, "no-drop")]).replace("= 64", "= 32"));
    folder.succeed("run one.toml --trace trace.parquet --out one");
    let times = |out: &str, case: &str| -> Vec<f64> {
        let frame = folder.frame(&format!("{out}/iterations.parquet"));
        let cases = frame.column("case").unwrap().str().unwrap().clone();
        let steps = frame.column("step_s").unwrap().f64().unwrap().clone();
        cases.iter().zip(steps.iter()).filter(|(of, _)| *of == Some(case)).filter_map(|(_, step)| step).collect()
    };
    assert_eq!(times("out", &ids[2]), times("one", "gpt-tiny.inky.8.no-drop"));
    assert_eq!(times("out", &ids[2]).len(), 3 * 12);
}

#[test]
fn some_cases_are_those_of_the_whole_suite() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed("run smoke --trace trace.parquet --case 'gpt-tiny.inky.*.no-drop' --iterations 3 --out out");
    assert_eq!(column(&folder, "out", "case"), ["gpt-tiny.inky.8.no-drop", "gpt-tiny.inky.16.no-drop"]);
    folder.refuse(
        "run smoke --case pinky --out x",
        &["--case: no case of smoke is like that", "gpt-tiny.inky.16.no-drop"],
    );
    folder.refuse("run paper --case nowhere --out x", &["--case", "paper-gpt, "]);
}

#[test]
fn a_field_is_changed_by_the_reader_of_the_file() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("here/m.toml", "name = \"mine\"\nsource = \"a test\"\n[gpt]\nlayers = 2\nhidden = 64\nheads = 4\nseq_len = 32\nvocabulary = 128\n\
         expert_ratio = 2\nexperts = 8\ntop_k = 2\n");
    folder.write("there/suite.toml", &suite_toml(&[(8, "no-drop")]));
    let run = "run there/suite.toml --trace trace.parquet";
    // A path on the command line is relative to the shell, one in the file to the file.
    let shown = folder.succeed(&format!("{run} --set gpus=[2,4] --set model=here/m.toml --set iterations=5 --dry-run"));
    assert!(shown.contains("mine.inky.2.no-drop") && shown.contains("mine.inky.4.no-drop"), "{shown}");
    assert!(shown.contains("6 runs of 5 iterations"), "{shown}");
    let shown = folder.succeed("run smoke --trace trace.parquet --set model=here/m.toml --dry-run");
    assert!(shown.contains("mine.inky.16.no-drop"), "{shown}");
    folder.refuse(&format!("{run} --set gpus=many"), &["--set gpus=many", "expected usize"]);
    folder.refuse(&format!("{run} --set gpu=8"), &["--set gpu=8: unknown field `gpu`", "global_batch"]);
    folder.refuse(
        "run paper-gpt --set systems=[\"alpa\"]",
        &["paper-gpt: baseline = expert-only: expected one of systems"],
    );
    let ran = folder.moebench(&format!("{run} --iterations 1 --set warmup=5 --dry-run"));
    assert!(ran.stderr.contains("a warm-up of 0 instead of 5: 1 counts"), "{}", ran.stderr);
}

/// What `moebench plan` shows at a rank is what `run` takes by that rank, and by the words of the row.
#[test]
fn a_plan_is_taken_by_its_rank_or_its_words() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop"), (8, "capacity 1.2")]));
    let case = "gpt-tiny.inky.8.no-drop";
    let shown = folder.succeed(&format!("plan --suite suite.toml --case {case} --trace trace.parquet"));
    let row = shown.lines().find(|line| line.split_whitespace().next() == Some("3")).unwrap();
    let words: Vec<&str> = row.split_whitespace().collect();
    let plan = words[1..]
        .iter()
        .take_while(|word| word.starts_with(|c: char| c.is_ascii_lowercase()))
        .copied()
        .collect::<Vec<_>>()
        .join(" ");
    let by_rank = format!("moebench run suite.toml --case {case} --set plans.smartmoe=RANK --trace trace.parquet\n");
    assert!(shown.contains(&by_rank), "{shown}");
    for (given, out) in [("3", "ranked"), (plan.as_str(), "worded")] {
        folder.succeed(&format!(
            "run suite.toml --case {case} --trace trace.parquet --systems smartmoe --set 'plans.smartmoe={given}' --out {out}"
        ));
        assert_eq!(column(&folder, out, "plan"), [plan.as_str()]);
    }
    let steps = |out: &str| folder.frame(&format!("{out}/iterations.parquet")).column("step_s").unwrap().clone();
    assert_eq!(steps("ranked"), steps("worded"));
    folder.refuse("plan --suite suite.toml", &["--case: expected one case of suite.toml", "capacity-1.2"]);
    folder.refuse("plan --model gpt-tiny --gpus 8", &["--cluster"]);
    let far = folder
        .moebench("run suite.toml --trace trace.parquet --systems smartmoe --set plans.smartmoe=100000 --dry-run");
    assert!(far.stdout.contains("plan 100000 of "), "{}", far.stdout);
}

/// Whose plans are ranked is what the suite says of the system, for `plan` as for `run`; both call a case by the suite's id.
#[test]
fn ranks_are_of_the_list_that_a_run_takes() {
    let folder = Folder::new();
    small_trace(&folder);
    let more = "searched = [\"fastermoe\"]\n[[cases]]";
    let suite = suite_toml(&[(8, "capacity 1.2")]).replacen("[[cases]]", more, 1);
    folder.write("suite.toml", &(suite + "differs = { fastermoe = { gate = \"no-drop\" } }\n"));
    let list = |more: &str| {
        let shown = folder.succeed(&format!(
            "plan --suite suite.toml --system fastermoe --trace trace.parquet --top 100000 --json{more}"
        ));
        let plans: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(plans["case"], "gpt-tiny.inky.8.capacity-1.2");
        plans["plans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["plan"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let (suites, own, searched) = (list(""), list(" --plan own"), list(" --plan searched"));
    assert_eq!(suites, searched);
    assert!(suites.len() > own.len(), "{own:?}");
    let rank = (1..=suites.len()).find(|rank| own.get(rank - 1) != Some(&suites[rank - 1])).unwrap();
    let shown = folder.succeed("plan --suite suite.toml --system fastermoe --trace trace.parquet --plan searched");
    let (_, hint) = shown.split_once("to run one: moebench ").unwrap();
    assert!(hint.contains("--case gpt-tiny.inky.8.capacity-1.2 ") && hint.ends_with(" --plan searched\n"), "{hint}");
    for run in [hint.trim_end(), hint.trim_end().strip_suffix(" --plan searched").unwrap()] {
        let shown =
            folder.succeed(&format!("{} --systems fastermoe --dry-run", run.replace("RANK", &rank.to_string())));
        assert!(shown.contains(&format!(" {} ", suites[rank - 1])), "{shown}");
    }
    let rated = format!("plan --suite suite.toml --trace trace.parquet --rate '{}'", own[0]);
    assert!(!folder.succeed(&rated).contains("to run one"));
    assert!(!folder.succeed("plan --suite suite.toml --system laer --trace trace.parquet").contains("to run one"));
}

/// The suite that the paper's table of equal plans is made of: tutel's first rank is the one that SmartMoE's search finds.
#[test]
fn the_first_rank_of_equal_plans_is_run() {
    let folder = Folder::new();
    small_trace(&folder);
    let case = "gpt-l16-h2560-e16.inky.16.no-drop";
    let of = format!("paper-equal-plans --case {case} --trace trace.parquet");
    let plans: serde_json::Value =
        serde_json::from_str(&folder.succeed(&format!("plan --suite {of} --system tutel --top 1 --json"))).unwrap();
    let first = plans["plans"][0]["plan"].as_str().unwrap();
    let shown = folder.succeed(&format!("run {of} --systems tutel --set plans.tutel=1 --dry-run"));
    assert!(shown.contains(&format!(" {first} ")), "{first}: {shown}");
    let own = folder.succeed(&format!("plan --suite {of} --system tutel --plan own --top 1"));
    assert!(!own.contains(&format!(" {first} ")), "{own}");
}

/// A case's own routing goes before the command line's trace, for `plan` as for `run`.
#[test]
fn plans_are_ranked_on_the_routing_that_a_run_goes_through() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &(suite_toml(&[(8, "no-drop")]) + "routing = [{ max_over_mean = 3.0 }]\n"));
    let plans = |trace: &str| folder.succeed(&format!("plan --suite suite.toml --top 3 --json {trace}"));
    assert_eq!(plans("--trace trace.parquet"), plans(""));
    let step = |trace: &str| {
        folder
            .succeed(&format!("run suite.toml --iterations 2 --systems expert-only {trace} --out out{}", trace.len()));
        folder.frame(&format!("out{}/iterations.parquet", trace.len())).column("step_s").unwrap().clone()
    };
    assert_eq!(step("--trace trace.parquet"), step(""));
}

/// Published times are of the cluster's own network and of no routing that somebody made.
#[test]
fn a_case_of_its_own_conditions_has_no_published_time() {
    let folder = Folder::new();
    let case = "[[cases]]\nmodel = \"gpt-l16-h2560-e16\"\ncluster = \"inky\"\ngpus = 16\ngate = \"capacity 1.2\"\nglobal_batch = 256\n\
                micro_batch = 4\nplans = { expert-only = { pp = 1, dp = 16, tp = 1, ep = 16, expert_dp = 1, micro_batch = 4 } }\n";
    let head = "name = \"own\"\ndescription = \"a test\"\nsystems = [\"expert-only\"]\niterations = 2\nwarmup = 0\n";
    let cases = format!("{head}{case}network = [0.5, 1.0]\n{case}routing = [{{ max_over_mean = 3.0 }}]\n");
    folder.write("suite.toml", &cases);
    folder.succeed("run suite.toml --out out");
    let stored = StoredRun::open(&folder.join("out")).unwrap();
    let found: Vec<_> =
        stored.summary.rows.iter().map(|row| (row.published.step.is_some(), row.model_error.is_some())).collect();
    assert_eq!(found, [(false, false), (true, true), (false, false)]);
    let csv = folder.text("out/summary.csv");
    assert_eq!(csv.lines().filter(|line| line.contains("this run, signed")).count(), 1, "{csv}");
}

/// An id that begins another's is a case of its own.
#[test]
fn a_whole_id_is_one_case() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "capacity 2"), (8, "capacity 2.4")]));
    let run = "run suite.toml --trace trace.parquet --dry-run --case";
    let shown = folder.succeed(&format!("{run} gpt-tiny.inky.8.capacity-2"));
    assert!(shown.contains("(cases 1,") && !shown.contains("capacity-2.4"), "{shown}");
    assert!(folder.succeed(&format!("{run} capacity-2")).contains("(cases 2,"));
    folder.succeed("plan --suite suite.toml --trace trace.parquet --case gpt-tiny.inky.8.capacity-2");
}
