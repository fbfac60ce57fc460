//! What ranks send each other in the spans of a timeline: which collective, between whom, how much. For tools that replay a timeline
//! on a network of their own: no price depends on it.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use workloads::Bytes;
use workloads::model::{Block, HALF, Moe};

use crate::iteration::Evaluation;
use crate::iteration::schedule::Work;
use crate::iteration::state::{OfKind, StateTraffic};
use crate::iteration::timeline::{Activity, Gradients, Span};
use crate::plan::Plan;
use crate::plan::job::Job;
use crate::plan::memory::StageParameters;
use crate::price::RETURNED_GRADIENT;
use crate::program::copies::Transfer;
use crate::program::routing::RoutingCounts;
use crate::program::{Direction, Op, Rows};

/// Kinds of exchange between the ranks of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Collective {
    /// Everybody gets the sum.
    AllReduce,
    /// One gets the sum.
    Reduce,
    /// Everybody gets everybody's part.
    AllGather,
    /// Everybody gets a part of the sum.
    ReduceScatter,
    /// Everybody gets what one has.
    Broadcast,
    /// Everybody sends something to everybody.
    AllToAll,
}

/// One exchange that a rank takes part in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Communication {
    /// Its kind.
    pub collective: Collective,
    /// All ranks that take part, ascending.
    pub ranks: Vec<usize>,
    /// The same on every rank: what the cost model prices. Of an all-gather, what it leaves on every rank; of an all-to-all, what the
    /// rank sends to others that sends most; of the others, what goes in whole.
    pub bytes: Bytes,
    /// What this rank sends to others in an all-to-all.
    pub own: Bytes,
}

/// A send from one pipeline stage to another.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sent {
    /// The other rank.
    pub to: usize,
    /// How much.
    pub bytes: Bytes,
}

/// What a rank does with others in a span.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// With a group.
    Collective(Communication),
    /// With one rank of another stage.
    Send(Sent),
}

/// What an iteration's spans move.
#[derive(Clone, Debug, PartialEq)]
pub struct Communications {
    /// As it is evaluated.
    plan: Plan,
    gradient_bytes: f64,
    stages: Vec<OfStage>,
    /// By expert-parallel group of the stage, block and micro-batch.
    layers: BTreeMap<[usize; 3], OfLayer>,
    /// Iterations whose loads were gathered before this one.
    pub(crate) gathered: usize,
    /// `[stage][rank of a group]`: what it sends when experts change ranks.
    pub(crate) migrated: Vec<Vec<Bytes>>,
}

/// What keeps a stage's replicas one.
#[derive(Clone, Debug, PartialEq)]
struct OfStage {
    /// Once an iteration: gradients, then weights.
    reduced: [OfKind; 4],
    gathered: [OfKind; 4],
    /// Instead of the experts' one collective, where it is not one.
    experts: Option<Vec<Communication>>,
    /// `[direction]`: with every pass, chunks alike; nothing where it is queued among exchanges.
    passes: [Vec<OfKind>; 2],
}

/// Of one pass of one layer.
#[derive(Clone, Debug, PartialEq)]
struct OfLayer {
    /// `[step][rank]` rows that a dispatch sends to others, and those that it brings.
    sent: Vec<Vec<u64>>,
    brought: Vec<Vec<u64>>,
    /// Shadowed experts.
    shadowed: usize,
    /// `[rank]`: numbers of copies' weights that it sends, and of their gradients.
    copies: Vec<u64>,
    returned: Vec<u64>,
    /// Experts in the slots of the rank that has most.
    slots: usize,
    /// Ranks, one after the other, over which those are restored from shards or parts.
    holders: usize,
}

impl Evaluation<'_> {
    /// What the spans of this iteration move.
    pub fn communications(&self) -> Communications {
        let Evaluation { job, plan, costs, .. } = *self;
        let mut layers = BTreeMap::new();
        for (layer, (block, moe)) in job.model.moe_blocks().into_iter().zip(job.model.moe_layers()).enumerate() {
            let stage = plan.stage_of(job, block);
            for group in 0..plan.expert_dp {
                for m in 0..plan.micro_batches(job) {
                    layers.insert([group, block, m], self.of_layer(layer, moe, [stage, group, m]));
                }
            }
        }
        let stages = (0..plan.pp).map(|stage| self.of_stage(stage)).collect();
        let (gradient_bytes, migrated) = (costs.gradient_bytes(), vec![vec![Bytes::ZERO; plan.ep]; plan.pp]);
        Communications { plan: *plan, gradient_bytes, stages, layers, gathered: 0, migrated }
    }

    fn of_stage(&self, stage: usize) -> OfStage {
        let traffic = self.traffic(stage);
        let of_passes =
            StateTraffic { parameters: StageParameters::new(self.job, self.plan, stage), ..self.traffic(stage) };
        let part = 1.0 / self.plan.vp as f64;
        let of_pass = |direction| match self.policy.overlap().queued {
            true => Vec::new(),
            false => of_passes.accompanying(direction).into_iter().map(|of| of.part(part)).collect(),
        };
        OfStage {
            reduced: traffic.reduced(),
            gathered: traffic.gathered(),
            experts: self.copies(stage).communications(),
            passes: [Direction::Forward, Direction::Backward].map(of_pass),
        }
    }

    fn of_layer(&self, layer: usize, moe: &Moe, [stage, group, m]: [usize; 3]) -> OfLayer {
        let place = self.costs.group(self.plan.expert_group(stage, group), 1);
        let placement = &self.placements[layer];
        let mut counts = RoutingCounts::new(1, Vec::new());
        self.count([group, m], layer, moe, place.nodes(), &mut counts);
        let program = self.policy.program(layer, &counts, placement);
        let rows = Rows::new(&program, &counts, placement);
        let ranks = rows.ranks();
        let (mut sent, mut brought) = (vec![vec![0; ranks]; program.steps], vec![vec![0; ranks]; program.steps]);
        let pairs = (0..ranks * ranks).map(|pair| (pair / ranks, pair % ranks));
        for (source, owner) in pairs.filter(|(source, owner)| source != owner) {
            let slots = 0..rows.slots_per_rank();
            let count: u64 = slots.map(|slot| u64::from(rows.sent(source, owner, slot))).sum();
            let step = rows.step(source, owner);
            sent[step][source] += count;
            brought[step][owner] += count;
        }
        let size = moe.expert_parameters() as usize;
        let by_rank = |of: &[Transfer]| by_rank(of, ranks, placement.slots_per_rank(), size);
        let filled = |rank| rows.experts_of(rank).iter().flatten().count();
        OfLayer {
            sent,
            brought,
            shadowed: rows.shadowed_experts(),
            copies: by_rank(&program.transfers(placement, size).concat()),
            returned: by_rank(&program.returns(placement).concat()),
            slots: (0..ranks).map(filled).max().unwrap_or(0),
            holders: if program.split.of_parts() { rows.copies_of(0) } else { ranks },
        }
    }
}

/// Of an expert's `size` numbers, those that each rank sends to others, `[rank]`.
fn by_rank(transfers: &[Transfer], ranks: usize, slots_per_rank: usize, size: usize) -> Vec<u64> {
    let mut sent = vec![0; ranks];
    for (of, (from, to)) in transfers.iter().map(|of| (of, of.ranks(slots_per_rank))) {
        if from != to {
            sent[from] += of.numbers(size).len() as u64;
        }
    }
    sent
}

impl Communications {
    /// `[span]`: what each moves, several exchanges one after the other where it is of several. Sends of a rank come in order.
    pub fn messages(&self, job: &Job, spans: &[Span]) -> Vec<Vec<Message>> {
        let mut sends = BTreeMap::<(usize, bool, usize), usize>::new();
        let mut of = |span: &Span| match (span.activity, span.work) {
            (Activity::Boundary, Some(Work::Forward(m) | Work::Backward(m))) => {
                let before = sends.entry((span.rank, matches!(span.work, Some(Work::Forward(_))), m)).or_default();
                *before += 1;
                self.sent(job, span, *before - 1).into_iter().map(Message::Send).collect()
            }
            _ => self.of(job, span).into_iter().map(Message::Collective).collect(),
        };
        spans.iter().map(&mut of).collect()
    }

    /// What a span moves besides sends between stages: nothing where it computes, several exchanges one after the other where it is
    /// of several.
    fn of(&self, job: &Job, span: &Span) -> Vec<Communication> {
        let stage = span.rank / self.plan.stage_ranks();
        let whole = stage * self.plan.stage_ranks()..(stage + 1) * self.plan.stage_ranks();
        let over = |collective, bytes: f64| self.within(whole.clone(), 1, span.rank, collective, Bytes(bytes));
        match span.activity {
            Activity::Op(op) => self.of_op(job, span, op).into_iter().collect(),
            Activity::TensorParallel => self.tensor_parallel(job, span),
            Activity::GradientSync(Gradients::TiedStages) => vec![self.tied_stages(job, span.rank)],
            Activity::GradientSync(of) => self.gradients(span.rank, of),
            Activity::WeightGather(of) => self.of_kinds(&self.stages[stage].gathered, Some(of), span.rank),
            Activity::ShardedState => {
                let direction = direction(span.work);
                self.of_kinds(&self.stages[stage].passes[direction as usize], None, span.rank)
            }
            Activity::SelectionLoads => vec![over(Collective::AllReduce, self.loads(job, stage))],
            Activity::Gathering => {
                vec![over(Collective::AllReduce, self.loads(job, stage) * self.gathered.max(1) as f64)]
            }
            Activity::Migration => {
                let (group, sent) = (self.group_of(span.rank), &self.migrated[stage]);
                let bytes = sent.iter().copied().fold(Bytes::ZERO, Bytes::max);
                let own = sent[span.rank - group.start];
                vec![Communication { own, ..self.within(group, 1, span.rank, Collective::AllToAll, bytes) }]
            }
            Activity::Block
            | Activity::Edge
            | Activity::Boundary
            | Activity::Optimizer
            | Activity::Decision
            | Activity::Host => Vec::new(),
        }
    }

    /// The send at the end of a rank's pass of a micro-batch; `before`: its sends of that micro-batch in that direction before this
    /// one, of which each is of another chunk.
    fn sent(&self, job: &Job, span: &Span, before: usize) -> Option<Sent> {
        let plan = &self.plan;
        let (stage, position) = (span.rank / plan.stage_ranks(), span.rank % plan.stage_ranks());
        let chunks: Vec<usize> = plan.chunks_of(stage).collect();
        let (number, next) = match span.work? {
            Work::Forward(_) => chunks.get(before).map(|&number| (number, number + 1))?,
            Work::Backward(_) => {
                let number = *chunks.iter().rev().nth(before)?;
                (number, number.checked_sub(1)?)
            }
        };
        let boundary = plan.chunk_blocks(job, number.max(next)).start;
        let bytes = job.model.blocks[boundary].boundary_bytes() * (plan.micro_batch as f64 / plan.tp as f64);
        Some(Sent { to: next % plan.pp * plan.stage_ranks() + position, bytes })
    }

    /// The expert-parallel group of a rank.
    fn group_of(&self, rank: usize) -> Range<usize> {
        let first = rank / self.plan.ep * self.plan.ep;
        first..first + self.plan.ep
    }

    /// Among the ranks of `all` that are a multiple of `stride` away.
    fn within(
        &self,
        all: Range<usize>,
        stride: usize,
        rank: usize,
        collective: Collective,
        bytes: Bytes,
    ) -> Communication {
        let ranks = all.filter(|other| other.abs_diff(rank).is_multiple_of(stride)).collect();
        Communication { collective, ranks, bytes, own: bytes }
    }

    fn of_op(&self, job: &Job, span: &Span, op: Op) -> Option<Communication> {
        let block = span.block?;
        let moe = job.model.blocks[block].moe()?;
        let (Work::Forward(m) | Work::Backward(m)) = span.work?;
        let group = self.group_of(span.rank);
        let number = span.rank % self.plan.stage_ranks() / self.plan.ep;
        let layer = self.layers.get(&[number, block, m])?;
        let own = span.rank - group.start;
        let weights = |bytes: f64, experts: usize| moe.expert_parameters() as f64 * bytes * experts as f64;
        let row = moe.entry_bytes().0;
        let sent = |of: &[u64], each: f64| {
            let most = of.iter().max().copied().unwrap_or(0) as f64;
            Some((Collective::AllToAll, most * each, of[own] as f64 * each))
        };
        let same = |collective, bytes: f64| Some((collective, bytes, bytes));
        let mut ranks = group;
        if let Op::Unshard | Op::Reshard = op {
            let first = ranks.start + own / layer.holders * layer.holders;
            ranks = first..first + layer.holders;
        }
        let (collective, bytes, own) = match op {
            Op::Counts => same(Collective::AllToAll, 8.0 * (moe.experts * (ranks.len() - 1)) as f64),
            Op::Dispatch { step } => sent(&layer.sent[step], row),
            Op::Combine { step } => sent(&layer.brought[step], row),
            Op::Broadcast { .. } => same(Collective::Broadcast, weights(HALF, 1)),
            Op::ReduceGrad { .. } => same(Collective::Reduce, weights(HALF, 1)),
            Op::GatherShadows => same(Collective::AllGather, weights(HALF, layer.shadowed)),
            Op::ScatterGrads => same(Collective::ReduceScatter, weights(HALF, layer.shadowed)),
            Op::CopyWeights => sent(&layer.copies, HALF),
            Op::ReturnGrad => sent(&layer.returned, RETURNED_GRADIENT),
            Op::Unshard => same(Collective::AllGather, weights(HALF, layer.slots)),
            Op::Reshard => same(Collective::ReduceScatter, weights(RETURNED_GRADIENT, layer.slots)),
            Op::Gate
            | Op::Permute
            | Op::Sync
            | Op::Decide { .. }
            | Op::Experts { .. }
            | Op::Shadow { .. }
            | Op::Await => None,
        }?;
        Some(Communication { collective, ranks: ranks.collect(), bytes: Bytes(bytes), own: Bytes(own) })
    }

    fn tensor_parallel(&self, job: &Job, span: &Span) -> Vec<Communication> {
        let plan = &self.plan;
        let first = span.rank / plan.tp * plan.tp;
        let over = |(collective, bytes)| self.within(first..first + plan.tp, 1, span.rank, collective, bytes);
        let direction = direction(span.work);
        match span.block {
            Some(block) => tensor_parallel(&job.model.blocks[block], plan, direction).map(over).collect(),
            None => vec![over((Collective::AllReduce, job.model.blocks[0].boundary_bytes() * plan.micro_batch as f64))],
        }
    }

    /// The reduction of such gradients once an iteration.
    fn gradients(&self, rank: usize, of: Gradients) -> Vec<Communication> {
        let OfStage { reduced, experts, .. } = &self.stages[rank / self.plan.stage_ranks()];
        match experts {
            Some(all) if of == Gradients::Experts => {
                all.iter().filter(|of| of.ranks.contains(&rank)).cloned().collect()
            }
            _ => self.of_kinds(reduced, Some(of), rank),
        }
    }

    /// Those of one kind, or of all.
    fn of_kinds(&self, all: &[OfKind], kind: Option<Gradients>, rank: usize) -> Vec<Communication> {
        let first = rank / self.plan.stage_ranks() * self.plan.stage_ranks();
        let stage = first..first + self.plan.stage_ranks();
        let of = all.iter().filter(|of| kind.is_none_or(|kind| of.kind == kind));
        of.map(|of| self.within(stage.clone(), of.stride, rank, of.collective, of.bytes)).collect()
    }

    /// The two copies of the embedding.
    fn tied_stages(&self, job: &Job, rank: usize) -> Communication {
        let plan = &self.plan;
        let (position, last) = (rank % plan.stage_ranks(), (plan.pp - 1) * plan.stage_ranks());
        let bytes = Bytes(job.model.tied_parameters as f64 / plan.tp as f64 * self.gradient_bytes);
        let ranks = vec![position, last + position];
        Communication { collective: Collective::AllReduce, ranks, bytes, own: bytes }
    }

    /// The loads of a stage's MoE layers in an iteration, 8 bytes an expert.
    fn loads(&self, job: &Job, stage: usize) -> f64 {
        let layers = self.plan.stage_blocks(job, stage).filter_map(Block::moe);
        8.0 * layers.map(|moe| moe.experts).sum::<usize>() as f64
    }
}

fn direction(work: Option<Work>) -> Direction {
    match work {
        Some(Work::Backward(_)) => Direction::Backward,
        _ => Direction::Forward,
    }
}

/// The collectives of a block's pass over tensor-parallel ranks, in order.
///
/// One all-reduce for attention (of its output, or of the gradient of what its heads start from) and one for a dense
/// network, also where it is a shared expert (Shoeybi et al. 2019). Around routed experts each rank takes its slice of the
/// tokens instead: their outputs are gathered in the forward pass, the slices' gradients in the backward pass (as in
/// FastMoE).
pub(super) fn tensor_parallel(
    block: &Block,
    plan: &Plan,
    direction: Direction,
) -> impl Iterator<Item = (Collective, Bytes)> + use<> {
    let bytes = block.boundary_bytes() * plan.micro_batch as f64;
    let attention = match direction {
        Direction::Forward => bytes,
        Direction::Backward => {
            let [of_token, weights] = block.attention.shared_by_heads(block.hidden);
            let numbers = block.tokens * plan.micro_batch * of_token + weights;
            Bytes(numbers as f64 * HALF)
        }
    };
    let routed = block.moe().map(|_| (Collective::AllGather, bytes));
    let dense = block.moe().is_none_or(|moe| moe.shared.is_some()).then_some((Collective::AllReduce, bytes));
    std::iter::once((Collective::AllReduce, attention)).chain(routed).chain(dense)
}
