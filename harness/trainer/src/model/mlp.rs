//! Feed-forward networks that every token passes: dense ones, and the experts that all tokens share.

use systems::iteration::timeline::Activity;
use tch::{Kind, Tensor};
use workloads::model::{self, Activation, Shared};

use crate::error::TrainError;
use crate::model::dense::Builder;
use crate::model::parameters::Initial;
use crate::model::site::Site;
use crate::model::tape::{Tape, sum_over_tokens};

/// A feed-forward network.
pub struct Mlp {
    of: model::Mlp,
    /// Matrices and biases up to the inner width, by index among the cut parameters.
    first: Vec<usize>,
    second: usize,
    second_bias: Option<usize>,
}

impl Mlp {
    /// Adds the parameters of a network whose names begin with `name`, for tokens of `width` in a model of `depth` blocks.
    pub fn new(builder: &mut Builder, name: &str, width: usize, depth: usize, of: model::Mlp) -> Self {
        let (h, inner) = (width as i64, of.inner as i64);
        let scaled = Initial::Normal(1.0 / (2.0 * depth as f64).sqrt());
        let mut first = Vec::new();
        for what in if of.gated { &["first", "gate"][..] } else { &["first"] } {
            first.push(builder.cut((&format!("{name} {what}"), &[inner, h], Initial::Normal(1.0)), 0, 1));
            if of.biases {
                first.push(builder.cut((&format!("{name} {what} bias"), &[inner], Initial::Zeros), 0, 1));
            }
        }
        let second = builder.cut((&format!("{name} second"), &[h, inner], scaled), 1, 1);
        let bias = |builder: &mut Builder| builder.whole((&format!("{name} second bias"), &[h], Initial::Zeros));
        let second_bias = of.biases.then(|| bias(builder));
        Self { of, first, second, second_bias }
    }

    /// Input and output: `[tokens, hidden]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, input: &Tensor) -> Result<(Tensor, Tape), TrainError> {
        let dense = site.dense;
        let parameters = [self.first.as_slice(), &[self.second]].concat();
        let products = || {
            let (partial, tape) = Tape::record(&dense.sharded, &parameters, &[input], |x, p| {
                let (second, first) = p.split_last().expect("a network has a second matrix");
                let each = first.chunks_exact(1 + usize::from(self.of.biases));
                let inner: Vec<Tensor> = each.map(|own| x[0].linear(own[0], own.get(1).copied())).collect();
                [activate(self.of.activation, &inner).linear::<&Tensor>(second, None)]
            });
            (Vec::from(partial), tape)
        };
        let Some(bias) = self.second_bias else {
            let (mut partial, tape) = site.timer.compute(Activity::Block, products);
            return Ok((site.all_reduce(partial.remove(0))?, tape));
        };
        site.summed_between(Activity::Block, products, |summed, tape| (&summed[0] + dense.replicated.leaf(bias), tape))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, tape: Tape, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let Site { dense, timer, .. } = site;
        let of_input = timer.compute(Activity::Block, || {
            if let Some(bias) = self.second_bias {
                dense.replicated.accumulate(bias, &sum_over_tokens(gradient));
            }
            tape.backward(&dense.sharded, &[gradient]).remove(0)
        });
        site.all_reduce(of_input)
    }
}

/// From the inner width, `[rows, inner]` of the first matrix and of the gate's if there is one, to what the last matrix gets.
pub(crate) fn activate(activation: Activation, inner: &[Tensor]) -> Tensor {
    let (first, gate) = (&inner[0], inner.get(1));
    match (activation, gate) {
        (Activation::Gelu, None) => first.gelu("none"),
        (Activation::Gelu, Some(gate)) => gate.gelu("none") * first,
        (Activation::Silu, None) => first.silu(),
        (Activation::Silu, Some(gate)) => gate.silu() * first,
        (Activation::ClampedSilu, gate) => {
            let clamped = gate.unwrap_or(first).clamp_max(7.0);
            let active = (&clamped * 1.702).sigmoid() * clamped;
            if gate.is_some() { active * (first.clamp(-7.0, 7.0) + 1.0) } else { active }
        }
    }
}

/// The experts that every token passes, as one network.
pub struct SharedExpert {
    mlp: Mlp,
    /// The weight `[1, width]` whose product decides how much of the output counts, by index among the replicated parameters.
    gate: Option<usize>,
}

/// Saved for backward: of the network, and of the gate.
pub struct SharedSaved(Tape, Option<Tape>);

impl SharedExpert {
    /// Adds the parameters of block `index`.
    pub fn new(builder: &mut Builder, index: usize, width: usize, depth: usize, shared: Shared) -> Self {
        let mlp = Mlp::new(builder, &format!("block {index} shared"), width, depth, shared.mlp);
        let gate = |builder: &mut Builder| {
            builder.whole((&format!("block {index} shared expert gate"), &[1, width as i64], Initial::Normal(1.0)))
        };
        Self { mlp, gate: shared.gated.then(|| gate(builder)) }
    }

    /// Input and output: `[tokens, hidden]`.
    ///
    /// # Errors
    /// A peer that died.
    pub fn forward(&self, site: &Site, input: &Tensor) -> Result<(Tensor, SharedSaved), TrainError> {
        let (output, mlp) = self.mlp.forward(site, input)?;
        let Some(gate) = self.gate else { return Ok((output, SharedSaved(mlp, None))) };
        let ([gated], tape) = site.timer.compute(Activity::Block, || {
            Tape::record(&site.dense.replicated, &[gate], &[input, &output], |x, p| {
                let share = x[0].linear::<&Tensor>(p[0], None).to_kind(Kind::Float).sigmoid();
                [&x[1] * share.to_kind(x[1].kind())]
            })
        });
        Ok((gated, SharedSaved(mlp, Some(tape))))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A peer that died.
    pub fn backward(&self, site: &Site, saved: SharedSaved, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let SharedSaved(mlp, gate) = saved;
        let Some(gate) = gate else { return self.mlp.backward(site, mlp, gradient) };
        let mut found = site.timer.compute(Activity::Block, || gate.backward(&site.dense.replicated, &[gradient]));
        let of_input = self.mlp.backward(site, mlp, &found.remove(1))?;
        Ok(site.timer.compute(Activity::Block, || of_input + found.remove(0)))
    }
}
