//! The routing of a training run's global batch, taken from a trace of another model.
//!
//! A trace has its own numbers of layers, experts and rows. [`Routing`] maps a model's onto them so that what matters
//! to placement survives: the skew of a layer, which experts are hot, and for how long. The global batch is cut into
//! *chunks*, the smallest slices that any plan may route alone, so every plan sees the same data however it splits it.
//!
//! - Time: iteration `t` uses the last sample at or before `start + t * stride`; past the end, the trace begins again.
//!   Rows are rotated by the distance from that sample, so that iterations between two samples differ.
//! - Chunks take rows in turn. Once all rows are used, the next round takes those of the nearest other samples (one
//!   later, one earlier, two later, ..), so that no chunk is an exact copy of another; where a trace was made to move at a stated speed, of
//!   those alone between which little moves.
//! - Layers spread evenly over the trace's. A model with more layers goes round them again, its experts renumbered.
//! - Fewer experts: of neighbours in order of mean load one each is kept, chosen so that max/mean and Gini stay close
//!   to the original's; the others count a sixteenth. No choice of experts lifts max/mean above `experts / top_k`.
//! - More experts: equal groups, each from a layer of similar skew and each with its share of the entries.
//!
//! An expert keeps its source for the whole run. Where shape and entries are the trace's own, so are the counts.

use super::apportion::Apportion;
use super::stats::{gini, max_over_mean};
use std::ops::Range;

use super::{Choices, RoutingTrace, TraceError, TraceShape, check_choices, check_size};

/// What the global batch of a model looks like to the routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingSpec {
    /// MoE layers of the model.
    pub layers: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Slices of the global batch, for example its micro-batches over all ranks.
    pub chunks: usize,
    /// Token-expert entries per chunk and layer: tokens times `top_k`.
    pub entries_per_chunk: u32,
    /// Experts per token.
    pub top_k: u32,
    /// Label in the trace where training begins.
    pub start: u32,
    /// Trace iterations per training iteration.
    pub stride: u32,
    /// 0 keeps the rows in the trace's order; any other seed begins at another row.
    pub seed: u64,
}

/// A trace seen as the routing of another model's global batch.
#[derive(Clone, Debug)]
pub struct Routing<'a> {
    trace: &'a RoutingTrace,
    spec: RoutingSpec,
    /// `[layer][group]`
    layers: Vec<Vec<Group>>,
}

/// Entries of one iteration: `[layer][chunk][expert]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchCounts {
    layers: usize,
    chunks: usize,
    experts: usize,
    counts: Vec<u32>,
}

impl BatchCounts {
    /// Counts that were recorded, `[layer][chunk][expert]`, flat.
    pub fn new(layers: usize, chunks: usize, experts: usize, counts: Vec<u32>) -> Self {
        debug_assert_eq!(counts.len(), layers * chunks * experts);
        Self { layers, chunks, experts, counts }
    }

    /// MoE layers.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// Slices of the global batch.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// Experts per layer.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Entries per expert of one chunk; indices follow the rules of slices.
    pub fn chunk(&self, layer: usize, chunk: usize) -> &[u32] {
        let start = (layer * self.chunks + chunk) * self.experts;
        &self.counts[start..start + self.experts]
    }

    /// Entries per expert of the whole batch; the layer follows the rules of slices.
    pub fn loads(&self, layer: usize) -> Vec<u64> {
        let size = self.chunks * self.experts;
        let mut loads = vec![0; self.experts];
        for chunk in self.counts[layer * size..(layer + 1) * size].chunks_exact(self.experts) {
            for (load, &count) in loads.iter_mut().zip(chunk) {
                *load += u64::from(count);
            }
        }
        loads
    }
}

impl BatchCounts {
    /// Consecutive layers in one: the layers of every part, one after the other.
    pub fn join(parts: impl IntoIterator<Item = BatchCounts>) -> Self {
        let mut all = Self { layers: 0, chunks: 0, experts: 0, counts: Vec::new() };
        for part in parts {
            if all.layers == 0 {
                all = part;
            } else {
                all.layers += part.layers;
                all.counts.extend_from_slice(&part.counts);
            }
        }
        all
    }

    /// Every chunk's counts of every layer, `[expert]` each, to change.
    pub fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u32]> {
        self.counts.chunks_exact_mut(self.experts)
    }

    /// Chunks of `samples` samples each, taken apart into a chunk per sample: the first has all of the entries.
    pub fn in_first_samples(&self, samples: usize) -> Self {
        let mut counts = Vec::with_capacity(self.counts.len() * samples);
        for chunk in self.counts.chunks_exact(self.experts) {
            counts.extend_from_slice(chunk);
            counts.resize(counts.len() + (samples - 1) * self.experts, 0);
        }
        Self { chunks: self.chunks * samples, counts, ..*self }
    }

    /// The same number of entries in every chunk, spread evenly over the experts.
    pub fn uniform(&self) -> Self {
        let experts = self.experts as u64;
        let even = |chunk: &[u32]| {
            let total: u64 = chunk.iter().map(|&count| u64::from(count)).sum();
            (0..experts).map(move |e| (total * (e + 1) / experts - total * e / experts) as u32)
        };
        let counts = self.counts.chunks_exact(self.experts).flat_map(even).collect();
        Self { counts, ..*self }
    }
}

impl<'a> Routing<'a> {
    /// Chooses which layers and experts of `trace` stand for the model's; the choice holds for the whole run.
    ///
    /// # Errors
    /// A zero extent, entries that are no multiple of `top_k`, more choices than experts, or a start outside the trace.
    pub fn new(trace: &'a RoutingTrace, spec: RoutingSpec) -> Result<Self, TraceError> {
        check(trace, &spec)?;
        let likeness = Likeness::new(trace);
        let layers = (0..spec.layers).map(|layer| groups(&likeness, &spec, layer)).collect();
        Ok(Self { trace, spec, layers })
    }

    /// The specification.
    pub fn spec(&self) -> &RoutingSpec {
        &self.spec
    }

    /// Entries per expert, layer and chunk in training iteration `t`, from 0.
    pub fn iteration(&self, t: usize) -> BatchCounts {
        self.iteration_of(0..self.spec.layers, t)
    }

    /// The same of some of the layers; a range that is out of bounds follows the rules of slices.
    pub fn iteration_of(&self, layers: Range<usize>, t: usize) -> BatchCounts {
        let (sample, rotation) = self.sample_at(t);
        let RoutingSpec { chunks, experts, .. } = self.spec;
        let mut counts = Vec::new();
        self.append(layers.clone(), sample, rotation, &mut counts);
        BatchCounts { layers: layers.len(), chunks, experts, counts }
    }

    /// The whole trace as this model would see it: every sample under its own label, chunk
    /// `micro_batch * ranks + rank` as the row of that micro-batch and rank.
    ///
    /// # Errors
    /// Ranks and micro-batches whose product is not the number of chunks, and a trace too large to keep.
    pub fn to_trace(
        &self,
        name: impl Into<String>,
        ranks: usize,
        micro_batches: usize,
    ) -> Result<RoutingTrace, TraceError> {
        let RoutingSpec { layers, experts, chunks, entries_per_chunk: entries, top_k, .. } = self.spec;
        if ranks.checked_mul(micro_batches) != Some(chunks) {
            let value = format!("{ranks} x {micro_batches}");
            return Err(TraceError::field("ranks x micro_batches", value, format!("{chunks} chunks")));
        }
        let shape = TraceShape { layers, micro_batches, ranks, experts, entries, top_k };
        check_size("samples x counts per sample", &[self.trace.iterations().len(), shape.counts_per_iteration()])?;
        let iterations = self.trace.iterations().to_vec();
        let mut counts = Vec::with_capacity(iterations.len() * shape.counts_per_iteration());
        (0..iterations.len()).for_each(|sample| self.append(0..layers, sample, 0, &mut counts));
        RoutingTrace::new(name, shape, iterations, counts)
    }

    /// Index of the sample behind iteration `t`, and by how many rows it is rotated.
    fn sample_at(&self, t: usize) -> (usize, usize) {
        let labels = self.trace.iterations();
        let (first, last) = (labels[0], labels[labels.len() - 1]);
        let gap = if let [.., before, last] = labels { last - before } else { 1 };
        let period = u64::from(last - first) + u64::from(gap);
        let passed =
            u64::from(self.spec.start - first).saturating_add((t as u64).saturating_mul(u64::from(self.spec.stride)));
        let label = u64::from(first) + passed % period;
        let sample = labels.partition_point(|&at| u64::from(at) <= label) - 1;
        // Another lap begins at another row, too.
        (sample, (label - u64::from(labels[sample]) + passed / period) as usize)
    }

    /// Appends one sample's counts of some layers, `[layer][chunk][expert]`.
    fn append(&self, layers: Range<usize>, sample: usize, rotation: usize, counts: &mut Vec<u32>) {
        let RoutingSpec { chunks, experts, top_k, entries_per_chunk, .. } = self.spec;
        let cap = entries_per_chunk / top_k;
        let start = counts.len();
        counts.resize(start + layers.len() * chunks * experts, 0);
        let (mut apportion, mut weights) = (Apportion::default(), Vec::new());
        let alike = self.alike(sample);
        let sources = (0..chunks).map(|chunk| self.source(sample, &alike, rotation, chunk)).collect::<Vec<_>>();
        let rooms = counts[start..].chunks_exact_mut(chunks * experts);
        for (groups, out) in self.layers[layers].iter().zip(rooms) {
            for (&(sample, row), mut out) in sources.iter().zip(out.chunks_exact_mut(experts)) {
                for group in groups {
                    let row = self.trace.flat_row(sample, group.layer, row);
                    let (own, rest) = out.split_at_mut(group.size);
                    apportion.share(group.weights(row, &mut weights), group.entries, cap, own);
                    out = rest;
                }
            }
        }
    }

    /// Samples that stand for this one, where a batch has more chunks than it has rows.
    fn alike(&self, sample: usize) -> Range<usize> {
        let labels = self.trace.iterations();
        let Choices::Stated { within: Some(within) } = self.trace.choices() else { return 0..labels.len() };
        let of = |label: u32| labels.partition_point(|&at| at < label);
        let label = labels[sample];
        of(label.saturating_sub(within))..of(label.saturating_add(within).saturating_add(1)).max(sample + 1)
    }

    /// Sample and row that a chunk is taken from.
    fn source(&self, sample: usize, alike: &Range<usize>, rotation: usize, chunk: usize) -> (usize, usize) {
        let rows = self.trace.shape().rows();
        let first = (mix(self.spec.seed) % rows as u64) as usize;
        let row = (chunk % rows + rotation % rows + first) % rows;
        (alike.start + nearby(sample - alike.start, chunk / rows, alike.len()), row)
    }
}

/// Consecutive experts of the model and where their entries come from.
#[derive(Clone, Debug)]
struct Group {
    /// Layer of the trace.
    layer: usize,
    /// Experts of the trace behind those of the group; None for all of them in order.
    experts: Option<Selection>,
    size: usize,
    /// Entries of a chunk that go to the group.
    entries: u32,
}

impl Group {
    fn weights<'w>(&self, row: &'w [u32], room: &'w mut Vec<u32>) -> &'w [u32] {
        match &self.experts {
            None => row,
            Some(selection) => {
                selection.weights(row, room);
                room
            }
        }
    }
}

/// For each expert of a group, one of the trace, and the others that it stands for.
#[derive(Clone, Debug)]
struct Selection {
    chosen: Vec<usize>,
    /// `[expert of the trace]` place in `chosen` of the one that stands for it.
    stands: Vec<usize>,
}

/// How much those that were not chosen count: little, but enough to tell where entries go when a gate has
/// collapsed onto experts that were not chosen.
const UNCHOSEN: u32 = 16;

impl Selection {
    /// Weights of the group's experts for the counts (or loads) of all experts of the trace.
    fn weights(&self, counts: &[u32], weights: &mut Vec<u32>) {
        weights.clear();
        weights.extend(self.chosen.iter().map(|&expert| counts[expert] - counts[expert] / UNCHOSEN));
        for (&count, &place) in counts.iter().zip(&self.stands) {
            weights[place] += count / UNCHOSEN;
        }
    }
}

fn check(trace: &RoutingTrace, spec: &RoutingSpec) -> Result<(), TraceError> {
    for (field, value) in [("layers", spec.layers), ("experts", spec.experts), ("chunks", spec.chunks)] {
        if value == 0 {
            return Err(TraceError::field(field, value, "at least 1"));
        }
    }
    check_size("layers x chunks x experts", &[spec.layers, spec.chunks, spec.experts])?;
    check_choices(spec.experts, "entries_per_chunk", spec.entries_per_chunk, spec.top_k)?;
    let (first, last) = (trace.iterations()[0], trace.iterations()[trace.iterations().len() - 1]);
    if !(first..=last).contains(&spec.start) {
        let expected = format!("{first} to {last}, the labels of {}", trace.name());
        return Err(TraceError::field("start", spec.start, expected));
    }
    Ok(())
}

/// The groups that stand for one layer of the model.
fn groups(likeness: &Likeness, spec: &RoutingSpec, layer: usize) -> Vec<Group> {
    let trace_layers = likeness.order.len();
    let (own, lap) = if spec.layers <= trace_layers {
        (layer * trace_layers / spec.layers, 0)
    } else {
        (layer % trace_layers, layer / trace_layers)
    };
    let count = spec.experts.div_ceil(likeness.experts);
    let bound = |part: usize, whole: usize| part * whole / count;
    let groups = (0..count).map(|group| {
        let (source, again) = likeness.similar(own, group);
        let size = bound(group + 1, spec.experts) - bound(group, spec.experts);
        // Entries in proportion to experts, rounded so that the groups' shares add up.
        let entries_up_to = |group| {
            let experts = bound(group, spec.experts) as u64;
            (u64::from(spec.entries_per_chunk) * experts / spec.experts as u64) as u32
        };
        Group {
            layer: source,
            experts: likeness.choose(source, size, spec, lap + again),
            size,
            entries: entries_up_to(group + 1) - entries_up_to(group),
        }
    });
    groups.collect()
}

/// Long-run skew of the trace's layers, from a few samples spread over it.
struct Likeness {
    experts: usize,
    /// `[layer][sample][expert]` loads, scaled to `SCALE` per sample.
    loads: Vec<Vec<Vec<u32>>>,
    /// Layers by mean max/mean.
    order: Vec<usize>,
}

/// Samples that the choice of experts looks at.
const SAMPLES: usize = 16;
/// Sum of the loads that are compared: large enough for rounding not to matter.
const SCALE: u32 = 1 << 20;

impl Likeness {
    fn new(trace: &RoutingTrace) -> Self {
        let TraceShape { layers, experts, .. } = *trace.shape();
        let count = trace.iterations().len().min(SAMPLES);
        // The middles of equal spans.
        let sample = |i: usize| (2 * i + 1) * trace.iterations().len() / (2 * count);
        let loads = (0..layers)
            .map(|layer| (0..count).map(|i| scaled(&trace.loads(sample(i), layer))).collect::<Vec<_>>())
            .collect::<Vec<_>>();
        let skew = |layer: usize| {
            loads[layer].iter().map(|loads| u64::from(loads.iter().copied().max().unwrap_or(0))).sum::<u64>()
        };
        let mut order = (0..layers).collect::<Vec<_>>();
        order.sort_by_key(|&layer| skew(layer));
        Self { experts, loads, order }
    }

    /// The layer that is `nth` nearest to `layer` in skew, and how often all layers were gone through before.
    fn similar(&self, layer: usize, nth: usize) -> (usize, usize) {
        let layers = self.order.len();
        let place = self.order.iter().position(|&other| other == layer).unwrap_or(0);
        (self.order[nearby(place, nth % layers, layers)], nth / layers)
    }

    /// `size` experts of a layer whose skew is like that of all; None for all in order.
    ///
    /// `lap` renumbers them, so that a layer used again does not load the same experts.
    fn choose(&self, layer: usize, size: usize, spec: &RoutingSpec, lap: usize) -> Option<Selection> {
        if lap == 0 && size == self.experts {
            return None;
        }
        // A group may load its experts up to this, in units of its mean load.
        let limit = spec.experts as f64 / f64::from(spec.top_k);
        let mut strata = Choice::new(&self.loads[layer], size, limit).descend();
        strata.sort_unstable_by_key(|stratum| stratum[0]);
        // A third of the way round, so that few neighbours remain neighbours on a rank.
        strata.rotate_left(lap * (size / 3).max(1) % size);
        Some(selection(&strata, self.experts))
    }
}

/// The first expert of each stratum stands for the others in it.
fn selection(strata: &[Vec<usize>], experts: usize) -> Selection {
    let mut stands = vec![0; experts];
    for (place, stratum) in strata.iter().enumerate() {
        stratum.iter().for_each(|&expert| stands[expert] = place);
    }
    Selection { chosen: strata.iter().map(|stratum| stratum[0]).collect(), stands }
}

/// A subset of experts, one from each stratum of neighbours in order of mean load.
struct Choice<'a> {
    loads: &'a [Vec<u32>],
    /// Max/mean and Gini to come near to, per sample.
    wanted: Vec<(f64, f64)>,
    /// The first of each is the one chosen.
    strata: Vec<Vec<usize>>,
    cap: u32,
    apportion: Apportion,
}

impl<'a> Choice<'a> {
    fn new(loads: &'a [Vec<u32>], size: usize, limit: f64) -> Self {
        let experts = loads[0].len();
        let total = |expert: usize| loads.iter().map(|loads| u64::from(loads[expert])).sum::<u64>();
        let mut order = (0..experts).collect::<Vec<_>>();
        order.sort_by_key(|&expert| std::cmp::Reverse(total(expert)));
        let strata =
            (0..size).map(|i| order[i * experts / size..(i + 1) * experts / size].to_vec()).collect::<Vec<_>>();
        let wanted = loads
            .iter()
            .map(|loads| {
                let loads = loads.iter().map(|&load| u64::from(load)).collect::<Vec<_>>();
                (max_over_mean(&loads).min(limit), gini(&loads))
            })
            .collect();
        let cap = (f64::from(SCALE) * (limit / size as f64).min(1.0)).ceil() as u32;
        let mut choice = Self { loads, wanted, strata, cap, apportion: Apportion::default() };
        // Alternately the upper and the lower neighbour, to begin with.
        choice.strata.iter_mut().skip(1).step_by(2).for_each(|stratum| stratum.reverse());
        choice
    }

    /// Changes one choice at a time while that brings the skew nearer; the strata, chosen experts first.
    fn descend(mut self) -> Vec<Vec<usize>> {
        let mut best = self.distance();
        loop {
            let before = best;
            for i in 0..self.strata.len() {
                for j in 1..self.strata[i].len() {
                    self.strata[i].swap(0, j);
                    let distance = self.distance();
                    if distance < best {
                        best = distance;
                    } else {
                        self.strata[i].swap(0, j);
                    }
                }
            }
            if best == before {
                return self.strata;
            }
        }
    }

    /// Summed relative error of max/mean and of Gini over the samples.
    fn distance(&mut self) -> f64 {
        let selection = selection(&self.strata, self.loads[0].len());
        let (mut sum, mut weights, mut shares) = (0.0, Vec::new(), vec![0; self.strata.len()]);
        for (loads, &(wanted_max, wanted_gini)) in self.loads.iter().zip(&self.wanted) {
            selection.weights(loads, &mut weights);
            self.apportion.share(&weights, SCALE, self.cap, &mut shares);
            let shares = shares.iter().map(|&share| u64::from(share)).collect::<Vec<_>>();
            sum += (max_over_mean(&shares) / wanted_max - 1.0).abs();
            sum += (gini(&shares) - wanted_gini).abs() / wanted_gini.max(0.1);
        }
        sum
    }
}

fn scaled(loads: &[u64]) -> Vec<u32> {
    let sum = loads.iter().sum::<u64>().max(1);
    loads.iter().map(|&load| (u128::from(load) * u128::from(SCALE) / u128::from(sum)) as u32).collect()
}

/// The `nth` neighbour of `place` in `0..count`: itself, one up, one down, two up, ..; all of them before any again.
fn nearby(place: usize, nth: usize, count: usize) -> usize {
    let nth = nth % count;
    let (below, above) = (place, count - 1 - place);
    let both = below.min(above);
    if nth <= 2 * both {
        let distance = nth.div_ceil(2);
        if nth % 2 == 1 { place + distance } else { place - distance }
    } else if above > below {
        place + nth - both
    } else {
        place - (nth - both)
    }
}

/// A scrambled seed (the finisher of SplitMix64); 0 stays 0.
fn mix(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::artifact::tests::real_trace;
    use super::super::{ImbalanceSpec, Skew, SkewSpec, SynthSpec, TraceStats, Workload};
    use super::*;
    use std::collections::BTreeSet;

    /// Where a workload moves, its batches move as it does, however many chunks they have.
    #[test]
    fn a_stated_workload_keeps_its_steps() {
        let batch = |trace: &RoutingTrace, chunks, t| {
            let TraceShape { layers, experts, entries, top_k, .. } = *trace.shape();
            let (start, entries_per_chunk) = (trace.iterations()[0], entries);
            let spec = RoutingSpec { layers, experts, chunks, entries_per_chunk, top_k, start, stride: 1, seed: 0 };
            Routing::new(trace, spec).unwrap().iteration(t)
        };
        for workload in [Workload::RotatingHotspot, Workload::Burst] {
            let of = ImbalanceSpec { workload, experts: 8, top_k: 2, tokens: 64, seed: 3 };
            let trace = of.trace(12, 2, 1, 1).unwrap();
            for t in 0..12 {
                let many = batch(&trace, 40, t);
                assert!((0..40).all(|chunk| many.chunk(1, chunk) == trace.row(t, 1, 0, 0)), "{workload} {t}");
            }
        }
        // Half of the skew is elsewhere after 3 iterations: no sample stands for another. After 1000, all do.
        let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 2, experts: 16, entries: 4096, top_k: 2 };
        for (half_life, distinct) in [(3.0, 2), (1000.0, 20)] {
            let skew = Skew { max_over_mean: Some(4.0), half_life: Some(half_life), ..Skew::default() };
            let trace = SkewSpec { shape, samples: 30, step: 1, seed: 1, skew }.generate().unwrap();
            let batch = batch(&trace, 20, 12);
            let found: BTreeSet<&[u32]> = (0..20).map(|chunk| batch.chunk(0, chunk)).collect();
            let ratio = max_over_mean(&batch.loads(0));
            assert!(
                found.len() == distinct && (ratio - 4.0).abs() < 0.25,
                "{half_life}: {} rows, {ratio}",
                found.len()
            );
        }
    }

    #[test]
    fn the_first_sample_has_a_chunks_entries() {
        let batch = BatchCounts::new(1, 2, 2, vec![5, 1, 0, 3]).in_first_samples(3);
        assert_eq!((batch.chunks(), batch.chunk(0, 0), batch.chunk(0, 3)), (6, &[5, 1][..], &[0, 3][..]));
        assert!([1, 2, 4, 5].iter().all(|&empty| batch.chunk(0, empty) == [0, 0]));
    }

    fn small() -> RoutingTrace {
        SynthSpec { layers: 4, micro_batches: 2, ranks: 4, experts: 8, samples: 6, ..SynthSpec::default() }
            .generate()
            .unwrap()
    }

    fn own(trace: &RoutingTrace) -> RoutingSpec {
        let shape = trace.shape();
        RoutingSpec {
            layers: shape.layers,
            experts: shape.experts,
            chunks: shape.rows(),
            entries_per_chunk: shape.entries,
            top_k: shape.top_k,
            start: trace.iterations()[0],
            stride: 10,
            seed: 0,
        }
    }

    #[test]
    fn identity_keeps_every_count() {
        let trace = small();
        let routing = Routing::new(&trace, own(&trace)).unwrap();
        let same = routing.to_trace(trace.name(), 4, 2).unwrap();
        assert_eq!(same, trace);
        for (t, expected) in [(0, 0), (5, 5), (6, 0)] {
            let counts = routing.iteration(t);
            let rotation = t / 6;
            assert_eq!(counts.chunk(3, 0), trace.flat_row(expected, 3, rotation));
            assert_eq!(counts.loads(2), trace.loads(expected, 2));
        }
    }

    #[test]
    fn rows_rotate_between_samples_and_rounds_take_neighbours() {
        let trace = small();
        let spec = RoutingSpec { start: 21, stride: 3, chunks: 20, ..own(&trace) };
        let counts = Routing::new(&trace, spec).unwrap().iteration(1);
        assert_eq!(counts.chunk(1, 0), trace.flat_row(2, 1, 3));
        assert_eq!(counts.chunk(1, 6), trace.flat_row(2, 1, 1));
        assert_eq!(counts.chunk(1, 8), trace.flat_row(3, 1, 3));
        assert_eq!(counts.chunk(1, 16), trace.flat_row(1, 1, 3));
    }

    #[test]
    fn neighbours_are_all_different() {
        for count in 1..7 {
            for place in 0..count {
                let mut all = (0..count).map(|nth| nearby(place, nth, count)).collect::<Vec<_>>();
                assert_eq!(all[0], place);
                all.sort_unstable();
                assert_eq!(all, (0..count).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn any_shape_holds_sums_and_ceilings() {
        let trace = small();
        for (layers, experts, entries, top_k) in
            [(2, 3, 30, 3), (4, 6, 101, 1), (9, 8, 4096, 4), (3, 13, 26, 2), (4, 40, 8192, 8), (1, 1, 5, 1)]
        {
            let spec = RoutingSpec { layers, experts, entries_per_chunk: entries, top_k, seed: 5, ..own(&trace) };
            let routing = Routing::new(&trace, spec).unwrap();
            let rescaled = routing.to_trace("r", 2, 4).unwrap();
            assert_eq!(rescaled.iterations(), trace.iterations());
            assert_eq!(routing.iteration(3), Routing::new(&trace, spec).unwrap().iteration(3));
        }
    }

    fn check_error(change: impl Fn(&mut RoutingSpec), message: &str) {
        let trace = small();
        let mut spec = own(&trace);
        change(&mut spec);
        assert_eq!(Routing::new(&trace, spec).expect_err(message).to_string(), message);
    }

    #[test]
    fn says_what_is_wrong() {
        check_error(|spec| spec.chunks = 0, "chunks is 0: expected at least 1");
        check_error(|spec| spec.experts = 1, "top_k is 2: expected 1 to 1, the number of experts");
        check_error(
            |spec| spec.entries_per_chunk = 7,
            "entries_per_chunk is 7: expected a multiple of top_k (2) from 2 to 1073741824",
        );
        check_error(|spec| spec.start = 60, "start is 60: expected 1 to 51, the labels of synthetic");
        let trace = small();
        let error = Routing::new(&trace, own(&trace)).unwrap().to_trace("r", 3, 2).expect_err("6 of 8");
        assert_eq!(error.to_string(), "ranks x micro_batches is 3 x 2: expected 8 chunks");
    }

    /// Mean max/mean (each at most `limit`) and Gini over layers and samples.
    fn skew(trace: &RoutingTrace, limit: f64) -> (f64, f64) {
        let TraceShape { layers, .. } = *trace.shape();
        let (mut max, mut sum, mut count) = (0.0, 0.0, 0.0);
        for index in 0..trace.iterations().len() {
            for layer in 0..layers {
                let loads = trace.loads(index, layer);
                max += max_over_mean(&loads).min(limit);
                sum += gini(&loads);
                count += 1.0;
            }
        }
        (max / count, sum / count)
    }

    /// `shipped`: how far max/mean is off, as a fraction, rounded up to a thousandth.
    fn check_skew(trace: &RoutingTrace, (experts, shipped): (usize, f64)) {
        let spec = RoutingSpec { layers: 16, experts, entries_per_chunk: 2048, ..own(trace) };
        let shape = *trace.shape();
        let rescaled = Routing::new(trace, spec).unwrap().to_trace("r", shape.ranks, shape.micro_batches).unwrap();
        let limit = experts as f64 / 2.0;
        let (wanted, found) = (skew(trace, limit), skew(&rescaled, limit));
        let overlaps = |trace: &RoutingTrace| {
            let stats = TraceStats::new(trace, 8).unwrap();
            let mean = |lag: usize| {
                stats.per_layer.iter().filter_map(|layer| layer.hot_overlap[lag]).sum::<f64>()
                    / stats.per_layer.len() as f64
            };
            (mean(0), mean(1))
        };
        let (overlap, kept) = (overlaps(trace), overlaps(&rescaled));
        eprintln!(
            "{} to {experts} experts: max/mean {:.2} -> {:.2} (of {limit}), Gini {:.3} -> {:.3}, \
             overlap at 1 and 10 samples {overlap:.3?} -> {kept:.3?}",
            trace.name(),
            wanted.0,
            found.0,
            wanted.1,
            found.1
        );
        assert!((found.0 / wanted.0 - 1.0).abs() < shipped, "max/mean");
        assert!((found.1 - wanted.1).abs() < 0.05, "Gini");
        assert!((overlap.0 - kept.0).abs() < 0.06 && (overlap.1 - kept.1).abs() < 0.06, "overlap");
    }

    #[test]
    fn keeps_the_skew_of_a_synthetic_trace() {
        let trace = SynthSpec { samples: 60, step: 80, ..SynthSpec::default() }.generate().unwrap();
        [(16, 0.02), (48, 0.091), (64, 0.022)].into_iter().for_each(|case| check_skew(&trace, case));
    }

    #[test]
    #[ignore = "needs MOEBENCH_SHARED: the published trace"]
    fn keeps_the_skew_of_the_published_trace() {
        let trace = real_trace();
        let same = Routing::new(trace, own(trace)).unwrap();
        assert!(same.to_trace(trace.name(), 16, 4).unwrap() == *trace, "identity");
        [(16, 0.006), (64, 0.08)].into_iter().for_each(|case| check_skew(trace, case));
    }
}
