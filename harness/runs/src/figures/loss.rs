//! `loss`: the loss of every iteration, a panel per case, a line per system, between the entropies of the data where they
//! are known. Systems that train the same model lie on one another.

use chart::{AnyChart, LineChart, LinePanel, LineSeries};

use super::labels::{self, CaseLabels};
use super::{PaperFigure, first_seed, look_notes, seed_note, title};
use crate::looks;
use crate::records::{Row, RowsByRun};
use crate::stored::StoredRun;

/// Looks of the two entropies, which no system has: greys and dashes of their own.
const ENTROPIES: [(&str, usize); 2] =
    [("entropy of the language", chart::LOOKS - 2), ("unigram entropy", chart::LOOKS - 10)];

/// The losses of a run.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let (rows, cases) = (RowsByRun::new(&run.rows), labels::cases(run));
    let labels = CaseLabels::new(run, &cases, &[]);
    let point = |row: &&Row| Some((f64::from(row.iteration), row.sample.as_ref().ok()?.loss?));
    let end = run.provenance.inputs.iterations as f64;
    let unit = if run.facts.drawn.of_lines { "line of the log" } else { "iteration" };
    let panels =
        cases.iter().map(|key| {
            let systems = labels::systems(run).into_iter().map(|system| LineSeries {
                name: title(system),
                ink: looks::ink(system),
                points: first_seed(rows.of(&key.case, system)).iter().filter_map(point).collect(),
                marks: Vec::new(),
            });
            let known = run.facts.drawn.entropies.get(&key.case);
            let entropies = ENTROPIES.into_iter().zip(known.into_iter().flatten()).map(|((name, ink), value)| {
                LineSeries { name: name.to_owned(), ink, points: vec![(1.0, *value), (end, *value)], marks: Vec::new() }
            });
            LinePanel {
                title: labels.whole(key),
                y_label: "Loss (nats per token)".to_owned(),
                series: systems.chain(entropies).collect(),
                from_zero: false,
            }
        });
    PaperFigure {
        name: "loss".to_owned(),
        caption: format!(
            "Loss of every {unit}{}{}; {}; systems that train the same model lie on one another{}.",
            seed_note(run),
            labels.common(),
            run.facts.origin,
            look_notes(run),
        ),
        chart: AnyChart::Lines(LineChart {
            x_label: if run.facts.drawn.of_lines { "Line of the log" } else { "Iteration" }.to_owned(),
            panels: panels.collect(),
            ..LineChart::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_system_looks_like_an_entropy() {
        for system in systems::ALL {
            assert!(ENTROPIES.iter().all(|(_, ink)| *ink != looks::ink(system.name())), "{}", system.name());
        }
    }
}
