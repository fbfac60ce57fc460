//! CoBalance, this project's own: the plan and the balancers of its layers are chosen together, offline, each priced on the profiled
//! routing, within memory.
//!
//! *Offline* ([`crate::plan::balancers`]), for every plan, in the order of their estimates under even loads; those whose estimate is above the
//! best found are left out, because balancing seldom beats even loads:
//! 1. every balancer in all layers: none, placing or replicating by history, quotas inside the node, a linear program over the replicas of all
//!    groups, slots laid anew in every update, and shards over the stage;
//! 2. a mixture: the best of the first four in each layer;
//! 3. the one with the least estimate is the plan's.
//!
//! What follows history is priced with experts where earlier iterations of the profile put them, so drift counts.
//!
//! *Online* (numbered below where it is done):
//! 1. training starts with experts where the profile wants them;
//! 2. every few iterations, a layer that is balanced otherwise than its forecast said is priced anew on the loads measured, without
//!    copies that stand where the plan's memory was not asked for them;
//! 3. placed and replicated layers follow the loads where a move pays for itself before the next;
//! 4. entries are split between copies that stand by a linear program, micro-batch by micro-batch; a copy for one micro-batch is made for no
//!    fewer entries than pay for it: those whose products on the full rank take as long as the weights' way there, or all ways of weights
//!    and gradients.

use std::sync::Arc;

use workloads::model::Moe;

use crate::balance::quota::{self, Homes, Limits};
use crate::balance::{eplb, laer, microep};
use crate::plan;
use crate::plan::balancers::{self, Balancer, BalancerSearch, Balancers, Round, Setting};
use crate::plan::memory::MIGRATED_BYTES_PER_PARAMETER;
use crate::plan::moves::{Moves, moves};
use crate::program::Weights;
use crate::program::routing::sum_of_loads;
use crate::program::split::{self, Split};
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, Policy, RoutingCounts,
    Storage, System,
};

/// CoBalance.
pub struct CoBalance;

/// Slots of a rank beyond those that hold every expert once, where a balancer uses any: as many as the other balancers of this table have.
const EXTRA_SLOTS: usize = 2;

/// Iterations between decisions, and iterations whose loads they look at.
const EVERY: usize = 10;

/// How far the measured imbalance of a layer may be from its forecast before it is priced anew.
const SURPRISE: f64 = 1.25;

/// What of its time a layer must take under another balancer to get it while training goes on: loads of whole iterations flatter
/// balancers that go by them.
const WORTH_CHANGING: f64 = 0.9;

impl System for CoBalance {
    fn about(&self) -> About {
        About {
            name: "cobalance",
            title: "CoBalance",
            summary: "The plan and a balancer for each of its layers, searched together: none, place, replicate, quotas in the node, a linear program across replicas, or shards",
        }
    }

    fn candidates(&self, job: &Job, costs: &CostModel) -> Vec<Candidate> {
        searching(job, costs, |search| search.candidates())
    }

    fn searches(&self) -> bool {
        true
    }

    fn policy(&self, job: &Job, plan: &Plan) -> Box<dyn Policy> {
        let setting = Arc::new(Setting::new(job, &CostModel::new(&job.cluster, job.gpus)));
        let balancers = searching(job, &setting.costs, |search| search.choose(plan)).balancers;
        let mut policy = Layered::new(&setting, plan, &balancers);
        policy.profile = job.model.moe_layers().enumerate().map(|(layer, moe)| profiled(job, layer, moe)).collect();
        policy.forecast = policy.forecast();
        Box::new(policy)
    }

    fn explain(&self, job: &Job, plan: &Plan) -> Option<String> {
        let choice = searching(job, &CostModel::new(&job.cluster, job.gpus), |search| search.choose(plan));
        Some(choice.reasons(plan))
    }
}

/// The system's search.
fn searching<T>(job: &Job, costs: &CostModel, then: impl FnOnce(&BalancerSearch) -> T) -> T {
    searching_in(Setting::of_search(job, costs), then)
}

fn searching_in<T>(setting: Setting, then: impl FnOnce(&BalancerSearch) -> T) -> T {
    let setting = Arc::new(setting);
    let Setting { job, costs, .. } = setting.as_ref();
    let policy = |plan: &Plan, balancers: &Balancers, past: &LoadHistory| -> Box<dyn Policy> {
        let recent = |(layer, _): (usize, &Moe)| past.recent(layer, 1).next().map(<[u64]>::to_vec);
        let profile = job.model.moe_layers().enumerate().map_while(recent).collect();
        Box::new(Layered { profile, ..Layered::new(&setting, plan, balancers) })
    };
    then(&BalancerSearch { job, costs, every: EVERY, extra: EXTRA_SLOTS, policy: &policy })
}

/// A balancer for each layer.
struct Layered {
    setting: Arc<Setting>,
    plan: Plan,
    balancers: Balancers,
    /// `[moe layer]`: whether memory was asked for copies that stand, whatever balances the layer now.
    may_replicate: Vec<bool>,
    /// `[moe layer]`.
    moves: Vec<Moves>,
    /// `[moe layer][expert]` entries that were seen before training begins: in the profile, during a search in a round's past. Nothing
    /// where experts begin in order.
    profile: Vec<Vec<u64>>,
    /// `[moe layer]`: the fullest rank over the mean, copies sharing evenly; nothing during a search.
    forecast: Vec<f64>,
    /// `[rank]` of the group.
    nodes: Vec<usize>,
}

impl Layered {
    fn new(setting: &Arc<Setting>, plan: &Plan, balancers: &Balancers) -> Self {
        let joined = balancers.layers.first().is_some_and(|balancer| balancer.joins_replicas());
        let ranks = if joined { plan.stage_ranks() } else { plan.ep };
        let nodes = setting.costs.nodes_of_groups(ranks);
        Self {
            setting: Arc::clone(setting),
            plan: *plan,
            balancers: balancers.clone(),
            may_replicate: balancers.layers.iter().map(|balancer| *balancer == Balancer::Replicate).collect(),
            moves: moves(&setting.job, plan, &setting.costs, MIGRATED_BYTES_PER_PARAMETER),
            profile: Vec::new(),
            forecast: Vec::new(),
            nodes,
        }
    }

    fn balancer(&self, layer: usize) -> Balancer {
        let layers = &self.balancers.layers;
        layers.get(layer).or(layers.first()).copied().unwrap_or(Balancer::None)
    }

    /// Slots of a rank beyond those that hold every expert once.
    fn extra(&self) -> usize {
        match self.balancer(0) {
            _ if self.nodes.len() == 1 => 0,
            Balancer::Shards => 1,
            _ => self.balancers.extra,
        }
    }

    /// Where a layer's balancer wants experts under these loads, in the slots that they have now; none where they stay.
    fn wanted(&self, layer: usize, loads: &[u64], now: &Placement) -> Option<Placement> {
        let balancer = self.balancer(layer);
        let shape = laer::Shape { nodes: &self.nodes, capacity: now.slots_per_rank() };
        let Some(next) = self.setting.by_loads(balancer, &self.plan, loads, shape) else { return self.home(now) };
        let next = match balancer {
            Balancer::Place | Balancer::Replicate => eplb::keep(now.experts_in_slots(), &next, now.ranks()),
            _ => next,
        };
        Placement::of_slots(next, now.experts(), now.ranks()).ok()
    }

    /// The same, where going there pays.
    fn balanced(&self, layer: usize, loads: &[u64], seen: usize, now: &Placement) -> Option<Placement> {
        let next = self.wanted(layer, loads, now)?;
        if self.migrated_bytes_per_parameter() == 0.0
            || !matches!(self.balancer(layer), Balancer::Place | Balancer::Replicate)
        {
            return Some(next);
        }
        let better = next.max_rank_load(loads) < now.max_rank_load(loads);
        (better && self.moves[layer].pay(&self.setting.costs, loads, [now, &next], seen, self.plan.placement_every))
            .then_some(next)
    }

    /// One copy of every expert, in order, where a layer whose balancer has changed has more.
    fn home(&self, now: &Placement) -> Option<Placement> {
        if !now.has_copies() || self.joins_replicas() {
            return None;
        }
        Placement::in_order(now.experts(), now.ranks(), now.slots_per_rank()).ok()
    }

    /// `[moe layer]`: the fullest rank over the mean in the profile's last iteration, experts where half of the profile before wanted
    /// them.
    fn forecast(&self) -> Vec<f64> {
        let profile = &self.setting.job.profile;
        let (Some(last), Some(earlier)) = (profile.last(), profile.get(profile.len().saturating_sub(1) / 2)) else {
            return Vec::new();
        };
        let of_layer = |(layer, moe): (usize, &Moe)| {
            let start = self.start(layer, moe, self.nodes.len());
            let placed = self.wanted(layer, &earlier.loads(layer), &start).unwrap_or(start);
            imbalance(&last.loads(layer), &placed)
        };
        self.setting.job.model.moe_layers().enumerate().map(of_layer).collect()
    }

    /// Whether layers may get other balancers while training goes on.
    fn may_change(&self) -> bool {
        !self.forecast.is_empty() && !self.joins_replicas() && self.extra() > 0
    }

    /// Prices a layer anew on the loads of the last iterations if they are balanced otherwise than its forecast said.
    fn revisit(&mut self, layer: usize, past: &LoadHistory, now: &Placement) {
        let Some(forecast) = self.forecast.get(layer).copied() else { return };
        let measured = imbalance(&past.sum(layer, 1, now.experts()), now);
        let surprise = (measured / forecast).max(forecast / measured);
        if !self.may_change() || surprise <= SURPRISE {
            return;
        }
        let Setting { job, costs, .. } = self.setting.as_ref();
        // What history shows is older than what it is for, as it will be.
        let (Some(before), Some(present)) = (balancers::as_batch(job, past, EVERY), balancers::as_batch(job, past, 0))
        else {
            return;
        };
        let rounds = [Round::new(&before, &present)];
        // Unlike at the start, going where loads want experts must pay: from places in order, wherever they are now.
        let policy = |plan: &Plan, balancers: &Balancers, _: &LoadHistory| -> Box<dyn Policy> {
            Box::new(Layered::new(&self.setting, plan, balancers))
        };
        let search = BalancerSearch { job, costs, every: EVERY, extra: EXTRA_SLOTS, policy: &policy };
        let mut choices = search.of_one_group();
        choices.retain(|balancer| self.may_replicate[layer] || *balancer != Balancer::Replicate);
        let chosen = search.of_layers(&self.plan, layer..layer + 1, &rounds, &choices, &self.balancers, WORTH_CHANGING);
        self.balancers.layers[layer] = chosen[0];
        self.forecast[layer] = measured;
    }

    /// Copies for one micro-batch and their quotas.
    fn quotas(&self, [least, slack]: [u64; 2], counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let (experts, ranks, loads) = (placement.experts(), placement.ranks(), counts.loads());
        let rank_of: Vec<usize> = (0..experts).map(|expert| placement.rank_of(expert)).collect();
        let homes = Homes { rank_of: &rank_of, domain_of: &self.nodes };
        let copies = quota::replicate(&loads, homes, Limits { room: self.extra(), least, slack });
        let steps = quota::steps(experts, ranks, copies.len(), quota::BOUNDS);
        let (copied, quotas) = split::in_slots(&loads, &copies, placement);
        LayerProgram::split(quotas, copied, Weights::Copied, steps)
    }

    /// Copies that stand, and the linear program's quotas for them.
    fn among_copies(counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let slots = placement.experts_in_slots();
        let quota = microep::split(&counts.loads(), slots, placement.ranks()).quota;
        let quota = Split::Quota(quota.into_iter().map(|entries| entries as u32).collect());
        LayerProgram::split(quota, Vec::new(), Weights::Stand, microep::steps(slots.len(), placement.ranks()))
    }

    /// Where experts are without any loads.
    fn start(&self, layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let own = moe.experts.div_ceil(ranks);
        let all = moe.experts * self.plan.expert_dp / ranks;
        let balancer = self.balancer(layer);
        let slots = match balancer {
            Balancer::Program => all,
            Balancer::Relay => all + self.extra(),
            // As many as a rank holds under the plan, as in LAER's own runs, and at least one for a copy.
            Balancer::Shards => (own + self.extra()).max(all),
            _ => return Placement::with_room(moe.experts, ranks, self.extra()),
        };
        self.setting.spread(balancer, moe.experts, laer::Shape { nodes: &self.nodes, capacity: slots })
    }
}

impl Policy for Layered {
    fn first_placement(&self, layer: usize, moe: &Moe, ranks: usize) -> Placement {
        // Step 1.
        let start = self.start(layer, moe, ranks);
        let wanted = self.profile.get(layer).and_then(|loads| self.wanted(layer, loads, &start));
        wanted.unwrap_or(start)
    }

    fn joins_replicas(&self) -> bool {
        self.balancer(0).joins_replicas()
    }

    fn storage(&self) -> Storage {
        match self.balancer(0) {
            Balancer::Shards => Storage::Shards,
            Balancer::Relay => Storage::OptimizerShards,
            _ => Storage::Slots,
        }
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        match self.storage() {
            Storage::Slots => MIGRATED_BYTES_PER_PARAMETER,
            _ => 0.0,
        }
    }

    fn placement_due(&self, iteration: usize) -> bool {
        let every = if self.balancer(0).follows_every_iteration() { 1 } else { self.plan.placement_every };
        let follows = |balancer: &Balancer| !matches!(balancer, Balancer::None | Balancer::Program);
        plan::is_due(every, iteration) && (self.may_change() || self.balancers.layers.iter().any(follows))
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let window = if self.balancer(0).follows_every_iteration() { 1 } else { EVERY };
        // Step 2.
        self.revisit(layer, past, now);
        // Step 3.
        let (loads, seen) = (past.sum(layer, window, now.experts()), past.len().min(window));
        self.balanced(layer, &loads, seen, now).filter(|next| next != now).map_or(Decision::Stay, Decision::Move)
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        // Step 4.
        match self.balancer(layer) {
            Balancer::Quota { least, slack } if placement.ranks() > 1 => self.quotas([least, slack], counts, placement),
            Balancer::Shards => {
                let rows = laer::route(counts, placement.experts_in_slots(), &self.nodes);
                LayerProgram::split(Split::Rows(rows), Vec::new(), Weights::Sharded, 0)
            }
            _ if placement.has_copies() => Self::among_copies(counts, placement),
            _ => LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0),
        }
    }
}

/// The load of the fullest rank over the mean, copies sharing evenly.
fn imbalance(loads: &[u64], placement: &Placement) -> f64 {
    let total: u64 = loads.iter().sum();
    placement.max_rank_load(loads) as f64 * placement.ranks() as f64 / total.max(1) as f64
}

/// What a layer's experts got in the profile.
fn profiled(job: &Job, layer: usize, moe: &Moe) -> Vec<u64> {
    sum_of_loads(moe.experts, job.profile.iter().map(|batch| batch.loads(layer)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iteration::{Charge, Coverage, Evaluation, Exceeded, Limit, Start};
    use crate::plan::routing::JobRouting;
    use crate::plan::search;
    use workloads::suite::TraceUse;
    use workloads::trace::{Skew, SkewSpec, TraceShape};
    use workloads::{Cluster, Gate, Model};

    /// The first blocks of a model of the paper on eight GPUs with a part of the memory that their usual cluster has.
    fn job(max_over_mean: f64, seed: u64, memory: f64) -> Job {
        let mut model = Model::named("test", "gpt-l16-h1536-e64").unwrap();
        model.blocks.truncate(4);
        let mut cluster = Cluster::named("test", "pinky").unwrap();
        cluster.gpu.memory.value = cluster.gpu.memory_reserved.value + cluster.gpu.usable().0 * memory;
        let (layers, moe) = (model.moe_layers().count(), *model.moe_layers().next().unwrap());
        let top_k = model.top_k as u32;
        let shape =
            TraceShape { layers, micro_batches: 1, ranks: 4, experts: moe.experts, entries: 512 * top_k, top_k };
        let skew = Skew { max_over_mean: Some(max_over_mean), ..Skew::default() };
        let trace = SkewSpec { shape, samples: 4, step: 1, seed, skew }.generate().unwrap();
        let job = Job::new(model, cluster, 8, Gate::NoDrop, 32).with_micro_batch(1);
        let routing = JobRouting::new(&job, TraceUse::default(), &trace, 0).unwrap();
        job.with_profile((0..3).map(|t| routing.iteration(t)).collect())
    }

    /// A search that ends evaluations early and remembers where balancers want experts ranks plans as one that runs them all to their ends and
    /// remembers nothing, where memory is plenty, short and too little for any plan.
    #[test]
    fn ending_evaluations_early_changes_no_candidate() {
        let (mut usable, mut rejected) = (0, 0);
        for (max_over_mean, seed) in [(1.2, 0), (2.0, 1), (3.5, 2)] {
            for memory in [1.0, 0.85, 0.7, 0.5, 0.3] {
                let job = job(max_over_mean, seed, memory);
                let costs = CostModel::new(&job.cluster, job.gpus);
                let candidates = searching(&job, &costs, |search| search.candidates());
                let plain = searching_in(Setting::new(&job, &costs), |search| search.candidates_to_their_ends());
                assert_eq!(candidates, plain, "{max_over_mean} {memory}");
                let fits = candidates.iter().filter(|candidate| candidate.outcome.is_ok()).count();
                usable += usize::from(fits > 0);
                rejected += candidates.len() - fits;
            }
        }
        assert!(usable > 5 && rejected > 100, "{usable} searches with a plan, {rejected} plans rejected");
    }

    /// Experts are priced where training begins with them, though going there would never pay for itself.
    #[test]
    fn a_search_starts_with_experts_where_the_profile_wants_them() {
        let job = job(3.0, 3, 1.0);
        let plan = Plan { dp: 8, ep: 8, placement_every: 1, ..Plan::default() };
        let choice = searching(&job, &CostModel::new(&job.cluster, job.gpus), |search| search.choose(&plan));
        let step = |name: &str| choice.tried.iter().find(|(tried, _)| *tried == name).unwrap().1.clone().unwrap();
        assert!(step("place") < step("none"), "{:?}", choice.tried);
    }

    /// A move must pay for itself before the plan's next placement.
    #[test]
    fn experts_move_where_that_pays_until_the_next_placement() {
        let job = job(3.0, 3, 1.0);
        let setting = Arc::new(Setting::new(&job, &CostModel::new(&job.cluster, job.gpus)));
        let moe = job.model.moe_layers().next().unwrap();
        let loads: Vec<u64> = (0..moe.experts).map(|expert| if expert < 4 { 3000 } else { 100 }).collect();
        for (placement_every, moves) in [(1, false), (10_000, true)] {
            let plan = Plan { dp: 8, ep: 8, placement_every, ..Plan::default() };
            let policy = Layered::new(&setting, &plan, &Balancers { layers: vec![Balancer::Place], extra: 0 });
            let start = policy.first_placement(0, moe, plan.ep);
            assert_eq!(policy.balanced(0, &loads, 1, &start).is_some(), moves, "{placement_every}");
        }
    }

    /// One expert is hot where all were to be alike, and moves pay: copies that stand are best, and made where the plan's memory was asked for
    /// them.
    #[test]
    fn a_surprised_layer_gets_no_copies_that_memory_was_not_asked_for() {
        let job = job(3.0, 3, 1.0);
        let setting = Arc::new(Setting::new(&job, &CostModel::new(&job.cluster, job.gpus)));
        let plan = Plan { dp: 8, ep: 8, placement_every: 10_000, ..Plan::default() };
        plan.check(&job).unwrap();
        let moes: Vec<&Moe> = job.model.moe_layers().collect();
        let mut past = LoadHistory::default();
        for _ in 0..=EVERY {
            past.push(
                moes.iter().map(|moe| (0..moe.experts).map(|e| if e == 0 { 9000 } else { 100 }).collect()).collect(),
            );
        }
        let surprised = |fitted: Balancer, now: Balancer| {
            let of_all = |balancer| Balancers { layers: vec![balancer; moes.len()], extra: EXTRA_SLOTS };
            let mut policy = Layered::new(&setting, &plan, &of_all(fitted));
            policy.balancers = of_all(now);
            policy.forecast = vec![1.0; moes.len()];
            let decision = policy.place(EVERY, 0, &past, &policy.first_placement(0, moes[0], plan.ep));
            let copied = matches!(decision, Decision::Move(next) if next.has_copies());
            assert_eq!(copied, policy.balancer(0) == Balancer::Replicate);
            policy.balancer(0)
        };
        let quota = Balancer::Quota { least: 1_000_000, slack: 0 };
        for now in [Balancer::None, Balancer::Place, quota] {
            assert_eq!(surprised(Balancer::Replicate, now), Balancer::Replicate, "{now:?}");
            let chosen = surprised(now, now);
            assert!(chosen != now && chosen != Balancer::Replicate, "{now:?}: {chosen:?}");
        }
    }

    /// Nothing balances layers that were profiled even; once one expert is hot, they get copies.
    #[test]
    fn layers_that_were_even_are_balanced_once_they_are_not() {
        let job = job(1.0, 3, 1.0);
        let plan = Plan { dp: 8, ep: 8, placement_every: EVERY, ..Plan::default() };
        let mut policy = CoBalance.policy(&job, &plan);
        let moes: Vec<&Moe> = job.model.moe_layers().collect();
        let experts = moes[0].experts;
        let hot = |expert: usize| if expert == 0 { 9000 } else { 100 };
        let counts = RoutingCounts::evenly(&(0..experts).map(hot).collect::<Vec<u64>>(), plan.ep);
        let placement = policy.first_placement(0, moes[0], plan.ep);
        assert!(policy.program(0, &counts, &placement).copies.is_empty() && policy.placement_due(EVERY));
        let mut past = LoadHistory::default();
        for _ in 0..=EVERY {
            past.push(moes.iter().map(|_| (0..experts).map(hot).collect()).collect());
        }
        let placement = match policy.place(EVERY, 0, &past, &placement) {
            Decision::Move(next) => next,
            Decision::Stay => placement,
        };
        assert!(!policy.program(0, &counts, &placement).copies.is_empty());
        // A layer that is as even as it was stays as it is.
        assert!(policy.program(1, &counts, &policy.first_placement(1, moes[1], plan.ep)).copies.is_empty());
    }

    /// Under every balancer: an evaluation that is not ended is the whole one, one that is has a whole one beyond the limit, by no less than
    /// was said.
    #[test]
    fn an_evaluation_ends_early_only_where_it_exceeds_the_limit() {
        let job = job(3.0, 3, 1.0);
        let setting = Arc::new(Setting::new(&job, &CostModel::new(&job.cluster, job.gpus)));
        let quota = Balancer::Quota { least: 1, slack: 0 };
        let all = [Balancer::None, Balancer::Replicate, quota, Balancer::Program, Balancer::Relay, Balancer::Shards];
        let (mut slow, mut large) = (0, 0);
        for plan in search::pools(&job).into_iter().map(|pool| pool.plan(EVERY)) {
            for balancer in all {
                let policy = Layered::new(&setting, &plan, &Balancers { layers: vec![balancer], extra: EXTRA_SLOTS });
                let Start { plan, placements } = Start::new(&job, &plan, &policy);
                let charges = vec![Charge::default(); plan.pp];
                let evaluation = Evaluation {
                    job: &job,
                    plan: &plan,
                    costs: &setting.costs,
                    policy: &policy,
                    placements: &placements,
                    batch: &job.profile[0],
                    charges: &charges,
                    coverage: Coverage::Sample,
                };
                let whole = evaluation.run();
                for part in [0.1, 0.5, 0.9, 0.99, 1.01] {
                    let step = Limit { step: whole.step * part, ..Limit::NONE };
                    let bytes = Limit { bytes: whole.peak.bytes * part, ..Limit::NONE };
                    for limit in [step, bytes] {
                        match evaluation.run_within(limit) {
                            Ok(timing) => assert_eq!(timing, whole, "{plan} {balancer:?} {limit:?}"),
                            Err(Exceeded::Step(least)) => {
                                assert!(
                                    limit.step < least && least <= whole.step * (1.0 + 1e-9),
                                    "{plan} {balancer:?}"
                                );
                                slow += 1;
                            }
                            Err(Exceeded::Memory(held)) => {
                                assert!(
                                    limit.bytes < held.bytes && held.bytes <= whole.peak.bytes,
                                    "{plan} {balancer:?}"
                                );
                                large += 1;
                            }
                        }
                    }
                }
            }
        }
        assert!(slow > 300 && large > 300, "{slow} ended for their time, {large} for their memory");
    }
}
