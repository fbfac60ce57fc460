//! `moebench plot`: the figures of a stored run, for a paper.

use std::path::PathBuf;

use anyhow::anyhow;
use chart::Width;
use clap::Args;

use crate::commands::check_part;
use crate::failure::{Failure, OrFail};
use crate::output;
use runs::figures::files::{self, Format};
use runs::figures::{self, PaperFigure};
use runs::part::Pattern;
use runs::stored::StoredRun;

const EXAMPLES: &str = "\
Examples:
  moebench plot results/latest                              all figures, as wide as two columns
  moebench plot results/latest --figure end_to_end --columns 1 --format pdf,png
  moebench plot results/latest --format tikz --out paper/figures";

/// `moebench plot`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct PlotArgs {
    /// Folder of a run, whatever version wrote it
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// One figure, by the name of its file [default: all that the run has data for]
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
    /// One case alone by its id, or those whose id has this in it, or is like it where it has a `*`; again for more. Needs --out
    #[arg(long, value_name = "PATTERN")]
    case: Vec<Pattern>,
    /// Width in columns of a paper: one of 3.33 in, two of 7 in
    #[arg(long, value_name = "1|2", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=2))]
    columns: u8,
    /// File formats of the pictures
    #[arg(long, value_enum, value_delimiter = ',', default_value = "svg,pdf")]
    format: Vec<Format>,
    /// Folder of the files [default: figures in the run's folder, which are of all cases]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// # Errors
/// A folder that holds no run that can be read, a figure that it has no data for, or files that cannot be written.
pub fn run(args: &PlotArgs) -> Result<(), Failure> {
    let mut run = StoredRun::open(&args.run).or_input()?;
    run.keep(&args.case).or_input()?;
    check_part(&args.case, args.out.as_deref()).or_input()?;
    let all = figures::all(&run);
    let wanted = wanted(&all, args.figure.as_deref()).or_input()?;
    let folder = args.out.clone().unwrap_or_else(|| args.run.join("figures"));
    let width = if args.columns == 1 { Width::Column } else { Width::Page };
    for line in &run.missing {
        output::say(format_args!("{}: {line}", args.run.display()));
    }
    for figure in wanted {
        for path in files::write(&folder, figure, width, &args.format).or_run()? {
            output::print(format!("figure   {}", path.display())).or_run()?;
        }
    }
    Ok(())
}

fn wanted<'f>(all: &'f [PaperFigure], name: Option<&str>) -> anyhow::Result<Vec<&'f PaperFigure>> {
    let Some(name) = name else { return Ok(all.iter().collect()) };
    let there = || all.iter().map(|figure| figure.name.as_str()).collect::<Vec<_>>().join(", ");
    let one = all.iter().find(|figure| figure.name == name);
    one.map(|one| vec![one])
        .ok_or_else(|| anyhow!("--figure {name}: expected one that the run has data for: {}", there()))
}
