//! `adaptive`: one layer's time over training, experts in order and placed online, as in the paper's figure 13: a panel per
//! case of a suite.

use chart::{Figure, FigureError, Frame, LineChart, LinePanel, LineSeries};
use workloads::{Case, Suite};

use super::{error_notes, title, unreached_periods};
use crate::records::{Row, RowsByRun};
use crate::summary::Summary;

/// Lines with more points than this are drawn through means.
const MOST_POINTS: usize = 600;

/// Draws a suite's layers over their iterations: a panel per case, a line per system.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, rows: &RowsByRun, origin: &str) -> Result<Figure, FigureError> {
    let bin = suite.iterations.div_ceil(MOST_POINTS).max(1);
    let panels = suite.cases.iter().map(|case| case_panel(suite, case, summary, rows, bin));
    let means = if bin > 1 { format!(", means of {bin} iterations") } else { String::new() };
    LineChart {
        frame: Frame {
            footnote: format!(
                "{origin}; time of the layer alone{means}; what deciding and moving experts takes is in the gain; placements \
                 follow the iterations before them (the paper's followed the very iteration that they served); gain: by totals \
                 over whole placement periods after {} iterations of warm-up (published: by sums over all){}{}",
                suite.warmup,
                unreached_periods(summary),
                error_notes(summary)
            ),
            ..Frame::default()
        },
        x_label: "Iteration".to_owned(),
        panels: panels.collect(),
        mark_label: "experts moved".to_owned(),
        log_x: false,
    }
    .draw()
}

fn case_panel(suite: &Suite, case: &Case, summary: &Summary, rows: &RowsByRun, bin: usize) -> LinePanel {
    let id = case.id();
    let lines = suite.systems.iter().enumerate().map(|(ink, system)| LineSeries {
        name: title(system),
        ink,
        ..line(suite, rows.of(&id, system), bin)
    });
    LinePanel {
        title: panel_title(suite, case, summary),
        y_label: "Layer time (ms)".to_owned(),
        series: lines.collect(),
        from_zero: true,
    }
}

/// The setting, the gain of each system over the baseline, and the published one.
fn panel_title(suite: &Suite, case: &Case, summary: &Summary) -> String {
    let mut title = case.layer.map_or(case.id(), |layer| format!("layer {layer}"));
    for system in suite.systems.iter().filter(|name| **name != suite.baseline) {
        let every = case.plans.get(system).map_or(0, |plan| plan.placement_every);
        if every > 0 {
            title += &format!(", placed every {every} iterations");
        }
        let row = summary.row(&case.id(), system);
        let Some((row, gain)) = row.and_then(|row| Some((row, row.speedup.as_ref()?))) else { continue };
        let published = row.published.speedup_by_sums.map_or(String::new(), |gain| format!(", published {gain:.2}"));
        title += &format!(": gain {:.2} (by medians {:.2}{published})", gain.by_totals, gain.by_medians);
    }
    title
}

/// Layer times, less what deciding and moving took, as means of `bin` iterations, and stars where experts moved.
fn line(suite: &Suite, rows: &[&Row], bin: usize) -> LineSeries {
    let mut line = LineSeries::default();
    let (mut sum, mut count) = ((0.0, 0.0), 0);
    for (row, sample) in rows.iter().filter_map(|row| Some((row, row.sample.as_ref().ok()?))) {
        let ms = (sample.step.0 - sample.decision.0 - sample.migration.0) * 1e3;
        // Labels count training iterations from 1 where the suite does not say where it starts.
        let label = f64::from(suite.trace.start.unwrap_or(1))
            + (f64::from(row.iteration) - 1.0) * f64::from(suite.trace.stride);
        if sample.moved > 0 {
            line.marks.push((label, ms));
        }
        sum = (sum.0 + label, sum.1 + ms);
        count += 1;
        if count == bin {
            line.points.push((sum.0 / bin as f64, sum.1 / bin as f64));
            (sum, count) = ((0.0, 0.0), 0);
        }
    }
    line
}
