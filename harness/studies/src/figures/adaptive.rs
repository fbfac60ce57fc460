//! `adaptive`: one layer's time over training, experts in order and placed online, as in the paper's figure 13: measured
//! above predicted.

use chart::{AnyChart, LineChart, LinePanel, LineSeries};
use runs::figures::PaperFigure;

use crate::measurements::series::{MeasuredStep, PredictedStep};

/// Times in ms; `name` is that of its files.
pub fn figure(name: &str, samples: &[MeasuredStep], steps: &[PredictedStep]) -> PaperFigure {
    let measured =
        samples.iter().map(|s| (s.iteration, s.measured_static, s.measured_online, s.measured_move == Some(true)));
    let predicted = samples.iter().zip(steps).map(|(s, step)| (s.iteration, step.in_order, step.online, step.moved));
    let chart = LineChart {
        x_label: "Iteration".to_owned(),
        panels: vec![panel("measured", measured), panel("predicted", predicted)],
        mark_label: "experts moved".to_owned(),
        ..LineChart::default()
    };
    PaperFigure {
        name: name.to_owned(),
        chart: AnyChart::Lines(chart),
        caption: "Layer time over iterations, experts in order and placed online; predicted: simulated.".to_owned(),
    }
}

fn panel(title: &str, rows: impl Iterator<Item = (usize, f64, f64, bool)>) -> LinePanel {
    let mut in_order = LineSeries { name: "experts in order".to_owned(), ..LineSeries::default() };
    let mut online = LineSeries { name: "placed online".to_owned(), ink: 1, ..LineSeries::default() };
    for (iteration, fixed, placed, moved) in rows {
        let x = iteration as f64;
        in_order.points.push((x, fixed * 1e3));
        online.points.push((x, placed * 1e3));
        if moved {
            online.marks.push((x, placed * 1e3));
        }
    }
    LinePanel {
        title: title.to_owned(),
        y_label: "Layer time (ms)".to_owned(),
        series: vec![in_order, online],
        from_zero: true,
    }
}
