//! `end_to_end`: grouped bars as in the paper's figure 8. A panel per cluster, a group per GPUs and capacity factor, a bar
//! per system: speedup over the baseline by totals, with its spread, and a line where it is by medians; a run that died is
//! marked with how.

use std::collections::BTreeSet;

use workloads::{Case, Suite};

use super::{error_notes, statistic_note, title};
use crate::summary::{ModelError, Summary, SummaryRow};
use chart::{Bar, Figure, FigureError, Frame, Group, GroupedBars, Panel, Series};

/// Draws the figure of a suite from its summary.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, origin: &str) -> Result<Figure, FigureError> {
    let mut clusters: Vec<&str> = suite.cases.iter().map(|case| case.cluster.name.as_str()).collect();
    clusters.dedup();
    let panels = clusters.into_iter().map(|cluster| Panel {
        title: cluster.to_owned(),
        groups: suite
            .cases
            .iter()
            .filter(|case| case.cluster.name == cluster)
            .map(|case| group(suite, case, summary))
            .collect(),
    });
    let marked: BTreeSet<&String> = suite.cases.iter().flat_map(|case| case.differs.keys()).collect();
    let series = |name: &String| {
        let plan = if suite.searched.contains(name) { ", searched plan" } else { "" };
        let mark = if marked.contains(name) { " †" } else { "" };
        format!("{}{plan}{mark}", title(name))
    };
    GroupedBars {
        frame: Frame {
            footnote: format!(
                "{origin}; {}{}{}",
                statistic_note(suite, summary),
                error_notes(summary),
                if marked.is_empty() { "" } else { "; †: ran with another model, gate or micro-batch" }
            ),
            ..Frame::default()
        },
        y_label: format!("Speedup over {}", title(&suite.baseline)),
        x_label: "GPUs / capacity factor".to_owned(),
        series: Series::numbered(suite.systems.iter().map(series)),
        panels: panels.collect(),
        reference: Some(1.0),
        second_label: "by medians".to_owned(),
    }
    .draw()
}

fn group(suite: &Suite, case: &Case, summary: &Summary) -> Group {
    let bars = suite.systems.iter().map(|system| match summary.row(&case.id(), system) {
        Some(row) => bar(row),
        None => Bar::default(),
    });
    Group { label: case.label(), bars: bars.collect() }
}

/// A speedup with its spread, the published one, and beside it the speedup's error where this very run was measured, or that
/// it is extrapolated.
pub(super) fn bar(row: &SummaryRow) -> Bar {
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
