//! Whole training iterations: every configuration of a file, run by the simulator with exactly the plan, gate and
//! micro-batch that was measured.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde::Serialize;
use systems::{CostModel, Job, Plan, System};
use workloads::gate::GateStatistics;
use workloads::suite::TraceUse;
use workloads::trace::RoutingTrace;
use workloads::{Cluster, Gate, Model};

use super::errors::{Errors, Pair, order};
use super::sheet::{Row, Sheet};
use crate::summary::statistics::median;
use systems::iteration::run::Run;
use systems::plan::routing::JobRouting;

/// What a configuration is told apart by; those of [`OPTIONAL`] may be missing.
const SETTINGS: [&str; 22] = [
    "cluster",
    "gpus",
    "system",
    "gate",
    "capacity_factor",
    "layers",
    "hidden",
    "experts",
    "seq_len",
    "global_batch",
    "micro_batch",
    "tp",
    "pp",
    "dp",
    "ep",
    "expert_dp",
    "dynamic_every",
    "heads",
    "vocabulary",
    "expert_ratio",
    "moe_every",
    "top_k",
];

/// Columns with a value to fall back on: no tensor parallelism, no online placement, as many expert replicas as the other
/// degrees leave, no capacity limit, and the published study's GPT. The cluster may be given by the caller instead.
const OPTIONAL: [&str; 10] = [
    "cluster",
    "capacity_factor",
    "tp",
    "expert_dp",
    "dynamic_every",
    "heads",
    "vocabulary",
    "expert_ratio",
    "moe_every",
    "top_k",
];

const MEASURES: [&str; 2] = ["iteration", "elapsed_ms"];

/// Iterations before the first that medians look at.
pub const WARMUP: usize = 10;

/// Measurements closer than this have no order.
pub const ORDER_TOLERANCE: f64 = 0.05;

/// What a name in published files stands for.
struct Stack {
    published: &'static str,
    /// The system's name here.
    system: &'static str,
    /// Every how many blocks hold experts, their inner width over `hidden`, choices per token.
    shape: (usize, usize, usize),
    /// Whether its no-drop gate is trained with a balance loss.
    balanced: bool,
}

/// SmartMoE's authors ran the Alpa plan in their own stack, FasterMoE without cutting exchanges, and DeepSpeed-MoE on
/// another model.
const STACKS: [Stack; 5] = [
    Stack { published: "fastmoe", system: "expert-only", shape: (1, 2, 2), balanced: false },
    Stack { published: "fastermoe", system: "fastermoe-unpipelined", shape: (1, 2, 2), balanced: false },
    Stack { published: "smartmoe", system: "smartmoe", shape: (1, 2, 2), balanced: false },
    Stack { published: "alpa", system: "smartmoe", shape: (1, 2, 2), balanced: false },
    Stack { published: "deepspeed", system: "deepspeed-artifact", shape: (2, 4, 1), balanced: true },
];

/// The names of systems that a file may hold.
pub fn known_systems() -> Vec<&'static str> {
    let published = STACKS.iter().map(|stack| stack.published);
    let mut names: Vec<&str> = published.chain(systems::ALL.iter().map(|system| system.name())).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// One measured configuration.
pub struct Configuration {
    /// As the file names it.
    pub cluster: String,
    /// Number of ranks.
    pub gpus: usize,
    /// As the file names it.
    pub published: String,
    /// The gate, as in suites.
    pub gate: String,
    /// What simulates it, or why nothing does.
    subject: Result<Subject, String>,
    /// The plan that ran.
    pub plan: Plan,
    /// (iteration, s); a time that is missing means that the run had died.
    pub times: Vec<(usize, Option<f64>)>,
}

/// A configuration that can be simulated.
struct Subject {
    system: &'static dyn System,
    job: Job,
}

/// Reads a file's configurations, in the order in which they appear.
///
/// # Errors
/// What is wrong with the file: each with line and column.
pub fn read(path: &Path, clusters: &dyn Fn(&str) -> Result<Cluster>) -> Result<Vec<Configuration>> {
    let required = SETTINGS.iter().filter(|column| !OPTIONAL.contains(column)).chain(&MEASURES);
    let sheet = Sheet::read(path, &required.copied().collect::<Vec<_>>())?;
    let mut keys: Vec<Vec<String>> = Vec::new();
    let mut configurations: Vec<Configuration> = Vec::new();
    for row in sheet.rows() {
        let key: Vec<String> = SETTINGS.iter().map(|column| row.text(column).to_owned()).collect();
        let index = match keys.iter().rposition(|known| *known == key) {
            Some(index) => index,
            None => {
                keys.push(key);
                configurations.push(configuration(&row, clusters)?);
                configurations.len() - 1
            }
        };
        let time = row.time_if_any(MEASURES[1])?.map(|ms| ms * 1e-3);
        configurations[index].times.push((row.whole(MEASURES[0], 1)?, time));
    }
    for configuration in &mut configurations {
        configuration.times.sort_by_key(|(iteration, _)| *iteration);
        if let Some(pair) = configuration.times.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            bail!("{}: {}: iteration {} stands twice", sheet.file(), configuration.label(), pair[0].0);
        }
    }
    Ok(configurations)
}

/// A file's gate: moebench's own words, or those of the artifact's logs.
fn gate(row: &Row) -> String {
    let kind = match row.text("gate").to_lowercase().as_str() {
        "naive" | "no_drop" | "nodrop" => "no-drop".to_owned(),
        "gshard" => "capacity".to_owned(),
        other => other.to_owned(),
    };
    format!("{kind} {}", row.text("capacity_factor")).trim().to_owned()
}

fn configuration(row: &Row, clusters: &dyn Fn(&str) -> Result<Cluster>) -> Result<Configuration> {
    let published = row.text("system").to_lowercase();
    let gate = gate(row);
    let gpus = row.whole("gpus", 1)?;
    let plan = plan(row)?;
    let cluster = clusters(row.text("cluster")).with_context(|| row.place())?;
    let stack = STACKS.iter().find(|stack| stack.published == published);
    let (model, allowed) = (model(row, stack)?, row.parsed("gate, capacity_factor", &gate)?);
    let mut job = Job::new(model, cluster.clone(), gpus, allowed, row.whole("global_batch", 1)?)
        .with_micro_batch(plan.micro_batch);
    if stack.is_some_and(|stack| stack.balanced) && job.gate == Gate::NoDrop {
        // Such a gate comes with the systems that need it.
        job.gate = row.parsed("gate", "no-drop balanced").unwrap_or(job.gate);
    }
    plan.check(&job).with_context(|| row.place())?;
    let name = stack.map_or(published.as_str(), |stack| stack.system);
    let system = systems::by_name(name).map_err(|error| error.to_string());
    let subject = system.map(|system| Subject { system, job });
    Ok(Configuration { cluster: cluster.name, gpus, published, gate, subject, plan, times: Vec::new() })
}

fn plan(row: &Row) -> Result<Plan> {
    let (dp, tp, ep) = (row.whole("dp", 1)?, row.whole_or("tp", 1, 1)?, row.whole("ep", 1)?);
    Ok(Plan {
        pp: row.whole("pp", 1)?,
        dp,
        tp,
        ep,
        expert_dp: row.whole_or("expert_dp", 1, dp * tp / ep)?,
        micro_batch: row.whole("micro_batch", 1)?,
        placement_every: row.whole_or("dynamic_every", 0, 0)?,
    })
}

/// The GPT of a row; what the file leaves unsaid is that of the published study.
fn model(row: &Row, stack: Option<&Stack>) -> Result<Model> {
    let (moe_every, expert_ratio, top_k) = stack.map_or((1, 2, 2), |stack| stack.shape);
    let [heads, vocabulary] = [("heads", 16), ("vocabulary", 50304)].map(|(c, default)| row.whole_or(c, 1, default));
    let (heads, vocabulary) = (heads?, vocabulary?);
    let moe_every = row.whole_or("moe_every", 1, moe_every)?;
    let expert_ratio = row.whole_or("expert_ratio", 1, expert_ratio)?;
    let top_k = row.whole_or("top_k", 1, top_k)?;
    let [layers, hidden, experts, seq_len] = ["layers", "hidden", "experts", "seq_len"].map(|c| row.whole(c, 1));
    let (layers, hidden, experts, seq_len) = (layers?, hidden?, experts?, seq_len?);
    let text = format!(
        "name = \"gpt-l{layers}-h{hidden}-e{experts}\"\nsource = \"a measured configuration\"\n[gpt]\nlayers = {layers}\n\
         hidden = {hidden}\nheads = {heads}\nseq_len = {seq_len}\nvocabulary = {vocabulary}\nexpert_ratio = {expert_ratio}\n\
         experts = {experts}\nmoe_every = {moe_every}\ntop_k = {top_k}\n"
    );
    Ok(Model::parse(&row.place(), &text)?)
}

/// Times of the simulated iterations, and why the run ended early.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prediction {
    /// (iteration, s).
    pub times: Vec<(usize, f64)>,
    /// The reason, if it did not end.
    pub failure: Option<String>,
}

impl Prediction {
    /// Median after the warm-up, s.
    pub fn median(&self) -> Option<f64> {
        settled(self.times.iter().copied())
    }
}

/// Median of the times after the warm-up, or of all where none is after it.
fn settled(times: impl Iterator<Item = (usize, f64)>) -> Option<f64> {
    let (later, first): (Vec<_>, Vec<_>) = times.partition(|(iteration, _)| *iteration > WARMUP);
    let times = if later.is_empty() { first } else { later };
    let times: Vec<f64> = times.into_iter().map(|(_, time)| time).collect();
    median(&times).map(|median| median.value)
}

impl Configuration {
    /// `GPUs/gate/system`.
    pub fn label(&self) -> String {
        format!("{}/{}/{}", self.gpus, self.gate, self.published)
    }

    /// Why nothing simulates it, if so.
    pub fn missing(&self) -> Option<&str> {
        self.subject.as_ref().err().map(String::as_str)
    }

    /// Measured median after the warm-up, s.
    pub fn measured(&self) -> Option<f64> {
        settled(self.measured_times())
    }

    /// Whether the measured run died.
    pub fn died(&self) -> bool {
        self.times.iter().any(|(_, time)| time.is_none())
    }

    fn measured_times(&self) -> impl Iterator<Item = (usize, f64)> {
        self.times.iter().filter_map(|&(iteration, time)| time.map(|time| (iteration, time)))
    }

    /// The measured iterations, or `most` of those after the warm-up, spread evenly. A plan that places experts online
    /// needs them all.
    pub fn iterations(&self, most: Option<usize>) -> Vec<usize> {
        let all: Vec<usize> = self.times.iter().map(|&(iteration, _)| iteration).collect();
        let later: Vec<usize> = all.iter().copied().filter(|&iteration| iteration > WARMUP).collect();
        match most {
            Some(most) if self.plan.placement_every == 0 && most < all.len() && !later.is_empty() => (0..most
                .min(later.len()))
                .map(|i| later[(2 * i + 1) * later.len() / (2 * most.min(later.len()))])
                .collect(),
            _ => all,
        }
    }

    /// Simulates `iterations`; nothing where there is no such system.
    ///
    /// # Errors
    /// A trace that cannot stand for the job.
    pub fn predict(
        &self,
        trace: &RoutingTrace,
        cluster: Option<&Cluster>,
        statistics: &GateStatistics,
        iterations: &[usize],
    ) -> Result<Option<Prediction>> {
        let Ok(subject) = &self.subject else { return Ok(None) };
        let mut job = subject.job.clone();
        job.gate_statistics = *statistics;
        if let Some(cluster) = cluster {
            job.cluster = cluster.clone();
        }
        let routing = JobRouting::new(&job, TraceUse::default(), trace, 0).with_context(|| self.label())?;
        let costs = CostModel::new(&job.cluster);
        let mut run = Run::new(&job, &costs, subject.system, self.plan);
        let mut prediction = Prediction::default();
        for &iteration in iterations {
            let done = run.step(&routing.iteration(iteration - 1));
            if done.failure.is_some() {
                prediction.failure = done.failure.map(|failure| failure.to_string());
                break;
            }
            prediction.times.push((iteration, done.timing.step.0));
        }
        Ok(Some(prediction))
    }
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// As the file names it.
    pub cluster: String,
    /// Number of ranks.
    pub gpus: usize,
    /// The gate.
    pub gate: String,
    /// As the file names it.
    pub system: String,
    /// The plan.
    pub plan: String,
    /// Median, s; none when the run died.
    pub measured: Option<f64>,
    /// Median, s; none when the run is predicted to die or no system of that name is known.
    pub predicted: Option<f64>,
    /// Predicted over measured, less 1.
    pub error: Option<f64>,
    /// Sum over all iterations, start-up included, s.
    pub measured_sum: f64,
    /// The same, when all iterations were simulated.
    pub predicted_sum: Option<f64>,
    /// `ok`, `oom` or why nothing simulates it.
    pub status: String,
    /// Whether the measured run ended in the way that was predicted; none where nothing was.
    pub status_agrees: Option<bool>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// A line per configuration.
    pub lines: Vec<Line>,
    /// Errors of medians.
    pub errors: Option<Errors>,
    /// Errors of sums over all iterations, as published.
    pub sum_errors: Option<Errors>,
    /// Pairs of systems in a case whose measurements differ by more than [`ORDER_TOLERANCE`].
    pub ordered_pairs: usize,
    /// Those that are predicted in that order.
    pub ordered_right: usize,
    /// The others, `slower > faster`, for people.
    pub ordered_wrong: Vec<String>,
}

/// Simulates every configuration.
///
/// # Errors
/// A trace that cannot stand for a job.
pub fn predict(
    configurations: &[Configuration],
    trace: &RoutingTrace,
    statistics: &GateStatistics,
    most: Option<usize>,
) -> Result<Report> {
    let lines: Vec<Line> = configurations
        .par_iter()
        .map(|configuration| {
            let iterations = configuration.iterations(most);
            let prediction = configuration.predict(trace, None, statistics, &iterations)?;
            Ok(line(configuration, prediction))
        })
        .collect::<Result<_>>()?;
    Ok(report(lines))
}

fn line(configuration: &Configuration, prediction: Option<Prediction>) -> Line {
    let measured = configuration.measured().filter(|_| !configuration.died());
    let whole = prediction.as_ref().filter(|p| p.failure.is_none() && p.times.len() == configuration.times.len());
    let predicted = prediction.as_ref().filter(|p| p.failure.is_none()).and_then(Prediction::median);
    let failed = prediction.as_ref().map(|prediction| prediction.failure.is_some());
    let status = match (configuration.missing(), failed) {
        (Some(reason), _) => reason,
        (None, Some(true)) => "oom",
        (None, _) => "ok",
    };
    Line {
        cluster: configuration.cluster.clone(),
        gpus: configuration.gpus,
        gate: configuration.gate.clone(),
        system: configuration.published.clone(),
        plan: configuration.plan.to_string(),
        measured,
        predicted,
        error: measured.zip(predicted).map(|(measured, predicted)| predicted / measured - 1.0),
        measured_sum: configuration.measured_times().map(|(_, time)| time).sum(),
        predicted_sum: whole.map(|p| p.times.iter().map(|(_, time)| time).sum()),
        status: status.to_owned(),
        status_agrees: failed.map(|failed| failed == configuration.died()),
    }
}

fn pair(line: &Line) -> Option<Pair> {
    line.measured.zip(line.predicted).map(|(measured, predicted)| Pair { predicted, measured })
}

fn report(lines: Vec<Line>) -> Report {
    let medians: Vec<Pair> = lines.iter().filter_map(pair).collect();
    let sums: Vec<Pair> = lines
        .iter()
        .filter(|line| line.measured.is_some())
        .filter_map(|line| line.predicted_sum.map(|predicted| Pair { predicted, measured: line.measured_sum }))
        .collect();
    let mut cases: Vec<(&str, usize, &str)> = Vec::new();
    for line in &lines {
        if !cases.contains(&line.case()) {
            cases.push(line.case());
        }
    }
    let (mut right, mut wrong) = (0, Vec::new());
    for case in cases {
        let of_case = lines.iter().filter(|line| line.case() == case);
        let (agree, disagree) = order_of_case(of_case.filter_map(|line| pair(line).map(|pair| (line, pair))).collect());
        right += agree;
        wrong.extend(disagree);
    }
    Report {
        errors: Errors::new(&medians),
        sum_errors: Errors::new(&sums),
        ordered_pairs: right + wrong.len(),
        ordered_right: right,
        ordered_wrong: wrong,
        lines,
    }
}

/// How many pairs of a case's systems are in the measured order, and the others in words.
fn order_of_case(lines: Vec<(&Line, Pair)>) -> (usize, Vec<String>) {
    let pairs: Vec<Pair> = lines.iter().map(|(_, pair)| *pair).collect();
    let order = order(&pairs, ORDER_TOLERANCE);
    let words = order.wrong.into_iter().map(|(slow, fast)| {
        let ratio = |of: fn(&Pair) -> f64| of(&pairs[slow]) / of(&pairs[fast]);
        let (measured, predicted) = (ratio(|p| p.measured), ratio(|p| p.predicted));
        let (slow, fast) = (lines[slow].0, lines[fast].0);
        format!(
            "{} GPUs, {}: {} over {} {measured:.2} measured, {predicted:.2} predicted",
            slow.gpus, slow.gate, slow.system, fast.system
        )
    });
    (order.right.len(), words.collect())
}

impl Line {
    fn case(&self) -> (&str, usize, &str) {
        (&self.cluster, self.gpus, &self.gate)
    }
}

impl Report {
    /// GPUs and gate of every case without a capacity limit.
    pub fn no_drop_cases(&self) -> Vec<(usize, String)> {
        let of = self.lines.iter().filter(|line| line.gate == "no-drop");
        let mut cases: Vec<(usize, String)> = of.map(|line| (line.gpus, line.gate.clone())).collect();
        cases.sort();
        cases.dedup();
        cases
    }

    /// Speedup in a case by sums over all iterations, as published (measured, predicted); none unless all iterations
    /// were simulated.
    pub fn speedup(&self, gpus: usize, gate: &str, slow: &str, fast: &str) -> Option<(f64, f64)> {
        let find = |name: &str| self.lines.iter().find(|l| l.gpus == gpus && l.gate == gate && l.system == name);
        let (slow, fast) = (find(slow)?, find(fast)?);
        let predicted = slow.predicted_sum.zip(fast.predicted_sum);
        predicted.map(|(s, f)| (slow.measured_sum / fast.measured_sum, s / f))
    }
}
