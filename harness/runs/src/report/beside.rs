//! A measured run beside a predicted one, as a table, in lines and as CSV.

use anyhow::Result;

use crate::summary::beside::{self, Compared};
use crate::summary::errors::{Errors, Pair};
use crate::summary::speedup::Speedup;

/// A line for every case and system.
pub fn table(all: &[Compared]) -> comfy_table::Table {
    let spread = spread_over(all);
    let heads = [
        "case",
        "system",
        "measured ms",
        "middle 95%",
        "predicted ms",
        "error",
        "speedup",
        "seeds",
        &spread,
        "predicted",
        "memory GB",
        "predicted GB",
        "error",
    ];
    let mut table = super::table(&heads, &[2, 4, 5, 6, 7, 9, 10, 11, 12]);
    for of in all {
        let memory = |of: &dyn Fn(Pair) -> String, pair: Option<Pair>| pair.map_or(String::new(), of);
        let speedup = |show: &dyn Fn(&[Speedup; 2]) -> String| of.speedup.as_ref().map_or(String::new(), show);
        table.add_row([
            of.case.clone(),
            of.system.clone(),
            format!("{:.2}", of.step.measured * 1e3),
            format!("{:.2} to {:.2}", of.middle[0] * 1e3, of.middle[1] * 1e3),
            format!("{:.2}", of.step.predicted * 1e3),
            format!("{:+.1}%", of.step.error() * 100.0),
            speedup(&|[measured, _]| format!("{:.3}x", measured.by_totals)),
            speedup(&|[measured, _]| measured.seeds.to_string()),
            speedup(&|[measured, _]| {
                measured.spread.map_or(String::new(), |[low, high]| format!("{low:.3} to {high:.3}"))
            }),
            speedup(&|[_, predicted]| format!("{:.3}x", predicted.by_totals)),
            memory(&|pair| format!("{:.1}", pair.measured / 1e9), of.memory),
            memory(&|pair| format!("{:.1}", pair.predicted / 1e9), of.memory),
            memory(&|pair| format!("{:+.1}%", pair.error() * 100.0), of.memory),
        ]);
    }
    table
}

/// What the intervals of measured speedups are: see [`Speedup::spread`].
fn spread_over(all: &[Compared]) -> String {
    let has = |several: bool| all.iter().flat_map(|of| &of.speedup).any(|[own, _]| (own.seeds > 1) == several);
    let kinds = [(false, "spread over iterations"), (true, "range of seeds")];
    kinds.iter().filter(|(several, _)| has(*several)).map(|(_, kind)| *kind).collect::<Vec<_>>().join(" or ")
}

/// Errors over all, and the order of systems.
pub fn totals(all: &[Compared]) -> String {
    let line = |what: &str, pairs: &[Pair]| {
        let Some(errors) = Errors::new(pairs) else { return format!("{what}: nothing to compare") };
        format!(
            "{what}: median error {:.1}%, worst {:.1}%, of {}",
            errors.median * 100.0,
            errors.max * 100.0,
            errors.count
        )
    };
    let steps: Vec<Pair> = all.iter().map(|of| of.step).collect();
    let memory: Vec<Pair> = all.iter().filter_map(|of| of.memory).collect();
    let [apart, right] = beside::order(all);
    format!(
        "{}\n{}\norder: right in {right} of {apart} pairs of systems whose middle 95% do not overlap",
        line("iteration", &steps),
        line("memory", &memory)
    )
}

/// Every quantity, a line each.
///
/// # Errors
/// None that is known of: it is written to memory.
pub fn csv(all: &[Compared]) -> Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(["case", "system", "quantity", "measured", "predicted", "error"])?;
    for of in all {
        let mut line = |what: &str, pair: &Pair| {
            let error = if pair.measured > 0.0 { format!("{:.4}", pair.error()) } else { String::new() };
            let [measured, predicted] = [pair.measured, pair.predicted].map(|value| format!("{value:.6e}"));
            out.write_record([&of.case, &of.system, what, &measured, &predicted, &error])
        };
        line("step_s", &of.step)?;
        of.memory.iter().try_for_each(|pair| line("peak_bytes", pair))?;
        if let Some([measured, predicted]) = &of.speedup {
            line("speedup", &Pair { predicted: predicted.by_totals, measured: measured.by_totals })?;
        }
        of.phases.iter().try_for_each(|(phase, pair)| line(&format!("phase {phase} s"), pair))?;
    }
    Ok(String::from_utf8(out.into_inner()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_commas_stay_one_column() {
        let of = Compared {
            case: "a, \"b\"".to_owned(),
            system: "tutel".to_owned(),
            step: Pair { predicted: 2.0, measured: 1.0 },
            middle: [1.0, 1.0],
            iterations: 1,
            memory: None,
            phases: Vec::new(),
            speedup: None,
        };
        let line = "\"a, \"\"b\"\"\",tutel,step_s,1.000000e0,2.000000e0,1.0000";
        assert_eq!(csv(&[of]).unwrap().lines().nth(1), Some(line));
    }
}
