//! From a suite's case to a job with a routing: everything that can be wrong with the input is found here, before any work.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use systems::plan::routing::JobRouting;
use systems::{Job, Plan, System};
use workloads::suite::{Described, TraceUse};
use workloads::trace::RoutingTrace;
use workloads::{Case, Cluster, Model, Suite};

/// A case, ready to run.
pub struct Prepared<'a> {
    /// As the suite states it.
    pub case: Case,
    /// What is trained.
    pub job: Job,
    /// What its gate chooses.
    pub routing: JobRouting<'a>,
    /// The systems, in the suite's order, each with a plan if the suite forces one.
    pub systems: Vec<(&'static dyn System, Option<Plan>)>,
    /// Systems whose job is not the case's, by name.
    pub different: BTreeMap<String, Prepared<'a>>,
}

impl<'a> Prepared<'a> {
    /// The case as a system runs it.
    pub fn as_run_by(&self, system: &str) -> &Prepared<'a> {
        self.different.get(system).unwrap_or(self)
    }
}

/// Reads a suite or a collection of suites, a name or a path.
///
/// # Errors
/// An unknown name, an unreadable file, or whatever is wrong with its text.
pub fn described(name: &str) -> Result<Described> {
    if is_path(name) {
        return Ok(Described::parse(name, &read(name)?)?);
    }
    Ok(Described::named("moebench run", name)?)
}

/// Reads one suite, a name or a path.
///
/// # Errors
/// As for [`described`], and a collection, with the suites that it holds.
pub fn suite(name: &str) -> Result<Suite> {
    match described(name)? {
        Described::Suite(suite) => Ok(suite),
        Described::Collection(all) => {
            bail!("{name}: a collection of suites: expected one of them: {}", all.suites.join(", "))
        }
    }
}

/// Reads a model, a name or a path.
///
/// # Errors
/// As for [`described`].
pub fn model(context: &str, name: &str) -> Result<Model> {
    if is_path(name) {
        return Ok(Model::parse(name, &read(name)?)?);
    }
    Ok(Model::named(context, name)?)
}

/// Reads a cluster, a name or a path.
///
/// # Errors
/// As for [`described`].
pub fn cluster(context: &str, name: &str) -> Result<Cluster> {
    if is_path(name) {
        return Ok(Cluster::parse(name, &read(name)?)?);
    }
    Ok(Cluster::named(context, name)?)
}

/// The system of that name.
///
/// # Errors
/// An unknown name, with all that are known.
pub fn system(context: &str, name: &str) -> Result<&'static dyn System> {
    systems::by_name(name).map_err(|error| anyhow::anyhow!("{context}: {error}"))
}

fn is_path(name: &str) -> bool {
    name.ends_with(".toml") || name.contains('/')
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(Path::new(path)).with_context(|| format!("{path}: cannot be read"))
}

/// Prepares every case of a suite.
///
/// # Errors
/// The first case that cannot run, with its number and field.
pub fn cases<'a>(file: &str, suite: &Suite, trace: &'a RoutingTrace, seed: u64) -> Result<Vec<Prepared<'a>>> {
    suite
        .cases
        .iter()
        .enumerate()
        .map(|(index, case)| {
            let context = format!("{file}: cases[{index}]");
            let mut prepared = one_case(&context, case, suite.trace, trace, seed)?;
            for name in &suite.systems {
                let system = system(&format!("{file}: systems"), name)?;
                if case.differs.contains_key(name) {
                    let context = format!("{context}.differs.{name}");
                    let own = one_case(&context, &case.as_run_by(name), suite.trace, trace, seed)?;
                    prepared.different.insert(name.clone(), own);
                }
                let forced = forced_plan(case, name);
                if let Some(plan) = forced {
                    let context = || format!("{context}.plans.{name}");
                    plan.check(&prepared.as_run_by(name).job).with_context(context)?;
                    if case.layer.is_some() && (plan.pp, plan.tp) != (1, 1) {
                        bail!("{}: plan {plan}: expected pp = 1 and tp = 1 where a layer runs alone", context());
                    }
                }
                prepared.systems.push((system, forced));
            }
            Ok(prepared)
        })
        .collect()
}

/// The plan that a case gives a system. Layers that run alone are expert-parallel over all ranks unless the case says
/// otherwise: what surrounds them, an offline search has no part in.
fn forced_plan(case: &Case, system: &str) -> Option<Plan> {
    let given = case.plans.get(system).map(|plan| Plan::from(*plan));
    given.or(case.layer.and(case.micro_batch).map(|micro_batch| Plan {
        pp: 1,
        dp: case.gpus,
        tp: 1,
        ep: case.gpus,
        expert_dp: 1,
        micro_batch,
        placement_every: 0,
    }))
}

/// Prepares one case, without systems.
///
/// # Errors
/// Unknown names, or a batch and a trace that do not fit.
pub fn one_case<'a>(
    context: &str,
    case: &Case,
    part: TraceUse,
    trace: &'a RoutingTrace,
    seed: u64,
) -> Result<Prepared<'a>> {
    let model = model(&format!("{context}.model"), &case.model)?;
    let cluster = cluster(&format!("{context}.cluster"), &case.cluster)?;
    if model.moe_layers().next().is_none() {
        bail!("{context}.model: {} has no MoE layer", case.model);
    }
    let mut job = Job::new(model, cluster, case.gpus, case.gate, case.global_batch);
    job.micro_batch = case.micro_batch;
    let moe_layers = job.model.moe_layers().count();
    let routing = match case.layer {
        Some(layer) if layer >= moe_layers => {
            bail!("{context}.layers = {layer}: {} has {moe_layers} MoE layers, counted from 0", case.model);
        }
        Some(layer) => JobRouting::of_layer(&job, layer, part, trace, seed),
        None => JobRouting::new(&job, part, trace, seed),
    };
    let routing = routing.with_context(|| context.to_owned())?;
    match case.layer.and_then(|layer| job.layer_alone(layer)) {
        Some(alone) => job = alone,
        None => job.profile = (1..=4).map(|quarter| routing.iteration(part.profile * quarter / 4)).collect(),
    }
    Ok(Prepared { case: case.clone(), job, routing, systems: Vec::new(), different: BTreeMap::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::Gate;
    use workloads::suite::Difference;
    use workloads::trace::SynthSpec;

    #[test]
    fn a_system_that_differs_has_its_own_job() {
        let mut suite = Suite::named("test", "smoke").unwrap();
        suite.cases.truncate(1);
        let difference = Difference { gate: Some(Gate::BalancedNoDrop), micro_batch: Some(1), model: None };
        suite.cases[0].differs.insert("fastermoe".to_owned(), difference);
        let trace = SynthSpec { samples: 1, ..SynthSpec::default() }.generate().unwrap();
        let prepared = cases("test", &suite, &trace, 1).unwrap().remove(0);
        assert_eq!(prepared.as_run_by("fastermoe").job.micro_batch, Some(1));
        assert_eq!(prepared.as_run_by("smartmoe").job.micro_batch, Some(2));
        // The flattened routing has a lower maximum and as many entries.
        let loads = |system: &str| prepared.as_run_by(system).routing.iteration(5).loads(0);
        assert_eq!(loads("fastermoe").iter().sum::<u64>(), loads("smartmoe").iter().sum::<u64>());
        assert!(loads("fastermoe").iter().max() < loads("smartmoe").iter().max());
    }

    #[test]
    fn a_collection_is_no_suite() {
        assert_eq!(suite("smoke").unwrap().name, "smoke");
        let error = suite("paper").unwrap_err().to_string();
        assert!(error.contains("paper: a collection of suites: expected one of them: paper-gpt,"), "{error}");
    }
}
