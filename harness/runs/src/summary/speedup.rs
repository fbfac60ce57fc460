//! How much faster a system is than another on the same routing.
//!
//! The headline is the ratio of total times over whole placement periods after warm-up, so that a migration on one
//! iteration in ten counts in full, and no more than once a period. The ratio of medians, which such a migration does not
//! move, stands second.

use crate::summary::statistics::{block_bootstrap, median};

/// What a system's iterations took under one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub seed: u64,
    /// Iterations between placements; 1 where nothing is placed.
    pub period: usize,
    /// After warm-up, s.
    pub steps: Vec<f64>,
}

impl Series {
    /// The iterations of whole periods.
    pub fn counted(&self) -> &[f64] {
        &self.steps[..whole_periods(self.steps.len(), self.period).unwrap_or(self.steps.len())]
    }
}

/// A system over another.
#[derive(Clone, Debug, PartialEq)]
pub struct Speedup {
    /// Ratio of total times over whole placement periods of both, all seeds together.
    pub by_totals: f64,
    /// Of one seed, over its iterations: the middle 95% of a block bootstrap. Of several, the smallest and the largest ratio
    /// of a seed. None of fewer than two placement periods.
    pub spread: Option<[f64; 2]>,
    /// How many seeds both ran.
    pub seeds: usize,
    /// Ratio of the medians of all iterations after warm-up.
    pub by_medians: f64,
    /// The placement period, where a run was shorter: then all its iterations were counted.
    pub unreached_period: Option<usize>,
    /// How many pairs of iterations the ratio of totals is of, over all seeds.
    pub pairs: usize,
}

impl Speedup {
    /// Of the seeds that both ran; none where there is no iteration after warm-up.
    pub fn new(reference: &[Series], system: &[Series]) -> Option<Self> {
        let runs = system.iter().filter_map(|own| Paired::new(reference, own));
        let runs: Vec<Paired> = runs.filter(|run| !run.pairs.is_empty()).collect();
        let [reference, system] =
            [0, 1].map(|side| runs.iter().map(|run| run.steps[side]).collect::<Vec<_>>().concat());
        let by_totals = ratio_of_totals(runs.iter().flat_map(|run| &run.pairs));
        let spread = match runs.as_slice() {
            [] => return None,
            [run] => run.spread().map(|[low, high]| [low.min(by_totals), high.max(by_totals)]),
            seeds => {
                let ratios = seeds.iter().map(|run| ratio_of_totals(&run.pairs));
                Some(ratios.fold([f64::INFINITY, 0.0], |[low, high], ratio| [ratio.min(low), ratio.max(high)]))
            }
        };
        Some(Self {
            by_totals,
            spread,
            seeds: runs.len(),
            by_medians: median(&reference)? / median(&system)?,
            unreached_period: runs.iter().find_map(|run| run.unreached_period),
            pairs: runs.iter().map(|run| run.pairs.len()).sum(),
        })
    }
}

/// Two systems under one seed, iteration by iteration.
struct Paired<'a> {
    /// Of the reference and of the system.
    steps: [&'a [f64]; 2],
    /// In whole periods of both.
    pairs: Vec<[f64; 2]>,
    period: usize,
    unreached_period: Option<usize>,
}

impl<'a> Paired<'a> {
    /// With the reference of the same seed.
    fn new(reference: &'a [Series], system: &'a Series) -> Option<Self> {
        let reference = reference.iter().find(|other| other.seed == system.seed)?;
        let (a, b) = (reference.period.max(1), system.period.max(1));
        let period = (a / gcd(a, b)).saturating_mul(b);
        let mut pairs: Vec<[f64; 2]> = reference.steps.iter().zip(&system.steps).map(|(&r, &s)| [r, s]).collect();
        let whole = whole_periods(pairs.len(), period);
        pairs.truncate(whole.unwrap_or(pairs.len()));
        let unreached_period = whole.is_none().then_some(period);
        Some(Self { steps: [&reference.steps, &system.steps], pairs, period, unreached_period })
    }

    /// Blocks are whole periods: about sqrt(n) iterations, and at most half of them.
    fn spread(&self) -> Option<[f64; 2]> {
        let root = (self.pairs.len() as f64).sqrt().ceil() as usize;
        let periods = root.div_ceil(self.period).min(self.pairs.len() / self.period / 2);
        block_bootstrap(&self.pairs, periods * self.period)
    }
}

fn ratio_of_totals<'a>(pairs: impl IntoIterator<Item = &'a [f64; 2]>) -> f64 {
    let totals = pairs.into_iter().fold([0.0; 2], |totals, pair| [totals[0] + pair[0], totals[1] + pair[1]]);
    totals[0] / totals[1]
}

/// How many of `iterations` whole periods hold; none where one does not fit.
fn whole_periods(iterations: usize, period: usize) -> Option<usize> {
    let period = period.max(1);
    (iterations >= period).then(|| iterations / period * period)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
