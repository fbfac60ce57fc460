//! One MoE layer on one rank: the gate, and a system's layer program on real rows.
//!
//! [`moe`] is the layer itself and reads top to bottom: route (`gate`), permute tokens into rows (`routing`, `splits`, `permute`),
//! execute the program (`execute`, `pass`, `hierarchical`, `experts`), unpermute. [`migrate`] moves experts between
//! iterations. Nothing here decides: the policy gives the program, [`splits`] derives who sends what from it.

mod execute;
pub mod experts;
pub mod gate;
mod hierarchical;
pub mod migrate;
pub mod moe;
mod pass;
mod permute;
mod routing;
mod splits;
