//! The experts of one MoE layer on one rank: two matrices each, with the forward and the backward pass written out.
//!
//! An expert's parameters are one row of a flat bucket, `[W1: width x inner, b1: inner, W2: inner x width, b2: width]`, so
//! that weights, gradient or optimizer state of an expert travel as one tensor.

use tch::{Device, Kind, Tensor};
use workloads::model::Moe;

use crate::model::parameters::{Bucket, Initial, initial};

pub struct Experts {
    /// Weights, gradients and optimizer state, `[slots * parameters of an expert]`.
    pub bucket: Bucket,
    moe: Moe,
}

/// Saved for backward.
pub struct Saved {
    input: Tensor,
    inner: Tensor,
    active: Tensor,
}

/// An expert's parameters, or their gradients.
pub struct Views {
    first: Tensor,
    first_bias: Tensor,
    second: Tensor,
    second_bias: Tensor,
}

impl Views {
    pub fn new(flat: &Tensor, moe: &Moe) -> Self {
        let (width, inner) = (moe.width as i64, moe.inner as i64);
        let matrix = width * inner;
        Self {
            first: flat.narrow(0, 0, matrix).view([width, inner]),
            first_bias: flat.narrow(0, matrix, inner),
            second: flat.narrow(0, matrix + inner, matrix).view([inner, width]),
            second_bias: flat.narrow(0, 2 * matrix + inner, width),
        }
    }
}

impl Experts {
    /// The experts `experts` of MoE layer `layer` at their initial values, in slot order. `depth` blocks scale the second
    /// matrix as in GPT-2.
    pub fn new(seed: u64, layer: usize, experts: &[usize], moe: Moe, depth: usize, kind: Kind, device: Device) -> Self {
        let (width, inner) = (moe.width as i64, moe.inner as i64);
        let one = |&expert: &usize| {
            let part = |what: &str, shape: &[i64], values| {
                initial(seed, &format!("layer {layer} expert {expert} {what}"), shape, values).reshape([-1])
            };
            Tensor::cat(
                &[
                    part("first", &[width, inner], Initial::Normal(1.0)),
                    part("first bias", &[inner], Initial::Zeros),
                    part("second", &[inner, width], Initial::Normal(1.0 / (2.0 * depth as f64).sqrt())),
                    part("second bias", &[width], Initial::Zeros),
                ],
                0,
            )
        };
        let rows: Vec<Tensor> = experts.iter().map(one).collect();
        Self { bucket: Bucket::new(&rows, kind, device), moe }
    }

    /// The flat row of a slot in `of`, one of the bucket's tensors.
    pub fn row(&self, of: &Tensor, slot: usize) -> Tensor {
        let size = self.moe.expert_parameters() as i64;
        of.narrow(0, slot as i64 * size, size)
    }

    pub fn weights(&self, slot: usize) -> Views {
        Views::new(&self.row(&self.bucket.weights, slot), &self.moe)
    }

    pub fn gradients(&self, slot: usize) -> Views {
        Views::new(&self.row(&self.bucket.gradients, slot), &self.moe)
    }

    pub fn moe(&self) -> &Moe {
        &self.moe
    }
}

/// `gelu(x W1 + b1) W2 + b2` on rows `[n, width]`.
pub fn forward(weights: &Views, input: Tensor) -> (Tensor, Saved) {
    let inner = weights.first_bias.addmm(&input, &weights.first);
    let active = inner.gelu("none");
    let output = weights.second_bias.addmm(&active, &weights.second);
    (output, Saved { input, inner, active })
}

/// The gradient of the input; those of the parameters are added to `gradients`.
pub fn backward(weights: &Views, gradients: &mut Views, saved: Saved, gradient: &Tensor) -> Tensor {
    let _ = gradients.second.addmm_(&saved.active.tr(), gradient);
    let _ = gradients.second_bias.g_add_(&gradient.sum_dim_intlist([0i64].as_slice(), false, gradient.kind()));
    let inner = saved.inner.gelu_backward(&gradient.matmul(&weights.second.tr()), "none");
    let _ = gradients.first.addmm_(&saved.input.tr(), &inner);
    let _ = gradients.first_bias.g_add_(&inner.sum_dim_intlist([0i64].as_slice(), false, inner.kind()));
    inner.matmul(&weights.first.tr())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against finite differences of a weighted sum of the outputs, in double precision.
    #[test]
    fn gradients_agree_with_finite_differences() {
        let moe = Moe { tokens: 1, width: 3, inner: 5, experts: 1 };
        let size = moe.expert_parameters() as i64;
        let draw = |name: &str, shape: &[i64]| initial(5, name, shape, Initial::Normal(40.0)).to_kind(Kind::Double);
        let (flat, input, weight) = (draw("flat", &[size]), draw("input", &[4, 3]), draw("weight", &[4, 3]));
        let value = |flat: &Tensor, input: &Tensor| {
            let (output, _) = forward(&Views::new(flat, &moe), input.shallow_clone());
            f64::try_from((output * &weight).sum(Kind::Double)).unwrap()
        };
        let found = flat.zeros_like();
        let views = Views::new(&flat, &moe);
        let (_, saved) = forward(&views, input.shallow_clone());
        let of_input = backward(&views, &mut Views::new(&found, &moe), saved, &weight);

        let step = 1e-6;
        let check = |found: &Tensor, at: &Tensor, value: &dyn Fn(&Tensor) -> f64| {
            for index in 0..at.numel() as i64 {
                let moved = |by: f64| {
                    let there = at.copy().reshape([-1]);
                    let _ = there.narrow(0, index, 1).g_add_scalar_(by);
                    value(&there.view_as(at))
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let found = f64::try_from(found.reshape([-1]).get(index)).unwrap();
                assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{index}: {found} {expected}");
            }
        };
        check(&found, &flat, &|flat| value(flat, &input));
        check(&of_input, &input, &|input| value(&flat, input));
    }
}
