//! What kernels and exchanges take of each other while both run on a GPU.

use tch::{Device, Kind, Tensor};
use workloads::Seconds;

use crate::bench::{median, timed};
use crate::clock::timer::synchronize;
use crate::comm::{CommError, Communicator, Pending};
use crate::cuda::{Event, Gpu, Stream};
use crate::error::TrainError;
use crate::host::to_host;

/// Rows and columns of the square products that run beside exchanges.
const SIZE: i64 = 4096;
/// Bytes that each member has for all, and of a row.
const BYTES: usize = 1 << 27;
const ROW: usize = 1024;
/// Exchanges of a repeat.
const EXCHANGES: usize = 24;
/// What products take of the time of the exchanges, both alone: less than all, so that the last ends beside exchanges.
const SHARE: f64 = 0.5;
const REPEATS: usize = 7;

/// By how much longer each takes beside the other, as a share of its time: medians of every member.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shared {
    /// Matrix products beside all-to-alls.
    pub kernels: Vec<f64>,
    /// All-to-alls beside matrix products.
    pub exchanges: Vec<f64>,
}

/// Measures both; all members call this together, and know what all found.
///
/// # Errors
/// A member that died, or a GPU that cannot be used.
pub fn run(group: &dyn Communicator, device: Device) -> Result<Shared, TrainError> {
    let Device::Cuda(ordinal) = device else { return Ok(Shared::default()) };
    let _guard = tch::no_grad_guard();
    let (size, gpu) = (group.size(), Gpu::open(ordinal)?);
    let rows = vec![BYTES / ROW / size; size];
    let sent = Tensor::zeros([rows.iter().sum::<usize>() as i64, ROW as i64], (Kind::Uint8, device));
    let factor = Tensor::randn([SIZE, SIZE], (Kind::BFloat16, device));
    let product = || drop(factor.matmul(&factor));
    let exchange = || group.all_to_all(&sent, &rows, &rows);
    let exchanges = || (0..EXCHANGES).map(|_| exchange()).collect::<Result<Vec<Pending>, CommError>>();
    let arrive = |all: Vec<Pending>| all.into_iter().try_for_each(|pending| pending.wait().map(drop));
    let mut all = [Vec::new(), Vec::new()];
    for repeat in 0..=REPEATS {
        group.barrier()?;
        let (ran, exchanged) = timed(device, || exchanges().and_then(arrive))?;
        ran?;
        let (_, one) = timed(device, || (0..EXCHANGES).for_each(|_| product()))?;
        let one = one / EXCHANGES as f64;
        let products = ((exchanged / one) * SHARE).max(1.0) as usize;
        group.barrier()?;
        synchronize(device);
        let stream = Stream::default_of(gpu);
        let mark = || -> Result<Event, TrainError> {
            let event = Event::timed(gpu)?;
            event.record(&stream)?;
            Ok(event)
        };
        let begun = mark()?;
        let pending = exchanges()?;
        let first = mark()?;
        (0..products).for_each(|_| product());
        let last = mark()?;
        arrive(pending)?;
        let end = mark()?;
        synchronize(device);
        let between = |from: &Event, to: &Event| Ok::<_, TrainError>(Seconds(to.since(from)?.as_secs_f64()));
        let [together, whole] = [between(&first, &last)?, between(&begun, &end)?];
        if repeat > 0 {
            let found = longer(one * products as f64, exchanged, together, whole);
            all.iter_mut().zip(found).for_each(|(all, found)| all.push(found));
        }
    }
    let own = all.map(median);
    let all: Vec<f64> = to_host(&group.all_gather(&Tensor::from_slice(&own).to_device(device))?.wait()?)?;
    let [kernels, exchanges] = [0, 1].map(|of| all.iter().skip(of).step_by(2).copied().collect());
    Ok(Shared { kernels, exchanges })
}

/// By how much longer kernels and exchanges take, as shares: kernels that take `kernels` alone took `together`, all of it beside exchanges, which
/// take `exchanges` alone and took `whole`, the rest of it alone. So `together / (1 + share) + (whole - together) = exchanges`.
fn longer(kernels: Seconds, exchanges: Seconds, together: Seconds, whole: Seconds) -> [f64; 2] {
    let meanwhile = exchanges - (whole - together);
    [together / kernels - 1.0, together / meanwhile - 1.0]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels of 4 s take 5 beside exchanges of 10 s, of which 3 get done in these; the other 7 follow.
    #[test]
    fn shares_are_what_both_take_of_each_other() {
        let [kernels, exchanges] = longer(Seconds(4.0), Seconds(10.0), Seconds(5.0), Seconds(12.0));
        assert!((kernels - 0.25).abs() < 1e-12 && (exchanges - 2.0 / 3.0).abs() < 1e-12, "{kernels} {exchanges}");
    }
}
