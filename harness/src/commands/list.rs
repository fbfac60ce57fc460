//! `moebench list`: what comes with the program.

use clap::{Args, ValueEnum};
use comfy_table::Table;
use workloads::suite::SuiteFile;
use workloads::{Cluster, Model};

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::report;

/// `moebench list`.
#[derive(Args)]
pub struct ListArgs {
    /// What to list; everything when absent
    pub kind: Option<ListKind>,
}

/// What `moebench list` knows.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListKind {
    /// Suites and their cases
    Suites,
    /// Systems and what they do
    Systems,
    /// Models and their sizes
    Models,
    /// Clusters and where their constants come from
    Clusters,
}

/// Prints one list, or all.
///
/// # Errors
/// What cannot be written.
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    tables(args.kind).iter().try_for_each(|table| output::print(format!("{table}\n"))).or_run()
}

fn tables(kind: Option<ListKind>) -> Vec<Table> {
    match kind {
        None => vec![suites(), systems(), models(), clusters()],
        Some(ListKind::Suites) => vec![suites()],
        Some(ListKind::Systems) => vec![systems()],
        Some(ListKind::Models) => vec![models()],
        Some(ListKind::Clusters) => vec![clusters(), constants()],
    }
}

fn suites() -> Table {
    let mut table = report::table(&["suite", "cases", "iterations", "systems", "what it answers"], &[1, 2]);
    for file in SuiteFile::names().filter_map(|name| SuiteFile::named("list", name).ok()) {
        table.add_row(match file {
            SuiteFile::Suite(suite) => {
                let (cases, iterations) = (suite.cases.len().to_string(), suite.iterations.to_string());
                [suite.name, cases, iterations, suite.systems.join(", "), suite.description]
            }
            SuiteFile::Collection(all) => {
                let what = format!("{}: {}", all.description, all.suites.join(", "));
                [all.name, String::new(), String::new(), String::new(), what]
            }
        });
    }
    table
}

fn systems() -> Table {
    let mut table = report::table(&["system", "what it does"], &[]);
    for system in systems::ALL {
        table.add_row([system.name(), system.about().summary]);
    }
    table
}

fn models() -> Table {
    let header = ["model", "blocks", "MoE", "experts", "top-k", "parameters", "active", "TFLOP per sample", "source"];
    let mut table = report::table(&header, &[1, 2, 3, 4, 5, 6, 7]);
    for model in Model::names().filter_map(|name| Model::named("list", name).ok()) {
        let experts = model.moe_layers().map(|moe| moe.experts).max().unwrap_or(0);
        table.add_row([
            model.name.clone(),
            model.blocks.len().to_string(),
            model.moe_blocks().len().to_string(),
            experts.to_string(),
            model.top_k.to_string(),
            format!("{:.3}e9", model.parameters() as f64 / 1e9),
            format!("{:.3}e9", model.active_parameters() as f64 / 1e9),
            format!("{:.3}", model.training_flops().0 / 1e12),
            model.source,
        ]);
    }
    table
}

fn clusters() -> Table {
    let mut table = report::table(&["cluster", "GPU", "per node", "description"], &[2]);
    for cluster in all_clusters() {
        let per_node = cluster.gpus_per_node.to_string();
        table.add_row([&cluster.name, &cluster.gpu.name, &per_node, &cluster.description]);
    }
    table
}

fn constants() -> Table {
    let mut table = report::table(&["cluster", "constant", "value", "source"], &[2]);
    for cluster in all_clusters() {
        for (field, constant, _) in cluster.constants() {
            let spread = constant.uncertainty.map_or(String::new(), |sigma| format!(" ± {sigma:.1e}"));
            table.add_row([
                cluster.name.as_str(),
                &field,
                &format!("{:.3e}{spread}", constant.value),
                &constant.source,
            ]);
        }
    }
    table
}

fn all_clusters() -> impl Iterator<Item = Cluster> {
    Cluster::names().filter_map(|name| Cluster::named("list", name).ok())
}
