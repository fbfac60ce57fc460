//! The embedding before the first block.

use systems::iteration::timeline::Activity;
use tch::Tensor;

use crate::error::TrainError;
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, sum_over_tokens};

/// Token and position embedding before the first block.
pub struct Embedding {
    /// Of learned positions.
    position: Option<usize>,
    vocabulary: i64,
    seq_len: i64,
}

impl Embedding {
    /// Adds the position embedding, where positions are learned. The token embedding may be tied to the head and has a bucket
    /// of its own.
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let shape = [gpt.seq_len as i64, gpt.hidden as i64];
        let position = gpt.learned_positions.then(|| builder.whole(("position", &shape, Initial::Normal(1.0))));
        Self { position, vocabulary: gpt.vocabulary as i64, seq_len: gpt.seq_len as i64 }
    }

    /// From token ids `[tokens]` to `[tokens, hidden]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, ids: &Tensor) -> Result<(Tensor, Tape), TrainError> {
        let Site { dense, embedding_weight, timer, .. } = site;
        let find = || {
            let (local, own) = site.local_ids(self.vocabulary, ids);
            let (found, tape) = Tape::record(embedding_weight, &[0], &[], |_, p| {
                let rows = Tensor::embedding(p[0], &local, -1, false, false);
                [if site.group.size() > 1 { &rows * own.to_kind(rows.kind()).unsqueeze(-1) } else { rows }]
            });
            (Vec::from(found), tape)
        };
        let Some(position) = self.position else {
            let (mut found, tape) = timer.compute(Activity::Edge, find);
            return Ok((site.all_reduce(found.remove(0))?, tape));
        };
        site.summed_between(Activity::Edge, find, |found, tape| {
            let width = found[0].size()[1];
            let by_sample = found[0].view([-1, self.seq_len, width]);
            ((by_sample + dense.replicated.leaf(position)).view([-1, width]), tape)
        })
    }

    /// Adds to the gradients of both embeddings.
    pub fn backward(&self, site: &Site, tape: Tape, gradient: &Tensor) {
        let Site { dense, embedding_weight, timer, .. } = site;
        timer.compute(Activity::Edge, || {
            if let Some(position) = self.position {
                let by_sample = gradient.view([-1, self.seq_len, gradient.size()[1]]);
                dense.replicated.accumulate(position, &sum_over_tokens(&by_sample));
            }
            tape.backward(embedding_weight, &[gradient]);
        });
    }
}

/// This rank's part of the token embedding, `[vocabulary / tp, hidden]`, at its initial values.
pub fn embedding_weight(builder: &Builder, gpt: &Gpt) -> Tensor {
    // The name of the stream of random numbers: another one would change every model.
    builder.shard("words", &[gpt.vocabulary as i64, gpt.hidden as i64], 0)
}
