//! Collectives alone, over message sizes: what all ranks of a group need for one, in nccl-tests' terms. On GPUs, a burst of them is issued
//! behind other work: what a call takes hosts is another number ([`crate::bench::calls`]).

use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::bench::timed_behind;
use crate::clock::queue::Work;
use crate::comm::{CommError, Communicator, Pending};
use crate::error::TrainError;
use crate::host::to_host;

/// Bytes of a row of the exchanges.
const ROW: usize = 1024;
/// How long other work lasts in front of a burst: longer than hosts take to issue it.
const ISSUED: Seconds = Seconds(4e-3);
/// Operations of a burst.
const BURST: u32 = 20;
/// Bursts that are timed, after one that is not.
const REPEATS: usize = 7;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collective {
    /// Every rank sends an equal part of its buffer to each.
    AllToAll,
    /// Every rank sends 0.8 of its buffer to member 0, the rest in equal parts to the others.
    AllToAllSkewed,
    AllReduce,
    AllGather,
    Broadcast,
    /// Member 0 to member 1; others wait.
    Send,
}

impl Collective {
    pub const ALL: [Self; 6] =
        [Self::AllToAll, Self::AllToAllSkewed, Self::AllReduce, Self::AllGather, Self::Broadcast, Self::Send];

    /// nccl-tests' name for it, where there is one.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllToAll => "alltoall",
            Self::AllToAllSkewed => "alltoallv skewed",
            Self::AllReduce => "all_reduce",
            Self::AllGather => "all_gather",
            Self::Broadcast => "broadcast",
            Self::Send => "send",
        }
    }
}

/// A collective at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct CollectiveTimes {
    pub collective: Collective,
    /// Ranks of the group.
    pub ranks: usize,
    /// The size, as nccl-tests counts it: the largest buffer that a rank sends from or receives into, bytes.
    pub bytes: usize,
    /// Bytes that pass the busiest rank's port in one direction.
    pub moved: f64,
    /// Of one operation, mean over a burst of them, of the slowest rank: every repeat.
    pub times: Vec<Seconds>,
}

/// The sizes that are timed on a device, bytes.
pub fn sizes(device: Device) -> Vec<usize> {
    let largest = if device.is_cuda() { 29 } else { 21 };
    (13..=largest).step_by(2).map(|power| 1 << power).collect()
}

/// Times every collective at every size; all members call this together.
///
/// # Errors
/// A member that died.
pub fn run(group: &dyn Communicator, device: Device, sizes: &[usize]) -> Result<Vec<CollectiveTimes>, TrainError> {
    let _guard = tch::no_grad_guard();
    let other = match device {
        Device::Cuda(ordinal) => Work::on(ordinal),
        _ => None,
    };
    let mut all = Vec::new();
    for collective in Collective::ALL {
        for &bytes in sizes {
            all.push(time(group, device, other.as_ref(), (collective, bytes))?);
        }
    }
    Ok(all)
}

fn time(
    group: &dyn Communicator,
    device: Device,
    other: Option<&Work>,
    (collective, bytes): (Collective, usize),
) -> Result<CollectiveTimes, TrainError> {
    let bench = Bench::new(group, device, collective, bytes);
    let once = || bench.start()?.map_or(Ok(()), |pending| pending.wait().map(drop));
    let mut own = Vec::with_capacity(REPEATS);
    for repeat in 0..=REPEATS {
        group.barrier()?;
        // Members come out of their other work apart. They meet in an operation that is not timed.
        let mut met: Result<(), CommError> = Ok(());
        let front = || {
            other.into_iter().for_each(|other| other.fill(ISSUED));
            met = once();
        };
        let (ran, time) = timed_behind(device, front, || (0..BURST).try_for_each(|_| once()))?;
        met.and(ran)?;
        own.extend((repeat > 0).then_some(time.0 / f64::from(BURST)));
    }
    let all = group.all_gather(&Tensor::from_slice(&own).to_device(device))?.wait()?;
    let all: Vec<f64> = to_host(&all)?;
    let slowest = |repeat: usize| all.iter().skip(repeat).step_by(REPEATS).copied().fold(0.0, f64::max);
    Ok(CollectiveTimes {
        collective,
        ranks: group.size(),
        bytes: bench.largest(),
        moved: bench.moved(),
        times: (0..REPEATS).map(|repeat| Seconds(slowest(repeat))).collect(),
    })
}

/// One collective at one size, ready to run again and again.
struct Bench<'a> {
    group: &'a dyn Communicator,
    collective: Collective,
    own: Tensor,
    /// `[from][to]` rows of an exchange.
    rows: Vec<Vec<usize>>,
}

impl<'a> Bench<'a> {
    fn new(group: &'a dyn Communicator, device: Device, collective: Collective, bytes: usize) -> Self {
        let size = group.size();
        let rows = (bytes / ROW).max(size);
        let counts = match collective {
            Collective::AllToAllSkewed => skewed(rows, size),
            _ => vec![rows / size; size],
        };
        let own = match collective {
            Collective::AllToAll | Collective::AllToAllSkewed => {
                let rows: usize = counts.iter().sum();
                Tensor::randint(255, [rows as i64, ROW as i64], (Kind::Uint8, device))
            }
            // Each member's part of what is gathered.
            Collective::AllGather => {
                Tensor::randn([(bytes / 2 / size).max(1) as i64], (Kind::Float, device)).to_kind(Kind::BFloat16)
            }
            _ => Tensor::randn([(bytes / 4) as i64], (Kind::Float, device)),
        };
        Self { group, collective, own, rows: vec![counts; size] }
    }

    fn start(&self) -> Result<Option<Pending>, CommError> {
        let (rank, size) = (self.group.rank(), self.group.size());
        Ok(match self.collective {
            Collective::AllToAll | Collective::AllToAllSkewed => {
                let received: Vec<usize> = (0..size).map(|from| self.rows[from][rank]).collect();
                Some(self.group.all_to_all(&self.own, &self.rows[rank], &received)?)
            }
            Collective::AllReduce => Some(self.group.all_reduce(&self.own)?),
            Collective::AllGather => Some(self.group.all_gather(&self.own)?),
            Collective::Broadcast => Some(self.group.broadcast(&self.own, 0)?),
            Collective::Send if rank == 0 && size > 1 => Some(self.group.send(&self.own, 1)?),
            Collective::Send if rank == 1 => Some(self.group.receive(&self.own.size(), self.own.kind(), 0)?),
            Collective::Send => None,
        })
    }

    fn own_bytes(&self) -> usize {
        self.own.numel() * self.own.kind().elt_size_in_bytes()
    }

    /// Rows that a member gets from all, itself included.
    fn received(&self, member: usize) -> usize {
        self.rows.iter().map(|counts| counts[member]).sum()
    }

    fn largest(&self) -> usize {
        let size = self.group.size();
        match self.collective {
            Collective::AllToAll | Collective::AllToAllSkewed => {
                let received = (0..size).map(|member| self.received(member) * ROW).max();
                received.unwrap_or(0).max(self.own_bytes())
            }
            Collective::AllGather => self.own_bytes() * size,
            _ => self.own_bytes(),
        }
    }

    fn moved(&self) -> f64 {
        let size = self.group.size();
        let others = (size as f64 - 1.0) / size as f64;
        match self.collective {
            Collective::AllToAll | Collective::AllToAllSkewed => {
                let sent = |member: usize| self.rows[member].iter().sum::<usize>() - self.rows[member][member];
                let received = |member: usize| self.received(member) - self.rows[member][member];
                let busiest = (0..size).map(|member| sent(member).max(received(member))).max();
                (busiest.unwrap_or(0) * ROW) as f64
            }
            Collective::AllReduce => self.own_bytes() as f64 * 2.0 * others,
            Collective::AllGather => self.own_bytes() as f64 * size as f64 * others,
            Collective::Broadcast | Collective::Send => self.own_bytes() as f64,
        }
    }
}

/// `rows` to each of `size` members, 0.8 of them to the first.
fn skewed(rows: usize, size: usize) -> Vec<usize> {
    if size == 1 {
        return vec![rows];
    }
    let each = rows / 5 / (size - 1);
    let mut counts = vec![each; size];
    counts[0] = rows - each * (size - 1);
    counts
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;

    #[test]
    fn collectives_are_timed_on_two_ranks_and_count_what_passes_a_port() {
        let results = threads::run(2, Duration::from_secs(20), |group| run(group, Device::Cpu, &[10 * ROW]));
        let results: Vec<Vec<CollectiveTimes>> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results[0], results[1], "all ranks know the slowest rank's times");
        assert!(results[0].iter().all(|of| of.times.len() == REPEATS && of.times.iter().all(|time| time.0 > 0.0)));
        let moved: Vec<f64> = results[0].iter().map(|of| of.moved / ROW as f64).collect();
        // Halves; 8 of 10 rows from member 1 to member 0; twice a half; a half; all.
        assert_eq!(moved, [5.0, 8.0, 10.0, 5.0, 10.0, 10.0]);
        let bytes: Vec<usize> = results[0].iter().map(|of| of.bytes / ROW).collect();
        assert_eq!(bytes, [10, 16, 10, 10, 10, 10]);
    }

    #[test]
    fn most_rows_go_to_the_first() {
        assert_eq!(skewed(10, 2), [8, 2]);
        assert_eq!(skewed(30, 4), [24, 2, 2, 2]);
        assert_eq!(skewed(7, 1), [7]);
    }
}
