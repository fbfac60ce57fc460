//! The GPU as far as libtorch's bindings do not reach: its libraries, found at run time; streams, events and memory.
//!
//! The program is linked to the CPU half of libtorch alone, so it starts where there is no CUDA. `libtorch_cuda.so` registers
//! its kernels when it is opened, which must happen before libtorch is first asked for a GPU. All of libtorch's work goes to
//! the default stream of the device, which is ordered against other streams by events.

mod device;
mod library;

use std::path::PathBuf;

pub use device::{Event, Gpu, Memory, Stream, device_names, driver_version, kernel_driver_version};
pub(crate) use library::loader_message;
pub use library::{find, libtorch_path, libtorch_version, load};

const LIBRARY: &str = "libtorch_cuda.so";

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    #[error("no CUDA driver: libcuda.so.1 is not found; install NVIDIA's driver, or train on the CPU")]
    NoDriver,
    #[error("{LIBRARY} is not found: searched {}; install PyTorch {wanted} with CUDA, or name its lib folder in LD_LIBRARY_PATH", paths(.searched))]
    NoLibrary { searched: Vec<PathBuf>, wanted: String },
    /// The GPU half of libtorch has another version than the CPU half.
    #[error("{path}: of version {found}: expected {wanted}, that of the libtorch in use", path = .path.display())]
    Version { path: PathBuf, found: String, wanted: String },
    #[error("{path}: {reason}", path = .path.display())]
    NotLoaded { path: PathBuf, reason: String },
    /// The GPU half of libtorch finds no GPU.
    #[error("{path} is loaded, and finds no GPU; is the driver ({driver}) new enough for it?", path = .path.display())]
    NoGpu { path: PathBuf, driver: String },
    #[error("GPU {ordinal}: there are {devices}")]
    NoDevice { ordinal: usize, devices: usize },
    #[error("the run-time compiler of CUDA, libnvrtc, is not found: searched {}; it comes with PyTorch with CUDA", paths(.searched))]
    NoCompiler { searched: Vec<PathBuf> },
    /// The run-time compiler refuses one of our kernels: a defect, or a GPU that is too old.
    #[error("{file}: the run-time compiler of CUDA fails with status {status}: {log}")]
    NotCompiled { file: &'static str, status: i32, log: String },
    #[error("{call}: {reason}")]
    Driver { call: &'static str, reason: String },
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
