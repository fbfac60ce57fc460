//! What the paper claims, beside what is simulated here: a row for every published ratio of two systems and for every claim
//! that cannot be held against a number, whatever the outcome.

use anyhow::Result;
use workloads::Suite;
use workloads::published::NotHeld;

use runs::summary::errors::Pair;
use runs::summary::{Summary, SummaryRow};

/// A ratio within this of the published one is reproduced.
pub const REPRODUCED: f64 = 0.05;
/// And one within this is within tolerance.
pub const TOLERATED: f64 = 0.15;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reproduced,
    WithinTolerance,
    NotReproduced,
    NotTestable,
}

impl Verdict {
    /// Of a simulated ratio and a published one.
    pub fn of(ratio: &Pair) -> Self {
        match ratio.error().abs() {
            error if error <= REPRODUCED => Self::Reproduced,
            error if error <= TOLERATED => Self::WithinTolerance,
            _ => Self::NotReproduced,
        }
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Reproduced => "reproduced",
            Self::WithinTolerance => "within tolerance",
            Self::NotReproduced => "**not reproduced**",
            Self::NotTestable => "not testable here",
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

/// The published ratios of a suite that was run: of every system but the baseline over the baseline and over those that it is
/// compared with, under the plans that ran.
pub fn claims(suite: &Suite, summary: &Summary) -> Vec<PaperClaim> {
    let mut claims = Vec::new();
    for row in summary.rows.iter().filter(|row| row.key.system != suite.baseline) {
        let others = std::iter::once(&suite.baseline).chain(&suite.compare).filter(|other| **other != row.key.system);
        for over in others.filter_map(|other| summary.row(&row.key.case, other)) {
            claims.extend(of_medians(row, over));
            claims.extend(of_sums(row, over, over.key.system == suite.baseline));
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

/// What it took to run a suite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effort {
    pub seconds: f64,
    /// The most memory that the program has held so far, B; none where the system does not say.
    pub peak_bytes: Option<f64>,
}

impl Effort {
    fn label(&self) -> String {
        let memory = self.peak_bytes.map_or(String::new(), |bytes| format!(", {:.1} GB at most", bytes / 1e9));
        format!("{:.1} minutes{memory}", self.seconds / 60.0)
    }
}

/// A suite that was run, and what the paper says of it.
pub struct Tested {
    pub suite: String,
    pub command: String,
    /// None where a finished suite was read back.
    pub effort: Option<Effort>,
    pub claims: Vec<PaperClaim>,
}

/// The page in Markdown. `routing`: what the suites were run on.
///
/// # Errors
/// A defect of the list of claims that no number is held of.
pub fn page(tested: &[Tested], routing: &str) -> Result<String> {
    let all: Vec<PaperClaim> = tested.iter().flat_map(|tested| tested.claims.iter().cloned()).collect();
    let not_held = NotHeld::all()?;
    let count = |verdict| all.iter().filter(|claim| claim.verdict() == verdict).count();
    let mut page = format!(
        "# The paper's claims\n\nEvery ratio that was published with SmartMoE (USENIX ATC'23) and is held here, beside what is \
         simulated under the plans that ran; `moebench claims` wrote this page. Routing: {routing}. Reproduced: within \
         {:.0}% of the published ratio; within tolerance: within {:.0}%. A row stands here whatever its outcome. Clusters' \
         constants were fitted to these runs' times (results/validation says what the fits are worth on what they did not \
         see), so the rows say how well one set of constants explains all of them. Sums include each run's start-up, \
         which the simulator does not have.\n\n\
         {} reproduced, {} within tolerance, {} not reproduced, {} not testable here.\n",
        REPRODUCED * 100.0,
        TOLERATED * 100.0,
        count(Verdict::Reproduced),
        count(Verdict::WithinTolerance),
        count(Verdict::NotReproduced),
        not_held.len()
    );
    for tested in tested {
        page += &suite(tested);
    }
    page += "\n## Not testable here\n\n| figure | claim | why |\n|---|---|---|\n";
    for NotHeld { figure, claim, why } in &not_held {
        page += &format!("| {figure} | {claim} | {why} |\n");
    }
    Ok(page)
}

fn suite(tested: &Tested) -> String {
    let effort = tested.effort.as_ref().map_or("read back".to_owned(), Effort::label);
    let mut text = format!(
        "\n## {}\n\n`{}`: {effort}.\n\n\
         | case | claim | published | simulated | |\n|---|---|---|---|---|\n",
        tested.suite, tested.command
    );
    for claim in &tested.claims {
        let PaperClaim { case, system, over, statistic, published, simulated } = claim;
        let simulated = simulated.map_or("failed".to_owned(), |ratio| format!("{ratio:.2}"));
        text += &format!(
            "| {case} | {system} over {over}, by {} | {published:.2} | {simulated} | {} |\n",
            statistic.label(),
            claim.verdict().label()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_exists_whatever_its_outcome() {
        let claim = |simulated| PaperClaim {
            case: "a.b.16.no-drop".to_owned(),
            system: "smartmoe".to_owned(),
            over: "expert-only".to_owned(),
            statistic: Statistic::Medians,
            published: 2.0,
            simulated,
        };
        let claims = [Some(2.08), Some(1.75), Some(1.6), None].map(claim).to_vec();
        let verdicts: Vec<&str> = claims.iter().map(|claim| claim.verdict().label()).collect();
        assert_eq!(verdicts, ["reproduced", "within tolerance", "**not reproduced**", "**not reproduced**"]);
        let effort = Effort { seconds: 30.0, peak_bytes: Some(4.5e8) };
        let (suite, command) = ("a-suite".to_owned(), "moebench run a-suite".to_owned());
        let tested = |effort, claims| Tested { suite: suite.clone(), command: command.clone(), effort, claims };
        let page = page(&[tested(Some(effort), claims), tested(None, Vec::new())], "a test").unwrap();
        assert_eq!(page.lines().filter(|line| line.starts_with("| a.b.16")).count(), 4);
        assert!(
            page.contains("1 reproduced, 1 within tolerance, 2 not reproduced") && page.contains("not testable here")
        );
        assert!(page.contains("| 2.00 | failed | **not reproduced** |"));
        assert!(page.contains("`moebench run a-suite`: 0.5 minutes, 0.5 GB at most.\n"));
        assert!(page.contains("`moebench run a-suite`: read back.\n"));
    }
}
