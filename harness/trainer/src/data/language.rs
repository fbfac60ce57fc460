//! A synthetic language whose entropy is known.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{DataError, Entropy, Purpose, Samples, stream};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
