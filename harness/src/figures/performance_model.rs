//! `performance_model`: predicted against measured times, as in the paper's figure 11; and what offline searches expected
//! against what the simulated runs took.

use workloads::Suite;

use super::title;
use crate::measurements::errors::{Errors, Pair};
use crate::measurements::layers::LayerErrors;
use crate::measurements::order::IterationErrors;
use crate::summary::{Summary, SummaryRow};
use chart::{Frame, Scatter, ScatterPanel, ScatterSeries};

/// Whole iterations: a panel per number of GPUs, a series per system.
pub fn end_to_end(report: &IterationErrors) -> Scatter {
    let mut gpus: Vec<usize> = report.lines.iter().map(|line| line.gpus).collect();
    gpus.sort_unstable();
    gpus.dedup();
    let mut systems: Vec<&str> = Vec::new();
    for line in report.lines.iter().filter(|line| line.error.is_some()) {
        if !systems.contains(&line.system.as_str()) {
            systems.push(&line.system);
        }
    }
    let panels = gpus.into_iter().map(|gpus| {
        let pairs = |system: Option<&str>| -> Vec<Pair> {
            report
                .lines
                .iter()
                .filter(|line| line.gpus == gpus && system.is_none_or(|system| line.system == system))
                .filter_map(|line| line.measured.zip(line.predicted))
                .map(|(measured, predicted)| Pair { predicted, measured })
                .collect()
        };
        let series = systems.iter().enumerate().map(|(ink, system)| series(system, ink, &pairs(Some(system)), 1.0));
        ScatterPanel { title: format!("{gpus} GPUs"), series: series.collect(), notes: notes(&pairs(None)) }
    });
    scatter(panels.collect(), "iteration time (s)", 0.1)
}

/// Single layers: a panel per setting.
pub fn moe_layer(settings: &[LayerErrors]) -> Scatter {
    let panels = settings.iter().map(|setting| ScatterPanel {
        title: format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch),
        series: vec![series("", 0, &setting.pairs, 1e3)],
        notes: notes(&setting.pairs),
    });
    scatter(panels.collect(), "layer time (ms)", 0.05)
}

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

fn scatter(panels: Vec<ScatterPanel>, what: &str, band: f64) -> Scatter {
    Scatter {
        frame: Frame {
            footnote: format!("predicted: simulated; band: within {:.0}% of the measurement", band * 100.0),
            ..Frame::default()
        },
        x_label: format!("Measured {what}"),
        y_label: format!("Predicted {what}"),
        panels,
        band: Some(band),
        log: false,
    }
}

fn series(name: &str, ink: usize, pairs: &[Pair], scale: f64) -> ScatterSeries {
    let points = pairs.iter().map(|pair| (pair.measured * scale, pair.predicted * scale)).collect();
    ScatterSeries { name: name.to_owned(), ink, points }
}

fn notes(pairs: &[Pair]) -> Vec<String> {
    let Some(errors) = Errors::new(pairs) else { return Vec::new() };
    let mut notes = vec![format!("MAPE {:.1} %", errors.mean * 100.0)];
    notes.extend(errors.r_squared.map(|r| format!("R² {r:.2}")));
    notes
}
