//! `moebench completions` and `moebench man`: what shells and `man` know of the command line, made from the command line itself.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::failure::{Failure, OrFail};
use crate::output;

/// `moebench completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// `moebench man`.
#[derive(Args)]
pub struct ManArgs {
    /// Write a page for every command into this folder [default: print that of moebench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// # Errors
/// What cannot be written.
pub fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "moebench", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end()).or_run()
}

/// # Errors
/// What cannot be written.
pub fn man(args: &ManArgs, command: Command) -> Result<(), Failure> {
    match &args.out {
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page).context("the page").or_run()?;
            output::print(String::from_utf8_lossy(&page).trim_end()).or_run()
        }
        Some(folder) => {
            let write = || -> Result<()> {
                fs::create_dir_all(folder)?;
                Ok(clap_mangen::generate_to(command, folder)?)
            };
            write().with_context(|| format!("{}: cannot be written", folder.display())).or_run()
        }
    }
}
