//! From measurements to a cluster's constants: the least squares of relative errors, with bounds.
//!
//! The residuals are `ln(predicted / measured)`, predictions being those of the simulator itself, so every constant has one
//! meaning in fit and use. Residuals beyond [`SOFT`] count linearly (soft L1), so that no single configuration decides.
//! [`constants`] says which constants can be fitted and within which bounds, [`levenberg`] finds them and how far they are
//! determined, [`targets`] holds the measurements, [`write`] puts the result into a cluster's TOML.

pub mod constants;
pub mod levenberg;
pub mod targets;
pub mod write;

use anyhow::{Result, bail};

use constants::{Fitted, Point};
use targets::Targets;

/// Relative errors well below this count as squares, well above as absolute values.
pub const SOFT: f64 = 0.1;

/// Fits `names` to the targets, starting from `start`; all other constants stay.
///
/// # Errors
/// Fewer measurements than constants, a prediction that fails, or a constant that the measurements do not touch.
pub fn fit(start: &Point, names: &[String], targets: &Targets) -> Result<(Point, Vec<Fitted>)> {
    if targets.len() < names.len() {
        bail!("{} constants cannot be fitted to {} measurements", names.len(), targets.len());
    }
    let space = constants::Space::new(start, names)?;
    let residuals = |x: &[f64]| -> Result<Vec<f64>> {
        let point = space.point(start, x)?;
        Ok(targets.residuals(&point)?.into_iter().map(soft).collect())
    };
    let solution = levenberg::minimise(&residuals, space.start())?;
    let point = space.point(start, &solution.x)?;
    Ok((point, space.fitted(&solution)))
}

/// `sign(r) s sqrt(2 (sqrt(1 + (r/s)^2) - 1))`: its square is the soft L1 loss of `r`.
fn soft(r: f64) -> f64 {
    r.signum() * SOFT * (2.0 * ((1.0 + (r / SOFT).powi(2)).sqrt() - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::soft;

    #[test]
    fn soft_is_a_square_first_and_a_line_later() {
        assert!((soft(1e-4) - 1e-4).abs() < 1e-9);
        assert!((soft(-10.0).powi(2) / 2.0 / 0.1 - 10.0).abs() < 0.11);
    }
}
