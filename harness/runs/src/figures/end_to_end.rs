//! `end_to_end`: grouped bars as in the paper's figure 8. A panel per cluster or place of measurement, a group per case, a bar per system: speedup over
//! the baseline by totals, with its spread, and a line where it is by medians; a run that died is marked with how.

use chart::{AnyChart, Bar, Group, GroupedBars, Panel, Series};

use super::labels::{self, CaseLabels, Part};
use super::{PaperFigure, bars_note, engine_note, error_notes, look_notes, otherwise_note, title};
use crate::looks;
use crate::records::RunKey;
use crate::stored::StoredRun;
use crate::summary::{ModelError, Summary, SummaryRow};

/// The figure of a run of whole iterations.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let (cases, systems) = (labels::cases(run), labels::systems(run));
    let labels = CaseLabels::new(run, &cases, &[Part::Cluster]);
    let group = |key: &RunKey| group(key, &labels, systems.iter().copied(), &run.summary);
    let panels = labels::panels(cases.iter().map(|key| (labels.panel(key), group(key))));
    let drawn = &run.facts.drawn;
    let among = |names: &[String], name: &str| names.iter().any(|one| one == name);
    let series = |name: &&str| {
        let plan = if among(&drawn.searched, name) { ", searched plan" } else { "" };
        let mark = if among(&drawn.otherwise, name) { " †" } else { "" };
        Series::new(format!("{}{plan}{mark}", title(name)), looks::ink(name))
    };
    PaperFigure {
        name: "end_to_end".to_owned(),
        caption: format!(
            "Speedup over {}{}; {}; {}{}{}{}.",
            title(&run.summary.baseline),
            labels.common(),
            run.facts.origin,
            bars_note(run),
            error_notes(&run.summary),
            otherwise_note(run),
            look_notes(run),
        ),
        chart: AnyChart::Bars(GroupedBars {
            y_label: format!("Speedup over {} ({})", title(&run.summary.baseline), engine_note(run)),
            x_label: labels.axis().to_owned(),
            series: systems.iter().map(series).collect(),
            panels: panels.into_iter().map(|(title, groups)| Panel { title, groups }).collect(),
            reference: Some(1.0),
            second_label: "by medians".to_owned(),
            ..GroupedBars::default()
        }),
    }
}

/// A case, with a bar for each of these systems.
pub(super) fn group<'s>(
    key: &RunKey,
    labels: &CaseLabels,
    systems: impl Iterator<Item = &'s str>,
    summary: &Summary,
) -> Group {
    let bars = systems.map(|system| summary.row(&key.case, system).map_or_else(Bar::default, bar));
    Group { bars: bars.collect(), label: labels.label(key), over: labels.over(key) }
}

/// A speedup with its spread, the published one, and beside it the speedup's error where this very run was measured, or that
/// it is extrapolated.
fn bar(row: &SummaryRow) -> Bar {
    let published = Bar {
        published: row.published.speedup_by_medians,
        published_of_other: row.published.speedup_of_other_plan,
        ..Bar::default()
    };
    if row.failure.is_some() {
        return Bar { value: Bar::failed(row.status().name().to_uppercase()).value, ..published };
    }
    let error = row.speedup_error.map(|error| format!("({})", ModelError::Run(error).label()));
    match &row.speedup {
        Some(speedup) => {
            let [low, high] = speedup.spread.unwrap_or([speedup.by_totals; 2]);
            Bar {
                label: Some(format!("{:.2}", speedup.by_totals)),
                aside: error.or(row.extrapolated.map(|_| "*".to_owned())),
                second: Some(speedup.by_medians),
                value: Bar::interval(speedup.by_totals, low, high).value,
                ..published
            }
        }
        // Without the baseline there is no ratio; the table still has the time.
        None => Bar::default(),
    }
}
