//! A rank's clock, and where its time goes.
//!
//! *Wall clock*: work and waits are timed as they happen, on the CPU by the monotonic clock, on a GPU by events on
//! libtorch's stream. Communication counts for the time that the rank waits for it.
//!
//! *Virtual clock*: ranks share one device and take turns on it. Each compute segment runs alone and is timed: on a CPU by the CPU
//! time of the thread; on a GPU behind other work ([`queue`]), so that all of it is issued before it begins. Data really moves between
//! ranks, and a collective takes what the cost model of the described cluster says; it starts at the clock of its last participant. So
//! the hosts of ranks that are emulated on a GPU always run ahead and take no time but for decisions: what they would take on hosts of
//! their own, those that share one cannot tell. To measure operations one by one, a virtual clock can time segments from an idle device
//! on instead, or until they are issued ([`timer::Measure`]).

mod marks;
pub mod pass;
pub(crate) mod queue;
pub mod timer;
