//! `run.json`: what was run, from which inputs, by which program, on which machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use workloads::suite::{FigureKind, SuiteRouting, TraceUse};
use workloads::trace::{Choices, RoutingTrace};
use workloads::{Case, EngineKind, Suite};

use crate::records::SCHEMA_VERSION;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of the records' columns.
    pub schema_version: u32,
    pub engine: EngineKind,
    pub command: Vec<String>,
    /// All that the numbers depend on; two runs with equal inputs have equal records.
    pub inputs: Inputs,
    pub version: String,
    /// Commit that the program was built from; none where that was no checkout.
    pub commit: Option<String>,
    /// Whether what was built had changes that were not committed.
    pub dirty: Option<bool>,
    pub host: String,
    pub cores: usize,
    /// Versions of the libraries and the driver that trained, by name; none where nothing is trained.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub libraries: BTreeMap<String, String>,
    /// What the suite says of itself; none in runs of versions that did not keep it.
    #[serde(default)]
    pub suite: Option<SuiteFacts>,
}

/// What a report says of a suite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SuiteFacts {
    /// What it answers.
    pub description: String,
    /// The system that speedups are over.
    pub baseline: String,
    /// First iterations that means, medians and speedups leave out.
    pub warmup: usize,
    /// How the numbers were obtained, and on which routing.
    pub origin: String,
    /// Where a system did not train what its case says, a line each.
    pub differences: Vec<String>,
    /// What figures and tables need besides; none of it in runs of versions that did not keep it.
    #[serde(default)]
    pub drawn: DrawnFacts,
}

/// What figures and tables say of a suite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DrawnFacts {
    /// What the samples are drawn as first.
    pub figure: FigureKind,
    /// Systems that tables show speedups over besides the baseline.
    pub compare: Vec<String>,
    /// Systems whose plans SmartMoE's search found.
    pub searched: Vec<String>,
    /// Systems that trained something else than a case says.
    pub otherwise: Vec<String>,
    /// Cases whose network or routing is their own, of which nothing was published.
    pub own_conditions: Vec<String>,
    /// Training iteration of the first sample, and iterations from one to the next.
    pub trace: TraceUse,
    /// Floor and unigram entropy of what models read, nats per token, by case, where they are known.
    pub entropies: BTreeMap<String, [f64; 2]>,
    /// Whether a row is a line of another program's log that is not the iteration of its number alone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub of_lines: bool,
    /// What was measured on; none where times are those of the cases' clusters, as in runs of versions that did not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub measured_on: Option<String>,
    /// Of a map, where its cases stand, by case.
    pub places: BTreeMap<String, MapPlace>,
}

/// Where a case stands in a map of skew and network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapPlace {
    /// The case's id without what the axes say: its network and routing.
    pub setting: String,
    /// The factor of the network between nodes.
    pub network: f64,
    /// The case's own routing in words, part by part; none where it is that of a trace.
    pub routing: Vec<String>,
    /// What that routing states of its fullest expert.
    pub max_over_mean: Option<f64>,
}

impl MapPlace {
    fn new(case: &Case) -> Self {
        let routing = case.routing.first();
        let setting = Case { network: None, routing: Vec::new(), ..case.clone() };
        Self {
            setting: setting.id(),
            network: case.network.unwrap_or(1.0),
            routing: routing.map_or_else(Vec::new, SuiteRouting::words),
            max_over_mean: routing.and_then(|routing| routing.max_over_mean),
        }
    }
}

impl DrawnFacts {
    /// Of a suite; entropies, what is measured on and whether rows are lines are the engine's to tell.
    pub fn new(suite: &Suite) -> Self {
        let is_map = |_: &&Case| suite.figure == FigureKind::Map;
        let otherwise: BTreeSet<&String> = suite.cases.iter().flat_map(|case| case.differs.keys()).collect();
        let own_conditions = suite.cases.iter().filter(|case| case.has_own_conditions());
        Self {
            figure: suite.figure,
            compare: suite.compare.clone(),
            searched: suite.searched.clone(),
            otherwise: otherwise.into_iter().cloned().collect(),
            own_conditions: own_conditions.map(Case::id).collect(),
            trace: suite.trace,
            entropies: BTreeMap::new(),
            of_lines: false,
            measured_on: None,
            places: suite.cases.iter().filter(is_map).map(|case| (case.id(), MapPlace::new(case))).collect(),
        }
    }
}

/// The name of the hash of the engine and its options.
pub const ENGINE: &str = "engine";

/// How the names of hashes begin that say which routing a run goes through: of its traces, and of how it reads them.
pub const TRACE: &str = "trace ";

/// What the records follow from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Version of this program and hash of its executable.
    pub program: String,
    pub suite: String,
    /// Which part of the suite's cases, `I/N`, where it is not all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<String>,
    /// Systems, in order.
    pub systems: Vec<String>,
    pub iterations: usize,
    pub seeds: Vec<u64>,
    pub trace: String,
    /// SHA-256 of suite, engine, models, clusters, traces and how they are read.
    pub hashes: BTreeMap<String, String>,
}

impl Inputs {
    /// What `now` has otherwise, a phrase each: `iterations = 5, now 30`.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut said = Vec::new();
        let mut field = |name: &str, old: String, new: String| {
            said.extend((old != new).then(|| format!("{name} = {old}, now {new}")));
        };
        field("suite", self.suite.clone(), now.suite.clone());
        field("systems", self.systems.join(","), now.systems.join(","));
        field("iterations", self.iterations.to_string(), now.iterations.to_string());
        field("seeds", format!("{:?}", self.seeds), format!("{:?}", now.seeds));
        let shard = |inputs: &Self| inputs.shard.clone().unwrap_or_else(|| "the whole suite".to_owned());
        field("shard", shard(self), shard(now));
        field("trace", self.trace.clone(), now.trace.clone());
        // A suite's hash covers the fields above: it is worth a word where they are the same.
        let told = !said.is_empty();
        for name in self.hashes.keys().chain(now.hashes.keys().filter(|name| !self.hashes.contains_key(*name))) {
            match (self.hashes.get(name), now.hashes.get(name)) {
                (Some(old), Some(new)) if old == new => {}
                _ if told && name.starts_with("suite ") => {}
                (Some(_), Some(_)) => said.push(format!("{name} says something else")),
                (Some(_), None) => said.push(format!("{name}, now none")),
                (None, _) => said.push(format!("{name} is new")),
            }
        }
        said.extend((self.program != now.program).then(|| "the program was built again".to_owned()));
        said
    }
}

impl Provenance {
    /// Of a run of this program, now; of which commit it is, the binary knows.
    pub fn new(engine: EngineKind, inputs: Inputs) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            engine,
            command: std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect(),
            inputs,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: None,
            dirty: None,
            host: fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            libraries: BTreeMap::new(),
            suite: None,
        }
    }
}

impl Provenance {
    /// Of a run that has times of `other`, too: the hosts of both.
    ///
    /// # Errors
    /// Machines that differ in more than their names.
    pub fn with_times_of(mut self, other: &Self) -> Result<Self> {
        let (one, two) = (other.machine(), self.machine());
        ensure!(
            one == two,
            "timed on {one} ({}), and on {two} ({}): expected one kind of machine",
            other.host,
            self.host
        );
        let hosts: BTreeSet<&str> = self.host.split(", ").chain(other.host.split(", ")).collect();
        self.host = hosts.into_iter().collect::<Vec<_>>().join(", ");
        Ok(self)
    }

    /// What times depend on.
    fn machine(&self) -> String {
        let device = self.suite.iter().filter_map(|suite| suite.drawn.measured_on.clone());
        let libraries = self.libraries.iter().map(|(name, version)| format!("{name} {version}"));
        device.chain([format!("{} cores", self.cores)]).chain(libraries).collect::<Vec<_>>().join(", ")
    }
}

/// Reads a folder's `run.json`.
///
/// # Errors
/// One that cannot be read, or is no such thing.
pub fn read(root: &Path) -> Result<Provenance> {
    let path = root.join("run.json");
    let what = || format!("{}: expected what `moebench run` or `moebench train` writes", path.display());
    let text = fs::read_to_string(&path).with_context(what)?;
    serde_json::from_str(&text).with_context(what)
}

/// SHA-256 of bytes, as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a trace's shape, labels, counts and kind of gate.
pub fn trace_hash(trace: &RoutingTrace) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("{:?}{:?}", trace.shape(), trace.iterations()));
    match trace.choices() {
        Choices::Recorded => (),
        Choices::Balanced => hasher.update("balanced"),
        stated => hasher.update(stated.text()),
    }
    let mut bytes = Vec::with_capacity(1 << 16);
    for counts in trace.counts().chunks(1 << 14) {
        bytes.clear();
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        hasher.update(&bytes);
    }
    hex(&hasher.finalize())
}

/// Version and hash of the running executable.
pub fn program() -> String {
    let hash = std::env::current_exe().and_then(File::open).and_then(hash_of).unwrap_or("unknown".to_owned());
    format!("{} {}", env!("CARGO_PKG_VERSION"), &hash[..hash.len().min(16)])
}

/// A build with its symbols is large: it is not held in memory whole.
fn hash_of(mut file: File) -> io::Result<String> {
    let (mut hasher, mut bytes) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex(&hasher.finalize())),
            read => hasher.update(&bytes[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
