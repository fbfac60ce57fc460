//! `moebench validate plans`: SmartMoE's own pick of a plan beside the plan that its authors ran.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::commands::check_extent;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::{prepare, traces};
use studies::plan_comparison::PlanComparison;
use studies::plans::{PLANS_ITERATIONS, Plans};
use studies::tables::plans_table;
use studies::{Study, claims};

/// `moebench validate plans`.
#[derive(Args)]
pub struct PlansArgs {
    /// Suite whose cases state plans for SmartMoE, by name or path
    #[arg(long, default_value = "paper-gpt-authors")]
    suite: String,
    /// Cases of that cluster alone
    #[arg(long)]
    cluster: Option<String>,
    /// Routing trace, as for `run`
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Simulated iterations after the suite's warm-up
    #[arg(long, default_value_t = PLANS_ITERATIONS)]
    iterations: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &PlansArgs) -> Result<(), Failure> {
    check_extent("--iterations", args.iterations).or_input()?;
    let suite = prepare::suite(&args.suite).or_input()?;
    let trace = &traces::load(args.trace.as_deref()).or_input()?;
    let (file, cluster, iterations) = (args.suite.clone(), args.cluster.clone(), args.iterations);
    let compared = Plans { file, suite, trace, cluster, iterations }.predict().or_input()?;
    let text = match args.json {
        true => format!("{:#}", serde_json::json!({ "trace": trace.name(), "comparisons": compared })),
        false => text(&compared, iterations),
    };
    output::print(text).or_run()
}

fn text(compared: &[PlanComparison], iterations: usize) -> String {
    let claim = claims::search(compared);
    format!(
        "{}\n\n{}: {}\n\
         estimate: the search's, on the routing of a profiling run; run: median of {iterations} simulated iterations",
        plans_table(compared),
        claim.what,
        claim.found
    )
}
