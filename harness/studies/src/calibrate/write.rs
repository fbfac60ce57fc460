//! A cluster's TOML with other constants: what changes is written, with its uncertainty and source; comments, order and all
//! else stay as they are in the file.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike, Value};
use workloads::Cluster;
use workloads::cluster::Constant;
use workloads::measured::{Line, MeasuredOperation, Passes};

use super::constants::Fitted;

/// Puts fitted values into a cluster, with where they come from. What a fit did not determine stays as it is. Constants of the gate
/// are no part of it.
pub fn apply(cluster: &mut Cluster, fitted: &[Fitted], source: &str) {
    for (name, constant) in cluster.constants_mut() {
        if let Some(fitted) = fitted.iter().find(|fitted| fitted.name == name && fitted.determined()) {
            *constant = Constant {
                value: rounded(fitted.value),
                uncertainty: fitted.uncertainty.is_finite().then(|| rounded(fitted.uncertainty)),
                peak: constant.peak,
                source: match fitted.at_bound {
                    true => format!("{source}; at the bound of the fit"),
                    false => source.to_owned(),
                },
            };
        }
    }
}

/// To four significant digits: more than any fit determines.
pub fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// The TOML of `before`, changed to that of `after`: names, description and constants, and without measured operations where `after`
/// has none.
///
/// # Errors
/// A text that is not the TOML of `before`.
pub fn updated(text: &str, before: &Cluster, after: &Cluster) -> Result<String> {
    let mut document: DocumentMut = text.parse()?;
    for (path, from, to) in [
        ("name", &before.name, &after.name),
        ("description", &before.description, &after.description),
        ("gpu.name", &before.gpu.name, &after.gpu.name),
    ] {
        if from != to {
            let (table, key) = place(&mut document, path)?;
            set(table, key, Some(to.as_str().into()));
        }
    }
    let constants = before.constants();
    let stays = |path: &str| after.constants().iter().any(|(known, ..)| known == path);
    for (path, ..) in constants.iter().filter(|(path, ..)| !stays(path)) {
        let (table, key) = place(&mut document, path)?;
        table.remove(key);
    }
    for (path, to, _) in after.constants() {
        let from = constants.iter().find(|(known, ..)| *known == path).map(|(_, from, _)| *from);
        if from != Some(to) {
            let (table, key) = place(&mut document, &path)?;
            // What the base does not state is added behind the rest of its table.
            if from.is_none() {
                table.insert(key, Item::Value(Value::InlineTable(InlineTable::new())));
            }
            let constant = table.get_mut(key).with_context(|| format!("no {path}"))?;
            write_constant(constant, to).with_context(|| format!("{path} is not a table"))?;
        }
    }
    if after.gpu.measured.is_empty() {
        without_measured(&mut document);
    }
    Ok(document.to_string())
}

fn without_measured(document: &mut DocumentMut) {
    if let Some(gpu) = document.get_mut("gpu").and_then(Item::as_table_like_mut) {
        gpu.remove("measured");
    }
}

/// The TOML of a cluster with these measured operations and the trainer's program, whose gradients have this size, instead of those that it
/// states.
///
/// # Errors
/// A text that is no TOML.
pub fn with_measured(text: &str, gradient: &Constant, measured: &[MeasuredOperation]) -> Result<String> {
    let mut document: DocumentMut = text.parse()?;
    document.remove("program");
    without_measured(&mut document);
    let quoted = |text: &str| Value::from(text).to_string();
    let mut text = document.to_string();
    let Constant { value, source, .. } = gradient;
    let _ = write!(text, "\n[program]\ngradient = {{ value = {}, source = {} }}\n", number(*value), quoted(source));
    text.push_str("activations = \"counted\"\noverlap_state = false\n");
    for of @ MeasuredOperation { operation, shape, queued, issue, source, .. } in measured {
        let _ = write!(text, "\n[[gpu.measured]]\noperation = \"{}\"\nshape = {}\n", operation.name(), quoted(shape));
        let lines = |passes: &Passes| {
            let both = [("forward", Some(passes.forward)), ("backward", passes.backward)];
            both.into_iter().filter_map(|(pass, line)| Some(format!("{pass} = {}", inline(line?)))).collect::<Vec<_>>()
        };
        lines(&of.alone()).iter().for_each(|line| text.extend([line, "\n"]));
        for (what, passes) in [("queued", queued), ("issue", issue)] {
            let Some(passes) = passes else { continue };
            let _ = writeln!(text, "{what} = {{ {} }}", lines(passes).join(", "));
        }
        let _ = writeln!(text, "source = {}", quoted(source));
    }
    Ok(text)
}

/// A line as an inline table.
fn inline(Line { start, unit, call, error }: Line) -> String {
    let error = error.map_or(String::new(), |error| format!(", error = {}", number(error)));
    let call = if call == 0.0 { String::new() } else { format!(", call = {}", number(call)) };
    format!("{{ start = {}, unit = {}{call}{error} }}", number(start), number(unit))
}

fn number(number: f64) -> String {
    number_value(rounded(number)).to_string()
}

/// The table that holds the last part of `path`, and that part.
fn place<'a, 'p>(document: &'a mut DocumentMut, path: &'p str) -> Result<(&'a mut dyn TableLike, &'p str)> {
    let parts: Vec<&str> = path.split('.').collect();
    let (table, section, key) = match parts[..] {
        [key] => return Ok((document.as_table_mut(), key)),
        [section, key] => (document.get_mut(section).and_then(Item::as_table_like_mut), section, key),
        [section, list, name, key] => {
            let tables =
                document.get_mut(section).and_then(|item| item.get_mut(list)).and_then(Item::as_array_of_tables_mut);
            let of_name = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(name);
            let table = tables.and_then(|tables| tables.iter_mut().find(of_name));
            (table.map(|table| table as &mut dyn TableLike), name, key)
        }
        _ => bail!("no constant {path}"),
    };
    Ok((table.with_context(|| format!("no table [{section}]"))?, key))
}

/// The keys of a constant, in the order in which they are written.
const KEYS: [&str; 4] = ["value", "uncertainty", "peak", "source"];

fn write_constant(item: &mut Item, constant: &Constant) -> Option<()> {
    let table = item.as_table_like_mut()?;
    let numbers = [Some(constant.value), constant.uncertainty, constant.peak].map(|number| number.map(number_value));
    let values = numbers.into_iter().chain([Some(constant.source.as_str().into())]);
    KEYS.iter().zip(values).for_each(|(key, value)| set(table, key, value));
    if let Some(inline) = item.as_inline_table_mut() {
        let rank = |key: &str| KEYS.iter().position(|known| *known == key);
        inline.sort_values_by(|a, _, b, _| rank(a).cmp(&rank(b)));
        inline.fmt();
    }
    Some(())
}

/// Written as people write constants: 6.5e13.
fn number_value(number: f64) -> Value {
    format!("{number:e}").parse().unwrap_or_else(|_| number.into())
}

/// Sets or removes a value; what surrounds the old one, such as a comment behind it, stays.
fn set(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        table.remove(key);
        return;
    };
    if let Some(old) = table.get(key).and_then(Item::as_value) {
        *value.decor_mut() = old.decor().clone();
    }
    table.insert(key, Item::Value(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::cluster::Activations;
    use workloads::measured::Operation;

    fn changed(before: &Cluster) -> Cluster {
        let mut after = before.clone();
        after.name = "other".to_owned();
        after.description.push_str(" \"quoted\" \\ ");
        after.gpu.gemm_rate.uncertainty = Some(1.5e12);
        after.gpu.memory_bandwidth.peak = None;
        after.network.intra_bandwidth.value = 1.25e11;
        after.host.exchange = Some(after.host.synchronisation.clone());
        after
    }

    #[test]
    fn what_is_no_longer_stated_is_gone() {
        let text = Cluster::text("test", "h100x8").unwrap();
        let before = Cluster::parse("t.toml", text).unwrap();
        let mut with = before.clone();
        with.network.intra_both = Some(with.network.intra_bandwidth.clone());
        let stated = updated(text, &before, &with).unwrap();
        assert_eq!(Cluster::parse("t.toml", &stated).unwrap(), with);
        assert_eq!(Cluster::parse("t.toml", &updated(&stated, &with, &before).unwrap()).unwrap(), before);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for name in Cluster::names() {
            let text = Cluster::text("test", name).unwrap();
            let before = Cluster::parse("t.toml", text).unwrap();
            assert_eq!(updated(text, &before, &before).unwrap(), text);
            let after = changed(&before);
            assert_eq!(Cluster::parse("t.toml", &updated(text, &before, &after).unwrap()).unwrap(), after);
        }
    }

    #[test]
    fn comments_and_order_stay() {
        let text = Cluster::text("test", "inky").unwrap();
        let line = text.lines().find(|line| line.starts_with("peer_start")).unwrap();
        let own = "# Ours.\n[network.peer_start] # odd, but TOML\nsource = \"a guess\" # not ours\nvalue = 1e-5\n";
        let text = format!("# On top.\n{}\n{own}", text.replace(line, ""));
        let before = Cluster::parse("t.toml", &text).unwrap();
        let mut after = before.clone();
        let constant = |value| Constant { value, uncertainty: Some(2e-6), peak: None, source: "fitted".to_owned() };
        (after.network.peer_start, after.network.call_start) = (constant(3.5e-5), constant(2e-4));
        let call = text.lines().find(|line| line.starts_with("call_start")).unwrap();
        let expected =
            text.replace(call, "call_start = { value = 2e-4, uncertainty = 2e-6, source = \"fitted\" }").replace(
                "\"a guess\" # not ours\nvalue = 1e-5\n",
                "\"fitted\" # not ours\nvalue = 3.5e-5\nuncertainty = 2e-6\n",
            );
        assert_eq!(updated(&text, &before, &after).unwrap(), expected);
    }

    #[test]
    fn measured_operations_are_read_back() {
        let text = Cluster::text("test", "h100x8").unwrap();
        let gradient = Constant { value: 4.0, uncertainty: None, peak: None, source: "counted".to_owned() };
        let line = |start, error| Line { start, unit: 1.5e-9, error, ..Line::default() };
        let (block, optimizer) = (Operation::Block, Operation::Optimizer);
        let of = |operation, shape: &str, backward| {
            let (shape, source) = (shape.to_owned(), "a \"test\"".to_owned());
            let passes = Passes { forward: line(3e-6, Some(0.5)), backward };
            let (queued, issue) = (Some(passes), Some(passes));
            MeasuredOperation { operation, shape, forward: line(0.0, None), backward, queued, issue, source }
        };
        let alone = |of: MeasuredOperation| MeasuredOperation { queued: None, issue: None, ..of };
        let measured = [of(block, "8 wide, 4 tokens", Some(line(1e-6, Some(0.02)))), alone(of(optimizer, "", None))];
        let once = with_measured(text, &gradient, &measured).unwrap();
        let cluster = Cluster::parse("t.toml", &once).unwrap();
        assert_eq!((cluster.gpu.measured.as_slice(), cluster.gradient_bytes()), (&measured[..], Some(4.0)));
        assert_eq!((cluster.program.activations, cluster.program.overlap_state), (Activations::Counted, Some(false)));
        assert_eq!(with_measured(&once, &gradient, &measured).unwrap(), once, "what was there is replaced");
        let mut without = cluster.clone();
        without.gpu.measured.clear();
        let text = updated(&once, &cluster, &without).unwrap();
        assert_eq!(Cluster::parse("t.toml", &text).unwrap(), without);
    }

    #[test]
    fn only_fitted_constants_change() {
        let before = Cluster::named("test", "inky").unwrap();
        let mut after = before.clone();
        let fitted = |name: &str, at_bound| {
            let (name, uncertainty) = (name.to_owned(), f64::INFINITY);
            Fitted { name, value: 1.23456e-3, uncertainty, at_bound }
        };
        // No measurement depends on the second.
        apply(&mut after, &[fitted("host.block", true), fitted("network.rooted_bandwidth", false)], "fitted to x");
        assert_eq!(after.host.block.value, 1.235e-3);
        assert_eq!(after.host.block.source, "fitted to x; at the bound of the fit");
        assert_eq!((after.gpu, after.network), (before.gpu, before.network));
    }
}
