//! In place of the training engine, in a program that was built without the feature `train`.

use anyhow::{Result, bail};
use workloads::{EngineKind, Suite};

use crate::engines::Session;
use crate::engines::args::TrainingArgs;
use crate::machine::Finding;

/// # Errors
/// Always: how to build a program that can train.
pub fn open(_kind: EngineKind, _args: &TrainingArgs, _suite: &Suite) -> Result<Session> {
    bail!(
        "this moebench was built without the training engine: run scripts/libtorch once and build with \
         `cargo build --features train`"
    )
}

/// What `moebench doctor` says of the training engine.
pub fn findings() -> Vec<Finding> {
    let found =
        Err("built without the feature `train`: scripts/libtorch, then cargo build --features train".to_owned());
    vec![Finding { what: "trainer", found, serves: "training on real tensors" }]
}
