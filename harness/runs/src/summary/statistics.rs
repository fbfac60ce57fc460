//! Statistics of samples: the median, and how far a ratio of totals spreads.
//!
//! The iterations of a run are not independent: routing drifts, and experts move on one iteration in so many. So the spread
//! is that of a moving-block bootstrap (Kuensch 1989): blocks of successive iterations are drawn, with replacement, until
//! they are as many as the run's. Both systems' times of an iteration are drawn together, because they had the same routing.
//! This is the spread over the iterations of one run; what another trace would give, only another trace shows.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The median of the samples, or none of no samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some((sorted[last / 2] + sorted[sorted.len() / 2]) / 2.0)
}

const RESAMPLES: usize = 2000;
/// Resamples left out at either end: 2.5%.
const TAIL: usize = RESAMPLES / 40;

/// Ends of the middle 95% of the ratios of totals (first over second of each pair) in resamples of blocks of `block` pairs;
/// none of fewer than two blocks. The same pairs give the same ends.
pub fn block_bootstrap(pairs: &[[f64; 2]], block: usize) -> Option<[f64; 2]> {
    if block == 0 || pairs.len() < 2 * block {
        return None;
    }
    // Totals of the pairs before each place: those of a block are a difference.
    let mut before = vec![[0.0; 2]];
    before.extend(pairs.iter().scan([0.0; 2], |total, pair| {
        *total = [total[0] + pair[0], total[1] + pair[1]];
        Some(*total)
    }));
    let mut draws = ChaCha8Rng::seed_from_u64(0);
    let resample = |_| {
        let [mut first, mut second] = [0.0; 2];
        for (start, length) in blocks(&mut draws, pairs.len(), block) {
            first += before[start + length][0] - before[start][0];
            second += before[start + length][1] - before[start][1];
        }
        first / second
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(resample).collect();
    ratios.sort_by(f64::total_cmp);
    Some([ratios[TAIL], ratios[RESAMPLES - 1 - TAIL]])
}

/// Start and length of the blocks of one resample of `count` pairs; the last block is cut.
fn blocks(draws: &mut ChaCha8Rng, count: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = (count - block + 1) as u128;
    (0..count).step_by(block).map(move |filled| {
        // The upper bits of a product: uniform to within 2^-64 of the number of starts.
        let start = (u128::from(draws.next_u64()) * starts) >> 64;
        (start as usize, block.min(count - filled))
    })
}
