//! A group that notes what its operations move: what an execution trace needs of a rank that really runs.
//!
//! A collective is noted when it is waited for, a send when it is issued: what a rank receives from another stage comes before what it sends
//! on. Barriers, splits and the other side of a send are not noted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use systems::iteration::moved::{Collective, Communication, Message, Sent};
use tch::{Kind, Tensor};
use workloads::Bytes;

use crate::comm::{CommError, Communicator, Part, Pending};

/// What the groups of a rank have moved, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Message>>>);

impl Log {
    fn open(&self) -> MutexGuard<'_, Vec<Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was noted since it was last taken.
    pub(crate) fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.open())
    }

    /// Runs what is bookkeeping, and forgets what it moved.
    pub(crate) fn without<T>(&self, bookkeeping: impl FnOnce() -> T) -> T {
        let before = self.open().len();
        let result = bookkeeping();
        self.open().truncate(before);
        result
    }
}

/// A group whose operations are noted.
pub struct Noted {
    group: Box<dyn Communicator>,
    /// `[member]`: its rank, counted over the world.
    ranks: Vec<usize>,
    log: Log,
}

impl Noted {
    /// The world, whose parts will be noted too.
    pub fn new(world: Box<dyn Communicator>, log: Log) -> Self {
        Self { ranks: (0..world.size()).collect(), group: world, log }
    }

    /// Notes a collective once it is over. `bytes`: as [`Communication`] counts them, but of an all-to-all what this member sends.
    fn note(&self, pending: Pending, collective: Collective, bytes: f64) -> Pending {
        let bytes = Bytes(bytes);
        let moved = Message::Collective(Communication { collective, ranks: self.ranks.clone(), bytes, own: bytes });
        let log = self.log.clone();
        Pending::new(move || {
            let tensor = pending.wait()?;
            log.open().push(moved);
            Ok(tensor)
        })
    }

    fn to_others(&self, amounts: impl Iterator<Item = (usize, usize)>) -> f64 {
        amounts.filter(|(member, _)| *member != self.rank()).map(|(_, amount)| amount).sum::<usize>() as f64
    }
}

fn bytes(tensor: &Tensor) -> f64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as f64
}

impl Communicator for Noted {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Pending, CommError> {
        let row = bytes(rows) / (rows.size().first().copied().unwrap_or(0).max(1)) as f64;
        let own = self.to_others(sent.iter().copied().enumerate()) * row;
        Ok(self.note(self.group.all_to_all(rows, sent, received)?, Collective::AllToAll, own))
    }

    fn transfer(&self, from: &Tensor, sent: &[Part], to: &Tensor, received: &[Part]) -> Result<Pending, CommError> {
        let own = self.to_others(sent.iter().map(|part| (part.member, part.length)));
        let own = own * from.kind().elt_size_in_bytes() as f64;
        Ok(self.note(self.group.transfer(from, sent, to, received)?, Collective::AllToAll, own))
    }

    fn relay(&self, of: &Tensor, rounds: &[[Vec<Part>; 2]]) -> Result<Pending, CommError> {
        let sent = rounds.iter().flat_map(|[sent, _]| sent);
        let own = self.to_others(sent.map(|part| (part.member, part.length))) * of.kind().elt_size_in_bytes() as f64;
        Ok(self.note(self.group.relay(of, rounds)?, Collective::AllToAll, own))
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        Ok(self.note(self.group.all_reduce(tensor)?, Collective::AllReduce, bytes(tensor)))
    }

    fn sum_in_place(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        Ok(self.note(self.group.sum_in_place(tensor)?, Collective::AllReduce, bytes(tensor)))
    }

    fn reduce_scatter(&self, rows: &Tensor) -> Result<Pending, CommError> {
        Ok(self.note(self.group.reduce_scatter(rows)?, Collective::ReduceScatter, bytes(rows)))
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let all = bytes(tensor) * self.size() as f64;
        Ok(self.note(self.group.all_gather(tensor)?, Collective::AllGather, all))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        Ok(self.note(self.group.broadcast(tensor, root)?, Collective::Broadcast, bytes(tensor)))
    }

    fn reduce(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        Ok(self.note(self.group.reduce(tensor, root)?, Collective::Reduce, bytes(tensor)))
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Pending, CommError> {
        let pending = self.group.send(tensor, to)?;
        self.log.open().push(Message::Send(Sent { to: self.ranks[to], bytes: Bytes(bytes(tensor)) }));
        Ok(pending)
    }

    fn receive(&self, shape: &[i64], kind: Kind, from: usize) -> Result<Pending, CommError> {
        self.group.receive(shape, kind, from)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.group.barrier()
    }

    fn split(&self, name: &str, groups: &[Vec<usize>]) -> Result<Box<dyn Communicator>, CommError> {
        let group = self.group.split(name, groups)?;
        let own = groups.iter().find(|members| members.contains(&self.rank())).into_iter().flatten();
        let ranks = own.map(|&member| self.ranks[member]).collect();
        Ok(Box::new(Self { group, ranks, log: self.log.clone() }))
    }

    fn release_kept(&self) {
        self.group.release_kept();
    }

    fn fail(&self, how: &str) {
        self.group.fail(how);
    }
}

/// Makes the bytes of each all-to-all those of the rank that sends most, of which a rank alone knows nothing. `ranks`: `[rank][span]`, in
/// order; the all-to-alls of a group are in one order on all its ranks.
pub fn agree(ranks: &mut [Vec<Vec<Message>>]) {
    let mut most = BTreeMap::<(Vec<usize>, usize), Bytes>::new();
    let mut visit = |with: &mut dyn FnMut(&mut Bytes, &mut Communication)| {
        for spans in &mut *ranks {
            let mut numbers = BTreeMap::<Vec<usize>, usize>::new();
            for message in spans.iter_mut().flatten() {
                let Message::Collective(of) = message else { continue };
                if of.collective == Collective::AllToAll {
                    let number = numbers.entry(of.ranks.clone()).or_default();
                    with(most.entry((of.ranks.clone(), *number)).or_default(), of);
                    *number += 1;
                }
            }
        }
    };
    visit(&mut |most, of| *most = most.max(of.own));
    visit(&mut |most, of| of.bytes = *most);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;

    /// A collective that the trait puts together from others is asked of the group that is noted, and noted as what it is.
    #[test]
    fn every_collective_is_noted_as_what_it_is() {
        for world in threads::world(1, Duration::from_secs(20)) {
            let log = Log::default();
            let noted = Noted::new(Box::new(world), log.clone());
            let rows = || Tensor::ones([1, 2], (Kind::Float, tch::Device::Cpu));
            let part = [Part { member: 0, start: 0, length: 2 }];
            let started = [
                noted.all_to_all(&rows(), &[1], &[1]),
                noted.transfer(&rows(), &part, &rows(), &part),
                noted.relay(&rows(), &[[part.to_vec(), part.to_vec()], [Vec::new(), Vec::new()]]),
                noted.all_reduce(&rows()),
                noted.sum_in_place(&rows()),
                noted.reduce_scatter(&rows()),
                noted.all_gather(&rows()),
                noted.broadcast(&rows(), 0),
                noted.reduce(&rows(), 0),
            ];
            started.into_iter().for_each(|pending| drop(pending.unwrap().wait().unwrap()));
            let kinds: Vec<Collective> = log
                .take()
                .into_iter()
                .filter_map(|message| match message {
                    Message::Collective(of) => Some(of.collective),
                    Message::Send(_) => None,
                })
                .collect();
            use Collective::{AllGather, AllReduce, AllToAll, Broadcast, Reduce, ReduceScatter};
            let expected =
                [AllToAll, AllToAll, AllToAll, AllReduce, AllReduce, ReduceScatter, AllGather, Broadcast, Reduce];
            assert_eq!(kinds, expected);
        }
    }
}
