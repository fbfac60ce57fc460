//! One rank's training: its part of the model, the iteration, and what it reports.
//!
//! An iteration is: online placement and migration; a 1F1B pipeline of micro-batches; gradient synchronisation per group;
//! clipping; the optimizer. Policies see the loads of earlier iterations alone, summed over the stage.

pub mod groups;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use systems::Placement;
use systems::iteration::online::Online;
use systems::iteration::schedule::{Work, one_forward_one_backward};
use systems::iteration::timeline::{Activity, Gradients, Span};
use systems::plan::Plan;
use systems::price::GroupPlace;
use systems::price::ledger::Ledger;
use tch::{Device, Kind, Tensor};
use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::TrainError;
use crate::clock::Timer;
use crate::comm::{CommError, Communicator, Pending};
use crate::layer::experts::Experts;
use crate::layer::gate;
use crate::layer::{self, Happened, Layer, Site};
use crate::model::optimizer;
use crate::model::parameters::{Bucket, Initial, initial};
use crate::model::tape::Tape;
use crate::model::{
    Attention, AttentionKept, Builder, Cut, Dense, Embedding, Head, HeadKept, Network, Tensors, inner, words,
};
use crate::rank::groups::Groups;
use crate::setup::Setup;

/// What a rank says of an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it ended, from its start.
    pub step: Seconds,
    /// Where its time went.
    pub ledger: Ledger,
    /// The sum of its tokens' cross-entropies; on the last stage, once per tensor-parallel group.
    #[serde(deserialize_with = "number")]
    pub loss: f64,
    /// Mean of the balance loss over layers and micro-batches.
    #[serde(deserialize_with = "number")]
    pub balance: f64,
    /// Entries that it sent to experts.
    pub entries: u64,
    /// Choices that became no entry.
    pub dropped: u64,
    /// Shadowed experts over its layers and micro-batches; on the first rank of each group.
    pub shadowed: u64,
    /// Memory in use on its GPU at the end, where no other rank has a part of it. libtorch gives nothing back while it
    /// trains, so this is also the most that it had.
    pub memory: Bytes,
    /// Time of online decisions.
    pub decision: Seconds,
    /// Time of migrations.
    pub migration: Seconds,
    /// Experts that changed rank; on the first rank of a stage.
    pub moved: u64,
    /// `[layer of the stage][micro-batch]`, `[expert]`: its choices before any limit, where they are recorded.
    pub chosen: Vec<Vec<Vec<u32>>>,
    /// Its spans, where they are recorded.
    pub spans: Vec<Span>,
}

/// A number that may be none: JSON has null for those of a training that diverges.
fn number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// A rank and its part of the model.
pub struct Rank<'a> {
    pub(super) setup: &'a Setup<'a>,
    pub(super) groups: Groups,
    pub(super) model: Part,
    /// Policy and past loads.
    pub(super) online: Online,
    pub(super) iteration: usize,
    device: Device,
    stage: usize,
    position: usize,
    place: GroupPlace,
    timer: Timer,
}

/// The blocks of a stage, and the edges that it has.
pub(super) struct Part {
    pub(super) dense: Dense,
    pub(super) gates: Bucket,
    /// The tied embedding, on the first and the last stage.
    pub(super) words: Option<Bucket>,
    embedding: Option<Embedding>,
    head: Option<Head>,
    pub(super) blocks: Vec<Block>,
}

pub(super) struct Block {
    number: usize,
    attention: Attention,
    pub(super) feed: Feed,
}

/// What follows attention.
pub(super) enum Feed {
    Dense(Network),
    Moe(Box<Layer>),
}

impl Part {
    /// All buckets, experts last.
    pub(super) fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        let shared = [&self.dense.sharded, &self.dense.replicated, &self.gates].into_iter();
        shared.chain(&self.words).chain(self.layers().map(|layer| &layer.experts.bucket))
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.blocks.iter().filter_map(|block| match &block.feed {
            Feed::Moe(layer) => Some(layer.as_ref()),
            Feed::Dense(_) => None,
        })
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.blocks.iter_mut().filter_map(|block| match &mut block.feed {
            Feed::Moe(layer) => Some(layer.as_mut()),
            Feed::Dense(_) => None,
        })
    }

    fn new(setup: &Setup, stage: usize, position: usize, device: Device) -> Self {
        let (plan, job) = (&setup.plan, setup.job);
        let mut builder = Builder::new(setup.seed, (position % plan.tp, plan.tp));
        let mut gates = Vec::new();
        let (first, last) = (stage == 0, stage + 1 == plan.pp);
        let embedding = first.then(|| Embedding::new(&mut builder, &setup.gpt));
        let moe_blocks = job.model.moe_blocks();
        let blocks = plan.stage_blocks(job, stage).map(|number| {
            let attention = Attention::new(&mut builder, &setup.gpt, number);
            let block = &job.model.blocks[number];
            let feed = match (block.moe(), inner(block)) {
                (Some(moe), _) => {
                    let layer = moe_blocks.partition_point(|&other| other < number);
                    let shape = [moe.experts as i64, moe.width as i64];
                    let name = |what: &str| format!("layer {layer} gate{what}");
                    gates.push(initial(setup.seed, &name(""), &shape, Initial::Normal(1.0)));
                    gates.push(initial(setup.seed, &name(" bias"), &shape[..1], Initial::Zeros));
                    let placement = Placement::identity(moe.experts, plan.ep);
                    let own = placement.experts_of(position % plan.ep);
                    let experts = Experts::new(setup.seed, layer, own, *moe, setup.gpt.depth, setup.kind, device);
                    let gate = [gates.len() - 2, gates.len() - 1];
                    Feed::Moe(Box::new(Layer { number: layer, gate, experts, placement }))
                }
                (None, wide) => {
                    Feed::Dense(Network::new(&mut builder, &setup.gpt, number, wide.unwrap_or(4 * block.hidden)))
                }
            };
            Block { number, attention, feed }
        });
        let blocks: Vec<Block> = blocks.collect();
        let head = last.then(|| Head::new(&mut builder, &setup.gpt));
        let words = (first || last).then(|| Bucket::new(&[words(&builder, &setup.gpt)], setup.kind, device));
        let bucket = |parameters: &[Tensor]| Bucket::new(parameters, setup.kind, device);
        let dense =
            Dense { sharded: bucket(&builder.sharded), replicated: bucket(&builder.replicated), named: builder.named };
        Self { dense, gates: bucket(&gates), words, embedding, head, blocks }
    }
}

/// What a stage keeps of a micro-batch between its passes.
struct Kept {
    embedding: Option<Tape>,
    blocks: Vec<BlockKept>,
    head: Option<HeadKept>,
}

enum BlockKept {
    Whole(Box<(AttentionKept, FeedKept)>),
    /// The input alone: the forward pass is run again before the backward pass.
    Input(Tensor),
}

enum FeedKept {
    Dense(Tape),
    Moe(Box<layer::Kept>),
}

impl<'a> Rank<'a> {
    /// A rank at the start of training.
    ///
    /// # Errors
    /// A rank that died.
    pub fn new(
        setup: &'a Setup<'a>,
        world: Box<dyn Communicator>,
        device: Device,
        timer: Timer,
    ) -> Result<Self, CommError> {
        let plan = &setup.plan;
        let (stage, position) = (world.rank() / plan.stage_ranks(), world.rank() % plan.stage_ranks());
        let ranks = plan.expert_group(stage, position / plan.ep);
        let nodes = setup.job.nodes(ranks.clone());
        let place = GroupPlace {
            group: setup.costs.group(ranks, 1),
            nodes: nodes.iter().map(|node| node - nodes[0]).collect(),
        };
        Ok(Self {
            groups: Groups::new(world, plan)?,
            model: Part::new(setup, stage, position, device),
            online: Online::new(setup.system.policy(setup.job, plan)),
            iteration: 0,
            setup,
            device,
            stage,
            position,
            place,
            timer,
        })
    }

    /// Trains one iteration.
    ///
    /// # Errors
    /// A rank that died; a program that cannot be executed.
    pub fn step(&mut self) -> Result<Report, TrainError> {
        self.groups.world.barrier()?;
        self.timer.start();
        let mut report = Report::default();
        self.place(&mut report)?;
        let happened = self.pipeline(&mut report)?;
        self.synchronise()?;
        self.optimise()?;
        self.remember(&happened, &mut report)?;
        self.iteration += 1;
        Ok(report)
    }

    /// Online placement: decisions, and the moves that follow.
    fn place(&mut self, report: &mut Report) -> Result<(), TrainError> {
        let first = self.expert_group(self.stage).start;
        let bytes = self.online.policy().migrated_bytes_per_parameter();
        for block in &mut self.model.blocks {
            let Feed::Moe(layer) = &mut block.feed else { continue };
            self.timer.at(None, Some(block.number));
            let before = self.timer.now();
            let (moe, placement) = (layer.experts.moe(), &layer.placement);
            let decided =
                self.timer.compute(Activity::Decision, || self.online.decide(layer.number, moe, placement))?;
            report.decision += self.timer.now() - before;
            let Some(migration) = decided.and_then(|decided| decided.migration) else { continue };
            self.timer.settle();
            let before = self.timer.now();
            let (next, group) = (&migration.placement, self.groups.experts.as_ref());
            self.timer.wait(Activity::Migration, || crate::layer::migrate::migrate(layer, next, group, bytes))?;
            self.timer.collective(Activity::Migration, group, migration.time(self.setup.costs, first))?;
            self.timer.settle();
            report.migration += self.timer.now() - before;
            if self.position == 0 {
                report.moved += migration.moves.len() as u64;
            }
            layer.placement = migration.placement;
        }
        Ok(())
    }

    /// All micro-batches, forward and backward.
    fn pipeline(&mut self, report: &mut Report) -> Result<Vec<Vec<Happened>>, TrainError> {
        let (pp, micro_batches) = (self.setup.plan.pp, self.setup.plan.micro_batches(self.setup.job));
        let mut kept: Vec<Option<Kept>> = (0..micro_batches).map(|_| None).collect();
        let mut happened: Vec<Vec<Happened>> = vec![Vec::new(); micro_batches];
        let mut sends = Vec::new();
        for work in one_forward_one_backward(pp, self.stage, micro_batches) {
            match work {
                Work::Forward(m) => {
                    let (mine, done) = self.forward(m, report, &mut sends)?;
                    (kept[m], happened[m]) = (Some(mine), done);
                }
                Work::Backward(m) => {
                    if let Some(mine) = kept[m].take() {
                        self.backward(m, mine, &mut sends)?;
                    }
                }
            }
        }
        self.timer.at(None, None);
        for send in sends {
            let _ = self.timer.wait(Activity::Boundary, || send.wait())?;
        }
        Ok(happened)
    }

    fn forward(
        &mut self,
        m: usize,
        report: &mut Report,
        sends: &mut Vec<Pending>,
    ) -> Result<(Kept, Vec<Happened>), TrainError> {
        let setup = self.setup;
        let work = Some(Work::Forward(m));
        self.timer.at(work, None);
        let wants_data = self.model.embedding.is_some() || self.model.head.is_some();
        let device = self.device;
        let data = wants_data.then(|| {
            let samples = setup.plan.samples(setup.job, self.position, m);
            let iteration = self.iteration;
            self.timer.compute(Activity::Host, || {
                let all: Vec<Vec<i64>> = samples.map(|index| setup.samples.sample(iteration, index)).collect();
                let read = |shift: usize| {
                    let flat: Vec<i64> =
                        all.iter().flat_map(|sample| sample[shift..shift + setup.gpt.seq_len].to_vec()).collect();
                    Tensor::from_slice(&flat).to_device(device)
                };
                (read(0), read(1))
            })
        });
        let tensors = self.tensors();
        let (mut stream, embedding) = match (&self.model.embedding, &self.model.words, &data) {
            (Some(embedding), Some(words), Some((tokens, _))) => {
                let (stream, tape) = embedding.forward(&self.model.dense, words, &tensors, &self.timer, tokens)?;
                (stream, Some(tape))
            }
            _ => (self.receive(self.stage - 1, &*self.groups.forward)?, None),
        };
        let mut blocks = Vec::with_capacity(self.model.blocks.len());
        let mut happened = Vec::new();
        let recomputes = self.online.policy().recomputes();
        for block in &self.model.blocks {
            self.timer.at(work, Some(block.number));
            let (output, kept, done) = self.block(block, m, &stream)?;
            happened.extend(done);
            blocks.push(if recomputes { BlockKept::Input(stream) } else { kept });
            stream = output;
        }
        self.timer.at(work, None);
        let head = match (&self.model.head, &self.model.words, &data) {
            (Some(head), Some(words), Some((_, targets))) => {
                let tensors = self.tensors();
                let scale = 1.0 / (setup.job.global_batch * setup.gpt.seq_len) as f64;
                let input = (&stream, targets, scale);
                let (loss, kept) = head.forward(&self.model.dense, words, &tensors, &self.timer, input)?;
                if self.position.is_multiple_of(setup.plan.tp) {
                    report.loss += loss;
                }
                Some(kept)
            }
            _ => {
                self.send(&stream, self.stage + 1, true, sends)?;
                None
            }
        };
        Ok((Kept { embedding, blocks, head }, happened))
    }

    fn backward(&mut self, m: usize, kept: Kept, sends: &mut Vec<Pending>) -> Result<(), TrainError> {
        let work = Some(Work::Backward(m));
        self.timer.at(work, None);
        let mut gradient = match (kept.head, &self.model.head, &self.model.words) {
            (Some(kept), Some(head), Some(words)) => {
                let tensors = self.tensors();
                head.backward(&self.model.dense, words, &tensors, &self.timer, kept)?
            }
            _ => self.receive(self.stage + 1, &*self.groups.backward)?,
        };
        for (block, kept) in self.model.blocks.iter().zip(kept.blocks).rev() {
            self.timer.at(work, Some(block.number));
            let kept = match kept {
                BlockKept::Input(input) => self.block(block, m, &input)?.1,
                kept => kept,
            };
            let BlockKept::Whole(kept) = kept else { continue };
            let (attention, feed) = *kept;
            let tensors = self.tensors();
            let dense = &self.model.dense;
            let of_normed = match (&block.feed, feed) {
                (Feed::Dense(network), FeedKept::Dense(tape)) => {
                    network.backward(dense, &tensors, &self.timer, tape, &gradient)?
                }
                (Feed::Moe(layer), FeedKept::Moe(kept)) => {
                    let site = self.site(layer, m);
                    let part = layer.backward(&site, &self.timer, *kept, &tensors.part(&gradient))?;
                    tensors.whole(&self.timer, part)?
                }
                _ => return Err(TrainError::Program("a block that changed its network between passes".to_owned())),
            };
            let gradients = [&gradient, &of_normed];
            gradient = block.attention.backward(dense, &tensors, &self.timer, attention, gradients)?;
        }
        self.timer.at(work, None);
        match (&self.model.embedding, &self.model.words, kept.embedding) {
            (Some(embedding), Some(words), Some(tape)) => {
                embedding.backward(&self.model.dense, words, &self.timer, tape, &gradient);
            }
            _ => self.send(&gradient, self.stage - 1, false, sends)?,
        }
        Ok(())
    }

    /// A block's forward pass: the residual stream after it, what its backward pass needs, and what its MoE layer did.
    fn block(
        &self,
        block: &Block,
        m: usize,
        input: &Tensor,
    ) -> Result<(Tensor, BlockKept, Option<Happened>), TrainError> {
        let (tensors, dense) = (self.tensors(), &self.model.dense);
        let ([residual, normed], attention) = block.attention.forward(dense, &tensors, &self.timer, input)?;
        let (output, feed, happened) = match &block.feed {
            Feed::Dense(network) => {
                let (output, tape) = network.forward(dense, &tensors, &self.timer, &normed)?;
                (output, FeedKept::Dense(tape), None)
            }
            Feed::Moe(layer) => {
                let site = self.site(layer, m);
                let (part, kept, done) = layer.forward(&site, &self.timer, &tensors.part(&normed))?;
                (tensors.whole(&self.timer, part)?, FeedKept::Moe(Box::new(kept)), Some(done))
            }
        };
        let output = self.timer.compute(Activity::Block, || residual + output);
        Ok((output, BlockKept::Whole(Box::new((attention, feed))), happened))
    }

    fn tensors(&self) -> Tensors<'_> {
        let (costs, plan) = (self.setup.costs, &self.setup.plan);
        let first = self.expert_group(self.stage).start;
        Tensors { group: &*self.groups.tensor, place: costs.group(first..first + plan.tp, 1), costs }
    }

    /// The ranks of its expert-parallel group, or those at the same positions of another stage.
    fn expert_group(&self, stage: usize) -> Range<usize> {
        self.setup.plan.expert_group(stage, self.position / self.setup.plan.ep)
    }

    fn site<'b>(&'b self, layer: &Layer, m: usize) -> Site<'b> {
        let setup = self.setup;
        let micro_batches = setup.plan.micro_batches(setup.job);
        let replay = setup.replay.map(|routing| {
            let batch = routing.iteration(self.iteration);
            let samples = setup.plan.samples(setup.job, self.position, m);
            let k = setup.job.top_k();
            let all: Vec<usize> = samples.flat_map(|s| gate::deal(batch.chunk(layer.number, s), k)).collect();
            let (tp, part) = (setup.plan.tp, all.len() / setup.plan.tp);
            let first = self.position % tp * part;
            all[first..first + part].to_vec()
        });
        Site {
            group: &*self.groups.experts,
            policy: self.online.policy(),
            gate: &setup.job.gate,
            top_k: setup.job.top_k(),
            balance: setup.training.balance_loss / (setup.plan.stage_ranks() * micro_batches) as f64,
            place: &self.place,
            costs: setup.costs,
            gates: &self.model.gates,
            draw: (
                setup.seed,
                format!("gate {} layer {} rank {} micro-batch {m}", self.iteration, layer.number, self.position),
            ),
            replay,
        }
    }

    /// Sends to the same position on another stage; under a virtual clock, with the time of arrival.
    fn send(
        &mut self,
        tensor: &Tensor,
        stage: usize,
        forward: bool,
        sends: &mut Vec<Pending>,
    ) -> Result<(), TrainError> {
        let group = if forward { &*self.groups.forward } else { &*self.groups.backward };
        sends.push(group.send(tensor, stage)?);
        if self.timer.is_virtual() {
            let plan = &self.setup.plan;
            let bytes = Bytes(tensor.numel() as f64 * HALF / plan.tp as f64);
            // As long as the slowest of its expert-parallel group takes: the ranks share their nodes' links.
            let pairs = self.expert_group(self.stage).zip(self.expert_group(stage));
            let prices = pairs.map(|(from, to)| self.setup.costs.send(from, to, bytes));
            let price = prices.fold(Seconds::ZERO, Seconds::max);
            self.timer.advance(Activity::Boundary, price);
            sends.push(group.send(&Tensor::from_slice(&[self.timer.now().0]), stage)?);
        }
        Ok(())
    }

    /// Receives from the same position on another stage.
    fn receive(&self, stage: usize, group: &dyn Communicator) -> Result<Tensor, TrainError> {
        let setup = self.setup;
        let shape = [(setup.gpt.seq_len * setup.plan.micro_batch) as i64, setup.gpt.hidden as i64];
        let waiting = || -> Result<(Tensor, f64), CommError> {
            let tensor = group.receive(&shape, setup.kind, stage)?.wait()?;
            let ready = match self.timer.is_virtual() {
                true => {
                    let clock = group.receive(&[1], Kind::Double, stage)?.wait()?;
                    f64::try_from(clock.get(0)).unwrap_or(0.0)
                }
                false => 0.0,
            };
            Ok((tensor, ready))
        };
        let ready = |result: &Result<(Tensor, f64), CommError>| Seconds(result.as_ref().map_or(0.0, |found| found.1));
        Ok(self.timer.bubble(waiting, ready)?.0)
    }

    /// Sums gradients over the ranks that share the parameters.
    fn synchronise(&mut self) -> Result<(), TrainError> {
        let (setup, model, groups) = (self.setup, &self.model, &self.groups);
        let plan = &setup.plan;
        let first = self.stage * plan.stage_ranks();
        let ranks = first..first + plan.stage_ranks();
        let timer = &self.timer;
        let reduce = |buckets: &[&Bucket], what: Gradients, group: &dyn Communicator, place| {
            let count: i64 = buckets.iter().map(|bucket| bucket.len()).sum();
            if group.size() == 1 || count == 0 {
                return Ok::<(), CommError>(());
            }
            let activity = Activity::GradientSync(what);
            timer.wait(activity, || {
                let filled = buckets.iter().filter(|bucket| !bucket.is_empty());
                let pending: Vec<(&&Bucket, Pending)> = filled
                    .map(|bucket| Ok((bucket, group.all_reduce(&bucket.gradients)?)))
                    .collect::<Result<_, CommError>>()?;
                for (bucket, sum) in pending {
                    bucket.gradients.shallow_clone().copy_(&sum.wait()?);
                }
                Ok::<(), CommError>(())
            })?;
            timer.collective(activity, group, setup.costs.all_reduce(&place, Bytes(count as f64 * HALF)))
        };
        let group = |stride| setup.costs.group(ranks.clone(), stride);
        let dense = [&model.dense.sharded, &model.dense.replicated];
        reduce(&dense, Gradients::Dense, &*groups.data, group(plan.tp))?;
        reduce(&[&model.gates], Gradients::Gate, &*groups.stage, group(1))?;
        let experts: Vec<&Bucket> = model.layers().map(|layer| &layer.experts.bucket).collect();
        reduce(&experts, Gradients::Experts, &*groups.replicas, group(plan.ep))?;
        if let Some(words) = &model.words {
            reduce(&[words], Gradients::Tied, &*groups.data, group(plan.tp))?;
            if plan.pp > 1 {
                let span = plan.stage_ranks() * (plan.pp - 1) + 1;
                let ends = setup.costs.group(0..span, span - 1);
                reduce(&[words], Gradients::TiedStages, &*groups.tied, ends)?;
            }
        }
        Ok(())
    }

    /// Clips the gradient by its norm over the whole model and updates every parameter.
    fn optimise(&mut self) -> Result<(), TrainError> {
        let (plan, model) = (&self.setup.plan, &self.model);
        let training = &self.setup.training;
        let mut factor = 1.0;
        if training.clip_norm > 0.0 {
            let squares = || squares(plan, model, self.stage, self.device);
            let norm = self.timer.compute(Activity::Optimizer, squares);
            let sum = self.groups.world.all_reduce(&norm)?.wait()?;
            let norm = f64::try_from(sum.to_device(Device::Cpu).get(0)).unwrap_or(f64::NAN).sqrt();
            if norm > training.clip_norm {
                factor = training.clip_norm / norm;
            }
        }
        let t = self.iteration + 1;
        self.timer.compute(Activity::Optimizer, || {
            model.buckets().for_each(|bucket| optimizer::step(training, bucket, t, factor));
        });
        Ok(())
    }

    /// Adds the iteration's loads to the history and completes the report.
    fn remember(&mut self, happened: &[Vec<Happened>], report: &mut Report) -> Result<(), TrainError> {
        // What follows is bookkeeping and not part of the iteration.
        self.timer.settle();
        report.step = self.timer.now();
        let (spans, ledger) = self.timer.finish(report.step);
        report.ledger = ledger;
        if self.setup.record_spans {
            report.spans = spans;
        }
        let layers: Vec<(usize, usize)> =
            self.model.layers().map(|layer| (layer.number, layer.experts.moe().experts)).collect();
        let mut loads: Vec<Vec<u64>> = self.setup.job.model.moe_layers().map(|moe| vec![0; moe.experts]).collect();
        let all = || happened.iter().flatten();
        let count = all().count().max(1) as f64;
        report.balance = all().map(|done| done.balance).sum::<f64>() / count;
        for (index, &(number, experts)) in layers.iter().enumerate() {
            let mut own = vec![0i64; experts];
            for done in happened.iter().map(|layers| &layers[index]) {
                for (sum, &entries) in own.iter_mut().zip(&done.entries) {
                    *sum += i64::from(entries);
                }
                let sum = |counts: &[u32]| counts.iter().map(|&count| u64::from(count)).sum::<u64>();
                report.entries += sum(&done.entries);
                report.dropped += sum(&done.chosen) - sum(&done.entries);
                if self.position.is_multiple_of(self.setup.plan.ep) {
                    report.shadowed += done.shadowed as u64;
                }
            }
            let own = Tensor::from_slice(&own).to_device(self.device);
            let sum = self.groups.stage.all_reduce(&own)?.wait()?.to_device(Device::Cpu);
            let sum: Vec<i64> = Vec::try_from(sum).unwrap_or_default();
            loads[number] = sum.into_iter().map(|load| load as u64).collect();
            if self.setup.record_choices {
                report.chosen.push(happened.iter().map(|layers| layers[index].chosen.clone()).collect());
            }
        }
        self.online.remember(loads);
        Ok(())
    }

    /// All weights of this rank by name, in single precision on the CPU, and how they are cut.
    pub fn weights(&self) -> Vec<(String, Tensor, Option<Cut>)> {
        let copy = |tensor: Tensor| tensor.to_device(Device::Cpu).copy();
        let model = &self.model;
        let dense = model.dense.named.iter().map(|named| {
            let bucket = if named.cut.is_some() { &model.dense.sharded } else { &model.dense.replicated };
            (named.name.clone(), copy(bucket.master_of(named.index)), named.cut)
        });
        let mut all: Vec<_> = dense.collect();
        let rows = Cut { dim: 0, pieces: 1 };
        all.extend(model.words.iter().map(|words| ("words".to_owned(), copy(words.master_of(0)), Some(rows))));
        for layer in model.layers() {
            let gate = layer.gate.map(|index| copy(model.gates.master_of(index)).reshape([-1]));
            all.push((format!("layer {} gate", layer.number), Tensor::cat(&gate, 0), None));
            let own = layer.placement.experts_of(self.groups.experts.rank());
            for (slot, expert) in own.iter().enumerate() {
                let row = layer.experts.row(&layer.experts.bucket.master, slot);
                all.push((format!("layer {} expert {expert}", layer.number), copy(row), None));
            }
        }
        all
    }
}

/// This rank's part of the squared norm of the gradient, `[1]`: every parameter of the model counts once in the sum over
/// the world.
fn squares(plan: &Plan, model: &Part, stage: usize, device: Device) -> Tensor {
    let sum = |bucket: &Bucket, copies: usize| {
        let gradient = bucket.gradients.to_kind(Kind::Float);
        gradient.square().sum(Kind::Double) / copies as f64
    };
    let mut total = sum(&model.dense.sharded, plan.dp)
        + sum(&model.dense.replicated, plan.dp * plan.tp)
        + sum(&model.gates, plan.stage_ranks());
    for layer in model.layers() {
        total += sum(&layer.experts.bucket, plan.expert_dp);
    }
    // Both ends hold the sum of the tied embedding's gradient.
    if let (Some(words), 0) = (&model.words, stage) {
        total += sum(words, plan.dp);
    }
    total.reshape([1]).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_their_text() {
        let report = Report { loss: 0.1 + 0.2, step: Seconds(1.0 / 3.0), moved: 2, ..Report::default() };
        let parse = |report: &Report| serde_json::from_slice::<Report>(&serde_json::to_vec(report).unwrap()).unwrap();
        assert_eq!(parse(&report), report);
        assert!(parse(&Report { loss: f64::INFINITY, ..report }).loss.is_nan(), "a training that diverges");
    }
}
