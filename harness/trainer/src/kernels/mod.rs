//! Kernels of our own for NVIDIA GPUs: CUDA sources beside this file, compiled when a rank starts.
//!
//! libtorch has fast products, and few of the passes between them in one piece: an optimizer step is a dozen kernels of it,
//! a permutation of tokens a sort. A kernel here makes one pass over its data. All work in half precision (bf16) with sums
//! in single precision, and add in a fixed order: the same inputs give the same bits.
//!
//! The CPU, and every other kind of number, takes libtorch's operations: [`on`] says which it is. These are also the
//! reference that every kernel is tested against.
//!
//! Like libtorch's own calls, a launch that the driver refuses panics: what a user can get wrong is refused by [`load`].

mod compile;
mod draw;
mod experts;
mod gate;
mod head;
mod launch;
mod norm;
mod optimizer;
mod product;
mod reading;
mod rows;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use cudarc::driver::sys;
use tch::{Device, Kind, Tensor};

use crate::cuda::{CudaError, Gpu};

pub(crate) use gate::{Scores, Sorted, routes};
pub(crate) use norm::{Normed, WIDEST};
pub(crate) use optimizer::AdamStep;
pub(crate) use reading::Reading;

/// The kernels of one GPU.
#[derive(Debug)]
pub(crate) struct Kernels {
    gpu: Gpu,
    functions: HashMap<&'static str, Function>,
    /// Of the GPU; a launch that shares out its work by itself takes a few blocks for each.
    multiprocessors: i64,
    /// Memory of the host that nothing uses.
    buffers: Mutex<Vec<reading::Buffer>>,
}

#[derive(Clone, Copy, Debug)]
struct Function(sys::CUfunction);

// SAFETY: a function may be launched by any thread in whose context it was loaded, as every launch makes sure.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

/// GPUs of a machine, at most.
const GPUS: usize = 64;

static LOADED: [OnceLock<Result<Kernels, CudaError>>; GPUS] = [const { OnceLock::new() }; GPUS];

/// Compiles the kernels for a GPU, once; later calls return the same.
///
/// # Errors
/// No run-time compiler, or what it or the driver says.
pub(crate) fn load(ordinal: usize) -> Result<&'static Kernels, CudaError> {
    let place = LOADED.get(ordinal).ok_or(CudaError::NoDevice { ordinal, devices: GPUS })?;
    place.get_or_init(|| Kernels::new(ordinal)).as_ref().map_err(Clone::clone)
}

/// The same numbers where kernels that read 16 bytes at a time can: a part of a bucket may begin anywhere.
pub(crate) fn aligned(tensor: &Tensor) -> Tensor {
    let is_aligned = (tensor.data_ptr() as usize).is_multiple_of(16);
    if is_aligned { tensor.shallow_clone() } else { tensor.copy() }
}

/// The kernels for a tensor in half precision on a GPU; none for any other.
pub(crate) fn on(tensor: &Tensor) -> Option<&'static Kernels> {
    match (tensor.device(), tensor.kind()) {
        (Device::Cuda(ordinal), Kind::BFloat16) => on_gpu(ordinal),
        _ => None,
    }
}

/// The kernels of a device, if it is a GPU that a rank was started on.
pub(crate) fn at(device: Device) -> Option<&'static Kernels> {
    match device {
        Device::Cuda(ordinal) => on_gpu(ordinal),
        _ => None,
    }
}

fn on_gpu(ordinal: usize) -> Option<&'static Kernels> {
    LOADED.get(ordinal)?.get()?.as_ref().ok()
}

impl Kernels {
    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.gpu.ordinal())
    }

    /// Room for a result: every element is written by the kernel that follows.
    fn empty(&self, shape: &[i64], kind: Kind) -> Tensor {
        Tensor::empty(shape, (kind, self.device()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The kernels of the first GPU.
    pub(crate) fn gpu() -> &'static Kernels {
        crate::cuda::load().unwrap();
        load(0).unwrap()
    }

    pub(crate) fn normal(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, gpu().device()))
    }

    pub(crate) fn half(shape: &[i64]) -> Tensor {
        normal(shape).to_kind(Kind::BFloat16)
    }

    /// The distance of two tensors, as a share of the second. Never a number that passes where one of them holds none.
    pub(crate) fn error(found: &Tensor, expected: &Tensor) -> f64 {
        let [found, expected] = [found, expected].map(|tensor| tensor.to_kind(Kind::Double));
        let norm = |tensor: Tensor| f64::try_from(tensor.square().sum(Kind::Double)).unwrap().sqrt();
        let distance = norm(found - &expected) / norm(expected).max(1e-30);
        if distance.is_nan() { f64::INFINITY } else { distance }
    }

    /// Rounding to half precision.
    pub(crate) const HALF: f64 = 4e-3;
    /// Sums in single precision, in another order.
    pub(crate) const SINGLE: f64 = 1e-5;
}
