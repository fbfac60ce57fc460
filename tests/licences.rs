//! The licences of all dependencies: the page is that of Cargo.lock, and all of them are accepted.

use std::collections::BTreeSet;

const LOCK: &str = include_str!("../Cargo.lock");
const PAGE: &str = include_str!("../harness/LICENCES.md");

/// What may be distributed with this program under its own licences, in binaries as in sources. Whoever adds one has read it.
const ACCEPTED: [&str; 10] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Zlib",
];
/// Beside others, of data in tables of characters.
const BESIDE: [&str; 1] = ["Unicode-3.0"];

/// Name and version of each package that has a source: those of the workspace have none.
fn locked() -> BTreeSet<(String, String)> {
    let packages = LOCK.split("[[package]]").skip(1).filter(|package| package.contains("\nsource = "));
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_matches(['=', ' ', '"']).to_owned()
    };
    packages.map(|package| (field(package, "name ="), field(package, "version ="))).collect()
}

fn listed() -> Vec<[String; 3]> {
    let rows = PAGE.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| crate "));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches(['|', ' ']).split(" | ").collect();
        [0, 1, 2].map(|cell| cells.get(cell).unwrap_or(&"").trim().to_owned())
    })
    .collect()
}

/// One of the alternatives of an SPDX expression is accepted whole.
fn accepted(expression: &str) -> bool {
    let (own, beside) = (|one: &str| ACCEPTED.contains(&one.trim()), |one: &str| BESIDE.contains(&one.trim()));
    let all = |part: &str| part.split(" AND ").all(|one| own(one) || beside(one)) && part.split(" AND ").any(own);
    if let Some((inner, rest)) = expression.strip_prefix('(').and_then(|text| text.split_once(')')) {
        return accepted(inner) && rest.strip_prefix(" AND ").is_none_or(|rest| beside(rest) || accepted(rest));
    }
    expression.replace('/', " OR ").split(" OR ").any(all)
}

#[test]
fn licences_of_all_dependencies_are_listed() {
    let unused = PAGE.lines().filter_map(|line| line.strip_prefix("- ")?.split_once(' '));
    let unused: Vec<(String, String)> = unused.map(|(name, version)| (name.to_owned(), version.to_owned())).collect();
    let used = listed().into_iter().map(|[name, version, _]| (name, version));
    let page: BTreeSet<(String, String)> = used.chain(unused).collect();
    let stale: Vec<_> = page.symmetric_difference(&locked()).cloned().collect();
    assert!(stale.is_empty(), "harness/LICENCES.md is old: scripts/licences writes it again: {stale:?}");
}

#[test]
fn licences_of_all_dependencies_are_accepted() {
    let rows = listed();
    assert!(rows.len() > 200);
    for [name, version, licence] in rows {
        assert!(
            accepted(&licence),
            "{name} {version}: licence `{licence}`: not among those that tests/licences.rs accepts"
        );
    }
    for (expression, expected) in [
        ("MIT OR GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("Unlicense/MIT", true),
        ("(MIT OR GPL-3.0) AND Unicode-3.0", true),
        ("(MIT OR GPL-3.0) AND GPL-2.0", false),
        ("MIT AND Unicode-3.0", true),
        ("Unicode-3.0", false),
        ("", false),
    ] {
        assert_eq!(accepted(expression), expected, "{expression}");
    }
}
