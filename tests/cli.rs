//! Every command from its arguments to its files.

use polars::prelude::{CsvReader, SerReader};
use std::fs::File;

use crate::support::{Folder, cluster_toml, small_trace, suite_toml};

#[test]
fn the_smoke_suite_ends_in_samples_summary_and_figure() {
    let folder = Folder::new();
    let shown = folder.succeed("run smoke --out out");
    assert_eq!(
        folder.files(),
        [
            "details.json",
            "figures/end_to_end.caption.txt",
            "figures/end_to_end.csv",
            "figures/end_to_end.figure.tex",
            "figures/end_to_end.pdf",
            "figures/end_to_end.svg",
            "figures/performance_model.caption.txt",
            "figures/performance_model.csv",
            "figures/performance_model.figure.tex",
            "figures/performance_model.pdf",
            "figures/performance_model.svg",
            "figures/phases.caption.txt",
            "figures/phases.csv",
            "figures/phases.figure.tex",
            "figures/phases.pdf",
            "figures/phases.svg",
            "iterations.parquet",
            "report.html",
            "run.json",
            "spans.parquet",
            "summary.csv",
            "tables/summary.caption.txt",
            "tables/summary.tex"
        ]
        .map(|name| format!("out/{name}"))
    );
    // 3 cases under 3 systems, 30 iterations each.
    let iterations = folder.frame("out/iterations.parquet");
    assert_eq!(iterations.height(), 3 * 3 * 30);
    let summary = CsvReader::new(File::open(folder.join("out/summary.csv")).unwrap()).finish().unwrap();
    assert_eq!(summary.height(), 3 * 3);
    let speedups: Vec<f64> = summary.column("speedup_by_totals").unwrap().f64().unwrap().iter().flatten().collect();
    assert_eq!(speedups.len(), 9);
    let svg = folder.text("out/figures/end_to_end.svg");
    for system in ["expert-only", "fastermoe", "smartmoe"] {
        let title = systems::by_name(system).unwrap().title();
        assert!(svg.contains(title), "no {title} in the figure");
        assert!(shown.contains(system), "{shown}");
    }
    assert!(svg.contains("simulated"), "a figure says how its numbers were obtained");
    assert!(folder.bytes("out/figures/end_to_end.pdf").starts_with(b"%PDF"));
    assert!(folder.text("out/run.json").contains("\"engine\": \"simulated\""));
    let report = folder.text("out/report.html");
    assert!(report.contains("SmartMoE is fastest in all 3 cases.") && report.contains("gpt-tiny.inky.16.no-drop"));
    assert!(report.contains("moebench run smoke --out out") && report.contains("sha256 of"));
    assert!(
        !report.contains("src=") && report.matches("href=").count() == report.matches("href=\"#").count(),
        "the report needs no other file"
    );
}

#[test]
fn phases_add_up_to_iterations() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("suite.toml", &suite_toml(&[(8, "no-drop")]));
    folder.succeed("run ./suite.toml --trace trace.parquet --out out --iterations 3");
    let (spans, iterations) = (folder.frame("out/spans.parquet"), folder.frame("out/iterations.parquet"));
    let sum = |frame: &polars::prelude::DataFrame, name: &str| {
        frame.column(name).unwrap().f64().unwrap().iter().flatten().sum::<f64>()
    };
    // Every plan of the tiny suite has one stage.
    assert!(iterations.column("pp").unwrap().u32().unwrap().iter().all(|pp| pp == Some(1)));
    crate::support::close(sum(&spans, "seconds"), sum(&iterations, "step_s"));
}

#[test]
fn a_dry_run_names_plans_and_writes_nothing() {
    let folder = Folder::new();
    let shown = folder.succeed("run smoke --dry-run --out out");
    for fragment in ["gpt-tiny.inky.8.no-drop", "gpt-tiny.inky.16.no-drop", "smartmoe", "ep8", "mb2"] {
        assert!(shown.contains(fragment), "no {fragment} in\n{shown}");
    }
    assert!(folder.files().is_empty());
}

#[test]
fn systems_are_those_asked_for() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.succeed("run smoke --trace trace.parquet --systems smartmoe-offline,fastermoe --iterations 2 --out out");
    let summary = folder.text("out/summary.csv");
    // Without the suite's baseline, the first system is the one that speedups are over.
    assert_eq!(summary.lines().filter(|line| line.contains(",smartmoe-offline,simulated")).count(), 3);
    assert_eq!(summary.lines().filter(|line| line.contains(",fastermoe,simulated")).count(), 3);
    assert_eq!(summary.lines().count(), 1 + 6);
}

#[test]
fn lists_hold_everything() {
    let folder = Folder::new();
    let check = |kind: &str, names: &[&str]| {
        let shown = folder.succeed(&format!("list {kind}"));
        for name in names {
            assert!(shown.contains(name), "no {name} in\n{shown}");
        }
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    };
    check("systems", &systems::ALL.iter().map(|system| system.name()).collect::<Vec<_>>());
    check("suites", &workloads::suite::SuiteFile::names().collect::<Vec<_>>());
    check("models", &workloads::Model::names().collect::<Vec<_>>());
    check("clusters", &workloads::Cluster::names().collect::<Vec<_>>());
    check("", &["smoke", "smartmoe", "gpt-tiny", "inky"]);
}

#[test]
fn a_search_is_shown_best_plan_first_and_with_reasons() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("small.toml", &cluster_toml(8, &[("memory", 0.3e9)]));
    let shown = folder.succeed(
        "plan --model gpt-tiny --cluster ./small.toml --gpus 16 --gate 'capacity 1.2' --global-batch-size 64 \
         --trace trace.parquet --top 100000",
    );
    let rows: Vec<Vec<&str>> = shown
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.first().is_some_and(|word| word.parse::<usize>().is_ok()))
        .collect();
    assert!(rows.iter().enumerate().all(|(index, row)| row[0] == (index + 1).to_string()));
    let steps: Vec<f64> = rows
        .iter()
        .filter_map(|row| row.iter().position(|&w| w == "ms").map(|at| row[at - 1]))
        .map(|ms| ms.parse().unwrap())
        .collect();
    assert!(steps.len() > 10 && steps.is_sorted(), "{shown}");
    assert!(rows.last().unwrap().contains(&"memory:"), "{shown}");
    assert!(steps.len() < rows.len(), "{shown}");
}

#[test]
fn a_trace_survives_every_conversion() {
    let folder = Folder::new();
    folder.succeed(
        "trace synth a.parquet --layers 3 --experts 8 --ranks 2 --micro-batches 2 --entries 64 --iterations 4 --seed 5",
    );
    // As the artifact writes it: a file per iteration and rank, a line per layer.
    let trace = runs::traces::load(Some(&folder.join("a.parquet"))).unwrap();
    let shape = *trace.shape();
    assert_eq!((shape.layers, shape.experts, shape.ranks, shape.micro_batches, shape.entries), (3, 8, 2, 2, 64));
    for (index, iteration) in trace.iterations().iter().enumerate() {
        for rank in 0..shape.ranks {
            let line = |layer| {
                let rows: Vec<_> = (0..shape.micro_batches)
                    .map(|m| {
                        format!(
                            "{:?}",
                            trace.row(index, layer, m, rank).iter().map(|&c| f64::from(c)).collect::<Vec<_>>()
                        )
                    })
                    .collect();
                format!("{layer}:[{}]\n", rows.join(", "))
            };
            folder.write(
                &format!("logs/table_iter{iteration}_rank{rank}.log"),
                &(0..shape.layers).map(line).collect::<String>(),
            );
        }
    }
    folder.succeed("trace import logs b.parquet");
    folder.succeed("trace import b.parquet c.parquet");
    folder.succeed("trace rescale c.parquet d.parquet");
    for name in ["b", "c", "d"] {
        assert_eq!(folder.bytes("a.parquet"), folder.bytes(&format!("{name}.parquet")), "{name}.parquet");
    }
    // Another shape, checked again when it is read.
    folder.succeed("trace rescale a.parquet e.parquet --layers 5 --experts 16 --ranks 4 --entries 128");
    let shown = folder.succeed("trace stats a.parquet --against e.parquet --expert-parallel 4");
    assert!(shown.contains("4 iterations, 3 layers, 2 micro-batches, 2 ranks, 8 experts, 64 entries a row"), "{shown}");
    assert!(
        shown.contains("4 iterations, 5 layers, 2 micro-batches, 4 ranks, 16 experts, 128 entries a row"),
        "{shown}"
    );
}

/// Expert parallelism alone needs 0.3 GB a rank here at its smallest micro-batch; with tensor parallelism, less than half.
#[test]
fn a_system_out_of_memory_is_a_row_and_the_others_run() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("small.toml", &cluster_toml(8, &[("memory", 0.15e9)]));
    let suite = suite_toml(&[(8, "no-drop"), (16, "no-drop")]).replace("\"inky\"", "\"./small.toml\"");
    folder.write("suite.toml", &suite);
    let shown = folder.succeed("run ./suite.toml --trace trace.parquet --iterations 2 --out out");
    assert!(shown.contains("out of memory"), "{shown}");
    let frame = folder.frame("out/iterations.parquet");
    let text = |name: &str| -> Vec<String> {
        frame.column(name).unwrap().str().unwrap().iter().map(|text| text.unwrap_or_default().to_owned()).collect()
    };
    let (systems, status, reasons) = (text("system"), text("status"), text("reason"));
    for row in 0..frame.height() {
        let out_of_memory = systems[row] != "smartmoe";
        assert_eq!(status[row], if out_of_memory { "oom" } else { "ok" }, "{}", systems[row]);
        assert_eq!(reasons[row].contains("GB of 0.1 GB usable"), out_of_memory, "{}", reasons[row]);
    }
    assert_eq!(status.iter().filter(|status| *status == "ok").count(), 2 * 2);
    assert!(folder.text("out/figures/end_to_end.svg").contains("OOM"));
}

#[test]
fn a_finished_run_is_not_run_again_and_another_is_refused() {
    let folder = Folder::new();
    small_trace(&folder);
    let run = "run smoke --trace trace.parquet --iterations 3 --out out";
    folder.succeed(run);
    let bytes = |folder: &Folder| {
        ["iterations.parquet", "spans.parquet", "summary.csv", "figures/end_to_end.svg", "figures/end_to_end.pdf"]
            .map(|name| folder.bytes(&format!("out/{name}")))
    };
    let samples = || std::fs::metadata(folder.join("out/iterations.parquet")).unwrap().modified().unwrap();
    let (first, written) = (bytes(&folder), samples());
    folder.succeed(run);
    assert_eq!(bytes(&folder), first);
    assert_eq!(samples(), written, "the samples of a finished run are left alone");
    // What is derived from the samples is rebuilt.
    std::fs::remove_file(folder.join("out/summary.csv")).unwrap();
    folder.succeed(run);
    assert_eq!(bytes(&folder), first);

    folder.refuse(&run.replace("3", "4"), &["out: holds another run", "--out", "--overwrite"]);
    assert_eq!(bytes(&folder), first);
    folder.succeed(&(run.replace("3", "4") + " --overwrite"));
    assert_ne!(bytes(&folder), first);
}

/// The authors' plan is rated by the very run that `moebench run` makes of it, and the search's pick is no slower.
#[test]
fn plans_are_compared_by_estimate_and_by_run() {
    let folder = Folder::new();
    small_trace(&folder);
    let plan = "plans.smartmoe = { pp = 1, dp = 8, tp = 1, ep = 8, expert_dp = 1, micro_batch = 1 }\n";
    folder.write("suite.toml", &(suite_toml(&[(8, "no-drop")]) + plan));
    folder.succeed("run ./suite.toml --trace trace.parquet --systems smartmoe --out run");
    let said = folder.succeed("validate plans --suite ./suite.toml --trace trace.parquet --iterations 11 --json");
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    let compared = document["comparisons"].as_array().unwrap();
    assert_eq!(compared.len(), 1);
    let (pick, authors) = (&compared[0]["pick"], &compared[0]["authors"]);
    assert_eq!(authors["plan"], "pp1 dp8 tp1 ep8 edp1 mb1");
    assert!(pick["estimate_s"].as_f64().unwrap() <= authors["estimate_s"].as_f64().unwrap());
    assert_eq!(compared[0]["estimate_agrees"], true);
    for rated in [pick, authors] {
        assert!(rated["state_bytes"].as_f64().unwrap() < rated["peak_bytes"].as_f64().unwrap());
    }
    let frame = folder.frame("run/iterations.parquet");
    let mut steps: Vec<f64> = frame.column("step_s").unwrap().f64().unwrap().iter().skip(1).flatten().collect();
    steps.sort_by(f64::total_cmp);
    assert_eq!(authors["run_s"].as_f64().unwrap(), steps[5]);
    folder.refuse(
        "validate plans --suite smoke --cluster inkwell",
        &["smoke: no case on inkwell states a plan of smartmoe"],
    );
}

#[test]
fn doctor_says_what_is_there_and_what_is_not() {
    let shown = Folder::new().succeed("doctor");
    for line in shown.lines() {
        let marked = ["ok  ", "--  ", "    "].iter().any(|mark| line.starts_with(mark));
        assert!(marked, "{line}");
    }
    assert!(shown.contains("ok  cores") && shown.contains("ok  memory"), "{shown}");
}

/// As in `moebench list | head`.
#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let folder = Folder::new();
    for arguments in
        ["list", "plan --model gpt-tiny --cluster inky --gpus 4 --global-batch-size 16", "run smoke --dry-run"]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = folder.command(arguments).stdout(writer).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments}: {output:?}");
    }
}

/// A trace drives the gate: what is recorded then is the routing that a simulation of the same case replays.
#[cfg(feature = "train")]
#[test]
fn a_recorded_trace_is_replayed() {
    use workloads::suite::TraceUse;

    let folder = Folder::new();
    let train = "train --model gpt-micro --gpus 2 --global-batch-size 4 --micro-batch-size 2 --iterations 3";
    folder.succeed(&format!("{train} --system fastermoe --record-trace first.parquet --out first"));
    folder.succeed(&format!(
        "{train} --system expert-only --trace first.parquet --replay --record-trace again.parquet --out again"
    ));
    let trace = |name: &str| runs::traces::load(Some(&folder.join(name))).unwrap();
    let (first, again) = (trace("first.parquet"), trace("again.parquet"));
    let suite = "name = \"test\"\ndescription = \"\"\nsystems = [\"expert-only\"]\nbaseline = \"expert-only\"\niterations = 3\n\
                 warmup = 1\n[[cases]]\nmodel = \"gpt-micro\"\ncluster = \"inky\"\ngpus = 2\ngate = \"no-drop\"\n\
                 global_batch = 4\nmicro_batch = 2\n";
    let suite = workloads::Suite::parse("test", suite).unwrap();
    let (_, routing) = runs::prepare::job("test", &suite.cases[0], TraceUse::default(), &first, 1).unwrap();
    assert_eq!((first.iterations(), again.iterations()), ([1, 2, 3].as_slice(), [1, 2, 3].as_slice()));
    for iteration in 0..3 {
        let simulated = routing.iteration(iteration);
        for layer in 0..2 {
            assert_eq!(again.loads(iteration, layer), simulated.loads(layer), "{iteration} {layer}");
        }
    }
}

/// An emulated run has the simulator beside it, in the records and in its timeline.
#[cfg(feature = "train")]
#[test]
fn the_simulator_follows_an_emulated_run() {
    let folder = Folder::new();
    folder.succeed(
        "train --model gpt-micro --gpus 2 --global-batch-size 4 --micro-batch-size 2 --iterations 3 --system expert-only \
         --clock virtual --timeline --out run",
    );
    let frame = folder.frame("run/iterations.parquet");
    assert!(frame.column("engine").unwrap().str().unwrap().iter().all(|engine| engine == Some("emulated")));
    for column in ["step_s", "predicted_step_s", "loss"] {
        assert!(
            frame.column(column).unwrap().f64().unwrap().iter().all(|value| value.is_some_and(|v| v > 0.0)),
            "{column}"
        );
    }
    let name = folder.files().into_iter().find(|name| name.ends_with("expert-only.json")).unwrap();
    let text = folder.text(&name);
    assert!(text.contains("rank 1 (emulated)") && text.contains("rank 1 (simulated)"), "{name}");
}

/// What was measured on a CPU stands under that, and under no cluster's name; what was searched for a cluster is not held against it.
#[cfg(feature = "train")]
#[test]
fn what_was_measured_here_stands_under_no_clusters_name() {
    let folder = Folder::new();
    let printed = folder.succeed(
        "train --model gpt-micro --cluster inky --gpus 2 --global-batch-size 4 --micro-batch-size 2 --iterations 3 --warmup 1 --system smartmoe \
         --out run",
    );
    let stated: serde_json::Value = serde_json::from_str(&folder.text("run/run.json")).unwrap();
    let device = stated["suite"]["drawn"]["measured_on"].as_str().unwrap().to_owned();
    let figures: Vec<String> = folder.files().into_iter().filter(|name| name.starts_with("run/figures/")).collect();
    assert!(figures.contains(&"run/figures/phases.svg".to_owned()), "{figures:?}");
    assert!(
        !figures.iter().any(|name| name.contains("end_to_end")),
        "one system is no faster than itself: {figures:?}"
    );
    let table = printed.split("\n\n").next().unwrap();
    assert!(table.contains(&format!("{device}, 2 ranks")) && !table.contains("inky"), "{printed}");
    assert!(table.contains("Tokens/s") && table.contains("Loss") && !table.contains("Speedup"), "{printed}");
    let page = folder.text("run/report.html");
    assert!(page.contains(&format!("\"cluster\":\"{device}\"")) && !page.contains("\"cluster\":\"inky\""), "{page}");
    assert!(folder.text("run/summary.csv").lines().nth(1).unwrap().contains(&device));
    for name in figures.iter().filter(|name| name.ends_with(".svg") || name.ends_with(".caption.txt")) {
        let text = folder.text(name);
        assert!(!text.contains("inky") && (name.ends_with(".svg") || text.contains(&device)), "{name}: {text}");
    }
    assert!(!figures.iter().any(|name| name.contains("performance_model")), "{figures:?}");
    // Of a peak that is of another machine, nothing is a share.
    let inky = include_str!("../workloads/clusters/inky.toml");
    let (before, gpu) = inky.split_once("[gpu]\nname = ").unwrap();
    let here = format!("{before}[gpu]\nname = \"{device}\"\n{}", gpu.split_once('\n').unwrap().1);
    folder.write("here.toml", &here);
    for (cluster, shown) in [("inky", false), ("here.toml", true)] {
        folder.succeed(&format!(
            "train --model gpt-micro --cluster {cluster} --gpus 2 --global-batch-size 4 --micro-batch-size 2 --iterations 3 --warmup 1 \
             --system expert-only --out peak --overwrite"
        ));
        folder.succeed("table peak --values mfu,tokens --format csv --out peak");
        let table = folder.text("peak/mfu-tokens.csv");
        let share: Option<f64> = table.lines().nth(1).and_then(|line| line.split(',').nth(3)?.parse().ok());
        assert_eq!(share.is_some_and(|share| share > 0.0), shown, "{cluster}: {table}");
    }
}

/// A run names the commit of the program, also where it runs in another repository.
#[test]
fn a_run_names_the_commit_that_was_built() {
    let folder = Folder::new();
    let git = |arguments: &str| {
        let fixed = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"];
        let mut git = std::process::Command::new("git");
        git.current_dir(folder.path())
            .args(fixed)
            .args(arguments.split(' '))
            .output()
            .is_ok_and(|out| out.status.success())
    };
    assert!(git("init") && git("commit --allow-empty -m other"), "git is needed");
    folder.succeed("run smoke --out out");
    let stated: serde_json::Value = serde_json::from_str(&folder.text("out/run.json")).unwrap();
    assert_eq!(stated["commit"].as_str(), option_env!("MOEBENCH_COMMIT"));
    assert_eq!(stated["dirty"].as_bool().map(|dirty| dirty.to_string()).as_deref(), option_env!("MOEBENCH_DIRTY"));
}

/// A bench of the CPU writes every repeat, and puts another program's time beside its own where the shape is the same.
#[cfg(feature = "train")]
#[test]
fn a_layer_and_a_step_are_timed_beside_other_programs() {
    let folder = Folder::new();
    folder.write(
        "peers.jsonl",
        "a line of text\n\
         {\"H\": 16, \"D\": 24, \"E\": 4, \"T\": 32, \"skew\": 0.0, \"theirs\": {\"fb_ms\": 0.01}}\n\
         {\"world\": 1, \"experts\": 8, \"micro_batch\": 1, \"step_ms\": 7.25}\n",
    );
    let options = "--repeats 3 --warmup 0 --compare peers.jsonl --out bench";
    let shown = folder.succeed(&format!("bench layer --shapes 16x24x4x32 {options}"));
    assert_eq!(shown.matches("theirs 0.01").count(), 1, "{shown}");
    assert_eq!(folder.text("bench/layer.csv").lines().count(), 1 + 2 * 3, "two skews");
    assert!(folder.text("bench/layer.svg").contains("theirs") && folder.text("bench/layer.txt").contains("peak"));
    let shown = folder.succeed(&format!("bench step --global-batch-size 2 --micro-batch-size 1,2 --exact 1 {options}"));
    assert_eq!(shown.matches("eager PyTorch 7.25").count(), 1, "{shown}");
    assert_eq!(folder.text("bench/step.csv").lines().count(), 1 + 2 * 3, "two micro-batches");
    folder.refuse("bench layer --shapes 16x24x4", &["--shapes 16x24x4", "WIDTHxINNERxEXPERTSxTOKENS"]);
    folder.refuse("bench step --model gpt-micro --compare none.jsonl", &["--compare none.jsonl"]);
    folder.refuse("bench step --global-batch-size 0", &["--global-batch-size 0"]);
}
