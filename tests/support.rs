//! What the tests share: a folder of their own, the program, and a small world of round numbers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use polars::prelude::DataFrame;
use systems::iteration::run::{Iteration, Run};
use systems::{CostModel, Job, Plan, System};
use workloads::gate::Router;
use workloads::model::{Attention, Block, Edge, Ffn, Model, Moe, Norm};
use workloads::trace::{BatchCounts, Routing, RoutingSpec, RoutingTrace, SynthSpec, TraceShape};
use workloads::{Cluster, Flops, Gate};

/// A folder that goes when the test ends.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.join(name)).unwrap()
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.join(name)).unwrap()
    }

    pub(crate) fn frame(&self, name: &str) -> DataFrame {
        runs::store::read_parquet(&self.join(name)).unwrap()
    }

    /// Paths of all files below, sorted.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut folders = vec![self.0.clone()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path.strip_prefix(&self.0).unwrap().display().to_string());
                }
            }
        }
        files.sort();
        files
    }

    /// The files below one folder, which are those below another to the byte.
    pub(crate) fn same_files(&self, one: &str, other: &str) -> Vec<String> {
        let below = |of: &str| self.files().into_iter().filter(|name| name.starts_with(of)).collect::<Vec<_>>();
        let (own, others) = (below(one), below(other));
        assert_eq!(own.len(), others.len(), "{own:?} and {others:?}");
        for (one, other) in own.iter().zip(&others) {
            assert!(self.bytes(one) == self.bytes(other), "{one} is another");
        }
        own
    }

    /// `moebench` with this folder as the current one, not yet started.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moebench"));
        command.args(split(arguments)).current_dir(&self.0).stdin(Stdio::null());
        command
    }

    /// Runs `moebench`.
    pub(crate) fn moebench(&self, arguments: &str) -> Ran {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs `moebench`, which must succeed; returns its standard output.
    pub(crate) fn succeed(&self, arguments: &str) -> String {
        let ran = self.moebench(arguments);
        assert_eq!(ran.status, Some(0), "moebench {arguments}\n{}", ran.stderr);
        ran.stdout
    }

    /// Runs `moebench`, which must refuse its input with every one of `fragments` in one error.
    pub(crate) fn refuse(&self, arguments: &str, fragments: &[&str]) {
        let ran = self.moebench(arguments);
        let said = format!("moebench {arguments}\n{}", ran.stderr);
        assert_eq!(ran.status, Some(2), "{said}");
        assert_eq!(ran.stderr.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
        for fragment in fragments {
            assert!(ran.stderr.contains(fragment), "no `{fragment}` in: {said}");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that stays behind harms nothing.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How a run of the program ended.
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Arguments between blanks; single quotes hold one together.
fn split(arguments: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (index, part) in arguments.split('\'').enumerate() {
        match index % 2 {
            0 => all.extend(part.split_whitespace().map(str::to_owned)),
            _ => all.push(part.to_owned()),
        }
    }
    all
}

/// A cluster's TOML: `gpus_per_node` and `(field, value)` instead of [`cluster`]'s.
pub(crate) fn cluster_toml(gpus_per_node: usize, changes: &[(&str, f64)]) -> String {
    let sections: [(&str, &[(&str, f64)]); 3] = [
        (
            "[gpu]\nname = \"test\"",
            &[
                ("memory", 80e9),
                ("memory_reserved", 0.0),
                ("memory_bandwidth", 1e12),
                ("scatter_bandwidth", 1e12),
                ("gemm_rate", 1e14),
                ("expert_start", 0.0),
            ],
        ),
        (
            "[network]",
            &[
                ("intra_bandwidth", 1e11),
                ("inter_bandwidth", 2e10),
                ("port_bandwidth", 2e10),
                ("rooted_bandwidth", 1e10),
                ("call_start", 0.0),
                ("peer_start", 0.0),
                ("send_start", 0.0),
            ],
        ),
        ("[host]", &[("iteration", 0.0), ("block", 0.0), ("synchronisation", 0.0), ("decision_step", 0.0)]),
    ];
    let mut text = format!("name = \"test\"\ndescription = \"for tests\"\ngpus_per_node = {gpus_per_node}\n");
    for (header, constants) in sections {
        text += &format!("\n{header}\n");
        for &(field, value) in constants {
            let value = changes.iter().find(|(changed, _)| *changed == field).map_or(value, |change| change.1);
            text += &format!("{field} = {{ value = {value:e}, source = \"a test\" }}\n");
        }
    }
    text
}

/// A cluster of round constants and no start-ups.
pub(crate) fn cluster(gpus_per_node: usize, changes: &[(&str, f64)]) -> Cluster {
    Cluster::parse("test.toml", &cluster_toml(gpus_per_node, changes)).unwrap()
}

/// A model of equal MoE blocks and nothing before or after them.
pub(crate) fn model(blocks: usize, tokens: usize, width: usize, experts: usize) -> Model {
    let block = Block {
        tokens,
        hidden: width,
        attention: Attention::plain(1, width, tokens),
        norm: Norm::default(),
        dropout: true,
        extra_parameters: 0,
        extra_flops: Flops::ZERO,
        ffn: Ffn::Moe(Moe::plain(tokens, width, 2 * width, experts)),
    };
    Model {
        name: "test".into(),
        source: "a test".into(),
        blocks: vec![block; blocks],
        input: Edge::default(),
        output: Edge::default(),
        tied_parameters: 0,
        top_k: 1,
        vocabulary: None,
        router: Router::default(),
        flattening: 0.0,
    }
}

/// What the gate chooses in one iteration: `row(chunk)` entries of each expert, the same in every layer.
pub(crate) fn batch(layers: usize, chunks: usize, row: impl Fn(usize) -> Vec<u32>) -> BatchCounts {
    let (experts, entries) = (row(0).len(), row(0).iter().sum());
    let shape = TraceShape { layers, micro_batches: 1, ranks: chunks, experts, entries, top_k: 1 };
    let counts = (0..layers).flat_map(|_| (0..chunks).flat_map(&row)).collect();
    let trace = RoutingTrace::new("test", shape, vec![1], counts).unwrap();
    let spec =
        RoutingSpec { layers, experts, chunks, entries_per_chunk: entries, top_k: 1, start: 1, stride: 1, seed: 0 };
    let batch = Routing::new(&trace, spec).unwrap().iteration(0);
    for layer in 0..layers {
        for chunk in 0..chunks {
            assert_eq!(batch.chunk(layer, chunk), row(chunk), "a trace of the model's own shape is kept as it is");
        }
    }
    batch
}

/// A job with a profile, micro-batches of one sample.
pub(crate) fn job(model: Model, cluster: Cluster, gpus: usize, batch: &BatchCounts) -> Job {
    Job::new(model, cluster, gpus, Gate::NoDrop, batch.chunks()).with_micro_batch(1).with_profile(vec![batch.clone()])
}

/// Simulates `iterations` equal ones.
pub(crate) fn simulate(
    job: &Job,
    costs: &CostModel,
    system: &dyn System,
    plan: Plan,
    batch: &BatchCounts,
    iterations: usize,
) -> Vec<Iteration> {
    plan.check(job).unwrap();
    let mut run = Run::new(job, costs, system, plan);
    (0..iterations).map(|_| run.step(batch)).collect()
}

/// A plan without tensor parallelism, of micro-batches of one sample, that never places.
pub(crate) fn plan(pp: usize, dp: usize, ep: usize) -> Plan {
    Plan { pp, dp, ep, expert_dp: dp / ep, ..Plan::default() }
}

/// The sum of all iterations, s.
pub(crate) fn total(iterations: &[Iteration]) -> f64 {
    iterations.iter().map(|iteration| iteration.timing.step.0).sum()
}

/// Fails unless the two agree to rounding.
#[track_caller]
pub(crate) fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-9 * expected.abs(), "{found}, expected {expected}");
}

/// Numbers below `limit`, the same in every run.
pub(crate) fn draws(seed: u64, limit: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    }
}

/// Writes `trace.parquet`: a small synthetic trace.
pub(crate) fn small_trace(folder: &Folder) {
    let spec = SynthSpec {
        layers: 2,
        experts: 8,
        ranks: 4,
        micro_batches: 2,
        entries: 256,
        samples: 12,
        ..SynthSpec::default()
    };
    runs::traces::parquet::write(&spec.generate().unwrap(), &folder.join("trace.parquet")).unwrap();
}

/// A suite of the tiny model: expert parallelism, FasterMoE and SmartMoE on `(gpus, gate)` cases of inky.
pub(crate) fn suite_toml(cases: &[(usize, &str)]) -> String {
    let mut text =
        "name = \"test\"\ndescription = \"for tests\"\nbaseline = \"expert-only\"\niterations = 12\nwarmup = 1\n\
                    systems = [\"expert-only\", \"fastermoe\", \"smartmoe\"]\n"
            .to_owned();
    for (gpus, gate) in cases {
        text += &format!(
            "\n[[cases]]\nmodel = \"gpt-tiny\"\ncluster = \"inky\"\ngpus = {gpus}\ngate = \"{gate}\"\nglobal_batch = 64\n"
        );
    }
    text
}

/// Compiles a document in its folder; false where there is no LaTeX.
pub(crate) fn latex_compiles(folder: &Folder, document: &str) -> bool {
    let mut run = Command::new("pdflatex");
    run.args(["-interaction=nonstopmode", "-halt-on-error", document]);
    let Ok(output) = run.current_dir(folder.path()).output() else { return false };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{document}: {said}");
    assert!(!said.contains("Overfull") && !said.contains("too large"), "{document}: {said}");
    true
}

/// The text of a paper of two columns of 3.33 in.
pub(crate) fn latex_paper(packages: &str, body: &str) -> String {
    format!(
        "\\documentclass[twocolumn]{{article}}\n\\usepackage[letterpaper,textwidth=7in,textheight=9in]{{geometry}}\n\
         \\setlength{{\\columnsep}}{{0.34in}}\n{packages}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"
    )
}

/// The points of each line of a figure, without marks, go from left to right.
pub(crate) fn check_rising(figure: &str) {
    let mut lines = csv::Reader::from_reader(figure.as_bytes());
    let rows: Vec<csv::StringRecord> = lines.records().map(Result::unwrap).filter(|row| row[4].is_empty()).collect();
    let x = |row: &csv::StringRecord| row[2].parse::<f64>().unwrap();
    let pairs = || rows.windows(2).filter(|pair| [&pair[0][0], &pair[0][1]] == [&pair[1][0], &pair[1][1]]);
    assert!(pairs().count() > 1, "{figure}");
    pairs().for_each(|pair| assert!(x(&pair[0]) < x(&pair[1]), "{pair:?}"));
}
