//! Routing traces as files: what [`Importer`] reads, in files and folders. [`parquet`] writes them.

pub mod parquet;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use workloads::trace::import::{ImportOptions, Importer};
use workloads::trace::{self, RoutingTrace, SynthSpec};

/// The routing trace of every case of a suite; cases share what is the same.
#[derive(Default)]
pub struct CaseTraces {
    /// Each with what it was made from, if it was made for the suite.
    all: Vec<(Option<String>, Arc<RoutingTrace>)>,
    /// `[case]` its place in `all`; the first where nothing stands.
    of_case: Vec<usize>,
}

impl CaseTraces {
    /// The trace of a case, by its number in the suite.
    pub fn of(&self, case: usize) -> &RoutingTrace {
        let index = self.of_case.get(case).copied().unwrap_or(0);
        &self.all[index].1
    }

    /// The same, to keep.
    pub fn shared(&self, case: usize) -> Arc<RoutingTrace> {
        let index = self.of_case.get(case).copied().unwrap_or(0);
        Arc::clone(&self.all[index].1)
    }

    /// Every trace once.
    pub fn all(&self) -> impl Iterator<Item = &RoutingTrace> {
        self.all.iter().map(|(_, trace)| &**trace)
    }

    /// The names of all, each once.
    pub fn name(&self) -> String {
        each_once(self.all().map(RoutingTrace::name)).join("; ")
    }

    /// The trace of the next case: the one that was made from the same before, or a new one.
    pub(crate) fn push(&mut self, from: Option<String>, make: &dyn Fn() -> Result<Arc<RoutingTrace>>) -> Result<()> {
        let known = self.all.iter().position(|(other, _)| *other == from);
        let index = known.unwrap_or(self.all.len());
        if known.is_none() {
            self.all.push((from, make()?));
        }
        self.of_case.push(index);
        Ok(())
    }
}

/// Every text once, in the order in which they first come.
pub(crate) fn each_once<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<&'t str> {
    let mut known = Vec::new();
    for text in texts {
        if !known.contains(&text) {
            known.push(text);
        }
    }
    known
}

/// One trace for all cases.
impl From<Arc<RoutingTrace>> for CaseTraces {
    fn from(trace: Arc<RoutingTrace>) -> Self {
        Self { all: vec![(None, trace)], of_case: Vec::new() }
    }
}

impl From<RoutingTrace> for CaseTraces {
    fn from(trace: RoutingTrace) -> Self {
        Arc::new(trace).into()
    }
}

/// The trace of this name, or that in the file or folder at `path`; the default where there is none. A file that is called like a trace that comes
/// with moebench is `./NAME`.
///
/// # Errors
/// A name that is none, with all that are, and what is wrong with the files, where.
pub fn load(path: Option<&Path>) -> Result<RoutingTrace> {
    let path = path.unwrap_or(Path::new(trace::SYNTHETIC));
    let name = path.to_str().unwrap_or_default();
    if name == trace::SYNTHETIC {
        return Ok(SynthSpec::default().generate()?);
    }
    if let Some(recorded) = trace::recorded::named(name) {
        return Ok(recorded?);
    }
    if let Some(meant) =
        path.file_name().and_then(|last| last.to_str()).filter(|last| !last.contains('.') && !path.exists())
    {
        bail!("{name}: no such file or folder, nor a trace of that name; known: {}", trace::known_to(meant));
    }
    import(path, ImportOptions::default())
}

/// The trace in a file or a folder, of any kind that an [`Importer`] reads.
///
/// # Errors
/// What is wrong with the files, where.
pub fn import(path: &Path, options: ImportOptions) -> Result<RoutingTrace> {
    let name = path.display().to_string();
    let mut importer = Importer::new(&name, options);
    if path.is_dir() {
        add_folder(&mut importer, &name, path)?;
        return Ok(importer.finish()?);
    }
    let mut file = File::open(path).with_context(|| format!("{name}: cannot be opened"))?;
    importer.add(&name, &mut file)?;
    Ok(importer.finish()?)
}

/// Endings of files that are read in folders; others, such as notes, are passed over.
const ENDINGS: [&str; 8] = [".csv", ".tsv", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".zip"];

/// The artifact's logs of a folder; where there are none, everything that could hold loads, at any depth.
fn add_folder(importer: &mut Importer, name: &str, folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    let relative = |file: &Path| file.strip_prefix(folder).unwrap_or(file).to_string_lossy().into_owned();
    let is_log = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.parent() == Some(folder) && name.starts_with("table_iter")
    };
    let has_ending = |file: &PathBuf| {
        let name = relative(file).to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        ENDINGS.iter().any(|ending| name.ends_with(ending))
    };
    let logs = files.iter().any(is_log);
    let chosen: Vec<&PathBuf> =
        files.iter().filter(|file| if logs { is_log(file) } else { has_ending(file) }).collect();
    if chosen.is_empty() {
        bail!("{name}: none of {} files is named table_iter<N>_rank<R>.log or *{}", files.len(), ENDINGS.join(", *"));
    }
    for file in chosen {
        let path = relative(file);
        let mut file = File::open(file).with_context(|| format!("{name}/{path}: cannot be opened"))?;
        importer.add(&path, &mut file).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// A file's name without what says of which kind it is; as it is where nothing of it would be left.
pub fn without_ending(name: &str) -> &str {
    let packed = [".gz", ".xz", ".tgz", ".txz"];
    let kinds = ENDINGS.iter().chain(&[".tar"]).chain(&packed);
    let shorter = |name: &str| {
        kinds.clone().find_map(|ending| name.strip_suffix(ending).map(str::len)).filter(|&length| length > 0)
    };
    let mut length = name.len();
    while let Some(less) = shorter(&name[..length]) {
        length = less;
    }
    &name[..length]
}

/// Files at any depth, in order of their paths.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let context = || format!("{}: cannot be listed", folder.display());
    let entries = fs::read_dir(folder).with_context(context)?.collect::<std::io::Result<Vec<_>>>();
    let mut paths: Vec<PathBuf> = entries.with_context(context)?.iter().map(fs::DirEntry::path).collect();
    paths.sort();
    for path in paths {
        // Links to folders are not followed: they could lead round in circles.
        if path.is_dir() && !path.is_symlink() {
            list(&path, files)?;
        } else if path.is_file() {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use workloads::trace::TraceShape;

    /// The middle trace parts two of one name.
    #[test]
    fn a_name_stands_once_whatever_is_between() {
        let shape = TraceShape { layers: 1, micro_batches: 1, ranks: 1, experts: 1, entries: 1, top_k: 1 };
        let named = |name: &str| Arc::new(RoutingTrace::new(name, shape, vec![1], vec![1]).unwrap());
        let mut traces = CaseTraces::default();
        for (number, name) in ["a", "b", "a"].into_iter().enumerate() {
            traces.push(Some(number.to_string()), &|| Ok(named(name))).unwrap();
        }
        assert_eq!((traces.all().count(), traces.name().as_str()), (3, "a; b"));
    }

    #[test]
    fn traces_that_come_with_the_program_have_names() {
        let [default, synthetic, ours] =
            [None, Some("synthetic"), Some("gpt-routing")].map(|name| load(name.map(Path::new)).unwrap());
        assert_eq!((default.name(), default == synthetic, ours.name()), ("synthetic", true, "gpt-routing"));
        assert!(load(Some(Path::new("synthetics"))).is_err());
    }
}
