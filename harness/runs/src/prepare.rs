//! From a suite to runs: a job with its routing for every case and system. Everything that can be wrong with the input is
//! found here, before any work.

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail, ensure};
use systems::plan::routing::JobRouting;
use systems::plan::search;
use systems::{CostModel, Job, Plan, PlanError, System};
use workloads::suite::{SuiteFile, TraceUse, is_path};
use workloads::trace::RoutingTrace;
use workloads::{Case, Change, Cluster, Model, Seconds, Suite};

use crate::named;
use crate::traces::{self, CaseTraces};

/// A case under one seed: what its systems run.
pub struct PreparedCase<'a> {
    /// As the suite states it.
    pub case: Case,
    pub seed: u64,
    /// In the order of the suite's systems.
    pub runs: Vec<PreparedRun<'a>>,
}

impl PreparedCase<'_> {
    /// The name of the case's files.
    pub fn id(&self) -> String {
        case_id(&self.case.id(), self.seed)
    }
}

/// One system on one case.
pub struct PreparedRun<'a> {
    /// Among all runs of the suite, from 0.
    pub number: usize,
    /// The suite's case, which `case` may differ from.
    pub case_id: String,
    pub seed: u64,
    pub system: &'static dyn System,
    /// As the system runs it.
    pub case: Case,
    /// Shared by the systems that do not differ.
    pub job: Arc<Job>,
    pub routing: Arc<JobRouting<'a>>,
    /// The plan that the suite gives.
    forced: Option<Plan>,
    /// Its rank, where the suite gives that.
    rank: Option<usize>,
    /// Whether SmartMoE's search finds the plan.
    searched: bool,
    plan: OnceLock<Result<Chosen, PlanError>>,
}

/// The name of a case under a seed.
pub fn case_id(case: &str, seed: u64) -> String {
    format!("{case}.seed{seed}")
}

/// The name of a run of a system on a case under a seed.
pub fn run_id(case: &str, seed: u64, system: &str) -> String {
    format!("{}.{system}", case_id(case, seed))
}

/// The plan of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    pub plan: Plan,
    /// What the system's offline search expects an iteration to take; nothing where the suite gave the plan itself.
    pub expected: Option<Seconds>,
}

impl PreparedRun<'_> {
    /// The run in names of files and in messages.
    pub fn id(&self) -> String {
        run_id(&self.case_id, self.seed, self.system.name())
    }

    /// The suite's plan, or the system's own choice or what SmartMoE's search finds for it, which is searched for once.
    ///
    /// # Errors
    /// No plan fits.
    pub fn plan(&self) -> Result<&Chosen, &PlanError> {
        let choose = || match self.forced {
            Some(plan) => Ok(Chosen { plan, expected: None }),
            None => {
                let costs = CostModel::new(&self.job.cluster, self.job.gpus);
                let candidates = || match self.searched {
                    true => search::searched(self.system, &self.job, &costs),
                    false => self.system.candidates(&self.job, &costs),
                };
                let (plan, estimate) = match self.rank {
                    Some(rank) => search::ranked(candidates(), rank)?,
                    None if self.searched => search::first_usable(candidates())?,
                    None => self.system.best(&self.job, &costs)?,
                };
                Ok(Chosen { plan, expected: Some(estimate.step) })
            }
        };
        self.plan.get_or_init(choose).as_ref()
    }
}

/// Reads a suite, with changed fields, or a collection of suites, a name or a path. Suites of a collection are changed by
/// [`changed`].
///
/// # Errors
/// An unknown name, an unreadable file, or whatever is wrong with its text or a change.
pub fn suite_file(name: &str, changes: &[Change]) -> Result<SuiteFile> {
    if !is_path(name) {
        return match SuiteFile::named("moebench run", name)? {
            SuiteFile::Suite(_) => Ok(SuiteFile::Suite(changed("moebench run", name, changes)?.into())),
            collection => Ok(collection),
        };
    }
    let mut file = SuiteFile::parse_with(name, &read(name)?, changes)?;
    if let SuiteFile::Suite(suite) = &mut file {
        named::suite(name, suite, Path::new(name).parent().unwrap_or(Path::new("")))?;
    }
    Ok(file)
}

/// A suite that comes with moebench, with changed fields; `context` says who names it.
///
/// # Errors
/// An unknown name, or what is wrong with a change.
pub fn changed(context: &str, name: &str, changes: &[Change]) -> Result<Suite> {
    let mut suite = Suite::named_with(context, name, changes)?;
    named::suite(name, &mut suite, Path::new(""))?;
    Ok(suite)
}

/// Reads one suite, a name or a path.
///
/// # Errors
/// As for [`suite_file`], and a collection, with the suites that it holds.
pub fn suite(name: &str) -> Result<Suite> {
    match suite_file(name, &[])? {
        SuiteFile::Suite(suite) => Ok(*suite),
        SuiteFile::Collection(all) => {
            bail!("{name}: a collection of suites: expected one of them: {}", all.suites.join(", "))
        }
    }
}

/// Reads a model, a name or a path.
///
/// # Errors
/// As for [`suite_file`].
pub fn model(context: &str, name: &str) -> Result<Model> {
    if is_path(name) {
        return Ok(Model::parse(name, &read(name)?)?);
    }
    Ok(Model::named(context, name)?)
}

/// Reads a cluster, a name or a path.
///
/// # Errors
/// As for [`suite_file`].
pub fn cluster(context: &str, name: &str) -> Result<Cluster> {
    Ok(Cluster::parse(name, &cluster_text(context, name)?)?)
}

/// The TOML of a cluster, a name or a path.
///
/// # Errors
/// An unknown name or an unreadable file.
pub fn cluster_text(context: &str, name: &str) -> Result<String> {
    if is_path(name) {
        return read(name);
    }
    Ok(Cluster::text(context, name)?.to_owned())
}

/// The system of that name.
///
/// # Errors
/// An unknown name, with all that are known.
pub fn system(context: &str, name: &str) -> Result<&'static dyn System> {
    systems::by_name(name).map_err(|error| anyhow::anyhow!("{context}: {error}"))
}

/// The routing of every case: its own, if it is made then for the MoE layers of its model; else the trace that the command line has `named`; else
/// what the suite states; else the default trace. `load` loads the trace of the command line, or the default.
///
/// # Errors
/// An unknown model, an imbalance that its layers cannot have, a trace that cannot be read, and what `load` says.
pub fn case_traces(
    file: &str,
    suite: &Suite,
    named: bool,
    load: &dyn Fn() -> Result<Arc<RoutingTrace>>,
) -> Result<CaseTraces> {
    let of_suite = suite.routing.as_ref().filter(|_| !named);
    let mut traces = CaseTraces::default();
    if named && suite.cases.iter().all(|case| !case.routing.is_empty()) {
        // It is used by none, and must be one all the same.
        load()?;
    }
    for case in &suite.cases {
        let Some(stated) = case.routing.first().or(of_suite) else {
            traces.push(None, load)?;
            continue;
        };
        let of_case = if case.routing.is_empty() { String::new() } else { format!("cases[{}].", case.number) };
        let context = || format!("{file}: {of_case}routing");
        if let Some(recorded) = &stated.trace {
            let path = recorded.place();
            let read = || -> Result<_> {
                let trace = traces::load(Some(Path::new(path))).with_context(context)?;
                Ok(Arc::new(trace.called(&recorded.name)))
            };
            traces.push(Some(format!("recorded {path}")), &read)?;
            continue;
        }
        let model = model(&format!("{file}: cases[{}].model", case.number), case.model.place())?;
        let experts = model.moe_layers().map(|moe| moe.experts).max().unwrap_or(1);
        let (layers, top_k) = (model.moe_layers().count(), case.gate.top_k(model.top_k) as u32);
        // As many as the profiling run sees; past the end, a trace begins again.
        let iterations = suite.iterations.max(suite.trace.profile);
        let make = || {
            let trace = stated.generate(layers, experts, top_k, iterations);
            Ok(Arc::new(trace.with_context(context)?))
        };
        traces.push(Some(format!("{stated:?} {layers} {experts} {top_k}")), &make)?;
    }
    Ok(traces)
}

/// The text of a file.
///
/// # Errors
/// One that cannot be read.
pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(Path::new(path)).with_context(|| format!("{path}: cannot be read"))
}

/// Prepares every case of a suite under every seed, in the suite's order, each with the trace of its number.
///
/// # Errors
/// The first case that cannot run, with its number and field.
pub fn cases<'a>(
    file: &str,
    suite: &Suite,
    trace_of: impl Fn(usize) -> &'a RoutingTrace,
) -> Result<Vec<PreparedCase<'a>>> {
    let mut cases = Vec::new();
    for &seed in &suite.seeds {
        for (index, case) in suite.cases.iter().enumerate() {
            let number = cases.len() * suite.systems.len();
            cases.push(Preparation { file, suite, trace: trace_of(index), seed }.case(case, number)?);
        }
    }
    Ok(cases)
}

/// Longest id of a case. With seed, system and ending it names files, of at most 255 bytes.
const LONGEST_ID: usize = 180;

/// Where a case stands.
struct Preparation<'s, 'a> {
    file: &'s str,
    suite: &'s Suite,
    trace: &'a RoutingTrace,
    seed: u64,
}

impl<'a> Preparation<'_, 'a> {
    fn case(&self, case: &Case, first: usize) -> Result<PreparedCase<'a>> {
        let context = format!("{}: cases[{}]", self.file, case.number);
        let length = case.id().len();
        ensure!(
            length <= LONGEST_ID,
            "{context}: {} names its files: {length} bytes, expected at most {LONGEST_ID}: give its model, its cluster or the case a shorter `name`",
            case.id()
        );
        let shared = self.job(&context, case)?;
        let mut runs = Vec::new();
        for (name, number) in self.suite.systems.iter().zip(first..) {
            let system = system(&format!("{}: systems", self.file), name)?;
            let own = case.as_run_by(name);
            let (job, routing) = match case.differs.contains_key(name) {
                true => self.job(&format!("{context}.differs.{name}"), &own)?,
                false => shared.clone(),
            };
            let forced = forced_plan(case, name);
            check_forced(case, &job, forced).with_context(|| format!("{context}.plans.{name}"))?;
            runs.push(PreparedRun {
                number,
                case_id: case.id(),
                seed: self.seed,
                system,
                case: own,
                job,
                routing,
                forced,
                rank: case.ranked.get(name).copied(),
                searched: self.suite.searched.contains(name),
                plan: OnceLock::new(),
            });
        }
        Ok(PreparedCase { case: case.clone(), seed: self.seed, runs })
    }

    fn job(&self, context: &str, case: &Case) -> Result<(Arc<Job>, Arc<JobRouting<'a>>)> {
        let (mut job, routing) = job(context, case, self.suite.trace, self.trace, self.seed)?;
        job.cluster.with_gradients(self.suite.training.gradients);
        Ok((Arc::new(job), Arc::new(routing)))
    }
}

fn check_forced(case: &Case, job: &Job, forced: Option<Plan>) -> Result<()> {
    let Some(plan) = forced else { return Ok(()) };
    plan.check(job)?;
    if case.layer.is_some() && (plan.pp, plan.tp) != (1, 1) {
        bail!("plan {plan}: expected pp = 1 and tp = 1 where a layer runs alone");
    }
    Ok(())
}

/// The plan that a case gives a system. Layers that run alone are expert-parallel over all ranks unless the case says
/// otherwise: what surrounds them, an offline search has no part in.
fn forced_plan(case: &Case, system: &str) -> Option<Plan> {
    if case.ranked.contains_key(system) {
        return None;
    }
    let given = case.plans.get(system).map(|plan| Plan::from(*plan));
    given.or(case.layer.and(case.micro_batch).map(|micro_batch| Plan {
        dp: case.gpus,
        ep: case.gpus,
        micro_batch,
        ..Plan::default()
    }))
}

/// The job of a case, and what its gate chooses.
///
/// # Errors
/// Unknown names, or a batch and a trace that do not fit.
pub fn job<'a>(
    context: &str,
    case: &Case,
    part: TraceUse,
    trace: &'a RoutingTrace,
    seed: u64,
) -> Result<(Job, JobRouting<'a>)> {
    let model = model(&format!("{context}.model"), case.model.place())?;
    let cluster = case.on_network(cluster(&format!("{context}.cluster"), case.cluster.place())?);
    if model.moe_layers().next().is_none() {
        bail!("{context}.model: {} has no MoE layer", case.model);
    }
    let mut job = Job::new(model, cluster, case.gpus, case.gate, case.global_batch);
    job.micro_batch = case.micro_batch;
    job.search = case.search;
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
        // The last iteration of each quarter; iterations count from 0.
        None => {
            let last = |quarter: usize| (part.profile * quarter / 4).saturating_sub(1);
            let part = TraceUse { start: part.profile_start.or(part.start), ..part };
            let seen = JobRouting::new(&profiled(&job), part, trace, seed).with_context(|| context.to_owned())?;
            job.profile = (1..=4).map(|quarter| seen.iteration(last(quarter))).collect();
        }
    }
    Ok((job, routing))
}

/// The job of a profiling run: a batch whose counts would take too much memory is halved until they do not.
fn profiled(job: &Job) -> Job {
    /// Layers x experts x samples of an iteration: 64 MiB.
    const COUNTS: usize = 1 << 24;
    let of_sample: usize = job.model.moe_layers().map(|moe| moe.experts).sum();
    let mut profiled = job.clone();
    while profiled.global_batch.is_multiple_of(2) && profiled.global_batch.saturating_mul(of_sample) > COUNTS {
        profiled.global_batch /= 2;
    }
    profiled
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
        let prepared = cases("test", &suite, |_| &trace).unwrap().remove(0);
        let run = |system: &str| prepared.runs.iter().find(|run| run.system.name() == system).unwrap();
        assert_eq!((run("fastermoe").job.micro_batch, run("smartmoe").job.micro_batch), (Some(1), Some(2)));
        // The flattened routing has a lower maximum and as many entries.
        let loads = |system: &str| run(system).routing.iteration(5).loads(0);
        assert_eq!(loads("fastermoe").iter().sum::<u64>(), loads("smartmoe").iter().sum::<u64>());
        assert!(loads("fastermoe").iter().max() < loads("smartmoe").iter().max());
    }

    #[test]
    fn runs_are_numbered_over_cases_and_seeds() {
        let mut suite = Suite::named("test", "smoke").unwrap();
        suite.cases.truncate(2);
        suite.seeds = vec![1, 2];
        let trace = SynthSpec { samples: 1, ..SynthSpec::default() }.generate().unwrap();
        let prepared = cases("test", &suite, |_| &trace).unwrap();
        let runs: Vec<_> = prepared.iter().flat_map(|case| &case.runs).collect();
        assert_eq!(runs.len(), 2 * 2 * 3);
        assert!(runs.iter().enumerate().all(|(index, run)| run.number == index));
        assert_eq!(runs[7].id(), "gpt-tiny.inky.8.no-drop.seed2.fastermoe");
    }

    #[test]
    fn a_collection_is_no_suite() {
        assert_eq!(suite("smoke").unwrap().name, "smoke");
        let error = suite("paper").unwrap_err().to_string();
        assert!(error.contains("paper: a collection of suites: expected one of them: paper-gpt,"), "{error}");
    }
}
