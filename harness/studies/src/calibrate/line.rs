//! A time as a line over a number of units: a start that is never negative, and a time per unit.

use workloads::measured::Line;

/// The line whose relative distances from `points`, units and times, are least in the sum of squares. Of points that all have the same
/// number of units: a time per unit alone. Of points that take no time: nothing. None of no points, or where only some take time.
pub fn fit(points: &[(f64, f64)]) -> Option<Line> {
    if !points.is_empty() && points.iter().all(|&(_, time)| time == 0.0) {
        return Some(Line { start: 0.0, unit: 0.0, error: None });
    }
    let weighted = |of: &dyn Fn(f64, f64) -> f64| points.iter().map(|&(x, t)| of(x, t)).sum::<f64>();
    // The sum of ((a + b x) / t - 1)^2.
    let (aa, ab, bb) =
        (weighted(&|_, t| 1.0 / (t * t)), weighted(&|x, t| x / (t * t)), weighted(&|x, t| x * x / (t * t)));
    let (a, b) = (weighted(&|_, t| 1.0 / t), weighted(&|x, t| x / t));
    let determinant = aa * bb - ab * ab;
    let [mut start, mut unit] = match determinant > 1e-9 * aa * bb {
        true => [(a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant],
        false => [0.0, b / bb],
    };
    if start < 0.0 {
        [start, unit] = [0.0, b / bb];
    } else if unit < 0.0 {
        [start, unit] = [a / aa, 0.0];
    }
    let line = Line { start, unit, error: None };
    let error = distance(line, points)?;
    (start.is_finite() && unit.is_finite()).then_some(Line { error: Some(error), ..line })
}

/// The largest distance of a point from the line, as a share of its time; none of no points.
pub fn distance(line: Line, points: &[(f64, f64)]) -> Option<f64> {
    points.iter().map(|&(units, time)| (line.of(units) / time - 1.0).abs()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_again_and_never_start_below_nothing() {
        let of = |line: Option<Line>| line.map(|line| (line.start, line.unit)).unwrap();
        let near = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).abs() < 1e-9 && (b - d).abs() < 1e-9;
        assert!(near(of(fit(&[(1.0, 5.0), (2.0, 7.0), (10.0, 23.0)])), (3.0, 2.0)));
        assert!(near(of(fit(&[(4.0, 8.0), (4.0, 8.0)])), (0.0, 2.0)), "one number of units says nothing of a start");
        let steep = fit(&[(1.0, 1.0), (2.0, 4.0)]).unwrap();
        assert!(steep.start == 0.0 && steep.unit > 1.0 && steep.error.unwrap() > 0.1);
        let falling = fit(&[(1.0, 4.0), (2.0, 1.0)]).unwrap();
        assert!(falling.unit == 0.0 && falling.start > 1.0);
        assert_eq!(of(fit(&[(1.0, 0.0), (2.0, 0.0)])), (0.0, 0.0));
        assert_eq!((fit(&[]), fit(&[(1.0, 0.0), (2.0, 1.0)])), (None, None));
    }
}
