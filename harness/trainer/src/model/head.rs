//! The head after the last block, and the loss.

use systems::iteration::timeline::Activity;
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::kernels::Kernels;
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::fused::{self, CrossEntropySaved, Norm};
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, layer_norm};

/// Final normalisation, product with the embedding, cross-entropy.
pub struct Head {
    norm: [usize; 2],
    vocabulary: i64,
}

/// Saved for backward.
pub enum HeadSaved {
    Taped { norm: Tape, product: Tape, of_logits: Tensor },
    Fused(Box<FusedSaved>),
}

/// Saved for backward by the kernels of a GPU.
pub struct FusedSaved(CrossEntropySaved);

impl Head {
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let h = gpt.hidden as i64;
        let norm = [
            builder.whole(("final norm", &[h], Initial::Ones)),
            builder.whole(("final norm bias", &[h], Initial::Zeros)),
        ];
        Self { norm, vocabulary: gpt.vocabulary as i64 }
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
        if let Some(kernels) = self.kernels(site, input) {
            let what = (targets, self.vocabulary, scale);
            let (loss, saved) = fused::cross_entropy(kernels, site, self.fused_norm(), input, what)?;
            return Ok((loss, HeadSaved::Fused(Box::new(FusedSaved(saved)))));
        }
        let Site { dense, embedding_weight, group, timer, .. } = site;
        let (norm, product, logits, local) = timer.compute(Activity::Edge, || {
            let ([normed], norm) = Tape::record(&dense.replicated, &self.norm, &[input], |x, p| [layer_norm(&x[0], p)]);
            let ([logits], product) =
                Tape::record(embedding_weight, &[0], &[&normed], |x, p| [x[0].linear::<Tensor>(p[0], None)]);
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
        let Site { dense, embedding_weight, timer, .. } = site;
        let (norm, product, of_logits) = match saved {
            HeadSaved::Taped { norm, product, of_logits } => (norm, product, of_logits),
            HeadSaved::Fused(saved) => {
                let kernels = fused::kernels(saved.0.stream()).expect("the forward pass ran by kernels");
                return fused::cross_entropy_backward(kernels, site, self.fused_norm(), saved.0);
            }
        };
        let of_normed = timer.compute(Activity::Edge, || product.backward(embedding_weight, &[&of_logits]).remove(0));
        let of_normed = site.all_reduce(of_normed)?;
        Ok(timer.compute(Activity::Edge, || norm.backward(&dense.replicated, &[&of_normed]).remove(0)))
    }

    /// The kernels that serve: the words of a rank fill whole accesses.
    fn kernels(&self, site: &Site, input: &Tensor) -> Option<&'static Kernels> {
        let words = self.vocabulary / site.group.size() as i64;
        fused::kernels(input).filter(|_| words % 8 == 0)
    }

    fn fused_norm(&self) -> Norm {
        Norm { parameters: self.norm }
    }
}
