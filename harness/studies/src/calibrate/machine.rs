//! What a machine's kernels, collectives and a step's operations take, each alone, as a cluster's TOML, samples and figures.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use chart::{LineChart, LinePanel, LineSeries};
use formats::nccl_tests::Collective;
use runs::provenance::sha256;
use runs::{report, store};
use tch::Device;
use trainer::bench::beside::{self, Shared};
use trainer::bench::calls::{self, Call};
use trainer::bench::comm::{self, CollectiveTimes};
use trainer::bench::curves::{self, Curve, Rate, Shapes, Work};
use trainer::comm::launch::Launch;
use trainer::comm::{Communicator, meet, preflight};
use trainer::cuda;
use trainer::processes::Processes;
use workloads::cluster::Constant;
use workloads::measured::{MeasuredOperation, Passes};
use workloads::{Cluster, Gate, Model};

use super::calls as of_calls;
use super::collectives;
use super::device::{BLOCKS, Measurement};
use super::segments::{self, MeasuredRun, Times};
use super::together::Together;
use super::{line, operations, write};

/// What a wait of the host is measured as.
pub const WAIT: &str = "from the end of a kernel that the host waits for to the beginning of the next";
/// How long a process waits for another.
const PATIENCE: Duration = Duration::from_secs(120);
/// Small kernels of a block's pass, where the block was not measured.
const KERNELS_OF_A_BLOCK: f64 = 20.0;

/// Everything that was measured.
struct Measured {
    between: Between,
    curves: Vec<Curve>,
    runs: Vec<MeasuredRun>,
    operations: Vec<MeasuredOperation>,
}

/// What was measured between processes and of the device before anything is computed.
#[derive(Default)]
struct Between {
    collectives: Vec<Collective>,
    /// What exchanges take hosts; on GPUs, because nothing is issued on a CPU.
    calls: Vec<Call>,
    /// What kernels and exchanges take of each other; on GPUs.
    shared: Shared,
    /// Bytes of the device that are in use, and all of them; on a GPU.
    memory: Option<[f64; 2]>,
}

/// What is to be measured, and where it is written.
pub struct Request {
    /// The TOML of the base, and what it says.
    pub text: String,
    pub base: Cluster,
    pub models: Vec<Model>,
    pub gate: Gate,
    pub micro_batch: usize,
    /// Ranks that take turns on the device.
    pub ranks: usize,
    /// This process among several, if there are.
    pub launch: Option<Launch>,
    pub device: Device,
    /// The device's name, for people.
    pub name: String,
    pub out: PathBuf,
}

impl Request {
    fn measurement<'a>(&'a self, model: &'a Model, processes: Option<&'a Processes>) -> Measurement<'a> {
        let &Self { ref base, gate, micro_batch, device, .. } = self;
        Measurement { model, cluster: base, gate, micro_batch, ranks: self.ranks(), processes, device }
    }

    /// Ranks over which experts are cut: as many as there are processes, if there are several.
    fn ranks(&self) -> usize {
        self.launch.as_ref().map_or(self.ranks, |launch| launch.size)
    }

    /// Whether all models can be measured.
    ///
    /// # Errors
    /// One that cannot be trained.
    pub fn check(&self) -> Result<()> {
        self.models.iter().try_for_each(|model| self.measurement(model, None).check_operations())
    }

    /// Measures, writes, and returns what there is to show; nothing in a process that is not the first.
    ///
    /// # Errors
    /// A process that does not come, a device that cannot be used, or a file that cannot be written.
    pub fn run(&self) -> Result<Option<String>> {
        let processes = self.launch.clone().map(|launch| self.rendezvous(launch)).transpose()?;
        let world = processes.as_ref().map(Processes::world).transpose()?;
        let between = match world.as_deref() {
            Some(world) => between_processes(world, self.device)?,
            None => Between { memory: used(self.device)?, ..Between::default() },
        };
        let together = Together { world: world.as_deref(), device: self.device };
        together.meet()?;
        let curves = together.curves(curves::run(self.device, &shapes(&self.models, self.ranks()))?)?;
        // Each run has a world of its own.
        together.meet()?;
        drop(world);
        let of_model = |model| self.measurement(model, processes.as_ref()).runs_of_operations();
        let runs: Result<Vec<_>> = self.models.iter().map(of_model).collect();
        let runs: Vec<MeasuredRun> = runs?.into_iter().flatten().collect();
        drop(processes);
        if self.launch.as_ref().is_some_and(|launch| launch.rank > 0) {
            return Ok(None);
        }
        let operations = operations::of_runs(&runs, self.launch.is_some(), &self.source(&runs));
        write_all(self, &Measured { between, curves, runs, operations }).map(Some)
    }

    /// All processes, which must measure the same.
    fn rendezvous(&self, launch: Launch) -> Result<Processes> {
        let Self { base, models, gate, micro_batch, .. } = self;
        let asked = sha256(format!("{base:?} {models:?} {gate} {micro_batch}").as_bytes());
        Ok(Processes::rendezvous(launch, self.device, PATIENCE, &asked)?)
    }

    /// Where operations' times come from.
    fn source(&self, runs: &[MeasuredRun]) -> String {
        let Self { name, gate, micro_batch, .. } = self;
        let in_iterations = runs.iter().any(|run| run.plan.ep > 1) && self.device.is_cuda();
        let alone = "each segment from an idle device on";
        let ranks = match (&self.launch, self.ranks(), in_iterations) {
            (None, ranks, _) if ranks > 1 => format!("{ranks} ranks in turn, {alone}"),
            (_, 1, _) => format!("one rank, {alone}"),
            (_, ranks, true) => format!(
                "{ranks} ranks with a GPU each, operations in iterations of plain expert parallelism, whose hosts wait around every \
                 exchange, of the slowest host"
            ),
            (_, ranks, false) => format!("{ranks} ranks, {alone}, of the slowest"),
        };
        let blocks =
            if self.device.is_cuda() { format!("up to {BLOCKS} blocks of each shape, ") } else { String::new() };
        format!(
            "measured one by one on {name}: {gate}, {ranks}, {blocks}micro-batches of {}, {micro_batch} and {} samples; no exchange and \
             no whole step is in it; queued behind other work, and until issued by the host, each alone",
            micro_batch.div_ceil(2),
            2 * micro_batch
        )
    }
}

/// Bytes of a GPU that are in use, and all of them.
fn used(device: Device) -> Result<Option<[f64; 2]>> {
    let Device::Cuda(ordinal) = device else { return Ok(None) };
    let memory = cuda::Gpu::open(ordinal)?.memory()?;
    Ok(Some([memory.used as f64, memory.total as f64]))
}

/// Collectives of all processes, and what calls of them take hosts.
fn between_processes(world: &dyn Communicator, device: Device) -> Result<Between> {
    let memory = with_communicators(world, device)?;
    let calls = if device.is_cuda() { calls::run(world, device)? } else { Vec::new() };
    let shared = beside::run(world, device)?;
    let times = comm::run(world, device, &comm::sizes(device))?;
    world.barrier()?;
    Ok(Between { collectives: times.iter().map(of_times).collect(), calls, shared, memory })
}

/// The same once a rank of training would have its communicators, each of which takes memory with its first operations: of the world, of
/// the run and of its experts.
fn with_communicators(world: &dyn Communicator, device: Device) -> Result<Option<[f64; 2]>> {
    let all = [(0..world.size()).collect::<Vec<usize>>()];
    let [run, experts] = ["run", "experts"].map(|name| world.split(name, &all));
    let (run, experts) = (run?, experts?);
    meet(&*run, device)?;
    preflight(&*experts, device)?;
    world.barrier()?;
    used(device)
}

fn of_times(of: &CollectiveTimes) -> Collective {
    let mut sorted: Vec<f64> = of.times.iter().map(|time| time.0).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |place: usize| sorted.get(place).copied().unwrap_or(f64::NAN);
    Collective {
        name: of.collective.name().to_owned(),
        ranks: of.ranks,
        bytes: of.bytes as f64,
        moved: of.moved,
        times: [at(sorted.len() / 2), at(0), at(sorted.len().saturating_sub(1))],
    }
}

/// What of each model is multiplied, each shape once.
fn shapes(models: &[Model], ranks: usize) -> Vec<Shapes> {
    let of_model = |model: &Model| {
        let block = &model.blocks[*model.moe_blocks().first()?];
        let moe = block.moe()?;
        let heads = block.attention.heads;
        let head = block.attention.output_width() / heads.max(1);
        let experts = moe.experts.div_ceil(ranks);
        Some(Shapes { width: moe.width, inner: moe.expert.inner, experts, heads, head, tokens: block.tokens })
    };
    let mut all: Vec<Shapes> = Vec::new();
    for shape in models.iter().filter_map(of_model) {
        if !all.contains(&shape) {
            all.push(shape);
        }
    }
    all
}

/// The base with what was measured, under the name of the file.
fn cluster(request: &Request, measured: &Measured) -> Cluster {
    let Request { base, name, out, .. } = request;
    let mut cluster = base.clone();
    let by = |what: &str| format!("measured on {name}: {what}");
    let constant = |value: f64, uncertainty: f64, peak: Option<f64>, what: &str| Constant {
        value: write::rounded(value),
        uncertainty: (uncertainty > 0.0).then(|| write::rounded(uncertainty)),
        peak: peak.filter(|&peak| peak >= value),
        source: by(what),
    };
    let largest = |is: fn(Work) -> bool| -> Vec<f64> {
        let of = measured.curves.iter().filter(|curve| is(curve.work));
        of.filter_map(|curve| curve.points.last()).map(|point| point.amount / point.median()).collect()
    };
    let (gpu, host) = (&mut cluster.gpu, &mut cluster.host);
    if let (Some([value, error]), peak) =
        (spread(&largest(|work| matches!(work, Work::Product | Work::Grouped { .. }))), gpu.gemm_rate.peak)
    {
        gpu.gemm_rate =
            constant(value, error, peak, "mean of plain and grouped products with most rows; half their range");
    }
    if let (Some([value, error]), peak) = (spread(&largest(|work| work == Work::Sum)), gpu.memory_bandwidth.peak) {
        gpu.memory_bandwidth = constant(value, error, peak, "the largest sum of two tensors");
    }
    if let (Some([value, error]), peak) = (spread(&largest(|work| work == Work::Rows)), gpu.scatter_bandwidth.peak) {
        gpu.scatter_bandwidth = constant(value, error, peak, "most rows put into another order");
    }
    if let Some([value, error]) = spread(&starts(&measured.curves)) {
        gpu.expert_start =
            constant(value, error, None, "start of the line of grouped products over rows, for each expert");
    }
    let each = |work: Work| Some(measured.curves.iter().find(|curve| curve.work == work)?.each().0);
    if let Some(time) = each(Work::Wait) {
        host.synchronisation = constant(time, f64::NAN, None, WAIT);
    }
    if let Some(time) = each(Work::Launch) {
        let what = format!("{KERNELS_OF_A_BLOCK} small kernels, a number that is assumed");
        host.block = constant(KERNELS_OF_A_BLOCK * time, f64::NAN, None, &what);
    }
    if let Some(time) = operations::host(&measured.runs) {
        host.iteration = constant(time.0, f64::NAN, None, "reading data");
    }
    let Between { collectives, calls, shared, memory } = &measured.between;
    if let &Some([used, total]) = memory {
        gpu.memory = constant(total, f64::NAN, None, "all memory of the GPU");
        let open = if request.launch.is_some() { "the GPU and a rank's communicators are" } else { "the GPU is" };
        gpu.memory_reserved = constant(used, f64::NAN, None, &format!("in use once {open} open"));
    }
    let processes = by(&format!("{} processes", collectives.first().map_or(0, |of| of.ranks)));
    collectives::apply(&mut cluster, collectives, &processes);
    of_calls::apply(&mut cluster, calls, &processes);
    let beside = |shares: &[f64], what: &str| {
        let [value, error] = spread(shares)?;
        // What runs beside something is no faster for it.
        Some(constant(
            value.max(0.0),
            error,
            None,
            &format!("{what}; mean of {} processes, half their range", shares.len()),
        ))
    };
    if let (Some(kernels), Some(exchanges)) = (
        beside(&shared.kernels, "matrix products beside all-to-alls of 128 MiB"),
        beside(&shared.exchanges, "all-to-alls of 128 MiB beside matrix products"),
    ) {
        (cluster.network.slows_kernels, cluster.network.slowed_by_kernels) = (Some(kernels), Some(exchanges));
    }
    cluster.name = out.file_stem().map_or(base.name.clone(), |stem| stem.to_string_lossy().into_owned());
    cluster.description = format!("{name} as measured by this program; what was not measured is of {}", base.name);
    cluster.gpu.name = name.clone();
    cluster
}

/// Mean, and half the range.
fn spread(values: &[f64]) -> Option<[f64; 2]> {
    let (least, most) = (values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?);
    Some([values.iter().sum::<f64>() / values.len() as f64, (most - least) / 2.0])
}

/// What a grouped product of each shape takes for an expert without rows.
fn starts(curves: &[Curve]) -> Vec<f64> {
    let start = |curve: &Curve| {
        let Work::Grouped { experts } = curve.work else { return None };
        let points: Vec<(f64, f64)> = curve.points.iter().map(|point| (point.size, point.median())).collect();
        Some(line::fit(&points)?.start / experts as f64)
    };
    curves.iter().filter_map(start).collect()
}

fn write_all(request: &Request, measured: &Measured) -> Result<String> {
    let Request { text, base, out, .. } = request;
    let gradient = Constant {
        value: 4.0,
        uncertainty: None,
        peak: None,
        source: "counted: the trainer holds and sums gradients in single precision".to_owned(),
    };
    let found = cluster(request, measured);
    let text = write::updated(text, base, &found)?;
    let text = write::with_measured(&text, &gradient, &measured.operations)?;
    let cluster = Cluster::parse(&out.display().to_string(), &text)?;
    let beside = |what: &str| out.with_extension(what);
    store::write_text(&beside("kernels.csv"), &kernels_csv(&measured.curves))?;
    store::write_text(&beside("operations.csv"), &operations_csv(&measured.runs, &cluster))?;
    for (name, chart) in kernel_charts(&measured.curves) {
        write_figure(&beside(name), &chart, "Kernels alone: medians of nine repeats on each process.")?;
    }
    let mut shown = String::new();
    let Between { collectives, calls, shared, .. } = &measured.between;
    if !collectives.is_empty() {
        store::write_text(&beside("collectives.csv"), &collectives::csv(collectives))?;
        let caption = "Collectives: medians of seven bursts. Bus bandwidth counts the bytes of the busiest port, as nccl-tests does.";
        write_figure(&beside("collectives"), &collectives_chart(collectives), caption)?;
        let _ = writeln!(shown, "{}", collectives::table(collectives));
    }
    if !calls.is_empty() {
        store::write_text(&beside("calls.csv"), &of_calls::csv(calls))?;
        let _ = writeln!(shown, "{}", of_calls::table(calls));
    }
    for (what, shares) in
        [("products beside exchanges", &shared.kernels), ("exchanges beside products", &shared.exchanges)]
    {
        if let Some([mean, half]) = spread(shares) {
            let _ = writeln!(
                shown,
                "{what} take {:.0}% longer (half the range over processes: {:.0}%)",
                mean * 100.0,
                half * 100.0
            );
        }
    }
    let wrong = operations::faster_than_products(&measured.runs, found.gpu.gemm_rate.value);
    if let Some(wrong) = wrong.filter(|_| request.device.is_cuda()) {
        let seen = beside("operations.csv");
        bail!("{wrong}: a measurement cannot be what it is called ({}); no cluster was written", seen.display());
    }
    store::write_text(out, &text)?;
    let (kernels, operations) = (kernels_table(&measured.curves), operations_table(&measured.operations));
    let _ = write!(shown, "{kernels}\n{operations}\n\ncluster   {}", out.display());
    Ok(shown)
}

fn write_figure(stem: &Path, chart: &LineChart, caption: &str) -> Result<()> {
    // One file is enough beside the samples.
    store::write_text(&stem.with_added_extension("svg"), &chart.draw()?.svg)?;
    store::write_text(&stem.with_added_extension("caption.txt"), &format!("{caption}\n"))
}

/// A name without the part behind the first comma, which is its shape.
fn kind(curve: &Curve) -> &str {
    curve.name.split(',').next().unwrap_or(&curve.name)
}

fn kernels_csv(curves: &[Curve]) -> String {
    let mut text = "kernel,size,of,amount,median_us,least_us,most_us\n".to_owned();
    for curve in curves {
        for point in &curve.points {
            let [median, least, most] = [0.5, 0.0, 1.0].map(|share| point.quantile(share) * 1e6);
            let (name, of) = (&curve.name, curve.size);
            let _ = writeln!(text, "\"{name}\",{},{of},{},{median:.2},{least:.2},{most:.2}", point.size, point.amount);
        }
    }
    text
}

fn kernels_table(curves: &[Curve]) -> comfy_table::Table {
    let mut table = report::table(&["kernel", "size", "of", "time us", "rate"], &[1, 3]);
    for curve in curves {
        for point in [curve.points.first(), curve.points.last()].into_iter().flatten() {
            let rate = point.amount / point.median();
            table.add_row([
                curve.name.clone(),
                point.size.to_string(),
                curve.size.to_owned(),
                format!("{:.1}", point.median() * 1e6),
                match curve.rate {
                    Rate::Flops => format!("{:.1} TFLOP/s", rate / 1e12),
                    Rate::Bytes => format!("{:.1} GB/s", rate / 1e9),
                    Rate::Time => format!("{:.2} us each", 1e6 / rate),
                },
            ]);
        }
    }
    table
}

/// Some of what is said of an operation.
type Said = fn(&MeasuredOperation) -> Option<Passes>;

/// All that is said of one, and by what name.
const MEASURED: [(&str, Said); 3] =
    [("alone", |of| Some(of.alone())), ("queued", |of| of.queued), ("issue", |of| of.issue)];

fn operations_table(all: &[MeasuredOperation]) -> comfy_table::Table {
    let heads = ["operation", "shape", "pass", "measured", "call us", "start us", "unit us", "from the line, at most"];
    let mut table = report::table(&heads, &[4, 5, 6, 7]);
    for of in all {
        for (what, passes) in MEASURED.iter().filter_map(|(what, passes)| Some((what, passes(of)?))) {
            for (pass, line) in [("forward", Some(passes.forward)), ("backward", passes.backward)] {
                let Some(line) = line else { continue };
                table.add_row([
                    of.operation.name().to_owned(),
                    of.shape.clone(),
                    pass.to_owned(),
                    (*what).to_owned(),
                    if line.call > 0.0 { format!("{:.2}", line.call * 1e6) } else { String::new() },
                    format!("{:.2}", line.start * 1e6),
                    format!("{:.6}", line.unit * 1e6),
                    format!("{:.1}%", line.error.unwrap_or(0.0) * 100.0),
                ]);
            }
        }
    }
    table
}

/// Every segment that was measured, beside what the cluster's lines say of it.
fn operations_csv(runs: &[MeasuredRun], cluster: &Cluster) -> String {
    let mut text = "run,segment,measured,predicted_ms,measured_ms\n".to_owned();
    let times: [fn(&MeasuredRun) -> Option<&Times>; 3] = [
        |run| Some(&run.measured),
        |run| run.ahead.as_ref().map(|ahead| &ahead.queued),
        |run| run.ahead.as_ref().map(|ahead| &ahead.issued),
    ];
    for ((what, passes), times) in MEASURED.into_iter().zip(times) {
        for line in segments::lines(&taking(cluster, passes), runs, times) {
            let (predicted, measured) = (line.predicted.0 * 1e3, line.measured.0 * 1e3);
            let _ = writeln!(text, "\"{}\",\"{}\",{what},{predicted:.4},{measured:.4}", line.run, line.segment);
        }
    }
    text
}

/// The cluster whose operations take what is said of them there, and whose hosts are not followed.
fn taking(cluster: &Cluster, passes: Said) -> Cluster {
    let mut cluster = cluster.clone();
    cluster.gpu.measured.retain_mut(|of| {
        let said = passes(of);
        (of.queued, of.issue) = (None, None);
        said.map(|said| (of.forward, of.backward) = (said.forward, said.backward)).is_some()
    });
    cluster
}

fn kernel_charts(curves: &[Curve]) -> Vec<(&'static str, LineChart)> {
    let chart = |rate: Rate, x_label: &str, y_label: &str, scale: f64| {
        let mut panels: Vec<LinePanel> = Vec::new();
        let of_rate: Vec<&Curve> = curves.iter().filter(|curve| curve.rate == rate).collect();
        for (ink, curve) in of_rate.iter().enumerate() {
            let points = curve.points.iter().map(|point| (point.size, point.amount / point.median() / scale)).collect();
            let series = LineSeries { name: curve.name.clone(), ink, points, marks: Vec::new() };
            let title = if rate == Rate::Flops { kind(curve).to_owned() } else { String::new() };
            match panels.iter_mut().find(|panel| panel.title == title) {
                Some(panel) => panel.series.push(series),
                None => {
                    panels.push(LinePanel { title, y_label: y_label.to_owned(), series: vec![series], from_zero: true })
                }
            }
        }
        LineChart { x_label: x_label.to_owned(), panels, log_x: true, ..LineChart::default() }
    };
    vec![
        ("products", chart(Rate::Flops, "rows, rows of an expert, or samples", "TFLOP/s", 1e12)),
        ("memory", chart(Rate::Bytes, "bytes", "GB/s", 1e9)),
    ]
}

fn collectives_chart(all: &[Collective]) -> LineChart {
    let mut names: Vec<&str> = all.iter().map(|of| of.name.as_str()).collect();
    names.dedup();
    let panel = |y_label: &str, value: &dyn Fn(&Collective) -> f64| LinePanel {
        title: String::new(),
        y_label: y_label.to_owned(),
        series: names
            .iter()
            .enumerate()
            .map(|(ink, &name)| LineSeries {
                name: name.to_owned(),
                ink,
                points: all.iter().filter(|of| of.name == name).map(|of| (of.bytes, value(of))).collect(),
                marks: Vec::new(),
            })
            .collect(),
        from_zero: true,
    };
    LineChart {
        x_label: "size (bytes)".to_owned(),
        panels: vec![
            panel("busbw (GB/s)", &|of| of.bus_bandwidth() / 1e9),
            panel("algbw (GB/s)", &|of| of.algorithm_bandwidth() / 1e9),
        ],
        log_x: true,
        ..LineChart::default()
    }
}
