//! Where the tokens of a micro-batch go, from the gate's choices to the rows of an exchange and back.
//!
//! On the host, choices are a list and scores are under autograd: [`Scored`] and [`Permutation`]. A GPU needs neither, whatever
//! the gate: choices, limits, rows and gradients stay on the device, and the host reads only counts and the balance loss. It reads
//! choices where a system moves them, where experts are cut into parts, and where those of several parts of the tokens are recorded.
//! One pair is left to the host: a router of sigmoid scores without a balance loss of its own, under a gate that is trained with one.

use rand_chacha::ChaCha8Rng;
use systems::program::Layout;
use tch::{Device, Kind, Tensor};
use workloads::Gate;
use workloads::gate::{Router, RouterBias, Score};

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

/// Which choices become entries.
pub(super) enum Admission<'a> {
    /// What the gate's limit on one rank leaves; random numbers are the stream's from its start.
    Gate(&'a Gate, &'a ChaCha8Rng),
    /// `[tokens * k]`: all but those that are none.
    These(&'a [Option<usize>]),
}

/// Choices on a GPU.
pub(super) struct GpuChoices {
    kernels: &'static Kernels,
    gate: LayerGate,
    tokens: Tensor,
    scores: ScoresOf,
    entries: Entries,
    /// `[tokens * k, width]`: the tokens of entries, then zeros. Most programs want them so, and the GPU has something to do until
    /// the program is known.
    rows: Option<Tensor>,
    /// What the host reads, until it waits for that, and then: `[expert]` entries, `[expert]` choices where these may be more and,
    /// where there is one, the balance loss.
    reading: Option<Reading>,
    numbers: Vec<i32>,
}

/// Choices that were not dropped, on a GPU.
struct Entries {
    /// `[tokens, k]`: experts, -1 where a choice was dropped.
    chosen: Tensor,
    /// Whether a choice may have been dropped.
    fewer: bool,
    sorted: Sorted,
    /// `[tokens * k]`: the place in `by_expert` of each choice, -1 where it was dropped.
    row_of: Tensor,
    /// `[tokens * k]`: the choices expert after expert, each expert's in the order of tokens, then -1.
    by_expert: Tensor,
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
        /// `[tokens, experts]`, where there is noise: its factors of the logits.
        noise: Option<Tensor>,
        /// `[experts]`, where there is a balance loss: its derivatives by the mean shares of experts.
        coefficients: Option<Tensor>,
    },
}

/// What the switch gate weighs its choices by, whatever the router of the model.
const SWITCH: Router = Router {
    score: Score::Softmax,
    renormalise: false,
    bias: RouterBias::None,
    groups: None,
    scale: 1.0,
    auxiliary_loss: 0.0,
};

/// Which choices a balance loss counts.
#[derive(Clone, Copy, PartialEq)]
enum Counted {
    All,
    First,
}

impl Admission<'_> {
    /// Whether every choice is an entry, and none is counted for a balance loss of the gate's.
    fn is_free(&self) -> bool {
        match self {
            Self::Gate(gate, _) => **gate == Gate::NoDrop,
            Self::These(kept) => kept.iter().all(Option::is_some),
        }
    }

    /// The choices that a balance loss counts, if router or gate have one.
    fn counted(&self, router: &Router) -> Option<Counted> {
        match self {
            _ if router.auxiliary_loss > 0.0 => Some(Counted::All),
            Self::Gate(gate, _) if gate.is_balanced() => Some(Counted::First),
            _ => None,
        }
    }
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
        admission: &Admission,
    ) -> Option<Self> {
        let noise = match admission {
            Admission::Gate(Gate::Switch { .. }, rng) if given.is_none() => Some(*rng),
            _ => None,
        };
        let gate = if noise.is_some() { LayerGate { router: SWITCH, selection: None, ..*gate } } else { *gate };
        let counted = admission.counted(&gate.router).filter(|_| given.is_none());
        let weight = gates.scores.leaf(gate.weight).detach();
        let experts = weight.size()[0];
        let serve = tokens.size()[1] % 8 == 0
            && kernels::routes(&gate.router, experts, k)
            && (counted != Some(Counted::First) || gate.router.score == Score::Softmax);
        let kernels = kernels::on(tokens).filter(|_| serve)?;
        let logits = tokens.mm_dtype(&weight.tr(), Kind::Float);
        let sparse = admission.is_free();
        let mut scores = ScoresOf::new(kernels, gates, &gate, logits, k as i64, given, (sparse, noise));
        let sorted = kernels.sort(scores.chosen(), experts);
        let loss = counted.and_then(|counted| scores.balance_loss(kernels, &gate, &sorted, counted));
        let kept = match *admission {
            Admission::Gate(by, rng) => scores.within_capacity(kernels, by, &sorted, rng),
            Admission::These(kept) => (!sparse).then(|| as_numbers(kept, scores.chosen())),
        };
        let chosen = kept.is_some().then(|| sorted.totals.shallow_clone());
        let entries = match kept {
            Some(kept) => Entries::some(kernels, kept, experts),
            None => Entries::all(kernels, scores.chosen().shallow_clone(), sorted),
        };
        let loss = loss.map(|loss| loss.view([1]).view_dtype(Kind::Int));
        let parts: Vec<&Tensor> = std::iter::once(&entries.sorted.totals).chain(&chosen).chain(&loss).collect();
        let reading = kernels.read(&if let [only] = parts[..] { only.shallow_clone() } else { Tensor::cat(&parts, 0) });
        let rows = Some(kernels.gather(tokens, &entries.by_expert, k as i64));
        let (tokens, reading, numbers) = (tokens.shallow_clone(), Some(reading), Vec::new());
        Some(Self { kernels, gate, tokens, scores, entries, rows, reading, numbers })
    }

    /// What was read. The host waits for it, once.
    fn numbers(&mut self) -> &[i32] {
        if let Some(reading) = self.reading.take() {
            self.numbers = reading.wait();
        }
        &self.numbers
    }

    /// `[expert]`: entries under the own limit. The host waits for them.
    pub(super) fn wait_for_counts(&mut self) -> Vec<u32> {
        let experts = self.entries.sorted.totals.numel();
        self.numbers()[..experts].iter().map(|&count| count as u32).collect()
    }

    /// `[expert]`: choices before any limit. The host waits for them.
    fn wait_for_chosen(&mut self) -> Vec<u32> {
        let (experts, losses) = (self.entries.sorted.totals.numel(), usize::from(self.is_balanced()));
        let numbers = self.numbers();
        let end = numbers.len() - losses;
        numbers[end - experts..end].iter().map(|&count| count as u32).collect()
    }

    /// The balance loss, which comes with the counts; 0 if there is none.
    fn balance_loss(&mut self) -> f64 {
        let bits = if self.is_balanced() { self.numbers().last() } else { None };
        bits.map_or(0.0, |&bits| f64::from(f32::from_bits(bits as u32)))
    }

    fn is_balanced(&self) -> bool {
        matches!(self.scores, ScoresOf::All { coefficients: Some(_), .. })
    }

    /// Drops all but the first `most[expert]` entries of every expert. The host waits for their counts.
    fn limit(&mut self, most: &[u32]) {
        if self.wait_for_counts().iter().zip(most).all(|(count, most)| count <= most) {
            return;
        }
        let most: Vec<i32> = most.iter().map(|&most| i32::try_from(most).unwrap_or(i32::MAX)).collect();
        let most = to_device(&Tensor::from_slice(&most), self.tokens.device());
        let kept = at_most(self.kernels, &self.entries.chosen, &self.entries.sorted, &most);
        self.entries = Entries::some(self.kernels, kept, most.numel() as i64);
        self.rows = None;
    }

    /// The rows expert after expert, and `[experts]` the row after each expert's last.
    pub(super) fn by_expert(&self) -> Option<[&Tensor; 2]> {
        self.rows.as_ref().map(|rows| [rows, &self.entries.sorted.ends])
    }

    /// Adds to the gradients of weight and bias, from those of the logits of choices.
    fn add_gradients(&self, gates: &Gates, parameters: [usize; 2], of_logits: &Tensor) {
        // No choice was dropped: one that was has a gradient, too.
        let Entries { sorted, by_expert, .. } = &self.entries;
        let starts = &sorted.ends - &sorted.totals;
        let place = [&starts, &sorted.totals];
        let gradients = self.kernels.gate_gradient(&self.tokens, of_logits, by_expert, place);
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
            ScoresOf::All { scores, noise, coefficients } => {
                let factor = balance / self.tokens.size()[0] as f64;
                let balance = coefficients.as_ref().map(|coefficients| (coefficients, factor));
                let of_logits = self.kernels.route_backward(&self.gate.router, scores, of_weights, balance);
                let of_logits = noise.iter().fold(of_logits, |of_logits, noise| of_logits * noise);
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
        self.scores.weights()
    }
}

impl ScoresOf {
    /// From `logits` `[tokens, experts]` before their bias, whose memory they may take. `sparse`: from those of choices alone, where
    /// the router allows it; no choice is dropped then. `noise`: the stream that it is drawn from.
    fn new(
        kernels: &Kernels,
        gates: &Gates,
        gate: &LayerGate,
        logits: Tensor,
        k: i64,
        given: Option<&Given>,
        (sparse, noise): (bool, Option<&ChaCha8Rng>),
    ) -> Self {
        let bias = gate.bias.map(|index| gates.scores.leaf(index).detach());
        let given = given.map(|given| &given.on_device);
        if let Some(rng) = noise {
            let noise = (kernels.uniform(rng, &logits.size()) * 0.2 + 0.9).to_kind(Kind::Float);
            let logits = bias.iter().fold(logits, |logits, bias| logits + bias) * &noise;
            let scores = kernels.route(&gate.router, logits, [None, None], given, k);
            return Self::All { scores, noise: Some(noise), coefficients: None };
        }
        let (Some(parameters), Some(bias)) = (gate.sparse().filter(|_| sparse), &bias) else {
            let selection = gate.selection.map(|index| gates.selection.leaf(index).detach());
            let scores = kernels.route(&gate.router, logits, [bias.as_ref(), selection.as_ref()], given, k);
            return Self::All { scores, noise: None, coefficients: None };
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

    fn weights(&self) -> &Tensor {
        match self {
            Self::Choices { weights, .. } => weights,
            Self::All { scores, .. } => &scores.weights,
        }
    }

    /// The balance loss, where all experts' scores are there. `sorted`: all choices. Its gradient is kept.
    fn balance_loss(
        &mut self,
        kernels: &Kernels,
        gate: &LayerGate,
        sorted: &Sorted,
        counted: Counted,
    ) -> Option<Tensor> {
        let Self::All { scores, coefficients, .. } = self else { return None };
        let (experts, k) = (scores.all.size()[1], scores.chosen.size()[1]);
        let first = (counted == Counted::First && k > 1).then(|| scores.chosen.select(1, 0).contiguous());
        let of_first = first.map(|first| (kernels.sort(&first, experts).totals, first.numel()));
        let (totals, choices) = of_first.unwrap_or_else(|| (sorted.totals.shallow_clone(), scores.chosen.numel()));
        // E times each expert's share of the choices, so that an even gate has a loss of 1.
        let routed = totals * (experts as f64 / choices.max(1) as f64);
        let mean = gate.shares(&scores.all).mean_dim(0, false, Kind::Float);
        let loss = (&routed * mean).sum(Kind::Float);
        *coefficients = Some(routed);
        Some(loss)
    }

    /// [`Scored::admit`]: the choices that a capacity gate keeps, -1 where it drops one. None where the gate drops none.
    fn within_capacity(&self, kernels: &Kernels, gate: &Gate, sorted: &Sorted, rng: &ChaCha8Rng) -> Option<Tensor> {
        let (chosen, experts) = (self.chosen(), sorted.totals.numel());
        let (tokens, k) = (chosen.size()[0], chosen.size()[1]);
        let Gate::Capacity { .. } = gate else { return None };
        let most = gate.capacity(tokens as usize, k as usize, experts)?;
        let most = Tensor::full([experts as i64], i64::from(most), (Kind::Int, chosen.device()));
        let kept = at_most(kernels, chosen, sorted, &most);
        if k == 2 {
            let twice = self.weights().select(1, 1).to_kind(Kind::Double) * 2.0;
            let lost = twice.lt_tensor(&kernels.uniform(rng, &[tokens]));
            let _ = kept.select(1, 1).masked_fill_(&lost, -1);
        }
        Some(kept)
    }
}

/// The first `most[expert]` choices of every expert, -1 in place of others.
fn at_most(kernels: &Kernels, chosen: &Tensor, sorted: &Sorted, most: &Tensor) -> Tensor {
    let (row_of, _) = kernels.place(chosen, sorted, [None, Some(most)], Some(chosen.numel() as i64));
    chosen.masked_fill(&row_of.view_as(chosen).lt(0), -1)
}

/// Choices of the host, -1 where there is none, in shape and place of others.
fn as_numbers(choices: &[Option<usize>], like: &Tensor) -> Tensor {
    let numbers: Vec<i32> = choices.iter().map(|choice| choice.map_or(-1, |expert| expert as i32)).collect();
    to_device(&Tensor::from_slice(&numbers).view_as(like), like.device())
}

impl Entries {
    fn all(kernels: &Kernels, chosen: Tensor, sorted: Sorted) -> Self {
        let (row_of, by_expert) = kernels.place(&chosen, &sorted, [None, None], None);
        Self { chosen, fewer: false, sorted, row_of, by_expert }
    }

    /// Of choices that are -1 where they were dropped.
    fn some(kernels: &Kernels, chosen: Tensor, experts: i64) -> Self {
        let sorted = kernels.sort(&chosen, experts);
        let (row_of, by_expert) = kernels.place(&chosen, &sorted, [None, None], Some(chosen.numel() as i64));
        Self { chosen, fewer: true, sorted, row_of, by_expert }
    }

    /// `row_of` where the entry at each place of `by_expert` has the row `at` `[entries]`.
    fn moved(&self, at: &Tensor) -> Tensor {
        let at = at.to_kind(Kind::Int);
        match self.fewer {
            true => at.index_select(0, &self.row_of.clamp_min(0)).masked_fill(&self.row_of.lt(0), -1),
            false => at.index_select(0, &self.row_of),
        }
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
            Self::Gpu(gpu) => gpu.entries.sorted.totals.to_kind(Kind::Int64),
        }
    }

    /// `[expert]`: choices before any limit.
    pub(super) fn chosen(&mut self, experts: usize) -> Vec<u32> {
        match self {
            Self::Host { scored, .. } => gate::count(scored.experts.iter().copied(), experts),
            Self::Gpu(gpu) => gpu.wait_for_chosen(),
        }
    }

    /// Drops all but the first `most[expert]` entries of every expert.
    pub(super) fn limit(&mut self, most: &[u32]) {
        match self {
            Self::Host { choices, .. } => gate::limit(choices, most),
            Self::Gpu(gpu) => gpu.limit(most),
        }
    }

    /// `[tokens * k]`: the expert of every choice; none where it was dropped. The host waits for the GPU.
    ///
    /// # Errors
    /// As for [`Self::experts`].
    pub(super) fn entries(&self) -> Result<Vec<Option<usize>>, TrainError> {
        match self {
            Self::Host { choices, .. } => Ok(choices.clone()),
            Self::Gpu(gpu) => {
                let kept = to_host::<i32>(&gpu.entries.chosen)?;
                Ok(kept.into_iter().map(|expert| usize::try_from(expert).ok()).collect())
            }
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
        let entries: i64 = own.iter().map(|&entries| i64::from(entries)).sum();
        let by_expert = self.entries.by_expert.narrow(0, 0, entries);
        let rows = self.rows.take();
        let (row_of, choice_of, rows) = if splits.follow_experts(own) {
            (self.entries.row_of.shallow_clone(), by_expert, rows.map(|rows| rows.narrow(0, 0, entries)))
        } else if splits.has_copies() {
            let pieces = splits.pieces.iter().map(|piece| piece.first..piece.first + piece.rows);
            let at = numbers_of(pieces, self.tokens.device());
            let choice_of = by_expert.zeros_like().index_copy(0, &at, &by_expert);
            (self.entries.moved(&at), choice_of, None)
        } else {
            let mut base = vec![0; own.len()];
            splits.pieces.iter().for_each(|piece| base[piece.expert] = piece.first as i32);
            let base = to_device(&Tensor::from_slice(&base), self.tokens.device());
            let Entries { chosen, sorted, .. } = &self.entries;
            let (row_of, choice_of) = self.kernels.place(chosen, sorted, [Some(&base), None], Some(splits.rows as i64));
            (row_of, choice_of, None)
        };
        match layout {
            Layout::OneHot { .. } => {
                let row_of = row_of.to_kind(Kind::Int64);
                let permutation = Permutation::by_products(&row_of, self.entries.fewer, self.weights(), splits.rows);
                Rows::Permutation(permutation)
            }
            _ => Rows::Gpu { row_of, choice_of, rows },
        }
    }
}

#[cfg(test)]
mod tests {
    use systems::RoutingCounts;
    use systems::plan::placement::Placement;
    use systems::program::split::Split;
    use systems::program::{Exchange, LayerProgram, Weights};
    use workloads::gate::Groups;

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

        fn on_gpu(&self, given: Option<&Given>) -> Choices {
            let rng = stream(1, "gate");
            let admission = Admission::Gate(&self.by, &rng);
            Choices::Gpu(GpuChoices::new(&self.gates, &self.gate, &self.tokens, self.k, given, &admission).unwrap())
        }

        fn on_host(&self, given: Option<&Given>) -> Choices {
            let mut rng = stream(1, "gate");
            let choice = given.map_or_else(|| Choice::Learned(&self.by, &mut rng), Choice::Given);
            let scored = Scored::new(&self.gates, &self.gate, &self.tokens, self.k, choice).unwrap();
            let choices = scored.admit(&self.by, self.experts(), &mut rng).unwrap();
            Choices::Host { scored, choices }
        }

        /// The same choices under weights of their own, and every third of the entries dropped.
        fn fewer(&self, choices: &Choices, on_gpu: bool) -> Choices {
            let experts = choices.experts().unwrap();
            let third = |(index, entry): (usize, Option<usize>)| entry.filter(|_| index % 3 > 0);
            let kept: Vec<_> = choices.entries().unwrap().into_iter().enumerate().map(third).collect();
            let given = Given::new(experts, self.k, self.tokens.device());
            let admission = Admission::These(&kept);
            if on_gpu {
                let choices = GpuChoices::new(&self.gates, &self.gate, &self.tokens, self.k, Some(&given), &admission);
                return Choices::Gpu(choices.unwrap());
            }
            let scored = Scored::new(&self.gates, &self.gate, &self.tokens, self.k, Choice::Given(&given)).unwrap();
            Choices::Host { scored, choices: kept }
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
            gate::limit_at_owner(&mut counts, self.by.capacity(TOKENS as usize, self.k, experts).unwrap());
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

        fn check(&self, given: Option<&Given>, way: &Way) {
            let what = format!("{:?} {:?} {} {:?}", self.by, self.gate.router, given.is_some(), way.program.layout);
            let (mut on_gpu, mut on_host) = (self.on_gpu(given), self.on_host(given));
            let loss = on_gpu.balance_loss().unwrap();
            let expected = on_host.balance_loss().unwrap();
            assert!((loss - expected).abs() <= SINGLE * expected, "{what}: {loss}, {expected}");
            let balanced = self.by.is_balanced() || self.gate.router.auxiliary_loss > 0.0;
            assert_eq!(loss > 0.0, balanced && given.is_none(), "{what}: {loss}");
            let [again_on_gpu, again_on_host] = [true, false].map(|on_gpu| self.fewer(&on_host, on_gpu));
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
            let admission = Admission::Gate(by, &rng);
            GpuChoices::new(&case.gates, &case.gate, &case.tokens, 2, None, &admission).is_some()
        };
        assert!(served(&Gate::NoDrop) && !served(&case.by));
    }
}
