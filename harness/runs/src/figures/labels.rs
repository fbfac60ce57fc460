//! What cases are called in figures and tables: by whatever differs between them, and not by what is the same.

use std::collections::BTreeSet;

use workloads::Gate;

use crate::records::RunKey;
use crate::stored::StoredRun;
use crate::traces::each_once;

/// A part of what a case says, from the outermost label to the innermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Model,
    Cluster,
    Gpus,
    Gate,
    Layer,
    /// What else the case's name says: its routing, batch and own name.
    Rest,
}

impl Part {
    pub(crate) const ALL: [Self; 6] = [Self::Model, Self::Cluster, Self::Gpus, Self::Gate, Self::Layer, Self::Rest];

    /// The part of a case, which says of itself what it is.
    pub(crate) fn of(self, key: &RunKey) -> String {
        match self {
            Self::Model => key.model.clone(),
            Self::Cluster => key.cluster.clone(),
            Self::Gpus => format!("{} GPUs", key.gpus),
            Self::Gate => gate(&key.gate),
            Self::Layer => key.layer.map_or(String::new(), |layer| format!("layer {layer}")),
            Self::Rest => rest(key),
        }
    }

    /// The same where an axis says what it is.
    fn short(self, key: &RunKey) -> String {
        match self {
            Self::Gpus => key.gpus.to_string(),
            Self::Gate => match key.gate {
                Gate::Capacity { factor } => factor.to_string(),
                other => gate(&other),
            },
            Self::Layer => key.layer.map_or(String::new(), |layer| layer.to_string()),
            _ => self.of(key),
        }
    }
}

/// A part of a case that was measured at a place: no cluster that was asked for, and as many ranks as it has GPUs.
pub(crate) fn placed(place: &Option<String>, part: Part, key: &RunKey) -> String {
    match (part, place) {
        (Part::Cluster, Some(place)) => place.clone(),
        (Part::Gpus, Some(_)) => format!("{} ranks", key.gpus),
        _ => part.of(key),
    }
}

/// These parts of a case, which may have been measured at a place, in one line.
pub(crate) fn in_words(place: &Option<String>, key: &RunKey, parts: &[Part]) -> String {
    let texts = parts.iter().map(|part| placed(place, *part, key)).filter(|text| !text.is_empty());
    texts.collect::<Vec<_>>().join(", ")
}

/// A gate in words.
pub(crate) fn gate(gate: &Gate) -> String {
    gate.to_string().replace('-', " ")
}

/// What a case's id says beyond model, cluster, GPUs, gate and layer.
fn rest(key: &RunKey) -> String {
    let prefix = prefix(key);
    let rest = key.case.strip_prefix(&prefix).unwrap_or("").trim_start_matches('.');
    let of_layer = key.layer.map_or(String::new(), |layer| format!("layer{layer}"));
    rest.strip_prefix(&of_layer).unwrap_or(rest).trim_start_matches('.').to_owned()
}

fn prefix(key: &RunKey) -> String {
    format!("{}.{}.{}.{}", key.model, key.cluster, key.gpus, key.gate).replace(['/', '\\', ' '], "-")
}

/// The systems of a run, in order.
pub(crate) fn systems(run: &StoredRun) -> Vec<&str> {
    each_once(run.summary.rows.iter().map(|row| row.key.system.as_str()))
}

/// The cases of a run, in order, each by the key of a system that ran it as it says.
pub(crate) fn cases(run: &StoredRun) -> Vec<&RunKey> {
    let mut cases: Vec<&RunKey> = Vec::new();
    for key in run.summary.rows.iter().map(|row| &*row.key) {
        match cases.iter_mut().find(|known| known.case == key.case) {
            Some(known) if !known.case.starts_with(&prefix(known)) => *known = key,
            Some(_) => {}
            None => cases.push(key),
        }
    }
    cases
}

/// What is drawn in panels: a panel for each title, in the order of the first under it.
pub(crate) fn panels<T>(titled: impl IntoIterator<Item = (String, T)>) -> Vec<(String, Vec<T>)> {
    let mut panels: Vec<(String, Vec<T>)> = Vec::new();
    for (title, one) in titled {
        match panels.iter_mut().find(|(known, _)| *known == title) {
            Some((_, panel)) => panel.push(one),
            None => panels.push((title, vec![one])),
        }
    }
    panels
}

/// What a case is called that says nothing where others say more: the run's trace, where others have a routing of their own.
fn plain(run: &StoredRun, cases: &[&RunKey]) -> &'static str {
    let own_routing =
        |key: &&RunKey| run.facts.drawn.own_conditions.contains(&key.case) && !rest(key).starts_with("net");
    if cases.iter().any(own_routing) { "trace" } else { "base" }
}

/// Which parts tell cases apart.
pub(crate) struct CaseLabels {
    /// Where everything was measured, in place of the clusters that were asked for.
    place: Option<String>,
    told: Vec<Part>,
    /// Stands for a part that says nothing.
    plain: &'static str,
    /// Gates that a factor says, or that there is none.
    factors: bool,
    /// What all cases have in common.
    pub(crate) same: Vec<String>,
}

impl CaseLabels {
    /// Of cases whose panels say the parts in `titled`.
    pub(crate) fn new(run: &StoredRun, cases: &[&RunKey], titled: &[Part]) -> Self {
        let place = run.facts.drawn.measured_on.clone();
        let values = |part: Part| cases.iter().map(|key| placed(&place, part, key)).collect::<BTreeSet<_>>();
        let (told, same): (Vec<Part>, Vec<Part>) = Part::ALL.into_iter().partition(|part| values(*part).len() > 1);
        let kinds = |key: &&&RunKey| matches!(key.gate, Gate::Capacity { .. } | Gate::NoDrop);
        Self {
            plain: plain(run, cases),
            told: told.into_iter().filter(|part| !titled.contains(part)).collect(),
            factors: cases.iter().all(|key| kinds(&key)),
            same: same.into_iter().flat_map(values).filter(|text| !text.is_empty()).collect(),
            place,
        }
    }

    /// Parts that cases are told apart by.
    pub(crate) fn told(&self) -> &[Part] {
        &self.told
    }

    /// What a part says of a case.
    pub(crate) fn text(&self, part: Part, key: &RunKey) -> String {
        let text = placed(&self.place, part, key);
        if text.is_empty() { self.plain.to_owned() } else { text }
    }

    /// The title of a case's panel: its cluster, or where it was measured.
    pub(crate) fn panel(&self, key: &RunKey) -> String {
        placed(&self.place, Part::Cluster, key)
    }

    fn short(&self, part: Part, key: &RunKey) -> String {
        let whole = part == Part::Rest || part == Part::Gate && !self.factors;
        if whole { self.text(part, key) } else { part.short(key) }
    }

    /// The innermost label.
    pub(crate) fn label(&self, key: &RunKey) -> String {
        self.told.last().map_or(String::new(), |part| self.short(*part, key))
    }

    /// The labels below it, outwards.
    pub(crate) fn over(&self, key: &RunKey) -> Vec<String> {
        self.told.iter().rev().skip(1).map(|part| self.text(*part, key)).collect()
    }

    /// The whole label in one line.
    pub(crate) fn whole(&self, key: &RunKey) -> String {
        let words = in_words(&self.place, key, &self.told);
        if words.is_empty() && !self.told.is_empty() { self.plain.to_owned() } else { words }
    }

    /// What the innermost label is; nothing where it says so itself.
    pub(crate) fn axis(&self) -> &'static str {
        match self.told.last() {
            Some(Part::Gate) if self.factors => "Capacity factor",
            Some(Part::Gpus) => "GPUs",
            Some(Part::Layer) => "MoE layer",
            _ => "",
        }
    }

    /// What all cases have in common, for a caption.
    pub(crate) fn common(&self) -> String {
        if self.same.is_empty() { String::new() } else { format!(" ({})", self.same.join(", ")) }
    }
}
