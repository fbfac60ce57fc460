//! Tests of this crate find at run time the libtorch that they were linked to. `LD_LIBRARY_PATH` goes first.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,--enable-new-dtags,-rpath,{libtorch}/lib");
    }
}
