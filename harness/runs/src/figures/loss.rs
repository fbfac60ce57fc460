//! `loss`: the loss of every iteration, a panel per case, a line per system, between the entropies of the data where they
//! are known. Systems that train the same model lie on one another.

use chart::{Figure, FigureError, Frame, LineChart, LinePanel, LineSeries};
use workloads::Suite;

use super::title;
use crate::records::{Row, RowsByRun};

/// Draws the losses of a run; `entropies`: floor and unigram entropy per case, nats per token.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(
    suite: &Suite,
    rows: &RowsByRun,
    entropies: &[Option<[f64; 2]>],
    origin: &str,
) -> Result<Figure, FigureError> {
    let point = |row: &&Row| Some((f64::from(row.iteration), row.sample.as_ref().ok()?.loss?));
    let mut panels = Vec::new();
    for (case, entropy) in suite.cases.iter().zip(entropies) {
        let id = case.id();
        let mut series = Vec::new();
        for (ink, system) in suite.systems.iter().enumerate() {
            series.push(LineSeries {
                name: title(system),
                ink,
                points: rows.of(&id, system).iter().filter_map(point).collect(),
                marks: Vec::new(),
            });
        }
        let end = suite.iterations as f64;
        for (name, value) in ["entropy of the language", "unigram entropy"].into_iter().zip(entropy.iter().flatten()) {
            let points = vec![(1.0, *value), (end, *value)];
            series.push(LineSeries { name: name.to_owned(), ink: series.len(), points, marks: Vec::new() });
        }
        panels.push(LinePanel { title: id, y_label: "Loss (nats per token)".to_owned(), series, from_zero: false });
    }
    LineChart {
        frame: Frame {
            footnote: format!("{origin}; systems that train the same model lie on one another"),
            ..Frame::default()
        },
        x_label: "Iteration".to_owned(),
        panels,
        mark_label: String::new(),
        log_x: false,
    }
    .draw()
}
