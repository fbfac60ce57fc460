//! Moves the experts of one layer to other slots, weights and optimizer state.

use std::collections::BTreeMap;

use systems::Placement;
use systems::plan::placement::Move;
use tch::{Kind, Tensor};

use crate::comm::Communicator;
use crate::error::TrainError;
use crate::layer::moe::Layer;

/// Moves experts so that every rank's slots hold what `next` says. The caller replaces `layer.placement`.
///
/// A copy of an expert that comes to a rank takes along what the system says: all state (weights, master weights, both moments), or, for
/// fewer bytes per parameter, the weights alone; then the new expert of a slot finds the old one's optimizer state. Blocking, in
/// the order of experts, so two ranks never wait for each other.
///
/// # Errors
/// A peer that died.
pub fn migrate(
    layer: &mut Layer,
    next: &Placement,
    group: &dyn Communicator,
    bytes_per_parameter: f64,
) -> Result<(), TrainError> {
    let me = group.rank();
    let bucket = &layer.experts.bucket;
    // A migration of 0 bytes is a simulated upper bound; here everything has to move.
    let weights_only =
        bytes_per_parameter > 0.0 && bytes_per_parameter < systems::plan::memory::MIGRATED_BYTES_PER_PARAMETER;
    let single = bucket.weights.kind() == Kind::Float;
    let mut state: Vec<&Tensor> = vec![&bucket.weights];
    if !weights_only {
        state.extend([&bucket.first, &bucket.second]);
        if !single {
            state.push(&bucket.master);
        }
    }
    let row = |of: &Tensor, slot: usize| layer.experts.row(of, slot);
    let held = |slot: usize| state.iter().map(|of| row(of, slot).copy()).collect::<Vec<_>>();
    // What its slots get, by expert; of an expert that it has already, from the first slot.
    let mut staged: BTreeMap<usize, Vec<Tensor>> = BTreeMap::new();
    for expert in next.experts_of(me).iter().flatten() {
        if let Some(slot) = layer.placement.slot_on(me, *expert) {
            staged.entry(*expert).or_insert_with(|| held(slot));
        }
    }
    for Move { expert, from, to } in layer.placement.moves_to(next) {
        if from == me {
            let slot = layer.placement.slot_on(me, expert);
            let slot = slot.ok_or_else(|| TrainError::Program(format!("expert {expert}, which is not on its rank")))?;
            for tensor in held(slot) {
                let _ = group.send(&tensor, to)?.wait()?;
            }
        } else if to == me {
            let shape = [layer.experts.moe().expert_parameters() as i64];
            let receive = |of: &&Tensor| group.receive(&shape, of.kind(), from)?.wait();
            staged.insert(expert, state.iter().map(receive).collect::<Result<_, _>>()?);
        }
    }
    for (slot, expert) in next.experts_of(me).iter().enumerate() {
        let stays = *expert == layer.placement.experts_of(me).get(slot).copied().flatten();
        let Some(tensors) = expert.filter(|_| !stays).and_then(|expert| staged.get(&expert)) else { continue };
        for (of, tensor) in state.iter().zip(tensors) {
            row(of, slot).copy_(tensor);
        }
    }
    Ok(())
}
