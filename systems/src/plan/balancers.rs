//! Search over plans and balancers together: what balances the experts of each layer is chosen for every plan, by price.

use workloads::model::Moe;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::Recompute;
use crate::balance::laer;
use crate::iteration::{Charge, Coverage, Evaluation, Start};
use crate::plan::job::Job;
use crate::plan::memory::MIGRATED_BYTES_PER_PARAMETER;
use crate::plan::placement::Placement;
use crate::plan::search::{self, Candidate, Estimate, PerformanceModel};
use crate::plan::{Plan, PlanError};
use crate::price::cost::CostModel;
use crate::program::Direction;
use crate::{Decision, LoadHistory, Policy};

/// What balances the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// Nothing: experts in order.
    None,
    /// One slot an expert, placed by past loads.
    Place,
    /// Copies that stand, by past loads.
    Replicate,
    /// Copies for one micro-batch inside the node, of at least so many entries.
    Quota {
        /// Fewest entries that a copy is made for.
        least: u64,
    },
    /// Replicas of all groups on different ranks, entries split by a linear program.
    Program,
    /// Experts in shards over the stage, restored where past loads want them.
    Shards,
}

impl Balancer {
    /// Its name in a plan's reasons.
    pub fn name(self) -> &'static str {
        match self {
            Balancer::None => "none",
            Balancer::Place => "place",
            Balancer::Replicate => "replicate",
            Balancer::Quota { .. } => "quota",
            Balancer::Program => "linear program",
            Balancer::Shards => "shards",
        }
    }
}

/// The balancers of a plan.
#[derive(Clone, Debug)]
pub struct Choice {
    /// `[moe layer]`; [`Balancer::Program`] and [`Balancer::Shards`] in all layers or none.
    pub layers: Vec<Balancer>,
    /// What is expected of them.
    pub outcome: Result<Estimate, PlanError>,
    /// Everything that was tried, by name, and what an iteration takes under it.
    pub tried: Vec<(&'static str, Result<Seconds, PlanError>)>,
}

/// What a planner of experts in shards believes: a rank's rates inside its node and across, and an entry's products.
pub fn shard_prices(job: &Job, plan: &Plan, costs: &CostModel) -> Option<laer::Prices> {
    let moe = job.model.moe_layers().next()?;
    let group = costs.group(0..plan.stage_ranks(), 1);
    Some(laer::Prices {
        near: moe.entry_bytes().0 / job.cluster.network.intra_bandwidth.value,
        far: (moe.entry_bytes() / costs.rank_bandwidth(&group)).0,
        row: costs.expert(moe, Direction::Forward).row.0,
        recomputes: plan.recompute == Recompute::Full,
    })
}

/// The policy of a plan whose layers have these balancers; one balancer stands for all layers.
pub type PolicyOf<'a> = dyn Fn(&Plan, &[Balancer]) -> Box<dyn Policy> + 'a;

/// Searches for a system whose policy is told the balancers of the layers.
pub struct BalancerSearch<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// The cluster's prices.
    pub costs: &'a CostModel,
    /// Iterations between placements.
    pub every: usize,
    /// The system's policies.
    pub policy: &'a PolicyOf<'a>,
}

impl BalancerSearch<'_> {
    /// Plans under their best balancers, fastest first. They are tried in the order of their estimates under even loads; those whose
    /// estimate is above the best found are left out, because a balancer seldom beats even loads (one that keeps rows on
    /// their rank may). A plan that memory rejects with experts in order is tried where shards may need less.
    pub fn candidates(&self) -> Vec<Candidate> {
        let &Self { job, costs, .. } = self;
        let uniform = job.uniform_profile();
        let even = PerformanceModel { job, costs, profile: &uniform };
        let ideal = |plan: Plan| {
            let policy = (self.policy)(&plan, &[Balancer::None]);
            Candidate { plan, outcome: even.estimate(&plan, policy.as_ref(), &plan.experts_in_order(job)) }
        };
        let plans = search::pools(job).into_iter().map(|pool| ideal(pool.plan(self.every))).collect();
        let mut least = Seconds(f64::INFINITY);
        let mut candidates = Vec::new();
        for Candidate { plan, outcome } in search::rank(plans) {
            let outcome = match outcome {
                Ok(bound) if bound.step > least => continue,
                Err(PlanError::Memory { .. }) if plan.expert_dp > 1 => self.choose(&plan).outcome,
                Ok(_) => self.choose(&plan).outcome,
                Err(reason) => Err(reason),
            };
            if let Ok(estimate) = &outcome {
                least = least.min(estimate.step);
            }
            candidates.push(Candidate { plan, outcome });
        }
        search::rank(candidates)
    }

    /// The balancers of a plan's layers.
    pub fn choose(&self, plan: &Plan) -> Choice {
        let layers = self.job.model.moe_layers().count();
        // Step 1: each layer by itself. What history shows: the profile's iteration before, or the only one.
        let pairs: Vec<(&BatchCounts, &BatchCounts)> = match self.job.profile.as_slice() {
            [only] => vec![(only, only)],
            several => several.windows(2).map(|pair| (&pair[0], &pair[1])).collect(),
        };
        let mixed: Vec<Balancer> =
            (0..layers).map(|layer| self.of_layer(plan, layer, &pairs, Balancer::None, 1.0)).collect();
        // Step 2: what stands against the mixture.
        let [forward, all] = self.worth();
        let mut variants = vec![Balancer::None, Balancer::Quota { least: forward }, Balancer::Quota { least: all }];
        variants.extend((plan.expert_dp > 1).then_some(Balancer::Program));
        variants.push(Balancer::Shards);
        let mut variants: Vec<_> = variants.into_iter().map(|one| (one.name(), vec![one; layers])).collect();
        if variants.iter().all(|(_, variant)| *variant != mixed) {
            variants.push(("mixed", mixed));
        }
        // Step 3: the least estimate, the first of equal ones.
        let step = |outcome: &Result<Estimate, PlanError>| outcome.as_ref().map_or(f64::INFINITY, |e| e.step.0);
        let mut best = Choice { layers: Vec::new(), outcome: Err(PlanError::NoCandidate), tried: Vec::new() };
        for (name, layers) in variants {
            let outcome = self.estimate(plan, &layers);
            best.tried.push((name, outcome.as_ref().map(|estimate| estimate.step).map_err(Clone::clone)));
            if best.layers.is_empty() || step(&outcome) < step(&best.outcome) {
                (best.layers, best.outcome) = (layers, outcome);
            }
        }
        best
    }

    /// The balancer of least time in a layer of those that need no more than its own group, over pairs of a past and a present; the one
    /// that it has unless another takes less than `below` of its time.
    pub fn of_layer(
        &self,
        plan: &Plan,
        layer: usize,
        pairs: &[(&BatchCounts, &BatchCounts)],
        has: Balancer,
        below: f64,
    ) -> Balancer {
        let time = |balancer| pairs.iter().map(|(past, now)| self.time(plan, layer, balancer, past, now)).sum::<f64>();
        let quotas = self.worth().map(|least| Balancer::Quota { least });
        let mut best = (time(has) * below, has);
        let others = [Balancer::None, Balancer::Place, Balancer::Replicate].into_iter().chain(quotas);
        for balancer in others.filter(|&other| other != has) {
            let time = time(balancer);
            if time < best.0 {
                best = (time, balancer);
            }
        }
        best.1
    }

    /// Fewest entries that pay for a copy: whose products take as long as the weights' way there, or as all ways of weights and
    /// gradients.
    fn worth(&self) -> [u64; 2] {
        let Some(moe) = self.job.model.moe_layers().next() else { return [1, 1] };
        let row = |direction| self.costs.expert(moe, direction).row.0;
        let way = moe.expert_parameters() as f64 * 2.0 / self.job.cluster.network.intra_bandwidth.value;
        // Weights twice, and gradients of twice the bytes.
        let row = row(Direction::Forward) + row(Direction::Backward);
        [way, 4.0 * way].map(|time| (time / row).ceil().max(1.0) as u64)
    }

    fn estimate(&self, plan: &Plan, layers: &[Balancer]) -> Result<Estimate, PlanError> {
        let &Self { job, costs, .. } = self;
        let performance = PerformanceModel { job, costs, profile: &job.profile };
        let mut policy = (self.policy)(plan, layers);
        let placements = performance.placed(plan, policy.as_mut());
        performance.estimate(plan, policy.as_ref(), &placements)
    }

    /// What a layer's passes take in an iteration, with what its balancer costs between iterations, s.
    fn time(&self, plan: &Plan, layer: usize, balancer: Balancer, past: &BatchCounts, now: &BatchCounts) -> f64 {
        let &Self { job, costs, .. } = self;
        let layers: Vec<&Moe> = job.model.moe_layers().collect();
        let mut policy = (self.policy)(plan, &vec![balancer; layers.len()]);
        let mut placements = Start::new(job, plan, policy.as_ref()).placements;
        let mut history = LoadHistory::default();
        history.push((0..layers.len()).map(|of| if of == layer { past.loads(of) } else { Vec::new() }).collect());
        let start = placements[layer].clone();
        if let Decision::Move(next) = policy.place(plan.placement_every.max(1), layer, &history, &start) {
            placements[layer] = next;
        }
        let between = self.between(plan, layers[layer], &start, &placements[layer]);
        let (charges, coverage) = (vec![Charge::default(); plan.pp], Coverage::Sample);
        let (policy, placements, charges) = (policy.as_ref(), placements.as_slice(), charges.as_slice());
        let pass = Evaluation { job, plan, costs, policy, placements, batch: now, charges, coverage }.layer(layer);
        pass.0 * plan.micro_batches(job) as f64 + between
    }

    /// What copies that stand cost in an iteration: each one's gradients around a ring, and the moves of a placement spread over the
    /// iterations until the next, s.
    fn between(&self, plan: &Plan, moe: &Moe, start: &Placement, placed: &Placement) -> f64 {
        let parameters = moe.expert_parameters() as f64;
        let moves = start.moves_to(placed);
        let migration = self.costs.migration(0, plan.ep, &moves, Bytes(parameters * MIGRATED_BYTES_PER_PARAMETER));
        let copies = placed.experts_in_slots().iter().flatten().count() - placed.experts();
        let ring = self.costs.all_reduce(&self.costs.group(plan.expert_group(0, 0), 1), Bytes(parameters * 2.0));
        ring.0 * copies as f64 / plan.ep as f64 + migration.0 / self.every.max(1) as f64
    }
}
