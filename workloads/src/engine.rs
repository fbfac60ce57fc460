//! How the numbers of a run are obtained: one word for it, in suites, on the command line, in records and below figures.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How the numbers of a run are obtained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub enum EngineKind {
    /// Layer programs are priced on a described cluster.
    #[default]
    Simulated,
    /// Real ranks train a model under the wall clock.
    Measured,
    /// Ranks that share a device train a model: computation is measured, communication is priced.
    Emulated,
}

/// A word that names no engine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown engine `{0}`: expected `simulate`, `train` or `emulate`")]
pub struct UnknownEngine(String);

impl EngineKind {
    /// The word in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Measured => "measured",
            Self::Emulated => "emulated",
        }
    }

    /// What stands below figures and tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Measured => "measured",
            Self::Emulated => "emulated (computation measured, communication priced)",
        }
    }

    /// Whether a model is really trained, so that there are losses.
    pub fn trains(self) -> bool {
        self != Self::Simulated
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads what an engine does (`simulate`, `train`, `emulate`) or what its numbers are (`simulated`, `measured`, `emulated`).
/// Records of schema version 2 say `train` of measured numbers.
impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "simulate" | "simulated" => Ok(Self::Simulated),
            "train" | "measured" => Ok(Self::Measured),
            "emulate" | "emulated" => Ok(Self::Emulated),
            _ => Err(UnknownEngine(text.to_owned())),
        }
    }
}

impl TryFrom<String> for EngineKind {
    type Error = UnknownEngine;

    fn try_from(text: String) -> Result<Self, UnknownEngine> {
        text.parse()
    }
}

impl From<EngineKind> for String {
    fn from(kind: EngineKind) -> Self {
        kind.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_are_errors() {
        for kind in [EngineKind::Simulated, EngineKind::Measured, EngineKind::Emulated] {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("train".parse(), Ok(EngineKind::Measured));
        let error = "trained".parse::<EngineKind>().unwrap_err().to_string();
        assert_eq!(error, "unknown engine `trained`: expected `simulate`, `train` or `emulate`");
    }
}
