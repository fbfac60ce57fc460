//! Where the tokens of a micro-batch go, from the gate's choices to the rows of an exchange and back: on the host by a
//! [`Permutation`], on a GPU by kernels.

use systems::program::Layout;
use tch::{Kind, Tensor};

use crate::error::TrainError;
use crate::host::to_device;
use crate::layer::choices::{Choices, GpuChoices};
use crate::layer::gate::Gates;
use crate::layer::permute::Permutation;
use crate::layer::splits::Splits;

/// The rows of a micro-batch.
pub(super) struct Routing {
    choices: Choices,
    rows: Rows,
}

enum Rows {
    Permutation(Permutation),
    Gpu {
        /// `[tokens * k]`: the row of each choice, -1 where it was dropped.
        row_of: Tensor,
        /// `[rows]`: the choice in each row, -1 where it is padding.
        choice_of: Tensor,
        /// The rows, where they are there already.
        rows: Option<Tensor>,
    },
}

impl Routing {
    /// `own` `[expert]`: this rank's entries.
    ///
    /// # Errors
    /// As for [`Choices::experts`].
    pub(super) fn new(mut choices: Choices, splits: &Splits, own: &[u32], layout: Layout) -> Result<Self, TrainError> {
        let several = (splits.parts > 1).then(|| choices.entries()).transpose()?;
        let rows = match &mut choices {
            Choices::Host { scored, choices } => {
                Rows::Permutation(Permutation::new(splits, choices, &scored.weights, layout))
            }
            Choices::Gpu(gpu) => match several {
                // A row of the kernels has one choice, and a choice one row.
                Some(entries) => Rows::Permutation(Permutation::new(splits, &entries, gpu.weights(), layout)),
                None => Rows::on_gpu(gpu, splits, own, layout),
            },
        };
        Ok(Self { choices, rows })
    }

    /// `[rows, width]`: every entry's token at its row, zeros elsewhere.
    pub(super) fn permute(&mut self, tokens: &Tensor) -> Tensor {
        match (&self.choices, &mut self.rows) {
            (Choices::Gpu(gpu), Rows::Gpu { choice_of, rows, .. }) => {
                rows.take().unwrap_or_else(|| gpu.kernels.gather(tokens, choice_of, gpu.k()))
            }
            (_, rows) => rows.permutation().permute(tokens),
        }
    }

    /// `[tokens, width]`: the weighted sum of each token's outputs.
    pub(super) fn unpermute(&self, outputs: &Tensor) -> Tensor {
        match (&self.choices, &self.rows) {
            (Choices::Gpu(gpu), Rows::Gpu { row_of, .. }) => gpu.kernels.combine(outputs, row_of, gpu.weights(), None),
            (choices, rows) => rows.permutation().unpermute(outputs, choices.weights()),
        }
    }

    /// The gradients of the outputs' rows and of the weights of choices, from that of the tokens' sums.
    pub(super) fn unpermute_backward(&self, gradient: &Tensor, outputs: &Tensor) -> [Tensor; 2] {
        match (&self.choices, &self.rows) {
            (Choices::Gpu(gpu), Rows::Gpu { choice_of, .. }) => {
                gpu.kernels.spread(gradient, outputs, choice_of, gpu.weights())
            }
            (choices, rows) => {
                let permutation = rows.permutation();
                let of_rows = permutation.unpermute_backward(gradient, choices.weights());
                [of_rows, permutation.weights_backward(gradient, outputs)]
            }
        }
    }

    /// The gradient of the tokens, from those of their rows and of the weights of their choices. Adds to the gate's
    /// gradients. `balance`: factor of the balance loss in the whole loss.
    pub(super) fn permute_backward(self, gates: &Gates, of_rows: &Tensor, of_weights: &Tensor, balance: f64) -> Tensor {
        match (self.choices, self.rows) {
            (Choices::Gpu(gpu), Rows::Gpu { row_of, .. }) => {
                gpu.backward(gates, (of_rows, &row_of), of_weights, balance)
            }
            (Choices::Gpu(gpu), Rows::Permutation(permutation)) => {
                permutation.permute_backward(of_rows) + gpu.gate_backward(gates, of_weights, balance)
            }
            (Choices::Host { scored, .. }, rows) => {
                let through_gate = scored.backward(gates, of_weights, balance);
                rows.permutation().permute_backward(of_rows) + through_gate
            }
        }
    }
}

impl Rows {
    fn permutation(&self) -> &Permutation {
        match self {
            Self::Permutation(permutation) => permutation,
            Self::Gpu { .. } => unreachable!("choices of the host have rows of the host"),
        }
    }

    /// Of choices on a GPU.
    fn on_gpu(choices: &mut GpuChoices, splits: &Splits, own: &[u32], layout: Layout) -> Self {
        let entries: i64 = own.iter().map(|&entries| i64::from(entries)).sum();
        let by_expert = choices.entries.by_expert.narrow(0, 0, entries);
        let rows = choices.rows.take();
        let (row_of, choice_of, rows) = if splits.follow_experts(own) {
            (choices.entries.row_of.shallow_clone(), by_expert, rows.map(|rows| rows.narrow(0, 0, entries)))
        } else if splits.has_copies() {
            let pieces: Vec<[usize; 2]> = splits.pieces.iter().map(|piece| [piece.first, piece.rows]).collect();
            let (row_of, choice_of) = choices.kernels.place_pieces(Some(&choices.entries.row_of), &pieces);
            (row_of, choice_of, None)
        } else {
            let mut base = vec![0; own.len()];
            splits.pieces.iter().for_each(|piece| base[piece.expert] = piece.first as i32);
            let base = to_device(&Tensor::from_slice(&base), choices.tokens.device());
            let (chosen, sorted) = (&choices.entries.chosen, &choices.entries.sorted);
            let (row_of, choice_of) =
                choices.kernels.place(chosen, sorted, [Some(&base), None], Some(splits.rows as i64));
            (row_of, choice_of, None)
        };
        match layout {
            Layout::OneHot { .. } => {
                let row_of = row_of.to_kind(Kind::Int64);
                let permutation =
                    Permutation::by_products(&row_of, choices.entries.fewer, choices.weights(), splits.rows);
                Self::Permutation(permutation)
            }
            _ => Self::Gpu { row_of, choice_of, rows },
        }
    }
}

#[cfg(test)]
mod tests {
    use systems::RoutingCounts;
    use systems::plan::placement::Placement;
    use systems::program::split::Split;
    use systems::program::{Exchange, LayerProgram, Weights};
    use tch::Device;
    use workloads::Gate;
    use workloads::gate::{Groups, Router, RouterBias, Score};

    use super::*;
    use crate::host::to_host;
    use crate::kernels::tests::{HALF, SINGLE, error, gpu, half, normal};
    use crate::layer::choices::Admission;
    use crate::layer::gate::{self, Choice, Given, LayerGate, Scored};
    use crate::model::parameters::{Bucket, stream};

    const TOKENS: i64 = 200;
    const WIDTH: i64 = 64;
    /// Large, so that the balance loss counts beside the weights' gradients.
    const BALANCE: f64 = 2000.0;

    struct Case {
        gates: Gates,
        gate: LayerGate,
        /// The gate's limits.
        by: Gate,
        tokens: Tensor,
        k: usize,
        gradient: Tensor,
        of_weights: Tensor,
    }

    impl Case {
        /// Logits are the same bits in whatever order products are added up, and a token's differ: multiples of 1/128, and 1/16384 for
        /// each expert before.
        fn new((router, experts, k): (Router, i64, usize), by: Gate) -> Self {
            let device = Device::Cuda(0);
            let whole = |most: i64, shape: &[i64]| Tensor::randint_low(-most, most + 1, shape, (Kind::Float, device));
            let (tokens, weight) = (whole(4, &[TOKENS, WIDTH]) / 4.0, whole(8, &[experts, WIDTH]) / 32.0);
            let _ = tokens.select(1, 0).fill_(1.0);
            weight.select(1, 0).copy_(&(Tensor::arange(experts, (Kind::Float, device)) / 16384.0));
            let bias = (router.bias == RouterBias::Logit).then(|| whole(8, &[experts]) / 32.0);
            let selection = (router.bias == RouterBias::Selection).then(|| normal(&[experts]) * 0.1);
            let gate = LayerGate {
                router,
                weight: 0,
                bias: bias.as_ref().map(|_| 1),
                selection: selection.as_ref().map(|_| 0),
            };
            let of_scores: Vec<Tensor> = std::iter::once(weight).chain(bias).collect();
            let of_choice: Vec<Tensor> = selection.into_iter().collect();
            Self {
                gates: Gates {
                    scores: Bucket::new(&of_scores, Kind::BFloat16, device),
                    selection: Bucket::new(&of_choice, Kind::Float, device),
                },
                gate,
                by,
                tokens: tokens.to_kind(Kind::BFloat16),
                k,
                gradient: half(&[TOKENS, WIDTH]),
                of_weights: normal(&[TOKENS, k as i64]) * 20.0,
            }
        }

        fn experts(&self) -> usize {
            self.gates.scores.leaf(0).size()[0] as usize
        }

        fn on_gpu(&self, choice: Choice, kept: Option<&[Option<usize>]>) -> GpuChoices {
            let admission = Admission { by: &self.by, rng: &stream(1, "gate"), kept };
            GpuChoices::new(&self.gates, &self.gate, &self.tokens, self.k, choice, &admission).unwrap()
        }

        fn on_host(&self, choice: Choice, kept: Option<&[Option<usize>]>) -> Choices {
            let mut rng = stream(1, "gate");
            let by = (&self.by, &mut rng);
            let scored = Scored::new(&self.gates, &self.gate, &self.tokens, self.k, choice, by).unwrap();
            let admitted = || scored.admit(&self.by, self.experts(), &mut rng).unwrap();
            let choices = kept.map_or_else(admitted, <[_]>::to_vec);
            Choices::Host { scored, choices }
        }

        /// The choices with every fifth moved to the next expert, which a token may have by then, and every third of the entries dropped; of a replay, or of
        /// the gate's.
        fn fewer(&self, choices: &Choices, replayed: bool) -> [Choices; 2] {
            let moved = |(index, expert)| (expert + usize::from(index % 5 == 0)) % self.experts();
            let experts: Vec<usize> = choices.experts().unwrap().into_iter().enumerate().map(moved).collect();
            let left = |(index, (entry, &expert)): (usize, (Option<usize>, _))| {
                entry.filter(|_| index % 3 > 0).and(Some(expert))
            };
            let kept: Vec<_> = choices.entries().unwrap().into_iter().zip(&experts).enumerate().map(left).collect();
            let given = Given::new(experts, self.k, self.tokens.device());
            let choice = if replayed { Choice::Replayed(&given) } else { Choice::Moved(&given) };
            [Choices::Gpu(self.on_gpu(choice, Some(&kept))), self.on_host(choice, Some(&kept))]
        }

        /// `[expert]`: entries, of which an owner has dropped those past its limit, if the gate has it do so.
        fn counts(&self, choices: &mut Choices) -> Vec<u32> {
            let (experts, device) = (self.experts(), self.tokens.device());
            let counts = to_host::<i64>(&choices.counts(experts, device)).unwrap();
            let counts: Vec<u32> = counts.into_iter().map(|count| count as u32).collect();
            if let Choices::Gpu(choices) = choices {
                assert_eq!(choices.wait_for_counts(), counts);
            }
            let Gate::Switch { .. } = self.by else { return counts };
            let mut counts = RoutingCounts::new(experts, counts);
            gate::limit_at_owner(&mut counts, self.by.capacity(TOKENS as usize, self.k, experts).unwrap(), 1);
            choices.limit(counts.row(0));
            counts.row(0).to_vec()
        }

        /// Weights, tokens' sums, gradients of tokens, of outputs, of weights through the sums, and of the gate's parameters.
        fn run(&self, choices: Choices, counts: &[u32], way: &Way) -> ([Tensor; 5], Vec<Tensor>) {
            let experts = self.experts();
            let weights = choices.weights().copy();
            let ranks = way.placement.ranks();
            let others = vec![0; (ranks - 1) * experts];
            let of_ranks = RoutingCounts::new(experts, [counts, &others].concat());
            let splits = Splits::new(&way.program, &of_ranks, &way.placement, &vec![0; ranks], 0);
            let mut routing = Routing::new(choices, &splits, counts, way.program.layout).unwrap();
            let outputs = routing.permute(&self.tokens).tanh();
            let sums = routing.unpermute(&outputs);
            let [of_outputs, through_sums] = routing.unpermute_backward(&self.gradient, &outputs);
            let of_rows = routing.permute(&self.gradient);
            // What is cleared is not read.
            let _ = self.gates.scores.open(0..1).0.shallow_clone().fill_(f64::NAN);
            self.gates.scores.clear();
            let of_tokens = routing.permute_backward(&self.gates, &of_rows, &self.of_weights.copy(), BALANCE);
            let gradients = self.gates.scores.gradients().copy();
            let (of_weight, rest) = (experts as i64 * WIDTH, gradients.numel() as i64 - experts as i64 * WIDTH);
            let mut of_parameters = gradients.split_with_sizes([of_weight, rest].as_slice(), 0);
            of_parameters.retain(|gradient| gradient.numel() > 0);
            ([weights, sums, of_tokens, of_outputs, through_sums], of_parameters)
        }

        fn check(&self, replayed: Option<&Given>, way: &Way) {
            let what = format!("{:?} {:?} {} {:?}", self.by, self.gate.router, replayed.is_some(), way.program.layout);
            let choice = replayed.map_or(Choice::Learned, Choice::Replayed);
            let (mut on_gpu, mut on_host) = (self.on_gpu(choice, None), self.on_host(choice, None));
            on_gpu.lay_out();
            let mut on_gpu = Choices::Gpu(on_gpu);
            let loss = on_gpu.balance_loss().unwrap();
            let balanced = self.by.is_balanced() || self.gate.router.auxiliary_loss > 0.0;
            assert_eq!(loss > 0.0, balanced && replayed.is_none(), "{what}: {loss}");
            let [mut again_on_gpu, mut again_on_host] = self.fewer(&on_host, replayed.is_some());
            // A choice that is moved changes nothing of the loss.
            for found in [&mut on_host, &mut again_on_gpu, &mut again_on_host] {
                let found = found.balance_loss().unwrap();
                assert!((found - loss).abs() <= SINGLE * loss, "{what}: {found}, {loss}");
            }
            let drops = self.by.capacity_factor().is_some();
            self.check_same(on_gpu, on_host, way, (&what, drops));
            self.check_same(again_on_gpu, again_on_host, way, (&format!("{what}, fewer"), true));
        }

        fn check_same(&self, mut on_gpu: Choices, mut on_host: Choices, way: &Way, (what, drops): (&str, bool)) {
            assert_eq!(on_gpu.experts().unwrap(), on_host.experts().unwrap(), "{what}");
            assert_eq!(on_gpu.chosen(self.experts()), on_host.chosen(self.experts()), "{what}");
            let counts = self.counts(&mut on_gpu);
            assert_eq!(counts, self.counts(&mut on_host), "{what}");
            let entries = on_gpu.entries().unwrap();
            assert_eq!(entries, on_host.entries().unwrap(), "{what}");
            let dropped = entries.iter().filter(|entry| entry.is_none()).count();
            assert!((dropped > 0) == drops && dropped < entries.len(), "{what}: {dropped}");

            let (found, of_parameters) = self.run(on_gpu, &counts, way);
            let (expected, expected_of_parameters) = self.run(on_host, &counts, way);
            let most = [SINGLE, 2.0 * HALF, 2.0 * HALF, 2.0 * HALF, 2.0 * HALF];
            for ((found, expected), most) in found.iter().zip(&expected).zip(most) {
                let error = error(found, expected);
                assert!(error < most, "{what}: {error}, {most}");
            }
            assert_eq!(of_parameters.len(), expected_of_parameters.len());
            for (found, expected) in of_parameters.iter().zip(&expected_of_parameters) {
                // The host's are rounded to the kind of the weights.
                let error = error(found, expected);
                assert!(error < HALF, "{what}: {error}");
            }
        }
    }

    /// How rows are laid out.
    struct Way {
        program: LayerProgram,
        placement: Placement,
    }

    impl Way {
        /// As they come, padded for products with one-hot matrices, and shared out to two copies of every expert.
        fn all(experts: usize) -> [Self; 3] {
            let one_hot = Layout::OneHot { rows: 3 * TOKENS as u32 };
            let copies = (0..2 * experts).map(|slot| Some(slot % experts)).collect();
            let alone = |program| Self { program, placement: Placement::identity(experts, 1) };
            [
                alone(LayerProgram::expert_parallel()),
                alone(LayerProgram::padded(one_hot, Exchange::Whole, false)),
                Self {
                    program: LayerProgram::split(Split::Even, Vec::new(), Weights::Stand, 0),
                    placement: Placement::of_slots(copies, experts, 2).unwrap(),
                },
            ]
        }
    }

    /// Mixtral's, Qwen's, DeepSeek-V3's and gpt-oss', and two of which no model is known.
    fn routers() -> [(Router, i64, usize); 6] {
        let plain = Router::default();
        let mixtral = Router { bias: RouterBias::None, auxiliary_loss: 0.02, ..plain };
        let qwen = Router { renormalise: false, auxiliary_loss: 0.001, ..mixtral };
        let deepseek = Router {
            score: Score::Sigmoid,
            bias: RouterBias::Selection,
            groups: Some(Groups { number: 8, kept: 4, best: 2 }),
            scale: 2.5,
            auxiliary_loss: 1e-4,
            ..plain
        };
        let scaled = Router { scale: 0.5, ..plain };
        let alone = Router { score: Score::Sigmoid, renormalise: false, ..mixtral };
        [(mixtral, 8, 2), (qwen, 60, 4), (deepseek, 64, 8), (plain, 32, 4), (scaled, 20, 3), (alone, 7, 1)]
    }

    fn check_all(of_model: (Router, i64, usize), by: Gate) {
        let (_, experts, k) = of_model;
        for way in Way::all(experts as usize) {
            let case = Case::new(of_model, by);
            case.check(None, &way);
            let given = Tensor::randint(experts, [TOKENS * k as i64], (Kind::Int64, Device::Cpu));
            let given: Vec<usize> = to_host::<i64>(&given).unwrap().into_iter().map(|expert| expert as usize).collect();
            case.check(Some(&Given::new(given, k, case.tokens.device())), &way);
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_routes_as_the_host_does() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        for of_model in routers() {
            check_all(of_model, Gate::NoDrop);
        }
    }

    /// Two choices of a token, of which the second are dropped at random, and other numbers; with and without balance losses of
    /// routers.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_drops_and_balances_as_the_host_does() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        let [mixtral, qwen, deepseek, (plain, ..), (scaled, ..), _] = routers();
        let of_models = [mixtral, qwen, deepseek, (plain, 32, 4), (plain, 16, 2), (plain, 8, 1), (scaled, 20, 3)];
        for of_model in of_models {
            for by in [Gate::BalancedNoDrop, Gate::Capacity { factor: 1.0 }, Gate::Capacity { factor: 0.8 }] {
                check_all(of_model, by);
            }
        }
    }

    /// Whatever the router of the model: its weights are those of choices that are given.
    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_switches_as_the_host_does() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        for (router, experts, _) in routers() {
            // What is 1 whatever the score has a gradient of rounding.
            let renormalise = router.renormalise && router.score == Score::Softmax;
            check_all((Router { renormalise, ..router }, experts, 1), Gate::Switch { factor: 1.0 });
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn sigmoid_scores_without_a_balance_loss_are_the_hosts_under_a_balanced_gate() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        let router = Router { score: Score::Sigmoid, ..Router::default() };
        let case = Case::new((router, 8, 2), Gate::Capacity { factor: 1.0 });
        let rng = stream(1, "gate");
        let served = |by: &Gate| {
            let admission = Admission { by, rng: &rng, kept: None };
            GpuChoices::new(&case.gates, &case.gate, &case.tokens, 2, Choice::Learned, &admission).is_some()
        };
        assert!(served(&Gate::NoDrop) && !served(&case.by));
    }
}
