//! One MoE layer on one rank: the gate, and the system's layer program on real rows.
//!
//! The forward pass scores and chooses, exchanges counts, asks the policy for the program, lays the rows out and executes the
//! program's tasks; the backward pass executes the program's other half on gradients. Gate, counts and decision are the
//! first tasks of a program, but a program follows from the counts: they have run when the rest is executed.

use systems::cost::CostModel;
use systems::evaluate::Ledger;
use systems::placement::Placement;
use systems::price::{GroupPlace, LayerPrice, price};
use systems::program::{LayerProgram, Op, Stream, Task};
use systems::streams::Streams;
use systems::timeline::Activity;
use systems::{Policy, RoutingCounts};
use tch::{Device, Tensor};
use workloads::model::Moe;
use workloads::{Gate, Seconds};

use super::TrainError;
use super::comm::{CommError, Communicator, Pending};
use super::experts::{self, Experts, Views};
use super::gate::{self, Choice, Scored};
use super::parameters::{Bucket, stream};
use super::rows::{RowMap, RowPieces};
use super::schedule::{self, Work};
use super::shipping::{Call, Shipping};
use super::timer::Timer;

/// A rank's part of one MoE layer.
pub struct Layer {
    /// Its number among the model's MoE layers.
    pub number: usize,
    /// The gate's parameters in their bucket: weight and bias.
    pub gate: [usize; 2],
    /// The local experts.
    pub experts: Experts,
    /// Where all experts of the group are.
    pub placement: Placement,
}

/// What a layer needs of its surroundings.
pub struct Site<'a> {
    /// The expert-parallel group.
    pub group: &'a dyn Communicator,
    /// The system's online half.
    pub policy: &'a dyn Policy,
    /// Which choices become entries.
    pub gate: &'a Gate,
    /// Choices per token.
    pub top_k: usize,
    /// Factor of the auxiliary loss in the whole loss, for one micro-batch of one rank.
    pub balance: f64,
    /// Where the group's ranks are.
    pub place: &'a GroupPlace,
    /// Prices of exchanges under a virtual clock.
    pub costs: &'a CostModel,
    /// Parameters of the gates.
    pub gates: &'a Bucket,
    /// Streams of random numbers of the gate begin with this.
    pub draw: (u64, String),
    /// The experts of every choice, where a trace drives the gate.
    pub replay: Option<Vec<usize>>,
}

/// What happened in a layer's forward pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Happened {
    /// `[expert]`: choices of this rank, before any limit.
    pub chosen: Vec<u32>,
    /// `[expert]`: its entries.
    pub entries: Vec<u32>,
    /// Experts that the program shadows.
    pub shadowed: usize,
    /// The auxiliary loss, if the gate has one.
    pub balance: f64,
}

/// What the backward pass needs of the forward pass.
pub struct Kept {
    scored: Scored,
    program: LayerProgram,
    shipping: Shipping,
    price: Option<LayerPrice>,
    rows: RowMap,
    /// `[rows, width]`: results, in the order of rows.
    outputs: Tensor,
    /// `[step][slot]`.
    experts: Vec<Vec<Option<experts::Kept>>>,
    /// By shadow, in the program's order.
    shadows: Vec<Option<(Tensor, experts::Kept)>>,
}

impl Layer {
    /// Runs the layer on `tokens` `[tokens, width]`.
    ///
    /// # Errors
    /// A rank that died, a program that cannot be executed.
    pub fn forward(&self, site: &Site, timer: &Timer, tokens: &Tensor) -> Result<(Tensor, Kept, Happened), TrainError> {
        let (number, moe) = (tokens.size()[0] as usize, self.experts.moe());
        let ((mut scored, mut choices), gate_time) =
            timer.measure(Activity::Op(Op::Gate), || self.choose(site, tokens, site.replay.clone()));
        let own = gate::count(&choices, moe.experts);
        let chosen: Vec<Option<usize>> = scored.experts.iter().copied().map(Some).collect();
        let mut happened = Happened { chosen: gate::count(&chosen, moe.experts), ..Happened::default() };
        if let Some(loss) = &scored.balance {
            happened.balance = f64::try_from(loss).unwrap_or(f64::NAN);
        }
        let mut counts = timer.wait(Activity::Op(Op::Counts), || gather(site.group, &own, tokens.device()))?;
        let me = site.group.rank();
        if let (Gate::Switch { .. }, Some(most)) = (site.gate, site.gate.capacity(number, site.top_k, moe.experts)) {
            gate::limit_at_owner(&mut counts, most);
            gate::limit(&mut choices, counts.row(me));
        }
        let before = counts.row(me).to_vec();
        site.policy.restrict(&mut counts, &site.place.nodes);
        if counts.row(me) != before {
            gate::meet(&mut choices, counts.row(me));
            let experts = choices.iter().zip(&scored.experts).map(|(new, old)| new.unwrap_or(*old)).collect();
            scored = self.choose(site, tokens, Some(experts)).0;
        }
        happened.entries = counts.row(me).to_vec();

        let (program, decision_time) = timer.measure(Activity::Op(Op::Decide { steps: 0 }), || {
            site.policy.program(self.number, &counts, &self.placement)
        });
        happened.shadowed = program.shadowed.len();
        let price =
            timer.is_virtual().then(|| price(&program, &counts, &self.placement, moe, number, site.place, site.costs));
        let ((shipping, map, rows), layout_time) = timer.measure(Activity::Op(Op::Gate), || {
            let shipping = Shipping::new(&program, &counts, &self.placement, me);
            let map = RowMap::new(&shipping, &choices, &scored, program.layout, tokens.device());
            let rows = map.lay_out(tokens);
            (shipping, map, rows)
        });
        let mut work = Forward::new(self, site.group, &shipping, rows);
        let mut durations = schedule::run(&program.forward, &mut work, timer)?;
        let (outputs, kept_experts, shadows) = work.finish()?;
        let (result, combine_time) = timer.measure(Activity::Op(Op::Gate), || map.gather(&outputs, &scored.weights));
        if let Some(price) = &price {
            charge(&program.forward, &mut durations, Op::Gate, gate_time + layout_time + combine_time);
            if let Some(task) = program.forward.iter().position(|task| matches!(task.op, Op::Decide { .. })) {
                durations[task] = decision_time;
            }
            settle(&program.forward, &durations, &price.forward, program.steps, site.group, timer)?;
        }
        let kept = Kept { scored, program, shipping, price, rows: map, outputs, experts: kept_experts, shadows };
        Ok((result, kept, happened))
    }

    fn choose(&self, site: &Site, tokens: &Tensor, given: Option<Vec<usize>>) -> (Scored, Vec<Option<usize>>) {
        let mut rng = stream(site.draw.0, &site.draw.1);
        let choice = match given {
            Some(experts) => Choice::Given(experts),
            None => Choice::Learned(site.gate, &mut rng),
        };
        let scored = Scored::new(site.gates, self.gate, tokens, site.top_k, choice);
        let weights = || {
            let flat = scored.weights.reshape([-1]).to_device(Device::Cpu);
            Vec::try_from(flat).unwrap_or_default()
        };
        let number = self.experts.moe().experts;
        let choices = gate::admit(site.gate, &scored.experts, site.top_k, number, &weights, &mut rng);
        (scored, choices)
    }

    /// The gradient of the layer's input from that of its result; gradients of experts and gate are added to their own.
    ///
    /// # Errors
    /// As for [`Self::forward`].
    pub fn backward(&self, site: &Site, timer: &Timer, kept: Kept, gradient: &Tensor) -> Result<Tensor, TrainError> {
        let Kept { scored, program, shipping, price, rows: map, outputs, experts, shadows } = kept;
        let ((rows, weights), layout_time) = timer.measure(Activity::Op(Op::Gate), || {
            (map.spread(gradient, &scored.weights), map.weight_gradient(gradient, &outputs))
        });
        let mut work = Backward {
            layer: self,
            group: site.group,
            shipping: &shipping,
            rows,
            sent: RowPieces::new(&shipping),
            arrived: none_yet(shipping.steps.len()),
            computed: none_yet(shipping.steps.len()),
            experts,
            shadows: shadows.into_iter().map(|shadow| shadow.map(Shadow::Kept)).collect(),
        };
        let mut durations = schedule::run(&program.backward, &mut work, timer)?;
        let of_rows = work.sent.finish()?;
        let (of_tokens, gate_time) = timer.measure(Activity::Op(Op::Gate), || {
            let through_experts = map.collect(&of_rows);
            let through_gate = scored.backward(site.gates, &weights, site.balance);
            through_experts + through_gate
        });
        if let Some(price) = &price {
            charge(&program.backward, &mut durations, Op::Gate, layout_time + gate_time);
            settle(&program.backward, &durations, &price.backward, program.steps, site.group, timer)?;
        }
        Ok(of_tokens)
    }
}

/// Adds time to the first task of that op.
fn charge(tasks: &[Task], durations: &mut [Seconds], op: Op, time: Seconds) {
    if let Some(task) = tasks.iter().position(|task| task.op == op) {
        durations[task] += time;
    }
}

/// Moves a virtual clock over a pass: the streams of all ranks of the group are run with measured times for kernels and
/// prices for exchanges.
fn settle(
    tasks: &[Task],
    measured: &[Seconds],
    prices: &[Seconds],
    steps: usize,
    group: &dyn Communicator,
    timer: &Timer,
) -> Result<(), CommError> {
    let own: Vec<f64> = measured.iter().map(|time| time.0).collect();
    let all = timer.exchange(group, &own)?;
    let ranks = group.size();
    let mut durations = prices.to_vec();
    for (index, task) in tasks.iter().enumerate() {
        // The host's wait for the device is priced: nothing can measure it where the device is shared.
        if task.op.stream() == Stream::Compute && task.op != Op::Sync {
            for (rank, row) in all.iter().enumerate() {
                durations[index * ranks + rank] = Seconds(row[1 + index]);
            }
        }
    }
    let mut clocks: Vec<Seconds> = all.iter().map(|row| Seconds(row[0])).collect();
    let mut ledger = Ledger::default();
    let (me, mut ops) = (group.rank(), Vec::new());
    let seen = |op, start: &[Seconds], end: &[Seconds]| ops.push((op, start[me], end[me]));
    Streams::default().run(tasks, &durations, steps, &mut clocks, &mut ledger, seen);
    timer.adopt(ops, clocks[me]);
    Ok(())
}

/// Every rank's counts.
fn gather(group: &dyn Communicator, own: &[u32], device: Device) -> Result<RoutingCounts, CommError> {
    let row: Vec<i64> = own.iter().map(|&count| i64::from(count)).collect();
    let all = group.all_gather(&Tensor::from_slice(&row).to_device(device))?.wait()?;
    let all: Vec<i64> = Vec::try_from(all.reshape([-1]).to_device(Device::Cpu)).unwrap_or_default();
    Ok(RoutingCounts::new(own.len(), all.into_iter().map(|count| count as u32).collect()))
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
fn dispatch(group: &dyn Communicator, calls: &[Call], rows: &Tensor) -> Result<Vec<Pending>, TrainError> {
    let send = |call: &Call| {
        let length: usize = call.sent.iter().sum();
        let part = rows.narrow(0, call.first as i64, length as i64);
        Ok(group.all_to_all(&part, &call.sent, &call.received)?)
    };
    calls.iter().map(send).collect()
}

/// Sends results of a step back.
fn combine(group: &dyn Communicator, calls: &[Call], rows: &[Tensor]) -> Result<Vec<Pending>, TrainError> {
    if calls.len() != rows.len() {
        return Err(TrainError::Program("a combine before its experts have run".to_owned()));
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

struct Forward<'a> {
    layer: &'a Layer,
    group: &'a dyn Communicator,
    shipping: &'a Shipping,
    rows: Tensor,
    /// `[step][call]`.
    arrived: Vec<Vec<Tensor>>,
    computed: Vec<Vec<Tensor>>,
    results: RowPieces,
    experts: Vec<Vec<Option<experts::Kept>>>,
    /// Weights, then also what the backward pass needs.
    broadcast: Vec<Option<Tensor>>,
    shadows: Vec<Option<(Tensor, experts::Kept)>>,
}

type ForwardResult = (Tensor, Vec<Vec<Option<experts::Kept>>>, Vec<Option<(Tensor, experts::Kept)>>);

impl<'a> Forward<'a> {
    fn new(layer: &'a Layer, group: &'a dyn Communicator, shipping: &'a Shipping, rows: Tensor) -> Self {
        let steps = shipping.steps.len();
        let slots = layer.placement.slots_per_rank();
        let none = |count: usize| (0..count).map(|_| None).collect::<Vec<_>>();
        Self {
            layer,
            group,
            rows,
            arrived: none_yet(steps),
            computed: none_yet(steps),
            results: RowPieces::new(shipping),
            experts: (0..steps).map(|_| (0..slots).map(|_| None).collect()).collect(),
            broadcast: none(shipping.shadows.len()),
            shadows: (0..shipping.shadows.len()).map(|_| None).collect(),
            shipping,
        }
    }

    fn finish(self) -> Result<ForwardResult, TrainError> {
        Ok((self.results.finish()?, self.experts, self.shadows))
    }
}

impl Work for Forward<'_> {
    fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError> {
        match op {
            Op::Dispatch { step } => dispatch(self.group, &self.shipping.steps[step], &self.rows),
            Op::Combine { step } => combine(self.group, &self.shipping.steps[step], &self.computed[step]),
            Op::Broadcast { expert } => {
                let owner = self.layer.placement.rank_of(expert);
                let bucket = &self.layer.experts.bucket;
                let slot = match self.layer.placement.experts_of(self.group.rank()).iter().position(|&e| e == expert) {
                    Some(slot) => slot,
                    None => 0,
                };
                let weights = self.layer.experts.row(&bucket.weights, slot);
                Ok(vec![self.group.broadcast(&weights, owner)?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn arrive(&mut self, op: Op, mut tensors: Vec<Tensor>) -> Result<(), TrainError> {
        match op {
            Op::Dispatch { step } => self.arrived[step] = tensors,
            Op::Combine { step } => {
                let first = piece(self.shipping, step);
                for (index, tensor) in tensors.into_iter().enumerate() {
                    self.results.put(first + index, tensor);
                }
                self.computed[step].clear();
            }
            Op::Broadcast { expert } => {
                let (_, index) = shadow_piece(self.shipping, expert)?;
                self.broadcast[index] = tensors.pop();
            }
            _ => {}
        }
        Ok(())
    }

    fn compute(&mut self, op: Op) -> Result<(), TrainError> {
        match op {
            Op::Experts { step } => {
                let arrived = std::mem::take(&mut self.arrived[step]);
                let (layer, kept) = (self.layer, &mut self.experts[step]);
                self.computed[step] = each_slot(&self.shipping.steps[step], arrived, |slot, rows| {
                    let (output, keep) = experts::forward(&layer.experts.weights(slot), rows);
                    kept[slot] = Some(keep);
                    Ok(output)
                })?;
            }
            Op::Shadow { expert } => {
                let (piece, index) = shadow_piece(self.shipping, expert)?;
                let (_, first, number) = self.shipping.shadows[index];
                let rows = self.rows.narrow(0, first as i64, number as i64);
                let weights = self.broadcast[index].take();
                let weights = weights
                    .ok_or_else(|| TrainError::Program(format!("expert {expert} is shadowed before its broadcast")))?;
                if number == 0 {
                    self.results.put(piece, rows);
                } else {
                    let views = Views::new(&weights, self.layer.experts.moe());
                    let (output, keep) = experts::forward(&views, rows);
                    self.results.put(piece, output);
                    self.shadows[index] = Some((weights, keep));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn synchronise(&self) {
        synchronise(self.rows.device());
    }
}

/// A shadowed expert on its way back.
enum Shadow {
    Kept((Tensor, experts::Kept)),
    Gradient(Tensor),
}

struct Backward<'a> {
    layer: &'a Layer,
    group: &'a dyn Communicator,
    shipping: &'a Shipping,
    /// Gradients of this rank's results.
    rows: Tensor,
    /// Gradients of this rank's rows, coming back.
    sent: RowPieces,
    arrived: Vec<Vec<Tensor>>,
    computed: Vec<Vec<Tensor>>,
    experts: Vec<Vec<Option<experts::Kept>>>,
    shadows: Vec<Option<Shadow>>,
}

impl Work for Backward<'_> {
    fn issue(&mut self, op: Op) -> Result<Vec<Pending>, TrainError> {
        match op {
            Op::Dispatch { step } => dispatch(self.group, &self.shipping.steps[step], &self.rows),
            Op::Combine { step } => combine(self.group, &self.shipping.steps[step], &self.computed[step]),
            Op::ReduceGrad { expert } => {
                let (_, index) = shadow_piece(self.shipping, expert)?;
                let gradient = match self.shadows[index].take() {
                    Some(Shadow::Gradient(gradient)) => gradient,
                    _ => {
                        return Err(TrainError::Program(format!("gradients of expert {expert} are reduced too early")));
                    }
                };
                Ok(vec![self.group.reduce(&gradient, self.layer.placement.rank_of(expert))?])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn arrive(&mut self, op: Op, mut tensors: Vec<Tensor>) -> Result<(), TrainError> {
        match op {
            Op::Dispatch { step } => self.arrived[step] = tensors,
            Op::Combine { step } => {
                let first = piece(self.shipping, step);
                for (index, tensor) in tensors.into_iter().enumerate() {
                    self.sent.put(first + index, tensor);
                }
                self.computed[step].clear();
            }
            Op::ReduceGrad { expert } => {
                let own = self.layer.placement.experts_of(self.group.rank());
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
                let arrived = std::mem::take(&mut self.arrived[step]);
                let (layer, kept) = (self.layer, &mut self.experts[step]);
                self.computed[step] = each_slot(&self.shipping.steps[step], arrived, |slot, gradient| {
                    let keep = kept[slot].take();
                    let keep = keep.ok_or_else(|| TrainError::Program(format!("slot {slot} runs backward twice")))?;
                    let (weights, mut gradients) = (layer.experts.weights(slot), layer.experts.gradients(slot));
                    Ok(experts::backward(&weights, &mut gradients, keep, &gradient))
                })?;
            }
            Op::Shadow { expert } => {
                let (piece, index) = shadow_piece(self.shipping, expert)?;
                let (_, first, number) = self.shipping.shadows[index];
                let gradient = self.rows.narrow(0, first as i64, number as i64);
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
                        self.sent.put(piece, of_input);
                        self.shadows[index] = Some(Shadow::Gradient(found));
                    }
                    _ => {
                        let none = empty_gradient(moe, &gradient);
                        self.sent.put(piece, gradient);
                        self.shadows[index] = Some(Shadow::Gradient(none));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn synchronise(&self) {
        synchronise(self.rows.device());
    }
}

/// The gradient of an expert that got no rows.
fn empty_gradient(moe: &Moe, like: &Tensor) -> Tensor {
    Tensor::zeros([moe.expert_parameters() as i64], (like.kind(), like.device()))
}

pub(super) fn synchronise(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// No tensors, for each of `steps`.
fn none_yet(steps: usize) -> Vec<Vec<Tensor>> {
    (0..steps).map(|_| Vec::new()).collect()
}
