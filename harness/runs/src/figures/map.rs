//! `map`: who is fastest where, over skew and the speed of the network between nodes: a panel per model and cluster.

use chart::{Figure, FigureError, Frame, HeatCell, HeatMap, HeatPanel, Series};
use workloads::{Case, Suite};

use super::title;
use crate::looks;
use crate::summary::{Summary, SummaryRow};
use crate::traces::each_once;

/// Draws a suite's winners: columns are routings, rows are factors of the network; a cell has the winner's look and its speedup
/// over the first system of `compare`, else over the baseline.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, origin: &str) -> Result<Figure, FigureError> {
    let over = suite.compare.first().unwrap_or(&suite.baseline);
    let settings: Vec<String> = suite.cases.iter().map(setting).collect();
    let panels = each_once(settings.iter().map(String::as_str)).into_iter().map(|of| panel(suite, summary, over, of));
    HeatMap {
        frame: Frame {
            footnote: format!(
                "{origin}; a cell has the look of the system with the least mean iteration, all costs charged, and its speedup by totals over {}; – \
                 where that one did not run to its end (OOM: out of memory)",
                title(over)
            ),
            ..Frame::default()
        },
        x_label: "Routing: entries of the fullest expert over the mean".to_owned(),
        y_label: "Network between nodes".to_owned(),
        series: suite.systems.iter().map(|name| Series::new(title(name), looks::ink(name))).collect(),
        panels: panels.collect(),
    }
    .draw()
}

/// What a panel is of: model, GPUs and cluster.
pub(super) fn setting(case: &Case) -> String {
    format!("{}, {} × {}", case.model, case.gpus, case.cluster)
}

fn column(case: &Case) -> String {
    let stated = case.routing.first();
    stated.map_or("trace".to_owned(), |routing| routing.label().trim_start_matches("max").to_owned())
}

fn row(case: &Case) -> String {
    format!("×{}", case.network.unwrap_or(1.0))
}

fn panel(suite: &Suite, summary: &Summary, over: &str, of: &str) -> HeatPanel {
    let cases: Vec<&Case> = suite.cases.iter().filter(|case| setting(case) == of).collect();
    let named = |of: fn(&Case) -> String| -> Vec<String> {
        let all: Vec<String> = cases.iter().map(|case| of(case)).collect();
        each_once(all.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
    };
    let (columns, rows) = (named(column), named(row));
    let cell = |at: &String, along: &String| {
        let case = cases.iter().find(|case| row(case) == *at && column(case) == *along)?;
        winner(suite, summary, over, &case.id())
    };
    let cells = rows.iter().map(|at| columns.iter().map(|along| cell(at, along)).collect()).collect();
    HeatPanel { title: of.to_owned(), columns, rows, cells }
}

/// The fastest system of a case; of equal ones the first.
fn winner(suite: &Suite, summary: &Summary, over: &str, case: &str) -> Option<HeatCell> {
    let time = |row: &SummaryRow| row.step.map(|step| step.mean);
    let rows = suite.systems.iter().filter_map(|name| Some((looks::ink(name), summary.row(case, name)?)));
    let ended = rows.filter_map(|(ink, row)| Some((time(row)?, ink, row)));
    let (_, ink, row) = ended.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let speedup = summary.row(case, over).and_then(|reference| row.over(reference));
    let label = speedup.map_or("OOM".to_owned(), |speedup| format!("{:.2}", speedup.by_totals));
    Some(HeatCell { ink, label })
}
