//! Tables of a stored run for a paper, derived from its folder alone: of one value, systems or cases are the columns, whichever
//! makes fewer parts; of several, the values are.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chart::{PaperTable, Room, RowGroup, Width};
use clap::ValueEnum;

use crate::figures::labels::{self, CaseLabels, Part, in_words};
use crate::figures::{self, model_notes, statistic_note, unreached_periods};
use crate::records::RunKey;
use crate::report::values::{self, SUMMARY, Value};
use crate::store::write_text;
use crate::stored::StoredRun;

/// A file format of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TableFormat {
    /// Floats of LaTeX with `booktabs`, that fit a column or a page
    Latex,
    /// Markdown, its lines at most 80 or 160 characters long
    Markdown,
    /// All values that were asked for as numbers, a line for each case and system
    Csv,
}

/// Writes the table of these values into a folder, once in each format, with its caption beside it, and returns the paths of the
/// tables. They are called `summary` where the values are those of [`SUMMARY`], and what is one column wide ends in `-column`.
///
/// # Errors
/// A file that cannot be written.
pub fn write(
    folder: &Path,
    run: &StoredRun,
    values: &[Value],
    width: Width,
    formats: &[TableFormat],
) -> Result<Vec<PathBuf>> {
    let name = match values {
        SUMMARY => "summary".to_owned(),
        values => values.iter().map(|value| value.name()).collect::<Vec<_>>().join("-"),
    };
    let fitted = match width {
        Width::Page => name.clone(),
        Width::Column => format!("{name}-column"),
    };
    let asked = values;
    let there: Vec<Value> = asked.iter().copied().filter(|value| value.is_there(run)).collect();
    let values = if there.is_empty() { asked } else { &there };
    let caption = caption(run, values);
    let mut paths = Vec::new();
    for format in formats {
        let (file, text) = match format {
            TableFormat::Latex => (format!("{fitted}.tex"), latex(run, values, width, &caption, &fitted)),
            TableFormat::Markdown => (format!("{fitted}.md"), markdown(run, values, width, &caption)),
            TableFormat::Csv => (format!("{name}.csv"), csv(run, asked)?),
        };
        let path = folder.join(file);
        write_text(&path, &text)?;
        paths.push(path);
    }
    write_text(&folder.join(format!("{name}.caption.txt")), &format!("{caption}\n"))?;
    Ok(paths)
}

fn latex(run: &StoredRun, values: &[Value], width: Width, caption: &str, name: &str) -> String {
    let room = Room::latex(width, caption.chars().count());
    let layouts = layouts(run, values).into_iter().flat_map(|table| [table.clone(), table.stacked()]);
    let parts = fewest(layouts, &room);
    let label = |at: usize| if at == 0 { format!("tab:{name}") } else { format!("tab:{name}-{}", at + 1) };
    let of_part = |at: usize| match at {
        0 => caption.to_owned(),
        at => format!("{} (part {} of {}).", title(run, values), at + 1, parts.len()),
    };
    let parts = parts.iter().enumerate().map(|(at, part)| part.latex(width, &of_part(at), &label(at)));
    format!("% Needs \\usepackage{{booktabs}}.\n{}", PaperTable::latex_of_parts(&parts.collect::<Vec<_>>()))
}

fn markdown(run: &StoredRun, values: &[Value], width: Width, caption: &str) -> String {
    let layouts = layouts(run, values).into_iter().map(|table| table.escaped_for_markdown());
    let mut text: Vec<String> = fewest(layouts, &Room::markdown(width)).iter().map(PaperTable::markdown).collect();
    text.push(format!("{caption}\n"));
    text.join("\n")
}

/// What a terminal shows, of real ranks what a simulation has no measurement of, too.
const TERMINAL: &[Value] = &[
    Value::Iteration,
    Value::Speedup,
    Value::Medians,
    Value::Ideal,
    Value::Online,
    Value::Memory,
    Value::Tokens,
    Value::Mfu,
    Value::Loss,
    Value::Simulated,
    Value::Published,
    Value::Error,
    Value::Plan,
];

/// The run's table for a terminal, of lines of so many characters: systems by the names that commands take, under the id of their
/// case, or in words where what was measured is not the cluster that the id names. Columns that do not fit stand below. Behind
/// speedups over the baseline come those over the systems that the suite compares with.
pub fn terminal(run: &StoredRun, characters: usize) -> String {
    let trained = |value: &Value| matches!(value, Value::Tokens | Value::Mfu) && !run.summary.is_trained();
    let values: Vec<Value> = TERMINAL.iter().copied().filter(|value| !trained(value) && value.is_there(run)).collect();
    let mut table = values_across(run, &values);
    let behind = 1 + values.iter().take_while(|value| **value == Value::Iteration || value.is_ratio()).count();
    let over = |name: &String| format!("over {name}");
    let compare = &run.facts.drawn.compare;
    table.header.splice(behind..behind, compare.iter().map(over));
    for (group, key) in table.groups.iter_mut().zip(labels::cases(run)) {
        group.heading = match &run.facts.drawn.measured_on {
            None => key.case.clone(),
            place => in_words(place, key, &Part::ALL),
        };
        let rows = labels::systems(run).into_iter().filter_map(|system| run.summary.row(&key.case, system));
        for (cells, row) in group.rows.iter_mut().zip(rows) {
            cells[0].clone_from(&row.key.system);
            let ratio = |name| Some(row.over(run.summary.row(&key.case, name)?)?.by_totals);
            let ratios = compare.iter().map(|name| ratio(name).map_or_else(String::new, |ratio| format!("{ratio:.2}")));
            cells.splice(behind..behind, ratios);
        }
    }
    let parts = table.without_empty().fitted(&Room::text(characters));
    // Systems alone say nothing, where none ran.
    let parts: Vec<String> = parts.iter().filter(|part| part.header.len() > 1).map(PaperTable::text).collect();
    parts.join("\n")
}

/// Of the tables the one in the fewest parts, the first of several, in these parts, and in none of them what is empty there.
fn fewest(tables: impl IntoIterator<Item = PaperTable>, room: &Room) -> Vec<PaperTable> {
    let parts = tables.into_iter().map(|table| table.without_empty().fitted(room));
    let fewest = parts.min_by_key(Vec::len).unwrap_or_default();
    let held: Vec<PaperTable> = fewest.iter().cloned().map(PaperTable::without_empty).collect();
    let held: Vec<PaperTable> = held.into_iter().filter(|part| part.header.len() > 1).collect();
    if held.is_empty() { fewest } else { held }
}

/// The ways to lay these values out.
fn layouts(run: &StoredRun, values: &[Value]) -> Vec<PaperTable> {
    match values {
        [value] => vec![systems_across(run, *value), cases_across(run, *value)],
        values => vec![values_across(run, values)],
    }
}

/// Cases and what they are called: by what differs, and a single one by its model.
fn named(run: &StoredRun) -> Vec<(&RunKey, String)> {
    let cases = labels::cases(run);
    let labels = CaseLabels::new(run, &cases, &[]);
    let name = |key: &RunKey| match labels.whole(key) {
        name if name.is_empty() => key.model.clone(),
        name => name,
    };
    cases.into_iter().map(|key| (key, name(key))).collect()
}

/// Systems that have something to tell: not the baseline, where it ended all cases, of ratios over it.
fn told(run: &StoredRun, value: Value) -> Vec<&str> {
    let baseline = &run.summary.baseline;
    let failed = || run.summary.rows.iter().any(|row| row.key.system == *baseline && row.failure.is_some());
    let dull = value.is_ratio() && !failed();
    labels::systems(run).into_iter().filter(|system| !(dull && system == baseline)).collect()
}

fn shown(run: &StoredRun, value: Value, case: &str, system: &str) -> String {
    run.summary.row(case, system).map_or_else(String::new, |row| value.of(run, row).text)
}

/// Under a heading for each model and cluster, where these differ.
fn systems_across(run: &StoredRun, value: Value) -> PaperTable {
    let (systems, cases) = (told(run, value), labels::cases(run));
    let inner = CaseLabels::new(run, &cases, &[Part::Model, Part::Cluster]);
    let outer = CaseLabels::new(run, &cases, &[Part::Gpus, Part::Gate, Part::Layer, Part::Rest]);
    let split = !inner.told().is_empty();
    let row = |(key, name): (&RunKey, String)| {
        let name = if split { inner.whole(key) } else { name };
        let cells = systems.iter().map(|system| shown(run, value, &key.case, system));
        (if split { outer.whole(key) } else { String::new() }, std::iter::once(name).chain(cells).collect())
    };
    let groups = labels::panels(named(run).into_iter().map(row));
    let names = systems.iter().map(|system| system_name(run, system));
    PaperTable {
        header: std::iter::once("Case".to_owned()).chain(names).collect(),
        groups: groups.into_iter().map(|(heading, rows)| RowGroup { heading, rows }).collect(),
    }
}

fn cases_across(run: &StoredRun, value: Value) -> PaperTable {
    let cases = named(run);
    let row = |system: &str| {
        let cells = cases.iter().map(|(key, _)| shown(run, value, &key.case, system));
        std::iter::once(system_name(run, system)).chain(cells).collect()
    };
    let names = cases.iter().map(|(_, name)| name.clone());
    PaperTable {
        header: std::iter::once("System".to_owned()).chain(names).collect(),
        groups: vec![RowGroup { heading: String::new(), rows: told(run, value).into_iter().map(row).collect() }],
    }
}

/// A group for each case; a failure stands once.
fn values_across(run: &StoredRun, values: &[Value]) -> PaperTable {
    let row = |key: &RunKey, system: &str| {
        let mut failed = false;
        let cells = values.iter().map(|value| {
            let row = run.summary.row(&key.case, system);
            let cell = row.map_or_else(Default::default, |row| value.of(run, row));
            let fails = row.is_some_and(|row| row.failure.is_some()) && cell.number.is_none() && *value != Value::Plan;
            let again = fails && failed;
            failed |= fails;
            if again { String::new() } else { cell.text }
        });
        std::iter::once(system_name(run, system)).chain(cells).collect()
    };
    let (cases, systems) = (named(run), labels::systems(run));
    let heading = |name: &str| if cases.len() > 1 { name.to_owned() } else { String::new() };
    let group = |(key, name): &(&RunKey, String)| RowGroup {
        heading: heading(name),
        rows: systems
            .iter()
            .filter(|system| run.summary.row(&key.case, system).is_some())
            .map(|system| row(key, system))
            .collect(),
    };
    let names = values.iter().map(|value| value.heading().to_owned());
    PaperTable {
        header: std::iter::once("System".to_owned()).chain(names).collect(),
        groups: cases.iter().map(group).collect(),
    }
}

/// With the mark that figures have where it trained something else than its cases say.
fn system_name(run: &StoredRun, system: &str) -> String {
    let mark = if run.facts.drawn.otherwise.iter().any(|name| name == system) { " †" } else { "" };
    format!("{}{mark}", figures::title(system))
}

/// What is in the table, in a line.
fn title(run: &StoredRun, values: &[Value]) -> String {
    let over = values::baseline(run);
    let what: Vec<String> = values.iter().map(|value| value.noun(&over)).collect();
    let common = CaseLabels::new(run, &labels::cases(run), &[]).common();
    let text = format!("{}{common}", what.join(", "));
    let first = text.chars().next().map(char::to_uppercase).into_iter().flatten();
    first.chain(text.chars().skip(1)).collect()
}

/// What the table shows, how the numbers were obtained and on which routing, and what its marks mean.
fn caption(run: &StoredRun, values: &[Value]) -> String {
    let statistic = if values.contains(&Value::Speedup) {
        statistic_note(run, ["speedups", "brackets"])
    } else {
        format!("after {} iterations of warm-up", run.facts.warmup)
    };
    format!(
        "{}; {}; {statistic}{}{}{}{}.",
        title(run, values),
        run.facts.origin,
        unreached_periods(&run.summary),
        values::notes(run, values),
        figures::otherwise_note(run),
        model_notes(&run.summary)
    )
}

fn csv(run: &StoredRun, values: &[Value]) -> Result<String> {
    let mut out = csv::Writer::from_writer(Vec::new());
    let columns = |value: &Value| {
        let name = value.name();
        let spread =
            if *value == Value::Speedup { vec![format!("{name}_low"), format!("{name}_high")] } else { Vec::new() };
        std::iter::once(name).chain(spread)
    };
    let header = ["case", "system", "status"].map(str::to_owned).into_iter().chain(values.iter().flat_map(columns));
    out.write_record(header)?;
    for row in &run.summary.rows {
        let mut cells = vec![row.key.case.clone(), row.key.system.clone(), row.status().name().to_owned()];
        for value in values {
            let cell = value.of(run, row);
            let number = |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
            cells.push(if *value == Value::Plan { cell.text } else { number(cell.number) });
            if *value == Value::Speedup {
                cells.extend([0, 1].map(|end| number(cell.interval.map(|interval| interval[end]))));
            }
        }
        out.write_record(cells)?;
    }
    String::from_utf8(out.into_inner()?).context("text")
}
