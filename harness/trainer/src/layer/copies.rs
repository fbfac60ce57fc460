//! Copies of experts on the wire: those that a program makes for one micro-batch, and the sums of gradients over those that
//! stand.

use systems::Placement;
use systems::program::LayerProgram;
use systems::program::copies::Transfer;
use tch::{Kind, Tensor};

use crate::comm::{CommError, Communicator, Part, Pending};
use crate::layer::experts::Experts;

/// The copies of a program: what one rank sends and receives of their weights, and of their gradients. Parts are of the numbers of its slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transfers {
    /// `[round]`: of weights, sent and received; none where no copies are made.
    rounds: Vec<[Vec<Part>; 2]>,
    /// Of gradients, sent, and received to be added: between copies, and to where experts stand.
    returns: [[Vec<Part>; 2]; 2],
    /// Slots of this rank that hold copies.
    copies: Vec<usize>,
}

impl Transfers {
    /// The part of rank `me`. `size`: numbers of an expert.
    pub(super) fn new(program: &LayerProgram, placement: &Placement, size: usize, me: usize) -> Self {
        let per_rank = placement.slots_per_rank();
        let part = |of: &Transfer, member, slot| {
            let numbers = of.numbers(size);
            Part { member, start: slot % per_rank * size + numbers.start, length: numbers.len() }
        };
        let of_round = |round: &Vec<Transfer>| {
            let with = || round.iter().map(|of| (of, of.ranks(per_rank)));
            let sent = with().filter(|(_, (from, _))| *from == me).map(|(of, (_, to))| part(of, to, of.from));
            let received = with().filter(|(_, (_, to))| *to == me).map(|(of, (from, _))| part(of, from, of.to));
            [sent.collect(), received.collect()]
        };
        let rounds = program.transfers(placement, size).iter().map(of_round).collect();
        let returns = program.returns(placement).each_ref().map(of_round);
        let own = program.copies.iter().filter(|copy| copy.slot / per_rank == me);
        Self { rounds, returns, copies: own.map(|copy| copy.slot % per_rank).collect() }
    }

    /// Starts to bring the weights to the copies' slots, where they lie.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn weights(&self, experts: &Experts, group: &dyn Communicator) -> Result<Pending, CommError> {
        group.relay(&experts.bucket.weights, &self.rounds)
    }

    /// Starts to return the gradients of the copies' weights: copies send each other parts. None where this program has no copies.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn gradients(
        &self,
        experts: &Experts,
        group: &dyn Communicator,
    ) -> Result<Option<Returning>, CommError> {
        if self.rounds.is_empty() {
            return Ok(None);
        }
        let (held, size) = (experts.bucket.gradients(), experts.size());
        // Summed in single precision on their way.
        let single = held.kind() == Kind::Float;
        let from = if single { held.shallow_clone() } else { experts.stack(held, &self.copies).to_kind(Kind::Float) };
        // Where a part is that lies in a slot of a copy.
        let at = |part: &Part| {
            let (slot, within) = (part.start / size, part.start % size);
            let row = if single { slot } else { self.copies.iter().position(|&copy| copy == slot).unwrap_or(0) };
            Part { start: row * size + within, ..*part }
        };
        let [[sent, received], [home, brought]] = &self.returns;
        let [sent, summed, home] = [sent, received, home].map(|parts| parts.iter().map(at).collect::<Vec<_>>());
        let arriving = Arriving::begin(&from, &sent, summed, group)?;
        let (brought, copies) = (brought.clone(), self.copies.clone());
        Ok(Some(Returning::Exchanged { arriving, from, home, brought, copies }))
    }
}

/// Parts that arrive, to be added to others.
pub(super) struct Arriving {
    pending: Pending,
    rows: Tensor,
    /// What each is added to, in the order of `rows`.
    to: Vec<Part>,
}

impl Arriving {
    /// Starts to send parts of `from`, and to receive some as large as `to`.
    fn begin(from: &Tensor, sent: &[Part], to: Vec<Part>, group: &dyn Communicator) -> Result<Self, CommError> {
        let mut end = 0;
        let mut next = |part: &Part| {
            end += part.length;
            Part { start: end - part.length, ..*part }
        };
        let received: Vec<Part> = to.iter().map(&mut next).collect();
        let rows = Tensor::empty([end as i64], (from.kind(), from.device()));
        Ok(Self { pending: group.transfer(from, sent, &rows, &received)?, rows, to })
    }

    /// Adds them once they are there, each to what `of` says of its part.
    fn add(self, of: impl Fn(&Part) -> Tensor) -> Result<(), CommError> {
        drop(self.pending.wait()?);
        let mut start = 0;
        for part in &self.to {
            let length = part.length as i64;
            drop(of(part).g_add_(&self.rows.narrow(0, start, length)));
            start += length;
        }
        Ok(())
    }
}

/// The numbers of a part, where they lie in a tensor without gaps.
fn part_of(of: &Tensor, part: &Part) -> Tensor {
    of.view([-1]).narrow(0, part.start as i64, part.length as i64)
}

/// Gradients of copies on their way to where their experts stand.
pub(super) enum Returning {
    /// Copies have sent each other their parts.
    Exchanged { arriving: Arriving, from: Tensor, home: Vec<Part>, brought: Vec<Part>, copies: Vec<usize> },
    /// The sums of parts are on their way.
    Sent(Arriving),
}

impl Returning {
    /// Sums the parts of copies, starts to send the sums, and clears the gradients of copies, if that is not done.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn pass_on(self, experts: &Experts, group: &dyn Communicator) -> Result<Self, CommError> {
        let Self::Exchanged { arriving, from, home, brought, copies } = self else { return Ok(self) };
        arriving.add(|part| part_of(&from, part))?;
        let sent = Arriving::begin(&from, &home, brought, group)?;
        experts.bucket.clear_some(&copies);
        Ok(Self::Sent(sent))
    }

    /// Adds the sums where experts stand.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn settle(self, experts: &Experts, group: &dyn Communicator) -> Result<(), CommError> {
        match self.pass_on(experts, group)? {
            Self::Sent(arriving) => arriving.add(|part| {
                let (slot, within) = (part.start / experts.size(), part.start % experts.size());
                experts.gradient(slot).narrow(0, within as i64, part.length as i64)
            }),
            Self::Exchanged { .. } => unreachable!("it has been passed on"),
        }
    }
}

/// Gradients of a layer's experts with several copies on their way to their sums: every rank that holds an expert sums a part of them, and
/// sends it to the others, as many bytes as in a ring.
pub struct Sums<'a> {
    experts: &'a Experts,
    placement: &'a Placement,
    held: Vec<Held>,
    /// The own parts as other ranks have them.
    arriving: Arriving,
}

/// An expert that this rank and others hold.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    /// The first of its slots on this rank.
    slot: usize,
    /// All ranks that hold it.
    ranks: Vec<usize>,
    /// Where each begins that they sum, and the end.
    bounds: Vec<usize>,
}

impl Held {
    /// The experts of rank `me` that other ranks hold, too.
    fn all(placement: &Placement, me: usize, size: usize) -> Vec<Self> {
        let of = |expert| {
            let ranks: Vec<usize> = placement.ranks_of(expert).collect();
            let bounds = (0..=ranks.len()).map(|part| part * size / ranks.len()).collect();
            Some(Self { slot: placement.slot_on(me, expert)?, ranks, bounds })
        };
        (0..placement.experts()).filter_map(of).filter(|held| held.ranks.len() > 1).collect()
    }

    /// The part that a rank sums: where it begins in the expert, and how long it is.
    fn part(&self, rank: usize) -> [usize; 2] {
        let at = self.ranks.iter().position(|&of| of == rank).unwrap_or(0);
        [self.bounds[at], self.bounds[at + 1] - self.bounds[at]]
    }

    /// For every other rank that holds it, the part that `of` names of the two, where it lies in the expert's slot.
    fn parts(&self, me: usize, size: usize, of: impl Fn(usize) -> usize) -> impl Iterator<Item = Part> {
        self.ranks.iter().filter(move |&&rank| rank != me).map(move |&member| {
            let [start, length] = self.part(of(member));
            Part { member, start: self.slot * size + start, length }
        })
    }
}

impl<'a> Sums<'a> {
    /// Starts to send every other rank that holds an expert of this one its part of the gradients here.
    ///
    /// # Errors
    /// A peer that died.
    pub fn begin(experts: &'a Experts, placement: &'a Placement, group: &dyn Communicator) -> Result<Self, CommError> {
        let (gradients, size, me) = (experts.state().gradients(), experts.kept(), group.rank());
        // Further copies of this rank give what they have to its first.
        for (slot, first) in others_of_a_rank(placement, me) {
            drop(experts.kept_row(gradients, first).g_add_(&experts.kept_row(gradients, slot)));
        }
        let held = Held::all(placement, me, size);
        let sent: Vec<Part> = held.iter().flat_map(|of| of.parts(me, size, |other| other)).collect();
        let own = held.iter().flat_map(|of| of.parts(me, size, |_| me)).collect();
        let arriving = Arriving::begin(gradients, &sent, own, group)?;
        Ok(Self { experts, placement, held, arriving })
    }

    /// Adds them, and sends the sums to the other ranks. All slots of an expert end with the same bits.
    ///
    /// # Errors
    /// A peer that died.
    pub fn finish(self, group: &dyn Communicator) -> Result<(), CommError> {
        let Self { experts, placement, held, arriving } = self;
        let (gradients, size, me) = (experts.state().gradients(), experts.kept(), group.rank());
        arriving.add(|part| part_of(gradients, part))?;
        let sent: Vec<Part> = held.iter().flat_map(|of| of.parts(me, size, |_| me)).collect();
        let received: Vec<Part> = held.iter().flat_map(|of| of.parts(me, size, |other| other)).collect();
        drop(group.transfer(gradients, &sent, gradients, &received)?.wait()?);
        for (slot, first) in others_of_a_rank(placement, me) {
            experts.kept_row(gradients, slot).copy_(&experts.kept_row(gradients, first));
        }
        Ok(())
    }
}

/// Slots of a rank whose expert it has in a slot before, and that slot.
fn others_of_a_rank(placement: &Placement, rank: usize) -> impl Iterator<Item = (usize, usize)> {
    let first = move |expert: &Option<usize>| expert.and_then(|expert| placement.slot_on(rank, expert));
    let slots = placement.experts_of(rank).iter().enumerate();
    slots.filter_map(move |(slot, expert)| first(expert).filter(|&first| first != slot).map(|first| (slot, first)))
}

/// The gradients on a rank that stand for their experts: every expert counts at its first copy.
pub fn first_gradients(experts: &Experts, placement: &Placement, me: usize) -> Vec<Tensor> {
    let (first, gradients) = (me * placement.slots_per_rank(), experts.state().gradients());
    let counts = |(slot, expert): (usize, &Option<usize>)| {
        expert
            .filter(|&expert| placement.slots_of(expert)[0] == first + slot)
            .map(|_| experts.kept_row(gradients, slot))
    };
    placement.experts_of(me).iter().enumerate().filter_map(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::program::split::Split;
    use systems::program::{Copied, Weights};

    /// Experts 0 to 3 on four ranks with two slots each, ten numbers an expert; expert 0 goes to ranks 1 and 3, expert 2 to rank 0.
    #[test]
    fn copies_give_each_other_parts_of_weights_and_of_gradients() {
        let placement = Placement::in_order(4, 4, 2).unwrap();
        let copies = [(0, 3), (2, 1), (0, 7)].map(|(expert, slot)| Copied { expert, slot }).to_vec();
        let program = LayerProgram::split(Split::Even, copies, Weights::Copied, 0);
        let all: Vec<_> = (0..4).map(|me| Transfers::new(&program, &placement, 10, me)).collect();
        let part = |member, start, length| Part { member, start, length };
        // Rank 0 sends halves of its expert, gets that of rank 2 whole, and has no part in the second round.
        let first = [vec![part(1, 0, 5), part(3, 5, 5)], vec![part(2, 10, 10)]];
        assert_eq!(all[0].rounds, [first, [Vec::new(), Vec::new()]]);
        assert_eq!(all[1].rounds[1], [vec![part(3, 10, 5)], vec![part(3, 15, 5)]]);
        assert_eq!(all[3].rounds[1], [vec![part(1, 15, 5)], vec![part(1, 10, 5)]]);
        // Copies on ranks 1 and 3 give each other halves, and send the sums of theirs to rank 0.
        assert_eq!(all[1].returns[0], [vec![part(3, 15, 5)], vec![part(3, 10, 5)]]);
        assert_eq!(all[1].returns[1], [vec![part(0, 10, 5)], vec![]]);
        assert_eq!(all[0].returns[1], [vec![part(2, 10, 10)], vec![part(1, 0, 5), part(3, 5, 5)]]);
        assert_eq!([&all[0].copies[..], &all[3].copies[..]], [[1], [1]]);
    }

    /// Expert 0 on three ranks, expert 1 on two; ten numbers each.
    #[test]
    fn every_holder_sums_a_part() {
        let slots = [Some(0), Some(1), Some(0), None, Some(1), Some(0)];
        let placement = Placement::of_slots(slots.to_vec(), 2, 3).unwrap();
        let all: Vec<Vec<Held>> = (0..3).map(|me| Held::all(&placement, me, 10)).collect();
        assert_eq!(all[0][0], Held { slot: 0, ranks: vec![0, 1, 2], bounds: vec![0, 3, 6, 10] });
        assert_eq!(all[1].len(), 1);
        assert_eq!(all[2][0].slot, 1);
        let sent = |me: usize, to: usize| {
            let parts = all[me].iter().flat_map(|of| of.parts(me, 10, |other| other));
            parts.filter(|part| part.member == to).map(|part| part.length).collect::<Vec<_>>()
        };
        let received = |me: usize, from: usize| {
            let parts = all[me].iter().flat_map(|of| of.parts(me, 10, |_| me));
            parts.filter(|part| part.member == from).map(|part| part.length).collect::<Vec<_>>()
        };
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            assert_eq!(sent(one, other), received(other, one));
            assert_eq!(sent(other, one), received(one, other));
        }
        let part = |me: usize| all[me][0].parts(me, 10, |other| other).next().unwrap();
        assert_eq!(part(2), Part { member: 0, start: 10, length: 3 });
    }
}
