//! Permutes the tokens of a micro-batch into the rows of an exchange, and the experts' outputs back into tokens.
//!
//! Both directions have their backward pass written out: autograd would save copies of all rows.

use systems::program::Layout;
use tch::{Kind, Tensor};

use crate::layer::splits::Splits;

/// The row of every entry of a micro-batch. Shapes: tokens `[tokens, width]`, rows `[rows, width]`, weights of choices
/// `[tokens, k / parts]`.
pub(super) struct Permutation {
    /// `[tokens * k]`: the rows of each choice, one for each part of its expert; row 0 where it was dropped.
    row_of: Tensor,
    /// `[tokens, k, 1]`: 0 where a choice was dropped, else 1; none when no choice was dropped.
    kept: Option<Tensor>,
    rows: i64,
    tokens: i64,
    /// Rows of a token.
    k: i64,
    /// Rows of a choice.
    parts: i64,
    form: Form,
}

/// How tokens are copied into rows.
enum Form {
    /// Every row holds an entry: `[rows]`, its token.
    Full(Tensor),
    /// Some rows are padding: `[entries]` each, row and token of every entry.
    Padded(Tensor, Tensor),
    /// By products with two `[tokens, rows]` matrices that are 0 except for entries: there 1, and the entry's weight.
    OneHot(Tensor, Tensor),
}

impl Permutation {
    /// `choices` `[tokens * k]`: the expert of every entry; none where a choice was dropped.
    pub(super) fn new(splits: &Splits, choices: &[Option<usize>], weights: &Tensor, layout: Layout) -> Self {
        let parts = splits.parts as i64;
        let (k, device) = (weights.size()[1] * parts, weights.device());
        let positions = splits.positions(choices);
        let index = |values: Vec<i64>| Tensor::from_slice(&values).to_device(device);
        let row_of = index(positions.iter().map(|row| row.unwrap_or(0) as i64).collect());
        let kept = positions.iter().any(Option::is_none).then(|| {
            let kept: Vec<f32> = positions.iter().map(|row| if row.is_some() { 1.0 } else { 0.0 }).collect();
            Tensor::from_slice(&kept).view([-1, k, 1]).to_device(device)
        });
        let (rows, tokens) = (splits.rows as i64, positions.len() as i64 / k);
        let entries: Vec<(i64, i64)> = positions
            .iter()
            .enumerate()
            .filter_map(|(choice, row)| row.map(|row| (row as i64, choice as i64 / k)))
            .collect();
        let form = if let Layout::OneHot { .. } = layout {
            one_hot(&row_of.view([-1, k]), kept.as_ref(), weights, rows)
        } else if entries.len() == splits.rows {
            let mut token_of = vec![0; splits.rows];
            entries.iter().for_each(|&(row, token)| token_of[row as usize] = token);
            Form::Full(index(token_of))
        } else {
            let (rows, tokens): (Vec<i64>, Vec<i64>) = entries.into_iter().unzip();
            Form::Padded(index(rows), index(tokens))
        };
        Self { row_of, kept, rows, tokens, k, parts, form }
    }

    /// By products with one-hot matrices. `row_of` `[tokens * k]`: the row of every choice, -1 where it was dropped, as some may
    /// be if `fewer`.
    pub(super) fn by_products(row_of: &Tensor, fewer: bool, weights: &Tensor, rows: usize) -> Self {
        let (tokens, k, rows) = (weights.size()[0], weights.size()[1], rows as i64);
        let kept = fewer.then(|| row_of.ge(0).to_kind(Kind::Float).view([-1, k, 1]));
        let row_of = if fewer { row_of.clamp_min(0) } else { row_of.shallow_clone() };
        let form = one_hot(&row_of.view([-1, k]), kept.as_ref(), weights, rows);
        Self { row_of, kept, rows, tokens, k, parts: 1, form }
    }

    /// Every entry's token at its row, zeros elsewhere.
    pub(super) fn permute(&self, tokens: &Tensor) -> Tensor {
        match &self.form {
            Form::Full(token_of) => tokens.index_select(0, token_of),
            Form::Padded(row, token) => {
                let cleared = Tensor::zeros([self.rows, tokens.size()[1]], (tokens.kind(), tokens.device()));
                cleared.index_copy(0, row, &tokens.index_select(0, token))
            }
            Form::OneHot(mask, _) => mask.to_kind(tokens.kind()).tr().matmul(tokens),
        }
    }

    /// The weighted sum of each token's outputs.
    pub(super) fn unpermute(&self, outputs: &Tensor, weights: &Tensor) -> Tensor {
        if let Form::OneHot(_, weights) = &self.form {
            return weights.to_kind(outputs.kind()).matmul(outputs);
        }
        let Some(rows) = self.by_choice(outputs) else { return self.no_tokens(outputs) };
        // `[tokens, 1, k] x [tokens, k, width]`: one pass over the rows.
        let weights = self.masked(self.of_parts(weights).unsqueeze(-1)).to_kind(outputs.kind());
        weights.transpose(1, 2).bmm(&rows).squeeze_dim(1)
    }

    /// The gradient of the outputs' rows, from that of the tokens' sums.
    pub(super) fn unpermute_backward(&self, gradient: &Tensor, weights: &Tensor) -> Tensor {
        if let Form::OneHot(_, weights) = &self.form {
            return weights.to_kind(gradient.kind()).tr().matmul(gradient);
        }
        let flat = self.masked(self.of_parts(weights).unsqueeze(-1)).reshape([-1]);
        let none = Tensor::zeros([self.rows], (flat.kind(), flat.device()));
        let weight_of_row = match (self.rows, &self.kept) {
            (0, _) => none,
            // Dropped choices add 0 to whatever row they name.
            (_, Some(_)) => none.index_add(0, &self.row_of, &flat),
            (_, None) => none.index_copy(0, &self.row_of, &flat),
        };
        self.permute(gradient) * weight_of_row.to_kind(gradient.kind()).unsqueeze(-1)
    }

    /// The gradient of the weights, in single precision, from that of the tokens' sums.
    pub(super) fn weights_backward(&self, gradient: &Tensor, outputs: &Tensor) -> Tensor {
        if let Form::OneHot(..) = &self.form {
            let all = gradient.matmul(&outputs.tr()).to_kind(Kind::Float);
            let of_choices = all.gather(1, &self.row_of.view([-1, self.k]), false);
            return self.masked(of_choices.unsqueeze(-1)).squeeze_dim(-1);
        }
        let of_rows = match self.by_choice(outputs) {
            Some(rows) => self.masked(rows.bmm(&gradient.unsqueeze(-1)).to_kind(Kind::Float)).squeeze_dim(-1),
            None => Tensor::zeros([self.tokens, self.k], (Kind::Float, gradient.device())),
        };
        match self.parts {
            1 => of_rows,
            parts => {
                let by_part = of_rows.view([self.tokens, self.k / parts, parts]);
                by_part.sum_dim_intlist([2i64].as_slice(), false, Kind::Float)
            }
        }
    }

    /// `[tokens, k]`: the weight of each row, from those of choices.
    fn of_parts(&self, weights: &Tensor) -> Tensor {
        match self.parts {
            1 => weights.shallow_clone(),
            parts => weights.repeat_interleave_self_int(parts, 1, None),
        }
    }

    /// The gradient of tokens, from that of their rows.
    pub(super) fn permute_backward(&self, rows: &Tensor) -> Tensor {
        if let Form::OneHot(mask, _) = &self.form {
            return mask.to_kind(rows.kind()).matmul(rows);
        }
        match self.by_choice(rows) {
            Some(of_choices) => self.masked(of_choices).sum_dim_intlist([1i64].as_slice(), false, rows.kind()),
            None => self.no_tokens(rows),
        }
    }

    /// `[tokens, k, width]`: the row of every choice; none if there are no rows.
    fn by_choice(&self, rows: &Tensor) -> Option<Tensor> {
        (self.rows > 0).then(|| rows.index_select(0, &self.row_of).view([self.tokens, self.k, -1]))
    }

    /// Zero where a choice was dropped.
    fn masked(&self, of_choices: Tensor) -> Tensor {
        match &self.kept {
            Some(kept) => &of_choices * kept.to_kind(of_choices.kind()),
            None => of_choices,
        }
    }

    fn no_tokens(&self, like: &Tensor) -> Tensor {
        Tensor::zeros([self.tokens, like.size()[1]], (like.kind(), like.device()))
    }
}

fn one_hot(row_of: &Tensor, kept: Option<&Tensor>, weights: &Tensor, rows: i64) -> Form {
    let ones = kept.map_or_else(|| weights.ones_like(), |kept| kept.squeeze_dim(-1));
    let zeros = Tensor::zeros([row_of.size()[0], rows], (Kind::Float, weights.device()));
    Form::OneHot(zeros.scatter_add(1, row_of, &ones), zeros.scatter_add(1, row_of, &(&ones * weights)))
}

#[cfg(test)]
mod tests {
    use systems::RoutingCounts;
    use systems::plan::placement::Placement;
    use systems::program::{Exchange, LayerProgram};
    use tch::Device;

    use super::*;

    /// Two choices each of three tokens among two experts, with and without drops.
    #[test]
    fn rows_on_a_device_make_the_products_that_choices_of_the_host_make() {
        let layout = Layout::OneHot { rows: 4 };
        let program = LayerProgram::padded(layout, Exchange::Whole, false);
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (tokens, weights) = (draw(&[3, 5]), draw(&[3, 2]));
        let choices = [Some(1), Some(0), Some(1), Some(0), Some(0), Some(1)];
        let dropped = [Some(1), None, Some(1), Some(0), None, None];
        for (choices, counts, row_of) in
            [(choices, [3, 3], [4i64, 0, 5, 1, 2, 6]), (dropped, [1, 2], [4, -1, 5, 0, -1, -1])]
        {
            let of_ranks = RoutingCounts::new(2, counts.to_vec());
            let splits = Splits::new(&program, &of_ranks, &Placement::identity(2, 1), &[0], 0);
            let expected = Permutation::new(&splits, &choices, &weights, layout);
            let fewer = choices.contains(&None);
            let found = Permutation::by_products(&Tensor::from_slice(&row_of), fewer, &weights, splits.rows);
            let rows = draw(&[splits.rows as i64, 5]);
            let all = |of: &Permutation| {
                [
                    of.permute(&tokens),
                    of.unpermute(&rows, &weights),
                    of.unpermute_backward(&tokens, &weights),
                    of.weights_backward(&tokens, &rows),
                    of.permute_backward(&rows),
                ]
            };
            for (found, expected) in all(&found).iter().zip(&all(&expected)) {
                assert!(found.equal(expected));
            }
        }
    }
}
