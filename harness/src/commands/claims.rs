//! `moebench claims`: what the paper claims, beside what is simulated here, as one page.

use std::path::{Path, PathBuf};
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
use studies::moe_layer::MoeLayers;
use studies::paper::{self, ClaimRow, Effort, Tested};
use studies::plans::{PLANS_ITERATIONS, Plans};
use studies::{Inputs, Study, Unsaid};

/// A suite that published numbers are about.
struct Held {
    suite: &'static str,
    /// Those of its systems that were measured; all where none is named.
    systems: &'static [&'static str],
    /// The artifact's files that its published times come from.
    files: &'static [&'static str],
    note: &'static str,
}

const END_TO_END: &[&str] = &["end_to_end.csv", "end_to_end_pinky32.csv"];

const SUITES: [Held; 5] = [
    Held { suite: "paper-gpt-authors", systems: &[], files: END_TO_END, note: "" },
    Held { suite: "paper-deepspeed", systems: &[], files: END_TO_END, note: "" },
    Held { suite: "paper-offline", systems: &["expert-only", "alpa"], files: END_TO_END, note: "" },
    Held {
        suite: "paper-swin",
        systems: &[],
        files: &[],
        note: "No time is held, only between which values the logs' steps lie: a row is held against the nearer end. \
               **In sample, in part**: `host.image` of `nico` was declared from the same values.",
    },
    Held { suite: "paper-adaptive", systems: &[], files: &["adaptive_every100.csv"], note: "" },
];

/// `moebench claims`.
#[derive(Args)]
pub struct ClaimsArgs {
    /// Routing trace, as for `run` [default: `synthetic`, which is not the paper's]
    #[arg(long, value_name = "PATH")]
    trace: Option<PathBuf>,
    /// Folder with moe_layer*.csv and the moe_trace.tar.xz that they were taken on, to test the performance model
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
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
    let inputs = args.data.as_deref().map(layer_inputs).transpose()?;
    let traces = CaseTraces::from(traces::load(args.trace.as_deref()).or_input()?);
    let mut tested: Vec<Tested> = SUITES.iter().map(|held| test(args, held, &traces)).collect::<Result<_, _>>()?;
    tested.push(search(args, &traces)?);
    tested.push(layers(inputs.as_ref())?);
    let page = paper::page(&tested, &format!("`{}`", figures::trace_name(&traces.name()))).or_run()?;
    store::write_text(&args.out.join("README.md"), &page).or_run()?;
    output::print(format!("{page}\npage  {}", args.out.join("README.md").display())).or_run()
}

fn layer_inputs(folder: &Path) -> Result<Inputs, Failure> {
    Inputs::read(folder, None, Unsaid::default(), &folder.join("explanations.csv")).or_input()
}

fn test(args: &ClaimsArgs, held: &Held, traces: &CaseTraces) -> Result<Tested, Failure> {
    let name = held.suite;
    let mut suite = Suite::named("claims", name).or_input()?;
    let mut command = format!("moebench run {name}");
    if !held.systems.is_empty() {
        suite.systems = held.systems.iter().map(|&system| system.to_owned()).collect();
        command += &format!(" --systems {}", held.systems.join(","));
    }
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
    let effort = effort(begun);
    let mut rows: Vec<ClaimRow> =
        claims(&sampled.summary, &request.suite.compare).into_iter().map(ClaimRow::from).collect();
    rows.extend(paper::ranges(&sampled.summary).or_run()?);
    let fitted = paper::fitted(&request.suite, held.files).or_run()?;
    Ok(Tested {
        title: name.to_owned(),
        command: args.with_trace(command),
        effort: (!sampled.read_back).then_some(effort),
        basis: format!("{fitted} {}", held.note).trim_end().to_owned(),
        rows,
    })
}

/// The search's picks, of which some were measured, beside the plans that the authors ran.
fn search(args: &ClaimsArgs, traces: &CaseTraces) -> Result<Tested, Failure> {
    let file = Unsaid::default().suite;
    let suite = Suite::named("claims", &file).or_input()?;
    let fitted = paper::fitted(&suite, END_TO_END).or_run()?;
    let begun = Instant::now();
    let plans = Plans { file, suite, trace: traces.of(0), cluster: None, iterations: PLANS_ITERATIONS };
    let rows = paper::picks(&plans.predict().or_input()?);
    Ok(Tested {
        title: "The search's picks (figure 10)".to_owned(),
        command: args.with_trace("moebench validate plans".to_owned()),
        effort: Some(effort(begun)),
        basis: format!(
            "{fitted} A ratio above 1 says that the pick is faster. A pick was measured where the artifact ran its plan, \
             without online placement and under whatever name."
        ),
        rows,
    })
}

/// The performance model on single layers.
fn layers(inputs: Option<&Inputs>) -> Result<Tested, Failure> {
    let begun = Instant::now();
    let study = inputs.map(MoeLayers::read).transpose().or_input()?.flatten();
    let outcome = study.map(|study| study.predict()).transpose().or_input()?;
    let rows = paper::layers(outcome.as_ref().and_then(|outcome| outcome.held_out.as_ref()));
    Ok(Tested {
        title: "The performance model (figure 11)".to_owned(),
        command: "moebench claims --data DIR".to_owned(),
        effort: Some(effort(begun)),
        basis: "**Held out**: constants are fitted to half of the measured layers, rows are of the other half. Errors are of the \
                layers' measured times; published is that of the paper's own model on the same layers, simulated that \
                of ours, whose mean error decides: at most 5%, at most 15%."
            .to_owned(),
        rows,
    })
}

fn effort(begun: Instant) -> Effort {
    Effort { seconds: begun.elapsed().as_secs_f64(), peak_bytes: Memory::peak_of_program() }
}

impl ClaimsArgs {
    /// A command on the same trace. By its name: the page is read on other machines.
    fn with_trace(&self, command: String) -> String {
        let file = self.trace.as_ref().and_then(|path| path.file_name());
        let option = file.map_or(String::new(), |name| format!(" --trace {}", name.display()));
        command + &option
    }
}
