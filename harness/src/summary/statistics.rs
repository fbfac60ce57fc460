//! Statistics of samples: medians with distribution-free confidence intervals.
//!
//! The interval of a median comes from order statistics (Conover 1999, section 3.2): ranks `n/2 ∓ 0.98 sqrt(n)` bound the
//! median with 95% confidence, whatever the distribution. No sample is dropped as an outlier.

/// A median and its 95% confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Median {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// The median of the samples, or none of no samples.
pub fn median(samples: &[f64]) -> Option<Median> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let last = n.checked_sub(1)?;
    let half_width = 0.98 * (n as f64).sqrt();
    let low = (n as f64 / 2.0 - half_width).floor().max(0.0) as usize;
    let high = ((n as f64 / 2.0 + half_width).ceil() as usize).min(last);
    Some(Median { value: (sorted[last / 2] + sorted[n / 2]) / 2.0, low: sorted[low.min(last)], high: sorted[high] })
}

/// How much faster than `reference`: the ratio of medians, with the extremes that the two intervals allow.
pub fn speedup(reference: &Median, system: &Median) -> Median {
    Median {
        value: reference.value / system.value,
        low: reference.low / system.high,
        high: reference.high / system.low,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_known_samples() {
        let check = |samples: &[f64], expected: f64| {
            assert_eq!(median(samples).map(|m| m.value), Some(expected));
        };
        check(&[3.0], 3.0);
        check(&[4.0, 1.0], 2.5);
        check(&[5.0, 1.0, 3.0], 3.0);
        assert_eq!(median(&[]), None);
    }

    /// For 100 samples the ranks are 40 and 60.
    #[test]
    fn intervals_are_order_statistics() {
        let samples: Vec<f64> = (0..100).map(f64::from).collect();
        let m = median(&samples).unwrap();
        assert_eq!((m.low, m.value, m.high), (40.0, 49.5, 60.0));
    }

    #[test]
    fn speedups_carry_both_uncertainties() {
        let slow = Median { value: 4.0, low: 3.0, high: 5.0 };
        let fast = Median { value: 2.0, low: 1.0, high: 2.5 };
        let s = speedup(&slow, &fast);
        assert_eq!((s.value, s.low, s.high), (2.0, 1.2, 5.0));
    }
}
