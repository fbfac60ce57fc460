//! The collectives that keep copies of experts one, after the last backward pass.

use workloads::model::{HALF, Moe};
use workloads::{Bytes, Seconds};

use crate::Storage;
use crate::plan::placement::Placement;
use crate::plan::{Plan, Zero};
use crate::price::cost::CostModel;
use crate::price::traffic::Traffic;

/// The experts' slots of a stage between its last backward pass and its optimizer.
pub struct Copies<'a> {
    /// As it is evaluated.
    pub plan: &'a Plan,
    /// At which prices.
    pub costs: &'a CostModel,
    /// Number of the stage.
    pub stage: usize,
    /// Where the state of experts is.
    pub storage: Storage,
    /// The MoE layers of the stage, and where their experts are.
    pub layers: Vec<(&'a Moe, &'a Placement)>,
}

impl Copies<'_> {
    /// How long the experts' gradients take to their sums, where that is not one all-reduce over the replicas of a set of
    /// experts: each copied expert's over the ranks that hold it, a rank's experts one after the other; or all to the shards of
    /// the optimizer, and the new weights back.
    pub fn synchronisation(&self) -> Option<Seconds> {
        let Self { plan, costs, ref layers, .. } = *self;
        match self.storage {
            // They went to their shards in the backward passes.
            Storage::Shards => Some(Seconds::ZERO),
            Storage::OptimizerShards => {
                let group = costs.group(plan.expert_group(self.stage, 0), 1);
                let traffic = Traffic::all_to_all(&group);
                let of_layer = |filled: usize, parameters: u64| {
                    let shards = |bytes: f64| Bytes(filled as f64 * parameters as f64 * bytes / group.size() as f64);
                    let [gradients, weights] = [costs.gradient_bytes(), HALF].map(shards);
                    costs.exchange(&group, &traffic, gradients) + costs.exchange(&group, &traffic, weights)
                };
                let layers = layers.iter();
                Some(layers.map(|(moe, placement)| of_layer(fullest(placement), moe.expert_parameters())).sum())
            }
            Storage::Slots if layers.iter().all(|(_, placement)| !placement.has_copies()) => None,
            Storage::Slots => {
                let mut of_rank = vec![Seconds::ZERO; plan.ep];
                for (moe, placement) in layers {
                    let bytes = Bytes(moe.expert_parameters() as f64 * costs.gradient_bytes());
                    for expert in 0..placement.experts() {
                        let group = costs.group_of(self.holders(placement, expert));
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

    /// Global ranks that hold an expert, in every expert-data-parallel replica.
    fn holders<'b>(&'b self, placement: &'b Placement, expert: usize) -> impl Iterator<Item = usize> + Clone + 'b {
        let plan = self.plan;
        let slots = placement.slots_of(expert);
        let per_rank = placement.slots_per_rank();
        let first = move |at: &usize| *at == 0 || slots[*at] / per_rank != slots[*at - 1] / per_rank;
        (0..plan.expert_dp).flat_map(move |group| {
            let start = plan.expert_group(self.stage, group).start;
            (0..slots.len()).filter(first).map(move |at| start + slots[at] / per_rank)
        })
    }
}

/// Experts of the rank with most.
fn fullest(placement: &Placement) -> usize {
    (0..placement.ranks()).map(|rank| placement.experts_of(rank).iter().flatten().count()).max().unwrap_or(0)
}
