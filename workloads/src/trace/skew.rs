//! Routing of a stated skew: every layer and iteration has the same profile of loads, and which expert has which load drifts.
//!
//! The profile falls from the busiest expert to the idlest: the log-weight of the expert of rank `i` of `n` is
//! `-depth * (i / (n - 1))^bend`. One target, max/mean or Gini, sets `depth`, with a bend of 1 (loads fall geometrically); two set
//! both. Weights become probabilities of being among a token's `top_k` different choices, and the targets hold for
//! these; counts scatter around them by the binomial spread, so balance is as balanced as chance allows.
//!
//! Preferences pass smoothly from one random draw to the next, and an expert's rank is that of its preference. The
//! half-life is the one of [`super::stats`]: the lag after which the hottest quarter of the experts has lost half of what it can.
//!
//! Unlike [`super::synth`], nothing here resembles a training run: it is for sweeps over skew.

use serde::{Deserialize, Serialize};

use super::synth::{Purpose, Sampler, drifting, exp, inclusion, stream};
use super::{Choices, RoutingTrace, TraceError, TraceShape, check_size};

/// How skewed routing is, and for how long an expert stays hot. Without any target it is balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Skew {
    /// Load of the busiest expert over the mean: 1 (balance) to `experts / top_k`.
    pub max_over_mean: Option<f64>,
    /// Gini coefficient of the experts' loads: 0 (balance) to `1 - top_k / experts`.
    pub gini: Option<f64>,
    /// Training iterations until the hot set is half another; it never changes when absent.
    pub half_life: Option<f64>,
}

/// Of a half-life, the part in which 4% of the skew move on: samples so near stand for each other.
const STEADY: f64 = 16.0;

/// A trace of a stated skew.
#[derive(Clone, Debug, PartialEq)]
pub struct SkewSpec {
    /// Extents.
    pub shape: TraceShape,
    /// Number of samples.
    pub samples: usize,
    /// Training iterations from sample to sample; the first is iteration 1.
    pub step: u32,
    /// Seed of all draws.
    pub seed: u64,
    /// The targets.
    pub skew: Skew,
}

impl SkewSpec {
    /// Makes the trace; every (layer, sample) draws from a stream of its own.
    ///
    /// # Errors
    /// A shape that [`RoutingTrace::new`] refuses, and targets that no loads of that shape have.
    pub fn generate(&self) -> Result<RoutingTrace, TraceError> {
        let shape = self.shape;
        shape.check()?;
        self.check()?;
        check_size("samples x counts per sample", &[self.samples, shape.counts_per_iteration()])?;
        let profile = Profile::new(&shape, &self.skew)?;
        let label = |index: usize| u32::try_from(index).ok()?.checked_mul(self.step)?.checked_add(1);
        let labels: Option<Vec<u32>> = (0..self.samples).map(label).collect();
        let labels = labels.ok_or_else(|| {
            let value = format!("{} at step {}", self.samples, self.step);
            TraceError::field("samples", value, format!("a last iteration of at most {}", u32::MAX))
        })?;
        let mut counts = vec![0; labels.len() * shape.counts_per_iteration()];
        let mut out = counts.chunks_exact_mut(shape.rows() * shape.experts);
        let mut sampler = Sampler::new(shape);
        for &iteration in &labels {
            for (layer, out) in (0..shape.layers).zip(&mut out) {
                let scores = self.scores(&profile, layer, iteration);
                let mut rng = stream(self.seed, Purpose::Sample, layer, u64::from(iteration));
                sampler.draw(&scores, 0.0, 0.0, &mut rng, out);
            }
        }
        let name = format!("synthetic, {}", self.skew);
        let within = self.skew.half_life.map(|half_life| (half_life / STEADY) as u32);
        Ok(RoutingTrace::new(name, shape, labels, counts)?.chosen_by(Choices::Stated { within }))
    }

    fn check(&self) -> Result<(), TraceError> {
        if self.samples == 0 {
            return Err(TraceError::field("samples", self.samples, "at least 1"));
        }
        if self.step == 0 {
            return Err(TraceError::field("step", self.step, "at least 1"));
        }
        match self.skew.half_life {
            Some(half_life) if !(half_life.is_finite() && half_life > 0.0) => {
                Err(TraceError::field("half_life", half_life, "a finite number above 0"))
            }
            _ => Ok(()),
        }
    }

    /// Log-weights `[expert]`: the profile, dealt out by preference.
    fn scores(&self, profile: &Profile, layer: usize, iteration: u32) -> Vec<f64> {
        let place = self.skew.half_life.map_or(0.0, |half_life| f64::from(iteration) / (half_life * DRAWS));
        let preferences = drifting(self.seed, Purpose::Drift, layer, self.shape.experts, place);
        let mut order: Vec<usize> = (0..preferences.len()).collect();
        order.sort_by(|&a, &b| preferences[b].total_cmp(&preferences[a]).then(a.cmp(&b)));
        let mut scores = vec![0.0; order.len()];
        order.iter().zip(&profile.scores).for_each(|(&expert, &score)| scores[expert] = score);
        scores
    }
}

/// Half-lives from one draw of preferences to the next; see the test `a_half_life_is_what_is_asked_for`.
const DRAWS: f64 = 1.9;

impl std::fmt::Display for Skew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [("max/mean", self.max_over_mean), ("Gini", self.gini), ("half-life", self.half_life)];
        let stated = parts.iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}")));
        let stated: Vec<String> = stated.collect();
        f.write_str(if stated.is_empty() { "balanced" } else { "" })?;
        f.write_str(&stated.join(", "))
    }
}

/// Log-weights by rank, the busiest first.
struct Profile {
    scores: Vec<f64>,
}

/// Past this depth, all weight is on the first experts.
const DEEPEST: f64 = 600.0;
/// Bends of profiles: from one expert above all others, to one below.
const BENDS: (f64, f64) = (1.0 / 64.0, 64.0);
/// By how much a target may be missed, as a fraction.
const TOLERANCE: f64 = 0.01;

impl Profile {
    fn new(shape: &TraceShape, skew: &Skew) -> Result<Self, TraceError> {
        let (experts, top_k) = (shape.experts as f64, f64::from(shape.top_k));
        let most = experts / top_k;
        for (field, value, low, high) in
            [("max_over_mean", skew.max_over_mean, 1.0, most), ("gini", skew.gini, 0.0, 1.0 - top_k / experts)]
        {
            if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                return Err(TraceError::field(
                    field,
                    value,
                    format!("{low} to {high:.4} with {experts} experts, top_k {top_k}"),
                ));
            }
        }
        let size = shape.experts;
        let at = |bend: f64, reaches: &dyn Fn(&Loads) -> bool| {
            bisect((0.0, DEEPEST), |depth| reaches(&Loads::new(size, top_k, depth, bend)))
        };
        let (depth, bend) = match (skew.max_over_mean, skew.gini) {
            (None, None) => (0.0, 1.0),
            (Some(target), None) => (at(1.0, &|loads| loads.max_over_mean >= target), 1.0),
            (None, Some(target)) => (at(1.0, &|loads| loads.gini >= target), 1.0),
            (Some(target), Some(gini)) => {
                let depth = |bend: f64| at(bend, &|loads| loads.gini >= gini);
                // A small bend sets the busiest expert apart: max/mean falls as the bend grows.
                let bend = bisect(BENDS, |bend| Loads::new(size, top_k, depth(bend), bend).max_over_mean <= target);
                (depth(bend), bend)
            }
        };
        let reached = Loads::new(size, top_k, depth, bend);
        let missed = |target: Option<f64>, value: f64| {
            target.is_some_and(|target| (value - target).abs() > TOLERANCE * target.max(1.0))
        };
        if missed(skew.max_over_mean, reached.max_over_mean) || missed(skew.gini, reached.gini) {
            let expected =
                format!("targets that go together: nearest {:.3} and {:.3}", reached.max_over_mean, reached.gini);
            return Err(TraceError::field("max_over_mean, gini", skew, expected));
        }
        Ok(Self { scores: profile(size, depth, bend) })
    }
}

/// What a profile makes of an expert's share of the tokens.
struct Loads {
    max_over_mean: f64,
    gini: f64,
}

impl Loads {
    fn new(experts: usize, top_k: f64, depth: f64, bend: f64) -> Self {
        let mut chosen = vec![0.0; experts];
        inclusion(&mut profile(experts, depth, bend), top_k, &mut chosen);
        let (count, sum) = (experts as f64, chosen.iter().sum::<f64>());
        let ranked = chosen.iter().rev().enumerate().map(|(rank, load)| (rank + 1) as f64 * load).sum::<f64>();
        Self { max_over_mean: chosen[0] * count / sum, gini: 2.0 * ranked / (count * sum) - (count + 1.0) / count }
    }
}

fn profile(experts: usize, depth: f64, bend: f64) -> Vec<f64> {
    let last = (experts.max(2) - 1) as f64;
    (0..experts).map(|rank| -depth * power(rank as f64 / last, bend)).collect()
}

/// `x^y` for x from 0 to 1, from [`exp`] alone, so that the bits are the same on every machine.
fn power(x: f64, y: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // Newton's method for the logarithm converges from above zero in a few steps, as x is 1 / (experts - 1) at least.
    let mut log = 0.0;
    for _ in 0..64 {
        let step = x * exp(-log) - 1.0;
        log += step.max(-1.0);
        if step.abs() < 1e-15 {
            break;
        }
    }
    exp(y * log)
}

/// The least value of a range that holds, where all above it do.
fn bisect((mut low, mut high): (f64, f64), holds: impl Fn(f64) -> bool) -> f64 {
    if holds(low) {
        return low;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if holds(middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::super::{TraceStats, stats};
    use super::*;

    fn spec(experts: usize, top_k: u32, skew: Skew) -> SkewSpec {
        // Enough for chance to hide in.
        let entries = 2048 * experts as u32;
        let shape = TraceShape { layers: 2, micro_batches: 2, ranks: 4, experts, entries, top_k };
        SkewSpec { shape, samples: 6, step: 10, seed: 3, skew }
    }

    /// Mean of (max/mean, Gini) over layers and samples.
    fn measured(trace: &RoutingTrace) -> (f64, f64) {
        let all = (0..trace.iterations().len()).flat_map(|i| (0..trace.shape().layers).map(move |layer| (i, layer)));
        let loads: Vec<Vec<u64>> = all.map(|(i, layer)| trace.loads(i, layer)).collect();
        let mean = |of: fn(&[u64]) -> f64| loads.iter().map(|loads| of(loads)).sum::<f64>() / loads.len() as f64;
        (mean(stats::max_over_mean), mean(stats::gini))
    }

    #[test]
    fn skew_is_what_is_asked_for() {
        for (experts, top_k) in [(8, 1), (32, 2), (64, 8), (256, 8)] {
            for target in [1.5, 3.0, 0.9 * experts as f64 / f64::from(top_k)] {
                let skew = Skew { max_over_mean: Some(target), ..Skew::default() };
                let (found, _) = measured(&spec(experts, top_k, skew).generate().unwrap());
                assert!((found / target - 1.0).abs() < 0.03, "{experts} experts, top-{top_k}: {found} for {target}");
            }
            for target in [0.1, 0.3, 0.6] {
                let skew = Skew { gini: Some(target), ..Skew::default() };
                let (_, found) = measured(&spec(experts, top_k, skew).generate().unwrap());
                assert!((found - target).abs() < 0.02, "{experts} experts, top-{top_k}: {found} for {target}");
            }
            for (max_over_mean, gini) in [(1.8, 0.4), (2.5, 0.3), (3.0, 0.5)] {
                let skew = Skew { max_over_mean: Some(max_over_mean), gini: Some(gini), half_life: None };
                let found = measured(&spec(experts, top_k, skew).generate().unwrap());
                let near = (found.0 / max_over_mean - 1.0).abs() < 0.03 && (found.1 - gini).abs() < 0.02;
                assert!(near, "{experts} experts, top-{top_k}: {found:?} for {max_over_mean}, {gini}");
            }
        }
        let (max_over_mean, gini) = measured(&spec(32, 2, Skew::default()).generate().unwrap());
        assert!(max_over_mean < 1.06 && gini < 0.02, "{max_over_mean} {gini}");
    }

    #[test]
    fn a_half_life_is_what_is_asked_for() {
        for half_life in [50.0, 200.0] {
            let skew = Skew { max_over_mean: Some(4.0), half_life: Some(half_life), gini: None };
            let base = spec(64, 2, skew);
            let shape = TraceShape { layers: 8, micro_batches: 1, ranks: 1, ..base.shape };
            let trace = SkewSpec { shape, samples: 400, step: half_life as u32 / 10, ..base }.generate().unwrap();
            let stats = TraceStats::new(&trace, 8).unwrap();
            let found = stats.per_layer.iter().map(|layer| f64::from(layer.hot_half_life.unwrap())).sum::<f64>() / 8.0;
            assert!((found / half_life - 1.0).abs() < 0.15, "{found} for {half_life}");
        }
        let still = spec(64, 2, Skew { gini: Some(0.5), ..Skew::default() }).generate().unwrap();
        assert_eq!(TraceStats::new(&still, 8).unwrap().per_layer[0].hot_half_life, None);
    }

    #[test]
    fn a_sample_does_not_depend_on_their_number() {
        let skew = Skew { max_over_mean: Some(3.0), half_life: Some(20.0), gini: None };
        let (all, few) = (spec(16, 2, skew), SkewSpec { samples: 2, ..spec(16, 2, skew) });
        assert_eq!(few.generate().unwrap().row(1, 1, 1, 3), all.generate().unwrap().row(1, 1, 1, 3));
    }

    #[test]
    fn says_what_is_wrong() {
        let check = |skew: Skew, expected: &str| {
            let message = spec(8, 2, skew).generate().expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        };
        let none = Skew::default();
        check(
            Skew { max_over_mean: Some(4.5), ..none },
            "max_over_mean is 4.5: expected 1 to 4.0000 with 8 experts, top_k 2",
        );
        check(Skew { max_over_mean: Some(f64::NAN), ..none }, "max_over_mean is NaN");
        check(Skew { gini: Some(0.9), ..none }, "gini is 0.9: expected 0 to 0.7500");
        check(Skew { half_life: Some(0.0), ..none }, "half_life is 0: expected a finite number above 0");
        check(
            Skew { max_over_mean: Some(1.1), gini: Some(0.6), half_life: None },
            "expected targets that go together: nearest",
        );
    }

    #[test]
    fn powers_are_right() {
        for (x, y) in [(0.5, 2.0), (1.0, 3.0), (0.001, 0.3), (1e-6, 64.0), (0.9, 1.0 / 64.0)] {
            let (found, expected) = (power(x, y), f64::powf(x, y));
            assert!((found - expected).abs() <= 1e-9 * expected + 1e-300, "{x}^{y}: {found}, expected {expected}");
        }
    }
}
