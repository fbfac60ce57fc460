//! What is trained on: a file of token ids, or a synthetic language whose entropy is known.
//!
//! A sample depends on the seed, the iteration and its place in the global batch alone, never on the plan: every system and
//! every split over ranks trains on the same tokens.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Samples of a fixed length.
pub trait Samples: Send + Sync {
    /// The tokens of one sample, one more than the sequence length: inputs and, shifted by one, targets.
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64>;

    /// Token ids are below this.
    fn vocabulary(&self) -> usize;

    /// What a loss can be held against, where it is known.
    fn entropy(&self) -> Option<Entropy>;
}

/// Entropies of a language, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entropy {
    /// Of the next token when all before it are known: no model's expected loss is lower.
    pub floor: f64,
    /// Of tokens on their own: the loss of a model that knows their frequencies alone.
    pub unigram: f64,
}

/// Why data cannot be trained on.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no list of ids.
    #[error("{path}: {bytes} bytes are no whole number of {kind} ids")]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: usize,
        /// What it should hold.
        kind: TokenKind,
    },
    /// The file is too short.
    #[error("{path}: {tokens} tokens: expected at least {needed}, one more than the sequence length")]
    Short {
        /// The file.
        path: PathBuf,
        /// What it holds.
        tokens: usize,
        /// What one sample needs.
        needed: usize,
    },
    /// An id outside the vocabulary.
    #[error(
        "{path}: token {position} (counted from 0) is {id}: expected 0 to {last}, the model's vocabulary; or the file does not hold {kind} ids"
    )]
    Id {
        /// The file.
        path: PathBuf,
        /// Tokens before this one.
        position: usize,
        /// The id.
        id: i64,
        /// The largest id allowed.
        last: usize,
        /// How the file was read.
        kind: TokenKind,
    },
    /// A language that cannot be made.
    #[error("synthetic language: {field} = {value}: expected {expected}")]
    Language {
        /// Which of its numbers.
        field: &'static str,
        /// The number.
        value: usize,
        /// What it may be.
        expected: &'static str,
    },
}

/// How a file stores ids, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Two bytes each.
    Uint16,
    /// Four bytes each.
    Int32,
}

impl TokenKind {
    /// By its name in numpy: `uint16` or `int32`.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Uint16, Self::Int32].into_iter().find(|kind| kind.to_string() == name)
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Uint16 => 2,
            Self::Int32 => 4,
        }
    }
}

impl std::fmt::Display for TokenKind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Uint16 => "uint16",
            Self::Int32 => "int32",
        })
    }
}

/// A file of token ids, one after the other without a header, mapped into memory.
#[derive(Debug)]
pub struct TokenFile {
    map: Mmap,
    kind: TokenKind,
    vocabulary: usize,
    sequence: usize,
    seed: u64,
}

impl TokenFile {
    /// Opens the file and checks every id. Samples of `sequence + 1` tokens begin at random places.
    ///
    /// # Errors
    /// What is wrong with the file, where.
    pub fn open(
        path: &Path,
        kind: TokenKind,
        vocabulary: usize,
        sequence: usize,
        seed: u64,
    ) -> Result<Self, DataError> {
        let io = |source| DataError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len() as usize;
        if !bytes.is_multiple_of(kind.bytes()) {
            return Err(DataError::Size { path: path.to_owned(), bytes, kind });
        }
        let (tokens, needed) = (bytes / kind.bytes(), sequence + 1);
        if tokens < needed {
            return Err(DataError::Short { path: path.to_owned(), tokens, needed });
        }
        // SAFETY: the file is only read. Someone who cuts it during the run ends the run, as with any mapped file.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let file = Self { map, kind, vocabulary, sequence, seed };
        if let Some((position, id)) = (0..tokens).map(|at| (at, file.id(at))).find(|(_, id)| !file.allows(*id)) {
            let last = vocabulary.saturating_sub(1);
            return Err(DataError::Id { path: path.to_owned(), position, id, last, kind });
        }
        Ok(file)
    }

    /// Tokens in the file.
    pub fn tokens(&self) -> usize {
        self.map.len() / self.kind.bytes()
    }

    fn allows(&self, id: i64) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.vocabulary)
    }

    fn id(&self, position: usize) -> i64 {
        let bytes = &self.map[position * self.kind.bytes()..];
        match self.kind {
            TokenKind::Uint16 => i64::from(u16::from_le_bytes([bytes[0], bytes[1]])),
            TokenKind::Int32 => i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        }
    }
}

impl Samples for TokenFile {
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64> {
        let starts = (self.tokens() - self.sequence) as u64;
        let start = below(starts, &mut stream(self.seed, Purpose::Sample, iteration, index)) as usize;
        (start..=start + self.sequence).map(|position| self.id(position)).collect()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn entropy(&self) -> Option<Entropy> {
        None
    }
}

/// Likely successors of a token.
const SUCCESSORS: usize = 4;
/// How often one of them follows.
const REGULAR: f64 = 0.9;
/// What the most likely successor, the second, ... weigh: halves.
const SUCCESSOR_WEIGHTS: [f64; SUCCESSORS] = [8.0 / 15.0, 4.0 / 15.0, 2.0 / 15.0, 1.0 / 15.0];

/// A synthetic language: each token is followed by one of four successors of its own with probability 0.9, and otherwise by
/// any token, those by Zipf's law (the probability of the n-th is proportional to 1/n). Successors are drawn by Zipf's law
/// too, so tokens are about as unevenly frequent as words are.
///
/// A model sees the structure in the last token alone, so a small one comes near the floor within some hundred steps; and
/// its loss falls below the unigram entropy only by having learned it.
#[derive(Clone, Debug)]
pub struct Language {
    /// `[token][next]`: probability that `next` is at most this, row after row.
    cumulative: Vec<f64>,
    /// `[token]`: probability that a token is at most this.
    cumulative_first: Vec<f64>,
    entropy: Entropy,
    vocabulary: usize,
    sequence: usize,
    seed: u64,
}

impl Language {
    /// The largest vocabulary; the matrix of a larger one would take over 128 MiB.
    pub const LARGEST: usize = 4096;

    /// A language of `vocabulary` tokens, in samples of `sequence + 1`. The seed fixes both the language and its samples.
    ///
    /// # Errors
    /// A vocabulary that is too small or too large.
    pub fn new(vocabulary: usize, sequence: usize, seed: u64) -> Result<Self, DataError> {
        if !(SUCCESSORS..=Self::LARGEST).contains(&vocabulary) {
            let (field, expected) = ("vocabulary", "4 to 4096");
            return Err(DataError::Language { field, value: vocabulary, expected });
        }
        let matrix = transition_matrix(vocabulary, seed);
        let stationary = stationary(&matrix, vocabulary);
        let rows = matrix.chunks(vocabulary);
        let floor = rows.clone().zip(&stationary).map(|(row, weight)| weight * entropy(row)).sum();
        Ok(Self {
            cumulative: rows.flat_map(cumulative).collect(),
            cumulative_first: cumulative(&stationary),
            entropy: Entropy { floor, unigram: entropy(&stationary) },
            vocabulary,
            sequence,
            seed,
        })
    }
}

impl Samples for Language {
    fn sample(&self, iteration: usize, index: usize) -> Vec<i64> {
        let mut rng = stream(self.seed, Purpose::Sample, iteration, index);
        // From the stationary distribution, so that the entropies hold at every place.
        let mut token = draw(&self.cumulative_first, &mut rng);
        let mut tokens = vec![token as i64];
        for _ in 0..self.sequence {
            token = draw(&self.cumulative[token * self.vocabulary..][..self.vocabulary], &mut rng);
            tokens.push(token as i64);
        }
        tokens
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn entropy(&self) -> Option<Entropy> {
        Some(self.entropy)
    }
}

/// `[token][next]`, row after row: the probability that `next` follows.
fn transition_matrix(vocabulary: usize, seed: u64) -> Vec<f64> {
    let harmonic: f64 = (1..=vocabulary).map(|rank| 1.0 / rank as f64).sum();
    let zipf: Vec<f64> = (1..=vocabulary).map(|rank| 1.0 / (rank as f64 * harmonic)).collect();
    let by_zipf = cumulative(&zipf);
    let mut matrix = Vec::with_capacity(vocabulary * vocabulary);
    for token in 0..vocabulary {
        let mut rng = stream(seed, Purpose::Successors, 0, token);
        let mut row: Vec<f64> = zipf.iter().map(|probability| (1.0 - REGULAR) * probability).collect();
        let mut successors = Vec::with_capacity(SUCCESSORS);
        while successors.len() < SUCCESSORS {
            let next = draw(&by_zipf, &mut rng);
            if !successors.contains(&next) {
                successors.push(next);
            }
        }
        for (next, weight) in successors.into_iter().zip(SUCCESSOR_WEIGHTS) {
            row[next] += REGULAR * weight;
        }
        matrix.extend(row);
    }
    matrix
}

/// The distribution that a step leaves as it is. Every step forgets at least a tenth of the past, so the distance to it
/// falls by 0.9 a step, and 400 steps reach the precision of the numbers.
fn stationary(matrix: &[f64], vocabulary: usize) -> Vec<f64> {
    let mut now = vec![1.0 / vocabulary as f64; vocabulary];
    for _ in 0..400 {
        let mut next = vec![0.0; vocabulary];
        for (row, weight) in matrix.chunks(vocabulary).zip(&now) {
            for (sum, probability) in next.iter_mut().zip(row) {
                *sum += weight * probability;
            }
        }
        let total: f64 = next.iter().sum();
        now = next.into_iter().map(|probability| probability / total).collect();
    }
    now
}

/// Shannon's entropy in nats.
fn entropy(probabilities: &[f64]) -> f64 {
    -probabilities.iter().filter(|probability| **probability > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

fn cumulative(probabilities: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let add = |probability: &f64| {
        sum += probability;
        sum
    };
    probabilities.iter().map(add).collect()
}

/// An outcome, by the inverse of its cumulative probabilities.
fn draw(cumulative: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let uniform = (rng.next_u64() >> 11) as f64 * 2f64.powi(-53);
    // Rounding may leave the last sum a little below 1.
    cumulative.partition_point(|&sum| sum <= uniform).min(cumulative.len() - 1)
}

/// A whole number below `bound`, by the upper half of a product: for any bound that occurs, as good as even.
fn below(bound: u64, rng: &mut ChaCha8Rng) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

/// What a stream of draws is for.
#[derive(Clone, Copy)]
enum Purpose {
    Successors = 0,
    Sample = 1,
}

/// An independent stream for each purpose, iteration and index.
fn stream(seed: u64, purpose: Purpose, iteration: usize, index: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((purpose as u64) << 62) | ((iteration as u64 & 0x3fff_ffff) << 32) | (index as u64 & 0xffff_ffff));
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("moebench-data-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_sample_depends_on_seed_iteration_and_index_alone() {
        let language = Language::new(128, 64, 1).unwrap();
        let again = Language::new(128, 64, 1).unwrap();
        assert_eq!(language.sample(7, 3), again.sample(7, 3));
        assert_eq!(language.sample(7, 3).len(), 65);
        assert_ne!(language.sample(7, 3), language.sample(7, 4));
        assert_ne!(language.sample(7, 3), language.sample(8, 3));
        assert_ne!(language.sample(7, 3), Language::new(128, 64, 2).unwrap().sample(7, 3));
        // A shorter sequence is the beginning of a longer one.
        assert_eq!(language.sample(7, 3)[..33], Language::new(128, 32, 1).unwrap().sample(7, 3));
    }

    #[test]
    fn its_entropies_are_those_of_its_matrix() {
        for (vocabulary, seed) in [(5, 3), (128, 1), (300, 9)] {
            let language = Language::new(vocabulary, 8, seed).unwrap();
            let matrix = transition_matrix(vocabulary, seed);
            for row in matrix.chunks(vocabulary) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            // Brute force: the entropy of pairs less that of their first tokens, after the matrix has been squared until
            // all its rows agree.
            let mut power = matrix.clone();
            for _ in 0..10 {
                let mut square = vec![0.0; power.len()];
                for row in 0..vocabulary {
                    for middle in 0..vocabulary {
                        for column in 0..vocabulary {
                            square[row * vocabulary + column] +=
                                power[row * vocabulary + middle] * power[middle * vocabulary + column];
                        }
                    }
                }
                power = square;
            }
            let first = &power[..vocabulary];
            let pairs: Vec<f64> = (0..vocabulary * vocabulary).map(|at| first[at / vocabulary] * matrix[at]).collect();
            let sum = |terms: &[f64]| terms.iter().map(|p| if *p > 0.0 { -p * p.ln() } else { 0.0 }).sum::<f64>();
            let Entropy { floor, unigram } = language.entropy().unwrap();
            assert!((unigram - sum(first)).abs() < 1e-9, "{unigram} {}", sum(first));
            assert!((floor - (sum(&pairs) - sum(first))).abs() < 1e-9, "{floor}");
        }
    }

    #[test]
    fn the_default_size_leaves_much_to_learn() {
        for seed in 0..5 {
            let Entropy { floor, unigram } = Language::new(128, 8, seed).unwrap().entropy().unwrap();
            assert!((1.2..1.9).contains(&floor), "{floor}");
            assert!((3.0..4.5).contains(&unigram), "{unigram}");
        }
    }

    #[test]
    fn what_is_drawn_has_the_frequencies_of_the_matrix() {
        let (vocabulary, seed) = (16, 4);
        let language = Language::new(vocabulary, 200, seed).unwrap();
        let matrix = transition_matrix(vocabulary, seed);
        let mut pairs = vec![0.0; vocabulary * vocabulary];
        let mut tokens = vec![0.0; vocabulary];
        for index in 0..2000 {
            for pair in language.sample(0, index).windows(2) {
                pairs[pair[0] as usize * vocabulary + pair[1] as usize] += 1.0;
                tokens[pair[0] as usize] += 1.0;
            }
        }
        let expected_token = stationary(&matrix, vocabulary);
        for token in 0..vocabulary {
            let frequency = tokens[token] / 400_000.0;
            // Neighbours are not independent: twice the deviation of independent draws, five times.
            let deviation = 2.0 * (expected_token[token] / 400_000.0).sqrt();
            assert!((frequency - expected_token[token]).abs() < 5.0 * deviation, "{token} {frequency}");
            for next in 0..vocabulary {
                let (p, n) = (matrix[token * vocabulary + next], tokens[token]);
                let deviation = (p * (1.0 - p) / n).sqrt();
                assert!((pairs[token * vocabulary + next] / n - p).abs() < 5.0 * deviation, "{token} {next}");
            }
        }
    }

    #[test]
    fn vocabularies_out_of_range_are_refused() {
        for vocabulary in [0, 3, 4097] {
            let error = Language::new(vocabulary, 8, 1).unwrap_err().to_string();
            assert_eq!(error, format!("synthetic language: vocabulary = {vocabulary}: expected 4 to 4096"));
        }
    }

    #[test]
    fn files_of_both_kinds_are_read() {
        let ids: Vec<u16> = (0..1000).map(|at| at * 7 % 500).collect();
        let narrow = file("narrow", &ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
        let wide = file("wide", &ids.iter().flat_map(|id| i32::from(*id).to_le_bytes()).collect::<Vec<_>>());
        let narrow = TokenFile::open(&narrow, TokenKind::Uint16, 500, 20, 1).unwrap();
        let wide = TokenFile::open(&wide, TokenKind::Int32, 500, 20, 1).unwrap();
        assert_eq!((narrow.tokens(), wide.tokens()), (1000, 1000));
        let mut starts = std::collections::HashSet::new();
        for index in 0..200 {
            let sample = narrow.sample(1, index);
            assert_eq!(sample, wide.sample(1, index));
            assert_eq!(sample.len(), 21);
            assert!(sample.windows(2).all(|pair| pair[1] == (pair[0] + 7) % 500));
            starts.insert(sample[0]);
        }
        assert!(starts.len() > 100, "{}", starts.len());
        assert_ne!(narrow.sample(1, 0), narrow.sample(2, 0));
        // As many tokens as one sample needs: there is one place to begin.
        let exact = file("exact", &[1, 0, 2, 0, 3, 0]);
        assert_eq!(TokenFile::open(&exact, TokenKind::Uint16, 4, 2, 1).unwrap().sample(5, 5), [1, 2, 3]);
    }

    #[test]
    fn files_that_do_not_fit_are_refused_with_the_place() {
        let check = |name: &str, bytes: &[u8], kind, expected: &str| {
            let path = file(name, bytes);
            let error = TokenFile::open(&path, kind, 100, 2, 1).unwrap_err().to_string();
            assert!(error.starts_with(&path.display().to_string()) && error.contains(expected), "{error}");
        };
        let past = [99u16, 5, 100, 7].map(u16::to_le_bytes).concat();
        check("past", &past, TokenKind::Uint16, "token 2 (counted from 0) is 100: expected 0 to 99");
        let negative = [99i32, 5, 7, -1].map(i32::to_le_bytes).concat();
        check("negative", &negative, TokenKind::Int32, "token 3 (counted from 0) is -1: expected 0 to 99");
        check("odd", &[1, 2, 3], TokenKind::Uint16, "3 bytes are no whole number of uint16 ids");
        check("short", &[1, 0, 2, 0], TokenKind::Uint16, "2 tokens: expected at least 3");
        check("empty", &[], TokenKind::Int32, "0 tokens: expected at least 3");
        let error = TokenFile::open(Path::new("/no/such/file"), TokenKind::Int32, 1, 1, 1).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/file: "), "{error}");
        assert_eq!(TokenKind::named("uint16"), Some(TokenKind::Uint16));
        assert_eq!(TokenKind::named("int64"), None);
    }
}
