//! Hybrid-parallel plans: degrees, what makes them fit a job, and which ranks form which group.
//!
//! Ranks are numbered stage by stage; inside a stage, data-parallel index by index; inside that, tensor-parallel ranks.
//! `ep` contiguous ranks of a stage hold one set of experts; ranks `ep` apart hold the same experts.

pub mod balancers;
pub mod job;
pub mod memory;
pub mod moves;
pub mod placement;
pub mod routing;
pub mod search;
pub mod slots;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use thiserror::Error;
pub use workloads::model::Recompute;
use workloads::model::{Block, Moe};
pub use workloads::plan::Zero;
use workloads::plan::{BadPlan, ForcedPlan};
use workloads::{Bytes, Seconds};

use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::{Policy, Storage};

/// A hybrid-parallel plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Plan {
    /// Pipeline stages.
    pub pp: usize,
    /// Data-parallel replicas.
    pub dp: usize,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Ranks that share one set of experts.
    pub ep: usize,
    /// Replicas of that set within a stage: `ep * expert_dp = dp * tp`.
    pub expert_dp: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Virtual stages per rank: its blocks are in that many chunks, which a micro-batch passes one after the other
    /// (Narayanan et al., SC'21).
    pub vp: usize,
    /// What is sharded over replicas: dense state over `dp`, gates over the stage, experts over `expert_dp`.
    pub zero: Zero,
    /// What is computed again in the backward pass.
    pub recompute: Recompute,
    /// Iterations between online placements; 0 for none.
    pub placement_every: usize,
}

/// Why a plan cannot be used.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum PlanError {
    /// Degrees that do not multiply to what they must.
    #[error("plan {plan}: {left} = {found}, but {right} = {wanted}: they must be equal")]
    Product {
        /// The plan.
        plan: Box<Plan>,
        /// What was multiplied.
        left: &'static str,
        /// Its value.
        found: usize,
        /// What it must equal.
        right: &'static str,
        /// That value.
        wanted: usize,
    },
    /// A quantity that does not divide another.
    #[error("plan {plan}: {whole} = {whole_value} is not a multiple of {part} = {part_value}")]
    Division {
        /// The plan.
        plan: Box<Plan>,
        /// What is divided.
        whole: &'static str,
        /// Its value.
        whole_value: usize,
        /// What it is divided by.
        part: &'static str,
        /// Its value.
        part_value: usize,
    },
    /// More stages than blocks.
    #[error("plan {plan}: {stages} pipeline stages, but the model has {blocks} blocks", stages = plan.pp.saturating_mul(plan.vp))]
    Stages {
        /// The plan.
        plan: Box<Plan>,
        /// Blocks of the model.
        blocks: usize,
    },
    /// Virtual stages without a pipeline, or none at all.
    #[error("plan {plan}: vp = {vp} with pp = {pp}: expected 1, or more where pp is at least 2", vp = plan.vp, pp = plan.pp)]
    VirtualStages {
        /// The plan.
        plan: Box<Plan>,
    },
    /// Another micro-batch than the job fixes.
    #[error("plan {plan}: micro-batch {found}, but the case fixes {wanted}")]
    MicroBatch {
        /// The plan.
        plan: Box<Plan>,
        /// The plan's.
        found: usize,
        /// The job's.
        wanted: usize,
    },
    /// State of experts in shards over each of several expert-parallel groups.
    #[error(
        "plan {plan}: the system's policy keeps state of experts in shards ({storage:?}) and has {} sets of them, \
         between which nothing sums gradients: expected a policy that joins replicas, or expert_dp = 1",
        .plan.expert_dp
    )]
    ReplicasApart {
        /// The plan.
        plan: Box<Plan>,
        /// The policy's.
        storage: Storage,
    },
    /// A rank's memory does not hold the plan.
    #[error("plan {plan}: out of memory: rank {rank} needs {need:.1} GB of {have:.1} GB usable", need = need.0 / 1e9, have = have.0 / 1e9)]
    Memory {
        /// The plan.
        plan: Box<Plan>,
        /// The fullest rank.
        rank: usize,
        /// Its peak.
        need: Bytes,
        /// The device's memory less what is reserved.
        have: Bytes,
    },
    /// Nothing worth an evaluation: its outline is slower than the plans that were evaluated.
    #[error("plan {plan}: not evaluated: about {about:.3} s in outline, the fastest takes {fastest:.3} s", about = about.0, fastest = fastest.0)]
    Outlined {
        /// The plan.
        plan: Box<Plan>,
        /// Its outline.
        about: Seconds,
        /// The fastest plan's estimate.
        fastest: Seconds,
    },
    /// No routing to estimate the plan on.
    #[error("plan {plan}: the job has no profile of its routing to estimate it on")]
    NoProfile {
        /// The plan.
        plan: Box<Plan>,
    },
    /// A rank that no plan of the search has.
    #[error("plan {rank} of {found}: expected the rank of a plan that the system's search finds for the case")]
    NoSuchRank {
        /// The rank asked for, from 1.
        rank: usize,
        /// Plans found.
        found: usize,
    },
    /// Nothing to choose from.
    #[error(
        "no plan has degrees that fit the job: expected a number of GPUs whose divisors divide blocks, experts and global batch, and a micro-batch that divides each replica's part of that"
    )]
    NoCandidate,
}

impl Default for Plan {
    /// One rank, one sample at a time.
    fn default() -> Self {
        Self {
            pp: 1,
            dp: 1,
            tp: 1,
            ep: 1,
            expert_dp: 1,
            micro_batch: 1,
            vp: 1,
            zero: Zero::Off,
            recompute: Recompute::None,
            placement_every: 0,
        }
    }
}

/// Whether what happens every `every` iterations, and never if that is 0, happens before `iteration`, counted from 0: not before the
/// first.
pub fn is_due(every: usize, iteration: usize) -> bool {
    every > 0 && iteration > 0 && iteration.is_multiple_of(every)
}

impl From<ForcedPlan> for Plan {
    fn from(forced: ForcedPlan) -> Self {
        let ForcedPlan { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every } = forced;
        Self { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every }
    }
}

impl From<Plan> for ForcedPlan {
    fn from(plan: Plan) -> Self {
        let Plan { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every } = plan;
        Self { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ForcedPlan::from(*self).fmt(f)
    }
}

impl FromStr for Plan {
    type Err = BadPlan;

    fn from_str(text: &str) -> Result<Self, BadPlan> {
        text.parse::<ForcedPlan>().map(Self::from)
    }
}

impl Plan {
    /// Whether the degrees fit the job; memory is for [`crate::iteration`] to say.
    ///
    /// # Errors
    /// The first rule that does not hold, with its numbers.
    pub fn check(&self, job: &Job) -> Result<(), PlanError> {
        let product = |left, found, right, wanted| {
            if found == wanted {
                Ok(())
            } else {
                Err(PlanError::Product { plan: Box::new(*self), left, found, right, wanted })
            }
        };
        let division = |whole, whole_value: usize, part, part_value: usize| {
            if part_value > 0 && whole_value.is_multiple_of(part_value) {
                Ok(())
            } else {
                Err(PlanError::Division { plan: Box::new(*self), whole, whole_value, part, part_value })
            }
        };
        // Degrees are whatever someone wrote.
        let times = usize::saturating_mul;
        product("pp * dp * tp", times(times(self.pp, self.dp), self.tp), "gpus", job.gpus)?;
        product("ep * expert_dp", times(self.ep, self.expert_dp), "dp * tp", times(self.dp, self.tp))?;
        if self.ep >= self.tp {
            division("ep", self.ep, "tp", self.tp)?;
        } else {
            division("tp", self.tp, "ep", self.ep)?;
        }
        division("global batch", job.global_batch, "dp * micro_batch", times(self.dp, self.micro_batch))?;
        for block in &job.model.blocks {
            division("heads", block.attention.heads, "tp", self.tp)?;
            division("heads of keys and values", block.attention.kv_heads(), "tp", self.tp)?;
            if let Some(moe) = block.moe() {
                division("experts", moe.experts, "ep", self.ep)?;
            }
        }
        self.check_pipeline(job)?;
        match job.micro_batch {
            Some(wanted) if wanted != self.micro_batch => {
                Err(PlanError::MicroBatch { plan: Box::new(*self), found: self.micro_batch, wanted })
            }
            _ => Ok(()),
        }
    }

    /// Whether the copies of every expert stay equal under a policy.
    ///
    /// # Errors
    /// State in shards over each of several expert-parallel groups.
    pub fn keeps_copies_equal(&self, policy: &dyn Policy) -> Result<(), PlanError> {
        let storage = policy.storage();
        if storage == Storage::Slots || self.evaluated(policy).expert_dp == 1 {
            return Ok(());
        }
        Err(PlanError::ReplicasApart { plan: Box::new(*self), storage })
    }

    /// Interleaving runs micro-batches through a chunk `pp` at a time (Narayanan et al., SC'21).
    fn check_pipeline(&self, job: &Job) -> Result<(), PlanError> {
        if self.vp == 0 || (self.vp > 1 && self.pp == 1) {
            return Err(PlanError::VirtualStages { plan: Box::new(*self) });
        }
        if self.pp.saturating_mul(self.vp) > job.model.blocks.len() {
            return Err(PlanError::Stages { plan: Box::new(*self), blocks: job.model.blocks.len() });
        }
        let micro_batches = self.micro_batches(job);
        if self.vp > 1 && !micro_batches.is_multiple_of(self.pp) {
            let (whole, part) = ("micro-batches", "pp, as interleaving needs it,");
            let (whole_value, part_value) = (micro_batches, self.pp);
            return Err(PlanError::Division { plan: Box::new(*self), whole, whole_value, part, part_value });
        }
        Ok(())
    }

    /// Where training starts: the experts of every MoE layer in order, `[moe layer]`.
    pub fn experts_in_order(&self, job: &Job) -> Vec<Placement> {
        job.model.moe_layers().map(|moe| Placement::identity(moe.experts, self.ep)).collect()
    }

    /// The plan as it is evaluated under a policy: with one group of all ranks of a stage where the policy joins replicas.
    #[must_use]
    pub fn evaluated(self, policy: &dyn Policy) -> Self {
        if policy.joins_replicas() { Self { ep: self.stage_ranks(), expert_dp: 1, ..self } } else { self }
    }

    /// Micro-batches of one data-parallel replica in one iteration.
    pub fn micro_batches(&self, job: &Job) -> usize {
        job.global_batch / (self.dp * self.micro_batch)
    }

    /// Tokens of one micro-batch that one rank brings to an MoE layer.
    pub fn tokens(&self, moe: &Moe) -> usize {
        moe.tokens * self.micro_batch / self.tp
    }

    /// Ranks of one stage.
    pub fn stage_ranks(&self) -> usize {
        self.dp * self.tp
    }

    /// Into how many parts replicas of the same experts cut what they shard from a stage on.
    pub fn expert_shares(&self, from: Zero) -> f64 {
        if self.zero >= from { self.expert_dp as f64 } else { 1.0 }
    }

    /// Chunks of all stages: what a micro-batch passes on its way through the model.
    pub fn chunks(&self) -> usize {
        self.pp * self.vp
    }

    /// The chunks of a stage, in the order in which a micro-batch passes them; the only one is number `stage` unless stages
    /// are interleaved.
    pub fn chunks_of(&self, stage: usize) -> impl Iterator<Item = usize> + use<> {
        (stage..self.chunks()).step_by(self.pp)
    }

    /// The blocks of a chunk: as many as the others have, or one fewer.
    pub fn chunk_blocks(&self, job: &Job, chunk: usize) -> Range<usize> {
        let blocks = job.model.blocks.len();
        chunk * blocks / self.chunks()..(chunk + 1) * blocks / self.chunks()
    }

    /// All blocks of a stage.
    pub fn stage_blocks<'a>(&'a self, job: &'a Job, stage: usize) -> impl Iterator<Item = &'a Block> {
        self.chunks_of(stage).flat_map(|chunk| &job.model.blocks[self.chunk_blocks(job, chunk)])
    }

    /// The stage that holds a block of the model.
    pub fn stage_of(&self, job: &Job, block: usize) -> usize {
        let holds = |&chunk: &usize| self.chunk_blocks(job, chunk).contains(&block);
        (0..self.chunks()).find(holds).expect("every block is on a stage") % self.pp
    }

    /// Global ranks of expert-parallel group `group` (below `expert_dp`) of a stage.
    pub fn expert_group(&self, stage: usize, group: usize) -> Range<usize> {
        let first = stage * self.stage_ranks() + group * self.ep;
        first..first + self.ep
    }

    /// Samples of micro-batch `m` on the rank at `position` (below `dp * tp`) of a stage, as indices into the global
    /// batch. Tensor-parallel ranks see the same samples.
    pub fn samples(&self, job: &Job, position: usize, m: usize) -> Range<usize> {
        let share = job.global_batch / self.dp;
        let first = position / self.tp * share + m * self.micro_batch;
        first..first + self.micro_batch
    }
}
