//! The GPU as far as libtorch's bindings do not reach: its libraries, found at run time; streams, events and memory.
//!
//! The program is linked to the CPU half of libtorch alone, so it starts where there is no CUDA. `libtorch_cuda.so` registers
//! its kernels when it is opened, which must come before libtorch is first asked for a GPU. All of libtorch's work goes to
//! the default stream of the device, which this module orders against streams of its own by events.

use std::error::Error;
use std::ffi::{OsStr, c_int};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

const LIBRARY: &str = "libtorch_cuda.so";

/// Why a GPU cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    /// No driver.
    #[error("no CUDA driver: libcuda.so.1 is not found; install NVIDIA's driver, or train on the CPU")]
    NoDriver,
    /// The GPU half of libtorch is not found.
    #[error("{LIBRARY} is not found: searched {}; install PyTorch {wanted} with CUDA, or name its lib folder in LD_LIBRARY_PATH", paths(.searched))]
    NoLibrary {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
        /// The version needed.
        wanted: String,
    },
    /// It is of another version than the CPU half.
    #[error("{path}: of version {found}: expected {wanted}, that of the libtorch in use", path = .path.display())]
    Version {
        /// The library.
        path: PathBuf,
        /// Its version.
        found: String,
        /// The version of the CPU half.
        wanted: String,
    },
    /// It does not load.
    #[error("{path}: {reason}", path = .path.display())]
    NotLoaded {
        /// The library.
        path: PathBuf,
        /// What the loader says.
        reason: String,
    },
    /// It loads and finds no GPU.
    #[error("{path} is loaded, and finds no GPU; is the driver ({driver}) new enough for it?", path = .path.display())]
    NoGpu {
        /// The library.
        path: PathBuf,
        /// CUDA version of the driver.
        driver: String,
    },
    /// No such GPU.
    #[error("GPU {ordinal}: there are {devices}")]
    NoDevice {
        /// The number asked for.
        ordinal: usize,
        /// GPUs seen.
        devices: usize,
    },
    /// The driver refuses.
    #[error("{call}: {reason}")]
    Driver {
        /// What was asked.
        call: &'static str,
        /// What it says.
        reason: String,
    },
}

fn paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// The GPU half of libtorch, ready for the first tensor. Opened once; what that gave is given again. To be called before
/// anything else asks libtorch for a GPU: libtorch remembers that there was none.
///
/// # Errors
/// What is missing, where it was looked for, and what to do.
pub fn load() -> Result<&'static Path, CudaError> {
    static LOADED: OnceLock<Result<PathBuf, CudaError>> = OnceLock::new();
    LOADED.get_or_init(load_once).as_deref().map_err(Clone::clone)
}

fn load_once() -> Result<PathBuf, CudaError> {
    let driver = driver_version().ok_or(CudaError::NoDriver)?;
    let path = find()?;
    // SAFETY: what runs when it is opened is libtorch's own set-up.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    let library =
        library.map_err(|error| CudaError::NotLoaded { path: path.clone(), reason: loader_message(&error) })?;
    // Its kernels are in use until the end.
    std::mem::forget(library);
    if tch::Cuda::is_available() { Ok(path) } else { Err(CudaError::NoGpu { path, driver }) }
}

/// What the system's loader says; the error itself tells only which call failed.
pub(super) fn loader_message(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Where the GPU half of libtorch lies.
///
/// # Errors
/// When it lies nowhere, or is of another version.
pub fn find() -> Result<PathBuf, CudaError> {
    let wanted = libtorch_version();
    let mut searched = Vec::new();
    let mut other_version = None;
    for folder in folders() {
        let path = folder.join(LIBRARY);
        if path.exists() {
            match version_beside(&folder) {
                Some(found) if release(&found) != wanted => {
                    let wanted = wanted.clone();
                    other_version.get_or_insert(CudaError::Version { path, found, wanted });
                }
                _ => return Ok(path),
            }
        }
        searched.push(folder);
    }
    Err(other_version.unwrap_or(CudaError::NoLibrary { searched, wanted }))
}

/// Version of the libtorch in use.
pub fn libtorch_version() -> String {
    // SAFETY: libtorch exports this function, without arguments: a byte each for major, minor and patch, from the top.
    let number =
        unsafe { Library::this().get::<unsafe extern "C" fn() -> u64>(b"aoti_torch_abi_version\0").map(|ask| ask()) };
    number.map_or_else(
        |_| "unknown".to_owned(),
        |number| {
            let [major, minor, patch, ..] = number.to_be_bytes();
            format!("{major}.{minor}.{patch}")
        },
    )
}

/// The libtorch in use: its CPU half, as the system loaded it.
pub fn libtorch_path() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let path =
        maps.lines().filter_map(|line| line.split_once('/')).find(|(_, path)| path.ends_with("/libtorch_cpu.so"))?.1;
    Some(Path::new("/").join(path))
}

/// Where to look, the likeliest first, each once.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> =
        libtorch_path().and_then(|path| path.parent().map(Path::to_owned)).into_iter().collect();
    folders.extend(std::env::var_os("LD_LIBRARY_PATH").iter().flat_map(std::env::split_paths));
    folders.extend(std::env::var_os("LIBTORCH").map(|root| Path::new(&root).join("lib")));
    folders.extend(installed_pytorch());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| folder != OsStr::new("") && seen.insert(folder.clone()));
    folders
}

/// The lib folder of the PyTorch that python3 would import.
fn installed_pytorch() -> Option<PathBuf> {
    let ask = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new("python3").args(["-c", ask]).output().ok().filter(|output| output.status.success())?;
    Some(Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("lib"))
}

/// What a lib folder's libtorch says of its version: `version.py` of an installed PyTorch, `build-version` of an archive.
fn version_beside(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    let archive = fs::read_to_string(root.join("build-version")).ok().map(|text| text.trim().to_owned());
    archive.or_else(|| {
        let text = fs::read_to_string(root.join("version.py")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    })
}

/// A version without what says for which CUDA it was built.
fn release(version: &str) -> &str {
    version.split('+').next().unwrap_or(version)
}

/// CUDA version of the driver, as `13.0`; none when there is no driver.
pub fn driver_version() -> Option<String> {
    // SAFETY: opens the driver's library, if there is one.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let mut version: c_int = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    Some(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Release of the kernel's driver, as `580.65.06`.
pub fn kernel_driver_version() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.split_whitespace().find(is_version).map(str::to_owned)
}

/// GPUs that the driver shows, by name; none without a driver.
pub fn device_names() -> Vec<String> {
    if driver_version().is_none() || result::init().is_err() {
        return Vec::new();
    }
    let devices = result::device::get_count().unwrap_or(0);
    let name = |ordinal| result::device::get(ordinal).and_then(result::device::get_name);
    (0..devices).map(|ordinal| name(ordinal).unwrap_or_else(|error| error.to_string())).collect()
}

/// Memory of a GPU in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// In use, by this process and others.
    pub used: u64,
    /// In all.
    pub total: u64,
}

/// A GPU, in the context that libtorch uses too.
#[derive(Clone, Copy, Debug)]
pub struct Gpu {
    ordinal: usize,
    context: sys::CUcontext,
}

// SAFETY: a context may be used by any thread that makes it current, as every method here does.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// The GPU of this number, among those that this process sees.
    ///
    /// # Errors
    /// No driver, no such GPU, or what the driver says.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        if driver_version().is_none() {
            return Err(CudaError::NoDriver);
        }
        driver("cuInit", result::init())?;
        let devices = driver("cuDeviceGetCount", result::device::get_count())? as usize;
        if ordinal >= devices {
            return Err(CudaError::NoDevice { ordinal, devices });
        }
        let device = driver("cuDeviceGet", result::device::get(ordinal as c_int))?;
        // SAFETY: the device exists. The context is kept until the process ends, as libtorch keeps it.
        let context = driver("cuDevicePrimaryCtxRetain", unsafe { result::primary_ctx::retain(device) })?;
        Ok(Self { ordinal, context })
    }

    /// Its number.
    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Its name.
    ///
    /// # Errors
    /// What the driver says.
    pub fn name(&self) -> Result<String, CudaError> {
        let device = driver("cuDeviceGet", result::device::get(self.ordinal as c_int))?;
        driver("cuDeviceGetName", result::device::get_name(device))
    }

    /// Its memory, now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn memory(&self) -> Result<Memory, CudaError> {
        self.enter()?;
        let (free, total) = driver("cuMemGetInfo", result::mem_get_info())?;
        Ok(Memory { used: (total - free) as u64, total: total as u64 })
    }

    /// Waits for all that was put on any of its streams.
    ///
    /// # Errors
    /// What the driver says, also of work that failed before.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        driver("cuCtxSynchronize", result::ctx::synchronize())
    }

    /// Makes it the GPU that this thread talks to.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context lives until the process ends.
        driver("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.context) })
    }
}

/// A stream of work on a GPU.
#[derive(Debug)]
pub struct Stream {
    gpu: Gpu,
    raw: sys::CUstream,
}

// SAFETY: streams may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// The stream of libtorch's work.
    pub fn default_of(gpu: Gpu) -> Self {
        Self { gpu, raw: ptr::null_mut() }
    }

    /// A new stream that runs beside it.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: Gpu) -> Result<Self, CudaError> {
        gpu.enter()?;
        let raw = driver("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
        Ok(Self { gpu, raw })
    }

    /// What is put on this stream from now on runs after `event`. The host does not wait.
    ///
    /// # Errors
    /// What the driver says.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both exist.
        driver("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }

    pub(super) fn raw(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.raw.is_null() && self.gpu.enter().is_ok() {
            // SAFETY: made by `new`, not used again. Work still on it is finished by the driver.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A place in a stream.
#[derive(Debug)]
pub struct Event {
    gpu: Gpu,
    raw: sys::CUevent,
}

// SAFETY: events may be used by any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// For order alone.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(gpu: Gpu) -> Result<Self, CudaError> {
        Self::with(gpu, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// That notes the time.
    ///
    /// # Errors
    /// What the driver says.
    pub fn timed(gpu: Gpu) -> Result<Self, CudaError> {
        Self::with(gpu, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// Sets it behind what is on the stream now.
    ///
    /// # Errors
    /// What the driver says.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.gpu.enter()?;
        // SAFETY: both exist.
        driver("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Whether the stream has reached it.
    ///
    /// # Errors
    /// What the driver says, also of work that failed before.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        self.gpu.enter()?;
        // SAFETY: it exists.
        match unsafe { result::event::query(self.raw) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            other => driver("cuEventQuery", other).map(|()| true),
        }
    }

    /// Waits until the stream has reached it.
    ///
    /// # Errors
    /// What the driver says, also of work that failed before.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.enter()?;
        // SAFETY: it exists.
        driver("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }

    /// Time on the GPU from `start` to this event; both must be timed, recorded and reached.
    ///
    /// # Errors
    /// What the driver says.
    pub fn since(&self, start: &Self) -> Result<Duration, CudaError> {
        self.gpu.enter()?;
        // The first version of this call: older drivers have no other.
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut milliseconds = 0f32;
        // SAFETY: there is a driver, for there is an event; the call has this form and writes one number.
        let status = unsafe {
            match sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0") {
                Ok(elapsed) => elapsed(&raw mut milliseconds, start.raw, self.raw),
                Err(_) => sys::CUresult::CUDA_ERROR_NOT_FOUND,
            }
        };
        driver("cuEventElapsedTime", status.result())?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn with(gpu: Gpu, flags: sys::CUevent_flags) -> Result<Self, CudaError> {
        gpu.enter()?;
        Ok(Self { gpu, raw: driver("cuEventCreate", result::event::create(flags))? })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            // SAFETY: made by `with`, not used again; the driver keeps it until it is reached.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

fn driver<T>(call: &'static str, outcome: Result<T, DriverError>) -> Result<T, CudaError> {
    outcome.map_err(|error| CudaError::Driver { call, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libtorch_in_use_is_known() {
        // Any call that makes the program need libtorch.
        assert_eq!(tch::Tensor::from_slice(&[1i64]).size(), [1]);
        let path = libtorch_path().unwrap();
        assert!(path.is_file(), "{}", path.display());
        let version = libtorch_version();
        assert!(version.starts_with("2.11."), "{version}");
    }

    #[test]
    fn versions_are_read_beside_the_library() {
        let root = std::env::temp_dir().join(format!("moebench-cuda-{}", std::process::id()));
        let lib = root.join("lib");
        fs::create_dir_all(&lib).unwrap();
        assert_eq!(version_beside(&lib), None);
        fs::write(root.join("version.py"), "from typing import Optional\n__version__ = '2.9.1+cu130'\ndebug = False\n")
            .unwrap();
        let version = version_beside(&lib).unwrap();
        assert_eq!((version.as_str(), release(&version)), ("2.9.1+cu130", "2.9.1"));
        fs::write(root.join("build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(version_beside(&lib).as_deref().map(release), Some("2.11.0"));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_a_driver_the_error_says_so() {
        if driver_version().is_some() {
            eprintln!("skipped: this machine has a CUDA driver");
            return;
        }
        assert_eq!(load(), Err(CudaError::NoDriver));
        assert_eq!(Gpu::open(0).err(), Some(CudaError::NoDriver));
        assert!(device_names().is_empty());
    }

    #[test]
    fn on_a_gpu_events_measure_and_order() {
        let Ok(gpu) = load().and_then(|_| Gpu::open(0)) else {
            eprintln!("skipped: no GPU");
            return;
        };
        let (start, end) = (Event::timed(gpu).unwrap(), Event::timed(gpu).unwrap());
        let stream = Stream::default_of(gpu);
        let matrix = tch::Tensor::ones([2048, 2048], (tch::Kind::Float, tch::Device::Cuda(0)));
        start.record(&stream).unwrap();
        let product = matrix.matmul(&matrix);
        end.record(&stream).unwrap();
        let other = Stream::new(gpu).unwrap();
        other.wait(&end).unwrap();
        end.synchronize().unwrap();
        assert!(end.is_reached().unwrap());
        let took = end.since(&start).unwrap();
        assert!(took > Duration::from_micros(50) && took < Duration::from_secs(5), "{took:?}");
        assert_eq!(f64::try_from(product.get(0).get(0)).unwrap(), 2048.0);
        let memory = gpu.memory().unwrap();
        assert!(memory.used > 0 && memory.used <= memory.total);
    }
}
