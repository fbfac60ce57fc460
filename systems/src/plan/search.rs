//! Offline search: every plan that fits a job, estimated on a profile of its routing, best first.

use workloads::Seconds;
use workloads::trace::BatchCounts;

use crate::Policy;
use crate::iteration::{Charge, Evaluation, Extent, Ledger, Peak};
use crate::plan::job::Job;
use crate::plan::placement::Placement;
use crate::plan::{Plan, PlanError};
use crate::price::cost::CostModel;

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

/// Every plan whose degrees fit the job, placement decided every `placement_every` iterations. Stages hold equally many
/// blocks, tensor parallelism stays inside a node.
pub fn enumerate(job: &Job, placement_every: usize) -> Vec<Plan> {
    let mut plans = Vec::new();
    for pp in divisors(job.gpus) {
        if !job.model.blocks.len().is_multiple_of(pp) {
            continue;
        }
        for tp in divisors(job.gpus / pp) {
            let dp = job.gpus / pp / tp;
            if tp > job.cluster.gpus_per_node {
                continue;
            }
            for ep in divisors(dp * tp) {
                for micro_batch in micro_batches(job, dp) {
                    let plan = Plan { pp, dp, tp, ep, expert_dp: dp * tp / ep, micro_batch, placement_every };
                    if plan.check(job).is_ok() {
                        plans.push(plan);
                    }
                }
            }
        }
    }
    plans
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

/// Estimates one plan on a profile of the routing, with experts placed by `place(moe layer)`.
///
/// # Errors
/// When its degrees do not fit, or when it does not fit into memory on the profile's worst iteration.
pub fn estimate(
    job: &Job,
    plan: &Plan,
    costs: &CostModel,
    policy: &dyn Policy,
    profile: &[BatchCounts],
    place: &dyn Fn(usize) -> Placement,
) -> Result<Estimate, PlanError> {
    plan.check(job)?;
    let placements: Vec<Placement> = (0..job.model.moe_blocks().len()).map(place).collect();
    let charges = vec![Charge::default(); plan.pp];
    let mut worst = Peak::default();
    let mut step = Seconds::ZERO;
    let mut phases = Ledger::default();
    for batch in profile {
        let timing = Evaluation {
            job,
            plan,
            costs,
            policy,
            placements: &placements,
            batch,
            charges: &charges,
            extent: Extent::Sample,
        }
        .run();
        step += timing.step / profile.len() as f64;
        phases.merge(&timing.slowest_stage(), 1.0 / profile.len() as f64);
        if timing.peak.bytes > worst.bytes {
            worst = timing.peak;
        }
    }
    fits(job, plan, worst)?;
    Ok(Estimate { step, phases, peak: worst })
}

/// Whether the fullest rank fits into the device's memory.
///
/// # Errors
/// [`PlanError::Memory`] when it does not.
pub fn fits(job: &Job, plan: &Plan, peak: Peak) -> Result<(), PlanError> {
    let gpu = &job.cluster.gpu;
    let have = workloads::Bytes(gpu.memory.value - gpu.memory_reserved.value);
    if peak.bytes <= have {
        return Ok(());
    }
    Err(PlanError::Memory { plan: *plan, rank: peak.rank, need: peak.bytes, have })
}

/// Sorts candidates: fastest first, ties by plan; those that cannot be used last.
pub fn rank(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.sort_by(|a, b| {
        let key = |c: &Candidate| c.outcome.as_ref().map_or(f64::INFINITY, |e| e.step.0);
        key(a).total_cmp(&key(b)).then(a.plan.cmp(&b.plan))
    });
    candidates
}

/// The divisors of a number, smallest first.
fn divisors(number: usize) -> impl Iterator<Item = usize> {
    (1..=number).filter(move |d| number.is_multiple_of(*d))
}
