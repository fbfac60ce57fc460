//! Validation as tables and text, for terminals and for pages.

use crate::calibrate::constants::Fitted;
use crate::calibrate::write;
use crate::report;
use crate::studies::errors::Errors;
use crate::studies::moe_layer::Setting;
use crate::studies::plans::{Comparison, Rated};
use crate::studies::{adaptive, end_to_end};

/// A signed share.
pub(crate) fn percent(share: f64) -> String {
    format!("{:+.1}%", share * 100.0)
}

/// Seconds in whole milliseconds.
pub(crate) fn ms(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.0}", seconds * 1e3))
}

const STATISTICS: [&str; 7] = ["n", "mean", "median", "p90", "max", "bias", "R²"];

fn statistics(errors: &Errors) -> [String; 7] {
    let share = |value: f64| format!("{:.1}%", value * 100.0);
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
pub(crate) fn statistics_table(lines: &[(String, Option<Errors>)], what: &str) -> comfy_table::Table {
    let header: Vec<&str> = std::iter::once(what).chain(STATISTICS).collect();
    let mut table = report::table(&header, &[1, 2, 3, 4, 5, 6, 7]);
    for (name, errors) in lines {
        if let Some(errors) = errors {
            table.add_row(std::iter::once(name.clone()).chain(statistics(errors)));
        }
    }
    table
}

/// Everything about whole iterations.
pub(crate) fn end_to_end_text(result: &end_to_end::Report) -> String {
    let sums = [("medians".to_owned(), result.errors), ("sums, start-up included".to_owned(), result.sum_errors)];
    let errors = statistics_table(&sums, "relative errors of");
    let mut text = format!("{}\n\n{errors}\n", lines_table(&result.lines));
    text.push_str(&format!(
        "\norder of systems, for pairs measured more than {:.0}% apart: {} of {} right\n",
        end_to_end::ORDER_TOLERANCE * 100.0,
        result.ordered_right,
        result.ordered_pairs
    ));
    for wrong in &result.ordered_wrong {
        text.push_str(&format!("  wrong: {wrong}\n"));
    }
    let ends: Vec<bool> = result.lines.iter().filter_map(|line| line.status_agrees).collect();
    let right = ends.iter().filter(|agrees| **agrees).count();
    text.push_str(&format!("runs that end as predicted (ok or out of memory): {right} of {}\n", ends.len()));
    let unknown: Vec<&str> =
        result.lines.iter().filter(|line| line.status_agrees.is_none()).map(|line| line.status.as_str()).collect();
    if let Some(first) = unknown.first() {
        let known = end_to_end::known_systems().join(", ");
        text.push_str(&format!("{} configurations not simulated: {first}; known: {known}\n", unknown.len()));
    }
    for (gpus, gate) in result.no_drop_cases() {
        if let Some((measured, predicted)) = result.speedup(gpus, &gate, "fastermoe", "smartmoe") {
            text.push_str(&format!(
                "smartmoe over fastermoe, {gpus} GPUs, {gate}, by sums: {measured:.2} measured, {predicted:.2} predicted\n"
            ));
        }
    }
    text.push_str("predicted: simulated; medians leave out the first 10 iterations");
    text
}

/// A line per configuration.
pub(crate) fn lines_table(lines: &[end_to_end::Line]) -> comfy_table::Table {
    let header = ["GPUs", "gate", "system", "plan", "measured ms", "predicted ms", "error", "status"];
    let mut table = report::table(&header, &[0, 4, 5, 6]);
    for line in lines {
        table.add_row([
            line.gpus.to_string(),
            line.gate.clone(),
            line.system.clone(),
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
pub(crate) fn settings_table(settings: &[Setting]) -> comfy_table::Table {
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
pub(crate) fn constants_table(fitted: &[Fitted]) -> comfy_table::Table {
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

/// Everything about a layer over time.
pub(crate) fn adaptive_text(result: &adaptive::Report) -> String {
    let r = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    format!(
        "{}\n\ncorrelation: {} in order, {} placed online\nmean gain of placement: {:.4} measured, {:.4} predicted ({})\n\
         placements taken: {} measured, {} predicted, {} at the same iterations",
        adaptive_table(result),
        r(result.static_correlation),
        r(result.online_correlation),
        result.measured_gain,
        result.predicted_gain,
        percent(result.predicted_gain / result.measured_gain - 1.0),
        result.measured_moves.map_or("unknown".to_owned(), |moves| moves.to_string()),
        result.predicted_moves,
        result.common_moves,
    )
}

/// Errors of both series.
pub(crate) fn adaptive_table(result: &adaptive::Report) -> comfy_table::Table {
    let lines =
        [("experts in order".to_owned(), Some(result.in_order)), ("placed online".to_owned(), Some(result.online))];
    statistics_table(&lines, "relative errors")
}

/// Two lines per case: the search's pick, and the authors' plan.
pub(crate) fn plans_table(compared: &[Comparison]) -> comfy_table::Table {
    let header =
        ["case", "plan of", "plan", "estimate ms", "run ms", "state GB", "peak GB", "usable GB", "at least as fast"];
    let mut table = report::table(&header, &[3, 4, 5, 6, 7]);
    for comparison in compared {
        table.add_row(plan_cells(comparison, &comparison.case, "the search", &comparison.pick, verdict(comparison)));
        table.add_row(plan_cells(comparison, "", "the authors", &comparison.authors, String::new()));
    }
    table
}

fn plan_cells(comparison: &Comparison, case: &str, whose: &str, rated: &Rated, verdict: String) -> [String; 9] {
    let gigabytes = |bytes: f64| format!("{:.1}", bytes / 1e9);
    [
        case.to_owned(),
        whose.to_owned(),
        rated.plan.clone(),
        ms(rated.estimate_s),
        ms(rated.run_s),
        gigabytes(rated.state_bytes),
        gigabytes(rated.peak_bytes),
        gigabytes(comparison.usable_bytes),
        verdict,
    ]
}

fn verdict(comparison: &Comparison) -> String {
    let agrees = |agrees, by| if agrees { format!("yes, by the {by}") } else { format!("no, by the {by}") };
    match (comparison.estimate_agrees, comparison.run_agrees) {
        (true, true) => "yes, by both".to_owned(),
        (estimate, run) => format!("{}; {}", agrees(estimate, "estimate"), agrees(run, "run")),
    }
}

/// Everything about plans.
pub(crate) fn plans_text(compared: &[Comparison], iterations: usize) -> String {
    let both = compared.iter().filter(|comparison| comparison.both_agree()).count();
    format!(
        "{}\n\npicks at least as fast by both: {both} of {}\n\
         estimate: the search's, on the routing of a profiling run; run: median of {iterations} simulated iterations",
        plans_table(compared),
        compared.len()
    )
}
