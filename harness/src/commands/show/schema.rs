//! JSON schemas (draft 2020-12) of suites, models and clusters, for editors that check TOML.

use serde_json::{Map, Value, json};
use workloads::fields::{self, Field, Kind, Table};

use super::FileKind;

/// The schema of a kind of file.
pub fn of(kind: FileKind) -> String {
    let (title, table) = match kind {
        FileKind::Suite => ("moebench suite", &fields::SUITE),
        FileKind::Model => ("moebench model", &fields::MODEL),
        FileKind::Cluster => ("moebench cluster", &fields::CLUSTER),
    };
    let mut schema = of_table(table);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(title);
    if kind == FileKind::Model {
        schema["oneOf"] = json!([{ "required": ["gpt"] }, { "required": ["swin"] }]);
    }
    format!("{schema:#}\n")
}

fn of_table(table: &Table) -> Value {
    let properties: Map<String, Value> =
        table.fields.iter().map(|field| (field.name.to_owned(), of_field(field))).collect();
    let required: Vec<&str> = table.fields.iter().filter(|field| field.must).map(|field| field.name).collect();
    json!({
        "type": "object",
        "description": table.about,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn of_field(field: &Field) -> Value {
    let mut schema = of_kind(&field.kind);
    schema["description"] = json!(field.about);
    schema
}

fn of_kind(kind: &Kind) -> Value {
    match kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Whole => json!({ "type": "integer", "minimum": 0 }),
        Kind::Number => json!({ "type": "number" }),
        Kind::Flag => json!({ "type": "boolean" }),
        Kind::Words(words) => json!({ "enum": words }),
        Kind::Constant(_) => constant(),
        Kind::Table(table) => of_table(table),
        Kind::List(of) => json!({ "type": "array", "items": of_kind(of) }),
        Kind::Axis(of) => json!({ "anyOf": [of_kind(of), { "type": "array", "items": of_kind(of), "minItems": 1 }] }),
        Kind::BySystem(of) => json!({ "type": "object", "additionalProperties": of_kind(of) }),
        Kind::Either(kinds) => json!({ "anyOf": kinds.iter().map(of_kind).collect::<Vec<_>>() }),
    }
}

fn constant() -> Value {
    let number = json!({ "type": "number", "minimum": 0 });
    json!({
        "type": "object",
        "properties": { "value": number, "uncertainty": number, "peak": number, "source": { "type": "string", "minLength": 1 } },
        "required": ["value", "source"],
        "additionalProperties": false,
    })
}
