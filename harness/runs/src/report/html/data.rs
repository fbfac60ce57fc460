//! What the page's script draws from, as plain values. Times in seconds, memory in bytes, four digits.

use serde::Serialize;
use systems::price::ledger::{Ledger, Phase};

use crate::details::{Imbalance, Moves, RunDetails, Timeline, Traffic};
use crate::figures;
use crate::figures::labels::{Part, in_words, placed, systems};
use crate::looks;
use crate::records::{Row, RunKey};
use crate::report::html::answer::phase_words;
use crate::report::html::cases::{self, Labels};
use crate::stored::StoredRun;
use crate::summary::SummaryRow;

/// Room on a page, so that it stays below some megabytes: what later cases have beyond it is left out.
struct Room {
    /// Of timelines, about 20 B each.
    spans: usize,
    /// Of traffic, about 5 B each.
    cells: usize,
}

const ROOM: Room = Room { spans: 100_000, cells: 250_000 };

/// Whether there is room for so many; then they are taken.
fn fits(room: &mut usize, count: usize) -> bool {
    let fits = count <= *room;
    *room -= if fits { count } else { 0 };
    fits
}

#[derive(Serialize)]
pub(super) struct Data<'a> {
    phases: Vec<PhaseData>,
    runs: Vec<RunData<'a>>,
}

#[derive(Serialize)]
struct PhaseData {
    name: &'static str,
    words: &'static str,
}

#[derive(Serialize)]
struct RunData<'a> {
    name: &'a str,
    engine: &'static str,
    warmup: usize,
    /// What spreads are over.
    spread: String,
    /// Index of the system that the suite compares with.
    baseline: usize,
    systems: Vec<SystemData>,
    cases: Vec<CaseData<'a>>,
    rows: Vec<RowData<'a>>,
}

#[derive(Serialize)]
struct SystemData {
    name: String,
    title: String,
    color: String,
    hatch: &'static str,
}

#[derive(Serialize)]
struct CaseData<'a> {
    id: &'a str,
    label: &'a str,
    model: &'a str,
    /// Or where it was measured.
    cluster: String,
    /// What ran where.
    ran: String,
    gpus: u32,
    gate: String,
    batch: Option<usize>,
    /// GPUs of a node.
    node: Option<usize>,
    /// What a run may use of a rank's memory.
    limit: Option<f64>,
    imbalance: Option<&'a Imbalance>,
}

/// A speedup by totals, its spread, and by medians.
type Over = (f64, Option<[f64; 2]>, f64);

#[derive(Serialize)]
struct RowData<'a> {
    /// Indices into the run's cases and systems.
    case: usize,
    system: usize,
    plan: Option<PlanData>,
    status: &'static str,
    reason: &'a str,
    mean: Option<f64>,
    median: Option<f64>,
    /// `[reference system]`.
    over: Vec<Option<Over>>,
    published: Option<f64>,
    /// Whether what was published is of another plan.
    published_other: bool,
    error: Option<String>,
    extrapolated: Option<&'static str>,
    peak: Option<f64>,
    /// `[stage][phase]`.
    phases: Vec<Vec<f64>>,
    /// Of the first seed, iteration by iteration.
    steps: Vec<f64>,
    /// Iteration, experts that moved, and what moving took.
    moves: Vec<(u32, u32, f64)>,
    /// Of the same seed, layer by layer.
    layers: Option<&'a Moves>,
    memory: &'a [f64],
    traffic: Option<&'a Traffic>,
    timelines: &'a [Timeline],
}

#[derive(Serialize)]
struct PlanData {
    text: String,
    /// Name and value of each dimension, all of them.
    parts: Vec<(&'static str, String)>,
}

impl<'a> Data<'a> {
    pub(super) fn new(runs: &'a [StoredRun], labels: &'a Labels) -> Self {
        let mut room = ROOM;
        let phases = Phase::ALL.map(|phase| PhaseData { name: phase.name(), words: phase_words(phase) });
        let runs = runs.iter().zip(labels.short()).map(|(run, name)| RunData::new(run, name, labels, &mut room));
        Self { phases: phases.into(), runs: runs.collect() }
    }
}

impl<'a> RunData<'a> {
    fn new(run: &'a StoredRun, name: &'a str, labels: &'a Labels, room: &mut Room) -> Self {
        let (systems, keys) = (systems(run), cases(run));
        let rows = run.summary.rows.iter().map(|row| {
            let case = keys.iter().position(|key| key.case == row.key.case).unwrap_or(0);
            RowData::new(run, row, case, &systems, room)
        });
        Self {
            name,
            engine: run.provenance.engine.name(),
            warmup: run.facts.warmup,
            spread: run.summary.spread_over(),
            baseline: systems.iter().position(|system| *system == run.summary.baseline).unwrap_or(0),
            rows: rows.collect(),
            cases: keys.iter().map(|key| CaseData::new(run, key, labels)).collect(),
            systems: systems.into_iter().map(SystemData::new).collect(),
        }
    }
}

/// Cases of a run, in order, by their first rows.
fn cases(run: &StoredRun) -> Vec<&RunKey> {
    let mut cases: Vec<&RunKey> = Vec::new();
    for row in &run.summary.rows {
        if cases.last().is_none_or(|last| last.case != row.key.case) {
            cases.push(&row.key);
        }
    }
    cases
}

impl SystemData {
    fn new(name: &str) -> Self {
        let look = looks::of(name);
        let [red, green, blue] = look.color;
        Self {
            name: name.to_owned(),
            title: figures::title(name),
            color: format!("#{red:02x}{green:02x}{blue:02x}"),
            hatch: look.hatch.name(),
        }
    }
}

impl<'a> CaseData<'a> {
    fn new(run: &'a StoredRun, key: &'a RunKey, labels: &'a Labels) -> Self {
        let details: Vec<&RunDetails> = run.details.iter().filter(|details| details.case == key.case).collect();
        let place = &run.facts.drawn.measured_on;
        Self {
            id: &key.case,
            label: labels.case(run, &key.case),
            model: &key.model,
            cluster: placed(place, Part::Cluster, key),
            ran: in_words(place, key, &[Part::Model, Part::Gpus, Part::Cluster]),
            gpus: key.gpus,
            gate: cases::gate(&key.gate),
            batch: details.first().map(|details| details.global_batch),
            node: details.first().map(|details| details.gpus_per_node),
            limit: details.first().map(|details| details.memory_limit),
            imbalance: furthest(&details),
        }
    }
}

/// The imbalance of the run that went furthest, of equals the first: one that failed has only the beginning.
fn furthest<'a>(details: &[&'a RunDetails]) -> Option<&'a Imbalance> {
    let all = details.iter().filter_map(|details| details.imbalance.as_ref());
    all.rev().max_by_key(|imbalance| imbalance.from.last())
}

impl<'a> RowData<'a> {
    fn new(run: &'a StoredRun, row: &'a SummaryRow, case: usize, systems: &[&str], room: &mut Room) -> Self {
        let details = run.details_of(&row.key.case, &row.key.system);
        let timelines = details.map_or(&[][..], |details| &details.timelines);
        let spans = timelines.iter().flat_map(|timeline| &timeline.ranks).map(|rank| rank.spans.len()).sum::<usize>();
        let timelines = if fits(&mut room.spans, spans) { timelines } else { &[] };
        let traffic = details.and_then(|details| details.traffic.as_ref());
        let traffic = traffic.filter(|traffic| fits(&mut room.cells, traffic.megabytes.len().pow(2)));
        let over = |system: &&str| {
            let speedup = row.over(run.summary.row(&row.key.case, system)?)?;
            let spread = speedup.spread.map(|ends| ends.map(exact));
            Some((exact(speedup.by_totals), spread, exact(speedup.by_medians)))
        };
        let seed = |row: &&Row| row.key.seed;
        let own = run.rows.iter().filter(|other| other.key.case == row.key.case && other.key.system == row.key.system);
        let own: Vec<&Row> = own.collect();
        let first: Vec<&Row> = own.iter().copied().filter(|other| seed(other) == seed(&own[0])).collect();
        let samples = || first.iter().filter_map(|row| Some((row.iteration, row.sample.as_ref().ok()?)));
        Self {
            case,
            system: systems.iter().position(|system| *system == row.key.system).unwrap_or(0),
            plan: row.key.plan.as_ref().map(PlanData::new),
            status: row.status().name(),
            reason: row.failure.as_ref().map_or("", |failure| &failure.reason),
            mean: row.step.map(|step| exact(step.mean)),
            median: row.step.map(|step| exact(step.median)),
            over: systems.iter().map(over).collect(),
            published: row.published.speedup_by_medians.map(exact),
            published_other: row.published.speedup_of_other_plan,
            error: row.model_error.as_ref().map(|error| format!("{} ({})", error.label(), error.of())),
            extrapolated: row.extrapolated,
            peak: row.peak_bytes.map(short),
            phases: run.phases.of(&row.key.case, &row.key.system).iter().map(times).collect(),
            steps: samples().map(|(_, sample)| short(sample.step.0)).collect(),
            moves: samples()
                .filter(|(_, sample)| sample.moved > 0)
                .map(|(iteration, sample)| (iteration, sample.moved, short(sample.migration.0)))
                .collect(),
            layers: details.and_then(|details| details.moves.as_ref()),
            memory: details.map_or(&[], |details| &details.memory),
            traffic,
            timelines,
        }
    }
}

fn times(ledger: &Ledger) -> Vec<f64> {
    Phase::ALL.iter().map(|&phase| short(ledger.of(phase).0)).collect()
}

impl PlanData {
    fn new(plan: &systems::Plan) -> Self {
        let parts = vec![
            ("pipeline stages (pp)", plan.pp.to_string()),
            ("data parallel (dp)", plan.dp.to_string()),
            ("tensor parallel (tp)", plan.tp.to_string()),
            ("expert parallel (ep)", plan.ep.to_string()),
            ("replicas of experts (edp)", plan.expert_dp.to_string()),
            ("micro-batch (mb)", plan.micro_batch.to_string()),
            ("virtual stages (vp)", plan.vp.to_string()),
            ("ZeRO stage", u8::from(plan.zero).to_string()),
            ("recomputation", plan.recompute.name().to_owned()),
            ("iterations between placements", plan.placement_every.to_string()),
        ];
        Self { text: plan.to_string(), parts }
    }
}

/// Four digits, of what is drawn.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// Seven digits, of what the page rounds to three: rounding twice would show other last digits than the summary.
fn exact(value: f64) -> f64 {
    format!("{value:.6e}").parse().unwrap_or(value)
}
