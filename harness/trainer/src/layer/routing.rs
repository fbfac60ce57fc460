//! Where the tokens of a micro-batch go, from the gate's choices to the rows of an exchange and back.
//!
//! On the host, choices are a list and scores are under autograd: [`Scored`] and [`Permutation`]. A gate without limits on
//! a GPU needs neither, whatever its router: choices, rows and gradients stay on the device, and the host reads only the counts
//! and the balance loss.

use systems::program::Layout;
use tch::{Device, Kind, Tensor};

use crate::error::TrainError;
use crate::host::{numbers_of, to_device, to_host};
use crate::kernels::{self, Kernels, Reading, Scores, Sorted};
use crate::layer::gate::{self, Gates, Given, LayerGate, Scored};
use crate::layer::permute::Permutation;
use crate::layer::splits::Splits;

/// The gate's choices, and their weights.
pub(super) enum Choices {
    Host {
        scored: Scored,
        /// `[tokens * k]`: the expert of every choice; none where it was dropped.
        choices: Vec<Option<usize>>,
    },
    Gpu(GpuChoices),
}

/// Choices of a gate without limits, on a GPU.
pub(super) struct GpuChoices {
    kernels: &'static Kernels,
    gate: LayerGate,
    tokens: Tensor,
    scores: ScoresOf,
    sorted: Sorted,
    /// `[tokens * k]`: the choices expert after expert, each expert's in the order of tokens.
    by_expert: Tensor,
    row_of: Tensor,
    /// `[tokens * k, width]`: their tokens. Most programs want them so, and the GPU has something to do until the program is
    /// known.
    rows: Option<Tensor>,
    /// What the host reads, until it waits for that, and then: `[expert]` choices and, where there is one, the balance loss.
    reading: Option<Reading>,
    numbers: Vec<i32>,
}

/// What choices and their weights come from, as far as gradients need it.
enum ScoresOf {
    Choices {
        /// Weight and bias of the gate, by index.
        parameters: [usize; 2],
        /// `[tokens, k]`: experts, and the softmax over their logits, which no other logit changes.
        chosen: Tensor,
        weights: Tensor,
    },
    All {
        scores: Scores,
        /// `[experts]`, where there is a balance loss: its derivatives by the mean shares of experts.
        coefficients: Option<Tensor>,
    },
}

impl GpuChoices {
    /// Scores `tokens` and chooses `k` experts for each: the best, or those `given`. None where the kernels
    /// do not serve: then the host does it.
    pub(super) fn new(
        gates: &Gates,
        gate: &LayerGate,
        tokens: &Tensor,
        k: usize,
        given: Option<&Given>,
    ) -> Option<Self> {
        let weight = gates.scores.leaf(gate.weight).detach();
        let experts = weight.size()[0];
        let serve = tokens.size()[1] % 8 == 0 && kernels::routes(&gate.router, experts, k);
        let kernels = kernels::on(tokens).filter(|_| serve)?;
        let logits = tokens.mm_dtype(&weight.tr(), Kind::Float);
        let mut scores = ScoresOf::new(kernels, gates, gate, logits, k as i64, given);
        let chosen = scores.chosen();
        let sorted = kernels.sort(chosen, experts);
        let (row_of, by_expert) = kernels.place(chosen, &sorted, None, chosen.numel() as i64);
        let balanced = gate.router.auxiliary_loss > 0.0 && given.is_none();
        let loss = balanced.then(|| scores.balance_loss(gate, &sorted.totals)).flatten();
        let reading = Some(kernels.read(&match loss {
            Some(loss) => Tensor::cat(&[&sorted.totals, &loss.view([1]).view_dtype(Kind::Int)], 0),
            None => sorted.totals.shallow_clone(),
        }));
        let rows = Some(kernels.gather(tokens, &by_expert, k as i64));
        let (tokens, gate, numbers) = (tokens.shallow_clone(), *gate, Vec::new());
        Some(Self { kernels, gate, tokens, scores, sorted, by_expert, row_of, rows, reading, numbers })
    }

    /// What was read. The host waits for it, once.
    fn numbers(&mut self) -> &[i32] {
        if let Some(reading) = self.reading.take() {
            self.numbers = reading.wait();
        }
        &self.numbers
    }

    /// `[expert]`: choices. The host waits for them.
    pub(super) fn wait_for_counts(&mut self) -> Vec<u32> {
        let experts = self.sorted.totals.numel();
        self.numbers()[..experts].iter().map(|&count| count as u32).collect()
    }

    /// The balance loss, which comes with the counts; 0 if there is none.
    fn balance_loss(&mut self) -> f64 {
        let ScoresOf::All { coefficients: Some(coefficients), .. } = &self.scores else { return 0.0 };
        let experts = coefficients.numel();
        f64::from(f32::from_bits(self.numbers()[experts] as u32))
    }

    /// The rows expert after expert, and `[experts]` the row after each expert's last.
    pub(super) fn by_expert(&self) -> Option<[&Tensor; 2]> {
        self.rows.as_ref().map(|rows| [rows, &self.sorted.ends])
    }

    /// Adds to the gradients of weight and bias, from those of the logits of choices.
    fn add_gradients(&self, gates: &Gates, parameters: [usize; 2], of_logits: &Tensor) {
        let starts = &self.sorted.ends - &self.sorted.totals;
        let place = [&starts, &self.sorted.totals];
        let gradients = self.kernels.gate_gradient(&self.tokens, of_logits, &self.by_expert, place);
        for (index, gradient) in parameters.into_iter().zip(gradients) {
            gates.scores.accumulate(index, &gradient);
        }
    }

    /// The gradient of the tokens, from those of their rows and of the weights of their choices. Adds to the gate's gradients.
    fn backward(
        self,
        gates: &Gates,
        (of_rows, row_of): (&Tensor, &Tensor),
        of_weights: &Tensor,
        balance: f64,
    ) -> Tensor {
        match &self.scores {
            &ScoresOf::Choices { parameters, ref chosen, ref weights } => {
                let weight = gates.scores.leaf(self.gate.weight).detach();
                let of_logits = of_weights;
                let of_tokens = self.kernels.collect(of_rows, row_of, [chosen, weights, of_logits], &weight);
                self.add_gradients(gates, parameters, of_logits);
                of_tokens
            }
            ScoresOf::All { .. } => {
                let through_gate = self.gate_backward(gates, of_weights, balance);
                self.kernels.combine(of_rows, row_of, &self.weights().ones_like(), Some(&through_gate))
            }
        }
    }

    /// The gradient of the tokens through the gate, from that of the weights of their choices. Adds to the gate's gradients.
    fn gate_backward(&self, gates: &Gates, of_weights: &Tensor, balance: f64) -> Tensor {
        let weight = gates.scores.leaf(self.gate.weight).detach().to_kind(Kind::Float);
        let of_logits = match &self.scores {
            &ScoresOf::Choices { parameters, ref chosen, ref weights } => {
                let mean = (weights * of_weights).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
                let of_chosen = weights * (of_weights - mean);
                self.add_gradients(gates, parameters, &of_chosen);
                let all = Tensor::zeros([self.tokens.size()[0], weight.size()[0]], (Kind::Float, weight.device()));
                // A redirected token may have an expert twice.
                all.scatter_add(1, &chosen.to_kind(Kind::Int64), &of_chosen)
            }
            ScoresOf::All { scores, coefficients } => {
                let factor = balance / self.tokens.size()[0] as f64;
                let balance = coefficients.as_ref().map(|coefficients| (coefficients, factor));
                let of_logits = self.kernels.route_backward(&self.gate.router, scores, of_weights, balance);
                let of_weight = of_logits.tr().matmul(&self.tokens.to_kind(Kind::Float));
                gates.scores.accumulate(self.gate.weight, &of_weight);
                if let Some(bias) = self.gate.bias {
                    let of_bias = of_logits.sum_dim_intlist([0i64].as_slice(), false, Kind::Float);
                    gates.scores.accumulate(bias, &of_bias);
                }
                of_logits
            }
        };
        of_logits.matmul(&weight).to_kind(self.tokens.kind())
    }

    fn chosen(&self) -> &Tensor {
        self.scores.chosen()
    }

    fn weights(&self) -> &Tensor {
        match &self.scores {
            ScoresOf::Choices { weights, .. } => weights,
            ScoresOf::All { scores, .. } => &scores.weights,
        }
    }
}

impl ScoresOf {
    /// From `logits` `[tokens, experts]` before their bias, whose memory they take.
    fn new(kernels: &Kernels, gates: &Gates, gate: &LayerGate, logits: Tensor, k: i64, given: Option<&Given>) -> Self {
        let bias = gate.bias.map(|index| gates.scores.leaf(index).detach());
        let given = given.map(|given| &given.on_device);
        let (Some(parameters), Some(bias)) = (gate.sparse(), &bias) else {
            let selection = gate.selection.map(|index| gates.selection.leaf(index).detach());
            let scores = kernels.route(&gate.router, logits, [bias.as_ref(), selection.as_ref()], given, k);
            return Self::All { scores, coefficients: None };
        };
        let (chosen, weights) = match given {
            None => kernels.choose(&logits, bias, k),
            Some(given) => {
                let of_chosen = (logits + bias).gather(1, &given.to_kind(Kind::Int64), false);
                (given.shallow_clone(), of_chosen.softmax(-1, Kind::Float))
            }
        };
        Self::Choices { parameters, chosen, weights }
    }

    fn chosen(&self) -> &Tensor {
        match self {
            Self::Choices { chosen, .. } => chosen,
            Self::All { scores, .. } => &scores.chosen,
        }
    }

    /// The balance loss of choices, of which each expert has `totals`, where all experts' scores are there. Its gradient is kept.
    fn balance_loss(&mut self, gate: &LayerGate, totals: &Tensor) -> Option<Tensor> {
        let Self::All { scores, coefficients } = self else { return None };
        // E times each expert's share of the choices, so that an even gate has a loss of 1.
        let routed = totals * (totals.numel() as f64 / scores.chosen.numel().max(1) as f64);
        let mean = gate.shares(&scores.all).mean_dim(0, false, Kind::Float);
        let loss = (&routed * mean).sum(Kind::Float);
        *coefficients = Some(routed);
        Some(loss)
    }
}

/// The rows of a micro-batch.
pub(super) struct Routing {
    choices: Choices,
    rows: Rows,
}

enum Rows {
    Permutation(Permutation),
    Gpu {
        /// `[tokens * k]`: the row of each choice.
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
        let several = (splits.parts > 1).then(|| choices.experts()).transpose()?;
        let rows = match &mut choices {
            Choices::Host { scored, choices } => {
                Rows::Permutation(Permutation::new(splits, choices, &scored.weights, layout))
            }
            Choices::Gpu(gpu) => match several {
                // A row of the kernels has one choice, and a choice one row.
                Some(experts) => {
                    let choices: Vec<Option<usize>> = experts.into_iter().map(Some).collect();
                    Rows::Permutation(Permutation::new(splits, &choices, gpu.weights(), layout))
                }
                None => gpu.rows(splits, own, layout),
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

impl Choices {
    /// `[experts]`: this rank's entries under its own limit, as 64-bit numbers on the device.
    pub(super) fn counts(&self, experts: usize, device: Device) -> Tensor {
        match self {
            Self::Host { choices, .. } => {
                let counts = gate::count(choices.iter().flatten().copied(), experts);
                let counts: Vec<i64> = counts.into_iter().map(i64::from).collect();
                to_device(&Tensor::from_slice(&counts), device)
            }
            Self::Gpu(gpu) => gpu.sorted.totals.to_kind(Kind::Int64),
        }
    }

    /// `[expert]`: choices before any limit, where there may be more of them than entries.
    pub(super) fn chosen(&self, experts: usize) -> Option<Vec<u32>> {
        match self {
            Self::Host { scored, .. } => Some(gate::count(scored.experts.iter().copied(), experts)),
            Self::Gpu(_) => None,
        }
    }

    /// `[tokens * k]`: the expert of every choice before any limit. The host waits for the GPU.
    ///
    /// # Errors
    /// Choices of another kind than 32-bit numbers.
    pub(super) fn experts(&self) -> Result<Vec<usize>, TrainError> {
        match self {
            Self::Host { scored, .. } => Ok(scored.experts.clone()),
            Self::Gpu(gpu) => Ok(to_host::<i32>(gpu.chosen())?.into_iter().map(|expert| expert as usize).collect()),
        }
    }

    /// `[part * experts]`: choices before any limit of each of equal parts of the tokens.
    ///
    /// # Errors
    /// As for [`Self::experts`].
    pub(super) fn of_parts(&self, experts: usize, parts: usize) -> Result<Vec<u32>, TrainError> {
        let chosen = self.experts()?;
        let of_part = |part: &[usize]| gate::count(part.iter().copied(), experts);
        Ok(chosen.chunks(chosen.len().div_ceil(parts).max(1)).flat_map(of_part).collect())
    }

    /// The auxiliary loss; 0 if the gate has none.
    ///
    /// # Errors
    /// A loss of another kind than single precision.
    pub(super) fn balance_loss(&mut self) -> Result<f64, TrainError> {
        match self {
            Self::Host { scored, .. } => scored.balance_loss(),
            Self::Gpu(gpu) => Ok(gpu.balance_loss()),
        }
    }

    fn weights(&self) -> &Tensor {
        match self {
            Self::Host { scored, .. } => &scored.weights,
            Self::Gpu(gpu) => gpu.weights(),
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
}

impl GpuChoices {
    fn k(&self) -> i64 {
        self.chosen().size()[1]
    }

    fn rows(&mut self, splits: &Splits, own: &[u32], layout: Layout) -> Rows {
        let rows = self.rows.take();
        let (row_of, choice_of, rows) = if splits.follow_experts(own) {
            (self.row_of.shallow_clone(), self.by_expert.shallow_clone(), rows)
        } else if splits.has_copies() {
            let pieces = splits.pieces.iter().map(|piece| piece.first..piece.first + piece.rows);
            let by_expert = numbers_of(pieces, self.tokens.device());
            let choice_of = self.by_expert.zeros_like().index_copy(0, &by_expert, &self.by_expert);
            (by_expert.to_kind(Kind::Int).index_select(0, &self.row_of), choice_of, None)
        } else {
            let mut base = vec![0; own.len()];
            splits.pieces.iter().for_each(|piece| base[piece.expert] = piece.first as i32);
            let base = to_device(&Tensor::from_slice(&base), self.tokens.device());
            let (row_of, choice_of) = self.kernels.place(self.chosen(), &self.sorted, Some(&base), splits.rows as i64);
            (row_of, choice_of, None)
        };
        match layout {
            Layout::OneHot { .. } => {
                let row_of = row_of.to_kind(Kind::Int64);
                Rows::Permutation(Permutation::by_products(row_of, self.weights(), splits.rows))
            }
            _ => Rows::Gpu { row_of, choice_of, rows },
        }
    }
}

#[cfg(test)]
mod tests {
    use systems::RoutingCounts;
    use systems::plan::placement::Placement;
    use systems::program::{Exchange, LayerProgram};
    use workloads::Gate;
    use workloads::gate::{Groups, Router, RouterBias, Score};

    use super::*;
    use crate::kernels::tests::{HALF, SINGLE, error, gpu, half, normal};
    use crate::layer::gate::Choice;
    use crate::model::parameters::{Bucket, stream};

    const TOKENS: i64 = 200;
    const WIDTH: i64 = 64;
    /// Large, so that the balance loss counts beside the weights' gradients.
    const BALANCE: f64 = 2000.0;

    struct Case {
        gates: Gates,
        gate: LayerGate,
        tokens: Tensor,
        k: usize,
        gradient: Tensor,
        of_weights: Tensor,
    }

    impl Case {
        /// Logits are the same bits in whatever order products are added up, and a token's differ: multiples of 1/128, and 1/16384 for
        /// each expert before.
        fn new(router: Router, experts: i64, k: usize) -> Self {
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
                tokens: tokens.to_kind(Kind::BFloat16),
                k,
                gradient: half(&[TOKENS, WIDTH]),
                of_weights: normal(&[TOKENS, k as i64]) * 20.0,
            }
        }

        fn experts(&self) -> usize {
            self.gates.scores.leaf(0).size()[0] as usize
        }

        fn on_gpu(&self, given: Option<&Given>) -> Choices {
            Choices::Gpu(GpuChoices::new(&self.gates, &self.gate, &self.tokens, self.k, given).unwrap())
        }

        fn on_host(&self, given: Option<&Given>) -> Choices {
            let mut rng = stream(1, "unused");
            let choice = given.map_or_else(|| Choice::Learned(&Gate::NoDrop, &mut rng), Choice::Given);
            let scored = Scored::new(&self.gates, &self.gate, &self.tokens, self.k, choice).unwrap();
            let choices = scored.experts.iter().copied().map(Some).collect();
            Choices::Host { scored, choices }
        }

        /// Weights, tokens' sums, gradients of tokens and of the gate's parameters; and the balance loss.
        fn run(&self, mut choices: Choices, program: &LayerProgram) -> ([Tensor; 3], Vec<Tensor>, f64) {
            let (experts, device) = (self.experts(), self.tokens.device());
            let counts = to_host::<i64>(&choices.counts(experts, device)).unwrap();
            let counts: Vec<u32> = counts.into_iter().map(|count| count as u32).collect();
            if let Choices::Gpu(choices) = &mut choices {
                assert_eq!(choices.wait_for_counts(), counts);
            }
            let (loss, weights) = (choices.balance_loss().unwrap(), choices.weights().copy());
            let of_ranks = RoutingCounts::new(experts, counts.clone());
            let splits = Splits::new(program, &of_ranks, &Placement::identity(experts, 1), &[0], 0);
            let mut routing = Routing::new(choices, &splits, &counts, program.layout).unwrap();
            let outputs = routing.permute(&self.tokens).tanh();
            let sums = routing.unpermute(&outputs);
            let of_rows = routing.permute(&self.gradient);
            // What is cleared is not read.
            let _ = self.gates.scores.open(0..1).0.shallow_clone().fill_(f64::NAN);
            self.gates.scores.clear();
            let of_tokens = routing.permute_backward(&self.gates, &of_rows, &self.of_weights.copy(), BALANCE);
            let gradients = self.gates.scores.gradients().copy();
            let (of_weight, rest) = (experts as i64 * WIDTH, gradients.numel() as i64 - experts as i64 * WIDTH);
            let mut of_parameters = gradients.split_with_sizes([of_weight, rest].as_slice(), 0);
            of_parameters.retain(|gradient| gradient.numel() > 0);
            ([weights, sums, of_tokens], of_parameters, loss)
        }

        fn check(&self, given: Option<&Given>, program: &LayerProgram) {
            let what = format!("{:?} {} {:?}", self.gate.router, given.is_some(), program.layout);
            let (on_gpu, on_host) = (self.on_gpu(given), self.on_host(given));
            assert_eq!(on_gpu.experts().unwrap(), on_host.experts().unwrap(), "{what}");
            let (found, of_parameters, loss) = self.run(on_gpu, program);
            let (expected, expected_of_parameters, expected_loss) = self.run(on_host, program);
            for ((found, expected), most) in found.iter().zip(&expected).zip([SINGLE, 2.0 * HALF, 2.0 * HALF]) {
                let error = error(found, expected);
                assert!(error < most, "{what}: {error}, {most}");
            }
            assert_eq!(of_parameters.len(), expected_of_parameters.len());
            for (found, expected) in of_parameters.iter().zip(&expected_of_parameters) {
                // The host's are rounded to the kind of the weights.
                let error = error(found, expected);
                assert!(error < HALF, "{what}: {error}");
            }
            assert!((loss - expected_loss).abs() <= SINGLE * expected_loss, "{what}: {loss}, {expected_loss}");
            let balanced = self.gate.router.auxiliary_loss > 0.0 && given.is_none();
            assert_eq!(loss > 0.0, balanced, "{what}: {loss}");
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

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn a_gpu_routes_as_the_host_does() {
        let (_kernels, _guard) = (gpu(), tch::no_grad_guard());
        let one_hot = Layout::OneHot { rows: 3 * TOKENS as u32 };
        let programs = [LayerProgram::expert_parallel(), LayerProgram::padded(one_hot, Exchange::Whole, false)];
        for (router, experts, k) in routers() {
            for program in &programs {
                let case = Case::new(router, experts, k);
                case.check(None, program);
                let given = Tensor::randint(experts, [TOKENS * k as i64], (Kind::Int64, Device::Cpu));
                let given: Vec<usize> =
                    to_host::<i64>(&given).unwrap().into_iter().map(|expert| expert as usize).collect();
                case.check(Some(&Given::new(given, k, case.tokens.device())), program);
            }
        }
    }
}
