//! Times one pass of an MoE layer from outside, so that the code of the layer is about tokens and experts alone.
//!
//! A pass is timed from start to stop. The tasks of its program are timed one by one; all other time is the gate's, and from when counts are
//! there until something else is waited for the permutation's. Under a virtual clock the pass is then replayed on the streams of all ranks of the group, with
//! measured times for kernels and prices for exchanges.

use std::cell::{Cell, RefCell};

use systems::iteration::timeline::Activity;
use systems::price::hosts::Hosts;
use systems::price::ledger::Ledger;
use systems::price::streams::{Streams, TimedPass};
use systems::program::{Op, Stream, Task};
use workloads::Seconds;

use crate::clock::timer::{Started, Timer};
use crate::comm::Communicator;
use crate::error::TrainError;

/// The stopwatch of one pass under way.
pub struct PassTimer<'a> {
    timer: &'a Timer,
    /// The segment of the rest under way; none while a task runs or waits.
    rest: RefCell<Option<Started<'a>>>,
    /// Whose time that is.
    rest_is: Cell<Op>,
    times: RefCell<PassTimes>,
}

/// What the ops of a pass took on this rank; all zero under a wall clock, which notes spans instead.
#[derive(Debug, Default)]
pub struct PassTimes(Vec<(Op, Seconds)>);

impl<'a> PassTimer<'a> {
    pub fn start(timer: &'a Timer) -> Self {
        Self {
            timer,
            rest: RefCell::new(Some(timer.begin(Activity::Op(Op::Gate)))),
            rest_is: Cell::new(Op::Gate),
            times: RefCell::default(),
        }
    }

    /// Runs a compute segment, whose time counts for `op` instead of the rest.
    pub fn compute<T>(&self, op: Op, segment: impl FnOnce() -> T) -> T {
        self.aside(|| {
            let started = self.timer.begin(Activity::Op(op));
            let result = segment();
            self.note(op, started);
            result
        })
    }

    /// Runs what waits for other ranks.
    pub fn wait<T>(&self, op: Op, waiting: impl FnOnce() -> T) -> T {
        self.aside(|| {
            self.rest_is.set(Op::Gate);
            self.timer.wait(Activity::Op(op), waiting)
        })
    }

    /// Waits for the counts of other ranks: the rest is the permutation's then, until something else is waited for.
    pub fn wait_for_counts<T>(&self, waiting: impl FnOnce() -> T) -> T {
        self.aside(|| {
            self.rest_is.set(Op::Permute);
            self.timer.wait(Activity::Op(Op::Counts), waiting)
        })
    }

    /// Runs something whose time is not the rest's.
    pub fn aside<T>(&self, segment: impl FnOnce() -> T) -> T {
        let under_way = self.rest.take();
        let was_running = under_way.is_some();
        if let Some(started) = under_way {
            self.note(self.rest_is.get(), started);
        }
        let result = segment();
        if was_running {
            self.rest.replace(Some(self.timer.begin(Activity::Op(self.rest_is.get()))));
        }
        result
    }

    /// Ends the pass.
    pub fn stop(self) -> PassTimes {
        if let Some(started) = self.rest.take() {
            self.note(self.rest_is.get(), started);
        }
        self.times.into_inner()
    }

    fn note(&self, op: Op, started: Started) {
        let time = self.timer.end(Some(Activity::Op(op)), started);
        self.times.borrow_mut().0.push((op, time));
    }
}

impl PassTimes {
    /// Moves a virtual clock over the pass. `prices`: `[task][rank]`, flat.
    ///
    /// # Errors
    /// A peer that died.
    pub fn replay(
        &self,
        timer: &Timer,
        group: &dyn Communicator,
        (tasks, steps): (&[Task], usize),
        prices: &[Seconds],
    ) -> Result<(), TrainError> {
        let own: Vec<f64> = self.of_tasks(tasks).iter().map(|time| time.0).collect();
        let all = timer.gather(group, &own)?;
        let (rank, ranks) = (group.rank(), group.size());
        let mut durations = prices.to_vec();
        for (index, task) in tasks.iter().enumerate() {
            // The host's wait for the device is priced: it cannot be measured where ranks share the device.
            if task.op.stream() == Stream::Compute && task.op != Op::Sync {
                for (rank, row) in all.iter().enumerate() {
                    durations[index * ranks + rank] = Seconds(row[1 + index]);
                }
            }
        }
        let mut clocks: Vec<Seconds> = all.iter().map(|row| Seconds(row[0])).collect();
        // The timer keeps the ledger.
        let (mut ignored, mut spans) = (Ledger::default(), Vec::new());
        let observe = |op, start: &[Seconds], end: &[Seconds]| spans.push((Activity::Op(op), start[rank], end[rank]));
        let pass = TimedPass { tasks, durations: &durations, issue: &[], steps };
        let mut links = timer.links.borrow_mut();
        Streams::default().run(&pass, &mut clocks, &mut Hosts::default(), &mut links, &mut ignored, observe);
        timer.record_pass(spans, clocks[rank]);
        Ok(())
    }

    /// `[task]`: the time of its op, at the first task of that op.
    fn of_tasks(&self, tasks: &[Task]) -> Vec<Seconds> {
        let mut durations = vec![Seconds::ZERO; tasks.len()];
        for &(op, time) in &self.0 {
            // How many steps a decision takes is known to the program alone.
            let is_it = |task: &Task| match op {
                Op::Decide { .. } => matches!(task.op, Op::Decide { .. }),
                op => task.op == op,
            };
            // A pass that permutes rows before its tasks has that in its gate.
            let of_gate = || tasks.iter().position(|task| op == Op::Permute && task.op == Op::Gate);
            if let Some(task) = tasks.iter().position(is_it).or_else(of_gate) {
                durations[task] += time;
            }
        }
        durations
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn times_go_to_the_first_task_of_their_op() {
        let task = |op| Task { op, after: None };
        let tasks = [Op::Gate, Op::Decide { steps: 9 }, Op::Experts { step: 0 }, Op::Experts { step: 1 }].map(task);
        let times = PassTimes(vec![
            (Op::Gate, Seconds(1.0)),
            (Op::Decide { steps: 0 }, Seconds(2.0)),
            (Op::Experts { step: 1 }, Seconds(4.0)),
            (Op::Gate, Seconds(8.0)),
            (Op::Shadow { expert: 3 }, Seconds(16.0)),
        ]);
        assert_eq!(times.of_tasks(&tasks), [9.0, 2.0, 0.0, 4.0].map(Seconds));
    }

    #[test]
    fn what_is_no_task_counts_for_the_gate() {
        let timer = Timer::new(0, Some(Default::default()));
        let work = || black_box((0..black_box(4_000_000u64)).fold(0u64, |sum, i| sum.wrapping_mul(31).wrapping_add(i)));
        let pass = PassTimer::start(&timer);
        work();
        pass.compute(Op::Experts { step: 0 }, || (work(), work(), work(), work()));
        pass.wait_for_counts(work);
        work();
        pass.aside(|| {
            pass.compute(Op::Experts { step: 1 }, work);
            pass.wait(Op::Dispatch { step: 0 }, || ());
        });
        work();
        let times = pass.stop();
        let tasks = [Op::Gate, Op::Experts { step: 0 }, Op::Counts, Op::Permute].map(|op| Task { op, after: None });
        let [all, alone] = [&tasks[..], &tasks[..3]].map(|tasks| times.of_tasks(tasks));
        // Twice the work in the experts as in the gate, measured in CPU time, and half as much in the permutation.
        for (ratio, expected) in [(all[1] / all[0], 2.0), (all[3] / all[0], 0.5), (all[1] / alone[0], 4.0 / 3.0)] {
            assert!((0.6..1.75).contains(&(ratio / expected)), "{times:?}");
        }
        assert_eq!(all[2], Seconds::ZERO);
        assert_eq!(timer.now(), Seconds::ZERO, "a virtual clock moves when the pass is replayed");
    }
}
