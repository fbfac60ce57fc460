//! Which ranks a rank talks to, one communicator for each purpose. What is done between two iterations' passes goes one after the other, so that
//! the stage is the world, and the ranks of dense parameters are the stage, where they are the same: on GPUs each group has buffers of its own.

use systems::{Plan, Storage};

use crate::comm::{CommError, Communicator};

/// The groups of a rank.
pub(crate) struct Groups {
    pub(crate) world: Box<dyn Communicator>,
    /// The pipeline stage, unless it is the world.
    of_stage: Option<Box<dyn Communicator>>,
    /// The owners of one set of experts.
    pub(crate) experts: Box<dyn Communicator>,
    /// The same ranks, where experts are restored from shards: a group of its own, so that rows do not wait for them.
    of_shards: Option<Box<dyn Communicator>>,
    /// Ranks with the same experts: their gradients.
    pub(crate) replicas: Box<dyn Communicator>,
    /// The parts of one set of dense parameters.
    pub(crate) tensor: Box<dyn Communicator>,
    /// Ranks with the same dense parameters, unless they are the stage.
    of_data: Option<Box<dyn Communicator>>,
    /// The same position on every stage: activations.
    pub(crate) forward: Box<dyn Communicator>,
    /// The same ranks: gradients of activations. A group of its own, so that neither direction waits for the other.
    pub(crate) backward: Box<dyn Communicator>,
    /// The same position on the first and the last stage: gradients of the tied embedding.
    pub(crate) tied: Box<dyn Communicator>,
}

impl Groups {
    /// Splits the world by the plan.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn new(world: Box<dyn Communicator>, plan: &Plan, storage: Storage) -> Result<Self, CommError> {
        let size = plan.stage_ranks();
        let stages = |within: &[Vec<usize>]| -> Vec<Vec<usize>> {
            let stage = |stage: usize| within.iter().map(move |of| of.iter().map(|r| stage * size + r).collect());
            (0..plan.pp).flat_map(stage).collect()
        };
        // `count` groups of ranks `stride` apart.
        let strided = |stride: usize| -> Vec<Vec<usize>> {
            stages(&(0..stride).map(|first| (first..size).step_by(stride).collect()).collect::<Vec<_>>())
        };
        let contiguous = |length: usize| -> Vec<Vec<usize>> {
            stages(&(0..size).step_by(length).map(|first| (first..first + length).collect()).collect::<Vec<_>>())
        };
        let pipelines: Vec<Vec<usize>> =
            (0..size).map(|position| (0..plan.pp).map(|stage| stage * size + position).collect()).collect();
        let last = (plan.pp - 1) * size;
        let ends = (0..size).map(|position| if last > 0 { vec![position, last + position] } else { vec![position] });
        let between = (size..last.max(size)).map(|rank| vec![rank]);
        let tied: Vec<Vec<usize>> = ends.chain(between).collect();
        let groups = Self {
            of_stage: (plan.pp > 1).then(|| world.split("stage", &contiguous(size))).transpose()?,
            experts: world.split("expert-parallel group", &contiguous(plan.ep))?,
            of_shards: (storage == Storage::Shards)
                .then(|| world.split("shards of experts", &contiguous(plan.ep)))
                .transpose()?,
            replicas: world.split("expert replicas", &strided(plan.ep))?,
            tensor: world.split("tensor-parallel group", &contiguous(plan.tp))?,
            of_data: (plan.tp > 1).then(|| world.split("data-parallel group", &strided(plan.tp))).transpose()?,
            forward: world.split("pipeline", &pipelines)?,
            backward: world.split("pipeline, backward", &pipelines)?,
            tied: world.split("first and last stage", &tied)?,
            world,
        };
        groups.world.release_kept();
        Ok(groups)
    }

    /// The pipeline stage: gradients of gates, loads.
    pub(crate) fn stage(&self) -> &dyn Communicator {
        self.of_stage.as_deref().unwrap_or(&*self.world)
    }

    /// Ranks with the same dense parameters: their gradients.
    pub(crate) fn data(&self) -> &dyn Communicator {
        self.of_data.as_deref().unwrap_or_else(|| self.stage())
    }

    /// The ranks that hold the shards of one set of experts.
    pub(crate) fn shards(&self) -> &dyn Communicator {
        self.of_shards.as_deref().unwrap_or(&*self.experts)
    }
}
