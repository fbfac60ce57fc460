//! `skew`: what imbalance costs each system: the iteration over the skew of the routing, on the network as it is, a panel per model and
//! cluster.

use chart::{AnyChart, LineChart, LinePanel, LineSeries};

use super::map::{places, settings};
use super::{RunFigure, engine_note, labels, look_notes, title};
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

/// The figure of these cases.
pub(super) fn figure(run: &StoredRun) -> RunFigure {
    RunFigure {
        name: "skew",
        caption: format!(
            "What imbalance costs, on the network as it is; {}; mean iteration over whole placement periods after warm-up, all costs \
             charged, every system under its own plan; what did not run to its end has no point{}.",
            run.facts.origin,
            look_notes(run),
        ),
        chart: AnyChart::Lines(LineChart {
            x_label: "Entries of the fullest expert over the mean".to_owned(),
            panels: settings(run).iter().map(|setting| panel(run, setting)).collect(),
            log_x: true,
            ..LineChart::default()
        }),
    }
}

fn panel(run: &StoredRun, of: &str) -> LinePanel {
    let places = places(run, of);
    let cases: Vec<(f64, &str)> = places.iter().filter_map(|(case, place)| Some((skew(place)?, *case))).collect();
    let line = |system: &str| LineSeries {
        name: title(system),
        ink: looks::ink(system),
        points: cases.iter().map(|(skew, case)| (*skew, time(run, case, system))).collect(),
        ..LineSeries::default()
    };
    LinePanel {
        title: of.to_owned(),
        y_label: format!("Iteration (s, {})", engine_note(run)),
        series: labels::systems(run).into_iter().map(line).collect(),
        from_zero: true,
    }
}

/// Not a number where the run did not end.
fn time(run: &StoredRun, case: &str, system: &str) -> f64 {
    run.summary.row(case, system).and_then(|row| row.step).map_or(f64::NAN, |step| step.mean)
}
