//! `performance_model`: predicted against measured times, as in the paper's figure 11.

use chart::{AnyChart, Scatter, ScatterPanel};
use runs::figures::performance_model::{notes, series};
use runs::figures::{PaperFigure, title};
use runs::looks;
use runs::summary::errors::Pair;

use crate::measurements::layers::LayerErrors;
use crate::measurements::order::IterationErrors;

/// Whole iterations: a panel per number of GPUs, a series per system; `name` is that of its files.
pub fn end_to_end(name: &str, report: &IterationErrors) -> PaperFigure {
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
        let series = systems.iter().map(|name| series(&title(name), looks::ink(name), &pairs(Some(name)), 1.0));
        ScatterPanel { title: format!("{gpus} GPUs"), series: series.collect(), notes: notes(&pairs(None)) }
    });
    scatter(name, "Predicted against measured iteration times", panels.collect(), "iteration time (s)", 0.1)
}

/// Single layers: a panel per setting; `name` is that of its files.
pub fn moe_layer(name: &str, settings: &[LayerErrors]) -> PaperFigure {
    let panels = settings.iter().map(|setting| ScatterPanel {
        title: format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch),
        series: vec![series("", 0, &setting.pairs, 1e3)],
        notes: notes(&setting.pairs),
    });
    scatter(name, "Predicted against measured times of single layers", panels.collect(), "layer time (ms)", 0.05)
}

fn scatter(name: &str, shown: &str, panels: Vec<ScatterPanel>, what: &str, band: f64) -> PaperFigure {
    let chart = Scatter {
        x_label: format!("Measured {what}"),
        y_label: format!("Predicted {what}"),
        panels,
        band: Some(band),
        ..Scatter::default()
    };
    PaperFigure {
        name: name.to_owned(),
        chart: AnyChart::Scatter(chart),
        caption: format!("{shown}; predicted: simulated; band: within {:.0}% of the measurement.", band * 100.0),
    }
}
