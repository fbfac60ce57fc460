//! The order of micro-batches on a pipeline stage: one forward, one backward (Narayanan et al. 2021, PipeDream-Flush), and its
//! interleaved form with several chunks of the model on a stage (Narayanan et al., SC'21, section 2.2.2).

use serde::{Deserialize, Serialize};

/// One pass of one micro-batch through a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Forward pass of a micro-batch.
    Forward(usize),
    /// Backward pass of a micro-batch.
    Backward(usize),
}

/// One pass, and which of the stage's chunks it is through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Among the chunks of the stage.
    pub chunk: usize,
    /// The pass.
    pub work: Work,
    /// Whether it stands in a pair of a forward and a backward pass of different micro-batches, which do not wait for each
    /// other.
    pub paired: bool,
}

/// A stage's place in its pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Stages.
    pub pp: usize,
    /// Chunks of the model on each of them.
    pub vp: usize,
    /// The stage.
    pub stage: usize,
}

impl Position {
    /// Passes that run forward before the first one backward. With chunks, micro-batches come in rounds of `pp`, and a round
    /// passes all chunks before the next.
    pub fn ahead(&self, micro_batches: usize) -> usize {
        let Self { pp, vp, stage } = *self;
        let ahead = if vp == 1 { pp - stage - 1 } else { 2 * (pp - stage - 1) + (vp - 1) * pp };
        ahead.min(micro_batches * vp)
    }

    /// The order of `micro_batches`, a multiple of `pp` where there are several chunks: `more` forward passes than needed
    /// before the first backward pass, then one of each in turn, then the rest of the backward passes.
    pub fn turns(&self, micro_batches: usize, more: usize) -> Vec<Turn> {
        let Self { pp, vp, .. } = *self;
        let passes = micro_batches * vp;
        let ahead = (self.ahead(micro_batches) + more).min(passes);
        let at = |pass: usize| {
            let (round, within) = (pass / (pp * vp), pass % (pp * vp));
            if vp == 1 { (0, pass) } else { (within / pp, round * pp + within % pp) }
        };
        let forward = |pass, paired| {
            let (chunk, m) = at(pass);
            Turn { chunk, work: Work::Forward(m), paired }
        };
        let backward = |pass, paired| {
            let (chunk, m) = at(pass);
            Turn { chunk: vp - 1 - chunk, work: Work::Backward(m), paired }
        };
        // A micro-batch cannot run backward beside its own forward pass.
        let paired = ahead > 0;
        let mut order: Vec<Turn> = (0..ahead).map(|pass| forward(pass, false)).collect();
        for pass in ahead..passes {
            order.push(forward(pass, paired));
            order.push(backward(pass - ahead, paired));
        }
        order.extend((passes - ahead..passes).map(|pass| backward(pass, false)));
        order
    }
}

/// The order on stage `stage` of `pp` for `micro_batches`, without chunks: as many forwards as stages follow, then in turn, then
/// the rest of the backwards.
pub fn one_forward_one_backward(pp: usize, stage: usize, micro_batches: usize) -> Vec<Work> {
    Position { pp, vp: 1, stage }.turns(micro_batches, 0).into_iter().map(|turn| turn.work).collect()
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

    /// Two stages of two chunks, four micro-batches: the order of the paper's figure 4 in small.
    #[test]
    fn chunks_are_passed_in_rounds() {
        let shown = |stage, more| -> Vec<String> {
            let turns = Position { pp: 2, vp: 2, stage }.turns(4, more);
            let show = |turn: Turn| match turn.work {
                F(m) => format!("F{}.{m}", turn.chunk),
                B(m) => format!("B{}.{m}", turn.chunk),
            };
            turns.into_iter().map(show).collect()
        };
        let last = "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 F0.2 B0.0 F0.3 B0.1 F1.2 B1.2 F1.3 B1.3 B0.2 B0.3";
        assert_eq!(shown(1, 0).join(" "), last);
        let first = "F0.0 F0.1 F1.0 F1.1 F0.2 B1.0 F0.3 B1.1 F1.2 B0.0 F1.3 B0.1 B1.2 B1.3 B0.2 B0.3";
        assert_eq!(shown(0, 0).join(" "), first);
        assert_eq!(shown(1, 1)[..5].join(" "), "F0.0 F0.1 F1.0 F1.1 B1.0");
    }

    #[test]
    fn every_pass_runs_once_and_forward_before_backward() {
        for (pp, vp, micro_batches) in [(1, 1, 3), (4, 1, 2), (4, 1, 9), (2, 3, 6), (4, 2, 4), (3, 4, 9)] {
            for (stage, more) in (0..pp).flat_map(|stage| [(stage, 0), (stage, 1)]) {
                let turns = Position { pp, vp, stage }.turns(micro_batches, more);
                assert_eq!(turns.len(), 2 * vp * micro_batches);
                for chunk in 0..vp {
                    for m in 0..micro_batches {
                        let at = |work| turns.iter().position(|turn| (turn.chunk, turn.work) == (chunk, work)).unwrap();
                        assert!(at(F(m)) < at(B(m)));
                    }
                }
            }
        }
    }
}
