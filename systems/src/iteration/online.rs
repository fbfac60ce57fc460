//! Between iterations, the same for every engine: where a decision is due, the loads of a stage are gathered; the policy
//! decides about a layer from past loads alone, its answer is checked, and what moves follows from it. The simulator charges
//! what is returned at the cluster's prices; a trainer does it and measures.

use std::fmt;

use thiserror::Error;
use workloads::model::{Block, Moe};
use workloads::{Bytes, Seconds};

use crate::plan::memory;
use crate::plan::placement::Move;
use crate::{CostModel, Decision, Job, LoadHistory, Placement, Plan, Policy};

/// A policy and all that it may see.
pub struct Online {
    policy: Box<dyn Policy>,
    plan: Plan,
    history: LoadHistory,
}

/// A decision about one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// Elementary steps that it takes: every slot's expert is held against every rank.
    pub steps: u64,
    /// What moves, unless the placement stays.
    pub migration: Option<Migration>,
}

/// Experts of one layer that go to another placement.
#[derive(Clone, Debug, PartialEq)]
pub struct Migration {
    /// Where all experts are afterwards.
    pub placement: Placement,
    /// The experts that change rank.
    pub moves: Vec<Move>,
    /// What travels with each of them, by the system's word.
    pub expert_bytes: Bytes,
}

/// A policy's placement that is not one of the layer's experts in the slots that the group's ranks have had from the start.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("MoE layer {layer}: the policy placed {placed}: expected {expected}")]
pub struct WrongPlacement {
    /// Number of the layer among MoE layers.
    pub layer: usize,
    /// By the policy.
    pub placed: PlacementSize,
    /// As the layer and its ranks are.
    pub expected: PlacementSize,
}

/// How large a placement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementSize {
    /// Experts of the layer.
    pub experts: usize,
    /// Ranks that share them.
    pub ranks: usize,
    /// Slots of each rank.
    pub slots: usize,
}

impl PlacementSize {
    /// Of a placement.
    pub fn of(placement: &Placement) -> Self {
        Self { experts: placement.experts(), ranks: placement.ranks(), slots: placement.slots_per_rank() }
    }
}

impl fmt::Display for PlacementSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { experts, ranks, slots } = self;
        write!(f, "{experts} experts on {ranks} ranks of {slots} slots")
    }
}

impl Online {
    /// A policy before the first iteration of training under the plan, as it is evaluated.
    pub fn new(policy: Box<dyn Policy>, plan: Plan) -> Self {
        Self { policy, plan, history: LoadHistory::default() }
    }

    /// The policy, for the programs of layers.
    pub fn policy(&self) -> &dyn Policy {
        self.policy.as_ref()
    }

    /// Loads of the iterations that have run.
    pub fn history(&self) -> &LoadHistory {
        &self.history
    }

    /// Adds an iteration that has run, `loads[layer][expert]` entries.
    pub fn remember(&mut self, loads: Vec<Vec<u64>>) {
        self.history.push(loads);
    }

    /// Asks the policy about MoE layer `layer` before an iteration for which a decision is due.
    ///
    /// # Errors
    /// A placement of other experts, ranks or slots.
    pub fn decide(&mut self, layer: usize, moe: &Moe, now: &Placement) -> Result<Decided, WrongPlacement> {
        let placement = match self.policy.place(self.history.len(), layer, &self.history, now) {
            Decision::Stay => None,
            Decision::Move(next) => Some(next),
        };
        let expected = PlacementSize::of(now);
        if let Some(placed) = placement.as_ref().map(PlacementSize::of).filter(|placed| *placed != expected) {
            return Err(WrongPlacement { layer, placed, expected });
        }
        let of_parameter = memory::migrated(&self.plan, self.policy.migrated_bytes_per_parameter());
        let expert_bytes = Bytes(moe.expert_parameters() as f64 * of_parameter);
        let migration = |placement| Migration { moves: now.moves_to(&placement), placement, expert_bytes };
        let steps = (now.experts_in_slots().len() * now.ranks()) as u64;
        Ok(Decided { steps, migration: placement.map(migration) })
    }
}

/// What it takes the ranks of a stage to sum up the loads of its MoE layers in that many iterations: 8 bytes for every
/// expert, all in one all-reduce.
pub fn gathering(job: &Job, plan: &Plan, stage: usize, iterations: usize, costs: &CostModel) -> Seconds {
    let layers = plan.stage_blocks(job, stage).filter_map(Block::moe);
    let loads = layers.map(|moe| moe.experts).sum::<usize>() * iterations;
    let first = stage * plan.stage_ranks();
    costs.all_reduce(&costs.group(first..first + plan.stage_ranks(), 1), Bytes(8.0 * loads as f64))
}

impl Migration {
    /// What it takes in the expert-parallel group whose first rank is `first`.
    pub fn time(&self, costs: &CostModel, first: usize) -> Seconds {
        if self.expert_bytes == Bytes::ZERO {
            // An upper bound, in which experts move at no cost.
            return Seconds::ZERO;
        }
        costs.migration(first, self.placement.ranks(), &self.moves, self.expert_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zero;

    const MOE: Moe = Moe::plain(8, 4, 8, 4);

    /// Places as told.
    struct Told(Placement);

    impl Policy for Told {
        fn place(&mut self, iteration: usize, _layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
            assert_eq!(iteration, past.len());
            if self.0 == *now { Decision::Stay } else { Decision::Move(self.0.clone()) }
        }
    }

    #[test]
    fn a_decision_stays_or_moves() {
        let (now, next) = (Placement::identity(4, 2), Placement::new(vec![0, 2, 1, 3], 2).unwrap());
        // Weights, and optimizer state, of which four replicas leave each a quarter under ZeRO 1.
        for (zero, bytes) in [(Zero::Off, 14.0), (Zero::Optimizer, 5.0), (Zero::Weights, 3.5)] {
            let plan = Plan { zero, expert_dp: 4, ..Plan::default() };
            let mut online = Online::new(Box::new(Told(next.clone())), plan);
            online.remember(vec![vec![1; 4]]);
            let decided = online.decide(0, &MOE, &now).unwrap();
            assert_eq!(decided.steps, 8);
            let migration = decided.migration.unwrap();
            assert_eq!((migration.moves.len(), &migration.placement), (2, &next));
            assert_eq!(migration.expert_bytes, Bytes(bytes * (2.0 * 4.0 * 8.0 + 8.0 + 4.0)));
            assert_eq!(online.decide(0, &MOE, &next), Ok(Decided { steps: 8, migration: None }));
        }
    }

    #[test]
    fn a_placement_of_other_experts_or_slots_is_refused() {
        let refused = |next: Placement, placed: &str| {
            let mut online = Online::new(Box::new(Told(next)), Plan::default());
            online.remember(vec![vec![1; 4]]);
            let error = online.decide(3, &MOE, &Placement::identity(4, 2)).unwrap_err().to_string();
            let expected = "expected 4 experts on 2 ranks of 2 slots";
            assert_eq!(error, format!("MoE layer 3: the policy placed {placed}: {expected}"));
        };
        refused(Placement::identity(8, 2), "8 experts on 2 ranks of 4 slots");
        refused(Placement::identity(4, 4), "4 experts on 4 ranks of 1 slots");
        refused(Placement::with_room(4, 2, 1), "4 experts on 2 ranks of 3 slots");
    }
}
