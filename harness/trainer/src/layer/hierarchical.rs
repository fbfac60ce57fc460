//! The two hops of a hierarchical exchange: first inside the node, to the rank that forwards rows; then across nodes, to
//! their owners. Rows are put into the order of each hop before it, and sorted by source after the second.

use systems::price::traffic::relay;
use systems::program::{LayerProgram, Rows};
use systems::{Placement, RoutingCounts};
use tch::Tensor;

use crate::comm::{CommError, Communicator};

/// A rank's part of both hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchical {
    hops: [Hop; 2],
    /// Where the rows of each source are after the second hop.
    by_source: Vec<Piece>,
}

/// First row and number of rows.
type Piece = (usize, usize);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hop {
    /// The order in which rows are sent.
    order: Vec<Piece>,
    input: Vec<usize>,
    output: Vec<usize>,
}

impl Hierarchical {
    /// The part of rank `me`; `nodes[rank]` ascend.
    pub(super) fn new(
        program: &LayerProgram,
        counts: &RoutingCounts,
        placement: &Placement,
        nodes: &[usize],
        me: usize,
    ) -> Self {
        let rows = Rows::new(program, counts, placement);
        let ranks = rows.ranks();
        let between = |source: usize, owner: usize| -> usize {
            (0..rows.slots_per_rank()).map(|slot| rows.sent(source, owner, slot) as usize).sum()
        };
        let passes = |source: usize, owner: usize, by: usize| relay(source, owner, nodes) == by;
        let all = || 0..ranks;

        // By owner here; to be sent by relay, then owner.
        let from_me: Vec<Piece> = pieces(all().map(|owner| between(me, owner)));
        let first = all().flat_map(|by| all().filter(move |&o| passes(me, o, by))).map(|o| from_me[o]).collect();
        let first_sent = |by: usize| all().filter(|&o| passes(me, o, by)).map(|o| between(me, o)).sum();
        let first_received = |s: usize| all().filter(|&o| passes(s, o, me)).map(|o| between(s, o)).sum();

        // By source, then owner here; to be sent by owner, then source.
        let passed: Vec<(usize, usize)> =
            all().flat_map(|s| all().filter(move |&o| passes(s, o, me)).map(move |o| (s, o))).collect();
        let held = pieces(passed.iter().map(|&(s, o)| between(s, o)));
        let mut second: Vec<usize> = (0..passed.len()).collect();
        second.sort_by_key(|&index| (passed[index].1, passed[index].0));
        let second_sent =
            |owner: usize| passed.iter().filter(|pair| pair.1 == owner).map(|&(s, o)| between(s, o)).sum();
        let second_received = |by: usize| all().filter(|&s| passes(s, me, by)).map(|s| between(s, me)).sum();

        // By relay, then source here.
        let mut arrived: Vec<usize> = all().collect();
        arrived.sort_by_key(|&source| (relay(source, me, nodes), source));
        let there = pieces(arrived.iter().map(|&source| between(source, me)));
        let mut by_source: Vec<usize> = all().collect();
        by_source.sort_by_key(|&index| arrived[index]);
        Self {
            hops: [
                Hop {
                    order: first,
                    input: all().map(first_sent).collect(),
                    output: all().map(first_received).collect(),
                },
                Hop {
                    order: second.into_iter().map(|index| held[index]).collect(),
                    input: all().map(second_sent).collect(),
                    output: all().map(second_received).collect(),
                },
            ],
            by_source: by_source.into_iter().map(|index| there[index]).collect(),
        }
    }

    /// Sends rows, ordered by owner, to their owners; returns what arrives, ordered by source.
    pub(super) fn dispatch(&self, group: &dyn Communicator, rows: &Tensor) -> Result<Tensor, CommError> {
        let mut rows = rows.shallow_clone();
        for hop in &self.hops {
            rows = group.all_to_all(&pick(&rows, &hop.order), &hop.input, &hop.output)?.wait()?;
        }
        Ok(pick(&rows, &self.by_source))
    }

    /// Sends outputs, ordered by source, back to the ranks of their tokens; returns what arrives, ordered by owner.
    pub(super) fn combine(&self, group: &dyn Communicator, rows: &Tensor) -> Result<Tensor, CommError> {
        let mut rows = put_back(rows, &self.by_source);
        for hop in self.hops.iter().rev() {
            rows = put_back(&group.all_to_all(&rows, &hop.output, &hop.input)?.wait()?, &hop.order);
        }
        Ok(rows)
    }
}

/// Contiguous pieces of these lengths.
fn pieces(lengths: impl Iterator<Item = usize>) -> Vec<Piece> {
    let mut next = 0;
    let place = |length| {
        next += length;
        (next - length, length)
    };
    lengths.map(place).collect()
}

/// The pieces of `rows` in the given order.
fn pick(rows: &Tensor, order: &[Piece]) -> Tensor {
    let parts: Vec<Tensor> = order.iter().map(|&(first, length)| rows.narrow(0, first as i64, length as i64)).collect();
    Tensor::cat(&parts, 0)
}

/// Undoes [`pick`].
fn put_back(rows: &Tensor, order: &[Piece]) -> Tensor {
    let sizes: Vec<i64> = order.iter().map(|&(_, length)| length as i64).collect();
    let mut parts: Vec<(usize, Tensor)> =
        order.iter().map(|&(first, _)| first).zip(rows.split_with_sizes(sizes.as_slice(), 0)).collect();
    parts.sort_by_key(|&(first, _)| first);
    Tensor::cat(&parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>(), 0)
}
