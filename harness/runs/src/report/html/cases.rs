//! What cases and runs are called on a page: by what tells them apart.

use std::collections::{BTreeMap, BTreeSet};

use workloads::Gate;

use crate::records::RunKey;
use crate::stored::StoredRun;

/// Names of runs and cases.
pub(super) struct Labels {
    runs: Vec<String>,
    /// By case.
    cases: BTreeMap<String, String>,
}

impl Labels {
    pub(super) fn new(runs: &[StoredRun]) -> Self {
        let mut keys: BTreeMap<&str, &RunKey> = BTreeMap::new();
        for row in runs.iter().flat_map(|run| &run.summary.rows) {
            keys.entry(&row.key.case).or_insert(&row.key);
        }
        let parts: Vec<(&str, [String; 6])> = keys.iter().map(|(case, key)| (*case, parts(key))).collect();
        let differs = |part: usize| parts.iter().map(|(_, parts)| &parts[part]).collect::<BTreeSet<_>>().len() > 1;
        let differing: Vec<bool> = (0..6).map(differs).collect();
        let label = |parts: &[String; 6]| {
            // GPUs and gate are always told.
            let told = parts
                .iter()
                .enumerate()
                .filter(|(part, text)| (differing[*part] || matches!(part, 2 | 3)) && !text.is_empty());
            told.map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", ")
        };
        let cases = parts.iter().map(|(case, parts)| ((*case).to_owned(), label(parts))).collect();
        Self { runs: names(runs), cases }
    }

    /// Of the runs, in order.
    pub(super) fn runs(&self) -> &[String] {
        &self.runs
    }

    pub(super) fn case<'a>(&'a self, id: &'a str) -> &'a str {
        self.cases.get(id).map_or(id, String::as_str)
    }
}

/// Suites' names; the engine and then the folder where that is not enough.
fn names(runs: &[StoredRun]) -> Vec<String> {
    let suite = |run: &StoredRun| run.provenance.inputs.suite.clone();
    let with_engine = |run: &StoredRun| format!("{} ({})", suite(run), run.provenance.engine);
    let with_folder = |run: &StoredRun| format!("{} ({}, {})", suite(run), run.provenance.engine, run.folder);
    let ways: [&dyn Fn(&StoredRun) -> String; 3] = [&suite, &with_engine, &with_folder];
    let told_apart = |names: &Vec<String>| names.iter().collect::<BTreeSet<_>>().len() == names.len();
    let all = ways.into_iter().map(|way| runs.iter().map(way).collect::<Vec<_>>());
    let numbered = || (1..).zip(runs).map(|(number, run)| format!("{} {number}", with_folder(run))).collect();
    all.into_iter().find(told_apart).unwrap_or_else(numbered)
}

/// Model, cluster, GPUs, gate, layer, and what else the case's name says.
fn parts(key: &RunKey) -> [String; 6] {
    let layer = key.layer.map_or(String::new(), |layer| format!("layer {layer}"));
    let prefix = format!("{}.{}.{}.{}", key.model, key.cluster, key.gpus, key.gate).replace(['/', '\\', ' '], "-");
    let rest = key.case.strip_prefix(&prefix).unwrap_or("").trim_start_matches('.');
    let of_layer = key.layer.map_or(String::new(), |layer| format!("layer{layer}"));
    let rest = rest.strip_prefix(&of_layer).unwrap_or(rest).trim_start_matches('.');
    [key.model.clone(), key.cluster.clone(), format!("{} GPUs", key.gpus), gate(&key.gate), layer, rest.to_owned()]
}

/// A gate in words.
pub(super) fn gate(gate: &Gate) -> String {
    gate.to_string().replace('-', " ")
}
