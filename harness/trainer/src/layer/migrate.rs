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
    let [before, after] = [&layer.placement, next].map(|placement| placement.filled(me));
    layer.experts.hold(before.max(after));
    let bucket = layer.experts.state();
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
    let row = |of: &Tensor, slot: usize| layer.experts.kept_row(of, slot);
    let held = |slot: usize| state.iter().map(|of| row(of, slot).copy()).collect::<Vec<_>>();
    let changed = changed_slots(&layer.placement, next, me);
    // What these slots get, by expert; of an expert that the rank has already, from the first slot.
    let mut staged: BTreeMap<usize, Vec<Tensor>> = BTreeMap::new();
    for &(_, expert) in &changed {
        if let Some(slot) = layer.placement.slot_on(me, expert) {
            staged.entry(expert).or_insert_with(|| held(slot));
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
            let shape = [layer.experts.kept() as i64];
            let receive = |of: &&Tensor| group.receive(&shape, of.kind(), from)?.wait();
            staged.insert(expert, state.iter().map(receive).collect::<Result<_, _>>()?);
        }
    }
    for (slot, expert) in changed {
        for (of, tensor) in state.iter().zip(staged.get(&expert).into_iter().flatten()) {
            row(of, slot).copy_(tensor);
        }
        // The optimizer steps from the single-precision copy: without it, weights that moved alone would be back after one step.
        if let (true, Some([weights, ..])) = (weights_only && !single, staged.get(&expert).map(Vec::as_slice)) {
            row(&bucket.master, slot).copy_(weights);
        }
    }
    layer.experts.hold(after);
    Ok(())
}

/// The slots of a rank that get another expert, and which.
fn changed_slots(now: &Placement, next: &Placement, rank: usize) -> Vec<(usize, usize)> {
    let slots = now.experts_of(rank).iter().zip(next.experts_of(rank)).enumerate();
    slots.filter_map(|(slot, (before, after))| Some((slot, after.filter(|_| before != after)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is staged for an expert that stays, nor for a slot that is left empty.
    #[test]
    fn slots_that_keep_their_expert_do_not_change() {
        let slots = |of: [i32; 8]| of.iter().map(|&expert| usize::try_from(expert).ok()).collect();
        let now = Placement::of_slots(slots([0, 1, 2, -1, 3, 1, -1, 2]), 4, 2).unwrap();
        let next = Placement::of_slots(slots([0, 3, -1, 1, 3, 2, 1, 2]), 4, 2).unwrap();
        assert_eq!(changed_slots(&now, &next, 0), [(1, 3), (3, 1)]);
        assert_eq!(changed_slots(&now, &next, 1), [(1, 2), (2, 1)]);
        assert_eq!(changed_slots(&now, &now, 0), []);
    }
}
