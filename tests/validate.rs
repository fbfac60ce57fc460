use crate::support::{Folder, cluster_toml, small_trace, suite_toml};

/// Columns that every file of whole iterations has; the others have a value to fall back on.
const HEADER: &str =
    "cluster,gpus,system,gate,layers,hidden,experts,seq_len,global_batch,micro_batch,pp,dp,ep,iteration,elapsed_ms";

/// Two systems of which one died, one in the artifact's words, and one that nobody knows.
const ROWS: [&str; 6] = [
    "inky,8,FastMoE,naive,2,256,8,128,16,1,1,8,8,2,50",
    "inky,8,FastMoE,naive,2,256,8,128,16,1,1,8,8,1,52",
    "inky,8,smartmoe,naive,2,256,8,128,16,1,2,4,4,1,40",
    "inky,8,smartmoe,naive,2,256,8,128,16,1,2,4,4,2,",
    "inky,4,alpa,capacity 1.2,2,256,8,128,16,1,2,2,2,1,30",
    "inky,8,megablocks,no-drop,2,256,8,128,16,1,1,8,8,1,30",
];

fn iterations(folder: &Folder) {
    small_trace(folder);
    folder.write("m.csv", &format!("{HEADER}\n{}\n", ROWS.join("\n")));
}

#[test]
fn files_with_fewer_columns_and_other_words() {
    let folder = Folder::new();
    iterations(&folder);
    let command = "validate end-to-end --measured m.csv --trace trace.parquet";
    let shown = folder.succeed(&format!("{command} --out out"));
    assert!(shown.contains("no such system: megablocks; known: alpa, "), "{shown}");
    // Medians of what there is, where no iteration is after the warm-up.
    let fastmoe = shown.lines().find(|line| line.contains("fastmoe")).unwrap();
    assert!(fastmoe.contains("no-drop") && fastmoe.contains(" 51 ") && fastmoe.contains("pp1 dp8 tp1 ep8 edp1 mb1"));
    assert!(shown.contains("runs that end as predicted (ok or out of memory): 2 of 3"), "{shown}");
    assert!(folder.text("out/figures/performance_model.svg").contains("8 GPUs"));
    let document: serde_json::Value = serde_json::from_str(&folder.succeed(&format!("{command} --json"))).unwrap();
    assert_eq!(document["lines"].as_array().unwrap().len(), 4);
}

#[test]
fn a_cluster_may_be_given_instead_of_the_files() {
    let folder = Folder::new();
    iterations(&folder);
    let rows: Vec<&str> = ROWS.iter().filter_map(|row| row.strip_prefix("inky,")).collect();
    let header = HEADER.strip_prefix("cluster,").unwrap();
    folder.write("m.csv", &format!("{header}\n{}\n", rows.join("\n")));
    folder.write("own.toml", &cluster_toml(4, &[]));
    let command = "validate end-to-end --measured m.csv --trace trace.parquet";
    folder.refuse(command, &["m.csv: line 2", "no cluster: expected a column `cluster`, or --cluster"]);
    let slow = folder.succeed(&format!("{command} --cluster ./own.toml"));
    folder.write("own.toml", &cluster_toml(4, &[("inter_bandwidth", 1e9), ("port_bandwidth", 1e9)]));
    assert_ne!(folder.succeed(&format!("{command} --cluster ./own.toml")), slow);
}

#[test]
fn bad_measurements_name_line_and_column() {
    let folder = Folder::new();
    iterations(&folder);
    let good = format!("{HEADER}\n{}\n", ROWS.join("\n"));
    let check = |from: &str, to: &str, fragments: &[&str]| {
        folder.write("m.csv", &good.replacen(from, to, 1));
        folder.refuse("validate end-to-end --measured m.csv --trace trace.parquet", fragments);
    };
    check("naive", "dense", &["m.csv: line 2", "gate `dense`: expected `no-drop`"]);
    check("inky", "inkling", &["m.csv: line 2", "unknown cluster `inkling`", "known: "]);
    check("1,1,8,8,2,50", "1,1,8,3,2,50", &["m.csv: line 2", "ep * expert_dp = 6, but dp * tp = 8"]);
    check("8,8,1,52", "8,8,2,52", &["8/no-drop/fastmoe: iteration 2 is there twice"]);
    check("8,8,1,52", "8,8,1,soon", &["m.csv: line 3: elapsed_ms = soon: expected a number"]);
    check("iteration,", "epoch,", &["m.csv: line 1: no column `iteration`"]);
}

#[test]
fn single_layers_and_series_of_another_trace() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("layer.csv", "gpus,micro_batch,iteration,layer,measured_ms\n8,2,11,1,5\n4,2,11,0,\n2,1,1,0,4\n");
    let layers = "validate moe-layer --measured layer.csv --trace trace.parquet --hidden 256 --seq-len 128";
    // Eight GPUs read the rows of the trace's four ranks and two micro-batches; the row without a time is left out.
    let shown = folder.succeed(layers);
    assert!(shown.contains("8 GPUs, micro-batch 2") && !shown.contains("4 GPUs"), "{shown}");
    folder.write("layer.csv", "gpus,micro_batch,iteration,layer,measured_ms\n16,2,11,1,5\n");
    folder.refuse(layers, &["layer.csv: line 2: 16 GPUs", "4 ranks with 2 micro-batches each, and 8 experts"]);

    folder.write("series.csv", "iteration,static_ms,dynamic_ms\n1,5,5\n11,6,5\n21,6,\n31,6,5\n");
    let series = "validate adaptive --measured series.csv --trace trace.parquet --gpus 4 --layer 1 --every 10";
    let shown = folder.succeed(series);
    assert!(shown.contains("placements taken: unknown measured"), "{shown}");
    folder.refuse(&series.replace("layer 1", "layer 2"), &["series.csv: line 2: layer = 2", "has 2 layers"]);
    folder.write("series.csv", "iteration,static_ms,dynamic_ms\n11,6,5\n1,5,5\n");
    folder.refuse(series, &["series.csv: line 3: iteration 1 after 11: expected increasing iterations"]);
}

#[test]
fn all_studies_of_a_folder_make_a_page() {
    let folder = Folder::new();
    iterations(&folder);
    folder.write("data/end_to_end.csv", &folder.text("m.csv"));
    folder.write("data/moe_layer.csv", "gpus,micro_batch,iteration,layer,measured_ms\n4,2,11,1,5\n2,1,1,0,4\n");
    folder.write("data/adaptive_every10.csv", "iteration,static_ms,dynamic_ms\n1,5,5\n11,6,5\n31,6,5\n");
    let plan = "plans.smartmoe = { pp = 1, dp = 8, tp = 1, ep = 8, expert_dp = 1, micro_batch = 1 }\n";
    folder.write("suite.toml", &(suite_toml(&[(8, "no-drop")]) + plan));
    folder.succeed("validate all --data data --trace trace.parquet --out page --gpus 4 --layer 1 --suite ./suite.toml");
    let page = folder.text("page/README.md");
    for part in [
        "| whole iterations, 2 configurations of inky, in sample",
        "**not met**",
        "## Single MoE layers",
        "too few rows to fit 5 constants",
        "Placed every 10 iterations",
        "| the authors |",
        "at least as fast | all cases that were measured | the same plan in",
        "**inky 8/no-drop/fastmoe**",
        "not explained",
    ] {
        assert!(page.contains(part), "no `{part}` in:\n{page}");
    }
    for line in page.lines().filter(|line| line.starts_with("![")) {
        let name = line.rsplit_once('(').unwrap().1.trim_end_matches(')');
        assert!(folder.text(&format!("page/{name}")).starts_with("<svg"), "{name}");
    }
    assert!(folder.text("page/model_errors.csv").contains("inky,iteration,2,"));
}

#[test]
fn a_fit_changes_its_constants_and_nothing_else() {
    let folder = Folder::new();
    small_trace(&folder);
    let own = format!("# Ours.\n{}# The end.\n", cluster_toml(2, &[("inter_bandwidth", 1e11)]));
    folder.write("own.toml", &own);
    folder.write("series.csv", "iteration,static_ms,dynamic_ms\n1,5,5\n11,6,5\n31,6,5\n");
    let fit = "calibrate fit --cluster ./own.toml --trace trace.parquet --measured-adaptive series.csv --out new.toml";
    // The authors' 16 GPUs are a default that another study's trace does not have.
    folder.refuse(fit, &["--gpus: 16 GPUs", "4 ranks with 2 micro-batches each"]);
    folder.succeed(&format!("{fit} --gpus 4 --layer 1 --micro-batch 2"));
    let new = folder.text("new.toml");
    assert_eq!(new.lines().count(), own.lines().count());
    for (new, own) in new.lines().zip(own.lines()) {
        match own.starts_with("port_bandwidth") {
            true => {
                assert!(new.contains("source = \"fitted to series.csv (sha256 ") && !new.contains("a test"), "{new}")
            }
            false => assert_eq!(new, own),
        }
    }
    // A node that is no faster than one of its ports hides them.
    let hidden = cluster_toml(2, &[]);
    folder.write("own.toml", &hidden);
    let shown = folder.succeed(&format!("{fit} --gpus 4 --layer 1 --micro-batch 2"));
    assert!(shown.contains("not determined"), "{shown}");
    assert_eq!(folder.text("new.toml"), hidden);
}

#[test]
fn an_error_of_a_toml_is_printed_once() {
    let folder = Folder::new();
    folder.write("own.toml", &cluster_toml(4, &[]).replace("gemm_rate", "gem_rate"));
    let ran = folder.moebench("plan --model gpt-tiny --cluster ./own.toml --gpus 4 --global-batch-size 8");
    for part in ["own.toml", "line 11", "unknown field `gem_rate`"] {
        assert_eq!(ran.stderr.matches(part).count(), 1, "{part} in\n{}", ran.stderr);
    }
}
