//! The folder of a run: what is in it, and how it is written so that nothing is lost and nothing is half-written.
//!
//! What is finished is written to `cases/` at once, by temporary file and rename: the runs of a simulated case together, and a run
//! that was trained by itself. When all are there they are joined, in the suite's order, into `iterations.parquet`, `spans.parquet` and
//! `details.json`, and `cases/` goes, all at once. A run that was interrupted finds what is finished and ends with the same bytes; one that had ended
//! finds its frames. `run.json` states what was run; a folder of another run is refused.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Write};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chart::Figure;
use formats::chakra::Traces;
use polars::prelude::{CsvWriter, DataFrame, KeyValueMetadata, ParquetReader, ParquetWriter, SerReader, SerWriter};

use crate::details::{self, RunDetails};
use crate::prepare::{PreparedCase, PreparedRun, case_id};
use crate::provenance::{self, Provenance};
use crate::records::{self, Row, RunRecord, SCHEMA_KEY, SCHEMA_VERSION};
use crate::timeline::{self, Timeline};

/// The file of what a report shows besides the records.
pub const DETAILS: &str = "details.json";
/// What `cases/` is called while it is removed: half of it never stands under its own name.
const JOINED: &str = "cases.tmp";
/// The folder of timelines in a run's.
pub(crate) const TIMELINES: &str = "timelines";

/// The folder of MLPerf's logs in a run's.
pub const MLLOG: &str = "mllog";

/// What a run writes besides its records and what states it.
const WRITTEN: &[&str] = &["figures", "tables", MLLOG, TIMELINES, DETAILS, "summary.csv", "report.html"];

/// A lock on a folder that is there or made now. It ends with the process, however that ends.
fn lock(root: &Path) -> Result<Option<File>> {
    // Where that fails, what is written next says so.
    let _ = fs::create_dir_all(root);
    let folder = File::open(root).ok();
    if let Some(Err(TryLockError::WouldBlock)) = folder.as_ref().map(File::try_lock) {
        bail!(
            "{}: another process writes a run there: wait until it has ended, or choose another --out",
            root.display()
        );
    }
    Ok(folder)
}

/// A run's folder, which no other process writes meanwhile.
pub struct Store {
    root: PathBuf,
    /// The folder itself, locked as long as this stands; none where folders cannot be.
    _lock: Option<File>,
}

impl Store {
    /// Opens or makes a run's folder. One of a run that has ended goes on saying who ran it.
    ///
    /// # Errors
    /// When another process writes it, it holds another run and `overwrite` is not set, or it cannot be written.
    pub fn open(root: &Path, provenance: &Provenance, overwrite: bool) -> Result<Self> {
        let store = Self { root: root.to_owned(), _lock: lock(root)? };
        let old = provenance::read(root).ok();
        let same = old.as_ref().is_some_and(|old| old.inputs == provenance.inputs);
        let used = ["run.json", "cases", "iterations.parquet", "spans.parquet"].map(|name| store.path(name).exists());
        // What no run has written is somebody's own.
        if !used.contains(&true)
            && let Some(other) = WRITTEN.iter().find(|name| store.path(name).exists())
        {
            bail!("{}: holds `{other}` of no run: choose another --out", root.display());
        }
        if used.contains(&true) && !same && !overwrite {
            let differs = match old {
                Some(old) => old.inputs.differences(&provenance.inputs).join("; "),
                None => "no run.json states what".to_owned(),
            };
            bail!("{}: holds another run ({differs}): choose another --out, or --overwrite", root.display());
        }
        if overwrite || !same {
            store.clear()?;
        }
        store.remove_folder(JOINED)?;
        if !has_ended(root) {
            store.state(provenance)?;
        }
        Ok(store)
    }

    /// Writes what is run, by which program, on which machine.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn state(&self, provenance: &Provenance) -> Result<()> {
        self.write_text("run.json", &(serde_json::to_string_pretty(provenance)? + "\n"))
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path inside the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes a text.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        write_text(&self.path(name), text)
    }

    /// Writes a table of comma-separated values.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_csv(&self, name: &str, frame: &mut DataFrame) -> Result<()> {
        write_atomically(&self.path(name), |file| Ok(CsvWriter::new(file).finish(frame)?))
    }

    /// Whether a case, or one run of it, was finished by this or an earlier attempt. `id`: that of the case or of the run.
    pub fn has_runs(&self, id: &str) -> bool {
        self.runs_path(id, "spans").exists()
    }

    /// Writes the finished runs of a case, or one of them; the spans last, because they mark them as finished.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_runs(&self, id: &str, runs: &[RunRecord]) -> Result<()> {
        let rows: Vec<Row> = runs.iter().flat_map(RunRecord::rows).collect();
        write_parquet(&self.runs_path(id, "iterations"), &mut records::to_frame(&rows)?)?;
        let of_runs = runs.iter().map(|run| run.details.clone()).collect();
        write_text(&self.details_path(id), &details::to_json(of_runs)?)?;
        write_parquet(&self.runs_path(id, "spans"), &mut records::spans_frame(runs)?)
    }

    /// Reads the rows of [`Self::write_runs`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn rows(&self, id: &str) -> Result<Vec<Row>> {
        rows_in(&self.runs_path(id, "iterations"))
    }

    /// Whether there is a timeline of every run among these rows that reached the iteration `last`.
    pub fn has_timelines(&self, rows: &[Row], last: usize) -> bool {
        let mut reached = rows.iter().filter(|row| row.sample.is_ok() && row.iteration as usize == last);
        reached.all(|Row { key, .. }| {
            self.timelines_path(&case_id(&key.case, key.seed)).join(format!("{}.json", key.system)).exists()
        })
    }

    /// Writes timelines of a case's runs, a file per system that reached its last iteration, engines side by side:
    /// `timelines/CASE.seedN/SYSTEM.json`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_timelines(&self, id: &str, runs: &[RunRecord]) -> Result<()> {
        let folder = self.timelines_path(id);
        fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        for run in runs.iter().filter(|run| !run.outcome.timelines.is_empty()) {
            let of_engines = run.outcome.timelines.iter().map(|(engine, spans)| Timeline { engine: *engine, spans });
            let of_engines: Vec<Timeline> = of_engines.collect();
            write_atomically(&folder.join(format!("{}.json", run.key.system)), |file| {
                let mut out = BufWriter::new(file);
                timeline::write(&of_engines, &mut out)?;
                Ok(out.flush()?)
            })?;
        }
        Ok(())
    }

    /// Writes execution traces beside a system's timeline: `timelines/CASE.seedN/SYSTEM.RANK.et`, and the groups that they name.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_chakra(&self, id: &str, system: &str, traces: &Traces) -> Result<()> {
        let folder = self.timelines_path(id);
        for (rank, bytes) in traces.ranks.iter().enumerate() {
            write_bytes(&folder.join(format!("{system}.{rank}.et")), bytes)?;
        }
        write_text(&folder.join(format!("{system}.groups.json")), &traces.groups)
    }

    /// The run's rows, if an earlier attempt joined them.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn finished(&self) -> Result<Option<Vec<Row>>> {
        if !has_ended(&self.root) {
            return Ok(None);
        }
        rows_in(&self.path("iterations.parquet")).map(Some)
    }

    /// Joins the cases, in the given order, into the run's files; returns the rows of the iterations.
    ///
    /// # Errors
    /// When a case cannot be read or a file cannot be written.
    pub fn join(&self, cases: &[PreparedCase]) -> Result<Vec<Row>> {
        let ids: Vec<String> = cases.iter().flat_map(|case| self.ids(case)).collect();
        let ids = &ids[..];
        let mut iterations = self.join_kind(ids, "iterations")?;
        write_parquet(&self.path("iterations.parquet"), &mut iterations)?;
        self.join_details(ids)?;
        write_parquet(&self.path("spans.parquet"), &mut self.join_kind(ids, "spans")?)?;
        let cases = self.path("cases");
        fs::rename(&cases, self.path(JOINED)).with_context(|| format!("{}: cannot be renamed", cases.display()))?;
        self.remove_folder(JOINED)?;
        records::from_frame(&iterations)
    }

    /// What of a case is stored together: all, or each run by itself.
    fn ids(&self, case: &PreparedCase) -> Vec<String> {
        let id = case.id();
        if self.has_runs(&id) { vec![id] } else { case.runs.iter().map(PreparedRun::id).collect() }
    }

    /// Takes over cases, `(id, case, seed)`, of another folder's run that has ended, as if they had been run here.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn take_cases(&self, from: &Path, cases: &[(String, String, u64)]) -> Result<()> {
        let other = Self { root: from.to_owned(), _lock: None };
        let [iterations, spans] =
            ["iterations", "spans"].map(|kind| read_parquet(&other.path(&format!("{kind}.parquet"))));
        let (iterations, spans, details) = (iterations?, spans?, read_details(&other.path(DETAILS))?);
        for (id, case, seed) in cases {
            write_parquet(&self.runs_path(id, "iterations"), &mut rows_of(&iterations, case, *seed)?)?;
            let own = details.iter().filter(|run| run.case == *case && run.seed == *seed).cloned().collect();
            write_text(&self.details_path(id), &details::to_json(own)?)?;
            if other.timelines_path(id).exists() {
                for entry in fs::read_dir(other.timelines_path(id))? {
                    let (path, to) = (entry?.path(), self.timelines_path(id));
                    let name = path.file_name().unwrap_or_default();
                    write_atomically(&to.join(name), |file| Ok(file.write_all(&fs::read(&path)?)?))?;
                }
            }
            write_parquet(&self.runs_path(id, "spans"), &mut rows_of(&spans, case, *seed)?)?;
        }
        Ok(())
    }

    fn join_details(&self, ids: &[String]) -> Result<()> {
        let mut all = Vec::new();
        for id in ids {
            all.extend(read_details(&self.details_path(id))?);
        }
        write_text(&self.path(DETAILS), &details::to_json(all)?)
    }

    fn join_kind(&self, ids: &[String], kind: &str) -> Result<DataFrame> {
        let mut all: Option<DataFrame> = None;
        for id in ids {
            let frame = read_parquet(&self.runs_path(id, kind))?;
            match &mut all {
                None => all = Some(frame),
                Some(all) => {
                    all.vstack_mut_owned(frame)?;
                }
            }
        }
        let mut all = all.context("a run without cases")?;
        all.rechunk_mut();
        Ok(all)
    }

    /// Removes what an earlier run left: `run.json` last, without which the rest is nobody's.
    fn clear(&self) -> Result<()> {
        for name in ["cases"].iter().chain(WRITTEN).chain(&["iterations.parquet", "spans.parquet", "run.json"]) {
            let path = self.path(name);
            if path.is_dir() {
                self.remove_folder(name)?;
            } else if path.exists() {
                fs::remove_file(&path).with_context(|| format!("{}", path.display()))?;
            }
        }
        Ok(())
    }

    fn remove_folder(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("{}: cannot be removed", path.display()))?;
        }
        Ok(())
    }

    fn timelines_path(&self, id: &str) -> PathBuf {
        self.root.join(TIMELINES).join(id)
    }

    fn details_path(&self, id: &str) -> PathBuf {
        self.root.join("cases").join(format!("{id}.{DETAILS}"))
    }

    fn runs_path(&self, id: &str, kind: &str) -> PathBuf {
        self.root.join("cases").join(format!("{id}.{kind}.parquet"))
    }
}

/// Whether the run in a folder has begun and has not ended.
pub fn has_begun(root: &Path) -> bool {
    root.join("cases").exists()
}

/// Whether the run in a folder has ended: its spans are joined last, and then its cases go.
pub fn has_ended(root: &Path) -> bool {
    root.join("spans.parquet").exists() && !root.join("cases").exists()
}

/// The rows of a file of iterations.
fn rows_in(path: &Path) -> Result<Vec<Row>> {
    records::from_frame(&read_parquet(path)?).with_context(|| format!("{}", path.display()))
}

/// Reads details of runs.
///
/// # Errors
/// When they cannot be read, or are of another version.
pub fn read_details(path: &Path) -> Result<Vec<RunDetails>> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    details::from_json(&text).with_context(|| format!("{}", path.display()))
}

/// The rows of a case and seed, which stand together.
fn rows_of(frame: &DataFrame, case: &str, seed: u64) -> Result<DataFrame> {
    let (cases, seeds) = (frame.column("case")?.str()?, frame.column("seed")?.u64()?);
    let is = |row: &usize| cases.get(*row) == Some(case) && seeds.get(*row) == Some(seed);
    let rows: Vec<usize> = (0..frame.height()).filter(is).collect();
    let first = rows.first().copied().unwrap_or(0);
    ensure!(
        rows.iter().enumerate().all(|(index, row)| first + index == *row),
        "{case}: rows that do not stand together"
    );
    Ok(frame.slice(first as i64, rows.len()))
}

/// Reads a Parquet file.
///
/// # Errors
/// When it cannot be opened, is no Parquet, or says that its columns are of a later version than this program's.
pub fn read_parquet(path: &Path) -> Result<DataFrame> {
    let file = File::open(path).with_context(|| format!("{}: cannot be opened", path.display()))?;
    let mut reader = ParquetReader::new(file);
    let unreadable = || format!("{}: not readable as Parquet", path.display());
    let metadata = reader.get_metadata().with_context(unreadable)?.key_value_metadata();
    let version = metadata.iter().flatten().find(|pair| pair.key == SCHEMA_KEY).and_then(|pair| pair.value.as_deref());
    check_version(version).with_context(|| path.display().to_string())?;
    // Of some damage polars makes a panic.
    std::panic::catch_unwind(AssertUnwindSafe(|| reader.finish()))
        .map_err(|_| anyhow!("it is damaged"))
        .with_context(unreadable)?
        .with_context(unreadable)
}

/// `version`: as the file states it; files of older programs do not.
fn check_version(version: Option<&str>) -> Result<()> {
    let Some(text) = version else { return Ok(()) };
    let version: u32 = text.parse().map_err(|_| anyhow!("{SCHEMA_KEY} = {text:?}: expected a whole number"))?;
    ensure!(version <= SCHEMA_VERSION, "columns of version {version}: this program reads up to {SCHEMA_VERSION}");
    Ok(())
}

fn write_parquet(path: &Path, frame: &mut DataFrame) -> Result<()> {
    write_atomically(path, |file| {
        let version = vec![(SCHEMA_KEY.to_owned(), SCHEMA_VERSION.to_string())];
        let metadata = KeyValueMetadata::from_static(version);
        ParquetWriter::new(file).with_key_value_metadata(Some(metadata)).finish(frame)?;
        Ok(())
    })
}

/// Whether a file can be written there, before what it is to hold is known.
///
/// # Errors
/// When it cannot.
pub fn check_writable(path: &Path) -> Result<()> {
    let name = || format!("{}: cannot be written", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(name)?;
    }
    // Other processes of a launch may look at the same time.
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    File::create(&temporary).with_context(name)?;
    fs::remove_file(&temporary).with_context(name)
}

/// Writes a text by [`write_atomically`].
///
/// # Errors
/// When the file cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    write_bytes(path, text.as_bytes())
}

/// Writes bytes by [`write_atomically`].
///
/// # Errors
/// When the file cannot be written.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |file| Ok(file.write_all(bytes)?))
}

/// Writes a figure as `STEM.svg` and `STEM.pdf`, and its caption as `STEM.caption.txt`; a stem may hold dots.
///
/// # Errors
/// When a file cannot be written.
pub fn write_figure(stem: &Path, figure: &Figure, caption: &str) -> Result<()> {
    let path = |suffix: &str| PathBuf::from(format!("{}.{suffix}", stem.display()));
    write_text(&path("svg"), &figure.titled_svg(caption))?;
    write_bytes(&path("pdf"), &figure.pdf)?;
    write_text(&path("caption.txt"), &format!("{caption}\n"))
}

/// Writes a file under a temporary name beside its own and renames it, making the folder if need be. A link is followed; what is there and is no
/// file, as a device, is written as it is.
///
/// # Errors
/// When `write` fails or the file system does; the temporary file is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let name = || format!("{}: cannot be written", path.display());
    if path.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let mut file = File::options().write(true).open(path).with_context(name)?;
        return write(&mut file).with_context(name);
    }
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(name)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).with_context(name)?;
    let written = write(&mut file).and_then(|()| Ok(file.sync_all()?));
    if let Err(error) = written {
        // The first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        return Err(error).with_context(name);
    }
    fs::rename(&temporary, path).with_context(name)
}
