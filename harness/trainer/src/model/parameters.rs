//! Parameters of a rank: flat buckets of weights, gradients and optimizer state, and their initial values.
//!
//! Parameters that are synchronised over the same ranks lie one after the other in one [`Bucket`], so that a gradient
//! synchronisation is one collective and an optimizer step a handful of kernels. Initial values follow from the seed and
//! the parameter's name alone: every plan starts from the same model.

use std::cell::RefCell;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::hash::fnv1a;
use crate::kernels;
use crate::model::share::Share;

/// Standard deviation of initial weights, as in GPT-2 (Radford et al. 2019) and Megatron-LM.
pub const DEVIATION: f64 = 0.02;

/// Parameters that are synchronised over the same ranks: weights, gradients, optimizer state.
pub struct Bucket {
    /// `[n]`, in the kind that products use.
    pub weights: Tensor,
    /// `[n]`, single precision unless [`Self::with_gradients`] says otherwise. Complete after [`Self::settle`].
    gradients: Tensor,
    /// `[m]`, single precision, of the first m weights, all unless [`Self::hold_state`] says otherwise; the weights themselves where these are in
    /// single precision.
    pub master: Tensor,
    /// `[m]`: Adam's running mean of gradients.
    pub first: Tensor,
    /// `[m]`: Adam's running mean of squares.
    pub second: Tensor,
    /// The parameters as leaves of autograd, sharing `weights`.
    leaves: Vec<Tensor>,
    /// Their gradients, sharing `gradients`.
    slots: Vec<Tensor>,
    /// `[parameter]`: whether its gradient is zero, whatever is in its memory. On a GPU, writing the first product of an
    /// iteration is cheaper than clearing the memory and adding to it.
    cleared: RefCell<Vec<bool>>,
    /// Where replicas keep a part each of the state: weights and gradients are whole for a while then, and the rest is absent.
    pub(super) share: Option<Box<Share>>,
}

impl Bucket {
    pub fn new(parameters: &[Tensor], kind: Kind, device: Device) -> Self {
        let _guard = tch::no_grad_guard();
        let flat: Vec<Tensor> = parameters.iter().map(|parameter| parameter.reshape([-1])).collect();
        let master = match flat.is_empty() {
            true => Tensor::zeros([0], (Kind::Float, device)),
            false => Tensor::cat(&flat, 0).to_kind(Kind::Float).to_device(device),
        };
        let weights = if kind == Kind::Float { master.shallow_clone() } else { master.to_kind(kind) };
        let gradients = Tensor::zeros([weights.numel() as i64], (Kind::Float, device));
        let (first, second) = (master.zeros_like(), master.zeros_like());
        Self::over([weights, gradients], [master, first, second], &one_after_another(parameters))
    }

    /// `count` parameters of `size` numbers in memory that is there, `[at least count * size]`, without master weights and optimizer state, which are
    /// elsewhere. Their gradients are cleared.
    pub fn in_memory([weights, gradients]: [&Tensor; 2], count: usize, size: i64) -> Self {
        let _guard = tch::no_grad_guard();
        let part = |of: &Tensor| of.narrow(0, 0, count as i64 * size);
        let places: Vec<Place> = (0..count as i64).map(|index| (index * size, vec![size])).collect();
        Self::without_state([part(weights), part(gradients)], &places)
    }

    /// Parameters in memory that is there, without master weights and optimizer state. Their gradients are cleared.
    pub(super) fn without_state(memory: [Tensor; 2], places: &[Place]) -> Self {
        let none = || Tensor::zeros([0], (Kind::Float, memory[0].device()));
        let bucket = Self::over(memory.each_ref().map(Tensor::shallow_clone), [none(), none(), none()], places);
        bucket.clear();
        bucket
    }

    /// With gradients held in that kind, cleared.
    #[must_use]
    pub fn with_gradients(self, kind: Kind) -> Self {
        if kind == self.gradients.kind() {
            return self;
        }
        let places = one_after_another(&self.leaves);
        let Self { weights, gradients, master, first, second, .. } = self;
        Self::over([weights, gradients.zeros_like().to_kind(kind)], [master, first, second], &places)
    }

    /// Keeps master weights and optimizer state of the first `numbers` weights alone: state that was there stays, and new one is zero.
    pub fn hold_state(&mut self, numbers: i64) {
        let _guard = tch::no_grad_guard();
        let held = self.master.numel() as i64;
        if held == numbers {
            return;
        }
        let resized = |of: &Tensor| match numbers - held {
            more @ 1.. => Tensor::cat(&[of, &of.new_zeros([more], (of.kind(), of.device()))], 0),
            _ => of.narrow(0, 0, numbers).copy(),
        };
        self.master = match self.weights.kind() {
            Kind::Float => self.weights.narrow(0, 0, numbers),
            _ => resized(&self.master),
        };
        (self.first, self.second) = (resized(&self.first), resized(&self.second));
    }

    /// Parameters at these places of the tensors.
    fn over([weights, gradients]: [Tensor; 2], [master, first, second]: [Tensor; 3], places: &[Place]) -> Self {
        let view =
            |of: &Tensor, (start, shape): &Place| of.narrow(0, *start, shape.iter().product()).view(shape.as_slice());
        let leaves: Vec<Tensor> =
            places.iter().map(|place| view(&weights, place).detach().set_requires_grad(true)).collect();
        let slots = places.iter().map(|place| view(&gradients, place)).collect();
        let cleared = RefCell::new(vec![false; leaves.len()]);
        Self { weights, gradients, master, first, second, leaves, slots, cleared, share: None }
    }

    /// Parameter `index` as a leaf of autograd.
    pub fn leaf(&self, index: usize) -> &Tensor {
        &self.leaves[index]
    }

    /// Master weights of parameter `index`.
    pub fn master_of(&self, index: usize) -> Tensor {
        let offset: usize = self.leaves[..index].iter().map(Tensor::numel).sum();
        let leaf = &self.leaves[index];
        self.master.narrow(0, offset as i64, leaf.numel() as i64).view(leaf.size().as_slice())
    }

    /// Adds to the gradient of a parameter.
    pub fn accumulate(&self, index: usize, gradient: &Tensor) {
        let mut slot = self.slots[index].shallow_clone();
        if self.begin(index..index + 1) {
            slot.copy_(&gradient.view_as(&slot));
        } else {
            let _ = slot.g_add_(gradient);
        }
    }

    /// Adds the product of two half-precision matrices on a GPU to the gradient of a parameter, unrounded.
    pub fn accumulate_product(&self, index: usize, first: &Tensor, second: &Tensor) {
        let mut slot = self.slots[index].shallow_clone();
        match (self.begin(index..index + 1), slot.kind()) {
            (true, Kind::Float) => drop(first.mm_dtype_out(&slot, second, Kind::Float)),
            (true, _) => drop(first.mm_out(&slot, second)),
            (false, _) => drop(slot.g_add_(&first.mm_dtype(second, Kind::Float))),
        }
    }

    /// All gradients, `[n]`, with those that nothing was added to.
    pub fn gradients(&self) -> &Tensor {
        self.settle(0..self.slots.len());
        &self.gradients
    }

    /// The gradients of some parameters, to be added to by kernels, and whether they hold nothing yet: what is in their
    /// memory is then to be overwritten.
    pub fn open(&self, parameters: Range<usize>) -> (&Tensor, bool) {
        let fresh = self.begin(parameters);
        (&self.gradients, fresh)
    }

    /// All gradients, to be added to that of one parameter.
    pub fn gradients_of(&self, index: usize) -> &Tensor {
        self.settle(index..index + 1);
        &self.gradients
    }

    /// Whether all of these gradients are cleared; from here on none is.
    fn begin(&self, parameters: Range<usize>) -> bool {
        let all = self.cleared.borrow()[parameters.clone()].iter().all(|&cleared| cleared);
        if all {
            self.cleared.borrow_mut()[parameters].fill(false);
        } else {
            self.settle(parameters);
        }
        all
    }

    /// Writes the zeros of cleared gradients.
    fn settle(&self, parameters: Range<usize>) {
        for index in parameters {
            if std::mem::take(&mut self.cleared.borrow_mut()[index]) {
                let _ = self.slots[index].shallow_clone().zero_();
            }
        }
    }

    /// The gradients of some parameters, the first of which begins at 0: `[length]`.
    pub(super) fn gradients_from_start(&self, parameters: Range<usize>, length: i64) -> Tensor {
        self.settle(parameters);
        self.gradients.narrow(0, 0, length)
    }

    /// Clears all gradients.
    pub fn clear(&self) {
        match self.weights.device() {
            Device::Cuda(_) => self.cleared.borrow_mut().fill(true),
            _ => drop(self.gradients.shallow_clone().zero_()),
        }
    }

    /// Clears the gradients of some parameters, which may be read until then by what was begun before.
    pub fn clear_some(&self, parameters: &[usize]) {
        for &parameter in parameters {
            match self.weights.device() {
                Device::Cuda(_) => self.cleared.borrow_mut()[parameter] = true,
                _ => drop(self.slots[parameter].shallow_clone().zero_()),
            }
        }
    }

    /// How many numbers its parameters have together.
    pub fn len(&self) -> i64 {
        self.weights.numel() as i64
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where a parameter begins in a bucket's tensors, and its shape.
pub(super) type Place = (i64, Vec<i64>);

/// The places of parameters without gaps.
pub(super) fn one_after_another(parameters: &[Tensor]) -> Vec<Place> {
    let next = |end: &mut i64, parameter: &Tensor| {
        let start = *end;
        *end += parameter.numel() as i64;
        Some((start, parameter.size()))
    };
    parameters.iter().scan(0, next).collect()
}

/// Initial values of one parameter, in single precision: drawn where they are needed, the same everywhere up to rounding.
pub fn initial(seed: u64, name: &str, shape: &[i64], values: Initial, device: Device) -> Tensor {
    match (values, kernels::at(device)) {
        (Initial::Zeros, _) => Tensor::zeros(shape, (Kind::Float, device)),
        (Initial::Ones, _) => Tensor::ones(shape, (Kind::Float, device)),
        (Initial::Normal(scale), Some(kernels)) => kernels.normal(&stream(seed, name), shape, DEVIATION * scale),
        (Initial::Normal(scale), None) => {
            let count = shape.iter().product::<i64>() as usize;
            let deviation = (DEVIATION * scale) as f32;
            let values: Vec<f32> = normal(stream(seed, name), count).into_iter().map(|x| x * deviation).collect();
            Tensor::from_slice(&values).view(shape).to_device(device)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    Zeros,
    Ones,
    /// Normal, [`DEVIATION`] times this.
    Normal(f64),
}

/// The stream of random numbers of a name.
pub fn stream(seed: u64, name: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name.as_bytes()));
    rng
}

/// A number in (0, 1].
pub fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    ((rng.next_u64() >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// Standard normal numbers by Box and Muller (1958), in pairs. Pieces are drawn in parallel, each from its place in the
/// stream.
fn normal(rng: ChaCha8Rng, count: usize) -> Vec<f32> {
    const PIECE: usize = 1 << 16;
    // A pair takes two draws of two words each.
    const WORDS: usize = 2 * PIECE;
    let mut values = vec![0.0; count];
    values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| {
        let mut rng = rng.clone();
        rng.set_word_pos((piece * WORDS) as u128);
        for pair in values.chunks_mut(2) {
            let radius = (-2.0 * uniform(&mut rng).ln()).sqrt();
            let (sine, cosine) = (2.0 * std::f64::consts::PI * uniform(&mut rng)).sin_cos();
            let drawn = [(radius * cosine) as f32, (radius * sine) as f32];
            pair.copy_from_slice(&drawn[..pair.len()]);
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_and_name_and_are_normal() {
        let draw = |seed, name| initial(seed, name, &[100, 100], Initial::Normal(1.0), Device::Cpu);
        assert!(draw(1, "a").equal(&draw(1, "a")));
        assert!(!draw(1, "a").equal(&draw(1, "b")) && !draw(1, "a").equal(&draw(2, "a")));
        let values = draw(3, "c") / DEVIATION;
        let (mean, deviation) = (values.mean(Kind::Float), values.std(true));
        assert!(f64::try_from(mean).unwrap().abs() < 0.03);
        assert!((f64::try_from(deviation).unwrap() - 1.0).abs() < 0.03);
    }

    /// The stream has no seams where pieces meet.
    #[test]
    fn a_longer_parameter_begins_like_a_shorter_one() {
        let long = normal(stream(1, "a"), 200_001);
        assert_eq!(normal(stream(1, "a"), 100_000), long[..100_000]);
        let mut rng = stream(1, "a");
        rng.set_word_pos(2 * 70_000);
        assert_eq!(normal_at(rng), long[70_000]);
    }

    /// The first of a pair.
    fn normal_at(mut rng: ChaCha8Rng) -> f32 {
        let radius = (-2.0 * uniform(&mut rng).ln()).sqrt();
        (radius * (2.0 * std::f64::consts::PI * uniform(&mut rng)).cos()) as f32
    }

    #[test]
    fn leaves_share_the_buckets_memory() {
        let bucket = Bucket::new(
            &[Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)), Tensor::ones([3], (Kind::Float, Device::Cpu))],
            Kind::Float,
            Device::Cpu,
        );
        assert_eq!(bucket.len(), 7);
        let _ = bucket.weights.shallow_clone().fill_(5.0);
        assert_eq!(f64::try_from(bucket.leaf(1).sum(Kind::Float)).unwrap(), 15.0);
        bucket.accumulate(0, &Tensor::ones([2, 2], (Kind::Float, Device::Cpu)));
        assert_eq!(f64::try_from(bucket.gradients().sum(Kind::Float)).unwrap(), 4.0);
    }

    /// What is held stays, and what is held anew begins at zero; single-precision weights stay their own masters.
    #[test]
    fn state_is_held_of_the_first_numbers() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let parameters = [1.0, 2.0, 3.0].map(|value| Tensor::full([2], value, (Kind::Float, Device::Cpu)));
            let mut bucket = Bucket::new(&parameters, kind, Device::Cpu);
            let _ = bucket.first.fill_(7.0);
            bucket.hold_state(4);
            assert_eq!([&bucket.master, &bucket.first, &bucket.second].map(Tensor::size), [[4], [4], [4]]);
            bucket.hold_state(6);
            let numbers = |of: &Tensor| Vec::<f32>::try_from(of).unwrap();
            let last = if kind == Kind::Float { 3.0 } else { 0.0 };
            assert_eq!(numbers(&bucket.master), [1.0, 1.0, 2.0, 2.0, last, last]);
            assert_eq!(numbers(&bucket.first), [7.0, 7.0, 7.0, 7.0, 0.0, 0.0]);
            assert_eq!(bucket.master.data_ptr() == bucket.weights.data_ptr(), kind == Kind::Float);
            assert_eq!(bucket.len(), 6);
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_draws_what_the_cpu_draws() {
        let gpu = kernels::tests::gpu();
        for count in [1, 7, 8, 100_003] {
            let drawn = gpu.normal(&stream(7, "a"), &[count], DEVIATION);
            let expected = initial(7, "a", &[count], Initial::Normal(1.0), Device::Cpu);
            let distance = (drawn.to_device(Device::Cpu) - &expected).abs().max();
            assert!(f64::try_from(distance).unwrap() < 1e-7);
        }
    }

    /// Cleared gradients are zero, whether or not something is added to them, in whatever way.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn cleared_gradients_are_zero() {
        let device = Device::Cuda(0);
        kernels::tests::gpu();
        let parameter = || Tensor::ones([8, 8], (Kind::Float, device));
        let bucket = Bucket::new(&[parameter(), parameter(), parameter()], Kind::BFloat16, device);
        let _ = bucket.gradients().shallow_clone().fill_(7.0);
        bucket.clear();
        let half = parameter().to_kind(Kind::BFloat16);
        for sum in [1.0, 2.0] {
            bucket.accumulate(0, &half);
            bucket.accumulate_product(1, &half, &half);
            let sums = bucket.gradients().view([3, 64]).mean_dim(1, false, Kind::Float);
            assert_eq!(Vec::<f32>::try_from(sums.to_device(Device::Cpu)).unwrap(), [sum, 8.0 * sum, 0.0]);
        }
    }
}
