//! `layers`: speedup of each MoE layer alone, as in the paper's figure 12: a panel per setting, a group per layer, a bar
//! per system other than the baseline.

use chart::{AnyChart, GroupedBars, Panel, Series};

use super::labels::{self, CaseLabels, Part};
use super::{PaperFigure, bars_note, end_to_end, engine_note, error_notes, look_notes, title};
use crate::looks;
use crate::records::RunKey;
use crate::stored::StoredRun;

/// The figure of a run of layers.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let (cases, baseline) = (labels::cases(run), &run.summary.baseline);
    let others: Vec<&str> = labels::systems(run).into_iter().filter(|name| *name != baseline).collect();
    let labels = CaseLabels::new(run, &cases, &[Part::Model, Part::Cluster, Part::Gpus, Part::Gate, Part::Rest]);
    let settings = CaseLabels::new(run, &cases, &[Part::Layer]);
    let group = |key: &RunKey| {
        let mut group = end_to_end::group(key, &labels, others.iter().copied(), &run.summary);
        // Every bar has the same error, which the caption states.
        group.bars.iter_mut().for_each(|bar| bar.aside = None);
        group
    };
    let panels = labels::panels(cases.iter().map(|key| (settings.whole(key), group(key))));
    PaperFigure {
        name: "layers".to_owned(),
        caption: format!(
            "Speedup of MoE layers over {}{}; {}; one layer, forward and backward, deciding and moving experts included; {}{}; \
             {}{}.",
            title(baseline),
            settings.common(),
            run.facts.origin,
            bars_note(run),
            error_notes(&run.summary),
            whole_gain(&others, run),
            look_notes(run),
        ),
        chart: AnyChart::Bars(GroupedBars {
            y_label: format!("Speedup over {} ({})", title(baseline), engine_note(run)),
            x_label: "MoE layer".to_owned(),
            series: others.iter().map(|name| Series::new(title(name), looks::ink(name))).collect(),
            panels: panels.into_iter().map(|(title, groups)| Panel { title, groups }).collect(),
            reference: Some(1.0),
            second_label: "by medians".to_owned(),
            ..GroupedBars::default()
        }),
    }
}

/// Speedup of all layers together: the ratio of their mean times, added up.
fn whole_gain(others: &[&str], run: &StoredRun) -> String {
    let summary = &run.summary;
    let gain = |system: &str| {
        let (mut reference, mut own) = (0.0, 0.0);
        for row in summary.rows.iter().filter(|row| row.key.system == system) {
            let baseline = summary.row(&row.key.case, &summary.baseline).and_then(|row| row.step);
            if let Some((baseline, step)) = baseline.zip(row.step) {
                reference += baseline.mean;
                own += step.mean;
            }
        }
        format!("{} {:.2}", title(system), reference / own)
    };
    let gains: Vec<String> = others.iter().map(|name| gain(name)).collect();
    format!("all layers together, by totals: {}", gains.join(", "))
}
