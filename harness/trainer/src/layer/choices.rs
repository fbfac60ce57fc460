//! What a gate chooses for the tokens of a micro-batch, and which choices become entries.
//!
//! On the host, choices are a list and scores are under autograd ([`Scored`]). A GPU needs neither, whatever
//! the gate: choices, limits and gradients stay on the device, and the host reads only counts and the balance loss. It reads
//! choices where a system moves them, where experts are cut into parts, and where those of several parts of the tokens are recorded.
//! One pair is left to the host: a router of sigmoid scores without a balance loss of its own, under a gate that is trained with one.

use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use workloads::Gate;
use workloads::gate::{Router, RouterBias, Score};

use crate::error::TrainError;
use crate::host::{to_device, to_host};
use crate::kernels::{self, Kernels, Reading, Scores, Sorted};
use crate::layer::gate::{self, Choice, Gates, Given, LayerGate, Scored};

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
pub(super) struct Admission<'a> {
    pub(super) by: &'a Gate,
    /// Where the gate's random numbers begin.
    pub(super) rng: &'a ChaCha8Rng,
    /// `[tokens * k]`: all but those that are none, instead of what the gate's limit on one rank leaves.
    pub(super) kept: Option<&'a [Option<usize>]>,
}

/// Choices on a GPU.
pub(super) struct GpuChoices {
    pub(super) kernels: &'static Kernels,
    gate: LayerGate,
    pub(super) tokens: Tensor,
    scores: ScoresOf,
    pub(super) entries: Entries,
    /// `[tokens * k, width]`: the tokens of entries, then zeros, once they are laid out.
    pub(super) rows: Option<Tensor>,
    /// What the host reads, until it waits for that, and then: `[expert]` entries, `[expert]` choices where these may be more and,
    /// where there is one, the balance loss.
    reading: Option<Reading>,
    numbers: Vec<i32>,
}

/// Choices that were not dropped, on a GPU.
pub(super) struct Entries {
    /// `[tokens, k]`: experts, -1 where a choice was dropped.
    pub(super) chosen: Tensor,
    /// Whether a choice may have been dropped.
    pub(super) fewer: bool,
    pub(super) sorted: Sorted,
    /// `[tokens * k]`: the place in `by_expert` of each choice, -1 where it was dropped.
    pub(super) row_of: Tensor,
    /// `[tokens * k]`: the choices expert after expert, each expert's in the order of tokens, then -1.
    pub(super) by_expert: Tensor,
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
        *self.by == Gate::NoDrop && self.kept.is_none_or(|kept| kept.iter().all(Option::is_some))
    }

    /// The choices that a balance loss counts, if router or gate have one.
    fn counted(&self, router: &Router) -> Option<Counted> {
        if router.auxiliary_loss > 0.0 {
            return Some(Counted::All);
        }
        self.by.is_balanced().then_some(Counted::First)
    }
}

impl GpuChoices {
    /// Scores `tokens` and chooses `k` experts for each. None where the kernels do not serve: then the host does it.
    pub(super) fn new(
        gates: &Gates,
        gate: &LayerGate,
        tokens: &Tensor,
        k: usize,
        choice: Choice,
        admission: &Admission,
    ) -> Option<Self> {
        let is_noisy = choice.is_the_gates() && matches!(admission.by, Gate::Switch { .. });
        let noise = is_noisy.then_some(admission.rng);
        let gate = if noise.is_some() { LayerGate { router: SWITCH, selection: None, ..*gate } } else { *gate };
        let counted = admission.counted(&gate.router).filter(|_| choice.is_the_gates());
        let weight = gates.scores.leaf(gate.weight).detach();
        let experts = weight.size()[0];
        let serve = tokens.size()[1] % 8 == 0
            && kernels::routes(&gate.router, experts, k)
            && (counted != Some(Counted::First) || gate.router.score == Score::Softmax);
        let kernels = kernels::on(tokens).filter(|_| serve)?;
        let logits = tokens.mm_dtype(&weight.tr(), Kind::Float);
        let sparse = admission.is_free();
        let score = |logits, given| ScoresOf::new(kernels, gates, &gate, logits, k as i64, given, (sparse, noise));
        // Scores may take the memory of logits.
        let moved = counted.is_some() && matches!(choice, Choice::Moved(_));
        let own = moved.then(|| score(logits.copy(), None));
        let mut scores = score(logits, choice.given());
        let sorted = kernels.sort(scores.chosen(), experts);
        let loss = counted.and_then(|counted| match own {
            None => scores.balance_loss(kernels, &gate, &sorted, counted),
            Some(mut own) => {
                let sorted = kernels.sort(own.chosen(), experts);
                let loss = own.balance_loss(kernels, &gate, &sorted, counted);
                scores.balance_as(own);
                loss
            }
        });
        let kept = match admission.kept {
            None => scores.within_capacity(kernels, admission.by, &sorted, admission.rng),
            Some(kept) => (!sparse).then(|| as_numbers(kept, scores.chosen())),
        };
        let chosen = kept.is_some().then(|| sorted.totals.shallow_clone());
        let entries = match kept {
            Some(kept) => Entries::some(kernels, kept, experts),
            None => Entries::all(kernels, scores.chosen().shallow_clone(), sorted),
        };
        let loss = loss.map(|loss| loss.view([1]).view_dtype(Kind::Int));
        let parts: Vec<&Tensor> = std::iter::once(&entries.sorted.totals).chain(&chosen).chain(&loss).collect();
        let reading = kernels.read(&if let [only] = parts[..] { only.shallow_clone() } else { Tensor::cat(&parts, 0) });
        let (tokens, reading, numbers) = (tokens.shallow_clone(), Some(reading), Vec::new());
        Some(Self { kernels, gate, tokens, scores, entries, rows: None, reading, numbers })
    }

    /// Lays out the rows expert after expert, as many programs want them: the GPU does that while ranks tell each other their counts.
    pub(super) fn lay_out(&mut self) {
        self.rows = Some(self.kernels.gather(&self.tokens, &self.entries.by_expert, self.k()));
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
    pub(super) fn backward(
        self,
        gates: &Gates,
        (of_rows, row_of): (&Tensor, &Tensor),
        of_weights: &Tensor,
        balance: f64,
    ) -> Tensor {
        match &self.scores {
            &ScoresOf::Choices { parameters, ref chosen, ref weights } => {
                // The kernel reads 16 bytes at a time.
                let weight = kernels::aligned(&gates.scores.leaf(self.gate.weight).detach());
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
    pub(super) fn gate_backward(&self, gates: &Gates, of_weights: &Tensor, balance: f64) -> Tensor {
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

    pub(super) fn k(&self) -> i64 {
        self.chosen().size()[1]
    }

    pub(super) fn weights(&self) -> &Tensor {
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

    /// Takes over the gradient of the balance loss of the same scores under other choices.
    fn balance_as(&mut self, other: Self) {
        if let (Self::All { coefficients, .. }, Self::All { coefficients: of_other, .. }) = (self, other) {
            *coefficients = of_other;
        }
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

    pub(super) fn weights(&self) -> &Tensor {
        match self {
            Self::Host { scored, .. } => &scored.weights,
            Self::Gpu(gpu) => gpu.weights(),
        }
    }
}
