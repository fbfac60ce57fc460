//! JSON: a document, or a value a line; both are a stream of values.
//!
//! An array of numbers is counts, its axes as in [`Axis`]; where several stand in a stream, each is an iteration. An object is
//! a row, its members the columns; or it holds arrays under the names of layers or iterations, or objects of counts by expert. Numbers in arrays are kept flat, so that a
//! matrix takes little more memory than its values, and the size of a value is bounded.

use std::cell::Cell as Shared;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::array::{ArraySink, Axis};
use super::table::{Cell, Table};
use super::tally::Origin;
use super::{ImportError, Importer};

/// Numbers in one value; everything else counts for as many as it takes room for.
const MOST_NUMBERS: usize = 1 << 25;
/// Room of a member or an element that is no number, in numbers.
const NODE: usize = 16;

pub(super) fn read<R: Read>(importer: &mut Importer, path: &str, input: &mut BufReader<R>) -> Result<(), ImportError> {
    super::skip_bom(path, input)?;
    let lines = Rc::new(Shared::new(1_u64));
    let counted = Lines { input, lines: lines.clone() };
    let mut source = serde_json::Deserializer::from_reader(counted);
    let mut arrays = 0;
    loop {
        let left = Shared::new(MOST_NUMBERS);
        match source.end() {
            Ok(()) => return Ok(()),
            Err(error) if error.is_io() => return Err(failed(path, &error)),
            Err(_) => {}
        }
        let value = Seed(&left).deserialize(&mut source).map_err(|error| failed(path, &error))?;
        add(importer, path, lines.get(), value, &mut arrays)?;
    }
}

fn failed(path: &str, error: &serde_json::Error) -> ImportError {
    if error.is_io() {
        return ImportError::read(path, io::Error::other(error.to_string()));
    }
    ImportError::file(path, error.to_string(), "JSON")
}

/// Counts the lines that were read.
struct Lines<'a, R> {
    input: &'a mut BufReader<R>,
    lines: Rc<Shared<u64>>,
}

impl<R: Read> Read for Lines<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(out)?;
        let ends = out[..count].iter().filter(|&&byte| byte == b'\n').count();
        self.lines.set(self.lines.get() + ends as u64);
        Ok(count)
    }
}

fn add(importer: &mut Importer, path: &str, line: u64, value: Json, arrays: &mut u32) -> Result<(), ImportError> {
    match value {
        Json::Array(array) => {
            let origin = Origin::of_path(path)?;
            // Only the first of several can be without a number.
            let origin = Origin { iteration: origin.iteration.or((*arrays > 0).then_some(*arrays)), ..origin };
            *arrays += 1;
            add_array(importer, path, origin, &array)
        }
        Json::List(values) => values.into_iter().try_for_each(|value| match value {
            Json::Object(members) => object(importer, path, line, members),
            other => Err(ImportError::file(path, format!("{} in a list, line {line}", other.what()), EXPECTED)),
        }),
        Json::Object(members) => object(importer, path, line, members),
        other => Err(ImportError::file(path, format!("{} in line {line}", other.what()), EXPECTED)),
    }
}

const EXPECTED: &str = "arrays of numbers, or objects";

fn add_array(importer: &mut Importer, path: &str, origin: Origin, array: &Array) -> Result<(), ImportError> {
    let default = Axis::of_counts(array.shape.len());
    let Importer { tally, options, .. } = importer;
    let mut sink = ArraySink::new(tally, options, (path, origin), &array.shape, false, default)?;
    array.values.iter().try_for_each(|&value| sink.put(value))
}

/// A row; or arrays under the names of what they are of.
fn object(importer: &mut Importer, path: &str, line: u64, members: Vec<(String, Json)>) -> Result<(), ImportError> {
    if !members.is_empty() && members.iter().all(|(_, value)| matches!(value, Json::Object(_))) {
        return nested(importer, path, line, &members);
    }
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    let origins: Vec<Option<Origin>> =
        members.iter().map(|(name, value)| origin_of(path, name, value)).collect::<Result<_, _>>()?;
    let origins: Option<Vec<Origin>> = origins.into_iter().collect();
    if let Some(origins) = origins.filter(|origins| !origins.is_empty()) {
        let arrays = members.iter().zip(origins);
        return arrays.into_iter().try_for_each(|((name, value), origin)| match value {
            Json::Array(array) => add_array(importer, &format!("{path}, {name}"), origin, array),
            _ => Ok(()),
        });
    }
    let axes = importer.options.axes.is_some();
    let arrays = members.iter().filter_map(|(name, value)| match value {
        Json::Array(array) => Some((name, array)),
        _ => None,
    });
    let arrays: Vec<(&String, &Array)> = arrays.collect();
    if let ([(name, array)], true) = (arrays.as_slice(), axes) {
        return add_array(importer, &format!("{path}, {name}"), Origin::of_path(path)?, array);
    }
    let mut table = Table::new(&mut importer.tally, &importer.options, path, &names)?;
    let cells: Vec<Cell> = members.iter().map(|(_, value)| value.cell()).collect();
    table.row(&|| format!("line {line}"), &cells)
}

/// Objects under the names of what they are of, the innermost holding counts by expert. A bare number is a layer where it holds counts, and an
/// iteration where it holds layers.
fn nested(importer: &mut Importer, path: &str, line: u64, members: &[(String, Json)]) -> Result<(), ImportError> {
    if members.iter().any(|(_, value)| matches!(value, Json::Object(_))) {
        return members.iter().try_for_each(|(name, value)| {
            let Json::Object(inner) = value else {
                let found = format!("{} beside objects, line {line}", value.what());
                return Err(ImportError::file(path, found, "objects alone"));
            };
            let holds_counts = inner.iter().all(|(_, value)| !matches!(value, Json::Object(_)));
            let name = match name.parse::<u32>() {
                Ok(number) => format!("{}_{number}", if holds_counts { "layer" } else { "iteration" }),
                Err(_) => name.clone(),
            };
            if members.len() > 1 && Origin::of_path(&name)? == Origin::default() {
                let found = format!("`{name}` among {} objects, line {line}", members.len());
                let expected = "names with the number of an iteration, a layer, a micro-batch or a rank";
                return Err(ImportError::file(path, found, expected));
            }
            nested(importer, &format!("{path}, {name}"), line, inner)
        });
    }
    let mut table = Table::new(&mut importer.tally, &importer.options, path, &["expert", "count"])?;
    members
        .iter()
        .try_for_each(|(expert, count)| table.row(&|| format!("line {line}"), &[Cell::Text(expert), count.cell()]))
}

/// Where an array belongs by its name: `layer_3`, `iteration_10`, or a bare number, which is a layer.
fn origin_of(path: &str, name: &str, value: &Json) -> Result<Option<Origin>, ImportError> {
    let Json::Array(_) = value else {
        return Ok(None);
    };
    let (of_file, own) = (Origin::of_path(path)?, Origin::of_path(name)?);
    let layer = name.parse().ok().or(own.layer);
    if (layer, own.iteration, own.rank) == (None, None, None) {
        return Ok(None);
    }
    Ok(Some(Origin {
        iteration: own.iteration.or(of_file.iteration),
        layer: layer.or(of_file.layer),
        micro_batch: own.micro_batch.or(of_file.micro_batch),
        rank: own.rank.or(of_file.rank),
    }))
}

/// A value, with arrays of numbers flat.
#[derive(Debug, PartialEq)]
enum Json {
    Null,
    Number(f64),
    Text(String),
    Array(Array),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
    /// Numbers or arrays that another element of their list is unlike.
    Unlike,
}

/// Numbers `[..][last]`; a null among them is not a number.
#[derive(Debug, PartialEq)]
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Json {
    fn cell(&self) -> Cell<'_> {
        match self {
            Self::Number(value) => Cell::Number(*value),
            Self::Text(text) => Cell::Text(text),
            Self::Array(Array { shape, values }) => Cell::List { shape, values },
            Self::Null | Self::List(_) | Self::Object(_) | Self::Unlike => Cell::Missing,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::Array(_) => "an array of numbers",
            Self::List(_) => "a list of unlike values",
            Self::Object(_) => "an object",
            Self::Unlike => "elements of unlike shapes",
        }
    }
}

/// Reads a value, taking its size from what is left.
#[derive(Clone, Copy)]
struct Seed<'a>(&'a Shared<usize>);

impl Seed<'_> {
    fn take<E: de::Error>(self, size: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(size);
        let refuse =
            || E::custom(format!("a value of more than {MOST_NUMBERS} numbers; put one value a line, or use NPY"));
        left.map(|left| self.0.set(left)).ok_or_else(refuse)
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Text(value.to_string()))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value as f64))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Json, E> {
        self.take(text.len() / 8)?;
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut gathered = Gathered::Nothing;
        while let Some(item) = items.next_element_seed(self)? {
            self.take(if matches!(item, Json::Number(_)) { 1 } else { NODE })?;
            gathered = gathered.with(item);
        }
        Ok(gathered.value())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = items.next_key::<String>()? {
            self.take(NODE + name.len() / 8)?;
            members.push((name, items.next_value_seed(self)?));
        }
        Ok(Json::Object(members))
    }
}

/// The elements of an array so far.
enum Gathered {
    Nothing,
    Numbers(Vec<f64>),
    /// Arrays of one shape: how many, the shape, all values.
    Arrays(usize, Vec<usize>, Vec<f64>),
    Mixed(Vec<Json>),
}

impl Gathered {
    fn with(self, item: Json) -> Self {
        match (self, item) {
            (Self::Nothing, Json::Number(value)) => Self::Numbers(vec![value]),
            (Self::Nothing, Json::Array(Array { shape, values })) => Self::Arrays(1, shape, values),
            (Self::Nothing, item) => Self::Mixed(vec![item]),
            (Self::Numbers(mut values), Json::Number(value)) => {
                values.push(value);
                Self::Numbers(values)
            }
            (Self::Numbers(mut values), Json::Null) => {
                values.push(f64::NAN);
                Self::Numbers(values)
            }
            (Self::Arrays(count, shape, mut values), Json::Array(array)) if array.shape == shape => {
                values.extend_from_slice(&array.values);
                Self::Arrays(count + 1, shape, values)
            }
            (Self::Mixed(mut items), item) => {
                items.push(item);
                Self::Mixed(items)
            }
            // Unlike the ones before: what they hold is no array of counts.
            (Self::Numbers(_) | Self::Arrays(..), item) => Self::Mixed(vec![Json::Unlike, item]),
        }
    }

    fn value(self) -> Json {
        match self {
            Self::Nothing => Json::Array(Array { shape: vec![0], values: Vec::new() }),
            Self::Numbers(values) => Json::Array(Array { shape: vec![values.len()], values }),
            Self::Arrays(count, shape, values) => {
                Json::Array(Array { shape: [&[count], shape.as_slice()].concat(), values })
            }
            Self::Mixed(items) => Json::List(items),
        }
    }
}
