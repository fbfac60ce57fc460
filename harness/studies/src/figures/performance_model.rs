//! `performance_model`: predicted against measured times, as in the paper's figure 11.

use chart::{Frame, Scatter, ScatterPanel};
use runs::figures::performance_model::{notes, series};
use runs::summary::errors::Pair;

use crate::measurements::layers::LayerErrors;
use crate::measurements::order::IterationErrors;

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
