//! What several processes measured at the same time, each on a device of its own: as numbers from process to process, and the mean of each
//! time. A training step runs on all GPUs of a host at once; so do these measurements, where there are several.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tch::{Device, Tensor};
use trainer::bench::curves::Curve;
use trainer::comm::Communicator;
use workloads::Seconds;

use super::segments::{Ahead, MeasuredRun, Segment, SegmentPlace, Times};

/// The processes that measure, or this one alone.
#[derive(Clone, Copy)]
pub struct Together<'a> {
    pub world: Option<&'a dyn Communicator>,
    pub device: Device,
}

impl Together<'_> {
    /// How many there are.
    pub fn size(&self) -> usize {
        self.world.map_or(1, |world| world.size())
    }

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

    /// The run on every process. All had the same model and data, so that the gate chose the same.
    ///
    /// # Errors
    /// A process that died or does not come.
    pub fn runs(&self, own: &MeasuredRun) -> Result<Vec<MeasuredRun>> {
        Ok(self.gather(&numbers(own))?.iter().map(|numbers| of_numbers(own, numbers)).collect())
    }
}

/// All places that a run's segments can have.
fn places(run: &MeasuredRun) -> Vec<SegmentPlace> {
    let blocks = std::iter::once(None).chain((0..run.job.model.blocks.len()).map(Some));
    let mut all = Vec::new();
    for (segment, block) in blocks.flat_map(|block| Segment::ALL.map(|segment| (segment, block))) {
        for backward in [false, true] {
            all.extend((0..run.job.gpus).map(|rank| SegmentPlace { segment, backward, block, rank }));
        }
    }
    all
}

/// Its times alone, queued and until issued, in the order of [`places`]; no number where there is none.
fn numbers(run: &MeasuredRun) -> Vec<f64> {
    let (none, places) = (Ahead::default(), places(run));
    let Ahead { queued, issued } = run.ahead.as_ref().unwrap_or(&none);
    let of = |times: &Times| -> Vec<f64> {
        places.iter().map(|place| times.get(place).map_or(f64::NAN, |time| time.0)).collect()
    };
    [&run.measured, queued, issued].map(of).concat()
}

/// The run with other times.
fn of_numbers(run: &MeasuredRun, numbers: &[f64]) -> MeasuredRun {
    let places = places(run);
    let mut of = numbers.chunks_exact(places.len()).map(|numbers| -> Times {
        let known = places.iter().zip(numbers).filter(|(_, time)| !time.is_nan());
        known.map(|(&place, &time)| (place, Seconds(time))).collect()
    });
    let [measured, queued, issued] = [(); 3].map(|()| of.next().unwrap_or_default());
    MeasuredRun { measured, ahead: run.ahead.as_ref().map(|_| Ahead { queued, issued }), ..run.clone() }
}

/// One run on several processes as one of the mean times.
pub fn mean(all: &[MeasuredRun]) -> Option<MeasuredRun> {
    let of = |times: &dyn Fn(&MeasuredRun) -> Option<&Times>| -> Times {
        let mut sums: BTreeMap<SegmentPlace, (Seconds, f64)> = BTreeMap::new();
        for (&place, &time) in all.iter().filter_map(times).flatten() {
            let (sum, number) = sums.entry(place).or_default();
            *sum += time;
            *number += 1.0;
        }
        sums.into_iter().map(|(place, (sum, number))| (place, sum * (1.0 / number))).collect()
    };
    let first = all.first()?;
    let queued = of(&|run| run.ahead.as_ref().map(|ahead| &ahead.queued));
    let issued = of(&|run| run.ahead.as_ref().map(|ahead| &ahead.issued));
    let ahead = first.ahead.as_ref().map(|_| Ahead { queued, issued });
    Some(MeasuredRun { measured: of(&|run| Some(&run.measured)), ahead, ..first.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use systems::zoo::expert_only::ExpertOnly;
    use systems::{Job, Plan};
    use trainer::bench::curves::{Point, Rate, Work};
    use trainer::comm::threads;
    use workloads::trace::BatchCounts;
    use workloads::{Cluster, Gate, Model};

    /// A run whose only segments, in this block, take so long alone; until issued, half as long in the other direction.
    fn run(time: f64) -> MeasuredRun {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let batch = BatchCounts::new(1, 1, 1, vec![1]);
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 2, Gate::NoDrop, 2);
        let place = SegmentPlace { segment: Segment::Block, backward: false, block: Some(1), rank: 1 };
        let times = |backward, time| Times::from([(SegmentPlace { backward, ..place }, Seconds(time))]);
        let ahead = Some(Ahead { queued: Times::new(), issued: times(true, time / 2.0) });
        let (name, plan, measured) = (String::new(), Plan { dp: 2, ep: 2, ..Plan::default() }, times(false, time));
        MeasuredRun { name, job, plan, system: &ExpertOnly, batch, warmup: 0, measured, ahead }
    }

    #[test]
    fn processes_know_what_all_measured() {
        let of = |group: &dyn Communicator| {
            let (together, time) = (Together { world: Some(group), device: Device::Cpu }, 2.0 + group.rank() as f64);
            together.meet().unwrap();
            let point = Point { size: 1.0, amount: 1.0, times: vec![Seconds(time), Seconds(9.0)] };
            let (work, name, size, rate) = (Work::Sum, String::new(), "bytes", Rate::Bytes);
            let curves = together.curves(vec![Curve { work, name, size, rate, points: vec![point] }]).unwrap();
            assert_eq!(curves[0].points[0].times, [2.0, 9.0, 3.0, 9.0].map(Seconds));
            let runs = together.runs(&run(time)).unwrap();
            for (found, time) in runs.iter().zip([2.0, 3.0]) {
                assert_eq!(found.measured, run(time).measured);
                assert_eq!(found.ahead.as_ref().unwrap().issued, run(time).ahead.unwrap().issued);
            }
            let mean = mean(&runs).unwrap();
            assert_eq!(mean.measured, run(2.5).measured);
            assert_eq!(mean.ahead.unwrap().issued, run(2.5).ahead.unwrap().issued);
        };
        let all = threads::run(2, Duration::from_secs(20), |group| -> Result<()> {
            of(group);
            Ok(())
        });
        all.into_iter().for_each(|of_process| of_process.unwrap());
        let alone = Together { world: None, device: Device::Cpu };
        assert_eq!(alone.runs(&run(4.0)).unwrap()[0].measured, run(4.0).measured);
    }
}
