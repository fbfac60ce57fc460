//! Times and speedups of known times.

use runs::records::{Row, RowsByRun, Status};
use runs::summary::model_error::{ClusterError, Measured, Part};
use runs::summary::{StepTime, Summary, SummaryRow};
use workloads::{Bytes, EngineKind, Published, Suite};

use super::engine::{MockEngine, suite};

const CASE: &str = "gpt-tiny.inky.8.no-drop";

fn summary(engine: &MockEngine, warmup: usize) -> Summary {
    Summary::new(&RowsByRun::new(&engine.rows(&suite())), "expert-only", warmup)
}

#[test]
fn speedups_are_those_of_the_known_times() {
    let summary = summary(&MockEngine::default(), 2);
    assert_eq!(summary.rows.len(), 6);
    for (system, expected) in [("expert-only", 1.0), ("fastermoe", 2.0), ("smartmoe", 4.0)] {
        let row = summary.row(CASE, system).unwrap();
        let speedup = row.speedup.clone().unwrap();
        assert_eq!((speedup.by_totals, speedup.spread), (expected, Some([expected; 2])), "{system}");
        let step = 4.0 / expected;
        assert_eq!(row.step, Some(StepTime { mean: step, median: step, counted: 10 }), "{system}");
        // Two iterations of ten times, and ten.
        assert_eq!((row.sum, row.speedup_with_warmup), (30.0 * step, Some(expected)), "{system}");
        assert_eq!((row.peak_bytes, row.share_of_ideal), (Some(2e9), Some(0.5)));
    }
    assert_eq!(summary.row(CASE, "smartmoe").unwrap().online_share, 0.125, "of what the mean is of");
    assert!(!summary.is_trained() && summary.rows.iter().all(|row| row.loss.is_none()));
}

/// Two of twelve iterations take ten times as long.
#[test]
fn warm_up_is_left_out_of_means() {
    let row = summary(&MockEngine::default(), 0).row(CASE, "smartmoe").unwrap().clone();
    assert_eq!((row.step, row.sum), (Some(StepTime { mean: 2.5, median: 1.0, counted: 12 }), 30.0));
}

/// SmartMoE's row where it places every `every` iterations, of `iterations` in all.
fn placing(every: usize, iterations: usize) -> SummaryRow {
    let mut suite = suite();
    suite.iterations = iterations;
    suite.cases[0].plans.get_mut("smartmoe").unwrap().placement_every = every;
    let rows = MockEngine::default().rows(&suite);
    Summary::new(&RowsByRun::new(&rows), "expert-only", 2).row(CASE, "smartmoe").unwrap().clone()
}

/// One iteration in five takes 1 + 3 s, the others 1 s: 4 * 5 over 8, and 4 over 1.
#[test]
fn migrations_count_in_the_headline() {
    // Ten iterations after warm-up, and thirteen, of which the last three are no whole period.
    for iterations in [12, 15] {
        let row = placing(5, iterations);
        let speedup = row.speedup.unwrap();
        assert_eq!((speedup.by_totals, speedup.by_medians), (2.5, 4.0));
        assert_eq!((speedup.spread, speedup.unreached_period), (Some([2.5; 2]), None));
        assert_eq!(row.step, Some(StepTime { mean: 1.6, median: 1.0, counted: 10 }));
    }
}

/// Costs are of the iterations that the time beside them is of: thirteen hold three migrations, two periods of five hold two.
#[test]
fn costs_are_of_the_iterations_that_count() {
    for iterations in [12, 15] {
        let row = placing(5, iterations);
        let migration: f64 = row.samples.iter().map(|sample| sample.migration.0).sum();
        assert_eq!((row.samples.len(), migration), (10, 6.0));
        assert_eq!(row.online_share, (10.0 * 0.125 + 6.0) / 16.0);
    }
}

/// The end of each seed's training counts, not that of the last alone.
#[test]
fn the_final_loss_is_of_all_seeds() {
    let mut two = suite();
    two.seeds = vec![1, 2];
    let mut rows = MockEngine::of(EngineKind::Measured).rows(&two);
    let of = |rows: &[Row]| Summary::new(&RowsByRun::new(rows), "expert-only", 2).row(CASE, "smartmoe").unwrap().loss;
    let one = of(&rows).unwrap();
    for row in rows.iter_mut().filter(|row| row.key.seed == 2) {
        row.sample.as_mut().unwrap().loss = Some(0.5);
    }
    assert_eq!(of(&rows), Some((one + 0.5) / 2.0));
}

/// The one migration in ten iterations counts, although it is to last for twelve.
#[test]
fn a_run_shorter_than_a_period_counts_whole() {
    let row = placing(11, 12);
    let speedup = row.speedup.unwrap();
    assert_eq!((speedup.by_totals, speedup.spread, speedup.unreached_period), (40.0 / 13.0, None, Some(11)));
    assert_eq!(row.step.unwrap().counted, 10);
}

#[test]
fn the_spread_of_several_seeds_is_said_to_be_theirs() {
    let mut two = suite();
    two.seeds = vec![1, 2];
    let of = |suite: &Suite| {
        let rows = MockEngine::default().rows(suite);
        Summary::new(&RowsByRun::new(&rows), "expert-only", 2)
    };
    assert_eq!([of(&suite()).spread_over(), of(&two).spread_over()], ["iterations", "2 seeds"]);
    assert_eq!(of(&two).row(CASE, "smartmoe").unwrap().step.unwrap().counted, 20);
}

#[test]
fn a_failed_run_has_a_reason_and_no_speedup() {
    let summary = summary(&MockEngine::failing("fastermoe", Status::Crash), 2);
    let row = summary.row(CASE, "fastermoe").unwrap();
    assert_eq!((row.status(), row.step, &row.speedup), (Status::Crash, None, &None));
    assert_eq!(row.failure.as_ref().unwrap().to_string(), "crash: on purpose");
    assert!(summary.row(CASE, "smartmoe").unwrap().speedup.is_some());
    let frame = summary.frame().unwrap();
    assert_eq!(frame.column("median_step_s").unwrap().f64().unwrap().iter().flatten().count(), 4);
    assert_eq!(frame.column("status").unwrap().str().unwrap().get(1), Some("crash"));
}

/// A trained run without a single loss is a trained run.
#[test]
fn the_engine_says_whether_a_model_was_trained() {
    let trained = summary(&MockEngine::of(EngineKind::Measured), 2);
    // The last tenth of twelve losses: the last two, 2.5 and 2.25.
    assert!(trained.is_trained() && trained.rows.iter().all(|row| row.loss == Some(2.375)));
    let mut rows = MockEngine::of(EngineKind::Emulated).rows(&suite());
    rows.iter_mut().for_each(|row| row.sample.as_mut().unwrap().loss = None);
    assert!(Summary::new(&RowsByRun::new(&rows), "expert-only", 2).is_trained());
}

/// SmartMoE's published times on this case do not exist; a cluster's error does, and stands beside models that were measured
/// there alone.
#[test]
fn errors_of_the_cluster_stand_beside_simulated_rows_alone() {
    let cluster = ClusterError {
        cluster: "inky".to_owned(),
        part: Part::Iteration,
        measurements: 36,
        median: 0.04,
        p90: 0.1,
        max: 0.2,
        measured: Measured::Unseen,
    };
    let nothing = Published::default();
    let mut simulated = summary(&MockEngine::default(), 2);
    simulated.hold_against(&nothing, std::slice::from_ref(&cluster));
    assert!(simulated.rows.iter().all(|row| row.model_error.is_none()));
    let text = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n\
                8,gpt-tiny,inky,8,capacity 2,deepspeed,pp1 dp8 tp1 ep8 edp1 mb1,median_step_s,1,a test\n";
    let published = Published::parse("test", text).unwrap();
    simulated.hold_against(&published, std::slice::from_ref(&cluster));
    for row in &simulated.rows {
        let label = row.model_error.as_ref().map(|error| error.label());
        assert_eq!(label.as_deref(), (row.key.case == CASE).then_some("±4%"), "{}", row.key.case);
    }
    // The case's cluster is that of the measurements, its network or routing is not.
    simulated.own_conditions = vec![CASE.to_owned()];
    simulated.hold_against(&published, std::slice::from_ref(&cluster));
    assert!(simulated.rows.iter().all(|row| row.model_error.is_none()));
    let mut measured = summary(&MockEngine::of(EngineKind::Measured), 2);
    measured.hold_against(&published, &[cluster]);
    assert!(measured.rows.iter().all(|row| row.model_error.is_none()));
}

/// SmartMoE took 1 s (4 s of expert-only); measured were 1.25 s under Alpa's name, the same plan, and 4 s: an error of -20% of
/// the time, and of 4 over 3.2 of the speedup.
#[test]
fn a_measurement_is_found_by_the_plan_that_ran() {
    let mut suite = suite();
    let plan = suite.cases[0].plans.get_mut("smartmoe").unwrap();
    (plan.ep, plan.expert_dp) = (4, 2);
    let rows = MockEngine::default().rows(&suite);
    let measured = |plan: &str, of_baseline: &str| {
        let line = |system: &str, plan: &str, time: f64| {
            format!("8,gpt-tiny,inky,8,no-drop,{system},{plan},median_step_s,{time},a test\n")
        };
        let header = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n".to_owned();
        let others = line("expert-only", of_baseline, 4.0) + &line("smartmoe", "pp8 dp1", 2.0);
        let published = Published::parse("test", &(header + &others + &line("alpa", plan, 1.25))).unwrap();
        let mut summary = Summary::new(&RowsByRun::new(&rows), "expert-only", 2);
        summary.hold_against(&published, &[]);
        let row = summary.row(CASE, "smartmoe").unwrap();
        let label = row.model_error.as_ref().map(|error| error.label());
        (label, row.speedup_error, row.published.speedup_by_medians, row.published.speedup_of_other_plan)
    };
    let own = "pp1 dp8 tp1 ep8 edp1 mb2";
    assert_eq!(measured("pp1 dp8 tp1 ep4 edp2 mb2", own), (Some("-20%".to_owned()), Some(0.25), Some(3.2), false));
    // Of another plan there is the published speedup alone.
    assert_eq!(measured("pp2 dp4 tp1 ep4 edp1 mb2", own), (None, None, Some(2.0), true));
    // So is a ratio with another plan of the baseline.
    let of_other = measured("pp1 dp8 tp1 ep4 edp2 mb2", "pp2 dp4 tp1 ep4 edp1 mb2");
    assert_eq!(of_other, (Some("-20%".to_owned()), None, Some(3.2), true));
}

/// Three systems were measured: two over the baseline, and one over the other that the suite compares with.
#[test]
fn a_published_ratio_is_one_claim() {
    let suite = suite();
    let mut text = "figure,model,cluster,gpus,gate,system,plan,quantity,value,source\n".to_owned();
    for (system, time) in [("expert-only", 4), ("fastermoe", 2), ("smartmoe", 1)] {
        text += &format!("8,gpt-tiny,inky,8,no-drop,{system},pp1 dp8 tp1 ep8 edp1 mb2,median_step_s,{time},a test\n");
    }
    let mut summary = summary(&MockEngine::default(), 2);
    summary.hold_against(&Published::parse("test", &text).unwrap(), &[]);
    let claims = runs::summary::claims::claims(&summary, &suite.compare);
    let found: Vec<_> = claims.iter().map(|c| (c.system.as_str(), c.over.as_str(), c.published, c.simulated)).collect();
    let expected =
        [("fastermoe", "expert-only", 2.0), ("smartmoe", "expert-only", 4.0), ("smartmoe", "fastermoe", 2.0)];
    assert_eq!(found, expected.map(|(system, over, ratio)| (system, over, ratio, Some(ratio))));
}

#[test]
fn plans_unlike_those_that_were_calibrated_are_marked() {
    let mut summary = summary(&MockEngine::default(), 2);
    let why = |summary: &mut Summary, usable: f64| {
        summary.mark_extrapolations(&[("inky".to_owned(), Bytes(usable))].into());
        summary.row(CASE, "smartmoe").unwrap().extrapolated
    };
    // The peak is 2 GB.
    assert_eq!([why(&mut summary, 2.3e9), why(&mut summary, 2.2e9)], [None, Some("memory within 10% of the limit")]);
    let mut alone = suite();
    alone.cases.iter_mut().for_each(|case| {
        let plan = case.plans.get_mut("smartmoe").unwrap();
        (plan.ep, plan.expert_dp) = (1, plan.ep * plan.expert_dp);
    });
    let rows = MockEngine::default().rows(&alone);
    let mut summary = Summary::new(&RowsByRun::new(&rows), "expert-only", 2);
    assert_eq!(why(&mut summary, 1e12), Some("no expert parallelism"));
}
