//! `performance_model`: what offline searches expected against what the simulated runs took, as in the paper's figure 11. Both are of one
//! model, so that no error is said of them; one is said of what searches expected where the plan that ran was measured.

use chart::{AnyChart, Scatter, ScatterPanel, ScatterSeries};

use super::{PaperFigure, labels, look_notes, title};
use crate::looks;
use crate::stored::StoredRun;
use crate::summary::SummaryRow;
use crate::summary::errors::{Errors, Pair};

/// Runs whose plans a search chose, with what it expected and what the run took.
fn chosen(run: &StoredRun) -> Vec<(&SummaryRow, Pair)> {
    let pair = |row: &SummaryRow| {
        row.key.expected.zip(row.step).map(|(predicted, step)| Pair { predicted: predicted.0, measured: step.mean })
    };
    run.summary.rows.iter().filter_map(|row| Some((row, pair(row)?))).collect()
}

/// Whether a search chose any plan, and what it expected is of the machine that ran it.
pub(super) fn is_there(run: &StoredRun) -> bool {
    run.facts.drawn.measured_on.is_none() && !chosen(run).is_empty()
}

/// What a search expected beside what was published of the plan that ran.
fn published(row: &SummaryRow, pair: Pair) -> Option<Pair> {
    let measured = row.published.step.filter(|_| !row.published.other_plan)?;
    Some(Pair { measured, ..pair })
}

/// The searches of a run: a panel per cluster and number of GPUs, a series per system that chose its plan.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let chosen = chosen(run);
    let mut settings: Vec<(&str, u32)> = Vec::new();
    for (row, _) in &chosen {
        let setting = (row.key.cluster.as_str(), row.key.gpus);
        if !settings.contains(&setting) {
            settings.push(setting);
        }
    }
    let measured = |setting| -> Vec<Pair> {
        let of = chosen.iter().filter(|(row, _)| (row.key.cluster.as_str(), row.key.gpus) == setting);
        of.filter_map(|&(row, pair)| published(row, pair)).collect()
    };
    let panels = settings.into_iter().map(|setting| {
        let pairs = |system: Option<&str>| -> Vec<Pair> {
            let of = chosen.iter().filter(|(row, _)| (row.key.cluster.as_str(), row.key.gpus) == setting);
            of.filter(|(row, _)| system.is_none_or(|system| row.key.system == *system)).map(|(_, pair)| *pair).collect()
        };
        let systems = labels::systems(run).into_iter().map(|name| (name, pairs(Some(name))));
        let series = systems.filter(|(_, pairs)| !pairs.is_empty());
        ScatterPanel {
            title: format!("{}, {} GPUs", setting.0, setting.1),
            series: series.map(|(name, pairs)| self::series(&title(name), looks::ink(name), &pairs, 1.0)).collect(),
            notes: match notes(&measured(setting)) {
                none if none.is_empty() => none,
                some => [vec!["of published:".to_owned()], some].concat(),
            },
        }
    });
    PaperFigure {
        name: "performance_model".to_owned(),
        caption: format!(
            "What searches expected against what runs took; {}; a point per case: what a system's search expected of the plan \
             that it picked (from four profiled iterations, or an even routing where the estimate is uniform), and the mean of \
             the simulated run over whole placement periods after warm-up; band: within 10% of the run; both are of one model: this \
             is no error of it; MAPE and R²: what was expected against published times of the plans that ran, where there are{}.",
            run.facts.origin,
            look_notes(run),
        ),
        chart: AnyChart::Scatter(Scatter {
            x_label: "Simulated iteration time (s)".to_owned(),
            y_label: "Expected by the search (s)".to_owned(),
            panels: panels.collect(),
            band: Some(0.1),
            log: true,
            ..Scatter::default()
        }),
    }
}

/// A series of pairs, measured to the right and predicted upwards, in units of `1 / scale`.
pub fn series(name: &str, ink: usize, pairs: &[Pair], scale: f64) -> ScatterSeries {
    let points = pairs.iter().map(|pair| (pair.measured * scale, pair.predicted * scale)).collect();
    ScatterSeries { name: name.to_owned(), ink, points }
}

/// Mean error and R^2, for a panel.
pub fn notes(pairs: &[Pair]) -> Vec<String> {
    let Some(errors) = Errors::new(pairs) else { return Vec::new() };
    let mut notes = vec![format!("MAPE {:.1} %", errors.mean * 100.0)];
    notes.extend(errors.r_squared.map(|r| format!("R² {r:.2}")));
    notes
}
