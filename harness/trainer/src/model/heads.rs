//! The heads of attention on one rank: projections to queries, keys and values, positions, and what the heads see.
//!
//! Tensor parallelism cuts heads. What all heads share (a compressed token, the weights that normalise queries and keys) is the
//! same on every rank and is made before the heads, so that its gradient can be summed over ranks: [`Heads::prepare`] runs on
//! replicated parameters, [`Heads::attend`] on cut ones.

use tch::{Device, Kind, Tensor};
use workloads::model::attention::{Latent, Projections, QkNorm};
use workloads::model::{Attention, Block};

use crate::model::dense::Builder;
use crate::model::norm::rms_norm;
use crate::model::parameters::Initial;

/// The heads of one block on this rank.
pub(super) struct Heads {
    of: Attention,
    /// Heads of queries, and of keys and values, on this rank.
    heads: i64,
    kv_heads: i64,
    seq_len: i64,
    /// Of the normalisations between projections.
    epsilon: f64,
    layout: Layout,
    /// By index among the replicated parameters: what [`Self::prepare`] reads.
    pub(super) replicated: Vec<usize>,
    /// By index among the cut ones: what [`Self::attend`] reads.
    pub(super) sharded: Vec<usize>,
    /// Cosine and sine of every position's angles, `[tokens, turned width / 2]`.
    turn: Option<[Tensor; 2]>,
    /// `[tokens, tokens]`: the keys that a query sees, where these are not all before it.
    mask: Option<Tensor>,
}

/// Which matrices there are.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// One for queries, keys and values, as many heads of each.
    Joint,
    /// One each.
    Separate,
    Latent(Latent),
}

impl Heads {
    /// Adds the parameters of block `index`, all projections but the one back.
    pub(super) fn new(builder: &mut Builder, block: &Block, index: usize) -> Self {
        let (of, tp) = (block.attention, builder.tensor_parallel_size());
        let mut heads = Self {
            of,
            heads: of.heads as i64 / tp,
            kv_heads: of.kv_heads() as i64 / tp,
            seq_len: block.tokens as i64,
            epsilon: block.norm.epsilon,
            layout: Layout::Joint,
            replicated: Vec::new(),
            sharded: Vec::new(),
            turn: None,
            mask: of.window.map(|window| window_mask(block.tokens as i64, window as i64, builder.device())),
        };
        let name = |what: &str| format!("block {index} {what}");
        let turned = match of.projections {
            Projections::Grouped { kv_heads, head_width } => {
                heads.add_grouped(builder, &name, block.hidden, [of.heads, kv_heads, head_width]);
                head_width
            }
            Projections::Latent(latent) => {
                heads.add_latent(builder, &name, block.hidden, latent);
                latent.rope
            }
        };
        heads.turn = of.rotary.map(|rotary| {
            let turned = (turned as f64 * rotary.share / 2.0) as i64;
            angles(heads.seq_len, turned, rotary.theta, builder.device())
        });
        heads
    }

    fn add_grouped(
        &mut self,
        builder: &mut Builder,
        name: &dyn Fn(&str) -> String,
        hidden: usize,
        [heads, kv_heads, width]: [usize; 3],
    ) {
        let (h, width) = (hidden as i64, width as i64);
        if heads == kv_heads {
            let rows = 3 * heads as i64 * width;
            self.add(builder, &name("query key value"), [rows, h], 3);
        } else {
            self.layout = Layout::Separate;
            let parts = [("query", heads), ("key", kv_heads), ("value", kv_heads)];
            parts.into_iter().for_each(|(part, heads)| self.add(builder, &name(part), [heads as i64 * width, h], 1));
        }
        let widths = match self.of.qk_norm {
            QkNorm::None => return,
            QkNorm::Head => [width; 2],
            QkNorm::Full => [heads as i64 * width, kv_heads as i64 * width],
        };
        for (part, width) in ["query norm", "key norm"].into_iter().zip(widths) {
            self.replicated.push(builder.whole((&name(part), &[width], Initial::Ones)));
        }
    }

    fn add_latent(&mut self, builder: &mut Builder, name: &dyn Fn(&str) -> String, hidden: usize, latent: Latent) {
        self.layout = Layout::Latent(latent);
        let whole =
            |builder: &mut Builder, what: &str, shape: &[i64], values| builder.whole((&name(what), shape, values));
        let (h, heads) = (hidden as i64, self.of.heads as i64);
        let [kv_rank, nope, rope, value] = [latent.kv_rank, latent.nope, latent.rope, latent.value].map(|x| x as i64);
        if let Some(rank) = latent.q_rank.map(|rank| rank as i64) {
            self.replicated.push(whole(builder, "query compression", &[rank, h], Initial::Normal(1.0)));
            self.replicated.push(whole(builder, "query norm", &[rank], Initial::Ones));
        }
        self.replicated.push(whole(builder, "key value compression", &[kv_rank + rope, h], Initial::Normal(1.0)));
        self.replicated.push(whole(builder, "key value norm", &[kv_rank], Initial::Ones));
        let from = latent.q_rank.map_or(h, |rank| rank as i64);
        self.add(builder, &name("query"), [heads * (nope + rope), from], 1);
        self.add(builder, &name("key value"), [heads * (nope + value), kv_rank], 1);
    }

    /// A matrix cut by rows in `pieces`, with a bias if there are any.
    fn add(&mut self, builder: &mut Builder, name: &str, shape: [i64; 2], pieces: i64) {
        self.sharded.push(builder.cut((name, &shape, Initial::Normal(1.0)), 0, pieces));
        if self.of.qkv_bias {
            self.sharded.push(builder.cut((&format!("{name} bias"), &shape[..1], Initial::Zeros), 0, pieces));
        }
    }

    /// Weight and bias of queries, keys and values, where the kernels of a GPU know these heads: eight numbers at a time.
    pub(super) fn fused(&self) -> Option<[usize; 2]> {
        let eights = |width: usize| (self.heads * width as i64) % 8 == 0;
        let plain = self.layout == Layout::Joint
            && matches!(self.of.projections, Projections::Grouped { head_width, .. } if eights(head_width))
            && self.of.qk_norm == QkNorm::None
            && self.turn.is_none()
            && self.mask.is_none();
        self.sharded.as_slice().try_into().ok().filter(|_| plain)
    }

    pub(super) fn number(&self) -> i64 {
        self.heads
    }

    /// From the normalised stream `[tokens, hidden]` to what the heads start from, the same on every rank.
    pub(super) fn prepare(&self, normed: Tensor, parameters: &[&Tensor]) -> Vec<Tensor> {
        let Layout::Latent(latent) = self.layout else {
            let weights = parameters.iter().map(|weight| weight.shallow_clone());
            return std::iter::once(normed).chain(weights).collect();
        };
        let [.., compression, norm] = *parameters else { unreachable!("keys and values are compressed") };
        let queries = match (latent.q_rank, parameters) {
            (Some(_), [compression, norm, ..]) => {
                rms_norm(&normed.linear::<&Tensor>(compression, None), norm, self.epsilon)
            }
            _ => normed.shallow_clone(),
        };
        let sizes = [latent.kv_rank as i64, latent.rope as i64];
        let parts = normed.linear::<&Tensor>(compression, None).split_with_sizes(sizes, -1);
        vec![queries, rms_norm(&parts[0], norm, self.epsilon), parts[1].contiguous()]
    }

    /// Causal attention of this rank's heads on what [`Self::prepare`] made: `[tokens, width of the values]`.
    pub(super) fn attend(&self, prepared: &[Tensor], parameters: &[&Tensor]) -> Tensor {
        let [query, key, value] = match self.layout {
            Layout::Joint => self.joint(&prepared[0], parameters),
            Layout::Separate => self.separate(&prepared[0], parameters),
            Layout::Latent(latent) => self.latent(prepared, parameters, latent),
        };
        let [query, key] = self.normalise([query, key], &prepared[1..]);
        let repeated = |of: Tensor| match self.heads / self.kv_heads {
            1 => of,
            sharing => of.repeat_interleave_self_int(sharing, 1, None),
        };
        let (key, value, mask) = (repeated(key), repeated(value), self.mask.as_ref());
        let causal = mask.is_none();
        let seen = Tensor::scaled_dot_product_attention(&query, &key, &value, mask, 0.0, causal, None, false);
        let width = self.heads * value.size()[3];
        seen.transpose(1, 2).reshape([-1, width])
    }

    fn joint(&self, normed: &Tensor, parameters: &[&Tensor]) -> [Tensor; 3] {
        let all = normed.linear(parameters[0], parameters.get(1).copied());
        let width = all.size()[1] / 3;
        let shape = [-1, self.seq_len, 3, self.heads, width / self.heads];
        three(all.view(shape).permute([2, 0, 3, 1, 4]).unbind(0))
    }

    fn separate(&self, normed: &Tensor, parameters: &[&Tensor]) -> [Tensor; 3] {
        let each = parameters.chunks_exact(parameters.len() / 3);
        let heads = [self.heads, self.kv_heads, self.kv_heads];
        three(
            each.zip(heads)
                .map(|(own, heads)| self.by_head(normed.linear(own[0], own.get(1).copied()), heads))
                .collect(),
        )
    }

    fn latent(&self, prepared: &[Tensor], parameters: &[&Tensor], latent: Latent) -> [Tensor; 3] {
        let biased = usize::from(self.of.qkv_bias);
        let each = |number: usize| {
            let own = &parameters[number * (1 + biased)..(number + 1) * (1 + biased)];
            self.by_head(prepared[number].linear(own[0], own.get(1).copied()), self.heads)
        };
        let [nope, rope, value] = [latent.nope, latent.rope, latent.value].map(|width| width as i64);
        let query = each(0).split_with_sizes([nope, rope], -1);
        let key_value = each(1).split_with_sizes([nope, value], -1);
        let shared = self.turned(&self.by_head(prepared[2].shallow_clone(), 1));
        let shared = shared.expand_as(&query[1]);
        [beside([&query[0], &self.turned(&query[1])]), beside([&key_value[0], &shared]), key_value[1].shallow_clone()]
    }

    /// From `[tokens, heads * width]` to `[samples, heads, tokens of a sample, width]`.
    fn by_head(&self, flat: Tensor, heads: i64) -> Tensor {
        let width = flat.size()[1] / heads;
        flat.view([-1, self.seq_len, heads, width]).transpose(1, 2)
    }

    /// Queries and keys normalised and turned; those of latent attention are turned already.
    fn normalise(&self, both: [Tensor; 2], weights: &[Tensor]) -> [Tensor; 2] {
        if let Layout::Latent(_) = self.layout {
            return both;
        }
        let mut weights = weights.iter();
        both.map(|of| {
            let normed = match self.of.qk_norm {
                QkNorm::None => of,
                QkNorm::Head => rms_norm(&of, weights.next().expect("one for each"), self.epsilon),
                QkNorm::Full => {
                    let size = of.size();
                    let flat = of.transpose(1, 2).reshape([-1, size[1] * size[3]]);
                    let normed = rms_norm(&flat, weights.next().expect("one for each"), self.epsilon);
                    self.by_head(normed, size[1])
                }
            };
            self.turned(&normed)
        })
    }

    /// `of` `[samples, heads, tokens, width]` with its rotary positions, if there are any.
    fn turned(&self, of: &Tensor) -> Tensor {
        let Some(turn) = &self.turn else { return of.shallow_clone() };
        turned(&of.transpose(1, 2), &turn.each_ref().map(|of_turn| of_turn.unsqueeze(1))).transpose(1, 2)
    }
}

/// Parts of heads' widths together, `[samples, heads, tokens, width]`, in memory token by token: attention lays out its result as its queries are,
/// and the product that follows wants tokens.
fn beside(parts: [&Tensor; 2]) -> Tensor {
    Tensor::cat(&parts.map(|part| part.transpose(1, 2)), -1).transpose(1, 2)
}

/// Rotary positions: number `i` of the turned part and number `i + half` are a point in a plane, turned by the position's
/// angle. `of` `[.., width]`; `turn`: what [`angles`] makes, in a shape that goes with it.
fn turned(of: &Tensor, turn: &[Tensor; 2]) -> Tensor {
    let [cosine, sine] = turn.each_ref().map(|of_turn| of_turn.to_kind(of.kind()));
    let last = |of: &Tensor| of.size().last().copied().unwrap_or(0);
    let (half, width) = (last(&cosine), last(of));
    let parts = of.split_with_sizes([half, half, width - 2 * half], -1);
    let [x, y] = [&parts[0], &parts[1]];
    Tensor::cat(&[x * &cosine - y * &sine, y * &cosine + x * &sine, parts[2].shallow_clone()], -1)
}

fn three(parts: Vec<Tensor>) -> [Tensor; 3] {
    parts.try_into().expect("queries, keys and values")
}

/// Cosine and sine of position times `theta^(-i / half)`, `[tokens, half]`.
fn angles(tokens: i64, half: i64, theta: f64, device: Device) -> [Tensor; 2] {
    let range = |end: i64| Tensor::arange(end, (Kind::Double, Device::Cpu));
    let rates = (range(half) * (-theta.ln() / half as f64)).exp();
    let angles = range(tokens).unsqueeze(-1) * rates;
    [angles.cos(), angles.sin()].map(|of| of.to_kind(Kind::Float).to_device(device))
}

/// `[tokens, tokens]`: whether a query (row) sees a key: its own token and those before, `window` of them.
fn window_mask(tokens: i64, window: i64, device: Device) -> Tensor {
    let positions = Tensor::arange(tokens, (Kind::Int64, Device::Cpu));
    let distance = positions.unsqueeze(-1) - positions;
    distance.ge(0).logical_and(&distance.lt(window)).to_device(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_ends_at_the_query() {
        let mask = window_mask(4, 2, Device::Cpu).to_kind(Kind::Int64).view([-1]);
        let expected = [1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1];
        assert_eq!(Vec::<i64>::try_from(mask).unwrap(), expected);
    }

    /// Su et al. 2021, equation 11: a product of turned vectors depends on the distance of their positions alone.
    #[test]
    fn scores_depend_on_distance() {
        let turn = angles(9, 2, 1e4, Device::Cpu);
        // The same at every position; the last number of five is not turned.
        let at_all = |x: [f32; 5]| turned(&Tensor::from_slice(&x).expand([9, 5], false), &turn);
        let (queries, keys) = (at_all([1.0, -2.0, 0.5, 3.0, 0.7]), at_all([0.3, 1.0, -1.0, 2.0, -0.4]));
        let scores = queries.matmul(&keys.tr());
        let score = |q: i64, k: i64| scores.double_value(&[q, k]);
        assert!((score(3, 1) - score(8, 6)).abs() < 1e-5);
        assert!((score(3, 1) - score(8, 5)).abs() > 1e-2);
        assert!((queries.double_value(&[8, 4]) - 0.7).abs() < 1e-6);
    }
}
