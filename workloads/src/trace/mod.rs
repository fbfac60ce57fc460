//! Routing traces: how many token-expert entries every source rank sent to every expert, while a model was trained.
//!
//! A [`RoutingTrace`] is a checked block of counts and nothing else. Around it: [`artifact`] reads the trace published
//! with SmartMoE, [`recorded`] holds our own, [`synth`] makes one from a seed, [`rescale`] turns one into the routing of another model and batch,
//! and [`stats`] says how skewed and how persistent it is. Which rank owns which expert is no business of a trace.

mod apportion;
pub mod artifact;
pub mod imbalance;
pub mod import;
pub mod recorded;
pub mod rescale;
pub mod skew;
pub mod stats;
pub mod synth;

pub use artifact::ArtifactReader;
pub use imbalance::{ImbalanceSpec, Workload};
pub use import::{ImportError, ImportOptions, Importer};
pub use rescale::{BatchCounts, Routing, RoutingSpec};
pub use skew::{Skew, SkewSpec};
pub use stats::{Balance, LayerStats, TimeStats, TraceStats};
pub use synth::SynthSpec;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error;

/// The name of the trace that is drawn, which is the default ([`SynthSpec`]).
pub const SYNTHETIC: &str = "synthetic";

/// The names of traces that need no file.
pub fn names() -> impl Iterator<Item = &'static str> {
    std::iter::once(SYNTHETIC).chain(recorded::names())
}

/// These in a line, for an error about a `name` that is none of them, with the one that may have been meant.
pub fn known_to(name: &str) -> String {
    error::known(name, &names().collect::<Vec<_>>())
}

/// Extents of a [`RoutingTrace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceShape {
    /// MoE layers of the model.
    pub layers: usize,
    /// Micro-batches per rank and iteration.
    pub micro_batches: usize,
    /// Source ranks.
    pub ranks: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Token-expert entries per (rank, layer, micro-batch): tokens times `top_k`.
    pub entries: u32,
    /// Experts per token, all different: one expert gets at most `entries / top_k` entries of a row.
    pub top_k: u32,
}

impl TraceShape {
    /// Rows of one layer in one iteration: micro-batches times ranks, the rank running faster.
    pub fn rows(&self) -> usize {
        self.micro_batches * self.ranks
    }

    /// Counts of one iteration: layers times rows times experts.
    pub fn counts_per_iteration(&self) -> usize {
        self.layers * self.rows() * self.experts
    }

    /// The most entries that one expert can get in a row.
    pub fn cap(&self) -> u32 {
        self.entries / self.top_k
    }

    fn check(&self) -> Result<(), TraceError> {
        let extents = [
            ("layers", self.layers),
            ("micro_batches", self.micro_batches),
            ("ranks", self.ranks),
            ("experts", self.experts),
        ];
        for (field, value) in extents {
            if value == 0 {
                return Err(TraceError::field(field, value, "at least 1"));
            }
        }
        let product = extents.map(|(_, value)| value);
        check_size("layers x micro_batches x ranks x experts", &product)?;
        check_choices(self.experts, "entries", self.entries, self.top_k)
    }
}

/// Entries per expert, for samples of a training run: `[iteration][layer][micro_batch][rank][expert]`.
///
/// Every row, a `[expert]` slice, sums to `shape.entries`, and no expert has more than `entries / top_k` of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingTrace {
    name: String,
    shape: TraceShape,
    iterations: Vec<u32>,
    counts: Vec<u32>,
    notes: Vec<String>,
    choices: Choices,
}

/// Whose choices a trace has, as far as a file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choices {
    /// A gate's that is trained without a balance loss: those of a gate with one are flatter.
    #[default]
    Recorded,
    /// A gate's that is trained with one: none flattens them again.
    Balanced,
    /// Nobody's: they have an imbalance that was stated, which nothing flattens. Samples stand for each other where their labels are as far apart or less;
    /// all do without.
    Stated {
        /// Training iterations.
        within: Option<u32>,
    },
}

impl Choices {
    /// What [`Self::of_text`] reads.
    pub fn text(self) -> String {
        match self {
            Self::Recorded => "false".to_owned(),
            Self::Balanced => "true".to_owned(),
            Self::Stated { within: None } => "stated".to_owned(),
            Self::Stated { within: Some(within) } => format!("stated {within}"),
        }
    }

    /// None for a text that says nothing.
    pub fn of_text(text: &str) -> Option<Self> {
        match text.split_once(' ') {
            None if text == "false" => Some(Self::Recorded),
            None if text == "true" => Some(Self::Balanced),
            None if text == "stated" => Some(Self::Stated { within: None }),
            Some(("stated", within)) => Some(Self::Stated { within: Some(within.parse().ok()?) }),
            _ => None,
        }
    }
}

impl RoutingTrace {
    /// Checks and keeps a trace.
    ///
    /// `iterations` are the labels of the samples, strictly increasing; `counts` is flat
    /// `[iteration][layer][micro_batch][rank][expert]`, in entries.
    ///
    /// # Errors
    /// A shape with a zero extent or too many counts, labels that do not increase, a wrong number of counts, a row that does not sum to
    /// `shape.entries`, or an expert with more than `entries / top_k` entries.
    pub fn new(
        name: impl Into<String>,
        shape: TraceShape,
        iterations: Vec<u32>,
        counts: Vec<u32>,
    ) -> Result<Self, TraceError> {
        shape.check()?;
        check_labels(&iterations)?;
        check_size("iterations x counts per iteration", &[iterations.len(), shape.counts_per_iteration()])?;
        let expected = iterations.len() * shape.counts_per_iteration();
        if counts.len() != expected {
            let expected = format!("{expected}, that is iterations x layers x micro_batches x ranks x experts");
            return Err(TraceError::field("counts.len()", counts.len(), expected));
        }
        let trace =
            Self { name: name.into(), shape, iterations, counts, notes: Vec::new(), choices: Choices::default() };
        trace.check_rows()?;
        Ok(trace)
    }

    /// The same under another name.
    #[must_use]
    pub fn called(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the trace is called in records and figures.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a reader of results should know of where the counts come from, a clause each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The same counts with notes of where they come from.
    pub fn with_notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }

    /// Whose choices these are.
    pub fn choices(&self) -> Choices {
        self.choices
    }

    /// The same counts as the choices of others.
    pub fn chosen_by(self, choices: Choices) -> Self {
        Self { choices, ..self }
    }

    /// Extents.
    pub fn shape(&self) -> &TraceShape {
        &self.shape
    }

    /// Labels of the samples: training iterations, strictly increasing.
    pub fn iterations(&self) -> &[u32] {
        &self.iterations
    }

    /// All counts, flat `[iteration][layer][micro_batch][rank][expert]`, in entries.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Entries per expert that one rank routed in one micro-batch; `iteration` is an index, not a label.
    ///
    /// Indices follow the rules of slices: one that is out of range is a defect of the caller and panics.
    pub fn row(&self, iteration: usize, layer: usize, micro_batch: usize, rank: usize) -> &[u32] {
        self.flat_row(iteration, layer, micro_batch * self.shape.ranks + rank)
    }

    /// Entries per expert of one layer, summed over micro-batches and ranks; `iteration` is an index, not a label.
    pub fn loads(&self, iteration: usize, layer: usize) -> Vec<u64> {
        let mut loads = vec![0; self.shape.experts];
        for row in self.layer_rows(iteration, layer) {
            for (load, &count) in loads.iter_mut().zip(row) {
                *load += u64::from(count);
            }
        }
        loads
    }

    /// Rows of one layer in one iteration, in order `[micro_batch][rank]`.
    pub(crate) fn layer_rows(&self, iteration: usize, layer: usize) -> std::slice::ChunksExact<'_, u32> {
        let size = self.shape.rows() * self.shape.experts;
        let start = (iteration * self.shape.layers + layer) * size;
        self.counts[start..start + size].chunks_exact(self.shape.experts)
    }

    /// One row by its place in `[micro_batch][rank]`.
    pub(crate) fn flat_row(&self, iteration: usize, layer: usize, row: usize) -> &[u32] {
        let TraceShape { layers, experts, .. } = self.shape;
        let start = ((iteration * layers + layer) * self.shape.rows() + row) * experts;
        &self.counts[start..start + experts]
    }

    fn check_rows(&self) -> Result<(), TraceError> {
        let (entries, cap) = (u64::from(self.shape.entries), self.shape.cap());
        for (index, row) in self.counts.chunks_exact(self.shape.experts).enumerate() {
            let sum = row.iter().map(|&count| u64::from(count)).sum::<u64>();
            if sum != entries {
                return Err(TraceError::Sum { place: self.place(index), sum, expected: entries });
            }
            if let Some(expert) = row.iter().position(|&count| count > cap) {
                return Err(TraceError::AboveCap {
                    place: self.place(index),
                    expert,
                    count: row[expert],
                    cap,
                    top_k: self.shape.top_k,
                });
            }
        }
        Ok(())
    }

    fn place(&self, row: usize) -> Place {
        let TraceShape { layers, micro_batches, ranks, .. } = self.shape;
        Place {
            iteration: self.iterations[row / (ranks * micro_batches * layers)],
            layer: row / (ranks * micro_batches) % layers,
            micro_batch: row / ranks % micro_batches,
            rank: row % ranks,
        }
    }
}

/// A row of a trace, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Label of the iteration.
    pub iteration: u32,
    /// Layer, from 0.
    pub layer: usize,
    /// Micro-batch, from 0.
    pub micro_batch: usize,
    /// Source rank, from 0.
    pub rank: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { iteration, layer, micro_batch, rank } = self;
        write!(f, "iteration {iteration}, layer {layer}, micro-batch {micro_batch}, rank {rank}")
    }
}

/// What is wrong with a trace, with its text form, or with a specification of one.
#[derive(Debug, Error)]
pub enum TraceError {
    /// A field of a shape or of a specification that cannot be used.
    #[error("{field} is {value}: expected {expected}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What would be right.
        expected: String,
    },
    /// A row does not hold all entries of its tokens.
    #[error("{place}: the row sums to {sum}, expected {expected} entries")]
    Sum {
        /// The row.
        place: Place,
        /// Its sum.
        sum: u64,
        /// Entries per row.
        expected: u64,
    },
    /// An expert got more entries than there are tokens.
    #[error("{place}: expert {expert} has {count} entries, expected at most {cap} (a token's {top_k} choices differ)")]
    AboveCap {
        /// The row.
        place: Place,
        /// The expert.
        expert: usize,
        /// Its entries.
        count: u32,
        /// The most it can have.
        cap: u32,
        /// Choices per token.
        top_k: u32,
    },
    /// The text does not follow `layer:[[count, ..], ..]`.
    #[error("{file}, line {line}, column {column}: expected {expected}, found {found}")]
    Malformed {
        /// File name as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Byte in the line, from 1.
        column: usize,
        /// What would be right.
        expected: &'static str,
        /// What stands there.
        found: String,
    },
    /// A value that is no count: NaN, infinite, negative, fractional or too large.
    #[error(
        "{file}, line {line}: micro-batch {micro_batch}, expert {expert} is {value}, \
         expected a whole number of entries from 0 to 2^30"
    )]
    NotACount {
        /// File name as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Micro-batch, from 0.
        micro_batch: usize,
        /// Expert, from 0.
        expert: usize,
        /// The value as written.
        value: String,
    },
    /// A line is not of the layer that should come.
    #[error("{file}, line {line}: found layer {found}, layer {expected} is missing")]
    MissingLayer {
        /// File name as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Layer written there.
        found: usize,
        /// Layer that should come.
        expected: usize,
    },
    /// A file ends before the last layer that other files have.
    #[error("{file}: ends after {layers} layers, layer {layers} is missing (other files have {expected} layers)")]
    ShortFile {
        /// File name as given.
        file: String,
        /// Layers found.
        layers: usize,
        /// Layers of the longest file.
        expected: usize,
    },
    /// A line has other extents than the lines before it.
    #[error("{file}, line {line}: {found} {what}, expected {expected} as in the lines before")]
    Extent {
        /// File name as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// "micro-batches" or "experts".
        what: &'static str,
        /// Number found.
        found: usize,
        /// Number in the lines before.
        expected: usize,
    },
    /// A row has another sum than the rows before it.
    #[error(
        "{file}, line {line}: micro-batch {micro_batch} sums to {sum}, expected {expected} entries as in the rows before"
    )]
    RowSum {
        /// File name as given.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Micro-batch, from 0.
        micro_batch: usize,
        /// Its sum.
        sum: u64,
        /// Sum of the rows before.
        expected: u64,
    },
    /// Two files give the same iteration and rank.
    #[error("{file}: iteration {iteration}, rank {rank} was already given by {earlier}")]
    Duplicate {
        /// File name as given.
        file: String,
        /// Label of the iteration.
        iteration: u32,
        /// Source rank.
        rank: u32,
        /// The file that gave it first.
        earlier: String,
    },
    /// A rank is missing in an iteration.
    #[error(
        "{name}: iteration {iteration} has no rank {rank}, expected a file table_iter{iteration}_rank{rank}.log (ranks 0 to {last_rank})"
    )]
    MissingRank {
        /// Name of the trace.
        name: String,
        /// Label of the iteration.
        iteration: u32,
        /// The rank without a file.
        rank: u32,
        /// Highest rank seen.
        last_rank: u32,
    },
    /// An iteration is missing from the evenly spaced ones.
    #[error("{name}: iteration {iteration} is missing, expected every {step} iterations from {first} to {last}")]
    MissingIteration {
        /// Name of the trace.
        name: String,
        /// The label without files.
        iteration: u32,
        /// Spacing of the others.
        step: u32,
        /// First label.
        first: u32,
        /// Last label.
        last: u32,
    },
    /// No file had a name of the format.
    #[error("{name}: none of {files} files is named table_iter<N>_rank<R>.log")]
    NoFiles {
        /// Name of the trace.
        name: String,
        /// Files seen.
        files: usize,
    },
}

impl TraceError {
    fn field(field: &'static str, value: impl ToString, expected: impl Into<String>) -> Self {
        Self::Field { field, value: value.to_string(), expected: expected.into() }
    }
}

/// UTF-8's byte-order mark, which some editors put in front of a text.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// More entries than this in a row are refused, so that sums and remainders fit 32 bits.
const MOST_ENTRIES: u32 = 1 << 30;

/// More counts than this in a trace or a batch are refused: 16 GiB.
const MOST_COUNTS: usize = 1 << 32;

fn check_size(field: &'static str, extents: &[usize]) -> Result<(), TraceError> {
    let product = extents.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    if product.is_some_and(|product| product <= MOST_COUNTS) {
        return Ok(());
    }
    let value = extents.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    Err(TraceError::field(field, value, format!("a product of at most {MOST_COUNTS}")))
}

/// `entries` must be shareable among `experts` so that none gets more than `entries / top_k`.
fn check_choices(experts: usize, entries_field: &'static str, entries: u32, top_k: u32) -> Result<(), TraceError> {
    if top_k == 0 || top_k as usize > experts {
        return Err(TraceError::field("top_k", top_k, format!("1 to {experts}, the number of experts")));
    }
    if entries == 0 || entries > MOST_ENTRIES || !entries.is_multiple_of(top_k) {
        let expected = format!("a multiple of top_k ({top_k}) from {top_k} to {MOST_ENTRIES}");
        return Err(TraceError::field(entries_field, entries, expected));
    }
    Ok(())
}

fn check_labels(iterations: &[u32]) -> Result<(), TraceError> {
    if iterations.is_empty() {
        return Err(TraceError::field("iterations", "empty", "at least one label"));
    }
    match iterations.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => {
            Err(TraceError::field("iterations", format!("{} after {}", pair[1], pair[0]), "strictly increasing labels"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: TraceShape = TraceShape { layers: 1, micro_batches: 2, ranks: 1, experts: 3, entries: 8, top_k: 2 };

    fn new(shape: TraceShape, iterations: &[u32], counts: &[u32]) -> Result<RoutingTrace, TraceError> {
        RoutingTrace::new("t", shape, iterations.to_vec(), counts.to_vec())
    }

    fn check_error(shape: TraceShape, iterations: &[u32], counts: &[u32], message: &str) {
        let error = new(shape, iterations, counts).expect_err(message);
        assert_eq!(error.to_string(), message);
    }

    #[test]
    fn keeps_what_is_right() {
        let trace = new(SHAPE, &[4], &[4, 4, 0, 1, 3, 4]).unwrap();
        assert_eq!(trace.row(0, 0, 1, 0), [1, 3, 4]);
        assert_eq!(trace.loads(0, 0), [5, 7, 4]);
    }

    #[test]
    fn says_what_is_wrong() {
        let good = [4, 4, 0, 1, 3, 4];
        check_error(
            SHAPE,
            &[4],
            &good[1..],
            "counts.len() is 5: expected 6, that is iterations x layers x micro_batches x ranks x experts",
        );
        check_error(
            SHAPE,
            &[4],
            &[4, 4, 0, 1, 3, 3],
            "iteration 4, layer 0, micro-batch 1, rank 0: the row sums to 7, expected 8 entries",
        );
        check_error(
            SHAPE,
            &[4],
            &[4, 4, 0, 1, 2, 5],
            "iteration 4, layer 0, micro-batch 1, rank 0: expert 2 has 5 entries, expected at most 4 (a token's 2 choices differ)",
        );
        check_error(SHAPE, &[4, 4], &good, "iterations is 4 after 4: expected strictly increasing labels");
        check_error(SHAPE, &[], &[], "iterations is empty: expected at least one label");
        check_error(TraceShape { ranks: 0, ..SHAPE }, &[4], &good, "ranks is 0: expected at least 1");
        check_error(
            TraceShape { top_k: 4, ..SHAPE },
            &[4],
            &good,
            "top_k is 4: expected 1 to 3, the number of experts",
        );
        check_error(
            TraceShape { entries: 9, ..SHAPE },
            &[4],
            &good,
            "entries is 9: expected a multiple of top_k (2) from 2 to 1073741824",
        );
    }
}
