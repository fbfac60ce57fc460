//! What the slots of a stage's experts make its ranks hold.

use workloads::cluster::Activations;
use workloads::model::{HALF, Moe};
use workloads::{Bytes, Cluster};

use crate::Storage;
use crate::plan::job::Job;
use crate::plan::memory::{OPTIMIZER_BYTES, gradient_bytes};
use crate::plan::placement::Placement;
use crate::plan::{Plan, Zero};

/// A half-precision weight, and a gradient that is summed in single precision on its way home.
const COPY_BYTES_PER_PARAMETER: f64 = 2.0 + 4.0;

/// What the experts' slots make the fullest rank of a stage hold.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotState {
    /// Parameters with all of their state: weight, gradient, optimizer state.
    pub parameters: f64,
    /// Bytes of a parameter's gradient, as it is held and summed over copies.
    pub gradient: f64,
    /// Besides: weights and gradients without optimizer state, and room for copies.
    pub bytes: Bytes,
}

impl SlotState {
    /// Of the MoE layers of a stage.
    pub fn new<'a>(
        storage: Storage,
        plan: &Plan,
        cluster: &Cluster,
        layers: impl Iterator<Item = (&'a Moe, &'a Placement)>,
    ) -> Self {
        let (gradient, counted) = (gradient_bytes(cluster), cluster.program.activations == Activations::Counted);
        let (mut state, mut room) = (Self { gradient, ..Self::default() }, Bytes::ZERO);
        for (moe, placement) in layers {
            let rank = |rank| placement.experts_of(rank).iter().flatten().count();
            let (least, most) = (0..placement.ranks())
                .map(rank)
                .fold((usize::MAX, 0), |(least, most), filled| (least.min(filled), most.max(filled)));
            let size = moe.expert_parameters() as f64;
            let (share, filled) = (placement.experts() as f64 / placement.ranks() as f64 * size, most as f64 * size);
            let all = placement.slots_per_rank() as f64 * size;
            let held = HALF + gradient;
            let of_copies = Bytes((all - least as f64 * size) * COPY_BYTES_PER_PARAMETER);
            state.parameters += if storage == Storage::Slots { filled } else { share };
            match storage {
                // The trainer's layers have slots for copies of their own, with weights and gradients, and shards of optimizer state have both
                // beside those in slots. Gradients on their way from copies are left out.
                Storage::Slots if counted && plan.expert_shares(Zero::Weights) > 1.0 => {
                    // Replicas keep an equal part of all slots, of copies, too; those of one layer are whole.
                    state.bytes += Bytes((all - filled) * (held + OPTIMIZER_BYTES) / plan.expert_shares(Zero::Weights));
                    room = room.max(Bytes((all - filled) * held));
                }
                Storage::Slots if counted => state.bytes += Bytes((all - filled) * held),
                Storage::OptimizerShards if counted => state.bytes += Bytes(all * held),
                // Room for copies of one micro-batch is shared by all layers.
                Storage::Slots => room = room.max(of_copies),
                Storage::OptimizerShards => {
                    state.bytes += Bytes((filled - share) * held);
                    room = room.max(of_copies);
                }
                // The weights of the layer at hand and of the next, and the gradients of one.
                Storage::Shards | Storage::Parts => {
                    room = room.max(Bytes(all * (HALF + COPY_BYTES_PER_PARAMETER)));
                }
            }
        }
        state.bytes += room;
        state
    }
}

/// The MoE layers of a stage and their placements, from those of all layers.
pub fn layers_of<'a>(
    job: &'a Job,
    plan: &'a Plan,
    stage: usize,
    placements: &'a [Placement],
) -> impl Iterator<Item = (&'a Moe, &'a Placement)> + Clone {
    let layers = job.model.moe_blocks().into_iter().zip(job.model.moe_layers().zip(placements));
    layers.filter(move |(block, _)| plan.stage_of(job, *block) == stage).map(|(_, layer)| layer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Zero;
    use workloads::cluster::{Constant, Program};
    use workloads::{Gate, Model};

    /// Eight experts on four ranks with four slots each, two layers on each of two stages; in the last layer one rank holds four.
    #[test]
    fn slots_hold_what_their_storage_and_the_program_say() {
        let model = Model::named("test", "gpt-tiny").unwrap();
        let job = Job::new(model, Cluster::named("test", "inky").unwrap(), 8, Gate::NoDrop, 16);
        let plan = Plan { pp: 2, dp: 4, tp: 1, ep: 4, expert_dp: 1, micro_batch: 1, ..Plan::default() };
        let moe = job.model.moe_layers().next().unwrap();
        let size = moe.expert_parameters() as f64;
        let plain = Placement::in_order(8, 4, 4).unwrap();
        let copies = plain.with([(7, 2), (6, 3)].into_iter());
        let placements = [plain.clone(), plain.clone(), plain, copies];
        let trained = |activations| {
            let gradient = Constant { value: 4.0, ..job.cluster.gpu.memory.clone() };
            let program = Program { gradient: Some(gradient), activations, ..Program::default() };
            Cluster { program, ..job.cluster.clone() }
        };
        for cluster in [job.cluster.clone(), trained(Activations::Published), trained(Activations::Counted)] {
            let gradient = gradient_bytes(&cluster);
            let check = |storage, parameters: f64, bytes: f64| {
                let found = SlotState::new(storage, &plan, &cluster, layers_of(&job, &plan, 1, &placements));
                let expected = SlotState { parameters: parameters * size, gradient, bytes: Bytes(bytes * size) };
                assert_eq!(found, expected, "{storage:?}");
            };
            // Of the last layer's four slots, one rank has filled all and another two; in the layer before it each has filled two.
            if cluster.program.activations == Activations::Counted {
                check(Storage::Slots, 2.0 + 4.0, 2.0 * (2.0 + gradient));
                check(Storage::OptimizerShards, 4.0, 8.0 * (2.0 + gradient));
            } else {
                check(Storage::Slots, 2.0 + 4.0, 2.0 * 6.0);
                check(Storage::OptimizerShards, 4.0, 2.0 * (2.0 + gradient) + 2.0 * 6.0);
            }
            check(Storage::Shards, 4.0, 4.0 * 8.0);
            let plan = Plan { ep: 4, expert_dp: 2, zero: Zero::Weights, ..plan };
            let found = SlotState::new(Storage::Slots, &plan, &cluster, layers_of(&job, &plan, 1, &placements));
            let of_two = match cluster.program.activations {
                Activations::Counted => 2.0 * (2.0 + gradient + 12.0) / 2.0 + 2.0 * (2.0 + gradient),
                Activations::Published => 2.0 * 6.0,
            };
            assert_eq!((found.parameters, found.bytes), (6.0 * size, Bytes(of_two * size)));
            // Eight experts on four ranks, two of which share each: halves of four, and room for these, whole, of two layers.
            let in_parts = [moe; 2].map(|moe| (moe, Placement::in_parts(8, 4, 2)));
            let layers = in_parts.iter().map(|(moe, placement)| (*moe, placement));
            let found = SlotState::new(Storage::Parts, &plan, &cluster, layers);
            assert_eq!((found.parameters, found.bytes), (4.0 * size, Bytes(4.0 * 8.0 * size)));
        }
    }
}
