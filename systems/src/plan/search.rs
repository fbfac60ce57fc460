//! Offline search: which plans fit a job, and what an iteration under each is expected to take.
//!
//! Every system searches with the same evaluator as the simulator, on a profile of the job's routing.

use workloads::suite::SearchSpace;
use workloads::trace::BatchCounts;
use workloads::{Bytes, Seconds};

use crate::iteration::outline::Outline;
use crate::iteration::schedule::Position;
use crate::iteration::{Charge, Coverage, Evaluation, Exceeded, Limit, Peak, Start};
use crate::plan::job::Job;
use crate::plan::memory::StageMemory;
use crate::plan::placement::Placement;
use crate::plan::{Plan, PlanError, Recompute, Zero};
use crate::price::cost::CostModel;
use crate::price::ledger::Ledger;
use crate::{Decision, LoadHistory, Policy, Storage, System};

/// A plan and what became of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The plan.
    pub plan: Plan,
    /// Its estimate, or why it cannot be used.
    pub outcome: Result<Estimate, PlanError>,
}

/// What an iteration under a plan is predicted to take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Duration of an iteration.
    pub step: Seconds,
    /// Where it goes on the stage that works longest.
    pub phases: Ledger,
    /// The fullest rank.
    pub peak: Peak,
}

/// All plans that differ in the placement of experts alone (SmartMoE, section 4): a run can go from one to another while it
/// trains, by moving experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What its plans share: the plan that starts with experts in order and leaves them there.
    shared: Plan,
}

impl Pool {
    /// The pool's plan that starts with experts in order and places them every `placement_every` iterations; 0 for never.
    pub fn plan(self, placement_every: usize) -> Plan {
        Plan { placement_every, ..self.shared }
    }
}

/// The candidates of a search over those of the job's pools whose plans are `allowed`, fastest first; `evaluate` rates one. Where the job's search space is
/// degrees alone, all are evaluated. Else there are too many, and a search prunes three ways:
///
/// - A plan is dropped if one that recomputes less, and is otherwise equal, fits: recomputing saves memory and nothing else.
///   Optimizer state is always sharded, because that costs a few start-ups at the most.
/// - A plan that cannot fit whatever the routing is rejected by what it needs at least.
/// - Of the others, those with the least [`Outline`]s are evaluated, until outlines are [`SLACK`] times what the fastest plan takes
///   or [`EVALUATED`] plans fit; the rest is listed with its outline.
///
/// Outlines and least memory are those of plain expert parallelism. Where a system may take far less (`balances`: it has
/// copies or shards of experts), both only say which plans are evaluated first.
pub fn over_pools(
    performance: &PerformanceModel,
    balances: impl Fn(&Plan) -> bool,
    allowed: impl Fn(&Plan) -> bool,
    evaluate: impl Fn(Pool) -> Candidate,
) -> Vec<Candidate> {
    let job = performance.job;
    if job.search == SearchSpace::Degrees {
        return rank(pools(job).into_iter().filter(|pool| allowed(&pool.shared)).map(evaluate).collect());
    }
    let outline = Outline::new(job, performance.costs, performance.profile);
    let plans: Vec<Plan> = all_plans(job).into_iter().filter(allowed).collect();
    let balances = plans.iter().max_by_key(|plan| plan.ep).is_some_and(balances);
    let slack = if balances { f64::INFINITY } else { SLACK };
    let mut candidates = Vec::new();
    let mut outlined = Vec::new();
    for shared in plans {
        match may_fit(job, &shared) {
            Ok(()) => outlined.push((outline.step(&shared, || shared.experts_in_order(job)), shared)),
            Err(_) if balances => outlined.push((outline.step(&shared, || shared.experts_in_order(job)), shared)),
            Err(error) => candidates.push(Candidate { plan: shared, outcome: Err(error) }),
        }
    }
    outlined.sort_by(|(a, p), (b, q)| a.0.total_cmp(&b.0).then(p.cmp(q)));
    let (mut fastest, mut fitting) = (Seconds(f64::INFINITY), Vec::<Plan>::new());
    for (about, shared) in outlined {
        if fitting.iter().any(|other| dominates(other, &shared)) {
            continue;
        }
        if fitting.len() == EVALUATED || about > fastest * slack {
            let outcome = Err(PlanError::Outlined { plan: Box::new(shared), about, fastest });
            candidates.push(Candidate { plan: shared, outcome });
            continue;
        }
        let candidate = evaluate(Pool { shared });
        if let Ok(estimate) = &candidate.outcome {
            fastest = fastest.min(estimate.step);
            fitting.push(shared);
        }
        candidates.push(candidate);
    }
    rank(candidates)
}

/// Plans that fit and are evaluated, at most. Not sourced: what a search of seconds has time for.
const EVALUATED: usize = 16;

/// How much less than its estimate a plan's outline may promise. Not sourced.
const SLACK: f64 = 1.1;

/// Whether `other` differs from `plan` in recomputing less, and in nothing else.
fn dominates(other: &Plan, plan: &Plan) -> bool {
    other.recompute < plan.recompute && Plan { recompute: plan.recompute, ..*other } == *plan
}

/// Every plan of the space of all dimensions.
pub(crate) fn all_plans(job: &Job) -> Vec<Plan> {
    let mut plans = Vec::new();
    for pp in divisors(job.gpus).take_while(|&pp| pp <= job.model.blocks.len()) {
        for tp in divisors(job.gpus / pp).filter(|&tp| tp <= job.cluster.gpus_per_node) {
            let dp = job.gpus / pp / tp;
            for ep in divisors(dp * tp).filter(|ep| ep.is_multiple_of(tp) || tp.is_multiple_of(*ep)) {
                for micro_batch in micro_batches(job, dp) {
                    for vp in virtual_stages(job, pp) {
                        let shape =
                            Plan { pp, dp, tp, ep, expert_dp: dp * tp / ep, micro_batch, vp, ..Plan::default() };
                        if shape.check(job).is_ok() {
                            plans.extend(with_less_memory(shape));
                        }
                    }
                }
            }
        }
    }
    plans
}

/// A plan with every way to save memory, the one that takes least time first.
fn with_less_memory(shape: Plan) -> impl Iterator<Item = Plan> {
    let sharding = if shape.stage_ranks() > 1 { &Zero::ALL[1..] } else { &Zero::ALL[..1] };
    let of_zero = move |&zero| Recompute::ALL.map(|recompute| Plan { zero, recompute, ..shape });
    sharding.iter().flat_map(of_zero)
}

/// Every pool whose degrees fit the job. Stages hold equally many blocks, tensor parallelism stays inside a node.
pub fn pools(job: &Job) -> Vec<Pool> {
    let mut pools = Vec::new();
    for pp in divisors(job.gpus) {
        if !job.model.blocks.len().is_multiple_of(pp) {
            continue;
        }
        for tp in divisors(job.gpus / pp).filter(|&tp| tp <= job.cluster.gpus_per_node) {
            let dp = job.gpus / pp / tp;
            for ep in divisors(dp * tp) {
                for micro_batch in micro_batches(job, dp) {
                    let shared = Plan { pp, dp, tp, ep, expert_dp: dp * tp / ep, micro_batch, ..Plan::default() };
                    if shared.check(job).is_ok() {
                        pools.push(Pool { shared });
                    }
                }
            }
        }
    }
    pools
}

/// What SmartMoE's search makes of a system that has none of its own: every pool under the system's programs, fastest first. The
/// candidates of one that has.
pub fn searched(system: &dyn System, job: &Job, costs: &CostModel) -> Vec<Candidate> {
    if system.searches() {
        return system.candidates(job, costs);
    }
    under_own_policy(system, job, costs, 0, |_| true)
}

/// The first plan of ranked candidates that can be used, and what is expected of it.
///
/// # Errors
/// When none can: that of the plan which lacks least memory, where memory is what plans lack; else the reason of the last one.
pub fn first_usable(candidates: Vec<Candidate>) -> Result<(Plan, Estimate), PlanError> {
    let (mut closest, mut last): (Option<(Bytes, PlanError)>, _) = (None, PlanError::NoCandidate);
    for candidate in candidates {
        match candidate.outcome {
            Ok(estimate) => return Ok((candidate.plan, estimate)),
            Err(PlanError::Memory { need, .. }) if closest.as_ref().is_some_and(|(least, _)| *least <= need) => {}
            Err(error @ PlanError::Memory { need, .. }) => closest = Some((need, error)),
            Err(error) => last = error,
        }
    }
    Err(closest.map_or(last, |(_, error)| error))
}

/// The plan of a rank, from 1, among ranked candidates, and what is expected of it.
///
/// # Errors
/// When there are not so many, or why that one cannot be used.
pub fn ranked(mut candidates: Vec<Candidate>, rank: usize) -> Result<(Plan, Estimate), PlanError> {
    if rank == 0 || rank > candidates.len() {
        return Err(PlanError::NoSuchRank { rank, found: candidates.len() });
    }
    let candidate = candidates.swap_remove(rank - 1);
    candidate.outcome.map(|estimate| (candidate.plan, estimate))
}

/// The plans of expert parallelism alone, the fastest micro-batch first: no pipeline, no tensor parallelism, and as many ranks
/// per set of experts as divide both. Whether they fit is asked of the system's own policy. Where the job's search may, all shard
/// optimizer state at least, and those that shard and recompute more are among them.
pub fn expert_parallel(system: &dyn System, job: &Job, costs: &CostModel) -> Vec<Candidate> {
    expert_parallel_with(system, job, costs, &[Zero::Off])
}

/// The same, under these stages of ZeRO one after the other where the job's search is over degrees alone.
pub fn expert_parallel_with(system: &dyn System, job: &Job, costs: &CostModel, stages: &[Zero]) -> Vec<Candidate> {
    let ep = job.model.moe_layers().fold(job.gpus, |ep, moe| greatest_common_divisor(ep, moe.experts));
    let performance = PerformanceModel { job, costs, profile: &job.profile };
    let dp = job.gpus;
    let shape = Plan { dp, ep, expert_dp: dp / ep, ..Plan::default() };
    let saving: Vec<Plan> = match job.search {
        SearchSpace::Degrees => stages.iter().map(|&zero| Plan { zero, ..shape }).collect(),
        SearchSpace::All => with_less_memory(shape).collect(),
    };
    let rate = |plan: Plan| {
        let policy = system.policy(job, &plan);
        let placements = Start::new(job, &plan, policy.as_ref()).placements;
        let estimate = || performance.estimate(&plan, policy.as_ref(), &placements);
        // A system may recompute of its own accord.
        let as_run = Plan { recompute: policy.recompute(&plan), ..plan };
        // Only of state in slots is the least that ranks hold known without them.
        let hopeless = if policy.storage() == Storage::Slots { may_fit(job, &as_run) } else { Ok(()) };
        Candidate { plan, outcome: hopeless.and_then(|()| estimate()) }
    };
    let sizes = micro_batches(job, dp);
    let sized = |plan: Plan| sizes.iter().rev().map(move |&micro_batch| Plan { micro_batch, ..plan });
    match job.search {
        SearchSpace::Degrees => saving.into_iter().flat_map(|plan| rank(sized(plan).map(rate).collect())).collect(),
        SearchSpace::All => rank(saving.into_iter().flat_map(sized).map(rate).collect()),
    }
}

/// Every pool that `fits` under the system's own policy, fastest first, with experts where the policy puts them under the loads of the
/// profile.
pub fn under_own_policy(
    system: &dyn System,
    job: &Job,
    costs: &CostModel,
    placement_every: usize,
    fits: impl Fn(&Plan) -> bool,
) -> Vec<Candidate> {
    let performance = PerformanceModel { job, costs, profile: &job.profile };
    let balances = |plan: &Plan| {
        let policy = system.policy(job, plan);
        let start = Start::new(job, plan, policy.as_ref());
        policy.storage() != Storage::Slots || start.placements.iter().any(|placement| !placement.is_bijection())
    };
    over_pools(&performance, balances, fits, |pool| rated(system, job, costs, pool.plan(placement_every)))
}

/// A plan under the system's own policy, experts where it puts them under the loads of the profile.
pub fn rated(system: &dyn System, job: &Job, costs: &CostModel, plan: Plan) -> Candidate {
    let estimate = || {
        plan.check(job)?;
        let mut policy = system.policy(job, &plan);
        let performance = PerformanceModel { job, costs, profile: &job.profile };
        let placements = performance.placed(&plan, policy.as_mut());
        performance.estimate(&plan, policy.as_ref(), &placements)
    };
    Candidate { plan, outcome: estimate() }
}

/// The micro-batch that the job fixes, or all powers of two that divide a replica's share.
pub fn micro_batches(job: &Job, dp: usize) -> Vec<usize> {
    match job.micro_batch {
        Some(fixed) => vec![fixed],
        None => (0..)
            .map(|power| 1 << power)
            .take_while(|m| dp * m <= job.global_batch)
            .filter(|m| job.global_batch.is_multiple_of(dp * m))
            .collect(),
    }
}

/// What a tuning run makes of `plans`: the fastest under even routing first; those that the profile's routing leaves no memory
/// for, last. `plans` come with the least recomputation first: nothing is computed twice that there is memory for.
pub fn tuned(system: &dyn System, job: &Job, costs: &CostModel, plans: Vec<Plan>) -> Vec<Candidate> {
    let even = job.uniform_profile();
    let under = |plan: &Plan, profile| {
        let policy = system.policy(job, plan);
        PerformanceModel { job, costs, profile }.estimate(plan, policy.as_ref(), &plan.experts_in_order(job))
    };
    let mut tuned: Vec<Candidate> = Vec::new();
    for plan in plans {
        let less = |other: &Candidate| other.outcome.is_ok() && dominates(&other.plan, &plan);
        if !tuned.iter().any(less) {
            let outcome = may_fit(job, &plan).and_then(|()| under(&plan, &even));
            tuned.push(Candidate { plan, outcome });
        }
    }
    let check = |candidate: Candidate| match candidate.outcome {
        Ok(_) => Candidate { outcome: under(&candidate.plan, &job.profile), ..candidate },
        Err(_) => candidate,
    };
    let (usable, unusable): (Vec<_>, Vec<_>) =
        rank(tuned).into_iter().map(check).partition(|candidate| candidate.outcome.is_ok());
    usable.into_iter().chain(unusable).collect()
}

/// As many of a stage's `ranks` as a set of experts can be spread over so that every set is inside a fast domain.
pub fn experts_in_domain(job: &Job, ranks: usize) -> usize {
    let divides = |ep: &usize| job.model.moe_layers().all(|moe| moe.experts.is_multiple_of(*ep));
    let node = job.cluster.gpus_per_node;
    let inside = |ep: &usize| job.gpus <= node || node.is_multiple_of(*ep);
    divisors(ranks).filter(inside).filter(divides).max().unwrap_or(1)
}

/// Virtual stages that cut the blocks of each of `pp` stages into equal parts, 1 first; where blocks do not divide, those that
/// leave every chunk a block more or less.
pub fn virtual_stages(job: &Job, pp: usize) -> Vec<usize> {
    let blocks = job.model.blocks.len();
    match pp {
        1 => vec![1],
        _ if blocks.is_multiple_of(pp) => divisors(blocks / pp).collect(),
        _ => (0..).map(|power| 1 << power).take_while(|vp| pp * vp <= blocks).collect(),
    }
}

/// What an offline search believes: the job at the cluster's prices, on iterations of a profile.
pub struct PerformanceModel<'a> {
    /// What is trained.
    pub job: &'a Job,
    /// The cluster's prices.
    pub costs: &'a CostModel,
    /// What the gate chooses, one element an iteration.
    pub profile: &'a [BatchCounts],
}

impl PerformanceModel<'_> {
    /// Where a policy's first online decision puts experts, were the profile's iterations its past; where training starts if there is
    /// none. `[moe layer]`.
    pub fn placed(&self, plan: &Plan, policy: &mut dyn Policy) -> Vec<Placement> {
        let mut placements = Start::new(self.job, plan, policy).placements;
        let mut past = LoadHistory::default();
        for batch in self.profile {
            past.push((0..placements.len()).map(|layer| batch.loads(layer)).collect());
        }
        let first = plan.placement_every.max(1);
        if policy.placement_due(first) {
            for (layer, placement) in placements.iter_mut().enumerate() {
                if let Decision::Move(next) = policy.place(first, layer, &past, placement) {
                    *placement = next;
                }
            }
        }
        placements
    }

    /// The mean over the profile's iterations, each evaluated on a sample of its lanes and micro-batches. `placements`:
    /// `[moe layer]`.
    ///
    /// # Errors
    /// When the plan's degrees do not fit the job, when the policy's copies would not stay equal under it, when it does not fit into
    /// memory on the profile's worst iteration, or when there is no profile.
    pub fn estimate(&self, plan: &Plan, policy: &dyn Policy, placements: &[Placement]) -> Result<Estimate, PlanError> {
        self.estimate_within(Limit::NONE, plan, policy, placements)
    }

    /// The same, as long as no iteration is sure to exceed the limit.
    ///
    /// # Errors
    /// Those of an estimate, and [`PlanError::Outlined`] for an iteration that takes longer than the limit. What such an error says of time or memory
    /// is then what was sure when the evaluation ended, not all.
    pub fn estimate_within(
        &self,
        limit: Limit,
        plan: &Plan,
        policy: &dyn Policy,
        placements: &[Placement],
    ) -> Result<Estimate, PlanError> {
        let &Self { job, costs, profile } = self;
        plan.check(job)?;
        plan.keeps_copies_equal(policy)?;
        if profile.is_empty() {
            return Err(PlanError::NoProfile { plan: Box::new(*plan) });
        }
        let evaluated = plan.evaluated(policy);
        let charges = vec![Charge::default(); plan.pp];
        let mut mean = Estimate { step: Seconds::ZERO, phases: Ledger::default(), peak: Peak::default() };
        for batch in profile {
            let coverage = Coverage::Sample;
            let timing =
                Evaluation { job, plan: &evaluated, costs, policy, placements, batch, charges: &charges, coverage }
                    .run_within(limit)
                    .map_err(|exceeded| beyond(limit, plan, exceeded))?;
            mean.step += timing.step / profile.len() as f64;
            mean.phases.merge(&timing.slowest_stage(), 1.0 / profile.len() as f64);
            if timing.peak.bytes > mean.peak.bytes {
                mean.peak = timing.peak;
            }
        }
        fits(job, plan, mean.peak)?;
        Ok(mean)
    }
}

fn beyond(limit: Limit, plan: &Plan, exceeded: Exceeded) -> PlanError {
    let plan = Box::new(*plan);
    match exceeded {
        Exceeded::Step(about) => PlanError::Outlined { plan, about, fastest: limit.step },
        Exceeded::Memory(Peak { rank, bytes }) => PlanError::Memory { plan, rank, need: bytes, have: limit.bytes },
    }
}

/// Whether the fullest rank fits into the device's memory.
///
/// # Errors
/// [`PlanError::Memory`] when it does not.
pub fn fits(job: &Job, plan: &Plan, peak: Peak) -> Result<(), PlanError> {
    let have = job.cluster.gpu.usable();
    if peak.bytes <= have {
        return Ok(());
    }
    Err(PlanError::Memory { plan: Box::new(*plan), rank: peak.rank, need: peak.bytes, have })
}

/// Whether a plan may fit, by what every routing makes it hold.
///
/// # Errors
/// [`PlanError::Memory`], with the least that it needs.
pub fn may_fit(job: &Job, plan: &Plan) -> Result<(), PlanError> {
    let micro_batches = plan.micro_batches(job);
    for stage in [0, plan.pp - 1] {
        let position = Position { pp: plan.pp, vp: plan.vp, stage };
        let passes = (position.ahead(micro_batches) + 1).min(micro_batches * plan.vp);
        let bytes = StageMemory::least(job, plan, stage, passes);
        fits(job, plan, Peak { rank: stage * plan.stage_ranks(), bytes })?;
    }
    Ok(())
}

/// Sorts candidates: fastest first, ties by plan; then those that were not evaluated, by outline; those that cannot be used last.
pub fn rank(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let key = |candidate: &Candidate| match &candidate.outcome {
        Ok(estimate) => (0, estimate.step.0),
        Err(PlanError::Outlined { about, .. }) => (1, about.0),
        Err(PlanError::Memory { need, .. }) => (2, need.0),
        Err(_) => (3, 0.0),
    };
    candidates.sort_by(|a, b| {
        let ((kind, time), (other_kind, other_time)) = (key(a), key(b));
        kind.cmp(&other_kind).then(time.total_cmp(&other_time)).then(a.plan.cmp(&b.plan))
    });
    candidates
}

/// The divisors of a number, smallest first.
pub fn divisors(number: usize) -> impl Iterator<Item = usize> {
    (1..=number).filter(move |d| number.is_multiple_of(*d))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::routing::JobRouting;
    use workloads::suite::TraceUse;
    use workloads::trace::{Skew, SkewSpec, TraceShape};
    use workloads::{Cluster, Gate, Model};

    fn job() -> Job {
        let model = Model::named("test", "gpt-tiny").unwrap();
        Job::new(model, Cluster::named("test", "inky").unwrap(), 8, Gate::NoDrop, 16)
    }

    /// Six of 60 experts' ranks would be on two nodes of eight in every fourth set; where all ranks are on one node, any set is inside it.
    #[test]
    fn sets_of_experts_stay_in_a_fast_domain() {
        let model = Model::named("test", "qwen1.5-moe-a2.7b").unwrap();
        let domain = |gpus: usize, node: usize| {
            let cluster = Cluster { gpus_per_node: node, ..Cluster::named("test", "h100x8").unwrap() };
            experts_in_domain(&Job::new(model.clone(), cluster, gpus, Gate::NoDrop, gpus), gpus)
        };
        assert_eq!([domain(24, 8), domain(24, 72), domain(120, 72), domain(6, 8)], [4, 12, 12, 6]);
    }

    /// What is slow may be one set of ranks alone, as none of the first is: the second of 64 ranks is on two nodes of 72.
    #[test]
    fn estimates_look_at_sets_that_lie_otherwise() {
        let model = Model::named("test", "qwen3-30b-a3b").unwrap();
        let job = Job::new(model, Cluster::named("test", "gb200x72").unwrap(), 128, Gate::NoDrop, 128);
        let costs = CostModel::new(&job.cluster, job.gpus);
        let plan =
            Plan { dp: 128, ep: 64, expert_dp: 2, zero: Zero::Weights, recompute: Recompute::Full, ..Plan::default() };
        let (layers, experts) = (job.model.moe_layers().count(), 128);
        let each = (job.model.blocks[0].tokens * job.top_k() / experts) as u32;
        let profile = [BatchCounts::new(layers, 128, experts, vec![each; layers * 128 * experts])];
        let (policy, placements) = (crate::Plain, plan.experts_in_order(&job));
        let estimate = PerformanceModel { job: &job, costs: &costs, profile: &profile };
        let estimate = estimate.estimate(&plan, &policy, &placements).unwrap().step;
        let charges = [Charge::default()];
        let (batch, coverage) = (&profile[0], Coverage::Full);
        let evaluation = Evaluation {
            job: &job,
            plan: &plan,
            costs: &costs,
            policy: &policy,
            placements: &placements,
            batch,
            charges: &charges,
            coverage,
        };
        let all = evaluation.run().step;
        assert!((estimate.0 / all.0 - 1.0).abs() < 1e-6, "{estimate:?} for {all:?}");
    }

    /// Where the micro-batch is free, systems take the fastest that fits, not the largest.
    #[test]
    fn the_fastest_micro_batch_comes_first() {
        let job = job();
        let (layers, each) = (job.model.moe_layers().count(), (job.model.blocks[0].tokens * job.top_k() / 8) as u32);
        let job = job.with_profile(vec![BatchCounts::new(layers, 16, 8, vec![each; layers * 16 * 8])]);
        let costs = CostModel::new(&job.cluster, job.gpus);
        for system in [&crate::zoo::expert_only::ExpertOnly as &dyn System, &crate::zoo::alpa::Alpa] {
            let candidates = system.candidates(&job, &costs);
            let of_first = |candidate: &&Candidate| candidate.plan.ep == candidates[0].plan.ep;
            let times: Vec<f64> =
                candidates.iter().filter(of_first).filter_map(|of| Some(of.outcome.as_ref().ok()?.step.0)).collect();
            assert!(times.len() > 1 && times.is_sorted(), "{}: {times:?}", system.name());
        }
    }

    /// Of plans that do not fit, the one that lacks least is told, and stands first among those that are ranked.
    #[test]
    fn the_closest_plan_is_the_reason() {
        let short = |pp: usize, need: f64| {
            let plan = Plan { pp, ..Plan::default() };
            let outcome = Err(PlanError::Memory { plan: Box::new(plan), rank: 0, need: Bytes(need), have: Bytes(1.0) });
            Candidate { plan, outcome }
        };
        let other = Candidate { plan: Plan::default(), outcome: Err(PlanError::NoCandidate) };
        let all = vec![short(1, 5.0), short(2, 3.0), other.clone(), short(4, 4.0)];
        let reason = first_usable(all.clone()).unwrap_err();
        assert!(matches!(reason, PlanError::Memory { need, .. } if need == Bytes(3.0)), "{reason}");
        assert_eq!(rank(all).iter().map(|candidate| candidate.plan.pp).collect::<Vec<_>>(), [2, 4, 1, 1]);
        assert_eq!(first_usable(vec![other]).unwrap_err(), PlanError::NoCandidate);
    }

    /// Every choice of degrees and micro-batch from 1 to 16, held against the rules.
    #[test]
    fn pools_are_all_that_fit() {
        let job = job();
        let fits = |plan: &Plan| {
            plan.check(&job).is_ok()
                && job.model.blocks.len().is_multiple_of(plan.pp)
                && plan.micro_batch.is_power_of_two()
        };
        let degrees = || [1, 2, 3, 4, 5, 6, 7, 8];
        let mut expected = Vec::new();
        for (pp, dp, tp) in degrees()
            .into_iter()
            .flat_map(|pp| degrees().into_iter().flat_map(move |dp| degrees().into_iter().map(move |tp| (pp, dp, tp))))
        {
            for (ep, expert_dp) in degrees().into_iter().flat_map(|ep| degrees().map(|expert_dp| (ep, expert_dp))) {
                let plans =
                    (1..=16).map(|micro_batch| Plan { pp, dp, tp, ep, expert_dp, micro_batch, ..Plan::default() });
                expected.extend(plans.filter(fits));
            }
        }
        let mut found: Vec<Plan> = pools(&job).into_iter().map(|pool| pool.plan(0)).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
        assert_eq!(pools(&job)[0].plan(10), Plan { placement_every: 10, ..pools(&job)[0].plan(0) });
    }

    /// Their searches believe in even routing, in rates alone, in moves that their runs do not make or in loads that drift: a given plan is
    /// rated on what its run meets.
    const BELIEVERS: [&str; 5] =
        ["alpa", "smartmoe-uniform", "smartmoe-paper-estimate", "smartmoe-migration-aware", "cobalance"];

    #[test]
    fn a_given_plan_is_rated_as_its_search_rates_it() {
        let (model, cluster) = (Model::named("test", "gpt-tiny").unwrap(), Cluster::named("test", "inky").unwrap());
        let (layers, moe) = (model.moe_layers().count(), *model.moe_layers().next().unwrap());
        let top_k = model.top_k as u32;
        let shape =
            TraceShape { layers, micro_batches: 1, ranks: 4, experts: moe.experts, entries: 512 * top_k, top_k };
        let skew = Skew { max_over_mean: Some(3.0), ..Skew::default() };
        let trace = SkewSpec { shape, samples: 4, step: 1, seed: 1, skew }.generate().unwrap();
        let job = Job::new(model, cluster, 8, Gate::NoDrop, 16).with_micro_batch(1);
        let routing = JobRouting::new(&job, TraceUse::default(), &trace, 0).unwrap();
        let job = job.with_profile((0..2).map(|t| routing.iteration(t)).collect());
        let costs = CostModel::new(&job.cluster, job.gpus);
        let mut moved = 0;
        for &system in crate::ALL.iter().filter(|system| !BELIEVERS.contains(&system.name())) {
            let usable = system.candidates(&job, &costs).into_iter().filter(|candidate| candidate.outcome.is_ok());
            for candidate in usable.take(5) {
                assert_eq!(rated(system, &job, &costs, candidate.plan), candidate, "{}", system.name());
                let (policy, in_order) = (system.policy(&job, &candidate.plan), candidate.plan.experts_in_order(&job));
                let starts_so =
                    !policy.joins_replicas() && policy.first_placement(0, &moe, candidate.plan.ep) == in_order[0];
                let performance = PerformanceModel { job: &job, costs: &costs, profile: &job.profile };
                let as_ordered = || performance.estimate(&candidate.plan, policy.as_ref(), &in_order);
                moved += usize::from(!starts_so || as_ordered() != candidate.outcome);
            }
        }
        assert!(moved > 20, "plans whose experts are not in order: {moved}");
    }

    #[test]
    fn a_search_without_a_profile_is_refused() {
        let job = job();
        let costs = CostModel::new(&job.cluster, job.gpus);
        let refused = crate::zoo::expert_only::ExpertOnly.plan(&job, &costs).unwrap_err();
        assert!(matches!(refused, PlanError::NoProfile { .. }), "{refused}");
    }
}
