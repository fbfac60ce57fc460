//! A time as a line over a number of units: a start that is never negative, and a time per unit.

use workloads::measured::Line;

use super::levenberg;

/// The line whose relative distances from `points`, units and times, are least in the sum of squares. Of points that all have the same
/// number of units: a time per unit alone. Of points that take no time: nothing. None of no points, or where only some take time.
pub fn fit(points: &[(f64, f64)]) -> Option<Line> {
    best(&points.iter().map(|&(units, time)| [1.0, units, time]).collect::<Vec<_>>(), false)
}

/// The same of experts that run together: `points` are how many did, their rows in all, and the time. A call's own part is told from
/// that of each expert where points differ in how many there are; otherwise all of it is theirs.
pub fn fit_together(points: &[[f64; 3]]) -> Option<Line> {
    best(points, points.iter().any(|&[experts, ..]| experts != points[0][0]))
}

/// Of starts, units in all, and time: the best line of some of the parts, none of them below nothing; of two that are as good, that of fewer. A
/// call has a part only if that is asked for.
fn best(points: &[[f64; 3]], with_call: bool) -> Option<Line> {
    if !points.is_empty() && points.iter().all(|&[.., time]| time == 0.0) {
        return Some(Line::default());
    }
    let distances =
        |line: Line| points.iter().map(move |&[experts, rows, time]| line.of_several(experts, rows) / time - 1.0);
    let squares = |line: Line| distances(line).map(|distance| distance * distance).sum::<f64>();
    let mut best: Option<(Line, f64)> = None;
    for parts in PARTS {
        if parts.contains(&CALL) && !with_call {
            continue;
        }
        let Some(line) = least_squares(points, parts) else { continue };
        let found = squares(line);
        if best.is_none_or(|(_, least)| found < (1.0 - 1e-6) * least - 1e-18) {
            best = Some((line, found));
        }
    }
    let (line, _) = best?;
    let error = distances(line).map(f64::abs).reduce(f64::max)?;
    error.is_finite().then_some(Line { error: Some(error), ..line })
}

/// The parts of a line: for each row, for each expert, for a call.
const UNIT: usize = 0;
const START: usize = 1;
const CALL: usize = 2;
const PARTS: [&[usize]; 7] =
    [&[UNIT], &[START], &[CALL], &[UNIT, START], &[UNIT, CALL], &[START, CALL], &[UNIT, START, CALL]];

/// The line of these parts whose relative distances are least in the sum of squares, if none of them is below nothing.
fn least_squares(points: &[[f64; 3]], parts: &[usize]) -> Option<Line> {
    let rows =
        points.iter().map(|&[experts, rows, time]| parts.iter().map(move |&part| [rows, experts, 1.0][part] / time));
    let rows: Vec<Vec<f64>> = rows.map(Iterator::collect).collect();
    let sum = |of: &dyn Fn(&[f64]) -> f64| rows.iter().map(|row| of(row)).sum::<f64>();
    // Columns of length 1, so that none is lost beside another.
    let length: Vec<f64> = (0..parts.len()).map(|i| sum(&|row| row[i] * row[i]).sqrt()).collect();
    let pairs = (0..parts.len()).flat_map(|i| (0..parts.len()).map(move |j| (i, j)));
    let matrix = pairs.map(|(i, j)| sum(&|row| row[i] * row[j]) / (length[i] * length[j])).collect();
    let right = (0..parts.len()).map(|i| sum(&|row| row[i]) / length[i]).collect();
    let found = levenberg::solve(matrix, right)?;
    let mut line = [0.0; 3];
    parts.iter().zip(found).zip(length).for_each(|((&part, found), length)| line[part] = found / length);
    let [unit, start, call] = line;
    line.iter().all(|&part| part >= 0.0 && part.is_finite()).then_some(Line { start, unit, call, error: None })
}

/// The largest distance of a point from the line, as a share of its time; none of no points.
pub fn distance(line: Line, points: &[(f64, f64)]) -> Option<f64> {
    points.iter().map(|&(units, time)| (line.of(units) / time - 1.0).abs()).reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_from_experts() {
        let line = Line { call: 5.0, start: 2.0, unit: 0.5, error: None };
        let points = |experts: &[f64]| -> Vec<[f64; 3]> {
            let sizes = experts.iter().flat_map(|&experts| [10.0, 20.0, 40.0].map(|rows| (experts, rows)));
            sizes.map(|(experts, rows)| [experts, rows, line.of_several(experts, rows)]).collect()
        };
        let parts = |line: Line| [line.call, line.start, line.unit];
        let near = |found: [f64; 3], expected: [f64; 3]| found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(near(parts(fit_together(&points(&[4.0, 8.0])).unwrap()), [5.0, 2.0, 0.5]));
        let alike = fit_together(&points(&[4.0])).unwrap();
        assert!(near(parts(alike), [0.0, 2.0 + 5.0 / 4.0, 0.5]) && alike.error.unwrap() < 1e-9);
        // Twice as many take less: none of it is below nothing.
        let less = [[4.0, 10.0, 8.0], [8.0, 10.0, 6.0], [4.0, 20.0, 12.0]];
        assert!(parts(fit_together(&less).unwrap()).iter().all(|&part| part >= 0.0));
        assert_eq!(parts(fit_together(&[[4.0, 1.0, 0.0], [4.0, 2.0, 0.0]]).unwrap()), [0.0; 3]);
        assert_eq!((fit_together(&[]), fit_together(&[[4.0, 1.0, 0.0], [4.0, 2.0, 1.0]])), (None, None));
    }

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
