//! The part of the model on one rank: the blocks of its pipeline stage, and the ends of the model that the stage has.

use systems::Placement;
use tch::Device;

use crate::layer::experts::Experts;
use crate::layer::moe::Layer;
use crate::model::attention::Attention;
use crate::model::dense::{Builder, Dense};
use crate::model::embedding::{Embedding, embedding_weight};
use crate::model::head::Head;
use crate::model::inner;
use crate::model::mlp::Mlp;
use crate::model::parameters::{Bucket, Initial, initial};
use crate::setup::Setup;

pub(crate) struct Stage {
    pub(crate) dense: Dense,
    pub(crate) gates: Bucket,
    /// The tied embedding on the first and the last stage; no parameter on the others.
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
    Moe(Box<Layer>),
}

impl Stage {
    /// Stage `stage` of the plan at `position` in it, at its initial values.
    pub(super) fn new(setup: &Setup, stage: usize, position: usize, device: Device) -> Self {
        let (plan, job) = (&setup.plan, setup.job);
        let mut builder = Builder::new(setup.seed, device, (position % plan.tp, plan.tp));
        let (first, last) = (stage == 0, stage + 1 == plan.pp);
        let embedding = first.then(|| Embedding::new(&mut builder, &setup.gpt));
        let mut gates = Vec::new();
        let blocks = plan.chunk_blocks(job, stage).map(|number| {
            let attention = Attention::new(&mut builder, &setup.gpt, number);
            let block = &job.model.blocks[number];
            let feed_forward = match (block.moe(), inner(block)) {
                (Some(_), _) => {
                    let layer = moe_layer(setup, number, position, gates.len(), device);
                    gates.extend(gate(setup, &layer, device));
                    FeedForward::Moe(Box::new(layer))
                }
                (None, inner) => {
                    let inner = inner.unwrap_or(4 * block.hidden);
                    FeedForward::Dense(Mlp::new(&mut builder, &setup.gpt, number, inner))
                }
            };
            Block { number, attention, feed_forward }
        });
        let blocks: Vec<Block> = blocks.collect();
        let head = last.then(|| Head::new(&mut builder, &setup.gpt));
        let tied: Vec<_> = (first || last).then(|| embedding_weight(&builder, &setup.gpt)).into_iter().collect();
        let embedding_weight = Bucket::new(&tied, setup.kind, device);
        let gates = Bucket::new(&gates, setup.kind, device);
        Self { dense: builder.finish(setup.kind), gates, embedding_weight, embedding, blocks, head }
    }

    /// All buckets, experts last.
    pub(super) fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        let shared = [&self.dense.sharded, &self.dense.replicated, &self.gates, &self.embedding_weight];
        shared.into_iter().chain(self.layers().map(|layer| &layer.experts.bucket))
    }

    pub(crate) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.blocks.iter().filter_map(|block| match &block.feed_forward {
            FeedForward::Moe(layer) => Some(layer.as_ref()),
            FeedForward::Dense(_) => None,
        })
    }

    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Layer> {
        self.blocks.iter_mut().filter_map(|block| match &mut block.feed_forward {
            FeedForward::Moe(layer) => Some(layer.as_mut()),
            FeedForward::Dense(_) => None,
        })
    }
}

/// The MoE layer of a block, whose gate's parameters follow `gates` others.
fn moe_layer(setup: &Setup, block: usize, position: usize, gates: usize, device: Device) -> Layer {
    let model = &setup.job.model;
    let number = model.moe_blocks().partition_point(|&other| other < block);
    let moe = *model.blocks[block].moe().expect("the block has an MoE layer");
    let placement = Placement::identity(moe.experts, setup.plan.ep);
    let own: Vec<usize> = placement.experts_of(position % setup.plan.ep).iter().flatten().copied().collect();
    let experts = Experts::new(setup.seed, number, &own, moe, setup.gpt.depth, setup.kind, device);
    Layer { number, gate: [gates, gates + 1], experts, placement }
}

/// Initial weight and bias of a layer's gate.
fn gate(setup: &Setup, layer: &Layer, device: Device) -> [tch::Tensor; 2] {
    let moe = layer.experts.moe();
    let shape = [moe.experts as i64, moe.width as i64];
    let name = format!("layer {} gate", layer.number);
    [
        initial(setup.seed, &name, &shape, Initial::Normal(1.0), device),
        initial(setup.seed, &format!("{name} bias"), &shape[..1], Initial::Zeros, device),
    ]
}
