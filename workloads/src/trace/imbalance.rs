//! The imbalance workloads W0 to W7 of Megatron-LM's MoE benchmark (pull request 7488): what every token of a rank chooses,
//! from (workload, seed, step) alone.
//!
//! A step draws from MT19937, seeded by the first 32 bits of the SHA-256 of `WORKLOAD|SEED|STEP`. A token's choices are
//! the first `top_k` of a random permutation of a pool of experts, in ascending order; the workload says which pool.
//! After all choices of a step come the gates' weights, from the same stream. Rank, layer and micro-batch are no inputs: all of
//! them see the same choices, as in the original. That holds for W4 too: in spite of its name, its sources are even.
//!
//! Sums of a token's weights run from its first choice to its last. With more than two choices a tensor library may add in
//! another order, so checksums are comparable with the original's for `top_k` up to 2.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Choices, RoutingTrace, TraceError, TraceShape, check_choices, check_size};

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Workload {
    /// W0: experts in turn.
    Balanced,
    /// W1: three of four tokens choose from the first quarter of the experts.
    HotExpertSet,
    /// W2: the rule of W1 under another seed.
    HotRank,
    /// W3: three of four tokens choose from the experts with even numbers.
    SpreadHotExperts,
    /// W4: any experts at random.
    SourceRagged,
    /// W5: the first half of the experts gets nothing.
    ZeroExpertRank,
    /// W6: W1 with a quarter that moves on every three steps.
    RotatingHotspot,
    /// W7: every fourth step, every second token chooses from the first quarter.
    Burst,
}

impl Workload {
    /// All, in order.
    pub const ALL: [Self; 8] = [
        Self::Balanced,
        Self::HotExpertSet,
        Self::HotRank,
        Self::SpreadHotExperts,
        Self::SourceRagged,
        Self::ZeroExpertRank,
        Self::RotatingHotspot,
        Self::Burst,
    ];

    /// The original's name, which seeds and checksums are made from.
    pub fn name(self) -> &'static str {
        match self {
            Self::Balanced => "W0_balanced",
            Self::HotExpertSet => "W1_hot_expert_set",
            Self::HotRank => "W2_hot_rank",
            Self::SpreadHotExperts => "W3_spread_hot_experts",
            Self::SourceRagged => "W4_source_ragged",
            Self::ZeroExpertRank => "W5_zero_expert_rank",
            Self::RotatingHotspot => "W6_rotating_hotspot",
            Self::Burst => "W7_burst",
        }
    }

    /// `W0` to `W7`.
    pub fn short_name(self) -> &'static str {
        &self.name()[..2]
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is = |workload: &Self| {
            [workload.name(), workload.short_name()].into_iter().any(|name| text.eq_ignore_ascii_case(name))
        };
        Self::ALL.into_iter().find(is).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("workload `{text}`: expected W0 to W7, or one of {names}")
        })
    }
}

impl TryFrom<String> for Workload {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// What a workload routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImbalanceSpec {
    /// The workload.
    pub workload: Workload,
    /// Experts of the layer.
    pub experts: usize,
    /// Choices per token.
    pub top_k: usize,
    /// Tokens per rank and step.
    pub tokens: usize,
    /// Seed of all draws.
    pub seed: u64,
}

/// What the tokens of one rank choose in one step, `[token][choice]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StepRouting {
    /// Experts.
    pub ids: Vec<i64>,
    /// Weights of the gate; those of a token sum to 1.
    pub weights: Vec<f32>,
}

impl ImbalanceSpec {
    /// The choices of one step.
    ///
    /// # Errors
    /// Fewer tokens than choices, or fewer experts in a pool than choices.
    pub fn routing(&self, step: u64) -> Result<StepRouting, TraceError> {
        self.check()?;
        let mut rng = Mt19937::new(self.stream_seed(step));
        let ids = self.ids(step, &mut rng);
        let mut weights: Vec<f32> = ids.iter().map(|_| rng.next_unit() * 0.5 + 0.5).collect();
        for row in weights.chunks_exact_mut(self.top_k) {
            let sum = row.iter().sum::<f32>();
            row.iter_mut().for_each(|weight| *weight /= sum);
        }
        Ok(StepRouting { ids, weights })
    }

    /// The original's checksum of the first `steps` steps; `ep` is in its text, though not in the choices.
    ///
    /// # Errors
    /// As [`ImbalanceSpec::routing`].
    pub fn checksum(&self, steps: usize, ep: usize) -> Result<String, TraceError> {
        let Self { workload, experts, top_k, tokens, seed } = self;
        let mut hash = Sha256::new();
        hash.update(format!("{workload}|{experts}|{top_k}|{tokens}|{steps}|{seed}|{ep}"));
        for step in 0..steps as u64 {
            let routing = self.routing(step)?;
            routing.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
            routing.weights.iter().for_each(|weight| hash.update(weight.to_le_bytes()));
        }
        Ok(hex(&hash.finalize()[..8]))
    }

    /// The first `steps` steps as a trace under labels from 0; all layers, micro-batches and ranks choose alike.
    ///
    /// # Errors
    /// As [`ImbalanceSpec::routing`], and a trace too large to keep.
    pub fn trace(
        &self,
        steps: usize,
        layers: usize,
        micro_batches: usize,
        ranks: usize,
    ) -> Result<RoutingTrace, TraceError> {
        self.check()?;
        let entries = u32::try_from(self.tokens * self.top_k).unwrap_or(u32::MAX);
        let (experts, top_k) = (self.experts, self.top_k as u32);
        let shape = TraceShape { layers, micro_batches, ranks, experts, entries, top_k };
        shape.check()?;
        check_size("steps x counts per step", &[steps, shape.counts_per_iteration()])?;
        let mut counts = Vec::with_capacity(steps * shape.counts_per_iteration());
        for step in 0..steps as u64 {
            let mut row = vec![0; self.experts];
            let mut rng = Mt19937::new(self.stream_seed(step));
            self.ids(step, &mut rng).iter().for_each(|&id| row[id as usize] += 1);
            (0..layers * shape.rows()).for_each(|_| counts.extend_from_slice(&row));
        }
        let labels = (0..).take(steps).collect();
        let checksum = self.checksum(steps, 1)?;
        let note = format!("workload {}, seed {}, checksum {checksum} (ep 1)", self.workload, self.seed);
        let trace = RoutingTrace::new(self.workload.name(), shape, labels, counts)?.with_notes(vec![note]);
        Ok(trace.chosen_by(Choices::Stated { within: Some(0) }))
    }

    fn check(&self) -> Result<(), TraceError> {
        if self.tokens < self.top_k {
            return Err(TraceError::field("tokens", self.tokens, format!("at least top_k ({})", self.top_k)));
        }
        let size = self.tokens.checked_mul(self.top_k).and_then(|size| u32::try_from(size).ok());
        check_choices(self.experts, "tokens x top_k", size.unwrap_or(u32::MAX), self.top_k as u32)?;
        check_size("tokens x experts", &[self.tokens, self.experts])?;
        let pool = self.pool(0, 0).len();
        if self.top_k > pool {
            let expected = format!("1 to {pool}, the experts that {} chooses from", self.workload);
            return Err(TraceError::field("top_k", self.top_k, expected));
        }
        Ok(())
    }

    /// Seed of the stream of a step.
    fn stream_seed(&self, step: u64) -> u32 {
        let hash = Sha256::digest(format!("{}|{}|{step}", self.workload, self.seed));
        u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]])
    }

    fn ids(&self, step: u64, rng: &mut Mt19937) -> Vec<i64> {
        let mut ids = Vec::with_capacity(self.tokens * self.top_k);
        let mut permutation = Vec::new();
        for token in 0..self.tokens {
            if self.workload == Workload::Balanced {
                ids.extend((0..self.top_k).map(|choice| ((token * self.top_k + choice) % self.experts) as i64));
                continue;
            }
            let pool = self.pool(step, token);
            rng.permute(pool.len(), &mut permutation);
            let start = ids.len();
            ids.extend(permutation[..self.top_k].iter().map(|&at| pool[at] as i64));
            ids[start..].sort_unstable();
        }
        ids
    }

    /// The experts that a token may choose.
    fn pool(&self, step: u64, token: usize) -> Vec<usize> {
        let experts = self.experts;
        match self.workload {
            Workload::HotExpertSet | Workload::HotRank if !token.is_multiple_of(4) => self.hot(0),
            Workload::SpreadHotExperts if !token.is_multiple_of(4) => self.spread(),
            Workload::ZeroExpertRank => (experts / 2..experts).collect(),
            Workload::RotatingHotspot if !token.is_multiple_of(4) => {
                let turns = (step / 3) % experts as u64;
                self.hot(turns as usize * self.hot_size() % experts)
            }
            Workload::Burst if step % 4 == 3 && token.is_multiple_of(2) => self.hot(0),
            _ => (0..experts).collect(),
        }
    }

    fn hot_size(&self) -> usize {
        self.top_k.max(self.experts / 4)
    }

    fn hot(&self, base: usize) -> Vec<usize> {
        (0..self.hot_size()).map(|i| (base + i) % self.experts).collect()
    }

    /// Every second expert; all of them where those are too few.
    fn spread(&self) -> Vec<usize> {
        let mut pool: Vec<usize> = (0..self.top_k.max(self.experts / 2)).map(|i| 2 * i % self.experts).collect();
        pool.sort_unstable();
        pool.dedup();
        if pool.len() < self.top_k { (0..self.experts).collect() } else { pool }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The Mersenne Twister of Matsumoto and Nishimura (1998), seeded by their `init_genrand`.
struct Mt19937 {
    state: [u32; Mt19937::SIZE],
    next: usize,
}

impl Mt19937 {
    const SIZE: usize = 624;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::SIZE];
        for i in 1..Self::SIZE {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::SIZE }
    }

    fn next_u32(&mut self) -> u32 {
        if self.next == Self::SIZE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    fn twist(&mut self) {
        for i in 0..Self::SIZE {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::SIZE] & 0x7fff_ffff);
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + 397) % Self::SIZE] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }

    /// Uniform in [0, 1), from the low 24 bits of a word.
    fn next_unit(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32
    }

    /// A random permutation of `0..size`, from `size - 1` words.
    fn permute(&mut self, size: usize, out: &mut Vec<usize>) {
        out.clear();
        out.extend(0..size);
        for i in 0..size.saturating_sub(1) {
            out.swap(i, i + self.next_u32() as usize % (size - i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults of the original.
    fn spec(workload: Workload) -> ImbalanceSpec {
        ImbalanceSpec { workload, experts: 8, top_k: 2, tokens: 128, seed: 1234 }
    }

    fn counts(spec: ImbalanceSpec, step: u64) -> Vec<usize> {
        let ids = spec.routing(step).unwrap().ids;
        (0..spec.experts).map(|expert| ids.iter().filter(|&&id| id as usize == expert).count()).collect()
    }

    /// One row of the published table: stream seed, counts at step 0, checksum of the ids.
    fn check(workload: Workload, seed: Option<u32>, expected: [usize; 8], ids: &str) {
        let spec = spec(workload);
        if let Some(seed) = seed {
            assert_eq!(spec.stream_seed(0), seed, "{workload}");
        }
        assert_eq!(counts(spec, 0), expected, "{workload}");
        let bytes: Vec<u8> = spec.routing(0).unwrap().ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(hex(&Sha256::digest(bytes)[..8]), ids, "{workload}");
    }

    #[test]
    fn steps_are_the_published_ones() {
        use Workload::*;
        check(Balanced, Some(3485223654), [32; 8], "8ff820039769e4f4");
        check(HotExpertSet, Some(1752032475), [103, 106, 8, 8, 9, 7, 5, 10], "2caa57bb5bf7cad8");
        check(HotRank, Some(32502025), [102, 103, 11, 7, 8, 9, 8, 8], "d57373c65f18b30d");
        check(SpreadHotExperts, Some(4058682789), [47, 8, 61, 11, 51, 9, 61, 8], "bb2d6bb665d33266");
        check(SourceRagged, Some(3887398102), [28, 25, 29, 34, 33, 32, 41, 34], "6353035f2671b23b");
        check(ZeroExpertRank, Some(3267669951), [0, 0, 0, 0, 66, 55, 66, 69], "25814e6b6ec3d791");
        check(RotatingHotspot, Some(2338906525), [106, 104, 6, 6, 12, 9, 8, 5], "df5fcb1e5b44c63c");
        check(Burst, Some(323249767), [27, 33, 39, 28, 35, 27, 33, 34], "e6ef02608f15d315");
        assert_eq!(counts(spec(RotatingHotspot), 3), [8, 12, 102, 106, 11, 7, 6, 4]);
        assert_eq!(counts(spec(Burst), 3), [80, 77, 11, 17, 17, 17, 18, 19]);
    }

    #[test]
    fn first_rows_are_the_published_ones() {
        let rows = |workload: Workload| spec(workload).routing(0).unwrap();
        let hot = rows(Workload::HotExpertSet);
        assert_eq!(hot.ids[..6], [6, 7, 0, 1, 0, 1]);
        assert!((hot.weights[0] - 0.543950).abs() < 5e-7 && (hot.weights[1] - 0.456050).abs() < 5e-7);
        assert_eq!(rows(Workload::SpreadHotExperts).ids[..6], [0, 1, 2, 6, 0, 4]);
        assert_eq!(rows(Workload::ZeroExpertRank).ids[..6], [4, 5, 6, 7, 5, 7]);
        assert_eq!(rows(Workload::Burst).ids[..6], [3, 5, 6, 7, 1, 4]);
    }

    #[test]
    fn more_choices_and_tokens_are_the_published_ones() {
        let wide = |workload| ImbalanceSpec { top_k: 4, tokens: 512, ..spec(workload) };
        assert_eq!(counts(wide(Workload::HotExpertSet), 0), [450, 438, 456, 441, 75, 64, 65, 59]);
        assert_eq!(counts(wide(Workload::SourceRagged), 0), [248, 246, 270, 258, 253, 278, 241, 254]);
    }

    #[test]
    fn checksums_are_the_published_ones() {
        let checksum = |workload: Workload| spec(workload).checksum(1, 4).unwrap();
        assert_eq!(checksum(Workload::Balanced), "a06b52cbd5e431be");
        assert_eq!(checksum(Workload::HotExpertSet), "d2258acb91382412");
        assert_eq!(checksum(Workload::ZeroExpertRank), "62313ebdc407765a");
        assert_ne!(checksum(Workload::Burst), spec(Workload::Burst).checksum(1, 1).unwrap());
    }

    #[test]
    fn a_trace_repeats_a_step_for_every_row() {
        let trace = spec(Workload::RotatingHotspot).trace(4, 2, 1, 3).unwrap();
        assert_eq!((trace.iterations(), trace.shape().entries), (&[0, 1, 2, 3][..], 256));
        assert_eq!(trace.row(3, 1, 0, 2), [8, 12, 102, 106, 11, 7, 6, 4]);
        assert!(trace.notes()[0].starts_with("workload W6_rotating_hotspot, seed 1234, checksum "));
        // A step does not depend on how many there are.
        assert_eq!(spec(Workload::RotatingHotspot).trace(1, 1, 1, 1).unwrap().row(0, 0, 0, 0), trace.row(0, 0, 0, 0));
    }

    #[test]
    fn every_choice_of_a_token_differs() {
        for workload in Workload::ALL {
            for (experts, top_k) in [(8, 4), (9, 2), (5, 1), (64, 8), (2, 1)] {
                let spec = ImbalanceSpec { workload, experts, top_k, tokens: 70, seed: 7 };
                for step in [0, 3, 100] {
                    for row in spec.routing(step).unwrap().ids.chunks_exact(top_k) {
                        let mut unique = row.to_vec();
                        unique.sort_unstable();
                        unique.dedup();
                        assert_eq!(unique.len(), top_k, "{spec:?}: {row:?}");
                        assert!(row.iter().all(|&id| (id as usize) < experts));
                    }
                }
            }
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let check = |spec: ImbalanceSpec, message: &str| {
            assert_eq!(spec.routing(0).expect_err(message).to_string(), message);
        };
        let good = spec(Workload::ZeroExpertRank);
        check(ImbalanceSpec { tokens: 1, ..good }, "tokens is 1: expected at least top_k (2)");
        check(ImbalanceSpec { top_k: 9, ..good }, "top_k is 9: expected 1 to 8, the number of experts");
        check(
            ImbalanceSpec { top_k: 5, ..good },
            "top_k is 5: expected 1 to 4, the experts that W5_zero_expert_rank chooses from",
        );
        assert_eq!("w6".parse(), Ok(Workload::RotatingHotspot));
        assert!("W8".parse::<Workload>().unwrap_err().contains("expected W0 to W7"));
    }
}
