//! Trains with ranks as threads of this process, or with this process as one rank: starts them, passes on their reports, and
//! says why they stopped.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use systems::iteration::run::Iteration;
use systems::iteration::{Peak, Timing};
use systems::price::ledger::{Ledger, Phase};
use tch::{Device, Tensor};
use workloads::{Bytes, Seconds};

use crate::checkpoint::error::CheckpointError;
use crate::checkpoint::{self, Checkpoints};
use crate::clock::timer::{ALONE, Measures, Timer};
use crate::comm::Communicator;
use crate::comm::noted::Noted;
use crate::comm::threads::{self, Failure};
use crate::cuda::Gpu;
use crate::error::TrainError;
use crate::host::to_host;
use crate::kernels;
use crate::processes::Processes;
use crate::rank::Rank;
use crate::rank::report::Report;
use crate::setup::Setup;

/// How ranks run.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    /// Where the tensors of all ranks are.
    pub device: Device,
    /// Where ranks take turns on the device under a virtual clock: what it measures of their segments.
    pub virtual_clock: Option<Measures>,
    /// How long a rank waits for another.
    pub timeout: Duration,
}

/// Takes the number of an iteration (from 0) and the reports of all ranks.
pub type Sink<'a> = dyn FnMut(usize, Vec<Report>) + Send + 'a;

/// Trains with every rank in a thread of its own; returns what `last` makes of each rank at the end.
///
/// # Errors
/// Why training stopped: the failure that caused those of other ranks.
pub fn run<T: Send>(
    setup: &Setup,
    threads: Threads,
    sink: &mut Sink,
    last: impl Fn(&Rank) -> T + Sync,
) -> Result<Vec<T>, TrainError> {
    let turns = threads.virtual_clock.map(|_| Arc::new(Mutex::new(())));
    let size = setup.job.gpus;
    if threads.virtual_clock.is_some() {
        keep_freed_memory();
    }
    let sink = Mutex::new(sink);
    // On a CPU what counts is the time of a rank's own thread.
    let shared = turns.clone().filter(|_| threads.device.is_cuda());
    let ends = threads::run_in_turns(size, threads.timeout, shared, |member| {
        // Ranks are the parallelism; a rank's own kernels run on its thread.
        tch::set_num_threads(1);
        let measures = threads.virtual_clock.unwrap_or(ALONE);
        let timer = Timer::new(member.rank(), turns.clone()).measuring(measures).on(threads.device);
        train(setup, member, Place { device: threads.device, alone: size == 1, timer }, &sink, &last)
    });
    let (mut results, mut failures) = (Vec::with_capacity(size), Vec::new());
    for (rank, end) in ends.into_iter().enumerate() {
        match end {
            Ok(result) => results.push(result),
            Err(failure) => failures.push((rank, error_of(rank, failure))),
        }
    }
    cause(failures).map_or(Ok(results), Err)
}

/// Trains with this process as one rank, by a wall clock, or by a virtual one that measures so much of its segments; rank 0 feeds the sink.
/// Returns what `last` makes of the rank at the end.
///
/// # Errors
/// Why this rank stopped.
pub fn run_process<T>(
    setup: &Setup,
    processes: &Processes,
    virtual_clock: Option<Measures>,
    sink: &mut Sink,
    last: impl Fn(&Rank) -> T,
) -> Result<T, TrainError> {
    tch::set_num_threads(1);
    let world = processes.world()?;
    let (device, sink) = (processes.device(), Mutex::new(sink));
    let ended = threads::guarded(&*world, |member| {
        let turns = virtual_clock.map(|_| Arc::default());
        let timer = Timer::new(processes.rank(), turns).measuring(virtual_clock.unwrap_or(ALONE)).on(device);
        let timer = timer.meeting_on(device);
        train(setup, member, Place { device, alone: true, timer }, &sink, &last)
    });
    ended.map_err(|failure| error_of(processes.rank(), failure))
}

fn error_of(rank: usize, failure: Failure<TrainError>) -> TrainError {
    match failure {
        Failure::Error(error) => error,
        Failure::Panic(message) => TrainError::Panic { rank, message },
    }
}

/// Tells the C library's allocator to keep freed memory for the rest of the process. Otherwise it is chance whether the kernel
/// must provide and clear the pages of a segment's tensors, which takes half of a small segment's time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_freed_memory() {
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    // M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_THRESHOLD of malloc.h, the last at its largest value, 32 MiB.
    for (parameter, value) in [(-1, 1 << 30), (-2, 1 << 24), (-3, 1 << 25)] {
        // SAFETY: mallopt takes any two numbers and may be called at any time.
        let _ = unsafe { mallopt(parameter, value) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_freed_memory() {}

/// Why a run ended, from the errors of all ranks that failed. The death of a rank is reported as another one noticed it,
/// which also names the collective; what a rank refuses to begin with, as it says. Among timeouts, the one whose missing rank did not time out itself is reported.
fn cause(mut failures: Vec<(usize, TrainError)>) -> Option<TrainError> {
    let late: Vec<usize> =
        failures.iter().filter(|(_, error)| !error.late_peers().is_empty()).map(|(rank, _)| *rank).collect();
    let holds_up = |error: &TrainError| error.late_peers().iter().any(|rank| !late.contains(rank));
    let is_own = |(_, error): &(usize, TrainError)| error.dead_peer().is_none();
    let first = failures.iter().position(|failure| is_own(failure) && holds_up(&failure.1));
    let first = first.or_else(|| failures.iter().position(is_own)).unwrap_or(0);
    let noticed = failures.get(first).and_then(|(rank, error)| match error {
        TrainError::Comm(_) | TrainError::Setup(_) => None,
        _ => failures.iter().position(|(_, other)| other.dead_peer() == Some(*rank)),
    });
    let chosen = noticed.unwrap_or(first);
    (chosen < failures.len()).then(|| failures.swap_remove(chosen).1)
}

/// Where a rank computes.
pub(crate) struct Place {
    pub(crate) device: Device,
    /// Whether no other rank does.
    pub(crate) alone: bool,
    pub(crate) timer: Timer,
}

/// Trains one rank of the world of `member` from its start to its end. Rank 0 feeds the sink.
pub(crate) fn train<T>(
    setup: &Setup,
    member: &dyn Communicator,
    place: Place,
    sink: &Mutex<&mut Sink>,
    last: &impl Fn(&Rank) -> T,
) -> Result<T, TrainError> {
    let _guard = tch::no_grad_guard();
    let Place { device, alone, timer } = place;
    // What may fail on one rank alone does so before there are groups, which wait for the others when they end.
    if let Device::Cuda(ordinal) = device {
        kernels::load(ordinal)?;
        if alone {
            // What an earlier system of this process left there is none of this one's memory.
            Gpu::open(ordinal)?.release_kept()?;
        }
    }
    let mut world = member.split("world", &[(0..member.size()).collect()])?;
    if setup.record_spans {
        world = Box::new(Noted::new(world, timer.log().clone()));
    }
    let mut rank = Rank::new(setup, world, device, timer)?;
    match iterate(&mut rank, device, alone, sink) {
        Ok(()) => Ok(last(&rank)),
        // All ranks stop here.
        Err(error @ TrainError::Diverged { .. }) => Err(error),
        Err(error) => {
            // Before the groups end.
            member.fail(&error.to_string());
            Err(error)
        }
    }
}

/// Trains a new rank to the last iteration.
fn iterate(rank: &mut Rank, device: Device, alone: bool, sink: &Mutex<&mut Sink>) -> Result<(), TrainError> {
    let setup = rank.setup;
    let first = rank.groups.world.rank() == 0;
    let pass_on = |iteration: usize, reports: Vec<Report>| {
        let mut sink = sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sink(iteration, reports);
    };
    let mut checkpoints = Checkpoints::of(setup);
    if let Some(checkpoints) = &checkpoints {
        let iteration = resume(rank, checkpoints, device)?;
        if first {
            let reports = checkpoints.reports(iteration)?;
            reports.into_iter().enumerate().for_each(|(iteration, reports)| pass_on(iteration, reports));
        }
    }
    while rank.iteration < setup.iterations {
        let mut report = rank.step()?;
        if let (Device::Cuda(ordinal), true) = (device, alone) {
            report.memory = Bytes(Gpu::open(ordinal)?.memory()?.used as f64);
        }
        let reports = gather(&*rank.groups.world, &report, device)?;
        // All ranks have all reports and stop at the same iteration, before it is kept.
        let loss = loss(setup, &reports);
        if !loss.is_finite() {
            return Err(TrainError::Diverged { iteration: rank.iteration, loss });
        }
        if let Some(checkpoints) = &mut checkpoints {
            checkpoints.after(rank, &reports)?;
        }
        if first {
            pass_on(rank.iteration - 1, reports);
        }
    }
    Ok(())
}

/// Goes on from the last checkpoint; all ranks must find the same one. Returns its iterations; 0 if there is none.
fn resume(rank: &mut Rank, checkpoints: &Checkpoints, device: Device) -> Result<usize, TrainError> {
    let own = checkpoint::found(rank.setup)?;
    let world = &*rank.groups.world;
    let found = world.all_gather(&Tensor::from_slice(&[own as i64]).to_device(device))?.wait()?;
    let found: Vec<i64> = to_host(&found)?;
    if let Some(other) = found.iter().position(|&other| other != own as i64) {
        let rank = world.rank();
        let found = found[other] as usize;
        return Err(CheckpointError::Disagreement { rank, own, other, found }.into());
    }
    if own > 0 {
        checkpoints.resume(rank, own)?;
    }
    Ok(own)
}

/// The reports of all ranks.
fn gather(world: &dyn Communicator, report: &Report, device: Device) -> Result<Vec<Report>, TrainError> {
    let mut padded = serde_json::to_vec(report)?;
    let length = Tensor::from_slice(&[padded.len() as i64]).to_device(device);
    let lengths: Vec<i64> = to_host(&world.all_gather(&length)?.wait()?)?;
    let longest = lengths.iter().copied().fold(0, i64::max) as usize;
    padded.resize(longest, 0);
    let all: Vec<u8> = to_host(&world.all_gather(&Tensor::from_slice(&padded).to_device(device))?.wait()?)?;
    let parse = |(bytes, &length): (&[u8], &i64)| Ok(serde_json::from_slice(&bytes[..length as usize])?);
    all.chunks_exact(longest).zip(&lengths).map(parse).collect()
}

/// The mean loss of an iteration, nats per token.
fn loss(setup: &Setup, reports: &[Report]) -> f64 {
    let tokens = (setup.job.global_batch * setup.gpt.seq_len) as f64;
    reports.iter().map(|report| report.loss).sum::<f64>() / tokens
}

/// The record of an iteration, from the reports of all ranks.
pub fn iteration(setup: &Setup, reports: &[Report]) -> Iteration {
    let size = setup.plan.stage_ranks();
    let most = |of: fn(&Report) -> Seconds| reports.iter().map(of).fold(Seconds::ZERO, Seconds::max);
    let step = most(|report| report.step);
    let phases = reports.chunks(size).map(|stage| {
        let mut mean = Ledger::default();
        stage.iter().for_each(|report| mean.merge(&report.ledger, 1.0 / size as f64));
        // Ranks that are done early wait for other stages.
        mean.add(Phase::Bubble, (step - mean.total()).max(Seconds::ZERO));
        mean
    });
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let fullest = reports.iter().enumerate().max_by(|(_, a), (_, b)| a.memory.0.total_cmp(&b.memory.0));
    let peak = fullest.map_or_else(Peak::default, |(rank, report)| Peak { rank, bytes: report.memory });
    Iteration {
        timing: Timing {
            step,
            phases: phases.collect(),
            peak,
            memory: reports.iter().map(|report| report.memory).collect(),
            entries: sum(|report| report.entries),
            dropped: sum(|report| report.dropped),
            copied: sum(|report| report.copied),
            ..Timing::default()
        },
        decision: most(|report| report.decision),
        migration: most(|report| report.migration),
        moved: sum(|report| report.moved) as usize,
        balancing: None,
        failure: None,
        loss: Some(loss(setup, reports)),
        predicted: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{CommError, CommFailure};

    fn comm(rank: usize, reason: CommFailure) -> (usize, TrainError) {
        (rank, CommError { rank, collective: "all-reduce", group: "the world".to_owned(), reason }.into())
    }

    fn check(failures: Vec<(usize, TrainError)>, expected: &str) {
        assert_eq!(cause(failures).unwrap().to_string(), expected);
    }

    #[test]
    fn the_cause_is_reported_with_rank_and_collective() {
        let died = |rank, of| comm(rank, CommFailure::Died { rank: of, how: "panicked: x".to_owned() });
        let late =
            |rank, of: &[usize]| comm(rank, CommFailure::Late { ranks: of.to_vec(), waited: Duration::from_secs(1) });
        let panic = |rank| (rank, TrainError::Panic { rank, message: "x".to_owned() });
        assert!(cause(Vec::new()).is_none());
        check(vec![panic(1)], "rank 1 panicked: x");
        check(vec![died(0, 1), panic(1)], "rank 0: all-reduce of the world: rank 1 died: panicked: x");
        check(vec![died(2, 1)], "rank 2: all-reduce of the world: rank 1 died: panicked: x");
        // Rank 0 waits for 2, and 2 for 3, which never comes.
        check(
            vec![late(0, &[2]), died(1, 0), late(2, &[3]), died(3, 0)],
            "rank 2: all-reduce of the world: rank 3 did not arrive within 1s",
        );
    }
}
