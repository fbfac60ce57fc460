//! The simulating engine: runs a job under a system's plan and policy on a described cluster, iteration by iteration.
//!
//! The engine asks the policy, prices what it answers and keeps the history that the policy may see. It knows no system
//! by name and takes no decision.

use crate::iteration::timeline::{Observer, Unobserved};
use crate::iteration::{Charge, Evaluation, Extent, Timing};
use crate::plan::placement::Move;
use crate::{CostModel, Decision, Job, LoadHistory, Placement, Plan, Policy, System, plan::search};
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

/// One run of one system, before its next iteration.
pub struct Run<'a> {
    job: &'a Job,
    costs: &'a CostModel,
    plan: Plan,
    policy: Box<dyn Policy>,
    /// `[moe layer]`.
    placements: Vec<Placement>,
    history: LoadHistory,
    iteration: usize,
}

/// What one iteration did.
#[derive(Clone, Debug, PartialEq)]
pub struct Iteration {
    /// Its timing.
    pub timing: Timing,
    /// Time of online decisions on the slowest stage.
    pub decision: Seconds,
    /// Time of migrations on the slowest stage.
    pub migration: Seconds,
    /// Experts that changed rank, over all layers.
    pub moved: usize,
    /// Why the iteration did not end, if it did not.
    pub failure: Option<String>,
    /// Mean cross-entropy of a token, where a model is really trained, nats.
    pub loss: Option<f64>,
    /// What the simulator says of this very iteration, where it follows an emulated run.
    pub predicted: Option<Seconds>,
}

impl<'a> Run<'a> {
    /// A run at its start, experts in order.
    pub fn new(job: &'a Job, costs: &'a CostModel, system: &dyn System, plan: Plan) -> Self {
        Self {
            job,
            costs,
            plan,
            policy: system.policy(job, &plan),
            placements: plan.experts_in_order(job),
            history: LoadHistory::default(),
            iteration: 0,
        }
    }

    /// Runs the next iteration on what the gate chooses in it. The policy places experts before it sees any of that.
    pub fn step(&mut self, batch: &BatchCounts) -> Iteration {
        self.observe(batch, &mut Unobserved)
    }

    /// The same, and tells `observer` what every rank does when.
    pub fn observe(&mut self, batch: &BatchCounts, observer: &mut impl Observer) -> Iteration {
        let (charges, moved) = self.place();
        let mut timing = Evaluation {
            job: self.job,
            plan: &self.plan,
            costs: self.costs,
            policy: self.policy.as_ref(),
            placements: &self.placements,
            batch,
            charges: &charges,
            extent: Extent::Full,
        }
        .observe(observer);
        self.history.push(std::mem::take(&mut timing.loads));
        self.iteration += 1;
        let failure = search::fits(self.job, &self.plan, timing.peak).err();
        let most = |of: fn(&Charge) -> Seconds| charges.iter().map(of).fold(Seconds::ZERO, Seconds::max);
        Iteration {
            decision: most(|charge| charge.decision),
            migration: most(|charge| charge.migration),
            moved,
            failure: failure.map(|error| error.to_string()),
            loss: None,
            predicted: None,
            timing,
        }
    }

    /// Asks the policy about every layer; returns what that costs each stage, and how many experts moved.
    fn place(&mut self) -> (Vec<Charge>, usize) {
        let mut charges = vec![Charge::default(); self.plan.pp];
        let mut moved = 0;
        for (layer, block) in self.job.model.moe_blocks().into_iter().enumerate() {
            let now = &self.placements[layer];
            let decision = self.policy.place(self.iteration, layer, &self.history, now);
            if decision == Decision::NotDue {
                continue;
            }
            let stage = self.stage_of(block);
            let steps = (now.experts() * now.ranks()) as u64;
            charges[stage].decision += self.costs.decision(steps);
            if let Decision::Move(next) = decision {
                let moves = now.moves_to(&next);
                moved += moves.len();
                charges[stage].migration += self.migration(block, stage, &moves);
                self.placements[layer] = next;
            }
        }
        (charges, moved)
    }

    fn stage_of(&self, block: usize) -> usize {
        (0..self.plan.pp).find(|&stage| self.plan.stage_blocks(self.job, stage).contains(&block)).unwrap_or(0)
    }

    /// Every expert-data-parallel replica migrates at the same time; the slowest group counts.
    fn migration(&self, block: usize, stage: usize, moves: &[Move]) -> Seconds {
        let parameters = self.job.model.blocks[block].moe().map_or(0, |moe| moe.expert_parameters());
        let bytes = Bytes(parameters as f64 * self.policy.migrated_bytes_per_parameter());
        if bytes == Bytes::ZERO {
            return Seconds::ZERO;
        }
        (0..self.plan.expert_dp)
            .map(|group| {
                let first = self.plan.expert_group(stage, group).start;
                self.costs.migration(first, self.plan.ep, moves, bytes)
            })
            .fold(Seconds::ZERO, Seconds::max)
    }
}
