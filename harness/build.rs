//! The commit that is built. With the feature `train`: the program finds at run time the libtorch that it was linked to. `LD_LIBRARY_PATH` goes
//! first.

use std::path::Path;
use std::process::Command;

/// What is built, from here.
const SOURCES: [&str; 4] = [".", "../workloads", "../systems", "../Cargo.lock"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    commit();
    if std::env::var_os("CARGO_FEATURE_TRAIN").is_none() {
        return;
    }
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{libtorch}/lib");
    }
}

/// The commit of the checkout, and whether what is built has changes since. Neither where this is none, such as an archive of the sources.
fn commit() {
    SOURCES.iter().for_each(|path| println!("cargo:rerun-if-changed={path}"));
    let tracked = git(&["ls-files", "--error-unmatch", "build.rs"]).is_some();
    let Some(commit) = git(&["rev-parse", "HEAD"]).filter(|_| tracked) else { return };
    let changes = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat());
    println!("cargo:rustc-env=MOEBENCH_COMMIT={commit}");
    println!("cargo:rustc-env=MOEBENCH_DIRTY={}", changes.is_none_or(|changes| !changes.is_empty()));
    // One of both changes with every commit.
    for name in ["logs/HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
            return;
        }
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
