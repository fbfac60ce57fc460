//! `moebench new`: a suite, model, cluster or system to begin from, as a file with comments that works as it is.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use workloads::fields;
use workloads::suite::{SuiteFile, is_path};
use workloads::{Cluster, Model, Suite};

use crate::failure::{Failure, OrFail};
use crate::output;

/// `moebench new`.
#[derive(Subcommand)]
pub enum NewCommand {
    /// A suite: cases, systems and repetitions
    Suite(NewArgs),
    /// A model, of one that comes with moebench [default: gpt-tiny]
    Model(NewArgs),
    /// A cluster, of one that comes with moebench, whose constants hold until you know yours [default: h100x8]
    Cluster(NewArgs),
    /// A training system: a file of Rust, and its line in the table of systems where this is moebench's own folder
    System(NewSystemArgs),
}

#[derive(Args)]
pub struct NewArgs {
    /// Its name
    name: String,
    /// Begin from this one (see `moebench list`)
    #[arg(long, value_name = "NAME")]
    like: Option<String>,
    /// The file [default: NAME.toml]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub struct NewSystemArgs {
    /// Its name: small letters, digits and `-`, for example hot-swap
    name: String,
}

/// # Errors
/// A name that cannot be, an unknown one to begin from, or a file that is there or cannot be written.
pub fn run(command: &NewCommand) -> Result<(), Failure> {
    match command {
        NewCommand::Suite(args) => described(args, suite(args).or_input()?, "run FILE"),
        NewCommand::Model(args) => described(args, model(args).or_input()?, "run smoke --set model=FILE"),
        NewCommand::Cluster(args) => described(args, cluster(args).or_input()?, "run smoke --set cluster=FILE"),
        NewCommand::System(args) => system(&args.name),
    }
}

fn suite(args: &NewArgs) -> Result<String> {
    let text = match &args.like {
        None => include_str!("suite.toml").replace("NAME", &args.name),
        Some(name) => {
            Suite::named("--like", name)?;
            renamed(SuiteFile::text("--like", name)?, name, args)
        }
    };
    Ok(fields::with_choices(&fields::SUITE, &text))
}

fn model(args: &NewArgs) -> Result<String> {
    let name = args.like.as_deref().unwrap_or("gpt-tiny");
    Ok(fields::with_choices(&fields::MODEL, &renamed(Model::text("--like", name)?, name, args)))
}

fn cluster(args: &NewArgs) -> Result<String> {
    let name = args.like.as_deref().unwrap_or("h100x8");
    Ok(fields::with_choices(&fields::CLUSTER, &renamed(Cluster::text("--like", name)?, name, args)))
}

/// Another's TOML under a name of its own. What is said of the other is no longer true once it is changed.
fn renamed(text: &str, other: &str, args: &NewArgs) -> String {
    let mut top = true;
    let line = |line: &str| {
        top &= !line.starts_with('[');
        match line.split_once(" = ").map(|(key, _)| key) {
            Some("name") if top => format!("name = \"{}\"\n", args.name),
            Some(key @ ("source" | "description")) if top => format!("{key} = \"begun from {other}\"\n"),
            _ => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// Writes a description, and says how to try it.
fn described(args: &NewArgs, text: String, tried: &str) -> Result<(), Failure> {
    let name = &args.name;
    let fit = (1..=100).contains(&name.len()) && name.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
    if !fit || name.starts_with(['.', '-']) {
        return Err(Failure::Input(anyhow::anyhow!(
            "`{name}`: expected a name of up to 100 letters, digits, `.`, `_` and `-` that begins with none of the last three"
        )));
    }
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
    write(&path, &text).or_input()?;
    let file = match path.display().to_string() {
        file if is_path(&file) => file,
        file => format!("./{file}"),
    };
    output::print(format!("{}: moebench {}", path.display(), tried.replace("FILE", &file))).or_run()
}

/// Writes a file that is not there yet.
fn write(path: &Path, text: &str) -> Result<()> {
    let file = fs::File::options().write(true).create_new(true).open(path);
    let mut file = match file {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            bail!("{}: is there already: expected a file that is not", path.display())
        }
        file => file.with_context(|| format!("{}: cannot be written", path.display()))?,
    };
    file.write_all(text.as_bytes()).with_context(|| format!("{}: cannot be written", path.display()))
}

/// A system that is compiled and run by the tests, under its own name.
const SYSTEM: &str = include_str!("../../../../tests/added/template.rs");
const ZOO: &str = "systems/src/zoo";

fn system(name: &str) -> Result<(), Failure> {
    let module = name.replace('-', "_");
    check_system(name, &module).or_input()?;
    let title = titled(name);
    let text = SYSTEM
        .replace("use systems::", "use crate::")
        .replace("pub(crate) struct", "pub struct")
        .replace("my-system", name)
        .replace("MySystem", &title);
    let table = Path::new(ZOO).join("mod.rs");
    let line = format!("    {module}::{{{title}}},");
    let Ok(known) = fs::read_to_string(&table) else {
        write(Path::new(&format!("{module}.rs")), &text).or_input()?;
        return output::print(format!(
            "{module}.rs: it belongs into {ZOO}, and into the table of {ZOO}/mod.rs this line:\n{line}"
        ))
        .or_run();
    };
    let with_line = in_table(&known, &line).or_input()?;
    let path = Path::new(ZOO).join(format!("{module}.rs"));
    write(&path, &text).or_input()?;
    fs::write(&table, with_line).with_context(|| format!("{}: cannot be written", table.display())).or_run()?;
    output::print(format!(
        "{}, and a line in {}: cargo build, then moebench run smoke --systems expert-only,{name}",
        path.display(),
        table.display()
    ))
    .or_run()
}

fn check_system(name: &str, module: &str) -> Result<()> {
    let fit = name.split('-').all(|word| {
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    });
    ensure!(fit, "`{name}`: expected words of small letters and digits, joined by `-`, for example hot-swap");
    ensure!(systems::by_name(name).is_err(), "`{name}`: is there already");
    ensure!(!KEYWORDS.contains(&module), "`{name}`: is a word of Rust's own: expected another, for example my-{name}");
    let title = titled(name);
    let taken = in_template(&title);
    ensure!(!taken, "`{name}`: its file has another `{title}` already: expected another name, for example my-{name}");
    Ok(())
}

/// Words that no module can be called by, of Rust's edition 2024.
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn", "else",
    "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
    "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static", "struct", "super", "trait", "true",
    "try", "type", "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield",
];

/// Whether the template's code uses a name: one of its imports, of its own types, or of what every file of Rust knows.
fn in_template(title: &str) -> bool {
    let code = SYSTEM.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains('"'));
    code.flat_map(|line| line.split(|c: char| !c.is_alphanumeric())).any(|word| word == title && word != "MySystem")
}

/// The name as a type: `HotSwap` of `hot-swap`.
fn titled(name: &str) -> String {
    name.split('-').map(capitalised).collect()
}

fn capitalised(word: &str) -> String {
    let (first, rest) = word.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// The table of systems with a line more, its last.
fn in_table(text: &str, line: &str) -> Result<String> {
    let end = text.rfind("\n}").context("systems/src/zoo/mod.rs: found no table of systems")?;
    Ok(format!("{}\n{line}{}", &text[..end], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_added_to_the_table_of_systems() {
        let text = include_str!("../../../../systems/src/zoo/mod.rs");
        let longer = in_table(text, "    hot_swap::{HotSwap},").unwrap();
        assert!(longer.ends_with("},\n    hot_swap::{HotSwap},\n}\n"), "{longer}");
        assert_eq!(longer.replace("    hot_swap::{HotSwap},\n", ""), text);
        assert!(in_table("nothing", "x").is_err());
    }

    #[test]
    fn names_of_systems_are_names_of_modules() {
        for name in ["hot-swap", "a", "v2-fast3"] {
            check_system(name, &name.replace('-', "_")).unwrap();
        }
        for name in ["", "-", "Hot", "hot_swap", "2fast", "hot-", "smartmoe", "mod", "a b"] {
            assert!(check_system(name, &name.replace('-', "_")).is_err(), "{name}");
        }
        for (name, expected) in [
            ("move", "is a word of Rust's own"),
            ("self", "is a word of Rust's own"),
            ("policy", "another `Policy`"),
            ("system", "another `System`"),
            ("swap-hottest", "another `SwapHottest`"),
            ("vec", "another `Vec`"),
            ("some", "another `Some`"),
        ] {
            let error = check_system(name, &name.replace('-', "_")).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(&format!("for example my-{name}")), "{error}");
            check_system(&format!("my-{name}"), &format!("my-{name}").replace('-', "_")).unwrap();
        }
    }
}
