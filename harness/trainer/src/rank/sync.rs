//! The end of an iteration: gradients are summed over the ranks that share parameters, clipped and applied.

use systems::iteration::copies::Copies;
use systems::iteration::online;
use systems::iteration::timeline::{Activity, Gradients};
use systems::plan::slots::SlotState;
use systems::price::network::Group;
use systems::{Placement, Storage, Zero};
use tch::{Kind, Tensor};
use workloads::model::Moe;
use workloads::{Bytes, Seconds};

use crate::comm::{CommError, Communicator};
use crate::error::TrainError;
use crate::host::to_device;
use crate::kernels;
use crate::layer::copies::{Sums, first_gradients};
use crate::layer::gate;
use crate::layer::moe::{Layer, LayerStats};
use crate::layer::shards::Shards;
use crate::model::optimizer::{self, Factor};
use crate::model::parameters::Bucket;
use crate::rank::Rank;
use crate::setup::Setup;

impl Rank<'_> {
    /// Sums gradients: dense parameters over data-parallel ranks, gates over the stage, experts over their replicas, the
    /// embedding over data-parallel ranks and, where the head shares it, between the first and the last stage. Of what replicas keep parts, the
    /// passes have done all but the last, and the sums over an expert's other copies.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn reduce_gradients(&self) -> Result<(), TrainError> {
        let (plan, stage, groups) = (&self.plan, &self.stage, &self.groups);
        let first = self.stage_number * plan.stage_ranks();
        let place = |stride| self.setup.costs.group(first..first + plan.stage_ranks(), stride);
        let dense = [&stage.dense.sharded, &stage.dense.replicated];
        let (tied, each_pass) = ([&stage.embedding_weight], plan.zero == Zero::Weights);
        if !each_pass {
            self.all_reduce(Gradients::Dense, &dense, groups.data(), &place(plan.tp))?;
            self.all_reduce(Gradients::Gate, &[&stage.gates.scores], groups.stage(), &place(1))?;
        }
        self.reduce_experts(&place(plan.ep))?;
        if !each_pass {
            self.all_reduce(Gradients::Tied, &tied, groups.data(), &place(plan.tp))?;
        }
        if plan.pp > 1 && self.setup.gpt.tied {
            let span = plan.stage_ranks() * (plan.pp - 1);
            let ends = self.setup.costs.group(0..span + 1, span);
            self.all_reduce(Gradients::TiedStages, &tied, &*groups.tied, &ends)?;
        }
        Ok(())
    }

    /// What sums over copies take on the described cluster, and new weights from the optimizer's shards.
    pub(super) fn price_of_copies(&self) -> Option<[Seconds; 2]> {
        let layers = self.stage.layers().map(|layer| (layer.experts.moe(), &layer.placement)).collect();
        let (costs, storage) = (self.setup.costs, self.online.policy().storage());
        Copies { plan: &self.plan, costs, stage: self.stage_number, storage, layers }.synchronisation()
    }

    /// Sums the gradients of experts over the ranks that hold them: those of the same slots in all replicas, then those of an
    /// expert's copies; or into the optimizer's shards. `place`: the replicas.
    fn reduce_experts(&self, place: &Group) -> Result<(), TrainError> {
        let (stage, groups, costs) = (&self.stage, &self.groups, self.setup.costs);
        let activity = Activity::GradientSync(Gradients::Experts);
        let buckets: Vec<&Bucket> = stage.layers().map(|layer| &layer.experts.bucket).collect();
        let storage = self.online.policy().storage();
        let layers: Vec<(&Moe, &Placement)> =
            stage.layers().map(|layer| (layer.experts.moe(), &layer.placement)).collect();
        let slots = SlotState::new(storage, &self.plan, &self.setup.job.cluster, layers.iter().copied());
        let synchronised = self.price_of_copies();
        let summed = matches!(storage, Storage::Shards | Storage::Parts);
        let replicas = groups.replicas.size() > 1 && self.plan.zero != Zero::Weights;
        if summed || synchronised.is_none() && !replicas {
            return Ok(());
        }
        let group = &*groups.experts;
        self.timer.wait(activity, || {
            if storage == Storage::Slots && replicas {
                sum(&buckets, &*groups.replicas)?;
            }
            // Those of one layer travel while those of another are added.
            let (mut scattered, mut sums): (Option<&Shards>, Option<Sums>) = (None, None);
            for Layer { experts, placement, .. } in stage.layers() {
                if let Some(shards) = &experts.shards {
                    shards.scatter(&experts.bucket, placement, group)?;
                    scattered.replace(shards).map_or(Ok(()), Shards::settle)?;
                } else if placement.has_copies() {
                    let begun = Sums::begin(experts, placement, group)?;
                    sums.replace(begun).map_or(Ok(()), |before| before.finish(group))?;
                }
            }
            scattered.map_or(Ok(()), Shards::settle)?;
            sums.map_or(Ok::<(), CommError>(()), |last| last.finish(group))
        })?;
        match synchronised {
            Some([gradients, _]) => self.timer.collective(activity, groups.stage(), gradients),
            None => {
                let price = costs.all_reduce(place, Bytes(slots.parameters * slots.gradient));
                self.timer.collective(activity, &*groups.replicas, price)
            }
        }
    }

    fn all_reduce(
        &self,
        what: Gradients,
        buckets: &[&Bucket],
        group: &dyn Communicator,
        place: &Group,
    ) -> Result<(), TrainError> {
        let count: i64 = buckets.iter().map(|bucket| bucket.len()).sum();
        if group.size() == 1 || count == 0 {
            return Ok(());
        }
        let activity = Activity::GradientSync(what);
        self.timer.wait(activity, || sum(buckets, group))?;
        let price = self.setup.costs.all_reduce(place, Bytes(count as f64 * self.setup.costs.gradient_bytes()));
        self.timer.collective(activity, group, price)
    }

    /// Clips the gradient by its norm over the whole model and updates every parameter.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn update(&self) -> Result<(), TrainError> {
        let training = &self.setup.training;
        let mut factor = Factor::one(self.device);
        if training.clip_norm > 0.0 {
            let squares = || self.squares();
            let own = self.timer.compute(Activity::Optimizer, squares);
            factor = Factor::clip(&self.groups.world.all_reduce(&own)?.wait()?, training.clip_norm)?;
        }
        let t = self.iteration + 1;
        self.timer.compute(Activity::Optimizer, || {
            self.stage.shared_buckets().for_each(|bucket| optimizer::step(training, bucket, t, &factor));
            for Layer { experts, placement, .. } in self.stage.layers() {
                let updated = experts.updated(placement.experts_of(self.groups.experts.rank()));
                optimizer::step_of(training, experts.state(), &updated, t, &factor);
            }
        });
        Ok(())
    }
}

impl Rank<'_> {
    /// Moves the biases for the choice of experts against the choices of the iteration, summed over the stage.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn balance_selection(&self, stats: &[Vec<LayerStats>]) -> Result<(), TrainError> {
        let selection = &self.stage.gates.selection;
        if selection.is_empty() {
            return Ok(());
        }
        let own: Vec<i64> = self.sum_by_expert(stats, |of| &of.chosen).concat();
        let own = to_device(&Tensor::from_slice(&own), self.device);
        let (Setup { job, costs, .. }, plan) = (self.setup, &self.plan);
        let (activity, group) = (Activity::SelectionLoads, self.groups.stage());
        let loads = self.timer.wait(activity, || group.all_reduce(&own)?.wait())?;
        self.timer.collective(activity, group, online::gathering(job, plan, self.stage_number, 1, costs))?;
        let mut start = 0;
        for layer in self.stage.layers() {
            let experts = layer.experts.moe().experts as i64;
            let of_layer = loads.narrow(0, start, experts);
            start += experts;
            if let Some(index) = layer.gate.selection {
                gate::move_selection(&selection.master_of(index), &of_layer);
            }
        }
        Ok(())
    }
}

/// Sums the gradients of buckets over a group: those that a rank keeps.
fn sum(buckets: &[&Bucket], group: &dyn Communicator) -> Result<(), CommError> {
    if group.size() == 1 {
        return Ok(());
    }
    let filled = buckets.iter().filter(|bucket| !bucket.is_empty());
    let pending = filled.map(|bucket| group.sum_in_place(bucket.state().gradients())).collect::<Result<Vec<_>, _>>()?;
    pending.into_iter().try_for_each(|sum| sum.wait().map(drop))
}

impl Rank<'_> {
    /// This rank's part of the squared norm of the gradient, `[1]` in double precision. In the sum over the world, every
    /// parameter of the model counts once.
    fn squares(&self) -> Tensor {
        let Self { plan, stage, device, .. } = self;
        let square = |gradient: &Tensor| match kernels::at(*device) {
            Some(kernels) => kernels.square_sum(&gradient.to_kind(Kind::Float)),
            None => gradient.to_kind(Kind::Float).square().sum(Kind::Double),
        };
        // Parts of different replicas are of different parameters.
        let sum = |bucket: &Bucket, replicas: usize, copies: usize| {
            let replicas = if bucket.is_shared() { 1 } else { replicas };
            square(bucket.state().gradients()) / (replicas * copies) as f64
        };
        let mut total = sum(&stage.dense.sharded, plan.dp, 1)
            + sum(&stage.dense.replicated, plan.dp, plan.tp)
            + sum(&stage.gates.scores, plan.stage_ranks(), 1);
        for Layer { experts, placement, .. } in stage.layers() {
            let replicas = if experts.bucket.is_shared() { 1 } else { plan.expert_dp };
            if placement.has_copies() && experts.stand_in_slots() {
                let of_experts = first_gradients(experts, placement, self.groups.experts.rank());
                of_experts.iter().for_each(|gradient| total += square(gradient) / replicas as f64);
            } else {
                total += square(experts.state().gradients()) / replicas as f64;
            }
        }
        // The last stage holds the same sum of the gradient, if it holds the embedding.
        if self.stage_number == 0 {
            total += sum(&stage.embedding_weight, plan.dp, 1);
        }
        total.reshape([1]).to_device(*device)
    }
}
