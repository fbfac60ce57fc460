//! Experts of one rank that run together, on a GPU: one product for all of them, and kernels between.

use std::ops::Range;

use tch::{Kind, Tensor};
use workloads::model::Moe;

use crate::host::to_device;
use crate::kernels::{self, Kernels};
use crate::layer::experts::{Experts, Saved, Views, sum_of};

/// Rows of several experts that run together, in the order in which they arrived and by expert.
pub(super) struct Grouping {
    /// `[experts]`: the row after each expert's last, by expert.
    ends: Tensor,
    /// Where the orders differ, `[rows]`: the place of arrival of each row by expert, and the reverse.
    orders: Option<[Tensor; 2]>,
}

/// The first product of all experts, begun before the host knew which rows are whose: on rows that lie expert after expert,
/// expert `i` being in slot `i`.
pub(super) struct Begun {
    /// `[experts]`, on the device: the row after each expert's last.
    ends: Tensor,
    rows: Tensor,
    inner: Vec<Tensor>,
    active: Tensor,
}

impl Begun {
    /// Of the first `rows`: those of experts.
    pub(super) fn of_first(self, rows: usize) -> Self {
        let first = |of: &Tensor| of.narrow(0, 0, rows as i64);
        let inner = self.inner.iter().map(first).collect();
        Self { rows: first(&self.rows), inner, active: first(&self.active), ends: self.ends }
    }

    /// Whether the experts in `slots` run together on these rows, and on no others.
    pub(super) fn is_of(&self, slots: &Range<usize>, rows: &Tensor) -> bool {
        *slots == (0..self.ends.numel()) && rows.data_ptr() == self.rows.data_ptr() && rows.size() == self.rows.size()
    }
}

impl Grouping {
    /// Of rows that lie expert after expert.
    pub(super) fn of_begun(begun: &Begun) -> Self {
        Self { ends: begun.ends.shallow_clone(), orders: None }
    }

    /// `arrived` `[call][source][slot]`: rows in the order of arrival. The calls' slots follow one another.
    pub(super) fn new(kernels: &Kernels, arrived: &[&[Vec<usize>]]) -> Self {
        let pieces = by_slot(arrived);
        let end = |end: &mut usize, of_slot: &Vec<Range<usize>>| {
            *end += of_slot.iter().map(ExactSizeIterator::len).sum::<usize>();
            Some(*end as i32)
        };
        let ends: Vec<i32> = pieces.iter().scan(0, end).collect();
        let filled: Vec<[usize; 2]> =
            pieces.concat().iter().filter(|piece| !piece.is_empty()).map(|piece| [piece.start, piece.len()]).collect();
        let sorted = filled.windows(2).all(|pair| pair[0][0] + pair[0][1] == pair[1][0]);
        let orders = (!sorted).then(|| kernels.place_pieces(None, &filled)).map(<[Tensor; 2]>::from);
        Self { ends: to_device(&Tensor::from_slice(&ends), kernels.device()), orders }
    }

    fn by_expert(&self, kernels: &Kernels, rows: Tensor) -> Tensor {
        match &self.orders {
            Some([order, _]) => kernels.gather(&rows, order, 1),
            None => rows,
        }
    }

    fn by_arrival(&self, kernels: &Kernels, rows: Tensor) -> Tensor {
        match &self.orders {
            Some([_, back]) => kernels.gather(&rows, back, 1),
            None => rows,
        }
    }
}

/// `[slot][source]`: the places of arrival of its rows.
fn by_slot(arrived: &[&[Vec<usize>]]) -> Vec<Vec<Range<usize>>> {
    let (mut next, mut all) = (0, Vec::new());
    for call in arrived {
        let mut pieces: Vec<Vec<Range<usize>>> = vec![Vec::new(); call.first().map_or(0, Vec::len)];
        for source in *call {
            for (pieces, &rows) in pieces.iter_mut().zip(source) {
                pieces.push(next..next + rows);
                next += rows;
            }
        }
        all.extend(pieces);
    }
    all
}

impl Experts {
    /// The kernels by which experts run together, where they can: on a GPU, by products whose rows are aligned.
    pub(super) fn kernels(&self) -> Option<&'static Kernels> {
        let aligned = self.moe().width.is_multiple_of(8) && self.moe().expert.inner.is_multiple_of(8);
        kernels::on(&self.bucket.weights).filter(|_| aligned)
    }

    /// The experts of these slots in one of the bucket's tensors.
    fn together(&self, of: &Tensor, slots: &Range<usize>) -> Together {
        let (size, count) = (self.moe().expert_parameters() as i64, slots.len() as i64);
        Together::new(&of.narrow(0, slots.start as i64 * size, count * size).view([count, size]), self.moe())
    }

    /// Begins the forward pass of all experts, on rows that lie expert after expert; what comes of rows behind the last expert's is
    /// not to be used.
    pub(super) fn begin(&self, kernels: &Kernels, rows: &Tensor, ends: &Tensor) -> Begun {
        let weights = self.together(&self.bucket.weights, &(0..ends.numel()));
        let (inner, active) = weights.first_half(kernels, rows, ends);
        Begun { ends: ends.shallow_clone(), rows: rows.shallow_clone(), inner, active }
    }

    /// [`forward`] of the experts in `slots` together, on the rows that arrived for them.
    pub(super) fn forward_together(
        &self,
        kernels: &Kernels,
        slots: &Range<usize>,
        grouping: Grouping,
        rows: Tensor,
        begun: Option<Begun>,
    ) -> (Tensor, Saved) {
        self.together(&self.bucket.weights, slots).forward(kernels, grouping, rows, begun)
    }

    /// [`backward`] of the experts in `slots` together, from what they saved together. Adds to the bucket's gradients.
    pub(super) fn backward_together(
        &self,
        kernels: &Kernels,
        slots: &Range<usize>,
        saved: Saved,
        gradient: Tensor,
    ) -> Tensor {
        let (held, held_fresh) = self.bucket.open(slots.clone());
        // Kernels write single precision: what is held in another kind is added to from there.
        let half = held.kind() != Kind::Float;
        let made = if half { Tensor::empty(held.size(), (Kind::Float, held.device())) } else { held.shallow_clone() };
        let (weights, gradients) = (self.together(&self.bucket.weights, slots), self.together(&made, slots));
        let of_input = weights.backward(kernels, &gradients, held_fresh || half, saved, gradient);
        if half {
            let size = self.size() as i64;
            let part = |of: &Tensor| of.narrow(0, slots.start as i64 * size, slots.len() as i64 * size);
            match held_fresh {
                true => part(held).copy_(&part(&made)),
                false => drop(part(held).g_add_(&part(&made))),
            }
        }
        of_input
    }
}

/// Parameters or gradients of several experts, which run in grouped products, on a GPU.
pub(super) struct Together {
    views: Views,
    /// From one expert's numbers to the next one's.
    stride: i64,
}

impl Together {
    /// Of `[experts, parameters]`.
    pub(super) fn new(flat: &Tensor, moe: &Moe) -> Self {
        Self { views: Views::new(flat, moe), stride: moe.expert_parameters() as i64 }
    }

    /// The inner values ([`Saved::inner`]), and their activation.
    fn first_half(&self, kernels: &Kernels, rows: &Tensor, ends: &Tensor) -> (Vec<Tensor>, Tensor) {
        let (matrices, biases): (Vec<&Tensor>, Vec<Option<&Tensor>>) = self.views.before_last().into_iter().unzip();
        let inner: Vec<Tensor> = matrices.into_iter().map(|matrix| grouped_product(rows, matrix, ends)).collect();
        let active = kernels.activate(self.views.activation, &inner, (&biases, self.stride), ends);
        (inner, active)
    }

    /// [`forward`] of all experts, on the rows that arrived for them.
    pub(super) fn forward(
        &self,
        kernels: &Kernels,
        grouping: Grouping,
        rows: Tensor,
        begun: Option<Begun>,
    ) -> (Tensor, Saved) {
        let ends = &grouping.ends;
        let input = grouping.by_expert(kernels, rows);
        let (inner, active) = match begun {
            Some(Begun { inner, active, .. }) => (inner, active),
            None => self.first_half(kernels, &input, ends),
        };
        let output = grouped_product(&active, &self.views.second, ends);
        if let Some(bias) = &self.views.second_bias {
            kernels.add_bias(&output, bias, self.stride, ends);
        }
        (grouping.by_arrival(kernels, output), Saved { input, inner, active, grouping: Some(grouping) })
    }

    /// [`backward`] of all experts, from what they saved together. Adds to `gradients`, in single precision, or, where these are `fresh`,
    /// writes them.
    pub(super) fn backward(
        &self,
        kernels: &Kernels,
        gradients: &Self,
        fresh: bool,
        saved: Saved,
        gradient: Tensor,
    ) -> Tensor {
        let grouping = saved.grouping.as_ref().expect("the forward pass ran these experts together");
        let (weights, stride, ends) = (&self.views, self.stride, &grouping.ends);
        let gradients = &gradients.views;
        let gradient = grouping.by_expert(kernels, gradient);
        if let Some(bias) = &gradients.second_bias {
            kernels.finish(&kernels.column_sums(&gradient, ends), ends, bias, (stride, fresh));
        }
        let accumulate = |rows: [&Tensor; 2], to: &Tensor| {
            if !kernels.weight_product(rows, ends, to, (stride, fresh)) {
                kernels.accumulate(&grouped_product(&rows[0].tr(), rows[1], ends), to, stride, fresh);
            }
        };
        accumulate([&saved.active, &gradient], &gradients.second);
        let of_active = grouped_product(&gradient, &weights.second.transpose(1, 2), ends);
        let biases = gradients.first_bias.is_some();
        let sums = kernels.deactivate(weights.activation, &saved.inner, &of_active, biases, ends);
        // Where the kernel leaves them.
        let of_inner: Vec<&Tensor> = std::iter::once(&of_active).chain(&saved.inner[1..]).collect();
        for (of_inner, (of_matrix, _)) in of_inner.iter().zip(gradients.before_last()) {
            accumulate([&saved.input, of_inner], of_matrix);
        }
        for (sums, (_, of_bias)) in sums.iter().zip(gradients.before_last()) {
            of_bias.iter().for_each(|of_bias| kernels.finish(sums, ends, of_bias, (stride, fresh)));
        }
        let through = |(of_inner, (matrix, _)): (&&Tensor, &(&Tensor, Option<&Tensor>))| {
            grouped_product(of_inner, &matrix.transpose(1, 2), ends)
        };
        let of_input = sum_of(of_inner.iter().zip(&weights.before_last()).map(through));
        grouping.by_arrival(kernels, of_input)
    }
}

/// One product for each group: `[rows, a] x [groups, a, b]` with rows by group, or `[a, rows] x [rows, b]`, which gives
/// `[groups, a, b]`.
fn grouped_product(first: &Tensor, second: &Tensor, ends: &Tensor) -> Tensor {
    first.internal_grouped_mm(second, Some(ends), None, None)
}

#[cfg(test)]
mod tests {
    use workloads::model::{Activation, Mlp};

    use super::*;
    use crate::layer::experts::{backward, forward};

    #[test]
    fn rows_are_ordered_by_slot_then_source() {
        let order = |arrived: &[&[Vec<usize>]]| by_slot(arrived).concat().into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(order(&[&[vec![2, 1], vec![0, 2], vec![1, 0]]]), [0, 1, 5, 2, 3, 4]);
        assert_eq!(order(&[&[vec![2], vec![1]], &[vec![0], vec![2]]]), [0, 1, 2, 3, 4]);
    }

    /// GPT-2's kind, Mixtral's and gpt-oss', and all others.
    fn kinds(inner: usize) -> Vec<Mlp> {
        let mut kinds = Vec::new();
        for activation in [Activation::Gelu, Activation::Silu, Activation::ClampedSilu] {
            for (gated, biases) in [(false, false), (false, true), (true, false), (true, true)] {
                kinds.push(Mlp { inner, gated, biases, activation });
            }
        }
        kinds
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn experts_together_do_what_they_do_alone() {
        for held in [Kind::Float, Kind::BFloat16] {
            // The weights' gradients of the second by the kernel for Hopper GPUs, where there is one.
            for (width, inner) in [(64, 200), (256, 512)] {
                kinds(inner).into_iter().for_each(|expert| together_and_alone(expert, width, held));
            }
        }
    }

    /// Against one expert after the other, with rows from three sources, an expert without rows, and gradients added twice.
    fn together_and_alone(expert: Mlp, width: usize, held: Kind) {
        use crate::kernels::tests::{HALF, error, gpu, half};
        let (kernels, device) = (gpu(), gpu().device());
        let moe = Moe { expert, ..Moe::plain(1, width, expert.inner, 5) };
        let weights = half(&[5 * moe.expert_parameters() as i64]) * 0.1;
        let new = || {
            let slots = [0, 1, 2, 3, 4].map(Some);
            let experts = Experts::new(3, 0, &slots, moe, 1, Kind::BFloat16, device).with_gradients(held);
            experts.bucket.weights.shallow_clone().copy_(&weights);
            // What is cleared is not read.
            let (gradients, _) = experts.bucket.open(0..5);
            let _ = gradients.shallow_clone().fill_(f64::NAN);
            experts.bucket.clear();
            experts
        };
        let (together, alone) = (new(), new());
        let arrived = [vec![3, 40], vec![0, 0], vec![5, 77]].map(|of| [of.clone(), vec![0], of].concat());
        let grouping = || Grouping::new(kernels, &[&arrived]);
        let order: Vec<i64> = by_slot(&[&arrived]).concat().into_iter().flatten().map(|row| row as i64).collect();
        let index = Tensor::from_slice(&order).to_device(device);
        let rows = half(&[order.len() as i64, width as i64]);
        let sizes: Vec<i64> = (0..5).map(|slot| arrived.iter().map(|of| of[slot] as i64).sum()).collect();
        let apart = |rows: &Tensor| rows.index_select(0, &index).split_with_sizes(sizes.as_slice(), 0);
        for _ in 0..2 {
            let gradient = half(&rows.size());
            let (output, saved) = together.forward_together(kernels, &(0..5), grouping(), rows.shallow_clone(), None);
            let of_rows = together.backward_together(kernels, &(0..5), saved, gradient.shallow_clone());
            let pieces = apart(&rows).into_iter().zip(apart(&gradient)).enumerate().map(|(slot, (rows, gradient))| {
                let (output, saved) = forward(&alone.weights(slot), rows);
                let of_rows = backward(&alone.weights(slot), &mut alone.gradients(slot), saved, &gradient);
                (output, of_rows)
            });
            let (outputs, gradients): (Vec<Tensor>, Vec<Tensor>) = pieces.unzip();
            let joined = |rows: &Tensor| Tensor::cat(&apart(rows), 0);
            let what = format!("{expert:?} {held:?}");
            assert!(error(&joined(&output), &Tensor::cat(&outputs, 0)) < 2.0 * HALF, "{what}");
            assert!(error(&joined(&of_rows), &Tensor::cat(&gradients, 0)) < 2.0 * HALF, "{what}");
            for slot in 0..5 {
                let [found, expected] = [&together, &alone].map(|experts| experts.gradients(slot));
                // Each by itself: a bias is small beside a matrix.
                for (found, expected) in found.all().into_iter().zip(expected.all()) {
                    assert!(error(found, expected) < 3.0 * HALF, "{what}: expert {slot}, {:?}", found.size());
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn experts_that_begin_early_end_with_the_same_bits() {
        use crate::kernels::tests::{error, gpu, half};
        let (kernels, device) = (gpu(), gpu().device());
        for expert in kinds(200) {
            let moe = Moe { expert, ..Moe::plain(1, 64, 200, 3) };
            let experts = Experts::new(3, 0, &[0, 1, 2].map(Some), moe, 1, Kind::BFloat16, device);
            let arrived = [vec![30, 0, 77]];
            let (rows, grouping) = (half(&[107, 64]), || Grouping::new(kernels, &[&arrived]));
            // Behind the experts' rows there are others.
            let longer = Tensor::cat(&[&rows, &half(&[21, 64])], 0);
            let rows = longer.narrow(0, 0, 107);
            let begun = experts.begin(kernels, &longer, &grouping().ends);
            assert!(!begun.is_of(&(0..3), &rows));
            let begun = begun.of_first(107);
            assert!(begun.is_of(&(0..3), &rows) && !begun.is_of(&(0..2), &rows) && !begun.is_of(&(0..3), &rows.copy()));
            let forward = |grouping, begun| {
                let (output, saved) = experts.forward_together(kernels, &(0..3), grouping, rows.shallow_clone(), begun);
                saved.inner.into_iter().chain([output, saved.active]).collect::<Vec<Tensor>>()
            };
            let early = forward(Grouping::of_begun(&begun), Some(begun));
            for (early, late) in early.iter().zip(&forward(grouping(), None)) {
                assert_eq!(error(early, late), 0.0);
            }
        }
    }
}
