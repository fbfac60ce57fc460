//! The page's tables: who wins each case, all numbers, and runs beside each other.

use std::collections::BTreeSet;

use chart::escape_xml;

use crate::figures;
use crate::report::amount;
use crate::report::html::answer::{CaseAnswer, time};
use crate::report::html::cases::Labels;
use crate::stored::StoredRun;
use crate::summary::SummaryRow;
use crate::summary::claims::{self, PaperClaim};

/// A cell: its text, and what it is sorted by where that is a number.
struct Cell {
    text: String,
    value: Option<f64>,
    /// What the script finds it by.
    class: &'static str,
}

impl Cell {
    fn words(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None, class: "" }
    }

    fn number(value: Option<f64>, text: impl Fn(f64) -> String) -> Self {
        Self { text: value.map_or(String::new(), text), value, class: "n" }
    }

    fn html(&self, heading: &str) -> String {
        let value = self.value.map_or(String::new(), |value| format!(" data-value=\"{value}\""));
        let class = if self.class.is_empty() { String::new() } else { format!(" class=\"{}\"", self.class) };
        format!("<td{class}{value} data-heading=\"{}\">{}</td>", escape_xml(heading), escape_xml(&self.text))
    }
}

/// A column, and a cell of it for each row.
struct Column {
    heading: String,
    cells: Vec<Cell>,
}

/// Columns without a text are left out. `attributes`: of each row.
fn table(caption: &str, columns: Vec<Column>, attributes: impl Fn(usize) -> String, class: &str) -> String {
    let columns: Vec<Column> =
        columns.into_iter().filter(|column| column.cells.iter().any(|cell| !cell.text.is_empty())).collect();
    let heads: String = columns
        .iter()
        .map(|column| {
            let number = column.cells.iter().any(|cell| cell.value.is_some());
            format!(
                "<th scope=\"col\"{}>{}</th>",
                if number { " class=\"n\"" } else { "" },
                escape_xml(&column.heading)
            )
        })
        .collect();
    let count = columns.first().map_or(0, |column| column.cells.len());
    let rows: String = (0..count)
        .map(|row| {
            let cells: String = columns.iter().map(|column| column.cells[row].html(&column.heading)).collect();
            format!("<tr{}>{cells}</tr>\n", attributes(row))
        })
        .collect();
    format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\"><table class=\"{class}\">\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
        caption = escape_xml(caption),
    )
}

/// Who wins each case.
pub(super) fn answers(cases: &[CaseAnswer], reference: &str) -> String {
    let column = |heading: &str, text: &dyn Fn(&CaseAnswer) -> String| Column {
        heading: heading.to_owned(),
        cells: cases.iter().map(|case| Cell::words(text(case))).collect(),
    };
    let columns = vec![
        column("case", &|case| case.case.clone()),
        column("fastest", &|case| case.winner.clone()),
        column(&format!("speed over {reference} (spread)"), &|case| case.speedup.clone()),
        column("saves most", &|case| case.why.clone()),
        column("but", &|case| case.but.clone()),
    ];
    table("who wins each case", columns, |_| String::new(), "answers")
}

/// Every row of every run.
pub(super) fn summary(runs: &[StoredRun], labels: &Labels) -> String {
    let rows: Vec<(usize, usize, &SummaryRow)> = runs
        .iter()
        .enumerate()
        .flat_map(|(run, stored)| stored.summary.rows.iter().enumerate().map(move |(index, row)| (run, index, row)))
        .collect();
    let column = |heading: &str, cell: &dyn Fn(usize, &SummaryRow) -> Cell| Column {
        heading: heading.to_owned(),
        cells: rows.iter().map(|(run, _, row)| cell(*run, row)).collect(),
    };
    let seconds = |value: Option<f64>| Cell::number(value, time);
    let mut columns = Vec::new();
    if runs.len() > 1 {
        columns.push(column("run", &|run, _| Cell::words(&labels.short()[run])));
    }
    columns.extend([
        column("case", &|run, row| Cell::words(labels.case(&runs[run], &row.key.case))),
        column("model", &|_, row| Cell::words(if labels.untold_model() { row.key.model.as_str() } else { "" })),
        column("system", &|_, row| Cell::words(figures::title(&row.key.system))),
        column("plan", &|_, row| Cell::words(row.key.plan.map_or("none".to_owned(), |plan| plan.to_string()))),
        column("mean", &|_, row| match row.step {
            Some(step) => seconds(Some(step.mean)),
            None => Cell { text: row.status().name().to_uppercase(), value: None, class: "n" },
        }),
        column("median", &|_, row| seconds(row.step.map(|step| step.median))),
        column("speedup", &|_, row| Cell {
            class: "n over",
            ..ratio(row.speedup.as_ref().map(|speedup| speedup.by_totals))
        }),
        column("spread", &|_, row| {
            let spread = row.speedup.as_ref().and_then(|speedup| speedup.spread);
            let text = spread.map_or(String::new(), |[low, high]| format!("{low:.2} to {high:.2}"));
            Cell { text, value: spread.map(|[low, high]| high - low), class: "n spread" }
        }),
        column("by medians", &|_, row| Cell {
            class: "n medians",
            ..ratio(row.speedup.as_ref().map(|speedup| speedup.by_medians))
        }),
        column("of ideal", &|_, row| percent(row.share_of_ideal, 0)),
        column("online", &|_, row| percent(row.step.map(|_| row.online_share).filter(|share| *share > 0.0), 2)),
        column("peak memory", &|_, row| Cell::number(row.peak_bytes, memory)),
        // Of what was really trained: more columns would push the model's error off the page of a simulated run.
        column("tokens/s", &|run, row| {
            let tokens = runs[run].tokens_per_second(row).filter(|_| row.key.engine.trains());
            Cell::number(tokens, |tokens| format!("{tokens:.0}"))
        }),
        column("MFU", &|run, row| percent(runs[run].mfu(row).filter(|_| row.key.engine.trains()), 1)),
        column("GPU hours per 1000 iterations", &|_, row| Cell::number(row.gpu_hours(), amount)),
        column("cost per 1000 iterations", &|_, row| Cell::number(row.cost(), amount)),
        column("loss", &|_, row| Cell::number(row.loss, |loss| format!("{loss:.3}"))),
        column("simulated beside", &|_, row| seconds(row.predicted)),
        column("published, by medians", &|_, row| {
            let other = if row.published.speedup_of_other_plan { " (other plan)" } else { "" };
            Cell::number(row.published.speedup_by_medians, |speedup| format!("{speedup:.2}x{other}"))
        }),
        column("model error", &|_, row| Cell::words(error(row))),
    ]);
    table(
        "all numbers",
        columns,
        |index| format!(" data-run=\"{}\" data-row=\"{}\"", rows[index].0, rows[index].1),
        "numbers",
    )
}

/// The heading of what ran beside what was published.
pub(super) const CLAIMS: &str = "Against what was published";

/// Published ratios of what ran, with verdicts; nothing where none is held against these cases and plans.
pub(super) fn claims(runs: &[StoredRun], labels: &Labels) -> String {
    let of_run = |(run, stored): (usize, &StoredRun)| {
        claims::claims(&stored.summary, &stored.facts.drawn.compare)
            .into_iter()
            .map(move |claim| (run, claim))
            .collect::<Vec<_>>()
    };
    let all: Vec<(usize, PaperClaim)> = runs.iter().enumerate().flat_map(of_run).collect();
    if all.is_empty() {
        return String::new();
    }
    let column = |heading: &str, cell: &dyn Fn(usize, &PaperClaim) -> Cell| Column {
        heading: heading.to_owned(),
        cells: all.iter().map(|(run, claim)| cell(*run, claim)).collect(),
    };
    let several = runs.len() > 1;
    let columns = vec![
        column("run", &|run, _| Cell::words(if several { labels.short()[run].as_str() } else { "" })),
        column("case", &|run, claim| Cell::words(labels.case(&runs[run], &claim.case))),
        column("speedup", &|_, claim| {
            let [system, over] = [&claim.system, &claim.over].map(|name| figures::title(name));
            Cell::words(format!("{system} over {over}, by {}", claim.statistic.label()))
        }),
        column("published", &|_, claim| ratio(Some(claim.published))),
        column("simulated", &|_, claim| match claim.simulated {
            Some(value) => ratio(Some(value)),
            None => Cell::words("failed"),
        }),
        column("verdict", &|_, claim| Cell::words(claim.verdict().label())),
    ];
    format!(
        "<section id=\"claims\"><h2>{CLAIMS}</h2>\n<p class=\"note\">Under the plans that ran. Reproduced: within \
         {:.0}% of the published ratio; within tolerance: within {:.0}%.</p>\n{}</section>\n",
        claims::REPRODUCED * 100.0,
        claims::TOLERATED * 100.0,
        table("against what was published", columns, |_| String::new(), "answers")
    )
}

fn memory(bytes: f64) -> String {
    if bytes < 1e8 { format!("{:.0} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

fn ratio(value: Option<f64>) -> Cell {
    Cell::number(value, |value| format!("{value:.2}x"))
}

fn percent(value: Option<f64>, digits: usize) -> Cell {
    Cell::number(value, |value| format!("{:.digits$}%", value * 100.0))
}

/// How far the model is from measurements, of a simulated time.
fn error(row: &SummaryRow) -> String {
    if row.key.engine.trains() || row.step.is_none() {
        return String::new();
    }
    match (row.extrapolated, &row.model_error) {
        (Some(why), _) => format!("extrapolated: {why}"),
        (None, Some(error)) => error.label(),
        (None, None) => "unknown".to_owned(),
    }
}

/// Mean times of what several runs have in common; nothing where that is nothing.
pub(super) fn beside(runs: &[StoredRun], labels: &Labels) -> String {
    let mut seen = BTreeSet::new();
    let all = runs.iter().flat_map(|run| &run.summary.rows).map(|row| (row.key.case.as_str(), row.key.system.as_str()));
    let common = all.filter(|(case, system)| {
        let times =
            runs.iter().filter(|run| run.summary.row(case, system).is_some_and(|row| row.step.is_some())).count();
        times > 1 && seen.insert((*case, *system))
    });
    let common: Vec<(&str, &str)> = common.collect();
    if common.is_empty() {
        return String::new();
    }
    let mean = |run: &StoredRun, (case, system): (&str, &str)| Some(run.summary.row(case, system)?.step?.mean);
    let words = |heading: &str, of: &dyn Fn((&str, &str)) -> String| Column {
        heading: heading.to_owned(),
        cells: common.iter().map(|&pair| Cell::words(of(pair))).collect(),
    };
    let mut columns = vec![
        words("case", &|(case, _)| {
            let named = runs.iter().filter(|run| run.summary.rows.iter().any(|row| row.key.case == case));
            let names: BTreeSet<&str> = named.map(|run| labels.case(run, case)).collect();
            names.into_iter().collect::<Vec<_>>().join("; ")
        }),
        words("system", &|(_, system)| figures::title(system)),
    ];
    for (index, run) in runs.iter().enumerate() {
        let name = &labels.short()[index];
        let cells = common.iter().map(|&pair| Cell::number(mean(run, pair), time)).collect();
        columns.push(Column { heading: format!("mean, {name}"), cells });
        if index > 0 {
            let ratio = |pair| Some(mean(run, pair)? / mean(&runs[0], pair)?);
            let cells =
                common.iter().map(|&pair| Cell::number(ratio(pair), |ratio| format!("{:+.1}%", (ratio - 1.0) * 100.0)));
            columns.push(Column { heading: format!("over {}", labels.short()[0]), cells: cells.collect() });
        }
    }
    format!(
        "<section id=\"beside\"><h2>Runs beside each other</h2>\n{}</section>\n",
        table("runs beside each other", columns, |_| String::new(), "numbers")
    )
}
