//! CoBalance, this project's own: the plan and the balancers of its layers are chosen together, offline, each priced on the profiled
//! routing, within memory.
//!
//! *Offline* ([`crate::plan::balancers`]), for every plan: 1. each layer is priced under none, placing by history, replicating by history, and quotas inside the
//! node; history is what iterations of the profile before the priced one show, so drift counts. 2. Against that mixture stand plain expert
//! parallelism, quotas in every layer, a linear program over the replicas of all groups, and shards over the stage. 3. The one with the least
//! estimate is the plan's. Plans are tried in the order of their estimates under even loads, which balancing does not
//! beat: the search ends where that of the next plan is above the best found.
//! *Online*, every few iterations: placed and replicated layers follow the loads; a layer whose loads are balanced otherwise than its
//! forecast said is priced anew on the loads measured.
//!
//! A copy for one micro-batch is made for no fewer entries than pay for it: those whose products on the full rank take as long as
//! the weights' way there, or all ways of weights and gradients.

use std::fmt::Write;
use std::sync::Arc;

use workloads::model::Moe;
use workloads::trace::BatchCounts;

use crate::balance::eplb::{self, Shape};
use crate::balance::quota::{self, Homes, Limits};
use crate::balance::{laer, microep};
use crate::plan;
use crate::plan::balancers::{self, Balancer, BalancerSearch, Choice};
use crate::plan::memory::MIGRATED_BYTES_PER_PARAMETER;
use crate::program::Weights;
use crate::program::routing::sum_of_loads;
use crate::program::split::{self, Split};
use crate::{
    About, Candidate, CostModel, Decision, Job, LayerProgram, LoadHistory, Placement, Plan, PlanError, Policy,
    RoutingCounts, Storage, System,
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

/// How much lower the fullest rank must be after a placement, in percent, so that experts move for it.
const WORTH_MOVING: u64 = 5;

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
        let setting = Arc::new(Setting::new(job));
        let layers = searching(job, &setting.costs, |search| search.choose(plan)).layers;
        let mut policy = Layered::new(&setting, plan, layers);
        policy.forecast = forecast(job, policy.nodes.len());
        Box::new(policy)
    }

    fn explain(&self, job: &Job, plan: &Plan) -> Option<String> {
        let choice = searching(job, &CostModel::new(&job.cluster, job.gpus), |search| search.choose(plan));
        Some(reasons(plan, &choice))
    }
}

/// The system's search.
fn searching<T>(job: &Job, costs: &CostModel, then: impl FnOnce(&BalancerSearch) -> T) -> T {
    let setting = Arc::new(Setting { job: job.clone(), costs: costs.clone() });
    let policy = |plan: &Plan, layers: &[Balancer]| -> Box<dyn Policy> {
        Box::new(Layered::new(&setting, plan, layers.to_vec()))
    };
    then(&BalancerSearch { job, costs, every: EVERY, policy: &policy })
}

fn reasons(plan: &Plan, choice: &Choice) -> String {
    let mut text = format!("balancers under {plan}:");
    let mut first = 0;
    for same in choice.layers.chunk_by(|a, b| a == b) {
        let last = first + same.len() - 1;
        let _ = write!(text, " layers {first} to {last} {},", same[0].name());
        first = last + 1;
    }
    text.truncate(text.len() - 1);
    text += "\nan iteration with the same in all layers:";
    for (name, outcome) in &choice.tried {
        let _ = match outcome {
            Ok(step) => write!(text, " {name} {:.0} ms,", step.0 * 1e3),
            Err(PlanError::Memory { .. }) => write!(text, " {name} does not fit into memory,"),
            Err(reason) => write!(text, " {name}: {reason},"),
        };
    }
    text.truncate(text.len() - 1);
    text
}

/// What all policies of a search share.
struct Setting {
    job: Job,
    costs: CostModel,
}

impl Setting {
    fn new(job: &Job) -> Self {
        Self { job: job.clone(), costs: CostModel::new(&job.cluster, job.gpus) }
    }
}

/// A balancer for each layer.
struct Layered {
    setting: Arc<Setting>,
    plan: Plan,
    /// `[moe layer]`; all of them program or shards, or none.
    layers: Vec<Balancer>,
    /// `[moe layer]`: the fullest rank over the mean, experts in order; nothing during a search.
    forecast: Vec<f64>,
    /// `[rank]` of the group.
    nodes: Vec<usize>,
}

impl Layered {
    fn new(setting: &Arc<Setting>, plan: &Plan, layers: Vec<Balancer>) -> Self {
        let joined = matches!(layers.first(), Some(Balancer::Program | Balancer::Shards));
        let ranks = if joined { plan.stage_ranks() } else { plan.ep };
        let nodes = setting.costs.group(0..ranks, 1).nodes().to_vec();
        Self { setting: Arc::clone(setting), plan: *plan, layers, forecast: Vec::new(), nodes }
    }

    fn balancer(&self, layer: usize) -> Balancer {
        self.layers.get(layer).or(self.layers.first()).copied().unwrap_or(Balancer::None)
    }

    /// Slots of a rank beyond those that hold every expert once.
    fn extra(&self) -> usize {
        let uses = |balancer: &Balancer| matches!(balancer, Balancer::Replicate | Balancer::Quota { .. });
        match self.layers.first() {
            _ if self.nodes.len() == 1 => 0,
            Some(Balancer::Shards) => 1,
            _ if self.layers.iter().any(uses) => EXTRA_SLOTS,
            _ => 0,
        }
    }

    /// Where a layer's balancer puts experts under these loads; none where it stays.
    fn balanced(&mut self, layer: usize, loads: &[u64], now: &Placement) -> Option<Placement> {
        let shape = Shape { ranks: now.ranks(), slots: now.slots_per_rank(), nodes: 1 };
        let next = match self.balancer(layer) {
            Balancer::Replicate => eplb::global(loads, shape),
            Balancer::Place => {
                let mut slots = vec![None; now.experts_in_slots().len()];
                let mut taken = vec![0; shape.ranks];
                for (expert, rank) in eplb::pack(loads, shape.ranks).into_iter().enumerate() {
                    slots[rank * shape.slots + taken[rank]] = Some(expert);
                    taken[rank] += 1;
                }
                slots
            }
            Balancer::Shards => {
                let counts = RoutingCounts::evenly(loads, shape.ranks);
                let shape = laer::Shape { nodes: &self.nodes, capacity: shape.slots };
                let slots = laer::plan(
                    &counts,
                    shape,
                    balancers::shard_prices(&self.setting.job, &self.plan, &self.setting.costs)?,
                );
                return Placement::of_slots(slots, now.experts(), now.ranks()).ok();
            }
            Balancer::None | Balancer::Quota { .. } | Balancer::Program => return self.home(now),
        };
        let next = eplb::keep(now.experts_in_slots(), &next, now.ranks());
        let next = Placement::of_slots(next, now.experts(), now.ranks()).ok()?;
        let (before, after) = (now.max_rank_load(loads), next.max_rank_load(loads));
        (after * 100 <= before * (100 - WORTH_MOVING)).then_some(next)
    }

    /// One copy of every expert, in order, where a layer whose balancer has changed has more.
    fn home(&self, now: &Placement) -> Option<Placement> {
        if !now.has_copies() || self.joins_replicas() {
            return None;
        }
        Placement::in_order(now.experts(), now.ranks(), now.slots_per_rank()).ok()
    }

    /// Prices a layer anew on the loads of the last iterations if they are balanced otherwise than its forecast said.
    fn revisit(&mut self, layer: usize, loads: &[u64], past: &LoadHistory) {
        let Some(forecast) = self.forecast.get(layer).copied() else { return };
        let measured = imbalance(loads, self.nodes.len());
        let surprise = (measured / forecast).max(forecast / measured);
        if self.joins_replicas() || self.extra() == 0 || surprise <= SURPRISE {
            return;
        }
        let Setting { job, costs } = self.setting.as_ref();
        // What history shows is older than what it is for, as it will be.
        let (Some(before), Some(now)) = (as_batch(job, past, EVERY), as_batch(job, past, 0)) else { return };
        self.layers[layer] = searching(job, costs, |search| {
            search.of_layer(&self.plan, layer, &[(&before, &now)], self.layers[layer], WORTH_CHANGING)
        });
        self.forecast[layer] = measured;
    }

    /// Copies for one micro-batch and their quotas.
    fn quotas(&self, least: u64, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        let (experts, ranks, loads) = (placement.experts(), placement.ranks(), counts.loads());
        let rank_of: Vec<usize> = (0..experts).map(|expert| placement.rank_of(expert)).collect();
        let homes = Homes { rank_of: &rank_of, domain_of: &self.nodes };
        let copies = quota::replicate(&loads, homes, Limits { room: self.extra(), least });
        let steps = quota::steps(experts, ranks, copies.len(), quota::BOUNDS);
        let (copied, quotas) = split::in_slots(&loads, &copies, placement);
        LayerProgram::split(quotas, copied, Weights::Copied, steps)
    }
}

impl Policy for Layered {
    fn first_placement(&self, layer: usize, moe: &Moe, ranks: usize) -> Placement {
        let own = moe.experts.div_ceil(ranks);
        let slots = match self.balancer(layer) {
            Balancer::Program => microep::symmetric(moe.experts, ranks, moe.experts * self.plan.expert_dp / ranks),
            Balancer::Shards => {
                let (loads, capacity) = (vec![1; moe.experts], own + self.extra());
                let copies = laer::even(&loads, ranks * capacity);
                laer::relocate(&loads, &copies, laer::Shape { nodes: &self.nodes, capacity })
            }
            _ => return Placement::with_room(moe.experts, ranks, self.extra()),
        };
        Placement::of_slots(slots, moe.experts, ranks).expect("every expert has a copy")
    }

    fn joins_replicas(&self) -> bool {
        matches!(self.layers.first(), Some(Balancer::Program | Balancer::Shards))
    }

    fn storage(&self) -> Storage {
        if self.layers.first() == Some(&Balancer::Shards) { Storage::Shards } else { Storage::Slots }
    }

    fn migrated_bytes_per_parameter(&self) -> f64 {
        match self.storage() {
            Storage::Slots => MIGRATED_BYTES_PER_PARAMETER,
            _ => 0.0,
        }
    }

    fn placement_due(&self, iteration: usize) -> bool {
        let every = if self.storage() == Storage::Shards { 1 } else { self.plan.placement_every };
        let follows = |balancer: &Balancer| !matches!(balancer, Balancer::None | Balancer::Program);
        plan::is_due(every, iteration) && self.layers.iter().any(follows)
    }

    fn place(&mut self, _iteration: usize, layer: usize, past: &LoadHistory, now: &Placement) -> Decision {
        let window = if self.storage() == Storage::Shards { 1 } else { EVERY };
        let loads = past.sum(layer, window, now.experts());
        self.revisit(layer, &loads, past);
        self.balanced(layer, &loads, now).filter(|next| next != now).map_or(Decision::Stay, Decision::Move)
    }

    fn program(&self, layer: usize, counts: &RoutingCounts, placement: &Placement) -> LayerProgram {
        match self.balancer(layer) {
            Balancer::Quota { least } if placement.ranks() > 1 => self.quotas(least, counts, placement),
            Balancer::Program if placement.has_copies() => {
                let slots = placement.experts_in_slots();
                let quota = microep::split(&counts.loads(), slots, placement.ranks()).quota;
                let quota = Split::Quota(quota.into_iter().map(|entries| entries as u32).collect());
                LayerProgram::split(quota, Vec::new(), Weights::Stand, microep::steps(slots.len(), placement.ranks()))
            }
            Balancer::Shards => {
                let rows = laer::route(counts, placement.experts_in_slots(), &self.nodes);
                LayerProgram::split(Split::Rows(rows), Vec::new(), Weights::Sharded, 0)
            }
            _ => LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0),
        }
    }
}

/// The load of the fullest rank over the mean, experts in order.
fn imbalance(loads: &[u64], ranks: usize) -> f64 {
    let fullest = loads.chunks(loads.len().div_ceil(ranks)).map(|own| own.iter().sum::<u64>()).max().unwrap_or(0);
    let total: u64 = loads.iter().sum();
    fullest as f64 * ranks as f64 / total.max(1) as f64
}

/// Of every layer of the profile.
fn forecast(job: &Job, ranks: usize) -> Vec<f64> {
    let of_layer = |(layer, moe): (usize, &Moe)| {
        imbalance(&sum_of_loads(moe.experts, job.profile.iter().map(|batch| batch.loads(layer))), ranks)
    };
    job.model.moe_layers().enumerate().map(of_layer).collect()
}

/// A batch in which every sample chooses as an iteration did on the whole, `ago` iterations before the last, or the first; none for
/// layers of different numbers of experts.
fn as_batch(job: &Job, past: &LoadHistory, ago: usize) -> Option<BatchCounts> {
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
