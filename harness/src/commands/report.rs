//! `moebench report`: the page of stored runs, side by side.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::failure::{Failure, OrFail};
use crate::output;
use runs::report::{html, mllog};
use runs::store;
use runs::stored::StoredRun;

/// `moebench report`.
#[derive(Args)]
pub struct ReportArgs {
    /// Folders of runs, of `moebench run` or `moebench train`, whatever version wrote them
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's folder, or here where there are several]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also write every run as lines of MLPerf's logs: mllog/CASE.SYSTEM.seedN.log in the run's folder
    #[arg(long)]
    mllog: bool,
}

/// # Errors
/// A folder that holds no run that can be read, or a page that cannot be written.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let runs: Vec<StoredRun> =
        args.runs.iter().map(|folder| StoredRun::open(folder)).collect::<Result<_>>().or_input()?;
    let default = || match args.runs.as_slice() {
        [folder] => folder.join("report.html"),
        _ => PathBuf::from("report.html"),
    };
    let out = args.out.clone().unwrap_or_else(default);
    store::write_text(&out, &html::page(&runs).or_run()?).or_run()?;
    for (folder, run) in args.runs.iter().zip(&runs) {
        for log in mllog::logs(run).iter().filter(|_| args.mllog) {
            store::write_text(&folder.join(store::MLLOG).join(format!("{}.log", log.name)), &log.text).or_run()?;
        }
        if args.mllog && run.facts.drawn.of_lines {
            let why = "its rows are lines of a log, which are means of iterations and do not add up to a run";
            output::say(format_args!("{}: no {}: {why}", folder.display(), store::MLLOG));
        }
        for line in &run.missing {
            output::say(format_args!("{}: {line}", folder.display()));
        }
    }
    output::print(format!("report   {}", out.display())).or_run()
}
