//! Tables: which column is what.

use std::borrow::Cow;

use super::tally::{Key, Origin, Tally};
use super::{ImportError, ImportOptions, MOST_COUNT, MOST_EXTENT};

/// Names of columns; a common name is looked for where one is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// Iterations.
    pub iteration: Option<String>,
    /// Layers.
    pub layer: Option<String>,
    /// Micro-batches.
    pub micro_batch: Option<String>,
    /// Source ranks.
    pub rank: Option<String>,
    /// Experts: the one that a count is of, or those that a token chose.
    pub expert: Option<String>,
    /// Counts: of one expert, or a list of all.
    pub counts: Option<String>,
}

const ITERATION: &[&str] = &["iteration", "iter", "step", "global_step", "forward_pass_id"];
const LAYER: &[&str] = &["layer", "layer_id", "layer_idx", "layer_index", "layer_number"];
const MICRO_BATCH: &[&str] = &["micro_batch", "microbatch", "micro_batch_id", "microbatch_id"];
const RANK: &[&str] = &["rank", "source_rank"];
const EXPERT: &[&str] = &[
    "expert",
    "expert_id",
    "expert_idx",
    "expert_index",
    "expert_ids",
    "experts",
    "indices",
    "top_indices",
    "topk_indices",
    "topk_ids",
    "exp_ids",
    "selected_experts",
    "routed_experts",
];
const COUNTS: &[&str] = &[
    "entries",
    "count",
    "counts",
    "token_count",
    "num_tokens_per_expert",
    "tokens_per_expert",
    "tpe",
    "logical_count",
    "expert_count",
    "expert_counts",
    "expert_load",
    "expert_loads",
    "load",
    "loads",
];

/// One field of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Cell<'a> {
    /// Nothing.
    Missing,
    /// A number.
    Number(f64),
    /// Numbers in a list, or in lists of equal length; `values` is flat, the last extent of `shape` running fastest.
    List {
        /// Extents.
        shape: &'a [usize],
        /// Values.
        values: &'a [f64],
    },
    /// Text: a number, or several between blanks, commas or the like.
    Text(&'a str),
}

/// A table whose rows are handed in one by one.
pub(super) struct Table<'a> {
    tally: &'a mut Tally,
    options: &'a ImportOptions,
    file: String,
    header: Vec<String>,
    columns: Columns,
    origin: Origin,
}

/// Places of the columns in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Columns {
    iteration: Option<usize>,
    layer: Option<usize>,
    micro_batch: Option<usize>,
    rank: Option<usize>,
    loads: Loads,
}

/// Where a row has its loads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Loads {
    /// The experts that a token chose, or one of them.
    Choices { experts: usize },
    /// An expert and its count; both may be lists.
    One { expert: usize, count: usize },
    /// A list of counts.
    List { counts: usize },
    /// A column for every expert: (column, expert).
    Wide(Vec<(usize, usize)>),
    #[default]
    None,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        tally: &'a mut Tally,
        options: &'a ImportOptions,
        file: &str,
        header: &[&str],
    ) -> Result<Self, ImportError> {
        let columns = Columns::new(&options.columns, file, header)?;
        let header = header.iter().map(|&name| name.to_owned()).collect();
        Ok(Self { tally, options, file: file.into(), header, columns, origin: Origin::of_path(file)? })
    }

    /// A table without a header: a layer a line, an expert a column.
    pub(super) fn matrix(
        tally: &'a mut Tally,
        options: &'a ImportOptions,
        file: &str,
        width: usize,
    ) -> Result<Self, ImportError> {
        let loads = Loads::Wide((0..width).map(|column| (column, column)).collect());
        let header = (0..width).map(|column| format!("column {}", column + 1)).collect();
        let columns = Columns { loads, ..Columns::default() };
        Ok(Self { tally, options, file: file.into(), header, columns, origin: Origin::of_path(file)? })
    }

    /// Whether any row depends on the column.
    pub(super) fn uses(&self, column: usize) -> bool {
        let Columns { iteration, layer, micro_batch, rank, loads } = &self.columns;
        let load = match loads {
            Loads::None => false,
            Loads::Choices { experts: one } | Loads::List { counts: one } => *one == column,
            Loads::One { expert, count } => [*expert, *count].contains(&column),
            Loads::Wide(columns) => columns.iter().any(|&(at, _)| at == column),
        };
        load || [iteration, layer, micro_batch, rank].contains(&&Some(column))
    }

    /// One row; `at` says where it stands, for errors.
    ///
    /// # Errors
    /// A field that is not what its column should hold.
    pub(super) fn row(&mut self, at: &dyn Fn() -> String, cells: &[Cell]) -> Result<(), ImportError> {
        let key = self.key(at, cells)?;
        match &self.columns.loads {
            Loads::None => Ok(()),
            Loads::Choices { experts } => self.choices(at, key, *experts, cells),
            Loads::One { expert, count } => self.one(at, key, (*expert, *count), cells),
            Loads::List { counts } => self.list(at, key, *counts, cells),
            Loads::Wide(_) => self.wide(at, key, cells),
        }
    }

    /// A row of a matrix, in the layer of its place.
    pub(super) fn matrix_row(
        &mut self,
        at: &dyn Fn() -> String,
        layer: usize,
        cells: &[Cell],
    ) -> Result<(), ImportError> {
        let layer = u32::try_from(layer).ok().filter(|&layer| u64::from(layer) < MOST_EXTENT);
        let layer = layer.ok_or_else(|| {
            ImportError::file(&self.file, "a matrix of more lines", format!("at most {MOST_EXTENT}, a layer each"))
        })?;
        let key = self.origin.key();
        self.wide(at, Key { layer, ..key }, cells)
    }

    fn key(&self, at: &dyn Fn() -> String, cells: &[Cell]) -> Result<Key, ImportError> {
        let label = |column: Option<usize>, default: Option<u32>, most: u64| match column {
            None => Ok(default.unwrap_or(0)),
            Some(column) => self.label(at, column, cells, most),
        };
        let (columns, origin) = (&self.columns, self.origin);
        Ok(Key {
            iteration: label(columns.iteration, origin.iteration, u64::from(u32::MAX))?,
            layer: label(columns.layer, origin.layer, MOST_EXTENT - 1)?,
            micro_batch: label(columns.micro_batch, origin.micro_batch, MOST_EXTENT - 1)?,
            rank: label(columns.rank, origin.rank, MOST_EXTENT - 1)?,
        })
    }

    fn label(&self, at: &dyn Fn() -> String, column: usize, cells: &[Cell], most: u64) -> Result<u32, ImportError> {
        let cell = cells.get(column).copied().unwrap_or(Cell::Missing);
        let value = match cell {
            Cell::Number(value) => Some(value),
            Cell::Text(text) => parse(text),
            _ => None,
        };
        let label = value.filter(|&value| whole(value, most)).map(|value| value as u32);
        label.ok_or_else(|| self.wrong(at(), column, cell, format!("a whole number from 0 to {most}")))
    }

    /// Experts that tokens chose: one, a list of a token's, or such lists of several tokens.
    fn choices(&mut self, at: &dyn Fn() -> String, key: Key, column: usize, cells: &[Cell]) -> Result<(), ImportError> {
        let cell = cells.get(column).copied().unwrap_or(Cell::Missing);
        let (shape, values) = self.numbers(at, column, cell)?;
        if !matches!(cell, Cell::List { .. }) && *shape == [1] && self.options.columns.expert.is_none() {
            // One expert could as well be the one that a count is of, where the counts' column has a name of its own.
            let found = format!("columns {}", listed(&self.header.iter().map(String::as_str).collect::<Vec<_>>()));
            let expected = format!("counts in one of {}, or a column named to the importer", COUNTS.join(", "));
            return Err(ImportError::file(&self.file, found, expected));
        }
        let width = match *shape {
            [width] | [_, width] => width,
            _ => return Err(self.wrong(at(), column, cell, "a list of experts, or a list of them a token".into())),
        };
        for token in values.chunks(width.max(1)) {
            let key = self.tally.micro_batch_of_token(key, self.options.tokens_per_micro_batch);
            let mut chosen = 0;
            for (index, &value) in token.iter().enumerate().filter(|&(_, &value)| value != -1.0) {
                if token[..index].contains(&value) {
                    let expected = "experts that differ".to_owned();
                    return Err(self.wrong(at(), column, cell, expected));
                }
                let expert = number(value).map_err(|expected| self.wrong(at(), column, cell, expected))?;
                self.tally.add(&self.file, key, expert)?;
                chosen += 1;
            }
            self.tally.choices = self.tally.choices.max(chosen);
        }
        Ok(())
    }

    fn one(
        &mut self,
        at: &dyn Fn() -> String,
        key: Key,
        (expert, count): (usize, usize),
        cells: &[Cell],
    ) -> Result<(), ImportError> {
        let cell = |column: usize| cells.get(column).copied().unwrap_or(Cell::Missing);
        if let (Some(id), Some(value)) = (scalar(cell(expert)), scalar(cell(count))) {
            return self.pair(at, key, (expert, count), cells, (id, value));
        }
        let (_, ids) = self.numbers(at, expert, cell(expert))?;
        let (_, values) = self.numbers(at, count, cell(count))?;
        if ids.len() != values.len() {
            let expected = format!("as many counts as experts ({})", ids.len());
            return Err(self.wrong(at(), count, cell(count), expected));
        }
        ids.iter().zip(&*values).try_for_each(|(&id, &value)| self.pair(at, key, (expert, count), cells, (id, value)))
    }

    fn pair(
        &mut self,
        at: &dyn Fn() -> String,
        key: Key,
        (expert, count): (usize, usize),
        cells: &[Cell],
        (id, value): (f64, f64),
    ) -> Result<(), ImportError> {
        let id = number(id).map_err(|expected| self.wrong(at(), expert, cells[expert], expected))?;
        let value = self::count(value).map_err(|expected| self.wrong(at(), count, cells[count], expected))?;
        self.tally.set(&self.file, at, key, id, value)
    }

    /// Counts of all experts; lists of lists are micro-batches where the row has a layer, and layers elsewhere.
    fn list(&mut self, at: &dyn Fn() -> String, key: Key, column: usize, cells: &[Cell]) -> Result<(), ImportError> {
        let cell = cells.get(column).copied().unwrap_or(Cell::Missing);
        let (shape, values) = self.numbers(at, column, cell)?;
        let experts = *shape.last().unwrap_or(&0);
        self.tally.check_experts(&self.file, experts)?;
        let layered = self.columns.layer.is_some();
        let (outer, inner) = match *shape {
            [_] => (1, 1),
            [inner, _] => (1, inner),
            [outer, inner, _] if self.columns.iteration.is_none() && !layered => (outer, inner),
            _ => return Err(self.wrong(at(), column, cell, "a list of counts, or lists of them".into())),
        };
        if outer.max(inner) as u64 > MOST_EXTENT {
            return Err(self.wrong(at(), column, cell, format!("at most {MOST_EXTENT} lists")));
        }
        for (index, row) in values.chunks(experts.max(1)).enumerate() {
            let (outer, inner) = ((index / inner) as u32, (index % inner) as u32);
            let key = match shape.len() {
                1 => key,
                2 if layered => Key { micro_batch: key.micro_batch.saturating_add(inner), ..key },
                2 => Key { layer: inner, ..key },
                _ => Key { iteration: outer, layer: inner, ..key },
            };
            for (expert, &value) in row.iter().enumerate() {
                let value = count(value).map_err(|expected| self.wrong(at(), column, cell, expected))?;
                self.tally.set(&self.file, at, key, expert, value)?;
            }
        }
        Ok(())
    }

    fn wide(&mut self, at: &dyn Fn() -> String, key: Key, cells: &[Cell]) -> Result<(), ImportError> {
        let Loads::Wide(columns) = &self.columns.loads else {
            return Ok(());
        };
        for &(column, expert) in columns {
            let cell = cells.get(column).copied().unwrap_or(Cell::Missing);
            let value = match cell {
                Cell::Missing => 0.0,
                Cell::Number(value) => value,
                Cell::Text(text) if text.trim().is_empty() => 0.0,
                Cell::Text(text) => parse(text).unwrap_or(f64::NAN),
                Cell::List { .. } => f64::NAN,
            };
            let value = count(value).map_err(|expected| self.wrong(at(), column, cell, expected))?;
            self.tally.set(&self.file, at, key, expert, value)?;
        }
        Ok(())
    }

    /// A cell as numbers: extents and values.
    fn numbers<'c>(&self, at: &dyn Fn() -> String, column: usize, cell: Cell<'c>) -> Result<Numbers<'c>, ImportError> {
        let values = match cell {
            Cell::List { shape, values } => return Ok((Cow::Borrowed(shape), Cow::Borrowed(values))),
            Cell::Number(value) => vec![value],
            Cell::Text(text) => parse_list(text).unwrap_or_default(),
            Cell::Missing => Vec::new(),
        };
        match values.len() {
            0 => Err(self.wrong(at(), column, cell, "whole numbers".into())),
            length => Ok((Cow::Owned(vec![length]), Cow::Owned(values))),
        }
    }

    fn wrong(&self, at: String, column: usize, found: Cell, expected: String) -> ImportError {
        let found = match found {
            Cell::Missing => "nothing".into(),
            Cell::Number(value) => value.to_string(),
            Cell::Text(text) if text.trim().is_empty() => "nothing".into(),
            Cell::Text(text) => format!("`{}`", text.chars().take(40).collect::<String>()),
            Cell::List { shape, values } => {
                let first: Vec<String> = values.iter().take(8).map(f64::to_string).collect();
                let more = if values.len() > 8 { ", .." } else { "" };
                format!("[{}{more}] of shape {shape:?}", first.join(", "))
            }
        };
        let field = self.header.get(column).cloned().unwrap_or_default();
        ImportError::Value { file: self.file.clone(), at, field, found, expected }
    }
}

type Numbers<'c> = (Cow<'c, [usize]>, Cow<'c, [f64]>);

impl Columns {
    fn new(names: &ColumnNames, file: &str, header: &[&str]) -> Result<Self, ImportError> {
        let find = |field: &str, wanted: &Option<String>, common: &[&str]| match wanted {
            None => Ok(common.iter().find_map(|name| place(header, name))),
            Some(name) => place(header, name).map(Some).ok_or_else(|| {
                ImportError::file(
                    file,
                    format!("no column `{name}` for the {field}"),
                    format!("one of {}", listed(header)),
                )
            }),
        };
        let mut columns = Self {
            iteration: find("iteration", &names.iteration, ITERATION)?,
            layer: find("layer", &names.layer, LAYER)?,
            micro_batch: find("micro-batch", &names.micro_batch, MICRO_BATCH)?,
            rank: find("rank", &names.rank, RANK)?,
            loads: Loads::None,
        };
        let expert = find("expert", &names.expert, EXPERT)?;
        let count = find("counts", &names.counts, COUNTS)?;
        columns.loads = match (expert, count) {
            (Some(expert), Some(count)) => Loads::One { expert, count },
            (Some(experts), None) => Loads::Choices { experts },
            (None, Some(counts)) => Loads::List { counts },
            (None, None) => Loads::Wide(columns.wide(header)),
        };
        if columns.loads == Loads::Wide(Vec::new()) {
            let found = format!("columns {}", listed(header));
            let expected = format!(
                "experts in one of {}, counts in one of {}, or columns named to the importer",
                EXPERT.join(", "),
                COUNTS.join(", ")
            );
            return Err(ImportError::file(file, found, expected));
        }
        Ok(columns)
    }

    /// Columns whose names are experts: `7`, `expert_7`, `e7`.
    fn wide(&self, header: &[&str]) -> Vec<(usize, usize)> {
        let taken = [self.iteration, self.layer, self.micro_batch, self.rank];
        let expert = |name: &str| {
            let name = name.trim().to_ascii_lowercase();
            let rest = name.strip_prefix("expert").or(name.strip_prefix('e')).unwrap_or(&name);
            rest.trim_start_matches(['_', '-', ' ']).parse::<usize>().ok().filter(|&id| (id as u64) < MOST_EXTENT)
        };
        let columns = header.iter().enumerate().filter(|(column, _)| !taken.contains(&Some(*column)));
        columns.filter_map(|(column, name)| Some((column, expert(name)?))).collect()
    }
}

fn place(header: &[&str], name: &str) -> Option<usize> {
    header.iter().position(|column| column.trim().eq_ignore_ascii_case(name.trim()))
}

fn listed(header: &[&str]) -> String {
    let mut names: Vec<String> = header.iter().take(20).map(|name| name.chars().take(40).collect()).collect();
    if header.len() > names.len() {
        names.push("..".into());
    }
    names.join(", ")
}

fn whole(value: f64, most: u64) -> bool {
    value.fract() == 0.0 && value >= 0.0 && value <= most as f64
}

/// An expert's number.
pub(super) fn number(value: f64) -> Result<usize, String> {
    if whole(value, MOST_EXTENT - 1) {
        return Ok(value as usize);
    }
    Err(format!("an expert from 0 to {}", MOST_EXTENT - 1))
}

/// A number of entries.
pub(super) fn count(value: f64) -> Result<u64, String> {
    if whole(value, MOST_COUNT) { Ok(value as u64) } else { Err(format!("a whole number from 0 to {MOST_COUNT}")) }
}

fn scalar(cell: Cell) -> Option<f64> {
    match cell {
        Cell::Number(value) => Some(value),
        Cell::Text(text) => parse(text),
        _ => None,
    }
}

/// A number with a point, or with a decimal comma.
pub(super) fn parse(text: &str) -> Option<f64> {
    let text = text.trim();
    text.parse().ok().or_else(|| {
        let (whole, rest) = text.split_once(',')?;
        let zeros = !rest.is_empty() && rest.bytes().all(|byte| byte == b'0');
        if zeros { whole.parse().ok() } else { None }
    })
}

/// Numbers between blanks, commas, semicolons or bars, in brackets or not.
fn parse_list(text: &str) -> Option<Vec<f64>> {
    let separates = |c: char| c.is_whitespace() || "[](){},;|".contains(c);
    text.split(separates).filter(|piece| !piece.is_empty()).map(|piece| piece.parse().ok()).collect()
}
