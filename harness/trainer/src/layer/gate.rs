//! The gate: scores, choices, and which choices become entries.
//!
//! Scores and weights are tensors under autograd; which experts a token goes to is decided on the host, in arrival order
//! (token by token, first choice first), so that every limit drops exactly the entries that its definition says.

use rand_chacha::ChaCha8Rng;
use systems::RoutingCounts;
use tch::{Kind, Tensor};
use workloads::Gate;

use crate::error::TrainError;
use crate::host::{to_host, to_scalar};
use crate::model::parameters::{Bucket, uniform};
use crate::model::tape::Tape;

/// The gate's choices for the tokens of one micro-batch on one rank, before any limit.
pub struct Scored {
    /// `[tokens, k]`: weights of the choices, in single precision.
    pub weights: Tensor,
    /// `[tokens * k]`: the chosen experts, a token's own next to each other, best first.
    pub experts: Vec<usize>,
    balance: Option<Tensor>,
    tape: Tape,
}

/// How experts are chosen.
pub enum Choice<'a> {
    /// By the best scores; gates with noise draw it from the stream.
    Learned(&'a Gate, &'a mut ChaCha8Rng),
    /// As given, `[tokens * k]`.
    Given(&'a [usize]),
}

impl Scored {
    /// Scores `tokens` `[tokens, width]` with the gate's weight `[experts, width]` and bias `[experts]` (`parameters` of
    /// `bucket`) and chooses `k` experts for each.
    ///
    /// # Errors
    /// libtorch returns indices of another kind than it documents.
    pub fn new(
        bucket: &Bucket,
        parameters: [usize; 2],
        tokens: &Tensor,
        k: usize,
        choice: Choice,
    ) -> Result<Self, TrainError> {
        let mut chosen = Tensor::new();
        let mut balance = None;
        let ([weights, loss], tape) = Tape::record(bucket, &parameters, &[tokens], |inputs, leaves| {
            let scores = scores(&inputs[0], leaves);
            match choice {
                Choice::Given(experts) => {
                    let experts: Vec<i64> = experts.iter().map(|&expert| expert as i64).collect();
                    chosen = Tensor::from_slice(&experts).view([-1, k as i64]).to_device(scores.device());
                    let zero = scores.sum(Kind::Float) * 0.0;
                    [scores.gather(1, &chosen, false).softmax(-1, Kind::Float), zero]
                }
                Choice::Learned(Gate::Switch { .. }, rng) => {
                    let count = scores.numel();
                    let noise: Vec<f32> = (0..count).map(|_| (0.9 + 0.2 * uniform(rng)) as f32).collect();
                    let noise = Tensor::from_slice(&noise).view_as(&scores).to_device(scores.device());
                    let shares = (scores * noise).softmax(-1, Kind::Float);
                    let (best, index) = shares.topk(1, -1, true, true);
                    balance = Some(());
                    let loss = balance_loss(&shares, &index);
                    chosen = index;
                    [best, loss]
                }
                Choice::Learned(gate, _) => {
                    let (best, index) = scores.topk(k as i64, -1, true, true);
                    let loss = match gate {
                        Gate::NoDrop => scores.sum(Kind::Float) * 0.0,
                        _ => {
                            balance = Some(());
                            balance_loss(&scores.softmax(-1, Kind::Float), &index.narrow(1, 0, 1))
                        }
                    };
                    chosen = index;
                    [best.softmax(-1, Kind::Float), loss]
                }
            }
        });
        let experts = to_host::<i64>(&chosen)?.into_iter().map(|expert| expert as usize).collect();
        Ok(Self { weights, balance: balance.map(|()| loss), experts, tape })
    }

    /// The auxiliary loss, not yet multiplied by its coefficient; 0 if the gate has none.
    ///
    /// # Errors
    /// A loss of another kind than single precision.
    pub fn balance_loss(&self) -> Result<f64, TrainError> {
        self.balance.as_ref().map_or(Ok(0.0), |loss| Ok(f64::from(to_scalar::<f32>(loss)?)))
    }

    /// Which choices of this rank become entries under its own limit. A capacity gate keeps the first `capacity` choices of
    /// every expert in arrival order; of these, its top-2 variant (GShard) keeps a second choice of weight `p` with
    /// probability `2 p`.
    ///
    /// # Errors
    /// Weights of another kind than single precision.
    pub fn admit(&self, gate: &Gate, experts: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Option<usize>>, TrainError> {
        let k = self.weights.size()[1] as usize;
        let mut choices: Vec<Option<usize>> = self.experts.iter().copied().map(Some).collect();
        if let Gate::Capacity { .. } = gate
            && let Some(capacity) = gate.capacity(choices.len() / k, k, experts)
        {
            limit(&mut choices, &vec![capacity; experts]);
            if k == 2 {
                drop_second_choices(&mut choices, &to_host(&self.weights)?, rng);
            }
        }
        Ok(choices)
    }

    /// The gradient of the tokens, from that of the weights and the factor of the auxiliary loss in the whole loss.
    pub fn backward(self, bucket: &Bucket, weights: &Tensor, balance: f64) -> Tensor {
        let balance = Tensor::from(balance as f32).to_device(weights.device());
        self.tape.backward(bucket, &[weights, &balance]).remove(0)
    }
}

/// `[tokens, experts]` in single precision, whatever the tokens' kind.
fn scores(tokens: &Tensor, leaves: &[&Tensor]) -> Tensor {
    tokens.to_kind(Kind::Float).linear(&leaves[0].to_kind(Kind::Float), Some(leaves[1].to_kind(Kind::Float)))
}

/// GShard's auxiliary loss (Lepikhin et al. 2020): `E^2` times the mean over experts of (share of tokens whose first choice
/// it is) times (mean probability). 1 when both are even.
fn balance_loss(shares: &Tensor, first: &Tensor) -> Tensor {
    let experts = shares.size()[1];
    let routed = shares.zeros_like().scatter_value(1, first, 1.0).mean_dim(0, false, Kind::Float).detach();
    let mean = shares.mean_dim(0, false, Kind::Float);
    (routed * mean).mean(Kind::Float) * (experts * experts) as f64
}

/// Drops second choices at random. `weights` `[tokens * 2]`.
fn drop_second_choices(choices: &mut [Option<usize>], weights: &[f32], rng: &mut ChaCha8Rng) {
    for (choices, weights) in choices.chunks_exact_mut(2).zip(weights.chunks_exact(2)) {
        if 2.0 * f64::from(weights[1]) < uniform(rng) {
            choices[1] = None;
        }
    }
}

/// Drops all but the first `most[expert]` choices of every expert.
pub fn limit(choices: &mut [Option<usize>], most: &[u32]) {
    let mut seen = vec![0; most.len()];
    for choice in choices {
        if let Some(expert) = *choice {
            seen[expert] += 1;
            if seen[expert] > most[expert] {
                *choice = None;
            }
        }
    }
}

/// The switch gate's limit at the owner: a group's experts take entries by source rank until `capacity` a rank is used up.
pub fn limit_at_owner(counts: &mut RoutingCounts, capacity: u32) {
    let mut left = vec![u64::from(capacity) * counts.ranks() as u64; counts.experts()];
    for rank in 0..counts.ranks() {
        for (count, left) in counts.row_mut(rank).iter_mut().zip(&mut left) {
            *count = (*count).min((*left).min(u64::from(u32::MAX)) as u32);
            *left -= u64::from(*count);
        }
    }
}

/// Changes choices so that every expert has `wanted[expert]` of them, as a system's restriction of the gate asks. Where an
/// expert has too many, its latest choices go to the experts that have too few, in order.
pub fn redirect(choices: &mut [Option<usize>], wanted: &[u32]) {
    let mut surplus: Vec<i64> = wanted.iter().map(|&count| -i64::from(count)).collect();
    choices.iter().flatten().for_each(|&expert| surplus[expert] += 1);
    let mut free: Vec<usize> = Vec::new();
    for (expert, surplus) in surplus.iter().enumerate() {
        free.extend(std::iter::repeat_n(expert, (-surplus).max(0) as usize));
    }
    free.reverse();
    for choice in choices.iter_mut().rev() {
        let Some(expert) = choice else { continue };
        if surplus[*expert] > 0 {
            surplus[*expert] -= 1;
            *choice = free.pop();
        }
    }
}

/// Experts for every choice of one sample, `[tokens * k]`, so that expert `e` is chosen `counts[e]` times and a token's
/// experts differ: the sorted list of all entries is dealt out in `k` rounds. No count may exceed the number of tokens.
pub fn deal(counts: &[u32], k: usize) -> Vec<usize> {
    let entries: Vec<usize> =
        counts.iter().enumerate().flat_map(|(expert, &count)| std::iter::repeat_n(expert, count as usize)).collect();
    let tokens = entries.len() / k;
    (0..tokens * k).map(|index| entries[index / k + index % k * tokens]).collect()
}

/// `[expert]`: how often each is chosen.
pub fn count(choices: impl Iterator<Item = usize>, experts: usize) -> Vec<u32> {
    let mut counts = vec![0; experts];
    choices.for_each(|expert| counts[expert] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::parameters::stream;
    use tch::Device;

    /// The plain reading of GShard's gate, one entry after the other.
    #[test]
    fn the_capacity_gate_drops_what_the_plain_reading_drops() {
        let (tokens, number) = (64, 8);
        let mut rng = stream(3, "choices");
        let mut draw = |below: usize| ((1.0 - uniform(&mut rng)) * below as f64) as usize;
        let experts: Vec<usize> = (0..tokens)
            .flat_map(|_| {
                let first = draw(3);
                [first, (first + 1 + draw(number - 1)) % number]
            })
            .collect();
        let weights: Vec<f32> = (0..tokens).flat_map(|t| [1.0 - t as f32 / 140.0, t as f32 / 140.0]).collect();
        let gate = Gate::Capacity { factor: 1.2 };
        let mut kept: Vec<Option<usize>> = experts.iter().copied().map(Some).collect();
        limit(&mut kept, &vec![gate.capacity(tokens, 2, number).unwrap(); number]);
        drop_second_choices(&mut kept, &weights, &mut stream(3, "drops"));

        let capacity = (1.2f64 * 64.0).ceil() as usize * 2 / 8;
        let mut rng = stream(3, "drops");
        let mut expected = Vec::new();
        for (index, &expert) in experts.iter().enumerate() {
            let before = experts[..index].iter().filter(|&&other| other == expert).count();
            let fits = before < capacity;
            let lucky = index % 2 == 0 || 2.0 * f64::from(weights[index]) >= uniform(&mut rng);
            expected.push((fits && lucky).then_some(expert));
        }
        assert_eq!(kept, expected);
        let dropped = kept.iter().filter(|choice| choice.is_none()).count();
        assert!(dropped > 10 && dropped < 100, "{dropped}");
    }

    #[test]
    fn owners_take_entries_by_source_rank() {
        let mut counts = RoutingCounts::new(2, vec![5, 1, 4, 1, 3, 1]);
        limit_at_owner(&mut counts, 3);
        assert_eq!([counts.row(0), counts.row(1), counts.row(2)], [[5, 1], [4, 1], [0, 1]]);
    }

    #[test]
    fn redirected_choices_have_the_counts_that_are_asked_for() {
        let mut choices: Vec<Option<usize>> = [0, 0, 1, 0, 2, 0].into_iter().map(Some).collect();
        redirect(&mut choices, &[2, 3, 1]);
        assert_eq!(count(choices.iter().flatten().copied(), 3), [2, 3, 1]);
        assert_eq!(choices[..3], [Some(0), Some(0), Some(1)]);
    }

    #[test]
    fn dealt_experts_have_their_counts_and_differ_within_a_token() {
        let counts = [4, 0, 3, 1];
        let dealt = deal(&counts, 2);
        assert_eq!(count(dealt.iter().copied(), 4), counts);
        assert!(dealt.chunks_exact(2).all(|token| token[0] != token[1]));
    }

    #[test]
    fn an_even_gate_has_a_balance_loss_of_one() {
        let shares = Tensor::ones([8, 4], (Kind::Float, Device::Cpu)) / 4.0;
        let first = Tensor::from_slice(&[0i64, 1, 2, 3, 0, 1, 2, 3]).view([8, 1]);
        assert!((f64::try_from(balance_loss(&shares, &first)).unwrap() - 1.0).abs() < 1e-6);
    }
}
