//! `report.html`: runs on one page that needs no other file and no network. The answer in words and the tables are here in
//! HTML; what can be chosen and pointed at is drawn by the page's script from the data that stand in it as JSON.
//!
//! Everything comes from stored runs, so the page of a run is the same whenever it is made. Names come from files of others:
//! every text goes through [`escape_xml`], the data through [`json`], and a policy allows this script alone.

mod answer;
mod cases;
mod data;
mod policy;
mod tables;

use anyhow::Result;
use chart::escape_xml;
use workloads::suite::FigureKind;

use crate::figures;
use crate::provenance::Provenance;
use crate::report;
use crate::report::html::cases::Labels;
use crate::stored::StoredRun;

const STYLE: &str = include_str!("page/style.css");

/// The script, one file per view after what they share.
const SCRIPT: &[&str] = &[
    include_str!("page/dom.js"),
    include_str!("page/state.js"),
    include_str!("page/grid.js"),
    include_str!("page/compare.js"),
    include_str!("page/table.js"),
    include_str!("page/phases.js"),
    include_str!("page/plans.js"),
    include_str!("page/memory.js"),
    include_str!("page/routing.js"),
    include_str!("page/traffic.js"),
    include_str!("page/series.js"),
    include_str!("page/timeline.js"),
    include_str!("page/main.js"),
];

/// Views that the script fills: the section's name, its heading, and what it shows.
const VIEWS: &[(&str, &str, &str)] = &[
    (
        "phases",
        "Where time goes",
        "Mean over the ranks of a stage, after warm-up. The parts of an iteration add up to it.",
    ),
    ("plans", "Plans side by side", "What each system runs with. Bold: unlike the reference system."),
    ("memory", "Memory of every rank", "The most over all iterations, against what a run may use of a rank's memory."),
    (
        "routing",
        "Routing imbalance",
        "Load of the busiest expert over the mean load, as the gate chose before any capacity. 1 is balance.",
    ),
    (
        "traffic",
        "Traffic between ranks",
        "Rows of all dispatches and combines of the last iteration, from the rank of the token to that of the expert and \
         back. Weights of copied experts are left out, and so are the ways that an exchange takes between.",
    ),
    (
        "series",
        "Iterations, and experts that move",
        "Time of every iteration of the first seed; marks below where experts changed rank.",
    ),
    (
        "timeline",
        "Timeline of the last iteration",
        "Some ranks, stream by stream; gaps are waiting. Buttons, drag, or the keys + - 0 and arrows zoom and move.",
    ),
];

/// The page of some runs, side by side.
///
/// # Errors
/// What cannot be written as JSON.
pub fn page(runs: &[StoredRun]) -> Result<String> {
    let labels = Labels::new(runs);
    let data = json(&data::Data::new(runs, &labels))?;
    let script = format!("(() => {{\n\"use strict\";\n{}}})();\n", SCRIPT.concat());
    let title = labels.runs().join(", ");
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <title>moebench: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{title}</h1><button type=\"button\" id=\"theme\" hidden>Theme</button></header>\n<main>\n",
        policy = policy::of(&script),
        title = escape_xml(&title),
    );
    for (index, run) in runs.iter().enumerate() {
        page += &question(run, index, &labels);
    }
    page += &tables::beside(runs, &labels);
    let claims = tables::claims(runs, &labels);
    page += &links(!claims.is_empty());
    page += "<noscript><p class=\"note\">Without its script, the page shows tables alone.</p></noscript>\n\
             <form id=\"controls\" aria-label=\"What is shown\" hidden></form>\n\
             <section id=\"compare\"><h2>Comparison</h2><div class=\"view\"></div></section>\n";
    page += &format!("<section id=\"table\"><h2>All numbers</h2>\n{}</section>\n", tables::summary(runs, &labels));
    page += &claims;
    page += "<form id=\"case\" aria-label=\"Which case is shown below\" hidden></form>\n";
    for (name, heading, what) in VIEWS {
        page += &format!(
            "<section id=\"{name}\" hidden><h2>{heading}</h2><p class=\"note\">{what}</p><div class=\"view\"></div></section>\n"
        );
    }
    for (index, run) in runs.iter().enumerate() {
        page += &figures(run, &labels.runs()[index]);
        page += &notes(run, &labels.runs()[index]);
        page += &origin(run, &labels.runs()[index]);
    }
    page += "</main>\n<div id=\"tip\" role=\"status\" hidden></div>\n";
    Ok(page
        + &format!(
            "<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{script}</script>\n</body>\n</html>\n"
        ))
}

/// Links to the parts of the page that have something to show, which the script knows.
fn links(claims: bool) -> String {
    let parts = [("compare", "Comparison"), ("table", "All numbers")].into_iter();
    let parts = parts.chain(claims.then_some(("claims", tables::CLAIMS)));
    let views = VIEWS.iter().map(|(name, heading, _)| (*name, *heading));
    let links: String = parts.chain(views).map(|(name, words)| format!("<a href=\"#{name}\">{words}</a>\n")).collect();
    format!("<nav aria-label=\"Parts of the page\" hidden>\n{links}</nav>\n")
}

/// JSON that ends no script element.
fn json(data: &data::Data) -> Result<String> {
    Ok(serde_json::to_string(data)?
        .replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

/// What was asked, and the answer.
fn question(run: &StoredRun, index: usize, labels: &Labels) -> String {
    let answer = answer::Answer::new(run, labels);
    let description = match run.facts.description.as_str() {
        "" => String::new(),
        text => format!("<p class=\"question\">{}.</p>\n", escape_xml(text.trim_end_matches('.'))),
    };
    let heading = match labels.runs().len() {
        1 => String::new(),
        _ => format!("<h2>{}</h2>\n", escape_xml(&labels.runs()[index])),
    };
    let sentences: String = answer.sentences.iter().map(|text| format!("<li>{}</li>\n", escape_xml(text))).collect();
    format!(
        "<section class=\"answer\">\n{heading}{description}<ul>\n{sentences}</ul>\n{}</section>\n",
        tables::answers(&answer.cases, &answer.reference)
    )
}

/// Figures that the page does not draw itself, as images: nothing in them can run.
fn figures(run: &StoredRun, label: &str) -> String {
    let of = |[name, svg, caption]: &[String; 3]| {
        let (name, caption) = (escape_xml(name), escape_xml(caption.trim()));
        format!(
            "<figure><img alt=\"figure {name} of {}\" src=\"data:image/svg+xml,{}\"><figcaption>{caption}</figcaption></figure>\n",
            escape_xml(label),
            policy::percent_encoded(svg)
        )
    };
    // What searches expected is shown where it is what the suite asks; its files are in the folder.
    let asked = |[name, ..]: &&[String; 3]| {
        let model = figures::name(FigureKind::PerformanceModel);
        name != model || run.facts.drawn.figure == FigureKind::PerformanceModel
    };
    run.figures.iter().filter(asked).map(of).collect()
}

/// What is not as elsewhere, and what is not there.
fn notes(run: &StoredRun, label: &str) -> String {
    let failures = report::failures(&run.summary);
    let periods = report::unreached_periods(&run.summary);
    let all = [&run.facts.differences, &periods, &failures, &run.missing];
    let items: String = all.into_iter().flatten().map(|note| format!("<li>{}</li>\n", escape_xml(note))).collect();
    if items.is_empty() {
        return String::new();
    }
    format!("<section><h2>Not like the others: {}</h2>\n<ul>\n{items}</ul></section>\n", escape_xml(label))
}

/// What the numbers follow from, and the command that makes them again.
fn origin(run: &StoredRun, label: &str) -> String {
    let Provenance { inputs, command, .. } = &run.provenance;
    let seeds: Vec<String> = inputs.seeds.iter().map(u64::to_string).collect();
    let commit = match (&run.provenance.commit, run.provenance.dirty) {
        (Some(commit), Some(true)) => format!("{commit}, with changes"),
        (Some(commit), _) => commit.clone(),
        (None, _) => "unknown".to_owned(),
    };
    let mut rows = vec![
        ("made again by".to_owned(), again(command)),
        ("how".to_owned(), run.facts.origin.clone()),
        ("routing trace".to_owned(), inputs.trace.clone()),
        ("iterations".to_owned(), format!("{}, the first {} of them warm-up", inputs.iterations, run.facts.warmup)),
        ("seeds".to_owned(), seeds.join(", ")),
        ("program".to_owned(), inputs.program.clone()),
        ("commit".to_owned(), commit),
        ("columns of records".to_owned(), format!("version {}", run.provenance.schema_version)),
    ];
    rows.extend(run.provenance.libraries.iter().map(|(name, version)| (name.clone(), version.clone())));
    rows.extend(inputs.hashes.iter().map(|(name, hash)| (format!("sha256 of {name}"), hash.clone())));
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{}</th><td><code>{}</code></td></tr>\n", escape_xml(name), escape_xml(value))
        })
        .collect();
    format!(
        "<section><h2>What was run: {}</h2>\n<table class=\"origin\">\n{rows}</table></section>\n",
        escape_xml(label)
    )
}

/// The command without the folder that its program was in, and with quotes where a shell needs them.
fn again(command: &[String]) -> String {
    let mut words: Vec<String> = command.iter().map(|word| report::quoted(word)).collect();
    if let Some(program) = words.first_mut() {
        *program = "moebench".to_owned();
    }
    words.join(" ")
}
