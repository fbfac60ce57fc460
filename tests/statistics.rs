//! Medians, speedups and their spread, errors of predictions and least squares: against values by hand, a plain bootstrap and
//! runs of a known truth.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use runs::summary::errors::{Errors, Pair, correlation, quantile};
use runs::summary::speedup::{Series, Speedup};
use runs::summary::statistics::{block_bootstrap, median};
use studies::calibrate::levenberg::minimise;

#[test]
fn medians_of_known_samples() {
    let check = |samples: &[f64], expected| assert_eq!(median(samples), expected);
    check(&[3.0], Some(3.0));
    check(&[4.0, 1.0], Some(2.5));
    check(&[5.0, 1.0, 3.0], Some(3.0));
    check(&[], None);
}

/// Standard normal to the accuracy that twelve uniform numbers give.
fn normal(draws: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| draws.next_u64() as f64 / 2.0_f64.powi(64)).sum::<f64>() - 6.0
}

/// Paired times of mean 2 and 1 whose deviations are autoregressive, `x' = 0.7 x + noise`, and partly shared.
fn autocorrelated(seed: u64, count: usize) -> Vec<[f64; 2]> {
    let mut draws = ChaCha8Rng::seed_from_u64(seed);
    let mut state = [0.0; 3];
    let mut pair = || {
        for x in &mut state {
            *x = 0.7 * *x + 0.03 * normal(&mut draws);
        }
        let [shared, first, second] = state;
        [2.0 * (1.0 + shared + first), 1.0 + shared + second]
    };
    // A hundred steps on, the start is forgotten.
    (0..count + 100).map(|_| pair()).skip(100).collect()
}

/// Resamples laid out pair by pair.
fn plain_bootstrap(pairs: &[[f64; 2]], block: usize) -> [f64; 2] {
    let mut draws = ChaCha8Rng::seed_from_u64(0);
    let mut ratios = Vec::new();
    for _ in 0..2000 {
        let mut resample = Vec::new();
        while resample.len() < pairs.len() {
            let start = (u128::from(draws.next_u64()) * (pairs.len() - block + 1) as u128) >> 64;
            resample.extend_from_slice(&pairs[start as usize..start as usize + block]);
        }
        resample.truncate(pairs.len());
        let total = |side: usize| resample.iter().map(|pair| pair[side]).sum::<f64>();
        ratios.push(total(0) / total(1));
    }
    ratios.sort_by(f64::total_cmp);
    [ratios[ratios.len() / 40], ratios[ratios.len() - 1 - ratios.len() / 40]]
}

#[test]
fn the_bootstrap_is_the_plain_one() {
    for (count, block) in [(40, 1), (40, 7), (41, 10), (20, 10)] {
        let pairs = autocorrelated(5, count);
        let (found, expected) = (block_bootstrap(&pairs, block).unwrap(), plain_bootstrap(&pairs, block));
        assert!(found.iter().zip(expected).all(|(f, e)| (f / e - 1.0).abs() < 1e-12), "{found:?} {expected:?}");
        assert_eq!(block_bootstrap(&pairs, block), Some(found));
    }
    assert_eq!(block_bootstrap(&autocorrelated(5, 19), 10), None);
}

/// Of 400 autocorrelated runs, in how many the interval holds the true ratio.
fn coverage(block: usize) -> f64 {
    let holds = |seed: &u64| {
        let [low, high] = block_bootstrap(&autocorrelated(*seed, 200), block).unwrap();
        (low..=high).contains(&2.0)
    };
    (0..400).filter(holds).count() as f64 / 400.0
}

/// Blocks keep what successive iterations share; single iterations claim far too narrow an interval.
#[test]
fn blocks_cover_the_truth_where_single_iterations_do_not() {
    let (of_blocks, of_single) = (coverage(20), coverage(1));
    assert!((0.85..0.98).contains(&of_blocks), "blocks of 20: {of_blocks}");
    assert!(of_single < 0.65, "single iterations: {of_single}");
}

/// Times that go up and down together leave a ratio without spread.
#[test]
fn what_both_systems_share_is_no_spread() {
    let pairs: Vec<[f64; 2]> = autocorrelated(1, 100).into_iter().map(|[time, _]| [2.0 * time, time]).collect();
    assert!(block_bootstrap(&pairs, 10).unwrap().iter().all(|end| (end - 2.0).abs() < 1e-12));
}

fn series(seed: u64, period: usize, steps: &[f64]) -> Series {
    Series { seed, period, steps: steps.to_vec() }
}

fn speedup(reference: &Series, system: &Series) -> Speedup {
    Speedup::new(std::slice::from_ref(reference), std::slice::from_ref(system)).unwrap()
}

/// Four seconds against one, but every third iteration takes another five: 12 over 8, where medians say 4.
#[test]
fn a_migration_counts_in_totals_and_not_in_medians() {
    let slow = series(1, 1, &[4.0; 7]);
    let moving = series(1, 3, &[1.0, 6.0, 1.0, 1.0, 6.0, 1.0, 1.0]);
    let found = speedup(&slow, &moving);
    // Each block is a period: no resample differs. The seventh iteration is no whole period.
    let expected =
        Speedup { by_totals: 1.5, spread: Some([1.5; 2]), seeds: 1, by_medians: 4.0, unreached_period: None, pairs: 6 };
    assert_eq!(found, expected);
    assert_eq!(speedup(&moving, &slow).by_totals, 1.0 / 1.5);
    assert_eq!(moving.counted().len(), 6);
}

#[test]
fn periods_of_both_systems_are_whole() {
    // Six iterations hold both periods; the other two are dropped.
    let found = speedup(&series(1, 2, &[2.0, 4.0, 2.0, 4.0, 2.0, 4.0, 9.0, 9.0]), &series(1, 3, &[1.0; 8]));
    assert_eq!((found.by_totals, found.spread, found.unreached_period), (3.0, None, None));
    let found = speedup(&series(1, 5, &[4.0; 8]), &series(1, 2, &[1.0; 8]));
    assert_eq!((found.by_totals, found.unreached_period), (4.0, Some(10)));
}

/// A run of four iterations that would place after ten: all four count, and that is said.
#[test]
fn less_than_a_period_is_counted_whole() {
    let found = speedup(&series(1, 1, &[4.0; 4]), &series(1, 10, &[1.0, 1.0, 1.0, 5.0]));
    assert_eq!((found.by_totals, found.spread, found.unreached_period), (2.0, None, Some(10)));
    assert_eq!(Speedup::new(&[series(1, 1, &[])], &[series(1, 1, &[])]), None);
}

/// Totals of 12 and 8 over 4 and 4; whatever iterations do inside a seed, the ends are the seeds' own ratios.
#[test]
fn several_seeds_spread_between_each_other() {
    let reference = [series(1, 1, &[4.0, 8.0]), series(2, 1, &[4.0, 4.0])];
    let system = [series(2, 1, &[2.0, 2.0]), series(1, 1, &[1.0, 3.0])];
    let found = Speedup::new(&reference, &system).unwrap();
    assert_eq!((found.by_totals, found.spread), (2.5, Some([2.0, 3.0])));
    // A seed that one of them did not run is in neither total.
    assert_eq!(Speedup::new(&reference, &system[..1]).unwrap().by_totals, 2.0);
}

fn pairs(values: &[(f64, f64)]) -> Vec<Pair> {
    values.iter().map(|&(predicted, measured)| Pair { predicted, measured }).collect()
}

#[test]
fn errors_of_known_pairs() {
    let e = Errors::new(&pairs(&[(1.1, 1.0), (1.8, 2.0), (4.0, 4.0)])).unwrap();
    assert_eq!(e.count, 3);
    assert!((e.mean - 0.2 / 3.0).abs() < 1e-12);
    assert!((e.median - 0.1).abs() < 1e-12 && (e.max - 0.1).abs() < 1e-12);
    assert!(e.bias.abs() < 1e-12);
    // Mean 7/3: total 42/9, left 0.05.
    assert!((e.r_squared.unwrap() - (1.0 - 0.05 * 9.0 / 42.0)).abs() < 1e-12);
    assert_eq!(Errors::new(&[]), None);
    assert_eq!(Errors::new(&pairs(&[(1.0, 2.0)])).unwrap().r_squared, None);
}

#[test]
fn quantiles_are_interpolated() {
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), Some(2.0));
    assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), Some(3.0));
    assert_eq!(quantile(&[], 0.5), None);
}

#[test]
fn correlation_does_not_see_scale() {
    let c = correlation(&pairs(&[(10.0, 1.0), (20.0, 2.0), (30.0, 3.0)]));
    assert!((c.unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(correlation(&pairs(&[(1.0, 1.0), (1.0, 2.0)])), None);
}

/// Rosenbrock's valley, as residuals.
#[test]
fn finds_the_end_of_a_curved_valley() {
    let valley = |x: &[f64]| Ok(vec![10.0 * (x[1] - x[0] * x[0]), 1.0 - x[0]]);
    let solution = minimise(&valley, vec![-1.2, 1.0]).unwrap();
    assert!((solution.x[0] - 1.0).abs() < 1e-2 && (solution.x[1] - 1.0).abs() < 2e-2, "{:?}", solution.x);
}

/// A line through points with known scatter: the textbook's standard error.
#[test]
fn covariance_is_the_textbooks() {
    let noise = [0.1, -0.1, -0.1, 0.1];
    let line = |x: &[f64]| Ok((0..4).map(|i| x[0] + x[1] * i as f64 - (i as f64 + noise[i])).collect());
    let solution = minimise(&line, vec![0.0, 0.0]).unwrap();
    // s^2 = 0.04 / 2, variance of the slope s^2 / 5.
    assert!((solution.covariance[3] - 0.02 / 5.0).abs() < 1e-6);
}

#[test]
fn a_parameter_without_effect_is_unknown() {
    let solution = minimise(&|x| Ok(vec![x[0] - 1.0, x[0] - 1.2]), vec![0.0, 3.0]).unwrap();
    assert_eq!(solution.covariance[3], f64::INFINITY);
    assert!((solution.x[0] - 1.1).abs() < 1e-6);
}
