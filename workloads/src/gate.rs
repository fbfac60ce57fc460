//! Gates, as what they do to the counts of entries.
//!
//! A routing trace says which experts a gate with no limit chose. A capacity gate keeps the first entries that fit; this
//! module says how many those are. Which entries they are, only a trainer knows.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::error::ConfigError;

/// Share of second choices that GShard's random routing keeps: a second choice with weight `p2` (of the two, so at most
/// 1/2) is kept with probability `2 p2`. Fitted by `moebench calibrate fit` to the artifact's end-to-end
/// times on inky, one value for all cases (standard error 0.12).
pub const SECOND_CHOICE_KEPT: f64 = 0.709;

/// How much a gate trained with a balance loss flattens the choices of one trained without: shares `q` become `q^(1 - u)`,
/// normalised. Traces are of gates without such a loss. Fitted likewise (standard error 0.012).
pub const BALANCE_LOSS_FLATTENING: f64 = 0.833;

/// What a gate does that no trace says: the two constants above, as values, so that a calibration can vary them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GateStatistics {
    /// See [`SECOND_CHOICE_KEPT`].
    pub second_choice_kept: f64,
    /// See [`BALANCE_LOSS_FLATTENING`].
    pub balance_loss_flattening: f64,
}

impl Default for GateStatistics {
    fn default() -> Self {
        Self { second_choice_kept: SECOND_CHOICE_KEPT, balance_loss_flattening: BALANCE_LOSS_FLATTENING }
    }
}

/// How a token's scores become choices and weights, for each expert `i` of logit `z_i`.
///
/// Expert choice (experts that choose tokens) is left out: it looks at tokens to come, so a language model cannot use it to
/// generate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// From logits to scores.
    pub score: Score,
    /// A number per expert.
    pub bias: RouterBias,
    /// Whether the weights of a token's choices are divided by their sum. With softmax this is the same as softmax over the
    /// chosen logits alone.
    pub renormalise: bool,
    /// Limits a token's choices to some groups of experts.
    pub groups: Option<Groups>,
    /// Factor of the weights.
    pub scale: f64,
    /// Factor of the balance loss, which is 1 when loads are even, in the whole loss; 0 leaves it to the gate and the training's
    /// settings.
    pub auxiliary_loss: f64,
}

/// From logits to scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// Over all experts.
    #[default]
    Softmax,
    /// Each expert on its own.
    Sigmoid,
}

/// What the number per expert does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RouterBias {
    /// There is none.
    None,
    /// It is learned and added to the logit.
    Logit,
    /// It is added to the score for the choice and not for the weight; after each step it moves against the expert's load
    /// (balancing without an auxiliary loss, Wang et al. 2024, arXiv 2408.15664).
    Selection,
}

/// Group-limited choice (DeepSeek-V2 and V3): equal groups of experts in order, of which a token keeps those whose best scores
/// have the largest sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups of experts.
    pub number: usize,
    /// Of these, those that a token chooses from.
    pub kept: usize,
    /// Scores of a group that are summed: 1 in V2, 2 in V3.
    pub best: usize,
}

impl Default for Router {
    /// GShard's: softmax over the chosen logits, which have a bias; the balance loss is the gate's.
    fn default() -> Self {
        Self {
            score: Score::Softmax,
            bias: RouterBias::Logit,
            renormalise: true,
            groups: None,
            scale: 1.0,
            auxiliary_loss: 0.0,
        }
    }
}

impl Router {
    /// Whether its numbers fit `experts` experts and `top_k` choices; `table` names it in errors.
    pub(crate) fn check(&self, file: &str, table: &str, experts: usize, top_k: usize) -> Result<(), ConfigError> {
        let wrong = |field: &str, value: String, expected: String| {
            Err(ConfigError::value(file, format!("{table}.{field}"), value, expected))
        };
        if let Some(Groups { number, kept, best }) = self.groups {
            if number == 0 || !experts.is_multiple_of(number) {
                return wrong("groups", number.to_string(), format!("a divisor of {experts}, the number of experts"));
            }
            let room = experts / number;
            if kept == 0 || kept > number || kept * room < top_k {
                let least = top_k.div_ceil(room);
                return wrong(
                    "kept_groups",
                    kept.to_string(),
                    format!("{least} to {number}: room for {top_k} choices"),
                );
            }
            if best == 0 || best > room {
                return wrong("group_best", best.to_string(), format!("1 to {room}, the experts of a group"));
            }
        }
        for (field, value, least) in
            [("scale", self.scale, f64::MIN_POSITIVE), ("auxiliary_loss", self.auxiliary_loss, 0.0)]
        {
            if !(value.is_finite() && value >= least) {
                let expected = if least > 0.0 { "a number above 0" } else { "a number of at least 0" };
                return wrong(field, value.to_string(), expected.to_owned());
            }
        }
        Ok(())
    }
}

/// Least share of an expert that the flattening starts from.
const LEAST_SHARE: f64 = 1e-5;

/// How a token's choices become entries.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum Gate {
    /// Every choice is an entry, whatever the load.
    NoDrop,
    /// Every choice is an entry, of a gate that is trained with a balance loss, as capacity gates are.
    BalancedNoDrop,
    /// GShard: per source rank and expert at most `factor` times the mean, then second choices dropped at random.
    Capacity {
        /// The capacity factor.
        factor: f64,
    },
    /// Switch: one choice a token, at most `factor` times the mean at the expert's owner.
    Switch {
        /// The capacity factor.
        factor: f64,
    },
}

impl Gate {
    /// Choices per token under this gate, for a model built for `model_top_k`.
    pub fn top_k(&self, model_top_k: usize) -> usize {
        match self {
            Gate::Switch { .. } => 1,
            _ => model_top_k,
        }
    }

    /// The capacity factor, if the gate has one.
    pub fn capacity_factor(&self) -> Option<f64> {
        match *self {
            Gate::NoDrop | Gate::BalancedNoDrop => None,
            Gate::Capacity { factor } | Gate::Switch { factor } => Some(factor),
        }
    }

    /// `no-drop`, `no-drop balanced`, `capacity` or `switch`.
    pub fn kind(&self) -> &'static str {
        match self {
            Gate::NoDrop => "no-drop",
            Gate::BalancedNoDrop => "no-drop balanced",
            Gate::Capacity { .. } => "capacity",
            Gate::Switch { .. } => "switch",
        }
    }

    /// Most entries of one source rank at one expert in one micro-batch: `floor(ceil(factor * tokens) * top_k / experts)`,
    /// and never more than `tokens`, as a token's choices differ.
    pub fn capacity(&self, tokens: usize, top_k: usize, experts: usize) -> Option<u32> {
        self.capacity_factor().map(|factor| {
            // The float saturates at 64 bits, so the product fits 128.
            let slots = u128::from((factor * tokens as f64).ceil() as u64) * top_k as u128 / experts.max(1) as u128;
            u32::try_from(slots.min(tokens as u128)).unwrap_or(u32::MAX)
        })
    }

    /// Whether gates of this kind are trained with a balance loss.
    pub fn is_balanced(&self) -> bool {
        !matches!(self, Gate::NoDrop)
    }

    /// Turns the choices of one source rank in one micro-batch (`counts[expert]`) into its entries.
    ///
    /// For `Switch` the limit at the owner is approximated by its share at each source.
    pub fn admit(&self, counts: &mut [u32], tokens: usize, top_k: usize, statistics: &GateStatistics) {
        let Some(capacity) = self.capacity(tokens, top_k, counts.len()) else {
            return;
        };
        let kept = match self {
            Gate::Capacity { .. } if top_k == 2 => (1.0 + statistics.second_choice_kept) / 2.0,
            _ => 1.0,
        };
        // The fraction that rounding leaves is handed on, so that the total is right to within one entry.
        let mut carry = 0.0;
        for count in counts {
            let exact = f64::from((*count).min(capacity)) * kept + carry;
            *count = exact as u32;
            carry = exact - f64::from(*count);
        }
    }
}

/// Flattened weights of every count up to a chunk's number of choices.
pub struct Flattening(Vec<f64>);

impl Flattening {
    /// For chunks of `total` choices: shares `q` become `q^(1 - exponent)`, normalised.
    pub fn new(total: u32, exponent: f64) -> Self {
        let least = LEAST_SHARE * f64::from(total);
        let power = 1.0 - exponent;
        Self((0..=total).map(|count| f64::from(count).max(least).powf(power)).collect())
    }

    /// Flattens `counts[expert]` of one chunk: the same number of choices.
    pub fn apply(&self, counts: &mut [u32]) {
        let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
        let weights: f64 = counts.iter().map(|&count| self.weight(count)).sum();
        let mut carry = 0.5;
        for count in counts {
            let exact = total as f64 * self.weight(*count) / weights + carry;
            *count = exact as u32;
            carry = exact - f64::from(*count);
        }
    }

    fn weight(&self, count: u32) -> f64 {
        self.0[(count as usize).min(self.0.len() - 1)]
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.capacity_factor() {
            None => f.write_str(self.kind()),
            Some(factor) => write!(f, "{} {factor}", self.kind()),
        }
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "gate `{text}`: expected `no-drop`, `capacity FACTOR` or `switch FACTOR` with a factor above 0, or \
                 `no-drop balanced`"
            )
        };
        let words: Vec<&str> = text.split_whitespace().collect();
        let factor = |word: &str| match word.parse::<f64>() {
            Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
            _ => Err(wrong()),
        };
        match words[..] {
            ["no-drop"] => Ok(Gate::NoDrop),
            ["no-drop", "balanced"] => Ok(Gate::BalancedNoDrop),
            ["capacity", word] => Ok(Gate::Capacity { factor: factor(word)? }),
            ["switch", word] => Ok(Gate::Switch { factor: factor(word)? }),
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Gate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The capacities in the artifact's logs.
    #[test]
    fn capacities_are_the_published_ones() {
        let check = |factor, tokens, experts, expected| {
            let gate = Gate::Capacity { factor };
            assert_eq!(gate.capacity(tokens, 2, experts), Some(expected));
        };
        for (factor, e16, e32) in [(1.2, 614, 307), (2.4, 1228, 614), (4.8, 2457, 1228)] {
            check(factor, 4096, 16, e16);
            check(factor, 4096, 32, e32);
        }
        check(1.2, 1024, 32, 76);
        check(1.2, 1024, 64, 38);
    }

    /// A larger factor never admits less, however large it is.
    #[test]
    fn a_factor_without_bound_is_no_limit() {
        let capacity = |factor: f64| Gate::Capacity { factor }.capacity(2048, 2, 8).unwrap();
        let factors = (-40..400).map(|power| 2_f64.powi(power)).chain([f64::MAX]);
        let capacities: Vec<u32> = factors.map(capacity).collect();
        assert!(capacities.is_sorted(), "{capacities:?}");
        assert_eq!((capacities[0], capacities[40], capacities[42]), (0, 512, 2048));
        assert_eq!(capacities.last(), Some(&2048));
        assert_eq!(Gate::Switch { factor: 1e30 }.capacity(usize::MAX, 1, 1), Some(u32::MAX));
    }

    #[test]
    fn no_drop_keeps_all_and_capacity_clips() {
        let mut counts = [100, 0, 20, 8];
        Gate::NoDrop.admit(&mut counts, 64, 2, &GateStatistics::default());
        assert_eq!(counts, [100, 0, 20, 8]);
        // ceil(1.0 * 64) * 2 / 4 = 32 entries an expert, of which 85.45% stay: 27.3, 17.1 and 6.8 with carried fractions.
        Gate::Capacity { factor: 1.0 }.admit(&mut counts, 64, 2, &GateStatistics::default());
        assert_eq!(counts, [27, 0, 17, 7]);
    }

    #[test]
    fn a_balance_loss_flattens_and_drops_nothing() {
        let mut counts = [100, 0, 20, 8];
        Flattening::new(128, BALANCE_LOSS_FLATTENING).apply(&mut counts);
        Gate::BalancedNoDrop.admit(&mut counts, 64, 2, &GateStatistics::default());
        assert_eq!(counts.iter().sum::<u32>(), 128);
        assert!(counts[0] < 60 && counts[3] > 20, "{counts:?}");
    }

    #[test]
    fn names_are_read_back() {
        for text in ["no-drop", "no-drop balanced", "capacity 1.2", "switch 1.5"] {
            assert_eq!(text.parse::<Gate>().unwrap().to_string(), text);
        }
        for text in ["", "capacity", "capacity -1", "capacity nan", "no-drop 2", "gshard 1.2"] {
            assert!(text.parse::<Gate>().unwrap_err().contains("expected `no-drop`"));
        }
    }
}
