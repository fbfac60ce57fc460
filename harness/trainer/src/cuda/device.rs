//! GPUs, their streams and events, by the CUDA driver.

use std::ffi::c_int;
use std::fs;
use std::ptr;
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::CudaError;

unsafe extern "C" {
    /// Of `kept.cpp`.
    safe fn moebench_release_kept() -> bool;
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

/// The names of all GPUs; none without a driver.
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
    pub total: u64,
}

/// A GPU, in the context that libtorch uses.
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

    pub fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub fn name(&self) -> Result<String, CudaError> {
        let device = driver("cuDeviceGet", result::device::get(self.ordinal as c_int))?;
        driver("cuDeviceGetName", result::device::get_name(device))
    }

    pub fn memory(&self) -> Result<Memory, CudaError> {
        self.enter()?;
        let (free, total) = driver("cuMemGetInfo", result::mem_get_info())?;
        Ok(Memory { used: (total - free) as u64, total: total as u64 })
    }

    /// Has libtorch give memory that it keeps for later back, that of this process on all of its GPUs.
    pub fn release_kept(&self) -> Result<(), CudaError> {
        let call = "emptyCache";
        let reason = || "libtorch has no allocator of GPU memory".to_owned();
        if moebench_release_kept() { Ok(()) } else { Err(CudaError::Driver { call, reason: reason() }) }
    }

    /// Major and minor version of what its code may use.
    pub fn compute_capability(&self) -> Result<[i64; 2], CudaError> {
        use sys::CUdevice_attribute_enum as Attribute;
        let major = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok([major, self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?])
    }

    pub fn multiprocessors(&self) -> Result<i64, CudaError> {
        self.attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
    }

    fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i64, CudaError> {
        let device = driver("cuDeviceGet", result::device::get(self.ordinal as c_int))?;
        // SAFETY: the device exists.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        driver("cuDeviceGetAttribute", value).map(i64::from)
    }

    /// Waits for the work of all its streams.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.enter()?;
        driver("cuCtxSynchronize", result::ctx::synchronize())
    }

    /// Makes it the current GPU of this thread.
    pub(crate) fn enter(&self) -> Result<(), CudaError> {
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

    /// A new stream, which runs beside libtorch's and before it: what waits on this stream gets the next processors that are free.
    pub fn new(gpu: Gpu) -> Result<Self, CudaError> {
        gpu.enter()?;
        let range = driver("cuCtxGetStreamPriorityRange", result::stream::get_priority_range())?;
        let kind = result::stream::StreamKind::NonBlocking;
        let made = result::stream::create_with_priority(kind, range.1);
        Ok(Self { gpu, raw: driver("cuStreamCreateWithPriority", made)? })
    }

    /// Later work on this stream runs after `event`. The host does not wait.
    pub fn wait(&self, event: &Event) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both exist.
        driver("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }

    /// An event behind the work that is on the stream now.
    pub(crate) fn mark(&self) -> Result<Event, CudaError> {
        let event = Event::new(self.gpu)?;
        event.record(self)?;
        Ok(event)
    }

    /// Copies bytes on this GPU behind the work that is on the stream now.
    ///
    /// # Safety
    /// Both places hold as many bytes until the copy is over, and nothing else writes to them meanwhile.
    pub(crate) unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), CudaError> {
        self.gpu.enter()?;
        let (from, to) = (from as sys::CUdeviceptr, to as sys::CUdeviceptr);
        // SAFETY: the stream exists; the caller vouches for the memory.
        driver("cuMemcpyDtoDAsync", unsafe { result::memcpy_dtod_async(to, from, bytes, self.raw) })
    }

    /// Waits for its work.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.enter()?;
        // SAFETY: it exists.
        driver("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }

    pub(crate) fn raw(&self) -> sys::CUstream {
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

/// A point in a stream's work.
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
    /// An event for ordering, which notes no time.
    pub fn new(gpu: Gpu) -> Result<Self, CudaError> {
        Self::with(gpu, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event that notes the time.
    pub fn timed(gpu: Gpu) -> Result<Self, CudaError> {
        Self::with(gpu, sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// Puts it behind the work that is on the stream now.
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.gpu.enter()?;
        // SAFETY: both exist.
        driver("cuEventRecord", unsafe { result::event::record(self.raw, stream.raw) })
    }

    /// Whether the stream has reached it.
    pub fn is_reached(&self) -> Result<bool, CudaError> {
        self.gpu.enter()?;
        // SAFETY: it exists.
        match unsafe { result::event::query(self.raw) } {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            other => driver("cuEventQuery", other).map(|()| true),
        }
    }

    /// Waits until the stream has reached it.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.gpu.enter()?;
        // SAFETY: it exists.
        driver("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }

    /// Time on the GPU from `start` to this event; both must be timed, recorded and reached.
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
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::cuda::load;

    #[test]
    fn without_a_driver_there_are_no_gpus() {
        if driver_version().is_none() {
            assert_eq!(Gpu::open(0).err(), Some(CudaError::NoDriver));
            assert!(device_names().is_empty());
        } else {
            assert!(Gpu::open(device_names().len()).is_err(), "one more than there are");
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn on_a_gpu_events_measure_and_order() {
        let gpu = load().and_then(|_| Gpu::open(0)).unwrap();
        let (start, end) = (Event::timed(gpu).unwrap(), Event::timed(gpu).unwrap());
        let stream = Stream::default_of(gpu);
        let matrix = Tensor::ones([2048, 2048], (Kind::Float, Device::Cuda(0)));
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

    /// The call is answered also where the GPU half of libtorch is not open.
    #[test]
    fn without_a_gpu_nothing_is_given_back() {
        assert!(!moebench_release_kept());
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn on_a_gpu_memory_that_libtorch_keeps_is_given_back() {
        let gpu = load().and_then(|_| Gpu::open(0)).unwrap();
        let used = || gpu.memory().unwrap().used;
        let large = || Tensor::ones([1 << 30], (Kind::Uint8, Device::Cuda(0)));
        let before = used();
        drop(large());
        assert!(used() > before + (1 << 29), "{} of {before}", used());
        let begun = std::time::Instant::now();
        gpu.release_kept().unwrap();
        assert!(used() < before + (1 << 28), "{} of {before}", used());
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(f64::try_from(large().get(7)).unwrap(), 1.0);
    }
}
