//! `moebench table`: tables of a stored run, for a paper.

use std::path::PathBuf;

use chart::Width;
use clap::Args;

use crate::commands::check_part;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::part::Pattern;
use runs::report::paper::{self, TableFormat};
use runs::report::values::{SUMMARY, Value};
use runs::stored::StoredRun;

const EXAMPLES: &str = "\
Examples:
  moebench table results/latest --values speedup            systems or cases as columns, as wide as a page
  moebench table results/latest --values speedup --columns 1 --case 'gpt*.no-drop' --out paper
  moebench table results/latest --values iteration,memory,mfu --format markdown,csv --out paper/tables";

/// `moebench table`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct TableArgs {
    /// Folder of a run, whatever version wrote it
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// What it holds: one value with systems or cases as columns, whichever fits, or several as columns [default: those of the
    /// table that the run wrote]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "VALUES")]
    values: Vec<Value>,
    /// One case alone by its id, or those whose id has this in it, or is like it where it has a `*`; again for more. Needs --out
    #[arg(long, value_name = "PATTERN")]
    case: Vec<Pattern>,
    /// Width in columns of a paper: one of 3.33 in, two of 7 in
    #[arg(long, value_name = "1|2", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    columns: u8,
    /// File formats of the table
    #[arg(long, value_enum, value_delimiter = ',', default_value = "latex")]
    format: Vec<TableFormat>,
    /// Folder of the files [default: tables in the run's folder, which are of all cases]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// # Errors
/// A folder that holds no run that can be read, a case that it does not have, or files that cannot be written.
pub fn run(args: &TableArgs) -> Result<(), Failure> {
    let mut run = StoredRun::open(&args.run).or_input()?;
    run.keep(&args.case).or_input()?;
    check_part(&args.case, args.out.as_deref()).or_input()?;
    let folder = args.out.clone().unwrap_or_else(|| args.run.join("tables"));
    let width = if args.columns == 1 { Width::Column } else { Width::Page };
    let values = if args.values.is_empty() { SUMMARY } else { &args.values };
    for line in &run.missing {
        output::say(format_args!("{}: {line}", args.run.display()));
    }
    for path in paper::write(&folder, &run, values, width, &args.format).or_run()? {
        output::print(format!("table    {}", path.display())).or_run()?;
    }
    Ok(())
}
