//! `moebench plan`: an offline search as a ranked table.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use systems::plan::search::{self, PerformanceModel};
use systems::price::ledger::Phase;
use systems::{Candidate, CostModel, Job, Plan, System};
use workloads::Case;
use workloads::suite::{SearchSpace, TraceUse};

use crate::commands::{PlanRule, check_extent};
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::{figures, named, prepare, report, traces};

/// `moebench plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// Model, by name or path
    #[arg(long)]
    pub model: String,
    /// Cluster, by name or path
    #[arg(long)]
    pub cluster: String,
    /// Number of GPUs
    #[arg(long)]
    pub gpus: usize,
    /// Gate: `no-drop`, `no-drop balanced`, `capacity FACTOR` or `switch FACTOR`
    #[arg(long, default_value = "no-drop")]
    pub gate: workloads::Gate,
    /// Samples per iteration over all GPUs [default: 8 a GPU]
    #[arg(long, value_name = "SAMPLES")]
    pub global_batch_size: Option<usize>,
    /// Samples per rank and micro-batch; searched for when absent
    #[arg(long, value_name = "SAMPLES")]
    pub micro_batch_size: Option<usize>,
    /// System whose search is shown
    #[arg(long, default_value = "smartmoe")]
    pub system: String,
    /// The plans of the system's own rule, or those that SmartMoE's search finds for it
    #[arg(long, value_name = "WHOSE", default_value = "own")]
    pub plan: PlanRule,
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
}

/// Samples a GPU and iteration where none are said: what large models are trained with at these scales (Megatron-Bridge's
/// published recipes).
const SAMPLES_PER_GPU: usize = 8;

/// # Errors
/// Bad input.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let system = prepare::system("--system", &args.system).or_input()?;
    let global_batch = args.global_batch_size.unwrap_or(args.gpus.saturating_mul(SAMPLES_PER_GPU));
    let mut case = Case {
        model: args.model.clone().into(),
        cluster: args.cluster.clone().into(),
        gpus: args.gpus,
        gate: args.gate,
        global_batch,
        micro_batch: args.micro_batch_size,
        search: args.search,
        plans: Default::default(),
        name: None,
        routing: Vec::new(),
        layers: Vec::new(),
        layer: None,
        batch: None,
        differs: Default::default(),
    };
    for (option, value) in [
        ("--gpus", args.gpus),
        ("--global-batch-size", global_batch),
        ("--micro-batch-size", args.micro_batch_size.unwrap_or(1)),
    ] {
        check_extent(option, value).or_input()?;
    }
    named::case("moebench plan", &mut case).or_input()?;
    let trace = traces::load(args.trace.as_deref()).or_input()?;
    let part = TraceUse { start: args.trace_start, ..TraceUse::default() };
    let (job, routing) = prepare::job("moebench plan", &case, part, &trace, 0).or_input()?;
    let costs = CostModel::new(&job.cluster, job.gpus);
    let candidates = match args.plan {
        _ if args.rate.is_some() => args.rate.into_iter().map(|plan| rated(system, &job, &costs, plan)).collect(),
        PlanRule::Own => system.candidates(&job, &costs),
        PlanRule::Searched => search::searched(system, &job, &costs),
    };
    if candidates.is_empty() {
        return Err(Failure::Input(anyhow::anyhow!(
            "--gpus {}, --global-batch-size {}: no degrees of {} fit {} ({} blocks); expected GPUs whose divisors divide blocks, experts and batch",
            args.gpus,
            job.global_batch,
            system.name(),
            case.model,
            job.model.blocks.len()
        )));
    }
    // What the search looked at: the profiled iterations.
    let imbalance = figures::imbalance(std::iter::once(&routing), part.profile + 1);
    let trace = format!("{}, {imbalance}", trace.name());
    show(args, &case, system.name(), &trace, &candidates).or_run()?;
    let best = candidates.iter().find(|candidate| candidate.outcome.is_ok());
    if let Some(reasons) = best.and_then(|best| system.explain(&job, &best.plan)) {
        writeln!(output::stdout(), "\n{reasons}").context("standard output").or_run()?;
    }
    Ok(())
}

/// A given plan under the system's programs, experts in order.
fn rated(system: &dyn System, job: &Job, costs: &CostModel, plan: Plan) -> Candidate {
    let estimate = || {
        plan.check(job)?;
        let policy = system.policy(job, &plan);
        let performance = PerformanceModel { job, costs, profile: &job.profile };
        performance.estimate(&plan, policy.as_ref(), &plan.experts_in_order(job))
    };
    Candidate { plan, outcome: estimate() }
}

fn show(args: &PlanArgs, case: &Case, system: &str, trace: &str, candidates: &[Candidate]) -> Result<()> {
    let mut out = output::stdout();
    writeln!(
        out,
        "{} on {} GPUs of {}, {} gate, global batch {}: {} plans by {}; simulated times, routing of {}\n",
        case.model,
        args.gpus,
        case.cluster,
        args.gate,
        case.global_batch,
        candidates.len(),
        system,
        trace,
    )
    .context("standard output")?;
    writeln!(out, "{}", table(candidates, args.top))?;
    if candidates.len() > args.top {
        writeln!(out, "\n{} more; --top {} shows all", candidates.len() - args.top, candidates.len())?;
    }
    Ok(())
}

const SHOWN: [(&str, &[Phase]); 6] = [
    ("dense", &[Phase::Dense, Phase::TensorParallel]),
    ("experts", &[Phase::Experts, Phase::Gate]),
    ("exchange", &[Phase::Counts, Phase::Dispatch, Phase::Combine, Phase::ShadowTransfer]),
    ("wait", &[Phase::Wait]),
    ("bubble", &[Phase::Bubble]),
    ("update", &[Phase::GradientSync, Phase::Optimizer, Phase::Host]),
];

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
                for (_, phases) in SHOWN {
                    cells.push(ms(phases.iter().map(|&phase| estimate.phases.of(phase).0).sum()));
                }
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
