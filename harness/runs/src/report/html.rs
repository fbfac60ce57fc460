//! `report.html`: a run on one page that needs no other file: figure, table, what differed or failed, what was run.

use chart::escape_xml;
use workloads::Suite;

use crate::provenance::Provenance;
use crate::report::{self, TextTable};
use crate::summary::Summary;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em;color:#141414}\
svg{width:100%;height:auto}table{border-collapse:collapse;font-size:13px}\
th,td{padding:.15em .7em;text-align:left;border-bottom:1px solid #ddd;white-space:nowrap}\
.n{text-align:right;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}code{overflow-wrap:anywhere}";

/// The page of a run.
pub struct Page<'a> {
    pub suite: &'a Suite,
    pub summary: &'a Summary,
    pub table: &'a TextTable,
    pub provenance: &'a Provenance,
}

impl Page<'_> {
    /// With its figure as SVG.
    pub fn render(&self, figure: &str) -> String {
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>moebench: {name}</title>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n<p>{description}.</p>\n{figure}\n",
            name = escape_xml(&self.suite.name),
            description = escape_xml(&self.suite.description),
        );
        page += "<h2>Summary</h2>\n";
        page += &rows(self.table);
        let notes = report::notes(&self.suite.cases, self.summary);
        if !notes.is_empty() {
            let items: String = notes.iter().map(|note| format!("<li>{}</li>\n", escape_xml(note))).collect();
            page += &format!("<h2>Not like the others</h2>\n<ul>\n{items}</ul>\n");
        }
        page + &origin(self.provenance) + "</body>\n</html>\n"
    }
}

fn rows(table: &TextTable) -> String {
    let row = |tag: &str, cells: &[String]| -> String {
        let cell = |(index, text): (usize, &String)| {
            let class = if index < table.text_columns { "" } else { " class=\"n\"" };
            format!("<{tag}{class}>{}</{tag}>", escape_xml(text))
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    let body: String = table.rows.iter().map(|cells| row("td", cells)).collect();
    format!("<div class=\"wide\"><table>\n{}{body}</table></div>\n", row("th", &table.header))
}

/// What the numbers follow from, without the machine and the moment.
fn origin(provenance: &Provenance) -> String {
    let inputs = &provenance.inputs;
    let seeds: Vec<String> = inputs.seeds.iter().map(u64::to_string).collect();
    let commit = match (&provenance.commit, provenance.dirty) {
        (Some(commit), Some(true)) => format!("{commit}, with changes"),
        (Some(commit), _) => commit.clone(),
        (None, _) => "unknown".to_owned(),
    };
    let mut rows = vec![
        ("how".to_owned(), provenance.engine.to_string()),
        ("routing trace".to_owned(), inputs.trace.clone()),
        ("iterations".to_owned(), inputs.iterations.to_string()),
        ("seeds".to_owned(), seeds.join(", ")),
        ("program".to_owned(), inputs.program.clone()),
        ("commit".to_owned(), commit),
    ];
    rows.extend(inputs.hashes.iter().map(|(name, hash)| (format!("sha256 of {name}"), hash.clone())));
    let rows = rows.iter().map(|(name, value)| {
        format!("<tr><td>{}</td><td><code>{}</code></td></tr>\n", escape_xml(name), escape_xml(value))
    });
    format!("<h2>What was run</h2>\n<div class=\"wide\"><table>\n{}</table></div>\n", rows.collect::<String>())
}
