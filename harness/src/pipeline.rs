//! A run from a command's request to its figures: prepare, check, run, store, summarise, draw, report. Both `moebench run`
//! and `moebench train` come this way.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use workloads::{EngineKind, Suite};

use crate::failure::{Failure, OrFail};
use crate::output::{self, WIDTH};
use crate::progress;
use chart::Width;
use runs::engines::{Engine, Extent, Session};
use runs::figures;
use runs::figures::files::{self, Format};
use runs::machine::Memory;
use runs::part::Shard;
use runs::prepare::{self, PreparedCase};
use runs::provenance::{self, DrawnFacts, Inputs, Provenance, SuiteFacts};
use runs::records::{Row, RowsByRun};
use runs::report::paper::{self, TableFormat};
use runs::report::values::SUMMARY;
use runs::report::{self, html};
use runs::runner::Runner;
use runs::store::{self, Store};
use runs::stored::StoredRun;
use runs::summary::{GpuFacts, Summary};
use runs::traces::CaseTraces;

/// What a command asks for, its arguments checked.
pub struct RunRequest<'a> {
    pub suite: Suite,
    /// What errors call the suite: its file, or its name.
    pub file: String,
    /// Which part of the suite's cases the request is for, where it is not all.
    pub shard: Option<Shard>,
    /// What the gates of each case choose.
    pub traces: &'a CaseTraces,
    /// Whether that is so also where models are trained.
    pub replay: bool,
    /// The engine, and this process's part in the run.
    pub session: Session,
    /// Folder of the results.
    pub out: PathBuf,
    pub overwrite: bool,
    /// All cores when absent.
    pub threads: Option<usize>,
    pub timelines: bool,
}

/// Runs a request to its end.
///
/// # Errors
/// Bad input before anything runs; after that, a run that broke down, or what cannot be written.
pub fn execute(request: &RunRequest) -> Result<(), Failure> {
    let cases = request.cases()?;
    let (engine, extent) = (request.session.engine(), request.extent());
    let inputs = request.inputs(&cases);
    engine.begin(&provenance::sha256(format!("{inputs:?} {}", request.timelines).as_bytes())).or_run()?;
    match &request.session {
        Session::Leader(engine) => {
            let ended = lead(request, &**engine, &cases, inputs);
            engine.end(ended.as_ref().map_or_else(Failure::status, |()| 0));
            ended
        }
        Session::Follower(follower) => match follower.serve(&cases, extent).or_run()? {
            0 => Ok(()),
            status => Err(Failure::Reported(status)),
        },
    }
}

/// A request whose samples are there.
pub struct Sampled {
    /// How the numbers were obtained, and on which routing.
    origin: String,
    store: Store,
    /// Whether the run was finished before.
    pub read_back: bool,
    pub summary: Summary,
}

/// Samples a request that this process leads, without showing or writing more than the samples.
///
/// # Errors
/// As for [`execute`].
pub fn sample(request: &RunRequest) -> Result<Sampled, Failure> {
    let cases = request.cases()?;
    sampled(request, request.session.engine(), &cases, request.inputs(&cases))
}

/// What a request's records follow from.
///
/// # Errors
/// Bad input.
pub fn inputs(request: &RunRequest) -> Result<Inputs, Failure> {
    Ok(request.inputs(&request.cases()?))
}

/// Lets `fill` put cases that were run elsewhere into the folder of a request, unless its run has ended.
///
/// # Errors
/// Bad input, a folder of another run, or what `fill` says.
pub fn fill(request: &RunRequest, fill: &dyn Fn(&Store, &RunRequest) -> Result<()>) -> Result<(), Failure> {
    let cases = request.cases()?;
    let provenance = request.provenance(&cases, request.inputs(&cases));
    let store = Store::open(&request.out, &provenance, request.overwrite).or_input()?;
    let ended = store.finished().or_run()?.is_some();
    if ended { Ok(()) } else { fill(&store, request).or_run() }
}

fn sampled(
    request: &RunRequest,
    engine: &dyn Engine,
    cases: &[PreparedCase],
    inputs: Inputs,
) -> Result<Sampled, Failure> {
    let provenance = request.with_earlier(request.provenance(cases, inputs)).or_input()?;
    let store = Store::open(&request.out, &provenance, request.overwrite).or_input()?;
    let finished = finished(request, &store)?;
    let read_back = finished.is_some();
    if !read_back {
        // A simulation that had ended may be run again, for its timelines.
        store.state(&provenance).or_run()?;
    }
    let rows = finished.map_or_else(|| run(request, engine, cases, &store), Ok).or_run()?;
    let summary = summarise(&request.suite, &RowsByRun::new(&rows), cases).or_run()?;
    let origin = provenance.suite.map_or(String::new(), |facts| facts.origin);
    Ok(Sampled { origin, store, read_back, summary })
}

fn lead(request: &RunRequest, engine: &dyn Engine, cases: &[PreparedCase], inputs: Inputs) -> Result<(), Failure> {
    let begun = Instant::now();
    let Sampled { origin, store, read_back, summary } = sampled(request, engine, cases, inputs)?;
    let (table, figures) = (String::new(), Vec::new());
    let mut shown = Shown { suite: &request.suite, origin, table, summary, store: &store, figures };
    shown.write().or_run()?;
    shown.print(request.timelines).or_run()?;
    if !read_back {
        let memory =
            Memory::peak_of_program().map_or(String::new(), |bytes| format!(", {:.1} GB at most", bytes / 1e9));
        output::print(format!("took     {:.1} s{memory}", begun.elapsed().as_secs_f64())).or_run()?;
    }
    shown.broken().map_or(Ok(()), |error| Err(Failure::Run(error)))
}

impl RunRequest<'_> {
    fn extent(&self) -> Extent {
        Extent { iterations: self.suite.iterations, timelines: self.timelines }
    }

    /// The cases, of which the engine can do every run.
    fn cases(&self) -> Result<Vec<PreparedCase<'_>>, Failure> {
        let cases = prepare::cases(&self.file, &self.suite, |case| self.traces.of(case)).or_input()?;
        let (engine, extent) = (self.session.engine(), self.extent());
        cases.iter().flat_map(|case| &case.runs).try_for_each(|run| engine.check(run, extent)).or_input()?;
        Ok(cases)
    }

    fn provenance(&self, cases: &[PreparedCase], inputs: Inputs) -> Provenance {
        let engine = self.session.engine().kind();
        let commit = option_env!("MOEBENCH_COMMIT").map(str::to_owned);
        let dirty = option_env!("MOEBENCH_DIRTY").map(|dirty| dirty == "true");
        let (suite, libraries) = (Some(self.facts(engine, cases)), self.session.engine().libraries());
        let here = Provenance::new(engine, inputs);
        let (host, cores) = self.session.engine().host().unwrap_or((here.host.clone(), here.cores));
        Provenance { suite, commit, dirty, libraries, host, cores, ..here }
    }

    /// A run that goes on was timed where it was begun, too.
    fn with_earlier(&self, provenance: Provenance) -> Result<Provenance> {
        let goes_on = provenance.engine.trains() && !self.overwrite && store::has_begun(&self.out);
        match provenance::read(&self.out).ok().filter(|old| goes_on && old.inputs == provenance.inputs) {
            Some(old) => provenance.with_times_of(&old).with_context(|| {
                format!("{}: goes on where it was begun, or anew with --overwrite", self.out.display())
            }),
            None => Ok(provenance),
        }
    }

    /// What `run.json` says of the suite. Of a trained gate nobody knows beforehand how it will route.
    fn facts(&self, engine: EngineKind, cases: &[PreparedCase]) -> SuiteFacts {
        let suite = &self.suite;
        let imbalance = (self.replay || !engine.trains())
            .then(|| figures::imbalance(cases.iter().map(|case| &*case.runs[0].routing), suite.iterations));
        SuiteFacts {
            description: suite.description.clone(),
            baseline: suite.baseline.clone(),
            warmup: suite.warmup,
            origin: self
                .session
                .engine()
                .origin()
                .unwrap_or_else(|| figures::origin(engine, self.traces, imbalance.as_deref())),
            differences: report::differences(&suite.cases),
            drawn: DrawnFacts {
                entropies: self.entropies(cases),
                of_lines: self.session.engine().gives_lines(),
                measured_on: self.session.engine().place(),
                ..DrawnFacts::new(suite)
            },
        }
    }

    /// By case; all seeds read data of the same entropy.
    fn entropies(&self, cases: &[PreparedCase]) -> BTreeMap<String, [f64; 2]> {
        let first_seed = cases.iter().take(self.suite.cases.len()).filter_map(|case| case.runs.first());
        let engine = self.session.engine();
        first_seed.filter_map(|run| Some((run.case_id.clone(), engine.entropy(run)?))).collect()
    }

    fn inputs(&self, cases: &[PreparedCase]) -> Inputs {
        let (suite, traces) = (&self.suite, self.traces);
        let mut texts = BTreeMap::new();
        texts.insert(format!("suite {}", suite.name), format!("{suite:?}"));
        texts.insert(format!("{}use", provenance::TRACE), format!("{:?}", suite.trace));
        for run in cases.iter().flat_map(|case| &case.runs) {
            texts.entry(format!("model {}", run.case.model)).or_insert_with(|| format!("{:?}", run.job.model));
            texts.entry(format!("cluster {}", run.case.cluster)).or_insert_with(|| format!("{:?}", run.job.cluster));
        }
        let hashes = texts.into_iter().map(|(name, text)| (name, provenance::sha256(text.as_bytes())));
        let mut hashes: BTreeMap<String, String> = hashes.collect();
        hashes.insert(provenance::ENGINE.to_owned(), self.session.engine().hash());
        for trace in traces.all() {
            let hash = provenance::trace_hash(trace);
            // Several may have one name.
            let name = format!("{}{}", provenance::TRACE, trace.name());
            let taken = hashes.contains_key(&name);
            hashes.insert(if taken { format!("{name} {hash}") } else { name }, hash);
        }
        Inputs {
            program: provenance::program(),
            suite: suite.name.clone(),
            shard: self.shard.map(|shard| shard.to_string()),
            systems: suite.systems.clone(),
            iterations: suite.iterations,
            seeds: suite.seeds.clone(),
            trace: traces.name(),
            hashes,
        }
    }
}

/// The rows of a finished run. One that was trained would come to other times if it were run again for its timelines.
fn finished(request: &RunRequest, store: &Store) -> Result<Option<Vec<Row>>, Failure> {
    let Some(rows) = store.finished().or_run()? else { return Ok(None) };
    if !request.timelines || store.has_timelines(&rows, request.suite.iterations) {
        return Ok(Some(rows));
    }
    if request.session.engine().kind().trains() {
        return Err(Failure::Input(anyhow!(
            "--timeline: {}: the run has ended without: --overwrite trains it again",
            request.out.display()
        )));
    }
    Ok(None)
}

/// The rows of a run that is done now as far as it is missing.
fn run(request: &RunRequest, engine: &dyn Engine, cases: &[PreparedCase], store: &Store) -> Result<Vec<Row>> {
    let runs: usize = cases.iter().map(|case| case.runs.len()).sum();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(request.threads.unwrap_or(0)).build()?;
    progress::shown((runs * request.suite.iterations) as u64, |progress| {
        let runner = Runner { engine, extent: request.extent(), store, progress };
        pool.install(|| runner.run(cases))
    })?;
    store.join(cases)
}

fn summarise(suite: &Suite, rows: &RowsByRun, cases: &[PreparedCase]) -> Result<Summary> {
    let runs = cases.iter().flat_map(|case| &case.runs);
    let gpus = runs.map(|run| (run.case.cluster.name.clone(), GpuFacts::new(&run.job.cluster.gpu))).collect();
    Summary::with_errors(rows, &suite.baseline, suite.warmup, &DrawnFacts::new(suite).own_conditions, &gpus)
}

/// What is shown of a run.
struct Shown<'a> {
    suite: &'a Suite,
    summary: Summary,
    /// For the terminal.
    table: String,
    /// How the numbers were obtained, and on which routing.
    origin: String,
    store: &'a Store,
    /// Paths of those that were written.
    figures: Vec<PathBuf>,
}

impl Shown<'_> {
    fn write(&mut self) -> Result<()> {
        // From the files alone, so that `moebench plot`, `moebench table` and `moebench report` write the same.
        let root = self.store.root();
        let mut run = StoredRun::open(root)?;
        self.summary.measured_on.clone_from(&run.summary.measured_on);
        self.summary.of_lines = run.summary.of_lines;
        self.store.write_csv("summary.csv", &mut self.summary.frame()?)?;
        for figure in figures::all(&run) {
            let written = files::write(&root.join("figures"), &figure, Width::Page, &[Format::Svg, Format::Pdf])?;
            self.figures.extend(written.into_iter().next());
        }
        paper::write(&root.join("tables"), &run, SUMMARY, Width::Page, &[TableFormat::Latex])?;
        self.table = paper::terminal(&run, usize::from(WIDTH));
        run.read_figures(root)?;
        self.store.write_text("report.html", &html::page(&[run])?)
    }

    /// `timelines`: whether the run has them.
    fn print(&self, timelines: bool) -> Result<()> {
        let mut out = output::stdout();
        write!(out, "{}", self.table).context("standard output")?;
        let of_model = figures::notes_of_model(&self.summary);
        for (index, line) in of_model.into_iter().chain(report::notes(&self.suite.cases, &self.summary)).enumerate() {
            writeln!(out, "{}{line}", if index == 0 && !self.table.is_empty() { "\n" } else { "" })?;
        }
        let path = |name: &str| self.store.path(name).display().to_string();
        writeln!(out, "\ntimes    {}", self.origin)?;
        writeln!(out, "samples  {}", path("iterations.parquet"))?;
        writeln!(out, "summary  {}", path("summary.csv"))?;
        for figure in &self.figures {
            writeln!(out, "figure   {}", figure.display())?;
        }
        writeln!(out, "report   {}", path("report.html"))?;
        if timelines {
            writeln!(out, "timelines {}", path("timelines"))?;
        }
        Ok(())
    }

    /// The first run that broke down, or that none has a time, as an error.
    fn broken(&self) -> Option<anyhow::Error> {
        if self.summary.rows.iter().all(|row| row.failure.is_some()) {
            let reason = self.summary.rows.first().and_then(|row| row.failure.as_ref());
            let reason = reason.map_or(String::new(), |failure| format!("; the first: {failure}"));
            return Some(anyhow!("no system ran any case to its end{reason}"));
        }
        self.summary.rows.iter().find_map(|row| {
            let failure = row.failure.as_ref().filter(|failure| failure.status.is_breakdown())?;
            Some(anyhow!("{} {}: {failure}", row.key.case, row.key.system))
        })
    }
}
