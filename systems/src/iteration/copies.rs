//! The collectives that keep copies of experts one, after the last backward pass.

use workloads::model::{HALF, Moe};
use workloads::{Bytes, Seconds};

use crate::Storage;
use crate::iteration::moved::{Collective, Communication};
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

/// What keeps the experts of a layer one.
enum Exchange<'a> {
    /// An expert's gradients, summed over the ranks that hold it.
    Sum { placement: &'a Placement, expert: usize, bytes: Bytes },
    /// All gradients to the shards of the optimizer, and new weights back: so many bytes from each rank to each.
    Shards { gradients: Bytes, weights: Bytes },
}

impl Copies<'_> {
    /// Layer by layer; none where it is one collective over the replicas of a set of experts, no exchange where all went to their
    /// shards in the backward passes.
    fn exchanges(&self) -> Option<impl Iterator<Item = Exchange<'_>>> {
        let replicas_alone = self.storage == Storage::Slots && self.layers.iter().all(|(_, of)| !of.has_copies());
        (!replicas_alone).then(|| self.layers.iter().flat_map(|(moe, placement)| self.of_layer(moe, placement)))
    }

    fn of_layer<'b>(&'b self, moe: &Moe, placement: &'b Placement) -> impl Iterator<Item = Exchange<'b>> + use<'b> {
        let (parameters, gradient) = (moe.expert_parameters() as f64, self.costs.gradient_bytes());
        let summed = if self.storage == Storage::Slots { placement.experts() } else { 0 };
        let bytes = Bytes(parameters * gradient);
        let sums = (0..summed).map(move |expert| Exchange::Sum { placement, expert, bytes });
        let shard = |bytes: f64| Bytes(fullest(placement) as f64 * parameters * bytes / self.plan.ep as f64);
        let sharded = self.storage == Storage::OptimizerShards;
        sums.chain(sharded.then(|| Exchange::Shards { gradients: shard(gradient), weights: shard(HALF) }))
    }

    /// The same as what ranks send each other.
    pub(super) fn communications(&self) -> Option<Vec<Communication>> {
        let group = self.plan.expert_group(self.stage, 0);
        let of = |exchange| match exchange {
            Exchange::Sum { placement, expert, bytes } => {
                let ranks = self.holders(placement, expert).collect();
                vec![Communication { collective: Collective::AllReduce, ranks, bytes, own: bytes }]
            }
            Exchange::Shards { gradients, weights } => {
                let both = [gradients, weights].map(|each| each * (group.len() - 1) as f64);
                let of = |bytes| {
                    let (collective, ranks) = (Collective::AllToAll, group.clone().collect());
                    Communication { collective, ranks, bytes, own: bytes }
                };
                both.map(of).to_vec()
            }
        };
        Some(self.exchanges()?.flat_map(of).collect())
    }

    /// How long the experts' gradients take to their sums, where that is not one all-reduce over the replicas of a set of
    /// experts: each copied expert's over the ranks that hold it, a rank's experts one after the other; or all to the shards of
    /// the optimizer. And how long new weights take back from there.
    pub fn synchronisation(&self) -> Option<[Seconds; 2]> {
        let Self { plan, costs, .. } = *self;
        let exchanges = self.exchanges()?;
        let group = costs.group(plan.expert_group(self.stage, 0), 1);
        let traffic = Traffic::all_to_all(&group);
        let (mut of_rank, mut back) = (vec![Seconds::ZERO; plan.ep], Seconds::ZERO);
        for exchange in exchanges {
            match exchange {
                Exchange::Sum { placement, expert, bytes } => {
                    let group = costs.group_of(self.holders(placement, expert));
                    let time = costs.all_reduce(&group, bytes);
                    placement.ranks_of(expert).for_each(|rank| of_rank[rank] += time);
                }
                Exchange::Shards { gradients, weights } => {
                    let time = costs.exchange(&group, &traffic, gradients);
                    of_rank.iter_mut().for_each(|of_rank| *of_rank += time);
                    back += costs.exchange(&group, &traffic, weights);
                }
            }
        }
        Some([of_rank.into_iter().fold(Seconds::ZERO, Seconds::max), back])
    }

    /// How much longer copies make the sums of gradients than they are under `chosen`, without any: those of the replicas of a set of experts are taken,
    /// too.
    pub fn beyond_replicas(&self, chosen: &Plan) -> Seconds {
        let Self { plan, costs, stage, ref layers, .. } = *self;
        let Some([gradients, weights]) = self.synchronisation() else { return Seconds::ZERO };
        let with_copies = gradients + weights;
        if plan.zero >= Zero::Gradients {
            return with_copies;
        }
        let first = stage * plan.stage_ranks();
        let replicas = costs.group(first..first + plan.stage_ranks(), chosen.ep);
        let own =
            |&(moe, _): &(&Moe, &Placement)| moe.expert_parameters() as f64 * moe.experts as f64 / chosen.ep as f64;
        let bytes = Bytes(layers.iter().map(own).sum::<f64>() * costs.gradient_bytes());
        (with_copies - costs.all_reduce(&replicas, bytes)).max(Seconds::ZERO)
    }

    /// What all ranks together send for these sums beyond what they send under `chosen`. A ring of n ranks sends the whole 2 (n - 1) times.
    pub fn moved_beyond_replicas(&self, chosen: &Plan) -> Bytes {
        let ring = |ranks: usize| 2.0 * (ranks - 1) as f64;
        let of = |exchange| match exchange {
            Exchange::Sum { placement, expert, bytes } => bytes * ring(self.holders(placement, expert).count()),
            Exchange::Shards { gradients, weights } => {
                (gradients + weights) * (self.plan.ep * (self.plan.ep - 1)) as f64
            }
        };
        let Some(exchanges) = self.exchanges() else { return Bytes::ZERO };
        let parameters = |&(moe, _): &(&Moe, &Placement)| moe.expert_parameters() as f64 * moe.experts as f64;
        let parameters: f64 = self.layers.iter().map(parameters).sum();
        let replicas = Bytes(parameters * self.costs.gradient_bytes()) * ring(chosen.expert_dp);
        (exchanges.map(of).sum::<Bytes>() - replicas).max(Bytes::ZERO)
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

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::Cluster;

    /// Four experts on two ranks, in one set and in two; the first of them on both ranks.
    #[test]
    fn copies_cost_what_replicas_do_not() {
        let costs = CostModel::new(&Cluster::named("test", "inky").unwrap(), 4);
        let moe = Moe::plain(8, 64, 256, 4);
        let slots = [Some(0), Some(1), None, Some(2), Some(3), Some(0)];
        let placed = Placement::of_slots(slots.to_vec(), 4, 2).unwrap();
        let gradients = |experts: f64| Bytes(experts * moe.expert_parameters() as f64 * costs.gradient_bytes());
        let beyond = |expert_dp: usize, placement: &Placement| {
            let plan = Plan { dp: 2 * expert_dp, ep: 2, expert_dp, ..Plan::default() };
            let layers = vec![(&moe, placement)];
            Copies { plan: &plan, costs: &costs, stage: 0, storage: Storage::Slots, layers }.beyond_replicas(&plan)
        };
        let moved = |expert_dp: usize, placement: &Placement| {
            let plan = Plan { dp: 2 * expert_dp, ep: 2, expert_dp, ..Plan::default() };
            let layers = vec![(&moe, placement)];
            Copies { plan: &plan, costs: &costs, stage: 0, storage: Storage::Slots, layers }
                .moved_beyond_replicas(&plan)
        };
        // One copy more in each set: twice its gradients.
        assert_eq!([moved(1, &placed), moved(2, &placed)], [gradients(2.0), gradients(4.0)]);
        assert_eq!(moved(2, &Placement::identity(4, 2)), Bytes::ZERO);
        assert_eq!(beyond(1, &placed), costs.all_reduce(&costs.group(0..2, 1), gradients(1.0)));
        assert_eq!(beyond(2, &Placement::identity(4, 2)), Seconds::ZERO);
        let replicas = |bytes| costs.all_reduce(&costs.group(0..4, 2), bytes);
        let expected = costs.all_reduce(&costs.group(0..4, 1), gradients(1.0)) + replicas(gradients(1.0)) * 2.0
            - replicas(gradients(2.0));
        // Where replicas share optimizer state, theirs is a reduce-scatter and a gather of weights: as long.
        for zero in [Zero::Off, Zero::Optimizer] {
            let plan = Plan { dp: 4, ep: 2, expert_dp: 2, zero, ..Plan::default() };
            let layers = vec![(&moe, &placed)];
            let of = Copies { plan: &plan, costs: &costs, stage: 0, storage: Storage::Slots, layers };
            assert_eq!(of.beyond_replicas(&plan), beyond(2, &placed), "{zero:?}");
            assert!(of.communications().unwrap().iter().all(|of| of.collective == Collective::AllReduce));
        }
        let found = beyond(2, &placed);
        assert!((found - expected).0.abs() < 1e-9 * expected.0 && expected > Seconds::ZERO, "{found:?} {expected:?}");
    }
}
