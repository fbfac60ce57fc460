//! A suite's field changed from outside its file: `KEY=VALUE`, as on the command line. The value is read by the very reader of the
//! TOML, so it may be a list, a table or a plan, and a wrong one is refused by its key.

use std::cell::Cell;
use std::str::FromStr;

use serde::de::value::Error as ProbeError;
use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use toml::{Table, Value};

use crate::error::ConfigError;
use crate::suite::{Suite, is_path};
use crate::sweep::CaseSpec;
use crate::trace;

/// A field and its new value.
///
/// The key is a field of the suite (`iterations`, `trace.stride`), or else of every case (`gpus`, `plans.smartmoe`); `cases.` before
/// it says the latter where both have it (`cases.routing`).
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// As it was written.
    text: String,
    key: String,
    value: Value,
}

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=').map(|(key, value)| (key.trim(), value.trim())) {
            Some((key, value)) if !key.is_empty() && !value.is_empty() => {
                Ok(Self { text: text.to_owned(), key: key.to_owned(), value: read(value) })
            }
            _ => Err(format!("`{text}`: expected KEY=VALUE, for example gpus=32")),
        }
    }
}

/// A TOML value; a text that is none stands for itself, so that `gate=no-drop` needs no quotes.
fn read(text: &str) -> Value {
    let read: Option<Table> = toml::from_str(&format!("value = {text}")).ok();
    let value = read.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    value.unwrap_or_else(|| Value::String(text.to_owned()))
}

impl Change {
    /// With `place` of every text that names a file, for a model, a cluster or a routing's trace.
    pub fn with_files(mut self, place: &dyn Fn(&str) -> String) -> Self {
        let replace_trace = |trace: &mut Value| {
            if let Value::String(text) = trace
                && !trace::names().any(|name| name == text)
            {
                *text = place(text);
            }
        };
        let of_routing = |routing: &mut Value| routing.get_mut("trace").into_iter().for_each(replace_trace);
        let replace = |value: &mut Value| {
            if let Value::String(text) = value
                && is_path(text)
            {
                *text = place(text);
            }
        };
        if matches!(self.key.rsplit('.').next(), Some("model" | "cluster")) {
            match &mut self.value {
                Value::Array(values) => values.iter_mut().for_each(replace),
                value => replace(value),
            }
        }
        match (self.key.rsplit('.').next(), &mut self.value) {
            (Some("trace"), value) if self.key.ends_with("routing.trace") => replace_trace(value),
            (Some("routing"), Value::Array(routings)) => routings.iter_mut().for_each(of_routing),
            (Some("routing"), routing) => of_routing(routing),
            _ => {}
        }
        self
    }

    /// Sets the field in a suite's table.
    pub(crate) fn apply(&self, suite: &mut Table) -> Result<(), ConfigError> {
        let in_cases = self.key.strip_prefix("cases.");
        let key = in_cases.unwrap_or(&self.key);
        let first = key.split('.').next().unwrap_or(key);
        let (of_suite, of_case) = (fields::<Suite>(), fields::<CaseSpec>());
        if in_cases.is_none() && first != "cases" && of_suite.contains(&first) {
            return self.set(suite, key);
        }
        if !of_case.contains(&first) {
            let known: Vec<&str> = of_suite.iter().filter(|field| **field != "cases").copied().collect();
            return Err(self.refused(&format!(
                "unknown field `{first}`: a suite has {}; a case has {}",
                known.join(", "),
                of_case.join(", ")
            )));
        }
        let cases = suite.get_mut("cases").and_then(Value::as_array_mut);
        cases.into_iter().flatten().filter_map(Value::as_table_mut).try_for_each(|case| self.set(case, key))
    }

    fn set(&self, table: &mut Table, key: &str) -> Result<(), ConfigError> {
        let Some((first, rest)) = key.split_once('.') else {
            table.insert(key.to_owned(), self.value.clone());
            return Ok(());
        };
        let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
        match inner.as_table_mut() {
            Some(inner) => self.set(inner, rest),
            None => Err(self.refused(&format!("`{first}` is no table"))),
        }
    }

    pub(crate) fn refused(&self, reason: &str) -> ConfigError {
        ConfigError::Change { change: self.text.clone(), reason: reason.trim_end().to_owned() }
    }
}

/// The names of a struct's fields, as its reader knows them.
pub fn fields<T: DeserializeOwned>() -> &'static [&'static str] {
    let seen = Cell::new(&[][..]);
    // It always fails: it is asked for the fields alone.
    let _ = T::deserialize(Probe(&seen));
    seen.get()
}

struct Probe<'a>(&'a Cell<&'static [&'static str]>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = ProbeError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ProbeError> {
        Err(ProbeError::custom("asked for fields"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ProbeError> {
        self.0.set(fields);
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gate;
    use crate::suite::Case;

    fn changed(changes: &[&str]) -> Result<Suite, String> {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        Suite::named_with("test", "smoke", &changes).map_err(|error| error.to_string())
    }

    #[test]
    fn a_change_is_what_the_file_would_say() {
        assert_eq!(changed(&[]).unwrap(), Suite::named("test", "smoke").unwrap());
        let suite = changed(&["iterations=4", "warmup = 2", "trace.stride=3", "gpus=[2, 4]", "gate=capacity 2"]);
        let error = suite.unwrap_err();
        assert!(error.contains("cases[2] = gpt-tiny.inky.2.capacity-2: expected an id unlike"), "{error}");
        let suite = changed(&["iterations=4", "warmup = 2", "trace.stride=3", "seeds=[1, 7]"]).unwrap();
        assert_eq!((suite.iterations, suite.warmup, suite.trace.stride, suite.seeds), (4, 2, 3, vec![1, 7]));
        let suite =
            changed(&["micro_batch=1", "plans.smartmoe=pp1 dp8 tp1 ep8 edp1 mb1", "plans.fastermoe=3"]).unwrap();
        for case in &suite.cases {
            assert_eq!((case.micro_batch, case.plans["smartmoe"].ep, case.ranked["fastermoe"]), (Some(1), 8, 3));
        }
        let suite = changed(&["cases.routing=[{ gini = 0.5 }]"]).unwrap();
        assert_eq!((suite.routing, suite.cases[0].routing[0].gini), (None, Some(0.5)));
        let suite = changed(&["global_batch=[64, 128]"]).unwrap();
        let ids: Vec<String> = suite.cases.iter().map(Case::id).collect();
        assert_eq!(ids.len(), 6);
        assert!(ids[3].ends_with("capacity-1.2.batch128x2") && suite.cases[3].gate == Gate::Capacity { factor: 1.2 });
    }

    #[test]
    fn a_wrong_change_names_its_key() {
        let check = |change: &str, expected: &str| {
            let error = changed(&[change]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("gpus=many", "--set gpus=many: invalid type: string \"many\", expected usize");
        check("gate=nodrop", "--set gate=nodrop: gate `nodrop`: expected `no-drop`");
        check("gpu=8", "--set gpu=8: unknown field `gpu`: a suite has name,");
        check("iterations=[1]", "--set iterations=[1]: invalid type: sequence, expected usize");
        check("iterations=0", "iterations = 0: expected at least 1");
        check("trace.strid=2", "--set trace.strid=2: unknown field `strid`, expected one of `start`");
        check("systems.a=2", "--set systems.a=2: `systems` is no table");
        check("plans.smartmoe=0", "--set plans.smartmoe=0: a plan's rank is counted from 1");
        check("cases=[]", "unknown field `cases`");
        assert!(
            "gpus".parse::<Change>().is_err() && "=3".parse::<Change>().is_err() && "gpus=".parse::<Change>().is_err()
        );
    }

    #[test]
    fn files_are_put_in_their_place() {
        let place = |path: &str| format!("/there/{path}");
        let with = |text: &str| text.parse::<Change>().unwrap().with_files(&place).value;
        assert_eq!(with("model=m.toml"), Value::from("/there/m.toml"));
        assert_eq!(with("cluster=[\"inky\", \"c/x\"]"), Value::from(vec!["inky", "/there/c/x"]));
        assert_eq!(with("description=a/b"), Value::from("a/b"));
    }
}
