//! Executes the tasks of one pass of a layer program on one rank.
//!
//! Both streams are FIFO. An exchange is issued as soon as the one before it is and what it waits for has run; then the
//! next compute task runs, after the exchange that it names has arrived. What has no successor is waited for at the end.

use std::collections::VecDeque;

use systems::iteration::timeline::Activity;
use systems::program::{Op, Stream, Task};
use tch::Tensor;
use workloads::Seconds;

use crate::TrainError;
use crate::clock::Timer;
use crate::comm::Pending;

/// What the tasks of a pass do on this rank.
pub trait Work {
    /// Starts an exchange.
    ///
    /// # Errors
    /// A rank that died; a program that sends what is not there yet.
    fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError>;

    /// Takes what an exchange brought.
    ///
    /// # Errors
    /// An exchange that brought what nobody asked for.
    fn arrive(&mut self, op: Op, tensors: Vec<Tensor>) -> Result<(), TrainError>;

    /// Runs a compute task.
    ///
    /// # Errors
    /// A program that computes on what is not there yet.
    fn compute(&mut self, op: Op) -> Result<(), TrainError>;

    /// The host's wait for the device.
    fn synchronise(&self);
}

/// Runs the tasks; returns the time of each compute task, `[task]`, as a virtual clock measured it.
///
/// # Errors
/// What `work` says; a program whose tasks wait for each other.
pub fn run(tasks: &[Task], work: &mut dyn Work, timer: &Timer) -> Result<Vec<Seconds>, TrainError> {
    let on = |stream| (0..tasks.len()).filter(move |&t| tasks[t].op.stream() == stream).collect::<VecDeque<_>>();
    let (mut compute, mut exchanges) = (on(Stream::Compute), on(Stream::Communication));
    let mut begun = vec![false; tasks.len()];
    let mut pending: Vec<Option<Vec<Pending>>> = (0..tasks.len()).map(|_| None).collect();
    let mut durations = vec![Seconds::ZERO; tasks.len()];
    loop {
        while let Some(&next) = exchanges.front() {
            if tasks[next].after.is_some_and(|other| !begun[other]) {
                break;
            }
            let op = tasks[next].op;
            pending[next] = Some(timer.wait(Activity::Op(op), || work.issue(op))?);
            begun[next] = true;
            exchanges.pop_front();
        }
        let Some(next) = compute.pop_front() else {
            if exchanges.is_empty() {
                break;
            }
            return Err(TrainError::Program("tasks that wait for each other".to_owned()));
        };
        if let Some(other) = tasks[next].after {
            if !begun[other] {
                return Err(TrainError::Program(format!("{:?} waits for a later task", tasks[next].op)));
            }
            complete(tasks, other, &mut pending, work, timer)?;
        }
        let op = tasks[next].op;
        let (done, time) = match op {
            Op::Sync => {
                timer.wait(Activity::Op(op), || work.synchronise());
                (Ok(()), Seconds::ZERO)
            }
            _ => timer.measure(Activity::Op(op), || work.compute(op)),
        };
        done?;
        durations[next] = time;
        begun[next] = true;
    }
    for task in 0..tasks.len() {
        complete(tasks, task, &mut pending, work, timer)?;
    }
    Ok(durations)
}

/// Waits for an exchange that is under way; any other task is over.
fn complete(
    tasks: &[Task],
    task: usize,
    pending: &mut [Option<Vec<Pending>>],
    work: &mut dyn Work,
    timer: &Timer,
) -> Result<(), TrainError> {
    let Some(exchanges) = pending[task].take() else { return Ok(()) };
    let op = tasks[task].op;
    let tensors =
        timer.wait(Activity::Op(op), || exchanges.into_iter().map(Pending::wait).collect::<Result<_, _>>())?;
    work.arrive(op, tensors)
}
