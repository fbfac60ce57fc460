use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use harness::engines::simulate::Simulator;
use harness::engines::{Engine, Extent};
use harness::studies::end_to_end;
use harness::{runs::prepare, summary::statistics, traces};
use workloads::published::Quantity;
use workloads::{Case, Published, Suite};

/// Where the data of SmartMoE's artifact is, which is no part of this repository.
fn artifact() -> Option<PathBuf> {
    let shared = std::env::var_os("MOEBENCH_SHARED")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    let folder = shared.join("data/smartmoe-ae");
    folder.join("end_to_end.csv").exists().then_some(folder)
}

/// The artifact's name of a system.
fn published_name(system: &str) -> &str {
    match system {
        "expert-only" => "fastmoe",
        "fastermoe-unpipelined" => "fastermoe",
        other => other,
    }
}

/// Medians of `end_to_end.csv`, s, by GPUs, gate and system.
fn measured(csv: &str) -> BTreeMap<(usize, String, String), f64> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|field| *field == name).unwrap();
    let [gpus, system, gate, factor, time] = ["gpus", "system", "gate", "capacity_factor", "elapsed_ms"].map(column);
    let mut steps: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let gate = format!("{} {}", fields[gate], fields[factor]).trim_end().to_owned();
        let key = (fields[gpus].parse().unwrap(), gate, fields[system].to_owned());
        steps.entry(key).or_default().push(fields[time].parse::<f64>().unwrap() / 1e3);
    }
    steps.into_iter().map(|(key, steps)| (key, statistics::median(&steps).unwrap().value)).collect()
}

/// Simulated medians of a case, s, in the order of the suite's systems.
fn predicted(prepared: &prepare::PreparedCase, iterations: usize, warmup: usize) -> Vec<f64> {
    let extent = Extent { iterations, timelines: false };
    let median = |run: &prepare::PreparedRun| {
        let outcome = Simulator.run(run, run.plan().unwrap().plan, extent, &|| ()).unwrap();
        let steps: Vec<f64> = outcome.iterations[warmup..].iter().map(|iteration| iteration.timing.step.0).collect();
        statistics::median(&steps).unwrap().value
    };
    prepared.runs.iter().map(median).collect()
}

/// Every published time of whole iterations is what the artifact's file says.
#[test]
fn published_numbers_are_those_of_the_artifact() {
    let Some(folder) = artifact() else {
        eprintln!("skipped: no data/smartmoe-ae in MOEBENCH_SHARED or ../shared");
        return;
    };
    let read = end_to_end::read(&folder.join("end_to_end.csv"), &|name| prepare::cluster("test", name)).unwrap();
    let name = |system: &str| match system {
        "smartmoe-offline" => "smartmoe".to_owned(),
        "deepspeed-artifact" => "deepspeed".to_owned(),
        other => published_name(other).to_owned(),
    };
    let mut seen = 0;
    for number in Published::all().unwrap().rows {
        let gate = number.run.gate.to_string().replace(" balanced", "");
        let found = read.iter().find(|c| {
            (c.gpus, &c.gate, &c.published) == (number.run.gpus, &gate, &name(&number.run.system))
                && c.plan.to_string() == number.plan
        });
        let sum = |c: &end_to_end::Configuration| c.times.iter().filter_map(|(_, time)| *time).sum::<f64>();
        let expected = match (number.quantity, found) {
            (Quantity::MedianStep, Some(found)) => found.measured().unwrap(),
            (Quantity::Sum, Some(found)) => sum(found),
            (Quantity::SpeedupBySums, None) => continue,
            _ => panic!("{number:?} is not in the file"),
        };
        assert!((number.value / expected - 1.0).abs() < 1e-4, "{number:?}: {expected}");
        seen += 1;
    }
    assert_eq!(seen, 88);
}

fn label(case: &Case) -> String {
    format!("{} GPUs, {}", case.gpus, case.gate)
}

/// The eight cases of inky with the plans that ran there, on the trace that was published with them: the simulator's
/// error, and whether it ranks SmartMoE and FasterMoE as the measurements do.
#[test]
fn predictions_agree_with_the_published_measurements() {
    let Some(folder) = artifact() else {
        eprintln!("skipped: no data/smartmoe-ae in MOEBENCH_SHARED or ../shared");
        return;
    };
    let measured = measured(&fs::read_to_string(folder.join("end_to_end.csv")).unwrap());
    let trace = traces::load(Some(&folder.join("moe_trace.tar.xz"))).unwrap();
    let mut suite = Suite::named("test", "paper-gpt-authors").unwrap();
    suite.cases.retain(|case| case.cluster == "inky");
    assert_eq!(suite.cases.len(), 8);
    // Every fifth of the 200 measured iterations.
    suite.trace.stride = 5;
    let cases = prepare::cases("test", &suite, &trace).unwrap();

    eprintln!("{:<26} {:<22} {:>9} {:>9} {:>7}", "case", "system", "measured", "simulated", "error");
    let mut errors = Vec::new();
    for prepared in &cases {
        let predicted = predicted(prepared, 40, 2);
        let measured: Vec<f64> = suite
            .systems
            .iter()
            .map(|system| {
                let case = &prepared.case;
                measured[&(case.gpus, case.gate.to_string(), published_name(system).to_owned())]
            })
            .collect();
        for ((system, &predicted), &measured) in suite.systems.iter().zip(&predicted).zip(&measured) {
            let error = predicted / measured - 1.0;
            let case = label(&prepared.case);
            eprintln!("{case:<26} {system:<22} {measured:>7.3} s {predicted:>7.3} s {:>6.1}%", 100.0 * error);
            errors.push(error.abs());
        }
        let [_, faster, smart] = measured[..] else { panic!("three systems") };
        if faster > 1.05 * smart {
            assert!(predicted[1] > predicted[2], "{}: SmartMoE is measured faster", label(&prepared.case));
        }
    }
    let median = statistics::median(&errors).unwrap().value;
    eprintln!("median error {:.1}% of {} configurations", 100.0 * median, errors.len());
    assert_eq!(errors.len(), 24);
    assert!(median < 0.15, "median error {median}");
}
