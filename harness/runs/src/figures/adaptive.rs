//! `adaptive`: one layer's time over training, experts in order and placed online, as in the paper's figure 13: a panel per
//! case of a suite.

use chart::{AnyChart, LineChart, LinePanel, LineSeries};
use workloads::suite::TraceUse;

use super::labels::{self, CaseLabels};
use super::{PaperFigure, engine_note, error_notes, first_seed, look_notes, seed_note, title, unreached_periods};
use crate::looks;
use crate::records::{Row, RowsByRun, RunKey};
use crate::stored::StoredRun;

/// Lines with more points than this are drawn through means.
const MOST_POINTS: usize = 600;

/// The layers of a run over their iterations: a panel per case, a line per system.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let (cases, rows) = (labels::cases(run), RowsByRun::new(&run.rows));
    let labels = CaseLabels::new(run, &cases, &[]);
    let bin = run.provenance.inputs.iterations.div_ceil(MOST_POINTS).max(1);
    let means = if bin > 1 { format!(", means of {bin} iterations") } else { String::new() };
    let gains: Vec<String> = cases.iter().flat_map(|key| gains(run, &labels, key)).collect();
    let over = title(&run.summary.baseline);
    let gains = if gains.is_empty() { String::new() } else { format!("; gain over {over}: {}", gains.join("; ")) };
    PaperFigure {
        name: "adaptive".to_owned(),
        caption: format!(
            "Time of a MoE layer over the iterations{}{}{gains}; {}; time of the layer alone{means}; what deciding and \
             moving experts takes is in the gain; placements follow the iterations before them (the paper's followed the very \
             iteration that they served); gain: by totals over whole placement periods after {} iterations of warm-up \
             (published: by sums over all){}{}{}.",
            seed_note(run),
            labels.common(),
            run.facts.origin,
            run.facts.warmup,
            unreached_periods(&run.summary),
            error_notes(&run.summary),
            look_notes(run),
        ),
        chart: AnyChart::Lines(LineChart {
            x_label: "Iteration".to_owned(),
            panels: cases.iter().map(|key| panel(run, &labels, key, &rows, bin)).collect(),
            mark_label: "experts moved".to_owned(),
            ..LineChart::default()
        }),
    }
}

fn panel(run: &StoredRun, labels: &CaseLabels, key: &RunKey, rows: &RowsByRun, bin: usize) -> LinePanel {
    let lines = labels::systems(run).into_iter().map(|system| LineSeries {
        name: title(system),
        ink: looks::ink(system),
        ..line(run.facts.drawn.trace, first_seed(rows.of(&key.case, system)), bin)
    });
    LinePanel {
        title: labels.whole(key),
        y_label: format!("Layer time (ms, {})", engine_note(run)),
        series: lines.collect(),
        from_zero: true,
    }
}

/// The gain of each system over the baseline on a case, and the published one.
fn gains(run: &StoredRun, labels: &CaseLabels, key: &RunKey) -> Vec<String> {
    let rows = run.summary.rows.iter().filter(|row| row.key.case == key.case && row.key.system != run.summary.baseline);
    let gain = |row: &crate::summary::SummaryRow| {
        let gain = row.speedup.as_ref()?;
        let every = row.key.plan.map_or(0, |plan| plan.placement_every);
        let placed = if every > 0 { format!(" placing every {every} iterations") } else { String::new() };
        let published = row.published.speedup_by_sums.map_or(String::new(), |gain| format!(", published {gain:.2}"));
        let case = labels.whole(key);
        let on = if case.is_empty() { String::new() } else { format!(" on {case}") };
        let system = title(&row.key.system);
        Some(format!("{system}{placed}{on} {:.2} (by medians {:.2}{published})", gain.by_totals, gain.by_medians))
    };
    rows.filter_map(gain).collect()
}

/// Layer times, less what deciding and moving took, as means of `bin` iterations, and stars where experts moved.
fn line(trace: TraceUse, rows: &[&Row], bin: usize) -> LineSeries {
    let mut line = LineSeries::default();
    let (mut sum, mut count) = ((0.0, 0.0), 0);
    for (row, sample) in rows.iter().filter_map(|row| Some((row, row.sample.as_ref().ok()?))) {
        let ms = (sample.step.0 - sample.decision.0 - sample.migration.0) * 1e3;
        // Labels count training iterations from 1 where the suite does not say where it starts.
        let label = f64::from(trace.start.unwrap_or(1)) + (f64::from(row.iteration) - 1.0) * f64::from(trace.stride);
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
