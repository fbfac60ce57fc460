//! Times what training consists of, apart from any comparison of systems: one MoE layer, one training step.
//!
//! Both give every repeat, and how far their results are from those in single precision; what a reader makes of them is the
//! caller's.

pub mod beside;
pub mod calls;
pub mod comm;
pub mod curves;
pub mod layer;
pub mod step;

use std::time::Instant;

use tch::Device;
use workloads::Seconds;

use crate::clock::timer::synchronize;
use crate::cuda::{self, Event, Gpu, Stream};
use crate::error::TrainError;
use crate::kernels;
use crate::model::parameters::{Initial, initial};
use crate::setup::kind_on;

/// Loads what a GPU needs.
fn begin(device: Device) -> Result<(), TrainError> {
    if let Device::Cuda(ordinal) = device {
        cuda::load()?;
        kernels::load(ordinal)?;
    }
    Ok(())
}

/// Rows and columns of the product that gives the peak.
pub fn peak_size(device: Device) -> i64 {
    if device.is_cuda() { 8192 } else { 1024 }
}

/// Floating-point operations a second of a square product in the kind that the trainer uses on the device: the median of ten.
///
/// # Errors
/// A GPU that cannot be used.
pub fn peak(device: Device) -> Result<f64, TrainError> {
    begin(device)?;
    let size = peak_size(device);
    let draw = |name| initial(1, name, &[size, size], Initial::Normal(1.0), device).to_kind(kind_on(device));
    let (first, second) = (draw("first"), draw("second"));
    let mut times = Vec::new();
    for _ in 0..10 {
        times.push(timed(device, || first.matmul(&second))?.1.0);
    }
    Ok(2.0 * (size as f64).powi(3) / median(times))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// What something took on the device, from before its first kernel to after its last.
fn timed<T>(device: Device, work: impl FnOnce() -> T) -> Result<(T, Seconds), TrainError> {
    timed_behind(device, || (), work)
}

/// The same behind other work that the device has just been given, so that the host has issued all of it before its first kernel begins.
fn timed_behind<T>(device: Device, other: impl FnOnce(), work: impl FnOnce() -> T) -> Result<(T, Seconds), TrainError> {
    if let Device::Cuda(ordinal) = device {
        let gpu = Gpu::open(ordinal)?;
        let (stream, start, end) = (Stream::default_of(gpu), Event::timed(gpu)?, Event::timed(gpu)?);
        synchronize(device);
        other();
        start.record(&stream)?;
        let result = work();
        end.record(&stream)?;
        end.synchronize()?;
        return Ok((result, Seconds(end.since(&start)?.as_secs_f64())));
    }
    let start = Instant::now();
    let result = work();
    Ok((result, Seconds(start.elapsed().as_secs_f64())))
}
