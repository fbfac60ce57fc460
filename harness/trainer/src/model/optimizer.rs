//! Adam (Kingma and Ba 2015) with decoupled weight decay (Loshchilov and Hutter 2019), on single-precision master weights.

use tch::Kind;
use workloads::Training;

use crate::model::parameters::Bucket;

/// Parameters updated at a time, so that temporary memory stays small.
const CHUNK: i64 = 1 << 26;

/// One step: step number `t` (from 1), gradients multiplied by `factor`. Clears the gradients.
pub fn step(training: &Training, bucket: &Bucket, t: usize, factor: f64) {
    let Training { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *training;
    let correction = |beta: f64| 1.0 - beta.powi(t as i32);
    let (of_first, of_second) = (correction(beta1), correction(beta2));
    let mut start = 0;
    while start < bucket.len() {
        let length = CHUNK.min(bucket.len() - start);
        let part = |of: &tch::Tensor| of.narrow(0, start, length);
        let gradient = part(&bucket.gradients).to_kind(Kind::Float) * factor;
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
    let _ = bucket.gradients.shallow_clone().zero_();
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Tensor};

    /// Three steps of the published algorithm, written out.
    #[test]
    fn steps_are_those_of_the_paper() {
        let training = Training { learning_rate: 0.1, weight_decay: 0.01, ..Training::default() };
        let bucket = Bucket::new(&[Tensor::from_slice(&[1.0f32, -2.0])], Kind::Float, Device::Cpu);
        let gradients = [[0.5, -1.0], [0.25, 3.0], [-0.5, 0.0]];
        let mut expected = [(1.0f64, 0.0f64, 0.0f64), (-2.0, 0.0, 0.0)];
        for (t, gradient) in (1..).zip(gradients) {
            bucket.accumulate(0, &Tensor::from_slice(&[gradient[0] as f32, gradient[1] as f32]));
            step(&training, &bucket, t, 2.0);
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
        assert_eq!(f64::try_from(bucket.gradients.abs().sum(Kind::Float)).unwrap(), 0.0);
    }
}
