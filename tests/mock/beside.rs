//! Measured and predicted runs of known times side by side.

use harness::pipeline::{self, RunRequest};
use runs::engines::Session;
use runs::records::Status;
use runs::report::beside as shown;
use runs::summary::beside::{self, Compared};
use runs::traces::CaseTraces;
use workloads::EngineKind;

use super::engine::{MockEngine, suite, trace};
use crate::support::Folder;

/// SmartMoE, which places every fifth of 15 iterations, as `engine` measures it on these seeds and the mock predicts it.
fn smartmoe(engine: fn() -> MockEngine, seeds: &[u64]) -> Compared {
    let (folder, traces) = (Folder::new(), CaseTraces::from(trace()));
    let mut suite = suite();
    (suite.iterations, suite.seeds) = (15, seeds.to_vec());
    suite.cases[0].plans.get_mut("smartmoe").unwrap().placement_every = 5;
    for (name, engine) in [("measured", engine()), ("predicted", MockEngine::default())] {
        let request = RunRequest {
            suite: suite.clone(),
            file: "test".to_owned(),
            shard: None,
            traces: &traces,
            replay: false,
            session: Session::Leader(Box::new(engine)),
            out: folder.join(name),
            overwrite: false,
            threads: None,
            timelines: false,
        };
        assert!(pipeline::sample(&request).is_ok());
    }
    let [measured, predicted] = ["measured", "predicted"].map(|name| vec![folder.join(name)]);
    let all = beside::compare(&measured, &predicted, "expert-only", (2, 0.0)).unwrap();
    all.into_iter().find(|of| of.case.contains(".8.") && of.system == "smartmoe").unwrap()
}

/// One iteration in five takes 1 + 3 s, the others 1 s, against 4 s; the last three of thirteen are no whole period.
#[test]
fn speedups_are_over_whole_placement_periods() {
    for (seeds, spread) in [(&[1][..], "spread over iterations"), (&[1, 2], "range of seeds")] {
        let of = smartmoe(|| MockEngine::of(EngineKind::Measured), seeds);
        let [measured, predicted] = of.speedup.clone().unwrap();
        assert_eq!((measured.by_totals, measured.spread, measured.seeds), (2.5, Some([2.5; 2]), seeds.len()));
        assert_eq!(predicted, measured);
        let table = shown::table(&[of]).to_string();
        assert!(table.contains(spread) && table.contains("2.500 to 2.500"), "{table}");
    }
}

#[test]
fn a_run_that_failed_has_no_speedup() {
    let of = smartmoe(|| MockEngine::failing("smartmoe", Status::Crash), &[1]);
    assert_eq!((of.speedup, of.iterations), (None, 2));
}
