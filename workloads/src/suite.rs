//! Suites: which cases are run under which systems, how often and on which routing; and collections of suites.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::cluster::Cluster;
use crate::engine::EngineKind;
use crate::error::{self, ConfigError, MOST_EXTENT};
use crate::fields;
use crate::gate::Gate;
pub use crate::plan::ForcedPlan;
use crate::sweep;
use crate::trace::{self, ImbalanceSpec, RoutingTrace, Skew, SkewSpec, TraceError, TraceShape, Workload};
use crate::training::Training;

/// Cases, systems and repetitions.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// Its name on the command line.
    pub name: String,
    /// What it answers, for people.
    #[serde(default)]
    pub description: String,
    /// Names of systems, in the order of the figure's bars.
    pub systems: Vec<String>,
    /// The system that speedups are over; one of `systems`, the first where a file names none.
    #[serde(default)]
    pub baseline: String,
    /// Systems that tables show speedups over besides the baseline.
    #[serde(default)]
    pub compare: Vec<String>,
    /// Systems whose plans SmartMoE's search finds, for their own programs, instead of their own rules.
    #[serde(default)]
    pub searched: Vec<String>,
    /// Training iterations per run, warm-up included.
    pub iterations: usize,
    /// First iterations that means, medians and speedups leave out.
    pub warmup: usize,
    /// One run per seed.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// The suite's routing, instead of the built-in trace; a trace on the command line goes before it.
    pub routing: Option<SuiteRouting>,
    /// How a run reads its routing trace.
    #[serde(default)]
    pub trace: TraceUse,
    /// What runs it unless the command line says otherwise: `simulate`, `train` or `emulate`.
    #[serde(default)]
    pub engine: EngineKind,
    /// How models are trained, where they really are.
    #[serde(default)]
    pub training: Training,
    /// What is drawn.
    #[serde(default)]
    pub figure: FigureKind,
    /// What is trained where. Lists of values in a file's table multiply out to cases.
    #[serde(deserialize_with = "sweep::cases")]
    pub cases: Vec<Case>,
}

/// What a suite's samples are drawn as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FigureKind {
    /// Bars: speedup over the baseline, a group per case.
    #[default]
    Speedups,
    /// Points: what the offline searches expected against what the runs took.
    PerformanceModel,
    /// Bars: speedup of single layers, a group per layer.
    Layers,
    /// Lines: time of a single layer over the iterations, a panel per case.
    Series,
    /// Cells: which system is fastest, by skew and speed of the network between nodes, a panel per model.
    Map,
}

/// Suites that are run one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// Its name on the command line.
    pub name: String,
    /// What it answers, for people.
    pub description: String,
    /// Names of suites, in order.
    pub suites: Vec<String>,
}

/// A TOML in `workloads/suites/`.
#[derive(Clone, Debug, PartialEq)]
pub enum SuiteFile {
    /// A suite.
    Suite(Box<Suite>),
    /// Several.
    Collection(Collection),
}

impl SuiteFile {
    /// Reads a suite's or a collection's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(file, text, &[])
    }

    /// Reads a TOML, of a suite with changed fields; the suites of a collection are changed where they are read.
    pub fn parse_with(file: &str, text: &str, changes: &[Change]) -> Result<Self, ConfigError> {
        let table: toml::Table = error::parse(file, text)?;
        if !table.contains_key("suites") {
            return Suite::parse_with(file, text, changes).map(|suite| Self::Suite(Box::new(suite)));
        }
        let collection: Collection = error::parse(file, text)?;
        match repeated(&collection.suites) {
            Some(twice) => Err(ConfigError::value(file, "suites", twice, "every suite once")),
            None if collection.suites.is_empty() => {
                Err(ConfigError::value(file, "suites", "an empty list", "at least one suite"))
            }
            None => Ok(Self::Collection(collection)),
        }
    }

    /// A suite or a collection that comes with moebench.
    pub fn named(context: &str, name: &str) -> Result<Self, ConfigError> {
        Self::parse(name, Self::text(context, name)?)
    }

    /// The TOML of a suite or a collection that comes with moebench.
    pub fn text(context: &str, name: &str) -> Result<&'static str, ConfigError> {
        error::find("suite", context, name, SUITES)
    }

    /// The names of all that come with moebench.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SUITES.iter().map(|(name, _)| *name)
    }
}

/// A recorded trace, or routing of a stated imbalance: one of the workloads W0 to W7, or a skew; with the experts and choices of each case's model.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuiteRouting {
    /// The trace, by name, or by a path that is relative to the suite's folder; without one, the rest holds.
    pub trace: Option<Described>,
    /// The workload; without one, the skew below holds.
    pub workload: Option<Workload>,
    /// See [`Skew::max_over_mean`].
    pub max_over_mean: Option<f64>,
    /// See [`Skew::gini`].
    pub gini: Option<f64>,
    /// See [`Skew::half_life`].
    pub half_life: Option<f64>,
    /// Seed of its draws.
    #[serde(default)]
    pub seed: u64,
}

impl SuiteRouting {
    /// The targets, where it is a skew.
    fn skew(&self) -> Skew {
        Skew { max_over_mean: self.max_over_mean, gini: self.gini, half_life: self.half_life }
    }

    /// The trace's name, `W1`, `max4-gini0.5-half50` or `balanced`, and the seed where it is not 0.
    pub fn label(&self) -> String {
        self.parts(["max", "gini", "half", "seed"]).join("-")
    }

    /// The same in words, part by part: `max/mean 4`, `Gini 0.5`, `half-life 50`.
    pub fn words(&self) -> Vec<String> {
        self.parts(["max/mean ", "Gini ", "half-life ", "seed "])
    }

    /// What is stated, each behind its name.
    fn parts(&self, [max, gini, half, seed]: [&str; 4]) -> Vec<String> {
        let targets = [(max, self.max_over_mean), (gini, self.gini), (half, self.half_life)];
        let stated = targets.iter().filter_map(|(name, value)| value.map(|value| format!("{name}{value}")));
        let mut parts: Vec<String> = match (&self.trace, self.workload) {
            (Some(trace), _) => vec![trace.name.clone()],
            (None, Some(workload)) => vec![workload.short_name().to_owned()],
            (None, None) if self.skew() == Skew::default() => vec!["balanced".to_owned()],
            (None, None) => stated.collect(),
        };
        parts.extend((self.seed != 0).then(|| format!("{seed}{}", self.seed)));
        parts
    }

    fn check(&self, file: &str, field: &str) -> Result<(), ConfigError> {
        let made = self.workload.is_some() || self.skew() != Skew::default() || self.seed != 0;
        if self.trace.as_ref().is_some_and(|trace| trace.name.trim().is_empty()) {
            let expected = format!("a path, or one of {}", trace::names().collect::<Vec<_>>().join(", "));
            return Err(ConfigError::value(file, format!("{field}.trace"), "\"\"", expected));
        }
        if self.trace.is_some() && made {
            return Err(ConfigError::value(file, field, "a trace and what it is to be like", "one of them"));
        }
        if self.workload.is_some() && self.skew() != Skew::default() {
            return Err(ConfigError::value(file, field, "a workload and a skew", "one of them"));
        }
        Ok(())
    }

    /// A trace of the stated imbalance for a model's MoE layers of so many experts and choices a token, over `iterations`.
    ///
    /// # Errors
    /// A skew that such a layer cannot have, or more choices than a workload has experts for.
    pub fn generate(
        &self,
        layers: usize,
        experts: usize,
        top_k: u32,
        iterations: usize,
    ) -> Result<RoutingTrace, TraceError> {
        /// Tokens of a row: enough for chance to hide in.
        const TOKENS: u32 = 4096;
        if let Some(workload) = self.workload {
            let tokens = TOKENS as usize;
            let spec = ImbalanceSpec { workload, experts, top_k: top_k as usize, tokens, seed: self.seed };
            return spec.trace(iterations, layers, 1, 1);
        }
        let skew = self.skew();
        let entries = TOKENS * top_k;
        let shape = TraceShape { layers, micro_batches: 1, ranks: 4, experts, entries, top_k };
        SkewSpec { shape, samples: iterations, step: 1, seed: self.seed, skew }.generate()
    }
}

/// Which part of a routing trace a run replays.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct TraceUse {
    /// Trace iteration of the first training iteration; the trace's first when absent.
    pub start: Option<u32>,
    /// Trace iterations per training iteration.
    pub stride: u32,
    /// Iterations of a profiling run of the same job; offline searches see the routing of four of them, the last of each
    /// quarter. The run that is measured goes through the same iterations: a search knows some of its routing.
    pub profile: usize,
    /// Trace iteration of the profiling run's first iteration, where it was not the same as that of the run: a stale profile.
    pub profile_start: Option<u32>,
}

impl Default for TraceUse {
    fn default() -> Self {
        Self { start: None, stride: 1, profile: 100, profile_start: None }
    }
}

/// A model or a cluster: one that comes with moebench, or one that a file describes.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct Described {
    /// What records, figures and files call it. As it was written, until whoever opens the file knows better.
    pub name: String,
    /// The file.
    pub file: Option<String>,
}

impl Described {
    /// Where its description is: the file, or the name of one that comes with moebench.
    pub fn place(&self) -> &str {
        self.file.as_deref().unwrap_or(&self.name)
    }
}

/// Whether a suite, model or cluster of that name is a file.
pub fn is_path(name: &str) -> bool {
    name.ends_with(".toml") || name.contains('/')
}

impl From<String> for Described {
    fn from(text: String) -> Self {
        let file = is_path(&text).then(|| text.clone());
        Self { name: text, file }
    }
}

impl From<&str> for Described {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// By its name alone: a suite is the same wherever its files are.
impl fmt::Debug for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name, f)
    }
}

/// What a search for a plan may choose. It is a matter of the case: SmartMoE's study and its baselines know degrees alone, and
/// its figures would compare other things if one of them could shard or recompute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchSpace {
    /// Degrees of pipeline, data, tensor and expert parallelism, and the micro-batch; stages of equally many blocks.
    #[default]
    Degrees,
    /// Those, virtual stages, ZeRO and recomputation; stages may differ by a block.
    All,
}

impl FromStr for SearchSpace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "degrees" => Ok(Self::Degrees),
            "all" => Ok(Self::All),
            other => Err(format!("`{other}`: expected degrees or all")),
        }
    }
}

/// One group of bars: a model on a cluster under a gate.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Its place among all cases of its file, from 0, whichever of them are run.
    pub number: usize,
    /// Tells apart cases that differ in their plans alone; part of the id.
    pub name: Option<String>,
    /// The model, by name, or by a path that is relative to the suite's folder.
    pub model: Described,
    /// The cluster, likewise.
    pub cluster: Described,
    /// Factor on every bandwidth between nodes of the cluster.
    pub network: Option<f64>,
    /// GPUs used, from the cluster's first node on.
    pub gpus: usize,
    /// The gate.
    pub gate: Gate,
    /// Samples per iteration, over all GPUs.
    pub global_batch: usize,
    /// Samples per rank and micro-batch, the same for every system; chosen by each system when absent.
    pub micro_batch: Option<usize>,
    /// What searches for plans may choose.
    pub search: SearchSpace,
    /// Plans given instead of searched for, by system.
    pub plans: BTreeMap<String, ForcedPlan>,
    /// Plans given by their rank, from 1, among what the system's search finds for the case.
    pub ranked: BTreeMap<String, usize>,
    /// What a system trains otherwise than the case says, by system: published comparisons do not always hold everything
    /// else equal.
    pub differs: BTreeMap<String, Difference>,
    /// The case's own routing, instead of the suite's or that of a trace on the command line; at most one.
    pub routing: Vec<SuiteRouting>,
    /// The MoE layer that is run alone, forward and backward, instead of whole iterations.
    pub layer: Option<usize>,
    /// What tells the case apart from others of its suite that differ in batches alone; part of the id.
    pub batch: Option<String>,
}

/// Where one system's run differs from its case. What is absent is the case's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Another model.
    pub model: Option<Described>,
    /// Another gate.
    pub gate: Option<Gate>,
    /// Another micro-batch.
    pub micro_batch: Option<usize>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = self.model.as_ref().map(|model| format!("model {model}"));
        let gate = self.gate.map(|gate| format!("gate {gate}"));
        let micro_batch = self.micro_batch.map(|size| format!("micro-batch {size}"));
        let parts: Vec<String> = [model, gate, micro_batch].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

impl Case {
    /// A case of its own, outside a suite: nothing is given, and searches choose among degrees.
    pub fn new(model: &str, cluster: &str, gpus: usize, gate: Gate, global_batch: usize) -> Self {
        Self {
            number: 0,
            name: None,
            model: model.into(),
            cluster: cluster.into(),
            network: None,
            gpus,
            gate,
            global_batch,
            micro_batch: None,
            search: SearchSpace::Degrees,
            plans: BTreeMap::new(),
            ranked: BTreeMap::new(),
            differs: BTreeMap::new(),
            routing: Vec::new(),
            layer: None,
            batch: None,
        }
    }

    /// Its cluster with the network that the case has.
    pub fn on_network(&self, mut cluster: Cluster) -> Cluster {
        if let Some(factor) = self.network {
            cluster.network.scale_between_nodes(factor);
        }
        cluster
    }

    /// Whether its network or its routing is its own: then no measurement of its cluster is one of the case.
    pub fn has_own_conditions(&self) -> bool {
        self.network.is_some_and(|factor| factor != 1.0) || !self.routing.is_empty()
    }

    /// The case as `system` runs it.
    pub fn as_run_by(&self, system: &str) -> Self {
        let mut case = self.clone();
        let Some(difference) = case.differs.remove(system) else {
            return case;
        };
        case.model = difference.model.unwrap_or(case.model);
        case.gate = difference.gate.unwrap_or(case.gate);
        case.micro_batch = difference.micro_batch.or(case.micro_batch);
        case
    }

    /// A name that is unique in its suite and fit for a file:
    /// `MODEL.CLUSTER.GPUS.GATE[.layerN][.netFACTOR][.ROUTING][.BATCH][.NAME]`.
    pub fn id(&self) -> String {
        let layer = self.layer.map(|layer| format!("layer{layer}"));
        let routing = self.routing.first().map(SuiteRouting::label);
        let network = self.network.map(|factor| format!("net{factor}"));
        let more = [layer, network, routing, self.batch.clone(), self.name.clone()];
        let more: String = more.into_iter().flatten().map(|part| format!(".{part}")).collect();
        format!("{}.{}.{}.{}{more}", self.model, self.cluster, self.gpus, self.gate).replace(['/', '\\', ' '], "-")
    }
}

impl Suite {
    /// Reads a suite's TOML; `file` names it in errors.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(file, text, &[])
    }

    /// Reads a suite's TOML with changed fields.
    pub fn parse_with(file: &str, text: &str, changes: &[Change]) -> Result<Self, ConfigError> {
        let mut suite: Self = fields::parse(&fields::SUITE, file, text)?;
        let mut table: toml::Table = error::parse(file, text)?;
        for change in changes {
            change.apply(&mut table)?;
            suite = table.clone().try_into().map_err(|error: toml::de::Error| change.refused(error.message()))?;
        }
        if let (true, Some(first)) = (suite.baseline.is_empty(), suite.systems.first()) {
            suite.baseline = first.clone();
        }
        suite.settle(file)?;
        Ok(suite)
    }

    /// Tells cases apart that differ in batches alone, and checks all; again after models and clusters were given names.
    ///
    /// # Errors
    /// A field that cannot be, or two cases of one id.
    pub fn settle(&mut self, file: &str) -> Result<(), ConfigError> {
        tell_batches_apart(&mut self.cases);
        self.check(file)
    }

    /// A suite that comes with moebench.
    pub fn named(context: &str, name: &str) -> Result<Self, ConfigError> {
        Self::named_with(context, name, &[])
    }

    /// The same with changed fields.
    pub fn named_with(context: &str, name: &str, changes: &[Change]) -> Result<Self, ConfigError> {
        Self::parse_with(name, SuiteFile::text(context, name)?, changes)
    }

    /// All suites that come with moebench.
    ///
    /// # Errors
    /// A defect of one of them.
    pub fn all() -> Result<Vec<Self>, ConfigError> {
        let mut suites = Vec::new();
        for name in SuiteFile::names() {
            if let SuiteFile::Suite(suite) = SuiteFile::named("moebench", name)? {
                suites.push(*suite);
            }
        }
        Ok(suites)
    }

    fn check(&self, file: &str) -> Result<(), ConfigError> {
        let refuse = |field: &str, value: String, expected: &str| Err(ConfigError::value(file, field, value, expected));
        if self.systems.is_empty() || self.cases.is_empty() || self.seeds.is_empty() {
            return refuse("systems, cases, seeds", "an empty list".into(), "at least one of each");
        }
        if let Some(system) = repeated(&self.systems) {
            return refuse("systems", system.clone(), "every system once");
        }
        if !self.systems.contains(&self.baseline) {
            return refuse("baseline", self.baseline.clone(), &self.one_of_systems());
        }
        if let Some(other) = self.compare.iter().find(|name| !self.systems.contains(name)) {
            return refuse("compare", other.clone(), &self.one_of_systems());
        }
        if let Some(other) = self.searched.iter().find(|name| !self.systems.contains(name)) {
            return refuse("searched", other.clone(), &self.one_of_systems());
        }
        if !is_folder_name(&self.name) {
            let expected = format!("{LABEL}, without slashes, not beginning with `.`");
            return refuse("name", format!("{:?}", self.name), &expected);
        }
        ConfigError::check_extent(file, "iterations", self.iterations)?;
        if self.trace.profile > MOST_EXTENT {
            return refuse("trace.profile", self.trace.profile.to_string(), &format!("at most {MOST_EXTENT}"));
        }
        if self.warmup >= self.iterations {
            return refuse("warmup", self.warmup.to_string(), &format!("fewer than iterations = {}", self.iterations));
        }
        self.training.check(file, "training.")?;
        if let Some(seed) = repeated(&self.seeds) {
            return refuse("seeds", seed.to_string(), "every seed once");
        }
        self.routing.as_ref().map_or(Ok(()), |routing| routing.check(file, "routing"))?;
        if self.trace.stride == 0 {
            return refuse("trace.stride", "0".into(), "at least 1");
        }
        let mut seen = BTreeMap::new();
        for case in &self.cases {
            self.check_case(file, case)?;
            if let Some(first) = seen.insert(case.id(), case.number) {
                let expected = format!("an id unlike that of cases[{first}]: give one of them a `name`");
                return refuse(&format!("cases[{}]", case.number), case.id(), &expected);
            }
        }
        Ok(())
    }

    fn check_case(&self, file: &str, case: &Case) -> Result<(), ConfigError> {
        let index = case.number;
        let refuse = |field: &str, value: String, expected: &str| {
            Err(ConfigError::value(file, format!("cases[{index}].{field}"), value, expected))
        };
        for (name, value) in
            [("gpus", case.gpus), ("global_batch", case.global_batch), ("micro_batch", case.micro_batch.unwrap_or(1))]
        {
            ConfigError::check_extent(file, &format!("cases[{index}].{name}"), value)?;
        }
        if let Some(factor) = case.network.filter(|factor| !(factor.is_finite() && *factor > 0.0)) {
            return refuse("network", factor.to_string(), "a finite number above 0");
        }
        if let Some(name) = case.name.as_ref().filter(|name| !is_label(name)) {
            return refuse("name", format!("{name:?}"), LABEL);
        }
        case.routing.iter().try_for_each(|routing| routing.check(file, &format!("cases[{index}].routing")))?;
        for (name, systems) in [
            ("plans", case.plans.keys().chain(case.ranked.keys()).collect()),
            ("differs", Vec::from_iter(case.differs.keys())),
        ] {
            if let Some(system) = systems.into_iter().find(|system| !self.systems.contains(system)) {
                return refuse(name, system.clone(), &self.one_of_systems());
            }
        }
        for (system, difference) in &case.differs {
            if *difference == Difference::default() || difference.micro_batch == Some(0) {
                let found = format!("{{ {difference} }}");
                return refuse(&format!("differs.{system}"), found, "another model, gate or micro_batch (at least 1)");
            }
        }
        if case.layer.is_some() && case.micro_batch.is_none_or(|size| size * case.gpus != case.global_batch) {
            return refuse("global_batch", case.global_batch.to_string(), "gpus * micro_batch where layers run alone");
        }
        if case.layer.is_none() && matches!(self.figure, FigureKind::Layers | FigureKind::Series) {
            return refuse("layers", "none".into(), "layers to run alone, for this figure");
        }
        Ok(())
    }

    fn one_of_systems(&self) -> String {
        format!("one of systems: {}", self.systems.join(", "))
    }
}

/// Cases of one id that differ in batches get these as a part of it: `batch256`, `batch256x4` with a micro-batch.
fn tell_batches_apart(cases: &mut [Case]) {
    cases.iter_mut().for_each(|case| case.batch = None);
    let mut of_id: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    cases.iter().enumerate().for_each(|(index, case)| of_id.entry(case.id()).or_default().push(index));
    for alike in of_id.into_values().filter(|alike| alike.len() > 1) {
        let batches = |&index: &usize| (cases[index].global_batch, cases[index].micro_batch);
        if alike.iter().map(batches).collect::<BTreeSet<_>>().len() == 1 {
            continue;
        }
        for index in alike {
            let case = &mut cases[index];
            let micro_batch = case.micro_batch.map_or(String::new(), |size| format!("x{size}"));
            case.batch = Some(format!("batch{}{micro_batch}", case.global_batch));
        }
    }
}

/// What [`is_label`] asks for.
pub const LABEL: &str = "1 to 100 bytes without line breaks and other control characters";

/// Whether a text can be a name in tables and figures, and a part of a file's name once slashes are replaced.
pub fn is_label(text: &str) -> bool {
    (1..=100).contains(&text.len()) && !text.contains(char::is_control)
}

/// Whether a text can be the name of a folder.
fn is_folder_name(text: &str) -> bool {
    is_label(text) && !text.starts_with('.') && !text.contains(['/', '\\'])
}

/// The first item that stands twice.
pub fn repeated<T: PartialEq>(items: &[T]) -> Option<&T> {
    items.iter().enumerate().find(|(index, item)| items[..*index].contains(item)).map(|(_, item)| item)
}

fn one_seed() -> Vec<u64> {
    vec![1]
}

macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../suites/", $name, ".toml")))),*] };
}

/// Everything in `workloads/suites/`.
const SUITES: &[(&str, &str)] = embedded![
    "smoke",
    "train-smoke",
    "paper",
    "paper-gpt",
    "paper-gpt-authors",
    "paper-equal-plans",
    "paper-deepspeed",
    "paper-swin",
    "paper-offline",
    "paper-model",
    "paper-layers",
    "paper-adaptive",
    "modern",
    "balance",
    "balance-modern",
    "balance-map",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cluster, Model};

    #[test]
    fn all_suites_name_known_models_and_clusters() {
        for name in SuiteFile::names() {
            let suites = match SuiteFile::named("test", name).unwrap() {
                SuiteFile::Suite(suite) => {
                    assert_eq!(suite.name, name);
                    vec![*suite]
                }
                SuiteFile::Collection(all) => {
                    assert_eq!(all.name, name);
                    all.suites.iter().map(|name| Suite::named("test", name).unwrap()).collect()
                }
            };
            for case in suites.iter().flat_map(|suite| &suite.cases) {
                for system in &suites[0].systems {
                    Model::named(name, case.as_run_by(system).model.place()).unwrap();
                }
                Cluster::named(name, case.cluster.place()).unwrap();
            }
        }
    }

    #[test]
    fn layers_become_cases() {
        let toml = SUITES[0].1.replacen("gpus = 8", "gpus = 8\nlayers = [0, 3]\nname = \"alone\"", 1);
        let error = Suite::parse("s.toml", &toml).unwrap_err().to_string();
        assert!(error.contains("cases[0].global_batch = ") && error.contains("gpus * micro_batch"), "{error}");
        let layers = Suite::named("test", "paper-layers").unwrap().cases;
        assert!(layers.len() > 1 && layers[1].layer == Some(1) && layers[1].id().ends_with(".layer1"));
    }

    #[test]
    fn bad_suites_name_the_field() {
        let good = SUITES[0].1;
        let check = |from: &str, to: &str, expected: &str| {
            assert!(good.contains(from), "{from}");
            let message = Suite::parse("s.toml", &good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("warmup", "warm_up", "unknown field `warm_up`");
        check("gpus = 8", "gpus = 0", "cases[0].gpus = 0: expected at least 1");
        check("gpus = 8", "gpus = 1000000000000", "cases[0].gpus = 1000000000000: expected 1 to 1048576");
        check("gpus = 8", "gpus = 8\nname = \"a\\nb\"", "cases[0].name = \"a\\nb\": expected 1 to 100 bytes without");
        check("name = \"smoke\"", "name = \"../smoke\"", "name = \"../smoke\": expected 1 to 100 bytes without");
        check("warmup = 10", "warmup = 10\n[training]\nlearning_rate = nan\n[trace]", "training.learning_rate = NaN");
        check("warmup = 10", "warmup = 10\ntrace = { profile = 9223372036854775807 }", "expected at most 1048576");
        check("baseline = \"expert-only\"", "baseline = \"none\"", "baseline = none: expected one of systems");
        check("compare = [\"fastermoe\"]", "compare = [\"alpa\"]", "compare = alpa: expected one of systems");
        check("compare = [\"fastermoe\"]", "searched = [\"tutel\"]", "searched = tutel: expected one of systems");
        check("warmup = 10", "warmup = 10\nengine = \"guess\"", "unknown engine `guess`: expected `simulate`");
        check("no-drop", "nodrop", "expected `no-drop`, `capacity FACTOR`");
        let differs = |what: &str| format!("gpus = 8\ndiffers = {what}");
        check(
            "gpus = 8",
            &differs("{ alpa = { micro_batch = 2 } }"),
            "cases[0].differs = alpa: expected one of systems",
        );
        check("gpus = 8", &differs("{ smartmoe = {} }"), "cases[0].differs.smartmoe = {  }: expected another model");
    }

    #[test]
    fn cases_that_differ_in_batches_are_different_cases() {
        let head = "name = \"sweep\"\ndescription = \"d\"\nsystems = [\"tutel\"]\nbaseline = \"tutel\"\niterations = 4\nwarmup = 1\n";
        let case = |batches: &str| {
            format!("[[cases]]\nmodel = \"gpt-tiny\"\ncluster = \"inky\"\ngpus = 8\ngate = \"no-drop\"\n{batches}\n")
        };
        let ids = |batches: &[&str]| {
            let text = batches.iter().fold(head.to_owned(), |text, batches| text + &case(batches));
            let ids = |suite: Suite| suite.cases.iter().map(Case::id).collect::<Vec<_>>();
            Suite::parse("s.toml", &text).map(ids).map_err(|error| error.to_string())
        };
        let one = "global_batch = 64\nmicro_batch = 1";
        assert_eq!(ids(&[one]).unwrap(), ["gpt-tiny.inky.8.no-drop"]);
        assert_eq!(
            ids(&[one, "global_batch = 64\nmicro_batch = 2", "global_batch = 128"]).unwrap(),
            ["batch64x1", "batch64x2", "batch128"].map(|batch| format!("gpt-tiny.inky.8.no-drop.{batch}"))
        );
        let same = ids(&[one, one]).unwrap_err();
        assert!(same.contains("cases[1] = gpt-tiny.inky.8.no-drop: expected an id unlike that of cases[0]"), "{same}");
        assert!(same.contains("give one of them a `name`"), "{same}");
        assert_eq!(ids(&[one, &format!("{one}\nname = \"again\"")]).unwrap()[1], "gpt-tiny.inky.8.no-drop.again");
    }

    #[test]
    fn a_difference_changes_what_it_names() {
        let mut case = Suite::named("test", "smoke").unwrap().cases[0].clone();
        let difference = Difference { gate: Some(Gate::BalancedNoDrop), micro_batch: Some(1), model: None };
        assert_eq!(difference.to_string(), "gate no-drop balanced, micro-batch 1");
        case.differs.insert("deepspeed".into(), difference);
        let run = case.as_run_by("deepspeed");
        assert_eq!((run.model, run.gate, run.micro_batch), (case.model.clone(), Gate::BalancedNoDrop, Some(1)));
        assert_eq!(case.as_run_by("smartmoe").gate, case.gate);
    }
}
