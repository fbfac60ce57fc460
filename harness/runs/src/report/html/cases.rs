//! What cases and runs are called on a page: by what tells them apart.

use std::collections::{BTreeMap, BTreeSet};

pub(super) use crate::figures::labels::gate;
use crate::figures::labels::{Part, in_words, placed};
use crate::records::RunKey;
use crate::stored::StoredRun;

/// Names of runs and cases.
pub(super) struct Labels {
    runs: Vec<String>,
    short: Vec<String>,
    /// By case and where it was measured, if it was.
    cases: BTreeMap<(String, Option<String>), String>,
    untold_model: bool,
}

impl Labels {
    pub(super) fn new(runs: &[StoredRun]) -> Self {
        let mut keys: BTreeMap<(&str, &Option<String>), &RunKey> = BTreeMap::new();
        for run in runs {
            for row in &run.summary.rows {
                keys.entry((&row.key.case, place(run))).or_insert(&row.key);
            }
        }
        let values = |part: Part| keys.iter().map(move |((_, place), key)| placed(place, part, key));
        let differs = |part: Part| values(part).collect::<BTreeSet<_>>().len() > 1;
        // GPUs and gate are always told, the model where the rest does not tell cases apart.
        let told = |part: &Part| matches!(part, Part::Gpus | Part::Gate) || differs(*part);
        let all: Vec<Part> = Part::ALL.into_iter().filter(told).collect();
        let without_model: Vec<Part> = all.iter().copied().filter(|part| *part != Part::Model).collect();
        let distinct = |chosen: &[Part]| {
            keys.iter().map(|((_, place), key)| in_words(place, key, chosen)).collect::<BTreeSet<_>>().len()
                == keys.len()
        };
        let chosen = if distinct(&without_model) { without_model } else { all };
        let named = |((case, place), key): (&(&str, &Option<String>), &&RunKey)| {
            (((*case).to_owned(), (*place).clone()), in_words(place, key, &chosen))
        };
        let cases = keys.iter().map(named).collect();
        let with_engine = |run: &StoredRun| format!("{} ({})", suite(run), engine(run));
        let with_folder = |run: &StoredRun| format!("{} ({}, {})", suite(run), engine(run), folder(run));
        let short = names(runs, &[&engine, &suite, &folder, &with_engine, &with_folder]);
        let runs = names(runs, &[&suite, &with_engine, &with_folder]);
        Self { runs, short, cases, untold_model: differs(Part::Model) && !chosen.contains(&Part::Model) }
    }

    /// Whether models differ, but cases are not called by them.
    pub(super) fn untold_model(&self) -> bool {
        self.untold_model
    }

    /// Of the runs, in order.
    pub(super) fn runs(&self) -> &[String] {
        &self.runs
    }

    /// Of the runs, in order, as short as tells them apart.
    pub(super) fn short(&self) -> &[String] {
        &self.short
    }

    /// Of a case as a run has it.
    pub(super) fn case<'a>(&'a self, run: &StoredRun, id: &'a str) -> &'a str {
        self.cases.get(&(id.to_owned(), place(run).clone())).map_or(id, String::as_str)
    }
}

fn place(run: &StoredRun) -> &Option<String> {
    &run.facts.drawn.measured_on
}

/// A way to call a run.
type Way = dyn Fn(&StoredRun) -> String;

/// Names of the first way that tells all runs apart; numbered where none does.
fn names(runs: &[StoredRun], ways: &[&Way]) -> Vec<String> {
    let told_apart = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let all = ways.iter().map(|way| runs.iter().map(way).collect::<Vec<_>>());
    let numbered = || (1..).zip(runs).map(|(number, run)| format!("{} {number}", run.folder)).collect();
    all.into_iter().find(told_apart).unwrap_or_else(numbered)
}

fn suite(run: &StoredRun) -> String {
    run.provenance.inputs.suite.clone()
}

fn engine(run: &StoredRun) -> String {
    run.provenance.engine.to_string()
}

fn folder(run: &StoredRun) -> String {
    run.folder.clone()
}
