//! How weights and gradients of a program's copies travel: both engines ask here, one for what it sends, the other for what that takes.

use std::ops::Range;

use crate::plan::placement::Placement;
use crate::program::{Copied, LayerProgram};

/// An expert's weights or gradients, or a part of them, on the way from one slot of a group to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The slot that sends.
    pub from: usize,
    /// The slot that gets them.
    pub to: usize,
    /// Which of equal parts.
    pub part: usize,
    /// Parts of all.
    pub parts: usize,
}

/// Numbers of a piece of an expert on its way to several copies, at least: what takes a GPU's links longer than to begin a round.
const PIECE: usize = 16 << 20;
const MOST_PIECES: usize = 8;

impl Transfer {
    /// Which of an expert's `size` numbers these are.
    pub fn numbers(&self, size: usize) -> Range<usize> {
        self.part * size / self.parts..(self.part + 1) * size / self.parts
    }

    /// The ranks of both slots.
    pub fn ranks(&self, slots_per_rank: usize) -> (usize, usize) {
        (self.from / slots_per_rank, self.to / slots_per_rank)
    }
}

impl LayerProgram {
    /// How the weights of the program's copies travel, experts of `size` numbers, round by round: a rank sends each copy of an expert another
    /// part of it, and in the next round copies send each other theirs. Large experts go in several such pieces, of which one is sent while
    /// copies exchange the one before: so every copy is there in little more time than it takes to send the expert once.
    pub fn transfers(&self, placement: &Placement, size: usize) -> Vec<Vec<Transfer>> {
        let mut copies: Vec<&Copied> = self.copies.iter().collect();
        copies.sort_by_key(|copy| copy.expert);
        let mut rounds = Vec::new();
        let mut send = |round: usize, transfer| {
            rounds.resize_with(rounds.len().max(round + 1), Vec::new);
            rounds[round].push(transfer);
        };
        let by_expert = || copies.chunk_by(|one, next| one.expert == next.expert);
        let several = by_expert().any(|same| same.len() > 1);
        let pieces = if several { (size / PIECE).clamp(1, MOST_PIECES) } else { 1 };
        for same in by_expert() {
            let stands = placement.slots_of(same[0].expert)[0];
            let parts = pieces * same.len();
            for (part, (piece, copy)) in
                (0..pieces).flat_map(|piece| same.iter().map(move |copy| (piece, copy))).enumerate()
            {
                send(piece, Transfer { from: stands, to: copy.slot, part, parts });
                for other in same.iter().filter(|other| other.slot != copy.slot) {
                    send(piece + 1, Transfer { from: copy.slot, to: other.slot, part, parts });
                }
            }
        }
        rounds
    }

    /// How the gradients of the program's copies return, in two rounds: each copy of an expert gets its part of them from the others and, of a sum,
    /// sends it to where the expert stands.
    pub fn returns(&self, placement: &Placement) -> [Vec<Transfer>; 2] {
        let mut rounds = [Vec::new(), Vec::with_capacity(self.copies.len())];
        for copy in &self.copies {
            let same = || self.copies.iter().filter(|other| other.expert == copy.expert);
            let (part, parts) = (same().take_while(|other| other.slot != copy.slot).count(), same().count());
            let others = same().filter(|other| other.slot != copy.slot);
            rounds[0].extend(others.map(|other| Transfer { from: other.slot, to: copy.slot, part, parts }));
            let stands = placement.slots_of(copy.expert)[0];
            rounds[1].push(Transfer { from: copy.slot, to: stands, part, parts });
        }
        rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Weights;
    use crate::program::split::Split;

    /// Expert 0 has three copies, expert 1 two, one of them beside expert 0.
    #[test]
    fn copies_get_every_number_and_ports_carry_little_more_than_each_expert_once() {
        let per_rank = 3;
        let placement = Placement::in_order(2, 4, per_rank).unwrap();
        let copied = [(0, 4), (1, 1), (0, 7), (1, 8), (0, 10)].map(|(expert, slot)| Copied { expert, slot });
        let program = LayerProgram::split(Split::Even, copied.to_vec(), Weights::Copied, 0);
        // Every number, and one of a million.
        for (size, step, rounds) in [(10, 1, 2), (5 * PIECE + 3, PIECE / 16, 6)] {
            let numbers = |of: &Transfer| of.numbers(size).filter(|number| number % step == 0).collect::<Vec<_>>();
            let mut has = vec![std::collections::BTreeSet::new(); 4 * per_rank];
            (0..2).for_each(|expert| has[placement.slots_of(expert)[0]].extend((0..size).step_by(step)));
            let all = program.transfers(&placement, size);
            assert_eq!(all.len(), rounds);
            let mut busiest = 0;
            for round in &all {
                let before = has.clone();
                let (mut sent, mut received) = ([0; 4], [0; 4]);
                for of in round {
                    let ((from, to), moved) = (of.ranks(per_rank), numbers(of));
                    assert!(
                        moved.iter().all(|number| before[of.from].contains(number)),
                        "{of:?} is sent before it is there"
                    );
                    assert!(moved.iter().all(|&number| has[of.to].insert(number)), "{of:?} arrives twice");
                    sent[from] += of.numbers(size).len();
                    received[to] += of.numbers(size).len();
                }
                busiest += sent.into_iter().chain(received).max().unwrap();
            }
            assert!(copied.iter().all(|copy| has[copy.slot].len() == size.div_ceil(step)));
            // Rank 2 gets copies of both, rank 0 stands for one and gets a copy of the other: with two rounds, up to twice that.
            assert!(busiest <= 2 * size + 2 * size / (rounds - 1), "{busiest} of {size} in {rounds} rounds");
        }
    }

    /// The same copies: how often each number of a copy's gradient is in what arrives.
    #[test]
    fn gradients_of_all_copies_arrive_once_and_summed() {
        let (size, per_rank) = (10, 3);
        let placement = Placement::in_order(2, 4, per_rank).unwrap();
        let copied = [(0, 4), (1, 1), (0, 7), (1, 8), (0, 10)].map(|(expert, slot)| Copied { expert, slot });
        let program = LayerProgram::split(Split::Even, copied.to_vec(), Weights::Copied, 0);
        // `[slot][number]`: copies whose gradient is in it.
        let mut held: Vec<Vec<usize>> = vec![vec![0; size]; 4 * per_rank];
        copied.iter().for_each(|copy| held[copy.slot].fill(1));
        for round in program.returns(&placement) {
            let before = held.clone();
            for of in round {
                of.numbers(size).for_each(|number| held[of.to][number] += before[of.from][number]);
            }
        }
        for (expert, copies) in [(0, 3), (1, 2)] {
            assert_eq!(held[placement.slots_of(expert)[0]], vec![copies; size]);
        }
    }
}
