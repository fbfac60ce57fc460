//! What a host that issues operations does to an iteration: nothing where it takes no time, little where the GPU is busy longer, all of it
//! where it is not; and waits never help.

use workloads::cluster::{Constant, Host};
use workloads::measured::{Line, MeasuredOperation, Operation, Passes};
use workloads::model::shapes;
use workloads::trace::BatchCounts;
use workloads::{Cluster, Gate, Model, Seconds};

use crate::iteration::run::{Iteration, Run};
use crate::iteration::timeline::Span;
use crate::iteration::{Charge, Coverage, Evaluation, Timing};
use crate::price::ledger::Phase;
use crate::program::{Direction, LayerProgram, Op, Task};
use crate::{CostModel, Job, Placement, Plan, Policy, RoutingCounts, System};

fn passes(forward: Line) -> Passes {
    let backward = Line { start: 2.0 * forward.start, unit: 2.0 * forward.unit, ..forward };
    Passes { forward, backward: Some(backward) }
}

fn line(start: f64, unit: f64) -> Line {
    Line { start, unit, ..Line::default() }
}

/// Every operation of the model takes the GPU as much as that a unit and, if that is said, the host as much to issue, and both one after the
/// other from an idle GPU on; without that, the same was measured on an idle GPU.
fn with_operations(cluster: &mut Cluster, model: &Model, unit: f64, issue: Option<f64>) {
    let mut shapes = vec![(Operation::Edges, shapes::of_edges(model)), (Operation::Optimizer, String::new())];
    for block in &model.blocks {
        shapes.push((Operation::Block, shapes::of_block(block)));
        if let Some(moe) = block.moe() {
            let [gate, expert] = [shapes::of_gate(moe), shapes::of_expert(moe)];
            shapes.extend([(Operation::Gate, gate.clone()), (Operation::Permute, gate), (Operation::Expert, expert)]);
        }
    }
    shapes.sort();
    shapes.dedup();
    let of_shape = |(operation, shape): (Operation, String)| {
        // A unit is a sample, a token, a row or a parameter.
        let unit = match operation {
            Operation::Block | Operation::Edges => unit,
            Operation::Gate | Operation::Permute | Operation::Expert => 1e-3 * unit,
            Operation::Optimizer => 1e-9 * unit,
        };
        let only = |passes: Passes| Passes { backward: passes.backward.filter(|_| operation.has_backward()), ..passes };
        let gpu = only(passes(line(0.1 * unit, unit)));
        let alone = only(passes(line(0.1 * unit + issue.unwrap_or(0.0), unit)));
        MeasuredOperation {
            operation,
            shape,
            forward: alone.forward,
            backward: alone.backward,
            queued: issue.map(|_| gpu),
            issue: issue.map(|issue| only(passes(line(issue, 0.0)))),
            source: "a test".to_owned(),
        }
    };
    cluster.gpu.measured = shapes.into_iter().map(of_shape).collect();
}

/// The tiny GPT on eight ranks of inky, with skewed loads.
fn job(unit: f64, issue: Option<f64>) -> (Job, BatchCounts) {
    let model = Model::named("test", "gpt-tiny").unwrap();
    let (layers, experts, chunks) = (model.moe_layers().count(), model.moe_layers().next().unwrap().experts, 16);
    let entries = model.moe_layers().next().unwrap().tokens * model.top_k / experts;
    // Twice as many for the first half of the experts as for the second, and a few more here and there.
    let of = |place: usize| entries * if place % experts < experts / 2 { 4 } else { 2 } / 3 + place % 3;
    let counts = (0..layers * chunks * experts).map(|place| of(place) as u32).collect();
    let batch = BatchCounts::new(layers, chunks, experts, counts);
    let mut cluster = Cluster::named("test", "inky").unwrap();
    with_operations(&mut cluster, &model, unit, issue);
    let job = Job::new(model, cluster, 8, Gate::NoDrop, chunks).with_micro_batch(1);
    (job.with_profile(vec![batch.clone()]), batch)
}

/// Two iterations of a system, and what happens in a third.
fn iterations(job: &Job, system: &dyn System, plan: Plan, batch: &BatchCounts) -> ([Iteration; 2], Vec<Span>) {
    let costs = CostModel::new(&job.cluster, job.gpus);
    let mut run = Run::new(job, &costs, system, plan);
    ([run.step(batch), run.step(batch)], run.observe(batch).1)
}

#[test]
fn hosts_that_take_no_time_change_nothing() {
    let ((followed, batch), (plain, _)) = (job(1e-3, Some(0.0)), job(1e-3, None));
    for &system in crate::ALL {
        let Ok(plan) = system.plan(&plain, &CostModel::new(&plain.cluster, plain.gpus)) else { continue };
        let same = iterations(&followed, system, plan, &batch) == iterations(&plain, system, plan, &batch);
        assert!(same, "{}", system.name());
    }
}

/// Without hosts, operations take what they took behind other work.
#[test]
fn as_emulated_hosts_run_ahead() {
    let (job, _) = job(1e-3, Some(1e-4));
    let costs = CostModel::new(&job.cluster, job.gpus);
    let block = |costs: &CostModel| costs.measured_block(&job.model.blocks[0], 1.0, Direction::Forward);
    assert!(costs.follows_hosts() && !costs.as_emulated().follows_hosts());
    assert_eq!(block(&costs), Some([1e-4, 1e-3].map(Seconds)));
    assert_eq!(block(&costs.as_emulated()), block(&costs));
}

/// Plain expert parallelism whose hosts wait for counts alone, or also behind every task.
struct Waits(bool);

impl Policy for Waits {
    fn program(&self, _: usize, _: &RoutingCounts, _: &Placement) -> LayerProgram {
        let program = LayerProgram::grouped();
        let [forward, backward] = [&program.forward, &program.backward].map(|tasks| match self.0 {
            true => with_waits(tasks),
            false => tasks.clone(),
        });
        LayerProgram { forward, backward, ..program }
    }
}

fn with_waits(tasks: &[Task]) -> Vec<Task> {
    let each = |(index, task): (usize, &Task)| {
        let after = task.after.map(|other| 2 * other);
        [Task { after, ..*task }, Task { op: Op::Sync, after: Some(2 * index) }]
    };
    tasks.iter().enumerate().flat_map(each).collect()
}

fn run(unit: f64, issue: Option<f64>, waits: bool) -> Timing {
    run_with(unit, issue, waits, |_| ())
}

fn run_with(unit: f64, issue: Option<f64>, waits: bool, change: impl Fn(&mut Host)) -> Timing {
    run_under(&Waits(waits), unit, issue, change)
}

fn run_under(policy: &dyn Policy, unit: f64, issue: Option<f64>, change: impl Fn(&mut Host)) -> Timing {
    let (mut job, batch) = job(unit, issue);
    // Waits by themselves cost nothing here.
    job.cluster.host.synchronisation.value = 0.0;
    change(&mut job.cluster.host);
    let plan = Plan { dp: 8, ep: 8, ..Plan::default() };
    plan.check(&job).unwrap();
    Evaluation {
        job: &job,
        plan: &plan,
        costs: &CostModel::new(&job.cluster, job.gpus),
        policy,
        placements: &plan.experts_in_order(&job),
        batch: &batch,
        charges: &[Charge::default()],
        coverage: Coverage::Full,
    }
    .run()
}

/// Blocks of 20 ms: 0.1 ms to issue each operation shows in the first alone, which finds the GPU idle.
#[test]
fn a_busy_gpu_hides_its_host() {
    let (free, wide) = (run(2e-2, Some(0.0), false), run(2e-2, Some(1e-4), false));
    assert!(wide.step >= free.step && (wide.step.0 / free.step.0 - 1.0) < 1e-3, "{} for {}", wide.step.0, free.step.0);
    let [dense, alone] = [&free, &wide].map(|timing| timing.phases[0].of(Phase::Dense));
    assert!((alone.0 - dense.0 - 1e-4).abs() < 1e-9, "{} for {}", alone.0, dense.0);
}

/// Operations of microseconds that take a host a millisecond to issue: forward, where it waits for counts, and backward, where it
/// waits for nothing, an iteration takes what the host takes at least.
#[test]
fn an_idle_gpu_takes_its_hosts_time() {
    let (free, narrow, waiting) =
        (run(1e-6, Some(0.0), false), run(1e-6, Some(1e-3), false), run(1e-6, Some(1e-3), true));
    let (job, batch) = job(1e-6, None);
    let blocks = 2.0 * 3e-3 * job.model.blocks.len() as f64;
    // Rows are put into order forward alone.
    let gates_and_experts = (2.0 * 3e-3 + 1e-3) * job.model.moe_layers().count() as f64;
    let micro_batches = (batch.chunks() / job.gpus) as f64;
    let (edges, optimizer) = (3e-3, 1e-3);
    assert_eq!(job.model.moe_layers().next().unwrap().experts, 8, "one expert a rank");
    let hosts = micro_batches * (blocks / 2.0 + gates_and_experts + edges) + optimizer;
    assert!(narrow.step.0 >= hosts && narrow.step.0 < hosts + free.step.0, "{} for {hosts}", narrow.step.0);
    assert!(waiting.step >= narrow.step && waiting.step < narrow.step + free.step);
}

/// Exchanges that take a host 5 ms in all, an idle GPU nothing to speak of: forward the counts, dispatch and combine, backward these two. The
/// host is ahead of a busy GPU but for what it issues behind the counts, and what it does not state costs nothing.
#[test]
fn exchanges_take_their_hosts_time() {
    let constant = |value| Some(Constant { value, uncertainty: None, peak: None, source: "a test".to_owned() });
    let state = |host: &mut Host| {
        // Seven peers, to and from.
        (host.exchange, host.part, host.arrival) = (constant(2e-3), constant(1e-4), constant(1.6e-3));
        // To ask for counts, and to read them.
        (host.counts, host.reading) = (constant(2e-3), constant(3e-3));
    };
    let (job, batch) = job(1e-6, None);
    let layers = (job.model.moe_layers().count() * batch.chunks() / job.gpus) as f64;
    let run = |unit, change: &dyn Fn(&mut Host)| run_with(unit, Some(1e-6), false, change).step.0;
    let (before, after) = (run(1e-6, &|_| ()), run(1e-6, &state));
    let hosts = layers * 5.0 * 5e-3;
    assert!(after > hosts && after < hosts + before, "{after} for {hosts} and {before}");
    let (before, after) = (run(2e-2, &|_| ()), run(2e-2, &state));
    let behind_counts = layers * (5e-3 + 5e-3);
    assert!(after > before && after < before + behind_counts, "{after} for {before}");
    let none =
        |host: &mut Host| (host.exchange, host.part, host.arrival, host.counts, host.reading) = Default::default();
    assert_eq!(run(2e-2, &none), before);
}

/// A host that has read the counts waits for nothing besides: a wait of a second shows where it is not known what reading takes.
#[test]
fn counts_that_are_read_are_waited_for_once() {
    let constant = |value| Constant { value, uncertainty: None, peak: None, source: "a test".to_owned() };
    let run = |reading: Option<f64>| {
        let change = |host: &mut Host| (host.synchronisation.value, host.reading) = (1.0, reading.map(constant));
        run_with(1e-6, Some(1e-6), false, change).step.0
    };
    let (job, batch) = job(1e-6, None);
    let layers = (job.model.moe_layers().count() * batch.chunks() / job.gpus) as f64;
    assert!(run(None) > layers && run(Some(1e-6)) < 1.0);
    let later = run(Some(2e-2)) - run(Some(1e-2));
    assert!((later / (layers * 1e-2) - 1.0).abs() < 1e-6, "{later} over {layers} layers");
}

/// A program without a task that puts rows into order does so with its gate.
#[test]
fn rows_are_put_into_order_once() {
    struct Without;
    impl Policy for Without {
        fn program(&self, _: usize, _: &RoutingCounts, _: &Placement) -> LayerProgram {
            let mut program = LayerProgram::grouped();
            let at = program.forward.iter().position(|task| task.op == Op::Permute).unwrap();
            program.forward.remove(at);
            for task in &mut program.forward {
                task.after = task.after.map(|other| if other >= at { other - 1 } else { other });
            }
            program
        }
    }
    for issue in [None, Some(0.0)] {
        let gates = [&Without as &dyn Policy, &Waits(false)]
            .map(|policy| run_under(policy, 1e-3, issue, |_| ()).phases[0].of(Phase::Gate).0);
        assert!((gates[0] / gates[1] - 1.0).abs() < 1e-9 && gates[0] > 0.0, "{gates:?}");
    }
}

/// More to issue, and more waits, never make an iteration shorter.
#[test]
fn neither_work_of_hosts_nor_waits_help() {
    for unit in [1e-5, 1e-4, 1e-3] {
        let mut before = Seconds::ZERO;
        for issue in [0.0, 1e-5, 1e-4, 3e-4, 1e-3] {
            let [free, waiting] = [false, true].map(|waits| run(unit, Some(issue), waits));
            for timing in [&free, &waiting] {
                assert!((timing.phases[0].total() - timing.step).0.abs() < 1e-9 * timing.step.0);
            }
            assert!(waiting.step.0 >= free.step.0 * (1.0 - 1e-12) && free.step >= before, "{unit} {issue}");
            before = free.step;
        }
    }
}
