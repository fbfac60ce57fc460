//! What the paper claims, beside what is simulated here: a row for every published ratio of two systems and for every claim
//! that cannot be held against a number, whatever the outcome.

use anyhow::Result;
use workloads::published::NotHeld;

use runs::summary::claims::{PaperClaim, REPRODUCED, TOLERATED, Verdict};

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
        let verdict = match claim.verdict() {
            missed @ Verdict::NotReproduced => format!("**{}**", missed.label()),
            held => held.label().to_owned(),
        };
        text += &format!(
            "| {case} | {system} over {over}, by {} | {published:.2} | {simulated} | {verdict} |\n",
            statistic.label()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let claims = [Some(2.08), Some(1.75), Some(1.6), None].map(claim).to_vec();
        let verdicts: Vec<&str> = claims.iter().map(|claim| claim.verdict().label()).collect();
        assert_eq!(verdicts, ["reproduced", "within tolerance", "not reproduced", "not reproduced"]);
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
