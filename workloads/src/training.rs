//! How a model is trained: the optimizer's constants and the weight of the gate's balance loss.

use serde::{Deserialize, Serialize};

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
        }
    }
}
