//! Whole entries in proportion to weights: the largest-remainder method, with a ceiling for every expert.
//!
//! Rescaling does this for every row of every iteration, so it sorts nothing: quotients come from one fixed-point
//! multiplication, and the remainders that are rounded up from bisection on their size.

/// Reusable room for [`Apportion::share`].
#[derive(Default)]
pub(super) struct Apportion {
    rest: Vec<u32>,
    capped: Vec<bool>,
    shares: Vec<u32>,
    remainders: Vec<i32>,
}

impl Apportion {
    /// Writes to `out` whole shares of `target` in proportion to `weights`, none above `cap`.
    ///
    /// What a ceiling cuts off goes to the others in proportion, evenly where they weigh nothing. Largest remainders
    /// are rounded up, the lowest expert first among equal ones. Requires `target <= cap * out.len()`, and weights
    /// that sum to at most 2^30.
    pub(super) fn share(&mut self, weights: &[u32], target: u32, cap: u32, out: &mut [u32]) {
        let (sum, max) = weights.iter().fold((0, 0), |(sum, max), &w| (sum + w, max.max(w)));
        if sum == 0 || u64::from(max) * u64::from(target) > u64::from(cap) * u64::from(sum) {
            self.share_capped(weights, target, cap, out);
        } else if sum == target {
            out.copy_from_slice(weights);
        } else {
            proportion(weights, sum, target, out, &mut self.remainders);
        }
    }

    fn share_capped(&mut self, weights: &[u32], target: u32, cap: u32, out: &mut [u32]) {
        let Self { rest, capped, shares, remainders } = self;
        rest.clear();
        rest.extend_from_slice(weights);
        capped.clear();
        capped.resize(weights.len(), false);
        shares.resize(weights.len(), 0);
        let mut left = target;
        loop {
            let mut sum = rest.iter().sum::<u32>();
            if sum == 0 && left > 0 {
                for (weight, &capped) in rest.iter_mut().zip(&*capped) {
                    *weight = u32::from(!capped);
                    sum += *weight;
                }
            }
            let limit = u64::from(cap) * u64::from(sum);
            let before = left;
            for (weight, capped) in rest.iter_mut().zip(&mut *capped) {
                if u64::from(*weight) * u64::from(before) > limit {
                    *weight = 0;
                    *capped = true;
                    left -= cap;
                }
            }
            if left == before {
                shares.fill(0);
                if left > 0 {
                    proportion(rest, sum, left, shares, remainders);
                }
                break;
            }
        }
        for ((out, &share), &capped) in out.iter_mut().zip(&*shares).zip(&*capped) {
            *out = if capped { cap } else { share };
        }
    }
}

/// Largest-remainder shares of `target` for weights that sum to `sum > 0`.
fn proportion(weights: &[u32], sum: u32, target: u32, out: &mut [u32], remainders: &mut Vec<i32>) {
    remainders.resize(weights.len(), 0);
    // Without the powers of 2 that both have, remainders spread over fewer values and bisection is shorter.
    let shift = (sum | target).trailing_zeros();
    let (total, sum, target) = (target, sum >> shift, target >> shift);
    // target / sum as a whole number and a fraction of 2^32, both in 32 bits: loops over them become vector code.
    let whole = target / sum;
    let fraction = ((u64::from(target % sum) << 32) / u64::from(sum)) as u32;
    let mut given = 0;
    for ((&weight, out), remainder) in weights.iter().zip(&mut *out).zip(&mut *remainders) {
        // The fixed-point quotient is the floor or one less; the remainder, below 2 * sum and so exact in spite of
        // wrapping, tells which.
        let scaled = ((u64::from(weight) * u64::from(fraction)) >> 32) as u32;
        let quotient = weight.wrapping_mul(whole).wrapping_add(scaled);
        let rest = weight.wrapping_mul(target).wrapping_sub(quotient.wrapping_mul(sum)) as i32;
        let one_less = rest >= sum as i32;
        *out = quotient + u32::from(one_less);
        *remainder = rest - if one_less { sum as i32 } else { 0 };
        given += *out;
    }
    if given < total {
        round_up(remainders, sum as i32, (total - given) as i32, out);
    }
}

/// Adds one to the `short` experts of largest remainder; remainders are in `0..sum`, and `short` is below their number.
fn round_up(remainders: &[i32], sum: i32, short: i32, out: &mut [u32]) {
    let at_least = |bound: i32| remainders.iter().map(|&r| i32::from(r >= bound)).sum::<i32>();
    // Invariant: more than `short` remainders reach `low`, at most `short` (`reached`) reach `high`.
    let (mut low, mut high, mut reached) = (0, sum, 0);
    while high - low > 1 && reached < short {
        let middle = low + (high - low) / 2;
        let count = at_least(middle);
        let fits = count <= short;
        // Selections, not branches: which way it goes cannot be predicted.
        high = std::hint::select_unpredictable(fits, middle, high);
        reached = std::hint::select_unpredictable(fits, count, reached);
        low = std::hint::select_unpredictable(fits, low, middle);
    }
    for (out, &remainder) in out.iter_mut().zip(remainders) {
        *out += u32::from(remainder >= high);
    }
    if reached < short {
        let ties = out.iter_mut().zip(remainders).filter(|&(_, &remainder)| remainder == high - 1);
        ties.take((short - reached) as usize).for_each(|(out, _)| *out += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    fn check(weights: &[u32], target: u32, cap: u32, expected: &[u32]) {
        let mut out = vec![9; weights.len()];
        Apportion::default().share(weights, target, cap, &mut out);
        assert_eq!(out, expected, "{weights:?} to {target}, at most {cap}");
    }

    #[test]
    fn shares_by_largest_remainder() {
        check(&[3, 1, 4], 8, 8, &[3, 1, 4]);
        check(&[1, 1, 1], 4, 4, &[2, 1, 1]);
        check(&[1, 1, 1], 5, 4, &[2, 2, 1]);
        check(&[5, 3, 2], 7, 7, &[4, 2, 1]);
        check(&[0, 7, 0], 3, 3, &[0, 3, 0]);
    }

    #[test]
    fn passes_on_what_a_ceiling_cuts_off() {
        check(&[8, 1, 1], 8, 4, &[4, 2, 2]);
        check(&[8, 3, 1], 8, 4, &[4, 3, 1]);
        check(&[8, 0, 0], 8, 4, &[4, 2, 2]);
        check(&[9, 9, 1, 1], 16, 5, &[5, 5, 3, 3]);
        check(&[0, 0, 0, 0], 6, 3, &[2, 2, 1, 1]);
        check(&[7, 1], 8, 4, &[4, 4]);
    }

    /// The same by sorting, in exact fractions.
    fn slow(weights: &[u32], target: u32) -> Vec<u32> {
        let sum = weights.iter().map(|&w| u64::from(w)).sum::<u64>();
        let scaled = weights.iter().map(|&w| u64::from(w) * u64::from(target)).collect::<Vec<_>>();
        let mut out = scaled.iter().map(|&x| (x / sum) as u32).collect::<Vec<_>>();
        let mut order = (0..weights.len()).collect::<Vec<_>>();
        order.sort_by_key(|&e| (std::cmp::Reverse(scaled[e] % sum), e));
        let short = target - out.iter().sum::<u32>();
        order.iter().take(short as usize).for_each(|&e| out[e] += 1);
        out
    }

    #[test]
    fn agrees_with_sorting() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for round in 0..5000 {
            let experts = 1 + rng.next_u32() as usize % 70;
            let bits = 1 + round % 22;
            let mut weights = (0..experts).map(|_| rng.next_u32() % (1 << bits)).collect::<Vec<_>>();
            weights[0] += 1;
            let target = 1 + rng.next_u32() % (1 << (1 + round % 29));
            check(&weights, target, target, &slow(&weights, target));
        }
    }

    #[test]
    fn holds_sum_and_ceiling() {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        for _ in 0..5000 {
            let experts = 4 + rng.next_u32() as usize % 30;
            let weights = (0..experts).map(|_| rng.next_u32() >> (12 + rng.next_u32() % 20)).collect::<Vec<_>>();
            let (target, cap) = (4096, 1024 + rng.next_u32() % 3072);
            let mut out = vec![0; experts];
            Apportion::default().share(&weights, target, cap, &mut out);
            assert_eq!(out.iter().sum::<u32>(), target);
            assert!(out.iter().all(|&x| x <= cap), "{weights:?} at most {cap}: {out:?}");
        }
    }
}
