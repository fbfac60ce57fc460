//! Published ratios of two systems' times beside those of a run, with a verdict for each, whatever it is.

use crate::summary::errors::Pair;
use crate::summary::{Summary, SummaryRow};

/// A ratio within this of the published one is reproduced.
pub const REPRODUCED: f64 = 0.05;
/// And one within this is within tolerance.
pub const TOLERATED: f64 = 0.15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reproduced,
    WithinTolerance,
    NotReproduced,
}

impl Verdict {
    /// Of a simulated ratio and a published one.
    pub fn of(ratio: &Pair) -> Self {
        Self::of_error(ratio.error())
    }

    /// Of a relative error.
    pub fn of_error(error: f64) -> Self {
        match error.abs() {
            error if error <= REPRODUCED => Self::Reproduced,
            error if error <= TOLERATED => Self::WithinTolerance,
            _ => Self::NotReproduced,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::WithinTolerance => "within tolerance",
            Self::NotReproduced => "not reproduced",
        }
    }
}

/// What a ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    Medians,
    /// All iterations, start-up included, as the paper has it.
    Sums,
}

impl Statistic {
    pub fn label(self) -> &'static str {
        match self {
            Self::Medians => "medians",
            Self::Sums => "sums",
        }
    }
}

/// A published ratio of two systems' times on a case.
#[derive(Clone, Debug, PartialEq)]
pub struct PaperClaim {
    pub case: String,
    pub system: String,
    pub over: String,
    pub statistic: Statistic,
    pub published: f64,
    /// None where a run failed.
    pub simulated: Option<f64>,
}

impl PaperClaim {
    /// A run that failed where the published one did not reproduces nothing.
    pub fn verdict(&self) -> Verdict {
        let ratio = self.simulated.map(|predicted| Pair { predicted, measured: self.published });
        ratio.map_or(Verdict::NotReproduced, |ratio| Verdict::of(&ratio))
    }
}

/// The published ratios of what was run: of every system but the baseline over the baseline and over those of `compare`, under the
/// plans that ran.
pub fn claims(summary: &Summary, compare: &[String]) -> Vec<PaperClaim> {
    let (mut claims, baseline) = (Vec::new(), &summary.baseline);
    for row in summary.rows.iter().filter(|row| row.key.system != *baseline) {
        let others = std::iter::once(baseline).chain(compare).filter(|other| **other != row.key.system);
        for over in others.filter_map(|other| summary.row(&row.key.case, other)) {
            claims.extend(of_medians(row, over));
            claims.extend(of_sums(row, over, over.key.system == *baseline));
        }
    }
    claims
}

fn claim(row: &SummaryRow, over: &SummaryRow, statistic: Statistic, published: f64) -> PaperClaim {
    let simulated = match statistic {
        Statistic::Medians => row.over(over).map(|speedup| speedup.by_medians),
        Statistic::Sums => row.step.and(over.step).map(|_| over.sum / row.sum),
    };
    let (case, system, over) = (row.key.case.clone(), row.key.system.clone(), over.key.system.clone());
    PaperClaim { case, system, over, statistic, published, simulated }
}

fn of_medians(row: &SummaryRow, over: &SummaryRow) -> Option<PaperClaim> {
    let published = [row, over].map(|row| row.published.step.filter(|_| !row.published.other_plan));
    Some(claim(row, over, Statistic::Medians, published[1]? / published[0]?))
}

/// Sums are held of both runs, or as their ratio.
fn of_sums(row: &SummaryRow, over: &SummaryRow, over_baseline: bool) -> Option<PaperClaim> {
    let sums = [row, over].map(|row| row.published.sum.filter(|_| !row.published.other_plan));
    let ratio = sums[1].zip(sums[0]).map(|(over, own)| over / own);
    let ratio = ratio.or(row.published.speedup_by_sums.filter(|_| over_baseline && row.published.step.is_none()));
    Some(claim(row, over, Statistic::Sums, ratio?))
}
