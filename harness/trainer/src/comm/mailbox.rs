//! The messages that have arrived at one rank and are not taken yet, and the ranks that have died: common to the backends
//! for CPU.
//!
//! A delivery never waits. A receiver sleeps until all messages that it wants have arrived, a rank has died, or time is up; a
//! delivery wakes it only when it completes what is wanted.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tch::Tensor;

use super::{CommFailure, Operation};

/// Identifies a parcel at its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// Number of the group, the same at all its members.
    pub group: u64,
    pub channel: Channel,
    /// Operations of that channel before this one.
    pub sequence: u64,
    /// The sender, counted over the world.
    pub from: usize,
}

impl Key {
    /// Whether the arrival of `other` means that this one will never come: senders deliver in order.
    fn is_overtaken_by(&self, other: &Self) -> bool {
        (self.group, self.channel, self.from) == (other.group, other.channel, other.from)
            && self.sequence < other.sequence
    }
}

/// What a sequence number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Channel {
    /// The collectives of a group.
    Collective,
    /// Messages from one member to another.
    Direct,
}

/// A tensor on its way.
pub(super) struct Parcel {
    pub operation: Operation,
    pub tensor: Tensor,
    /// Where members in one process share the work of an all-reduce; not sent to other processes.
    pub sums: Option<Arc<Sums>>,
}

/// The sum of all members' tensors, in as many pieces as there are members: each piece is added up by the member that
/// first asks for it, and taken by the others. Whoever asks has all tensors at hand, so none waits for a later one.
pub(super) struct Sums(Vec<Mutex<Option<Tensor>>>);

impl Sums {
    pub(super) fn new(pieces: usize) -> Self {
        Self((0..pieces).map(|_| Mutex::new(None)).collect())
    }

    pub(super) fn pieces(&self) -> usize {
        self.0.len()
    }

    /// The piece, by `add` if nobody has asked for it before.
    pub(super) fn piece(&self, index: usize, add: impl FnOnce() -> Tensor) -> Tensor {
        let mut piece = self.0[index].lock().unwrap_or_else(PoisonError::into_inner);
        piece.get_or_insert_with(add).shallow_clone()
    }
}

/// A rank that died, counted over the world, and how.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Death {
    pub rank: usize,
    pub how: String,
}

#[derive(Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parcels: HashMap<Key, Parcel>,
    /// The newest parcel of each group, channel and sender.
    newest: HashMap<(u64, Channel, usize), u64>,
    /// Sleeping receivers, and what each still misses.
    sleepers: Vec<(u64, HashSet<Key>)>,
    next_sleeper: u64,
    /// Ranks that ended well.
    left: HashSet<usize>,
    /// The first death; those after it are mostly its consequences.
    death: Option<Death>,
}

impl Mailbox {
    pub(super) fn post(&self, key: Key, parcel: Parcel) {
        let mut state = self.lock();
        let mut wake = false;
        for (_, missing) in &mut state.sleepers {
            wake |= missing.remove(&key) && missing.is_empty();
            wake |= missing.iter().any(|wanted| wanted.is_overtaken_by(&key));
        }
        state.newest.insert((key.group, key.channel, key.from), key.sequence);
        state.parcels.insert(key, parcel);
        drop(state);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Takes the parcels of all `keys`, once all are there.
    pub(super) fn take(&self, keys: &[Key], timeout: Duration) -> Result<Vec<Parcel>, CommFailure> {
        let started = Instant::now();
        let mut state = self.lock();
        loop {
            let missing: HashSet<Key> = keys.iter().filter(|key| !state.parcels.contains_key(key)).copied().collect();
            if missing.is_empty() {
                return Ok(keys.iter().filter_map(|key| state.parcels.remove(key)).collect());
            }
            state.why_in_vain(&missing)?;
            let Some(rest) = timeout.checked_sub(started.elapsed()).filter(|rest| !rest.is_zero()) else {
                let mut ranks: Vec<usize> = missing.iter().map(|key| key.from).collect();
                ranks.sort_unstable();
                return Err(CommFailure::Late { ranks, waited: timeout });
            };
            let sleeper = state.next_sleeper;
            state.next_sleeper += 1;
            state.sleepers.push((sleeper, missing));
            (state, _) = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner);
            state.sleepers.retain(|(other, _)| *other != sleeper);
        }
    }

    /// Notes a death and wakes everyone.
    pub(super) fn note_death(&self, death: &Death) {
        let mut state = self.lock();
        if !state.left.contains(&death.rank) {
            state.death.get_or_insert_with(|| death.clone());
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Notes that a rank ended well; that is an error to those alone who still wait for it.
    pub(super) fn note_leave(&self, rank: usize) {
        self.lock().left.insert(rank);
        self.changed.notify_all();
    }

    /// The first death, if it is known before the timeout.
    pub(super) fn death_within(&self, timeout: Duration) -> Option<Death> {
        let unknown = |state: &mut State| state.death.is_none();
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, unknown);
        waited.unwrap_or_else(PoisonError::into_inner).0.death.clone()
    }

    /// The first death, if any.
    pub(super) fn death(&self) -> Option<Death> {
        self.lock().death.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// An error if `missing` will never come. Any death ends all waiting: no run goes on without a rank.
    fn why_in_vain(&mut self, missing: &HashSet<Key>) -> Result<(), CommFailure> {
        if let Some(Death { rank, how }) = self.death.clone() {
            return Err(CommFailure::Died { rank, how });
        }
        for key in missing {
            if self.newest.get(&(key.group, key.channel, key.from)).is_some_and(|&newest| key.sequence < newest) {
                let found =
                    format!("rank {} sent nothing and is at a later operation: the counts do not match", key.from);
                return Err(CommFailure::Mismatch(found));
            }
            if self.left.contains(&key.from) {
                // Ranks that hear of it from this one take it for the first death, too.
                let how = "it ended without taking part".to_owned();
                self.death = Some(Death { rank: key.from, how: how.clone() });
                return Err(CommFailure::Died { rank: key.from, how });
            }
        }
        Ok(())
    }
}
