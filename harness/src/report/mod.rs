//! What a run prints: the final table.

pub mod html;
pub mod latex;
pub mod page;
pub mod timeline;

use comfy_table::{CellAlignment, Table, presets};

use workloads::Case;

use crate::summary::statistics::Median;
use crate::summary::{ModelError, Row, Summary};

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

/// A summary as words: what terminals, HTML and LaTeX show alike.
pub struct Words {
    /// Names of the columns.
    pub header: Vec<String>,
    /// A row per case and system.
    pub rows: Vec<Vec<String>>,
    /// Columns of words; the others hold numbers.
    pub text_columns: usize,
}

impl Words {
    /// Per case and system: plan, median iteration time, speedup over the baseline and over `other`, what was published for
    /// the former, and the model's error (`+6%`: of this run's time; `±4%`: the cluster's median).
    pub fn new(summary: &Summary, other: Option<&str>) -> Self {
        let over = |name: &str| format!("over {name}");
        let mut header = ["case", "system", "plan", "median", "± 95%"].map(str::to_owned).to_vec();
        header.push(over(&summary.baseline));
        header.extend(other.map(over));
        let last_columns = if simulated(summary) { SIMULATED } else { TRAINED };
        header.extend(last_columns.iter().map(|&name| name.to_owned()));
        let mut last = "";
        let mut rows = Vec::new();
        for row in &summary.rows {
            let case = if row.case == last { "" } else { &row.case };
            last = &row.case;
            let reference = other.and_then(|name| summary.row(&row.case, name));
            let mut cells = cells(row, case, reference, other.is_some(), simulated(summary));
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
const SIMULATED: &[&str] = &["online", "peak", "published", "model error"];
const TRAINED: &[&str] = &["online", "peak", "loss", "simulated"];

fn simulated(summary: &Summary) -> bool {
    summary.rows.iter().all(|row| row.loss.is_none())
}

fn cells(row: &Row, case: &str, reference: Option<&Row>, with_reference: bool, simulated: bool) -> Vec<String> {
    let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |r| format!("{r:.2}x"));
    let mut cells = vec![case.to_owned(), row.system.clone(), row.plan.clone().unwrap_or_else(|| "none".into())];
    match row.step {
        Some(Median { value, low, high }) => {
            cells.push(format!("{:.0} ms", value * 1e3));
            cells.push(format!("{:.1}%", (high - low) / 2.0 / value * 100.0));
        }
        None => cells.extend([row.status.to_uppercase(), String::new()]),
    }
    cells.push(ratio(row.speedup.map(|s| s.value)));
    if with_reference {
        let median = |row: &Row| row.step.map(|step| step.value);
        cells.push(ratio(reference.and_then(median).zip(median(row)).map(|(theirs, ours)| theirs / ours)));
    }
    if row.step.is_some() {
        cells.push(format!("{:.2}%", row.online_share * 100.0));
        let peak = row.peak_bytes.map_or(String::new(), |bytes| format!("{:.1} GB", bytes / 1e9));
        cells.push(peak);
        if !simulated {
            cells.push(row.loss.map_or(String::new(), |loss| format!("{loss:.3}")));
            cells.extend(row.predicted.zip(row.step).map(|(predicted, step)| {
                format!("{:.0} ms ({:+.0}%)", predicted * 1e3, (predicted / step.value - 1.0) * 100.0)
            }));
            return cells;
        }
        cells.push(row.published.speedup.map_or(String::new(), |speedup| format!("{speedup:.2}x")));
        cells.push(row.model_error.as_ref().map_or("unknown".into(), ModelError::label));
    }
    cells
}

/// Where a system did not train what its case says, one line each.
pub fn differences<'a>(cases: impl IntoIterator<Item = &'a Case>) -> Vec<String> {
    let differs =
        cases.into_iter().flat_map(|case| case.differs.iter().map(move |(system, what)| (case, system, what)));
    differs
        .map(|(case, system, what)| format!("{} {system}: not comparable as such: ran with {what}", case.id()))
        .collect()
}

/// Why runs ended early, one line each.
pub fn failures(summary: &Summary) -> Vec<String> {
    summary
        .rows
        .iter()
        .filter(|row| row.status != "ok")
        .map(|row| format!("{} {}: {}: {}", row.case, row.system, row.status, row.reason))
        .collect()
}
