//! `moebench plan`: an offline search as a ranked table.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use systems::plan::search::{self, Estimate};
use systems::price::ledger::Phase;
use systems::{Candidate, CostModel, Plan};
use workloads::Case;
use workloads::suite::{SearchSpace, TraceUse};
use workloads::trace::RoutingTrace;

use crate::commands::{PlanRule, check_extent};
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::part::{self, Pattern};
use runs::{figures, named, prepare, report, traces};

const EXAMPLES: &str = "\
Examples:
  moebench plan --model mixtral-8x7b --cluster h100x8 --gpus 64
  moebench plan --suite smoke --case 8.no-drop --top 5     a case of a suite; run takes a rank:
  moebench run smoke --case 8.no-drop --set plans.smartmoe=3";

/// `moebench plan`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// Model, by name or path
    #[arg(long, required_unless_present = "suite")]
    pub model: Option<String>,
    /// Cluster, by name or path
    #[arg(long, required_unless_present = "suite")]
    pub cluster: Option<String>,
    /// Number of GPUs
    #[arg(long, required_unless_present = "suite")]
    pub gpus: Option<usize>,
    /// Gate: `no-drop`, `no-drop balanced`, `capacity FACTOR` or `switch FACTOR`
    #[arg(long, default_value = "no-drop")]
    pub gate: workloads::Gate,
    /// Samples per iteration over all GPUs [default: 8 a GPU]
    #[arg(long, value_name = "SAMPLES")]
    pub global_batch_size: Option<usize>,
    /// Samples per rank and micro-batch; searched for when absent
    #[arg(long, value_name = "SAMPLES")]
    pub micro_batch_size: Option<usize>,
    /// A suite, by name or path, one of whose cases is meant instead of one by model, cluster and GPUs
    #[arg(long, conflicts_with_all = ["model", "cluster", "gpus", "gate", "global_batch_size", "micro_batch_size", "search", "trace_start"])]
    pub suite: Option<String>,
    /// The case: a part of its id, or all of it with `*` for any characters
    #[arg(long, value_name = "PATTERN", requires = "suite")]
    pub case: Option<Pattern>,
    /// System whose search is shown
    #[arg(long, default_value = "smartmoe")]
    pub system: String,
    /// The plans of the system's own rule, or those that SmartMoE's search finds for it [default: what the suite says of the
    /// system, or own]
    #[arg(long, value_name = "WHOSE")]
    pub plan: Option<PlanRule>,
    /// What the search may choose: `degrees`, or `all` (virtual stages, ZeRO and recomputation, too)
    #[arg(long, value_name = "SPACE", default_value = "all")]
    pub search: SearchSpace,
    /// Rate this plan instead of searching, for example "pp4 dp16 tp1 ep8 edp2 mb1 vp2 zero1 selective"
    #[arg(long, value_name = "PLAN")]
    pub rate: Option<Plan>,
    /// Routing trace, as for `run`
    #[arg(long, value_name = "PATH")]
    pub trace: Option<PathBuf>,
    /// Iteration of the trace that the profiled iterations follow [default: its first]
    #[arg(long, value_name = "LABEL")]
    pub trace_start: Option<u32>,
    /// Rows shown
    #[arg(long, default_value_t = 20)]
    pub top: usize,
    /// Print JSON, of as many rows
    #[arg(long)]
    pub json: bool,
}

/// Samples a GPU and iteration where none are said: what large models are trained with at these scales (Megatron-Bridge's
/// published recipes).
const SAMPLES_PER_GPU: usize = 8;

/// What is searched for.
struct Asked {
    /// What errors call it.
    context: String,
    /// Of the case as the suite states it, whatever the system makes of it.
    id: String,
    /// The command that runs a plan by its rank in this very list, where a suite runs the system.
    by_rank: Option<String>,
    /// As the system runs it.
    case: Case,
    /// Whose plans the system runs where nobody says.
    rule: PlanRule,
    part: TraceUse,
    trace: Arc<RoutingTrace>,
    seed: u64,
}

/// # Errors
/// Bad input.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let system = prepare::system("--system", &args.system).or_input()?;
    let asked = args.suite.as_ref().map_or_else(|| described(args), |suite| of_suite(args, suite)).or_input()?;
    let Asked { context, case, rule, part, trace, seed, .. } = &asked;
    let (job, routing) = prepare::job(context, case, *part, trace, *seed).or_input()?;
    let costs = CostModel::new(&job.cluster, job.gpus);
    let candidates = match args.plan.unwrap_or(*rule) {
        _ if args.rate.is_some() => {
            args.rate.into_iter().map(|plan| search::rated(system, &job, &costs, plan)).collect()
        }
        PlanRule::Own => system.candidates(&job, &costs),
        PlanRule::Searched => search::searched(system, &job, &costs),
    };
    if candidates.is_empty() {
        return Err(Failure::Input(anyhow::anyhow!(
            "--gpus {}, --global-batch-size {}{}: no degrees of {} fit {} ({} blocks); expected GPUs whose divisors divide blocks, experts and batch, \
             and a micro-batch that divides each replica's part of that",
            job.gpus,
            job.global_batch,
            job.micro_batch.map_or(String::new(), |samples| format!(", --micro-batch-size {samples}")),
            system.name(),
            case.model,
            job.model.blocks.len()
        )));
    }
    // What the search looked at: the profiled iterations.
    let imbalance = figures::imbalance(std::iter::once(&routing), part.profile);
    let trace = format!("{}, {imbalance}", trace.name());
    if args.json {
        return output::print(as_json(args, &asked.id, &trace, &candidates)).or_run();
    }
    show(args, &asked, &trace, &candidates).or_run()?;
    let best = candidates.iter().find(|candidate| candidate.outcome.is_ok());
    if let Some(reasons) = best.and_then(|best| system.explain(&job, &best.plan)) {
        writeln!(output::stdout(), "\n{reasons}").context("standard output").or_run()?;
    }
    Ok(())
}

/// The case that the flags describe.
fn described(args: &PlanArgs) -> Result<Asked> {
    let (Some(model), Some(cluster), Some(gpus)) = (&args.model, &args.cluster, args.gpus) else {
        bail!("--model, --cluster and --gpus: expected all three, or --suite");
    };
    let global_batch = args.global_batch_size.unwrap_or(gpus.saturating_mul(SAMPLES_PER_GPU));
    for (option, value) in [
        ("--gpus", gpus),
        ("--global-batch-size", global_batch),
        ("--micro-batch-size", args.micro_batch_size.unwrap_or(1)),
    ] {
        check_extent(option, value)?;
    }
    let mut case = Case::new(model, cluster, gpus, args.gate, global_batch);
    (case.micro_batch, case.search) = (args.micro_batch_size, args.search);
    let context = "moebench plan".to_owned();
    named::case(&context, &mut case)?;
    let trace = traces::load(args.trace.as_deref())?.into();
    let part = TraceUse { start: args.trace_start, ..TraceUse::default() };
    Ok(Asked { context, id: case.id(), by_rank: None, case, rule: PlanRule::Own, part, trace, seed: 0 })
}

/// The one case of a suite that the pattern fits, with its routing: what `moebench run` would search on.
fn of_suite(args: &PlanArgs, name: &str) -> Result<Asked> {
    let mut suite = prepare::suite(name)?;
    part::keep_one(name, &mut suite, args.case.as_ref())?;
    let load = || Ok(Arc::new(traces::load(args.trace.as_deref())?));
    let trace = prepare::case_traces(name, &suite, args.trace.is_some(), &load)?.shared(0);
    let stated = suite.cases.remove(0);
    let id = stated.id();
    Ok(Asked {
        context: name.to_owned(),
        by_rank: suite.systems.contains(&args.system).then(|| by_rank(args, name, &id)),
        id,
        case: stated.as_run_by(&args.system),
        rule: if suite.searched.contains(&args.system) { PlanRule::Searched } else { PlanRule::Own },
        part: suite.trace,
        trace,
        seed: suite.seeds[0],
    })
}

fn show(args: &PlanArgs, asked: &Asked, trace: &str, candidates: &[Candidate]) -> Result<()> {
    let mut out = output::stdout();
    let case = &asked.case;
    writeln!(
        out,
        "{} on {} GPUs of {}, {} gate, global batch {}: {} plans by {}; simulated times, routing of {}\n",
        case.model,
        case.gpus,
        case.cluster,
        case.gate,
        case.global_batch,
        candidates.len(),
        args.system,
        trace,
    )
    .context("standard output")?;
    writeln!(out, "{}", table(candidates, args.top))?;
    if candidates.len() > args.top {
        writeln!(out, "\n{} more; --top {} shows all", candidates.len() - args.top, candidates.len())?;
    }
    if let Some(run) = asked.by_rank.as_ref().filter(|_| args.rate.is_none()) {
        writeln!(out, "\nto run one: {run}")?;
    }
    Ok(())
}

fn by_rank(args: &PlanArgs, suite: &str, id: &str) -> String {
    let mut run = format!(
        "moebench run {} --case {} --set plans.{}=RANK",
        report::quoted(suite),
        report::quoted(id),
        args.system
    );
    if let Some(trace) = &args.trace {
        run += &format!(" --trace {}", report::quoted(&trace.display().to_string()));
    }
    if let Some(rule) = args.plan.and_then(|rule| rule.to_possible_value()) {
        run += &format!(" --plan {}", rule.get_name());
    }
    run
}

const SHOWN: [(&str, &[Phase]); 6] = [
    ("dense", &[Phase::Dense, Phase::TensorParallel]),
    ("experts", &[Phase::Experts, Phase::Gate]),
    ("exchange", &[Phase::Counts, Phase::Dispatch, Phase::Combine, Phase::ShadowTransfer]),
    ("wait", &[Phase::Wait]),
    ("bubble", &[Phase::Bubble]),
    ("update", &[Phase::GradientSync, Phase::Optimizer, Phase::Host]),
];

/// Seconds of each of the columns.
fn shares(estimate: &Estimate) -> impl Iterator<Item = (&'static str, f64)> {
    SHOWN.iter().map(|(name, phases)| (*name, phases.iter().map(|&phase| estimate.phases.of(phase).0).sum()))
}

fn as_json(args: &PlanArgs, case: &str, trace: &str, candidates: &[Candidate]) -> String {
    let row = |(index, candidate): (usize, &Candidate)| match &candidate.outcome {
        Ok(estimate) => {
            let phases: Map<String, Value> = shares(estimate).map(|(name, s)| (name.to_owned(), s.into())).collect();
            json!({
                "rank": index + 1, "plan": candidate.plan.to_string(), "step_s": estimate.step.0, "phases_s": phases,
                "peak_bytes": estimate.peak.bytes.0,
            })
        }
        Err(reason) => {
            json!({ "rank": index + 1, "plan": candidate.plan.to_string(), "rejected": reason.to_string() })
        }
    };
    let rows: Vec<Value> = candidates.iter().enumerate().take(args.top).map(row).collect();
    let found = candidates.len();
    format!("{:#}", json!({ "case": case, "system": args.system, "routing": trace, "found": found, "plans": rows }))
}

fn table(candidates: &[Candidate], top: usize) -> comfy_table::Table {
    let mut header = vec!["rank", "plan", "step"];
    header.extend(SHOWN.map(|(name, _)| name));
    header.extend(["peak", "rejected because"]);
    let numbers: Vec<usize> = std::iter::once(0).chain(2..header.len() - 1).collect();
    let mut table = report::table(&header, &numbers);
    let ms = |seconds: f64| format!("{:.0} ms", seconds * 1e3);
    for (index, candidate) in candidates.iter().take(top).enumerate() {
        let mut cells = vec![(index + 1).to_string(), candidate.plan.to_string()];
        match &candidate.outcome {
            Ok(estimate) => {
                cells.push(ms(estimate.step.0));
                cells.extend(shares(estimate).map(|(_, seconds)| ms(seconds)));
                cells.push(format!("{:.1} GB", estimate.peak.bytes.0 / 1e9));
                cells.push(String::new());
            }
            Err(reason) => {
                cells.extend(std::iter::repeat_n(String::new(), SHOWN.len() + 2));
                let text = reason.to_string();
                let prefix = format!("plan {}: ", candidate.plan);
                cells.push(text.strip_prefix(&prefix).unwrap_or(&text).to_owned());
            }
        }
        table.add_row(cells);
    }
    table
}
