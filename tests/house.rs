//! The house itself: layers, circles, sizes and the map, read from the sources. What ARCHITECTURE.md says about the code is held here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::Folder;

const CRATES: [(&str, &str); 8] = [
    ("workloads", "workloads/src"),
    ("systems", "systems/src"),
    ("harness", "harness/src"),
    ("runs", "harness/runs/src"),
    ("studies", "harness/studies/src"),
    ("trainer", "harness/trainer/src"),
    ("chart", "harness/chart/src"),
    ("formats", "harness/formats/src"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the harness lies below the root").to_path_buf()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Path from the root and text of each source file.
fn sources(folder: &str) -> Vec<(String, String)> {
    files_below(&root().join(folder))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| (path.strip_prefix(root()).unwrap().display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The lines before a file's unit tests that are not comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().take_while(|line| line.trim() != "#[cfg(test)]").filter(|line| !line.trim_start().starts_with("//"))
}

/// `crate::` paths of a file, as text behind `crate::`, one for each leaf of a `use` tree.
fn imports(text: &str) -> Vec<String> {
    let code: String = code(text).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            leaves(&code[at + "crate::".len()..], String::new(), &mut found);
        }
    }
    found
}

/// Reads one path or one braced tree; returns how many bytes it took.
fn leaves(text: &str, prefix: String, found: &mut Vec<String>) -> usize {
    let name = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let rest = &text[name..];
    let path = format!("{prefix}{}", &text[..name]);
    if let Some(after) = rest.strip_prefix("::") {
        return name + 2 + leaves(after, format!("{path}::"), found);
    }
    if name > 0 || !rest.starts_with('{') {
        found.push(path);
        return name;
    }
    let mut at = 1;
    loop {
        at += rest[at..].len() - rest[at..].trim_start().len();
        at += leaves(&rest[at..], prefix.clone(), found);
        match rest[at..].trim_start().chars().next() {
            Some(',') => at += rest[at..].find(',').unwrap() + 1,
            Some('}') => return at + rest[at..].find('}').unwrap() + 1,
            _ => return at + skip_alias(&rest[at..]),
        }
        if rest[at..].trim_start().starts_with('}') {
            return at + rest[at..].find('}').unwrap() + 1;
        }
    }
}

fn skip_alias(text: &str) -> usize {
    text.find('}').map_or(text.len(), |end| end + 1)
}

/// The module path of a file, and the file of each module. A crate's `lib.rs` is the front door, not a room: it re-exports.
fn modules(crate_root: &str) -> BTreeMap<String, (String, String)> {
    let mut modules = BTreeMap::new();
    for (path, text) in sources(crate_root) {
        let inside = path.strip_prefix(crate_root).unwrap().trim_start_matches('/').trim_end_matches(".rs");
        if !["lib", "main"].contains(&inside) {
            modules.insert(inside.trim_end_matches("/mod").replace('/', "::"), (path, text));
        }
    }
    modules
}

/// The module that an import reaches: the longest known prefix of its path.
fn reached(modules: &BTreeMap<String, (String, String)>, import: &str) -> Option<String> {
    let mut path = import;
    loop {
        if modules.contains_key(path) {
            return Some(path.to_owned());
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// For each module the modules that it imports.
fn graph(modules: &BTreeMap<String, (String, String)>) -> BTreeMap<String, BTreeSet<String>> {
    let imported = |name: &String, text: &String| {
        imports(text).iter().filter_map(|import| reached(modules, import)).filter(|to| to != name).collect()
    };
    modules.iter().map(|(name, (_, text))| (name.clone(), imported(name, text))).collect()
}

/// All modules that can be reached from one.
fn closure(graph: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(module) = open.pop() {
        for next in &graph[module] {
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen
}

fn folder(path: &str) -> &Path {
    Path::new(path).parent().unwrap()
}

#[test]
fn use_trees_are_read() {
    let text = "use crate::a::{B, c::D, e::{F, G as H}};\nuse crate::x::Y;\nlet z = crate::q::r();\n#[cfg(test)]\nuse crate::never;";
    assert_eq!(imports(text), ["a::B", "a::c::D", "a::e::F", "a::e::G", "x::Y", "q::r"]);
}

#[test]
fn files_of_different_folders_form_no_import_circle() {
    let systems = modules("systems/src");
    assert!(closure(&graph(&systems), "plan::search").contains("price::cost"), "the search prices plans");
    let mut circles = BTreeSet::new();
    for (_, crate_root) in CRATES {
        let modules = modules(crate_root);
        let graph = graph(&modules);
        let closures: BTreeMap<&String, BTreeSet<String>> =
            graph.keys().map(|name| (name, closure(&graph, name))).collect();
        for (from, reachable) in &closures {
            for to in reachable.iter().filter(|to| closures[to].contains(*from)) {
                let (one, other) = (&modules[*from].0, &modules[to].0);
                if folder(one) != folder(other) && one < other {
                    circles.insert(format!("{one} <-> {other}"));
                }
            }
        }
    }
    assert!(circles.is_empty(), "import circles:\n{}", circles.into_iter().collect::<Vec<_>>().join("\n"));
}

/// Invariant 2.
#[test]
fn systems_and_workloads_touch_no_file_clock_or_environment() {
    let words = ["std::fs", "fs::File", "std::env", "Instant", "SystemTime", "std::net", "std::thread", "println!"];
    for folder in ["systems/src", "workloads/src"] {
        for (path, text) in sources(folder) {
            for word in words {
                assert!(!code(&text).any(|line| line.contains(word)), "{path} uses {word}");
            }
        }
    }
}

/// Invariant 1.
#[test]
fn no_engine_knows_a_system_by_name() {
    for folder in ["harness/runs/src", "harness/trainer/src", "systems/src/iteration", "systems/src/price"] {
        for (path, text) in sources(folder) {
            for system in systems::ALL {
                let quoted = format!("\"{}", system.name());
                assert!(!code(&text).any(|line| line.contains(&quoted)), "{path} names {}", system.name());
            }
        }
    }
}

#[test]
fn a_system_imports_no_other() {
    let modules: Vec<String> = files_below(&root().join("systems/src/zoo"))
        .iter()
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "mod")
        .collect();
    for (path, text) in sources("systems/src/zoo") {
        let own = Path::new(&path).file_stem().unwrap().to_str().unwrap();
        for other in modules.iter().filter(|name| *name != own && own != "mod") {
            for way in ["zoo", "super"] {
                let import = format!("{way}::{other}");
                assert!(!code(&text).any(|line| line.contains(&import)), "{path} imports {other}");
            }
        }
    }
}

/// The workspace's crates that a crate's `[dependencies]` name.
fn dependencies(manifest: &str) -> BTreeSet<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let names = section.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(['=', '.']).next());
    let known = |name: &str| CRATES.iter().any(|(known, _)| *known == name);
    names.map(str::trim).filter(|name| known(name)).collect()
}

/// Crates point one way, `workloads` to `harness`: what a crate depends on stands before it.
#[test]
fn crates_depend_on_those_before_them_alone() {
    let below = [
        ("workloads", &[][..]),
        ("systems", &["workloads"]),
        ("chart", &[]),
        ("formats", &["workloads", "systems"]),
        ("trainer", &["workloads", "systems"]),
        ("runs", &["workloads", "systems", "chart", "formats", "trainer"]),
        ("studies", &["workloads", "systems", "chart", "formats", "trainer", "runs"]),
        ("harness", &["workloads", "systems", "chart", "formats", "trainer", "runs", "studies"]),
    ];
    assert_eq!(below.len(), CRATES.len());
    for (name, allowed) in below {
        let (_, sources) = CRATES.iter().find(|(known, _)| *known == name).unwrap();
        let manifest = fs::read_to_string(root().join(sources).parent().unwrap().join("Cargo.toml")).unwrap();
        assert_eq!(dependencies(&manifest), allowed.iter().copied().collect(), "{name}");
    }
}

#[test]
fn the_harness_stays_small() {
    for (folder, limit) in [("harness/src", 6_500), ("harness/runs/src", 9_500), ("harness/studies/src", 9_500)] {
        let lines: usize = sources(folder).iter().map(|(_, text)| text.lines().count()).sum();
        assert!(lines < limit, "{folder} has {lines} lines");
    }
}

#[test]
fn the_top_level_is_the_one_that_was_asked_for() {
    let wanted = [
        "ARCHITECTURE.md",
        "ARTIFACT.md",
        "CITATION.cff",
        "Cargo.lock",
        "Cargo.toml",
        "Dockerfile",
        "GUIDE.md",
        "LICENSE",
        "README.md",
        "harness",
        "results",
        "rustfmt.toml",
        "scripts",
        "systems",
        "target",
        "tests",
        "workloads",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || wanted.contains(&name.as_str()), "{name} lies at the top level");
    }
}

/// Every path and every test that the map names exists.
#[test]
fn the_map_is_true() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let everything: String =
        CRATES.iter().map(|(_, folder)| *folder).chain(["tests"]).flat_map(sources).map(|(_, text)| text).collect();
    let mut checked = 0;
    for word in map.split('`').skip(1).step_by(2) {
        let (path, item) =
            word.split_once(':').map_or((word, None), |(path, item)| (path, Some(item.trim_start_matches(':'))));
        if path.contains('/') && !path.contains(['*', ' ', '<']) {
            let at = root().join(path);
            assert!(at.exists(), "ARCHITECTURE.md names {path}, which does not exist");
            if let Some(item) = item {
                let name = item.rsplit("::").next().unwrap();
                let text = fs::read_to_string(&at).unwrap();
                assert!(text.contains(name), "ARCHITECTURE.md names {item} in {path}, which has no such item");
            }
            checked += 1;
        } else if word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
            assert!(everything.contains(word), "ARCHITECTURE.md names {word}, which no source has");
            checked += 1;
        }
    }
    assert!(checked > 60, "only {checked} names were checked");
}

/// Suites of results find what they name, but for the cluster that `scripts/gpu emulation` measures first.
#[test]
fn suites_of_results_run_where_they_lie() {
    let is_suite = |text: &str| text.contains("\n[[cases]]") && !text.contains("cluster = \"here.toml\"");
    let files =
        files_below(&root().join("results")).into_iter().filter(|path| path.extension() == Some("toml".as_ref()));
    let suites: Vec<PathBuf> = files.filter(|path| is_suite(&fs::read_to_string(path).unwrap())).collect();
    assert!(suites.len() >= 16, "{suites:?}");
    for suite in suites {
        Folder::new().succeed(&format!("run {} --engine simulate --dry-run", suite.display()));
    }
}
