//! Wrappers of `head.cu`.

use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

const THREADS: i64 = 512;

impl Kernels {
    /// `[2, tokens]`: the logarithm of the sum of exponentials of `logits` `[tokens, words]`, and the target's logit. A
    /// target below 0 is not among these words and gives 0.
    pub(crate) fn entropy(&self, logits: &Tensor, target: &Tensor) -> Tensor {
        let (tokens, words) = (logits.size()[0], logits.size()[1]);
        let to = self.empty(&[2, tokens], Kind::Float);
        let arguments = Arguments::new().tensor(logits).tensor(target).int(words).tensor(&to.get(0)).tensor(&to.get(1));
        self.launch("entropy", Shape::new(tokens, THREADS), arguments);
        to
    }

    /// `logits` become their gradient: `scale` times the softmax, less 1 at the target. `whole` `[tokens]`: the logarithm of
    /// the sum of exponentials over all words.
    pub(crate) fn entropy_backward(&self, logits: &Tensor, target: &Tensor, whole: &Tensor, scale: f64) {
        let (tokens, words) = (logits.size()[0], logits.size()[1]);
        let arguments = Arguments::new().tensor(logits).tensor(target).tensor(whole).int(words).float(scale);
        self.launch("entropy_backward", Shape::new(tokens, THREADS), arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{HALF, SINGLE, error, gpu, half};
    use super::*;

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn cross_entropy_and_its_gradient_are_those_of_double_precision() {
        for (tokens, words) in [(300, 32000), (77, 1000)] {
            let logits = half(&[tokens, words]) * 3.0;
            let target = Tensor::randint(words, [tokens], (Kind::Int64, gpu().device()));
            let _ = target.narrow(0, 5, 1).fill_(-1);
            let exact = logits.to_kind(Kind::Double);
            let found = gpu().entropy(&logits, &target);
            assert!(error(&found.get(0), &exact.logsumexp([-1i64].as_slice(), false)) < SINGLE);
            let here = target.ge(0).to_kind(Kind::Double);
            let index = target.clamp_min(0).unsqueeze(-1);
            let at_target = exact.gather(1, &index, false).squeeze_dim(-1) * &here;
            assert!(error(&found.get(1), &at_target) < SINGLE);
            gpu().entropy_backward(&logits, &target, &found.get(0), 0.5);
            let expected = exact.softmax(-1, Kind::Double).scatter_add(1, &index, &-here.unsqueeze(-1)) * 0.5;
            assert!(error(&logits, &expected) < HALF);
        }
    }
}
