//! SmartMoE's own pick of a plan beside the plan that its authors ran, for every case of a suite that states one.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use systems::System;
use systems::zoo::smartmoe::SMARTMOE;
use workloads::trace::RoutingTrace;
use workloads::{Case, Suite};

use super::page::Section;
use super::plan_comparison::{self, PlanComparison};
use super::tables::plans_table;
use super::{Inputs, Study, claims};
use runs::prepare;

/// Simulated iterations that a comparison takes unless told otherwise.
pub const PLANS_ITERATIONS: usize = 50;

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
        let on_cluster = |case: &Case| self.cluster.as_ref().is_none_or(|cluster| case.cluster.name == *cluster);
        suite.cases.retain(|case| case.plans.contains_key(name) && on_cluster(case));
        let place = self.cluster.as_ref().map_or(String::new(), |cluster| format!(" on {cluster}"));
        ensure!(!suite.cases.is_empty(), "{file}: no case{place} states a plan of {name}");
        suite.systems = vec![name.to_owned()];
        suite.seeds.truncate(1);
        let prepared = prepare::cases(file, &suite, |_| self.trace)?;
        prepared.par_iter().map(|case| plan_comparison::compare(case, suite.warmup, self.iterations)).collect()
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
