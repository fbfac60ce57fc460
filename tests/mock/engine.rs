//! An engine of known times, and a small suite for it: tests of what stands around engines need no simulation.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use systems::Plan;
use systems::iteration::run::Iteration;
use systems::iteration::{Peak, Timing};
use systems::price::ledger::{Ledger, Phase};
use workloads::trace::{RoutingTrace, SynthSpec};
use workloads::{Bytes, EngineKind, Seconds, Suite};

use runs::engines::{Engine, Extent};
use runs::prepare::{self, PreparedCase, PreparedRun};
use runs::records::{Outcome, Row, RunFailure, RunRecord, Status};

/// Takes 4 s an iteration under expert parallelism, 2 s under FasterMoE and 1 s under SmartMoE, of which 1/8 s are decisions;
/// the first two iterations take ten times as long, and every placement after them 3 s.
#[derive(Default)]
pub(crate) struct MockEngine {
    pub(crate) kind: EngineKind,
    /// System that fails, with what, in its fifth iteration.
    fails: Option<(&'static str, Status)>,
    pub(crate) runs: AtomicUsize,
    /// How many run now, and the most that ever did.
    running: AtomicUsize,
    pub(crate) at_once: AtomicUsize,
}

pub(crate) fn step_of(system: &str) -> f64 {
    match system {
        "expert-only" => 4.0,
        "fastermoe" => 2.0,
        _ => 1.0,
    }
}

impl MockEngine {
    pub(crate) fn of(kind: EngineKind) -> Self {
        Self { kind, ..Self::default() }
    }

    /// `system` fails with `status` in its fifth iteration.
    pub(crate) fn failing(system: &'static str, status: Status) -> Self {
        Self { fails: Some((system, status)), ..Self::default() }
    }

    fn iteration(&self, system: &str, plan: &Plan, t: usize) -> Iteration {
        let warm = if t < 2 { 10.0 } else { 1.0 };
        let places = t >= 2 && plan.placement_every > 0 && t.is_multiple_of(plan.placement_every);
        let migration = Seconds(if places { 3.0 } else { 0.0 });
        let step = Seconds(step_of(system) * warm) + migration;
        let mut phases = Ledger::default();
        phases.add(Phase::Dense, step);
        let peak = Peak { rank: 3, bytes: Bytes(2e9) };
        Iteration {
            timing: Timing { step, phases: vec![phases], peak, entries: 64, ..Timing::default() },
            migration,
            decision: Seconds(if system == "smartmoe" { 0.125 } else { 0.0 }),
            moved: usize::from(system == "smartmoe" && t == 4),
            loss: self.kind.trains().then_some(5.0 - t as f64 / 4.0),
            ..Iteration::default()
        }
    }

    /// The rows of a suite's runs.
    pub(crate) fn rows(&self, suite: &Suite) -> Vec<Row> {
        let trace = trace();
        let cases = prepare::cases("test", suite, |_| &trace).unwrap();
        let extent = Extent { iterations: suite.iterations, timelines: false };
        let record = |run: &PreparedRun| {
            let outcome = self.run(run, run.plan().unwrap().plan, extent, &|| ()).unwrap();
            RunRecord::new(run, self.kind, outcome)
        };
        cases.iter().flat_map(|case| &case.runs).flat_map(|run| record(run).rows().collect::<Vec<_>>()).collect()
    }
}

impl Engine for MockEngine {
    fn kind(&self) -> EngineKind {
        self.kind
    }

    fn hash(&self) -> String {
        "mock".to_owned()
    }

    fn run(&self, run: &PreparedRun, plan: Plan, extent: Extent, tick: &(dyn Fn() + Sync)) -> Result<Outcome> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.at_once.fetch_max(self.running.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        let system = run.system.name();
        let failing = self.fails.filter(|(name, _)| *name == system).map(|(_, status)| status);
        let reached = if failing.is_some() { 4 } else { extent.iterations };
        tick();
        // Long enough to meet another run, if there is one.
        std::thread::sleep(Duration::from_millis(2));
        self.running.fetch_sub(1, Ordering::Relaxed);
        Ok(Outcome {
            iterations: (0..reached).map(|t| self.iteration(system, &plan, t)).collect(),
            failure: failing.map(|status| RunFailure { status, reason: "on purpose".to_owned() }),
            imbalance: vec![vec![1.5, 2.0]; reached],
            balanced: (!self.kind.trains()).then(|| Seconds(step_of(system) / 2.0)),
            ..Outcome::default()
        })
    }
}

/// Two cases under three systems, all plans given.
pub(crate) fn suite() -> Suite {
    let mut text = "name = \"test\"\ndescription = \"For tests: 100% & known\"\nbaseline = \"expert-only\"\n\
                    compare = [\"fastermoe\"]\niterations = 12\nwarmup = 2\n\
                    systems = [\"expert-only\", \"fastermoe\", \"smartmoe\"]\n"
        .to_owned();
    for (gpus, gate) in [(8, "no-drop"), (16, "capacity 1.2")] {
        text += &format!(
            "[[cases]]\nmodel = \"gpt-tiny\"\ncluster = \"inky\"\ngpus = {gpus}\ngate = \"{gate}\"\nglobal_batch = 64\n"
        );
        for system in ["expert-only", "fastermoe", "smartmoe"] {
            text += &format!(
                "plans.{system} = {{ pp = 1, dp = {gpus}, tp = 1, ep = 8, expert_dp = {}, micro_batch = 2 }}\n",
                gpus / 8
            );
        }
    }
    Suite::parse("test", &text).unwrap()
}

pub(crate) fn trace() -> RoutingTrace {
    SynthSpec { layers: 2, experts: 8, ranks: 4, micro_batches: 2, entries: 64, samples: 4, ..SynthSpec::default() }
        .generate()
        .unwrap()
}

/// Prepares [`suite`] and hands it to `then`.
pub(crate) fn with_cases<T>(then: impl FnOnce(&[PreparedCase]) -> T) -> T {
    let trace = trace();
    then(&prepare::cases("test", &suite(), |_| &trace).unwrap())
}

/// Compares with `tests/golden/NAME`; what was found instead is left beside the test's other files.
#[track_caller]
pub(crate) fn check_golden(name: &str, found: &str) {
    let expected = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
    if std::fs::read_to_string(&expected).unwrap_or_default() != found {
        let other = std::env::temp_dir().join(name);
        std::fs::write(&other, found).unwrap();
        panic!("{} is not what is written now: {}", expected.display(), other.display());
    }
}
