//! The gate's choices in a real run, for the simulator: as a routing trace, or as the counts of one iteration.
//!
//! A trace is replayed through [`workloads::trace::Routing`], which distributes its rows over the samples of a global batch:
//! right for any plan, but a rank may get other rows than it recorded. [`batch`] gives every rank of the same plan its own.

use workloads::trace::{BatchCounts, RoutingTrace, TraceError, TraceShape};

use crate::rank::report::Report;
use crate::setup::{Recording, Setup};

/// The choices of all MoE layers as a trace, every recorded part as a rank. `iterations`: of those that the setup records, their numbers
/// from 0 and the reports of all ranks; the trace counts them from 1.
///
/// # Errors
/// Choices that no trace can hold, or reports without choices.
pub fn trace(name: &str, setup: &Setup, iterations: &[(usize, Vec<Report>)]) -> Result<RoutingTrace, TraceError> {
    let (job, plan) = (setup.job, &setup.plan);
    let Recording { parts, .. } = setup.record.unwrap_or(Recording::ALL);
    let (layers, experts) = extents(setup);
    let tokens = setup.gpt.seq_len * plan.micro_batch / plan.tp;
    let shape = TraceShape {
        layers,
        micro_batches: plan.micro_batches(job),
        ranks: plan.stage_ranks() * parts,
        experts,
        entries: (tokens / parts * job.top_k()) as u32,
        top_k: job.top_k() as u32,
    };
    let mut counts = Vec::with_capacity(iterations.len() * shape.counts_per_iteration());
    for (_, reports) in iterations {
        for layer in 0..layers {
            for m in 0..shape.micro_batches {
                let of_ranks =
                    (0..plan.stage_ranks()).filter_map(|position| chosen(setup, reports, layer, m, position));
                counts.extend(of_ranks.flatten());
            }
        }
    }
    let labels = iterations.iter().map(|(iteration, _)| *iteration as u32 + 1).collect();
    RoutingTrace::new(name, shape, labels, counts)
}

/// The choices of one iteration, recorded in one part, as the simulator takes them under the same plan: all of a micro-batch in its first
/// sample.
pub fn batch(setup: &Setup, reports: &[Report]) -> BatchCounts {
    let (job, plan) = (setup.job, &setup.plan);
    let (layers, experts) = extents(setup);
    let mut counts = vec![0; layers * job.global_batch * experts];
    for layer in 0..layers {
        for position in 0..plan.stage_ranks() {
            for m in 0..plan.micro_batches(job) {
                let chunk = layer * job.global_batch + plan.samples(job, position, m).start;
                let own = &mut counts[chunk * experts..(chunk + 1) * experts];
                let found = chosen(setup, reports, layer, m, position).expect("the setup records choices");
                own.iter_mut().zip(found).for_each(|(sum, count)| *sum += count);
            }
        }
    }
    BatchCounts::new(layers, job.global_batch, experts, counts)
}

/// Whether the reports of all ranks hold what the setup records of an iteration.
pub(crate) fn is_complete(setup: &Setup, iteration: usize, reports: &[Report]) -> bool {
    let Some(parts) = setup.recorded_parts(iteration) else { return true };
    setup.job.model.moe_layers().enumerate().all(|(layer, moe)| {
        let of_rank = |position: usize, m: usize| chosen(setup, reports, layer, m, position);
        let is_held = |found: Option<&Vec<u32>>| found.is_some_and(|found| found.len() == parts * moe.experts);
        let mut ranks = 0..setup.plan.stage_ranks();
        ranks.all(|position| (0..setup.plan.micro_batches(setup.job)).all(|m| is_held(of_rank(position, m))))
    })
}

/// MoE layers, and experts of each.
fn extents(setup: &Setup) -> (usize, usize) {
    let layers = setup.job.model.moe_layers();
    (layers.clone().count(), layers.map(|moe| moe.experts).next().unwrap_or(0))
}

/// The choices of one rank in a micro-batch, by part and expert; none if the reports hold no choices. `layer` counts the MoE layers of
/// the model, reports those of their stage.
fn chosen<'a>(setup: &Setup, reports: &'a [Report], layer: usize, m: usize, position: usize) -> Option<&'a Vec<u32>> {
    let (job, plan) = (setup.job, &setup.plan);
    let blocks = job.model.moe_blocks();
    let stage = plan.stage_of(job, blocks[layer]);
    let before = blocks.partition_point(|&block| block < plan.chunk_blocks(job, stage).start);
    reports.get(stage * plan.stage_ranks() + position)?.chosen.get(layer - before)?.get(m)
}
