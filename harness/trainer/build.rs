//! Builds what libtorch's C interface lacks. Tests of this crate find at run time the libtorch that they were linked to; `LD_LIBRARY_PATH`
//! goes first.

use std::path::PathBuf;

const SOURCE: &str = "src/cuda/kept.cpp";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{libtorch}/lib");
    }
    // By torch-sys, which builds its own part of this kind.
    let libraries = PathBuf::from(std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is"));
    let headers = libraries.with_file_name("include");
    cc::Build::new().cpp(true).std("c++17").warnings(false).include(headers).file(SOURCE).compile("moebench_kept");
}
