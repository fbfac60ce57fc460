//! Search over plans and balancers together: what balances the experts of each layer is chosen for every plan, by price.
//!
//! Prices are those of iterations of the profile whose experts stand where *earlier* iterations put them, so that drift counts, with
//! what adapting to the drift moves. Memory is held against the limit with room for as much more as it varied in the profile.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use workloads::model::Moe;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::Recompute;
use crate::balance::{Slots, eplb, laer, microep};
use crate::iteration::copies::Copies;
use crate::iteration::{Charge, Coverage, Evaluation, Limit, Peak, Start};
use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::plan::search::{self, Candidate, Estimate, PerformanceModel};
use crate::plan::{Plan, PlanError, memory};
use crate::price::cost::CostModel;
use crate::price::ledger::Ledger;
use crate::program::Direction;
use crate::program::routing::RoutingCounts;
use crate::{Decision, LoadHistory, Policy};

/// What balances the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balancer {
    /// Nothing: experts in order.
    None,
    /// One slot an expert, placed by past loads.
    Place,
    /// Copies that stand, by past loads; entries split between them by a linear program.
    Replicate,
    /// Copies for one micro-batch inside the node.
    Quota {
        /// Fewest entries that a copy is made for.
        least: u64,
        /// What a rank may have above the mean, in percent.
        slack: u64,
    },
    /// Replicas of all groups on different ranks, entries split by a linear program; of one group, experts spread, so that neighbours may be
    /// hot together.
    Program,
    /// As [`Balancer::Replicate`] over the whole stage, in every iteration, optimizer state in shards that stay.
    Relay,
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
            Balancer::Quota { slack: 0, .. } => "quota",
            Balancer::Quota { .. } => "quota with slack",
            Balancer::Program => "linear program",
            Balancer::Relay => "relay",
            Balancer::Shards => "shards",
        }
    }

    /// Whether all ranks of a stage share the experts of a layer; then all layers have this balancer, or none.
    pub fn joins_replicas(self) -> bool {
        matches!(self, Balancer::Program | Balancer::Relay | Balancer::Shards)
    }

    /// Whether it has slots beyond those that hold every expert once, whose number is free.
    pub fn has_extra_slots(self) -> bool {
        matches!(self, Balancer::Replicate | Balancer::Quota { .. } | Balancer::Relay)
    }

    /// Whether it follows the loads of the last iteration, whatever the plan says.
    pub fn follows_every_iteration(self) -> bool {
        matches!(self, Balancer::Relay | Balancer::Shards)
    }
}

/// The balancers of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancers {
    /// `[moe layer]`; one stands for all layers.
    pub layers: Vec<Balancer>,
    /// Slots of a rank beyond those that hold every expert once, where a balancer has any.
    pub extra: usize,
}

/// What was chosen for a plan.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The balancers.
    pub balancers: Balancers,
    /// What is expected of them.
    pub outcome: Result<Estimate, PlanError>,
    /// Everything that was tried, by name, and what an iteration takes under it.
    pub tried: Vec<(&'static str, Result<Seconds, PlanError>)>,
}

impl Choice {
    /// The balancers under `plan`, and what else was tried, for people.
    pub fn reasons(&self, plan: &Plan) -> String {
        let mut text = format!("balancers under {plan}:");
        let mut first = 0;
        for same in self.balancers.layers.chunk_by(|a, b| a == b) {
            let last = first + same.len() - 1;
            let _ = write!(text, " layers {first} to {last} {},", same[0].name());
            first = last + 1;
        }
        text.truncate(text.len() - 1);
        if self.balancers.extra > 0 {
            let _ = write!(text, "; {} extra slots a rank", self.balancers.extra);
        }
        text += "\nan iteration with the same in all layers:";
        for (name, outcome) in &self.tried {
            let _ = match outcome {
                Ok(step) => write!(text, " {name} {:.0} ms,", step.0 * 1e3),
                Err(PlanError::Memory { .. }) => write!(text, " {name} does not fit into memory,"),
                Err(PlanError::Outlined { about, .. }) => write!(text, " {name} about {:.0} ms,", about.0 * 1e3),
                Err(reason) => write!(text, " {name}: {reason},"),
            };
        }
        text.truncate(text.len() - 1);
        text
    }
}

/// What is asked of a [`Setting`]: a balancer, experts, ranks and slots of a rank, whether forward passes are run again, and loads, if any.
type Asked = (&'static str, [usize; 3], bool, Vec<u64>);

/// What all policies of a system share: where balancers want experts, which many plans and all layers ask for alike.
pub struct Setting {
    /// What is trained.
    pub job: Job,
    /// The cluster's prices.
    pub costs: CostModel,
    /// Whether answers by loads are kept, too: training sees other ones in every iteration.
    keeps_all: bool,
    known: Mutex<BTreeMap<Asked, Slots>>,
}

impl Setting {
    /// Of training.
    pub fn new(job: &Job, costs: &CostModel) -> Self {
        Self { job: job.clone(), costs: costs.clone(), keeps_all: false, known: Mutex::default() }
    }

    /// Of a search, which knows the loads of a few iterations alone and asks about them for every plan.
    pub fn of_search(job: &Job, costs: &CostModel) -> Self {
        Self { keeps_all: true, ..Self::new(job, costs) }
    }

    /// Copies that fill all slots, for a balancer that has a stage's ranks share the experts, before any loads are known.
    ///
    /// # Panics
    /// When there are fewer slots than experts.
    pub fn spread(&self, balancer: Balancer, experts: usize, shape: laer::Shape) -> Placement {
        let (ranks, slots) = (shape.nodes.len(), shape.capacity);
        let even = vec![1; experts];
        let make = || match balancer {
            Balancer::Program => microep::symmetric(experts, ranks, slots),
            Balancer::Relay => eplb::global(&even, eplb::Shape { ranks, slots, nodes: 1 }),
            _ => laer::relocate(&even, &laer::even(&even, ranks * slots), shape),
        };
        let slots = self.answer((balancer.name(), [experts, ranks, slots], false, Vec::new()), make);
        Placement::of_slots(slots, experts, ranks).expect("every expert has a copy")
    }

    /// Where a balancer wants experts under these loads, `[expert]` entries, wherever they are now; nothing of one that leaves them in order, or
    /// goes by a micro-batch.
    pub fn by_loads(&self, balancer: Balancer, plan: &Plan, loads: &[u64], shape: laer::Shape) -> Option<Slots> {
        let (ranks, slots) = (shape.nodes.len(), shape.capacity);
        let packs = eplb::Shape { ranks, slots, nodes: 1 };
        let sharded = || {
            // A job without MoE layers has no loads.
            let prices = shard_prices(&self.job, plan, &self.costs).unwrap_or_default();
            laer::plan(&RoutingCounts::evenly(loads, ranks), shape, prices)
        };
        let make: &dyn Fn() -> Slots = match balancer {
            Balancer::Place => &|| eplb::once(loads, packs),
            Balancer::Replicate | Balancer::Relay => &|| eplb::global(loads, packs),
            Balancer::Shards => &sharded,
            Balancer::None | Balancer::Quota { .. } | Balancer::Program => return None,
        };
        if !self.keeps_all {
            return Some(make());
        }
        let again = plan.recompute == Recompute::Full;
        Some(self.answer((balancer.name(), [loads.len(), ranks, slots], again, loads.to_vec()), make))
    }

    fn answer(&self, asked: Asked, make: impl FnOnce() -> Slots) -> Slots {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(asked).or_insert_with(make).clone()
    }
}

/// What a planner of experts in shards believes: a rank's rates inside its node and across, and an entry's products.
pub fn shard_prices(job: &Job, plan: &Plan, costs: &CostModel) -> Option<laer::Prices> {
    let moe = job.model.moe_layers().next()?;
    let group = costs.group(0..plan.stage_ranks(), 1);
    Some(laer::Prices {
        near: (moe.entry_bytes() / costs.intra_both_ways()).0,
        far: (moe.entry_bytes() / costs.rank_bandwidth(&group)).0,
        row: costs.expert(moe, Direction::Forward).row.0,
        recomputes: plan.recompute == Recompute::Full,
    })
}

/// The policy of a plan whose layers have these balancers, before training that begins with experts where loads that were profiled want
/// them; with experts in order where there are none.
pub type PolicyOf<'a> = dyn Fn(&Plan, &Balancers, &LoadHistory) -> Box<dyn Policy> + 'a;

/// Searches for a system whose policy is told the balancers of the layers.
pub struct BalancerSearch<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// The cluster's prices.
    pub costs: &'a CostModel,
    /// Iterations between placements.
    pub every: usize,
    /// Most slots of a rank beyond those that hold every expert once.
    pub extra: usize,
    /// The system's policies.
    pub policy: &'a PolicyOf<'a>,
}

/// An iteration, and one whose loads are known before it.
pub struct Round<'a> {
    now: &'a BatchCounts,
    /// Loads of the earlier one, and of this one.
    loads: [LoadHistory; 2],
}

impl<'a> Round<'a> {
    /// Of a past and a present iteration.
    pub fn new(past: &BatchCounts, now: &'a BatchCounts) -> Self {
        let history = |batch: &BatchCounts| {
            let mut history = LoadHistory::default();
            history.push((0..batch.layers()).map(|layer| batch.loads(layer)).collect());
            history
        };
        Self { now, loads: [history(past), history(now)] }
    }
}

/// A batch in which every sample chooses as an iteration did on the whole, `ago` iterations before the last, or the first; none for
/// layers of different numbers of experts.
pub fn as_batch(job: &Job, past: &LoadHistory, ago: usize) -> Option<BatchCounts> {
    let layers: Vec<&Moe> = job.model.moe_layers().collect();
    let experts = layers.first()?.experts;
    let mut counts = Vec::new();
    for (layer, moe) in layers.iter().enumerate() {
        let loads = past.recent(layer, ago + 1).next()?;
        let (total, entries) = (loads.iter().sum::<u64>().max(1), (moe.tokens * job.top_k()) as u64);
        let before = loads.iter().scan(0, |sum, load| Some(std::mem::replace(sum, *sum + load)));
        let part = |(load, before): (&u64, u64)| (before + load) * entries / total - before * entries / total;
        let row: Vec<u32> = loads.iter().zip(before).map(|pair| part(pair) as u32).collect();
        (0..job.global_batch).for_each(|_| counts.extend_from_slice(&row));
    }
    let same = layers.iter().all(|moe| moe.experts == experts);
    same.then(|| BatchCounts::new(layers.len(), job.global_batch, experts, counts))
}

/// What memory is left free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reserve {
    /// As much as the fullest rank's need varied over the profile's iterations.
    Spread,
    Nothing,
}

/// How much longer than the best a balancer's first iteration may take for the others to be looked at. Not sourced.
const CLOSE: f64 = 1.15;

impl BalancerSearch<'_> {
    /// Plans under their best balancers, fastest first. They are tried in the order of their estimates under even loads; those whose
    /// estimate is above the best found are left out, because a balancer seldom beats even loads (one that keeps rows on
    /// their rank may). A plan that memory rejects with experts in order is tried where shards may need less.
    /// Memory is left free unless that leaves no plan.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.candidates_within(|fastest| self.limit(fastest))
    }

    /// The same, with every evaluation run to its end: the plain reference.
    #[cfg(test)]
    pub(crate) fn candidates_to_their_ends(&self) -> Vec<Candidate> {
        self.candidates_within(|_| Limit::NONE)
    }

    /// Those of a search that ends evaluations at a limit, by what the fastest plan takes that is known.
    fn candidates_within(&self, limit: impl Fn(Seconds) -> Limit) -> Vec<Candidate> {
        let careful = self.candidates_with(Reserve::Spread, &limit);
        if careful.iter().any(|candidate| candidate.outcome.is_ok()) {
            return careful;
        }
        self.candidates_with(Reserve::Nothing, &limit)
    }

    fn candidates_with(&self, reserve: Reserve, limit: &dyn Fn(Seconds) -> Limit) -> Vec<Candidate> {
        let &Self { job, costs, .. } = self;
        let rounds = self.rounds();
        let uniform = job.uniform_profile();
        let even = PerformanceModel { job, costs, profile: &uniform };
        let plain = Balancers { layers: vec![Balancer::None], extra: 0 };
        let ideal = |plan: Plan| {
            let policy = (self.policy)(&plan, &plain, &LoadHistory::default());
            Candidate { plan, outcome: even.estimate(&plan, policy.as_ref(), &plan.experts_in_order(job)) }
        };
        let plans = search::pools(job).into_iter().map(|pool| ideal(pool.plan(self.every))).collect();
        let mut least = Seconds(f64::INFINITY);
        let mut candidates = Vec::new();
        for Candidate { plan, outcome } in search::rank(plans) {
            let chosen = || self.chosen(&plan, &rounds, reserve, least, limit(least)).outcome;
            let outcome = match outcome {
                Ok(bound) if bound.step > least => continue,
                Err(PlanError::Memory { .. }) if plan.expert_dp > 1 => chosen(),
                Ok(_) => chosen(),
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
        let rounds = self.rounds();
        let chosen = |reserve| self.chosen(plan, &rounds, reserve, Seconds(f64::INFINITY), Limit::NONE);
        let careful = chosen(Reserve::Spread);
        if careful.outcome.is_ok() {
            return careful;
        }
        chosen(Reserve::Nothing)
    }

    /// Those of a plan that is of use if it takes less than `bound`, what the fastest other takes.
    fn chosen(&self, plan: &Plan, rounds: &[Round], reserve: Reserve, bound: Seconds, limit: Limit) -> Choice {
        let layers = self.job.model.moe_layers().count();
        let mut pricing = Pricing { search: self, plan, reserve, rounds, bound, limit, choice: None };
        // Step 1: the same in all layers.
        let joined = [Balancer::Program, Balancer::Relay, Balancer::Shards];
        for balancer in self.of_one_group().into_iter().chain(joined) {
            pricing.hold(balancer.name(), vec![balancer; layers]);
        }
        // Step 2: each layer by itself, where that may be of use.
        if pricing.bound < Seconds(f64::INFINITY) && plan.ep > 1 {
            let drifted = &rounds[self.lag()..];
            let has = Balancers { layers: Vec::new(), extra: self.extra };
            let mixed = self.of_layers(plan, 0..layers, drifted, &self.of_one_group(), &has, 1.0);
            if mixed.iter().any(|balancer| *balancer != mixed[0]) {
                pricing.hold("mixed", mixed);
            }
        }
        pricing.choice.expect("something was tried")
    }

    /// What an iteration may take and hold for its balancers to be looked at further; none where no other plan is known.
    fn limit(&self, fastest: Seconds) -> Limit {
        if fastest == Seconds(f64::INFINITY) {
            return Limit::NONE;
        }
        Limit { step: fastest * CLOSE, bytes: self.job.cluster.gpu.usable() }
    }

    /// Iterations of the profile between one whose loads are known and one that is priced: half of them.
    fn lag(&self) -> usize {
        self.job.profile.len() / 2
    }

    /// The profile's iterations, each after an earlier one where there is one.
    fn rounds(&self) -> Vec<Round<'_>> {
        let profile = &self.job.profile;
        let round = |(at, now): (usize, _)| Round::new(&profile[at.saturating_sub(self.lag())], now);
        profile.iter().enumerate().map(round).collect()
    }

    /// All balancers that need no more than a layer's own group.
    pub fn of_one_group(&self) -> Vec<Balancer> {
        let [forward, all] = self.worth();
        let quota = |least, slack| Balancer::Quota { least, slack };
        let mut balancers = vec![Balancer::None, Balancer::Place, Balancer::Replicate];
        balancers.extend([quota(forward, 0), quota(all, 0), quota(all, SLACK)]);
        balancers
    }

    /// The balancer of least time in each layer, of `choices` that need no more than the layer's own group; the one that it `has`, if any, unless
    /// another takes less than `below` of its time.
    pub fn of_layers(
        &self,
        plan: &Plan,
        layers: Range<usize>,
        rounds: &[Round],
        choices: &[Balancer],
        has: &Balancers,
        below: f64,
    ) -> Vec<Balancer> {
        let of = |&balancer: &Balancer| {
            let one = Balancers { layers: vec![balancer], extra: has.extra };
            (balancer, self.times(plan, layers.clone(), rounds, &one))
        };
        let times: Vec<(Balancer, Vec<f64>)> = choices.iter().map(of).collect();
        let best = |(at, layer): (usize, usize)| {
            let weighed = |(balancer, times): &(Balancer, Vec<f64>)| {
                times[at] * if has.layers.get(layer) == Some(balancer) { below } else { 1.0 }
            };
            times.iter().min_by(|a, b| weighed(a).total_cmp(&weighed(b))).map_or(Balancer::None, |(best, _)| *best)
        };
        layers.clone().enumerate().map(best).collect()
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

    /// What the passes of layers take over some rounds, with what their balancer costs between iterations, s.
    fn times(&self, plan: &Plan, layers: Range<usize>, rounds: &[Round], balancers: &Balancers) -> Vec<f64> {
        let mut times = vec![0.0; layers.len()];
        for round in rounds {
            let mut policy = (self.policy)(plan, balancers, &round.loads[0]);
            let mut placements = Start::new(self.job, plan, policy.as_ref()).placements;
            for (time, layer) in times.iter_mut().zip(layers.clone()) {
                *time += self.time(plan, layer, round, policy.as_mut(), &mut placements).0;
            }
        }
        times
    }

    /// What those of one layer take in a round.
    fn time(
        &self,
        plan: &Plan,
        layer: usize,
        round: &Round,
        policy: &mut dyn Policy,
        placements: &mut [Placement],
    ) -> Seconds {
        let &Self { job, costs, .. } = self;
        let Some((block, moe)) = job.model.moe_blocks().into_iter().zip(job.model.moe_layers()).nth(layer) else {
            return Seconds::ZERO;
        };
        let [placed, next] = self.placed(plan, policy, layer, round, &placements[layer]);
        let moving = self.moving(plan, moe, policy, &placed, &next);
        let storage = policy.storage();
        let copies = Copies { plan, costs, stage: plan.stage_of(job, block), storage, layers: vec![(moe, &placed)] };
        let copies = copies.beyond_replicas(plan);
        placements[layer] = placed;
        let charges = vec![Charge::default(); plan.pp];
        let evaluation = Evaluation {
            job,
            plan,
            costs,
            policy,
            placements,
            batch: round.now,
            charges: &charges,
            coverage: Coverage::Sample,
        };
        evaluation.layer(layer) * plan.micro_batches(job) as f64 + moving + copies
    }

    /// Where a layer's experts stand in a round, and where its loads put them next.
    fn placed(
        &self,
        plan: &Plan,
        policy: &mut dyn Policy,
        layer: usize,
        round: &Round,
        start: &Placement,
    ) -> [Placement; 2] {
        let due = plan.placement_every.max(1);
        let mut place = |loads: &LoadHistory, now: &Placement| match policy.placement_due(due) {
            true => match policy.place(due, layer, loads, now) {
                Decision::Move(next) => next,
                Decision::Stay => now.clone(),
            },
            false => now.clone(),
        };
        let placed = place(&round.loads[0], start);
        let next = place(&round.loads[1], &placed);
        [placed, next]
    }

    /// What a layer's experts take to their next places, spread over the iterations between placements.
    fn moving(&self, plan: &Plan, moe: &Moe, policy: &dyn Policy, from: &Placement, to: &Placement) -> Seconds {
        let of_parameter = memory::migrated(plan, policy.migrated_bytes_per_parameter());
        let bytes = Bytes(moe.expert_parameters() as f64 * of_parameter);
        if bytes == Bytes::ZERO {
            return Seconds::ZERO;
        }
        self.costs.migration(0, from.ranks(), &from.moves_to(to), bytes) / plan.placement_every.max(1) as f64
    }
}

/// What a rank may have above the mean under the laxer quotas, in percent: as in least-loaded expert parallelism.
const SLACK: u64 = 10;

/// A plan's balancers while they are tried.
struct Pricing<'a> {
    search: &'a BalancerSearch<'a>,
    plan: &'a Plan,
    reserve: Reserve,
    rounds: &'a [Round<'a>],
    /// What the best takes that is known.
    bound: Seconds,
    /// What evaluations end at; they all run to their ends where this is none.
    limit: Limit,
    choice: Option<Choice>,
}

impl Pricing<'_> {
    /// Holds balancers against the best so far, with fewer extra slots where memory has no room for more. Layers whose balancer has none get them
    /// all the same, so that training can change it.
    fn hold(&mut self, name: &'static str, layers: Vec<Balancer>) {
        let any = |is: fn(Balancer) -> bool| layers.iter().any(|&balancer| is(balancer));
        let may_change = self.plan.ep > 1 && !any(Balancer::joins_replicas);
        let most = if may_change || any(Balancer::has_extra_slots) { self.search.extra } else { 0 };
        // What is told of a plan that is of no use is what the first balancers come to: these run to their ends.
        let limit = if self.choice.is_some() { self.limit } else { Limit::NONE };
        let (balancers, outcome) = self.fitted(Balancers { layers, extra: most }, limit);
        let step = outcome.as_ref().map(|estimate| estimate.step).map_err(Clone::clone);
        if let Ok(step) = step {
            self.bound = self.bound.min(step);
        }
        let Some(choice) = &mut self.choice else {
            self.choice = Some(Choice { balancers, outcome, tried: vec![(name, step)] });
            return;
        };
        choice.tried.push((name, step));
        let time = |outcome: &Result<Estimate, PlanError>| outcome.as_ref().map_or(f64::INFINITY, |e| e.step.0);
        if time(&outcome) < time(&choice.outcome) {
            (choice.balancers, choice.outcome) = (balancers, outcome);
        }
    }

    /// Balancers with as many extra slots as memory has room for, and what is expected of them.
    fn fitted(&self, balancers: Balancers, limit: Limit) -> (Balancers, Result<Estimate, PlanError>) {
        let outcome = self.estimate(&balancers, limit);
        let least = usize::from(balancers.layers.iter().any(|balancer| balancer.has_extra_slots()));
        if balancers.extra <= least {
            return (balancers, outcome);
        }
        let fewer = || self.fitted(Balancers { extra: balancers.extra - 1, ..balancers.clone() }, limit);
        match outcome {
            Err(PlanError::Memory { .. }) => fewer(),
            // Whether memory has room was still open. That matters only where fewer are of use.
            Err(PlanError::Outlined { .. }) if limit != Limit::NONE && fewer().1.is_ok() => {
                self.fitted(balancers, Limit::NONE)
            }
            outcome => (balancers, outcome),
        }
    }

    /// The mean over the rounds that have a past, and the most memory of all; the last round alone where that is far above the
    /// bound or beyond the limit.
    fn estimate(&self, balancers: &Balancers, limit: Limit) -> Result<Estimate, PlanError> {
        let &Pricing { search, plan, rounds, .. } = self;
        if rounds.is_empty() {
            return Err(PlanError::NoProfile { plan: Box::new(*plan) });
        }
        let counted = rounds.len() - search.lag();
        let mut mean = Estimate { step: Seconds::ZERO, phases: Ledger::default(), peak: Peak::default() };
        let mut least = Bytes(f64::INFINITY);
        for (at, round) in rounds.iter().enumerate().rev() {
            let mut policy = (search.policy)(plan, balancers, &round.loads[0]);
            let placed = self.place(policy.as_mut(), round);
            let limit = if at + 1 == rounds.len() { limit } else { Limit { step: Limit::NONE.step, ..limit } };
            let estimate = self.round(at, policy.as_ref(), &placed, limit)?;
            if at + 1 == rounds.len() && estimate.step > self.bound * CLOSE {
                let about = estimate.step;
                return Err(PlanError::Outlined { plan: Box::new(*plan), about, fastest: self.bound });
            }
            if at >= search.lag() {
                mean.step += estimate.step / counted as f64;
                mean.phases.merge(&estimate.phases, 1.0 / counted as f64);
            }
            if estimate.peak.bytes > mean.peak.bytes {
                mean.peak = estimate.peak;
            }
            least = least.min(estimate.peak.bytes);
        }
        let spread = if self.reserve == Reserve::Spread { mean.peak.bytes - least } else { Bytes::ZERO };
        search::fits(search.job, plan, Peak { bytes: mean.peak.bytes + spread, ..mean.peak })?;
        Ok(mean)
    }

    /// An iteration of the profile. A balancer that follows every iteration has loads a fraction as old as the round's past: of the time
    /// that drift costs, it is charged that fraction; memory must hold all of it.
    fn round(&self, at: usize, policy: &dyn Policy, placed: &Placed, limit: Limit) -> Result<Estimate, PlanError> {
        let &Pricing { search: &BalancerSearch { job, costs, every, .. }, plan, .. } = self;
        let performance = PerformanceModel { job, costs, profile: &job.profile[at..=at] };
        let within = |limit, placements: &[Placement]| performance.estimate_within(limit, plan, policy, placements);
        // The iteration takes no less than under fresh loads; how much longer it takes under stale ones is divided.
        let fresh = placed.fresh.as_ref().map(|fresh| within(limit, fresh)).transpose()?;
        let stale = if fresh.is_some() { Limit { step: Limit::NONE.step, ..limit } } else { limit };
        let mut estimate = within(stale, &placed.stale)?;
        if let Some(fresh) = fresh {
            let drift = (estimate.step - fresh.step).max(Seconds::ZERO) / every.max(1) as f64;
            let peak = if estimate.peak.bytes > fresh.peak.bytes { estimate.peak } else { fresh.peak };
            estimate = Estimate { step: fresh.step + drift, peak, ..fresh };
        }
        estimate.step += placed.moving;
        Ok(estimate)
    }

    /// Where the experts of all layers stand in a round, and what moving them takes of an iteration on the stage that moves most.
    fn place(&self, policy: &mut dyn Policy, round: &Round) -> Placed {
        let &Pricing { search, plan, .. } = self;
        let job = search.job;
        let start = Start::new(job, plan, policy);
        let mut moving = vec![Seconds::ZERO; plan.pp];
        let layers = job.model.moe_blocks().into_iter().zip(job.model.moe_layers());
        let placed = layers.zip(&start.placements).enumerate().map(|(layer, ((block, moe), start))| {
            let [stale, fresh] = search.placed(plan, policy, layer, round, start);
            moving[plan.stage_of(job, block)] += search.moving(plan, moe, policy, &stale, &fresh);
            (stale, fresh)
        });
        let (stale, fresh): (Vec<_>, Vec<_>) = placed.collect();
        let every_iteration = policy.placement_due(1) && stale != fresh;
        let moving = moving.into_iter().fold(Seconds::ZERO, Seconds::max);
        Placed { stale, fresh: every_iteration.then_some(fresh), moving }
    }
}

/// Where the experts of all layers stand in a round, `[moe layer]`.
struct Placed {
    /// By the round's past.
    stale: Vec<Placement>,
    /// By its own loads, where experts are placed before every iteration.
    fresh: Option<Vec<Placement>>,
    moving: Seconds,
}
