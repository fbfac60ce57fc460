//! Where the tokens of a micro-batch go, from the gate's choices to the rows of an exchange and back.
//!
//! On the host, choices are a list and scores are under autograd: [`Scored`] and [`Permutation`]. A gate without limits on
//! a GPU needs neither: choices, rows and gradients stay on the device, and the host reads only the counts.

use systems::program::Layout;
use tch::{Device, Kind, Tensor};

use crate::error::TrainError;
use crate::host::{numbers_of, to_device, to_host};
use crate::kernels::{self, Kernels, Reading, Sorted};
use crate::layer::gate::{self, Gates, Given, Scored};
use crate::layer::permute::Permutation;
use crate::layer::splits::Splits;
use crate::model::parameters::Bucket;

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
    /// Weight and bias of the gate, by index.
    parameters: [usize; 2],
    tokens: Tensor,
    /// `[tokens, k]`: experts, and the softmax over their scores.
    chosen: Tensor,
    weights: Tensor,
    sorted: Sorted,
    /// `[tokens * k]`: the choices expert after expert, each expert's in the order of tokens.
    by_expert: Tensor,
    row_of: Tensor,
    /// `[tokens * k, width]`: their tokens. Most programs want them so, and the GPU has something to do until the program is
    /// known.
    rows: Option<Tensor>,
    counts: Option<Reading>,
}

impl GpuChoices {
    /// Scores `tokens` and chooses `k` experts for each: the best, or those `given`. None where the kernels
    /// do not serve: then the host does it.
    pub(super) fn new(
        bucket: &Bucket,
        parameters: [usize; 2],
        tokens: &Tensor,
        k: usize,
        given: Option<&Given>,
    ) -> Option<Self> {
        let [weight, bias] = parameters.map(|index| bucket.leaf(index).detach());
        let experts = weight.size()[0];
        let serve = tokens.size()[1] % 8 == 0 && experts <= 1024 && k <= 32;
        let kernels = kernels::on(tokens).filter(|_| serve)?;
        let scores = tokens.mm_dtype(&weight.tr(), Kind::Float);
        let (chosen, weights) = match given {
            None => kernels.choose(&scores, &bias, k as i64),
            Some(given) => {
                let chosen = given.on_device.shallow_clone();
                let of_chosen = (scores + bias).gather(1, &chosen.to_kind(Kind::Int64), false);
                (chosen, of_chosen.softmax(-1, Kind::Float))
            }
        };
        let sorted = kernels.sort(&chosen, experts);
        let (row_of, by_expert) = kernels.place(&chosen, &sorted, None, chosen.numel() as i64);
        let counts = Some(kernels.read(&sorted.totals));
        let rows = Some(kernels.gather(tokens, &by_expert, k as i64));
        let tokens = tokens.shallow_clone();
        Some(Self { kernels, parameters, tokens, chosen, weights, sorted, by_expert, row_of, rows, counts })
    }

    /// `[expert]`: choices. The host waits for them, once.
    pub(super) fn wait_for_counts(&mut self) -> Option<Vec<u32>> {
        let counts = self.counts.take()?.wait();
        Some(counts.into_iter().map(|count| count as u32).collect())
    }

    /// The rows expert after expert, and `[experts]` the row after each expert's last.
    pub(super) fn by_expert(&self) -> Option<[&Tensor; 2]> {
        self.rows.as_ref().map(|rows| [rows, &self.sorted.ends])
    }

    /// Adds to the gradients of the gate, from those of the scores of choices.
    fn add_gradients(&self, bucket: &Bucket, of_scores: &Tensor) {
        let starts = &self.sorted.ends - &self.sorted.totals;
        let place = [&starts, &self.sorted.totals];
        let gradients = self.kernels.gate_gradient(&self.tokens, of_scores, &self.by_expert, place);
        for (index, gradient) in self.parameters.into_iter().zip(gradients) {
            bucket.accumulate(index, &gradient);
        }
    }

    /// The gradients of the scores of choices from those of their weights, and of tokens through the scores.
    fn scores_backward(&self, bucket: &Bucket, of_weights: &Tensor) -> (Tensor, Tensor) {
        let mean = (&self.weights * of_weights).sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
        let of_scores = &self.weights * (of_weights - mean);
        let weight = bucket.leaf(self.parameters[0]).detach();
        let all = Tensor::zeros([self.tokens.size()[0], weight.size()[0]], (Kind::Float, self.tokens.device()));
        // A redirected token may have an expert twice.
        let all = all.scatter_add(1, &self.chosen.to_kind(Kind::Int64), &of_scores);
        let of_tokens = all.matmul(&weight.to_kind(Kind::Float)).to_kind(self.tokens.kind());
        (of_scores, of_tokens)
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
                    Rows::Permutation(Permutation::new(splits, &choices, &gpu.weights, layout))
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
            (Choices::Gpu(gpu), Rows::Gpu { row_of, .. }) => gpu.kernels.combine(outputs, row_of, &gpu.weights, None),
            (choices, rows) => rows.permutation().unpermute(outputs, choices.weights()),
        }
    }

    /// The gradients of the outputs' rows and of the weights of choices, from that of the tokens' sums.
    pub(super) fn unpermute_backward(&self, gradient: &Tensor, outputs: &Tensor) -> [Tensor; 2] {
        match (&self.choices, &self.rows) {
            (Choices::Gpu(gpu), Rows::Gpu { choice_of, .. }) => {
                gpu.kernels.spread(gradient, outputs, choice_of, &gpu.weights)
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
                let weight = gates.scores.leaf(gpu.parameters[0]).detach();
                let of_scores = of_weights;
                let choices = [&gpu.chosen, &gpu.weights, of_scores];
                let of_tokens = gpu.kernels.collect(of_rows, &row_of, choices, &weight);
                gpu.add_gradients(&gates.scores, of_scores);
                of_tokens
            }
            (Choices::Gpu(gpu), Rows::Permutation(permutation)) => {
                let (of_scores, through_gate) = gpu.scores_backward(&gates.scores, of_weights);
                gpu.add_gradients(&gates.scores, &of_scores);
                permutation.permute_backward(of_rows) + through_gate
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
            Self::Gpu(gpu) => Ok(to_host::<i32>(&gpu.chosen)?.into_iter().map(|expert| expert as usize).collect()),
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
    pub(super) fn balance_loss(&self) -> Result<f64, TrainError> {
        match self {
            Self::Host { scored, .. } => scored.balance_loss(),
            Self::Gpu(_) => Ok(0.0),
        }
    }

    fn weights(&self) -> &Tensor {
        match self {
            Self::Host { scored, .. } => &scored.weights,
            Self::Gpu(gpu) => &gpu.weights,
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
        self.chosen.size()[1]
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
            let (row_of, choice_of) = self.kernels.place(&self.chosen, &self.sorted, Some(&base), splits.rows as i64);
            (row_of, choice_of, None)
        };
        match layout {
            Layout::OneHot { .. } => {
                let row_of = row_of.to_kind(Kind::Int64);
                Rows::Permutation(Permutation::by_products(row_of, &self.weights, splits.rows))
            }
            _ => Rows::Gpu { row_of, choice_of, rows },
        }
    }
}
