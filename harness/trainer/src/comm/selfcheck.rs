//! Whether communication works, before anything depends on it: each collective with known values.

use tch::{Device, IndexOp, Kind, Tensor};

use super::{CommError, Communicator, Operation, Part, Pending};

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Comm(#[from] CommError),
    #[error("member {member} of {size}: {collective} of {kind:?} gave {found}: expected {expected}")]
    Wrong { member: usize, size: usize, collective: &'static str, kind: Kind, found: String, expected: String },
}

/// Checks that all ranks reach all others, by an all-reduce and an all-to-all of known values. For the start of a run.
///
/// # Errors
/// A rank that is not reached; wrong values.
pub fn preflight(comm: &dyn Communicator, device: Device) -> Result<(), CheckError> {
    meet(comm, device)?;
    Check { comm, device, kind: Kind::Float }.all_to_all(|_, _| 1)
}

/// Checks that all ranks are there, by an all-reduce of known values. NCCL connects every pair of a group when that first exchanges, which takes many
/// ranks seconds: this does not.
///
/// # Errors
/// As [`preflight`].
pub fn meet(comm: &dyn Communicator, device: Device) -> Result<(), CheckError> {
    Check { comm, device, kind: Kind::Float }.all_reduce()
}

/// Checks every collective against plain references, in every kind of tensor that training uses, in the group and in halves of
/// it.
///
/// # Errors
/// The first operation that fails or gives wrong values.
pub fn selfcheck(comm: &dyn Communicator, device: Device) -> Result<(), CheckError> {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double, Kind::Int64, Kind::Int, Kind::Uint8] {
        Check { comm, device, kind }.all()?;
    }
    let size = comm.size();
    let (evens, odds): (Vec<usize>, Vec<usize>) = (0..size).rev().partition(|member| member % 2 == 0);
    let groups: Vec<Vec<usize>> = [evens, odds].into_iter().filter(|group| !group.is_empty()).collect();
    let half = comm.split("self-check", &groups)?;
    Check { comm: &*half, device, kind: Kind::Float }.all()?;
    let alone = half.split("alone", &(0..half.size()).map(|member| vec![member]).collect::<Vec<_>>())?;
    Check { comm: &*alone, device, kind: Kind::Float }.all()
}

struct Check<'a> {
    comm: &'a dyn Communicator,
    device: Device,
    kind: Kind,
}

impl Check<'_> {
    fn all(&self) -> Result<(), CheckError> {
        self.all_reduce()?;
        self.all_to_all(|from, to| (from * 2 + to * 3) % 5)?;
        self.all_to_all(|from, to| if to == 0 { from } else { 0 })?;
        self.all_to_all(|_, _| 0)?;
        self.transfer()?;
        self.all_gather()?;
        self.reduce_scatter()?;
        for root in [0, self.comm.size() - 1] {
            self.broadcast(root)?;
            self.reduce(root)?;
        }
        self.send_receive()?;
        self.out_of_order()?;
        Ok(self.comm.barrier()?)
    }

    /// `[2, 3]`: small whole numbers, exact in every kind, that differ by member and place.
    fn tensor_of(&self, member: usize) -> Tensor {
        let values: Vec<i64> = (0..6).map(|place| (member as i64 * 3 + place) % 7).collect();
        Tensor::from_slice(&values).reshape([2, 3]).to_device(self.device).to_kind(self.kind)
    }

    fn tensors(&self) -> Vec<Tensor> {
        (0..self.comm.size()).map(|member| self.tensor_of(member)).collect()
    }

    fn sum(&self) -> Tensor {
        Tensor::stack(&self.tensors(), 0).to_kind(Kind::Int64).sum_dim_intlist([0i64].as_slice(), false, Kind::Int64)
    }

    fn all_reduce(&self) -> Result<(), CheckError> {
        let mut input = self.tensor_of(self.comm.rank());
        let pending = self.comm.all_reduce(&input)?;
        let found = pending.wait()?;
        self.compare(Operation::AllReduce, &found, &self.sum())?;
        let place = self.tensor_of(self.comm.rank());
        drop(self.comm.sum_in_place(&place)?.wait()?);
        self.compare(Operation::AllReduce, &place, &self.sum())?;
        // The result is a copy: neither the input's memory nor another member's.
        let _ = input.fill_(1);
        self.compare(Operation::AllReduce, &found, &self.sum())
    }

    fn all_to_all(&self, count: impl Fn(usize, usize) -> usize) -> Result<(), CheckError> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let sent: Vec<usize> = (0..size).map(|to| count(rank, to)).collect();
        let received: Vec<usize> = (0..size).map(|from| count(from, rank)).collect();
        let rows = Tensor::cat(&(0..size).map(|to| self.rows(rank, to, count(rank, to))).collect::<Vec<_>>(), 0);
        let expected = (0..size).map(|from| self.rows(from, rank, count(from, rank))).collect::<Vec<_>>();
        let pending = self.comm.all_to_all(&rows, &sent, &received)?;
        // The operation owns what it reads.
        drop(rows);
        let found = pending.wait()?;
        self.compare(Operation::AllToAll, &found, &Tensor::cat(&expected, 0))
    }

    /// Some rows of every member, itself included, each a part, into every second row of a larger tensor, which is otherwise left alone.
    fn transfer(&self) -> Result<(), CheckError> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let count = |from: usize, to: usize| (from + 2 * to) % 4;
        let rows_of = |pairs: &[(usize, usize)]| {
            let rows: Vec<Tensor> = pairs.iter().map(|&(from, to)| self.rows(from, to, count(from, to))).collect();
            Tensor::cat(&rows, 0)
        };
        let parts = |members: Vec<usize>, distance: usize| -> Vec<Part> {
            let part = |(row, member)| Part { member, start: row * distance, length: 4 };
            members.into_iter().enumerate().map(part).collect()
        };
        let rows = rows_of(&(0..size).map(|to| (rank, to)).collect::<Vec<_>>());
        let sent = parts((0..size).flat_map(|to| vec![to; count(rank, to)]).collect(), 4);
        let expected = rows_of(&(0..size).map(|from| (from, rank)).collect::<Vec<_>>());
        let received = parts((0..size).flat_map(|from| vec![from; count(from, rank)]).collect(), 8);
        let whole = Tensor::full([2 * expected.size()[0], 4], 5, (self.kind, self.device));
        let pending = self.comm.transfer(&rows, &sent, &whole, &received)?;
        // The operation owns what it reads.
        drop(rows);
        drop(pending.wait()?);
        let other = Tensor::full([4], 5, (self.kind, self.device));
        for row in 0..received.len() {
            let expected = &expected.i(row as i64);
            self.compare(Operation::Transfer, &whole.i(2 * row as i64), expected)?;
            self.compare(Operation::Transfer, &whole.i(2 * row as i64 + 1), &other)?;
        }
        Ok(())
    }

    /// `[count, 4]`: sender, receiver, and a number for each row.
    fn rows(&self, from: usize, to: usize, count: usize) -> Tensor {
        let row = |row: usize| [from as i64 % 100, to as i64 % 100, row as i64, 1];
        let values: Vec<i64> = (0..count).flat_map(row).collect();
        Tensor::from_slice(&values).reshape([count as i64, 4]).to_device(self.device).to_kind(self.kind)
    }

    fn all_gather(&self) -> Result<(), CheckError> {
        let found = self.comm.all_gather(&self.tensor_of(self.comm.rank()))?.wait()?;
        self.compare(Operation::AllGather, &found, &Tensor::stack(&self.tensors(), 0))
    }

    /// Every member has its own tensor once for each member, plus that one's number.
    fn reduce_scatter(&self) -> Result<(), CheckError> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        let rows: Vec<Tensor> = (0..size).map(|to| self.tensor_of(rank) + to as i64 % 2).collect();
        let found = self.comm.reduce_scatter(&Tensor::stack(&rows, 0))?.wait()?;
        let expected = self.sum() + (size * (rank % 2)) as i64;
        self.compare(Operation::ReduceScatter, &found.i(0), &expected)
    }

    fn broadcast(&self, root: usize) -> Result<(), CheckError> {
        let found = self.comm.broadcast(&self.tensor_of(self.comm.rank()), root)?.wait()?;
        self.compare(Operation::Broadcast, &found, &self.tensor_of(root))
    }

    fn reduce(&self, root: usize) -> Result<(), CheckError> {
        let own = self.tensor_of(self.comm.rank());
        let found = self.comm.reduce(&own, root)?.wait()?;
        let expected = if root == self.comm.rank() { self.sum() } else { own };
        self.compare(Operation::Reduce, &found, &expected)
    }

    /// Around a ring, in an order that needs no buffering: even members send first.
    fn send_receive(&self) -> Result<(), CheckError> {
        let (rank, size) = (self.comm.rank(), self.comm.size());
        if size == 1 {
            return Ok(());
        }
        let before = (rank + size - 1) % size;
        let send = || self.comm.send(&self.tensor_of(rank), (rank + 1) % size)?.wait();
        let receive = || self.comm.receive(&[2, 3], self.kind, before)?.wait();
        let found = if rank.is_multiple_of(2) {
            drop(send()?);
            receive()?
        } else {
            let found = receive()?;
            drop(send()?);
            found
        };
        self.compare(Operation::SendReceive, &found, &self.tensor_of(before))
    }

    /// Several operations under way, waited for in another order.
    fn out_of_order(&self) -> Result<(), CheckError> {
        let own = self.tensor_of(self.comm.rank());
        let first = self.comm.all_reduce(&own)?;
        let second = self.comm.all_gather(&own)?;
        let third = self.comm.broadcast(&own, 0)?;
        let dropped: Pending = self.comm.all_reduce(&own)?;
        drop(dropped);
        self.compare(Operation::Broadcast, &third.wait()?, &self.tensor_of(0))?;
        self.compare(Operation::AllReduce, &first.wait()?, &self.sum())?;
        let gathered = second.wait()?;
        self.compare(Operation::AllGather, &gathered.i(0), &self.tensor_of(0))
    }

    fn compare(&self, operation: Operation, found: &Tensor, expected: &Tensor) -> Result<(), CheckError> {
        let expected = expected.to_kind(self.kind);
        if found.size() == expected.size() && found.kind() == self.kind && *found == expected {
            return Ok(());
        }
        Err(CheckError::Wrong {
            member: self.comm.rank(),
            size: self.comm.size(),
            collective: operation.name(),
            kind: self.kind,
            found: describe(found),
            expected: describe(&expected),
        })
    }
}

/// Shape, kind and the first values.
fn describe(tensor: &Tensor) -> String {
    let flat = tensor.to_kind(Kind::Double).to_device(Device::Cpu).reshape([-1]);
    match flat.iter::<f64>() {
        Ok(values) => format!("{:?} {:?} {:?}...", tensor.size(), tensor.kind(), values.take(8).collect::<Vec<_>>()),
        Err(error) => format!("{:?} {:?}: {error}", tensor.size(), tensor.kind()),
    }
}
