//! Launches kernels on libtorch's stream.

use std::ffi::{c_uint, c_void};
use std::ptr;

use cudarc::driver::sys;
use tch::Tensor;

use super::Kernels;

/// Blocks and threads of a launch, and dynamic shared memory of a block in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub(super) blocks: [i64; 3],
    pub(super) threads: [i64; 2],
    pub(super) shared: i64,
}

impl Shape {
    pub(super) fn new(blocks: i64, threads: i64) -> Self {
        Self { blocks: [blocks, 1, 1], threads: [threads, 1], shared: 0 }
    }

    pub(super) fn grid(blocks: [i64; 3], threads: i64) -> Self {
        Self { blocks, threads: [threads, 1], shared: 0 }
    }
}

/// The arguments of a kernel, in order.
#[derive(Default)]
pub(super) struct Arguments {
    words: Vec<u64>,
    /// Where each begins.
    starts: Vec<usize>,
}

impl Arguments {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The memory of a tensor without gaps.
    pub(super) fn tensor(self, tensor: &Tensor) -> Self {
        assert!(tensor.is_contiguous(), "a kernel's tensor has no gaps: {:?} {:?}", tensor.size(), tensor.stride());
        self.start_of(tensor)
    }

    /// The memory of a tensor whose strides the kernel is told.
    pub(super) fn start_of(self, tensor: &Tensor) -> Self {
        self.put(&[tensor.data_ptr() as u64])
    }

    pub(super) fn optional(self, tensor: Option<&Tensor>) -> Self {
        match tensor {
            Some(tensor) => self.tensor(tensor),
            None => self.put(&[0]),
        }
    }

    /// A C `int`.
    pub(super) fn int(self, value: i64) -> Self {
        let value = i32::try_from(value).expect("a micro-batch has fewer than 2^31 rows and columns");
        self.put(&[u64::from(value as u32)])
    }

    /// A C `long`.
    pub(super) fn long(self, value: i64) -> Self {
        self.put(&[value as u64])
    }

    pub(super) fn float(self, value: f64) -> Self {
        self.ints(&[(value as f32).to_bits()])
    }

    /// A structure of 32-bit numbers.
    pub(super) fn ints(self, values: &[u32]) -> Self {
        let word = |pair: &[u32]| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or(0)) << 32;
        let words: Vec<u64> = values.chunks(2).map(word).collect();
        self.put(&words)
    }

    /// A structure of 64-bit numbers.
    pub(super) fn words(self, values: &[u64]) -> Self {
        self.put(values)
    }

    fn put(mut self, words: &[u64]) -> Self {
        self.starts.push(self.words.len());
        self.words.extend_from_slice(words);
        self
    }
}

impl Kernels {
    /// Puts a kernel on libtorch's stream. The arguments must be those of its source: their number, order and types.
    pub(super) fn launch(&self, name: &'static str, shape: Shape, arguments: Arguments) {
        if shape.blocks.contains(&0) {
            return;
        }
        let Arguments { mut words, starts } = arguments;
        let base: *mut u64 = words.as_mut_ptr();
        // SAFETY: every start lies inside the words.
        let mut pointers: Vec<*mut c_void> =
            starts.iter().map(|&start| unsafe { base.add(start) }.cast::<c_void>()).collect();
        let [x, y, z] = shape.blocks.map(|blocks| blocks as c_uint);
        let [threads_x, threads_y] = shape.threads.map(|threads| threads as c_uint);
        let function = self.functions[name].0;
        self.gpu.enter().expect("the GPU was there when its kernels were loaded");
        // SAFETY: the wrapper beside the kernel passes what its source takes; memory of tensors that libtorch frees is used
        // again on this stream only, after the kernel.
        let status = unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                threads_x,
                threads_y,
                1,
                shape.shared as c_uint,
                ptr::null_mut(),
                pointers.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        assert!(status == sys::CUresult::CUDA_SUCCESS, "kernel {name}, {shape:?}: {status:?}");
    }
}
