//! Two plans for SmartMoE beside each other: what its search picks and what its authors ran, both as the search estimates
//! them on the profile, and as a simulated run of later iterations finds them.

use anyhow::{Context, Result};
use serde::Serialize;
use systems::iteration::run::Run;
use systems::plan::memory::{STATE_BYTES_PER_PARAMETER, StageParameters};
use systems::zoo::smartmoe::SMARTMOE;
use systems::{CostModel, Plan, System};
use workloads::Published;
use workloads::published::{PublishedRun, Quantity};

use runs::prepare::{PreparedCase, PreparedRun};
use runs::summary::statistics::median;

#[derive(Clone, Debug, Serialize)]
pub struct PlanComparison {
    pub case: String,
    /// Plans that the search had to choose from.
    pub candidates: usize,
    pub pick: Rated,
    pub authors: Rated,
    /// Memory that a rank has for both, B.
    pub usable_bytes: f64,
    /// Whether the search estimates its pick to be at least as fast.
    pub estimate_agrees: bool,
    /// Whether a simulated run of its pick is at least as fast.
    pub run_agrees: bool,
    /// Whether its pick was measured at least as fast; none unless both were.
    pub measured_agrees: Option<bool>,
}

impl PlanComparison {
    /// Whether pick and authors' plan differ in more than online placement.
    pub fn differs(&self) -> bool {
        let offline = |rated: &Rated| rated.plan.split(" every").next().map(str::to_owned);
        offline(&self.pick) != offline(&self.authors)
    }
}

/// A plan, rated twice, and what was measured of it.
#[derive(Clone, Debug, Serialize)]
pub struct Rated {
    pub plan: String,
    /// Iteration by the search's estimate, s; none where it rejects the plan.
    pub estimate_s: Option<f64>,
    /// Median iteration of the simulated run, s; none where it ends early.
    pub run_s: Option<f64>,
    /// Median iteration that was published for the plan without online placement, under whatever name, s.
    pub measured_s: Option<f64>,
    /// Weights, gradients and optimizer state of the rank that has most of them, B.
    pub state_bytes: f64,
    /// Peak of the fullest rank over the simulated run, B.
    pub peak_bytes: f64,
    /// Why there is no estimate or no whole run.
    pub failure: Option<String>,
}

/// Compares the plans of one case; `iterations` are those after the warm-up.
///
/// # Errors
/// A case that states no plan, or one for which the search finds none.
pub fn compare(case: &PreparedCase, warmup: usize, iterations: usize) -> Result<PlanComparison> {
    let id = case.case.id();
    let prepared = case.runs.first().with_context(|| format!("{id}: no system"))?;
    let costs = CostModel::new(&prepared.job.cluster, prepared.job.gpus);
    let candidates = SMARTMOE.candidates(&prepared.job, &costs);
    let pick =
        candidates.iter().find(|candidate| candidate.outcome.is_ok()).with_context(|| format!("{id}: no plan"))?;
    let stated = prepared.case.plans.get(SMARTMOE.name()).with_context(|| format!("{id}: no plan stated"))?;
    let published = Published::all()?;
    let rate = |plan| {
        let measured = measured(&published, prepared, &plan);
        Rated { measured_s: measured, ..rated(prepared, &costs, plan, warmup, iterations) }
    };
    let (pick, authors) = (rate(pick.plan), rate(Plan::from(*stated)));
    let faster = |of: fn(&Rated) -> Option<f64>| match (of(&pick), of(&authors)) {
        (Some(pick), Some(authors)) => pick <= authors,
        (pick, _) => pick.is_some(),
    };
    Ok(PlanComparison {
        case: id,
        candidates: candidates.len(),
        estimate_agrees: faster(|rated| rated.estimate_s),
        run_agrees: faster(|rated| rated.run_s),
        measured_agrees: pick.measured_s.zip(authors.measured_s).map(|(pick, authors)| pick <= authors),
        pick,
        authors,
        usable_bytes: prepared.job.cluster.gpu.usable().0,
    })
}

/// The published median of a plan's offline part.
fn measured(published: &Published, prepared: &PreparedRun, plan: &Plan) -> Option<f64> {
    let case = &prepared.case;
    let run = PublishedRun {
        model: prepared.job.model.name.clone(),
        cluster: prepared.job.cluster.name.clone(),
        gpus: case.gpus,
        gate: case.gate,
        system: SMARTMOE.name().to_owned(),
    };
    published.of_plan(&run, Quantity::MedianStep, &plan.to_string()).map(|number| number.value)
}

fn rated(prepared: &PreparedRun, costs: &CostModel, plan: Plan, warmup: usize, iterations: usize) -> Rated {
    let estimate = SMARTMOE.estimate(&prepared.job, &plan, costs);
    let mut failure = estimate.as_ref().err().map(|error| error.to_string());
    let mut run = Run::new(&prepared.job, costs, &SMARTMOE, plan);
    let (mut steps, mut peak) = (Vec::new(), 0.0f64);
    for t in 0..warmup + iterations {
        let done = run.step(&prepared.routing.iteration(t));
        peak = peak.max(done.timing.peak.bytes.0);
        if done.failure.is_some() {
            failure = done.failure.map(|failure| failure.to_string());
            steps.clear();
            break;
        }
        if t >= warmup {
            steps.push(done.timing.step.0);
        }
    }
    let parameters = (0..plan.pp).map(|stage| StageParameters::new(&prepared.job, &plan, stage).total());
    Rated {
        plan: plan.to_string(),
        state_bytes: parameters.fold(0.0, f64::max) * STATE_BYTES_PER_PARAMETER,
        estimate_s: estimate.ok().map(|estimate| estimate.step.0),
        run_s: median(&steps),
        measured_s: None,
        peak_bytes: peak,
        failure,
    }
}
