//! Communication between ranks: one trait, several ways to move tensors.
//!
//! All members of a group call the same operations in the same order. An operation returns at once with a [`Pending`],
//! which holds on to its tensors until it is over; what arrives is there after [`Pending::wait`]. On a GPU that means:
//! from then on, work put on the current stream of libtorch sees it.
//!
//! A member that dies ends every operation that needs it, within seconds, with an error that names it and the collective;
//! so does one that does not arrive before the timeout.

use std::time::Duration;

use tch::{Kind, Tensor};

/// A group of ranks as one of its members sees it.
pub trait Communicator: Send {
    /// This member's number in the group, from 0.
    fn rank(&self) -> usize;

    /// Members of the group.
    fn size(&self) -> usize;

    /// Rows to every member and from every member. `rows`: `[sum of sent, width]`, first those for member 0;
    /// `sent[member]` and `received[member]` count rows. The result holds what arrived, `[sum of received, width]`, first
    /// what member 0 sent. Members with no rows for each other do not meet.
    ///
    /// # Errors
    /// A member that died or does not arrive; counts that do not match.
    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Pending, CommError>;

    /// The sum over members, the same bits on each. The shape is the same everywhere.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError>;

    /// Every member's tensor, `[size, shape of one]`.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn all_gather(&self, tensor: &Tensor) -> Result<Pending, CommError>;

    /// The root's tensor; what others pass states shape and kind.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError>;

    /// The sum over members, at the root; others get their own tensor back.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn reduce(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError>;

    /// Sends to one member, which must receive.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn send(&self, tensor: &Tensor, to: usize) -> Result<Pending, CommError>;

    /// Receives from one member, which must send this shape and kind.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn receive(&self, shape: &[i64], kind: Kind, from: usize) -> Result<Pending, CommError>;

    /// Returns when all members have called it.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn barrier(&self) -> Result<(), CommError>;

    /// This member's part of a partition: all members pass the same `groups`, lists of members in the order of their new
    /// numbers, and each member is in exactly one. Operations of different groups do not wait for each other.
    ///
    /// # Errors
    /// A member in none or two of the groups; a member that died or does not arrive.
    fn split(&self, name: &str, groups: &[Vec<usize>]) -> Result<Box<dyn Communicator>, CommError>;
}

/// An operation under way.
pub struct Pending(Box<dyn FnOnce() -> Result<Tensor, CommError>>);

impl Pending {
    /// An operation that `finish` completes. Whatever the operation still reads or writes must live in `finish`.
    pub fn new(finish: impl FnOnce() -> Result<Tensor, CommError> + 'static) -> Self {
        Self(Box::new(finish))
    }

    /// Completes the operation; returns what arrived, or for a send what was sent.
    ///
    /// # Errors
    /// A member that died or did not arrive.
    pub fn wait(self) -> Result<Tensor, CommError> {
        (self.0)()
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("rank {rank}: {collective} of {group}: {reason}")]
pub struct CommError {
    /// The rank that tells, counted over the world.
    pub rank: usize,
    /// What it was doing.
    pub collective: &'static str,
    /// In which group.
    pub group: String,
    /// What went wrong.
    pub reason: CommFailure,
}

/// What went wrong in an operation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommFailure {
    /// Another rank is gone.
    #[error("rank {rank} died: {how}")]
    Died {
        /// The rank, counted over the world.
        rank: usize,
        /// Its last words, or how its absence was noticed.
        how: String,
    },
    /// Other ranks did not arrive in time.
    #[error("rank {} did not arrive within {waited:?}", list(.ranks))]
    Late {
        /// The ranks, counted over the world.
        ranks: Vec<usize>,
        /// How long they were waited for.
        waited: Duration,
    },
    /// What arrived is not what was agreed on.
    #[error("{0}")]
    Mismatch(String),
    /// A library refused.
    #[error("{0}")]
    Library(String),
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
