//! Ranks as processes with a GPU each: collectives by NCCL, control by TCP.
//!
//! Every group has a communicator of NCCL and a stream of its own, beside libtorch's. An operation waits, on the GPU, for
//! what libtorch was given before it; after [`Pending::wait`], libtorch's stream waits for the operation. The host waits in
//! neither. What an operation reads and writes is kept until libtorch's stream is behind it, also when the pending
//! operation is dropped.
//!
//! NCCL itself waits for a dead rank forever. So a watchdog thread looks at every operation under way: when a rank dies
//! (which the TCP connections tell at once), when NCCL reports an error, or when an operation takes longer than the timeout,
//! it aborts all communicators; whoever waits for the GPU then goes on, and the next call of this module tells what happened.
//!
//! NCCL is opened by this module and not by cudarc, which does not look for `libnccl.so.2`, the one name that installed
//! PyTorchs have; types are cudarc's.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{cudaStream_t, ncclComm, ncclComm_t, ncclDataType_t, ncclUniqueId};
use libloading::Library;
use tch::{Device, Kind, Tensor, no_grad};

use super::exchange::Exchange;
use super::{CommError, CommFailure, Communicator, Operation, Pending, check_counts};
use crate::cuda::{self, CudaError, Event, Gpu, Stream};

/// Between two looks of the watchdog.
const WATCH: Duration = Duration::from_millis(20);
/// NCCL's sum.
const SUM: c_int = 0;
/// What NCCL's calls return when all is well, also while a call goes on in the background.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// A group of ranks, each with its GPU.
pub struct Nccl {
    /// The same group over TCP: hands out identities, meets at barriers, knows who died.
    control: Exchange,
    shared: Arc<Shared>,
    group: Arc<GroupComm>,
}

/// One group's communicator; NCCL frees it when it is destroyed or aborted, which happens once.
struct GroupComm {
    api: &'static Api,
    raw: AtomicPtr<ncclComm>,
    stream: Stream,
}

/// What all groups of this process share.
struct Shared {
    gpu: Gpu,
    api: &'static Api,
    default_stream: Stream,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    groups: Vec<Weak<GroupComm>>,
    under_way: Vec<Arc<Flight>>,
    /// The first failure: after it, nothing works any more.
    failure: Option<CommError>,
}

/// An operation under way.
struct Flight {
    done: Event,
    /// Whether `done` stands behind the operation yet.
    launched: AtomicBool,
    group: Arc<GroupComm>,
    rank: usize,
    operation: Operation,
    group_name: String,
    began: Instant,
}

impl Nccl {
    /// The world of `control`, over NCCL. All its ranks call this at the same time.
    ///
    /// # Errors
    /// What is missing on this machine, or the rank that did not come.
    pub fn world(control: Exchange, gpu: Gpu) -> Result<Self, CommError> {
        let error = |reason| error_of(&control, Operation::Broadcast, reason);
        let library = |reason: CudaError| error(CommFailure::Library(reason.to_string()));
        cuda::load().map_err(library)?;
        let api = api().map_err(|reason| error(CommFailure::Library(reason)))?;
        let shared = Arc::new(Shared {
            gpu,
            api,
            default_stream: Stream::default_of(gpu),
            timeout: control.timeout(),
            state: Mutex::default(),
        });
        let group = shared.join(&control)?;
        let (watched, first_death) = (Arc::downgrade(&shared), control.watch());
        let watch = move || watch(&watched, &*first_death);
        let started = thread::Builder::new().name("nccl watchdog".to_owned()).spawn(watch);
        started.map_err(|reason| error(CommFailure::Library(reason.to_string())))?;
        Ok(Self { control, shared, group })
    }

    fn device(&self) -> Device {
        Device::Cuda(self.shared.gpu.ordinal())
    }

    /// Puts an operation on the group's stream. `kept`: what it reads; `result`: what it writes and returns.
    fn launch(
        &self,
        operation: Operation,
        mut kept: Vec<Tensor>,
        result: Tensor,
        call: impl FnOnce(&Call<'_>) -> Result<(), String>,
    ) -> Result<Pending, CommError> {
        self.shared.check()?;
        let error = |reason| error_of(&self.control, operation, CommFailure::Library(reason));
        let cuda = |reason: CudaError| error(reason.to_string());
        let flight = Arc::new(Flight {
            done: Event::new(self.shared.gpu).map_err(cuda)?,
            launched: AtomicBool::new(false),
            group: self.group.clone(),
            rank: self.control.world_rank(),
            operation,
            group_name: self.control.name().to_owned(),
            began: Instant::now(),
        });
        let ready = Event::new(self.shared.gpu).map_err(cuda)?;
        ready.record(&self.shared.default_stream).map_err(cuda)?;
        self.group.stream.wait(&ready).map_err(cuda)?;
        // Known to the watchdog before the call, which may itself wait for another rank when two first meet.
        self.shared.lock().under_way.push(flight.clone());
        let raw = self.group.raw.load(Ordering::SeqCst);
        let stream = self.group.stream.raw().cast();
        let called = call(&Call { api: self.shared.api, raw, stream });
        let recorded = flight.done.record(&self.group.stream).map_err(cuda);
        flight.launched.store(true, Ordering::SeqCst);
        kept.push(result.shallow_clone());
        let guard = Guard { flight, shared: self.shared.clone(), kept };
        // Only now: what was launched before an error still reads the tensors.
        if let Err(reason) = called {
            self.shared.check()?;
            return Err(error(reason));
        }
        recorded?;
        Ok(Pending::new(move || {
            let shared = guard.shared.clone();
            drop(guard);
            shared.check()?;
            Ok(result)
        }))
    }

    /// An operation that has nothing to do.
    fn nothing(&self, result: Tensor) -> Result<Pending, CommError> {
        self.shared.check()?;
        Ok(Pending::new(move || Ok(result)))
    }

    /// The tensor as NCCL takes it: on this GPU, without gaps, of a kind that NCCL knows.
    fn prepare(&self, operation: Operation, tensor: &Tensor) -> Result<(Tensor, ncclDataType_t), CommError> {
        let mismatch = |found: String| error_of(&self.control, operation, CommFailure::Mismatch(found));
        if tensor.device() != self.device() {
            return Err(mismatch(format!("a tensor on {:?}: expected {:?}", tensor.device(), self.device())));
        }
        let kind = data_type(tensor.kind()).ok_or_else(|| mismatch(format!("{:?} cannot be sent", tensor.kind())))?;
        Ok((tensor.detach().contiguous(), kind))
    }

    fn check_member(&self, operation: Operation, member: usize, may_be_self: bool) -> Result<(), CommError> {
        let found = match member {
            member if member >= self.size() => format!("member {member} of a group of {}", self.size()),
            member if member == self.rank() && !may_be_self => "a rank does not send to itself".to_owned(),
            _ => return Ok(()),
        };
        Err(error_of(&self.control, operation, CommFailure::Mismatch(found)))
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Pending, CommError> {
        let operation = Operation::AllToAll;
        let (rank, size) = (self.rank(), self.size());
        check_counts(rows, sent, received, rank, size).map_err(|reason| error_of(&self.control, operation, reason))?;
        let (rows, kind) = self.prepare(operation, rows)?;
        let mut shape = rows.size();
        shape[0] = received.iter().sum::<usize>() as i64;
        let result = Tensor::empty(&shape, (rows.kind(), rows.device()));
        let row: usize = shape[1..].iter().map(|extent| *extent as usize).product();
        let starts = |counts: &[usize]| counts[..rank].iter().sum::<usize>() as i64;
        let own = sent[rank] as i64;
        no_grad(|| result.narrow(0, starts(received), own).copy_(&rows.narrow(0, starts(sent), own)));
        let parts = |counts: &[usize]| parts(counts, row, rank);
        let (outgoing, incoming) = (parts(sent), parts(received));
        if outgoing.is_empty() && incoming.is_empty() {
            return self.nothing(result);
        }
        let bytes = rows.kind().elt_size_in_bytes();
        let (from, to) = (rows.data_ptr().cast::<u8>(), result.data_ptr().cast::<u8>());
        self.launch(operation, vec![rows], result, |call| {
            call.group(|| {
                for part in &outgoing {
                    call.send(from.wrapping_add(part.start * bytes).cast(), part.elements, kind, part.peer)?;
                }
                for part in &incoming {
                    call.receive(to.wrapping_add(part.start * bytes).cast(), part.elements, kind, part.peer)?;
                }
                Ok(())
            })
        })
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let (own, kind) = self.prepare(Operation::AllReduce, tensor)?;
        let result = own.empty_like();
        if own.numel() == 0 {
            return self.nothing(result);
        }
        let (from, to, elements) = (own.data_ptr(), result.data_ptr(), own.numel());
        self.launch(Operation::AllReduce, vec![own], result, |call| {
            // SAFETY: both hold `elements`, and are kept until the operation is over.
            call.check(unsafe {
                (call.api.ncclAllReduce)(from, to, elements, kind as c_int, SUM, call.raw, call.stream)
            })
        })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let (own, kind) = self.prepare(Operation::AllGather, tensor)?;
        let shape = [&[self.size() as i64], own.size().as_slice()].concat();
        let result = Tensor::empty(&shape, (own.kind(), own.device()));
        if own.numel() == 0 {
            return self.nothing(result);
        }
        let (from, to, elements) = (own.data_ptr(), result.data_ptr(), own.numel());
        self.launch(Operation::AllGather, vec![own], result, |call| {
            // SAFETY: the result holds `elements` of each member; both are kept until the operation is over.
            call.check(unsafe { (call.api.ncclAllGather)(from, to, elements, kind as c_int, call.raw, call.stream) })
        })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        self.check_member(Operation::Broadcast, root, true)?;
        let (own, kind) = self.prepare(Operation::Broadcast, tensor)?;
        let result = if root == self.rank() { own.shallow_clone() } else { own.empty_like() };
        if own.numel() == 0 {
            return self.nothing(result);
        }
        let (from, to, elements) = (own.data_ptr(), result.data_ptr(), own.numel());
        self.launch(Operation::Broadcast, vec![own], result, |call| {
            let (kind, root) = (kind as c_int, root as c_int);
            // SAFETY: both hold `elements`, and are kept until the operation is over.
            call.check(unsafe { (call.api.ncclBroadcast)(from, to, elements, kind, root, call.raw, call.stream) })
        })
    }

    fn reduce(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        self.check_member(Operation::Reduce, root, true)?;
        let (own, kind) = self.prepare(Operation::Reduce, tensor)?;
        let result = if root == self.rank() { own.empty_like() } else { own.shallow_clone() };
        if own.numel() == 0 {
            return self.nothing(result);
        }
        let to = if root == self.rank() { result.data_ptr() } else { ptr::null_mut() };
        let (from, elements) = (own.data_ptr(), own.numel());
        self.launch(Operation::Reduce, vec![own], result, |call| {
            let (kind, root) = (kind as c_int, root as c_int);
            // SAFETY: both hold `elements`, and are kept until the operation is over; only the root's is written.
            call.check(unsafe { (call.api.ncclReduce)(from, to, elements, kind, SUM, root, call.raw, call.stream) })
        })
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Pending, CommError> {
        self.check_member(Operation::SendReceive, to, false)?;
        let (own, kind) = self.prepare(Operation::SendReceive, tensor)?;
        if own.numel() == 0 {
            return self.nothing(own);
        }
        let (from, elements) = (own.data_ptr(), own.numel());
        self.launch(Operation::SendReceive, Vec::new(), own, |call| call.send(from, elements, kind, to))
    }

    fn receive(&self, shape: &[i64], kind: Kind, from: usize) -> Result<Pending, CommError> {
        self.check_member(Operation::SendReceive, from, false)?;
        let result = Tensor::empty(shape, (kind, self.device()));
        let (result, kind) = self.prepare(Operation::SendReceive, &result)?;
        if result.numel() == 0 {
            return self.nothing(result);
        }
        let (to, elements) = (result.data_ptr(), result.numel());
        self.launch(Operation::SendReceive, Vec::new(), result, |call| call.receive(to, elements, kind, from))
    }

    /// Over TCP: the hosts meet; their GPUs may still be at work.
    fn barrier(&self) -> Result<(), CommError> {
        self.shared.check()?;
        self.control.barrier()?;
        self.shared.check()
    }

    fn split(&self, name: &str, groups: &[Vec<usize>]) -> Result<Box<dyn Communicator>, CommError> {
        self.shared.check()?;
        let control = self.control.part(name, groups)?;
        let group = self.shared.join(&control)?;
        Ok(Box::new(Self { control, shared: self.shared.clone(), group }))
    }

    fn fail(&self, how: &str) {
        self.control.fail(how);
        let reason = CommFailure::Died { rank: self.control.world_rank(), how: how.to_owned() };
        self.shared.abort(error_of(&self.control, Operation::Barrier, reason));
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if thread::panicking() {
            let how = "its thread panicked".to_owned();
            let reason = CommFailure::Died { rank: self.control.world_rank(), how };
            self.shared.abort(error_of(&self.control, Operation::Barrier, reason));
        }
        self.shared.lock().groups.retain(|group| group.strong_count() > 0);
    }
}

impl Shared {
    /// The communicator of the group of `control`, under an identity that its first member makes.
    fn join(&self, control: &Exchange) -> Result<Arc<GroupComm>, CommError> {
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
        for (to, from) in id.internal.iter_mut().zip(bytes) {
            *to = from as c_char;
        }
        let stream = Stream::new(self.gpu).map_err(cuda)?;
        let raw = self.init(control, id)?;
        let group = Arc::new(GroupComm { api: self.api, raw: AtomicPtr::new(raw), stream });
        self.lock().groups.push(Arc::downgrade(&group));
        Ok(group)
    }

    /// Makes the communicator, in a thread of its own: NCCL waits there for a member that died on the way for as long as the
    /// process lives, and cannot be told to stop. Then the thread is left behind.
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
            // Nobody listens any more when the wait was given up.
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
                    return Err(library("the thread that meets the others died".to_owned()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some((rank, how)) = first_death() {
                return Err(error(CommFailure::Died { rank, how }));
            }
            if began.elapsed() > self.timeout {
                return Err(library(format!("the members did not meet within {:?}", self.timeout)));
            }
        }
    }

    /// The first failure, if there was one.
    fn check(&self) -> Result<(), CommError> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Notes a failure and ends all that runs on the GPU for the sake of other ranks.
    fn abort(&self, failure: CommError) {
        let mut state = self.lock();
        state.failure.get_or_insert(failure);
        let groups: Vec<_> = state.groups.iter().filter_map(Weak::upgrade).collect();
        state.under_way.clear();
        drop(state);
        for group in groups {
            group.end(self.api.ncclCommAbort);
        }
    }

    /// What has failed, if anything. Without an operation under way, a death is left to the next call over TCP.
    fn look(&self, first_death: &dyn Fn() -> Option<(usize, String)>) -> Option<CommError> {
        let mut state = self.lock();
        let mut failure = None;
        state.under_way.retain(|flight| match flight.state(self.timeout) {
            FlightState::Over => false,
            FlightState::UnderWay => true,
            FlightState::Failed(reason) => {
                failure.get_or_insert_with(|| flight.error(reason));
                true
            }
        });
        let oldest = state.under_way.first()?;
        let death = first_death().map(|(rank, how)| oldest.error(CommFailure::Died { rank, how }));
        death.or(failure)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watchdog: looks until the last group is gone or something fails.
fn watch(shared: &Weak<Shared>, first_death: &dyn Fn() -> Option<(usize, String)>) {
    loop {
        thread::sleep(WATCH);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        if let Some(failure) = shared.look(first_death) {
            shared.abort(failure);
            return;
        }
    }
}

enum FlightState {
    Over,
    UnderWay,
    Failed(CommFailure),
}

impl Flight {
    fn state(&self, timeout: Duration) -> FlightState {
        if self.launched.load(Ordering::SeqCst) {
            match self.done.is_reached() {
                Ok(true) => return FlightState::Over,
                Ok(false) => {}
                Err(error) => return FlightState::Failed(CommFailure::Library(error.to_string())),
            }
        }
        if let Some(error) = self.group.asynchronous_error() {
            return FlightState::Failed(CommFailure::Library(error));
        }
        if self.began.elapsed() > timeout {
            let found = format!("not over after {timeout:?}: a rank did not come, or the network is stuck");
            return FlightState::Failed(CommFailure::Library(found));
        }
        FlightState::UnderWay
    }

    fn error(&self, reason: CommFailure) -> CommError {
        CommError { rank: self.rank, collective: self.operation.name(), group: self.group_name.clone(), reason }
    }
}

impl GroupComm {
    fn asynchronous_error(&self) -> Option<String> {
        let raw = self.raw.load(Ordering::SeqCst);
        if raw.is_null() {
            return None;
        }
        let mut status = SUCCESS;
        // SAFETY: the communicator exists; one number is written.
        let asked = unsafe { (self.api.ncclCommGetAsyncError)(raw, &raw mut status) };
        self.api.check(asked).and_then(|()| self.api.check(status)).err()
    }

    /// Ends the communicator, once.
    fn end(&self, how: unsafe extern "C" fn(ncclComm_t) -> c_int) {
        let raw = self.raw.swap(ptr::null_mut(), Ordering::SeqCst);
        if !raw.is_null() {
            // SAFETY: it was made by NCCL and not ended before. Nothing can be done about an error.
            let _ = unsafe { how(raw) };
        }
    }
}

impl Drop for GroupComm {
    fn drop(&mut self) {
        let how = if thread::panicking() { self.api.ncclCommAbort } else { self.api.ncclCommDestroy };
        self.end(how);
    }
}

/// Keeps an operation's tensors until libtorch's stream is behind it: only then may their memory be used again.
struct Guard {
    flight: Arc<Flight>,
    shared: Arc<Shared>,
    kept: Vec<Tensor>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.shared.default_stream.wait(&self.flight.done).is_err() {
            // The GPU is lost; whether it still writes is unknown, so the memory is never given back.
            std::mem::forget(std::mem::take(&mut self.kept));
        }
    }
}

/// Rows for one member or from it, as elements of the whole.
struct Part {
    peer: usize,
    start: usize,
    elements: usize,
}

/// The parts of all other members that are not empty.
fn parts(counts: &[usize], row: usize, rank: usize) -> Vec<Part> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(counts.len());
    for (peer, count) in counts.iter().enumerate() {
        let elements = count * row;
        if elements > 0 && peer != rank {
            parts.push(Part { peer, start, elements });
        }
        start += elements;
    }
    parts
}

fn data_type(kind: Kind) -> Option<ncclDataType_t> {
    Some(match kind {
        Kind::Float => ncclDataType_t::ncclFloat32,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        Kind::Half => ncclDataType_t::ncclFloat16,
        Kind::Double => ncclDataType_t::ncclFloat64,
        Kind::Int64 => ncclDataType_t::ncclInt64,
        Kind::Int => ncclDataType_t::ncclInt32,
        Kind::Uint8 => ncclDataType_t::ncclUint8,
        Kind::Int8 => ncclDataType_t::ncclInt8,
        _ => return None,
    })
}

fn error_of(control: &Exchange, operation: Operation, reason: CommFailure) -> CommError {
    let (rank, group) = (control.world_rank(), control.name().to_owned());
    CommError { rank, collective: operation.name(), group, reason }
}

/// Where a call goes.
struct Call<'a> {
    api: &'a Api,
    raw: ncclComm_t,
    stream: cudaStream_t,
}

impl Call<'_> {
    fn check(&self, status: c_int) -> Result<(), String> {
        self.api.check(status)
    }

    /// Several sends and receives at once.
    fn group(&self, calls: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
        // SAFETY: opens a group, which is closed below.
        self.check(unsafe { (self.api.ncclGroupStart)() })?;
        let called = calls();
        // SAFETY: closes the group opened above.
        let closed = self.check(unsafe { (self.api.ncclGroupEnd)() });
        called.and(closed)
    }

    fn send(&self, from: *const c_void, elements: usize, kind: ncclDataType_t, to: usize) -> Result<(), String> {
        let (kind, to) = (kind as c_int, to as c_int);
        // SAFETY: callers pass `elements` on this GPU, which are kept until the operation is over.
        self.check(unsafe { (self.api.ncclSend)(from, elements, kind, to, self.raw, self.stream) })
    }

    fn receive(&self, to: *mut c_void, elements: usize, kind: ncclDataType_t, from: usize) -> Result<(), String> {
        let (kind, from) = (kind as c_int, from as c_int);
        // SAFETY: callers pass room for `elements` on this GPU, which is kept until the operation is over.
        self.check(unsafe { (self.api.ncclRecv)(to, elements, kind, from, self.raw, self.stream) })
    }
}

/// Version of NCCL, as `2.28.9`.
///
/// # Errors
/// When it is not found.
pub fn version() -> Result<String, String> {
    let api = api()?;
    let mut version = 0;
    // SAFETY: writes one number.
    api.check(unsafe { (api.ncclGetVersion)(&raw mut version) })?;
    Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100))
}

/// NCCL, opened once.
fn api() -> Result<&'static Api, String> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    API.get_or_init(Api::open).as_ref().map_err(Clone::clone)
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions, as its header states them; enumerations as the numbers that they are.
        #[allow(non_snake_case, reason = "NCCL's names")]
        struct Api {
            $($name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Api {
            fn of(library: &Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the functions have these arguments in every 2.x.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }?,)*
                })
            }
        }
    };
}

functions! {
    ncclGetVersion(*mut c_int) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetUniqueId(*mut ncclUniqueId) -> c_int;
    ncclCommInitRank(*mut ncclComm_t, c_int, ncclUniqueId, c_int) -> c_int;
    ncclCommDestroy(ncclComm_t) -> c_int;
    ncclCommAbort(ncclComm_t) -> c_int;
    ncclCommGetAsyncError(ncclComm_t, *mut c_int) -> c_int;
    ncclGroupStart() -> c_int;
    ncclGroupEnd() -> c_int;
    ncclSend(*const c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclRecv(*mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
    ncclReduce(*const c_void, *mut c_void, usize, c_int, c_int, c_int, ncclComm_t, cudaStream_t) -> c_int;
}

impl Api {
    /// Opens NCCL: once libtorch's GPU half is loaded, its own NCCL has that name or is part of it.
    fn open() -> Result<Self, String> {
        let mut reasons = Vec::new();
        for name in ["libnccl.so.2", "libnccl.so", "libtorch_cuda.so"] {
            // SAFETY: what runs when it is opened is NCCL's own set-up.
            let opened = unsafe { Library::new(name) };
            match opened.and_then(|library| Ok((Self::of(&library)?, library))) {
                Ok((api, library)) => {
                    // In use until the end.
                    std::mem::forget(library);
                    return Ok(api);
                }
                Err(error) => reasons.push(cuda::loader_message(&error)),
            }
        }
        Err(format!("NCCL is not found: {}", reasons.join("; ")))
    }

    fn check(&self, status: c_int) -> Result<(), String> {
        if status == SUCCESS || status == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: returns a text that lasts, for any number.
        let text = unsafe { CStr::from_ptr((self.ncclGetErrorString)(status)) };
        Err(format!("NCCL: {}", text.to_string_lossy()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{preflight, selfcheck, tcp};
    use super::*;

    #[test]
    fn one_rank_on_a_gpu_passes_the_self_check() {
        let Ok(gpu) = cuda::load().and_then(|_| Gpu::open(0)) else {
            eprintln!("skipped: no GPU");
            return;
        };
        let control = tcp::world(0, 1, ("127.0.0.1", 0), Duration::from_secs(20)).unwrap();
        let comm = Nccl::world(control, gpu).unwrap();
        preflight(&comm, Device::Cuda(0)).unwrap();
        selfcheck(&comm, Device::Cuda(0)).unwrap();
        comm.fail("on purpose");
        let error = comm.all_reduce(&Tensor::ones([2], (Kind::Float, Device::Cuda(0)))).map(drop).unwrap_err();
        assert!(error.to_string().contains("rank 0 died: on purpose"), "{error}");
    }

    #[test]
    fn without_nccl_the_error_says_so() {
        if let Err(error) = version() {
            assert!(error.starts_with("NCCL is not found: libnccl.so.2"), "{error}");
        }
    }

    #[test]
    fn parts_skip_empty_pairs_and_the_rank_itself() {
        let parts = parts(&[2, 0, 5, 1], 3, 2);
        let found: Vec<_> = parts.iter().map(|part| (part.peer, part.start, part.elements)).collect();
        assert_eq!(found, [(0, 0, 6), (3, 21, 3)]);
    }
}
