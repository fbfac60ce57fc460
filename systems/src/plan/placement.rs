//! Placements: which expert lives in which slot of which rank of an expert-parallel group.
//!
//! A *logical* expert is what the gate chooses; its *physical* number is its slot, counted over the group's ranks. Every
//! expert-data-parallel replica uses the same placement.

use thiserror::Error;

/// A bijection from the experts of one MoE layer to the slots of an expert-parallel group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    slots_per_rank: usize,
    /// `[expert]`: its slot.
    slot_of: Vec<usize>,
    /// `[slot]`: its expert.
    expert_in: Vec<usize>,
}

/// One expert that changes rank, weights and optimizer state.
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

impl Placement {
    /// Expert `e` on rank `e / (experts / ranks)`, in order: where training starts.
    pub fn identity(experts: usize, ranks: usize) -> Self {
        Self { slots_per_rank: experts / ranks, slot_of: (0..experts).collect(), expert_in: (0..experts).collect() }
    }

    /// A placement from the slot of each expert.
    ///
    /// # Errors
    /// When a slot is beyond the last or used twice.
    pub fn new(slot_of: Vec<usize>, ranks: usize) -> Result<Self, NotABijection> {
        let slots = slot_of.len();
        let mut expert_in = vec![usize::MAX; slots];
        for (expert, &slot) in slot_of.iter().enumerate() {
            if slot >= slots || expert_in[slot] != usize::MAX {
                return Err(NotABijection { expert, slot, slots });
            }
            expert_in[slot] = expert;
        }
        Ok(Self { slots_per_rank: slots / ranks, slot_of, expert_in })
    }

    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.slot_of.len()
    }

    /// Ranks of the group.
    pub fn ranks(&self) -> usize {
        self.experts() / self.slots_per_rank
    }

    /// Experts that one rank holds.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// The rank of the group that holds an expert.
    pub fn rank_of(&self, expert: usize) -> usize {
        self.slot_of[expert] / self.slots_per_rank
    }

    /// The experts of a rank, in slot order.
    pub fn experts_of(&self, rank: usize) -> &[usize] {
        &self.expert_in[rank * self.slots_per_rank..(rank + 1) * self.slots_per_rank]
    }

    /// The slot in which a rank holds an expert, counted on that rank; none where another rank does.
    pub fn slot_on(&self, rank: usize, expert: usize) -> Option<usize> {
        (self.rank_of(expert) == rank).then(|| self.slot_of[expert] % self.slots_per_rank)
    }

    /// The expert in each slot of the group, rank by rank.
    pub fn experts_in_slots(&self) -> &[usize] {
        &self.expert_in
    }

    /// The load of the fullest rank, for loads `[expert]`.
    pub fn max_rank_load(&self, loads: &[u64]) -> u64 {
        (0..self.ranks()).map(|rank| self.experts_of(rank).iter().map(|&e| loads[e]).sum()).max().unwrap_or(0)
    }

    /// The experts that change rank on the way to `next`, in expert order.
    pub fn moves_to(&self, next: &Self) -> Vec<Move> {
        (0..self.experts())
            .map(|expert| Move { expert, from: self.rank_of(expert), to: next.rank_of(expert) })
            .filter(|m| m.from != m.to)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_on_a_rank_are_where_its_experts_stand() {
        let placement = Placement::new(vec![2, 0, 3, 1], 2).unwrap();
        for rank in 0..2 {
            for expert in 0..4 {
                let stands = placement.experts_of(rank).iter().position(|&other| other == expert);
                assert_eq!(placement.slot_on(rank, expert), stands);
            }
        }
    }

    #[test]
    fn moves_are_the_experts_that_change_rank() {
        let now = Placement::identity(4, 2);
        let next = Placement::new(vec![1, 2, 0, 3], 2).unwrap();
        assert_eq!(next.experts_of(0), [2, 0]);
        assert_eq!(now.moves_to(&next), [Move { expert: 1, from: 0, to: 1 }, Move { expert: 2, from: 1, to: 0 }]);
        assert_eq!(now.max_rank_load(&[5, 1, 2, 3]), 6);
        assert_eq!(next.max_rank_load(&[5, 1, 2, 3]), 7);
    }

    #[test]
    fn only_bijections_are_placements() {
        for slots in [vec![0, 0, 1, 2], vec![0, 1, 2, 4]] {
            let message = Placement::new(slots, 2).unwrap_err().to_string();
            assert!(message.contains("every one of the slots 0 to 3 once"), "{message}");
        }
    }
}
