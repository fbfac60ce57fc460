//! `skew`: what imbalance costs each system: the iteration over the skew of the routing, on the network as it is, a panel per setting,
//! which is what else tells cases apart.

use chart::{AnyChart, LineChart, LinePanel, LineSeries};

use super::map::{Columns, Places, settings};
use super::{PaperFigure, engine_note, labels, look_notes, title};
use crate::looks;
use crate::provenance::MapPlace;
use crate::stored::StoredRun;

/// Whether there are cases that state a max/mean and whose network is as the cluster has it.
pub(super) fn is_there(run: &StoredRun) -> bool {
    run.facts.drawn.places.values().any(|place| skew(place).is_some())
}

fn skew(place: &MapPlace) -> Option<f64> {
    place.max_over_mean.filter(|_| place.network == 1.0)
}

/// What a routing says besides its skew, where not all say it.
fn beyond_skew(place: &MapPlace, same: &[String]) -> Option<String> {
    let more = place.routing.iter().filter(|part| !part.starts_with("max/mean ") && !same.contains(part));
    skew(place).map(|_| more.map(String::as_str).collect::<Vec<_>>().join(", "))
}

/// The figure of these cases.
pub(super) fn figure(run: &StoredRun) -> PaperFigure {
    let routings = Columns::new(run);
    let settings = settings(run, |place| beyond_skew(place, &routings.same));
    PaperFigure {
        name: "skew".to_owned(),
        caption: format!(
            "What imbalance costs, the entries of the fullest expert over the mean, on the network as it is{}; {}; mean iteration over whole placement periods after warm-up, all costs \
             charged, every system under its own plan; what did not run to its end has no point{}.",
            settings.common,
            run.facts.origin,
            look_notes(run),
        ),
        chart: AnyChart::Lines(LineChart {
            x_label: routings.axis("Fullest expert over the mean"),
            panels: settings.panels.into_iter().map(|(title, places)| panel(run, title, &places)).collect(),
            log_x: true,
            ..LineChart::default()
        }),
    }
}

fn panel(run: &StoredRun, name: String, places: &Places) -> LinePanel {
    let mut cases: Vec<(f64, &str)> = places.iter().filter_map(|(case, place)| Some((skew(place)?, *case))).collect();
    cases.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let line = |system: &str| LineSeries {
        name: title(system),
        ink: looks::ink(system),
        points: cases.iter().map(|(skew, case)| (*skew, time(run, case, system))).collect(),
        ..LineSeries::default()
    };
    LinePanel {
        title: name,
        y_label: format!("Iteration (s, {})", engine_note(run)),
        series: labels::systems(run).into_iter().map(line).collect(),
        from_zero: true,
    }
}

/// Not a number where the run did not end.
fn time(run: &StoredRun, case: &str, system: &str) -> f64 {
    run.summary.row(case, system).and_then(|row| row.step).map_or(f64::NAN, |step| step.mean)
}
