//! Watches over operations under way: NCCL itself waits for a dead rank forever.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm, ncclComm_t, ncclUniqueId};
use tch::Tensor;

use super::api::{Api, SUCCESS};
use crate::comm::exchange::Exchange;
use crate::comm::keeper::Keeper;
use crate::comm::{CommError, CommFailure, Communicator, Operation};
use crate::cuda::{CudaError, Event, Gpu, Stream};
use crate::exit;
use crate::hash::fnv1a;

/// Between two looks of the watchdog.
const WATCH: Duration = Duration::from_millis(20);
/// How long the watchdogs of all ranks wait for each other once an operation of one took too long. Ranks that wait for the same one began
/// to wait within a step of each other.
pub(super) const ROLL_CALL: Duration = Duration::from_secs(3);

/// How long a call may take at least: the first of its kind in a group waits until NCCL has connected the members, which is no operation under
/// way yet. (Eight H200s were seen to take more than 5 s for all pairs.)
const CONNECTING: Duration = Duration::from_secs(60);

/// How long an abort waits for a call that another thread makes of the same communicator. NCCL ends a communicator under a call's feet, but a
/// call that waits for a dead rank is ended by nothing else.
const CALL: Duration = Duration::from_secs(1);

/// How long all communicators together are given to be aborted.
const ABORT: Duration = Duration::from_secs(2);

/// How long a process waits for others to end what it gives up.
const ENDING: Duration = Duration::from_secs(5);

/// One group's communicator, or one that is kept for a group; NCCL frees it when it is aborted, which happens once.
pub(super) struct GroupComm {
    pub(super) api: &'static Api,
    /// The hash of NCCL's own.
    identity: u64,
    raw: AtomicPtr<ncclComm>,
    /// Held by whoever calls NCCL.
    calling: Mutex<()>,
    pub(super) stream: Stream,
    /// For what runs beside an operation.
    pub(super) beside: Stream,
}

/// What the groups of this process share.
pub(super) struct Shared {
    pub(super) gpu: Gpu,
    pub(super) api: &'static Api,
    pub(super) default_stream: Stream,
    pub(super) timeout: Duration,
    pub(super) kept: Arc<Keeper<Arc<GroupComm>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: Vec<Weak<GroupComm>>,
    /// By start.
    under_way: Vec<Arc<Flight>>,
    /// What the GPU or NCCL said of an operation under way.
    reported: Option<CommError>,
    /// The first failure; every later call returns it.
    failure: Option<CommError>,
}

/// An operation under way.
pub(super) struct Flight {
    pub(super) done: Event,
    /// When the call returned: `done` is behind the operation on the stream then.
    launched: OnceLock<Instant>,
    group: Arc<GroupComm>,
    rank: usize,
    operation: Operation,
    group_name: String,
    /// When the call began.
    began: Instant,
}

impl Shared {
    pub(super) fn new(gpu: Gpu, api: &'static Api, timeout: Duration, kept: Arc<Keeper<Arc<GroupComm>>>) -> Self {
        Self { gpu, api, default_stream: Stream::default_of(gpu), timeout, kept, state: Mutex::default() }
    }

    /// Lets the watchdog look after an operation.
    pub(super) fn watch_over(&self, flight: Arc<Flight>) {
        self.lock().under_way.push(flight);
    }

    /// Leaves a group whose owner is done with it, and keeps its communicator for the next. Members meet over TCP, in the order of the
    /// program, in the thread of their owner, and lock nothing meanwhile: what all have left has nothing under way anywhere. Where one does
    /// not come, or anything has failed, nothing is kept.
    pub(super) fn leave(&self, control: &Exchange, group: &Arc<GroupComm>) {
        // Still under watch: an operation that never ends is aborted.
        let lost = group.stream.synchronize().err().map(|reason| reason.to_string());
        if let Some(reason) = lost.or_else(|| group.asynchronous_error()) {
            // The others must not keep what this rank does not.
            control.fail(&reason);
            self.note(error_of(control, Operation::Barrier, CommFailure::Library(reason)));
        }
        let all_leave = all_leave(self.check(), control);
        let (whole, over) = {
            let mut state = self.lock();
            state.groups.retain(|other| other.strong_count() > 0 && !ptr::eq(other.as_ptr(), Arc::as_ptr(group)));
            let of_group = |flight: &mut Arc<Flight>| Arc::ptr_eq(&flight.group, group);
            let over: Vec<_> = state.under_way.extract_if(.., of_group).collect();
            (all_leave && state.failure.is_none(), over)
        };
        drop(over);
        if whole {
            self.kept.keep(control, group.identity, group.clone());
        } else {
            group.abort();
            self.kept.fail();
        }
    }

    /// The communicator of the group of `control`: the one that all members have kept for it, or a new one.
    pub(super) fn join(&self, control: &Exchange) -> Result<Arc<GroupComm>, CommError> {
        let group = match self.kept.take(control)? {
            Some(kept) => kept,
            None => Arc::new(self.make(control)?),
        };
        self.lock().groups.push(Arc::downgrade(&group));
        Ok(group)
    }

    /// Makes a communicator under an identity that the first member makes.
    fn make(&self, control: &Exchange) -> Result<GroupComm, CommError> {
        let error = |reason| error_of(control, Operation::Split, CommFailure::Library(reason));
        let cuda = |reason: CudaError| error(reason.to_string());
        let mut id = ncclUniqueId { internal: [0; 128] };
        if control.rank() == 0 {
            // SAFETY: writes the identity.
            self.api.check(unsafe { (self.api.ncclGetUniqueId)(&raw mut id) }).map_err(error)?;
        }
        let bytes: Vec<u8> = id.internal.iter().map(|byte| *byte as u8).collect();
        let bytes = control.broadcast(&Tensor::from_slice(&bytes), 0)?.wait()?;
        let bytes = Vec::<u8>::try_from(bytes).map_err(|reason| error(reason.to_string()))?;
        let identity = fnv1a(&bytes);
        for (to, from) in id.internal.iter_mut().zip(bytes) {
            *to = from as c_char;
        }
        let [stream, beside] = [Stream::new(self.gpu), Stream::new(self.gpu)].map(|made| made.map_err(cuda));
        let raw = self.init(control, id)?;
        let (raw, calling) = (AtomicPtr::new(raw), Mutex::default());
        Ok(GroupComm { api: self.api, identity, raw, calling, stream: stream?, beside: beside? })
    }

    /// Initialises the communicator in a thread of its own: NCCL waits there for a member that died meanwhile as long as the
    /// process lives, and cannot be interrupted. Then the thread is abandoned.
    fn init(&self, control: &Exchange, id: ncclUniqueId) -> Result<ncclComm_t, CommError> {
        let error = |reason| error_of(control, Operation::Split, reason);
        let library = |reason: String| error(CommFailure::Library(reason));
        let (size, rank) = (control.size() as c_int, control.rank() as c_int);
        let (api, gpu, (made, ready)) = (self.api, self.gpu, mpsc::channel());
        let init = move || {
            // The runtime of this thread must be on this GPU.
            let entered = gpu.enter().map_err(|reason| reason.to_string());
            let status = entered.and_then(|()| {
                let mut raw: ncclComm_t = ptr::null_mut();
                // SAFETY: writes the communicator; all members call this, for all took part in the broadcast.
                api.check(unsafe { (api.ncclCommInitRank)(&raw mut raw, size, id, rank) })?;
                Ok(AtomicPtr::new(raw))
            });
            // Nobody listens any more after the timeout.
            let _ = made.send(status);
        };
        thread::Builder::new()
            .name("nccl init".to_owned())
            .spawn(init)
            .map_err(|reason| library(reason.to_string()))?;
        let (first_death, began) = (control.watch(), Instant::now());
        loop {
            match ready.recv_timeout(WATCH) {
                Ok(raw) => return Ok(raw.map_err(library)?.into_inner()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(library("the thread that initialises NCCL died".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some((rank, how)) = first_death() {
                return Err(error(CommFailure::Died { rank, how }));
            }
            if let Some(waited) = overdue(began.elapsed(), None, self.timeout) {
                return Err(library(format!("the members did not come within {waited:?}")));
            }
        }
    }

    /// The first failure, if there was one.
    pub(super) fn check(&self) -> Result<(), CommError> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Notes a failure, unless there was one.
    fn note(&self, failure: CommError) {
        self.lock().failure.get_or_insert(failure);
    }

    /// Notes a failure and aborts all communicators, in use and kept: whether all have ended in time.
    pub(super) fn abort(&self, failure: CommError) -> bool {
        self.note(failure);
        let mut state = self.lock();
        let groups: Vec<_> = state.groups.iter().filter_map(Weak::upgrade).collect();
        let under_way = std::mem::take(&mut state.under_way);
        drop(state);
        // All at once: what one frees waits for the kernels of all, which wait for their own abort.
        let ended = end_within(ABORT, groups, |group| group.abort());
        if ended {
            drop(under_way);
            self.kept.fail();
        } else {
            // To free their events may wait for what has not ended.
            std::mem::forget(under_way);
        }
        ended
    }

    /// Forgets the operations that are over, and notes what the GPU or NCCL says of others. Asks the driver, which may not answer while
    /// another thread waits for a GPU that is stuck.
    fn ask(&self) {
        let under_way = self.lock().under_way.clone();
        for flight in under_way {
            match flight.state() {
                FlightState::UnderWay => {}
                // Freed out of the lock.
                FlightState::Over => self.lock().under_way.retain(|other| !Arc::ptr_eq(other, &flight)),
                FlightState::Failed(reason) => drop(self.lock().reported.get_or_insert_with(|| flight.error(reason))),
            }
        }
    }

    /// What has failed, if anything, and how long was waited for it, if that is an operation that took too long. Without an operation under
    /// way, the next call over TCP reports a death. Asks no driver.
    fn look(&self, first_death: &dyn Fn() -> Option<(usize, String)>) -> Option<(CommError, Option<Duration>)> {
        let state = self.lock();
        let oldest = state.under_way.first()?;
        if let Some((rank, how)) = first_death() {
            return Some((oldest.error(CommFailure::Died { rank, how }), None));
        }
        if let Some(reported) = &state.reported {
            return Some((reported.clone(), None));
        }
        let waited = overdue(oldest.began.elapsed(), oldest.launched.get().map(Instant::elapsed), self.timeout)?;
        let stuck = format!("not over after {waited:?}, though all ranks are waiting: the network is stuck");
        Some((oldest.error(CommFailure::Library(stuck)), Some(waited)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watchdog: looks until the last group is gone or something has failed. At the `roll_call`, a group of all watchdogs over TCP, those
/// come whose rank waits for an operation that takes too long; a rank that hangs is not among them. Where NCCL does not end what is under
/// way, the process ends: whoever waits for the GPU waits forever.
pub(super) fn watch(
    shared: &Weak<Shared>,
    first_death: &dyn Fn() -> Option<(usize, String)>,
    roll_call: &dyn Communicator,
) {
    loop {
        thread::sleep(WATCH);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Some((mut failure, late)) = shared.look(first_death) {
            if let Some(waited) = late
                && let Err(error) = roll_call.barrier()
            {
                failure.reason = missed(error.reason, waited);
            }
            if !shared.abort(failure.clone()) {
                eprintln!("error: {failure}; NCCL does not end what is under way, so this process ends");
                exit::leave(1);
            }
            return;
        }
    }
}

/// Asks the GPU and NCCL about operations under way, until the last group is gone: in a thread of its own, for they may not answer.
pub(super) fn ask(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        shared.ask();
        drop(shared);
        thread::sleep(WATCH);
    }
}

/// How long an operation was waited for, if that is too long, whose call began and, if it has, returned so long ago.
fn overdue(called: Duration, launched: Option<Duration>, timeout: Duration) -> Option<Duration> {
    let (waited, patience) = launched.map_or((called, timeout.max(CONNECTING)), |launched| (launched, timeout));
    (waited > patience).then_some(patience)
}

/// Whether all members of a group come to leave it within its timeout; none is waited for once something is known to have failed.
fn all_leave(known: Result<(), CommError>, control: &Exchange) -> bool {
    known.is_ok() && control.barrier().is_ok()
}

/// Why an operation is not over after `waited`, where the roll call failed: because of ranks that did not come, or of what ended it, such
/// as a rank that died meanwhile.
fn missed(roll_call: CommFailure, waited: Duration) -> CommFailure {
    match roll_call {
        CommFailure::Late { ranks, .. } => CommFailure::Late { ranks, waited },
        other => other,
    }
}

enum FlightState {
    Over,
    UnderWay,
    Failed(CommFailure),
}

impl Flight {
    pub(super) fn new(
        shared: &Shared,
        group: &Arc<GroupComm>,
        control: &Exchange,
        operation: Operation,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            done: Event::new(shared.gpu)?,
            launched: OnceLock::new(),
            group: group.clone(),
            rank: control.world_rank(),
            operation,
            group_name: control.name().to_owned(),
            began: Instant::now(),
        })
    }

    /// The call has returned.
    pub(super) fn launched(&self) {
        let _ = self.launched.set(Instant::now());
    }

    fn state(&self) -> FlightState {
        if self.launched.get().is_some() {
            match self.done.is_reached() {
                Ok(true) => return FlightState::Over,
                Ok(false) => {}
                Err(error) => return FlightState::Failed(CommFailure::Library(error.to_string())),
            }
        }
        if let Some(error) = self.group.asynchronous_error() {
            return FlightState::Failed(CommFailure::Library(error));
        }
        FlightState::UnderWay
    }

    fn error(&self, reason: CommFailure) -> CommError {
        CommError { rank: self.rank, collective: self.operation.name(), group: self.group_name.clone(), reason }
    }
}

impl GroupComm {
    /// What NCCL says of it; nothing while another thread calls it or once it has been aborted.
    fn asynchronous_error(&self) -> Option<String> {
        let _calling = free_within(Duration::ZERO, &self.calling)?;
        let raw = self.raw.load(Ordering::SeqCst);
        if raw.is_null() {
            return None;
        }
        let mut status = SUCCESS;
        // SAFETY: the communicator exists, for it is aborted between two calls; one number is written.
        let asked = unsafe { (self.api.ncclCommGetAsyncError)(raw, &raw mut status) };
        self.api.check(asked).and_then(|()| self.api.check(status)).err()
    }

    /// Calls NCCL with it; none once it has been aborted.
    pub(super) fn call<T>(&self, call: impl FnOnce(ncclComm_t) -> T) -> Option<T> {
        let _calling = self.calling.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = self.raw.load(Ordering::SeqCst);
        (!raw.is_null()).then(|| call(raw))
    }

    /// Ends it, once, between two calls. NCCL waits there for members whose processes live until they end theirs, too.
    fn abort(&self) {
        let raw = self.raw.swap(ptr::null_mut(), Ordering::SeqCst);
        if !raw.is_null() {
            let _calling = free_within(CALL, &self.calling);
            // SAFETY: it was made by NCCL and taken once. Nothing can be done about an error.
            let _ = unsafe { (self.api.ncclCommAbort)(raw) };
        }
    }
}

/// The lock once it is free; none after so long.
fn free_within(patience: Duration, lock: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(free) => return Some(free),
            Err(TryLockError::Poisoned(free)) => return Some(free.into_inner()),
            Err(TryLockError::WouldBlock) if began.elapsed() > patience => return None,
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl Drop for GroupComm {
    /// Of a group that nobody left, or kept and given up.
    fn drop(&mut self) {
        self.abort();
    }
}

/// Ends communicators that nobody uses. All members give the same up about now, or have done so; for one that does not, nobody waits long.
pub(super) fn end(given_up: Vec<Arc<GroupComm>>) {
    end_within(ENDING, given_up, |group| group.abort());
}

/// Ends all at once: whether all have ended in time. What has not goes on in a thread of its own.
fn end_within<T: Send + 'static>(patience: Duration, given_up: Vec<T>, end: fn(T)) -> bool {
    let (running, ended) = mpsc::channel::<()>();
    for one in given_up {
        let running = running.clone();
        let end = move || {
            end(one);
            drop(running);
        };
        // Where there can be no thread, it is dropped here.
        let _ = thread::Builder::new().name("nccl end".to_owned()).spawn(end);
    }
    drop(running);
    // Nothing is ever sent: this returns early once no thread is left.
    ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
}

pub(super) fn error_of(control: &Exchange, operation: Operation, reason: CommFailure) -> CommError {
    let (rank, group) = (control.world_rank(), control.name().to_owned());
    CommError { rank, collective: operation.name(), group, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::threads;

    /// Whether each of two ranks finds that all leave, and how long it waits; rank 1 does as told before.
    fn leaving(patience: Duration, rank_1: fn(&Exchange) -> Option<bool>) -> [(bool, Duration); 2] {
        let ends = threads::run(2, patience, |control| {
            let began = Instant::now();
            let first = if control.rank() == 1 { rank_1(control) } else { None };
            let found = first.unwrap_or_else(|| all_leave(Ok(()), control));
            Ok::<_, CommError>((found, began.elapsed()))
        });
        <[_; 2]>::try_from(ends.into_iter().map(Result::unwrap).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_group_ends_when_all_leave_and_nobody_waits_for_one_that_does_not() {
        let long = Duration::from_secs(600);
        assert!(leaving(long, |_| None).iter().all(|(found, _)| *found));
        let dies = |control: &Exchange| {
            control.fail("on purpose");
            Some(false)
        };
        let [(found, waited), _] = leaving(long, dies);
        assert!(!found && waited < Duration::from_secs(60), "{waited:?}");
        let is_stuck = |_: &Exchange| {
            thread::sleep(Duration::from_secs(2));
            Some(false)
        };
        let [(found, waited), _] = leaving(Duration::from_millis(200), is_stuck);
        assert!(!found && waited < Duration::from_secs(1), "{waited:?}");
        let knows = |control: &Exchange| {
            let failed = error_of(control, Operation::Barrier, CommFailure::Library("on purpose".to_owned()));
            Some(all_leave(Err(failed), control))
        };
        let [_, (found, waited)] = leaving(Duration::from_secs(2), knows);
        assert!(!found && waited < Duration::from_secs(1), "{waited:?}");
    }

    #[test]
    fn an_operation_is_late_once_its_call_has_returned_or_members_have_had_time_to_connect() {
        let [four, five, thirty, sixty_one, long] = [4, 5, 30, 61, 600].map(Duration::from_secs);
        assert_eq!(overdue(thirty, None, five), None);
        assert_eq!(overdue(sixty_one, None, five), Some(CONNECTING));
        assert_eq!(overdue(thirty, Some(four), five), None);
        assert_eq!(overdue(sixty_one, Some(thirty), five), Some(five));
        assert_eq!(overdue(sixty_one, None, long), None);
    }

    #[test]
    fn an_abort_waits_for_a_call_but_not_forever() {
        let lock = Mutex::new(());
        assert!(free_within(Duration::ZERO, &lock).is_some());
        thread::scope(|scope| {
            let ((holds, held), lock) = (mpsc::channel(), &lock);
            scope.spawn(move || {
                let calling = lock.lock().unwrap();
                holds.send(()).unwrap();
                thread::sleep(Duration::from_millis(300));
                drop(calling);
            });
            held.recv().unwrap();
            assert!(free_within(Duration::from_millis(10), lock).is_none());
            assert!(free_within(Duration::from_secs(60), lock).is_some());
        });
    }

    #[test]
    fn what_is_given_up_ends_at_once_and_nobody_waits_for_what_does_not() {
        // Milliseconds until each ends.
        let ending = |patience: u64, all: &[u64]| {
            let began = Instant::now();
            let ended = Arc::new(Mutex::new(Vec::new()));
            let given_up = all.iter().map(|&one| (one, ended.clone())).collect();
            let end = |(one, ended): (u64, Arc<Mutex<Vec<u64>>>)| {
                thread::sleep(Duration::from_millis(one));
                ended.lock().unwrap().push(one);
            };
            let all = end_within(Duration::from_millis(patience), given_up, end);
            let ended = ended.lock().unwrap().clone();
            (all, ended, began.elapsed())
        };
        let (all, ended, waited) = ending(60_000, &[400, 0, 800]);
        assert!(all && ended == [0, 400, 800] && waited < Duration::from_secs(30), "{ended:?} {waited:?}");
        let (all, ended, waited) = ending(500, &[20_000, 0]);
        assert!(!all && ended == [0] && waited >= Duration::from_millis(500), "{ended:?} {waited:?}");
        assert!(waited < Duration::from_secs(10), "{waited:?}");
        let (all, _, waited) = ending(60_000, &[]);
        assert!(all && waited < Duration::from_secs(30));
    }

    #[test]
    fn a_roll_call_says_who_did_not_come_and_why() {
        let waited = Duration::from_secs(600);
        let late = missed(CommFailure::Late { ranks: vec![3], waited: ROLL_CALL }, waited);
        assert_eq!(late.to_string(), "rank 3 did not arrive within 600s");
        let died = CommFailure::Died { rank: 2, how: "its process ended".to_owned() };
        assert_eq!(missed(died, waited).to_string(), "rank 2 died: its process ended");
    }
}
