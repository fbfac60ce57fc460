//! Reads a few numbers from the GPU while it goes on with other work.
//!
//! libtorch's copy to the host waits for all that the GPU was given. Here the copy goes to pinned memory behind an event: what
//! is launched between its start and [`Reading::wait`] keeps the GPU busy while the host waits and then decides.

use std::ffi::c_void;
use std::ptr;
use std::sync::PoisonError;

use cudarc::driver::sys;
use tch::{Kind, Tensor};

use super::Kernels;
use crate::cuda::{Event, Stream};

/// Numbers on their way to the host.
pub(crate) struct Reading {
    kernels: &'static Kernels,
    buffer: Buffer,
    count: usize,
    arrived: Event,
    /// Kept until the copy is over.
    _from: Tensor,
}

/// Pinned memory of the host, kept until the process ends and used again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    start: *mut c_void,
    bytes: usize,
}

// SAFETY: memory of the host, owned by whoever holds the buffer.
unsafe impl Send for Buffer {}

const SMALLEST: usize = 4096;

impl Kernels {
    /// Starts to read 32-bit numbers.
    pub(crate) fn read(&'static self, from: &Tensor) -> Reading {
        assert!(from.kind() == Kind::Int && from.is_contiguous(), "32-bit numbers without gaps");
        let count = from.numel();
        let buffer = self.buffer(count * size_of::<i32>());
        // SAFETY: the buffer is as large; libtorch's stream writes it before the event, and the reader waits for that.
        let status = unsafe {
            sys::cuMemcpyDtoHAsync_v2(buffer.start, from.data_ptr() as u64, count * size_of::<i32>(), ptr::null_mut())
        };
        assert!(status == sys::CUresult::CUDA_SUCCESS, "a copy to the host: {status:?}");
        let arrived =
            Event::new(self.gpu).and_then(|event| event.record(&Stream::default_of(self.gpu)).map(|()| event));
        let arrived = arrived.expect("the GPU was there when its kernels were loaded");
        Reading { kernels: self, buffer, count, arrived, _from: from.shallow_clone() }
    }

    /// Pinned memory that nothing else uses.
    fn buffer(&self, bytes: usize) -> Buffer {
        let mut free = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = free.iter().position(|buffer| buffer.bytes >= bytes) {
            return free.swap_remove(index);
        }
        let bytes = bytes.max(SMALLEST);
        self.gpu.enter().expect("the GPU was there when its kernels were loaded");
        let mut start = ptr::null_mut();
        // SAFETY: writes one pointer.
        let status = unsafe { sys::cuMemHostAlloc(&raw mut start, bytes, 0) };
        assert!(status == sys::CUresult::CUDA_SUCCESS, "{bytes} bytes of pinned memory: {status:?}");
        Buffer { start, bytes }
    }
}

impl Reading {
    /// The numbers, once they are there.
    pub(crate) fn wait(self) -> Vec<i32> {
        // What failed on the GPU before the copy is told by the next tensor that is read.
        let _ = self.arrived.synchronize();
        // SAFETY: the copy of so many numbers is over.
        unsafe { std::slice::from_raw_parts(self.buffer.start.cast::<i32>(), self.count) }.to_vec()
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        // Also when nobody waited: the copy must not write into the memory of another.
        let _ = self.arrived.synchronize();
        self.kernels.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(self.buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::gpu;

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn numbers_arrive_as_they_were_when_asked_for() {
        let device = gpu().device();
        for count in [1, 5, 3000] {
            let numbers = tch::Tensor::arange(count, (tch::Kind::Int, device));
            let reading = gpu().read(&numbers);
            let _ = numbers.shallow_clone().zero_();
            assert_eq!(reading.wait(), (0..count as i32).collect::<Vec<_>>());
        }
    }
}
