//! `moebench compare`: two stored runs, or one and its bands.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use workloads::bands::Bands;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::compare::{self, Change, What};
use runs::stored::StoredRun;
use runs::{prepare, report, store};

const EXAMPLES: &str = "\
Examples:
  moebench compare results/smoke results/latest
  moebench compare before now --fail-above 5%                  a gate for continuous integration
  moebench compare now --bands bands.toml
  moebench compare now --write-bands bands.toml --within 5%    what later runs are held against";

/// `moebench compare`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct CompareArgs {
    /// Folders of a run before and a run now; the latter alone with --bands
    #[arg(required = true, num_args = 1..=2, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Exit with status 1 where a case takes longer under a system by more than this part, `5%`, and, if its iterations were
    /// paired, the whole spread is above 1; or where it had a time and has none now, or is gone
    #[arg(long, value_name = "PART", value_parser = part)]
    fail_above: Option<f64>,
    /// Exit with status 1 where a number of the run now is outside the bands of this TOML: `[[bands]]` with `case` (an id, or
    /// one with `*`), `system`, and `speedup = [LOW, HIGH]` or `mean_step_s`
    #[arg(long, value_name = "FILE")]
    bands: Option<PathBuf>,
    /// Write a TOML for --bands: of every case and system the run's mean time and speedup, with --within to either side
    #[arg(long, value_name = "FILE", conflicts_with = "bands")]
    write_bands: Option<PathBuf>,
    /// Half the width of the bands, as a part of each number; simulated numbers are the same on every machine
    #[arg(long, value_name = "PART", value_parser = below_all, default_value = "1%", requires = "write_bands")]
    within: f64,
    /// Replace a file that is there
    #[arg(long, requires = "write_bands")]
    overwrite: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `5%`, or `0.05`.
fn part(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 100.0));
    let part = number.trim().parse::<f64>().ok().map(|number| number / scale);
    let of_percent = text.ends_with('%');
    part.filter(|part| part.is_finite() && *part >= 0.0 && (of_percent || *part < 1.0))
        .ok_or_else(|| "expected a part of the time, for example 5% or 0.05".to_owned())
}

/// The same, less than all of it.
fn below_all(text: &str) -> Result<f64, String> {
    Some(part(text)?).filter(|part| *part < 1.0).ok_or_else(|| "expected less than 100%".to_owned())
}

/// # Errors
/// Folders that hold no run that can be read; after that, what is worse than it may be.
pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    of_two_runs(args).or_input()?;
    let runs: Vec<StoredRun> =
        args.runs.iter().map(|folder| StoredRun::open(folder)).collect::<Result<_>>().or_input()?;
    let bands = args.bands.as_deref().map(read_bands).transpose().or_input()?;
    let mut worse = match runs.as_slice() {
        [before, now] => compared(args, before, now)?,
        [run] if args.write_bands.is_some() => return write_bands(args, run),
        _ if bands.is_none() => {
            return Err(Failure::Input(anyhow!("expected a second RUN, or --bands, or --write-bands")));
        }
        _ => Vec::new(),
    };
    if let (Some(bands), Some(now)) = (bands, runs.last()) {
        worse.extend(in_bands(now, &bands)?);
    }
    match worse.as_slice() {
        [] => Ok(()),
        all => Err(Failure::Run(anyhow!("{}", all.join("; ")))),
    }
}

/// Refuses what says something of two runs where there is one.
fn of_two_runs(args: &CompareArgs) -> Result<()> {
    ensure!(args.write_bands.is_none() || args.runs.len() == 1, "--write-bands: of one run: expected no second RUN");
    for (option, given) in [("--fail-above", args.fail_above.is_some()), ("--json", args.json)] {
        ensure!(!given || args.runs.len() == 2, "{option}: holds two runs beside each other: expected a second RUN");
    }
    Ok(())
}

/// Writes the bands of a run, and says what has none.
fn write_bands(args: &CompareArgs, run: &StoredRun) -> Result<(), Failure> {
    let Some(path) = &args.write_bands else { return Ok(()) };
    output::refuse_to_replace(path, args.overwrite).or_input()?;
    let (bands, left_out) = compare::bands(run, args.within);
    let folder = &run.folder;
    if bands.bands.is_empty() {
        return Err(Failure::Input(anyhow!("{folder}: no case has a time: {}", left_out.join("; "))));
    }
    let comment = format!(
        "What the suite {} gives ({}): mean time of an iteration (s) and speedup over {} by totals, {}% to either side.\n\
         Written by `moebench compare RUN --write-bands FILE`, read by `moebench compare RUN --bands FILE`.",
        run.provenance.inputs.suite,
        run.provenance.engine,
        run.summary.baseline,
        args.within * 100.0
    );
    store::write_text(path, &bands.to_toml(&comment)).or_run()?;
    left_out.iter().for_each(|row| output::say(format_args!("no band: {row}")));
    output::print(format!("bands    {}: {} cases and systems", path.display(), bands.bands.len())).or_run()
}

fn read_bands(path: &Path) -> Result<Bands> {
    let name = path.display().to_string();
    Ok(Bands::parse(&name, &prepare::read(&name)?)?)
}

/// Shows both; returns what is worse than it may be.
fn compared(args: &CompareArgs, before: &StoredRun, now: &StoredRun) -> Result<Vec<String>, Failure> {
    let differences = differences(before, now);
    let changes = compare::changes(before, now);
    let text = if args.json { as_json(&differences, &changes) } else { as_table(&differences, &changes) };
    output::print(text).or_run()?;
    let Some(part) = args.fail_above else { return Ok(Vec::new()) };
    let worse = changes.iter().filter(|change| change.is_worse(part));
    Ok(worse.map(|change| format!("{} {}: {}", change.case, change.system, words(&change.what))).collect())
}

/// What differs in inputs and how they were run, a phrase each.
fn differences(before: &StoredRun, now: &StoredRun) -> Vec<String> {
    let (old, new) = (&before.provenance, &now.provenance);
    let mut all = old.inputs.differences(&new.inputs);
    for (name, old, new) in [
        ("engine", old.engine.name(), new.engine.name()),
        ("commit", old.commit.as_deref().unwrap_or("unknown"), new.commit.as_deref().unwrap_or("unknown")),
        ("host", &old.host, &new.host),
    ] {
        all.extend((old != new).then(|| format!("{name} = {old}, now {new}")));
    }
    let (old, new) = (before.facts.warmup, now.facts.warmup);
    all.extend((old != new).then(|| format!("warm-up = {old}, now {new}")));
    all
}

fn words(what: &What) -> String {
    match what {
        What::Times { ratio, interval, .. } => {
            let interval = interval.map_or(String::new(), |[low, high]| format!(" ({low:.3} to {high:.3})"));
            format!("takes {ratio:.3} of its time{interval}")
        }
        What::Fails(how) => format!("fails as before: {how}"),
        What::Broke(how) => format!("fails now: {how}"),
        What::Mended(how) => format!("failed before: {how}"),
        What::Gone => "is gone".to_owned(),
        What::New => "is new".to_owned(),
    }
}

fn as_table(differences: &[String], changes: &[Change]) -> String {
    let mut table = report::table(&["case", "system", "before", "now", "ratio", "spread"], &[2, 3, 4, 5]);
    for Change { case, system, what } in changes {
        let mut row = vec![case.clone(), system.clone()];
        match what {
            What::Times { times, ratio, paired, interval } => {
                row.extend(times.map(|time| format!("{:.1} ms", time * 1e3)));
                row.push(format!("{ratio:.3}"));
                let without = if *paired { "too short" } else { "not paired" };
                row.push(interval.map_or(without.to_owned(), |[low, high]| format!("{low:.3} to {high:.3}")));
            }
            other => row.push(words(other)),
        }
        table.add_row(row);
    }
    let inputs = if differences.is_empty() { "inputs are equal".to_owned() } else { differences.join("\n") };
    format!("{inputs}\n\n{table}")
}

fn as_json(differences: &[String], changes: &[Change]) -> String {
    let row = |Change { case, system, what }: &Change| match what {
        What::Times { times: [before, now], ratio, paired, interval } => json!({
            "case": case, "system": system, "before_s": before, "now_s": now, "ratio": ratio, "paired": paired,
            "interval": interval,
        }),
        other => json!({ "case": case, "system": system, "status": words(other) }),
    };
    format!("{:#}", json!({ "differences": differences, "rows": changes.iter().map(row).collect::<Vec<Value>>() }))
}

/// What is outside its band.
fn in_bands(now: &StoredRun, bands: &Bands) -> Result<Vec<String>, Failure> {
    let (held, outside) = compare::outside(now, bands).or_input()?;
    output::say(format_args!("{} of {held} numbers are inside their bands", held - outside.len()));
    let said = outside.iter().map(|number| {
        let found = number.found.map_or("none".to_owned(), |found| format!("{found:.4}"));
        let [low, high] = number.band;
        format!("{} {}: {} = {found}: expected {low} to {high}", number.case, number.system, number.quantity)
    });
    Ok(said.collect())
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn a_part_is_a_percentage_or_a_number() {
        assert_eq!((part("5%"), part("0.05"), part("0")), (Ok(0.05), Ok(0.05), Ok(0.0)));
        assert!(["", "%", "-1%", "five", "nan"].iter().all(|text| part(text).is_err()));
    }
}
