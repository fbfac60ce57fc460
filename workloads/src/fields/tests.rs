//! What is said of fields, held against the readers.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;

use super::*;
use crate::change::fields;
use crate::cluster::{Gpu, Host, Network, Program, Tier};
use crate::measured::{Line, MeasuredOperation, Passes};
use crate::model::attention::Latent;
use crate::model::table_fields;
use crate::suite::{Difference, SuiteFile, SuiteRouting, TraceUse};
use crate::sweep::CaseSpec;
use crate::{Cluster, Model, Suite, Training};

fn same_names(table: &Table, names: &[&str]) {
    let said: BTreeSet<&str> = table.fields.iter().map(|field| field.name).collect();
    assert_eq!(said, names.iter().copied().collect(), "{}", table.about);
    assert_eq!(said.len(), table.fields.len(), "{}: a field stands twice", table.about);
}

fn check<T: DeserializeOwned>(table: &Table) {
    same_names(table, fields::<T>());
}

#[test]
fn the_fields_are_those_of_the_readers() {
    check::<Suite>(&SUITE);
    check::<CaseSpec>(&suite::CASE);
    check::<Difference>(&suite::DIFFERENCE);
    check::<SuiteRouting>(&suite::ROUTING);
    check::<TraceUse>(&suite::TRACE);
    check::<Training>(&suite::TRAINING);
    same_names(&suite::DEGREES, crate::plan::table_fields());
    check::<Cluster>(&CLUSTER);
    check::<Gpu>(CLUSTER.at("gpu").unwrap());
    check::<Network>(CLUSTER.at("network").unwrap());
    check::<Tier>(CLUSTER.at("network.tiers").unwrap());
    check::<Host>(CLUSTER.at("host").unwrap());
    check::<Program>(CLUSTER.at("program").unwrap());
    check::<MeasuredOperation>(CLUSTER.at("gpu.measured").unwrap());
    check::<Line>(CLUSTER.at("gpu.measured.forward").unwrap());
    check::<Passes>(CLUSTER.at("gpu.measured.queued").unwrap());
    check::<Latent>(&model::LATENT);
    for (path, names) in table_fields() {
        same_names(if path.is_empty() { &MODEL } else { MODEL.at(path).unwrap() }, names);
    }
}

/// Of a whole file, every field that must be there is missed, and no other.
fn check_needs(read: &dyn Fn(&str) -> Result<(), ConfigError>, table: &'static Table, text: &str) {
    read(text).unwrap();
    let whole: toml::Table = toml::from_str(text).unwrap();
    let mut paths = Vec::new();
    paths_of(table, &whole, &mut Vec::new(), &mut paths);
    for (path, must) in paths {
        let mut less = whole.clone();
        let (last, parents) = path.split_last().unwrap();
        let parent = parents.iter().fold(&mut less, |table, name| match table.get_mut(name).unwrap() {
            Value::Array(all) => all[0].as_table_mut().unwrap(),
            inner => inner.as_table_mut().unwrap(),
        });
        parent.remove(last).unwrap();
        let told = read(&toml_text(&less)).err().map(|error| error.to_string()).unwrap_or_default();
        let missed = told.contains("missing field") && told.contains(last.as_str());
        assert_eq!(missed, must, "{}: {told}", path.join("."));
    }
}

fn paths_of(table: &'static Table, found: &toml::Table, path: &mut Vec<String>, paths: &mut Vec<(Vec<String>, bool)>) {
    for field in table.fields {
        let Some(value) = found.get(field.name) else { continue };
        path.push(field.name.to_owned());
        paths.push((path.clone(), field.must));
        let inner = match value {
            Value::Array(all) => all.first().and_then(Value::as_table),
            value => value.as_table(),
        };
        if let Some((table, found)) = field.kind.table().zip(inner) {
            paths_of(table, found, path, paths);
        }
        path.pop();
    }
}

/// A table as TOML, all in line; the crate's writer is not built.
fn toml_text(table: &toml::Table) -> String {
    table.iter().map(|(key, value)| format!("{key} = {}\n", inline(value))).collect()
}

fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text:?}"),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:e}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(time) => time.to_string(),
        Value::Array(all) => format!("[{}]", all.iter().map(inline).collect::<Vec<_>>().join(", ")),
        Value::Table(table) => {
            let fields: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
    }
}

#[test]
fn what_must_be_there_is_what_readers_miss() {
    for name in ["mixtral-8x7b", "deepseek-v3", "gpt-tiny", "swin-moe-b-e16"] {
        check_needs(&|text| Model::parse("m", text).map(drop), &MODEL, Model::text("test", name).unwrap());
    }
    for name in ["inky", "pinky"] {
        check_needs(&|text| Cluster::parse("c", text).map(drop), &CLUSTER, Cluster::text("test", name).unwrap());
    }
    for name in ["smoke", "balance", "paper-adaptive", "train-smoke"] {
        check_needs(&|text| Suite::parse("s", text).map(drop), &SUITE, SuiteFile::text("test", name).unwrap());
    }
}

#[test]
fn all_missing_fields_stand_in_one_error() {
    let error = Model::parse("m.toml", "name = \"m\"\n[gpt]\nlayers = 2\nheads = 4\n").unwrap_err().to_string();
    assert_eq!(
        error,
        "m.toml: missing fields gpt.hidden, gpt.seq_len, gpt.vocabulary, gpt.experts, gpt.top_k (`moebench show fields` says what they are)"
    );
    let error = Cluster::parse("c.toml", "gpus_per_node = 8\n[gpu]\n").unwrap_err().to_string();
    assert!(error.contains("name, gpu.name, gpu.memory,") && error.contains("host.decision_step"), "{error}");
    let error = Suite::parse("s.toml", "name = \"s\"\n[[cases]]\ngpus = 8\n").unwrap_err().to_string();
    assert!(error.contains("systems, iterations, warmup, cases[0].model, cases[0].cluster,"), "{error}");
    // One alone is told as the reader tells it.
    let text = Model::text("test", "gpt-tiny").unwrap().replace("hidden = 512\n", "");
    let error = Model::parse("m.toml", &text).unwrap_err().to_string();
    assert!(error.contains("line 4") && error.contains("missing field `hidden`"), "{error}");
}

/// Every file that comes with moebench, with its comments, says what it said; so does one with choices.
#[test]
fn comments_change_nothing() {
    for name in Model::names() {
        let text = Model::text("test", name).unwrap();
        for shown in [commented(&MODEL, text), with_choices(&MODEL, text)] {
            assert_eq!(Model::parse(name, &shown).unwrap(), Model::named("test", name).unwrap());
        }
    }
    for name in Cluster::names() {
        let shown = with_choices(&CLUSTER, Cluster::text("test", name).unwrap());
        assert_eq!(Cluster::parse(name, &shown).unwrap(), Cluster::named("test", name).unwrap());
        assert!(shown.contains("# Device memory, B\nmemory = "), "{shown}");
    }
    for name in SuiteFile::names() {
        let shown = with_choices(&SUITE, SuiteFile::text("test", name).unwrap());
        assert_eq!(SuiteFile::parse(name, &shown).unwrap(), SuiteFile::named("test", name).unwrap());
    }
}

/// A choice that is taken is one that the reader knows, with a value of the right type.
#[test]
fn every_choice_can_be_taken() {
    let mut taken = 0;
    let mut check = |read: &dyn Fn(&str) -> Result<(), ConfigError>, shown: &str| {
        let lines: Vec<&str> = shown.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let Some(choice) = line.strip_prefix("# ").filter(|choice| choice.contains(" = ") && !choice.contains("`"))
            else {
                continue;
            };
            let mut with: Vec<&str> = lines.clone();
            with[index] = choice;
            if let Err(error @ (ConfigError::Syntax { .. } | ConfigError::Missing { .. })) = read(&with.join("\n")) {
                panic!("{choice}: {error}");
            }
            taken += 1;
        }
    };
    check(&|text| Model::parse("m", text).map(drop), &with_choices(&MODEL, Model::text("t", "gpt-tiny").unwrap()));
    check(&|text| Cluster::parse("c", text).map(drop), &with_choices(&CLUSTER, Cluster::text("t", "inky").unwrap()));
    check(&|text| Suite::parse("s", text).map(drop), &with_choices(&SUITE, SuiteFile::text("t", "smoke").unwrap()));
    assert!(taken > 40, "{taken} choices");
}

#[test]
fn the_page_of_fields_is_the_one_of_the_readers() {
    let written = include_str!("../../FIELDS.md");
    assert!(written == page(), "workloads/FIELDS.md is old: moebench show fields > workloads/FIELDS.md");
}
