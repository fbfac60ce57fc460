//! Records: the typed rows of a run, and their one round trip to a Polars frame.
//!
//! One row of `iterations` per (case, system, seed, iteration); one row of `spans` per (case, system, seed, iteration,
//! stage, phase). Every row states how it was obtained (`engine`) and whether it is valid (`status`). Columns are read and
//! written here alone: everything downstream sees [`Row`]s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use polars::prelude::{Column, DataFrame, NamedFrom, Series};
use systems::Plan;
use systems::iteration::Peak;
use systems::iteration::moved::Message;
use systems::iteration::run::{Balancing, Iteration};
use systems::iteration::timeline::Span;
use systems::price::ledger::{Ledger, Phase};
use workloads::{Bytes, EngineKind, Gate, Seconds};

use crate::details::RunDetails;
use crate::prepare::PreparedRun;

/// Version of the columns below; raised whenever one is added or changes its meaning. Since version 3, `engine` says
/// `measured` where it said `train`; version 4 adds `balanced_step_s`, version 5 what balancing cost and brought.
pub const SCHEMA_VERSION: u32 = 5;

/// Key of that version in the metadata of the Parquet files.
pub const SCHEMA_KEY: &str = "moebench_schema_version";

/// How an iteration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// A rank's memory was too small.
    Oom,
    /// It never began: no plan fits the case.
    Skipped,
    /// A rank did not arrive in time.
    Timeout,
    /// An exchange between ranks failed.
    CommError,
    /// A rank died.
    Crash,
    /// The loss is no number any more.
    Diverged,
}

/// A word that is no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown status `{0}`: expected ok, oom, skipped, timeout, comm_error, crash or diverged")]
pub struct UnknownStatus(String);

impl Status {
    const ALL: [Self; 7] =
        [Self::Ok, Self::Oom, Self::Skipped, Self::Timeout, Self::CommError, Self::Crash, Self::Diverged];

    /// The word in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Oom => "oom",
            Self::Skipped => "skipped",
            Self::Timeout => "timeout",
            Self::CommError => "comm_error",
            Self::Crash => "crash",
            Self::Diverged => "diverged",
        }
    }

    /// Whether something broke. Too little memory, or no plan that fits, is a finding about the system.
    pub fn is_breakdown(self) -> bool {
        matches!(self, Self::Timeout | Self::CommError | Self::Crash | Self::Diverged)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        Self::ALL.into_iter().find(|status| status.name() == text).ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

/// Why a run ended before its last iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct RunFailure {
    pub status: Status,
    pub reason: String,
}

impl fmt::Display for RunFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.reason)
    }
}

/// What an engine says of one run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The iterations that ran, in order.
    pub iterations: Vec<Iteration>,
    /// Why there are no more.
    pub failure: Option<RunFailure>,
    /// What an iteration takes under the same plan when the gate loads all experts evenly, if it was simulated.
    pub balanced: Option<Seconds>,
    /// The last iteration rank by rank, by each engine that ran it: all ranks where that was asked for, else those of
    /// [`watched`](crate::details::watched) or none.
    pub timelines: Vec<(EngineKind, Vec<Span>)>,
    /// `[iteration][moe layer]`: load of the busiest expert over the mean load, as the gate chose; empty where not followed.
    pub imbalance: Vec<Vec<f64>>,
    /// `[iteration][moe layer]`: experts that changed rank before it; empty where not followed.
    pub moved: Vec<Vec<usize>>,
    /// `[span]` of the first of these: what it moves; empty where not all ranks were watched.
    pub messages: Vec<Vec<Message>>,
    /// `[from][to]`: what ranks send each other for MoE layers in the last iteration; empty where not followed.
    pub exchanged: Vec<Vec<Bytes>>,
    /// `[rank]`: memory in the iteration that did not end; empty where not followed.
    pub memory_at_failure: Vec<Bytes>,
}

impl Outcome {
    /// A run without an iteration.
    pub fn failed(status: Status, reason: String) -> Self {
        Self { failure: Some(RunFailure { status, reason }), ..Self::default() }
    }
}

/// A run and its outcome.
#[derive(Clone, Debug)]
pub struct RunRecord {
    pub key: Arc<RunKey>,
    pub outcome: Outcome,
    pub details: RunDetails,
}

impl RunRecord {
    pub fn new(run: &PreparedRun, engine: EngineKind, outcome: Outcome) -> Self {
        let key = Arc::new(RunKey::new(run, engine, outcome.balanced));
        Self { key, details: RunDetails::new(run, &outcome), outcome }
    }

    /// Every iteration, and one row more for a failure.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        let ran = self.outcome.iterations.iter().map(|iteration| Ok(Sample::from(iteration)));
        let all = ran.chain(self.outcome.failure.iter().map(|failure| Err(failure.clone())));
        all.zip(1..).map(|(sample, iteration)| Row { key: self.key.clone(), iteration, sample })
    }
}

/// What the rows of a run have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct RunKey {
    /// The suite's case.
    pub case: String,
    /// Model and gate as the system ran them.
    pub model: String,
    pub cluster: String,
    pub gpus: u32,
    pub gate: Gate,
    /// The MoE layer that ran alone, if one did.
    pub layer: Option<u32>,
    pub system: String,
    /// Seed of the routing.
    pub seed: u64,
    pub engine: EngineKind,
    /// Absent where none fits.
    pub plan: Option<Plan>,
    /// What the system's offline search expects an iteration to take, if it chose the plan.
    pub expected: Option<Seconds>,
    /// What an iteration takes under the same plan when the gate loads all experts evenly, if it was simulated.
    pub balanced: Option<Seconds>,
}

impl RunKey {
    fn new(run: &PreparedRun, engine: EngineKind, balanced: Option<Seconds>) -> Self {
        let chosen = run.plan().ok();
        Self {
            case: run.case_id.clone(),
            model: run.case.model.name.clone(),
            cluster: run.case.cluster.name.clone(),
            gpus: run.case.gpus as u32,
            gate: run.case.gate,
            layer: run.case.layer.map(|layer| layer as u32),
            system: run.system.name().to_owned(),
            seed: run.seed,
            engine,
            plan: chosen.map(|chosen| chosen.plan),
            expected: chosen.and_then(|chosen| chosen.expected),
            balanced,
        }
    }
}

/// One row of the `iterations` frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: Arc<RunKey>,
    /// Counted from 1.
    pub iteration: u32,
    pub sample: Result<Sample, RunFailure>,
}

/// What is kept of an iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub step: Seconds,
    /// Mean cross-entropy of a token, nats, where a model is really trained.
    pub loss: Option<f64>,
    /// What the simulator says of this very iteration, where it follows an emulated run.
    pub predicted: Option<Seconds>,
    pub decision: Seconds,
    pub migration: Seconds,
    /// Experts that changed rank, over all layers.
    pub moved: u32,
    pub copied: u64,
    pub balancing: Option<Balancing>,
    pub entries: u64,
    pub dropped: u64,
    /// The fullest rank, where memory was followed.
    pub peak: Option<Peak>,
}

impl From<&Iteration> for Sample {
    fn from(iteration: &Iteration) -> Self {
        let timing = &iteration.timing;
        Self {
            step: timing.step,
            loss: iteration.loss,
            predicted: iteration.predicted,
            decision: iteration.decision,
            migration: iteration.migration,
            moved: iteration.moved as u32,
            copied: timing.copied,
            balancing: iteration.balancing,
            entries: timing.entries,
            dropped: timing.dropped,
            peak: Some(timing.peak).filter(|peak| peak.bytes > Bytes::ZERO),
        }
    }
}

/// Rows by case and system, in the order of their first ones; seeds stand together.
pub struct RowsByRun<'a>(Vec<Vec<&'a Row>>);

impl<'a> RowsByRun<'a> {
    pub fn new(rows: &'a [Row]) -> Self {
        let mut places = BTreeMap::new();
        let mut by_run: Vec<Vec<&Row>> = Vec::new();
        for row in rows {
            let place = *places.entry((&row.key.case, &row.key.system)).or_insert(by_run.len());
            if place == by_run.len() {
                by_run.push(Vec::new());
            }
            by_run[place].push(row);
        }
        Self(by_run)
    }

    pub fn of(&self, case: &str, system: &str) -> &[&'a Row] {
        let of_run = |rows: &&Vec<&Row>| rows[0].key.case == case && rows[0].key.system == system;
        self.0.iter().find(of_run).map_or(&[], Vec::as_slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = &[&'a Row]> {
        self.0.iter().map(Vec::as_slice)
    }
}

type Balanced = (&'static str, fn(&Balancing) -> f64);

/// The columns of what balancing cost and brought.
pub const BALANCING: [Balanced; 5] = [
    ("redundant_slots", |of| of.redundant_slots as f64),
    ("moved_bytes", |of| of.moved.0),
    ("planning_s", |of| of.planning.0),
    ("balancing_s", |of| of.cost.0),
    ("max_over_mean", |of| of.max_over_mean),
];

/// A column, from a value of each row.
pub fn column<'r, R, T, P: ?Sized>(name: &str, rows: &'r [R], value: impl Fn(&'r R) -> T) -> Column
where
    Series: NamedFrom<Vec<T>, P>,
{
    Column::new(name.into(), rows.iter().map(value).collect::<Vec<T>>())
}

/// The `iterations` frame. Times in seconds, memory in bytes.
///
/// # Errors
/// What Polars says.
pub fn to_frame(rows: &[Row]) -> Result<DataFrame> {
    let mut columns = key_columns(rows);
    columns.extend(sample_columns(rows));
    let balancing = |row: &Row| row.sample.as_ref().ok()?.balancing;
    columns.extend(BALANCING.map(|(name, of)| column(name, rows, |row| balancing(row).as_ref().map(of))));
    Ok(DataFrame::new(rows.len(), columns)?)
}

/// The case of each row, and the system that ran it.
pub fn case_columns<'r, R>(rows: &'r [R], key: impl Fn(&'r R) -> &'r RunKey) -> Vec<Column> {
    vec![
        column("case", rows, |row| key(row).case.as_str()),
        column("model", rows, |row| key(row).model.as_str()),
        column("cluster", rows, |row| key(row).cluster.as_str()),
        column("gpus", rows, |row| key(row).gpus),
        column("gate", rows, |row| key(row).gate.kind()),
        column("capacity_factor", rows, |row| key(row).gate.capacity_factor()),
        column("layer", rows, |row| key(row).layer),
        column("system", rows, |row| key(row).system.as_str()),
    ]
}

fn key_columns(rows: &[Row]) -> Vec<Column> {
    fn degree(name: &str, rows: &[Row], of: impl Fn(&Plan) -> usize) -> Column {
        column(name, rows, |row| row.key.plan.as_ref().map(|plan| of(plan) as u32))
    }
    let mut columns = case_columns(rows, |row| &row.key);
    columns.extend([
        column("seed", rows, |row| row.key.seed),
        column("engine", rows, |row| row.key.engine.name()),
        column("plan", rows, |row| row.key.plan.map(|plan| plan.to_string())),
        degree("pp", rows, |plan| plan.pp),
        degree("dp", rows, |plan| plan.dp),
        degree("tp", rows, |plan| plan.tp),
        degree("ep", rows, |plan| plan.ep),
        degree("expert_dp", rows, |plan| plan.expert_dp),
        degree("micro_batch", rows, |plan| plan.micro_batch),
        degree("placement_every", rows, |plan| plan.placement_every),
        column("expected_step_s", rows, |row| row.key.expected.map(|time| time.0)),
        column("balanced_step_s", rows, |row| row.key.balanced.map(|time| time.0)),
    ]);
    columns
}

fn sample_columns(rows: &[Row]) -> Vec<Column> {
    fn sample(row: &Row) -> Option<&Sample> {
        row.sample.as_ref().ok()
    }
    fn failure(row: &Row) -> Option<&RunFailure> {
        row.sample.as_ref().err()
    }
    vec![
        column("iteration", rows, |row| row.iteration),
        column("status", rows, |row| failure(row).map_or(Status::Ok, |failure| failure.status).name()),
        column("reason", rows, |row| failure(row).map_or("", |failure| failure.reason.as_str())),
        column("step_s", rows, |row| sample(row).map(|sample| sample.step.0)),
        column("loss", rows, |row| sample(row).and_then(|sample| sample.loss)),
        column("predicted_step_s", rows, |row| sample(row).and_then(|sample| Some(sample.predicted?.0))),
        column("decision_s", rows, |row| sample(row).map(|sample| sample.decision.0)),
        column("migration_s", rows, |row| sample(row).map(|sample| sample.migration.0)),
        column("moved_experts", rows, |row| sample(row).map(|sample| sample.moved)),
        column("shadowed_experts", rows, |row| sample(row).map(|sample| sample.copied)),
        column("entries", rows, |row| sample(row).map(|sample| sample.entries)),
        column("dropped", rows, |row| sample(row).map(|sample| sample.dropped)),
        column("peak_rank", rows, |row| sample(row).and_then(|sample| Some(sample.peak?.rank as u32))),
        column("peak_bytes", rows, |row| sample(row).and_then(|sample| Some(sample.peak?.bytes.0))),
    ]
}

/// The rows of an `iterations` frame.
///
/// # Errors
/// A column that is not there or of another type, a word that is no engine, status or gate.
pub fn from_frame(frame: &DataFrame) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::with_capacity(frame.height());
    for index in 0..frame.height() {
        let cells = Cells { frame, row: index };
        let row = cells.row(rows.last()).with_context(|| format!("row {index} of the iterations"))?;
        rows.push(row);
    }
    Ok(rows)
}

/// One row of a frame.
struct Cells<'a> {
    frame: &'a DataFrame,
    row: usize,
}

impl<'a> Cells<'a> {
    /// Rows of one run share their key.
    fn row(&self, last: Option<&Row>) -> Result<Row> {
        let key = self.key()?;
        let key = match last {
            Some(last) if *last.key == key => last.key.clone(),
            _ => Arc::new(key),
        };
        let sample = match self.word("status")?.parse()? {
            Status::Ok => Ok(self.sample()?),
            status => Err(RunFailure { status, reason: self.word("reason")?.to_owned() }),
        };
        Ok(Row { key, iteration: self.need("iteration", self.u32("iteration")?)?, sample })
    }

    fn key(&self) -> Result<RunKey> {
        Ok(RunKey {
            case: self.word("case")?.to_owned(),
            model: self.word("model")?.to_owned(),
            cluster: self.word("cluster")?.to_owned(),
            gpus: self.need("gpus", self.u32("gpus")?)?,
            gate: self.gate()?,
            layer: self.u32("layer")?,
            system: self.word("system")?.to_owned(),
            seed: self.need("seed", self.u64("seed")?)?,
            engine: self.word("engine")?.parse()?,
            plan: self.plan()?,
            expected: self.f64("expected_step_s")?.map(Seconds),
            // Not in records before version 4.
            balanced: self.later("balanced_step_s")?.map(Seconds),
        })
    }

    fn gate(&self) -> Result<Gate> {
        let kind = self.word("gate")?;
        let factor = self.f64("capacity_factor")?;
        let text = factor.map_or(kind.to_owned(), |factor| format!("{kind} {factor}"));
        text.parse().map_err(|error: String| anyhow!(error))
    }

    fn plan(&self) -> Result<Option<Plan>> {
        Ok(self.frame.column("plan")?.str()?.get(self.row).map(str::parse).transpose()?)
    }

    fn sample(&self) -> Result<Sample> {
        let seconds = |name| Ok::<_, anyhow::Error>(Seconds(self.need(name, self.f64(name)?)?));
        let peak = self.u32("peak_rank")?.zip(self.f64("peak_bytes")?);
        Ok(Sample {
            step: seconds("step_s")?,
            loss: self.f64("loss")?,
            predicted: self.f64("predicted_step_s")?.map(Seconds),
            decision: seconds("decision_s")?,
            migration: seconds("migration_s")?,
            moved: self.need("moved_experts", self.u32("moved_experts")?)?,
            copied: self.need("shadowed_experts", self.u64("shadowed_experts")?)?,
            balancing: self.balancing()?,
            entries: self.need("entries", self.u64("entries")?)?,
            dropped: self.need("dropped", self.u64("dropped")?)?,
            peak: peak.map(|(rank, bytes)| Peak { rank: rank as usize, bytes: Bytes(bytes) }),
        })
    }

    fn balancing(&self) -> Result<Option<Balancing>> {
        let all = BALANCING.iter().map(|(name, _)| self.later(name)).collect::<Result<Vec<_>>>()?;
        let [Some(slots), Some(moved), Some(planning), Some(cost), Some(max_over_mean)] = all[..] else {
            return Ok(None);
        };
        let (redundant_slots, [planning, cost]) = (slots as usize, [planning, cost].map(Seconds));
        Ok(Some(Balancing { redundant_slots, moved: Bytes(moved), planning, cost, max_over_mean }))
    }

    /// Nothing in records of versions before the column.
    fn later(&self, name: &str) -> Result<Option<f64>> {
        if self.frame.column(name).is_ok() { self.f64(name) } else { Ok(None) }
    }

    fn u32(&self, name: &str) -> Result<Option<u32>> {
        Ok(self.frame.column(name)?.u32()?.get(self.row))
    }

    fn u64(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.frame.column(name)?.u64()?.get(self.row))
    }

    fn f64(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.frame.column(name)?.f64()?.get(self.row))
    }

    fn word(&self, name: &str) -> Result<&'a str> {
        self.need(name, self.frame.column(name)?.str()?.get(self.row))
    }

    fn need<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.with_context(|| format!("no {name}"))
    }
}

/// Mean time of an iteration by case and system, `[stage]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeanPhases(BTreeMap<(String, String), Vec<Ledger>>);

impl MeanPhases {
    /// Whether any phase was kept.
    pub fn is_there(&self) -> bool {
        !self.0.is_empty()
    }

    /// Of a system on a case, `[stage]`; empty where it did not end an iteration after warm-up.
    pub fn of(&self, case: &str, system: &str) -> &[Ledger] {
        self.0.get(&(case.to_owned(), system.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// Where the time of iterations after `warmup` went, all seeds together, from a `spans` frame.
///
/// # Errors
/// A column that is not there or of another type, or an unknown phase.
pub fn mean_phases(frame: &DataFrame, warmup: usize) -> Result<MeanPhases> {
    let (case, system, phase) =
        (frame.column("case")?.str()?, frame.column("system")?.str()?, frame.column("phase")?.str()?);
    let (seed, seconds) = (frame.column("seed")?.u64()?, frame.column("seconds")?.f64()?);
    let (iteration, stage) = (frame.column("iteration")?.u32()?, frame.column("stage")?.u32()?);
    let mut sums = MeanPhases::default();
    let mut iterations: BTreeMap<(&str, &str), BTreeSet<(u64, u32)>> = BTreeMap::new();
    for index in 0..frame.height() {
        let (key, at) = (case.get(index).zip(system.get(index)), seed.get(index).zip(iteration.get(index)));
        let spent = stage.get(index).zip(phase.get(index)).zip(seconds.get(index));
        let all = key.zip(at).zip(spent).with_context(|| format!("row {index}: a value is missing"))?;
        let ((key, (seed, iteration)), ((stage, phase), seconds)) = all;
        if iteration as usize <= warmup {
            continue;
        }
        let phase = Phase::ALL.into_iter().find(|known| known.name() == phase);
        let phase = phase.with_context(|| format!("row {index}: unknown phase"))?;
        iterations.entry(key).or_default().insert((seed, iteration));
        let stages = sums.0.entry((key.0.to_owned(), key.1.to_owned())).or_default();
        if stages.len() <= stage as usize {
            stages.resize(stage as usize + 1, Ledger::default());
        }
        stages[stage as usize].add(phase, Seconds(seconds));
    }
    for ((case, system), stages) in &mut sums.0 {
        let count = iterations[&(case.as_str(), system.as_str())].len() as f64;
        for ledger in stages {
            let mut mean = Ledger::default();
            mean.merge(ledger, 1.0 / count);
            *ledger = mean;
        }
    }
    Ok(sums)
}

/// The `spans` frame of some runs: the mean time of a stage's ranks in each phase that took any.
///
/// # Errors
/// What Polars says.
pub fn spans_frame(runs: &[RunRecord]) -> Result<DataFrame> {
    let mut rows = Vec::new();
    for run in runs {
        for (of, iteration) in run.outcome.iterations.iter().zip(1_u32..) {
            for (ledger, stage) in of.timing.phases.iter().zip(0_u32..) {
                let times = Phase::ALL.map(|phase| (&run.key, iteration, stage, phase, ledger.of(phase)));
                rows.extend(times.into_iter().filter(|(.., time)| *time > Seconds::ZERO));
            }
        }
    }
    let columns = vec![
        column("case", &rows, |(key, ..)| key.case.as_str()),
        column("system", &rows, |(key, ..)| key.system.as_str()),
        column("seed", &rows, |(key, ..)| key.seed),
        column("engine", &rows, |(key, ..)| key.engine.name()),
        column("iteration", &rows, |(_, iteration, ..)| *iteration),
        column("stage", &rows, |(_, _, stage, ..)| *stage),
        column("phase", &rows, |(.., phase, _)| phase.name()),
        column("seconds", &rows, |(.., time)| time.0),
    ];
    Ok(DataFrame::new(rows.len(), columns)?)
}
