//! What several processes measured at the same time, each on a device of its own: as numbers from process to process, and the mean of each
//! time. A training step runs on all GPUs of a host at once; so do these measurements, where there are several.

use anyhow::{Result, ensure};
use tch::{Device, Tensor};
use trainer::bench::curves::Curve;
use trainer::comm::Communicator;
use workloads::Seconds;

/// The processes that measure, or this one alone.
#[derive(Clone, Copy)]
pub struct Together<'a> {
    pub world: Option<&'a dyn Communicator>,
    pub device: Device,
}

impl Together<'_> {
    /// Returns once all have come here.
    ///
    /// # Errors
    /// A process that died or does not come.
    pub fn meet(&self) -> Result<()> {
        Ok(self.world.map_or(Ok(()), |world| world.barrier())?)
    }

    /// Every process's numbers, as many on each: `[process]`.
    ///
    /// # Errors
    /// A process that died or does not come.
    fn gather(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let Some(world) = self.world else { return Ok(vec![own.to_vec()]) };
        let all = world.all_gather(&Tensor::from_slice(own).to_device(self.device))?.wait()?;
        let all = Vec::<f64>::try_from(all.to_device(Device::Cpu).reshape([-1]))?;
        ensure!(all.len() == own.len() * world.size(), "{} numbers of {} processes", all.len(), world.size());
        Ok(all.chunks_exact(own.len().max(1)).map(<[f64]>::to_vec).collect())
    }

    /// The curves with the repeats of all processes.
    ///
    /// # Errors
    /// A process that died or does not come.
    pub fn curves(&self, mut own: Vec<Curve>) -> Result<Vec<Curve>> {
        let times = |curves: &[Curve]| -> Vec<f64> {
            curves.iter().flat_map(|curve| &curve.points).flat_map(|point| &point.times).map(|time| time.0).collect()
        };
        let all = self.gather(&times(&own))?;
        let mut first = 0;
        for point in own.iter_mut().flat_map(|curve| &mut curve.points) {
            let of_point = first..first + point.times.len();
            point.times = all.iter().flat_map(|of| of[of_point.clone()].iter().copied().map(Seconds)).collect();
            first = of_point.end;
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use trainer::bench::curves::{Point, Rate, Work};
    use trainer::comm::threads;

    #[test]
    fn processes_know_what_all_measured() {
        let of = |group: &dyn Communicator| {
            let (together, time) = (Together { world: Some(group), device: Device::Cpu }, 2.0 + group.rank() as f64);
            together.meet().unwrap();
            let point = Point { size: 1.0, amount: 1.0, times: vec![Seconds(time), Seconds(9.0)] };
            let (work, name, size, rate) = (Work::Sum, String::new(), "bytes", Rate::Bytes);
            let curves = together.curves(vec![Curve { work, name, size, rate, points: vec![point] }]).unwrap();
            assert_eq!(curves[0].points[0].times, [2.0, 9.0, 3.0, 9.0].map(Seconds));
        };
        let all = threads::run(2, Duration::from_secs(20), |group| -> Result<()> {
            of(group);
            Ok(())
        });
        all.into_iter().for_each(|of_process| of_process.unwrap());
    }
}
