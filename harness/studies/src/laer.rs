//! LAER-MoE's measurements (ASPLOS'26): four systems on 32 A100s whose network and loads are stated. First blind, with the constants
//! of the cluster as shipped; then with a few constants fitted, and with those fits without one model or one system at a time.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use chart::{AnyChart, Scatter, ScatterPanel};
use rayon::prelude::*;
use serde::Serialize;
use systems::iteration::run::Run;
use systems::{CostModel, Job};
use workloads::Cluster;
use workloads::gate::GateStatistics;
use workloads::trace::BatchCounts;

use crate::calibrate::constants::{Fitted, Point};
use crate::calibrate::{self, write};
use crate::measurements;
use crate::measurements::order::{ORDER_TOLERANCE, in_order};
use crate::measurements::rank_loads::{self, RankLoads, RunLoads};
use crate::measurements::steps::{self, Step};
use crate::page::Section;
use crate::tables::{constants_table, percent, statistics_table};
use crate::{Inputs, Study, claims};
use runs::figures::PaperFigure;
use runs::figures::performance_model::{notes, series};
use runs::summary::errors::{Errors, Pair};
use runs::summary::model_error::{ClusterError, Measured, Part};
use runs::{looks, prepare, report};

/// The cluster with the study's stated constants.
pub const CLUSTER: &str = "a100x8";

/// The study's file of iterations, in the folder of its loads.
pub const MEASURED: &str = "end_to_end.csv";

/// The constants that are fitted.
///
/// The rate of products and the memory traffic of a block's small kernels, which the study profiled once and apart, and what nodes really have of their four
/// adapters.
pub const CONSTANTS: [&str; 3] = ["gpu.gemm_rate", "gpu.block_traffic", "network.inter_bandwidth"];

/// Iterations that are simulated, and how many of them come before the first that counts: systems that place by past loads know none
/// at first.
const ITERATIONS: usize = 5;
const WARMUP: usize = 2;

/// The method whose experts stand in order: its loads are the gate's choices.
const IN_ORDER: &str = "fsdp";

/// Ranks that hold every expert once under that method.
const SETS: usize = 4;

/// The study's rows and loads.
pub struct LaerStudy {
    steps: Vec<Step>,
    loads: RankLoads,
    cluster: Cluster,
}

/// A row that can be simulated.
struct Subject<'a> {
    step: &'a Step,
    /// `[iteration]`.
    batches: Vec<BatchCounts>,
    /// The model whose loads these are.
    loads: String,
}

/// What the simulator says of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Simulated {
    /// Mean iteration, s.
    pub seconds: f64,
    /// Memory of the fullest rank, B.
    pub peak: f64,
    /// Whether that fits the card.
    pub fits: bool,
}

impl LaerStudy {
    /// The rows of `measured`, and the loads in the `rank_loads*` files of `data`.
    ///
    /// # Errors
    /// What is wrong with a file, where.
    pub fn new(measured: &Path, data: &Path, cluster: &str) -> Result<Self> {
        let cluster = prepare::cluster("--cluster", cluster)?;
        let mut loads = RankLoads::default();
        for file in load_files(data)? {
            loads.add(&file)?;
        }
        ensure!(
            loads.of(IN_ORDER).next().is_some(),
            "{}: no rank_loads*.csv or .csv.gz with loads of FSDP",
            data.display()
        );
        Ok(Self { steps: steps::read(measured, &cluster)?, loads, cluster })
    }

    fn subjects(&self) -> Vec<Subject<'_>> {
        self.steps.par_iter().map(|step| self.subject(step)).collect()
    }

    fn subject<'s>(&'s self, step: &'s Step) -> Subject<'s> {
        let (loads, recorded) = self.loads_for(step);
        let batches = (0..ITERATIONS).map(|iteration| batch(&step.job, recorded, iteration)).collect();
        Subject { step, batches, loads: loads.to_owned() }
    }

    /// The loads of the model, else of one with as many experts and choices, else of any.
    fn loads_for(&self, step: &Step) -> (&str, &RunLoads) {
        let cut = step.model.rsplit('-').next().unwrap_or_default();
        let fit = |name: &str| (name == step.model, name.ends_with(cut));
        self.loads.of(IN_ORDER).max_by_key(|(name, _)| fit(name)).expect("there are loads")
    }
}

/// The files of loads in a folder, by name.
fn load_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let is_of = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("rank_loads") && (name.ends_with(".csv") || name.ends_with(".csv.gz"))
    };
    let mut files: Vec<PathBuf> = paths.into_iter().filter(is_of).collect();
    files.sort();
    Ok(files)
}

/// What the gate of a job chooses in an iteration: a chunk a sample, of what was chosen on the node whose samples it is one of. All
/// micro-batches of an iteration are the one that was recorded.
fn batch(job: &Job, recorded: &RunLoads, iteration: usize) -> BatchCounts {
    let moes: Vec<_> = job.model.moe_layers().collect();
    let experts = moes[0].experts;
    let mut counts = Vec::with_capacity(moes.len() * job.global_batch * experts);
    for (layer, moe) in moes.iter().enumerate() {
        let micro = recorded.micro(layer, moes.len(), iteration);
        let sets = if experts.is_multiple_of(SETS) { SETS } else { 1 };
        let of_nodes = micro.choices(job.cluster.gpus_per_node, sets, experts);
        let total = (moe.tokens * job.top_k()) as u32;
        let of_nodes: Vec<Vec<u32>> = of_nodes.iter().map(|shares| rank_loads::entries(shares, total)).collect();
        for sample in 0..job.global_batch {
            counts.extend(&of_nodes[sample * of_nodes.len() / job.global_batch]);
        }
    }
    BatchCounts::new(moes.len(), job.global_batch, experts, counts)
}

impl Subject<'_> {
    fn simulate(&self, cluster: &Cluster) -> Simulated {
        let Step { job, plan, system, .. } = self.step;
        let job = Job { cluster: cluster.clone(), ..job.clone() };
        let costs = CostModel::new(&job.cluster, job.gpus);
        let mut run = Run::new(&job, &costs, *system, *plan);
        let (mut seconds, mut peak, mut fits) = (0.0, 0.0f64, true);
        for (iteration, batch) in self.batches.iter().enumerate() {
            let done = run.step(batch);
            peak = peak.max(done.timing.peak.bytes.0);
            fits &= done.failure.is_none();
            if iteration >= WARMUP {
                seconds += done.timing.step.0 / (ITERATIONS - WARMUP) as f64;
            }
        }
        Simulated { seconds, peak, fits }
    }
}

/// A row beside its simulations.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub case: String,
    pub model: String,
    /// As the file names it.
    pub method: String,
    /// The system here.
    pub system: &'static str,
    pub plan: String,
    /// The model whose loads were used.
    pub loads: String,
    /// Mean iteration, s.
    pub measured: f64,
    /// With the constants as shipped.
    pub blind: Simulated,
    /// With those fitted to all rows, s; none where there are too few.
    pub fitted: Option<f64>,
    /// With those fitted to the rows of other models, s.
    pub other_models: Option<f64>,
    /// With those fitted to the rows of other systems, s.
    pub other_systems: Option<f64>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct LaerErrors {
    pub cluster: String,
    pub lines: Vec<Line>,
    /// The cluster's constants after the fit to all rows; none where there are too few.
    pub constants: Vec<Fitted>,
}

/// A prediction of a row, s; none where there is no such fit.
type PredictionOf = fn(&Line) -> Option<f64>;

/// The four predictions of a row.
const PREDICTIONS: [(&str, PredictionOf); 4] = [
    ("nothing fitted", |line| Some(line.blind.seconds)),
    ("fitted, in sample", |line| line.fitted),
    ("fitted to other models", |line| line.other_models),
    ("fitted to other systems", |line| line.other_systems),
];

impl<'a> Study<'a> for LaerStudy {
    type Outcome = LaerErrors;

    fn read(inputs: &'a Inputs) -> Result<Option<Self>> {
        let Some(folder) = inputs.laer_folder() else { return Ok(None) };
        Self::new(&folder.join(MEASURED), &folder, CLUSTER).map(Some)
    }

    fn predict(&self) -> Result<LaerErrors> {
        let subjects: Vec<Subject> = self.subjects();
        let all: Vec<&Subject> = subjects.iter().collect();
        let fit = self.fit(&all)?;
        let (mut models, mut systems) = (vec![None; all.len()], vec![None; all.len()]);
        self.left_out(&all, &|step| step.model.clone(), &mut models)?;
        self.left_out(&all, &|step| step.system.name().to_owned(), &mut systems)?;
        let lines = all.par_iter().zip(models.into_par_iter().zip(systems));
        let lines = lines.map(|(subject, (other_models, other_systems))| {
            let fitted = fit.as_ref().map(|(cluster, _)| subject.simulate(cluster).seconds);
            Line { fitted, other_models, other_systems, ..subject.line(&self.cluster) }
        });
        let lines = lines.collect();
        let constants = fit.map(|(_, constants)| constants).unwrap_or_default();
        Ok(LaerErrors { cluster: self.cluster.name.clone(), lines, constants })
    }

    fn section(&self, outcome: &LaerErrors) -> Result<Section> {
        let mut section = Section::new("LAER-MoE's four systems on 32 A100s");
        section.add(include_str!("prose/laer.md"));
        section.picture(outcome.figure());
        section.table(outcome.statistics());
        section.table(outcome.orders());
        section.add(outcome.wrong());
        section.add(format!("The constants of `{}` after the fit to all rows:", outcome.cluster));
        section.table(constants_table(&outcome.constants));
        section.claims.extend(outcome.claims());
        section.errors.extend(outcome.of_cluster());
        section.add("All rows, seconds an iteration:");
        section.table(outcome.table());
        section.add("How even the ranks' loads are, the busiest over the mean, mean over layers and iterations, where the study recorded them:");
        section.table(self.balance());
        Ok(section)
    }
}

impl LaerStudy {
    /// The cluster with constants fitted to these rows; none of fewer rows than constants.
    fn fit(&self, subjects: &[&Subject]) -> Result<Option<(Cluster, Vec<Fitted>)>> {
        if subjects.len() < CONSTANTS.len() {
            return Ok(None);
        }
        let start = Point { cluster: self.cluster.clone(), gate: GateStatistics::default() };
        let residuals = |point: &Point| -> Result<Vec<f64>> {
            let ratio = |subject: &&Subject| (subject.simulate(&point.cluster).seconds / subject.step.measured).ln();
            Ok(subjects.par_iter().map(ratio).collect())
        };
        let names = CONSTANTS.map(str::to_owned);
        let (point, constants) = calibrate::fit_residuals(&start, &names, subjects.len(), &residuals)?;
        Ok(Some((point.cluster, constants)))
    }

    /// The TOML of the cluster called `cluster` with the constants fitted to `measured`; none without a fit.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn fitted_cluster(&self, cluster: &str, measured: &Path, constants: &[Fitted]) -> Result<Option<String>> {
        if constants.is_empty() {
            return Ok(None);
        }
        let (name, hash) = measurements::named(measured)?;
        let mut fitted = self.cluster.clone();
        let source = format!("fitted to {name} (sha256 {hash}) of LAER-MoE's study, {} rows", self.steps.len());
        write::apply(&mut fitted, constants, &source);
        write::updated(&prepare::cluster_text("--cluster", cluster)?, &self.cluster, &fitted).map(Some)
    }

    /// What fits to the others say of the rows that `key` puts together.
    fn left_out(&self, all: &[&Subject], key: &dyn Fn(&Step) -> String, found: &mut [Option<f64>]) -> Result<()> {
        let keys: Vec<String> = all.iter().map(|subject| key(subject.step)).collect();
        let mut each = keys.clone();
        each.sort();
        each.dedup();
        for out in each {
            let others: Vec<&Subject> =
                all.iter().zip(&keys).filter(|(_, key)| **key != out).map(|(s, _)| *s).collect();
            let Some((cluster, _)) = self.fit(&others)? else { continue };
            for ((subject, found), _) in all.iter().zip(&mut *found).zip(&keys).filter(|(_, key)| **key == out) {
                *found = Some(subject.simulate(&cluster).seconds);
            }
        }
        Ok(())
    }

    /// How even loads are, by method and model.
    fn balance(&self) -> comfy_table::Table {
        let mut table = report::table(&["method", "model", "busiest rank over mean"], &[2]);
        for method in ["fsdp", "flex", "laer"] {
            for (model, loads) in self.loads.of(method) {
                let all: Vec<f64> = loads.layers.iter().flatten().map(|micro| micro.imbalance()).collect();
                let mean = all.iter().sum::<f64>() / all.len() as f64;
                table.add_row([method.to_uppercase(), model.to_owned(), format!("{mean:.2}")]);
            }
        }
        table
    }
}

impl Subject<'_> {
    /// The row with the constants as shipped.
    fn line(&self, cluster: &Cluster) -> Line {
        let step = self.step;
        Line {
            case: step.case(),
            model: step.model.clone(),
            method: step.method.clone(),
            system: step.system.name(),
            plan: step.plan.to_string(),
            loads: self.loads.clone(),
            measured: step.measured,
            blind: self.simulate(cluster),
            fitted: None,
            other_models: None,
            other_systems: None,
        }
    }
}

/// Pairs of systems of one case that were measured apart.
struct Orders {
    pairs: usize,
    /// Those that are predicted the other way round, for people.
    wrong: Vec<String>,
}

impl LaerErrors {
    fn pairs(&self, of: PredictionOf) -> Vec<Pair> {
        let pair = |line: &Line| of(line).map(|predicted| Pair { predicted, measured: line.measured });
        self.lines.iter().filter_map(pair).collect()
    }

    /// Errors of each of the four predictions.
    pub fn errors(&self) -> [(String, Option<Errors>); 4] {
        PREDICTIONS.map(|(name, of)| (name.to_owned(), Errors::new(&self.pairs(of))))
    }

    fn order(&self, of: PredictionOf) -> Orders {
        let mut orders = Orders { pairs: 0, wrong: Vec::new() };
        let known: Vec<(&Line, Pair)> = self
            .lines
            .iter()
            .filter_map(|line| Some((line, Pair { predicted: of(line)?, measured: line.measured })))
            .collect();
        for (at, (one, pair)) in known.iter().enumerate() {
            for (other, other_pair) in known[..at].iter().filter(|(other, _)| other.case == one.case) {
                let Some(right) = in_order(pair, other_pair, ORDER_TOLERANCE) else { continue };
                orders.pairs += 1;
                if !right {
                    let said = |pair: &Pair| format!("{:.1} s for {:.1}", pair.predicted, pair.measured);
                    let [a, b] = [other_pair, pair].map(said);
                    orders.wrong.push(format!("{}: {} {a}, {} {b}", one.case, other.method, one.method));
                }
            }
        }
        orders
    }

    /// Errors by prediction.
    pub fn statistics(&self) -> comfy_table::Table {
        statistics_table(&self.errors(), "relative errors of iterations")
    }

    /// Order of systems by prediction.
    pub fn orders(&self) -> comfy_table::Table {
        let what =
            format!("order of systems of a case, pairs measured more than {:.0}% apart", ORDER_TOLERANCE * 100.0);
        let mut table = report::table(&[&what, "right"], &[1]);
        for (name, of) in PREDICTIONS {
            let Orders { pairs, wrong } = self.order(of);
            if pairs > 0 {
                table.add_row([name.to_owned(), format!("{} of {pairs}", pairs - wrong.len())]);
            }
        }
        table
    }

    /// The pairs in the wrong order with nothing fitted and in sample.
    pub fn wrong(&self) -> String {
        let of = |(name, of): (&str, PredictionOf)| -> String {
            self.order(of).wrong.iter().map(|wrong| format!("- {name}: {wrong}\n")).collect()
        };
        let all: String = PREDICTIONS.into_iter().take(2).map(of).collect();
        if all.is_empty() { String::new() } else { format!("Wrong order, predicted for measured:\n\n{all}") }
    }

    fn claims(&self) -> Vec<claims::Claim> {
        let [blind, fitted, models, systems] = PREDICTIONS;
        let errors = |(name, of): (&'static str, PredictionOf)| {
            Errors::new(&self.pairs(of)).map(|errors| claims::laer(name, &errors))
        };
        let order = |(name, of): (&'static str, PredictionOf)| {
            let Orders { pairs, wrong } = self.order(of);
            claims::laer_order(name, pairs, wrong.len())
        };
        let all =
            [errors(blind), Some(order(blind)), errors(fitted), Some(order(fitted)), errors(models), errors(systems)];
        all.into_iter().flatten().collect()
    }

    /// What stands beside numbers of the cluster: they are simulated with its constants as shipped, which were fitted to none of
    /// these rows.
    fn of_cluster(&self) -> Option<ClusterError> {
        let [(_, blind), ..] = PREDICTIONS;
        Some(ClusterError::new(&self.cluster, Part::Iteration, &Errors::new(&self.pairs(blind))?, Measured::Unseen))
    }

    /// A line per row.
    pub fn table(&self) -> comfy_table::Table {
        let header = [
            "case",
            "method",
            "plan",
            "loads of",
            "measured",
            "blind",
            "error",
            "fitted",
            "error",
            "other models",
            "other systems",
            "peak GB",
        ];
        let mut table = report::table(&header, &[4, 5, 6, 7, 8, 9, 10, 11]);
        for line in &self.lines {
            let error = |of: Option<f64>| of.map_or("-".into(), |of| percent(of / line.measured - 1.0));
            let Simulated { seconds, peak, fits } = line.blind;
            table.add_row([
                line.case.clone(),
                line.method.clone(),
                format!("{}: {}", line.system, line.plan),
                line.loads.clone(),
                format!("{:.2}", line.measured),
                format!("{seconds:.2}"),
                error(Some(seconds)),
                line.fitted.map_or("-".into(), |fitted| format!("{fitted:.2}")),
                error(line.fitted),
                error(line.other_models),
                error(line.other_systems),
                format!("{:.1}{}", peak / 1e9, if fits { "" } else { " (oom)" }),
            ]);
        }
        table
    }

    /// Simulated against measured iterations, without the fit and with it.
    pub fn figure(&self) -> PaperFigure {
        let mut methods: Vec<(&str, &str)> =
            self.lines.iter().map(|line| (line.method.as_str(), line.system)).collect();
        methods.sort_unstable();
        methods.dedup();
        let panel = |(title, of): (&str, PredictionOf)| {
            let of_method = |method: &str| {
                let lines = self.lines.iter().filter(|line| line.method == method);
                let pair = |line: &Line| of(line).map(|predicted| Pair { predicted, measured: line.measured });
                lines.filter_map(pair).collect::<Vec<Pair>>()
            };
            let series =
                methods.iter().map(|(method, system)| series(method, looks::ink(system), &of_method(method), 1.0));
            ScatterPanel { title: title.to_owned(), series: series.collect(), notes: notes(&self.pairs(of)) }
        };
        let shown = PREDICTIONS.into_iter().filter(|(_, of)| self.lines.iter().any(|line| of(line).is_some()));
        let chart = Scatter {
            x_label: "Measured iteration (s)".to_owned(),
            y_label: "Predicted iteration (s)".to_owned(),
            panels: shown.map(panel).collect(),
            band: Some(0.1),
            ..Scatter::default()
        };
        PaperFigure {
            name: "laer".to_owned(),
            chart: AnyChart::Scatter(chart),
            caption: format!(
                "Simulated against measured iterations of four systems; predicted: simulated, {}; band: within 10% of what was \
                 measured.",
                self.cluster
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::constants::Space;

    /// Two small models of two layers on 32 ranks, under all four methods.
    fn small_study(skew: u64) -> LaerStudy {
        let folder = std::env::temp_dir().join(format!("moebench-{}-laer-{skew}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let columns = "layers,hidden,heads,expert_inner,seq_len";
        let rows = ["mixtral-8x7b-e8k2,0,1000,2,1024,16,4096,1024", "mixtral-8x7b-e16k4,0,1000,2,2048,16,1024,1024"];
        let rows = rows
            .iter()
            .flat_map(|row| ["FSDP", "FLEX", "LAER", "megatron"].map(|method| format!("w,{method},{row}\n")));
        let measured =
            format!("dataset,method,model_name,aux_loss,avg_time_ms,{columns}\n{}", rows.collect::<String>());
        std::fs::write(folder.join("m.csv"), measured).unwrap();
        let load = |rank: u64| if rank.is_multiple_of(4) { 1000 + skew } else { 1000 };
        let loads: String = (0..32).map(|rank| format!("{rank},FSDP,mixtral-8x7b-e8k2,0,0,{}\n", load(rank))).collect();
        std::fs::write(folder.join("rank_loads.csv"), format!("rank,method,model_name,layer,iter,token_num\n{loads}"))
            .unwrap();
        let study = LaerStudy::new(&folder.join("m.csv"), &folder, CLUSTER).unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        study
    }

    /// Measured on a cluster of other constants, the study finds them again, and every fit that leaves something out does, too.
    #[test]
    fn a_fit_finds_the_constants_back() {
        let mut study = small_study(600);
        let start = Point { cluster: study.cluster.clone(), gate: GateStatistics::default() };
        let space = Space::new(&start, &CONSTANTS.map(str::to_owned)).unwrap();
        let mut there = space.point(&start, &space.start()).unwrap().cluster;
        there.gpu.gemm_rate.value = 2e14;
        there.gpu.block_traffic.as_mut().unwrap().value = 30.0;
        there.network.inter_bandwidth.value = 5e10;
        let times: Vec<f64> = study.subjects().iter().map(|subject| subject.simulate(&there).seconds).collect();
        study.steps.iter_mut().zip(times).for_each(|(step, time)| step.measured = time);
        let found = study.predict().unwrap();
        for (constant, value) in found.constants.iter().zip([2e14, 30.0, 5e10]) {
            assert!((constant.value / value - 1.0).abs() < 0.03, "{constant:?}: expected {value}");
        }
        let [blind, fitted, models, systems] = found.errors().map(|(_, errors)| errors.unwrap());
        assert!(blind.median > 0.05, "{blind:?}");
        for errors in [fitted, models, systems] {
            assert!(errors.count == 8 && errors.max < 0.03, "{errors:?}");
        }
        let claims = found.claims();
        assert_eq!(claims.len(), 6);
        assert!(claims[2].met && claims[3].met, "{claims:?}");
        assert!(study.section(&found).unwrap().text.contains("| w, mixtral-8x7b-e16k4, aux 0 |"));
    }

    /// Sixteen experts take the loads of eight where there are no others; what is skewed takes longer under experts that stay.
    #[test]
    fn loads_of_another_model_stand_in_and_skew_costs() {
        let [even, skewed] = [0, 3000].map(|skew| {
            let study = small_study(skew);
            let subjects = study.subjects();
            assert!(subjects.iter().all(|subject| subject.loads == "mixtral-8x7b-e8k2"));
            subjects.iter().map(|subject| subject.simulate(&study.cluster).seconds).collect::<Vec<f64>>()
        });
        for at in [0, 3, 4, 7] {
            assert!(skewed[at] > 1.05 * even[at], "row {at}: {} for {}", skewed[at], even[at]);
        }
        // LAER follows the loads: it loses less than experts that stay.
        assert!(skewed[2] / even[2] < skewed[0] / even[0]);
    }

    /// The mapping gives the ranks of experts that stay what was measured of them.
    #[test]
    fn ranks_compute_what_was_measured() {
        let study = small_study(600);
        let subjects = study.subjects();
        let (job, batch) = (&subjects[0].step.job, &subjects[0].batches[0]);
        let mut of_sets = [0u64; 4];
        for (expert, load) in batch.loads(0).into_iter().enumerate() {
            of_sets[expert / 2] += load;
        }
        let total = (job.global_batch * 1024 * 2) as f64;
        for (set, &load) in of_sets.iter().enumerate() {
            let expected = if set == 0 { 1600.0 / 4600.0 } else { 1000.0 / 4600.0 };
            assert!((load as f64 / total / expected - 1.0).abs() < 3e-3, "{of_sets:?}");
        }
    }

    #[test]
    fn a_folder_without_loads_is_refused() {
        let folder = std::env::temp_dir().join(format!("moebench-{}-no-loads", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let message = LaerStudy::new(Path::new("m.csv"), &folder, CLUSTER).err().unwrap().to_string();
        std::fs::remove_dir_all(folder).unwrap();
        assert!(message.contains("no rank_loads*.csv or .csv.gz with loads of FSDP"), "{message}");
    }
}
