//! From a suite's case to a job with a routing: everything that can be wrong with the input is found here, before any work.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail};
use systems::{Job, Plan, System};
use workloads::gate::{Flattening, Gate, GateStatistics};
use workloads::model::Moe;
use workloads::suite::TraceUse;
use workloads::trace::{BatchCounts, Routing, RoutingSpec, RoutingTrace};
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
}

/// Reads a suite, a name or a path.
///
/// # Errors
/// An unknown name, an unreadable file, or whatever is wrong with its text.
pub fn suite(name: &str) -> Result<Suite> {
    if is_path(name) {
        return Ok(Suite::parse(name, &read(name)?)?);
    }
    Ok(Suite::named("moebench run", name)?)
}

/// Reads a model, a name or a path.
///
/// # Errors
/// As for [`suite`].
pub fn model(context: &str, name: &str) -> Result<Model> {
    if is_path(name) {
        return Ok(Model::parse(name, &read(name)?)?);
    }
    Ok(Model::named(context, name)?)
}

/// Reads a cluster, a name or a path.
///
/// # Errors
/// As for [`suite`].
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
    systems::by_name(name).map_err(|known| anyhow::anyhow!("{context}: unknown system `{name}`; known: {known}"))
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
                let forced = case.plans.get(name).map(|plan| Plan::from(*plan));
                if let Some(plan) = forced {
                    plan.check(&prepared.job).with_context(|| format!("{context}.plans.{name}"))?;
                }
                prepared.systems.push((system, forced));
            }
            Ok(prepared)
        })
        .collect()
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
    if model.moe_blocks().is_empty() {
        bail!("{context}.model: {} has no MoE layer", case.model);
    }
    let mut job = Job {
        model,
        cluster,
        gpus: case.gpus,
        gate: case.gate,
        gate_statistics: GateStatistics::default(),
        global_batch: case.global_batch,
        micro_batch: case.micro_batch,
        profile: Vec::new(),
    };
    let routing = JobRouting::new(&job, part, trace, seed).with_context(|| context.to_owned())?;
    job.profile = (0..part.profile.max(1)).map(|t| routing.iteration(t)).collect();
    Ok(Prepared { case: case.clone(), job, routing, systems: Vec::new() })
}

/// What the gate of a job chooses, iteration by iteration: a trace rescaled to the model, a chunk per sample of the
/// global batch. Layers that see different numbers of tokens are rescaled apart.
pub struct JobRouting<'a> {
    spans: Vec<Span<'a>>,
    gate: Gate,
}

/// Consecutive MoE layers with the same number of tokens.
struct Span<'a> {
    layers: Range<usize>,
    routing: Routing<'a>,
    flattening: Flattening,
}

impl<'a> JobRouting<'a> {
    /// The routing of a job.
    ///
    /// # Errors
    /// A trace that cannot stand for it.
    pub fn new(job: &Job, part: TraceUse, trace: &'a RoutingTrace, seed: u64) -> Result<Self> {
        let layers: Vec<&Moe> = job.model.blocks.iter().filter_map(|block| block.moe()).collect();
        let mut spans = Vec::new();
        let mut first = 0;
        for same in layers.chunk_by(|a, b| (a.tokens, a.experts) == (b.tokens, b.experts)) {
            let spec = RoutingSpec {
                layers: layers.len(),
                experts: same[0].experts,
                chunks: job.global_batch,
                entries_per_chunk: (same[0].tokens * job.top_k()) as u32,
                top_k: job.top_k() as u32,
                start: part.start,
                stride: part.stride,
                seed,
            };
            spans.push(Span {
                layers: first..first + same.len(),
                routing: Routing::new(trace, spec)?,
                flattening: Flattening::with(spec.entries_per_chunk, &job.gate_statistics),
            });
            first += same.len();
        }
        Ok(Self { spans, gate: job.gate })
    }

    /// What the gate chooses in training iteration `t`, from 0, before any capacity limit.
    pub fn iteration(&self, t: usize) -> BatchCounts {
        let parts = self.spans.iter().map(|span| {
            let mut batch = span.routing.iteration(t);
            batch.chunks_mut().for_each(|chunk| self.gate.balance(chunk, &span.flattening));
            (span.layers.clone(), batch)
        });
        BatchCounts::join(parts)
    }
}
