use systems::CostModel;
use systems::iteration::run::Run;

use crate::support::{batch, cluster, job, model};

// The one line.
systems::zoo! { reversed::{Reversed}, template::{MySystem} }

/// The file in `added/` and the line above are all that a system takes: it plans, and runs under its own policy.
#[test]
fn a_system_is_one_file_and_one_line() {
    let batch = batch(2, 8, |_| vec![40, 30, 20, 10]);
    let job = job(model(2, 100, 64, 4), cluster(4, &[]), 4, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let [system, _] = *ALL else { panic!("two systems are listed") };
    assert_eq!((system.name(), system.title()), ("reversed", "Reversed"));
    let plan = system.plan(&job, &costs).unwrap();
    assert_eq!((plan.pp, plan.ep, plan.micro_batch), (1, 4, 1));
    let mut run = Run::new(&job, &costs, system, plan);
    assert_eq!([run.step(&batch).moved, run.step(&batch).moved, run.step(&batch).moved], [0, 8, 0]);
}

/// What `moebench new system` writes plans, swaps the busiest expert with the idlest when it is due, and is faster for it.
#[test]
fn the_template_of_a_system_runs() {
    let batch = batch(2, 8, |_| vec![60, 50, 1, 0, 10, 10, 10, 10]);
    let job = job(model(2, 100, 64, 8), cluster(4, &[]), 4, &batch);
    let costs = CostModel::new(&job.cluster, job.gpus);
    let system = ALL[1];
    assert_eq!((system.name(), system.title()), ("my-system", "MySystem"));
    let mut run = Run::new(&job, &costs, system, system.plan(&job, &costs).unwrap());
    let steps: Vec<_> = (0..7).map(|_| run.step(&batch)).collect();
    // One swap in each of two layers, in the sixth iteration: two experts each.
    assert_eq!(steps.iter().map(|step| step.moved).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 4, 0]);
    assert!(steps[6].timing.step < steps[0].timing.step);
}

#[test]
fn an_unknown_name_is_told_the_known_ones() {
    let error = systems::by_name("reversed").err().unwrap();
    assert_eq!(error.known.len(), systems::ALL.len());
    assert!(error.to_string().starts_with("unknown system `reversed`; known: expert-only, fastermoe, "), "{error}");
    assert!(systems::ALL.iter().all(|system| systems::by_name(system.name()).unwrap().about() == system.about()));
}
