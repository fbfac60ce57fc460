//! Attention.

use systems::iteration::timeline::Activity;
use tch::Tensor;
use workloads::model::Block;

use crate::error::TrainError;
use crate::kernels::{Kernels, Normed};
use crate::model::dense::Builder;
use crate::model::fused::{self, FusedHeads, FusedNorm, HeadsSaved};
use crate::model::heads::Heads;
use crate::model::norm::Norm;
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::Tape;

/// Attention of one block, with the normalisations before and after it.
pub struct Attention {
    norm: Norm,
    heads: Heads,
    seq_len: i64,
    output: usize,
    output_bias: Option<usize>,
    second_norm: Norm,
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

/// What the kernels of a GPU run: both normalisations, the heads, and the bias of the output product.
struct Fused {
    norms: [FusedNorm; 2],
    heads: FusedHeads,
    output_bias: usize,
}

impl Attention {
    /// Adds the parameters of `block`, number `index` of `depth`.
    pub fn new(builder: &mut Builder, block: &Block, index: usize, depth: usize) -> Self {
        let name = |what: &str| format!("block {index} {what}");
        let scaled = Initial::Normal(1.0 / (2.0 * depth as f64).sqrt());
        let (h, width) = (block.hidden as i64, block.attention.output_width() as i64);
        let norm = Norm::new(builder, &name("norm"), block.norm, block.hidden);
        let heads = Heads::new(builder, block, index);
        let output = builder.cut((&name("attention output"), &[h, width], scaled), 1, 1);
        let bias = |builder: &mut Builder| builder.whole((&name("attention output bias"), &[h], Initial::Zeros));
        let output_bias = block.attention.output_bias.then(|| bias(builder));
        let second_norm = Norm::new(builder, &name("second norm"), block.norm, block.hidden);
        Self { norm, heads, seq_len: block.tokens as i64, output, output_bias, second_norm }
    }

    /// From `input` `[tokens, hidden]` to the residual stream after attention, and its normalisation.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, input: &Tensor) -> Result<([Tensor; 2], AttentionSaved), TrainError> {
        if let (Some(kernels), Some(fused)) = (fused::kernels(input), self.fused()) {
            return self.forward_fused(kernels, &fused, site, input);
        }
        let dense = site.dense;
        let products = || {
            let (prepared, before) = self.prepare(site, input);
            let inputs: Vec<&Tensor> = prepared.iter().collect();
            let parameters = [self.heads.sharded.as_slice(), &[self.output]].concat();
            let (partial, products) = Tape::record(&dense.sharded, &parameters, &inputs, |x, p| {
                let (output, heads) = p.split_last().expect("the output product has a matrix");
                [self.heads.attend(x, heads).linear::<&Tensor>(output, None)]
            });
            (Vec::from(partial), [before, products])
        };
        let parameters: Vec<usize> = self.second_norm.parameters.iter().copied().chain(self.output_bias).collect();
        let residual = |summed: Vec<Tensor>, tapes| {
            let recorded = Tape::record(&dense.replicated, &parameters, &[input, &summed[0]], |x, p| {
                let (norm, bias) = p.split_at(self.second_norm.parameters.len());
                let sum = &x[0] + &x[1];
                let stream = bias.first().map_or_else(|| sum.shallow_clone(), |bias| &sum + *bias);
                let normed = self.second_norm.apply(&stream, norm);
                [stream, normed]
            });
            (recorded, tapes)
        };
        let ((outputs, residual), [prepared, products]) = site.summed_between(Activity::Block, products, residual)?;
        Ok((outputs, AttentionSaved::Taped(Box::new([prepared, products, residual]))))
    }

    /// What the heads start from.
    fn prepare(&self, site: &Site, input: &Tensor) -> (Vec<Tensor>, Tape) {
        let parameters = [self.norm.parameters.as_slice(), &self.heads.replicated].concat();
        Tape::record_all(&site.dense.replicated, &parameters, &[input], |x, p| {
            let (norm, shared) = p.split_at(self.norm.parameters.len());
            self.heads.prepare(self.norm.apply(&x[0], norm), shared)
        })
    }

    /// The gradient of the input, from those of the two outputs.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, saved: AttentionSaved, gradients: [&Tensor; 2]) -> Result<Tensor, TrainError> {
        let dense = site.dense;
        let [prepared, products, residual] = match saved {
            AttentionSaved::Taped(tapes) => *tapes,
            AttentionSaved::Fused(saved) => return self.backward_fused(site, *saved, gradients),
        };
        let of_products = || {
            let mut of_residual = residual.backward(&dense.replicated, &gradients);
            let of_sum = of_residual.remove(1);
            (products.backward(&dense.sharded, &[&of_sum]), of_residual.remove(0))
        };
        site.summed_between(Activity::Block, of_products, |of_prepared, of_stream| {
            let gradients: Vec<&Tensor> = of_prepared.iter().collect();
            of_stream + prepared.backward(&dense.replicated, &gradients).remove(0)
        })
    }

    fn forward_fused(
        &self,
        kernels: &Kernels,
        fused: &Fused,
        site: &Site,
        input: &Tensor,
    ) -> Result<([Tensor; 2], AttentionSaved), TrainError> {
        let dense = site.dense;
        let [first, second] = fused.norms;
        let products = || {
            let Normed { normed, statistics, .. } = first.forward(kernels, dense, input, None);
            let (partial, heads) = fused.heads.forward(&dense.sharded, normed);
            (vec![partial], (statistics, heads))
        };
        let residual = |summed: Vec<Tensor>, saved| {
            (second.forward(kernels, dense, input, Some((&summed[0], fused.output_bias))), saved)
        };
        let (Normed { stream, normed, statistics: second_statistics }, (statistics, heads)) =
            site.summed_between(Activity::Block, products, residual)?;
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
        let dense = site.dense;
        let (Some(kernels), Some(fused)) = (fused::kernels(&saved.input), self.fused()) else {
            unreachable!("the forward pass ran by kernels")
        };
        let [first, second] = fused.norms;
        let FusedSaved { input, statistics, heads, stream, second_statistics } = saved;
        let of_products = || {
            let beside = (Some(of_stream), Some(fused.output_bias));
            let of_sum = second.backward(kernels, dense, [&stream, &second_statistics], of_normed, beside);
            (vec![fused.heads.backward(kernels, &dense.sharded, heads, &of_sum)], of_sum)
        };
        site.summed_between(Activity::Block, of_products, |of_first, of_sum| {
            first.backward(kernels, dense, [&input, &statistics], &of_first[0], (Some(&of_sum), None))
        })
    }

    /// What the kernels of a GPU run, where they know all of it.
    fn fused(&self) -> Option<Fused> {
        let norm = |norm: &Norm| norm.fused().map(|parameters| FusedNorm { parameters });
        let heads = FusedHeads {
            heads: self.heads.number(),
            seq_len: self.seq_len,
            query: self.heads.fused()?,
            output: self.output,
        };
        Some(Fused { norms: [norm(&self.norm)?, norm(&self.second_norm)?], heads, output_bias: self.output_bias? })
    }
}
