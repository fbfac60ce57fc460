//! The dense parts of a GPT on one rank: embedding, attention, feed-forward network, head and loss.
//!
//! Tensor parallelism is Megatron's (Shoeybi et al. 2019): the first product of a pair is cut by columns, the second by
//! rows, the vocabulary by words; an all-reduce follows the second product forward, and precedes the first one's input
//! gradient backward. Activations `[tokens, hidden]` are whole on every tensor-parallel rank. Biases after a cut product
//! and normalisations are whole, too, and get the same gradient everywhere.

pub mod optimizer;
pub mod parameters;
pub mod tape;

use systems::iteration::timeline::Activity;
use systems::price::cost::CostModel;
use tch::{Device, Kind, Tensor};
use workloads::Bytes;
use workloads::model::{Block, Ffn, HALF};

use crate::clock::Timer;
use crate::comm::{CommError, Communicator};
use crate::model::parameters::{Bucket, Initial, initial};
use crate::model::tape::Tape;

const NORM_EPSILON: f64 = 1e-5;

/// The shape of a GPT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpt {
    /// Blocks of the whole model.
    pub depth: usize,
    /// Width of a token.
    pub hidden: usize,
    /// Attention heads.
    pub heads: usize,
    /// Tokens of a sample.
    pub seq_len: usize,
    /// Words.
    pub vocabulary: usize,
}

/// A rank's tensor-parallel surroundings.
pub struct Tensors<'a> {
    /// The tensor-parallel group.
    pub group: &'a dyn Communicator,
    /// How the network sees it.
    pub place: systems::price::cost::Group,
    /// Prices under a virtual clock.
    pub costs: &'a CostModel,
}

impl Tensors<'_> {
    /// The sum over tensor-parallel ranks.
    fn all_reduce(&self, timer: &Timer, tensor: Tensor) -> Result<Tensor, CommError> {
        if self.group.size() == 1 {
            return Ok(tensor);
        }
        let sum = timer.wait(Activity::TensorParallel, || self.group.all_reduce(&tensor)?.wait())?;
        let bytes = Bytes(tensor.numel() as f64 * HALF);
        timer.collective(Activity::TensorParallel, self.group, self.costs.all_reduce(&self.place, bytes))?;
        Ok(sum)
    }

    /// This rank's part of the tokens, `[tokens / tp, hidden]`.
    pub fn part(&self, tokens: &Tensor) -> Tensor {
        let (size, rank) = (self.group.size() as i64, self.group.rank() as i64);
        let length = tokens.size()[0] / size;
        tokens.narrow(0, rank * length, length)
    }

    /// All parts, `[tokens, hidden]`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn whole(&self, timer: &Timer, part: Tensor) -> Result<Tensor, CommError> {
        if self.group.size() == 1 {
            return Ok(part);
        }
        let all = timer.wait(Activity::TensorParallel, || self.group.all_gather(&part)?.wait())?;
        let bytes = Bytes(all.numel() as f64 * HALF);
        timer.collective(Activity::TensorParallel, self.group, self.costs.all_reduce(&self.place, bytes))?;
        Ok(all.view([-1, part.size()[1]]))
    }
}

/// Collects a rank's parameters at their initial values.
pub struct Builder {
    seed: u64,
    tp: (i64, i64),
    /// Cut over tensor-parallel ranks.
    pub sharded: Vec<Tensor>,
    /// The same on all of them.
    pub replicated: Vec<Tensor>,
    /// What is in both, by name.
    pub named: Vec<Named>,
}

/// A parameter of a rank, in one of the builder's two lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, the same under every plan.
    pub name: String,
    /// Its number in its list.
    pub index: usize,
    /// How it is cut over tensor-parallel ranks, if it is.
    pub cut: Option<Cut>,
}

/// How a parameter is cut: it falls into `pieces` along `dim`, and each rank holds its part of every piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The dimension.
    pub dim: i64,
    /// Pieces that are each cut on their own.
    pub pieces: i64,
}

/// A parameter: in the sharded or in the replicated bucket, by its number there.
type Name<'a> = (&'a str, &'a [i64], Initial);

impl Builder {
    /// For tensor-parallel rank `tp.0` of `tp.1`.
    pub fn new(seed: u64, tp: (usize, usize)) -> Self {
        Self { seed, tp: (tp.0 as i64, tp.1 as i64), sharded: Vec::new(), replicated: Vec::new(), named: Vec::new() }
    }

    fn whole(&mut self, (name, shape, values): Name) -> usize {
        let index = self.replicated.len();
        self.replicated.push(initial(self.seed, name, shape, values));
        self.named.push(Named { name: name.to_owned(), index, cut: None });
        index
    }

    /// This rank's part along `dim`, in `pieces` parts that are each cut on their own.
    fn cut(&mut self, (name, shape, values): Name, dim: i64, pieces: i64) -> usize {
        let whole = initial(self.seed, name, shape, values);
        let (rank, size) = self.tp;
        let part = |piece: Tensor| piece.chunk(size, dim).remove(rank as usize);
        let parts: Vec<Tensor> = whole.chunk(pieces, dim).into_iter().map(part).collect();
        let index = self.sharded.len();
        self.sharded.push(Tensor::cat(&parts, dim).contiguous());
        self.named.push(Named { name: name.to_owned(), index, cut: Some(Cut { dim, pieces }) });
        index
    }
}

/// A rank's dense parameters.
pub struct Dense {
    /// Cut over tensor-parallel ranks.
    pub sharded: Bucket,
    /// The same on all of them.
    pub replicated: Bucket,
    /// What is in both, by name.
    pub named: Vec<Named>,
}

/// Attention of one block, between its two normalisations.
pub struct Attention {
    heads: i64,
    seq_len: i64,
    norm: [usize; 2],
    query: [usize; 2],
    output: usize,
    output_bias: usize,
    second_norm: [usize; 2],
}

/// What its backward pass needs.
pub struct AttentionKept {
    norm: Tape,
    products: Tape,
    residual: Tape,
}

impl Attention {
    /// The attention of block `index`.
    pub fn new(builder: &mut Builder, gpt: &Gpt, index: usize) -> Self {
        let h = gpt.hidden as i64;
        let name = |what: &str| format!("block {index} {what}");
        let scaled = Initial::Normal(1.0 / (2.0 * gpt.depth as f64).sqrt());
        Self {
            heads: gpt.heads as i64 / builder.tp.1,
            seq_len: gpt.seq_len as i64,
            norm: [
                builder.whole((&name("norm"), &[h], Initial::Ones)),
                builder.whole((&name("norm bias"), &[h], Initial::Zeros)),
            ],
            query: [
                builder.cut((&name("query key value"), &[3 * h, h], Initial::Normal(1.0)), 0, 3),
                builder.cut((&name("query key value bias"), &[3 * h], Initial::Zeros), 0, 3),
            ],
            output: builder.cut((&name("attention output"), &[h, h], scaled), 1, 1),
            output_bias: builder.whole((&name("attention output bias"), &[h], Initial::Zeros)),
            second_norm: [
                builder.whole((&name("second norm"), &[h], Initial::Ones)),
                builder.whole((&name("second norm bias"), &[h], Initial::Zeros)),
            ],
        }
    }

    /// `[tokens, hidden]` to the residual stream after attention, and that normalised for the network that follows.
    ///
    /// # Errors
    /// A rank that died.
    pub fn forward(
        &self,
        dense: &Dense,
        tensors: &Tensors,
        timer: &Timer,
        input: &Tensor,
    ) -> Result<([Tensor; 2], AttentionKept), CommError> {
        let (partial, norm, products) = timer.compute(Activity::Block, || {
            let ([normed], norm) = Tape::record(&dense.replicated, &self.norm, &[input], |x, p| [layer_norm(&x[0], p)]);
            let parameters = [self.query[0], self.query[1], self.output];
            let ([partial], products) =
                Tape::record(&dense.sharded, &parameters, &[&normed], |x, p| [self.attend(&x[0], p)]);
            (partial, norm, products)
        });
        let summed = tensors.all_reduce(timer, partial)?;
        let parameters = [self.output_bias, self.second_norm[0], self.second_norm[1]];
        let (outputs, residual) = timer.compute(Activity::Block, || {
            Tape::record(&dense.replicated, &parameters, &[input, &summed], |x, p| {
                let stream = &x[0] + &x[1] + p[0];
                let normed = layer_norm(&stream, &p[1..]);
                [stream, normed]
            })
        });
        Ok((outputs, AttentionKept { norm, products, residual }))
    }

    /// The gradient of the input from those of the two outputs.
    ///
    /// # Errors
    /// A rank that died.
    pub fn backward(
        &self,
        dense: &Dense,
        tensors: &Tensors,
        timer: &Timer,
        kept: AttentionKept,
        gradients: [&Tensor; 2],
    ) -> Result<Tensor, CommError> {
        let (of_stream, of_normed) = timer.compute(Activity::Block, || {
            let mut of_residual = kept.residual.backward(&dense.replicated, &gradients);
            let of_sum = of_residual.remove(1);
            (of_residual.remove(0), kept.products.backward(&dense.sharded, &[&of_sum]).remove(0))
        });
        let of_normed = tensors.all_reduce(timer, of_normed)?;
        Ok(timer
            .compute(Activity::Block, || of_stream + kept.norm.backward(&dense.replicated, &[&of_normed]).remove(0)))
    }

    /// Causal attention of this rank's heads, and their part of the output product.
    fn attend(&self, normed: &Tensor, parameters: &[&Tensor]) -> Tensor {
        let all = normed.linear(parameters[0], Some(parameters[1]));
        let width = all.size()[1] / 3;
        let shape = [-1, self.seq_len, 3, self.heads, width / self.heads];
        let heads = all.view(shape).permute([2, 0, 3, 1, 4]).unbind(0);
        let none: Option<Tensor> = None;
        let seen = Tensor::scaled_dot_product_attention(&heads[0], &heads[1], &heads[2], none, 0.0, true, None, false);
        let joined = seen.transpose(1, 2).reshape([-1, width]);
        joined.linear::<Tensor>(parameters[2], None)
    }
}

/// A dense feed-forward network.
pub struct Network {
    first: [usize; 2],
    second: usize,
    second_bias: usize,
}

impl Network {
    /// The network of block `index`.
    pub fn new(builder: &mut Builder, gpt: &Gpt, index: usize, inner: usize) -> Self {
        let (h, inner) = (gpt.hidden as i64, inner as i64);
        let name = |what: &str| format!("block {index} {what}");
        let scaled = Initial::Normal(1.0 / (2.0 * gpt.depth as f64).sqrt());
        Self {
            first: [
                builder.cut((&name("first"), &[inner, h], Initial::Normal(1.0)), 0, 1),
                builder.cut((&name("first bias"), &[inner], Initial::Zeros), 0, 1),
            ],
            second: builder.cut((&name("second"), &[h, inner], scaled), 1, 1),
            second_bias: builder.whole((&name("second bias"), &[h], Initial::Zeros)),
        }
    }

    /// `[tokens, hidden]` to `[tokens, hidden]`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn forward(
        &self,
        dense: &Dense,
        tensors: &Tensors,
        timer: &Timer,
        input: &Tensor,
    ) -> Result<(Tensor, Tape), CommError> {
        let parameters = [self.first[0], self.first[1], self.second];
        let ([partial], tape) = timer.compute(Activity::Block, || {
            Tape::record(&dense.sharded, &parameters, &[input], |x, p| {
                [x[0].linear(p[0], Some(p[1])).gelu("none").linear::<Tensor>(p[2], None)]
            })
        });
        let summed = tensors.all_reduce(timer, partial)?;
        Ok((timer.compute(Activity::Block, || summed + dense.replicated.leaf(self.second_bias)), tape))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A rank that died.
    pub fn backward(
        &self,
        dense: &Dense,
        tensors: &Tensors,
        timer: &Timer,
        tape: Tape,
        gradient: &Tensor,
    ) -> Result<Tensor, CommError> {
        let of_input = timer.compute(Activity::Block, || {
            dense.replicated.accumulate(self.second_bias, &over_tokens(gradient));
            tape.backward(&dense.sharded, &[gradient]).remove(0)
        });
        tensors.all_reduce(timer, of_input)
    }
}

/// Words and positions before the first block.
pub struct Embedding {
    position: usize,
    vocabulary: i64,
    seq_len: i64,
}

impl Embedding {
    /// The embedding; the words are the tied bucket's only parameter.
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let shape = [gpt.seq_len as i64, gpt.hidden as i64];
        let position = builder.whole(("position", &shape, Initial::Normal(1.0)));
        Self { position, vocabulary: gpt.vocabulary as i64, seq_len: gpt.seq_len as i64 }
    }

    /// `[tokens]` words to `[tokens, hidden]`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn forward(
        &self,
        dense: &Dense,
        words: &Bucket,
        tensors: &Tensors,
        timer: &Timer,
        tokens: &Tensor,
    ) -> Result<(Tensor, Tape), CommError> {
        let ([found], tape) = timer.compute(Activity::Edge, || {
            let (local, here) = local_words(tensors, self.vocabulary, tokens);
            Tape::record(words, &[0], &[], |_, p| {
                let rows = Tensor::embedding(p[0], &local, -1, false, false);
                [if tensors.group.size() > 1 { &rows * here.to_kind(rows.kind()).unsqueeze(-1) } else { rows }]
            })
        });
        let found = tensors.all_reduce(timer, found)?;
        let shape = [-1, self.seq_len, found.size()[1]];
        let output = timer.compute(Activity::Edge, || {
            (found.view(shape) + dense.replicated.leaf(self.position)).view([-1, found.size()[1]])
        });
        Ok((output, tape))
    }

    /// Adds to the gradients of words and positions.
    pub fn backward(&self, dense: &Dense, words: &Bucket, timer: &Timer, tape: Tape, gradient: &Tensor) {
        timer.compute(Activity::Edge, || {
            let by_sample = gradient.view([-1, self.seq_len, gradient.size()[1]]);
            dense.replicated.accumulate(self.position, &over_tokens(&by_sample));
            tape.backward(words, &[gradient]);
        });
    }
}

/// Final normalisation, product with the words, cross-entropy.
pub struct Head {
    norm: [usize; 2],
    vocabulary: i64,
}

/// What its backward pass needs.
pub struct HeadKept {
    norm: Tape,
    product: Tape,
    /// The gradient of the logits.
    gradient: Tensor,
}

impl Head {
    /// The head.
    pub fn new(builder: &mut Builder, gpt: &Gpt) -> Self {
        let h = gpt.hidden as i64;
        let norm = [
            builder.whole(("final norm", &[h], Initial::Ones)),
            builder.whole(("final norm bias", &[h], Initial::Zeros)),
        ];
        Self { norm, vocabulary: gpt.vocabulary as i64 }
    }

    /// The sum of the cross-entropies of `targets` `[tokens]`; its gradient is multiplied by `scale`.
    ///
    /// # Errors
    /// A rank that died.
    pub fn forward(
        &self,
        dense: &Dense,
        words: &Bucket,
        tensors: &Tensors,
        timer: &Timer,
        (input, targets, scale): (&Tensor, &Tensor, f64),
    ) -> Result<(f64, HeadKept), CommError> {
        let (norm, product, logits, local) = timer.compute(Activity::Edge, || {
            let ([normed], norm) = Tape::record(&dense.replicated, &self.norm, &[input], |x, p| [layer_norm(&x[0], p)]);
            let ([logits], product) = Tape::record(words, &[0], &[&normed], |x, p| [x[0].linear::<Tensor>(p[0], None)]);
            let logits = logits.to_kind(Kind::Float);
            let (target, here) = local_words(tensors, self.vocabulary, targets);
            let at_target = logits.gather(1, &target.unsqueeze(-1), false).squeeze_dim(-1) * here.to_kind(Kind::Float);
            // A word of another rank has weight 0 here.
            let local = Tensor::stack(&[logits.logsumexp([-1i64].as_slice(), false), at_target], 0);
            (norm, product, logits, (local, target, here))
        });
        let (local, target, here) = local;
        let all = match tensors.group.size() {
            1 => local.unsqueeze(0),
            _ => timer.wait(Activity::TensorParallel, || tensors.group.all_gather(&local)?.wait())?,
        };
        let (loss, gradient) = timer.compute(Activity::Edge, || {
            let whole = all.select(1, 0).logsumexp([0i64].as_slice(), false);
            let loss =
                (&whole - all.select(1, 1).sum_dim_intlist([0i64].as_slice(), false, Kind::Float)).sum(Kind::Float);
            // In place: the logits are the largest tensor of a small model.
            let mut gradient = logits;
            let _ = gradient.g_sub_(&whole.unsqueeze(-1)).exp_();
            let minus = -here.to_kind(Kind::Float).unsqueeze(-1);
            let _ = gradient.scatter_add_(1, &target.unsqueeze(-1), &minus);
            (loss, gradient.g_mul_scalar_(scale))
        });
        let kept = HeadKept { norm, product, gradient: gradient.to_kind(input.kind()) };
        Ok((f64::try_from(loss.to_device(Device::Cpu)).unwrap_or(f64::NAN), kept))
    }

    /// The gradient of the input.
    ///
    /// # Errors
    /// A rank that died.
    pub fn backward(
        &self,
        dense: &Dense,
        words: &Bucket,
        tensors: &Tensors,
        timer: &Timer,
        kept: HeadKept,
    ) -> Result<Tensor, CommError> {
        let of_normed = timer.compute(Activity::Edge, || kept.product.backward(words, &[&kept.gradient]).remove(0));
        let of_normed = tensors.all_reduce(timer, of_normed)?;
        Ok(timer.compute(Activity::Edge, || kept.norm.backward(&dense.replicated, &[&of_normed]).remove(0)))
    }
}

/// The words that a rank holds, at their initial values.
pub fn words(builder: &Builder, gpt: &Gpt) -> Tensor {
    let shape = [gpt.vocabulary as i64, gpt.hidden as i64];
    let (rank, size) = builder.tp;
    initial(builder.seed, "words", &shape, Initial::Normal(1.0)).chunk(size, 0).remove(rank as usize)
}

/// Words as this rank numbers them, 0 where it does not hold them, and whether it does.
fn local_words(tensors: &Tensors, vocabulary: i64, words: &Tensor) -> (Tensor, Tensor) {
    let share = vocabulary / tensors.group.size() as i64;
    let local = words - share * tensors.group.rank() as i64;
    let here = local.ge(0).logical_and(&local.lt(share));
    (local * here.to_kind(Kind::Int64), here)
}

fn layer_norm(input: &Tensor, parameters: &[&Tensor]) -> Tensor {
    let shape = [input.size()[1]];
    input.layer_norm(shape, Some(parameters[0]), Some(parameters[1]), NORM_EPSILON, true)
}

/// The sum over the first dimension.
fn over_tokens(gradient: &Tensor) -> Tensor {
    gradient.sum_dim_intlist([0i64].as_slice(), false, gradient.kind())
}

/// The inner width of a block's dense network, if it has one.
pub fn inner(block: &Block) -> Option<usize> {
    match block.ffn {
        Ffn::Dense { inner } => Some(inner),
        Ffn::Moe(_) => None,
    }
}
