//! Outcomes of studies as tables, for terminals and for the page.

use super::plan_comparison::{PlanComparison, Rated};
use crate::calibrate::constants::Fitted;
use crate::calibrate::write;
use crate::measurements::layers::LayerErrors;
use crate::measurements::order::Compared;
use crate::measurements::series::SeriesErrors;
use runs::report;
use runs::summary::errors::Errors;

/// A signed share.
pub fn percent(share: f64) -> String {
    format!("{:+.1}%", share * 100.0)
}

/// A share without a sign.
pub fn share(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// Seconds in whole milliseconds.
pub fn ms(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.0}", seconds * 1e3))
}

const STATISTICS: [&str; 7] = ["n", "mean", "median", "p90", "max", "bias", "R²"];

fn statistics(errors: &Errors) -> [String; 7] {
    let r = errors.r_squared.map_or("-".into(), |r| format!("{r:.3}"));
    [
        errors.count.to_string(),
        share(errors.mean),
        share(errors.median),
        share(errors.p90),
        share(errors.max),
        percent(errors.bias),
        r,
    ]
}

/// A line of statistics per name.
pub fn statistics_table(lines: &[(String, Option<Errors>)], what: &str) -> comfy_table::Table {
    let header: Vec<&str> = std::iter::once(what).chain(STATISTICS).collect();
    let mut table = report::table(&header, &[1, 2, 3, 4, 5, 6, 7]);
    for (name, errors) in lines {
        if let Some(errors) = errors {
            table.add_row(std::iter::once(name.clone()).chain(statistics(errors)));
        }
    }
    table
}

/// A line per configuration.
pub fn lines_table(lines: &[Compared]) -> comfy_table::Table {
    let header = ["GPUs", "gate", "system", "plan", "measured ms", "predicted ms", "error", "status"];
    let mut table = report::table(&header, &[0, 4, 5, 6]);
    for line in lines {
        table.add_row([
            line.gpus.to_string(),
            line.gate.clone(),
            std::iter::once(&line.system).chain(&line.also).map(String::as_str).collect::<Vec<_>>().join(" = "),
            line.plan.clone(),
            ms(line.measured),
            ms(line.predicted),
            line.error.map_or("-".into(), percent),
            line.status.clone(),
        ]);
    }
    table
}

/// A line per setting of single layers and model.
pub fn settings_table(settings: &[LayerErrors]) -> comfy_table::Table {
    let lines: Vec<(String, Option<Errors>)> = settings
        .iter()
        .flat_map(|setting| {
            let name = format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch);
            [
                (format!("{name}: moebench"), Some(setting.errors)),
                (format!("{name}: the paper's estimate"), setting.paper),
                (format!("{name}: the paper's, uniform routing"), setting.uniform),
            ]
        })
        .collect();
    statistics_table(&lines, "relative errors")
}

/// A relative standard error above this is pointed out: predictions that hang on such a constant can be far off.
const POORLY_DETERMINED: f64 = 0.4;

/// Fitted constants with their standard errors.
pub fn constants_table(fitted: &[Fitted]) -> comfy_table::Table {
    let mut table = report::table(&["constant", "value", "± s.e.", "relative", ""], &[1, 2, 3]);
    for constant in fitted {
        let spread = format!("{:.1e}", constant.uncertainty);
        let share = constant.uncertainty / constant.value;
        let relative = format!("{:.1}%", share * 100.0);
        // What a bound decides has no error that the measurements could tell.
        let (spread, relative, note) = match constant.at_bound {
            true => (String::new(), String::new(), "at its bound"),
            false if share.is_infinite() => (String::new(), String::new(), "not determined"),
            false if share > POORLY_DETERMINED => (spread, relative, "poorly determined"),
            false => (spread, relative, ""),
        };
        table.add_row([
            constant.name.clone(),
            format!("{:e}", write::rounded(constant.value)),
            spread,
            relative,
            note.to_owned(),
        ]);
    }
    table
}

pub fn series_table(result: &SeriesErrors) -> comfy_table::Table {
    let lines =
        [("experts in order".to_owned(), Some(result.in_order)), ("placed online".to_owned(), Some(result.online))];
    statistics_table(&lines, "relative errors")
}

/// What placing experts gains: as measured, as simulated, and as simulated with a lag.
pub fn gains_table(study: &SeriesErrors, lagged: &SeriesErrors) -> comfy_table::Table {
    let header = ["", "mean gain", "placements taken", "correlation, in order", "correlation, placed"];
    let mut table = report::table(&header, &[1, 2, 3, 4]);
    let moves = study.measured_moves.map_or("unknown".to_owned(), |moves| moves.to_string());
    let measured = format!("{:.3}", study.measured_gain);
    table.add_row(["measured".to_owned(), measured, moves, String::new(), String::new()]);
    for (name, result) in [("simulated, as the study placed", study), ("simulated, with a lag", lagged)] {
        let r = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        table.add_row([
            name.to_owned(),
            format!("{:.3}", result.predicted_gain),
            result.predicted_moves.to_string(),
            r(result.static_correlation),
            r(result.online_correlation),
        ]);
    }
    table
}

/// Two lines per case: the search's pick, and the authors' plan.
pub fn plans_table(compared: &[PlanComparison]) -> comfy_table::Table {
    let header = [
        "case",
        "plan of",
        "plan",
        "estimate ms",
        "run ms",
        "measured ms",
        "state GB",
        "peak GB",
        "usable GB",
        "at least as fast",
    ];
    let mut table = report::table(&header, &[3, 4, 5, 6, 7, 8]);
    for comparison in compared {
        table.add_row(plan_cells(comparison, &comparison.case, "the search", &comparison.pick, verdict(comparison)));
        table.add_row(plan_cells(comparison, "", "the authors", &comparison.authors, String::new()));
    }
    table
}

fn plan_cells(comparison: &PlanComparison, case: &str, whose: &str, rated: &Rated, verdict: String) -> [String; 10] {
    let gigabytes = |bytes: f64| format!("{:.1}", bytes / 1e9);
    [
        case.to_owned(),
        whose.to_owned(),
        rated.plan.clone(),
        ms(rated.estimate_s),
        ms(rated.run_s),
        ms(rated.measured_s),
        gigabytes(rated.state_bytes),
        gigabytes(rated.peak_bytes),
        gigabytes(comparison.usable_bytes),
        verdict,
    ]
}

fn verdict(comparison: &PlanComparison) -> String {
    let agrees = |agrees, by| if agrees { format!("yes, by {by}") } else { format!("no, by {by}") };
    match (comparison.measured_agrees, comparison.differs()) {
        (_, false) => "the same plan".to_owned(),
        (Some(measured), true) => agrees(measured, "measurement"),
        (None, true) => {
            let both = (comparison.estimate_agrees, comparison.run_agrees);
            let model = match both {
                (true, true) => "yes".to_owned(),
                (estimate, run) => format!("{}, {}", agrees(estimate, "the estimate"), agrees(run, "the run")),
            };
            format!("not measured; by the simulator alone: {model}")
        }
    }
}
