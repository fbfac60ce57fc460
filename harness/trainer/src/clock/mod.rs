//! A rank's clock, and where its time goes.
//!
//! *Wall clock*: work and waits are timed as they happen, on the CPU by the monotonic clock, on a GPU by events on
//! libtorch's stream. Communication counts for the time that the rank waits for it.
//!
//! *Virtual clock*: ranks share one device and take turns on it. Each compute segment runs alone and is timed (by the CPU
//! time of the thread; on a GPU, from idle to idle). Data really moves between ranks, and a collective takes what the cost
//! model of the described cluster says; it starts at the clock of its last participant. So an emulated rank's host never runs ahead: every
//! segment takes what it takes from an idle device on, launches included. To measure operations one by one, a virtual clock can time
//! segments behind other work instead, or until they are issued ([`timer::Measure`]).

mod marks;
pub mod pass;
pub(crate) mod queue;
pub mod timer;
