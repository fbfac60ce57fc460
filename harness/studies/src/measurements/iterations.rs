//! Whole training iterations: the configurations of a file, each to be run by the simulator with exactly the plan, gate and
//! micro-batch that was measured.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use systems::iteration::run::Run;
use systems::plan::routing::JobRouting;
use systems::{CostModel, Job, Plan, System};
use workloads::csv_file::{Count, Positive};
use workloads::gate::GateStatistics;
use workloads::suite::TraceUse;
use workloads::trace::RoutingTrace;
use workloads::{Cluster, Gate, Model};

use crate::measurements;
use runs::summary::statistics::median;

/// What a configuration is told apart by, by the columns of the file. What may be left out has a value to fall back on: no
/// tensor parallelism, no online placement, as many expert replicas as the other degrees leave, no capacity limit, and the
/// published study's GPT. The cluster may be given by the caller instead.
#[derive(PartialEq, Deserialize)]
struct Settings {
    cluster: Option<String>,
    gpus: Count,
    system: String,
    gate: String,
    capacity_factor: Option<String>,
    layers: Count,
    hidden: Count,
    experts: Count,
    seq_len: Count,
    global_batch: Count,
    micro_batch: Count,
    tp: Option<Count>,
    pp: Count,
    dp: Count,
    ep: Count,
    expert_dp: Option<Count>,
    dynamic_every: Option<usize>,
    heads: Option<Count>,
    vocabulary: Option<Count>,
    expert_ratio: Option<Count>,
    moe_every: Option<Count>,
    top_k: Option<Count>,
}

/// What was measured of it; a time that is missing means that the run had died.
#[derive(Deserialize)]
struct Iteration {
    iteration: Count,
    elapsed_ms: Option<Positive>,
}

/// Iterations before the first that medians look at.
pub const WARMUP: usize = 10;

/// A run of less than a tenth of its file's longest is unfinished: it tells nothing of the steady state.
const UNFINISHED: usize = 10;

/// What a name in published files stands for.
struct PublishedSystem {
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
const PUBLISHED: [PublishedSystem; 5] = [
    PublishedSystem { published: "fastmoe", system: "expert-only", shape: (1, 2, 2), balanced: false },
    PublishedSystem { published: "fastermoe", system: "fastermoe-unpipelined", shape: (1, 2, 2), balanced: false },
    PublishedSystem { published: "smartmoe", system: "smartmoe", shape: (1, 2, 2), balanced: false },
    PublishedSystem { published: "alpa", system: "smartmoe", shape: (1, 2, 2), balanced: false },
    PublishedSystem { published: "deepspeed", system: "deepspeed-artifact", shape: (2, 4, 1), balanced: true },
];

/// The names of systems that a file may hold.
pub fn known_systems() -> Vec<&'static str> {
    let published = PUBLISHED.iter().map(|known| known.published);
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
    /// Whether its file ends long before those of other runs do.
    pub unfinished: bool,
    /// Other names under which the file has the very same series.
    pub also: Vec<String>,
}

/// A configuration that can be simulated.
struct Subject {
    system: &'static dyn System,
    job: Job,
}

/// Reads a file's configurations, in the order in which they appear. A series that stands there under several names is one
/// configuration.
///
/// # Errors
/// What is wrong with the file: each with line and column.
pub fn read(path: &Path, clusters: &dyn Fn(&str) -> Result<Cluster>) -> Result<Vec<Configuration>> {
    let file = measurements::open(path)?;
    let mut known: Vec<Settings> = Vec::new();
    let mut configurations: Vec<Configuration> = Vec::new();
    for row in file.rows() {
        let (settings, measured) = (row.read::<Settings>()?, row.read::<Iteration>()?);
        let index = match known.iter().rposition(|other| *other == settings) {
            Some(index) => index,
            None => {
                configurations.push(settings.configuration(clusters).with_context(|| row.place())?);
                known.push(settings);
                known.len() - 1
            }
        };
        let seconds = measured.elapsed_ms.map(|ms| ms.0 * 1e-3);
        configurations[index].times.push((measured.iteration.0, seconds));
    }
    for configuration in &mut configurations {
        configuration.times.sort_by_key(|(iteration, _)| *iteration);
        if let Some(pair) = configuration.times.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            bail!("{}: {}: iteration {} is there twice", file.name(), configuration.label(), pair[0].0);
        }
    }
    let longest = configurations.iter().map(|configuration| configuration.times.len()).max().unwrap_or(0);
    for configuration in &mut configurations {
        configuration.unfinished = configuration.times.len() * UNFINISHED < longest;
    }
    Ok(without_copies(configurations))
}

/// Each run once, under that of its names which [`PUBLISHED`] has first.
fn without_copies(configurations: Vec<Configuration>) -> Vec<Configuration> {
    let rank = |name: &str| PUBLISHED.iter().position(|known| known.published == name).unwrap_or(PUBLISHED.len());
    let mut kept: Vec<Configuration> = Vec::new();
    for mut configuration in configurations {
        let Some(same) = kept.iter_mut().find(|other| other.is_copy_of(&configuration)) else {
            kept.push(configuration);
            continue;
        };
        if rank(&configuration.published) < rank(&same.published) {
            std::mem::swap(same, &mut configuration);
            same.also.append(&mut configuration.also);
        }
        same.also.push(configuration.published);
    }
    kept
}

impl Settings {
    fn configuration(&self, clusters: &dyn Fn(&str) -> Result<Cluster>) -> Result<Configuration> {
        let published = self.system.to_lowercase();
        let known = PUBLISHED.iter().find(|known| known.published == published);
        let (gate, plan) = (self.gate(), self.plan());
        let cluster = clusters(self.cluster.as_deref().unwrap_or(""))?;
        let admitted = gate.parse().map_err(anyhow::Error::msg)?;
        let mut job = Job::new(self.model(known)?, cluster.clone(), self.gpus.0, admitted, self.global_batch.0)
            .with_micro_batch(plan.micro_batch);
        if known.is_some_and(|known| known.balanced) && job.gate == Gate::NoDrop {
            // Such a gate comes with the systems that need it.
            job.gate = Gate::BalancedNoDrop;
        }
        plan.check(&job)?;
        let name = known.map_or(published.as_str(), |known| known.system);
        let system = systems::by_name(name).map_err(|_| format!("no such system: {name}"));
        let subject = system.map(|system| Subject { system, job });
        Ok(Configuration {
            cluster: cluster.name,
            gpus: self.gpus.0,
            published,
            gate,
            subject,
            plan,
            times: Vec::new(),
            unfinished: false,
            also: Vec::new(),
        })
    }

    /// The gate: in moebench's own words, or in those of the artifact's logs.
    fn gate(&self) -> String {
        let kind = match self.gate.to_lowercase().as_str() {
            "naive" | "no_drop" | "nodrop" => "no-drop".to_owned(),
            "gshard" => "capacity".to_owned(),
            other => other.to_owned(),
        };
        format!("{kind} {}", self.capacity_factor.as_deref().unwrap_or("")).trim().to_owned()
    }

    fn plan(&self) -> Plan {
        let (dp, tp, ep) = (self.dp.0, self.tp.map_or(1, |tp| tp.0), self.ep.0);
        Plan {
            pp: self.pp.0,
            dp,
            tp,
            ep,
            expert_dp: self.expert_dp.map_or(dp * tp / ep, |expert_dp| expert_dp.0),
            micro_batch: self.micro_batch.0,
            placement_every: self.dynamic_every.unwrap_or(0),
            ..Plan::default()
        }
    }

    /// The GPT; what the file leaves unsaid is that of the published study, and its routing that of the known model.
    fn model(&self, known: Option<&PublishedSystem>) -> Result<Model> {
        let (moe_every, expert_ratio, top_k) = known.map_or((1, 2, 2), |known| known.shape);
        let given = |count: Option<Count>, default: usize| count.map_or(default, |count| count.0);
        let Self { layers: Count(layers), hidden: Count(hidden), experts: Count(experts), .. } = *self;
        let text = format!(
            "name = \"gpt-l{layers}-h{hidden}-e{experts}\"\nsource = \"a measured configuration\"\n[gpt]\n\
             layers = {layers}\nhidden = {hidden}\nheads = {}\nseq_len = {}\nvocabulary = {}\nexpert_ratio = {}\n\
             experts = {experts}\nmoe_every = {}\ntop_k = {}\n",
            given(self.heads, 16),
            self.seq_len.0,
            given(self.vocabulary, 50304),
            given(self.expert_ratio, expert_ratio),
            given(self.moe_every, moe_every),
            given(self.top_k, top_k)
        );
        let model = Model::parse("the model", &text)?;
        let known = Model::named("the model", &model.name).ok().filter(|known| known.blocks == model.blocks);
        Ok(Model { flattening: known.map_or(0.0, |known| known.flattening), ..model })
    }
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
    median(&times)
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

    /// Measured median after the warm-up, s; none of an unfinished run.
    pub fn measured(&self) -> Option<f64> {
        settled(self.measured_times()).filter(|_| !self.unfinished)
    }

    /// Whether both are one run under two names: same setting and plan, and a series of times that no two runs share.
    fn is_copy_of(&self, other: &Self) -> bool {
        let varied = self.times.len() > WARMUP && self.times.iter().any(|(_, time)| *time != self.times[0].1);
        let setting = |c: &Self| (c.cluster.clone(), c.gpus, c.gate.clone(), c.plan);
        varied && self.times == other.times && setting(self) == setting(other)
    }

    /// The system that simulates it, by the names of moebench; none where nothing does.
    pub fn simulated_by(&self) -> Option<&'static str> {
        self.subject.as_ref().ok().map(|subject| subject.system.name())
    }

    /// Layers, width and experts of its model; none where nothing simulates it.
    pub fn model(&self) -> Option<&str> {
        self.subject.as_ref().ok().map(|subject| subject.job.model.name.as_str())
    }

    /// Whether the measured run died.
    pub fn died(&self) -> bool {
        self.times.iter().any(|(_, time)| time.is_none())
    }

    pub(super) fn measured_times(&self) -> impl Iterator<Item = (usize, f64)> {
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
        let costs = CostModel::new(&job.cluster, job.gpus);
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
