//! A case of one's own: what comes with moebench is shown, begun from and described to editors.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::support::{Folder, small_trace};

#[test]
fn what_is_shown_is_what_runs() {
    let folder = Folder::new();
    small_trace(&folder);
    for (kind, name) in [("suite", "smoke"), ("model", "gpt-tiny"), ("cluster", "inky")] {
        let shown = folder.succeed(&format!("show {kind} {name}"));
        assert!(shown.contains("\n# "), "{shown}");
        folder.write(&format!("{kind}.toml"), &shown);
        assert_eq!(
            folder.succeed(&format!("show {kind} {kind}.toml")),
            shown,
            "comments that are there stay as they are"
        );
    }
    let own = "run suite.toml --trace trace.parquet --iterations 3 --set model=model.toml --set cluster=cluster.toml --out own";
    folder.succeed(own);
    folder.succeed("run smoke --trace trace.parquet --iterations 3 --out smoke");
    assert_eq!(folder.bytes("own/iterations.parquet"), folder.bytes("smoke/iterations.parquet"));
    let shown = folder.succeed("show cluster inky");
    assert!(shown.contains("# Rate that half-precision matrix products reach, FLOP/s\ngemm_rate = "), "{shown}");
    for system in systems::ALL {
        let shown = folder.succeed(&format!("show system {}", system.name()));
        assert!(
            shown.contains(system.about().summary) && shown.contains(&format!("plans.{}", system.name())),
            "{shown}"
        );
    }
    folder.refuse("show system smartmo", &["unknown system `smartmo`", "did you mean `smartmoe`?"]);
    folder.refuse("show model none.toml", &["none.toml: cannot be read"]);
}

#[test]
fn what_is_new_runs_as_it_is() {
    let folder = Folder::new();
    small_trace(&folder);
    for kind in ["suite", "model", "cluster"] {
        let shown = folder.succeed(&format!("new {kind} my-{kind}"));
        assert!(shown.starts_with(&format!("my-{kind}.toml: moebench run ")), "{shown}");
        let tried = shown.trim().split_once("moebench ").unwrap().1;
        let shown = folder.succeed(&format!("{tried} --trace trace.parquet --iterations 3 --dry-run"));
        let holds = if kind == "suite" { "gpt-tiny.inky.16.capacity-1.2".to_owned() } else { format!("my-{kind}") };
        assert!(shown.contains(&holds), "{shown}");
        folder.refuse(&format!("new {kind} my-{kind}"), &[&format!("my-{kind}.toml: is there already")]);
    }
    folder.succeed("run my-suite.toml --trace trace.parquet --iterations 3 --set model=my-model.toml --set cluster=my-cluster.toml");
    assert!(folder.text("results/latest/summary.csv").contains("my-model.my-cluster.8.no-drop"));
    for (kind, like) in [("suite", "balance"), ("model", "deepseek-v3"), ("cluster", "pinky")] {
        folder.succeed(&format!("new {kind} x --like {like} --out {kind}-y.toml"));
        folder.succeed(&format!("show {kind} ./{kind}-y.toml"));
    }
    assert!(folder.text("cluster-y.toml").contains("description = \"begun from pinky\""));
    folder.refuse("new model ../x", &["`../x`", "letters, digits"]);
    folder.refuse("new cluster x --like nowhere", &["--like: unknown cluster `nowhere`"]);
}

/// The file and the line of a system, in a folder like moebench's own.
#[test]
fn a_new_system_is_a_file_and_a_line() {
    let folder = Folder::new();
    let shown = folder.succeed("new system hot-swap");
    assert!(shown.contains("hot_swap::{HotSwap},"), "{shown}");
    assert!(folder.text("hot_swap.rs").contains("pub struct HotSwap;"));
    let table = include_str!("../systems/src/zoo/mod.rs");
    folder.write("systems/src/zoo/mod.rs", table);
    folder.succeed("new system hot-swap");
    let text = folder.text("systems/src/zoo/hot_swap.rs");
    assert!(text.contains("use crate::plan::search;") && text.contains("name: \"hot-swap\""), "{text}");
    assert!(!text.contains("my-system") && !text.contains("MySystem"));
    assert_eq!(folder.text("systems/src/zoo/mod.rs").lines().count(), table.lines().count() + 1);
    folder.refuse("new system hot-swap", &["hot_swap.rs: is there already"]);
    folder.refuse("new system smartmoe", &["`smartmoe`: is there already"]);
    folder.refuse("new system Hot", &["small letters"]);
}

/// Whether a value is what a schema allows: the words of JSON Schema that moebench's schemas use.
fn allowed(schema: &Value, value: &Value) -> Result<(), String> {
    let words: BTreeSet<&str> = schema.as_object().unwrap().keys().map(String::as_str).collect();
    let known = [
        "$schema",
        "title",
        "description",
        "type",
        "properties",
        "required",
        "additionalProperties",
        "enum",
        "items",
        "minItems",
        "minimum",
        "minLength",
        "anyOf",
        "oneOf",
    ];
    assert!(words.iter().all(|word| known.contains(word)), "{words:?}");
    let wrong = |what: &str| Err(format!("{value}: {what}"));
    let is = match schema.get("type").and_then(Value::as_str) {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !is {
        return wrong(&format!("no {}", schema["type"]));
    }
    if schema.get("enum").is_some_and(|words| !words.as_array().unwrap().contains(value)) {
        return wrong("none of the words");
    }
    if let (Some(least), Some(number)) = (schema.get("minimum").and_then(Value::as_f64), value.as_f64())
        && number < least
    {
        return wrong("too small");
    }
    for (word, needed) in [("anyOf", 1..=usize::MAX), ("oneOf", 1..=1)] {
        if let Some(choices) = schema.get(word).and_then(Value::as_array) {
            let fit = choices.iter().filter(|choice| allowed(choice, value).is_ok()).count();
            if !needed.contains(&fit) {
                return wrong(&format!("{fit} of {word} fit"));
            }
        }
    }
    if let Some(of) = schema.get("items") {
        value.as_array().unwrap().iter().try_for_each(|item| allowed(of, item))?;
    }
    for needed in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if value.get(needed.as_str().unwrap()).is_none() {
            return wrong(&format!("no {needed}"));
        }
    }
    let (properties, others) = (schema.get("properties"), schema.get("additionalProperties"));
    for (key, inner) in value.as_object().into_iter().flatten() {
        match (properties.and_then(|properties| properties.get(key)), others) {
            (Some(of), _) | (None, Some(of @ Value::Object(_))) => {
                allowed(of, inner).map_err(|error| format!("{key}: {error}"))?
            }
            (None, Some(Value::Bool(false))) => return wrong(&format!("{key} is unknown")),
            _ => {}
        }
    }
    Ok(())
}

/// Editors accept every file that comes with moebench, and mark what the readers refuse.
#[test]
fn schemas_allow_what_readers_read() {
    let folder = Folder::new();
    let schema =
        |kind: &str| -> Value { serde_json::from_str(&folder.succeed(&format!("show schema {kind}"))).unwrap() };
    let json = |text: &str| serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
    let (suites, models, clusters) = (schema("suite"), schema("model"), schema("cluster"));
    for name in workloads::suite::SuiteFile::names() {
        let text = workloads::suite::SuiteFile::text("test", name).unwrap();
        let collection = text.contains("\nsuites = ");
        assert_eq!(allowed(&suites, &json(text)).is_err(), collection, "{name}: {:?}", allowed(&suites, &json(text)));
    }
    for name in workloads::Model::names() {
        allowed(&models, &json(workloads::Model::text("test", name).unwrap()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for name in workloads::Cluster::names() {
        allowed(&clusters, &json(workloads::Cluster::text("test", name).unwrap()))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let refused = |schema: &Value, text: &str, from: &str, to: &str, expected: &str| {
        assert!(text.contains(from), "{from}");
        let error = allowed(schema, &json(&text.replace(from, to))).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    let smoke = workloads::suite::SuiteFile::text("test", "smoke").unwrap();
    refused(&suites, smoke, "warmup", "warm_up", "no \"warmup\"");
    refused(&suites, smoke, "gpus = 8\n", "gpus = \"8\"\n", "gpus");
    refused(&suites, smoke, "micro_batch = 2", "micro_batches = 2", "micro_batches is unknown");
    let inky = workloads::Cluster::text("test", "inky").unwrap();
    refused(&clusters, inky, "memory = { value = 8e10,", "memory = { val = 8e10,", "memory: ");
    let tiny = workloads::Model::text("test", "gpt-tiny").unwrap();
    refused(&models, tiny, "[gpt]", "[bert]", "oneOf");
}

/// Whatever reads the program instead of a person: JSON, shells, `man`.
#[test]
fn programs_can_read_it() {
    let folder = Folder::new();
    small_trace(&folder);
    let json = |arguments: &str| -> Value { serde_json::from_str(&folder.succeed(arguments)).unwrap() };
    let lists = json("list --json");
    assert_eq!(lists["systems"].as_array().unwrap().len(), systems::ALL.len());
    let tiny = lists["models"].as_array().unwrap().iter().find(|model| model["model"] == "gpt-tiny").unwrap();
    assert_eq!((tiny["experts"].as_f64(), tiny["blocks"].as_f64()), (Some(8.0), Some(4.0)));
    let constants = json("list clusters --json")["constants"].as_array().unwrap().clone();
    assert!(constants.iter().all(|constant| constant["value"].is_number() && constant["source"].is_string()));
    let fitted = constants.iter().filter(|constant| constant["uncertainty"].is_number()).count();
    let unsaid = constants.iter().filter(|constant| constant["uncertainty"].is_null()).count();
    assert!(fitted > 0 && unsaid > 0 && fitted + unsaid == constants.len(), "{fitted} of {}", constants.len());
    let plan = "plan --model gpt-tiny --cluster inky --gpus 8 --trace trace.parquet --top 7";
    let plans = json(&format!("{plan} --json"));
    let (rows, shown) = (plans["plans"].as_array().unwrap(), folder.succeed(plan));
    assert_eq!(rows.len(), 7);
    assert!(rows.iter().all(|row| shown.contains(row["plan"].as_str().unwrap())), "{shown}");
    let steps: Vec<f64> = rows.iter().map(|row| row["step_s"].as_f64().unwrap()).collect();
    assert!(steps.is_sorted() && rows[0]["phases_s"]["experts"].as_f64().unwrap() > 0.0);
    for shell in ["bash", "zsh", "fish"] {
        let script = folder.succeed(&format!("completions {shell}"));
        assert!(script.contains("fail-above") && script.contains("dry-run"), "{shell}");
    }
    assert!(folder.succeed("man").starts_with(".ie") || folder.succeed("man").contains(".TH moebench"));
    folder.succeed("man --out pages");
    assert!(folder.text("pages/moebench-run.1").contains("shard"));
}

#[test]
fn help_is_short_and_long_and_has_examples() {
    let folder = Folder::new();
    let (short, long) = (folder.succeed("run -h"), folder.succeed("run --help"));
    assert!(long.contains("--master-addr") && !short.contains("--master-addr"), "{short}");
    for command in ["", "run", "plan", "compare"] {
        let said = folder.succeed(&format!("{command} --help"));
        assert!(said.contains("Examples:\n  moebench ") && !said.contains('\u{1b}'), "{said}");
    }
}

/// A run in which nothing ran is no success.
#[test]
fn a_run_of_failures_fails() {
    let folder = Folder::new();
    small_trace(&folder);
    folder.write("small.toml", &crate::support::cluster_toml(8, &[("memory", 0.01e9)]));
    let ran = folder.moebench("run smoke --trace trace.parquet --iterations 3 --set cluster=small.toml --out out");
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: no system ran any case to its end; the first: oom"), "{}", ran.stderr);
    assert!(!ran.stdout.contains("System"), "a table of nothing: {}", ran.stdout);
    assert!(folder.text("out/summary.csv").contains(",oom,"), "its rows are there");
}
