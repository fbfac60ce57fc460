//! One pass of a layer program on one rank: what its ops send, receive and compute.
//!
//! Both passes move rows to experts and back in the same way; forward the rows are tokens, backward they are gradients. A
//! [`Kernel`] says what the experts do with them.

use std::ops::Range;

use systems::plan::placement::Placement;
use systems::program::Op;
use tch::{Kind, Tensor};
use workloads::model::Moe;

use crate::clock::timer::synchronize;
use crate::comm::{Communicator, Pending};
use crate::error::TrainError;
use crate::kernels::Kernels;
use crate::layer::copies::Transfers;
use crate::layer::experts::{self, Experts, Views};
use crate::layer::moe::Layer;
use crate::layer::parts::Parts;
use crate::layer::shards::Shards;
use crate::layer::splits::{Split, Splits};
use crate::layer::together::{Begun, Grouping, Together};

/// What the experts of a pass compute.
pub(super) trait Kernel {
    /// Runs the expert in a slot on the rows that arrived for it in a step.
    fn expert(&mut self, experts: &Experts, at: At, rows: Tensor) -> Result<Tensor, TrainError>;

    /// Runs all experts of a step together, on the rows of all its calls.
    fn together(
        &mut self,
        experts: &Experts,
        kernels: &Kernels,
        step: usize,
        calls: &[Split],
        rows: Tensor,
    ) -> Result<Tensor, TrainError>;

    /// Runs a shadowed expert on this rank's own rows; returns their outputs and what the expert is afterwards.
    fn shadow(&mut self, moe: &Moe, shadow: Shadow, rows: Tensor) -> Result<(Tensor, Shadow), TrainError>;

    /// Runs all shadowed experts together, `sizes` `[shadow]` of this rank's own rows each, and changes what they are; returns the outputs. None
    /// where one is not ready to, or none has rows.
    fn shadows(
        &mut self,
        moe: &Moe,
        kernels: &Kernels,
        shadows: &mut [Shadow],
        sizes: Vec<usize>,
        rows: Tensor,
    ) -> Option<Tensor>;
}

/// A step of the program and a slot of this rank.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    pub(super) step: usize,
    pub(super) slot: usize,
}

/// What a pass works with on this rank.
#[derive(Clone, Copy)]
pub(super) struct Local<'a> {
    pub(super) group: &'a dyn Communicator,
    /// The same ranks: what goes from shards to slots and back.
    pub(super) shards: &'a dyn Communicator,
    pub(super) experts: &'a Experts,
    pub(super) placement: &'a Placement,
    /// The layer of the pass after this one, if that restores experts from shards.
    pub(super) next: Option<&'a Layer>,
    pub(super) splits: &'a Splits,
    pub(super) transfers: &'a Transfers,
    /// Whether the pass before has left weights that the program brings to slots in these.
    pub(super) filled: bool,
}

/// `[step][slot]`: saved for backward.
pub(super) type SlotsSaved = Vec<Vec<Option<experts::Saved>>>;

/// A shadowed expert, from its broadcast to the reduction of its gradient.
pub(super) enum Shadow {
    /// Before its broadcast.
    Absent,
    /// Its weights have arrived.
    Weights(Tensor),
    /// Its weights, and what its forward pass saved.
    Saved(Tensor, experts::Saved),
    /// Likewise of all shadowed experts, `[shadows, parameters]`, which ran together; those behind the first keep nothing.
    AllSaved(Tensor, experts::Saved),
    WithFirst,
    /// It has no rows on this rank.
    Unused,
    /// The gradient of its weights.
    Gradient(Tensor),
}

impl Shadow {
    /// The shadowed experts before a forward pass.
    pub(super) fn none(splits: &Splits) -> Vec<Self> {
        splits.shadows.iter().map(|_| Self::Absent).collect()
    }
}

/// A pass under way.
pub(super) struct Pass<'a, K> {
    local: Local<'a>,
    kernel: K,
    /// `[rows, width]`: what this rank sends, and keeps for shadowed experts; no rows before they are put into order.
    rows: Tensor,
    /// What puts them into order, if that is to be done.
    permute: Option<Box<dyn FnOnce() -> Tensor + 'a>>,
    /// `[step][call]`: rows for this rank's experts.
    arrived: Vec<Vec<Tensor>>,
    /// `[step][call]`: outputs of this rank's experts.
    computed: Vec<Vec<Tensor>>,
    /// Outputs for this rank's rows: one piece for every call of every step, then one for every shadowed expert.
    outputs: Vec<Option<Tensor>>,
    shadows: Vec<Shadow>,
    /// Weights of copies that were on their way before the pass.
    ahead: Option<Vec<Pending>>,
}

impl<'a, K: Kernel> Pass<'a, K> {
    pub(super) fn new(local: Local<'a>, kernel: K, rows: Tensor, shadows: Vec<Shadow>) -> Self {
        let empty = || local.splits.steps.iter().map(|_| Vec::new()).collect();
        // Nothing comes back for a call without rows, which a program may leave out.
        let nothing = |call: &Split| call.input.iter().all(|&rows| rows == 0).then(|| rows.narrow(0, 0, 0));
        let calls = local.splits.steps.iter().flatten().map(nothing);
        let outputs = calls.chain(shadows.iter().map(|_| None)).collect();
        let (arrived, computed) = (empty(), empty());
        Self { local, kernel, rows, permute: None, arrived, computed, outputs, shadows, ahead: None }
    }

    /// With rows that are put into order by a task of the pass.
    pub(super) fn permuting(self, permute: impl FnOnce() -> Tensor + 'a) -> Self {
        Self { permute: Some(Box::new(permute)), ..self }
    }

    pub(super) fn with_copies(self, ahead: Option<Vec<Pending>>) -> Self {
        Self { ahead, ..self }
    }

    /// The outputs for this rank's rows, in their order; the kernel; the shadowed experts.
    ///
    /// # Errors
    /// A program that does not return all rows.
    pub(super) fn finish(self) -> Result<(Tensor, K, Vec<Shadow>), TrainError> {
        let pieces: Option<Vec<Tensor>> = self.outputs.into_iter().collect();
        let outputs = match pieces {
            Some(pieces) => joined(pieces),
            None => return Err(TrainError::Program("rows that never come back".to_owned())),
        };
        Ok((outputs, self.kernel, self.shadows))
    }

    /// Starts an exchange.
    ///
    /// # Errors
    /// A peer that died; a program that sends what is not computed yet.
    pub(super) fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError> {
        let Local { splits, transfers, group, experts, placement, filled, .. } = self.local;
        if let Some(parts) = &experts.parts {
            match op {
                Op::Unshard if filled => return Ok(Vec::new()),
                Op::Unshard => return Ok(vec![parts.gather(&parts.bucket.weights, placement, group)?]),
                Op::Reshard => return Ok(vec![parts.scatter(experts, placement, group)?]),
                _ => {}
            }
        }
        match op {
            Op::Dispatch { step } => self.dispatch(step),
            Op::Combine { step } => self.combine(step),
            Op::Broadcast { expert } => Ok(vec![self.broadcast(expert)?]),
            Op::ReduceGrad { expert } => Ok(vec![self.reduce(expert)?]),
            // One after the other; their price is that of one collective.
            Op::GatherShadows => splits.shadows.iter().map(|shadow| self.broadcast(shadow.expert)).collect(),
            Op::ScatterGrads => splits.shadows.iter().map(|shadow| self.reduce(shadow.expert)).collect(),
            Op::CopyWeights => match self.ahead.take() {
                Some(ahead) => Ok(ahead),
                None if filled => Ok(Vec::new()),
                None => Ok(vec![transfers.weights(experts, group)?]),
            },
            // No task waits for it: it ends in the passes that follow.
            Op::ReturnGrad => {
                *experts.returning.borrow_mut() = transfers.gradients(experts, group)?;
                Ok(Vec::new())
            }
            Op::Unshard => {
                let shards = self.shards()?;
                if !filled {
                    shards.restore(&experts.bucket, placement, self.local.shards)?;
                }
                Ok(shards.under_way())
            }
            // No task waits for it: it ends in the passes that follow.
            Op::Reshard => {
                self.shards()?.scatter(&experts.bucket, placement, self.local.shards)?;
                Ok(Vec::new())
            }
            // Counts have arrived before the program was known.
            Op::Counts => Ok(Vec::new()),
            _ => Err(not_executed(op)),
        }
    }

    /// The layer of the next pass, where its experts can begin to be restored: those that go where this layer's are, once these `ran`.
    pub(super) fn restorable(&self, ran: bool) -> Option<&'a Layer> {
        let memory = |experts: &Experts| experts.bucket.weights.data_ptr();
        self.local.next.filter(|next| ran || memory(&next.experts) != memory(self.local.experts))
    }

    /// Starts to restore the experts of a layer, if that is not under way.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn restore(&self, layer: &Layer) -> Result<(), TrainError> {
        Ok(layer.restore(self.local.shards)?)
    }

    /// Starts to send an expert's weights to the group.
    fn broadcast(&self, expert: usize) -> Result<Pending, TrainError> {
        let Local { group, experts, placement, .. } = self.local;
        // What ranks other than the owner pass states the shape alone.
        let slot = placement.slot_on(group.rank(), expert).unwrap_or(0);
        let weights = experts.row(&experts.bucket.weights, slot);
        Ok(group.broadcast(&weights, placement.rank_of(expert))?)
    }

    /// Starts to sum up the gradient of a shadowed expert's weights at its owner.
    fn reduce(&mut self, expert: usize) -> Result<Pending, TrainError> {
        let index = self.shadow_index(expert)?;
        let Shadow::Gradient(gradient) = std::mem::replace(&mut self.shadows[index], Shadow::Absent) else {
            let what = format!("a reduction of the gradient of expert {expert} before it is computed");
            return Err(TrainError::Program(what));
        };
        let Local { group, experts, placement, .. } = self.local;
        // Summed as gradients are held.
        let gradient = gradient.to_kind(experts.gradient(0).kind());
        Ok(group.reduce(&gradient, placement.rank_of(expert))?)
    }

    /// Adds the summed gradient of a shadowed expert where the expert lives.
    fn add_gradient(&self, expert: usize, sum: &Tensor) {
        let Local { group, experts, placement, .. } = self.local;
        let owner = placement.rank_of(expert) == group.rank();
        if let Some(slot) = placement.slot_on(group.rank(), expert).filter(|_| owner) {
            let _ = experts.gradient(slot).g_add_(sum);
        }
    }

    /// A shadowed expert whose weights are there. Its owner has them in its slots; where experts are restored for a pass, other layers' are
    /// restored there before the backward pass.
    fn shadow(&self, expert: usize, weights: Tensor) -> Shadow {
        let Local { group, experts, placement, .. } = self.local;
        let is_restored = !experts.stand_in_slots() && placement.rank_of(expert) == group.rank();
        Shadow::Weights(if is_restored { weights.copy() } else { weights })
    }

    /// Takes the tensors that an exchange received.
    ///
    /// # Errors
    /// A program that exchanges an expert it does not shadow.
    pub(super) fn arrive(&mut self, op: Op, mut tensors: Vec<Tensor>) -> Result<(), TrainError> {
        let Local { splits, experts, .. } = self.local;
        match op {
            Op::Dispatch { step } => self.arrived[step] = tensors,
            Op::Combine { step } => {
                let first = first_piece(splits, step);
                for (piece, tensor) in self.outputs[first..].iter_mut().zip(tensors) {
                    *piece = Some(tensor);
                }
                self.computed[step].clear();
            }
            Op::Broadcast { expert } => {
                let index = self.shadow_index(expert)?;
                self.shadows[index] = tensors.pop().map_or(Shadow::Absent, |weights| self.shadow(expert, weights));
            }
            Op::ReduceGrad { expert } => tensors.iter().for_each(|sum| self.add_gradient(expert, sum)),
            Op::GatherShadows => {
                let all = splits.shadows.iter().zip(tensors);
                self.shadows = all.map(|(shadow, weights)| self.shadow(shadow.expert, weights)).collect();
            }
            Op::ScatterGrads => {
                let sums = splits.shadows.iter().zip(&tensors);
                sums.for_each(|(shadow, sum)| self.add_gradient(shadow.expert, sum));
            }
            Op::Unshard => self.of_parts(|parts| tensors.iter().for_each(|rows| experts.fill(&parts.whole(rows)))),
            Op::Reshard => self.of_parts(|parts| tensors.iter().for_each(|rows| parts.add(rows))),
            // Nothing else was issued.
            _ => {}
        }
        Ok(())
    }

    /// From shards, what arrives is in its place already.
    fn of_parts(&self, take: impl Fn(&Parts)) {
        self.local.experts.parts.iter().for_each(take);
    }

    /// Runs a compute task. Gate and decision have run before the program was known.
    ///
    /// # Errors
    /// A program that computes on rows or weights that have not arrived.
    pub(super) fn compute(&mut self, op: Op) -> Result<(), TrainError> {
        let Local { experts, splits, .. } = self.local;
        match op {
            Op::Experts { step } => {
                let arrived = std::mem::take(&mut self.arrived[step]);
                if splits.steps[step].len() != arrived.len() {
                    return Err(TrainError::Program("experts that run before their rows have arrived".to_owned()));
                }
                self.computed[step] = self.experts(step, arrived)?;
            }
            Op::Shadow { expert } => {
                let (index, first) = (self.shadow_index(expert)?, first_piece(splits, splits.steps.len()));
                self.check_order()?;
                if self.outputs[first + index].is_some() || self.shadows_together() {
                    return Ok(());
                }
                let own = splits.shadows[index];
                let rows = self.rows.narrow(0, own.first as i64, own.rows as i64);
                let shadow = std::mem::replace(&mut self.shadows[index], Shadow::Absent);
                let (outputs, shadow) = self.kernel.shadow(experts.moe(), shadow, rows)?;
                self.shadows[index] = shadow;
                self.outputs[first + index] = Some(outputs);
            }
            Op::Permute => {
                if let Some(permute) = self.permute.take() {
                    self.rows = permute();
                }
            }
            Op::Gate | Op::Sync | Op::Decide { .. } | Op::Await => {}
            _ => return Err(not_executed(op)),
        }
        Ok(())
    }

    /// The host waits for the device, so that what it was told of an exchange is there. Alone, there is no exchange.
    pub(super) fn synchronize(&self) {
        if !self.is_alone() {
            synchronize(self.rows.device());
        }
    }

    /// Whether rows need not move: all experts are on this rank and run together.
    fn is_alone(&self) -> bool {
        self.local.group.size() == 1 && self.local.experts.kernels().is_some()
    }

    /// Runs the experts of a step; returns their outputs, `[call]`.
    fn experts(&mut self, step: usize, arrived: Vec<Tensor>) -> Result<Vec<Tensor>, TrainError> {
        let Local { experts, splits, .. } = self.local;
        let (calls, alone) = (&splits.steps[step], self.is_alone());
        let kernel = &mut self.kernel;
        let sizes: Vec<i64> = arrived.iter().map(|rows| rows.size()[0]).collect();
        let together = splits.parts == 1 && slots_of(calls).len() > 1 && sizes.iter().any(|&rows| rows > 0);
        let kernels = experts.kernels().filter(|_| together);
        let Some(kernels) = kernels else {
            let run = |(call, rows)| run_call(kernel, experts, step, call, rows);
            return calls.iter().zip(arrived).map(run).collect();
        };
        if alone {
            let rows = self.rows.narrow(0, calls[0].first as i64, sizes.iter().sum());
            let outputs = kernel.together(experts, kernels, step, calls, rows)?;
            // All outputs as the first call's: what is not cut need not be joined.
            let none = outputs.narrow(0, 0, 0);
            let rest = calls[1..].iter().map(|_| none.shallow_clone());
            return Ok(std::iter::once(outputs).chain(rest).collect());
        }
        let rows = if let [rows] = &arrived[..] { rows.shallow_clone() } else { Tensor::cat(&arrived, 0) };
        let outputs = kernel.together(experts, kernels, step, calls, rows)?;
        Ok(outputs.split_with_sizes(sizes.as_slice(), 0))
    }

    /// The kernels by which shadowed experts run together: on a GPU, where there are several.
    pub(super) fn kernels_of_shadows(&self) -> Option<&'static Kernels> {
        self.local.experts.kernels().filter(|_| self.shadows.len() > 1)
    }

    /// Runs all shadowed experts together, if they can.
    fn shadows_together(&mut self) -> bool {
        let (Some(kernels), [first, ..]) = (self.kernels_of_shadows(), &self.local.splits.shadows[..]) else {
            return false;
        };
        let Local { experts, splits, .. } = self.local;
        let sizes: Vec<usize> = splits.shadows.iter().map(|shadow| shadow.rows).collect();
        let rows = self.rows.narrow(0, first.first as i64, sizes.iter().sum::<usize>() as i64);
        let pieces: Vec<i64> = sizes.iter().map(|&rows| rows as i64).collect();
        let Some(outputs) = self.kernel.shadows(experts.moe(), kernels, &mut self.shadows, sizes, rows) else {
            return false;
        };
        let of_shadows = &mut self.outputs[first_piece(splits, splits.steps.len())..];
        for (piece, outputs) in of_shadows.iter_mut().zip(outputs.split_with_sizes(pieces.as_slice(), 0)) {
            *piece = Some(outputs);
        }
        true
    }

    fn check_order(&self) -> Result<(), TrainError> {
        let early = || TrainError::Program("rows that are needed before they are in order".to_owned());
        self.permute.is_none().then_some(()).ok_or_else(early)
    }

    /// Sends the rows of a step to the ranks of their experts.
    fn dispatch(&self, step: usize) -> Result<Vec<Pending>, TrainError> {
        let Local { group, splits, .. } = self.local;
        let calls = &splits.steps[step];
        self.check_order()?;
        if self.is_alone() {
            let piece = |call: &Split| self.rows.narrow(0, call.first as i64, call.input[0] as i64);
            return Ok(calls.iter().map(|call| ready(piece(call))).collect());
        }
        if let (Some(hierarchical), [_]) = (&splits.hierarchical, &calls[..]) {
            let arrived = hierarchical.dispatch(group, &self.rows)?;
            return Ok(vec![ready(arrived)]);
        }
        let send = |call: &Split| {
            let length: usize = call.input.iter().sum();
            let piece = self.rows.narrow(0, call.first as i64, length as i64);
            Ok(group.all_to_all(&piece, &call.input, &call.output)?)
        };
        calls.iter().map(send).collect()
    }

    /// Sends the outputs of a step back to the ranks of their tokens.
    fn combine(&self, step: usize) -> Result<Vec<Pending>, TrainError> {
        let Local { group, splits, .. } = self.local;
        let (calls, outputs) = (&splits.steps[step], &self.computed[step]);
        if calls.len() != outputs.len() {
            return Err(TrainError::Program("a combine before its experts have run".to_owned()));
        }
        if self.is_alone() {
            return Ok(outputs.iter().map(|outputs| ready(outputs.shallow_clone())).collect());
        }
        if let (Some(hierarchical), [outputs]) = (&splits.hierarchical, &outputs[..]) {
            let back = hierarchical.combine(group, outputs)?;
            return Ok(vec![ready(back)]);
        }
        let send = |(call, rows): (&Split, &Tensor)| Ok(group.all_to_all(rows, &call.output, &call.input)?);
        calls.iter().zip(outputs).map(send).collect()
    }

    fn shards(&self) -> Result<&'a Shards, TrainError> {
        let shards = self.local.experts.shards.as_ref();
        shards.ok_or_else(|| TrainError::Program("shards of experts that stand in slots".to_owned()))
    }

    fn shadow_index(&self, expert: usize) -> Result<usize, TrainError> {
        let index = self.local.splits.shadows.iter().position(|shadow| shadow.expert == expert);
        index.ok_or_else(|| TrainError::Program(format!("expert {expert}, which it does not shadow")))
    }
}

/// Weights and gradients of the part of an expert that this rank keeps.
fn part(experts: &Experts, at: At) -> Result<(Views, Views), TrainError> {
    let parts = experts.parts.as_ref();
    let parts = parts.ok_or_else(|| TrainError::Program("parts of experts that are stored whole".to_owned()))?;
    Ok(parts.of_slot(at.slot))
}

/// The forward pass of experts.
pub(super) struct Forward {
    pub(super) saved: SlotsSaved,
    begun: Option<Begun>,
    /// Whether they compute with the parts that ranks keep of them.
    in_parts: bool,
}

impl Forward {
    pub(super) fn new(splits: &Splits, slots: usize, begun: Option<Begun>) -> Self {
        let saved = splits.steps.iter().map(|_| (0..slots).map(|_| None).collect()).collect();
        Self { saved, begun, in_parts: splits.parts > 1 }
    }
}

impl Kernel for Forward {
    fn expert(&mut self, experts: &Experts, at: At, rows: Tensor) -> Result<Tensor, TrainError> {
        let weights = match self.in_parts {
            true => part(experts, at)?.0,
            false => experts.weights(at.slot),
        };
        let (output, saved) = experts::forward(&weights, rows);
        self.saved[at.step][at.slot] = Some(saved);
        Ok(output)
    }

    fn together(
        &mut self,
        experts: &Experts,
        kernels: &Kernels,
        step: usize,
        calls: &[Split],
        rows: Tensor,
    ) -> Result<Tensor, TrainError> {
        let arrived: Vec<&[Vec<usize>]> = calls.iter().map(|call| &call.by_slot[..]).collect();
        let slots = slots_of(calls);
        let begun = self.begun.take().filter(|begun| begun.is_of(&slots, &rows));
        let grouping = match &begun {
            Some(begun) => Grouping::of_begun(begun),
            None => Grouping::new(kernels, &arrived),
        };
        let (output, saved) = experts.forward_together(kernels, &slots, grouping, rows, begun);
        self.saved[step][slots.start] = Some(saved);
        Ok(output)
    }

    fn shadow(&mut self, moe: &Moe, shadow: Shadow, rows: Tensor) -> Result<(Tensor, Shadow), TrainError> {
        let Shadow::Weights(weights) = shadow else {
            return Err(TrainError::Program("a shadowed expert that runs before its broadcast".to_owned()));
        };
        if rows.size()[0] == 0 {
            return Ok((rows, Shadow::Unused));
        }
        let (output, saved) = experts::forward(&Views::new(&weights, moe), rows);
        Ok((output, Shadow::Saved(weights, saved)))
    }

    fn shadows(
        &mut self,
        moe: &Moe,
        kernels: &Kernels,
        shadows: &mut [Shadow],
        sizes: Vec<usize>,
        rows: Tensor,
    ) -> Option<Tensor> {
        let weights = |shadow: &Shadow| match shadow {
            Shadow::Weights(weights) => Some(weights.shallow_clone()),
            _ => None,
        };
        let weights: Vec<Tensor> = shadows.iter().map(weights).collect::<Option<_>>()?;
        if rows.size()[0] == 0 {
            return None;
        }
        let (weights, grouping) = (Tensor::stack(&weights, 0), Grouping::new(kernels, &[&[sizes]]));
        let (outputs, saved) = Together::new(&weights, moe).forward(kernels, grouping, rows, None);
        shadows.fill_with(|| Shadow::WithFirst);
        shadows[0] = Shadow::AllSaved(weights, saved);
        Some(outputs)
    }
}

/// The backward pass of experts: rows are gradients.
pub(super) struct Backward {
    pub(super) saved: SlotsSaved,
    /// Whether they compute with the parts that ranks keep of them.
    pub(super) in_parts: bool,
}

impl Backward {
    fn take(&mut self, at: At) -> Result<experts::Saved, TrainError> {
        let saved = self.saved[at.step][at.slot].take();
        saved.ok_or_else(|| TrainError::Program(format!("slot {} that runs backward twice", at.slot)))
    }
}

impl Kernel for Backward {
    fn expert(&mut self, experts: &Experts, at: At, rows: Tensor) -> Result<Tensor, TrainError> {
        let saved = self.take(at)?;
        let (weights, mut gradients) = match self.in_parts {
            true => part(experts, at)?,
            false => (experts.weights(at.slot), experts.gradients(at.slot)),
        };
        Ok(experts::backward(&weights, &mut gradients, saved, &rows))
    }

    fn together(
        &mut self,
        experts: &Experts,
        kernels: &Kernels,
        step: usize,
        calls: &[Split],
        rows: Tensor,
    ) -> Result<Tensor, TrainError> {
        let slots = slots_of(calls);
        let saved = self.take(At { step, slot: slots.start })?;
        Ok(experts.backward_together(kernels, &slots, saved, rows))
    }

    fn shadow(&mut self, moe: &Moe, shadow: Shadow, rows: Tensor) -> Result<(Tensor, Shadow), TrainError> {
        match shadow {
            Shadow::Saved(weights, saved) => {
                let gradient = Tensor::zeros(weights.size(), (Kind::Float, weights.device()));
                let mut into = Views::new(&gradient, moe);
                let of_rows = experts::backward(&Views::new(&weights, moe), &mut into, saved, &rows);
                Ok((of_rows, Shadow::Gradient(gradient)))
            }
            Shadow::Unused => {
                let zeros = Tensor::zeros([moe.expert_parameters() as i64], (Kind::Float, rows.device()));
                Ok((rows, Shadow::Gradient(zeros)))
            }
            _ => Err(TrainError::Program("a shadowed expert that runs backward before forward, or twice".to_owned())),
        }
    }

    fn shadows(
        &mut self,
        moe: &Moe,
        kernels: &Kernels,
        shadows: &mut [Shadow],
        _: Vec<usize>,
        rows: Tensor,
    ) -> Option<Tensor> {
        let first = shadows.first_mut().filter(|first| matches!(first, Shadow::AllSaved(..)))?;
        let Shadow::AllSaved(weights, saved) = std::mem::replace(first, Shadow::Absent) else { return None };
        // Kernels write single precision, of which experts without rows get zeros.
        let gradients = Tensor::empty(weights.size(), (Kind::Float, weights.device()));
        let of_experts = Together::new(&gradients, moe);
        let of_rows = Together::new(&weights, moe).backward(kernels, &of_experts, true, saved, rows);
        for (shadow, gradient) in shadows.iter_mut().zip(gradients.unbind(0)) {
            *shadow = Shadow::Gradient(gradient);
        }
        Some(of_rows)
    }
}

fn not_executed(op: Op) -> TrainError {
    TrainError::Program(format!("`{}`, which the trainer does not execute", op.name()))
}

/// The first piece of outputs of a step.
fn first_piece(splits: &Splits, step: usize) -> usize {
    splits.steps[..step].iter().map(Vec::len).sum()
}

/// What has arrived.
fn ready(rows: Tensor) -> Pending {
    Pending::new(move || Ok(rows))
}

/// The slots that all calls of a step serve together.
fn slots_of(calls: &[Split]) -> Range<usize> {
    match calls {
        [first, .., last] => first.slots.start..last.slots.end,
        [only] => only.slots.clone(),
        [] => 0..0,
    }
}

/// Pieces one after the other; not copied where only one has rows.
fn joined(mut pieces: Vec<Tensor>) -> Tensor {
    let filled = pieces.iter().filter(|piece| piece.size()[0] > 0).count();
    match (filled, pieces.iter().position(|piece| piece.size()[0] > 0)) {
        (1, Some(index)) => pieces.swap_remove(index),
        _ if pieces.len() == 1 => pieces.remove(0),
        _ => Tensor::cat(&pieces, 0),
    }
}

/// Runs the experts of a call on the rows that arrived; returns outputs in the order of arrival.
fn run_call(
    kernel: &mut impl Kernel,
    experts: &Experts,
    step: usize,
    call: &Split,
    rows: Tensor,
) -> Result<Tensor, TrainError> {
    match call.slots.len() {
        _ if rows.size()[0] == 0 => Ok(rows),
        1 => kernel.expert(experts, At { step, slot: call.slots.start }, rows),
        _ => one_by_one(call, &rows, |slot, rows| kernel.expert(experts, At { step, slot }, rows)),
    }
}

/// Runs `expert(slot, rows)` for every slot of a call that has rows.
fn one_by_one(
    call: &Split,
    rows: &Tensor,
    mut expert: impl FnMut(usize, Tensor) -> Result<Tensor, TrainError>,
) -> Result<Tensor, TrainError> {
    // Rows arrive by source, then slot; an expert runs on all of its rows at once.
    let sizes: Vec<i64> = call.by_slot.iter().flatten().map(|&rows| rows as i64).collect();
    let parts = rows.split_with_sizes(sizes.as_slice(), 0);
    let (sources, slots) = (call.by_slot.len(), call.slots.len());
    let mut outputs: Vec<Vec<Tensor>> = Vec::with_capacity(slots);
    for slot in 0..slots {
        let own: Vec<&Tensor> = (0..sources).map(|source| &parts[source * slots + slot]).collect();
        let rows = Tensor::cat(&own, 0);
        let output = if rows.size()[0] == 0 { rows } else { expert(call.slots.start + slot, rows)? };
        let sizes: Vec<i64> = call.by_slot.iter().map(|of| of[slot] as i64).collect();
        outputs.push(output.split_with_sizes(sizes.as_slice(), 0));
    }
    let back: Vec<&Tensor> = (0..sources).flat_map(|source| outputs.iter().map(move |of| &of[source])).collect();
    Ok(Tensor::cat(&back, 0))
}

#[cfg(test)]
mod tests {
    use workloads::model::{Activation, Mlp};

    use super::*;
    use crate::kernels::tests::{HALF, error, gpu, half};

    /// One pass of shadowed experts, `sizes` rows each.
    fn outputs(
        kernel: &mut impl Kernel,
        moe: &Moe,
        shadows: &mut [Shadow],
        (sizes, rows): (&[usize], &Tensor),
        together: bool,
    ) -> Tensor {
        if together {
            return kernel.shadows(moe, gpu(), shadows, sizes.to_vec(), rows.shallow_clone()).unwrap();
        }
        let pieces: Vec<i64> = sizes.iter().map(|&rows| rows as i64).collect();
        let mut alone = |(shadow, rows): (&mut Shadow, Tensor)| {
            let before = std::mem::replace(shadow, Shadow::Absent);
            let (outputs, after) = kernel.shadow(moe, before, rows).unwrap();
            *shadow = after;
            outputs
        };
        let rows = rows.split_with_sizes(pieces.as_slice(), 0);
        Tensor::cat(&shadows.iter_mut().zip(rows).map(&mut alone).collect::<Vec<_>>(), 0)
    }

    /// The outputs and the gradients of rows and, `[shadows, parameters]`, of weights.
    fn run(
        moe: &Moe,
        weights: &Tensor,
        sizes: &[usize],
        [rows, gradient]: [&Tensor; 2],
        together: bool,
    ) -> [Tensor; 3] {
        let mut shadows: Vec<Shadow> = weights.unbind(0).into_iter().map(Shadow::Weights).collect();
        let mut forward = Forward { saved: Vec::new(), begun: None, in_parts: false };
        let mut backward = Backward { saved: Vec::new(), in_parts: false };
        let results = outputs(&mut forward, moe, &mut shadows, (sizes, rows), together);
        let of_rows = outputs(&mut backward, moe, &mut shadows, (sizes, gradient), together);
        let gradient = |shadow: Shadow| match shadow {
            Shadow::Gradient(gradient) => gradient,
            _ => panic!("no gradient"),
        };
        [results, of_rows, Tensor::stack(&shadows.into_iter().map(gradient).collect::<Vec<_>>(), 0)]
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn shadowed_experts_do_together_what_they_do_alone() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        let plain = Mlp::plain(256);
        for expert in [plain, Mlp { gated: true, biases: false, activation: Activation::Silu, ..plain }] {
            let moe = Moe { expert, ..Moe::plain(4, 128, 256, 1) };
            let sizes = [70, 0, 3, 131];
            let rows: i64 = sizes.iter().map(|&rows| rows as i64).sum();
            let weights = half(&[4, moe.expert_parameters() as i64]) * 0.1;
            let (rows, gradient) = (half(&[rows, 128]), half(&[rows, 128]));
            let [together, alone] =
                [true, false].map(|together| run(&moe, &weights, &sizes, [&rows, &gradient], together));
            for (together, alone) in together.iter().zip(&alone) {
                assert_eq!(together.kind(), alone.kind());
                let error = error(together, alone);
                assert!(error < 3.0 * HALF, "{expert:?}: {error}");
            }
            let without_rows = f64::try_from(together[2].get(1).abs().max().to_kind(Kind::Double)).unwrap();
            assert_eq!(without_rows, 0.0);
        }
    }
}
