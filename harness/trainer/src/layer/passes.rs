//! The two passes of a layer program on one rank's rows: what its ops send, receive and compute.

use systems::program::Op;
use tch::Tensor;
use workloads::model::Moe;

use crate::TrainError;
use crate::clock::synchronise;
use crate::comm::{Communicator, Pending};
use crate::layer::Layer;
use crate::layer::execute::Work;
use crate::layer::experts::{self, Views};
use crate::layer::relay::Relay;
use crate::layer::rows::RowPieces;
use crate::layer::shipping::{Call, Shipping};

/// Rows on their way to experts and back; both passes do this alike, one with tokens, the other with gradients.
struct Exchanges<'a> {
    group: &'a dyn Communicator,
    shipping: &'a Shipping,
    relay: Option<&'a Relay>,
    /// What this rank sends, and keeps for shadowed experts.
    rows: Tensor,
    /// `[step][call]`: what arrived for this rank's experts, and what these made of it.
    arrived: Vec<Vec<Tensor>>,
    computed: Vec<Vec<Tensor>>,
    /// What came of this rank's rows.
    back: RowPieces,
}

impl<'a> Exchanges<'a> {
    fn new(group: &'a dyn Communicator, shipping: &'a Shipping, relay: Option<&'a Relay>, rows: Tensor) -> Self {
        let none_yet = || shipping.steps.iter().map(|_| Vec::new()).collect();
        Self { group, shipping, relay, rows, arrived: none_yet(), computed: none_yet(), back: RowPieces::new(shipping) }
    }

    fn dispatch(&self, step: usize) -> Result<Vec<Pending>, TrainError> {
        dispatch(self.group, self.relay, &self.shipping.steps[step], &self.rows)
    }

    fn combine(&self, step: usize) -> Result<Vec<Pending>, TrainError> {
        combine(self.group, self.relay, &self.shipping.steps[step], &self.computed[step])
    }

    fn combined(&mut self, step: usize, pieces: Vec<Tensor>) {
        let first = piece(self.shipping, step);
        for (index, tensor) in pieces.into_iter().enumerate() {
            self.back.put(first + index, tensor);
        }
        self.computed[step].clear();
    }

    /// This rank's rows of its shadow `index`.
    fn shadow_rows(&self, index: usize) -> Tensor {
        let (_, first, number) = self.shipping.shadows[index];
        self.rows.narrow(0, first as i64, number as i64)
    }
}

/// The forward pass under way.
pub struct Forward<'a> {
    layer: &'a Layer,
    exchanges: Exchanges<'a>,
    experts: Vec<Vec<Option<experts::Kept>>>,
    /// Weights, then also what the backward pass needs.
    broadcast: Vec<Option<Tensor>>,
    shadows: Vec<Option<(Tensor, experts::Kept)>>,
}

/// What experts keep of a forward pass, `[step][slot]`.
pub type SlotsKept = Vec<Vec<Option<experts::Kept>>>;

/// Weights and what is kept of shadowed experts, in the program's order.
pub type ShadowsKept = Vec<Option<(Tensor, experts::Kept)>>;

/// Results by row, and what the backward pass needs.
pub type ForwardResult = (Tensor, SlotsKept, ShadowsKept);

impl<'a> Forward<'a> {
    /// At its start, with this rank's rows.
    pub fn new(
        layer: &'a Layer,
        group: &'a dyn Communicator,
        shipping: &'a Shipping,
        relay: Option<&'a Relay>,
        rows: Tensor,
    ) -> Self {
        let steps = shipping.steps.len();
        let slots = layer.placement.slots_per_rank();
        let none = |count: usize| (0..count).map(|_| None).collect::<Vec<_>>();
        Self {
            layer,
            exchanges: Exchanges::new(group, shipping, relay, rows),
            experts: (0..steps).map(|_| (0..slots).map(|_| None).collect()).collect(),
            broadcast: none(shipping.shadows.len()),
            shadows: (0..shipping.shadows.len()).map(|_| None).collect(),
        }
    }

    /// What it brought.
    ///
    /// # Errors
    /// A program that leaves rows where they are.
    pub fn finish(self) -> Result<ForwardResult, TrainError> {
        Ok((self.exchanges.back.finish()?, self.experts, self.shadows))
    }
}

impl Work for Forward<'_> {
    fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError> {
        match op {
            Op::Dispatch { step } => self.exchanges.dispatch(step),
            Op::Combine { step } => self.exchanges.combine(step),
            Op::Broadcast { expert } => {
                let owner = self.layer.placement.rank_of(expert);
                let bucket = &self.layer.experts.bucket;
                let own =
                    self.layer.placement.experts_of(self.exchanges.group.rank()).iter().position(|&e| e == expert);
                // What others pass states the shape alone.
                let weights = self.layer.experts.row(&bucket.weights, own.unwrap_or(0));
                Ok(vec![self.exchanges.group.broadcast(&weights, owner)?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn arrive(&mut self, op: Op, mut tensors: Vec<Tensor>) -> Result<(), TrainError> {
        match op {
            Op::Dispatch { step } => self.exchanges.arrived[step] = tensors,
            Op::Combine { step } => self.exchanges.combined(step, tensors),
            Op::Broadcast { expert } => {
                let (_, index) = shadow_piece(self.exchanges.shipping, expert)?;
                self.broadcast[index] = tensors.pop();
            }
            _ => {}
        }
        Ok(())
    }

    fn compute(&mut self, op: Op) -> Result<(), TrainError> {
        match op {
            Op::Experts { step } => {
                let arrived = std::mem::take(&mut self.exchanges.arrived[step]);
                let (layer, kept) = (self.layer, &mut self.experts[step]);
                self.exchanges.computed[step] =
                    each_slot(&self.exchanges.shipping.steps[step], arrived, |slot, rows| {
                        let (output, keep) = experts::forward(&layer.experts.weights(slot), rows);
                        kept[slot] = Some(keep);
                        Ok(output)
                    })?;
            }
            Op::Shadow { expert } => {
                let (piece, index) = shadow_piece(self.exchanges.shipping, expert)?;
                let rows = self.exchanges.shadow_rows(index);
                let weights = self.broadcast[index].take();
                let weights = weights
                    .ok_or_else(|| TrainError::Program(format!("expert {expert} is shadowed before its broadcast")))?;
                if rows.size()[0] == 0 {
                    self.exchanges.back.put(piece, rows);
                } else {
                    let views = Views::new(&weights, self.layer.experts.moe());
                    let (output, keep) = experts::forward(&views, rows);
                    self.exchanges.back.put(piece, output);
                    self.shadows[index] = Some((weights, keep));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn synchronise(&self) {
        synchronise(self.exchanges.rows.device());
    }
}

/// A shadowed expert on its way back.
enum Shadow {
    Kept((Tensor, experts::Kept)),
    Gradient(Tensor),
}

/// The backward pass under way.
pub struct Backward<'a> {
    layer: &'a Layer,
    exchanges: Exchanges<'a>,
    experts: Vec<Vec<Option<experts::Kept>>>,
    shadows: Vec<Option<Shadow>>,
}

impl<'a> Backward<'a> {
    /// At its start, with the gradients of this rank's results and what the forward pass kept.
    pub fn new(
        layer: &'a Layer,
        group: &'a dyn Communicator,
        shipping: &'a Shipping,
        relay: Option<&'a Relay>,
        rows: Tensor,
        (experts, shadows): (SlotsKept, ShadowsKept),
    ) -> Self {
        Self {
            layer,
            exchanges: Exchanges::new(group, shipping, relay, rows),
            experts,
            shadows: shadows.into_iter().map(|shadow| shadow.map(Shadow::Kept)).collect(),
        }
    }

    /// The gradients of this rank's rows.
    ///
    /// # Errors
    /// A program that leaves them where they are.
    pub fn finish(self) -> Result<Tensor, TrainError> {
        self.exchanges.back.finish()
    }
}

impl Work for Backward<'_> {
    fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError> {
        match op {
            Op::Dispatch { step } => self.exchanges.dispatch(step),
            Op::Combine { step } => self.exchanges.combine(step),
            Op::ReduceGrad { expert } => {
                let (_, index) = shadow_piece(self.exchanges.shipping, expert)?;
                let gradient = match self.shadows[index].take() {
                    Some(Shadow::Gradient(gradient)) => gradient,
                    _ => {
                        return Err(TrainError::Program(format!("gradients of expert {expert} are reduced too early")));
                    }
                };
                Ok(vec![self.exchanges.group.reduce(&gradient, self.layer.placement.rank_of(expert))?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn arrive(&mut self, op: Op, mut tensors: Vec<Tensor>) -> Result<(), TrainError> {
        match op {
            Op::Dispatch { step } => self.exchanges.arrived[step] = tensors,
            Op::Combine { step } => self.exchanges.combined(step, tensors),
            Op::ReduceGrad { expert } => {
                let own = self.layer.placement.experts_of(self.exchanges.group.rank());
                if let (Some(slot), Some(sum)) = (own.iter().position(|&e| e == expert), tensors.pop()) {
                    let experts = &self.layer.experts;
                    let _ = experts.row(&experts.bucket.gradients, slot).g_add_(&sum);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn compute(&mut self, op: Op) -> Result<(), TrainError> {
        match op {
            Op::Experts { step } => {
                let arrived = std::mem::take(&mut self.exchanges.arrived[step]);
                let (layer, kept) = (self.layer, &mut self.experts[step]);
                self.exchanges.computed[step] =
                    each_slot(&self.exchanges.shipping.steps[step], arrived, |slot, gradient| {
                        let keep = kept[slot].take();
                        let keep =
                            keep.ok_or_else(|| TrainError::Program(format!("slot {slot} runs backward twice")))?;
                        let (weights, mut gradients) = (layer.experts.weights(slot), layer.experts.gradients(slot));
                        Ok(experts::backward(&weights, &mut gradients, keep, &gradient))
                    })?;
            }
            Op::Shadow { expert } => {
                let (piece, index) = shadow_piece(self.exchanges.shipping, expert)?;
                let gradient = self.exchanges.shadow_rows(index);
                let moe = self.layer.experts.moe();
                match self.shadows[index].take() {
                    Some(Shadow::Kept((weights, keep))) => {
                        let found = weights.zeros_like();
                        let of_input = experts::backward(
                            &Views::new(&weights, moe),
                            &mut Views::new(&found, moe),
                            keep,
                            &gradient,
                        );
                        self.exchanges.back.put(piece, of_input);
                        self.shadows[index] = Some(Shadow::Gradient(found));
                    }
                    _ => {
                        let none = empty_gradient(moe, &gradient);
                        self.exchanges.back.put(piece, gradient);
                        self.shadows[index] = Some(Shadow::Gradient(none));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn synchronise(&self) {
        synchronise(self.exchanges.rows.device());
    }
}

/// Index of the first piece of a step: calls come first, shadows follow.
fn piece(shipping: &Shipping, step: usize) -> usize {
    shipping.steps[..step].iter().map(Vec::len).sum()
}

/// Index of a shadow's piece and of the shadow.
fn shadow_piece(shipping: &Shipping, expert: usize) -> Result<(usize, usize), TrainError> {
    let found = shipping.shadows.iter().position(|shadow| shadow.0 == expert);
    let index = found.ok_or_else(|| TrainError::Program(format!("expert {expert} is not among the shadowed")))?;
    Ok((piece(shipping, shipping.steps.len()) + index, index))
}

/// Sends the pieces of a step to the ranks of their experts.
fn dispatch(
    group: &dyn Communicator,
    relay: Option<&Relay>,
    calls: &[Call],
    rows: &Tensor,
) -> Result<Vec<Pending>, TrainError> {
    if let (Some(relay), [_]) = (relay, calls) {
        let arrived = relay.dispatch(group, rows)?;
        return Ok(vec![Pending::new(move || Ok(arrived))]);
    }
    let send = |call: &Call| {
        let length: usize = call.sent.iter().sum();
        let part = rows.narrow(0, call.first as i64, length as i64);
        Ok(group.all_to_all(&part, &call.sent, &call.received)?)
    };
    calls.iter().map(send).collect()
}

/// Sends results of a step back.
fn combine(
    group: &dyn Communicator,
    relay: Option<&Relay>,
    calls: &[Call],
    rows: &[Tensor],
) -> Result<Vec<Pending>, TrainError> {
    if calls.len() != rows.len() {
        return Err(TrainError::Program("a combine before its experts have run".to_owned()));
    }
    if let (Some(relay), [rows]) = (relay, rows) {
        let back = relay.combine(group, rows)?;
        return Ok(vec![Pending::new(move || Ok(back))]);
    }
    calls.iter().zip(rows).map(|(call, rows)| Ok(group.all_to_all(rows, &call.received, &call.sent)?)).collect()
}

/// Runs `expert(slot, rows)` on what arrived in a step; returns results in the order of arrival, `[call]`.
fn each_slot(
    calls: &[Call],
    arrived: Vec<Tensor>,
    mut expert: impl FnMut(usize, Tensor) -> Result<Tensor, TrainError>,
) -> Result<Vec<Tensor>, TrainError> {
    if calls.len() != arrived.len() {
        return Err(TrainError::Program("experts before their rows have arrived".to_owned()));
    }
    let run = |(call, rows): (&Call, Tensor)| -> Result<Tensor, TrainError> {
        if call.slots.len() == 1 {
            let slot = call.slots.start;
            return if call.arrived(slot) == 0 { Ok(rows) } else { expert(slot, rows) };
        }
        // Rows come by source, then slot; an expert wants all of its own together.
        let sizes: Vec<i64> = call.parts.iter().flatten().map(|&rows| rows as i64).collect();
        let parts = rows.split_with_sizes(sizes.as_slice(), 0);
        let (sources, slots) = (call.parts.len(), call.slots.len());
        let mut results: Vec<Vec<Tensor>> = Vec::with_capacity(slots);
        for slot in 0..slots {
            let own: Vec<&Tensor> = (0..sources).map(|source| &parts[source * slots + slot]).collect();
            let rows = Tensor::cat(&own, 0);
            let result = if rows.size()[0] == 0 { rows } else { expert(call.slots.start + slot, rows)? };
            let sizes: Vec<i64> = call.parts.iter().map(|of| of[slot] as i64).collect();
            results.push(result.split_with_sizes(sizes.as_slice(), 0));
        }
        let back: Vec<&Tensor> = (0..sources).flat_map(|source| results.iter().map(move |of| &of[source])).collect();
        Ok(Tensor::cat(&back, 0))
    };
    calls.iter().zip(arrived).map(run).collect()
}

/// The gradient of an expert that got no rows.
fn empty_gradient(moe: &Moe, like: &Tensor) -> Tensor {
    Tensor::zeros([moe.expert_parameters() as i64], (like.kind(), like.device()))
}
