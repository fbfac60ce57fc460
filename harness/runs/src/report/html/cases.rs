//! What cases and runs are called on a page: by what tells them apart.

use std::collections::{BTreeMap, BTreeSet};

pub(super) use crate::figures::labels::gate;
use crate::figures::labels::rest;
use crate::records::RunKey;
use crate::stored::StoredRun;

/// Names of runs and cases.
pub(super) struct Labels {
    runs: Vec<String>,
    short: Vec<String>,
    /// By case.
    cases: BTreeMap<String, String>,
    untold_model: bool,
}

/// Places of a case's parts.
const MODEL: usize = 0;
const GPUS: usize = 2;
const GATE: usize = 3;

impl Labels {
    pub(super) fn new(runs: &[StoredRun]) -> Self {
        let mut keys: BTreeMap<&str, &RunKey> = BTreeMap::new();
        for row in runs.iter().flat_map(|run| &run.summary.rows) {
            keys.entry(&row.key.case).or_insert(&row.key);
        }
        let parts: Vec<(&str, [String; 6])> = keys.iter().map(|(case, key)| (*case, parts(key))).collect();
        let differs = |part: usize| parts.iter().map(|(_, parts)| &parts[part]).collect::<BTreeSet<_>>().len() > 1;
        // GPUs and gate are always told, the model where the rest does not tell cases apart.
        let told = |part: usize| part == GPUS || part == GATE || differs(part);
        let all: Vec<usize> = (0..6).filter(|&part| told(part)).collect();
        let without_model: Vec<usize> = all.iter().copied().filter(|&part| part != MODEL).collect();
        let distinct = |chosen: &[usize]| {
            parts.iter().map(|(_, parts)| label(parts, chosen)).collect::<BTreeSet<_>>().len() == parts.len()
        };
        let chosen = if distinct(&without_model) { without_model } else { all };
        let cases = parts.iter().map(|(case, parts)| ((*case).to_owned(), label(parts, &chosen))).collect();
        let with_engine = |run: &StoredRun| format!("{} ({})", suite(run), engine(run));
        let with_folder = |run: &StoredRun| format!("{} ({}, {})", suite(run), engine(run), folder(run));
        let short = names(runs, &[&engine, &suite, &folder, &with_engine, &with_folder]);
        let runs = names(runs, &[&suite, &with_engine, &with_folder]);
        Self { runs, short, cases, untold_model: differs(MODEL) && !chosen.contains(&MODEL) }
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

    pub(super) fn case<'a>(&'a self, id: &'a str) -> &'a str {
        self.cases.get(id).map_or(id, String::as_str)
    }
}

fn label(parts: &[String; 6], chosen: &[usize]) -> String {
    let texts = chosen.iter().map(|&part| parts[part].as_str()).filter(|text| !text.is_empty());
    texts.collect::<Vec<_>>().join(", ")
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

/// Model, cluster, GPUs, gate, layer, and what else the case's name says.
fn parts(key: &RunKey) -> [String; 6] {
    let layer = key.layer.map_or(String::new(), |layer| format!("layer {layer}"));
    [key.model.clone(), key.cluster.clone(), format!("{} GPUs", key.gpus), gate(&key.gate), layer, rest(key)]
}
