//! Wrappers of `gate.cu`.

use tch::{Kind, Tensor};
use workloads::gate::{Router, Score};

use super::Kernels;
use super::launch::{Arguments, Shape};
use crate::host::to_device;

/// Choices that a warp counts by itself.
const SEGMENT: i64 = 512;
const WARPS: i64 = 8;

/// Whether the kernels serve a router with so many experts and choices.
pub(crate) fn routes(router: &Router, experts: i64, k: usize) -> bool {
    experts <= 1024 && k <= 32 && router.groups.is_none_or(|groups| groups.number <= 32)
}

/// A router as the source has it.
fn words(router: &Router) -> [u32; 6] {
    let groups = router.groups.map_or([0; 3], |groups| [groups.number, groups.kept, groups.best]);
    let [number, kept, best] = groups.map(|count| count as u32);
    let sigmoid = u32::from(router.score == Score::Sigmoid);
    [sigmoid, u32::from(router.renormalise), number, kept, best, (router.scale as f32).to_bits()]
}

/// What a router makes of logits.
#[derive(Debug)]
pub(crate) struct Scores {
    /// `[tokens, experts]`, in the memory of the logits.
    pub(crate) all: Tensor,
    /// `[tokens, k]`: experts, best first unless they were given, and their weights.
    pub(crate) chosen: Tensor,
    pub(crate) weights: Tensor,
}

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
        self.launch("choose", by_token(tokens), arguments);
        (chosen, weights)
    }

    /// Turns `logits` `[tokens, experts]` into scores, and chooses `k` experts for each token, or takes those `given` `[tokens, k]`.
    /// Biases, `[experts]`: of logits, and of scores for the choice alone. Of equals, the lower number comes first.
    pub(crate) fn route(
        &self,
        router: &Router,
        logits: Tensor,
        [bias, selection]: [Option<&Tensor>; 2],
        given: Option<&Tensor>,
        k: i64,
    ) -> Scores {
        let (tokens, experts) = (logits.size()[0], logits.size()[1]);
        let (chosen, weights) = (self.empty(&[tokens, k], Kind::Int), self.empty(&[tokens, k], Kind::Float));
        let arguments = Arguments::new()
            .tensor(&logits)
            .optional(bias)
            .optional(selection)
            .optional(given)
            .int(tokens)
            .int(experts)
            .int(k)
            .ints(&words(router))
            .tensor(&chosen)
            .tensor(&weights);
        self.launch("route", Shape { shared: WARPS * experts * 4, ..by_token(tokens) }, arguments);
        Scores { all: logits, chosen, weights }
    }

    /// [`Self::route`] backwards: the gradient of the logits, `[tokens, experts]` in single precision, from that of the weights and,
    /// where there is a balance loss, `coefficients` `[experts]` that times a factor are its gradient by each token's shares.
    pub(crate) fn route_backward(
        &self,
        router: &Router,
        scores: &Scores,
        of_weights: &Tensor,
        balance: Option<(&Tensor, f64)>,
    ) -> Tensor {
        let (tokens, experts, k) = (scores.all.size()[0], scores.all.size()[1], scores.chosen.size()[1]);
        let to = self.empty(&[tokens, experts], Kind::Float);
        let arguments = Arguments::new()
            .tensor(&scores.all)
            .tensor(&scores.chosen)
            .tensor(&scores.weights)
            .tensor(of_weights)
            .optional(balance.map(|(coefficients, _)| coefficients))
            .float(balance.map_or(0.0, |(_, factor)| factor))
            .int(tokens)
            .int(experts)
            .int(k)
            .ints(&words(router))
            .tensor(&to);
        self.launch("route_backward", by_token(tokens), arguments);
        to
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
    /// expert after expert; choices past `most[expert]` get none. -1 is none: a choice, a row that it does not get, a row that
    /// stays empty. `rows` are at least as many as the choices need; without, every choice is known to have one.
    pub(crate) fn place(
        &self,
        chosen: &Tensor,
        sorted: &Sorted,
        [base, most]: [Option<&Tensor>; 2],
        rows: Option<i64>,
    ) -> (Tensor, Tensor) {
        let (choices, experts) = (chosen.numel() as i64, sorted.totals.numel() as i64);
        let row_of = self.empty(&[choices], Kind::Int);
        let choice_of = match rows {
            None => self.empty(&[choices], Kind::Int),
            Some(rows) => Tensor::full([rows], -1, (Kind::Int, self.device())),
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
            .optional(most)
            .tensor(&row_of)
            .tensor(&choice_of);
        let segments = (choices + SEGMENT - 1) / SEGMENT;
        self.launch("place", Self::by_segment(segments, experts), arguments);
        (row_of, choice_of)
    }

    /// The same where entries have the places `place_of` `[choices]`, -1 where a choice is none, and lie in `pieces` of rows one after the
    /// other: `[first row, rows]` each, which together hold all entries. Without `place_of`, every choice is an entry, at its own place.
    pub(crate) fn place_pieces(&self, place_of: Option<&Tensor>, pieces: &[[usize; 2]]) -> (Tensor, Tensor) {
        let starts = pieces.iter().scan(0, |next, [_, rows]| Some(std::mem::replace(next, *next + rows)));
        let firsts = pieces.iter().map(|&[first, _]| first);
        let both: Vec<i32> = starts.chain(firsts).map(|number| number as i32).collect();
        let both = to_device(&Tensor::from_slice(&both).view([2, -1]), self.device());
        let rows = pieces.iter().map(|[_, rows]| *rows as i64).sum();
        let choices = place_of.map_or(rows, |place_of| place_of.numel() as i64);
        let (row_of, choice_of) = (self.empty(&[choices], Kind::Int), self.empty(&[rows], Kind::Int));
        let arguments = Arguments::new()
            .optional(place_of)
            .int(choices)
            .tensor(&both.get(0))
            .tensor(&both.get(1))
            .int(pieces.len() as i64)
            .tensor(&row_of)
            .tensor(&choice_of);
        self.launch("piece_rows", Shape::new((choices + 255) / 256, 256), arguments);
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

/// A warp a token.
fn by_token(tokens: i64) -> Shape {
    Shape::new((tokens + WARPS - 1) / WARPS, 32 * WARPS)
}

#[cfg(test)]
mod tests {
    use workloads::gate::Groups;

    use super::super::tests::{SINGLE, error, gpu, half, normal};
    use super::*;
    use crate::layer::gate::in_best_groups;

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

    /// Both scores, renormalised or not, without and, where choices have room in them, with groups.
    fn routers(experts: i64, k: i64) -> Vec<Router> {
        let groups = Some(Groups { number: 8, kept: 4, best: 2 });
        let limited = (experts % 8 == 0 && experts / 2 >= k).then_some(groups);
        let mut routers = Vec::new();
        for groups in std::iter::once(None).chain(limited) {
            for score in [Score::Softmax, Score::Sigmoid] {
                for renormalise in [true, false] {
                    routers.push(Router { score, renormalise, groups, scale: 2.5, ..Router::default() });
                }
            }
        }
        routers
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn routers_choose_weigh_and_pass_gradients_to_all_logits() {
        for shape in [[1000, 7, 3], [513, 64, 8], [333, 200, 1], [1001, 256, 8], [65, 1024, 32]] {
            for router in routers(shape[1], shape[2]) {
                for biases in [[false, false], [true, false], [false, true]] {
                    check_router(&router, shape, biases, false);
                    check_router(&router, shape, biases, true);
                }
            }
        }
    }

    /// Against double precision; which choices are best, by the scores that the kernel found.
    fn check_router(router: &Router, [tokens, experts, k]: [i64; 3], [bias, selection]: [bool; 2], given: bool) {
        let logits = normal(&[tokens, experts]);
        let (bias, selection) = (bias.then(|| half(&[experts])), selection.then(|| normal(&[experts]) * 0.1));
        // An expert may be given twice.
        let given = given.then(|| Tensor::randint(experts, [tokens, k], (Kind::Int, gpu().device())));
        let biased = bias.as_ref().map_or_else(|| logits.copy(), |bias| &logits + bias);
        let found = gpu().route(router, logits, [bias.as_ref(), selection.as_ref()], given.as_ref(), k);
        let what = format!("{router:?} {tokens} {experts} {k}");
        let leaf = biased.to_kind(Kind::Double).set_requires_grad(true);
        let scores = match router.score {
            Score::Softmax => leaf.softmax(-1, Kind::Double),
            Score::Sigmoid => leaf.sigmoid(),
        };
        assert!(error(&found.all, &scores.detach()) < SINGLE, "{what}");

        let chosen = found.chosen.to_kind(Kind::Int64);
        if let Some(given) = given {
            assert!(found.chosen.equal(&given), "{what}");
        } else {
            let by_scores = || selection.as_ref().map_or_else(|| found.all.copy(), |selection| &found.all + selection);
            let by = match (router.groups, &selection) {
                (Some(groups), _) => in_best_groups(&by_scores(), groups),
                (None, Some(_)) => by_scores(),
                (None, None) => biased,
            };
            assert!(by.gather(1, &chosen, false).equal(&by.topk(k, -1, true, true).0), "{what}");
            let times = by.zeros_like().scatter_add(1, &chosen, &found.weights.ones_like());
            assert_eq!(f64::try_from(times.max()).unwrap(), 1.0, "{what}");
        }

        let of_chosen = |of: &Tensor| of.gather(1, &chosen, false);
        let parts = |of: &Tensor| of / of.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double);
        let weights = router.scale
            * match (router.score, router.renormalise) {
                (Score::Softmax, true) => of_chosen(&leaf).softmax(-1, Kind::Double),
                (Score::Sigmoid, true) => parts(&of_chosen(&scores)),
                (_, false) => of_chosen(&scores),
            };
        assert!(error(&found.weights, &weights.detach()) < SINGLE, "{what}");

        let (of_weights, coefficients) = (normal(&[tokens, k]), normal(&[experts]).abs());
        let through_weights = (weights * &of_weights).sum(Kind::Double);
        let through_shares = (parts(&scores) * &coefficients).sum(Kind::Double) * 0.3;
        let losses = [(&through_weights + through_shares, Some((&coefficients, 0.3))), (through_weights, None)];
        for (loss, balance) in losses {
            // The weight of an only choice is the same whatever its score.
            if balance.is_none() && router.renormalise && k == 1 {
                continue;
            }
            let expected = Tensor::run_backward(&[loss], &[&leaf], true, false).remove(0);
            // What the memory that comes next holds.
            drop(Tensor::full([tokens, experts], f64::NAN, (Kind::Float, gpu().device())));
            let gradient = gpu().route_backward(router, &found, &of_weights, balance);
            assert!(error(&gradient, &expected) < SINGLE, "{what}");
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn rows_are_those_of_a_stable_sort() {
        for (tokens, experts, k) in SHAPES {
            let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
            let sorted = gpu().sort(&chosen, experts);
            let (row_of, choice_of) = gpu().place(&chosen, &sorted, [None, None], None);
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
        let (row_of, choice_of) = gpu().place(&chosen, &sorted, [Some(&base), None], Some(6));
        assert_eq!(read(&row_of), [0, 4, 1, -1, 2]);
        assert_eq!(read(&choice_of), [0, 2, 4, -1, 1, -1]);
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn entries_get_the_rows_of_their_pieces() {
        let on_gpu = |numbers: &[i32]| Tensor::from_slice(numbers).to_device(gpu().device());
        let (row_of, choice_of) =
            gpu().place_pieces(Some(&on_gpu(&[5, 0, -1, 1, 4, 2, 3])), &[[4, 1], [0, 2], [3, 0], [2, 2], [5, 1]]);
        assert_eq!(read(&row_of), [5, 4, -1, 0, 3, 1, 2]);
        assert_eq!(read(&choice_of), [3, 5, 6, 4, 1, 0]);
        let (row_of, choice_of) = gpu().place_pieces(None, &[[3, 2], [5, 0], [0, 3]]);
        assert_eq!(read(&row_of), [3, 4, 0, 1, 2]);
        assert_eq!(read(&choice_of), [2, 3, 4, 0, 1]);
        // As many pieces as a large group has.
        let (tokens, experts, k) = (4096, 64, 2);
        let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
        let sorted = gpu().sort(&chosen, experts);
        let (place_of, by_expert) = gpu().place(&chosen, &sorted, [None, None], None);
        let counts: Vec<i64> = Vec::try_from(sorted.totals.to_kind(Kind::Int64).to_device(tch::Device::Cpu)).unwrap();
        // Of every expert's entries the first half lies behind the second halves of all.
        let halves = counts.iter().map(|&count| [count as usize / 2, (count as usize).div_ceil(2)]);
        let (mut first, mut second) = (halves.clone().map(|[_, rows]| rows).sum::<usize>(), 0);
        let (mut pieces, mut order): (Vec<[usize; 2]>, Vec<i64>) = (Vec::new(), Vec::new());
        for [before, behind] in halves {
            pieces.extend([[first, before], [second, behind]]);
            first += before;
            second += behind;
        }
        pieces.iter().for_each(|&[first, rows]| order.extend((first..first + rows).map(|row| row as i64)));
        let at = Tensor::from_slice(&order).to_device(gpu().device());
        let (row_of, choice_of) = gpu().place_pieces(Some(&place_of), &pieces);
        assert!(choice_of.index_select(0, &at).equal(&by_expert));
        assert!(row_of.to_kind(Kind::Int64).equal(&at.index_select(0, &place_of)));
    }

    fn read(tensor: &Tensor) -> Vec<i32> {
        Vec::try_from(tensor.to_device(tch::Device::Cpu)).unwrap()
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn choices_past_a_limit_get_no_row() {
        let on_gpu = |numbers: &[i32]| Tensor::from_slice(numbers).to_device(gpu().device());
        let (chosen, most) = (on_gpu(&[2, 0, 2, -1, 2, 0, 1]), on_gpu(&[1, 5, 2]));
        let (row_of, choice_of) = gpu().place(&chosen, &gpu().sort(&chosen, 3), [None, Some(&most)], Some(7));
        assert_eq!(read(&row_of), [3, 0, 4, -1, -1, -1, 2]);
        assert_eq!(read(&choice_of), [1, -1, 6, 0, 2, -1, -1]);
        let kept = on_gpu(&[2, 0, 2, -1, -1, -1, 1]);
        let (row_of, choice_of) = gpu().place(&kept, &gpu().sort(&kept, 3), [None, None], Some(7));
        assert_eq!(read(&row_of), [2, 0, 3, -1, -1, -1, 1]);
        assert_eq!(read(&choice_of), [1, 6, 0, 2, -1, -1, -1]);
    }

    /// In every segment of choices, and over many of them.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn the_first_choices_of_each_expert_fit() {
        for (tokens, experts, k) in SHAPES {
            let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
            let sorted = gpu().sort(&chosen, experts);
            let most = (&sorted.totals * 3).divide_scalar_mode(4i64, "floor");
            let (row_of, _) = gpu().place(&chosen, &sorted, [None, Some(&most)], Some(tokens * k));
            let [chosen, most] = [&chosen.reshape([-1]), &most].map(read);
            let mut seen = vec![0; experts as usize];
            for (row, expert) in read(&row_of).into_iter().zip(chosen) {
                seen[expert as usize] += 1;
                assert_eq!(row >= 0, seen[expert as usize] <= most[expert as usize]);
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn gradients_of_the_gate_are_products() {
        for (tokens, experts, k) in SHAPES {
            let width = 264;
            let (chosen, _) = gpu().choose(&normal(&[tokens, experts]), &half(&[experts]), k);
            let sorted = gpu().sort(&chosen, experts);
            let (_, choice_of) = gpu().place(&chosen, &sorted, [None, None], None);
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
