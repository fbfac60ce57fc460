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
        let speedup = row.speedup.as_ref()?;
        let (period, pairs) = (speedup.unreached_period?, speedup.pairs);
        let RunKey { case, system, .. } = &*row.key;
        Some(format!("{case} {system}: no whole placement period of {period}: every iteration counts ({pairs})"))
    };
    summary.rows.iter().filter_map(unreached).collect()
}

/// Why runs ended early, one line each.
pub fn failures(summary: &Summary) -> Vec<String> {
    let failed = summary.rows.iter().filter_map(|row| Some((&row.key, row.failure.as_ref()?)));
    failed.map(|(key, failure)| format!("{} {}: {failure}", key.case, key.system)).collect()
}

/// A word of a command, with quotes where a shell needs them.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}
