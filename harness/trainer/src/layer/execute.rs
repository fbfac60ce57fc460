//! Executes the tasks of one pass of a layer program on one rank.
//!
//! Streams are FIFO; transfers of weights are issued like exchanges and with them. An exchange is issued as soon as the exchange before it is issued and the task that it waits for
//! has run. Then the next compute task runs, once the exchange that it waits for has arrived. Exchanges that nothing waits
//! for are completed at the end, but for gradients that return to where experts stand or to shards: they end in the passes that follow.
//! On a GPU, shadowed experts run together at the first of their tasks, once the weights of all have arrived.
//!
//! Experts of the next pass begin to be restored from shards once rows are on their way to those of this one
//! ([`systems::program::Stream::Copy`]).

use std::collections::VecDeque;

use systems::program::{Op, Stream, Task};

use crate::clock::pass::PassTimer;
use crate::comm::Pending;
use crate::error::TrainError;
use crate::layer::pass::{Kernel, Pass};

/// Runs the tasks; each is timed on its own.
///
/// # Errors
/// A peer that died; a program whose tasks wait for each other, or that computes or sends what is not there yet.
pub(super) fn execute(tasks: &[Task], pass: &mut Pass<impl Kernel>, timer: &PassTimer) -> Result<(), TrainError> {
    timer.aside(|| Execution::new(tasks, pass, timer).run())
}

struct Execution<'a, 'p, 't, K> {
    tasks: &'a [Task],
    pass: &'a mut Pass<'p, K>,
    timer: &'a PassTimer<'t>,
    /// `[task]`: whether it has run or, if it is an exchange, is issued.
    begun: Vec<bool>,
    /// `[task]`: the exchange under way.
    pending: Vec<Option<Vec<Pending>>>,
}

impl<'a, 'p, 't, K: Kernel> Execution<'a, 'p, 't, K> {
    fn new(tasks: &'a [Task], pass: &'a mut Pass<'p, K>, timer: &'a PassTimer<'t>) -> Self {
        let pending = tasks.iter().map(|_| None).collect();
        Self { tasks, pass, timer, begun: vec![false; tasks.len()], pending }
    }

    fn run(mut self) -> Result<(), TrainError> {
        let mut compute = self.on(&[Stream::Compute]);
        let mut exchanges = self.on(&[Stream::Communication, Stream::Copy]);
        loop {
            while let Some(next) = exchanges.pop_front_if(|next| self.may_begin(*next)) {
                self.issue(next)?;
            }
            let Some(next) = compute.pop_front() else { break };
            if !self.may_begin(next) {
                return Err(TrainError::Program(format!("{:?}, which waits for a later task", self.tasks[next].op)));
            }
            for task in self.together_with(next) {
                if let Some(other) = self.tasks[task].after {
                    self.complete(other)?;
                }
            }
            self.compute(next)?;
        }
        if !exchanges.is_empty() {
            return Err(TrainError::Program("tasks that wait for each other".to_owned()));
        }
        (0..self.tasks.len()).try_for_each(|task| self.complete(task))?;
        self.restore_next(true)
    }

    /// The tasks whose inputs a task takes: its own, and, where shadowed experts run together, those of all whose weights are on their way.
    fn together_with(&self, task: usize) -> Vec<usize> {
        let is_shadow = |task: usize| matches!(self.tasks[task].op, Op::Shadow { .. });
        match is_shadow(task) && self.pass.kernels_of_shadows().is_some() {
            true => (0..self.tasks.len()).filter(|&task| is_shadow(task) && self.may_begin(task)).collect(),
            false => vec![task],
        }
    }

    fn restore_next(&self, ran: bool) -> Result<(), TrainError> {
        let next = self.pass.restorable(ran);
        next.map_or(Ok(()), |next| self.timer.wait(Op::Unshard, || self.pass.restore(next)))
    }

    fn on(&self, streams: &[Stream]) -> VecDeque<usize> {
        (0..self.tasks.len()).filter(|&task| streams.contains(&self.tasks[task].op.stream())).collect()
    }

    fn may_begin(&self, task: usize) -> bool {
        self.tasks[task].after.is_none_or(|other| self.begun[other])
    }

    fn issue(&mut self, task: usize) -> Result<(), TrainError> {
        let op = self.tasks[task].op;
        self.pending[task] = Some(self.timer.wait(op, || self.pass.issue(op))?);
        self.begun[task] = true;
        if let Op::Dispatch { .. } = op {
            self.restore_next(false)?;
        }
        Ok(())
    }

    fn compute(&mut self, task: usize) -> Result<(), TrainError> {
        let is_of_counts = |other: usize| self.tasks[other].op == Op::Counts;
        match self.tasks[task].op {
            // The host has waited for counts before the program was known.
            Op::Sync if self.tasks[task].after.is_some_and(is_of_counts) => {}
            Op::Sync => self.timer.wait(Op::Sync, || self.pass.synchronize()),
            op => self.timer.compute(op, || self.pass.compute(op))?,
        }
        self.begun[task] = true;
        Ok(())
    }

    /// Waits for an exchange that is under way; any other task is over.
    fn complete(&mut self, task: usize) -> Result<(), TrainError> {
        let Some(exchanges) = self.pending[task].take() else { return Ok(()) };
        let op = self.tasks[task].op;
        let wait = || exchanges.into_iter().map(Pending::wait).collect::<Result<_, _>>();
        let tensors = self.timer.wait(op, wait)?;
        self.pass.arrive(op, tensors)
    }
}
