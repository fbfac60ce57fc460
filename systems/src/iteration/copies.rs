//! The collectives that keep copies of experts one, after the last backward pass.

use workloads::model::HALF;
use workloads::{Bytes, Seconds};

use crate::Storage;
use crate::iteration::Evaluation;
use crate::plan::Zero;
use crate::plan::placement::Placement;
use crate::plan::slots::layers_of;
use crate::price::traffic::Traffic;

/// How long the experts' gradients of `stage` take to their sums, where that is not one all-reduce over the replicas of a set of
/// experts: each copied expert's over the ranks that hold it, a rank's experts one after the other; or all to the shards of
/// the optimizer, and the new weights back.
pub(super) fn synchronisation(evaluation: &Evaluation, stage: usize) -> Option<Seconds> {
    let Evaluation { job, plan, costs, policy, placements, .. } = *evaluation;
    let layers = || layers_of(job, plan, stage, placements);
    match policy.storage() {
        // They went to their shards in the backward passes.
        Storage::Shards => Some(Seconds::ZERO),
        Storage::OptimizerShards => {
            let group = costs.group(plan.expert_group(stage, 0), 1);
            let traffic = Traffic::all_to_all(&group);
            let of_layer = |filled: usize, parameters: u64| {
                let shard = Bytes(filled as f64 * parameters as f64 * HALF / group.size() as f64);
                costs.exchange(&group, &traffic, shard) * 2.0
            };
            Some(layers().map(|(moe, placement)| of_layer(fullest(placement), moe.expert_parameters())).sum())
        }
        Storage::Slots if layers().all(|(_, placement)| !placement.has_copies()) => None,
        Storage::Slots => {
            let mut of_rank = vec![Seconds::ZERO; plan.ep];
            for (moe, placement) in layers() {
                let bytes = Bytes(moe.expert_parameters() as f64 * HALF);
                for expert in 0..placement.experts() {
                    let group = costs.group_of(holders(evaluation, stage, placement, expert));
                    let time = match plan.zero {
                        Zero::Off => costs.all_reduce(&group, bytes),
                        _ => costs.reduce_scatter(&group, bytes),
                    };
                    placement.ranks_of(expert).for_each(|rank| of_rank[rank] += time);
                }
            }
            Some(of_rank.into_iter().fold(Seconds::ZERO, Seconds::max))
        }
    }
}

/// Experts of the rank with most.
fn fullest(placement: &Placement) -> usize {
    (0..placement.ranks()).map(|rank| placement.experts_of(rank).iter().flatten().count()).max().unwrap_or(0)
}

/// Global ranks that hold an expert, in every expert-data-parallel replica.
fn holders<'a>(
    evaluation: &Evaluation<'a>,
    stage: usize,
    placement: &'a Placement,
    expert: usize,
) -> impl Iterator<Item = usize> + Clone + 'a {
    let plan = evaluation.plan;
    let slots = placement.slots_of(expert);
    let per_rank = placement.slots_per_rank();
    let first = move |at: &usize| *at == 0 || slots[*at] / per_rank != slots[*at - 1] / per_rank;
    (0..plan.expert_dp).flat_map(move |group| {
        let start = plan.expert_group(stage, group).start;
        (0..slots.len()).filter(first).map(move |at| start + slots[at] / per_rank)
    })
}
