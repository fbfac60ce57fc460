//! From a device's own compute segments to lines: what each operation of a training step takes over its units, for the shapes
//! that were run, and no formula between.

use std::collections::{BTreeMap, BTreeSet};

use runs::summary::statistics::median;
use systems::Placement;
use workloads::Seconds;
use workloads::measured::{Line, MeasuredOperation, Operation, Passes};
use workloads::model::{Moe, shapes};

use super::line;
use super::segments::{MeasuredRun, Segment, SegmentPlace};

/// Starts, units and times of an operation of one shape: forward, and backward.
type Points = [Vec<[f64; 3]>; 2];

/// The same of what was measured of it: alone, behind other work, and until it is issued.
type AllPoints = [Points; 3];
const ALONE: usize = 0;
const QUEUED: usize = 1;
const ISSUE: usize = 2;

/// The operations that the runs show, with where their times come from. Of ranks with a host each, what a host takes is the slowest's, and
/// so is what a device takes for an operation that its host begins, but for experts, whose rows differ: all ranks wait for that one in
/// the next exchange.
pub fn of_runs(runs: &[MeasuredRun], has_hosts: bool, source: &str) -> Vec<MeasuredOperation> {
    let measured = |((operation, shape), points): ((Operation, String), AllPoints)| {
        let [alone, queued, issue] = points.each_ref().map(|points| passes(operation, points));
        let Passes { forward, backward } = as_behind_work(operation, &points, queued).or(alone)?;
        // A host is followed only where both are known.
        let (queued, issue) = queued.zip(issue).unzip();
        Some(MeasuredOperation { operation, shape, forward, backward, queued, issue, source: source.to_owned() })
    };
    let is_whole = |of: &MeasuredOperation| of.backward.is_some() == of.operation.has_backward();
    points(runs, has_hosts).into_iter().filter_map(measured).filter(is_whole).collect()
}

fn points(runs: &[MeasuredRun], has_hosts: bool) -> BTreeMap<(Operation, String), AllPoints> {
    let mut all: BTreeMap<(Operation, String), AllPoints> = BTreeMap::new();
    let some_exchange = runs.iter().any(|run| run.plan.ep > 1);
    for run in runs {
        // Alone, a rank puts no rows into the order of an exchange, and those of its experts with its gate.
        let is_told = |place: &SegmentPlace| {
            run.plan.ep > 1 || !some_exchange || !matches!(place.segment, Segment::Gate | Segment::Permute)
        };
        let mut of_ranks: BTreeMap<SegmentPlace, Vec<SegmentPlace>> = BTreeMap::new();
        let queued = run.ahead.iter().flat_map(|ahead| ahead.queued.keys());
        for &place in run.measured.keys().chain(queued).filter(|place| is_told(place)).collect::<BTreeSet<_>>() {
            of_ranks.entry(SegmentPlace { rank: 0, ..place }).or_default().push(place);
        }
        let ahead = run.ahead.iter().flat_map(|ahead| [&ahead.queued, &ahead.issued]);
        for (of, times) in
            std::iter::once(&run.measured).chain(ahead).enumerate().filter(|(_, times)| !times.is_empty())
        {
            for (same, places) in &of_ranks {
                let time = |place: &SegmentPlace| times.get(place).copied().unwrap_or_default();
                let of_host = of == ISSUE || of == ALONE && same.segment != Segment::Experts;
                let slowest =
                    places.iter().max_by(|a, b| time(a).0.total_cmp(&time(b).0)).filter(|_| has_hosts && of_host);
                for place in slowest.map_or(&places[..], std::slice::from_ref) {
                    let Some((operation, shape, units, starts)) = units(run, place) else { continue };
                    let points = all.entry((operation, shape)).or_default();
                    points[of][usize::from(place.backward)].push([starts, units, time(place).0]);
                }
            }
        }
    }
    all
}

fn passes(operation: Operation, points: &Points) -> Option<Passes> {
    let [forward, backward] = points.each_ref().map(|points| match operation {
        Operation::Expert => line::fit_together(points),
        _ => line::fit(&points.iter().map(|&[_, units, time]| (units, time)).collect::<Vec<_>>()),
    });
    Some(Passes { forward: forward?, backward })
}

/// What an operation takes that was seen of fewer numbers of experts, or of units, than behind other work: its start is as there, and what is longer is
/// its units' or, of experts, their call's. None where that is not how they differ.
fn as_behind_work(operation: Operation, points: &AllPoints, queued: Option<Passes>) -> Option<Passes> {
    let of_experts = operation == Operation::Expert;
    let range = |points: &[[f64; 3]]| {
        let all = || points.iter().map(|point| point[usize::from(!of_experts)]);
        all().fold(0.0, f64::max) - all().fold(f64::INFINITY, f64::min)
    };
    let of_pass = |pass: usize, queued: Line| {
        let [alone, behind] = [ALONE, QUEUED].map(|of| &points[of][pass]);
        if alone.is_empty() || 2.0 * range(alone) >= range(behind) {
            return None;
        }
        let rest = alone.iter().map(|&[starts, units, time]| (units, (time - queued.start * starts).max(0.0)));
        let rest = line::fit(&rest.collect::<Vec<_>>())?;
        let [start, call] = if of_experts { [0.0, rest.start] } else { [rest.start, 0.0] };
        let line = Line { start: queued.start + start, unit: rest.unit, call, error: None };
        let apart = alone.iter().map(|&[starts, units, time]| (line.of_several(starts, units) / time - 1.0).abs());
        Some(Line { error: apart.reduce(f64::max), ..line })
    };
    let backward = queued?.backward.map(|queued| of_pass(1, queued));
    let backward = if operation.has_backward() { Some(backward??) } else { None };
    Some(Passes { forward: of_pass(0, queued?.forward)?, backward })
}

/// What the host does in an iteration beside its launches, at the median of runs with less, as much and more than the asked micro-batch.
pub fn host(runs: &[MeasuredRun]) -> Option<Seconds> {
    let times: Vec<f64> = runs
        .iter()
        .flat_map(|run| &run.measured)
        .filter(|(place, _)| place.segment == Segment::Host)
        .map(|(_, time)| time.0)
        .collect();
    median(&times).map(Seconds)
}

/// Operation, shape and units of a segment, and how many starts its time has. Each rank has one micro-batch.
fn units(run: &MeasuredRun, place: &SegmentPlace) -> Option<(Operation, String, f64, f64)> {
    let (model, plan) = (&run.job.model, &run.plan);
    let block = place.block.map(|number| &model.blocks[number]);
    let moe = || block.and_then(|block| block.moe());
    let samples = plan.micro_batch as f64;
    Some(match place.segment {
        Segment::Block => (Operation::Block, shapes::of_block(block?), samples, 1.0),
        Segment::Gate => {
            let moe = moe()?;
            (Operation::Gate, shapes::of_gate(moe), plan.tokens(moe) as f64, 1.0)
        }
        Segment::Permute => {
            let moe = moe()?;
            (Operation::Permute, shapes::of_gate(moe), plan.tokens(moe) as f64, 1.0)
        }
        Segment::Experts => {
            let (rows, started) = rows(run, moe()?, place)?;
            (Operation::Expert, shapes::of_expert(moe()?), rows, started)
        }
        Segment::Edge => (Operation::Edges, shapes::of_edges(model), samples, 1.0),
        Segment::Optimizer => (Operation::Optimizer, String::new(), parameters(run), 1.0),
        Segment::Host | Segment::Decide | Segment::Decision => return None,
    })
}

/// How far beyond the fastest product of a GPU its experts may seem to be: what was measured some seconds apart differs.
const BEYOND: f64 = 1.5;

/// Experts behind other work that take less than their products would, with `rate` FLOP a second: what was measured is not what it is called.
pub fn faster_than_products(runs: &[MeasuredRun], rate: f64) -> Option<String> {
    let of_place = |run: &MeasuredRun, place: &SegmentPlace, time: Seconds| {
        let moe = run.job.model.blocks[place.block.filter(|_| place.segment == Segment::Experts)?].moe()?;
        let (rows, _) = rows(run, moe, place)?;
        let products = if place.backward { 2.0 } else { 1.0 };
        let found = products * rows * moe.entry_flops().0 / time.0;
        let said = || {
            format!("{}, {}: experts at {found:.2e} FLOP/s, products at {rate:.2e}", run.name, shapes::of_expert(moe))
        };
        (found > BEYOND * rate).then(said)
    };
    let of_run =
        |run: &MeasuredRun| run.ahead.as_ref()?.queued.iter().find_map(|(place, &time)| of_place(run, place, time));
    runs.iter().find_map(of_run)
}

/// Rows of a rank's experts in an iteration, and how many of its experts have any.
fn rows(run: &MeasuredRun, moe: &Moe, place: &SegmentPlace) -> Option<(f64, f64)> {
    let number = place.block?;
    let layer = run.job.model.moe_blocks().iter().position(|&block| block == number)?;
    let (ep, job) = (run.plan.ep, &run.job);
    let placement = Placement::identity(moe.experts, ep);
    let mut loads = vec![0u64; moe.experts];
    // The ranks of its group: each has one micro-batch, of which the gate drops what the simulator says.
    let per_rank = run.batch.chunks() / job.gpus;
    let first = place.rank / ep * ep;
    for rank in first..first + ep {
        let mut counts = vec![0u32; moe.experts];
        for chunk in rank * per_rank..(rank + 1) * per_rank {
            counts.iter_mut().zip(run.batch.chunk(layer, chunk)).for_each(|(sum, &count)| *sum += count);
        }
        job.gate.admit(&mut counts, run.plan.tokens(moe), job.top_k(), &job.gate_statistics);
        loads.iter_mut().zip(counts).for_each(|(sum, count)| *sum += u64::from(count));
    }
    let own: Vec<u64> = (0..moe.experts)
        .filter(|&expert| placement.rank_of(expert) == place.rank % ep)
        .map(|expert| loads[expert])
        .collect();
    let started = own.iter().filter(|&&rows| rows > 0).count();
    (started > 0).then(|| (own.iter().sum::<u64>() as f64, started as f64))
}

/// Parameters that a rank's optimizer updates.
fn parameters(run: &MeasuredRun) -> f64 {
    systems::plan::memory::StageParameters::new(&run.job, &run.plan, 0).total()
}

#[cfg(test)]
mod tests {
    use super::super::segments::{Ahead, Times};
    use super::*;
    use systems::zoo::expert_only;
    use systems::{Job, Plan};
    use workloads::trace::BatchCounts;
    use workloads::{Cluster, Gate, Model};

    /// A run in which the first `idle` of each rank's four experts get no row.
    fn run_with(there: &Cluster, micro_batch: usize, idle: usize) -> MeasuredRun {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let (layers, experts) = (model.moe_layers().count(), model.moe_layers().next().unwrap().experts);
        let tokens = model.blocks[0].tokens * model.top_k;
        let plan = Plan { dp: 2, ep: 2, micro_batch, ..Plan::default() };
        let chunks = 2 * micro_batch;
        let of = |place: usize| if place % 4 < idle { 0 } else { tokens / experts + place % 3 };
        let counts = (0..layers * chunks * experts).map(|place| of(place) as u32).collect();
        let job = Job::new(model, there.clone(), 2, Gate::NoDrop, chunks).with_micro_batch(micro_batch);
        let batch = BatchCounts::new(layers, chunks, experts, counts);
        let system: &'static dyn systems::System = &expert_only::ExpertOnly;
        let (name, measured) = (String::new(), Times::new());
        let mut run = MeasuredRun { name, job, plan, system, batch, warmup: 0, measured, ahead: None };
        run.measured = run.predict(there);
        run
    }

    fn run_on(there: &Cluster, micro_batch: usize) -> MeasuredRun {
        run_with(there, micro_batch, 0)
    }

    /// What the cost model says of a run comes out the same once it takes the lines of that run instead of its formulas.
    #[test]
    fn lines_say_what_was_measured() {
        let mut there = Cluster::named("test", "inky").unwrap();
        let gate = of_runs(&[1, 2, 4].map(|micro_batch| run_on(&there, micro_batch)), false, "a test");
        let gate = gate.into_iter().find(|of| of.operation == Operation::Gate).unwrap();
        there.gpu.measured = vec![MeasuredOperation { operation: Operation::Permute, backward: None, ..gate }];
        let runs = [1, 2, 4].map(|micro_batch| run_on(&there, micro_batch));
        let mut measured = there.clone();
        measured.gpu.measured = of_runs(&runs, false, "a test");
        // Wrong everywhere, unless the lines are taken.
        measured.gpu.gemm_rate.value /= 10.0;
        measured.gpu.memory_bandwidth.value /= 10.0;
        measured.gpu.scatter_bandwidth.value /= 10.0;
        let operations: Vec<Operation> = measured.gpu.measured.iter().map(|of| of.operation).collect();
        use Operation::{Block, Edges, Expert, Gate, Optimizer, Permute};
        for operation in [Block, Gate, Permute, Expert, Edges, Optimizer] {
            assert!(operations.contains(&operation), "{operations:?}");
        }
        for run in &runs {
            let predicted = run.predict(&measured);
            assert_eq!(predicted.len(), run.measured.len());
            for (place, time) in &run.measured {
                let found = predicted[place];
                assert!((found.0 / time.0 - 1.0).abs() < 0.02, "{place:?}: {} for {}", found.0, time.0);
            }
        }
        assert!((host(&runs).unwrap().0 / there.host.iteration.value - 1.0).abs() < 1e-9);
    }

    /// Segments that take a device half as long behind other work, and a host a quarter: so says each operation's line; a device that
    /// issues nothing has hosts without work.
    #[test]
    fn lines_say_what_hosts_take() {
        let there = Cluster::named("test", "inky").unwrap();
        let share = |times: &Times, share: f64| times.iter().map(|(&place, &time)| (place, time * share)).collect();
        for issued in [0.25, 0.0] {
            let runs = [1, 2, 4].map(|micro_batch| {
                let run = run_on(&there, micro_batch);
                let (queued, issued) = (share(&run.measured, 0.5), share(&run.measured, issued));
                MeasuredRun { ahead: Some(Ahead { queued, issued }), ..run }
            });
            for of in of_runs(&runs, false, "a test") {
                for (passes, share) in [(of.queued.unwrap(), 0.5), (of.issue.unwrap(), issued)] {
                    let lines = [(passes.forward, of.forward)].into_iter().chain(passes.backward.zip(of.backward));
                    for (found, alone) in lines {
                        assert!((found.start - alone.start * share).abs() <= 1e-9 * alone.start, "{of:?}");
                        assert!((found.unit - alone.unit * share).abs() <= 1e-9 * alone.unit, "{of:?}");
                    }
                }
            }
        }
    }

    /// Half of the experts start in a fourth run, without an exchange that hosts would wait around: what is longer on an idle GPU is the call's.
    #[test]
    fn what_hosts_wait_around_is_told_without_runs_that_have_no_exchange() {
        let there = Cluster::named("test", "inky").unwrap();
        let twice = |run: MeasuredRun| {
            let measured = run.measured.iter().map(|(&place, &time)| (place, time + Seconds(1e-3))).collect();
            MeasuredRun {
                ahead: Some(Ahead { queued: run.measured.clone(), issued: run.measured.clone() }),
                measured,
                ..run
            }
        };
        let mut runs: Vec<MeasuredRun> = [1, 2, 4].map(|micro_batch| twice(run_on(&there, micro_batch))).into();
        runs.push(MeasuredRun { measured: Times::new(), ..twice(run_with(&there, 2, 2)) });
        let found = of_runs(&runs, true, "a test");
        let expert = found.iter().find(|of| of.operation == Operation::Expert).unwrap();
        let queued = expert.queued.unwrap();
        for (alone, queued) in [(expert.forward, queued.forward), (expert.backward.unwrap(), queued.backward.unwrap())]
        {
            assert!((alone.start / queued.start - 1.0).abs() < 1e-9 && queued.call < 1e-9, "{expert:?}");
            assert!((alone.call - 1e-3).abs() < 1e-6 && (alone.unit / queued.unit - 1.0).abs() < 1e-3, "{expert:?}");
        }
        let optimizer = found.iter().find(|of| of.operation == Operation::Optimizer).unwrap();
        let queued = optimizer.queued.unwrap().forward;
        assert!(
            (optimizer.forward.start - queued.start).abs() < 1e-9 && optimizer.forward.unit > queued.unit,
            "{optimizer:?}"
        );
        assert!(found.iter().all(|of| of.operation == Operation::Expert || of.forward.call == 0.0));
    }

    /// A rank alone takes nothing to put rows into order, and more in its gate: lines of ranks that exchange rows do not know of it.
    #[test]
    fn gates_are_those_of_ranks_that_exchange_rows() {
        let there = Cluster::named("test", "inky").unwrap();
        let mut runs: Vec<MeasuredRun> = [1, 2, 4].map(|micro_batch| run_on(&there, micro_batch)).into();
        let gate = |runs: &[MeasuredRun]| {
            let found = of_runs(runs, true, "a test");
            found.into_iter().find(|of| of.operation == Operation::Gate).unwrap().forward
        };
        let before = gate(&runs);
        let mut alone = run_on(&there, 2);
        alone.plan = Plan { ep: 1, expert_dp: 2, ..alone.plan };
        alone.measured.values_mut().for_each(|time| *time = *time * 3.0);
        runs.push(alone);
        assert_eq!(gate(&runs), before);
        assert!(gate(&runs[3..]).of(4.0) > 2.0 * before.of(4.0), "where all are alone, they tell");
    }

    /// What issuing experts takes the host is no time of their products.
    #[test]
    fn experts_are_no_faster_than_products() {
        let there = Cluster::named("test", "inky").unwrap();
        let rate = there.gpu.gemm_rate.value;
        let run = |share: f64| {
            let run = run_on(&there, 4);
            let queued = run.measured.iter().map(|(&place, &time)| (place, time * share)).collect();
            MeasuredRun { ahead: Some(Ahead { queued, issued: Times::new() }), ..run }
        };
        assert_eq!(faster_than_products(&[run_on(&there, 4), run(1.0)], rate), None);
        let found = faster_than_products(&[run(1.0), run(1e-3)], rate).unwrap();
        assert!(found.contains("experts at ") && found.contains("512 wide"), "{found}");
    }

    /// Ranks start two, three or four experts in a call, in whatever order the runs stand.
    #[test]
    fn what_experts_take_is_told_from_what_their_call_does() {
        let mut there = Cluster::named("test", "inky").unwrap();
        let all_start = [1, 2, 4].map(|micro_batch| run_on(&there, micro_batch));
        there.gpu.measured = of_runs(&all_start, false, "a test");
        let expert = |of: &[MeasuredOperation]| of.iter().find(|of| of.operation == Operation::Expert).unwrap().clone();
        let of_experts = there.gpu.measured.iter_mut().find(|of| of.operation == Operation::Expert).unwrap();
        for line in [Some(&mut of_experts.forward), of_experts.backward.as_mut()].into_iter().flatten() {
            line.call = 3.0 * line.start;
        }
        let truth = expert(&there.gpu.measured);
        let mut runs = vec![run_with(&there, 1, 2), run_on(&there, 2), run_with(&there, 4, 1)];
        for _ in 0..runs.len() {
            runs.rotate_left(1);
            let found = expert(&of_runs(&runs, false, "a test"));
            for (found, truth) in [(found.forward, truth.forward), (found.backward.unwrap(), truth.backward.unwrap())] {
                assert!((found.start / truth.start - 1.0).abs() < 1e-6, "{found:?}: {truth:?}");
                assert!((found.unit / truth.unit - 1.0).abs() < 1e-6, "{found:?}: {truth:?}");
                assert!((found.call / truth.call - 1.0).abs() < 1e-6, "{found:?}: {truth:?}");
            }
        }
    }

    /// Where ranks have hosts of their own, the slower one is what all wait for: in what its device takes when it begins operations, experts
    /// apart, and in what it takes to issue them.
    #[test]
    fn lines_of_hosts_are_the_slowest_ranks() {
        let there = Cluster::named("test", "inky").unwrap();
        let share = |of: &Times, slower: f64| {
            let share = |place: &SegmentPlace| if place.rank == 0 { 1.0 } else { slower };
            of.iter().map(|(&place, &time)| (place, time * share(&place))).collect::<Times>()
        };
        let of = |slower: f64, has_hosts| {
            let runs = [1, 2, 4].map(|micro_batch| {
                let run = run_on(&there, micro_batch);
                let (queued, issued) = (share(&run.measured, slower), share(&run.measured, slower));
                MeasuredRun { measured: share(&run.measured, slower), ahead: Some(Ahead { queued, issued }), ..run }
            });
            of_runs(&runs, has_hosts, "a test")
        };
        for (found, slow) in of(1.5, true).iter().zip(&of(1.0, false)) {
            let ratio = |found: &Passes, of: &Passes| found.forward.of(4.0) / of.forward.of(4.0);
            let alone = found.forward.of(4.0) / slow.forward.of(4.0);
            let mean = ratio(found.queued.as_ref().unwrap(), slow.queued.as_ref().unwrap());
            let expected = if found.operation == Operation::Expert { mean } else { 1.5 };
            assert!((alone - expected).abs() < 1e-6, "{:?}: {alone}", found.operation);
            assert!(mean > 1.0 && mean < 1.4, "cards are as they are on average: {mean}");
            let issued = ratio(found.issue.as_ref().unwrap(), slow.issue.as_ref().unwrap());
            assert!((issued - 1.5).abs() < 0.1, "{:?}: {issued}", found.operation);
        }
    }

    /// The second rank takes a fifth longer than the first: an operation's line is between them, its error how far they are from it.
    #[test]
    fn lines_state_how_far_ranks_are_apart() {
        let there = Cluster::named("test", "inky").unwrap();
        let runs = [1, 2, 4].map(|micro_batch| {
            let run = run_on(&there, micro_batch);
            let share = |place: &SegmentPlace| if place.rank == 0 { 0.9 } else { 1.1 };
            let measured = run.measured.iter().map(|(place, &time)| (*place, time * share(place))).collect();
            MeasuredRun { measured, ..run }
        });
        let same = [1, 2, 4].map(|micro_batch| run_on(&there, micro_batch));
        for (apart, same) in of_runs(&runs, false, "a test").iter().zip(&of_runs(&same, false, "a test")) {
            assert!((apart.forward.of(4.0) / same.forward.of(4.0) - 1.0).abs() < 0.02, "{apart:?} for {same:?}");
            assert!((apart.forward.error.unwrap() - 0.1).abs() < 0.03, "{apart:?}");
        }
    }
}
