//! A rank's clock, and where its time goes.
//!
//! *Wall clock*: work and waiting are timed as they happen: on the CPU by the system's monotonic clock, on a GPU by events
//! on the stream of products. Communication counts for the part that sticks out, the time for which the rank waits for it.
//!
//! *Virtual clock*: ranks share one device. Each compute segment runs alone on it and is timed (CPU time of the thread; on
//! a GPU, the time from idle to idle); data moves between ranks, but takes what the cost model of a described cluster says. Collectives start at the
//! clock of the last participant.

pub mod marks;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use systems::iteration::schedule::Work;
use systems::iteration::timeline::{Activity, Gradients, Span};
use systems::price::ledger::{Ledger, Phase};
use systems::program::Op;
use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::clock::marks::Marks;
use crate::comm::{CommError, Communicator};

/// Part of an iteration: a pass of a micro-batch, a block.
type Part = (Option<Work>, Option<usize>);

/// The clock of one rank.
pub struct Timer {
    rank: usize,
    /// The device that ranks take turns on, under a virtual clock.
    turns: Option<Arc<Mutex<()>>>,
    device: Device,
    origin: Cell<Instant>,
    now: Cell<Seconds>,
    /// Which part of the iteration this is.
    at: Cell<Part>,
    spans: RefCell<Vec<Span>>,
    /// On a GPU, under a wall clock: activities (none: a wait for another stage) and the parts that they belong to.
    marks: Option<Marks<(Option<Activity>, Part)>>,
    /// What time counts as: spans, and waits for another stage, in the order of the program.
    parts: RefCell<Vec<(Phase, Seconds, Seconds)>>,
}

impl Timer {
    /// A wall clock, or, with a device to take turns on, a virtual one.
    pub fn new(rank: usize, turns: Option<Arc<Mutex<()>>>) -> Self {
        Self {
            rank,
            turns,
            device: Device::Cpu,
            marks: None,
            origin: Cell::new(Instant::now()),
            now: Cell::default(),
            at: Cell::default(),
            spans: RefCell::default(),
            parts: RefCell::default(),
        }
    }

    /// The same, for work on `device`.
    pub fn on(self, device: Device) -> Self {
        let marks = match device {
            // Without events, the host's times are what there is.
            Device::Cuda(ordinal) if !self.is_virtual() => Marks::on(ordinal).ok(),
            _ => None,
        };
        Self { device, marks, ..self }
    }

    /// Whether time is virtual.
    pub fn is_virtual(&self) -> bool {
        self.turns.is_some()
    }

    /// Starts an iteration at time 0.
    pub fn start(&self) {
        self.origin.set(Instant::now());
        self.now.set(Seconds::ZERO);
        self.spans.borrow_mut().clear();
        self.parts.borrow_mut().clear();
        self.marks.iter().for_each(Marks::start);
        self.at(None, None);
    }

    /// Says which part of the iteration the next spans belong to.
    pub fn at(&self, work: Option<Work>, block: Option<usize>) {
        self.at.set((work, block));
    }

    /// The time now.
    pub fn now(&self) -> Seconds {
        if self.is_virtual() { self.now.get() } else { Seconds(self.origin.get().elapsed().as_secs_f64()) }
    }

    /// Runs a compute segment and adds its time to the clock.
    pub fn compute<T>(&self, activity: Activity, segment: impl FnOnce() -> T) -> T {
        let (result, time) = self.measure(activity, segment);
        self.advance(activity, time);
        result
    }

    /// Runs a compute segment and measures it; a virtual clock does not move yet.
    pub fn measure<T>(&self, activity: Activity, segment: impl FnOnce() -> T) -> (T, Seconds) {
        let Some(turns) = self.turns.clone() else {
            return (self.wait(activity, segment), Seconds::ZERO);
        };
        // A turn that ended in a panic leaves nothing behind that the next one could trip over.
        let _turn = turns.lock().unwrap_or_else(PoisonError::into_inner);
        if self.device.is_cuda() {
            // Alone on an idle device, and over when the device is idle again.
            synchronise(self.device);
            let before = Instant::now();
            let result = segment();
            synchronise(self.device);
            return (result, Seconds(before.elapsed().as_secs_f64()));
        }
        let before = cpu_time();
        let result = segment();
        (result, cpu_time() - before)
    }

    /// Runs what waits for other ranks: timed by a wall clock, free under a virtual one, whose collectives are priced.
    pub fn wait<T>(&self, activity: Activity, waiting: impl FnOnce() -> T) -> T {
        if self.is_virtual() {
            return waiting();
        }
        if self.marks.is_some() {
            return self.mark(Some(activity), waiting);
        }
        let start = self.now();
        let result = waiting();
        self.push(activity, start, self.now());
        result
    }

    /// Waits for another stage: for what `waiting` brings and, under a virtual clock, until the time that came with it.
    pub fn bubble<T>(&self, waiting: impl FnOnce() -> T, ready: impl FnOnce(&T) -> Seconds) -> T {
        if self.marks.is_some() {
            return self.mark(None, waiting);
        }
        let start = self.now();
        let result = waiting();
        if self.is_virtual() {
            self.now.set(self.now().max(ready(&result)));
        }
        self.parts.borrow_mut().push((Phase::Bubble, start, self.now()));
        result
    }

    /// Runs something between two events on the GPU.
    fn mark<T>(&self, activity: Option<Activity>, segment: impl FnOnce() -> T) -> T {
        let start = self.marks.as_ref().and_then(Marks::here);
        let result = segment();
        if let Some(marks) = &self.marks {
            marks.note((activity, self.at.get()), start);
        }
        result
    }

    /// Under a wall clock, waits until the GPU has done what it was given, so that the time now is that of its end.
    pub fn settle(&self) {
        self.marks.iter().for_each(Marks::settle);
    }

    /// Moves a virtual clock on.
    pub fn advance(&self, activity: Activity, time: Seconds) {
        if self.is_virtual() {
            let start = self.now();
            self.push(activity, start, start + time);
            self.now.set(start + time);
        }
    }

    /// Under a virtual clock: a collective of `group` that takes `price`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn collective(&self, activity: Activity, group: &dyn Communicator, price: Seconds) -> Result<(), CommError> {
        if self.is_virtual() && group.size() > 1 {
            let (clocks, arrived) = (self.exchange(group, &[])?, self.now());
            self.now.set(clocks.iter().map(|row| Seconds(row[0])).fold(Seconds::ZERO, Seconds::max));
            if activity == Activity::GradientSync(Gradients::TiedStages) {
                self.parts.borrow_mut().push((Phase::Bubble, arrived, self.now()));
            }
            self.advance(activity, price);
        }
        Ok(())
    }

    /// Every member's clock and `values`, `[member][1 + values]`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn exchange(&self, group: &dyn Communicator, values: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
        let row: Vec<f64> = std::iter::once(self.now().0).chain(values.iter().copied()).collect();
        let all = group.all_gather(&Tensor::from_slice(&row))?.wait()?.reshape([-1]).to_kind(Kind::Double);
        let all: Vec<f64> = Vec::try_from(all).unwrap_or_default();
        Ok(all.chunks_exact(row.len()).map(<[f64]>::to_vec).collect())
    }

    /// Takes over the ops of a pass that was run elsewhere and moves a virtual clock to its end.
    pub fn adopt(&self, ops: impl IntoIterator<Item = (Op, Seconds, Seconds)>, end: Seconds) {
        for (op, start, end) in ops {
            self.push(Activity::Op(op), start, end);
        }
        self.now.set(end);
    }

    fn push(&self, activity: Activity, start: Seconds, end: Seconds) {
        if end > start {
            let (rank, (work, block)) = (self.rank, self.at.get());
            self.spans.borrow_mut().push(Span { rank, activity, block, work, start, end });
            self.parts.borrow_mut().push((activity.phase(), start, end));
        }
    }

    /// The spans of the iteration, in order of their beginning, and where the time until `end` went.
    pub fn finish(&self, end: Seconds) -> (Vec<Span>, Ledger) {
        for ((activity, part), start, end) in self.marks.iter().flat_map(Marks::read) {
            self.at.set(part);
            match activity {
                Some(activity) => self.push(activity, start, end),
                None => self.parts.borrow_mut().push((Phase::Bubble, start, end)),
            }
        }
        let mut spans = self.spans.take();
        spans.sort_by(|a, b| a.start.0.total_cmp(&b.start.0));
        (spans, ledger(&self.parts.take(), end))
    }
}

/// Time per phase: every moment up to `end` counts once, for the part that comes first in the program, as the simulator
/// books it; what no part covers is waiting.
fn ledger(parts: &[(Phase, Seconds, Seconds)], end: Seconds) -> Ledger {
    let mut ledger = Ledger::default();
    let mut covered = Seconds::ZERO;
    for &(phase, start, end) in parts {
        if end > covered {
            let begun = start.max(covered);
            ledger.add(Phase::Wait, begun - covered);
            ledger.add(phase, end - begun);
            covered = end;
        }
    }
    ledger.add(Phase::Wait, (end - covered).max(Seconds::ZERO));
    ledger
}

/// The host waits for the device.
pub fn synchronise(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// CPU time of this thread.
fn cpu_time() -> Seconds {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Seconds(time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_counts_every_moment_once() {
        let part = |phase, start, end| (phase, Seconds(start), Seconds(end));
        let parts = [part(Phase::Experts, 0.0, 2.0), part(Phase::Dispatch, 1.0, 4.0), part(Phase::Combine, 5.0, 6.0)];
        let ledger = ledger(&parts, Seconds(7.0));
        assert_eq!(ledger.of(Phase::Dispatch), Seconds(2.0));
        assert_eq!(ledger.of(Phase::Wait), Seconds(2.0));
        assert_eq!(ledger.total(), Seconds(7.0));
    }

    #[test]
    fn virtual_time_is_the_threads_own() {
        let timer = Timer::new(0, Some(Arc::default()));
        timer.compute(Activity::Block, || std::thread::sleep(std::time::Duration::from_millis(30)));
        assert!(timer.now() < Seconds(0.01));
        timer.advance(Activity::Edge, Seconds(1.0));
        assert!(timer.now() > Seconds(1.0));
    }
}
