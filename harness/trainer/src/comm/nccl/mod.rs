//! Ranks as processes with a GPU each: collectives by NCCL, control by TCP.
//!
//! Every group of several ranks has an NCCL communicator and a stream of its own, beside libtorch's. On the GPU, an operation waits for the work
//! that libtorch was given before it; after [`Pending::wait`], libtorch's stream waits for the operation. The host waits in
//! neither case. The tensors that an operation reads and writes live until libtorch's stream is behind it, also when the
//! pending operation is dropped.
//!
//! NCCL itself waits for a dead rank forever. So a watchdog thread looks at every operation under way: when a rank dies
//! (which the TCP connections notice at once), when NCCL reports an error, or when an operation takes longer than the
//! timeout, it aborts all communicators, in the last case once all watchdogs have found out by TCP whose rank does not wait. Whoever
//! waits for the GPU then goes on, and the next call reports what happened. The watchdog itself asks neither the driver nor NCCL, as
//! another thread does: a watchdog that did was seen to get no answer any more while a rank was stopped. Where NCCL does not end what is under way, the process says what is
//! known and ends.
//!
//! To make a communicator takes a second or more, and its first operations as long again, in which NCCL connects peers. So a process
//! keeps those of groups that all members have left in order, for groups of the same name and members in its next world ([`Kept`]).

mod api;
mod watch;

use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::thread;

use cudarc::nccl::sys::ncclDataType_t;
use tch::{Device, Kind, Tensor, no_grad};

use self::api::{Call, SUM, api, data_type};
use self::watch::{Flight, GroupComm, ROLL_CALL, Shared, ask, end, error_of, watch};
use crate::comm::exchange::Exchange;
use crate::comm::keeper::Keeper;
use crate::comm::{CommError, CommFailure, Communicator, Operation, Part, Pending, check_counts, check_parts};
use crate::cuda::{self, CudaError, Event, Gpu};
use crate::exit;

pub use self::api::version;

/// The communicators that a process keeps between its worlds, none of which has an operation under way. They end with it, and nobody
/// waits long for another process then.
pub struct Kept(Arc<Keeper<Arc<GroupComm>>>);

impl Default for Kept {
    fn default() -> Self {
        Self(Arc::new(Keeper::new(end)))
    }
}

impl Kept {
    /// Ends all.
    pub fn give_up(&self) {
        self.0.release();
    }

    #[cfg(test)]
    pub fn identities(&self) -> Vec<u64> {
        self.0.identities()
    }
}

/// A group of ranks, each with its GPU.
pub struct Nccl {
    /// The same group over TCP: hands out identities, meets at barriers, knows who died.
    control: Exchange,
    shared: Arc<Shared>,
    group: Arc<GroupComm>,
}

impl Nccl {
    /// The world of `control`, over NCCL, whose groups take communicators from `kept` and leave theirs there. All its ranks call this at
    /// the same time, a process for one world at a time.
    ///
    /// # Errors
    /// What is missing on this machine, or the rank that did not come.
    pub fn world(control: Exchange, gpu: Gpu, kept: &Kept) -> Result<Self, CommError> {
        let error = |reason| error_of(&control, Operation::Broadcast, reason);
        let library = |reason: CudaError| error(CommFailure::Library(reason.to_string()));
        cuda::load().map_err(library)?;
        let api = api().map_err(|reason| error(CommFailure::Library(reason)))?;
        let shared = Arc::new(Shared::new(gpu, api, control.timeout(), kept.0.clone()));
        kept.0.begin();
        let group = shared.join(&control).inspect_err(|_| kept.0.fail())?;
        let (watched, first_death) = (Arc::downgrade(&shared), control.watch());
        let roll_call = control.part("roll call", &[(0..control.size()).collect()])?.with_timeout(ROLL_CALL);
        let asked = watched.clone();
        let watch = move || watch(&watched, &*first_death, &roll_call);
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let started = thread::Builder::new().name(name.to_owned()).spawn(run);
            started.map(drop).map_err(|reason| error(CommFailure::Library(reason.to_string())))
        };
        exit::at_once();
        start("nccl watchdog", Box::new(watch))?;
        start("nccl progress", Box::new(move || ask(&asked)))?;
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
        call: impl FnOnce(&Call) -> Result<(), String>,
    ) -> Result<Pending, CommError> {
        self.shared.check()?;
        let error = |reason| error_of(&self.control, operation, CommFailure::Library(reason));
        let cuda = |reason: CudaError| error(reason.to_string());
        let flight = Arc::new(Flight::new(&self.shared, &self.group, &self.control, operation).map_err(cuda)?);
        let ready = Event::new(self.shared.gpu).map_err(cuda)?;
        ready.record(&self.shared.default_stream).map_err(cuda)?;
        self.group.stream.wait(&ready).map_err(cuda)?;
        // Known to the watchdog before the call, which may itself wait for another rank when two first meet.
        self.shared.watch_over(flight.clone());
        let stream = self.group.stream.raw().cast();
        let called = self.group.call(|raw| call(&Call { api: self.shared.api, raw, stream }));
        let recorded = flight.done.record(&self.group.stream).map_err(cuda);
        flight.launched();
        kept.push(result.shallow_clone());
        let guard = Guard { flight, shared: self.shared.clone(), kept };
        // Only now: what was launched before an error still reads the tensors.
        if let Err(reason) = called.unwrap_or_else(|| Err("its communicator has ended".to_owned())) {
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

    /// The sum of `own` over members, into `result`, which may be `own`.
    fn sum(&self, own: Tensor, result: Tensor, kind: ncclDataType_t) -> Result<Pending, CommError> {
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

    /// Transfers `[sent, received]` one after the other: each in one group of calls, beside copies of what a rank has for itself.
    fn transfers(&self, [from, to]: [&Tensor; 2], rounds: &[[&[Part]; 2]]) -> Result<Pending, CommError> {
        let (operation, rank) = (Operation::Transfer, self.rank());
        for parts in rounds {
            check_parts([from, to], *parts, rank, self.size())
                .map_err(|reason| error_of(&self.control, operation, reason))?;
        }
        let result = Tensor::empty([0], (Kind::Float, self.device()));
        let filled = |part: &&Part| part.length > 0;
        if rounds.iter().flatten().copied().flatten().find(filled).is_none() {
            return self.nothing(result);
        }
        let (from, kind) = self.prepare(operation, from)?;
        let bytes = from.kind().elt_size_in_bytes();
        let (source, target) = (from.data_ptr().cast::<u8>(), to.data_ptr().cast::<u8>());
        let at = |base: *mut u8, part: &Part| base.wrapping_add(part.start * bytes);
        let own = |parts: &[Part]| -> Vec<Part> {
            parts.iter().filter(|part| part.member == rank && part.length > 0).copied().collect()
        };
        let GroupComm { stream, beside, .. } = &*self.group;
        let copies = |[sent, received]: [&[Part]; 2]| -> Result<(), CudaError> {
            beside.wait(&stream.mark()?)?;
            for (from, to) in own(sent).iter().zip(&own(received)) {
                // SAFETY: both parts are of tensors that are kept until the operation is over, and as long.
                unsafe { beside.copy(at(source, from), at(target, to), from.length * bytes)? };
            }
            Ok(())
        };
        self.launch(operation, vec![from, to.shallow_clone()], result, |call| {
            rounds.iter().try_for_each(|&[sent, received]| {
                let begun = copies([sent, received]).map_err(|error| error.to_string());
                let called = begun.and_then(|()| {
                    call.group(|| {
                        for part in sent.iter().filter(filled).filter(|part| part.member != rank) {
                            call.send(at(source, part).cast(), part.length, kind, part.member)?;
                        }
                        for part in received.iter().filter(filled).filter(|part| part.member != rank) {
                            call.receive(at(target, part).cast(), part.length, kind, part.member)?;
                        }
                        Ok(())
                    })
                });
                // Whatever was begun is over with the operation.
                let joined = beside.mark().and_then(|copied| stream.wait(&copied));
                called.and(joined.map_err(|error| error.to_string()))
            })
        })
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
        let mut own_result = result.narrow(0, starts(received), own);
        let own_rows = rows.narrow(0, starts(sent), own);
        let parts = |counts: &[usize]| rows_of(counts, row, rank);
        let (outgoing, incoming) = (parts(sent), parts(received));
        if outgoing.is_empty() && incoming.is_empty() {
            no_grad(|| own_result.copy_(&own_rows));
            return self.nothing(result);
        }
        let bytes = rows.kind().elt_size_in_bytes();
        let (from, to) = (rows.data_ptr().cast::<u8>(), result.data_ptr().cast::<u8>());
        let pending = self.launch(operation, vec![rows], result, |call| {
            call.group(|| {
                for part in &outgoing {
                    call.send(from.wrapping_add(part.start * bytes).cast(), part.elements, kind, part.peer)?;
                }
                for part in &incoming {
                    call.receive(to.wrapping_add(part.start * bytes).cast(), part.elements, kind, part.peer)?;
                }
                Ok(())
            })
        })?;
        // On libtorch's stream, beside what others send.
        no_grad(|| own_result.copy_(&own_rows));
        Ok(pending)
    }

    fn transfer(&self, from: &Tensor, sent: &[Part], to: &Tensor, received: &[Part]) -> Result<Pending, CommError> {
        self.transfers([from, to], &[[sent, received]])
    }

    fn relay(&self, of: &Tensor, rounds: &[[Vec<Part>; 2]]) -> Result<Pending, CommError> {
        let rounds: Vec<_> = rounds.iter().map(|[sent, received]| [&sent[..], &received[..]]).collect();
        self.transfers([of, of], &rounds)
    }

    fn sum_in_place(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let (own, kind) = self.prepare(Operation::AllReduce, tensor)?;
        if own.data_ptr() != tensor.data_ptr() {
            let gaps = CommFailure::Mismatch(format!("a tensor {:?} with gaps", tensor.size()));
            return Err(error_of(&self.control, Operation::AllReduce, gaps));
        }
        self.sum(own.shallow_clone(), own, kind)
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let (own, kind) = self.prepare(Operation::AllReduce, tensor)?;
        let result = own.empty_like();
        self.sum(own, result, kind)
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

    fn reduce_scatter(&self, rows: &Tensor) -> Result<Pending, CommError> {
        let (own, kind) = self.prepare(Operation::ReduceScatter, rows)?;
        if own.size().first() != Some(&(self.size() as i64)) {
            let found = format!("a tensor {:?}: expected a row of each of {} members", own.size(), self.size());
            return Err(error_of(&self.control, Operation::ReduceScatter, CommFailure::Mismatch(found)));
        }
        let result = own.narrow(0, 0, 1).empty_like();
        if own.numel() == 0 {
            return self.nothing(result);
        }
        let (from, to, elements) = (own.data_ptr(), result.data_ptr(), result.numel());
        self.launch(Operation::ReduceScatter, vec![own], result, |call| {
            // SAFETY: what is summed holds `elements` for each member; both are kept until the operation is over.
            call.check(unsafe {
                (call.api.ncclReduceScatter)(from, to, elements, kind as c_int, SUM, call.raw, call.stream)
            })
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
        // Alone, nothing leaves the GPU, and NCCL would take a third of a second to begin.
        if control.size() == 1 {
            return Ok(Box::new(control));
        }
        // Where this fails on one rank alone, its other groups do not wait for their members.
        let group = self.shared.join(&control).inspect_err(|error| _ = self.shared.abort(error.clone()))?;
        Ok(Box::new(Self { control, shared: self.shared.clone(), group }))
    }

    fn release_kept(&self) {
        self.shared.kept.release();
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
        self.shared.leave(&self.control, &self.group);
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
struct Rows {
    peer: usize,
    start: usize,
    elements: usize,
}

/// The rows of all other members that have some.
fn rows_of(counts: &[usize], row: usize, rank: usize) -> Vec<Rows> {
    let mut start = 0;
    let mut parts = Vec::with_capacity(counts.len());
    for (peer, count) in counts.iter().enumerate() {
        let elements = count * row;
        if elements > 0 && peer != rank {
            parts.push(Rows { peer, start, elements });
        }
        start += elements;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{preflight, selfcheck, tcp};
    use std::time::Duration;

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn one_rank_on_a_gpu_passes_the_self_check_in_every_world() {
        let gpu = cuda::load().and_then(|_| Gpu::open(0)).unwrap();
        let kept = Kept::default();
        let world = || {
            let control = tcp::world(0, 1, ("127.0.0.1", 0), Duration::from_secs(20)).unwrap();
            let comm = Nccl::world(control, gpu, &kept).unwrap();
            preflight(&comm, Device::Cuda(0)).unwrap();
            selfcheck(&comm, Device::Cuda(0)).unwrap();
            comm
        };
        drop(world());
        let first = kept.identities();
        assert_eq!(first.len(), 1);
        let comm = world();
        assert!(kept.identities().is_empty());
        drop(comm);
        assert_eq!(kept.identities(), first);
        let comm = world();
        comm.fail("on purpose");
        let error = comm.all_reduce(&Tensor::ones([2], (Kind::Float, Device::Cuda(0)))).map(drop).unwrap_err();
        assert!(error.to_string().contains("rank 0 died: on purpose"), "{error}");
        drop(comm);
        assert!(kept.identities().is_empty());
        drop(world());
        assert_ne!(kept.identities(), first);
    }

    #[test]
    fn nccl_has_a_version_or_is_not_found() {
        match version() {
            Ok(version) => assert_eq!(version.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3),
            Err(error) => assert!(error.starts_with("NCCL is not found: libnccl.so.2"), "{error}"),
        }
    }

    #[test]
    fn parts_skip_empty_pairs_and_the_rank_itself() {
        let parts = rows_of(&[2, 0, 5, 1], 3, 2);
        let found: Vec<_> = parts.iter().map(|part| (part.peer, part.start, part.elements)).collect();
        assert_eq!(found, [(0, 0, 6), (3, 21, 3)]);
    }
}
