//! A dense feed-forward network.

use systems::iteration::timeline::Activity;
use tch::Tensor;

use crate::error::TrainError;
use crate::model::Gpt;
use crate::model::dense::Builder;
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, sum_over_tokens};

/// The dense feed-forward network of one block.
pub struct Mlp {
    first: [usize; 2],
    second: usize,
    second_bias: usize,
}

impl Mlp {
    /// Adds the parameters of block `index`.
    pub fn new(builder: &mut Builder, gpt: &Gpt, index: usize, inner: usize) -> Self {
        let (h, inner) = (gpt.hidden as i64, inner as i64);
        let name = |what: &str| format!("block {index} {what}");
        let scaled = Initial::Normal(1.0 / (2.0 * gpt.depth as f64).sqrt());
        Self {
            first: [
                builder.cut((&name("first"), &[inner, h], Initial::Normal(1.0)), 0, 1),
                builder.cut((&name("first bias"), &[inner], Initial::Zeros), 0, 1),
            ],
            second: builder.cut((&name("second"), &[h, inner], scaled), 1, 1),
            second_bias: builder.whole((&name("second bias"), &[h], Initial::Zeros)),
        }
    }

    /// Input and output: `[tokens, hidden]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, input: &Tensor) -> Result<(Tensor, Tape), TrainError> {
        let Site { dense, timer, .. } = site;
        let parameters = [self.first[0], self.first[1], self.second];
        let ([partial], tape) = timer.compute(Activity::Block, || {
            Tape::record(&dense.sharded, &parameters, &[input], |x, p| {
                [x[0].linear(p[0], Some(p[1])).gelu("none").linear::<Tensor>(p[2], None)]
            })
        });
        let summed = site.all_reduce(partial)?;
        Ok((timer.compute(Activity::Block, || summed + dense.replicated.leaf(self.second_bias)), tape))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, tape: Tape, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let Site { dense, timer, .. } = site;
        let of_input = timer.compute(Activity::Block, || {
            dense.replicated.accumulate(self.second_bias, &sum_over_tokens(gradient));
            tape.backward(&dense.sharded, &[gradient]).remove(0)
        });
        site.all_reduce(of_input)
    }
}
