//! `map`: who is fastest where, over skew and the speed of the network between nodes: a panel per model and cluster.

use chart::{AnyChart, HeatCell, HeatMap, HeatPanel, Series};

use super::{RunFigure, engine_note, labels, look_notes, title};
use crate::looks;
use crate::provenance::MapPlace;
use crate::records::RunKey;
use crate::stored::StoredRun;
use crate::summary::SummaryRow;
use crate::traces::each_once;

/// Whether the run says where its cases stand: one of an older version does not.
pub(super) fn is_there(run: &StoredRun) -> bool {
    labels::cases(run).iter().all(|key| run.facts.drawn.places.contains_key(&key.case))
}

/// Winners: columns are routings, rows are factors of the network; a cell has the winner's look and its speedup over the first
/// system that the suite compares with, else over the baseline.
pub(super) fn figure(run: &StoredRun) -> RunFigure {
    let over = run.facts.drawn.compare.first().unwrap_or(&run.summary.baseline);
    let columns = Columns::new(run);
    let x_label = "Fullest expert over the mean";
    RunFigure {
        name: "map",
        caption: format!(
            "Who is fastest where; {}; columns: routings, by the entries of the fullest expert over the mean; a cell has the look of \
             the system with the least mean iteration, all costs charged, and its speedup by totals over {}, or how {} ended; \
             –: none ran to its end{}.",
            run.facts.origin,
            title(over),
            title(over),
            look_notes(run),
        ),
        chart: AnyChart::Map(HeatMap {
            x_label: if columns.same.is_empty() {
                x_label.to_owned()
            } else {
                format!("{x_label} ({})", columns.same.join(", "))
            },
            y_label: format!("Network between nodes ({})", engine_note(run)),
            series: labels::systems(run).iter().map(|name| Series::new(title(name), looks::ink(name))).collect(),
            panels: settings(run).iter().map(|setting| panel(run, over, &columns, setting)).collect(),
            ..HeatMap::default()
        }),
    }
}

/// What panels are of: model, GPUs and cluster.
pub(super) fn settings(run: &StoredRun) -> Vec<String> {
    let all: Vec<String> = labels::cases(run).into_iter().map(setting).collect();
    each_once(all.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
}

fn setting(key: &RunKey) -> String {
    format!("{}, {} × {}", key.model, key.gpus, key.cluster)
}

/// The cases of a panel, each with its place.
pub(super) fn places<'r>(run: &'r StoredRun, of: &str) -> Vec<(&'r str, &'r MapPlace)> {
    let cases = labels::cases(run).into_iter().filter(|key| setting(key) == of);
    cases.filter_map(|key| Some((key.case.as_str(), run.facts.drawn.places.get(&key.case)?))).collect()
}

/// What columns are called: by the parts of a routing that differ.
struct Columns {
    /// What all of several routings say.
    same: Vec<String>,
}

impl Columns {
    fn new(run: &StoredRun) -> Self {
        let mut routings = run.facts.drawn.places.values().map(|place| &place.routing);
        let mut same = routings.next().cloned().unwrap_or_default();
        let several = routings.clone().any(|routing| *routing != same);
        routings.for_each(|routing| same.retain(|part| routing.contains(part)));
        Self { same: if several { same } else { Vec::new() } }
    }

    /// Of a case; the axis says what a number alone is.
    fn label(&self, place: &MapPlace) -> String {
        let own = place.routing.iter().filter(|part| !self.same.contains(part));
        let parts: Vec<&str> = own.map(|part| part.trim_start_matches("max/mean ")).collect();
        if place.routing.is_empty() { "trace".to_owned() } else { parts.join(", ") }
    }
}

fn panel(run: &StoredRun, over: &str, names: &Columns, of: &str) -> HeatPanel {
    let places = places(run, of);
    let (row, column) = (|place: &MapPlace| format!("×{}", place.network), |place: &MapPlace| names.label(place));
    let named = |of: &dyn Fn(&MapPlace) -> String| -> Vec<String> {
        let all: Vec<String> = places.iter().map(|(_, place)| of(place)).collect();
        each_once(all.iter().map(String::as_str)).into_iter().map(str::to_owned).collect()
    };
    let (columns, rows) = (named(&column), named(&row));
    let cell = |at: &String, along: &String| {
        let (case, _) = places.iter().find(|(_, place)| row(place) == *at && column(place) == *along)?;
        winner(run, over, case)
    };
    let cells = rows.iter().map(|at| columns.iter().map(|along| cell(at, along)).collect()).collect();
    HeatPanel { title: of.to_owned(), columns, rows, cells }
}

/// The fastest system of a case; of equal ones the first.
fn winner(run: &StoredRun, over: &str, case: &str) -> Option<HeatCell> {
    let time = |row: &SummaryRow| row.step.map(|step| step.mean);
    let rows = run.summary.rows.iter().filter(|row| row.key.case == case);
    let ended = rows.filter_map(|row| Some((time(row)?, row)));
    let (_, row) = ended.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let reference = run.summary.row(case, over)?;
    let ended = || reference.status().name().to_uppercase();
    let label = row.over(reference).map_or_else(ended, |speedup| format!("{:.2}", speedup.by_totals));
    Some(HeatCell { ink: looks::ink(&row.key.system), winner: title(&row.key.system), label })
}
