//! All collectives by messages from rank to rank: the backends for CPU, between threads and between processes.
//!
//! Every message is posted when the operation is called, so operations may be waited for in any order and a send never
//! blocks. Sums are computed in the order of ranks, so all members get the same bits. Threads share that work; processes
//! each do all of it, which moves `size` times the bytes of a ring: fine inside one machine, not meant for a network.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use tch::{Kind, Tensor, no_grad};

use crate::hash::fnv1a;

use super::mailbox::{Channel, Death, Key, Mailbox, Parcel, Sums};
use super::{
    CommError, CommFailure, Communicator, Operation, Part, Pending, check_counts, check_parts, lengths, part_name,
    part_of,
};

/// Members of one process share the sums of all-reduces of at least this many elements.
const WORTH_SHARING: usize = 16_384;

/// How messages travel. Ranks are counted over the world.
pub(super) trait Transport: Send + Sync {
    fn rank(&self) -> usize;

    /// Where this rank's messages arrive.
    fn mailbox(&self) -> &Mailbox;

    /// Delivers to another rank, in order, without waiting for it to take. The tensor must not change afterwards.
    fn post(&self, to: usize, key: Key, parcel: Parcel) -> Result<(), CommFailure>;

    /// Notifies all ranks of a death.
    fn announce(&self, death: &Death);

    /// Where ranks take turns on a device and are timed meanwhile: the turn, for what a collective does with tensors there.
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        None
    }
}

/// A group of ranks that exchange messages.
pub struct Exchange {
    group: Arc<Group>,
    /// Collectives so far.
    sequence: Cell<u64>,
    /// Messages so far to and from each member.
    sent: RefCell<HashMap<usize, u64>>,
    received: RefCell<HashMap<usize, u64>>,
}

struct Group {
    transport: Arc<dyn Transport>,
    timeout: Duration,
    /// The same at all members, another in every group.
    id: u64,
    name: String,
    /// Ranks of the world, by member.
    members: Vec<usize>,
    rank: usize,
}

impl Exchange {
    /// The group of all `size` ranks.
    pub(super) fn world(transport: Arc<dyn Transport>, size: usize, timeout: Duration) -> Self {
        let rank = transport.rank();
        let name = "the world".to_owned();
        Self::over(Group { transport, timeout, id: 0, name, members: (0..size).collect(), rank })
    }

    /// Changes how long members are waited for.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        // While an operation is under way, it shares the group, and the timeout stays.
        if let Some(group) = Arc::get_mut(&mut self.group) {
            group.timeout = timeout;
        }
        self
    }

    /// Returns a function for any thread that says, without waiting, which rank died first, counted over the world, and how. For
    /// backends that use this one for control.
    pub fn watch(&self) -> Box<dyn Fn() -> Option<(usize, String)> + Send> {
        let transport = Arc::downgrade(&self.group.transport);
        Box::new(move || {
            let Death { rank, how } = transport.upgrade()?.mailbox().death()?;
            Some((rank, how))
        })
    }

    /// This rank, counted over the world.
    pub fn world_rank(&self) -> usize {
        self.group.transport.rank()
    }

    /// The ranks of the world in this group, by member.
    pub fn members(&self) -> &[usize] {
        &self.group.members
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.group.name
    }

    /// How long a member is waited for.
    pub fn timeout(&self) -> Duration {
        self.group.timeout
    }

    /// [`Communicator::split`] that keeps the type.
    ///
    /// # Errors
    /// As for [`Communicator::split`].
    pub fn part(&self, name: &str, groups: &[Vec<usize>]) -> Result<Self, CommError> {
        let ticket = self.begin(Operation::Split);
        let index = part_of(self.rank(), self.size(), groups).map_err(|reason| ticket.error(reason))?;
        let id = fnv1a(format!("{} {} {name} {groups:?}", self.group.id, ticket.sequence).as_bytes());
        let own = Tensor::from_slice(&[id as i64]);
        ticket.post_to_others(&own)?;
        for (member, other) in ticket.collect_from_others()? {
            if other != own {
                let rank = self.group.members[member];
                return Err(
                    ticket.error(CommFailure::Mismatch(format!("rank {rank} passed another name or partition")))
                );
            }
        }
        let members: Vec<usize> = groups[index].iter().map(|&member| self.group.members[member]).collect();
        let world_rank = self.group.transport.rank();
        Ok(Self::over(Group {
            transport: self.group.transport.clone(),
            timeout: self.group.timeout,
            id: fnv1a(format!("{id} {index}").as_bytes()),
            name: part_name(name, &members),
            rank: members.iter().position(|&rank| rank == world_rank).expect("the part is the one of this member"),
            members,
        }))
    }

    fn over(group: Group) -> Self {
        Self { group: Arc::new(group), sequence: Cell::new(0), sent: RefCell::default(), received: RefCell::default() }
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.group.transport.turn()
    }

    /// A copy, outside autograd, made in this rank's turn.
    fn copy_of(&self, tensor: &Tensor) -> Tensor {
        let _turn = self.turn();
        copy_of(tensor)
    }

    /// The next collective.
    fn begin(&self, operation: Operation) -> Ticket {
        let sequence = self.sequence.replace(self.sequence.get() + 1);
        Ticket { group: self.group.clone(), operation, channel: Channel::Collective, sequence }
    }

    /// The next message to or from `member`.
    fn begin_direct(&self, counts: &RefCell<HashMap<usize, u64>>, member: usize) -> Result<Ticket, CommError> {
        let mut counts = counts.borrow_mut();
        let count = counts.entry(member).or_default();
        let (operation, channel) = (Operation::SendReceive, Channel::Direct);
        let ticket = Ticket { group: self.group.clone(), operation, channel, sequence: *count };
        *count += 1;
        ticket.check_other(member)?;
        Ok(ticket)
    }
}

impl Communicator for Exchange {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn size(&self) -> usize {
        self.group.members.len()
    }

    fn all_to_all(&self, rows: &Tensor, sent: &[usize], received: &[usize]) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::AllToAll);
        check_counts(rows, sent, received, self.rank(), self.size()).map_err(|reason| ticket.error(reason))?;
        let _turn = self.turn();
        let rows = rows.detach();
        let mut own = None;
        let mut start = 0;
        for (member, &count) in sent.iter().enumerate() {
            let part = copy_of(&rows.narrow(0, start, count as i64));
            start += count as i64;
            if member == self.rank() {
                own = Some(part);
            } else if count > 0 {
                ticket.post(member, part)?;
            }
        }
        let received = received.to_vec();
        Ok(Pending::new(move || no_grad(|| ticket.finish_all_to_all(&rows, own, &received))))
    }

    fn transfer(&self, from: &Tensor, sent: &[Part], to: &Tensor, received: &[Part]) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::Transfer);
        let checked = check_parts([from, to], [sent, received], self.rank(), self.size());
        checked.map_err(|reason| ticket.error(reason))?;
        let _turn = self.turn();
        let (from, to) = (from.detach().view([-1]), to.detach().view([-1]));
        let mut own = None;
        for member in 0..self.size() {
            let of_member = sent.iter().filter(|part| part.member == member && part.length > 0);
            let flat: Vec<Tensor> =
                of_member.map(|part| from.narrow(0, part.start as i64, part.length as i64)).collect();
            if flat.is_empty() {
                continue;
            }
            let message = no_grad(|| Tensor::cat(&flat, 0));
            match member == self.rank() {
                true => own = Some(message),
                false => ticket.post(member, message)?,
            }
        }
        let received = received.to_vec();
        Ok(Pending::new(move || no_grad(|| ticket.finish_transfer(own, &to, &received))))
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::AllReduce);
        let own = self.copy_of(tensor);
        // The first member's are everyone's.
        let sums = (self.rank() == 0).then(|| Arc::new(Sums::new(self.size())));
        for member in ticket.others() {
            ticket.post_with(member, own.shallow_clone(), sums.clone())?;
        }
        Ok(Pending::new(move || no_grad(|| ticket.finish_all_reduce(own, sums))))
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::AllGather);
        let own = self.copy_of(tensor);
        ticket.post_to_others(&own)?;
        Ok(Pending::new(move || {
            let all = ticket.gather(own)?;
            let _turn = ticket.turn();
            no_grad(|| Ok(Tensor::stack(&all, 0)))
        }))
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::Broadcast);
        ticket.check_member(root)?;
        let own = tensor.detach();
        if root != self.rank() {
            return Ok(Pending::new(move || {
                let sent = ticket.collect(&[root])?.remove(0);
                ticket.check_like(root, &sent, &own.size(), own.kind())?;
                let _turn = ticket.turn();
                // Members in one process share the memory of what was sent.
                Ok(copy_of(&sent.to_device(own.device())))
            }));
        }
        ticket.post_to_others(&self.copy_of(&own))?;
        Ok(Pending::new(move || Ok(own)))
    }

    fn reduce(&self, tensor: &Tensor, root: usize) -> Result<Pending, CommError> {
        let ticket = self.begin(Operation::Reduce);
        ticket.check_member(root)?;
        let own = tensor.detach();
        if root != self.rank() {
            ticket.post(root, self.copy_of(&own))?;
            return Ok(Pending::new(move || Ok(own)));
        }
        let own = self.copy_of(&own);
        Ok(Pending::new(move || {
            let all = ticket.gather(own)?;
            let _turn = ticket.turn();
            no_grad(|| Ok(sum(&all)))
        }))
    }

    fn send(&self, tensor: &Tensor, to: usize) -> Result<Pending, CommError> {
        let ticket = self.begin_direct(&self.sent, to)?;
        let own = tensor.detach();
        ticket.post(to, self.copy_of(&own))?;
        Ok(Pending::new(move || Ok(own)))
    }

    fn receive(&self, shape: &[i64], kind: Kind, from: usize) -> Result<Pending, CommError> {
        let ticket = self.begin_direct(&self.received, from)?;
        let shape = shape.to_vec();
        Ok(Pending::new(move || {
            let sent = ticket.collect(&[from])?.remove(0);
            ticket.check_like(from, &sent, &shape, kind)?;
            Ok(sent)
        }))
    }

    fn barrier(&self) -> Result<(), CommError> {
        let ticket = self.begin(Operation::Barrier);
        ticket.post_to_others(&Tensor::from_slice::<u8>(&[]))?;
        ticket.collect_from_others().map(drop)
    }

    fn split(&self, name: &str, groups: &[Vec<usize>]) -> Result<Box<dyn Communicator>, CommError> {
        Ok(Box::new(self.part(name, groups)?))
    }

    fn fail(&self, how: &str) {
        let transport = &self.group.transport;
        let own = Death { rank: transport.rank(), how: how.to_owned() };
        transport.announce(&transport.mailbox().death().unwrap_or(own));
    }
}

/// One operation of a group, at one of its members.
struct Ticket {
    group: Arc<Group>,
    operation: Operation,
    channel: Channel,
    sequence: u64,
}

impl Ticket {
    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.group.transport.turn()
    }

    fn post(&self, member: usize, tensor: Tensor) -> Result<(), CommError> {
        self.post_with(member, tensor, None)
    }

    fn post_with(&self, member: usize, tensor: Tensor, sums: Option<Arc<Sums>>) -> Result<(), CommError> {
        let key = self.key(self.group.transport.rank());
        let parcel = Parcel { operation: self.operation, tensor, sums };
        self.group.transport.post(self.group.members[member], key, parcel).map_err(|reason| self.error(reason))
    }

    fn post_to_others(&self, tensor: &Tensor) -> Result<(), CommError> {
        self.others().try_for_each(|member| self.post(member, tensor.shallow_clone()))
    }

    /// The tensors that these members sent, in their order.
    fn collect(&self, members: &[usize]) -> Result<Vec<Tensor>, CommError> {
        Ok(self.collect_parcels(members)?.into_iter().map(|parcel| parcel.tensor).collect())
    }

    fn collect_parcels(&self, members: &[usize]) -> Result<Vec<Parcel>, CommError> {
        let keys: Vec<Key> = members.iter().map(|&member| self.key(self.group.members[member])).collect();
        let parcels = self.group.transport.mailbox().take(&keys, self.group.timeout);
        let parcels = parcels.map_err(|reason| self.error(reason))?;
        let elsewhere = keys.iter().zip(&parcels).find(|(_, parcel)| parcel.operation != self.operation);
        if let Some((key, parcel)) = elsewhere {
            let found = format!("rank {} is in {}", key.from, parcel.operation.name());
            return Err(self.error(CommFailure::Mismatch(found)));
        }
        Ok(parcels)
    }

    fn collect_from_others(&self) -> Result<Vec<(usize, Tensor)>, CommError> {
        let others: Vec<usize> = self.others().collect();
        Ok(others.iter().copied().zip(self.collect(&others)?).collect())
    }

    /// Every member's tensor, all like `own`, in the order of members.
    fn gather(&self, own: Tensor) -> Result<Vec<Tensor>, CommError> {
        let sent = self.collect_from_others()?;
        self.line_up(own, sent)
    }

    fn line_up(&self, own: Tensor, sent: Vec<(usize, Tensor)>) -> Result<Vec<Tensor>, CommError> {
        let mut tensors = Vec::with_capacity(self.group.members.len());
        for (member, tensor) in sent {
            self.check_like(member, &tensor, &own.size(), own.kind())?;
            tensors.push(tensor.to_device(own.device()));
        }
        tensors.insert(self.group.rank, own);
        Ok(tensors)
    }

    fn finish_all_reduce(&self, own: Tensor, own_sums: Option<Arc<Sums>>) -> Result<Tensor, CommError> {
        let others: Vec<usize> = self.others().collect();
        let parcels = self.collect_parcels(&others)?;
        let sums = own_sums.or_else(|| parcels.first().and_then(|parcel| parcel.sums.clone()));
        let sent = others.into_iter().zip(parcels.into_iter().map(|parcel| parcel.tensor)).collect();
        let tensors = self.line_up(own, sent)?;
        match sums {
            Some(sums) if tensors[0].numel() >= WORTH_SHARING => Ok(shared_sum(&tensors, &sums, self.group.rank)),
            _ => Ok(sum(&tensors)),
        }
    }

    fn finish_all_to_all(&self, rows: &Tensor, own: Option<Tensor>, counts: &[usize]) -> Result<Tensor, CommError> {
        let senders: Vec<usize> = self.others().filter(|&member| counts[member] > 0).collect();
        let mut arrived = self.collect(&senders)?.into_iter();
        let _turn = self.turn();
        let mut parts = Vec::with_capacity(counts.len());
        let mut shape = rows.size();
        for (member, &count) in counts.iter().enumerate() {
            if member == self.group.rank {
                parts.extend(own.as_ref().map(Tensor::shallow_clone));
            } else if count > 0 {
                let part = arrived.next().expect("a tensor from every sender");
                shape[0] = count as i64;
                self.check_like(member, &part, &shape, rows.kind())?;
                parts.push(part.to_device(rows.device()));
            }
        }
        Ok(Tensor::cat(&parts, 0))
    }

    fn finish_transfer(&self, mut own: Option<Tensor>, to: &Tensor, received: &[Part]) -> Result<Tensor, CommError> {
        for member in 0..self.group.members.len() {
            let all = lengths(received, member).sum::<usize>() as i64;
            if all == 0 {
                continue;
            }
            let message = match own.take_if(|_| member == self.group.rank) {
                Some(own) => own,
                None => self.collect(&[member])?.remove(0),
            };
            self.check_like(member, &message, &[all], to.kind())?;
            let _turn = self.turn();
            let mut first = 0;
            for part in received.iter().filter(|part| part.member == member) {
                let [start, length] = [part.start, part.length].map(|number| number as i64);
                to.narrow(0, start, length).copy_(&message.narrow(0, first, length));
                first += length;
            }
        }
        Ok(Tensor::empty([0], (Kind::Float, tch::Device::Cpu)))
    }

    fn check_like(&self, member: usize, tensor: &Tensor, shape: &[i64], kind: Kind) -> Result<(), CommError> {
        if (tensor.size().as_slice(), tensor.kind()) == (shape, kind) {
            return Ok(());
        }
        let rank = self.group.members[member];
        let found = format!("rank {rank} sent {:?} {:?}", tensor.size(), tensor.kind());
        Err(self.error(CommFailure::Mismatch(format!("{found}: expected {shape:?} {kind:?}"))))
    }

    fn check_member(&self, member: usize) -> Result<(), CommError> {
        let size = self.group.members.len();
        if member < size {
            return Ok(());
        }
        Err(self.error(CommFailure::Mismatch(format!("member {member} of a group of {size}"))))
    }

    fn check_other(&self, member: usize) -> Result<(), CommError> {
        self.check_member(member)?;
        if member != self.group.rank {
            return Ok(());
        }
        Err(self.error(CommFailure::Mismatch("a rank does not send to itself".to_owned())))
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        let rank = self.group.rank;
        (0..self.group.members.len()).filter(move |&member| member != rank)
    }

    fn key(&self, from: usize) -> Key {
        Key { group: self.group.id, channel: self.channel, sequence: self.sequence, from }
    }

    fn error(&self, reason: CommFailure) -> CommError {
        CommError {
            rank: self.group.transport.rank(),
            collective: self.operation.name(),
            group: self.group.name.clone(),
            reason,
        }
    }
}

/// A copy, outside autograd.
fn copy_of(tensor: &Tensor) -> Tensor {
    no_grad(|| {
        let mut copy = Tensor::empty(tensor.size(), (tensor.kind(), tensor.device()));
        copy.copy_(tensor);
        copy
    })
}

/// The sum in the order given.
fn sum(tensors: &[Tensor]) -> Tensor {
    let mut sum = copy_of(&tensors[0]);
    for tensor in &tensors[1..] {
        sum += tensor;
    }
    sum
}

/// The same sum in pieces. This member computes the pieces that no other has computed yet, starting at its own.
fn shared_sum(tensors: &[Tensor], sums: &Sums, rank: usize) -> Tensor {
    let (pieces, elements) = (sums.pieces(), tensors[0].numel());
    let flat: Vec<Tensor> = tensors.iter().map(|tensor| tensor.reshape([-1])).collect();
    let bounds = |piece: usize| (piece * elements / pieces) as i64;
    let mut parts: Vec<(usize, Tensor)> = Vec::with_capacity(pieces);
    for step in 0..pieces {
        let piece = (rank + step) % pieces;
        let (start, length) = (bounds(piece), bounds(piece + 1) - bounds(piece));
        let add = || sum(&flat.iter().map(|tensor| tensor.narrow(0, start, length)).collect::<Vec<_>>());
        parts.push((piece, sums.piece(piece, add)));
    }
    parts.sort_unstable_by_key(|(piece, _)| *piece);
    let parts: Vec<Tensor> = parts.into_iter().map(|(_, part)| part).collect();
    Tensor::cat(&parts, 0).reshape(tensors[0].size())
}
