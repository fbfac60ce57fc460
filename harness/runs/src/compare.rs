//! Two stored runs beside each other: what differs in their inputs, and per case and system the ratio of their times; and one
//! stored run against bands in which its numbers are expected.
//!
//! Where both runs saw the same routing, times are paired iteration by iteration, and the interval is that of a moving-block
//! bootstrap of the pairs, as for speedups ([`Speedup`]). Elsewhere the ratio is one of means and has no interval.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use workloads::bands::{Band, Bands};

use crate::part::Pattern;
use crate::provenance::TRACE;
use crate::stored::StoredRun;
use crate::summary::SummaryRow;
use crate::summary::speedup::Speedup;

/// A case under a system in both runs, or in one.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub case: String,
    pub system: String,
    pub what: What,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// Mean times of an iteration before and now, s, their ratio (above 1 is slower now), and its interval, where they are paired and enough.
    Times { times: [f64; 2], ratio: f64, paired: bool, interval: Option<[f64; 2]> },
    /// It has no time, neither before nor now; how it ended now.
    Fails(String),
    /// It had a time before; how it ended now.
    Broke(String),
    /// It had no time before: how it ended then.
    Mended(String),
    /// Only before.
    Gone,
    /// Only now.
    New,
}

impl Change {
    /// Whether it got worse by more than a part of its time, beyond what its own iterations scatter.
    pub fn is_worse(&self, part: f64) -> bool {
        match &self.what {
            What::Times { ratio, interval, .. } => *ratio > 1.0 + part && interval.is_none_or(|[low, _]| low > 1.0),
            What::Broke(_) | What::Gone => true,
            What::Fails(_) | What::Mended(_) | What::New => false,
        }
    }
}

/// Every case and system of both, in the order of the first run, then what is new.
pub fn changes(before: &StoredRun, now: &StoredRun) -> Vec<Change> {
    let paired = see_the_same(before, now);
    let of = |row: &SummaryRow, what| Change { case: row.key.case.clone(), system: row.key.system.clone(), what };
    let find = |run: &StoredRun, row: &SummaryRow| run.summary.row(&row.key.case, &row.key.system).cloned();
    let rows = &before.summary.rows;
    let known = rows.iter().map(|row| of(row, find(now, row).map_or(What::Gone, |new| change(row, &new, paired))));
    let new = now.summary.rows.iter().filter(|row| find(before, row).is_none()).map(|row| of(row, What::New));
    known.chain(new).collect()
}

/// Whether iterations of both are of the same routing, one by one. Of a model that is trained, its own gate may choose.
fn see_the_same(before: &StoredRun, now: &StoredRun) -> bool {
    let trained = |run: &StoredRun| run.provenance.engine.trains();
    before.facts.warmup == now.facts.warmup && trained(before) == trained(now) && routing(before) == routing(now)
}

/// Hashes of what a run's routing follows from besides its seeds; a trace may have another name elsewhere.
fn routing(run: &StoredRun) -> BTreeSet<&str> {
    let hashes = run.provenance.inputs.hashes.iter();
    hashes.filter(|(name, _)| name.starts_with(TRACE)).map(|(_, hash)| hash.as_str()).collect()
}

fn change(before: &SummaryRow, now: &SummaryRow, paired: bool) -> What {
    let ended =
        |row: &SummaryRow| row.failure.as_ref().map_or("no iteration after warm-up".to_owned(), ToString::to_string);
    let (Some(old), Some(new)) = (before.step, now.step) else {
        return match (before.step, now.step) {
            (Some(_), None) => What::Broke(ended(now)),
            (None, Some(_)) => What::Mended(ended(before)),
            _ => What::Fails(ended(now)),
        };
    };
    let times = [old.mean, new.mean];
    // The time now over that before is how much faster the run before was.
    // As many of both, of the same seeds: the times beside the ratio are of the same iterations.
    let steps = |row: &SummaryRow| row.series.iter().map(|one| (one.seed, one.steps.len())).collect::<Vec<_>>();
    match (paired && steps(before) == steps(now)).then(|| Speedup::new(&now.series, &before.series)).flatten() {
        Some(ratio) => What::Times { times, ratio: ratio.by_totals, paired: true, interval: ratio.spread },
        None => What::Times { times, ratio: new.mean / old.mean, paired: false, interval: None },
    }
}

/// A number outside its band.
#[derive(Clone, Debug, PartialEq)]
pub struct Outside {
    pub case: String,
    pub system: String,
    pub quantity: &'static str,
    /// None where the run has no such number.
    pub found: Option<f64>,
    pub band: [f64; 2],
}

/// How many numbers bands were held against, and which of them are outside.
///
/// # Errors
/// A band that no case and system of the run is meant by.
pub fn outside(run: &StoredRun, bands: &Bands) -> Result<(usize, Vec<Outside>)> {
    let (mut held, mut outside) = (0, Vec::new());
    for (index, band) in bands.bands.iter().enumerate() {
        let pattern: Pattern = band.case.parse().context("a pattern")?;
        let ids = || run.summary.rows.iter().map(|row| row.key.case.as_str());
        let meant = |row: &&SummaryRow| pattern.is(&row.key.case, ids());
        let of_case: Vec<&SummaryRow> = run.summary.rows.iter().filter(meant).collect();
        let rows: Vec<&SummaryRow> = of_case.iter().copied().filter(|row| row.key.system == band.system).collect();
        ensure!(
            !rows.is_empty(),
            "bands[{index}]: no case of the run is {} under {}: expected {}",
            band.case,
            band.system,
            match each(of_case.iter().map(|row| row.key.system.as_str())) {
                systems if systems.is_empty() => format!("one of {}, or one with `*`", each(ids())),
                systems => format!("one of the systems {systems}"),
            }
        );
        for (row, Bounded { quantity, found, range }) in
            rows.iter().flat_map(|row| numbers(row, band).map(move |number| (row, number)))
        {
            let Some(range) = range else { continue };
            held += 1;
            if !found.is_some_and(|found| (range[0]..=range[1]).contains(&found)) {
                let (case, system) = (row.key.case.clone(), row.key.system.clone());
                outside.push(Outside { case, system, quantity, found, band: range });
            }
        }
    }
    Ok((held, outside))
}

fn each<'n>(names: impl Iterator<Item = &'n str>) -> String {
    names.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

/// Bands around the numbers of a run, `part` of each to either side, and the cases and systems that have no time.
pub fn bands(run: &StoredRun, part: f64) -> (Bands, Vec<String>) {
    let (ended, failed): (Vec<&SummaryRow>, Vec<_>) = run.summary.rows.iter().partition(|row| row.step.is_some());
    let band = |row: &SummaryRow| {
        let speedup = row.speedup.as_ref().filter(|_| row.key.system != run.summary.baseline);
        Band {
            case: row.key.case.clone(),
            system: row.key.system.clone(),
            mean_step_s: row.step.map(|step| Bands::around(step.mean, part)),
            speedup: speedup.map(|speedup| Bands::around(speedup.by_totals, part)),
        }
    };
    let said = failed.iter().map(|row| format!("{} {}: {}", row.key.case, row.key.system, row.status()));
    (Bands { bands: ended.into_iter().map(band).collect() }, said.collect())
}

/// What a band may bound.
struct Bounded {
    quantity: &'static str,
    found: Option<f64>,
    range: Option<[f64; 2]>,
}

fn numbers(row: &SummaryRow, band: &Band) -> [Bounded; 2] {
    let speedup = row.speedup.as_ref().map(|speedup| speedup.by_totals);
    [
        Bounded { quantity: "mean_step_s", found: row.step.map(|step| step.mean), range: band.mean_step_s },
        Bounded { quantity: "speedup", found: speedup, range: band.speedup },
    ]
}
