//! Wrapper of `product.cu`.

use cudarc::driver::sys;
use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// As in the source.
const TILE_M: i64 = 128;
const TILE_N: i64 = 256;
const TILE_K: u32 = 64;
/// Dynamic shared memory of a block: three stages, results of two warp groups, and room to align them.
pub(super) const SHARED: i64 = 3 * 128 * (TILE_M + TILE_N) + 2 * 4 * 64 * 128 + 1024;

impl Kernels {
    /// For every expert, the product of the transposed rows `first` `[rows, m]` with the rows `second` `[rows, n]`, in single
    /// precision: put into matrices that begin at `to` and lie `stride` apart or, unless these are `fresh`, added to them.
    /// False where the kernel does not serve: a GPU that is no Hopper, matrices that do not fall into its tiles.
    pub(crate) fn weight_product(
        &self,
        [first, second]: [&Tensor; 2],
        ends: &Tensor,
        to: &Tensor,
        (stride, fresh): (i64, bool),
    ) -> bool {
        let (m, n, experts) = (first.size()[1], second.size()[1], ends.numel() as i64);
        if !self.functions.contains_key("weight_product") || m % TILE_M != 0 || n % TILE_N != 0 {
            return false;
        }
        let pair = |low: i64, high: i64| low as u64 | (high as u64) << 32;
        let product = [ends.data_ptr() as u64, pair(experts, m), pair(n, i64::from(fresh))];
        let results = results(to, [experts, m, n], stride);
        let arguments = Arguments::new().words(&rows(first)).words(&rows(second)).words(&results).words(&product);
        let tiles = experts * (m / TILE_M) * (n / TILE_N);
        let shape = Shape { shared: SHARED, ..Shape::new(tiles.min(self.multiprocessors), 384) };
        self.launch("weight_product", shape, arguments);
        true
    }
}

/// Rows as the copy engine brings them: boxes of 64 rows and 64 columns.
fn rows(rows: &Tensor) -> [u64; 16] {
    assert!(rows.is_contiguous() && rows.kind() == Kind::BFloat16, "a product of half-precision rows without gaps");
    let (count, width) = (rows.size()[0] as u64, rows.size()[1] as u64);
    let kind = sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    map(rows, kind, [width, count], [width * 2], [64, TILE_K])
}

/// Matrices as the copy engine writes them: boxes of 64 rows and 32 columns of one.
fn results(to: &Tensor, [experts, m, n]: [i64; 3], stride: i64) -> [u64; 16] {
    assert!(to.kind() == Kind::Float, "sums in single precision");
    let kind = sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    let sizes = [n, m, experts].map(|size| size as u64);
    map(to, kind, sizes, [n, stride].map(|stride| stride as u64 * 4), [32, 64, 1])
}

/// A tensor map: sizes from the innermost dimension, strides in bytes of all others, and the box that is copied at a time.
fn map<const N: usize, const M: usize>(
    tensor: &Tensor,
    kind: sys::CUtensorMapDataType,
    sizes: [u64; N],
    strides: [u64; M],
    part: [u32; N],
) -> [u64; 16] {
    const { assert!(M + 1 == N, "the innermost dimension has no gaps") };
    let mut map = sys::CUtensorMap { opaque: [0; 16] };
    let steps = [1u32; N];
    // SAFETY: every array has as many numbers as the dimensions ask for.
    let status = unsafe {
        sys::cuTensorMapEncodeTiled(
            &raw mut map,
            kind,
            N as u32,
            tensor.data_ptr(),
            sizes.as_ptr(),
            strides.as_ptr(),
            part.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    assert!(status == sys::CUresult::CUDA_SUCCESS, "a tensor map of {sizes:?}: {status:?}");
    map.opaque
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SINGLE, error, gpu, half};
    use super::*;

    /// Experts without rows, with fewer than a box, and with boxes that reach into the next expert's rows.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn products_are_put_and_added() {
        let ends = [3i64, 3, 67, 131, 500];
        let (first, second) = (half(&[500, 256]), half(&[500, 512]));
        let device = first.device();
        let on_gpu = Tensor::from_slice(&ends.map(|end| end as i32)).to_device(device);
        let stride = 256 * 512 + 8;
        let to = Tensor::full([5, stride], f64::NAN, (Kind::Float, device));
        for (fresh, factor) in [(true, 1.0), (false, 2.0)] {
            assert!(gpu().weight_product([&first, &second], &on_gpu, &to, (stride, fresh)));
            let mut start = 0;
            for (expert, end) in ends.into_iter().enumerate() {
                let rows = |of: &Tensor| of.narrow(0, start, end - start).to_kind(Kind::Double);
                let expected = rows(&first).tr().matmul(&rows(&second)) * factor;
                let found = to.get(expert as i64).narrow(0, 0, 256 * 512).view([256, 512]);
                assert!(error(&found, &expected) < SINGLE, "expert {expert}");
                start = end;
            }
        }
    }
}
