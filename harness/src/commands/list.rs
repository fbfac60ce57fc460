//! `moebench list`: what comes with the program.

use clap::{Args, ValueEnum};
use comfy_table::{ColumnConstraint, ContentArrangement, Table};
use serde_json::{Map, Value};
use workloads::suite::SuiteFile;
use workloads::{Cluster, Model};

use crate::failure::{Failure, OrFail};
use crate::output::{self, WIDTH};
use runs::report;

/// `moebench list`.
#[derive(Args)]
pub struct ListArgs {
    /// What to list; everything when absent
    pub kind: Option<ListKind>,
    /// Print JSON: a list of objects for each kind
    #[arg(long)]
    pub json: bool,
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

/// One list: its name, its columns, which of them hold numbers, and its rows.
struct List {
    name: &'static str,
    header: &'static [&'static str],
    numbers: &'static [usize],
    rows: Vec<Vec<String>>,
}

/// Prints one list, or all.
///
/// # Errors
/// What cannot be written.
pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let lists = lists(args.kind);
    if args.json {
        let all: Map<String, Value> = lists.iter().map(|list| (list.name.to_owned(), list.to_json())).collect();
        return output::print(format!("{:#}", Value::Object(all))).or_run();
    }
    lists.iter().try_for_each(|list| output::print(format!("{}\n", list.to_table()))).or_run()
}

fn lists(kind: Option<ListKind>) -> Vec<List> {
    match kind {
        None => vec![suites(), systems(), models(), clusters()],
        Some(ListKind::Suites) => vec![suites()],
        Some(ListKind::Systems) => vec![systems()],
        Some(ListKind::Models) => vec![models()],
        Some(ListKind::Clusters) => vec![clusters(), constants()],
    }
}

impl List {
    fn to_table(&self) -> Table {
        let mut table = report::table(self.header, self.numbers);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
        // A name stays whole, so that it can be found and copied.
        if let Some(names) = table.column_mut(0) {
            names.set_constraint(ColumnConstraint::ContentWidth);
        }
        for row in &self.rows {
            table.add_row(row);
        }
        table
    }

    fn to_json(&self) -> Value {
        let cell = |column: usize, text: &String| match text.parse::<f64>() {
            Ok(number) if self.numbers.contains(&column) => Value::from(number),
            _ if text.is_empty() => Value::Null,
            _ => Value::from(text.as_str()),
        };
        let row = |row: &Vec<String>| {
            let cells =
                row.iter().enumerate().map(|(column, text)| (self.header[column].to_owned(), cell(column, text)));
            Value::Object(cells.collect())
        };
        self.rows.iter().map(row).collect()
    }
}

fn suites() -> List {
    let row = |file| match file {
        SuiteFile::Suite(suite) => {
            let (cases, iterations) = (suite.cases.len().to_string(), suite.iterations.to_string());
            vec![suite.name, cases, iterations, suite.systems.join(", "), suite.description]
        }
        SuiteFile::Collection(all) => {
            let what = format!("{}: {}", all.description, all.suites.join(", "));
            vec![all.name, String::new(), String::new(), String::new(), what]
        }
    };
    let files = SuiteFile::names().filter_map(|name| SuiteFile::named("list", name).ok());
    List {
        name: "suites",
        header: &["suite", "cases", "iterations", "systems", "what it answers"],
        numbers: &[1, 2],
        rows: files.map(row).collect(),
    }
}

fn systems() -> List {
    let row = |system: &&dyn systems::System| vec![system.name().to_owned(), system.about().summary.to_owned()];
    List {
        name: "systems",
        header: &["system", "what it does"],
        numbers: &[],
        rows: systems::ALL.iter().map(row).collect(),
    }
}

fn models() -> List {
    let row = |model: Model| {
        let experts = model.moe_layers().map(|moe| moe.experts).max().unwrap_or(0);
        vec![
            model.name.clone(),
            model.blocks.len().to_string(),
            model.moe_blocks().len().to_string(),
            experts.to_string(),
            model.top_k.to_string(),
            format!("{:.3}e9", model.parameters() as f64 / 1e9),
            format!("{:.3}e9", model.active_parameters() as f64 / 1e9),
            format!("{:.3}", model.training_flops().0 / 1e12),
            model.source,
        ]
    };
    let models = Model::names().filter_map(|name| Model::named("list", name).ok());
    List {
        name: "models",
        header: &["model", "blocks", "MoE", "experts", "top-k", "parameters", "active", "TFLOP per sample", "source"],
        numbers: &[1, 2, 3, 4, 5, 6, 7],
        rows: models.map(row).collect(),
    }
}

fn clusters() -> List {
    let row =
        |cluster: Cluster| vec![cluster.name, cluster.gpu.name, cluster.gpus_per_node.to_string(), cluster.description];
    List {
        name: "clusters",
        header: &["cluster", "GPU", "per node", "description"],
        numbers: &[2],
        rows: all_clusters().map(row).collect(),
    }
}

fn constants() -> List {
    let rows = |cluster: Cluster| {
        let row = |(field, constant, _): (std::borrow::Cow<str>, &workloads::cluster::Constant, bool)| {
            let uncertainty = constant.uncertainty.map_or(String::new(), |sigma| format!("{sigma:.1e}"));
            let value = format!("{:.3e}", constant.value);
            vec![cluster.name.clone(), field.into_owned(), value, uncertainty, constant.source.clone()]
        };
        cluster.constants().into_iter().map(row).collect::<Vec<_>>()
    };
    List {
        name: "constants",
        header: &["cluster", "constant", "value", "uncertainty", "source"],
        numbers: &[2, 3],
        rows: all_clusters().flat_map(rows).collect(),
    }
}

fn all_clusters() -> impl Iterator<Item = Cluster> {
    Cluster::names().filter_map(|name| Cluster::named("list", name).ok())
}
