//! All micro-batches of an iteration through the stage, forward and backward, in 1F1B order.

use std::collections::{BTreeMap, VecDeque};

use rayon::prelude::*;
use systems::iteration::schedule::{Work, one_forward_one_backward};
use systems::iteration::timeline::Activity;
use systems::program::{Direction, Op};
use systems::{Recompute, Storage};
use tch::{Kind, Tensor};
use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::comm::Pending;
use crate::error::TrainError;
use crate::host::{to_device, to_scalar};
use crate::layer::gate::{self, Given};
use crate::layer::moe::{self, Layer, LayerStats, MoeSite};
use crate::model::attention::AttentionSaved;
use crate::model::head::HeadSaved;
use crate::model::mlp::SharedSaved;
use crate::model::site::Site;
use crate::model::tape::Tape;
use crate::rank::Rank;
use crate::rank::shares::FIRST_BLOCK;
use crate::rank::stage::{Block, FeedForward};

/// Saved for the backward pass of a micro-batch.
pub(super) struct Saved {
    embedding: Option<Tape>,
    blocks: Vec<BlockSaved>,
    head: Option<HeadSaved>,
}

enum BlockSaved {
    Whole(Box<(AttentionSaved, FeedForwardSaved)>),
    /// The input alone: the forward pass is run again before the backward pass.
    Input(Tensor),
}

enum FeedForwardSaved {
    Dense(Tape),
    Moe(Box<moe::Saved>, Option<SharedSaved>),
}

impl FeedForwardSaved {
    /// Of a forward pass that was run again for the backward pass that follows.
    fn recomputed(self) -> Self {
        match self {
            Self::Moe(saved, shared) => Self::Moe(Box::new(saved.recomputed()), shared),
            Self::Dense(tape) => Self::Dense(tape),
        }
    }
}

/// What an iteration's micro-batches did.
pub(super) struct Ran {
    /// `[micro-batch][layer of the stage]`.
    pub(super) stats: Vec<Vec<LayerStats>>,
    /// Of every micro-batch, on the device, where this rank reports them.
    pub(super) losses: Vec<Tensor>,
}

/// What a rank has sent to the next stage and to the previous one and holds on to: of at most as many micro-batches as there are stages, because the
/// other stage has received what came before.
type Sends = [VecDeque<Vec<Pending>>; 2];

/// The direction of a pipeline message.
#[derive(Clone, Copy)]
enum To {
    NextStage,
    PreviousStage,
}

impl Rank<'_> {
    /// Runs all micro-batches.
    ///
    /// # Errors
    /// A peer that died; a program that cannot be executed.
    pub(super) fn pipeline(&self) -> Result<Ran, TrainError> {
        let (pp, micro_batches) = (self.plan.pp, self.plan.micro_batches(self.setup.job));
        let mut saved: Vec<Option<Saved>> = (0..micro_batches).map(|_| None).collect();
        let mut stats: Vec<Vec<LayerStats>> = vec![Vec::new(); micro_batches];
        let (mut sends, mut losses) = (Sends::default(), Vec::new());
        let order = one_forward_one_backward(pp, self.stage_number, micro_batches);
        self.restore_first(order.first().copied())?;
        for (turn, &work) in order.iter().enumerate() {
            let then = self.first_layer(order.get(turn + 1).copied());
            match work {
                Work::Forward(m) => {
                    let (of_batch, loss);
                    (of_batch, stats[m], loss) = self.forward(m, then, &mut sends)?;
                    saved[m] = Some(of_batch);
                    losses.extend(loss);
                }
                Work::Backward(m) => {
                    let of_batch = saved[m].take().expect("a schedule runs a micro-batch forward, then backward, once");
                    self.backward(m, of_batch, then, &mut sends)?;
                }
            }
        }
        self.timer.enter(None, None);
        self.timer.wait(Activity::Op(Op::ReturnGrad), || {
            self.stage.layers().try_for_each(|layer| layer.experts.settle(&*self.groups.experts))
        })?;
        self.reduced()?;
        for send in sends.into_iter().flatten().flatten() {
            let _ = self.timer.wait(Activity::Boundary, || send.wait())?;
        }
        Ok(Ran { stats, losses })
    }

    /// The MoE layer that a pass begins with, if it restores experts from shards.
    fn first_layer(&self, work: Option<Work>) -> Option<&Layer> {
        let first = match work? {
            Work::Forward(_) => self.stage.layers().next(),
            Work::Backward(_) => self.stage.layers().next_back(),
        };
        first.filter(|_| self.online.policy().storage() == Storage::Shards)
    }

    /// Starts to restore the experts of the first pass.
    fn restore_first(&self, work: Option<Work>) -> Result<(), TrainError> {
        let Some(first) = self.first_layer(work) else { return Ok(()) };
        Ok(self.timer.wait(Activity::Op(Op::Unshard), || first.restore(self.groups.shards()))?)
    }

    /// The forward pass of micro-batch `m`: what is saved, what its MoE layers did, and the loss, if this rank reports it. `then`: the
    /// MoE layer that comes after it, if its experts are restored.
    pub(super) fn forward(
        &self,
        m: usize,
        then: Option<&Layer>,
        sends: &mut Sends,
    ) -> Result<(Saved, Vec<LayerStats>, Option<Tensor>), TrainError> {
        let (work, stage) = (Some(Work::Forward(m)), &self.stage);
        self.timer.enter(work, None);
        let before = self.timer.computed();
        self.enter_unit(0, Direction::Forward)?;
        let data = (stage.embedding.is_some() || stage.head.is_some()).then(|| self.read(m));
        let site = self.site();
        let (mut stream, embedding) = match (&stage.embedding, &data) {
            (Some(embedding), Some((ids, _))) => {
                let (stream, tape) = embedding.forward(&site, ids)?;
                (stream, Some(tape))
            }
            _ => (self.receive(To::NextStage)?, None),
        };
        let mut blocks = Vec::with_capacity(stage.blocks.len());
        let mut stats = Vec::new();
        let recomputes = self.online.policy().recompute(&self.plan) == Recompute::Full;
        let mut coming = self.coming(stage.layers(), then);
        for (unit, block) in (FIRST_BLOCK..).zip(&stage.blocks) {
            self.timer.enter(work, Some(block.number));
            self.enter_unit(unit, Direction::Forward)?;
            let next = block.moe().and_then(|_| coming.next().flatten());
            let (output, saved, of_layer) = self.block_forward(block, m, &stream, next)?;
            stats.extend(of_layer);
            blocks.push(if recomputes { BlockSaved::Input(stream) } else { saved });
            stream = output;
        }
        self.timer.enter(work, None);
        self.enter_unit(self.last_unit(), Direction::Forward)?;
        let (head, loss) = match (&stage.head, &data) {
            (Some(head), Some((_, targets))) => {
                let scale = 1.0 / (self.setup.job.global_batch * self.setup.gpt.seq_len) as f64;
                let (loss, saved) = head.forward(&site, &stream, targets, scale)?;
                (Some(saved), self.position.is_multiple_of(self.plan.tp).then_some(loss))
            }
            _ => (None, None),
        };
        self.show_transfers(Direction::Forward, before)?;
        if head.is_none() {
            self.send(&stream, To::NextStage, sends)?;
        }
        Ok((Saved { embedding, blocks, head }, stats, loss))
    }

    /// After each of these MoE layers, in the order of their passes: the one whose experts are restored next.
    fn coming<'b>(
        &self,
        layers: impl Iterator<Item = &'b Layer>,
        then: Option<&'b Layer>,
    ) -> impl Iterator<Item = Option<&'b Layer>> {
        let restores = self.online.policy().storage() == Storage::Shards;
        layers.skip(1).map(move |layer| Some(layer).filter(|_| restores)).chain(std::iter::once(then))
    }

    fn backward(&self, m: usize, saved: Saved, then: Option<&Layer>, sends: &mut Sends) -> Result<(), TrainError> {
        let (work, stage, site) = (Some(Work::Backward(m)), &self.stage, self.site());
        self.timer.enter(work, None);
        let before = self.timer.computed();
        self.enter_unit(self.last_unit(), Direction::Backward)?;
        let mut of_blocks = saved.blocks;
        self.copy_ahead(m, &stage.blocks, &mut of_blocks)?;
        let mut gradient = match (&stage.head, saved.head) {
            (Some(head), Some(saved)) => head.backward(&site, saved)?,
            _ => self.receive(To::PreviousStage)?,
        };
        self.leave_unit(self.last_unit())?;
        let mut coming = self.coming(stage.layers().rev(), then);
        for block in (0..stage.blocks.len()).rev() {
            self.timer.enter(work, Some(stage.blocks[block].number));
            self.enter_unit(FIRST_BLOCK + block, Direction::Backward)?;
            let next = stage.blocks[block].moe().and_then(|_| coming.next().flatten());
            gradient = self.block_backward(&stage.blocks[..=block], m, &mut of_blocks, &gradient, next)?;
            self.leave_unit(FIRST_BLOCK + block)?;
        }
        self.timer.enter(work, None);
        self.enter_unit(0, Direction::Backward)?;
        if let (Some(embedding), Some(tape)) = (&stage.embedding, saved.embedding) {
            embedding.backward(&site, tape, &gradient);
        }
        self.leave_unit(0)?;
        self.show_transfers(Direction::Backward, before)?;
        if stage.embedding.is_none() {
            self.send(&gradient, To::PreviousStage, sends)?;
        }
        Ok(())
    }

    /// A block's forward pass: the residual stream after it, what is saved, and what its MoE layer did. `next`: the MoE layer whose
    /// experts are restored after its own.
    fn block_forward(
        &self,
        block: &Block,
        m: usize,
        input: &Tensor,
        next: Option<&Layer>,
    ) -> Result<(Tensor, BlockSaved, Option<LayerStats>), TrainError> {
        let site = self.site();
        let ([residual, normed], attention) = block.attention.forward(&site, input)?;
        let (output, of_shared, feed_forward, stats) = match &block.feed_forward {
            FeedForward::Dense(mlp) => {
                let (output, tape) = mlp.forward(&site, &normed)?;
                (output, None, FeedForwardSaved::Dense(tape), None)
            }
            FeedForward::Moe(layer, shared) => {
                self.before_exchanges(block)?;
                let (part, saved, stats) = layer.forward(&self.moe_site(layer, m, next), &site.part(&normed))?;
                let routed = site.whole(part)?;
                let (of_shared, shared) = shared.as_ref().map(|of| of.forward(&site, &normed)).transpose()?.unzip();
                (routed, of_shared, FeedForwardSaved::Moe(Box::new(saved), shared), Some(stats))
            }
        };
        let output = self.timer.compute(Activity::Block, || {
            let output = match of_shared {
                Some(of_shared) => output + of_shared,
                None => output,
            };
            residual + output
        });
        Ok((output, BlockSaved::Whole(Box::new((attention, feed_forward))), stats))
    }

    /// Starts to bring weights to the copies of the last MoE layer of these blocks, whose backward pass comes next. Where its experts are not whole
    /// yet, the pass does.
    fn copy_ahead(&self, m: usize, blocks: &[Block], saved: &mut [BlockSaved]) -> Result<(), TrainError> {
        let last = blocks.iter().zip(saved).rfind(|(block, _)| block.moe().is_some());
        if let Some((block, BlockSaved::Whole(saved))) = last
            && let (Some(layer), FeedForwardSaved::Moe(saved, _)) = (block.moe(), &mut saved.1)
            && saved.copies_ahead()
            && !layer.experts.bucket.is_shared()
        {
            let site = self.moe_site(layer, m, None);
            self.timer.wait(Activity::Op(Op::CopyWeights), || layer.copy_ahead(&site, saved))?;
        }
        Ok(())
    }

    /// The gradient of the input of the last of `blocks`. `saved`: of all of them; the last is taken.
    fn block_backward(
        &self,
        blocks: &[Block],
        m: usize,
        saved: &mut Vec<BlockSaved>,
        gradient: &Tensor,
        next: Option<&Layer>,
    ) -> Result<Tensor, TrainError> {
        let (block, before) = blocks.split_last().expect("a block whose backward pass runs");
        let (attention, feed_forward) = match saved.pop().expect("every block saves what its backward pass needs") {
            BlockSaved::Whole(saved) => *saved,
            // The backward pass finds the experts where this one leaves them.
            BlockSaved::Input(input) => match self.block_forward(block, m, &input, None)?.1 {
                BlockSaved::Whole(saved) => (saved.0, saved.1.recomputed()),
                BlockSaved::Input(_) => unreachable!("a block's forward pass saves all"),
            },
        };
        let site = self.site();
        let of_normed = match (&block.feed_forward, feed_forward) {
            (FeedForward::Dense(mlp), FeedForwardSaved::Dense(tape)) => mlp.backward(&site, tape, gradient)?,
            (FeedForward::Moe(layer, shared), FeedForwardSaved::Moe(of_layer, of_shared)) => {
                let of_shared = match (shared, of_shared) {
                    (Some(shared), Some(saved)) => Some(shared.backward(&site, saved, gradient)?),
                    _ => None,
                };
                self.before_exchanges(block)?;
                let part = layer.backward(&self.moe_site(layer, m, next), *of_layer, &site.part(gradient))?;
                self.copy_ahead(m, before, saved)?;
                let of_normed = site.whole(part)?;
                match of_shared {
                    Some(of_shared) => self.timer.compute(Activity::Block, || of_normed + of_shared),
                    None => of_normed,
                }
            }
            _ => unreachable!("a block's feed-forward network saves what its own backward pass needs"),
        };
        let of_input = block.attention.backward(&site, attention, [gradient, &of_normed])?;
        if let Some(layer) = block.moe().filter(|layer| layer.experts.is_returning()) {
            let pass_on = || layer.experts.pass_on(&*self.groups.experts);
            self.timer.wait(Activity::Op(Op::ReturnGrad), pass_on)?;
        }
        Ok(of_input)
    }

    /// The tokens of micro-batch `m`, and their successors, which are the targets.
    fn read(&self, m: usize) -> (Tensor, Tensor) {
        let setup = self.setup;
        self.timer.compute(Activity::Host, || {
            let samples = self.plan.samples(setup.job, self.position, m);
            let (source, iteration) = (setup.samples, self.iteration);
            let sample = |index| source.sample(iteration, index);
            let samples: Vec<Vec<i64>> = match self.timer.is_virtual() {
                // Ranks share the host, and the time of this thread is what counts.
                true => samples.map(sample).collect(),
                false => samples.collect::<Vec<_>>().into_par_iter().map(sample).collect(),
            };
            let read = |shift: usize| {
                let window = shift..shift + setup.gpt.seq_len;
                let flat: Vec<i64> = samples.iter().flat_map(|sample| &sample[window.clone()]).copied().collect();
                to_device(&Tensor::from_slice(&flat), self.device)
            };
            (read(0), read(1))
        })
    }

    fn site(&self) -> Site<'_> {
        let (costs, plan) = (self.setup.costs, &self.plan);
        let first = self.expert_group(self.stage_number).start;
        Site {
            dense: &self.stage.dense,
            embedding_weight: &self.stage.embedding_weight,
            group: &*self.groups.tensor,
            place: costs.group(first..first + plan.tp, 1),
            costs,
            timer: &self.timer,
        }
    }

    fn moe_site<'b>(&'b self, layer: &Layer, m: usize, next: Option<&'b Layer>) -> MoeSite<'b> {
        let setup = self.setup;
        let micro_batches = self.plan.micro_batches(setup.job);
        let name = format!("gate {} layer {} rank {} micro-batch {m}", self.iteration, layer.number, self.position);
        MoeSite {
            group: &*self.groups.experts,
            ep: setup.plan.ep,
            shards: self.groups.shards(),
            next,
            timer: &self.timer,
            policy: self.online.policy(),
            gate: &setup.job.gate,
            top_k: setup.job.top_k(),
            balance: self.balance_factor() / (self.plan.stage_ranks() * micro_batches) as f64,
            place: &self.place,
            costs: setup.costs,
            gates: &self.stage.gates,
            random: (setup.seed, name),
            replay: self.given.get(&(layer.number, m)),
            recorded_parts: setup.recorded_parts(self.iteration),
        }
    }

    /// Factor of the balance loss in the whole loss: the model's own, if its router states one.
    fn balance_factor(&self) -> f64 {
        let own = self.setup.job.model.router.auxiliary_loss;
        if own > 0.0 { own } else { self.setup.training.balance_loss }
    }

    /// The experts of this rank's choices in the iteration, where a trace drives the gate: its part of those of the tensor-parallel group, by
    /// MoE layer and micro-batch.
    pub(super) fn replayed_choices(&self) -> BTreeMap<(usize, usize), Given> {
        let (setup, tp, k) = (self.setup, self.plan.tp, self.setup.job.top_k());
        let Some(replay) = setup.replay else { return BTreeMap::new() };
        let batch = replay.iteration(self.iteration);
        let of = |layer: usize, m: usize| {
            let samples = self.plan.samples(setup.job, self.position, m);
            let mut choices: Vec<usize> = samples.flat_map(|s| gate::deal(batch.chunk(layer, s), k)).collect();
            let part = choices.len() / tp;
            let first = self.position % tp * part;
            choices.truncate(first + part);
            Given::new(choices.split_off(first), k, self.device)
        };
        let passes = self
            .stage
            .layers()
            .flat_map(|layer| (0..self.plan.micro_batches(setup.job)).map(move |m| (layer.number, m)));
        passes.map(|(layer, m)| ((layer, m), of(layer, m))).collect()
    }

    /// Sends to the same position of a neighbouring stage; under a virtual clock, also when it arrives.
    fn send(&self, tensor: &Tensor, to: To, sends: &mut Sends) -> Result<(), TrainError> {
        let (group, stage) = match to {
            To::NextStage => (&self.groups.forward, self.stage_number + 1),
            To::PreviousStage => (&self.groups.backward, self.stage_number - 1),
        };
        let sends = &mut sends[to as usize];
        if sends.len() >= self.plan.pp
            && let Some(before) = sends.pop_front()
        {
            self.timer.wait(Activity::Boundary, || before.into_iter().try_for_each(|send| send.wait().map(drop)))?;
        }
        let mut sent = vec![self.timer.wait(Activity::Boundary, || group.send(tensor, stage))?];
        if self.timer.is_virtual() {
            let bytes = Bytes(tensor.numel() as f64 * HALF / self.plan.tp as f64);
            // As long as the slowest of its expert-parallel group takes: the ranks share the links of their nodes.
            let pairs = self.expert_group(self.stage_number).zip(self.expert_group(stage));
            let prices = pairs.map(|(from, to)| self.setup.costs.send(from, to, bytes));
            self.timer.advance(Activity::Boundary, prices.fold(Seconds::ZERO, Seconds::max));
            let clock = Tensor::from_slice(&[self.timer.now().0]);
            sent.push(self.timer.log().without(|| group.send(&clock, stage))?);
        }
        sends.push_back(sent);
        Ok(())
    }

    /// Receives what the same position of a neighbouring stage sends in that direction.
    fn receive(&self, to: To) -> Result<Tensor, TrainError> {
        let (group, stage) = match to {
            To::NextStage => (&self.groups.forward, self.stage_number - 1),
            To::PreviousStage => (&self.groups.backward, self.stage_number + 1),
        };
        let gpt = &self.setup.gpt;
        let shape = [(gpt.seq_len * self.plan.micro_batch) as i64, gpt.hidden as i64];
        self.timer.wait_for_stage(|| {
            let tensor = group.receive(&shape, self.setup.kind, stage)?.wait()?;
            let ready = match self.timer.is_virtual() {
                true => Seconds(to_scalar(&group.receive(&[1], Kind::Double, stage)?.wait()?)?),
                false => Seconds::ZERO,
            };
            Ok((tensor, ready))
        })
    }
}
