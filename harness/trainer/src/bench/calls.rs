//! What calls of exchanges take a rank's host: until they are issued, and until its GPU is told to wait for them, or, of counts, until it has
//! read them. By the communicator and in the calls of training, with so little to send that none holds up the next.

use std::time::Instant;

use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::bench::median;
use crate::clock::timer::synchronize;
use crate::comm::{CommError, Communicator, Part, Pending};
use crate::error::TrainError;
use crate::host::to_host;

/// Calls between two waits for the device, and how often, after one that is not timed.
const BURST: usize = 8;
const BURSTS: usize = 15;
/// Parts that a transfer sends to each member.
const PARTS: [usize; 4] = [1, 2, 4, 8];
/// Numbers of a row, a part or a member's counts.
const NUMBERS: usize = 64;

/// What is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Called {
    /// An all-to-all of a row for every member.
    Exchange,
    /// A transfer of parts.
    Transfer,
    /// An all-gather of counts.
    Counts,
}

impl Called {
    pub fn name(self) -> &'static str {
        match self {
            Self::Exchange => "all-to-all",
            Self::Transfer => "transfer",
            Self::Counts => "counts",
        }
    }
}

/// What one call takes hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub called: Called,
    /// Members or parts that a rank sends to and receives from, both counted.
    pub parts: usize,
    /// `[member]`: the median until it is issued.
    pub issued: Vec<Seconds>,
    /// `[member]`: the median of the wait for its result, which on a GPU is the GPU's, but for counts, which the host reads.
    pub arrived: Vec<Seconds>,
}

/// Times every kind of call; all members call this together, and know the times of all.
///
/// # Errors
/// A member that died.
pub fn run(group: &dyn Communicator, device: Device) -> Result<Vec<Call>, TrainError> {
    let _guard = tch::no_grad_guard();
    let size = group.size();
    let numbers = |count: usize| Tensor::zeros([count as i64, NUMBERS as i64], (Kind::Float, device));
    let (rows, each) = (numbers(size), vec![1; size]);
    let mut all = Vec::new();
    let mut add = |called, parts, call: &dyn Fn() -> Result<Pending, CommError>| -> Result<(), TrainError> {
        let arrive = |pending: Pending| {
            let result = pending.wait()?;
            if called == Called::Counts { to_host::<i64>(&result).map(drop) } else { Ok(()) }
        };
        let [issued, arrived] = time(group, device, call, &arrive)?;
        all.push(Call { called, parts, issued, arrived });
        Ok(())
    };
    add(Called::Exchange, 2 * (size - 1), &|| group.all_to_all(&rows, &each, &each))?;
    for parts in PARTS {
        let part = |at: usize| Part { member: at % size, start: at * NUMBERS, length: NUMBERS };
        let all: Vec<Part> = (0..parts * size).map(part).collect();
        let (from, to) = (numbers(parts * size), numbers(parts * size));
        add(Called::Transfer, 2 * parts * size, &|| group.transfer(&from, &all, &to, &all))?;
    }
    let counts = Tensor::zeros([NUMBERS as i64], (Kind::Int64, device));
    add(Called::Counts, 0, &|| group.all_gather(&counts))?;
    Ok(all)
}

/// `[member]`: the medians until issued, and of the wait.
fn time(
    group: &dyn Communicator,
    device: Device,
    call: &dyn Fn() -> Result<Pending, CommError>,
    arrive: &dyn Fn(Pending) -> Result<(), TrainError>,
) -> Result<[Vec<Seconds>; 2], TrainError> {
    let mut times = [Vec::new(), Vec::new()];
    for burst in 0..=BURSTS {
        synchronize(device);
        group.barrier()?;
        for _ in 0..BURST {
            let begun = Instant::now();
            let pending = call()?;
            let issued = begun.elapsed();
            arrive(pending)?;
            if burst > 0 {
                times[0].push(issued.as_secs_f64());
                times[1].push((begun.elapsed() - issued).as_secs_f64());
            }
        }
    }
    let own = times.map(median);
    let all: Vec<f64> = to_host(&group.all_gather(&Tensor::from_slice(&own).to_device(device))?.wait()?)?;
    Ok([0, 1].map(|of| all.iter().skip(of).step_by(2).copied().map(Seconds).collect()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;

    #[test]
    fn all_members_know_what_calls_take_each() {
        let results = threads::run(2, Duration::from_secs(20), |group| run(group, Device::Cpu));
        let results: Vec<Vec<Call>> = results.into_iter().map(Result::unwrap).collect();
        assert_eq!(results[0], results[1]);
        let parts: Vec<_> = results[0].iter().map(|call| (call.called, call.parts)).collect();
        let transfers = [4, 8, 16, 32].map(|parts| (Called::Transfer, parts));
        assert_eq!(parts, [vec![(Called::Exchange, 2)], transfers.to_vec(), vec![(Called::Counts, 0)]].concat());
        for call in &results[0] {
            assert!(call.issued.len() == 2 && call.issued.iter().all(|time| time.0 > 0.0), "{call:?}");
            assert!(call.arrived.len() == 2, "{call:?}");
        }
    }
}
