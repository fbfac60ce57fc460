//! Published training runs of modern models: simulated with the chips' constants and nothing fitted, and once more with a few
//! constants of one chip fitted to half of its runs and tested on the other half.

use anyhow::{Context, Result};
use chart::{AnyChart, Scatter, ScatterPanel};
use rayon::prelude::*;
use serde::Serialize;
use systems::iteration::{Charge, Coverage, Evaluation};
use systems::plan::routing::JobRouting;
use systems::plan::search;
use systems::{CostModel, Job, Plan, System};
use workloads::gate::GateStatistics;
use workloads::suite::TraceUse;
use workloads::throughput::{PublishedTraining, TrainingRouting};
use workloads::trace::{BatchCounts, RoutingTrace, Skew, SkewSpec, TraceShape};
use workloads::{Cluster, Gate};

use crate::calibrate;
use crate::calibrate::constants::{Fitted, Point};
use crate::measurements::order::{ORDER_TOLERANCE, in_order};
use crate::page::Section;
use crate::tables::{constants_table, percent, statistics_table};
use crate::{Inputs, Study, claims};
use runs::figures::PaperFigure;
use runs::figures::performance_model::{notes, series};
use runs::report;
use runs::summary::errors::{Errors, Pair};
use runs::summary::model_error::{ClusterError, Measured, Part};

/// The chip that constants are fitted for: the only one with enough runs.
pub const CHIP: &str = "h100x8";

/// What the runs can tell: how fast products are at the sizes that models have, and what the launches of a block's small kernels
/// take. A third, the bandwidth of memory, ends at its peak.
pub const CONSTANTS: [&str; 2] = ["gpu.gemm_rate", "host.block"];

/// Errors above this are shown with what is known about them.
const FAR: f64 = 0.15;

/// The runs, and a trace for those whose gate was free. Without one their routing is as balanced as chance allows: none of them
/// published its loads.
pub struct PublishedRuns<'a> {
    runs: Vec<PublishedTraining>,
    trace: Option<&'a RoutingTrace>,
}

/// A run that can be simulated, with its routing.
struct Subject<'a> {
    run: &'a PublishedTraining,
    system: &'static dyn System,
    job: Job,
    plan: Plan,
    batch: BatchCounts,
}

/// Which half of the chip's runs a run belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Half {
    /// Constants are fitted to it.
    Fitted,
    /// They are tested on it.
    Tested,
    /// Of another chip.
    Neither,
}

/// What the simulator says of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// Tokens per second and GPU.
    pub tokens_per_second: f64,
    /// Memory of the fullest rank, B.
    pub peak: f64,
    /// Whether that fits the card.
    pub fits: bool,
}

/// A run beside its simulations.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub row: String,
    pub model: String,
    pub cluster: String,
    pub gpus: usize,
    pub system: String,
    pub plan: String,
    pub global_batch: usize,
    pub routing: TrainingRouting,
    pub half: Half,
    /// Tokens per second and GPU, as published.
    pub measured: f64,
    /// With the constants as shipped.
    pub blind: Option<Simulated>,
    /// With those of the fit, on its chip.
    pub fitted: Option<Simulated>,
    /// What it has that is not modelled; nothing is simulated then.
    pub outside: Option<String>,
    pub note: Option<String>,
    pub source: String,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct PublishedErrors {
    pub lines: Vec<Line>,
    /// The constants of the chip after the fit.
    pub constants: Vec<Fitted>,
}

impl<'a> Study<'a> for PublishedRuns<'a> {
    type Outcome = PublishedErrors;

    fn read(_inputs: &'a Inputs) -> Result<Option<Self>> {
        Self::new(None).map(Some)
    }

    fn predict(&self) -> Result<PublishedErrors> {
        let subjects: Vec<Option<Subject>> =
            self.runs.par_iter().map(|run| self.subject(run)).collect::<Result<_>>()?;
        let halves = halves(&self.runs);
        let of_half = subjects.iter().zip(&halves).filter(|(_, half)| **half == Half::Fitted);
        let (cluster, constants) = fit(&of_half.filter_map(|(subject, _)| subject.as_ref()).collect::<Vec<_>>())?;
        let lines = self.runs.par_iter().zip(&subjects).zip(halves);
        let lines = lines.map(|((run, subject), half)| line(run, subject.as_ref(), half, &cluster)).collect();
        Ok(PublishedErrors { lines, constants })
    }

    fn section(&self, outcome: &PublishedErrors) -> Result<Section> {
        let mut section = Section::new("Published training runs of modern models");
        section.add(include_str!("prose/published.md"));
        section.picture(outcome.figure());
        section.table(outcome.statistics());
        section.add(format!("The constants of `{CHIP}` after that fit:"));
        section.table(constants_table(&outcome.constants));
        section.errors.extend(outcome.of_chip());
        section.claims.extend(outcome.claims());
        section.add(outcome.far());
        outcome.wrong_orders().1.iter().for_each(|wrong| section.add(format!("Wrong order: {wrong}.")));
        section.table(outcome.table());
        section.add("Not simulated, with what is not modelled:");
        section.table(outcome.outside());
        Ok(section)
    }
}

impl<'a> PublishedRuns<'a> {
    /// All runs that come with moebench; learned routing follows `trace`, flattened as by a balance loss.
    ///
    /// # Errors
    /// A defect of the file.
    pub fn new(trace: Option<&'a RoutingTrace>) -> Result<Self> {
        Ok(Self { runs: PublishedTraining::all()?, trace })
    }

    fn subject<'r>(&self, run: &'r PublishedTraining) -> Result<Option<Subject<'r>>> {
        if run.outside.is_some() {
            return Ok(None);
        }
        let label = || format!("published run {}", run.row);
        let plan = Plan::from(run.plan);
        let gate = match run.routing {
            TrainingRouting::Balanced => Gate::NoDrop,
            TrainingRouting::Learned => Gate::BalancedNoDrop,
        };
        let job = Job::new(run.model.clone(), run.cluster.clone(), run.gpus, gate, run.global_batch)
            .with_micro_batch(plan.micro_batch);
        plan.check(&job).with_context(label)?;
        let system = systems::by_name(&run.system).with_context(label)?;
        let batch = match (run.routing, self.trace) {
            (TrainingRouting::Balanced, _) => even(&job),
            (TrainingRouting::Learned, Some(trace)) => routed(&job, trace).with_context(label)?,
            (TrainingRouting::Learned, None) => {
                let job = Job { gate: Gate::NoDrop, ..job.clone() };
                routed(&job, &by_chance(&job).with_context(label)?).with_context(label)?
            }
        };
        Ok(Some(Subject { run, system, job, plan, batch }))
    }
}

fn routed(job: &Job, trace: &RoutingTrace) -> Result<BatchCounts> {
    Ok(JobRouting::new(job, TraceUse::default(), trace, 0)?.iteration(0))
}

/// A trace of a gate to which all experts are alike: counts scatter by chance alone.
fn by_chance(job: &Job) -> Result<RoutingTrace> {
    let moe = job.model.moe_layers().next().context("the model has no MoE layer")?;
    let top_k = job.top_k() as u32;
    let (layers, entries) = (job.model.moe_layers().count(), moe.tokens as u32 * top_k);
    let shape = TraceShape { layers, micro_batches: 1, ranks: 8, experts: moe.experts, entries, top_k };
    Ok(SkewSpec { shape, samples: 1, step: 1, seed: 1, skew: Skew::default() }.generate()?)
}

/// Every sample's choices spread evenly over the experts.
fn even(job: &Job) -> BatchCounts {
    let mut layers = job.model.moe_layers();
    let Some(moe) = layers.next() else { return BatchCounts::new(0, job.global_batch, 0, Vec::new()) };
    let (total, experts) = ((moe.tokens * job.top_k()) as u64, moe.experts as u64);
    let chunk: Vec<u32> = (0..experts).map(|e| (total * (e + 1) / experts - total * e / experts) as u32).collect();
    let all = 1 + layers.count();
    BatchCounts::new(all, job.global_batch, moe.experts, chunk.repeat(all * job.global_batch))
}

impl Subject<'_> {
    fn simulate(&self, cluster: &Cluster) -> Simulated {
        let Self { run, system, job, plan, batch } = self;
        let costs = CostModel::new(cluster, job.gpus);
        let policy = system.policy(job, plan);
        let timing = Evaluation {
            job,
            plan,
            costs: &costs,
            policy: policy.as_ref(),
            placements: &plan.experts_in_order(job),
            batch,
            charges: &vec![Charge::default(); plan.pp],
            coverage: Coverage::Sample,
        }
        .run();
        Simulated {
            tokens_per_second: run.tokens_per_second * run.step.0 / timing.step.0,
            peak: timing.peak.bytes.0,
            fits: search::fits(job, plan, timing.peak).is_ok(),
        }
    }

    /// With `constants` of the fitted chip; its own where it is another.
    fn simulate_with(&self, constants: &Cluster) -> Simulated {
        let own = &self.run.cluster;
        self.simulate(if own.name == constants.name { constants } else { own })
    }
}

/// Runs of the chip belong to the halves in turn, in the order of the file; one that is not simulated to none.
fn halves(runs: &[PublishedTraining]) -> Vec<Half> {
    let mut seen = 0;
    let mut of = |run: &PublishedTraining| {
        if run.cluster.name != CHIP || run.outside.is_some() {
            return Half::Neither;
        }
        seen += 1;
        if seen % 2 == 1 { Half::Fitted } else { Half::Tested }
    };
    runs.iter().map(&mut of).collect()
}

/// The chip with constants fitted to `subjects`.
fn fit(subjects: &[&Subject]) -> Result<(Cluster, Vec<Fitted>)> {
    let cluster = Cluster::named("validate published", CHIP)?;
    let start = Point { cluster, gate: GateStatistics::default() };
    let residuals = |point: &Point| -> Result<Vec<f64>> {
        let ratio = |subject: &&Subject| {
            (subject.run.tokens_per_second / subject.simulate(&point.cluster).tokens_per_second).ln()
        };
        Ok(subjects.par_iter().map(ratio).collect())
    };
    let (point, constants) =
        calibrate::fit_residuals(&start, &CONSTANTS.map(str::to_owned), subjects.len(), &residuals)?;
    Ok((point.cluster, constants))
}

fn line(run: &PublishedTraining, subject: Option<&Subject>, half: Half, constants: &Cluster) -> Line {
    Line {
        row: run.row.clone(),
        model: run.model.name.clone(),
        cluster: run.cluster.name.clone(),
        gpus: run.gpus,
        system: run.system.clone(),
        plan: run.plan.to_string(),
        global_batch: run.global_batch,
        routing: run.routing,
        half,
        measured: run.tokens_per_second,
        blind: subject.map(|subject| subject.simulate(&run.cluster)),
        fitted: subject.filter(|_| half != Half::Neither).map(|subject| subject.simulate_with(constants)),
        outside: run.outside.clone(),
        note: run.note.clone(),
        source: run.source.clone(),
    }
}

impl Line {
    /// What two runs must have in common for their plans to be compared.
    fn case(&self) -> (&str, &str, usize, usize, TrainingRouting) {
        (&self.model, &self.cluster, self.gpus, self.global_batch, self.routing)
    }

    fn pair(&self, of: impl Fn(&Self) -> Option<Simulated>) -> Option<Pair> {
        of(self).map(|simulated| Pair { predicted: simulated.tokens_per_second, measured: self.measured })
    }
}

impl PublishedErrors {
    fn pairs(&self, half: Option<Half>, of: impl Fn(&Line) -> Option<Simulated>) -> Vec<Pair> {
        let lines = self.lines.iter().filter(|line| half.is_none_or(|half| line.half == half));
        lines.filter_map(|line| line.pair(&of)).collect()
    }

    /// Errors of all simulated runs without a fit, of both halves without and with it.
    pub fn errors(&self) -> [(String, Option<Errors>); 5] {
        let blind = |line: &Line| line.blind;
        let fitted = |line: &Line| line.fitted;
        [
            ("all runs, nothing fitted".to_owned(), Errors::new(&self.pairs(None, blind))),
            ("half that is fitted to, nothing fitted".to_owned(), Errors::new(&self.pairs(Some(Half::Fitted), blind))),
            ("other half, nothing fitted".to_owned(), Errors::new(&self.pairs(Some(Half::Tested), blind))),
            ("half that was fitted to".to_owned(), Errors::new(&self.pairs(Some(Half::Fitted), fitted))),
            ("other half, after the fit".to_owned(), Errors::new(&self.pairs(Some(Half::Tested), fitted))),
        ]
    }

    /// What stands beside numbers of the chip: they are simulated with its constants as shipped, which were fitted to none of its
    /// runs.
    fn of_chip(&self) -> Option<ClusterError> {
        let runs = self.lines.iter().filter(|line| line.cluster == CHIP);
        let pairs: Vec<Pair> = runs.filter_map(|line| line.pair(|line| line.blind)).collect();
        Some(ClusterError::new(CHIP, Part::Iteration, &Errors::new(&pairs)?, Measured::Unseen))
    }

    /// Pairs of plans, or of systems, that trained one model on as many GPUs with one routing and batch and were measured apart: how
    /// many, and those in the wrong order with nothing fitted.
    pub fn wrong_orders(&self) -> (usize, Vec<String>) {
        let (mut pairs, mut wrong) = (0, Vec::new());
        let known: Vec<(&Line, Pair)> =
            self.lines.iter().filter_map(|line| Some((line, line.pair(|line| line.blind)?))).collect();
        for (at, (a, pair_a)) in known.iter().enumerate() {
            for (b, pair_b) in &known[..at] {
                let comparable = a.case() == b.case() && (&a.system, &a.plan) != (&b.system, &b.plan);
                let Some(right) = in_order(pair_a, pair_b, ORDER_TOLERANCE).filter(|_| comparable) else { continue };
                pairs += 1;
                if !right {
                    let [p, q] = [pair_b, pair_a].map(|pair| format!("{:.0} for {:.0}", pair.predicted, pair.measured));
                    wrong.push(format!("runs {} and {}: {p} and {q} tokens/s", b.row, a.row));
                }
            }
        }
        (pairs, wrong)
    }

    /// Simulated runs whose memory is beyond the card's.
    pub fn beyond_memory(&self) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.blind.is_some_and(|blind| !blind.fits)).collect()
    }

    fn claims(&self) -> Vec<claims::Claim> {
        let [.., tested] = self.errors();
        let (pairs, wrong) = self.wrong_orders();
        let known = self.lines.iter().filter(|line| line.blind.is_some()).count();
        let mut all: Vec<claims::Claim> =
            tested.1.as_ref().map(|errors| claims::published(CHIP, errors)).into_iter().collect();
        all.push(claims::published_order(pairs, wrong.len()));
        all.push(claims::published_memory(known, self.beyond_memory().len()));
        all
    }

    /// Errors by group.
    pub fn statistics(&self) -> comfy_table::Table {
        statistics_table(&self.errors(), "relative errors of")
    }

    /// A line per simulated run.
    pub fn table(&self) -> comfy_table::Table {
        let header =
            ["run", "model", "GPUs", "plan", "half", "published", "blind", "error", "fitted", "error", "peak GB"];
        let mut table = report::table(&header, &[2, 5, 6, 7, 8, 9, 10]);
        for line in self.lines.iter().filter(|line| line.blind.is_some()) {
            let tokens = |of: Option<Simulated>| of.map_or("-".into(), |of| format!("{:.0}", of.tokens_per_second));
            let error = |of: Option<Simulated>| line.pair(|_| of).map_or("-".into(), |pair| percent(pair.error()));
            let half = match line.half {
                Half::Fitted => "fitted",
                Half::Tested => "tested",
                Half::Neither => "-",
            };
            let peak = line.blind.map_or(String::new(), |blind| {
                format!("{:.1}{}", blind.peak / 1e9, if blind.fits { "" } else { " (oom)" })
            });
            table.add_row([
                line.row.clone(),
                line.model.clone(),
                format!("{} {}", line.gpus, line.cluster),
                format!("{}: {}", line.system, line.plan),
                half.to_owned(),
                format!("{:.0}", line.measured),
                tokens(line.blind),
                error(line.blind),
                tokens(line.fitted),
                error(line.fitted),
                peak,
            ]);
        }
        table
    }

    /// The runs that are far off with nothing fitted, the worst first, and what is known of them.
    fn far(&self) -> String {
        let error = |line: &Line| line.pair(|line| line.blind).map_or(0.0, |pair| pair.error());
        let mut far: Vec<&Line> = self.lines.iter().filter(|line| error(line).abs() > FAR).collect();
        far.sort_by(|a, b| error(b).abs().total_cmp(&error(a).abs()));
        let line = |line: &&Line| {
            let note = line.note.as_deref().unwrap_or("not explained");
            format!("- **run {}**, {}, {}: {note}.\n", line.row, line.model, percent(error(line)))
        };
        let lines: String = far.iter().map(line).collect();
        format!("{} runs are more than {:.0}% off with nothing fitted:\n\n{lines}", far.len(), FAR * 100.0)
    }

    /// A line per run that is not simulated.
    pub fn outside(&self) -> comfy_table::Table {
        let mut table = report::table(&["run", "model", "GPUs", "published", "not modelled", "source"], &[2, 3]);
        for line in &self.lines {
            let Some(outside) = &line.outside else { continue };
            table.add_row([
                line.row.clone(),
                line.model.clone(),
                format!("{} {}", line.gpus, line.cluster),
                format!("{:.0}", line.measured),
                outside.clone(),
                line.source.clone(),
            ]);
        }
        table
    }

    /// Simulated against published throughput, without and with the fit.
    pub fn figure(&self) -> PaperFigure {
        let panel = |title: &str, of: fn(&Line) -> Option<Simulated>, halves: &[(&str, Half)]| {
            let series = halves
                .iter()
                .enumerate()
                .map(|(ink, (name, half))| series(name, ink, &self.pairs(Some(*half), of), 1.0));
            let all: Vec<Pair> = halves.iter().flat_map(|(_, half)| self.pairs(Some(*half), of)).collect();
            ScatterPanel { title: title.to_owned(), series: series.collect(), notes: notes(&all) }
        };
        let both = [("fitted to", Half::Fitted), ("tested on", Half::Tested)];
        let every = [both[0], both[1], ("another chip", Half::Neither)];
        let chart = Scatter {
            x_label: "Published tokens/s per GPU".to_owned(),
            y_label: "Predicted tokens/s".to_owned(),
            panels: vec![
                panel("nothing fitted", |line| line.blind, &every),
                panel("two constants fitted", |line| line.fitted, &both),
            ],
            band: Some(0.25),
            log: true,
            ..Scatter::default()
        };
        PaperFigure {
            name: "published".to_owned(),
            chart: AnyChart::Scatter(chart),
            caption:
                "Simulated against published throughput; predicted: simulated; band: within 25% of what was published."
                    .to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulated(tokens_per_second: f64) -> Option<Simulated> {
        Some(Simulated { tokens_per_second, peak: 1e9, fits: true })
    }

    fn line(row: &str, half: Half, measured: f64, predicted: f64) -> Line {
        Line {
            row: row.to_owned(),
            model: "m".to_owned(),
            cluster: CHIP.to_owned(),
            gpus: 8,
            system: "megatron".to_owned(),
            plan: format!("pp1 dp8 tp1 ep8 edp1 mb{row}"),
            global_batch: 64,
            routing: TrainingRouting::Balanced,
            half,
            measured,
            blind: simulated(predicted),
            fitted: simulated(predicted),
            outside: None,
            note: None,
            source: "a test".to_owned(),
        }
    }

    /// Orders are of plans that are apart; errors are those of the half that they are said to be of.
    #[test]
    fn halves_and_orders_are_told_apart() {
        let lines = vec![
            line("1", Half::Fitted, 100.0, 110.0),
            line("2", Half::Tested, 102.0, 90.0),
            line("3", Half::Tested, 200.0, 105.0),
        ];
        let mut found = PublishedErrors { lines, constants: Vec::new() };
        // Constants that were fitted have no part in it.
        found.lines[2].fitted = simulated(300.0);
        let (pairs, wrong) = found.wrong_orders();
        assert_eq!((pairs, wrong.len()), (2, 1), "{wrong:?}");
        assert!(wrong[0].contains("runs 1 and 3: 110 for 100 and 105 for 200"), "{wrong:?}");
        let [all, fitted, tested, ..] = found.errors().map(|(_, errors)| errors.unwrap());
        assert_eq!((all.count, fitted.count, tested.count), (3, 1, 2));
        assert!((fitted.max - 0.1).abs() < 1e-9);
        assert!(found.far().starts_with("1 runs are more than 15% off with nothing fitted:\n\n- **run 3**"));
        let of_chip = found.of_chip().unwrap();
        assert_eq!((of_chip.cluster.as_str(), of_chip.measurements, of_chip.measured), (CHIP, 3, Measured::Unseen));
        assert!((of_chip.median - 12.0 / 102.0).abs() < 1e-9, "{of_chip:?}");
        let claims = found.claims();
        assert_eq!(claims.iter().map(|claim| claim.met).collect::<Vec<_>>(), [false, false, true]);
    }

    /// One plan twice, and plans on another routing or in other batches.
    #[test]
    fn runs_that_differ_in_more_than_the_plan_have_no_order() {
        let pairs = |change: &dyn Fn(&mut Line)| {
            let mut lines = vec![line("1", Half::Fitted, 100.0, 110.0), line("2", Half::Tested, 200.0, 105.0)];
            change(&mut lines[1]);
            PublishedErrors { lines, constants: Vec::new() }.wrong_orders().0
        };
        assert_eq!(pairs(&|_| ()), 1);
        assert_eq!(pairs(&|other| other.plan.replace_range(.., "pp1 dp8 tp1 ep8 edp1 mb1")), 0);
        assert_eq!(pairs(&|other| other.routing = TrainingRouting::Learned), 0);
        assert_eq!(pairs(&|other| other.global_batch = 128), 0);
        assert_eq!(pairs(&|other| other.cluster.push('x')), 0);
        let other_system = |other: &mut Line| {
            other.plan.replace_range(.., "pp1 dp8 tp1 ep8 edp1 mb1");
            other.system.push('x');
        };
        assert_eq!(pairs(&other_system), 1);
    }

    /// Every run is one that a system of ours can be asked about: its plan fits, or the row says what is not modelled.
    #[test]
    fn every_run_has_a_system_and_a_plan_that_fits() {
        let runs = PublishedRuns::new(None).unwrap();
        let small = |run: &&PublishedTraining| run.global_batch <= 256;
        let subjects = runs.runs.iter().filter(small).map(|run| runs.subject(run).unwrap());
        assert!(subjects.flatten().count() >= 10);
        for run in runs.runs.iter().filter(|run| run.outside.is_none()) {
            systems::by_name(&run.system).unwrap();
        }
        let halves = halves(&runs.runs);
        let count = |half| halves.iter().filter(|&&other| other == half).count();
        assert!(count(Half::Fitted).abs_diff(count(Half::Tested)) <= 1);
    }

    /// The simulator has no constant from these runs; a run on balanced routing comes within a tenth of what was published.
    #[test]
    fn a_published_run_is_met_blindly() {
        let runs = PublishedRuns::new(None).unwrap();
        let run = runs.runs.iter().find(|run| run.row == "2").unwrap();
        let simulated = runs.subject(run).unwrap().unwrap().simulate(&run.cluster);
        assert!((simulated.tokens_per_second / run.tokens_per_second - 1.0).abs() < 0.10);
        assert!(simulated.fits);
    }
}
