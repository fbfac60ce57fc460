//! Attention.

use systems::iteration::timeline::Activity;
use tch::Tensor;

use crate::error::TrainError;
use crate::kernels::{Kernels, Normed};
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::fused::{self, Heads, HeadsSaved, Norm};
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, layer_norm};

/// Attention of one block, with the normalisations before and after it.
pub struct Attention {
    heads: i64,
    seq_len: i64,
    norm: [usize; 2],
    query: [usize; 2],
    output: usize,
    output_bias: usize,
    second_norm: [usize; 2],
}

/// Saved for backward.
pub enum AttentionSaved {
    /// Of the normalisation before attention, of attention, and of the residual stream.
    Taped(Box<[Tape; 3]>),
    Fused(Box<FusedSaved>),
}

/// Saved for backward by the kernels of a GPU.
pub struct FusedSaved {
    input: Tensor,
    /// Of the normalisation before attention.
    statistics: Tensor,
    heads: HeadsSaved,
    stream: Tensor,
    /// Of the normalisation after attention.
    second_statistics: Tensor,
}

impl Attention {
    /// Adds the parameters of block `index`.
    pub fn new(builder: &mut Builder, gpt: &Gpt, index: usize) -> Self {
        let h = gpt.hidden as i64;
        let name = |what: &str| format!("block {index} {what}");
        let scaled = Initial::Normal(1.0 / (2.0 * gpt.depth as f64).sqrt());
        Self {
            heads: gpt.heads as i64 / builder.tensor_parallel_size(),
            seq_len: gpt.seq_len as i64,
            norm: [
                builder.whole((&name("norm"), &[h], Initial::Ones)),
                builder.whole((&name("norm bias"), &[h], Initial::Zeros)),
            ],
            query: [
                builder.cut((&name("query key value"), &[3 * h, h], Initial::Normal(1.0)), 0, 3),
                builder.cut((&name("query key value bias"), &[3 * h], Initial::Zeros), 0, 3),
            ],
            output: builder.cut((&name("attention output"), &[h, h], scaled), 1, 1),
            output_bias: builder.whole((&name("attention output bias"), &[h], Initial::Zeros)),
            second_norm: [
                builder.whole((&name("second norm"), &[h], Initial::Ones)),
                builder.whole((&name("second norm bias"), &[h], Initial::Zeros)),
            ],
        }
    }

    /// From `input` `[tokens, hidden]` to the residual stream after attention, and its normalisation.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, input: &Tensor) -> Result<([Tensor; 2], AttentionSaved), TrainError> {
        if let Some(kernels) = fused::kernels(input) {
            return self.forward_fused(kernels, site, input);
        }
        let Site { dense, timer, .. } = site;
        let (partial, norm, products) = timer.compute(Activity::Block, || {
            let ([normed], norm) = Tape::record(&dense.replicated, &self.norm, &[input], |x, p| [layer_norm(&x[0], p)]);
            let parameters = [self.query[0], self.query[1], self.output];
            let ([partial], products) =
                Tape::record(&dense.sharded, &parameters, &[&normed], |x, p| [self.attend(&x[0], p)]);
            (partial, norm, products)
        });
        let summed = site.all_reduce(partial)?;
        let parameters = [self.output_bias, self.second_norm[0], self.second_norm[1]];
        let (outputs, residual) = timer.compute(Activity::Block, || {
            Tape::record(&dense.replicated, &parameters, &[input, &summed], |x, p| {
                let stream = &x[0] + &x[1] + p[0];
                let normed = layer_norm(&stream, &p[1..]);
                [stream, normed]
            })
        });
        Ok((outputs, AttentionSaved::Taped(Box::new([norm, products, residual]))))
    }

    /// The gradient of the input, from those of the two outputs.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, saved: AttentionSaved, gradients: [&Tensor; 2]) -> Result<Tensor, TrainError> {
        let Site { dense, timer, .. } = site;
        let [norm, products, residual] = match saved {
            AttentionSaved::Taped(tapes) => *tapes,
            AttentionSaved::Fused(saved) => return self.backward_fused(site, *saved, gradients),
        };
        let (of_stream, of_normed) = timer.compute(Activity::Block, || {
            let mut of_residual = residual.backward(&dense.replicated, &gradients);
            let of_sum = of_residual.remove(1);
            (of_residual.remove(0), products.backward(&dense.sharded, &[&of_sum]).remove(0))
        });
        let of_normed = site.all_reduce(of_normed)?;
        Ok(timer.compute(Activity::Block, || of_stream + norm.backward(&dense.replicated, &[&of_normed]).remove(0)))
    }

    fn forward_fused(
        &self,
        kernels: &Kernels,
        site: &Site,
        input: &Tensor,
    ) -> Result<([Tensor; 2], AttentionSaved), TrainError> {
        let Site { dense, timer, .. } = site;
        let [first, second] = self.norms();
        let (partial, statistics, heads) = timer.compute(Activity::Block, || {
            let Normed { normed, statistics, .. } = first.forward(kernels, dense, input, None);
            let (partial, heads) = self.fused().forward(&dense.sharded, normed);
            (partial, statistics, heads)
        });
        let summed = site.all_reduce(partial)?;
        let forward = || second.forward(kernels, dense, input, Some((&summed, self.output_bias)));
        let Normed { stream, normed, statistics: second_statistics } = timer.compute(Activity::Block, forward);
        let outputs = [stream.shallow_clone(), normed];
        let saved = FusedSaved { input: input.shallow_clone(), statistics, heads, stream, second_statistics };
        Ok((outputs, AttentionSaved::Fused(Box::new(saved))))
    }

    fn backward_fused(
        &self,
        site: &Site,
        saved: FusedSaved,
        [of_stream, of_normed]: [&Tensor; 2],
    ) -> Result<Tensor, TrainError> {
        let Site { dense, timer, .. } = site;
        let kernels = fused::kernels(&saved.input).expect("the forward pass ran by kernels");
        let [first, second] = self.norms();
        let FusedSaved { input, statistics, heads, stream, second_statistics } = saved;
        let (of_sum, of_first) = timer.compute(Activity::Block, || {
            let beside = (Some(of_stream), Some(self.output_bias));
            let of_sum = second.backward(kernels, dense, [&stream, &second_statistics], of_normed, beside);
            let of_first = self.fused().backward(kernels, &dense.sharded, heads, &of_sum);
            (of_sum, of_first)
        });
        let of_first = site.all_reduce(of_first)?;
        let backward = || first.backward(kernels, dense, [&input, &statistics], &of_first, (Some(&of_sum), None));
        Ok(timer.compute(Activity::Block, backward))
    }

    fn norms(&self) -> [Norm; 2] {
        [self.norm, self.second_norm].map(|parameters| Norm { parameters })
    }

    fn fused(&self) -> Heads {
        Heads { heads: self.heads, seq_len: self.seq_len, query: self.query, output: self.output }
    }

    /// Causal attention of this rank's heads, and their part of the output product.
    fn attend(&self, normed: &Tensor, parameters: &[&Tensor]) -> Tensor {
        let all = normed.linear(parameters[0], Some(parameters[1]));
        let width = all.size()[1] / 3;
        let shape = [-1, self.seq_len, 3, self.heads, width / self.heads];
        let heads = all.view(shape).permute([2, 0, 3, 1, 4]).unbind(0);
        let none: Option<Tensor> = None;
        let seen = Tensor::scaled_dot_product_attention(&heads[0], &heads[1], &heads[2], none, 0.0, true, None, false);
        let joined = seen.transpose(1, 2).reshape([-1, width]);
        joined.linear::<Tensor>(parameters[2], None)
    }
}
