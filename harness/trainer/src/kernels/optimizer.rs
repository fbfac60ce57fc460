//! Wrappers of `optimizer.cu`.

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// The numbers of an optimizer step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamStep {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    /// Learning rate, over the correction of the first moment.
    pub(crate) rate: f64,
    /// One over the correction of the second moment.
    pub(crate) of_second: f64,
    pub(crate) epsilon: f64,
    /// What weight decay leaves of a weight.
    pub(crate) keep: f64,
}

impl Kernels {
    /// One step of Adam on flat tensors: `state` are master weights and both moments, in single precision; `factor`, one
    /// number, multiplies the gradient.
    pub(crate) fn adam(
        &self,
        step: AdamStep,
        state: [&Tensor; 3],
        gradient: &Tensor,
        weights: &Tensor,
        factor: &Tensor,
    ) {
        let count = gradient.numel() as i64;
        let AdamStep { beta1, beta2, rate, of_second, epsilon, keep } = step;
        let numbers = [beta1, beta2, rate, of_second, epsilon, keep].map(|number| (number as f32).to_bits());
        let [master, first, second] = state;
        let arguments = Arguments::new()
            .tensor(master)
            .tensor(first)
            .tensor(second)
            .tensor(gradient)
            .tensor(weights)
            .tensor(factor)
            .long(count)
            .ints(&numbers);
        self.launch("adam", Shape::new(self.blocks_for(count, 1024, 16), 256), arguments);
    }

    /// The sum of squares, one number in double precision.
    pub(crate) fn square_sum(&self, gradient: &Tensor) -> Tensor {
        // The kernel reads four numbers at a time.
        let gradient = &super::aligned(gradient);
        let count = gradient.numel() as i64;
        let blocks = self.blocks_for(count, 2048, 8);
        let partial = self.empty(&[blocks], Kind::Double);
        let arguments = Arguments::new().tensor(gradient).long(count).tensor(&partial);
        self.launch("squares", Shape::new(blocks, 512), arguments);
        partial.sum(Kind::Double)
    }

    /// Puts `[groups, size]` numbers into single-precision ones that begin at `to` and lie `stride` apart, or, unless these
    /// are `fresh`, adds them. `size` is a multiple of 8.
    pub(crate) fn accumulate(&self, from: &Tensor, to: &Tensor, stride: i64, fresh: bool) {
        let groups = from.size()[0];
        let size = from.numel() as i64 / groups.max(1);
        let blocks = self.blocks_for(size, 2048, 16).min(self.multiprocessors * 16 / groups.max(1) + 1);
        let arguments = Arguments::new().tensor(from).start_of(to).long(size).long(stride).int(i64::from(fresh));
        self.launch("accumulate", Shape::grid([blocks, groups, 1], 256), arguments);
    }

    /// As many blocks as `count` numbers fill, `each` a block, and at most so many a multiprocessor.
    fn blocks_for(&self, count: i64, each: i64, most: i64) -> i64 {
        ((count + each - 1) / each).clamp(1, self.multiprocessors * most)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SINGLE, error, gpu, normal};
    use super::*;

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn sums_of_squares_are_those_of_double_precision() {
        for count in [1, 3, 1000, 5_000_003] {
            for first in [0, 1] {
                let gradient = normal(&[first + count]).narrow(0, first, count);
                let expected = gradient.to_kind(Kind::Double).square().sum(Kind::Double);
                assert!(error(&gpu().square_sum(&gradient), &expected) < 1e-7, "{count} from {first} on");
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn matrices_are_put_and_added() {
        let from = super::super::tests::half(&[3, 40]);
        let to = normal(&[3, 56]);
        let expected = to.copy();
        let _ = expected.narrow(1, 0, 40).g_add_(&from);
        gpu().accumulate(&from, &to, 56, false);
        assert!(error(&to, &expected) < SINGLE);
        gpu().accumulate(&from, &to, 56, true);
        expected.narrow(1, 0, 40).copy_(&from);
        assert_eq!(error(&to, &expected), 0.0);
    }
}
