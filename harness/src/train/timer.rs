//! A rank's clock, and where its time goes.
//!
//! *Wall clock*: work and waiting are timed as they happen: on the CPU by the system's monotonic clock, on a GPU by events
//! on the stream of products. Communication counts for the part that sticks out, the time for which the rank waits for it.
//!
//! *Virtual clock*: ranks share one device. Each compute segment runs alone on it and is timed (CPU time of the thread,
//! or events); data moves between ranks, but takes what the cost model of a described cluster says. Collectives start at the
//! clock of the last participant.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use systems::evaluate::{Ledger, Phase};
use tch::{Kind, Tensor};
use workloads::Seconds;

use super::comm::{CommError, Communicator};

/// A stretch of a rank's time, from the start of the iteration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// What it went to.
    pub phase: Phase,
    /// Beginning.
    pub start: Seconds,
    /// End.
    pub end: Seconds,
}

/// The clock of one rank.
pub struct Timer {
    /// The device that ranks take turns on, under a virtual clock.
    turns: Option<Arc<Mutex<()>>>,
    origin: Instant,
    now: Seconds,
    spans: Vec<Span>,
}

impl Timer {
    /// A wall clock, or, with a device to take turns on, a virtual one.
    pub fn new(turns: Option<Arc<Mutex<()>>>) -> Self {
        Self { turns, origin: Instant::now(), now: Seconds::ZERO, spans: Vec::new() }
    }

    /// Whether time is virtual.
    pub fn is_virtual(&self) -> bool {
        self.turns.is_some()
    }

    /// Starts an iteration at time 0.
    pub fn start(&mut self) {
        self.origin = Instant::now();
        self.now = Seconds::ZERO;
        self.spans.clear();
    }

    /// The time now.
    pub fn now(&self) -> Seconds {
        if self.is_virtual() { self.now } else { Seconds(self.origin.elapsed().as_secs_f64()) }
    }

    /// Runs a compute segment and adds its time to the clock.
    pub fn compute<T>(&mut self, phase: Phase, segment: impl FnOnce() -> T) -> T {
        let (result, time) = self.measure(phase, segment);
        self.advance(phase, time);
        result
    }

    /// Runs a compute segment and measures it; a virtual clock does not move yet.
    pub fn measure<T>(&mut self, phase: Phase, segment: impl FnOnce() -> T) -> (T, Seconds) {
        let Some(turns) = self.turns.clone() else {
            return (self.wait(phase, segment), Seconds::ZERO);
        };
        // A turn that ended in a panic leaves nothing behind that the next one could trip over.
        let _turn = turns.lock().unwrap_or_else(PoisonError::into_inner);
        let before = cpu_time();
        let result = segment();
        (result, cpu_time() - before)
    }

    /// Runs what waits for other ranks: timed by a wall clock, free under a virtual one, whose collectives are priced.
    pub fn wait<T>(&mut self, phase: Phase, waiting: impl FnOnce() -> T) -> T {
        if self.is_virtual() {
            return waiting();
        }
        let start = self.now();
        let result = waiting();
        self.spans.push(Span { phase, start, end: self.now() });
        result
    }

    /// Moves a virtual clock on.
    pub fn advance(&mut self, phase: Phase, time: Seconds) {
        if self.is_virtual() {
            self.spans.push(Span { phase, start: self.now, end: self.now + time });
            self.now += time;
        }
    }

    /// Moves a virtual clock to `time` if that is later, waiting for `phase`.
    pub fn until(&mut self, phase: Phase, time: Seconds) {
        if time > self.now {
            self.advance(phase, time - self.now);
        }
    }

    /// Under a virtual clock: a collective of `group` that takes `price`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn collective(&mut self, phase: Phase, group: &dyn Communicator, price: Seconds) -> Result<(), CommError> {
        if self.is_virtual() && group.size() > 1 {
            let clocks = self.exchange(group, &[])?;
            let latest = clocks.iter().map(|row| Seconds(row[0])).fold(Seconds::ZERO, Seconds::max);
            self.until(Phase::Wait, latest);
            self.advance(phase, price);
        }
        Ok(())
    }

    /// Every member's clock and `values`, `[member][1 + values]`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn exchange(&self, group: &dyn Communicator, values: &[f64]) -> Result<Vec<Vec<f64>>, CommError> {
        let row: Vec<f64> = std::iter::once(self.now.0).chain(values.iter().copied()).collect();
        let all = group.all_gather(&Tensor::from_slice(&row))?.wait()?.reshape([-1]).to_kind(Kind::Double);
        let all: Vec<f64> = Vec::try_from(all).unwrap_or_default();
        Ok(all.chunks_exact(row.len()).map(<[f64]>::to_vec).collect())
    }

    /// Adds spans that were worked out elsewhere and moves a virtual clock to `now`.
    pub fn adopt(&mut self, spans: impl IntoIterator<Item = Span>, now: Seconds) {
        self.spans.extend(spans);
        self.now = now;
    }

    /// The spans of the iteration so far, in order of their beginning.
    pub fn take_spans(&mut self) -> Vec<Span> {
        let mut spans = std::mem::take(&mut self.spans);
        spans.sort_by(|a, b| a.start.0.total_cmp(&b.start.0));
        spans
    }
}

/// Time per phase: every moment up to `end` counts once, for the span that began first; what no span covers is waiting.
pub fn ledger(spans: &[Span], end: Seconds) -> Ledger {
    let mut ledger = Ledger::default();
    let mut covered = Seconds::ZERO;
    for span in spans {
        if span.end > covered {
            let begun = span.start.max(covered);
            ledger.add(Phase::Wait, begun - covered);
            ledger.add(span.phase, span.end - begun);
            covered = span.end;
        }
    }
    ledger.add(Phase::Wait, (end - covered).max(Seconds::ZERO));
    ledger
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
        let span = |phase, start, end| Span { phase, start: Seconds(start), end: Seconds(end) };
        let spans =
            [span(Phase::Experts, 0.0, 2.0), span(Phase::Dispatch, 1.0, 4.0), span(Phase::Combine, 5.0, 6.0)];
        let ledger = ledger(&spans, Seconds(7.0));
        assert_eq!(ledger.of(Phase::Dispatch), Seconds(2.0));
        assert_eq!(ledger.of(Phase::Wait), Seconds(2.0));
        assert_eq!(ledger.total(), Seconds(7.0));
    }

    #[test]
    fn virtual_time_is_the_threads_own() {
        let mut timer = Timer::new(Some(Arc::default()));
        timer.compute(Phase::Dense, || std::thread::sleep(std::time::Duration::from_millis(30)));
        assert!(timer.now() < Seconds(0.01));
        timer.advance(Phase::Experts, Seconds(1.0));
        assert!(timer.now() > Seconds(1.0));
    }
}
