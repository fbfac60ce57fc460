//! Two runs of the same suite side by side, a measured one and a predicted one: iterations, phases, memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use systems::price::ledger::Phase;

use crate::records::{self, Row, RowsByRun};
use crate::store::{TIMELINES, read_parquet, write_text};
use crate::summary::errors::{Pair, quantile};
use crate::summary::series;
use crate::summary::speedup::{Series, Speedup};
use crate::timeline;

/// A case under a system in both runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    pub case: String,
    pub system: String,
    /// Medians of the iterations after warm-up, s.
    pub step: Pair,
    /// The middle 95% of the measured ones, s.
    pub middle: [f64; 2],
    /// Iterations that were measured after warm-up.
    pub iterations: usize,
    /// The fullest rank of all iterations, where both runs followed memory, bytes.
    pub memory: Option<Pair>,
    /// Means of the phases that take any time in either run, s.
    pub phases: Vec<(String, Pair)>,
    /// Over the baseline, measured and predicted, by the seeds that both finished.
    pub speedup: Option<[Speedup; 2]>,
}

/// Compares runs in folders, a folder for each seed; `reserved` is what a device has in use besides what is predicted, bytes.
///
/// # Errors
/// A folder without a finished run; runs that have nothing in common.
pub fn compare(
    measured: &[PathBuf],
    predicted: &[PathBuf],
    baseline: &str,
    (warmup, reserved): (u32, f64),
) -> Result<Vec<Compared>> {
    let [own, other] = [measured, predicted].map(|folders| Side::read(folders, warmup));
    let (own, other) = (own?, other?);
    for (side, folders) in [(&own, measured), (&other, predicted)] {
        let folders = || folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        ensure!(side.any, "{}: no iteration of any system has ended well: summary.csv says why", folders());
        let after = side.runs.values().any(|(steps, _)| !steps.is_empty());
        ensure!(after, "{}: no iteration after a warm-up of {warmup}: expected a shorter one", folders());
    }
    let mut all = Vec::new();
    for (key, (steps, peak)) in &own.runs {
        let Some((predicted, predicted_peak)) = other.runs.get(key) else { continue };
        let at = |steps: &[f64], share| quantile(steps, share);
        let (Some(measured), Some(predicted)) = (at(steps, 0.5), at(predicted, 0.5)) else { continue };
        let base = [key[0].clone(), baseline.to_owned()];
        all.push(Compared {
            case: key[0].clone(),
            system: key[1].clone(),
            step: Pair { predicted, measured },
            middle: [at(steps, 0.025).unwrap_or(measured), at(steps, 0.975).unwrap_or(measured)],
            iterations: steps.len(),
            memory: peak
                .zip(*predicted_peak)
                .map(|(measured, predicted)| Pair { predicted: predicted + reserved, measured }),
            phases: own.phases_beside(&other, key),
            speedup: own.speedup(&base, key).zip(other.speedup(&base, key)).map(|(own, other)| [own, other]),
        });
    }
    ensure!(!all.is_empty(), "the measured and the predicted runs have nothing in common");
    Ok(all)
}

/// Writes what both runs say of the last iteration of a case under a system, rank by rank, in a file each: `CASE.seedN/SYSTEM.json` below `out`. Returns how
/// many there are.
///
/// # Errors
/// Files that cannot be read or written; runs of which none has both.
pub fn timelines(measured: &[PathBuf], predicted: &[PathBuf], out: &Path) -> Result<usize> {
    let mut written = 0;
    for own in measured.iter().map(|folder| folder.join(TIMELINES)).filter(|folder| folder.is_dir()) {
        for name in timelines_below(&own)? {
            let other = predicted.iter().map(|folder| folder.join(TIMELINES).join(&name)).find(|path| path.is_file());
            let Some(other) = other else { continue };
            let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
            let both = timeline::beside([&read(&own.join(&name))?, &read(&other)?])
                .with_context(|| format!("{} beside {}", own.join(&name).display(), other.display()))?;
            let path = out.join(&name);
            fs::create_dir_all(path.parent().unwrap_or(out)).with_context(|| path.display().to_string())?;
            write_text(&path, &both)?;
            written += 1;
        }
    }
    ensure!(written > 0, "no timeline is in both the measured and the predicted runs: both need --timeline");
    Ok(written)
}

/// Paths of the timelines in the folders of a folder, from there: not of the groups of execution traces, which are JSON as well.
fn timelines_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        entries.with_context(|| folder.display().to_string())
    };
    let mut files = Vec::new();
    for below in entries(folder)?.into_iter().filter(|path| path.is_dir()) {
        let is_timeline = |name: &str| name.ends_with(".json") && !name.ends_with(".groups.json");
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| is_timeline(&name.to_string_lossy()));
        files.extend(entries(&below)?.into_iter().filter(named));
    }
    files.sort();
    Ok(files.iter().filter_map(|path| Some(path.strip_prefix(folder).ok()?.to_owned())).collect())
}

/// What is compared of the runs of all folders, by case and system.
#[derive(Default)]
struct Side {
    /// Whether any iteration has ended well.
    any: bool,
    /// Sorted steps after warm-up, and the fullest rank.
    runs: BTreeMap<[String; 2], (Vec<f64>, Option<f64>)>,
    /// Steps after warm-up of the seeds that finished.
    series: BTreeMap<[String; 2], Vec<Series>>,
    /// By phase: the mean of the folders' means.
    phases: BTreeMap<[String; 3], f64>,
}

impl Side {
    fn read(folders: &[PathBuf], warmup: u32) -> Result<Self> {
        let (mut side, mut times) = (Self::default(), BTreeMap::<[String; 3], Vec<f64>>::new());
        for folder in folders {
            side.add(folder, warmup)?;
            let path = folder.join("spans.parquet");
            let means = records::mean_phases(&read_parquet(&path)?, warmup as usize)
                .with_context(|| path.display().to_string())?;
            for [case, system] in side.runs.keys() {
                let stages = means.of(case, system);
                for phase in Phase::ALL.into_iter().filter(|_| !stages.is_empty()) {
                    let mean = stages.iter().map(|ledger| ledger.of(phase).0).sum::<f64>() / stages.len() as f64;
                    let key = [case, system, phase.name()].map(str::to_owned);
                    times.entry(key).or_default().push(mean);
                }
            }
        }
        let mean = |times: Vec<f64>| times.iter().sum::<f64>() / times.len() as f64;
        side.phases = times.into_iter().map(|(key, times)| (key, mean(times))).collect();
        side.runs.values_mut().for_each(|(steps, _)| steps.sort_by(f64::total_cmp));
        Ok(side)
    }

    fn add(&mut self, folder: &Path, warmup: u32) -> Result<()> {
        let path = folder.join("iterations.parquet");
        let rows = records::from_frame(&read_parquet(&path)?).with_context(|| path.display().to_string())?;
        for rows in RowsByRun::new(&rows).iter() {
            let samples = || rows.iter().filter_map(|row| Some((row.iteration, row.sample.as_ref().ok()?)));
            let key = [rows[0].key.case.clone(), rows[0].key.system.clone()];
            let finished: Vec<&[&Row]> = rows
                .chunk_by(|a, b| a.key.seed == b.key.seed)
                .filter(|rows| rows.iter().all(|row| row.sample.is_ok()))
                .collect();
            self.series.entry(key.clone()).or_default().extend(series(&finished.concat(), warmup as usize));
            let (steps, peak) = self.runs.entry(key).or_default();
            self.any |= samples().next().is_some();
            let counted = samples().filter(|(iteration, _)| *iteration > warmup);
            steps.extend(counted.map(|(_, sample)| sample.step.0));
            // Of the warm-up, too: an allocator keeps what it needed once.
            *peak = samples().filter_map(|(_, sample)| Some(sample.peak?.bytes.0)).chain(*peak).reduce(f64::max);
        }
        Ok(())
    }

    fn speedup(&self, base: &[String; 2], own: &[String; 2]) -> Option<Speedup> {
        Speedup::new(self.series.get(base)?, self.series.get(own)?)
    }

    fn phases_beside(&self, other: &Self, [case, system]: &[String; 2]) -> Vec<(String, Pair)> {
        let mut names: Vec<&String> = self.phases.keys().chain(other.phases.keys()).map(|[.., phase]| phase).collect();
        names.sort_unstable();
        names.dedup();
        let of = |side: &Self, name: &str| {
            side.phases.get(&[case.clone(), system.clone(), name.to_owned()]).copied().unwrap_or(0.0)
        };
        let pairs =
            names.into_iter().map(|name| (name.clone(), Pair { predicted: of(other, name), measured: of(self, name) }));
        pairs.filter(|(_, pair)| pair.measured > 0.0 || pair.predicted > 0.0).collect()
    }
}

/// Pairs of systems of a case whose measured middles do not overlap, and how many of them are in the measured order in the
/// prediction, too.
pub fn order(all: &[Compared]) -> [usize; 2] {
    let mut found = [0, 0];
    for (number, one) in all.iter().enumerate() {
        for other in all[number + 1..].iter().filter(|other| other.case == one.case) {
            let apart = one.middle[1] < other.middle[0] || other.middle[1] < one.middle[0];
            let same = (one.step.measured < other.step.measured) == (one.step.predicted < other.step.predicted);
            found[0] += usize::from(apart);
            found[1] += usize::from(apart && same);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_systems_that_differ_by_more_than_their_spread_have_an_order() {
        let of = |case: &str, measured: f64, predicted: f64| Compared {
            case: case.to_owned(),
            system: String::new(),
            step: Pair { predicted, measured },
            middle: [measured - 0.5, measured + 0.5],
            iterations: 1,
            memory: None,
            phases: Vec::new(),
            speedup: None,
        };
        // 1 and 1.5 overlap; 1 and 4 are in order, 1.5 and 4 are not; another case stands alone.
        let all = [of("a", 1.0, 1.0), of("a", 1.5, 5.0), of("a", 4.0, 4.0), of("b", 9.0, 0.1)];
        assert_eq!(order(&all), [2, 1]);
    }
}
