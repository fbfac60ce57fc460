//! `layers`: speedup of each MoE layer alone, as in the paper's figure 12: a panel per setting, a group per layer, a bar
//! per system other than the baseline.

use workloads::{Case, Suite};

use super::{end_to_end, error_notes, statistic_note, title};
use crate::summary::Summary;
use chart::{Bar, Figure, FigureError, Frame, Group, GroupedBars, Panel, Series};

/// Draws the figure of a suite of layers.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, origin: &str) -> Result<Figure, FigureError> {
    let others: Vec<&String> = suite.systems.iter().filter(|name| **name != suite.baseline).collect();
    let mut settings: Vec<String> = suite.cases.iter().map(setting).collect();
    settings.dedup();
    let panels = settings.into_iter().map(|wanted| {
        let cases = suite.cases.iter().filter(|case| setting(case) == wanted);
        Panel { groups: cases.map(|case| group(case, &others, summary)).collect(), title: wanted }
    });
    let panels: Vec<Panel> = panels.collect();
    GroupedBars {
        frame: Frame {
            footnote: format!(
                "{origin}; one layer, forward and backward, deciding and moving experts included; {}{}; {}",
                statistic_note(suite, summary),
                error_notes(summary),
                whole_gain(&others, suite, summary),
            ),
            ..Frame::default()
        },
        y_label: format!("Speedup over {}", title(&suite.baseline)),
        x_label: "MoE layer".to_owned(),
        series: others.iter().map(|name| Series::new(title(name), ink(suite, name))).collect(),
        panels,
        reference: Some(1.0),
        second_label: "by medians".to_owned(),
    }
    .draw()
}

fn setting(case: &Case) -> String {
    let name = case.name.as_ref().map_or(String::new(), |name| format!(", {name}"));
    format!("{}, {} GPUs, {}{name}", case.cluster, case.gpus, case.gate)
}

fn group(case: &Case, others: &[&String], summary: &Summary) -> Group {
    let bars = others.iter().map(|system| match summary.row(&case.id(), system) {
        // Every bar has the same error, which the footnote states.
        Some(row) => Bar { aside: None, ..end_to_end::bar(row) },
        None => Bar::default(),
    });
    Group { label: case.layer.map_or(String::new(), |layer| layer.to_string()), bars: bars.collect() }
}

/// A system's look is that of the figures in which all systems have bars.
fn ink(suite: &Suite, system: &str) -> usize {
    suite.systems.iter().position(|name| name == system).unwrap_or(0)
}

/// Speedup of all layers together: the ratio of their mean times, added up.
fn whole_gain(others: &[&String], suite: &Suite, summary: &Summary) -> String {
    let gain = |system: &str| {
        let (mut reference, mut own) = (0.0, 0.0);
        for row in summary.rows.iter().filter(|row| row.key.system == system) {
            let baseline = summary.row(&row.key.case, &suite.baseline).and_then(|row| row.step);
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
