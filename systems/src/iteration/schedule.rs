//! The order of micro-batches on a pipeline stage: one forward, one backward (Narayanan et al. 2021, PipeDream-Flush), not
//! interleaved.

use serde::{Deserialize, Serialize};

/// One pass of one micro-batch through a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Forward pass of a micro-batch.
    Forward(usize),
    /// Backward pass of a micro-batch.
    Backward(usize),
}

/// The order on stage `stage` of `pp` for `micro_batches`: as many forwards as stages follow, then in turn, then the rest
/// of the backwards.
pub fn one_forward_one_backward(pp: usize, stage: usize, micro_batches: usize) -> Vec<Work> {
    let ahead = (pp - stage - 1).min(micro_batches);
    let mut order: Vec<Work> = (0..ahead).map(Work::Forward).collect();
    for m in ahead..micro_batches {
        order.push(Work::Forward(m));
        order.push(Work::Backward(m - ahead));
    }
    order.extend((micro_batches - ahead..micro_batches).map(Work::Backward));
    order
}

#[cfg(test)]
mod tests {
    use super::Work::{Backward as B, Forward as F};
    use super::*;

    #[test]
    fn orders_are_those_of_the_textbook() {
        let check = |stage, expected: &[Work]| {
            assert_eq!(one_forward_one_backward(3, stage, 3), expected);
        };
        check(0, &[F(0), F(1), F(2), B(0), B(1), B(2)]);
        check(1, &[F(0), F(1), B(0), F(2), B(1), B(2)]);
        check(2, &[F(0), B(0), F(1), B(1), F(2), B(2)]);
    }

    #[test]
    fn few_micro_batches_still_run_once_each() {
        assert_eq!(one_forward_one_backward(4, 0, 2), [F(0), F(1), B(0), B(1)]);
    }
}
