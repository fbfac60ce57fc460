//! What the simulator should be good at: every claim of the page with its threshold, in the order of the page. A claim is
//! made wherever its measurements are, met or not.

use super::left_out::{By, Fold, worst};
use super::plan_comparison::PlanComparison;
use super::tables::{percent, share};
use crate::measurements::layers::LayerErrors;
use crate::measurements::order::{IterationErrors, ORDER_TOLERANCE};
use crate::measurements::series::SeriesErrors;
use runs::summary::errors::{Errors, Pair};

/// Something that the simulator should be good at.
#[derive(Clone, Debug)]
pub struct Claim {
    pub what: String,
    /// What was asked for.
    pub wanted: String,
    pub found: String,
    pub met: bool,
}

/// Single layers of one setting, whose constants were fitted to others; `across`: whether they span nodes.
pub(super) fn layers(setting: &LayerErrors, across: bool) -> Claim {
    let (errors, r) = (&setting.errors, setting.errors.r_squared.unwrap_or(0.0));
    let (mean, r_squared) = if across { (0.06, 0.8) } else { (0.03, 0.95) };
    let paper = setting.paper.map_or(String::new(), |paper| {
        let r = paper.r_squared.map_or(String::new(), |r| format!(", R² {r:.2}"));
        format!(" (the paper's model: {}{r})", share(paper.mean))
    });
    Claim {
        what: format!("single layers, {} GPUs, micro-batch {}, rows held out", setting.gpus, setting.micro_batch),
        wanted: format!("mean error at most {:.0}%, R² at least {r_squared}", mean * 100.0),
        found: format!("{}, R² {r:.3}{paper}", share(errors.mean)),
        met: errors.mean <= mean && r >= r_squared,
    }
}

/// Medians of whole iterations on a cluster whose constants were fitted to them.
pub(super) fn iterations(cluster: &str, errors: &Errors) -> Claim {
    Claim {
        what: format!("whole iterations, {} configurations of {cluster}, in sample", errors.count),
        wanted: "median at most 10%, 90th percentile at most 25%".to_owned(),
        found: format!("{}, {} (largest {})", share(errors.median), share(errors.p90), share(errors.max)),
        met: errors.median <= 0.10 && errors.p90 <= 0.25,
    }
}

/// Which of two systems is faster.
pub(super) fn order(result: &IterationErrors) -> Claim {
    Claim {
        what: format!("order of systems, pairs measured more than {:.0}% apart, in sample", ORDER_TOLERANCE * 100.0),
        wanted: "all".to_owned(),
        found: format!("{} of {}", result.ordered_right, result.ordered_pairs),
        met: result.ordered_wrong.is_empty(),
    }
}

/// The paper's headline on one number of a cluster's GPUs.
pub(super) fn headline(cluster: &str, gpus: usize, speedup: &Pair) -> Claim {
    let Pair { predicted, measured } = speedup;
    Claim {
        what: format!("SmartMoE over FasterMoE, {gpus} GPUs of {cluster}, no-drop, by sums, in sample"),
        wanted: "within 10%".to_owned(),
        found: format!("{predicted:.2} for {measured:.2} measured ({})", percent(speedup.error())),
        met: speedup.error().abs() <= 0.10,
    }
}

/// Whole iterations that fits did not see: their errors, and whether the order of systems is right. `folds` leave out by the
/// same of one cluster.
pub(super) fn left_out(by: By, cluster: &str, folds: &[&Fold]) -> Vec<Claim> {
    let pairs: Vec<Pair> = folds.iter().flat_map(|fold| &fold.unseen).map(|unseen| unseen.pair).collect();
    let (Some(errors), Some(worst)) = (Errors::new(&pairs), worst(folds)) else { return Vec::new() };
    let what = format!("whole iterations, {cluster}, one {} left out of the fit at a time", by.name());
    let sum = |of: fn(&Fold) -> usize| folds.iter().map(|fold| of(fold)).sum::<usize>();
    let (ordered, apart) = (sum(|fold| fold.ordered), sum(|fold| fold.pairs));
    let untested = match sum(|fold| fold.untested) {
        0 => String::new(),
        untested => format!(", {untested} not tested"),
    };
    let found = format!(
        "{}, {} (worst: {} {}{untested})",
        share(errors.median),
        share(errors.p90),
        worst.label,
        percent(worst.pair.error())
    );
    vec![
        Claim {
            what: what.clone(),
            wanted: "median at most 10%, 90th percentile at most 25%".to_owned(),
            found,
            met: errors.median <= 0.10 && errors.p90 <= 0.25,
        },
        Claim {
            what: format!("{what}: order of systems"),
            wanted: "at least 90%".to_owned(),
            found: format!("{ordered} of {apart}"),
            met: 10 * ordered >= 9 * apart,
        },
    ]
}

/// What placing experts online gains; `in_sample`: constants were fitted to the series.
pub(super) fn gain(every: usize, in_sample: bool, series: &SeriesErrors) -> Claim {
    let gain = Pair { predicted: series.predicted_gain, measured: series.measured_gain };
    Claim {
        what: format!("mean gain of online placement every {every} iterations{}", sample(in_sample)),
        wanted: "within 5%".to_owned(),
        found: format!("{:.3} for {:.3} measured ({})", gain.predicted, gain.measured, percent(gain.error())),
        met: gain.error().abs() <= 0.05,
    }
}

fn sample(in_sample: bool) -> &'static str {
    if in_sample { ", in sample" } else { "" }
}

/// Whether a layer's time goes up and down as measured, experts in order.
pub(super) fn correlation(in_sample: bool, series: &SeriesErrors) -> Claim {
    let correlation = series.static_correlation.unwrap_or(0.0);
    Claim {
        what: format!("correlation of its static series{}", sample(in_sample)),
        wanted: "at least 0.8".to_owned(),
        found: format!("{correlation:.3}"),
        met: correlation >= 0.8,
    }
}

/// Whether the offline search finds what the authors ran, or what was measured to be better. A pick that was not measured
/// counts for nothing: the simulator would rate its own search.
pub fn search(compared: &[PlanComparison]) -> Claim {
    let (same, other): (Vec<_>, Vec<_>) = compared.iter().partition(|comparison| !comparison.differs());
    let measured: Vec<bool> = other.iter().filter_map(|comparison| comparison.measured_agrees).collect();
    let faster = measured.iter().filter(|agrees| **agrees).count();
    Claim {
        what: "offline search picks the authors' plan, or one that was measured to be at least as fast".to_owned(),
        wanted: "all cases that were measured".to_owned(),
        found: format!(
            "the same plan in {}, another in {}: measured {}, of these at least as fast {faster}; untested {}",
            same.len(),
            other.len(),
            measured.len(),
            other.len() - measured.len()
        ),
        met: faster == measured.len(),
    }
}

/// Published runs of modern models, whose chip's constants were fitted to the other half.
pub(super) fn published(chip: &str, errors: &Errors) -> Claim {
    Claim {
        what: format!("published training runs on {chip}, {} that no constant was fitted to", errors.count),
        wanted: "median at most 12%, 90th percentile at most 25%".to_owned(),
        found: format!("{}, {} (largest {})", share(errors.median), share(errors.p90), share(errors.max)),
        met: errors.median <= 0.12 && errors.p90 <= 0.25,
    }
}

/// Which of two plans of a model is faster, with nothing fitted.
pub(super) fn published_order(pairs: usize, wrong: usize) -> Claim {
    Claim {
        what: format!(
            "order of published plans of one model on as many GPUs with one routing and batch, nothing fitted, pairs more than \
             {:.0}% apart",
            ORDER_TOLERANCE * 100.0
        ),
        wanted: "all".to_owned(),
        found: format!("{} of {pairs}", pairs - wrong),
        met: wrong == 0,
    }
}

/// Iterations of LAER-MoE's four systems, by which constants.
pub(super) fn laer(constants: &str, errors: &Errors) -> Claim {
    Claim {
        what: format!("LAER-MoE's study, {} rows of four systems on 32 A100s, {constants}", errors.count),
        wanted: "median at most 10%, 90th percentile at most 20%".to_owned(),
        found: format!("{}, {} (largest {})", share(errors.median), share(errors.p90), share(errors.max)),
        met: errors.median <= 0.10 && errors.p90 <= 0.20,
    }
}

/// Which of its systems is faster.
pub(super) fn laer_order(constants: &str, pairs: usize, wrong: usize) -> Claim {
    Claim {
        what: format!(
            "order of systems in LAER-MoE's study, pairs more than {:.0}% apart, {constants}",
            ORDER_TOLERANCE * 100.0
        ),
        wanted: "all".to_owned(),
        found: format!("{} of {pairs}", pairs - wrong),
        met: wrong == 0,
    }
}

/// Published runs did fit their cards.
pub(super) fn published_memory(runs: usize, beyond: usize) -> Claim {
    Claim {
        what: "published runs fit the card's memory".to_owned(),
        wanted: "all".to_owned(),
        found: format!("{} of {runs}", runs - beyond),
        met: beyond == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both numbers of GPUs have their row, whatever was found.
    #[test]
    fn a_claim_that_is_not_met_says_its_number() {
        let near = headline("inky", 16, &Pair { predicted: 1.99, measured: 1.88 });
        assert_eq!((near.found.as_str(), near.met), ("1.99 for 1.88 measured (+5.9%)", true));
        let far = headline("inky", 32, &Pair { predicted: 2.12, measured: 1.77 });
        assert_eq!((far.found.as_str(), far.met), ("2.12 for 1.77 measured (+19.8%)", false));
        assert_eq!(far.wanted, near.wanted);
        assert_eq!(far.what.replace("32", "16"), near.what);
    }
}
