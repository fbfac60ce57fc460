//! Moves the experts of one layer to other ranks, weights and optimizer state.

use systems::Placement;
use tch::{Kind, Tensor};

use crate::comm::Communicator;
use crate::error::TrainError;
use crate::layer::moe::Layer;

/// Moves experts so that every rank's slots hold what `next` says. The caller replaces `layer.placement`.
///
/// An expert that changes rank takes along what the system says: all state (weights, master weights, both moments), or, for
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
    let mut staged: Vec<(usize, Vec<Tensor>)> = Vec::new();
    for expert in 0..next.experts() {
        let (from, to) = (layer.placement.rank_of(expert), next.rank_of(expert));
        let (old, new) = (layer.placement.slot_on(me, expert), next.slot_on(me, expert));
        let held = |slot: usize| state.iter().map(|of| row(of, slot).copy()).collect::<Vec<_>>();
        match (old, new) {
            (Some(old), Some(new)) if old != new => staged.push((new, held(old))),
            (Some(old), None) => {
                for tensor in held(old) {
                    let _ = group.send(&tensor, to)?.wait()?;
                }
            }
            (None, Some(new)) => {
                let shape = [layer.experts.moe().expert_parameters() as i64];
                let receive = |of: &&Tensor| group.receive(&shape, of.kind(), from)?.wait();
                staged.push((new, state.iter().map(receive).collect::<Result<_, _>>()?));
            }
            _ => {}
        }
    }
    for (slot, tensors) in staged {
        for (of, tensor) in state.iter().zip(tensors) {
            row(of, slot).copy_(&tensor);
        }
    }
    Ok(())
}
