//! Between tokens and rows: how the entries of a micro-batch are laid out for an exchange and combined after it, forward
//! and backward.

use systems::program::Layout;
use tch::{Device, Kind, Tensor};

use super::TrainError;
use super::gate::Scored;
use super::shipping::Shipping;

/// How the entries of a micro-batch become rows and results.
pub enum RowMap {
    /// By index.
    Index {
        /// `[tokens * k]`: the row of each choice; any row where it was dropped.
        row_of: Tensor,
        /// `[tokens, k, 1]`: 0 where a choice was dropped; none when all were kept.
        mask: Option<Tensor>,
        /// `[rows]`: token of each row, where every row holds an entry.
        token_of: Option<Tensor>,
        /// `[entries]`: row and token of every entry.
        entries: (Tensor, Tensor),
        rows: i64,
        k: i64,
    },
    /// By products with a tensor that is zero but for the entries.
    OneHot {
        /// `[tokens, rows]`: 1 at every entry.
        mask: Tensor,
        /// `[tokens, rows]`: the weight of every entry.
        weights: Tensor,
        row_of: Tensor,
        kept: Tensor,
        k: i64,
    },
}

impl RowMap {
    pub fn new(
        shipping: &Shipping,
        choices: &[Option<usize>],
        scored: &Scored,
        layout: Layout,
        device: Device,
    ) -> Self {
        let k = scored.weights.size()[1];
        let positions = shipping.positions(choices);
        let index = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device);
        let row_of = index(positions.iter().map(|row| row.unwrap_or(0) as i64).collect());
        let placed = || positions.iter().enumerate().filter_map(|(choice, row)| row.map(|row| (choice, row)));
        let rows = shipping.rows as i64;
        let all_kept = positions.iter().all(Option::is_some);
        if let Layout::OneHot { .. } = layout {
            let kept: Vec<f32> = positions.iter().map(|row| if row.is_some() { 1.0 } else { 0.0 }).collect();
            let kept = Tensor::from_slice(&kept).view([-1, k]).to_device(device);
            let kind = Kind::Float;
            let zeros = Tensor::zeros([kept.size()[0], rows], (kind, device));
            let at = row_of.view([-1, k]);
            let mask = zeros.scatter_add(1, &at, &kept);
            let weights = zeros.scatter_add(1, &at, &(&kept * &scored.weights));
            return Self::OneHot { mask, weights, row_of, kept, k };
        }
        let mask = (!all_kept).then(|| {
            let kept: Vec<f32> = positions.iter().map(|row| if row.is_some() { 1.0 } else { 0.0 }).collect();
            Tensor::from_slice(&kept).view([-1, k, 1]).to_device(device)
        });
        let entries = (
            index(placed().map(|(_, row)| row as i64).collect()),
            index(placed().map(|(choice, _)| choice as i64 / k).collect()),
        );
        let token_of = (placed().count() == shipping.rows).then(|| {
            let mut token_of = vec![0; shipping.rows];
            placed().for_each(|(choice, row)| token_of[row] = choice as i64 / k);
            index(token_of)
        });
        Self::Index { row_of, mask, token_of, entries, rows, k }
    }

    /// `[rows, width]` from `[tokens, width]`: every entry's token at its row, zeros elsewhere.
    pub fn lay_out(&self, tokens: &Tensor) -> Tensor {
        match self {
            Self::Index { token_of: Some(token_of), .. } => tokens.index_select(0, token_of),
            Self::Index { entries: (row, token), rows, .. } => {
                let cleared = Tensor::zeros([*rows, tokens.size()[1]], (tokens.kind(), tokens.device()));
                cleared.index_copy(0, row, &tokens.index_select(0, token))
            }
            Self::OneHot { mask, .. } => mask.to_kind(tokens.kind()).tr().matmul(tokens),
        }
    }

    /// `[tokens, width]`: each token's results, weighted.
    pub fn gather(&self, outputs: &Tensor, weights: &Tensor) -> Tensor {
        match self {
            Self::Index { row_of, mask, k, .. } => {
                if outputs.size()[0] == 0 {
                    let tokens = row_of.size()[0] / k;
                    return Tensor::zeros([tokens, outputs.size()[1]], (outputs.kind(), outputs.device()));
                }
                let mut weights = weights.unsqueeze(-1);
                if let Some(mask) = mask {
                    weights = weights * mask;
                }
                let rows = outputs.index_select(0, row_of).view([-1, *k, outputs.size()[1]]);
                // `[tokens, 1, k] x [tokens, k, width]`: one pass over the rows.
                weights.to_kind(outputs.kind()).transpose(1, 2).bmm(&rows).squeeze_dim(1)
            }
            Self::OneHot { weights, .. } => weights.to_kind(outputs.kind()).matmul(outputs),
        }
    }

    /// The gradient of rows from that of tokens: [`Self::gather`] backwards.
    pub fn spread(&self, gradient: &Tensor, weights: &Tensor) -> Tensor {
        match self {
            Self::Index { row_of, entries: (row, token), rows, k, .. } => {
                let width = gradient.size()[1];
                let cleared = || Tensor::zeros([*rows, width], (gradient.kind(), gradient.device()));
                if *rows == 0 {
                    return cleared();
                }
                let flat = weights.reshape([-1]);
                let weight_of_row = Tensor::zeros([*rows], (flat.kind(), flat.device()));
                let weight_of_row = match self.dropped() {
                    None => weight_of_row.index_copy(0, row_of, &flat),
                    Some(mask) => weight_of_row.index_add(0, row_of, &(flat * mask.reshape([-1]))),
                };
                let weight_of_row = weight_of_row.to_kind(gradient.kind()).unsqueeze(-1);
                let _ = k;
                match self {
                    Self::Index { token_of: Some(token_of), .. } => gradient.index_select(0, token_of) * weight_of_row,
                    _ => cleared().index_copy(0, row, &gradient.index_select(0, token)) * weight_of_row,
                }
            }
            Self::OneHot { weights, .. } => weights.to_kind(gradient.kind()).tr().matmul(gradient),
        }
    }

    /// `[tokens, k]`: the gradient of the weights.
    pub fn weight_gradient(&self, gradient: &Tensor, outputs: &Tensor) -> Tensor {
        match self {
            Self::Index { row_of, mask, k, .. } => {
                if outputs.size()[0] == 0 {
                    return Tensor::zeros([row_of.size()[0] / k, *k], (Kind::Float, gradient.device()));
                }
                let rows = outputs.index_select(0, row_of).view([-1, *k, outputs.size()[1]]);
                let found = rows.bmm(&gradient.unsqueeze(-1)).to_kind(Kind::Float);
                match mask {
                    Some(mask) => (found * mask).squeeze_dim(-1),
                    None => found.squeeze_dim(-1),
                }
            }
            Self::OneHot { row_of, kept, k, .. } => {
                let all = gradient.matmul(&outputs.tr()).to_kind(Kind::Float);
                all.gather(1, &row_of.view([-1, *k]), false) * kept
            }
        }
    }

    /// `[tokens, width]`: the gradient of tokens from that of rows: [`Self::lay_out`] backwards.
    pub fn collect(&self, rows: &Tensor) -> Tensor {
        match self {
            Self::Index { row_of, mask, k, .. } => {
                if rows.size()[0] == 0 {
                    return Tensor::zeros([row_of.size()[0] / k, rows.size()[1]], (rows.kind(), rows.device()));
                }
                let of_choices = rows.index_select(0, row_of).view([-1, *k, rows.size()[1]]);
                match mask {
                    Some(mask) => {
                        (of_choices * mask.to_kind(rows.kind())).sum_dim_intlist([1i64].as_slice(), false, rows.kind())
                    }
                    None => of_choices.sum_dim_intlist([1i64].as_slice(), false, rows.kind()),
                }
            }
            Self::OneHot { mask, .. } => mask.to_kind(rows.kind()).matmul(rows),
        }
    }

    fn dropped(&self) -> Option<&Tensor> {
        match self {
            Self::Index { mask, .. } => mask.as_ref(),
            Self::OneHot { .. } => None,
        }
    }
}

/// A rank's rows, arriving in pieces.
pub struct RowPieces {
    /// First row of each piece, and the piece.
    pieces: Vec<(usize, Option<Tensor>)>,
}

impl RowPieces {
    pub fn new(shipping: &Shipping) -> Self {
        let calls = shipping.steps.iter().flatten().map(|call| (call.first, None));
        let shadows = shipping.shadows.iter().map(|&(_, first, _)| (first, None));
        Self { pieces: calls.chain(shadows).collect() }
    }

    pub fn put(&mut self, index: usize, piece: Tensor) {
        self.pieces[index].1 = Some(piece);
    }

    /// All rows, in order.
    pub fn finish(self) -> Result<Tensor, TrainError> {
        let all: Option<Vec<Tensor>> = self.pieces.into_iter().map(|(_, piece)| piece).collect();
        match all {
            Some(mut all) if all.len() == 1 => Ok(all.remove(0)),
            Some(all) => Ok(Tensor::cat(&all, 0)),
            None => Err(TrainError::Program("rows that never come back".to_owned())),
        }
    }
}
