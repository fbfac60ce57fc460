//! Ranks as threads of one process: tensors change hands without a copy beyond the one that lets the sender go on.
//!
//! Also for several ranks on one GPU: all threads use its default stream, so what one enqueues before handing over comes
//! before what another enqueues afterwards.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Once};
use std::thread;
use std::time::Duration;

use super::exchange::{Exchange, Transport};
use super::mailbox::{Death, Key, Mailbox, Parcel};
use super::{CommFailure, Communicator};

/// Why a rank has no result.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure<E> {
    /// It says so.
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
    thread::scope(|scope| {
        let rank = &rank;
        let spawn = |member: Exchange| scope.spawn(move || guarded(&member, rank));
        let threads: Vec<_> = world(size, timeout).into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| Err(Failure::Panic(message(&*panic))))
        };
        threads.into_iter().map(join).collect()
    })
}

/// Runs one rank and, if it fails or panics, tells the others why. Its panic is told by the result alone: nothing is printed.
///
/// # Errors
/// That it failed or panicked.
pub fn guarded<C: Communicator + ?Sized, T, E: Display>(
    member: &C,
    rank: impl FnOnce(&C) -> Result<T, E>,
) -> Result<T, Failure<E>> {
    hush_guarded_panics();
    let before = GUARDED.replace(true);
    // The member outlives the panic, so that its last words tell what happened.
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
    /// Whether a panic of this thread is caught, and told, by [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    /// Where the last such panic began.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Lets the hook that prints panics pass over those that [`guarded`] catches.
fn hush_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                return others(info);
            }
            // In a library of others, the place tells nothing.
            let place = info.location().filter(|place| Path::new(place.file()).is_relative());
            PLACE.set(place.map(ToString::to_string));
        }));
    });
}

/// The members of a world of `size` threads; each waits at most `timeout` for another. A member whose last part is dropped
/// by a panicking thread counts as dead.
pub fn world(size: usize, timeout: Duration) -> Vec<Exchange> {
    let mailboxes: Arc<[Mailbox]> = (0..size).map(|_| Mailbox::default()).collect();
    let member = |rank| Exchange::world(Arc::new(Thread { rank, mailboxes: mailboxes.clone() }), size, timeout);
    (0..size).map(member).collect()
}

struct Thread {
    rank: usize,
    /// By rank.
    mailboxes: Arc<[Mailbox]>,
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

/// What a panic says, in a line. libtorch adds where in its own code it was raised: that is left out.
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
