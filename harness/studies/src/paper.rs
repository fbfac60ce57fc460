//! What the paper claims, beside what is simulated here: a row for every published number that is held and for every claim
//! that cannot be held against one, whatever the outcome.

use anyhow::Result;
use workloads::published::{NotHeld, PublishedRange, Ranged};
use workloads::{Cluster, Suite};

use super::moe_layer::LayerOutcome;
use super::plan_comparison::PlanComparison;
use super::tables::share;
use crate::measurements::layers::LayerErrors;
use runs::summary::claims::{PaperClaim, REPRODUCED, TOLERATED, Verdict};
use runs::summary::errors::Pair;
use runs::summary::{Summary, SummaryRow};

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

/// What was simulated, and what the paper says of it.
pub struct Tested {
    pub title: String,
    pub command: String,
    /// None where a finished suite was read back.
    pub effort: Option<Effort>,
    /// To what the clusters' constants were fitted, and what else a reader of the rows has to know.
    pub basis: String,
    pub rows: Vec<ClaimRow>,
}

/// A claim as the page shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimRow {
    pub case: String,
    pub claim: String,
    pub published: String,
    pub simulated: String,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Tested(Verdict),
    /// Why there is no verdict.
    Untested(&'static str),
}

impl Outcome {
    fn label(self) -> String {
        match self {
            Self::Tested(missed @ Verdict::NotReproduced) => format!("**{}**", missed.label()),
            Self::Tested(held) => held.label().to_owned(),
            Self::Untested(why) => format!("not testable: {why}"),
        }
    }
}

const FAILED: &str = "failed";

impl From<PaperClaim> for ClaimRow {
    fn from(claim: PaperClaim) -> Self {
        let outcome = Outcome::Tested(claim.verdict());
        let PaperClaim { case, system, over, statistic, published, simulated } = claim;
        Self {
            case,
            claim: format!("{system} over {over}, by {}", statistic.label()),
            published: format!("{published:.2}"),
            simulated: simulated.map_or(FAILED.to_owned(), |ratio| format!("{ratio:.2}")),
            outcome,
        }
    }
}

/// What was run beside the ranges that published runs lie in.
///
/// # Errors
/// A defect of the list of ranges.
pub fn ranges(summary: &Summary) -> Result<Vec<ClaimRow>> {
    let all = PublishedRange::all()?;
    let of = |row: &SummaryRow, range: &PublishedRange| {
        let key = &row.key;
        (&range.model, &range.cluster, range.gpus.0, &range.system)
            == (&key.model, &key.cluster, key.gpus as usize, &key.system)
    };
    let rows = summary.rows.iter().flat_map(|row| {
        let held = all.iter().filter(move |range| of(row, range));
        held.map(|range| in_range(row, range, &summary.baseline))
    });
    Ok(rows.collect())
}

fn in_range(row: &SummaryRow, range: &PublishedRange, baseline: &str) -> ClaimRow {
    let (low, high) = (range.low.0, range.high.0);
    let system = &row.key.system;
    let (claim, published, simulated, unit) = match range.quantity {
        Ranged::Step => {
            let step = row.step.as_ref().map(|step| step.median);
            (format!("an iteration of {system}"), format!("{low} to {high} s"), step, " s")
        }
        Ranged::Speedup => {
            let ratio = row.speedup.as_ref().map(|speedup| speedup.by_medians);
            (format!("{system} over {baseline}, by medians"), format!("close to {low}"), ratio, "")
        }
    };
    ClaimRow {
        case: row.key.case.clone(),
        claim,
        published,
        simulated: simulated.map_or(FAILED.to_owned(), |value| format!("{value:.2}{unit}")),
        outcome: Outcome::Tested(
            simulated.map_or(Verdict::NotReproduced, |value| Verdict::of_error(range.error(value))),
        ),
    }
}

/// The plans that the search picks beside those that the authors ran: a row for every case.
pub fn picks(compared: &[PlanComparison]) -> Vec<ClaimRow> {
    compared.iter().map(pick).collect()
}

fn pick(compared: &PlanComparison) -> ClaimRow {
    let PlanComparison { pick, authors, .. } = compared;
    let published = authors.measured_s.zip(pick.measured_s).map(|(authors, pick)| authors / pick);
    let simulated = authors.run_s.zip(pick.run_s).map(|(authors, pick)| authors / pick);
    let verdict =
        |measured| simulated.map_or(Verdict::NotReproduced, |predicted| Verdict::of(&Pair { predicted, measured }));
    ClaimRow {
        case: compared.case.clone(),
        claim: format!("the search's {} over the authors' {}, by medians", pick.plan, authors.plan),
        published: published.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        simulated: simulated.map_or(FAILED.to_owned(), |ratio| format!("{ratio:.2}")),
        outcome: match published {
            _ if !compared.differs() => Outcome::Untested("the same plan"),
            None => Outcome::Untested("not measured"),
            Some(measured) => Outcome::Tested(verdict(measured)),
        },
    }
}

/// The mean error of the performance model on single layers that no constant was fitted to, beside that of the paper's model on the
/// same layers; none are given where there are no measurements, or too few.
pub fn layers(held_out: Option<&LayerOutcome>) -> Vec<ClaimRow> {
    let claim = "mean error of the performance model on single layers".to_owned();
    let Some(held_out) = held_out else {
        let [case, published, simulated] = ["all", "-", "-"].map(str::to_owned);
        return vec![ClaimRow {
            case,
            claim,
            published,
            simulated,
            outcome: Outcome::Untested("no measurements given"),
        }];
    };
    let row = |setting: &LayerErrors| ClaimRow {
        case: format!("{} GPUs, micro-batch {}", setting.gpus, setting.micro_batch),
        claim: claim.clone(),
        published: setting.paper.map_or("-".to_owned(), |paper| share(paper.mean)),
        simulated: share(setting.errors.mean),
        outcome: Outcome::Tested(Verdict::of_error(setting.errors.mean)),
    };
    held_out.settings.iter().map(row).collect()
}

/// To what the constants of a suite's clusters were fitted; those that were fitted to the published times of `files` are in sample.
///
/// # Errors
/// A cluster that is not known.
pub fn fitted(suite: &Suite, files: &[&str]) -> Result<String> {
    let mut sentences: Vec<String> = Vec::new();
    for case in &suite.cases {
        let sentence = fitted_to(&Cluster::named("claims", &case.cluster.name)?, files);
        if !sentences.contains(&sentence) {
            sentences.push(sentence);
        }
    }
    Ok(sentences.join(" "))
}

/// The same of one cluster.
pub fn fitted_to(cluster: &Cluster, files: &[&str]) -> String {
    let (name, how) = (&cluster.name, fits(cluster).join("; "));
    match was_fitted_to(cluster, files) {
        true => format!("**In sample**: constants of `{name}` were {how}."),
        false if how.is_empty() => format!("No constant of `{name}` was fitted."),
        false => format!("Constants of `{name}` were {how}, not to these times."),
    }
}

/// Whether any of its constants was fitted to one of `files`.
pub fn was_fitted_to(cluster: &Cluster, files: &[&str]) -> bool {
    fits(cluster).iter().any(|fit| files.iter().any(|file| fit.contains(file)))
}

/// To what its constants were fitted, as their sources say.
fn fits(cluster: &Cluster) -> Vec<&str> {
    let constants = cluster.constants().into_iter();
    let mut fits: Vec<&str> = constants.map(|(_, constant, _)| constant.source.as_str()).collect();
    fits.retain(|source| source.starts_with("fitted to"));
    fits.dedup();
    fits
}

/// The page in Markdown. `routing`: what the suites were run on.
///
/// # Errors
/// A defect of the list of claims that no number is held of.
pub fn page(tested: &[Tested], routing: &str) -> Result<String> {
    let not_held = NotHeld::all()?;
    let count = |is: &dyn Fn(Outcome) -> bool| {
        tested.iter().flat_map(|tested| &tested.rows).filter(|row| is(row.outcome)).count()
    };
    let of = |verdict| count(&|outcome| outcome == Outcome::Tested(verdict));
    let untested = count(&|outcome| matches!(outcome, Outcome::Untested(_))) + not_held.len();
    let mut page = format!(
        "# The paper's claims\n\nEvery number that was published with SmartMoE (USENIX ATC'23) and is held here, beside what is \
         simulated; `moebench claims` wrote this page. Routing: {routing}. Reproduced: within {:.0}% of the published number; \
         within tolerance: within {:.0}%. A row stands here whatever its outcome. A section says to what its clusters' constants \
         were fitted; *in sample* means to the very times that its rows are held against, so that they say how well one set of \
         constants explains all of them (results/validation says what the fits are worth on what they did not see). Sums include \
         each run's start-up, which the simulator does not have.\n\n\
         {} reproduced, {} within tolerance, {} not reproduced, {untested} not testable here.\n",
        REPRODUCED * 100.0,
        TOLERATED * 100.0,
        of(Verdict::Reproduced),
        of(Verdict::WithinTolerance),
        of(Verdict::NotReproduced),
    );
    for tested in tested {
        page += &section(tested);
    }
    page += "\n## Not testable here\n\n| figure | claim | why |\n|---|---|---|\n";
    for NotHeld { figure, claim, why } in &not_held {
        page += &format!("| {figure} | {claim} | {why} |\n");
    }
    Ok(page)
}

fn section(tested: &Tested) -> String {
    let Tested { title, command, basis, .. } = tested;
    let effort = tested.effort.as_ref().map_or("read back".to_owned(), Effort::label);
    let mut text = format!(
        "\n## {title}\n\n`{command}`: {effort}. {basis}\n\n\
         | case | claim | published | simulated | |\n|---|---|---|---|---|\n"
    );
    for row in &tested.rows {
        let ClaimRow { case, claim, published, simulated, outcome } = row;
        text += &format!("| {case} | {claim} | {published} | {simulated} | {} |\n", outcome.label());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan_comparison::Rated;
    use runs::summary::claims::Statistic;

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
        let rows: Vec<ClaimRow> =
            [Some(2.08), Some(1.75), Some(1.6), None].map(claim).into_iter().map(ClaimRow::from).collect();
        let outcomes: Vec<String> = rows.iter().map(|row| row.outcome.label()).collect();
        assert_eq!(outcomes, ["reproduced", "within tolerance", "**not reproduced**", "**not reproduced**"]);
        let effort = Effort { seconds: 30.0, peak_bytes: Some(4.5e8) };
        let (title, command) = ("a-suite".to_owned(), "moebench run a-suite".to_owned());
        let basis = "In sample.".to_owned();
        let tested = |effort, rows| Tested {
            title: title.clone(),
            command: command.clone(),
            effort,
            basis: basis.clone(),
            rows,
        };
        let page = page(&[tested(Some(effort), rows), tested(None, layers(None))], "a test").unwrap();
        assert_eq!(page.lines().filter(|line| line.starts_with("| a.b.16")).count(), 4);
        let untested = NotHeld::all().unwrap().len() + 1;
        let counts = format!("1 reproduced, 1 within tolerance, 2 not reproduced, {untested} not testable here.");
        assert!(page.contains(&counts), "{page}");
        assert!(page.contains("| 2.00 | failed | **not reproduced** |"));
        assert!(page.contains("`moebench run a-suite`: 0.5 minutes, 0.5 GB at most. In sample.\n"));
        assert!(page.contains("`moebench run a-suite`: read back. In sample.\n"));
        assert!(page.contains("| - | - | not testable: no measurements given |"));
    }

    /// A pick is held against a measurement where both plans were measured, and has its row where they were not.
    #[test]
    fn every_pick_has_its_row() {
        let rated = |plan: &str, run_s, measured_s| Rated {
            plan: plan.to_owned(),
            estimate_s: None,
            run_s: Some(run_s),
            measured_s,
            state_bytes: 0.0,
            peak_bytes: 0.0,
            failure: None,
        };
        let compared = |pick: Rated| PlanComparison {
            case: "a.b.16.no-drop".to_owned(),
            candidates: 2,
            pick,
            authors: rated("pp2", 2.0, Some(3.0)),
            usable_bytes: 0.0,
            estimate_agrees: true,
            run_agrees: true,
            measured_agrees: None,
        };
        let all = [
            rated("pp1", 1.0, Some(1.5)),
            rated("pp1", 1.0, Some(3.1)),
            rated("pp1", 1.0, None),
            rated("pp2 every10", 2.0, Some(3.0)),
        ];
        let rows = picks(&all.map(compared));
        let shown: Vec<(&str, &str, String)> =
            rows.iter().map(|row| (row.published.as_str(), row.simulated.as_str(), row.outcome.label())).collect();
        let expected = [
            ("2.00", "2.00", "reproduced"),
            ("0.97", "2.00", "**not reproduced**"),
            ("-", "2.00", "not testable: not measured"),
            ("1.00", "1.00", "not testable: the same plan"),
        ];
        assert_eq!(shown, expected.map(|(published, simulated, outcome)| (published, simulated, outcome.to_owned())));
    }

    /// A range that no suite runs would have no row.
    #[test]
    fn every_range_is_of_a_run_of_the_suite() {
        let suite = Suite::named("test", "paper-swin").unwrap();
        for range in PublishedRange::all().unwrap() {
            let runs = |case: &workloads::Case| {
                let run = case.as_run_by(&range.system);
                (&run.model.name, &run.cluster.name, run.gpus) == (&range.model, &range.cluster, range.gpus.0)
            };
            assert!(suite.systems.contains(&range.system) && suite.cases.iter().any(runs), "{range:?}");
        }
    }

    /// In sample are the files that a cluster's constants were fitted to, and no others.
    #[test]
    fn what_was_fitted_to_is_said() {
        let said = |cluster: &str, file: &str| fitted_to(&Cluster::named("test", cluster).unwrap(), &[file]);
        assert!(
            said("inky", "end_to_end.csv")
                .starts_with("**In sample**: constants of `inky` were fitted to end_to_end.csv")
        );
        assert!(said("nico-placement", "adaptive_every100.csv").starts_with("**In sample**"));
        assert!(said("nico", "end_to_end.csv").ends_with("width 1024, not to these times."));
        assert_eq!(said("gb200x72", "end_to_end.csv"), "No constant of `gb200x72` was fitted.");
    }
}
