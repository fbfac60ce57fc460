//! The gate: scores, choices, and which choices become entries.
//!
//! Scores and weights are tensors under autograd; which experts a token goes to is decided on the host, in arrival order
//! (token by token, first choice first), so that every limit drops exactly the entries that its definition says. The kernels of
//! a GPU do the same where the tokens are (`choices.rs`).

use rand_chacha::ChaCha8Rng;
use systems::RoutingCounts;
use tch::{Device, Kind, Tensor};
use workloads::Gate;
use workloads::gate::{Groups, Router, Score};

use crate::error::TrainError;
use crate::host::{to_device, to_host, to_scalar};
use crate::model::parameters::{Bucket, uniform};
use crate::model::tape::Tape;

/// Parameters of the gates of a rank.
pub struct Gates {
    /// Weights and biases of scores, which gradients change.
    pub scores: Bucket,
    /// Biases for the choice alone, which loads change: one parameter for each layer that has them.
    pub selection: Bucket,
}

impl Gates {
    /// Of gates without biases for the choice.
    pub fn of_scores(scores: Bucket) -> Self {
        let selection = Bucket::new(&[], Kind::Float, scores.weights.device());
        Self { scores, selection }
    }
}

/// How the gate of one layer scores: its router, and its parameters by index.
#[derive(Clone, Copy, Debug)]
pub struct LayerGate {
    pub router: Router,
    pub weight: usize,
    pub bias: Option<usize>,
    pub selection: Option<usize>,
}

impl LayerGate {
    /// GShard's, with weight and bias.
    pub fn plain(weight: usize, bias: usize) -> Self {
        Self { router: Router::default(), weight, bias: Some(bias), selection: None }
    }

    /// Weight and bias of a router whose gradients, on a GPU, come from the scores of choices alone.
    pub(super) fn sparse(&self) -> Option<[usize; 2]> {
        self.bias.filter(|_| self.router == Router::default()).map(|bias| [self.weight, bias])
    }

    /// `[tokens, k]`: the experts of the best scores, best first.
    fn choose(&self, gates: &Gates, logits: &Tensor, k: i64) -> Tensor {
        if self.selection.is_none() && self.router.groups.is_none() {
            return logits.topk(k, -1, true, true).1;
        }
        let scores = self.scores(logits).detach();
        let biased = match self.selection {
            Some(selection) => scores + gates.selection.leaf(selection).detach(),
            None => scores,
        };
        let kept = match self.router.groups {
            Some(groups) => in_best_groups(&biased, groups),
            None => biased,
        };
        kept.topk(k, -1, true, true).1
    }

    /// `[tokens, experts]`
    fn scores(&self, logits: &Tensor) -> Tensor {
        match self.router.score {
            Score::Softmax => logits.softmax(-1, Kind::Float),
            Score::Sigmoid => logits.sigmoid(),
        }
    }

    /// `[tokens, k]`: what the chosen experts' outputs are multiplied by.
    fn weigh(&self, logits: &Tensor, chosen: &Tensor) -> Tensor {
        let weights = match (self.router.score, self.router.renormalise) {
            (Score::Softmax, true) => logits.gather(1, chosen, false).softmax(-1, Kind::Float),
            (_, renormalise) => {
                let scores = self.scores(logits).gather(1, chosen, false);
                if renormalise { &scores / sum_of_choices(&scores) } else { scores }
            }
        };
        if self.router.scale == 1.0 { weights } else { weights * self.router.scale }
    }

    /// `[tokens, experts]`: what the router's balance loss takes as shares of a token, from its scores.
    pub(super) fn shares(&self, scores: &Tensor) -> Tensor {
        match self.router.score {
            Score::Softmax => scores.shallow_clone(),
            Score::Sigmoid => scores / sum_of_choices(scores),
        }
    }

    /// The auxiliary loss, if router or gate have one.
    fn balance_loss(&self, gate: &Gate, logits: &Tensor, chosen: &Tensor) -> Option<Tensor> {
        if self.router.auxiliary_loss > 0.0 {
            return Some(balance_loss(&self.shares(&self.scores(logits)), chosen));
        }
        match gate {
            Gate::NoDrop => None,
            _ => Some(balance_loss(&logits.softmax(-1, Kind::Float), &chosen.narrow(1, 0, 1))),
        }
    }
}

fn sum_of_choices(scores: &Tensor) -> Tensor {
    scores.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)
}

/// Scores `[tokens, experts]`, minus infinity outside the groups that a token keeps.
pub(crate) fn in_best_groups(scores: &Tensor, groups: Groups) -> Tensor {
    let (tokens, experts) = (scores.size()[0], scores.size()[1]);
    let [number, kept, best] = [groups.number, groups.kept, groups.best].map(|count| count as i64);
    let of_experts = scores.view([tokens, number, experts / number]).topk(best, -1, true, false).0;
    let of_groups = of_experts.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float);
    let lost = of_groups.ones_like().scatter_value(1, &of_groups.topk(kept, -1, true, false).1, 0.0);
    let lost = lost.to_kind(Kind::Bool).repeat_interleave_self_int(experts / number, 1, None);
    scores.masked_fill(&lost, f64::NEG_INFINITY)
}

/// How far a bias for the choice moves after each iteration (DeepSeek-V3, arXiv 2412.19437, section 4.2).
const SELECTION_SPEED: f64 = 0.001;

/// Moves the biases for the choice `[experts]` against `loads` `[experts]`, entries of an iteration: down where an expert has
/// more than the mean, up where it has less (Wang et al. 2024, arXiv 2408.15664, algorithm 1).
pub fn move_selection(selection: &Tensor, loads: &Tensor) {
    let loads = loads.to_kind(Kind::Double);
    let step = (loads.mean(Kind::Double) - &loads).sign() * SELECTION_SPEED;
    let _ = selection.shallow_clone().g_add_(&step.to_kind(Kind::Float));
}

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
#[derive(Clone, Copy)]
pub enum Choice<'a> {
    /// By the best scores.
    Learned,
    /// By a trace. Gates have no noise then, and no auxiliary loss.
    Replayed(&'a Given),
    /// By the best scores, and moved: weights are of where choices went, noise and auxiliary loss of what the gate chose.
    Moved(&'a Given),
}

impl<'a> Choice<'a> {
    /// The experts, unless they are those of the best scores.
    pub fn given(self) -> Option<&'a Given> {
        match self {
            Self::Learned => None,
            Self::Replayed(given) | Self::Moved(given) => Some(given),
        }
    }

    /// Whether the gate has chosen.
    pub fn is_the_gates(self) -> bool {
        !matches!(self, Self::Replayed(_))
    }
}

/// The experts that are given for every choice of a micro-batch, whatever the scores.
pub struct Given {
    /// `[tokens * k]`.
    pub experts: Vec<usize>,
    /// The same as 32-bit numbers where the tokens are, `[tokens, k]`.
    pub on_device: Tensor,
}

impl Given {
    pub fn new(experts: Vec<usize>, k: usize, device: Device) -> Self {
        let numbers: Vec<i32> = experts.iter().map(|&expert| expert as i32).collect();
        let on_device = to_device(&Tensor::from_slice(&numbers).view([-1, k as i64]), device);
        Self { experts, on_device }
    }
}

impl Scored {
    /// Scores `tokens` `[tokens, width]` with the weight `[experts, width]` and bias `[experts]` of a layer's gate and chooses `k`
    /// experts for each. A gate `by` that has noise draws it from the stream.
    ///
    /// # Errors
    /// libtorch returns indices of another kind than it documents.
    pub fn new(
        gates: &Gates,
        of_layer: &LayerGate,
        tokens: &Tensor,
        k: usize,
        choice: Choice,
        (by, rng): (&Gate, &mut ChaCha8Rng),
    ) -> Result<Self, TrainError> {
        let given = choice.given().map(|given| given.on_device.to_kind(Kind::Int64));
        let mut chosen = Tensor::new();
        let mut balance = None;
        let parameters: Vec<usize> = std::iter::once(of_layer.weight).chain(of_layer.bias).collect();
        let ([weights, loss], tape) = Tape::record(&gates.scores, &parameters, &[tokens], |inputs, leaves| {
            let scores = logits(&inputs[0], leaves);
            let (weights, loss) = match by {
                Gate::Switch { .. } if choice.is_the_gates() => {
                    let count = scores.numel();
                    let noise: Vec<f32> = (0..count).map(|_| (0.9 + 0.2 * uniform(rng)) as f32).collect();
                    let noise = Tensor::from_slice(&noise).view_as(&scores).to_device(scores.device());
                    let shares = (&scores * noise).softmax(-1, Kind::Float);
                    let best = shares.topk(1, -1, true, true).1;
                    let loss = balance_loss(&shares, &best);
                    chosen = given.unwrap_or(best);
                    (shares.gather(1, &chosen, false), Some(loss))
                }
                _ if choice.is_the_gates() => {
                    let best = of_layer.choose(gates, &scores, k as i64);
                    let loss = of_layer.balance_loss(by, &scores, &best);
                    chosen = given.unwrap_or(best);
                    (of_layer.weigh(&scores, &chosen), loss)
                }
                _ => {
                    chosen = given.expect("a replay gives choices");
                    (of_layer.weigh(&scores, &chosen), None)
                }
            };
            balance = loss.as_ref().map(|_| ());
            [weights, loss.unwrap_or_else(|| scores.sum(Kind::Float) * 0.0)]
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
    pub fn backward(self, gates: &Gates, weights: &Tensor, balance: f64) -> Tensor {
        let balance = Tensor::from(balance as f32).to_device(weights.device());
        self.tape.backward(&gates.scores, &[weights, &balance]).remove(0)
    }
}

/// `[tokens, experts]` in single precision, whatever the tokens' kind.
fn logits(tokens: &Tensor, leaves: &[&Tensor]) -> Tensor {
    let bias = leaves.get(1).map(|bias| bias.to_kind(Kind::Float));
    tokens.to_kind(Kind::Float).linear(&leaves[0].to_kind(Kind::Float), bias)
}

/// `E^2` times the mean over experts of (share of the choices `[tokens, n]` that it is) times (mean probability): 1 when both
/// are even. GShard's auxiliary loss (Lepikhin et al. 2020) on first choices, that of DeepSeek (`aux_loss_alpha`) on all. That of
/// Hugging Face for Mixtral, Qwen, OLMoE and gpt-oss (`router_aux_loss_coef`) adds up a token's `n` choices, so it is `n` when
/// both are even and an import multiplies its factor by `n`; it takes shares and probabilities over the tokens of all layers
/// together, where this is one layer's. DBRX's factor (`moe_loss_weight`) is imported as it stands: in MegaBlocks, where the key
/// comes from, the loss is 1 when even.
fn balance_loss(shares: &Tensor, choices: &Tensor) -> Tensor {
    let (experts, of_token) = (shares.size()[1], choices.size()[1]);
    let chosen = shares.zeros_like().scatter_value(1, choices, 1.0 / of_token as f64);
    let routed = chosen.mean_dim(0, false, Kind::Float).detach();
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

/// The switch gate's limit at the owner: the experts of each set of `ep` ranks take entries by source rank until `capacity` a rank is used up.
/// A group is several sets where a system joins replicas, whose limits are those of the plan.
pub fn limit_at_owner(counts: &mut RoutingCounts, capacity: u32, ep: usize) {
    let mut left = Vec::new();
    for rank in 0..counts.ranks() {
        if rank.is_multiple_of(ep) {
            left = vec![u64::from(capacity) * ep as u64; counts.experts()];
        }
        for (count, left) in counts.row_mut(rank).iter_mut().zip(&mut left) {
            *count = (*count).min((*left).min(u64::from(u32::MAX)) as u32);
            *left -= u64::from(*count);
        }
    }
}

/// Changes choices `[tokens * k]` so that every expert has `wanted[expert]` of them, as a system's restriction of the gate asks.
/// Where an expert has too many, its latest choices go to the experts that have too few, in order; to one that the token does
/// not have yet, if there is one.
pub fn redirect(choices: &mut [Option<usize>], k: usize, wanted: &[u32]) {
    let mut surplus: Vec<i64> = wanted.iter().map(|&count| -i64::from(count)).collect();
    choices.iter().flatten().for_each(|&expert| surplus[expert] += 1);
    let mut free: Vec<usize> = Vec::new();
    for (expert, surplus) in surplus.iter().enumerate() {
        free.extend(std::iter::repeat_n(expert, (-surplus).max(0) as usize));
    }
    free.reverse();
    for index in (0..choices.len()).rev() {
        let Some(expert) = choices[index].filter(|&expert| surplus[expert] > 0) else { continue };
        surplus[expert] -= 1;
        let token = &choices[index / k * k..(index / k + 1) * k];
        let other = free.iter().rposition(|&free| !token.contains(&Some(free))).or(free.len().checked_sub(1));
        choices[index] = other.map(|at| free.remove(at));
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
        limit_at_owner(&mut counts, 3, 3);
        assert_eq!([counts.row(0), counts.row(1), counts.row(2)], [[5, 1], [4, 1], [0, 1]]);
        // Joined replicas of two ranks each: every replica has a limit of its own.
        let mut counts = RoutingCounts::new(2, vec![5, 1, 4, 1, 3, 1, 7, 1]);
        limit_at_owner(&mut counts, 3, 2);
        assert_eq!([counts.row(0), counts.row(1), counts.row(2), counts.row(3)], [[5, 1], [1, 1], [3, 1], [3, 1]]);
    }

    /// What a gate is trained by, when a system has moved its choices: weights where they went, and the balance loss of what it chose.
    #[test]
    fn moved_choices_train_the_gate_by_its_own() {
        let (tokens, experts) = (12, 4);
        let draw = |seed: &str, shape: [i64; 2]| {
            let mut rng = stream(4, seed);
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| uniform(&mut rng) as f32 - 0.5).collect();
            Tensor::from_slice(&values).view(shape)
        };
        let inputs = draw("tokens", [tokens, 6]);
        let parameters = [draw("weight", [experts, 6]) * 9.0, draw("bias", [experts, 1]).view([experts])];
        let gates = Gates::of_scores(Bucket::new(&parameters, Kind::Float, Device::Cpu));
        for (by, k) in
            [(Gate::Switch { factor: 1.0 }, 1), (Gate::Capacity { factor: 1.0 }, 2), (Gate::BalancedNoDrop, 2)]
        {
            // The gradients of the gate's parameters from those of weights and loss.
            let gradients = |choice: Choice, of_weights: f64, balance: f64| {
                let layer = LayerGate::plain(0, 1);
                let by = (&by, &mut stream(5, "noise"));
                let scored = Scored::new(&gates, &layer, &inputs, k, choice, by).unwrap();
                let (weights, loss, experts) =
                    (scored.weights.copy(), scored.balance_loss().unwrap(), scored.experts.clone());
                let _ = gates.scores.open(0..2).0.shallow_clone().zero_();
                gates.scores.clear();
                let slope = Tensor::arange(weights.numel() as i64, (Kind::Float, Device::Cpu)).view_as(&weights);
                let _ = scored.backward(&gates, &(slope * of_weights), balance);
                (weights, loss, experts, gates.scores.gradients().copy())
            };
            let far = |one: &Tensor, other: &Tensor| (one - other).abs().max().double_value(&[]);
            let (weights, loss, chosen, of_loss) = gradients(Choice::Learned, 0.0, 3.0);
            assert!(loss > 0.0 && far(&of_loss, &of_loss.zeros_like()) > 1e-3, "{by:?}");
            // Where they went is where they were: nothing changes.
            let same = Given::new(chosen.clone(), k, Device::Cpu);
            let (_, _, _, expected) = gradients(Choice::Learned, 0.1, 3.0);
            let (found, _, _, of_same) = gradients(Choice::Moved(&same), 0.1, 3.0);
            assert!(far(&found, &weights) < 1e-6 && far(&of_same, &expected) < 1e-5, "{by:?}");

            let elsewhere = Given::new(chosen.iter().map(|expert| (expert + 1) % 4).collect(), k, Device::Cpu);
            let (moved, of_moved, experts, gradient) = gradients(Choice::Moved(&elsewhere), 0.0, 3.0);
            assert_eq!((of_moved, &experts), (loss, &elsewhere.experts), "{by:?}");
            assert!(far(&moved, &weights) > 1e-3 && far(&gradient, &of_loss) < 1e-6, "{by:?}");
            let (.., through_weights) = gradients(Choice::Moved(&elsewhere), 0.1, 0.0);
            assert!(far(&through_weights, &through_weights.zeros_like()) > 1e-3, "{by:?}");
            let (_, of_replay, _, gradient) = gradients(Choice::Replayed(&elsewhere), 0.0, 3.0);
            assert!(of_replay == 0.0 && far(&gradient, &gradient.zeros_like()) == 0.0, "{by:?}");
        }
    }

    #[test]
    fn redirected_choices_have_the_counts_that_are_asked_for() {
        let mut choices: Vec<Option<usize>> = [0, 0, 1, 0, 2, 0].into_iter().map(Some).collect();
        redirect(&mut choices, 1, &[2, 3, 1]);
        assert_eq!(count(choices.iter().flatten().copied(), 3), [2, 3, 1]);
        assert_eq!(choices[..3], [Some(0), Some(0), Some(1)]);
        // Of the free experts 1 and 3, the second token has 1, and the first takes what is left.
        let mut choices: Vec<Option<usize>> = [0, 2, 0, 1].into_iter().map(Some).collect();
        redirect(&mut choices, 2, &[0, 2, 1, 1]);
        assert_eq!(choices, [Some(1), Some(2), Some(3), Some(1)]);
    }

    #[test]
    fn dealt_experts_have_their_counts_and_differ_within_a_token() {
        let counts = [4, 0, 3, 1];
        let dealt = deal(&counts, 2);
        assert_eq!(count(dealt.iter().copied(), 4), counts);
        assert!(dealt.chunks_exact(2).all(|token| token[0] != token[1]));
    }

    /// The choice of DeepSeek-V3 written out for one token: 2 of 4 groups by the sum of their two best biased scores, the best
    /// experts in them, and weights of the scores without biases.
    #[test]
    fn a_group_limited_sigmoid_gate_chooses_as_the_paper_says() {
        let row = |values: &[f32]| Tensor::from_slice(values).view([1, 8]);
        let logits = row(&[0.2, 1.5, -0.3, 0.9, 2.0, -2.0, 0.1, 0.4]);
        let bias = [0.0, 0.0, 0.5, 0.3, 0.0, 0.0, 0.0, 0.0];
        let scores = Bucket::new(&[], Kind::Float, Device::Cpu);
        let selection = Bucket::new(&[Tensor::from_slice(&bias.map(|b: f64| b as f32))], Kind::Float, Device::Cpu);
        let gates = Gates { scores, selection };
        let groups = Some(Groups { number: 4, kept: 2, best: 2 });
        let router = Router { score: Score::Sigmoid, groups, scale: 2.5, ..Router::default() };
        let gate = LayerGate { router, weight: 0, bias: None, selection: Some(0) };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        // Sums of groups: 0.550 + 0.818, (0.426 + 0.5) + (0.711 + 0.3), 0.881 + 0.119, 0.525 + 0.599: groups 1 and 0 are kept.
        let chosen = gate.choose(&gates, &logits, 2);
        assert_eq!(Vec::<i64>::try_from(chosen.view([-1])).unwrap(), [3, 2]);
        let (first, second) = (sigmoid(0.9), sigmoid(-0.3));
        let weights = Vec::<f32>::try_from(gate.weigh(&logits, &chosen).view([-1])).unwrap();
        for (found, score) in weights.into_iter().zip([first, second]) {
            assert!((f64::from(found) - 2.5 * score / (first + second)).abs() < 1e-6);
        }
        move_selection(&gates.selection.master_of(0), &Tensor::from_slice(&[1i64, 9, 5, 5, 5, 5, 5, 5]));
        let moved = Vec::<f32>::try_from(gates.selection.master_of(0)).unwrap();
        assert!((moved[0] - 0.001).abs() < 1e-7 && (moved[1] + 0.001).abs() < 1e-7 && moved[2] == 0.5);
    }

    #[test]
    fn an_even_gate_has_a_balance_loss_of_one() {
        let shares = Tensor::ones([8, 4], (Kind::Float, Device::Cpu)) / 4.0;
        let first = Tensor::from_slice(&[0i64, 1, 2, 3, 0, 1, 2, 3]).view([8, 1]);
        assert!((f64::try_from(balance_loss(&shares, &first)).unwrap() - 1.0).abs() < 1e-6);
    }
}
