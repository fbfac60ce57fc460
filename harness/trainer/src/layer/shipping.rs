//! Where each entry of a micro-batch goes: the rows of every grouped call of every step, as one rank sends and receives them.
//!
//! Pure arithmetic on counts through [`Rows`], the same source that the simulator prices. A rank's rows lie in the order
//! `[step][call][owner][slot]`, so that each call sends one contiguous piece; rows of shadowed experts follow and stay.

use systems::program::{Exchange, LayerProgram, Rows};
use systems::{Placement, RoutingCounts};

/// One grouped call of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Call {
    /// First row of the piece that is sent.
    pub first: usize,
    /// Rows sent to each rank of the group.
    pub sent: Vec<usize>,
    /// Rows received from each rank.
    pub received: Vec<usize>,
    /// The slots of this rank that the call serves, as an index range.
    pub slots: std::ops::Range<usize>,
    /// `[source][slot of the call]`: rows received.
    pub parts: Vec<Vec<usize>>,
}

impl Call {
    /// Rows received for one slot of the call.
    pub fn arrived(&self, slot: usize) -> usize {
        self.parts.iter().map(|of| of[slot - self.slots.start]).sum()
    }
}

/// A rank's rows under one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shipping {
    /// `[step][call]`.
    pub steps: Vec<Vec<Call>>,
    /// `[expert]`: the first of its rows.
    pub base: Vec<usize>,
    /// Shadowed experts, with their first row and number of rows.
    pub shadows: Vec<(usize, usize, usize)>,
    /// Rows in all.
    pub rows: usize,
}

impl Shipping {
    /// The rows of rank `me` of the group.
    pub fn new(program: &LayerProgram, counts: &RoutingCounts, placement: &Placement, me: usize) -> Self {
        let rows = Rows::new(program, counts, placement);
        let slots = placement.slots_per_rank();
        let calls = match program.exchange {
            Exchange::PerExpert => slots,
            Exchange::Whole | Exchange::Hierarchical => 1,
        };
        let width = slots / calls;
        let ranges: Vec<std::ops::Range<usize>> = (0..calls).map(|call| call * width..(call + 1) * width).collect();
        let mut base = vec![0; counts.experts()];
        let mut next = 0;
        let mut steps = Vec::with_capacity(program.steps);
        for step in 0..program.steps {
            let calls = ranges.iter().map(|range| {
                let mut call = Call { first: next, slots: range.clone(), ..Call::default() };
                for owner in 0..rows.ranks() {
                    let meets = rows.step(me, owner) == step;
                    let mut sent = 0;
                    for &expert in rows.experts_of(owner)[range.clone()].iter().filter(|_| meets) {
                        let number = rows.sent(me, expert) as usize;
                        base[expert] = next;
                        next += number;
                        sent += number;
                    }
                    call.sent.push(sent);
                }
                for source in 0..rows.ranks() {
                    let meets = rows.step(source, me) == step;
                    let own = &rows.experts_of(me)[range.clone()];
                    let part = own.iter().map(|&e| if meets { rows.sent(source, e) as usize } else { 0 });
                    let part: Vec<usize> = part.collect();
                    call.received.push(part.iter().sum());
                    call.parts.push(part);
                }
                call
            });
            steps.push(calls.collect());
        }
        let mut shadows = Vec::new();
        for &expert in &program.shadowed {
            let number = rows.shadowed(me, expert) as usize;
            base[expert] = next;
            shadows.push((expert, next, number));
            next += number;
        }
        Self { steps, base, shadows, rows: next }
    }

    /// The row of every choice, in the order of choices; none for one that was dropped.
    pub fn positions(&self, choices: &[Option<usize>]) -> Vec<Option<usize>> {
        let mut next = self.base.clone();
        let place = |choice: &Option<usize>| {
            choice.map(|expert| {
                next[expert] += 1;
                next[expert] - 1
            })
        };
        choices.iter().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::program::Layout;

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
            let all: Vec<Shipping> = (0..4).map(|me| Shipping::new(&program, &counts(), &placement, me)).collect();
            for (me, mine) in all.iter().enumerate() {
                let mut sent = 0;
                for (step, calls) in mine.steps.iter().enumerate() {
                    for (index, call) in calls.iter().enumerate() {
                        assert_eq!(call.first, sent);
                        sent += call.sent.iter().sum::<usize>();
                        for (other, theirs) in all.iter().enumerate() {
                            assert_eq!(call.sent[other], theirs.steps[step][index].received[me]);
                        }
                    }
                }
                assert_eq!(mine.rows, sent + mine.shadows.iter().map(|shadow| shadow.2).sum::<usize>());
            }
        }
    }

    #[test]
    fn choices_take_the_rows_of_their_expert_in_order() {
        let counts = RoutingCounts::new(2, vec![2, 1, 0, 0]);
        let shipping = Shipping::new(&LayerProgram::expert_parallel(), &counts, &Placement::identity(2, 2), 0);
        let positions = shipping.positions(&[Some(1), Some(0), None, Some(0)]);
        assert_eq!(positions, [Some(2), Some(0), None, Some(1)]);
    }
}
