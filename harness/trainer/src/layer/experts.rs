//! The experts of one MoE layer on one rank, with the forward and the backward pass written out.
//!
//! An expert's parameters are one row of a flat bucket, `[W1: width x inner, b1: inner, W2: inner x width, b2: width]`, so
//! that weights, gradient or optimizer state of an expert travel as one tensor. A gate's matrix and bias follow those of the
//! first matrix; biases are absent where the model has none.

use std::cell::RefCell;
use std::ops::Range;

use tch::{Device, Kind, Tensor};
use workloads::model::{Activation, Mlp, Moe};

use crate::comm::{CommError, Communicator};
use crate::layer::copies::Returning;
use crate::layer::parts::Parts;
use crate::layer::shards::{Shards, Slots};
use crate::layer::together::Grouping;
use crate::model::mlp::activate;
use crate::model::parameters::{Bucket, Initial, initial};

pub struct Experts {
    /// Weights, gradients and, unless it is in shards, optimizer state: `[slots * parameters of an expert]`; a parameter is all of
    /// an expert.
    pub bucket: Bucket,
    /// Where all experts' state is cut into shards.
    pub shards: Option<Shards>,
    /// Where this rank keeps a part of each of its experts.
    pub parts: Option<Parts>,
    /// Gradients of copies, on their way to where their experts stand.
    pub(super) returning: RefCell<Option<Returning>>,
    moe: Moe,
}

/// Saved for backward, by one expert or by several together.
pub struct Saved {
    pub(super) input: Tensor,
    /// `[rows, inner]` of the first matrix and, if there is one, of the gate's.
    pub(super) inner: Vec<Tensor>,
    pub(super) active: Tensor,
    /// Of several experts together.
    pub(super) grouping: Option<Grouping>,
}

/// The parameters of an expert or, with one more dimension, of several; or their gradients.
pub struct Views {
    pub(super) activation: Activation,
    first: Tensor,
    pub(super) first_bias: Option<Tensor>,
    /// Matrix and bias of the gate.
    gate: Option<(Tensor, Option<Tensor>)>,
    pub(super) second: Tensor,
    pub(super) second_bias: Option<Tensor>,
}

impl Views {
    /// Of `[.., parameters]`.
    pub fn new(flat: &Tensor, moe: &Moe) -> Self {
        let (width, inner, sizes) = (moe.width as i64, moe.expert.inner as i64, flat.size());
        let leading = &sizes[..sizes.len() - 1];
        let mut start = 0;
        let mut next = |shape: &[i64]| {
            let (from, length) = (start, shape.iter().product());
            start += length;
            flat.narrow(-1, from, length).view([leading, shape].concat().as_slice())
        };
        let Mlp { gated, biases, activation, .. } = moe.expert;
        let mut matrix = |shape: [i64; 2]| (next(&shape), biases.then(|| next(&shape[1..])));
        let (first, first_bias) = matrix([width, inner]);
        let gate = gated.then(|| matrix([width, inner]));
        let (second, second_bias) = matrix([inner, width]);
        Self { activation, first, first_bias, gate, second, second_bias }
    }

    /// Part `number` of `parts` of an expert: as much of its inner width.
    pub(super) fn part(&self, number: usize, parts: usize) -> Self {
        let cut = |of: &Tensor, dim: i64| of.chunk(parts as i64, dim).remove(number);
        let by_columns =
            |(matrix, bias): (&Tensor, &Option<Tensor>)| (cut(matrix, -1), bias.as_ref().map(|bias| cut(bias, -1)));
        let (first, first_bias) = by_columns((&self.first, &self.first_bias));
        let gate = self.gate.as_ref().map(|(gate, bias)| by_columns((gate, bias)));
        let second_bias = self.second_bias.as_ref().map(Tensor::shallow_clone);
        Self { activation: self.activation, first, first_bias, gate, second: cut(&self.second, -2), second_bias }
    }

    /// All numbers of an expert in their order, what becomes of the last bias being given.
    pub(super) fn flat(&self, last_bias: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        let mut all: Vec<Tensor> = self.all().into_iter().map(|part| part.reshape([-1])).collect();
        if let (Some(bias), Some(last)) = (&self.second_bias, all.last_mut()) {
            *last = last_bias(bias);
        }
        Tensor::cat(&all, 0)
    }

    /// Matrices and biases in their order.
    pub(super) fn all(&self) -> Vec<&Tensor> {
        let before = self.before_last().into_iter().flat_map(|(matrix, bias)| std::iter::once(matrix).chain(bias));
        before.chain([&self.second]).chain(&self.second_bias).collect()
    }

    /// Of a part that leaves the last bias to another.
    pub(super) fn without_last_bias(self) -> Self {
        Self { second_bias: None, ..self }
    }

    /// The matrices before the last, each with its bias where there are biases: the first, and the gate's if there is one.
    pub(super) fn before_last(&self) -> Vec<(&Tensor, Option<&Tensor>)> {
        let gate = self.gate.iter().map(|(gate, bias)| (gate, bias.as_ref()));
        std::iter::once((&self.first, self.first_bias.as_ref())).chain(gate).collect()
    }

    /// The gradients of `inner` ([`Saved::inner`]), from that of their activation.
    fn deactivate(&self, inner: &[Tensor], gradient: &Tensor) -> Vec<Tensor> {
        match (self.activation, inner) {
            (Activation::Gelu, [inner]) => return vec![inner.gelu_backward(gradient, "none")],
            (Activation::Gelu | Activation::Silu, [first, gate]) => {
                return self.deactivate_gated([first, gate], gradient);
            }
            _ => {}
        }
        let leaves: Vec<Tensor> = inner.iter().map(|inner| inner.detach().set_requires_grad(true)).collect();
        // libtorch's C interface starts from gradients of 1 only: the product has the gradient that is asked for.
        let product = tch::with_grad(|| activate(self.activation, &leaves) * gradient);
        Tensor::run_backward(&[product], &leaves, false, false)
    }

    /// The same of a product of the first matrix's values with the activation of the gate's: in the memory of the results and one factor, where
    /// autograd would hold several times the rows of the busiest expert.
    fn deactivate_gated(&self, [first, gate]: [&Tensor; 2], gradient: &Tensor) -> Vec<Tensor> {
        let gelu = self.activation == Activation::Gelu;
        let factor = if gelu { gate.gelu("none") } else { gate.silu() };
        let of_first = &factor * gradient;
        let of_factor = first.mul_out(&factor, gradient);
        let of_gate = match gelu {
            true => gate.gelu_backward(&of_factor, "none"),
            false => gate.silu_backward(&of_factor),
        };
        vec![of_first, of_gate]
    }
}

impl Experts {
    /// The experts of MoE layer `layer` in the slots of a rank, `[slot]`, at their initial values; zeros where a slot is empty.
    /// `depth` blocks scale the second matrix as in GPT-2.
    pub fn new(
        seed: u64,
        layer: usize,
        slots: &[Option<usize>],
        moe: Moe,
        depth: usize,
        kind: Kind,
        device: Device,
    ) -> Self {
        let empty = || Tensor::zeros([moe.expert_parameters() as i64], (Kind::Float, device));
        let one = |expert| initial_row(seed, (layer, expert), &moe, depth, device);
        let rows: Vec<Tensor> = slots.iter().map(|slot| slot.map_or_else(empty, one)).collect();
        Self::of(Bucket::new(&rows, kind, device), moe)
    }

    /// The same, of which this replica, `replica.0` of `replica.1`, keeps a part with gradients of that kind; whole in `memory` that other layers use, too.
    pub fn in_shares(
        seed: u64,
        layer: usize,
        slots: &[Option<usize>],
        moe: Moe,
        depth: usize,
        (replica, memory): ((usize, usize), &[Tensor; 2]),
        gradients: Kind,
    ) -> Self {
        let (size, device) = (moe.expert_parameters() as i64, memory[0].device());
        let empty = || Tensor::zeros([size], (Kind::Float, device));
        let one = |expert| initial_row(seed, (layer, expert), &moe, depth, device);
        let rows = slots.iter().map(|slot| slot.map_or_else(empty, one));
        Self::of(Bucket::in_shares(rows, size, replica, memory, gradients), moe)
    }

    /// Slots whose weights come from the shards of rank `rank` of `ranks`: those of all experts of MoE layer `layer` at their initial
    /// values.
    pub fn sharded(
        seed: u64,
        layer: usize,
        slots: Slots,
        (rank, ranks): (usize, usize),
        moe: Moe,
        depth: usize,
        gradients: Kind,
    ) -> Self {
        let device = slots.device();
        let all = (0..moe.experts).map(|expert| initial_row(seed, (layer, expert), &moe, depth, device));
        let (shards, bucket) = Shards::new(all, (rank, ranks), &moe, slots, gradients);
        Self { shards: Some(shards), ..Self::of(bucket, moe) }
    }

    /// The experts in the slots of a rank, `[slot]`, which keeps part `number` of `parts` of each at its initial values.
    pub fn in_parts(
        seed: u64,
        layer: usize,
        slots: (&[Option<usize>], Slots),
        (number, parts): (usize, usize),
        moe: Moe,
        depth: usize,
        gradients: Kind,
    ) -> Self {
        let (held, slots) = slots;
        let (kind, device) = (slots.bucket.weights.kind(), slots.device());
        let all = held.iter().flatten().map(|&expert| initial_row(seed, (layer, expert), &moe, depth, device));
        let parts = Parts::new(all, (number, parts), &moe, [kind, gradients], device);
        Self { parts: Some(parts), ..Self::of(slots.bucket, moe) }
    }

    fn of(bucket: Bucket, moe: Moe) -> Self {
        Self { bucket, shards: None, parts: None, returning: RefCell::default(), moe }
    }

    /// With gradients held in that kind.
    #[must_use]
    pub fn with_gradients(self, kind: Kind) -> Self {
        Self { bucket: self.bucket.with_gradients(kind), ..self }
    }

    /// What the optimizer updates.
    pub fn state(&self) -> &Bucket {
        let of_shards = self.shards.as_ref().map(|shards| &shards.bucket);
        of_shards.or(self.parts.as_ref().map(|parts| &parts.bucket)).unwrap_or(self.bucket.state())
    }

    /// Numbers of an expert.
    pub(super) fn size(&self) -> usize {
        self.moe.expert_parameters() as usize
    }

    /// Numbers of the expert in a slot that this rank keeps.
    pub(super) fn kept(&self) -> usize {
        let slots = self.bucket.len() as usize / self.size();
        self.state().len() as usize / slots.max(1)
    }

    /// What this rank keeps of a slot in `of`, one of the state's tensors.
    pub(super) fn kept_row(&self, of: &Tensor, slot: usize) -> Tensor {
        of.narrow(0, (slot * self.kept()) as i64, self.kept() as i64)
    }

    /// The numbers of its state that an optimizer updates, where the slots of this rank hold `experts`: those of no expert have copies for
    /// one micro-batch alone.
    pub fn updated(&self, experts: &[Option<usize>]) -> Vec<Range<i64>> {
        let size = self.kept() as i64;
        // Kernels read several numbers at a time.
        if !self.stand_in_slots() || size % 8 != 0 {
            return std::iter::once(0..self.state().master.numel() as i64).collect();
        }
        let filled = experts.iter().enumerate().filter(|(_, expert)| expert.is_some());
        let mut updated: Vec<Range<i64>> = Vec::new();
        for (slot, _) in filled {
            let (start, end) = (slot as i64 * size, (slot as i64 + 1) * size);
            match updated.last_mut().filter(|before| before.end == start) {
                Some(before) => before.end = end,
                None => updated.push(start..end),
            }
        }
        updated
    }

    /// Keeps optimizer state for the first `slots` slots alone, if these keep any. The others hold copies of experts for one micro-batch.
    pub fn hold(&mut self, slots: usize) {
        if self.stand_in_slots() && !self.bucket.is_shared() {
            self.bucket.hold_state((slots * self.size()) as i64);
        }
    }

    /// Whether gradients of copies are on their way.
    pub fn is_returning(&self) -> bool {
        self.returning.borrow().is_some()
    }

    /// Sends on what copies have given each other of their gradients, if there is any: called once other work is behind that.
    ///
    /// # Errors
    /// A peer that died.
    pub fn pass_on(&self, group: &dyn Communicator) -> Result<(), CommError> {
        if let Some(returning) = self.returning.take() {
            *self.returning.borrow_mut() = Some(returning.pass_on(self, group)?);
        }
        Ok(())
    }

    /// Waits for gradients that are on their way from copies, of the `group` of experts, or to shards.
    ///
    /// # Errors
    /// A peer that died.
    pub fn settle(&self, group: &dyn Communicator) -> Result<(), CommError> {
        self.returning.take().map_or(Ok(()), |returning| returning.settle(self, group))?;
        self.shards.as_ref().map_or(Ok(()), Shards::settle)
    }

    /// Whether slots hold all state of their experts.
    pub fn stand_in_slots(&self) -> bool {
        self.shards.is_none() && self.parts.is_none()
    }

    /// The flat row of a slot in `of`, one of the bucket's tensors.
    pub fn row(&self, of: &Tensor, slot: usize) -> Tensor {
        let size = self.moe.expert_parameters() as i64;
        of.narrow(0, slot as i64 * size, size)
    }

    pub fn weights(&self, slot: usize) -> Views {
        Views::new(&self.row(&self.bucket.weights, slot), &self.moe)
    }

    /// Gradients of a slot, to be added to.
    pub fn gradients(&self, slot: usize) -> Views {
        Views::new(&self.gradient(slot), &self.moe)
    }

    /// The flat gradient of a slot, to be added to.
    pub fn gradient(&self, slot: usize) -> Tensor {
        self.row(self.bucket.gradients_of(slot), slot)
    }

    /// Rows of slots in `of`, one of the bucket's tensors: `[slots, parameters]`.
    pub(super) fn stack(&self, of: &Tensor, slots: &[usize]) -> Tensor {
        match slots {
            [] => Tensor::zeros([0, self.moe.expert_parameters() as i64], (of.kind(), of.device())),
            _ => Tensor::stack(&slots.iter().map(|&slot| self.row(of, slot)).collect::<Vec<_>>(), 0),
        }
    }

    /// Replaces the weights of all slots, `[slots, parameters]`.
    pub(super) fn fill(&self, rows: &Tensor) {
        self.bucket.weights.shallow_clone().copy_(&rows.reshape([-1]));
    }

    pub fn moe(&self) -> &Moe {
        &self.moe
    }
}

/// The flat initial values of an expert of an MoE layer.
fn initial_row(seed: u64, (layer, expert): (usize, usize), moe: &Moe, depth: usize, device: Device) -> Tensor {
    let (width, inner) = (moe.width as i64, moe.expert.inner as i64);
    let part = |what: &str, shape: &[i64], values| {
        let name = format!("layer {layer} expert {expert} {what}");
        initial(seed, &name, shape, values, device).reshape([-1])
    };
    let scaled = Initial::Normal(1.0 / (2.0 * depth as f64).sqrt());
    let mut matrices = vec![("first", [width, inner], Initial::Normal(1.0))];
    matrices.extend(moe.expert.gated.then_some(("gate", [width, inner], Initial::Normal(1.0))));
    matrices.push(("second", [inner, width], scaled));
    let with_bias = |(what, shape, values): (&str, [i64; 2], Initial)| {
        let bias = || part(&format!("{what} bias"), &shape[1..], Initial::Zeros);
        [Some(part(what, &shape, values)), moe.expert.biases.then(bias)].into_iter().flatten()
    };
    Tensor::cat(&matrices.into_iter().flat_map(with_bias).collect::<Vec<_>>(), 0)
}

/// Adds a product to `to`, which may be of another kind.
fn add_product(to: &mut Tensor, first: &Tensor, second: &Tensor) {
    let _ = match (to.kind(), first.kind()) {
        (same, kind) if same == kind => to.addmm_(first, second),
        (Kind::Float, _) => to.g_add_(&first.mm_dtype(second, Kind::Float)),
        _ => to.g_add_(&first.mm(second)),
    };
}

/// `x W + b`.
fn linear(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    match bias {
        Some(bias) => bias.addmm(input, weight),
        None => input.mm(weight),
    }
}

/// Of one tensor or more, in the memory of the first.
pub(super) fn sum_of(tensors: impl Iterator<Item = Tensor>) -> Tensor {
    tensors.reduce(|mut sum, tensor| sum.g_add_(&tensor)).expect("there is a first matrix")
}

/// `activate(x W1 + b1) W2 + b2` on rows `[n, width]`, with the gate's product in the activation where there is one.
pub fn forward(weights: &Views, input: Tensor) -> (Tensor, Saved) {
    let product = |(matrix, bias): (&Tensor, Option<&Tensor>)| linear(&input, matrix, bias);
    let inner: Vec<Tensor> = weights.before_last().into_iter().map(product).collect();
    let active = activate(weights.activation, &inner);
    let output = linear(&active, &weights.second, weights.second_bias.as_ref());
    (output, Saved { input, inner, active, grouping: None })
}

/// The gradient of the input; those of the parameters are added to `gradients`.
pub fn backward(weights: &Views, gradients: &mut Views, saved: Saved, gradient: &Tensor) -> Tensor {
    let add = |(weight, bias): (&mut Tensor, &mut Option<Tensor>), input: &Tensor, gradient: &Tensor| {
        add_product(weight, &input.tr(), gradient);
        if let Some(bias) = bias {
            let _ = bias.g_add_(&gradient.sum_dim_intlist([0i64].as_slice(), false, gradient.kind()));
        }
    };
    add((&mut gradients.second, &mut gradients.second_bias), &saved.active, gradient);
    let of_inner = weights.deactivate(&saved.inner, &gradient.matmul(&weights.second.tr()));
    add((&mut gradients.first, &mut gradients.first_bias), &saved.input, &of_inner[0]);
    if let Some((of_gate, of_gate_bias)) = &mut gradients.gate {
        add((of_gate, of_gate_bias), &saved.input, &of_inner[1]);
    }
    sum_of(of_inner.iter().zip(weights.before_last()).map(|(of_inner, (matrix, _))| of_inner.matmul(&matrix.tr())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_agree_with_finite_differences() {
        let plain = Mlp::plain(5);
        differences(plain);
        for activation in [Activation::Gelu, Activation::Silu, Activation::ClampedSilu] {
            differences(Mlp { gated: true, biases: false, activation, ..plain });
        }
        differences(Mlp { gated: true, activation: Activation::ClampedSilu, ..plain });
        differences(Mlp { activation: Activation::Silu, ..plain });
    }

    /// Against finite differences of a weighted sum of the outputs, in double precision.
    fn differences(expert: Mlp) {
        let moe = Moe { expert, ..Moe::plain(1, 3, 5, 1) };
        let size = moe.expert_parameters() as i64;
        let draw = |name: &str, shape: &[i64]| {
            initial(5, name, shape, Initial::Normal(40.0), Device::Cpu).to_kind(Kind::Double)
        };
        let (flat, input, weight) = (draw("flat", &[size]), draw("input", &[4, 3]), draw("weight", &[4, 3]));
        let value = |flat: &Tensor, input: &Tensor| {
            let (output, _) = forward(&Views::new(flat, &moe), input.shallow_clone());
            f64::try_from((output * &weight).sum(Kind::Double)).unwrap()
        };
        let found = flat.zeros_like();
        let views = Views::new(&flat, &moe);
        let (_, saved) = forward(&views, input.shallow_clone());
        let of_input = backward(&views, &mut Views::new(&found, &moe), saved, &weight);

        let step = 1e-6;
        let check = |found: &Tensor, at: &Tensor, value: &dyn Fn(&Tensor) -> f64| {
            for index in 0..at.numel() as i64 {
                let moved = |by: f64| {
                    let there = at.copy().reshape([-1]);
                    let _ = there.narrow(0, index, 1).g_add_scalar_(by);
                    value(&there.view_as(at))
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let found = f64::try_from(found.reshape([-1]).get(index)).unwrap();
                assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{index}: {found} {expected}");
            }
        };
        check(&found, &flat, &|flat| value(flat, &input));
        check(&of_input, &input, &|input| value(&flat, input));
    }
}
