//! What the gate of a job chooses: a routing trace, rescaled to the job.

use std::ops::Range;

use workloads::gate::Flattening;
use workloads::model::Moe;
use workloads::suite::TraceUse;
use workloads::trace::{BatchCounts, Choices, Routing, RoutingSpec, RoutingTrace, TraceError};

use crate::plan::job::Job;

/// What the gate of a job chooses, iteration by iteration: a trace rescaled to the model, a chunk per sample of the
/// global batch. Layers that see different numbers of tokens are rescaled apart.
///
/// A job with fewer choices per token than the trace's gate makes each of that gate's choices equally often: its entries
/// are that part of the trace's. So no expert gets more than `1 / top_k` (the trace's) of them, as none did there.
pub struct JobRouting<'a> {
    parts: Vec<EqualLayers<'a>>,
    /// Choices per token, and choices per token that the counts below are of.
    choices: (usize, usize),
    samples_per_chunk: usize,
}

/// Consecutive MoE layers with the same number of tokens.
struct EqualLayers<'a> {
    layers: Range<usize>,
    routing: Routing<'a>,
    /// None where the trace is taken as it is.
    flattening: Option<Flattening>,
}

/// Which MoE layers are rescaled, and how many samples at a time.
struct Chunks {
    layers: Range<usize>,
    samples: usize,
}

impl<'a> JobRouting<'a> {
    /// The routing of a job.
    ///
    /// # Errors
    /// A trace that cannot stand for it.
    pub fn new(job: &Job, part: TraceUse, trace: &'a RoutingTrace, seed: u64) -> Result<Self, TraceError> {
        let all = Chunks { layers: 0..job.model.moe_layers().count(), samples: 1 };
        Self::of_chunks(job, all, part, trace, seed)
    }

    /// The routing of one MoE layer of a job, as that layer alone sees it: rescaled by micro-batches, each of which is all in
    /// its first sample; by samples where the job leaves the micro-batch free.
    ///
    /// # Errors
    /// A trace that cannot stand for it.
    pub fn of_layer(
        job: &Job,
        layer: usize,
        part: TraceUse,
        trace: &'a RoutingTrace,
        seed: u64,
    ) -> Result<Self, TraceError> {
        let one = Chunks { layers: layer..layer + 1, samples: job.micro_batch.unwrap_or(1) };
        Self::of_chunks(job, one, part, trace, seed)
    }

    fn of_chunks(
        job: &Job,
        wanted: Chunks,
        part: TraceUse,
        trace: &'a RoutingTrace,
        seed: u64,
    ) -> Result<Self, TraceError> {
        let layers: Vec<&Moe> = job.model.moe_layers().collect();
        // A layer has no more choices than experts, whatever the trace's gate had.
        let fewest = layers.iter().map(|moe| moe.experts).min().unwrap_or(1);
        let top_k = job.top_k().max((trace.shape().top_k as usize).min(fewest));
        let is_recorded = trace.choices() == Choices::Recorded;
        let is_flatter = |exponent: &f64| is_recorded && (job.gate.is_balanced() || *exponent > 0.0);
        let flattening = Some(job.flattening()).filter(is_flatter);
        let mut parts = Vec::new();
        let mut first = 0;
        for same in layers.chunk_by(|a, b| (a.tokens, a.experts) == (b.tokens, b.experts)) {
            let range = first.max(wanted.layers.start)..(first + same.len()).min(wanted.layers.end);
            first += same.len();
            if range.is_empty() {
                continue;
            }
            let spec = RoutingSpec {
                layers: layers.len(),
                experts: same[0].experts,
                chunks: job.global_batch / wanted.samples,
                entries_per_chunk: (wanted.samples * same[0].tokens * top_k) as u32,
                top_k: top_k as u32,
                start: part.start.unwrap_or(trace.iterations()[0]),
                stride: part.stride,
                seed,
            };
            parts.push(EqualLayers {
                layers: range,
                routing: Routing::new(trace, spec)?,
                flattening: flattening.map(|exponent| Flattening::new(spec.entries_per_chunk, exponent)),
            });
        }
        Ok(Self { parts, choices: (job.top_k(), top_k), samples_per_chunk: wanted.samples })
    }

    /// What the gate chooses in training iteration `t`, from 0, before any capacity limit.
    pub fn iteration(&self, t: usize) -> BatchCounts {
        let parts = self.parts.iter().map(|part| {
            let mut batch = part.routing.iteration_of(part.layers.clone(), t);
            if let Some(flattening) = &part.flattening {
                batch.chunks_mut().for_each(|chunk| flattening.apply(chunk));
            }
            if self.choices.0 < self.choices.1 {
                batch.chunks_mut().for_each(|chunk| keep_part(chunk, self.choices.0, self.choices.1));
            }
            batch
        });
        let batch = BatchCounts::join(parts);
        if self.samples_per_chunk == 1 { batch } else { batch.in_first_samples(self.samples_per_chunk) }
    }
}

/// Keeps `part / whole` of the counts, which `whole` divides in all; what rounding leaves is handed on.
fn keep_part(counts: &mut [u32], part: usize, whole: usize) {
    let (part, whole) = (part as u64, whole as u64);
    let mut before = 0;
    for count in counts {
        let after = before + u64::from(*count);
        *count = (after * part / whole - before * part / whole) as u32;
        before = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_choices_is_kept_to_the_last_one() {
        let mut counts = [5, 1, 0, 3, 3];
        keep_part(&mut counts, 1, 2);
        assert_eq!(counts, [2, 1, 0, 1, 2]);
    }

    /// A balance loss makes choices flatter, unless they are already those of a gate that has one, or stated.
    #[test]
    fn choices_are_flattened_once() {
        use workloads::trace::SynthSpec;
        use workloads::{Cluster, Gate, Model};

        let spec = SynthSpec { layers: 4, samples: 2, ranks: 2, experts: 8, entries: 64, ..SynthSpec::default() };
        let trace = spec.generate().unwrap();
        let chosen = |gate: Gate, trace: &RoutingTrace| {
            let (model, cluster) = (Model::named("test", "gpt-tiny").unwrap(), Cluster::named("test", "inky").unwrap());
            let job = Job::new(model, cluster, 2, gate, 2);
            JobRouting::new(&job, TraceUse::default(), trace, 0).unwrap().iteration(100)
        };
        let as_recorded = chosen(Gate::NoDrop, &trace);
        assert_ne!(chosen(Gate::BalancedNoDrop, &trace), as_recorded);
        for choices in [Choices::Balanced, Choices::Stated { within: None }] {
            assert_eq!(chosen(Gate::BalancedNoDrop, &trace.clone().chosen_by(choices)), as_recorded);
        }
    }
}
