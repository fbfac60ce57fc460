//! The head after the last block, and the loss.

use systems::iteration::timeline::Activity;
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::host::to_scalar;
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, layer_norm};

/// Final normalisation, product with the embedding, cross-entropy.
pub struct Head {
    norm: [usize; 2],
    vocabulary: i64,
}

/// Saved for backward.
pub struct HeadSaved {
    norm: Tape,
    product: Tape,
    of_logits: Tensor,
}

impl Head {
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let h = gpt.hidden as i64;
        let norm = [
            builder.whole(("final norm", &[h], Initial::Ones)),
            builder.whole(("final norm bias", &[h], Initial::Zeros)),
        ];
        Self { norm, vocabulary: gpt.vocabulary as i64 }
    }

    /// The sum of the cross-entropies of `targets` `[tokens]`; its gradient is multiplied by `scale`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(
        &self,
        site: &Site,
        input: &Tensor,
        targets: &Tensor,
        scale: f64,
    ) -> Result<(f64, HeadSaved), TrainError> {
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
        let saved = HeadSaved { norm, product, of_logits: gradient.to_kind(input.kind()) };
        Ok((f64::from(to_scalar::<f32>(&loss)?), saved))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, saved: HeadSaved) -> Result<Tensor, TrainError> {
        let Site { dense, embedding_weight, timer, .. } = site;
        let HeadSaved { norm, product, of_logits } = saved;
        let of_normed = timer.compute(Activity::Edge, || product.backward(embedding_weight, &[&of_logits]).remove(0));
        let of_normed = site.all_reduce(of_normed)?;
        Ok(timer.compute(Activity::Edge, || norm.backward(&dense.replicated, &[&of_normed]).remove(0)))
    }
}
