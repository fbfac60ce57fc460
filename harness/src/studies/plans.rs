//! SmartMoE's own pick of a plan beside the plan that its authors ran, for every case of a suite that states one: both as
//! the offline search estimates them on the profile, and as a simulated run of later iterations finds them.

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::Serialize;
use systems::iteration::run::Run;
use systems::plan::memory::{STATE_BYTES_PER_PARAMETER, StageParameters};
use systems::zoo::smartmoe::SMARTMOE;
use systems::{CostModel, Plan, System};
use workloads::trace::RoutingTrace;
use workloads::{Case, Suite};

use super::page::Section;
use super::tables::plans_table;
use super::{Inputs, Study, claims};
use crate::runs::prepare::{self, PreparedCase, PreparedRun};
use crate::summary::statistics::median;

/// Simulated iterations that a comparison takes unless told otherwise.
pub const PLANS_ITERATIONS: usize = 50;

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
}

impl PlanComparison {
    /// Whether the estimate and the run both find the pick at least as fast.
    pub fn both_agree(&self) -> bool {
        self.estimate_agrees && self.run_agrees
    }
}

/// A plan, rated twice.
#[derive(Clone, Debug, Serialize)]
pub struct Rated {
    pub plan: String,
    /// Iteration by the search's estimate, s; none where it rejects the plan.
    pub estimate_s: Option<f64>,
    /// Median iteration of the simulated run, s; none where it ends early.
    pub run_s: Option<f64>,
    /// Weights, gradients and optimizer state of the rank that has most of them, B.
    pub state_bytes: f64,
    /// Peak of the fullest rank over the simulated run, B.
    pub peak_bytes: f64,
    /// Why there is no estimate or no whole run.
    pub failure: Option<String>,
}

pub struct Plans<'a> {
    /// What errors call the suite.
    pub file: String,
    pub suite: Suite,
    pub trace: &'a RoutingTrace,
    /// Cases on that cluster alone.
    pub cluster: Option<String>,
    /// Simulated iterations after the suite's warm-up.
    pub iterations: usize,
}

impl<'a> Study<'a> for Plans<'a> {
    type Outcome = Vec<PlanComparison>;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let file = inputs.unsaid.suite.clone();
        let suite = prepare::suite(&file)?;
        Ok(Some(Self { file, suite, trace: &inputs.trace, cluster: None, iterations: PLANS_ITERATIONS }))
    }

    fn predict(&self) -> Result<Vec<PlanComparison>> {
        let (name, file, mut suite) = (SMARTMOE.name(), &self.file, self.suite.clone());
        let on_cluster = |case: &Case| self.cluster.as_ref().is_none_or(|cluster| case.cluster == *cluster);
        suite.cases.retain(|case| case.plans.contains_key(name) && on_cluster(case));
        let place = self.cluster.as_ref().map_or(String::new(), |cluster| format!(" on {cluster}"));
        ensure!(!suite.cases.is_empty(), "{file}: no case{place} states a plan of {name}");
        suite.systems = vec![name.to_owned()];
        suite.seeds.truncate(1);
        let prepared = prepare::cases(file, &suite, self.trace)?;
        prepared.par_iter().map(|case| comparison(case, suite.warmup, self.iterations)).collect()
    }

    fn section(&self, outcome: &Vec<PlanComparison>) -> Result<Section> {
        let mut section = Section::new("The offline search beside the authors' plans");
        let (suite, iterations) = (&self.file, self.iterations);
        section.add(format!(include_str!("prose/plans.md"), suite = suite, iterations = iterations));
        section.table(plans_table(outcome));
        section.claims.push(claims::search(outcome));
        Ok(section)
    }
}

fn comparison(case: &PreparedCase, warmup: usize, iterations: usize) -> Result<PlanComparison> {
    let id = case.case.id();
    let prepared = case.runs.first().with_context(|| format!("{id}: no system"))?;
    let costs = CostModel::new(&prepared.job.cluster);
    let candidates = SMARTMOE.candidates(&prepared.job, &costs);
    let pick =
        candidates.iter().find(|candidate| candidate.outcome.is_ok()).with_context(|| format!("{id}: no plan"))?;
    let stated = prepared.case.plans.get(SMARTMOE.name()).with_context(|| format!("{id}: no plan stated"))?;
    let rate = |plan| rated(prepared, &costs, plan, warmup, iterations);
    let (pick, authors) = (rate(pick.plan), rate(Plan::from(*stated)));
    let faster = |of: fn(&Rated) -> Option<f64>| match (of(&pick), of(&authors)) {
        (Some(pick), Some(authors)) => pick <= authors,
        (pick, _) => pick.is_some(),
    };
    let gpu = &prepared.job.cluster.gpu;
    Ok(PlanComparison {
        case: id,
        candidates: candidates.len(),
        estimate_agrees: faster(|rated| rated.estimate_s),
        run_agrees: faster(|rated| rated.run_s),
        pick,
        authors,
        usable_bytes: gpu.memory.value - gpu.memory_reserved.value,
    })
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
        run_s: median(&steps).map(|median| median.value),
        peak_bytes: peak,
        failure,
    }
}
