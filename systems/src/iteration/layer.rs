//! One MoE layer alone, forward and backward: what layer studies measure. The same prices and the same two streams per
//! rank as in a whole iteration.

use workloads::Seconds;
use workloads::model::Moe;

use crate::plan::placement::Placement;
use crate::price::cost::CostModel;
use crate::price::ledger::{Ledger, Phase};
use crate::price::streams::Streams;
use crate::price::{GroupPlace, price};
use crate::program::LayerProgram;
use crate::program::routing::RoutingCounts;

/// Time from the common start of all ranks to the end of the last, for one micro-batch of `tokens` tokens on each rank.
pub fn time(
    program: &LayerProgram,
    counts: &RoutingCounts,
    placement: &Placement,
    moe: &Moe,
    tokens: usize,
    place: &GroupPlace,
    costs: &CostModel,
) -> Seconds {
    run(program, counts, placement, moe, tokens, place, costs).0
}

/// The same, and what the ranks' time went to: the mean over ranks, waiting for the last one included.
pub fn run(
    program: &LayerProgram,
    counts: &RoutingCounts,
    placement: &Placement,
    moe: &Moe,
    tokens: usize,
    place: &GroupPlace,
    costs: &CostModel,
) -> (Seconds, Ledger) {
    let priced = price(program, counts, placement, moe, tokens, place, costs);
    let mut clock = vec![Seconds::ZERO; counts.ranks()];
    let mut sums = Ledger::default();
    let mut streams = Streams::default();
    streams.run(&program.forward, &priced.forward, program.steps, &mut clock, &mut sums, |_, _, _| ());
    streams.run(&program.backward, &priced.backward, program.steps, &mut clock, &mut sums, |_, _, _| ());
    let end = clock.into_iter().fold(Seconds::ZERO, Seconds::max);
    let mut ledger = Ledger::default();
    ledger.merge(&sums, 1.0 / counts.ranks() as f64);
    ledger.add(Phase::Wait, (end - ledger.total()).max(Seconds::ZERO));
    (end, ledger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::Cluster;

    /// All prices linear: an empty layer costs the constant part, and each of the ranks' rows is counted once.
    #[test]
    fn the_fullest_rank_decides() {
        let cluster = Cluster::named("test", "nico").unwrap();
        let costs = CostModel::new(&cluster);
        let moe = Moe { tokens: 64, width: 256, inner: 512, experts: 4 };
        let place = GroupPlace { group: costs.group(0..2, 1), nodes: vec![0, 0] };
        let placement = Placement::identity(4, 2);
        let layer = |counts: [u32; 8]| {
            let counts = RoutingCounts::new(4, counts.to_vec());
            time(&LayerProgram::expert_parallel(), &counts, &placement, &moe, 64, &place, &costs)
        };
        let even = layer([32, 32, 32, 32, 32, 32, 32, 32]);
        let local = layer([64, 64, 0, 0, 0, 0, 64, 64]);
        let skewed = layer([64, 64, 0, 0, 64, 64, 0, 0]);
        assert!(local < even, "what stays on its rank does not travel");
        let rows = costs.expert_forward(&moe).of(128) + costs.expert_backward(&moe).of(128);
        let half = costs.expert_forward(&moe).of(64) + costs.expert_backward(&moe).of(64);
        let difference = (skewed - even).0 - 2.0 * (rows - half).0;
        let travel = moe.entry_bytes() / workloads::BytesPerSecond(cluster.network.intra_bandwidth.value);
        assert!((difference - travel.0 * 4.0 * 64.0).abs() < 1e-9, "{difference}");
    }
}
