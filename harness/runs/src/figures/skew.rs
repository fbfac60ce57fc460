//! `skew`: what imbalance costs each system: the iteration over the skew of the routing, on the network as it is, a panel per model and
//! cluster.

use chart::{Figure, FigureError, Frame, LineChart, LinePanel, LineSeries};
use workloads::{Case, Suite};

use super::map::setting;
use super::title;
use crate::looks;
use crate::summary::Summary;
use crate::traces::each_once;

/// Draws the cases of a suite that state a max/mean and whose network is as the cluster has it.
///
/// # Errors
/// When the font or the drawing library fails.
pub fn draw(suite: &Suite, summary: &Summary, origin: &str) -> Result<Figure, FigureError> {
    let settings: Vec<String> = suite.cases.iter().map(setting).collect();
    let panels = each_once(settings.iter().map(String::as_str)).into_iter().map(|of| panel(suite, summary, of));
    LineChart {
        frame: Frame {
            footnote: format!(
                "{origin}; mean iteration over whole placement periods after warm-up, all costs charged, every system under its own plan; what \
                 ran out of memory has no point"
            ),
            ..Frame::default()
        },
        x_label: "Entries of the fullest expert over the mean".to_owned(),
        panels: panels.collect(),
        mark_label: String::new(),
        log_x: true,
    }
    .draw()
}

fn panel(suite: &Suite, summary: &Summary, of: &str) -> LinePanel {
    let skew = |case: &Case| {
        let as_it_is = case.network.is_none_or(|factor| factor == 1.0) && setting(case) == of;
        case.routing.first().filter(|_| as_it_is)?.max_over_mean
    };
    let cases: Vec<(f64, String)> = suite.cases.iter().filter_map(|case| Some((skew(case)?, case.id()))).collect();
    let line = |system: &String| LineSeries {
        name: title(system),
        ink: looks::ink(system),
        points: cases.iter().map(|(skew, case)| (*skew, time(summary, case, system))).collect(),
        ..LineSeries::default()
    };
    LinePanel {
        title: of.to_owned(),
        y_label: "Iteration (s)".to_owned(),
        series: suite.systems.iter().map(line).collect(),
        from_zero: true,
    }
}

/// Not a number where the run did not end.
fn time(summary: &Summary, case: &str, system: &str) -> f64 {
    summary.row(case, system).and_then(|row| row.step).map_or(f64::NAN, |step| step.mean)
}
