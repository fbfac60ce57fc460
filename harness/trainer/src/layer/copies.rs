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

/// Gradients of a layer's experts with several copies on their way to the ranks of first copies.
pub struct Sums<'a> {
    experts: &'a Experts,
    placement: &'a Placement,
    round: Round,
    rows: Tensor,
    arriving: Pending,
}

impl<'a> Sums<'a> {
    /// Starts to send the gradients of every expert with several copies to the rank of its first copy.
    ///
    /// # Errors
    /// A peer that died.
    pub fn begin(experts: &'a Experts, placement: &'a Placement, group: &dyn Communicator) -> Result<Self, CommError> {
        let (me, per_rank) = (group.rank(), placement.slots_per_rank());
        let mut round = Round::of(placement.ranks());
        for expert in (0..placement.experts()).filter(|&expert| placement.slots_of(expert).len() > 1) {
            let slots = placement.slots_of(expert);
            // Further copies of a rank give what they have to its first.
            let own: Vec<usize> =
                slots.iter().filter(|&&slot| slot / per_rank == me).map(|slot| slot % per_rank).collect();
            if let [first, rest @ ..] = &own[..] {
                rest.iter().for_each(|&slot| drop(experts.gradient(*first).g_add_(&experts.gradient(slot))));
            }
            let home = placement.rank_of(expert);
            let first_on = |rank| placement.slot_on(rank, expert).unwrap_or(0);
            for rank in placement.ranks_of(expert).filter(|&rank| rank != home) {
                round.add((home, first_on(home)), (rank, first_on(rank)), me);
            }
        }
        let (held, size) = (experts.bucket.gradients(), experts.size());
        let rows = Tensor::empty([round.from.len() as i64, size as i64], (held.kind(), held.device()));
        let sent = parts(&round.received, &round.to, size);
        let arriving = group.transfer(held, &sent, &rows, &in_rows(&round.sent, size))?;
        Ok(Self { experts, placement, round, rows, arriving })
    }

    /// Adds them, and sends the sums to the other copies. All slots of an expert end with the same bits.
    ///
    /// # Errors
    /// A peer that died.
    pub fn finish(self, group: &dyn Communicator) -> Result<(), CommError> {
        let Self { experts, placement, round, rows, arriving } = self;
        drop(arriving.wait()?);
        experts.add_gradients(&round.from, &rows);
        let (held, size, me) = (experts.bucket.gradients(), experts.size(), group.rank());
        let (sent, received) = (parts(&round.sent, &round.from, size), parts(&round.received, &round.to, size));
        drop(group.transfer(held, &sent, held, &received)?.wait()?);
        for (slot, expert) in placement.experts_of(me).iter().enumerate() {
            let first = expert.and_then(|expert| placement.slot_on(me, expert)).filter(|&first| first != slot);
            first.into_iter().for_each(|first| experts.gradient(slot).copy_(&experts.gradient(first)));
        }
        Ok(())
    }
}

/// The gradients on a rank that stand for their experts: every expert counts at its first copy.
pub fn first_gradients(experts: &Experts, placement: &Placement, me: usize) -> Vec<Tensor> {
    let first = me * placement.slots_per_rank();
    let counts = |(slot, expert): (usize, &Option<usize>)| {
        expert.filter(|&expert| placement.slots_of(expert)[0] == first + slot).map(|_| experts.gradient(slot))
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
