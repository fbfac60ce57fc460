//! The measurements and the routing trace that were published with SmartMoE, and the measurements that were published with LAER-MoE, which are
//! no part of this repository.
//!
//! Tests that need them are ignored, with "published" in their names: with MOEBENCH_SHARED set to the folder that holds
//! `data/smartmoe-ae` and `data/laer-ae`, `cargo test --workspace -- --ignored published` runs them all, and none passes without the data.

use std::path::{Path, PathBuf};

/// A file or folder of `data/smartmoe-ae`.
pub(crate) fn shared_data(name: &str) -> PathBuf {
    of_study("smartmoe-ae", name)
}

/// A file or folder of a study's published data.
pub(crate) fn of_study(study: &str, name: &str) -> PathBuf {
    let shared = std::env::var_os("MOEBENCH_SHARED").expect("MOEBENCH_SHARED names the folder of the published data");
    let path = Path::new(&shared).join("data").join(study).join(name);
    assert!(path.exists(), "{} is missing", path.display());
    path
}
