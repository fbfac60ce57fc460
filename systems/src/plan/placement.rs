//! Placements: which expert lives in which slots of which ranks of a group that exchanges rows.
//!
//! A *logical* expert is what the gate chooses. A *slot* is a place for one expert on one rank; slots are counted over the group's ranks. Most systems
//! have as many slots as experts and one expert in each: a bijection. Where there are more, an expert may have several *copies*,
//! on any ranks, and slots may be empty. Every expert-data-parallel replica uses the same placement.

use thiserror::Error;

/// The experts of one MoE layer in the slots of a group: every expert in at least one, at most one in each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    slots_per_rank: usize,
    /// `[slot]`: its expert, if it has one.
    expert_in: Vec<Option<usize>>,
    /// The slots of experts, one expert's after the other, ascending.
    copies: Vec<usize>,
    /// `[expert]`: where its copies start; and where the last one's end.
    first: Vec<usize>,
}

/// One copy of an expert that comes to a rank which has none, weights and optimizer state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The logical expert.
    pub expert: usize,
    /// Rank of the group that holds it now.
    pub from: usize,
    /// Rank of the group that will.
    pub to: usize,
}

/// Slots that are no bijection.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("expert {expert} is placed in slot {slot}: expected every one of the slots 0 to {} once", slots - 1)]
pub struct NotABijection {
    expert: usize,
    slot: usize,
    slots: usize,
}

/// Slots that are no placement.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadSlots {
    /// Slots that ranks cannot share.
    #[error("{slots} slots on {ranks} ranks: expected a multiple")]
    Ranks {
        /// Slots.
        slots: usize,
        /// Ranks.
        ranks: usize,
    },
    /// An expert that the layer does not have.
    #[error("slot {slot} holds expert {expert}: expected one below {experts}, or none")]
    Expert {
        /// The slot.
        slot: usize,
        /// What it holds.
        expert: usize,
        /// Experts of the layer.
        experts: usize,
    },
    /// An expert without a slot.
    #[error("expert {expert} is in none of the {slots} slots: expected at least one")]
    Missing {
        /// The expert.
        expert: usize,
        /// Slots.
        slots: usize,
    },
}

impl Placement {
    /// Expert `e` on rank `e / (experts / ranks)`, in order: where training starts.
    pub fn identity(experts: usize, ranks: usize) -> Self {
        Self::of_checked((0..experts).map(Some).collect(), experts, experts / ranks)
    }

    /// Experts in order as in [`Self::identity`], in the first of each rank's slots; the others are empty.
    ///
    /// # Errors
    /// When there are fewer slots than experts, or ranks cannot share them.
    pub fn in_order(experts: usize, ranks: usize, slots_per_rank: usize) -> Result<Self, BadSlots> {
        let own = experts.div_ceil(ranks);
        let expert = |slot: usize| {
            let (rank, place) = (slot / slots_per_rank.max(1), slot % slots_per_rank.max(1));
            Some(rank * own + place).filter(|&expert| place < own && expert < experts)
        };
        Self::of_slots((0..ranks * slots_per_rank).map(expert).collect(), experts, ranks)
    }

    /// Experts in order, the same ones on every `parts` ranks that follow each other; `ranks / parts` divides `experts`.
    pub fn in_parts(experts: usize, ranks: usize, parts: usize) -> Self {
        let own = experts * parts / ranks;
        let expert = |slot: usize| slot / own / parts * own + slot % own;
        Self::of_checked((0..ranks * own).map(|slot| Some(expert(slot))).collect(), experts, own)
    }

    /// Experts in order, and `extra` empty slots on every rank of a group that has several.
    pub fn with_room(experts: usize, ranks: usize, extra: usize) -> Self {
        let extra = if ranks > 1 { extra } else { 0 };
        Self::in_order(experts, ranks, experts.div_ceil(ranks) + extra).expect("there is room for all")
    }

    /// A bijection from the slot of each expert; [`Self::of_slots`] takes the inverse, which [`Self::experts_in_slots`] gives.
    ///
    /// # Errors
    /// When a slot is beyond the last or used twice.
    pub fn new(slot_of: Vec<usize>, ranks: usize) -> Result<Self, NotABijection> {
        let slots = slot_of.len();
        let mut expert_in = vec![None; slots];
        for (expert, &slot) in slot_of.iter().enumerate() {
            if slot >= slots || expert_in[slot].is_some() {
                return Err(NotABijection { expert, slot, slots });
            }
            expert_in[slot] = Some(expert);
        }
        Ok(Self::of_checked(expert_in, slots, slots / ranks))
    }

    /// A placement from the expert in each slot, none where it is empty.
    ///
    /// # Errors
    /// When ranks cannot share the slots, an expert is beyond the last, or one has no slot.
    pub fn of_slots(expert_in: Vec<Option<usize>>, experts: usize, ranks: usize) -> Result<Self, BadSlots> {
        let slots = expert_in.len();
        if ranks == 0 || slots == 0 || !slots.is_multiple_of(ranks) {
            return Err(BadSlots::Ranks { slots, ranks });
        }
        let held = expert_in.iter().enumerate().filter_map(|(slot, expert)| Some((slot, (*expert)?)));
        if let Some((slot, expert)) = held.clone().find(|&(_, expert)| expert >= experts) {
            return Err(BadSlots::Expert { slot, expert, experts });
        }
        let mut stands = vec![false; experts];
        held.for_each(|(_, expert)| stands[expert] = true);
        if let Some(expert) = stands.iter().position(|stands| !stands) {
            return Err(BadSlots::Missing { expert, slots });
        }
        Ok(Self::of_checked(expert_in, experts, slots / ranks))
    }

    /// The same with two experts in each other's slots, all their copies.
    ///
    /// # Panics
    /// An expert that the layer does not have.
    #[must_use]
    pub fn swapped(&self, one: usize, other: usize) -> Self {
        assert!(one.max(other) < self.experts(), "experts {one} and {other} of {}", self.experts());
        let swap = |expert: usize| match expert {
            _ if expert == one => other,
            _ if expert == other => one,
            _ => expert,
        };
        let expert_in = self.expert_in.iter().map(|held| held.map(swap)).collect();
        Self::of_checked(expert_in, self.experts(), self.slots_per_rank)
    }

    /// With more copies, `(expert, slot)`, in slots that are empty here.
    pub(crate) fn with(&self, copies: impl Iterator<Item = (usize, usize)>) -> Self {
        let mut expert_in = self.expert_in.clone();
        for (expert, slot) in copies {
            debug_assert!(expert_in[slot].is_none(), "slot {slot} holds expert {:?}", expert_in[slot]);
            expert_in[slot].get_or_insert(expert);
        }
        Self::of_checked(expert_in, self.experts(), self.slots_per_rank)
    }

    fn of_checked(expert_in: Vec<Option<usize>>, experts: usize, slots_per_rank: usize) -> Self {
        let mut first = vec![0; experts + 1];
        expert_in.iter().flatten().for_each(|&expert| first[expert + 1] += 1);
        (0..experts).for_each(|expert| first[expert + 1] += first[expert]);
        let mut next = first.clone();
        let mut copies = vec![0; first[experts]];
        for (slot, expert) in expert_in.iter().enumerate() {
            if let Some(expert) = *expert {
                copies[next[expert]] = slot;
                next[expert] += 1;
            }
        }
        Self { slots_per_rank, expert_in, copies, first }
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.first.len() - 1
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.expert_in.len() / self.slots_per_rank
    }

    /// Slots of one rank.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// Whether every slot holds one expert and every expert has one slot.
    pub fn is_bijection(&self) -> bool {
        self.copies.len() == self.experts() && self.expert_in.len() == self.experts()
    }

    /// Whether an expert has more than one slot.
    pub fn has_copies(&self) -> bool {
        self.copies.len() > self.experts()
    }

    /// The slots of an expert, ascending, counted over the group; at least one.
    pub fn slots_of(&self, expert: usize) -> &[usize] {
        &self.copies[self.first[expert]..self.first[expert + 1]]
    }

    /// The rank of an expert's first copy: its only one in a bijection, the one that copies are made from where there are more.
    pub fn rank_of(&self, expert: usize) -> usize {
        self.copies[self.first[expert]] / self.slots_per_rank
    }

    /// The ranks that hold an expert, ascending, each once.
    pub fn ranks_of(&self, expert: usize) -> impl Iterator<Item = usize> {
        let mut last = usize::MAX;
        let rank = self.slots_of(expert).iter().map(|slot| slot / self.slots_per_rank);
        rank.filter(move |&rank| std::mem::replace(&mut last, rank) != rank)
    }

    /// How many slots of a rank there are up to the last that holds an expert.
    pub fn filled(&self, rank: usize) -> usize {
        self.experts_of(rank).iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// What a rank's slots hold, in slot order.
    pub fn experts_of(&self, rank: usize) -> &[Option<usize>] {
        &self.expert_in[rank * self.slots_per_rank..(rank + 1) * self.slots_per_rank]
    }

    /// The first slot in which a rank holds an expert, counted on that rank; none where only other ranks do.
    pub fn slot_on(&self, rank: usize, expert: usize) -> Option<usize> {
        let own = self.slots_of(expert).iter().find(|&&slot| slot / self.slots_per_rank == rank);
        own.map(|slot| slot % self.slots_per_rank)
    }

    /// What each slot of the group holds, rank by rank.
    pub fn experts_in_slots(&self) -> &[Option<usize>] {
        &self.expert_in
    }

    /// The load of the fullest rank, for loads `[expert]` that are split evenly between copies.
    pub fn max_rank_load(&self, loads: &[u64]) -> u64 {
        let part = |&expert: &usize| loads[expert].div_ceil(self.slots_of(expert).len() as u64);
        (0..self.ranks()).map(|rank| self.experts_of(rank).iter().flatten().map(part).sum()).max().unwrap_or(0)
    }

    /// What must travel on the way to `next`, in expert order: a copy for every rank that has none, from the rank of the first that
    /// there is.
    pub fn moves_to(&self, next: &Self) -> Vec<Move> {
        let arrivals = |expert| next.ranks_of(expert).filter(move |&rank| self.slot_on(rank, expert).is_none());
        let moves = |expert| arrivals(expert).map(move |to| Move { expert, from: self.rank_of(expert), to });
        (0..self.experts()).flat_map(moves).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_experts_stand_in_each_others_slots() {
        let order = Placement::new(vec![2, 0, 3, 1], 2).unwrap();
        let swapped = order.swapped(0, 3);
        assert_eq!([0, 1, 2, 3].map(|expert| swapped.slots_of(expert)[0]), [1, 0, 3, 2]);
        assert_eq!(swapped.swapped(3, 0), order);
        let copies = Placement::of_slots(vec![Some(0), Some(1), Some(0), None], 2, 2).unwrap();
        assert_eq!(copies.swapped(0, 1).experts_in_slots(), [Some(1), Some(0), Some(1), None]);
        assert_eq!([0, 1].map(|rank| copies.filled(rank)), [2, 1]);
    }

    #[test]
    fn slots_on_a_rank_are_where_its_experts_stand() {
        let bijection = Placement::new(vec![2, 0, 3, 1], 2).unwrap();
        let copies = vec![Some(3), None, Some(1), Some(0), Some(1), Some(2), Some(1), Some(1)];
        let copies = Placement::of_slots(copies, 4, 2).unwrap();
        assert!(bijection.is_bijection() && !bijection.has_copies());
        assert!(!copies.is_bijection() && copies.has_copies());
        for placement in [bijection, copies] {
            for rank in 0..2 {
                for expert in 0..4 {
                    let stands = placement.experts_of(rank).iter().position(|&other| other == Some(expert));
                    assert_eq!(placement.slot_on(rank, expert), stands);
                    assert_eq!(placement.ranks_of(expert).any(|holder| holder == rank), stands.is_some());
                }
            }
        }
    }

    #[test]
    fn moves_are_the_experts_that_change_rank() {
        let now = Placement::identity(4, 2);
        let next = Placement::new(vec![1, 2, 0, 3], 2).unwrap();
        assert_eq!(next.experts_of(0), [Some(2), Some(0)]);
        assert_eq!(now.moves_to(&next), [Move { expert: 1, from: 0, to: 1 }, Move { expert: 2, from: 1, to: 0 }]);
        assert_eq!(now.max_rank_load(&[5, 1, 2, 3]), 6);
        assert_eq!(next.max_rank_load(&[5, 1, 2, 3]), 7);
    }

    #[test]
    fn copies_come_from_the_first_and_go_without_a_trace() {
        let now = Placement::in_order(3, 3, 2).unwrap();
        assert_eq!(now.experts_in_slots(), [Some(0), None, Some(1), None, Some(2), None]);
        let next = Placement::of_slots(vec![Some(0), Some(1), Some(1), Some(0), Some(2), Some(0)], 3, 3).unwrap();
        let to = |expert, from, to| Move { expert, from, to };
        assert_eq!(now.moves_to(&next), [to(0, 0, 1), to(0, 0, 2), to(1, 1, 0)]);
        assert_eq!(next.moves_to(&now), []);
        assert_eq!(next.slots_of(0), [0, 3, 5]);
        // Thirds of 9 and halves of 5.
        assert_eq!(next.max_rank_load(&[9, 5, 1]), 6);
    }

    #[test]
    fn only_bijections_are_placements_of_as_many_slots() {
        for slots in [vec![0, 0, 1, 2], vec![0, 1, 2, 4]] {
            let message = Placement::new(slots, 2).unwrap_err().to_string();
            assert!(message.contains("every one of the slots 0 to 3 once"), "{message}");
        }
    }

    #[test]
    fn slots_that_are_no_placement_say_why() {
        let check = |slots: &[Option<usize>], ranks, expected: &str| {
            let message = Placement::of_slots(slots.to_vec(), 2, ranks).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(&[Some(0), Some(1), None], 2, "3 slots on 2 ranks: expected a multiple");
        check(&[], 2, "0 slots on 2 ranks");
        check(&[Some(0), Some(2)], 2, "slot 1 holds expert 2: expected one below 2, or none");
        check(&[Some(0), None], 2, "expert 1 is in none of the 2 slots");
        assert!(Placement::in_order(4, 2, 1).is_err());
        // Fewer experts than ranks: some ranks hold none.
        assert_eq!(Placement::in_order(2, 4, 1).unwrap().experts_of(2), [None]);
    }
}
