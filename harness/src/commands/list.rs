//! `moebench list`: what comes with the program.

use workloads::suite::Described;
use workloads::{Cluster, Model};

use crate::cli::ListKind;
use crate::report;

/// Prints one list, or all.
pub fn run(kind: Option<ListKind>) {
    let wanted = |this| kind.is_none() || kind == Some(this);
    if wanted(ListKind::Suites) {
        suites();
    }
    if wanted(ListKind::Systems) {
        systems();
    }
    if wanted(ListKind::Models) {
        models();
    }
    if wanted(ListKind::Clusters) {
        clusters(kind.is_some());
    }
}

fn suites() {
    let mut table = report::table(&["suite", "cases", "iterations", "systems", "what it answers"], &[1, 2]);
    for described in Described::names().filter_map(|name| Described::named("list", name).ok()) {
        table.add_row(match described {
            Described::Suite(suite) => {
                let (cases, iterations) = (suite.cases.len().to_string(), suite.iterations.to_string());
                [suite.name, cases, iterations, suite.systems.join(", "), suite.description]
            }
            Described::Collection(all) => {
                let what = format!("{}: {}", all.description, all.suites.join(", "));
                [all.name, String::new(), String::new(), String::new(), what]
            }
        });
    }
    println!("{table}\n");
}

fn systems() {
    let mut table = report::table(&["system", "what it does"], &[]);
    for system in systems::ALL {
        table.add_row([system.name(), system.card().about]);
    }
    println!("{table}\n");
}

fn models() {
    let header = ["model", "blocks", "MoE", "experts", "parameters", "TFLOP per sample", "source"];
    let mut table = report::table(&header, &[1, 2, 3, 4, 5]);
    for model in Model::names().filter_map(|name| Model::named("list", name).ok()) {
        let experts = model.blocks.iter().filter_map(|block| block.moe()).map(|moe| moe.experts).max().unwrap_or(0);
        table.add_row([
            model.name.clone(),
            model.blocks.len().to_string(),
            model.moe_blocks().len().to_string(),
            experts.to_string(),
            format!("{:.2}e9", model.parameters_per_rank(experts) as f64 / 1e9),
            format!("{:.1}", model.training_flops().0 / 1e12),
            model.source,
        ]);
    }
    println!("{table}\n");
}

fn clusters(with_constants: bool) {
    let mut table = report::table(&["cluster", "GPU", "per node", "description"], &[2]);
    let clusters: Vec<Cluster> = Cluster::names().filter_map(|name| Cluster::named("list", name).ok()).collect();
    for cluster in &clusters {
        let per_node = cluster.gpus_per_node.to_string();
        table.add_row([&cluster.name, &cluster.gpu.name, &per_node, &cluster.description]);
    }
    println!("{table}\n");
    if !with_constants {
        return;
    }
    let mut table = report::table(&["cluster", "constant", "value", "source"], &[2]);
    for cluster in &clusters {
        for (field, constant, _) in cluster.constants() {
            let spread = constant.uncertainty.map_or(String::new(), |sigma| format!(" ± {sigma:.1e}"));
            table.add_row([&cluster.name, field, &format!("{:.3e}{spread}", constant.value), &constant.source]);
        }
    }
    println!("{table}\n");
}
