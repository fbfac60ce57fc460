//! Replicas keep a part each of weights, gradients and optimizer state (ZeRO stage 3: Rajbhandari et al., SC'20; PyTorch's FSDP).
//!
//! Weights are gathered and gradients reduced unit by unit: what a bucket has of a block is a unit. The whole weights of all units of a
//! bucket share memory, and so do their whole gradients. So a rank holds one unit whole, and what is on its way of the next weights and
//! the last gradients. What autograd has saved of a unit's weights is right again once the unit is restored.

use std::cell::RefCell;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::comm::{CommError, Communicator, Pending};
use crate::model::parameters::{Bucket, Place, one_after_another};

/// Kernels read several numbers at a time: parts begin at multiples of so many.
const ALIGNED: usize = 8;

/// A replica's part of every unit of a bucket.
pub struct Share {
    /// Weights, gradients and optimizer state; the part of a unit is a parameter.
    state: Bucket,
    units: Vec<Unit>,
    /// The unit whose weights are on their way.
    gathering: RefCell<Option<(usize, Pending)>>,
    /// The unit whose gradients are on their way.
    reducing: RefCell<Option<(usize, Pending)>>,
}

/// Parameters that are gathered and reduced together: rows of equal length, each of which is cut into equal parts.
struct Unit {
    /// Among the bucket's parameters.
    parameters: Range<usize>,
    rows: i64,
    /// Numbers of a row.
    length: i64,
}

impl Unit {
    fn numbers(&self) -> i64 {
        self.rows * self.length
    }

    /// Whole rows, `[rows, length]`, from the parts of all replicas, `[replicas, rows * part]`.
    fn join(&self, parts: &Tensor) -> Tensor {
        let by_row = parts.view([parts.size()[0], self.rows, -1]).transpose(0, 1);
        by_row.reshape([self.rows, -1]).narrow(1, 0, self.length)
    }

    /// The parts of all replicas, `[replicas, rows * part]`, as a copy of whole rows, `[rows * length]`. Behind a row's end are zeros.
    fn cut(&self, whole: &Tensor, replicas: usize) -> Tensor {
        let part = (self.length as usize).div_ceil(replicas).next_multiple_of(ALIGNED) as i64;
        let padding = part * replicas as i64 - self.length;
        let padded = whole.view([self.rows, self.length]).constant_pad_nd([0, padding]);
        padded.view([self.rows, replicas as i64, part]).transpose(0, 1).reshape([replicas as i64, -1])
    }
}

/// The parameters of a bucket while they are collected, unit by unit where replicas keep parts: then no more than a unit is held whole.
pub struct Collected {
    device: Device,
    /// Of the last unit; all of them where replicas keep everything.
    parameters: Vec<Tensor>,
    /// This replica's number, and how many there are, where they keep parts.
    replica: Option<(usize, usize)>,
    units: Vec<Unit>,
    places: Vec<Place>,
    /// `[unit]`
    parts: Vec<Tensor>,
}

impl Collected {
    /// Of replica `number` of `replicas`, if these keep parts each.
    pub fn new(replica: Option<(usize, usize)>, device: Device) -> Self {
        let replica = replica.filter(|&(_, replicas)| replicas > 1);
        Self { device, parameters: Vec::new(), replica, units: Vec::new(), places: Vec::new(), parts: Vec::new() }
    }

    /// Adds a parameter; returns its index.
    pub fn push(&mut self, parameter: Tensor) -> usize {
        self.parameters.push(parameter);
        self.places.len() + self.parameters.len() - 1
    }

    /// Ends a unit, which may have no parameters.
    pub fn end_unit(&mut self) {
        if self.replica.is_some() {
            let parameters = std::mem::take(&mut self.parameters);
            let places = one_after_another(&parameters);
            self.add([joined(&parameters, self.device)], places);
        }
    }

    /// Adds a unit: its rows, and where its parameters are in them.
    fn add(&mut self, rows: impl IntoIterator<Item = Tensor>, places: Vec<Place>) {
        let Some((number, replicas)) = self.replica else { return };
        let first = self.places.len();
        let mut unit = Unit { parameters: first..first + places.len(), rows: 0, length: 0 };
        let mut parts = Vec::new();
        for row in rows {
            let one = Unit { parameters: 0..0, rows: 1, length: row.numel() as i64 };
            parts.push(one.cut(&row, replicas).get(number as i64).copy());
            (unit.rows, unit.length) = (unit.rows + 1, one.length);
        }
        self.parts.push(joined(&parts, self.device));
        self.places.extend(places);
        self.units.push(unit);
    }

    /// Weights and gradients of these kinds.
    pub fn bucket(self, [kind, gradients]: [Kind; 2]) -> Bucket {
        if self.replica.is_none() {
            return Bucket::new(&self.parameters, kind, self.device).with_gradients(gradients);
        }
        let most = self.units.iter().map(Unit::numbers).max().unwrap_or(0);
        let memory = [kind, gradients].map(|kind| Tensor::zeros([most], (kind, self.device)));
        self.in_memory(memory, [kind, gradients])
    }

    /// Whole weights and gradients in memory that is there; parts hold gradients of that kind.
    fn in_memory(self, memory: [Tensor; 2], [kind, gradients]: [Kind; 2]) -> Bucket {
        let state = Bucket::new(&self.parts, kind, self.device).with_gradients(gradients);
        let share = Share { state, units: self.units, gathering: RefCell::default(), reducing: RefCell::default() };
        let mut whole = Bucket::without_state(memory, &self.places);
        whole.share = Some(Box::new(share));
        whole
    }
}

/// All numbers of these parameters.
fn joined(parameters: &[Tensor], device: Device) -> Tensor {
    let flat: Vec<Tensor> = parameters.iter().map(|parameter| parameter.reshape([-1])).collect();
    if flat.is_empty() { Tensor::zeros([0], (Kind::Float, device)) } else { Tensor::cat(&flat, 0) }
}

impl Bucket {
    /// One unit of rows of `size` numbers, each a parameter, whole in memory that other buckets use, too: of weights, and of gradients. This replica,
    /// `replica.0` of `replica.1`, keeps its parts, with gradients of that kind.
    pub fn in_shares(
        rows: impl ExactSizeIterator<Item = Tensor>,
        size: i64,
        replica: (usize, usize),
        memory: &[Tensor; 2],
        gradients: Kind,
    ) -> Self {
        let _guard = tch::no_grad_guard();
        let kinds = [memory[0].kind(), gradients];
        let places: Vec<Place> = (0..rows.len() as i64).map(|row| (row * size, vec![size])).collect();
        let memory = memory.each_ref().map(|of| of.narrow(0, 0, rows.len() as i64 * size));
        let mut collected = Collected::new(Some(replica), memory[0].device());
        collected.add(rows, places);
        collected.in_memory(memory, kinds)
    }

    /// What the optimizer updates and checkpoints keep: the bucket itself, or this replica's part of it.
    pub fn state(&self) -> &Self {
        self.share.as_ref().map_or(self, |share| &share.state)
    }

    /// Whether replicas keep a part each.
    pub fn is_shared(&self) -> bool {
        self.share.is_some()
    }

    /// Starts to gather the weights of a unit, if that is not under way. No more than one unit is.
    ///
    /// # Errors
    /// A peer that died.
    pub fn gather(&self, unit: usize, replicas: &dyn Communicator) -> Result<(), CommError> {
        let Some(share) = &self.share else { return Ok(()) };
        let mut gathering = share.gathering.borrow_mut();
        if share.units[unit].numbers() > 0 && gathering.as_ref().is_none_or(|(under_way, _)| *under_way != unit) {
            *gathering = Some((unit, replicas.all_gather(&share.state.leaf(unit).detach())?));
        }
        Ok(())
    }

    /// Puts the weights of a unit in their place, in that of another unit's.
    ///
    /// # Errors
    /// A peer that died.
    pub fn restore(&self, unit: usize, replicas: &dyn Communicator) -> Result<(), CommError> {
        self.gather(unit, replicas)?;
        let Some(share) = &self.share else { return Ok(()) };
        if let Some((unit, gathered)) = share.gathering.take() {
            let unit = &share.units[unit];
            let rows = unit.join(&gathered.wait()?);
            // As data, for which autograd does not count a change: whoever reads the place later finds the same unit there.
            self.weights.data().narrow(0, 0, unit.numbers()).view_as(&rows).copy_(&rows);
        }
        Ok(())
    }

    /// Starts to sum the gradients of a unit over the replicas, each its part.
    ///
    /// # Errors
    /// A peer that died.
    pub fn reduce(&self, unit: usize, replicas: &dyn Communicator) -> Result<(), CommError> {
        self.reduced()?;
        let Some(share) = &self.share else { return Ok(()) };
        let of = &share.units[unit];
        if of.numbers() > 0 {
            let whole = self.gradients_from_start(of.parameters.clone(), of.numbers());
            let summing = replicas.reduce_scatter(&of.cut(&whole, replicas.size()))?;
            share.reducing.replace(Some((unit, summing)));
        }
        Ok(())
    }

    /// Waits for weights on their way, which are not put in their place yet, and for gradients on theirs.
    ///
    /// # Errors
    /// A peer that died.
    pub fn wait_for_transfers(&self) -> Result<(), CommError> {
        if let Some(share) = &self.share
            && let Some((unit, gathered)) = share.gathering.take()
        {
            let gathered = gathered.wait()?;
            share.gathering.replace(Some((unit, Pending::new(|| Ok(gathered)))));
        }
        self.reduced()
    }

    /// Waits for gradients that are on their way to the parts.
    ///
    /// # Errors
    /// A peer that died.
    pub fn reduced(&self) -> Result<(), CommError> {
        if let Some(share) = &self.share
            && let Some((unit, sum)) = share.reducing.take()
        {
            share.state.accumulate(unit, &sum.wait()?.view([-1]));
        }
        Ok(())
    }

    /// Master weights of parameter `index`, whole. All replicas call this together.
    ///
    /// # Errors
    /// A peer that died.
    pub fn whole_master(&self, index: usize, replicas: &dyn Communicator) -> Result<Tensor, CommError> {
        let Some(share) = &self.share else { return Ok(self.master_of(index)) };
        let number = share.units.iter().position(|unit| unit.parameters.contains(&index));
        let number = number.expect("every parameter is of a unit");
        let unit = &share.units[number];
        let rows = unit.join(&replicas.all_gather(&share.state.master_of(number))?.wait()?);
        let before: usize = (unit.parameters.start..index).map(|other| self.leaf(other).numel()).sum();
        let leaf = self.leaf(index);
        Ok(rows.reshape([-1]).narrow(0, before as i64, leaf.numel() as i64).view_as(leaf))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;
    use crate::model::tape::Tape;

    const PLACE: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Units of 20 numbers in two parameters, of none, and of 3, on three replicas.
    fn bucket(replica: usize) -> Bucket {
        let mut collected = Collected::new(Some((replica, 3)), Device::Cpu);
        for unit in [&[(0, 12), (12, 20)][..], &[], &[(20, 23)]] {
            for &(from, to) in unit {
                collected.push(Tensor::arange_start(from, to, PLACE));
            }
            collected.end_unit();
        }
        collected.bucket([Kind::Float; 2])
    }

    fn on_replicas(check: impl Fn(&Bucket, &dyn Communicator) -> Result<(), CommError> + Sync) {
        let ended = threads::run(3, Duration::from_secs(10), |group| {
            let _guard = tch::no_grad_guard();
            check(&bucket(group.rank()), group)
        });
        assert!(ended.into_iter().all(|ended| ended.is_ok()));
    }

    fn numbers(of: &Tensor) -> Vec<f32> {
        Vec::try_from(of.reshape([-1])).unwrap()
    }

    #[test]
    fn a_unit_is_whole_in_the_place_of_another() {
        on_replicas(|bucket, group| {
            // The larger unit; parts of it, and of the smaller one.
            assert_eq!((bucket.len(), bucket.state().len()), (20, 8 + 8));
            bucket.gather(0, group)?;
            bucket.wait_for_transfers()?;
            for _ in 0..2 {
                bucket.restore(0, group)?;
                assert_eq!(numbers(bucket.leaf(1)), [12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 19.0]);
                bucket.restore(1, group)?;
                bucket.restore(2, group)?;
                assert_eq!(numbers(bucket.leaf(2)), [20.0, 21.0, 22.0]);
            }
            for (index, first) in [(0, 0.0), (1, 12.0), (2, 20.0)] {
                assert_eq!(numbers(&bucket.whole_master(index, group)?)[0], first);
            }
            Ok(())
        });
    }

    /// Behind the gradients of the last replica's part, nothing is left of others.
    #[test]
    fn gradients_are_summed_into_parts() {
        on_replicas(|bucket, group| {
            for unit in [2, 0, 0] {
                bucket.clear();
                let index = if unit == 0 { 1 } else { 2 };
                let gradient = bucket.leaf(index).ones_like() * (1 + group.rank() as i64);
                bucket.accumulate(index, &gradient);
                bucket.reduce(unit, group)?;
            }
            bucket.reduced()?;
            // Twice 1 + 2 + 3 for each of the numbers from 12 to 19; once in the unit of three.
            let expected = match group.rank() {
                0 => [[0.0; 8], [6.0, 6.0, 6.0, 0.0, 0.0, 0.0, 0.0, 0.0]],
                1 => [[0.0, 0.0, 0.0, 0.0, 12.0, 12.0, 12.0, 12.0], [0.0; 8]],
                _ => [[12.0, 12.0, 12.0, 12.0, 0.0, 0.0, 0.0, 0.0], [0.0; 8]],
            };
            assert_eq!(numbers(bucket.state().gradients()), expected.concat());
            Ok(())
        });
    }

    /// A tape reads the weights that are in their place when it runs backward.
    #[test]
    fn autograd_finds_a_unit_that_is_restored() {
        on_replicas(|bucket, group| {
            let x = Tensor::ones([3], PLACE);
            bucket.restore(2, group)?;
            let ([_], tape) = Tape::record(bucket, &[2], &[&x], |x, w| [&x[0] * w[0]]);
            bucket.restore(0, group)?;
            bucket.restore(2, group)?;
            assert_eq!(numbers(&tape.backward(bucket, &[&x])[0]), [20.0, 21.0, 22.0]);
            Ok(())
        });
    }
}
