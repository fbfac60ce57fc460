//! `moebench claims`: what the paper claims, beside what is simulated here, as one page.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use workloads::Suite;

use crate::failure::{Failure, OrFail};
use crate::output;
use crate::pipeline::{self, RunRequest};
use runs::engines::{Session, simulate::Simulator};
use runs::machine::Memory;
use runs::summary::claims::claims;
use runs::traces::CaseTraces;
use runs::{figures, store, traces};
use studies::paper::{self, Effort, Tested};

/// The suites that the paper's published numbers are about.
const SUITES: [&str; 3] = ["paper-gpt-authors", "paper-deepspeed", "paper-adaptive"];

/// `moebench claims`.
#[derive(Args)]
pub struct ClaimsArgs {
    /// Routing trace, as for `run` [default: `synthetic`, which is not the paper's]
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Folder for the page and the suites' samples; finished suites are not run again
    #[arg(long, value_name = "DIR", default_value = "results/claims")]
    out: PathBuf,
    /// Run suites again that the folder holds
    #[arg(long)]
    overwrite: bool,
    /// Cases side by side [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

/// Runs the command.
///
/// # Errors
/// Bad input, or what cannot be written.
pub fn run(args: &ClaimsArgs) -> Result<(), Failure> {
    let traces = CaseTraces::from(traces::load(args.trace.as_deref()).or_input()?);
    let tested: Vec<Tested> = SUITES.iter().map(|name| test(args, name, &traces)).collect::<Result<_, _>>()?;
    let page = paper::page(&tested, &format!("`{}`", figures::trace_name(&traces.name()))).or_run()?;
    store::write_text(&args.out.join("README.md"), &page).or_run()?;
    output::print(format!("{page}\npage  {}", args.out.join("README.md").display())).or_run()
}

fn test(args: &ClaimsArgs, name: &str, traces: &CaseTraces) -> Result<Tested, Failure> {
    let suite = Suite::named("claims", name).or_input()?;
    let begun = Instant::now();
    let request = RunRequest {
        shard: None,
        suite,
        file: name.to_owned(),
        traces,
        session: Session::Leader(Box::new(Simulator)),
        out: args.out.join(name),
        overwrite: args.overwrite,
        threads: args.threads,
        timelines: false,
        replay: false,
    };
    let sampled = pipeline::sample(&request)?;
    let effort = Effort { seconds: begun.elapsed().as_secs_f64(), peak_bytes: Memory::peak_of_program() };
    // By its name: the page is read on other machines.
    let file = args.trace.as_ref().and_then(|path| path.file_name());
    let option = file.map_or(String::new(), |name| format!(" --trace {}", name.display()));
    Ok(Tested {
        suite: name.to_owned(),
        command: format!("moebench run {name}{option}"),
        effort: (!sampled.read_back).then_some(effort),
        claims: claims(&sampled.summary, &request.suite.compare),
    })
}
