//! What a report shows of a run besides its records: memory of every rank, imbalance of the routing over time, bytes between
//! pairs of ranks, and what some ranks do when in the last iteration. Small, because it is kept of every run: values have
//! three digits, time and ranks are thinned out. Engines that do not follow something leave it empty.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use systems::Job;
use systems::iteration::schedule::Work;
use systems::iteration::timeline::{Activity, Span};
use workloads::{Bytes, EngineKind};

use crate::prepare::PreparedRun;
use crate::records::Outcome;

/// Version of the file below.
const VERSION: u32 = 1;

/// Columns of an imbalance, at most.
const MOST_COLUMNS: usize = 48;

/// Rows and columns of a traffic matrix, at most.
const MOST_CELLS: usize = 64;

/// Ranks whose spans are kept, at most.
const MOST_RANKS: usize = 4;

/// Spans of a run that are kept, at most.
const MOST_SPANS: usize = 2400;

/// `details.json`.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    runs: Vec<RunDetails>,
}

/// Details of one system on one case under one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunDetails {
    pub case: String,
    pub seed: u64,
    pub system: String,
    pub global_batch: usize,
    pub gpus_per_node: usize,
    /// The cluster's GPU; nothing in runs of older versions.
    #[serde(default)]
    pub gpu: String,
    /// What a run may use of a rank's memory, B.
    pub memory_limit: f64,
    /// What an hour of a GPU costs, where the cluster says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hour_price: Option<f64>,
    /// None of a layer that runs alone, and of runs of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// `[rank]`: most memory over all iterations, B; empty where memory was not followed rank by rank.
    pub memory: Vec<f64>,
    /// Of what the gate chose, before any capacity; none where it is that of the case's first run.
    pub imbalance: Option<Imbalance>,
    /// Of experts that changed rank; none where none did, or where that was not followed layer by layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moves>,
    pub traffic: Option<Traffic>,
    /// Of the last iteration, by each engine that says what its ranks do when.
    pub timelines: Vec<Timeline>,
}

/// What an iteration trains.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// Of the global batch.
    pub tokens: u64,
    /// Forward and backward, active experts alone, nothing recomputed: what MFU divides by.
    pub flops: f64,
    /// Of a GPU of the cluster, FLOP/s, where its source states it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_flops: Option<f64>,
}

impl Effort {
    /// Of the model's training, by as many choices a token as the gate takes.
    fn new(job: &Job) -> Option<Self> {
        let (model, samples) = (&job.model, job.global_batch as u64);
        Some(Self {
            tokens: model.blocks.first()?.tokens as u64 * samples,
            flops: model.training_flops_of(job.top_k()).0 * samples as f64,
            peak_flops: job.cluster.gpu.gemm_rate.peak,
        })
    }
}

/// How unevenly experts were chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Imbalance {
    /// `[column]`: the iteration that it begins with, counted from 1.
    pub from: Vec<usize>,
    /// `[moe layer][column]`: load of the busiest expert over the mean load, mean over the column's iterations.
    pub max_over_mean: Vec<Vec<f64>>,
}

/// Experts that changed rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moves {
    /// `[column]`: the iteration that it begins with, counted from 1.
    pub from: Vec<usize>,
    /// `[moe layer][column]`: how many, in all of the column's iterations.
    pub experts: Vec<Vec<usize>>,
}

/// What ranks send each other in the last iteration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Successive ranks that a row or a column stands for.
    pub ranks_per_cell: usize,
    /// `[from][to]`: rows of all dispatches and combines, MB.
    pub megabytes: Vec<Vec<f64>>,
}

/// What some ranks do when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    pub engine: EngineKind,
    /// Names of activities, and the phases that they count as.
    pub activities: Vec<(String, String)>,
    pub ranks: Vec<RankTimeline>,
    /// Whether spans at the end were left out.
    pub cut: bool,
}

/// What one rank does when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankTimeline {
    pub rank: usize,
    /// By start. For each: activity; start after that of the span before, and length, in microseconds; stream (0 compute,
    /// 1 communication, 2 copies); block + 1, or 0; 2 x micro-batch + 1 forward, + 2 backward, or 0.
    pub spans: Vec<[u64; 6]>,
}

/// The ranks whose spans are kept, evenly spread over the world.
pub fn watched(world: usize) -> Vec<usize> {
    let count = world.min(MOST_RANKS);
    (0..count).map(|index| index * world / count).collect()
}

impl RunDetails {
    pub fn new(run: &PreparedRun, outcome: &Outcome) -> Self {
        Self {
            case: run.case_id.clone(),
            seed: run.seed,
            system: run.system.name().to_owned(),
            global_batch: run.case.global_batch,
            gpus_per_node: run.job.cluster.gpus_per_node,
            gpu: run.job.cluster.gpu.name.clone(),
            memory_limit: run.job.cluster.gpu.usable().0,
            hour_price: run.job.cluster.gpu.hour_price.as_ref().map(|price| price.value),
            effort: if run.case.layer.is_none() { Effort::new(&run.job) } else { None },
            memory: memory(outcome),
            imbalance: Imbalance::new(&outcome.imbalance),
            moves: Moves::new(&outcome.moved),
            traffic: Traffic::new(&outcome.exchanged),
            timelines: outcome.timelines.iter().map(|(engine, spans)| Timeline::new(*engine, spans)).collect(),
        }
    }
}

/// `[rank]`: most over all iterations.
fn memory(outcome: &Outcome) -> Vec<f64> {
    let mut most: Vec<f64> = Vec::new();
    let ended = outcome.iterations.iter().map(|iteration| &iteration.timing.memory);
    for memory in ended.chain([&outcome.memory_at_failure]) {
        most.resize(most.len().max(memory.len()), 0.0);
        most.iter_mut().zip(memory).for_each(|(most, bytes)| *most = most.max(bytes.0));
    }
    let followed = most.iter().any(|&bytes| bytes > 0.0);
    if followed { most.into_iter().map(short).collect() } else { Vec::new() }
}

impl Imbalance {
    /// From `[iteration][layer]`; nothing of nothing.
    fn new(iterations: &[Vec<f64>]) -> Option<Self> {
        let layers = iterations.first()?.len();
        let width = iterations.len().div_ceil(MOST_COLUMNS);
        let columns: Vec<&[Vec<f64>]> = iterations.chunks(width).collect();
        let mean =
            |column: &&[Vec<f64>], layer: usize| column.iter().map(|of| of[layer]).sum::<f64>() / column.len() as f64;
        Some(Self {
            from: (0..columns.len()).map(|column| column * width + 1).collect(),
            max_over_mean: (0..layers)
                .map(|layer| columns.iter().map(|column| short(mean(column, layer))).collect())
                .collect(),
        })
    }
}

impl Moves {
    /// From `[iteration][layer]`; nothing where nothing moved.
    fn new(iterations: &[Vec<usize>]) -> Option<Self> {
        let layers = iterations.first()?.len();
        iterations.iter().flatten().any(|&moved| moved > 0).then_some(())?;
        let width = iterations.len().div_ceil(MOST_COLUMNS);
        let sum = |column: &[Vec<usize>], layer: usize| column.iter().map(|of| of[layer]).sum();
        Some(Self {
            from: (1..=iterations.len()).step_by(width).collect(),
            experts: (0..layers)
                .map(|layer| iterations.chunks(width).map(|column| sum(column, layer)).collect())
                .collect(),
        })
    }
}

impl Traffic {
    /// From `[from][to]` of single ranks; nothing of nothing.
    fn new(exchanged: &[Vec<Bytes>]) -> Option<Self> {
        let size = exchanged.len().div_ceil(MOST_CELLS);
        let cells = exchanged.len().checked_div(size)? + usize::from(!exchanged.len().is_multiple_of(size));
        let mut megabytes = vec![vec![0.0; cells]; cells];
        for (from, row) in exchanged.iter().enumerate() {
            for (to, bytes) in row.iter().enumerate() {
                megabytes[from / size][to / size] += bytes.0 / 1e6;
            }
        }
        megabytes.iter_mut().flatten().for_each(|sum| *sum = short(*sum));
        Some(Self { ranks_per_cell: size, megabytes })
    }
}

impl Timeline {
    /// As many watched ranks as there is room for; of the first, if it must be, the beginning.
    fn new(engine: EngineKind, spans: &[Span]) -> Self {
        let world = spans.iter().map(|span| span.rank + 1).max().unwrap_or(0);
        let mut timeline = Self { engine, activities: Vec::new(), ranks: Vec::new(), cut: false };
        let mut numbers = BTreeMap::new();
        let mut room = MOST_SPANS;
        for rank in watched_of(spans, world) {
            let mut own: Vec<&Span> = spans.iter().filter(|span| span.rank == rank).collect();
            own.sort_by(|a, b| a.start.0.total_cmp(&b.start.0));
            if own.len() > room {
                if !timeline.ranks.is_empty() {
                    break;
                }
                own.truncate(room);
                timeline.cut = true;
            }
            room -= own.len();
            let mut number = |activity: Activity| {
                *numbers.entry(activity.name()).or_insert_with(|| {
                    timeline.activities.push((activity.name().to_owned(), activity.phase().name().to_owned()));
                    timeline.activities.len() - 1
                })
            };
            let mut before = 0;
            let spans = own.iter().map(|span| encoded(span, number(span.activity), &mut before)).collect();
            timeline.ranks.push(RankTimeline { rank, spans });
        }
        timeline
    }
}

/// Of the watched ranks those that have spans; of spans that were watched before, all.
fn watched_of(spans: &[Span], world: usize) -> Vec<usize> {
    let mut ranks: Vec<usize> = spans.iter().map(|span| span.rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    if ranks.len() <= MOST_RANKS { ranks } else { watched(world) }
}

fn encoded(span: &Span, activity: usize, before: &mut u64) -> [u64; 6] {
    let microseconds = |seconds: f64| (seconds * 1e6).round() as u64;
    let (start, end) = (microseconds(span.start.0), microseconds(span.end.0));
    let since = start - *before;
    *before = start;
    let work = match span.work {
        Some(Work::Forward(m)) => 2 * m as u64 + 1,
        Some(Work::Backward(m)) => 2 * m as u64 + 2,
        None => 0,
    };
    let block = span.block.map_or(0, |block| block as u64 + 1);
    [activity as u64, since, end - start, span.activity.stream() as u64, block, work]
}

/// Three digits.
fn short(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

/// The text of `details.json`: an imbalance that is the one before, in a case, is left out.
///
/// # Errors
/// None that is known of.
pub fn to_json(mut runs: Vec<RunDetails>) -> Result<String> {
    for case in runs.chunk_by_mut(|a, b| (&a.case, a.seed) == (&b.case, b.seed)) {
        let first = case[0].imbalance.clone();
        case[1..].iter_mut().filter(|run| run.imbalance == first).for_each(|run| run.imbalance = None);
    }
    Ok(serde_json::to_string(&File { version: VERSION, runs })? + "\n")
}

/// Reads that text.
///
/// # Errors
/// No such text, or one of another version.
pub fn from_json(text: &str) -> Result<Vec<RunDetails>> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_str(text).context("expected the details of a run")?;
    ensure!(version == VERSION, "version {version}: this program reads version {VERSION}");
    Ok(serde_json::from_str::<File>(text)?.runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use systems::program::Op;
    use workloads::{Cluster, Gate, Model, Seconds};

    /// Mixtral 8x7B has 2 of 8 experts a token: three products of 4096 x 14336 in each of 32 layers.
    #[test]
    fn a_switch_gate_trains_one_expert_a_token() {
        let model = Model::named("test", "mixtral-8x7b").unwrap();
        let effort = |gate| {
            let job = Job::new(model.clone(), Cluster::named("test", "h100x8").unwrap(), 64, gate, 256);
            Effort::new(&job).unwrap()
        };
        let (both, one) = (effort(Gate::NoDrop), effort("switch 4".parse().unwrap()));
        let expert = 6.0 * 32.0 * 3.0 * 4096.0 * 14336.0 * both.tokens as f64;
        assert_eq!(one.tokens, both.tokens);
        assert!(((both.flops - one.flops) / expert - 1.0).abs() < 1e-3, "{both:?} {one:?}");
    }

    #[test]
    fn time_is_thinned_out_to_means() {
        let iterations: Vec<Vec<f64>> = (0..96).map(|t| vec![f64::from(t), 1.0]).collect();
        let imbalance = Imbalance::new(&iterations).unwrap();
        assert_eq!(imbalance.from.len(), 48);
        assert_eq!(imbalance.from[..3], [1, 3, 5]);
        assert_eq!(imbalance.max_over_mean[0][..3], [0.5, 2.5, 4.5]);
        assert!(imbalance.max_over_mean[1].iter().all(|&one| one == 1.0));
        assert_eq!(Imbalance::new(&[]), None);
    }

    #[test]
    fn moves_keep_their_sum() {
        let moved: Vec<Vec<usize>> = (0..100).map(|t| vec![usize::from(t % 10 == 0), 0]).collect();
        let moves = Moves::new(&moved).unwrap();
        assert_eq!((moves.from.len(), &moves.from[..3]), (34, &[1, 4, 7][..]));
        assert_eq!(moves.experts.iter().map(|layer| layer.iter().sum::<usize>()).collect::<Vec<_>>(), [10, 0]);
        assert_eq!((Moves::new(&[vec![0, 0]]), Moves::new(&[])), (None, None));
    }

    #[test]
    fn a_large_matrix_keeps_its_sum() {
        let exchanged = |world: usize| vec![vec![Bytes(1e6); world]; world];
        let traffic = Traffic::new(&exchanged(130)).unwrap();
        assert_eq!((traffic.ranks_per_cell, traffic.megabytes.len()), (3, 44));
        assert_eq!(traffic.megabytes.iter().flatten().sum::<f64>(), 130.0 * 130.0);
        assert_eq!(Traffic::new(&exchanged(64)).unwrap().ranks_per_cell, 1);
        assert_eq!(Traffic::new(&[]), None);
    }

    #[test]
    fn spans_are_kept_as_far_as_there_is_room() {
        let span = |rank: usize, at: usize| Span {
            rank,
            activity: Activity::Op(Op::Combine { step: 0 }),
            block: Some(2),
            work: Some(Work::Backward(3)),
            start: Seconds(at as f64 * 1e-3),
            end: Seconds(at as f64 * 1e-3 + 4e-4),
        };
        let of = |ranks: usize, each: usize| {
            let spans: Vec<Span> = (0..ranks).flat_map(|rank| (0..each).map(move |at| span(rank, at))).collect();
            Timeline::new(EngineKind::Simulated, &spans)
        };
        let ranks = |timeline: &Timeline| timeline.ranks.iter().map(|of| of.rank).collect::<Vec<_>>();
        assert_eq!(ranks(&of(8, 10)), [0, 2, 4, 6]);
        assert_eq!(ranks(&of(8, 1000)), [0, 2]);
        let cut = of(2, 3000);
        assert!(cut.cut && ranks(&cut) == [0] && cut.ranks[0].spans.len() == MOST_SPANS);
        assert_eq!(cut.ranks[0].spans[1], [0, 1000, 400, 1, 3, 8]);
        assert_eq!(cut.activities, [("combine".to_owned(), "combine".to_owned())]);
    }

    #[test]
    fn another_version_is_refused() {
        let error = from_json("{\"version\":7,\"runs\":[{\"new\":1}]}").unwrap_err().to_string();
        assert_eq!(error, "version 7: this program reads version 1");
        assert!(from_json("[]").is_err());
        assert_eq!(from_json(&to_json(Vec::new()).unwrap()).unwrap(), []);
    }
}
