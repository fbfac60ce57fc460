//! Who sends how much to whom for the MoE layers of an iteration. For people to look at: no price depends on it.

use workloads::Bytes;

use crate::iteration::Evaluation;
use crate::plan::Recompute;
use crate::program::Rows;
use crate::program::routing::RoutingCounts;

impl Evaluation<'_> {
    /// Bytes from rank to rank, `[from][to]`: rows of every dispatch and combine of the iteration, forward and backward, from
    /// the rank of the token straight to that of the expert and back, whatever way an exchange goes. What a rank keeps does
    /// not travel. Weights of copied and shadowed experts are left out.
    pub fn exchanged(&self) -> Vec<Vec<Bytes>> {
        let (job, plan, policy) = (self.job, self.plan, self.policy);
        let world = plan.pp * plan.stage_ranks();
        let mut sums = vec![vec![Bytes::ZERO; world]; world];
        // Forward and backward; a full recomputation goes forward again.
        let passes = if policy.recompute(plan) == Recompute::Full { 3.0 } else { 2.0 };
        let mut counts = RoutingCounts::new(1, Vec::new());
        for (layer, (block, moe)) in job.model.moe_blocks().into_iter().zip(job.model.moe_layers()).enumerate() {
            let placement = &self.placements[layer];
            let stage = plan.stage_of(job, block);
            let row = moe.entry_bytes() * passes;
            for group in 0..plan.expert_dp {
                let ranks = plan.expert_group(stage, group);
                let place = self.costs.group(ranks.clone(), 1);
                for m in 0..plan.micro_batches(job) {
                    self.count([group, m], layer, moe, place.nodes(), &mut counts);
                    let program = policy.program(layer, &counts, placement);
                    let rows = Rows::new(&program, &counts, placement);
                    add(&mut sums, ranks.start, &rows, row);
                }
            }
        }
        sums
    }
}

/// Adds the rows of a group of ranks that begins at `first`, there and back, of `row` bytes each.
fn add(sums: &mut [Vec<Bytes>], first: usize, rows: &Rows, row: Bytes) {
    let (ranks, slots) = (rows.ranks(), rows.slots_per_rank());
    let mut sent = vec![0; ranks * slots];
    for source in 0..ranks {
        rows.to_slots(source, &mut sent);
        for (owner, of_owner) in sent.chunks_exact(slots).enumerate().filter(|(owner, _)| *owner != source) {
            let bytes = row * of_owner.iter().map(|&rows| f64::from(rows)).sum::<f64>();
            sums[first + source][first + owner] += bytes;
            sums[first + owner][first + source] += bytes;
        }
    }
}
