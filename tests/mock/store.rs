//! The folder of a run: what is refused, joined, replaced and left behind.

use std::fs;
use std::io::Write;

use anyhow::bail;
use runs::engines::{Engine, Extent};
use runs::prepare::{self, PreparedRun};
use runs::provenance::{Inputs, Provenance};
use runs::records::RunRecord;
use runs::store::{Store, write_atomically, write_figure, write_text};
use workloads::EngineKind;

use super::engine::{MockEngine, suite, trace};
use crate::support::Folder;

fn provenance(suite: &str) -> Provenance {
    Provenance::new(EngineKind::Simulated, Inputs { suite: suite.to_owned(), ..Inputs::default() })
}

#[test]
fn a_folder_of_another_run_is_refused_until_it_may_go() {
    let folder = Folder::new();
    let store = Store::open(folder.path(), &provenance("one"), false).unwrap();
    store.write_text("tables/summary.tex", "one").unwrap();
    // One process writes, even of the same run.
    let twice = Store::open(folder.path(), &provenance("one"), true).err().unwrap().to_string();
    assert!(twice.contains("another process writes a run there"), "{twice}");
    drop(store);
    // The same run may go on, another may not.
    drop(Store::open(folder.path(), &provenance("one"), false).unwrap());
    let refused = Store::open(folder.path(), &provenance("two"), false).err().unwrap().to_string();
    assert!(refused.contains("holds another run"), "{refused}");
    assert!(folder.join("tables/summary.tex").exists());
    drop(Store::open(folder.path(), &provenance("two"), true).unwrap());
    assert!(!folder.join("tables/summary.tex").exists());
}

/// Whoever reads a run back is not who ran it.
#[test]
fn a_run_that_ended_goes_on_saying_who_ran_it() {
    let folder = Folder::new();
    let of = |host: &str| Provenance { host: host.to_owned(), ..provenance("one") };
    let opened = |host: &str, overwrite: bool| {
        Store::open(folder.path(), &of(host), overwrite).unwrap();
        runs::provenance::read(folder.path()).unwrap().host
    };
    assert_eq!((opened("a", false), opened("b", false)), ("a".to_owned(), "b".to_owned()));
    let end = || write_text(&folder.join("spans.parquet"), "").unwrap();
    end();
    assert_eq!(opened("c", false), "b");
    // Run again, for more, and interrupted.
    folder.write("cases/one.spans.parquet", "");
    assert_eq!(opened("d", false), "d");
    fs::remove_dir_all(folder.join("cases")).unwrap();
    assert_eq!((opened("e", false), opened("f", true)), ("d".to_owned(), "f".to_owned()));
    end();
    Store::open(folder.path(), &Provenance { host: "g".to_owned(), ..provenance("two") }, true).unwrap();
    assert_eq!(runs::provenance::read(folder.path()).unwrap().host, "g");
}

#[test]
fn cases_are_joined_in_the_order_asked_for_and_read_back() {
    let folder = Folder::new();
    let store = Store::open(folder.path(), &provenance("one"), false).unwrap();
    let (trace, engine) = (trace(), MockEngine::default());
    let cases = prepare::cases("test", &suite(), |_| &trace).unwrap();
    let extent = Extent { iterations: suite().iterations, timelines: false };
    for case in cases.iter().rev() {
        let record = |run: &PreparedRun| {
            let outcome = engine.run(run, run.plan().unwrap().plan, extent, &|| ()).unwrap();
            RunRecord::new(run, engine.kind, outcome)
        };
        assert!(!store.has_runs(&case.id()));
        store.write_runs(&case.id(), &case.runs.iter().map(record).collect::<Vec<_>>()).unwrap();
        assert!(store.has_runs(&case.id()));
    }
    assert!(store.finished().unwrap().is_none());
    let joined = store.join(&cases).unwrap();
    assert_eq!(joined, engine.rows(&suite()));
    assert_eq!(store.finished().unwrap(), Some(joined));
    assert!(!store.path("cases").exists());
}

#[test]
fn a_figure_keeps_the_dots_of_its_name_and_leaves_no_temporary_file() {
    let folder = Folder::new();
    let figure = chart::GroupedBars::default().draw().unwrap();
    write_figure(&folder.path().join("capacity-1.2"), &figure, "How it came to be.").unwrap();
    let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["capacity-1.2.caption.txt", "capacity-1.2.pdf", "capacity-1.2.svg"]);
}

#[test]
fn a_write_that_fails_leaves_the_older_file() {
    let folder = Folder::new();
    let path = folder.path().join("file");
    write_text(&path, "old").unwrap();
    let error = write_atomically(&path, |file| {
        file.write_all(b"new")?;
        bail!("on purpose")
    });
    assert_eq!(format!("{:#}", error.unwrap_err()), format!("{}: cannot be written: on purpose", path.display()));
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
