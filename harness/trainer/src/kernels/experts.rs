//! Wrappers of `experts.cu`. Rows `[rows, width]` lie expert after expert, up to `ends[expert]`; the width is a multiple of 8.

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// Rows of a block, as in the source.
const TILE: i64 = 128;

impl Kernels {
    /// Adds to every row of `inner` the bias of its expert; returns the GELU of the sum. Biases begin at `bias` and lie
    /// `stride` apart.
    pub(crate) fn activate(&self, inner: &Tensor, bias: &Tensor, stride: i64, ends: &Tensor) -> Tensor {
        let active = self.empty(&inner.size(), Kind::BFloat16);
        let arguments = Arguments::new().tensor(inner).start_of(bias).long(stride);
        self.launch("activate", tiles(inner), of_experts(arguments, ends, inner).tensor(&active));
        active
    }

    /// Adds to every row the bias of its expert.
    pub(crate) fn add_bias(&self, rows: &Tensor, bias: &Tensor, stride: i64, ends: &Tensor) {
        let arguments = Arguments::new().tensor(rows).start_of(bias).long(stride);
        self.launch("add_bias", tiles(rows), of_experts(arguments, ends, rows));
    }

    /// The gradient of `gelu(inner)` becomes that of `inner`; returns partial sums of its columns.
    pub(crate) fn deactivate(&self, inner: &Tensor, gradient: &Tensor, ends: &Tensor) -> Tensor {
        let partial = self.partial(inner, ends);
        let arguments = Arguments::new().tensor(inner).tensor(gradient);
        self.launch("deactivate", tiles(inner), of_experts(arguments, ends, inner).tensor(&partial));
        partial
    }

    /// Partial sums of the columns of each expert's rows.
    pub(crate) fn column_sums(&self, rows: &Tensor, ends: &Tensor) -> Tensor {
        let partial = self.partial(rows, ends);
        let arguments = of_experts(Arguments::new().tensor(rows), ends, rows).tensor(&partial);
        self.launch("column_sums", tiles(rows), arguments);
        partial
    }

    /// Adds up partial sums into rows that begin at `to` and lie `stride` apart; unless these are `fresh`, adds to what is
    /// there.
    pub(crate) fn finish(&self, partial: &Tensor, ends: &Tensor, to: &Tensor, (stride, fresh): (i64, bool)) {
        let (width, experts) = (partial.size()[1], ends.numel() as i64);
        let shape = Shape { blocks: [(width + 31) / 32, experts, 1], threads: [32, 32], shared: 0 };
        let arguments =
            Arguments::new().tensor(partial).tensor(ends).int(width).start_of(to).long(stride).int(i64::from(fresh));
        self.launch("finish", shape, arguments);
    }

    /// Room for what every tile has of every expert.
    fn partial(&self, rows: &Tensor, ends: &Tensor) -> Tensor {
        let pieces = tiles(rows).blocks[1] + ends.numel() as i64;
        self.empty(&[pieces, rows.size()[1]], Kind::Float)
    }
}

fn tiles(rows: &Tensor) -> Shape {
    Shape::grid([(rows.size()[1] + 255) / 256, (rows.size()[0] + TILE - 1) / TILE, 1], 256)
}

fn of_experts(arguments: Arguments, ends: &Tensor, rows: &Tensor) -> Arguments {
    arguments.tensor(ends).int(ends.numel() as i64).int(rows.size()[1])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HALF, SINGLE, error, gpu, half, normal};
    use super::*;

    const WIDTH: i64 = 264;
    const STRIDE: i64 = WIDTH + 24;

    /// Ends of five experts, one without rows, and the expert of each of 1000 rows.
    fn rows_of_experts() -> (Tensor, Tensor) {
        let ends = Tensor::from_slice(&[10i32, 10, 400, 401, 1000]).to_device(gpu().device());
        let counts = Tensor::from_slice(&[10i64, 0, 390, 1, 599]).to_device(gpu().device());
        let of = Tensor::arange(5, (Kind::Int64, gpu().device())).repeat_interleave_self_tensor(&counts, 0, 1000);
        (ends, of)
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_get_their_experts_bias_and_activation() {
        let (ends, of) = rows_of_experts();
        let (rows, bias) = (half(&[1000, WIDTH]), half(&[5, STRIDE]));
        let of_rows = bias.narrow(1, 0, WIDTH).index_select(0, &of).to_kind(Kind::Double);
        let expected = rows.to_kind(Kind::Double) + of_rows;
        let inner = rows.copy();
        let active = gpu().activate(&inner, &bias, STRIDE, &ends);
        assert!(error(&inner, &expected) < HALF && error(&active, &expected.gelu("none")) < HALF);
        gpu().add_bias(&rows, &bias, STRIDE, &ends);
        assert!(error(&rows, &expected) < HALF);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_pass_the_activation_and_add_up_to_the_bias() {
        let (ends, of) = rows_of_experts();
        let (inner, gradient, to) = (half(&[1000, WIDTH]), half(&[1000, WIDTH]), normal(&[5, STRIDE]));
        let expected = inner.to_kind(Kind::Double).gelu_backward(&gradient.to_kind(Kind::Double), "none");
        let before = to.copy();
        let partial = gpu().deactivate(&inner, &gradient, &ends);
        assert!(error(&gradient, &expected) < HALF);
        let sums = |rows: &Tensor| {
            let zeros = Tensor::zeros([5, WIDTH], (Kind::Double, gpu().device()));
            zeros.index_add(0, &of, &rows.to_kind(Kind::Double))
        };
        gpu().finish(&partial, &ends, &to, (STRIDE, false));
        let first = |tensor: &Tensor| tensor.narrow(1, 0, WIDTH);
        assert!(error(&(first(&to) - first(&before)), &sums(&gradient)) < SINGLE);
        gpu().finish(&gpu().column_sums(&inner, &ends), &ends, &to, (STRIDE, true));
        assert!(error(&first(&to), &sums(&inner)) < SINGLE);
        assert_eq!(error(&to.narrow(1, WIDTH, 24), &before.narrow(1, WIDTH, 24)), 0.0);
    }
}
