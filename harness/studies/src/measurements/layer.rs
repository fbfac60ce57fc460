//! One MoE layer on rows of a trace, as layer studies measured it.

use anyhow::{Result, bail};
use systems::iteration::{Charge, Coverage, Evaluation};
use systems::plan::job::Scope;
use systems::{CostModel, Job, Placement, Plain, Plan, RoutingCounts};
use workloads::csv_file::CsvRow;
use workloads::error::MOST_EXTENT;
use workloads::model::Moe;
use workloads::trace::{BatchCounts, RoutingTrace};
use workloads::{Cluster, ConfigError, Gate, Model, Seconds};

/// What the layer studies leave unsaid about the layer.
///
/// 1024 is inferred: it goes with the 24 layers of the model that was traced, and it is the width at which both studies
/// on V100s are explained by one set of constants below the datasheet's. A script beside the studies' says 1536, where
/// products would have to run at 1.3 times their peak.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct LayerShape {
    /// Width of a token; an expert's inner width is twice that
    #[arg(long, default_value_t = Self::default().hidden, value_parser = extent)]
    pub hidden: usize,
    /// Tokens per sample
    #[arg(long, default_value_t = Self::default().seq_len, value_parser = extent)]
    pub seq_len: usize,
}

/// Tokens, samples or a width.
pub(crate) fn extent(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=MOST_EXTENT).contains(number));
    number.ok_or_else(|| format!("expected 1 to {MOST_EXTENT}"))
}

impl Default for LayerShape {
    fn default() -> Self {
        Self { hidden: 1024, seq_len: 1024 }
    }
}

impl LayerShape {
    /// The layer with that many experts.
    pub fn moe(&self, experts: usize) -> Moe {
        Moe::plain(self.seq_len, self.hidden, 2 * self.hidden, experts)
    }
}

/// Where a measurement's routing is in the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIndex {
    pub sample: usize,
    pub layer: usize,
}

impl TraceIndex {
    /// Where a row's iteration and layer are.
    ///
    /// # Errors
    /// A trace that has neither, with file, line and column.
    pub fn of(row: &CsvRow, trace: &RoutingTrace, iteration: usize, layer: usize) -> Result<Self, ConfigError> {
        let (name, layers) = (trace.name(), trace.shape().layers);
        if layer >= layers {
            return Err(row.wrong(format!("layer = {layer}: the trace {name} has {layers} layers")));
        }
        let label = u32::try_from(iteration).ok();
        let sample = label.and_then(|label| trace.iterations().binary_search(&label).ok());
        let missing = || row.wrong(format!("iteration = {iteration}: the trace {name} has no such iteration"));
        Ok(Self { sample: sample.ok_or_else(missing)?, layer })
    }
}

/// Reads counts out of a trace as `ranks` ranks with micro-batches of `micro_batch` samples see them.
#[derive(Clone, Copy)]
pub struct LayerReader<'a> {
    /// The trace.
    pub trace: &'a RoutingTrace,
    /// Expert-parallel ranks; the trace's first, and beyond them those of its next micro-batches.
    pub ranks: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Width and tokens.
    pub shape: LayerShape,
}

impl LayerReader<'_> {
    /// Whether the trace has rows for that many ranks, and experts that they can share.
    ///
    /// # Errors
    /// When it has not.
    pub fn check(&self, place: &str) -> Result<()> {
        let shape = self.trace.shape();
        if self.ranks > shape.ranks * shape.micro_batches || !shape.experts.is_multiple_of(self.ranks) {
            bail!(
                "{place}: {} GPUs: the trace {} has {} ranks with {} micro-batches each, and {} experts, which the GPUs share",
                self.ranks,
                self.trace.name(),
                shape.ranks,
                shape.micro_batches,
                shape.experts
            );
        }
        Ok(())
    }

    /// Counts of one of the trace's micro-batches, scaled to the tokens of ours.
    pub fn counts(&self, index: TraceIndex, micro_batch: usize) -> RoutingCounts {
        self.sum_of(index, micro_batch, 1)
    }

    /// Counts of one of our micro-batches: the sum of as many of the trace's, from the first on, as it has tokens for.
    pub fn merged(&self, index: TraceIndex) -> RoutingCounts {
        let shape = self.trace.shape();
        let merged = (self.entries() / f64::from(shape.entries)) as usize;
        self.sum_of(index, 0, merged.clamp(1, shape.micro_batches))
    }

    /// Counts of `merged` micro-batches of the trace, from number `first` on, summed and scaled to the tokens of ours.
    fn sum_of(&self, index: TraceIndex, first: usize, merged: usize) -> RoutingCounts {
        let shape = self.trace.shape();
        let scale = self.entries() / (merged as f64 * f64::from(shape.entries));
        let row = |rank: usize| {
            let first = first + rank / shape.ranks * merged;
            let mut sums = vec![0u64; shape.experts];
            for micro_batch in (first..first + merged).map(|micro_batch| micro_batch % shape.micro_batches) {
                let counts = self.trace.row(index.sample, index.layer, micro_batch, rank % shape.ranks);
                sums.iter_mut().zip(counts).for_each(|(sum, &count)| *sum += u64::from(count));
            }
            sums.into_iter().map(move |sum| (sum as f64 * scale).round() as u32)
        };
        RoutingCounts::new(shape.experts, (0..self.ranks).flat_map(row).collect())
    }

    /// Time of the layer alone, forward and backward.
    pub fn time(&self, counts: &RoutingCounts, placement: &Placement, cluster: &Cluster) -> Seconds {
        let (ranks, micro_batch) = (self.ranks, self.micro_batch);
        let model = Model::of_layer(self.shape.moe(counts.experts()), self.trace.shape().top_k as usize);
        let mut job = Job::new(model, cluster.clone(), ranks, Gate::NoDrop, ranks * micro_batch);
        job.scope = Scope::Layer;
        let plan = Plan { dp: ranks, ep: ranks, micro_batch, ..Plan::default() };
        let rows = (0..ranks).flat_map(|rank| counts.row(rank)).copied().collect();
        let batch = BatchCounts::new(1, ranks, counts.experts(), rows);
        let evaluation = Evaluation {
            job: &job,
            plan: &plan,
            costs: &CostModel::new(cluster, ranks),
            policy: &Plain,
            placements: std::slice::from_ref(placement),
            batch: &batch.in_first_samples(micro_batch),
            charges: &[Charge::default()],
            coverage: Coverage::Full,
        };
        evaluation.run().step
    }

    fn entries(&self) -> f64 {
        (self.micro_batch * self.shape.seq_len) as f64 * f64::from(self.trace.shape().top_k)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::iteration::run::Run;
    use systems::plan::routing::JobRouting;
    use systems::zoo::smartmoe;
    use workloads::suite::TraceUse;
    use workloads::trace::SynthSpec;

    /// Eight samples of 1,024 tokens are four of the synthetic trace's micro-batches of two, all that it has; of three samples
    /// one is taken, half as large again.
    #[test]
    fn a_large_micro_batch_is_the_sum_of_the_traces() {
        let trace = SynthSpec { samples: 2, ..SynthSpec::default() }.generate().unwrap();
        let shape = trace.shape();
        assert_eq!((shape.entries, shape.micro_batches, shape.ranks), (4096, 4, 16));
        let reader = |micro_batch| LayerReader { trace: &trace, ranks: 16, micro_batch, shape: LayerShape::default() };
        let index = TraceIndex { sample: 1, layer: 3 };
        let of = |micro_batch, rank| trace.row(1, 3, micro_batch, rank);
        let [two, three, eight, sixteen] = [2, 3, 8, 16].map(|samples| reader(samples).merged(index));
        for rank in 0..16 {
            let sum: Vec<u32> =
                (0..shape.experts).map(|e| (0..4).map(|micro_batch| of(micro_batch, rank)[e]).sum()).collect();
            assert_eq!(eight.row(rank), sum);
            assert!(sixteen.row(rank).iter().zip(&sum).all(|(twice, once)| *twice == 2 * once));
            assert_eq!(two.row(rank), of(0, rank));
            assert!(
                three
                    .row(rank)
                    .iter()
                    .zip(of(0, rank))
                    .all(|(more, once)| *more == (f64::from(*once) * 1.5).round() as u32)
            );
        }
        assert_eq!(reader(8).counts(index, 0).row(0)[0], 4 * of(0, 0)[0]);
    }

    /// Where micro-batches are the trace's own, a suite's layer alone is the layer that studies are predicted with.
    #[test]
    fn a_layer_of_a_suite_is_the_layer_that_is_validated() {
        let trace = SynthSpec { samples: 2, ..SynthSpec::default() }.generate().unwrap();
        let model = Model::named("test", "gpt-l24-h1024-e32").unwrap();
        let cluster = Cluster::named("test", "nico").unwrap();
        let (gpus, micro_batch, layer) = (16, 2, 6);
        let shape = LayerShape::default();
        let reader = LayerReader { trace: &trace, ranks: gpus, micro_batch, shape };
        let counts = reader.counts(TraceIndex { sample: 0, layer }, 0);
        let expected = reader.time(&counts, &Placement::identity(32, gpus), &cluster);

        let whole = Job::new(model, cluster, gpus, Gate::NoDrop, gpus * micro_batch).with_micro_batch(micro_batch);
        let batch = JobRouting::of_layer(&whole, layer, TraceUse::default(), &trace, 0).unwrap().iteration(0);
        let plan = Plan { dp: gpus, ep: gpus, micro_batch, placement_every: 1, ..Plan::default() };
        let job = whole.layer_alone(layer).unwrap();
        plan.check(&job).unwrap();
        let costs = CostModel::new(&job.cluster, job.gpus);
        let mut run = Run::new(&job, &costs, &smartmoe::SMARTMOE, plan);
        let first = run.step(&batch);
        assert_eq!((first.timing.step, first.moved), (expected, 0));
        // The next one has seen the first, and pays for what it moves.
        let second = run.step(&batch);
        assert!(second.moved > 0 && second.migration > Seconds::ZERO && second.decision > Seconds::ZERO);
        assert!(second.timing.step - second.decision - second.migration < expected);
        assert!(whole.layer_alone(24).is_none());
    }
}
