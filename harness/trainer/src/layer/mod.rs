//! One MoE layer on one rank: the gate, and a system's layer program on real rows.
//!
//! [`moe`] is the layer itself and reads top to bottom: route (`gate`, `choices`), execute the program (`execute`, `pass`), which permutes tokens into
//! rows (`routing`, `splits`, `permute`), sends them and computes (`hierarchical`, `experts`, `together`, `copies`, `shards`, `parts`), unpermute. [`migrate`] moves experts between
//! iterations, [`copies`] sums the gradients of those with several copies. Nothing here decides: the policy gives the program, [`splits`] derives who sends what from it.

mod choices;
pub mod copies;
mod execute;
pub mod experts;
pub mod gate;
mod hierarchical;
pub mod migrate;
pub mod moe;
pub mod parts;
mod pass;
mod permute;
mod routing;
pub mod shards;
mod splits;
mod together;
