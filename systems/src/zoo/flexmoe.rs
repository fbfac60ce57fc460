//! FlexMoE (Nie et al., SIGMOD'23): copies of experts expand, shrink and migrate while training goes on.
//!
//! *Online*: when the fullest rank has more than a threshold above the mean, a few changes are made, each the one that leaves
//! the fullest rank with least ([`crate::balance::flexmoe`]). Entries are split evenly between copies. A copy's weights and
//! optimizer state move to it, and copies stay one by an all-reduce of their gradients. *Offline*: all pools under this policy.
//!
//! `flexmoe-fsep` is FlexMoE as LAER's authors ran it beside theirs (ASPLOS'26): on experts that are stored in shards over all ranks
//! and restored where the placement wants them, so that changes move nothing; entries stay in their node where it has the expert. Each
//! node changes its own copies. A node that has no copy of some expert, as where it has fewer slots than there are experts, changes
//! nothing: the loads of all nodes say little of the entries that come to it.
//!
//! Left out: that changes are made beside the training steps. Here training waits for them.

use workloads::model::Moe;

use crate::balance::flexmoe::{self, Rule};
use crate::balance::laer;
use crate::plan::{self, search};
use crate::program::Weights;
use crate::program::split::Split;
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    Storage, System,
};

/// FlexMoE, on experts that stand in slots or on experts in shards.
pub struct FlexMoe {
    about: About,
    storage: Storage,
}

/// As its authors describe it.
pub static FLEXMOE: FlexMoe = FlexMoe {
    about: About {
        name: "flexmoe",
        title: "FlexMoE",
        summary: "Copies of experts expand, shrink and migrate in 2 extra slots a rank, up to 4 changes of a layer every 10 iterations (Nie et al., SIGMOD'23)",
    },
    storage: Storage::Slots,
};

/// As LAER's authors ran it.
pub static ON_SHARDS: FlexMoe = FlexMoe {
    about: About {
        name: "flexmoe-fsep",
        title: "FlexMoE (FSEP)",
        summary: "FlexMoE's copies, restored from experts that are sharded over all ranks (a baseline of LAER, ASPLOS'26)",
    },
    storage: Storage::Shards,
};

/// Slots of a rank beyond those that hold every expert once: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

/// Iterations between decisions in plans that the search picks, and iterations whose loads a decision looks at.
const EVERY: usize = 10;

/// Not stated in the facts at hand: 10% above the mean, and at most four changes of a layer at once.
const RULE: Rule = Rule { threshold: 110, changes: 4 };

impl System for FlexMoe {
    fn about(&self) -> About {
        self.about
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        search::under_own_policy(self, job, costs, EVERY, |_| true)
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let every = plan.placement_every;
        match self.storage {
            Storage::Shards => {
                let nodes = CostModel::new(&job.cluster, job.gpus).nodes_of_groups(plan.stage_ranks());
                Box::new(AdjustingShards { of: Adjusting { every }, nodes, sets: plan.ep })
            }
            _ => Box::new(Adjusting { every }),
        }
    }
}

struct Adjusting {
    every: usize,
}

impl Policy for Adjusting {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        Placement::with_room(moe.experts, ranks, EXTRA_SLOTS)
    }

    fn placement_due(&self, iteration: usize) -> bool {
        plan::is_due(self.every, iteration)
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, EVERY, now.experts());
        let mut slots = now.experts_in_slots().to_vec();
        if flexmoe::adjust(&loads, &mut slots, now.ranks(), RULE).is_empty() {
            return Decision::Stay;
        }
        let next = Placement::of_slots(slots, now.experts(), now.ranks());
        Decision::Move(next.expect("changes leave every expert a copy"))
    }

    fn program(&self, _layer: usize, _counts: &RoutingCounts, _placement: &Placement) -> LayerProgram {
        LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0)
    }
}

/// The same on experts in shards.
struct AdjustingShards {
    of: Adjusting,
    /// `[rank]` of a stage.
    nodes: Vec<usize>,
    /// Ranks that hold every expert once at the start.
    sets: usize,
}

impl Policy for AdjustingShards {
    fn first_placement(&self, _layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let held = moe.experts.div_ceil(self.sets);
        let slots = (0..ranks * held).map(|slot| Some(slot % moe.experts)).collect();
        Placement::of_slots(slots, moe.experts, ranks).expect("every set of ranks holds every expert")
    }

    fn joins_replicas(&self) -> bool {
        true
    }

    fn storage(&self) -> Storage {
        Storage::Shards
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        0.0
    }

    fn placement_due(&self, iteration: usize) -> bool {
        self.of.placement_due(iteration)
    }

    /// Node by node: in the study's loads every node computes what its own tokens chose.
    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let loads = past.sum(layer, EVERY, now.experts());
        let mut slots = now.experts_in_slots().to_vec();
        let mut own = slots.as_mut_slice();
        for node in self.nodes.chunk_by(|a, b| a == b) {
            let (of_node, rest) = own.split_at_mut(node.len() * now.slots_per_rank());
            own = rest;
            if (0..loads.len()).all(|expert| of_node.contains(&Some(expert))) {
                flexmoe::adjust(&loads, of_node, node.len(), RULE);
            }
        }
        if slots == now.experts_in_slots() {
            return Decision::Stay;
        }
        let next = Placement::of_slots(slots, now.experts(), now.ranks());
        Decision::Move(next.expect("changes leave every expert a copy"))
    }

    fn program(&self, _layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let rows = laer::route(counts, placement.experts_in_slots(), &self.nodes);
        LayerProgram::split(Split::Rows(rows), Vec::new(), Weights::Sharded, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_copies_at_a_time() {
        let mut policy = Adjusting { every: 10 };
        let now = policy.first_placement(0, &Moe::plain(64, 8, 16, 8), 4);
        let mut past = LoadHistory::default();
        past.push(vec![vec![100, 90, 80, 70, 1, 1, 1, 1]]);
        let Decision::Move(next) = policy.place(10, 0, &past, &now) else { panic!("it must move") };
        assert!(now.moves_to(&next).len() <= 2 * RULE.changes);
        assert!(next.max_rank_load(&[100, 90, 80, 70, 1, 1, 1, 1]) < 190);
        assert!(!policy.placement_due(0) && !policy.placement_due(9) && policy.placement_due(10));
    }

    const LOADS: [u64; 8] = [900, 90, 80, 70, 60, 50, 40, 30];

    /// Two nodes of four ranks; `sets` ranks hold every expert once at the start. The policy, and its placements before and after.
    fn on_two_nodes(sets: usize) -> (AdjustingShards, Placement, Placement) {
        let nodes = vec![0, 0, 0, 0, 1, 1, 1, 1];
        let mut policy = AdjustingShards { of: Adjusting { every: 1 }, nodes, sets };
        let now = policy.first_placement(0, &Moe::plain(64, 8, 16, 8), 8);
        let mut past = LoadHistory::default();
        past.push(vec![LOADS.to_vec()]);
        let next = match policy.place(1, 0, &past, &now) {
            Decision::Move(next) => next,
            Decision::Stay => now.clone(),
        };
        (policy, now, next)
    }

    /// On shards, every node adjusts its own copies and keeps every expert; entries stay in their node.
    #[test]
    fn nodes_adjust_apart() {
        // With two slots a rank, a node has no room for more copies, and experts can only change places; with four, copies of the
        // experts with least make room.
        for (sets, slots, expands) in [(4, 2, false), (2, 4, true)] {
            let (policy, now, next) = on_two_nodes(sets);
            assert_eq!((now.slots_per_rank(), now.slots_of(0).len()), (slots, slots));
            assert_eq!(next.slots_of(0).len() > slots, expands, "{next:?}");
            for node in [0..4, 4..8] {
                let holds = |expert: usize| next.ranks_of(expert).any(|rank| node.contains(&rank));
                assert!((0..8).all(holds), "{next:?}");
            }
            let program = policy.program(0, &RoutingCounts::evenly(&LOADS, 8), &next);
            let Split::Rows(rows) = program.split else { panic!("rows from each source to each slot") };
            let node = |at: usize| (at / (8 * slots) / 4, at % (8 * slots) / (4 * slots));
            let across = (0..rows.len()).find(|&at| node(at).0 != node(at).1 && rows[at] > 0);
            assert_eq!(across, None);
        }
    }

    /// Four ranks with a slot each do not hold eight experts.
    #[test]
    fn a_node_without_all_experts_changes_nothing() {
        let (_, now, next) = on_two_nodes(8);
        assert_eq!(now.slots_per_rank(), 1);
        assert_eq!(next, now);
    }
}
