//! Two streams per rank: runs the tasks of one pass through one layer, given how long each takes on each rank.
//!
//! Tasks of a stream run in order; a task also waits for the one it names; a collective starts when the last rank that
//! takes part has arrived. Durations may be priced or measured: a trainer that runs many ranks on one device passes what
//! it timed for the compute tasks and prices for the others, and gets the clocks of the described cluster.

use workloads::Seconds;

use crate::price::ledger::{Ledger, Phase};
use crate::program::{Op, Stream, Task};

/// One pass through one layer, and how long its tasks take.
#[derive(Clone, Copy, Debug)]
pub struct TimedPass<'a> {
    /// In the order of their streams.
    pub tasks: &'a [Task],
    /// `[task][rank]`, flat.
    pub durations: &'a [Seconds],
    /// Steps that its exchanges are cut into.
    pub steps: usize,
}

/// The streams of a group's ranks; its memory is kept from pass to pass.
#[derive(Default)]
pub struct Streams {
    /// `[rank]`: when each stream is free.
    compute: Vec<Seconds>,
    communication: Vec<Seconds>,
    /// `[rank]`: when the task at hand starts.
    start: Vec<Seconds>,
    /// `[task][rank]`, flat.
    finish: Vec<Seconds>,
}

impl Streams {
    /// Runs a pass from the ranks' clocks on and moves the clocks to the end. The time that
    /// passes on each rank goes to the ledger: to waiting until a task starts, then to the task's phase, and only once
    /// where both streams are busy. `seen` is told of every task, with `[rank]` its start and its end.
    pub fn run(
        &mut self,
        pass: &TimedPass,
        clock: &mut [Seconds],
        ledger: &mut Ledger,
        mut seen: impl FnMut(Op, &[Seconds], &[Seconds]),
    ) {
        let &TimedPass { tasks, durations, steps } = pass;
        let ranks = clock.len();
        for times in [&mut self.compute, &mut self.communication, &mut self.start] {
            times.clear();
            times.extend_from_slice(clock);
        }
        self.finish.clear();
        for (task, durations) in tasks.iter().zip(durations.chunks_exact(ranks)) {
            let communicates = task.op.stream() == Stream::Communication;
            let stream = if communicates { &mut self.communication } else { &mut self.compute };
            match task.after {
                Some(other) => {
                    let done = &self.finish[other * ranks..(other + 1) * ranks];
                    for ((start, &free), &done) in self.start.iter_mut().zip(stream.iter()).zip(done) {
                        *start = free.max(done);
                    }
                }
                None => self.start.copy_from_slice(stream),
            }
            if communicates {
                meet(task.op, steps, &mut self.start);
            }
            for ((free, &start), &duration) in stream.iter_mut().zip(&self.start).zip(durations) {
                *free = start + duration;
            }
            self.finish.extend_from_slice(stream);
            seen(task.op, &self.start, stream);
            account(Phase::of(task.op), &self.start, stream, clock, ledger);
        }
    }
}

/// Books the time by which a task sticks out over all before it.
fn account(phase: Phase, start: &[Seconds], end: &[Seconds], clock: &mut [Seconds], ledger: &mut Ledger) {
    let (mut waited, mut spent) = (Seconds::ZERO, Seconds::ZERO);
    for ((&start, &end), clock) in start.iter().zip(end).zip(clock) {
        if end > *clock {
            let begun = start.max(*clock);
            waited += begun - *clock;
            spent += end - begun;
            *clock = end;
        }
    }
    ledger.add(Phase::Wait, waited);
    ledger.add(phase, spent);
}

/// Ranks of a collective start together; in a step of a cut exchange, with those that they exchange with.
fn meet(op: Op, steps: usize, start: &mut [Seconds]) {
    let step = match op {
        Op::Dispatch { step } | Op::Combine { step } if steps > 1 => step,
        _ => return start.fill(latest(start)),
    };
    let size = start.len() / steps;
    let groups: Vec<Seconds> = start.chunks_exact(size).map(latest).collect();
    for (group, start) in start.chunks_exact_mut(size).enumerate() {
        let (to, from) = (groups[(group + step) % steps], groups[(group + steps - step) % steps]);
        start.fill(groups[group].max(to).max(from));
    }
}

fn latest(times: &[Seconds]) -> Seconds {
    times.iter().copied().fold(Seconds::ZERO, Seconds::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(values: &[f64]) -> Vec<Seconds> {
        values.iter().copied().map(Seconds).collect()
    }

    /// Compute 0: 1 and 3 s; exchange 1 after it: 2 s, so from 3 to 5; compute 2 beside it: 1 s.
    #[test]
    fn collectives_wait_for_the_last_and_overlap_with_kernels() {
        let tasks = [
            Task { op: Op::Experts { step: 0 }, after: None },
            Task { op: Op::Combine { step: 0 }, after: Some(0) },
            Task { op: Op::Shadow { expert: 0 }, after: None },
        ];
        let durations = s(&[1.0, 3.0, 2.0, 2.0, 1.0, 1.0]);
        let mut clock = s(&[0.0, 0.0]);
        let mut seen = Vec::new();
        let mut ledger = Ledger::default();
        let pass = TimedPass { tasks: &tasks, durations: &durations, steps: 1 };
        Streams::default()
            .run(&pass, &mut clock, &mut ledger, |op, start, end| seen.push((op, start.to_vec(), end.to_vec())));
        assert_eq!(clock, s(&[5.0, 5.0]));
        // The exchange waits for rank 1's kernel; the second kernel does not wait for the exchange.
        assert_eq!(seen[1], (tasks[1].op, s(&[3.0, 3.0]), s(&[5.0, 5.0])));
        assert_eq!(seen[2], (tasks[2].op, s(&[1.0, 3.0]), s(&[2.0, 4.0])));
        assert_eq!(ledger.of(Phase::Experts), Seconds(4.0));
        assert_eq!(ledger.of(Phase::Wait), Seconds(2.0));
        assert_eq!(ledger.of(Phase::Combine), Seconds(4.0));
        assert_eq!(ledger.total(), Seconds(10.0));
    }

    /// Two schedule groups of one rank: step 0 is a rank with itself, step 1 brings both together.
    #[test]
    fn steps_wait_for_their_own_partners_only() {
        let exchange = |step| Task { op: Op::Dispatch { step }, after: None };
        let mut clock = s(&[0.0, 4.0]);
        let mut run = |step| {
            let pass = TimedPass { tasks: &[exchange(step)], durations: &s(&[1.0, 1.0]), steps: 2 };
            Streams::default().run(&pass, &mut clock, &mut Ledger::default(), |_, _, _| ());
            clock.clone()
        };
        assert_eq!(run(0), s(&[1.0, 5.0]));
        assert_eq!(run(1), s(&[6.0, 6.0]));
    }
}
