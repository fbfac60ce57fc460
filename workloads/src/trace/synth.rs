//! Synthetic routing traces, from a seed.
//!
//! A gate is summarised by a log-weight per layer and expert, which lives through what the published trace shows:
//! 1. *Onset*: at iteration 1 the gate is random and nearly balanced; within a few iterations it has preferences.
//! 2. *Collapse*: early preferences are extreme, and one or two experts per layer take nearly all tokens; which
//!    ones changes each time the iteration number doubles.
//! 3. *Settling*: after some tens of iterations other, lasting preferences replace them. Some experts are live, with
//!    log-normal loads; the rest starve. The skew is at its least after a few hundred iterations.
//! 4. *Concentration*: preferences drift ever more slowly (evenly in the logarithm of time), and in most layers one
//!    expert grows until it is among nearly every token's choices.
//!
//! Ranks see different data: their weights differ, much during the collapse, little later. A token's choices differ:
//! expert `e` is among the `top_k` with probability `1 - exp(-theta * w_e)`, the exponential-clock form of drawing
//! without replacement, with `theta` such that the probabilities sum to `top_k`. Counts scatter around that by the
//! binomial spread and a little more.
//!
//! The defaults are fitted to the published trace's statistics, see [`super::stats`]. Every (layer, sample) draws from its own
//! ChaCha8 stream, so a sample does not depend on how many there are. Numbers are made by the four
//! operations and square roots alone: the bytes are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use super::apportion::Apportion;
use super::{MOST_ENTRIES, RoutingTrace, TraceError, TraceShape, check_size};

/// What to generate. The default is the published trace's shape, with its statistics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct SynthSpec {
    /// MoE layers.
    pub layers: usize,
    /// Micro-batches per rank and iteration.
    pub micro_batches: usize,
    /// Source ranks.
    pub ranks: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Token-expert entries per (rank, layer, micro-batch).
    pub entries: u32,
    /// Experts per token.
    pub top_k: u32,
    /// Number of samples.
    pub samples: usize,
    /// Training iterations from sample to sample; the first is iteration 1.
    pub step: u32,
    /// Seed of all draws.
    pub seed: u64,
    /// Standard deviation of live experts' log-weights.
    pub skew: f64,
    /// Log-weight that an expert loses per standard deviation below [`SynthSpec::live`]; the median of the layers.
    pub starvation: f64,
    /// Preference, in standard deviations, under which an expert starves; the mean of the layers.
    pub live: f64,
    /// Log-weight of the favourite expert beyond its preference, at settling; the mean of the layers (none if negative).
    pub favour: f64,
    /// Standard deviation over the layers of [`SynthSpec::favour`].
    pub favour_spread: f64,
    /// Log-weight that the favourite gains at each doubling of the training from [`SynthSpec::concentration`] on.
    pub favour_growth: f64,
    /// Iterations after which the favourite has grown by that once.
    pub concentration: f64,
    /// Iterations until the gate has preferences.
    pub onset: f64,
    /// Standard deviation of log-weights at the height of the collapse.
    pub collapse: f64,
    /// Iterations until early preferences have given way to lasting ones.
    pub settling: f64,
    /// By how much the skew exceeds its lasting value just after settling, as a fraction.
    pub overshoot: f64,
    /// Iterations over which the overshoot fades.
    pub loosening: f64,
    /// Doublings of the iteration number after which the drifting part of a preference is another one.
    pub drift: f64,
    /// Share of a preference's variance that never drifts.
    pub constancy: f64,
    /// Standard deviation of log-weights from one sample to the next, common to all rows.
    pub jitter: f64,
    /// Standard deviation of log-weights from rank to rank, during the collapse.
    pub rank_spread: f64,
    /// Iterations over which ranks become alike.
    pub rank_settling: f64,
    /// Coefficient of variation from row to row, beyond the binomial.
    pub row_noise: f64,
}

impl Default for SynthSpec {
    fn default() -> Self {
        Self {
            layers: 24,
            micro_batches: 4,
            ranks: 16,
            experts: 32,
            entries: 4096,
            top_k: 2,
            samples: 501,
            step: 10,
            seed: 0,
            skew: 0.95,
            starvation: 6.0,
            live: 0.45,
            favour: -0.3,
            favour_spread: 1.4,
            favour_growth: 0.9,
            concentration: 1000.0,
            onset: 10.0,
            collapse: 8.0,
            settling: 60.0,
            overshoot: 2.0,
            loosening: 130.0,
            drift: 5.0,
            constancy: 0.5,
            jitter: 0.05,
            rank_spread: 0.6,
            rank_settling: 50.0,
            row_noise: 0.06,
        }
    }
}

impl SynthSpec {
    /// Makes the trace; it is called "synthetic".
    ///
    /// # Errors
    /// A shape that [`RoutingTrace::new`] refuses, labels that leave 32 bits, or a physical knob that is negative, zero
    /// where it divides, or not finite.
    pub fn generate(&self) -> Result<RoutingTrace, TraceError> {
        let shape = self.shape();
        shape.check()?;
        self.check_knobs()?;
        let iterations = self.labels()?;
        check_size("samples x counts per sample", &[iterations.len(), shape.counts_per_iteration()])?;
        let layers = (0..self.layers).map(|layer| Layer::draw(self, layer)).collect::<Vec<_>>();
        let mut counts = vec![0; iterations.len() * shape.counts_per_iteration()];
        let mut out = counts.chunks_exact_mut(shape.rows() * shape.experts);
        let mut sampler = Sampler::new(shape);
        for &iteration in &iterations {
            for (layer, out) in layers.iter().zip(&mut out) {
                let mut rng = stream(self.seed, Purpose::Sample, layer.index, u64::from(iteration));
                let scores = layer.scores(self, f64::from(iteration), &mut rng);
                sampler.draw(&scores, self.rank_deviation(f64::from(iteration)), self.row_noise, &mut rng, out);
            }
        }
        RoutingTrace::new("synthetic", shape, iterations, counts)
    }

    /// Extents of the trace.
    pub fn shape(&self) -> TraceShape {
        let Self { layers, micro_batches, ranks, experts, entries, top_k, .. } = *self;
        TraceShape { layers, micro_batches, ranks, experts, entries, top_k }
    }

    fn labels(&self) -> Result<Vec<u32>, TraceError> {
        if self.samples == 0 {
            return Err(TraceError::field("samples", self.samples, "at least 1"));
        }
        if self.step == 0 {
            return Err(TraceError::field("step", self.step, "at least 1"));
        }
        let label = |index: usize| u32::try_from(index).ok()?.checked_mul(self.step)?.checked_add(1);
        (0..self.samples).map(label).collect::<Option<Vec<_>>>().ok_or_else(|| {
            let value = format!("{} at step {}", self.samples, self.step);
            TraceError::field("samples", value, format!("a last iteration of at most {}", u32::MAX))
        })
    }

    fn check_knobs(&self) -> Result<(), TraceError> {
        let any = [("live", self.live), ("favour", self.favour), ("favour_growth", self.favour_growth)];
        let not_negative = [
            ("skew", self.skew),
            ("starvation", self.starvation),
            ("favour_spread", self.favour_spread),
            ("collapse", self.collapse),
            ("overshoot", self.overshoot),
            ("jitter", self.jitter),
            ("rank_spread", self.rank_spread),
            ("row_noise", self.row_noise),
        ];
        let positive = [
            ("concentration", self.concentration),
            ("onset", self.onset),
            ("settling", self.settling),
            ("loosening", self.loosening),
            ("drift", self.drift),
            ("rank_settling", self.rank_settling),
        ];
        require(&any, "a finite number", |_| true)?;
        require(&not_negative, "a finite number, 0 or more", |value| value >= 0.0)?;
        require(&positive, "a finite number above 0", |value| value > 0.0)?;
        require(&[("constancy", self.constancy)], "a number from 0 to 1", |value| (0.0..=1.0).contains(&value))
    }

    /// How far the gate is from its random start, 0 to 1.
    fn formed(&self, iteration: f64) -> f64 {
        1.0 - exp(-(iteration - 1.0) / self.onset)
    }

    fn rank_deviation(&self, iteration: f64) -> f64 {
        self.rank_spread * self.formed(iteration) / (1.0 + iteration / self.rank_settling)
    }
}

fn require(fields: &[(&'static str, f64)], expected: &str, holds: fn(f64) -> bool) -> Result<(), TraceError> {
    match fields.iter().find(|&&(_, value)| !value.is_finite() || !holds(value)) {
        Some(&(field, value)) => Err(TraceError::field(field, value, expected)),
        None => Ok(()),
    }
}

/// What a layer keeps through the training.
struct Layer {
    index: usize,
    seed: u64,
    /// `[expert]` log-weights of the random gate.
    start: Vec<f64>,
    /// `[expert]` part of the lasting preferences that never drifts, in standard deviations.
    constant: Vec<f64>,
    starvation: f64,
    live: f64,
    favour: f64,
    settling: f64,
}

/// Standard deviation of log-weights of a random gate: the published trace at its first iteration.
const START_SPREAD: f64 = 0.2;

impl Layer {
    fn draw(spec: &SynthSpec, index: usize) -> Self {
        let mut rng = stream(spec.seed, Purpose::Layer, index, 0);
        let mut traits = || normal(&mut rng);
        let (starvation, live, favour, settling) = (traits(), traits(), traits(), traits());
        let mut experts = |scale: f64| (0..spec.experts).map(|_| scale * normal(&mut rng)).collect::<Vec<_>>();
        Self {
            index,
            seed: spec.seed,
            start: experts(START_SPREAD),
            constant: experts(1.0),
            starvation: spec.starvation * exp(0.5 * starvation),
            live: spec.live + 0.3 * live,
            favour: spec.favour + spec.favour_spread * favour,
            settling: spec.settling * exp(0.2 * settling),
        }
    }

    /// Log-weights `[expert]` of one sample.
    fn scores(&self, spec: &SynthSpec, iteration: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let formed = spec.formed(iteration);
        let age = iteration / self.settling;
        let early = exp(-age * age * age * age);
        let first = drifting(self.seed, Purpose::Early, self.index, spec.experts, doublings(iteration));
        let lasting = self.lasting(spec, iteration);
        let parts = self.start.iter().zip(&first).zip(&lasting);
        parts
            .map(|((start, first), last)| {
                let preference = spec.collapse * early * first + (1.0 - early) * last;
                start * (1.0 - formed) + formed * (preference + spec.jitter * normal(rng))
            })
            .collect()
    }

    /// Log-weights `[expert]` that remain after the collapse.
    fn lasting(&self, spec: &SynthSpec, iteration: f64) -> Vec<f64> {
        let preferences = self.preferences(spec, doublings(iteration));
        let stretch = 1.0 + spec.overshoot * exp(-iteration / spec.loosening);
        let growth = spec.favour_growth * doublings(1.0 + iteration / spec.concentration);
        let favour = (self.favour + growth).max(0.0);
        let favourite = preferences.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_weight = |&preference: &f64| {
            let starved = self.starvation * (self.live - preference).max(0.0);
            // Rivals close to the favourite share its favour, so that it passes from one to the other smoothly.
            let rival = exp(-4.0 * (favourite - preference));
            stretch * (spec.skew * preference - starved + favour * rival)
        };
        preferences.iter().map(log_weight).collect()
    }

    /// Lasting preferences `[expert]`, standard normal: a constant part and a drifting one.
    fn preferences(&self, spec: &SynthSpec, doublings: f64) -> Vec<f64> {
        let (kept, changed) = (spec.constancy.sqrt(), (1.0 - spec.constancy).sqrt());
        let drifting = drifting(self.seed, Purpose::Drift, self.index, spec.experts, doublings / spec.drift);
        self.constant.iter().zip(&drifting).map(|(constant, drift)| kept * constant + changed * drift).collect()
    }
}

/// Standard normal numbers `[expert]` that pass from one draw to the next while `place` grows by 1.
pub(super) fn drifting(seed: u64, purpose: Purpose, layer: usize, experts: usize, place: f64) -> Vec<f64> {
    let (draw, part) = (place.floor(), place - place.floor());
    let draws = |number: f64| {
        let mut rng = stream(seed, purpose, layer, number as u64);
        (0..experts).map(|_| normal(&mut rng)).collect::<Vec<_>>()
    };
    let eased = part * part * (3.0 - 2.0 * part);
    let (from, to) = (1.0 - eased, eased);
    let scale = 1.0 / (from * from + to * to).sqrt();
    let pairs = draws(draw).into_iter().zip(draws(draw + 1.0));
    pairs.map(|(first, second)| scale * (from * first + to * second)).collect()
}

/// Draws the rows of a layer from its log-weights.
pub(super) struct Sampler {
    shape: TraceShape,
    apportion: Apportion,
    weights: Vec<f64>,
    /// `[rank][expert]` probability that the expert is among a token's choices.
    chosen: Vec<f64>,
    wanted: Vec<u32>,
}

impl Sampler {
    pub(super) fn new(shape: TraceShape) -> Self {
        Self {
            shape,
            apportion: Apportion::default(),
            weights: Vec::new(),
            chosen: vec![0.0; shape.ranks * shape.experts],
            wanted: vec![0; shape.experts],
        }
    }

    /// Fills `out`, `[micro_batch][rank][expert]`.
    pub(super) fn draw(
        &mut self,
        scores: &[f64],
        rank_deviation: f64,
        row_noise: f64,
        rng: &mut ChaCha8Rng,
        out: &mut [u32],
    ) {
        let TraceShape { experts, entries, top_k, .. } = self.shape;
        for chosen in self.chosen.chunks_exact_mut(experts) {
            self.weights.clear();
            self.weights.extend(scores.iter().map(|score| score + rank_deviation * normal(rng)));
            inclusion(&mut self.weights, f64::from(top_k), chosen);
        }
        let tokens = f64::from(entries / top_k);
        // Fine enough for rounding not to show; four times the expected sum still fits.
        let unit = f64::from(MOST_ENTRIES / 4) / f64::from(entries);
        let ranks = self.chosen.chunks_exact(experts).cycle();
        for (chosen, out) in ranks.zip(out.chunks_exact_mut(experts)) {
            for (wanted, &chosen) in self.wanted.iter_mut().zip(chosen) {
                let mean = tokens * chosen;
                let extra = row_noise * mean * (1.0 - chosen);
                let deviation = (mean * (1.0 - chosen) + extra * extra).sqrt();
                let count = (mean + deviation * near_normal(rng)).clamp(0.0, tokens);
                *wanted = (count * unit) as u32;
            }
            self.apportion.share(&self.wanted, entries, entries / top_k, out);
        }
    }
}

/// Turns log-weights into probabilities of being among `top_k` different choices.
pub(super) fn inclusion(scores: &mut [f64], top_k: f64, chosen: &mut [f64]) {
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - highest));
    let sum = scores.iter().sum::<f64>();
    // Newton's method from below on a concave function. Where few experts hold nearly all weight it is slow,
    // and stopping early then hands the last few tokens out in proportion.
    let mut theta = top_k / sum;
    for _ in 0..12 {
        let (mut total, mut slope) = (0.0, 0.0);
        for (chosen, &weight) in chosen.iter_mut().zip(&*scores) {
            let missed = exp(-theta * weight);
            *chosen = 1.0 - missed;
            total += *chosen;
            slope += weight * missed;
        }
        if top_k - total < 1e-4 || slope <= 0.0 {
            break;
        }
        theta += (top_k - total) / slope;
    }
    let total = chosen.iter().sum::<f64>();
    chosen.iter_mut().for_each(|chosen| *chosen = (*chosen * top_k / total).min(1.0));
}

/// What a stream of draws is for.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Layer = 0,
    Drift = 1,
    Early = 2,
    Sample = 3,
}

/// An independent stream for each purpose, layer and number.
pub(super) fn stream(seed: u64, purpose: Purpose, layer: usize, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((purpose as u64) << 62) | ((layer as u64 & 0x3fff_ffff) << 32) | (number & 0xffff_ffff));
    rng
}

/// A standard normal number, as the sum of 12 uniform ones: exact in its first moments, within 6 deviations.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let halves = |word: u32| f64::from(word >> 16) + f64::from(word & 0xffff);
    let sum = (0..6).map(|_| halves(rng.next_u32())).sum::<f64>();
    (sum + 6.0) / 65536.0 - 6.0
}

/// The same from the four bytes of one word, within 3.5 deviations: for the many counts.
fn near_normal(rng: &mut ChaCha8Rng) -> f64 {
    /// Standard deviation of a sum of four uniform bytes, sqrt(4 * (256^2 - 1) / 12).
    const DEVIATION: f64 = 147.800_879_564_114_45;
    let sum = rng.next_u32().to_le_bytes().iter().map(|&byte| i32::from(byte)).sum::<i32>();
    f64::from(sum - 510) / DEVIATION
}

/// e^x to 1e-13, the same bits on every machine (the system's differ); 0 below -700.
pub(super) fn exp(x: f64) -> f64 {
    if x < -700.0 {
        return 0.0;
    }
    let x = x.min(700.0);
    let halvings = (x * std::f64::consts::LOG2_E).round();
    let rest = x - halvings * std::f64::consts::LN_2;
    let series = (1..=11).rev().fold(1.0, |series, n| 1.0 + series * rest / f64::from(n));
    series * f64::from_bits(((halvings as i64 + 1023) as u64) << 52)
}

/// Doublings from 1 to `x >= 1`: the logarithm to base 2, linear between powers of 2.
fn doublings(x: f64) -> f64 {
    let (mut whole, mut power) = (0.0, 1.0);
    while power * 2.0 <= x {
        power *= 2.0;
        whole += 1.0;
    }
    whole + x / power - 1.0
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::artifact::tests::real_trace;
    use super::super::{LayerStats, TimeStats, TraceStats};
    use super::*;

    #[test]
    fn arithmetic_is_right() {
        for x in [-699.0, -20.5, -1.0, -1e-9, 0.0, 0.3, 1.0, 30.0] {
            assert!((exp(x) / f64::exp(x) - 1.0).abs() < 1e-12, "exp({x})");
        }
        assert_eq!([1.0, 1.5, 2.0, 48.0].map(doublings), [0.0, 0.5, 1.0, 5.5]);
        let mut rng = stream(1, Purpose::Layer, 0, 0);
        for draw in [normal, near_normal] {
            let draws = (0..40_000).map(|_| draw(&mut rng)).collect::<Vec<_>>();
            let moment = |n: i32| draws.iter().map(|x| x.powi(n)).sum::<f64>() / 40_000.0;
            assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03, "{} {}", moment(1), moment(2));
        }
    }

    #[test]
    fn choices_sum_to_top_k() {
        let mut scores = [0.0, 0.0, 0.0, 0.0];
        let mut chosen = [0.0; 4];
        inclusion(&mut scores, 2.0, &mut chosen);
        assert!(chosen.iter().all(|&chosen| (chosen - 0.5).abs() < 1e-4), "{chosen:?}");
        inclusion(&mut [9.0, 1.0, 0.0, -700.0], 2.0, &mut chosen);
        assert!((chosen.iter().sum::<f64>() - 2.0).abs() < 1e-3 && chosen[0] > 0.99, "{chosen:?}");
    }

    #[test]
    fn samples_do_not_depend_on_their_number() {
        let spec = SynthSpec { layers: 3, samples: 9, ..SynthSpec::default() };
        let (trace, again) = (spec.generate().unwrap(), spec.generate().unwrap());
        assert_eq!(trace, again);
        let fewer = SynthSpec { samples: 5, step: 20, layers: 2, ..spec.clone() }.generate().unwrap();
        assert_eq!(fewer.row(4, 1, 3, 15), trace.row(8, 1, 3, 15));
        let other = SynthSpec { seed: 1, ..spec }.generate().unwrap();
        assert_ne!(other.row(4, 1, 3, 15), trace.row(4, 1, 3, 15));
    }

    #[test]
    fn any_shape_is_sound() {
        for (experts, entries, top_k) in [(1, 5, 1), (2, 8, 2), (64, 30, 6), (8, 4096, 1)] {
            let spec = SynthSpec { experts, entries, top_k, layers: 2, samples: 30, ..SynthSpec::default() };
            assert_eq!(spec.generate().unwrap().shape().experts, experts);
        }
    }

    fn check_error(spec: SynthSpec, message: &str) {
        assert_eq!(spec.generate().expect_err(message).to_string(), message);
    }

    #[test]
    fn says_what_is_wrong() {
        let spec = SynthSpec::default;
        check_error(SynthSpec { samples: 0, ..spec() }, "samples is 0: expected at least 1");
        check_error(SynthSpec { step: 0, ..spec() }, "step is 0: expected at least 1");
        check_error(
            SynthSpec { step: u32::MAX, ..spec() },
            "samples is 501 at step 4294967295: expected a last iteration of at most 4294967295",
        );
        check_error(
            SynthSpec { ranks: 1 << 30, ..spec() },
            "layers x micro_batches x ranks x experts is 24 x 4 x 1073741824 x 32: expected a product of at most 4294967296",
        );
        check_error(SynthSpec { ranks: 0, ..spec() }, "ranks is 0: expected at least 1");
        check_error(SynthSpec { skew: f64::NAN, ..spec() }, "skew is NaN: expected a finite number, 0 or more");
        check_error(SynthSpec { drift: 0.0, ..spec() }, "drift is 0: expected a finite number above 0");
        check_error(SynthSpec { constancy: 1.5, ..spec() }, "constancy is 1.5: expected a number from 0 to 1");
        check_error(SynthSpec { live: f64::INFINITY, ..spec() }, "live is inf: expected a finite number");
    }

    type Field<S> = fn(&S) -> f64;

    /// A synthetic statistic may be `tolerance` from the real one.
    fn check_near(what: &str, real: f64, synthetic: f64, tolerance: f64) {
        eprintln!("{what}: real {real:.3}, synthetic {synthetic:.3}");
        assert!((real - synthetic).abs() <= tolerance, "{what}: more than {tolerance} apart");
    }

    /// A statistic of every layer: mean, lower quartile, upper quartile.
    fn spread_of(traces: &[TraceStats], field: fn(&LayerStats) -> f64) -> [f64; 3] {
        let layers = traces.iter().flat_map(|stats| &stats.per_layer);
        let mut values = layers.map(field).collect::<Vec<_>>();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        [values.iter().sum::<f64>() / count as f64, values[count / 4], values[count * 3 / 4]]
    }

    /// A statistic averaged over some samples of all traces.
    fn during(traces: &[TraceStats], samples: Range<usize>, field: fn(&TimeStats) -> f64) -> f64 {
        let count = traces.len() * samples.len();
        let times = traces.iter().flat_map(|stats| &stats.over_time[samples.clone()]);
        times.map(field).sum::<f64>() / count as f64
    }

    /// Several seeds, since the quartiles of 24 layers are rough. Tolerances are the differences as shipped, and a tenth more.
    #[test]
    #[ignore = "needs MOEBENCH_SHARED: the published trace"]
    fn resembles_the_published_trace() {
        let real = real_trace();
        let stats = |trace: &RoutingTrace| TraceStats::new(trace, 16).unwrap();
        let synthetic = |seed| stats(&SynthSpec { seed, ..SynthSpec::default() }.generate().unwrap());
        let (real, synthetic) = ([stats(real)], [0, 1, 2].map(synthetic));
        let layers: [(&str, Field<LayerStats>, f64); 6] = [
            ("max/mean", |layer| layer.max_over_mean, 0.36),
            ("rank max/mean", |layer| layer.rank_max_over_mean, 0.46),
            ("Gini", |layer| layer.gini, 0.042),
            ("row spread", |layer| layer.row_spread, 0.016),
            ("overlap at 1 sample", |layer| layer.hot_overlap[0].unwrap(), 0.0085),
            ("overlap at 100 samples", |layer| layer.hot_overlap[2].unwrap(), 0.024),
        ];
        for (what, field, tolerance) in layers {
            let (real, synthetic) = (spread_of(&real, field), spread_of(&synthetic, field));
            for (i, part) in ["mean", "q1", "q3"].into_iter().enumerate() {
                check_near(&format!("{what}, {part} of layers"), real[i], synthetic[i], tolerance);
            }
        }
        let times: [(&str, Field<TimeStats>, f64); 3] = [
            ("max/mean", |time| time.max_over_mean, 0.84),
            ("Gini", |time| time.gini, 0.029),
            ("row spread", |time| time.row_spread, 0.018),
        ];
        for samples in [0..1, 1..5, 5..11, 11..31, 31..101, 101..251, 251..501] {
            for (what, field, tolerance) in times {
                let what = format!("{what}, samples {samples:?}");
                let [real, synthetic] = [&real[..], &synthetic].map(|of| during(of, samples.clone(), field));
                check_near(&what, real, synthetic, tolerance);
            }
        }
    }
}
