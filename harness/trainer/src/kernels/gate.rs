//! Wrappers of `gate.cu`.

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// Choices that a warp counts by itself.
const SEGMENT: i64 = 512;
const WARPS: i64 = 8;

/// Choices by expert.
#[derive(Debug)]
pub(crate) struct Sorted {
    /// `[segments, experts]`: choices of the expert in earlier segments.
    before: Tensor,
    /// `[experts]`: its choices.
    pub(crate) totals: Tensor,
    /// `[experts]`: the row after its last, where expert follows expert.
    pub(crate) ends: Tensor,
}

impl Kernels {
    /// The best `k` of `scores` `[tokens, experts]` plus `bias`, best first (of equals, the lower number first), and the
    /// softmax over them: experts and weights, `[tokens, k]`. At most 32.
    pub(crate) fn choose(&self, scores: &Tensor, bias: &Tensor, k: i64) -> (Tensor, Tensor) {
        let (tokens, experts) = (scores.size()[0], scores.size()[1]);
        let (chosen, weights) = (self.empty(&[tokens, k], Kind::Int), self.empty(&[tokens, k], Kind::Float));
        let arguments = Arguments::new()
            .tensor(scores)
            .tensor(bias)
            .int(tokens)
            .int(experts)
            .int(k)
            .tensor(&chosen)
            .tensor(&weights);
        self.launch("choose", Shape::new((tokens + WARPS - 1) / WARPS, 32 * WARPS), arguments);
        (chosen, weights)
    }

    /// Counts the choices `chosen` of at most 1024 `experts`; -1 is none.
    pub(crate) fn sort(&self, chosen: &Tensor, experts: i64) -> Sorted {
        let choices = chosen.numel() as i64;
        let segments = (choices + SEGMENT - 1) / SEGMENT;
        let before = self.empty(&[segments, experts], Kind::Int);
        let (totals, ends) = (self.empty(&[experts], Kind::Int), self.empty(&[experts], Kind::Int));
        let arguments = Arguments::new().tensor(chosen).int(choices).int(experts).int(SEGMENT).tensor(&before);
        self.launch("count", Self::by_segment(segments, experts), arguments);
        let arguments = Arguments::new().tensor(&before).int(segments).int(experts).tensor(&totals).tensor(&ends);
        self.launch("scan", Shape::new(1, 1024), arguments);
        Sorted { before, totals, ends }
    }

    /// The row of every choice and the choice of each of `rows`, in order of arrival: from `base[expert]` on, or, without,
    /// expert after expert. -1 is none: a row that stays empty. `rows` are at least as many as the choices need.
    pub(crate) fn place(&self, chosen: &Tensor, sorted: &Sorted, base: Option<&Tensor>, rows: i64) -> (Tensor, Tensor) {
        let (choices, experts) = (chosen.numel() as i64, sorted.totals.numel() as i64);
        let row_of = self.empty(&[choices], Kind::Int);
        // Where expert follows expert, every row is taken.
        let choice_of = match base {
            None if rows == choices => self.empty(&[rows], Kind::Int),
            _ => Tensor::full([rows], -1, (Kind::Int, self.device())),
        };
        let arguments = Arguments::new()
            .tensor(chosen)
            .int(choices)
            .int(experts)
            .int(SEGMENT)
            .tensor(&sorted.before)
            .tensor(&sorted.totals)
            .tensor(&sorted.ends)
            .optional(base)
            .optional(None)
            .tensor(&row_of)
            .tensor(&choice_of);
        let segments = (choices + SEGMENT - 1) / SEGMENT;
        self.launch("place", Self::by_segment(segments, experts), arguments);
        (row_of, choice_of)
    }

    fn by_segment(segments: i64, experts: i64) -> Shape {
        Shape { shared: WARPS * experts * 4, ..Shape::new((segments + WARPS - 1) / WARPS, 32 * WARPS) }
    }

    /// The gradients of the gate's weight `[experts, width]` and bias `[experts]`, in single precision, from those of the
    /// scores of choices. An expert's entries lie in rows from `starts[expert]` on, `counts[expert]` of them.
    pub(crate) fn gate_gradient(
        &self,
        tokens: &Tensor,
        of_scores: &Tensor,
        choice_of: &Tensor,
        [starts, counts]: [&Tensor; 2],
    ) -> [Tensor; 2] {
        let (experts, width, k) = (starts.numel() as i64, tokens.size()[1], of_scores.size()[1]);
        let chunks = (width + 255) / 256;
        let parts = (self.multiprocessors * 8 / (experts * chunks)).clamp(1, 64);
        let partial = self.empty(&[parts, experts, width], Kind::Float);
        let partial_bias = self.empty(&[parts, experts], Kind::Float);
        let arguments = Arguments::new()
            .tensor(tokens)
            .tensor(of_scores)
            .tensor(choice_of)
            .tensor(starts)
            .tensor(counts)
            .int(k)
            .int(width)
            .tensor(&partial)
            .tensor(&partial_bias);
        self.launch("weight_gradient", Shape::grid([chunks, experts, parts], 256), arguments);
        let sum = |partial: Tensor| partial.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
        [sum(partial), sum(partial_bias)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SINGLE, error, gpu, half, normal};
    use super::*;

    const SHAPES: [(i64, i64, i64); 4] = [(4096, 16, 2), (1000, 7, 3), (513, 64, 1), (8192, 200, 2)];

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn choices_are_the_best_scores() {
        for (tokens, experts, k) in SHAPES {
            let (scores, bias) = (normal(&[tokens, experts]), half(&[experts]));
            let (chosen, weights) = gpu().choose(&scores, &bias, k);
            let (best, index) = (&scores + bias.to_kind(Kind::Float)).topk(k, -1, true, true);
            assert!(chosen.to_kind(Kind::Int64).equal(&index));
            assert!(error(&weights, &best.softmax(-1, Kind::Float)) < SINGLE);
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn equal_scores_go_to_the_lower_number() {
        let scores = Tensor::zeros([33, 5], (Kind::Float, gpu().device()));
        let (chosen, _) = gpu().choose(&scores, &half(&[5]).zeros_like(), 3);
        let expected = Tensor::from_slice(&[0i32, 1, 2]).to_device(gpu().device()).expand([33, 3], false);
        assert!(chosen.equal(&expected));
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_are_those_of_a_stable_sort() {
        for (tokens, experts, k) in SHAPES {
            let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
            let sorted = gpu().sort(&chosen, experts);
            let (row_of, choice_of) = gpu().place(&chosen, &sorted, None, tokens * k);
            let order = chosen.reshape([-1]).argsort_stable(true, 0, false);
            assert!(choice_of.to_kind(Kind::Int64).equal(&order));
            let numbers = Tensor::arange(tokens * k, (Kind::Int, gpu().device()));
            assert!(row_of.index_select(0, &order).equal(&numbers));
            let counts = chosen.reshape([-1]).bincount::<Tensor>(None, experts);
            assert!(sorted.totals.to_kind(Kind::Int64).equal(&counts));
            assert!(sorted.ends.to_kind(Kind::Int64).equal(&counts.cumsum(0, Kind::Int64)));
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_base_moves_rows_and_leaves_gaps() {
        let chosen = Tensor::from_slice(&[1i32, 0, 1, -1, 1]).to_device(gpu().device());
        let sorted = gpu().sort(&chosen, 2);
        let base = Tensor::from_slice(&[4i32, 0]).to_device(gpu().device());
        let (row_of, choice_of) = gpu().place(&chosen, &sorted, Some(&base), 6);
        let read = |tensor: &Tensor| Vec::<i32>::try_from(tensor.to_device(tch::Device::Cpu)).unwrap();
        assert_eq!(read(&row_of), [0, 4, 1, -1, 2]);
        assert_eq!(read(&choice_of), [0, 2, 4, -1, 1, -1]);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_of_the_gate_are_products() {
        for (tokens, experts, k) in SHAPES {
            let width = 264;
            let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
            let sorted = gpu().sort(&chosen, experts);
            let (_, choice_of) = gpu().place(&chosen, &sorted, None, tokens * k);
            let (x, of_scores) = (half(&[tokens, width]), normal(&[tokens, k]));
            let starts = &sorted.ends - &sorted.totals;
            let [weight, bias] = gpu().gate_gradient(&x, &of_scores, &choice_of, [&starts, &sorted.totals]);
            let dense = Tensor::zeros([tokens, experts], (Kind::Double, gpu().device()));
            let dense = dense.scatter(1, &chosen.to_kind(Kind::Int64), &of_scores.to_kind(Kind::Double));
            assert!(error(&weight, &dense.tr().matmul(&x.to_kind(Kind::Double))) < SINGLE);
            assert!(error(&bias, &dense.sum_dim_intlist([0i64].as_slice(), false, Kind::Double)) < SINGLE);
        }
    }
}
