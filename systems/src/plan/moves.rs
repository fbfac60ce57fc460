//! Whether moving experts pays: what a move costs, and what an emptier fullest rank saves.

use workloads::model::Moe;
use workloads::{Bytes, Seconds};

use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::plan::{Plan, memory};
use crate::price::cost::CostModel;
use crate::program::Direction;

/// What moving the experts of one layer costs and saves.
pub struct Moves {
    /// First rank of the stage's first expert-parallel group, and such groups of the stage.
    first: usize,
    groups: usize,
    expert: Bytes,
    /// What an entry fewer on the busiest rank saves: it is computed and exchanged, forward and backward.
    entry: Seconds,
}

/// The [`Moves`] of every MoE layer.
pub fn moves(job: &Job, plan: &Plan, costs: &CostModel, bytes_per_parameter: f64) -> Vec<Moves> {
    let of_layer = |(block, moe): (usize, &Moe)| {
        let ranks = plan.expert_group(plan.stage_of(job, block), 0);
        let row = |direction| costs.expert(moe, direction).row;
        Moves {
            first: ranks.start,
            groups: plan.expert_dp,
            expert: Bytes(moe.expert_parameters() as f64 * memory::migrated(plan, bytes_per_parameter)),
            entry: row(Direction::Forward)
                + row(Direction::Backward)
                + moe.entry_bytes() * 4.0 / costs.rank_bandwidth(&costs.group(ranks, 1)),
        }
    };
    job.model.moe_blocks().into_iter().zip(job.model.moe_layers()).map(of_layer).collect()
}

impl Moves {
    /// Whether going from `now` to `next` wins back its cost in `iterations` like the `seen` ones that `loads` are the sum of.
    pub fn pay(
        &self,
        costs: &CostModel,
        loads: &[u64],
        [now, next]: [&Placement; 2],
        seen: usize,
        iterations: usize,
    ) -> bool {
        let fewer = (now.max_rank_load(loads) - next.max_rank_load(loads)) as f64 / (seen * self.groups) as f64;
        let cost = costs.migration(self.first, now.ranks(), &now.moves_to(next), self.expert);
        self.entry * (fewer * iterations as f64) > cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::{Cluster, Gate, Model};

    /// Rank 0 has 300 entries an iteration more than it would after one expert leaves it.
    #[test]
    fn a_move_pays_where_what_it_saves_is_more_than_it_costs() {
        let job = Job::new(
            Model::of_layer(Moe::plain(1024, 512, 1024, 4), 1),
            Cluster::named("test", "nico").unwrap(),
            2,
            Gate::NoDrop,
            2,
        );
        let plan = Plan { dp: 2, ep: 2, placement_every: 10, ..Plan::default() };
        let costs = CostModel::new(&job.cluster, job.gpus);
        let moe = Moe::plain(1024, 512, 1024, 4);
        let (now, next) = (Placement::identity(4, 2), Placement::new(vec![0, 2, 1, 3], 2).unwrap());
        let loads = [6000, 3000, 0, 0];
        // Two experts change rank, one after the other; ten iterations were seen.
        let price = |bytes: f64| costs.send(0, 1, Bytes(moe.expert_parameters() as f64 * bytes)) * 2.0;
        let row = |direction| costs.expert(&moe, direction).row;
        let link = workloads::BytesPerSecond(job.cluster.network.intra_bandwidth.value);
        let entry = row(Direction::Forward) + row(Direction::Backward) + moe.entry_bytes() * 4.0 / link;
        for bytes in [2.0, 14.0, 1e3, 1e6] {
            for iterations in [1, 10, 100, 1000] {
                let saved = entry * (300.0 * iterations as f64);
                let pays = moves(&job, &plan, &costs, bytes)[0].pay(&costs, &loads, [&now, &next], 10, iterations);
                assert_eq!(pays, saved > price(bytes), "{bytes} {iterations}");
            }
        }
    }
}
