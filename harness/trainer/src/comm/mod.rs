//! Communication between ranks: one trait, several ways to move tensors.
//!
//! All members of a group call the same operations in the same order. An operation returns at once with a [`Pending`],
//! which holds on to its tensors until it is over: until then, what was passed must not be changed in place. What arrives is
//! there after [`Pending::wait`]. On a GPU that means: from then on, work put on the current stream of libtorch sees it.
//!
//! When a member dies, every operation that needs it ends within seconds with an error that names the member and the
//! collective; also when a member does not arrive before the timeout.

mod exchange;
mod keeper;
pub mod launch;
mod mailbox;
pub mod nccl;
pub mod noted;
mod rendezvous;
mod selfcheck;
pub mod tcp;
#[cfg(test)]
pub(crate) mod tcp_tests;
#[cfg(test)]
mod tests;
pub mod threads;

pub use exchange::Exchange;
pub use rendezvous::RendezvousError;
pub use selfcheck::{CheckError, meet, preflight, selfcheck};

use std::time::Duration;

use tch::{Kind, Tensor, no_grad};

/// A group of ranks as one of its members sees it.
pub trait Communicator: Send {
    /// This member's number in the group.
    fn rank(&self) -> usize;

    fn size(&self) -> usize;

    /// Rows to every member and from every member. `rows`: `[sum of sent, shape of a row]`, first those for member 0;
    /// `sent[member]` and `received[member]` count rows. The result holds what arrived, `[sum of received, shape of a row]`,
    /// first what member 0 sent. Members with no rows for each other do not meet.
    ///
    /// # Errors
    /// A member that died or does not arrive; counts that do not match.
    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Pending, CommError>;

    /// Sends parts of `from` to members, itself included, and receives into parts of `to`, where they lie. Both tensors are of one kind, on
    /// one device and without gaps. What two members have for each other arrives in the order given; their lengths agree. Until the operation is
    /// over, what is received into must not be used, nor what is sent be changed. The result is empty.
    ///
    /// # Errors
    /// A member that died or does not arrive; a tensor with gaps; parts out of bounds, or whose lengths do not match.
    fn transfer(&self, from: &Tensor, sent: &[Part], to: &Tensor, received: &[Part]) -> Result<Pending, CommError>;

    /// Transfers within a tensor, `[sent, received]` each, one after the other: what arrives in one can be sent in the next.
    ///
    /// # Errors
    /// As for [`Self::transfer`].
    fn relay(&self, of: &Tensor, rounds: &[[Vec<Part>; 2]]) -> Result<Pending, CommError> {
        let Some(([sent, received], before)) = rounds.split_last() else {
            return self.transfer(of, &[], of, &[]);
        };
        for [sent, received] in before {
            drop(self.transfer(of, sent, of, received)?.wait()?);
        }
        self.transfer(of, sent, of, received)
    }

    /// The sum over members, the same bits on each. The shape is the same everywhere.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError>;

    /// Puts the sum over members in the place of the tensor, which has no gaps; the result is the tensor.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn sum_in_place(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let (sum, mut place) = (self.all_reduce(tensor)?, tensor.shallow_clone());
        Ok(Pending::new(move || {
            let sum = sum.wait()?;
            no_grad(|| place.copy_(&sum));
            Ok(place)
        }))
    }

    /// The sum over members of what each has for this one: of `[size, shape of a row]`, the row of this member's number, `[1, shape of a row]`.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn reduce_scatter(&self, rows: &Tensor) -> Result<Pending, CommError> {
        let each = vec![1; self.size()];
        let arriving = self.all_to_all(rows, &each, &each)?;
        Ok(Pending::new(move || {
            let rows = arriving.wait()?;
            Ok(no_grad(|| rows.sum_dim_intlist([0i64].as_slice(), true, rows.kind())))
        }))
    }

    /// Every member's tensor, `[size, shape of one]`.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn all_gather(&self, tensor: &Tensor) -> Result<Pending, CommError>;

    /// The root's tensor (at the root itself, no copy of it); what others pass states shape and kind.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError>;

    /// The sum over members, at the root; others get their own tensor back.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    fn reduce(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError>;

    /// Sends to one member, which must receive; several from one member to another are received in order. On GPUs, all
    /// operations of a group run one after another: ranks that send both ways at once do so in two groups.
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

    /// Says that this rank has made all groups of its run: gives up what the backend has kept of an earlier one for others.
    fn release_kept(&self) {}

    /// Aborts all peers: every rank of the world learns that this one failed, and why, and stops waiting. If this rank failed
    /// because a peer died, the peer's death is reported.
    fn fail(&self, how: &str);
}

/// Numbers of a tensor, counted in their order, that a member gets or gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub member: usize,
    pub start: usize,
    pub length: usize,
}

/// An operation that is under way.
pub struct Pending(Box<dyn FnOnce() -> Result<Tensor, CommError>>);

impl Pending {
    /// An operation that `finish` completes. `finish` must own the memory that the operation still reads or writes.
    pub fn new(finish: impl FnOnce() -> Result<Tensor, CommError> + 'static) -> Self {
        Self(Box::new(finish))
    }

    /// Completes the operation. Returns what arrived; for a send, what was sent.
    ///
    /// # Errors
    /// A member that died or did not arrive.
    pub fn wait(self) -> Result<Tensor, CommError> {
        (self.0)()
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("rank {rank}: {collective} of {group}: {reason}")]
pub struct CommError {
    /// The rank that failed, counted over the world.
    pub rank: usize,
    pub collective: &'static str,
    pub group: String,
    pub reason: CommFailure,
}

/// What went wrong in an operation.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CommFailure {
    /// Another rank died.
    #[error("rank {rank} died: {how}")]
    Died {
        /// The rank, counted over the world.
        rank: usize,
        /// Its own reason, or how its death was noticed.
        how: String,
    },
    /// Other ranks did not arrive in time.
    #[error("{} did not arrive within {waited:?}", named(.ranks))]
    Late {
        /// The ranks, counted over the world.
        ranks: Vec<usize>,
        waited: Duration,
    },
    /// Members disagree on the operation, its shape, kind or counts.
    #[error("{0}")]
    Mismatch(String),
    #[error("{0}")]
    Library(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    AllToAll,
    Transfer,
    AllReduce,
    AllGather,
    ReduceScatter,
    Broadcast,
    Reduce,
    SendReceive,
    Barrier,
    Split,
}

impl Operation {
    const ALL: [Self; 10] = [
        Self::AllToAll,
        Self::Transfer,
        Self::AllReduce,
        Self::AllGather,
        Self::ReduceScatter,
        Self::Broadcast,
        Self::Reduce,
        Self::SendReceive,
        Self::Barrier,
        Self::Split,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::AllToAll => "all-to-all",
            Self::Transfer => "transfer",
            Self::AllReduce => "all-reduce",
            Self::AllGather => "all-gather",
            Self::ReduceScatter => "reduce-scatter",
            Self::Broadcast => "broadcast",
            Self::Reduce => "reduce",
            Self::SendReceive => "send/receive",
            Self::Barrier => "barrier",
            Self::Split => "split",
        }
    }
}

/// Checks the counts of an all-to-all against the rows and the group, as every backend must.
fn check_counts(
    rows: &Tensor,
    sent: &[usize],
    received: &[usize],
    rank: usize,
    size: usize,
) -> Result<(), CommFailure> {
    let height = rows.size().first().copied().unwrap_or(-1);
    if sent.len() != size || received.len() != size {
        let found = format!("counts for {} and from {} members", sent.len(), received.len());
        return Err(CommFailure::Mismatch(format!("{found}: expected {size}")));
    }
    if sent.iter().sum::<usize>() as i64 != height {
        return Err(CommFailure::Mismatch(format!("counts {sent:?} of rows to send, of a tensor {:?}", rows.size())));
    }
    if sent[rank] != received[rank] {
        let found = format!("{} rows from this rank to itself, {} expected", sent[rank], received[rank]);
        return Err(CommFailure::Mismatch(found));
    }
    Ok(())
}

/// Checks what a transfer sends and receives against the group, as every backend must.
fn check_parts(
    [from, to]: [&Tensor; 2],
    [sent, received]: [&[Part]; 2],
    rank: usize,
    size: usize,
) -> Result<(), CommFailure> {
    if let Some(tensor) = [from, to].into_iter().find(|tensor| !tensor.is_contiguous()) {
        return Err(CommFailure::Mismatch(format!("a tensor {:?} with gaps", tensor.size())));
    }
    let [what, other] = [from, to].map(|tensor| (tensor.kind(), tensor.device()));
    if what != other {
        return Err(CommFailure::Mismatch(format!("tensors of {what:?} and {other:?}")));
    }
    for (tensor, parts) in [(from, sent), (to, received)] {
        if let Some(part) = parts.iter().find(|part| part.member >= size) {
            return Err(CommFailure::Mismatch(format!("member {} of a group of {size}", part.member)));
        }
        if let Some(part) = parts.iter().find(|part| part.start + part.length > tensor.numel()) {
            return Err(CommFailure::Mismatch(format!("{part:?} of a tensor of {} numbers", tensor.numel())));
        }
    }
    let [own, expected] = [sent, received].map(|parts| lengths(parts, rank).collect::<Vec<_>>());
    if own != expected {
        let found = format!("parts of {own:?} numbers from this rank to itself, {expected:?} expected");
        return Err(CommFailure::Mismatch(found));
    }
    Ok(())
}

/// How many numbers each of the parts of a member has.
fn lengths(parts: &[Part], member: usize) -> impl Iterator<Item = usize> + '_ {
    parts.iter().filter(move |part| part.member == member).map(|part| part.length)
}

/// The group of `groups` that `member` is in, if they are a partition of `size` members.
fn part_of(member: usize, size: usize, groups: &[Vec<usize>]) -> Result<usize, CommFailure> {
    let mut group_of = vec![None; size];
    for (index, members) in groups.iter().enumerate() {
        for &other in members {
            match group_of.get_mut(other) {
                None => return Err(CommFailure::Mismatch(format!("groups {groups:?}: there is no member {other}"))),
                Some(Some(_)) => {
                    return Err(CommFailure::Mismatch(format!("groups {groups:?}: member {other} is duplicated")));
                }
                Some(group) => *group = Some(index),
            }
        }
    }
    let of_members: Option<Vec<usize>> = group_of.iter().copied().collect();
    of_members.map(|of_members| of_members[member]).ok_or_else(|| {
        let missing: Vec<usize> = (0..size).filter(|&other| group_of[other].is_none()).collect();
        CommFailure::Mismatch(format!("groups {groups:?}: in none of them: member {}", list(&missing)))
    })
}

/// The name of a part, for messages.
fn part_name(name: &str, world_ranks: &[usize]) -> String {
    format!("{name} ({})", named(world_ranks))
}

fn named(ranks: &[usize]) -> String {
    format!("rank{} {}", if ranks.len() == 1 { "" } else { "s" }, list(ranks))
}

fn list(ranks: &[usize]) -> String {
    ranks.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
