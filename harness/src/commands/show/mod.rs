//! `moebench show`: one suite, model, cluster or system, and what their files may hold.

pub mod schema;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use workloads::fields;
use workloads::suite::{SuiteFile, is_path};

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::prepare;
use workloads::Model;

/// `moebench show`.
#[derive(Subcommand)]
pub enum ShowCommand {
    /// A suite's TOML, with what its fields are
    Suite {
        /// Name or path
        name: String,
    },
    /// A model's TOML, with what its fields are
    Model {
        /// Name or path
        name: String,
    },
    /// A cluster's TOML, with units and what its fields are
    Cluster {
        /// Name or path
        name: String,
    },
    /// What a system does, where it is described, and how a suite may steer it
    System {
        /// Name
        name: String,
    },
    /// All fields of suites, models and clusters, as Markdown
    Fields,
    /// A JSON schema for editors
    Schema {
        /// Of which files
        kind: FileKind,
    },
}

/// Files that people write.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileKind {
    /// Suites
    Suite,
    /// Models
    Model,
    /// Clusters
    Cluster,
}

/// # Errors
/// An unknown name, a file that cannot be read, or what cannot be written.
pub fn run(command: &ShowCommand) -> Result<(), Failure> {
    let text = match command {
        ShowCommand::Suite { name } => text_of(name, |name| Ok(SuiteFile::text("moebench show", name)?))
            .map(|text| fields::commented(&fields::SUITE, &text)),
        ShowCommand::Model { name } => text_of(name, |name| Ok(Model::text("moebench show", name)?))
            .map(|text| fields::commented(&fields::MODEL, &text)),
        ShowCommand::Cluster { name } => {
            prepare::cluster_text("moebench show", name).map(|text| fields::commented(&fields::CLUSTER, &text))
        }
        ShowCommand::System { name } => system(name),
        ShowCommand::Fields => Ok(fields::page()),
        ShowCommand::Schema { kind } => Ok(schema::of(*kind)),
    };
    output::print(text.or_input()?.trim_end()).or_run()
}

/// The text of a file, or what comes with moebench under that name.
fn text_of(name: &str, own: impl Fn(&str) -> Result<&'static str>) -> Result<String> {
    if is_path(name) { prepare::read(name) } else { Ok(own(name)?.to_owned()) }
}

fn system(name: &str) -> Result<String> {
    let system = prepare::system("moebench show", name)?;
    let about = system.about();
    let plans = match system.searches() {
        true => "searches every combination of degrees that the case's `search` allows",
        false => "its own rule; `searched = [\"NAME\"]` or --plan searched lets SmartMoE's search find them",
    };
    // Speedups are over expert parallelism alone, which has none over itself.
    let beside = if name == "expert-only" { "" } else { "expert-only," };
    Ok(format!(
        "{} ({})\n\n{}\n\nplans     {}\nby hand   plans.{name} = \"pp1 dp8 tp1 ep8 edp1 mb1\" in a case, or --set plans.{name}=RANK\n\
         ranks     moebench plan --system {name} --model MODEL --cluster CLUSTER --gpus N\n\
         run       moebench run smoke --systems {beside}{name}\n",
        about.title,
        about.name,
        about.summary,
        plans.replace("NAME", name),
    ))
}
