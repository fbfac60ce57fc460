//! The head after the last block, and the loss.

use systems::iteration::timeline::Activity;
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::kernels::{Kernels, Normed};
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::fused::{self, CrossEntropySaved, FusedNorm};
use crate::model::norm::Norm;
use crate::model::parameters::{Bucket, Initial};
use crate::model::site::Site;
use crate::model::tape::Tape;

/// Final normalisation, product with the words, cross-entropy.
pub struct Head {
    norm: Norm,
    vocabulary: i64,
    /// The head's own words, `[vocabulary / tp, hidden]`, by index among the cut parameters; none where they are the embedding's.
    words: Option<usize>,
}

/// Saved for backward.
pub enum HeadSaved {
    Taped { norm: Tape, product: Tape, of_logits: Tensor },
    Fused(Box<FusedSaved>),
}

/// Saved for backward where kernels of a GPU make the cross-entropy.
pub struct FusedSaved {
    norm: NormSaved,
    entropy: CrossEntropySaved,
}

/// Saved for backward by the normalisation before it.
enum NormSaved {
    Taped(Tape),
    Fused { stream: Tensor, statistics: Tensor },
}

impl Head {
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let (vocabulary, hidden) = (gpt.vocabulary as i64, gpt.hidden as i64);
        let norm = Norm::new(builder, "final norm", gpt.norm, gpt.hidden);
        let own = |builder: &mut Builder| builder.cut(("head", &[vocabulary, hidden], Initial::Normal(1.0)), 0, 1);
        let words = (!gpt.tied).then(|| own(builder));
        Self { norm, vocabulary, words }
    }

    /// Where the words are: a bucket, and the index in it.
    fn words<'a>(&self, site: &Site<'a>) -> (&'a Bucket, usize) {
        match self.words {
            Some(index) => (&site.dense.sharded, index),
            None => (site.embedding_weight, 0),
        }
    }

    /// The sum of the cross-entropies of `targets` `[tokens]`, one number on their device; its gradient is multiplied by
    /// `scale`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(
        &self,
        site: &Site,
        input: &Tensor,
        targets: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, HeadSaved), TrainError> {
        let (bucket, index) = self.words(site);
        if let Some(kernels) = self.kernels(site, input) {
            let (normed, norm) = site.timer.compute(Activity::Edge, || self.normalise(kernels, site, input));
            let what = (targets, self.vocabulary, scale);
            let (loss, entropy) = fused::cross_entropy(kernels, site, (bucket, index), normed, what)?;
            return Ok((loss, HeadSaved::Fused(Box::new(FusedSaved { norm, entropy }))));
        }
        let Site { group, timer, .. } = site;
        let (norm, product, logits, local) = timer.compute(Activity::Edge, || {
            let (normed, norm) = self.taped_norm(site, input);
            let ([logits], product) =
                Tape::record(bucket, &[index], &[&normed], |x, p| [x[0].linear::<Tensor>(p[0], None)]);
            let logits = logits.to_kind(Kind::Float);
            let (target, own) = site.local_ids(self.vocabulary, targets);
            let at_target = logits.gather(1, &target.unsqueeze(-1), false).squeeze_dim(-1) * own.to_kind(Kind::Float);
            // A target of another rank contributes 0 here.
            let local = Tensor::stack(&[logits.logsumexp([-1i64].as_slice(), false), at_target], 0);
            (norm, product, logits, (local, target, own))
        });
        let (local, target, own) = local;
        let all = match group.size() {
            1 => local.unsqueeze(0),
            _ => timer.wait(Activity::TensorParallel, || group.all_gather(&local)?.wait())?,
        };
        let (loss, gradient) = timer.compute(Activity::Edge, || {
            let whole = all.select(1, 0).logsumexp([0i64].as_slice(), false);
            let loss =
                (&whole - all.select(1, 1).sum_dim_intlist([0i64].as_slice(), false, Kind::Float)).sum(Kind::Float);
            // In place: the logits are the largest tensor of a small model.
            let mut gradient = logits;
            let _ = gradient.g_sub_(&whole.unsqueeze(-1)).exp_();
            let minus = -own.to_kind(Kind::Float).unsqueeze(-1);
            let _ = gradient.scatter_add_(1, &target.unsqueeze(-1), &minus);
            (loss, gradient.g_mul_scalar_(scale))
        });
        Ok((loss, HeadSaved::Taped { norm, product, of_logits: gradient.to_kind(input.kind()) }))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, saved: HeadSaved) -> Result<Tensor, TrainError> {
        let Site { dense, timer, .. } = site;
        let (bucket, index) = self.words(site);
        let (norm, product, of_logits) = match saved {
            HeadSaved::Taped { norm, product, of_logits } => (norm, product, of_logits),
            HeadSaved::Fused(saved) => {
                let FusedSaved { norm, entropy } = *saved;
                let of_normed = fused::cross_entropy_backward(site, (bucket, index), entropy)?;
                return Ok(timer.compute(Activity::Edge, || self.norm_backward(site, norm, &of_normed)));
            }
        };
        let of_normed = || (product.backward(bucket, &[&of_logits]), ());
        site.summed_between(Activity::Edge, of_normed, |of_normed, ()| {
            norm.backward(&dense.replicated, &[&of_normed[0]]).remove(0)
        })
    }

    /// The normalised stream, and what is saved of it.
    fn normalise(&self, kernels: &Kernels, site: &Site, input: &Tensor) -> (Tensor, NormSaved) {
        let Some(parameters) = self.norm.fused() else {
            let (normed, tape) = self.taped_norm(site, input);
            return (normed, NormSaved::Taped(tape));
        };
        let Normed { stream, normed, statistics } = FusedNorm { parameters }.forward(kernels, site.dense, input, None);
        (normed, NormSaved::Fused { stream, statistics })
    }

    fn taped_norm(&self, site: &Site, input: &Tensor) -> (Tensor, Tape) {
        let (bucket, parameters) = (&site.dense.replicated, &self.norm.parameters);
        let ([normed], tape) = Tape::record(bucket, parameters, &[input], |x, p| [self.norm.apply(&x[0], p)]);
        (normed, tape)
    }

    /// The gradient of the stream from that of its normalisation.
    fn norm_backward(&self, site: &Site, saved: NormSaved, of_normed: &Tensor) -> Tensor {
        match saved {
            NormSaved::Taped(tape) => tape.backward(&site.dense.replicated, &[of_normed]).remove(0),
            NormSaved::Fused { stream, statistics } => {
                let kernels = fused::kernels(&stream).expect("the forward pass ran by kernels");
                let parameters = self.norm.fused().expect("the kernels know the normalisation");
                let saved = [&stream, &statistics];
                FusedNorm { parameters }.backward(kernels, site.dense, saved, of_normed, (None, None))
            }
        }
    }

    /// The kernels, where they serve: the words of a rank fill whole accesses.
    fn kernels(&self, site: &Site, input: &Tensor) -> Option<&'static Kernels> {
        let words = self.vocabulary / site.group.size() as i64;
        fused::kernels(input).filter(|_| words % 8 == 0)
    }
}
