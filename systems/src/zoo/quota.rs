//! Quota replication: after the gate, on the exact loads of a micro-batch, experts of too full ranks get copies on other ranks
//! of their node, and each copy a quota of entries.
//!
//! *UltraEP* (2026): the least bound on every rank's load for which copies of at least 1024 entries suffice. *MoonEP*: the
//! mean, with copies of any size and room for as many as a rank has experts. *Least-loaded expert parallelism*: experts in
//! turn, up to 10% above the mean at home, the rest in chunks to the rank with the least to do; plain below 1.3 times the mean. All
//! in [`crate::balance::quota`]. Weights go to copies before the forward pass and again ahead of the backward pass, because
//! room for copies is shared by all layers; gradients return behind the attention's backward pass. Nothing moves for good.
//! *Offline*: all pools under this policy.

use workloads::model::Moe;

use crate::balance::quota::{self, Homes, LeastLoaded, Limits};
use crate::plan::search;
use crate::program::Weights;
use crate::program::split::{self, Split};
use crate::{About, Candidate, CostModel, Job, LayerProgram, Placement, Plan, Policy, RoutingCounts, System};

/// A system that replicates for one micro-batch.
pub struct Quota {
    about: About,
    rule: Rule,
}

/// How copies and quotas are found.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Ultra,
    Moon,
    LeastLoaded,
}

/// UltraEP.
pub static ULTRAEP: Quota = Quota {
    about: About {
        name: "ultraep",
        title: "UltraEP",
        summary: "Per micro-batch, copies of hot experts within the node and a quota for each, 2 extra slots a rank (UltraEP 2026)",
    },
    rule: Rule::Ultra,
};

/// MoonEP.
pub static MOONEP: Quota = Quota {
    about: About {
        name: "moonep",
        title: "MoonEP",
        summary: "Per micro-batch, every rank of a node brought to the mean by copies of any size, as many extra slots as experts a rank (MoonEP)",
    },
    rule: Rule::Moon,
};

/// Least-loaded expert parallelism.
pub static LEAST_LOADED: Quota = Quota {
    about: About {
        name: "least-loaded",
        title: "Least-loaded EP",
        summary: "Per micro-batch, what exceeds 1.1 times the mean goes to the least loaded rank of the node in chunks of 1024 entries, 2 extra slots a rank",
    },
    rule: Rule::LeastLoaded,
};

/// Slots of a rank for copies, but for MoonEP: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

const ULTRA: Limits = Limits { room: EXTRA_SLOTS, least: 1024, slack: 0 };
const LEAST_LOADED_RULE: LeastLoaded = LeastLoaded { cap: 110, chunk: 1024, threshold: 130, room: EXTRA_SLOTS };

impl System for Quota {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, 0, |_| true)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let nodes = CostModel::new(&job.cluster, job.gpus).nodes_of_groups(plan.ep);
        Box::new(Replicating { rule: self.rule, nodes })
    }
}

struct Replicating {
    rule: Rule,
    /// `[rank]` of a group.
    nodes: Vec<usize>,
}

impl Replicating {
    /// Slots of a rank for copies.
    fn room(&self, experts: usize, ranks: usize) -> usize {
        match self.rule {
            Rule::Moon => experts.div_ceil(ranks),
            Rule::Ultra | Rule::LeastLoaded => EXTRA_SLOTS,
        }
    }
}

impl Policy for Replicating {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::with_room(moe.experts, ranks, self.room(moe.experts, ranks))
    }

    fn program(&self, _layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let (experts, ranks) = (placement.experts(), placement.ranks());
        if ranks == 1 {
            return LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0);
        }
        // Step 1: exact loads.
        let loads = counts.loads();
        let rank_of: Vec<usize> = (0..experts).map(|expert| placement.rank_of(expert)).collect();
        let homes = Homes { rank_of: &rank_of, domain_of: &self.nodes };
        // Step 2: copies and quotas.
        let copies = match self.rule {
            Rule::Ultra => quota::replicate(&loads, homes, ULTRA),
            Rule::Moon => {
                quota::replicate(&loads, homes, Limits { room: self.room(experts, ranks), least: 1, slack: 0 })
            }
            Rule::LeastLoaded => quota::least_loaded(&loads, homes, LEAST_LOADED_RULE),
        };
        let bounds = if self.rule == Rule::LeastLoaded { 1 } else { quota::BOUNDS };
        let steps = quota::steps(experts, ranks, copies.len(), bounds);
        // Step 3: a slot for each copy.
        let (copied, split) = split::in_slots(&loads, &copies, placement);
        LayerProgram::split(split, copied, Weights::Copied, steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Rows;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    /// Rows of every rank under each rule, over random counts: all entries served once, no rank above what it had, and copies in the
    /// home's node alone.
    #[test]
    fn copies_serve_every_entry_once() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for (experts, ranks, node) in [(8, 4, 4), (16, 16, 8), (64, 8, 4), (32, 1, 1)] {
            for _ in 0..30 {
                let hot: Vec<u32> =
                    (0..experts).map(|_| 1 + random.next_u32() % 4000 * (random.next_u32() % 4 / 3)).collect();
                let counts =
                    (0..ranks).flat_map(|_| hot.iter().map(|&hot| random.next_u32() % hot).collect::<Vec<_>>());
                let counts = RoutingCounts::new(experts, counts.collect());
                for rule in [Rule::Ultra, Rule::Moon, Rule::LeastLoaded] {
                    let policy = Replicating { rule, nodes: (0..ranks).map(|rank| rank / node).collect() };
                    let placement = policy.first_placement(0, &Moe::plain(1, 1, 1, experts), ranks);
                    let program = policy.program(0, &counts, &placement);
                    let rows = Rows::new(&program, &counts, &placement);
                    let plain = LayerProgram::expert_parallel();
                    let before = Rows::new(&plain, &counts, &placement);
                    let mut to = vec![0; ranks * placement.slots_per_rank()];
                    let load = |rows: &Rows, owner| -> u64 {
                        let all =
                            (0..ranks).flat_map(|source| (0..rows.slots_per_rank()).map(move |slot| (source, slot)));
                        all.map(|(source, slot)| u64::from(rows.sent(source, owner, slot))).sum()
                    };
                    let most = |rows: &Rows| (0..ranks).map(|owner| load(rows, owner)).max();
                    assert!(most(&rows) <= most(&before));
                    for source in 0..ranks {
                        rows.to_slots(source, &mut to);
                        let mut served = vec![0; experts];
                        for owner in 0..ranks {
                            for (slot, expert) in rows.experts_of(owner).iter().enumerate() {
                                let sent = to[owner * placement.slots_per_rank() + slot];
                                assert_eq!(sent, rows.sent(source, owner, slot));
                                expert.iter().for_each(|&expert| served[expert] += sent);
                            }
                        }
                        assert_eq!(served, counts.row(source));
                    }
                    for copy in &program.copies {
                        let rank = copy.slot / placement.slots_per_rank();
                        assert_eq!(rank / node, placement.rank_of(copy.expert) / node);
                    }
                }
            }
        }
    }
}
