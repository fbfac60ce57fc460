//! Wrappers of `norm.cu`. Widths are multiples of 8, at most [`WIDEST`].

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// A block has a row, a thread eight numbers of it.
pub(crate) const WIDEST: i64 = 8192;

/// What the normalisation of a residual stream brings.
pub(crate) struct Normed {
    pub(crate) stream: Tensor,
    pub(crate) normed: Tensor,
    /// `[rows, 2]`: mean and inverse deviation.
    pub(crate) statistics: Tensor,
}

/// Gradients of a normalisation.
pub(crate) struct NormGradients {
    /// Of the stream, and so of everything that was added to it.
    pub(crate) stream: Tensor,
    /// `[3, width]`: of scale, shift and the bias that was added to the stream.
    pub(crate) parameters: Tensor,
}

fn by_row(rows: i64, width: i64) -> Shape {
    assert!(width <= WIDEST && width % 8 == 0, "a normalised width of {width}");
    Shape::new(rows, ((width / 8 + 31) / 32 * 32).max(32))
}

impl Kernels {
    /// Adds `branch` and `bias` to `input`, and normalises the sum: `affine` are scale and shift.
    pub(crate) fn add_norm(
        &self,
        input: &Tensor,
        added: Option<(&Tensor, &Tensor)>,
        [scale, shift]: [&Tensor; 2],
        epsilon: f64,
    ) -> Normed {
        let (rows, width) = (input.size()[0], input.size()[1]);
        let stream = match added {
            Some(_) => self.empty(&[rows, width], Kind::BFloat16),
            None => input.shallow_clone(),
        };
        let normed = self.empty(&[rows, width], Kind::BFloat16);
        let statistics = self.empty(&[rows, 2], Kind::Float);
        let arguments = Arguments::new()
            .tensor(input)
            .optional(added.map(|added| added.0))
            .optional(added.map(|added| added.1))
            .tensor(scale)
            .tensor(shift)
            .int(width)
            .float(epsilon)
            .tensor(&stream)
            .tensor(&normed)
            .tensor(&statistics);
        self.launch("add_norm", by_row(rows, width), arguments);
        Normed { stream, normed, statistics }
    }

    /// [`Self::add_norm`] backwards, from the gradients of what is normalised and, `beside`, of the stream.
    pub(crate) fn norm_backward(
        &self,
        [stream, statistics, scale]: [&Tensor; 3],
        gradient: &Tensor,
        beside: Option<&Tensor>,
    ) -> NormGradients {
        let (rows, width) = (stream.size()[0], stream.size()[1]);
        let blocks = (self.multiprocessors * 8).min(rows);
        let to = self.empty(&[rows, width], Kind::BFloat16);
        let partial = self.empty(&[3, blocks, width], Kind::Float);
        let shape = Shape { blocks: [blocks, 1, 1], ..by_row(rows, width) };
        let arguments = Arguments::new()
            .tensor(stream)
            .tensor(statistics)
            .tensor(scale)
            .tensor(gradient)
            .optional(beside)
            .int(rows)
            .int(width)
            .tensor(&to)
            .tensor(&partial);
        self.launch("norm_backward", shape, arguments);
        NormGradients { stream: to, parameters: self.finish_columns(&partial) }
    }

    /// The sums of columns of `[rows, width]`, in single precision; any width that is a multiple of 8.
    pub(crate) fn sum_rows(&self, rows: &Tensor) -> Tensor {
        let (count, width) = (rows.size()[0], rows.size()[1]);
        let chunks = (width + 255) / 256;
        let parts = (self.multiprocessors * 8 / chunks).clamp(1, count / 32 + 1);
        let partial = self.empty(&[1, parts, width], Kind::Float);
        let arguments = Arguments::new().tensor(rows).int(count).int(width).tensor(&partial);
        self.launch("bias_gradient", Shape::grid([chunks, parts, 1], 256), arguments);
        self.finish_columns(&partial).view([width])
    }

    fn finish_columns(&self, partial: &Tensor) -> Tensor {
        let size = partial.size();
        let (groups, rows, width) = (size[0], size[1], size[2]);
        let to = self.empty(&[groups, width], Kind::Float);
        let shape = Shape { blocks: [(width + 31) / 32, groups, 1], threads: [32, 32], shared: 0 };
        self.launch("finish_columns", shape, Arguments::new().tensor(partial).int(rows).int(width).tensor(&to));
        to
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HALF, SINGLE, error, gpu, half};
    use super::*;

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_normalised_stream_and_its_gradients_are_those_of_double_precision() {
        for (rows, width) in [(1000, 1024), (77, 264), (5, 8192)] {
            let [input, branch, gradient, beside] = [(); 4].map(|()| half(&[rows, width]));
            let [bias, scale, shift] = [(); 3].map(|()| half(&[width]));
            let found = gpu().add_norm(&input, Some((&branch, &bias)), [&scale, &shift], 1e-5);
            let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
            assert!(error(&found.stream, &(double(&input) + double(&branch) + double(&bias))) < HALF);
            let leaves = [&found.stream, &scale, &shift].map(|leaf| double(leaf).set_requires_grad(true));
            let [x, s, h] = &leaves;
            let normed = tch::with_grad(|| x.layer_norm([width], Some(s), Some(h), 1e-5, false));
            assert!(error(&found.normed, &normed.detach()) < HALF);
            let product = tch::with_grad(|| (normed * double(&gradient)).sum(Kind::Double));
            let expected = Tensor::run_backward(&[product], &leaves.each_ref().map(|leaf| leaf), false, false);
            let saved = [&found.stream, &found.statistics, &scale];
            let gradients = gpu().norm_backward(saved, &gradient, Some(&beside));
            assert!(error(&gradients.stream, &(&expected[0] + double(&beside))) < HALF);
            for (index, expected) in expected[1..].iter().enumerate() {
                assert!(error(&gradients.parameters.get(index as i64), expected) < HALF, "{index}");
            }
            let sums = double(&gradients.stream).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
            assert!(error(&gradients.parameters.get(2), &sums) < SINGLE);
            assert!(error(&gpu().sum_rows(&gradients.stream), &sums) < SINGLE);
        }
    }
}
