//! `moebench merge`: the runs of all shards of a suite, joined to the run of the whole.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::commands::run::joined::Joined;
use crate::commands::run::{self, RunArgs};
use crate::failure::{Failure, OrFail};
use runs::part::Shard;
use runs::provenance::{self, Provenance};
use runs::store;

/// `moebench merge`.
#[derive(Args)]
pub struct MergeArgs {
    /// Folder for the whole
    out: PathBuf,
    /// Folders of the shards, in any order, of `moebench run --shard`
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Begin anew where the folder holds another run's results
    #[arg(long)]
    overwrite: bool,
}

/// A shard's folder.
struct Part<'a> {
    folder: &'a Path,
    shard: Shard,
    provenance: Provenance,
}

/// Reads the shards' command again, from the folder where it was started, and runs it without a shard on the cases that are there.
///
/// # Errors
/// Shards that are not those of one suite, or not all of them; after that, what cannot be written.
pub fn run(args: &MergeArgs) -> Result<(), Failure> {
    let parts: Vec<Part> = args.runs.iter().map(|folder| part(folder)).collect::<Result<_>>().or_input()?;
    check_all(&parts).or_input()?;
    check_out(&args.out, &parts).or_input()?;
    let command = command(&parts, args.overwrite).or_input()?;
    let joined = joined(&parts).or_input()?;
    for part in &parts {
        let expected = run::inputs(&command, joined.as_ref(), Some(part.shard))?;
        let differences = part.provenance.inputs.differences(&expected).join("; ");
        if part.provenance.inputs != expected {
            let folder = part.folder.display();
            return Err(Failure::Input(anyhow!(
                "{folder}: is not shard {} of what {} ran: {differences}",
                part.shard,
                args.runs[0].display()
            )));
        }
    }
    run::whole(&command, joined.as_ref(), &args.out, |store, request| {
        for part in &parts {
            store.take_cases(part.folder, &run::cases_of(request, part.shard))?;
        }
        Ok(())
    })
}

/// What the shards' commands asked for. What was trained has a timeline, or never will.
fn command(parts: &[Part], overwrite: bool) -> Result<RunArgs> {
    let mut command = RunArgs::of_command(&parts[0].provenance.command)?;
    for part in parts.iter().filter(|part| part.provenance.engine.trains()) {
        let other = RunArgs::of_command(&part.provenance.command)?;
        ensure!(
            other.timeline == command.timeline,
            "{}, {}: --timeline: expected shards that were all trained with it, or all without",
            parts[0].folder.display(),
            part.folder.display()
        );
    }
    command.overwrite = overwrite;
    Ok(command)
}

/// The engine of what was trained; a simulation may be run again.
fn joined(parts: &[Part]) -> Result<Option<Joined>> {
    let shards: Vec<(&Path, &Provenance)> = parts.iter().map(|part| (part.folder, &part.provenance)).collect();
    parts.iter().any(|part| part.provenance.engine.trains()).then(|| Joined::new(&shards)).transpose()
}

fn part(folder: &Path) -> Result<Part<'_>> {
    let provenance = provenance::read(folder)?;
    let shard = provenance.inputs.shard.as_deref();
    let shard = shard.with_context(|| format!("{}: is a run of a whole suite, not of a shard", folder.display()))?;
    let shard = shard.parse().map_err(|error: String| anyhow!("{}: run.json: {error}", folder.display()))?;
    ensure!(store::has_ended(folder), "{}: the run has not ended: start it again to go on", folder.display());
    Ok(Part { folder, shard, provenance })
}

/// Refuses a shard's folder, which would be emptied before it is read.
fn check_out(out: &Path, parts: &[Part]) -> Result<()> {
    let place = |folder: &Path| folder.canonicalize().ok();
    let taken = parts.iter().find(|part| place(out).is_some_and(|out| place(part.folder) == Some(out)));
    taken.map_or(Ok(()), |part| {
        bail!("{}: is the folder of shard {}: expected another", out.display(), part.shard);
    })
}

/// Every shard once.
fn check_all(parts: &[Part]) -> Result<()> {
    let of = parts[0].shard.of;
    for part in parts {
        ensure!(
            part.shard.of == of,
            "{}: shard {}, but {}: shard {}",
            parts[0].folder.display(),
            parts[0].shard,
            part.folder.display(),
            part.shard
        );
    }
    for number in 1..=of {
        let those: Vec<String> = parts
            .iter()
            .filter(|part| part.shard.number == number)
            .map(|part| part.folder.display().to_string())
            .collect();
        match those.len() {
            0 => bail!("shard {number}/{of} is missing"),
            1 => {}
            _ => bail!("shard {number}/{of} is there several times: {}", those.join(", ")),
        }
    }
    Ok(())
}
