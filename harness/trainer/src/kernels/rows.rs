//! Wrappers of `rows.cu`. Shapes: tokens `[tokens, width]`, rows `[rows, width]`, choices `[tokens, k]`; the width is a
//! multiple of 8.

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// A warp a row.
fn by_row(rows: i64) -> Shape {
    Shape::new((rows + 7) / 8, 256)
}

impl Kernels {
    /// Row `i` is token `choice_of[i] / k`, or zeros where that is -1.
    pub(crate) fn gather(&self, tokens: &Tensor, choice_of: &Tensor, k: i64) -> Tensor {
        let (rows, width) = (choice_of.numel() as i64, tokens.size()[1]);
        let to = self.empty(&[rows, width], Kind::BFloat16);
        let arguments = Arguments::new().tensor(tokens).tensor(choice_of).int(rows).int(k).int(width).tensor(&to);
        self.launch("gather", by_row(rows), arguments);
        to
    }

    /// The weighted sum of each token's rows, and of `residual`.
    pub(crate) fn combine(
        &self,
        rows: &Tensor,
        row_of: &Tensor,
        weights: &Tensor,
        residual: Option<&Tensor>,
    ) -> Tensor {
        let (tokens, k, width) = (weights.size()[0], weights.size()[1], rows.size()[1]);
        let to = self.empty(&[tokens, width], Kind::BFloat16);
        let arguments = Arguments::new()
            .tensor(rows)
            .tensor(row_of)
            .tensor(weights)
            .optional(residual)
            .int(tokens)
            .int(k)
            .int(width)
            .tensor(&to);
        self.launch("combine", by_row(tokens), arguments);
        to
    }

    /// [`Self::combine`] backwards: the gradients of rows and of weights, from those of the sums.
    pub(crate) fn spread(
        &self,
        gradient: &Tensor,
        outputs: &Tensor,
        choice_of: &Tensor,
        weights: &Tensor,
    ) -> [Tensor; 2] {
        let (rows, width, k) = (outputs.size()[0], outputs.size()[1], weights.size()[1]);
        let to = self.empty(&[rows, width], Kind::BFloat16);
        let of_weights = weights.zeros_like();
        let arguments = Arguments::new()
            .tensor(gradient)
            .tensor(outputs)
            .tensor(choice_of)
            .tensor(weights)
            .int(rows)
            .int(k)
            .int(width)
            .tensor(&to)
            .tensor(&of_weights);
        self.launch("spread", by_row(rows), arguments);
        [to, of_weights]
    }

    /// The gradient of tokens, from those of their rows and of the weights of their choices, through `gate`
    /// `[experts, width]`. `of_weights` becomes the gradient of the chosen scores.
    pub(crate) fn collect(
        &self,
        rows: &Tensor,
        row_of: &Tensor,
        [chosen, weights, of_weights]: [&Tensor; 3],
        gate: &Tensor,
    ) -> Tensor {
        let (tokens, k, width) = (weights.size()[0], weights.size()[1], rows.size()[1]);
        let to = self.empty(&[tokens, width], Kind::BFloat16);
        let arguments = Arguments::new()
            .tensor(rows)
            .tensor(row_of)
            .tensor(chosen)
            .tensor(weights)
            .tensor(of_weights)
            .tensor(gate)
            .int(tokens)
            .int(k)
            .int(width)
            .tensor(&to);
        self.launch("collect", by_row(tokens), arguments);
        to
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HALF, SINGLE, error, gpu, half, normal};
    use super::*;

    /// 1000 tokens, 3 choices each among 7 experts, of which the rows have gaps.
    struct Case {
        tokens: Tensor,
        chosen: Tensor,
        weights: Tensor,
        row_of: Tensor,
        choice_of: Tensor,
    }

    const WIDTH: i64 = 264;
    const ROWS: i64 = 7 * 1000;

    fn case() -> Case {
        let (chosen, weights) = gpu().choose(&normal(&[1000, 7]), &half(&[7]), 3);
        let sorted = gpu().sort(&chosen, 7);
        let base = Tensor::arange(7, (Kind::Int, gpu().device())) * 1000;
        let (row_of, choice_of) = gpu().place(&chosen, &sorted, [Some(&base), None], Some(ROWS));
        Case { tokens: half(&[1000, WIDTH]), chosen, weights, row_of, choice_of }
    }

    impl Case {
        /// The rows of choices, in double precision, `[tokens, 3, width]`.
        fn by_choice(&self, rows: &Tensor) -> Tensor {
            let index = self.row_of.to_kind(Kind::Int64);
            rows.index_select(0, &index).view([1000, 3, WIDTH]).to_kind(Kind::Double)
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_are_tokens_and_gaps_are_zero() {
        let case = case();
        let rows = gpu().gather(&case.tokens, &case.choice_of, 3);
        let expected = case.tokens.to_kind(Kind::Double).unsqueeze(1).expand([1000, 3, WIDTH], false);
        assert_eq!(error(&case.by_choice(&rows), &expected), 0.0);
        let all = |tensor: &Tensor| f64::try_from(tensor.to_kind(Kind::Double).square().sum(Kind::Double)).unwrap();
        assert!((all(&rows) - 3.0 * all(&case.tokens)).abs() < 1e-6 * all(&rows));
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn sums_are_weighted() {
        let case = case();
        let (rows, residual) = (half(&[ROWS, WIDTH]), half(&[1000, WIDTH]));
        let sums = (case.by_choice(&rows) * case.weights.unsqueeze(-1)).sum_dim_intlist(
            [1i64].as_slice(),
            false,
            Kind::Double,
        );
        assert!(error(&gpu().combine(&rows, &case.row_of, &case.weights, None), &sums) < HALF);
        let found = gpu().combine(&rows, &case.row_of, &case.weights, Some(&residual));
        assert!(error(&found, &(sums + residual)) < HALF);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_of_sums_are_spread() {
        let case = case();
        let (gradient, outputs) = (half(&[1000, WIDTH]), half(&[ROWS, WIDTH]));
        let [rows, weights] = gpu().spread(&gradient, &outputs, &case.choice_of, &case.weights);
        let gradient = gradient.to_kind(Kind::Double).unsqueeze(1);
        assert!(error(&case.by_choice(&rows), &(&gradient * case.weights.unsqueeze(-1))) < HALF);
        let expected = (gradient * case.by_choice(&outputs)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        assert!(error(&weights, &expected) < SINGLE);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_of_tokens_are_collected_through_rows_and_gate() {
        let case = case();
        let (rows, gate, of_weights) = (half(&[ROWS, WIDTH]), half(&[7, WIDTH]), normal(&[1000, 3]));
        let of_scores = of_weights.copy();
        let found = gpu().collect(&rows, &case.row_of, [&case.chosen, &case.weights, &of_scores], &gate);
        let mean = (&case.weights * &of_weights).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let expected = &case.weights * (of_weights - mean);
        assert!(error(&of_scores, &expected) < SINGLE);
        let dense = Tensor::zeros([1000, 7], (Kind::Double, gpu().device()));
        let dense = dense.scatter(1, &case.chosen.to_kind(Kind::Int64), &expected.to_kind(Kind::Double));
        let of_rows = case.by_choice(&rows).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        assert!(error(&found, &(of_rows + dense.matmul(&gate.to_kind(Kind::Double)))) < HALF);
    }
}
