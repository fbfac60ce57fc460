//! A stored run, read back from its folder alone, whatever version of the program wrote it. What an older version did not keep
//! is left out, and said.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use workloads::{Bytes, EngineKind, Suite};

use crate::details::{Effort, RunDetails};
use crate::part::Pattern;
use crate::provenance::{self, DrawnFacts, Provenance, SuiteFacts};
use crate::records::{self, MeanPhases, Row, RowsByRun, SCHEMA_VERSION};
use crate::store::{self, DETAILS};
use crate::summary::{GpuFacts, Summary, SummaryRow};

/// A run that has ended.
pub struct StoredRun {
    /// Name of its folder.
    pub folder: String,
    pub provenance: Provenance,
    pub facts: SuiteFacts,
    pub rows: Vec<Row>,
    pub phases: MeanPhases,
    pub details: Vec<RunDetails>,
    /// Of figures that say more than speedups do: name, SVG and caption.
    pub figures: Vec<[String; 3]>,
    pub summary: Summary,
    /// What the folder does not hold, a line each.
    pub missing: Vec<String>,
}

/// Figures that a page cannot draw from the samples as well.
const FIGURES: &[&str] = &["map", "skew", "performance_model", "layers", "adaptive", "loss"];

impl StoredRun {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// A folder without a run that has ended, or one whose records this program cannot read.
    pub fn open(root: &Path) -> Result<Self> {
        let provenance = provenance::read(root)?;
        let path = root.join("iterations.parquet");
        ensure!(path.exists(), "{}: not there: the run has not ended: start it again to go on", path.display());
        let cases = root.join("cases");
        ensure!(!cases.exists(), "{}: still there: the run has not ended: start it again to go on", cases.display());
        let readable = || {
            let (version, last) = (provenance.schema_version, SCHEMA_VERSION);
            format!("{}: columns of version {version}, this program reads up to {last}", path.display())
        };
        let rows = records::from_frame(&store::read_parquet(&path)?).with_context(readable)?;
        ensure!(!rows.is_empty(), "{}: expected at least one row", path.display());
        let mut missing = Vec::new();
        let facts = facts(&provenance, &rows, &mut missing);
        let phases = match root.join("spans.parquet") {
            path if path.exists() => records::mean_phases(&store::read_parquet(&path)?, facts.warmup)
                .with_context(|| format!("{}", path.display()))?,
            _ => {
                missing.push("no spans.parquet: where time goes is left out".to_owned());
                MeanPhases::default()
            }
        };
        let details = details(root, &mut missing)?;
        let summary = summary(&rows, &facts, &details)?;
        let folder =
            fs::canonicalize(root).ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let folder = folder.unwrap_or_default();
        Ok(Self { folder, facts, rows, phases, details, figures: figures(root)?, summary, missing, provenance })
    }

    /// Reads its figures again, which may have been drawn since.
    ///
    /// # Errors
    /// A figure that cannot be read.
    pub fn read_figures(&mut self, root: &Path) -> Result<()> {
        self.figures = figures(root)?;
        Ok(())
    }

    /// Details of a system on a case: of the first seed that has some.
    pub fn details_of(&self, case: &str, system: &str) -> Option<&RunDetails> {
        self.details.iter().find(|details| details.case == case && details.system == system)
    }
}

/// What a case's iterations come to.
impl StoredRun {
    fn effort(&self, row: &SummaryRow) -> Option<(Effort, f64)> {
        Some((self.details_of(&row.key.case, &row.key.system)?.effort?, row.step?.mean))
    }

    /// Of all GPUs together.
    pub fn tokens_per_second(&self, row: &SummaryRow) -> Option<f64> {
        self.effort(row).map(|(effort, step)| effort.tokens as f64 / step)
    }

    /// Model FLOP/s over the peak of the case's GPUs. Of a measured run, where these are what it was measured on.
    pub fn mfu(&self, row: &SummaryRow) -> Option<f64> {
        let details = self.details_of(&row.key.case, &row.key.system)?;
        let is_there = self.facts.drawn.measured_on.as_ref() == Some(&details.gpu);
        let (effort, step) = self.effort(row).filter(|_| row.key.engine != EngineKind::Measured || is_there)?;
        Some(effort.flops / step / (f64::from(row.key.gpus) * effort.peak_flops?))
    }

    /// Keeps the cases that one of the patterns means, all where there is no pattern.
    ///
    /// # Errors
    /// Where no case is like that, with the ids of all.
    pub fn keep(&mut self, patterns: &[Pattern]) -> Result<()> {
        let all: BTreeSet<String> = self.summary.rows.iter().map(|row| row.key.case.clone()).collect();
        let ids = || all.iter().map(String::as_str);
        let meant = |id: &str| patterns.is_empty() || patterns.iter().any(|pattern| pattern.means(id, ids()));
        ensure!(
            ids().any(meant),
            "--case: no case of the run is like that; it has {}",
            ids().collect::<Vec<_>>().join(", ")
        );
        self.summary.rows.retain(|row| meant(&row.key.case));
        self.rows.retain(|row| meant(&row.key.case));
        self.details.retain(|details| meant(&details.case));
        self.facts.drawn.places.retain(|case, _| meant(case));
        Ok(())
    }
}

/// What the suite says of itself; of a version that did not keep it, what a suite of the same name says today.
fn facts(provenance: &Provenance, rows: &[Row], missing: &mut Vec<String>) -> SuiteFacts {
    if let Some(facts) = &provenance.suite {
        return facts.clone();
    }
    let inputs = &provenance.inputs;
    let known = Suite::named("report", &inputs.suite).ok();
    let systems = || rows.iter().map(|row| &row.key.system);
    let baseline = known.as_ref().map(|suite| &suite.baseline).filter(|name| systems().any(|system| system == *name));
    let facts = SuiteFacts {
        description: known.as_ref().map_or_else(String::new, |suite| suite.description.clone()),
        baseline: baseline.or(systems().next()).cloned().unwrap_or_default(),
        warmup: known.as_ref().map_or(0, |suite| suite.warmup.min(inputs.iterations.saturating_sub(1))),
        origin: format!("{}, routing: {}", provenance.engine.label(), inputs.trace),
        differences: Vec::new(),
        drawn: known.as_ref().map_or_else(DrawnFacts::default, DrawnFacts::new),
    };
    let whence = if known.is_some() { "as the suite of that name has them today" } else { "assumed" };
    missing.push(format!(
        "run.json, of an older version, does not state the suite: speedups over {} and a warm-up of {} iterations are {whence}; \
         whether a system trained something else than its case says is not known",
        facts.baseline, facts.warmup
    ));
    facts
}

fn details(root: &Path, missing: &mut Vec<String>) -> Result<Vec<RunDetails>> {
    let path = root.join(DETAILS);
    if !path.exists() {
        missing.push(format!(
            "no {DETAILS}: memory of each rank, routing over time, traffic and timelines are left out, and times near the \
             limit of memory are not marked as extrapolated"
        ));
        return Ok(Vec::new());
    }
    store::read_details(&path)
}

fn figures(root: &Path) -> Result<Vec<[String; 3]>> {
    let path = |name: &str, suffix: &str| root.join("figures").join(format!("{name}.{suffix}"));
    let text = |path: PathBuf| fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()));
    let read = |name: &&str| {
        let caption = path(name, "caption.txt");
        // An older version wrote it into the figure.
        let caption = if caption.exists() { text(caption)? } else { format!("figures/{name}.svg") };
        Ok([(*name).to_owned(), text(path(name, "svg"))?, caption])
    };
    FIGURES.iter().filter(|name| path(name, "svg").exists()).map(read).collect()
}

fn summary(rows: &[Row], facts: &SuiteFacts, details: &[RunDetails]) -> Result<Summary> {
    let cluster = |case: &str| rows.iter().find(|row| row.key.case == case).map(|row| row.key.cluster.clone());
    let facts_of = |run: &RunDetails| GpuFacts { usable: Bytes(run.memory_limit), hour_price: run.hour_price };
    let gpus = details.iter().filter_map(|run| Some((cluster(&run.case)?, facts_of(run)))).collect();
    let drawn = &facts.drawn;
    let summary =
        Summary::with_errors(&RowsByRun::new(rows), &facts.baseline, facts.warmup, &drawn.own_conditions, &gpus)?;
    Ok(Summary { measured_on: drawn.measured_on.clone(), of_lines: drawn.of_lines, ..summary })
}
