//! `phases`: where the time of an iteration goes, a bar per system, its parts the phases of the ledger, mean over stages and
//! iterations after warm-up, in parts of the baseline's time.

use chart::{AnyChart, Group, Panel, Series, StackedBar, StackedBars};
use systems::price::ledger::Phase;
use workloads::Seconds;

use super::labels::{self, CaseLabels, Part};
use super::{PaperFigure, engine_note, title};
use crate::records::RunKey;
use crate::stored::StoredRun;

/// Parts of a bar from the bottom up: what computes, what communicates, what waits, what online systems add.
const PARTS: [(&str, &[Phase]); 8] = [
    ("experts", &[Phase::Experts]),
    ("attention, dense, gate", &[Phase::Dense, Phase::Gate, Phase::Host]),
    ("dispatch, combine", &[Phase::Counts, Phase::Dispatch, Phase::Combine]),
    ("experts' weights", &[Phase::ShadowTransfer]),
    ("other communication", &[Phase::TensorParallel, Phase::Boundary]),
    ("waiting", &[Phase::Wait, Phase::Bubble]),
    ("gradients, optimizer", &[Phase::GradientSync, Phase::Optimizer]),
    ("deciding, moving", &[Phase::Decision, Phase::Migration]),
];

/// The figure of a run whose phases were kept.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let cases = labels::cases(run);
    let labels = CaseLabels::new(run, &cases, &[Part::Cluster]);
    let group = |key: &RunKey| {
        let whole = whole(run, key);
        let bars = labels::systems(run).into_iter().map(|system| bar(run, key, system, whole)).collect();
        // Bars have names of their own: no axis says what the labels are.
        let label = labels.told().last().map_or(String::new(), |part| labels.text(*part, key));
        Group { label, over: labels.over(key), bars }
    };
    let panels = labels::panels(cases.iter().map(|key| (labels.panel(key), group(key))));
    let mut panels: Vec<Panel<StackedBar>> =
        panels.into_iter().map(|(title, groups)| Panel { title, groups }).collect();
    // Parts that no run spends time in are not in the legend.
    let spent = |part: &usize| {
        let bars = panels.iter().flat_map(|panel| &panel.groups).flat_map(|group| &group.bars);
        bars.filter_map(|bar| bar.values.get(*part)).any(|value| *value > 0.0)
    };
    let kept: Vec<usize> = (0..PARTS.len()).filter(spent).collect();
    let parts = kept.iter().map(|part| Series::new(PARTS[*part].0, *part)).collect();
    for bar in panels.iter_mut().flat_map(|panel| &mut panel.groups).flat_map(|group| &mut group.bars) {
        bar.values = kept.iter().filter_map(|part| bar.values.get(*part).copied()).collect();
    }
    PaperFigure {
        name: "phases".to_owned(),
        caption: format!(
            "Where the time of an iteration goes{}; {}; in parts of the time of {}, or of the slowest system where that has none; means over stages and over the iterations after {} of warm-up; a run \
             without a bar did not end an iteration.",
            labels.common(),
            run.facts.origin,
            title(&run.summary.baseline),
            run.facts.warmup,
        ),
        chart: AnyChart::Stacked(StackedBars {
            y_label: format!("Time over that of {} ({})", title(&run.summary.baseline), engine_note(run)),
            parts,
            panels,
            ..StackedBars::default()
        }),
    }
}

/// What a case's bars are in parts of, s: the baseline's time, or that of the slowest system where the baseline has none.
fn whole(run: &StoredRun, key: &RunKey) -> f64 {
    let time = |system: &str| mean(run, key, system, &Phase::ALL);
    let slowest = || labels::systems(run).into_iter().filter_map(time).fold(0.0, f64::max);
    time(&run.summary.baseline).unwrap_or_else(slowest)
}

/// Time of some phases, s, mean over the stages; none where no iteration ended.
fn mean(run: &StoredRun, key: &RunKey, system: &str, phases: &[Phase]) -> Option<f64> {
    let stages = run.phases.of(&key.case, system);
    let all: Seconds = stages.iter().flat_map(|stage| phases.iter().map(|phase| stage.of(*phase))).sum();
    (!stages.is_empty()).then(|| all.0 / stages.len() as f64)
}

fn bar(run: &StoredRun, key: &RunKey, system: &str, whole: f64) -> StackedBar {
    let values = PARTS.iter().filter_map(|(_, phases)| Some(mean(run, key, system, phases)? / whole));
    StackedBar { label: title(system), values: values.collect(), note: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_in_one_part() {
        for phase in Phase::ALL {
            let parts = PARTS.iter().filter(|(_, phases)| phases.contains(&phase)).count();
            assert_eq!(parts, 1, "{}", phase.name());
        }
    }
}
