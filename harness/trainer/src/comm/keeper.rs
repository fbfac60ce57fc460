//! What the groups of one world leave to those of the next in the same processes: what takes seconds to make, such as connections.
//!
//! A group takes what the last one of its name and members left in order; the name says what a group is for, and so which connections
//! were made. All members take the same or none does: whoever lost its own, as after a failure that others did not see, makes all
//! make anew. What is taken is no longer kept, so two groups never share it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use super::exchange::Exchange;
use super::{CommError, Communicator};

/// What one process keeps between its worlds.
pub(super) struct Keeper<T> {
    state: Mutex<State<T>>,
    /// Ends what is given up.
    end: fn(Vec<T>),
}

struct State<T> {
    idle: Vec<Idle<T>>,
    /// Whether the present world has failed: nothing is kept of it.
    failed: bool,
}

/// What a group has left.
struct Idle<T> {
    group: String,
    /// Its ranks of the world, by member.
    members: Vec<usize>,
    /// The same at all members, another for all else.
    identity: u64,
    value: T,
}

impl<T> Keeper<T> {
    /// A keeper of nothing yet. `end` gets what is given up and may take long.
    pub(super) fn new(end: fn(Vec<T>)) -> Self {
        Self { state: Mutex::new(State { idle: Vec::new(), failed: false }), end }
    }

    /// A new world begins.
    pub(super) fn begin(&self) {
        self.lock().failed = false;
    }

    /// What all members of the group have kept for it. They call this together, and where one has nothing or something else, none gets
    /// anything and what each had is given up.
    ///
    /// # Errors
    /// A member that died or does not arrive.
    pub(super) fn take(&self, group: &Exchange) -> Result<Option<T>, CommError> {
        let own = self.find(group);
        let says = Tensor::from_slice(&own.as_ref().map_or([0, 0], |idle| [1, idle.identity as i64]));
        let agree = || -> Result<bool, CommError> {
            let all = group.all_gather(&says)?.wait()?;
            Ok((0..group.size()).all(|member| all.get(member as i64).equal(&says)))
        };
        let (agreed, own) = (agree(), own.map(|idle| idle.value));
        if let Ok(true) = agreed {
            return Ok(own);
        }
        (self.end)(own.into_iter().collect());
        agreed.map(|_| None)
    }

    /// Keeps what a group leaves that all members have left in order; gives it up where the world has failed since.
    pub(super) fn keep(&self, group: &Exchange, identity: u64, value: T) {
        let mut state = self.lock();
        if state.failed {
            drop(state);
            return (self.end)(vec![value]);
        }
        let (group, members) = (group.name().to_owned(), group.members().to_vec());
        state.idle.push(Idle { group, members, identity, value });
    }

    /// Gives up what no group of the present world has taken.
    pub(super) fn release(&self) {
        let given_up = std::mem::take(&mut self.lock().idle);
        (self.end)(given_up.into_iter().map(|idle| idle.value).collect());
    }

    /// The present world has failed: gives up everything, and what its groups still leave.
    pub(super) fn fail(&self) {
        self.lock().failed = true;
        self.release();
    }

    /// The identities of what is kept.
    #[cfg(test)]
    pub(super) fn identities(&self) -> Vec<u64> {
        self.lock().idle.iter().map(|idle| idle.identity).collect()
    }

    fn find(&self, group: &Exchange) -> Option<Idle<T>> {
        let mut state = self.lock();
        let is_of = |idle: &Idle<T>| idle.group == group.name() && idle.members == group.members();
        let found = state.idle.iter().position(is_of)?;
        Some(state.idle.remove(found))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Keeper<T> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::comm::threads;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What two ranks keep from world to world, and a number for all that is made in either.
    struct Two {
        keepers: [Keeper<Arc<u64>>; 2],
        made: AtomicU64,
    }

    impl Two {
        fn new() -> Self {
            Self { keepers: [Keeper::new(drop), Keeper::new(drop)], made: AtomicU64::new(0) }
        }

        /// A world of both ranks; returns what each returns.
        fn world<R: Send>(&self, rank: impl Fn(&Keeper<Arc<u64>>, &Exchange) -> R + Sync) -> [R; 2] {
            let ends = threads::run(2, PATIENCE, |world| {
                let keeper = &self.keepers[world.rank()];
                keeper.begin();
                Ok::<_, CommError>(rank(keeper, world))
            });
            <[R; 2]>::try_from(ends.into_iter().map(|end| end.ok().unwrap()).collect::<Vec<_>>()).ok().unwrap()
        }

        /// As a backend does: takes what is kept, or makes something new under a number of the first member.
        fn join(&self, keeper: &Keeper<Arc<u64>>, group: &Exchange) -> Arc<u64> {
            if let Some(kept) = keeper.take(group).unwrap() {
                return kept;
            }
            let new = if group.rank() == 0 { self.made.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
            let new = group.broadcast(&Tensor::from_slice(&[new as i64]), 0).unwrap().wait().unwrap();
            Arc::new(new.int64_value(&[0]) as u64)
        }

        /// The numbers that the groups `of` a world get, which leave in order; all members get the same.
        fn numbers(&self, of: &[(&str, &[Vec<usize>])]) -> Vec<u64> {
            let [first, second] = self.world(|keeper, world| {
                let groups: Vec<Exchange> = of.iter().map(|(name, groups)| world.part(name, groups).unwrap()).collect();
                let joined: Vec<Arc<u64>> = groups.iter().map(|group| self.join(keeper, group)).collect();
                for (group, own) in groups.iter().zip(&joined) {
                    keeper.keep(group, **own, own.clone());
                }
                joined.iter().map(|own| **own).collect::<Vec<u64>>()
            });
            assert_eq!(first, second);
            first
        }
    }

    #[test]
    fn groups_of_the_same_name_and_members_get_what_the_last_left() {
        let (two, both, turned) = (Two::new(), [vec![0, 1]], [vec![1, 0]]);
        assert_eq!(two.numbers(&[("a", &both), ("b", &both)]), [1, 2]);
        assert_eq!(two.numbers(&[("b", &both), ("a", &both)]), [2, 1]);
        assert_eq!(two.numbers(&[("c", &both), ("a", &turned), ("a", &both)]), [3, 4, 1]);
        // Alive at once: one takes what there is, the other is new, and both are kept.
        assert_eq!(two.numbers(&[("a", &both), ("a", &both)]), [1, 5]);
        assert_eq!(two.numbers(&[("a", &both), ("a", &both)]), [1, 5]);
    }

    #[test]
    fn a_member_that_lost_its_own_or_has_another_makes_all_make_anew() {
        let (two, both): (_, [Vec<usize>; 1]) = (Two::new(), [vec![0, 1]]);
        let asked: &[(&str, &[Vec<usize>])] = &[("a", &both)];
        assert_eq!(two.numbers(asked), [1]);
        two.keepers[1].fail();
        assert_eq!(two.numbers(asked), [2], "rank 1 has nothing");
        two.world(|keeper, world| {
            let group = world.part("a", &both).unwrap();
            let own = 7 + world.rank() as u64;
            drop(keeper.find(&group));
            keeper.keep(&group, own, Arc::new(own));
        });
        assert_eq!(two.numbers(asked), [3], "each has another");
        assert_eq!(two.keepers.each_ref().map(Keeper::identities), [[3], [3]], "what they had is gone");
        assert_eq!(two.numbers(asked), [3]);
    }

    #[test]
    fn a_world_that_failed_leaves_nothing() {
        let (two, both) = (Two::new(), [vec![0, 1]]);
        assert_eq!(two.numbers(&[("a", &both), ("b", &both)]), [1, 2]);
        let ended = two.world(|keeper, world| {
            let [a, c] = ["a", "c"].map(|name| world.part(name, &both).unwrap());
            let [of_a, of_c] = [&a, &c].map(|group| two.join(keeper, group));
            keeper.keep(&a, *of_a, of_a.clone());
            keeper.fail();
            keeper.keep(&c, *of_c, of_c.clone());
            // Nobody else holds what was given up, so it has ended.
            (keeper.identities(), Arc::strong_count(&of_a), Arc::strong_count(&of_c))
        });
        assert_eq!(ended, [(Vec::new(), 1, 1), (Vec::new(), 1, 1)]);
        assert_eq!(two.numbers(&[("a", &both), ("b", &both), ("c", &both)]), [4, 5, 6]);
    }

    #[test]
    fn what_a_world_does_not_take_is_released() {
        let (two, both) = (Two::new(), [vec![0, 1]]);
        assert_eq!(two.numbers(&[("a", &both), ("b", &both)]), [1, 2]);
        two.world(|keeper, world| {
            let group = world.part("b", &both).unwrap();
            let own = two.join(keeper, &group);
            keeper.release();
            keeper.keep(&group, *own, own.clone());
        });
        assert_eq!(two.keepers.each_ref().map(Keeper::identities), [[2], [2]]);
    }

    #[test]
    fn a_rank_that_dies_ends_the_agreement_and_takes_what_was_offered_along() {
        let (two, both): (_, [Vec<usize>; 1]) = (Two::new(), [vec![0, 1]]);
        assert_eq!(two.numbers(&[("a", &both)]), [1]);
        let [failed, _] = two.world(|keeper, world| {
            let group = world.part("a", &both).unwrap();
            if world.rank() == 1 {
                world.fail("on purpose");
                return true;
            }
            keeper.take(&group).is_err_and(|error| error.to_string().contains("rank 1 died: on purpose"))
        });
        assert!(failed);
        assert!(two.keepers[0].identities().is_empty());
    }
}
