//! How a model is trained: the optimizer's constants and the weight of the gate's balance loss.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Constants of the optimizer (Adam, Kingma and Ba 2015, with decoupled weight decay) and of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Step size.
    pub learning_rate: f64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squares.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub epsilon: f64,
    /// Decay of weights per step, times the step size.
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; 0 for no limit.
    pub clip_norm: f64,
    /// Weight of the balance loss of gates that have one.
    pub balance_loss: f64,
    /// The kind in which gradients are held and summed over ranks.
    pub gradients: Gradients,
}

/// The kind of numbers in which gradients are held between micro-batches and summed over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gradients {
    /// Single precision.
    #[default]
    Single,
    /// Half precision, bfloat16: half the memory and traffic, each sum rounded.
    Half,
}

impl Gradients {
    /// Of a number.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Single => 4.0,
            Self::Half => 2.0,
        }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            balance_loss: 0.01,
            gradients: Gradients::Single,
        }
    }
}

impl Training {
    /// Whether every constant is one that can be trained with; `place` is what errors call the table.
    ///
    /// # Errors
    /// The first constant that is no number, negative, or a decay of 1 or more.
    pub fn check(&self, file: &str, place: &str) -> Result<(), ConfigError> {
        let Self { learning_rate, beta1, beta2, epsilon, weight_decay, clip_norm, balance_loss, gradients: _ } = *self;
        let below_1 = "a number of at least 0 and below 1";
        for (field, value, bound, expected) in [
            ("learning_rate", learning_rate, f64::INFINITY, "a finite number of at least 0"),
            ("beta1", beta1, 1.0, below_1),
            ("beta2", beta2, 1.0, below_1),
            ("epsilon", epsilon, f64::INFINITY, "a finite number of at least 0"),
            ("weight_decay", weight_decay, f64::INFINITY, "a finite number of at least 0"),
            ("clip_norm", clip_norm, f64::INFINITY, "a finite number of at least 0, which is no limit"),
            ("balance_loss", balance_loss, f64::INFINITY, "a finite number of at least 0"),
        ] {
            if !(0.0..bound).contains(&value) {
                return Err(ConfigError::value(file, format!("{place}{field}"), value, expected));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_refused() {
        let good = Training::default();
        good.check("s.toml", "training.").unwrap();
        let check = |training: Training, expected: &str| {
            let error = training.check("s.toml", "training.").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(Training { learning_rate: f64::NAN, ..good }, "s.toml: training.learning_rate = NaN: expected a finite");
        check(Training { learning_rate: f64::INFINITY, ..good }, "training.learning_rate = inf");
        check(Training { clip_norm: -1.0, ..good }, "training.clip_norm = -1");
        check(Training { beta2: 1.0, ..good }, "training.beta2 = 1: expected a number of at least 0 and below 1");
    }
}
