//! Least squares by Levenberg (1944) and Marquardt (1963), damping as by Marquardt: the diagonal of `J^T J`, divided by 3
//! after a step that helps and multiplied by 4 until one does. The Jacobian is numeric, by forward differences.

use anyhow::{Result, bail};

/// Relative step of the forward differences, in units of a parameter that is of order 1.
const STEP: f64 = 1e-3;
const ITERATIONS: usize = 30;
/// A relative gain below this ends the search.
const ENOUGH: f64 = 1e-5;

/// Where the sum of squares is least.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    pub x: Vec<f64>,
    /// Sum of squared residuals.
    pub cost: f64,
    /// Covariance of the parameters, `cost / (n - p) (J^T J)^-1`, flat; infinite on the diagonal where the residuals do not
    /// depend on a parameter.
    pub covariance: Vec<f64>,
}

/// Minimises the sum of squares of `residuals` from `start` on.
///
/// # Errors
/// What `residuals` says, or a start where they are not finite.
pub fn minimise(residuals: &dyn Fn(&[f64]) -> Result<Vec<f64>>, start: Vec<f64>) -> Result<Solution> {
    let mut x = start;
    let mut r = residuals(&x)?;
    let mut cost = square(&r);
    if !cost.is_finite() {
        bail!("the fit begins where a prediction is not finite");
    }
    let mut damping = 1e-2;
    let mut normal = Normal::new(residuals, &x, &r)?;
    for _ in 0..ITERATIONS {
        let Some((next, next_r, next_cost)) = descend(residuals, &x, &normal, cost, &mut damping)? else { break };
        let gain = (cost - next_cost) / cost.max(f64::MIN_POSITIVE);
        (x, r, cost) = (next, next_r, next_cost);
        normal = Normal::new(residuals, &x, &r)?;
        if gain < ENOUGH {
            break;
        }
    }
    let freedom = r.len().saturating_sub(x.len()).max(1) as f64;
    let covariance = normal.inverse().into_iter().map(|value| value * cost / freedom).collect();
    Ok(Solution { x, cost, covariance })
}

type Step = (Vec<f64>, Vec<f64>, f64);

/// The first step that lowers the cost, with growing damping; none when no step does.
fn descend(
    residuals: &dyn Fn(&[f64]) -> Result<Vec<f64>>,
    x: &[f64],
    normal: &Normal,
    cost: f64,
    damping: &mut f64,
) -> Result<Option<Step>> {
    while *damping < 1e8 {
        if let Some(step) = normal.step(*damping) {
            let next: Vec<f64> = x.iter().zip(&step).map(|(x, step)| x + step.clamp(-2.0, 2.0)).collect();
            let r = residuals(&next)?;
            let next_cost = square(&r);
            if next_cost < cost {
                *damping /= 3.0;
                return Ok(Some((next, r, next_cost)));
            }
        }
        *damping *= 4.0;
    }
    Ok(None)
}

fn square(r: &[f64]) -> f64 {
    r.iter().map(|r| r * r).sum()
}

/// The normal equations at a point: `J^T J` and `J^T r`.
struct Normal {
    size: usize,
    matrix: Vec<f64>,
    gradient: Vec<f64>,
}

impl Normal {
    fn new(residuals: &dyn Fn(&[f64]) -> Result<Vec<f64>>, x: &[f64], r: &[f64]) -> Result<Self> {
        let mut columns = Vec::with_capacity(x.len());
        for index in 0..x.len() {
            let mut moved = x.to_vec();
            moved[index] += STEP;
            let there = residuals(&moved)?;
            columns.push(there.iter().zip(r).map(|(there, here)| (there - here) / STEP).collect::<Vec<f64>>());
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let matrix = columns.iter().flat_map(|a| columns.iter().map(|b| dot(a, b)).collect::<Vec<_>>()).collect();
        let gradient = columns.iter().map(|column| dot(column, r)).collect();
        Ok(Self { size: x.len(), matrix, gradient })
    }

    /// `-(J^T J + damping diag)^-1 J^T r`.
    fn step(&self, damping: f64) -> Option<Vec<f64>> {
        let mut matrix = self.matrix.clone();
        for i in 0..self.size {
            let diagonal = &mut matrix[i * self.size + i];
            *diagonal += damping * diagonal.max(1e-12);
        }
        let right: Vec<f64> = self.gradient.iter().map(|g| -g).collect();
        solve(matrix, right)
    }

    /// `(J^T J)^-1`, flat; rows and columns of parameters that do not matter are left out of the inversion.
    fn inverse(&self) -> Vec<f64> {
        let n = self.size;
        let known: Vec<usize> = (0..n).filter(|i| self.matrix[i * n + i] > 1e-12).collect();
        let mut inverse = vec![0.0; n * n];
        (0..n).for_each(|i| inverse[i * n + i] = f64::INFINITY);
        let reduced: Vec<f64> =
            known.iter().flat_map(|i| known.iter().map(|j| self.matrix[i * n + j]).collect::<Vec<_>>()).collect();
        for (column, &i) in known.iter().enumerate() {
            let unit: Vec<f64> = (0..known.len()).map(|row| f64::from(row == column)).collect();
            let Some(solved) = solve(reduced.clone(), unit) else { continue };
            for (&j, value) in known.iter().zip(solved) {
                inverse[j * n + i] = value;
            }
        }
        inverse
    }
}

/// Solves `matrix y = right` by elimination with row pivots; none when it is singular.
pub(super) fn solve(mut matrix: Vec<f64>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let n = right.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| matrix[a * n + column].abs().total_cmp(&matrix[b * n + column].abs()))?;
        if matrix[pivot * n + column].abs() < 1e-300 {
            return None;
        }
        for k in 0..n {
            matrix.swap(pivot * n + k, column * n + k);
        }
        right.swap(pivot, column);
        for row in column + 1..n {
            let factor = matrix[row * n + column] / matrix[column * n + column];
            for k in column..n {
                matrix[row * n + k] -= factor * matrix[column * n + k];
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| matrix[row * n + k] * right[k]).sum();
        right[row] = (right[row] - known) / matrix[row * n + row];
    }
    Some(right)
}
