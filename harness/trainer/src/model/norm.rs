//! Normalisations over a token's width.

use tch::Tensor;
use workloads::model::{self, NormKind};

use crate::model::dense::Builder;
use crate::model::parameters::Initial;

/// A normalisation, its parameters by index among the replicated ones.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    of: model::Norm,
    /// The weight and, where there is one, the bias.
    pub(super) parameters: Vec<usize>,
}

impl Norm {
    /// Adds the parameters of the normalisation `name` of tokens of `width`.
    pub(super) fn new(builder: &mut Builder, name: &str, of: model::Norm, width: usize) -> Self {
        let shape = [width as i64];
        let mut parameters = vec![builder.whole((name, &shape, Initial::Ones))];
        if of.kind == NormKind::Layer {
            parameters.push(builder.whole((&format!("{name} bias"), &shape, Initial::Zeros)));
        }
        Self { of, parameters }
    }

    /// Of `input` `[tokens, width]`, by the values of [`Self::parameters`].
    pub(super) fn apply(&self, input: &Tensor, parameters: &[&Tensor]) -> Tensor {
        match self.of.kind {
            NormKind::Rms => rms_norm(input, parameters[0], self.of.epsilon),
            NormKind::Layer | NormKind::LayerNoBias => {
                let shape = [input.size()[1]];
                input.layer_norm(shape, Some(parameters[0]), parameters.get(1).copied(), self.of.epsilon, true)
            }
        }
    }

    /// Weight and bias, where the kernels of a GPU know the normalisation.
    pub(super) fn fused(&self) -> Option<[usize; 2]> {
        let known = self.of == model::Norm::default();
        self.parameters.as_slice().try_into().ok().filter(|_| known)
    }
}

/// Divided by the root of the mean square over the last dimension, times `weight`.
pub(super) fn rms_norm(input: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    input.rms_norm(weight.size(), Some(weight), epsilon)
}
