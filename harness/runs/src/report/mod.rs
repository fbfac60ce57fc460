//! What is written and printed of a summary: a table for terminals, tables for papers, notes, and pages.

pub mod beside;
pub mod html;
pub mod mllog;
pub mod page;
pub mod paper;
pub mod values;

use comfy_table::{CellAlignment, Table, presets};

use workloads::Case;

use crate::records::RunKey;
use crate::summary::{Summary, SummaryRow};

/// A table without borders, the given columns aligned to the right.
pub fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header.iter().copied());
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A summary as words, for a terminal.
pub struct TextTable {
    pub header: Vec<String>,
    /// A row per case and system.
    pub rows: Vec<Vec<String>>,
    /// The first columns, which hold words; the others hold numbers.
    pub text_columns: usize,
}

impl TextTable {
    /// Per case and system: plan, mean and median iteration time, speedup over the baseline by totals, with its spread, and
    /// by medians, by totals over each of `compare`, what was published, and the model's error (`+6%`: of this run's time;
    /// `±4%`: median of the cluster's measurements, of those that no fit saw where there are such; unknown where nothing like
    /// it was measured).
    pub fn new(summary: &Summary, compare: &[String]) -> Self {
        let mut header = ["case", "system", "plan", "mean", "median"].map(str::to_owned).to_vec();
        let (baseline, spread_over) = (&summary.baseline, summary.spread_over());
        header.extend([format!("totals over {baseline}"), format!("spread over {spread_over}")]);
        header.push(format!("medians over {baseline}"));
        header.extend(compare.iter().map(|name| format!("totals over {name}")));
        let last_columns = if summary.is_trained() { TRAINED } else { SIMULATED };
        header.extend(last_columns.iter().map(|&name| name.to_owned()));
        let mut last = "";
        let mut rows = Vec::new();
        for row in &summary.rows {
            let case = if row.key.case == last { "" } else { &row.key.case };
            last = &row.key.case;
            let over = compare.iter().map(|name| summary.row(&row.key.case, name)).collect::<Vec<_>>();
            let mut cells = [name_cells(row, case), time_cells(row), speedup_cells(row, &over)].concat();
            if row.step.is_some() {
                cells.extend(if row.key.engine.trains() { trained_cells(row) } else { simulated_cells(row) });
            }
            cells.resize(header.len(), String::new());
            rows.push(cells);
        }
        Self { header, rows, text_columns: 3 }
    }

    /// For a terminal.
    pub fn to_table(&self) -> Table {
        let names: Vec<&str> = self.header.iter().map(String::as_str).collect();
        let numbers: Vec<usize> = (self.text_columns..names.len()).collect();
        let mut table = table(&names, &numbers);
        for row in &self.rows {
            table.add_row(row);
        }
        table
    }
}

/// What is known of a simulated run besides its time, and of a trained one.
const SIMULATED: &[&str] = &["of ideal", "online", "peak", "published medians", "model error"];
const TRAINED: &[&str] = &["online", "peak", "loss", "simulated"];

fn name_cells(row: &SummaryRow, case: &str) -> Vec<String> {
    let plan = row.key.plan.map_or("none".to_owned(), |plan| plan.to_string());
    vec![case.to_owned(), row.key.system.clone(), plan]
}

/// Mean and median, or how the run failed.
fn time_cells(row: &SummaryRow) -> Vec<String> {
    match row.step {
        Some(step) => [step.mean, step.median].map(|time| format!("{:.0} ms", time * 1e3)).to_vec(),
        None => vec![row.status().name().to_uppercase(), String::new()],
    }
}

fn speedup_cells(row: &SummaryRow, over: &[Option<&SummaryRow>]) -> Vec<String> {
    let text = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}x"));
    let speedup = row.speedup.as_ref();
    let spread = speedup.and_then(|speedup| speedup.spread);
    let mut cells = vec![
        text(speedup.map(|speedup| speedup.by_totals)),
        spread.map_or(String::new(), |[low, high]| format!("{low:.2} to {high:.2}")),
        text(speedup.map(|speedup| speedup.by_medians)),
    ];
    cells.extend(over.iter().map(|other| text(other.and_then(|other| Some(row.over(other)?.by_totals)))));
    cells
}

/// Of the columns that simulated and trained runs share.
fn shared_cells(row: &SummaryRow) -> Vec<String> {
    let peak = row.peak_bytes.map_or(String::new(), |bytes| format!("{:.1} GB", bytes / 1e9));
    vec![format!("{:.2}%", row.online_share * 100.0), peak]
}

fn simulated_cells(row: &SummaryRow) -> Vec<String> {
    let mut cells = vec![row.share_of_ideal.map_or(String::new(), |share| format!("{:.0}%", share * 100.0))];
    cells.extend(shared_cells(row));
    let other = if row.published.speedup_of_other_plan { " (other plan)" } else { "" };
    cells.push(row.published.speedup_by_medians.map_or(String::new(), |speedup| format!("{speedup:.2}x{other}")));
    cells.push(match (row.extrapolated, &row.model_error) {
        (Some(why), _) => format!("extrapolated: {why}"),
        (None, Some(error)) => error.label(),
        (None, None) => "unknown".to_owned(),
    });
    cells
}

fn trained_cells(row: &SummaryRow) -> Vec<String> {
    let mut cells = shared_cells(row);
    cells.push(row.loss.map_or(String::new(), |loss| format!("{loss:.3}")));
    cells.extend(row.predicted.zip(row.step).map(|(predicted, step)| {
        format!("{:.0} ms ({:+.0}%)", predicted * 1e3, (predicted / step.median - 1.0) * 100.0)
    }));
    cells
}

/// Three digits, or all before the point.
pub(crate) fn amount(value: f64) -> String {
    let digits = (2.0 - value.max(1e-3).log10().floor()).clamp(0.0, 4.0) as usize;
    format!("{value:.digits$}")
}

/// Where a system did not train what its case says, one line each.
pub fn differences<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Vec<String> {
    let differs =
        cases.into_iter().flat_map(|case| case.differs.iter().map(move |(system, what)| (case, system, what)));
    differs
        .map(|(case, system, what)| format!("{} {system}: not comparable as such: ran with {what}", case.id()))
        .collect()
}

/// What is not as in the other rows, one line each.
pub fn notes(cases: &[Case], summary: &Summary) -> Vec<String> {
    [differences(cases), unreached_periods(summary), failures(summary)].concat()
}

/// Which runs were shorter than a placement period, one line each.
pub fn unreached_periods(summary: &Summary) -> Vec<String> {
    let unreached = |row: &SummaryRow| {
        let (period, step) = row.speedup.as_ref()?.unreached_period.zip(row.step)?;
        let RunKey { case, system, .. } = &*row.key;
        Some(format!(
            "{case} {system}: no whole placement period of {period}: every iteration counts ({})",
            step.counted
        ))
    };
    summary.rows.iter().filter_map(unreached).collect()
}

/// Why runs ended early, one line each.
pub fn failures(summary: &Summary) -> Vec<String> {
    let failed = summary.rows.iter().filter_map(|row| Some((&row.key, row.failure.as_ref()?)));
    failed.map(|(key, failure)| format!("{} {}: {failure}", key.case, key.system)).collect()
}
