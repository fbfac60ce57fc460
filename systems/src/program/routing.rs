//! Loads as policies see them: the counts of one micro-batch, and the history of past iterations.

/// Entries of one micro-batch in one expert-parallel group: `counts[rank][expert]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingCounts {
    experts: usize,
    counts: Vec<u32>,
}

impl RoutingCounts {
    /// From rows `[rank][expert]`, flat.
    pub fn new(experts: usize, counts: Vec<u32>) -> Self {
        debug_assert!(counts.len().is_multiple_of(experts));
        Self { experts, counts }
    }

    /// Of experts with these loads, `[expert]` entries, as if they came evenly from all ranks.
    pub fn evenly(loads: &[u64], ranks: usize) -> Self {
        let ranks = ranks as u64;
        let of_rank = |rank| loads.iter().map(move |load| (load * (rank + 1) / ranks - load * rank / ranks) as u32);
        Self::new(loads.len(), (0..ranks).flat_map(of_rank).collect())
    }

    /// Of `ranks` that have chosen nothing yet, in the memory of these.
    pub fn clear(&mut self, ranks: usize, experts: usize) {
        self.experts = experts;
        self.counts.clear();
        self.counts.resize(ranks * experts, 0);
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.counts.len() / self.experts
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Entries of one source rank, `[expert]`.
    #[inline]
    pub fn row(&self, rank: usize) -> &[u32] {
        &self.counts[rank * self.experts..(rank + 1) * self.experts]
    }

    /// Entries of one source rank, `[expert]`, to change.
    pub fn row_mut(&mut self, rank: usize) -> &mut [u32] {
        &mut self.counts[rank * self.experts..(rank + 1) * self.experts]
    }

    /// The most entries of any source rank at any expert.
    pub fn largest(&self) -> u32 {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// Entries of each expert over all source ranks, `[expert]`.
    pub fn loads(&self) -> Vec<u64> {
        let mut loads = vec![0; self.experts];
        self.add_loads(&mut loads);
        loads
    }

    /// Adds them to `loads`, `[expert]`.
    pub fn add_loads(&self, loads: &mut [u64]) {
        for row in self.counts.chunks_exact(self.experts) {
            for (load, &count) in loads.iter_mut().zip(row) {
                *load += u64::from(count);
            }
        }
    }
}

/// Entries of each of `experts` experts over several iterations or batches, `[expert]` each.
pub fn sum_of_loads(experts: usize, loads: impl Iterator<Item = impl AsRef<[u64]>>) -> Vec<u64> {
    let mut sum = vec![0; experts];
    for of_one in loads {
        sum.iter_mut().zip(of_one.as_ref()).for_each(|(sum, load)| *sum += load);
    }
    sum
}

/// Loads of past iterations, per MoE layer. An engine adds an iteration once it has run, so a policy cannot see further.
#[derive(Clone, Debug, Default)]
pub struct LoadHistory {
    /// `[iteration][layer][expert]` entries over the whole stage.
    iterations: Vec<Vec<Vec<u64>>>,
}

impl LoadHistory {
    /// Adds an iteration that has run: `loads[layer][expert]`, entries.
    pub fn push(&mut self, loads: Vec<Vec<u64>>) {
        self.iterations.push(loads);
    }

    /// Number of iterations seen.
    pub fn len(&self) -> usize {
        self.iterations.len()
    }

    /// Whether nothing was seen yet.
    pub fn is_empty(&self) -> bool {
        self.iterations.is_empty()
    }

    /// The sum of the loads of one layer in the last `window` iterations, `[expert]`; it orders experts as their mean does.
    pub fn sum(&self, layer: usize, window: usize, experts: usize) -> Vec<u64> {
        sum_of_loads(experts, self.recent(layer, window))
    }

    /// Loads of one layer in the last `window` iterations, `[expert]` each, oldest first.
    pub fn recent(&self, layer: usize, window: usize) -> impl Iterator<Item = &[u64]> {
        self.iterations[self.len().saturating_sub(window)..].iter().map(move |loads| loads[layer].as_slice())
    }
}
