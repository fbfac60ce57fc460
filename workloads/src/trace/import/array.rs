//! Arrays: which axis is what.

use std::fmt;
use std::str::FromStr;

use super::tally::{Key, Origin, Tally};
use super::{ImportError, ImportOptions, MOST_EXTENT};

/// What an axis of an array counts.
///
/// Without being told, an array has the last of `iteration, layer, rank, expert` up to four axes, and
/// `iteration, layer, micro-batch, rank, expert` with five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Iterations.
    Iteration,
    /// MoE layers.
    Layer,
    /// Micro-batches.
    MicroBatch,
    /// Source ranks.
    Rank,
    /// Experts; values are entries.
    Expert,
    /// Tokens; values are experts.
    Token,
    /// Choices of a token; values are experts.
    Choice,
}

impl Axis {
    const NAMES: [(&'static str, Self); 7] = [
        ("iteration", Self::Iteration),
        ("layer", Self::Layer),
        ("micro-batch", Self::MicroBatch),
        ("rank", Self::Rank),
        ("expert", Self::Expert),
        ("token", Self::Token),
        ("choice", Self::Choice),
    ];

    /// The axes of an array of counts.
    pub(super) fn of_counts(number: usize) -> Option<&'static [Self]> {
        const FOUR: &[Axis] = &[Axis::Iteration, Axis::Layer, Axis::Rank, Axis::Expert];
        match number {
            1 => Some(&[Self::Expert]),
            2 => Some(&[Self::Layer, Self::Expert]),
            3 => Some(&[Self::Iteration, Self::Layer, Self::Expert]),
            4 => Some(FOUR),
            5 => Some(&[Self::Iteration, Self::Layer, Self::MicroBatch, Self::Rank, Self::Expert]),
            _ => None,
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, axis)| axis == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| name.replace('-', "_") == text.replace('-', "_"));
        found.map(|&(_, axis)| axis).ok_or_else(|| {
            let names = Self::NAMES.map(|(name, _)| name).join(", ");
            format!("axis `{text}`: expected one of {names}")
        })
    }
}

/// Choices that stand this far apart are not told apart: all between them would have to be kept.
const MOST_CHOICES: usize = 1 << 20;

/// Takes the values of one array in the order of its memory.
pub(super) struct ArraySink<'a> {
    tally: &'a mut Tally,
    file: &'a str,
    key: Key,
    axes: Vec<Axis>,
    shape: Vec<usize>,
    index: Vec<usize>,
    /// Axes from the fastest to the slowest.
    order: Vec<usize>,
    counts: bool,
    tokens_per_micro_batch: Option<usize>,
    /// Besides -1.
    padding: Option<f64>,
    /// The axis of a token's choices.
    choice: Option<usize>,
    /// Row, token and expert of the choices that no other token's follow.
    chosen: Vec<(Key, usize, usize)>,
}

impl<'a> ArraySink<'a> {
    /// For an array of `shape`; its first axis runs fastest in Fortran's order, its last in C's.
    pub(super) fn new(
        tally: &'a mut Tally,
        options: &ImportOptions,
        (file, origin): (&'a str, Origin),
        shape: &[usize],
        fortran: bool,
        default: Option<&[Axis]>,
    ) -> Result<Self, ImportError> {
        let axes = match (&options.axes, default) {
            (Some(axes), _) => axes.as_slice(),
            (None, default) => default.unwrap_or(&[]),
        };
        check(file, axes, shape)?;
        let counts = axes.contains(&Axis::Expert);
        for (axis, &extent) in axes.iter().zip(shape).filter(|(_, extent)| **extent > 0) {
            match axis {
                Axis::Expert => tally.check_experts(file, extent)?,
                Axis::Choice => tally.choices = tally.choices.max(extent as u32),
                _ => {}
            }
        }
        let order: Vec<usize> = if fortran { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
        let choice = axes.iter().position(|axis| *axis == Axis::Choice).filter(|&choice| {
            let within = order.iter().take_while(|&&axis| axis != choice).chain([&choice]);
            within.fold(1, |all: usize, &axis| all.saturating_mul(shape[axis])) <= MOST_CHOICES
        });
        Ok(Self {
            tally,
            file,
            key: origin.key(),
            axes: axes.to_vec(),
            shape: shape.to_vec(),
            index: vec![0; shape.len()],
            order,
            counts,
            tokens_per_micro_batch: options.tokens_per_micro_batch,
            padding: None,
            choice,
            chosen: Vec::new(),
        })
    }

    /// Where the array lists experts, `padding` stands for none, as -1 does.
    pub(super) fn padded_by(self, padding: Option<f64>) -> Self {
        Self { padding, ..self }
    }

    /// The next value.
    pub(super) fn put(&mut self, value: f64) -> Result<(), ImportError> {
        let (mut key, mut expert, mut token) = (self.key, 0, 0);
        for (axis, &index) in self.axes.iter().zip(&self.index) {
            match axis {
                Axis::Iteration => key.iteration = index as u32,
                Axis::Layer => key.layer = index as u32,
                Axis::MicroBatch => key.micro_batch = index as u32,
                Axis::Rank => key.rank = index as u32,
                Axis::Expert => expert = index,
                Axis::Token => {
                    token = index;
                    let batch = self.tokens_per_micro_batch.map_or(0, |tokens| index / tokens.max(1));
                    key.micro_batch = u32::try_from(batch).unwrap_or(u32::MAX);
                }
                Axis::Choice => {}
            }
        }
        let at = |index: &[usize]| index.iter().map(|index| format!("[{index}]")).collect::<String>();
        if self.counts {
            let count = super::table::count(value).map_err(|expected| self.wrong(at(&self.index), value, expected))?;
            self.tally.set(self.file, || at(&self.index), key, expert, count)?;
        } else if value != -1.0 && Some(value) != self.padding {
            let expert =
                super::table::number(value).map_err(|expected| self.wrong(at(&self.index), value, expected))?;
            self.tally.add_of_array(self.file, || at(&self.index), key, expert)?;
            if self.choice.is_some() {
                self.chosen.push((key, token, expert));
            }
        }
        if self.step() { self.check_chosen() } else { Ok(()) }
    }

    /// Goes on to the next value; whether all choices of the tokens before were seen.
    fn step(&mut self) -> bool {
        let mut seen = false;
        for &axis in &self.order {
            self.index[axis] += 1;
            if self.index[axis] < self.shape[axis] {
                break;
            }
            self.index[axis] = 0;
            seen |= self.choice == Some(axis);
        }
        seen
    }

    /// Whether the experts that a token chose differ.
    fn check_chosen(&mut self) -> Result<(), ImportError> {
        self.chosen.sort_unstable();
        let twice = self.chosen.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        self.chosen.clear();
        let Some((key, token, expert)) = twice else { return Ok(()) };
        let (at, field) = (key.to_string(), format!("the choice of token {token}"));
        let (file, found) = (self.file.into(), format!("expert {expert}, twice"));
        Err(ImportError::Value { file, at, field, found, expected: "experts that differ".into() })
    }

    fn wrong(&self, at: String, value: f64, expected: String) -> ImportError {
        let field = if self.counts { "the value" } else { "the expert" };
        ImportError::Value { file: self.file.into(), at, field: field.into(), found: value.to_string(), expected }
    }
}

fn check(file: &str, axes: &[Axis], shape: &[usize]) -> Result<(), ImportError> {
    let list = |axes: &[Axis]| axes.iter().map(Axis::to_string).collect::<Vec<_>>().join(", ");
    if axes.len() != shape.len() {
        let expected = match axes {
            [] => "an array of 1 to 5 axes, or names of its axes".to_owned(),
            axes => format!("{} axes: {}", axes.len(), list(axes)),
        };
        return Err(ImportError::file(file, format!("an array of shape {shape:?}"), expected));
    }
    let twice = axes.iter().enumerate().any(|(i, axis)| axes[..i].contains(axis));
    let chosen = axes.contains(&Axis::Token) || axes.contains(&Axis::Choice);
    if twice
        || axes.contains(&Axis::Expert) == chosen
        || (axes.contains(&Axis::Token) && axes.contains(&Axis::MicroBatch))
    {
        let expected = "every axis once, with expert, or with token or choice (token instead of micro-batch)";
        return Err(ImportError::file(file, format!("axes {}", list(axes)), expected));
    }
    let long = axes.iter().zip(shape).find(|(axis, extent)| **axis != Axis::Token && **extent as u64 > MOST_EXTENT);
    match long {
        Some((axis, extent)) => Err(ImportError::Value {
            file: file.into(),
            at: format!("shape {shape:?}"),
            field: format!("axis {axis}"),
            found: extent.to_string(),
            expected: format!("at most {MOST_EXTENT}"),
        }),
        None => Ok(()),
    }
}
