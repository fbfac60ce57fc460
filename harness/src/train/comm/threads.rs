//! Ranks as threads of one process: tensors change hands without a copy beyond the one that lets the sender go on.
//!
//! Also for several ranks on one GPU: all threads use its default stream, so what one enqueues before handing over comes
//! before what another enqueues afterwards.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
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
        let spawn = |member: Exchange| scope.spawn(move || run_one(&member, rank));
        let threads: Vec<_> = world(size, timeout).into_iter().map(spawn).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| Err(Failure::Panic(message(&*panic))))
        };
        threads.into_iter().map(join).collect()
    })
}

fn run_one<T, E: Display>(member: &Exchange, rank: impl Fn(&Exchange) -> Result<T, E>) -> Result<T, Failure<E>> {
    // The member outlives the panic, so that its last words tell what happened.
    match catch_unwind(AssertUnwindSafe(|| rank(member))) {
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

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
