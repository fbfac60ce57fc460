//! `balancing`: what balancing brings against what it costs, a mark per system and a panel per model and cluster.

use chart::{AnyChart, Scatter, ScatterPanel, ScatterSeries};

use super::labels::{self, Part, in_words};
use super::{PaperFigure, look_notes, title};
use crate::looks;
use crate::records::RunKey;
use crate::stored::StoredRun;
use crate::summary::errors::mean;

/// Whether any system had slots for copies of experts.
pub(super) fn is_there(run: &StoredRun) -> bool {
    run.summary.rows.iter().any(|row| row.balancing(|of| of.redundant_slots as f64) > Some(0.0))
}

/// The figure of all cases.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let place = &run.facts.drawn.measured_on;
    let name = |key| (in_words(place, key, &[Part::Model, Part::Cluster, Part::Gpus]), key);
    let panels = labels::panels(labels::cases(run).into_iter().map(name));
    PaperFigure {
        name: "balancing".to_owned(),
        caption: format!(
            "What balancing brings against what it costs; {}; to the right: rows that the fullest rank of a group computes over the mean \
             of its ranks, mean over MoE layers, micro-batches and iterations after warm-up; upwards: what planning takes, and moving copies, their \
             gradients and experts, hidden or not; a mark per system, mean over the panel's cases; none unless all ran to their end{}.",
            run.facts.origin,
            look_notes(run),
        ),
        chart: AnyChart::Scatter(Scatter {
            x_label: "Fullest rank over the mean".to_owned(),
            y_label: "Cost (% of iteration)".to_owned(),
            panels: panels.into_iter().map(|(title, cases)| panel(run, title, &cases)).collect(),
            ..Scatter::default()
        }),
    }
}

fn panel(run: &StoredRun, name: String, cases: &[&RunKey]) -> ScatterPanel {
    let mark = |system: &str| {
        let of_case = |key: &&RunKey| {
            let row = run.summary.row(&key.case, system)?;
            let share = row.balancing(|of| of.cost.0)? / row.step?.mean;
            Some((row.balancing(|of| of.max_over_mean)?, share * 100.0))
        };
        let (even, share): (Vec<f64>, Vec<f64>) = cases.iter().filter_map(of_case).unzip();
        let points = mean(&even).zip(mean(&share)).filter(|_| even.len() == cases.len()).into_iter().collect();
        ScatterSeries { name: title(system), ink: looks::ink(system), points }
    };
    ScatterPanel { title: name, series: labels::systems(run).into_iter().map(mark).collect(), notes: Vec::new() }
}
