//! Copies of experts on the wire: those that a program makes for one micro-batch, and the sums of gradients over those that
//! stand.

use systems::Placement;
use systems::program::LayerProgram;
use tch::{Kind, Tensor};

use crate::comm::{CommError, Communicator, Part, Pending};
use crate::layer::experts::Experts;

/// The copies of a program as one rank passes them on, by [`LayerProgram::transfers`]: in a round, every expert goes one copy
/// further.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Transfers(Vec<Round>);

/// What a rank sends and receives in one exchange of experts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Round {
    /// `[rank]`: experts sent.
    sent: Vec<usize>,
    /// `[rank]`: experts received.
    received: Vec<usize>,
    /// Their slots on this rank, by receiving rank.
    from: Vec<usize>,
    /// The slots that get them, by sending rank.
    to: Vec<usize>,
}

impl Transfers {
    /// The part of rank `me`.
    pub(super) fn new(program: &LayerProgram, placement: &Placement, me: usize) -> Self {
        let per_rank = placement.slots_per_rank();
        let before = |index: usize| {
            let copy = &program.copies[index];
            program.copies[..index].iter().filter(move |other| other.expert == copy.expert)
        };
        let mut rounds: Vec<Round> = Vec::new();
        for (index, (copy, (source, target))) in program.copies.iter().zip(program.transfers(placement)).enumerate() {
            let number = before(index).count();
            if number == rounds.len() {
                rounds.push(Round::of(placement.ranks()));
            }
            let stands = || placement.slot_on(source, copy.expert).unwrap_or(0);
            let from = before(index).next_back().map_or_else(stands, |other| other.slot % per_rank);
            rounds[number].add((source, from), (target, copy.slot % per_rank), me);
        }
        Self(rounds)
    }

    /// Starts to bring the weights to the copies' slots, where they lie.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn weights(&self, experts: &Experts, group: &dyn Communicator) -> Result<Vec<Pending>, CommError> {
        let Some((last, first)) = self.0.split_last() else { return Ok(Vec::new()) };
        let (weights, size) = (&experts.bucket.weights, experts.size());
        let send = |round: &Round| {
            let (sent, received) = (parts(&round.sent, &round.from, size), parts(&round.received, &round.to, size));
            group.transfer(weights, &sent, weights, &received)
        };
        for round in first {
            drop(send(round)?.wait()?);
        }
        Ok(vec![send(last)?])
    }

    /// Starts to return the gradients of the copies' weights, and clears them. Once over, they are added where their experts stand. None
    /// where this program has no copies.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn gradients(&self, experts: &Experts, group: &dyn Communicator) -> Result<Option<Pending>, CommError> {
        let Some((last, others)) = self.0.split_first() else { return Ok(None) };
        for round in others.iter().rev() {
            drop(round.give_back(experts, group)?.wait()?);
        }
        Ok(Some(last.give_back(experts, group)?))
    }
}

/// Experts of slots that go to or come from members, `[member]` each, the slots by member.
fn parts(numbers: &[usize], slots: &[usize], size: usize) -> Vec<Part> {
    let members = numbers.iter().enumerate().flat_map(|(member, &number)| std::iter::repeat_n(member, number));
    members.zip(slots).map(|(member, &slot)| Part { member, start: slot * size, length: size }).collect()
}

/// The same of experts that lie one after the other.
fn in_rows(numbers: &[usize], size: usize) -> Vec<Part> {
    parts(numbers, &(0..numbers.iter().sum()).collect::<Vec<_>>(), size)
}

impl Round {
    /// Starts to send the gradients of the slots that got experts back to where those came from, and to add them there.
    fn give_back(&self, experts: &Experts, group: &dyn Communicator) -> Result<Pending, CommError> {
        let (held, size) = (experts.bucket.gradients(), experts.size());
        // Summed in single precision on their way.
        let (from, sent) = match held.kind() {
            Kind::Float => (held.shallow_clone(), parts(&self.received, &self.to, size)),
            _ => (experts.stack(held, &self.to).to_kind(Kind::Float), in_rows(&self.received, size)),
        };
        let rows = Tensor::empty([self.from.len() as i64, size as i64], (Kind::Float, held.device()));
        let arriving = group.transfer(&from, &sent, &rows, &in_rows(&self.sent, size))?;
        experts.bucket.clear_some(&self.to);
        let mut homes: Vec<Tensor> = self.from.iter().map(|&slot| experts.gradient(slot)).collect();
        Ok(Pending::new(move || {
            drop(arriving.wait()?);
            homes.iter_mut().enumerate().for_each(|(row, home)| drop(home.g_add_(&rows.get(row as i64))));
            Ok(rows)
        }))
    }

    fn of(ranks: usize) -> Self {
        Self { sent: vec![0; ranks], received: vec![0; ranks], from: Vec::new(), to: Vec::new() }
    }

    /// Adds an expert that goes from a slot of a rank to one of another. Those between two ranks go in the order of their addition.
    fn add(&mut self, (source, from): (usize, usize), (target, to): (usize, usize), me: usize) {
        if source == me {
            self.from.insert(self.sent[..=target].iter().sum(), from);
            self.sent[target] += 1;
        }
        if target == me {
            self.to.insert(self.received[..=source].iter().sum(), to);
            self.received[source] += 1;
        }
    }
}

/// Gradients of a layer's experts with several copies on their way to their sums: every rank that holds an expert sums a part of them, and
/// sends it to the others, as many bytes as in a ring.
pub struct Sums<'a> {
    experts: &'a Experts,
    placement: &'a Placement,
    held: Vec<Held>,
    /// The own parts as other ranks have them, one after the other.
    rows: Tensor,
    arriving: Pending,
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
        let mut end = 0;
        let mut next = |part: Part| {
            end += part.length;
            Part { start: end - part.length, ..part }
        };
        let received: Vec<Part> = held.iter().flat_map(|of| of.parts(me, size, |_| me)).map(&mut next).collect();
        let rows = Tensor::empty([end as i64], (gradients.kind(), gradients.device()));
        let arriving = group.transfer(gradients, &sent, &rows, &received)?;
        Ok(Self { experts, placement, held, rows, arriving })
    }

    /// Adds them, and sends the sums to the other ranks. All slots of an expert end with the same bits.
    ///
    /// # Errors
    /// A peer that died.
    pub fn finish(self, group: &dyn Communicator) -> Result<(), CommError> {
        let Self { experts, placement, held, rows, arriving } = self;
        drop(arriving.wait()?);
        let (gradients, size, me) = (experts.state().gradients(), experts.kept(), group.rank());
        let mut row = 0;
        for of in &held {
            let [start, length] = of.part(me).map(|of| of as i64);
            let mut own = experts.kept_row(gradients, of.slot).narrow(0, start, length);
            for _ in 1..of.ranks.len() {
                drop(own.g_add_(&rows.narrow(0, row, length)));
                row += length;
            }
        }
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

    /// Experts 0 to 3 on four ranks with two slots each; expert 0 goes to ranks 1 and 3, expert 2 to rank 0.
    #[test]
    fn copies_are_passed_on_from_rank_to_rank() {
        let placement = Placement::in_order(4, 4, 2).unwrap();
        let copies = [(0, 3), (0, 7), (2, 1)].map(|(expert, slot)| Copied { expert, slot }).to_vec();
        let program = LayerProgram::split(Split::Even, copies, Weights::Copied, 0);
        let rounds = |me| Transfers::new(&program, &placement, me).0;
        let all: Vec<_> = (0..4).map(rounds).collect();
        assert!(all.iter().all(|rounds| rounds.len() == 2));
        // Rank 0 sends its expert, gets that of rank 2, and has no part in the second round.
        let expected = Round { sent: vec![0, 1, 0, 0], received: vec![0, 0, 1, 0], from: vec![0], to: vec![1] };
        assert_eq!(all[0], [expected, Round::of(4)]);
        assert_eq!(all[1][1], Round { sent: vec![0, 0, 0, 1], from: vec![1], ..Round::of(4) });
        assert_eq!(all[3][1], Round { received: vec![0, 1, 0, 0], to: vec![1], ..Round::of(4) });
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

    #[test]
    fn experts_between_two_ranks_stay_in_order() {
        let mut round = Round::of(3);
        for (slot, target) in [2, 1, 2, 0].into_iter().enumerate() {
            round.add((1, slot), (target, 5 + slot), 1);
        }
        assert_eq!((round.sent, round.from), (vec![1, 1, 2], vec![3, 1, 0, 2]));
        assert_eq!((round.received, round.to), (vec![0, 1, 0], vec![6]));
    }
}
