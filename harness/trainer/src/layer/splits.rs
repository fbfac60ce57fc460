//! The input and output splits of every all-to-all of a layer program on one rank.
//!
//! Pure arithmetic on counts through [`Rows`], which the simulator prices too. A rank's rows lie in the order
//! `[step][call][owner][slot]`, so that each all-to-all sends one contiguous piece. The rows of shadowed experts follow; they
//! stay on the rank.

use systems::program::{Exchange, LayerProgram, Rows};
use systems::{Placement, RoutingCounts};

use crate::layer::hierarchical::Hierarchical;

/// One all-to-all of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Split {
    /// First row of the piece that is sent.
    pub(super) first: usize,
    /// `[rank]`: rows sent.
    pub(super) input: Vec<usize>,
    /// `[rank]`: rows received.
    pub(super) output: Vec<usize>,
    /// The slots of this rank that it serves.
    pub(super) slots: std::ops::Range<usize>,
    /// `[source][slot]`: rows received.
    pub(super) by_slot: Vec<Vec<usize>>,
}

/// This rank's own rows of a shadowed expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShadowRows {
    pub(super) expert: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
}

/// Rows of an expert that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) expert: usize,
    pub(super) first: usize,
    pub(super) rows: usize,
}

/// The rows of one rank under one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    /// `[step][call]`.
    pub(super) steps: Vec<Vec<Split>>,
    /// Where the rows of experts are, by expert; those of one with several copies in as many pieces.
    pub(super) pieces: Vec<Piece>,
    /// In the order of the program.
    pub(super) shadows: Vec<ShadowRows>,
    /// The two hops of a hierarchical exchange across nodes.
    pub(super) hierarchical: Option<Hierarchical>,
    /// Number of rows.
    pub(super) rows: usize,
    /// Rows of an entry: one for each part that its expert is cut into.
    pub(super) parts: usize,
}

impl Splits {
    /// Whether rows lie expert after expert in the order of numbers, without gaps, where this rank has `own[expert]` entries.
    pub(super) fn follow_experts(&self, own: &[u32]) -> bool {
        let follows = self.pieces.iter().try_fold(0, |next, piece| (piece.first == next).then_some(next + piece.rows));
        follows == Some(self.rows) && own.iter().map(|&entries| entries as usize).sum::<usize>() == self.rows
    }

    /// Whether rows of an expert go to several slots.
    pub(super) fn has_copies(&self) -> bool {
        self.pieces.windows(2).any(|pair| pair[0].expert == pair[1].expert)
    }

    /// The splits of rank `me` of the group; `nodes[rank]` ascend.
    pub(super) fn new(
        program: &LayerProgram,
        counts: &RoutingCounts,
        placement: &Placement,
        nodes: &[usize],
        me: usize,
    ) -> Self {
        let rows = Rows::new(program, counts, placement);
        let slots = placement.slots_per_rank();
        let calls = match program.exchange {
            Exchange::PerExpert => slots,
            Exchange::Whole | Exchange::Hierarchical | Exchange::OncePerNode { .. } => 1,
        };
        let width = slots / calls;
        let ranges: Vec<std::ops::Range<usize>> = (0..calls).map(|call| call * width..(call + 1) * width).collect();
        let (mut pieces, mut next) = (Vec::with_capacity(counts.experts()), 0);
        let mut steps = Vec::with_capacity(program.steps);
        for step in 0..program.steps {
            let splits = ranges.iter().map(|range| {
                let mut split = Split { first: next, slots: range.clone(), ..Split::default() };
                for owner in 0..rows.ranks() {
                    let meets = rows.step(me, owner) == step;
                    let start = next;
                    for slot in range.clone().filter(|_| meets) {
                        let number = rows.sent(me, owner, slot) as usize;
                        let expert = rows.experts_of(owner)[slot].filter(|_| number > 0);
                        pieces.extend(expert.map(|expert| Piece { expert, first: next, rows: number }));
                        next += number;
                    }
                    split.input.push(next - start);
                }
                for source in 0..rows.ranks() {
                    let meets = rows.step(source, me) == step;
                    let sent = |slot| if meets { rows.sent(source, me, slot) as usize } else { 0 };
                    let by_slot: Vec<usize> = range.clone().map(sent).collect();
                    split.output.push(by_slot.iter().sum());
                    split.by_slot.push(by_slot);
                }
                split
            });
            steps.push(splits.collect());
        }
        let mut shadows = Vec::with_capacity(program.shadowed.len());
        for &expert in &program.shadowed {
            let number = rows.shadowed(me, expert) as usize;
            pieces.push(Piece { expert, first: next, rows: number });
            shadows.push(ShadowRows { expert, first: next, rows: number });
            next += number;
        }
        pieces.sort_by_key(|piece| piece.expert);
        let crosses_nodes = nodes.first() != nodes.last();
        let hierarchical = (program.exchange == Exchange::Hierarchical && crosses_nodes)
            .then(|| Hierarchical::new(program, counts, placement, nodes, me));
        Self { steps, pieces, shadows, hierarchical, rows: next, parts: program.parts(placement) }
    }

    /// The rows of every choice, `[choice * parts]` in the order of choices; none where it was dropped. The first choices of an expert
    /// take its first piece; of an expert in parts, all choices take all pieces.
    pub(super) fn positions(&self, choices: &[Option<usize>]) -> Vec<Option<usize>> {
        let experts = self.pieces.last().map_or(0, |piece| piece.expert + 1);
        let mut piece_of = vec![0; experts];
        self.pieces.iter().enumerate().rev().for_each(|(index, piece)| piece_of[piece.expert] = index);
        let mut taken = vec![0; self.pieces.len()];
        let mut rows = Vec::with_capacity(choices.len() * self.parts);
        for choice in choices {
            let Some(expert) = *choice else {
                rows.extend(std::iter::repeat_n(None, self.parts));
                continue;
            };
            let at = &mut piece_of[expert];
            *at += usize::from(taken[*at] == self.pieces[*at].rows);
            let pieces = &self.pieces[*at..*at + self.parts];
            rows.extend(pieces.iter().map(|piece| Some(piece.first + taken[*at])));
            taken[*at] += 1;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::program::split::Split as Divided;
    use systems::program::{Layout, Weights};

    fn counts() -> RoutingCounts {
        // 4 ranks, 8 experts, uneven and with empty pairs.
        RoutingCounts::new(8, (0..32).map(|i: u32| (i * 7 + 3) % 5).collect())
    }

    fn programs() -> Vec<LayerProgram> {
        let cut = LayerProgram { steps: 2, ..LayerProgram::expert_parallel() };
        let shadowed = LayerProgram { shadowed: vec![5, 2], ..cut.clone() };
        let whole = LayerProgram { exchange: Exchange::Whole, ..LayerProgram::expert_parallel() };
        vec![
            LayerProgram::expert_parallel(),
            cut,
            shadowed,
            whole,
            LayerProgram::padded(Layout::Padded { rows: 6 }, Exchange::Whole, false),
        ]
    }

    /// What one rank sends is what the other expects, in every call, and every row is sent once.
    #[test]
    fn senders_and_receivers_agree() {
        let placement = Placement::new(vec![3, 0, 6, 1, 2, 7, 4, 5], 4).unwrap();
        for program in programs() {
            let all: Vec<Splits> = (0..4).map(|me| Splits::new(&program, &counts(), &placement, &[0; 4], me)).collect();
            for (me, mine) in all.iter().enumerate() {
                let mut sent = 0;
                for (step, splits) in mine.steps.iter().enumerate() {
                    for (index, split) in splits.iter().enumerate() {
                        assert_eq!(split.first, sent);
                        sent += split.input.iter().sum::<usize>();
                        for (other, theirs) in all.iter().enumerate() {
                            assert_eq!(split.input[other], theirs.steps[step][index].output[me]);
                        }
                    }
                }
                assert_eq!(mine.rows, sent + mine.shadows.iter().map(|shadow| shadow.rows).sum::<usize>());
            }
        }
    }

    #[test]
    fn choices_take_the_rows_of_their_expert_in_order() {
        let counts = RoutingCounts::new(2, vec![2, 1, 0, 0]);
        let splits = Splits::new(&LayerProgram::expert_parallel(), &counts, &Placement::identity(2, 2), &[0; 2], 0);
        let positions = splits.positions(&[Some(1), Some(0), None, Some(0)]);
        assert_eq!(positions, [Some(2), Some(0), None, Some(1)]);
        assert!(splits.follow_experts(&[2, 1]) && !splits.has_copies());
    }

    /// Expert 0 stands on both ranks, expert 1 on the second; rank 0 has four entries of expert 0, two for each copy.
    #[test]
    fn choices_go_to_one_copy_after_the_other() {
        let counts = RoutingCounts::new(2, vec![4, 1, 0, 0]);
        let placement = Placement::of_slots(vec![Some(0), None, Some(1), Some(0)], 2, 2).unwrap();
        let program = LayerProgram::split(Divided::Even, Vec::new(), Weights::Stand, 0);
        let splits = Splits::new(&program, &counts, &placement, &[0; 2], 0);
        assert_eq!(splits.positions(&[0, 0, 1, 0, 0].map(Some)), [0, 1, 2, 3, 4].map(Some));
        let by_expert = splits.pieces.iter().flat_map(|piece| piece.first..piece.first + piece.rows);
        assert_eq!(by_expert.collect::<Vec<_>>(), [0, 1, 3, 4, 2]);
        assert!(splits.has_copies() && !splits.follow_experts(&[4, 1]));
    }

    /// Two experts, each on two ranks; three rows a pair.
    #[test]
    fn choices_of_experts_in_parts_have_a_row_for_each() {
        let (counts, placement) = (RoutingCounts::new(2, vec![2, 1, 0, 0, 0, 0, 0, 0]), Placement::in_parts(2, 4, 2));
        let padded = LayerProgram::padded(Layout::Padded { rows: 3 }, Exchange::Whole, false);
        let program = LayerProgram { split: Divided::Parts, ..padded };
        let splits = Splits::new(&program, &counts, &placement, &[0; 4], 0);
        assert_eq!(splits.rows, 12);
        let expected = [Some(0), Some(3), Some(6), Some(9), None, None, Some(1), Some(4)];
        assert_eq!(splits.positions(&[Some(0), Some(1), None, Some(0)]), expected);
    }
}
