//! Copies of experts on the wire: those that a program makes for one micro-batch, and the sums of gradients over those that
//! stand.

use systems::Placement;
use systems::program::LayerProgram;
use tch::{Kind, Tensor};

use crate::comm::{CommError, Communicator, Pending};
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

    /// Starts to bring the weights to the copies' slots: what [`Self::weights_arrive`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn weights(&self, experts: &Experts, group: &dyn Communicator) -> Result<Vec<Pending>, CommError> {
        let Some((last, first)) = self.0.split_last() else { return Ok(Vec::new()) };
        let send = |round: &Round| {
            let weights = &experts.bucket.weights;
            group.all_to_all(&experts.stack(weights, &round.from), &round.sent, &round.received)
        };
        for round in first {
            experts.put(&round.to, &send(round)?.wait()?);
        }
        Ok(vec![send(last)?])
    }

    /// Puts the weights that arrived last into their slots.
    pub(super) fn weights_arrive(&self, experts: &Experts, rows: &Tensor) {
        self.0.last().into_iter().for_each(|round| experts.put(&round.to, rows));
    }

    /// Starts to return the gradients of the copies' weights, and clears them: what [`Self::gradients_arrive`] gets.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn gradients(&self, experts: &Experts, group: &dyn Communicator) -> Result<Vec<Pending>, CommError> {
        let Some((last, others)) = self.0.split_first() else { return Ok(Vec::new()) };
        let send = |round: &Round| {
            // Summed in single precision on their way.
            let rows = experts.stack(experts.bucket.gradients(), &round.to).to_kind(Kind::Float);
            round.to.iter().for_each(|&slot| drop(experts.gradient(slot).zero_()));
            group.all_to_all(&rows, &round.received, &round.sent)
        };
        for round in others.iter().rev() {
            experts.add_gradients(&round.from, &send(round)?.wait()?);
        }
        Ok(vec![send(last)?])
    }

    /// Adds the gradients that arrived last where their experts stand.
    pub(super) fn gradients_arrive(&self, experts: &Experts, rows: &Tensor) {
        self.0.first().into_iter().for_each(|round| experts.add_gradients(&round.from, rows));
    }
}

impl Round {
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

/// Sums the gradients of every expert with several copies over its slots: at the rank of its first copy, which sends the sum to
/// the others. All slots end with the same bits.
///
/// # Errors
/// A peer that died.
pub fn sum_gradients(experts: &Experts, placement: &Placement, group: &dyn Communicator) -> Result<(), CommError> {
    let (me, per_rank) = (group.rank(), placement.slots_per_rank());
    let mut round = Round::of(placement.ranks());
    for expert in (0..placement.experts()).filter(|&expert| placement.slots_of(expert).len() > 1) {
        let slots = placement.slots_of(expert);
        // Further copies of a rank give what they have to its first.
        let own: Vec<usize> = slots.iter().filter(|&&slot| slot / per_rank == me).map(|slot| slot % per_rank).collect();
        if let [first, rest @ ..] = &own[..] {
            rest.iter().for_each(|&slot| drop(experts.gradient(*first).g_add_(&experts.gradient(slot))));
        }
        let home = placement.rank_of(expert);
        let first_on = |rank| placement.slot_on(rank, expert).unwrap_or(0);
        for rank in placement.ranks_of(expert).filter(|&rank| rank != home) {
            round.add((home, first_on(home)), (rank, first_on(rank)), me);
        }
    }
    let gradients = experts.bucket.gradients();
    let sums = group.all_to_all(&experts.stack(gradients, &round.to), &round.received, &round.sent)?.wait()?;
    experts.add_gradients(&round.from, &sums);
    let sums = group.all_to_all(&experts.stack(gradients, &round.from), &round.sent, &round.received)?.wait()?;
    for (index, &slot) in round.to.iter().enumerate() {
        experts.gradient(slot).copy_(&sums.get(index as i64));
    }
    for (slot, expert) in placement.experts_of(me).iter().enumerate() {
        let first = expert.and_then(|expert| placement.slot_on(me, expert)).filter(|&first| first != slot);
        first.into_iter().for_each(|first| experts.gradient(slot).copy_(&experts.gradient(first)));
    }
    Ok(())
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
