//! `moebench validate all`: every study of a folder of measurements, as one page with figures.
//!
//! The page states what the command measured and nothing else; what people know about a configuration stands in
//! `explanations.csv` beside the page and is shown with the configurations that are far off.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use workloads::Cluster;
use workloads::gate::GateStatistics;
use workloads::trace::RoutingTrace;

use crate::calibrate;
use crate::calibrate::constants::{END_TO_END_CONSTANTS, LAYER_CONSTANTS, Point};
use crate::calibrate::targets::Targets;
use crate::failure::{Failure, OrFail};
use crate::figures::{adaptive as adaptive_figure, performance_model};
use crate::studies::adaptive;
use crate::studies::end_to_end::{self, Configuration, Line, Report};
use crate::studies::errors::{Errors, Pair};
use crate::studies::layer::LayerShape;
use crate::studies::moe_layer::{self, Rows, Setting};
use crate::studies::page::{self, Section};
use crate::studies::plans::{self, PLANS_ITERATIONS};
use crate::studies::sheet::Sheet;
use crate::studies::tables::{
    adaptive_table, constants_table, lines_table, ms, percent, plans_table, settings_table, statistics_table,
};
use crate::summary::model_error::{self, ClusterError, Part};
use crate::{output, report, runs::prepare, runs::provenance, runs::store, traces};
use chart::Figure;

/// `moebench validate all`.
#[derive(Args)]
pub struct AllArgs {
    /// Folder with any of end_to_end.csv, moe_layer.csv and adaptive_everyN.csv
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Routing trace that they were taken on, as for `run` [default: moe_trace.tar.xz in that folder]
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Folder for the page and its figures
    #[arg(long, value_name = "DIR", default_value = "results/validation")]
    out: PathBuf,
    /// Cluster of the single layers, by name or path
    #[arg(long, default_value = "nico")]
    layer_cluster: String,
    #[command(flatten)]
    shape: LayerShape,
    /// Ranks that share the experts in the study of one layer over time
    #[arg(long, default_value_t = 16)]
    gpus: usize,
    /// Suite whose cases state the plans that SmartMoE's authors ran, by name or path
    #[arg(long, default_value = "paper-gpt-authors")]
    suite: String,
    /// Layer of the trace in that study
    #[arg(long, default_value_t = 6)]
    layer: usize,
    /// Samples per rank and micro-batch in that study
    #[arg(long, default_value_t = 8)]
    micro_batch: usize,
}

impl AllArgs {
    fn trace(&self) -> PathBuf {
        self.trace.clone().unwrap_or_else(|| self.data.join("moe_trace.tar.xz"))
    }
}

/// What the studies read and where they write.
struct Inputs<'a> {
    args: &'a AllArgs,
    trace: RoutingTrace,
    layer_cluster: Cluster,
}

/// A study: its section, or none where the folder does not hold its file.
type Study = fn(&Inputs) -> Result<Option<Section>>;

/// The sections of the page, in order.
const SECTIONS: [Study; 6] = [layers, iterations, held_out, placement, offline_search, speed];

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &AllArgs) -> Result<(), Failure> {
    let trace = traces::load(Some(&args.trace())).or_input()?;
    let layer_cluster = prepare::cluster("--layer-cluster", &args.layer_cluster).or_input()?;
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string()).or_run()?;
    let inputs = Inputs { args, trace, layer_cluster };
    let mut sections = Vec::new();
    for section in SECTIONS {
        sections.extend(section(&inputs).or_input()?);
    }
    write(&inputs, &sections).or_run()
}

fn write(inputs: &Inputs, sections: &[Section]) -> Result<()> {
    let out = &inputs.args.out;
    let save = |name: &str, text: String| {
        store::write_atomically(&out.join(name), |file| Ok(file.write_all(text.as_bytes())?))
    };
    let errors: Vec<ClusterError> = sections.iter().flat_map(|section| section.errors.iter().cloned()).collect();
    save(model_error::FILE, model_error::text(&errors))?;
    save("README.md", page::markdown(&introduction(inputs)?, sections))?;
    output::print(format!("page  {}", out.join("README.md").display()))
}

fn introduction(inputs: &Inputs) -> Result<String> {
    let mut paths = vec![inputs.args.trace()];
    paths.extend(["end_to_end.csv", "moe_layer.csv"].into_iter().filter_map(|name| file(inputs, name)));
    paths.extend(series_files(inputs)?.into_iter().map(|(_, path)| path));
    let mut files = Vec::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        let hash = provenance::sha256(&std::fs::read(path).with_context(|| path.display().to_string())?);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        files.push(format!("`{name}` (sha256 {})", hash.get(..12).unwrap_or(&hash)));
    }
    Ok(format!(
        "How far the simulator is from measurements. `moebench validate all --data DIR` wrote this page from \
         measurements and a routing trace of the kinds that were published with SmartMoE (USENIX ATC'23; they are not part \
         of this repository): {}. Every number below is what that command found, with the clusters' constants as they are \
         shipped unless a section says that it fits others. Errors are `predicted / measured - 1`.",
        files.join(", ")
    ))
}

/// The path of a study's file, if the folder has it.
fn file(inputs: &Inputs, name: &str) -> Option<PathBuf> {
    Some(inputs.args.data.join(name)).filter(|path| path.exists())
}

fn save(inputs: &Inputs, name: &str, figure: &Figure) -> Result<()> {
    let path = inputs.args.out.join(format!("{name}.svg"));
    store::write_text(&path, &figure.svg)
}

fn share(value: f64) -> String {
    format!("{:.1}%", value * 100.0)
}

/// Single layers: with the shipped constants, and fitted on half of the rows and tested on the other.
fn layers(inputs: &Inputs) -> Result<Option<Section>> {
    let Some(path) = file(inputs, "moe_layer.csv") else { return Ok(None) };
    let (trace, shape) = (&inputs.trace, inputs.args.shape);
    let read = |rows| moe_layer::read(&path, rows, trace, shape, &[0]);
    let shipped = moe_layer::predict(&read(Rows::All)?, &inputs.layer_cluster);
    let mut section = Section::new("Single MoE layers (figure 11)");
    section.add(format!(
        "One layer, forward and backward, experts in order. Its width is not in the file: {} is inferred (`--hidden`), an \
         expert's inner width being twice that.",
        shape.hidden
    ));
    match (read(Rows::Even), read(Rows::Odd)) {
        (Ok(even), Ok(odd)) if even.len() > LAYER_CONSTANTS.len() => fitted_layers(inputs, &mut section, even, &odd)?,
        _ => {
            save(inputs, "layers", &performance_model::moe_layer(&shipped).draw()?)?;
            section.picture("layers", "Predicted against measured times of single layers");
            section.add(format!(
                "The file has too few rows to fit {} constants to those with even `(iteration - 1) / 100` and test the others.",
                LAYER_CONSTANTS.len()
            ));
        }
    }
    section.add(format!("With the constants of `{}` as shipped, all rows:", inputs.layer_cluster.name));
    section.table(settings_table(&shipped));
    let all: Vec<Pair> = shipped.iter().flat_map(|setting| setting.pairs.iter().copied()).collect();
    let errors = Errors::new(&all);
    section.errors.extend(errors.map(|e| ClusterError::new(&inputs.layer_cluster.name, Part::Layer, &e, "single")));
    Ok(Some(section))
}

fn fitted_layers(
    inputs: &Inputs,
    section: &mut Section,
    even: Vec<moe_layer::Sample>,
    odd: &[moe_layer::Sample],
) -> Result<()> {
    let (cluster, fitted) = calibrate::fit_layers(&inputs.layer_cluster, &inputs.trace, even)?;
    let tested = moe_layer::predict(odd, &cluster);
    save(inputs, "layers", &performance_model::moe_layer(&tested).draw()?)?;
    section.add(format!(
        "{} constants are fitted to the rows with even `(iteration - 1) / 100` and tested on the others:",
        fitted.len()
    ));
    section.picture("layers", "Predicted against measured times of single layers");
    section.table(settings_table(&tested));
    section.add("The constants of that fit:");
    section.table(constants_table(&fitted));
    tested.iter().for_each(|setting| claim_layer(section, setting));
    Ok(())
}

fn claim_layer(section: &mut Section, setting: &Setting) {
    let (errors, r) = (&setting.errors, setting.errors.r_squared.unwrap_or(0.0));
    let paper = setting.paper.map_or(String::new(), |paper| {
        let r = paper.r_squared.map_or(String::new(), |r| format!(", R² {r:.2}"));
        format!(" (the paper's model: {}{r})", share(paper.mean))
    });
    section.claim(
        format!("single layers, {} GPUs, micro-batch {}, rows held out", setting.gpus, setting.micro_batch),
        "mean error at most 3%, R² at least 0.95",
        format!("{}, R² {r:.3}{paper}", share(errors.mean)),
        errors.mean <= 0.03 && r >= 0.95,
    );
}

fn configurations(inputs: &Inputs) -> Result<Option<Vec<Configuration>>> {
    let Some(path) = file(inputs, "end_to_end.csv") else { return Ok(None) };
    end_to_end::read(&path, &|name| prepare::cluster("cluster", name)).map(Some)
}

/// Whole iterations with the shipped constants.
fn iterations(inputs: &Inputs) -> Result<Option<Section>> {
    let Some(configurations) = configurations(inputs)? else { return Ok(None) };
    let result = end_to_end::predict(&configurations, &inputs.trace, &GateStatistics::default(), None)?;
    save(inputs, "iterations", &performance_model::end_to_end(&result).draw()?)?;
    let mut section = Section::new("Whole iterations (figures 8 and 10)");
    section.add(
        "Every configuration with the plan, gate and micro-batch that was measured, all iterations, on the published trace. \
         Medians leave out the first 10 iterations. The clusters' constants were fitted to these very configurations: the \
         next section shows what the fit is worth on configurations that it did not see. `deepspeed` trained a model of its \
         own.",
    );
    section.picture("iterations", "Predicted against measured iteration times");
    let sums = [("medians".to_owned(), result.errors), ("sums, start-up included".to_owned(), result.sum_errors)];
    section.table(statistics_table(&sums, "relative errors of"));
    claim_iterations(&mut section, &result);
    worst(inputs, &mut section, &result)?;
    section.add("All configurations:");
    section.table(lines_table(&result.lines));
    section.errors = cluster_errors(&result);
    Ok(Some(section))
}

fn claim_iterations(section: &mut Section, result: &Report) {
    if let Some(errors) = &result.errors {
        section.claim(
            format!("whole iterations, {} configurations, one calibration", errors.count),
            "median at most 10%, 90th percentile at most 25%",
            format!("{}, {} (largest {})", share(errors.median), share(errors.p90), share(errors.max)),
            errors.median <= 0.10 && errors.p90 <= 0.25,
        );
    }
    section.claim(
        "order of systems, pairs measured more than 5% apart",
        "all",
        format!("{} of {}", result.ordered_right, result.ordered_pairs),
        result.ordered_wrong.is_empty(),
    );
    for wrong in &result.ordered_wrong {
        section.add(format!("Wrong order: {wrong}."));
    }
    for (gpus, gate) in result.no_drop_cases() {
        let Some((measured, predicted)) = result.speedup(gpus, &gate, "fastermoe", "smartmoe") else { continue };
        let error = predicted / measured - 1.0;
        let text = format!("{predicted:.2} for {measured:.2} measured ({})", percent(error));
        if gpus == 16 {
            section.claim(
                "SmartMoE over FasterMoE, 16 GPUs, no-drop, by sums",
                "within 10%",
                text,
                error.abs() <= 0.10,
            );
        } else {
            section.add(format!(
                "SmartMoE over FasterMoE, {gpus} GPUs, {gate}, by sums: {text}. Measured sums hold the start-up of each run, \
                 which the simulator does not have."
            ));
        }
    }
}

/// Errors above this are shown with what is known about them.
const FAR: f64 = 0.15;

/// The configurations that are far off, beside those that ran the same plan on as many GPUs, and what people know of them.
fn worst(inputs: &Inputs, section: &mut Section, result: &Report) -> Result<()> {
    let known = explanations(&inputs.args.out.join("explanations.csv"))?;
    let mut far: Vec<&Line> = result.lines.iter().filter(|line| line.error.is_some_and(|e| e.abs() > FAR)).collect();
    let size = |line: &&Line| line.error.unwrap_or(0.0).abs();
    far.sort_by(|a, b| size(b).total_cmp(&size(a)));
    section.add(format!("{} configurations are more than {:.0}% off, the worst first:", far.len(), FAR * 100.0));
    let mut list = String::new();
    for line in &far {
        let label = format!("{} {}/{}/{}", line.cluster, line.gpus, line.gate, line.system);
        let (measured, predicted) = (ms(line.measured), ms(line.predicted));
        let why = known.iter().find(|(name, _)| *name == label).map_or("not explained", |(_, why)| why.as_str());
        let error = line.error.map_or(String::new(), percent);
        list += &format!("- **{label}**, {error}: {predicted} ms for {measured} ms. {why}\n");
    }
    section.add(list);
    if let Some(first) = far.first() {
        let siblings = result.lines.iter().filter(|line| line.gpus == first.gpus && line.plan == first.plan);
        section.add(format!("The worst one beside all that ran {} on {} GPUs:", first.plan, first.gpus));
        section.table(lines_table(&siblings.cloned().collect::<Vec<_>>()));
    }
    Ok(())
}

/// (configuration, what people know of it); none where there is no such file.
fn explanations(path: &Path) -> Result<Vec<(String, String)>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let sheet = Sheet::read(path, &["configuration", "explanation"])?;
    Ok(sheet.rows().map(|row| (row.text("configuration").to_owned(), row.text("explanation").to_owned())).collect())
}

fn pairs_of<'a>(lines: impl Iterator<Item = &'a Line>) -> Vec<Pair> {
    let pairs = lines.filter_map(|line| line.measured.zip(line.predicted));
    pairs.map(|(measured, predicted)| Pair { predicted, measured }).collect()
}

fn cluster_errors(result: &Report) -> Vec<ClusterError> {
    let mut clusters: Vec<&str> = result.lines.iter().map(|line| line.cluster.as_str()).collect();
    clusters.sort_unstable();
    clusters.dedup();
    let errors = clusters.into_iter().filter_map(|cluster| {
        let errors = Errors::new(&pairs_of(result.lines.iter().filter(|line| line.cluster == cluster)))?;
        Some(ClusterError::new(cluster, Part::Iteration, &errors, "published"))
    });
    errors.collect()
}

/// Iterations simulated per configuration while fitting.
const FITTED_ITERATIONS: usize = 6;

/// Constants fitted to one number of GPUs, tested on the others.
fn held_out(inputs: &Inputs) -> Result<Option<Section>> {
    let Some(mut all) = configurations(inputs)? else { return Ok(None) };
    all.retain(|configuration| configuration.missing().is_none() && configuration.measured().is_some());
    let mut groups: Vec<(String, usize)> = all.iter().map(|c| (c.cluster.clone(), c.gpus)).collect();
    groups.sort();
    groups.dedup();
    let mut section = Section::new("Fitted to one number of GPUs, tested on the others");
    section.add(format!(
        "The constants that `moebench calibrate fit` determines from iteration times ({}) are fitted to the configurations \
         of one number of GPUs alone; the others stay as shipped.",
        END_TO_END_CONSTANTS.map(|name| format!("`{name}`")).join(", ")
    ));
    let mut table = report::table(&["fitted to", "tested on", "n", "median", "p90", "max", "bias"], &[2, 3, 4, 5, 6]);
    for (cluster, gpus) in groups {
        let (used, others): (Vec<&Configuration>, Vec<&Configuration>) =
            all.iter().filter(|c| c.cluster == cluster).partition(|c| c.gpus == gpus);
        if others.is_empty() || used.len() < END_TO_END_CONSTANTS.len() {
            continue;
        }
        let (inside, outside) = errors_of_fit(inputs, &cluster, &used, &others)?;
        let fitted = format!("{cluster}, {gpus} GPUs");
        for (tested, errors) in [("the same", inside), ("the others", outside)] {
            let shares = [errors.median, errors.p90, errors.max].map(share);
            let count = errors.count.to_string();
            let cells = [fitted.clone(), tested.to_owned(), count].into_iter().chain(shares);
            table.add_row(cells.chain([percent(errors.bias)]));
        }
        section.claim(
            format!("whole iterations, constants fitted to {gpus} GPUs, tested on the others"),
            "median at most 15%",
            format!(
                "{} (90th percentile {}, largest {})",
                share(outside.median),
                share(outside.p90),
                share(outside.max)
            ),
            outside.median <= 0.15,
        );
    }
    section.table(table);
    Ok(Some(section))
}

/// Errors on the configurations that were fitted to, and on the others.
fn errors_of_fit(
    inputs: &Inputs,
    cluster: &str,
    used: &[&Configuration],
    others: &[&Configuration],
) -> Result<(Errors, Errors)> {
    let sampled = |c: &Configuration| c.iterations(Some(FITTED_ITERATIONS));
    let start = Point { cluster: prepare::cluster("cluster", cluster)?, gate: GateStatistics::default() };
    let fitted = Targets {
        trace: &inputs.trace,
        end_to_end: used.iter().map(|&configuration| (configuration, sampled(configuration))).collect(),
        layers: Vec::new(),
        adaptive: None,
    };
    let names = END_TO_END_CONSTANTS.map(str::to_owned);
    let (point, _) = calibrate::fit(&start, &names, &fitted)?;
    let errors = |of: &[&Configuration]| -> Result<Errors> {
        let mut pairs = Vec::new();
        for configuration in of {
            let iterations = sampled(configuration);
            let prediction = configuration.predict(&inputs.trace, Some(&point.cluster), &point.gate, &iterations)?;
            let both = prediction.and_then(|p| p.median()).zip(configuration.measured());
            pairs.extend(both.map(|(predicted, measured)| Pair { predicted, measured }));
        }
        Errors::new(&pairs).context("no configuration was predicted")
    };
    Ok((errors(used)?, errors(others)?))
}

/// (N, path) of every `adaptive_everyN.csv`, by N.
fn series_files(inputs: &Inputs) -> Result<Vec<(usize, PathBuf)>> {
    let folder = &inputs.args.data;
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>()?;
    let every = |path: &Path| -> Option<usize> {
        let number = path.file_name()?.to_str()?.strip_prefix("adaptive_every")?.strip_suffix(".csv")?;
        number.parse().ok().filter(|every| *every > 0)
    };
    let mut files: Vec<(usize, PathBuf)> = paths.into_iter().filter_map(|path| Some((every(&path)?, path))).collect();
    files.sort();
    Ok(files)
}

/// One layer over time, as the study placed experts, and as a trainer could.
fn placement(inputs: &Inputs) -> Result<Option<Section>> {
    let files = series_files(inputs)?;
    if files.is_empty() {
        return Ok(None);
    }
    let mut section = Section::new("Online placement of one layer over time (figure 13)");
    section.add(format!(
        "Layer {} of the trace on {} GPUs, micro-batch {}. As in the study, a placement follows the counts of the very \
         iteration that it serves first; a trainer knows only earlier ones, and the last line is that case with a lag of one \
         sample of the trace.",
        inputs.args.layer, inputs.args.gpus, inputs.args.micro_batch
    ));
    for (every, path) in files {
        one_series(inputs, &mut section, every, &path)?;
    }
    Ok(Some(section))
}

fn one_series(inputs: &Inputs, section: &mut Section, every: usize, path: &Path) -> Result<()> {
    let AllArgs { gpus, layer, micro_batch, shape, .. } = *inputs.args;
    let predict = |lag| -> Result<(adaptive::Series, Vec<adaptive::Step>, adaptive::Report)> {
        let study = adaptive::Study { gpus, layer, micro_batch, every, lag };
        let series = adaptive::read(path, &inputs.trace, shape, study)?;
        let steps = series.predict(&inputs.layer_cluster);
        let result = adaptive::Report::new(&series.samples, &steps).context("no iterations")?;
        Ok((series, steps, result))
    };
    let (series, steps, result) = predict(0)?;
    let (_, _, lagged) = predict(1)?;
    let name = format!("placement_every{every}");
    save(inputs, &name, &adaptive_figure::draw(&series.samples, &steps)?)?;
    section.add(format!("Placed every {every} iterations:"));
    section.picture(&name, "Layer time over iterations, experts in order and placed online");
    section.table(adaptive_table(&result));
    section.table(gains(&result, &lagged));
    let error = result.predicted_gain / result.measured_gain - 1.0;
    let correlation = result.static_correlation.unwrap_or(0.0);
    section.claim(
        format!("mean gain of online placement every {every} iterations"),
        "within 5%",
        format!("{:.3} for {:.3} measured ({})", result.predicted_gain, result.measured_gain, percent(error)),
        error.abs() <= 0.05,
    );
    section.claim("correlation of its static series", "at least 0.8", format!("{correlation:.3}"), correlation >= 0.8);
    Ok(())
}

fn gains(study: &adaptive::Report, lagged: &adaptive::Report) -> comfy_table::Table {
    let header = ["", "mean gain", "placements taken", "correlation, in order", "correlation, placed"];
    let mut table = report::table(&header, &[1, 2, 3, 4]);
    let moves = study.measured_moves.map_or("unknown".to_owned(), |moves| moves.to_string());
    let measured = format!("{:.3}", study.measured_gain);
    table.add_row(["measured".to_owned(), measured, moves, String::new(), String::new()]);
    for (name, result) in [("simulated, as the study placed", study), ("simulated, with a lag", lagged)] {
        let r = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        table.add_row([
            name.to_owned(),
            format!("{:.3}", result.predicted_gain),
            result.predicted_moves.to_string(),
            r(result.static_correlation),
            r(result.online_correlation),
        ]);
    }
    table
}

/// What the offline search picks beside what the authors ran.
fn offline_search(inputs: &Inputs) -> Result<Option<Section>> {
    let name = &inputs.args.suite;
    let compared = plans::compare(name, prepare::suite(name)?, None, &inputs.trace, PLANS_ITERATIONS)?;
    let mut section = Section::new("The offline search beside the authors' plans");
    section.add(format!(
        "For every case of the suite `{name}`, the plan that SmartMoE's search picks and the plan that its authors ran, each \
         rated twice: by the search's estimate on the routing of a profiling run, and by the median of {PLANS_ITERATIONS} \
         simulated iterations after the warm-up. What the search picks also places experts online; where the authors' plan \
         says `everyN` it did too. State is weights, gradients and optimizer state of the rank that holds most of them, peak \
         is the fullest rank's in the simulated run, usable is what a rank has. The profile is spread over more iterations than \
         the run takes, so where routing is calming down, as early in training, estimates lie below runs. `moebench validate \
         plans` shows the same."
    ));
    section.table(plans_table(&compared));
    let both = compared.iter().filter(|comparison| comparison.both_agree()).count();
    section.claim(
        "offline search picks the authors' plan, or one that its estimate and a simulated run rate at least as fast",
        "all cases",
        format!("{both} of {}", compared.len()),
        both == compared.len(),
    );
    Ok(Some(section))
}

/// What the benches wrote beside the page.
fn speed(inputs: &Inputs) -> Result<Option<Section>> {
    if !inputs.args.out.join("benchmarks.md").exists() {
        return Ok(None);
    }
    let mut section = Section::new("Speed");
    section.add("One placement decision, one pool search, one simulated iteration: [benchmarks](benchmarks.md).");
    Ok(Some(section))
}
