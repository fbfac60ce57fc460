//! The simulating engine: runs a job under a system's plan and policy on a described cluster, iteration by iteration.
//!
//! What a stage's decisions and migrations take comes before its first micro-batch; where later stages wait for their first input
//! anyhow, it is hidden behind that. Stages and groups never wait for each other's traffic but through their parts of the network
//! ([`crate::price::network`]).
//!
//! The engine asks the policy between iterations ([`Online`]), prices what it answers and keeps the loads that the policy may
//! see next. It knows no system by name and takes no decision.

use thiserror::Error;
use workloads::model::Moe;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::iteration::copies::Copies;
use crate::iteration::moved::Communications;
use crate::iteration::online::{self, Online, WrongPlacement};
use crate::iteration::timeline::{Recorder, Span, Watch};
use crate::iteration::{Charge, Coverage, Evaluation, Start, Timing};
use crate::plan::search;
use crate::price::Moved;
use crate::price::ledger::{Ledger, Phase};
use crate::{CostModel, Job, Placement, Plan, PlanError, System};

/// One run of one system, before its next iteration.
pub struct Run<'a> {
    job: &'a Job,
    costs: &'a CostModel,
    /// As the system chose it, and as it is evaluated.
    chosen: Plan,
    plan: Plan,
    /// Why no iteration ends, where copies of experts would not stay equal.
    apart: Option<PlanError>,
    online: Online,
    /// `[moe layer]`.
    placements: Vec<Placement>,
    /// Iterations whose loads were gathered.
    gathered: usize,
    /// Those of them that were gathered before the last iteration.
    gathered_last: usize,
    /// `[stage][rank of a group]`: what experts that left the rank before the last iteration took along.
    migrated: Vec<Vec<Bytes>>,
    /// `[moe layer]`: how many these were.
    moved: Vec<usize>,
}

/// What one iteration did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Iteration {
    /// Its timing.
    pub timing: Timing,
    /// Time of online decisions on the slowest stage, and of gathering the loads for them.
    pub decision: Seconds,
    /// Time of migrations on the slowest stage.
    pub migration: Seconds,
    /// Experts that changed rank, over all layers.
    pub moved: usize,
    /// What balancing cost and brought, where that is followed.
    pub balancing: Option<Balancing>,
    /// Why the iteration did not end, if it did not.
    pub failure: Option<Failure>,
    /// Mean cross-entropy of a token, where a model is really trained, nats.
    pub loss: Option<f64>,
    /// What the simulator says of this very iteration, where it follows an emulated run.
    pub predicted: Option<Seconds>,
}

/// What balancing cost and brought in an iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Balancing {
    /// Slots of a rank beyond those that hold the sets of experts which the plan has anyhow; of the layer with most.
    pub redundant_slots: usize,
    /// Weights and gradients of copied, shadowed and restored experts, and experts that changed rank: what all ranks together send.
    pub moved: Bytes,
    /// Online decisions, those of micro-batches and the gathering of loads included, on the stage where they take longest.
    pub planning: Seconds,
    /// What planning and all these moves take a rank, be it hidden behind kernels or not, on the stage where that is longest.
    pub cost: Seconds,
    /// Rows that the fullest rank of a group computes over the mean of its ranks: mean over MoE layers, micro-batches and groups.
    pub max_over_mean: f64,
}

/// Why an iteration does not end.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Failure {
    /// The plan does not fit: the fullest rank's memory, or the policy.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The policy's placement cannot be.
    #[error(transparent)]
    Placement(#[from] WrongPlacement),
}

impl<'a> Run<'a> {
    /// A run at its start, experts in order.
    pub fn new(job: &'a Job, costs: &'a CostModel, system: &dyn System, plan: Plan) -> Self {
        let (policy, chosen) = (system.policy(job, &plan), plan);
        let apart = chosen.keeps_copies_equal(policy.as_ref()).err();
        let Start { plan, placements } = Start::new(job, &chosen, policy.as_ref());
        let online = Online::new(policy, plan);
        let migrated = vec![vec![Bytes::ZERO; plan.ep]; plan.pp];
        let moved = vec![0; placements.len()];
        Self { job, costs, chosen, plan, apart, online, placements, gathered: 0, gathered_last: 0, migrated, moved }
    }

    /// Runs the next iteration on what the gate chooses in it. The policy places experts before it sees any of that.
    pub fn step(&mut self, batch: &BatchCounts) -> Iteration {
        self.watch(batch, Watch::Nobody).0
    }

    /// Runs the next iteration and says what every rank does when.
    pub fn observe(&mut self, batch: &BatchCounts) -> (Iteration, Vec<Span>) {
        self.watch(batch, Watch::Everybody)
    }

    /// Runs the next iteration and says what the ranks that `watch` sees do when.
    pub fn watch(&mut self, batch: &BatchCounts, watch: Watch) -> (Iteration, Vec<Span>) {
        let mut recorder = Recorder::new(watch);
        let iteration = self.record(batch, &mut recorder);
        (iteration, recorder.into_spans())
    }

    fn record(&mut self, batch: &BatchCounts, recorder: &mut Recorder) -> Iteration {
        if let Some(apart) = self.apart.clone() {
            return Iteration { failure: Some(apart.into()), ..Iteration::default() };
        }
        let charges = match self.place() {
            Ok(placed) => placed,
            Err(refused) => return Iteration { failure: Some(refused.into()), ..Iteration::default() },
        };
        let mut timing = self.evaluation(batch, &charges).evaluate(recorder);
        self.online.remember(std::mem::take(&mut timing.loads));
        let most = |of: fn(&Charge) -> Seconds| charges.iter().map(of).fold(Seconds::ZERO, Seconds::max);
        Iteration {
            decision: most(|charge| charge.gathering + charge.decision),
            migration: most(|charge| charge.migration),
            moved: self.moved.iter().sum(),
            balancing: Some(self.balancing(&timing, self.evaluation(batch, &charges))),
            failure: search::fits(self.job, &self.chosen, timing.peak).err().map(Failure::from),
            loss: None,
            predicted: None,
            timing,
        }
    }

    fn balancing(&self, timing: &Timing, evaluation: Evaluation) -> Balancing {
        let Self { job, chosen, placements, .. } = self;
        let own = |moe: &Moe| moe.experts.div_ceil(chosen.ep);
        let beyond =
            job.model.moe_layers().zip(placements).map(|(moe, of)| of.slots_per_rank().saturating_sub(own(moe)));
        let copies: Vec<_> = (0..timing.phases.len()).map(|stage| evaluation.copies(stage)).collect();
        let synchronised: Bytes = copies.iter().map(|of_stage| of_stage.moved_beyond_replicas(chosen)).sum();
        // Every group of a stage moves the same.
        let migrated = self.migrated.iter().flatten().copied().sum::<Bytes>() * self.plan.expert_dp as f64;
        let cost = |((ledger, moved), copies): ((&Ledger, &Moved), &Copies)| {
            ledger.of(Phase::Decision) + ledger.of(Phase::Migration) + moved.time + copies.beyond_replicas(chosen)
        };
        let most = |times: &mut dyn Iterator<Item = Seconds>| times.fold(Seconds::ZERO, Seconds::max);
        Balancing {
            redundant_slots: beyond.max().unwrap_or(0),
            moved: timing.moved.iter().map(|moved| moved.bytes).sum::<Bytes>() + synchronised + migrated,
            planning: most(&mut timing.phases.iter().map(|ledger| ledger.of(Phase::Decision))),
            cost: most(&mut timing.phases.iter().zip(&timing.moved).zip(&copies).map(cost)),
            max_over_mean: timing.max_over_mean,
        }
    }

    /// Bytes of rows from rank to rank, `[from][to]`, if experts stand where they do now: see [`Evaluation::exchanged`].
    pub fn exchanged(&self, batch: &BatchCounts) -> Vec<Vec<Bytes>> {
        self.evaluation(batch, &vec![Charge::default(); self.plan.pp]).exchanged()
    }

    /// `[moe layer]`: experts that changed rank before the last iteration.
    pub fn moved(&self) -> &[usize] {
        &self.moved
    }

    /// What the spans of the last iteration moved, if `batch` is what its gate chose.
    pub fn communications(&self, batch: &BatchCounts) -> Communications {
        let charges = vec![Charge::default(); self.plan.pp];
        let mut all = self.evaluation(batch, &charges).communications();
        all.gathered = self.gathered_last;
        all.migrated.clone_from(&self.migrated);
        all
    }

    fn evaluation<'e>(&'e self, batch: &'e BatchCounts, charges: &'e [Charge]) -> Evaluation<'e> {
        Evaluation {
            job: self.job,
            plan: &self.plan,
            costs: self.costs,
            policy: self.online.policy(),
            placements: &self.placements,
            batch,
            charges,
            coverage: Coverage::Full,
        }
    }

    /// Asks the policy about every layer and moves experts; returns what each stage is charged for it. Every expert-data-parallel replica migrates at the same time; the
    /// slowest group counts.
    fn place(&mut self) -> Result<Vec<Charge>, WrongPlacement> {
        let (job, plan) = (self.job, &self.plan);
        let mut charges = vec![Charge::default(); plan.pp];
        let seen = self.online.history().len();
        self.gathered_last = 0;
        self.migrated.iter_mut().for_each(|of_stage| of_stage.fill(Bytes::ZERO));
        self.moved.fill(0);
        if !self.online.policy().placement_due(seen) {
            return Ok(charges);
        }
        for (stage, charge) in charges.iter_mut().enumerate() {
            charge.gathering = online::gathering(job, plan, stage, seen - self.gathered, self.costs);
        }
        self.gathered_last = seen - self.gathered;
        self.gathered = seen;
        let layers = job.model.moe_blocks().into_iter().zip(job.model.moe_layers());
        for (layer, ((block, moe), placement)) in layers.zip(&mut self.placements).enumerate() {
            let decided = self.online.decide(layer, moe, placement)?;
            let stage = plan.stage_of(job, block);
            charges[stage].decision += self.costs.decision(decided.steps);
            let Some(migration) = decided.migration else { continue };
            let groups = (0..plan.expert_dp).map(|group| plan.expert_group(stage, group).start);
            let times = groups.map(|first| migration.time(self.costs, first));
            charges[stage].migration += times.fold(Seconds::ZERO, Seconds::max);
            for moved in &migration.moves {
                self.migrated[stage][moved.from] += migration.expert_bytes;
            }
            self.moved[layer] = migration.moves.len();
            *placement = migration.placement;
        }
        Ok(charges)
    }
}
