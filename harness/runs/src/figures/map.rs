//! `map`: who is fastest where, over skew and the speed of the network between nodes: a panel per setting, which is what else
//! tells cases apart.

use chart::{AnyChart, HeatCell, HeatMap, HeatPanel, Series};

use super::labels::{self, CaseLabels};
use super::{PaperFigure, engine_note, look_notes, title};
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
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let over = run.facts.drawn.compare.first().unwrap_or(&run.summary.baseline);
    let (columns, settings) = (Columns::new(run), settings(run, |_| Some(String::new())));
    PaperFigure {
        name: "map".to_owned(),
        caption: format!(
            "Who is fastest where{}; {}; columns: routings, by the entries of the fullest expert over the mean; a cell has the look of \
             the system with the least mean iteration, all costs charged, and its speedup by totals over {}, or how {} ended; \
             –: no such case, or none ran to its end{}.",
            settings.common,
            run.facts.origin,
            title(over),
            title(over),
            look_notes(run),
        ),
        chart: AnyChart::Map(HeatMap {
            x_label: columns.axis("Fullest expert over the mean"),
            y_label: format!("Network between nodes ({})", engine_note(run)),
            series: labels::systems(run).iter().map(|name| Series::new(title(name), looks::ink(name))).collect(),
            panels: settings
                .panels
                .into_iter()
                .map(|(title, places)| panel(run, over, &columns, title, &places))
                .collect(),
            ..HeatMap::default()
        }),
    }
}

/// Cases, each with its place.
pub(super) type Places<'r> = Vec<(&'r str, &'r MapPlace)>;

/// The cases of a figure in panels: one for those that differ in what its axes say alone.
pub(super) struct Settings<'r> {
    /// What all cases have in common, for a caption.
    pub(super) common: String,
    /// Each with its title.
    pub(super) panels: Vec<(String, Places<'r>)>,
}

/// Of the cases that `more` has in the figure, by what it says of a routing beyond the axes.
pub(super) fn settings<'r>(run: &'r StoredRun, more: impl Fn(&MapPlace) -> Option<String>) -> Settings<'r> {
    let placed = |key: &'r RunKey| {
        let place = run.facts.drawn.places.get(&key.case)?;
        let (setting, more) = (&place.setting, more(place)?);
        let case = if more.is_empty() { setting.clone() } else { format!("{setting}.{more}") };
        Some((RunKey { case, ..key.clone() }, (key.case.as_str(), place)))
    };
    let placed: Vec<_> = labels::cases(run).into_iter().filter_map(placed).collect();
    let labels = CaseLabels::new(run, &placed.iter().map(|(setting, _)| setting).collect::<Vec<_>>(), &[]);
    let titled = placed.iter().map(|(setting, place)| (labels.whole(setting), *place));
    Settings { common: labels.common(), panels: labels::panels(titled) }
}

/// What columns are called: by the parts of a routing that differ.
pub(super) struct Columns {
    /// What all of several routings say.
    pub(super) same: Vec<String>,
}

impl Columns {
    pub(super) fn new(run: &StoredRun) -> Self {
        let mut routings = run.facts.drawn.places.values().map(|place| &place.routing);
        let mut same = routings.next().cloned().unwrap_or_default();
        let several = routings.clone().any(|routing| *routing != same);
        routings.for_each(|routing| same.retain(|part| routing.contains(part)));
        Self { same: if several { same } else { Vec::new() } }
    }

    /// An axis' name, with what all routings say.
    pub(super) fn axis(&self, name: &str) -> String {
        if self.same.is_empty() { name.to_owned() } else { format!("{name} ({})", self.same.join(", ")) }
    }

    /// Of a case; the axis says what a number alone is.
    fn label(&self, place: &MapPlace) -> String {
        let mut own: Vec<&String> = place.routing.iter().filter(|part| !self.same.contains(part)).collect();
        if own.is_empty() {
            own.extend(&place.routing);
        }
        let parts: Vec<&str> = own.iter().map(|part| part.trim_start_matches("max/mean ")).collect();
        if parts.is_empty() { "trace".to_owned() } else { parts.join(", ") }
    }
}

fn panel(run: &StoredRun, over: &str, names: &Columns, title: String, places: &Places) -> HeatPanel {
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
    HeatPanel { title, columns, rows, cells }
}

/// The fastest system of a case; of equal ones the first.
fn winner(run: &StoredRun, over: &str, case: &str) -> Option<HeatCell> {
    let time = |row: &SummaryRow| row.step.filter(|_| !row.is_bound()).map(|step| step.mean);
    let rows = run.summary.rows.iter().filter(|row| row.key.case == case);
    let ended = rows.filter_map(|row| Some((time(row)?, row)));
    let (_, row) = ended.min_by(|a, b| a.0.total_cmp(&b.0))?;
    let reference = run.summary.row(case, over)?;
    let ended = || reference.status().name().to_uppercase();
    let label = row.over(reference).map_or_else(ended, |speedup| format!("{:.2}", speedup.by_totals));
    Some(HeatCell { ink: looks::ink(&row.key.system), winner: title(&row.key.system), label })
}
