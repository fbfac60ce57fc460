//! `moebench calibrate network`: a cluster's network constants, from what nccl-tests wrote.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use formats::nccl_tests::{self, Collective};
use workloads::Cluster;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::{prepare, store};
use studies::calibrate::collectives;
use studies::calibrate::write;
use studies::measurements;

/// `moebench calibrate network`.
#[derive(Args)]
pub struct NetworkArgs {
    /// Cluster, by name or path, of which all else is kept
    #[arg(long, value_name = "BASE")]
    cluster: String,
    /// What programs of nccl-tests printed or wrote as JSON, of ranks of one node; a file for each collective
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    nccl_tests: Vec<PathBuf>,
    /// The TOML to write
    #[arg(long, value_name = "FILE.toml")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

/// Collectives that constants follow from.
const EXPECTED: [&str; 3] = ["alltoall", "all_reduce", "sendrecv"];

/// Reads, writes and shows.
///
/// # Errors
/// Files that are not nccl-tests', or a file that cannot be written.
pub fn run(args: &NetworkArgs) -> Result<(), Failure> {
    output::refuse_to_replace(&args.out, args.overwrite).or_input()?;
    let text = prepare::cluster_text("--cluster", &args.cluster).or_input()?;
    let before = Cluster::parse(&args.cluster, &text).or_input()?;
    let (mut all, mut names) = (Vec::new(), Vec::new());
    for path in &args.nccl_tests {
        all.extend(read(path).and_then(|of| of_one_node(path, of, before.gpus_per_node)).or_input()?);
        let (name, hash) = measurements::named(path).or_input()?;
        names.push(format!("{name} (sha256 {hash})"));
    }
    let mut after = before.clone();
    collectives::apply(&mut after, &all, &format!("measured by nccl-tests, {}", names.join(" and ")));
    if after == before {
        let known = all.iter().any(|of| EXPECTED.contains(&of.name.as_str()));
        let why = match known {
            true => "they do not grow with the size".to_owned(),
            false => format!("they are of {}: expected one of {}", all[0].name, EXPECTED.join(", ")),
        };
        let error = anyhow!("{}: no constant of a network follows from these times: {why}", names.join(" and "));
        return Err(Failure::Input(error));
    }
    let text = write::updated(&text, &before, &after).or_run()?;
    store::write_text(&args.out, &text).or_run()?;
    output::print(collectives::table(&all)).or_run()?;
    output::print(format!("\ncluster   {}", args.out.display())).or_run()
}

/// Refuses what a node's constants cannot be told from.
fn of_one_node(path: &Path, all: Vec<Collective>, node: usize) -> Result<Vec<Collective>> {
    let file = path.display();
    if let Some(other) = all.iter().find(|of| !(2..=node).contains(&of.ranks)) {
        bail!("{file}: {} of {} ranks: expected 2 to {node}, ranks of one node", other.name, other.ranks);
    }
    if let Some(alone) = all.iter().find(|of| !all.iter().any(|other| other.name == of.name && other.bytes != of.bytes))
    {
        bail!(
            "{file}: {} of {:.0} bytes alone: expected several sizes, which a line goes through",
            alone.name,
            alone.bytes
        );
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<Collective>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    nccl_tests::read(path, &text)
}
