//! The part of the model on one rank: the blocks of its pipeline stage, and the ends of the model that the stage has.

use systems::iteration::Start;
use systems::plan::slots::layers_of;
use systems::{Placement, Storage, Zero};
use tch::{Device, Kind, Tensor};
use workloads::gate::RouterBias;
use workloads::model::{Ffn, Moe};

use crate::layer::experts::Experts;
use crate::layer::gate::{Gates, LayerGate};
use crate::layer::moe::Layer;
use crate::layer::shards::{Room, Slots};
use crate::model::attention::Attention;
use crate::model::dense::{Builder, Dense};
use crate::model::embedding::{Embedding, embedding_weight};
use crate::model::head::Head;
use crate::model::mlp::{Mlp, SharedExpert};
use crate::model::parameters::{Bucket, Initial, initial};
use crate::model::share::Collected;
use crate::setup::Setup;

pub(crate) struct Stage {
    pub(crate) dense: Dense,
    pub(crate) gates: Gates,
    /// The embedding on the first stage and, where the head shares it, on the last; no parameter on the others.
    pub(crate) embedding_weight: Bucket,
    pub(super) embedding: Option<Embedding>,
    pub(super) blocks: Vec<Block>,
    pub(super) head: Option<Head>,
}

pub(super) struct Block {
    /// Its number in the model.
    pub(super) number: usize,
    pub(super) attention: Attention,
    pub(super) feed_forward: FeedForward,
}

pub(super) enum FeedForward {
    Dense(Mlp),
    Moe(Box<Layer>, Option<SharedExpert>),
}

impl Block {
    pub(super) fn moe(&self) -> Option<&Layer> {
        match &self.feed_forward {
            FeedForward::Moe(layer, _) => Some(layer),
            FeedForward::Dense(_) => None,
        }
    }
}

impl Stage {
    /// Stage `stage` of the plan at `position` in it, at its initial values.
    pub(super) fn new(
        setup: &Setup,
        (start, storage): (&Start, Storage),
        (stage, position): (usize, usize),
        device: Device,
    ) -> Self {
        let (plan, job) = (&start.plan, setup.job);
        let shares = plan.zero == Zero::Weights;
        let replica = shares.then_some((position / plan.tp, plan.dp));
        let mut builder = Builder::new(setup.seed, device, (position % plan.tp, plan.tp), replica);
        let (first, last) = (stage == 0, stage + 1 == plan.pp);
        let memory = Memory::new(setup, (start, storage), stage, device);
        let embedding = first.then(|| Embedding::new(&mut builder, &setup.gpt));
        builder.end_unit();
        let of_gates = Collected::new(shares.then_some((position, plan.stage_ranks())), device);
        let mut gates = GatesBuilder { scores: of_gates, selection: Vec::new() };
        gates.scores.end_unit();
        let depth = setup.gpt.depth;
        let blocks = plan.chunk_blocks(job, stage).map(|number| {
            let block = &job.model.blocks[number];
            let attention = Attention::new(&mut builder, block, number, depth);
            let feed_forward = match block.ffn {
                Ffn::Moe(moe) => {
                    let layer = moe_layer(setup, start, (storage, &memory), (number, position), &mut gates, device);
                    let shared =
                        moe.shared.map(|shared| SharedExpert::new(&mut builder, number, moe.width, depth, shared));
                    FeedForward::Moe(Box::new(layer), shared)
                }
                Ffn::Dense(mlp) => {
                    let name = format!("block {number}");
                    FeedForward::Dense(Mlp::new(&mut builder, &name, block.hidden, depth, mlp))
                }
            };
            builder.end_unit();
            gates.scores.end_unit();
            Block { number, attention, feed_forward }
        });
        let blocks: Vec<Block> = blocks.collect();
        let head = last.then(|| Head::new(&mut builder, &setup.gpt));
        builder.end_unit();
        gates.scores.end_unit();
        let mut words = Collected::new(replica, device);
        if first || last && setup.gpt.tied {
            words.push(embedding_weight(&builder, &setup.gpt));
        }
        words.end_unit();
        let kinds = [setup.kind, setup.gradients()];
        let embedding_weight = words.bucket(kinds);
        let gates = gates.finish(kinds, device);
        Self { dense: builder.finish(kinds), gates, embedding_weight, embedding, blocks, head }
    }

    /// What the optimizer updates, but for experts.
    pub(super) fn shared_buckets(&self) -> impl Iterator<Item = &Bucket> {
        let all = [&self.dense.sharded, &self.dense.replicated, &self.gates.scores, &self.embedding_weight];
        all.into_iter().map(Bucket::state)
    }

    pub(crate) fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        self.blocks.iter().filter_map(Block::moe)
    }

    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.blocks.iter_mut().filter_map(|block| match &mut block.feed_forward {
            FeedForward::Moe(layer, _) => Some(layer.as_mut()),
            FeedForward::Dense(_) => None,
        })
    }
}

/// Memory that the MoE layers of a stage use one after the other, where slots hold experts for a while.
#[derive(Default)]
struct Memory {
    /// Of experts in shards or parts.
    room: Option<Room>,
    /// Whole weights and whole gradients of experts of which replicas keep a part each.
    whole: Option<[Tensor; 2]>,
}

impl Memory {
    fn new(setup: &Setup, (start, storage): (&Start, Storage), stage: usize, device: Device) -> Self {
        let (plan, job) = (&start.plan, setup.job);
        let numbers =
            |(moe, placement): (&Moe, &Placement)| placement.slots_per_rank() as i64 * moe.expert_parameters() as i64;
        let most = layers_of(job, plan, stage, &start.placements).map(numbers).max().unwrap_or(0);
        match storage {
            Storage::Shards | Storage::Parts => {
                Self { room: Some(Room::new(most, setup.kind, device)), ..Self::default() }
            }
            Storage::Slots if plan.zero == Zero::Weights && plan.expert_dp > 1 => {
                let whole = [setup.kind, setup.gradients()].map(|kind| Tensor::zeros([most], (kind, device)));
                Self { whole: Some(whole), ..Self::default() }
            }
            _ => Self::default(),
        }
    }
}

/// The MoE layer of a block; its gate's parameters join the others.
fn moe_layer(
    setup: &Setup,
    start: &Start,
    (storage, memory): (Storage, &Memory),
    (block, position): (usize, usize),
    gates: &mut GatesBuilder,
    device: Device,
) -> Layer {
    let model = &setup.job.model;
    let number = model.moe_blocks().partition_point(|&other| other < block);
    let moe = *model.blocks[block].moe().expect("the block has an MoE layer");
    let placement = start.placements[number].clone();
    let (rank, ranks) = (position % start.plan.ep, start.plan.ep);
    let (seed, depth, kind) = (setup.seed, setup.gpt.depth, setup.kind);
    let slots = || match &memory.room {
        Some(room) => room.slots(number, placement.slots_per_rank(), &moe),
        None => Slots::new(placement.slots_per_rank(), &moe, [kind, setup.gradients()], device),
    };
    let experts = match storage {
        Storage::Slots if let Some(whole) = &memory.whole => {
            let share = ((position / ranks, start.plan.expert_dp), whole);
            Experts::in_shares(seed, number, placement.experts_of(rank), moe, depth, share, setup.gradients())
        }
        Storage::Slots => {
            let mut experts = Experts::new(seed, number, placement.experts_of(rank), moe, depth, kind, device);
            experts.hold(placement.filled(rank));
            experts.with_gradients(setup.gradients())
        }
        Storage::OptimizerShards | Storage::Shards => {
            Experts::sharded(seed, number, slots(), (rank, ranks), moe, depth, setup.gradients())
        }
        Storage::Parts => {
            let parts = placement.slots_of(0).len();
            let held = (placement.experts_of(rank), slots());
            Experts::in_parts(seed, number, held, (rank % parts, parts), moe, depth, setup.gradients())
        }
    };
    Layer::new(number, gates.add(setup, number, &moe, device), experts, placement)
}

/// Initial values of the gates of a stage.
struct GatesBuilder {
    scores: Collected,
    selection: Vec<Tensor>,
}

impl GatesBuilder {
    /// Adds the gate of MoE layer `number`.
    fn add(&mut self, setup: &Setup, number: usize, moe: &Moe, device: Device) -> LayerGate {
        let router = setup.job.model.router;
        let shape = [moe.experts as i64, moe.width as i64];
        let name = format!("layer {number} gate");
        let bias = || initial(setup.seed, &format!("{name} bias"), &shape[..1], Initial::Zeros, device);
        let weight = self.scores.push(initial(setup.seed, &name, &shape, Initial::Normal(1.0), device));
        let logit = (router.bias == RouterBias::Logit).then(|| self.scores.push(bias()));
        let selection = (router.bias == RouterBias::Selection).then(|| {
            self.selection.push(bias());
            self.selection.len() - 1
        });
        LayerGate { router, weight, bias: logit, selection }
    }

    fn finish(self, kinds: [Kind; 2], device: Device) -> Gates {
        // Biases for the choice move in steps that half precision would lose.
        Gates { scores: self.scores.bucket(kinds), selection: Bucket::new(&self.selection, Kind::Float, device) }
    }
}
