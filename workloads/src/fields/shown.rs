//! Files with what their fields are, and the page of all fields.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Field, Kind, Table};

/// A file's TOML with a comment above each field the first time it stands there; it says the same.
pub fn commented(table: &'static Table, text: &str) -> String {
    render(table, text, false)
}

/// The same, and behind each of its tables the fields that could stand there, too, as comments.
pub fn with_choices(table: &'static Table, text: &str) -> String {
    render(table, text, true)
}

fn render(table: &'static Table, text: &str, choices: bool) -> String {
    let mut out = String::new();
    let mut explained = BTreeSet::new();
    let sections = sections(text);
    let headers: BTreeSet<String> = sections.iter().filter_map(|section| section.path.clone()).collect();
    for section in sections {
        let here = section.path.as_deref().map_or(Some(table), |path| table.at(path));
        let path = section.path.clone().unwrap_or_default();
        let first_time = explained.insert(format!("[{path}]"));
        let mut present = BTreeSet::new();
        let mut lines = section.lines.as_slice();
        let blank = lines.iter().rev().take_while(|line| line.trim().is_empty()).count();
        lines = &lines[..lines.len() - blank];
        for line in lines {
            let field = key(line).and_then(|name| here?.field(name));
            if let Some(field) = field {
                present.insert(field.name);
                let comment = format!("# {}\n", field.about);
                let first_time = explained.insert(format!("{path}.{}", field.name));
                if first_time && !field.is_section() && !out.ends_with(&comment) {
                    out.push_str(&comment);
                }
            }
            let _ = writeln!(out, "{line}");
        }
        if let Some(here) = here.filter(|_| choices && first_time) {
            for field in here.fields.iter().filter(|field| !field.must && !present.contains(field.name)) {
                let inside = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
                if !headers.contains(&inside) && !["{}", "[]"].contains(&field.example) {
                    let _ = writeln!(out, "# {}\n# {} = {}", field.about, field.name, field.example);
                }
            }
        }
        out.push_str(&"\n".repeat(blank.max(usize::from(choices))));
    }
    out.trim_end().to_owned() + "\n"
}

impl Field {
    /// Whether it is written as `[name]` or `[[name]]`.
    fn is_section(&self) -> bool {
        self.must && self.kind.table().is_some()
    }
}

/// A header and the lines below it.
struct Section<'t> {
    /// None for the lines before the first header.
    path: Option<String>,
    lines: Vec<&'t str>,
}

fn sections(text: &str) -> Vec<Section<'_>> {
    let mut sections = vec![Section { path: None, lines: Vec::new() }];
    for line in text.lines() {
        let header = line.trim_start().starts_with('[').then(|| line.trim().trim_matches(['[', ']']));
        if let Some(path) = header.filter(|path| path.chars().all(|c| c.is_alphanumeric() || "._-".contains(c))) {
            sections.push(Section { path: Some(path.to_owned()), lines: vec![line] });
        } else if let Some(last) = sections.last_mut() {
            last.lines.push(line);
        }
    }
    sections
}

/// The key that a line sets, up to its first dot.
fn key(line: &str) -> Option<&str> {
    let key = line.split_once('=')?.0.trim().split('.').next()?;
    (!key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')).then_some(key)
}

/// All fields of all files, as Markdown.
pub fn page() -> String {
    let mut page = "# Fields of suites, models and clusters\n\n\
        Every field that a TOML file may hold. `moebench show fields` prints this page, `moebench new suite|model|cluster NAME` writes\n\
        a commented file, `moebench show schema suite|model|cluster` a JSON schema for editors. Unknown fields are refused.\n"
        .to_owned();
    for (title, table) in [("Suite", &super::SUITE), ("Model", &super::MODEL), ("Cluster", &super::CLUSTER)] {
        section(&mut page, title, "", table);
    }
    page
}

fn section(page: &mut String, title: &str, path: &str, table: &'static Table) {
    let level = if path.is_empty() { "##" } else { "###" };
    let _ = write!(
        page,
        "\n{level} {title}\n\n{}.\n\n| field | holds | must | what it is |\n|---|---|---|---|\n",
        table.about
    );
    for field in table.fields {
        let (must, about) = (if field.must { "yes" } else { "" }, field.about.replace('|', "\\|"));
        let _ = writeln!(page, "| `{}` | {} | {must} | {about} |", field.name, field.kind.words());
    }
    for field in table.fields {
        for inner in field.kind.tables() {
            let path = format!("{path}{}", field.name);
            section(page, &format!("`{path}`"), &format!("{path}."), inner);
        }
    }
}

impl Kind {
    /// Every table that may stand there.
    fn tables(&self) -> Vec<&'static Table> {
        match self {
            Self::Table(table) => vec![table],
            Self::List(of) | Self::Axis(of) | Self::BySystem(of) => of.tables(),
            Self::Either(kinds) => kinds.iter().flat_map(Kind::tables).collect(),
            _ => Vec::new(),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Whole => "whole number".to_owned(),
            Self::Number => "number".to_owned(),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Words(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
            Self::Constant("1") => "constant".to_owned(),
            Self::Constant(unit) => format!("constant, {unit}"),
            Self::Table(_) => "table".to_owned(),
            Self::List(of) => format!("list: {}", of.words()),
            Self::Axis(of) => format!("{}, or a list", of.words()),
            Self::BySystem(of) => format!("by system: {}", of.words()),
            Self::Either(kinds) => kinds.iter().map(Kind::words).collect::<Vec<_>>().join(" or "),
        }
    }
}
