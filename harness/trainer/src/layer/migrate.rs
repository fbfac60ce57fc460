//! Moves the experts of one layer to their new places, weights and optimizer state.

use systems::Placement;
use tch::{Kind, Tensor};

use crate::TrainError;
use crate::comm::Communicator;
use crate::layer::Layer;

/// Moves experts so that every rank's slots hold what `next` says; `layer.placement` stays for the caller to replace.
///
/// Every expert that changes rank takes along what a system says is moved: all state (master weights, both moments, and
/// the weights that follow from them), or, below that, the weights alone, which leaves the optimizer state of the slot to
/// whoever moves in. Blocking, in expert order: two ranks never wait for each other.
///
/// # Errors
/// A rank that died.
pub fn migrate(
    layer: &mut Layer,
    next: &Placement,
    group: &dyn Communicator,
    bytes_per_parameter: f64,
) -> Result<(), TrainError> {
    let me = group.rank();
    let bucket = &layer.experts.bucket;
    // Moving for free is a simulated upper bound; here everything has to move.
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
    let slot_in = |placement: &Placement, expert: usize| placement.experts_of(me).iter().position(|&e| e == expert);
    let row = |of: &Tensor, slot: usize| layer.experts.row(of, slot);
    let mut staged: Vec<(usize, Vec<Tensor>)> = Vec::new();
    for expert in 0..next.experts() {
        let (from, to) = (layer.placement.rank_of(expert), next.rank_of(expert));
        let (old, new) = (slot_in(&layer.placement, expert), slot_in(next, expert));
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
