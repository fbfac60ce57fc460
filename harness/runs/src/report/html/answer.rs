//! The answer to a suite's question in words: which system wins where, by how much, how sure that is, and why.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use systems::price::ledger::{Ledger, Phase};

use crate::figures;
use crate::report::html::cases::Labels;
use crate::stored::StoredRun;
use crate::summary::claims::{PaperClaim, REPRODUCED, TOLERATED, Verdict, claims};
use crate::summary::model_error::ClusterError;
use crate::summary::{ModelError, Summary, SummaryRow};

/// Sentences, and a line per case.
pub(super) struct Answer {
    pub(super) sentences: Vec<String>,
    pub(super) cases: Vec<CaseAnswer>,
    /// Title of the system that speedups are over.
    pub(super) reference: String,
}

/// Who wins a case.
pub(super) struct CaseAnswer {
    pub(super) case: String,
    pub(super) winner: String,
    /// Over the reference, with its spread.
    pub(super) speedup: String,
    /// What of the reference's time the winner saves most.
    pub(super) why: String,
    /// What stands against it.
    pub(super) but: String,
}

/// The fastest system of a case, and the next one; bounds do not compete.
struct Podium<'a> {
    case: &'a str,
    first: &'a SummaryRow,
    second: Option<&'a SummaryRow>,
}

/// A lead of less than half a percent is none.
const SMALLEST_LEAD: f64 = 1.005;

/// A part of the reference's time that another system saves.
struct Saving {
    phase: Phase,
    seconds: f64,
    /// Of the reference's iteration.
    share: f64,
}

impl Answer {
    pub(super) fn new(run: &StoredRun, labels: &Labels) -> Self {
        let podiums = podiums(&run.summary);
        let mut sentences = Vec::new();
        sentences.extend(winners(&run.summary, &podiums));
        sentences.extend(speedups(&run.summary));
        sentences.extend(reasons(run, &podiums));
        sentences.extend(certainty(run, &podiums));
        sentences.extend(verdicts(run));
        sentences.extend(failed(&run.summary));
        let cases = podiums.iter().map(|podium| podium.answer(run, labels)).collect();
        Self { sentences, cases, reference: figures::title(&run.summary.baseline) }
    }
}

/// How many published ratios came out.
fn verdicts(run: &StoredRun) -> Option<String> {
    let all: Vec<Verdict> = claims(&run.summary, &run.facts.drawn.compare).iter().map(PaperClaim::verdict).collect();
    let of = |verdict| all.iter().filter(|&&one| one == verdict).count();
    let [reproduced, tolerated, not] = [Verdict::Reproduced, Verdict::WithinTolerance, Verdict::NotReproduced].map(of);
    (!all.is_empty()).then(|| {
        format!(
            "Of {} published ratio{} of what ran, {reproduced} came out within {:.0}%, {tolerated} more within {:.0}%, {not} did not.",
            all.len(),
            if all.len() == 1 { "" } else { "s" },
            REPRODUCED * 100.0,
            TOLERATED * 100.0,
        )
    })
}

fn podiums(summary: &Summary) -> Vec<Podium<'_>> {
    let of_case = |rows: &'_ [SummaryRow]| {
        let competes = |row: &SummaryRow| row.step.is_some() && !row.is_bound();
        let mut ended: Vec<usize> = (0..rows.len()).filter(|&index| competes(&rows[index])).collect();
        let mean = |index: usize| rows[index].step.map_or(f64::INFINITY, |step| step.mean);
        ended.sort_by(|&a, &b| mean(a).total_cmp(&mean(b)));
        ended
    };
    let podium = |rows| {
        let ended = of_case(rows);
        let first = &rows[*ended.first()?];
        Some(Podium { case: &first.key.case, first, second: ended.get(1).map(|&index| &rows[index]) })
    };
    summary.rows.chunk_by(|a, b| a.key.case == b.key.case).filter_map(podium).collect()
}

impl Podium<'_> {
    /// Whether the lead over the next system goes beyond its spread and is worth a word; true of a system alone.
    fn is_clear(&self) -> bool {
        let Some(second) = self.second else { return true };
        let spread = self.first.over(second).and_then(|lead| lead.spread);
        spread.is_some_and(|[low, _]| low > SMALLEST_LEAD)
    }

    fn answer(&self, run: &StoredRun, labels: &Labels) -> CaseAnswer {
        let (summary, first) = (&run.summary, self.first);
        let of_reference = first.key.system == summary.baseline;
        let speedup = first.speedup.as_ref().filter(|_| !of_reference);
        let why = saving(run, first).map_or(String::new(), |Saving { phase, seconds, share }| {
            format!("{}: {} less, {:.0}% of its iteration", phase_words(phase), time(seconds), share * 100.0)
        });
        let mut but = Vec::new();
        if let (false, Some(second)) = (self.is_clear(), self.second) {
            but.push(format!("no clear lead over {}", figures::title(&second.key.system)));
        }
        but.extend(first.extrapolated.map(|why| format!("extrapolated: {why}")));
        but.extend(
            run.facts
                .differences
                .iter()
                .any(|line| line.strip_prefix(self.case).is_some_and(|rest| rest.starts_with(' ')))
                .then(|| "not all systems trained the same".to_owned()),
        );
        CaseAnswer {
            case: labels.case(run, self.case).to_owned(),
            winner: figures::title(&first.key.system),
            speedup: speedup.map_or(String::new(), |speedup| {
                let spread = speedup.spread.map_or(String::new(), |[low, high]| format!(" ({low:.2} to {high:.2})"));
                format!("{:.2}x{spread}", speedup.by_totals)
            }),
            why: if of_reference { String::new() } else { why },
            but: but.join("; "),
        }
    }
}

/// `A is fastest in 7 of 9 cases, B in 2.`
fn winners(summary: &Summary, podiums: &[Podium]) -> Option<String> {
    let mut wins: Vec<(String, usize)> = Vec::new();
    for podium in podiums {
        let title = figures::title(&podium.first.key.system);
        match wins.iter_mut().find(|(system, _)| *system == title) {
            Some((_, count)) => *count += 1,
            None => wins.push((title, 1)),
        }
    }
    wins.sort_by_key(|(_, count)| Reverse(*count));
    let ((first, count), others) = wins.split_first()?;
    let all = podiums.len();
    let others: String = others.iter().map(|(system, count)| format!(", {system} in {count}")).collect();
    if podiums.iter().all(|podium| podium.second.is_none()) {
        let ran_alone = summary.rows.chunk_by(|a, b| a.key.case == b.key.case).all(|rows| rows.len() == 1);
        let what = if ran_alone { "One system ran in each case" } else { "No case has times of two systems" };
        let count = if others.is_empty() { String::new() } else { format!(" in {count}") };
        return Some(format!("{what}: {first}{count}{others}."));
    }
    Some(match (all, *count) {
        (1, _) => format!("{first} is fastest."),
        (all, count) if all == count => format!("{first} is fastest in all {all} cases."),
        (all, count) => format!("{first} is fastest in {count} of {all} cases{others}."),
    })
}

/// Each system's speedups over the reference, smallest and largest.
fn speedups(summary: &Summary) -> Option<String> {
    let mut ranges: Vec<(&str, Vec<f64>)> = Vec::new();
    for row in summary.rows.iter().filter(|row| row.key.system != summary.baseline) {
        let Some(speedup) = &row.speedup else { continue };
        match ranges.iter_mut().find(|(system, _)| *system == row.key.system) {
            Some((_, all)) => all.push(speedup.by_totals),
            None => ranges.push((&row.key.system, vec![speedup.by_totals])),
        }
    }
    let text = |(system, all): &(&str, Vec<f64>)| {
        let low = all.iter().copied().fold(f64::INFINITY, f64::min);
        let high = all.iter().copied().fold(0.0, f64::max);
        let [low, high] = [low, high].map(|ratio| format!("{ratio:.2}"));
        let range = if low == high { format!("{low}x") } else { format!("{low} to {high}x") };
        format!("{} {range}", figures::title(system))
    };
    let all: Vec<String> = ranges.iter().map(text).collect();
    let reference = figures::title(&summary.baseline);
    (!all.is_empty()).then(|| format!("Speed over {reference}, by total time after warm-up: {}.", all.join(", ")))
}

/// What winners save most, over all cases.
fn reasons(run: &StoredRun, podiums: &[Podium]) -> Option<String> {
    let mut shares: BTreeMap<Phase, Vec<f64>> = BTreeMap::new();
    for podium in podiums.iter().filter(|podium| podium.first.key.system != run.summary.baseline) {
        if let Some(saving) = saving(run, podium.first) {
            shares.entry(saving.phase).or_default().push(saving.share * 100.0);
        }
    }
    let mut shares: Vec<(Phase, Vec<f64>)> = shares.into_iter().collect();
    shares.sort_by_key(|(_, of)| Reverse(of.len()));
    let text = |(phase, shares): &(Phase, Vec<f64>)| {
        let low = shares.iter().copied().fold(f64::INFINITY, f64::min);
        let high = shares.iter().copied().fold(0.0, f64::max);
        let range = if shares.len() == 1 { format!("{low:.0}%") } else { format!("{low:.0} to {high:.0}%") };
        let cases = if shares.len() == 1 { "1 case".to_owned() } else { format!("{} cases", shares.len()) };
        format!("{} in {cases} ({range} of the iteration)", phase_words(*phase))
    };
    let all: Vec<String> = shares.iter().map(text).collect();
    let reference = figures::title(&run.summary.baseline);
    (!all.is_empty()).then(|| format!("What the fastest saves most of {reference}'s time: {}.", all.join(", ")))
}

/// Spread, the model's error, and what goes beyond what was measured.
fn certainty(run: &StoredRun, podiums: &[Podium]) -> Vec<String> {
    let summary = &run.summary;
    let mut sentences = Vec::new();
    let unclear = podiums.iter().filter(|podium| !podium.is_clear()).count();
    let spreads = summary.rows.iter().filter_map(|row| {
        let speedup = row.speedup.as_ref().filter(|_| row.key.system != summary.baseline)?;
        let [low, high] = speedup.spread?;
        Some((high / speedup.by_totals - 1.0).max(1.0 - low / speedup.by_totals))
    });
    if let Some(most) = spreads.reduce(f64::max) {
        let lead = match unclear {
            0 => "every lead over the next system is larger than its spread".to_owned(),
            1 => "in 1 case the lead over the next system is within its spread, or below 0.5%".to_owned(),
            more => format!("in {more} cases the lead over the next system is within its spread, or below 0.5%"),
        };
        sentences.push(format!(
            "Spread over {}: at most {:.1}% of a speedup; {lead}. It says nothing of other routing.",
            summary.spread_over(),
            most * 100.0
        ));
    } else if podiums.iter().any(|podium| podium.second.is_some()) {
        sentences.push("There are too few iterations for a spread: how sure a lead is, is not known.".to_owned());
    }
    sentences.push(model_error(run));
    let extrapolated = summary.rows.iter().filter(|row| row.extrapolated.is_some()).count();
    if extrapolated > 0 {
        let ended = summary.rows.iter().filter(|row| row.step.is_some()).count();
        sentences.push(format!("{extrapolated} of {ended} times are extrapolated: unlike all that was measured."));
    }
    sentences
}

/// How the times were obtained, and how far simulated ones are from measurements.
fn model_error(run: &StoredRun) -> String {
    let mut sentence = format!("Times are {}", run.provenance.engine.label());
    if run.summary.is_trained() {
        let (host, cores) = (&run.provenance.host, run.provenance.cores);
        sentence += &format!(", on {host}, a machine of {cores} CPU cores, whatever cluster the case was asked for");
    }
    let simulated = || run.summary.rows.iter().filter(|row| row.step.is_some() && !row.key.engine.trains());
    let of_runs: Vec<f64> = simulated()
        .filter_map(|row| match row.model_error {
            Some(ModelError::Run(error)) => Some(error * 100.0),
            _ => None,
        })
        .collect();
    if let (Some(low), Some(high)) =
        (of_runs.iter().copied().reduce(f64::min), of_runs.iter().copied().reduce(f64::max))
    {
        let count = of_runs.len();
        sentence += &format!("; {count} of them were measured as they ran here, and are {low:+.0}% to {high:+.0}% off");
    }
    let mut notes: Vec<String> = Vec::new();
    for row in simulated() {
        let Some(ModelError::Cluster(error)) = &row.model_error else { continue };
        let (median, most) = (error.median * 100.0, error.max * 100.0);
        let ClusterError { cluster, measurements, part, measured, .. } = error;
        let (part, measured) = (part.plural(), measured.clause());
        let note = format!(
            "; on {cluster} {measurements} {part} {measured} are {median:.0}% off at the median, {most:.0}% at most"
        );
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    sentence.extend(notes);
    let unknown = simulated().filter(|row| row.model_error.is_none()).count();
    if unknown > 0 {
        sentence += &format!("; of {unknown} nothing like it was measured: their error is unknown");
    }
    sentence + "."
}

/// Runs that did not end, by why.
fn failed(summary: &Summary) -> Option<String> {
    let mut counts: BTreeMap<&'static str, usize> = BTreeMap::new();
    for row in summary.rows.iter().filter(|row| row.failure.is_some()) {
        *counts.entry(row.status().name()).or_default() += 1;
    }
    let all: Vec<String> = counts.iter().map(|(status, count)| format!("{count} {status}")).collect();
    (!all.is_empty()).then(|| format!("Runs without a time: {} of {}.", all.join(", "), summary.rows.len()))
}

/// The phase of which a system saves most over the reference, mean over stages.
fn saving(run: &StoredRun, row: &SummaryRow) -> Option<Saving> {
    let reference = mean(run.phases.of(&row.key.case, &run.summary.baseline))?;
    let own = mean(run.phases.of(&row.key.case, &row.key.system))?;
    let saved = |phase: Phase| (reference.of(phase) - own.of(phase)).0;
    let phase = Phase::ALL.into_iter().max_by(|&a, &b| saved(a).total_cmp(&saved(b)))?;
    let seconds = saved(phase);
    (seconds > 0.0).then(|| Saving { phase, seconds, share: seconds / reference.total().0 })
}

fn mean(stages: &[Ledger]) -> Option<Ledger> {
    let mut mean = Ledger::default();
    stages.iter().for_each(|stage| mean.merge(stage, 1.0 / stages.len() as f64));
    (!stages.is_empty()).then_some(mean)
}

/// A time for people.
pub(super) fn time(seconds: f64) -> String {
    match seconds.abs() {
        s if s >= 1.0 => format!("{seconds:.2} s"),
        s if s >= 0.1 => format!("{:.0} ms", seconds * 1e3),
        s if s >= 1e-3 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{:.0} us", seconds * 1e6),
    }
}

/// A phase in words.
pub(super) fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Dense => "attention and dense layers",
        Phase::Gate => "gate",
        Phase::Counts => "exchange of counts",
        Phase::Dispatch => "dispatch",
        Phase::Experts => "experts",
        Phase::Combine => "combine",
        Phase::ShadowTransfer => "transfers of experts' weights",
        Phase::TensorParallel => "tensor-parallel collectives",
        Phase::Boundary => "sends between stages",
        Phase::Wait => "waiting for other ranks",
        Phase::Bubble => "waiting for other stages",
        Phase::GradientSync => "gradient synchronisation",
        Phase::Optimizer => "optimizer",
        Phase::Decision => "online decisions",
        Phase::Migration => "moving experts",
        Phase::Host => "host",
    }
}
