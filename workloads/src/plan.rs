//! Plans as people write them down: in a suite, on the command line, in records. Whether degrees fit a job and each other is
//! for `systems` to say.
//!
//! The text form is `pp4 dp16 tp1 ep8 edp2 mb1 vp2 zero1 selective every10`. The first six always stand there; the others
//! only where they are not 1, 0 or none. A suite may give a plan as that text or as a table of fields.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use crate::model::Recompute;

/// What data-parallel ranks keep a part of each instead of a whole copy (ZeRO, Rajbhandari et al., SC'20; what PyTorch calls
/// FSDP is stage 3). Each stage keeps parts of all that those before it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Zero {
    /// Nothing: every rank holds all state of its parameters.
    #[default]
    Off,
    /// Stage 1: master weights and moments, as Megatron's distributed optimizer does.
    Optimizer,
    /// Stage 2: gradients, too.
    Gradients,
    /// Stage 3: weights, too, which are gathered before each use.
    Weights,
}

impl Zero {
    /// All stages, the one that shards least first.
    pub const ALL: [Self; 4] = [Self::Off, Self::Optimizer, Self::Gradients, Self::Weights];
}

impl From<Zero> for u8 {
    fn from(zero: Zero) -> Self {
        zero as Self
    }
}

impl TryFrom<u8> for Zero {
    type Error = String;

    fn try_from(stage: u8) -> Result<Self, String> {
        let known = Self::ALL.get(usize::from(stage)).copied();
        known.ok_or_else(|| format!("zero = {stage}: expected a stage from 0 to 3"))
    }
}

impl Recompute {
    /// All, the one that computes least first.
    pub const ALL: [Self; 3] = [Self::None, Self::Selective, Self::Full];

    /// Its word in a plan.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Selective => "selective",
            Self::Full => "full",
        }
    }
}

impl FromStr for Recompute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text);
        known.ok_or_else(|| format!("`{text}`: expected none, selective or full"))
    }
}

/// Degrees of a plan as written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ForcedPlan {
    /// Pipeline stages.
    pub pp: usize,
    /// Data-parallel replicas.
    pub dp: usize,
    /// Tensor-parallel ranks.
    pub tp: usize,
    /// Ranks that share one set of experts.
    pub ep: usize,
    /// Replicas of that set within a stage.
    pub expert_dp: usize,
    /// Samples per rank and micro-batch.
    pub micro_batch: usize,
    /// Virtual stages per rank.
    pub vp: usize,
    /// What is sharded over replicas.
    pub zero: Zero,
    /// What is computed twice.
    pub recompute: Recompute,
    /// Iterations between online placements; 0 for none.
    pub placement_every: usize,
}

/// The fields of a plan in a suite.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    pp: usize,
    dp: usize,
    tp: usize,
    ep: usize,
    expert_dp: usize,
    micro_batch: usize,
    #[serde(default = "one")]
    vp: usize,
    #[serde(default)]
    zero: Zero,
    #[serde(default)]
    recompute: Recompute,
    #[serde(default)]
    placement_every: usize,
}

/// The names of those fields.
#[cfg(test)]
pub(crate) fn table_fields() -> &'static [&'static str] {
    crate::change::fields::<Fields>()
}

fn one() -> usize {
    1
}

impl From<Fields> for ForcedPlan {
    fn from(fields: Fields) -> Self {
        let Fields { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every } = fields;
        Self { pp, dp, tp, ep, expert_dp, micro_batch, vp, zero, recompute, placement_every }
    }
}

/// A plan that a suite gives a system instead of letting it search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenPlan {
    /// By its degrees.
    Degrees(ForcedPlan),
    /// By its rank, from 1, among what the system's search finds for the case: the number that `moebench plan` shows.
    Rank(usize),
}

impl<'de> Deserialize<'de> for GivenPlan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextTableOrRank;
        impl<'de> Visitor<'de> for TextTableOrRank {
            type Value = GivenPlan;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of degrees, a text such as \"pp1 dp8 tp1 ep8 edp1 mb1\", or a rank")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<GivenPlan, E> {
                text.parse().map(GivenPlan::Degrees).map_err(E::custom)
            }

            fn visit_i64<E: serde::de::Error>(self, rank: i64) -> Result<GivenPlan, E> {
                let rank = usize::try_from(rank).ok().filter(|&rank| rank > 0);
                rank.map(GivenPlan::Rank).ok_or_else(|| E::custom("a plan's rank is counted from 1"))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<GivenPlan, A::Error> {
                Fields::deserialize(MapAccessDeserializer::new(map)).map(|fields| GivenPlan::Degrees(fields.into()))
            }
        }
        deserializer.deserialize_any(TextTableOrRank)
    }
}

/// A text that is no plan.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("plan `{text}`: {reason}; expected, for example, `pp4 dp16 tp1 ep8 edp2 mb1 vp2 zero1 selective every10`")]
pub struct BadPlan {
    /// The text.
    pub text: String,
    /// The first thing that is wrong with it.
    pub reason: String,
}

impl FromStr for ForcedPlan {
    type Err = BadPlan;

    fn from_str(text: &str) -> Result<Self, BadPlan> {
        read(text).map_err(|reason| BadPlan { text: text.to_owned(), reason })
    }
}

/// Each degree at most once, in any order.
fn read(text: &str) -> Result<ForcedPlan, String> {
    const DEGREES: [&str; 9] = ["pp", "dp", "tp", "ep", "edp", "mb", "vp", "zero", "every"];
    let mut degrees = [None; DEGREES.len()];
    let mut recompute = None;
    for word in text.split_whitespace() {
        let twice = match word.parse::<Recompute>().ok() {
            Some(kind) => recompute.replace(kind).is_some(),
            None => {
                let digits = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
                let (name, value) = word.split_at(digits);
                let place = DEGREES.iter().position(|known| *known == name);
                let value = value.parse::<usize>().ok();
                let (Some(place), Some(value)) = (place, value) else {
                    return Err(format!("`{word}` is no part of one"));
                };
                degrees[place].replace(value).is_some()
            }
        };
        if twice {
            return Err(format!("`{word}` says something a second time"));
        }
    }
    let need = |place: usize| degrees[place].ok_or_else(|| format!("{} is missing", DEGREES[place]));
    let zero = degrees[7].unwrap_or(0);
    Ok(ForcedPlan {
        pp: need(0)?,
        dp: need(1)?,
        tp: need(2)?,
        ep: need(3)?,
        expert_dp: need(4)?,
        micro_batch: need(5)?,
        vp: degrees[6].unwrap_or(1),
        zero: Zero::try_from(u8::try_from(zero).unwrap_or(u8::MAX))?,
        recompute: recompute.unwrap_or_default(),
        placement_every: degrees[8].unwrap_or(0),
    })
}

impl fmt::Display for ForcedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pp, dp, tp, ep, expert_dp, micro_batch, .. } = self;
        write!(f, "pp{pp} dp{dp} tp{tp} ep{ep} edp{expert_dp} mb{micro_batch}")?;
        if self.vp != 1 {
            write!(f, " vp{}", self.vp)?;
        }
        if self.zero != Zero::Off {
            write!(f, " zero{}", self.zero as u8)?;
        }
        if self.recompute != Recompute::None {
            write!(f, " {}", self.recompute.name())?;
        }
        if self.placement_every > 0 {
            write!(f, " every{}", self.placement_every)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Plans {
        plans: Vec<GivenPlan>,
    }

    #[test]
    fn a_plan_is_read_as_it_is_shown() {
        let check = |text: &str| assert_eq!(text.parse::<ForcedPlan>().unwrap().to_string(), text);
        check("pp1 dp8 tp1 ep8 edp1 mb4");
        check("pp4 dp16 tp1 ep8 edp2 mb1 vp2 zero1 selective every10");
        check("pp2 dp2 tp2 ep4 edp1 mb1 zero3 full");
    }

    #[test]
    fn a_text_and_a_table_say_the_same() {
        let toml = "plans = [\"pp4 dp16 tp1 ep8 edp2 mb1 vp2 zero1 selective\", \
            { pp = 4, dp = 16, tp = 1, ep = 8, expert_dp = 2, micro_batch = 1, vp = 2, zero = 1, recompute = \"selective\" }]";
        let Plans { plans } = toml::from_str(toml).unwrap();
        assert_eq!(plans[0], plans[1]);
    }

    #[test]
    fn bad_plans_name_the_word() {
        let check = |text: &str, expected: &str| {
            let message = text.parse::<ForcedPlan>().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("pp1 dp8 tp1 ep8 mb4", "edp is missing");
        check("pp1 dp8 tp1 ep8 edp1 mb4 cp2", "`cp2` is no part of one");
        check("pp1 dp8 tp1 ep8 edp1 mb4 zero4", "zero = 4: expected a stage from 0 to 3");
        check("pp1 pp2 dp8 tp1 ep8 edp1 mb4", "`pp2` says something a second time");
        check("pp99999999999999999999999", "is no part of one");
        let table = |text: &str| toml::from_str::<Plans>(&format!("plans = [{text}]")).err().unwrap().to_string();
        assert!(table("{ pp = 1, dp = 8 }").contains("missing field `tp`"));
        assert!(table("{ pp = 1, cp = 8 }").contains("unknown field `cp`"));
        assert!(table("-7").contains("a plan's rank is counted from 1"));
        assert!(table("true").contains("a table of degrees, a text such as"));
    }
}
