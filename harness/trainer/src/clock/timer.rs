//! The clock of one rank: what each part of an iteration takes.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use systems::iteration::moved::Message;
use systems::iteration::schedule::Work;
use systems::iteration::timeline::{Activity, Gradients, Span};
use systems::price::ledger::{Ledger, Phase};
use systems::price::streams::Links;
use systems::program::{Op, Stream};
use tch::{Device, Tensor};
use workloads::Seconds;

use crate::clock::marks::Marks;
use crate::clock::queue::{LEAST, Queue, SOME};
use crate::comm::Communicator;
use crate::comm::noted::Log;
use crate::cuda::Event;
use crate::error::TrainError;
use crate::host::to_host;

/// A pass of a micro-batch and a block: the part of an iteration that a span belongs to.
pub(super) type Part = (Option<Work>, Option<usize>);

/// An activity (none: a wait for another stage), its part, and what it moved.
type Marked = (Option<Activity>, Part, Vec<Message>);

/// What a virtual clock measures of a compute segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// From an idle device until it is idle again.
    Alone,
    /// Until the host has issued it, in the middle of the program: nothing is waited for but what the program waits for. On a CPU nothing is
    /// issued: no time.
    Issue,
    /// What the device takes once all is issued, behind other work. On a CPU the same as alone.
    Queued,
    /// What the device takes once all is issued, as if no host ever waited and data had been read before. On a CPU the same as alone.
    Ahead,
}

/// Ranks under a virtual clock: what each measures in its iterations, one after the other and again from the first.
pub type Measures = &'static [Measure];

/// What a step takes on a device: segments alone.
pub const ALONE: Measures = &[Measure::Alone];

/// What emulated ranks take: the device's time, as where hosts run ahead.
pub const AHEAD: Measures = &[Measure::Ahead];

pub struct Timer {
    rank: usize,
    /// The turn on the shared device, under a virtual clock.
    turns: Option<Arc<Mutex<()>>>,
    measures: Measures,
    /// Iterations that were begun.
    begun: Cell<usize>,
    /// What keeps a GPU busy until a segment is issued.
    queue: RefCell<Queue>,
    device: Device,
    /// Where ranks tell each other the time of virtual clocks.
    meeting: Device,
    origin: Cell<Instant>,
    now: Cell<Seconds>,
    part: Cell<Part>,
    /// With what each moved, as far as groups note it.
    spans: RefCell<Vec<(Span, Vec<Message>)>>,
    moved: Log,
    /// Under a virtual clock: what was waited for and has no span yet.
    unpriced: RefCell<Vec<Marked>>,
    /// On a GPU under a wall clock.
    marks: Option<Marks<Marked>>,
    /// Spans and waits for other stages by phase, in program order.
    phases: RefCell<Vec<(Phase, Seconds, Seconds)>>,
    /// Under a virtual clock: what the ranks of the expert-parallel group have under way between two passes.
    pub(super) links: RefCell<Links>,
}

/// A segment that is being timed.
pub(super) enum Started<'a> {
    /// Virtual clock: this rank has the turn. On a CPU, its CPU time so far; on a GPU, what a wait for it takes while it is idle, the time since
    /// then, and the place of the segment on its stream.
    Alone {
        turn: MutexGuard<'a, ()>,
        measure: Measure,
        cpu_time: Seconds,
        wait: Seconds,
        begun: Instant,
        place: Option<Event>,
    },
    /// Wall clock on a GPU.
    Marked(Option<Event>),
    /// Wall clock on a CPU.
    At(Seconds),
}

impl Timer {
    /// A wall clock, or a virtual one for ranks that take `turns` on a device.
    pub fn new(rank: usize, turns: Option<Arc<Mutex<()>>>) -> Self {
        Self {
            rank,
            turns,
            measures: ALONE,
            begun: Cell::new(0),
            queue: RefCell::default(),
            device: Device::Cpu,
            meeting: Device::Cpu,
            marks: None,
            origin: Cell::new(Instant::now()),
            now: Cell::default(),
            part: Cell::default(),
            spans: RefCell::default(),
            moved: Log::default(),
            unpriced: RefCell::default(),
            phases: RefCell::default(),
            links: RefCell::default(),
        }
    }

    /// Times work on `device`.
    pub fn on(self, device: Device) -> Self {
        let marks = match device {
            // Without events, the host's times are what there is.
            Device::Cuda(ordinal) if !self.is_virtual() => Marks::on(ordinal).ok(),
            _ => None,
        };
        Self { device, marks, ..self }
    }

    /// Tells other ranks the time of a virtual clock by tensors there, as groups of processes on GPUs ask for.
    pub fn meeting_on(self, device: Device) -> Self {
        Self { meeting: device, ..self }
    }

    /// Measures these under a virtual clock.
    pub fn measuring(self, measures: Measures) -> Self {
        Self { measures, ..self }
    }

    pub fn is_virtual(&self) -> bool {
        self.turns.is_some()
    }

    /// Starts an iteration at time 0.
    pub fn start(&self) {
        self.begun.set(self.begun.get() + 1);
        self.queue.borrow_mut().start();
        self.origin.set(Instant::now());
        self.now.set(Seconds::ZERO);
        self.spans.borrow_mut().clear();
        self.moved.take();
        self.unpriced.borrow_mut().clear();
        self.phases.borrow_mut().clear();
        self.marks.iter().for_each(Marks::start);
        self.enter(None, None);
    }

    /// Where groups note what they move, for the spans of the iteration.
    pub(crate) fn log(&self) -> &Log {
        &self.moved
    }

    /// The spans that follow belong to this pass and block.
    pub fn enter(&self, work: Option<Work>, block: Option<usize>) {
        self.part.set((work, block));
    }

    pub fn now(&self) -> Seconds {
        if self.is_virtual() { self.now.get() } else { Seconds(self.origin.get().elapsed().as_secs_f64()) }
    }

    /// Runs a compute segment and adds its time to the clock.
    pub fn compute<T>(&self, activity: Activity, segment: impl FnOnce() -> T) -> T {
        let started = self.begin(activity);
        let result = segment();
        self.advance(activity, self.end(Some(activity), started));
        result
    }

    /// Runs what waits for other ranks: timed by a wall clock, free under a virtual one, where [`Self::collective`] adds the
    /// price.
    pub fn wait<T>(&self, activity: Activity, waiting: impl FnOnce() -> T) -> T {
        if self.is_virtual() {
            let result = waiting();
            let moved = self.moved.take();
            if !moved.is_empty() {
                self.unpriced.borrow_mut().push((Some(activity), self.part.get(), moved));
            }
            return result;
        }
        let started = self.begin(activity);
        let result = waiting();
        self.end(Some(activity), started);
        result
    }

    /// Waits for another stage. `waiting` returns what arrived and the sender's clock, to which a virtual clock moves.
    pub fn wait_for_stage<T>(
        &self,
        waiting: impl FnOnce() -> Result<(T, Seconds), TrainError>,
    ) -> Result<T, TrainError> {
        if self.marks.is_some() {
            let started = self.begin_segment(None, self.measure());
            let arrived = waiting();
            self.end(None, started);
            return Ok(arrived?.0);
        }
        let start = self.now();
        let (arrived, ready) = waiting()?;
        if self.is_virtual() {
            self.now.set(self.now().max(ready));
        }
        self.phases.borrow_mut().push((Phase::Bubble, start, self.now()));
        Ok(arrived)
    }

    /// What is measured in this iteration.
    fn measure(&self) -> Measure {
        self.measures[self.begun.get().saturating_sub(1) % self.measures.len()]
    }

    /// Starts to time a segment of an activity; under a virtual clock, once it is this rank's turn.
    pub(super) fn begin(&self, activity: Activity) -> Started<'_> {
        let measure = match self.measure() {
            Measure::Queued | Measure::Ahead if is_of_host(activity) => Measure::Alone,
            other => other,
        };
        self.begin_segment(Some(activity), measure)
    }

    fn begin_segment(&self, activity: Option<Activity>, measure: Measure) -> Started<'_> {
        let Some(turns) = &self.turns else {
            return match &self.marks {
                Some(marks) => Started::Marked(marks.here()),
                None => Started::At(self.now()),
            };
        };
        // A turn that ended in a panic leaves nothing behind that could disturb the next one.
        let turn = turns.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = || {
            if measure != Measure::Issue {
                synchronize(self.device);
            }
        };
        waits();
        if let (Some(activity), true) = (activity, self.device.is_cuda()) {
            self.queue.borrow_mut().begin((activity, self.part.get()));
        }
        if let (Measure::Alone, Device::Cuda(ordinal), true) = (measure, self.device, self.measures.len() > 1) {
            self.queue.borrow_mut().fill(ordinal, LEAST);
            synchronize(self.device);
        }
        let idle = Instant::now();
        waits();
        let wait = Seconds(idle.elapsed().as_secs_f64());
        let place = match (measure, self.device) {
            (Measure::Queued, Device::Cuda(ordinal)) => self.queue.borrow_mut().fill(ordinal, LEAST),
            (Measure::Ahead, Device::Cuda(ordinal)) => self.queue.borrow_mut().fill(ordinal, SOME),
            _ => None,
        };
        Started::Alone { turn, measure, cpu_time: cpu_time(), wait, begun: Instant::now(), place }
    }

    /// Ends the segment. A wall clock notes a span, of a wait for another stage if there is no activity. A virtual clock
    /// returns the time that the segment took and does not move.
    pub(super) fn end(&self, activity: Option<Activity>, started: Started) -> Seconds {
        match (started, activity) {
            (Started::Alone { cpu_time: before, .. }, Some(activity)) if is_of_host(activity) => {
                let reads_ahead =
                    self.measure() == Measure::Ahead && activity == Activity::Host && self.device.is_cuda();
                let takes_none = self.measure() == Measure::Issue || reads_ahead;
                return if takes_none { Seconds::ZERO } else { cpu_time() - before };
            }
            (Started::Alone { turn, measure, wait, begun, place, .. }, _) if self.device.is_cuda() => {
                let time = self.end_on_gpu(measure, (wait, begun), place);
                drop(turn);
                return time;
            }
            (Started::Alone { cpu_time: before, .. }, _) => {
                return if self.measure() == Measure::Issue { Seconds::ZERO } else { cpu_time() - before };
            }
            (Started::Marked(start), activity) => {
                if let Some(marks) = &self.marks {
                    marks.note((activity, self.part.get(), self.moved.take()), start);
                }
            }
            (Started::At(start), Some(activity)) => self.push(activity, [start, self.now()], self.moved.take()),
            (Started::At(start), None) => self.phases.borrow_mut().push((Phase::Bubble, start, self.now())),
        }
        Seconds::ZERO
    }

    /// What is measured of a segment that the host began to issue then, behind a `place` on the GPU's stream. The GPU is idle then, but where
    /// the host's own time is measured. What the wait for an idle GPU takes the host is none of the GPU's time.
    fn end_on_gpu(&self, measure: Measure, (wait, begun): (Seconds, Instant), place: Option<Event>) -> Seconds {
        let (issued, mut queue) = (Seconds(begun.elapsed().as_secs_f64()), self.queue.borrow_mut());
        // Behind other work that says less, but where nothing else is measured.
        if place.is_none() || self.measures.len() == 1 {
            queue.issued(issued);
        }
        if measure == Measure::Issue {
            return issued;
        }
        let had_to_wait = place.as_ref().is_some_and(|place| place.is_reached().unwrap_or(true));
        let end = place.as_ref().and_then(|_| queue.here());
        synchronize(self.device);
        let alone = issued.max(Seconds(begun.elapsed().as_secs_f64()) - wait);
        let on_gpu = |(start, end): (Event, Event)| end.since(&start).map(|time| Seconds(time.as_secs_f64())).ok();
        match place.zip(end).and_then(on_gpu) {
            Some(time) => queue.took(time, had_to_wait),
            None => alone,
        }
    }

    /// Under a wall clock, waits until the GPU has done all its work, so that the time now is that of its end.
    pub fn synchronize(&self) {
        self.marks.iter().for_each(Marks::synchronize);
    }

    /// Moves a virtual clock on by the time of an activity.
    pub fn advance(&self, activity: Activity, time: Seconds) {
        if self.is_virtual() {
            let start = self.now();
            self.push(activity, [start, start + time], self.priced(activity));
            self.now.set(start + time);
        }
    }

    /// Under a virtual clock: a collective of `group` that takes `price`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn collective(&self, activity: Activity, group: &dyn Communicator, price: Seconds) -> Result<(), TrainError> {
        if self.is_virtual() && group.size() > 1 {
            let (clocks, arrived) = (self.gather(group, &[])?, self.now());
            self.now.set(clocks.iter().map(|row| Seconds(row[0])).fold(Seconds::ZERO, Seconds::max));
            if activity == Activity::GradientSync(Gradients::TiedStages) {
                self.phases.borrow_mut().push((Phase::Bubble, arrived, self.now()));
            }
            self.advance(activity, price);
        }
        Ok(())
    }

    /// What this rank has computed in the iteration, under a virtual clock; nothing under another.
    pub fn computed(&self) -> Seconds {
        if !self.is_virtual() {
            return Seconds::ZERO;
        }
        let ledger = ledger(&self.phases.borrow(), self.now());
        [Phase::Dense, Phase::Gate, Phase::Experts].map(|phase| ledger.of(phase)).into_iter().sum()
    }

    /// Under a virtual clock: asks for a transfer of that time behind the others on the links of an expert-parallel group; returns when it is over.
    ///
    /// # Errors
    /// A peer that died.
    pub fn queue(&self, group: &dyn Communicator, time: Seconds) -> Result<Seconds, TrainError> {
        let clocks: Vec<Seconds> = self.gather(group, &[])?.iter().map(|row| Seconds(row[0])).collect();
        Ok(self.links.borrow_mut().issue(&clocks, time)[group.rank()])
    }

    /// Under a virtual clock, before the passes of an iteration in an expert-parallel group: no transfer starts earlier.
    ///
    /// # Errors
    /// A peer that died.
    pub fn begin_passes(&self, group: &dyn Communicator) -> Result<(), TrainError> {
        if self.is_virtual() {
            let clocks: Vec<Seconds> = self.gather(group, &[])?.iter().map(|row| Seconds(row[0])).collect();
            *self.links.borrow_mut() = Links::new(&clocks);
        }
        Ok(())
    }

    /// Under a virtual clock, behind the passes: member `rank` of the group waits for transfers that are still under way.
    pub fn end_passes(&self, rank: usize) {
        let (now, mut ledger) = (self.now(), Ledger::default());
        let mut clocks = vec![Seconds::ZERO; rank];
        clocks.push(now);
        self.links.borrow().drain(&mut clocks, &mut ledger);
        if self.is_virtual() && clocks[rank] > now {
            self.phases.borrow_mut().push((Phase::ShadowTransfer, now, clocks[rank]));
            self.now.set(clocks[rank]);
        }
    }

    /// Every member's clock and `values`: `[member][1 + values]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn gather(&self, group: &dyn Communicator, values: &[f64]) -> Result<Vec<Vec<f64>>, TrainError> {
        let row: Vec<f64> = std::iter::once(self.now().0).chain(values.iter().copied()).collect();
        let all = self.moved.without(|| group.all_gather(&Tensor::from_slice(&row).to_device(self.meeting))?.wait())?;
        let all: Vec<f64> = to_host(&all)?;
        Ok(all.chunks_exact(row.len()).map(<[f64]>::to_vec).collect())
    }

    /// Records the spans of a pass that was priced as a whole, and moves a virtual clock to its end.
    pub(super) fn record_pass(&self, spans: impl IntoIterator<Item = (Activity, Seconds, Seconds)>, end: Seconds) {
        for (activity, start, end) in spans {
            self.note_span(activity, [start, end], self.priced(activity));
            // Of a transfer counts what tasks wait for it.
            if activity.stream() != Stream::Copy {
                self.note_phase(activity.phase(), start, end);
            }
        }
        self.now.set(end);
    }

    /// Under a virtual clock: what the waits for an activity of this part have moved; nothing of transfers beside exchanges, which may
    /// begin in the part before and end in another than their price has.
    fn priced(&self, activity: Activity) -> Vec<Message> {
        if activity.stream() == Stream::Copy {
            return Vec::new();
        }
        let here = |(of, part, _): &mut Marked| (*of, *part) == (Some(activity), self.part.get());
        self.unpriced.borrow_mut().extract_if(.., here).flat_map(|(_, _, moved)| moved).collect()
    }

    fn push(&self, activity: Activity, [start, end]: [Seconds; 2], moved: Vec<Message>) {
        self.note_span(activity, [start, end], moved);
        self.note_phase(activity.phase(), start, end);
    }

    fn note_span(&self, activity: Activity, [start, end]: [Seconds; 2], moved: Vec<Message>) {
        if end > start {
            let (rank, (work, block)) = (self.rank, self.part.get());
            self.spans.borrow_mut().push((Span { rank, activity, block, work, start, end }, moved));
        }
    }

    fn note_phase(&self, phase: Phase, start: Seconds, end: Seconds) {
        if end > start {
            self.phases.borrow_mut().push((phase, start, end));
        }
    }

    /// The spans of the iteration by start with what each moved, and where the time until `end` went.
    pub fn finish(&self, end: Seconds) -> (Vec<(Span, Vec<Message>)>, Ledger) {
        for ((activity, part, moved), start, end) in self.marks.iter().flat_map(Marks::read) {
            self.part.set(part);
            match activity {
                Some(activity) => self.push(activity, [start, end], moved),
                None => self.phases.borrow_mut().push((Phase::Bubble, start, end)),
            }
        }
        let mut spans = self.spans.take();
        spans.sort_by(|(a, _), (b, _)| a.start.0.total_cmp(&b.start.0));
        (spans, ledger(&self.phases.take(), end))
    }
}

/// Time per phase. Every moment up to `end` counts once, for the activity that comes first in the program, as the simulator
/// books it; a moment without an activity is waiting.
fn ledger(phases: &[(Phase, Seconds, Seconds)], end: Seconds) -> Ledger {
    let mut ledger = Ledger::default();
    let mut covered = Seconds::ZERO;
    for &(phase, start, end) in phases {
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

/// Whether it is the host that works, wherever the device is.
fn is_of_host(activity: Activity) -> bool {
    matches!(activity, Activity::Host | Activity::Op(Op::Decide { .. }))
}

/// The host waits for the device.
pub fn synchronize(device: Device) {
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

    const EACH: Measures = &[Measure::Alone, Measure::Issue, Measure::Queued];

    /// What each measure of `work` comes to, one iteration each.
    fn each(timer: &Timer, work: impl Fn()) -> [Seconds; 3] {
        [(); 3].map(|()| {
            timer.start();
            timer.compute(Activity::Block, &work);
            timer.now()
        })
    }

    #[test]
    fn on_a_cpu_nothing_is_issued() {
        let work = || drop(std::hint::black_box((0..100_000u64).map(|i| i.wrapping_mul(i)).collect::<Vec<_>>()));
        let [alone, issue, queued] = each(&Timer::new(0, Some(Arc::default())).measuring(EACH), work);
        assert!(alone > Seconds::ZERO && queued > Seconds::ZERO, "{alone:?} {queued:?}");
        assert_eq!(issue, Seconds::ZERO);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn on_a_gpu_work_in_front_hides_what_the_host_takes() {
        let device = Device::Cuda(0);
        crate::cuda::load().unwrap();
        let timer = Timer::new(0, Some(Arc::default())).measuring(EACH).on(device);
        let small = Tensor::ones([16], (tch::Kind::Float, device));
        let large = Tensor::ones([8192, 8192], (tch::Kind::BFloat16, device));
        let launches = || (0..300).for_each(|_| drop(&small + 1.0));
        let product = || drop(large.matmul(&large));
        for work in [&launches as &dyn Fn(), &product] {
            each(&timer, work);
        }
        let [alone, issue, queued] = each(&timer, launches);
        assert!(issue < alone * 1.1 && issue > alone * 0.7 && queued < alone * 0.8, "{alone:?} {issue:?} {queued:?}");
        // Memory that other work has taken since is found before it counts.
        each(&timer, product);
        let [alone, issue, queued] = each(&timer, product);
        assert!(issue < alone * 0.3 && queued > alone * 0.7 && queued < alone * 1.3, "{alone:?} {issue:?} {queued:?}");
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
