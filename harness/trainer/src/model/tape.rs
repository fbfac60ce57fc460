//! A piece of the forward pass under autograd, saved for the backward pass.
//!
//! Collectives cut a block into pieces, and libtorch's autograd cannot communicate. So each piece between two collectives is
//! recorded on its own: its inputs become leaves, its outputs are passed on without their history, and its backward pass runs
//! when the gradients of its outputs have arrived.

use tch::Tensor;

use crate::model::parameters::Bucket;

pub struct Tape {
    inputs: Vec<Tensor>,
    parameters: Vec<usize>,
    outputs: Vec<Tensor>,
}

impl Tape {
    /// Runs `piece` on `inputs` and the parameters `parameters` of `bucket`; returns its outputs.
    pub fn record<const N: usize>(
        bucket: &Bucket,
        parameters: &[usize],
        inputs: &[&Tensor],
        piece: impl FnOnce(&[Tensor], &[&Tensor]) -> [Tensor; N],
    ) -> ([Tensor; N], Self) {
        let (handed, tape) =
            Self::record_all(bucket, parameters, inputs, |inputs, leaves| piece(inputs, leaves).into());
        (handed.try_into().expect("a piece has as many outputs as it returns"), tape)
    }

    /// [`Self::record`] of a piece with any number of outputs.
    pub fn record_all(
        bucket: &Bucket,
        parameters: &[usize],
        inputs: &[&Tensor],
        piece: impl FnOnce(&[Tensor], &[&Tensor]) -> Vec<Tensor>,
    ) -> (Vec<Tensor>, Self) {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.detach().set_requires_grad(true)).collect();
        let leaves: Vec<&Tensor> = parameters.iter().map(|&index| bucket.leaf(index)).collect();
        let outputs = tch::with_grad(|| piece(&inputs, &leaves));
        let handed = outputs.iter().map(Tensor::detach).collect();
        (handed, Self { inputs, parameters: parameters.to_vec(), outputs })
    }

    /// The gradients of the inputs from those of the outputs; the parameters' are added to the bucket's.
    pub fn backward(self, bucket: &Bucket, gradients: &[&Tensor]) -> Vec<Tensor> {
        let mut wanted: Vec<&Tensor> = self.inputs.iter().collect();
        wanted.extend(self.parameters.iter().map(|&index| bucket.leaf(index)));
        // libtorch's C interface starts from gradients of 1 only: the products have the gradients that are asked for.
        let products: Vec<Tensor> = tch::with_grad(|| {
            self.outputs.iter().zip(gradients).map(|(output, gradient)| output * *gradient).collect()
        });
        let mut found = Tensor::run_backward(&products, &wanted, false, false);
        for (&index, gradient) in self.parameters.iter().zip(found.split_off(self.inputs.len())) {
            bucket.accumulate(index, &gradient);
        }
        found
    }
}

/// The sum over the first dimension.
pub(super) fn sum_over_tokens(gradient: &Tensor) -> Tensor {
    gradient.sum_dim_intlist([0i64].as_slice(), false, gradient.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn pieces_chain_to_the_whole_gradient() {
        let weight = Tensor::from_slice(&[2.0f32, 3.0]);
        let bucket = Bucket::new(&[weight], Kind::Float, Device::Cpu);
        let x = Tensor::from_slice(&[5.0f32, 7.0]);
        let ([square], first) = Tape::record(&bucket, &[0], &[&x], |x, w| [&x[0] * w[0] * w[0]]);
        let ([sum], second) = Tape::record(&bucket, &[], &[&square], |x, _| [x[0].square().sum(Kind::Float)]);
        assert_eq!(f64::try_from(sum).unwrap(), 400.0 + 3969.0);
        let gradient = second.backward(&bucket, &[&Tensor::from(1.0f32)]).remove(0);
        let gradient = first.backward(&bucket, &[&gradient]).remove(0);
        // d/dx (x w^2)^2 = 2 x w^4; d/dw = 4 x^2 w^3.
        assert_eq!(Vec::<f32>::try_from(gradient).unwrap(), [160.0, 1134.0]);
        assert_eq!(Vec::<f32>::try_from(bucket.gradients()).unwrap(), [800.0, 5292.0]);
    }
}
