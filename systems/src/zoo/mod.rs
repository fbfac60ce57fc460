//! The systems: one file, one paper. No file here uses another.
//!
//! A system is added by its file and one line in the table below, which names the file and the systems in it. The order
//! of the table is the order of figures.

/// Declares the file of each paper as a module, and `ALL`: every system of the named ones, in order.
#[macro_export]
macro_rules! zoo {
    ($($paper:ident::{ $($system:ident),+ $(,)? }),+ $(,)?) => {
        $(pub mod $paper;)+

        /// Every system, in the order of figures.
        pub static ALL: &[&dyn $crate::System] = &[$($(&$paper::$system),+),+];
    };
}

zoo! {
    expert_only::{ExpertOnly},
    fastermoe::{FASTERMOE, GROUPS_OF_FOUR, UNPIPELINED, UNSHADOWED, TOPOLOGY_GATE},
    deepspeed::{DEEPSPEED, ARTIFACT},
    tutel::{TUTEL, SHARDED},
    alpa::{Alpa},
    megatron::{MEGATRON, OVERLAPPED, DEEPEP, DEEPEP_OVERLAPPED},
    fsdp_ep::{FSDP_EP, QUEUED},
    smartmoe::{
        SMARTMOE, OFFLINE_ONLY, UNIFORM_ESTIMATE, PAPER_ESTIMATE, MIGRATION_AWARE, LAST_ITERATION, FREE_MIGRATION,
        WEIGHTS_ONLY_MIGRATION,
    },
    eplb::{Eplb},
    flexmoe::{FLEXMOE, ON_SHARDS},
    quota::{ULTRAEP, MOONEP, LEAST_LOADED},
    microep::{MICROEP, ASYMMETRIC},
    laer::{Laer},
    symi::{Symi},
    cobalance::{CoBalance},
    ideal::{Ideal},
}
