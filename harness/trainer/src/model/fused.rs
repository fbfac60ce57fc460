//! Attention and head on a GPU, by products of libtorch and kernels of our own between them.
//!
//! The same passes as in [`attention`](super::attention) and [`head`](super::head), with the backward pass written out: autograd would
//! save and sum the residual stream, the logits and their single-precision copy in passes of their own.

use systems::iteration::timeline::Activity;
use tch::{Kind, Tensor};
use workloads::model;

use crate::error::TrainError;
use crate::kernels::{self, Kernels, Normed, WIDEST};
use crate::model::dense::Dense;
use crate::model::parameters::Bucket;
use crate::model::site::Site;

/// The kernels that serve the residual stream, if they do.
pub(super) fn kernels(stream: &Tensor) -> Option<&'static Kernels> {
    let width = stream.size()[1];
    kernels::on(stream).filter(|_| width % 8 == 0 && width <= WIDEST)
}

/// LayerNorm: scale and shift by index among the replicated parameters.
#[derive(Clone, Copy)]
pub(super) struct FusedNorm {
    pub(super) parameters: [usize; 2],
}

impl FusedNorm {
    /// Normalises `input` or, where something is added to it, the sum: a branch, and the bias of that index.
    pub(super) fn forward(
        self,
        kernels: &Kernels,
        dense: &Dense,
        input: &Tensor,
        added: Option<(&Tensor, usize)>,
    ) -> Normed {
        let leaf = |index| dense.replicated.leaf(index).detach();
        let [scale, shift] = self.parameters.map(leaf);
        let bias = added.map(|(_, index)| leaf(index));
        let added = added.zip(bias.as_ref()).map(|((branch, _), bias)| (branch, bias));
        kernels.add_norm(input, added, [&scale, &shift], model::Norm::default().epsilon)
    }

    /// The gradient of the stream, from that of its normalisation and of what else reads it. Adds to the gradients of scale,
    /// shift and, if one was added, the bias.
    pub(super) fn backward(
        self,
        kernels: &Kernels,
        dense: &Dense,
        [stream, statistics]: [&Tensor; 2],
        gradient: &Tensor,
        (beside, bias): (Option<&Tensor>, Option<usize>),
    ) -> Tensor {
        let scale = dense.replicated.leaf(self.parameters[0]).detach();
        let gradients = kernels.norm_backward([stream, statistics, &scale], gradient, beside);
        let parameters = self.parameters.into_iter().chain(bias).enumerate();
        parameters.for_each(|(row, index)| dense.replicated.accumulate(index, &gradients.parameters.get(row as i64)));
        gradients.stream
    }
}

/// Causal attention of this rank's heads between its two products.
pub(super) struct FusedHeads {
    pub(super) heads: i64,
    pub(super) seq_len: i64,
    /// Weight and bias of queries, keys and values; weight of the output: by index among the sharded parameters.
    pub(super) query: [usize; 2],
    pub(super) output: usize,
}

/// Saved for backward.
pub(super) struct HeadsSaved {
    normed: Tensor,
    /// Query, key and value, `[samples, heads, tokens, width]`: leaves of autograd.
    leaves: Vec<Tensor>,
    /// `[tokens, hidden]`, with its history.
    joined: Tensor,
}

impl FusedHeads {
    /// This rank's part of the output product.
    pub(super) fn forward(&self, sharded: &Bucket, normed: Tensor) -> (Tensor, HeadsSaved) {
        let [weight, bias, output] = self.leaves(sharded);
        let all = normed.linear(&weight, Some(&bias));
        let width = all.size()[1] / 3;
        let shape = [-1, self.seq_len, 3, self.heads, width / self.heads];
        let parts = all.view(shape).permute([2, 0, 3, 1, 4]).unbind(0);
        let leaves: Vec<Tensor> = parts.iter().map(|part| part.detach().set_requires_grad(true)).collect();
        let joined = tch::with_grad(|| {
            let (none, [query, key, value]) = (None::<Tensor>, [&leaves[0], &leaves[1], &leaves[2]]);
            let seen = Tensor::scaled_dot_product_attention(query, key, value, none, 0.0, true, None, false);
            seen.transpose(1, 2).reshape([-1, width])
        });
        let partial = joined.detach().linear::<Tensor>(&output, None);
        (partial, HeadsSaved { normed, leaves, joined })
    }

    /// The gradient of the normalised stream, from that of the output product.
    pub(super) fn backward(&self, kernels: &Kernels, sharded: &Bucket, saved: HeadsSaved, gradient: &Tensor) -> Tensor {
        let HeadsSaved { normed, leaves, joined } = saved;
        let [weight, _, output] = self.leaves(sharded);
        sharded.accumulate_product(self.output, &gradient.tr(), &joined.detach());
        let of_joined = gradient.matmul(&output);
        // libtorch's C interface starts from a gradient of 1 only: the dot product has the gradient that is asked for.
        let product = tch::with_grad(|| joined.reshape([-1]).dot(&of_joined.reshape([-1])));
        let of_parts = Tensor::run_backward(&[product], &leaves, false, false);
        let flat: Vec<Tensor> = of_parts.iter().map(|part| part.transpose(1, 2).reshape(joined.size())).collect();
        let of_all = Tensor::cat(&flat, 1);
        sharded.accumulate(self.query[1], &kernels.sum_rows(&of_all));
        sharded.accumulate_product(self.query[0], &of_all.tr(), &normed);
        of_all.matmul(&weight)
    }

    fn leaves(&self, sharded: &Bucket) -> [Tensor; 3] {
        [self.query[0], self.query[1], self.output].map(|index| sharded.leaf(index).detach())
    }
}

/// Saved for backward by [`cross_entropy`].
pub(super) struct CrossEntropySaved {
    normed: Tensor,
    /// In the memory of the logits.
    of_logits: Tensor,
}

/// The sum of the cross-entropies of `targets` `[tokens]`, one number on the GPU, from the normalised stream; its gradient is multiplied by
/// `scale`.
///
/// # Errors
/// A peer that died.
pub(super) fn cross_entropy(
    kernels: &Kernels,
    site: &Site,
    (bucket, words): (&Bucket, usize),
    normed: Tensor,
    (targets, vocabulary, scale): (&Tensor, i64, f64),
) -> Result<(Tensor, CrossEntropySaved), TrainError> {
    let (logits, target, local) = site.timer.compute(Activity::Edge, || {
        let logits = normed.linear::<Tensor>(&bucket.leaf(words).detach(), None);
        let target = site.local_targets(vocabulary, targets);
        let local = kernels.entropy(&logits, &target);
        (logits, target, local)
    });
    let all = match site.group.size() {
        1 => local.unsqueeze(0),
        _ => site.timer.wait(Activity::TensorParallel, || site.group.all_gather(&local)?.wait())?,
    };
    let loss = site.timer.compute(Activity::Edge, || {
        let whole = match site.group.size() {
            1 => all.select(1, 0).squeeze_dim(0),
            _ => all.select(1, 0).logsumexp([0i64].as_slice(), false),
        };
        let at_target = all.select(1, 1).sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        kernels.entropy_backward(&logits, &target, &whole, scale);
        (whole - at_target).sum(Kind::Float)
    });
    Ok((loss, CrossEntropySaved { normed, of_logits: logits }))
}

/// The gradient of the normalised stream.
///
/// # Errors
/// A peer that died.
pub(super) fn cross_entropy_backward(
    site: &Site,
    (bucket, words): (&Bucket, usize),
    saved: CrossEntropySaved,
) -> Result<Tensor, TrainError> {
    let CrossEntropySaved { normed, of_logits } = saved;
    let of_normed = site.timer.compute(Activity::Edge, || {
        bucket.accumulate_product(words, &of_logits.tr(), &normed);
        of_logits.matmul(&bucket.leaf(words).detach())
    });
    site.all_reduce(of_normed)
}
