//! Ranks as threads of one process: a tensor is copied once, so that the sender can go on, and then passed on without copies.
//!
//! Also for several ranks on one GPU: all threads use its default stream, so the work that one enqueues before it sends a
//! tensor comes before the work that another enqueues after it has received it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use super::exchange::{Exchange, Transport};
use super::mailbox::{Death, Key, Mailbox, Parcel};
use super::{CommFailure, Communicator};

/// Why a rank has no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure<E> {
    Error(E),
    /// It panicked, with this message.
    Panic(String),
}

/// Runs `rank` once for each of `size` ranks, each in a thread, and returns what each returned. A rank that fails or
/// panics ends the others at their next wait.
pub fn run<T: Send, E: Display + Send>(
    size: usize,
    timeout: Duration,
    rank: impl Fn(&Exchange) -> Result<T, E> + Sync,
) -> Vec<Result<T, Failure<E>>> {
    run_in_turns(size, timeout, None, rank)
}

/// The same where ranks are timed in `turns` on a device that they share: what collectives do with tensors there takes turns, too, or it
/// would count as somebody else's.
pub fn run_in_turns<T: Send, E: Display + Send>(
    size: usize,
    timeout: Duration,
    turns: Option<Arc<Mutex<()>>>,
    rank: impl Fn(&Exchange) -> Result<T, E> + Sync,
) -> Vec<Result<T, Failure<E>>> {
    thread::scope(|scope| {
        let rank = &rank;
        let spawn = |member: Exchange| scope.spawn(move || guarded(&member, rank));
        let threads: Vec<_> = members(size, timeout, turns.as_ref()).into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| Err(Failure::Panic(message(&*panic))))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Runs one rank. If it fails or panics, the others learn why. Its panic becomes an error and is not printed.
pub fn guarded<C: Communicator + ?Sized, T, E: Display>(
    member: &C,
    rank: impl FnOnce(&C) -> Result<T, E>,
) -> Result<T, Failure<E>> {
    hush_guarded_panics();
    let before = GUARDED.replace(true);
    // The member outlives the panic, so that it can still report it.
    let ended = catch_unwind(AssertUnwindSafe(|| rank(member)));
    GUARDED.set(before);
    match ended {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => {
            member.fail(&error.to_string());
            Err(Failure::Error(error))
        }
        Err(panic) => {
            let message = message(&*panic);
            member.fail(&format!("panicked: {message}"));
            Err(Failure::Panic(message))
        }
    }
}

thread_local! {
    /// Whether [`guarded`] catches a panic of this thread.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last such panic began.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Replaces the hook that prints panics by one that leaves out those that [`guarded`] catches.
fn hush_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                return others(info);
            }
            // A place in another crate says nothing to a user.
            let place = info.location().filter(|place| Path::new(place.file()).is_relative());
            PLACE.set(place.map(ToString::to_string));
        }));
    });
}

/// The members of a world of `size` threads; each waits at most `timeout` for another. A member counts as dead when a panicking
/// thread drops its last communicator.
pub fn world(size: usize, timeout: Duration) -> Vec<Exchange> {
    members(size, timeout, None)
}

fn members(size: usize, timeout: Duration, turns: Option<&Arc<Mutex<()>>>) -> Vec<Exchange> {
    let mailboxes: Arc<[Mailbox]> = (0..size).map(|_| Mailbox::default()).collect();
    let thread = |rank| Thread { rank, mailboxes: mailboxes.clone(), turns: turns.cloned() };
    (0..size).map(|rank| Exchange::world(Arc::new(thread(rank)), size, timeout)).collect()
}

struct Thread {
    rank: usize,
    mailboxes: Arc<[Mailbox]>,
    turns: Option<Arc<Mutex<()>>>,
}

impl Transport for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn mailbox(&self) -> &Mailbox {
        &self.mailboxes[self.rank]
    }

    fn post(&self, to: usize, key: Key, parcel: Parcel) -> Result<(), CommFailure> {
        self.mailboxes[to].post(key, parcel);
        Ok(())
    }

    fn announce(&self, death: &Death) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.note_death(death));
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // A turn that ended in a panic leaves nothing behind that could disturb the next one.
        self.turns.as_ref().map(|turns| turns.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        if thread::panicking() {
            self.announce(&Death { rank: self.rank, how: "its thread panicked".to_owned() });
        } else {
            self.mailboxes.iter().for_each(|mailbox| mailbox.note_leave(self.rank));
        }
    }
}

/// A panic's message in one line, without the place in libtorch's own code.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no message");
    let text = text.split("\\nException raised from").next().unwrap_or(text).replace("\\n", "\n");
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    match PLACE.take() {
        Some(place) => format!("{line} ({place})"),
        None => line,
    }
}
