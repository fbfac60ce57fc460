//! `performance_model`: what offline searches expected against what the simulated runs took, as in the paper's figure 11.

use workloads::Suite;

use super::title;
use crate::summary::errors::{Errors, Pair};
use crate::summary::{Summary, SummaryRow};
use chart::{Frame, Scatter, ScatterPanel, ScatterSeries};

/// The searches of a suite: a panel per cluster and number of GPUs, a series per system that chose its plan.
pub fn searches(suite: &Suite, summary: &Summary, origin: &str) -> Scatter {
    let pair = |row: &SummaryRow| {
        row.key.expected.zip(row.step).map(|(predicted, step)| Pair { predicted: predicted.0, measured: step.mean })
    };
    let chosen: Vec<(&SummaryRow, Pair)> = summary.rows.iter().filter_map(|row| Some((row, pair(row)?))).collect();
    let mut settings: Vec<(&str, u32)> =
        chosen.iter().map(|(row, _)| (row.key.cluster.as_str(), row.key.gpus)).collect();
    settings.dedup();
    let panels = settings.into_iter().map(|setting| {
        let pairs = |system: Option<&String>| -> Vec<Pair> {
            let of = chosen.iter().filter(|(row, _)| (row.key.cluster.as_str(), row.key.gpus) == setting);
            of.filter(|(row, _)| system.is_none_or(|system| row.key.system == *system)).map(|(_, pair)| *pair).collect()
        };
        let systems = suite.systems.iter().enumerate();
        ScatterPanel {
            title: format!("{}, {} GPUs", setting.0, setting.1),
            series: systems.map(|(ink, name)| series(&title(name), ink, &pairs(Some(name)), 1.0)).collect(),
            notes: notes(&pairs(None)),
        }
    });
    Scatter {
        frame: Frame {
            footnote: format!(
                "{origin}; a point per case: what a system's search expected of the plan that it picked (from four profiled \
                 iterations, or an even routing where the estimate is uniform), and the mean of the simulated run over \
                 whole placement periods after warm-up; band: within 10% of the run"
            ),
            ..Frame::default()
        },
        x_label: "Simulated iteration time (s)".to_owned(),
        y_label: "Expected by the search (s)".to_owned(),
        panels: panels.collect(),
        band: Some(0.1),
        log: true,
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
