//! Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), on single-precision master weights.

use std::ops::Range;

use tch::{Device, Kind, Tensor};
use workloads::Training;

use crate::error::TrainError;
use crate::host::to_scalar;
use crate::kernels::{self, AdamStep};
use crate::model::parameters::Bucket;

/// Parameters updated at a time, so that temporary memory stays small.
const CHUNK: i64 = 1 << 26;

/// What gradients are multiplied by.
pub enum Factor {
    Host(f64),
    /// One number in single precision on a GPU: the host never waits for it.
    Gpu(Tensor),
}

impl Factor {
    /// Gradients as they are.
    pub fn one(device: Device) -> Self {
        match kernels::at(device) {
            Some(_) => Self::Gpu(Tensor::ones([1], (Kind::Float, device))),
            None => Self::Host(1.0),
        }
    }

    /// Clips a gradient whose squared norm over the whole model is `square` to the norm `most`.
    ///
    /// # Errors
    /// A norm of another kind than double precision.
    pub fn clip(square: &Tensor, most: f64) -> Result<Self, TrainError> {
        if kernels::at(square.device()).is_some() {
            let factor = (square.sqrt().reciprocal() * most).clamp_max(1.0);
            return Ok(Self::Gpu(factor.to_kind(Kind::Float)));
        }
        let norm = to_scalar::<f64>(square)?.sqrt();
        Ok(Self::Host(if norm > most { most / norm } else { 1.0 }))
    }
}

/// One step: step number `t` (from 1), gradients multiplied by `factor`. Clears the gradients.
pub fn step(training: &Training, bucket: &Bucket, t: usize, factor: &Factor) {
    step_of(training, bucket, std::slice::from_ref(&(0..bucket.len())), t, factor);
}

/// The same, of these numbers of the bucket alone.
pub fn step_of(training: &Training, bucket: &Bucket, updated: &[Range<i64>], t: usize, factor: &Factor) {
    for numbers in updated {
        match (kernels::on(&bucket.weights), factor) {
            (Some(kernels), Factor::Gpu(factor)) => {
                let part = |of: &Tensor| of.narrow(0, numbers.start, numbers.end - numbers.start);
                let [master, first, second] = [&bucket.master, &bucket.first, &bucket.second].map(part);
                let gradients = part(bucket.gradients()).to_kind(Kind::Float);
                let weights = part(&bucket.weights);
                kernels.adam(constants(training, t), [&master, &first, &second], &gradients, &weights, factor);
            }
            (_, factor) => step_by_parts(training, bucket, numbers, t, factor),
        }
    }
    bucket.clear();
}

/// The numbers of step `t` as the kernel wants them.
fn constants(training: &Training, t: usize) -> AdamStep {
    let Training { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *training;
    let correction = |beta: f64| 1.0 - beta.powi(t as i32);
    AdamStep {
        beta1,
        beta2,
        rate: learning_rate / correction(beta1),
        of_second: 1.0 / correction(beta2),
        epsilon,
        keep: 1.0 - learning_rate * weight_decay,
    }
}

/// The step by libtorch's operations.
fn step_by_parts(training: &Training, bucket: &Bucket, numbers: &Range<i64>, t: usize, factor: &Factor) {
    let Training { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *training;
    let correction = |beta: f64| 1.0 - beta.powi(t as i32);
    let (of_first, of_second) = (correction(beta1), correction(beta2));
    let mut start = numbers.start;
    while start < numbers.end {
        let length = CHUNK.min(numbers.end - start);
        let part = |of: &tch::Tensor| of.narrow(0, start, length);
        let gradient = part(bucket.gradients()).to_kind(Kind::Float);
        let gradient = match factor {
            Factor::Host(factor) => gradient * *factor,
            Factor::Gpu(factor) => gradient * factor,
        };
        let (mut first, mut second) = (part(&bucket.first), part(&bucket.second));
        let _ = first.lerp_(&gradient, 1.0 - beta1);
        let _ = second.lerp_(&gradient.square(), 1.0 - beta2);
        let scale = (second / of_second).sqrt_() + epsilon;
        let mut master = part(&bucket.master);
        if weight_decay > 0.0 {
            let _ = master.g_mul_scalar_(1.0 - learning_rate * weight_decay);
        }
        let _ = master.g_sub_(&(first / scale * (learning_rate / of_first)));
        if bucket.weights.kind() != Kind::Float {
            part(&bucket.weights).copy_(&master);
        }
        start += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps of the published algorithm, written out.
    #[test]
    fn steps_are_those_of_the_paper() {
        let training = Training { learning_rate: 0.1, weight_decay: 0.01, ..Training::default() };
        let bucket = Bucket::new(&[Tensor::from_slice(&[1.0f32, -2.0])], Kind::Float, Device::Cpu);
        let gradients = [[0.5, -1.0], [0.25, 3.0], [-0.5, 0.0]];
        let mut expected = [(1.0f64, 0.0f64, 0.0f64), (-2.0, 0.0, 0.0)];
        for (t, gradient) in (1..).zip(gradients) {
            bucket.accumulate(0, &Tensor::from_slice(&[gradient[0] as f32, gradient[1] as f32]));
            step(&training, &bucket, t, &Factor::Host(2.0));
            for ((weight, m, v), g) in expected.iter_mut().zip(gradient) {
                let g = 2.0 * g;
                *m = training.beta1 * *m + (1.0 - training.beta1) * g;
                *v = training.beta2 * *v + (1.0 - training.beta2) * g * g;
                let (m, v) = (*m / (1.0 - training.beta1.powi(t as i32)), *v / (1.0 - training.beta2.powi(t as i32)));
                *weight -= training.learning_rate * training.weight_decay * *weight;
                *weight -= training.learning_rate * m / (v.sqrt() + training.epsilon);
            }
        }
        let found = Vec::<f32>::try_from(&bucket.master).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((f64::from(*found) - expected.0).abs() < 1e-5, "{found} {expected:?}");
        }
        assert_eq!(f64::try_from(bucket.gradients().abs().sum(Kind::Float)).unwrap(), 0.0);
    }

    /// The kernel does what the operations do, on a bucket whose length is no multiple of anything.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_takes_the_same_steps() {
        use crate::kernels::tests::{error, gpu, normal};
        gpu();
        let training = Training { learning_rate: 0.01, weight_decay: 0.1, ..Training::default() };
        let initial = normal(&[1_000_003]);
        let bucket = |kind| Bucket::new(&[initial.copy()], kind, Device::Cuda(0));
        let (found, expected) = (bucket(Kind::BFloat16), bucket(Kind::Float));
        let factor = Factor::clip(&Tensor::from(16.0f64).to_device(Device::Cuda(0)), 2.0).unwrap();
        for t in 1..=3 {
            let gradient = normal(&[1_000_003]);
            for bucket in [&found, &expected] {
                bucket.accumulate(0, &gradient);
                step(&training, bucket, t, &factor);
            }
        }
        assert!(error(&found.master, &expected.master) < 1e-6);
        assert!(error(&found.first, &expected.first) < 1e-6 && error(&found.second, &expected.second) < 1e-6);
        assert!(found.weights.equal(&found.master.to_kind(Kind::BFloat16)));
        assert_eq!(f64::try_from(found.gradients().abs().sum(Kind::Float)).unwrap(), 0.0);
    }
}
