//! A synthetic language whose entropy is known.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

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
        let followers = Followers::new(vocabulary, seed);
        let stationary = followers.stationary();
        let mut matrix = vec![0.0; vocabulary * vocabulary];
        let rows = matrix.par_chunks_mut(vocabulary).enumerate();
        let entropies = rows.map(|(token, to)| {
            let row = followers.row(token);
            to.copy_from_slice(&cumulative(&row));
            entropy(&row)
        });
        let entropies: Vec<f64> = entropies.collect();
        let floor = entropies.iter().zip(&stationary).map(|(entropy, weight)| weight * entropy).sum();
        Ok(Self {
            cumulative: matrix,
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

/// What follows each token, in the few numbers that say it.
struct Followers {
    /// `[next]`: the probability that any token follows, where no likely one does.
    zipf: Vec<f64>,
    /// `[token]`: its likely successors, the most likely first.
    successors: Vec<[usize; SUCCESSORS]>,
}

impl Followers {
    fn new(vocabulary: usize, seed: u64) -> Self {
        let harmonic: f64 = (1..=vocabulary).map(|rank| 1.0 / rank as f64).sum();
        let zipf: Vec<f64> = (1..=vocabulary).map(|rank| 1.0 / (rank as f64 * harmonic)).collect();
        let by_zipf = cumulative(&zipf);
        let successors_of = |token: usize| {
            let mut rng = stream(seed, Purpose::Successors, 0, token);
            let (mut successors, mut found) = ([0; SUCCESSORS], 0);
            while found < SUCCESSORS {
                let next = draw(&by_zipf, &mut rng);
                if !successors[..found].contains(&next) {
                    successors[found] = next;
                    found += 1;
                }
            }
            successors
        };
        Self { successors: (0..vocabulary).map(successors_of).collect(), zipf }
    }

    /// `[next]`: the probability that it follows `token`.
    fn row(&self, token: usize) -> Vec<f64> {
        let mut row: Vec<f64> = self.zipf.iter().map(|probability| (1.0 - REGULAR) * probability).collect();
        for (&next, weight) in self.successors[token].iter().zip(SUCCESSOR_WEIGHTS) {
            row[next] += REGULAR * weight;
        }
        row
    }

    /// The distribution that a step leaves as it is. Every step forgets at least a tenth of the past, so the distance to it
    /// falls by 0.9 a step, and 400 steps reach the precision of the numbers. What forgets is the same after every token: a step needs
    /// the likely successors alone, not the whole matrix.
    fn stationary(&self) -> Vec<f64> {
        let mut now = vec![1.0 / self.zipf.len() as f64; self.zipf.len()];
        for _ in 0..400 {
            let mut next: Vec<f64> = self.zipf.iter().map(|probability| (1.0 - REGULAR) * probability).collect();
            for (successors, from) in self.successors.iter().zip(&now) {
                for (&to, weight) in successors.iter().zip(SUCCESSOR_WEIGHTS) {
                    next[to] += REGULAR * weight * from;
                }
            }
            let total: f64 = next.iter().sum();
            now = next.into_iter().map(|probability| probability / total).collect();
        }
        now
    }
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

    /// `[token][next]`, row after row: the probability that `next` follows.
    fn transition_matrix(vocabulary: usize, seed: u64) -> Vec<f64> {
        let followers = Followers::new(vocabulary, seed);
        (0..vocabulary).flat_map(|token| followers.row(token)).collect()
    }

    /// The reference: steps of the whole matrix.
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

    /// Samples begin with the same tokens, whichever way the distribution of these was found.
    #[test]
    fn the_stationary_distribution_is_that_of_the_whole_matrix() {
        for (vocabulary, seed) in [(4, 1), (5, 3), (128, 1), (128, 2), (700, 5)] {
            let expected = stationary(&transition_matrix(vocabulary, seed), vocabulary);
            for (found, expected) in Followers::new(vocabulary, seed).stationary().iter().zip(&expected) {
                assert!((found / expected - 1.0).abs() < 1e-12, "{vocabulary} {seed}: {found} {expected}");
            }
            let (language, by_matrix) = (Language::new(vocabulary, 0, seed).unwrap(), cumulative(&expected));
            for index in 0..2000 {
                let mut rng = stream(seed, Purpose::Sample, 0, index);
                assert_eq!(language.sample(0, index), [draw(&by_matrix, &mut rng) as i64]);
            }
        }
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
}
