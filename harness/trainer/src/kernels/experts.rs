//! Wrappers of `experts.cu`. Rows `[rows, width]` lie expert after expert, up to `ends[expert]`; the width is a multiple of 8.

use tch::{Kind, Tensor};
use workloads::model::Activation;

use super::Kernels;
use super::launch::{Arguments, Shape};

/// Rows of a block, as in the source.
const TILE: i64 = 128;

/// The number of an activation function, as in the source.
fn number(activation: Activation) -> i64 {
    match activation {
        Activation::Gelu => 0,
        Activation::Silu => 1,
        Activation::ClampedSilu => 2,
    }
}

impl Kernels {
    /// Adds to every row of the product of the first matrix and, if there is one, of the gate's the bias of its expert, where
    /// there are biases; returns what the last matrix gets. Biases begin at each of `biases` and lie `stride` apart.
    pub(crate) fn activate(
        &self,
        activation: Activation,
        inner: &[Tensor],
        (biases, stride): (&[Option<&Tensor>], i64),
        ends: &Tensor,
    ) -> Tensor {
        let active = self.empty(&inner[0].size(), Kind::BFloat16);
        let with_bias = |arguments: Arguments, (rows, bias): (&Tensor, &Option<&Tensor>)| {
            let arguments = arguments.tensor(rows);
            match bias {
                Some(bias) => arguments.start_of(bias),
                None => arguments.optional(None),
            }
        };
        let arguments = inner.iter().zip(biases).fold(Arguments::new(), with_bias).long(stride);
        let arguments = of_experts(arguments, ends, &active).int(number(activation)).tensor(&active);
        let name = if inner.len() > 1 { "activate_gated" } else { "activate" };
        self.launch(name, tiles(&active), arguments);
        active
    }

    /// Adds to every row the bias of its expert.
    pub(crate) fn add_bias(&self, rows: &Tensor, bias: &Tensor, stride: i64, ends: &Tensor) {
        let arguments = Arguments::new().tensor(rows).start_of(bias).long(stride);
        self.launch("add_bias", tiles(rows), of_experts(arguments, ends, rows));
    }

    /// Turns the `gradient` of what the last matrix gets into those of `inner`, the products of the first matrix and, if there
    /// is one, of the gate's: the first in the memory of `gradient`, the second in its own. With `biases`, returns partial sums of
    /// the columns of each.
    pub(crate) fn deactivate(
        &self,
        activation: Activation,
        inner: &[Tensor],
        gradient: &Tensor,
        biases: bool,
        ends: &Tensor,
    ) -> Vec<Tensor> {
        let partial: Vec<Tensor> = inner.iter().filter(|_| biases).map(|rows| self.partial(rows, ends)).collect();
        let arguments = inner.iter().fold(Arguments::new(), Arguments::tensor).tensor(gradient);
        let arguments = of_experts(arguments, ends, gradient).int(number(activation));
        let arguments = (0..inner.len()).fold(arguments, |arguments, index| arguments.optional(partial.get(index)));
        let name = if inner.len() > 1 { "deactivate_gated" } else { "deactivate" };
        self.launch(name, tiles(gradient), arguments);
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
    use crate::model::mlp::activate;

    const WIDTH: i64 = 264;
    const STRIDE: i64 = WIDTH + 24;

    /// Ends of five experts, one without rows, and the expert of each of 1000 rows.
    fn rows_of_experts() -> (Tensor, Tensor) {
        let ends = Tensor::from_slice(&[10i32, 10, 400, 401, 1000]).to_device(gpu().device());
        let counts = Tensor::from_slice(&[10i64, 0, 390, 1, 599]).to_device(gpu().device());
        let of = Tensor::arange(5, (Kind::Int64, gpu().device())).repeat_interleave_self_tensor(&counts, 0, 1000);
        (ends, of)
    }

    const ACTIVATIONS: [Activation; 3] = [Activation::Gelu, Activation::Silu, Activation::ClampedSilu];

    /// Every activation, without and with a gate, without and with biases.
    fn kinds() -> impl Iterator<Item = (Activation, usize, bool)> {
        let of = |activation| [(1, false), (1, true), (2, false), (2, true)].map(|(n, biases)| (activation, n, biases));
        ACTIVATIONS.into_iter().flat_map(of)
    }

    /// Products of one or two matrices, wide enough for a clamp to show.
    fn products(number: usize) -> Vec<Tensor> {
        (0..number).map(|_| half(&[1000, WIDTH]) * 4.0).collect()
    }

    fn doubled(tensors: &[Tensor]) -> Vec<Tensor> {
        tensors.iter().map(|tensor| tensor.to_kind(Kind::Double)).collect()
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_get_their_experts_bias_and_activation() {
        let (ends, of) = rows_of_experts();
        for (activation, number, biases) in kinds() {
            let (inner, bias) = (products(number), half(&[number as i64, 5, STRIDE]));
            let bias: Vec<Tensor> = bias.unbind(0);
            let biased = |(rows, bias): (&Tensor, &Tensor)| match biases {
                true => rows.to_kind(Kind::Double) + bias.narrow(1, 0, WIDTH).index_select(0, &of),
                false => rows.to_kind(Kind::Double),
            };
            let expected: Vec<Tensor> = inner.iter().zip(&bias).map(biased).collect();
            let bias: Vec<Option<&Tensor>> = bias.iter().map(|bias| biases.then_some(bias)).collect();
            let active = gpu().activate(activation, &inner, (&bias, STRIDE), &ends);
            let what = format!("{activation:?} {number} {biases}");
            for (found, expected) in inner.iter().zip(&expected) {
                assert!(error(found, expected) < HALF, "{what}");
            }
            // The activation is that of the rounded sums.
            assert!(error(&active, &activate(activation, &doubled(&inner))) < HALF, "{what}");
        }
        let (rows, bias) = (half(&[1000, WIDTH]), half(&[5, STRIDE]));
        let expected = rows.to_kind(Kind::Double) + bias.narrow(1, 0, WIDTH).index_select(0, &of);
        gpu().add_bias(&rows, &bias, STRIDE, &ends);
        assert!(error(&rows, &expected) < HALF);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_pass_the_activation_and_add_up_to_the_bias() {
        let (ends, of) = rows_of_experts();
        let first = |tensor: &Tensor| tensor.narrow(1, 0, WIDTH);
        let sums = |rows: &Tensor| {
            let zeros = Tensor::zeros([5, WIDTH], (Kind::Double, gpu().device()));
            zeros.index_add(0, &of, &rows.to_kind(Kind::Double))
        };
        for (activation, number, biases) in kinds() {
            let (inner, gradient) = (products(number), half(&[1000, WIDTH]));
            let leaves: Vec<Tensor> = doubled(&inner).iter().map(|rows| rows.set_requires_grad(true)).collect();
            let product = activate(activation, &leaves) * gradient.to_kind(Kind::Double);
            let expected = Tensor::run_backward(&[product.sum(Kind::Double)], &leaves, false, false);
            let partial = gpu().deactivate(activation, &inner, &gradient, biases, &ends);
            let found = std::iter::once(&gradient).chain(&inner[1..]);
            for (found, expected) in found.clone().zip(&expected) {
                assert!(error(found, expected) < HALF, "{activation:?} {number}");
            }
            assert_eq!(partial.len(), if biases { number } else { 0 });
            for (rows, partial) in found.zip(&partial) {
                let to = normal(&[5, STRIDE]);
                let before = to.copy();
                gpu().finish(partial, &ends, &to, (STRIDE, false));
                assert!(error(&(first(&to) - first(&before)), &sums(rows)) < SINGLE);
                gpu().finish(&gpu().column_sums(rows, &ends), &ends, &to, (STRIDE, true));
                assert!(error(&first(&to), &sums(rows)) < SINGLE);
                assert_eq!(error(&to.narrow(1, WIDTH, 24), &before.narrow(1, WIDTH, 24)), 0.0);
            }
        }
    }

    /// What is past the last end is left alone.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_of_no_expert_are_not_touched() {
        let ends = Tensor::from_slice(&[7i32, 900]).to_device(gpu().device());
        let (inner, gradient) = (products(2), half(&[1000, WIDTH]));
        let rest = |tensors: &[&Tensor]| tensors.iter().map(|tensor| tensor.narrow(0, 900, 100).copy()).collect();
        let all = [&inner[0], &inner[1], &gradient];
        let before: Vec<Tensor> = rest(&all);
        let bias = half(&[2, STRIDE]);
        let _ = gpu().activate(Activation::Silu, &inner, (&[Some(&bias), Some(&bias)], STRIDE), &ends);
        let _ = gpu().deactivate(Activation::Silu, &inner, &gradient, true, &ends);
        for (before, after) in before.iter().zip(rest(&all)) {
            assert_eq!(error(&after, before), 0.0);
        }
    }
}
